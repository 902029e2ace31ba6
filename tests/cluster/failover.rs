//! Failovers of the database that others make, while three daemons share it and runs are added and removed on every daemon
//! all the time: by Patroni, with a synchronous standby; and by hand, with an asynchronous standby that lags and so loses
//! transactions. The first may lose nothing; of the second, what is lost is counted, and nothing may be wrong.
//!
//! `tests/cluster/failover [SEED]`.
#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test that cannot go on may panic"
)]
#![allow(clippy::print_stdout, reason = "its report is what it is for")]

#[allow(dead_code, reason = "shared with the torture of several daemons")]
mod daemons;
mod history;
mod patroni;
#[allow(dead_code, reason = "shared with the torture of several daemons")]
mod postgres;
#[path = "../torture/proxy.rs"]
#[allow(dead_code, reason = "shared with the torture of one daemon")]
mod proxy;
#[path = "../it/support/mod.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use runwatch::domain::RunRef;
use runwatch::simulator::{Receiver, Simulator};
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::daemons::{DAEMONS, Node};
use self::history::{
    Followed, Known, Runs, add, check_verdict, check_verdicts, follow, messages, rest,
};
use self::patroni::Patroni;
use self::postgres::{Postgres, Stop};
use self::support::{eventually, find_within};

/// Longest wait for a daemon that leads or acknowledges after a failover.
const PATIENCE: Duration = Duration::from_secs(120);

/// How many events happen while the standby gets nothing, before it is promoted: more than a sequence has numbers in
/// reserve, which are 32 (`SEQ_LOG_VALS` in src/backend/commands/sequence.c of PostgreSQL).
const LOST_EVENTS: i64 = 64;

/// How many additions are acknowledged after that, and lost as well.
const LOST_ADDITIONS: usize = 20;

/// Failovers with loss.
const LOSSES: usize = 2;

/// Daemons, and what clients and followers do beside them.
struct World {
    simulator: Arc<Simulator>,
    receiver: Receiver,
    nodes: Vec<Node>,
    runs: Runs,
    followers: Vec<Followed>,
    _following: JoinSet<()>,
    adding: JoinSet<()>,
}

impl World {
    async fn start(servers: [SocketAddr; 2], random: &mut fastrand::Rng) -> Self {
        let (simulator, receiver, nodes) = daemons::start(|_| servers).await;
        let clients: Vec<_> = nodes.iter().map(|node| node.http.clone()).collect();
        let followers: Vec<Followed> = (0..DAEMONS).map(|_| Followed::default()).collect();
        let mut following = JoinSet::new();
        for (http, followed) in clients.iter().zip(&followers) {
            following.spawn(follow(http.clone(), Arc::clone(followed)));
        }
        let mut world = Self {
            simulator,
            receiver,
            nodes,
            runs: Runs::default(),
            followers,
            _following: following,
            adding: JoinSet::new(),
        };
        world.leader(0).await;
        world.adding.spawn(add(
            Arc::clone(&world.simulator),
            clients,
            Arc::clone(&world.runs),
            random.fork(),
        ));
        world
    }

    /// The daemon that leads in a term after this one, and the number of its term, once there is one.
    async fn leader(&mut self, after: i64) -> (usize, i64) {
        daemons::leader(&mut self.nodes, None, after, PATIENCE).await
    }

    /// When the additions that were sent after a moment were acknowledged, in order of these times.
    fn additions(&self, since: Instant) -> Vec<Instant> {
        let runs = self.runs.lock().unwrap();
        let acknowledged = runs.values().filter_map(|known| known.acknowledged);
        let after = acknowledged.filter(|(sent_at, _)| *sent_at >= since);
        let mut times: Vec<_> = after.map(|(_, answered_at)| answered_at).collect();
        times.sort_unstable();
        times
    }

    /// Waits until so many additions that are sent from now on are acknowledged.
    async fn works(&self, count: usize) {
        let now = Instant::now();
        let done = find_within(PATIENCE, async || {
            (self.additions(now).len() >= count).then_some(())
        });
        assert!(
            done.await.is_some(),
            "no {count} additions are acknowledged"
        );
    }

    /// Waits for the first addition that was sent after a moment and acknowledged.
    async fn first_addition(&self, since: Instant) -> Instant {
        let first = find_within(PATIENCE, async || self.additions(since).first().copied());
        first.await.expect("an addition is acknowledged")
    }

