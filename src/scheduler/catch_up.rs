//! The round of polls after a start or a sleep, in which the ends become known that nothing watched. Until it is over,
//! their deliveries to sinks that get a summary are held.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::Scheduler;
use super::registry::{Key, Phase, WatchEntry};
use crate::catch_ups::CatchUps;
use crate::domain::{Event, Verdict, Watch};

/// The longest time for which ends are held, while not every run was polled: an API may be down, or the budget small.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(120);

/// Most watches that one turn looks at, so that no turn takes long.
const LOOKED_AT: u32 = 50_000;

/// The round of one scheduler.
#[derive(Debug, Default)]
pub(super) struct CatchUp {
    pub(super) rounds: CatchUps,
    round: Option<CatchUpRound>,
}

#[derive(Debug)]
struct CatchUpRound {
    began: Instant,
    /// As `began`, on the wall clock.
    began_at: Timestamp,
    /// The first watch that is not known to be through.
    next: Key,
    /// Whether ends are still held. Where the round took too long, it is over with what is being stored.
    is_holding: bool,
}

impl CatchUpRound {
    /// Whether what nothing watched is known of a watch.
    fn is_through(&self, entry: &WatchEntry) -> bool {
        let is_polled = entry.answered_at.is_some_and(|at| at >= self.began);
        entry.phase != Phase::Storing
            && (is_polled || !self.is_holding || entry.goes_on_since(self.began_at))
    }
}

impl CatchUp {
    /// Whether the end of a watch is one that nothing watched, so that it belongs in a summary.
    pub(super) fn summarizes(&self, event: &Event, watch: &Watch) -> bool {
        let Some(round) = self.round.as_ref().filter(|round| round.is_holding) else {
            return false;
        };
        let (Some(verdict), Some(data)) = (event.event_type.verdict(), event.run()) else {
            return false;
        };
        let is_before = |at: Timestamp| at < round.began_at;
        match verdict {
            Verdict::TimedOut | Verdict::Unreachable => is_before(watch.deadline_at),
            _ => data.watch.late || data.run.completed_at.is_some_and(is_before),
        }
    }
}

impl Scheduler {
    /// Begins a round, or begins it anew.
    pub(super) fn begin_catch_up(&mut self, now: Instant) {
        if self.registry.is_empty() {
            return;
        }
        let round = CatchUpRound {
            began: now,
            began_at: self.reading.wall,
            next: 0,
            is_holding: true,
        };
        if self.catch_up.round.replace(round).is_none() {
            self.catch_up.rounds.begin();
        }
    }

    /// Ends the round once every watch was polled in it, or it took too long. What was held is stored by then.
    pub(super) fn look_at_catch_up(&mut self, now: Instant) {
        let Some(round) = &mut self.catch_up.round else {
            return;
        };
        if round.is_holding && now.duration_since(round.began) >= CATCH_UP_LIMIT {
            tracing::info!("not every run was polled yet; summaries have the ends that are known");
            round.is_holding = false;
            round.next = 0;
        }
        for _ in 0..LOOKED_AT {
            if round.next >= self.registry.ever() {
                self.catch_up.round = None;
                return self.catch_up.rounds.end();
            }
            let entry = self.registry.get(round.next);
            if entry.is_some_and(|entry| !round.is_through(entry)) {
                return;
            }
            round.next += 1;
        }
    }
}
