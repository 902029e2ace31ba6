//! How far a watch has come, and the one function that moves it on.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{
    Event, EventData, EventType, Expectation, JsonText, Observation, PastRun, RunDetails, RunEvent,
    RunState, RunSummary, Status, Timing, Verdict, Watch, WatchSummary,
};
use crate::failpoint::mutant;
use crate::text::humanize;

/// What one poll brought, as far as the verdict is concerned.
#[derive(Debug, Clone)]
pub enum PollOutcome {
    /// A usable answer about the run.
    Seen(Box<Observation>),
    /// The API answered 404 or 410: it does not know the run.
    Missing {
        /// How much of the time since the answer before counts for the grace period: the part in which polls
        /// were made. It means nothing unless that answer was 404 or 410 as well.
        counted: Duration,
    },
    /// Anything else: no connection, a refusal, an error, a body that cannot be used.
    Failed {
        /// What went wrong, for people. No secrets.
        why: String,
        /// Another poll follows, even if the deadline has come.
        retried: bool,
    },
    /// The deadline has come and there is no time left for another poll: the last one decides.
    NotPolled {
        /// The last poll was answered so shortly before the deadline that no other was due until then.
        stands: bool,
        /// Why there is no newer answer, for people. No secrets.
        why: String,
    },
}

/// The limits a watch is held to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// How long every answer must be 404 or 410 before the verdict is `not_found`.
    pub not_found_grace: Duration,
    /// When a run that is still going is overdue, once.
    pub overdue_after: OverdueAfter,
    /// Template of a link that people can open, with `{run_id}`.
    pub run_url: Option<String>,
}

/// When a run that is still going is overdue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OverdueAfter {
    /// Never.
    #[default]
    Never,
    /// So long after its watch was added.
    Watched(Duration),
    /// After twice the 90th percentile of the durations of its group, since its start. Never where that is not known.
    Unusual,
}

/// A step that is not legal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IllegalTransition {
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
    /// Since when every answer was 404 or 410.
    pub missing_since: Option<Timestamp>,
    /// How much of that counts for the grace period: time in which polls were made. `None` if the last
    /// answer was not 404 or 410, even if the store rejected that step.
    missing_for: Option<Duration>,
    /// Whether the run was ever seen running.
    pub seen_running: bool,
    /// Whether the run was reported as overdue.
    pub overdue_told: bool,
    /// How long the run is expected to take, as of the last observation. Boxed, as many have no such expectation.
    expected: Option<Box<Expectation>>,
    /// The verdict, once given.
    pub verdict: Option<Verdict>,
    /// When this process began to watch: the watch was added or loaded.
    taken_up_at: Timestamp,
    /// Whether the run was seen going since then, so that its end cannot be a late one.
    seen_going: bool,
    /// Whether the last poll got a usable answer.
    answered: bool,
}

/// What one step leads to. Nothing of it holds until it is stored.
#[derive(Debug, Clone)]
pub struct Step {
    /// The watch after the step.
    pub progress: Progress,
    /// Whether the status is another one than before.
    pub status_changed: bool,
    /// Whether the run went missing or came back.
    pub presence_changed: bool,
    /// The events that sinks may get, in order.
    pub events: Vec<Event>,
}

impl Step {
    /// Whether the step must be stored before it is acted on.
    pub fn is_news(&self) -> bool {
        self.status_changed || self.presence_changed || !self.events.is_empty()
    }

    /// Adds the address that was polled to the reasons of its events.
    pub fn locate(&mut self, address: &str) {
        for event in &mut self.events {
            if let EventData::Run(data) = &mut event.data
                && let Some(reason) = &mut data.reason
            {
                reason.push_str(&format!(" ({address})"));
            }
        }
    }

    /// About how many bytes of the run's input, output and error it holds to be stored.
    pub fn bytes(&self) -> usize {
        let size = |value: &Option<JsonText>| value.as_ref().map_or(0, |value| value.get().len());
        self.progress.details.as_ref().map_or(0, |details| {
            size(&details.input)
                + size(&details.output)
                + details.error_message.as_ref().map_or(0, String::len)
        })
    }

    /// Leaves out what can be large of the run, input, output and the tail of a long error, and names it in its
    /// events: it takes little memory then until it can be stored.
    pub fn leave_out_values(&mut self) {
        fn leave_out(
            values: [(&str, &mut Option<JsonText>); 2],
            error: &mut Option<String>,
            named: &mut Vec<String>,
        ) {
            let mut name = |name: &str| {
                if !named.iter().any(|known| known == name) {
                    named.push(name.to_owned());
                }
            };
            for (field, value) in values {
                if value.take().is_some() {
                    name(field);
                }
            }
            if let Some(error) = error
                .as_mut()
                .filter(|error| error.len() > KEPT_ERROR_BYTES)
            {
                error.truncate(error.floor_char_boundary(KEPT_ERROR_BYTES));
                error.push('…');
                error.shrink_to_fit();
                name("error_message");
            }
        }
        if let Some(details) = &mut self.progress.details {
            let RunDetails {
                input,
                output,
                error_message,
                left_out,
                ..
            } = details.as_mut();
            leave_out(
                [("input", input), ("output", output)],
                error_message,
                left_out,
            );
        }
        for event in &mut self.events {
            if let EventData::Run(data) = &mut event.data {
                let RunSummary {
                    input,
                    output,
                    error_message,
                    ..
                } = &mut data.run;
                leave_out(
                    [("input", input), ("output", output)],
                    error_message,
                    &mut data.truncated,
                );
            }
        }
    }

