//! `cloudevents = true`, read by the library of the CloudEvents project.

use runwatch::simulator::{Received, Script};
use serde_json::{Value, json};

use super::{body, header, python, receiver, wait, webhook};
use crate::support::{Program, api};

/// The event as the library reads it, which refuses one that lacks an attribute.
async fn read(received: &Received) -> Value {
    let headers: serde_json::Map<_, _> = received
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().into()))
        .collect();
    let text = std::str::from_utf8(&received.body).unwrap();
    let ended = python(
        "read_cloudevent.py",
        &json!({ "headers": headers, "body": text }),
    )
    .await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    serde_json::from_str(&ended.stdout).unwrap()
}

#[tokio::test]
async fn the_library_reads_a_webhook_as_an_event() {
    let receiver = receiver([]).await;
    let secret = "secret = \"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\"";
    let sinks = webhook(
        "on",
        &receiver.url(),
        &format!("cloudevents = true\n{secret}"),
    ) + &webhook("off", &receiver.url().replace("hook", "off"), "");
    let simulator = api([("run_1", Script::fails("no 🚢"))]).await;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let program = Program::with(&simulator)
        .configured(&sinks)
        .set("TRACEPARENT", parent)
        .set("TRACESTATE", "rojo=1,congo= 2");
    let ended = program.run(&["wait", "run_1"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let requests = receiver.requests();
    let of = |path: &str| requests.iter().find(|got| got.path == path).unwrap();
    let got = of("/hook");
    let event = read(got).await;
    let body = body(got);
    assert_eq!(event["data"], body);
    let attributes = &event["attributes"];
    for (name, value) in [
        ("specversion", "1.0"),
        ("id", header(got, "webhook-id")),
        ("source", "/runwatch/providers/crewship"),
        ("type", "run.failed"),
        ("subject", "run_1"),
        ("datacontenttype", "application/json"),
        ("traceparent", parent),
        ("tracestate", "rojo=1,congo= 2"),
    ] {
        assert_eq!(attributes[name], value, "{attributes}");
    }
    assert_eq!(header(got, "ce-time"), body["timestamp"]);
    assert!(got.headers.contains_key("webhook-signature"));
    let mut without = of("/off").headers.keys();
    assert!(!without.any(|name| name.as_str().starts_with("ce-")));
}

#[tokio::test]
async fn a_header_of_the_configuration_takes_the_place_of_an_attribute() {
    let receiver = receiver([]).await;
    let more = "cloudevents = true\nheaders = { CE-Source = \"https://example.com/runs\" }";
    let ended = wait(
        Script::succeeds(),
        &webhook("on", &receiver.url(), more),
        &[],
    )
    .await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let event = read(&receiver.requests()[0]).await;
    assert_eq!(event["attributes"]["source"], "https://example.com/runs");
}
