//! Routes about the lease of a shared store.

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response as AxumResponse;

use crate::control::extract::{HttpError, Query, json};
use crate::control::openapi::{HttpOperation, Method, RouteTable, Tag};
use crate::control::types::LeaseResponse;

use super::{App, SharedState};

/// Adds the routes about the lease to the router.
pub(super) fn routes<R: RouteTable<SharedState>>(table: R) -> R {
    table
        .route(Method::Get, "/v1/lease", show, || {
            HttpOperation::new(
                Tag::Daemon,
                "getLease",
                "Which daemon leads",
                "Of several daemons on one store, one polls and delivers. With a store of its own, a daemon leads always.",
            )
            .json::<LeaseResponse>(StatusCode::OK, "Who leads, as this daemon knows it")
        })
        .route(Method::Post, "/v1/lease/release", release, || {
            HttpOperation::new(
                Tag::Daemon,
                "releaseLease",
                "Let another daemon lead",
                "The leader finishes what it sends, and another daemon takes over. Where there is no other, it leads \
                 again after 10 s.",
            )
            .empty(StatusCode::ACCEPTED, "The leader is requested to release the lease")
            .problem(StatusCode::CONFLICT)
            .problem(StatusCode::SERVICE_UNAVAILABLE)
        })
}

async fn show(State(app): App, query: RawQuery) -> Result<AxumResponse, HttpError> {
    Query::read(query, &[])?;
    let (leads, now) = (app.leads(), app.control.clock.passed());
    let response = match &app.control.lease {
        Some(lease) => LeaseResponse::shared(&lease.view.borrow(), leads, now),
        None => LeaseResponse::own(),
    };
    Ok(json(StatusCode::OK, &response))
}

async fn release(State(app): App, query: RawQuery) -> Result<StatusCode, HttpError> {
    Query::read(query, &[])?;
    let Some(lease) = &app.control.lease else {
        return Err(HttpError::new(
            StatusCode::CONFLICT,
            "this daemon has a store of its own, so no other one can lead",
        ));
    };
    lease.request_release().await?;
    Ok(StatusCode::ACCEPTED)
}
