//! The examples in config/templates/, each configured as its own comment shows it.

use std::path::{Path, PathBuf};

use runwatch::simulator::{Fault, Received, Script};
use serde_json::{Value, json};

use super::{PythonServer, body, header, receiver};
use crate::support::{Program, api};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/templates")
}

/// The table of a sink in the comment of a template.
fn snippet(template: &str) -> &str {
    let begins = template.find("[sinks.").expect("a sink in the comment");
    let rest = &template[begins..];
    &rest[..rest.find("\n\n").expect("an empty line after it")]
}

/// A program with the sink of a template, whose URL is replaced. `files` are those that the sink names.
fn configured(program: Program, name: &str, url: &str, files: &[(&str, &str)]) -> Program {
    let template = std::fs::read_to_string(folder().join(format!("{name}.j2"))).unwrap();
    let table = snippet(&template);
    let sink = table.lines().next().unwrap().trim_matches(['[', ']']);
    let variable = sink.to_uppercase().replace('.', "__");
    let mut program = program
        .configured(&format!("{table}\nretry_schedule = [\"50ms\"]\n"))
        .with_file(&format!("templates/{name}.j2"), &template)
        .set(&format!("RUNWATCH_{variable}__URL"), url)
        .set(&format!("RUNWATCH_{variable}__EVENTS"), "run.*");
    for (file, text) in files {
        program = program.with_file(file, text);
    }
    program
}

/// The requests that a failed run leads to, of which the first is answered with 500.
async fn requests(name: &str, path: &str, files: &[(&str, &str)]) -> Vec<Received> {
    let receiver = receiver([Fault::status(500), Fault::Empty]).await;
    let url = receiver.url().replace("/hook", path);
    let script = Script::fails("out of \"memory\" <b>").answers(vec!["running"]);
    let simulator = api([("run_1", script)]).await;
    let program = configured(Program::with(&simulator), name, &url, files);
    let ended = program
        .set("RUNWATCH_API__RUN_URL", "https://example.com/{run_id}")
        .run(&["wait", "run_1"])
        .await;
    assert_eq!(ended.code, Some(1), "{name}: {ended:?}");
    assert!(!ended.stderr.contains("not delivered"), "{name}: {ended:?}");
    // run.started, run.failed, and one of them again.
    let requests = receiver.requests();
    assert_eq!(requests.len(), 3, "{name}");
    requests
}

/// The request about the end of the run.
fn of_failure(requests: &[Received]) -> &Received {
    let failed = |received: &&Received| String::from_utf8_lossy(&received.body).contains("failed");
    requests.iter().find(failed).expect("it is reported")
}

#[test]
fn every_template_has_a_test() {
    let names = std::fs::read_dir(folder()).unwrap();
    let mut names: Vec<_> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "google-chat.j2",
            "gotify.j2",
            "matrix.j2",
            "pagerduty.j2",
            "telegram.j2"
        ]
    );
}

#[tokio::test]
async fn telegram() {
    let path = "/bot123:token/sendMessage";
    let requests = requests(
        "telegram",
        path,
        &[("telegram-url", "https://unused.example")],
    )
    .await;
    let got = of_failure(&requests);
    assert_eq!((got.method.as_str(), got.path.as_str()), ("POST", path));
    let body = body(got);
    assert_eq!(body["chat_id"], "-1001234567890");
    let text = body["text"].as_str().unwrap();
    assert!(
        text.starts_with("run_1 failed") && text.contains("\nout of \"memory\" <b>\n"),
        "{text}"
    );
}

