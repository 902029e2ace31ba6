//! Steps and events, which are stored before they count.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Scheduler;
use super::breaker::{Outage, OutageLine};
use super::handle::Removed;
use super::poll::Pace;
use super::registry::{Key, Phase};
use crate::clock::Now;
use crate::domain::{
    Event, EventData, EventType, FoundBy, PollOutcome, Progress, ProviderName, RunDetails, RunRef,
    RunState, Step, Verdict, Watch,
};
use crate::failpoint::{self, mutant};
use crate::memory;
use crate::store::{Added, RoutedEvent, STORE_RETRY, StoreError, WatchId};
use crate::text::{error_chain, humanize, one_line};

/// How often a change of its status restarts the interval of a watch. Most runs change their status a
/// few times; one that alternates between two changes it with every poll.
const MAX_FRESH_STARTS: u8 = 20;

/// Most bytes of inputs, outputs and errors of runs whose ends the store rejected. Beyond that they
/// are left out, and the event names them as truncated; the end itself is always kept. It is less than half of
/// the room that the client has for large answers, so that other answers are read in the meantime.
const MAX_PENDING_BYTES: usize = 7 * 1024 * 1024;

/// Most unknown status texts that are logged, so that an API that invents new ones fills neither
/// memory nor the log.
pub(super) const MAX_WARNED: usize = 100;

/// Most characters of an unknown status text that are logged.
const STATUS_CHARS: usize = 200;

pub(super) enum Persisted {
    Added {
        watch: Box<Watch>,
        reply: oneshot::Sender<Result<Added, StoreError>>,
        result: Result<(Added, Option<WatchId>), StoreError>,
        /// How far the wall clock had been set since the start when the watch was requested.
        stepped: SignedDuration,
    },
    Removed {
        run_id: RunRef,
        reply: oneshot::Sender<Result<Removed, StoreError>>,
        result: Result<Vec<WatchId>, StoreError>,
    },
    Step {
        key: Key,
        step: Box<Step>,
        /// When it was taken.
        at: Timestamp,
        result: Result<(), StoreError>,
        /// As with [`Persisted::Added`].
        stepped: SignedDuration,
    },
    /// The stored details of a run were read, for the step that `answer` leads to.
    Recalled {
        key: Key,
        answer: PollOutcome,
        result: Result<Option<Box<RunDetails>>, StoreError>,
    },
    Event {
        result: Result<(), StoreError>,
    },
    /// The deadlines in the store were shifted, after the clock was set by `milliseconds`.
    DeadlinesShifted {
        milliseconds: i64,
        result: Result<(), StoreError>,
    },
}

/// What the store rejected and another poll would not bring back.
#[derive(Default)]
pub(super) struct PendingWrites {
    /// Events about the API. They are stored one after the other.
    events: VecDeque<Event>,
    /// The first of the events is being stored.
    is_storing_event: bool,
    /// Ends of runs, with when each was observed: the API may not be there to report them again.
    ends: Vec<(Key, Box<Step>, Timestamp)>,
    /// How far the wall clock was set, in milliseconds, where not all deadlines are known to have moved with it.
    clock_shift: Option<i64>,
    /// When these are stored again.
    pub(super) retry_at: Option<Instant>,
}

impl PendingWrites {
    /// Bytes of the inputs, outputs and errors of the ends.
    fn bytes(&self) -> usize {
        self.ends.iter().map(|(_, step, _)| step.bytes()).sum()
    }
}

