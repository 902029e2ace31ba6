//! The view of everything: active runs, ends, deliveries, providers and sinks.

use std::time::Duration;

use axum::http::StatusCode;
use axum::response::Response as AxumResponse;
use jiff::Timestamp;

use super::html::{Fill, Html};
use super::{HTML, response};
use crate::control::types::{
    DeliveryResponse, PollingResponse, SinkResponse, WatchList, WatchResponse,
};
use crate::style::{ago, ahead, elapsed};

/// Rows of a table that the server writes; the script reads more.
pub(in crate::control) const ROWS: u32 = 100;

/// What the view shows.
pub(in crate::control) struct Overview {
    /// Active watches, the newest first, and what an operator should know.
    pub(in crate::control) active: WatchList,
    /// Finished ones, the last end first.
    pub(in crate::control) ended: WatchList,
    /// Deliveries that wait or were given up, the newest first.
    pub(in crate::control) deliveries: Vec<DeliveryResponse>,
    /// The providers in use.
    pub(in crate::control) providers: Vec<PollingResponse>,
    /// The sinks.
    pub(in crate::control) sinks: Vec<SinkResponse>,
    /// The number of the newest event before all this was read.
    pub(in crate::control) newest_event: i64,
    /// The time.
    pub(in crate::control) now: Timestamp,
    /// Whether there is a session that can be ended.
    pub(in crate::control) has_session: bool,
}

impl Overview {
    /// The view as HTML.
    pub(in crate::control) fn response(&self) -> AxumResponse {
        let mut fill = Fill::view("overview", "/");
        fill.with_session(self.has_session);
        fill.live(self.now, self.newest_event);
        let rows = |list: &[WatchResponse], row: fn(&mut Html, &WatchResponse, Timestamp)| {
            let mut html = Html::default();
            for watch in list {
                html.markup("<tr>");
                row(&mut html, watch, self.now);
                html.markup("</tr>\n");
            }
            html
        };
        fill.set(
            "active",
            or_none(
                rows(&self.active.watches, active),
                4,
                "No run is watched now.",
            ),
        );
        fill.set(
            "ended",
            or_none(rows(&self.ended.watches, ended), 3, "No run has ended yet."),
        );
        fill.set("more-active", more(self.active.next_cursor.is_some()));
        fill.set("more-ended", more(self.ended.next_cursor.is_some()));
        let mut html = Html::default();
        for entry in &self.deliveries {
            delivery(&mut html, entry, self.now);
        }
        fill.set(
            "deliveries",
            or_none(html, 5, "Nothing waits, and nothing was given up."),
        );
        let mut html = Html::default();
        for polling in &self.providers {
            provider(&mut html, polling, self.now);
        }
        fill.set("providers", or_none(html, 4, "No provider is in use."));
        let mut html = Html::default();
        for entry in &self.sinks {
            sink(&mut html, entry);
        }
        fill.set("sinks", or_none(html, 5, "No sink is configured."));
        let mut html = Html::default();
        for notice in &self.active.notices {
            html.markup("<li>").isolated(notice).markup("</li>");
        }
        fill.set("notices", html);
        response(StatusCode::OK, HTML, fill.page("runwatch"))
    }
}

/// The rows, or one that says that there are none.
fn or_none(rows: Html, columns: u8, none: &'static str) -> Html {
    if !rows.is_empty() {
        return rows;
    }
    let mut html = Html::default();
    html.markup("<tr class=\"none\"><td colspan=\"")
        .text(&columns.to_string())
        .markup("\">")
        .markup(none)
        .markup("</td></tr>");
    html
}

fn more(is_more: bool) -> Html {
    if is_more {
        Html::of(&format!("These are the newest {ROWS}."))
    } else {
        Html::default()
    }
}

/// The word for where a watch stands: its verdict, or else its status.
pub(super) fn standing(watch: &WatchResponse) -> &str {
    match (&watch.verdict, &watch.status) {
        (Some(verdict), _) => verdict,
        (None, _) if watch.missing_since.is_some() => "not there yet",
        (None, Some(status)) => status,
        (None, None) => "not polled yet",
    }
}

fn name(html: &mut Html, watch: &WatchResponse) {
    html.markup("<td>")
        .run("./", &watch.run(), watch.name.as_deref())
        .markup("</td>");
}

