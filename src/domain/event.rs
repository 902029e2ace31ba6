//! Events: what happened, in the form in which it is stored and sent.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    GroupEvent, InvalidId, JsonText, Labels, ProviderName, RunRef, RunState, SinkName, Timing,
    Verdict,
};

/// The kind of an event. The words are fixed: receivers switch on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EventType {
    /// The run ended well.
    #[serde(rename = "run.succeeded")]
    RunSucceeded,
    /// The run ended with an error.
    #[serde(rename = "run.failed")]
    RunFailed,
    /// The run was stopped.
    #[serde(rename = "run.canceled")]
    RunCanceled,
    /// The provider passed the run over.
    #[serde(rename = "run.skipped")]
    RunSkipped,
    /// The API knew no such run for the whole grace time.
    #[serde(rename = "watch.not_found")]
    WatchNotFound,
    /// The deadline came and the API could not be polled.
    #[serde(rename = "watch.unreachable")]
    WatchUnreachable,
    /// The deadline came and the run was still going.
    #[serde(rename = "watch.timed_out")]
    WatchTimedOut,
    /// The run was first seen running.
    #[serde(rename = "run.started")]
    RunStarted,
    /// The run stopped until a person acts.
    #[serde(rename = "run.waiting")]
    RunWaiting,
    /// The run is still going after `overdue_after`.
    #[serde(rename = "watch.overdue")]
    WatchOverdue,
    /// All watches of a group have their verdicts.
    #[serde(rename = "group.finished")]
    GroupFinished,
    /// Several runs ended while nothing watched them: one summary for a sink.
    #[serde(rename = "run.digest")]
    RunDigest,
    /// The API gave no usable answer for a while.
    #[serde(rename = "api.unreachable")]
    ApiUnreachable,
    /// The API refused the key.
    #[serde(rename = "api.unauthorized")]
    ApiUnauthorized,
    /// The API answers again.
    #[serde(rename = "api.recovered")]
    ApiRecovered,
    /// A receiver answered that it wants no more requests (410).
    #[serde(rename = "sink.disabled")]
    SinkDisabled,
    /// A sample, sent on request to try a sink.
    #[serde(rename = "sink.test")]
    SinkTest,
}

impl EventType {
    /// Every type.
    pub const ALL: [Self; 17] = [
        Self::RunSucceeded,
        Self::RunFailed,
        Self::RunCanceled,
        Self::RunSkipped,
        Self::WatchNotFound,
        Self::WatchUnreachable,
        Self::WatchTimedOut,
        Self::RunStarted,
        Self::RunWaiting,
        Self::WatchOverdue,
        Self::GroupFinished,
        Self::RunDigest,
        Self::ApiUnreachable,
        Self::ApiUnauthorized,
        Self::ApiRecovered,
        Self::SinkDisabled,
        Self::SinkTest,
    ];

