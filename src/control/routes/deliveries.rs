//! Routes about deliveries.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response as AxumResponse;

use crate::control::extract::{HttpError, InPath, Query, json};
use crate::control::openapi::{HttpOperation, Method, RouteTable, Tag};
use crate::control::schemas::{DELIVERY_ORDERS, DeliveryOrder, PageSize};
use crate::control::types::{DecisionResponse, DeliveryList, DeliveryResponse};
use crate::domain::{DeliveryId, SinkName};
use crate::store::{Decided, DeliveryFilter, DeliveryState, DeliverySummary, Fate};

use super::{App, ControlState, SharedState};

/// Adds the routes about deliveries to the router.
pub(super) fn routes<R: RouteTable<SharedState>>(table: R) -> R {
    table
        .route(Method::Get, "/v1/deliveries", deliveries, || {
            HttpOperation::new(
                Tag::Deliveries,
                "listDeliveries",
                "List deliveries",
                "The oldest first, unless `order` says otherwise.",
            )
            .query::<Vec<DeliveryState>>("state", "Only those in one of these states")
            .query::<SinkName>("sink", "Only those of this sink")
            .query::<DeliveryOrder>("order", "`oldest`, the default, or `newest` first")
            .query::<PageSize>("limit", "How many at the most; default 100")
            .query::<DeliveryId>("cursor", "The `next_cursor` of the page before")
            .json::<DeliveryList>(StatusCode::OK, "A page of deliveries")
        })
        .route(Method::Post, "/v1/deliveries/{id}/retry", retry, || {
            HttpOperation::new(
                Tag::Deliveries,
                "retryDelivery",
                "Try a delivery again",
                "At once, and with a fresh schedule.",
            )
            .path::<DeliveryId>(
                "id",
                "The delivery; an unambiguous beginning of its ID will do",
            )
            .empty(StatusCode::ACCEPTED, "It is due now")
            .problem(StatusCode::NOT_FOUND)
            .problem(StatusCode::CONFLICT)
        })
        .route(Method::Post, "/v1/deliveries/{id}/drop", give_up, || {
            HttpOperation::new(
                Tag::Deliveries,
                "dropDelivery",
                "Give a delivery up",
                "Its watch no longer waits for it.",
            )
            .path::<DeliveryId>(
                "id",
                "The delivery; an unambiguous beginning of its ID will do",
            )
            .empty(StatusCode::NO_CONTENT, "It is given up")
            .problem(StatusCode::NOT_FOUND)
            .problem(StatusCode::CONFLICT)
        })
        .route(Method::Post, "/v1/deliveries/retry", retry_all, || {
            HttpOperation::new(
                Tag::Deliveries,
                "retryDeliveries",
                "Try all deliveries of a sink again",
                "Those that wait and those that were given up, at once, and with a fresh schedule.",
            )
            .required_query::<SinkName>("sink", "The sink")
            .json::<DecisionResponse>(StatusCode::ACCEPTED, "They are due now")
            .problem(StatusCode::NOT_FOUND)
        })
        .route(Method::Post, "/v1/deliveries/drop", give_up_all, || {
            HttpOperation::new(
                Tag::Deliveries,
                "dropDeliveries",
                "Give up all deliveries of a sink",
                "Those that wait. The sink may be one that is no longer configured.",
            )
            .required_query::<SinkName>("sink", "The sink")
            .json::<DecisionResponse>(StatusCode::OK, "They are given up")
            .problem(StatusCode::NOT_FOUND)
        })
}

async fn deliveries(State(app): App, query: RawQuery) -> Result<AxumResponse, HttpError> {
    let query = Query::read(query, &["state", "sink", "order", "limit", "cursor"])?;
    let states = query.all("state").map(|word| {
        let rule = || {
            HttpError::bad(format!(
                "state={word}: write pending, sending, delivered or dead"
            ))
        };
        DeliveryState::from_word(word).ok_or_else(rule)
    });
    let filter = DeliveryFilter {
        states: states.collect::<Result<_, _>>()?,
        sink: query.one(
            "sink",
            |text| SinkName::new(text).ok(),
            "the name of a sink",
        )?,
        newest_first: query
            .one("order", newest_first, "oldest or newest")?
            .unwrap_or(false),
        after: query.one(
            "cursor",
            |text| DeliveryId::new(text).ok(),
            "the next_cursor of an answer",
        )?,
    };
    let list = app.delivery_list(filter, query.limit()?).await?;
    Ok(json(StatusCode::OK, &list))
}

