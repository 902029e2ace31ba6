//! Headers that make a webhook a CloudEvent.

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use super::Message;
use crate::domain::{EventData, MessageScope, TraceContext};

/// What is encoded in the value of a header (CloudEvents, HTTP Protocol Binding 1.0.2, section 3.1.3.2), besides all that
/// is not ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// The attributes of an event in binary content mode (CloudEvents 1.0.2, "Context Attributes"). `source` and `id` together
/// identify an event; the ID is that of the delivery, which is the same on every attempt. The trace is that of the request
/// for the watch, with which the event began (CloudEvents, Distributed Tracing extension, "Using the Distributed Tracing
/// Extension"): with no hop in between it must be the one that the headers of HTTP name.
pub(super) fn headers(message: &Message<'_>) -> HeaderMap {
    let event = message.event;
    let (source, subject) = match &event.data {
        EventData::Run(data) => (providers(data.run.provider.as_str()), data.run.id.id()),
        EventData::Provider(notice) => {
            let provider = notice.provider.as_str();
            (providers(provider), provider)
        }
        EventData::Group(data) => {
            let source = match &data.scope {
                MessageScope::Group(_) => "/runwatch/groups",
                MessageScope::Sink(_) => "/runwatch/sinks",
            };
            (source.to_owned(), data.scope.name())
        }
        EventData::Sink(notice) => ("/runwatch/sinks".to_owned(), notice.sink.as_str()),
    };
    let attributes = [
        ("ce-specversion", Some("1.0".to_owned())),
        ("ce-id", Some(message.delivery.to_string())),
        ("ce-source", Some(source)),
        ("ce-type", Some(event.event_type.to_string())),
        ("ce-time", Some(format!("{:.3}", event.timestamp))),
        ("ce-subject", Some(subject.to_owned())),
        (
            "ce-traceparent",
            message.trace.map(|trace| trace.parent().to_owned()),
        ),
        (
            "ce-tracestate",
            message
                .trace
                .and_then(TraceContext::state)
                .map(str::to_owned),
        ),
    ];
    let header = |(name, value): (&'static str, Option<String>)| {
        let value = utf8_percent_encode(&value?, ENCODED).to_string();
        let value = HeaderValue::try_from(value).expect("visible ASCII characters");
        Some((HeaderName::from_static(name), value))
    };
    attributes.into_iter().filter_map(header).collect()
}

/// The source of events about a provider and its runs.
fn providers(name: &str) -> String {
    format!("/runwatch/providers/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{DeliveryId, Event, EventType, ProviderName, RunRef, SinkName};

    fn of(event: &Event) -> Vec<String> {
        let (delivery, sink) = (
            DeliveryId::new("msg_1").unwrap(),
            SinkName::new("ops").unwrap(),
        );
        let message = Message {
            delivery: &delivery,
            sink: &sink,
            attempt: 1,
            event,
            trace: None,
            now: event.timestamp,
        };
        let headers = headers(&message);
        let names = ["ce-id", "ce-source", "ce-type", "ce-time", "ce-subject"];
        names
            .map(|name| headers[name].to_str().unwrap().to_owned())
            .into()
    }

    #[test]
    fn every_event_has_a_source_and_a_subject() {
        let now = "2024-01-15T10:35:05.412Z".parse().unwrap();
        let time = "2024-01-15T10:35:05.412Z";
        for (event_type, source, subject) in [
            (
                EventType::RunFailed,
                "/runwatch/providers/crewship",
                "run_sample",
            ),
            (
                EventType::ApiUnreachable,
                "/runwatch/providers/crewship",
                "crewship",
            ),
            (EventType::GroupFinished, "/runwatch/groups", "nightly"),
            (EventType::RunDigest, "/runwatch/sinks", "ops"),
            (EventType::SinkDisabled, "/runwatch/sinks", "ops"),
        ] {
            let event = Event::sample_of(event_type, now);
            assert_eq!(
                of(&event),
                ["msg_1", source, event_type.as_str(), time, subject]
            );
        }
    }

    #[test]
    fn a_subject_is_encoded_as_the_binding_requires() {
        // The specification's own example of an encoded value: "Euro € 😀".
        let id = "Euro € 😀/\"100%\"";
        let mut event = Event::sample("2024-01-15T10:35:05Z".parse().unwrap());
        let EventData::Run(data) = &mut event.data else {
            panic!("a sample is about a run")
        };
        data.run.id = RunRef::of(&ProviderName::new("airflow").unwrap(), id).unwrap();
        assert_eq!(
            of(&event)[4],
            "Euro%20%E2%82%AC%20%F0%9F%98%80/%22100%25%22"
        );
    }
}
