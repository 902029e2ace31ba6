//! `sinks render`: what a sink would send, compared with what it sends.

use runwatch::domain::EventType;
use runwatch::simulator::Script;
use serde_json::{Value, json};

use super::{body, header, receiver, webhook};
use crate::support::{Program, api, finish, received, send_signal, with_daemon};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// One sink of each kind.
fn sinks(url: &str) -> String {
    let more = format!(
        "secret = {SECRET:?}\nsignature = \"github\"\ncloudevents = true\n\
         headers = {{ X-Token = \"hdr_0123456789\", X-Team_file = \"team\" }}"
    );
    let template = "format = \"template\"\ntemplate_file = \"t.j2\"\nmethod = \"PUT\"\n\
                    values = { key = \"val_0123456789\" }";
    let others = "[sinks.file]\ntype = \"log\"\npath = \"events.jsonl\"\n[sinks.records]\ntype = \"log\"\n\
                  [sinks.program]\ntype = \"command\"\nargv = [\"/bin/false\", \"now\"]\n\
                  [sinks.screen]\ntype = \"desktop\"\n";
    webhook("ops", url, &more)
        + &webhook(
            "own",
            &format!("{url}/{{delivery_id}}?key=0123456789"),
            template,
        )
        + &webhook("chat", url, "format = \"slack\"")
        + others
}

fn program(program: Program, url: &str) -> Program {
    program
        .configured(&sinks(url))
        .with_file("team", "team_0123456789\n")
        .with_file(
            "t.j2",
            r#"{"key": {{ values.key }}, "text": {{ text }}, "id": {{ delivery_id }}}"#,
        )
}

/// What the command prints as JSON, after a look that no secret is in it.
async fn rendered(program: &Program, arguments: &[&str]) -> Value {
    let all = [&["sinks", "render"], arguments, &["--json"]].concat();
    let ended = program.run(&all).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let shown = format!("{ended:?}");
    for secret in [SECRET, "hdr_", "team_", "val_", "key=0123456789"] {
        assert!(!shown.contains(secret), "{secret} is shown: {shown}");
    }
    ended.json_lines().remove(0)
}

