//! The sentences of `wait`: why it waits, what changed, and how it ended.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::tracked::{MAX_WORD_CHARS, Tracked, is_waiting_for_its_turn};
use super::view::Circumstances;
use crate::cli::phrases::{cause, counted};
use crate::control::ActivityResponse;
use crate::domain::Verdict;
use crate::scheduler::{Outage, WatchView};
use crate::style::{Look, Style, ahead, time_of_day, whole_seconds};
use crate::text::{humanize, one_line};

/// Longest summary of an event of a run that is shown, in characters.
const MAX_SUMMARY_CHARS: usize = 320;

/// Longest reason of a failure, in characters.
const MAX_REASON_CHARS: usize = 300;

/// What follows the reason of a pause whose end has come, until there is an answer.
const POLLING_AGAIN: &str = "; polling again";

/// A verdict as people read it.
pub(super) fn verdict_word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::NotFound => "not found",
        Verdict::TimedOut => "timed out",
        other => other.as_str(),
    }
}

/// How many runs are in each state: the states that go on first, then the ends, the good one first.
pub(super) fn counts_by_state(runs: &[&Tracked], views: &[WatchView]) -> Vec<(String, usize)> {
    let mut counts: Vec<(String, usize)> = ["running", "waiting", "pending"]
        .map(|word| (word.to_owned(), 0))
        .into();
    let views: HashMap<_, _> = views.iter().map(|view| (&view.run_id, view)).collect();
    let mut count = |word: String| match counts.iter_mut().find(|(known, _)| *known == word) {
        Some((_, count)) => *count += 1,
        None => counts.push((word, 1)),
    };
    for run in runs.iter().filter(|run| run.verdict.is_none()) {
        count(run.kind(views.get(&run.run_id).copied()));
    }
    for verdict in Verdict::WORST_FIRST.into_iter().rev() {
        let ended = runs.iter().filter(|run| run.verdict == Some(verdict));
        ended.for_each(|_| count(verdict_word(verdict).to_owned()));
    }
    counts.retain(|(_, count)| *count > 0);
    counts
}

/// A failure in few words, where its cause is a common one.
pub(super) fn reason(message: &str) -> String {
    one_line(&cause(message), MAX_REASON_CHARS)
}

/// Why no polls go out; `None` while they do.
pub(super) fn provider_sentence(
    circumstances: &Circumstances,
    now: Timestamp,
    zone: &TimeZone,
) -> Option<String> {
    let breaker = &circumstances.breaker;
    let host = circumstances.host.as_deref().unwrap_or("the API");
    if let Some(fix) = &circumstances.wrong_path {
        let end = circumstances.gives_up_at.map(|at| giving_up(at, now));
        return Some(format!("{fix}{}", end.unwrap_or_default()));
    }
    let why = reason(&breaker.message);
    let next = match breaker.retry_at {
        Some(at) if at > now => format!("; next poll {}", ahead(at, now)),
        Some(_) => POLLING_AGAIN.to_owned(),
        None => String::new(),
    };
    Some(match breaker.outage? {
        Outage::Paused => {
            let until = breaker
                .retry_at
                .map(|at| format!(" until {}", time_of_day(at, zone)))
                .unwrap_or_default();
            let over = match breaker.retry_at {
                Some(at) if at <= now => POLLING_AGAIN,
                _ => "",
            };
            match why
                .get(..3)
                .filter(|code| code.bytes().all(|byte| byte.is_ascii_digit()))
            {
                Some(code) => format!("rate limited{until} ({code} from {host}){over}"),
                None => format!("rate limited{until} ({host}: {why}){over}"),
            }
        }
        Outage::Refused if why.starts_with("no API key") => format!("{why}{next}"),
        Outage::Failing if !breaker.reached => {
            let end = circumstances.gives_up_at.map(|at| giving_up(at, now));
            format!("cannot reach {host}: {why}{}", end.unwrap_or(next))
        }
        // Without a time until when it lasts.
        Outage::Failing if why.starts_with("429") => {
            format!("rate limited (429 from {host}){next}")
        }
        Outage::Failing => format!("{host} gives no usable answer: {why}{next}"),
        Outage::Refused => format!("{host} refuses the key: {why}{next}"),
    })
}

