//! The JSON of the control interface, the same for server and client.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use schemars::generate::SchemaGenerator;
use schemars::{JsonSchema, Schema, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::schemas::{
    DurationText, LabelMap, RunIdText, TraceParentText, TraceStateText, WatchName,
};
use crate::config::format_duration;
use crate::discovery::{DiscoveryState, DiscoveryView};
use crate::domain::{
    DeliveryId, EventType, Expectation, FoundBy, Labels, ProviderName, RunEvent, RunRef, RunState,
    SinkName, TraceContext, UsualDuration, Verdict, WatchOrigin,
};
use crate::lease::LeaseView;
use crate::metrics::PAUSE_REASONS;
use crate::scheduler::{BreakerView, Outage, RunActivity, Usage, WatchView};
use crate::store::{AttemptRecord, DeliveryState, DeliverySummary, WatchRecord, WatchState};

/// `POST /v1/watches`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AddRequest {
    /// The run: its ID, `PROVIDER:ID`, or the URL of its page.
    #[schemars(with = "RunRef")]
    pub run_id: String,
    /// The provider, where `run_id` is only the ID there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<ProviderName>")]
    pub provider: Option<String>,
    /// A name for people, 1 to 200 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<WatchName>")]
    pub name: Option<String>,
    /// Labels.
    #[serde(
        default,
        skip_serializing_if = "Labels::is_empty",
        deserialize_with = "null_is_absent"
    )]
    #[schemars(with = "Option<LabelMap>")]
    pub labels: Labels,
    /// Only these sinks get messages, at least one; absent means all whose filters match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<SinkName>>", length(min = 1))]
    pub sinks: Option<Vec<String>>,
    /// How long to watch at most, such as `2h`; absent means `watch.deadline`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<DurationText>")]
    pub timeout: Option<String>,
    /// Whether a run is watched anew whose watch is finished; that one stays on record. Default: false.
    #[serde(
        default,
        skip_serializing_if = "std::ops::Not::not",
        deserialize_with = "null_is_absent"
    )]
    #[schemars(with = "Option<bool>")]
    pub again: bool,
}

/// Reads `null` as an absent value, as for all options.
fn null_is_absent<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl AddRequest {
    /// Reads a body: a request, or what the API answers when it creates a run, also inside of `data`. Of such an answer,
    /// which has a `status`, the fields count that a request has.
    ///
    /// # Errors
    /// When it is neither.
    pub(super) fn read(body: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(body).or_else(|error| Self::of_created_run(body).ok_or(error))
    }

    fn of_created_run(body: &[u8]) -> Option<Self> {
        let mut run: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(body).ok()?;
        let named =
            |run: &serde_json::Map<_, _>| run.contains_key("run_id") || run.contains_key("id");
        if !named(&run)
            && let Some(serde_json::Value::Object(data)) = run.remove("data")
        {
            run = data;
        }
        run.get("status")?.as_str()?;
        // A run made in a thread is answered with other IDs beside `run_id`.
        let run_id = run.remove("run_id").or_else(|| run.remove("id"))?;
        run.retain(|name, _| {
            matches!(
                name.as_str(),
                "provider" | "name" | "labels" | "sinks" | "timeout" | "again"
            )
        });
        run.insert("run_id".to_owned(), run_id);
        serde_json::from_value(serde_json::Value::Object(run)).ok()
    }
}

