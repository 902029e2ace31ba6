//! A webhook receiver that remembers what it got.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use hyper::{HeaderMap, Method, StatusCode};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Fault;
use super::server::{ServedAnswer, Server, text};

/// A webhook receiver on loopback.
pub struct Receiver {
    server: Server,
    state: Arc<Mutex<State>>,
    count: watch::Receiver<usize>,
}

/// One request that the receiver got.
#[derive(Debug, Clone)]
pub struct Received {
    /// When.
    pub at: Instant,
    /// The method.
    pub method: Method,
    /// The path.
    pub path: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// Whether its signature holds, where the receiver checks that.
    pub verified: Option<bool>,
    /// Whether it was answered with success.
    pub accepted: bool,
}

struct State {
    answers: VecDeque<Fault>,
    received: Vec<Received>,
}

/// Checks the signature of a request, from its headers and body.
type Verify = Box<dyn Fn(&HeaderMap, &[u8]) -> bool + Send + Sync>;

impl Receiver {
    /// Starts on a free port. The first requests get `answers`, one each; further ones 204.
    ///
    /// # Errors
    /// When no port is to be had.
    pub async fn start(answers: impl IntoIterator<Item = Fault>) -> io::Result<Self> {
        Self::start_on(SocketAddr::from(([127, 0, 0, 1], 0)), answers, None).await
    }

    /// Starts on a free port, and checks every request with `verify`: 401 for one that fails.
    ///
    /// # Errors
    /// When no port is to be had.
    pub async fn start_verifying(
        verify: impl Fn(&HeaderMap, &[u8]) -> bool + Send + Sync + 'static,
    ) -> io::Result<Self> {
        Self::start_on(
            SocketAddr::from(([127, 0, 0, 1], 0)),
            [],
            Some(Box::new(verify)),
        )
        .await
    }

    /// Starts on this address: as [`Receiver::start`], with `verify` as well.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start_on(
        address: SocketAddr,
        answers: impl IntoIterator<Item = Fault>,
        verify: Option<Verify>,
    ) -> io::Result<Self> {
        let state = State {
            answers: answers.into_iter().collect(),
            received: Vec::new(),
        };
        let state = Arc::new(Mutex::new(state));
        let (counter, count) = watch::channel(0);
        let shared = Arc::clone(&state);
        let server = Server::start(address, move |request| {
            let mut state = shared.lock().expect("no holder panics");
            let verified = verify
                .as_ref()
                .map(|verify| verify(&request.headers, &request.body));
            let fault = state.answers.pop_front();
            let accepted = fault.is_none() && verified != Some(false);
            state.received.push(Received {
                at: Instant::now(),
                method: request.method,
                path: request.path,
                headers: request.headers,
                body: request.body,
                verified,
                accepted,
            });
            counter.send_replace(state.received.len());
            match fault {
                Some(fault) => fault.answer(&json!({"ok": true})),
                None if accepted => status(StatusCode::NO_CONTENT),
                None => status(StatusCode::UNAUTHORIZED),
            }
        });
        Ok(Self {
            server: server.await?,
            state,
            count,
        })
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Where to send to.
    pub fn url(&self) -> String {
        format!("http://{}/hook", self.server.address())
    }

    /// Every request so far, in order.
    pub fn requests(&self) -> Vec<Received> {
        self.requests_beyond(0)
    }

    /// The requests after the first `count`.
    fn requests_beyond(&self, count: usize) -> Vec<Received> {
        self.state
            .lock()
            .expect("no holder panics")
            .received
            .iter()
            .skip(count)
            .cloned()
            .collect()
    }

    /// Waits until there are more than `count` requests, and returns those after them.
    pub async fn wait_beyond(&self, count: usize) -> Vec<Received> {
        let mut received = self.count.clone();
        // The sender lives as long as the server, which `self` holds.
        drop(received.wait_for(|received| *received > count).await);
        self.requests_beyond(count)
    }

    /// Waits until there were `count` requests, and returns all there are.
    pub async fn wait_for(&self, count: usize) -> Vec<Received> {
        let mut received = self.count.clone();
        // The sender lives as long as the server, which `self` holds.
        drop(received.wait_for(|received| *received >= count).await);
        self.requests()
    }

    /// Ends the server and its connections.
    pub async fn shutdown(self) {
        self.server.shutdown().await;
    }
}

fn status(status: StatusCode) -> ServedAnswer {
    let mut response = text("text/plain", "");
    *response.status_mut() = status;
    response.into()
}
