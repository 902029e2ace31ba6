//! Reads what an answer reports, as its profile describes it.
//!
//! The state and the ID of the run decide: of an answer that has both, the rest is taken as far as it can be read. Of a
//! field that no verdict rests on, a wrong type counts as absent.

mod list;

use std::borrow::Cow;
use std::sync::Arc;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use reqwest::Url;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::OwnedSemaphorePermit;

use super::error::Malformed;
use super::plan::{Builder, Place, Plan, Use};
use super::reader::{Ending, Reader, Value};
use super::value::{Seen, Unreadable, each_element, is_nothing, look_up, shown, text};
use crate::domain::{JsonText, Observation, RunDetails, RunState, Status, Verdict};
use crate::profile::{
    Confirm, Detail, Each, Fields, Outcome, PartKind, Pointer, Profile, Rule, Scalar, Subject,
    Test, Token,
};
use crate::text::{one_line, replace_lone_surrogates};

pub(super) use list::{Element, PageLayout, PageRead};

/// Longest piece of a body that a message shows, in characters.
const SHOWN_CHARS: usize = 80;

/// Longest name, group or reason that is kept, in characters.
const NAME_CHARS: usize = 200;

/// Longest address of a page that is kept, in bytes.
const MAX_URL_BYTES: usize = 2048;

/// Most parts of a run that an error names.
const NAMED_PARTS: usize = 5;

/// Earliest and latest second of a time that counts, since 1970: programs send the year 1, the epoch or the year
/// 9999 for a time that is not there (`time.Time{}` of Go, `DateTime.MinValue` and `MaxValue` of .NET).
const TIMES: std::ops::Range<i64> = 31_536_000..221_845_392_000;

/// Times from this number on are in milliseconds.
const FIRST_MILLISECONDS: f64 = 1e11;

/// Where list answers say that there is another page.
const NEXT_PAGE: [&str; 6] = [
    "next_page_token",
    "nextPageToken",
    "next_cursor",
    "nextCursor",
    "next",
    "has_more",
];

/// What a large answer takes of the bound on the bytes of all.
pub(super) type Room = Arc<OwnedSemaphorePermit>;

/// What is read of one kind of answer, and where it is: made once of a profile.
#[derive(Debug)]
pub(super) struct Layout {
    plan: Plan,
    /// Further places, which nothing here looks at.
    further: Vec<Place>,
    /// What the rules test, each place once.
    tested: Vec<(Place, Kinds)>,
    rules: Vec<TestedRule>,
    exact: bool,
    status: Vec<Place>,
    check_id: Vec<Place>,
    fields: FieldPlaces,
    items: Option<Place>,
    /// What is read of each element of the items.
    part: Option<Box<Layout>>,
    /// There are no rules but those for the parts of the run.
    parts_decide: bool,
    /// Signs of another page of the list.
    next_page: Vec<Place>,
}

/// A rule, with the numbers of what it tests.
#[derive(Debug)]
struct TestedRule {
    tests: Vec<(Tested, Test)>,
    is: Outcome,
    by_http: bool,
    /// It wants something to be there.
    is_positive: bool,
}

#[derive(Debug, Clone, Copy)]
enum Tested {
    /// Index of [`Layout::tested`].
    At(usize),
    Http,
}

/// The kinds of values that a place is compared with: those of another kind are no status.
#[derive(Debug, Clone, Copy, Default)]
struct Kinds {
    text: bool,
    number: bool,
    bool: bool,
    any: bool,
}

impl Kinds {
    fn add(&mut self, test: &Test) {
        match test {
            Test::OneOf(values) => {
                for value in values {
                    match value {
                        Scalar::Text(_) => self.text = true,
                        Scalar::Number(_) => self.number = true,
                        Scalar::Bool(_) => self.bool = true,
                    }
                }
            }
            Test::Greater(_) => self.number = true,
            Test::Absent | Test::Present => self.any = true,
        }
    }

    fn has(self, seen: &Seen<'_>) -> bool {
        seen.has_kind(&|seen| match seen {
            Seen::Absent | Seen::Unknown => false,
            Seen::Text(_) => self.text || self.any,
            Seen::Number(_) => self.number || self.any,
            Seen::Bool(_) => self.bool || self.any,
            Seen::Array(_) | Seen::Object => self.any,
        })
    }
}

#[derive(Debug, Default)]
struct FieldPlaces {
    name: Vec<Place>,
    attempt: Vec<Place>,
    group: Vec<Place>,
    created: Vec<Place>,
    started: Vec<Place>,
    finished: Vec<Place>,
    duration_ms: Vec<Place>,
    error: Vec<Place>,
    reason: Vec<Place>,
    input: Vec<Place>,
    output: Vec<Place>,
    url: Vec<Place>,
    version_id: Vec<Place>,
    deployment_id: Vec<Place>,
    project: Vec<Place>,
}

impl FieldPlaces {
    fn of(fields: &Fields, builder: &mut Builder) -> Self {
        let mut all = |pointers: &[Pointer], usage| builder.all(pointers, usage);
        Self {
            name: all(&fields.name, Use::SMALL),
            attempt: all(&fields.attempt, Use::DECIDES),
            group: all(&fields.group, Use::SMALL),
            created: all(&fields.created, Use::SMALL),
            started: all(&fields.started, Use::SMALL),
            finished: all(&fields.finished, Use::SMALL),
            duration_ms: all(&fields.duration_ms, Use::SMALL),
            error: all(&fields.error, Use::LARGE),
            reason: all(&fields.reason, Use::SMALL),
            input: all(&fields.input, Use::LARGE),
            output: all(&fields.output, Use::LARGE),
            url: all(&fields.url, Use::SMALL),
            version_id: all(&fields.version_id, Use::SMALL),
            deployment_id: all(&fields.deployment_id, Use::SMALL),
            project: all(&fields.project, Use::SMALL),
        }
    }
}

/// Makes a [`Layout`].
#[derive(Default)]
struct Draft<'a> {
    roots: &'a [Pointer],
    rules: &'a [Rule],
    exact: bool,
    status: &'a [Pointer],
    check_id: &'a [Pointer],
    fields: Fields,
    each: Option<&'a Each>,
    parts_decide: bool,
    further: Vec<(Pointer, Use)>,
}

impl Layout {
    /// Of the answer about a run.
    pub(super) fn of_run(profile: &Profile) -> Self {
        let same_answer = profile.each.as_ref().filter(|each| each.get.is_none());
        Draft {
            roots: &profile.roots,
            rules: &profile.rules,
            exact: profile.exact,
            status: &profile.status,
            check_id: &profile.check_id,
            fields: profile.fields.clone(),
            each: same_answer,
            parts_decide: profile.each.is_some() && profile.rules.is_empty(),
            further: Vec::new(),
        }
        .build()
    }

    /// Of the answer that confirms an outcome.
    pub(super) fn of_confirm(confirm: &Confirm, exact: bool) -> Self {
        let fields = Fields {
            error: confirm.error.clone(),
            output: confirm.output.clone(),
            ..Fields::default()
        };
        Draft {
            rules: &confirm.rules,
            exact,
            fields,
            ..Draft::default()
        }
        .build()
    }

    /// Of the answer that adds to a verdict.
    pub(super) fn of_detail(detail: &Detail) -> Self {
        let fields = Fields {
            error: detail.error.clone(),
            output: detail.output.clone(),
            ..Fields::default()
        };
        Draft {
            fields,
            ..Draft::default()
        }
        .build()
    }

    /// Of the answer that has the parts of a run.
    pub(super) fn of_parts(each: &Each, exact: bool) -> Self {
        Draft {
            exact,
            each: Some(each),
            ..Draft::default()
        }
        .build()
    }

