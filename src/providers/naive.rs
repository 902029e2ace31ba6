//! Reads an answer again as simply as that can be done, to compare [`super::answer`] with: a tree of the whole document,
//! and every rule at every root.

use serde_json::Value;

use super::answer::{Expected, Layout, Reported, answer};
use super::plan::index;
use super::reader::Reader;
use crate::profile::{Pointer, Profile, Rule, RuleOutcome, Scalar, Subject, Test, Token};

/// Reads the body of an answer with this status code.
///
/// # Panics
/// When the outcome is one that no rule gives.
pub(super) fn check(profile: &Profile, id: &str, code: u16, body: &[u8]) {
    let layout = Layout::of_run(profile);
    let mut reader = Reader::new(layout.plan(), body.len() as u64 + 1, None);
    for bytes in body.chunks(7) {
        if reader.push(bytes).is_break() {
            break;
        }
    }
    assert!(
        reader.kept() <= reader.max_bytes(),
        "more is kept than allowed"
    );
    let last = id.rsplit('/').next().unwrap_or(id);
    let expected = Expected {
        id,
        last,
        code,
        more: false,
    };
    let Ok(answer) = answer(&layout, reader, expected, None) else {
        return;
    };
    let outcome = match answer.reported {
        Reported::NotFound => RuleOutcome::NotFound,
        Reported::Run(run) => RuleOutcome::State(run.status.state()),
    };
    let is_final = match outcome {
        RuleOutcome::NotFound => true,
        RuleOutcome::State(_) if profile.each.is_some() => return,
        RuleOutcome::State(state) => crate::domain::Verdict::of_status(&state.into()).is_some(),
    };
    // A body that is not JSON as a whole shows what it shows up to there.
    let Ok(document) = serde_json::from_slice::<Value>(body) else {
        return;
    };
    if is_final {
        let holds = |root: &Pointer| {
            let run = at(&document, &root.0)?;
            let mut rules = profile.rules.iter();
            rules.find(|rule| rule.is == outcome && holds_rule(rule, run, code, profile.exact))
        };
        assert!(
            profile.roots.iter().any(|root| holds(root).is_some()),
            "{outcome:?} of no rule of {}: {document}",
            profile.name
        );
    }
}

fn holds_rule(rule: &Rule, run: &Value, code: u16, exact: bool) -> bool {
    rule.when.iter().all(|(subject, test)| match subject {
        Subject::Http => holds(test, Some(&Value::from(code)), exact),
        Subject::At(pointer) => holds(test, at(run, &pointer.0), exact),
    })
}

fn holds(test: &Test, value: Option<&Value>, exact: bool) -> bool {
    let nothing = match value {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Array(array)) => array.is_empty(),
        Some(Value::Object(object)) => object.is_empty(),
        Some(_) => false,
    };
    match (test, value) {
        (Test::Absent, _) => nothing,
        (Test::Present, _) => !nothing,
        (Test::Greater(limit), Some(value)) => value.as_f64().is_some_and(|number| number > *limit),
        (Test::OneOf(wanted), Some(Value::Array(array))) => array
            .iter()
            .any(|value| wanted.iter().any(|wanted| is(value, wanted, exact))),
        (Test::OneOf(wanted), Some(value)) => wanted.iter().any(|wanted| is(value, wanted, exact)),
        (_, None) => false,
    }
}

fn is(value: &Value, wanted: &Scalar, exact: bool) -> bool {
    match wanted {
        Scalar::Text(wanted) if exact => value.as_str() == Some(wanted),
        Scalar::Text(wanted) => value
            .as_str()
            .is_some_and(|text| text.eq_ignore_ascii_case(wanted)),
        Scalar::Number(wanted) => value.as_f64() == Some(*wanted),
        Scalar::Bool(wanted) => value.as_bool() == Some(*wanted),
    }
}

fn at<'v>(value: &'v Value, steps: &[Token]) -> Option<&'v Value> {
    steps
        .iter()
        .try_fold(value, |value, step| match (value, step) {
            (Value::Object(object), Token::Key(key)) => object.get(key),
            (Value::Array(array), Token::Key(key)) => array.get(index(key)?),
            (Value::Array(array), Token::Where { key, value }) => {
                array.iter().find(|element| match element.get(key) {
                    Some(Value::String(text)) => text == value,
                    Some(Value::Number(number)) => number.to_string().eq(value),
                    Some(Value::Bool(found)) => value.parse() == Ok(*found),
                    _ => false,
                })
            }
            _ => None,
        })
}
