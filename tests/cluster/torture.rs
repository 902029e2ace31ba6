//! Torture of several daemons on one PostgreSQL with a synchronous standby: killed, frozen, stopped, cut off from the
//! database and requested to hand over, while the database itself is killed, ends connections and is replaced by its
//! standby, and runs are added and removed on every daemon all the time. One daemon goes through PgBouncer in
//! transaction mode, which is killed as well. In the end, what the API, the receiver and the followers saw is held against what really
//! happened.
//!
//! `tests/cluster/torture [ROUNDS [SEED]]`. The seed decides what is done, in which order and after how long; what the
//! machine makes of it differs.
#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test that cannot go on may panic"
)]
#![allow(clippy::print_stdout, reason = "its report is what it is for")]

mod pooler;
mod postgres;
#[path = "../torture/proxy.rs"]
#[allow(dead_code, reason = "shared with the torture of one daemon")]
mod proxy;
#[path = "../it/support/mod.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use runwatch::domain::RunRef;
use runwatch::notify::signature;
use runwatch::simulator::{Receiver, Recorded, Script, Simulator};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::process::Child;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::pooler::Pooler;
use self::postgres::{Postgres, Stop, USER};
use self::proxy::{Mode, Proxy};
use self::support::{Program, eventually, http_client};

const DAEMONS: usize = 3;

/// The shortest lease.
const LEASE: Duration = Duration::from_secs(3);

/// Longest time until another daemon leads after the leader died: its lease, and two seconds. A machine that is busy with
/// other things adds to that.
const TAKEOVER: Duration = Duration::from_secs(5);

/// What a busy machine may add, so that no verdict of this test is about its speed.
const BUSY: Duration = Duration::from_secs(25);

/// Longest time for everything to come to rest once nothing disturbs it.
const REST: Duration = Duration::from_secs(240);

/// Most requests in any 60 s, of all daemons together.
const BUDGET: u32 = 3_000;

/// Most polls that a daemon has under way; those that were decided when it froze cannot be called back.
const MAX_IN_FLIGHT: usize = 8;

const SECRET: &str = "whsec_dG9ydHVyZSB0b3J0dXJlIHRvcnR1cmU=";

/// What is known of one run.
#[derive(Debug, Clone, Default)]
struct Known {
    acknowledged: bool,
    removed: bool,
}

type Runs = Arc<Mutex<BTreeMap<String, Known>>>;

/// How many kinds of rounds there are.
const KINDS: u32 = 12;

/// The daemon that goes through the poolers.
const POOLED: usize = 1;

/// A primary and its standby, with a pooler before each.
struct Database {
    servers: [Postgres; 2],
    poolers: [Pooler; 2],
    primary: usize,
}

impl Database {
    async fn start() -> Self {
        let first = Postgres::start();
        let servers = [first.standby(), first];
        let poolers = [
            Pooler::start(servers[0].port).await,
            Pooler::start(servers[1].port).await,
        ];
        let database = Self {
            servers,
            poolers,
            primary: 1,
        };
        database.primary().wait_for_standby(true);
        database
    }

    fn primary(&self) -> &Postgres {
        &self.servers[self.primary]
    }

    /// Waits until the standby has all that was committed.
    async fn in_sync(&self) {
        eventually("the standby to have all", || self.primary().is_in_sync()).await;
    }

    /// Kills the primary, and makes its standby the primary.
    fn fail_over(&mut self) {
        self.primary().stop(Stop::Immediate);
        self.primary = 1 - self.primary;
        self.primary().promote();
    }

    /// Makes the killed primary the standby of the new one.
    fn repair(&self) {
        self.servers[1 - self.primary].follow(self.primary());
        self.primary().wait_for_standby(true);
    }
}

/// One machine with a daemon.
struct Node {
    program: Program,
    /// The ways to both servers of the database.
    links: [Proxy; 2],
    http: reqwest::Client,
    child: Option<Child>,
}

