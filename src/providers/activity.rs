//! Events of the stream of a run: their types, and what each suggests.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::domain::{Activity, Hint, JsonText};
use crate::providers::sse::Frame;
use crate::text::{escape_json_for_terminal, one_line};

/// Longest data of an event that is kept, in bytes; they are for people to follow.
const MAX_DATA_BYTES: usize = 16 * 1024;

/// Longest piece of a summary, in characters.
const PIECE_CHARS: usize = 100;

/// Keys under which an event names who or what it is about, the best first.
const SUBJECT_KEYS: [&str; 9] = [
    "agent",
    "agent_name",
    "tool",
    "tool_name",
    "task",
    "task_name",
    "name",
    "role",
    "entrypoint",
];

/// Keys under which an event has more text, the best first.
const DETAIL_KEYS: [&str; 7] = [
    "message",
    "action",
    "description",
    "thought",
    "error",
    "status",
    "size",
];

/// The types of events of both documentations (API reference and streaming guide of docs.crewship.dev),
/// with what they suggest. `run.succeeded` and `run.cancelled` are in neither, but in their neighbours:
/// the first is a word of its webhooks, the second the other spelling.
const KINDS: [(&str, Option<Hint>); 23] = [
    ("run.started", Some(Hint::Started)),
    ("run.completed", Some(Hint::Ended)),
    ("run.succeeded", Some(Hint::Ended)),
    ("run.failed", Some(Hint::Ended)),
    ("run.canceled", Some(Hint::Ended)),
    ("run.cancelled", Some(Hint::Ended)),
    ("complete", Some(Hint::Ended)),
    ("error", Some(Hint::Ended)),
    ("timeout", Some(Hint::StreamOver)),
    ("heartbeat", None),
    ("task.started", None),
    ("task.completed", None),
    ("agent.action", None),
    ("agent.started", None),
    ("agent.completed", None),
    ("agent.error", None),
    ("tool_use", None),
    ("tool.called", None),
    ("tool.result", None),
    ("tool.error", None),
    ("log", None),
    ("artifact", None),
    // Not an event of the API: a message that names no type but has a status.
    ("status", None),
];

/// The statuses that are final, and the other spelling of `canceled`.
const FINAL: [&str; 4] = ["succeeded", "failed", "canceled", "cancelled"];

/// Reads one event, in both documented shapes: `{"type":…,"data":…}` (API reference) and
/// `{"type":…,"payload":…}` (streaming guide); also with the type in the `event` field, as usual elsewhere.
pub(super) fn of_frame(frame: &Frame) -> Option<Activity> {
    #[derive(Deserialize)]
    struct Message<'a> {
        #[serde(rename = "type", borrow)]
        kind: Option<&'a RawValue>,
        #[serde(borrow)]
        data: Option<&'a RawValue>,
        #[serde(borrow)]
        payload: Option<&'a RawValue>,
        #[serde(borrow)]
        status: Option<&'a RawValue>,
    }
    let message: Option<Message<'_>> = serde_json::from_str(&frame.data).ok();
    let whole = || serde_json::from_str::<&RawValue>(&frame.data).ok();
    let Some(message) = message else {
        // Not an object, or not JSON: then only the `event` field is used.
        return read(&frame.event, whole());
    };
    let kind: Option<String> = message
        .kind
        .and_then(|kind| serde_json::from_str(kind.get()).ok());
    match kind {
        Some(kind) => read(&kind, message.data.or(message.payload).or_else(whole)),
        None if !frame.event.is_empty() => read(
            &frame.event,
            message.data.or(message.payload).or_else(whole),
        ),
        None if message.status.is_some() => read("status", whole()),
        None => None,
    }
}