    /// Of one part of a run.
    fn of_part(each: &Each, exact: bool) -> Self {
        let fields = Fields {
            name: each.name.clone(),
            ..Fields::default()
        };
        Draft {
            rules: &each.rules,
            exact,
            fields,
            ..Draft::default()
        }
        .build()
    }

    /// The places that are walked.
    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Whether a rule looks at the status code `code`.
    pub(super) fn tests_code(&self, code: u16) -> bool {
        let looks = |(tested, test): &(Tested, Test)| {
            matches!(tested, Tested::Http) && holds_code(test, code)
        };
        self.rules.iter().any(|rule| rule.tests.iter().any(looks))
    }
}

impl Draft<'_> {
    fn build(self) -> Layout {
        let mut builder = Builder::new(self.roots);
        let mut tested: Vec<(Place, Kinds)> = Vec::new();
        let mut rules = Vec::new();
        for rule in self.rules {
            let mut tests = Vec::new();
            for (subject, test) in &rule.when {
                let Subject::At(pointer) = subject else {
                    tests.push((Tested::Http, test.clone()));
                    continue;
                };
                let place = builder.at(pointer, Use::DECIDES);
                let known = tested.iter().position(|(known, _)| *known == place);
                let index = known.unwrap_or(tested.len());
                if known.is_none() {
                    tested.push((place, Kinds::default()));
                }
                tested[index].1.add(test);
                tests.push((Tested::At(index), test.clone()));
            }
            let by_http = tests
                .iter()
                .any(|(tested, _)| matches!(tested, Tested::Http));
            let is_positive = tests.iter().any(|(_, test)| *test != Test::Absent);
            rules.push(TestedRule {
                tests,
                is: rule.is,
                by_http,
                is_positive,
            });
        }
        let next_page = match self.each {
            Some(_) => &NEXT_PAGE[..],
            None => &[],
        };
        let next_page = next_page
            .iter()
            .map(|name| Pointer(vec![Token::Key((*name).to_owned())]));
        let further = self.further.iter();
        Layout {
            further: further
                .map(|(pointer, usage)| builder.at(pointer, *usage))
                .collect(),
            status: builder.all(self.status, Use::DECIDES),
            check_id: builder.all(self.check_id, Use::DECIDES),
            fields: FieldPlaces::of(&self.fields, &mut builder),
            items: self
                .each
                .map(|each| builder.at(&each.items, Use::LARGE | Use::DECIDES)),
            part: self
                .each
                .map(|each| Box::new(Layout::of_part(each, self.exact))),
            next_page: builder.all(&next_page.collect::<Vec<_>>(), Use::SMALL),
            plan: builder.build(),
            parts_decide: self.parts_decide,
            tested,
            rules,
            exact: self.exact,
        }
    }
}

/// Whether a test of the status code holds.
fn holds_code(test: &Test, code: u16) -> bool {
    match test {
        Test::OneOf(values) => values
            .iter()
            .any(|value| matches!(value, Scalar::Number(number) if *number == f64::from(code))),
        Test::Greater(number) => f64::from(code) > *number,
        Test::Absent => false,
        Test::Present => true,
    }
}

/// What an answer is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected<'a> {
    /// The ID of the run.
    pub(super) id: &'a str,
    /// The last part of it.
    pub(super) last: &'a str,
    /// The status code of the answer.
    pub(super) code: u16,
    /// Its header says that there is another page.
    pub(super) more: bool,
}

/// An answer about a run, as far as it can be read.
#[derive(Debug)]
pub(super) struct RunAnswer {
    pub(super) reported: Reported,
    /// Whether the body has its end. One that has none may be whole the next time.
    pub(super) whole: bool,
    /// The fields that were left out, as their names and why.
    pub(super) left_out: Vec<(&'static str, String)>,
}

/// What an answer reports.
#[derive(Debug)]
pub(super) enum Reported {
    /// The run is like this.
    Run(Box<Observation>),
    /// The API knows no such run.
    NotFound,
}

/// What a second answer adds.
#[derive(Debug, Default)]
pub(super) struct Addition {
    /// The state that it shows, if one of its rules holds.
    pub(super) state: Option<Status>,
    /// That state is of the parts of the run.
    of_parts: bool,
    error: Option<String>,
    output: Option<JsonText>,
}

impl Addition {
    /// Takes over what was found: the state, an error where the run failed, an output.
    pub(super) fn add_to(self, observation: &mut Observation) {
        let Observation { status, details } = observation;
        if let Some(state) = self.state {
            // The provider's word for the run stays, also where it says less than the second answer.
            *status = match self.of_parts {
                true => state,
                false => Status::new(state.state(), status.as_str()),
            };
            if Verdict::of_status(status).is_none() {
                // It has not ended.
                details.completed_at = None;
            }
        }
        if status.state() == RunState::Failed && self.error.is_some() {
            details.error_message = self.error;
            details.left_out.retain(|name| name != "error_message");
        }
        if self.output.is_some() {
            details.output = self.output;
            details.left_out.retain(|name| name != "output");
        }
    }
}

/// What a place of an answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found<'a> {
    Absent,
    Json(&'a [u8]),
    TooLarge,
    Cut,
    NotJson,
    Contradicts,
}

/// A body that was read to its end.
struct Answer<'p> {
    layout: &'p Layout,
    reader: Reader<'p>,
    values: Vec<Value>,
    ending: Ending,
    /// The root of the run's object.
    root: usize,
}

/// What the rules conclude.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Conclusion {
    /// The first rule that holds.
    Rule(usize),
    /// None holds.
    None,
    /// A rule may hold, but what it looks at is missing.
    Undecided,
}

impl<'p> Answer<'p> {
    fn of(layout: &'p Layout, mut reader: Reader<'p>) -> Self {
        let (ending, values) = reader.finish();
        let mut answer = Self {
            layout,
            reader,
            values,
            ending,
            root: 0,
        };
        let root = |answer: &mut Self, has: &dyn Fn(&Self) -> bool| {
            (0..layout.plan.roots()).find(|root| {
                answer.root = *root;
                has(answer)
            })
        };
        if layout.plan.roots() > 1 {
            let chosen = root(&mut answer, &|answer| answer.has_status()).or_else(|| {
                root(&mut answer, &|answer| {
                    answer.first(&layout.check_id).is_some()
                })
            });
            answer.root = chosen.unwrap_or_default();
        }
        answer
    }

