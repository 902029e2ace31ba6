//! The route about discoveries.

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response as AxumResponse;

use super::{App, SharedState};
use crate::control::extract::{HttpError, Query, json};
use crate::control::openapi::{HttpOperation, Method, RouteTable, Tag};
use crate::control::types::{DiscoveryList, DiscoveryResponse};

/// Adds the route about discoveries to the router.
pub(super) fn routes<R: RouteTable<SharedState>>(table: R) -> R {
    table.route(Method::Get, "/v1/discoveries", list, || {
        HttpOperation::new(
            Tag::Discoveries,
            "listDiscoveries",
            "List discoveries",
            "How the lists are read in which runs are found.",
        )
        .json::<DiscoveryList>(
            StatusCode::OK,
            "The discoveries, in the order of the configuration",
        )
    })
}

async fn list(State(app): App, query: RawQuery) -> Result<AxumResponse, HttpError> {
    Query::read(query, &[])?;
    let views = app.control.discoveries.borrow().clone();
    let discoveries = views.into_iter().map(DiscoveryResponse::of).collect();
    Ok(json(StatusCode::OK, &DiscoveryList { discoveries }))
}
