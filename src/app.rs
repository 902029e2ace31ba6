//! The wiring: builds the parts, owns their tasks, and stops them in order.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::BackoffPolicy;
use crate::blocking;
use crate::catch_ups::CatchUps;
use crate::clock::Clock;
use crate::config::{
    EventsMode, MigrationMode, Settings, SharedStoreSettings, SinkKind, SinkSettings,
};
use crate::domain::{Limits, ProviderName, Route, Routes, SinkName};
use crate::failpoint::mutant;
use crate::lease::{Gate, GatedSink, Published, gated};
use crate::memory::release_after_bursts;
use crate::metrics::Metrics;
use crate::notify::{Courier, Deliver, Sink};
use crate::providers::{AnyProvider, ApiClient, Provider, Unusable};
use crate::scheduler::{Account, Accounts, Policy, SchedulerGroup, Schedulers};
use crate::store::{Counts, Location, PostgresSettings, Store, StoreError, Writer};
use crate::text::error_chain;

/// What an engine is built on.
struct EngineParts {
    store: Store,
    /// Serves the store, where this engine is the only one to use it.
    writer: JoinSet<()>,
    clock: Clock,
    metrics: Metrics,
    gate: Option<Gate>,
}

/// What an engine talks to besides its store. Simulations replace [`Configured`].
pub trait Outside: Send + Sync + 'static {
    /// The client of the API.
    type Provider: Provider;
    /// A sink.
    type Sink: Deliver;

    /// Builds the client of the API, and the sinks of `settings` in order.
    fn build(
        &self,
        settings: &Settings,
    ) -> impl Future<Output = anyhow::Result<(Self::Provider, Vec<Self::Sink>)>> + Send;
}

/// The API and the sinks of the settings.
#[derive(Debug)]
pub struct Configured;

impl Outside for Configured {
    type Provider = ApiClient;
    type Sink = Sink;

    async fn build(&self, settings: &Settings) -> anyhow::Result<(ApiClient, Vec<Sink>)> {
        build(settings).await
    }
}

/// How long others have to let go of the store when the engine stops.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// Watches read at a time when they are taken up at the start, so that there are never two copies of all.
const RESUMED_AT_ONCE: u32 = 5_000;

/// The running engine: store, scheduler and couriers.
pub struct Engine {
    /// The store.
    pub store: Store,
    /// The schedulers.
    pub watches: Schedulers,
    /// What is counted.
    pub metrics: Metrics,
    /// How long every answer must be 404 before a run is not found.
    pub not_found_grace: Duration,
    clock: Clock,
    gate: Option<Gate>,
    /// The rounds of polls after a start or a sleep.
    catch_ups: CatchUps,
    scheduler_stop: CancellationToken,
    scheduler: JoinSet<()>,
    couriers_stop: CancellationToken,
    couriers: JoinSet<()>,
    /// Couriers of earlier settings, finishing the attempts they had begun.
    retiring: JoinSet<()>,
    writer: JoinSet<()>,
    /// Gives memory back; ends with the engine.
    memory: JoinSet<()>,
}

impl Engine {
    /// Builds and starts everything for `settings`, with the store at `place`.
    ///
    /// # Errors
    /// When the store cannot be opened, or a client or sink cannot be built.
    pub async fn start(
        settings: &Settings,
        place: Location<'_>,
        clock: Clock,
    ) -> anyhow::Result<Self> {
        let (provider, sinks) = build(settings).await?;
        let (store, writer) = open(place).await?;
        Self::start_with(provider, sinks, settings, (store, writer.run()), clock).await
    }

    /// Goes on with other settings: the API, the limits and the sinks. Watches and deliveries stay as
    /// they are; where the store is cannot change. When something cannot be built, nothing changes.
    ///
    /// # Errors
    /// When a client or sink cannot be built, or the scheduler has ended.
    pub async fn reload(&mut self, settings: &Settings) -> anyhow::Result<()> {
        let (provider, sinks) = build(settings).await?;
        provider.read_key().await;
        self.reload_with(provider, sinks, settings).await
    }
}

impl Engine {
    /// Builds and starts everything for `settings`, polling `provider` and handing messages to
    /// `sinks`, which are those of `settings` in order. `store` comes with the future that serves it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn start_with<D: Deliver>(
        provider: impl Provider,
        sinks: Vec<D>,
        settings: &Settings,
        store: (Store, impl Future<Output = ()> + Send + 'static),
        clock: Clock,
    ) -> anyhow::Result<Self> {
        let (store, writer) = store;
        let mut writers = JoinSet::new();
        writers.spawn(writer);
        let parts = EngineParts {
            store,
            writer: writers,
            clock,
            metrics: Metrics::default(),
            gate: None,
        };
        Self::begin(
            AnyProvider::new(provider),
            sinks,
            settings,
            parts,
            Vec::new(),
        )
        .await
    }