/// A watch. The parts from `past_durations_ms` on are present only if one watch was requested.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct WatchResponse {
    /// The provider of the run.
    #[serde(default = "ProviderName::crewship")]
    pub provider: ProviderName,
    /// The ID of the run there.
    #[schemars(with = "RunIdText")]
    pub run_id: String,
    /// The name for people.
    #[schemars(with = "Option<WatchName>")]
    pub name: Option<String>,
    /// Labels.
    #[schemars(with = "LabelMap")]
    pub labels: Labels,
    /// The only sinks that get its events, if it names some.
    pub sinks: Option<Vec<SinkName>>,
    /// `active` or `finished`.
    #[schemars(with = "WatchState")]
    pub state: String,
    /// The status last seen, verbatim.
    pub status: Option<String>,
    /// What the status stands for.
    #[serde(default)]
    #[schemars(with = "Option<RunState>")]
    pub run_state: Option<String>,
    /// The verdict's word.
    #[schemars(with = "Option<Verdict>")]
    pub verdict: Option<String>,
    /// What caused the poll that found the verdict: `poll` or `stream`.
    #[schemars(with = "Option<FoundBy>")]
    pub found_by: Option<String>,
    /// Where it comes from: `request`, `configuration` or `discovery`; `null` for watches of earlier versions.
    #[serde(default)]
    #[schemars(with = "Option<WatchOrigin>")]
    pub origin: Option<String>,
    /// The title of the discovery that it comes from.
    #[serde(default)]
    pub discovery: Option<String>,
    /// What the run belongs to: a workflow, a deployment.
    #[serde(default)]
    pub group: Option<String>,
    /// When the run started, by the provider.
    #[serde(default)]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub started_at: Option<Timestamp>,
    /// How long the runs of its group that succeeded usually take, in milliseconds: the median of the last 50; `null`
    /// with fewer than 3.
    #[serde(default)]
    pub usual_ms: Option<u64>,
    /// As `usual_ms`, the 10th percentile.
    #[serde(default)]
    pub usual_p10_ms: Option<u64>,
    /// As `usual_ms`, the 90th percentile.
    #[serde(default)]
    pub usual_p90_ms: Option<u64>,
    /// The `traceparent` of the request that added it, which webhooks have too.
    #[serde(default)]
    #[schemars(with = "Option<TraceParentText>")]
    pub traceparent: Option<String>,
    /// The `tracestate` of that request.
    #[serde(default)]
    #[schemars(with = "Option<TraceStateText>")]
    pub tracestate: Option<String>,
    /// When it was added.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub added_at: Timestamp,
    /// When it ends at the latest.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub deadline_at: Timestamp,
    /// When the verdict was given.
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub finished_at: Option<Timestamp>,
    /// How many polls were made.
    pub polls: u64,
    /// Since when every answer was 404.
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub missing_since: Option<Timestamp>,
    /// The last poll that failed.
    pub last_error: Option<PollErrorResponse>,
    /// Whether a poll is under way.
    pub polling: bool,
    /// When it is polled next, unless a rate limit or an outage of the API delays that.
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub next_poll_at: Option<Timestamp>,
    /// In the answer to a request for a run that is watched already: the options of it that differ from the watch and
    /// do not apply, by their names in the request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_applied: Vec<String>,
    /// How long the runs of its group took that succeeded last, in milliseconds, the oldest first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub past_durations_ms: Option<Vec<u64>>,
    /// Every change of its status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<Vec<StatusChangeResponse>>,
    /// Which of its events each sink gets, by the current settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing: Option<Vec<RoutingEntry>>,
    /// Its deliveries with every attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deliveries: Option<Vec<DeliveryResponse>>,
    /// The data of the event with its verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<RunEvent>")]
    pub data: Option<Box<RawValue>>,
}

/// A poll that failed.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct PollErrorResponse {
    /// When.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub at: Timestamp,
    /// What was wrong.
    pub message: String,
}

/// A change of a run's status.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct StatusChangeResponse {
    /// When it was observed.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub at: Timestamp,
    /// The status since then.
    pub status: String,
    /// What it stands for.
    #[serde(default)]
    #[schemars(with = "Option<RunState>")]
    pub run_state: Option<String>,
}

/// Which events of a watch a sink gets.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RoutingEntry {
    /// The sink.
    pub sink: SinkName,
    /// The verdict events and others that it gets.
    pub events: Vec<EventType>,
    /// Why it gets none, or not all verdicts.
    pub why_not: Option<String>,
}

