//! The engine of this daemon: always there with a store of its own, and with a shared one while this daemon leads.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::heartbeat::Heart;
use super::maintenance::{discover, finish_groups, prune, publish, take_marks};
use crate::app::{Configured, Engine, Outside};
use crate::clock::Clock;
use crate::config::Settings;
use crate::control::LiveConfig;
use crate::discovery::{Discoveries, DiscoveryView};
use crate::lease::{Gate, HolderFile, LeaseHandle, LeaseView, Published};
use crate::metrics::Metrics;
use crate::scheduler::{Schedulers, Watches};
use crate::store::{Counts, STORE_RETRY, Store, Term};
use crate::text::humanize;

/// The engine, and what decides whether there is one.
pub struct Leadership<O = Configured> {
    /// The store as the control interface uses it: its writes require no lease.
    pub store: Store,
    /// What is counted, whether or not this daemon leads.
    pub metrics: Metrics,
    /// The way to the watches, whichever daemon leads.
    pub watches: Watches,
    /// The engine, where there is one.
    pub engine: Option<Engine>,
    leading: watch::Sender<Option<Schedulers>>,
    /// What runs beside an engine, without end.
    chores: JoinSet<()>,
    needs: ChoreNeeds,
    outside: O,
    shared: Option<SharedStore>,
}

/// What the chores of an engine need besides it.
pub struct ChoreNeeds {
    /// The clock of this daemon.
    pub clock: Clock,
    /// The settings in force.
    pub live_config: watch::Receiver<LiveConfig>,
    /// How the discoveries go.
    pub views: watch::Sender<Vec<DiscoveryView>>,
}

/// What a shared store adds.
pub struct SharedStore {
    /// Reaches the task of the lease.
    pub lease: LeaseHandle,
    /// Opened by that task.
    pub gate: Gate,
    /// What this daemon publishes while it leads.
    pub published: watch::Sender<String>,
    /// The tasks that serve the store and the lease.
    pub tasks: JoinSet<()>,
    /// The term of the engine.
    pub term: Option<Term>,
    /// When an engine that could not be built is built again.
    pub retry_at: Option<Instant>,
    /// How many commits had an outcome that is not known.
    pub unknown_commits: watch::Receiver<u64>,
    /// Shows the next process on this machine that this one has ended.
    pub _holder_file: Option<HolderFile>,
}

/// What [`Leadership::next`] waited for.
pub enum LeadershipEvent {
    /// [`Leadership::follow`] has something to do.
    Changed,
    /// The daemon cannot go on.
    Broken(anyhow::Error),
}

impl SharedStore {
    /// Cancel-safe.
    async fn next(&mut self) -> LeadershipEvent {
        let retry_at = self.retry_at;
        let retry = async {
            match retry_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Ok(()) = self.lease.view.changed() => {}
            Ok(()) = self.unknown_commits.changed() => {
                self.unknown_commits.mark_unchanged();
                self.lease.retake().await;
            }
            () = retry => {}
            Some(ended) = self.tasks.join_next() => {
                let error = anyhow::anyhow!("a task of the store exited unexpectedly: {ended:?}");
                return LeadershipEvent::Broken(error);
            }
        }
        LeadershipEvent::Changed
    }
}

impl Leadership {
    /// With a store of its own, whose engine runs.
    pub fn own(engine: Engine, needs: ChoreNeeds) -> Self {
        let (leading, receiver) = watch::channel(Some(engine.watches.clone()));
        let store = engine.store.clone();
        let mut leadership = Self {
            watches: Watches::new(store.clone(), receiver),
            metrics: engine.metrics.clone(),
            store,
            engine: None,
            leading,
            chores: JoinSet::new(),
            needs,
            outside: Configured,
            shared: None,
        };
        leadership.start_chores(&engine);
        leadership.engine = Some(engine);
        leadership
    }
}

impl<O: Outside> Leadership<O> {
    /// With a shared store, standing by; `outside` builds what the engine talks to.
    pub fn standing_by(store: Store, shared: SharedStore, needs: ChoreNeeds, outside: O) -> Self {
        let (leading, receiver) = watch::channel(None);
        Self {
            watches: Watches::new(store.clone(), receiver),
            metrics: Metrics::default(),
            store,
            engine: None,
            leading,
            chores: JoinSet::new(),
            needs,
            outside,
            shared: Some(shared),
        }
    }

    /// The clock of this daemon.
    pub fn clock(&self) -> Clock {
        self.needs.clock.clone()
    }

    /// How the discoveries go.
    pub fn discovery_views(&self) -> watch::Receiver<Vec<DiscoveryView>> {
        self.needs.views.subscribe()
    }

    /// Who leads, where the store is shared.
    pub fn lease(&self) -> Option<LeaseHandle> {
        self.shared.as_ref().map(|shared| shared.lease.clone())
    }

