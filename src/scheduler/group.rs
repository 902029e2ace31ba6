//! One scheduler for each provider in use, behind one handle.
//!
//! Each provider has a scheduler of its own, with its own budget, circuit breaker, pauses, streams and polls in flight,
//! so that one that is down or rate limited holds up no other. A scheduler starts with the first watch of its
//! provider. They meet in the store.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::streams::ACTIVITY_CAPACITY;
use super::{
    AddedBy, BreakerView, Policy, Removed, RunActivity, Scheduler, SchedulerHandle, Usage,
    WatchView, finished,
};
use crate::catch_ups::CatchUps;
use crate::clock::Clock;
use crate::domain::{Event, PastDurations, ProviderName, RunRef, Watch};
use crate::metrics::Metrics;
use crate::providers::{AnyProvider, ApiError, ListPage, ListRequest};
use crate::retry_after::MAX_PAUSE;
use crate::store::{Added, Store, StoreError, StoredWatch};
use crate::text::error_chain;

/// Requests to the owner that wait. Senders wait when it is full.
const REQUESTS: usize = 16;

/// What a scheduler polls, and how.
#[derive(Debug, Clone)]
pub struct Account {
    /// The client.
    pub client: AnyProvider,
    /// The rules.
    pub policy: Policy,
    /// The address of the API, for people; empty where there is none.
    pub base_url: String,
}

/// Makes the account of a provider. It always makes one: that of a provider that cannot be used has a client that
/// says so.
pub type Accounts = Arc<dyn Fn(ProviderName) -> BoxFuture<'static, Account> + Send + Sync>;

/// The circuit breakers of the providers in use, by name.
pub type Breakers = BTreeMap<ProviderName, BreakerView>;

/// Why polls are held back, provider by provider. Crewship, which is the provider that is meant without a name, is not
/// named.
pub fn outage_texts(breakers: &Breakers) -> impl Iterator<Item = String> {
    breakers.iter().filter_map(|(provider, breaker)| {
        let text = breaker.outage_text()?;
        Some(if provider.is_crewship() {
            text
        } else {
            format!("{provider}: {text}")
        })
    })
}

/// A handle to all schedulers; clones share it.
#[derive(Debug, Clone)]
pub struct Schedulers {
    shared: Arc<Shared>,
    requests: mpsc::Sender<GroupRequest>,
}

struct Shared {
    /// Held only to copy in and out.
    running: Mutex<BTreeMap<ProviderName, Running>>,
    breakers: watch::Sender<Breakers>,
    activities: broadcast::Sender<Arc<RunActivity>>,
}

#[derive(Clone)]
struct Running {
    handle: SchedulerHandle,
    base_url: String,
}

impl Shared {
    fn running(&self) -> MutexGuard<'_, BTreeMap<ProviderName, Running>> {
        self.running.lock().expect("no holder panics")
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_set()
            .entries(self.running().keys())
            .finish()
    }
}

enum GroupRequest {
    Start {
        provider: ProviderName,
        reply: oneshot::Sender<SchedulerHandle>,
    },
    Reload {
        accounts: Accounts,
        reply: oneshot::Sender<Result<(), StoreError>>,
    },
}

/// The owner of all schedulers. [`SchedulerGroup::run`] is its task.
pub struct SchedulerGroup {
    shared: Arc<Shared>,
    requests: mpsc::Receiver<GroupRequest>,
    accounts: Accounts,
    store: Store,
    clock: Clock,
    metrics: Metrics,
    catch_ups: CatchUps,
    /// Schedulers that are built and not yet started.
    built: Vec<(ProviderName, Scheduler)>,
    tasks: JoinSet<()>,
}

impl SchedulerGroup {
    /// Returns a group without schedulers.
    pub fn new(
        accounts: Accounts,
        store: Store,
        clock: Clock,
        metrics: Metrics,
    ) -> (Self, Schedulers) {
        let (sender, requests) = mpsc::channel(REQUESTS);
        let shared = Arc::new(Shared {
            running: Mutex::default(),
            breakers: watch::channel(Breakers::new()).0,
            activities: broadcast::channel(ACTIVITY_CAPACITY).0,
        });
        let group = Self {
            shared: Arc::clone(&shared),
            requests,
            accounts,
            store,
            clock,
            metrics,
            catch_ups: CatchUps::default(),
            built: Vec::new(),
            tasks: JoinSet::new(),
        };
        let handle = Schedulers {
            shared,
            requests: sender,
        };
        (group, handle)
    }