    fn found(&self, place: Place) -> Found<'_> {
        let (slot, steps) = self.layout.plan.locate(place, self.root);
        let json = match self.values.get(slot).unwrap_or(&Value::Absent) {
            Value::Absent => return Found::Absent,
            Value::Bytes(bytes) => bytes,
            Value::TooLarge => return Found::TooLarge,
            Value::Cut => return Found::Cut,
        };
        // Most places are kept by themselves.
        let found = match steps {
            [] => Ok(Some(&**json)),
            steps => look_up(json, steps),
        };
        match found {
            Ok(None | Some(b"null")) => Found::Absent,
            Ok(Some(json)) => Found::Json(json),
            Err(Unreadable::NotJson) => Found::NotJson,
            Err(Unreadable::Contradicts) => Found::Contradicts,
        }
    }

    fn json(&self, place: Place) -> Option<&[u8]> {
        match self.found(place) {
            Found::Json(json) => Some(json),
            _ => None,
        }
    }

    /// The first place that has a value which is not empty.
    fn first(&self, places: &[Place]) -> Option<&[u8]> {
        let mut values = places.iter().filter_map(|place| self.json(*place));
        values.find(|json| !is_nothing(json))
    }

    fn is_incomplete(&self) -> bool {
        self.ending != Ending::Whole
    }

    fn seen(&self, place: Place) -> Seen<'_> {
        match self.found(place) {
            Found::Absent if self.is_incomplete() => Seen::Unknown,
            Found::Absent => Seen::Absent,
            Found::Json(json) => Seen::of(json),
            Found::TooLarge | Found::Cut | Found::NotJson | Found::Contradicts => Seen::Unknown,
        }
    }

    /// Whether anything is where the status is, or where a rule looks: also what cannot be one.
    fn has_status(&self) -> bool {
        let Layout { tested, status, .. } = self.layout;
        let mut places = tested.iter().map(|(place, _)| place).chain(status);
        places.any(|place| self.found(*place) != Found::Absent)
    }

    /// Whether a place of the status that no rule tests has a value.
    fn is_other_status(&self, place: Place) -> bool {
        let tested = &self.layout.tested;
        !tested.iter().any(|(known, _)| *known == place)
            && self.json(place).and_then(shown).is_some()
    }

    fn conclude(&self, seen: &[Seen<'_>], code: u16) -> Conclusion {
        for (index, rule) in self.layout.rules.iter().enumerate() {
            match self.rule_holds(rule, seen, code) {
                Some(true) => return Conclusion::Rule(index),
                Some(false) => {}
                None => return Conclusion::Undecided,
            }
        }
        Conclusion::None
    }

    /// Whether a rule holds; `None` where what it looks at is missing.
    fn rule_holds(&self, rule: &TestedRule, seen: &[Seen<'_>], code: u16) -> Option<bool> {
        let mut all = Some(true);
        for (tested, test) in &rule.tests {
            let holds = match tested {
                Tested::Http => Some(holds_code(test, code)),
                Tested::At(tested) => holds(test, &seen[*tested], self.layout.exact),
            };
            match holds {
                Some(true) => {}
                Some(false) => return Some(false),
                None => all = None,
            }
        }
        all
    }

    /// What the rules make of the answer: nothing where none holds.
    fn outcome(&self, code: u16) -> Result<Option<(Outcome, &TestedRule)>, Malformed> {
        let tested = &self.layout.tested;
        let (one, several);
        let seen: &[Seen<'_>] = match &**tested {
            // Most rules look at one place.
            [(place, _)] => {
                one = [self.seen(*place)];
                &one
            }
            tested => {
                several = tested
                    .iter()
                    .map(|(place, _)| self.seen(*place))
                    .collect::<Vec<_>>();
                &several
            }
        };
        let has_status = || {
            let mut values = seen.iter().zip(tested);
            let mut other = self.layout.status.iter();
            values.any(|(seen, (_, kinds))| kinds.has(seen))
                || other.any(|place| self.is_other_status(*place))
        };
        let conclusion = self.conclude(seen, code);
        let is_positive = match conclusion {
            Conclusion::Rule(rule) => self.layout.rules[rule].is_positive,
            Conclusion::None | Conclusion::Undecided => false,
        };
        if !is_positive && !self.layout.parts_decide && !has_status() {
            return Err(self.malformed(self.no_status()));
        }
        match conclusion {
            Conclusion::Rule(rule) => {
                let rule = &self.layout.rules[rule];
                Ok(Some((rule.is, rule)))
            }
            Conclusion::None => Ok(None),
            Conclusion::Undecided => {
                Err(self.malformed("its status depends on a value that cannot be read"))
            }
        }
    }

    fn no_status(&self) -> &'static str {
        let mut tested = self.layout.tested.iter();
        if tested.all(|(_, kinds)| !kinds.number && !kinds.bool && !kinds.any) {
            "it has no status that is a text"
        } else {
            "it has no status that its profile knows"
        }
    }

    /// Why the answer cannot be used: `shape`, or what made it incomplete.
    fn malformed(&self, shape: &'static str) -> Malformed {
        match self.ending {
            _ if self.reader.is_too_large() => Malformed::TooLarge {
                bytes: self.reader.seen(),
            },
            Ending::Empty => Malformed::Empty,
            Ending::Whole => Malformed::Shape(shape),
            Ending::Cut => self.not_json(self.reader.seen()),
            Ending::Broken(at) => self.not_json(at),
        }
    }

    fn not_json(&self, at: u64) -> Malformed {
        Malformed::NotJson {
            at,
            beginning: one_line(&self.reader.beginning(), SHOWN_CHARS),
        }
    }

    /// That what a verdict rests on is one value.
    fn check_values(&self) -> Result<(), Malformed> {
        let Layout {
            tested,
            status,
            check_id,
            ..
        } = self.layout;
        let decide = tested.iter().map(|(place, _)| place);
        let mut decide = decide.chain(status).chain(check_id);
        if self.reader.contradicts(&self.values)
            || decide.any(|place| self.found(*place) == Found::Contradicts)
        {
            return Err(Malformed::Shape(
                "it has two different values for its ID or its status",
            ));
        }
        Ok(())
    }

    /// That the answer is about the run.
    fn check_id(&self, expected: Expected<'_>) -> Result<(), Malformed> {
        if self.layout.check_id.is_empty() {
            return Ok(());
        }
        let json = self.first(&self.layout.check_id).unwrap_or_default();
        let found = match Seen::of(json) {
            Seen::Text(id) => id,
            Seen::Number(_) => String::from_utf8_lossy(json),
            _ => return Err(self.malformed("it is JSON that names no run (it has no ID)")),
        };
        if is_same_id(&found, expected.id) || is_same_id(&found, expected.last) {
            return Ok(());
        }
        Err(Malformed::OtherRun {
            found: one_line(&found, SHOWN_CHARS),
        })
    }

    /// The provider's own word for the state.
    fn status_text(
        &self,
        state: RunState,
        concluded: Option<&TestedRule>,
        code: u16,
    ) -> Cow<'_, str> {
        let Layout { tested, status, .. } = self.layout;
        if concluded.is_some_and(|rule| rule.by_http) {
            return Cow::Owned(code.to_string());
        }
        let text = |place: &Place| self.json(*place).and_then(shown);
        let of_rules = || match concluded {
            // The word of the state is better than one that is not the status.
            Some(_) if !status.is_empty() => None,
            _ => tested.iter().find_map(|(place, _)| text(place)),
        };
        let text = status.iter().find_map(text).or_else(of_rules);
        text.unwrap_or(Cow::Borrowed(state.as_str()))
    }

    fn status(&self, concluded: Option<(Outcome, &TestedRule)>, code: u16) -> Option<Status> {
        let state = match concluded {
            Some((Outcome::NotFound, _)) => return None,
            Some((Outcome::State(state), _)) => state,
            None => RunState::Unknown,
        };
        let text = self.status_text(state, concluded.map(|(_, rule)| rule), code);
        Some(Status::new(state, &text))
    }

    /// A text, as one short line.
    fn name(&self, places: &[Place]) -> Option<String> {
        let text = shown_text(self.first(places)?)?;
        // Most names are one word, with nothing to take out.
        if text.len() <= NAME_CHARS && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Some(text).filter(|text| !text.is_empty());
        }
        Some(one_line(&text, NAME_CHARS)).filter(|name| !name.is_empty())
    }

    fn time(&self, places: &[Place]) -> Option<Timestamp> {
        places.iter().find_map(|place| time(self.json(*place)?))
    }

    fn error(&self) -> Option<String> {
        self.first(&self.layout.fields.error).map(error_text)
    }

    /// Takes the bytes of a place out, as they may be many.
    fn take(&mut self, places: &[Place]) -> Option<Vec<u8>> {
        let place = places
            .iter()
            .find(|place| matches!(self.found(**place), Found::Json(_)))?;
        let (slot, steps) = self.layout.plan.locate(*place, self.root);
        if !steps.is_empty() {
            return self.json(*place).map(<[u8]>::to_vec);
        }
        match self.values.get_mut(slot)? {
            Value::Bytes(bytes) => Some(std::mem::take(bytes)),
            Value::Absent | Value::TooLarge | Value::Cut => None,
        }
    }

    /// Takes a value that is passed on.
    ///
    /// # Errors
    /// Why it cannot be.
    fn passed_on(
        &mut self,
        places: &[Place],
        room: Option<&Room>,
    ) -> Result<Option<JsonText>, String> {
        let plan = &self.layout.plan;
        let whole = plan.whole().is_some_and(|whole| {
            let mut slots = places.iter().map(|place| plan.locate(*place, self.root).0);
            slots.any(|slot| slot == whole)
        });
        let Some(mut bytes) = self.take(places) else {
            return Ok(None);
        };
        let json = |text: String| match room {
            Some(room) => JsonText::with_room(text, Arc::clone(room)),
            None => JsonText::new(text),
        };
        if whole {
            // A body need not be JSON.
            let trimmed = bytes.trim_ascii();
            if trimmed.is_empty() {
                return Ok(None);
            }
            if serde_json::from_slice::<&RawValue>(trimmed).is_err() {
                let text = serde_json::Value::from(String::from_utf8_lossy(&bytes).into_owned());
                return json(text.to_string())
                    .map(Some)
                    .map_err(|error| error.to_string());
            }
            bytes = trimmed.to_vec();
        }
        let text = String::from_utf8(bytes).map_err(|error| error.utf8_error().to_string())?;
        json(text).map(Some).map_err(|error| error.to_string())
    }

    fn breaks_off(&self) -> String {
        match self.ending {
            Ending::Broken(at) => format!("the answer stops being JSON at byte {at}"),
            Ending::Whole | Ending::Cut | Ending::Empty => "the answer breaks off".to_owned(),
        }
    }

    /// Why a field was left out of which these are the places, if it was. `wanted`: a run like this has it.
    fn lost(&self, places: &[Place], wanted: bool) -> Option<String> {
        let mut found = places.iter().map(|place| self.found(*place));
        match found.find(|found| *found != Found::Absent) {
            None if wanted && !places.is_empty() && self.is_incomplete() => Some(self.breaks_off()),
            None | Some(Found::Absent | Found::Json(_)) => None,
            Some(Found::TooLarge) => {
                let most = self.reader.max_bytes();
                Some(format!(
                    "the answer has more than {most} bytes; see max_response_bytes"
                ))
            }
            Some(Found::Cut) => Some(self.breaks_off()),
            Some(Found::NotJson | Found::Contradicts) => {
                Some("what it is in is not JSON that can be read".to_owned())
            }
        }
    }

    /// When a run with this status ended. Some APIs give an expected time while the run goes on.
    fn ended_at(&self, status: &Status) -> Option<Timestamp> {
        Verdict::of_status(status)?;
        let fields = &self.layout.fields;
        let after = || {
            let duration_ms = self.first(&fields.duration_ms).and_then(milliseconds);
            let duration = std::time::Duration::from_millis(duration_ms.filter(|ms| *ms > 0)?);
            self.time(&fields.started)?.checked_add(duration).ok()
        };
        self.time(&fields.finished).or_else(after)
    }

    /// What the answer has besides the state.
    fn details(
        &mut self,
        status: &Status,
        room: Option<&Room>,
        left_out: &mut Vec<(&'static str, String)>,
    ) -> RunDetails {
        let fields = &self.layout.fields;
        let state = status.state();
        for (name, places, wanted) in [
            ("input", &fields.input, false),
            ("output", &fields.output, state == RunState::Succeeded),
            ("error_message", &fields.error, state == RunState::Failed),
        ] {
            left_out.extend(self.lost(places, wanted).map(|why| (name, why)));
        }
        let mut details = RunDetails {
            version_id: self.first(&fields.version_id).and_then(shown_text),
            deployment_id: self.first(&fields.deployment_id).and_then(shown_text),
            project: self.first(&fields.project).and_then(shown_text),
            input: None,
            output: None,
            error_message: self.error(),
            created_at: self.time(&fields.created),
            started_at: self.time(&fields.started),
            completed_at: self.ended_at(status),
            duration_ms: self.first(&fields.duration_ms).and_then(milliseconds),
            attempt: self.first(&fields.attempt).and_then(whole_number),
            name: self.name(&fields.name),
            group: self.name(&fields.group),
            reason: self.name(&fields.reason),
            url: self.first(&fields.url).and_then(page),
            left_out: Vec::new(),
        };
        for (name, places, value) in [
            ("input", &fields.input, &mut details.input),
            ("output", &fields.output, &mut details.output),
        ] {
            match self.passed_on(places, room) {
                Ok(json) => *value = json,
                Err(why) => left_out.push((name, format!("it is not JSON: {why}"))),
            }
        }
        details.left_out = left_out
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .collect();
        details
    }
}

