//! The routes of the control interface, each with its operation.

mod deliveries;
mod discoveries;
mod events;
mod health;
mod sinks;
mod watches;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::middleware;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

#[cfg(fuzzing)]
pub(super) use self::watches::{read_cursor, watch};
use crate::control::Control;
use crate::control::extract::{HttpError, read_body};
use crate::control::openapi::DocumentedRouter;
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
    let router = watches::routes(DocumentedRouter::new());
    let router = sinks::routes(deliveries::routes(events::routes(router)));
    let router = discoveries::routes(router);
    let (router, open) = health::routes(router).finish("/v1/openapi.json");
    let router = router
        .fallback(|| async { HttpError::new(StatusCode::NOT_FOUND, "there is no such route") })
        .method_not_allowed_fallback(|| async {
            HttpError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "this route has other methods; see Allow",
            )
        })
        .layer(middleware::from_fn(read_body))
        .with_state(Arc::new(shared));
    (router, open)
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
