//! The words for the states of watches and deliveries.

use jiff::Timestamp;

use crate::control::{DeliveryResponse, WatchResponse};
use crate::text::{humanize, one_line};

/// Longest free text in a list, in characters.
pub(super) const TEXT_CHARS: usize = 200;

/// For a run that was watched already, which of the options do not apply, and what to do; `None` when all do.
pub(super) fn not_applied(watch: &WatchResponse, without: &str) -> Option<String> {
    let flag = |option: &String| match option.as_str() {
        "labels" => "--label".to_owned(),
        "sinks" => "--sink".to_owned(),
        other => format!("--{other}"),
    };
    let flags: Vec<_> = watch
        .not_applied
        .iter()
        .map(flag)
        .filter(|flag| flag != without)
        .collect();
    let fix = if watch.verdict.is_some() {
        "watch it anew with --again"
    } else {
        "to change them, remove the watch and add the run again"
    };
    let what = format!(
        "{} is watched already, and {} not applied; {fix}",
        watch.run_id,
        flags.join(", ")
    );
    match flags.len() {
        0 => None,
        1 => Some(what.replacen(" not applied", " is not applied", 1)),
        _ => Some(what.replacen(" not applied", " are not applied", 1)),
    }
}

/// What became of a run that was watched already: it is finished, or goes on.
pub(super) fn standing_of_known(watch: &WatchResponse, now: Timestamp) -> String {
    match (&watch.verdict, watch.finished_at) {
        (None, _) => format!("{}: already watched", watch.run_id),
        (Some(verdict), None) => format!("{}: already watched, and {verdict}", watch.run_id),
        (Some(verdict), Some(at)) => {
            format!(
                "{}: already watched, and {verdict} {}; --again watches it anew",
                watch.run_id,
                ago(at, now)
            )
        }
    }
}

/// The verdict, or else the status, of a watch.
pub(super) fn standing(watch: &WatchResponse) -> String {
    match (&watch.verdict, &watch.status) {
        (Some(verdict), _) => verdict.clone(),
        (None, _) if watch.missing_since.is_some() => "not there yet".to_owned(),
        (None, Some(status)) => one_line(status, TEXT_CHARS),
        (None, None) => "not asked yet".to_owned(),
    }
}

pub(super) fn ago(at: Timestamp, now: Timestamp) -> String {
    if at > now {
        "now".to_owned()
    } else {
        format!("{} ago", humanize(now.duration_since(at).unsigned_abs()))
    }
}

pub(super) fn ahead(at: Timestamp, now: Timestamp) -> String {
    if at <= now {
        "now".to_owned()
    } else {
        format!("in {}", humanize(at.duration_since(now).unsigned_abs()))
    }
}

pub(super) fn next_poll(watch: &WatchResponse, now: Timestamp) -> String {
    match watch.next_poll_at {
        _ if watch.polling => "asking".to_owned(),
        Some(at) => ahead(at, now),
        None => String::new(),
    }
}

pub(super) fn delivery_state(delivery: &DeliveryResponse, now: Timestamp) -> String {
    match (delivery.state.as_str(), delivery.next_attempt_at) {
        ("pending", Some(at)) => format!("pending, {}", ahead(at, now)),
        ("dead", _) => "given up".to_owned(),
        (state, _) => state.to_owned(),
    }
}