    /// Waits until the daemons work again after a failover, and prints how long that took.
    async fn recovered(&mut self, what: &str, began: Instant, term: i64) {
        let added = self.first_addition(began).await - began;
        let (_, next) = self.leader(term).await;
        println!(
            "{what}: first acknowledged addition after {added:.1?}, a daemon leads after {:.1?} (term {term}, then {next})",
            began.elapsed()
        );
    }

    /// Ends the additions, and waits until nothing is left to do. Returns the daemon that leads, and the runs.
    async fn at_rest(&mut self) -> (usize, BTreeMap<String, Known>) {
        self.adding.shutdown().await;
        let (leader, _) = self.leader(0).await;
        rest(&self.nodes[leader]).await;
        let runs = self.runs.lock().unwrap().clone();
        (leader, runs)
    }

    /// Waits until every follower has these events, and checks that no number stands for two events.
    async fn check_followers(&self, stored: &BTreeSet<i64>) {
        eventually("the followers to have every event", || {
            self.followers.iter().all(|followed| {
                let followed = followed.lock().unwrap();
                let seen: BTreeSet<_> = followed.iter().map(|(seq, _)| *seq).collect();
                stored.is_subset(&seen)
            })
        })
        .await;
        let mut events = BTreeMap::new();
        for followed in &self.followers {
            for (seq, event) in &*followed.lock().unwrap() {
                let known = events.entry(*seq).or_insert_with(|| event.clone());
                assert_eq!(known, event, "the number {seq} stands for one event");
            }
        }
    }

    /// Ends the daemons, which never ended before, and checks that none panicked.
    async fn end(mut self) {
        for node in &mut self.nodes {
            node.check_alive();
            node.end(Signal::TERM).await;
            let log = std::fs::read_to_string(node.program.home().join("log")).unwrap();
            assert!(!log.contains("panicked"), "{log}");
        }
    }
}

/// The numbers of the events of a store.
fn numbers(text: &str) -> BTreeSet<i64> {
    text.lines().map(|line| line.parse().unwrap()).collect()
}

/// Failovers by Patroni lose nothing.
async fn by_patroni(random: &mut fastrand::Rng) {
    let mut pair = Patroni::start().await;
    let mut world = World::start(pair.addresses(), random).await;
    for what in ["kill", "kill of the server only", "switchover"] {
        pair.in_sync().await;
        world.works(random.usize(8..20)).await;
        let (_, term) = world.leader(0).await;
        let primary = pair.primary().await;
        let began = Instant::now();
        match what {
            "kill" => pair.members[primary].kill(),
            "switchover" => pair.switch_over().await,
            _ => pair.members[primary].kill_server(),
        }
        world
            .recovered(&format!("Patroni, {what}"), began, term)
            .await;
        if what == "kill" {
            pair.members[primary].start();
        }
    }
    let (leader, runs) = world.at_rest().await;
    let node = &world.nodes[leader];
    let checked = check_verdicts(node, &world.simulator, &world.receiver, &runs).await;
    let primary = pair.primary().await;
    let stored = numbers(&pair.members[primary].sql("SELECT seq FROM runwatch.events"));
    world.check_followers(&stored).await;
    println!(
        "Patroni: {} runs, {checked} acknowledged and not removed: none lost, each verdict right, each message under one \
         ID; {} events on {DAEMONS} followers",
        runs.len(),
        stored.len()
    );
    world.end().await;
}

/// A failover with loss.
struct Loss {
    /// When the standby got nothing any more, and when it was the primary.
    lagged: (Instant, Instant),
    /// The IDs of the deliveries of verdicts on the promoted server, by run.
    kept: BTreeMap<String, String>,
}

