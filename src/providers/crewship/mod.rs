//! The words and shapes of the Crewship API: answers, as its documentation shows them, and how they become
//! observations.
//!
//! Get Run answers with a bare object (current documentation) or the same inside `data` (older). Of a
//! field that no verdict rests on, a wrong type counts as absent.

pub(super) mod activity;
mod reader;

use std::sync::Arc;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::OwnedSemaphorePermit;

use super::error::Malformed;
use crate::domain::{JsonText, Observation, RunDetails, RunRef, RunState, Status};
use crate::text::{one_line, replace_lone_surrogates};
use reader::{Ending, Field, Fields, Value};

pub(in crate::providers) use reader::Reader;

/// Longest piece of a body that a message shows, in characters.
const SHOWN_CHARS: usize = 80;

/// Earliest and latest second of a time that counts, since 1970: programs send the year 1, the epoch or the year
/// 9999 for a time that is not there (`time.Time{}` of Go, `DateTime.MinValue` and `MaxValue` of .NET).
const TIMES: std::ops::Range<i64> = 31_536_000..221_845_392_000;

/// What a large answer takes of the bound on the bytes of all.
pub(super) type Room = Arc<OwnedSemaphorePermit>;

/// An answer, as far as it can be read.
#[derive(Debug)]
pub(super) struct RunAnswer {
    pub(super) observation: Observation,
    /// Whether the body has its end. One that has none may be whole the next time.
    pub(super) whole: bool,
    /// The fields that were left out, as their names and why.
    pub(super) left_out: Vec<(&'static str, String)>,
}

/// Reads the word of a status. Only the documented ones (Get Run), letter for letter, and `cancelled` are known.
pub(super) fn status(text: &str) -> Status {
    match text {
        "pending" => RunState::Pending.into(),
        "running" => RunState::Running.into(),
        "succeeded" => RunState::Succeeded.into(),
        "failed" => RunState::Failed.into(),
        "canceled" | "cancelled" => RunState::Canceled.into(),
        other => Status::new(RunState::Unknown, other),
    }
}

/// Reads the whole body of a successful answer about the run `requested`.
pub(super) fn observation(body: &[u8], requested: &RunRef) -> Result<Observation, Malformed> {
    let mut reader = Reader::new(body.len() as u64, None);
    let _all_or_enough = reader.push(body);
    answer(reader, requested, None).map(|answer| answer.observation)
}

/// Returns what `reader` found about the run `requested`.
///
/// The status and the ID decide: of an answer that has both, the rest is taken as far as it can be read. `room` is
/// kept as long as the input and the output are.
pub(super) fn answer(
    mut reader: Reader,
    requested: &RunRef,
    room: Option<Room>,
) -> Result<RunAnswer, Malformed> {
    let (ending, [outer, inner]) = reader.finish();
    let malformed = |shape| match ending {
        _ if reader.is_too_large() => Malformed::TooLarge {
            bytes: reader.seen(),
        },
        Ending::Empty => Malformed::Empty,
        Ending::Whole => Malformed::Shape(shape),
        Ending::Cut | Ending::Broken(_) => {
            let beginning = String::from_utf8_lossy(reader.beginning());
            Malformed::NotJson {
                at: reader.seen(),
                beginning: one_line(&beginning, SHOWN_CHARS),
            }
        }
    };
    let enveloped = *outer.get(Field::Status) == Value::Absent && reader.data().is_some();
    if enveloped && reader.data() == Some(false) {
        return Err(malformed("its data is not an object about a run"));
    }
    let mut run = if enveloped { inner } else { outer };
    // What decides is taken as it is, or not at all.
    let exact = |field| serde_json::from_slice::<String>(run.bytes(field)?).ok();
    let id = exact(Field::Id).or_else(|| exact(Field::RunRef));
    let id = id.ok_or_else(|| malformed("it is JSON that names no run (no id or run_id)"))?;
    if id != requested.as_str() {
        return Err(Malformed::OtherRun {
            found: one_line(&id, SHOWN_CHARS),
        });
    }
    let status =
        exact(Field::Status).ok_or_else(|| malformed("it has no status that is a text"))?;
    if reader.contradicts() {
        return Err(Malformed::Shape(
            "it has two different values for its ID or its status",
        ));
    }
    let status = self::status(&status);
    let mut left_out = Vec::new();
    let details = details(
        &mut run,
        &status,
        ending,
        (reader.max_bytes(), room),
        &mut left_out,
    );
    Ok(RunAnswer {
        observation: Observation { status, details },
        whole: ending != Ending::Cut,
        left_out,
    })
}

fn details(
    run: &mut Fields,
    status: &Status,
    ending: Ending,
    (max_bytes, room): (u64, Option<Room>),
    left_out: &mut Vec<(&'static str, String)>,
) -> RunDetails {
    let too_large =
        format!("the answer has more than {max_bytes} bytes; see api.max_response_bytes");
    let breaks_off = || match ending {
        Ending::Broken(at) => format!("the answer stops being JSON at byte {at}"),
        Ending::Whole | Ending::Cut | Ending::Empty => "the answer breaks off".to_owned(),
    };
    let mut lose = |field: Field, value: &Value, shown_by: bool| match value {
        Value::TooLarge => left_out.push((field.name(), too_large.clone())),
        Value::Cut => left_out.push((field.name(), breaks_off())),
        // What a run like this has, and what comes after the place to which the answer could be read.
        Value::Absent if ending != Ending::Whole && shown_by => {
            left_out.push((field.name(), breaks_off()))
        }
        Value::Absent | Value::Bytes(_) => {}
    };
    lose(Field::Input, run.get(Field::Input), false);
    lose(
        Field::Output,
        run.get(Field::Output),
        status.state() == RunState::Succeeded,
    );
    let error = if *run.get(Field::ErrorMessage) == Value::Absent {
        Field::Error
    } else {
        Field::ErrorMessage
    };
    if *run.get(error) != Value::Absent || status.state() == RunState::Failed {
        lose(Field::ErrorMessage, run.get(error), true);
    }
    let mut passed_on = |field: Field| {
        let Value::Bytes(bytes) = run.take(field) else {
            return None;
        };
        let read = String::from_utf8(bytes).map_err(|error| error.utf8_error().to_string());
        let read = read.and_then(|text| {
            let json = match &room {
                Some(room) => JsonText::with_room(text, Arc::clone(room)),
                None => JsonText::new(text),
            };
            json.map_err(|error| error.to_string())
        });
        read.map_err(|why| left_out.push((field.name(), format!("it is not JSON: {why}"))))
            .ok()
    };
    let (input, output) = (passed_on(Field::Input), passed_on(Field::Output));
    RunDetails {
        version_id: text_of(run, Field::VersionId),
        deployment_id: text_of(run, Field::DeploymentId),
        project: text_of(run, Field::Project),
        input,
        output,
        error_message: run
            .bytes(Field::ErrorMessage)
            .or(run.bytes(Field::Error))
            .map(error_text),
        created_at: run.bytes(Field::CreatedAt).and_then(time),
        started_at: run.bytes(Field::StartedAt).and_then(time),
        completed_at: run.bytes(Field::CompletedAt).and_then(time),
        duration_ms: run
            .bytes(Field::DurationMs)
            .and_then(|bytes| serde_json::from_slice(bytes).ok()),
        attempt: None,
        name: None,
        group: text_of(run, Field::DeploymentId),
        reason: None,
        url: None,
        left_out: left_out
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .collect(),
    }
}

/// A time as RFC 3339 writes it, or without a zone, which then is UTC (`datetime.utcnow().isoformat()` of Python),
/// or as seconds or milliseconds since 1970.
fn time(json: &[u8]) -> Option<Timestamp> {
    let time = match serde_json::from_slice(json).ok()? {
        serde_json::Value::String(text) => {
            let text = text.trim();
            let zoned = text.parse::<Timestamp>().ok();
            zoned.or_else(|| {
                TimeZone::UTC
                    .to_timestamp(text.parse::<DateTime>().ok()?)
                    .ok()
            })
        }
        serde_json::Value::Number(number) => {
            // Milliseconds where they would be a year after 5138 as seconds.
            let number = number.as_f64()?;
            let seconds = if number >= 1e11 {
                number / 1000.0
            } else {
                number
            };
            Timestamp::from_duration(SignedDuration::try_from_secs_f64(seconds).ok()?).ok()
        }
        _ => None,
    };
    time.filter(|time| TIMES.contains(&time.as_second()))
}

/// Returns the text of an `error`: a text, or an object with `message` or `code`; anything else as it is.
fn error_text(error: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Parts {
        message: Option<String>,
        code: Option<String>,
    }
    let error = String::from_utf8_lossy(error);
    let error = replace_lone_surrogates(&error);
    if let Ok(text) = serde_json::from_str::<String>(&error) {
        return text;
    }
    let parts: Option<Parts> = serde_json::from_str(&error).ok();
    parts
        .and_then(|parts| parts.message.or(parts.code))
        .unwrap_or_else(|| error.into_owned())
}

/// The text of a field; halves of characters and bytes that are not UTF-8 are replaced.
fn text_of(run: &Fields, field: Field) -> Option<String> {
    let json = String::from_utf8_lossy(run.bytes(field)?);
    serde_json::from_str(&replace_lone_surrogates(&json)).ok()
}

/// Returns the message in the body of an error, as one short line; empty if there is none.
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
    let text = body
        .map(|body| error_text(body.error.get().as_bytes()))
        .unwrap_or_default();
    one_line(&text, 2 * SHOWN_CHARS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn requested() -> RunRef {
        RunRef::new("run_xyz789abc").unwrap()
    }

    fn read_body(body: &str) -> Result<Observation, String> {
        observation(body.as_bytes(), &requested()).map_err(|error| error.to_string())
    }

    /// The three examples of the API's Get Run page, word for word.
    const RUNNING: &str = include_str!("../../../tests/data/running.json");
    const SUCCEEDED: &str = include_str!("../../../tests/data/succeeded.json");
    const FAILED: &str = include_str!("../../../tests/data/failed.json");

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
        assert_eq!(status("cancelled"), Status::from(RunState::Canceled));
        for text in ["Failed", " failed", "success", "unknown", "queued", ""] {
            assert_eq!(status(text), Status::new(RunState::Unknown, text));
        }
    }

    #[test]
    fn a_secret_shows_nowhere_in_an_answer() {
        let body = r#"{"id":"run_xyz789abc","status":"odd ck_live\/1234567","output":{"a":["ck_live%2F1234567"]},
            "error":{"message":"ck_live\u002f1234567"},"project":"ck_live/1234567"}"#;
        let mut reader = Reader::new(body.len() as u64, None);
        let _all = reader.push(body.as_bytes());
        reader.redact(&crate::redact::Redactor::new(["ck_live/1234567"]));
        assert!(!String::from_utf8_lossy(reader.beginning()).contains("1234567"));
        let seen = answer(reader, &requested(), None).unwrap().observation;
        assert_eq!(seen.status, status("odd [redacted]"));
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
            (r#"{"data":[]}"#, "data is not an object"),
            (r#"{"id":7,"status":"running"}"#, "names no run"),
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
        let seen = observation(&body, &requested()).unwrap();
        assert_eq!(
            (seen.status, seen.details.left_out),
            (Status::from(RunState::Succeeded), vec!["output".to_owned()])
        );
    }

    #[test]
    fn an_answer_that_is_too_large_or_breaks_off_says_what_it_is_missing() {
        let read = |body: &str, max_bytes| {
            let mut reader = Reader::new(max_bytes, None);
            let _enough = body
                .as_bytes()
                .chunks(16)
                .try_for_each(|bytes| reader.push(bytes));
            answer(reader, &requested(), None)
        };
        let large = format!(
            r#"{{"output":"{}","id":"run_xyz789abc","status":"succeeded","completed_at":"2024-01-15T10:35:02Z"}}"#,
            "x".repeat(500)
        );
        let seen = read(&large, 400).unwrap();
        assert!(
            seen.whole
                && seen.left_out[0]
                    .1
                    .contains("400 bytes; see api.max_response_bytes"),
            "{:?}",
            seen.left_out
        );
        assert_eq!(seen.observation.details.left_out, ["output"]);
        assert!(seen.observation.details.completed_at.is_some());
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
            let seen = read(body, 1000).unwrap();
            assert_eq!(
                (seen.whole, seen.observation.details.left_out.as_slice()),
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

    proptest! {
        #[test]
        fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _either = observation(&body, &requested());
            error_message(&body);
        }

        #[test]
        fn no_change_of_a_byte_panics_or_makes_another_run_of_it(at in 0_usize..400, byte: u8) {
            let mut body = SUCCEEDED.as_bytes().to_vec();
            let at = at % body.len();
            body[at] = byte;
            if let Ok(seen) = observation(&body, &requested()) {
                prop_assert!(matches!(seen.status.state(), RunState::Succeeded | RunState::Unknown));
            }
        }
    }
}
