//! How long runs of a group usually take: the built program beside a stand-in for an API whose runs have groups.

use std::time::Duration;

use jiff::Timestamp;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::daemon::start;
use crate::support::jobs::{Api, events};
use crate::support::{Program, finish, send_signal, until};

/// Sets a job that succeeded after so many seconds, or started so many seconds ago and goes on.
fn set(api: &Api, id: &str, seconds: u64, goes_on: bool) {
    let now = Timestamp::now();
    let started = now.checked_sub(Duration::from_secs(seconds)).unwrap();
    let job = json!({
        "id": id, "workflow": "nightly", "created": started,
        "state": if goes_on { "running" } else { "succeeded" }, "ended": (!goes_on).then_some(now),
    });
    api.put(id, job);
}

/// A program to which runs are overdue by their history.
fn program(api: &Api) -> Program {
    api.program(
        "events = [\"run.succeeded\", \"watch.overdue\"]\n[watch]\noverdue_after = \"auto\"\n",
    )
}

async fn watch(program: &Program, id: &str) -> Value {
    let shown = program.run(&["show", &format!("own:{id}"), "--json"]).await;
    assert_eq!(shown.code, Some(0), "{shown:?}");
    serde_json::from_str(&shown.stdout).unwrap()
}

async fn add(program: &Program, id: &str) {
    let added = program.run(&["add", &format!("own:{id}")]).await;
    assert_eq!(added.code, Some(0), "{added:?}");
}

#[tokio::test]
async fn what_is_usual_outlives_the_daemon_and_shows_which_runs_take_long() {
    let api = Api::start().await;
    let program = program(&api);
    let daemon = start(&program).await;
    for (id, seconds) in [("a", 60), ("b", 80), ("c", 70)] {
        // Nothing is usual before the third.
        set(&api, id, seconds, false);
        add(&program, id).await;
        let event = events(&program, id, 1).await.remove(0);
        let timing = &event["data"]["timing"];
        assert_eq!(timing["ran_ms"], seconds * 1000);
        assert_eq!(timing["usual_ms"], Value::Null);
    }
    send_signal(&daemon, Signal::KILL);
    finish(daemon).await;

    let daemon = start(&program).await;
    // Less than twice the 90th percentile, and more.
    set(&api, "young", 5, true);
    set(&api, "old", 165, true);
    for id in ["young", "old"] {
        add(&program, id).await;
    }
    let overdue = events(&program, "old", 1).await.remove(0);
    assert_eq!(overdue["type"], "watch.overdue");
    let timing = &overdue["data"]["timing"];
    let usual = ["usual_ms", "usual_p10_ms", "usual_p90_ms"].map(|name| timing[name].as_u64());
    assert_eq!(usual, [Some(70_000), Some(60_000), Some(80_000)]);
    until("the first poll", async || {
        (watch(&program, "young").await["status"] == "running").then_some(())
    })
    .await;
    let young = watch(&program, "young").await;
    assert_eq!(young["group"], "nightly");
    assert_eq!(young["usual_p90_ms"], 80_000);
    assert_eq!(young["past_durations_ms"], json!([60_000, 80_000, 70_000]));
    let list = program.run(&["list"]).await;
    assert!(list.stdout.contains("longer than usual"), "{list:?}");
    let shown = program.run(&["show", "own:young"]).await;
    assert!(
        shown.stdout.contains("group nightly, usually 1:10"),
        "{shown:?}"
    );
    // It is overdue once, and ends beside what was usual before it.
    set(&api, "old", 165, false);
    let stored = events(&program, "old", 2).await;
    assert_eq!(stored[1]["type"], "run.succeeded");
    assert_eq!(stored[1]["data"]["timing"]["usual_ms"], 70_000);
    let old = watch(&program, "old").await;
    assert_eq!(old["usual_p90_ms"], 165_000);
    assert_eq!(events(&program, "young", 0).await, Vec::<Value>::new());
    send_signal(&daemon, Signal::TERM);
    finish(daemon).await;
}

#[tokio::test]
async fn without_a_history_no_run_is_overdue_by_it() {
    let api = Api::start().await;
    let program = program(&api);
    let daemon = start(&program).await;
    set(&api, "old", 100_000, true);
    add(&program, "old").await;
    // Several polls later.
    until("some polls", async || {
        (watch(&program, "old").await["polls"].as_u64() >= Some(4)).then_some(())
    })
    .await;
    set(&api, "old", 100_000, false);
    let stored = events(&program, "old", 1).await;
    let types: Vec<_> = stored.iter().map(|event| event["type"].clone()).collect();
    assert_eq!(types, ["run.succeeded"]);
    send_signal(&daemon, Signal::TERM);
    finish(daemon).await;
}
