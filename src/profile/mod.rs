//! Profiles: what a run API looks like, as data.
//!
//! A profile says how a run is named, requested and read. The built-in ones are files in `builtin/`, in the format of
//! a user's own. `docs/providers.md` describes the format. This module parses profiles and finds what is wrong with
//! them; `providers` makes the requests and reads the answers.

mod builtin;
mod check;
#[cfg(fuzzing)]
pub mod fuzzing;
mod list;
mod parse;
mod pointer;
mod template;

use std::collections::BTreeMap;

use std::fmt;

use crate::domain::RunState;

pub use builtin::{builtin, builtin_names, builtin_source, crewship};
pub use list::{ListFill, ListProblem, ListTarget};
pub use parse::{ProfileFault, parse};
pub use pointer::{Pointer, PointerProblem, Token};
pub use template::{IdProblem, Parts, Piece, StrayBrace, Template};

/// What a run API looks like.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// Its name: that of the built-in one or of the provider that has a file of its own.
    pub name: String,
    /// What it is for, in a few words: "GitHub Actions workflow run".
    pub title: String,
    /// What it was checked against: "real server 3.9.1" or "documentation of 2026-11". Empty for a user's own.
    pub checked: String,
    /// Other names, which may stand for the provider's: `gh`.
    pub aliases: Vec<String>,
    /// Where the API is, without a slash at the end; `None` where each account has an address of its own.
    pub base_url: Option<String>,
    /// Where the pages for people are, if not at `base_url`.
    pub web: Option<String>,
    /// The credentials that a request carries.
    pub auth: Auth,
    /// Headers of each request.
    pub headers: Vec<(String, String)>,
    /// How a run is named: text and named parts.
    pub id: Template,
    /// What the parts of an ID look like, by name; those that are not named take any characters.
    pub parts: BTreeMap<String, PartKind>,
    /// Addresses of pages that name a run.
    pub urls: Vec<Template>,
    /// Path and query of the request for one run.
    pub get: Template,
    /// Where a run is requested that `get` does not find.
    pub fallback_get: Option<Template>,
    /// Texts that templates may name besides the parts of an ID.
    pub vars: BTreeMap<String, Template>,
    /// Where the object of the run may be in the answer, the best first; the first that has a status counts.
    pub roots: Vec<Pointer>,
    /// Where the answer names its run, which must be the requested one: the last part of the ID, or all of it.
    pub check_id: Vec<Pointer>,
    /// Where the provider's own word for the state is, the best first. Default: the first place that the rules look at.
    /// Empty where they look at the status code alone.
    pub status: Vec<Pointer>,
    /// Whether texts are compared letter for letter; otherwise ASCII case does not matter.
    pub exact: bool,
    /// What an answer stands for. The first rule counts whose tests all hold. Empty only where `each` has the rules.
    pub rules: Vec<Rule>,
    /// What else is read from an answer.
    pub fields: Fields,
    /// A second request that may change the outcome.
    pub confirm: Option<Confirm>,
    /// A second request that adds to a verdict and never changes it.
    pub detail: Option<Detail>,
    /// The answer is a list of parts, and the run is as its worst part.
    pub each: Option<Each>,
    /// Limits and their headers.
    pub rate: Rate,
    /// The event stream of a run.
    pub stream: Option<Stream>,
    /// How runs are listed.
    pub list: Option<List>,
}

/// What a part of an ID looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartKind {
    /// Digits.
    Number,
    /// 8-4-4-4-12 hexadecimal digits.
    Uuid,
    /// 1 to 128 of `A-Z a-z 0-9 _ - .`
    Token,
    /// A whole http or https address.
    Url,
}

/// What a test looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A place in the answer.
    At(Pointer),
    /// `@http`: the status code of the answer.
    Http,
}

/// What an answer stands for where all tests hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// The tests.
    pub when: Vec<(Subject, Test)>,
    /// The state.
    pub is: RuleOutcome,
    /// Line of the file, from 1.
    pub line: usize,
}

