//! The words for the states of watches and deliveries.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::control::{DeliveryResponse, PollingList, WatchResponse};
use crate::style::{Look, Sign, Style, ago, ahead};
use crate::text::one_line;

/// Longest free text in a list, in characters.
pub(super) const TEXT_CHARS: usize = 200;

/// Longest cause, in characters. What to do stands at its end, after the path of a program.
const CAUSE_CHARS: usize = 400;

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
        watch.run(),
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
        (None, _) => format!("{}: already watched", watch.run()),
        (Some(verdict), None) => format!("{}: already watched, and {verdict}", watch.run()),
        (Some(verdict), Some(at)) => {
            format!(
                "{}: already watched, and {verdict} {}; --again watches it anew",
                watch.run(),
                ago(at, now)
            )
        }
    }
}

/// The word for where a watch stands: its verdict, or else its status.
pub(super) fn standing(watch: &WatchResponse) -> String {
    match (&watch.verdict, &watch.status) {
        (Some(verdict), _) => verdict.clone(),
        (None, _) if watch.missing_since.is_some() => "not there yet".to_owned(),
        (None, Some(status)) => one_line(status, TEXT_CHARS),
        (None, None) => "not polled yet".to_owned(),
    }
}

/// How long a watch is due before it counts as waiting for the budget: an answer of the daemon may be that old.
const OVERDUE: SignedDuration = SignedDuration::from_secs(1);

/// When a watch is polled next, as far as an outage of the API allows; empty for one that is finished.
pub(super) fn next_poll(
    watch: &WatchResponse,
    polling: Option<&PollingList>,
    now: Timestamp,
) -> String {
    let polling = polling.and_then(|polling| polling.of(&watch.provider));
    let allowed_at = polling.and_then(|polling| polling.next_request_at);
    let is_out = polling.is_some_and(|polling| polling.outage.is_some());
    match watch.next_poll_at {
        _ if watch.polling => "polling".to_owned(),
        None => String::new(),
        Some(at) if is_out => ahead(allowed_at.map_or(at, |allowed| allowed.max(at)), now),
        Some(at) if now.duration_since(at) > OVERDUE => "waiting for its turn".to_owned(),
        Some(at) => ahead(at, now),
    }
}

