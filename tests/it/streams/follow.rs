//! `wait --follow`, and what is reported about how a verdict was found.

use std::time::Duration;

use runwatch::simulator::{Fault, Script, Simulator, StreamFault, StreamScript};
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Ended, Program, api, finish, http_client, send_signal, with_daemon};

const SOON: Duration = Duration::from_secs(3);

/// A message that would clear a terminal, name its window, ring, and turn the text round.
const HOSTILE: &str = "look\u{1b}[2J\u{1b}]0;mine\u{7}\r\nhere\u{9b}31m\u{202e}x\u{7f}";

fn stream() -> StreamScript {
    StreamScript::default()
        .pace(Duration::from_millis(100))
        .message(HOSTILE)
}

/// A run with time for some events, however late the program begins to watch it.
fn script() -> Script {
    Script::succeeds().runs_for(SOON).from_first_poll()
}

async fn one(script: Script) -> Simulator {
    api([("run_1", script)]).await
}

fn is_harmless(text: &str) -> bool {
    let hidden = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    !text.contains(hidden)
}

#[tokio::test]
async fn events_are_lines_as_they_come() {
    let simulator = one(script().stream(stream())).await;
    let ended = Program::with(&simulator)
        .run(&["wait", "-f", "run_1"])
        .await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for line in [
        "run_1  task.started researcher",
        "run_1  tool_use web_search",
        "run_1  log info look[2J]0;mine here31mx",
        "run_1  agent.action researcher reads 3 pages",
        "run_1  artifact report.md 1234",
        "run_1  run.completed succeeded",
    ] {
        assert!(ended.stderr.contains(line), "{line}: {ended:?}");
    }
    assert!(
        ended.stdout.starts_with("run_1 succeeded"),
        "results only: {ended:?}"
    );
    assert!(
        is_harmless(&ended.stderr) && is_harmless(&ended.stdout),
        "{ended:?}"
    );

    let simulator = one(script().stream(stream())).await;
    let ended = Program::with(&simulator)
        .run(&["wait", "-q", "-f", "run_1"])
        .await;
    assert_eq!(
        (ended.stdout.as_str(), ended.stderr.as_str()),
        ("", ""),
        "{ended:?}"
    );
    let simulator = one(script().stream(stream())).await;
    let ended = Program::with(&simulator)
        .run(&["wait", "--follow", "--output", "run_1"])
        .await;
    assert!(ended.stderr.contains("task.started"), "{ended:?}");
    serde_json::from_str::<Value>(&ended.stdout).expect("the output, and nothing else");
}

/// Checks the lines of `--follow --json` about one run that succeeded.
fn check_lines(ended: &Ended, kinds: &[&str]) {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(is_harmless(&ended.stdout), "{ended:?}");
    let lines = ended.json_lines();
    let (last, activities) = lines.split_last().unwrap();
    assert_eq!(
        (last["verdict"].as_str(), &last["run_id"]),
        (Some("succeeded"), &Value::from("run_1")),
        "{ended:?}"
    );
    assert!(
        last["data"]["run"].is_object() && last.get("activity").is_none(),
        "{last}"
    );
    for kind in kinds {
        let line = activities.iter().find(|line| line["activity"] == *kind);
        let line = line.unwrap_or_else(|| panic!("{kind}: {ended:?}"));
        assert!(
            line["run_id"] == "run_1" && line.get("verdict").is_none(),
            "{line}"
        );
        assert!(
            line["at"]
                .as_str()
                .unwrap()
                .parse::<jiff::Timestamp>()
                .is_ok(),
            "{line}"
        );
        assert!(line["failure"].is_boolean(), "{line}");
        if *kind == "log" {
            let summary = line["summary"].as_str().unwrap();
            assert!(!summary.is_empty() && is_harmless(summary), "{line}");
            let message = line["data"]["message"].as_str().unwrap();
            assert!(
                [HOSTILE, "again and again"].contains(&message),
                "it means the same: {message:?}"
            );
        }
    }
}

#[tokio::test]
async fn with_json_events_are_lines_of_json_before_the_last_one() {
    let simulator = one(script().stream(stream())).await;
    let ended = Program::with(&simulator)
        .run(&["wait", "-f", "--json", "run_1"])
        .await;
    check_lines(
        &ended,
        &[
            "task.started",
            "tool_use",
            "log",
            "agent.action",
            "artifact",
            "run.completed",
        ],
    );
    let guide = StreamScript::guide()
        .pace(Duration::from_millis(100))
        .message(HOSTILE);
    let simulator = one(script().stream(guide)).await;
    // The option counts, whatever the configuration says.
    let program = Program::with(&simulator).set("RUNWATCH_WATCH__EVENTS", "off");
    let ended = program.run(&["wait", "-f", "--json", "run_1"]).await;
    check_lines(
        &ended,
        &[
            "agent.started",
            "tool.called",
            "log",
            "tool.result",
            "artifact",
            "run.completed",
        ],
    );
}

