//! Sample events, by which people try sinks and templates.

use jiff::{SignedDuration, Timestamp};

use super::event::{
    Event, EventData, EventType, ProviderNotice, RunEvent, RunSummary, SinkNotice, WatchSummary,
};
use super::{
    GroupEvent, GroupMember, JsonText, Labels, ProviderName, RunRef, RunState, SinkName, Timing,
    Verdict,
};

/// How long the run of a sample went on, in milliseconds.
const RAN_MS: u64 = 42_000;

/// How long runs of its group usually take, in milliseconds.
const USUAL_MS: u64 = 44_000;

impl Event {
    /// The sample that `sinks test` sends: about a run that does not exist, marked as a test by its
    /// type and its name.
    pub fn sample(now: Timestamp) -> Self {
        let run = RunSummary {
            provider: ProviderName::crewship(),
            state: None,
            attempt: None,
            name: None,
            group: None,
            id: RunRef::new("run_test").expect("a valid ID"),
            version_id: None,
            deployment_id: None,
            project: None,
            status: Some("succeeded".to_owned()),
            input: None,
            output: None,
            error_message: None,
            created_at: None,
            started_at: None,
            completed_at: None,
            url: None,
        };
        let watch = WatchSummary {
            name: Some("runwatch test message".to_owned()),
            labels: Labels::new(),
            added_at: now,
            polls: 0,
            late: false,
        };
        let data = RunEvent {
            run,
            watch,
            timing: Timing::default(),
            reason: None,
            truncated: Vec::new(),
            fallback_for: None,
        };
        Self {
            event_type: EventType::SinkTest,
            timestamp: now,
            data: EventData::Run(Box::new(data)),
        }
    }

    /// A sample of an event of this type, with everything in it that such an event may have.
    pub fn sample_of(event_type: EventType, now: Timestamp) -> Self {
        let mut event = Self::sample(now);
        event.event_type = event_type;
        match event_type {
            EventType::SinkTest => {}
            EventType::ApiUnreachable | EventType::ApiUnauthorized | EventType::ApiRecovered => {
                event.data = EventData::Provider(ProviderNotice {
                    provider: ProviderName::crewship(),
                    message: if event_type == EventType::ApiUnauthorized {
                        "401 Unauthorized".to_owned()
                    } else {
                        "503 Service Unavailable".to_owned()
                    },
                    since: before(now, RAN_MS),
                    fallback_for: None,
                });
            }
            EventType::GroupFinished => {
                event.data =
                    EventData::Group(Box::new(GroupEvent::of("nightly", &sample_members(), 0)));
            }
            EventType::RunDigest => {
                let sink = SinkName::new("ops").expect("a valid name");
                event.data =
                    EventData::Group(Box::new(GroupEvent::digest(&sink, &sample_members())));
            }
            EventType::SinkDisabled => {
                event.data = EventData::Sink(SinkNotice {
                    sink: SinkName::new("ops").expect("a valid name"),
                    message: "410 Gone".to_owned(),
                    fallback_for: None,
                });
            }
            EventType::RunSucceeded
            | EventType::RunFailed
            | EventType::RunCanceled
            | EventType::RunSkipped
            | EventType::WatchNotFound
            | EventType::WatchUnreachable
            | EventType::WatchTimedOut
            | EventType::RunStarted
            | EventType::RunWaiting
            | EventType::WatchOverdue => {
                event.data = EventData::Run(Box::new(sample_run(event_type, now)));
            }
        }
        event
    }
}

/// The watches of a sample about several runs.
fn sample_members() -> [GroupMember; 3] {
    let verdicts = [
        ("run_sample", Some("nightly report"), Verdict::Succeeded),
        ("run_other", None, Verdict::Failed),
        ("run_third", None, Verdict::Succeeded),
    ];
    let member = |(id, name, verdict): (&str, Option<&str>, Verdict)| GroupMember {
        run_id: RunRef::new(id).expect("a valid ID"),
        name: name.map(ToOwned::to_owned),
        labels: Labels::new(),
        sinks: None,
        verdict,
        size: None,
    };
    verdicts.map(member)
}

