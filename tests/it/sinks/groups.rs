//! Groups: one message about several runs.

use runwatch::simulator::Script;
use serde_json::{Value, json};

use super::{body, receiver, webhook};
use crate::support::{Program, api, received, with_daemon};

/// Three runs, of which the second one fails.
const RUNS: [&str; 3] = ["run_1", "run_2", "run_3"];

fn scripts() -> [(&'static str, Script); 3] {
    [
        ("run_1", Script::succeeds()),
        ("run_2", Script::fails("no")),
        ("run_3", Script::succeeds()),
    ]
}

/// The types of the messages, and how many there are of each.
fn types(received: &[runwatch::simulator::Received]) -> Vec<String> {
    let mut types: Vec<_> = received
        .iter()
        .map(|received| body(received)["type"].as_str().unwrap().to_owned())
        .collect();
    types.sort();
    types
}

fn is_about_all(message: &Value) {
    let data = &message["data"];
    assert_eq!(message["type"], "group.finished");
    assert_eq!(
        (&data["group"], &data["total"]),
        (&json!("nightly"), &json!(3))
    );
    assert_eq!(data["verdicts"], json!({"failed": 1, "succeeded": 2}));
    let run = |id: &str, verdict: &str| json!({"provider": "crewship", "id": id, "name": null, "verdict": verdict});
    // The daemon adds runs at the same time, so that those with the same verdict have any order.
    let mut runs = data["runs"].as_array().unwrap().clone();
    runs[1..].sort_by_key(|run| run["id"].as_str().map(ToOwned::to_owned));
    assert_eq!(
        json!(runs),
        json!([
            run("run_2", "failed"),
            run("run_1", "succeeded"),
            run("run_3", "succeeded")
        ])
    );
}

#[tokio::test]
async fn a_wait_for_a_group_sends_one_message_and_ends_with_one_line() {
    let simulator = api(scripts()).await;
    let (hook, slack) = (receiver([]).await, receiver([]).await);
    let sinks =
        webhook("hook", &hook.url(), "") + &webhook("chat", &slack.url(), "format = \"slack\"");
    let program = Program::with(&simulator).configured(&sinks);
    let ended = program
        .run(&[&["wait", "--group", "nightly"], &RUNS[..], &["run_1"]].concat())
        .await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let line = "nightly: 2 of 3 succeeded, 1 failed";
    assert_eq!(ended.stderr.matches(line).count(), 1, "{ended:?}");
    assert_eq!(hook.requests().len(), 1);
    is_about_all(&body(&hook.requests()[0]));
    let text = body(&slack.requests()[0]).to_string();
    assert!(
        text.contains(line) && text.contains("failed: run_2"),
        "{text}"
    );
    assert_eq!(slack.requests().len(), 1);
    // A label alone leaves no verdict to a message that does not come.
    let sinks = webhook("hook", &hook.url(), "group = \"one\"");
    let program = Program::with(&simulator).configured(&sinks);
    let labels = ["--label", "group=nightly", "--label", "group_size=6"];
    let ended = program
        .run(&[&["wait"], &labels[..], &["run_2"]].concat())
        .await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert_eq!(hook.requests().len(), 2, "{ended:?}");
    assert_eq!(body(&hook.requests()[1])["type"], "run.failed");
    let ended = program
        .run(&["wait", "--group", "nightly", "--any", "run_1"])
        .await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
}

#[tokio::test]
async fn the_daemon_sends_one_message_where_a_sink_wants_that() {
    let simulator = api(scripts()).await;
    let (one, each) = (receiver([]).await, receiver([]).await);
    let sinks = webhook("one", &one.url(), "group = \"one\"") + &webhook("each", &each.url(), "");
    let (program, _daemon) = with_daemon(Program::with(&simulator).configured(&sinks)).await;
    let ended = program
        .run(&[&["wait", "--daemon", "--group", "nightly"], &RUNS[..]].concat())
        .await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended.stderr.contains("nightly: 2 of 3 succeeded, 1 failed"),
        "{ended:?}"
    );
    let got = received(&one, 1).await;
    is_about_all(&body(&got[0]));
    received(&each, 3).await;
    assert_eq!(
        types(&each.requests()),
        ["run.failed", "run.succeeded", "run.succeeded"]
    );
    let shown = program.run(&["show", "run_2"]).await;
    assert!(
        shown
            .stdout
            .contains("it gets one message for the group nightly"),
        "{shown:?}"
    );
    let listed = program
        .run(&["deliveries", "--sink", "one", "--json"])
        .await;
    let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
    let delivery = &listed["deliveries"][0];
    assert_eq!(
        (&delivery["event"], &delivery["group"], &delivery["run_id"]),
        (&json!("group.finished"), &json!("nightly"), &Value::Null)
    );
    let table = program.run(&["deliveries"]).await;
    assert_eq!(
        table.stdout.matches("group nightly").count(),
        1,
        "{table:?}"
    );
    // A run without a group has its own message, and one whose size is wrong is refused.
    simulator.add_run(
        &runwatch::domain::RunRef::new("run_4").unwrap(),
        Script::succeeds(),
    );
    let ended = program.run(&["add", "run_4"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let got = received(&one, 2).await;
    assert_eq!(body(&got[1])["type"], "run.succeeded");
    let sized = ["add", "--label", "group_size=none", "run_4"];
    let ended = program.run(&sized).await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(
        ended
            .stderr
            .contains("write a whole number from 1 to 10000"),
        "{ended:?}"
    );
}

#[tokio::test]
async fn a_group_whose_last_watch_is_removed_is_finished() {
    let simulator = api([
        ("run_1", Script::succeeds()),
        ("run_going", Script::runs_forever()),
    ])
    .await;
    let one = receiver([]).await;
    let sinks = webhook("one", &one.url(), "group = \"one\"");
    let (program, _daemon) = with_daemon(Program::with(&simulator).configured(&sinks)).await;
    let label = ["--label", "group=nightly", "--label", "group_size=2"];
    for run in ["run_1", "run_going"] {
        let ended = program.run(&[&["add", run], &label[..]].concat()).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
    let ended = program.run(&["wait", "--daemon", "run_1"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(one.requests().len(), 0);
    let ended = program.run(&["remove", "run_going"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let got = received(&one, 1).await;
    assert_eq!(body(&got[0])["data"]["total"], 1);
    assert_eq!(body(&got[0])["data"]["runs"][0]["id"], "run_1");
}

#[tokio::test]
async fn a_process_that_dies_around_the_last_verdict_loses_and_repeats_nothing() {
    for point in ["observed", "claimed", "sent", "recorded"] {
        let simulator = api(scripts()).await;
        let one = receiver([]).await;
        let sinks = webhook("one", &one.url(), "group = \"one\"");
        let program = Program::with(&simulator)
            .set("RUNWATCH_CRASH_AT", point)
            .configured(&sinks);
        let (program, mut daemon) = with_daemon(program).await;
        let label = ["--label", "group=nightly", "--label", "group_size=3"];
        for run in RUNS {
            // The daemon may be dead already.
            drop(program.run(&[&["add", run], &label[..]].concat()).await);
        }
        let died = tokio::time::timeout(crate::support::PATIENCE, daemon.wait()).await;
        assert_eq!(died.expect("it dies").unwrap().code(), None, "{point}");
        let program = program.unset("RUNWATCH_CRASH_AT");
        let (program, _daemon) = with_daemon(program).await;
        for run in RUNS {
            drop(program.run(&[&["add", run], &label[..]].concat()).await);
        }
        let got = received(&one, 1).await;
        // An attempt that had arrived is made again, under the same ID.
        let ids: std::collections::HashSet<_> = got
            .iter()
            .map(|received| super::header(received, "webhook-id"))
            .collect();
        assert_eq!(ids.len(), 1, "{point}");
        is_about_all(&body(&got[0]));
    }
}
