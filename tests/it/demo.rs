//! `runwatch demo` as a user runs it.

use std::path::Path;

use runwatch::domain::Verdict;
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;

use crate::support::{Program, eventually, finish, next_line, send_signal};

const TRY: &str = include_str!("../../docs/try.md");

/// The runs of the demo with what must come of them.
const RUNS: [(&str, &str, Verdict); 6] = [
    ("run_demo_outreach", "outreach mails", Verdict::Canceled),
    ("run_demo_report", "weekly report", Verdict::Succeeded),
    ("run_demo_research", "market research", Verdict::Failed),
    ("run_demo_late", "late arrival", Verdict::Succeeded),
    ("run_demo_limited", "with a 429", Verdict::Succeeded),
    ("run_demo_gateway", "with a 502", Verdict::Succeeded),
];

/// A program whose temporary files are in its home.
fn program() -> Program {
    let program = Program::new();
    let home = program.home().display().to_string();
    program.set("TMPDIR", &home)
}

/// The folders of demos that are still there.
fn folders(program: &Program) -> Vec<String> {
    let entries = std::fs::read_dir(program.home()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| name.starts_with("runwatch-demo"))
        .collect()
}

#[tokio::test]
async fn the_demo_survives_its_trouble_and_reports_what_was_observed() {
    let (shown, quiet, as_json) = (program(), program(), program());
    let (ended, quiet_end, json_end) = tokio::join!(
        shown.run(&["demo"]),
        quiet.run(&["demo", "-q"]),
        as_json.run(&["demo", "--json"]),
    );
    for one in [&ended, &quiet_end, &json_end] {
        assert_eq!(one.code, Some(0), "{one:?}");
    }
    for (_, name, verdict) in RUNS {
        let row = |line: &&str| line.contains(name) && line.contains(verdict.as_str());
        assert!(ended.stdout.lines().any(|line| row(&line)), "{ended:?}");
        assert!(ended.stderr.lines().any(|line| row(&line)), "{ended:?}");
    }
    for text in [
        "the receiver goes down",
        "kill -9 ",
        "ends while no daemon runs",
        "active watches in its store",
        "the receiver is back",
        "429 Too Many Requests",
        "502 Bad Gateway",
    ] {
        assert!(ended.stderr.contains(text), "{text}: {ended:?}");
    }
    for text in [
        "1 kill -9",
        "1 × 429",
        "1 × 502",
        "6 of 6 delivered, none lost, none wrong",
        "median ",
        "Next: ",
    ] {
        assert!(ended.stdout.contains(text), "{text}: {ended:?}");
    }
    let lines = ended.stdout.lines().chain(ended.stderr.lines());
    for line in lines {
        assert!(line.chars().count() <= 80, "{line}");
    }

    assert_eq!(quiet_end.stderr, "", "{quiet_end:?}");
    assert!(!quiet_end.stdout.contains("Next: "), "{quiet_end:?}");
    assert!(quiet_end.stdout.contains("6 of 6"), "{quiet_end:?}");

    assert_eq!(json_end.stderr, "", "{json_end:?}");
    let mut lines = json_end.json_lines();
    let total = lines.pop().unwrap();
    assert_eq!(total["as_it_must_be"], true, "{total}");
    assert_eq!(
        (&total["delivered"], &total["kills"], &total["answers_502"]),
        (&6.into(), &1.into(), &1.into())
    );
    for (line, (id, _, verdict)) in lines.iter().zip(RUNS) {
        assert_eq!(
            (&line["run_id"], &line["verdict"]),
            (&id.into(), &verdict.as_str().into())
        );
        // The simulated API has parts of seconds, or this would be up to a second more.
        let completed = line["data"]["run"]["completed_at"].as_str().unwrap();
        assert!(completed.contains('.'), "{line}");
    }
    assert_eq!(lines.len(), RUNS.len());
    for program in [&shown, &quiet, &as_json] {
        assert_eq!(folders(program), [] as [String; 0]);
    }
}

