//! Polls: which watch is polled next, and what follows from the outcome.

use std::time::Duration;

use tokio::time::Instant;

use super::breaker::{Outage, REFUSED_PROBE, URGENT_PROBE};
use super::deadline::answer_limit;
use super::follow::POLLS_PER_STREAM;
use super::lists::PageTurn;
use super::registry::{Key, Phase, WatchEntry};
use super::{ROUNDING, Scheduler, instant_of};
use crate::clock::Now;
use crate::domain::{Event, Limits, Observation, PollOutcome};
use crate::providers::ApiError;
use crate::store::PollFailure;

pub(super) struct Polled {
    key: Key,
    began: Instant,
    answer: Result<Observation, PollError>,
    /// The longest pause that was requested, apart from that of an error.
    pause: Option<Duration>,
    /// How many requests were made, as far as that is known.
    requests: u32,
}

pub(super) enum PollError {
    Api(ApiError),
    PastDeadline,
    /// The poll was called back: the run is polled again at once.
    CalledBack,
}

/// What is requested next.
enum Turn {
    /// A run, and whether the deadline of its watch has come.
    Poll(Key, bool),
    /// A page of a list.
    Page(PageTurn),
}

/// When a watch is polled again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// After the next, longer interval.
    Onward,
    /// After the first interval: something changed.
    Anew,
    /// The same, and behind those that are due when the circuit breaker lets requests through: the
    /// poll failed, and the next one must be of another run in case this run is the cause.
    Behind,
    /// After this time.
    In(Duration),
}

impl Scheduler {
    /// Sends polls for watches that are due, as far as all limits allow.
    pub(super) fn dispatch(&mut self, now: Instant) {
        while let Some(turn) = self.next_turn(now) {
            let in_flight = self.polls.len() + self.pages.len();
            if in_flight >= self.policy.max_in_flight
                || !self.provider.breaker.admits(now, in_flight)
                || self.provider.budget.next_at() > now
            {
                return;
            }
            let (key, is_last) = match turn {
                Turn::Poll(key, is_last) => (key, is_last),
                Turn::Page(page) => {
                    if !self.provider.budget.try_take(now) {
                        return;
                    }
                    self.provider.lists.turn_is_over = true;
                    self.request_page(page, now);
                    continue;
                }
            };
            let later = match is_last {
                true => None,
                false => self
                    .postponed(key, now)
                    .or_else(|| self.left_to_list(key, now)),
            };
            if let Some(later) = later {
                self.registry.queue(key, later);
                continue;
            }
            if self.provider.polls_since_stream >= POLLS_PER_STREAM
                && self.registry.get(key).is_some_and(|entry| !entry.hinted)
            {
                self.open_stream(now);
            }
            if !self.provider.budget.try_take(now) {
                return;
            }
            self.send_poll(key, is_last, now);
        }
    }

    /// Sends a poll, whose outcome comes to [`Scheduler::polls`].
    fn send_poll(&mut self, key: Key, is_last: bool, now: Instant) {
        self.provider.polls_since_stream = self.provider.polls_since_stream.saturating_add(1);
        self.last_polls_turn_is_over = is_last;
        self.provider.lists.turn_is_over = false;
        let entry = self.registry.unqueue(key);
        entry.phase = Phase::Polling;
        entry.polled_at = Some(now);
        entry.polled_on_hint = std::mem::take(&mut entry.hinted);
        let provider = self.provider.client.clone();
        let run_id = entry.run_id.clone();
        let limit = answer_limit(entry.deadline, entry.ends_at);
        let current = self.provider.current.clone();
        self.polls.spawn(async move {
            let poll = provider.get_run(&run_id);
            // All arms are cancel-safe: a request that is dropped is abandoned, as intended. An
            // answer that was received counts, even if another arm is ready as well.
            let reply = tokio::select! {
                biased;
                reply = poll => Ok(reply),
                () = current.cancelled() => Err(PollError::CalledBack),
                () = tokio::time::sleep_until(limit) => Err(PollError::PastDeadline),
            };
            let (answer, pause, requests) = match reply {
                Ok(reply) => (
                    reply.result.map_err(PollError::Api),
                    reply.pause,
                    reply.requests,
                ),
                Err(error) => (Err(error), None, 1),
            };
            Polled {
                key,
                began: now,
                answer,
                pause,
                requests,
            }
        });
    }

