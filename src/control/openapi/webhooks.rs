//! The `webhooks` of the document: what sinks receive, one for each type of event.

use schemars::Schema;
use schemars::generate::SchemaGenerator;
use serde_json::{Map, Value, json};

use super::operation::Tag;
use crate::control::event_schemas::DigestEventSchema;
use crate::domain::{
    EventType, GroupEvent, ProviderNotice, RunEvent, SinkNotice, TRACE_PARENT, TRACE_STATE,
};

/// The headers of webhooks: the name in the document, that of the header, whether each request has it, and
/// its meaning.
const HEADERS: [(&str, &str, bool, &str); 6] = [
    (
        "WebhookId",
        "webhook-id",
        true,
        "The ID of the delivery, the same on every attempt: ignore one that was processed",
    ),
    (
        "WebhookTimestamp",
        "webhook-timestamp",
        true,
        "The time of the attempt, in seconds since 1970",
    ),
    (
        "WebhookSignature",
        "webhook-signature",
        false,
        "Signatures of `ID.TIMESTAMP.BODY`, each `v1,` and the base64 of its HMAC-SHA256; present if the sink has a \
         secret",
    ),
    (
        "GithubSignature",
        "x-hub-signature-256",
        false,
        "`sha256=` and the HMAC-SHA256 of the body in hexadecimal; present if the sink has `signature = \"github\"`",
    ),
    (
        "TraceParentHeader",
        TRACE_PARENT,
        false,
        "The `traceparent` of the request that added the watch (W3C Trace Context); present if that had one and the event \
         is about one run",
    ),
    (
        "TraceStateHeader",
        TRACE_STATE,
        false,
        "The `tracestate` of that request, up to 512 bytes",
    ),
];

/// What a receiver may answer: the name in the document, the status, and what follows from it.
const ANSWERS: [(&str, &str, &str); 3] = [
    ("Received", "2XX", "The delivery is done"),
    (
        "ReceiverGone",
        "410",
        "The sink is disabled, and gets no further deliveries",
    ),
    (
        "NotReceived",
        "default",
        "The attempt failed, also by a redirect; the next one follows by `retry_schedule`. With 429 or 503, \
         `Retry-After` is kept",
    ),
];

/// The parts of the document that are about webhooks.
pub(super) struct Webhooks {
    /// One for each type of event.
    pub(super) items: Map<String, Value>,
    /// The headers that all of them have.
    pub(super) parameters: Map<String, Value>,
    /// What receivers may answer.
    pub(super) responses: Map<String, Value>,
}

/// Describes the webhooks.
pub(super) fn webhooks(schemas: &mut SchemaGenerator) -> Webhooks {
    let parameter = |(name, header, required, description): (&str, _, _, _)| {
        let schema = json!({ "type": "string" });
        let parameter = json!({
            "name": header, "in": "header", "required": required, "description": description, "schema": schema,
        });
        (name.to_owned(), parameter)
    };
    let response = |(name, _, description): (&str, _, &str)| {
        (name.to_owned(), json!({ "description": description }))
    };
    let item = |event: EventType| (event.as_str().to_owned(), webhook(event, schemas));
    Webhooks {
        items: EventType::ALL.into_iter().map(item).collect(),
        parameters: HEADERS.into_iter().map(parameter).collect(),
        responses: ANSWERS.into_iter().map(response).collect(),
    }
}

fn webhook(event: EventType, schemas: &mut SchemaGenerator) -> Value {
    let (summary, data) = about(event, schemas);
    let schema = json!({
        "type": "object",
        "required": ["type", "timestamp", "data"],
        "properties": {
            "type": { "const": event.as_str() },
            "timestamp": { "type": "string", "format": "date-time" },
            "data": data,
        },
    });
    let parameters =
        HEADERS.map(|(name, ..)| json!({ "$ref": format!("#/components/parameters/{name}") }));
    let responses: Map<_, _> = ANSWERS
        .map(|(name, status, _)| {
            let answer = json!({ "$ref": format!("#/components/responses/{name}") });
            (status.to_owned(), answer)
        })
        .into_iter()
        .collect();
    json!({ "post": {
        "operationId": operation_id(event),
        "tags": [Tag::Webhooks.name()],
        "summary": summary,
        "security": [],
        "parameters": parameters,
        "requestBody": { "required": true, "content": { "application/json": { "schema": schema } } },
        "responses": responses,
    } })
}

/// The ID of the operation, such as `onRunFailed`.
fn operation_id(event: EventType) -> String {
    let mut id = "on".to_owned();
    for word in event.as_str().split(['.', '_']) {
        let (first, rest) = word.split_at(1);
        id.push_str(&first.to_uppercase());
        id.push_str(rest);
    }
    id
}

/// When an event of this type happens, and the schema of its data.
fn about(event: EventType, schemas: &mut SchemaGenerator) -> (&'static str, Schema) {
    let run = SchemaGenerator::subschema_for::<RunEvent>;
    let group = SchemaGenerator::subschema_for::<GroupEvent>;
    let digest = SchemaGenerator::subschema_for::<DigestEventSchema>;
    let provider = SchemaGenerator::subschema_for::<ProviderNotice>;
    let sink = SchemaGenerator::subschema_for::<SinkNotice>;
    let (summary, data): (_, fn(&mut SchemaGenerator) -> Schema) = match event {
        EventType::RunSucceeded => ("The run succeeded", run),
        EventType::RunFailed => ("The run failed", run),
        EventType::RunCanceled => ("The run was canceled", run),
        EventType::RunSkipped => ("The provider passed the run over", run),
        EventType::WatchNotFound => ("The provider does not know the run", run),
        EventType::WatchUnreachable => (
            "The deadline passed, and the provider gave no usable answer",
            run,
        ),
        EventType::WatchTimedOut => ("The deadline passed, and the run had not ended", run),
        EventType::RunStarted => ("The run was seen running for the first time", run),
        EventType::RunWaiting => ("The run stopped until a person acts", run),
        EventType::WatchOverdue => (
            "The run has been going for longer than `watch.overdue_after`",
            run,
        ),
        EventType::GroupFinished => ("All watches of a group have their verdicts", group),
        EventType::RunDigest => (
            "Several runs ended while nothing watched; for sinks with `digest = true`",
            digest,
        ),
        EventType::ApiUnreachable => ("The provider gave no usable answer for 5 minutes", provider),
        EventType::ApiUnauthorized => ("The provider refuses the key", provider),
        EventType::ApiRecovered => ("The provider gives usable answers again", provider),
        EventType::SinkDisabled => (
            "A receiver answered 410 Gone; its sink gets no further deliveries",
            sink,
        ),
        EventType::SinkTest => ("A sample, sent by `runwatch sinks test`", run),
    };
    (summary, data(schemas))
}
