//! Runs that the daemon finds in a list: the built program beside a stand-in for an API with one.

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::process::Child;

use crate::daemon::start;
use crate::support::jobs::{Api, PROFILE, events};
use crate::support::{Ended, Program, finish, send_signal, until};

const DISCOVERY: &str = "[[discover]]\nprovider = \"own\"\nmatch = { branch = \"main\" }\nlabels = { on = \"{branch}\" }\nevery = \"5s\"\n";

async fn stop(daemon: Child) -> Ended {
    send_signal(&daemon, Signal::TERM);
    finish(daemon).await
}

/// The watches of a run, all of them, as the daemon lists them.
async fn watches(program: &Program, id: &str) -> Vec<Value> {
    let list = program.run(&["list", "--all", "--json"]).await;
    let list: Value = serde_json::from_str(&list.stdout).unwrap_or_default();
    let watches = list["watches"].as_array().cloned().unwrap_or_default();
    watches
        .into_iter()
        .filter(|watch| watch["run_id"] == id)
        .collect()
}

/// The only discovery, when it is in this state.
async fn discovery(program: &Program, state: &str) -> Value {
    until("the discovery", async || {
        let list = program.run(&["discover", "--json"]).await;
        let list: Value = serde_json::from_str(&list.stdout).ok()?;
        let discovery = list["discoveries"].get(0)?.clone();
        (discovery["state"] == state).then_some(discovery)
    })
    .await
}

#[tokio::test]
async fn runs_of_a_list_are_watched_as_they_appear_and_a_reload_goes_on() {
    let api = Api::start().await;
    api.set("old", 1, false);
    api.set("going", 1, true);
    let program = api.program(DISCOVERY);
    let daemon = start(&program).await;
    let began = discovery(&program, "following").await;
    assert_eq!(began["title"], "own branch=main");
    assert_eq!((&began["found"], &began["watched"]), (&json!(2), &json!(1)));
    let watch = watches(&program, "going").await.pop().unwrap();
    assert_eq!(watch["origin"], "discovery");
    assert_eq!(watch["discovery"], "own branch=main");
    assert_eq!(watch["labels"]["on"], "main");
    assert_eq!(watches(&program, "old").await, [] as [Value; 0]);
    let shown = program.run(&["show", "own:going"]).await.stdout;
    assert!(shown.contains("by discovery of own branch=main"), "{shown}");
    let table = program.run(&["discover"]).await.stdout;
    assert!(
        table.contains("own branch=main") && table.contains("following"),
        "{table}"
    );

    api.set("new", 1, false);
    api.set("going", 1, false);
    events(&program, "new", 1).await;
    // A discovery with another name goes on, also for its runs.
    let program = api.configured(program, &format!("{DISCOVERY}name = \"job\"\n"));
    send_signal(&daemon, Signal::HUP);
    let renamed = until("the other name", async || {
        let discovery = discovery(&program, "following").await;
        (discovery["title"] == "job").then_some(discovery)
    })
    .await;
    assert_eq!(renamed["began_at"], began["began_at"]);
    api.set("going", 2, true);
    let again = until("the second attempt", async || {
        let watch = watches(&program, "going").await.pop()?;
        (watch["state"] == "active").then_some(watch)
    })
    .await;
    assert_eq!(
        (&again["name"], &again["discovery"]),
        (&json!("job"), &json!("job"))
    );
    // One that is taken out is forgotten.
    let program = api.configured(program, "");
    send_signal(&daemon, Signal::HUP);
    until("no discovery", async || {
        let list = program.run(&["discover", "--json"]).await.stdout;
        (list.trim() == r#"{"discoveries":[]}"#).then_some(())
    })
    .await;
    assert_eq!(events(&program, "going", 1).await.len(), 1);
    assert_eq!(events(&program, "new", 1).await.len(), 1);
    stop(daemon).await;
}

#[tokio::test]
async fn a_death_while_runs_are_discovered_leads_to_no_second_watch_and_loses_none() {
    for point in ["listed", "discovered"] {
        let api = Api::start().await;
        let program = api.program(DISCOVERY);
        let daemon = start(&program).await;
        discovery(&program, "following").await;
        stop(daemon).await;

        // It ends while no daemon is there.
        api.set("short", 1, false);
        api.set("long", 1, true);
        let program = program.set("RUNWATCH_CRASH_AT", point);
        let daemon = program.command(&["daemon"]).spawn().unwrap();
        let ended = finish(daemon).await;
        assert_eq!(ended.code, None, "{point}: it dies there: {ended:?}");
        let program = program.set("RUNWATCH_CRASH_AT", "");
        let daemon = start(&program).await;
        discovery(&program, "following").await;
        assert_eq!(events(&program, "short", 1).await.len(), 1, "{point}");
        assert_eq!(watches(&program, "long").await.len(), 1, "{point}");
        assert_eq!(watches(&program, "short").await.len(), 1, "{point}");
        api.set("long", 1, false);
        assert_eq!(events(&program, "long", 1).await.len(), 1);
        stop(daemon).await;
        assert_eq!(events(&program, "short", 1).await.len(), 1, "{point}");
    }
}

#[tokio::test]
async fn a_list_that_cannot_be_read_is_shown_with_its_reason_and_what_to_do() {
    let program = Program::new();
    let api = Api::start().await;
    let run = program.home().join("run");
    std::fs::create_dir_all(&run).unwrap();
    let program = program
        .set("XDG_RUNTIME_DIR", run.to_str().unwrap())
        .with_file("own.toml", &PROFILE.replace("/jobs?state", "/none?state"));
    let program = api.configured(program, DISCOVERY);
    let daemon = start(&program).await;
    let failing = discovery(&program, "failing").await;
    let message = failing["last_error"]["message"].as_str().unwrap();
    assert!(message.starts_with("404"), "{message}");
    assert_eq!(failing["last_round_at"], Value::Null);
    let ended = stop(daemon).await;
    let warnings = ended
        .stderr
        .matches("the list of runs cannot be read")
        .count();
    assert_eq!(warnings, 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("check match"), "{}", ended.stderr);
}
