//! Traces: what the request for a watch names reaches the receivers.

use std::collections::BTreeMap;

use runwatch::domain::RunRef;
use runwatch::simulator::{Received, Script};
use serde_json::{Value, json};

use super::{body, receiver, webhook};
use crate::daemon::{json as shown, program, socket, start, stop, text};
use crate::support::{Program, api, http_client, received};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const OTHER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";

/// The values of some headers, `None` for those that are missing.
fn headers<const N: usize>(request: &Received, names: [&str; N]) -> [Option<String>; N] {
    names.map(|name| {
        let mut values = request.headers.get_all(name).iter();
        let value = values.next()?.to_str().unwrap().to_owned();
        assert_eq!(values.next(), None, "{name}");
        Some(value)
    })
}

#[tokio::test]
async fn the_trace_of_a_request_reaches_webhooks_after_a_restart() {
    // Each run with the headers of its request, and those that its messages have.
    let cases = [
        (
            "run_full",
            vec![
                ("TraceParent", PARENT),
                ("tracestate", "rojo=00f067aa0ba902b7"),
                ("tracestate", "congo= t61rcWkgMzE"),
            ],
            Some((PARENT, Some("rojo=00f067aa0ba902b7,congo= t61rcWkgMzE"))),
        ),
        (
            "run_later",
            vec![(
                "traceparent",
                "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-fc-more",
            )],
            Some((OTHER, None)),
        ),
        ("run_none", vec![("tracestate", "rojo=1")], None),
        (
            "run_bad",
            vec![("traceparent", "00-0-0-0"), ("tracestate", "rojo=1")],
            None,
        ),
        (
            "run_twice",
            vec![("traceparent", PARENT), ("traceparent", OTHER)],
            None,
        ),
    ];
    let simulator = api(cases
        .each_ref()
        .map(|(run, ..)| (*run, Script::runs_forever())))
    .await;
    let receiver = receiver([]).await;
    let events = webhook(
        "events",
        &receiver.url().replace("hook", "events"),
        "events = [\"run.*\"]\ncloudevents = true",
    );
    let program = program(&simulator, &receiver, &events);
    let daemon = start(&program).await;
    let http = http_client().unix_socket(socket(&program)).no_proxy();
    let http = http.build().unwrap();
    for (run, headers, wanted) in &cases {
        let request = http
            .post("http://localhost/v1/watches")
            .body(json!({ "run_id": run }).to_string());
        let add = |request: reqwest::RequestBuilder, (name, value): &(&str, &str)| {
            request.header(*name, *value)
        };
        let response = headers.iter().fold(request, add).send().await.unwrap();
        assert_eq!(response.status(), 201, "{run}");
        let answer: Value = serde_json::from_str(&text(response).await).unwrap();
        assert_eq!(answer["traceparent"], json!(wanted.map(|wanted| wanted.0)));
        assert_eq!(
            answer["tracestate"],
            json!(wanted.and_then(|wanted| wanted.1))
        );
    }
    received(&receiver, cases.len()).await;
    stop(daemon).await;

    let daemon = start(&program).await;
    for (run, ..) in &cases {
        simulator.add_run(&RunRef::new(run).unwrap(), Script::fails("no"));
    }
    let requests = received(&receiver, 3 * cases.len()).await;
    let mut got = BTreeMap::new();
    for request in &requests {
        let event = body(request);
        let run = event["data"]["run"]["id"].as_str().unwrap().to_owned();
        let event = event["type"].as_str().unwrap().to_owned();
        got.insert((run, request.path.clone(), event), request);
    }
    for (run, _, wanted) in &cases {
        let parent = wanted.map(|wanted| wanted.0.to_owned());
        let state = wanted.and_then(|wanted| wanted.1).map(str::to_owned);
        for (path, event) in [
            ("/events", "run.started"),
            ("/events", "run.failed"),
            ("/hook", "run.failed"),
        ] {
            let request = got[&((*run).to_owned(), path.to_owned(), event.to_owned())];
            let found = headers(request, ["traceparent", "tracestate"]);
            assert_eq!(
                found,
                [parent.clone(), state.clone()],
                "{run} {path} {event}"
            );
            let found = headers(request, ["ce-traceparent", "ce-tracestate"]);
            let wanted = match path {
                // A space in an attribute is encoded.
                "/events" => [
                    parent.clone(),
                    state.as_ref().map(|state| state.replace(' ', "%20")),
                ],
                _ => [None, None],
            };
            assert_eq!(found, wanted, "{run} {path} {event}");
        }
    }
    let full = shown(&program, &["show", "run_full"]).await;
    assert_eq!(full["traceparent"], PARENT, "{full}");
    let full = program.run(&["show", "run_full"]).await;
    assert!(
        full.stdout.contains(&format!("trace {TRACE_ID}")),
        "{full:?}"
    );
    let none = program.run(&["show", "run_none"]).await;
    assert!(!none.stdout.contains("trace "), "{none:?}");
    stop(daemon).await;
}

