//! What `wait` shows: lines for people, drawn from what is known of each run. No I/O.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::control::ActivityResponse;
use crate::domain::{Activity, RunId, Status, Verdict};
use crate::scheduler::{BreakerView, WatchView};
use crate::text::{humanize, one_line};

/// Longest name or status that a line shows, in characters.
const MAX_WORD_CHARS: usize = 40;

/// How texts are coloured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Palette {
    pub(super) coloured: bool,
}

impl Palette {
    fn paint(self, code: &str, text: &str) -> String {
        if self.coloured {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// A status word: green for good, red for bad, yellow for what needs a look, plain otherwise.
    pub(super) fn status(self, word: &str) -> String {
        let code = match word {
            "succeeded" => "32",
            "failed" | "timed_out" | "unreachable" | "not_found" => "31",
            "canceled" => "33",
            "running" => "36",
            _ => return one_line(word, MAX_WORD_CHARS),
        };
        self.paint(code, word)
    }

    pub(super) fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }

    pub(super) fn bad(self, text: &str) -> String {
        self.paint("31", text)
    }

    pub(super) fn warning(self, text: &str) -> String {
        self.paint("33", text)
    }
}

/// What is known of one run.
#[derive(Debug, Clone)]
pub(super) struct Tracked {
    pub(super) run_id: RunId,
    pub(super) name: Option<String>,
    pub(super) added_at: Timestamp,
    pub(super) status: Option<Status>,
    /// What it was last seen doing, in few words, harmless on a terminal.
    pub(super) activity: Option<String>,
    pub(super) verdict: Option<Verdict>,
}

impl Tracked {
    /// The run for people: its ID, and its name where it has one.
    pub(super) fn label(&self) -> String {
        match &self.name {
            Some(name) => format!("{} ({})", self.run_id, one_line(name, MAX_WORD_CHARS)),
            None => self.run_id.to_string(),
        }
    }
}

/// The plain line for a change of status.
pub(super) fn change_line(
    palette: Palette,
    at: Timestamp,
    zone: &TimeZone,
    run: &Tracked,
    status: &Status,
) -> String {
    let clock = at
        .to_zoned_datetime(zone.clone())
        .strftime("%H:%M:%S")
        .to_string();
    format!(
        "{} {} {}",
        palette.faint(&clock),
        run.label(),
        palette.status(status.as_str())
    )
}

/// The plain line for an event of a run.
pub(super) fn activity_line(
    palette: Palette,
    zone: &TimeZone,
    run: &Tracked,
    seen: &ActivityResponse,
) -> String {
    let clock = seen
        .at
        .to_zoned_datetime(zone.clone())
        .strftime("%H:%M:%S")
        .to_string();
    let kind = one_line(&seen.activity, MAX_WORD_CHARS);
    let kind = if Activity::is_bad(&seen.activity) {
        palette.bad(&kind)
    } else {
        palette.faint(&kind)
    };
    let line = format!(
        "{} {} {kind} {}",
        palette.faint(&clock),
        run.label(),
        Activity::summary(seen.data.as_deref())
    );
    line.trim_end().to_owned()
}

/// An event of a run in few words.
pub(super) fn activity_words(seen: &ActivityResponse) -> String {
    let kind = one_line(&seen.activity, MAX_WORD_CHARS);
    match Activity::summary(seen.data.as_deref()) {
        summary if summary.is_empty() => kind,
        summary => format!("{kind}: {summary}"),
    }
}

/// The plain line for a change in how the API does.
pub(super) fn provider_line(
    palette: Palette,
    now: Timestamp,
    view: &BreakerView,
) -> Option<String> {
    let what = view.outage_text()?;
    let wait = view
        .retry_at
        .map(|at| format!("; asking again in {}", until(now, at)))
        .unwrap_or_default();
    Some(palette.warning(&format!("{what}{wait}")))
}

/// The live lines: one per run that is going, as many as fit, then what is left.
pub(super) fn live_lines(
    palette: Palette,
    now: Timestamp,
    runs: &[Tracked],
    views: &[WatchView],
    breaker: &BreakerView,
    most: usize,
) -> Vec<String> {
    let going: Vec<_> = runs.iter().filter(|run| run.verdict.is_none()).collect();
    let shown = if going.len() > most {
        most.saturating_sub(1)
    } else {
        going.len()
    };
    let shown_runs: Vec<_> = going[..shown]
        .iter()
        .map(|run| (*run, views.iter().find(|view| view.run_id == run.run_id)))
        .collect();
    let label_width = shown_runs
        .iter()
        .map(|(run, _)| run.label().chars().count())
        .max()
        .unwrap_or(0);
    let word_widths = shown_runs
        .iter()
        .map(|(run, view)| status_word(run, *view).chars().count());
    let widths = (
        label_width,
        word_widths.max().unwrap_or(0).max(LEAST_WORD_WIDTH),
    );
    let mut lines: Vec<String> = shown_runs
        .iter()
        .map(|(run, view)| live_line(palette, now, run, *view, breaker, widths))
        .collect();
    if going.len() > shown {
        lines.push(palette.faint(&format!("… and {} more", going.len() - shown)));
    }
    lines.extend(provider_line(palette, now, breaker));
    lines
}

/// The width of the column of statuses, where these are the usual ones.
const LEAST_WORD_WIDTH: usize = 10;

/// How a run is, in a word as it is shown.
fn status_word(run: &Tracked, view: Option<&WatchView>) -> String {
    match (&run.status, view) {
        (_, Some(view)) if view.missing_since.is_some() => "not there yet".to_owned(),
        (Some(status), _) => one_line(status.as_str(), MAX_WORD_CHARS),
        (None, _) => "asking".to_owned(),
    }
}

fn live_line(
    palette: Palette,
    now: Timestamp,
    run: &Tracked,
    view: Option<&WatchView>,
    breaker: &BreakerView,
    (width, word_width): (usize, usize),
) -> String {
    let label = run.label();
    let word = status_word(run, view);
    // Padding goes after the word: colour codes would count as width.
    let padding = " ".repeat(word_width.saturating_sub(word.chars().count()));
    let age = humanize(now.duration_since(run.added_at).unsigned_abs());
    let next = match view {
        Some(view) if view.polling => palette.faint("  asking now"),
        Some(view) if breaker.outage.is_none() => {
            palette.faint(&format!("  next poll in {}", until(now, view.next_poll_at)))
        }
        _ => String::new(),
    };
    let activity = run
        .activity
        .as_ref()
        .map(|words| palette.faint(&format!("  {words}")))
        .unwrap_or_default();
    format!(
        "{label:<width$}  {}{padding}  {age:>7}{next}{activity}",
        palette.status(&word)
    )
}

/// The time from `now` to `at` in whole seconds, rounded up.
fn until(now: Timestamp, at: Timestamp) -> String {
    let wait = std::time::Duration::try_from(at.duration_since(now)).unwrap_or_default();
    let seconds = wait.as_secs() + u64::from(wait.subsec_millis() > 0);
    humanize(std::time::Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::RunState;
    use crate::scheduler::Outage;

    const PLAIN: Palette = Palette { coloured: false };

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn run(id: &str, name: Option<&str>, status: Option<Status>) -> Tracked {
        Tracked {
            run_id: RunId::new(id).unwrap(),
            name: name.map(ToOwned::to_owned),
            added_at: time("2026-01-01T00:00:00Z"),
            status,
            activity: None,
            verdict: None,
        }
    }

    #[test]
    fn live_lines_fit_and_say_what_happens_next() {
        let now = time("2026-01-01T00:01:05Z");
        let runs = [
            run(
                "run_1",
                Some("nightly\x1b[31m report"),
                Some(Status::from(RunState::Running)),
            ),
            run("run_22", None, Some(Status::read(None, "re\x1b]0;queued"))),
            run("run_3", None, None),
        ];
        let view = WatchView {
            run_id: runs[0].run_id.clone(),
            status: runs[0].status.clone(),
            polls: 7,
            missing_since: None,
            polling: false,
            next_poll_at: time("2026-01-01T00:01:07.200Z"),
            last_error: None,
        };
        let views = [
            view.clone(),
            WatchView {
                run_id: runs[1].run_id.clone(),
                polling: true,
                ..view
            },
        ];
        let lines = live_lines(PLAIN, now, &runs, &views, &BreakerView::default(), 2);
        insta::assert_snapshot!(lines.join("\n"), @r"
        run_1 (nightly[31m report)  running       1m 5s  next poll in 3s
        … and 2 more
        ");
        let outage = BreakerView {
            outage: Some(Outage::Failing),
            message: "502 Bad Gateway".to_owned(),
            retry_at: Some(time("2026-01-01T00:01:13Z")),
            ever_answered: true,
            reached: true,
            failures: 3,
        };
        let lines = live_lines(PLAIN, now, &runs, &views, &outage, 10);
        insta::assert_snapshot!(lines.join("\n"), @r"
        run_1 (nightly[31m report)  running        1m 5s
        run_22                      re]0;queued    1m 5s  asking now
        run_3                       asking         1m 5s
        no usable answer: 502 Bad Gateway; asking again in 8s
        ");
    }

    #[test]
    fn an_event_is_one_harmless_line() {
        let seen = |activity: &str, data: &str| ActivityResponse {
            run_id: RunId::new("run_1").unwrap(),
            at: time("2026-01-01T10:35:05.9Z"),
            activity: activity.to_owned(),
            data: Some(serde_json::value::RawValue::from_string(data.to_owned()).unwrap()),
        };
        let mut run = run("run_1", None, Some(Status::from(RunState::Running)));
        let line = |palette, run: &_, seen: &_| activity_line(palette, &TimeZone::UTC, run, seen);
        let log = seen("log", r#"{"level":"info","message":"a\u001b[2Jb\nc"}"#);
        assert_eq!(line(PLAIN, &run, &log), "10:35:05 run_1 log info a[2Jb c");
        assert_eq!(
            line(PLAIN, &run, &seen("task\x1b]0;.started", "{}")),
            "10:35:05 run_1 task]0;.started"
        );
        let failed = seen("tool.error", r#"{"tool":"web_search","error":"no route"}"#);
        let shown = line(Palette { coloured: true }, &run, &failed);
        assert_eq!(
            shown,
            "\x1b[2m10:35:05\x1b[0m run_1 \x1b[31mtool.error\x1b[0m web_search no route"
        );
        run.activity = Some(activity_words(&failed));
        let lines = live_lines(
            PLAIN,
            time("2026-01-01T00:01:05Z"),
            &[run],
            &[],
            &BreakerView::default(),
            2,
        );
        assert_eq!(
            lines,
            ["run_1  running       1m 5s  tool.error: web_search no route"]
        );
    }

    #[test]
    fn a_change_is_one_plain_line() {
        let run = run("run_1", Some("nightly"), None);
        let line = change_line(
            PLAIN,
            time("2026-01-01T10:35:05.9Z"),
            &TimeZone::UTC,
            &run,
            &Status::from(RunState::Running),
        );
        assert_eq!(line, "10:35:05 run_1 (nightly) running");
        let coloured = Palette { coloured: true };
        let line = change_line(
            coloured,
            time("2026-01-01T10:35:05Z"),
            &TimeZone::UTC,
            &run,
            &Status::from(RunState::Running),
        );
        assert_eq!(
            line,
            "\x1b[2m10:35:05\x1b[0m run_1 (nightly) \x1b[36mrunning\x1b[0m"
        );
    }
}