/// Promotes a standby that lags.
async fn lose(servers: &[Postgres; 2], primary: usize, world: &mut World) -> Loss {
    let (old, new) = (&servers[primary], &servers[1 - primary]);
    eventually("the standby to follow", || old.has_standby()).await;
    world.works(30).await;
    let (_, term) = world.leader(0).await;
    let lagged_from = Instant::now();
    new.leave_primary();
    let newest = || -> i64 {
        let newest = old.sql("SELECT coalesce(max(seq), 0) FROM runwatch.events");
        newest.parse().unwrap()
    };
    let before = newest();
    eventually("events that are lost", || newest() > before + LOST_EVENTS).await;
    world.works(LOST_ADDITIONS).await;
    old.stop(Stop::Immediate);
    let began = Instant::now();
    new.promote();
    let loss = Loss {
        lagged: (lagged_from, Instant::now()),
        kept: verdicts(new),
    };
    world.recovered("asynchronous", began, term).await;
    old.follow(new);
    loss
}

/// The IDs of the deliveries of verdicts, by run.
fn verdicts(server: &Postgres) -> BTreeMap<String, String> {
    let lines = server.sql(
        "SELECT run_id || ' ' || d.id FROM runwatch.events JOIN runwatch.deliveries AS d ON event_seq = seq
         WHERE type IN ('run.succeeded', 'run.failed', 'run.canceled')",
    );
    let pair = |line: &str| {
        line.split_once(' ')
            .map(|(run, id)| (run.to_owned(), id.to_owned()))
    };
    lines.lines().filter_map(pair).collect()
}

/// Failovers to a standby that lags lose what they lose, and nothing is wrong.
async fn with_loss(random: &mut fastrand::Rng) {
    let first = Postgres::start();
    let servers = [first.standby(), first];
    let addresses = [servers[0].address(), servers[1].address()];
    let mut world = World::start(addresses, random).await;
    let mut primary = 1;
    let mut losses = Vec::new();
    for _ in 0..LOSSES {
        losses.push(lose(&servers, primary, &mut world).await);
        primary = 1 - primary;
    }
    let (leader, runs) = world.at_rest().await;
    let node = &world.nodes[leader];
    let server = &servers[primary];
    let watched: BTreeSet<String> = server
        .sql("SELECT run_id FROM runwatch.watches")
        .lines()
        .map(str::to_owned)
        .collect();

    let arrived = messages(&world.receiver);
    let (mut checked, mut lost, mut again) = (0, 0, 0);
    for (run, known) in &runs {
        let truth = world.simulator.truth(&RunRef::new(run).unwrap());
        let got = arrived.get(run).cloned().unwrap_or_default();
        for (kind, id) in &got {
            let truth = truth.as_ref().unwrap();
            assert_eq!(*kind, format!("run.{truth}"), "{run}: {id}");
        }
        let Some((sent_at, answered_at)) = known.acknowledged.filter(|_| !known.removed) else {
            continue;
        };
        if !watched.contains(run) {
            lost += 1;
            let lagged = |loss: &Loss| answered_at >= loss.lagged.0 && sent_at <= loss.lagged.1;
            assert!(
                losses.iter().any(lagged),
                "{run} was lost without a failover"
            );
            continue;
        }
        checked += 1;
        check_verdict(node, &world.simulator, run).await;
        assert!(!got.is_empty(), "{run}: no message\n{}", node.log());
        let ids: BTreeSet<_> = got.iter().map(|(_, id)| id).collect();
        again += usize::from(ids.len() > 1);
        assert!(ids.len() <= 1 + LOSSES, "{run}: {got:?}");
        // What a server kept when it was promoted, the next may have lost.
        let kept = losses
            .iter()
            .map(|loss| loss.kept.get(run))
            .collect::<Vec<_>>();
        if let Some(id) = kept[0]
            && kept.iter().all(|kept| *kept == Some(id))
        {
            assert!(ids.iter().eq([&id]), "{run}: the store kept {id}: {got:?}");
        }
    }
    let stored = numbers(&server.sql("SELECT seq FROM runwatch.events"));
    world.check_followers(&stored).await;
    println!(
        "asynchronous, {LOSSES} failovers: {} runs, {checked} watched, each verdict right; {lost} acknowledged additions \
         lost; {again} runs delivered under another ID, because the store lost the first; {} events on {DAEMONS} followers",
        runs.len(),
        stored.len()
    );
    assert!(lost > 32, "too few were lost to show anything: {lost}");
    world.end().await;
}

#[tokio::main]
async fn main() {
    let seed = std::env::var("RUNWATCH_CLUSTER_SEED").ok();
    let seed = seed.and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut other = random.fork();
    tokio::join!(with_loss(&mut random), by_patroni(&mut other));
}