    /// Returns what is requested next. Last polls and polls that a list or a stream is the reason for go
    /// ahead of the pages of lists; other polls and pages take turns, so that neither waits for all of the other.
    fn next_turn(&self, now: Instant) -> Option<Turn> {
        let poll = self.next_poll(now);
        let Some(page) = self.page_turn(now) else {
            return poll.map(|(key, is_last)| Turn::Poll(key, is_last));
        };
        let goes_ahead = |&(key, is_last): &(Key, bool)| {
            let first = |entry: &WatchEntry| entry.due <= self.earliest;
            is_last || self.provider.lists.turn_is_over || self.registry.get(key).is_some_and(first)
        };
        Some(match poll.filter(goes_ahead) {
            Some((key, is_last)) => Turn::Poll(key, is_last),
            None => Turn::Page(page),
        })
    }

    /// Returns the watch to poll next, and whether its deadline has come. The watch that has been due
    /// the longest is first. Last polls go ahead of the others, except that every second poll is of a
    /// watch that was due before the deadline: otherwise a budget that suffices for last polls only
    /// would leave new watches without any poll.
    fn next_poll(&self, now: Instant) -> Option<(Key, bool)> {
        let has_come = |&(due, _): &(Instant, Key)| due <= now;
        let ordinary = self.registry.first_due().filter(has_come);
        // A watch whose time is over ends without a poll.
        let in_time = |entry: &&WatchEntry| entry.ends_at.is_none_or(|ends_at| ends_at > now);
        let last = self.registry.first_last_due().filter(has_come);
        let last =
            last.and_then(|(_, key)| Some((self.registry.get(key).filter(in_time)?.deadline, key)));
        match (ordinary, last) {
            (Some((due, key)), Some((deadline, _)))
                if self.last_polls_turn_is_over && due < deadline =>
            {
                Some((key, false))
            }
            (_, Some((_, key))) => Some((key, true)),
            (ordinary, None) => ordinary.map(|(_, key)| (key, false)),
        }
    }

    /// Returns the time to which the poll of a due watch is postponed because its stream shows that
    /// the run is active: the time that would apply if the last event had been a poll.
    fn postponed(&mut self, key: Key, now: Instant) -> Option<Instant> {
        let entry = self.registry.get_mut(key)?;
        if entry.hinted {
            return None;
        }
        let last_item_at = self.provider.streams.last_item_at(key)?;
        let backoff = &self.policy.backoff;
        let stands_until = last_item_at
            + backoff.interval_after(last_item_at.saturating_duration_since(entry.changed_at));
        let longest = entry.polled_at? + backoff.max;
        // A poll that decides something is not postponed.
        let mark = next_decision_at(
            entry,
            &self.policy.limits,
            Now {
                instant: now,
                wall: self.reading.wall,
            },
        )
        .unwrap_or(longest);
        let later = stands_until.min(longest).min(mark).min(entry.deadline);
        (later > now).then(|| {
            entry.interval = Some(backoff.interval_after(now.duration_since(entry.changed_at)));
            later
        })
    }

    /// Handles the outcome of a poll.
    pub(super) fn polled(&mut self, polled: Polled) {
        let now = Now {
            instant: self.look_at_clock(),
            wall: self.reading.wall,
        };
        let key = polled.key;
        let result = match &polled.answer {
            Ok(_) => "ok",
            Err(PollError::Api(error)) => error.kind(),
            Err(PollError::PastDeadline | PollError::CalledBack) => "abandoned",
        };
        self.metrics
            .polled(result, now.instant.duration_since(polled.began));
        let Some((outcome, event)) = self.outcome_of(polled, now) else {
            return;
        };
        let outcome = self.weigh(key, outcome);
        self.check_list(key, &outcome, now.instant);
        if let Some(event) = event {
            self.emit(event);
        }
        self.take_step(key, outcome);
    }