impl fmt::Display for Rule {
    /// As a profile writes it, shortened to what people look for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (subject, test)) in self.when.iter().enumerate() {
            if index > 0 {
                f.write_str(" and ")?;
            }
            match subject {
                Subject::At(pointer) => write!(f, "{pointer} {test}")?,
                Subject::Http => write!(f, "@http {test}")?,
            }
        }
        let is = match self.is {
            RuleOutcome::State(state) => state.as_str(),
            RuleOutcome::NotFound => "not_found",
        };
        write!(f, " is {is}")
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OneOf(values) => {
                f.write_str("= ")?;
                for (index, value) in values.iter().enumerate() {
                    let separator = if index > 0 { " or " } else { "" };
                    write!(f, "{separator}{value}")?;
                }
                Ok(())
            }
            Self::Absent => f.write_str("absent"),
            Self::Present => f.write_str("present"),
            Self::Greater(number) => write!(f, "> {number}"),
        }
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Bool(value) => write!(f, "{value}"),
        }
    }
}

/// What a test wants.
#[derive(Debug, Clone, PartialEq)]
pub enum Test {
    /// One of these. An array has to contain one of them.
    OneOf(Vec<Scalar>),
    /// Nothing there: absent, `null`, or an empty text, array or object.
    Absent,
    /// Something there.
    Present,
    /// A number greater than this.
    Greater(f64),
}

/// A value that a test compares with.
#[derive(Debug, Clone, PartialEq)]
pub enum Scalar {
    /// A text.
    Text(String),
    /// A number.
    Number(f64),
    /// `true` or `false`.
    Bool(bool),
}

/// What a rule concludes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleOutcome {
    /// The run is in this state.
    State(RunState),
    /// The API knows no such run.
    NotFound,
}

/// Places of what is read besides the state, the best first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields {
    /// A name for people.
    pub name: Vec<Pointer>,
    /// The attempt: a number that grows when the same ID runs again.
    pub attempt: Vec<Pointer>,
    /// What runs belong together: a workflow, a deployment.
    pub group: Vec<Pointer>,
    /// When the run was created.
    pub created: Vec<Pointer>,
    /// When it started.
    pub started: Vec<Pointer>,
    /// When it ended; looked at only when it has ended.
    pub finished: Vec<Pointer>,
    /// How long it ran, in milliseconds.
    pub duration_ms: Vec<Pointer>,
    /// Why it failed.
    pub error: Vec<Pointer>,
    /// A word that says more than the status: why a run waits.
    pub reason: Vec<Pointer>,
    /// The input.
    pub input: Vec<Pointer>,
    /// The output.
    pub output: Vec<Pointer>,
    /// The run's page: places in the answer.
    pub url: Vec<Pointer>,
    /// The run's page, made of the parts of its ID, where the answer has none.
    pub url_template: Option<Template>,
    /// Crewship's `version_id`.
    pub version_id: Vec<Pointer>,
    /// Crewship's `deployment_id`.
    pub deployment_id: Vec<Pointer>,
    /// The project.
    pub project: Vec<Pointer>,
}

/// A second request that may change the outcome.
#[derive(Debug, Clone, PartialEq)]
pub struct Confirm {
    /// After which outcomes of the first it is made.
    pub on: Vec<RunState>,
    /// Its path and query.
    pub get: Template,
    /// What its answer stands for. Without a rule that holds, the first outcome stays.
    pub rules: Vec<Rule>,
    /// Why the run failed, in its answer.
    pub error: Vec<Pointer>,
    /// The output, in its answer.
    pub output: Vec<Pointer>,
}

/// A second request that adds an error or an output to a verdict.
#[derive(Debug, Clone, PartialEq)]
pub struct Detail {
    /// After which outcomes it is made. Default: `failed`.
    pub on: Vec<RunState>,
    /// Its path and query.
    pub get: Template,
    /// Why the run failed, in its answer.
    pub error: Vec<Pointer>,
    /// The output, in its answer.
    pub output: Vec<Pointer>,
}

/// The parts of a run, in its answer or in a second one.
#[derive(Debug, Clone, PartialEq)]
pub struct Each {
    /// Path and query of the request for the list; `None` where the first answer has it.
    pub get: Option<Template>,
    /// Where the array is.
    pub items: Pointer,
    /// What each element stands for, with pointers from the element on.
    pub rules: Vec<Rule>,
    /// Where an element has its name, for the error text.
    pub name: Vec<Pointer>,
}