    /// Waits until [`Leadership::follow`] has something to do, or a part that should run without end has ended.
    /// Cancel-safe.
    pub async fn next(&mut self) -> LeadershipEvent {
        let Self {
            engine,
            chores,
            shared,
            ..
        } = self;
        // Each is cancel-safe: they wait for changes and for the ends of tasks, and lose none.
        let engine = async {
            match engine {
                Some(engine) => engine.broken().await,
                None => std::future::pending().await,
            }
        };
        let changed = async {
            match shared {
                Some(shared) => shared.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            error = engine => LeadershipEvent::Broken(error),
            Some(ended) = chores.join_next() => {
                LeadershipEvent::Broken(anyhow::anyhow!("a background task exited unexpectedly: {ended:?}"))
            }
            event = changed => event,
        }
    }

    /// Builds the engine when this daemon began to lead, and drops it when it ceased to. Returns whether it was built.
    pub async fn follow(&mut self, settings: &Settings, grace: Duration) -> bool {
        let Some(shared) = &mut self.shared else {
            return false;
        };
        shared.retry_at = None;
        let LeaseView {
            term,
            is_release_requested,
            ..
        } = shared.lease.view.borrow_and_update().clone();
        if self.engine.is_some() && term != shared.term {
            self.drop_engine();
        }
        if is_release_requested {
            if let Some(mut engine) = self.engine.take() {
                engine.settle(grace).await;
                self.drop_engine();
            }
            if let Some(lease) = self.lease() {
                lease.yield_lease().await;
            }
            return false;
        }
        match term {
            Some(term) if self.engine.is_none() => self.lead(term, settings).await,
            _ => false,
        }
    }

    /// Drops the engine with all that it still had to do, which the next leader finds in the store.
    fn drop_engine(&mut self) {
        self.leading.send_replace(None);
        self.chores = JoinSet::new();
        self.engine = None;
        if let Some(shared) = &mut self.shared {
            shared.term = None;
        }
    }

    /// Builds the engine for a term. Returns whether that succeeded.
    async fn lead(&mut self, term: Term, settings: &Settings) -> bool {
        let Some(shared) = &mut self.shared else {
            return false;
        };
        let began = Instant::now();
        let before = Published::read(&shared.lease.view.borrow().published);
        let built = Engine::lead(
            &self.outside,
            settings,
            self.store.fenced(term.clone()),
            shared.gate.clone(),
            self.needs.clock.clone(),
            self.metrics.clone(),
            &before,
        );
        match built.await {
            Ok(engine) => {
                let watches = engine.store.counts().await.unwrap_or_default().active;
                let took = began.elapsed();
                tracing::info!(
                    term = term.epoch,
                    watches,
                    took = humanize(took),
                    "took up the watches"
                );
                self.metrics.took_over(took);
                shared.term = Some(term);
                self.start_chores(&engine);
                self.leading.send_replace(Some(engine.watches.clone()));
                self.engine = Some(engine);
                true
            }
            Err(error) => {
                shared.retry_at = Some(Instant::now() + STORE_RETRY);
                tracing::error!(
                    error = format!("{error:#}"),
                    "the watches cannot be taken up; trying again"
                );
                false
            }
        }
    }

    fn start_chores(&mut self, engine: &Engine) {
        let ChoreNeeds {
            clock,
            live_config,
            views,
        } = &self.needs;
        self.chores.spawn(prune(
            engine.store.clone(),
            clock.clone(),
            engine.metrics.clone(),
            live_config.clone(),
        ));
        self.chores.spawn(finish_groups(
            engine.store.clone(),
            clock.clone(),
            live_config.clone(),
        ));
        let heart = Heart {
            store: engine.store.clone(),
            gate: self.shared.as_ref().map(|shared| shared.gate.clone()),
            watches: engine.watches.clone(),
            clock: clock.clone(),
            metrics: engine.metrics.clone(),
            live_config: live_config.clone(),
        };
        self.chores.spawn(heart.beat());
        let discoveries = Discoveries {
            lists: engine.watches.clone(),
            store: engine.store.clone(),
            clock: clock.clone(),
            metrics: engine.metrics.clone(),
            views: views.clone(),
        };
        self.chores
            .spawn(discover(discoveries, live_config.clone()));
        if let Some(shared) = &self.shared {
            let (store, watches) = (engine.store.clone(), engine.watches.clone());
            self.chores
                .spawn(take_marks(store, watches.clone(), clock.clone()));
            self.chores.spawn(publish(
                watches,
                live_config.clone(),
                shared.published.clone(),
            ));
        }
    }

    /// Ends the engine in order, and lets another daemon lead at once. Does nothing with a store of its own.
    pub async fn hand_over(&mut self, grace: Duration) {
        let Some(lease) = self.lease() else {
            return;
        };
        self.chores.shutdown().await;
        self.leading.send_replace(None);
        if let Some(mut engine) = self.engine.take() {
            engine.settle(grace).await;
        }
        // Whatever the store does, this process ends.
        let released = tokio::time::timeout(CLOSE_LIMIT, lease.end()).await;
        if released.is_err() {
            tracing::warn!("the lease could not be released in time; it ends by itself");
        }
    }

    /// Ends the engine in order, and closes the store. Returns what is left there, where that can be known.
    pub async fn stop(mut self, grace: Duration) -> Option<Counts> {
        self.chores.shutdown().await;
        let Some(mut shared) = self.shared.take() else {
            return self.engine?.stop(grace).await;
        };
        let left = tokio::time::timeout(CLOSE_LIMIT, self.store.counts()).await;
        shared.tasks.shutdown().await;
        left.ok().and_then(Result::ok)
    }
}

/// How long the store has to answer when the daemon stops.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
