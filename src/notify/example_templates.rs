//! The templates of config/templates/, made for every event, with texts that mean harm.

use serde_json::Value;

use super::Message;
use super::template::{MessageTemplate, TemplateValues};
use crate::domain::{DeliveryId, Event, EventData, EventType, MessageScope, SinkName};

/// Texts as someone may choose them who names runs, or makes them fail.
const HOSTILE: [&str; 4] = [
    "\"}, {\"chat_id\": \"1\", \"a\": \"\\",
    "<users/all> <!channel> @room {{ values.chat_id }} {% endif %}",
    "\u{202e}\u{0}\u{1b}[31m\\u0022\n\r\t\u{2028}🚢",
    "\u{1f6a2}",
];

/// Every event, as it usually is and with hostile texts.
fn events() -> impl Iterator<Item = Event> {
    let now = "2024-01-15T10:35:05.412Z".parse().expect("a time");
    EventType::ALL.into_iter().flat_map(move |event_type| {
        let usual = Event::sample_of(event_type, now);
        let hostile = HOSTILE.map(|text| with_text(&usual, &text.repeat(4000 / text.len())));
        std::iter::once(usual).chain(hostile)
    })
}

fn with_text(event: &Event, text: &str) -> Event {
    let mut event = event.clone();
    match &mut event.data {
        EventData::Run(data) => {
            data.watch.name = Some(text.to_owned());
            data.run.error_message = Some(format!("{text}\n{text}\n{text}"));
            data.run.status = Some(text.to_owned());
            data.run.name = Some(text.to_owned());
            data.run.group = Some(text.to_owned());
            data.reason = Some(text.to_owned());
            data.run.url = None;
        }
        EventData::Provider(notice) => text.clone_into(&mut notice.message),
        EventData::Group(data) => {
            if let MessageScope::Group(group) = &mut data.scope {
                text.clone_into(group);
            }
            data.runs[0].name = Some(text.to_owned());
        }
        EventData::Sink(notice) => text.clone_into(&mut notice.message),
    }
    event
}

/// What a template makes of every event.
fn made(source: &str) -> Vec<(Event, Value)> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("example.j2");
    std::fs::write(&path, source).unwrap();
    let values: TemplateValues = ["chat_id", "routing_key"]
        .map(|name| (name.to_owned(), format!("the {name}")))
        .into();
    let template = MessageTemplate::load(&path, "application/json", values.keys()).unwrap();
    let (delivery, sink) = (
        DeliveryId::new("msg_1").unwrap(),
        SinkName::new("ops").unwrap(),
    );
    let make = |event: Event| {
        let message = Message {
            delivery: &delivery,
            sink: &sink,
            attempt: 1,
            event: &event,
            trace: None,
            now: event.timestamp,
        };
        let text = template.render(&message, "application/json", &values);
        let text = text.unwrap_or_else(|error| panic!("{}: {error}", event.event_type));
        assert!(text.len() < 32_000, "{}: {}", event.event_type, text.len());
        let made = serde_json::from_str(&text).unwrap();
        (event, made)
    };
    let made: Vec<_> = events().map(make).collect();
    assert_eq!(made.len(), EventType::ALL.len() * (HOSTILE.len() + 1));
    made
}

fn text<'a>(made: &'a Value, pointer: &str) -> &'a str {
    let text = made.pointer(pointer).and_then(Value::as_str);
    text.filter(|text| !text.is_empty())
        .unwrap_or_else(|| panic!("{pointer} of {made}"))
}

fn keys(made: &Value) -> Vec<&str> {
    let fields = made.as_object().unwrap();
    fields.keys().map(String::as_str).collect()
}

#[test]
fn telegram() {
    for (_, made) in made(include_str!("../../config/templates/telegram.j2")) {
        assert_eq!(text(&made, "/chat_id"), "the chat_id");
        assert!(text(&made, "/text").encode_utf16().count() <= 4096);
        assert_eq!(keys(&made), ["chat_id", "link_preview_options", "text"]);
    }
}

#[test]
fn pagerduty() {
    for (event, made) in made(include_str!("../../config/templates/pagerduty.j2")) {
        assert_eq!(text(&made, "/routing_key"), "the routing_key");
        assert_eq!(text(&made, "/dedup_key"), "msg_1");
        assert!(text(&made, "/payload/summary").chars().count() <= 1024);
        text(&made, "/payload/source");
        let timestamp = text(&made, "/payload/timestamp");
        assert_eq!(
            timestamp.parse::<jiff::Timestamp>().unwrap(),
            event.timestamp
        );
        let severity = text(&made, "/payload/severity");
        let expected = match event.event_type {
            EventType::RunSucceeded
            | EventType::RunStarted
            | EventType::ApiRecovered
            | EventType::SinkTest => "info",
            EventType::RunCanceled
            | EventType::RunSkipped
            | EventType::RunWaiting
            | EventType::WatchOverdue => "warning",
            EventType::GroupFinished
            | EventType::RunDigest
            | EventType::RunFailed
            | EventType::WatchNotFound
            | EventType::WatchUnreachable
            | EventType::WatchTimedOut
            | EventType::ApiUnreachable
            | EventType::ApiUnauthorized
            | EventType::SinkDisabled => "error",
        };
        assert_eq!(severity, expected, "{}", event.event_type);
        assert!(made["links"].as_array().unwrap().len() <= 1);
    }
}

#[test]
fn gotify() {
    for (_, made) in made(include_str!("../../config/templates/gotify.j2")) {
        assert!(!text(&made, "/title").is_empty() && !text(&made, "/message").is_empty());
        assert!(made["priority"].is_u64());
        assert_eq!(
            text(&made, "/extras/client::display/contentType"),
            "text/plain"
        );
    }
}

#[test]
fn google_chat() {
    for (_, made) in made(include_str!("../../config/templates/google-chat.j2")) {
        assert!(!text(&made, "/text").contains('<'), "{made}");
        assert_eq!(keys(&made), ["text"]);
    }
}

#[test]
fn matrix() {
    for (_, made) in made(include_str!("../../config/templates/matrix.j2")) {
        assert_eq!(text(&made, "/msgtype"), "m.text");
        text(&made, "/body");
        assert_eq!(made["m.mentions"], serde_json::json!({}));
        assert_eq!(keys(&made), ["body", "m.mentions", "msgtype"]);
    }
}