#[tokio::test]
async fn each_kind_of_sink_shows_what_it_would_do_and_does_nothing() {
    let receiver = receiver([]).await;
    let program = program(Program::new(), &receiver.url());
    let event = ["--event", "run.failed"];
    let render = async |sink: &str| rendered(&program, &[&[sink][..], &event].concat()).await;

    let ops = render("ops").await;
    let host = receiver.address();
    assert_eq!(ops["target"], format!("POST http://{host}/[redacted]"));
    let fields = &ops["fields"];
    for (name, value) in [
        ("content-type", "application/json"),
        ("ce-type", "run.failed"),
        ("webhook-signature", "[redacted]"),
        ("x-hub-signature-256", "[redacted]"),
        ("x-team", "[redacted]"),
        ("x-token", "[redacted]"),
    ] {
        assert_eq!(fields[name], value, "{fields}");
    }
    assert_eq!(fields["ce-id"], fields["webhook-id"]);
    let event_of = |text: &Value| serde_json::from_str::<Value>(text.as_str().unwrap()).unwrap();
    let payload = event_of(&ops["body"]);
    assert_eq!(
        (&payload["type"], &payload["data"]["run"]["status"]),
        (&json!("run.failed"), &json!("failed"))
    );

    let own = render("own").await;
    assert_eq!(own["target"], format!("PUT http://{host}/[redacted]"));
    let made = event_of(&own["body"]);
    assert_eq!(
        (&made["key"], &made["id"]),
        (&json!("[redacted]"), &own["fields"]["webhook-id"])
    );

    let slack = event_of(&render("chat").await["body"]);
    assert!(
        slack["text"]
            .as_str()
            .unwrap()
            .contains("nightly report failed after 42s")
    );

    let file = render("file").await;
    assert!(file["target"].as_str().unwrap().ends_with("/events.jsonl"));
    assert_eq!(
        event_of(&file["body"])["data"]["timing"],
        payload["data"]["timing"]
    );

    let records = render("records").await;
    let line = records["body"].as_str().unwrap();
    assert!(
        line.contains("nightly report failed after 42s") && line.contains("run_id=run_sample"),
        "{line}"
    );

    let command = render("program").await;
    assert_eq!(command["target"], r#"the program ["/bin/false", "now"]"#);
    assert_eq!(command["fields"]["RUNWATCH_VERDICT"], "failed");
    assert_eq!(
        event_of(&command["body"])["data"]["timing"],
        payload["data"]["timing"]
    );

    let screen = render("screen").await;
    assert_eq!(
        (&screen["fields"]["summary"], &screen["fields"]["urgency"]),
        (
            &json!("nightly report failed after 42s"),
            &json!("critical")
        )
    );
    assert!(!program.beside_config("events.jsonl").exists());
    assert_eq!(receiver.requests().len(), 0, "nothing is sent");
}

#[tokio::test]
async fn every_event_can_be_shown_and_the_test_event_is_what_a_test_sends() {
    let receiver = receiver([]).await;
    let program = program(Program::new(), &receiver.url());
    for event in EventType::ALL {
        let shown = rendered(&program, &["ops", "--event", event.as_str()]).await;
        assert_eq!(shown["event"], event.as_str());
    }
    let ended = program.run(&["sinks", "render", "ops"]).await;
    let (head, shown) = ended.stdout.split_once("\n\n").unwrap();
    let shown: Value = serde_json::from_str(shown).unwrap();
    let ended = program.run(&["sinks", "test", "ops"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let sent = receiver.requests().remove(0);
    assert_eq!(shown["data"]["run"], body(&sent)["data"]["run"]);
    assert_eq!(shown["type"], "sink.test");
    for line in head.lines().skip(1) {
        let (name, value) = line.split_once(": ").unwrap();
        let real = header(&sent, name);
        let differs = name.ends_with("-id") || name.contains("time") || value == "[redacted]";
        assert!(differs || value == real, "{line}: {real}");
    }
}

#[tokio::test]
async fn a_run_of_the_daemon_is_shown_as_it_was_sent() {
    let receiver = receiver([]).await;
    let simulator = api([
        ("run_1", Script::fails("say \"no\"")),
        ("run_2", Script::runs_forever()),
    ])
    .await;
    let program = program(Program::with(&simulator), &receiver.url());
    let none = program
        .run(&["sinks", "render", "ops", "--run", "run_1"])
        .await;
    assert_eq!(none.code, Some(2), "{none:?}");
    assert!(none.stderr.contains("no daemon"), "{none:?}");

    let program = program.set("RUNWATCH_SINKS__PROGRAM__EVENTS", "sink.test");
    let (program, daemon) = with_daemon(program).await;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let program = program.set("TRACEPARENT", parent);
    let ended = program
        .run(&["add", "run_1", "run_2", "--label", "team=search"])
        .await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    received(&receiver, 3).await;
    let requests = receiver.requests();
    let sent = requests
        .iter()
        .find(|got| got.headers.contains_key("ce-id"));
    let shown = rendered(&program, &["ops", "--run", "run_1"]).await;
    let text = shown["body"].as_str().unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(text).unwrap(),
        body(sent.expect("the sink ops got it"))
    );
    assert_eq!(shown["fields"]["traceparent"], parent);
    let other = rendered(
        &program,
        &["ops", "--run", "run_1", "--event", "watch.overdue"],
    )
    .await;
    assert_eq!(other["fields"]["ce-type"], "watch.overdue");

    let going = rendered(&program, &["ops", "--run", "run_2"]).await;
    let payload: Value = serde_json::from_str(going["body"].as_str().unwrap()).unwrap();
    assert_eq!(
        (
            &payload["type"],
            &payload["data"]["watch"]["labels"]["team"]
        ),
        (&json!("run.started"), &json!("search"))
    );

    let not_of_runs = [
        "sinks",
        "render",
        "ops",
        "--run",
        "run_1",
        "--event",
        "api.recovered",
    ];
    let ended = program.run(&not_of_runs).await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(
        ended.stderr.contains("api.recovered is not about a run"),
        "{ended:?}"
    );
    let ended = program
        .run(&["sinks", "render", "ops", "--run", "run_3"])
        .await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    send_signal(&daemon, rustix::process::Signal::TERM);
    assert_eq!(finish(daemon).await.code, Some(0));
}

#[tokio::test]
async fn what_cannot_be_shown_says_why() {
    let receiver = receiver([]).await;
    let program = program(Program::new(), &receiver.url());
    let ended = program.run(&["sinks", "render", "opps"]).await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("no sink is called opps"), "{ended:?}");
    let ended = program
        .run(&["sinks", "render", "ops", "--event", "run.faild"])
        .await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(
        ended.stderr.contains("did you mean run.failed?"),
        "{ended:?}"
    );
    let wrong = program.with_file("t.j2", "{{ data.nothing.at.all }}");
    let ended = wrong.run(&["sinks", "render", "own"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("undefined"), "{ended:?}");
}
