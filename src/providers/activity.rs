//! Events of the stream of a run, read by the types that its profile names.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::domain::{Activity, Hint, JsonText};
use crate::profile::Stream;
use crate::sse::Frame;
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

/// Reads one event: with its type in the JSON of the data (`{"type":…,"data":…}` or `{"type":…,"payload":…}`, as both
/// documentations of Crewship have it) or in the `event` field, as usual elsewhere. `None` for a type that the profile
/// does not name.
pub(super) fn of_frame(types: &Stream, frame: &Frame) -> Option<Activity> {
    #[derive(Deserialize)]
    struct ActivityMessage<'a> {
        #[serde(rename = "type", borrow)]
        kind: Option<&'a RawValue>,
        #[serde(borrow)]
        data: Option<&'a RawValue>,
        #[serde(borrow)]
        payload: Option<&'a RawValue>,
        #[serde(borrow)]
        status: Option<&'a RawValue>,
    }
    let message: Option<ActivityMessage<'_>> = serde_json::from_str(&frame.data).ok();
    let whole = || serde_json::from_str::<&RawValue>(&frame.data).ok();
    let Some(message) = message else {
        // Not an object, or not JSON: then only the `event` field is used.
        return read(types, &frame.event, whole());
    };
    let kind: Option<String> = message
        .kind
        .and_then(|kind| serde_json::from_str(kind.get()).ok());
    match kind {
        Some(kind) => read(
            types,
            &kind,
            message.data.or(message.payload).or_else(whole),
        ),
        None if !frame.event.is_empty() => read(
            types,
            &frame.event,
            message.data.or(message.payload).or_else(whole),
        ),
        None if message.status.is_some() => read(types, "status", whole()),
        None => None,
    }
}

/// Reads the type and the data of an event; `None` for a type that the profile does not name. An event about the run
/// whose data name a last status suggests an end, whatever its type.
fn read(types: &Stream, kind: &str, data: Option<&RawValue>) -> Option<Activity> {
    #[derive(Deserialize)]
    struct WithStatus {
        status: String,
    }
    let is_in = |types: &[String]| types.iter().any(|other| other == kind);
    let is_news = is_in(&types.news);
    let is_failure = is_in(&types.failed);
    let of_run = is_in(&types.started) || is_in(&types.alive);
    let mut hint = if is_in(&types.ended) {
        Some(Hint::Ended)
    } else if is_in(&types.over) {
        Some(Hint::StreamOver)
    } else if is_in(&types.started) {
        Some(Hint::Started)
    } else if of_run || is_news || is_failure {
        None
    } else {
        return None;
    };
    // An agent or a task may have a status of its own.
    if of_run {
        let named: Option<WithStatus> = data.and_then(|data| serde_json::from_str(data.get()).ok());
        if named.is_some_and(|data| types.last.contains(&data.status)) {
            hint = Some(Hint::Ended);
        }
    }
    let data = data
        .filter(|data| data.get().len() <= MAX_DATA_BYTES)
        .map(|data| JsonText::from(data.to_owned()));
    let harmless =
        |data: JsonText| RawValue::from_string(escape_json_for_terminal(data.get()).into_owned());
    let data = data
        .and_then(|data| data.passable())
        .and_then(|data| harmless(data).ok());
    let summary = match &data {
        Some(data) if is_news => summarize(data),
        _ => String::new(),
    };
    Some(Activity {
        kind: kind.to_owned(),
        hint,
        is_news,
        is_failure,
        summary,
        data,
    })
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
    use crate::profile;
    use proptest::prelude::*;

    fn crewship() -> Stream {
        profile::crewship().stream.clone().unwrap()
    }

    fn read_frame(event: &str, data: &str) -> Option<(String, Option<Hint>, String)> {
        let frame = Frame {
            event: event.to_owned(),
            data: data.to_owned(),
        };
        of_frame(&crewship(), &frame)
            .map(|activity| (activity.kind, activity.hint, activity.summary))
    }

    fn read_text(kind: &str, data: &str) -> Option<Activity> {
        read(
            &crewship(),
            kind,
            Some(&RawValue::from_string(data.to_owned()).unwrap()),
        )
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
        let completed = Some((
            "run.completed".to_owned(),
            Some(Hint::Ended),
            "succeeded".to_owned(),
        ));
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
        let log = Some(("log".to_owned(), None, "info hi".to_owned()));
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
            Some(("heartbeat".to_owned(), None, String::new()))
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
    fn the_types_are_those_of_the_profile() {
        let profile = r#"
            title = "own"
            base_url = "https://api.example.com"
            id = "{run}"
            get = "/{run}"
            rules = [{ when = { "/state" = "done" }, is = "succeeded" }]
            stream = { sse = "/{run}/log", ended = ["end"], alive = ["ping"], news = ["line"], last = ["done"] }
            "#;
        let own = profile::parse(profile, "own").unwrap().stream.unwrap();
        let hint = |event: &str, data: &str| {
            let frame = Frame {
                event: event.to_owned(),
                data: data.to_owned(),
            };
            of_frame(&own, &frame).map(|activity| (activity.hint, activity.is_news))
        };
        assert_eq!(hint("end", "{}"), Some((Some(Hint::Ended), false)));
        assert_eq!(
            hint("ping", r#"{"status":"done"}"#),
            Some((Some(Hint::Ended), false))
        );
        assert_eq!(
            hint("ping", r#"{"status":"succeeded"}"#),
            Some((None, false))
        );
        assert_eq!(hint("line", "half of it"), Some((None, true)));
        assert_eq!(hint("run.completed", "{}"), None);
        let twice = profile.replace("ended = [\"end\"]", "ended = [\"ping\"]");
        let faults = profile::parse(&twice, "own").unwrap_err();
        assert_eq!(faults[0].key, "stream.alive");
        assert!(
            faults[0].what.contains("is in ended as well"),
            "{:?}",
            faults[0]
        );
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
