//! How far a watch has come, and the one function that moves it on.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::event::passable;
use super::{
    Event, EventData, EventType, Observation, RunDetails, RunEvent, RunSummary, Status, Timing, Verdict, Watch,
    WatchSummary,
};

/// What one poll brought, as far as the verdict is concerned.
#[derive(Debug, Clone)]
pub enum Answer {
    /// A usable answer about the run.
    Seen(Box<Observation>),
    /// The API said 404: it knows no such run.
    Missing,
    /// Anything else: no connection, a refusal, an error, a body that cannot be used.
    Failed,
    /// The deadline has come and the API may not be asked now. Counts as no usable answer.
    NotAsked,
}

/// The limits a watch is held to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// How long every answer must be 404 before the verdict is `not_found`.
    pub not_found_grace: Duration,
    /// After how long a run that is still going is overdue, once; `None` means never.
    pub overdue_after: Option<Duration>,
    /// Template of a link that people can open, with `{run_id}`.
    pub run_url: Option<String>,
}

/// A step that is not legal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Illegal {
    /// The watch has its verdict already, and a verdict never changes.
    #[error("the watch has ended already, as {0}")]
    Finished(Verdict),
}

/// How far a watch has come. Made by [`Progress::begin`], moved on by [`Progress::step`] only.
#[derive(Debug, Clone)]
pub struct Progress {
    /// The status last seen.
    pub status: Option<Status>,
    /// What was last seen of the run besides its status.
    pub details: Option<Box<RunDetails>>,
    /// How many polls were made.
    pub polls: u64,
    /// Since when every answer was 404.
    pub missing_since: Option<Timestamp>,
    /// Whether the run was ever seen running.
    pub seen_running: bool,
    /// Whether it was said that the run is overdue.
    pub overdue_told: bool,
    /// The verdict, once given.
    pub verdict: Option<Verdict>,
    /// When this process began to watch: the watch was added or taken up again.
    taken_up_at: Timestamp,
    /// Whether the run was seen going since then, so that its end cannot be a late one.
    seen_going: bool,
}

/// What one step leads to. Nothing of it holds until it is stored.
#[derive(Debug, Clone)]
pub struct Step {
    /// The watch after the step.
    pub progress: Progress,
    /// Whether the status is another one than before.
    pub status_changed: bool,
    /// What sinks may be told, in order.
    pub events: Vec<Event>,
}

impl Step {
    /// Whether the step must be stored before it is acted on.
    pub fn is_news(&self) -> bool {
        self.status_changed || !self.events.is_empty()
    }
}

/// The API's times have whole seconds in every documented example, so an end within the second in
/// which the watch began is no evidence that nobody was watching.
const API_TIME_PRECISION: SignedDuration = SignedDuration::from_secs(1);

impl Progress {
    /// The state of a watch that nothing is known of, taken up at `now`.
    pub fn begin(now: Timestamp) -> Self {
        Self {
            status: None,
            details: None,
            polls: 0,
            missing_since: None,
            seen_running: false,
            overdue_told: false,
            verdict: None,
            taken_up_at: now,
            seen_going: false,
        }
    }

    /// Takes up at `now` a watch whose stored marks were put into `self`.
    #[must_use]
    pub fn resumed(self, now: Timestamp) -> Self {
        Self { taken_up_at: now, seen_going: false, ..self }
    }

    /// The next time, besides the ordinary poll, at which an answer would decide something: the end
    /// of the grace for a missing run, or the moment the run becomes overdue.
    pub fn next_mark(&self, watch: &Watch, limits: &Limits) -> Option<Timestamp> {
        let grace_ends = self.missing_since.map(|since| later(since, limits.not_found_grace));
        let overdue = limits.overdue_after.filter(|_| !self.overdue_told);
        let overdue_at = overdue.map(|after| later(watch.added_at, after));
        grace_ends.into_iter().chain(overdue_at).min()
    }

