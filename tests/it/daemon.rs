//! The service as an operator runs it: the built program over a store on disk.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use runwatch::domain::RunRef;
use runwatch::simulator::{Fault, Received, Receiver, Script, Simulator};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixDatagram, UnixStream};
use tokio::process::Child;

use crate::support::{
    Ended, Program, api, collect, collect_rest, eventually, finish, http_client, next_line,
    received, send_signal, until,
};

const SOON: Duration = Duration::from_millis(300);

/// The answer about a run that ended long before any test.
const OVER_LONG_AGO: &str = r#"{"id":"run_0","status":"succeeded","created_at":"2024-01-15T10:35:00Z",
    "started_at":"2024-01-15T10:35:00Z","completed_at":"2024-01-15T10:35:05Z"}"#;

/// A program whose daemon has a place for its socket, asks `simulator` and tells `receiver`.
pub(crate) fn program(simulator: &Simulator, receiver: &Receiver, more: &str) -> Program {
    let url = receiver.url();
    let retries = "retry_schedule = [\"100ms\", \"100ms\", \"100ms\", \"1h\"]";
    let program = Program::with(simulator).configured(&format!(
        "{more}\n[sinks.hook]\ntype = \"webhook\"\nurl = \"{url}\"\n{retries}\n"
    ));
    let run = program.home().join("run");
    std::fs::create_dir_all(&run).unwrap();
    program.set("XDG_RUNTIME_DIR", run.to_str().unwrap())
}

pub(crate) fn socket(program: &Program) -> PathBuf {
    program.home().join("run/runwatch/runwatch.sock")
}

fn store(program: &Program) -> PathBuf {
    program.home().join(".local/state/runwatch/runwatch.db")
}

/// Starts the daemon and waits until it answers.
pub(crate) async fn start(program: &Program) -> Child {
    let mut child = program.command(&["daemon"]).spawn().unwrap();
    collect(&mut child);
    let socket = socket(program);
    until("the daemon to listen", async || {
        assert!(child.try_wait().unwrap().is_none(), "the daemon ended");
        UnixStream::connect(&socket).await.ok()
    })
    .await;
    // It listens before the store is open, and answers after that; it may die before, where the test wants that.
    program.run(&["list"]).await;
    child
}

/// Stops a daemon that has logged no error.
pub(crate) async fn stop(child: Child) -> Ended {
    stop_expecting(child, &[]).await
}

/// Stops a daemon whose errors in the log each hold one of `expected`, and each of these is there.
pub(crate) async fn stop_expecting(child: Child, expected: &[&str]) -> Ended {
    send_signal(&child, Signal::TERM);
    let ended = finish(child).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
    let errors: Vec<_> = ended
        .stderr
        .lines()
        .filter(|line| line.contains("ERROR "))
        .collect();
    let unexpected = errors
        .iter()
        .find(|line| !expected.iter().any(|part| line.contains(part)));
    assert_eq!(unexpected, None, "{ended:?}");
    for part in expected {
        assert!(
            errors.iter().any(|line| line.contains(part)),
            "{part}: {ended:?}"
        );
    }
    ended
}

pub(crate) async fn kill(child: Child) -> Ended {
    send_signal(&child, Signal::KILL);
    finish(child).await
}

pub(crate) async fn add(program: &Program, run: &str) {
    let ended = program.run(&["add", run]).await;
    assert_eq!(
        (ended.code, ended.stdout),
        (Some(0), format!("{run}: watching\n")),
        "{}",
        ended.stderr
    );
}

pub(crate) async fn json(program: &Program, arguments: &[&str]) -> Value {
    let ended = program.run(&[arguments, &["--json"]].concat()).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    serde_json::from_str(&ended.stdout).unwrap()
}

/// Waits until the daemon says that a run has its verdict, and returns all it says.
pub(crate) async fn verdict(program: &Program, run: &str) -> Value {
    let waited = program.run(&["wait", "--daemon", "-q", run]).await;
    assert!(waited.stderr.is_empty(), "{waited:?}");
    json(program, &["show", run]).await
}

/// Waits until the first message of a run has arrived, and returns all that the daemon says of the run.
async fn delivered(program: &Program, run: &str) -> Value {
    let look = async || {
        let shown = json(program, &["show", run]).await;
        (shown["deliveries"][0]["state"] == "delivered").then_some(shown)
    };
    until("the delivery", look).await
}

fn ids(received: &[Received]) -> Vec<&str> {
    received
        .iter()
        .map(|request| request.headers["webhook-id"].to_str().unwrap())
        .collect()
}

pub(crate) fn body(received: &Received) -> Value {
    serde_json::from_slice(&received.body).unwrap()
}

