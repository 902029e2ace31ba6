//! The shapes of answers, as the documentation shows them, and how they become observations.
//!
//! Get Run answers with a bare object (current documentation) or the same inside `data` (older). Of a
//! field that no verdict rests on, a wrong type counts as absent.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::Malformed;
use crate::run::{Observation, RunDetails, RunId, Status};
use crate::text::{one_line, whole_characters};

/// Longest piece of a body that a message shows, in characters.
const SHOWN_CHARS: usize = 80;

/// A run in either shape. Every field is text that is read later, so that one of a wrong type does not
/// spoil the others.
#[derive(Deserialize)]
struct Run<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    run_id: Option<&'a RawValue>,
    #[serde(borrow)]
    status: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    version_id: Option<&'a RawValue>,
    #[serde(borrow)]
    deployment_id: Option<&'a RawValue>,
    #[serde(borrow)]
    project: Option<&'a RawValue>,
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    #[serde(borrow)]
    output: Option<&'a RawValue>,
    #[serde(borrow)]
    error_message: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    created_at: Option<&'a RawValue>,
    #[serde(borrow)]
    started_at: Option<&'a RawValue>,
    #[serde(borrow)]
    completed_at: Option<&'a RawValue>,
    #[serde(borrow)]
    duration_ms: Option<&'a RawValue>,
}

/// Reads the body of a successful answer about the run `asked`.
pub(super) fn observation(body: &[u8], asked: &RunId) -> Result<Observation, Malformed> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err(Malformed::Empty);
    }
    let not_json = |error| {
        let beginning = String::from_utf8_lossy(&body[..body.len().min(4 * SHOWN_CHARS)]);
        Malformed::NotJson { error, beginning: one_line(&beginning, SHOWN_CHARS) }
    };
    let mut run: Run<'_> = serde_json::from_slice(body).map_err(not_json)?;
    if let (None, Some(data)) = (run.status, run.data) {
        run = serde_json::from_str(data.get())
            .map_err(|_other_shape| Malformed::Shape("its data is not an object about a run"))?;
    }
    let id: String =
        read(run.id.or(run.run_id)).ok_or(Malformed::Shape("it is JSON that names no run (no id or run_id)"))?;
    if id != asked.as_str() {
        return Err(Malformed::OtherRun { found: one_line(&id, SHOWN_CHARS) });
    }
    let status: String = read(run.status).ok_or(Malformed::Shape("it has no status that is a text"))?;
    Ok(Observation { status: Status::from_api(&status), details: details(&run) })
}

fn details(run: &Run<'_>) -> RunDetails {
    let time = |value| read::<String>(value).and_then(|text| text.parse::<Timestamp>().ok());
    RunDetails {
        version_id: text(run.version_id),
        deployment_id: text(run.deployment_id),
        project: text(run.project),
        input: run.input.map(ToOwned::to_owned),
        output: run.output.map(ToOwned::to_owned),
        error_message: text(run.error_message).or_else(|| run.error.and_then(error_text)),
        created_at: time(run.created_at),
        started_at: time(run.started_at),
        completed_at: time(run.completed_at),
        duration_ms: read(run.duration_ms),
    }
}

/// What an `error` says: a text, or an object with `message` or `code`; anything else as it is.
fn error_text(error: &RawValue) -> Option<String> {
    #[derive(Deserialize)]
    struct Parts {
        message: Option<String>,
        code: Option<String>,
    }
    let error = whole_characters(error.get());
    if let Ok(text) = serde_json::from_str::<String>(&error) {
        return Some(text);
    }
    let parts: Option<Parts> = serde_json::from_str(&error).ok();
    parts.and_then(|parts| parts.message.or(parts.code)).or_else(|| Some(error.into_owned()))
}

/// A text that no verdict rests on: halves of characters are replaced.
fn text(value: Option<&RawValue>) -> Option<String> {
    serde_json::from_str(&whole_characters(value?.get())).ok()
}

fn read<'a, T: Deserialize<'a>>(value: Option<&'a RawValue>) -> Option<T> {
    serde_json::from_str(value?.get()).ok()
}