impl Node {
    async fn new(
        index: usize,
        simulator: &Simulator,
        receiver: &Receiver,
        database: &Database,
    ) -> Self {
        let [first, second] = [0, 1].map(|server: usize| match index {
            POOLED => database.poolers[server].address(),
            _ => database.servers[server].address(),
        });
        let links = [Proxy::start(first).await, Proxy::start(second).await];
        let waits = ["\"200ms\""; 60].join(", ");
        let config = format!(
            "[store]\nurl = \"postgres://{USER}@{},{}/{USER}?sslmode=disable\"\nlease = \"{}s\"\n\
             [watch]\nmax_in_flight = {MAX_IN_FLIGHT}\n\
             [sinks.hook]\ntype = \"webhook\"\nurl = \"{}\"\nsecret = \"{SECRET}\"\n\
             events = [\"run.succeeded\", \"run.failed\", \"run.canceled\", \"watch.*\"]\nretry_schedule = [{waits}]\n",
            links[0].address,
            links[1].address,
            LEASE.as_secs(),
            receiver.url(),
        );
        let program = Program::with(simulator)
            .set("RUNWATCH_API__BASE_URL", &simulator.base_url_of(index))
            .set("RUNWATCH_API__REQUESTS_PER_MINUTE", &BUDGET.to_string())
            .set("RUNWATCH_WATCH__INITIAL_INTERVAL", "200ms")
            .set("RUNWATCH_WATCH__MAX_INTERVAL", "1s")
            .configured(&config);
        let run = program.home().join("run");
        std::fs::create_dir(&run).unwrap();
        let program = program
            .set("RUNTIME_DIRECTORY", run.to_str().unwrap())
            .set("STATE_DIRECTORY", program_state(&run));
        let http = http_client()
            .unix_socket(run.join("runwatch.sock"))
            .timeout(Duration::from_secs(20))
            .build()
            .unwrap();
        Self {
            program,
            links,
            http,
            child: None,
        }
    }

    fn start(&mut self) {
        let log = self.program.home().join("log");
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        let child = self
            .program
            .command(&["daemon"])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.child = Some(child.unwrap());
    }

    /// What happens to its connections to the database.
    fn set_links(&self, mode: Mode) {
        self.links.iter().for_each(|link| link.set(mode));
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().and_then(Child::id).unwrap();
        let id = Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
        kill_process(id, signal).unwrap();
    }

    /// Ends the daemon, and waits for that end.
    async fn end(&mut self, signal: Signal) {
        self.signal(signal);
        if signal == Signal::KILL {
            // A frozen process ends as well.
            self.signal(Signal::CONT);
        }
        let ended = tokio::time::timeout(BUSY, self.child.as_mut().unwrap().wait()).await;
        let status = ended.expect("the daemon ends").unwrap();
        assert!(
            signal == Signal::KILL || status.success(),
            "{status}\n{}",
            self.log()
        );
        self.child = None;
    }

    /// The answer to a request; `None` where there is none.
    async fn get(&self, path: &str) -> Option<Value> {
        let answer = self
            .http
            .get(format!("http://localhost{path}"))
            .send()
            .await;
        let mut answer = answer.ok().filter(|answer| answer.status().is_success())?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.ok()? {
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body).ok()
    }

    /// Whether it leads: its engine runs.
    async fn leads(&self) -> bool {
        let lease = tokio::time::timeout(Duration::from_secs(2), self.get("/v1/lease")).await;
        lease
            .ok()
            .flatten()
            .is_some_and(|lease| lease["leads"] == true)
    }

    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.program.home().join("log")).unwrap_or_default();
        log[log.ceil_char_boundary(log.len().saturating_sub(6000))..].to_owned()
    }

    /// How often it panicked or ended by itself.
    fn check_alive(&mut self) {
        if let Some(child) = &mut self.child {
            let ended = child.try_wait().unwrap();
            assert!(
                ended.is_none(),
                "the daemon ended by itself: {ended:?}\n{}",
                self.log()
            );
        }
    }
}

fn program_state(run: &std::path::Path) -> &str {
    // The same folder does: it belongs to this daemon alone.
    run.to_str().unwrap()
}

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
async fn add(
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
            let request = http.post("http://localhost/v1/watches").body(body);
            let answer = request.timeout(Duration::from_secs(3)).send().await;
            if !answer.is_ok_and(|answer| answer.status().is_success()) {
                continue;
            }
            runs.lock().unwrap().get_mut(&id).unwrap().acknowledged = true;
            open.remove(&id);
            if random.u8(0..25) == 0 {
                runs.lock().unwrap().get_mut(&id).unwrap().removed = true;
                let http = &clients[random.usize(0..clients.len())];
                let request = http.delete(format!("http://localhost/v1/watches/{id}"));
                drop(request.timeout(Duration::from_secs(3)).send().await);
            }
        }
        tokio::time::sleep(Duration::from_millis(random.u64(20..160))).await;
    }
}

