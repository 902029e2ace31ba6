//! `runwatch show`.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::client::Printer;
use super::phrases::{TEXT_CHARS, ago, ahead, delivery_state, next_poll, standing};
use super::table::Table;
use super::write_text;
use crate::control::{AttemptResponse, Client, WatchResponse};
use crate::domain::{EventType, RunId, Verdict};
use crate::text::{humanize, one_line};

/// `runwatch show`. With `json` the answer of `GET /v1/watches/{run_id}`.
///
/// # Errors
/// When the result cannot be written.
pub async fn show(client: &Client, run_id: &RunId, mut printer: Printer<'_>) -> anyhow::Result<u8> {
    match client.watch(run_id, Duration::ZERO).await {
        Ok(watch) if printer.json => printer.json(&watch)?,
        Ok(watch) => {
            let text = describe(&watch, Timestamp::now(), &TimeZone::system(), printer.width);
            write_text(printer.out, &text)?;
        }
        Err(error) => return printer.failed(&error),
    }
    Ok(0)
}

/// Everything about one watch, for people.
fn describe(watch: &WatchResponse, now: Timestamp, zone: &TimeZone, width: Option<u16>) -> String {
    let mut text = match &watch.name {
        Some(name) => format!("{} ({})\n", watch.run_id, one_line(name, TEXT_CHARS)),
        None => format!("{}\n", watch.run_id),
    };
    let mut line = |name: &str, value: String| {
        writeln!(text, "  {name:<10} {value}").expect("a String takes all text");
    };
    let ended = watch
        .finished_at
        .map(|at| format!(", seen {}", ago(at, now)))
        .unwrap_or_default();
    line("status", format!("{}{ended}", standing(watch)));
    if let Some(found_by) = &watch.found_by {
        line(
            "found by",
            if found_by == "stream" {
                "its event stream"
            } else {
                found_by
            }
            .to_owned(),
        );
    }
    line("added", ago(watch.added_at, now));
    if watch.verdict.is_none() {
        line("deadline", ahead(watch.deadline_at, now));
        line("next poll", next_poll(watch, now));
    }
    line("polls", watch.polls.to_string());
    if let Some(since) = watch.missing_since {
        line("not found", format!("since {}", ago(since, now)));
    }
    if let Some(error) = &watch.last_error {
        line(
            "last error",
            format!(
                "{} ({})",
                one_line(&error.message, TEXT_CHARS),
                ago(error.at, now)
            ),
        );
    }
    if !watch.labels.is_empty() {
        let labels: Vec<_> = watch
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        line("labels", one_line(&labels.join(" "), TEXT_CHARS));
    }
    if let Some(sinks) = &watch.sinks {
        line(
            "only to",
            sinks
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", "),
        );
    }
    let time = |at: Timestamp| {
        at.to_zoned_datetime(zone.clone())
            .strftime("%Y-%m-%d %H:%M:%S")
            .to_string()
    };
    let mut part = |title: &str, rows: Vec<Vec<String>>| {
        if !rows.is_empty() {
            let mut table = Table::plain();
            rows.into_iter().for_each(|row| table.row(row));
            write!(text, "\n{title}\n{}", table.into_text(width)).expect("a String takes all text");
        }
    };
    let history = watch.history.iter().flatten();
    part(
        "Status",
        history
            .map(|change| vec![time(change.at), one_line(&change.status, TEXT_CHARS)])
            .collect(),
    );
    let routing = watch.routing.iter().flatten().map(|sink| {
        vec![
            sink.sink.to_string(),
            gets(&sink.events),
            sink.why_not.clone().unwrap_or_default(),
        ]
    });
    part("Sinks, as configured now", routing.collect());
    let mut rows = Vec::new();
    for delivery in watch.deliveries.iter().flatten() {
        let to = format!("{} to {}", delivery.event, delivery.sink);
        rows.push(vec![
            time(delivery.created_at),
            to,
            delivery_state(delivery, now),
            delivery.id.to_string(),
        ]);
        rows.extend(
            delivery
                .attempt_log
                .iter()
                .flatten()
                .map(|attempt| attempt_row(attempt, time(attempt.at))),
        );
    }
    part("Messages", rows);
    text
}

/// Which events a sink gets, for people.
fn gets(events: &[EventType]) -> String {
    let (verdicts, others): (Vec<_>, Vec<_>) =
        events.iter().partition(|event| event.verdict().is_some());
    let mut words: Vec<_> = if verdicts.len() == Verdict::WORST_FIRST.len() {
        vec!["every verdict"]
    } else {
        verdicts
            .into_iter()
            .map(|event: &EventType| event.as_str())
            .collect()
    };
    words.extend(others.into_iter().map(|event: &EventType| event.as_str()));
    if words.is_empty() {
        "nothing".to_owned()
    } else {
        words.join(", ")
    }
}

fn attempt_row(attempt: &AttemptResponse, at: String) -> Vec<String> {
    let took = humanize(Duration::from_millis(attempt.took_ms));
    let outcome = if attempt.delivered {
        "arrived"
    } else {
        "failed"
    };
    let result = one_line(&attempt.result, TEXT_CHARS);
    vec![
        at,
        format!("  attempt {}", attempt.attempt),
        format!("{outcome} after {took}"),
        result,
    ]
}
