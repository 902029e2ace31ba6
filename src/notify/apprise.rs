//! The body for apprise-api, the server in front of the notification services that the Apprise library knows.

use reqwest::header::{ACCEPT, HeaderMap, HeaderValue};
use serde_json::json;

use super::body::MessageBody;
use super::summary::{self, Severity};
use crate::domain::{Event, EventType};

/// Fields of `POST /notify/{KEY}` and `POST /notify` (github.com/caronc/apprise-api, README, "API Details"). The server
/// rejects a message without a body, so one that is all title has it there. What it answers depends on `Accept`.
pub(super) fn body(event: &Event) -> MessageBody {
    let summary = summary::of(event);
    let mut lines = summary.lines;
    lines.extend(summary.url);
    let (title, body) = if lines.is_empty() {
        (String::new(), summary.title)
    } else {
        (summary.title, lines.join("\n"))
    };
    let message = json!({
        "title": title,
        "body": body,
        "type": notify_type(event.event_type, summary.weight),
        "format": "text",
    });
    MessageBody {
        content_type: "application/json",
        text: message.to_string(),
        headers: HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("application/json"))]),
    }
}

/// The kind of a notification (github.com/caronc/apprise, `NotifyType`): services choose a color or an icon by it.
fn notify_type(event_type: EventType, weight: Severity) -> &'static str {
    match event_type {
        EventType::GroupFinished | EventType::RunDigest if weight == Severity::Good => "success",
        EventType::GroupFinished | EventType::RunDigest => "failure",
        EventType::RunSucceeded | EventType::ApiRecovered => "success",
        EventType::RunFailed
        | EventType::WatchNotFound
        | EventType::WatchUnreachable
        | EventType::WatchTimedOut
        | EventType::ApiUnreachable
        | EventType::ApiUnauthorized
        | EventType::SinkDisabled => "failure",
        EventType::RunCanceled
        | EventType::RunSkipped
        | EventType::RunWaiting
        | EventType::WatchOverdue => "warning",
        EventType::RunStarted | EventType::SinkTest => "info",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::notify::summary::tests::event;

    fn of(event: &Event) -> Value {
        serde_json::from_str(&body(event).text).unwrap()
    }

    #[test]
    fn a_message_has_a_title_and_what_is_behind_it() {
        let failed = of(&event(EventType::RunFailed, Some("out of memory\nat 3")));
        assert_eq!(
            failed,
            json!({
                "title": "run_xyz789abc failed after 3s",
                "body": "out of memory\nat 3\nhttps://console.crewship.dev/runs/run_xyz789abc",
                "type": "failure",
                "format": "text",
            })
        );
    }

    #[test]
    fn no_message_is_without_a_body() {
        let mut bare = event(EventType::RunSucceeded, None);
        let data = bare.run_mut().expect("it is about a run");
        data.run.url = None;
        assert_eq!(
            of(&bare),
            json!({
                "title": "",
                "body": "run_xyz789abc succeeded after 3s",
                "type": "success",
                "format": "text",
            })
        );
    }
}
