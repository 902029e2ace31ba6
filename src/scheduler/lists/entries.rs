//! What an entry of a list means for the watches of its run, and what their polls show of the list.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::domain::{Observation, PollOutcome, RunDetails, RunState, Status, Verdict};
use crate::failpoint::mutant;
use crate::providers::ListEntry;
use crate::scheduler::Scheduler;
use crate::scheduler::poll::Pace;
use crate::scheduler::registry::{Key, Phase, WatchEntry};

/// After how many contradicted entries, if they are more than the confirmed ones, a list rests.
const CONTRADICTIONS: u32 = 10;

/// For how long a watch is not left to a list that a poll contradicted.
const DOUBT: Duration = Duration::from_secs(600);

impl Scheduler {
    /// Takes in what a list shows of a run. Returns its watches of the group, and whether it shows that the run goes on.
    pub(super) fn observe_listed(
        &mut self,
        listed: &ListEntry,
        of_sweep: Option<(u32, u32)>,
        began: Instant,
        began_at: Timestamp,
    ) -> (Vec<Key>, bool) {
        let keys = self.registry.keys_of(&listed.run_id);
        let ended = Verdict::of_status(&listed.status).is_some();
        let goes_on = !ended && listed.status.state() != RunState::Unknown;
        for &key in &keys {
            let Some(entry) = self.registry.get_mut(key) else {
                continue;
            };
            let Some(mark) = entry.listed.as_mut() else {
                continue;
            };
            if goes_on && let Some((number, place)) = of_sweep {
                mark.sweep = number;
                mark.place = place;
                mark.going_at = Some(began_at);
            }
            // A poll that began later shows more, and what it leads to is being stored.
            let newer = entry.polled_at.is_some_and(|at| at >= began);
            if entry.phase != Phase::Waiting || entry.ends_at.is_some() || entry.hinted || newer {
                continue;
            }
            if ended {
                if mutant("list-is-believed") {
                    self.take_step(key, PollOutcome::Seen(Box::new(observation_of(listed))));
                    continue;
                }
                self.suspect(key, Instant::now());
            } else if goes_on {
                self.goes_on(key, listed);
            }
        }
        (keys, goes_on)
    }

    /// Counts an entry that shows that a run goes on as a poll of it.
    fn goes_on(&mut self, key: Key, listed: &ListEntry) {
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        // A run that polls do not find is decided by polls.
        if entry.progress.missing_since.is_some() || entry.refused {
            return;
        }
        let state = listed.status.state();
        let known = entry.progress.status.as_ref().map(Status::state);
        match (known, state) {
            (Some(known), state) if known == state => {
                if let Some(mark) = entry.listed.as_mut() {
                    // It was missing from an inconsistent page.
                    mark.suspect = false;
                }
                // Lists come less often than polls would: the interval grows with the age of the run all the same, or
                // the watch would be polled as if it were new.
                let age = Instant::now().duration_since(entry.changed_at);
                entry.interval = Some(self.policy.backoff.interval_after(age));
                self.metrics.listed_going();
                self.reschedule(key, Pace::Onward);
            }
            (None, RunState::Pending | RunState::Running)
            | (Some(RunState::Pending), RunState::Running) => {
                self.metrics.listed_going();
                let seen = PollOutcome::Seen(Box::new(observation_of(listed)));
                self.take_step(key, seen);
            }
            // That it waits for a person, or goes back, is news that a poll confirms.
            _ => self.poll_next(key),
        }
    }

    /// Polls a watch next because its list does not show that it goes on.
    pub(super) fn suspect(&mut self, key: Key, now: Instant) {
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        let Some(mark) = entry.listed.as_mut() else {
            return;
        };
        if mark.doubted_until.is_some_and(|until| now < until) {
            return;
        }
        mark.suspect = true;
        self.poll_next(key);
    }

    fn poll_next(&mut self, key: Key) {
        let waits = |entry: &WatchEntry| entry.phase == Phase::Waiting && entry.ends_at.is_none();
        if self.registry.get(key).is_some_and(waits) {
            self.registry.queue(key, self.earliest);
        }
    }

    /// Compares what a poll found with what the list of the watch showed. Called before the step.
    pub(in crate::scheduler) fn check_list(
        &mut self,
        key: Key,
        outcome: &PollOutcome,
        now: Instant,
    ) {
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        let Some(mark) = entry.listed.as_mut() else {
            return;
        };
        let (goes_on, completed_at) = match outcome {
            PollOutcome::Seen(observation) => (
                Verdict::of_status(&observation.status).is_none(),
                observation.details.completed_at,
            ),
            PollOutcome::Missing { .. } => (false, None),
            // It shows nothing about the run.
            PollOutcome::Failed { .. } | PollOutcome::NotPolled { .. } => return,
        };
        let was_suspect = std::mem::take(&mut mark.suspect);
        let lag =
            mark.going_at
                .zip(completed_at.filter(|_| !goes_on))
                .map(|(going_at, completed_at)| {
                    Duration::try_from(going_at.duration_since(completed_at)).unwrap_or_default()
                });
        let id = mark.group;
        if was_suspect && goes_on {
            mark.doubted_until = Some(now + DOUBT);
        }
        let lists = &mut self.provider.lists;
        let Some(group) = lists.groups.get_mut(&id) else {
            return;
        };
        if was_suspect && goes_on {
            group.contradicted += 1;
        } else if was_suspect {
            group.confirmed += 1;
        }
        let lags = lag.is_some_and(|lag| lag > self.policy.backoff.max);
        let lies = group.contradicted >= CONTRADICTIONS && group.contradicted > group.confirmed;
        if lags || lies {
            tracing::debug!(
                ?lag,
                contradicted = group.contradicted,
                "a list of runs is not up to date; it rests"
            );
            group.distrust(now);
            lists.sweeps.remove(&id);
            let members: Vec<Key> = group.members.iter().copied().collect();
            for member in members.into_iter().filter(|member| *member != key) {
                self.trust_polls(member, now);
            }
        }
    }

    /// Lets a watch wait as others do that was to be polled next because of its list.
    fn trust_polls(&mut self, key: Key, now: Instant) {
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        let Some(mark) = entry.listed.as_mut() else {
            return;
        };
        if std::mem::take(&mut mark.suspect) && entry.phase == Phase::Waiting && !entry.hinted {
            self.registry.queue(key, now);
        }
    }
}

/// What a list shows of a run, as an observation. Further details come with a poll of its own.
fn observation_of(listed: &ListEntry) -> Observation {
    Observation {
        status: listed.status.clone(),
        details: RunDetails {
            attempt: listed.attempt,
            name: listed.name.clone(),
            group: listed.group.clone(),
            created_at: listed.created_at,
            started_at: listed.started_at,
            completed_at: listed.completed_at,
            url: listed.url.clone(),
            ..RunDetails::default()
        },
    }
}
