//! Deadlines: a watch ends at the latest five seconds after its own, with what is known then.
//!
//! When the deadline comes, the watch has a last poll, ahead of the ordinary ones. Whatever that waits for (the
//! budget, a slot, the circuit breaker, an answer), the watch ends when its time is over: as `timed_out` where its own
//! last answer came so shortly before the deadline that no other poll was due, otherwise as `unreachable`.
//! A deadline that passed while nothing could be polled has more time, in which failed polls are repeated.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::registry::{Key, LAST_POLL_LIMIT};
use super::{CLOCK_CHECK, ROUNDING, Scheduler};
use crate::clock::Now;
use crate::domain::PollOutcome;
use crate::failpoint::mutant;
use crate::store::PollFailure;

/// How long the API is tried for watches whose deadline passed while the machine slept, or no process ran: a network
/// takes its time to come back.
const PATIENCE: Duration = Duration::from_secs(60);

/// The scheduler has a turn each [`CLOCK_CHECK`]. When there was none for so long, the process was stopped.
const STOPPED: Duration = Duration::from_secs(3);

/// Most steps that are being stored before more watches are ended, as all of them are in memory until then.
const MAX_ENDING: usize = 1_000;

impl Scheduler {
    /// Deals with watches whose deadline has come.
    pub(super) fn expire(&mut self, now: Instant) {
        if now.duration_since(self.turned_at) > CLOCK_CHECK + STOPPED {
            self.be_patient(now);
        }
        self.turned_at = now;
        self.table.expire(now);
        self.table.overtime(now);
        while let Some(key) = self.next_to_end(now) {
            self.end_without_poll(key, now);
        }
        if self.table.first_last_due().is_some() {
            self.provider.breaker.hurry();
        }
    }

    /// Gives watches more time whose deadline passed while nothing could be polled.
    pub(super) fn be_patient(&mut self, now: Instant) {
        self.waking_until = now + PATIENCE;
        for key in self.table.keys() {
            if self.table.get(key).is_some_and(|entry| entry.deadline <= now + ROUNDING) {
                self.table.set_end(key, now + PATIENCE);
            }
        }
    }

    /// Ends all watches there are, with what is known of them.
    pub(super) fn give_up(&mut self, why: String) {
        let now = self.look_at_clock();
        self.given_up = Some(why);
        self.provider.call_back_polls();
        for key in self.table.keys() {
            let Some(entry) = self.table.get_mut(key) else { continue };
            entry.deadline_at = entry.deadline_at.min(self.reading.wall);
            self.table.set_end(key, now);
        }
    }

    /// Whether a failed last poll of a watch is followed by another.
    pub(super) fn tries_again(&self, key: Key, now: Instant) -> bool {
        let entry = self.table.get(key);
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

    /// The next watch, if any, that ends now without another poll: its time is over, or will be before a poll could
    /// go out.
    fn next_to_end(&self, now: Instant) -> Option<Key> {
        let opens_at = self.provider.opens_at(now);
        let too_late = |&(due, key): &(Instant, Key)| {
            self.table.get(key).is_some_and(|entry| {
                let ends_at = entry.ends_at.unwrap_or(now);
                due <= now && (ends_at <= now || (opens_at > ends_at && !entry.is_patient()))
            })
        };
        let next = self.table.first_turns_after_deadline().into_iter().flatten().find(too_late);
        next.filter(|_| self.may_end()).map(|(_, key)| key)
    }

    fn end_without_poll(&mut self, key: Key, now: Instant) {
        let why = self.why_not_polled(key, now);
        let Some(entry) = self.table.get_mut(key) else { return };
        let stands = (mutant("old-answer-decides") || entry.stands()) && entry.progress.answered();
        if !stands {
            entry.last_error = Some(Box::new(PollFailure { at: self.reading.wall, message: why.clone() }));
        }
        self.take_step(key, PollOutcome::NotPolled { stands, why });
    }

    /// Why a watch has no answer that is newer, for people.
    fn why_not_polled(&self, key: Key, now: Instant) -> String {
        if let Some(why) = &self.given_up {
            return why.clone();
        }
        let wall = self.reading.wall;
        if let Some(obstacle) = self.provider.breaker.obstacle(Now { instant: now, wall }) {
            return obstacle;
        }
        let polled_at = self.table.get(key).and_then(|entry| entry.polled_at);
        let since = match polled_at.and_then(|at| wall.checked_sub(now.duration_since(at)).ok()) {
            Some(at) => format!("not polled since {}", time_of_day(at)),
            None => "not polled".to_owned(),
        };
        let runs = self.table.len();
        if self.polls.len() >= self.policy.max_in_flight {
            return format!("{since}: {runs} runs share {} polls at once", self.policy.max_in_flight);
        }
        format!("{since}: {runs} runs share {} requests a minute", self.policy.requests_per_minute)
    }
}

/// The time of day in UTC, for texts about the last hours.
pub(super) fn time_of_day(at: Timestamp) -> String {
    at.strftime("%H:%M UTC").to_string()
}

/// When the answer to a poll is waited for no longer.
pub(super) fn answer_limit(deadline: Instant, ends_at: Option<Instant>) -> Instant {
    ends_at.unwrap_or(deadline + LAST_POLL_LIMIT)
}
