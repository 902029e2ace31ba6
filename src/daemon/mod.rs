//! `runwatch daemon`: the service.

mod maintenance;
mod reload;
mod systemd;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rustix::fs::Mode;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::maintenance::{keep_status, probe, prune, status_line, watchdog};
use self::reload::{FixedSettings, SETTLE_RETRY, Service, live_config, with_default_sink};
use crate::app::Engine;
use crate::blocking;
use crate::cli::Signals;
use crate::cli::args::DaemonArgs;
use crate::clock::Clock;
use crate::config::{IN_MEMORY, LogLevel, NO_SOCKET_PLACE, Settings, Sources};
use crate::control::{Control, Listener, LiveConfig, Socket, SocketError};
use crate::domain::{SinkName, Verdict};
use crate::logging::LevelSwitch;
use crate::store::{Counts, Location, Lock, LockError, Store, StoreError};
use crate::text::error_chain;

/// How long deliveries and requests under way are given when the daemon stops.
const GRACE: Duration = Duration::from_secs(10);

/// How long the start may take in all, most of it for changes that a new version makes to a large store.
const START_LIMIT: Duration = Duration::from_secs(15 * 60);

/// The time that the service manager is given while the daemon starts, again and again.
const START_EXTENSION: Duration = Duration::from_secs(30);

/// Exit code of a daemon that could not start or go on for a reason outside its configuration.
const FAILED: u8 = 1;