#[tokio::test]
async fn what_cannot_be_followed_is_reported_once() {
    let simulator = one(script()).await;
    simulator.set_stream_outage(Some(Fault::status(404)));
    let ended = Program::with(&simulator)
        .run(&["wait", "-f", "run_1"])
        .await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(
        ended
            .stderr
            .matches("stream.unavailable 404 Not Found")
            .count(),
        1,
        "{ended:?}"
    );

    let floods = StreamScript::default().always(StreamFault::Floods);
    let simulator = one(script().stream(floods)).await;
    let ended = Program::with(&simulator)
        .run(&["wait", "-f", "--json", "run_1"])
        .await;
    check_lines(&ended, &["log"]);
    assert!(
        ended.stderr.contains(" events came too fast to be shown"),
        "{ended:?}"
    );
}

/// Runs the program on a terminal of its own and returns what that got.
async fn on_a_terminal(program: &Program, arguments: &[&str]) -> Ended {
    // `pty.spawn` copies what the terminal gets to standard output; the exit code is that of the program.
    let script =
        "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
    let runwatch = env!("CARGO_BIN_EXE_runwatch");
    let argv = [&["python3", "-c", script, runwatch], arguments].concat();
    finish(
        program
            .shell(&argv)
            .env("TERM", "xterm")
            .env("NO_COLOR", "1")
            .spawn()
            .unwrap(),
    )
    .await
}

#[tokio::test]
async fn nothing_of_a_stream_reaches_a_terminal_raw() {
    for arguments in [
        &["wait", "-f", "run_1"] as &[_],
        &["wait", "run_1"],
        &["wait", "-f", "--json", "run_1"],
    ] {
        let simulator = one(script().stream(stream())).await;
        let ended = on_a_terminal(&Program::with(&simulator), arguments).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(ended.stdout.contains("run_1"), "{ended:?}");
        // The live lines move the cursor; nothing that came from the stream does.
        for raw in [
            "\u{1b}[2J",
            "\u{1b}]",
            "\u{7}",
            "\u{9b}",
            "\u{202e}",
            "\u{7f}",
        ] {
            assert!(
                !ended.stdout.contains(raw),
                "{arguments:?}: {raw:?}: {ended:?}"
            );
        }
        if arguments.len() == 2 {
            let live = [
                "task.started: researcher",
                "tool_use: web_search",
                "agent.action: researcher reads 3 pages",
            ];
            assert!(
                live.iter().any(|words| ended.stdout.contains(words)),
                "the live line says it: {ended:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_daemon_tells_what_runs_do_and_which_way_their_verdicts_were_found() {
    let simulator = one(script().stream(stream())).await;
    let program = Program::with(&simulator)
        .set("RUNWATCH_WATCH__INITIAL_INTERVAL", "1h")
        .set("RUNWATCH_WATCH__MAX_INTERVAL", "1h");
    let (program, daemon) = with_daemon(program).await;

    let ended = program
        .run(&["wait", "--daemon", "-f", "--json", "run_1"])
        .await;
    check_lines(&ended, &["log", "agent.action"]);
    let shown = program
        .run(&["show", "run_1", "--json"])
        .await
        .json_lines()
        .remove(0);
    assert_eq!(shown["found_by"], "stream", "{shown}");
    let shown = program.run(&["show", "run_1"]).await;
    assert!(shown.stdout.contains(" (event stream), "), "{shown:?}");

    // One that has ended already is found by its first poll.
    simulator.add_run(
        &runwatch::domain::RunRef::new("run_2").unwrap(),
        Script::fails("it broke"),
    );
    let ended = program.run(&["wait", "--daemon", "-f", "run_2"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let shown = program.run(&["show", "run_2"]).await;
    assert!(shown.stdout.contains(" (poll), "), "{shown:?}");

    let http = http_client()
        .unix_socket(program.home().join("run/runwatch/runwatch.sock"))
        .no_proxy()
        .build()
        .unwrap();
    let mut response = http.get("http://localhost/metrics").send().await.unwrap();
    let mut figures = Vec::new();
    while let Some(chunk) = response.chunk().await.unwrap() {
        figures.extend_from_slice(&chunk);
    }
    let figures = String::from_utf8(figures).unwrap();
    for line in [
        "runwatch_detection_total{via=\"poll\",provider=\"crewship\"} 1",
        "runwatch_detection_total{via=\"stream\",provider=\"crewship\"} 1",
        "runwatch_event_streams{provider=\"crewship\"} 0",
    ] {
        assert!(
            figures.lines().any(|found| found == line),
            "{line}\n{figures}"
        );
    }
    send_signal(&daemon, Signal::TERM);
    let ended = finish(daemon).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
}