impl Scheduler {
    /// Takes the step that an outcome leads to; a step that changes something is stored before it
    /// counts.
    pub(super) fn take_step(&mut self, key: Key, mut answer: PollOutcome) {
        if let PollOutcome::Seen(observation) = &mut answer {
            self.compare(&mut observation.details);
        }
        let now = self.reading.wall;
        let entry = self
            .registry
            .get_mut(key)
            .expect("the caller holds a key of an entry");
        let failed = matches!(answer, PollOutcome::Failed { .. });
        // A watch that ends for lack of an answer was not found by a poll.
        entry.polled_on_hint &= !matches!(answer, PollOutcome::NotPolled { .. });
        // Kept in case the step has to be taken again. An observation is stored with the step.
        let unseen = match &answer {
            PollOutcome::Seen(_) => None,
            PollOutcome::Missing { .. }
            | PollOutcome::Failed { .. }
            | PollOutcome::NotPolled { .. } => Some(answer.clone()),
        };
        let mut step = match entry
            .progress
            .step(&entry.watch(), answer, now, &self.policy.limits)
        {
            Ok(step) => step,
            Err(illegal) => {
                tracing::error!(run_id = %entry.run_id, %illegal, "a finished watch was polled");
                return self.forget(key);
            }
        };
        if step.progress.verdict == Some(Verdict::NotFound)
            && let Some(address) = self.provider.client.address(&entry.run_id)
        {
            step.locate(&address);
        }
        if let Some(status) = &step.progress.status
            && status.state() == RunState::Unknown
        {
            let shown = one_line(status.as_str(), STATUS_CHARS);
            if self.warned.len() < MAX_WARNED && self.warned.insert(shown.clone()) {
                tracing::warn!(run_id = %entry.run_id, status = shown, "unknown status; not taken as an end");
            }
        }
        if let Some(answer) = unseen.filter(|_| !step.events.is_empty())
            && entry.progress.status.is_some()
            && entry.progress.details.is_none()
        {
            return self.recall(key, answer);
        }
        match step.progress.verdict {
            Some(_) => failpoint::point("observed"),
            None if step.progress.seen_going() => self.provider.streams.enroll(key),
            None => {}
        }
        if !step.is_news() {
            entry.progress = step.progress;
            entry.progress.details = None;
            return self.reschedule(key, if failed { Pace::Behind } else { Pace::Onward });
        }
        self.store_step(key, Box::new(step), now);
    }

    /// Notes in the details of a run how long runs of its group usually take.
    fn compare(&self, details: &mut RunDetails) {
        let group = details.group.as_deref();
        details.usual = group.and_then(|group| self.past.usual(group));
    }

    /// Stores a step that was taken at `at`.
    fn store_step(&mut self, key: Key, step: Box<Step>, at: Timestamp) {
        // It may have been removed in the meantime.
        if self.registry.get(key).is_none() {
            return;
        }
        let entry = self.registry.unqueue(key);
        entry.phase = Phase::Storing;
        let watch = entry.watch();
        let found_by = if entry.polled_on_hint {
            FoundBy::Stream
        } else {
            FoundBy::Poll
        };
        let routed = |event: &Event| {
            let mut sinks = self.policy.routes.sinks_for(event, Some(&watch));
            if mutant("progress-unsent") && event.event_type.is_progress() {
                sinks.clear();
            }
            let (sinks, held) = if self.catch_up.summarizes(event, &watch) {
                self.policy.routes.apart_for_digest(sinks)
            } else {
                (sinks, Vec::new())
            };
            RoutedEvent {
                event: event.clone(),
                sinks,
                held,
            }
        };
        let routed = step.events.iter().map(routed).collect();
        let (store, id, last_error) = (
            self.store.clone(),
            entry.id,
            entry.last_error.as_deref().cloned(),
        );
        let stepped = self.stepped;
        let ends_in_group = step.progress.verdict.is_some() && watch.group().is_some();
        let routes = ends_in_group.then(|| Arc::clone(&self.policy.routes));
        self.store_in_order(async move {
            let taken = Step::clone(&step);
            let result = match routes {
                Some(routes) => {
                    store
                        .record_group_step(id, taken, routed, last_error, found_by, at, routes)
                        .await
                }
                None => {
                    store
                        .record_step(id, taken, routed, last_error, found_by, at)
                        .await
                }
            };
            Persisted::Step {
                key,
                step,
                at,
                result,
                stepped,
            }
        });
    }

    /// Reads the last observation of a run, which an event without a new one repeats, then takes the
    /// step.
    fn recall(&mut self, key: Key, answer: PollOutcome) {
        let entry = self.registry.unqueue(key);
        entry.phase = Phase::Storing;
        let (store, id) = (self.store.clone(), entry.id);
        self.store_in_order(async move {
            Persisted::Recalled {
                key,
                answer,
                result: store.details(id).await.map(|details| details.map(Box::new)),
            }
        });
    }