/// Limits and their headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rate {
    /// Header with the requests that are left. Default: `x-ratelimit-remaining`.
    pub remaining: String,
    /// Header with when the limit is reset: seconds from now, or Unix seconds or milliseconds. Default:
    /// `x-ratelimit-reset`.
    pub reset: String,
    /// Default of `requests_per_minute`: 60.
    pub per_minute: u32,
    /// Whether an answer 304 does not count, so that ETags are sent.
    pub etag_free: bool,
}

/// The event stream of a run (server-sent events), and the types of its events. Those of other types only show that the
/// stream is alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Path and query of the stream.
    pub sse: Template,
    /// Types after which the run may have started: it is polled.
    pub started: Vec<String>,
    /// Types after which the run may have ended: it is polled.
    pub ended: Vec<String>,
    /// Types after which the stream ends by itself.
    pub over: Vec<String>,
    /// Types that say how the run is, and nothing else.
    pub alive: Vec<String>,
    /// Types that people see.
    pub news: Vec<String>,
    /// Types that report a failure.
    pub failed: Vec<String>,
    /// Statuses after which the run may have ended, in the data of types of `started` and `alive`.
    pub last: Vec<String>,
}

/// How runs are listed.
#[derive(Debug, Clone, PartialEq)]
pub struct List {
    /// Path and query, with parts of the ID and parameters.
    pub get: Option<Template>,
    /// Path and query of a list that is requested by POST.
    pub post: Option<Template>,
    /// The body of a POST: JSON whose texts may name parameters.
    pub body: Option<serde_json::Value>,
    /// Where the array may be, the best first; the first that is one counts.
    pub items: Vec<Pointer>,
    /// Whether an answer without the array has no elements, rather than being of another shape.
    pub omits_empty: bool,
    /// Where an element has the parts of its ID.
    pub id: BTreeMap<String, Pointer>,
    /// Where the answer about one run has what an element is. Empty: an element is as that answer.
    pub entry: Pointer,
    /// The value of `{limit}`: most elements of a page. Default: 100.
    pub limit: u32,
    /// The values of `{status}` of runs that go on. Each has a request of its own, which may repeat it with several.
    pub active: Vec<Vec<String>>,
    /// The values of `{status}` of runs that are in no list without `{status}`.
    pub unlisted: Vec<String>,
    /// What `{since}` is, of `{time}` (RFC 3339), `{seconds}` or `{ms}` (since 1970).
    pub since: Option<Template>,
    /// Parameters without which the API has no list, besides those of the path and the parts of the ID.
    pub needs: Vec<String>,
    /// Where an element has further values, by name.
    pub values: BTreeMap<String, Pointer>,
    /// How the next page is found; `None` where there is one page.
    pub next: Option<Next>,
}

/// How the next page of a list is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// By the header `Link` (RFC 8288).
    Link,
    /// By an address in the answer.
    LinkAt(Pointer),
    /// By a growing `{offset}`.
    Offset,
    /// By a cursor of the answer.
    Cursor {
        /// Where the cursor is.
        cursor: Pointer,
        /// The query parameter that takes it; `None` where the request names `{cursor}`.
        param: Option<String>,
        /// Where the answer says `false` if there is no other page, though it has a cursor.
        more: Option<Pointer>,
    },
}

/// The credentials that a request carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    /// How they are sent.
    pub scheme: Scheme,
    /// Environment variables that may have them, the best first.
    pub env: Vec<String>,
    /// A file that may have them.
    pub file: Option<String>,
    /// Environment variable of the user, for [`Scheme::Basic`].
    pub user_env: Option<String>,
    /// The user, for [`Scheme::Basic`].
    pub user: Option<String>,
    /// Whether requests are made without any, too.
    pub optional: bool,
    /// A request whose answer has a token.
    pub login: Option<Login>,
}

/// How credentials are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scheme {
    /// Not at all.
    None,
    /// `Authorization: WORD KEY`; the word is `Bearer` for `bearer`, else as the profile has it.
    Word(String),
    /// A header of its own.
    Header(String),
    /// `Authorization: Basic`, of the user and the key.
    Basic,
}

/// A request whose answer has a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// Path of the request, a POST with `{"username","password"}` as JSON.
    pub post: Template,
    /// Where the token is in its answer.
    pub token: Pointer,
    /// Environment variables with user and password.
    pub user_env: Option<String>,
    /// See `user_env`.
    pub password_env: Option<String>,
}
