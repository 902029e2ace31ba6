//! What the data of events look like, as JSON Schema. The types that are sent are those of the domain; a test compares
//! the two.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::generate::SchemaGenerator;
use schemars::{JsonSchema, Schema};
use serde_json::Value;

use super::schemas::RunIdText;
use crate::domain::{self, Labels, ProviderName, RunState, SinkName};

/// The data of an event about a run.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
#[schemars(rename = "RunEvent")]
struct RunEventSchema {
    /// The run as last seen.
    run: RunSummarySchema,
    /// The watch of it.
    watch: WatchSummarySchema,
    /// How long its parts took.
    timing: TimingSchema,
    /// Why the verdict is `unreachable` or `not_found`, for people. Absent otherwise. No secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Names of the fields of `run` that were left out or shortened: the message would have been too large, or the
    /// answer of the API could not be read there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    truncated: Vec<String>,
    /// The sink that could not be reached, where the event goes to its fallback. Absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fallback_for: Option<SinkName>,
}

/// The run as an event shows it: every key but `project` always present, `null` where unknown.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
#[schemars(rename = "RunSummary")]
struct RunSummarySchema {
    /// The provider that knows the run.
    provider: ProviderName,
    /// The run's ID there.
    id: RunIdText,
    /// The version.
    version_id: Option<String>,
    /// The deployment.
    deployment_id: Option<String>,
    /// The project, where the API names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    project: Option<String>,
    /// The status word last seen, verbatim.
    status: Option<String>,
    /// What the status stands for.
    state: Option<RunState>,
    /// The attempt, where the provider counts them.
    attempt: Option<u64>,
    /// The provider's name of the run.
    name: Option<String>,
    /// What the run belongs to: a workflow, a deployment.
    group: Option<String>,
    /// The input, as the API sent it.
    input: Option<Value>,
    /// The output, as the API sent it.
    output: Option<Value>,
    /// Why the run failed.
    error_message: Option<String>,
    /// Created.
    #[schemars(extend("format" = "date-time"))]
    created_at: Option<String>,
    /// Started.
    #[schemars(extend("format" = "date-time"))]
    started_at: Option<String>,
    /// Ended.
    #[schemars(extend("format" = "date-time"))]
    completed_at: Option<String>,
    /// A link that people can open, from `api.run_url`.
    url: Option<String>,
}

/// The watch as an event shows it.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
#[schemars(rename = "WatchSummary")]
struct WatchSummarySchema {
    /// The name for people.
    name: Option<String>,
    /// Labels.
    labels: Labels,
    /// When the watch was added.
    #[schemars(extend("format" = "date-time"))]
    added_at: String,
    /// How often the run was polled.
    polls: u64,
    /// Whether the run ended while no process watched it.
    late: bool,
}

/// How long the parts of a run took, in milliseconds; `null` where the API gave no time, or nothing is usual yet.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
#[schemars(rename = "Timing")]
struct TimingSchema {
    /// From creation to start.
    queued_ms: Option<u64>,
    /// From start to end.
    ran_ms: Option<u64>,
    /// From the end of the run to our observing it. 0 when the API's clock is ahead of ours.
    detected_after_ms: Option<u64>,
    /// How long the runs of its group that succeeded usually take: the median of the last 50.
    usual_ms: Option<u64>,
    /// As `usual_ms`, the 10th percentile.
    usual_p10_ms: Option<u64>,
    /// As `usual_ms`, the 90th percentile.
    usual_p90_ms: Option<u64>,
}

/// The data of an `api.*` event.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
#[schemars(rename = "ProviderNotice")]
struct ProviderNoticeSchema {
    /// The provider.
    provider: ProviderName,
    /// What happened, for people. No secrets.
    message: String,
    /// Since when.
    #[schemars(extend("format" = "date-time"))]
    since: String,
    /// The sink that could not be reached, where the event goes to its fallback. Absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fallback_for: Option<SinkName>,
}

/// The data of `group.finished`.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
#[schemars(rename = "GroupEvent")]
struct GroupEventSchema {
    /// The name of the group.
    group: String,
    /// How many watches it had.
    total: u64,
    /// How many of them have each verdict that occurs.
    verdicts: BTreeMap<String, u64>,
    /// The runs, the worst verdicts first, and else in the order in which they were added; 100 at most.
    runs: Vec<GroupRunSchema>,
    /// How many further runs are not named.
    more: u64,
    /// How many watches fewer were added than `group_size`. Absent if none.
    #[serde(default, skip_serializing_if = "is_zero")]
    missing: u64,
    /// The sink that could not be reached, where the event goes to its fallback. Absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fallback_for: Option<SinkName>,
}

