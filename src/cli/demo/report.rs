//! What the demo observed, for people and programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::domain::Verdict;
use crate::style::{Look, Sign, Style, pad, pad_left, width};

/// What was observed about one run.
#[derive(Debug, Clone)]
pub(super) struct RunReport {
    pub(super) id: &'static str,
    pub(super) name: &'static str,
    /// The verdict that it must get.
    pub(super) verdict: Verdict,
    /// When it ended, counted from the start of the demo.
    pub(super) ended_after: Duration,
    /// Attempts that the daemon made to deliver its end.
    pub(super) attempts: u32,
    pub(super) is_stored_as_delivered: bool,
    /// The first message with its verdict that the receiver accepted.
    pub(super) notified: Option<Notified>,
}

/// A message that arrived.
#[derive(Debug, Clone)]
pub(super) struct Notified {
    /// From the end of the run to the arrival.
    pub(super) delay: Duration,
    /// The data of its event.
    pub(super) data: Value,
}

/// What was observed in all.
#[derive(Debug, Clone)]
pub(super) struct DemoReport {
    pub(super) runs: Vec<RunReport>,
    /// Messages that the receiver got.
    pub(super) messages: usize,
    /// Those of them that came again under the same ID.
    pub(super) repeated: usize,
    /// Those of them that are not about the end of a run as it was, or not signed.
    pub(super) wrong: usize,
    /// Polls that the API got.
    pub(super) requests: usize,
    /// Daemons that ended with SIGKILL.
    pub(super) kills: u32,
    /// How many polls got each status.
    pub(super) answers: BTreeMap<u16, u32>,
    /// How long the receiver was down.
    pub(super) down_for: Option<Duration>,
}

impl DemoReport {
    fn delivered(&self) -> usize {
        let has_arrived = |run: &&RunReport| run.notified.is_some();
        self.runs.iter().filter(has_arrived).count()
    }

    fn lost(&self) -> usize {
        self.runs.len() - self.delivered()
    }

    fn answers(&self, status: u16) -> u32 {
        self.answers.get(&status).copied().unwrap_or_default()
    }

    /// Whether all trouble was met, and every run's end arrived once and right all the same.
    pub(super) fn is_as_it_must_be(&self) -> bool {
        let is_trouble_met = self.kills > 0
            && self.down_for.is_some()
            && self.answers(429) > 0
            && self.answers(502) > 0
            && self.runs.iter().any(|run| run.attempts > 1);
        let is_stored = self.runs.iter().all(|run| run.is_stored_as_delivered);
        is_trouble_met && is_stored && self.lost() == 0 && self.wrong == 0
    }

    /// From the ends of runs to their messages, the shortest first.
    fn delays(&self) -> Vec<Duration> {
        let notified = self.runs.iter().filter_map(|run| run.notified.as_ref());
        let mut delays: Vec<_> = notified.map(|notified| notified.delay).collect();
        delays.sort();
        delays
    }

    fn median(&self) -> Option<Duration> {
        let delays = self.delays();
        let upper = *delays.get(delays.len() / 2)?;
        Some(if delays.len().is_multiple_of(2) {
            (delays[delays.len() / 2 - 1] + upper) / 2
        } else {
            upper
        })
    }

    /// A line of JSON for each run as `wait --json` has it, with `notified_after_ms`, then one that sums up.
    pub(super) fn json(&self) -> String {
        let mut text = String::new();
        let line = |text: &mut String, value: Value| {
            writeln!(text, "{value}").expect("a String takes all text");
        };
        for run in &self.runs {
            let Some(notified) = &run.notified else {
                continue;
            };
            line(
                &mut text,
                json!({
                    "run_id": run.id,
                    "verdict": run.verdict.as_str(),
                    "data": notified.data,
                    "notified_after_ms": millis(notified.delay),
                    "attempts": run.attempts,
                }),
            );
        }
        line(
            &mut text,
            json!({
                "runs": self.runs.len(),
                "messages": self.messages,
                "requests": self.requests,
                "delivered": self.delivered(),
                "lost": self.lost(),
                "wrong": self.wrong,
                "repeated": self.repeated,
                "kills": self.kills,
                "answers_429": self.answers(429),
                "answers_502": self.answers(502),
                "receiver_down_ms": self.down_for.map(millis),
                "median_ms": self.median().map(millis),
                "worst_ms": self.delays().last().copied().map(millis),
                "as_it_must_be": self.is_as_it_must_be(),
            }),
        );
        text
    }

    /// A table of the runs, the delays, and what was survived; no line is wider than `columns`, 40 or more.
    pub(super) fn text(&self, style: Style, columns: usize) -> String {
        let mut lines = self.table(style, columns);
        lines.push(String::new());
        if let (Some(median), Some(worst)) = (self.median(), self.delays().last()) {
            let (median, worst) = (delay_text(median), delay_text(*worst));
            let line = format!("From end to notification: median {median}, worst {worst}");
            lines.extend(wrapped(&line, columns));
        }
        lines.extend(self.survived(style, columns));
        let mut text = String::new();
        for line in lines {
            writeln!(text, "{}", style.cut(&line, columns)).expect("a String takes all text");
        }
        text
    }

