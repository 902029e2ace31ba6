//! `runwatch sinks test`: one sample message through each sink.

use jiff::Timestamp;

use super::client::Printer;
use super::failure::CommandFailure;
use super::phrases::{TEXT_CHARS, cause};
use crate::clock::new_delivery_id;
use crate::config::Settings;
use crate::domain::{Event, SinkName};
use crate::notify::{Deliver as _, Message, Sink};
use crate::style::{Sign, Style, pad};
use crate::text::one_line;

/// Sends a sample event through the named sinks, or all, one after the other, and prints how each
/// went. Returns 0 when all went well, 1 when one did not, and 2 when there is no sink, or none of that name.
///
/// # Errors
/// When a result cannot be written.
pub async fn test(
    settings: &Settings,
    names: &[SinkName],
    mut printer: Printer<'_>,
) -> anyhow::Result<u8> {
    let unknown: Vec<_> = names
        .iter()
        .filter(|name| !settings.sinks.contains_key(*name))
        .collect();
    if let Some(name) = unknown.first() {
        return printer.failed(unknown_sink(name, settings));
    }
    if settings.sinks.is_empty() {
        let what = CommandFailure::usage("no sink is configured");
        let fix = "`runwatch config init` writes a file with examples";
        return printer.failed(what.fix(fix));
    }
    let chosen = |name: &SinkName| names.is_empty() || names.contains(name);
    let known = settings.sinks.keys().filter(|name| chosen(name));
    let columns = known.map(|name| name.as_str().len()).max().unwrap_or(0);
    let mut all_well = true;
    for (name, sink_settings) in settings.sinks.iter().filter(|(name, _)| chosen(name)) {
        let result = match Sink::build(sink_settings) {
            Ok(sink) => send_sample(name, &sink).await,
            Err(error) => Err(format!("{:#}", anyhow::Error::from(error))),
        };
        all_well &= result.is_ok();
        if printer.json {
            let (Ok(detail) | Err(detail)) = &result;
            printer.json(
                &serde_json::json!({ "sink": name, "delivered": result.is_ok(), "detail": detail }),
            )?;
        } else {
            let line = result_line(printer.style, &pad(name.as_str(), columns), &result);
            printer.line(&line)?;
        }
    }
    Ok(u8::from(!all_well))
}

/// A sink that is not configured.
pub(super) fn unknown_sink(name: &SinkName, settings: &Settings) -> CommandFailure {
    let known: Vec<_> = settings.sinks.keys().map(SinkName::as_str).collect();
    let known = match known.is_empty() {
        true => "none is configured".to_owned(),
        false => known.join(", "),
    };
    let what = format!("no sink is called {name}");
    CommandFailure::usage(what).fix(format!("known sinks: {known}"))
}

/// The line for people: the sink, a mark and its word, and what the receiver answered or what went wrong.
fn result_line(style: Style, name: &str, result: &Result<String, String>) -> String {
    let (mark, word, detail) = match result {
        Ok(detail) => (Sign::Good, style.good("ok"), one_line(detail, TEXT_CHARS)),
        Err(detail) => (Sign::Bad, style.bad("failed"), cause(detail)),
    };
    let line = format!("{name}  {} {}  {detail}", style.mark(mark), pad(&word, 6));
    line.trim_end().to_owned()
}

/// Sends a sample event through a sink. Returns what its receiver answered, or why it did not arrive.
pub(super) async fn send_sample(name: &SinkName, sink: &Sink) -> Result<String, String> {
    let now = Timestamp::now();
    let event = Event::sample(now);
    let delivery = new_delivery_id();
    let message = Message {
        delivery: &delivery,
        sink: name,
        attempt: 1,
        event: &event,
        trace: None,
        now,
    };
    sink.send(&message)
        .await
        .map(|sent| sent.detail)
        .map_err(|error| error.detail)
}