fn giving_up(at: Timestamp, now: Timestamp) -> String {
    let left = Duration::try_from(at.duration_since(now)).unwrap_or_default();
    format!("; giving up in {} s", whole_seconds(left).as_secs())
}

/// Why runs wait for their turns; `None` when none does for want of budget.
pub(super) fn budget_sentence(
    circumstances: &Circumstances,
    views: &[WatchView],
    now: Timestamp,
) -> Option<String> {
    let usage = circumstances.usage?;
    views
        .iter()
        .find(|view| is_waiting_for_its_turn(view, now))?;
    let (runs, per_minute) = (usage.watches, u64::from(usage.per_minute));
    // Three quarters of a budget can be used without a break: the rest is kept for bursts.
    if usage.last_minute * 4 < per_minute {
        return None;
    }
    let spread = per_minute - per_minute / 4;
    let every = Duration::from_secs((runs as u64 * 60).div_ceil(spread));
    let every = match every.as_secs() {
        0..50 => format!("about every {} s", every.as_secs().max(1)),
        50..100 => "about once a minute".to_owned(),
        seconds => format!("about every {} minutes", (seconds + 30) / 60),
    };
    let table = match &circumstances.provider {
        Some(provider) if !provider.is_crewship() => format!("providers.{provider}"),
        _ => "api".to_owned(),
    };
    Some(format!(
        "{} {} {per_minute} requests a minute: each is polled {every} ({table}.requests_per_minute)",
        counted(runs, "run", "runs"),
        if runs == 1 { "has" } else { "share" },
    ))
}

/// The plain line for a change.
pub(super) fn change_line(
    style: Style,
    at: Timestamp,
    zone: &TimeZone,
    run: &Tracked,
    what: &str,
) -> String {
    let clock = style.dim(&time_of_day(at, zone));
    format!("{clock}  {}  {what}", run.full_label())
}

/// What a verdict is called in a plain line.
pub(super) fn verdict_words(
    style: Style,
    verdict: Verdict,
    ran: Option<Duration>,
    detail: &str,
) -> String {
    let word = style.as_look(Look::of(verdict.as_str()), verdict_word(verdict));
    // The API's times may have whole seconds.
    let after = ran
        .filter(|ran| !ran.is_zero())
        .map(|ran| format!(" after {}", humanize(ran)))
        .unwrap_or_default();
    let detail = if detail.is_empty() {
        String::new()
    } else {
        format!(": {detail}")
    };
    format!("{word}{after}{detail}")
}

/// When the first of these runs is polled next: not before an outage allows it.
fn next_poll(views: &[WatchView], retry_at: Option<Timestamp>) -> Option<Timestamp> {
    let first = views.iter().map(|view| view.next_poll_at).min()?;
    Some(retry_at.map_or(first, |at| at.max(first)))
}

/// The plain line that shows life when nothing changes; `retry_at` is when an outage lets the next poll out.
pub(super) fn life_line(
    style: Style,
    (now, retry_at): (Timestamp, Option<Timestamp>),
    zone: &TimeZone,
    waited: Duration,
    runs: &[&Tracked],
    views: &[WatchView],
) -> String {
    let going: Vec<_> = runs
        .iter()
        .copied()
        .filter(|run| run.verdict.is_none())
        .collect();
    let counts = counts_by_state(&going, views)
        .into_iter()
        .map(|(word, count)| format!("{count} {word}"));
    let counts: Vec<_> = counts.collect();
    let next = match next_poll(views, retry_at) {
        Some(at) if at > now => format!(", next poll {}", ahead(at, now)),
        Some(_) if views.iter().any(|view| view.polling) => ", polling now".to_owned(),
        Some(_) => ", waiting for the next turn".to_owned(),
        None => String::new(),
    };
    format!(
        "{}  {} for {}{next}",
        style.dim(&time_of_day(now, zone)),
        counts.join(", "),
        humanize(Duration::from_secs(waited.as_secs())),
    )
}

