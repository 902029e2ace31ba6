//! Probes, metrics and the state of polling.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use axum::response::Response as AxumResponse;

use crate::control::extract::{HttpError, Query, json};
use crate::control::openapi::{DocumentedRouter, HttpOperation, Method};
use crate::control::schemas::MetricsText;
use crate::control::types::{HealthResponse, PollingList, PollingResponse};
use crate::metrics::Format;

use super::{App, SharedState};

/// How long the parts of the daemon have to show progress.
const PROGRESS_LIMIT: Duration = Duration::from_secs(5);

/// How long one transaction of the store may take before a restart is the better way: many times as long as it waits
/// for another process.
const STUCK_LIMIT: Duration = Duration::from_secs(60);

/// Adds the routes about probes, metrics and the state of polling to the router.
pub(super) fn routes(router: DocumentedRouter<SharedState>) -> DocumentedRouter<SharedState> {
    router
        .route(
            Method::Get,
            "/v1/polling",
            polling,
            HttpOperation::new(
                "getPolling",
                "How polls of the API go",
                "The part of the request budget that is used, and the outage if there is one.",
            )
            .json::<PollingList>(StatusCode::OK, "For each provider in use"),
        )
        .route(
            Method::Get,
            "/healthz",
            healthz,
            HttpOperation::new(
                "health",
                "Whether the daemon makes progress",
                "Never a matter of the API being up.",
            )
            .open()
            .json::<HealthResponse>(StatusCode::OK, "It does"),
        )
        .route(
            Method::Get,
            "/readyz",
            readyz,
            HttpOperation::new(
                "readiness",
                "Whether watches can be added",
                "The store can be written.",
            )
            .open()
            .json::<HealthResponse>(StatusCode::OK, "They can"),
        )
        .route(
            Method::Get,
            "/metrics",
            metrics,
            HttpOperation::new(
                "metrics",
                "Metrics for Prometheus",
                "In OpenMetrics where `Accept` names it.",
            )
            .content::<MetricsText>(
                StatusCode::OK,
                "All metrics",
                &Format::ALL.map(Format::content_type),
            ),
        )
}

/// Whether the scheduler and the store make progress. The API being down is no ill health: a restart would change
/// nothing about it. Neither is a store that rejects writes or that another process holds: readiness reports that.
async fn healthz(State(app): App) -> Result<AxumResponse, HttpError> {
    app.control.store.progresses(STUCK_LIMIT)?;
    match tokio::time::timeout(PROGRESS_LIMIT, app.control.watches.ping()).await {
        Ok(Ok(())) => Ok(json(
            StatusCode::OK,
            &HealthResponse {
                status: "ok".to_owned(),
            },
        )),
        Ok(Err(error)) => Err(error.into()),
        Err(_elapsed) => Err(HttpError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the scheduler makes no progress",
        )),
    }
}

/// Whether watches can be added: the store takes a write. That this answers shows that the configuration
/// is loaded and the socket open.
async fn readyz(State(app): App) -> Result<AxumResponse, HttpError> {
    if app.stop.is_cancelled() {
        return Err(HttpError::new(StatusCode::SERVICE_UNAVAILABLE, "stopping"));
    }
    match tokio::time::timeout(PROGRESS_LIMIT, app.control.store.probe_write()).await {
        Ok(Ok(())) => Ok(json(
            StatusCode::OK,
            &HealthResponse {
                status: "ready".to_owned(),
            },
        )),
        Ok(Err(error)) => Err(error.into()),
        Err(_elapsed) => Err(HttpError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the store takes too long to write",
        )),
    }
}

/// How much of the budgets is used, and whether the APIs answer.
async fn polling(State(app): App, query: RawQuery) -> Result<AxumResponse, HttpError> {
    Query::read(query, &[])?;
    let usage = app.control.watches.usage().await?;
    let breakers = app.control.watches.breakers().borrow().clone();
    let of = |(provider, usage)| {
        let breaker = breakers.get(&provider).cloned().unwrap_or_default();
        PollingResponse::of(&provider, usage, &breaker)
    };
    let providers = usage.into_iter().map(of).collect();
    Ok(json(StatusCode::OK, &PollingList { providers }))
}

async fn metrics(State(app): App, headers: HeaderMap) -> Result<AxumResponse, HttpError> {
    let sinks = app
        .control
        .live_config
        .borrow()
        .routes
        .names()
        .cloned()
        .collect();
    let figures = app
        .control
        .store
        .gauges(app.control.clock.now(), sinks)
        .await?;
    let accept = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|accept| accept.to_str().ok());
    let format = Format::wanted(accept);
    let mut response = Response::new(Body::from(app.control.metrics.to_text(&figures, format)));
    let content_type = HeaderValue::from_static(format.content_type());
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    Ok(response)
}
