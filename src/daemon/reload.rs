//! The settings of the running service, and how a reload changes them.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Logging;
use crate::app::{Engine, policy};
use crate::blocking;
use crate::clock::Clock;
use crate::config::{self, IN_MEMORY, LogFormat, Settings, SinkSettings, Sources, StoreSettings};
use crate::control::LiveConfig;
use crate::domain::{SinkName, Watch};
use crate::metrics::Metrics;
use crate::reminder::Reminder;
use crate::scheduler::AddedBy;
use crate::store::Added;

/// The settings that hold as long as the process lives.
#[derive(PartialEq, Eq)]
pub(super) struct FixedSettings {
    store: StorePlace,
    pub(super) socket: Option<PathBuf>,
    pub(super) listen: Option<SocketAddr>,
    pub(super) log_format: LogFormat,
}

impl FixedSettings {
    pub(super) fn of(settings: &Settings) -> Self {
        Self {
            store: StorePlace::of(&settings.store),
            socket: settings.control.socket.clone(),
            listen: settings.control.listen,
            log_format: settings.log.format,
        }
    }

    /// Whether watches and messages end with the process.
    pub(super) fn in_memory(&self) -> bool {
        let path = self.store.path.as_ref();
        self.store.shared.is_none() && path.is_some_and(|path| path.as_os_str() == IN_MEMORY)
    }

    /// Where the store is, for people.
    pub(super) fn store_text(&self) -> Option<String> {
        match &self.store.shared {
            Some(shared) => Some(format!("PostgreSQL, schema {}", shared.schema)),
            None => Some(self.store.path.as_ref()?.display().to_string()),
        }
    }
}

/// Where the store is.
#[derive(PartialEq, Eq)]
struct StorePlace {
    path: Option<PathBuf>,
    shared: Option<SharedPlace>,
}

/// Where a shared store is, without its password, which may change at any time.
#[derive(PartialEq, Eq)]
struct SharedPlace {
    schema: String,
    lease: Duration,
    ca_file: Option<PathBuf>,
}

impl StorePlace {
    fn of(settings: &StoreSettings) -> Self {
        let shared = settings.shared.as_ref().map(|shared| SharedPlace {
            schema: shared.schema.clone(),
            lease: shared.lease,
            ca_file: shared.ca_file.clone(),
        });
        Self {
            path: settings.path.clone(),
            shared,
        }
    }
}

/// What changes on reload.
pub(super) struct Service {
    pub(super) settings: Settings,
    pub(super) started: FixedSettings,
    pub(super) live_config: watch::Sender<LiveConfig>,
    pub(super) metrics: Metrics,
    pub(super) logging: Logging,
    /// The store refused what follows from settings that are in force.
    pub(super) unsettled: bool,
    /// When it is logged that something is left to do.
    pub(super) reminder: Reminder,
}

impl Service {
    /// Does what follows from new settings once the engine holds to them.
    pub(super) async fn settle(&mut self, engine: &Engine, clock: &Clock) -> anyhow::Result<()> {
        if !self.settings.providers.has_account() {
            tracing::warn!(
                "no API key for Crewship is configured; none of its runs can be polled until there is one"
            );
        }
        for (sink, open) in engine.store.sinks_with_open_deliveries().await? {
            if !self.settings.sinks.contains_key(&sink) {
                tracing::warn!(%sink, messages = open, "messages wait for a sink that is no longer configured");
            }
        }
        let configured = &self.settings.watches;
        let run_ids = configured
            .iter()
            .map(|watch| watch.run_id.clone())
            .collect();
        engine.store.keep_configured_watches(run_ids).await?;
        for configured in configured {
            let added_at = clock.now();
            let watch = Watch {
                run_id: configured.run_id.clone(),
                name: configured.name.clone(),
                labels: configured.labels.clone(),
                sinks: None,
                added_at,
                deadline_at: added_at
                    .checked_add(self.settings.watch.deadline)
                    .unwrap_or(Timestamp::MAX),
                trace: None,
            };
            if engine.watches.add(watch, AddedBy::Configuration).await? == Added::New {
                tracing::info!(run_id = %configured.run_id, "watching, as configured");
            }
        }
        Ok(())
    }

    /// Loads the configuration again. One that cannot be used changes nothing but the status line.
    pub(super) async fn reload(
        &mut self,
        engine: Option<&mut Engine>,
        clock: &Clock,
        sources: Sources,
    ) {
        let rejected = match blocking::run("config", move || config::load(&sources)).await {
            Err(stuck) => {
                let problem = format!("it cannot be read: {stuck}");
                tracing::error!(problem, "the configuration cannot be used");
                problem
            }
            Ok(Err(problems)) => {
                for problem in &problems.0 {
                    tracing::error!(%problem, "the configuration cannot be used");
                }
                let first = problems
                    .0
                    .first()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                match problems.0.len() {
                    0 | 1 => first,
                    many => format!("{first} (and {} more)", many - 1),
                }
            }
            Ok(Ok(loaded)) => match self
                .adopt(engine, clock, with_default_sink(loaded.settings))
                .await
            {
                Ok(()) => {
                    tracing::info!("configuration reloaded");
                    self.metrics.configured(clock.now());
                    return;
                }
                Err(error) => {
                    let problem = format!("{error:#}");
                    tracing::error!(problem, "the configuration cannot be used");
                    problem
                }
            },
        };
        self.metrics.not_reloaded();
        // What is wrong is in the records before.
        tracing::error!(
            "configuration not reloaded, and the one before stays in force; correct the file, check it with `runwatch config \
             check`, and reload again"
        );
        self.live_config
            .send_modify(|live_config| live_config.rejected = Some(rejected));
    }

