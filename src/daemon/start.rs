//! The start of the daemon: the store and the socket become its own, and the engine runs.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use rustix::fs::Mode;
use tokio::net::{TcpListener, UnixListener};

use super::{FAILED, systemd};
use crate::app::Engine;
use crate::blocking;
use crate::cli::Signals;
use crate::clock::Clock;
use crate::config::{IN_MEMORY, NO_SOCKET_PLACE, Settings};
use crate::control::{Listener, Socket, SocketError};
use crate::store::{Location, Lock, LockError};

/// How long the start may take in all, most of it for changes that a new version makes to a large store.
const START_LIMIT: Duration = Duration::from_secs(15 * 60);

/// The time that the service manager is given while the daemon starts, again and again.
const START_EXTENSION: Duration = Duration::from_secs(30);

const NO_STORE: &str = "no place to keep watches and messages: set store.path or STATE_DIRECTORY; \":memory:\" as \
                        store.path keeps them only as long as the process lives";

/// What a start leaves behind.
pub(super) struct Started {
    pub(super) engine: Engine,
    pub(super) listeners: Vec<Listener>,
    /// The address of the TCP listener, if there is one.
    pub(super) address: Option<SocketAddr>,
    pub(super) held: Held,
}

/// The socket and the lock of the store, which other daemons find taken. The socket is dropped before the lock, so
/// that the next daemon never finds a socket that still answers.
pub(super) struct Held {
    _socket: Socket,
    /// A store in memory has none.
    _lock: Option<Lock>,
}

/// Why a start does not leave a daemon.
pub(super) enum NotStarted {
    /// The process ends with this code; the log has the reason.
    Ended(u8),
    /// The configuration cannot be used, or another daemon uses the store or the socket.
    Refused(anyhow::Error),
}

/// Takes the store and the socket, listens, and starts the engine. All files that are made here are for this user
/// alone; those that sinks make later get the modes that their programs choose.
///
/// # Errors
/// When a signal ends the start, or it cannot succeed now or at all.
pub(super) async fn start(
    settings: &Settings,
    clock: Clock,
    signals: &mut Signals,
) -> Result<Started, NotStarted> {
    let refused = |error: anyhow::Error| NotStarted::Refused(error);
    let path = settings.store.path.as_deref();
    let path = path.context(NO_STORE).map_err(refused)?;
    let socket = settings.control.socket.clone();
    let socket = socket.context(NO_SOCKET_PLACE).map_err(refused)?;

    let before = rustix::process::umask(Mode::from_raw_mode(0o077));
    let in_memory = path.as_os_str() == IN_MEMORY;
    if in_memory {
        tracing::warn!(
            "the store is in memory: watches and undelivered messages end with this process"
        );
    }
    let store_path = (!in_memory).then(|| path.to_owned());
    let runtime = tokio::runtime::Handle::current();
    // On a thread of its own, like all that waits for a disk, so that a signal ends the start.
    let taking = blocking::run("start", move || {
        let _context = runtime.enter();
        take_places(store_path.as_deref(), &socket)
    });
    let taken = tokio::select! {
        taken = taking => taken.map_err(|error| NotStarted::Refused(error.into()))?,
        _ = signals.next() => return Err(ended_at_start()),
    };
    let (lock, (socket, listener)) = taken.map_err(|error| match error {
        NoPlace::Now(error) => cannot_start(error),
        NoPlace::AtAll(error) => NotStarted::Refused(error),
    })?;
    let mut listeners = vec![Listener::Unix(listener)];
    let mut address = None;
    if let Some(listen) = settings.control.listen {
        let (bound, bound_to) = bind(listen).await.map_err(cannot_start)?;
        address = Some(bound_to);
        listeners.push(Listener::Tcp(bound));
    }
    let place = if in_memory {
        Location::Memory
    } else {
        Location::File(path)
    };
    let engine = tokio::select! {
        engine = starting(Engine::start(settings, place, clock)) => engine,
        _ = signals.next() => return Err(ended_at_start()),
    };
    rustix::process::umask(before);
    let engine = engine.map_err(|error| {
        tracing::error!(store = %path.display(), error = format!("{error:#}"), "cannot start");
        NotStarted::Ended(FAILED)
    })?;
    Ok(Started {
        engine,
        listeners,
        address,
        held: Held {
            _socket: socket,
            _lock: lock,
        },
    })
}

/// Listens on a TCP address; the second value is the one that it got.
async fn bind(listen: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let bound = TcpListener::bind(listen).await;
    bound
        .and_then(|bound| {
            let address = bound.local_addr()?;
            Ok((bound, address))
        })
        .with_context(|| format!("cannot listen on {listen}"))
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

/// A signal ended the start, which is no failure.
fn ended_at_start() -> NotStarted {
    tracing::info!("ended by a signal while it started");
    NotStarted::Ended(0)
}

/// The start failed for a reason outside the configuration.
pub(super) fn cannot_start(error: impl Into<anyhow::Error>) -> NotStarted {
    tracing::error!(error = format!("{:#}", error.into()), "cannot start");
    NotStarted::Ended(FAILED)
}

fn make_parent(path: &Path) -> anyhow::Result<()> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent)
        .with_context(|| format!("cannot make the directory {}", parent.display()))
}