#[tokio::test]
async fn a_demo_that_is_interrupted_leaves_nothing_behind() {
    for signal in [Signal::INT, Signal::TERM] {
        let program = program();
        let mut demo = program.command(&["demo"]).spawn().unwrap();
        let mut lines = BufReader::new(demo.stderr.take().unwrap()).lines();
        let first = next_line(&mut lines).await;
        let id = first.split_once("(process ").unwrap().1;
        let daemon = format!("/proc/{}", id.split(')').next().unwrap());
        assert!(Path::new(&daemon).exists(), "{first}");
        assert_eq!(folders(&program).len(), 1);
        send_signal(&demo, signal);
        let ended = finish(demo).await;
        let code = if signal == Signal::INT { 130 } else { 143 };
        assert_eq!(ended.code, Some(code), "{ended:?}");
        eventually("the daemon's end", || !Path::new(&daemon).exists()).await;
        assert_eq!(folders(&program), [] as [String; 0]);
    }
}

/// Starts `demo --serve`, and points `program` to it.
async fn serve(mut program: Program) -> (Child, Program, String) {
    let mut server = program.command(&["demo", "--serve"]).spawn().unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let exports = next_line(&mut lines).await;
    let command = next_line(&mut lines).await;
    for pair in exports.strip_prefix("export ").unwrap().split(' ') {
        let (name, value) = pair.split_once('=').unwrap();
        program = program.set(name, value);
    }
    let mut rest = String::new();
    while !rest.contains("runwatch deliveries") {
        rest += &format!("{}\n", next_line(&mut lines).await);
    }
    assert!(rest.contains("curl -s "), "{rest}");
    (server, program, command)
}

#[tokio::test]
async fn a_served_demo_begins_each_run_with_its_first_poll() {
    let (server, program, command) = serve(Program::new()).await;
    let arguments: Vec<_> = command.split(' ').skip(1).collect();
    assert_eq!((arguments[0], arguments.len()), ("wait", 7), "{command}");
    let wait = async |run, code| {
        let arguments = ["wait", run, "--interval", "100ms", "--json"];
        run_of(program.run(&arguments).await, code)
    };
    let first = wait("run_demo_outreach", 3).await;
    let second = wait("run_demo_report", 0).await;
    assert!(first["completed_at"].as_str() <= second["created_at"].as_str());
    send_signal(&server, Signal::TERM);
    assert_eq!(finish(server).await.code, Some(143));
}

/// The run in the last line of a `wait` that ended with this code.
fn run_of(ended: crate::support::Ended, code: i32) -> serde_json::Value {
    assert_eq!(ended.code, Some(code), "{ended:?}");
    ended.json_lines().last().unwrap()["data"]["run"].clone()
}

#[tokio::test]
async fn every_command_of_the_page_works_against_a_served_demo() {
    let blocks = TRY.split("```sh\n").skip(1);
    let script: String = blocks
        .map(|block| block.split("```").next().unwrap())
        .collect();
    let program = Program::new();
    let folder = program.home().join("bin");
    std::fs::create_dir(&folder).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_runwatch"), folder.join("runwatch")).unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let home = program.home().display().to_string();
    let program = program.set("PATH", &path).set("XDG_RUNTIME_DIR", &home);
    let (server, program, _) = serve(program).await;
    let run = program.shell(&["bash", "-m", "-e", "-c", &script]).spawn();
    let ended = finish(run.unwrap()).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for text in [
        "run_demo_report succeeded",
        "the exit code of a canceled run is 3",
        "the exit code of a failed run is 1",
        "Generated report about AI agents",
        "late arrival",
    ] {
        assert!(ended.stdout.contains(text), "{text}: {ended:?}");
    }
    let events = program.beside_config("events.jsonl");
    eventually("the event of the verdict", || {
        std::fs::read_to_string(&events).is_ok_and(|text| text.contains("run_demo_late"))
    })
    .await;
    send_signal(&server, Signal::INT);
    assert_eq!(finish(server).await.code, Some(130));
}