/// One event of `GET /v1/activity`: what a run is doing according to its event stream.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ActivityResponse {
    /// The provider of the run.
    #[serde(default = "ProviderName::crewship")]
    pub provider: ProviderName,
    /// The ID of the run there.
    #[schemars(with = "RunIdText")]
    pub run_id: String,
    /// When it came in.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub at: Timestamp,
    /// The type of the event, such as `tool.called`; `stream.unavailable` is our own.
    pub activity: String,
    /// Its data in a few words; empty if there are none.
    #[serde(default)]
    pub summary: String,
    /// Whether it reports a failure.
    #[serde(default)]
    pub failure: bool,
    /// Its data, as the API sent them; `null` if there are none, or too many.
    #[schemars(with = "Option<serde_json::Value>")]
    pub data: Option<Box<RawValue>>,
}

/// `GET /v1/watches`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct WatchList {
    /// The watches.
    pub watches: Vec<WatchResponse>,
    /// Where the list goes on; `null` at its end.
    pub next_cursor: Option<String>,
    /// What an operator should know: trouble with the API, a configuration that is not in force.
    pub notices: Vec<String>,
}

/// `GET /v1/discoveries`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DiscoveryList {
    /// The discoveries, in the order of the configuration.
    pub discoveries: Vec<DiscoveryResponse>,
}

/// A discovery: a list that is looked at for runs to watch.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DiscoveryResponse {
    /// What it is called: the name of its watches, if that is the same for all, or the provider with its parameters.
    pub title: String,
    /// The provider.
    pub provider: ProviderName,
    /// The parameters of its list.
    #[serde(rename = "match")]
    pub parameters: BTreeMap<String, String>,
    /// The time from the beginning of a round to that of the next.
    #[schemars(with = "DurationText")]
    pub every: String,
    /// How it goes: `starting`, `following`, `behind` where the newest round reached a limit, or `failing`.
    #[schemars(with = "DiscoveryState")]
    pub state: String,
    /// When it began: what had ended before is not reported.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub began_at: Timestamp,
    /// When the newest complete round began.
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub last_round_at: Option<Timestamp>,
    /// When the next round begins; `null` during the first one.
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub next_round_at: Option<Timestamp>,
    /// How many runs it found since it began.
    pub found: u64,
    /// How many watches it added since it began.
    pub watched: u64,
    /// How many pages the newest round read.
    pub pages: u32,
    /// The last failure of a round since the daemon started.
    pub last_error: Option<PollErrorResponse>,
}

impl DiscoveryResponse {
    pub(super) fn of(view: DiscoveryView) -> Self {
        Self {
            title: view.title,
            provider: view.provider,
            parameters: view.parameters,
            every: format_duration(view.every),
            state: view.state.as_str().to_owned(),
            began_at: in_milliseconds(view.began_at),
            last_round_at: view.last_round_at.map(in_milliseconds),
            next_round_at: view.next_round_at.map(in_milliseconds),
            found: view.found,
            watched: view.watched,
            pages: view.pages,
            last_error: view.last_error.map(|failure| PollErrorResponse {
                at: in_milliseconds(failure.at),
                message: failure.message,
            }),
        }
    }
}

/// `GET /v1/polling`: how polls go, provider by provider.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct PollingList {
    /// The providers in use.
    pub providers: Vec<PollingResponse>,
}

impl PollingList {
    /// The provider that is shown where there is room for one: the first one with an outage, or else the one with the
    /// most watches.
    pub fn shown(&self) -> Option<&PollingResponse> {
        let out = |polling: &&PollingResponse| polling.outage.is_some();
        let most = self.providers.iter().max_by_key(|polling| polling.watches);
        self.providers.iter().find(out).or(most)
    }

    /// That of a provider.
    pub fn of(&self, provider: &ProviderName) -> Option<&PollingResponse> {
        self.providers
            .iter()
            .find(|polling| polling.provider == provider.as_str())
    }
}

/// `GET /v1/lease`: which of the daemons that share a store polls and delivers.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct LeaseResponse {
    /// Whether several daemons share the store.
    pub shared: bool,
    /// Whether this daemon polls and delivers.
    pub leads: bool,
    /// The leader last seen; `null` where there is none, or the store is this daemon's own.
    pub leader: Option<LeaderResponse>,
    /// Why it is not known who leads, as where the store is out of reach; `null` otherwise.
    pub problem: Option<String>,
}

