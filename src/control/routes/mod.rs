//! The routes of the control interface, each with its operation.

mod deliveries;
mod events;
mod health;
mod watches;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::middleware;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use self::deliveries::{deliveries, give_up, give_up_all, retry, retry_all};
use self::events::{activity, events};
use self::health::{healthz, metrics, polling, readyz};
use self::watches::{add, list, remove, show};
#[cfg(fuzzing)]
pub(super) use self::watches::{read_cursor, watch};
use crate::control::Control;
use crate::control::extract::{HttpError, read_body};
use crate::control::openapi::{Api, Method, Operation};
use crate::control::schemas::{
    DurationText, EventFrame, EventNumber, LabelPair, MetricsText, PageSize, WatchCursor,
};
use crate::control::server::MAX_CONNECTIONS;
use crate::control::types::{
    ActivityFrame, AddRequest, DecisionResponse, DeliveryList, HealthResponse, PollingResponse,
    WatchList, WatchResponse,
};
use crate::domain::{DeliveryId, RunRef, SinkName, Verdict};
use crate::metrics::Format;
use crate::store::{DeliveryState, WatchState};

/// Most requests at once that wait for a verdict or follow events. It is half of the connections of one
/// listener, so that long requests leave room for others, such as probes.
const MAX_LONG: usize = MAX_CONNECTIONS / 2;

struct Shared {
    control: Control,
    stop: CancellationToken,
    long: Arc<Semaphore>,
}

type App = State<Arc<Shared>>;