    /// The word in JSON, configuration and the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RunSucceeded => "run.succeeded",
            Self::RunFailed => "run.failed",
            Self::RunCanceled => "run.canceled",
            Self::RunSkipped => "run.skipped",
            Self::WatchNotFound => "watch.not_found",
            Self::WatchUnreachable => "watch.unreachable",
            Self::WatchTimedOut => "watch.timed_out",
            Self::RunStarted => "run.started",
            Self::RunWaiting => "run.waiting",
            Self::WatchOverdue => "watch.overdue",
            Self::GroupFinished => "group.finished",
            Self::RunDigest => "run.digest",
            Self::ApiUnreachable => "api.unreachable",
            Self::ApiUnauthorized => "api.unauthorized",
            Self::ApiRecovered => "api.recovered",
            Self::SinkDisabled => "sink.disabled",
            Self::SinkTest => "sink.test",
        }
    }

    /// Reads the word of [`EventType::as_str`].
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|event_type| event_type.as_str() == word)
    }

    /// Whether it is about a watch that continues.
    pub fn is_progress(self) -> bool {
        matches!(
            self,
            Self::RunStarted | Self::RunWaiting | Self::WatchOverdue
        )
    }

    /// Returns the verdict that an event of this type reports, if any.
    pub fn verdict(self) -> Option<Verdict> {
        Verdict::WORST_FIRST
            .into_iter()
            .find(|verdict| verdict.event_type() == self)
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One event: its type, when we observed it, and its data.
#[derive(Debug, Clone)]
pub struct Event {
    /// The type.
    pub event_type: EventType,
    /// When we observed it; millisecond precision in JSON.
    pub timestamp: Timestamp,
    /// What it is about.
    pub data: EventData,
}

/// What an event is about.
#[derive(Debug, Clone)]
pub enum EventData {
    /// Several runs: `group.finished` and `run.digest`.
    Group(Box<GroupEvent>),
    /// A run and its watch: the `run.*` and `watch.*` events, and the sample of `sink.test`.
    Run(Box<RunEvent>),
    /// The API: the `api.*` events.
    Provider(ProviderNotice),
    /// A sink: `sink.disabled`.
    Sink(SinkNotice),
}

/// The data of an event about a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunEvent {
    /// The run as last seen.
    pub run: RunSummary,
    /// Our watch of it.
    pub watch: WatchSummary,
    /// How long its parts took.
    pub timing: Timing,
    /// Why the verdict is `unreachable` or `not_found`, for people. Absent otherwise. No secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Names of the fields of `run` that were left out or shortened: the message would have been too large, or the
    /// answer of the API could not be read there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub truncated: Vec<String>,
    /// The sink that could not be reached, where the event goes to its fallback. Absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback_for: Option<SinkName>,
}

impl RunEvent {
    /// Bytes of the run's input and output.
    pub fn bytes(&self) -> usize {
        let size = |value: &Option<JsonText>| value.as_ref().map_or(0, |value| value.get().len());
        size(&self.run.input) + size(&self.run.output)
    }
}

/// The run as an event shows it: every key always present, `null` where unknown.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "StoredRun")]
pub struct RunSummary {
    /// The provider that knows the run.
    pub provider: ProviderName,
    /// The run; in JSON its ID at the provider.
    #[serde(serialize_with = "id_only")]
    pub id: RunRef,
    /// See [`super::RunDetails`] for this and the following.
    pub version_id: Option<String>,
    /// The deployment.
    pub deployment_id: Option<String>,
    /// The project, where the API names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// The status word last seen, verbatim.
    pub status: Option<String>,
    /// What the status stands for.
    pub state: Option<RunState>,
    /// The attempt, where the provider counts them.
    pub attempt: Option<u64>,
    /// The provider's name of the run.
    pub name: Option<String>,
    /// What the run belongs to: a workflow, a deployment.
    pub group: Option<String>,
    /// The input, as the API sent it.
    pub input: Option<JsonText>,
    /// The output, as the API sent it.
    pub output: Option<JsonText>,
    /// Why the run failed.
    pub error_message: Option<String>,
    /// Created.
    pub created_at: Option<Timestamp>,
    /// Started.
    pub started_at: Option<Timestamp>,
    /// Ended.
    pub completed_at: Option<Timestamp>,
    /// A link that people can open, from `api.run_url`.
    pub url: Option<String>,
}

/// A [`RunSummary`] as it is stored; earlier versions knew one provider.
#[derive(Deserialize)]
struct StoredRun {
    #[serde(default = "ProviderName::crewship")]
    provider: ProviderName,
    id: String,
    version_id: Option<String>,
    deployment_id: Option<String>,
    #[serde(default)]
    project: Option<String>,
    status: Option<String>,
    #[serde(default)]
    state: Option<RunState>,
    #[serde(default)]
    attempt: Option<u64>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    group: Option<String>,
    input: Option<JsonText>,
    output: Option<JsonText>,
    error_message: Option<String>,
    created_at: Option<Timestamp>,
    started_at: Option<Timestamp>,
    completed_at: Option<Timestamp>,
    url: Option<String>,
}

impl TryFrom<StoredRun> for RunSummary {
    type Error = InvalidId;