/// Whether a test holds for a value; `None` where that cannot be known.
fn holds(test: &Test, seen: &Seen<'_>, exact: bool) -> Option<bool> {
    match (test, seen) {
        (_, Seen::Unknown) => None,
        (Test::OneOf(values), seen) => Some(seen.is_one_of(values, exact)),
        (Test::Absent, seen) => Some(*seen == Seen::Absent),
        (Test::Present, seen) => Some(*seen != Seen::Absent),
        (Test::Greater(limit), Seen::Number(number)) => Some(number > limit),
        (Test::Greater(_), _) => Some(false),
    }
}

/// How an answer is read, for people who write a profile.
#[derive(Debug)]
pub struct Explanation {
    /// For each rule of the profile, in order: whether it holds. `None` where what it looks at cannot be read.
    pub rules: Vec<Option<bool>>,
    /// What the answer reports of the run: nothing where it says that there is no such run, or why it cannot be used.
    pub observation: Result<Option<Observation>, String>,
}

/// Explains how the body of an answer with the status code `code` about the run `id` is read.
pub fn explain(profile: &Profile, id: &str, code: u16, body: &[u8]) -> Explanation {
    let layout = Layout::of_run(profile);
    let read = || {
        let mut reader = Reader::new(&layout.plan, body.len() as u64, None);
        let _all_or_enough = reader.push(body);
        reader
    };
    let seen_by = Answer::of(&layout, read());
    let tested = layout.tested.iter();
    let seen: Vec<Seen<'_>> = tested.map(|(place, _)| seen_by.seen(*place)).collect();
    let rules = layout.rules.iter();
    let rules = rules
        .map(|rule| seen_by.rule_holds(rule, &seen, code))
        .collect();
    let parts = profile.read_id(id).ok();
    let last = parts
        .as_ref()
        .and_then(|parts| parts.get(profile.id.names().last()?))
        .unwrap_or(id);
    let expected = Expected {
        id,
        last,
        code,
        more: false,
    };
    let observation = match answer(&layout, read(), expected, None) {
        Ok(RunAnswer {
            reported: Reported::Run(observation),
            ..
        }) => Ok(Some(*observation)),
        Ok(_) => Ok(None),
        Err(error) => Err(error.to_string()),
    };
    Explanation { rules, observation }
}