    pub(super) async fn adopt(
        &mut self,
        mut engine: Option<&mut Engine>,
        clock: &Clock,
        settings: Settings,
    ) -> anyhow::Result<()> {
        if let Some(engine) = &mut engine {
            engine.reload(&settings).await?;
        }
        let (started, new) = (&self.started, FixedSettings::of(&settings));
        let fixed = [
            ("store.path", started.store.path == new.store.path),
            ("store.url", started.store.shared == new.store.shared),
            ("control.listen", started.listen == new.listen),
            ("control.socket", started.socket == new.socket),
            ("log.format", started.log_format == new.log_format),
        ];
        for (key, _) in fixed.into_iter().filter(|(_, same)| !same) {
            tracing::warn!(key, "a change of this key needs a restart");
        }
        let mut now_in_force = live_config(&settings);
        // A configuration that goes without the address goes without its token too, but the address stays until
        // the next start.
        if started.listen != new.listen && now_in_force.token.is_none() {
            now_in_force
                .token
                .clone_from(&self.live_config.borrow().token);
        }
        self.live_config.send_replace(now_in_force);
        self.settings = settings;
        // It holds from here on, even if the store rejects its watches.
        self.apply(engine.as_deref(), clock).await;
        Ok(())
    }

    /// Does what is left to do for settings that are in force; where the store refuses, another time. A daemon that
    /// stands by leaves it to the leader.
    pub(super) async fn apply(&mut self, engine: Option<&Engine>, clock: &Clock) {
        self.logging
            .levels
            .set(self.logging.level.unwrap_or(self.settings.log.level));
        let Some(engine) = engine else {
            self.unsettled = false;
            return;
        };
        let settled = self.settle(engine, clock).await;
        self.unsettled = settled.is_err();
        let Err(error) = settled else {
            self.reminder = Reminder::default();
            return;
        };
        if self.reminder.is_due(Instant::now()) {
            // The store itself logs an error where it rejects writes.
            tracing::warn!(
                error = format!("{error:#}"),
                "the store does not hold all watches of the configuration yet; trying again"
            );
        }
    }
}

/// How many attempts a sink makes in all: one, and one after each wait.
fn scheduled_attempts((name, sink): (&SinkName, &SinkSettings)) -> (SinkName, u32) {
    let retries = u32::try_from(sink.retry_schedule.len()).unwrap_or(u32::MAX);
    (name.clone(), retries.saturating_add(1))
}

fn sink_type((name, sink): (&SinkName, &SinkSettings)) -> (SinkName, &'static str) {
    (name.clone(), sink.kind.as_str())
}

/// What the control interface and the chores use of the settings.
pub fn live_config(settings: &Settings) -> LiveConfig {
    LiveConfig {
        routes: policy(settings).routes,
        scheduled_attempts: Arc::new(settings.sinks.iter().map(scheduled_attempts).collect()),
        sink_types: Arc::new(settings.sinks.iter().map(sink_type).collect()),
        deadline: settings.watch.deadline,
        retention: settings.store.retention,
        token: settings.control.token.clone(),
        public_url: settings.control.public_url.clone(),
        providers: Arc::new(settings.providers.clone()),
        discoveries: settings.discoveries.clone().into(),
        heartbeat: settings.heartbeat.clone(),
        fingerprint: fingerprint(settings),
        rejected: None,
    }
}

/// A number that differs where the settings differ that all daemons on one store should share. Secrets are not part of
/// it.
fn fingerprint(settings: &Settings) -> u64 {
    let Settings {
        api,
        watch,
        sinks,
        watches,
        discoveries,
        heartbeat,
        ..
    } = settings;
    let mut hasher = DefaultHasher::new();
    format!(
        "{:?}",
        (
            &api.base_url,
            api.requests_per_minute,
            watch,
            sinks,
            watches,
            discoveries,
            heartbeat
        )
    )
    .hash(&mut hasher);
    hasher.finish()
}

/// A service without sinks would be useless: it writes verdicts to its log then. Its messages link to the page, which
/// has the runs that it watches.
pub(super) fn with_default_sink(mut settings: Settings) -> Settings {
    if settings.sinks.is_empty() {
        settings.sinks.insert(
            SinkName::new("log").expect("a valid name"),
            SinkSettings::log_of_verdicts(),
        );
    }
    for sink in settings.sinks.values_mut() {
        sink.page.clone_from(&settings.control.public_url);
    }
    settings
}
