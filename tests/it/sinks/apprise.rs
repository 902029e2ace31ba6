//! `format = "apprise"`, with the library that apprise-api is made of: it has the field names, the types and the services.

use std::collections::BTreeSet;

use runwatch::simulator::{Fault, Received, Script};
use serde_json::{Value, json};

use super::{body, header, python, receiver, wait, webhook};
use crate::support::Program;

const APPRISE: &str = "format = \"apprise\"\nretry_schedule = []";

/// What a service receives from the Apprise library, which is given a message, or sends one of its own.
async fn passed_on(message: &Value, scheme: &str, path: &str) -> Received {
    let receiver = receiver([Fault::Empty]).await;
    let url = receiver
        .url()
        .replace("http:", &format!("{scheme}:"))
        .replace("hook", path);
    let request = json!({ "message": message, "url": url });
    let ended = python("apprise_library.py", &request).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    receiver.requests().remove(0)
}

#[tokio::test]
async fn a_message_has_the_fields_of_the_library_s_own_client() {
    let receiver = receiver([Fault::Empty]).await;
    let ended = wait(
        Script::fails("out of memory").answers(vec!["running"]),
        &webhook(
            "all",
            &receiver.url().replace("hook", "notify/key"),
            APPRISE,
        ),
        &[],
    )
    .await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(!ended.stderr.contains("not delivered"), "{ended:?}");
    let ours = receiver.requests().remove(0);
    let theirs = passed_on(&Value::Null, "apprise", "key?method=json&version=1").await;
    let fields = |received: &Received| -> BTreeSet<String> {
        let body = body(received);
        // It may have a tag, which selects some of the services; an address of ours has it in its query.
        let fields = body
            .as_object()
            .unwrap()
            .keys()
            .filter(|name| *name != "tag");
        fields.cloned().collect()
    };
    assert_eq!((&ours.path, fields(&ours)), (&theirs.path, fields(&theirs)));
    for name in ["content-type", "accept"] {
        assert!(
            header(&ours, name).starts_with("application/json"),
            "{ours:?}"
        );
    }
    let passed_on = body(&passed_on(&body(&ours), "json", "hook").await);
    assert!(
        passed_on["title"]
            .as_str()
            .unwrap()
            .starts_with("run_1 failed"),
        "{passed_on}"
    );
    assert_eq!(
        (&passed_on["message"], &passed_on["type"]),
        (&json!("out of memory"), &json!("failure")),
        "{passed_on}"
    );
}

#[tokio::test]
async fn an_address_without_services_is_a_failure() {
    let receiver = receiver([]).await;
    let sinks = webhook("all", &receiver.url(), APPRISE);
    let program = Program::new().configured(&sinks);
    let ended = program.run(&["sinks", "test"]).await;
    // 204 is its answer for a key without services.
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended.stdout.contains("no services for this address"),
        "{ended:?}"
    );
    let message = body(&receiver.requests()[0]);
    assert_eq!(message["type"], "info");
    let passed_on = body(&passed_on(&message, "json", "hook").await);
    assert_eq!(passed_on["message"], message["body"]);
}

#[tokio::test]
async fn what_the_server_could_not_send_is_a_failure() {
    let receiver = receiver([Fault::status(424)]).await;
    let ended = wait(
        Script::succeeds(),
        &webhook("all", &receiver.url(), APPRISE),
        &[],
    )
    .await;
    assert!(
        ended
            .stderr
            .contains("after 1 attempt: 424 Failed Dependency: "),
        "{ended:?}"
    );
}