    /// The run that it ends, where that succeeded and its group and duration are known.
    pub fn past_run(&self) -> Option<PastRun<'_>> {
        let event = self
            .events
            .iter()
            .find(|event| event.event_type == EventType::RunSucceeded)?;
        let RunEvent { run, timing, .. } = event.run()?;
        let is_backwards = run
            .started_at
            .zip(run.completed_at)
            .is_some_and(|(started, completed)| completed < started);
        Some(PastRun {
            provider: &run.provider,
            group: run.group.as_deref()?,
            ran_ms: timing.ran_ms.filter(|_| !is_backwards)?,
        })
    }

    /// Whether its verdict is the status that the API gave, which is for good.
    pub fn ends_by_status(&self) -> bool {
        let Progress {
            status, verdict, ..
        } = &self.progress;
        verdict.is_some() && status.as_ref().and_then(Verdict::of_status) == *verdict
    }
}

/// How much of a run's error is kept where what can be large is left out, in bytes.
const KEPT_ERROR_BYTES: usize = 1024;

/// The API's times have whole seconds in every documented example, so an end within the second in
/// which the watch began does not show that the run was unwatched.
const API_TIME_PRECISION: SignedDuration = SignedDuration::from_secs(1);

/// Why a run that was seen before is not found.
const GONE: &str = "the run is gone: the API answers 404 or 410 since it was last seen";

/// Why a run that was never seen is not found.
const NEVER_THERE: &str = "the API never knew the run: every answer was 404 or 410";

impl Progress {
    /// Returns the state of a watch without any observation, begun at `now`.
    pub fn begin(now: Timestamp) -> Self {
        Self {
            status: None,
            details: None,
            polls: 0,
            missing_since: None,
            missing_for: None,
            seen_running: false,
            overdue_told: false,
            expected: None,
            verdict: None,
            taken_up_at: now,
            seen_going: false,
            answered: false,
        }
    }

    /// Takes from `refused`, a step that could not be stored at `now` and so is not taken, what must not be
    /// forgotten: that the last poll did or did not get an answer, and that the run was not missing.
    pub fn carry_over(&mut self, refused: &Self, now: Timestamp) {
        self.answered = refused.answered;
        self.missing_for = refused.missing_for;
        if refused.missing_since.is_none() {
            self.missing_since = self.missing_since.map(|_| now);
        }
    }

    /// Whether the last poll got a usable answer.
    pub fn answered(&self) -> bool {
        self.answered
    }

    /// Whether the run was seen going since this process took the watch up.
    pub fn seen_going(&self) -> bool {
        self.seen_going
    }

    /// How long after the last answer another 404 would mean that the run is not found; `None` while the run is
    /// not missing.
    pub fn grace_left(&self, limits: &Limits) -> Option<Duration> {
        self.missing_for
            .map(|missing_for| limits.not_found_grace.saturating_sub(missing_for))
    }

    /// How long the run is expected to take, where its start and what is usual for its group are known.
    pub fn expected(&self) -> Option<Expectation> {
        self.expected.as_deref().copied()
    }

    /// When the run becomes overdue; `None` when it never does, or was reported as overdue.
    pub fn overdue_at(&self, added_at: Timestamp, limits: &Limits) -> Option<Timestamp> {
        match limits.overdue_after {
            _ if self.overdue_told => None,
            OverdueAfter::Never => None,
            OverdueAfter::Watched(after) => Some(later(added_at, after)),
            OverdueAfter::Unusual => self.expected.as_ref().map(|expected| expected.overdue_at()),
        }
    }

    /// Moves a watch on by what one poll brought at `now`: the only place where a verdict is given.
    ///
    /// An unknown status is never final. A status may go backwards; it is recorded like any other
    /// change. A failed poll changes nothing unless the deadline has come, but that the grace period of a run that
    /// is missing begins again: its verdict needs answers, all of them 404 or 410.
    ///
    /// # Errors
    /// [`IllegalTransition::Finished`] when the watch has its verdict already.
    pub fn step(
        &self,
        watch: &Watch,
        answer: PollOutcome,
        now: Timestamp,
        limits: &Limits,
    ) -> Result<Step, IllegalTransition> {
        if let Some(verdict) = self.verdict {
            return Err(IllegalTransition::Finished(verdict));
        }
        let mut next = self.clone();
        let mut event_types = Vec::with_capacity(2);
        let (mut why, mut last) = (None, true);
        let still_going = match answer {
            PollOutcome::Seen(observation) => {
                event_types.extend(next.see(*observation));
                next.verdict.is_none()
            }
            PollOutcome::Missing { counted } => {
                why = Some(next.miss(counted, now, limits));
                false
            }
            PollOutcome::Failed {
                why: failure,
                retried,
            } => {
                next.polls += 1;
                next.answered = false;
                if !mutant("grace-goes-on") {
                    (next.missing_since, next.missing_for) = (None, None);
                }
                (why, last) = (Some(failure), !retried);
                mutant("failure-is-late")
            }
            PollOutcome::NotPolled {
                stands,
                why: obstacle,
            } => {
                why = Some(obstacle);
                self.answered && stands
            }
        };
        if next.verdict.is_none() && now >= watch.deadline_at && last {
            next.verdict = Some(if still_going {
                Verdict::TimedOut
            } else {
                Verdict::Unreachable
            });
        }
        let why =
            why.filter(|_| matches!(next.verdict, Some(Verdict::NotFound | Verdict::Unreachable)));
        match next.verdict {
            Some(verdict) => event_types.push(verdict.event_type()),
            None if still_going => event_types.extend(next.becomes_overdue(watch, now, limits)),
            None => {}
        }
        let event = |event_type: EventType| {
            let mut data = next.describe(watch, now, limits);
            data.reason = why.clone().filter(|_| event_type.verdict().is_some());
            Event {
                event_type,
                timestamp: now,
                data: EventData::Run(Box::new(data)),
            }
        };
        let events = event_types.into_iter().map(event).collect();
        Ok(Step {
            status_changed: next.status != self.status,
            presence_changed: next.missing_since.is_some() != self.missing_since.is_some(),
            progress: next,
            events,
        })
    }

