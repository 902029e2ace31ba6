//! Probes, metrics, the state of polling, and the OpenAPI document.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use axum::response::{IntoResponse as _, Response as AxumResponse};
use serde_json::{Map, Value};

use crate::control::Control;
use crate::control::extract::{HttpError, Query, json};
use crate::control::openapi::{DOCUMENT, HttpOperation, Method, PATH, RouteTable, Tag};
use crate::control::schemas::MetricsText;
use crate::control::types::{HealthResponse, PollingList, PollingResponse};
use crate::domain::SinkName;
use crate::metrics::{BudgetUse, Format, LeaseGauges, Scraped, StoreGauges};

use super::{App, ControlState, SharedState};

/// How long the parts of the daemon have to show progress.
const PROGRESS_LIMIT: Duration = Duration::from_secs(5);

/// How long the schedulers may take to report how the budgets are used.
const USAGE_LIMIT: Duration = Duration::from_secs(1);

/// How long one transaction of the store may take before a restart is the better way: many times as long as it waits
/// for another process.
const STUCK_LIMIT: Duration = Duration::from_secs(60);

/// Adds the routes of this file.
pub(super) fn routes<R: RouteTable<SharedState>>(table: R) -> R {
    table
        .route(Method::Get, "/v1/polling", polling, || {
            HttpOperation::new(
                Tag::Daemon,
                "getPolling",
                "How polls of the API go",
                "The part of the request budget that is used, and the outage if there is one.",
            )
            .json::<PollingList>(StatusCode::OK, "For each provider in use")
        })
        .open_route(Method::Get, "/healthz", healthz, || {
            HttpOperation::new(
                Tag::Daemon,
                "health",
                "Whether the daemon makes progress",
                "Never a matter of the API being up.",
            )
            .json::<HealthResponse>(StatusCode::OK, "It does")
        })
        .open_route(Method::Get, "/readyz", readyz, || {
            HttpOperation::new(
                Tag::Daemon,
                "readiness",
                "Whether watches can be added",
                "The store can be written.",
            )
            .json::<HealthResponse>(StatusCode::OK, "They can")
        })
        .route(Method::Get, "/metrics", metrics, || {
            HttpOperation::new(
                Tag::Daemon,
                "metrics",
                "Metrics for Prometheus",
                "In OpenMetrics where `Accept` names it.",
            )
            .content::<MetricsText>(
                StatusCode::OK,
                "All metrics",
                &Format::ALL.map(Format::content_type),
            )
        })
        .route(Method::Get, PATH, openapi, || {
            HttpOperation::new(
                Tag::Daemon,
                "describe",
                "This document",
                "The OpenAPI 3.1 document of what this daemon serves.",
            )
            .json::<Map<String, Value>>(StatusCode::OK, "An OpenAPI 3.1 document")
        })
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
    Ok(json(StatusCode::OK, &app.polling().await?))
}

impl ControlState {
    /// How polls go, provider by provider.
    pub(super) async fn polling(&self) -> Result<PollingList, HttpError> {
        let usage = self.control.watches.usage().await?;
        let breakers = self.control.watches.breakers();
        let of = |(provider, usage)| {
            let breaker = breakers.get(&provider).cloned().unwrap_or_default();
            PollingResponse::of(&provider, usage, &breaker)
        };
        let providers = usage.into_iter().map(of).collect();
        Ok(PollingList { providers })
    }
}

/// How the budgets are used; nothing where the schedulers do not answer, which must not keep all other metrics away.
async fn budgets(app: &SharedState) -> Vec<BudgetUse> {
    let usage = tokio::time::timeout(USAGE_LIMIT, app.control.watches.usage()).await;
    let usage = usage.ok().and_then(Result::ok).into_iter().flatten();
    let budgets = usage.map(|(provider, usage)| BudgetUse {
        provider,
        used: usage.last_minute,
        limit: usage.per_minute.into(),
    });
    budgets.collect()
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
    let stored = app.stored_gauges(sinks).await?;
    let lease = app.lease_gauges();
    let accept = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|accept| accept.to_str().ok());
    let format = Format::wanted(accept);
    let scraped = Scraped {
        stored,
        lease,
        budgets: budgets(&app).await,
        store: app.control.store.figures().clone(),
    };
    let text = app.control.metrics.to_text(&scraped, format);
    let mut response = Response::new(Body::from(text));
    let content_type = HeaderValue::from_static(format.content_type());
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    Ok(response)
}

async fn openapi() -> AxumResponse {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT).into_response()
}

impl ControlState {
    /// What is counted in the store. Of several daemons only the leader counts, so that sums are right; a shared store
    /// that is out of reach leaves the other metrics there.
    async fn stored_gauges(&self, sinks: Vec<SinkName>) -> Result<Option<StoreGauges>, HttpError> {
        let Control { store, clock, .. } = &self.control;
        if !self.leads() {
            return Ok(None);
        }
        match store.gauges(clock.now(), sinks).await {
            Err(_) if store.is_shared() => Ok(None),
            gauges => Ok(Some(gauges?)),
        }
    }

    /// Whether this daemon polls and delivers now: its engine runs, and its lease is confirmed. A daemon with a store of
    /// its own always does.
    pub(super) fn leads(&self) -> bool {
        let Some(lease) = &self.control.lease else {
            return true;
        };
        let is_confirmed = lease
            .view
            .borrow()
            .is_confirmed(self.control.clock.passed());
        is_confirmed && self.control.watches.schedulers().is_some()
    }

    /// Who leads, where the store is shared.
    fn lease_gauges(&self) -> Option<LeaseGauges> {
        let view = self.control.lease.as_ref()?.view.borrow();
        let settings = self.control.live_config.borrow().fingerprint;
        let left = view
            .confirmed_until
            .saturating_sub(self.control.clock.passed());
        Some(LeaseGauges {
            leads: self.leads(),
            term: view.leader.as_ref().map_or(0, |leader| leader.term),
            left: view.term.as_ref().map_or(Duration::ZERO, |_| left),
            store_up: view.problem.is_none(),
            clock_ahead_seconds: view.clock_ahead.as_secs_f64(),
            settings_differ: view.settings_differ(settings),
            unknown_commits: *self.control.store.unknown_commits().borrow(),
        })
    }
}
