//! Summaries: one message about what ended while no daemon ran.

use std::collections::BTreeSet;

use runwatch::domain::RunRef;
use runwatch::simulator::{Received, Script, Simulator};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::process::Child;

use super::{body, closed_port, header, receiver, webhook};
use crate::support::{
    PATIENCE, Program, api, eventually, received, send_signal, until, with_daemon,
};

/// The runs, and how they end.
const ENDS: [(&str, bool); 5] = [
    ("run_1", true),
    ("run_2", false),
    ("run_3", true),
    ("run_4", false),
    ("run_5", true),
];

fn script(succeeds: bool) -> Script {
    match succeeds {
        true => Script::succeeds(),
        false => Script::fails("no"),
    }
}

/// An API whose runs go on.
async fn going(runs: usize) -> Simulator {
    let scripts = ENDS[..runs]
        .iter()
        .map(|(id, _)| (*id, Script::runs_forever()));
    api(scripts.collect::<Vec<_>>()).await
}

async fn stop(mut daemon: Child) {
    send_signal(&daemon, Signal::TERM);
    let ended = tokio::time::timeout(PATIENCE, daemon.wait()).await;
    assert!(ended.expect("it ends").unwrap().success());
}

/// How often a run was polled.
fn polls(simulator: &Simulator, id: &str) -> usize {
    let requests = simulator.requests();
    let of_run = requests.iter().filter(|request| request.path.ends_with(id));
    of_run.count()
}