/// Reads the whole body of a successful answer about the run `id`, whose ID has one part.
///
/// # Errors
/// When it is not an answer about that run.
#[cfg(any(test, fuzzing, feature = "bench-hooks"))]
pub(super) fn body_of_run(
    layout: &Layout,
    body: &[u8],
    id: &str,
) -> Result<Observation, Malformed> {
    let mut reader = Reader::new(&layout.plan, body.len() as u64, None);
    let _all_or_enough = reader.push(body);
    let expected = Expected {
        id,
        last: id,
        code: 200,
        more: false,
    };
    match answer(layout, reader, expected, None)?.reported {
        Reported::Run(observation) => Ok(*observation),
        Reported::NotFound => Err(Malformed::Shape("it says that there is no such run")),
    }
}

/// Returns what `reader` found about the run.
///
/// The state and the ID decide: of an answer that has both, the rest is taken as far as it can be read. `room` is
/// kept as long as the input and the output are. Of an answer that is no success, only rules count that look at its
/// status code.
///
/// # Errors
/// When it is not an answer about the run, or what its state rests on cannot be read.
pub(super) fn answer(
    layout: &Layout,
    reader: Reader<'_>,
    expected: Expected<'_>,
    room: Option<Room>,
) -> Result<RunAnswer, Malformed> {
    let mut answer = Answer::of(layout, reader);
    let whole = !answer.is_cut();
    let not_found = RunAnswer {
        reported: Reported::NotFound,
        whole,
        left_out: Vec::new(),
    };
    let concluded = answer.outcome(expected.code);
    let is_success = (200..300).contains(&expected.code);
    if !is_success && !matches!(&concluded, Ok(Some((_, rule))) if rule.by_http) {
        return Err(Malformed::Shape("no rule looks at its status code"));
    }
    // Such an answer need not name the run.
    if matches!(&concluded, Ok(Some((Outcome::NotFound, _)))) {
        answer.check_values()?;
        return Ok(not_found);
    }
    answer.check_id(expected)?;
    let concluded = concluded?;
    answer.check_values()?;
    let Some(mut status) = answer.status(concluded, expected.code) else {
        return Ok(not_found);
    };
    let mut named = None;
    if layout.items.is_some() && !stands_without_parts(&status) {
        let parts = answer.parts(expected.more)?;
        (status, named) = (parts.status, parts.error);
    }
    let mut left_out = Vec::new();
    let mut details = answer.details(&status, room.as_ref(), &mut left_out);
    details.error_message = details.error_message.or(named);
    Ok(RunAnswer {
        reported: Reported::Run(Box::new(Observation { status, details })),
        whole,
        left_out,
    })
}

/// Whether an outcome counts whatever the parts of the run are like: the run ended before it had any.
pub(super) fn stands_without_parts(status: &Status) -> bool {
    matches!(
        status.state(),
        RunState::Failed | RunState::Canceled | RunState::Skipped
    )
}

/// Returns what a second answer adds to an outcome.
///
/// # Errors
/// When it breaks off, or has nothing that its rules look at.
pub(super) fn addition(
    layout: &Layout,
    reader: Reader<'_>,
    code: u16,
    more: bool,
    room: Option<Room>,
) -> Result<Addition, Malformed> {
    let mut answer = Answer::of(layout, reader);
    if answer.is_cut() || answer.ending == Ending::Empty {
        return Err(answer.malformed("it breaks off"));
    }
    let mut added = Addition::default();
    if layout.items.is_some() {
        let parts = answer.parts(more)?;
        (added.state, added.error, added.of_parts) = (Some(parts.status), parts.error, true);
    } else if !layout.rules.is_empty() {
        let concluded = answer.outcome(code)?;
        answer.check_values()?;
        // Without a rule that holds, the first outcome stays.
        added.state = concluded.and_then(|concluded| answer.status(Some(concluded), code));
    }
    added.error = added.error.or_else(|| answer.error());
    added.output = answer
        .passed_on(&layout.fields.output, room.as_ref())
        .unwrap_or_default();
    Ok(added)
}

/// The state of a run, of the states of its parts.
#[derive(Debug)]
struct PartsState {
    status: Status,
    /// Names the parts that failed.
    error: Option<String>,
}

impl Answer<'_> {
    /// The state of the run by its parts: not final as long as one of them is not, then the worst.
    fn parts(&self, more: bool) -> Result<PartsState, Malformed> {
        let (Some(items), Some(part)) = (self.layout.items, &self.layout.part) else {
            return Err(Malformed::Shape("it has no list of parts"));
        };
        let items = match self.found(items) {
            Found::Json(json) if json.first() == Some(&b'[') => json,
            Found::TooLarge => return Err(self.malformed("its list of parts is too large")),
            _ => return Err(self.malformed("it has no list of parts")),
        };
        self.check_values()?;
        let mut seen = Vec::new();
        let mut problem = None;
        let read = each_element(items, &mut |json| match one_part(part, json) {
            Ok(part) => {
                seen.push(part);
                true
            }
            Err(error) => {
                problem = Some(error);
                false
            }
        });
        if let Some(problem) = problem {
            return Err(problem);
        }
        if read.is_err() || self.is_cut() {
            return Err(self.malformed("its list of parts is not JSON"));
        }
        Ok(of_parts(&seen, more || self.has_next_page()))
    }

    /// Whether the list goes on on another page.
    fn has_next_page(&self) -> bool {
        self.layout.next_page.iter().any(|place| {
            let Some(json) = self.json(*place) else {
                return false;
            };
            match Seen::of(json) {
                Seen::Absent | Seen::Bool(false) => false,
                Seen::Number(number) => number > 0.0,
                Seen::Text(_) | Seen::Bool(true) | Seen::Array(_) | Seen::Object => true,
                Seen::Unknown => true,
            }
        })
    }

    /// Whether the body ended before its document did, where that matters.
    fn is_cut(&self) -> bool {
        self.ending == Ending::Cut && !self.layout.plan.is_whole_only()
    }
}

/// The state and the name of a part of a run.
fn one_part(layout: &Layout, json: &[u8]) -> Result<(Status, Option<String>), Malformed> {
    let mut reader = Reader::new(&layout.plan, json.len() as u64, None);
    let _all = reader.push(json);
    let answer = Answer::of(layout, reader);
    let code = 200;
    let concluded = answer.outcome(code)?;
    answer.check_values()?;
    let status = answer.status(concluded, code);
    // A part that the API does not know any more is not final.
    let status = status.unwrap_or_else(|| RunState::Unknown.into());
    Ok((status, answer.name(&layout.fields.name)))
}

/// The state of a run whose parts are like this, and there may be `more`.
fn of_parts(parts: &[(Status, Option<String>)], more: bool) -> PartsState {
    let going: Vec<&Status> = parts
        .iter()
        .map(|(status, _)| status)
        .filter(|status| Verdict::of_status(status).is_none())
        .collect();
    let one = |state: RunState| going.iter().find(|status| status.state() == state);
    let not_final = |status: Status| PartsState {
        status,
        error: None,
    };
    if let Some(waiting) = one(RunState::Waiting) {
        return not_final((*waiting).clone());
    }
    let all_pending = parts
        .iter()
        .all(|(status, _)| status.state() == RunState::Pending);
    if all_pending && !more {
        return not_final(
            one(RunState::Pending).map_or(RunState::Pending.into(), |it| (*it).clone()),
        );
    }
    // A text that no rule knows is not final either.
    if more || !going.is_empty() {
        return not_final(RunState::Running.into());
    }
    let worst = Verdict::worst(
        parts
            .iter()
            .filter_map(|(status, _)| Verdict::of_status(status)),
    );
    let of_worst = |(status, _): &&(Status, Option<String>)| Verdict::of_status(status) == worst;
    let status = parts
        .iter()
        .find(of_worst)
        .map(|(status, _)| status.clone());
    let failed: Vec<&str> = parts
        .iter()
        .filter(|(status, _)| status.state() == RunState::Failed)
        .filter_map(|(_, name)| name.as_deref())
        .collect();
    let error = (!failed.is_empty()).then(|| {
        let mut text = failed[..failed.len().min(NAMED_PARTS)].join(", ");
        if failed.len() > NAMED_PARTS {
            text.push_str(&format!(" and {} more", failed.len() - NAMED_PARTS));
        }
        format!("failed: {text}")
    });
    PartsState {
        status: status.unwrap_or(RunState::Pending.into()),
        error,
    }
}

