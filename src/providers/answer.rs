//! Reads what an answer reports, as its profile describes it.
//!
//! The state and the ID of the run decide: of an answer that has both, the rest is taken as far as it can be read. Of a
//! field that no verdict rests on, a wrong type counts as absent.

mod explain;
mod layout;
mod list;
mod parts;
mod text;

use std::borrow::Cow;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::value::RawValue;

pub use self::explain::{Explanation, explain};
pub(super) use self::layout::{Layout, Room};
use self::layout::{Tested, TestedRule, holds_code};
pub(super) use self::list::{Element, PageLayout, PageRead};
use self::text::{
    SHOWN_CHARS, error_text, is_same_id, milliseconds, page, shown_text, whole_number,
};
pub(super) use self::text::{error_message, time};
use super::error::Malformed;
use super::plan::Place;
use super::reader::{Ending, Reader, Value};
use super::value::{Seen, Unreadable, is_nothing, look_up, shown};
use crate::domain::{JsonText, Observation, RunDetails, RunState, Status, Verdict};
use crate::profile::{RuleOutcome, Test};
use crate::text::one_line;

/// Longest name, group or reason that is kept, in characters.
const NAME_CHARS: usize = 200;

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
    fn outcome(&self, code: u16) -> Result<Option<(RuleOutcome, &TestedRule)>, Malformed> {
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

    fn status(&self, concluded: Option<(RuleOutcome, &TestedRule)>, code: u16) -> Option<Status> {
        let state = match concluded {
            Some((RuleOutcome::NotFound, _)) => return None,
            Some((RuleOutcome::State(state), _)) => state,
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
            usual: None,
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
    if matches!(&concluded, Ok(Some((RuleOutcome::NotFound, _)))) {
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

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;
    use crate::profile::{self, Profile, Scalar, Subject, Token};
    use crate::providers::naive;

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
    fn deep_nesting_of_what_is_passed_on_survives() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let seen = read_body(&format!(
            r#"{{"id":"run_xyz789abc","status":"succeeded","output":{deep}}}"#
        ))
        .unwrap();
        assert_eq!(seen.status, Status::from(RunState::Succeeded));
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
