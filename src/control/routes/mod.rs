//! The routes of the control interface, each with its operation.

mod deliveries;
mod discoveries;
mod events;
mod health;
mod lease;
mod page;
mod served;
mod sinks;
mod watches;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::middleware;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use self::served::Served;
#[cfg(fuzzing)]
pub(super) use self::watches::{read_cursor, watch};
use crate::control::Control;
use crate::control::extract::{HttpError, read_body};
use crate::control::openapi::{Document, RouteTable};
use crate::control::server::MAX_CONNECTIONS;

/// Most requests at once that wait for a verdict or follow events. It is half of the connections of one
/// listener, so that long requests leave room for others, such as probes.
const MAX_LONG: usize = MAX_CONNECTIONS / 2;

/// What the handlers share.
struct ControlState {
    control: Control,
    stop: CancellationToken,
    long: Arc<Semaphore>,
}

type SharedState = Arc<ControlState>;

type App = State<SharedState>;

/// Returns the router, and the paths of the operations that require no token.
pub(in crate::control) fn router(
    control: Control,
    stop: CancellationToken,
) -> (Router, Vec<&'static str>) {
    let shared = ControlState {
        control,
        stop,
        long: Arc::new(Semaphore::new(MAX_LONG)),
    };
    let mut served = all(Served::new());
    served.open.extend(super::page::OPEN);
    let router = served
        .router
        .merge(page::routes())
        .fallback(|| async { HttpError::new(StatusCode::NOT_FOUND, "there is no such route") })
        .method_not_allowed_fallback(|| async {
            HttpError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "this route has other methods; see Allow",
            )
        })
        .layer(middleware::from_fn(read_body))
        .with_state(Arc::new(shared));
    (router, served.open)
}

/// Makes the OpenAPI document from the routes. It is that of `docs/openapi.json`, which the program contains, unless
/// the routes have changed since.
pub fn describe() -> serde_json::Value {
    all(Document::new()).finish()
}

/// Adds every route.
fn all<R: RouteTable<SharedState>>(table: R) -> R {
    let table = watches::routes(table);
    let table = sinks::routes(deliveries::routes(events::routes(table)));
    let table = lease::routes(discoveries::routes(table));
    health::routes(table)
}

impl ControlState {
    /// A place among the requests that take long.
    fn place(&self) -> Result<OwnedSemaphorePermit, HttpError> {
        Arc::clone(&self.long)
            .try_acquire_owned()
            .map_err(|_none_left| {
                HttpError::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    format!("{MAX_LONG} requests wait or follow events already"),
                )
            })
    }
}