/// The data of `run.digest`.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
#[schemars(rename = "DigestEvent")]
pub(super) struct DigestEventSchema {
    /// The sink that gets the summary.
    sink: SinkName,
    /// How many runs it stands for.
    total: u64,
    /// How many of them have each verdict that occurs.
    verdicts: BTreeMap<String, u64>,
    /// The runs, the worst verdicts first; 100 at most.
    runs: Vec<GroupRunSchema>,
    /// How many further runs are not named.
    more: u64,
    /// The sink that could not be reached, where the event goes to its fallback. Absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fallback_for: Option<SinkName>,
}

/// What makes a number optional in the schema.
fn is_zero(_: &u64) -> bool {
    false
}

/// One of several runs.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
#[schemars(rename = "GroupRun")]
struct GroupRunSchema {
    /// The provider that knows the run.
    provider: ProviderName,
    /// The run's ID there.
    id: RunIdText,
    /// The name of the watch.
    name: Option<String>,
    /// The verdict.
    verdict: domain::Verdict,
}

/// The data of `sink.disabled`.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
#[schemars(rename = "SinkNotice")]
struct SinkNoticeSchema {
    /// The sink's name.
    sink: SinkName,
    /// Why, for people. No secrets.
    message: String,
    /// The sink that could not be reached, where the event goes to its fallback. Absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fallback_for: Option<SinkName>,
}

/// Gives a type of the domain the schema of a type of this file.
macro_rules! schema_of {
    ($($name:ident: $schema:ident;)*) => {$(
        impl JsonSchema for domain::$name {
            fn schema_name() -> Cow<'static, str> {
                $schema::schema_name()
            }
            fn json_schema(schemas: &mut SchemaGenerator) -> Schema {
                $schema::json_schema(schemas)
            }
        }
    )*};
}

schema_of! {
    RunEvent: RunEventSchema;
    GroupEvent: GroupEventSchema;
    ProviderNotice: ProviderNoticeSchema;
    SinkNotice: SinkNoticeSchema;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use schemars::generate::SchemaSettings;
    use schemars::schema_for;

    use super::*;
    use crate::domain::{Event, EventData};

    /// The keys that the schema has.
    fn properties<T: JsonSchema>() -> BTreeSet<String> {
        let schema = schema_for!(T);
        let properties = schema.get("properties").unwrap().as_object().unwrap();
        properties.keys().cloned().collect()
    }

    fn keys(value: &Value) -> BTreeSet<String> {
        value.as_object().unwrap().keys().cloned().collect()
    }

    #[test]
    fn what_an_event_may_lack_is_not_required() {
        let sent = SchemaSettings::draft2020_12().for_serialize();
        let schema = sent
            .into_generator()
            .into_root_schema_for::<RunEventSchema>();
        let required = schema.get("required").unwrap();
        assert_eq!(*required, serde_json::json!(["run", "watch", "timing"]));
    }

    #[test]
    fn the_schemas_have_the_keys_that_are_sent() {
        let at = "2024-01-15T10:35:05Z".parse().unwrap();
        let EventData::Run(mut event) = Event::sample(at).data else {
            panic!("a sample is about a run");
        };
        event.reason = Some("why".to_owned());
        event.truncated = vec!["input".to_owned()];
        event.run.project = Some("crew".to_owned());
        event.fallback_for = Some(SinkName::new("ops").unwrap());
        let sent = serde_json::to_value(&event).unwrap();
        assert_eq!(keys(&sent), properties::<RunEventSchema>());
        assert_eq!(keys(&sent["run"]), properties::<RunSummarySchema>());
        assert_eq!(keys(&sent["watch"]), properties::<WatchSummarySchema>());
        assert_eq!(keys(&sent["timing"]), properties::<TimingSchema>());
        let notice = domain::ProviderNotice {
            provider: domain::ProviderName::crewship(),
            message: "it is back".to_owned(),
            since: at,
            fallback_for: Some(SinkName::new("ops").unwrap()),
        };
        let sent = serde_json::to_value(&notice).unwrap();
        assert_eq!(keys(&sent), properties::<ProviderNoticeSchema>());
        let notice = domain::SinkNotice {
            sink: SinkName::new("ops").unwrap(),
            message: "gone".to_owned(),
            fallback_for: Some(SinkName::new("ops").unwrap()),
        };
        let sent = serde_json::to_value(&notice).unwrap();
        assert_eq!(keys(&sent), properties::<SinkNoticeSchema>());
        let group = Event::sample_of(domain::EventType::GroupFinished, at);
        let mut group = group.group().unwrap().clone();
        group.missing = 1;
        group.fallback_for = Some(SinkName::new("ops").unwrap());
        let sent = serde_json::to_value(&group).unwrap();
        assert_eq!(keys(&sent), properties::<GroupEventSchema>());
        assert_eq!(keys(&sent["runs"][0]), properties::<GroupRunSchema>());
        let mut digest = Event::sample_of(domain::EventType::RunDigest, at);
        digest.set_fallback_for(Some(SinkName::new("ops").unwrap()));
        let sent = serde_json::to_value(digest.group()).unwrap();
        assert_eq!(keys(&sent), properties::<DigestEventSchema>());
    }
}