/// Whether two texts name the same run; of UUIDs, case does not matter.
fn is_same_id(found: &str, requested: &str) -> bool {
    found == requested || (PartKind::Uuid.fits(requested) && found.eq_ignore_ascii_case(requested))
}

/// A text or a number; halves of characters and bytes that are not UTF-8 are replaced.
fn shown_text(json: &[u8]) -> Option<String> {
    match json.first() {
        Some(b'"') => match text(json) {
            Some(text) => Some(text.into_owned()),
            None => {
                let json = String::from_utf8_lossy(json);
                serde_json::from_str(&replace_lone_surrogates(&json)).ok()
            }
        },
        _ => match Seen::of(json) {
            Seen::Number(_) => Some(String::from_utf8_lossy(json).into_owned()),
            _ => None,
        },
    }
}

/// A number of milliseconds.
fn milliseconds(json: &[u8]) -> Option<u64> {
    if let Ok(whole) = serde_json::from_slice(json) {
        return Some(whole);
    }
    let number: f64 = serde_json::from_slice(json).ok()?;
    // Zero where it is negative, the highest number where it is too large.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it saturates"
    )]
    (number >= 0.0).then_some(number.round() as u64)
}

/// A number without a fraction, as such or as text.
fn whole_number(json: &[u8]) -> Option<u64> {
    shown_text(json)?.parse().ok()
}

/// The address of a page.
fn page(json: &[u8]) -> Option<String> {
    let text = text(json)?;
    let url: Url = (text.len() <= MAX_URL_BYTES).then(|| text.parse().ok())??;
    let plain = url.username().is_empty() && url.password().is_none();
    (matches!(url.scheme(), "http" | "https") && plain).then(|| url.into())
}

/// A time as RFC 3339 writes it, or without a zone, which then is UTC (`datetime.utcnow().isoformat()` of Python),
/// or as seconds or milliseconds since 1970.
pub(super) fn time(json: &[u8]) -> Option<Timestamp> {
    let time = if json.first() == Some(&b'"') {
        let text = text(json)?;
        let text = text.trim();
        let zoned = text.parse::<Timestamp>().ok();
        zoned.or_else(|| {
            TimeZone::UTC
                .to_timestamp(text.parse::<DateTime>().ok()?)
                .ok()
        })
    } else {
        let number: serde_json::Number = serde_json::from_slice(json).ok()?;
        // Milliseconds where they would be a year after 5138 as seconds.
        match (number.as_i64(), number.as_f64()?) {
            (Some(number), value) if value >= FIRST_MILLISECONDS => {
                Timestamp::from_millisecond(number).ok()
            }
            (Some(number), _) => Timestamp::from_second(number).ok(),
            (None, value) => {
                let seconds = if value >= FIRST_MILLISECONDS {
                    value / 1000.0
                } else {
                    value
                };
                let since = SignedDuration::try_from_secs_f64(seconds).ok()?;
                Timestamp::from_duration(since).ok()
            }
        }
    };
    time.filter(|time| TIMES.contains(&time.as_second()))
}

/// Returns the text of an `error`: a text, or an object with `message` or `code`; anything else as it is.
fn error_text(error: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Parts {
        message: Option<String>,
        detail: Option<String>,
        code: Option<String>,
    }
    let error = String::from_utf8_lossy(error);
    let error = replace_lone_surrogates(&error);
    if let Ok(text) = serde_json::from_str::<String>(&error) {
        return text;
    }
    let parts: Option<Parts> = serde_json::from_str(&error).ok();
    parts
        .and_then(|parts| parts.message.or(parts.detail).or(parts.code))
        .unwrap_or_else(|| error.into_owned())
}

