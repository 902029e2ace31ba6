//! The output of a wait, and its exit code: the same with and without a daemon.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::time::{Instant, timeout_at};

use super::super::USAGE;
use super::view::{
    Palette, Tracked, activity_line, activity_words, change_line, live_lines, provider_line,
};
use super::{OutputOptions, ResultFormat, StopCondition};
use crate::control::StreamMessage;
use crate::domain::{Event, RunEvent, RunId, Status, Verdict};
use crate::notify::summary;
use crate::output::LiveArea;
use crate::scheduler::{BreakerView, WatchView};
use crate::text::escape_json_for_terminal;

/// What is known of the runs that are waited for, and how it is shown.
pub(super) struct Report {
    pub(super) options: OutputOptions,
    pub(super) runs: BTreeMap<RunId, Tracked>,
    order: Vec<RunId>,
    area: Option<LiveArea>,
    shown_breaker: BreakerView,
    zone: TimeZone,
    /// Until when results wait for a reader that does not read; `None` for as long as it takes.
    reader_limit: Option<Instant>,
    /// The reader did not read in time: no more results are printed.
    unread: bool,
    /// Events of runs that were left out since that was last shown, because standard output was not read.
    left_out: u64,
}

/// How long after the last deadline results wait for a reader that does not read.
const READER_GRACE: Duration = Duration::from_secs(15);

impl Report {
    /// About these runs, in this order. All have their verdict by `deadline`, where that is known: results that are
    /// not read soon after it are given up.
    pub(super) fn new(
        options: OutputOptions,
        runs: Vec<Tracked>,
        deadline: Option<Instant>,
    ) -> Self {
        let area = if options.progress {
            options.screen.err.live_area()
        } else {
            None
        };
        Self {
            options,
            order: runs.iter().map(|run| run.run_id.clone()).collect(),
            runs: runs
                .into_iter()
                .map(|run| (run.run_id.clone(), run))
                .collect(),
            area,
            shown_breaker: BreakerView::default(),
            zone: TimeZone::system(),
            reader_limit: deadline.and_then(|deadline| deadline.checked_add(READER_GRACE)),
            unread: false,
            left_out: 0,
        }
    }

    /// Waits until standard output takes another result, but not for a reader that is late. Cancel-safe.
    pub(super) async fn room(&mut self) {
        let out = self.options.screen.out.clone();
        self.until_read(out.room()).await;
    }

    /// Whether another result can be printed without waiting.
    pub(super) fn has_room(&self) -> bool {
        self.unread || self.options.screen.out.has_room()
    }

    /// Waits until all results are written, but not for a reader that is late, and reports what went wrong. Cancel-safe.
    pub(super) async fn flush(&mut self) {
        let out = self.options.screen.out.clone();
        self.until_read(out.flush()).await;
        if self.unread {
            self.options
                .screen
                .line("error: results are lost, because standard output was not read");
        } else if let Some(error) = self.options.screen.out.result_failed() {
            self.options
                .screen
                .line(&format!("cannot write to standard output: {error}"));
        }
    }

    async fn until_read(&mut self, read: impl Future<Output = ()>) {
        match self.reader_limit {
            _ if self.unread => {}
            Some(limit) => self.unread = timeout_at(limit, read).await.is_err(),
            None => read.await,
        }
    }

    /// Whether there are live lines to draw anew.
    pub(super) fn is_live(&self) -> bool {
        self.area.is_some()
    }

    /// Takes the live lines away.
    pub(super) fn clear(&mut self) {
        self.area = None;
    }

    /// Handles a status, and shows it if it changed.
    pub(super) fn status(&mut self, run_id: &RunId, status: &Status, at: Timestamp) {
        let Some(run) = self.runs.get_mut(run_id) else {
            return;
        };
        if run.status.replace(status.clone()).as_ref() == Some(status) {
            return;
        }
        if self.options.progress && !self.options.screen.is_live() {
            let line = change_line(self.palette(), at, &self.zone, &self.runs[run_id], status);
            self.options.screen.line(&line);
        }
    }

    /// Whether what runs are doing is shown at all.
    pub(super) fn wants_activity(&self) -> bool {
        self.is_live() || self.options.follow
    }

    /// Handles an activity of a run, and shows it if that is requested.
    pub(super) fn activity(&mut self, message: StreamMessage) {
        let seen = match message {
            StreamMessage::Activity(seen) => seen,
            StreamMessage::Missed(missed) => {
                if self.options.follow && self.options.progress {
                    let line = format!("warning: {missed} events came too fast to be shown");
                    self.options.screen.line(&self.palette().warning(&line));
                }
                return;
            }
        };
        let Some(run) = self
            .runs
            .get_mut(&seen.run_id)
            .filter(|run| run.verdict.is_none())
        else {
            return;
        };
        run.activity = Some(activity_words(&seen));
        if !self.options.follow {
            return;
        }
        if self.options.results == ResultFormat::Json {
            if !self.options.screen.out.has_room() {
                self.left_out += 1;
                return;
            }
            let left_out = std::mem::take(&mut self.left_out);
            if left_out > 0 {
                let line = format!(
                    "warning: {left_out} events are left out, because standard output was not read"
                );
                self.options.screen.line(&self.palette().warning(&line));
            }
            self.print(&serde_json::to_string(&seen).expect("the documents have text keys"));
        } else if self.options.progress {
            let line = activity_line(self.palette(), &self.zone, &self.runs[&seen.run_id], &seen);
            self.options.screen.line(&line);
        }
    }

    /// Handles the verdict of `event`, and prints the result.
    pub(super) fn verdict(&mut self, verdict: Verdict, event: &Event, data: &RunEvent) {
        let Some(run) = self.runs.get_mut(&data.run.id) else {
            return;
        };
        run.verdict = Some(verdict);
        self.print_result(verdict, event, data);
    }

