//! What clients, followers and the receiver see of daemons that share a store, and how that is held against what really
//! happened.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use runwatch::domain::RunRef;
use runwatch::notify::signature;
use runwatch::simulator::{Receiver, Script, Simulator};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::daemons::Node;
use crate::support::find_within;

/// Longest time for everything to come to rest once nothing disturbs it.
const REST: Duration = Duration::from_secs(240);

/// What is known of one run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    /// When the request was sent whose answer acknowledged it, and when that answer came.
    pub(crate) acknowledged: Option<(Instant, Instant)>,
    /// Whether it was removed, or may have been.
    pub(crate) removed: bool,
}

/// The runs by their IDs.
pub(crate) type Runs = Arc<Mutex<BTreeMap<String, Known>>>;

/// A run with a fate of its own.
fn fate(random: &mut fastrand::Rng) -> Script {
    let script = match random.u8(0..5) {
        0 | 1 => Script::succeeds().output(json!({"text": "x".repeat(random.usize(0..3000))})),
        2 | 3 => Script::fails("it broke \u{0}\u{1b}[31m"),
        _ => Script::canceled(),
    };
    script
        .queued_for(Duration::from_millis(random.u64(0..400)))
        .runs_for(Duration::from_millis(random.u64(0..6_000)))
}

/// Hands runs over to daemons by turns, and remembers what was acknowledged.
pub(crate) async fn add(
    simulator: Arc<Simulator>,
    clients: Vec<reqwest::Client>,
    runs: Runs,
    mut random: fastrand::Rng,
) {
    let mut open = BTreeSet::new();
    for number in 0.. {
        let id = format!("run_{number}");
        simulator.add_run(&RunRef::new(&id).unwrap(), fate(&mut random));
        runs.lock().unwrap().insert(id.clone(), Known::default());
        open.insert(id.clone());
        let again = open
            .iter()
            .nth(random.usize(0..open.len()))
            .cloned()
            .unwrap();
        for id in BTreeSet::from([id, again]) {
            let http = &clients[random.usize(0..clients.len())];
            let body = json!({"run_id": id}).to_string();
            let sent_at = Instant::now();
            let request = http.post("http://localhost/v1/watches").body(body);
            let answer = request.timeout(Duration::from_secs(3)).send().await;
            if !answer.is_ok_and(|answer| answer.status().is_success()) {
                continue;
            }
            let acknowledged = Some((sent_at, Instant::now()));
            runs.lock().unwrap().get_mut(&id).unwrap().acknowledged = acknowledged;
            open.remove(&id);
            if random.u8(0..25) == 0 {
                runs.lock().unwrap().get_mut(&id).unwrap().removed = true;
                let http = &clients[random.usize(0..clients.len())];
                let request = http.delete(format!("http://localhost/v1/watches/{id}"));
                drop(request.timeout(Duration::from_secs(3)).send().await);
            }
        }
        // The pace of the clients.
        tokio::time::sleep(Duration::from_millis(random.u64(20..160))).await;
    }
}

/// What one follower got: events by their numbers, in the order in which they came.
pub(crate) type Followed = Arc<Mutex<Vec<(i64, String)>>>;

/// Follows the events on one daemon, and goes on after the last one whenever the stream ends.
pub(crate) async fn follow(http: reqwest::Client, followed: Followed) {
    loop {
        let last = followed.lock().unwrap().last().map_or(0, |(seq, _)| *seq);
        let request = http
            .get("http://localhost/v1/events")
            .header("last-event-id", last.to_string())
            .timeout(Duration::from_secs(3600));
        if let Ok(mut answer) = request.send().await
            && answer.status().is_success()
        {
            let (mut text, mut seq) = (String::new(), 0);
            while let Ok(Some(chunk)) = answer.chunk().await {
                text.push_str(&String::from_utf8_lossy(&chunk));
                while let Some(end) = text.find('\n') {
                    let line: String = text.drain(..=end).collect();
                    if let Some(id) = line.strip_prefix("id: ") {
                        seq = id.trim().parse().unwrap();
                    } else if let Some(data) = line.strip_prefix("data: ") {
                        followed.lock().unwrap().push((seq, data.trim().to_owned()));
                    }
                }
            }
        }
        // The pause of a client before it connects again.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until every watch has its verdict and every message has arrived.
pub(crate) async fn rest(node: &Node) {
    let is_empty = |list: &Value, key: &str| list[key].as_array().is_some_and(Vec::is_empty);
    let mut left = (Value::Null, Value::Null);
    let at_rest = find_within(REST, async || {
        let active = node.get("/v1/watches?state=active&limit=1").await;
        let open = node
            .get("/v1/deliveries?state=pending&state=sending&limit=1")
            .await;
        left = (active.unwrap_or_default(), open.unwrap_or_default());
        (is_empty(&left.0, "watches") && is_empty(&left.1, "deliveries")).then_some(())
    });
    let is_at_rest = at_rest.await.is_some();
    assert!(
        is_at_rest,
        "it does not come to rest: {left:?}\n{}",
        node.log()
    );
}

/// The messages that the receiver accepted: for each run their types and IDs.
pub(crate) type Messages = BTreeMap<String, BTreeSet<(String, String)>>;

/// What the receiver accepted.
pub(crate) fn messages(receiver: &Receiver) -> Messages {
    let mut arrived = Messages::new();
    for got in receiver.requests() {
        assert_eq!(got.verified, Some(true), "every message is signed: {got:?}");
        let id = got.headers[signature::ID_HEADER]
            .to_str()
            .unwrap()
            .to_owned();
        let event: Value = serde_json::from_slice(&got.body).unwrap();
        let run = event["data"]["run"]["id"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let kind = event["type"].as_str().unwrap().to_owned();
        if got.accepted {
            arrived.entry(run).or_default().insert((kind, id));
        }
    }
    arrived
}

/// The watch of a run has its verdict, which is the truth. Returns the truth.
pub(crate) async fn check_verdict(node: &Node, simulator: &Simulator, run: &str) -> String {
    let truth = simulator.truth(&RunRef::new(run).unwrap()).unwrap();
    let watch = node.get(&format!("/v1/watches/{run}")).await.expect(run);
    assert_eq!(watch["verdict"], truth, "{run}: {watch}\n{}", node.log());
    truth.to_string()
}

/// Every run that was acknowledged and not removed has its verdict, which is the truth, and its message arrived, under
/// one ID. Returns how many there were.
pub(crate) async fn check_verdicts(
    node: &Node,
    simulator: &Simulator,
    receiver: &Receiver,
    runs: &BTreeMap<String, Known>,
) -> usize {
    let arrived = messages(receiver);
    let expected = |known: &Known| known.acknowledged.is_some() && !known.removed;
    let mut checked = 0;
    for (run, _) in runs.iter().filter(|(_, known)| expected(known)) {
        checked += 1;
        let truth = check_verdict(node, simulator, run).await;
        let messages = arrived.get(run).cloned().unwrap_or_default();
        let expected = format!("run.{truth}");
        let kinds: Vec<_> = messages.iter().map(|(kind, _)| kind.as_str()).collect();
        assert_eq!(
            kinds,
            [expected.as_str()],
            "{run}: one message under one ID: {messages:?}"
        );
    }
    checked
}
