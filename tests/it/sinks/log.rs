//! The log sink: records on standard error, and lines in a file.

use std::os::unix::fs::PermissionsExt as _;

use runwatch::domain::RunRef;
use runwatch::simulator::{Script, Simulator};
use serde_json::Value;

use super::wait;
use crate::support::{Program, api, eventually, finish};

const FILE: &str = "[sinks.file]\ntype = \"log\"\npath = \"events.jsonl\"\nretry_schedule = []\n";

async fn program() -> (Simulator, Program) {
    let simulator = api([
        ("run_1", Script::fails("no")),
        ("run_2", Script::runs_forever()),
    ])
    .await;
    let program = Program::with(&simulator).configured(FILE);
    (simulator, program)
}

/// The lines of a file, each as JSON; `null` for one that is not.
fn lines(program: &Program, name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(program.beside_config(name)).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_default())
        .collect()
}

#[tokio::test]
async fn a_record_is_shown_whatever_the_log_level_is() {
    let journal = "[sinks.journal]\ntype = \"log\"\n";
    let script = || Script::fails("first\nsecond \x1b[31mline");
    let ended = wait(
        script(),
        journal,
        &["--log-level", "error", "--name", "nightly"],
    )
    .await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    for field in [
        "nightly failed",
        "event=\"run.failed\"",
        "run_id=run_1",
        "verdict=\"failed\"",
        "delivery_id=\"msg_",
    ] {
        assert!(ended.stderr.contains(field), "{field}: {ended:?}");
    }
    assert!(!ended.stderr.contains('\x1b'), "{ended:?}");

    let ended = wait(script(), journal, &["--log-format", "json", "--quiet"]).await;
    let records: Vec<Value> = ended
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(records.len(), 1, "{ended:?}");
    assert_eq!(
        (&records[0]["event"], &records[0]["run_id"]),
        (&"run.failed".into(), &"run_1".into())
    );
    assert_eq!(records[0]["error"], "first second [31mline");
}

#[tokio::test]
async fn each_event_is_one_line_in_a_file_that_others_cannot_read() {
    let pretty = include_str!("../../data/failed.json").replace("run_xyz789abc", "run_1");
    let simulator = api([("run_1", Script::succeeds().verbatim(pretty))]).await;
    let program = Program::with(&simulator).configured(FILE);
    for _ in 0..2 {
        assert_eq!(program.run(&["wait", "run_1"]).await.code, Some(1));
    }
    let lines = lines(&program, "events.jsonl");
    assert_eq!(lines.len(), 2, "{lines:?}");
    for line in &lines {
        assert_eq!(line["type"], "run.failed", "{lines:?}");
        assert_eq!(line["data"]["run"]["input"]["topic"], "AI agents");
    }
    assert_ne!(lines[0]["delivery_id"], lines[1]["delivery_id"]);
    let mode = std::fs::metadata(program.beside_config("events.jsonl"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777 & !0o640, 0, "{mode:o}");
}

#[tokio::test]
async fn a_line_that_a_crash_cut_short_spoils_no_other() {
    let (_simulator, program) = program().await;
    let torn = "{\"delivery_id\":\"msg_1\",\"type\":\"run.fa";
    std::fs::write(program.beside_config("events.jsonl"), torn).unwrap();
    assert_eq!(program.run(&["wait", "run_1"]).await.code, Some(1));
    let lines = lines(&program, "events.jsonl");
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(
        (&lines[0], &lines[1]["type"]),
        (&Value::Null, &"run.failed".into())
    );
    assert!(
        std::fs::read_to_string(program.beside_config("events.jsonl"))
            .unwrap()
            .starts_with(torn)
    );
}

#[tokio::test]
async fn a_file_that_is_moved_away_is_begun_anew() {
    let (simulator, program) = program().await;
    let child = program
        .command(&["wait", "run_1", "run_2"])
        .spawn()
        .unwrap();
    let whole = |name| {
        lines(&program, name)
            .first()
            .is_some_and(|line| !line.is_null())
    };
    eventually("a first line", || whole("events.jsonl")).await;
    std::fs::rename(
        program.beside_config("events.jsonl"),
        program.beside_config("old.jsonl"),
    )
    .unwrap();
    simulator.add_run(&RunRef::new("run_2").unwrap(), Script::succeeds());
    let ended = finish(child).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let runs = |name| {
        lines(&program, name)
            .iter()
            .map(|line| line["data"]["run"]["id"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (runs("old.jsonl"), runs("events.jsonl")),
        (vec!["run_1".into()], vec!["run_2".into()])
    );
}

#[tokio::test]
async fn a_place_that_cannot_be_written_is_a_failed_attempt() {
    for (path, why) in [
        ("nowhere/events.jsonl", "No such file or directory"),
        ("/", "Is a directory"),
    ] {
        let ended = wait(Script::succeeds(), &FILE.replace("events.jsonl", path), &[]).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let warning = "was not delivered to file after 1 attempt: cannot append to ";
        assert!(
            ended.stderr.contains(warning) && ended.stderr.contains(&format!("{path}: {why}")),
            "{ended:?}"
        );
    }
}

#[tokio::test]
async fn a_directory_that_comes_back_gets_the_message() {
    let schedule = format!("[{}]", ["\"50ms\""; 100].join(", "));
    let sinks = FILE
        .replace("events.jsonl", "late/events.jsonl")
        .replace("[]", &schedule);
    let simulator = api([("run_1", Script::fails("no"))]).await;
    let program = Program::with(&simulator).configured(&sinks);
    let mut child = program.command(&["wait", "run_1"]).spawn().unwrap();
    // The first failure is shown on standard error; the pipe has room for the rest.
    let mut stderr = tokio::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("; next attempt ") {
        line.clear();
        assert_ne!(
            tokio::io::AsyncBufReadExt::read_line(&mut stderr, &mut line)
                .await
                .unwrap(),
            0
        );
    }
    std::fs::create_dir(program.beside_config("late")).unwrap();
    assert_eq!(finish(child).await.code, Some(1));
    let lines = lines(&program, "late/events.jsonl");
    assert_eq!((lines.len(), &lines[0]["type"]), (1, &"run.failed".into()));
}
