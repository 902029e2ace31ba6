//! What texts and numbers of the control interface look like, as JSON Schema: the same rules as those of
//! the code that reads them. `tests/openapi/run` compares the two.

use std::borrow::Cow;

use schemars::generate::SchemaGenerator;
use schemars::{JsonSchema, Schema, json_schema};

use super::event_schemas::DigestEventSchema;
use crate::config::{LABEL_KEY_BYTES, LABEL_VALUE_CHARS, MAX_LABELS, NAME_CHARS};
use crate::discovery::DiscoveryState;
use crate::domain::{
    DeliveryId, Event, EventType, FoundBy, GroupEvent, ProviderName, ProviderNotice, RunEvent,
    RunRef, RunState, SinkName, SinkNotice, Verdict, WatchOrigin,
};
use crate::store::{DeliveryState, WatchOrder, WatchState};

/// Most items of a page of a list.
pub(super) const MAX_PAGE: u32 = 1000;

/// The orders of a list of deliveries, by their IDs: the oldest first, and the newest first.
pub(super) const DELIVERY_ORDERS: [&str; 2] = ["oldest", "newest"];

/// Texts without control characters, as part of a character class.
const PRINTABLE: &str = r"[^\x00-\x1f\x7f-\x9f]";

/// A character of the key of a label, as `check_label` has it.
const LABEL_KEY_CHAR: &str = "[A-Za-z0-9_./-]";

