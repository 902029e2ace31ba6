//! Webhooks: answers, retries, signatures of attempts, and sinks that must not hold others up.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use runwatch::app::Engine;
use runwatch::clock::Clock;
use runwatch::config::{Secret, Settings, SinkKind, SinkSettings, WebhookSettings};
use runwatch::domain::{EventFilter, Labels, RunRef, SinkName, Watch};
use runwatch::simulator::{Fault, Received, Script};
use runwatch::store::{DeliveryState, Location};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{body, closed_port, header, receiver, wait, webhook};
use crate::support::{PATIENCE, Program, api, finish, received};

const THREE_MORE: &str = r#"retry_schedule = ["50ms", "50ms", "50ms"]"#;

fn ids(received: &[Received]) -> HashSet<&str> {
    received
        .iter()
        .map(|received| header(received, "webhook-id"))
        .collect()
}

#[tokio::test]
async fn success_is_one_request() {
    let receiver = receiver([]).await;
    let ended = wait(
        Script::fails("no"),
        &webhook("hook", &receiver.url(), THREE_MORE),
        &[],
    )
    .await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(!ended.stderr.contains("warning"), "{ended:?}");
    let got = receiver.requests();
    assert_eq!(got.len(), 1);
    assert_eq!(header(&got[0], "content-type"), "application/json");
    assert_eq!(
        header(&got[0], "user-agent"),
        concat!("runwatch/", env!("CARGO_PKG_VERSION"))
    );
    assert!(header(&got[0], "webhook-id").starts_with("msg_"));
    assert!(
        !got[0].headers.contains_key("webhook-signature"),
        "there is no secret"
    );
    assert!(
        !format!("{got:?}").contains("simulated-key"),
        "the API key goes to the API only"
    );
}

#[tokio::test]
async fn a_redirect_is_a_failure_and_is_not_followed() {
    for code in [301, 302, 303, 307, 308] {
        let target = receiver([]).await;
        let receiver = receiver([Fault::status(code).with_header("location", &target.url())]).await;
        let sinks = webhook("hook", &receiver.url(), "retry_schedule = []");
        let ended = wait(Script::succeeds(), &sinks, &[]).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let warning = format!(
            "warning: run.succeeded of run_1 was not delivered to hook after 1 attempt: {code} "
        );
        assert!(ended.stderr.contains(&warning), "{ended:?}");
        assert!(
            ended.stderr.contains("(redirects are not followed)"),
            "{ended:?}"
        );
        assert_eq!(
            (receiver.requests().len(), target.requests().len()),
            (1, 0),
            "{code}"
        );
    }
}

#[tokio::test]
async fn what_fails_is_sent_again_under_the_same_id() {
    let faults = [500, 502, 503, 429, 404, 401, 400].map(Fault::status);
    for fault in faults
        .into_iter()
        .chain([Fault::Reset, Fault::status(429).with_retry_after("3600")])
    {
        let receiver = receiver([fault.clone(), fault.clone()]).await;
        let ended = wait(
            Script::fails("no"),
            &webhook("hook", &receiver.url(), THREE_MORE),
            &[],
        )
        .await;
        assert_eq!(ended.code, Some(1), "{fault:?}: {ended:?}");
        assert!(
            !ended.stderr.contains("not delivered"),
            "{fault:?}: {ended:?}"
        );
        let got = receiver.requests();
        assert_eq!((got.len(), ids(&got).len()), (3, 1), "{fault:?}");
        assert!(
            got.iter().all(|received| received.body == got[0].body),
            "{fault:?}"
        );
    }
}

