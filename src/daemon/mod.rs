//! `runwatch daemon`: the service.

mod done;
mod heartbeat;
mod lead;
mod maintenance;
mod reload;
mod start;
mod systemd;

use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::done::done;
pub use self::lead::{ChoreNeeds, Leadership, LeadershipEvent, SharedStore};
use self::maintenance::{keep_status, probe, status_line, watchdog};
pub use self::reload::live_config;
use self::reload::{FixedSettings, Service, with_default_sink};
use self::start::{NotStarted, Started, cannot_start, start};
use crate::cli::Signals;
use crate::cli::args::DaemonArgs;
use crate::clock::Clock;
use crate::config::{LogLevel, Settings, Sources};
use crate::control::{Control, Listener, LiveConfig};
use crate::domain::Verdict;
use crate::logging::LevelSwitch;
use crate::reminder::Reminder;
use crate::store::{Counts, STORE_RETRY, StoreError};
use crate::text::error_chain;

/// How long deliveries and requests under way are given when the daemon stops.
const GRACE: Duration = Duration::from_secs(10);

/// Exit code of a daemon that could not start or go on for a reason outside its configuration.
const FAILED: u8 = 1;

/// How the daemon logs.
pub struct Logging {
    /// Changes the level.
    pub levels: LevelSwitch,
    /// The level of the command line, which wins over the configuration's.
    pub level: Option<LogLevel>,
}

/// Runs the service until a signal ends it. Returns the exit code: 0 after SIGTERM or SIGINT.
///
/// # Errors
/// When the configuration cannot be used, or another daemon uses the store or the socket.
pub async fn daemon(
    args: &DaemonArgs,
    settings: Settings,
    sources: impl Fn() -> Sources,
    logging: Logging,
) -> anyhow::Result<u8> {
    let signals = Signals::listen()?;
    let hangup = signal(SignalKind::hangup()).context("cannot listen for signals")?;
    match run(args, settings, sources, logging, (signals, hangup)).await {
        Ok(code) | Err(NotStarted::Ended(code)) => Ok(code),
        Err(NotStarted::Refused(error)) => Err(error),
    }
}

/// Starts, serves, and stops. Returns the exit code.
async fn run(
    args: &DaemonArgs,
    settings: Settings,
    sources: impl Fn() -> Sources,
    logging: Logging,
    (mut signals, hangup): (Signals, Signal),
) -> Result<u8, NotStarted> {
    let settings = with_default_sink(settings);
    if args.exit_when_done && settings.store.shared.is_some() {
        return Err(NotStarted::Refused(anyhow::anyhow!(
            "--exit-when-done is for a store of one daemon: what other daemons add to store.url has no end"
        )));
    }
    let clock = Clock::system();
    let (live, live_config) = watch::channel(live_config(&settings));
    let needs = ChoreNeeds {
        clock: clock.clone(),
        live_config: live_config.clone(),
        views: watch::Sender::new(Vec::new()),
    };
    let Started {
        leadership,
        listeners,
        address,
        held,
    } = start(&settings, needs, &mut signals).await?;
    // Read before watches are added, which may end at once: `done` takes what comes after it for new.
    let store = leadership.store.clone();
    let newest_before = match store.newest_event().await {
        Err(error) if !store.is_shared() => return Err(cannot_start(error)),
        newest => newest.unwrap_or_default(),
    };
    let mut daemon = Daemon::serve(leadership, listeners, settings, logging, live, hangup);
    // A disk that takes nothing new is no reason to watch nothing.
    daemon.apply().await;
    let counts = store.counts().await.unwrap_or_default();
    let fixed = &daemon.service.started;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        store = fixed.store_text(),
        socket = fixed
            .socket
            .as_deref()
            .map(|path| tracing::field::display(path.display())),
        listen = address.map(tracing::field::display),
        watches = counts.active,
        sinks = daemon.service.settings.sinks.len(),
        "ready"
    );
    systemd::ready(&status_line(&counts, None));
    let done = done(
        store,
        daemon.service.live_config.subscribe(),
        args.idle_grace,
        newest_before,
    );
    let end = daemon
        .until_ended(&mut signals, sources, done, args.exit_when_done)
        .await;
    let code = daemon.stop(end, &mut signals).await;
    drop(held);
    Ok(code)
}