    /// The rounds of polls after a start or a sleep.
    pub fn catch_ups(&self) -> CatchUps {
        self.catch_ups.clone()
    }

    /// Builds the scheduler of a provider, to be started by [`SchedulerGroup::run`]. `is_restart` says that a previous
    /// process may have used the budget.
    pub async fn build(&mut self, provider: &ProviderName, is_restart: bool) -> &mut Scheduler {
        let account = (self.accounts)(provider.clone()).await;
        let (mut scheduler, handle) = Scheduler::new_of(
            provider.clone(),
            account.client,
            self.store.clone(),
            self.clock.clone(),
            account.policy,
            self.metrics.of(provider),
            fastrand::u64(..),
        );
        scheduler.share_activities(self.shared.activities.clone());
        scheduler.share_catch_ups(self.catch_ups.clone());
        match self.store.durations_of(provider.clone()).await {
            Ok(past) => scheduler.look_back(PastDurations::of(past)),
            Err(error) => {
                let error = error_chain(&error);
                tracing::warn!(%provider, error, "cannot read how long runs took; they are compared with those that end from now on");
            }
        }
        if is_restart {
            scheduler.charge_previous_process();
        }
        let view = handle.breaker().borrow().clone();
        self.shared.breakers.send_modify(|breakers| {
            breakers.insert(provider.clone(), view);
        });
        self.shared.running().insert(
            provider.clone(),
            Running {
                handle,
                base_url: account.base_url,
            },
        );
        self.built.push((provider.clone(), scheduler));
        &mut self.built.last_mut().expect("it was pushed").1
    }

    /// Hands unfinished watches of the store, the oldest first, to the schedulers of their providers, which are built
    /// where they are not yet. `of` is how many there are in all.
    pub async fn resume(&mut self, stored: Vec<StoredWatch>, of: u64) {
        let mut by_provider: BTreeMap<ProviderName, Vec<StoredWatch>> = BTreeMap::new();
        for stored in stored {
            let provider = stored.watch.run_id.provider_name();
            by_provider.entry(provider).or_default().push(stored);
        }
        for (provider, stored) in by_provider {
            let scheduler = match self.built.iter().position(|(name, _)| *name == provider) {
                Some(at) => &mut self.built[at].1,
                None => self.build(&provider, true).await,
            };
            scheduler.resume(stored, of);
        }
    }

    /// Continues the incidents that a previous process reported with these events, the newest of each provider.
    pub fn remember(&mut self, incidents: &[Event]) {
        for (provider, scheduler) in &mut self.built {
            let of_it = |event: &&Event| {
                event
                    .provider()
                    .is_some_and(|notice| notice.provider == *provider)
            };
            if let Some(incident) = incidents.iter().find(of_it) {
                scheduler.remember(incident);
            }
        }
    }

    /// Sends no request to these providers before these times: they requested that from the leader before.
    pub async fn pause(&mut self, pauses: impl IntoIterator<Item = (ProviderName, Timestamp)>) {
        let now = self.clock.now();
        for (provider, until) in pauses {
            let Ok(pause) = Duration::try_from(until.duration_since(now)) else {
                continue;
            };
            let scheduler = match self.built.iter().position(|(name, _)| *name == provider) {
                Some(at) => &mut self.built[at].1,
                None => self.build(&provider, true).await,
            };
            scheduler.pause(pause.min(MAX_PAUSE));
        }
    }

