//! Torture of the built daemon: killed at random moments, stopped, reloaded, on a disk that is full or
//! read-only, with everything between it and the world resetting, cutting and hanging, while runs are added
//! all the time. In the end, what the receivers got is held against what really happened.
//!
//! `tests/torture/run [KILLS [SEED]]`. The seed decides what is done, in which order and after how long;
//! what the machine makes of it differs.
#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test that cannot go on may panic"
)]
#![allow(clippy::print_stdout, reason = "its report is what it is for")]

mod machine;
mod proxy;
#[path = "../it/support/mod.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use runwatch::domain::RunRef;
use runwatch::notify::signature;
use runwatch::simulator::{Fault, Receiver, Script, Simulator};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::time::Instant;

use self::machine::Machine;
use self::proxy::{Mode, Proxy, Troubles};
use self::support::{Program, http_client};

/// Longest time for everything to come to rest once nothing disturbs it: the longest pause after failed
/// polls is a minute.
const REST: Duration = Duration::from_secs(300);

/// From how many kills on each fault must have come at least once.
const MANY: u32 = 100;

/// Most runs that are added.
const MAX_RUNS: usize = 4000;

/// The sinks with a receiver of their own.
const HOOKS: [&str; 2] = ["first", "second"];

const SECRET: &str = "whsec_dG9ydHVyZSB0b3J0dXJlIHRvcnR1cmU=";

/// What is known of one run.
#[derive(Debug, Clone)]
struct Known {
    /// Not before this did it end.
    ends: Instant,
    /// The daemon acknowledged the watch.
    acknowledged: bool,
    /// Its removal was requested.
    removed: bool,
}

type Runs = Arc<Mutex<BTreeMap<String, Known>>>;

fn url(address: std::net::SocketAddr) -> String {
    format!("http://{address}")
}

fn address(url: &str) -> std::net::SocketAddr {
    url.trim_start_matches("http://")
        .trim_end_matches("/hook")
        .parse()
        .unwrap()
}

fn config(hooks: &[Proxy], events: &str) -> String {
    let waits = ["\"200ms\""; 100].join(", ");
    let mut config = String::from("[sinks.file]\ntype = \"log\"\npath = \"events.jsonl\"\n");
    config += &format!("retry_schedule = [{waits}]\n");
    for (name, proxy) in HOOKS.iter().zip(hooks) {
        let url = url(proxy.address);
        config += &format!(
            "[sinks.{name}]\ntype = \"webhook\"\nurl = \"{url}/hook\"\nsecret = \"{SECRET}\"\n"
        );
        config += &format!(
            "events = [\"run.succeeded\", \"run.failed\", \"run.canceled\", \"watch.*\"{events}]\n"
        );
        config += &format!("retry_schedule = [{waits}]\n");
    }
    config
}

/// A run with a fate of its own, and when it ends at the earliest.
fn fate(random: &mut fastrand::Rng) -> (Script, Duration) {
    let (queued, runs) = (
        Duration::from_millis(random.u64(0..400)),
        Duration::from_millis(random.u64(0..2500)),
    );
    let script = match random.u8(0..5) {
        0 | 1 => Script::succeeds()
            .output(json!({"number": random.u32(..), "text": "x".repeat(random.usize(0..3000))})),
        2 | 3 => Script::fails("it broke \u{1b}[31m"),
        _ => Script::canceled(),
    };
    let mut script = script
        .queued_for(queued)
        .runs_for(runs)
        .envelope(random.bool());
    // Wrong answers of the API itself; few, as each slows all polls down for a second.
    if random.u8(0..40) == 0 {
        let fault = match random.u8(0..8) {
            0 => Fault::status(500),
            1 => Fault::status(404),
            2 => Fault::Html,
            3 => Fault::HalfBody,
            4 => Fault::OtherRun,
            5 => Fault::WrongTypes,
            6 => Fault::Empty,
            _ => Fault::Reset,
        };
        script = script.fault_on(random.u32(1..4), fault);
    }
    (script, queued + runs)
}