    /// Builds and starts everything for `settings` on a store that daemons share, while this one leads: the writes of
    /// `store` require its lease, and no request leaves while `gate` is closed. `before` is what the leader before
    /// published; `outside` builds the client and the sinks.
    ///
    /// # Errors
    /// When the store cannot be read or written, or a client or sink cannot be built.
    pub async fn lead(
        outside: &impl Outside,
        settings: &Settings,
        store: Store,
        gate: Gate,
        clock: Clock,
        metrics: Metrics,
        before: &Published,
    ) -> anyhow::Result<Self> {
        let (provider, sinks) = outside.build(settings).await?;
        if !mutant("claims-kept") {
            store.take_up().await?;
        }
        let parts = EngineParts {
            store,
            writer: JoinSet::new(),
            clock,
            metrics,
            gate: Some(gate),
        };
        let pauses = before.provider_pauses().collect();
        Self::begin(AnyProvider::new(provider), sinks, settings, parts, pauses).await
    }

    /// Starts schedulers and couriers.
    async fn begin<D: Deliver>(
        crewship: AnyProvider,
        sinks: Vec<D>,
        settings: &Settings,
        parts: EngineParts,
        pauses: Vec<(ProviderName, Timestamp)>,
    ) -> anyhow::Result<Self> {
        let EngineParts {
            store,
            writer,
            clock,
            metrics,
            gate,
        } = parts;
        let incidents = store.newest_provider_events().await?;
        let (mut group, watches) = SchedulerGroup::new(
            accounts(crewship, settings, gate.clone()),
            store.clone(),
            clock.clone(),
            metrics.clone(),
        );
        resume_all(&mut group, &store, clock.now()).await?;
        group.remember(&incidents);
        group.pause(pauses).await;
        let catch_ups = group.catch_ups();
        let scheduler_stop = CancellationToken::new();
        let mut scheduler = JoinSet::new();
        scheduler.spawn(group.run(scheduler_stop.clone()));
        let mut memory = JoinSet::new();
        memory.spawn(release_after_bursts());
        let mut engine = Self {
            store,
            watches,
            metrics,
            not_found_grace: settings.watch.not_found_grace,
            clock,
            gate,
            catch_ups,
            scheduler_stop,
            scheduler,
            couriers_stop: CancellationToken::new(),
            couriers: JoinSet::new(),
            retiring: JoinSet::new(),
            writer,
            memory,
        };
        engine.start_couriers(settings, sinks);
        Ok(engine)
    }

    /// Goes on with other settings, another provider and other sinks, which are those of `settings` in
    /// order.
    ///
    /// # Errors
    /// When the scheduler has ended.
    pub async fn reload_with<D: Deliver>(
        &mut self,
        provider: impl Provider,
        sinks: Vec<D>,
        settings: &Settings,
    ) -> anyhow::Result<()> {
        let accounts = accounts(AnyProvider::new(provider), settings, self.gate.clone());
        self.watches.reload(accounts).await?;
        self.not_found_grace = settings.watch.not_found_grace;
        self.couriers_stop.cancel();
        let mut before = std::mem::take(&mut self.couriers);
        self.retiring
            .spawn(async move { while before.join_next().await.is_some() {} });
        while self.retiring.try_join_next().is_some() {}
        self.couriers_stop = CancellationToken::new();
        self.start_couriers(settings, sinks);
        Ok(())
    }

    /// Starts a courier for each of `sinks`, which are those of `settings` in order.
    fn start_couriers<D: Deliver>(&mut self, settings: &Settings, sinks: Vec<D>) {
        let routes = Arc::new(routes(settings));
        for ((name, sink_settings), sink) in settings.sinks.iter().zip(sinks) {
            let courier = Courier {
                name: name.clone(),
                sink: Arc::new(GatedSink {
                    inner: sink,
                    gate: self.gate.clone(),
                }),
                retry_schedule: sink_settings.retry_schedule.clone(),
                fallback: sink_settings.fallback.clone(),
                quiet: sink_settings.quiet.clone(),
                digest: sink_settings.digest,
                catch_ups: self.catch_ups.clone(),
                max_in_flight: max_in_flight(&sink_settings.kind),
                store: self.store.clone(),
                clock: self.clock.clone(),
                routes: Arc::clone(&routes),
                metrics: self.metrics.clone(),
                trouble: Mutex::default(),
            };
            self.metrics.introduce(name);
            self.couriers.spawn(courier.run(self.couriers_stop.clone()));
        }
    }