    /// Takes in that a run has no verdict by the end of the wait: `verdict` is that of the wait, for the reason `why`.
    pub(super) fn given_up(&mut self, run_id: &RunId, verdict: Verdict, why: &str) {
        let Some(run) = self.runs.get_mut(run_id) else {
            return;
        };
        run.verdict = Some(verdict);
        let word = verdict.as_str();
        match self.options.results {
            ResultFormat::Json => self.print(
                &serde_json::json!({ "run_id": run_id, "verdict": word, "reason": why })
                    .to_string(),
            ),
            ResultFormat::Text => {
                self.print(&format!("{run_id} {}: {why}", self.palette().status(word)))
            }
            ResultFormat::Output | ResultFormat::Nothing => self
                .options
                .screen
                .line(&format!("error: {run_id} {word}: {why}")),
        }
    }

    /// Whether what is waited for is known, after the verdict `given` just now.
    pub(super) fn is_over(&self, until: StopCondition, given: Option<Verdict>) -> bool {
        let bad = given.is_some_and(|verdict| verdict != Verdict::Succeeded);
        (until.first && given.is_some()) || (until.first_bad && bad) || self.going() == 0
    }

    /// How many runs have no verdict.
    pub(super) fn going(&self) -> usize {
        self.runs
            .values()
            .filter(|run| run.verdict.is_none())
            .count()
    }

    /// Shows how things are: live lines, or a plain line when the API's state is another one.
    pub(super) fn show(&mut self, now: Timestamp, views: &[WatchView], breaker: &BreakerView) {
        let palette = self.palette();
        if let Some(area) = &mut self.area {
            let runs: Vec<_> = self.order.iter().map(|id| self.runs[id].clone()).collect();
            // Room is left for the prompt and for the line about the API.
            let most = self.options.screen.rows().saturating_sub(3).max(1);
            let lines = live_lines(palette, now, &runs, views, breaker, most);
            area.show(lines);
        } else if self.options.progress
            && (breaker.outage, &breaker.message)
                != (self.shown_breaker.outage, &self.shown_breaker.message)
        {
            let line = match (
                provider_line(palette, now, breaker),
                self.shown_breaker.outage,
            ) {
                (None, Some(_)) => Some("the API answers again".to_owned()),
                (line, _) => line,
            };
            if let Some(line) = line {
                self.options.screen.line(&line);
            }
        }
        self.shown_breaker.clone_from(breaker);
    }

    /// The exit code for the verdicts there are.
    pub(super) fn verdict_code(&self) -> u8 {
        let worst = Verdict::worst(self.runs.values().filter_map(|run| run.verdict));
        let code = worst.map_or(0, Verdict::exit_code);
        match self.options.screen.out.result_failed() {
            _ if code != 0 => code,
            // A reader that has seen enough closes the pipe; anything else lost a result.
            Some(error) if error != io::ErrorKind::BrokenPipe => USAGE,
            _ if self.unread => USAGE,
            _ => code,
        }
    }

    fn palette(&self) -> Palette {
        Palette {
            coloured: self.options.coloured,
        }
    }

    /// Prints what is known now of one run.
    fn print_result(&self, verdict: Verdict, event: &Event, data: &RunEvent) {
        let human = self.result_line(verdict, event);
        let quiet = !self.options.progress;
        match self.options.results {
            ResultFormat::Text => {
                self.print(&human);
                if self.options.screen.is_live() && !io::stdout().is_terminal() && !quiet {
                    self.options.screen.line(&human);
                }
            }
            ResultFormat::Json => {
                let line =
                    serde_json::json!({ "run_id": data.run.id, "verdict": verdict.as_str() });
                let mut line = line.to_string();
                // The data goes in as text: a JSON value would change the run's own numbers.
                let json = serde_json::to_string(data).expect("an event has only text keys");
                line.truncate(line.len() - 1);
                self.print(&format!(
                    "{line},\"data\":{}}}",
                    escape_json_for_terminal(&json)
                ));
                if !io::stdout().is_terminal() && !quiet {
                    self.options.screen.line(&human);
                }
            }
            ResultFormat::Output => {
                match (verdict, &data.run.output) {
                    // A program gets it as the API sent it. What a terminal gets means the same.
                    (Verdict::Succeeded, Some(output)) if io::stdout().is_terminal() => {
                        self.print(&escape_json_for_terminal(output.get()));
                    }
                    (Verdict::Succeeded, Some(output)) => self.print(output.get()),
                    (Verdict::Succeeded, None)
                        if data.truncated.iter().any(|name| name == "output") =>
                    {
                        let what = "is left out: it is too large, nested too deeply, or not JSON that programs can read";
                        self.options
                            .screen
                            .line(&format!("warning: the output of {} {what}", data.run.id));
                    }
                    _ => {}
                }
                if !quiet {
                    self.options.screen.line(&human);
                }
            }
            ResultFormat::Nothing => {}
        }
    }

    fn result_line(&self, verdict: Verdict, event: &Event) -> String {
        let summary = summary::of(event);
        let mut line = summary.title.replacen(
            verdict.as_str(),
            &self.palette().status(verdict.as_str()),
            1,
        );
        for detail in &summary.lines {
            line.push_str("\n  ");
            line.push_str(detail);
        }
        line
    }

    /// Prints to standard output. One that cannot be written is no reason to stop: the messages to others matter all
    /// the same.
    fn print(&self, text: &str) {
        if !self.unread {
            self.options.screen.out.print(format!("{text}\n"));
        }
    }
}