    /// Goes on after a write or a read of the store, whether or not it succeeded.
    pub(super) fn stored(&mut self, done: Persisted) {
        let now = self.look_at_clock();
        match done {
            Persisted::Added {
                watch,
                reply,
                result,
                stepped,
            } => {
                if let Ok((Added::New, Some(id))) = result {
                    self.watch_stored(id, *watch, stepped, now);
                }
                self.adding -= 1;
                if self.adding == 0 {
                    self.removed.clear();
                }
                // The caller may have left; the watch is stored and followed all the same.
                drop(reply.send(result.map(|(added, _)| added)));
            }
            Persisted::Removed {
                run_id,
                reply,
                result,
            } => {
                drop(reply.send(result.map(|ids| self.watches_removed(&run_id, ids))));
            }
            Persisted::Step {
                key,
                step,
                at,
                result,
                stepped,
            } => {
                let Some(entry) = self.registry.get_mut(key) else {
                    return;
                };
                entry.phase = Phase::Waiting;
                match if mutant("unstored-counts") {
                    Ok(())
                } else {
                    result
                } {
                    Ok(()) => self.step_stored(key, *step, stepped, now),
                    Err(error) => self.step_rejected(key, step, at, &error, now),
                }
            }
            Persisted::Recalled {
                key,
                answer,
                result,
            } => self.details_read(key, answer, result),
            Persisted::Event { result } => self.event_stored(&result, now),
            Persisted::DeadlinesShifted {
                milliseconds,
                result,
            } => self.deadlines_shifted(milliseconds, &result, now),
        }
    }

    /// Follows a watch that was just stored. The wall clock had been set by `stepped` in all when it was requested.
    fn watch_stored(
        &mut self,
        id: WatchId,
        mut watch: Watch,
        stepped: SignedDuration,
        now: Instant,
    ) {
        if self.removed.remove(&id) {
            return;
        }
        let since = self.stepped - stepped;
        let progress = begin(&mut watch, since);
        let entry = self.entry((id, watch), progress, Duration::ZERO, now, now);
        let key = self.registry.insert(entry);
        self.enroll_in_list(key, now);
        if !since.is_zero() {
            self.shift_deadlines(0);
        }
    }

    /// Ceases to follow the watches of a run that the store removed.
    fn watches_removed(&mut self, run_id: &RunRef, ids: Vec<WatchId>) -> Removed {
        for key in self.registry.keys_of(run_id) {
            if self
                .registry
                .get(key)
                .is_some_and(|entry| ids.contains(&entry.id))
            {
                self.forget(key);
            }
        }
        if ids.is_empty() {
            return Removed::NotFound;
        }
        // One that was stored just before may not be in the table yet.
        if self.adding > 0 {
            self.removed.extend(ids);
        }
        Removed::Removed
    }

    /// Goes on after a step that the store accepted.
    fn step_stored(&mut self, key: Key, step: Step, stepped: SignedDuration, now: Instant) {
        memory::used(step.bytes());
        if let Some(run) = step.past_run() {
            self.past.add(run.group, run.ran_ms);
        }
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        // The interval of a run whose status changes all the time grows all the same.
        let anew = step.status_changed && entry.fresh_starts < MAX_FRESH_STARTS;
        if anew {
            entry.changed_at = now;
            entry.fresh_starts += 1;
        }
        entry.progress = step.progress;
        if stepped != self.stepped {
            entry.progress.missing_since = entry.progress.missing_since.map(|_| self.reading.wall);
        }
        // They are in the store: for a million watches they are too much to keep here as well.
        entry.progress.details = None;
        let verdict = step
            .events
            .iter()
            .rfind(|event| event.event_type.verdict().is_some());
        // A run that ended before it was watched shows nothing about the polls.
        if let Some(after) = verdict
            .and_then(Event::run)
            .filter(|data| !data.watch.late)
            .and_then(|data| data.timing.detected_after_ms)
        {
            self.metrics.detected(Duration::from_millis(after));
        }
        if entry.progress.verdict.is_none() {
            return self.reschedule(key, if anew { Pace::Anew } else { Pace::Onward });
        }
        self.metrics.found_by(if entry.polled_on_hint {
            FoundBy::Stream
        } else {
            FoundBy::Poll
        });
        failpoint::point("verdict-stored");
        if mutant("polled-on") {
            return self.reschedule(key, Pace::Onward);
        }
        self.forget(key);
    }

    /// Goes on after a step that the store rejected. The end of a run is stored again later; any other step is taken
    /// again from a fresh poll.
    fn step_rejected(
        &mut self,
        key: Key,
        mut step: Box<Step>,
        at: Timestamp,
        error: &StoreError,
        now: Instant,
    ) {
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        if let StoreError::Precondition { .. } = error {
            tracing::warn!(run_id = %entry.run_id, %error, "no longer watched");
            return self.forget(key);
        }
        entry.progress.carry_over(&step.progress, self.reading.wall);
        if step.ends_by_status() && !mutant("end-forgotten") {
            entry.phase = Phase::Storing;
            if self.pending.bytes().saturating_add(step.bytes()) > MAX_PENDING_BYTES {
                step.leave_out_values();
            }
            self.pending.ends.push((key, step, at));
            self.pending.retry_at = Some(now + STORE_RETRY);
            return;
        }
        // The store logs its own failures, once.
        let error = error_chain(error);
        tracing::debug!(run_id = %entry.run_id, error, "cannot store a step; it will be taken again");
        self.reschedule(key, Pace::In(STORE_RETRY));
    }