    fn try_from(stored: StoredRun) -> Result<Self, InvalidId> {
        Ok(Self {
            id: RunRef::of(&stored.provider, &stored.id)?,
            provider: stored.provider,
            version_id: stored.version_id,
            deployment_id: stored.deployment_id,
            project: stored.project,
            status: stored.status,
            state: stored.state,
            attempt: stored.attempt,
            name: stored.name,
            group: stored.group,
            input: stored.input,
            output: stored.output,
            error_message: stored.error_message,
            created_at: stored.created_at,
            started_at: stored.started_at,
            completed_at: stored.completed_at,
            url: stored.url,
        })
    }
}

fn id_only<S: serde::Serializer>(run: &RunRef, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(run.id())
}

/// The watch as an event shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WatchSummary {
    /// The name for people.
    pub name: Option<String>,
    /// Labels.
    pub labels: Labels,
    /// When the watch was added.
    #[serde(serialize_with = "milliseconds")]
    pub added_at: Timestamp,
    /// How often the run was polled.
    pub polls: u64,
    /// Whether the run ended while no process watched it.
    pub late: bool,
}

/// The data of an `api.*` event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderNotice {
    /// The provider. Crewship in events of earlier versions.
    #[serde(default = "ProviderName::crewship")]
    pub provider: ProviderName,
    /// What happened, for people. No secrets.
    pub message: String,
    /// Since when.
    #[serde(serialize_with = "milliseconds")]
    pub since: Timestamp,
    /// The sink that could not be reached, where the event goes to its fallback. Absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback_for: Option<SinkName>,
}

/// The data of `sink.disabled`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkNotice {
    /// The sink's name.
    pub sink: SinkName,
    /// Why, for people. No secrets.
    pub message: String,
    /// The sink that could not be reached, where the event goes to its fallback. Absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback_for: Option<SinkName>,
}

fn milliseconds<S: serde::Serializer>(
    timestamp: &Timestamp,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{timestamp:.3}"))
}