    /// Moves a watch on by what one poll brought at `now`: the only place where a verdict is given.
    ///
    /// An unknown status is never final. A status may go backwards; it is recorded like any other
    /// change. A failed poll changes nothing unless the deadline has come.
    ///
    /// # Errors
    /// [`Illegal::Finished`] when the watch has its verdict already.
    pub fn step(&self, watch: &Watch, answer: Answer, now: Timestamp, limits: &Limits) -> Result<Step, Illegal> {
        if let Some(verdict) = self.verdict {
            return Err(Illegal::Finished(verdict));
        }
        let mut next = self.clone();
        let mut told = Vec::new();
        let still_going = match answer {
            Answer::Seen(observation) => {
                let Observation { status, details } = *observation;
                next.polls += 1;
                next.missing_since = None;
                next.verdict = Verdict::of_status(&status);
                if status == Status::Running && !self.seen_running {
                    next.seen_running = true;
                    told.push(EventType::RunStarted);
                }
                next.seen_going |= next.verdict.is_none();
                next.status = Some(status);
                next.details = Some(Box::new(details));
                next.verdict.is_none()
            }
            Answer::Missing => {
                next.polls += 1;
                let since = *next.missing_since.get_or_insert(now);
                if now >= later(since, limits.not_found_grace) {
                    next.verdict = Some(Verdict::NotFound);
                }
                false
            }
            Answer::Failed => {
                next.polls += 1;
                false
            }
            Answer::NotAsked => false,
        };
        if next.verdict.is_none() && now >= watch.deadline_at {
            next.verdict = Some(if still_going { Verdict::TimedOut } else { Verdict::Unreachable });
        }
        match next.verdict {
            Some(verdict) => told.push(verdict.event_type()),
            None => {
                let overdue_at = limits.overdue_after.map(|after| later(watch.added_at, after));
                if still_going && !self.overdue_told && overdue_at.is_some_and(|at| now >= at) {
                    next.overdue_told = true;
                    told.push(EventType::WatchOverdue);
                }
            }
        }
        let events = told.into_iter().map(|event_type| next.event(event_type, watch, now, limits)).collect();
        Ok(Step { status_changed: next.status != self.status, progress: next, events })
    }

    /// The event data that describes the watch as it is at `now`.
    pub fn describe(&self, watch: &Watch, now: Timestamp, limits: &Limits) -> RunEvent {
        let unknown = RunDetails::default();
        let details = self.details.as_deref().unwrap_or(&unknown);
        let (input, input_left_out) = passable(details.input.as_deref());
        let (output, output_left_out) = passable(details.output.as_deref());
        let left_out = [("input", input_left_out), ("output", output_left_out)];
        RunEvent {
            run: RunSummary {
                id: watch.run_id.clone(),
                version_id: details.version_id.clone(),
                deployment_id: details.deployment_id.clone(),
                project: details.project.clone(),
                status: self.status.as_ref().map(|status| status.as_str().to_owned()),
                input,
                output,
                error_message: details.error_message.clone(),
                created_at: details.created_at,
                started_at: details.started_at,
                completed_at: details.completed_at,
                url: limits.run_url.as_ref().map(|url| url.replace("{run_id}", watch.run_id.as_str())),
            },
            watch: WatchSummary {
                name: watch.name.clone(),
                labels: watch.labels.clone(),
                added_at: watch.added_at,
                polls: self.polls,
                late: self.ended_unwatched(details),
            },
            timing: Timing::of(details, now),
            truncated: left_out.into_iter().filter(|(_, out)| *out).map(|(name, _)| name.to_owned()).collect(),
        }
    }

    fn event(&self, event_type: EventType, watch: &Watch, now: Timestamp, limits: &Limits) -> Event {
        let data = self.describe(watch, now, limits);
        Event { event_type, timestamp: now, data: EventData::Run(Box::new(data)) }
    }

    /// Whether the run ended while nobody was watching: it was over when first seen since the watch
    /// was taken up, and nothing says that it ended after that.
    fn ended_unwatched(&self, details: &RunDetails) -> bool {
        let ended = self.status.as_ref().and_then(Verdict::of_status).is_some();
        let ended_after = |at: Timestamp| at.saturating_add(API_TIME_PRECISION).is_ok_and(|end| end > self.taken_up_at);
        ended && !self.seen_going && !details.completed_at.is_some_and(ended_after)
    }
}

/// `at` plus `span`, or the end of time.
fn later(at: Timestamp, span: Duration) -> Timestamp {
    at.checked_add(span).unwrap_or(Timestamp::MAX)
}
