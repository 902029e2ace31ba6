//! Routes about watches.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response as AxumResponse;
use jiff::Timestamp;

use crate::config::{
    MAX_DEADLINE, MIN_DEADLINE, check_label, check_labels, parse_duration, watch_name,
};
use crate::control::extract::{HttpError, InPath, Query, json, run_id};
use crate::control::openapi::{HttpOperation, Method, RouteTable, Tag};
use crate::control::schemas::{
    DurationText, LabelPair, PageSize, TraceParentText, TraceStateText, WatchCursor,
};
use crate::control::types::{
    AddRequest, DeliveryResponse, RoutingEntry, StatusChangeResponse, WatchList, WatchResponse,
};
use crate::control::{LiveConfig, NOT_IN_FORCE};
use crate::domain::{
    Event, ProviderName, RunEvent, RunRef, SinkName, TRACE_PARENT, TRACE_STATE, TraceContext,
    UsualDuration, Verdict, Watch,
};
use crate::scheduler::{Removed, outage_texts};
use crate::store::{
    Added, DeliveryState, GroupOfRuns, History, WatchFilter, WatchOrder, WatchRecord, WatchState,
};

use super::{App, ControlState, SharedState};

/// Longest `?wait=`.
const MAX_WAIT: Duration = Duration::from_secs(600);

/// Adds the routes about watches to the router.
pub(super) fn routes<R: RouteTable<SharedState>>(table: R) -> R {
    table
        .route(
            Method::Post,
            "/v1/watches",
            add,
            || HttpOperation::new(Tag::Watches, "addWatch", "Watch a run", "On disk before this answers. A run that is watched already stays so: `not_applied` names the options that \
                 differ. A finished watch is followed by a new one where `again` is true. The body may also be what the \
                 API answers when it creates a run. Webhooks about the watch have the trace context of the request that \
                 added it.")
                .header::<TraceParentText>(TRACE_PARENT, "The trace that the watch belongs to (W3C Trace Context); one that is invalid, or given more than once, is ignored")
                .header::<TraceStateText>(TRACE_STATE, "What tracing systems add to it; ignored without a valid `traceparent`")
                .body::<AddRequest>()
                .json::<WatchResponse>(StatusCode::CREATED, "It is watched from now on")
                .json::<WatchResponse>(StatusCode::OK, "It was watched already, and stays as it is; see `not_applied`")
                // Somebody may remove it at the same moment; or the provider can have no such run.
                .problem(StatusCode::NOT_FOUND),
        )
        .route(
            Method::Get,
            "/v1/watches",
            list,
            || HttpOperation::new(Tag::Watches, "listWatches", "List watches", "The oldest first, unless `order` says otherwise.")
                .query::<WatchState>("state", "Only those without a verdict, or only those with one")
                .query::<Verdict>("verdict", "Only those with this verdict")
                .query::<Vec<LabelPair>>("label", "Only those that carry this label; of several, all")
                .query::<WatchOrder>("order", "By time of adding, `oldest` (the default) or `newest` first; or those with a verdict, `ended` last first")
                .query::<PageSize>("limit", "How many at the most; default 100")
                .query::<WatchCursor>("cursor", "The `next_cursor` of the page before")
                .json::<WatchList>(StatusCode::OK, "A page of watches"),
        )
        .route(
            Method::Get,
            "/v1/watches/{run_id}",
            show,
            || HttpOperation::new(Tag::Watches, "getWatch", "Everything about a watch", "At once, or when its verdict is in.")
                .path::<RunRef>("run_id", "The run")
                .query::<DurationText>("wait", "How long to wait for a verdict: up to 10m; default: not at all")
                .json::<WatchResponse>(StatusCode::OK, "The watch")
                .problem(StatusCode::NOT_FOUND),
        )
        .route(
            Method::Delete,
            "/v1/watches/{run_id}",
            remove,
            || HttpOperation::new(Tag::Watches, "removeWatch",
                "Stop watching",
                "Refused while its verdict is not delivered everywhere, unless `force` gives that up.",
            )
            .path::<RunRef>("run_id", "The run")
            .query::<bool>("force", "Give up what is not delivered yet; `false` unless given")
            .empty(StatusCode::NO_CONTENT, "It is gone, with its history")
            .problem(StatusCode::NOT_FOUND)
            .problem(StatusCode::CONFLICT),
        )
}