/// The daemon that leads.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct LeaderResponse {
    /// Names its process; random.
    pub id: String,
    /// The name of its machine.
    pub name: String,
    /// The version of its program.
    pub version: String,
    /// The number of its term; each is greater than those before.
    pub term: i64,
}

impl LeaseResponse {
    /// Of a daemon with a store of its own.
    pub(super) fn own() -> Self {
        Self {
            shared: false,
            leads: true,
            leader: None,
            problem: None,
        }
    }

    /// Of a daemon with a shared store at `now`, as [`crate::clock::Clock::passed`] counts.
    pub(super) fn shared(view: &LeaseView, leads: bool, now: Duration) -> Self {
        let leader = view.leader.as_ref().map(|leader| LeaderResponse {
            id: leader.id.clone(),
            name: leader.name.clone(),
            version: leader.version.clone(),
            term: leader.term,
        });
        Self {
            shared: true,
            leads,
            leader,
            problem: view.problem_at(now),
        }
    }
}

/// How polls of one provider go, for all its watches together.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct PollingResponse {
    /// The provider.
    pub provider: String,
    /// The active watches, which share the budget.
    pub watches: u64,
    /// Requests to the API in the last 60 seconds, to the second.
    pub requests_last_minute: u64,
    /// The most requests in any 60 seconds: `api.requests_per_minute`.
    pub requests_per_minute: u32,
    /// Why requests are held back or probe one at a time, in a word of the metrics; `null` while they flow.
    #[schemars(with = "Option<OutageWord>")]
    pub outage: Option<String>,
    /// The last failure in such a time.
    pub outage_message: Option<String>,
    /// When the next request may go out in such a time.
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub next_request_at: Option<Timestamp>,
    /// Whether this process received any answer of the API, including rejections and errors.
    pub reached: bool,
}

/// The reason of an outage.
pub(super) struct OutageWord;

impl JsonSchema for OutageWord {
    fn schema_name() -> Cow<'static, str> {
        "Outage".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string", "enum": PAUSE_REASONS,
            "description": "Why requests to the API are held back",
        })
    }
}

impl PollingResponse {
    pub(super) fn of(provider: &ProviderName, usage: Usage, breaker: &BreakerView) -> Self {
        let outage = breaker.outage;
        Self {
            provider: provider.to_string(),
            watches: usage.watches.try_into().unwrap_or(u64::MAX),
            requests_last_minute: usage.last_minute,
            requests_per_minute: usage.per_minute,
            outage: outage.map(|outage| outage.reason().to_owned()),
            outage_message: outage.map(|_| breaker.message.clone()),
            next_request_at: outage.and(breaker.retry_at).map(in_milliseconds),
            reached: breaker.reached,
        }
    }

    /// How much of the budget is used. The requests since the start are not known.
    pub fn usage(&self) -> Usage {
        Usage {
            last_minute: self.requests_last_minute,
            per_minute: self.requests_per_minute,
            total: 0,
            watches: usize::try_from(self.watches).unwrap_or(usize::MAX),
        }
    }

    /// The state of the circuit breaker. A reason that this program does not know counts as failing.
    pub fn breaker(&self) -> BreakerView {
        let outage = self.outage.as_deref();
        BreakerView {
            outage: outage.map(|word| Outage::of_reason(word).unwrap_or(Outage::Failing)),
            message: self.outage_message.clone().unwrap_or_default(),
            retry_at: self.next_request_at,
            ever_answered: self.reached,
            reached: self.reached,
            failures: u64::from(outage.is_some()),
        }
    }
}