    fn table(&self, style: Style, columns: usize) -> Vec<String> {
        let names = self.runs.iter().map(|run| width(run.name));
        let name_width = names.max().unwrap_or_default();
        let is_wide = columns >= 60;
        let row = |glyph: &str, name: &str, verdict: &str, after: &str, notified: &str| {
            let after = if is_wide {
                format!("{}  ", pad_left(after, 6))
            } else {
                String::new()
            };
            format!(
                "{glyph} {}  {}  {after}{notified}",
                pad(name, name_width),
                pad(verdict, 9)
            )
        };
        let head = row(" ", "NAME", "VERDICT", "ENDED", "NOTIFIED");
        let rows = self.runs.iter().map(|run| {
            let (look, word) = match run.notified {
                Some(_) => (Look::of(run.verdict.as_str()), run.verdict.as_str()),
                None => (Look::Missing, "lost"),
            };
            row(
                &style.glyph(look),
                run.name,
                &style.as_look(look, word),
                &format!("{:.1} s", run.ended_after.as_secs_f64()),
                &notified_text(run, is_wide),
            )
        });
        std::iter::once(style.dim(&head)).chain(rows).collect()
    }

    /// What was survived and what came of it: one line, or two where it does not fit.
    fn survived(&self, style: Style, columns: usize) -> Vec<String> {
        let times = if style.unicode { "×" } else { "x" };
        let mut trouble = vec![
            format!("{} kill -9", self.kills),
            format!("{} {times} 429", self.answers(429)),
            format!("{} {times} 502", self.answers(502)),
        ];
        if let Some(down_for) = self.down_for {
            trouble.push(format!("receiver down for {}", seconds_text(down_for)));
        }
        let count = |count: usize, word: &str| match count {
            0 => format!("none {word}"),
            count => format!("{count} {word}"),
        };
        let mut outcome = format!(
            "{} of {} delivered, {}, {}",
            self.delivered(),
            self.runs.len(),
            count(self.lost(), "lost"),
            count(self.wrong, "wrong")
        );
        if self.repeated > 0 {
            outcome.push_str(&format!(", {} repeated", self.repeated));
        }
        let (mark, what) = if self.is_as_it_must_be() {
            (Sign::Good, outcome)
        } else {
            (Sign::Bad, format!("{outcome}: not as it must be"))
        };
        let paint = |line: String| match mark {
            Sign::Good => style.good(&line),
            Sign::Warning | Sign::Bad => style.bad(&line),
        };
        let trouble = trouble.join(style.separator());
        let line = format!("{trouble}: {} {}", style.mark(mark), paint(what.clone()));
        if width(&line) <= columns {
            return vec![line];
        }
        let mut lines = wrapped(&format!("{trouble}:"), columns);
        let room = columns.saturating_sub(2);
        let outcome = wrapped(&what, room).into_iter().map(paint);
        lines.extend(outcome.enumerate().map(|(number, line)| match number {
            0 => format!("{} {line}", style.mark(mark)),
            _ => format!("  {line}"),
        }));
        lines
    }
}

fn notified_text(run: &RunReport, is_wide: bool) -> String {
    let Some(notified) = &run.notified else {
        return "never".to_owned();
    };
    let delay = delay_text(notified.delay);
    match run.attempts {
        _ if !is_wide => delay,
        0 | 1 => format!("after {delay}"),
        attempts => format!("after {delay}, attempt {attempts}"),
    }
}

