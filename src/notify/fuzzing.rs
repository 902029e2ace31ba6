//! Fuzzes message templates: whatever a template contains, it ends, makes no more than it may, and
//! with a JSON content type the texts it fills in cannot break out of theirs.

use super::Message;
use super::summary::of;
use super::template::{MessageTemplate, TemplateValues};
use crate::domain::{DeliveryId, Event, SinkName};

/// A template, and behind the first zero byte the error message that it shows.
pub fn template(bytes: &[u8]) {
    let (source, error) = match bytes.iter().position(|byte| *byte == 0) {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, [].as_slice()),
    };
    let Ok(source) = std::str::from_utf8(source) else {
        return;
    };
    let mut event = Event::sample("2024-01-15T10:35:05Z".parse().expect("a time"));
    let data = event.run_mut().expect("it is about a run");
    data.run.error_message = Some(String::from_utf8_lossy(error).into_owned());
    drop(of(&event).text());
    let (delivery, sink) = (
        DeliveryId::new("msg_1").expect("valid"),
        SinkName::new("ops").expect("valid"),
    );
    let message = Message {
        delivery: &delivery,
        sink: &sink,
        attempt: 1,
        event: &event,
        trace: None,
        now: event.timestamp,
    };
    let values = TemplateValues::new();
    let fixed = r#"{"why": {{ data.run.error_message }}, "text": {{ text }}}"#;
    let made = MessageTemplate::of(fixed)
        .and_then(|template| template.render(&message, "application/json", &values));
    let made: serde_json::Value =
        serde_json::from_str(&made.expect("a right template")).expect("JSON");
    assert_eq!(made["why"], String::from_utf8_lossy(error).as_ref());
    let Ok(template) = MessageTemplate::of(source) else {
        return;
    };
    for content_type in ["text/plain", "application/json"] {
        if let Ok(made) = template.render(&message, content_type, &values) {
            assert!(
                made.len() <= crate::config::MAX_TEMPLATE_BYTES,
                "{} bytes",
                made.len()
            );
        }
    }
}