/// A delivery.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DeliveryResponse {
    /// Its ID: `webhook-id` on every attempt.
    pub id: DeliveryId,
    /// The sink.
    pub sink: SinkName,
    /// The provider of the run, if it is about one.
    #[serde(default)]
    pub provider: Option<ProviderName>,
    /// The ID of the run there.
    #[schemars(with = "Option<RunIdText>")]
    pub run_id: Option<String>,
    /// The name of the group, if it is about one.
    #[serde(default)]
    pub group: Option<String>,
    /// The type of its event.
    pub event: EventType,
    /// `pending`, `sending`, `delivered`, `dead`, or `included`: not sent itself, as the delivery `included_in` names its
    /// run.
    #[schemars(with = "DeliveryState")]
    pub state: String,
    /// Attempts made.
    pub attempts: u32,
    /// After how many attempts it is given up, by the current schedule of its sink; `null` for a sink that is not
    /// configured any more.
    #[serde(default)]
    pub most_attempts: Option<u32>,
    /// When it was made.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub created_at: Timestamp,
    /// When the next attempt is due; `null` also while it is pending for the summary after downtime.
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub next_attempt_at: Option<Timestamp>,
    /// When it arrived, was given up or was included in a summary.
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub ended_at: Option<Timestamp>,
    /// Until when it is held for quiet hours, if it is.
    #[serde(default)]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub held_until: Option<Timestamp>,
    /// The delivery of the summary after downtime that names its run in its place; what becomes of that one counts.
    #[serde(default)]
    pub included_in: Option<DeliveryId>,
    /// What came of the last attempt.
    pub last_result: Option<String>,
    /// The sink that could not be reached, for which this one is the fallback.
    #[serde(default)]
    pub fallback_for: Option<SinkName>,
    /// Every attempt; only if one watch was requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt_log: Option<Vec<AttemptResponse>>,
}

/// One attempt.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct AttemptResponse {
    /// Its number, from 1.
    pub attempt: u32,
    /// When it began.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub at: Timestamp,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// Whether it arrived.
    pub delivered: bool,
    /// The answer of the receiver, or what went wrong.
    pub result: String,
}

/// `GET /v1/deliveries`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DeliveryList {
    /// The deliveries.
    pub deliveries: Vec<DeliveryResponse>,
    /// Where the list goes on; `null` at its end.
    pub next_cursor: Option<String>,
}

/// `GET /v1/sinks`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct SinkList {
    /// The sinks, by their names.
    pub sinks: Vec<SinkResponse>,
}

/// A sink, and what it has left to deliver.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct SinkResponse {
    /// Its name.
    pub name: SinkName,
    /// Its type, such as `webhook`; `null` for one that is not configured any more.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The events that it gets.
    pub events: Vec<EventType>,
    /// It gets events only of watches that carry all of these.
    #[schemars(with = "LabelMap")]
    pub labels: Labels,
    /// How many attempts its schedule has; `null` for one that is not configured any more.
    pub most_attempts: Option<u32>,
    /// Deliveries that wait or are being sent.
    pub pending: u64,
    /// Deliveries that were given up.
    pub dead: u64,
}

/// `POST /v1/deliveries/retry` and `/drop`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(super) struct DecisionResponse {
    /// How many deliveries it was done with.
    pub(super) deliveries: u64,
}

/// `GET /healthz` and `GET /readyz`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct HealthResponse {
    /// `ok` or `ready`.
    pub status: String,
}

/// The title of an error about the beginning of an ID that fits several.
pub(super) const AMBIGUOUS: &str = "Ambiguous ID";

/// An error (RFC 9457).
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Problem")]
pub struct ProblemDetails {
    /// The kind of error in few words.
    pub title: String,
    /// The status code.
    pub status: u16,
    /// What is wrong here, and what to do.
    pub detail: String,
}

impl ProblemDetails {
    /// Whether the request names something by the beginning of an ID that fits several.
    pub fn is_ambiguous(&self) -> bool {
        self.title == AMBIGUOUS
    }
}