/// Reads the type and the data of an event; `None` for a type that is not known. Whatever its type, an
/// event whose data name a final status suggests an end.
fn read(kind: &str, data: Option<&RawValue>) -> Option<Activity> {
    #[derive(Deserialize)]
    struct WithStatus {
        status: String,
    }
    let (kind, mut hint) = KINDS.into_iter().find(|(known, _)| *known == kind)?;
    let named: Option<WithStatus> = data.and_then(|data| serde_json::from_str(data.get()).ok());
    // An agent or a task may have a status of its own.
    let of_run = kind == "status" || kind == "heartbeat" || kind.starts_with("run.");
    if of_run && named.is_some_and(|data| FINAL.contains(&&*data.status)) {
        hint = Some(Hint::Ended);
    }
    let data = data
        .filter(|data| data.get().len() <= MAX_DATA_BYTES)
        .map(|data| JsonText::from(data.to_owned()));
    let harmless =
        |data: JsonText| RawValue::from_string(escape_json_for_terminal(data.get()).into_owned());
    let data = data
        .and_then(|data| data.passable())
        .and_then(|data| harmless(data).ok());
    let is_news = is_news(kind);
    let summary = match &data {
        Some(data) if is_news => summarize(data),
        _ => String::new(),
    };
    Some(Activity {
        kind,
        hint,
        is_news,
        is_failure: is_failure(kind),
        summary,
        data,
    })
}

/// Whether an event of this type shows people something that the watch does not show already.
fn is_news(kind: &str) -> bool {
    !matches!(kind, "heartbeat" | "status" | "complete" | "timeout")
}

/// Whether an event of this type reports a failure.
fn is_failure(kind: &str) -> bool {
    matches!(kind, "run.failed" | "error") || kind.ends_with(".error")
}

/// Summarizes the data of an event in a few words, harmless on a terminal; empty if nothing is known.
fn summarize(data: &RawValue) -> String {
    let Ok(data) = serde_json::from_str::<Value>(data.get()) else {
        return String::new();
    };
    let found = |keys: &[&str]| keys.iter().find_map(|key| words(data.get(key)?));
    let level = data.get("level").and_then(words);
    [level, found(&SUBJECT_KEYS), found(&DETAIL_KEYS)]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(" ")
}

