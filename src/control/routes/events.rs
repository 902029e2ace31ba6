//! Streams of events and of activity.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::sse::{self, KeepAlive, Sse};
use futures_util::{Stream, stream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use crate::control::extract::{HttpError, Query};
use crate::control::openapi::{HttpOperation, Method, RouteTable, Tag};
use crate::control::schemas::{EventFrame, EventNumber};
use crate::control::types::{ActivityFrame, ActivityResponse};
use crate::domain::Event;
use crate::store::Store;

use super::{App, SharedState};

/// Events read from the store at a time.
const EVENT_BATCH: u32 = 256;

/// How often a stream of events sends a sign of life.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Adds the routes about streams to the router.
pub(super) fn routes<R: RouteTable<SharedState>>(table: R) -> R {
    table
        .route(
            Method::Get,
            "/v1/events",
            events,
            || HttpOperation::new(Tag::Events, "followEvents",
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
            || HttpOperation::new(Tag::Events, "followActivity",
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
}

async fn events(
    State(app): App,
    headers: HeaderMap,
    query: RawQuery,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, HttpError> {
    Query::read(query, &[])?;
    let newest = app.control.store.newest_event().await?;
    let mut given = headers.get_all("last-event-id").iter();
    let after = match (given.next(), given.next()) {
        (None, _) => newest,
        // A number that was never given out is of another store, which had this place before: nothing of
        // what is in this one has been seen.
        (Some(id), None) => match event_number(id)? {
            seen if seen > newest => 0,
            seen => seen,
        },
        (Some(_), Some(_)) => return Err(HttpError::bad("Last-Event-ID is given more than once")),
    };
    let place = app.place()?;
    let feed = EventFeed {
        changed: app.control.store.history_changed(),
        store: app.control.store.clone(),
        stop: app.stop.clone(),
        after,
        ready: VecDeque::new(),
        _place: place,
    };
    let stream = stream::unfold(feed, |mut feed| async move {
        let (seq, event) = feed.next().await?;
        let event = sse::Event::default()
            .id(seq.to_string())
            .event(event.event_type.as_str())
            .data(event.to_json());
        Some((Ok(event), feed))
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

fn event_number(id: &HeaderValue) -> Result<i64, HttpError> {
    let digits = id
        .to_str()
        .ok()
        .filter(|id| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()));
    let number = digits.and_then(|id| id.parse().ok());
    number
        .ok_or_else(|| HttpError::bad("Last-Event-ID is not the id of an event, which is a number"))
}

/// What the runs are doing whose event streams are followed, from now on. It is not kept: who reads too
/// slowly learns how many events it missed.
async fn activity(
    State(app): App,
    query: RawQuery,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, HttpError> {
    Query::read(query, &[])?;
    let activities = app.control.watches.activities().ok_or_else(|| {
        let lease = app.control.lease.as_ref();
        let why = lease.and_then(|lease| lease.view.borrow().sentence());
        HttpError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!(
                "only the leader follows event streams; {}",
                why.unwrap_or_else(|| "this daemon begins to lead".to_owned())
            ),
        )
    })?;
    let feed = (activities, app.stop.clone(), app.place()?);
    let stream = stream::unfold(feed, |(mut activities, stop, place)| async move {
        // Both arms are cancel-safe.
        let next = tokio::select! {
            next = activities.recv() => next,
            () = stop.cancelled() => return None,
        };
        let event = match next {
            Ok(activities) => {
                let document = serde_json::to_string(&ActivityResponse::of(&activities))
                    .expect("the documents have text keys");
                sse::Event::default().event("activity").data(document)
            }
            Err(RecvError::Lagged(missed)) => sse::Event::default()
                .event("missed")
                .data(missed.to_string()),
            Err(RecvError::Closed) => return None,
        };
        Some((Ok(event), (activities, stop, place)))
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// The events of the store, as they come.
struct EventFeed {
    store: Store,
    changed: tokio::sync::watch::Receiver<u64>,
    stop: CancellationToken,
    after: i64,
    ready: VecDeque<(i64, Event)>,
    _place: OwnedSemaphorePermit,
}

impl EventFeed {
    /// The next event; `None` when the server stops or the store cannot be read.
    async fn next(&mut self) -> Option<(i64, Event)> {
        loop {
            if let Some((seq, event)) = self.ready.pop_front() {
                self.after = seq;
                return Some((seq, event));
            }
            self.changed.mark_unchanged();
            self.ready = self
                .store
                .events_after(self.after, EVENT_BATCH)
                .await
                .ok()?
                .into();
            if self.ready.is_empty() {
                // Both arms are cancel-safe.
                tokio::select! {
                    changed = self.changed.changed() => changed.ok()?,
                    () = self.stop.cancelled() => return None,
                }
            }
        }
    }
}
