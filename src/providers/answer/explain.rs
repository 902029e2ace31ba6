//! Explains to people what an answer stands for.

use super::layout::Layout;
use super::{Answer, Expected, Reported, RunAnswer, answer};
use crate::domain::Observation;
use crate::profile::Profile;
use crate::providers::reader::Reader;
use crate::providers::value::Seen;

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