/// Hands runs over, one after the other, and remembers what was acknowledged.
async fn add(
    simulator: Arc<Simulator>,
    http: reqwest::Client,
    runs: Runs,
    mut random: fastrand::Rng,
) {
    let mut open = BTreeSet::new();
    for number in 0..MAX_RUNS {
        let id = format!("run_{number}");
        let (script, takes) = fate(&mut random);
        let ends = Instant::now() + takes;
        simulator.add_run(&RunRef::new(&id).unwrap(), script);
        runs.lock().unwrap().insert(
            id.clone(),
            Known {
                ends,
                acknowledged: false,
                removed: false,
            },
        );
        open.insert(id.clone());
        // Those that were not acknowledged are tried again now and then, as a caller would.
        let again = open
            .iter()
            .nth(random.usize(0..open.len()))
            .cloned()
            .unwrap();
        for id in BTreeSet::from([id, again]) {
            let body = json!({"run_id": id, "labels": {"number": number.to_string()}}).to_string();
            let answer = http
                .post("http://localhost/v1/watches")
                .body(body)
                .send()
                .await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                runs.lock().unwrap().get_mut(&id).unwrap().acknowledged = true;
                open.remove(&id);
                if random.u8(0..30) == 0 {
                    // The request is enough: no client may rely on the watch from here on.
                    runs.lock().unwrap().get_mut(&id).unwrap().removed = true;
                    drop(
                        http.delete(format!("http://localhost/v1/watches/{id}"))
                            .send()
                            .await,
                    );
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(random.u64(0..40))).await;
    }
}

/// What the adversary did.
#[derive(Debug, Default)]
struct Done {
    kills: u32,
    kills_before_ready: u32,
    pauses: u32,
    stops: u32,
    reloads: u32,
    full_disks: u32,
    read_only_disks: u32,
    refused_starts: u32,
}

impl Done {
    /// What [`Adversary::rage`] picks for a fault that never came, if there is one.
    fn never_picked(&self) -> Option<u8> {
        let picks = [
            (0, self.pauses),
            (2, self.reloads),
            (4, self.full_disks),
            (6, self.stops),
        ];
        picks
            .into_iter()
            .find(|(_, times)| *times == 0)
            .map(|(pick, _)| pick)
    }

    /// Faults that never came.
    fn missing(&self) -> Vec<&'static str> {
        let all = [
            (
                "a kill before the daemon was ready",
                self.kills_before_ready,
            ),
            ("SIGSTOP", self.pauses),
            ("SIGTERM", self.stops),
            ("SIGHUP", self.reloads),
            ("a full disk", self.full_disks),
            ("a read-only disk", self.read_only_disks),
        ];
        all.into_iter()
            .filter(|(_, times)| *times == 0)
            .map(|(fault, _)| fault)
            .collect()
    }
}

struct Adversary {
    machine: Machine,
    http: reqwest::Client,
    log: PathBuf,
    random: fastrand::Rng,
    done: Done,
}

impl Adversary {
    /// Whether it answers. It listens earlier than that.
    async fn ready(&self) -> bool {
        let answer = self.http.get("http://localhost/healthz").send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    async fn moment(&mut self, longest_ms: u64) {
        tokio::time::sleep(Duration::from_millis(self.random.u64(0..longest_ms))).await;
    }

    /// Starts the daemon, and mostly waits until it answers. Returns whether it did.
    async fn start(&mut self, wait: bool) -> (Pid, bool) {
        let daemon = self.machine.start(&self.log).await;
        let mut ready = false;
        while wait
            && !ready
            && rustix::process::test_kill_process(daemon).is_ok()
            && !is_dead(daemon)
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
            ready = self.ready().await;
        }
        (daemon, ready)
    }

