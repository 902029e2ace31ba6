//! The body of a webhook, byte by byte, for the examples of the API's documentation.

use jiff::Timestamp;
use runwatch::simulator::Script;

use super::{body, receiver, webhook};
use crate::support::{Program, api};

const RUNNING: &str = include_str!("../../data/running.json");
const SUCCEEDED: &str = include_str!("../../data/succeeded.json");
const FAILED: &str = include_str!("../../data/failed.json");

/// What the message about a documented example has: `type`, `status`, `output` and the following, `late` and `ran_ms`.
struct MessageParts {
    event_type: &'static str,
    status: &'static str,
    output: &'static str,
    error_message: &'static str,
    completed_at: &'static str,
    late: bool,
    ran_ms: &'static str,
}

async fn check(example: &str, code: i32, parts: &MessageParts) {
    for answer in [example.to_owned(), format!("{{\"data\":{example}}}")] {
        let receiver = receiver([]).await;
        let simulator = api([("run_xyz789abc", Script::succeeds().verbatim(answer))]).await;
        let program = Program::with(&simulator).configured(&webhook("hook", &receiver.url(), ""));
        let ended = program
            .run(&["wait", "run_xyz789abc", "--timeout", "500ms", "--json"])
            .await;
        assert_eq!(ended.code, Some(code), "{ended:?}");
        let got = &receiver.requests()[0];
        let json = body(got);
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let (timestamp, added_at) = (
            text(&json["timestamp"]),
            text(&json["data"]["watch"]["added_at"]),
        );
        let detected_after = &json["data"]["timing"]["detected_after_ms"];
        let MessageParts {
            event_type,
            status,
            output,
            error_message,
            completed_at,
            late,
            ran_ms,
        } = parts;
        let polls = simulator.requests().len();
        let data = format!(
            r#"{{"run":{{"provider":"crewship","id":"run_xyz789abc","version_id":"ver_abc123xyz","deployment_id":"dep_abc123xyz","status":"{status}","state":"{status}","attempt":null,"name":null,"group":"dep_abc123xyz","input":{{"topic": "AI agents"}},"output":{output},"error_message":{error_message},"created_at":"2024-01-15T10:35:00Z","started_at":"2024-01-15T10:35:02Z","completed_at":{completed_at},"url":null}},"watch":{{"name":null,"labels":{{}},"added_at":"{added_at}","polls":{polls},"late":{late}}},"timing":{{"queued_ms":2000,"ran_ms":{ran_ms},"detected_after_ms":{detected_after},"usual_ms":null,"usual_p10_ms":null,"usual_p90_ms":null}}}}"#
        );
        let expected =
            format!(r#"{{"type":"{event_type}","timestamp":"{timestamp}","data":{data}}}"#);
        assert_eq!(String::from_utf8_lossy(&got.body), expected);
        let verdict = event_type.split_once('.').unwrap().1;
        let line = format!(
            "{{\"provider\":\"crewship\",\"run_id\":\"run_xyz789abc\",\"verdict\":\"{verdict}\",\"data\":{data}}}\n"
        );
        assert_eq!(
            ended.stdout, line,
            "the final line of `wait` carries the same data"
        );

        let (told_at, asked_at): (Timestamp, Timestamp) =
            (timestamp.parse().unwrap(), added_at.parse().unwrap());
        assert!(asked_at <= told_at && told_at <= Timestamp::now());
        for time in [&timestamp, &added_at] {
            assert_eq!(
                time.len(),
                "2024-01-15T10:35:05.412Z".len(),
                "milliseconds, always: {time}"
            );
        }
        let completed: Option<Timestamp> = serde_json::from_str(completed_at).unwrap();
        let since_end = completed.map(|end| told_at.as_millisecond() - end.as_millisecond());
        assert_eq!(detected_after.as_i64(), since_end);
    }
}

#[tokio::test]
async fn of_the_run_that_succeeded() {
    let parts = MessageParts {
        event_type: "run.succeeded",
        status: "succeeded",
        output: r#"{"result": "Generated report about AI agents..."}"#,
        error_message: "null",
        completed_at: r#""2024-01-15T10:35:47Z""#,
        late: true,
        ran_ms: "45000",
    };
    check(SUCCEEDED, 0, &parts).await;
}

#[tokio::test]
async fn of_the_run_that_failed() {
    let parts = MessageParts {
        event_type: "run.failed",
        status: "failed",
        output: "null",
        error_message: r#""OpenAI API rate limit exceeded""#,
        completed_at: r#""2024-01-15T10:35:05Z""#,
        late: true,
        ran_ms: "3000",
    };
    check(FAILED, 1, &parts).await;
}

#[tokio::test]
async fn of_the_run_that_is_still_running() {
    let parts = MessageParts {
        event_type: "watch.timed_out",
        status: "running",
        output: "null",
        error_message: "null",
        completed_at: "null",
        late: false,
        ran_ms: "null",
    };
    check(RUNNING, 124, &parts).await;
}
