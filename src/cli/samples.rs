//! Watches and deliveries for the tests of what people see.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::control::{DeliveryResponse, PollingList, WatchResponse};

/// The time at which the samples are shown.
pub(super) fn now() -> Timestamp {
    "2026-11-27T09:02:00Z".parse().unwrap()
}

fn watch(run_id: &str, name: Option<&str>, added_at: &str, more: Value) -> WatchResponse {
    let mut watch = json!({
        "run_id": run_id, "name": name, "labels": {}, "sinks": null, "state": "active", "status": null,
        "verdict": null, "found_by": null, "added_at": added_at, "deadline_at": "2026-11-28T09:00:00Z",
        "finished_at": null, "polls": 0, "missing_since": null, "last_error": null, "polling": false,
        "next_poll_at": null,
    });
    let known = watch.as_object_mut().unwrap();
    known.extend(more.as_object().unwrap().clone());
    serde_json::from_value(watch).unwrap()
}

/// Watches in several states, the newest first.
pub(super) fn watches() -> Vec<WatchResponse> {
    vec![
        watch(
            "run_demo_outreach",
            Some("outreach mails to the customers of last year, in four languages"),
            "2026-11-27T09:01:13Z",
            json!({"status": "running", "run_state": "running", "polls": 12, "next_poll_at": "2026-11-27T09:02:03Z",
                   "group": "dep_outreach", "started_at": "2026-11-27T09:01:14Z",
                   "usual_ms": 67_000, "usual_p10_ms": 60_000, "usual_p90_ms": 68_000}),
        ),
        watch(
            "run_01234567_89abcdef_198",
            Some("週次レポート"),
            "2026-11-27T06:54:00Z",
            json!({
                "status": "running", "polls": 1204, "polling": true,
                "last_error": {"at": "2026-11-27T08:58:00Z", "message": "no connection: client error (Connect): tcp connect error: Connection refused (os error 111)"},
            }),
        ),
        watch(
            "run_demo_late",
            None,
            "2026-11-27T09:01:59Z",
            json!({"missing_since": "2026-11-27T09:01:59Z", "polls": 1, "next_poll_at": "2026-11-27T09:02:00Z"}),
        ),
        failed(),
        watch(
            "run_demo_report",
            Some("weekly report"),
            "2026-11-27T08:58:46Z",
            json!({"state": "finished", "verdict": "succeeded", "status": "succeeded", "polls": 9,
                   "finished_at": "2026-11-27T09:01:59.500Z"}),
        ),
    ]
}

/// How polls go: half of the budget is used.
pub(super) fn polling() -> PollingList {
    serde_json::from_value(json!({"providers": [{
        "provider": "crewship", "watches": 3, "requests_last_minute": 31, "requests_per_minute": 60, "outage": null,
        "outage_message": null, "next_request_at": null, "reached": true,
    }]}))
    .unwrap()
}

fn delivery(id: &str, sink: &str, event: &str, state: &str, more: Value) -> DeliveryResponse {
    let mut delivery = json!({
        "id": id, "sink": sink, "run_id": "run_demo_research", "event": event, "state": state, "attempts": 1, "most_attempts": 8,
        "created_at": "2026-11-27T08:58:55Z", "next_attempt_at": null, "ended_at": null, "last_result": null,
    });
    let known = delivery.as_object_mut().unwrap();
    known.extend(more.as_object().unwrap().clone());
    serde_json::from_value(delivery).unwrap()
}

