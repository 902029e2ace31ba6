//! The control interface: what programs and the other commands ask of the daemon.
//!
//! HTTP/1.1 with JSON on a Unix socket, and on TCP where that is configured. The server knows the
//! scheduler and the store; the client is what the commands use. A caller names configured sinks; it can
//! never give a URL or a command.

mod auth;
mod browser;
mod client;
mod event_schemas;
mod extract;
#[cfg(fuzzing)]
pub mod fuzzing;
mod openapi;
mod page;
mod routes;
mod schemas;
mod server;
mod session;
mod socket;
mod types;
mod write_timeout;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use axum::middleware;
use reqwest::Url;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::auth::Guard;
pub use self::client::{Activities, Client, ClientError, Events, StreamMessage};
pub use self::openapi::DOCUMENT as OPENAPI_DOCUMENT;
pub use self::routes::describe as openapi_of_routes;
pub use self::server::Listener;
pub use self::socket::{Socket, SocketError};
pub use self::types::{
    ActivityResponse, AddRequest, AttemptResponse, DeliveryList, DeliveryResponse, DiscoveryList,
    DiscoveryResponse, HealthResponse, LeaderResponse, LeaseResponse, PollErrorResponse,
    PollingList, PollingResponse, ProblemDetails, RoutingEntry, SinkList, SinkResponse,
    StatusChangeResponse, WatchList, WatchResponse,
};
use crate::clock::Clock;
use crate::config::{DiscoverySettings, HeartbeatSettings, Providers, Secret};
use crate::discovery::DiscoveryView;
use crate::domain::{Routes, SinkName};
use crate::lease::LeaseHandle;
use crate::metrics::Metrics;
use crate::scheduler::Watches;
use crate::store::Store;

/// How the notice begins that a reload was refused.
pub const NOT_IN_FORCE: &str = "the configuration on disk is not in force";

/// What the server needs to know of the settings in force; changes on reload.
#[derive(Debug, Clone)]
pub struct LiveConfig {
    /// The sinks and which events they get.
    pub routes: Arc<Routes>,
    /// How many attempts the schedule of each sink has, the first included.
    pub scheduled_attempts: Arc<HashMap<SinkName, u32>>,
    /// The type of each sink, as the configuration has it.
    pub sink_types: Arc<BTreeMap<SinkName, &'static str>>,
    /// How long a watch lasts by default.
    pub deadline: std::time::Duration,
    /// How long finished watches are kept.
    pub retention: std::time::Duration,
    /// The bearer token for TCP.
    pub token: Option<Secret>,
    /// Where browsers find the page; its path ends in a slash.
    pub public_url: Option<Url>,
    /// The providers, which say what run a text names.
    pub providers: Arc<Providers>,
    /// The discoveries.
    pub discoveries: Arc<[DiscoverySettings]>,
    /// Where the daemon reports that it makes progress.
    pub heartbeat: Option<HeartbeatSettings>,
    /// A number that differs where the settings differ that all daemons on one store should share.
    pub fingerprint: u64,
    /// Why the newest configuration is not in force.
    pub rejected: Option<String>,
}

/// The server's side of the control interface.
pub struct Control {
    /// The store.
    pub store: Store,
    /// The way to the watches.
    pub watches: Watches,
    /// What is counted.
    pub metrics: Metrics,
    /// The time.
    pub clock: Clock,
    /// The settings in force.
    pub live_config: watch::Receiver<LiveConfig>,
    /// How the discoveries go.
    pub discoveries: watch::Receiver<Vec<DiscoveryView>>,
    /// Who leads; `None` with a store of this daemon's own.
    pub lease: Option<LeaseHandle>,
}

impl Control {
    /// Serves on all of `listeners` until `stop` is cancelled; then takes no more requests and answers
    /// those that are there, the long ones at once. On TCP the token is required, if there is one, and
    /// web pages are refused, except for the one that it serves itself. Dropping the set ends every connection.
    pub fn serve(self, listeners: Vec<Listener>, stop: &CancellationToken) -> JoinSet<()> {
        let (live_config, clock) = (self.live_config.clone(), self.clock.clone());
        let (router, open) = routes::router(self, stop.clone());
        let open: Arc<[_]> = open.into();
        let mut serving = JoinSet::new();
        for listener in listeners {
            let router = match &listener {
                Listener::Unix(_) => router
                    .clone()
                    .layer(middleware::from_fn(server::authorize_all)),
                Listener::Tcp(tcp) => {
                    let loopback = tcp
                        .local_addr()
                        .is_ok_and(|address| address.ip().is_loopback());
                    let guard = Guard::new(
                        live_config.clone(),
                        loopback,
                        Arc::clone(&open),
                        clock.clone(),
                    );
                    router
                        .clone()
                        .layer(middleware::from_fn_with_state(guard, auth::check))
                }
            };
            serving.spawn(server::serve(listener, router, stop.clone()));
        }
        serving
    }
}
