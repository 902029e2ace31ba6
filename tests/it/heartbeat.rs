//! Heartbeats to a dead-man's switch, as the daemon of the built program sends them.

use std::os::unix::fs::PermissionsExt as _;

use runwatch::simulator::{Fault, Receiver, Script};
use rustix::process::Signal;
use serde_json::Value;
use tokio::process::Child;

use crate::daemon::{add, metric, program, start, stop};
use crate::hangs::{DISK, hanging};
use crate::support::{Program, api, received, send_signal, until};

/// A part of the address, which must not show.
const MARK: &str = "beatQmarkOfTheAddress7Nc";

const FAILURES: &str = "runwatch_heartbeat_failures_total";
const LAST: &str = "runwatch_heartbeat_last_success_timestamp_seconds";

/// `[heartbeat]` with the shortest interval, and an address in a file.
const CONFIG: &str = "[heartbeat]\nurl_file = \"beat\"\ninterval = \"10s\"\n";

fn address(receiver: &Receiver) -> String {
    format!("http://{}/{MARK}?token={MARK}", receiver.address())
}

fn write_address(program: &Program, url: &str) {
    let path = program.beside_config("beat");
    std::fs::write(&path, url).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

async fn failures(program: &Program, reason: &str) -> f64 {
    metric(program, &format!("{FAILURES}{{reason=\"{reason}\"}}")).await
}

/// Puts another configuration in force.
async fn reload(program: Program, daemon: &Child, config: &str) -> Program {
    let read_at = "runwatch_config_last_reload_success_timestamp_seconds";
    let before = metric(&program, read_at).await;
    let program = program.configured(config);
    send_signal(daemon, Signal::HUP);
    until("the reload", async || {
        (metric(&program, read_at).await > before).then_some(())
    })
    .await;
    program
}

#[tokio::test]
async fn heartbeats_come_while_there_is_progress() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, hang) = (hanging(DISK, folder.path()), folder.path().join("hang"));
    let simulator = api([
        ("run_1", Script::fails("no")),
        ("run_2", Script::fails("no")),
    ])
    .await;
    let (sink, switch) = (
        Receiver::start([]).await.unwrap(),
        Receiver::start([]).await.unwrap(),
    );
    let program = program(&simulator, &sink, CONFIG)
        .set("LD_PRELOAD", &disk)
        .set("HANG_AT", hang.to_str().unwrap())
        .set("RUST_LOG", "trace");
    write_address(&program, &address(&switch));
    let daemon = start(&program).await;
    let beats = received(&switch, 2).await;
    assert!(
        beats
            .iter()
            .all(|beat| beat.method == "GET" && beat.body.is_empty()),
        "{beats:?}"
    );
    let apart = beats[1].at.duration_since(beats[0].at).as_secs_f64();
    assert!(apart > 9.0, "{apart}");
    until("the metric of the last heartbeat", async || {
        (metric(&program, LAST).await > 0.0).then_some(())
    })
    .await;
    assert_eq!(failures(&program, "no_progress").await, 0.0);

    // The disk takes nothing, so a verdict cannot be stored, and the writer makes no progress.
    std::fs::write(&hang, "").unwrap();
    let mut adding = program.command(&["add", "run_1"]).spawn().unwrap();
    until("a heartbeat to be withheld", async || {
        (failures(&program, "no_progress").await > 0.0).then_some(())
    })
    .await;
    let before = switch.requests().len();
    let withheld = failures(&program, "no_progress").await;
    until("another heartbeat to be withheld", async || {
        (failures(&program, "no_progress").await > withheld).then_some(())
    })
    .await;
    assert_eq!(switch.requests().len(), before, "none without progress");

    std::fs::remove_file(&hang).unwrap();
    received(&switch, before + 1).await;
    // The command itself waits for an answer for a limited time only.
    adding.wait().await.unwrap();
    add(&program, "run_2").await;
    received(&sink, 1).await;
    let ended = stop(daemon).await;
    let warning = "no heartbeat is sent: the scheduler or the store makes no progress";
    assert_eq!(ended.stderr.matches(warning).count(), 1, "{ended:?}");
    assert!(!format!("{ended:?}").contains(MARK), "{ended:?}");
}

