//! Deadlines: a watch ends at most five seconds after its deadline, with what is known by then.
//!
//! When the deadline comes, the watch gets a last poll, ahead of the ordinary ones. Whatever this
//! poll waits for (the budget, a slot, the circuit breaker, an answer), the watch ends when its time
//! is over: as `timed_out` if its own last observation came so shortly before the deadline that no
//! other poll was due, otherwise as `unreachable`. A deadline that passed while nothing could be
//! polled gets more time, in which failed polls are repeated.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::registry::{Key, LAST_POLL_LIMIT};
use super::{CLOCK_CHECK, ROUNDING, Scheduler};
use crate::clock::Now;
use crate::domain::PollOutcome;
use crate::failpoint::mutant;
use crate::store::PollFailure;

/// How long the API is tried for watches whose deadline passed while the machine slept or no process
/// ran, because a network needs time to come back.
const PATIENCE: Duration = Duration::from_secs(60);

/// The scheduler wakes up once per [`CLOCK_CHECK`]. If it did not for this much longer, the process
/// was stopped.
const STOPPED: Duration = Duration::from_secs(3);

/// Most steps that are being stored before more watches are ended, because each is in memory until
/// it is stored.
const MAX_ENDING: usize = 1_000;

impl Scheduler {
    /// Handles the watches whose deadline has come.
    pub(super) fn expire(&mut self, now: Instant) {
        if now.duration_since(self.turned_at) > CLOCK_CHECK + STOPPED {
            self.be_patient(now);
        }
        self.turned_at = now;
        self.registry.expire(now);
        self.registry.overtime(now);
        while let Some(key) = self.next_to_end(now) {
            self.end_without_poll(key, now);
        }
        if self.registry.first_last_due().is_some() {
            self.provider.breaker.hurry();
        }
    }

    /// Gives more time to watches whose deadline passed while nothing could be polled.
    pub(super) fn be_patient(&mut self, now: Instant) {
        self.waking_until = now + PATIENCE;
        for key in self.registry.keys() {
            if self
                .registry
                .get(key)
                .is_some_and(|entry| entry.deadline <= now + ROUNDING)
            {
                self.registry.set_end(key, now + PATIENCE);
            }
        }
    }

    /// Ends all watches, with what is known of them.
    pub(super) fn give_up(&mut self, why: String) {
        let now = self.look_at_clock();
        self.given_up = Some(why);
        self.provider.call_back_polls();
        for key in self.registry.keys() {
            let Some(entry) = self.registry.get_mut(key) else {
                continue;
            };
            entry.deadline_at = entry.deadline_at.min(self.reading.wall);
            self.registry.set_end(key, now);
        }
    }

    /// Whether a failed last poll of a watch is followed by another.
    pub(super) fn tries_again(&self, key: Key, now: Instant) -> bool {
        let entry = self.registry.get(key);
        entry.is_some_and(|entry| {
            !mutant("downtime-decides-at-once")
                && entry.ends_at.is_some_and(|ends_at| now < ends_at)
                && (entry.is_patient() || now < self.waking_until)
        })
    }

    /// Whether more watches may be ended now.
    pub(super) fn may_end(&self) -> bool {
        self.stores.len() < MAX_ENDING
    }

    /// Returns the next watch that ends now without another poll: its time is over, or will be before
    /// a poll could go out.
    fn next_to_end(&self, now: Instant) -> Option<Key> {
        let opens_at = self.provider.opens_at(now);
        let too_late = |&(due, key): &(Instant, Key)| {
            self.registry.get(key).is_some_and(|entry| {
                let ends_at = entry.ends_at.unwrap_or(now);
                due <= now && (ends_at <= now || (opens_at > ends_at && !entry.is_patient()))
            })
        };
        let next = self
            .registry
            .first_turns_after_deadline()
            .into_iter()
            .flatten()
            .find(too_late);
        next.filter(|_| self.may_end()).map(|(_, key)| key)
    }

    fn end_without_poll(&mut self, key: Key, now: Instant) {
        let why = self.why_not_polled(key, now);
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        let stands = mutant("old-answer-decides") || entry.stands() || entry.seen_past_deadline;
        let stands = stands && entry.progress.answered();
        if !stands {
            entry.last_error = Some(Box::new(PollFailure {
                at: self.reading.wall,
                message: why.clone(),
            }));
        }
        self.take_step(key, PollOutcome::NotPolled { stands, why });
    }

    /// Returns why a watch has no newer observation, for people.
    fn why_not_polled(&self, key: Key, now: Instant) -> String {
        if let Some(why) = &self.given_up {
            return why.clone();
        }
        let wall = self.reading.wall;
        if let Some(obstacle) = self.provider.breaker.obstacle(Now { instant: now, wall }) {
            return obstacle;
        }
        let polled_at = self.registry.get(key).and_then(|entry| entry.polled_at);
        let since = match polled_at.and_then(|at| wall.checked_sub(now.duration_since(at)).ok()) {
            Some(at) => format!("not polled since {}", time_of_day(at)),
            None => "never polled".to_owned(),
        };
        let runs = self.registry.len();
        if self.polls.len() >= self.policy.max_in_flight {
            return format!(
                "{since}: {runs} runs share {} polls at once",
                self.policy.max_in_flight
            );
        }
        format!(
            "{since}: {runs} runs share {} requests a minute",
            self.policy.requests_per_minute
        )
    }
}

/// Formats the time of day in UTC, for texts about the last hours.
pub(super) fn time_of_day(at: Timestamp) -> String {
    at.strftime("%H:%M UTC").to_string()
}

/// Returns when a poll is abandoned.
pub(super) fn answer_limit(deadline: Instant, ends_at: Option<Instant>) -> Instant {
    ends_at.unwrap_or(deadline + LAST_POLL_LIMIT)
}