async fn add(State(app): App, headers: HeaderMap, body: Bytes) -> Result<AxumResponse, HttpError> {
    // A list of the values in their order would be taken for an object.
    if body.trim_ascii_start().starts_with(b"[") {
        return Err(HttpError::bad(
            "the body cannot be used: it is no JSON object",
        ));
    }
    let request: AddRequest = AddRequest::read(&body)
        .map_err(|error| HttpError::bad(format!("the body cannot be used: {error}")))?;
    let live_config = app.control.live_config.borrow().clone();
    let again = request.again;
    let has_timeout = request.timeout.is_some();
    let watch = Watch {
        trace: trace(&headers),
        ..watch(request, &live_config, app.control.clock.now())?
    };
    match app.control.watches.add(watch.clone(), again).await? {
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

/// The trace that the headers of a request name. Of several parents none counts (W3C Trace Context, `test/test.py`,
/// `test_traceparent_duplicated`); several states are one (section "tracestate Header Field Values").
fn trace(headers: &HeaderMap) -> Option<TraceContext> {
    let mut parents = headers.get_all(TRACE_PARENT).iter();
    let parent = parents.next()?.to_str().ok();
    let parent = parent.filter(|_| parents.next().is_none())?;
    let states = headers.get_all(TRACE_STATE).iter();
    let states: Result<Vec<_>, _> = states.map(HeaderValue::to_str).collect();
    TraceContext::read(parent, &states.unwrap_or_default().join(","))
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
pub(in crate::control) fn watch(
    request: AddRequest,
    live_config: &LiveConfig,
    now: Timestamp,
) -> Result<Watch, HttpError> {
    let run_id = match &request.provider {
        Some(provider) => ProviderName::new(provider)
            .map_err(|error| error.to_string())
            .and_then(|provider| live_config.providers.run_of(&provider, &request.run_id))
            .map_err(|why| HttpError::new(StatusCode::NOT_FOUND, &why))?,
        None => run_id(&request.run_id, &live_config.providers)?,
    };
    let name = request.name.map(|name| watch_name(&name)).transpose();
    let name = name.map_err(|(what, fix)| HttpError::bad(format!("name: {what}; {fix}")))?;
    for (key, value) in &request.labels {
        check_label(key, value)
            .map_err(|(what, fix)| HttpError::bad(format!("label {key:?}: {what}; {fix}")))?;
    }
    check_labels(&request.labels)
        .map_err(|(what, fix)| HttpError::bad(format!("labels: {what}; {fix}")))?;
    let known = |name: &SinkName| live_config.routes.contains(name);
    let sink = |name: String| {
        let known_names = || {
            live_config
                .routes
                .names()
                .map(SinkName::as_str)
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
        trace: None,
    })
}

async fn list(State(app): App, query: RawQuery) -> Result<AxumResponse, HttpError> {
    let known = ["state", "verdict", "label", "order", "limit", "cursor"];
    let query = Query::read(query, &known)?;
    let labels = query.all("label").map(|pair| {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| HttpError::bad(format!("label={pair}: write label=KEY=VALUE")))?;
        check_label(key, value)
            .map_err(|(what, fix)| HttpError::bad(format!("label={pair}: {what}; {fix}")))?;
        Ok((key.to_owned(), value.to_owned()))
    });
    let order = query
        .one("order", WatchOrder::from_word, "oldest, newest or ended")?
        .unwrap_or_default();
    let filter = WatchFilter {
        state: query.one("state", WatchState::from_word, "active or finished")?,
        verdict: query.one(
            "verdict",
            Verdict::from_word,
            "the word of a verdict, such as failed or timed_out",
        )?,
        labels: labels.collect::<Result<_, HttpError>>()?,
        order,
        after: query.one("cursor", read_cursor, "the next_cursor of an answer")?,
    };
    let list = app.list(filter, query.limit()?).await?;
    Ok(json(StatusCode::OK, &list))
}

pub(in crate::control) fn read_cursor(text: &str) -> Option<(Timestamp, RunRef)> {
    let (at, id) = text.split_once('.')?;
    Some((
        Timestamp::from_millisecond(at.parse().ok()?).ok()?,
        RunRef::new(id).ok()?,
    ))
}

async fn show(State(app): App, id: InPath, query: RawQuery) -> Result<AxumResponse, HttpError> {
    let run_id = run_id(&id?.0, &app.control.live_config.borrow().providers)?;
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
    let run_id = run_id(&id?.0, &app.control.live_config.borrow().providers)?;
    let query = Query::read(query, &["force"])?;
    let force = query
        .one("force", |text| text.parse().ok(), "true or false")?
        .unwrap_or(false);
    match app.control.watches.remove(run_id.clone(), force).await? {
        Removed::Removed => Ok(StatusCode::NO_CONTENT),
        Removed::NotFound => Err(HttpError::unknown(run_id)),
    }
}

impl ControlState {
    /// A page of watches.
    pub(super) async fn list(
        &self,
        filter: WatchFilter,
        limit: u32,
    ) -> Result<WatchList, HttpError> {
        let order = filter.order;
        let page = self.control.store.watches(filter, limit).await?;
        let last = page.items.last().filter(|_| page.more);
        let next_cursor = last.map(|last| {
            format!(
                "{}.{}",
                order.time_of(last).as_millisecond(),
                last.watch.run_id
            )
        });
        let going = page.items.iter().filter(|record| record.verdict.is_none());
        let views = self
            .control
            .watches
            .view(Some(
                going.map(|record| record.watch.run_id.clone()).collect(),
            ))
            .await?;
        let mut views: HashMap<_, _> = views
            .into_iter()
            .map(|view| (view.run_id.clone(), view))
            .collect();
        let mut watches: Vec<_> = page
            .items
            .into_iter()
            .map(|record| {
                let view = views
                    .remove(&record.watch.run_id)
                    .filter(|_| record.verdict.is_none());
                WatchResponse::of(record, view)
            })
            .collect();
        self.compare(&mut watches).await?;
        Ok(WatchList {
            watches,
            next_cursor,
            notices: self.notices().await?,
        })
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
        let mut watch = WatchResponse::of(record, view);
        let past = self.compare(std::slice::from_mut(&mut watch)).await?;
        watch.past_durations_ms = past.into_values().next();
        Ok(watch)
    }

    /// Adds to watches how long runs of their groups usually take. Returns the durations of each group.
    async fn compare(
        &self,
        watches: &mut [WatchResponse],
    ) -> Result<HashMap<GroupOfRuns, Vec<u64>>, HttpError> {
        let group = |watch: &WatchResponse| Some((watch.provider.clone(), watch.group.clone()?));
        let groups: HashSet<_> = watches.iter().filter_map(group).collect();
        let past = self.control.store.durations(groups.into_iter().collect());
        let past: HashMap<_, _> = past.await?.into_iter().collect();
        let usual: HashMap<_, _> = past
            .iter()
            .map(|(group, past)| (group, UsualDuration::of(past.iter().copied())))
            .collect();
        for watch in watches {
            watch.usual_is(group(watch).and_then(|group| *usual.get(&group)?));
        }
        Ok(past)
    }

    /// Everything about a watch.
    pub(super) async fn document(&self, history: History) -> Result<WatchResponse, HttpError> {
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
            run_state: Some(change.status.state().as_str().to_owned()),
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
        let scheduled_attempts = Arc::clone(&self.control.live_config.borrow().scheduled_attempts);
        let deliveries = deliveries.into_iter().map(|(summary, attempts)| {
            let scheduled = scheduled_attempts.get(&summary.sink).copied();
            DeliveryResponse::of(summary, Some(attempts), scheduled)
        });
        document.deliveries = Some(deliveries.collect());
        document.data = verdict_event.as_ref().and_then(Event::run).map(raw);
        Ok(document)
    }

    /// What an operator should know.
    async fn notices(&self) -> Result<Vec<String>, HttpError> {
        let mut notices = Vec::new();
        if let Some(rejected) = &self.control.live_config.borrow().rejected {
            notices.push(format!("{NOT_IN_FORCE}: {rejected}"));
        }
        notices.extend(outage_texts(&self.control.watches.breakers()));
        if let Some(lease) = &self.control.lease {
            let settings = self.control.live_config.borrow().fingerprint;
            notices.extend(lease.view.borrow().notices(settings));
        }
        let routes = Arc::clone(&self.control.live_config.borrow().routes);
        for (sink, open) in self.control.store.sinks_with_open_deliveries().await? {
            if !routes.contains(&sink) {
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
