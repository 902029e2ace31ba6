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

mod daemons;
mod history;
#[allow(dead_code, reason = "shared with the tests of the store")]
mod pooler;
#[allow(dead_code, reason = "shared with the failovers")]
mod postgres;
#[path = "../torture/proxy.rs"]
#[allow(dead_code, reason = "shared with the torture of one daemon")]
mod proxy;
#[path = "../it/support/mod.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use runwatch::simulator::Recorded;
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::daemons::{BUDGET, BUSY, DAEMONS, MAX_IN_FLIGHT, Node};
use self::history::{Followed, Runs, add, check_verdicts, follow, rest};
use self::pooler::Pooler;
use self::postgres::{Postgres, Stop};
use self::proxy::Mode;
use self::support::eventually;

/// Longest time until another daemon leads after the leader died: its lease, and two seconds. A machine that is busy with
/// other things adds to that.
const TAKEOVER: Duration = Duration::from_secs(5);

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

    /// The addresses by which a daemon reaches both servers.
    fn addresses(&self, daemon: usize) -> [SocketAddr; 2] {
        [0, 1].map(|server: usize| match daemon {
            POOLED => self.poolers[server].address(),
            _ => self.servers[server].address(),
        })
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
        daemons::leader(&mut self.nodes, but, 0, limit).await.0
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
    let (simulator, receiver, nodes) = daemons::start(|index| database.addresses(index)).await;
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
        runs.values()
            .filter(|known| known.acknowledged.is_some())
            .count(),
    );
    for (kind, times) in &done.takeovers {
        let most = times.iter().max().copied().unwrap_or_default();
        println!(
            "takeover after {kind}: {} times, at most {most:.1?}",
            times.len()
        );
    }
}
