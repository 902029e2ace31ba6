//! Quiet hours: what can wait is held, and a restart, a reload and the death of the process do not lose it.

use jiff::{SignedDuration, Timestamp};
use runwatch::simulator::Script;
use rustix::process::Signal;
use serde_json::Value;

use super::{body, receiver, wait, webhook};
use crate::support::{Program, api, received, send_signal, until, with_daemon};

/// Quiet hours that began some hours ago and last for some more, in UTC.
fn quiet_now() -> String {
    let time = |hours| {
        let at = Timestamp::now() + SignedDuration::from_hours(hours);
        at.strftime("%H:%M").to_string()
    };
    format!("quiet = \"{}-{}\"", time(-3), time(6))
}

/// The deliveries of the daemon, once `check` holds for all of them.
async fn deliveries(program: &Program, count: usize, check: impl Fn(&Value) -> bool) -> Vec<Value> {
    until("the deliveries", async || {
        let listed = program.run(&["deliveries", "--json"]).await.json_lines();
        let all = listed.first()?["deliveries"].as_array()?.clone();
        (all.len() == count && all.iter().all(&check)).then_some(all)
    })
    .await
}

#[tokio::test]
async fn what_is_held_outlives_the_process_and_goes_out_when_the_configuration_allows_it() {
    let (good, bad) = (Script::succeeds(), Script::fails("no"));
    let simulator = api([("run_good", good), ("run_bad", bad)]).await;
    let hook = receiver([]).await;
    let program = Program::with(&simulator)
        .set("RUNWATCH_CRASH_AT", "held")
        .configured(&webhook("hook", &hook.url(), &quiet_now()));
    let (program, mut daemon) = with_daemon(program).await;
    // The process dies after the first delivery was held.
    drop(program.run(&["add", "run_good"]).await);
    assert_eq!(daemon.wait().await.unwrap().code(), None, "it was killed");
    let program = program.unset("RUNWATCH_CRASH_AT");
    let (program, daemon) = with_daemon(program).await;
    let ended = program.run(&["add", "run_bad"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let got = received(&hook, 1).await;
    assert_eq!(body(&got[0])["type"], "run.failed");
    let is_settled = |delivery: &Value| match delivery["event"].as_str() {
        Some("run.succeeded") => delivery["held_until"].is_string() && delivery["attempts"] == 0,
        _ => delivery["state"] == "delivered" && delivery["held_until"].is_null(),
    };
    deliveries(&program, 2, is_settled).await;
    for command in [&["deliveries"][..], &["show", "run_good"]] {
        let shown = program.run(command).await;
        assert!(shown.stdout.contains("held until "), "{shown:?}");
    }
    let program = program.configured(&webhook("hook", &hook.url(), ""));
    send_signal(&daemon, Signal::HUP);
    let got = received(&hook, 2).await;
    assert_eq!(body(&got[1])["type"], "run.succeeded");
    deliveries(&program, 2, |delivery| delivery["state"] == "delivered").await;
    assert_eq!(hook.requests().len(), 2);
}

#[tokio::test]
async fn a_wait_has_no_quiet_hours() {
    let hook = receiver([]).await;
    let sinks = webhook("hook", &hook.url(), &quiet_now());
    let ended = wait(Script::succeeds(), &sinks, &[]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(hook.requests().len(), 1);
}

#[tokio::test]
async fn mistakes_in_quiet_hours_are_reported_with_what_to_do() {
    let check = async |quiet: &str| {
        let sink = format!("[sinks.o]\ntype = \"log\"\nquiet = {quiet}\n");
        let program = Program::new()
            .set("CREWSHIP_API_KEY", "key")
            .configured(&sink);
        program.run(&["config", "check"]).await
    };
    for (quiet, problem) in [
        ("\"22:00\"", "there is no end of the quiet hours"),
        ("\"22:00-22:00\"", "begins and ends at the same time"),
        (
            "{ from = \"22:00\", to = \"22:00\" }",
            "begins and ends at the same time",
        ),
        (
            "{ from = \"22:00\", to = \"7\" }",
            "sinks.o.quiet.to = \"7\": \"7\" is not a time of the day",
        ),
        ("{ from = \"22:00\" }", "this is required"),
        (
            "{ from = \"22:00\", to = \"07:00\", zone = \"Europe/Nowhere\" }",
            "the database of time zones has no such zone",
        ),
        (
            "{ from = \"22:00\", to = \"07:00\", zones = \"UTC\" }",
            "did you mean \"zone\"?",
        ),
        ("7", "sinks.o.quiet"),
    ] {
        let ended = check(quiet).await;
        assert_eq!(ended.code, Some(2), "{quiet}: {ended:?}");
        let output = ended.stdout + &ended.stderr;
        assert!(output.contains(problem), "{quiet}: {output}");
    }
    for quiet in [
        "\"22:00-07:00\"",
        "{ from = \"22:00\", to = \"07:00\", zone = \"UTC\" }",
    ] {
        assert_eq!(check(quiet).await.code, Some(0), "{quiet}");
    }
}
