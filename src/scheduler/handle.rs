//! The handle to the scheduler, which all others have.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::{BreakerView, Policy, RunActivity};
use crate::domain::{RunId, Status, Watch};
use crate::providers::{AnyProvider, Provider};
use crate::store::{Added, PollFailure, StoreError};

/// Commands waiting for the owner. Senders wait when it is full.
pub(super) const COMMANDS: usize = 256;

/// A watch as it stands, for showing.
#[derive(Debug, Clone)]
pub struct WatchView {
    /// The run.
    pub run_id: RunId,
    /// The status last seen.
    pub status: Option<Status>,
    /// How many polls were made.
    pub polls: u64,
    /// Since when every answer was 404.
    pub missing_since: Option<Timestamp>,
    /// Whether a poll is under way.
    pub polling: bool,
    /// When it is due next.
    pub next_poll_at: Timestamp,
    /// The last poll that failed.
    pub last_error: Option<PollFailure>,
}

pub(super) enum Command {
    Add { watch: Box<Watch>, origin: AddedBy, reply: oneshot::Sender<Result<Added, StoreError>> },
    Remove { run_id: RunId, force: bool, reply: oneshot::Sender<Result<Removed, StoreError>> },
    View { only: Option<Vec<RunId>>, reply: oneshot::Sender<Vec<WatchView>> },
    Reload { provider: AnyProvider, policy: Box<Policy>, reply: oneshot::Sender<()> },
    GiveUp { why: String, reply: oneshot::Sender<()> },
    Ping { reply: oneshot::Sender<()> },
}

/// Who asks for a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddedBy {
    /// A person or a program.
    Request,
    /// A person or a program, for a run that may have been watched to its end before: it is watched anew.
    RequestAgain,
    /// The configuration: it is added once, and not again after its end.
    Configuration,
}

/// What came of removing a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// It is gone.
    Removed,
    /// There was no watch of that run.
    NotFound,
}

/// A handle to the scheduler; clones share it.
#[derive(Debug, Clone)]
pub struct SchedulerHandle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) breaker: watch::Receiver<BreakerView>,
    pub(super) activities: broadcast::Sender<Arc<RunActivity>>,
}

impl SchedulerHandle {
    /// Stores a watch and begins to follow it; one of the same run that is there already stays as it
    /// is. Cancel-safe: once sent, it is done whether or not anyone waits.
    ///
    /// # Errors
    /// When the store refuses, or the scheduler has ended.
    pub async fn add(&self, watch: Watch, origin: AddedBy) -> Result<Added, StoreError> {
        let watch = Box::new(watch);
        self.ask(|reply| Command::Add { watch, origin, reply }).await?
    }

    /// Deletes the watches of a run and ceases to follow it. With `force`, messages that are not delivered yet are
    /// given up. Cancel-safe as [`SchedulerHandle::add`].
    ///
    /// # Errors
    /// As [`crate::store::Store::remove_watches`], and when the scheduler has ended.
    pub async fn remove(&self, run_id: RunId, force: bool) -> Result<Removed, StoreError> {
        self.ask(|reply| Command::Remove { run_id, force, reply }).await?
    }

    /// The active watches as they stand: all in the order of adding, or those of these runs.
    ///
    /// # Errors
    /// When the scheduler has ended.
    pub async fn view(&self, only: Option<Vec<RunId>>) -> Result<Vec<WatchView>, StoreError> {
        self.ask(|reply| Command::View { only, reply }).await
    }

    /// Polls `provider` from here on, under `policy`. No watch is lost.
    ///
    /// # Errors
    /// When the scheduler has ended.
    pub async fn reload(&self, provider: impl Provider, policy: Policy) -> Result<(), StoreError> {
        let (provider, policy) = (AnyProvider::new(provider), Box::new(policy));
        self.ask(|reply| Command::Reload { provider, policy, reply }).await
    }

    /// Ends all watches as if their deadlines had passed and no time were left for another poll: as `unreachable` for the
    /// reason `why`, unless their last answers are young enough. Cancel-safe as [`SchedulerHandle::add`].
    ///
    /// # Errors
    /// When the scheduler has ended.
    pub async fn give_up(&self, why: String) -> Result<(), StoreError> {
        self.ask(|reply| Command::GiveUp { why, reply }).await
    }

    /// Comes back once the scheduler has seen to everything it was asked before: it makes progress.
    ///
    /// # Errors
    /// When the scheduler has ended.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.ask(|reply| Command::Ping { reply }).await
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_closed| StoreError::Closed)?;
        answer.await.map_err(|_closed| StoreError::Closed)
    }

    /// What the runs with an open event stream are doing, from now on. A receiver that lags behind misses
    /// some, and is told how many.
    pub fn activities(&self) -> broadcast::Receiver<Arc<RunActivity>> {
        self.activities.subscribe()
    }

    /// The state of the API, as it changes.
    pub fn breaker(&self) -> watch::Receiver<BreakerView> {
        self.breaker.clone()
    }
}
