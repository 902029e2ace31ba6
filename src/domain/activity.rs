//! Activity: what a run is doing according to its event stream, for people and as a reason to poll.
//! No verdict comes from here.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::event::passable;
use super::{JsonText, Status, Verdict};
use crate::text::{escape_json_for_terminal, one_line};

/// Longest data of an event that is kept, in bytes; they are for people to follow.
const MAX_DATA_BYTES: usize = 16 * 1024;

/// Longest piece of a summary, in characters.
const PIECE_CHARS: usize = 100;

/// What an event of the stream suggests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// The run may have started.
    Started,
    /// The run may have ended.
    Ended,
    /// The stream is about to end by itself.
    StreamOver,
}

/// One event of a run's stream.
#[derive(Debug, Clone)]
pub struct Activity {
    /// Its type as sent, one of a known set.
    pub kind: &'static str,
    /// What it suggests.
    pub hint: Option<Hint>,
    /// Its data, on one line and harmless on a terminal; `None` if there are none, too many, or too
    /// deeply nested.
    pub data: Option<Box<RawValue>>,
}

/// The type of our own notice among the events of a run: its stream cannot be followed.
const UNAVAILABLE: &str = "stream.unavailable";

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

impl Activity {
    /// Reads the type and the data of an event; `None` for a type that is not known. Whatever its type, an
    /// event whose data name a final status suggests an end.
    pub fn read(kind: &str, data: Option<&RawValue>) -> Option<Self> {
        #[derive(Deserialize)]
        struct WithStatus {
            status: String,
        }
        let (kind, mut hint) = KINDS.into_iter().find(|(known, _)| *known == kind)?;
        let status: Option<WithStatus> =
            data.and_then(|data| serde_json::from_str(data.get()).ok());
        // An agent or a task may have a status of its own.
        let of_run = kind == "status" || kind == "heartbeat" || kind.starts_with("run.");
        if of_run
            && status
                .is_some_and(|data| Verdict::of_status(&Status::from_api(&data.status)).is_some())
        {
            hint = Some(Hint::Ended);
        }
        let data = data
            .filter(|data| data.get().len() <= MAX_DATA_BYTES)
            .map(|data| JsonText::from(data.to_owned()));
        let (data, _) = passable(data.as_ref());
        let harmless = |data: JsonText| {
            RawValue::from_string(escape_json_for_terminal(data.get()).into_owned())
        };
        let data = data.and_then(|data| harmless(data).ok());
        Some(Self { kind, hint, data })
    }

    /// Our own notice that the stream of a run cannot be followed, and why.
    pub fn unavailable(why: &str) -> Self {
        let data = serde_json::value::to_raw_value(&serde_json::json!({ "message": why }));
        Self {
            kind: UNAVAILABLE,
            hint: None,
            data: data.ok(),
        }
    }

    /// Whether it shows people something that the watch does not show already.
    pub fn is_news(&self) -> bool {
        !matches!(self.kind, "heartbeat" | "status" | "complete" | "timeout")
    }

    /// Summarizes the data of an event in a few words, harmless on a terminal; empty if nothing is known.
    pub fn summary(data: Option<&RawValue>) -> String {
        let data: Option<Value> = data.and_then(|data| serde_json::from_str(data.get()).ok());
        let Some(data) = data else {
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

    /// Whether an event of this type reports a failure.
    pub fn is_bad(kind: &str) -> bool {
        matches!(kind, "run.failed" | "error" | UNAVAILABLE) || kind.ends_with(".error")
    }
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

    fn read(kind: &str, data: &str) -> Option<Activity> {
        Activity::read(kind, Some(&RawValue::from_string(data.to_owned()).unwrap()))
    }

    fn hint(kind: &str, data: &str) -> Option<Hint> {
        read(kind, data).unwrap().hint
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
        assert!(read("run.progress", "{}").is_none());
    }

    #[test]
    fn a_summary_says_who_and_what() {
        let summary = |kind, data| Activity::summary(read(kind, data).unwrap().data.as_deref());
        assert_eq!(
            summary("log", r#"{"level":"info","message":"fetching\npage 2"}"#),
            "info fetching page 2"
        );
        assert_eq!(
            summary(
                "agent.action",
                r#"{"agent":{"name":"researcher"},"action":"search"}"#
            ),
            "researcher search"
        );
        assert_eq!(
            summary(
                "artifact",
                r#"{"name":"report.md","size":1234,"content_type":"text/markdown"}"#
            ),
            "report.md 1234"
        );
        assert_eq!(
            summary("tool.called", r#"{"tool":"web\u001b[31m","args":[1]}"#),
            "web[31m"
        );
        assert_eq!(summary("log", r#"{"message":{"deep":[1]}}"#), "");
        assert_eq!(summary("log", "[]"), "");
    }

    #[test]
    fn data_that_is_large_or_deep_is_left_out() {
        let large = format!(r#"{{"message":"{}"}}"#, "x".repeat(MAX_DATA_BYTES));
        assert!(read("log", &large).unwrap().data.is_none());
        let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
        assert!(read("log", &deep).unwrap().data.is_none());
        let lines = read("log", "{\n \"message\": \"a\"\n}")
            .unwrap()
            .data
            .unwrap();
        assert_eq!(lines.get(), r#"{"message": "a"}"#);
    }
}
