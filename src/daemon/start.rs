//! The start of the daemon: the store and the socket become its own, and the engine runs.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use rustix::fs::Mode;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::lead::{ChoreNeeds, Leadership, SharedStore};
use super::{FAILED, systemd};
use crate::app::{Configured, Engine, shared_connection};
use crate::blocking;
use crate::cli::Signals;
use crate::config::{IN_MEMORY, NO_SOCKET_PLACE, Settings, SharedStoreSettings};
use crate::control::{Listener, Socket, SocketError};
use crate::lease::{Gate, HolderFile, LeaseTask, Published};
use crate::store::{Candidate, HolderId, Keeper, Location, Lock, LockError, Store, StoreError};

/// How long the start may take in all, most of it for changes that a new version makes to a large store.
const START_LIMIT: Duration = Duration::from_secs(15 * 60);

/// The time that the service manager is given while the daemon starts, again and again.
const START_EXTENSION: Duration = Duration::from_secs(30);

/// How long the start waits for a shared store, which it goes on without.
const REACH_LIMIT: Duration = Duration::from_secs(10);

const NO_STORE: &str = "no place to keep watches and messages: set store.path or STATE_DIRECTORY; \":memory:\" as \
                        store.path keeps them only as long as the process lives";

/// What a start leaves behind.
pub(super) struct Started {
    pub(super) leadership: Leadership,
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
    needs: ChoreNeeds,
    signals: &mut Signals,
) -> Result<Started, NotStarted> {
    let refused = |error: anyhow::Error| NotStarted::Refused(error);
    let shared = settings.store.shared.as_ref();
    let path = settings.store.path.as_deref();
    let path = match shared {
        Some(_) => None,
        None => Some(path.context(NO_STORE).map_err(refused)?),
    };
    let socket = settings.control.socket.clone();
    let socket = socket.context(NO_SOCKET_PLACE).map_err(refused)?;

    let before = rustix::process::umask(Mode::from_raw_mode(0o077));
    let in_memory = path.is_some_and(|path| path.as_os_str() == IN_MEMORY);
    if in_memory {
        tracing::warn!(
            "the store is in memory: watches and undelivered messages end with this process"
        );
    }
    let store_path = path.filter(|_| !in_memory).map(ToOwned::to_owned);
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
    let leadership = tokio::select! {
        leadership = begin(settings, path, needs) => leadership?,
        _ = signals.next() => return Err(ended_at_start()),
    };
    rustix::process::umask(before);
    Ok(Started {
        leadership,
        listeners,
        address,
        held: Held {
            _socket: socket,
            _lock: lock,
        },
    })
}

/// Opens the store at `path` and starts the engine, or stands by where the store is shared.
async fn begin(
    settings: &Settings,
    path: Option<&Path>,
    needs: ChoreNeeds,
) -> Result<Leadership, NotStarted> {
    if let Some(shared) = &settings.store.shared {
        return stand_by(shared, needs).await;
    }
    let path = path.unwrap_or(Path::new(IN_MEMORY));
    let place = if path.as_os_str() == IN_MEMORY {
        Location::Memory
    } else {
        Location::File(path)
    };
    let engine = starting(Engine::start(settings, place, needs.clock.clone())).await;
    let engine = engine.map_err(|error| {
        tracing::error!(store = %path.display(), error = format!("{error:#}"), "cannot start");
        NotStarted::Ended(FAILED)
    })?;
    Ok(Leadership::own(engine, needs))
}

/// Connects to a shared store. A database that is out of reach is waited for while this daemon serves; one that cannot
/// be used as it is ends the start.
async fn stand_by(
    settings: &SharedStoreSettings,
    needs: ChoreNeeds,
) -> Result<Leadership, NotStarted> {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let holder = HolderId::random();
    let ended = ended_before(settings.holder_file.clone(), holder.clone()).await;
    let refused = |error: anyhow::Error| NotStarted::Refused(error);
    let connection = shared_connection(settings, &name).await.map_err(refused)?;
    let refused = |error: StoreError| NotStarted::Refused(error.into());
    let (store, server) = Store::postgres(&connection).map_err(refused)?;
    let keeper = Keeper::new(&connection).map_err(refused)?;
    let mut tasks = JoinSet::new();
    tasks.spawn(server.run());
    let tried = tokio::time::timeout(REACH_LIMIT, starting(async { Ok(store.probe().await?) }));
    match tried.await {
        Ok(Err(error)) if !is_out_of_reach(&error) => {
            tracing::error!(error = format!("{error:#}"), "the store cannot be used");
            return Err(NotStarted::Ended(FAILED));
        }
        // The task of the lease logs it.
        Ok(_) | Err(_) => {}
    }
    let (control, gate) = Gate::closed(needs.clock.clone());
    let published = watch::Sender::new(Published::default().to_text());
    let candidate = Candidate {
        holder,
        name,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ttl: settings.lease,
    };
    let (task, lease) = LeaseTask::new(
        keeper,
        needs.clock.clone(),
        candidate,
        control,
        ended.as_ref().and_then(|file| file.ended.clone()),
        published.subscribe(),
    );
    tasks.spawn(task.run());
    let shared = SharedStore {
        lease,
        gate,
        published,
        tasks,
        term: None,
        retry_at: None,
        unknown_commits: store.unknown_commits(),
        _holder_file: ended,
    };
    Ok(Leadership::standing_by(store, shared, needs, Configured))
}

fn is_out_of_reach(error: &anyhow::Error) -> bool {
    let cause = error.chain().find_map(|cause| cause.downcast_ref());
    matches!(cause, Some(StoreError::OutOfReach { .. }))
}

/// Takes the file that shows that the process before has ended. Without it, its lease is waited for.
async fn ended_before(path: Option<PathBuf>, holder: HolderId) -> Option<HolderFile> {
    let path = path?;
    let taken = blocking::run("holder", move || {
        make_parent(&path).map_err(std::io::Error::other)?;
        HolderFile::take(&path, &holder)
    });
    match taken.await {
        Ok(Ok(file)) => file,
        Ok(Err(error)) => {
            tracing::debug!(%error, "no file shows that the process before has ended");
            None
        }
        Err(error) => {
            tracing::debug!(%error, "no file shows that the process before has ended");
            None
        }
    }
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
