//! Signatures, checked by the reference library of the Standard Webhooks specification.

use runwatch::simulator::{Received, Script};
use serde_json::json;

use super::{header, python, receiver, webhook};
use crate::support::{Program, api, finish, received};

const ONE: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER: &str = "whsec_c2Vjb25kIHNlY3JldCBzZWNvbmQgc2VjcmV0ISE=";
const UNKNOWN: &str = "whsec_dW5rbm93biB1bmtub3duIHVua25vd24gISEhISE=";

/// Whether the reference library accepts a message.
async fn accepts(secret: &str, received: &Received, body: &str) -> bool {
    let names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
    let headers: serde_json::Map<_, _> = names
        .map(|name| (name.to_owned(), header(received, name).into()))
        .into_iter()
        .collect();
    let message = json!({ "secret": secret, "headers": headers, "body": body });
    let ended = python("verify_webhook.py", &message).await;
    match (ended.code, ended.stdout.trim()) {
        (Some(0), "accepted") => true,
        (Some(1), reason) if reason.starts_with("refused: ") => false,
        _ => panic!("cannot verify; run the tests with: bash tests/run\n{ended:?}"),
    }
}

/// Whether GitHub's rule accepts a message, by an HMAC of Python.
async fn is_signed_as_github(secret: &str, received: &Received) -> bool {
    let signature = header(received, "x-hub-signature-256");
    let body = std::str::from_utf8(&received.body).unwrap();
    let message = json!({ "secret": secret, "signature": signature, "body": body });
    let ended = python("verify_github.py", &message).await;
    match (ended.code, ended.stdout.trim()) {
        (Some(0), "accepted") => true,
        (Some(1), "refused") => false,
        _ => panic!("cannot verify; run the tests with: bash tests/run\n{ended:?}"),
    }
}

/// The message that a run sends to a sink with these secrets.
async fn signed(secrets: &str, name: &str) -> (Received, String) {
    let (simulator, receiver) = (
        api([("run_1", Script::fails("größer als 10 € 🚢"))]).await,
        receiver([]).await,
    );
    let sinks = webhook(
        "hook",
        &receiver.url(),
        "secret_file = \"secrets\"\nsignature = \"github\"",
    );
    let program = Program::with(&simulator)
        .configured(&sinks)
        .with_file("secrets", secrets);
    let ended = program
        .run(&["wait", "run_1", "--name", name, "--log-level", "trace"])
        .await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ![ONE, OTHER]
            .iter()
            .any(|secret| format!("{ended:?}").contains(secret)),
        "a secret is shown: {ended:?}"
    );
    let received = receiver.requests().remove(0);
    let body = String::from_utf8(received.body.to_vec()).unwrap();
    (received, body)
}

#[tokio::test]
async fn the_reference_library_accepts_what_one_secret_signed() {
    let (received, body) = signed(&format!("{ONE}\n"), "täglicher Bericht 日本").await;
    assert!(
        body.contains("größer als 10 € 🚢") && body.contains("täglicher Bericht 日本"),
        "{body}"
    );
    assert!(accepts(ONE, &received, &body).await);
    assert!(!accepts(OTHER, &received, &body).await);
    assert!(
        !accepts(ONE, &received, &body.replace("failed", "passed")).await,
        "a changed body is refused"
    );
    assert!(
        !accepts(ONE, &received, &format!("{body} ")).await,
        "a longer body is refused"
    );
}

#[tokio::test]
async fn the_reference_library_accepts_each_of_two_secrets() {
    let (received, body) = signed(&format!("{OTHER}\r\n\n{ONE}\n"), "rotation").await;
    assert_eq!(header(&received, "webhook-signature").split(' ').count(), 2);
    assert!(accepts(ONE, &received, &body).await);
    assert!(accepts(OTHER, &received, &body).await);
    assert!(is_signed_as_github(OTHER, &received).await, "the first one");
    assert!(!is_signed_as_github(ONE, &received).await);
    assert!(!accepts(UNKNOWN, &received, &body).await);
}

#[tokio::test]
async fn a_secret_that_is_changed_takes_effect_at_the_next_attempt() {
    let simulator = api([("run_1", Script::succeeds())]).await;
    let receiver = receiver([runwatch::simulator::Fault::status(401)]).await;
    let more = "secret_file = \"secrets\"\nretry_schedule = [\"5s\"]";
    let program = Program::with(&simulator)
        .configured(&webhook("hook", &receiver.url(), more))
        .with_file("secrets", ONE);
    let secrets = program.beside_config("secrets");
    let child = program.command(&["wait", "run_1"]).spawn().unwrap();
    received(&receiver, 1).await;
    // Put in place whole, as secret stores do: no attempt sees half of it.
    std::fs::write(secrets.with_extension("new"), OTHER).unwrap();
    std::fs::rename(secrets.with_extension("new"), &secrets).unwrap();
    assert_eq!(finish(child).await.code, Some(0));
    let got = receiver.requests();
    let body = String::from_utf8(got[1].body.to_vec()).unwrap();
    assert!(accepts(ONE, &got[0], &body).await);
    assert!(accepts(OTHER, &got[1], &body).await && !accepts(ONE, &got[1], &body).await);
}