#[tokio::test]
async fn the_trace_of_a_command_reaches_its_watches() {
    let simulator = api([
        ("run_1", Script::fails("no")),
        ("run_2", Script::fails("no")),
    ])
    .await;
    let receiver = receiver([]).await;
    let program = program(&simulator, &receiver, "");
    let daemon = start(&program).await;
    let program = program
        .set("TRACEPARENT", PARENT)
        .set("TRACESTATE", "rojo=1");
    for arguments in [["add", "run_1", "-q"], ["wait", "run_2", "--daemon"]] {
        program.run(&arguments).await;
    }
    for request in received(&receiver, 2).await {
        let found = headers(&request, ["traceparent", "tracestate"]);
        assert_eq!(found, [Some(PARENT.to_owned()), Some("rojo=1".to_owned())]);
    }
    // A run that is watched already keeps the trace that it has, and a watch that follows has its own.
    let program = program.set("TRACEPARENT", OTHER).unset("TRACESTATE");
    let again = program.run(&["add", "run_1"]).await;
    assert_eq!(again.code, Some(0), "{again:?}");
    let known = shown(&program, &["show", "run_1"]).await;
    assert_eq!(known["traceparent"], PARENT, "{known}");
    let again = program.run(&["add", "run_1", "--again"]).await;
    assert_eq!(again.code, Some(0), "{again:?}");
    let requests = received(&receiver, 3).await;
    let found = headers(&requests[2], ["traceparent", "tracestate"]);
    assert_eq!(found, [Some(OTHER.to_owned()), None]);
    stop(daemon).await;
}

#[tokio::test]
async fn a_wait_passes_its_trace_to_every_kind_of_sink_that_has_a_place_for_it() {
    let simulator = api([("run_1", Script::fails("no"))]).await;
    let receiver = receiver([]).await;
    let sinks = webhook("hook", &receiver.url(), "")
        + "[sinks.program]\ntype = \"command\"\nargv = [\"/bin/sh\", \"-c\", \"env > environment\"]\n\
           [sinks.log]\ntype = \"log\"\n";
    let program = Program::with(&simulator)
        .configured(&sinks)
        .set("TRACEPARENT", PARENT);
    let ended = program
        .run(&["wait", "run_1", "--log-format", "json"])
        .await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let [parent] = headers(&receiver.requests()[0], ["traceparent"]);
    assert_eq!(parent.as_deref(), Some(PARENT));
    let environment = std::fs::read_to_string(program.home().join("environment")).unwrap();
    let line = format!("TRACEPARENT={PARENT}\n");
    assert!(environment.contains(&line), "{environment}");
    let field = format!("\"trace_id\":\"{TRACE_ID}\"");
    assert!(ended.stderr.contains(&field), "{ended:?}");

    let program = program.set("TRACEPARENT", "what").set("TRACESTATE", "a=1");
    let ended = program
        .run(&[
            "wait",
            "run_1",
            "--log-format",
            "json",
            "--log-level",
            "debug",
        ])
        .await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let remark = "TRACEPARENT is not valid, and is ignored";
    assert!(ended.stderr.contains(remark), "{ended:?}");
    assert!(!ended.stderr.contains("\"trace_id\""), "{ended:?}");
    let [parent] = headers(&receiver.requests()[1], ["traceparent"]);
    assert_eq!(parent, None);
}

#[tokio::test]
async fn a_sink_cannot_have_headers_of_a_trace() {
    let simulator = api([]).await;
    for name in ["traceparent", "TraceState"] {
        let sinks = webhook(
            "hook",
            "http://127.0.0.1:9/hook",
            &format!("headers = {{ {name} = \"x\" }}"),
        );
        let program = Program::with(&simulator).configured(&sinks);
        let ended = program.run(&["config", "check"]).await;
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(
            ended.stderr.contains("is set by runwatch itself"),
            "{ended:?}"
        );
    }
}
