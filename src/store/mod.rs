//! The store: watches, events, deliveries and attempts.
//!
//! `model` describes what is stored, and `operations` what can be done with it, as data. `sqlite` does that in SQLite,
//! and `postgres` in PostgreSQL, which several daemons share; `records` is what both have in common.
//! The handle that the rest of the program uses has a method for each operation (`handle`), and the signals that follow
//! a commit (here). `copy` moves all rows from one store to another, as `tables` describes them.

mod copy;
mod handle;
mod lists;
mod model;
mod operations;
mod postgres;
mod records;
mod signals;
#[cfg(simulation)]
mod simulated;
mod sqlite;
mod tables;

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::domain::Verdict;
use crate::metrics::StoreFigures;
use postgres::Perform;
use sqlite::Execute;

pub use copy::{CopyError, CopyPlace, CopyStep, CopySummary, copy_store, migrate_store};
pub use model::{
    Added, Attempt, AttemptOutcome, AttemptRecord, Claimed, Counts, DatabaseError, Decided,
    DeliveryFilter, DeliveryState, DeliverySummary, DiscoveredRun, DiscoveryId, Fate, GroupOfRuns,
    History, KnownRun, KnownWatch, Location, Mark, NotedRun, Page, PollFailure, Pruned,
    RoutedEvent, RunNote, StatusChange, StoreError, StoredDiscovery, StoredWatch, WatchFilter,
    WatchId, WatchOrder, WatchRecord, WatchState,
};
pub use postgres::{
    Candidate, Durability, HolderId, Horizon, Keeper, LeaseRow, MissingRights, PostgresServer,
    PostgresSettings, Renewal, Rights, ServerFacts, TableFacts, Term, inspect_server,
};
#[cfg(simulation)]
pub use simulated::{LostRows, ServerLink, ServerState, SimulatedConnection, SimulatedServer};
pub use sqlite::{
    BlockingPool, Checkpoint, Done, FileError, FileFacts, Lock, LockError, ReadJob, StoreFile,
    Transaction, TransactionRunner, Writer, inspect_file,
};

/// How long after the store refused something it is tried again: a full disk needs a person, and a lock is soon free.
pub const STORE_RETRY: Duration = Duration::from_secs(5);

/// A handle to the store; clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    engine: StoreEngine,
    state: watch::Receiver<WriterState>,
    history: watch::Receiver<u64>,
    deliveries: watch::Receiver<u64>,
    unknown_commits: watch::Receiver<u64>,
    figures: StoreFigures,
}

/// Where operations are executed.
#[derive(Debug, Clone)]
enum StoreEngine {
    Sqlite(sqlite::SqliteChannels),
    Postgres(postgres::PostgresChannels),
    #[cfg(simulation)]
    Simulated(simulated::SimulatedChannels),
}

/// The state of the writer.
#[derive(Debug, Clone, Copy)]
struct WriterState {
    /// The time since which the writer has been in a transaction.
    busy_since: Option<Instant>,
    /// The worst verdict that was ever stored since the start, or before it and not deleted by
    /// then.
    worst: Option<Verdict>,
}

/// What a commit signals.
#[derive(Debug, Clone, Copy, Default)]
struct Wakes {
    history: bool,
    deliveries: bool,
    /// The verdict that was stored.
    verdict: Option<Verdict>,
}

impl Store {
    async fn run<O: Execute + Perform>(&self, operation: O) -> Result<O::Reply, StoreError> {
        match &self.engine {
            StoreEngine::Sqlite(channels) => channels.run(operation).await,
            StoreEngine::Postgres(channels) => channels.run(operation).await,
            #[cfg(simulation)]
            StoreEngine::Simulated(channels) => channels.run(operation).await,
        }
    }

    /// Returns the worst verdict of all that were in the store when it was opened and that were
    /// stored since, including those that were deleted meanwhile.
    pub fn worst_verdict(&self) -> Option<Verdict> {
        self.state.borrow().worst
    }

    /// Checks whether the writer makes progress, without waiting for it. Another process, such as a
    /// backup, may block the writer for a while; the store counts as healthy meanwhile.
    ///
    /// # Errors
    /// When the writer has ended, or has been in one transaction for longer than `limit`.
    pub fn progresses(&self, limit: Duration) -> Result<(), StoreError> {
        let is_closed = match &self.engine {
            StoreEngine::Sqlite(channels) => channels.is_closed(),
            StoreEngine::Postgres(channels) => channels.is_closed(),
            #[cfg(simulation)]
            StoreEngine::Simulated(channels) => channels.is_closed(),
        };
        if is_closed {
            return Err(StoreError::Closed);
        }
        let busy = self.state.borrow().busy_since.map(|since| since.elapsed());
        busy.filter(|busy| *busy > limit)
            .map_or(Ok(()), |busy| Err(StoreError::Stuck(busy)))
    }

    /// How many commits had an outcome that is not known, as it changes; 0 in SQLite, which knows it always.
    pub fn unknown_commits(&self) -> watch::Receiver<u64> {
        self.unknown_commits.clone()
    }

    /// What is measured of the transactions that write.
    pub fn figures(&self) -> &StoreFigures {
        &self.figures
    }

    /// Returns a signal that changes whenever status changes or events were committed.
    pub fn history_changed(&self) -> watch::Receiver<u64> {
        self.history.clone()
    }

    /// Returns a signal that changes whenever deliveries were added, attempted, retried, given up
    /// or removed.
    pub fn deliveries_changed(&self) -> watch::Receiver<u64> {
        self.deliveries.clone()
    }
}