/// The plain line for an event of a run.
pub(super) fn activity_line(
    style: Style,
    zone: &TimeZone,
    run: &Tracked,
    seen: &ActivityResponse,
) -> String {
    let kind = one_line(&seen.activity, MAX_WORD_CHARS);
    let kind = if seen.failure {
        style.bad(&kind)
    } else {
        style.dim(&kind)
    };
    let summary = one_line(&seen.summary, MAX_SUMMARY_CHARS);
    let line = change_line(style, seen.at, zone, run, &format!("{kind} {summary}"));
    line.trim_end().to_owned()
}

/// An event of a run in few words.
pub(super) fn activity_words(seen: &ActivityResponse) -> String {
    let kind = one_line(&seen.activity, MAX_WORD_CHARS);
    match one_line(&seen.summary, MAX_SUMMARY_CHARS) {
        summary if summary.is_empty() => kind,
        summary => format!("{kind}: {summary}"),
    }
}

/// The line that sums a wait up.
pub(super) fn closing_line(
    style: Style,
    runs: &[&Tracked],
    requests: Option<u64>,
    delivered: usize,
) -> String {
    let counts: Vec<_> = counts_by_state(runs, &[])
        .into_iter()
        .map(|(word, count)| style.as_look(Look::of(&word), &format!("{count} {word}")))
        .collect();
    let mut parts = vec![format!(
        "{}: {}",
        counted(runs.len(), "run", "runs"),
        counts.join(", ")
    )];
    let number = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    parts.extend(requests.map(|requests| counted(number(requests), "request", "requests")));
    if delivered > 0 {
        parts.push(format!(
            "{} delivered",
            counted(delivered, "notification", "notifications")
        ));
    }
    parts.join(style.separator())
}

/// What a wait says about a sink whose attempts fail.
pub(super) fn sink_sentence(
    sink: &str,
    why: &str,
    next: Option<Timestamp>,
    now: Timestamp,
) -> String {
    let next = match next {
        Some(at) => format!("next attempt {}", ahead(at, now)),
        None => "given up".to_owned(),
    };
    format!("{sink}: {}; {next}", reason(why))
}

#[cfg(test)]
mod tests {
    use super::super::tracked::Tracked;
    use super::*;
    use crate::domain::{ProviderName, RunRef};
    use crate::scheduler::{BreakerView, Usage};

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn about(outage: Outage, message: &str) -> Circumstances {
        Circumstances {
            breaker: BreakerView {
                outage: Some(outage),
                message: message.to_owned(),
                retry_at: Some(time("2026-01-01T10:35:20Z")),
                ever_answered: true,
                reached: true,
                failures: 1,
            },
            host: Some("api.crewship.dev".to_owned()),
            ..Circumstances::default()
        }
    }

