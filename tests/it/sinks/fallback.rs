//! Fallbacks: what is given up goes to another sink, once.

use runwatch::simulator::{Fault, Script};

use super::{body, closed_port, receiver, wait, webhook};
use crate::support::{Program, api, received, until, with_daemon};

const ONCE: &str = "retry_schedule = []\n";

#[tokio::test]
async fn what_is_given_up_goes_along_the_chain_and_names_the_sink_that_failed() {
    let (_held, refused) = closed_port();
    let gone = receiver([Fault::status(410)]).await;
    let (standard, slack) = (receiver([]).await, receiver([]).await);
    let events = "events = [\"run.failed\"]\n";
    let sinks = [
        webhook("a", &refused, &format!("{ONCE}{events}fallback = \"b\"")),
        webhook("b", &gone.url(), "events = []\nfallback = \"c\""),
        webhook(
            "c",
            &standard.url(),
            "events = []\nlabels = { no = \"run\" }",
        ),
        webhook("d", &refused, &format!("{ONCE}{events}fallback = \"e\"")),
        webhook("e", &slack.url(), "events = []\nformat = \"slack\""),
    ]
    .concat();
    let ended = wait(Script::fails("no"), &sinks, &[]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let got = received(&standard, 1).await;
    assert_eq!(got.len(), 1);
    let message = body(&got[0]);
    assert_eq!(message["type"], "run.failed");
    assert_eq!(message["data"]["fallback_for"], "b");
    assert_eq!(message["data"]["run"]["id"], "run_1");
    assert_eq!(body(&gone.requests()[0])["data"]["fallback_for"], "a");
    let text = body(&received(&slack, 1).await[0]).to_string();
    assert!(
        text.contains("sent here because d could not be reached"),
        "{text}"
    );
    for sink in ["a", "b", "d"] {
        let warning = format!("run.failed of run_1 was not delivered to {sink} after 1 attempt");
        assert!(ended.stderr.contains(&warning), "{ended:?}");
    }
    assert!(!ended.stderr.contains("not delivered to c"), "{ended:?}");
}

#[tokio::test]
async fn a_delivery_that_is_given_up_again_makes_no_other() {
    let simulator = api([("run_1", Script::succeeds())]).await;
    let (_held, refused) = closed_port();
    let fallback = receiver([]).await;
    let sinks = webhook("ops", &refused, &format!("{ONCE}fallback = \"desk\""))
        + &webhook("desk", &fallback.url(), "events = []");
    let (program, _daemon) = with_daemon(Program::with(&simulator).configured(&sinks)).await;
    let ended = program.run(&["add", "run_1"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    received(&fallback, 1).await;
    for attempts in 1..=2 {
        let deliveries = until("the end of all attempts", async || {
            let listed = program.run(&["deliveries", "--json"]).await.json_lines();
            let deliveries = listed[0]["deliveries"].as_array().unwrap().clone();
            let done = deliveries.iter().all(|delivery| {
                let state = if delivery["sink"] == "ops" {
                    "dead"
                } else {
                    "delivered"
                };
                let made = if delivery["sink"] == "ops" {
                    attempts
                } else {
                    1
                };
                delivery["state"] == state && delivery["attempts"] == made
            });
            done.then_some(deliveries)
        })
        .await;
        assert_eq!(deliveries.len(), 2, "{deliveries:?}");
        let to_desk = deliveries
            .iter()
            .find(|delivery| delivery["sink"] == "desk");
        assert_eq!(to_desk.unwrap()["fallback_for"], "ops");
        let ended = program.run(&["deliveries", "retry", "--sink", "ops"]).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
    assert_eq!(fallback.requests().len(), 1);
    let shown = program.run(&["show", "run_1"]).await;
    assert!(shown.stdout.contains(", for ops"), "{shown:?}");
    let listed = program.run(&["deliveries"]).await;
    assert!(listed.stdout.contains("delivered (for ops)"), "{listed:?}");
}
