//! `runwatch wait` as a user runs it: the built program against a simulated API over HTTP.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use runwatch::domain::RunRef;
use runwatch::simulator::{Fault, Receiver, Script, Simulator};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::{Ended, Program, api, eventually, finish, next_line, received, send_signal};

const SOON: Duration = Duration::from_millis(300);

fn id(text: &str) -> RunRef {
    RunRef::new(text).unwrap()
}

/// Waits for `run_1` with this script.
async fn wait_for(script: Script, arguments: &[&str]) -> (Ended, Simulator) {
    let simulator = api([("run_1", script)]).await;
    let ended = Program::with(&simulator)
        .run(&[&["wait", "run_1"], arguments].concat())
        .await;
    (ended, simulator)
}

#[tokio::test]
async fn each_end_has_its_code_and_its_word() {
    for (script, code, verdict) in [
        (Script::succeeds().runs_for(SOON), 0, "succeeded"),
        (Script::fails("it broke").runs_for(SOON), 1, "failed"),
        (Script::canceled().runs_for(SOON), 3, "canceled"),
        (Script::canceled().status_text("cancelled"), 3, "canceled"),
        (Script::succeeds().envelope(true), 0, "succeeded"),
        (Script::fails("it broke").envelope(true), 1, "failed"),
    ] {
        let (ended, _) = wait_for(script, &["--json"]).await;
        assert_eq!(ended.code, Some(code), "{ended:?}");
        let lines = ended.json_lines();
        assert_eq!(lines.len(), 1, "{ended:?}");
        assert_eq!(lines[0]["run_id"], "run_1");
        assert_eq!(lines[0]["verdict"], verdict);
        assert_eq!(lines[0]["data"]["run"]["id"], "run_1");
    }
}

#[tokio::test]
async fn a_deadline_is_never_a_success() {
    let (ended, simulator) =
        wait_for(Script::runs_forever(), &["--timeout", "600ms", "--json"]).await;
    assert_eq!(ended.code, Some(124), "{ended:?}");
    assert_eq!(ended.json_lines()[0]["verdict"], "timed_out");
    assert!(
        simulator
            .requests()
            .iter()
            .all(|request| request.method == "GET"),
        "the run is only ever read"
    );
}

#[tokio::test]
async fn a_deadline_without_an_answer_is_unreachable() {
    let simulator = api([("run_1", Script::runs_forever())]).await;
    simulator.set_outage(Some(Fault::status(502)));
    let ended = Program::with(&simulator)
        .run(&["wait", "run_1", "--timeout", "600ms", "--json"])
        .await;
    assert_eq!(ended.code, Some(6), "{ended:?}");
    assert_eq!(ended.json_lines()[0]["verdict"], "unreachable");
    assert!(ended.json_lines()[0]["data"]["run"]["status"].is_null());
    // What was seen before is reported all the same.
    let topic = json!({"topic": "AI agents"});
    let seen_once = (2..200).fold(
        Script::runs_forever().input(topic.clone()),
        |script, request| script.fault_on(request, Fault::status(502)),
    );
    let (ended, _) = wait_for(seen_once, &["--timeout", "1500ms", "--json"]).await;
    let lines = ended.json_lines();
    assert_eq!(
        (ended.code, &lines[0]["verdict"]),
        (Some(6), &json!("unreachable")),
        "{lines:?}"
    );
    assert_eq!(lines[0]["data"]["run"]["input"], topic, "{lines:?}");
    // Connections are refused: the port is taken as long as it is held, and no other test gets it.
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let closed = format!("http://{}", held.local_addr().unwrap());
    let program = Program::with(&simulator).set("RUNWATCH_API__BASE_URL", &closed);
    let ended = program.run(&["wait", "run_1", "--timeout", "600ms"]).await;
    assert_eq!(ended.code, Some(6), "{ended:?}");
    let sentence = format!(
        "cannot reach {}: connection refused",
        held.local_addr().unwrap()
    );
    assert!(ended.stderr.contains(&sentence), "{ended:?}");
}