#[tokio::test]
async fn each_attempt_carries_its_own_time() {
    let receiver = receiver([Fault::status(500)]).await;
    // At least 1.04 s with the spread, so that the second must have changed.
    let sinks = webhook("hook", &receiver.url(), r#"retry_schedule = ["1300ms"]"#);
    wait(Script::succeeds(), &sinks, &[]).await;
    let got = receiver.requests();
    let times: Vec<i64> = got
        .iter()
        .map(|got| header(got, "webhook-timestamp").parse().unwrap())
        .collect();
    assert!(times.len() == 2 && times[0] < times[1], "{times:?}");
    assert!(
        Timestamp::now().as_second() - times[1] < PATIENCE.as_secs().cast_signed(),
        "{times:?}"
    );
    assert_eq!(ids(&got).len(), 1);
}

#[tokio::test]
async fn attempts_end_with_the_schedule_and_the_rest_is_reported() {
    let (receiver, (_held, closed)) = (receiver(vec![Fault::status(500); 9]).await, closed_port());
    let schedule = r#"retry_schedule = ["50ms", "0s"]"#;
    let sinks = webhook("hook", &receiver.url(), schedule) + &webhook("gone", &closed, schedule);
    let ended = wait(Script::canceled(), &sinks, &[]).await;
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert_eq!(receiver.requests().len(), 3);
    for why in [
        "hook after 3 attempts: 500 Internal Server Error: ",
        "gone after 3 attempts: connection refused",
    ] {
        let warning = format!("warning: run.canceled of run_1 was not delivered to {why}");
        assert!(ended.stderr.contains(&warning), "{ended:?}");
    }
}

#[tokio::test]
async fn without_lingering_the_first_attempt_is_made_all_the_same() {
    let (good, bad) = (receiver([]).await, receiver([Fault::status(500)]).await);
    let sinks = webhook("good", &good.url(), "") + &webhook("bad", &bad.url(), "");
    let ended = wait(Script::fails("no"), &sinks, &["--linger", "0s"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert_eq!((good.requests().len(), bad.requests().len()), (1, 1));
    let warnings: Vec<_> = ended
        .stderr
        .lines()
        .filter(|line| line.starts_with("warning: "))
        .collect();
    assert_eq!(warnings.len(), 1, "{ended:?}");
    assert!(
        warnings[0].contains("was not delivered to bad after 1 attempt: 500 "),
        "{ended:?}"
    );
    assert!(
        warnings[0].contains("(the next attempt would be in "),
        "{ended:?}"
    );
    assert!(
        ended
            .stderr
            .contains("a longer --linger gives them more time"),
        "{ended:?}"
    );
}

#[tokio::test]
async fn a_receiver_that_hangs_delays_no_other_and_is_tried_again() {
    let (slow, fast) = (receiver([Fault::Hang]).await, receiver([]).await);
    let sinks = webhook("a_slow", &slow.url(), THREE_MORE) + &webhook("fast", &fast.url(), "");
    let simulator = api([("run_1", Script::fails("no"))]).await;
    let program = Program::with(&simulator).configured(&sinks);
    let mut child = program.command(&["wait", "run_1"]).spawn().unwrap();
    received(&slow, 1).await;
    let first = received(&fast, 1).await;
    assert!(
        child.try_wait().unwrap().is_none(),
        "it gives the slow one its time"
    );
    let ended = finish(child).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("no answer in time"), "{ended:?}");
    let got = slow.requests();
    assert_eq!(
        (got.len(), ids(&got).len(), fast.requests().len()),
        (2, 1, 1),
        "{ended:?}"
    );
    // An attempt may take 15 s; had the fast one waited for it, it would have come that much later.
    let later = first[0].at.saturating_duration_since(got[0].at);
    assert!(
        later < Duration::from_secs(10),
        "the fast one had its message {later:?} after the slow one"
    );
}

#[tokio::test]
async fn gone_disables_the_sink_and_tells_others() {
    let (hook, ops) = (
        receiver(vec![Fault::status(410); 9]).await,
        receiver([]).await,
    );
    let sinks = webhook("hook", &hook.url(), THREE_MORE)
        + &webhook("ops", &ops.url(), r#"events = ["sink.*"]"#);
    let simulator = api([
        ("run_1", Script::fails("no")),
        ("run_2", Script::runs_forever()),
    ])
    .await;
    let program = Program::with(&simulator).configured(&sinks);
    let child = program
        .command(&["wait", "run_1", "run_2"])
        .spawn()
        .unwrap();
    let messages = received(&ops, 1).await;
    assert_eq!(body(&messages[0])["type"], "sink.disabled");
    assert_eq!(body(&messages[0])["data"]["sink"], "hook");
    simulator.add_run(&RunRef::new("run_2").unwrap(), Script::succeeds());
    let ended = finish(child).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert_eq!(
        (hook.requests().len(), ops.requests().len()),
        (1, 1),
        "{ended:?}"
    );
    assert!(
        ended
            .stderr
            .contains("run.failed of run_1 was not delivered to hook after 1 attempt: 410 Gone")
    );
    assert!(ended.stderr.contains(
        "run.succeeded of run_2 was not delivered to hook after 1 attempt: not sent: 410"
    ));
}

#[tokio::test]
async fn gone_is_reported_once_when_several_attempts_meet_it() {
    let (hook, ops) = (
        receiver(vec![Fault::status(410); 9]).await,
        receiver([]).await,
    );
    let sinks = webhook("hook", &hook.url(), "")
        + &webhook("ops", &ops.url(), r#"events = ["sink.disabled"]"#);
    let runs = ["run_1", "run_2", "run_3", "run_4", "run_5"];
    let simulator = api(runs.map(|id| (id, Script::succeeds()))).await;
    let program = Program::with(&simulator).configured(&sinks);
    let ended = program.run(&[&["wait"] as &[_], &runs].concat()).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ops.requests().len(), 1, "{ended:?}");
    assert_eq!(
        ended.stderr.matches("was not delivered to hook").count(),
        runs.len(),
        "{ended:?}"
    );
}

/// When the next attempt is due after a first one that was answered with `fault`, at least and at most,
/// in milliseconds. 1000 s are planned.
async fn next_attempt_after(fault: Fault) -> (i64, i64) {
    let (simulator, receiver) = (
        api([("run_1", Script::succeeds())]).await,
        receiver([fault]).await,
    );
    let mut settings = Settings::default();
    settings.api.base_url = simulator.base_url();
    settings.api.key = Some(Secret::value(simulator.api_key()));
    let webhook = WebhookSettings::new(Secret::value(receiver.url()));
    let sink = SinkSettings {
        kind: SinkKind::Webhook(Box::new(webhook)),
        events: EventFilter::verdicts(),
        labels: Labels::new(),
        retry_schedule: vec![Duration::from_secs(1000)],
        fallback: None,
        one_per_group: false,
        digest: false,
        quiet: None,
        page: None,
    };
    settings.sinks.insert(SinkName::new("hook").unwrap(), sink);
    let began = Timestamp::now();
    let engine = Engine::start(&settings, Location::Memory, Clock::system())
        .await
        .unwrap();
    let watch = Watch {
        run_id: RunRef::new("run_1").unwrap(),
        name: None,
        labels: Labels::new(),
        sinks: None,
        added_at: began,
        deadline_at: Timestamp::MAX,
        trace: None,
    };
    engine
        .watches
        .add(watch, runwatch::scheduler::AddedBy::Request)
        .await
        .unwrap();
    let mut changed = engine.store.deliveries_changed();
    let attempted = async {
        loop {
            changed.mark_unchanged();
            let deliveries = engine
                .store
                .deliveries(runwatch::store::DeliveryFilter::default(), 10)
                .await
                .unwrap();
            if let Some(delivery) = deliveries
                .items
                .first()
                .filter(|delivery| delivery.last_detail.is_some())
            {
                assert_eq!(delivery.state, DeliveryState::Pending);
                return delivery.next_attempt_at.unwrap();
            }
            changed.changed().await.unwrap();
        }
    };
    let next_at = tokio::time::timeout(PATIENCE, attempted)
        .await
        .expect("an attempt is made");
    let milliseconds = |from: Timestamp| next_at.as_millisecond() - from.as_millisecond();
    let bounds = (milliseconds(Timestamp::now()), milliseconds(began));
    engine.stop(Duration::from_secs(1)).await;
    bounds
}

#[tokio::test]
async fn a_receiver_may_ask_for_up_to_twice_the_planned_wait() {
    let in_1500_s = std::time::SystemTime::now() + Duration::from_secs(1500);
    let date = httpdate::fmt_http_date(in_1500_s);
    for (code, requested, least, most) in [
        (429, "1500", 1500, 1500),
        (503, "1500", 1500, 1500),
        (503, &date, 1490, 1500),
        (429, "9000", 2000, 2000),
        (429, "10", 800, 1200),
        (429, "soon", 800, 1200),
        (500, "1500", 800, 1200),
    ] {
        let (at_least, at_most) =
            next_attempt_after(Fault::status(code).with_retry_after(requested)).await;
        let fits = at_most >= least * 1000 && at_least <= most * 1000;
        assert!(fits, "{code} {requested}: {at_least} to {at_most} ms");
    }
}

#[tokio::test]
async fn a_large_message_is_cut_below_20_kb_and_says_so() {
    let big = json!({ "text": "ß".repeat(15_000) });
    for (script, truncated) in [
        (Script::succeeds().output(big.clone()), json!(["output"])),
        (Script::succeeds().input(big.clone()), json!(["input"])),
        (
            Script::succeeds().input(big.clone()).output(big.clone()),
            json!(["input", "output"]),
        ),
        (
            Script::fails(&"\u{1}".repeat(20_000)),
            json!(["input", "error_message"]),
        ),
        (
            Script::succeeds().output(json!("x".repeat(15_000))),
            json!(null),
        ),
    ] {
        let receiver = receiver([]).await;
        wait(script, &webhook("hook", &receiver.url(), ""), &[]).await;
        let got = &receiver.requests()[0];
        assert!(got.body.len() < 20_000, "{}", got.body.len());
        let data = &body(got)["data"];
        assert_eq!(data["truncated"], truncated);
        assert_eq!(data["run"]["id"], "run_1");
        for field in ["input", "output"] {
            let left_out = truncated
                .as_array()
                .is_some_and(|fields| fields.contains(&json!(field)));
            assert!(
                !left_out || data["run"][field].is_null(),
                "{truncated}: {field}"
            );
        }
    }
}

/// Answers the first request of each connection, keeps it open, and closes it when the second request comes.
async fn serve_once(mut stream: TcpStream, got: Arc<Mutex<Vec<String>>>) {
    let mut text = Vec::new();
    loop {
        if stream.read_buf(&mut text).await.unwrap() == 0 {
            return;
        }
        let request = String::from_utf8_lossy(&text).into_owned();
        let Some((head, body)) = request.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .unwrap();
        if body.len() >= length.parse().unwrap() {
            got.lock().unwrap().push(
                head.lines()
                    .find(|line| line.starts_with("webhook-id"))
                    .unwrap()
                    .to_owned(),
            );
            break;
        }
    }
    stream
        .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
        .await
        .unwrap();
    drop(stream.read(&mut [0]).await);
}

#[tokio::test]
async fn a_connection_that_died_meanwhile_costs_no_attempt() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let got = Arc::new(Mutex::new(Vec::new()));
    let mut server = JoinSet::new();
    let received = Arc::clone(&got);
    server.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(serve_once(stream, Arc::clone(&received)));
        }
    });
    let after = |milliseconds| Script::succeeds().runs_for(Duration::from_millis(milliseconds));
    let simulator = api([
        ("run_1", after(0)),
        ("run_2", after(700)),
        ("run_3", after(1400)),
    ])
    .await;
    // Without a second attempt.
    let program =
        Program::with(&simulator).configured(&webhook("hook", &url, "retry_schedule = []"));
    let ended = program.run(&["wait", "run_1", "run_2", "run_3"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!ended.stderr.contains("not delivered"), "{ended:?}");
    assert_eq!(got.lock().unwrap().len(), 3, "{ended:?}");
}