    /// Returns what a poll found, and the event about the API that follows from it; `None` if the watch is gone or is
    /// polled again. The entry and the circuit breaker take the answer in.
    fn outcome_of(&mut self, polled: Polled, now: Now) -> Option<(PollOutcome, Option<Event>)> {
        let Polled {
            key,
            began,
            answer,
            mut pause,
            requests,
        } = polled;
        // The first one was taken from the budget before the poll.
        let further = requests.saturating_sub(1);
        self.provider.budget.charge(further, now.instant);
        let of_error = match &answer {
            Err(PollError::Api(error)) => error.retry_after(),
            Ok(_) | Err(PollError::PastDeadline | PollError::CalledBack) => None,
        };
        let outcome = self.outcome_of_answer(key, began, answer, now);
        if outcome.is_none() {
            // The watch is gone; the pause holds all the same.
            pause = pause.max(of_error);
        }
        if let Some(pause) = pause {
            self.provider.breaker.pause(pause, now.instant);
        }
        outcome
    }

    fn outcome_of_answer(
        &mut self,
        key: Key,
        began: Instant,
        answer: Result<Observation, PollError>,
        now: Now,
    ) -> Option<(PollOutcome, Option<Event>)> {
        let tries_again = self.tries_again(key, now.instant);
        let entry = self.registry.get_mut(key)?;
        entry.phase = Phase::Waiting;
        let counted = entry.counted(began, now.instant);
        Some(match answer {
            Ok(observation) => {
                entry.refused = false;
                entry.answered_at = Some(now.instant);
                entry.seen_past_deadline |= now.instant >= entry.deadline;
                let event = self.provider.breaker.answered(began, now.wall);
                (PollOutcome::Seen(Box::new(observation)), event)
            }
            Err(PollError::Api(error)) if error.is_not_found() => {
                entry.refused = false;
                entry.answered_at = Some(now.instant);
                (
                    PollOutcome::Missing { counted },
                    self.provider.breaker.answered(began, now.wall),
                )
            }
            Err(PollError::Api(error)) => {
                let message = error.describe();
                tracing::debug!(run_id = %entry.run_id, error = %message, "poll failed");
                // Rejected again although the API answered other polls since: the cause is this run,
                // not the key.
                let own_refusal = error.is_unauthorized()
                    && std::mem::replace(&mut entry.refused, error.is_unauthorized())
                    && self.provider.breaker.outage() != Some(Outage::Refused);
                let why = format!("the last poll failed: {message}");
                entry.last_error = Some(Box::new(PollFailure {
                    at: now.wall,
                    message,
                }));
                let event =
                    self.provider
                        .breaker
                        .failed(&error, own_refusal, now, &mut self.random);
                (
                    PollOutcome::Failed {
                        why,
                        retried: tries_again,
                    },
                    event,
                )
            }
            Err(PollError::PastDeadline) => {
                let message = "no answer to the last poll within 5 s of the deadline".to_owned();
                entry.last_error = Some(Box::new(PollFailure {
                    at: now.wall,
                    message: message.clone(),
                }));
                (
                    PollOutcome::Failed {
                        why: message,
                        retried: false,
                    },
                    None,
                )
            }
            Err(PollError::CalledBack) => {
                self.registry.queue(key, now.instant);
                return None;
            }
        })
    }

