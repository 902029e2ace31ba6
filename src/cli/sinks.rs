//! `runwatch sinks test`: one sample message through each sink.

use std::io::Write;

use jiff::Timestamp;

use super::write_text;
use crate::clock::new_delivery_id;
use crate::config::Settings;
use crate::domain::{Event, SinkName};
use crate::notify::{Deliver as _, Message, Sink};

/// Sends a sample event through the named sinks, or all, one after the other, and prints how each
/// went. Returns 0 when all went well, 1 when one did not.
///
/// # Errors
/// When there is no sink, or none of that name, or a result cannot be written.
pub async fn test(
    settings: &Settings,
    names: &[SinkName],
    json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<u8> {
    let unknown: Vec<_> = names
        .iter()
        .filter(|name| !settings.sinks.contains_key(*name))
        .collect();
    if let Some(name) = unknown.first() {
        let known: Vec<_> = settings.sinks.keys().map(SinkName::as_str).collect();
        let known = if known.is_empty() {
            "none is configured".to_owned()
        } else {
            known.join(", ")
        };
        anyhow::bail!("no sink is called {name}; known sinks: {known}");
    }
    if settings.sinks.is_empty() {
        anyhow::bail!("no sink is configured; `runwatch config init` writes a file with examples");
    }
    let mut all_well = true;
    for (name, sink_settings) in &settings.sinks {
        if !names.is_empty() && !names.contains(name) {
            continue;
        }
        let result = match Sink::build(sink_settings) {
            Ok(sink) => send_sample(name, &sink).await,
            Err(error) => Err(format!("{:#}", anyhow::Error::from(error))),
        };
        all_well &= result.is_ok();
        let (delivered, detail) = match &result {
            Ok(detail) => (true, detail),
            Err(detail) => (false, detail),
        };
        let line = if json {
            serde_json::json!({ "sink": name, "delivered": delivered, "detail": detail })
                .to_string()
        } else {
            format!(
                "{name}: {}: {detail}",
                if delivered { "ok" } else { "failed" }
            )
        };
        write_text(out, &format!("{line}\n"))?;
    }
    Ok(u8::from(!all_well))
}

async fn send_sample(name: &SinkName, sink: &Sink) -> Result<String, String> {
    let now = Timestamp::now();
    let event = Event::sample(now);
    let delivery = new_delivery_id();
    let message = Message {
        delivery: &delivery,
        sink: name,
        attempt: 1,
        event: &event,
        now,
    };
    sink.send(&message)
        .await
        .map(|sent| sent.detail)
        .map_err(|error| error.detail)
}
