//! Asking: whose turn it is, and what came of it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::following::POLLS_PER_STREAM;
use super::table::{Entry, Key, Phase};
use super::upstream::{REFUSED_PROBE, Trouble};
use super::{ROUNDING, Scheduler, instant_of};
use crate::api::{ApiError, Reply, RunSource};
use crate::run::{Answer, Limits};
use crate::store::PollFailure;

/// How long past its deadline a watch waits for the answer of its last poll.
const LAST_POLL_LIMIT: Duration = Duration::from_secs(5);

pub(super) struct Polled {
    key: Key,
    began: Instant,
    answer: Result<Reply, PollError>,
}

pub(super) enum PollError {
    Api(ApiError),
    PastDeadline,
}

/// When a watch is asked for again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// After the next, longer interval.
    Onward,
    /// After the first interval: something changed.
    Anew,
    /// The same, and behind those that are due when the API may be asked again: the poll failed, and the
    /// next that goes out must not be of the same run, should it be the run's fault.
    Behind,
    /// After this time.
    In(Duration),
}

impl<S: RunSource> Scheduler<S> {
    /// Deals with watches whose deadline has come. Each gets a last poll; where the API may not be
    /// asked now, it ends without.
    pub(super) fn expire(&mut self, now: Instant) {
        for key in self.table.expire(now) {
            // Its last poll goes ahead of others, that may be put off.
            if self.table.get(key).is_some_and(|entry| entry.phase == Phase::Waiting) {
                self.table.queue(key, self.first_of_all);
            }
        }
        if self.upstream.trouble().is_none() || self.table.expired().next().is_none() {
            return;
        }
        let failing = self.upstream.trouble() == Some(Trouble::Failing);
        let silent = self.upstream.silent_for(self.reading.wall) > self.policy.growth.max;
        let may_end = |entry: &Entry| {
            let asked_in_vain = !failing || self.upstream.failed_since(entry.deadline);
            let shut = self.upstream.opens_at().is_some_and(|opens| opens > now);
            // One that is due later waits for a store that failed.
            entry.phase == Phase::Waiting && shut && asked_in_vain && entry.due <= now
        };
        let ending: Vec<Key> = self.table.expired().filter(|(_, entry)| may_end(entry)).map(|(key, _)| key).collect();
        for key in ending {
            self.take_step(key, Answer::NotAsked { silent });
        }
        if self.table.expired().any(|(_, entry)| entry.phase == Phase::Waiting) {
            self.upstream.hurry();
        }
    }

    /// Sends polls for watches that are due, the longest due first, as far as all limits allow.
    pub(super) fn dispatch(&mut self, now: Instant) {
        while let Some((due, key)) = self.table.first_due() {
            let in_flight = self.polls.len();
            if due > now || in_flight >= self.policy.max_in_flight || !self.upstream.admits(now, in_flight) {
                return;
            }
            if let Some(later) = self.postponed(key, now) {
                self.table.queue(key, later);
                continue;
            }
            if self.polls_since_stream >= POLLS_PER_STREAM && self.table.get(key).is_some_and(|entry| !entry.hinted) {
                self.open_stream(now);
            }
            if !self.budget.try_take(now) {
                return;
            }
            self.polls_since_stream = self.polls_since_stream.saturating_add(1);
            let entry = self.table.unqueue(key);
            entry.phase = Phase::Polling;
            entry.polled_at = Some(now);
            entry.asked_on_hint = std::mem::take(&mut entry.hinted);
            let source = Arc::clone(&self.source);
            let run_id = entry.run_id.clone();
            let limit = entry.deadline.max(now) + LAST_POLL_LIMIT;
            self.polls.spawn(async move {
                // On the heap: it is large, and would be copied along each time that what holds it is moved.
                let asked = Box::pin(source.get_run(&run_id));
                let answer = match tokio::time::timeout_at(limit, asked).await {
                    Ok(answer) => answer.map_err(PollError::Api),
                    Err(_elapsed) => Err(PollError::PastDeadline),
                };
                Polled { key, began: now, answer }
            });
        }
    }