    /// Returns what counts after a poll: its outcome, unless something that is known already outweighs it.
    fn weigh(&self, key: Key, outcome: PollOutcome) -> PollOutcome {
        let entry = self.registry.get(key);
        let seen_past_deadline = entry.is_some_and(|entry| entry.seen_past_deadline);
        match outcome {
            // A failure after that does not outweigh an observation after the deadline.
            PollOutcome::Failed { why, .. } if seen_past_deadline => {
                PollOutcome::NotPolled { stands: true, why }
            }
            PollOutcome::Missing { .. } if seen_past_deadline => PollOutcome::NotPolled {
                stands: true,
                why: "the API knew the run after the deadline".to_owned(),
            },
            // The reason why all watches end counts, and not what the last poll happened to get.
            PollOutcome::Missing { .. } | PollOutcome::Failed { .. }
                if let Some(why) = &self.given_up =>
            {
                PollOutcome::NotPolled {
                    stands: false,
                    why: why.clone(),
                }
            }
            other => other,
        }
    }

    /// Sets when a watch is due again.
    pub(super) fn reschedule(&mut self, key: Key, pace: Pace) {
        let (now, wall) = (Instant::now(), self.reading.wall);
        let entry = self
            .registry
            .get_mut(key)
            .expect("the caller holds a key of an entry");
        // When the key is rejected, the circuit breaker decides when it is probed.
        let refused_alone =
            entry.refused && self.provider.breaker.outage() != Some(Outage::Refused);
        let backoff = &self.policy.backoff;
        let wait = match pace {
            Pace::In(wait) => wait,
            Pace::Behind if refused_alone => REFUSED_PROBE,
            Pace::Behind | Pace::Onward | Pace::Anew => {
                let current = entry.interval.filter(|_| pace != Pace::Anew);
                // Jitter makes waits shorter than their intervals, so the intervals alone would grow
                // faster than the promised share of the run's age.
                let interval = backoff
                    .next(current)
                    .min(backoff.interval_after(now.duration_since(entry.changed_at)));
                entry.interval = Some(interval);
                backoff.wait(interval, &mut self.random)
            }
        };
        let decides_at = decides_at(entry, &self.policy.limits, Now { instant: now, wall });
        let is_last = entry.ends_at.is_some();
        let mut due = now + wait;
        if let Some(opens_at) = self
            .provider
            .breaker
            .opens_at()
            .filter(|_| pace == Pace::Behind && !is_last)
        {
            due = due.max(opens_at + ROUNDING);
        }
        let due = match (entry.hinted, pace) {
            // The circuit breaker decides when, and `hurry` makes it decide early for these.
            (_, Pace::Behind) if is_last && !refused_alone => now + URGENT_PROBE,
            (_, Pace::Onward | Pace::Anew) if is_last => decides_at.unwrap_or(now),
            // A failing store gets time to recover whatever a stream reported: otherwise the
            // scheduler would poll in a loop.
            (true, Pace::In(_)) => due,
            (true, _) => self.earliest,
            (false, _) => decides_at.map_or(due, |decides_at| decides_at.min(due)),
        };
        self.registry.queue(key, due);
    }
}

/// Returns the next time after `now` at which an observation would decide something.
fn decides_at(
    entry: &WatchEntry,
    limits: &Limits,
    Now { instant: now, wall }: Now,
) -> Option<Instant> {
    let mark =
        next_decision_at(entry, limits, Now { instant: now, wall }).filter(|mark| *mark > now);
    let deadline = (entry.deadline_at > wall).then(|| instant_of(entry.deadline_at, wall, now));
    mark.into_iter().chain(deadline).min()
}

/// Returns when the grace period of a missing run ends or a run becomes overdue, whichever is first.
/// The time may have passed.
pub(super) fn next_decision_at(
    entry: &WatchEntry,
    limits: &Limits,
    Now { instant: now, wall }: Now,
) -> Option<Instant> {
    let grace_left = entry.progress.grace_left(limits);
    let grace_ends = grace_left.and_then(|left| Some(entry.answered_at? + left + ROUNDING));
    let overdue_at = entry
        .progress
        .overdue_at(entry.added_at, limits)
        .map(|at| instant_of(at, wall, now));
    grace_ends.into_iter().chain(overdue_at).min()
}
