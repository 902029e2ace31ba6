//! The routes of the control interface.

use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use axum::middleware;
use axum::response::Response as AxumResponse;
use axum::response::sse::{self, KeepAlive, Sse};
use futures_util::{Stream, stream};
use jiff::Timestamp;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::extract::{HttpError, InPath, Query, json, read_body, run_id};
use super::openapi::{Api, Method, Operation};
use super::schemas::{
    DurationText, EventFrame, EventNumber, LabelPair, MetricsText, PageSize, WatchCursor,
};
use super::server::MAX_CONNECTIONS;
use super::types::{
    ActivityFrame, ActivityResponse, AddRequest, DecisionResponse, DeliveryList, DeliveryResponse,
    HealthResponse, RoutingEntry, StatusChangeResponse, WatchList, WatchResponse,
};
use super::{Control, LiveConfig};
use crate::config::{
    MAX_DEADLINE, MIN_DEADLINE, check_label, check_labels, parse_duration, watch_name,
};
use crate::domain::{DeliveryId, Event, RunEvent, RunId, SinkName, Verdict, Watch};
use crate::metrics::Format;
use crate::scheduler::{AddedBy, Removed};
use crate::store::{
    Added, Decided, DeliveryFilter, DeliveryState, Fate, History, Store, WatchFilter, WatchRecord,
    WatchState,
};

/// Longest `?wait=`.
const MAX_WAIT: Duration = Duration::from_secs(600);

/// How long the parts of the daemon have to show progress.
const PROGRESS_LIMIT: Duration = Duration::from_secs(5);

/// How long one transaction of the store may take before a restart is the better way: many times as long as it waits
/// for another process.
const STUCK_LIMIT: Duration = Duration::from_secs(60);

/// Events read from the store at a time.
const EVENT_BATCH: u32 = 256;