/// Breaks a line between words so that it fits.
fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is a first one");
        if line.is_empty() {
            line.push_str(word);
        } else if width(line) + 1 + width(word) <= columns {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// A delay as exact as is of use: `6 ms`, `3.4 s`.
pub(super) fn delay_text(delay: Duration) -> String {
    match delay.as_millis() {
        0 => "<1 ms".to_owned(),
        millis @ 1..1000 => format!("{millis} ms"),
        _ => format!("{:.1} s", delay.as_secs_f64()),
    }
}

/// Seconds with one digit after the point, unless that is 0.
fn seconds_text(time: Duration) -> String {
    let text = format!("{:.1}", time.as_secs_f64());
    format!("{} s", text.strip_suffix(".0").unwrap_or(&text))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(
        name: &'static str,
        verdict: Verdict,
        ended_ms: u64,
        delay_ms: u64,
        attempts: u32,
    ) -> RunReport {
        RunReport {
            id: "run_1",
            name,
            verdict,
            ended_after: Duration::from_millis(ended_ms),
            attempts,
            is_stored_as_delivered: true,
            notified: Some(Notified {
                delay: Duration::from_millis(delay_ms),
                data: json!({}),
            }),
        }
    }

    fn report() -> DemoReport {
        DemoReport {
            runs: vec![
                run("outreach mails", Verdict::Canceled, 3000, 6, 1),
                run("weekly report", Verdict::Succeeded, 5001, 3412, 6),
                run("market research", Verdict::Failed, 6502, 1530, 2),
                run("late arrival", Verdict::Succeeded, 9000, 0, 1),
            ],
            messages: 4,
            repeated: 0,
            wrong: 0,
            requests: 52,
            kills: 1,
            answers: BTreeMap::from([(200, 50), (429, 1), (502, 1)]),
            down_for: Some(Duration::from_millis(4003)),
        }
    }

    #[test]
    fn the_end_fits_every_terminal() {
        for columns in [40, 80, 120, 200] {
            let text = report().text(Style::PLAIN, columns);
            assert!(text.lines().all(|line| width(line) <= columns), "{text}");
        }
        insta::assert_snapshot!(report().text(Style::PLAIN, 40), @r"
          NAME             VERDICT    NOTIFIED
        ⊘ outreach mails   canceled   6 ms
        ✓ weekly report    succeeded  3.4 s
        ✗ market research  failed     1.5 s
        ✓ late arrival     succeeded  <1 ms

        From end to notification: median 768 ms,
        worst 3.4 s
        1 kill -9 · 1 × 429 · 1 × 502 · receiver
        down for 4 s:
        ✓ 4 of 4 delivered, none lost, none
          wrong
        ");
        insta::assert_snapshot!(report().text(Style::PLAIN, 80), @r"
          NAME             VERDICT     ENDED  NOTIFIED
        ⊘ outreach mails   canceled    3.0 s  after 6 ms
        ✓ weekly report    succeeded   5.0 s  after 3.4 s, attempt 6
        ✗ market research  failed      6.5 s  after 1.5 s, attempt 2
        ✓ late arrival     succeeded   9.0 s  after <1 ms

        From end to notification: median 768 ms, worst 3.4 s
        1 kill -9 · 1 × 429 · 1 × 502 · receiver down for 4 s:
        ✓ 4 of 4 delivered, none lost, none wrong
        ");
        insta::assert_snapshot!(report().text(Style::PLAIN, 120), @r"
          NAME             VERDICT     ENDED  NOTIFIED
        ⊘ outreach mails   canceled    3.0 s  after 6 ms
        ✓ weekly report    succeeded   5.0 s  after 3.4 s, attempt 6
        ✗ market research  failed      6.5 s  after 1.5 s, attempt 2
        ✓ late arrival     succeeded   9.0 s  after <1 ms

        From end to notification: median 768 ms, worst 3.4 s
        1 kill -9 · 1 × 429 · 1 × 502 · receiver down for 4 s: ✓ 4 of 4 delivered, none lost, none wrong
        ");
        insta::assert_snapshot!(report().text(Style::PLAIN, 200), @r"
          NAME             VERDICT     ENDED  NOTIFIED
        ⊘ outreach mails   canceled    3.0 s  after 6 ms
        ✓ weekly report    succeeded   5.0 s  after 3.4 s, attempt 6
        ✗ market research  failed      6.5 s  after 1.5 s, attempt 2
        ✓ late arrival     succeeded   9.0 s  after <1 ms

        From end to notification: median 768 ms, worst 3.4 s
        1 kill -9 · 1 × 429 · 1 × 502 · receiver down for 4 s: ✓ 4 of 4 delivered, none lost, none wrong
        ");
    }

    #[test]
    fn what_is_not_as_it_must_be_is_reported_and_fails() {
        assert!(report().is_as_it_must_be());
        type Spoil = fn(&mut DemoReport);
        let spoil: [(&str, Spoil); 8] = [
            ("1 lost", |report| report.runs[1].notified = None),
            ("1 wrong", |report| report.wrong = 1),
            ("0 kill -9", |report| report.kills = 0),
            ("0 × 429", |report| {
                report.answers.retain(|status, _| *status != 429)
            }),
            ("0 × 502", |report| {
                report.answers.retain(|status, _| *status != 502)
            }),
            ("not as it must be", |report| report.down_for = None),
            ("not as it must be", |report| {
                report.runs[0].is_stored_as_delivered = false;
            }),
            ("not as it must be", |report| {
                report.runs.iter_mut().for_each(|run| run.attempts = 1);
            }),
        ];
        for (shown, spoil) in spoil {
            let mut report = report();
            spoil(&mut report);
            let text = report.text(Style::PLAIN, 200);
            assert!(
                text.contains(shown) && text.contains("not as it must be"),
                "{text}"
            );
            assert!(!report.is_as_it_must_be());
            let last: Value = serde_json::from_str(report.json().lines().last().unwrap()).unwrap();
            assert_eq!(last["as_it_must_be"], false);
        }
    }

    #[test]
    fn the_median_is_that_of_the_delays() {
        assert_eq!(report().median(), Some(Duration::from_millis(768)));
        let mut three = report();
        three.runs.pop();
        assert_eq!(three.median(), Some(Duration::from_millis(1530)));
        three.runs.clear();
        assert_eq!(three.median(), None);
    }
}
