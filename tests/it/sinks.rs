//! Sinks as users meet them: the built program against real receivers, files and programs.

mod apprise;
mod chat;
mod cloudevents;
mod command;
mod digest;
#[cfg(feature = "email")]
mod email;
mod fallback;
mod groups;
mod log;
mod payload;
mod quiet;
mod render;
mod signature;
mod templates;
mod trace;
mod webhook;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use runwatch::simulator::{Received, Receiver, Script};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::TcpSocket;
use tokio::process::{Child, ChildStdout};

use crate::support::{Ended, PATIENCE, Program, api, finish};

/// Waits for `run_1`, which goes as `script` says, with these sinks configured.
async fn wait(script: Script, sinks: &str, arguments: &[&str]) -> Ended {
    let simulator = api([("run_1", script)]).await;
    Program::with(&simulator)
        .configured(sinks)
        .run(&[&["wait", "run_1"], arguments].concat())
        .await
}

/// A receiver that gives the first requests these answers.
async fn receiver(answers: impl IntoIterator<Item = runwatch::simulator::Fault>) -> Receiver {
    Receiver::start(answers).await.unwrap()
}

/// The configuration of a webhook sink.
fn webhook(name: &str, url: &str, more: &str) -> String {
    format!("[sinks.{name}]\ntype = \"webhook\"\nurl = {url:?}\n{more}\n")
}

/// An address that refuses connections, as long as the socket is held: no other test gets its port.
fn closed_port() -> (TcpSocket, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let url = format!("http://{}/hook", socket.local_addr().unwrap());
    (socket, url)
}

/// Starts a script of this folder with the libraries of `tests/run`.
fn python_program(script: &str) -> Child {
    let python = std::env::var("RUNWATCH_TEST_PYTHON");
    let python =
        python.expect("RUNWATCH_TEST_PYTHON is not set; run the tests with: bash tests/run");
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it")
        .join(script);
    tokio::process::Command::new(python)
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the Python of RUNWATCH_TEST_PYTHON starts; run the tests with: bash tests/run")
}

/// Runs a script with this JSON on its standard input.
async fn python(script: &str, input: &Value) -> Ended {
    let mut child = python_program(script);
    let mut stdin = child.stdin.take().unwrap();
    // A script that cannot even read says why on standard error.
    drop(stdin.write_all(input.to_string().as_bytes()).await);
    drop(stdin);
    finish(child).await
}

/// A script that serves until its standard input ends, and reports in lines of JSON. Killed when dropped.
struct PythonServer {
    child: Option<Child>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl PythonServer {
    /// Starts a script with this JSON as the first line of its standard input.
    async fn start(script: &str, input: &Value) -> Self {
        let mut child = python_program(script);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let child = Some(child);
        let mut server = Self { child, lines };
        server.write(input).await;
        server
    }

    async fn write(&mut self, line: &Value) {
        let stdin = self.child.as_mut().unwrap().stdin.as_mut().unwrap();
        // A script that has ended says why when its next line is read.
        drop(stdin.write_all(format!("{line}\n").as_bytes()).await);
    }

    /// Ends its standard input, and waits for its end.
    async fn end(mut self) -> Ended {
        let mut child = self.child.take().unwrap();
        drop(child.stdin.take());
        finish(child).await
    }

    /// The next line that it prints.
    async fn line(&mut self) -> Value {
        let line = tokio::time::timeout(4 * PATIENCE, self.lines.next_line()).await;
        match line.expect("a line comes in time").unwrap() {
            Some(line) => serde_json::from_str(&line).unwrap(),
            None => panic!("{:?}", finish(self.child.take().unwrap()).await),
        }
    }
}

fn body(received: &Received) -> Value {
    serde_json::from_slice(&received.body).unwrap()
}

fn header<'a>(received: &'a Received, name: &str) -> &'a str {
    received.headers[name].to_str().unwrap()
}

