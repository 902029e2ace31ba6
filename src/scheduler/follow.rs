//! What the event streams of runs give reason to.

use tokio::time::Instant;

use super::Scheduler;
use super::registry::{Key, Phase};
use super::streams::{Cause, Ended, StreamEvent};
use crate::failpoint::mutant;

/// How many polls may go out before a stream that could be opened has its turn: where polls take up the
/// whole budget, a stream is worth more than the one request that it costs.
pub(super) const POLLS_PER_STREAM: u32 = 4;

impl Scheduler {
    /// Opens streams, as far as the budget has room beside the polls that are due.
    pub(super) fn open_streams(&mut self, now: Instant) {
        let first_turns = self.table.first_due().into_iter().chain(self.table.first_last_due());
        let polls_wait = first_turns.map(|(due, _)| due).any(|due| due <= now);
        while !polls_wait && self.open_stream(now) {}
        self.metrics.streams(self.provider.streams.count());
    }

    /// Opens one stream, if there is one to open and the budget has room for it. Returns whether it did.
    pub(super) fn open_stream(&mut self, now: Instant) -> bool {
        if self.provider.breaker.outage().is_some() {
            return false;
        }
        let Some(key) = self.provider.streams.next_to_open(now) else { return false };
        if !mutant("streams-free") && !self.provider.budget.try_take(now) {
            return false;
        }
        self.provider.polls_since_stream = 0;
        let Some(entry) = self.table.get(key) else { return false };
        let (run_id, started) = (entry.run_id.clone(), entry.progress.seen_running);
        self.provider.streams.open(key, run_id, started, self.provider.client.clone(), self.clock.clone());
        true
    }

    /// Takes in what a stream said, or that it is over.
    pub(super) fn heard(&mut self, news: StreamEvent) {
        let now = self.look_at_clock();
        match news {
            StreamEvent::Started(key) => self.poll_from_start(key, now),
            StreamEvent::Ended(ended) => {
                // What a stream said before it was closed is as good a reason to ask as any.
                if self.provider.streams.ended(&ended, now, &mut self.random) || matches!(ended.cause, Cause::RunEnded)
                {
                    self.stream_ended(ended, now);
                }
            }
        }
    }

    /// Has the run asked for whose stream is over: it may have ended.
    fn stream_ended(&mut self, ended: Ended, now: Instant) {
        let Ended { key, cause, .. } = ended;
        let Some(entry) = self.table.get_mut(key) else { return };
        let run_id = &entry.run_id;
        match &cause {
            Cause::NotOpened(error) => {
                tracing::debug!(%run_id, error = error.describe(), "cannot follow the events of a run");
                // Whatever the refusal asks for rests the streams only: polls never depended on them, and where the limit
                // is one of all requests of the key, the next poll says so.
                return;
            }
            Cause::RunEnded if mutant("stream-is-believed") && entry.phase == Phase::Waiting => {
                let (status, details) = (crate::domain::Status::Succeeded, crate::domain::RunDetails::default());
                let seen = crate::domain::Observation { status, details };
                return self.take_step(key, crate::domain::PollOutcome::Seen(Box::new(seen)));
            }
            Cause::RunEnded => return self.poll_from_start(key, now),
            Cause::Broken(error) => tracing::debug!(%run_id, error = error.describe(), "a stream of events broke off"),
            Cause::Over | Cause::Idle => tracing::trace!(%run_id, ?cause, "a stream of events ended"),
        }
        entry.interval = Some(self.policy.backoff.interval_after(now.duration_since(entry.changed_at)));
        self.poll_now(key);
    }

    /// Has a run asked for as if its status had just changed: should the API's answer lag behind its stream,
    /// it is asked again soon.
    fn poll_from_start(&mut self, key: Key, now: Instant) {
        let Some(entry) = self.table.get_mut(key) else { return };
        entry.changed_at = now;
        entry.interval = None;
        self.poll_now(key);
    }

    /// Has a run asked for ahead of all others, as far as the budget allows.
    fn poll_now(&mut self, key: Key) {
        let Some(entry) = self.table.get_mut(key) else { return };
        entry.hinted = true;
        // A poll under way may have been answered before the hint: then there will be another.
        if entry.phase == Phase::Waiting {
            self.table.queue(key, self.earliest);
        }
    }
}
