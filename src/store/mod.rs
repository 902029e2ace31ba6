//! The store: watches, events, deliveries and attempts.
//!
//! `model` describes what is stored, and `sqlite` keeps it in SQLite. This module has the handle that the rest of the
//! program uses, and the signals that a change gives.

mod model;
mod sqlite;

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::domain::Verdict;
use sqlite::Channels;

pub use model::{
    Added, Attempt, AttemptRecord, Cause, Claimed, Counts, Decided, DeliveryFilter, DeliveryState,
    DeliverySummary, Fate, History, Location, Outcome, Page, PollFailure, Pruned, RoutedEvent,
    StatusChange, StoreError, StoredWatch, WatchFilter, WatchId, WatchRecord, WatchState,
};
pub use sqlite::{
    BlockingPool, Checkpoint, Done, Lock, LockError, Reading, Transaction, TransactionRunner,
    Writer,
};

/// A handle to the store; clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    channels: Channels,
    state: watch::Receiver<State>,
    history: watch::Receiver<u64>,
    deliveries: watch::Receiver<u64>,
}

/// What the writer says of itself.
#[derive(Debug, Clone, Copy)]
struct State {
    /// Since when it is in a transaction.
    busy_since: Option<Instant>,
    /// The worst verdict that was stored when it began and since, whether or not it is still there.
    worst: Option<Verdict>,
}

/// Who must look again after a commit.
#[derive(Debug, Clone, Copy, Default)]
struct Wakes {
    history: bool,
    deliveries: bool,
    /// The verdict that was stored.
    verdict: Option<Verdict>,
}

impl Store {
    /// The worst verdict of all that were in the store when it was opened and that were given since, those included
    /// that were deleted meanwhile.
    pub fn worst_verdict(&self) -> Option<Verdict> {
        self.state.borrow().worst
    }

    /// Looks whether the writer makes progress, without waiting for it: another process, such as a backup, may keep
    /// it waiting for a while, and that is no ill health.
    ///
    /// # Errors
    /// When the writer has ended, or has been in one transaction for longer than `limit`.
    pub fn progresses(&self, limit: Duration) -> Result<(), StoreError> {
        if self.channels.is_closed() {
            return Err(StoreError::Closed);
        }
        let busy = self.state.borrow().busy_since.map(|since| since.elapsed());
        busy.filter(|busy| *busy > limit)
            .map_or(Ok(()), |busy| Err(StoreError::Stuck(busy)))
    }

    /// Changes whenever status changes or events were committed.
    pub fn history_changed(&self) -> watch::Receiver<u64> {
        self.history.clone()
    }

    /// Changes whenever deliveries were added, claimed, attempted or put back.
    pub fn deliveries_changed(&self) -> watch::Receiver<u64> {
        self.deliveries.clone()
    }
}