#[cfg(not(feature = "email"))]
#[tokio::test]
async fn a_build_without_email_says_so() {
    let sink = "[sinks.mail]\ntype = \"email\"\nhost = \"smtp.test.example\"\nfrom = \"a@test.example\"\n\
                to = [\"b@test.example\"]\n";
    let program = Program::new()
        .set("CREWSHIP_API_KEY", "key")
        .configured(sink);
    let ended = program.run(&["config", "check"]).await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    let text = "sinks.mail: this build cannot send e-mail; take another type of sink, or a build with the feature `email`";
    assert!(format!("{ended:?}").contains(text), "{ended:?}");
    let ended = program.run(&["sinks", "test"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended.stdout.contains("this build cannot send e-mail"),
        "{ended:?}"
    );
}

#[tokio::test]
async fn events_labels_and_chosen_sinks_decide_who_is_notified() {
    let going_first = |script: Script| script.answers(vec!["running"]);
    let cases: [(Script, &[&str], &[&str]); 6] = [
        (
            Script::fails("no"),
            &[],
            &[
                "all run.failed",
                "failures run.failed",
                "verdicts run.failed",
            ],
        ),
        (
            going_first(Script::succeeds()),
            &["--label", "team=search", "--label", "env=prod"],
            &[
                "all run.started",
                "all run.succeeded",
                "search run.succeeded",
                "starts run.started",
                "verdicts run.succeeded",
            ],
        ),
        (
            Script::succeeds(),
            &["--label", "team=other"],
            &["all run.succeeded", "verdicts run.succeeded"],
        ),
        (
            Script::fails("no"),
            &["--sink", "failures", "--sink", "search"],
            &["failures run.failed"],
        ),
        (Script::succeeds(), &["--sink", "failures"], &[]),
        (
            Script::runs_forever(),
            &["--timeout", "500ms"],
            &[
                "all run.started",
                "all watch.timed_out",
                "starts run.started",
                "verdicts watch.timed_out",
            ],
        ),
    ];
    for (script, arguments, expected) in cases {
        let receiver = receiver([]).await;
        let sinks: String = [
            ("verdicts", ""),
            ("all", "events = [\"*\"]"),
            ("failures", "events = [\"run.failed\"]"),
            ("starts", "events = [\"run.started\"]"),
            ("nothing", "events = []"),
            ("search", "labels = { team = \"search\" }"),
        ]
        .map(|(name, more)| webhook(name, &receiver.url().replace("hook", name), more))
        .concat();
        let ended = wait(script, &sinks, arguments).await;
        let arrival = |received: &Received| {
            format!(
                "{} {}",
                &received.path[1..],
                body(received)["type"].as_str().unwrap()
            )
        };
        let mut arrived: Vec<_> = receiver.requests().iter().map(arrival).collect();
        arrived.sort();
        assert_eq!(arrived, expected, "{arguments:?}: {ended:?}");
    }
}

#[tokio::test]
async fn a_test_message_goes_through_each_sink_and_says_how_it_went() {
    let receiver = receiver([]).await;
    let (_held, closed) = closed_port();
    let sinks = [
        webhook("good", &receiver.url(), "events = []"),
        webhook("bad", &closed, ""),
        "[sinks.file]\ntype = \"log\"\npath = \"events.jsonl\"\n".to_owned(),
    ];
    let program = Program::new().configured(&sinks.concat());
    let ended = program.run(&["sinks", "test"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let lines: Vec<_> = ended.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{ended:?}");
    assert!(
        lines[0].starts_with("bad   ✗ failed  connection refused"),
        "{ended:?}"
    );
    let path = program.beside_config("events.jsonl");
    assert_eq!(
        lines[1],
        format!("file  ✓ ok      appended to {}", path.display()),
        "{ended:?}"
    );
    assert_eq!(lines[2], "good  ✓ ok      204 No Content", "{ended:?}");
    let got = receiver.requests();
    assert_eq!(
        (got.len(), &body(&got[0])["type"]),
        (1, &json!("sink.test"))
    );
    let line = std::fs::read_to_string(path).unwrap();
    assert!(line.contains("runwatch test message"), "{line}");

    let ended = program.run(&["sinks", "test", "good", "--json"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(
        ended.json_lines(),
        [json!({"sink": "good", "delivered": true, "detail": "204 No Content"})]
    );
    let ended = program.run(&["sinks", "test", "bad", "--json"]).await;
    assert_eq!(
        (ended.code, &ended.json_lines()[0]["delivered"]),
        (Some(1), &json!(false)),
        "{ended:?}"
    );
}

#[tokio::test]
async fn sinks_that_are_not_there_are_wrong_usage() {
    let receiver = receiver([]).await;
    let configured = Program::new().configured(&webhook("good", &receiver.url(), ""));
    let ended = configured.run(&["sinks", "test", "good", "goood"]).await;
    assert_eq!(
        (ended.code, ended.stdout.as_str()),
        (Some(2), ""),
        "{ended:?}"
    );
    assert_eq!(
        ended.stderr,
        "error: no sink is called goood; known sinks: good\n"
    );
    assert_eq!(
        receiver.requests().len(),
        0,
        "nothing is sent when one name is wrong"
    );

    let none = Program::new();
    let ended = none.run(&["sinks", "test"]).await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(
        ended.stderr.starts_with("error: no sink is configured; "),
        "{ended:?}"
    );
    let ended = none.run(&["sinks", "test", "good", "--json"]).await;
    let error: serde_json::Value = serde_json::from_str(&ended.stderr).unwrap();
    assert_eq!(
        (&error["error"], &error["hint"]),
        (
            &"no sink is called good".into(),
            &"known sinks: none is configured".into()
        ),
        "{error}"
    );
}
