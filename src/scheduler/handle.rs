//! The handle through which other parts reach the scheduler.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::{BreakerView, Policy, RunActivity, Usage};
use crate::domain::{Expectation, RunRef, Status, Watch};
use crate::providers::{AnyProvider, ApiError, ListPage, ListRequest, Provider};
use crate::store::{Added, DiscoveredRun, PollFailure, StoreError, StoredWatch};

/// Commands waiting for the owner. Senders wait when it is full.
pub(super) const COMMANDS: usize = 256;

/// The current state of a watch, for people.
#[derive(Debug, Clone)]
pub struct WatchView {
    /// The run.
    pub run_id: RunRef,
    /// The status last seen.
    pub status: Option<Status>,
    /// How many polls were made.
    pub polls: u64,
    /// Since when every answer was 404.
    pub missing_since: Option<Timestamp>,
    /// How long the run is expected to take.
    pub expected: Option<Expectation>,
    /// Whether a poll is under way.
    pub polling: bool,
    /// When it is due next.
    pub next_poll_at: Timestamp,
    /// The last poll that failed.
    pub last_error: Option<PollFailure>,
}

pub(super) enum SchedulerCommand {
    Add {
        watch: Box<Watch>,
        origin: AddedBy,
        reply: oneshot::Sender<Result<Added, StoreError>>,
    },
    Remove {
        run_id: RunRef,
        force: bool,
        reply: oneshot::Sender<Result<Removed, StoreError>>,
    },
    Refresh {
        runs: Vec<(RunRef, Vec<StoredWatch>)>,
        reply: oneshot::Sender<()>,
    },
    View {
        only: Option<Vec<RunRef>>,
        reply: oneshot::Sender<Vec<WatchView>>,
    },
    Usage {
        reply: oneshot::Sender<Usage>,
    },
    List {
        request: Box<ListRequest>,
        reply: oneshot::Sender<Result<ListPage, ApiError>>,
    },
    Reload {
        provider: AnyProvider,
        policy: Box<Policy>,
        reply: oneshot::Sender<()>,
    },
    GiveUp {
        why: String,
        reply: oneshot::Sender<()>,
    },
    Ping {
        reply: oneshot::Sender<()>,
    },
}

/// Who added a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddedBy {
    /// A person or a program.
    Request,
    /// A person or a program, for a run that may have been watched to its end before: it is watched
    /// again.
    RequestAgain,
    /// The configuration: the watch is added once, and not again after its end.
    Configuration,
    /// A discovery: the run is noted in the same transaction, and the watch is added once for each attempt.
    Discovery(Box<DiscoveredRun>),
}

/// The result of removing a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// The watch was removed.
    Removed,
    /// There was no watch of that run.
    NotFound,
}

/// A handle to the scheduler; clones share it.
#[derive(Debug, Clone)]
pub struct SchedulerHandle {
    pub(super) commands: mpsc::Sender<SchedulerCommand>,
    pub(super) breaker: watch::Receiver<BreakerView>,
    pub(super) activities: broadcast::Sender<Arc<RunActivity>>,
}

impl SchedulerHandle {
    /// Stores a watch and begins to follow it; an active watch of the same run stays as it is.
    /// Cancel-safe: once sent, the command is executed whether or not the caller waits.
    ///
    /// # Errors
    /// When the store rejects the write, or the scheduler has ended.
    pub async fn add(&self, watch: Watch, origin: AddedBy) -> Result<Added, StoreError> {
        let watch = Box::new(watch);
        self.ask(|reply| SchedulerCommand::Add {
            watch,
            origin,
            reply,
        })
        .await?
    }

    /// Deletes the watches of a run and stops following it. With `force`, open deliveries are given
    /// up. Cancel-safe as [`SchedulerHandle::add`].
    ///
    /// # Errors
    /// As [`crate::store::Store::remove_watches`], and when the scheduler has ended.
    pub async fn remove(&self, run_id: RunRef, force: bool) -> Result<Removed, StoreError> {
        self.ask(|reply| SchedulerCommand::Remove {
            run_id,
            force,
            reply,
        })
        .await?
    }

    /// Follows exactly these active watches of each of these runs, as they are in the store now: another daemon changed
    /// them.
    ///
    /// # Errors
    /// When the scheduler has ended.
    pub(super) async fn refresh(
        &self,
        runs: Vec<(RunRef, Vec<StoredWatch>)>,
    ) -> Result<(), StoreError> {
        self.ask(|reply| SchedulerCommand::Refresh { runs, reply })
            .await
    }

    /// Returns the active watches: all in the order in which they were added, or those of `only`.
    ///
    /// # Errors
    /// When the scheduler has ended.
    pub async fn view(&self, only: Option<Vec<RunRef>>) -> Result<Vec<WatchView>, StoreError> {
        self.ask(|reply| SchedulerCommand::View { only, reply })
            .await
    }

    /// Returns how many requests were sent, and how many may be.
    ///
    /// # Errors
    /// When the scheduler has ended.
    pub async fn usage(&self) -> Result<Usage, StoreError> {
        self.ask(|reply| SchedulerCommand::Usage { reply }).await
    }

    /// Requests one page of a list of runs. It waits for the budget and for pauses, in turns with
    /// polls and with the scheduler's own lists; its entries count for watched runs as those of a sweep do.
    ///
    /// # Errors
    /// The outer one when the scheduler has ended, the inner one when there is no usable answer.
    pub async fn list(
        &self,
        request: ListRequest,
    ) -> Result<Result<ListPage, ApiError>, StoreError> {
        let request = Box::new(request);
        self.ask(|reply| SchedulerCommand::List { request, reply })
            .await
    }

    /// Polls `provider` from here on, under `policy`. No watch is lost.
    ///
    /// # Errors
    /// When the scheduler has ended.
    pub async fn reload(&self, provider: impl Provider, policy: Policy) -> Result<(), StoreError> {
        self.reload_with(AnyProvider::new(provider), policy).await
    }

    /// As [`SchedulerHandle::reload`].
    pub(super) async fn reload_with(
        &self,
        provider: AnyProvider,
        policy: Policy,
    ) -> Result<(), StoreError> {
        let policy = Box::new(policy);
        self.ask(|reply| SchedulerCommand::Reload {
            provider,
            policy,
            reply,
        })
        .await
    }

    /// Ends all watches as if their deadlines had passed without time for another poll: as
    /// `unreachable` for the reason `why`, unless their last observations are recent enough.
    /// Cancel-safe as [`SchedulerHandle::add`].
    ///
    /// # Errors
    /// When the scheduler has ended.
    pub async fn give_up(&self, why: String) -> Result<(), StoreError> {
        self.ask(|reply| SchedulerCommand::GiveUp { why, reply })
            .await
    }

    /// Returns once the scheduler has handled all earlier commands, which shows that it makes
    /// progress.
    ///
    /// # Errors
    /// When the scheduler has ended.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.ask(|reply| SchedulerCommand::Ping { reply }).await
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> SchedulerCommand,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(command(reply))
            .await
            .map_err(|_closed| StoreError::Closed)?;
        answer.await.map_err(|_closed| StoreError::Closed)
    }

    /// Returns the activity of the runs with an open event stream, from now on. A receiver that lags
    /// behind misses some, and learns how many.
    pub fn activities(&self) -> broadcast::Receiver<Arc<RunActivity>> {
        self.activities.subscribe()
    }

    /// Returns the state of the circuit breaker, as it changes.
    pub fn breaker(&self) -> watch::Receiver<BreakerView> {
        self.breaker.clone()
    }
}
