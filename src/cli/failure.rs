//! Errors that end a command, as people and as programs read them.

use std::fmt;

use clap::error::ErrorKind;
use serde_json::{Value, json};

use super::client::failure_code;
use super::{KEY_REFUSED, USAGE};
use crate::config::{Problem, Problems};
use crate::control::ClientError;
use crate::style::fold;
use crate::text::escape_json_for_terminal;

/// The kind of a failure. Its word in JSON is stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// The command line or what it names is wrong.
    Usage,
    /// The configuration is wrong.
    Configuration,
    /// No daemon answers, or it belongs to another user.
    NoDaemon,
    /// The daemon refuses the request.
    Refused,
    /// There is no API key, or the API refuses it.
    Unauthorized,
    /// Anything else.
    Failed,
}

impl FailureKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::Configuration => "configuration",
            Self::NoDaemon => "no_daemon",
            Self::Refused => "refused",
            Self::Unauthorized => "unauthorized",
            Self::Failed => "failed",
        }
    }
}

/// Why a command ends without its result.
#[derive(Debug, Clone)]
pub struct CommandFailure {
    kind: FailureKind,
    what: String,
    fix: Option<String>,
    exit_code: u8,
    /// What JSON has besides, such as the run that it is about.
    more: Option<(&'static str, Value)>,
}

/// The text for people, without `error: `.
impl fmt::Display for CommandFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.fix {
            Some(fix) => write!(f, "{}; {fix}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

impl std::error::Error for CommandFailure {}

impl CommandFailure {
    /// Wrong usage.
    pub(super) fn usage(what: impl ToString) -> Self {
        Self {
            kind: FailureKind::Usage,
            what: what.to_string(),
            fix: None,
            exit_code: USAGE,
            more: None,
        }
    }

    /// An API key that is missing or refused.
    pub(super) fn unauthorized(what: impl ToString) -> Self {
        Self {
            kind: FailureKind::Unauthorized,
            exit_code: KEY_REFUSED,
            ..Self::usage(what)
        }
    }

    /// Something that is neither the fault of the command line nor of the configuration.
    pub(super) fn failed(what: impl ToString, exit_code: u8) -> Self {
        Self {
            kind: FailureKind::Failed,
            exit_code,
            ..Self::usage(what)
        }
    }

    /// The same with what to do.
    #[must_use]
    pub(super) fn fix(mut self, fix: impl ToString) -> Self {
        self.fix = Some(fix.to_string());
        self
    }

    /// The same with words in front.
    #[must_use]
    pub(super) fn prefixed(mut self, words: &str) -> Self {
        self.what.insert_str(0, words);
        self
    }

    /// The same with what JSON has besides.
    #[must_use]
    pub(super) fn about(mut self, key: &'static str, value: impl ToString) -> Self {
        self.more = Some((key, Value::String(value.to_string())));
        self
    }

    /// The same with another exit code.
    #[must_use]
    pub(super) fn exit_with(mut self, exit_code: u8) -> Self {
        self.exit_code = exit_code;
        self
    }

    /// Whether it names what is wrong with the configuration.
    pub(super) fn is_of_configuration(&self) -> bool {
        self.kind == FailureKind::Configuration
    }

    /// The exit code that goes with it.
    pub fn exit_code(&self) -> u8 {
        self.exit_code
    }

    /// An error that a command returned.
    pub fn of_command(error: &anyhow::Error) -> Self {
        if let Some(failure) = error.downcast_ref::<Self>() {
            return failure.clone();
        }
        if let Some(error) = error.downcast_ref::<ClientError>() {
            return Self::from(error);
        }
        match error.downcast_ref::<Problems>() {
            // With what the command wanted of the configuration.
            Some(problems) => Self {
                what: format!("{error:#}"),
                ..Self::from(problems)
            },
            None => Self::failed(format!("{error:#}"), USAGE),
        }
    }

    /// Wrong usage, as clap reports it. `None` for the texts of `--help` and `--version`.
    pub fn of_usage(error: &clap::Error) -> Option<Self> {
        if matches!(
            error.kind(),
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
        ) {
            return None;
        }
        if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            let what = "a command is missing";
            return Some(Self::usage(what).fix("`runwatch --help` lists the commands"));
        }
        let text = error.render().to_string();
        let (mut what, mut tips) = (Vec::new(), Vec::new());
        let mut paragraphs = text.split("\n\n");
        let first = paragraphs.next().unwrap_or_default();
        what.extend(first.trim_start_matches("error:").split_whitespace());
        for line in paragraphs.flat_map(str::lines) {
            tips.extend(line.trim().strip_prefix("tip: "));
        }
        let fix = match tips.is_empty() {
            true => "see `--help`".to_owned(),
            false => tips.join("; "),
        };
        Some(Self::usage(what.join(" ")).fix(fix))
    }

    /// The line or lines on standard error, without the last line break: `error: ` and the text, folded at words where
    /// `columns` of a terminal are given, or with `json` one object.
    pub fn text(&self, json: bool, columns: Option<usize>) -> String {
        if json {
            return escape_json_for_terminal(&self.to_json().to_string()).into_owned();
        }
        fold(&format!("error: {self}"), columns.unwrap_or(usize::MAX))
    }

    fn to_json(&self) -> Value {
        let mut object = json!({
            "error": self.what,
            "hint": self.fix,
            "kind": self.kind.as_str(),
            "exit_code": self.exit_code,
        });
        if let Some((key, value)) = &self.more {
            object[*key] = value.clone();
        }
        object
    }
}

impl From<&ClientError> for CommandFailure {
    fn from(error: &ClientError) -> Self {
        let kind = match error {
            ClientError::NotRunning(_) | ClientError::Forbidden(_) => FailureKind::NoDaemon,
            ClientError::Refused(_) => FailureKind::Refused,
            ClientError::Broken { .. } => FailureKind::Failed,
        };
        let text = error.to_string();
        // The answers of the daemon are texts of their own.
        let (what, fix) = match text
            .split_once("; ")
            .filter(|_| kind == FailureKind::NoDaemon)
        {
            Some((what, fix)) => (what.to_owned(), Some(fix.to_owned())),
            None => (text, None),
        };
        Self {
            kind,
            what,
            fix,
            exit_code: failure_code(error),
            more: None,
        }
    }
}

impl From<&Problems> for CommandFailure {
    fn from(problems: &Problems) -> Self {
        let list = problems.0.iter().map(problem_json).collect();
        Self {
            kind: FailureKind::Configuration,
            more: Some(("problems", Value::Array(list))),
            ..Self::usage(problems)
        }
    }
}

/// A problem of the configuration in JSON.
pub(super) fn problem_json(problem: &Problem) -> Value {
    json!({
        "origin": problem.origin.as_ref().map(ToString::to_string),
        "key": problem.key,
        "value": problem.value,
        "what": problem.what,
        "fix": problem.fix,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Cli;

    fn of_usage(arguments: &[&str]) -> Value {
        let error = Cli::from_args(arguments.iter().map(Into::into)).unwrap_err();
        CommandFailure::of_usage(&error).unwrap().to_json()
    }

    #[test]
    fn wrong_usage_is_one_sentence_with_a_hint() {
        assert_eq!(
            of_usage(&["runwatch", "wait", "--timout", "5s", "run_1"]),
            json!({
                "error": "unexpected argument '--timout' found",
                "hint": "a similar argument exists: '--timeout'", "kind": "usage", "exit_code": 2,
            })
        );
        let missing = of_usage(&["runwatch", "show"]);
        assert_eq!(
            missing["error"],
            "the following required arguments were not provided: <RUN_ID>"
        );
        assert_eq!(missing["hint"], "see `--help`");
        assert_eq!(of_usage(&["runwatch"])["error"], "a command is missing");
        let conflict = of_usage(&["runwatch", "--json", "wait", "--output", "run_1"]);
        assert_eq!(
            conflict["error"],
            "the argument '--output' cannot be used with '--json'"
        );
        let error = Cli::from_args(["runwatch", "--version"].map(Into::into)).unwrap_err();
        assert!(CommandFailure::of_usage(&error).is_none());
    }

    #[test]
    fn errors_for_people_are_folded_at_words_on_a_terminal_only() {
        let failure = CommandFailure::usage("no sink is called ops").fix("known sinks: away, log");
        let whole = "error: no sink is called ops; known sinks: away, log";
        assert_eq!(failure.text(false, None), whole);
        assert_eq!(
            failure.text(false, Some(30)),
            "error: no sink is called ops;\n  known sinks: away, log"
        );
        assert_eq!(
            fold("a longer-than-it-fits word\nb", 9),
            "a\n  longer-than-it-fits\n  word\nb"
        );
        assert_eq!(
            failure.text(true, Some(30)),
            r#"{"error":"no sink is called ops","exit_code":2,"hint":"known sinks: away, log","kind":"usage"}"#
        );
    }
}