const NO_STORE: &str = "no place to keep watches and messages: set store.path or STATE_DIRECTORY; \":memory:\" as \
                        store.path keeps them only as long as the process lives";

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
    let mut signals = Signals::listen()?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot listen for signals")?;
    let settings = with_default_sink(settings);
    let path = settings.store.path.clone().context(NO_STORE)?;
    let socket_path = settings.control.socket.clone().context(NO_SOCKET_PLACE)?;

    // All that is made here is for this user alone; what sinks make later is theirs.
    let before = rustix::process::umask(Mode::from_raw_mode(0o077));
    let in_memory = path.as_os_str() == IN_MEMORY;
    if in_memory {
        tracing::warn!(
            "the store is in memory: watches and undelivered messages end with this process"
        );
    }
    let (store_path, socket) = ((!in_memory).then(|| path.clone()), socket_path.clone());
    let runtime = tokio::runtime::Handle::current();
    // On a thread of its own, like all that waits for a disk, so that a signal ends the start.
    let taking = blocking::run("start", move || {
        let _context = runtime.enter();
        take_places(store_path.as_deref(), &socket)
    });
    let taken = tokio::select! {
        taken = taking => taken?,
        _ = signals.next() => return Ok(ended_at_start()),
    };
    let (lock, (socket, listener)) = match taken {
        Ok(taken) => taken,
        Err(NoPlace::Now(error)) => return Ok(cannot_start(error)),
        Err(NoPlace::AtAll(error)) => return Err(error),
    };
    let mut listeners = vec![Listener::Unix(listener)];
    let mut address = None;
    if let Some(listen) = settings.control.listen {
        let bound = TcpListener::bind(listen)
            .await
            .and_then(|bound| Ok((bound.local_addr()?, bound)));
        match bound.with_context(|| format!("cannot listen on {listen}")) {
            Ok((bound_to, bound)) => {
                address = Some(bound_to);
                listeners.push(Listener::Tcp(bound));
            }
            Err(error) => return Ok(cannot_start(error)),
        }
    }
    let place = if in_memory {
        Location::Memory
    } else {
        Location::File(&path)
    };
    let engine = tokio::select! {
        engine = starting(Engine::start(&settings, place, Clock::system())) => engine,
        _ = signals.next() => return Ok(ended_at_start()),
    };
    rustix::process::umask(before);
    let mut engine = match engine {
        Ok(engine) => engine,
        Err(error) => {
            tracing::error!(store = %path.display(), error = format!("{error:#}"), "cannot start");
            return Ok(FAILED);
        }
    };

    let (live_config, in_force_receiver) = watch::channel(live_config(&settings));
    let clock = Clock::system();
    let stop = CancellationToken::new();
    let control = Control {
        store: engine.store.clone(),
        watches: engine.watches.clone(),
        metrics: engine.metrics.clone(),
        clock: clock.clone(),
        live_config: in_force_receiver.clone(),
    };
    let mut server = control.serve(listeners, &stop);
    let mut chores = JoinSet::new();
    chores.spawn(prune(
        engine.store.clone(),
        clock.clone(),
        engine.metrics.clone(),
        in_force_receiver.clone(),
    ));
    chores.spawn(probe(engine.store.clone()));
    chores.spawn(keep_status(
        engine.store.clone(),
        engine.watches.clone(),
        in_force_receiver.clone(),
    ));
    if let Some(period) = systemd::watchdog_period() {
        chores.spawn(watchdog(
            engine.store.clone(),
            engine.watches.clone(),
            period,
        ));
    }

    let started = FixedSettings::of(&settings);
    let mut service = Service {
        settings,
        started,
        live_config,
        logging,
        unsettled: false,
    };
    // Read before watches are added, which may end at once: `done` takes what comes after it for new.
    let newest_before = match engine.store.newest_event().await {
        Ok(newest) => newest,
        Err(error) => return Ok(cannot_start(error)),
    };
    // A disk that takes nothing new is no reason to watch nothing.
    service.apply(&engine, &clock).await;
    let counts = engine.store.counts().await.unwrap_or_default();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        store = %path.display(),
        socket = %socket_path.display(),
        listen = address.map(tracing::field::display),
        watches = counts.active,
        sinks = service.settings.sinks.len(),
        "ready"
    );
    systemd::ready(&status_line(&counts, None));
    let mut done = Box::pin(done(
        engine.store.clone(),
        in_force_receiver,
        args.idle_grace,
        newest_before,
    ));
    let mut all_done = false;
    let code = loop {
        // Every arm is cancel-safe: signals, joining and the engine's end lose nothing when dropped.
        tokio::select! {
            _ = signals.next() => break 0,
            _ = hangup.recv() => {
                systemd::reloading();
                // Cancel-safe enough: what is dropped here is not used any more.
                tokio::select! {
                    () = service.reload(&mut engine, &clock, sources()) => {}
                    _ = signals.next() => break 0,
                }
                let counts = engine.store.counts().await.unwrap_or_default();
                systemd::ready(&status_line(&counts, service.live_config.borrow().rejected.as_deref()));
            }
            () = tokio::time::sleep(SETTLE_RETRY), if service.unsettled => service.apply(&engine, &clock).await,
            ended = &mut done, if args.exit_when_done && !service.unsettled => match ended {
                Ok(worst) => {
                    tracing::info!(worst = worst.map(Verdict::as_str), "done");
                    all_done = true;
                    break worst.map_or(0, Verdict::exit_code);
                }
                Err(error) => {
                    tracing::error!(error = error_chain(&error), "cannot read whether all is done");
                    break FAILED;
                }
            },
            error = engine.broken() => {
                tracing::error!(error = format!("{error:#}"), "the engine broke");
                break FAILED;
            }
            Some(ended) = server.join_next() => {
                tracing::error!(?ended, "the control interface exited unexpectedly");
                break FAILED;
            }
            Some(ended) = chores.join_next() => {
                tracing::error!(?ended, "a background task exited unexpectedly");
                break FAILED;
            }
        }
    };
    tracing::info!("stopping");
    systemd::stopping();
    // It holds the store, which closes only once no handle is left.
    drop(done);
    let stopping = async {
        let ends = Instant::now() + GRACE;
        stop.cancel();
        // A request takes no longer than a write, unless its caller does not read the answer.
        let answered = async { while server.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE / 5, answered).await.is_err() {
            tracing::debug!("requests still under way are cut off");
            server.shutdown().await;
        }
        chores.shutdown().await;
        let left = engine
            .stop(ends.saturating_duration_since(Instant::now()))
            .await;
        match left.map(|left| (left.active, left.pending)) {
            Some((0, 0)) => tracing::info!("stopped; nothing is left to do"),
            Some((watches, messages)) if in_memory => {
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
            Some(Counts { active: 1.., .. }) if all_done && code == 0 => FAILED,
            _ => code,
        }
    };
    let code = tokio::select! {
        code = stopping => code,
        second = signals.next() => {
            if in_memory {
                tracing::warn!("ended at once; watches and undelivered messages are lost: the store is in memory");
            } else {
                tracing::warn!("ended at once; what was under way is done again after the next start");
            }
            second
        }
    };
    // The socket goes before the lock, so that the next daemon never finds a socket that still answers.
    drop(socket);
    drop(lock);
    Ok(code)
}

