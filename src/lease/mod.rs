//! The lease: which of the daemons that share a store leads.
//!
//! One row of the store names the leader and its term. The leader renews it; a daemon that stands by takes it when it
//! was released, or when it saw no renewal for as long as the row itself requires. No two clocks of machines are ever
//! compared, and an error never prolongs a lease. The leader builds the engine; its writes require the term, and its
//! requests pass the [`Gate`], which is open only while the lease is confirmed.
//!
//! ```text
//! standby ──take──► leading, confirmed ──⅔ of the lease without a renewal──► leading, gate closed
//!    ▲                  │      ▲                                                │        │
//!    └──another took it─┘      └────────────────renewed─────────────────────────┘        │
//!    └───────────────────────────────another took it─────────────────────────────────────┘
//! ```

mod gate;
mod holder;
mod published;
#[cfg(any(test, simulation))]
mod row;
mod task;
#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::SignedDuration;

pub use self::gate::{Gate, GateControl, GatedSink, gated};
pub use self::holder::HolderFile;
pub use self::published::Published;
pub use self::task::{LeaseHandle, LeaseTable, LeaseTask};
use crate::store::Term;

/// How many parts a lease has; a leader renews it after one of them.
const PARTS: u32 = 5;

/// How often a daemon that stands by looks at the lease, at the most: so soon after a clean stop another one leads.
const LOOK_PERIOD: Duration = Duration::from_millis(500);

/// A leader, as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// Names its process; random.
    pub id: String,
    /// The name of its machine.
    pub name: String,
    /// The version of its program.
    pub version: String,
    /// The number of its term; each is greater than those before.
    pub term: i64,
}

/// Who leads, as this daemon knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaseView {
    /// The term in which this daemon leads; `None` while it stands by. It stays while the store does not confirm the
    /// lease, and goes on where no other daemon took it meanwhile.
    pub term: Option<Term>,
    /// Whether this daemon leads, and a person wants another one to.
    pub is_release_requested: bool,
    /// The leader last seen, which may be this daemon.
    pub leader: Option<Leader>,
    /// What the leader wrote beside its last renewal.
    pub published: String,
    /// Why the lease cannot be read; `None` while it can.
    pub problem: Option<String>,
    /// Until when the lease of this daemon is confirmed, as [`crate::clock::Clock::passed`] counts.
    pub confirmed_until: Duration,
    /// How far the clock of this machine is ahead of the one of the store.
    pub clock_ahead: SignedDuration,
}

impl LeaseView {
    /// Whether this daemon has a term in which its lease is confirmed at `now`, as [`crate::clock::Clock::passed`]
    /// counts. Where it is not, another daemon may lead by now.
    pub fn is_confirmed(&self, now: Duration) -> bool {
        self.term.is_some() && now < self.confirmed_until
    }

    /// Why the lease cannot be read, or why this daemon does not lead at `now` although its term goes on. `None` where
    /// neither is the case.
    pub fn problem_at(&self, now: Duration) -> Option<String> {
        let is_unconfirmed = self.term.is_some() && !self.is_confirmed(now);
        let unconfirmed = || "the store has not confirmed the lease of this daemon".to_owned();
        let problem = self.problem.clone();
        problem.or_else(|| is_unconfirmed.then(unconfirmed))
    }

    /// Describes, for people, who leads or why that is not known; `None` where this daemon leads and all is well.
    pub fn sentence(&self) -> Option<String> {
        match (&self.problem, &self.term, &self.leader) {
            (Some(problem), _, _) => Some(problem.clone()),
            (None, Some(_), _) => None,
            (None, None, Some(leader)) => Some(format!(
                "standing by: {} leads ({}, term {})",
                leader.name, leader.version, leader.term
            )),
            (None, None, None) => Some("standing by: no daemon leads".to_owned()),
        }
    }

    /// Whether the leader is another daemon, and has other settings than these.
    pub fn settings_differ(&self, settings: u64) -> bool {
        let others = || Published::read(&self.published).settings;
        self.term.is_none() && self.leader.is_some() && others() != settings
    }

    /// What an operator should know, on a daemon with these `settings`: of the lease, and of the leader.
    pub fn notices(&self, settings: u64) -> Vec<String> {
        // That another daemon leads is nothing to worry about.
        let is_led = self.problem.is_none() && self.leader.is_some();
        let mut notices: Vec<_> = self.sentence().filter(|_| !is_led).into_iter().collect();
        if self.settings_differ(settings) {
            notices.push(
                "the settings of this daemon differ from those of the leader, which count"
                    .to_owned(),
            );
        }
        if self.term.is_none() {
            notices.extend(Published::read(&self.published).notices);
        }
        notices
    }
}
