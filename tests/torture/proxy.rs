//! A TCP proxy that resets, delays, cuts and hangs, as networks and their machines do.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What happens to connections. A change of it ends those that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Everything passes.
    Pass,
    /// Each piece comes late.
    Delay(Duration),
    /// Connections are reset at once.
    Reset,
    /// So many bytes of the request pass, then the connection is reset.
    CutRequest(usize),
    /// The request passes, and so many bytes of the answer, then the connection is reset.
    CutAnswer(usize),
    /// Connections are taken, and nothing comes.
    Hang,
    /// Nothing listens: the process behind is dead.
    Gone,
}

/// How often each kind of trouble was made.
pub(crate) type Troubles = Arc<Mutex<std::collections::BTreeMap<&'static str, u32>>>;

pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    mode: watch::Sender<Mode>,
    _serving: JoinSet<()>,
}

impl Proxy {
    pub(crate) async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port on loopback");
        let address = listener.local_addr().expect("it is bound");
        let (mode, modes) = watch::channel(Mode::Pass);
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, address, upstream, modes));
        Self {
            address,
            mode,
            _serving: serving,
        }
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Makes trouble, now of this kind, now of that, until it is dropped.
    pub(crate) async fn trouble(&self, mut random: fastrand::Rng, troubles: Troubles) {
        loop {
            self.set(Mode::Pass);
            tokio::time::sleep(Duration::from_millis(random.u64(100..1500))).await;
            let (name, mode) = match random.u8(0..6) {
                0 => (
                    "delayed",
                    Mode::Delay(Duration::from_millis(random.u64(1..150))),
                ),
                1 => ("reset", Mode::Reset),
                2 => ("cut in the request", Mode::CutRequest(random.usize(1..400))),
                3 => ("cut in the answer", Mode::CutAnswer(random.usize(1..200))),
                4 => ("hung", Mode::Hang),
                _ => ("killed", Mode::Gone),
            };
            self.set(mode);
            *troubles
                .lock()
                .expect("no holder panics")
                .entry(name)
                .or_default() += 1;
            tokio::time::sleep(Duration::from_millis(random.u64(50..700))).await;
        }
    }
}

async fn serve(
    listener: TcpListener,
    address: SocketAddr,
    upstream: SocketAddr,
    mut modes: watch::Receiver<Mode>,
) {
    let mut listener = Some(listener);
    loop {
        let mode = *modes.borrow_and_update();
        if mode == Mode::Gone {
            listener = None;
        } else if listener.is_none() {
            // The port was ours a moment ago, and no other process requests it by number.
            listener = TcpListener::bind(address).await.ok();
        }
        let mut connections = JoinSet::new();
        loop {
            // Accepting, joining and waiting for a change are cancel-safe.
            tokio::select! {
                changed = modes.changed() => match changed {
                    Ok(()) => break,
                    Err(_dropped) => return,
                },
                Some(_ended) = connections.join_next() => {}
                accepted = accept(listener.as_ref()) => {
                    if let Some(stream) = accepted {
                        connections.spawn(pass(stream, upstream, mode));
                    }
                }
            }
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> Option<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.ok().map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

async fn pass(mut client: TcpStream, upstream: SocketAddr, mode: Mode) {
    // Closed without what is in flight: the other side sees a reset.
    drop(client.set_zero_linger());
    match mode {
        Mode::Reset | Mode::Gone => return,
        Mode::Hang => return std::future::pending().await,
        Mode::Pass | Mode::Delay(_) | Mode::CutRequest(_) | Mode::CutAnswer(_) => {}
    }
    let Ok(mut server) = TcpStream::connect(upstream).await else {
        return;
    };
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let pause = if let Mode::Delay(pause) = mode {
        pause
    } else {
        Duration::ZERO
    };
    let of_request = if let Mode::CutRequest(bytes) = mode {
        bytes
    } else {
        usize::MAX
    };
    let answered = if let Mode::CutAnswer(bytes) = mode {
        bytes
    } else {
        usize::MAX
    };
    // Whichever way ends first ends both.
    tokio::select! {
        () = copy(&mut from_client, &mut to_server, pause, of_request) => {}
        () = copy(&mut from_server, &mut to_client, pause, answered) => {}
    }
}

async fn copy(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    pause: Duration,
    mut left: usize,
) {
    let mut piece = vec![0; 16 * 1024];
    while left > 0 {
        let Ok(read @ 1..) = from.read(&mut piece).await else {
            return;
        };
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let passed = read.min(left);
        left -= passed;
        if to.write_all(&piece[..passed]).await.is_err() {
            return;
        }
    }
}