impl WatchResponse {
    /// A watch as it is stored and, if it is active, as the scheduler has it.
    pub(super) fn of(record: WatchRecord, view: Option<WatchView>) -> Self {
        let WatchRecord {
            watch,
            origin,
            status,
            group,
            started_at,
            polls,
            missing_since,
            last_error,
            verdict,
            found_by,
        } = record;
        let failure = view
            .as_ref()
            .and_then(|view| view.last_error.clone())
            .or(last_error);
        Self {
            provider: watch.run_id.provider_name(),
            run_id: watch.run_id.id().to_owned(),
            name: watch.name,
            labels: watch.labels,
            sinks: watch.sinks,
            state: if verdict.is_some() {
                WatchState::Finished
            } else {
                WatchState::Active
            }
            .as_str()
            .to_owned(),
            run_state: status
                .as_ref()
                .map(|status| status.state().as_str().to_owned()),
            status: status.map(|status| status.as_str().to_owned()),
            verdict: verdict.map(|(verdict, _)| verdict.as_str().to_owned()),
            found_by: found_by.map(|found_by| found_by.as_str().to_owned()),
            origin: origin.as_ref().map(|origin| origin.word().to_owned()),
            discovery: origin
                .as_ref()
                .and_then(WatchOrigin::discovery)
                .map(ToOwned::to_owned),
            group,
            started_at: started_at.map(in_milliseconds),
            usual_ms: None,
            usual_p10_ms: None,
            usual_p90_ms: None,
            traceparent: watch.trace.as_ref().map(|trace| trace.parent().to_owned()),
            tracestate: watch
                .trace
                .as_ref()
                .and_then(TraceContext::state)
                .map(str::to_owned),
            added_at: watch.added_at,
            deadline_at: watch.deadline_at,
            finished_at: verdict.map(|(_, at)| at),
            polls: view.as_ref().map_or(polls, |view| view.polls),
            missing_since: view
                .as_ref()
                .map_or(missing_since, |view| view.missing_since),
            last_error: failure.map(|failure| PollErrorResponse {
                at: failure.at,
                message: failure.message,
            }),
            polling: view.as_ref().is_some_and(|view| view.polling),
            next_poll_at: view.map(|view| in_milliseconds(view.next_poll_at)),
            not_applied: Vec::new(),
            past_durations_ms: None,
            history: None,
            routing: None,
            deliveries: None,
            data: None,
        }
    }

    /// The run.
    pub fn run(&self) -> RunRef {
        RunRef::checked_elsewhere(&self.provider, &self.run_id)
    }

    /// The trace that it belongs to.
    pub fn trace(&self) -> Option<TraceContext> {
        let state = self.tracestate.as_deref().unwrap_or_default();
        TraceContext::read(self.traceparent.as_deref()?, state)
    }

    /// What is usual for runs of its group, where that is known.
    pub fn usual(&self) -> Option<UsualDuration> {
        Some(UsualDuration {
            p10_ms: self.usual_p10_ms?,
            median_ms: self.usual_ms?,
            p90_ms: self.usual_p90_ms?,
        })
    }

    /// How long the run is expected to take, where its start and what is usual are known.
    pub fn expected(&self) -> Option<Expectation> {
        Some(Expectation {
            started_at: self.started_at?,
            usual: self.usual()?,
        })
    }

    /// Whether the run goes on without waiting for anything.
    pub fn is_running(&self) -> bool {
        self.verdict.is_none() && self.run_state.as_deref() == Some(RunState::Running.as_str())
    }

    /// Takes in what is usual for runs of its group.
    pub(super) fn usual_is(&mut self, usual: Option<UsualDuration>) {
        self.usual_ms = usual.map(|usual| usual.median_ms);
        self.usual_p10_ms = usual.map(|usual| usual.p10_ms);
        self.usual_p90_ms = usual.map(|usual| usual.p90_ms);
    }

    /// The verdict, if it has one that this program knows.
    pub fn known_verdict(&self) -> Option<Verdict> {
        self.verdict.as_deref().and_then(Verdict::from_word)
    }
}

/// A time as all others in JSON are: in whole milliseconds.
fn in_milliseconds(at: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(at.as_millisecond()).unwrap_or(at)
}

impl ActivityResponse {
    /// The run.
    pub fn run(&self) -> RunRef {
        RunRef::checked_elsewhere(&self.provider, &self.run_id)
    }

    /// What was followed.
    pub fn of(activities: &RunActivity) -> Self {
        Self {
            provider: activities.run_id.provider_name(),
            run_id: activities.run_id.id().to_owned(),
            at: activities.at,
            activity: activities.activity.kind.clone(),
            summary: activities.activity.summary.clone(),
            failure: activities.activity.is_failure,
            data: activities.activity.data.clone(),
        }
    }
}

