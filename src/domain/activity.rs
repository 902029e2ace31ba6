//! Activity: what a run is doing according to its event stream, for people and as a reason to poll.
//! No verdict comes from here.

use serde_json::Value;
use serde_json::value::RawValue;

use crate::text::one_line;

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

    #[test]
    fn a_summary_says_who_and_what() {
        let summary =
            |data: &str| Activity::summary(Some(&*RawValue::from_string(data.to_owned()).unwrap()));
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
}