/// What does not hold where the store cannot be written, and what to do.
fn no_promise(path: &Path) -> String {
    format!(
        "cannot keep watches and messages in {}: make it writable for user {}, or set store.path to another place, \
         or to \"{IN_MEMORY}\" where none of them need outlive this process",
        path.parent().unwrap_or(path).display(),
        rustix::process::geteuid().as_raw(),
    )
}

/// Why the store or the socket cannot be had.
enum NoPlace {
    /// What the disk refuses now it may grant later, so it is no case of code 2, after which a service manager must not
    /// try again.
    Now(anyhow::Error),
    /// Another daemon has it.
    AtAll(anyhow::Error),
}

type Places = (Option<Lock>, (Socket, UnixListener));

/// Takes the lock of the store, unless that is in memory, and the socket. Blocks on the disk.
fn take_places(store: Option<&Path>, socket: &Path) -> Result<Places, NoPlace> {
    let lock = match store {
        None => None,
        Some(store) => {
            let now = |error: anyhow::Error| NoPlace::Now(error.context(no_promise(store)));
            make_parent(store).map_err(now)?;
            Some(Lock::take(store).map_err(|error| match error {
                LockError::Io { .. } => now(error.into()),
                LockError::Held { .. } => NoPlace::AtAll(error.into()),
            })?)
        }
    };
    make_parent(socket).map_err(NoPlace::Now)?;
    rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = Socket::bind(socket);
    rustix::process::umask(Mode::from_raw_mode(0o077));
    let bound = bound.map_err(|error| match error {
        SocketError::Io { .. } => NoPlace::Now(error.into()),
        error => NoPlace::AtAll(error.into()),
    })?;
    Ok((lock, bound))
}

/// Starts the engine, and reports meanwhile that it still starts: a new version may have to migrate a large store.
async fn starting<T>(start: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let extending = async {
        let mut tick = tokio::time::interval(START_EXTENSION / 3);
        loop {
            tick.tick().await;
            systemd::starting(START_EXTENSION);
        }
    };
    // Dropping the start leaves a thread that only opens the store.
    tokio::select! {
        started = start => started,
        () = tokio::time::sleep(START_LIMIT) => {
            anyhow::bail!("the store was not open within {} minutes; does its disk answer?", START_LIMIT.as_secs() / 60)
        }
        () = extending => unreachable!("it goes on"),
    }
}

/// The exit code of a daemon that a signal ended before it was ready.
fn ended_at_start() -> u8 {
    tracing::info!("ended by a signal while it started");
    0
}

fn cannot_start(error: impl Into<anyhow::Error>) -> u8 {
    tracing::error!(error = format!("{:#}", error.into()), "cannot start");
    FAILED
}

fn make_parent(path: &Path) -> anyhow::Result<()> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent)
        .with_context(|| format!("cannot make the directory {}", parent.display()))
}

/// Ends when every watch has its verdict and every message that has a sink is delivered or given up, with
/// the worst verdict. A watch is waited for no longer than `idle_grace`: those that ended in an earlier
/// process count, but they do not show that no more will come. Cancel-safe.
async fn done(
    store: Store,
    mut live_config: watch::Receiver<LiveConfig>,
    idle_grace: Duration,
    newest_before: i64,
) -> Result<Option<Verdict>, StoreError> {
    let (mut history, mut deliveries) = (store.history_changed(), store.deliveries_changed());
    let gives_up = Instant::now() + idle_grace;
    let mut arrived = false;
    loop {
        // Marked as seen before the store is read, so that no change in between is missed.
        history.mark_unchanged();
        deliveries.mark_unchanged();
        let routes = Arc::clone(&live_config.borrow_and_update().routes);
        let active = store.counts().await?.active;
        arrived |= active > 0 || store.newest_event().await? > newest_before;
        let open = store.sinks_with_open_deliveries().await?;
        let has_sink = |(name, _): &(SinkName, u64)| routes.contains(name);
        let waited = arrived || Instant::now() >= gives_up;
        if active == 0 && !open.iter().any(has_sink) && waited {
            return Ok(store.worst_verdict());
        }
        // A watch that is added changes neither before its first answer; the grace is looked at anew then.
        tokio::select! {
            Ok(()) = history.changed() => {}
            Ok(()) = deliveries.changed() => {}
            Ok(()) = live_config.changed() => {}
            () = tokio::time::sleep_until(gives_up), if Instant::now() < gives_up => {}
            else => return Err(StoreError::Closed),
        }
    }
}
