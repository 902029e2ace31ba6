//! `runwatch sinks render`: what a sink would send, without sending it.

use std::borrow::Cow;

use jiff::Timestamp;

use super::args::RunArg;
use super::client::Printer;
use super::failure::CommandFailure;
use super::run_names::RunNames;
use super::short_ids::watch_of;
use super::sinks::unknown_sink;
use crate::clock::new_delivery_id;
use crate::config::Settings;
use crate::control::{Client, WatchResponse};
use crate::domain::{
    Event, EventData, EventType, RunEvent, RunState, RunSummary, SinkName, Timing, Verdict,
    WatchSummary,
};
use crate::notify::{Message, Preview, Sink};
use crate::text::{error_chain, escape_json_for_terminal, is_hidden};

/// Exit code when the message cannot be made.
const FAILED: u8 = 1;

/// What `runwatch sinks render` is given.
pub struct RenderOptions {
    /// The sink.
    pub sink: SinkName,
    /// The event; that of the run's verdict or the test event unless given.
    pub event: Option<EventType>,
    /// A run in place of a sample.
    pub run: Option<RunArg>,
}

/// Prints what a sink would send. Of a run, the daemon says what is known. Returns 0, 1 when the message cannot be made
/// or the daemon does not have the run, and 2 when there is no such sink or no daemon.
///
/// # Errors
/// When the result cannot be written, or there is no place for a socket of the daemon.
pub async fn render(
    settings: &Settings,
    options: &RenderOptions,
    client: impl FnOnce() -> anyhow::Result<Client>,
    names: &RunNames,
    mut printer: Printer<'_>,
) -> anyhow::Result<u8> {
    let name = &options.sink;
    let Some(sink_settings) = settings.sinks.get(name) else {
        return printer.failed(unknown_sink(name, settings));
    };
    let now = Timestamp::now();
    let (event, trace) = match &options.run {
        None => {
            let event = options.event.unwrap_or(EventType::SinkTest);
            (Event::sample_of(event, now), None)
        }
        Some(run) => {
            let shown = match watch_of(&client()?, names, run).await {
                Ok(watch) => {
                    of_watch(&watch, options.event, now).map(|event| (event, watch.trace()))
                }
                Err(failure) => Err(failure),
            };
            match shown {
                Ok(shown) => shown,
                Err(failure) => return printer.failed(failure),
            }
        }
    };
    let delivery = new_delivery_id();
    let message = Message {
        delivery: &delivery,
        sink: name,
        attempt: 1,
        event: &event,
        trace: trace.as_ref(),
        now,
    };
    let preview = match Sink::build(sink_settings) {
        Ok(sink) => sink
            .preview(&message)
            .await
            .map_err(|error| error.to_string()),
        Err(error) => Err(error_chain(&error)),
    };
    match preview {
        Err(why) => printer.failed(CommandFailure::failed(why, FAILED)),
        Ok(preview) if printer.json => {
            printer.json(&serde_json::json!({
                "sink": name,
                "event": event.event_type,
                "target": preview.target,
                "fields": preview.fields,
                "body": preview.body,
            }))?;
            Ok(0)
        }
        Ok(preview) => {
            printer.line(&text(&preview))?;
            Ok(0)
        }
    }
}

/// The event of a watch, as far as the daemon knows the run.
fn of_watch(
    watch: &WatchResponse,
    event_type: Option<EventType>,
    now: Timestamp,
) -> Result<Event, CommandFailure> {
    let verdict = watch.known_verdict().map(Verdict::event_type);
    let event_type = event_type.or(verdict).unwrap_or(EventType::RunStarted);
    if !matches!(Event::sample_of(event_type, now).data, EventData::Run(_)) {
        let what = format!("{event_type} is not about a run");
        return Err(CommandFailure::usage(what).fix("leave out --run, or name another event"));
    }
    let stored = watch.data.as_ref();
    let stored = stored.and_then(|data| serde_json::from_str(data.get()).ok());
    Ok(Event {
        event_type,
        timestamp: watch.finished_at.unwrap_or(now),
        data: EventData::Run(Box::new(stored.unwrap_or_else(|| unfinished(watch)))),
    })
}

/// What the events of a run have that has no verdict, of what the list of watches shows.
fn unfinished(watch: &WatchResponse) -> RunEvent {
    let state = watch.run_state.as_deref().and_then(RunState::from_word);
    RunEvent {
        run: RunSummary {
            provider: watch.provider.clone(),
            id: watch.run(),
            version_id: None,
            deployment_id: None,
            project: None,
            status: watch.status.clone(),
            state,
            attempt: None,
            name: None,
            group: None,
            input: None,
            output: None,
            error_message: None,
            created_at: None,
            started_at: None,
            completed_at: None,
            url: None,
        },
        watch: WatchSummary {
            name: watch.name.clone(),
            labels: watch.labels.clone(),
            added_at: watch.added_at,
            polls: watch.polls,
            late: false,
        },
        timing: Timing::default(),
        reason: None,
        truncated: Vec::new(),
        fallback_for: None,
    }
}

/// A preview as lines, harmless on a terminal: the fields after what would be done, and the content after an empty line.
fn text(preview: &Preview) -> String {
    let fields = preview.fields.iter();
    let fields = fields.map(|(name, value)| format!("{name}: {value}"));
    let head: Vec<_> = std::iter::once(preview.target.clone())
        .chain(fields)
        .collect();
    let body = preview.body.trim_end_matches('\n');
    let body = if serde_json::from_str::<serde::de::IgnoredAny>(body).is_ok() {
        escape_json_for_terminal(body)
    } else {
        Cow::Owned(harmless(body))
    };
    format!("{}\n\n{body}", harmless(&head.join("\n")))
}

/// The text without what a terminal acts upon or hides.
fn harmless(text: &str) -> String {
    let shown = |c: &char| matches!(c, '\n' | '\t') || !is_hidden(*c);
    text.chars().filter(shown).collect()
}