    /// Does its worst until the daemon was killed so often.
    async fn rage(&mut self, kills: u32, reload: impl Fn(bool)) {
        let mut full = false;
        while self.done.kills < kills {
            let wait = self.random.u8(0..4) > 0;
            let (daemon, ready) = self.start(wait).await;
            if wait && !ready {
                // A disk that cannot be written to is a reason not to start, and then it says so.
                let code = self.machine.reap(daemon).await;
                assert!(
                    code == 1 && full,
                    "the daemon did not start: {code}\n{}",
                    self.last_words()
                );
                self.done.refused_starts += 1;
                self.machine.free().await;
                full = false;
                continue;
            }
            self.moment(if wait { 500 } else { 150 }).await;
            // What has not come by half of the time comes now, so that no fault is left to chance.
            let pick = self.random.u8(0..20);
            let late = self.done.kills >= kills / 2;
            let pick = self.done.never_picked().filter(|_| late).unwrap_or(pick);
            match pick {
                0 | 1 => {
                    kill_process(daemon, Signal::STOP).unwrap();
                    self.moment(600).await;
                    kill_process(daemon, Signal::CONT).unwrap();
                    self.done.pauses += 1;
                    self.moment(300).await;
                }
                2 | 3 if ready => {
                    reload(self.random.bool());
                    kill_process(daemon, Signal::HUP).unwrap();
                    self.done.reloads += 1;
                    self.moment(300).await;
                }
                4 | 5 => {
                    if full {
                        self.machine.free().await;
                    } else {
                        self.machine.fill().await;
                        self.done.full_disks += 1;
                    }
                    full = !full;
                    self.moment(500).await;
                }
                6 if ready && !full => {
                    // The first signal lets it finish what is under way; the second one ends it at once.
                    kill_process(daemon, Signal::TERM).unwrap();
                    self.moment(100).await;
                    let code = self.machine.end(daemon, Signal::TERM).await;
                    assert!(
                        code == 0 || code == 143,
                        "it stops: {code}\n{}",
                        self.last_words()
                    );
                    self.done.stops += 1;
                    continue;
                }
                _ => {}
            }
            let code = self.machine.end(daemon, Signal::KILL).await;
            // On a full disk it may have given up before: then it ended with a code of its own.
            assert!(
                code == 137 || (code == 1 && full),
                "it ended by itself: {code}\n{}",
                self.last_words()
            );
            // One that gave up before was not killed.
            self.done.kills += u32::from(code == 137);
            self.done.kills_before_ready += u32::from(code == 137 && !ready);
            let read_only = self.random.u8(0..25) == 0 || (late && self.done.read_only_disks == 0);
            if read_only && !full {
                self.machine.remount("ro").await;
                let (daemon, ready) = self.start(true).await;
                assert!(!ready, "nothing is acknowledged that cannot be written");
                assert_eq!(self.machine.reap(daemon).await, 1, "{}", self.last_words());
                self.machine.remount("rw").await;
                self.done.read_only_disks += 1;
            }
        }
        self.machine.free().await;
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log[log.ceil_char_boundary(log.len().saturating_sub(3000))..].to_owned()
    }
}

/// Whether a process has ended and waits to be reaped.
fn is_dead(process: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero()))
        .unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
}

async fn ask(http: &reqwest::Client, path: &str) -> Value {
    let mut response = http
        .get(format!("http://localhost{path}"))
        .send()
        .await
        .unwrap();
    assert!(
        response.status().is_success(),
        "{path}: {}",
        response.status()
    );
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.unwrap() {
        body.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&body).unwrap()
}