impl Event {
    /// The event as one line of JSON, whole.
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct Wire<'a, D> {
            r#type: EventType,
            #[serde(serialize_with = "milliseconds")]
            timestamp: Timestamp,
            data: &'a D,
        }
        let (event_type, timestamp) = (self.event_type, self.timestamp);
        let json = match &self.data {
            EventData::Run(data) => serde_json::to_string(&Wire {
                r#type: event_type,
                timestamp,
                data,
            }),
            EventData::Group(data) => serde_json::to_string(&Wire {
                r#type: event_type,
                timestamp,
                data,
            }),
            EventData::Provider(data) => serde_json::to_string(&Wire {
                r#type: event_type,
                timestamp,
                data,
            }),
            EventData::Sink(data) => serde_json::to_string(&Wire {
                r#type: event_type,
                timestamp,
                data,
            }),
        };
        json.expect("an event has only text keys and no failing serializer")
    }

    /// Reads back the JSON of [`Event::to_json`].
    ///
    /// # Errors
    /// When the text is not such JSON.
    pub fn from_json(json: &str) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Wire<'a> {
            r#type: EventType,
            timestamp: Timestamp,
            #[serde(borrow)]
            data: &'a RawValue,
        }
        let wire: Wire<'_> = serde_json::from_str(json)?;
        let data = match wire.r#type {
            EventType::ApiUnreachable | EventType::ApiUnauthorized | EventType::ApiRecovered => {
                EventData::Provider(serde_json::from_str(wire.data.get())?)
            }
            EventType::GroupFinished | EventType::RunDigest => {
                EventData::Group(serde_json::from_str(wire.data.get())?)
            }
            EventType::SinkDisabled => EventData::Sink(serde_json::from_str(wire.data.get())?),
            EventType::RunSucceeded
            | EventType::RunFailed
            | EventType::RunCanceled
            | EventType::RunSkipped
            | EventType::WatchNotFound
            | EventType::WatchUnreachable
            | EventType::WatchTimedOut
            | EventType::RunStarted
            | EventType::RunWaiting
            | EventType::WatchOverdue
            | EventType::SinkTest => EventData::Run(serde_json::from_str(wire.data.get())?),
        };
        Ok(Self {
            event_type: wire.r#type,
            timestamp: wire.timestamp,
            data,
        })
    }

    /// The data of an event about a run.
    pub fn run(&self) -> Option<&RunEvent> {
        match &self.data {
            EventData::Run(data) => Some(data),
            EventData::Group(_) | EventData::Provider(_) | EventData::Sink(_) => None,
        }
    }

    /// The data of an event about a run, to be changed.
    pub fn run_mut(&mut self) -> Option<&mut RunEvent> {
        match &mut self.data {
            EventData::Run(data) => Some(data),
            EventData::Group(_) | EventData::Provider(_) | EventData::Sink(_) => None,
        }
    }

    /// The data of an event about several runs.
    pub fn group(&self) -> Option<&GroupEvent> {
        match &self.data {
            EventData::Group(data) => Some(data),
            EventData::Run(_) | EventData::Provider(_) | EventData::Sink(_) => None,
        }
    }

    /// Whether quiet hours may hold it. What is or may become a failure goes out at once.
    pub fn can_wait(&self) -> bool {
        match self.event_type {
            EventType::RunSucceeded
            | EventType::RunCanceled
            | EventType::RunSkipped
            | EventType::RunStarted
            | EventType::RunWaiting
            | EventType::ApiRecovered => true,
            EventType::GroupFinished | EventType::RunDigest => self.group().is_some_and(|group| {
                let mut types = group.counts().map(|(verdict, _)| verdict.event_type());
                let is_failure = |event_type| {
                    !matches!(
                        event_type,
                        EventType::RunSucceeded | EventType::RunCanceled | EventType::RunSkipped
                    )
                };
                group.missing == 0 && !types.any(is_failure)
            }),
            EventType::RunFailed
            | EventType::WatchNotFound
            | EventType::WatchUnreachable
            | EventType::WatchTimedOut
            | EventType::WatchOverdue
            | EventType::ApiUnreachable
            | EventType::ApiUnauthorized
            | EventType::SinkDisabled
            | EventType::SinkTest => false,
        }
    }

    /// The data of an event about an API.
    pub fn provider(&self) -> Option<&ProviderNotice> {
        match &self.data {
            EventData::Provider(notice) => Some(notice),
            EventData::Run(_) | EventData::Group(_) | EventData::Sink(_) => None,
        }
    }

    /// The sink that could not be reached, where the event goes to its fallback.
    pub fn fallback_for(&self) -> Option<&SinkName> {
        match &self.data {
            EventData::Run(data) => data.fallback_for.as_ref(),
            EventData::Group(data) => data.fallback_for.as_ref(),
            EventData::Provider(notice) => notice.fallback_for.as_ref(),
            EventData::Sink(notice) => notice.fallback_for.as_ref(),
        }
    }

    /// Notes the sink that could not be reached, if the event goes to its fallback.
    pub fn set_fallback_for(&mut self, sink: Option<SinkName>) {
        match &mut self.data {
            EventData::Run(data) => data.fallback_for = sink,
            EventData::Group(data) => data.fallback_for = sink,
            EventData::Provider(notice) => notice.fallback_for = sink,
            EventData::Sink(notice) => notice.fallback_for = sink,
        }
    }

    /// The run that the event is about, if it is about one.
    pub fn run_id(&self) -> Option<&RunRef> {
        self.run().map(|data| &data.run.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_an_event_are_those_of_its_input_and_output() {
        let mut event = Event::sample("2024-01-15T10:35:05.412Z".parse().unwrap());
        let text = |n: usize| JsonText::new(format!("{:?}", "x".repeat(n))).unwrap();
        let data = event.run_mut().unwrap();
        data.run.input = Some(text(10));
        data.run.output = Some(text(100));
        data.run.error_message = Some("\n".repeat(1000));
        // With the quotes around each.
        assert_eq!(event.run().unwrap().bytes(), 12 + 102);
        assert_eq!(event.run_id(), Some(&event.run().unwrap().run.id));
    }

    #[test]
    fn every_type_reads_back_from_its_word() {
        for event_type in EventType::ALL {
            assert_eq!(EventType::from_word(event_type.as_str()), Some(event_type));
            assert_eq!(event_type.to_string(), event_type.as_str());
            assert_eq!(
                serde_json::to_string(&event_type).unwrap(),
                format!("{:?}", event_type.as_str())
            );
        }
    }
}