#[tokio::test]
async fn heartbeats_that_fail_are_warned_about_once_and_hold_up_nothing() {
    let simulator = api([("run_1", Script::fails("no"))]).await;
    let (sink, refusing, other) = (
        Receiver::start([]).await.unwrap(),
        Receiver::start((0..99).map(|_| Fault::status(500)))
            .await
            .unwrap(),
        Receiver::start([]).await.unwrap(),
    );
    let mut program = program(&simulator, &sink, CONFIG).set("RUST_LOG", "trace");
    write_address(&program, &address(&refusing));
    let daemon = start(&program).await;
    received(&refusing, 1).await;
    add(&program, "run_1").await;
    received(&sink, 1).await;
    // A reload sends one at once.
    send_signal(&daemon, Signal::HUP);
    received(&refusing, 2).await;
    until("two failures", async || {
        (failures(&program, "not_accepted").await >= 2.0).then_some(())
    })
    .await;
    assert_eq!(metric(&program, LAST).await, 0.0);

    // A new address in the same file, and then none any more.
    write_address(&program, &address(&other));
    send_signal(&daemon, Signal::HUP);
    received(&other, 1).await;
    until("a heartbeat that is accepted", async || {
        (metric(&program, LAST).await > 0.0).then_some(())
    })
    .await;
    let last = Receiver::start([]).await.unwrap();
    program = reload(program, &daemon, "[log]\n").await;
    let before = other.requests().len();
    // Where there is an address, this reload sends one before the next reload does.
    program = reload(program, &daemon, "[log]\n").await;
    write_address(&program, &address(&last));
    let _program = reload(program, &daemon, CONFIG).await;
    received(&last, 1).await;
    assert_eq!(other.requests().len(), before, "none without an address");
    let ended = stop(daemon).await;
    let warning = "a heartbeat was not accepted; check heartbeat.url_file and its receiver";
    assert_eq!(ended.stderr.matches(warning).count(), 1, "{ended:?}");
    assert!(
        ended.stderr.contains("500 Internal Server Error"),
        "{ended:?}"
    );
    assert!(
        ended.stderr.contains("heartbeats are accepted again"),
        "{ended:?}"
    );
    assert!(!format!("{ended:?}").contains(MARK), "{ended:?}");
}

#[tokio::test]
async fn doctor_sends_a_heartbeat_only_on_request() {
    let simulator = api([]).await;
    let (sink, switch) = (
        Receiver::start([]).await.unwrap(),
        Receiver::start([]).await.unwrap(),
    );
    let program = program(&simulator, &sink, CONFIG);
    write_address(&program, &address(&switch));
    let heartbeat = async |flags: &[&str]| {
        let ended = program.run(&[&["doctor", "--json"], flags].concat()).await;
        assert!(!format!("{ended:?}").contains(MARK), "{ended:?}");
        let report: Value = serde_json::from_str(&ended.stdout).unwrap();
        let checks = report["checks"].as_array().unwrap().clone();
        let found = checks
            .into_iter()
            .find(|check| check["name"] == "heartbeat");
        found.unwrap_or_else(|| panic!("{report:#}"))
    };
    let looked = heartbeat(&[]).await;
    assert_eq!(looked["mark"], "ok", "{looked}");
    assert_eq!(looked["text"], "to 127.0.0.1, every 10s (--send sends one)");
    assert!(switch.requests().is_empty());
    let sent = heartbeat(&["--send"]).await;
    assert_eq!(
        sent["text"],
        "to 127.0.0.1, every 10s; one sent: 204 No Content"
    );
    assert_eq!(switch.requests().len(), 1);
    // Nothing listens on port 1.
    write_address(&program, &format!("http://127.0.0.1:1/{MARK}"));
    let failed = heartbeat(&["--send"]).await;
    assert_eq!(failed["mark"], "problem", "{failed}");
    let mode = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(program.beside_config("beat"), mode).unwrap();
    let open = heartbeat(&[]).await;
    assert_eq!(open["mark"], "warning", "{open}");
    assert!(
        open["fix"].as_str().unwrap().starts_with("chmod 600"),
        "{open}"
    );
}

#[tokio::test]
async fn an_address_is_a_url_and_is_never_repeated() {
    let simulator = api([]).await;
    let sink = Receiver::start([]).await.unwrap();
    let check = async |program: &Program| {
        let ended = program.run(&["config", "check"]).await;
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(!format!("{ended:?}").contains(MARK), "{ended:?}");
        format!("{}{}", ended.stdout, ended.stderr)
    };
    let mut program = program(&simulator, &sink, CONFIG);
    write_address(&program, &format!("ftp://127.0.0.1/{MARK}"));
    let problem = check(&program).await;
    assert!(problem.contains("heartbeat.url"), "{problem}");
    write_address(&program, &format!("http://127.0.0.1/{MARK}"));
    for interval in ["9s", "61m"] {
        program = program.set("RUNWATCH_HEARTBEAT__INTERVAL", interval);
        let problem = check(&program).await;
        assert!(problem.contains("heartbeat.interval"), "{problem}");
    }
}