#[tokio::test]
async fn what_was_acknowledged_outlives_the_process() {
    let simulator = api([("run_1", Script::fails("it broke").runs_for(SOON))]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let program = program(&simulator, &receiver, "");
    let daemon = start(&program).await;
    add(&program, "run_1").await;
    kill(daemon).await;
    assert!(
        socket(&program).exists(),
        "a killed process leaves its socket"
    );
    let daemon = start(&program).await;
    assert!(
        program
            .run(&["add", "run_1"])
            .await
            .stdout
            .starts_with("run_1: already watched")
    );
    let received = received(&receiver, 1).await;
    assert_eq!(body(&received[0])["type"], "run.failed");
    let ended = stop(daemon).await;
    assert!(
        ended.stderr.contains("ready") && ended.stderr.contains("stopping"),
        "{ended:?}"
    );
    assert!(
        !socket(&program).exists(),
        "a daemon that stops takes its socket with it"
    );
}

#[tokio::test]
async fn a_death_at_any_step_loses_no_message_and_makes_no_second_one() {
    for point in ["observed", "verdict-stored", "claimed", "sent", "recorded"] {
        let simulator = api([("run_1", Script::succeeds())]).await;
        let receiver = Receiver::start([]).await.unwrap();
        let program = program(&simulator, &receiver, "").set("RUNWATCH_CRASH_AT", point);
        let daemon = start(&program).await;
        // It may be gone before it has answered.
        program.run(&["add", "run_1"]).await;
        let ended = finish(daemon).await;
        assert_eq!(ended.code, None, "{point}: it dies there: {ended:?}");

        let program = program.set("RUNWATCH_CRASH_AT", "");
        let daemon = start(&program).await;
        assert_eq!(
            verdict(&program, "run_1").await["verdict"],
            "succeeded",
            "{point}"
        );
        let received = received(&receiver, 1).await;
        let shown = delivered(&program, "run_1").await;
        stop(daemon).await;
        let received = if received.len() > 1 {
            received
        } else {
            receiver.requests()
        };
        assert_eq!(
            received.len(),
            if point == "sent" { 2 } else { 1 },
            "{point}"
        );
        assert!(
            ids(&received)
                .iter()
                .all(|id| *id == shown["deliveries"][0]["id"]),
            "{point}: {received:?}"
        );
        assert_eq!(
            shown["deliveries"].as_array().unwrap().len(),
            1,
            "{point}: {shown}"
        );
    }
}

#[tokio::test]
async fn a_run_that_ended_unwatched_is_reported_as_late() {
    let simulator = api([("run_1", Script::runs_forever())]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let program = program(&simulator, &receiver, "");
    let daemon = start(&program).await;
    add(&program, "run_1").await;
    eventually("a first poll", || !simulator.requests().is_empty()).await;
    kill(daemon).await;
    simulator.add_run(&RunRef::new("run_1").unwrap(), Script::succeeds());
    // The times of the API are whole seconds: an end in the second of the start is no evidence.
    let ended = Timestamp::now();
    eventually("two seconds", || {
        Timestamp::now().duration_since(ended).as_secs() >= 2
    })
    .await;
    let daemon = start(&program).await;
    let received = received(&receiver, 1).await;
    assert_eq!(
        body(&received[0])["data"]["watch"]["late"],
        true,
        "{:?}",
        received[0]
    );
    stop(daemon).await;
}

#[tokio::test]
async fn watches_of_the_configuration_are_added_once() {
    let simulator = api([
        ("run_1", Script::succeeds()),
        ("run_2", Script::runs_forever()),
    ])
    .await;
    let receiver = Receiver::start([]).await.unwrap();
    let configured = "[store]\nretention = \"100ms\"\n[[watches]]\nrun_id = \"run_1\"\nname = \"nightly\"\n\
                      [[watches]]\nrun_id = \"run_2\"\n";
    let program = program(&simulator, &receiver, configured);
    let daemon = start(&program).await;
    let received = received(&receiver, 1).await;
    assert_eq!(body(&received[0])["data"]["watch"]["name"], "nightly");
    // It is pruned once its message is delivered; the one that goes on stays.
    let left = until("run_1 to be pruned", async || {
        let watches = json(&program, &["list", "--all"]).await["watches"].clone();
        (watches.as_array().unwrap().len() == 1).then_some(watches)
    })
    .await;
    assert_eq!(left[0]["run_id"], "run_2");
    assert_eq!(program.run(&["remove", "run_2"]).await.code, Some(0));
    stop(daemon).await;
    let daemon = start(&program).await;
    assert_eq!(
        json(&program, &["list", "--all"]).await["watches"],
        json!([])
    );
    stop(daemon).await;
    assert_eq!(receiver.requests().len(), 1);
}

/// The value of a metric without labels.
pub(crate) async fn metric(program: &Program, name: &str) -> f64 {
    let http = http_client()
        .unix_socket(socket(program))
        .no_proxy()
        .build()
        .unwrap();
    let response = http.get("http://localhost/metrics").send().await.unwrap();
    let text = text(response).await;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value
        .unwrap_or_else(|| panic!("no {name} in {text}"))
        .parse()
        .unwrap()
}

#[tokio::test]
async fn a_reload_changes_sinks_and_a_wrong_file_changes_nothing() {
    let simulator = api([
        ("run_1", Script::runs_forever()),
        ("run_2", Script::succeeds()),
    ])
    .await;
    let (receiver, other) = (
        Receiver::start([]).await.unwrap(),
        Receiver::start([]).await.unwrap(),
    );
    let mut program = program(&simulator, &receiver, "");
    let daemon = start(&program).await;
    add(&program, "run_1").await;
    let read_at = "runwatch_config_last_reload_success_timestamp_seconds";
    let successful = "runwatch_config_last_reload_successful";
    assert_eq!(metric(&program, successful).await, 1.0);
    let started = metric(&program, read_at).await;
    let age = Timestamp::now().as_second() as f64 - started;
    assert!((-1.0..600.0).contains(&age), "{age}");

    program = program.configured("[nonsense]\n");
    send_signal(&daemon, Signal::HUP);
    let warning = until("the warning", async || {
        let listed = program.run(&["list"]).await;
        assert_eq!(listed.code, Some(0), "{listed:?}");
        listed
            .stderr
            .contains("not in force")
            .then_some(listed.stderr)
    })
    .await;
    assert_eq!(warning.matches("nonsense").count(), 1, "{warning}");
    assert_eq!(metric(&program, successful).await, 0.0);
    assert_eq!(
        metric(&program, read_at).await,
        started,
        "in force since then"
    );
    // The sinks of before are still in force.
    simulator.add_run(&RunRef::new("run_3").unwrap(), Script::fails("it broke"));
    add(&program, "run_3").await;
    assert_eq!(
        body(&received(&receiver, 1).await[0])["data"]["run"]["id"],
        "run_3"
    );

    let new = format!(
        "[sinks.other]\ntype = \"webhook\"\nurl = \"{}\"\n[[watches]]\nrun_id = \"run_2\"\n",
        other.url()
    );
    program = program.configured(&new);
    send_signal(&daemon, Signal::HUP);
    let received = received(&other, 1).await;
    assert_eq!(body(&received[0])["data"]["run"]["id"], "run_2");
    until("the metric of the reload", async || {
        (metric(&program, successful).await == 1.0).then_some(())
    })
    .await;
    assert!(metric(&program, read_at).await > started);
    let listed = json(&program, &["list"]).await;
    assert_eq!(
        (
            listed["notices"].clone(),
            listed["watches"][0]["run_id"].clone()
        ),
        (json!([]), json!("run_1"))
    );
    let ended = stop_expecting(
        daemon,
        &[
            "the configuration cannot be used",
            "configuration not reloaded, and the one before stays in force; correct the file",
        ],
    )
    .await;
    let reports = ended.stderr.matches("there is no such section").count();
    assert_eq!(reports, 1, "{}", ended.stderr);
    assert_eq!(receiver.requests().len(), 1);
}

#[tokio::test]
async fn one_daemon_per_store_and_private_files() {
    use std::os::unix::fs::PermissionsExt as _;
    let simulator = api([]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let program = program(&simulator, &receiver, "");
    let daemon = start(&program).await;
    let second = program.run(&["daemon"]).await;
    assert_eq!(second.code, Some(2), "{second:?}");
    assert!(
        second
            .stderr
            .contains(&format!("process {}", daemon.id().unwrap())),
        "{second:?}"
    );
    let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(socket(&program)), 0o600);
    assert_eq!(mode(socket(&program).parent().unwrap().to_owned()), 0o700);
    assert_eq!(mode(store(&program)), 0o600);
    assert_eq!(mode(store(&program).parent().unwrap().to_owned()), 0o700);
    // Another store, the same socket.
    let elsewhere = program.home().join("other.db");
    let other = program
        .command(&["daemon"])
        .env("RUNWATCH_STORE__PATH", &elsewhere)
        .spawn()
        .unwrap();
    let other = finish(other).await;
    assert_eq!(other.code, Some(2), "{other:?}");
    assert!(other.stderr.contains("another daemon answers"), "{other:?}");
    stop(daemon).await;
}

#[tokio::test]
async fn a_store_that_cannot_be_used_stops_it_and_is_left_alone() {
    let simulator = api([]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let program = program(&simulator, &receiver, "");
    stop(start(&program).await).await;
    let path = store(&program);
    let good = std::fs::read(&path).unwrap();
    let mut damaged = good.clone();
    // All pages but the first, which has the version.
    damaged.iter_mut().skip(4096).for_each(|byte| *byte = 0xa5);
    let mut newer = good.clone();
    // The version is a big-endian number at offset 60 (sqlite.org/fileformat2.html, "user_version").
    newer[60..64].copy_from_slice(&1000_u32.to_be_bytes());
    for (content, expected) in [
        (
            b"these are no watches but a text, long enough to be taken for a header".to_vec(),
            "not a database",
        ),
        (damaged, "damaged"),
        (newer, "version 1000"),
    ] {
        std::fs::write(&path, &content).unwrap();
        let ended = program.run(&["daemon"]).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(
            ended.stderr.contains(expected) && ended.stderr.contains("runwatch.db"),
            "{expected}: {ended:?}"
        );
        assert_eq!(
            std::fs::read(&path).unwrap(),
            content,
            "{expected}: it is left as it is"
        );
    }
}

#[tokio::test]
async fn a_read_only_disk_stops_it_with_a_reason() {
    let simulator = api([]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let program =
        program(&simulator, &receiver, "").set("RUNWATCH_STORE__PATH", "disk/runwatch.db");
    std::fs::create_dir(program.home().join("disk")).unwrap();
    let script = format!(
        "mount -t tmpfs tmpfs disk && mount -o remount,ro disk && exec {} daemon",
        env!("CARGO_BIN_EXE_runwatch")
    );
    let argv = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        &script,
    ];
    let ended = finish(program.shell(&argv).spawn().unwrap()).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended.stderr.contains("disk/runwatch.db") && ended.stderr.contains("Read-only file system"),
        "{ended:?}"
    );
    // A folder that cannot be made is no mistake of the configuration either: a service manager may try again.
    let program = program.set("RUNWATCH_STORE__PATH", "disk/new/runwatch.db");
    let ended = finish(program.shell(&argv).spawn().unwrap()).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    for part in [
        "cannot keep watches and messages in disk/new",
        "Read-only file system",
        ":memory:",
    ] {
        assert!(ended.stderr.contains(part), "{part}: {ended:?}");
    }
}

#[tokio::test]
async fn a_full_disk_refuses_what_it_cannot_keep_and_keeps_the_rest() {
    let simulator = api([("run_1", Script::runs_forever())]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let program = program(&simulator, &receiver, "");
    let (runwatch, disk) = (env!("CARGO_BIN_EXE_runwatch"), program.home().join("disk"));
    std::fs::create_dir(&disk).unwrap();
    // A disk of its own in a namespace of its own; the second daemon runs after the first is killed.
    let script = format!(
        "set -e; mount -t tmpfs -o size=1M,mode=700 tmpfs disk; export RUNWATCH_STORE__PATH=disk/runwatch.db\n\
         {runwatch} daemon & echo $! > first; wait $! || true; rm -f {0}; exec {runwatch} daemon",
        socket(&program).display(),
    );
    let mut machine = program.shell(&[
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        &script,
    ]);
    let machine = machine.spawn().unwrap();
    let socket = socket(&program);
    eventually("the first daemon", || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    })
    .await;
    let labels = format!("long={}", "x".repeat(200));
    let mut kept = Vec::new();
    let refused = until("the disk to be full", async || {
        let batch: Vec<_> = (0..500)
            .map(|n| format!("run_{}_{n}", kept.len()))
            .collect();
        let ended = program
            .run_with_input(&["add", "-", "--label", &labels], &batch.join("\n"))
            .await;
        kept.extend(
            ended
                .stdout
                .lines()
                .filter_map(|line| Some(line.strip_suffix(": watching")?.to_owned())),
        );
        (ended.code != Some(0)).then_some(ended)
    })
    .await;
    let reason = refused.stderr.lines().next().unwrap_or_default();
    assert_eq!(refused.code, Some(1), "{reason}");
    assert!(
        reason.contains("is not watched") && reason.contains("full"),
        "{reason}"
    );
    assert!(kept.len() > 100, "{}", kept.len());
    // Its health does not hang on the disk, and its readiness does.
    let ended = program.run(&["healthcheck"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let ended = until("a daemon that is not ready", async || {
        let ended = program.run(&["healthcheck", "--ready"]).await;
        if ended.code != Some(0) {
            return Some(ended);
        }
        // A little room was left.
        let run = format!("run_{}_more", kept.len());
        if program.run(&["add", &run, "--label", &labels]).await.code == Some(0) {
            kept.push(run);
        }
        None
    })
    .await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("full"), "{ended:?}");
    let first = std::fs::read_to_string(program.home().join("first")).unwrap();
    let first = rustix::process::Pid::from_raw(first.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(first, Signal::KILL).unwrap();
    let gone = || rustix::process::test_kill_process(first).is_err();
    eventually("the end of the first daemon", gone).await;
    eventually("the second daemon", || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    })
    .await;
    let listed = json(&program, &["list"]).await;
    let listed: std::collections::BTreeSet<_> = listed["watches"]
        .as_array()
        .unwrap()
        .iter()
        .map(|watch| watch["run_id"].as_str().unwrap())
        .collect();
    let lost: Vec<_> = kept
        .iter()
        .filter(|run| !listed.contains(run.as_str()))
        .collect();
    assert_eq!(lost, Vec::<&String>::new());
    // What else shares a transaction with a rejected write is rejected with it: a claim of deliveries, for instance.
    let ended = stop_expecting(machine, &["database or disk is full"]).await;
    let logged = ended.stderr.matches("the store cannot be written").count();
    // Hundreds were refused. Where a little room is found in between, it begins again.
    assert!(
        (1..100).contains(&logged),
        "when it begins, not for each refusal: {}",
        ended.stderr
    );
}

#[tokio::test]
async fn a_message_that_was_given_up_can_be_tried_again() {
    let simulator = api([("run_1", Script::succeeds())]).await;
    let receiver = Receiver::start((0..5).map(|_| Fault::status(500)))
        .await
        .unwrap();
    let mut program = program(&simulator, &receiver, "");
    let url = receiver.url();
    program = program.configured(&format!(
        "[sinks.hook]\ntype = \"webhook\"\nurl = \"{url}\"\nretry_schedule = [\"50ms\"]\n"
    ));
    let daemon = start(&program).await;
    add(&program, "run_1").await;
    let dead = until("the message to be given up", async || {
        let failed =
            json(&program, &["deliveries", "--failed", "--sink", "hook"]).await["deliveries"][0]
                .clone();
        (failed["state"] == "dead").then_some(failed)
    })
    .await;
    assert_eq!(
        (dead["attempts"].clone(), dead["run_id"].clone()),
        (json!(2), json!("run_1"))
    );
    assert!(
        dead["last_result"].as_str().unwrap().contains("500"),
        "{dead}"
    );
    let id = dead["id"].as_str().unwrap();
    // The schedule begins anew: two attempts more each time.
    for attempts in [4, 6] {
        let retried = program.run(&["deliveries", "retry", id]).await;
        assert_eq!(retried.code, Some(0), "{retried:?}");
        received(&receiver, attempts).await;
        until("the end of the attempt", async || {
            (json(&program, &["deliveries", "--failed"]).await["deliveries"][0]["state"]
                != "sending")
                .then_some(())
        })
        .await;
    }
    let shown = json(&program, &["show", "run_1"]).await;
    let attempts = shown["deliveries"][0]["attempt_log"].as_array().unwrap();
    let outcome: Vec<_> = attempts
        .iter()
        .map(|attempt| attempt["delivered"].as_bool().unwrap())
        .collect();
    assert_eq!(outcome, [false, false, false, false, false, true]);
    assert!(ids(&receiver.requests()).iter().all(|sent| *sent == id));
    for (id, code, reason) in [
        (id, 1, "has arrived"),
        ("msg_f", 1, "not known"),
        ("a/b", 2, "a/b"),
    ] {
        let refused = program.run(&["deliveries", "retry", id]).await;
        assert!(
            refused.code == Some(code) && refused.stderr.contains(reason),
            "{id}: {refused:?}"
        );
    }
    let ended = stop_expecting(daemon, &["delivery given up"]).await;
    for (what, times) in [
        ("the sink does not accept notifications", 1),
        ("delivery given up; `runwatch deliveries retry`", 2),
        ("the sink accepts notifications again", 1),
    ] {
        let log = &ended.stderr;
        assert_eq!(log.matches(what).count(), times, "{what}: {log}");
    }
}

#[tokio::test]
async fn show_explains_who_was_notified_and_who_was_not() {
    let simulator = api([(
        "run_1",
        Script::runs_forever().fault_on(2, Fault::status(502)),
    )])
    .await;
    let receiver = Receiver::start([Fault::status(503)]).await.unwrap();
    let more = "[sinks.quiet]\ntype = \"log\"\nevents = [\"run.succeeded\"]\n\
                [sinks.search]\ntype = \"log\"\nlabels = { team = \"search\" }";
    let program = program(&simulator, &receiver, more);
    let daemon = start(&program).await;
    let added = program
        .run(&[
            "add",
            "run_1",
            "--name",
            "nightly \u{202e}report",
            "--label",
            "team=other",
        ])
        .await;
    assert_eq!(added.code, Some(0), "{added:?}");
    until("an error", async || {
        (!json(&program, &["show", "run_1"]).await["last_error"].is_null()).then_some(())
    })
    .await;
    simulator.add_run(&RunRef::new("run_1").unwrap(), Script::fails("it broke"));
    verdict(&program, "run_1").await;
    received(&receiver, 2).await;
    delivered(&program, "run_1").await;
    let shown = program.run(&["show", "run_1"]).await.stdout;
    for part in [
        "✗ nightly report   run_1\n  failed",
        ": it broke\n  started ",
        "times in UTC\n  notified    hook   ✓ ",
        ", 2 attempts\n  not         quiet  its events leave out run.failed",
        "search the watch lacks the label team=search",
        "HISTORY     ",
        " running · ",
        "labels team=other",
        "last error 502 Bad Gateway",
        "run.failed to hook",
        "✗ attempt 1 failed after ",
        "503 Service Unavailable",
        "✓ attempt 2 arrived after ",
        "204 No Content",
    ] {
        assert!(shown.contains(part), "{part}:\n{shown}");
    }
    let unknown = program.run(&["show", "run_2"]).await;
    assert!(
        unknown.code == Some(1) && unknown.stderr.contains("run_2 is not known here"),
        "{unknown:?}"
    );
    stop(daemon).await;
}

#[tokio::test]
async fn lists_are_filtered() {
    let simulator = api([
        ("run_1", Script::runs_forever()),
        ("run_2", Script::canceled()),
    ])
    .await;
    let receiver = Receiver::start([]).await.unwrap();
    let program = program(&simulator, &receiver, "");
    let daemon = start(&program).await;
    let added = program
        .run(&[
            "add",
            "run_1",
            "run_2",
            "--label",
            "team=search",
            "--label",
            "env=test",
        ])
        .await;
    assert_eq!(added.code, Some(0), "{added:?}");
    add(&program, "run_3").await;
    verdict(&program, "run_2").await;
    for (arguments, expected) in [
        (&["list"] as &[_], vec!["run_1", "run_3"]),
        (&["list", "--all"], vec!["run_1", "run_2", "run_3"]),
        (&["list", "--verdict", "canceled"], vec!["run_2"]),
        (&["list", "--verdict", "failed"], vec![]),
        (&["list", "--label", "team=search"], vec!["run_1"]),
        (
            &[
                "list",
                "--all",
                "--label",
                "team=search",
                "--label",
                "env=test",
            ],
            vec!["run_1", "run_2"],
        ),
        (
            &[
                "list",
                "--all",
                "--label",
                "team=search",
                "--label",
                "env=prod",
            ],
            vec![],
        ),
    ] {
        let listed = json(&program, arguments).await;
        let mut listed: Vec<_> = listed["watches"]
            .as_array()
            .unwrap()
            .iter()
            .map(|watch| watch["run_id"].as_str().unwrap())
            .collect();
        listed.sort_unstable();
        assert_eq!(listed, expected, "{arguments:?}");
    }
    let ended = program.run(&["list", "--all"]).await;
    let rows: Vec<_> = ended.stdout.lines().collect();
    assert!(
        rows[0].starts_with("   RUN ") && rows.len() == 4,
        "{ended:?}"
    );
    assert!(
        rows[1].contains("run_3"),
        "the newest comes first: {ended:?}"
    );
    let counts = "3 watches: 1 not there yet, 1 canceled, 1 running";
    let line = ended.stderr.trim_end();
    let requests = line
        .strip_prefix(counts)
        .unwrap_or_else(|| panic!("{ended:?}"));
    assert!(requests.ends_with(" req/min"), "{ended:?}");
    let limited = program.run(&["list", "--all", "--limit", "1"]).await;
    assert_eq!(limited.stdout.lines().count(), 2, "{limited:?}");
    assert!(
        limited.stderr.contains("; the newest 1 are shown"),
        "{limited:?}"
    );
    let limited = json(&program, &["list", "--all", "--limit", "1"]).await;
    assert_eq!(limited["watches"].as_array().unwrap().len(), 1);
    assert_eq!(limited["watches"][0]["run_id"], "run_3");
    let none = program.run(&["list", "--limit", "0"]).await;
    assert_eq!(none.code, Some(2), "{none:?}");
    let colored = program.run(&["list", "--all", "--color", "always"]).await;
    assert!(
        colored.stdout.contains("\x1b[33mcanceled\x1b[0m"),
        "{colored:?}"
    );
    let quiet = program.run(&["list", "--all", "--quiet"]).await;
    assert_eq!(
        (quiet.stdout.lines().count(), quiet.stderr.as_str()),
        (4, "")
    );
    stop(daemon).await;
}

#[tokio::test]
async fn a_wait_on_the_daemon_leaves_the_watch_there() {
    let simulator = api([
        ("run_1", Script::runs_forever()),
        ("run_2", Script::runs_forever()),
    ])
    .await;
    let receiver = Receiver::start([]).await.unwrap();
    let program = program(&simulator, &receiver, "");
    let daemon = start(&program).await;
    let mut waiting = program
        .command(&["wait", "--daemon", "run_1", "--json"])
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(waiting.stderr.take().unwrap()).lines();
    assert!(next_line(&mut lines).await.ends_with("run_1  running"));
    simulator.add_run(&RunRef::new("run_1").unwrap(), Script::fails("it broke"));
    let ended = finish(waiting).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let line = &ended.json_lines()[0];
    assert_eq!(
        (line["verdict"].clone(), line["data"]["run"]["id"].clone()),
        (json!("failed"), json!("run_1"))
    );

    // The daemon is killed and comes back; a command that waits goes on waiting.
    let mut waiting = program
        .command(&["wait", "--daemon", "run_2"])
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(waiting.stderr.take().unwrap()).lines();
    assert!(next_line(&mut lines).await.ends_with("run_2  running"));
    kill(daemon).await;
    assert!(
        next_line(&mut lines)
            .await
            .contains("waiting for it to come back")
    );
    let daemon = start(&program).await;
    simulator.add_run(&RunRef::new("run_2").unwrap(), Script::canceled());
    assert_eq!(finish(waiting).await.code, Some(3));

    simulator.add_run(&RunRef::new("run_3").unwrap(), Script::runs_forever());
    let mut waiting = program
        .command(&["wait", "--daemon", "run_3"])
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(waiting.stderr.take().unwrap()).lines();
    assert!(next_line(&mut lines).await.ends_with("run_3  running"));
    send_signal(&waiting, Signal::INT);
    assert!(
        next_line(&mut lines)
            .await
            .contains("the daemon continues to watch 1 run")
    );
    assert_eq!(finish(waiting).await.code, Some(130));
    assert_eq!(
        json(&program, &["list"]).await["watches"][0]["run_id"],
        "run_3"
    );
    stop(daemon).await;
}

#[tokio::test]
async fn options_for_a_run_that_is_watched_are_never_dropped_in_silence() {
    let simulator = api([
        ("run_1", Script::runs_forever()),
        ("run_2", Script::runs_forever()),
    ])
    .await;
    let receiver = Receiver::start([]).await.unwrap();
    let program = program(&simulator, &receiver, "");
    let daemon = start(&program).await;
    add(&program, "run_1").await;
    let again = program.run(&["add", "run_1"]).await;
    assert_eq!(
        (again.code, again.stdout.trim()),
        (Some(0), "run_1: already watched"),
        "{}",
        again.stderr
    );
    let dropped = [
        "add",
        "run_1",
        "--sink",
        "hook",
        "--label",
        "a=b",
        "--name",
        "n",
        "--timeout",
        "1h",
    ];
    let ended = program.run(&dropped).await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(
        ended
            .stderr
            .contains("--name, --label, --sink, --timeout are not applied"),
        "{ended:?}"
    );
    let ended = program
        .run(&[
            "wait",
            "--daemon",
            "run_1",
            "--sink",
            "hook",
            "--timeout",
            "200ms",
        ])
        .await;
    assert!(ended.stderr.contains("--sink is not applied"), "{ended:?}");
    // Its own time goes for a wait; the watch goes on.
    assert_eq!(ended.code, Some(124), "{ended:?}");
    assert_eq!(
        json(&program, &["list"]).await["watches"][0]["state"],
        "active"
    );

    // A watch that ended for want of time is no answer to a wait that has more.
    program.run(&["add", "--timeout", "1ms", "run_2"]).await;
    verdict(&program, "run_2").await;
    let known = program.run(&["wait", "--daemon", "run_2"]).await;
    assert_eq!(known.code, Some(124), "{known:?}");
    assert!(
        known.stderr.contains("already watched, and timed_out") && known.stderr.contains("--again"),
        "{known:?}"
    );
    simulator.add_run(&RunRef::new("run_2").unwrap(), Script::succeeds());
    let ended = program
        .run(&["wait", "--daemon", "--timeout", "1h", "run_2"])
        .await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let ended = program.run(&["add", "--again", "run_2"]).await;
    assert_eq!(
        (ended.code, ended.stdout.trim()),
        (Some(0), "run_2: watching"),
        "{}",
        ended.stderr
    );
    stop(daemon).await;
}

#[tokio::test]
async fn a_wait_on_a_daemon_that_is_gone_for_good_ends_in_time() {
    let simulator = api([("run_1", Script::runs_forever())]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let program = program(&simulator, &receiver, "");
    let daemon = start(&program).await;
    let mut waiting = program
        .command(&["wait", "--daemon", "--timeout", "3s", "--json", "run_1"])
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(waiting.stderr.take().unwrap()).lines();
    assert!(
        lines
            .next_line()
            .await
            .unwrap()
            .unwrap()
            .ends_with("run_1  running")
    );
    kill(daemon).await;
    let ended = finish(waiting).await;
    assert_eq!(ended.code, Some(6), "{ended:?}");
    let line = &ended.json_lines()[0];
    assert_eq!(
        (&line["run_id"], &line["verdict"]),
        (&json!("run_1"), &json!("unreachable"))
    );
    assert!(
        line["reason"]
            .as_str()
            .unwrap()
            .contains("the daemon does not answer"),
        "{line}"
    );
}

#[tokio::test]
async fn events_are_followed_and_resumed() {
    let simulator = api([("run_1", Script::succeeds())]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let program = program(&simulator, &receiver, "");
    let daemon = start(&program).await;
    add(&program, "run_1").await;
    verdict(&program, "run_1").await;
    let mut following = program
        .command(&["events", "--after", "0"])
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let first: Value = serde_json::from_str(&next_line(&mut lines).await).unwrap();
    assert_eq!(
        (first["type"].clone(), first["data"]["run"]["id"].clone()),
        (json!("run.succeeded"), json!("run_1"))
    );
    simulator.add_run(&RunRef::new("run_2").unwrap(), Script::canceled());
    add(&program, "run_2").await;
    let second: Value = serde_json::from_str(&next_line(&mut lines).await).unwrap();
    assert_eq!(second["type"], "run.canceled");
    let mut resumed = program
        .command(&["events", "--after", &first["id"].to_string()])
        .spawn()
        .unwrap();
    let mut resumed_lines = BufReader::new(resumed.stdout.take().unwrap()).lines();
    let again: Value = serde_json::from_str(&next_line(&mut resumed_lines).await).unwrap();
    assert_eq!(again, second);
    stop(daemon).await;
    // The daemon is gone: both say so.
    for child in [following, resumed] {
        let ended = finish(child).await;
        assert!(
            ended.code == Some(1) && ended.stderr.contains("the daemon has stopped"),
            "{ended:?}"
        );
    }
}

#[tokio::test]
async fn without_a_daemon_each_command_says_how_to_start_one() {
    let simulator = api([]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let program = program(&simulator, &receiver, "");
    for arguments in [
        &["add", "run_1"] as &[_],
        &["list"],
        &["show", "run_1"],
        &["remove", "run_1"],
        &["events"],
        &["deliveries"],
        &["deliveries", "retry", "msg_1"],
        &["wait", "--daemon", "run_1"],
    ] {
        let ended = program.run(arguments).await;
        assert_eq!(ended.code, Some(2), "{arguments:?}: {ended:?}");
        assert!(
            ended.stderr.contains("no daemon answers") && ended.stderr.contains("runwatch daemon"),
            "{ended:?}"
        );
    }
}

#[tokio::test]
async fn a_stop_keeps_what_cannot_be_finished() {
    let simulator = api([("run_1", Script::succeeds())]).await;
    let receiver = Receiver::start([Fault::Hang]).await.unwrap();
    let program = program(&simulator, &receiver, "");
    let daemon = start(&program).await;
    add(&program, "run_1").await;
    let first = received(&receiver, 1).await;
    send_signal(&daemon, Signal::TERM);
    eventually("no more requests taken", || {
        std::os::unix::net::UnixStream::connect(socket(&program)).is_err()
    })
    .await;
    // A second signal does not wait for the attempt that hangs.
    send_signal(&daemon, Signal::TERM);
    let ended = finish(daemon).await;
    assert_eq!(ended.code, Some(143), "{ended:?}");
    let daemon = start(&program).await;
    let received = received(&receiver, 2).await;
    assert_eq!(ids(&received)[0], ids(&first)[0]);
    assert_eq!(ids(&received)[1], ids(&first)[0]);
    stop(daemon).await;
}

#[tokio::test]
async fn a_client_that_stands_still_does_not_hold_a_stop_up() {
    let simulator = api([]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let program = program(&simulator, &receiver, "");
    let daemon = start(&program).await;
    let mut half = UnixStream::connect(socket(&program)).await.unwrap();
    half.write_all(b"POST /v1/watches HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        .await
        .unwrap();
    let mut deaf = UnixStream::connect(socket(&program)).await.unwrap();
    deaf.write_all(b"GET /v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut waiting = UnixStream::connect(socket(&program)).await.unwrap();
    add(&program, "run_1").await;
    waiting
        .write_all(b"GET /v1/watches/run_1?wait=10m HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let requested_at = std::time::SystemTime::now();
    stop(daemon).await;
    // The 10 s of what is under way, and some for a machine that is busy.
    assert!(
        requested_at.elapsed().unwrap() < Duration::from_secs(12),
        "it ended after {:?}",
        requested_at.elapsed()
    );
}

#[tokio::test]
async fn the_service_manager_is_notified_of_each_state() {
    let simulator = api([]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let program = program(&simulator, &receiver, "");
    let manager = program.home().join("notify.sock");
    let manager_socket = UnixDatagram::bind(&manager).unwrap();
    let program = program
        .set("NOTIFY_SOCKET", manager.to_str().unwrap())
        .set("WATCHDOG_USEC", "200000");
    let next = async |wanted: &str| {
        let looking = async {
            let mut buffer = [0; 4096];
            loop {
                let length = manager_socket.recv(&mut buffer).await.unwrap();
                let notification = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if notification.lines().any(|line| line.starts_with(wanted)) {
                    return notification;
                }
            }
        };
        tokio::time::timeout(crate::support::PATIENCE, looking)
            .await
            .unwrap_or_else(|_| panic!("no notification has {wanted}"))
    };
    let daemon = program.command(&["daemon"]).spawn().unwrap();
    let ready = next("READY=1").await;
    assert!(
        ready.contains("STATUS=watching 0 runs, 0 messages to deliver"),
        "{ready}"
    );
    UnixStream::connect(socket(&program))
        .await
        .expect("it is ready when it says so");
    next("WATCHDOG=1").await;
    send_signal(&daemon, Signal::HUP);
    assert!(next("RELOADING=1").await.contains("MONOTONIC_USEC="));
    next("READY=1").await;
    let _program = program.configured("nonsense = 1\n");
    send_signal(&daemon, Signal::HUP);
    let ready = next("READY=1").await;
    assert!(ready.contains("nonsense"), "{ready}");
    send_signal(&daemon, Signal::TERM);
    next("STOPPING=1").await;
    assert_eq!(finish(daemon).await.code, Some(0));
}

#[tokio::test]
async fn messages_for_a_sink_that_is_gone_are_kept_and_explained() {
    let simulator = api([("run_1", Script::succeeds())]).await;
    let dead = Receiver::start((0..9).map(|_| Fault::status(500)))
        .await
        .unwrap();
    let program = program(&simulator, &dead, "");
    let daemon = start(&program).await;
    add(&program, "run_1").await;
    assert_eq!(verdict(&program, "run_1").await["verdict"], "succeeded");
    stop(daemon).await;
    let program = program.configured("");
    let daemon = start(&program).await;
    let listed = program.run(&["list", "--all"]).await;
    assert!(
        listed
            .stderr
            .contains("1 message waits for hook, which is no longer configured: configure it again, or give up"),
        "{listed:?}"
    );
    let shown = json(&program, &["show", "run_1"]).await;
    let hook = shown["routing"]
        .as_array()
        .unwrap()
        .iter()
        .find(|sink| sink["sink"] == "hook")
        .unwrap();
    assert!(
        hook["why_not"]
            .as_str()
            .unwrap()
            .contains("no sink of that name is configured any more"),
        "{hook}"
    );
    stop(daemon).await;
}

#[tokio::test]
async fn a_job_remembers_a_verdict_that_is_pruned_before_its_end() {
    let simulator = api([
        ("run_1", Script::canceled()),
        ("run_2", Script::runs_forever()),
    ])
    .await;
    let receiver = Receiver::start([]).await.unwrap();
    let configured = "[[watches]]\nrun_id = \"run_1\"\n[[watches]]\nrun_id = \"run_2\"\n";
    let program =
        program(&simulator, &receiver, configured).set("RUNWATCH_STORE__RETENTION", "50ms");
    let pruned = async {
        receiver.wait_for(1).await;
        while program.run(&["show", "run_1"]).await.code == Some(0) {}
        assert_eq!(program.run(&["show", "run_2"]).await.code, Some(0));
        simulator.add_run(&RunRef::new("run_2").unwrap(), Script::succeeds());
    };
    let (ended, ()) = tokio::join!(program.run(&["daemon", "--exit-when-done"]), pruned);
    assert_eq!(ended.code, Some(3), "{ended:?}");
}

#[tokio::test]
async fn a_job_ends_with_the_worst_verdict_once_all_is_delivered() {
    let simulator = api([
        ("run_1", Script::succeeds().runs_for(SOON)),
        ("run_2", Script::canceled()),
    ])
    .await;
    let receiver = Receiver::start([Fault::status(500)]).await.unwrap();
    let configured = "[[watches]]\nrun_id = \"run_1\"\n[[watches]]\nrun_id = \"run_2\"\n";
    let program =
        program(&simulator, &receiver, configured).set("RUNWATCH_STORE__PATH", ":memory:");
    let ended = program.run(&["daemon", "--exit-when-done"]).await;
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(ended.stderr.contains("the store is in memory"), "{ended:?}");
    let delivered: std::collections::BTreeSet<_> = receiver
        .requests()
        .iter()
        .filter(|request| request.accepted)
        .map(|request| body(request)["type"].to_string())
        .collect();
    assert_eq!(delivered.len(), 2, "{delivered:?}");
    assert!(!store(&program).exists() && !program.home().join(":memory:").exists());

    // Messages for a sink that is gone do not hold it up, and runs that ended before are no sign that no more
    // come: the grace passes, and they count.
    let dead = Receiver::start((0..9).map(|_| Fault::status(500)))
        .await
        .unwrap();
    let program = self::program(&simulator, &dead, configured);
    let daemon = start(&program).await;
    assert_eq!(verdict(&program, "run_1").await["verdict"], "succeeded");
    assert_eq!(verdict(&program, "run_2").await["verdict"], "canceled");
    stop(daemon).await;
    let program = program.configured("");
    let grace = Duration::from_millis(300);
    let began = tokio::time::Instant::now();
    let ended = program
        .run(&["daemon", "--exit-when-done", "--idle-grace", "300ms"])
        .await;
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(began.elapsed() >= grace, "{ended:?}");
    assert!(ended.stderr.contains("no longer configured"), "{ended:?}");

    let nothing = Program::new();
    let run = nothing.home().join("run");
    let nothing = nothing
        .set("XDG_RUNTIME_DIR", run.to_str().unwrap())
        .set("CREWSHIP_API_KEY", "k");
    let ended = nothing
        .run(&["daemon", "--exit-when-done", "--idle-grace", "200ms"])
        .await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let ended = nothing.run(&["healthcheck"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let ended = nothing.run(&["healthcheck", "--redy"]).await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    let daemon = nothing.command(&["daemon"]).spawn().unwrap();
    eventually("the daemon listens", || {
        run.join("runwatch/runwatch.sock").exists()
    })
    .await;
    let ended = nothing.run(&["healthcheck"]).await;
    assert_eq!(
        (ended.code, ended.stdout.as_str()),
        (Some(0), "ok\n"),
        "{ended:?}"
    );
    let ended = nothing.run(&["healthcheck", "--ready"]).await;
    assert_eq!(
        (ended.code, ended.stdout.as_str()),
        (Some(0), "ready\n"),
        "{ended:?}"
    );
    stop(daemon).await;
}

#[tokio::test]
async fn health_and_metrics_can_be_requested() {
    let simulator = api([
        ("run_1", Script::succeeds().runs_for(SOON).from_first_poll()),
        ("run_0", Script::succeeds().verbatim(OVER_LONG_AGO)),
        ("run_2", Script::runs_forever()),
    ])
    .await;
    let receiver = Receiver::start([Fault::status(500)]).await.unwrap();
    let program = program(
        &simulator,
        &receiver,
        "[sinks.quiet]\ntype = \"log\"\nevents = [\"run.failed\"]",
    );
    let daemon = start(&program).await;
    let http = http_client()
        .unix_socket(socket(&program))
        .no_proxy()
        .build()
        .unwrap();
    let get = async |path: &str| {
        let response = http
            .get(format!("http://localhost{path}"))
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 200, "{path}");
        text(response).await
    };
    let before = get("/metrics").await;
    assert!(
        before.contains("runwatch_deliveries_total{sink=\"quiet\",result=\"delivered\"} 0"),
        "{before}"
    );
    add(&program, "run_1").await;
    add(&program, "run_2").await;
    received(&receiver, 2).await;
    delivered(&program, "run_1").await;
    let after = get("/metrics").await;
    for line in [
        "runwatch_watches{state=\"active\"} 1",
        "runwatch_watches{state=\"finished\"} 1",
        "runwatch_deliveries_total{sink=\"hook\",result=\"failed\"} 1",
        "runwatch_deliveries_total{sink=\"hook\",result=\"delivered\"} 1",
        "runwatch_deliveries_pending{sink=\"hook\"} 0",
        "runwatch_delivery_delay_seconds_count 1",
        "runwatch_detection_delay_seconds_count{provider=\"crewship\"} 1",
    ] {
        assert!(after.lines().any(|found| found == line), "{line}\n{after}");
    }
    let polls = after
        .lines()
        .find_map(|line| {
            line.strip_prefix("runwatch_polls_total{result=\"ok\",provider=\"crewship\"} ")
        })
        .unwrap();
    assert!(polls.parse::<u64>().unwrap() >= 3, "{after}");
    let budget = |name: &str| -> u64 {
        let start = format!("runwatch_budget_{name}_requests{{provider=\"crewship\"}} ");
        let value = after.lines().find_map(|line| line.strip_prefix(&start));
        value.expect("the budget is there").parse().unwrap()
    };
    assert!((1..=budget("limit")).contains(&budget("used")), "{after}");
    // One that ended before it was watched shows nothing about the delay of detection.
    add(&program, "run_0").await;
    let late = delivered(&program, "run_0").await;
    assert_eq!(late["data"]["watch"]["late"], true, "{late}");
    let after = get("/metrics").await;
    let unchanged = "\nrunwatch_detection_delay_seconds_count{provider=\"crewship\"} 1\n";
    assert!(after.contains(unchanged), "{after}");
    assert_eq!(get("/healthz").await, r#"{"status":"ok"}"#);
    assert_eq!(get("/readyz").await, r#"{"status":"ready"}"#);
    // An API that is down does not make the daemon unhealthy.
    simulator.set_outage(Some(Fault::status(502)));
    let failing = "runwatch_polls_total{result=\"server_error\",provider=\"crewship\"} 0";
    until("a poll that fails", async || {
        (!get("/metrics").await.contains(failing)).then_some(())
    })
    .await;
    assert_eq!(get("/healthz").await, r#"{"status":"ok"}"#);
    stop(daemon).await;
}

/// Starts a daemon that listens on any free port. Returns the address that its log has.
pub(crate) async fn listening(program: &Program) -> (Child, String) {
    let mut daemon = program.command(&["daemon"]).spawn().unwrap();
    let mut lines = BufReader::new(daemon.stderr.take().unwrap()).lines();
    let mut text = Vec::new();
    loop {
        let line = next_line(&mut lines).await;
        text.extend_from_slice(line.as_bytes());
        text.push(b'\n');
        if let Some((_, rest)) = line.split_once("listen=") {
            let address = rest.split(' ').next().unwrap().to_owned();
            let lines = lines.into_inner();
            text.extend_from_slice(lines.buffer());
            let rest = lines.into_inner().into_owned_fd().unwrap();
            collect_rest(&mut daemon, std::fs::File::from(rest), text);
            return (daemon, address);
        }
    }
}

#[tokio::test]
async fn over_tcp_a_token_is_needed_and_web_pages_are_refused() {
    let simulator = api([("run_1", Script::succeeds())]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let program = program(&simulator, &receiver, "");
    let token = program.home().join("token");
    std::fs::write(&token, "first-token\n").unwrap();
    let program = program
        .set("RUNWATCH_CONTROL__LISTEN", "127.0.0.1:0")
        .set("RUNWATCH_CONTROL__TOKEN_FILE", token.to_str().unwrap());
    let (daemon, address) = listening(&program).await;
    let http = http_client().no_proxy().build().unwrap();
    let ask = async |path: &str, headers: &[(&str, &str)]| {
        let mut request = http.get(format!("http://{address}{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    };
    let good = ("authorization", "Bearer first-token");
    for (path, headers, status) in [
        ("/v1/watches", &[][..], 401),
        ("/v1/watches", &[("authorization", "Bearer wrong")], 401),
        (
            "/v1/watches",
            &[("authorization", "Bearer first-toke")],
            401,
        ),
        (
            "/v1/watches",
            &[("authorization", "Basic first-token")],
            401,
        ),
        ("/metrics", &[], 401),
        ("/v1/watches", &[good], 200),
        ("/metrics", &[good], 200),
        ("/healthz", &[], 200),
        ("/readyz", &[], 200),
        (
            "/v1/watches",
            &[good, ("origin", "https://evil.example")],
            403,
        ),
        ("/healthz", &[("origin", "null")], 403),
        ("/v1/watches", &[good, ("host", "evil.example")], 403),
        ("/v1/watches", &[good, ("host", "localhost:9477")], 200),
    ] {
        let response = ask(path, headers).await;
        assert_eq!(response.status().as_u16(), status, "{path} {headers:?}");
        assert_eq!(
            response.headers().contains_key("www-authenticate"),
            status == 401,
            "{path} {headers:?}"
        );
    }
    let body = json!({"run_id": "run_1"}).to_string();
    let added = http
        .post(format!("http://{address}/v1/watches"))
        .bearer_auth("first-token")
        .body(body);
    assert_eq!(added.send().await.unwrap().status(), 201);
    let watch = ask("/v1/watches/run_1?wait=10s", &[good]).await;
    let watch: Value = serde_json::from_str(&text(watch).await).unwrap();
    assert_eq!(watch["verdict"], "succeeded");
    let huge = http
        .post(format!("http://{address}/v1/watches"))
        .bearer_auth("first-token")
        .body("x".repeat(100_000));
    assert_eq!(huge.send().await.unwrap().status(), 413);
    // The token is read again when it is used.
    std::fs::write(&token, "second-token").unwrap();
    assert_eq!(ask("/v1/watches", &[good]).await.status(), 401);
    assert_eq!(
        ask("/v1/watches", &[("authorization", "Bearer second-token")])
            .await
            .status(),
        200
    );
    stop(daemon).await;

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let program = program.set(
        "RUNWATCH_CONTROL__LISTEN",
        &taken.local_addr().unwrap().to_string(),
    );
    let ended = program.run(&["daemon"]).await;
    assert!(
        ended.code == Some(1) && ended.stderr.contains("cannot listen on"),
        "{ended:?}"
    );
    let program = program
        .set("RUNWATCH_CONTROL__LISTEN", "0.0.0.0:0")
        .unset("RUNWATCH_CONTROL__TOKEN_FILE");
    let ended = program.run(&["daemon"]).await;
    assert!(
        ended.code == Some(2) && ended.stderr.contains("no token is set"),
        "{ended:?}"
    );
}

#[tokio::test]
async fn wrong_requests_are_refused_with_reasons() {
    let simulator = api([("run_1", Script::runs_forever())]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let program = program(&simulator, &receiver, "");
    let daemon = start(&program).await;
    add(&program, "run_1").await;
    let http = http_client()
        .unix_socket(socket(&program))
        .no_proxy()
        .build()
        .unwrap();
    let huge = json!({"run_id": "run_2", "name": "x".repeat(100_000)}).to_string();
    for (method, path, body, status, reason) in [
        ("POST", "/v1/watches", "", 400, "EOF"),
        ("POST", "/v1/watches", "[]", 400, "body"),
        ("POST", "/v1/watches", "{}", 400, "run_id"),
        (
            "POST",
            "/v1/watches",
            r#"{"run_id":"../keys"}"#,
            400,
            "../keys",
        ),
        (
            "POST",
            "/v1/watches",
            r#"{"run_id":"run_2","url":"http://evil.example"}"#,
            400,
            "url",
        ),
        (
            "POST",
            "/v1/watches",
            r#"{"run_id":"run_2","sinks":["evil"]}"#,
            400,
            "known sinks: hook",
        ),
        (
            "POST",
            "/v1/watches",
            r#"{"run_id":"run_2","timeout":"soon"}"#,
            400,
            "timeout",
        ),
        (
            "POST",
            "/v1/watches",
            r#"{"run_id":"run_2","name":"a\nb"}"#,
            400,
            "name",
        ),
        (
            "POST",
            "/v1/watches",
            r#"{"run_id":"run_2","labels":{"a b":"c"}}"#,
            400,
            "label",
        ),
        ("POST", "/v1/watches", huge.as_str(), 413, ""),
        (
            "GET",
            "/v1/watches?state=odd",
            "",
            400,
            "active or finished",
        ),
        ("GET", "/v1/watches?verdict=odd", "", 400, "verdict"),
        ("GET", "/v1/watches?label=odd", "", 400, "KEY=VALUE"),
        ("GET", "/v1/watches?limit=0", "", 400, "1000"),
        ("GET", "/v1/watches?cursor=odd", "", 400, "cursor"),
        ("GET", "/v1/watches?odd=1", "", 400, "no parameter"),
        ("GET", "/v1/watches/run_9", "", 404, "run_9"),
        ("GET", "/v1/watches/a%2Fb", "", 400, "a/b"),
        ("GET", "/v1/watches/run_1?wait=1h", "", 400, "wait"),
        ("DELETE", "/v1/watches/run_9", "", 404, "run_9"),
        ("PUT", "/v1/watches", "", 405, "methods"),
        ("GET", "/v1/deliveries?state=odd", "", 400, "dead"),
        ("POST", "/v1/deliveries/msg_9/retry", "", 404, "msg_9"),
        ("GET", "/v2", "", 404, "no such route"),
    ] {
        let request = http
            .request(method.parse().unwrap(), format!("http://localhost{path}"))
            .body(body.to_owned());
        let response = request.send().await.unwrap();
        assert_eq!(
            response.status().as_u16(),
            status,
            "{method} {path} {body:.100}"
        );
        if !reason.is_empty() {
            assert_eq!(
                response.headers()["content-type"],
                "application/problem+json",
                "{method} {path}"
            );
            let problem: Value = serde_json::from_str(&text(response).await).unwrap();
            assert!(
                problem["detail"].as_str().unwrap().contains(reason),
                "{method} {path}: {problem}"
            );
            assert_eq!(problem["status"], status, "{problem}");
        }
    }
    // A request that waits comes back when the time is up.
    let waited = http
        .get("http://localhost/v1/watches/run_1?wait=200ms")
        .send()
        .await
        .unwrap();
    let waited: Value = serde_json::from_str(&text(waited).await).unwrap();
    assert_eq!(
        (waited["state"].clone(), waited["verdict"].clone()),
        (json!("active"), Value::Null)
    );
    stop(daemon).await;
}

pub(crate) async fn text(mut response: reqwest::Response) -> String {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.unwrap() {
        body.extend_from_slice(&chunk);
    }
    String::from_utf8(body).unwrap()
}

#[tokio::test]
async fn records_in_the_journal_have_priorities() {
    use std::os::unix::fs::MetadataExt as _;
    let simulator = api([]).await;
    let receiver = Receiver::start([]).await.unwrap();
    for format in ["text", "json"] {
        let program = program(&simulator, &receiver, "")
            .unset("CREWSHIP_API_KEY")
            .set("RUNWATCH_LOG__FORMAT", format);
        let path = program.home().join("journal");
        let file = std::fs::File::create(&path).unwrap();
        let status = file.metadata().unwrap();
        let stream = format!("{}:{}", status.dev(), status.ino());
        let daemon = program
            .command(&["daemon"])
            .env("JOURNAL_STREAM", stream)
            .stderr(file)
            .spawn()
            .unwrap();
        let log = || std::fs::read_to_string(&path).unwrap();
        eventually("the daemon is ready", || log().contains("ready")).await;
        send_signal(&daemon, Signal::TERM);
        finish(daemon).await;
        let priority = |text: &str| {
            let log = log();
            let line = log.lines().find(|line| line.contains(text));
            line.map(|line| line.get(..3).unwrap().to_owned())
        };
        assert_eq!(priority("no API key").as_deref(), Some("<4>"), "{}", log());
        assert_eq!(priority("stopping").as_deref(), Some("<6>"), "{}", log());
        assert!(log().lines().all(|line| line.starts_with('<')), "{}", log());
    }
}

#[tokio::test]
async fn the_version_names_the_commit_where_the_build_knew_it() {
    let ended = Program::new().run(&["--version"]).await;
    let rest = ended
        .stdout
        .strip_prefix(concat!("runwatch ", env!("CARGO_PKG_VERSION")))
        .unwrap_or_else(|| panic!("{ended:?}"))
        .trim();
    let commit = rest
        .strip_prefix('(')
        .and_then(|rest| rest.strip_suffix(')'));
    let is_commit = |text: &str| {
        let parts = text.split_once(' ');
        parts.is_some_and(|(hash, date)| {
            hash.bytes().all(|byte| byte.is_ascii_hexdigit()) && date.len() == "2026-01-01".len()
        })
    };
    assert!(
        rest.is_empty() || commit.is_some_and(is_commit),
        "{ended:?}"
    );
    // A clone with Git names its commit.
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/.git");
    let git = std::process::Command::new("git").arg("--version").output();
    if std::path::Path::new(root).exists() && git.is_ok() {
        assert!(!rest.is_empty(), "{ended:?}");
    }
}