    /// Ends when a part of the engine ends by itself, which none should. Cancel-safe.
    pub async fn broken(&mut self) -> anyhow::Error {
        // Joining a set loses nothing when dropped; a set without tasks disables its arm.
        let (part, ended) = tokio::select! {
            Some(ended) = self.scheduler.join_next() => ("scheduler", ended),
            Some(ended) = self.couriers.join_next() => ("delivery", ended),
            Some(ended) = self.writer.join_next() => ("store", ended),
            else => return std::future::pending().await,
        };
        match ended {
            Ok(()) => anyhow::anyhow!("the {part} ended by itself"),
            Err(error) => anyhow::Error::from(error).context(format!("the {part} failed")),
        }
    }

    /// Stops in order: no more polls, then the deliveries under way are finished, then the store is
    /// closed. Deliveries that take longer than `grace` stay in the store as they are. Returns what is left
    /// there, where that can be known.
    pub async fn stop(mut self, grace: Duration) -> Option<Counts> {
        self.settle(grace).await;
        self.close().await
    }

    /// Ends polls, then deliveries; those that take longer than `grace` stay in the store as they are, which is
    /// still there to be looked at.
    pub async fn settle(&mut self, grace: Duration) {
        let ends = Instant::now() + grace;
        self.scheduler_stop.cancel();
        // It waits for the store, whose disk may not answer; what the store took in by then counts.
        let settled = async { while self.scheduler.join_next().await.is_some() {} };
        if tokio::time::timeout(grace.max(CLOSE_LIMIT), settled)
            .await
            .is_err()
        {
            tracing::warn!(
                "the store did not finish what was handed to it; that is looked at again after the next start"
            );
            self.scheduler.shutdown().await;
        }
        self.couriers_stop.cancel();
        let finished = tokio::time::timeout_at(ends, async {
            while self.couriers.join_next().await.is_some() {}
            while self.retiring.join_next().await.is_some() {}
        });
        if finished.await.is_err() {
            tracing::warn!(?grace, "deliveries still under way are cut off");
            self.couriers.shutdown().await;
            self.retiring.shutdown().await;
        }
    }

    /// Closes the store, after [`Engine::settle`]. Returns what is left there, where that can be known.
    pub async fn close(mut self) -> Option<Counts> {
        self.memory.abort_all();
        let left = tokio::time::timeout(CLOSE_LIMIT, self.store.counts()).await;
        let left = left.ok().and_then(Result::ok);
        drop((self.store, self.watches));
        // Other holders of a handle get no answer any more; what was acknowledged is on disk.
        let closed = async { while self.writer.join_next().await.is_some() {} };
        if tokio::time::timeout(CLOSE_LIMIT, closed).await.is_err() {
            tracing::debug!("the store is still in use; closed all the same");
            self.writer.shutdown().await;
        }
        left
    }
}

/// How the shared store is reached, by the daemon or command `name`.
///
/// # Errors
/// When that file cannot be read.
pub async fn shared_connection(
    settings: &SharedStoreSettings,
    name: &str,
) -> anyhow::Result<PostgresSettings> {
    let url = settings.url.clone();
    let url = blocking::run("store-url", move || url.read()).await??;
    Ok(PostgresSettings {
        url,
        url_file: settings.url.file().map(std::path::Path::to_owned),
        schema: settings.schema.clone(),
        ca_file: settings.ca_file.clone(),
        migrate: settings.migrate == MigrationMode::Auto,
        statement_limit: settings.lease / 3,
        name: name.to_owned(),
    })
}

/// Builds what talks to others, on a thread of its own: templates and the certificates of authorities are files.
async fn build(settings: &Settings) -> anyhow::Result<(ApiClient, Vec<Sink>)> {
    let settings = settings.clone();
    blocking::run("setup", move || {
        Ok((api_client(&settings)?, build_sinks(&settings)?))
    })
    .await?
}

/// Opens the store, on a thread of its own where it is a file.
async fn open(place: Location<'_>) -> anyhow::Result<(Store, Writer)> {
    let Location::File(path) = place else {
        return Ok(Store::open(place)?);
    };
    let path = path.to_owned();
    Ok(blocking::run("store-open", move || Store::open(Location::File(&path))).await??)
}

fn api_client(settings: &Settings) -> anyhow::Result<ApiClient> {
    ApiClient::new(&settings.api).context("cannot build the API client")
}