/// Deliveries in several states, the newest first.
pub(super) fn deliveries() -> Vec<DeliveryResponse> {
    let refused = "no connection: client error (Connect): tcp connect error: Connection refused (os error 111)";
    let attempt = |attempt: u32, at: &str, delivered: bool, result: &str| json!({"attempt": attempt, "at": at, "took_ms": 3, "delivered": delivered, "result": result});
    vec![
        delivery(
            "msg_01a21bcccaa870459cf46039cfe2efa6",
            "away",
            "run.failed",
            "pending",
            json!({
                "attempts": 3, "next_attempt_at": "2026-11-27T09:06:00Z", "last_result": refused,
                "attempt_log": [
                    attempt(1, "2026-11-27T08:58:55Z", false, refused),
                    attempt(2, "2026-11-27T08:59:00Z", false, "503 Service Unavailable: the queue is full; try again in a few minutes, or ask the operators"),
                    attempt(3, "2026-11-27T09:01:00Z", false, refused),
                ],
            }),
        ),
        delivery(
            "msg_01a21bcccaa8712f8e1c2b3a4d5e6f70",
            "operations-on-call",
            "run.failed",
            "delivered",
            json!({
                "ended_at": "2026-11-27T08:58:55Z", "last_result": "204 No Content",
                "attempt_log": [attempt(1, "2026-11-27T08:58:55Z", true, "204 No Content")],
            }),
        ),
        delivery(
            "msg_01a21bccb00170aa8e1c2b3a4d5e6f70",
            "chat",
            "run.failed",
            "dead",
            json!({
                "attempts": 8, "ended_at": "2026-11-27T09:01:59Z", "last_result": "404 Not Found",
                "attempt_log": [attempt(8, "2026-11-27T09:01:59Z", false, "404 Not Found")],
            }),
        ),
        delivery(
            "msg_01a21bccb00270aa8e1c2b3a4d5e6f70",
            "chat",
            "group.finished",
            "delivered",
            json!({"run_id": null, "group": "nightly", "ended_at": "2026-11-27T09:01:59Z", "last_result": "204 No Content"}),
        ),
        delivery(
            "msg_01a21bccb00370aa8e1c2b3a4d5e6f70",
            "audit",
            "api.recovered",
            "pending",
            json!({"attempts": 0, "run_id": null, "next_attempt_at": "2026-11-27T09:02:00Z", "created_at": "2026-11-27T09:02:00Z"}),
        ),
    ]
}

/// A watch that failed, with all that is known of it.
pub(super) fn failed() -> WatchResponse {
    let data = json!({
        "run": {
            "id": "run_demo_research", "version_id": null, "deployment_id": "dep_abc123xyz", "status": "failed",
            "input": null, "output": null,
            "error_message": "OpenAI API rate limit exceeded for the organization org-1234567890 on tokens per minute: limit 30000, used 29984",
            "created_at": "2026-11-27T08:58:47Z", "started_at": "2026-11-27T08:58:48Z",
            "completed_at": "2026-11-27T08:58:55Z", "url": "https://console.example.com/projects/search/runs/run_demo_research",
        },
        "watch": {"name": "market research", "labels": {"team": "sales"}, "added_at": "2026-11-27T08:58:46Z", "polls": 9, "late": false},
        "timing": {"queued_ms": 1000, "ran_ms": 7000, "detected_after_ms": 12},
    });
    let events = [
        "run.succeeded",
        "run.failed",
        "run.canceled",
        "watch.not_found",
        "watch.unreachable",
        "watch.timed_out",
    ];
    let gets_all = |sink: &str| json!({"sink": sink, "events": events, "why_not": null});
    watch(
        "run_demo_research",
        Some("market research"),
        "2026-11-27T08:58:46Z",
        json!({
            "state": "finished", "verdict": "failed", "status": "failed", "polls": 9, "found_by": "stream",
            "labels": {"team": "sales"}, "finished_at": "2026-11-27T08:58:55.012Z",
            "group": "dep_abc123xyz", "usual_ms": 44_000, "usual_p10_ms": 41_000, "usual_p90_ms": 52_000,
            "history": [
                {"at": "2026-11-27T08:58:47Z", "status": "pending"},
                {"at": "2026-11-27T08:58:48Z", "status": "running"},
                {"at": "2026-11-27T08:58:55Z", "status": "failed"},
            ],
            "routing": [
                gets_all("operations-on-call"), gets_all("away"), gets_all("chat"),
                {"sink": "search", "events": [], "why_not": "the watch lacks the label team=search"},
                {"sink": "quiet", "events": ["run.succeeded"], "why_not": "its events leave out run.failed"},
            ],
            "deliveries": deliveries().into_iter().filter(|delivery| delivery.run_id.is_some()).collect::<Vec<_>>(),
            "data": data,
        }),
    )
}