/// What the body of an error says, as one short line; nothing when it says nothing.
///
/// Documented are `{"error":{"message":…}}`, with and without `code` and `details`. Gateways answer
/// with anything: of that, nothing is shown.
pub(super) fn error_message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Body<'a> {
        #[serde(borrow)]
        error: &'a RawValue,
    }
    let body: Option<Body<'_>> = serde_json::from_slice(body).ok();
    let text = body.and_then(|body| error_text(body.error)).unwrap_or_default();
    one_line(&text, 2 * SHOWN_CHARS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asked() -> RunId {
        RunId::new("run_xyz789abc").unwrap()
    }

    fn read_body(body: &str) -> Result<Observation, String> {
        observation(body.as_bytes(), &asked()).map_err(|error| error.to_string())
    }

    /// The three examples of the API's Get Run page, word for word.
    const RUNNING: &str = include_str!("../../tests/data/running.json");
    const SUCCEEDED: &str = include_str!("../../tests/data/succeeded.json");
    const FAILED: &str = include_str!("../../tests/data/failed.json");

    #[test]
    fn the_documented_examples_are_read_bare_and_enveloped() {
        for (body, status) in [(RUNNING, Status::Running), (SUCCEEDED, Status::Succeeded), (FAILED, Status::Failed)] {
            for body in [body.to_owned(), format!("{{\"data\":{body}}}")] {
                let seen = read_body(&body).unwrap();
                assert_eq!(seen.status, status);
                assert_eq!(seen.details.version_id.as_deref(), Some("ver_abc123xyz"));
                assert_eq!(seen.details.started_at, Some("2024-01-15T10:35:02Z".parse().unwrap()));
                assert_eq!(seen.details.output.is_some(), status == Status::Succeeded);
                assert_eq!(seen.details.error_message.is_some(), status == Status::Failed);
                assert_eq!(seen.details.completed_at.is_some(), status != Status::Running);
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
        assert_eq!(seen.details.started_at, Some("2024-01-15T09:35:02.5Z".parse().unwrap()));
        assert_eq!((seen.details.created_at, seen.details.version_id), (None, None));
        for (error, text) in [(r#""boom""#, "boom"), (r#"{"code":"oom"}"#, "oom"), (r#"{"a":1}"#, r#"{"a":1}"#)] {
            let body = format!(r#"{{"id":"run_xyz789abc","status":"failed","error":{error}}}"#);
            assert_eq!(read_body(&body).unwrap().details.error_message.as_deref(), Some(text));
        }
        // A bare run may have a field of its own called data.
        let body = r#"{"id":"run_xyz789abc","status":"running","data":{"status":"succeeded"}}"#;
        assert_eq!(read_body(body).unwrap().status, Status::Running);
    }

    #[test]
    fn what_is_no_answer_about_the_run_is_refused() {
        let deep = format!(r#"{{"id":"run_xyz789abc","status":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        for (body, expected) in [
            ("", "it is empty"),
            (" \n", "it is empty"),
            ("<html>\x1b[31mBad</html>", "begins with \"<html>[31mBad</html>\""),
            (&RUNNING[..100], "it is not JSON"),
            ("[]", "it is not JSON"),
            ("null", "it is not JSON"),
            ("{}", "names no run"),
            (r#"{"data":[]}"#, "data is not an object"),
            (r#"{"id":7,"status":"running"}"#, "names no run"),
            (r#"{"id":"run_other","status":"succeeded"}"#, "another run, \"run_other\""),
            (r#"{"id":"run_xyz789abc"}"#, "no status"),
            (r#"{"id":"run_xyz789abc","status":null}"#, "no status"),
            (r#"{"id":"run_xyz789abc","status":3}"#, "no status"),
            (r#"{"id":"run_xyz789abc","status":"running","status":"succeeded"}"#, "duplicate field"),
            (&deep, "no status"),
        ] {
            let error = read_body(body).unwrap_err();
            assert!(error.contains(expected), "{}: {error}", &body[..body.len().min(60)]);
        }
    }

    #[test]
    fn deep_nesting_of_what_is_passed_on_survives() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let seen = read_body(&format!(r#"{{"id":"run_xyz789abc","status":"succeeded","output":{deep}}}"#)).unwrap();
        assert_eq!(seen.status, Status::Succeeded);
    }

    #[test]
    fn error_bodies_of_every_documented_form_are_read() {
        assert_eq!(error_message(br#"{"error":{"message":"deployment_id is required"}}"#), "deployment_id is required");
        assert_eq!(error_message(br#"{"error":{"code":"bad_request","message":"Cannot"}}"#), "Cannot");
        assert_eq!(error_message(b"<html>502</html>"), "");
        assert_eq!(error_message(b""), "");
    }

    proptest! {
        #[test]
        fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _either = observation(&body, &asked());
            error_message(&body);
        }

        #[test]
        fn no_change_of_a_byte_panics_or_makes_another_run_of_it(at in 0_usize..400, byte: u8) {
            let mut body = SUCCEEDED.as_bytes().to_vec();
            let at = at % body.len();
            body[at] = byte;
            if let Ok(seen) = observation(&body, &asked()) {
                prop_assert!(matches!(seen.status, Status::Succeeded | Status::Unknown(_)));
            }
        }
    }
}