/// Where a delivery stands, and when it goes on.
pub(super) fn delivery_state(
    delivery: &DeliveryResponse,
    now: Timestamp,
    zone: &TimeZone,
) -> String {
    let state = match (delivery.state.as_str(), delivery.next_attempt_at) {
        ("pending", _) if let Some(until) = delivery.held_until => held_until(until, zone),
        ("pending", Some(at)) => format!("pending, {}", ahead(at, now)),
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

/// Until when a delivery is held: `held until 07:00`. That is less than a day ahead.
pub(super) fn held_until(until: Timestamp, zone: &TimeZone) -> String {
    let until = until.to_zoned_datetime(zone.clone());
    format!("held until {}", until.strftime("%H:%M"))
}

/// The glyph of a delivery: arrived, failed, or still to be tried.
pub(super) fn delivery_glyph(style: Style, delivery: &DeliveryResponse) -> String {
    match delivery.state.as_str() {
        "delivered" | "included" => style.mark(Sign::Good),
        "dead" => style.mark(Sign::Bad),
        _ if delivery.last_result.is_some() => style.mark(Sign::Warning),
        _ => style.glyph(Look::Pending),
    }
}

/// What the last layer of a failed connection says, as people say it.
const COMMON_CAUSES: [(&str, &str); 7] = [
    ("Name or service not known", "the name does not exist"),
    ("No address associated", "the name has no address"),
    (
        "failure in name resolution",
        "the name cannot be looked up; is there a network?",
    ),
    ("Connection refused", "connection refused"),
    ("Network is unreachable", "the network is unreachable"),
    ("No route to host", "there is no route to the host"),
    ("Connection reset", "the connection was reset"),
];

/// How results begin that have a hint.
const HINTED: [&str; 2] = ["no connection (", "the request failed ("];

/// How the reason of a watch begins that ended as `unreachable` after a poll.
const LAST_POLL: &str = "the last poll failed: ";

/// What went wrong, in few words: without the layers of the network that say no more than "no connection".
pub(super) fn cause(result: &str) -> String {
    const LAYERS: [&str; 8] = [
        "no connection: ",
        "error sending request: ",
        "connection lost: ",
        "client error (Connect): ",
        "client error (SendRequest): ",
        "tcp connect error: ",
        "dns error: ",
        "error resolving DNS: ",
    ];
    // Where the layers say something that a person can act upon, a hint in parentheses says it better.
    let hint = HINTED.iter().find_map(|layer| result.strip_prefix(layer));
    if let Some((hint, _layers)) = hint.and_then(|hint| hint.split_once("): ")) {
        return hint.to_owned();
    }
    if let Some(poll) = result.strip_prefix(LAST_POLL) {
        return format!("{LAST_POLL}{}", cause(poll));
    }
    let mut text = result;
    while let Some(inner) = LAYERS
        .iter()
        .find_map(|layer| text.strip_prefix(layer))
        .filter(|inner| !inner.is_empty())
    {
        text = inner;
    }
    let is_inner = text.len() < result.len();
    if let Some((_, words)) = COMMON_CAUSES
        .iter()
        .find(|(cause, _)| is_inner && text.contains(cause))
    {
        return (*words).to_owned();
    }
    let number = text.rfind(" (os error ").filter(|_| text.ends_with(')'));
    let text = one_line(&text[..number.unwrap_or(text.len())], CAUSE_CHARS);
    let mut rest = text.chars();
    match (rest.next(), rest.next()) {
        // Words begin small in the middle of a line; numbers and abbreviations stay as they are.
        (Some(first), Some(second)) if text.len() < result.len() && second.is_lowercase() => {
            format!("{}{}", first.to_lowercase(), &text[first.len_utf8()..])
        }
        _ => text,
    }
}

/// What is wrong in the daemon's view, with the cause in few words.
pub(super) fn notice_text(notice: &str) -> String {
    const FAILING: &str = "no usable answer: ";
    match notice.split_once(FAILING) {
        Some((provider, result)) => format!("{provider}{FAILING}{}", cause(result)),
        None => notice.to_owned(),
    }
}

/// A number with its noun: `1 watch`, `1,234 watches`.
pub(super) fn counted(count: usize, one: &str, many: &str) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    format!("{text} {}", if count == 1 { one } else { many })
}

/// The line below a list: how many there are, by their states in the order of their first appearance, and how many of
/// them are shown.
pub(super) fn count_line<'a>(
    (one, many): (&str, &str),
    states: impl IntoIterator<Item = &'a str>,
    shown: usize,
) -> String {
    let mut totals: Vec<(&str, usize)> = Vec::new();
    let mut all = 0;
    for state in states {
        all += 1;
        match totals.iter_mut().find(|(known, _)| *known == state) {
            Some((_, total)) => *total += 1,
            None => totals.push((state, 1)),
        }
    }
    let parts: Vec<_> = totals
        .iter()
        .map(|(state, total)| counted(*total, state, state))
        .collect();
    let newest = if shown < all {
        format!("; the newest {shown} are shown")
    } else {
        String::new()
    };
    format!("{}: {}{newest}", counted(all, one, many), parts.join(", "))
}

