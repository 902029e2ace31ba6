//! The route about sinks.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response as AxumResponse;

use super::{App, ControlState, SharedState};
use crate::control::extract::{HttpError, Query, json};
use crate::control::openapi::{HttpOperation, Method, RouteTable, Tag};
use crate::control::types::{SinkList, SinkResponse};
use crate::domain::EventType;
use crate::metrics::SinkGauges;

/// Adds the route about sinks to the router.
pub(super) fn routes<R: RouteTable<SharedState>>(table: R) -> R {
    table.route(
        Method::Get,
        "/v1/sinks",
        list,
        || HttpOperation::new(Tag::Sinks, "listSinks",
            "List sinks",
            "Those that are configured, and those that deliveries are left for. No addresses, arguments or secrets.",
        )
        .json::<SinkList>(StatusCode::OK, "The sinks, by their names"),
    )
}

async fn list(State(app): App, query: RawQuery) -> Result<AxumResponse, HttpError> {
    Query::read(query, &[])?;
    Ok(json(StatusCode::OK, &app.sinks().await?))
}

impl ControlState {
    /// The sinks, and how many deliveries each has left.
    pub(super) async fn sinks(&self) -> Result<SinkList, HttpError> {
        let live_config = self.control.live_config.borrow().clone();
        let names = live_config.routes.names().cloned().collect();
        let stored = self
            .control
            .store
            .gauges(self.control.clock.now(), names)
            .await?;
        let routes = Arc::clone(&live_config.routes);
        let sink = |SinkGauges {
                        sink: name,
                        pending,
                        dead,
                        ..
                    }| {
            let route = routes.iter().find(|route| route.sink == name);
            let selected =
                |event: &EventType| route.is_some_and(|route| route.events.selects(*event));
            SinkResponse {
                kind: live_config
                    .sink_types
                    .get(&name)
                    .map(|word| (*word).to_owned()),
                events: EventType::ALL.into_iter().filter(selected).collect(),
                labels: route.map(|route| route.labels.clone()).unwrap_or_default(),
                most_attempts: live_config.scheduled_attempts.get(&name).copied(),
                pending,
                dead,
                name,
            }
        };
        let mut sinks: Vec<_> = stored.deliveries.into_iter().map(sink).collect();
        sinks.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(SinkList { sinks })
    }
}