/// Returns the router, and the paths of the operations that require no token.
pub(in crate::control) fn router(
    control: Control,
    stop: CancellationToken,
) -> (Router, Vec<&'static str>) {
    let shared = Shared {
        control,
        stop,
        long: Arc::new(Semaphore::new(MAX_LONG)),
    };
    let (router, open) = Api::new()
        .route(
            Method::Post,
            "/v1/watches",
            add,
            Operation::new("addWatch", "Watch a run", "On disk before this answers. A run that is watched already stays so: `not_applied` names the options that \
                 differ. A finished watch is followed by a new one where `again` is true. The body may also be what the \
                 API answers when it creates a run.")
                .body::<AddRequest>()
                .json::<WatchResponse>(StatusCode::CREATED, "It is watched from now on")
                .json::<WatchResponse>(StatusCode::OK, "It was watched already, and stays as it is; see `not_applied`")
                // Somebody may remove it at the same moment.
                .problem(StatusCode::NOT_FOUND),
        )
        .route(
            Method::Get,
            "/v1/watches",
            list,
            Operation::new("listWatches", "List watches", "The oldest first.")
                .query::<WatchState>("state", "Only those without a verdict, or only those with one")
                .query::<Verdict>("verdict", "Only those with this verdict")
                .query::<Vec<LabelPair>>("label", "Only those that carry this label; of several, all")
                .query::<PageSize>("limit", "How many at the most; default 100")
                .query::<WatchCursor>("cursor", "The `next_cursor` of the page before")
                .json::<WatchList>(StatusCode::OK, "A page of watches"),
        )
        .route(
            Method::Get,
            "/v1/watches/{run_id}",
            show,
            Operation::new("getWatch", "Everything about a watch", "At once, or when its verdict is in.")
                .path::<RunRef>("run_id", "The run")
                .query::<DurationText>("wait", "How long to wait for a verdict: up to 10m; default: not at all")
                .json::<WatchResponse>(StatusCode::OK, "The watch")
                .problem(StatusCode::NOT_FOUND),
        )
        .route(
            Method::Delete,
            "/v1/watches/{run_id}",
            remove,
            Operation::new(
                "removeWatch",
                "Stop watching",
                "Refused while its verdict is not delivered everywhere, unless `force` gives that up.",
            )
            .path::<RunRef>("run_id", "The run")
            .query::<bool>("force", "Give up what is not delivered yet; `false` unless given")
            .empty(StatusCode::NO_CONTENT, "It is gone, with its history")
            .problem(StatusCode::NOT_FOUND)
            .problem(StatusCode::CONFLICT),
        )
        .route(
            Method::Get,
            "/v1/polling",
            polling,
            Operation::new(
                "getPolling",
                "How polls of the API go",
                "The part of the request budget that is used, and the outage if there is one.",
            )
            .json::<PollingResponse>(StatusCode::OK, "For all watches together"),
        )
        .route(
            Method::Get,
            "/v1/events",
            events,
            Operation::new(
                "followEvents",
                "Follow events",
                "Server-Sent Events, until the daemon stops. Each has its number as `id`, its type as `event`, and as \
                 `data` the JSON that sinks get. Without `Last-Event-ID` it begins with the next event.",
            )
            .header::<EventNumber>(
                "Last-Event-ID",
                "The number of an event: what the store has after it comes first. One that the store never gave out \
                 belongs to a store that is no more: then all events come",
            )
            .content::<EventFrame>(StatusCode::OK, "The schema is that of each", &["text/event-stream"]),
        )
        .route(
            Method::Get,
            "/v1/activity",
            activity,
            Operation::new(
                "followActivity",
                "Follow what runs are doing",
                "Server-Sent Events, until the daemon stops: what the event streams contain that it follows, from now on. \
                 Nothing of it is kept. An event `missed` says how many came too fast for the caller.",
            )
            .content::<ActivityFrame>(
                StatusCode::OK,
                "Events as they come; the schema is that of each",
                &["text/event-stream"],
            ),
        )
        .route(
            Method::Get,
            "/v1/deliveries",
            deliveries,
            Operation::new("listDeliveries", "List deliveries", "The oldest first.")
                .query::<Vec<DeliveryState>>("state", "Only those in one of these states")
                .query::<SinkName>("sink", "Only those of this sink")
                .query::<PageSize>("limit", "How many at the most; default 100")
                .query::<DeliveryId>("cursor", "The `next_cursor` of the page before")
                .json::<DeliveryList>(StatusCode::OK, "A page of deliveries"),
        )
        .route(
            Method::Post,
            "/v1/deliveries/{id}/retry",
            retry,
            Operation::new("retryDelivery", "Try a delivery again", "At once, and with a fresh schedule.")
                .path::<DeliveryId>("id", "The delivery; an unambiguous beginning of its ID will do")
                .empty(StatusCode::ACCEPTED, "It is due now")
                .problem(StatusCode::NOT_FOUND)
                .problem(StatusCode::CONFLICT),
        )
        .route(
            Method::Post,
            "/v1/deliveries/{id}/drop",
            give_up,
            Operation::new("dropDelivery", "Give a delivery up", "Its watch no longer waits for it.")
                .path::<DeliveryId>("id", "The delivery; an unambiguous beginning of its ID will do")
                .empty(StatusCode::NO_CONTENT, "It is given up")
                .problem(StatusCode::NOT_FOUND)
                .problem(StatusCode::CONFLICT),
        )
        .route(
            Method::Post,
            "/v1/deliveries/retry",
            retry_all,
            Operation::new(
                "retryDeliveries",
                "Try all deliveries of a sink again",
                "Those that wait and those that were given up, at once, and with a fresh schedule.",
            )
            .required_query::<SinkName>("sink", "The sink")
            .json::<DecisionResponse>(StatusCode::ACCEPTED, "They are due now")
            .problem(StatusCode::NOT_FOUND),
        )
        .route(
            Method::Post,
            "/v1/deliveries/drop",
            give_up_all,
            Operation::new(
                "dropDeliveries",
                "Give up all deliveries of a sink",
                "Those that wait. The sink may be one that is no longer configured.",
            )
            .required_query::<SinkName>("sink", "The sink")
            .json::<DecisionResponse>(StatusCode::OK, "They are given up")
            .problem(StatusCode::NOT_FOUND),
        )
        .route(
            Method::Get,
            "/healthz",
            healthz,
            Operation::new("health", "Whether the daemon makes progress", "Never a matter of the API being up.")
                .open()
                .json::<HealthResponse>(StatusCode::OK, "It does"),
        )
        .route(
            Method::Get,
            "/readyz",
            readyz,
            Operation::new("readiness", "Whether watches can be added", "The store can be written.")
                .open()
                .json::<HealthResponse>(StatusCode::OK, "They can"),
        )
        .route(
            Method::Get,
            "/metrics",
            metrics,
            Operation::new("metrics", "Metrics for Prometheus", "In OpenMetrics where `Accept` names it.")
                .content::<MetricsText>(StatusCode::OK, "All metrics", &Format::ALL.map(Format::content_type)),
        )
        .finish("/v1/openapi.json");
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

impl Shared {
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