fn active(html: &mut Html, watch: &WatchResponse, now: Timestamp) {
    name(html, watch);
    let word = standing(watch);
    html.markup("<td>")
        .glyph(watch.run_state.as_deref().unwrap_or(word));
    html.isolated(word).markup("</td><td class=\"number\">");
    let time = Duration::try_from(now.duration_since(watch.added_at)).unwrap_or_default();
    html.text(&elapsed(time)).markup("</td><td class=\"wide\">");
    match watch.next_poll_at {
        _ if watch.polling => html.text("polling"),
        Some(at) => html.text(&ahead(at, now)),
        None => html.text("–"),
    };
    html.markup("</td>");
}

fn ended(html: &mut Html, watch: &WatchResponse, now: Timestamp) {
    name(html, watch);
    let word = standing(watch);
    html.markup("<td>")
        .glyph(word)
        .isolated(word)
        .markup("</td><td>");
    match watch.finished_at {
        Some(at) => html.text(&ago(at, now)),
        None => html.text("–"),
    };
    html.markup("</td>");
}

fn delivery(html: &mut Html, delivery: &DeliveryResponse, now: Timestamp) {
    html.markup("<tr><td>");
    match delivery.run() {
        Some(run) => html.run("./", &run, None),
        None => html.isolated(&delivery.subject().unwrap_or_else(|| "–".to_owned())),
    };
    html.markup("<small>")
        .text(delivery.event.as_str())
        .markup("</small></td><td>");
    html.isolated(delivery.sink.as_str()).markup("</td><td>");
    html.text(&delivery_state(delivery, now));
    html.markup("</td><td class=\"number wide\">")
        .text(&attempts(delivery));
    html.markup("</td><td class=\"wide\">");
    html.isolated(delivery.last_result.as_deref().unwrap_or("–"))
        .markup("</td></tr>\n");
}

/// Where a delivery stands, and when it goes on.
pub(super) fn delivery_state(delivery: &DeliveryResponse, now: Timestamp) -> String {
    let state = match (delivery.state.as_str(), delivery.next_attempt_at) {
        ("pending", Some(at)) if delivery.held_until.is_some() => {
            format!("held for quiet hours, sent {}", ahead(at, now))
        }
        ("pending", Some(at)) => format!("waits, retry {}", ahead(at, now)),
        ("pending", None) => "waits for the summary".to_owned(),
        ("dead", _) => "given up".to_owned(),
        _ if let Some(summary) = &delivery.included_in => format!("in the summary {summary}"),
        (state, _) => state.to_owned(),
    };
    match &delivery.fallback_for {
        Some(sink) => format!("{state} (for {sink})"),
        None => state,
    }
}

/// How many attempts were made, and how many there are: `3 of 8`.
pub(super) fn attempts(delivery: &DeliveryResponse) -> String {
    match delivery.most_attempts {
        Some(most) => format!("{} of {most}", delivery.attempts),
        None => delivery.attempts.to_string(),
    }
}

fn provider(html: &mut Html, polling: &PollingResponse, now: Timestamp) {
    html.markup("<tr><td>").isolated(&polling.provider);
    html.markup("</td><td class=\"number\">")
        .text(&polling.watches.to_string());
    html.markup("</td><td class=\"number\">").text(&format!(
        "{} of {}",
        polling.requests_last_minute, polling.requests_per_minute
    ));
    html.markup("</td><td>");
    match (&polling.outage, polling.reached) {
        (None, true) => html.text("closed: requests flow"),
        (None, false) => html.text("closed: nothing requested yet"),
        (Some(outage), _) => {
            let until = polling
                .next_request_at
                .map(|at| format!(", next request {}", ahead(at, now)));
            html.text(&format!(
                "open: {}{}",
                outage.replace('_', " "),
                until.unwrap_or_default()
            ));
            html.markup("<small>")
                .isolated(polling.outage_message.as_deref().unwrap_or_default());
            html.markup("</small>")
        }
    };
    html.markup("</td></tr>\n");
}

fn sink(html: &mut Html, sink: &SinkResponse) {
    html.markup("<tr><td>").isolated(sink.name.as_str());
    html.markup("</td><td>")
        .text(sink.kind.as_deref().unwrap_or("not configured"));
    html.markup("</td><td class=\"number\">")
        .text(&sink.pending.to_string());
    html.markup("</td><td class=\"number\">")
        .text(&sink.dead.to_string());
    let events: Vec<_> = sink.events.iter().map(|event| event.as_str()).collect();
    html.markup("</td><td class=\"wide\">")
        .text(&events.join(", "))
        .markup("</td></tr>\n");
}