/// Hands all active watches of the store to the schedulers of their providers, in pieces.
async fn resume_all(
    group: &mut SchedulerGroup,
    store: &Store,
    now: Timestamp,
) -> Result<(), StoreError> {
    let active = store.counts().await?.active;
    let is_restart = active > 0 || store.newest_event().await? > 0;
    group.build(&ProviderName::crewship(), is_restart).await;
    let mut after = None;
    loop {
        let stored = store
            .active_watches(now, after.take(), RESUMED_AT_ONCE)
            .await?;
        let Some(last) = stored.last() else { break };
        after = Some((last.watch.added_at, last.watch.run_id.clone()));
        group.resume(stored, active).await;
    }
    Ok(())
}

fn build_sinks(settings: &Settings) -> anyhow::Result<Vec<Sink>> {
    let build = |(name, sink): (&SinkName, &SinkSettings)| {
        Sink::build(sink).with_context(|| format!("cannot set up the sink {name}"))
    };
    settings.sinks.iter().map(build).collect()
}

/// Makes the accounts of `settings`, with `crewship` as the client of Crewship's.
fn accounts(crewship: AnyProvider, settings: &Settings, gate: Option<Gate>) -> Accounts {
    let settings = Arc::new(settings.clone());
    Arc::new(move |provider| {
        let (crewship, settings, gate) = (crewship.clone(), Arc::clone(&settings), gate.clone());
        Box::pin(async move {
            let mut account = if provider.is_crewship() {
                Account {
                    client: crewship,
                    policy: policy(&settings),
                    base_url: settings.api.base_url.clone(),
                }
            } else {
                account(&provider, &settings).await
            };
            account.client = gated(account.client, gate.as_ref());
            account
        })
    })
}

/// Makes the account of a provider other than Crewship. Where that cannot be used, its polls fail for that reason.
async fn account(provider: &ProviderName, settings: &Settings) -> Account {
    let (provider, all) = (provider.clone(), settings.providers.clone());
    // On a thread of its own: a profile and the certificates of authorities may be files.
    let built = blocking::run("setup", move || {
        let account = all.get(&provider)?;
        let client = ApiClient::of_account(&account).map_err(|error| {
            format!(
                "cannot build the client of {provider}: {}",
                error_chain(&error)
            )
        })?;
        Ok::<_, String>((account, client))
    });
    let built = match built.await {
        Ok(built) => built,
        Err(error) => Err(error.to_string()),
    };
    let mut policy = policy(settings);
    match built {
        Ok((account, client)) => {
            client.read_key().await;
            policy.requests_per_minute = account.api.requests_per_minute;
            policy.limits.run_url = account.api.run_url;
            if account.profile.stream.is_none() {
                policy.max_streams = 0;
            }
            Account {
                client: AnyProvider::new(client),
                policy,
                base_url: account.api.base_url,
            }
        }
        Err(why) => Account {
            client: AnyProvider::new(Unusable::new(why)),
            policy,
            base_url: String::new(),
        },
    }
}

/// What the settings require of the scheduler of Crewship's runs.
pub fn policy(settings: &Settings) -> Policy {
    let watch = &settings.watch;
    Policy {
        backoff: BackoffPolicy {
            initial: watch.initial_interval,
            multiplier: watch.multiplier,
            max: watch.max_interval,
            jitter: watch.jitter,
        },
        requests_per_minute: settings.api.requests_per_minute,
        max_in_flight: watch.max_in_flight,
        max_streams: match watch.events {
            EventsMode::Auto => watch.max_streams,
            EventsMode::Off => 0,
        },
        limits: Limits {
            not_found_grace: watch.not_found_grace,
            overdue_after: watch.overdue_after,
            run_url: settings.api.run_url.clone(),
        },
        routes: Arc::new(routes(settings)),
    }
}

fn routes(settings: &Settings) -> Routes {
    settings.sinks.iter().map(route).collect()
}

fn route((name, sink): (&SinkName, &SinkSettings)) -> Route {
    Route {
        sink: name.clone(),
        events: sink.events.clone(),
        labels: sink.labels.clone(),
        one_per_group: sink.one_per_group,
        digest: sink.digest,
    }
}

/// Most attempts under way at once: messages on a desktop and lines of a log keep their order, a
/// program may be heavy, a web server is used to several.
fn max_in_flight(kind: &SinkKind) -> usize {
    match kind {
        SinkKind::Desktop | SinkKind::Log { .. } => 1,
        SinkKind::Email(_) => 2,
        SinkKind::Command { .. } => 4,
        SinkKind::Webhook(_) => 16,
    }
}