    /// Takes in an observation. Returns the event that it is the first to cause, besides that of a verdict.
    fn see(&mut self, observation: Observation) -> Option<EventType> {
        let Observation { status, details } = observation;
        self.polls += 1;
        self.answered = true;
        self.missing_since = None;
        self.missing_for = None;
        let known = self.details.as_ref().and_then(|details| details.attempt);
        if let (Some(known), Some(attempt)) = (known, details.attempt)
            && attempt < known
        {
            // A replica of the API that is behind: a verdict on an earlier attempt is not one on this.
            return None;
        }
        self.verdict = Verdict::of_status(&status);
        let waited = |status: &Status| status.state() == RunState::Waiting;
        let event = if status.state() == RunState::Running && !self.seen_running {
            Some(EventType::RunStarted)
        } else if waited(&status) && !self.status.as_ref().is_some_and(waited) {
            Some(EventType::RunWaiting)
        } else {
            None
        };
        self.seen_running |= status.state() == RunState::Running;
        self.seen_going |= self.verdict.is_none();
        self.status = Some(status);
        self.expected = details
            .started_at
            .zip(details.usual)
            .map(|(started_at, usual)| Box::new(Expectation { started_at, usual }));
        self.details = Some(Box::new(details));
        event
    }

    /// Takes in an answer by which the API does not know the run; `counted` is the time since the one before that counts
    /// toward the grace period. Returns the reason for people.
    fn miss(&mut self, counted: Duration, now: Timestamp, limits: &Limits) -> String {
        self.polls += 1;
        self.answered = false;
        let missing_for = match self.missing_for {
            Some(before) => before + counted,
            None => {
                self.missing_since = Some(now);
                Duration::ZERO
            }
        };
        self.missing_for = Some(missing_for);
        if mutant("first-404") || missing_for >= limits.not_found_grace {
            self.verdict = Some(Verdict::NotFound);
        }
        match (self.verdict, &self.status) {
            (None, _) => format!(
                "404 for {} (grace {})",
                humanize(missing_for),
                humanize(limits.not_found_grace)
            ),
            (Some(_), Some(_)) => GONE.to_owned(),
            (Some(_), None) => NEVER_THERE.to_owned(),
        }
    }

    /// Notes that a run takes longer than expected. Returns the event of that, which comes once.
    fn becomes_overdue(
        &mut self,
        watch: &Watch,
        now: Timestamp,
        limits: &Limits,
    ) -> Option<EventType> {
        let overdue_at = self.overdue_at(watch.added_at, limits);
        let overdue = overdue_at.is_some_and(|at| now >= at);
        self.overdue_told |= overdue;
        overdue.then_some(EventType::WatchOverdue)
    }

    /// The event data that describes the watch as it is at `now`.
    pub fn describe(&self, watch: &Watch, now: Timestamp, limits: &Limits) -> RunEvent {
        let unknown = RunDetails::default();
        let details = self.details.as_deref().unwrap_or(&unknown);
        let mut truncated = details.left_out.clone();
        let mut passed_on = |name: &str, value: &Option<JsonText>| {
            let value = value.as_ref()?;
            let passed = value.passable();
            if passed.is_none() {
                truncated.push(name.to_owned());
            }
            passed
        };
        let input = passed_on("input", &details.input);
        let output = passed_on("output", &details.output);
        RunEvent {
            run: RunSummary {
                provider: watch.run_id.provider_name(),
                id: watch.run_id.clone(),
                version_id: details.version_id.clone(),
                deployment_id: details.deployment_id.clone(),
                project: details.project.clone(),
                status: self
                    .status
                    .as_ref()
                    .map(|status| status.as_str().to_owned()),
                state: self.status.as_ref().map(Status::state),
                attempt: details.attempt,
                name: details.name.clone(),
                group: details.group.clone(),
                input,
                output,
                error_message: details.error_message.clone(),
                created_at: details.created_at,
                started_at: details.started_at,
                completed_at: details.completed_at,
                url: limits
                    .run_url
                    .as_ref()
                    .map(|url| url.replace("{run_id}", watch.run_id.id()))
                    .or_else(|| details.url.clone()),
            },
            watch: WatchSummary {
                name: watch.name.clone(),
                labels: watch.labels.clone(),
                added_at: watch.added_at,
                polls: self.polls,
                late: self.ended_unwatched(details),
            },
            timing: Timing::of(details, now),
            reason: None,
            truncated,
            fallback_for: None,
        }
    }

    /// Whether the run ended unwatched: it was over when it was first seen since the watch
    /// began or was loaded, and no time shows that it ended after that.
    fn ended_unwatched(&self, details: &RunDetails) -> bool {
        let ended = self.status.as_ref().and_then(Verdict::of_status).is_some();
        let ended_after = |at: Timestamp| {
            at.saturating_add(API_TIME_PRECISION)
                .is_ok_and(|end| end > self.taken_up_at)
        };
        ended && !self.seen_going && !details.completed_at.is_some_and(ended_after)
    }
}