    #[test]
    fn each_outage_is_a_sentence_that_names_host_reason_and_time() {
        let now = time("2026-01-01T10:35:08.200Z");
        let sentence =
            |about: &Circumstances| provider_sentence(about, now, &TimeZone::UTC).unwrap();
        assert_eq!(
            sentence(&about(Outage::Paused, "429 Too Many Requests: slow down")),
            "rate limited until 10:35:20 (429 from api.crewship.dev)"
        );
        assert_eq!(
            sentence(&about(Outage::Paused, "the request limit is reached")),
            "rate limited until 10:35:20 (api.crewship.dev: the request limit is reached)"
        );
        assert_eq!(
            sentence(&about(Outage::Failing, "502 Bad Gateway")),
            "api.crewship.dev gives no usable answer: 502 Bad Gateway; next poll in 12s"
        );
        assert_eq!(
            sentence(&about(Outage::Failing, "429 Too Many Requests")),
            "rate limited (429 from api.crewship.dev); next poll in 12s"
        );
        assert_eq!(
            sentence(&about(Outage::Refused, "401 Unauthorized: no such key")),
            "api.crewship.dev refuses the key: 401 Unauthorized: no such key; next poll in 12s"
        );
        // Until there is an answer, the pause counts as one.
        let over = time("2026-01-01T10:35:20Z");
        let ended = |outage, message| {
            provider_sentence(&about(outage, message), over, &TimeZone::UTC).unwrap()
        };
        assert_eq!(
            ended(Outage::Paused, "429 Too Many Requests"),
            "rate limited until 10:35:20 (429 from api.crewship.dev); polling again"
        );
        assert_eq!(
            ended(Outage::Failing, "502 Bad Gateway"),
            "api.crewship.dev gives no usable answer: 502 Bad Gateway; polling again"
        );
        let dns = "no connection: client error (Connect): dns error: failed to lookup address information: Name or service not known";
        let mut never = about(Outage::Failing, dns);
        never.breaker.reached = false;
        never.gives_up_at = Some(time("2026-01-01T10:35:32Z"));
        assert_eq!(
            sentence(&never),
            "cannot reach api.crewship.dev: the name does not exist; giving up in 24 s"
        );
        assert_eq!(
            provider_sentence(&Circumstances::default(), now, &TimeZone::UTC),
            None
        );
    }

    #[test]
    fn causes_are_short_where_they_are_known() {
        let refused = "no connection: client error (Connect): tcp connect error: Connection refused (os error 111)";
        assert_eq!(reason(refused), "connection refused");
        assert_eq!(
            reason("503: Connection refused by me"),
            "503: Connection refused by me"
        );
        let sentence = sink_sentence(
            "away",
            refused,
            Some(time("2026-01-01T10:00:05Z")),
            time("2026-01-01T10:00:00Z"),
        );
        assert_eq!(sentence, "away: connection refused; next attempt in 5s");
    }

    #[test]
    fn a_budget_that_is_too_small_is_pointed_out_when_runs_wait_for_it() {
        let now = time("2026-01-01T10:35:08Z");
        let view = |number: usize, due: Timestamp| WatchView {
            run_id: RunRef::new(&format!("run_{number}")).unwrap(),
            status: None,
            polls: 0,
            missing_since: None,
            expected: None,
            polling: false,
            next_poll_at: due,
            last_error: None,
        };
        let views: Vec<_> = (0..60).map(|number| view(number, now)).collect();
        let shared_by = |watches, last_minute| Circumstances {
            usage: Some(Usage {
                last_minute,
                per_minute: 60,
                total: 100,
                watches,
            }),
            ..Circumstances::default()
        };
        assert_eq!(
            budget_sentence(&shared_by(60, 45), &views, now).unwrap(),
            "60 runs share 60 requests a minute: each is polled about once a minute (api.requests_per_minute)"
        );
        let of_github = Circumstances {
            provider: Some(ProviderName::new("github").unwrap()),
            ..shared_by(60, 45)
        };
        let sentence = budget_sentence(&of_github, &views, now).unwrap();
        assert!(
            sentence.ends_with("(providers.github.requests_per_minute)"),
            "{sentence}"
        );
        // All watches of a daemon count, not only those that this wait is about.
        let twelve = budget_sentence(&shared_by(9, 45), &views[..2], now).unwrap();
        assert!(
            twelve.contains("each is polled about every 12 s"),
            "{twelve}"
        );
        assert_eq!(budget_sentence(&shared_by(60, 3), &views, now), None);
        let later = [view(1, time("2026-01-01T10:35:09Z"))];
        assert_eq!(budget_sentence(&shared_by(60, 45), &later, now), None);
    }