/// The data of a sample about a run.
fn sample_run(event_type: EventType, now: Timestamp) -> RunEvent {
    let state = state_of(event_type);
    let has_ended = matches!(
        state,
        Some(RunState::Succeeded | RunState::Failed | RunState::Canceled | RunState::Skipped)
    );
    // Providers seldom have fractions of seconds.
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let json = |text: &str| Some(JsonText::new(text.to_owned()).expect("JSON"));
    let started = before(now, RAN_MS);
    let run = RunSummary {
        provider: ProviderName::crewship(),
        id: RunRef::new("run_sample").expect("a valid ID"),
        version_id: Some("ver_sample".to_owned()),
        deployment_id: Some("dep_sample".to_owned()),
        project: None,
        status: state.map(|state| state.as_str().to_owned()),
        state,
        attempt: None,
        name: None,
        group: Some("dep_sample".to_owned()),
        input: json(r#"{"topic":"AI agents"}"#),
        output: (event_type == EventType::RunSucceeded)
            .then(|| json(r#"{"result":"a report"}"#))
            .flatten(),
        error_message: (event_type == EventType::RunFailed)
            .then(|| "OpenAI API rate limit exceeded".to_owned()),
        created_at: Some(started),
        started_at: Some(started),
        completed_at: has_ended.then_some(now),
        url: Some("https://example.com/runs/run_sample".to_owned()),
    };
    let reason = match event_type.verdict() {
        Some(Verdict::Unreachable) => Some("the API answered 503 Service Unavailable"),
        Some(Verdict::NotFound) => Some("the API answered 404 Not Found"),
        Some(
            Verdict::Succeeded
            | Verdict::Failed
            | Verdict::Canceled
            | Verdict::Skipped
            | Verdict::TimedOut,
        )
        | None => None,
    };
    RunEvent {
        run,
        watch: WatchSummary {
            name: Some("nightly report".to_owned()),
            labels: Labels::from([("team".to_owned(), "search".to_owned())]),
            added_at: started,
            polls: 7,
            late: false,
        },
        timing: Timing {
            queued_ms: Some(0),
            ran_ms: has_ended.then_some(RAN_MS),
            detected_after_ms: has_ended.then_some(412),
            usual_ms: Some(USUAL_MS),
            usual_p10_ms: Some(USUAL_MS - 400),
            usual_p90_ms: Some(USUAL_MS + 1_000),
        },
        reason: reason.map(ToOwned::to_owned),
        truncated: Vec::new(),
        fallback_for: None,
    }
}

/// The state of a run that has such an event.
fn state_of(event_type: EventType) -> Option<RunState> {
    match event_type {
        EventType::RunSucceeded => Some(RunState::Succeeded),
        EventType::RunFailed => Some(RunState::Failed),
        EventType::RunCanceled => Some(RunState::Canceled),
        EventType::RunSkipped => Some(RunState::Skipped),
        EventType::RunWaiting => Some(RunState::Waiting),
        EventType::RunStarted | EventType::WatchOverdue | EventType::WatchTimedOut => {
            Some(RunState::Running)
        }
        EventType::WatchNotFound
        | EventType::WatchUnreachable
        | EventType::GroupFinished
        | EventType::RunDigest
        | EventType::ApiUnreachable
        | EventType::ApiUnauthorized
        | EventType::ApiRecovered
        | EventType::SinkDisabled
        | EventType::SinkTest => None,
    }
}

fn before(now: Timestamp, milliseconds: u64) -> Timestamp {
    let span = SignedDuration::from_millis(milliseconds.try_into().unwrap_or(i64::MAX));
    now.checked_sub(span).unwrap_or(Timestamp::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_of_each_type_reads_back_as_it_is() {
        let now = "2024-01-15T10:35:05.412Z".parse().unwrap();
        for event_type in EventType::ALL {
            let event = Event::sample_of(event_type, now);
            let read = Event::from_json(&event.to_json()).unwrap();
            assert_eq!(read.to_json(), event.to_json());
            assert_eq!(read.event_type, event_type);
        }
    }
}