/// A daemon that serves.
struct Daemon {
    leadership: Leadership,
    service: Service,
    clock: Clock,
    hangup: Signal,
    /// The control interface.
    server: JoinSet<()>,
    /// Ends the control interface.
    stop_server: CancellationToken,
    /// What runs beside serving, without end, whether or not this daemon leads.
    chores: JoinSet<()>,
}

/// Why the daemon stops.
#[derive(Clone, Copy)]
struct ServiceEnd {
    /// The exit code.
    code: u8,
    /// Whether it stops because nothing is left to do.
    all_done: bool,
}

impl ServiceEnd {
    const fn with(code: u8) -> Self {
        Self {
            code,
            all_done: false,
        }
    }
}

impl Daemon {
    /// Serves the control interface, and starts the chores.
    fn serve(
        leadership: Leadership,
        listeners: Vec<Listener>,
        settings: Settings,
        logging: Logging,
        live: watch::Sender<LiveConfig>,
        hangup: Signal,
    ) -> Self {
        let live_config = live.subscribe();
        let (store, watches) = (leadership.store.clone(), leadership.watches.clone());
        let clock = leadership.clock();
        leadership.metrics.configured(clock.now());
        let control = Control {
            store: store.clone(),
            watches: watches.clone(),
            metrics: leadership.metrics.clone(),
            clock: clock.clone(),
            live_config: live_config.clone(),
            discoveries: leadership.discovery_views(),
            lease: leadership.lease(),
        };
        let stop_server = CancellationToken::new();
        let server = control.serve(listeners, &stop_server);
        let mut chores = JoinSet::new();
        if !store.is_shared() {
            chores.spawn(probe(store.clone()));
        }
        chores.spawn(keep_status(
            store.clone(),
            watches.clone(),
            leadership.lease(),
            live_config,
        ));
        if let Some(period) = systemd::watchdog_period() {
            chores.spawn(watchdog(store, watches, period));
        }
        let service = Service {
            started: FixedSettings::of(&settings),
            settings,
            live_config: live,
            metrics: leadership.metrics.clone(),
            logging,
            unsettled: false,
            reminder: Reminder::default(),
        };
        Self {
            leadership,
            service,
            clock,
            hangup,
            server,
            stop_server,
            chores,
        }
    }

    /// Does what follows from the settings in force.
    async fn apply(&mut self) {
        let engine = self.leadership.engine.as_ref();
        self.service.apply(engine, &self.clock).await;
    }