impl DeliveryResponse {
    /// The run, if it is about one.
    pub fn run(&self) -> Option<RunRef> {
        let provider = self.provider.clone().unwrap_or_else(ProviderName::crewship);
        Some(RunRef::checked_elsewhere(&provider, self.run_id.as_ref()?))
    }

    /// What it is about, for people: the run or the group.
    pub fn subject(&self) -> Option<String> {
        let group = || Some(format!("group {}", self.group.as_ref()?));
        self.run().map(|run| run.to_string()).or_else(group)
    }

    /// A delivery whose sink has `scheduled` attempts in its schedule.
    pub(super) fn of(
        summary: DeliverySummary,
        attempts: Option<Vec<AttemptRecord>>,
        scheduled: Option<u32>,
    ) -> Self {
        let attempt = |attempt: AttemptRecord| AttemptResponse {
            attempt: attempt.attempt,
            at: attempt.at,
            took_ms: attempt.took_ms,
            delivered: attempt.delivered,
            result: attempt.detail,
        };
        Self {
            id: summary.id,
            sink: summary.sink,
            provider: summary.run_id.as_ref().map(RunRef::provider_name),
            run_id: summary.run_id.map(|run| run.id().to_owned()),
            group: summary.group,
            event: summary.event_type,
            state: summary.state.as_str().to_owned(),
            attempts: summary.attempts,
            most_attempts: scheduled.map(|most| summary.earlier_attempts.saturating_add(most)),
            created_at: summary.created_at,
            next_attempt_at: summary.next_attempt_at,
            ended_at: summary.ended_at,
            held_until: summary.held_until,
            included_in: summary.included_in,
            last_result: summary.last_detail,
            fallback_for: summary.fallback_for,
            attempt_log: attempts.map(|attempts| attempts.into_iter().map(attempt).collect()),
        }
    }
}

/// One of the Server-Sent Events of the activity of runs.
pub(super) struct ActivityFrame;

impl JsonSchema for ActivityFrame {
    fn schema_name() -> Cow<'static, str> {
        "ActivityFrame".into()
    }

    fn json_schema(schemas: &mut SchemaGenerator) -> Schema {
        let data = [
            schemas.subschema_for::<ActivityResponse>(),
            json_schema!({ "type": "integer", "minimum": 1 }),
        ];
        json_schema!({
            "type": "object",
            "required": ["event", "data"],
            "properties": {
                "event": { "type": "string", "enum": ["activity", "missed"] },
                "data": {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "contentSchema": { "anyOf": data },
                },
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_may_have_nulls_or_be_an_answer_of_the_api() {
        let read =
            |body: &str| AddRequest::read(body.as_bytes()).map_err(|error| error.to_string());
        let all = r#"{"run_id":"run_1","name":null,"labels":null,"sinks":null,"timeout":null,"again":null}"#;
        let nulls = read(all).unwrap();
        assert!(nulls.labels.is_empty() && !nulls.again && nulls.sinks.is_none());
        assert_eq!(
            serde_json::to_string(&nulls).unwrap(),
            r#"{"run_id":"run_1"}"#
        );
        for created in [
            r#"{"run_id":"run_1","version_id":"ver_1","status":"running"}"#,
            r#"{"data":{"id":"run_1","status":"pending","created_at":"2024-01-15T10:35:00Z"}}"#,
            r#"{"id":"thr_1","run_id":"run_1","status":"running"}"#,
        ] {
            assert_eq!(read(created).unwrap().run_id, "run_1", "{created}");
        }
        let both = read(r#"{"run_id":"run_1","status":"running","labels":{"a":"b"},"again":true}"#)
            .unwrap();
        assert_eq!((both.labels["a"].as_str(), both.again), ("b", true));
        // A mistake stays one.
        assert!(
            read(r#"{"run_id":"run_1","sink":["ops"]}"#)
                .unwrap_err()
                .contains("unknown field `sink`")
        );
        assert!(read(r#"{"status":"running"}"#).is_err());
        assert!(read("[]").is_err());
    }
}