/// `at` plus `span`, or the end of time.
fn later(at: Timestamp, span: Duration) -> Timestamp {
    at.checked_add(span).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Labels, RunRef, UsualDuration};
    use proptest::prelude::*;

    fn time(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn watch(deadline: i64) -> Watch {
        Watch {
            run_id: RunRef::new("run_1").unwrap(),
            name: None,
            labels: Labels::new(),
            sinks: None,
            added_at: time(0),
            deadline_at: time(deadline),
            trace: None,
        }
    }

    fn limits() -> Limits {
        Limits {
            not_found_grace: Duration::from_secs(120),
            overdue_after: OverdueAfter::Watched(Duration::from_secs(600)),
            run_url: Some("https://console.example/{run_id}".to_owned()),
        }
    }

    fn seen(status: &str) -> PollOutcome {
        seen_with(status, RunDetails::default())
    }

    fn seen_with(status: &str, details: RunDetails) -> PollOutcome {
        PollOutcome::Seen(Box::new(Observation {
            status: Status::read(None, status),
            details,
        }))
    }

    fn failed() -> PollOutcome {
        PollOutcome::Failed {
            why: "502 Bad Gateway".to_owned(),
            retried: false,
        }
    }

    fn attempt(status: &str, attempt: u64) -> PollOutcome {
        let details = RunDetails {
            attempt: Some(attempt),
            ..RunDetails::default()
        };
        seen_with(status, details)
    }

    #[test]
    fn an_answer_about_an_earlier_attempt_changes_nothing_and_a_later_one_is_followed() {
        let (events, seen) = play_to_end(vec![
            attempt("running", 2),
            attempt("failed", 1),
            attempt("running", 3),
            attempt("failed", 2),
            attempt("succeeded", 3),
        ]);
        assert_eq!(events, ["run.started", "run.succeeded"]);
        assert_eq!(seen, [Some(2), Some(2), Some(3), Some(3), Some(3)]);
        // A provider that names none, or ceases to, is taken by its word.
        let (events, _) = play_to_end(vec![attempt("running", 2), self::seen("failed")]);
        assert_eq!(events, ["run.started", "run.failed"]);
    }

    /// The types of the events that these answers lead to, and the attempt that is known after each.
    fn play_to_end(answers: Vec<PollOutcome>) -> (Vec<&'static str>, Vec<Option<u64>>) {
        let (watch, limits) = (watch(100), limits());
        let mut progress = Progress::begin(time(0));
        let (mut events, mut attempts) = (Vec::new(), Vec::new());
        for (number, answer) in (1..).zip(answers) {
            let step = progress
                .step(&watch, answer, time(number), &limits)
                .unwrap();
            events.extend(step.events.iter().map(|event| event.event_type.as_str()));
            progress = step.progress;
            attempts.push(
                progress
                    .details
                    .as_ref()
                    .and_then(|details| details.attempt),
            );
        }
        (events, attempts)
    }

    fn not_polled(stands: bool) -> PollOutcome {
        PollOutcome::NotPolled {
            stands,
            why: "not polled since 10:21".to_owned(),
        }
    }

    /// A 404, and how many seconds since the answer before count.
    fn missing(counted: u64) -> PollOutcome {
        PollOutcome::Missing {
            counted: Duration::from_secs(counted),
        }
    }

    /// Feeds answers at the given seconds and returns the events, as words with their seconds.
    fn play(
        deadline: i64,
        answers: Vec<(i64, PollOutcome)>,
    ) -> (Progress, Vec<(i64, &'static str)>) {
        let (watch, limits) = (watch(deadline), limits());
        let mut progress = Progress::begin(time(0));
        let mut event_types = Vec::new();
        for (at, answer) in answers {
            let step = progress.step(&watch, answer, time(at), &limits).unwrap();
            event_types.extend(
                step.events
                    .iter()
                    .map(|event| (at, event.event_type.as_str())),
            );
            progress = step.progress;
        }
        (progress, event_types)
    }

    #[test]
    fn a_run_is_followed_to_its_end() {
        let answers = vec![
            (0, seen("pending")),
            (2, seen("running")),
            (4, seen("running")),
            (6, seen("failed")),
        ];
        let (progress, event_types) = play(100, answers);
        assert_eq!(event_types, [(2, "run.started"), (6, "run.failed")]);
        assert_eq!(
            (progress.verdict, progress.polls),
            (Some(Verdict::Failed), 4)
        );
    }

    #[test]
    fn a_step_is_news_where_a_status_the_presence_or_an_event_is_new() {
        let (watch, limits) = (watch(1000), limits());
        let step = |progress: &Progress, at, answer| {
            progress.step(&watch, answer, time(at), &limits).unwrap()
        };
        let begun = Progress::begin(time(0));
        assert!(!step(&begun, 1, failed()).is_news());
        let pending = step(&begun, 1, seen("pending"));
        assert!(pending.is_news() && pending.status_changed && pending.events.is_empty());
        assert!(!step(&pending.progress, 2, seen("pending")).is_news());
        let missing = step(&pending.progress, 3, missing(0));
        assert!(missing.is_news() && missing.presence_changed && !missing.status_changed);
        assert!(!step(&missing.progress, 4, self::missing(1)).is_news());
        let overdue = step(&pending.progress, 600, seen("pending"));
        assert!(overdue.is_news() && !overdue.status_changed && !overdue.presence_changed);
    }

    #[test]
    fn only_a_verdict_that_the_api_gave_as_a_status_is_for_good() {
        let (watch, limits) = (watch(100), limits());
        let running = Progress::begin(time(0))
            .step(&watch, seen("running"), time(1), &limits)
            .unwrap();
        let after = |at, answer| {
            running
                .progress
                .step(&watch, answer, time(at), &limits)
                .unwrap()
        };
        assert!(!running.ends_by_status());
        for (at, answer, verdict, by_status) in [
            (2, seen("succeeded"), Verdict::Succeeded, true),
            (2, seen("failed"), Verdict::Failed, true),
            (100, seen("canceled"), Verdict::Canceled, true),
            (2, seen("skipped"), Verdict::Skipped, true),
            (100, seen("waiting"), Verdict::TimedOut, false),
            (100, seen("running"), Verdict::TimedOut, false),
            (100, failed(), Verdict::Unreachable, false),
        ] {
            let step = after(at, answer);
            assert_eq!(
                (step.progress.verdict, step.ends_by_status()),
                (Some(verdict), by_status)
            );
        }
    }

    /// Details of a run of a group in which `usual` is usual, with its start and its end.
    fn of_group(usual: Option<UsualDuration>, started: i64, completed: Option<i64>) -> RunDetails {
        RunDetails {
            group: Some("nightly".to_owned()),
            started_at: Some(time(started)),
            completed_at: completed.map(time),
            usual,
            ..RunDetails::default()
        }
    }

    #[test]
    fn a_run_is_unusual_after_twice_what_is_usual_since_its_start_and_only_if_that_is_known() {
        let limits = Limits {
            overdue_after: OverdueAfter::Unusual,
            ..limits()
        };
        let usual = UsualDuration::of([10_000, 20_000, 30_000]);
        let overdue_at = |details: RunDetails, polls: &[i64]| {
            let (watch, mut progress) = (watch(1000), Progress::begin(time(0)));
            let mut overdue = Vec::new();
            for at in polls {
                let seen = seen_with("running", details.clone());
                let step = progress.step(&watch, seen, time(*at), &limits).unwrap();
                let is_overdue = |event: &&Event| event.event_type == EventType::WatchOverdue;
                overdue.extend(step.events.iter().find(is_overdue).map(|_| *at));
                progress = step.progress;
            }
            overdue
        };
        let polls = [1, 54, 55, 60, 900];
        assert_eq!(overdue_at(of_group(usual, -5, None), &polls), [55]);
        assert_eq!(overdue_at(of_group(None, -5, None), &polls), [0; 0]);
        let unknown = RunDetails {
            started_at: None,
            ..of_group(usual, -5, None)
        };
        assert_eq!(overdue_at(unknown, &polls), [0; 0]);
        let step = Progress::begin(time(0))
            .step(
                &watch(1000),
                seen_with("running", of_group(usual, -5, None)),
                time(1),
                &limits,
            )
            .unwrap();
        let at = step.progress.overdue_at(time(0), &limits);
        assert_eq!(at, Some(time(55)), "it is polled at that time");
        let timing = &step.events[0].run().unwrap().timing;
        assert_eq!(timing.usual(), usual);
    }

    #[test]
    fn a_past_run_succeeded_and_has_a_group_and_a_duration() {
        let past = |status: &str, details: RunDetails| {
            let step = Progress::begin(time(0)).step(
                &watch(1000),
                seen_with(status, details),
                time(60),
                &limits(),
            );
            step.unwrap()
                .past_run()
                .map(|run| (run.group.to_owned(), run.ran_ms))
        };
        let whole = of_group(None, 10, Some(52));
        assert_eq!(
            past("succeeded", whole.clone()),
            Some(("nightly".to_owned(), 42_000))
        );
        assert_eq!(past("running", whole.clone()), None);
        assert_eq!(past("failed", whole.clone()), None);
        assert_eq!(past("succeeded", of_group(None, 10, None)), None);
        assert_eq!(past("succeeded", of_group(None, 10, Some(9))), None);
        let alone = RunDetails {
            group: None,
            ..whole
        };
        assert_eq!(past("succeeded", alone), None);
        let reported = RunDetails {
            duration_ms: Some(7),
            ..of_group(None, 10, None)
        };
        assert_eq!(past("succeeded", reported), Some(("nightly".to_owned(), 7)));
    }

    #[test]
    fn each_entry_into_waiting_is_reported_once() {
        let answers = vec![
            (0, seen("running")),
            (1, seen("waiting")),
            (2, seen("waiting")),
            (3, failed()),
            (4, seen("waiting")),
            (5, seen("running")),
            (6, seen("waiting")),
            (7, seen("succeeded")),
        ];
        let (mut progress, mut reported) = (Progress::begin(time(0)), Vec::new());
        for (at, answer) in answers {
            let step = progress
                .step(&watch(100), answer, time(at), &limits())
                .unwrap();
            let waits = |event: &&Event| event.event_type == EventType::RunWaiting;
            if step.events.iter().any(|event| waits(&event)) {
                reported.push(at);
            }
            progress = step.progress;
        }
        assert_eq!(reported, [1, 6]);
        assert_eq!(progress.verdict, Some(Verdict::Succeeded));
    }

    #[test]
    fn a_status_may_be_unknown_or_go_backwards() {
        let answers = vec![
            (0, seen("running")),
            (1, seen("COMPLETED")),
            (2, seen("pending")),
            (3, seen("running")),
        ];
        let (progress, event_types) = play(100, answers);
        assert_eq!(event_types, [(0, "run.started")]);
        assert_eq!(progress.status, Some(Status::from(RunState::Running)));
    }

    #[test]
    fn missing_for_all_of_the_grace_is_not_found() {
        let miss = |at, counted| (at, missing(counted));
        assert_eq!(play(1000, vec![miss(0, 0), miss(119, 119)]).1, []);
        assert_eq!(
            play(1000, vec![miss(0, 0), miss(119, 119), miss(120, 1)]).1,
            [(120, "watch.not_found")]
        );
        // Seen in between: the grace begins anew. So it does after a failed poll, which may hide anything.
        let gone = vec![
            miss(0, 0),
            (100, seen("running")),
            miss(130, 30),
            miss(249, 119),
            miss(250, 1),
        ];
        assert_eq!(
            play(1000, gone).1,
            [(100, "run.started"), (250, "watch.not_found")]
        );
        let unheard = vec![
            miss(0, 0),
            (119, failed()),
            miss(120, 1),
            miss(239, 119),
            miss(240, 1),
        ];
        assert_eq!(play(1000, unheard).1, [(240, "watch.not_found")]);
    }

    #[test]
    fn only_time_in_which_polls_were_made_counts_for_the_grace() {
        let gap = vec![
            (0, missing(0)),
            (600, missing(0)),
            (610, missing(10)),
            (900, missing(0)),
            (1009, missing(109)),
        ];
        assert_eq!(play(2000, gap.clone()).1, []);
        let longer = gap.into_iter().chain([(1010, missing(1))]).collect();
        assert_eq!(play(2000, longer).1, [(1010, "watch.not_found")]);
        let left = |answers| {
            play(2000, answers)
                .0
                .grace_left(&limits())
                .map(|left| left.as_secs())
        };
        assert_eq!(left(vec![(0, seen("running"))]), None);
        assert_eq!(left(vec![(0, missing(0))]), Some(120));
        assert_eq!(
            left(vec![(0, missing(0)), (600, missing(0)), (610, missing(10))]),
            Some(110)
        );
    }

    #[test]
    fn a_verdict_without_a_status_says_why() {
        let reason = |answers: Vec<(i64, PollOutcome)>| {
            let (watch, limits) = (watch(1000), limits());
            let mut progress = Progress::begin(time(0));
            let mut reason = None;
            for (at, answer) in answers {
                let step = progress.step(&watch, answer, time(at), &limits).unwrap();
                reason = step
                    .events
                    .last()
                    .and_then(Event::run)
                    .and_then(|data| data.reason.clone());
                progress = step.progress;
            }
            reason
        };
        assert_eq!(
            reason(vec![(1000, failed())]).as_deref(),
            Some("502 Bad Gateway")
        );
        assert_eq!(
            reason(vec![(1000, not_polled(false))]).as_deref(),
            Some("not polled since 10:21")
        );
        assert_eq!(
            reason(vec![(0, missing(0)), (200, missing(200))]).as_deref(),
            Some(NEVER_THERE)
        );
        assert_eq!(
            reason(vec![(997, missing(0)), (1000, missing(3))]).as_deref(),
            Some("404 for 3s (grace 2m)"),
            "unreachable"
        );
        let gone = vec![(0, seen("running")), (1, missing(1)), (200, missing(200))];
        assert_eq!(reason(gone).as_deref(), Some(GONE));
        assert_eq!(
            reason(vec![(0, seen("running")), (1000, not_polled(true))]),
            None,
            "timed_out"
        );
        assert_eq!(reason(vec![(1000, seen("failed"))]), None);
    }

    #[test]
    fn what_was_answered_counts_though_it_could_not_be_stored() {
        let (watch, limits) = (watch(1000), limits());
        let missed = |progress: &Progress, at, counted| {
            progress
                .step(&watch, missing(counted), time(at), &limits)
                .unwrap()
                .progress
        };
        // The first 404 after an answer or a failure begins the grace period, as if that had been stored.
        for between in [seen("running"), failed()] {
            let (mut progress, _) = play(1000, vec![(0, missing(0)), (60, missing(60))]);
            let rejected = progress.step(&watch, between, time(100), &limits).unwrap();
            progress.carry_over(&rejected.progress, time(100));
            let first = missed(&progress, 220, 120);
            assert_eq!(first.verdict, None);
            assert_eq!(first.missing_since, Some(time(220)));
            assert_eq!(missed(&first, 339, 119).verdict, None);
            assert_eq!(missed(&first, 340, 120).verdict, Some(Verdict::NotFound));
        }
        let (mut progress, _) = play(1000, vec![(0, missing(0))]);
        let rejected = progress
            .step(&watch, seen("running"), time(100), &limits)
            .unwrap();
        progress.carry_over(&rejected.progress, time(100));
        let late = progress
            .step(&watch, not_polled(true), time(1000), &limits)
            .unwrap();
        assert_eq!(late.progress.verdict, Some(Verdict::TimedOut));
        // An end of the grace period that could not be stored comes with the next 404.
        let (mut progress, _) = play(1000, vec![(0, missing(0)), (100, missing(100))]);
        let refused = missed(&progress, 120, 20);
        assert_eq!(refused.verdict, Some(Verdict::NotFound));
        progress.carry_over(&refused, time(120));
        assert_eq!(missed(&progress, 125, 5).verdict, Some(Verdict::NotFound));
    }

    #[test]
    fn at_the_deadline_the_last_answer_decides() {
        assert_eq!(
            play(10, vec![(0, seen("running")), (10, seen("running"))]).1[1],
            (10, "watch.timed_out")
        );
        assert_eq!(
            play(10, vec![(10, seen("succeeded"))]).1,
            [(10, "run.succeeded")]
        );
        for no_answer in [failed(), missing(0), not_polled(false)] {
            assert_eq!(
                play(10, vec![(0, seen("pending")), (10, no_answer)]).1,
                [(10, "watch.unreachable")]
            );
        }
        // Where the API may not be polled any more, that is the last poll made.
        let after = |before| {
            play(
                10,
                vec![(0, seen("pending")), (5, before), (10, not_polled(true))],
            )
            .1
        };
        assert_eq!(after(seen("pending")), [(10, "watch.timed_out")]);
        assert_eq!(after(failed()), [(10, "watch.unreachable")]);
        assert_eq!(after(missing(0)), [(10, "watch.unreachable")]);
        assert_eq!(
            play(10, vec![(10, not_polled(true))]).1,
            [(10, "watch.unreachable")]
        );
        assert_eq!(play(10, vec![(9, failed())]).1, []);
        // A failure that another poll follows decides nothing.
        let retried = || PollOutcome::Failed {
            why: "no connection".to_owned(),
            retried: true,
        };
        assert_eq!(
            play(10, vec![(70, retried()), (71, seen("succeeded"))]).1,
            [(71, "run.succeeded")]
        );
        assert_eq!(
            play(10, vec![(70, retried()), (71, failed())]).1,
            [(71, "watch.unreachable")]
        );
    }

    #[test]
    fn overdue_is_reported_once_and_only_of_a_run_seen_active() {
        let answers = vec![
            (0, seen("running")),
            (601, failed()),
            (602, seen("running")),
            (603, seen("running")),
        ];
        assert_eq!(
            play(1000, answers).1,
            [(0, "run.started"), (602, "watch.overdue")]
        );
    }

    #[test]
    fn late_means_over_before_anyone_watched() {
        let ended = |at: Option<i64>| RunDetails {
            completed_at: at.map(time),
            ..RunDetails::default()
        };
        let late = |answers: Vec<(i64, PollOutcome)>| {
            let (progress, _) = play(100, answers);
            progress
                .describe(&watch(100), time(50), &limits())
                .watch
                .late
        };
        assert!(late(vec![(1, seen_with("succeeded", ended(Some(-60))))]));
        assert!(late(vec![(1, seen_with("succeeded", ended(None)))]));
        assert!(late(vec![(1, seen_with("succeeded", ended(Some(-1))))]));
        assert!(!late(vec![(1, seen_with("succeeded", ended(Some(0))))]));
        assert!(!late(vec![
            (1, seen("running")),
            (2, seen_with("succeeded", ended(Some(-60))))
        ]));
        let (progress, _) = play(100, vec![(1, seen("running"))]);
        let resumed = Progress {
            status: progress.status,
            ..Progress::begin(time(30))
        };
        let step = resumed
            .step(
                &watch(100),
                seen_with("failed", ended(Some(20))),
                time(31),
                &limits(),
            )
            .unwrap();
        let EventData::Run(data) = &step.events[0].data else {
            panic!("about a run")
        };
        assert!(data.watch.late);
        assert_eq!(
            data.run.url.as_deref(),
            Some("https://console.example/run_1")
        );
        assert_eq!(data.timing.detected_after_ms, Some(11_000));
    }

    #[test]
    fn what_became_of_a_watch_can_be_read() {
        let polled = |answers| play(1000, answers).0;
        let going = polled(vec![(0, seen("running"))]);
        assert!(going.answered() && going.seen_going());
        assert_eq!(going.overdue_at(time(5), &limits()), Some(time(605)));
        let overdue = polled(vec![(0, seen("running")), (601, seen("running"))]);
        assert_eq!(overdue.overdue_at(time(5), &limits()), None, "reported");
        let unlimited = Limits {
            overdue_after: OverdueAfter::Never,
            ..limits()
        };
        assert_eq!(going.overdue_at(time(5), &unlimited), None);
        let missed = polled(vec![
            (0, missing(0)),
            (1, missing(1)),
            (2, failed()),
            (3, failed()),
        ]);
        assert!(!missed.answered() && !missed.seen_going());
        assert_eq!(missed.polls, 4);
    }

    #[test]
    fn the_address_that_was_polled_is_named_in_a_reason_and_nowhere_else() {
        let located = |answer| {
            let mut step = Progress::begin(time(0))
                .step(&watch(10), answer, time(10), &limits())
                .unwrap();
            step.locate("https://api.example/v1/runs/run_1");
            step.events[0].run().unwrap().reason.clone()
        };
        assert_eq!(
            located(failed()).as_deref(),
            Some("502 Bad Gateway (https://api.example/v1/runs/run_1)")
        );
        assert_eq!(located(seen("failed")), None);
    }

    #[test]
    fn the_bytes_of_a_step_are_those_of_its_values_and_an_error_is_kept_up_to_a_limit() {
        let step = |error: usize| {
            let details = RunDetails {
                input: Some(JsonText::new("[1]".to_owned()).unwrap()),
                output: Some(JsonText::new("[1,2]".to_owned()).unwrap()),
                error_message: Some("e".repeat(error)),
                ..RunDetails::default()
            };
            Progress::begin(time(0))
                .step(
                    &watch(100),
                    seen_with("failed", details),
                    time(1),
                    &limits(),
                )
                .unwrap()
        };
        assert_eq!(step(7).bytes(), 3 + 5 + 7);
        for (bytes, named) in [(KEPT_ERROR_BYTES, false), (KEPT_ERROR_BYTES + 1, true)] {
            let mut step = step(bytes);
            step.leave_out_values();
            let truncated = &step.events[0].run().unwrap().truncated;
            assert_eq!(
                truncated.iter().any(|name| name == "error_message"),
                named,
                "{bytes}"
            );
        }
    }

    #[test]
    fn what_is_left_out_of_a_step_is_named_once_and_the_verdict_stays() {
        let value = |text: &str| {
            Some(
                serde_json::value::to_raw_value(&text.repeat(4000))
                    .unwrap()
                    .into(),
            )
        };
        let error_message = Some("ä".repeat(1000));
        let details = RunDetails {
            input: value("in"),
            output: value("out"),
            error_message,
            ..RunDetails::default()
        };
        let mut step = Progress::begin(time(0))
            .step(
                &watch(100),
                seen_with("failed", details),
                time(1),
                &limits(),
            )
            .unwrap();
        assert!(step.bytes() > 20_000);
        step.leave_out_values();
        step.leave_out_values();
        assert!(step.bytes() < 1100, "{}", step.bytes());
        assert_eq!(step.progress.verdict, Some(Verdict::Failed));
        let data = step.events[0].run().unwrap();
        assert_eq!(data.truncated, ["input", "output", "error_message"]);
        assert!(data.run.input.is_none() && data.run.output.is_none());
        assert_eq!(
            data.run.error_message.as_ref().unwrap().chars().last(),
            Some('…')
        );
    }

    #[test]
    fn too_deep_json_is_left_out_and_named() {
        let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
        let output = JsonText::new(deep).unwrap();
        let details = RunDetails {
            output: Some(output),
            ..RunDetails::default()
        };
        let (progress, _) = play(100, vec![(1, seen_with("succeeded", details))]);
        let data = progress.describe(&watch(100), time(50), &limits());
        assert_eq!(
            (data.run.output.is_none(), data.truncated),
            (true, vec!["output".to_owned()])
        );
    }

    fn any_answer() -> impl Strategy<Value = PollOutcome> {
        prop_oneof![
            4 => prop_oneof![
                Just("pending"), Just("running"), Just("queued"), Just("SUCCEEDED"), Just("")
            ].prop_map(seen),
            1 => prop_oneof![Just("succeeded"), Just("failed"), Just("canceled"), Just("cancelled")].prop_map(seen),
            3 => any::<bool>().prop_map(|counts| missing(u64::from(counts))),
            3 => any::<bool>().prop_map(|retried| PollOutcome::Failed { why: String::new(), retried }),
            1 => any::<bool>().prop_map(not_polled),
        ]
    }

    proptest! {
        #[test]
        fn no_sequence_gives_a_wrong_or_a_second_verdict(
            deadline in -10_i64..4000,
            answers in proptest::collection::vec((0_i64..200, any_answer()), 1..60),
        ) {
            let (watch, limits) = (watch(deadline), limits());
            let mut progress = Progress::begin(time(0));
            let mut now = 0;
            let mut started = 0;
            let mut last_poll_answered = false;
            // How much of an unbroken row of 404s counts.
            let mut missing_for: Option<i64> = None;
            for (gap, answer) in answers {
                now += gap;
                let answer = match answer {
                    // All of the gap counts, or nothing.
                    PollOutcome::Missing { counted } if !counted.is_zero() => missing(gap.unsigned_abs()),
                    PollOutcome::Seen(_) | PollOutcome::Missing { .. } | PollOutcome::Failed { .. } | PollOutcome::NotPolled { .. } => answer,
                };
                missing_for = match &answer {
                    PollOutcome::Seen(_) | PollOutcome::Failed { .. } => None,
                    PollOutcome::Missing { counted } if missing_for.is_some() && !counted.is_zero() => {
                        missing_for.map(|before| before + gap)
                    }
                    PollOutcome::Missing { .. } => missing_for.or(Some(0)),
                    PollOutcome::NotPolled { .. } => missing_for,
                };
                let going = match &answer {
                    PollOutcome::Seen(_) => true,
                    PollOutcome::Missing { .. } | PollOutcome::Failed { .. } => false,
                    // Says nothing of the poll before, which may decide another time.
                    PollOutcome::NotPolled { stands, .. } => last_poll_answered && *stands,
                };
                if !matches!(answer, PollOutcome::NotPolled { .. }) {
                    last_poll_answered = going;
                }
                let status = match &answer {
                    PollOutcome::Seen(observation) => Some(observation.status.clone()),
                    PollOutcome::Missing { .. } | PollOutcome::Failed { .. } | PollOutcome::NotPolled { .. } => None,
                };
                let is_missing = matches!(answer, PollOutcome::Missing { .. });
                let again = matches!(answer, PollOutcome::Failed { retried: true, .. });
                let step = match progress.step(&watch, answer, time(now), &limits) {
                    Err(IllegalTransition::Finished(verdict)) => {
                        prop_assert_eq!(progress.verdict, Some(verdict));
                        continue;
                    }
                    Ok(step) => step,
                };
                let verdicts: Vec<_> = step.events.iter().filter_map(|event| event.event_type.verdict()).collect();
                prop_assert_eq!(step.progress.verdict.into_iter().collect::<Vec<_>>(), verdicts);
                started += step.events.iter().filter(|event| event.event_type == EventType::RunStarted).count();
                match step.progress.verdict {
                    Some(Verdict::Succeeded) => prop_assert_eq!(status, Some(Status::from(RunState::Succeeded))),
                    Some(Verdict::Failed) => prop_assert_eq!(status, Some(Status::from(RunState::Failed))),
                    Some(Verdict::Canceled) => prop_assert_eq!(status, Some(Status::from(RunState::Canceled))),
                    Some(Verdict::Skipped) => prop_assert_eq!(status, Some(Status::from(RunState::Skipped))),
                    Some(Verdict::NotFound) => {
                        prop_assert!(is_missing);
                        prop_assert!(missing_for.is_some_and(|missing_for| missing_for >= 120));
                    }
                    Some(Verdict::TimedOut) => prop_assert!(now >= deadline && going),
                    Some(Verdict::Unreachable) => prop_assert!(now >= deadline && !going && !again),
                    None => {
                        prop_assert!(now < deadline || again);
                        prop_assert!(!is_missing || missing_for.is_some_and(|missing_for| missing_for < 120));
                    }
                }
                progress = step.progress;
            }
            prop_assert!(started <= 1);
        }
    }
}