/// What one follower got: events by their numbers, in the order in which they came.
type Followed = Arc<Mutex<Vec<(i64, String)>>>;

/// Follows the events on one daemon, and goes on after the last one whenever the stream ends.
async fn follow(http: reqwest::Client, followed: Followed) {
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
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What was done, and how long it took until another daemon led.
#[derive(Debug, Default)]
struct Done {
    kills: u32,
    freezes: u32,
    stops: u32,
    partitions: u32,
    database_kills: u32,
    database_stops: u32,
    promotions: u32,
    pooler_kills: u32,
    ended_connections: u32,
    handovers: u32,
    slow_links: u32,
    takeovers: BTreeMap<&'static str, Vec<Duration>>,
}

struct Adversary {
    nodes: Vec<Node>,
    database: Database,
    random: fastrand::Rng,
    done: Done,
}

impl Adversary {
    /// Which daemon leads, once one does; `but` does not count.
    async fn leader(&mut self, but: Option<usize>, limit: Duration) -> usize {
        let ends = Instant::now() + limit;
        loop {
            for index in (0..self.nodes.len()).filter(|index| Some(*index) != but) {
                if self.nodes[index].child.is_some() && self.nodes[index].leads().await {
                    return index;
                }
            }
            for index in (0..self.nodes.len()).filter(|index| Some(*index) != but) {
                self.nodes[index].check_alive();
            }
            assert!(
                Instant::now() < ends,
                "no daemon leads\n{}",
                self.nodes
                    .iter()
                    .map(Node::log)
                    .collect::<Vec<_>>()
                    .join("\n---\n")
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn takeover(&mut self, kind: &'static str, but: Option<usize>) {
        let began = Instant::now();
        self.leader(but, TAKEOVER + BUSY).await;
        let took = began.elapsed();
        self.done.takeovers.entry(kind).or_default().push(took);
    }

    async fn moment(&mut self, longest_ms: u64) {
        let moment = Duration::from_millis(self.random.u64(0..longest_ms));
        tokio::time::sleep(moment).await;
    }

    /// One thing after the other.
    async fn round(&mut self, number: u32) {
        let leader = self.leader(None, TAKEOVER + BUSY).await;
        // Each kind comes at least once.
        let kind = if number < KINDS {
            number
        } else {
            self.random.u32(0..KINDS)
        };
        match kind {
            0 => {
                self.done.kills += 1;
                self.nodes[leader].end(Signal::KILL).await;
                self.takeover("kill -9", Some(leader)).await;
                self.nodes[leader].start();
            }
            1 => {
                // The same machine starts it again: no lease is waited for.
                self.done.kills += 1;
                for index in 0..self.nodes.len() {
                    if index != leader {
                        self.nodes[index].end(Signal::TERM).await;
                    }
                }
                self.nodes[leader].end(Signal::KILL).await;
                self.nodes[leader].start();
                self.takeover("kill -9, started again alone", None).await;
                for index in 0..self.nodes.len() {
                    if index != leader {
                        self.nodes[index].start();
                    }
                }
            }
            2 => {
                self.done.freezes += 1;
                self.nodes[leader].signal(Signal::STOP);
                self.takeover("frozen", Some(leader)).await;
                self.moment(2_000).await;
                self.nodes[leader].signal(Signal::CONT);
            }
            3 => {
                self.done.stops += 1;
                self.nodes[leader].signal(Signal::TERM);
                self.takeover("SIGTERM", Some(leader)).await;
                let child = self.nodes[leader].child.as_mut().unwrap();
                let ended = tokio::time::timeout(BUSY, child.wait()).await;
                assert!(ended.unwrap().unwrap().success());
                self.nodes[leader].start();
            }
            4 => {
                self.done.partitions += 1;
                let mode = *self.random.choice([Mode::Hang, Mode::Gone].iter()).unwrap();
                self.nodes[leader].set_links(mode);
                self.takeover("cut off from the database", Some(leader))
                    .await;
                self.moment(4_000).await;
                self.nodes[leader].set_links(Mode::Pass);
            }
            5 => {
                self.done.database_kills += 1;
                self.database.primary().stop(Stop::Immediate);
                self.moment(5_000).await;
                self.database.primary().resume();
            }
            6 => {
                self.done.ended_connections += 1;
                let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'runwatch%'";
                for _ in 0..5 {
                    self.database.primary().try_sql(end);
                    self.moment(400).await;
                }
            }
            7 => {
                self.done.handovers += 1;
                let other = (leader + 1) % self.nodes.len();
                let request = self.nodes[other]
                    .http
                    .post("http://localhost/v1/lease/release");
                if request
                    .send()
                    .await
                    .is_ok_and(|answer| answer.status().is_success())
                {
                    self.takeover("lead release", Some(leader)).await;
                }
            }
            8 => {
                self.done.slow_links += 1;
                let bytes = self.random.usize(1..3_000);
                let slow = Mode::Delay(Duration::from_millis(self.random.u64(1..200)));
                for mode in [slow, Mode::CutAnswer(bytes), Mode::CutRequest(bytes)] {
                    self.nodes[leader].set_links(mode);
                    self.moment(2_000).await;
                }
                self.nodes[leader].set_links(Mode::Pass);
            }
            9 => {
                self.done.database_stops += 1;
                self.database.primary().stop(Stop::Fast);
                self.moment(8_000).await;
                self.database.primary().resume();
            }
            10 => {
                self.done.promotions += 1;
                self.database.in_sync().await;
                self.moment(2_000).await;
                self.database.fail_over();
                self.moment(4_000).await;
                self.database.repair();
            }
            _ => {
                self.done.pooler_kills += 1;
                self.database.poolers.iter_mut().for_each(Pooler::kill);
                self.moment(4_000).await;
                for pooler in &mut self.database.poolers {
                    pooler.resume().await;
                }
            }
        }
        self.nodes.iter_mut().for_each(Node::check_alive);
        self.moment(3_000).await;
    }
}

/// Waits until every watch has its verdict and every message has arrived.
async fn rest(node: &Node) {
    let ends = Instant::now() + REST;
    let is_empty = |list: &Value, key: &str| list[key].as_array().is_some_and(Vec::is_empty);
    loop {
        let active = node
            .get("/v1/watches?state=active&limit=1")
            .await
            .unwrap_or_default();
        let open = node
            .get("/v1/deliveries?state=pending&state=sending&limit=1")
            .await
            .unwrap_or_default();
        if is_empty(&active, "watches") && is_empty(&open, "deliveries") {
            return;
        }
        assert!(
            Instant::now() < ends,
            "it does not come to rest: {active} {open}\n{}",
            node.log()
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// How often the requests went over from one daemon to another, and the most requests in any 60 s.
fn requests(all: &[Recorded]) -> (usize, usize) {
    let switches = all
        .windows(2)
        .filter(|pair| pair[0].address != pair[1].address)
        .count();
    let (mut first, mut most) = (0, 0);
    for (last, request) in all.iter().enumerate() {
        while request.at.duration_since(all[first].at) >= Duration::from_secs(60) {
            first += 1;
        }
        most = most.max(last + 1 - first);
    }
    (switches, most)
}

/// Every run that was acknowledged and not removed has its verdict, which is the truth, and its message arrived, under
/// one ID. Returns how many there were.
async fn check_verdicts(
    node: &Node,
    simulator: &Simulator,
    receiver: &Receiver,
    runs: &BTreeMap<String, Known>,
) -> usize {
    let mut arrived: BTreeMap<String, BTreeSet<(String, String)>> = BTreeMap::new();
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
    let mut checked = 0;
    for (run, known) in runs.iter().filter(|(_, known)| known.acknowledged) {
        let messages = arrived.get(run).cloned().unwrap_or_default();
        if known.removed {
            continue;
        }
        checked += 1;
        let truth = simulator.truth(&RunRef::new(run).unwrap()).unwrap();
        let watch = node.get(&format!("/v1/watches/{run}")).await.expect(run);
        assert_eq!(watch["verdict"], truth, "{run}: {watch}\n{}", node.log());
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

/// Every follower got every event of the store, in the order of their numbers, and none twice.
fn check_followers(followers: &[Followed], database: &Database) -> usize {
    let stored: usize = database
        .primary()
        .sql("SELECT count(*) FROM runwatch.events")
        .parse()
        .unwrap();
    let lists: Vec<_> = followers
        .iter()
        .map(|list| list.lock().unwrap().clone())
        .collect();
    for list in &lists {
        assert!(
            list.windows(2).all(|pair| pair[0].0 < pair[1].0),
            "events come in the order of their numbers, none twice"
        );
        assert_eq!(list, &lists[0], "all followers got the same events");
    }
    // Those of watches that were removed are gone from the store.
    assert!(
        lists[0].len() >= stored,
        "{} of {stored} events",
        lists[0].len()
    );
    stored
}

#[tokio::main]
async fn main() {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let rounds = u32::try_from(number("RUNWATCH_CLUSTER_ROUNDS").unwrap_or(30)).unwrap();
    let seed = number("RUNWATCH_CLUSTER_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("{rounds} rounds, seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);

    let database = Database::start().await;
    let simulator = Arc::new(Simulator::start_on_ports(DAEMONS).await.unwrap());
    let verify = |headers: &reqwest::header::HeaderMap, body: &[u8]| {
        signature::verify(SECRET, headers, body, jiff::Timestamp::now()).is_ok()
    };
    let receiver = Receiver::start_verifying(verify).await.unwrap();
    let mut nodes = Vec::new();
    for index in 0..DAEMONS {
        let mut node = Node::new(index, &simulator, &receiver, &database).await;
        node.start();
        nodes.push(node);
    }
    let clients: Vec<_> = nodes.iter().map(|node| node.http.clone()).collect();
    let mut adversary = Adversary {
        nodes,
        database,
        random: random.fork(),
        done: Done::default(),
    };
    let first = adversary.leader(None, BUSY).await;

    let followers: Vec<Followed> = (0..DAEMONS).map(|_| Followed::default()).collect();
    let mut beside = JoinSet::new();
    for (http, followed) in clients.iter().zip(&followers) {
        beside.spawn(follow(http.clone(), Arc::clone(followed)));
    }
    let runs = Runs::default();
    let mut adding = JoinSet::new();
    adding.spawn(add(
        Arc::clone(&simulator),
        clients.clone(),
        Arc::clone(&runs),
        random.fork(),
    ));
    println!("daemon {first} leads; the torture begins");
    for round in 0..rounds {
        adversary.round(round).await;
    }
    adding.shutdown().await;
    let leader = adversary.leader(None, TAKEOVER + BUSY).await;
    let node = &adversary.nodes[leader];
    rest(node).await;
    // The followers on other daemons see an event within moments.
    tokio::time::sleep(Duration::from_secs(3)).await;

    let runs = runs.lock().unwrap().clone();
    let checked = check_verdicts(node, &simulator, &receiver, &runs).await;
    let events = check_followers(&followers, &adversary.database);
    let epoch: usize = adversary
        .database
        .primary()
        .sql("SELECT epoch FROM runwatch.leases")
        .parse()
        .unwrap();
    let (switches, most) = requests(&simulator.requests());
    let done = &adversary.done;
    // A daemon that froze may send what it had decided when it goes on.
    let exceptions = usize::try_from(done.freezes).unwrap() * 2 * MAX_IN_FLIGHT;
    assert!(
        switches <= epoch + exceptions,
        "{switches} changes of the polling daemon in {epoch} terms"
    );
    assert!(
        most <= usize::try_from(BUDGET).unwrap() + exceptions,
        "{most} requests in 60 s"
    );
    for node in &adversary.nodes {
        let log = std::fs::read_to_string(node.program.home().join("log")).unwrap();
        assert!(!log.contains("panicked"), "{log}");
    }
    println!("{done:#?}");
    println!(
        "{} runs, {} acknowledged, {checked} verdicts right and delivered under one ID, {events} events in order on \
         {DAEMONS} followers, {epoch} terms, {switches} changes of the polling daemon, at most {most} requests in 60 s",
        runs.len(),
        runs.values().filter(|known| known.acknowledged).count(),
    );
    for (kind, times) in &done.takeovers {
        let most = times.iter().max().copied().unwrap_or_default();
        println!(
            "takeover after {kind}: {} times, at most {most:.1?}",
            times.len()
        );
    }
}
