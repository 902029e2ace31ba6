//! How the scheduler opens event streams, and polls when they give a reason.

use tokio::time::Instant;

use super::Scheduler;
use super::registry::{Key, Phase};
use super::streams::{EndReason, EndedStream, StreamEvent};
use crate::failpoint::mutant;

/// How many polls may go out before a stream is opened ahead of them: where polls use the whole
/// budget, a stream is worth more than the one request that it costs.
pub(super) const POLLS_PER_STREAM: u32 = 4;

impl Scheduler {
    /// Opens streams while the budget has room beside the polls that are due.
    pub(super) fn open_streams(&mut self, now: Instant) {
        let first_turns = self
            .registry
            .first_due()
            .into_iter()
            .chain(self.registry.first_last_due());
        let polls_wait = first_turns.map(|(due, _)| due).any(|due| due <= now);
        while !polls_wait && self.open_stream(now) {}
        self.metrics.streams(self.provider.streams.count());
    }

    /// Opens one stream if a watch wants one and the budget has room. Returns whether it did.
    pub(super) fn open_stream(&mut self, now: Instant) -> bool {
        if self.provider.breaker.outage().is_some() {
            return false;
        }
        let Some(key) = self.provider.streams.next_to_open(now) else {
            return false;
        };
        if !mutant("streams-free") && !self.provider.budget.try_take(now) {
            return false;
        }
        self.provider.polls_since_stream = 0;
        let Some(entry) = self.registry.get(key) else {
            return false;
        };
        let (run_id, started) = (entry.run_id.clone(), entry.progress.seen_running);
        self.provider.streams.open(
            key,
            run_id,
            started,
            self.provider.client.clone(),
            self.clock.clone(),
        );
        true
    }

    /// Handles a start that a stream reported, or the end of a stream.
    pub(super) fn stream_event(&mut self, news: StreamEvent) {
        let now = self.look_at_clock();
        match news {
            StreamEvent::Started(key) => self.poll_from_start(key, now),
            StreamEvent::Ended(ended) => {
                // An end that a stream reported before we closed it is still a reason to poll.
                if self.provider.streams.ended(&ended, now, &mut self.random)
                    || matches!(ended.cause, EndReason::RunEnded)
                {
                    self.stream_ended(ended, now);
                }
            }
        }
    }

    /// Polls the run whose stream ended, because the run may have ended.
    fn stream_ended(&mut self, ended: EndedStream, now: Instant) {
        let EndedStream { key, cause, .. } = ended;
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        let run_id = &entry.run_id;
        match &cause {
            EndReason::NotOpened(error) => {
                tracing::debug!(%run_id, error = error.describe(), "cannot follow the events of a run");
                // A rate limit here pauses the streams only: polls never depended on them, and if the
                // limit covers all requests of the key, the answer to the next poll shows it.
                return;
            }
            EndReason::RunEnded
                if mutant("stream-is-believed") && entry.phase == Phase::Waiting =>
            {
                let (status, details) = (
                    crate::domain::Status::from(crate::domain::RunState::Succeeded),
                    crate::domain::RunDetails::default(),
                );
                let seen = crate::domain::Observation { status, details };
                return self.take_step(key, crate::domain::PollOutcome::Seen(Box::new(seen)));
            }
            EndReason::RunEnded => return self.poll_from_start(key, now),
            EndReason::Broken(error) => {
                tracing::debug!(%run_id, error = error.describe(), "a stream of events broke off")
            }
            EndReason::Over | EndReason::Idle => {
                tracing::debug!(%run_id, ?cause, "a stream of events ended")
            }
        }
        entry.interval = Some(
            self.policy
                .backoff
                .interval_after(now.duration_since(entry.changed_at)),
        );
        self.poll_now(key);
    }

    /// Polls a run as if its status had just changed, so that polls follow soon if the answers of
    /// the API lag behind its stream.
    fn poll_from_start(&mut self, key: Key, now: Instant) {
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        entry.changed_at = now;
        entry.interval = None;
        self.poll_now(key);
    }

    /// Polls a run ahead of all others, as far as the budget allows.
    fn poll_now(&mut self, key: Key) {
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        entry.hinted = true;
        // A poll under way may have been answered before the wake-up: another one will follow it.
        if entry.phase == Phase::Waiting {
            self.registry.queue(key, self.earliest);
        }
    }
}
