//! The view of one run: where it stands, and what happened to it and to its deliveries.

use axum::http::StatusCode;
use axum::response::Response as AxumResponse;
use jiff::Timestamp;

use super::html::{Fill, Html};
use super::overview::{attempts, delivery_state, standing};
use super::{HTML, response};
use crate::control::types::{DeliveryResponse, WatchResponse};
use crate::style::{ahead, elapsed};

/// The view of a watch as HTML. `path` is that of the request.
pub(in crate::control) fn of_run(
    watch: &WatchResponse,
    path: &str,
    newest_event: i64,
    now: Timestamp,
    has_session: bool,
) -> AxumResponse {
    let mut fill = Fill::view("run", path);
    fill.with_session(has_session);
    fill.live(now, newest_event);
    let run = watch.run();
    let shown = watch.name.clone().unwrap_or_else(|| run.to_string());
    let mut name = Html::default();
    name.isolated(&shown);
    fill.set("name", name);
    fill.set("provider", Html::of(watch.provider.as_str()));
    fill.set("run-id", Html::of(&watch.run_id));
    fill.set("facts", facts(watch, now));
    fill.set("timeline", timeline(watch));
    let mut rows = Html::default();
    for entry in watch.deliveries.iter().flatten() {
        delivery(&mut rows, entry, now);
    }
    for entry in watch.routing.iter().flatten() {
        if let Some(why) = &entry.why_not {
            rows.markup("<tr><td>").isolated(entry.sink.as_str());
            rows.markup("</td><td colspan=\"3\">")
                .isolated(why)
                .markup("</td></tr>\n");
        }
    }
    if rows.is_empty() {
        rows.markup("<tr class=\"none\"><td colspan=\"4\">No sink was notified.</td></tr>");
    }
    fill.set("deliveries", rows);
    response(
        StatusCode::OK,
        HTML,
        fill.page(&format!("{shown} · runwatch")),
    )
}

fn fact(html: &mut Html, term: &'static str, value: &Html) {
    html.markup("<dt>")
        .markup(term)
        .markup("</dt><dd>")
        .html(value)
        .markup("</dd>");
}

fn facts(watch: &WatchResponse, now: Timestamp) -> Html {
    let mut html = Html::default();
    let word = standing(watch);
    let mut value = Html::default();
    value
        .glyph(
            watch
                .verdict
                .as_deref()
                .or(watch.run_state.as_deref())
                .unwrap_or(word),
        )
        .isolated(word);
    fact(&mut html, "State", &value);
    let mut time = |term, at: Option<Timestamp>| {
        if let Some(at) = at {
            let mut value = Html::default();
            value.time(at);
            fact(&mut html, term, &value);
        }
    };
    time("Added", Some(watch.added_at));
    time("Started", watch.started_at);
    time("Ended", watch.finished_at);
    if watch.finished_at.is_none() {
        time("Deadline", Some(watch.deadline_at));
    }
    if let Some(usual) = watch.usual() {
        fact(&mut html, "Usually", &Html::of(&usual.text_with(elapsed)));
    }
    if let Some(at) = watch.next_poll_at {
        fact(&mut html, "Next poll", &Html::of(&ahead(at, now)));
    }
    fact(&mut html, "Polls", &Html::of(&watch.polls.to_string()));
    if let Some(group) = &watch.group {
        let mut value = Html::default();
        value.isolated(group);
        fact(&mut html, "Group", &value);
    }
    if !watch.labels.is_empty() {
        let labels: Vec<_> = watch
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let mut value = Html::default();
        value.isolated(&labels.join(", "));
        fact(&mut html, "Labels", &value);
    }
    if let Some(error) = &watch.last_error {
        let mut value = Html::default();
        value.isolated(&error.message).markup(" ").time(error.at);
        fact(&mut html, "Last error", &value);
    }
    html
}

/// What happened, in the order of time.
fn timeline(watch: &WatchResponse) -> Html {
    let mut entries = vec![(watch.added_at, Html::of("the watch was added"))];
    for change in watch.history.iter().flatten() {
        let mut html = Html::default();
        html.glyph(change.run_state.as_deref().unwrap_or(&change.status))
            .isolated(&change.status);
        entries.push((change.at, html));
    }
    if let (Some(at), Some(verdict)) = (watch.finished_at, &watch.verdict) {
        let mut html = Html::default();
        html.markup("verdict: ").glyph(verdict).text(verdict);
        entries.push((at, html));
    }
    for delivery in watch.deliveries.iter().flatten() {
        for attempt in delivery.attempt_log.iter().flatten() {
            let mut html = Html::default();
            html.isolated(delivery.sink.as_str())
                .markup(": ")
                .text(delivery.event.as_str());
            html.markup(if attempt.delivered {
                " was delivered: "
            } else {
                " was not delivered: "
            });
            html.isolated(&attempt.result);
            entries.push((attempt.at, html));
        }
    }
    entries.sort_by_key(|(at, _)| *at);
    let mut html = Html::default();
    for (at, entry) in &entries {
        html.markup("<li>")
            .time(*at)
            .markup(" ")
            .html(entry)
            .markup("</li>\n");
    }
    html
}

fn delivery(html: &mut Html, delivery: &DeliveryResponse, now: Timestamp) {
    html.markup("<tr><td>").isolated(delivery.sink.as_str());
    html.markup("<small>")
        .text(delivery.event.as_str())
        .markup("</small></td><td>");
    html.text(&delivery_state(delivery, now));
    html.markup("</td><td class=\"number\">")
        .text(&attempts(delivery))
        .markup("</td><td>");
    html.isolated(delivery.last_result.as_deref().unwrap_or("–"))
        .markup("</td></tr>\n");
}