    #[test]
    fn changes_ends_and_quiet_are_one_line_each() {
        let now = time("2026-01-01T10:35:02.900Z");
        let named = |name: Option<&str>| {
            Tracked::new(
                RunRef::new("run_xyz789abc").unwrap(),
                name.map(ToOwned::to_owned),
                now,
            )
        };
        let line =
            |run: &Tracked, what: &str| change_line(Style::PLAIN, now, &TimeZone::UTC, run, what);
        assert_eq!(
            line(&named(Some("weekly\x1b[2J report")), "running"),
            "10:35:02  weekly[2J report (run_xyz789abc)  running"
        );
        let failed = verdict_words(
            Style::PLAIN,
            Verdict::Failed,
            Some(Duration::from_secs(45)),
            "it broke",
        );
        assert_eq!(
            line(&named(None), &failed),
            "10:35:02  run_xyz789abc  failed after 45s: it broke"
        );
        let unreachable = verdict_words(Style::PLAIN, Verdict::NotFound, None, "");
        assert_eq!(unreachable, "not found");
        let run = named(None);
        let mut view = WatchView {
            run_id: run.run_id.clone(),
            status: None,
            polls: 0,
            missing_since: None,
            expected: None,
            polling: false,
            next_poll_at: now,
            last_error: None,
        };
        let quiet = |views: &[WatchView], retry_at| {
            life_line(
                Style::PLAIN,
                (now, retry_at),
                &TimeZone::UTC,
                Duration::from_millis(60_400),
                &[&run],
                views,
            )
        };
        assert_eq!(quiet(&[], None), "10:35:02  1 not polled for 1m");
        let due = std::slice::from_ref(&view);
        assert_eq!(
            quiet(due, None),
            "10:35:02  1 not polled for 1m, waiting for the next turn"
        );
        assert_eq!(
            quiet(due, Some(time("2026-01-01T10:35:20Z"))),
            "10:35:02  1 not polled for 1m, next poll in 18s"
        );
        view.polling = true;
        assert_eq!(
            quiet(&[view], None),
            "10:35:02  1 not polled for 1m, polling now"
        );
    }

    #[test]
    fn an_event_is_one_harmless_line() {
        let seen = |activity: &str, summary: &str| ActivityResponse {
            provider: crate::domain::ProviderName::crewship(),
            run_id: "run_1".to_owned(),
            at: time("2026-01-01T10:35:05.9Z"),
            activity: activity.to_owned(),
            summary: summary.to_owned(),
            failure: activity.ends_with("error"),
            data: None,
        };
        let run = Tracked::new(
            RunRef::new("run_1").unwrap(),
            None,
            time("2026-01-01T00:00:00Z"),
        );
        let line = |style, seen: &_| activity_line(style, &TimeZone::UTC, &run, seen);
        let log = seen("log", "info a\x1b[2Jb\nc");
        assert_eq!(
            line(Style::PLAIN, &log),
            "10:35:05  run_1  log info a[2Jb c"
        );
        assert_eq!(
            line(Style::PLAIN, &seen("task\x1b]0;.started", "")),
            "10:35:05  run_1  task]0;.started"
        );
        let failed = seen("tool.error", "web_search no route");
        let colored = Style {
            colored: true,
            ..Style::PLAIN
        };
        assert_eq!(
            line(colored, &failed),
            "\x1b[2m10:35:05\x1b[0m  run_1  \x1b[31mtool.error\x1b[0m web_search no route"
        );
        assert_eq!(activity_words(&failed), "tool.error: web_search no route");
    }

    #[test]
    fn the_last_line_sums_up() {
        let now = time("2026-01-01T10:35:02Z");
        let run = |number: usize, verdict| Tracked {
            verdict,
            ..Tracked::new(RunRef::new(&format!("run_{number}")).unwrap(), None, now)
        };
        let runs = [
            run(1, Some(Verdict::Failed)),
            run(2, Some(Verdict::Succeeded)),
            run(3, None),
            run(4, Some(Verdict::Succeeded)),
        ];
        let runs: Vec<_> = runs.iter().collect();
        let line = closing_line(Style::PLAIN, &runs, Some(38), 1);
        assert_eq!(
            line,
            "4 runs: 1 not polled, 2 succeeded, 1 failed · 38 requests · 1 notification delivered"
        );
    }
}
