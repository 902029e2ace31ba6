//! The output of a wait, and its exit code: the same with and without a daemon.

mod progress;
mod results;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::io::IsTerminal as _;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::time::Instant;

use self::progress::{LIFE, ProviderLine};
use super::sentences::{activity_line, activity_words, change_line, closing_line, verdict_words};
use super::tracked::Tracked;
use super::view::{RowLayout, ended_row};
use super::{OutputOptions, ResultFormat, StopCondition};
use crate::cli::expectation::usual_text;
use crate::cli::phrases::{cause, counted};
use crate::control::StreamMessage;
use crate::domain::{Event, RunEvent, RunRef, RunState, Status, Verdict};
use crate::notify::summary::verdict_counts;
use crate::output::LiveArea;
use crate::style::{Sign, Style};
use crate::text::{escape_json_for_terminal, first_lines, one_line};

/// What is known of the runs that are waited for, and how it is shown.
pub(super) struct WaitReport {
    pub(super) options: OutputOptions,
    pub(super) runs: BTreeMap<RunRef, Tracked>,
    order: Vec<RunRef>,
    area: Option<LiveArea>,
    zone: TimeZone,
    began: Instant,
    /// The number of the next frame.
    step: usize,
    provider: ProviderLine,
    /// When a line shows life without a terminal, if there is no other until then.
    life_at: Instant,
    /// Unknown statuses that were shown as such.
    unknown: BTreeSet<String>,
    /// Pauses and failures of the API that are over.
    pub(super) survived: (usize, usize),
    /// What did not fit into the row of a run that has ended, in full.
    cut: Vec<String>,
    /// Until when results wait for a reader that does not read; `None` for as long as it takes.
    reader_limit: Option<Instant>,
    /// The reader did not read in time: no more results are printed.
    unread: bool,
    /// Events of runs that were left out since that was last shown, because standard output was not read.
    left_out: u64,
}

/// How long after the last deadline results wait for a reader that does not read.
const READER_GRACE: Duration = Duration::from_secs(15);

/// Longest text about the end of a run, in characters.
const MAX_DETAIL_CHARS: usize = 300;

/// Most unknown statuses that are pointed out.
const MOST_UNKNOWN: usize = 100;

/// Most texts that are shown in full after the end, because their rows had no room for them.
const MOST_CUT: usize = 10;

impl WaitReport {
    /// About these runs, in this order. All have their verdict by `deadline`, where that is known: results that are
    /// not read soon after it are given up.
    pub(super) fn new(
        options: OutputOptions,
        mut runs: Vec<Tracked>,
        deadline: Option<Instant>,
    ) -> Self {
        let area = if options.progress {
            options.screen.err.live_area()
        } else {
            None
        };
        Tracked::label_all(&mut runs);
        let now = Instant::now();
        Self {
            options,
            order: runs.iter().map(|run| run.run_id.clone()).collect(),
            runs: runs
                .into_iter()
                .map(|run| (run.run_id.clone(), run))
                .collect(),
            area,
            zone: TimeZone::system(),
            began: now,
            step: 0,
            provider: ProviderLine::default(),
            life_at: now + LIFE,
            unknown: BTreeSet::new(),
            survived: (0, 0),
            cut: Vec::new(),
            reader_limit: deadline.and_then(|deadline| deadline.checked_add(READER_GRACE)),
            unread: false,
            left_out: 0,
        }
    }

    /// Shows a line to people, above the live ones.
    pub(super) fn say(&mut self, line: &str) {
        self.life_at = Instant::now() + LIFE;
        self.options.screen.line(line);
    }