/// A value as a few words: a text, a number, or the name or message that an object has.
fn words(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => one_line(text, PIECE_CHARS),
        Value::Number(number) => number.to_string(),
        Value::Object(fields) => {
            return ["name", "role", "message"]
                .iter()
                .find_map(|key| words(fields.get(*key)?));
        }
        Value::Null | Value::Bool(_) | Value::Array(_) => return None,
    };
    Some(text).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_frame(event: &str, data: &str) -> Option<(&'static str, Option<Hint>, String)> {
        let frame = Frame {
            event: event.to_owned(),
            data: data.to_owned(),
        };
        of_frame(&frame).map(|activity| (activity.kind, activity.hint, activity.summary))
    }

    fn read_text(kind: &str, data: &str) -> Option<Activity> {
        read(kind, Some(&RawValue::from_string(data.to_owned()).unwrap()))
    }

    fn hint(kind: &str, data: &str) -> Option<Hint> {
        read_text(kind, data).unwrap().hint
    }

    #[test]
    fn what_looks_like_an_end_is_a_hint() {
        assert_eq!(
            hint("run.completed", r#"{"status":"succeeded"}"#),
            Some(Hint::Ended)
        );
        assert_eq!(hint("run.canceled", "{}"), Some(Hint::Ended));
        assert_eq!(
            hint("error", r#"{"message":"run not found"}"#),
            Some(Hint::Ended)
        );
        assert_eq!(
            hint("heartbeat", r#"{"status":"failed"}"#),
            Some(Hint::Ended)
        );
        assert_eq!(hint("heartbeat", r#"{"status":"running"}"#), None);
        assert_eq!(hint("timeout", "null"), Some(Hint::StreamOver));
        assert_eq!(
            hint("run.started", r#"{"entrypoint":"default"}"#),
            Some(Hint::Started)
        );
        // A task that has failed is no run that has.
        assert_eq!(hint("task.completed", r#"{"status":"failed"}"#), None);
        assert!(read_text("run.progress", "{}").is_none());
    }

    #[test]
    fn both_documented_shapes_are_read() {
        let completed = Some(("run.completed", Some(Hint::Ended), "succeeded".to_owned()));
        assert_eq!(
            read_frame(
                "",
                r#"{"type":"run.completed","data":{"status":"succeeded"}}"#
            ),
            completed
        );
        assert_eq!(
            read_frame(
                "",
                r#"{"type":"run.completed","payload":{"status":"succeeded"}}"#
            ),
            completed
        );
        assert_eq!(
            read_frame("run.completed", r#"{"status":"succeeded"}"#),
            completed
        );
        assert_eq!(
            read_frame(
                "message",
                r#"{"type":"run.completed","status":"succeeded"}"#
            ),
            completed
        );
        let log = Some(("log", None, "info hi".to_owned()));
        assert_eq!(
            read_frame(
                "",
                r#"{"type":"log","payload":{"level":"info","message":"hi"}}"#
            ),
            log
        );
        assert_eq!(
            read_frame("", r#"{"type":"log","level":"info","message":"hi"}"#),
            log
        );
        assert_eq!(
            read_frame("", r#"{"type":"heartbeat"}"#),
            Some(("heartbeat", None, String::new()))
        );
        assert_eq!(read_frame("complete", "").unwrap().1, Some(Hint::Ended));
        assert_eq!(
            read_frame("", r#"{"id":"run_1","status":"canceled"}"#)
                .unwrap()
                .1,
            Some(Hint::Ended)
        );
    }

    #[test]
    fn a_summary_says_who_and_what() {
        let summary = |data: &str| read_text("log", data).unwrap().summary;
        assert_eq!(
            summary(r#"{"level":"info","message":"fetching\npage 2"}"#),
            "info fetching page 2"
        );
        assert_eq!(
            summary(r#"{"agent":{"name":"researcher"},"action":"search"}"#),
            "researcher search"
        );
        assert_eq!(
            summary(r#"{"name":"report.md","size":1234,"content_type":"text/markdown"}"#),
            "report.md 1234"
        );
        assert_eq!(summary(r#"{"tool":"web\u001b[31m","args":[1]}"#), "web[31m");
        assert_eq!(summary(r#"{"message":{"deep":[1]}}"#), "");
        assert_eq!(summary("[]"), "");
    }

    #[test]
    fn the_type_decides_what_is_news_and_what_is_a_failure() {
        let flags = |kind| {
            let activity = read_text(kind, r#"{"message":"m"}"#).unwrap();
            (activity.is_news, activity.is_failure, activity.summary)
        };
        for kind in ["heartbeat", "status", "complete", "timeout"] {
            assert_eq!(flags(kind), (false, false, String::new()), "{kind}");
        }
        for kind in ["run.failed", "error", "tool.error", "agent.error"] {
            assert_eq!(flags(kind), (true, true, "m".to_owned()), "{kind}");
        }
        assert_eq!(flags("tool.called"), (true, false, "m".to_owned()));
    }

    #[test]
    fn what_is_not_known_says_nothing() {
        for data in [
            "",
            "ping",
            "[]",
            "7",
            "{}",
            r#"{"type":"crew.sang"}"#,
            r#"{"type":7,"data":{}}"#,
            r#"{"data":{"status":"failed"}}"#,
        ] {
            assert_eq!(read_frame("", data), None, "{data}");
        }
    }

    proptest! {
        #[test]
        fn no_event_panics(event in ".{0,20}", data in ".{0,200}") {
            let _either = read_frame(&event, &data);
        }
    }
    #[test]
    fn data_that_is_large_or_deep_is_left_out() {
        let large = format!(r#"{{"message":"{}"}}"#, "x".repeat(MAX_DATA_BYTES));
        assert!(read_text("log", &large).unwrap().data.is_none());
        let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
        assert!(read_text("log", &deep).unwrap().data.is_none());
        let lines = read_text("log", "{\n \"message\": \"a\"\n}")
            .unwrap()
            .data
            .unwrap();
        assert_eq!(lines.get(), r#"{"message": "a"}"#);
    }
}
