//! What the handles of a store that daemons share follow.

use tokio::sync::watch;

use super::{Store, StoreEngine, Wakes, WriterState};
use crate::domain::Verdict;
use crate::metrics::StoreFigures;

/// The signals of one connection to the store; clones share them.
#[derive(Debug, Clone)]
pub(super) struct CommitSignals {
    state: watch::Sender<WriterState>,
    pub(super) history: watch::Sender<u64>,
    pub(super) deliveries: watch::Sender<u64>,
    unknown_commits: watch::Sender<u64>,
    pub(super) figures: StoreFigures,
}

impl CommitSignals {
    pub(super) fn new() -> Self {
        Self {
            state: watch::Sender::new(WriterState {
                busy_since: None,
                worst: None,
            }),
            history: watch::Sender::new(0),
            deliveries: watch::Sender::new(0),
            unknown_commits: watch::Sender::new(0),
            figures: StoreFigures::default(),
        }
    }

    /// A handle that follows these signals.
    pub(super) fn store(&self, engine: StoreEngine) -> Store {
        Store {
            engine,
            state: self.state.subscribe(),
            history: self.history.subscribe(),
            deliveries: self.deliveries.subscribe(),
            unknown_commits: self.unknown_commits.subscribe(),
            figures: self.figures.clone(),
        }
    }

    /// Signals what changed.
    pub(super) fn send(&self, wakes: Wakes) {
        if wakes.verdict.is_some() {
            self.state.send_modify(|state| {
                state.worst = Verdict::worst(state.worst.into_iter().chain(wakes.verdict));
            });
        }
        if wakes.history {
            self.history.send_modify(|generation| *generation += 1);
        }
        if wakes.deliveries {
            self.deliveries.send_modify(|generation| *generation += 1);
        }
    }

    /// Signals that the outcome of a commit is not known.
    pub(super) fn count_unknown_commit(&self) {
        self.unknown_commits.send_modify(|count| *count += 1);
    }
}
