//! Routes about deliveries.

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response as AxumResponse;

use crate::control::extract::{HttpError, InPath, Query, json};
use crate::control::types::{DecisionResponse, DeliveryList, DeliveryResponse};
use crate::domain::{DeliveryId, SinkName};
use crate::store::{Decided, DeliveryFilter, DeliveryState, Fate};

use super::{App, Shared};

pub(super) async fn deliveries(
    State(app): App,
    query: RawQuery,
) -> Result<AxumResponse, HttpError> {
    let query = Query::read(query, &["state", "sink", "limit", "cursor"])?;
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
        after: query.one(
            "cursor",
            |text| DeliveryId::new(text).ok(),
            "the next_cursor of an answer",
        )?,
    };
    let page = app.control.store.deliveries(filter, query.limit()?).await?;
    let next_cursor = page
        .items
        .last()
        .filter(|_| page.more)
        .map(|last| last.id.to_string());
    let deliveries = page
        .items
        .into_iter()
        .map(|summary| DeliveryResponse::of(summary, None))
        .collect();
    Ok(json(
        StatusCode::OK,
        &DeliveryList {
            deliveries,
            next_cursor,
        },
    ))
}

pub(super) async fn retry(State(app): App, id: InPath) -> Result<StatusCode, HttpError> {
    app.decide(id, Fate::Retry)
        .await
        .map(|()| StatusCode::ACCEPTED)
}

pub(super) async fn give_up(State(app): App, id: InPath) -> Result<StatusCode, HttpError> {
    app.decide(id, Fate::Drop)
        .await
        .map(|()| StatusCode::NO_CONTENT)
}

pub(super) async fn retry_all(State(app): App, query: RawQuery) -> Result<AxumResponse, HttpError> {
    Ok(json(
        StatusCode::ACCEPTED,
        &app.decide_all(query, Fate::Retry).await?,
    ))
}

pub(super) async fn give_up_all(
    State(app): App,
    query: RawQuery,
) -> Result<AxumResponse, HttpError> {
    Ok(json(
        StatusCode::OK,
        &app.decide_all(query, Fate::Drop).await?,
    ))
}

impl Shared {
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