/// Reads a word of [`DELIVERY_ORDERS`].
fn newest_first(word: &str) -> Option<bool> {
    let place = DELIVERY_ORDERS.iter().position(|order| *order == word)?;
    Some(place == 1)
}

async fn retry(State(app): App, id: InPath) -> Result<StatusCode, HttpError> {
    app.decide(id, Fate::Retry)
        .await
        .map(|()| StatusCode::ACCEPTED)
}

async fn give_up(State(app): App, id: InPath) -> Result<StatusCode, HttpError> {
    app.decide(id, Fate::Drop)
        .await
        .map(|()| StatusCode::NO_CONTENT)
}

async fn retry_all(State(app): App, query: RawQuery) -> Result<AxumResponse, HttpError> {
    Ok(json(
        StatusCode::ACCEPTED,
        &app.decide_all(query, Fate::Retry).await?,
    ))
}

async fn give_up_all(State(app): App, query: RawQuery) -> Result<AxumResponse, HttpError> {
    Ok(json(
        StatusCode::OK,
        &app.decide_all(query, Fate::Drop).await?,
    ))
}

impl ControlState {
    /// A page of deliveries.
    pub(super) async fn delivery_list(
        &self,
        filter: DeliveryFilter,
        limit: u32,
    ) -> Result<DeliveryList, HttpError> {
        let page = self.control.store.deliveries(filter, limit).await?;
        let next_cursor = page
            .items
            .last()
            .filter(|_| page.more)
            .map(|last| last.id.to_string());
        let scheduled_attempts = Arc::clone(&self.control.live_config.borrow().scheduled_attempts);
        let response = |summary: DeliverySummary| {
            let scheduled = scheduled_attempts.get(&summary.sink).copied();
            DeliveryResponse::of(summary, None, scheduled)
        };
        Ok(DeliveryList {
            deliveries: page.items.into_iter().map(response).collect(),
            next_cursor,
        })
    }

    /// Retries one delivery, or gives it up.
    async fn decide(&self, id: InPath, fate: Fate) -> Result<(), HttpError> {
        let id = DeliveryId::new(&id?.0).map_err(|error| HttpError::bad(error.to_string()))?;
        match self
            .control
            .store
            .decide(id.clone(), fate, self.control.clock.now())
            .await?
        {
            Decided::Done => Ok(()),
            Decided::Unknown => Err(HttpError::unknown(id)),
            Decided::Ambiguous(candidates) => {
                let candidates: Vec<_> = candidates.iter().map(DeliveryId::as_str).collect();
                Err(HttpError::ambiguous(format!(
                    "{id} is the beginning of several delivery IDs, such as {}; give more of it",
                    candidates.join(", ")
                )))
            }
        }
    }

    /// Retries the deliveries of a sink, or gives them up.
    async fn decide_all(&self, query: RawQuery, fate: Fate) -> Result<DecisionResponse, HttpError> {
        let query = Query::read(query, &["sink"])?;
        let sink = query.one(
            "sink",
            |text| SinkName::new(text).ok(),
            "the name of a sink",
        )?;
        let sink = sink.ok_or_else(|| HttpError::bad("sink is missing: write sink=NAME"))?;
        let deliveries = self
            .control
            .store
            .decide_all(sink.clone(), fate, self.control.clock.now())
            .await?;
        let configured = self.control.live_config.borrow().routes.contains(&sink);
        // A name without a sink and without messages is a slip.
        if deliveries == 0 && !configured {
            Err(HttpError::unknown(sink))
        } else {
            Ok(DecisionResponse { deliveries })
        }
    }
}