#[tokio::test]
async fn a_hanging_api_does_not_hold_a_deadline_up_for_long() {
    let simulator = api([("run_1", Script::runs_forever())]).await;
    simulator.set_outage(Some(Fault::Hang));
    let runs: Vec<_> = (0..100).map(|index| format!("run_{index}")).collect();
    let wait = ["wait", "--timeout", "500ms"]
        .into_iter()
        .chain(runs.iter().map(String::as_str));
    let began = Instant::now();
    let ended = Program::with(&simulator)
        .run(&wait.collect::<Vec<_>>())
        .await;
    assert_eq!(ended.code, Some(6), "{ended:?}");
    // The deadline, the five seconds after it, and a start and a stop on a machine that has much to do.
    assert!(
        began.elapsed() < Duration::from_millis(500) + Duration::from_secs(5 + 5),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn an_api_that_is_never_reached_ends_it_before_the_deadline() {
    let simulator = api([("run_1", Script::runs_forever())]).await;
    simulator.set_outage(Some(Fault::Hang));
    let grace = |program: Program| program.set("RUNWATCH_WATCH__CONNECT_GRACE", "700ms");
    // It hangs; then nothing listens any more.
    let program = grace(Program::with(&simulator));
    let ended = program.run(&["wait", "run_1", "run_2", "--json"]).await;
    assert_eq!(ended.code, Some(6), "{ended:?}");
    let reason = ended.json_lines()[1]["data"]["reason"].to_string();
    assert!(reason.contains("was not reached within 700"), "{reason}");
    // One that answers, be it with an error, was reached.
    simulator.set_outage(Some(Fault::status(502)));
    let began = Instant::now();
    let ended = program.run(&["wait", "run_1", "--timeout", "1500ms"]).await;
    assert_eq!(ended.code, Some(6), "{ended:?}");
    assert!(began.elapsed() >= Duration::from_millis(1500), "{ended:?}");
    simulator.shutdown().await;
    let ended = program.run(&["wait", "run_1"]).await;
    assert_eq!(ended.code, Some(6), "{ended:?}");
    assert!(
        ended.stdout.contains("was not reached within 700"),
        "{ended:?}"
    );
}

#[tokio::test]
async fn a_run_that_is_never_there_is_not_found_after_the_grace() {
    let simulator = api([]).await;
    let program = Program::with(&simulator).set("RUNWATCH_WATCH__NOT_FOUND_GRACE", "500ms");
    let ended = program.run(&["wait", "run_1", "--json"]).await;
    assert_eq!(ended.code, Some(5), "{ended:?}");
    assert_eq!(ended.json_lines()[0]["verdict"], "not_found");
    assert!(
        simulator.requests().len() > 2,
        "it is polled again and again"
    );
    // It names the address, in case that is the mistake.
    let reason = ended.json_lines()[0]["data"]["reason"].to_string();
    let address = format!("{}/v1/runs/run_1", simulator.base_url());
    assert!(reason.contains(&address), "{reason}");
    // With less time than the grace, it says how far that came.
    let ended = Program::with(&simulator)
        .run(&["wait", "run_1", "--timeout", "600ms", "--json"])
        .await;
    assert_eq!(ended.code, Some(6), "{ended:?}");
    let reason = ended.json_lines()[0]["data"]["reason"].to_string();
    assert!(
        reason.contains("404 for ") && reason.contains("(grace 2m)"),
        "{reason}"
    );
}

#[tokio::test]
async fn a_run_that_appears_late_is_found() {
    let (ended, _) = wait_for(Script::succeeds().appears_after(SOON), &[]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[tokio::test]
async fn a_refused_key_ends_it_at_once() {
    let simulator = api([("run_1", Script::runs_forever())]).await;
    let ended = Program::with(&simulator)
        .set("CREWSHIP_API_KEY", "wrong-key")
        .run(&["wait", "run_1"])
        .await;
    assert_eq!(ended.code, Some(4), "{ended:?}");
    assert!(ended.stderr.contains("refused the key"), "{ended:?}");
    assert!(!format!("{ended:?}").contains("wrong-key"), "{ended:?}");
    assert_eq!(simulator.requests().len(), 1);

    let ended = Program::with(&simulator)
        .unset("CREWSHIP_API_KEY")
        .run(&["wait", "run_1"])
        .await;
    assert_eq!(ended.code, Some(4), "{ended:?}");
    assert!(ended.stderr.contains("CREWSHIP_API_KEY"), "{ended:?}");
    assert_eq!(simulator.requests().len(), 1, "no request without a key");
}

#[tokio::test]
async fn wrong_usage_is_reported_before_any_request() {
    let simulator = api([]).await;
    let program = Program::with(&simulator);
    for arguments in [
        &["wait"] as &[_],
        &["wait", "a/b"],
        &["wait", ".."],
        &["wait", "run_1", "--timeout", "soon"],
        &["wait", "run_1", "--interval", "10ms"],
        &["wait", "run_1", "--label", "novalue"],
        &["wait", "run_1", "--sink", "nowhere"],
        &["wait", "run_1", "--frobnicate"],
        &["wait", "run_1", "--json", "--output"],
        &["frobnicate"],
    ] {
        let ended = program.run(arguments).await;
        assert_eq!(ended.code, Some(2), "{arguments:?}: {ended:?}");
        assert!(
            ended.stdout.is_empty() && ended.stderr.contains("error"),
            "{arguments:?}: {ended:?}"
        );
    }
    let labels: Vec<_> = (0..33)
        .map(|number| format!("--label=label_{number}=x"))
        .collect();
    let arguments: Vec<_> = ["wait", "run_1"]
        .into_iter()
        .chain(labels.iter().map(String::as_str))
        .collect();
    let ended = program.run(&arguments).await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("33 labels"), "{ended:?}");
    let ended = program.run(&["wait", "ok", "not/ok"]).await;
    assert!(ended.stderr.contains("not/ok"), "{ended:?}");
    let ended = program.run_with_input(&["wait", "-"], "").await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert_eq!(simulator.requests().len(), 0);
}

#[tokio::test]
async fn no_fault_of_the_api_is_taken_for_an_end() {
    let faults = [
        Fault::status(500),
        Fault::status(502),
        Fault::status(503),
        Fault::status(400),
        Fault::status(409),
        Fault::Html,
        Fault::Empty,
        Fault::HalfBody,
        Fault::Reset,
        Fault::Oversize(9 * 1024 * 1024),
        Fault::GzipBomb(64 * 1024 * 1024),
        Fault::OtherRun,
        Fault::WrongTypes,
        Fault::Redirect("http://127.0.0.1:1/".to_owned()),
    ];
    // One run per fault, all at the same time, each in its own process.
    let mut waits = tokio::task::JoinSet::new();
    for fault in faults {
        waits.spawn(async move {
            let script = Script::fails("the real end")
                .runs_for(SOON)
                .fault_on(1, fault.clone());
            let (ended, simulator) = wait_for(script, &["--json"]).await;
            (fault, ended, simulator.requests().len())
        });
    }
    while let Some(waited) = waits.join_next().await {
        let (fault, ended, requests) = waited.unwrap();
        assert_eq!(ended.code, Some(1), "{fault:?}: {ended:?}");
        let data = &ended.json_lines()[0]["data"];
        assert_eq!(data["run"]["error_message"], "the real end", "{fault:?}");
        assert_eq!(data["watch"]["polls"], requests, "{fault:?}");
    }
}

#[tokio::test]
async fn a_pause_that_the_api_asks_for_is_kept() {
    for fault in [
        Fault::status(429).with_retry_after("1"),
        Fault::status(503).with_retry_after("1"),
    ] {
        let (ended, simulator) = wait_for(Script::succeeds().fault_on(1, fault.clone()), &[]).await;
        assert_eq!(ended.code, Some(0), "{fault:?}: {ended:?}");
        let requests = simulator.requests();
        assert_eq!(requests.len(), 2, "{fault:?}");
        let gap = requests[1].at.duration_since(requests[0].at);
        assert!(
            gap >= Duration::from_millis(990),
            "{fault:?}: polled again after {gap:?}"
        );
        assert!(ended.stderr.contains("rate limited until "), "{ended:?}");
    }
}

#[tokio::test]
async fn a_forbidden_answer_with_a_limit_that_is_used_up_pauses_the_polls_and_refuses_no_key() {
    let limited = |reset: &str| {
        let fault = Fault::status(403).with_header("date", "Mon, 15 Jan 2024 10:50:00 GMT");
        fault
            .with_header("x-ratelimit-remaining", "0")
            .with_header("x-ratelimit-reset", reset)
    };
    for (reset, expected, least) in [
        (
            "1705315802",
            "rate limited until ",
            Duration::from_millis(1990),
        ),
        // The limit has been reset by then: the poll is made again soon, as after any other failure.
        ("1705315799", "no usable answer", Duration::from_millis(890)),
    ] {
        let (ended, simulator) =
            wait_for(Script::succeeds().fault_on(1, limited(reset)), &[]).await;
        assert_eq!(ended.code, Some(0), "{reset}: {ended:?}");
        assert!(
            ended.stderr.contains(expected) && !ended.stderr.contains("refuse"),
            "{reset}: {ended:?}"
        );
        let requests = simulator.requests();
        assert_eq!(requests.len(), 2, "{reset}");
        let gap = requests[1].at.duration_since(requests[0].at);
        assert!(
            gap >= least && gap < Duration::from_secs(45),
            "{reset}: polled again after {gap:?}"
        );
    }
}

#[tokio::test]
async fn an_unknown_status_is_shown_warned_about_once_and_not_final() {
    let script = Script::succeeds().answers(vec![
        "queued for review",
        "COMPLETED",
        "COMPLETED",
        "running",
    ]);
    let (ended, _) = wait_for(script, &[]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(
        ended.stderr.contains("run_1  queued for review\n"),
        "{ended:?}"
    );
    assert_eq!(
        ended
            .stderr
            .matches("is unknown; it does not end the wait")
            .count(),
        2,
        "once per status: {ended:?}"
    );
}

#[tokio::test]
async fn changes_are_one_plain_line_each_and_the_result_is_on_stdout() {
    // By the number of the answer: how fast the program starts does not matter.
    let script =
        Script::fails("first line\nsecond \x1b[31mline").answers(vec!["pending", "running"]);
    let simulator = api([("run_1", script)]).await;
    let ended = Program::with(&simulator)
        .run(&["wait", "run_1", "--name", "nightly report"])
        .await;
    let without_clock: Vec<_> = ended
        .stderr
        .lines()
        .map(|line| line.get(10..).unwrap_or(line))
        .collect();
    assert_eq!(
        without_clock[..2],
        [
            "nightly report (run_1)  pending",
            "nightly report (run_1)  running",
        ],
        "{ended:?}"
    );
    assert!(
        without_clock.len() == 3
            && without_clock[2].starts_with("nightly report (run_1)  failed")
            && without_clock[2].ends_with(": first line second [31mline"),
        "{ended:?}"
    );
    assert!(
        ended.stdout.contains("nightly report") && ended.stdout.contains("failed"),
        "{ended:?}"
    );
    assert!(ended.stdout.contains("first line"), "{ended:?}");
    assert!(!ended.stdout.contains('\x1b'), "{ended:?}");

    let quiet = Program::with(&simulator)
        .run(&["wait", "run_1", "--quiet"])
        .await;
    assert_eq!(
        (quiet.code, quiet.stdout.as_str(), quiet.stderr.as_str()),
        (Some(1), "", ""),
        "{quiet:?}"
    );
}

#[tokio::test]
async fn output_is_printed_as_it_came_and_nothing_else() {
    let output = json!({"result": "Generated report", "score": 1.0});
    let (ended, _) = wait_for(Script::succeeds().output(output.clone()), &["--output"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&ended.stdout).unwrap(),
        output
    );
    // Byte for byte, but on one line, with what a terminal is spared.
    let odd = "{\"b\": 1.50, \"a\":\t\"\u{202e}\u{85}\\u001b[2J\", \"a\": 12345678901234567890123}";
    let answer = format!("{{\"id\":\"run_1\",\"status\":\"succeeded\",\"output\":{odd}}}");
    let (ended, _) = wait_for(Script::succeeds().verbatim(answer), &["--output"]).await;
    assert_eq!((ended.code, ended.stdout), (Some(0), format!("{odd}\n")));
    let (ended, _) = wait_for(Script::fails("no"), &["--output", "--exit-status"]).await;
    assert_eq!(
        (ended.code, ended.stdout.as_str()),
        (Some(1), ""),
        "{ended:?}"
    );
}

#[tokio::test]
async fn of_several_runs_the_worst_verdict_decides() {
    let simulator = api([
        ("run_ok", Script::succeeds()),
        ("run_canceled", Script::canceled()),
        ("run_bad", Script::fails("no").runs_for(SOON)),
        ("run_bad_soon", Script::fails("no")),
        ("run_long", Script::runs_forever()),
    ])
    .await;
    let program = Program::with(&simulator);
    let ended = program
        .run(&["wait", "run_ok", "run_canceled", "run_ok"])
        .await;
    assert_eq!(ended.code, Some(3), "{ended:?}");
    let ended = program
        .run(&["watch", "run_ok", "run_canceled", "run_bad", "--json"])
        .await;
    assert_eq!(
        (ended.code, ended.json_lines().len()),
        (Some(1), 3),
        "{ended:?}"
    );
    let ended = program
        .run(&["wait", "run_ok", "run_long", "--any", "--json"])
        .await;
    assert_eq!(
        (ended.code, ended.json_lines().len()),
        (Some(0), 1),
        "{ended:?}"
    );
    // Both end before anything was shown; one is the first.
    let ended = program
        .run(&[
            "wait",
            "run_canceled",
            "run_bad_soon",
            "run_long",
            "--any",
            "--json",
        ])
        .await;
    let lines = ended.json_lines();
    assert_eq!(lines.len(), 1, "{ended:?}");
    assert_eq!(
        ended.code,
        Some(if lines[0]["verdict"] == "failed" {
            1
        } else {
            3
        }),
        "{ended:?}"
    );
    let ended = program
        .run(&["wait", "run_ok", "run_bad", "run_long", "--fail-fast"])
        .await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let ended = program
        .run(&["wait", "run_ok", "run_long", "--timeout", "500ms"])
        .await;
    assert_eq!(ended.code, Some(124), "{ended:?}");
}

#[tokio::test]
async fn runs_come_from_standard_input_too() {
    let simulator = api([
        ("run_1", Script::succeeds()),
        ("run_2", Script::fails("no")),
    ])
    .await;
    let program = Program::with(&simulator);
    let ended = program
        .run_with_input(&["wait", "-", "--json"], "run_1\nrun_2\n")
        .await;
    assert_eq!(
        (ended.code, ended.json_lines().len()),
        (Some(1), 2),
        "{ended:?}"
    );
    let created =
        r#"{"run_id":"run_1","version_id":"ver_1","version_number":3,"status":"running"}"#;
    assert_eq!(
        program.run_with_input(&["wait", "-"], created).await.code,
        Some(0)
    );
}

#[tokio::test]
async fn signals_end_it_with_their_codes_and_leave_the_run_alone() {
    use rustix::process::Signal;
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let simulator = api([("run_1", Script::runs_forever())]).await;
        let child = Program::with(&simulator);
        let child = child.command(&["wait", "run_1"]).spawn().unwrap();
        eventually("a first poll", || !simulator.requests().is_empty()).await;
        send_signal(&child, signal);
        let ended = finish(child).await;
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert!(
            simulator
                .requests()
                .iter()
                .all(|request| request.method == "GET")
        );
    }
}

#[tokio::test]
async fn a_signal_while_messages_wait_says_which_are_lost() {
    let simulator = api([("run_1", Script::succeeds())]).await;
    let receiver = Receiver::start([Fault::status(500)]).await.unwrap();
    let url = receiver.url();
    let program = Program::with(&simulator).configured(&format!(
        "[sinks.ops]\ntype = \"webhook\"\nurl = {url:?}\nretry_schedule = [\"1h\"]\n"
    ));
    let child = program
        .command(&["wait", "run_1", "--linger", "2h"])
        .spawn()
        .unwrap();
    received(&receiver, 1).await;
    send_signal(&child, rustix::process::Signal::INT);
    let ended = finish(child).await;
    assert_eq!(ended.code, Some(130), "{ended:?}");
    assert!(
        ended
            .stderr
            .contains("run.succeeded of run_1 was not delivered to ops"),
        "{ended:?}"
    );
}

#[tokio::test]
async fn a_change_of_status_is_shown_before_the_verdict_that_it_leads_to() {
    let runs: Vec<_> = (0..20).map(|n| format!("run_{n}")).collect();
    let simulator = api(runs.iter().map(|run| (run.as_str(), Script::succeeds()))).await;
    let mut arguments = vec!["wait"];
    arguments.extend(runs.iter().map(String::as_str));
    let program = Program::with(&simulator).set("RUNWATCH_API__REQUESTS_PER_MINUTE", "100000");
    // Both outputs in one pipe, so that the order of their lines can be seen.
    let both = [
        "sh",
        "-c",
        "exec \"$@\" 2>&1",
        "sh",
        env!("CARGO_BIN_EXE_runwatch"),
    ];
    let ended = finish(
        program
            .shell(&[&both[..], &arguments].concat())
            .spawn()
            .unwrap(),
    )
    .await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for run in &runs {
        let lines: Vec<_> = ended
            .stdout
            .lines()
            .enumerate()
            .filter(|(_, line)| line.contains(run))
            .collect();
        let changes: Vec<_> = lines
            .iter()
            .filter(|(_, line)| line.contains(&format!("  {run}  succeeded")))
            .collect();
        let verdicts: Vec<_> = lines
            .iter()
            .filter(|(_, line)| line.starts_with(&format!("{run} succeeded")))
            .collect();
        assert_eq!((changes.len(), verdicts.len()), (1, 1), "{run}: {ended:?}");
        assert!(changes[0].0 < verdicts[0].0, "{run}: {ended:?}");
    }
}

#[tokio::test]
async fn an_output_that_is_left_out_is_reported() {
    // No strict parser takes the number.
    let answer = r#"{"id":"run_1","status":"succeeded","output":{"huge":1e999}}"#;
    let simulator = api([("run_1", Script::succeeds().verbatim(answer))]).await;
    let ended = Program::with(&simulator)
        .run(&["wait", "--output", "run_1"])
        .await;
    assert_eq!(
        (ended.code, ended.stdout.as_str()),
        (Some(0), ""),
        "{ended:?}"
    );
    assert!(
        ended.stderr.contains("the output of run_1 is left out"),
        "{ended:?}"
    );
}

#[tokio::test]
async fn an_outage_is_reported_once_without_a_terminal() {
    let simulator = api([("run_1", Script::runs_forever())]).await;
    simulator.set_outage(Some(Fault::status(502)));
    let ended = Program::with(&simulator)
        .run(&["wait", "run_1", "--timeout", "4s"])
        .await;
    assert_eq!(ended.code, Some(6), "{ended:?}");
    assert_eq!(
        ended.stderr.matches("gives no usable answer: 502").count(),
        1,
        "{ended:?}"
    );
}

#[tokio::test]
async fn a_closed_standard_output_changes_no_verdict() {
    let simulator = api([("run_1", Script::fails("no").runs_for(SOON))]).await;
    let program = Program::with(&simulator);
    let mut child = program
        .command(&["wait", "run_1", "--json"])
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ended = finish(child).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(!ended.stderr.contains("panic"), "{ended:?}");
    assert!(
        ended.stderr.contains("cannot write to standard output"),
        "{ended:?}"
    );
}

#[tokio::test]
async fn a_key_that_is_revoked_and_restored_only_pauses_the_wait() {
    let simulator = api([("run_1", Script::runs_forever())]).await;
    let key = simulator.api_key().to_owned();
    let script = Script::runs_forever();
    simulator.add_run(&id("run_2"), script);
    let program = Program::with(&simulator);
    let child = program
        .command(&["wait", "run_2", "--timeout", "3s"])
        .spawn()
        .unwrap();
    eventually("a first answer", || !simulator.requests().is_empty()).await;
    simulator.set_api_key("another");
    let ended = finish(child).await;
    // Refused at the deadline: no usable answer. It was not ended by the refusal.
    assert_eq!(ended.code, Some(6), "{ended:?}");
    assert!(ended.stderr.contains("refuses the key"), "{ended:?}");
    simulator.set_api_key(&key);

    // Restored while it waits: it gives the verdict.
    let mut child = program.command(&["wait", "run_1"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    while !next_line(&mut lines).await.contains("run_1  running") {}
    simulator.set_api_key("another");
    while !next_line(&mut lines).await.contains("refuses the key") {}
    simulator.add_run(&id("run_1"), Script::fails("it broke"));
    simulator.set_api_key(&key);
    let ended = finish(child).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
}

/// Runs a program on a terminal of its own, of so many rows and columns, and of others after its first output: prints
/// what the terminal gets, and ends with the exit code of the program.
const TERMINAL: &str = r#"
import fcntl, os, pty, struct, sys, termios
rows, columns, then_rows, then_columns = map(int, sys.argv[1:5])
def size(file, rows, columns): fcntl.ioctl(file, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
child, terminal = pty.fork()
if child == 0:
    size(0, rows, columns)
    os.execv(sys.argv[5], sys.argv[5:])
resized = False
while True:
    try: got = os.read(terminal, 65536)
    except OSError: break
    if not got: break
    os.write(1, got)
    if not resized: size(terminal, then_rows, then_columns)
    resized = True
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"#;

#[tokio::test]
async fn any_terminal_shows_the_verdict_with_no_more_than_it_understands() {
    const NAME: &str = "n\u{e4}chtlicher \u{1f680} Bericht \u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467} und noch ein langer Name";
    for (what, size, then, term, color) in [
        ("of no size", [0, 0], [0, 0], Some("xterm-256color"), true),
        (
            "of one character",
            [1, 1],
            [1, 1],
            Some("xterm-256color"),
            true,
        ),
        (
            "of three columns",
            [24, 3],
            [24, 3],
            Some("xterm-256color"),
            true,
        ),
        (
            "very wide",
            [50, 5000],
            [50, 5000],
            Some("xterm-256color"),
            true,
        ),
        (
            "that becomes small",
            [24, 80],
            [2, 10],
            Some("xterm-256color"),
            true,
        ),
        (
            "that becomes large",
            [2, 10],
            [200, 1000],
            Some("xterm-256color"),
            true,
        ),
        (
            "without colors",
            [24, 80],
            [24, 80],
            Some("xterm-256color"),
            false,
        ),
        ("that is dumb", [24, 80], [24, 80], Some("dumb"), true),
        ("without a name", [24, 80], [24, 80], None, true),
    ] {
        let script = Script::succeeds().runs_for(Duration::from_secs(1));
        let simulator = api([("run_1", script.from_first_poll())]).await;
        let mut program = Program::with(&simulator);
        if let Some(term) = term {
            program = program.set("TERM", term);
        }
        if !color {
            program = program.set("NO_COLOR", "1");
        }
        let sizes = [size, then]
            .concat()
            .into_iter()
            .map(|number: u32| number.to_string())
            .collect::<Vec<_>>();
        let mut argv = vec!["python3", "-c", TERMINAL];
        argv.extend(sizes.iter().map(String::as_str));
        argv.extend([
            env!("CARGO_BIN_EXE_runwatch"),
            "wait",
            "run_1",
            "--name",
            NAME,
        ]);
        let ended = finish(program.shell(&argv).spawn().unwrap()).await;
        assert_eq!(ended.code, Some(0), "a terminal {what}: {ended:?}");
        assert!(
            !ended.stdout.contains("panicked"),
            "a terminal {what}: {ended:?}"
        );
        assert!(
            ended.stdout.len() < 300_000,
            "a terminal {what} got {} bytes",
            ended.stdout.len()
        );
        let able = term.is_some_and(|term| term != "dumb");
        if !able {
            assert!(
                !ended.stdout.contains("\x1b["),
                "a terminal {what}: {ended:?}"
            );
            assert!(
                ended.stdout.contains("running"),
                "plain lines instead of live ones: {ended:?}"
            );
        }
        if !color {
            let colors = ended
                .stdout
                .split("\x1b[")
                .skip(1)
                .filter_map(|rest| rest.split_once('m'));
            let mut colors = colors.map(|(code, _)| code).filter(|code| {
                code.bytes()
                    .all(|byte| byte.is_ascii_digit() || byte == b';')
            });
            assert_eq!(
                colors.find(|code| !code.is_empty() && *code != "0"),
                None,
                "{ended:?}"
            );
        }
    }
}

/// A run API with lists, whose runs have ended by their second poll: the first looks at its list find nothing.
struct Jobs {
    base_url: String,
    requests: Arc<Mutex<Vec<String>>>,
    _serving: JoinSet<()>,
}

impl Jobs {
    async fn start(empty_looks: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, mut serving) = (Arc::clone(&requests), JoinSet::new());
        serving.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                        break;
                    }
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                let (status, body) = {
                    let mut seen = seen.lock().unwrap();
                    seen.push(path.clone());
                    let looks = seen.iter().filter(|path| path.contains("/runs")).count();
                    let polls = seen.iter().filter(|other| **other == path).count();
                    let status = match path.starts_with("/sick/runs") && looks <= 2 {
                        true => "502 Bad Gateway",
                        false => "200 OK",
                    };
                    let body = match path.split('?').next().unwrap_or_default() {
                        "/sick/runs" => r#"[{"id":1,"state":"on"}]"#.to_owned(),
                        "/none/runs" => "[]".to_owned(),
                        "/a/runs" if looks <= empty_looks => "[]".to_owned(),
                        "/a/runs" if path.contains("branch=main") => {
                            r#"[{"id":1,"state":"on","at":"2026-11-28T08:00:00Z"},{"id":3,"state":"on","at":"2026-11-28T08:02:00Z"}]"#.to_owned()
                        }
                        "/a/runs" => r#"[{"id":1,"state":"on"},{"id":2,"state":"off"},{"id":3,"state":"on"}]"#.to_owned(),
                        _ if polls < 2 => r#"{"state":"on"}"#.to_owned(),
                        "/a/1" => r#"{"state":"bad"}"#.to_owned(),
                        _ => r#"{"state":"off"}"#.to_owned(),
                    };
                    (status, body)
                };
                let answer = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                let _gone = stream.write_all(answer.as_bytes()).await;
            }
        });
        Self {
            base_url,
            requests,
            _serving: serving,
        }
    }

    async fn wait(&self, arguments: &[&str]) -> Ended {
        let profile = r#"
            auth = { scheme = "none" }
            id = "{scope}/{run}"
            parts = { run = "number" }
            get = "/{scope}/{run}"
            rules = [
                { when = { "/state" = "on" }, is = "running" },
                { when = { "/state" = "off" }, is = "succeeded" },
                { when = { "/state" = "bad" }, is = "failed" },
            ]
            created = "/at"
            list = { get = "/{scope}/runs?branch={branch}", items = "", id = { run = "/id" } }"#;
        let program = Program::new().with_file("jobs.toml", profile);
        let file = program.beside_config("jobs.toml");
        let program = program.configured(&format!(
            "[providers.jobs]\nprofile_file = {:?}\nbase_url = {:?}\nrequests_per_minute = 60000\n",
            file.to_str().unwrap(),
            self.base_url
        ));
        program
            .run(&[&["wait", "--interval", "50ms", "--json"], arguments].concat())
            .await
    }
}

#[tokio::test]
async fn the_newest_run_of_a_list_is_watched_also_when_it_was_only_just_requested() {
    let jobs = Jobs::start(1).await;
    let ended = jobs
        .wait(&["--latest", "jobs", "scope=a", "branch=main"])
        .await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let lines = ended.json_lines();
    assert_eq!(lines.len(), 1, "{ended:?}");
    assert_eq!(
        (&lines[0]["provider"], &lines[0]["run_id"]),
        (&json!("jobs"), &json!("a/3"))
    );
    let requests = jobs.requests.lock().unwrap().clone();
    assert_eq!(
        requests[..2],
        ["/a/runs?branch=main", "/a/runs?branch=main"]
    );
}

#[tokio::test]
async fn all_runs_that_go_on_are_watched() {
    let jobs = Jobs::start(0).await;
    let ended = jobs.wait(&["--all-active", "jobs", "scope=a"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let mut verdicts: Vec<_> = ended
        .json_lines()
        .iter()
        .map(|line| format!("{} {}", line["run_id"], line["verdict"]))
        .collect();
    verdicts.sort();
    assert_eq!(verdicts, [r#""a/1" "failed""#, r#""a/3" "succeeded""#]);
}

#[tokio::test]
async fn a_list_that_fails_at_first_is_requested_again() {
    let jobs = Jobs::start(0).await;
    let ended = jobs.wait(&["--all-active", "jobs", "scope=sick"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.json_lines().len(), 1, "{ended:?}");
    assert!(
        ended
            .stderr
            .contains("jobs: the list cannot be read yet: 502"),
        "{ended:?}"
    );
}

#[tokio::test]
async fn a_list_without_runs_ends_a_wait_after_a_while() {
    let jobs = Jobs::start(0).await;
    let (latest, active) = tokio::join!(
        jobs.wait(&["--latest", "jobs", "scope=none"]),
        jobs.wait(&["--all-active", "jobs", "scope=none"])
    );
    assert_eq!(latest.code, Some(5), "{latest:?}");
    assert!(
        latest.stderr.contains("jobs: the list has no such run"),
        "{latest:?}"
    );
    assert_eq!(active.code, Some(0), "{active:?}");
    assert!(active.stderr.contains("jobs: no run goes on"), "{active:?}");
}

#[tokio::test]
async fn parameters_that_a_list_does_not_have_are_wrong_usage() {
    let jobs = Jobs::start(0).await;
    for (arguments, why) in [
        (
            &["--latest", "jobs"][..],
            "the list needs the parameter scope",
        ),
        (
            &["--latest", "jobs", "scope=a", "color=red"],
            "the list has no parameter \\\"color\\\"; it has scope, branch",
        ),
        (
            &["--all-active", "jobs", "scope=.."],
            "the parameter scope is",
        ),
        (
            &["--latest", "jobs", "scope=a", "scope=b"],
            "scope is given twice",
        ),
        (
            &["--latest", "jobs", "jobs:a/1"],
            "jobs:a/1 is not a parameter of a list",
        ),
        (&["--latest", "http202"], "http202"),
        (&["--latest", "nothing"], "nothing"),
        (&["scope=a"], "scope=a"),
    ] {
        let ended = jobs.wait(arguments).await;
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.stderr.contains(why), "{ended:?}");
    }
    assert_eq!(jobs.requests.lock().unwrap().len(), 0);
}