    /// Takes the step for which the details of a run were read, or polls the run again.
    fn details_read(
        &mut self,
        key: Key,
        answer: PollOutcome,
        mut result: Result<Option<Box<RunDetails>>, StoreError>,
    ) {
        if let Ok(Some(details)) = &mut result {
            self.compare(details);
        }
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        entry.phase = Phase::Waiting;
        match result {
            Ok(details) => {
                entry.progress.details = Some(details.unwrap_or_default());
                self.take_step(key, answer);
            }
            Err(error) => {
                let wall = self.reading.wall;
                if let Ok(step) =
                    entry
                        .progress
                        .step(&entry.watch(), answer, wall, &self.policy.limits)
                {
                    entry.progress.carry_over(&step.progress, wall);
                }
                let error = error_chain(&error);
                tracing::debug!(run_id = %entry.run_id, error, "cannot read what was seen of a run; polling again");
                self.reschedule(key, Pace::In(STORE_RETRY));
            }
        }
    }

    fn event_stored(&mut self, result: &Result<(), StoreError>, now: Instant) {
        self.pending.is_storing_event = false;
        match result {
            // The store closes at the end only.
            Ok(()) | Err(StoreError::Closed) => {
                self.pending.events.pop_front();
                self.store_next_event();
            }
            // Any other failure may pass, and an event about the API happens only once.
            Err(_rejected) => self.pending.retry_at = Some(now + STORE_RETRY),
        }
    }

    fn deadlines_shifted(
        &mut self,
        milliseconds: i64,
        result: &Result<(), StoreError>,
        now: Instant,
    ) {
        if let Err(error) = result
            && !matches!(error, StoreError::Closed)
        {
            self.pending.clock_shift = Some(
                self.pending
                    .clock_shift
                    .unwrap_or(0)
                    .saturating_add(milliseconds),
            );
            self.pending.retry_at = Some(now + STORE_RETRY);
        }
    }

    /// Starts a write. It enters the store's queue now, so that writes stay in order.
    pub(super) fn store_in_order(
        &mut self,
        work: impl Future<Output = Persisted> + Send + 'static,
    ) {
        let mut work = Box::pin(work);
        match work.as_mut().now_or_never() {
            Some(done) => self.stores.spawn(std::future::ready(done)),
            None => self.stores.spawn(work),
        };
    }

    /// Stores all deadlines after the wall clock was set by `milliseconds`: as absolute times, so that
    /// a repetition does no harm.
    pub(super) fn shift_deadlines(&mut self, milliseconds: i64) {
        let milliseconds =
            milliseconds.saturating_add(self.pending.clock_shift.take().unwrap_or(0));
        let entries = self
            .registry
            .keys()
            .into_iter()
            .filter_map(|key| self.registry.get(key));
        let deadlines = entries.map(|entry| (entry.id, entry.deadline_at)).collect();
        let (store, now) = (self.store.clone(), self.reading.wall);
        self.store_in_order(async move {
            Persisted::DeadlinesShifted {
                milliseconds,
                result: store.shift_deadlines(deadlines, milliseconds, now).await,
            }
        });
    }

    /// Retries rejected writes once their delay has passed.
    pub(super) fn retry_pending_writes(&mut self, now: Instant) {
        if self.pending.retry_at.is_none_or(|at| at > now) {
            return;
        }
        self.pending.retry_at = None;
        self.store_next_event();
        let unstored = std::mem::take(&mut self.pending.ends);
        unstored
            .into_iter()
            .for_each(|(key, step, at)| self.store_step(key, step, at));
        if self.pending.clock_shift.is_some() {
            self.shift_deadlines(0);
        }
    }

    /// Stores and sends an event about the API.
    pub(super) fn emit(&mut self, mut event: Event) {
        if let EventData::Provider(notice) = &mut event.data {
            notice.provider.clone_from(&self.provider.name);
        }
        log_recovery(&event);
        if mutant("late-news-first") && !self.pending.is_storing_event {
            self.pending.events.push_front(event);
        } else {
            self.pending.events.push_back(event);
        }
        self.store_next_event();
    }