/// How often a stream of events sends a sign of life.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

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
pub(super) fn router(control: Control, stop: CancellationToken) -> (Router, Vec<&'static str>) {
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
                .query::<PageSize>("limit", "How many at the most; 100 unless told")
                .query::<WatchCursor>("cursor", "The `next_cursor` of the page before")
                .json::<WatchList>(StatusCode::OK, "A page of watches"),
        )
        .route(
            Method::Get,
            "/v1/watches/{run_id}",
            show,
            Operation::new("getWatch", "Everything about a watch", "At once, or when its verdict is in.")
                .path::<RunId>("run_id", "The run")
                .query::<DurationText>("wait", "How long to wait for a verdict: up to 10m; not at all unless told")
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
            .path::<RunId>("run_id", "The run")
            .query::<bool>("force", "Give up what is not delivered yet; `false` unless given")
            .empty(StatusCode::NO_CONTENT, "It is gone, with its history")
            .problem(StatusCode::NOT_FOUND)
            .problem(StatusCode::CONFLICT),
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
                "Server-Sent Events, until the daemon stops: what the event streams tell that it follows, from now on. \
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
                .query::<PageSize>("limit", "How many at the most; 100 unless told")
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

async fn add(State(app): App, body: Bytes) -> Result<AxumResponse, HttpError> {
    // A list of the values in their order would be taken for an object.
    if body.trim_ascii_start().starts_with(b"[") {
        return Err(HttpError::bad(
            "the body cannot be used: it is no JSON object",
        ));
    }
    let request: AddRequest = AddRequest::read(&body)
        .map_err(|error| HttpError::bad(format!("the body cannot be used: {error}")))?;
    let live_config = app.control.live_config.borrow().clone();
    let origin = if request.again {
        AddedBy::RequestAgain
    } else {
        AddedBy::Request
    };
    let has_timeout = request.timeout.is_some();
    let watch = watch(request, &live_config, app.control.clock.now())?;
    match app.control.watches.add(watch.clone(), origin).await? {
        // All there is to know of it: reading it again would take as long as storing it.
        Added::New => Ok(json(
            StatusCode::CREATED,
            &app.summary(WatchRecord::new(watch)).await?,
        )),
        Added::AlreadyExists => {
            let known = app.control.store.watch(watch.run_id.clone()).await?;
            // It may have been removed again this very moment.
            let known = known.ok_or_else(|| HttpError::unknown(&watch.run_id))?;
            let not_applied = not_applied(&watch, has_timeout, &known.watch);
            Ok(json(
                StatusCode::OK,
                &WatchResponse {
                    not_applied,
                    ..app.summary(known).await?
                },
            ))
        }
    }
}

/// The options of a request that differ from the watch that there is already. Those that were not given do not count.
fn not_applied(request: &Watch, has_timeout: bool, known: &Watch) -> Vec<String> {
    let set =
        |sinks: &Option<Vec<SinkName>>| sinks.iter().flatten().cloned().collect::<BTreeSet<_>>();
    let time = |watch: &Watch| watch.deadline_at.as_millisecond() - watch.added_at.as_millisecond();
    let options = [
        ("name", request.name.is_some() && request.name != known.name),
        (
            "labels",
            !request.labels.is_empty() && request.labels != known.labels,
        ),
        (
            "sinks",
            request.sinks.is_some() && set(&request.sinks) != set(&known.sinks),
        ),
        ("timeout", has_timeout && time(request) != time(known)),
    ];
    options
        .into_iter()
        .filter(|(_, differs)| *differs)
        .map(|(name, _)| name.to_owned())
        .collect()
}

/// Checks the request of a caller.
pub(super) fn watch(
    request: AddRequest,
    live_config: &LiveConfig,
    now: Timestamp,
) -> Result<Watch, HttpError> {
    let run_id = run_id(&request.run_id)?;
    let name = request.name.map(|name| watch_name(&name)).transpose();
    let name = name.map_err(|(what, fix)| HttpError::bad(format!("name: {what}; {fix}")))?;
    for (key, value) in &request.labels {
        check_label(key, value)
            .map_err(|(what, fix)| HttpError::bad(format!("label {key:?}: {what}; {fix}")))?;
    }
    check_labels(&request.labels)
        .map_err(|(what, fix)| HttpError::bad(format!("labels: {what}; {fix}")))?;
    let known = |name: &SinkName| live_config.routes.0.iter().any(|route| route.sink == *name);
    let sink = |name: String| {
        let known_names = || {
            live_config
                .routes
                .0
                .iter()
                .map(|route| route.sink.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        };
        SinkName::new(&name).ok().filter(known).ok_or_else(|| {
            HttpError::bad(format!(
                "no sink is called {name:?}; known sinks: {}",
                known_names()
            ))
        })
    };
    if request.sinks.as_ref().is_some_and(Vec::is_empty) {
        return Err(HttpError::bad(
            "sinks: the list is empty, so that no sink would get a message; name one, or leave it out",
        ));
    }
    let sinks = request
        .sinks
        .map(|names| names.into_iter().map(sink).collect::<Result<Vec<_>, _>>())
        .transpose()?;
    let timeout = match request.timeout {
        None => live_config.deadline,
        Some(text) => parse_duration(&text)
            .ok()
            .filter(|timeout| (MIN_DEADLINE..=MAX_DEADLINE).contains(timeout))
            .ok_or_else(|| {
                HttpError::bad(format!(
                    "timeout: {text:?} is no duration from 1ms to 3650d, such as 2h"
                ))
            })?,
    };
    let deadline_at = now.checked_add(timeout).unwrap_or(Timestamp::MAX);
    Ok(Watch {
        run_id,
        name,
        labels: request.labels,
        sinks,
        added_at: now,
        deadline_at,
    })
}

async fn list(State(app): App, query: RawQuery) -> Result<AxumResponse, HttpError> {
    let query = Query::read(query, &["state", "verdict", "label", "limit", "cursor"])?;
    let labels = query.all("label").map(|pair| {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| HttpError::bad(format!("label={pair}: write label=KEY=VALUE")))?;
        check_label(key, value)
            .map_err(|(what, fix)| HttpError::bad(format!("label={pair}: {what}; {fix}")))?;
        Ok((key.to_owned(), value.to_owned()))
    });
    let filter = WatchFilter {
        state: query.one("state", WatchState::from_word, "active or finished")?,
        verdict: query.one(
            "verdict",
            Verdict::from_word,
            "the word of a verdict, such as failed or timed_out",
        )?,
        labels: labels.collect::<Result<_, HttpError>>()?,
        after: query.one("cursor", read_cursor, "the next_cursor of an answer")?,
    };
    let page = app.control.store.watches(filter, query.limit()?).await?;
    let last = page.items.last().filter(|_| page.more);
    let next_cursor = last.map(|last| {
        format!(
            "{}.{}",
            last.watch.added_at.as_millisecond(),
            last.watch.run_id
        )
    });
    let going = page.items.iter().filter(|record| record.verdict.is_none());
    let views = app
        .control
        .watches
        .view(Some(
            going.map(|record| record.watch.run_id.clone()).collect(),
        ))
        .await?;
    let mut views: std::collections::HashMap<_, _> = views
        .into_iter()
        .map(|view| (view.run_id.clone(), view))
        .collect();
    let watches = page
        .items
        .into_iter()
        .map(|record| {
            let view = views
                .remove(&record.watch.run_id)
                .filter(|_| record.verdict.is_none());
            WatchResponse::of(record, view)
        })
        .collect();
    Ok(json(
        StatusCode::OK,
        &WatchList {
            watches,
            next_cursor,
            notices: app.notices().await?,
        },
    ))
}

pub(super) fn read_cursor(text: &str) -> Option<(Timestamp, RunId)> {
    let (at, id) = text.split_once('.')?;
    Some((
        Timestamp::from_millisecond(at.parse().ok()?).ok()?,
        RunId::new(id).ok()?,
    ))
}

async fn show(State(app): App, id: InPath, query: RawQuery) -> Result<AxumResponse, HttpError> {
    let run_id = run_id(&id?.0)?;
    let query = Query::read(query, &["wait"])?;
    let read = |text: &str| parse_duration(text).ok().filter(|wait| *wait <= MAX_WAIT);
    let wait = query
        .one("wait", read, "a duration up to 10m, such as 30s")?
        .unwrap_or_default();
    let ends = tokio::time::Instant::now() + wait;
    let mut changed = app.control.store.history_changed();
    let mut place = None;
    loop {
        // Marked as seen before the store is read, so that no change in between is missed.
        changed.mark_unchanged();
        // Only this much of it is read each time that anything changes.
        let record = app.control.store.watch(run_id.clone()).await?;
        let record = record.ok_or_else(|| HttpError::unknown(&run_id))?;
        if record.verdict.is_some()
            || app.stop.is_cancelled()
            || tokio::time::Instant::now() >= ends
        {
            let history = app.control.store.history(run_id.clone()).await?;
            let history = history.ok_or_else(|| HttpError::unknown(&run_id))?;
            return Ok(json(StatusCode::OK, &app.document(history).await?));
        }
        if place.is_none() {
            place = Some(app.place()?);
        }
        // Every arm is cancel-safe: they wait for a change, a time and the end, and lose none.
        tokio::select! {
            Ok(()) = changed.changed() => {}
            () = tokio::time::sleep_until(ends) => {}
            () = app.stop.cancelled() => {}
        }
    }
}

async fn remove(State(app): App, id: InPath, query: RawQuery) -> Result<StatusCode, HttpError> {
    let run_id = run_id(&id?.0)?;
    let query = Query::read(query, &["force"])?;
    let force = query
        .one("force", |text| text.parse().ok(), "true or false")?
        .unwrap_or(false);
    match app.control.watches.remove(run_id.clone(), force).await? {
        Removed::Removed => Ok(StatusCode::NO_CONTENT),
        Removed::NotFound => Err(HttpError::unknown(run_id)),
    }
}

async fn deliveries(State(app): App, query: RawQuery) -> Result<AxumResponse, HttpError> {
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
    let feed = Feed {
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
    let feed = (
        app.control.watches.activities(),
        app.stop.clone(),
        app.place()?,
    );
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

async fn metrics(State(app): App, headers: HeaderMap) -> Result<AxumResponse, HttpError> {
    let sinks = app
        .control
        .live_config
        .borrow()
        .routes
        .0
        .iter()
        .map(|route| route.sink.clone())
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

/// The events of the store, as they come.
struct Feed {
    store: Store,
    changed: tokio::sync::watch::Receiver<u64>,
    stop: CancellationToken,
    after: i64,
    ready: VecDeque<(i64, Event)>,
    _place: OwnedSemaphorePermit,
}

impl Feed {
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

    /// Has one delivery tried again or given up.
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
        }
    }

    /// Has the deliveries of a sink tried again or given up.
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
        let configured = self
            .control
            .live_config
            .borrow()
            .routes
            .0
            .iter()
            .any(|route| route.sink == sink);
        // A name without a sink and without messages is a slip.
        if deliveries == 0 && !configured {
            Err(HttpError::unknown(sink))
        } else {
            Ok(DecisionResponse { deliveries })
        }
    }

    /// What the state of a watch is.
    async fn summary(&self, record: WatchRecord) -> Result<WatchResponse, HttpError> {
        let only = Some(vec![record.watch.run_id.clone()]);
        let view = self
            .control
            .watches
            .view(only)
            .await?
            .pop()
            .filter(|_| record.verdict.is_none());
        Ok(WatchResponse::of(record, view))
    }

    /// Everything about a watch.
    async fn document(&self, history: History) -> Result<WatchResponse, HttpError> {
        let History {
            record,
            changes,
            deliveries,
            verdict_event,
        } = history;
        let watch = record.watch.clone();
        let mut document = self.summary(record).await?;
        let change = |change: crate::store::StatusChange| StatusChangeResponse {
            at: change.at,
            status: change.status.as_str().to_owned(),
        };
        document.history = Some(changes.into_iter().map(change).collect());
        let routing = self.control.live_config.borrow().routes.explain(&watch);
        let routing = routing.into_iter().map(|explained| RoutingEntry {
            sink: explained.sink,
            events: explained.events,
            why_not: explained.why_not,
        });
        let mut routing: Vec<_> = routing.collect();
        for (waiting, _) in &deliveries {
            let open = matches!(
                waiting.state,
                DeliveryState::Pending | DeliveryState::Sending
            );
            if open && !routing.iter().any(|known| known.sink == waiting.sink) {
                let why_not = Some("messages wait for it, but no sink of that name is configured any more; `runwatch deliveries drop` gives them up".to_owned());
                routing.push(RoutingEntry {
                    sink: waiting.sink.clone(),
                    events: Vec::new(),
                    why_not,
                });
            }
        }
        document.routing = Some(routing);
        let deliveries = deliveries
            .into_iter()
            .map(|(summary, attempts)| DeliveryResponse::of(summary, Some(attempts)));
        document.deliveries = Some(deliveries.collect());
        document.data = verdict_event.as_ref().and_then(Event::run).map(raw);
        Ok(document)
    }

    /// What an operator should know.
    async fn notices(&self) -> Result<Vec<String>, HttpError> {
        let mut notices = Vec::new();
        if let Some(rejected) = &self.control.live_config.borrow().rejected {
            notices.push(format!(
                "the configuration on disk is not in force: {rejected}"
            ));
        }
        let breaker = self.control.watches.breaker();
        notices.extend(breaker.borrow().outage_text());
        let routes = Arc::clone(&self.control.live_config.borrow().routes);
        for (sink, open) in self.control.store.sinks_with_open_deliveries().await? {
            if !routes.0.iter().any(|route| route.sink == sink) {
                let waiting = if open == 1 {
                    "1 message waits".to_owned()
                } else {
                    format!("{open} messages wait")
                };
                notices.push(format!(
                    "{waiting} for {sink}, which is no longer configured: configure it again, or give up what waits with \
                     `runwatch deliveries drop --sink {sink}`"
                ));
            }
        }
        Ok(notices)
    }
}

fn raw(data: &RunEvent) -> Box<serde_json::value::RawValue> {
    serde_json::value::to_raw_value(data).expect("an event has only text keys")
}