/// Returns the message in the body of an error, as one short line; empty if there is none.
///
/// Documented are `{"error":{"message":…}}`, with and without `code` and `details` (Crewship), `{"message":…}`
/// (GitHub, GitLab, Databricks), `{"detail":…}` (Airflow, Prefect) and `{"errors":[{"detail":…}]}` (HCP Terraform).
/// Gateways answer with anything: of that, nothing is shown.
pub(super) fn error_message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Body<'a> {
        #[serde(borrow)]
        error: Option<&'a RawValue>,
        #[serde(borrow)]
        message: Option<&'a RawValue>,
        #[serde(borrow)]
        detail: Option<&'a RawValue>,
        #[serde(borrow)]
        errors: Option<&'a RawValue>,
    }
    let Ok(body) = serde_json::from_slice::<Body<'_>>(body) else {
        return String::new();
    };
    let first_of_all = body
        .errors
        .and_then(|errors| look_up(errors.get().as_bytes(), &[Token::Key("0".into())]).ok()?);
    let message = [body.message, body.error, body.detail]
        .into_iter()
        .flatten()
        .map(|json| json.get().as_bytes())
        .chain(first_of_all)
        .find(|json| !matches!(Seen::of(json), Seen::Absent | Seen::Bool(_)));
    one_line(
        &message.map(error_text).unwrap_or_default(),
        2 * SHOWN_CHARS,
    )
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use crate::profile;
    use crate::providers::naive;
    use proptest::prelude::*;

    const RUN: &str = "run_xyz789abc";

    fn crewship() -> &'static Layout {
        static LAYOUT: LazyLock<Layout> =
            LazyLock::new(|| Layout::of_run(&crate::profile::crewship()));
        &LAYOUT
    }

    fn observation(body: &[u8]) -> Result<Observation, Malformed> {
        body_of_run(crewship(), body, RUN)
    }

    fn read_body(body: &str) -> Result<Observation, String> {
        observation(body.as_bytes()).map_err(|error| error.to_string())
    }

    const EXPECTED: Expected<'_> = Expected {
        id: RUN,
        last: RUN,
        code: 200,
        more: false,
    };

    fn seen(answer: RunAnswer) -> Observation {
        match answer.reported {
            Reported::Run(observation) => *observation,
            Reported::NotFound => panic!("there is such a run"),
        }
    }

    fn status(text: &str) -> Status {
        let body = format!(
            r#"{{"id":"{RUN}","status":{}}}"#,
            serde_json::Value::from(text)
        );
        read_body(&body).unwrap().status
    }

    /// The three examples of the API's Get Run page, word for word.
    const RUNNING: &str = include_str!("../../tests/data/running.json");
    const SUCCEEDED: &str = include_str!("../../tests/data/succeeded.json");
    const FAILED: &str = include_str!("../../tests/data/failed.json");

    #[test]
    fn only_documented_words_and_the_other_spelling_of_canceled_are_known() {
        for (text, state) in [
            ("pending", RunState::Pending),
            ("running", RunState::Running),
            ("succeeded", RunState::Succeeded),
            ("failed", RunState::Failed),
            ("canceled", RunState::Canceled),
        ] {
            assert_eq!(status(text), Status::from(state));
        }
        assert_eq!(
            status("cancelled"),
            Status::new(RunState::Canceled, "cancelled")
        );
        for text in ["Failed", " failed", "success", "unknown", "queued"] {
            assert_eq!(status(text), Status::new(RunState::Unknown, text));
        }
    }

    #[test]
    fn a_secret_shows_nowhere_in_an_answer() {
        let body = r#"{"id":"run_xyz789abc","status":"odd ck_live\/1234567","output":{"a":["ck_live%2F1234567"]},
            "error":{"message":"ck_live\u002f1234567"},"project":"ck_live/1234567"}"#;
        let mut reader = Reader::new(crewship().plan(), body.len() as u64, None);
        let _all = reader.push(body.as_bytes());
        let redactor = crate::redact::Redactor::new(["ck_live/1234567"]);
        reader.redact(redactor.into());
        assert!(!reader.beginning().contains("1234567"));
        let seen = seen(answer(crewship(), reader, EXPECTED, None).unwrap());
        assert_eq!(
            seen.status,
            Status::new(RunState::Unknown, "odd [redacted]")
        );
        assert_eq!(
            seen.details.output.unwrap().get(),
            r#"{"a":["[redacted]"]}"#
        );
        assert_eq!(seen.details.error_message.as_deref(), Some("[redacted]"));
        assert_eq!(seen.details.project.as_deref(), Some("[redacted]"));
    }

    #[test]
    fn the_documented_examples_are_read_bare_and_enveloped() {
        for (body, status) in [
            (RUNNING, Status::from(RunState::Running)),
            (SUCCEEDED, Status::from(RunState::Succeeded)),
            (FAILED, Status::from(RunState::Failed)),
        ] {
            for body in [body.to_owned(), format!("{{\"data\":{body}}}")] {
                let seen = read_body(&body).unwrap();
                assert_eq!(seen.status, status);
                assert_eq!(seen.details.version_id.as_deref(), Some("ver_abc123xyz"));
                assert_eq!(
                    seen.details.started_at,
                    Some("2024-01-15T10:35:02Z".parse().unwrap())
                );
                assert_eq!(
                    seen.details.output.is_some(),
                    status == Status::from(RunState::Succeeded)
                );
                assert_eq!(
                    seen.details.error_message.is_some(),
                    status == Status::from(RunState::Failed)
                );
                assert_eq!(
                    seen.details.completed_at.is_some(),
                    status != Status::from(RunState::Running)
                );
            }
        }
    }

    #[test]
    fn older_and_stranger_shapes_are_read_too() {
        let seen = read_body(
            r#"{"data":{"run_id":"run_xyz789abc","project":"my-crew","status":"failed","error":{"code":"oom","message":"out of memory"},
                "duration_ms":45200,"started_at":"2024-01-15T10:35:02.5+01:00","created_at":12,"version_id":[1],"extra":{}}}"#,
        )
        .unwrap();
        assert_eq!(seen.details.error_message.as_deref(), Some("out of memory"));
        assert_eq!(seen.details.duration_ms, Some(45_200));
        assert_eq!(
            seen.details.started_at,
            Some("2024-01-15T09:35:02.5Z".parse().unwrap())
        );
        assert_eq!(
            (seen.details.created_at, seen.details.version_id),
            (None, None)
        );
        for (error, text) in [
            (r#""boom""#, "boom"),
            (r#"{"code":"oom"}"#, "oom"),
            (r#"{"a":1}"#, r#"{"a":1}"#),
        ] {
            let body = format!(r#"{{"id":"run_xyz789abc","status":"failed","error":{error}}}"#);
            assert_eq!(
                read_body(&body).unwrap().details.error_message.as_deref(),
                Some(text)
            );
        }
        // A bare run may have a field of its own called data.
        let body = r#"{"id":"run_xyz789abc","status":"running","data":{"status":"succeeded"}}"#;
        assert_eq!(
            read_body(body).unwrap().status,
            Status::from(RunState::Running)
        );
    }

    #[test]
    fn an_object_with_a_status_that_is_none_is_not_passed_over_for_another() {
        for status in ["3", "{}", r#""""#, "[]"] {
            let body = format!(
                r#"{{"id":"{RUN}","status":{status},"data":{{"id":"{RUN}","status":"succeeded"}}}}"#
            );
            assert!(
                read_body(&body).unwrap_err().contains("no status"),
                "{status}"
            );
        }
    }

    #[test]
    fn what_is_no_answer_about_the_run_is_refused() {
        let deep = format!(
            r#"{{"id":"run_xyz789abc","status":{}1{}}}"#,
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        for (body, expected) in [
            ("", "it is empty"),
            (" \n", "it is empty"),
            (
                "<html>\x1b[31mBad</html>",
                "begins with \"<html>[31mBad</html>\"",
            ),
            (&RUNNING[..100], "it is not JSON"),
            ("[]", "it is not JSON"),
            ("null", "it is not JSON"),
            ("{}", "names no run"),
            (r#"{"data":[]}"#, "names no run"),
            (r#"{"id":7,"status":"running"}"#, "another run, \"7\""),
            (
                r#"{"id":"run_other","status":"succeeded"}"#,
                "another run, \"run_other\"",
            ),
            (r#"{"id":"run_xyz789abc"}"#, "no status"),
            (r#"{"id":"run_xyz789abc","status":null}"#, "no status"),
            (r#"{"id":"run_xyz789abc","status":3}"#, "no status"),
            (
                r#"{"id":"run_xyz789abc","status":"running","status":"succeeded"}"#,
                "two different values",
            ),
            (&deep, "no status"),
        ] {
            let error = read_body(body).unwrap_err();
            assert!(
                error.contains(expected),
                "{}: {error}",
                &body[..body.len().min(60)]
            );
        }
    }

    /// An answer whose fields are `fields`, about a run that succeeded.
    fn succeeded(fields: &str) -> Observation {
        let seen = read_body(&format!(
            r#"{{"id":"run_xyz789abc",{fields},"status":"succeeded"}}"#
        ))
        .unwrap();
        assert_eq!(seen.status, Status::from(RunState::Succeeded), "{fields}");
        seen
    }

    #[test]
    fn what_cannot_be_read_costs_no_verdict_and_is_named() {
        for output in [
            "NaN",
            r#"{"a":[1,NaN]}"#,
            "-Infinity",
            "{]",
            "'text'",
            "01",
            "\"\u{1}\"",
            "[1,]",
        ] {
            let seen = succeeded(&format!(r#""output":{output}"#));
            assert!(seen.details.output.is_none(), "{output}");
            assert_eq!(seen.details.left_out, ["output"], "{output}");
        }
        let seen = succeeded(r#""input":{"n":NaN},"output":[1]"#);
        assert_eq!(
            (seen.details.output.unwrap().get(), seen.details.left_out),
            ("[1]", vec!["input".to_owned()])
        );
        let seen = succeeded(r#""error_message":{"message":"boom"},"project":"half \ud800""#);
        assert_eq!(seen.details.error_message.as_deref(), Some("boom"));
        assert_eq!(seen.details.project.as_deref(), Some("half \u{fffd}"));
        // A mark that RFC 8259 lets a reader skip, bytes that are not UTF-8, and something after the end.
        let body =
            [b"\xef\xbb\xbf{\"id\":\"run_xyz789abc\",\"output\":\"\xe4\",\"status\":\"succeeded\"} x".as_slice()]
                .concat();
        let seen = observation(&body).unwrap();
        assert_eq!(
            (seen.status, seen.details.left_out),
            (Status::from(RunState::Succeeded), vec!["output".to_owned()])
        );
    }

    #[test]
    fn an_answer_that_is_too_large_or_breaks_off_says_what_it_is_missing() {
        let read = |body: &str, max_bytes| {
            let mut reader = Reader::new(crewship().plan(), max_bytes, None);
            let _enough = body
                .as_bytes()
                .chunks(16)
                .try_for_each(|bytes| reader.push(bytes));
            answer(crewship(), reader, EXPECTED, None)
        };
        let large = format!(
            r#"{{"output":"{}","id":"run_xyz789abc","status":"succeeded","completed_at":"2024-01-15T10:35:02Z"}}"#,
            "x".repeat(500)
        );
        let answered = read(&large, 400).unwrap();
        assert!(
            answered.whole
                && answered.left_out[0]
                    .1
                    .contains("400 bytes; see max_response_bytes"),
            "{:?}",
            answered.left_out
        );
        let details = seen(answered).details;
        assert_eq!(details.left_out, ["output"]);
        assert!(details.completed_at.is_some());
        assert!(matches!(
            read(&large, 40).unwrap_err(),
            Malformed::TooLarge { .. }
        ));
        for (body, whole, left_out) in [
            (
                r#"{"id":"run_xyz789abc","status":"succeeded","outp"#,
                false,
                vec!["output"],
            ),
            (
                r#"{"id":"run_xyz789abc","status":"succeeded","output":{"a"#,
                false,
                vec!["output"],
            ),
            (
                r#"{"id":"run_xyz789abc","status":"failed","error":{"a"#,
                false,
                vec!["error_message"],
            ),
            (
                r#"{"id":"run_xyz789abc","status":"failed" "error":1}"#,
                true,
                vec!["error_message"],
            ),
            (
                r#"{"data":{"id":"run_xyz789abc","status":"running""#,
                false,
                vec![],
            ),
        ] {
            let answer = read(body, 1000).unwrap();
            let whole_body = answer.whole;
            let seen = seen(answer);
            assert_eq!(
                (whole_body, seen.details.left_out.as_slice()),
                (
                    whole,
                    left_out
                        .iter()
                        .map(|name| (*name).to_owned())
                        .collect::<Vec<_>>()
                        .as_slice()
                ),
                "{body}"
            );
        }
    }

    #[test]
    fn times_without_a_zone_are_utc_and_those_that_stand_for_none_are_none() {
        for (json, expected) in [
            (r#""2024-01-15T10:35:02.5""#, Some("2024-01-15T10:35:02.5Z")),
            (r#""2024-01-15 10:35:02""#, Some("2024-01-15T10:35:02Z")),
            (r#""2024-01-15 10:35:02Z""#, Some("2024-01-15T10:35:02Z")),
            (
                r#""2024-01-15T10:35:02+0100""#,
                Some("2024-01-15T09:35:02Z"),
            ),
            ("1705314902", Some("2024-01-15T10:35:02Z")),
            ("1705314902500", Some("2024-01-15T10:35:02.5Z")),
            ("1705314902.5", Some("2024-01-15T10:35:02.5Z")),
            (r#""0001-01-01T00:00:00Z""#, None),
            (r#""0001-01-01T00:00:00""#, None),
            (r#""1970-01-01T00:00:00Z""#, None),
            (r#""9999-12-31T23:59:59.9999999Z""#, None),
            ("0", None),
            ("12", None),
            ("-1e300", None),
            (r#""""#, None),
            (r#""soon""#, None),
        ] {
            assert_eq!(
                time(json.as_bytes()),
                expected.map(|time| time.parse().unwrap()),
                "{json}"
            );
        }
    }

    #[test]
    fn deep_nesting_of_what_is_passed_on_survives() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let seen = read_body(&format!(
            r#"{{"id":"run_xyz789abc","status":"succeeded","output":{deep}}}"#
        ))
        .unwrap();
        assert_eq!(seen.status, Status::from(RunState::Succeeded));
    }

    #[test]
    fn error_bodies_of_every_documented_form_are_read() {
        assert_eq!(
            error_message(br#"{"error":{"message":"deployment_id is required"}}"#),
            "deployment_id is required"
        );
        assert_eq!(
            error_message(br#"{"error":{"code":"bad_request","message":"Cannot"}}"#),
            "Cannot"
        );
        assert_eq!(error_message(b"<html>502</html>"), "");
        assert_eq!(error_message(b""), "");
    }

    #[test]
    fn no_built_in_profile_gives_an_outcome_that_is_not_one_of_its_rules() {
        let mut random = fastrand::Rng::with_seed(16);
        for name in profile::builtin_names() {
            let profile = profile::builtin(name).unwrap().unwrap();
            let bodies = bodies_of(&profile, &mut random);
            for body in &bodies {
                for code in [200, 202, 400, 404, 500] {
                    naive::check(&profile, "run_1", code, body.as_bytes());
                    // The same, cut off and with a byte changed.
                    let mut changed = body.clone().into_bytes();
                    let at = random.usize(..changed.len());
                    naive::check(&profile, "run_1", code, &changed[..at]);
                    changed[at] = random.u8(..);
                    naive::check(&profile, "run_1", code, &changed);
                }
            }
        }
    }

    /// Documents with values of the rules at some of their places, and others.
    fn bodies_of(profile: &Profile, random: &mut fastrand::Rng) -> Vec<String> {
        use serde_json::{Value, json};
        fn put(value: &mut Value, steps: &[Token], new: Value) {
            let Some((step, rest)) = steps.split_first() else {
                *value = new;
                return;
            };
            match step {
                Token::Key(key) if crate::providers::plan::index(key).is_some() => {
                    let mut inner = Value::Null;
                    put(&mut inner, rest, new);
                    *value = json!([inner]);
                }
                Token::Key(key) => {
                    if !value.is_object() {
                        *value = json!({});
                    }
                    put(&mut value[key.as_str()], rest, new);
                }
                Token::Where { key, value: named } => {
                    let mut inner = json!({});
                    put(&mut inner, rest, new);
                    inner[key.as_str()] = Value::from(named.as_str());
                    *value = json!([{"other": 1}, inner]);
                }
            }
        }
        let tests: Vec<_> = profile.rules.iter().flat_map(|rule| &rule.when).collect();
        let mut body = || {
            let mut document = json!({});
            for pointer in &profile.check_id {
                put(&mut document, &pointer.0, json!("run_1"));
            }
            for _ in 0..random.usize(1..4) {
                let Some((Subject::At(pointer), test)) = random.choice(&tests) else {
                    continue;
                };
                let known = match test {
                    Test::OneOf(values) => match random.choice(values) {
                        Some(Scalar::Text(text)) => json!(text),
                        Some(Scalar::Number(number)) => json!(number),
                        Some(Scalar::Bool(value)) => json!(value),
                        None => json!(null),
                    },
                    Test::Greater(number) => json!(number + 1.0),
                    Test::Absent | Test::Present => json!("x"),
                };
                let new = match random.u8(..6) {
                    0 => json!([known]),
                    1 => random
                        .choice([json!(null), json!(""), json!({}), json!(7), json!("odd")])
                        .unwrap_or_default(),
                    _ => known,
                };
                put(&mut document, &pointer.0, new);
            }
            document.to_string()
        };
        (0..40).map(|_| body()).collect()
    }

    proptest! {
        #[test]
        fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _either = observation(&body);
            error_message(&body);
        }

        #[test]
        fn no_change_of_a_byte_panics_or_makes_another_run_of_it(at in 0_usize..400, byte: u8) {
            let mut body = SUCCEEDED.as_bytes().to_vec();
            let at = at % body.len();
            body[at] = byte;
            if let Ok(seen) = observation(&body) {
                prop_assert!(matches!(seen.status.state(), RunState::Succeeded | RunState::Unknown));
            }
        }
    }
}
