//! The control interface: what programs and the other commands ask of the daemon.
//!
//! HTTP/1.1 with JSON on a Unix socket. The server knows the scheduler and the store; the client is
//! what the commands use. A caller names configured sinks; it can never give a URL or a command.

mod client;
mod routes;
mod socket;
mod wire;

use std::sync::Arc;

use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::client::{Client, ClientError, Events};
pub use self::socket::{Socket, SocketError};
pub use self::wire::{
    AddRequest, AttemptDoc, ChangeDoc, DeliveryDoc, DeliveryList, FailureDoc, Problem, SinkDoc, WatchDoc, WatchList,
};
use crate::api::RunSource;
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::run::Routes;
use crate::store::Store;
use crate::watch::Watches;

/// What the server needs to know of the settings in force; changes on reload.
#[derive(Debug, Clone)]
pub struct InForce {
    /// The sinks and what they are told.
    pub routes: Arc<Routes>,
    /// How long a watch lasts that asks for no time of its own.
    pub deadline: std::time::Duration,
    /// How long finished watches are kept.
    pub retention: std::time::Duration,
    /// Why the newest configuration is not in force.
    pub rejected: Option<String>,
}

/// The server's side of the control interface.
pub struct Control<S> {
    /// The store.
    pub store: Store,
    /// The scheduler.
    pub watches: Watches<S>,
    /// What is counted.
    pub metrics: Metrics,
    /// The time.
    pub clock: Clock,
    /// The settings in force.
    pub in_force: watch::Receiver<InForce>,
}

impl<S: RunSource> Control<S> {
    /// Serves until `stop` is cancelled; then takes no more requests and answers those that are there,
    /// the long ones at once.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn serve(self, listener: UnixListener, stop: CancellationToken) -> std::io::Result<()> {
        let router = routes::router(self, stop.clone());
        axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
    }
}