    /// Runs all schedulers until `stop` is cancelled and their writes are done, or until one of them ends by itself.
    pub async fn run(mut self, stop: CancellationToken) {
        for (provider, scheduler) in std::mem::take(&mut self.built) {
            self.start(provider, scheduler, &stop);
        }
        loop {
            // Every arm is cancel-safe: receiving and joining a set lose nothing when they are dropped.
            tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = self.tasks.join_next() => {
                    let _ended_by_itself = finished(ended);
                    return;
                }
                Some(request) = self.requests.recv() => self.request(request, &stop).await,
            }
        }
        self.requests.close();
        while let Some(ended) = self.tasks.join_next().await {
            let _stopped = finished(ended);
        }
    }

    async fn request(&mut self, request: GroupRequest, stop: &CancellationToken) {
        match request {
            GroupRequest::Start { provider, reply } => {
                let known = self.shared.running().get(&provider).cloned();
                let running = match known {
                    Some(running) => running,
                    None => {
                        self.build(&provider, false).await;
                        for (provider, scheduler) in std::mem::take(&mut self.built) {
                            self.start(provider, scheduler, stop);
                        }
                        self.shared.running()[&provider].clone()
                    }
                };
                // The caller may have left.
                let _left = reply.send(running.handle);
            }
            GroupRequest::Reload { accounts, reply } => {
                self.accounts = accounts;
                let providers: Vec<_> = self.shared.running().keys().cloned().collect();
                let mut result = Ok(());
                for provider in providers {
                    let account = (self.accounts)(provider.clone()).await;
                    let handle = {
                        let mut running = self.shared.running();
                        let running = running.get_mut(&provider).expect("none is taken away");
                        running.base_url = account.base_url;
                        running.handle.clone()
                    };
                    let reloaded = handle.reload_with(account.client, account.policy).await;
                    result = result.and(reloaded);
                }
                let _left = reply.send(result);
            }
        }
    }

    fn start(&mut self, provider: ProviderName, scheduler: Scheduler, stop: &CancellationToken) {
        let mut breaker = self.shared.running()[&provider].handle.breaker();
        let (shared, stop) = (Arc::clone(&self.shared), stop.clone());
        self.tasks.spawn(async move {
            let forward = async {
                // It ends with the scheduler, which owns the other end.
                while breaker.changed().await.is_ok() {
                    let view = breaker.borrow_and_update().clone();
                    shared.breakers.send_modify(|breakers| {
                        breakers.insert(provider.clone(), view);
                    });
                }
            };
            tokio::join!(scheduler.run(stop), forward);
        });
    }
}

impl Schedulers {
    async fn of(&self, provider: &ProviderName) -> Result<SchedulerHandle, StoreError> {
        if let Some(running) = self.shared.running().get(provider) {
            return Ok(running.handle.clone());
        }
        let (reply, answer) = oneshot::channel();
        let start = GroupRequest::Start {
            provider: provider.clone(),
            reply,
        };
        let sent = self.requests.send(start).await;
        sent.map_err(|_closed| StoreError::Closed)?;
        answer.await.map_err(|_closed| StoreError::Closed)
    }

    /// The schedulers that run, by provider.
    fn all(&self) -> Vec<(ProviderName, SchedulerHandle)> {
        let running = self.shared.running();
        let all = running
            .iter()
            .map(|(name, running)| (name.clone(), running.handle.clone()));
        all.collect()
    }

    /// As [`SchedulerHandle::add`], with the scheduler of the run's provider.
    ///
    /// # Errors
    /// When the store rejects the write, or the schedulers have ended.
    pub async fn add(&self, watch: Watch, origin: AddedBy) -> Result<Added, StoreError> {
        let scheduler = self.of(&watch.run_id.provider_name()).await?;
        scheduler.add(watch, origin).await
    }

    /// As [`SchedulerHandle::remove`].
    ///
    /// # Errors
    /// As [`SchedulerHandle::remove`].
    pub async fn remove(&self, run_id: RunRef, force: bool) -> Result<Removed, StoreError> {
        let scheduler = self.of(&run_id.provider_name()).await?;
        scheduler.remove(run_id, force).await
    }

    /// Returns the active watches: all, provider by provider in the order in which they were added, or those of `only`.
    ///
    /// # Errors
    /// When the schedulers have ended.
    pub async fn view(&self, only: Option<Vec<RunRef>>) -> Result<Vec<WatchView>, StoreError> {
        let mut views = Vec::new();
        for (provider, scheduler) in self.all() {
            let only = match &only {
                Some(only) => {
                    let of_it = |run: &&RunRef| run.provider() == provider.as_str();
                    let of_it: Vec<_> = only.iter().filter(of_it).cloned().collect();
                    if of_it.is_empty() {
                        continue;
                    }
                    Some(of_it)
                }
                None => None,
            };
            views.append(&mut scheduler.view(only).await?);
        }
        Ok(views)
    }