/// Waits until every watch has its verdict and every message has arrived.
async fn rest(http: &reqwest::Client) {
    let ends = Instant::now() + REST;
    loop {
        let active = ask(http, "/v1/watches?state=active&limit=1").await;
        let open = ask(http, "/v1/deliveries?state=pending&state=sending&limit=1").await;
        let is_empty = |list: &Value| list.as_array().unwrap().is_empty();
        if is_empty(&active["watches"]) && is_empty(&open["deliveries"]) {
            return;
        }
        assert!(
            Instant::now() < ends,
            "it does not come to rest: {active} {open}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// One message as it came, from whichever sink.
struct Arrival {
    sink: &'static str,
    id: String,
    accepted: bool,
    at: Option<Instant>,
    event: Value,
}

/// Everything that arrived. At the most so many lines of the file may be cut short, by a death or a full disk.
fn arrivals(receivers: &[Receiver], file: &str, deaths: u32) -> Vec<Arrival> {
    let mut all = Vec::new();
    for (sink, receiver) in HOOKS.into_iter().zip(receivers) {
        for got in receiver.requests() {
            assert_eq!(got.verified, Some(true), "every message is signed: {got:?}");
            let id = got.headers[signature::ID_HEADER]
                .to_str()
                .unwrap()
                .to_owned();
            let event = serde_json::from_slice(&got.body).unwrap();
            all.push(Arrival {
                sink,
                id,
                accepted: got.accepted,
                at: Some(got.at),
                event,
            });
        }
    }
    let mut cut = 0;
    for line in file.lines() {
        // A line that a death cut short is followed by one of its own.
        let Ok(event) = serde_json::from_str::<Value>(line) else {
            cut += 1;
            continue;
        };
        let id = event["delivery_id"].as_str().unwrap().to_owned();
        all.push(Arrival {
            sink: "file",
            id,
            accepted: true,
            at: None,
            event,
        });
    }
    println!("lines of the file that a death cut short: {cut}");
    assert!(
        cut <= deaths,
        "{cut} lines of the file are cut short, which deaths and full disks explain for {deaths} at the most"
    );
    all
}

/// Holds what arrived against what happened. Returns how many messages came and how many of them again.
fn judge(simulator: &Simulator, runs: &BTreeMap<String, Known>, all: &[Arrival]) -> (usize, usize) {
    let mut by_run: BTreeMap<(&str, &str), Vec<&Arrival>> = BTreeMap::new();
    let mut started: BTreeMap<(&str, &str), &str> = BTreeMap::new();
    for arrival in all
        .iter()
        .filter(|arrival| arrival.event["data"]["run"]["id"].is_string())
    {
        let run = arrival.event["data"]["run"]["id"].as_str().unwrap();
        let kind = arrival.event["type"].as_str().unwrap();
        let known = runs
            .get(run)
            .unwrap_or_else(|| panic!("a run that was not added: {run}"));
        let truth = simulator.truth(&RunRef::new(run).unwrap()).unwrap();
        if kind == "run.started" {
            let id = started
                .entry((run, arrival.sink))
                .or_insert(arrival.id.as_str());
            assert!(
                *id == arrival.id || known.removed,
                "{run} to {}: started under {id} and {}",
                arrival.sink,
                arrival.id
            );
            continue;
        }
        assert_eq!(
            kind,
            format!("run.{truth}"),
            "{run} to {}: a wrong verdict",
            arrival.sink
        );
        assert_eq!(
            arrival.event["data"]["run"]["status"],
            truth.as_str(),
            "{run} to {}",
            arrival.sink
        );
        assert!(
            arrival.at.is_none_or(|at| at >= known.ends),
            "{run} to {}: reported before it ended",
            arrival.sink
        );
        by_run.entry((run, arrival.sink)).or_default().push(arrival);
    }
    let (mut messages, mut again, mut lost) = (0, 0, Vec::new());
    for (run, known) in runs {
        for sink in HOOKS.into_iter().chain(["file"]) {
            let arrivals = by_run
                .get(&(run.as_str(), sink))
                .map(Vec::as_slice)
                .unwrap_or_default();
            if known.acknowledged
                && !known.removed
                && !arrivals.iter().any(|arrival| arrival.accepted)
            {
                lost.push(format!("{run} to {sink}"));
            }
            let ids: BTreeSet<_> = arrivals.iter().map(|arrival| arrival.id.as_str()).collect();
            // One that was removed may have been added again before that.
            assert!(
                ids.len() <= 1 || known.removed,
                "{run} to {sink}: one message under several IDs: {ids:?}"
            );
            messages += ids.len();
            again += arrivals.len().saturating_sub(ids.len());
        }
    }
    assert!(
        lost.is_empty(),
        "{} messages are lost: {lost:?}",
        lost.len()
    );
    (messages, again)
}

async fn torture(kills: u32, seed: u64) {
    println!("torture: seed {seed}, {kills} kills; again with: tests/torture/run {kills} {seed}");
    let began = Instant::now();
    let mut random = fastrand::Rng::with_seed(seed);
    let simulator = Arc::new(Simulator::start().await.unwrap());
    let api = Proxy::start(address(&simulator.base_url())).await;
    let (mut receivers, mut hooks) = (Vec::new(), Vec::new());
    for _ in HOOKS {
        let verify = |headers: &reqwest::header::HeaderMap, body: &[u8]| {
            signature::verify(SECRET, headers, body, jiff::Timestamp::now()).is_ok()
        };
        let receiver = Receiver::start_verifying(verify).await.unwrap();
        hooks.push(Proxy::start(address(&receiver.url())).await);
        receivers.push(receiver);
    }
    assert!(
        base64::engine::general_purpose::STANDARD
            .decode(&SECRET[6..])
            .is_ok()
    );
    let program = Program::with(&simulator)
        .set("RUNWATCH_API__BASE_URL", &url(api.address))
        .set("RUNWATCH_API__REQUESTS_PER_MINUTE", "1000000")
        .set("RUNWATCH_WATCH__INITIAL_INTERVAL", "100ms")
        .set("RUNWATCH_WATCH__MAX_INTERVAL", "500ms")
        .set("RUNWATCH_WATCH__NOT_FOUND_GRACE", "24h")
        .set("RUNWATCH_STORE__PATH", "disk/runwatch.db")
        .configured(&config(&hooks, ""));
    let run = program.home().join("run");
    std::fs::create_dir(&run).unwrap();
    let program = program.set("XDG_RUNTIME_DIR", run.to_str().unwrap());
    let socket = run.join("runwatch/runwatch.sock");
    let (log, config_file) = (
        program.home().join("log"),
        program.beside_config("config.toml"),
    );
    let http = http_client()
        .unix_socket(socket.clone())
        .no_proxy()
        .timeout(Duration::from_secs(10));
    let http = http.pool_max_idle_per_host(0).build().unwrap();

    let machine = Machine::boot(&program).await;
    let mut adversary = Adversary {
        machine,
        http: http.clone(),
        log,
        random: random.fork(),
        done: Done::default(),
    };
    let (runs, troubles) = (Runs::default(), Troubles::default());
    let configs = [config(&hooks, ""), config(&hooks, ", \"run.started\"")];
    {
        let adding = add(
            Arc::clone(&simulator),
            http.clone(),
            Arc::clone(&runs),
            random.fork(),
        );
        let mut troubled = Vec::new();
        for proxy in hooks.iter().chain([&api]) {
            troubled.push(Box::pin(
                proxy.trouble(random.fork(), Arc::clone(&troubles)),
            ));
        }
        let reload =
            |started: bool| std::fs::write(&config_file, &configs[usize::from(started)]).unwrap();
        let raging = adversary.rage(kills, reload);
        tokio::pin!(raging, adding);
        let mut added = false;
        loop {
            // Each is polled on until the adversary has had enough.
            tokio::select! {
                () = &mut raging => break,
                () = &mut adding, if !added => added = true,
                (..) = futures_util::future::select_all(troubled.iter_mut()) => unreachable!("it never ends"),
            }
        }
    }
    for proxy in hooks.iter().chain([&api]) {
        proxy.set(Mode::Pass);
    }
    let (daemon, ready) = adversary.start(true).await;
    assert!(ready, "{}", adversary.last_words());
    rest(&http).await;
    let dead = ask(&http, "/v1/deliveries?state=dead").await;
    assert_eq!(dead["deliveries"], json!([]), "no message was given up");
    let metrics_of = ask(&http, "/v1/watches?state=finished&limit=1").await;
    assert!(!metrics_of["watches"].as_array().unwrap().is_empty());
    assert_eq!(
        adversary.machine.end(daemon, Signal::TERM).await,
        0,
        "{}",
        adversary.last_words()
    );

    let runs = runs.lock().unwrap().clone();
    let file = std::fs::read_to_string(program.beside_config("events.jsonl")).unwrap();
    let done = &adversary.done;
    let deaths = done.kills + done.stops + 10 * done.full_disks;
    let (messages, again) = judge(&simulator, &runs, &arrivals(&receivers, &file, deaths));
    let acknowledged = runs.values().filter(|run| run.acknowledged).count();
    println!("faults: {:?}", adversary.done);
    println!("connections of proxies: {:?}", troubles.lock().unwrap());
    println!(
        "runs added: {}; acknowledged: {acknowledged}; messages: {messages}; repeated: {again}; lost: 0; wrong: 0; \
         seconds: {}",
        runs.len(),
        began.elapsed().as_secs()
    );
    assert!(
        acknowledged > kills as usize,
        "too few runs to show anything: {acknowledged}"
    );
    let missing = adversary.done.missing();
    assert!(
        kills < MANY || missing.is_empty(),
        "after {kills} kills these never came: {missing:?}"
    );
}

fn main() {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .filter(|text| !text.is_empty())
            .map(|text| text.parse::<u32>().unwrap())
    };
    let kills = number("RUNWATCH_TORTURE_KILLS").unwrap_or(200);
    let seed = number("RUNWATCH_TORTURE_SEED").unwrap_or_else(|| fastrand::u32(..));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(torture(kills, seed.into()));
}