#[tokio::test]
async fn pagerduty() {
    let files = [("pagerduty-key", "0123456789abcdef0123456789abcdef\n")];
    let requests = requests("pagerduty", "/v2/enqueue", &files).await;
    let got = of_failure(&requests);
    let body = body(got);
    assert_eq!(
        (&body["routing_key"], &body["event_action"]),
        (
            &json!("0123456789abcdef0123456789abcdef"),
            &json!("trigger")
        )
    );
    assert_eq!(body["dedup_key"], header(got, "webhook-id"));
    assert_eq!(
        (&body["payload"]["severity"], &body["payload"]["source"]),
        (&json!("error"), &json!("crewship"))
    );
    assert_eq!(body["links"][0]["href"], "https://example.com/run_1");
    let keys: std::collections::BTreeSet<_> = requests
        .iter()
        .map(|received| super::body(received)["dedup_key"].to_string())
        .collect();
    assert_eq!(
        keys.len(),
        2,
        "an attempt that is repeated has the same key"
    );
}

#[tokio::test]
async fn gotify() {
    let requests = requests(
        "gotify",
        "/message",
        &[("gotify-token", "Aabcdefghijklmn\n")],
    )
    .await;
    let got = of_failure(&requests);
    assert_eq!(header(got, "x-gotify-key"), "Aabcdefghijklmn");
    let body = body(got);
    assert!(body["title"].as_str().unwrap().starts_with("run_1 failed"));
    assert_eq!(
        (&body["message"], &body["priority"]),
        (&json!("out of \"memory\" <b>"), &json!(8))
    );
    let click = &body["extras"]["client::notification"]["click"]["url"];
    assert_eq!(click, "https://example.com/run_1");
}

#[tokio::test]
async fn google_chat() {
    let path = "/v1/spaces/AAAA/messages";
    let requests = requests(
        "google-chat",
        path,
        &[("chat-url", "https://unused.example")],
    )
    .await;
    let body = body(of_failure(&requests));
    let text = body["text"].as_str().unwrap();
    assert!(text.contains("out of \"memory\" ‹b>"), "{text}");
    assert_eq!(body.as_object().unwrap().len(), 1);
}

#[tokio::test]
async fn matrix() {
    let path = "/_matrix/client/v3/rooms/!room:example.org/send/m.room.message/{delivery_id}";
    let files = [("matrix-authorization", "Bearer syt_token\n")];
    let requests = requests("matrix", path, &files).await;
    for got in &requests {
        assert_eq!(got.method.as_str(), "PUT");
        let id = header(got, "webhook-id");
        assert_eq!(got.path, path.replace("{delivery_id}", id));
        assert_eq!(header(got, "authorization"), "Bearer syt_token");
    }
    let ids: std::collections::BTreeSet<_> = requests.iter().map(|got| &got.path).collect();
    assert_eq!(
        ids.len(),
        2,
        "an attempt that is repeated has the same address"
    );
}

#[tokio::test]
async fn a_real_matrix_server_accepts_a_message() {
    let mut server = PythonServer::start("matrix_server.py", &Value::Null).await;
    let place = server.line().await;
    let text = |name: &str| place[name].as_str().unwrap();
    let url = format!(
        "{}/_matrix/client/v3/rooms/{}/send/m.room.message/{{delivery_id}}",
        text("url"),
        text("room")
    );
    let authorization = format!("Bearer {}", text("token"));
    let files = [("matrix-authorization", authorization.as_str())];
    let script = Script::fails("@room <b>no</b>");
    let simulator = api([("run_1", script)]).await;
    let program = configured(Program::with(&simulator), "matrix", &url, &files);
    let ended = program.run(&["wait", "run_1"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(!ended.stderr.contains("not delivered"), "{ended:?}");

    server.write(&Value::Null).await;
    let messages = server.line().await;
    let messages = messages.as_array().unwrap();
    assert_eq!(messages.len(), 1, "{messages:?}");
    let content = &messages[0]["content"];
    assert!(
        content["body"]
            .as_str()
            .unwrap()
            .contains("@room <b>no</b>"),
        "{content}"
    );
    // The server shows it to the user whose access token sent the message.
    let transaction = messages[0]["unsigned"]["transaction_id"].as_str().unwrap();
    assert!(transaction.starts_with("msg_"), "{messages:?}");
    assert_eq!(server.end().await.code, Some(0));
}