    /// When something is to be shown although nothing happens; `None` where live lines are drawn anew all the time, or
    /// nothing is shown.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        let again = self.provider.again.map(|(at, _)| at);
        (self.options.progress && !self.is_live())
            .then(|| again.map_or(self.life_at, |again| again.min(self.life_at)))
    }

    /// Whether the next [`WaitReport::show`] needs to know how each run is.
    pub(super) fn wants_views(&self) -> bool {
        self.is_live() || (self.options.progress && self.life_at <= Instant::now())
    }

    fn runs_in_order(&self) -> Vec<&Tracked> {
        self.order.iter().map(|id| &self.runs[id]).collect()
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
    pub(super) fn status(&mut self, run_id: &RunRef, status: &Status, at: Timestamp) {
        let Some(run) = self.runs.get_mut(run_id) else {
            return;
        };
        if run.status.replace(status.clone()).as_ref() == Some(status) {
            return;
        }
        if self.options.changes && Verdict::of_status(status).is_none() {
            let line = serde_json::json!({
                "provider": run_id.provider(), "run_id": run_id.id(), "state": status.state(),
                "status": status.as_str(), "at": at,
            });
            self.print(&escape_json_for_terminal(&line.to_string()));
        }
        if !self.options.progress {
            return;
        }
        if status.state() == RunState::Unknown
            && self.unknown.len() < MOST_UNKNOWN
            && self.unknown.insert(status.as_str().to_owned())
        {
            let line = format!(
                "{} {}: the status {:?} is unknown; it does not end the wait",
                self.style().mark(Sign::Warning),
                self.runs[run_id].full_label(),
                one_line(status.as_str(), MAX_DETAIL_CHARS),
            );
            self.say(&line);
        }
        // The end is shown with its verdict.
        if !self.options.screen.is_live() && Verdict::of_status(status).is_none() {
            let (style, run) = (self.style(), &self.runs[run_id]);
            let line = change_line(style, at, &self.zone, run, &style.state(status.as_str()));
            self.say(&line);
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
                    self.say(&self.style().warning(&line));
                }
                return;
            }
        };
        let Some(run) = self
            .runs
            .get_mut(&seen.run())
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
                self.say(&self.style().warning(&line));
            }
            self.print(&serde_json::to_string(&seen).expect("the documents have text keys"));
        } else if self.options.progress {
            let line = activity_line(self.style(), &self.zone, &self.runs[&seen.run()], &seen);
            self.say(&line);
        }
    }

    /// Handles the verdict of `event`, and prints the result.
    pub(super) fn verdict(&mut self, verdict: Verdict, event: &Event, data: &RunEvent) {
        let Some(run) = self.runs.get_mut(&data.run.id) else {
            return;
        };
        run.verdict = Some(verdict);
        if !matches!(verdict, Verdict::Unreachable | Verdict::TimedOut) {
            run.survive();
        }
        let ran = data.timing.ran_ms.map(Duration::from_millis);
        let error = data.run.error_message.as_deref().map(|error| {
            let lines = first_lines(error, 3, MAX_DETAIL_CHARS);
            lines.join(" ")
        });
        let detail = error
            .or_else(|| {
                data.reason
                    .as_deref()
                    .map(|why| one_line(&cause(why), MAX_DETAIL_CHARS))
            })
            .or_else(|| {
                data.watch
                    .late
                    .then(|| "ended while it was not watched".to_owned())
            })
            .or_else(|| run.survived.clone())
            .or_else(|| {
                let usual = data.timing.usual();
                usual
                    .filter(|_| verdict == Verdict::Succeeded && ran.is_some())
                    .map(|usual| usual_text(&usual))
            })
            .unwrap_or_default();
        let is_shown = self.options.results == ResultFormat::Text && io::stdout().is_terminal();
        let row = self.end_row(&data.run.id, verdict, event.timestamp, ran, &detail);
        match row {
            _ if !self.options.progress => {}
            Some(row) if is_shown => self.print(&row),
            Some(_) if self.options.results == ResultFormat::Json && io::stdout().is_terminal() => {
            }
            Some(row) => self.say(&row),
            None => {
                let words = verdict_words(self.style(), verdict, ran, &detail);
                let run = &self.runs[&data.run.id];
                let line = change_line(self.style(), event.timestamp, &self.zone, run, &words);
                self.say(&line);
            }
        }
        if !(is_shown && self.is_live()) {
            self.print_result(verdict, event, data);
        }
    }

    /// The row of a run that has ended, on a terminal.
    fn end_row(
        &mut self,
        run_id: &RunRef,
        verdict: Verdict,
        at: Timestamp,
        ran: Option<Duration>,
        detail: &str,
    ) -> Option<String> {
        self.area.as_ref()?;
        let runs = self.runs_in_order();
        let layout = RowLayout::new(&runs, self.options.screen.columns());
        let run = &self.runs[run_id];
        let watched = Duration::try_from(at.duration_since(run.added_at)).unwrap_or_default();
        let took = ran.unwrap_or(watched);
        let (row, is_cut) = ended_row(self.style(), layout, run, verdict, took, detail);
        if is_cut && verdict != Verdict::Succeeded && self.cut.len() < MOST_CUT {
            self.cut.push(format!("{}: {detail}", run.label));
        }
        Some(row)
    }

    /// Shows how many runs of the group have which verdict, if they are a group.
    pub(super) fn sum_up_group(&mut self) {
        let Some(group) = self
            .options
            .group
            .as_ref()
            .filter(|_| self.options.progress)
        else {
            return;
        };
        let given = self.runs.values().filter_map(|run| run.verdict);
        let line = format!(
            "{}: {}",
            one_line(group, MAX_DETAIL_CHARS),
            verdict_counts(given, self.runs.len())
        );
        self.options.screen.line(&line);
    }

    /// Sums the wait up, after what did not fit into the rows of the runs that have ended.
    pub(super) fn sum_up(&mut self, requests: Option<u64>, delivered: usize) {
        for text in std::mem::take(&mut self.cut) {
            self.options.screen.line(&text);
        }
        let mut line = closing_line(self.style(), &self.runs_in_order(), requests, delivered);
        let (pauses, failures) = self.survived;
        let survived: Vec<_> = [(pauses, "pause", "pauses"), (failures, "outage", "outages")]
            .into_iter()
            .filter(|(count, ..)| *count > 0)
            .map(|(count, one, many)| counted(count, one, many))
            .collect();
        if !survived.is_empty() {
            line.push_str(self.style().separator());
            line.push_str(&format!("{} survived", survived.join(" and ")));
        }
        self.options.screen.line(&line);
    }

    /// Takes in that a run has no verdict by the end of the wait: `verdict` is that of the wait, for the reason `why`.
    pub(super) fn given_up(&mut self, run_id: &RunRef, verdict: Verdict, why: &str) {
        let Some(run) = self.runs.get_mut(run_id) else {
            return;
        };
        run.verdict = Some(verdict);
        let word = verdict.as_str();
        match self.options.results {
            ResultFormat::Json => self.print(
                &serde_json::json!({
                    "provider": run_id.provider(), "run_id": run_id.id(), "verdict": word, "reason": why,
                })
                    .to_string(),
            ),
            ResultFormat::Text => self.print(&format!(
                "{run_id} {}: {why}",
                self.options.result_style.state(word)
            )),
            ResultFormat::Output | ResultFormat::Nothing => self
                .options
                .screen
                .line(&format!("error: {run_id} {word}: {why}")),
        }
    }

    /// Whether what is waited for is known, after the verdict `given` just now.
    pub(super) fn is_over(&self, until: StopCondition, given: Option<Verdict>) -> bool {
        let bad = given.is_some_and(|verdict| verdict != Verdict::Succeeded);
        (until.first && given.is_some())
            || (until.first_bad && bad)
            || (until.waiting && self.waits())
            || self.going() == 0
    }

    /// Whether a run waits for a person.
    fn waits(&self) -> bool {
        let waits = |run: &Tracked| {
            let state = run.status.as_ref().map(Status::state);
            run.verdict.is_none() && state == Some(RunState::Waiting)
        };
        self.runs.values().any(waits)
    }

    /// How many runs have no verdict.
    pub(super) fn going(&self) -> usize {
        self.runs
            .values()
            .filter(|run| run.verdict.is_none())
            .count()
    }

    pub(super) fn style(&self) -> Style {
        self.options.style
    }
}