/// Adds runs to a daemon, which sees them going and stops. Then they end.
async fn end_without_daemon(
    program: Program,
    simulator: &Simulator,
    added: &[(&str, &[&str])],
) -> Program {
    let (program, daemon) = with_daemon(program).await;
    for (id, labels) in added {
        let ended = program.run(&[&["add", id], *labels].concat()).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
    eventually("the first polls", || {
        added.iter().all(|(id, _)| polls(simulator, id) > 0)
    })
    .await;
    stop(daemon).await;
    for (id, succeeds) in ENDS {
        simulator.add_run(&RunRef::new(id).unwrap(), script(succeeds));
    }
    program
}

/// The first so many runs, without labels.
fn plain(runs: usize) -> Vec<(&'static str, &'static [&'static str])> {
    ENDS[..runs].iter().map(|(id, _)| (*id, &[][..])).collect()
}

/// The runs that a summary names, those with the same verdict by their IDs: they are polled at the same time.
fn named(message: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let runs = message["data"]["runs"].as_array().unwrap().iter();
    let mut runs: Vec<_> = runs
        .map(|run| (text(&run["verdict"]), text(&run["id"])))
        .collect();
    assert!(runs.is_sorted_by_key(|(verdict, _)| verdict == "succeeded"));
    runs.sort();
    runs
}

fn is_about_all(message: &Value) {
    assert_eq!(message["type"], "run.digest");
    let data = &message["data"];
    assert_eq!(
        (&data["sink"], &data["total"], &data["more"]),
        (&json!("one"), &json!(5), &json!(0))
    );
    assert_eq!(data["verdicts"], json!({"failed": 2, "succeeded": 3}));
    let of = |verdict: &str, id: &str| (verdict.to_owned(), id.to_owned());
    assert_eq!(
        named(message),
        [
            of("failed", "run_2"),
            of("failed", "run_4"),
            of("succeeded", "run_1"),
            of("succeeded", "run_3"),
            of("succeeded", "run_5"),
        ]
    );
}

fn ids(received: &[Received]) -> BTreeSet<String> {
    let ids = received
        .iter()
        .map(|received| header(received, "webhook-id").to_owned());
    ids.collect()
}

#[tokio::test]
async fn what_ended_during_downtime_is_one_message_with_failures_first() {
    let simulator = going(5).await;
    let (one, chat, each) = (receiver([]).await, receiver([]).await, receiver([]).await);
    let sinks = webhook("one", &one.url(), "digest = true")
        + &webhook("chat", &chat.url(), "digest = true\nformat = \"slack\"")
        + &webhook("each", &each.url(), "");
    let program = Program::with(&simulator).configured(&sinks);
    let program = end_without_daemon(program, &simulator, &plain(5)).await;
    let (program, _daemon) = with_daemon(program).await;
    let got = received(&one, 1).await;
    is_about_all(&body(&got[0]));
    let text = body(&received(&chat, 1).await[0]).to_string();
    let line = "after downtime: 3 of 5 succeeded, 2 failed";
    assert!(text.contains(line), "{text}");
    let place = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part}: {text}"));
    assert!(place("failed: run_4") < place("succeeded: run_1"), "{text}");
    received(&each, 5).await;

    let included = format!("in the summary {}", header(&got[0], "webhook-id"));
    let listed = until("the deliveries", async || {
        let listed = program.run(&["deliveries", "--sink", "one"]).await.stdout;
        (listed.matches(&included).count() == 5 && listed.contains("run.digest")).then_some(listed)
    })
    .await;
    assert!(listed.contains("delivered"), "{listed}");
    let shown = program.run(&["show", "run_2"]).await;
    assert!(shown.stdout.contains(&included), "{shown:?}");
    let states = ["deliveries", "--sink", "one", "--json"];
    let listed = program.run(&states).await.json_lines();
    let of_state = |wanted: &str| {
        let all = listed[0]["deliveries"].as_array().unwrap().iter();
        all.filter(|delivery| delivery["state"] == wanted).count()
    };
    assert_eq!((of_state("included"), of_state("delivered")), (5, 1));

    // What ends after the summary is sent as usual.
    simulator.add_run(&RunRef::new("run_6").unwrap(), Script::succeeds());
    let ended = program.run(&["add", "run_6"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let got = received(&one, 2).await;
    assert_eq!(body(&got[1])["type"], "run.succeeded");
    received(&chat, 2).await;
    assert_eq!((one.requests().len(), chat.requests().len()), (2, 2));
}

#[tokio::test]
async fn one_or_two_ends_are_sent_as_usual() {
    let simulator = going(2).await;
    let one = receiver([]).await;
    let sinks = webhook("one", &one.url(), "digest = true");
    let program = Program::with(&simulator).configured(&sinks);
    let program = end_without_daemon(program, &simulator, &plain(2)).await;
    let (_program, _daemon) = with_daemon(program).await;
    let got = received(&one, 2).await;
    let mut types: Vec<_> = got
        .iter()
        .map(|received| body(received)["type"].as_str().unwrap().to_owned())
        .collect();
    types.sort();
    assert_eq!(types, ["run.failed", "run.succeeded"]);
}

#[tokio::test]
async fn a_process_that_dies_around_the_summary_loses_and_repeats_nothing() {
    for point in [
        "verdict-stored",
        "summarized",
        "claimed",
        "sent",
        "recorded",
    ] {
        let simulator = going(5).await;
        let one = receiver([]).await;
        let sinks = webhook("one", &one.url(), "digest = true");
        let program = Program::with(&simulator).configured(&sinks);
        let program = end_without_daemon(program, &simulator, &plain(5)).await;
        let program = program.set("RUNWATCH_CRASH_AT", point);
        let mut daemon = program.command(&["daemon"]).spawn().unwrap();
        let died = tokio::time::timeout(PATIENCE, daemon.wait()).await;
        assert_eq!(died.expect("it dies").unwrap().code(), None, "{point}");
        let (program, _daemon) = with_daemon(program.unset("RUNWATCH_CRASH_AT")).await;
        let got = received(&one, 1).await;
        is_about_all(&body(&got[0]));
        until("all that is to be sent", async || {
            let listed = program.run(&["deliveries", "--json"]).await.json_lines();
            let all = listed.first()?["deliveries"].as_array()?.clone();
            let is_done = |delivery: &Value| {
                delivery["state"] == "included" || delivery["state"] == "delivered"
            };
            (all.len() == 6 && all.iter().all(is_done)).then_some(())
        })
        .await;
        // An attempt that had arrived is made again, under the same ID.
        assert_eq!(ids(&one.requests()).len(), 1, "{point}");
    }
}

#[tokio::test]
async fn a_summary_has_what_its_sink_selects_and_goes_to_the_fallback() {
    let simulator = going(5).await;
    let (mail, one) = (receiver([]).await, receiver([]).await);
    let (_closed, down) = closed_port();
    // Quiet hours all around the clock, but for a minute.
    let sinks = webhook(
        "down",
        &down,
        "digest = true\nretry_schedule = []\nfallback = \"mail\"\nlabels = { team = \"a\" }\nquiet = \"00:00-23:59\"",
    ) + &webhook("mail", &mail.url(), "events = [\"api.*\"]")
        + &webhook(
            "one",
            &one.url(),
            "digest = true\ngroup = \"one\"\nevents = [\"run.*\"]",
        );
    let program = Program::with(&simulator).configured(&sinks);
    let (team, group): (&[&str], &[&str]) = (
        &["--label", "team=a"],
        &["--label", "team=a", "--label", "group=nightly"],
    );
    let added = [
        ("run_1", team),
        ("run_2", team),
        ("run_3", team),
        ("run_4", group),
        ("run_5", group),
    ];
    let program = end_without_daemon(program, &simulator, &added).await;
    let (program, _daemon) = with_daemon(program).await;
    let got = received(&mail, 1).await;
    let message = body(&got[0]);
    assert_eq!(message["type"], "run.digest");
    assert_eq!(message["data"]["total"], 5);
    assert_eq!(message["data"]["fallback_for"], "down");
    // A group has its own message, which is sent as usual.
    let got = received(&one, 2).await;
    let mut messages: Vec<_> = got.iter().map(body).collect();
    messages.sort_by_key(|message| message["type"].to_string());
    assert_eq!(messages[0]["type"], "group.finished");
    assert_eq!(messages[1]["type"], "run.digest");
    assert_eq!(messages[1]["data"]["total"], 3);
    let failed = program.run(&["deliveries", "--failed"]).await;
    assert!(failed.stdout.contains("run.digest"), "{failed:?}");
    assert_eq!(mail.requests().len(), 1);
}

#[tokio::test]
async fn a_reload_without_summaries_sends_each() {
    let simulator = going(3).await;
    let one = receiver([]).await;
    let sinks = |digest: &str| webhook("one", &one.url(), digest);
    let program = Program::with(&simulator)
        .set("RUNWATCH_CRASH_AT", "verdict-stored")
        .configured(&sinks("digest = true"));
    let program = end_without_daemon(program, &simulator, &plain(3)).await;
    // It dies with the first end in the store, held for a summary, which is turned off meanwhile.
    let mut daemon = program.command(&["daemon"]).spawn().unwrap();
    let died = tokio::time::timeout(PATIENCE, daemon.wait()).await;
    assert_eq!(died.expect("it dies").unwrap().code(), None);
    let program = program.unset("RUNWATCH_CRASH_AT").configured(&sinks(""));
    let (_program, _daemon) = with_daemon(program).await;
    assert_eq!(ids(&received(&one, 3).await).len(), 3);
}