/// A size for people, in whole units: `12 MiB`.
pub(super) fn size_text(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let fits = |(_, length): &&(&str, u64)| bytes >= *length;
    match UNITS.iter().find(fits) {
        Some((unit, length)) => format!("{} {unit}", bytes / length),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::samples;

    #[test]
    fn causes_are_short_and_others_stay_as_they_are() {
        for (result, short) in [
            (
                "no connection: client error (Connect): tcp connect error: Connection refused (os error 111)",
                "connection refused",
            ),
            (
                "no connection: client error (Connect): invalid peer certificate: UnknownIssuer",
                "invalid peer certificate: UnknownIssuer",
            ),
            (
                "the last poll failed: no connection: error sending request: client error (Connect): dns error: error \
                 resolving DNS: failed to lookup address information: Name or service not known",
                "the last poll failed: the name does not exist",
            ),
            (
                "no connection (the server did not answer with TLS; is this an http:// address?): error sending request: \
                 client error (Connect): received corrupt message of type InvalidContentType",
                "the server did not answer with TLS; is this an http:// address?",
            ),
            ("no connection (half", "no connection (half"),
            (
                "503 Service Unavailable: try later",
                "503 Service Unavailable: try later",
            ),
            (
                "No such file or directory (os error 2)",
                "no such file or directory",
            ),
            (
                "cannot run /srv/automation/releases/current/hooks/notify-the-operators.sh: No such file or directory \
                 (os error 2): its #! line ends with a carriage return (CR), as Windows writes it, which counts as part \
                 of the interpreter's name; save it with line feeds alone",
                "cannot run /srv/automation/releases/current/hooks/notify-the-operators.sh: No such file or directory \
                 (os error 2): its #! line ends with a carriage return (CR), as Windows writes it, which counts as part \
                 of the interpreter's name; save it with line feeds alone",
            ),
            ("no connection: ", "no connection:"),
            ("Ünknown", "Ünknown"),
        ] {
            assert_eq!(cause(result), short, "{result}");
        }
    }

    #[test]
    fn notices_have_short_causes_and_keep_the_rest() {
        let refused = "no connection: client error (Connect): tcp connect error: Connection refused (os error 111)";
        for (notice, short) in [
            (
                format!("github: no usable answer: {refused}"),
                "github: no usable answer: connection refused",
            ),
            (
                format!("no usable answer: {refused}"),
                "no usable answer: connection refused",
            ),
            (
                "the API requested a pause: 429".to_owned(),
                "the API requested a pause: 429",
            ),
        ] {
            assert_eq!(notice_text(&notice), short);
        }
    }

    #[test]
    fn a_watch_that_is_due_waits_for_its_turn_unless_the_api_is_out() {
        let now = samples::now();
        let mut watch = samples::watches().swap_remove(0);
        let mut polling = samples::polling();
        let mut next = |due: &str, outage: Option<&str>| {
            watch.next_poll_at = Some(due.parse().unwrap());
            let crewship = &mut polling.providers[0];
            crewship.outage = outage.map(ToOwned::to_owned);
            crewship.next_request_at = outage.map(|_| "2026-11-27T09:02:20Z".parse().unwrap());
            next_poll(&watch, Some(&polling), now)
        };
        assert_eq!(next("2026-11-27T09:02:03Z", None), "in 3s");
        // The answer of the daemon may be that old.
        assert_eq!(next("2026-11-27T09:01:59.500Z", None), "now");
        assert_eq!(next("2026-11-27T09:01:50Z", None), "waiting for its turn");
        assert_eq!(next("2026-11-27T09:01:50Z", Some("rate_limited")), "in 20s");
        assert_eq!(next("2026-11-27T09:02:30Z", Some("rate_limited")), "in 30s");
        watch.polling = true;
        assert_eq!(next_poll(&watch, None, now), "polling");
    }

    #[test]
    fn counts_have_their_noun_and_the_states() {
        assert_eq!(
            count_line(("watch", "watches"), ["failed"], 1),
            "1 watch: 1 failed"
        );
        let many = ["running"; 10_000].into_iter().chain(["failed"]);
        assert_eq!(
            count_line(("watch", "watches"), many, 20),
            "10,001 watches: 10,000 running, 1 failed; the newest 20 are shown"
        );
    }
}