    /// To when the poll of a watch that is due can be put off because its stream shows that the run goes on:
    /// to where it would be if the last sign of life had been a poll.
    fn postponed(&mut self, key: Key, now: Instant) -> Option<Instant> {
        let entry = self.table.get_mut(key)?;
        if entry.hinted {
            return None;
        }
        let heard_at = self.streams.heard_at(key)?;
        let growth = &self.policy.growth;
        let stands_until = heard_at + growth.after(heard_at.saturating_duration_since(entry.changed_at));
        let longest = entry.polled_at? + growth.max;
        let decides_at = decides_at(entry, &self.policy.limits, (now, self.reading.wall));
        let later = stands_until.min(longest).min(decides_at.unwrap_or(longest));
        (later > now).then(|| {
            entry.interval = Some(growth.after(now.duration_since(entry.changed_at)));
            later
        })
    }

    /// Takes in what a poll brought.
    pub(super) fn polled(&mut self, polled: Polled) {
        let now = (self.look_at_clock(), self.reading.wall);
        let Polled { key, began, answer } = polled;
        let result = match &answer {
            Ok(_) => "ok",
            Err(PollError::Api(error)) => error.kind(),
            Err(PollError::PastDeadline) => "abandoned",
        };
        self.metrics.polled(result, now.0.duration_since(began));
        let Some(entry) = self.table.get_mut(key) else { return };
        entry.phase = Phase::Waiting;
        let (answer, told) = match answer {
            Ok(reply) => {
                entry.refused = false;
                let told = self.upstream.answered(began, now.1);
                if let Some(pause) = reply.pause {
                    self.upstream.pause(pause, now.0);
                }
                (Answer::Seen(Box::new(reply.observation)), told)
            }
            Err(PollError::Api(error)) if error.is_not_found() => {
                entry.refused = false;
                (Answer::Missing, self.upstream.answered(began, now.1))
            }
            Err(PollError::Api(error)) => {
                let message = error.describe();
                tracing::debug!(run_id = %entry.run_id, error = %message, "poll failed");
                // Refused again, though the API served others meanwhile: it is this run, not the key.
                let own_refusal = error.is_unauthorized()
                    && std::mem::replace(&mut entry.refused, error.is_unauthorized())
                    && self.upstream.trouble() != Some(Trouble::Refused);
                entry.last_error = Some(Box::new(PollFailure { at: now.1, message }));
                (Answer::Failed, self.upstream.failed(&error, own_refusal, now, &mut self.random))
            }
            Err(PollError::PastDeadline) => {
                let message = "no answer to the last poll within 5 s of the deadline".to_owned();
                entry.last_error = Some(Box::new(PollFailure { at: now.1, message }));
                (Answer::Failed, None)
            }
        };
        if let Some(event) = told {
            self.tell(event);
        }
        self.take_step(key, answer);
    }

    /// Sets when a watch is due again.
    pub(super) fn reschedule(&mut self, key: Key, pace: Pace) {
        let (now, wall) = (Instant::now(), self.reading.wall);
        let entry = self.table.get_mut(key).expect("the caller holds a key of an entry");
        let growth = &self.policy.growth;
        let wait = match pace {
            Pace::In(wait) => wait,
            Pace::Behind if entry.refused => REFUSED_PROBE,
            Pace::Behind | Pace::Onward | Pace::Anew => {
                let current = entry.interval.filter(|_| pace != Pace::Anew);
                // Waits are shorter than their intervals by the jitter, so the intervals alone would grow faster
                // than the time that a promise about delays is a part of.
                let interval = growth.next(current).min(growth.after(now.duration_since(entry.changed_at)));
                entry.interval = Some(interval);
                growth.wait(interval, &mut self.random)
            }
        };
        let decides_at = decides_at(entry, &self.policy.limits, (now, wall));
        let mut due = now + wait;
        if let Some(opens_at) = self.upstream.opens_at().filter(|_| pace == Pace::Behind) {
            due = due.max(opens_at + ROUNDING);
        }
        let due = match (entry.hinted, pace) {
            // A store that fails is given its time, whatever a stream said: else this would go round and round.
            (true, Pace::In(_)) => due,
            (true, _) => self.first_of_all,
            (false, _) => decides_at.map_or(due, |decides_at| decides_at.min(due)),
        };
        self.table.queue(key, due);
    }
}

/// When, besides the ordinary poll, an answer would decide something: after `now`, which is a time of both clocks.
fn decides_at(entry: &Entry, limits: &Limits, (now, wall): (Instant, Timestamp)) -> Option<Instant> {
    let mark = entry.progress.next_mark(entry.added_at, limits);
    let mark = mark.map(|mark| instant_of(mark, wall, now)).filter(|mark| *mark > now);
    let deadline = (entry.deadline_at > wall).then(|| instant_of(entry.deadline_at, wall, now));
    mark.into_iter().chain(deadline).min()
}