    /// Logs an outage that was reported, at growing intervals while runs wait for its end.
    pub(super) fn remind_of_outage(&mut self, now: Now) {
        if self.registry.is_empty() {
            return;
        }
        if let Some(line) = self.provider.breaker.line_to_log(now) {
            log_outage(&self.provider.name, &line);
        }
    }

    /// Stores the first pending event, unless it is being stored. Events are stored one after the
    /// other: if the end of an incident were stored before its begin, the incident would seem to
    /// continue.
    fn store_next_event(&mut self) {
        let Some(event) = self
            .pending
            .events
            .front()
            .filter(|_| !self.pending.is_storing_event)
            .cloned()
        else {
            return;
        };
        self.pending.is_storing_event = true;
        let sinks = self.policy.routes.sinks_for(&event, None);
        let (store, now) = (self.store.clone(), event.timestamp);
        self.store_in_order(async move {
            Persisted::Event {
                result: store
                    .record_event(
                        RoutedEvent {
                            event,
                            sinks,
                            held: Vec::new(),
                        },
                        now,
                    )
                    .await,
            }
        });
    }
}

/// Logs the end of an outage that was reported.
fn log_recovery(event: &Event) {
    let EventData::Provider(notice) = &event.data else {
        return;
    };
    if event.event_type == EventType::ApiRecovered {
        let lasted = Duration::try_from(event.timestamp.duration_since(notice.since));
        let lasted = humanize(lasted.unwrap_or_default());
        tracing::info!(provider = %notice.provider, event = event.event_type.as_str(), %lasted, "the API answers again");
    }
}

/// Logs an outage that was reported, in a sentence of its own for each kind.
fn log_outage(provider: &ProviderName, line: &OutageLine) {
    let (why, lasted) = (line.why.as_str(), humanize(line.lasted));
    let event = match line.outage {
        Outage::Refused => EventType::ApiUnauthorized,
        Outage::Paused | Outage::Failing => EventType::ApiUnreachable,
    };
    let event = event.as_str();
    match line.outage {
        Outage::Refused => tracing::warn!(
            %provider, event, %lasted, why,
            "the key is missing or refused; polls pause until one works, and `runwatch doctor` says what to do"
        ),
        Outage::Paused => tracing::warn!(
            %provider, event, %lasted, why,
            "the API gives no usable answer and requests pauses; polls go on after each, and `runwatch doctor` says more"
        ),
        Outage::Failing => tracing::warn!(
            %provider, event, %lasted, why,
            "the API gives no usable answer; one poll at a time is made until it does, and `runwatch doctor` says more"
        ),
    }
}

/// Begins to follow a watch that was requested before the wall clock was set by `since`. The run is watched from when the
/// watch was added, and not from when the store was done with it, which may be long after: a run that ends in between
/// does not end late.
fn begin(watch: &mut Watch, since: SignedDuration) -> Progress {
    let shifted = |at: Timestamp| at.saturating_add(since).unwrap_or(at);
    watch.deadline_at = shifted(watch.deadline_at);
    Progress::begin(shifted(watch.added_at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Labels, Limits, Observation, OverdueAfter, RunState, Status};

    #[test]
    fn a_run_that_ends_while_the_store_is_slow_does_not_end_late() {
        let time = |seconds: i64| Timestamp::from_second(1_700_000_000 + seconds).unwrap();
        for (since, ended, is_late) in [
            (0, 3, false),
            (0, -3, true),
            (-3600, 3, false),
            (3600, -3, true),
        ] {
            let mut watch = Watch {
                run_id: RunRef::new("run_1").unwrap(),
                name: None,
                labels: Labels::new(),
                sinks: None,
                added_at: time(0),
                deadline_at: time(600),
                trace: None,
            };
            let progress = begin(&mut watch, SignedDuration::from_secs(since));
            assert_eq!(watch.deadline_at, time(600 + since));
            // The store was done with it after 9 s.
            let details = RunDetails {
                completed_at: Some(time(since + ended)),
                ..RunDetails::default()
            };
            let status = Status::new(RunState::Failed, "failed");
            let seen = PollOutcome::Seen(Box::new(Observation { status, details }));
            let limits = Limits {
                not_found_grace: Duration::from_secs(120),
                overdue_after: OverdueAfter::Never,
                run_url: None,
            };
            let step = progress
                .step(&watch, seen, time(since + 10), &limits)
                .unwrap();
            let event = step.events.last().unwrap().run().unwrap();
            assert_eq!(event.watch.late, is_late, "{since} {ended}");
        }
    }
}