    /// Follows exactly these active watches of these runs, as they are in the store now: another daemon added or
    /// removed some.
    ///
    /// # Errors
    /// When the schedulers have ended.
    pub async fn refresh(
        &self,
        runs: Vec<RunRef>,
        stored: Vec<StoredWatch>,
    ) -> Result<(), StoreError> {
        let mut by_provider: BTreeMap<ProviderName, Vec<(RunRef, Vec<StoredWatch>)>> =
            BTreeMap::new();
        let mut stored_of: BTreeMap<RunRef, Vec<StoredWatch>> = BTreeMap::new();
        for stored in stored {
            let of_run = stored_of.entry(stored.watch.run_id.clone()).or_default();
            of_run.push(stored);
        }
        for run in runs {
            let watches = stored_of.remove(&run).unwrap_or_default();
            let of_provider = by_provider.entry(run.provider_name()).or_default();
            of_provider.push((run, watches));
        }
        for (provider, runs) in by_provider {
            let is_needed = runs.iter().any(|(_, watches)| !watches.is_empty());
            let running = self
                .shared
                .running()
                .get(&provider)
                .map(|running| running.handle.clone());
            let scheduler = match running {
                Some(running) => running,
                None if is_needed => self.of(&provider).await?,
                None => continue,
            };
            scheduler.refresh(runs).await?;
        }
        Ok(())
    }

    /// As [`SchedulerHandle::list`], with the scheduler of this provider.
    ///
    /// # Errors
    /// As [`SchedulerHandle::list`].
    pub async fn list(
        &self,
        provider: &ProviderName,
        request: ListRequest,
    ) -> Result<Result<ListPage, ApiError>, StoreError> {
        self.of(provider).await?.list(request).await
    }

    /// Returns how many requests each provider was sent, and how many it may be sent.
    ///
    /// # Errors
    /// When the schedulers have ended.
    pub async fn usage(&self) -> Result<BTreeMap<ProviderName, Usage>, StoreError> {
        let mut usage = BTreeMap::new();
        for (provider, scheduler) in self.all() {
            usage.insert(provider, scheduler.usage().await?);
        }
        Ok(usage)
    }

    /// Polls the accounts that `accounts` makes from here on. No watch is lost.
    ///
    /// # Errors
    /// When the schedulers have ended.
    pub async fn reload(&self, accounts: Accounts) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        let reload = GroupRequest::Reload { accounts, reply };
        self.requests
            .send(reload)
            .await
            .map_err(|_closed| StoreError::Closed)?;
        answer.await.map_err(|_closed| StoreError::Closed)?
    }

    /// As [`SchedulerHandle::give_up`], for the watches of one provider.
    ///
    /// # Errors
    /// When the schedulers have ended.
    pub async fn give_up(&self, provider: &ProviderName, why: String) -> Result<(), StoreError> {
        self.of(provider).await?.give_up(why).await
    }

    /// Returns once all schedulers have handled all earlier commands, which shows that they make progress.
    ///
    /// # Errors
    /// When one of them has ended.
    pub async fn ping(&self) -> Result<(), StoreError> {
        for (_, scheduler) in self.all() {
            scheduler.ping().await?;
        }
        Ok(())
    }

    /// Returns the activity of the runs with an open event stream, from now on. A receiver that lags
    /// behind misses some, and learns how many.
    pub fn activities(&self) -> broadcast::Receiver<Arc<RunActivity>> {
        self.shared.activities.subscribe()
    }

    /// Returns the states of the circuit breakers, as they change.
    pub fn breakers(&self) -> watch::Receiver<Breakers> {
        self.shared.breakers.subscribe()
    }

    /// The address of a provider's API, for people; `None` while it has no scheduler.
    pub fn base_url(&self, provider: &ProviderName) -> Option<String> {
        let running = self.shared.running();
        running
            .get(provider)
            .map(|running| running.base_url.clone())
    }
}