    /// Serves until a signal, the end of all work or a failure ends that. `done` counts only with `exit_when_done`; it
    /// holds the store, which closes only once no handle is left, and is dropped here.
    async fn until_ended(
        &mut self,
        signals: &mut Signals,
        sources: impl Fn() -> Sources,
        done: impl Future<Output = Result<Option<Verdict>, StoreError>>,
        exit_when_done: bool,
    ) -> ServiceEnd {
        let mut done = Box::pin(done);
        let Self {
            leadership,
            service,
            clock,
            ..
        } = self;
        loop {
            // Every arm is cancel-safe: signals, joining and waiting for a change lose nothing when dropped.
            tokio::select! {
                _ = signals.next() => return ServiceEnd::with(0),
                _ = self.hangup.recv() => {
                    systemd::reloading();
                    // Cancel-safe enough: what is dropped here is not used any more.
                    tokio::select! {
                        () = service.reload(leadership.engine.as_mut(), clock, sources()) => {}
                        _ = signals.next() => return ServiceEnd::with(0),
                    }
                    let counts = leadership.store.counts().await.unwrap_or_default();
                    systemd::ready(&status_line(&counts, service.live_config.borrow().rejected.as_deref()));
                }
                () = tokio::time::sleep(STORE_RETRY), if service.unsettled => {
                    service.apply(leadership.engine.as_ref(), clock).await;
                }
                ended = &mut done, if exit_when_done && !service.unsettled => return end_of_all(ended),
                event = leadership.next() => match event {
                    LeadershipEvent::Changed => {
                        // What is dropped here is not used any more.
                        let leads = tokio::select! {
                            leads = leadership.follow(&service.settings, GRACE) => leads,
                            _ = signals.next() => return ServiceEnd::with(0),
                        };
                        if leads {
                            service.apply(leadership.engine.as_ref(), clock).await;
                        }
                    }
                    LeadershipEvent::Broken(error) => {
                        tracing::error!(error = format!("{error:#}"), "the engine broke");
                        return ServiceEnd::with(FAILED);
                    }
                },
                Some(ended) = self.server.join_next() => {
                    tracing::error!(?ended, "the control interface exited unexpectedly");
                    return ServiceEnd::with(FAILED);
                }
                Some(ended) = self.chores.join_next() => {
                    tracing::error!(?ended, "a background task exited unexpectedly");
                    return ServiceEnd::with(FAILED);
                }
            }
        }
    }

    /// Stops in order, or at once when a second signal comes. Returns the exit code.
    async fn stop(self, end: ServiceEnd, signals: &mut Signals) -> u8 {
        tracing::info!("stopping");
        systemd::stopping();
        let in_memory = self.service.started.in_memory();
        tokio::select! {
            code = self.stop_in_order(end) => code,
            second = signals.next() => {
                if in_memory {
                    tracing::warn!("ended at once; watches and undelivered messages are lost: the store is in memory");
                } else {
                    tracing::warn!("ended at once; what was under way is done again after the next start");
                }
                second
            }
        }
    }

    /// Answers the requests under way, ends the deliveries, and closes the store, all within [`GRACE`].
    async fn stop_in_order(mut self, end: ServiceEnd) -> u8 {
        let ends = Instant::now() + GRACE;
        // Others wait for the lease, and need nothing else of this daemon.
        self.leadership.hand_over(GRACE).await;
        self.stop_server.cancel();
        // A request takes no longer than a write, unless its caller does not read the answer.
        let answered = async { while self.server.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE / 5, answered).await.is_err() {
            tracing::debug!("requests still under way are cut off");
            self.server.shutdown().await;
        }
        self.chores.shutdown().await;
        let grace = ends.saturating_duration_since(Instant::now());
        let left = self.leadership.stop(grace).await;
        match left.map(|left| (left.active, left.pending)) {
            Some((0, 0)) => tracing::info!("stopped; nothing is left to do"),
            Some((watches, messages)) if self.service.started.in_memory() => {
                tracing::warn!(
                    watches,
                    messages,
                    "watches and messages are lost: the store is in memory"
                );
            }
            Some((watches, messages)) => {
                tracing::info!(
                    watches,
                    messages,
                    "stopped; what is left is kept for the next start"
                );
            }
            None => tracing::warn!("stopped; the store does not say what is left"),
        }
        match left {
            // Acknowledged between the last look and the end of the intake.
            Some(Counts { active: 1.., .. }) if end.all_done && end.code == 0 => FAILED,
            _ => end.code,
        }
    }
}

/// The end of a daemon that has nothing left to do, with the worst verdict.
fn end_of_all(worst: Result<Option<Verdict>, StoreError>) -> ServiceEnd {
    match worst {
        Ok(worst) => {
            tracing::info!(worst = worst.map(Verdict::as_str), "done");
            ServiceEnd {
                code: worst.map_or(0, Verdict::exit_code),
                all_done: true,
            }
        }
        Err(error) => {
            tracing::error!(
                error = error_chain(&error),
                "cannot read whether all is done"
            );
            ServiceEnd::with(FAILED)
        }
    }
}
