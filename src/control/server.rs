//! The connections of the control interface: how many, how slow, and how they end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use axum::{Extension, Router};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::write_timeout::with_write_timeout;

/// Most connections at once on one listener. A further caller takes the place of the oldest one that has not sent an
/// authorized request, and waits to be accepted only where there is none: idle connections shut out neither probes nor
/// callers with the token.
pub(super) const MAX_CONNECTIONS: usize = 512;

/// How long a caller may take to send the head of a request.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// Most bytes of the head of a request.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// How long no connection is accepted after accepting failed: mostly the process has too many files open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A socket that is listened on.
#[derive(Debug)]
pub enum Listener {
    /// For this machine.
    Unix(UnixListener),
    /// For a network.
    Tcp(TcpListener),
}

/// A connection of either kind.
trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

impl Listener {
    /// Cancel-safe.
    async fn accept(&self) -> std::io::Result<Box<dyn Connection>> {
        match self {
            Self::Unix(listener) => listener
                .accept()
                .await
                .map(|(stream, _)| Box::new(stream) as Box<dyn Connection>),
            Self::Tcp(listener) => listener
                .accept()
                .await
                .map(|(stream, _)| Box::new(stream) as Box<dyn Connection>),
        }
    }
}

/// One connection, as its requests and its listener see it.
#[derive(Debug, Clone, Default)]
pub(super) struct Caller {
    authorized: Arc<AtomicBool>,
    close: CancellationToken,
}

impl Caller {
    /// Notes that a request of it was authorized: it keeps its place until it ends.
    pub(super) fn authorize(&self) {
        self.authorized.store(true, Ordering::Relaxed);
    }

    /// Whether a further caller may take its place.
    fn is_replaceable(&self) -> bool {
        !self.authorized.load(Ordering::Relaxed) && !self.close.is_cancelled()
    }
}

/// Authorizes every request, on a listener that only this user and the group can reach.
pub(super) async fn authorize_all(
    Extension(caller): Extension<Caller>,
    request: Request,
    next: Next,
) -> Response {
    caller.authorize();
    next.run(request).await
}

/// The connections of one listener, the oldest first.
#[derive(Debug, Default)]
struct Callers(VecDeque<Caller>);

impl Callers {
    /// Takes in a further one, and closes the oldest that is replaceable where there are `most` already.
    fn admit(&mut self, most: usize) -> Caller {
        // Those that have ended hold no clone of their token.
        self.0.retain(|caller| {
            Arc::strong_count(&caller.authorized) > 1 && !caller.close.is_cancelled()
        });
        if self.0.len() >= most
            && let Some(oldest) = self.0.iter().position(Caller::is_replaceable)
            && let Some(oldest) = self.0.remove(oldest)
        {
            tracing::debug!("closed an idle connection to make room for another");
            oldest.close.cancel();
        }
        let caller = Caller::default();
        self.0.push_back(caller.clone());
        caller
    }

    fn has_room(&self, most: usize, open: usize) -> bool {
        open < most
            || self
                .0
                .iter()
                .any(|caller| Arc::strong_count(&caller.authorized) > 1 && caller.is_replaceable())
    }
}

/// Serves `router` until `stop` is cancelled, then takes no more connections and waits for the requests
/// under way. Dropping it ends them.
pub(super) async fn serve(listener: Listener, router: Router, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    let mut callers = Callers::default();
    loop {
        let has_room = callers.has_room(MAX_CONNECTIONS, connections.len());
        // Accepting, joining and waiting for a token are cancel-safe.
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_ended) = connections.join_next() => {}
            accepted = listener.accept(), if has_room => match accepted {
                Ok(stream) => {
                    let caller = callers.admit(MAX_CONNECTIONS);
                    connections.spawn(connection(stream, caller, router.clone(), stop.clone()));
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(
    stream: Box<dyn Connection>,
    caller: Caller,
    router: Router,
    stop: CancellationToken,
) {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(MAX_HEAD_BYTES);
    let close = caller.close.clone();
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(caller.clone());
        router.call(request)
    });
    let connection = builder.serve_connection(TokioIo::new(with_write_timeout(stream)), service);
    tokio::pin!(connection);
    // All arms are cancel-safe: the connection is only polled on, not dropped, unless another takes its place.
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = close.cancelled() => return,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended badly");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_connection_without_an_authorized_request_makes_room() {
        let mut callers = Callers::default();
        let mut open: Vec<_> = (0..4).map(|_| callers.admit(4)).collect();
        open[0].authorize();
        assert!(callers.has_room(4, 4));
        open.push(callers.admit(4));
        let closed = |open: &[Caller]| {
            open.iter()
                .map(|caller| caller.close.is_cancelled())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            closed(&open),
            [false, true, false, false, false],
            "the second is the oldest"
        );
        open.remove(2);
        open.push(callers.admit(4));
        assert_eq!(
            closed(&open),
            [false, true, false, false, false],
            "one had ended by itself"
        );
        open.iter().for_each(Caller::authorize);
        assert!(
            !callers.has_room(4, 4),
            "the rest waits until one of them ends"
        );
        assert!(callers.has_room(4, 3));
    }
}