/// A type that is a text in JSON: its name in the document and its schema.
macro_rules! texts {
    ($($(#[$doc:meta])* $type:ty, $name:literal, $schema:expr;)*) => {$(
        $(#[$doc])*
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    )*};
}

fn words<T>(all: &[T], word: impl Fn(&T) -> &'static str, description: &str) -> Schema {
    let words: Vec<_> = all.iter().map(word).collect();
    json_schema!({ "type": "string", "enum": words, "description": description })
}

/// A Crewship run ID as [`RunRef::new`] has it: up to 128 characters, and neither `.` nor `..`.
const RUN_ID: &str = r"(?:[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}|\.[A-Za-z0-9_-][A-Za-z0-9_.-]{0,126}|\.\.[A-Za-z0-9_.-]{1,126})";

/// Longest ID of a run of any provider, in bytes.
const RUN_ID_BYTES: u32 = 1024;

texts! {
    RunRef, "RunRef", json_schema!({
        "type": "string", "pattern": format!("^{RUN_ID}$"), "minLength": 1, "maxLength": 128,
        "description": "The ID of a run of the default provider; PROVIDER:ID and the URL of a run's page are accepted as well",
        "examples": ["run_xyz789abc"],
    });
    RunIdText, "RunId", json_schema!({
        "type": "string", "minLength": 1, "maxLength": RUN_ID_BYTES,
        "description": "The ID of a run at its provider, opaque", "examples": ["run_xyz789abc", "acme/site/123456"],
    });
    ProviderName, "ProviderName", json_schema!({
        "type": "string", "pattern": "^[a-z0-9_-]{1,64}$",
        "description": "The name of a provider", "examples": ["crewship", "github"],
    });
    SinkName, "SinkName", json_schema!({
        "type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$",
        "description": "The name of a sink of the configuration", "examples": ["ops"],
    });
    DeliveryId, "DeliveryId", json_schema!({
        "type": "string", "pattern": "^msg_[A-Za-z0-9]{1,60}$",
        "description": "The ID of a delivery, the same on every attempt; IDs sort by time",
    });
    EventType, "EventType", words(&EventType::ALL, |word| word.as_str(), "The type of an event");
    Verdict, "Verdict", words(&Verdict::WORST_FIRST, |word| word.as_str(), "The final outcome of a watch");
    FoundBy, "FoundBy", words(&FoundBy::ALL, |word| word.as_str(), "What caused the poll that found the verdict");
    DiscoveryState, "DiscoveryState", words(&DiscoveryState::ALL, |word| word.as_str(), "How a discovery goes");
    WatchOrigin, "WatchOrigin", words(&WatchOrigin::WORDS, |word| word, "Where a watch comes from");
    RunState, "RunState", words(&RunState::ALL, |word| word.as_str(), "What the status of a run stands for");
    DeliveryState, "DeliveryState", words(&DeliveryState::ALL, |word| word.as_str(), "Where a delivery stands");
    WatchState, "WatchState", words(&WatchState::ALL, |word| word.as_str(), "Without a verdict, or with one");
    WatchOrder, "WatchOrder", words(&WatchOrder::ALL, |word| word.as_str(), "The order of a list of watches");
    DeliveryOrder, "DeliveryOrder", words(&DELIVERY_ORDERS, |word| word, "The order of a list of deliveries");
    DurationText, "Duration", json_schema!({
        "type": "string", "pattern": "^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$", "minLength": 2,
        "description": "Whole numbers with units, from large to small", "examples": ["500ms", "30s", "2m30s"],
    });
    WatchCursor, "WatchCursor", json_schema!({
        "type": "string", "pattern": format!(r"^[0-9]{{1,13}}\.{RUN_ID}$"), "maxLength": 142,
    });
    LabelPair, "LabelPair", json_schema!({
        "type": "string",
        "pattern": format!("^{LABEL_KEY_CHAR}{{1,{LABEL_KEY_BYTES}}}={PRINTABLE}{{0,{LABEL_VALUE_CHARS}}}$"),
        "examples": ["team=search"],
    });
    WatchName, "WatchName", json_schema!({
        "type": "string", "pattern": format!(r"^{PRINTABLE}*[^\s\x00-\x1f\x7f-\x9f]{PRINTABLE}*$"),
        "minLength": 1, "maxLength": NAME_CHARS,
    });
    LabelMap, "Labels", json_schema!({
        "type": "object",
        "maxProperties": MAX_LABELS,
        "propertyNames": { "pattern": format!("^{LABEL_KEY_CHAR}+$"), "minLength": 1, "maxLength": LABEL_KEY_BYTES },
        "additionalProperties": {
            "type": "string", "pattern": format!("^{PRINTABLE}*$"), "maxLength": LABEL_VALUE_CHARS,
        },
        "description": "Free pairs that sinks select by",
    });
    TraceParentText, "TraceParent", json_schema!({
        "type": "string",
        "description": "A trace, as the header `traceparent` of W3C Trace Context names it",
        "examples": ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"],
    });
    TraceStateText, "TraceState", json_schema!({
        "type": "string",
        "description": "What tracing systems add to a trace, as the header `tracestate` of W3C Trace Context has it",
        "examples": ["rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"],
    });
    PageSize, "PageSize", json_schema!({ "type": "integer", "minimum": 1, "maximum": MAX_PAGE });
    EventNumber, "EventNumber", json_schema!({ "type": "integer", "minimum": 0, "maximum": i64::MAX });
    MetricsText, "MetricsText", json_schema!({ "type": "string" });
}

impl JsonSchema for Event {
    fn schema_name() -> Cow<'static, str> {
        "Event".into()
    }

    fn json_schema(schemas: &mut SchemaGenerator) -> Schema {
        let data = [
            schemas.subschema_for::<RunEvent>(),
            schemas.subschema_for::<GroupEvent>(),
            schemas.subschema_for::<DigestEventSchema>(),
            schemas.subschema_for::<ProviderNotice>(),
            schemas.subschema_for::<SinkNotice>(),
        ];
        json_schema!({
            "type": "object",
            "description": "An event as sinks get it; `data` is about a run, several runs, the API or a sink, as `type` says",
            "required": ["type", "timestamp", "data"],
            "properties": {
                "type": schemas.subschema_for::<EventType>(),
                "timestamp": { "type": "string", "format": "date-time" },
                "data": { "anyOf": data },
            },
        })
    }
}

impl JsonSchema for EventFrame {
    fn schema_name() -> Cow<'static, str> {
        "EventFrame".into()
    }

    fn json_schema(schemas: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "required": ["id", "event", "data"],
            "properties": {
                "id": { "type": "string", "pattern": "^[0-9]+$" },
                "event": schemas.subschema_for::<EventType>(),
                "data": {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "contentSchema": schemas.subschema_for::<Event>(),
                },
            },
        })
    }
}

/// A duration as people write it.
pub(super) struct DurationText;

/// Where a list of watches goes on.
pub(super) struct WatchCursor;

/// The ID of a run at its provider.
pub(super) struct RunIdText;

/// A label that watches must carry.
pub(super) struct LabelPair;

/// What people call a watch.
pub(super) struct WatchName;

/// The labels of a watch.
pub(super) struct LabelMap;

/// The order of a list of deliveries.
pub(super) struct DeliveryOrder;

/// The trace of a watch.
pub(super) struct TraceParentText;

/// What tracing systems add to a trace.
pub(super) struct TraceStateText;

/// How many items of a list.
pub(super) struct PageSize;

/// The number of an event.
pub(super) struct EventNumber;

/// Metrics.
pub(super) struct MetricsText;

/// One of the Server-Sent Events.
pub(super) struct EventFrame;
