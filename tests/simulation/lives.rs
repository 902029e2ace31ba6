//! Several daemons on one store: they add, lead, die, stop, freeze and are cut off, and another one takes over.
//!
//! The lease, the fence and the engine are as in the program; the server is `SimulatedServer`. What must hold is checked
//! here: one daemon at most sends requests, the budget holds over all of them, each end is reported once and in time,
//! under one ID for each sink, and every follower sees all events in one order. A standby that is promoted may lack the
//! newest writes: what was lost with them is reported again, and nothing else changes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use runwatch::app::Outside;
use runwatch::clock::Clock;
use runwatch::config::{EventsMode, Settings, SinkKind, SinkSettings};
use runwatch::daemon::{ChoreNeeds, Leadership, LeadershipEvent, SharedStore, live_config};
use runwatch::domain::{
    Labels, Observation, RunDetails, RunRef, RunState, SinkName, Status, Verdict, Watch,
};
use runwatch::lease::{Gate, LeaseHandle, LeaseTable, LeaseTask, Published};
use runwatch::notify::{Deliver, Message, SendError, Sent};
use runwatch::providers::{ApiError, NoStream, Provider, Reply};
use runwatch::scheduler::Watches;
use runwatch::store::{
    Added, Candidate, DeliveryFilter, HolderId, LeaseRow, LostRows, Renewal, ServerLink,
    SimulatedServer, Store, StoreError, Term, Transaction, TransactionRunner,
};
use tokio::runtime::{Builder, RngSeed};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::life::{Broken, Outcome};
use crate::world::{MINUTE, Ms, SECOND, wall};

/// The longest lease; one daemon may be configured with a shorter one.
const LEASE: Duration = Duration::from_secs(15);
const SINKS: [&str; 2] = ["first", "second"];

/// How long without a fault a daemon leads again: the lease, two looks, calls under way, and a lease that was yielded.
/// A slow clock counts less in that time.
const TAKEOVER: Ms = 32 * SECOND;

/// How long after its end, without a fault, a run is reported: the longest interval, backoff after failures, and
/// attempts that are made again.
const KNOWN: Ms = 5 * MINUTE;

/// How soon a leader has noticed and stored that the clock of the server was set: a renewal, and the next look of its
/// schedulers at the clock.
const NOTICED: Ms = 10 * SECOND;

/// The event that no sink wants.
const STARTED: &str = "run.started";

/// The event of a watch whose deadline came while its provider could not be reached.
const UNREACHABLE: &str = "watch.unreachable";

/// Most runs of one seed.
const MAX_RUNS: usize = 14;

/// What happens to one daemon.
#[derive(Debug, Default)]
struct Fault {
    cut_until: Ms,
    frozen_until: Ms,
    loses_replies_until: Ms,
    slow_until: Ms,
}

/// A run of the API.
#[derive(Debug, Clone, Copy)]
struct Run {
    ends: Ms,
    verdict: Verdict,
    /// The deadline of its watches, which is after its end.
    deadline: Ms,
}

#[derive(Debug)]
struct State {
    random: fastrand::Rng,
    began: Instant,
    runs: BTreeMap<RunRef, Run>,
    /// When the API failed or a daemon was frozen: a deadline in such a time may end a watch as unreachable.
    excuses: Vec<(Ms, Ms)>,
    /// When a watch of a run was acknowledged.
    acknowledged: BTreeMap<RunRef, Ms>,
    /// When watches were requested; some of them may be stored without an acknowledgement.
    requested: BTreeMap<RunRef, Vec<Ms>>,
    requests: Vec<Ms>,
    /// What arrived: the sink, the run and the type of the event, with the IDs of the deliveries.
    receipts: BTreeMap<(String, String, String), BTreeSet<String>>,
    arrivals: u64,
    faults_of: Vec<Fault>,
    away_until: Ms,
    failing_until: Ms,
    /// When a standby is promoted.
    promotes_at: Option<Ms>,
    /// How many standbys were promoted.
    promoted: u64,
    /// What they lacked.
    lost: LostRows,
    /// Since when nothing is wrong.
    quiet_since: Ms,
    gates: Vec<Option<Gate>>,
    /// How far the clock of the server was set in all, in milliseconds.
    stepped: i64,
    faults: BTreeMap<&'static str, u64>,
    broken: Option<String>,
    trace: Vec<String>,
    digest: u64,
}

#[derive(Debug, Clone)]
struct World(Arc<Mutex<State>>);

impl World {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns once a daemon is not frozen.
    async fn thawed(&self, daemon: usize) {
        loop {
            let left = {
                let state = self.lock();
                state.faults_of[daemon]
                    .frozen_until
                    .saturating_sub(state.now())
            };
            if left == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(left)).await;
        }
    }

    /// Lets a request leave a daemon. What a frozen process would do is done when it goes on, and its gate counts then.
    async fn leave(&self, daemon: usize) {
        loop {
            self.thawed(daemon).await;
            let is_open = {
                let state = self.lock();
                state.gates[daemon].as_ref().is_some_and(Gate::is_open)
            };
            if is_open {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let state = &mut *self.lock();
        let others = state.gates.iter().enumerate();
        let leads = |(at, gate): (usize, &Option<Gate>)| {
            at != daemon && gate.as_ref().is_some_and(Gate::is_open)
        };
        let others: Vec<_> = others.filter(|of| leads(*of)).map(|(at, _)| at).collect();
        if !others.is_empty() {
            state.broken(format!("{daemon} sends a request while {others:?} leads"));
        }
    }
}

impl State {
    fn now(&self) -> Ms {
        u64::try_from(self.began.elapsed().as_millis()).expect("a simulation is short")
    }

    /// What the clock of the server shows, which all daemons follow.
    fn server_time(&self) -> Timestamp {
        wall(self.now()) + SignedDuration::from_millis(self.stepped)
    }

    fn trace(&mut self, line: String) {
        let now = self.now();
        for byte in line.bytes().chain(now.to_le_bytes()) {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.trace.push(format!("{now:>10} {line}"));
    }

    fn broken(&mut self, what: String) {
        self.trace(format!("BROKEN: {what}"));
        self.broken.get_or_insert(what);
    }

    fn fault(&mut self, name: &'static str, daemon: usize, until: Ms) {
        *self.faults.entry(name).or_default() += 1;
        self.quiet_since = self.quiet_since.max(until);
        self.trace(format!("{name}: {daemon} until {until}"));
    }
}

/// Transactions as the server runs them: at once.
struct AtOnce;

impl TransactionRunner for AtOnce {
    async fn run(&self, transaction: Transaction) -> Option<runwatch::store::Done> {
        Some(transaction.run())
    }
}

/// The way of one daemon to the server, on connections of one kind.
#[derive(Clone)]
struct Wire {
    world: World,
    daemon: usize,
    /// How many standbys had been promoted when it was connected. After a promotion it leads to a server that is a standby
    /// itself, and refuses transactions.
    connected: Arc<AtomicU64>,
}

fn out_of_reach() -> StoreError {
    StoreError::OutOfReach {
        why: "connection reset".to_owned(),
    }
}

impl Wire {
    fn new(world: World, daemon: usize) -> Self {
        let connected = AtomicU64::new(world.lock().promoted);
        Self {
            world,
            daemon,
            connected: Arc::new(connected),
        }
    }

    /// Whether it leads to the server that takes writes.
    fn reaches_primary(&self) -> bool {
        self.connected.load(Ordering::SeqCst) == self.world.lock().promoted
    }

    /// Returns whether what travels arrives.
    async fn travel(&self, is_reply: bool) -> bool {
        let (takes, arrives) = {
            let state = &mut *self.world.lock();
            let now = state.now();
            let fault = &state.faults_of[self.daemon];
            let most = if fault.slow_until > now { 9_000 } else { 10 };
            let is_away = state.away_until > now || fault.cut_until > now;
            let loses = is_reply && fault.loses_replies_until > now;
            (state.random.u64(0..=most), !is_away && !loses)
        };
        tokio::time::sleep(Duration::from_millis(takes)).await;
        if !arrives {
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        self.world.thawed(self.daemon).await;
        arrives
    }

    async fn transmit(&self, writes: bool) -> Result<(), StoreError> {
        self.world.thawed(self.daemon).await;
        if self.travel(false).await {
            return match self.reaches_primary() {
                true => Ok(()),
                false => Err(out_of_reach()),
            };
        }
        // The commit may have been on its way.
        let unknown = writes && self.world.lock().random.u32(0..4) == 0;
        Err(if unknown {
            StoreError::Unknown
        } else {
            out_of_reach()
        })
    }

    async fn receive(&self, writes: bool) -> Result<(), StoreError> {
        match self.travel(true).await {
            true => Ok(()),
            false if writes => {
                let state = &mut *self.world.lock();
                *state
                    .faults
                    .entry("a reply to a commit that is lost")
                    .or_default() += 1;
                Err(StoreError::Unknown)
            }
            false => Err(out_of_reach()),
        }
    }
}

impl ServerLink for Wire {
    fn request(
        &self,
        writes: bool,
    ) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + '_>> {
        Box::pin(self.transmit(writes))
    }

    fn reply(
        &self,
        writes: bool,
    ) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + '_>> {
        Box::pin(self.receive(writes))
    }

    fn reconnect(&self) {
        let promoted = self.world.lock().promoted;
        self.connected.store(promoted, Ordering::SeqCst);
    }
}

/// The row of the lease, as one daemon reaches it.
struct Table {
    server: SimulatedServer,
    wire: Wire,
}

impl Table {
    async fn call<T>(&self, change: impl FnOnce(&mut LeaseRow) -> T) -> Result<T, StoreError> {
        self.call_server(|server| change(&mut server.state().lease))
            .await
    }

    async fn call_server<T>(
        &self,
        change: impl FnOnce(&SimulatedServer) -> T,
    ) -> Result<T, StoreError> {
        self.wire.world.thawed(self.wire.daemon).await;
        if !self.wire.travel(false).await {
            return Err(out_of_reach());
        }
        if !self.wire.reaches_primary() {
            self.wire.reconnect();
            return Err(out_of_reach());
        }
        let now = self.wire.world.lock().server_time();
        self.server.state().lease.now = now;
        let reply = change(&self.server);
        if self.wire.travel(true).await {
            Ok(reply)
        } else {
            Err(out_of_reach())
        }
    }
}

impl LeaseTable for Table {
    async fn look(&mut self) -> Result<LeaseRow, StoreError> {
        self.call(|row| row.clone()).await
    }

    async fn take(
        &mut self,
        seen: &LeaseRow,
        candidate: &Candidate,
    ) -> Result<Option<Term>, StoreError> {
        let (world, daemon) = (self.wire.world.clone(), self.wire.daemon);
        let take = |server: &SimulatedServer| {
            let term = server.take_lease(seen, candidate);
            if let Ok(Some(term)) = &term {
                let line = format!("{daemon} takes the lease: term {}", term.epoch);
                world.lock().trace(line);
            }
            term
        };
        self.call_server(take).await?
    }

    async fn renew(&mut self, term: &Term, state: &str) -> Result<Renewal, StoreError> {
        self.call(|row| row.renew(term, state)).await
    }

    async fn release(&mut self, term: &Term) -> Result<bool, StoreError> {
        self.call(|row| row.release(term)).await
    }

    async fn ask_release(&mut self, epoch: i64) -> Result<bool, StoreError> {
        self.call(|row| row.request_release(epoch)).await
    }
}

/// The API and the receivers, as one daemon reaches them.
#[derive(Clone)]
struct Network {
    world: World,
    daemon: usize,
}

impl Outside for Network {
    type Provider = Self;
    type Sink = Receiver;

    async fn build(&self, settings: &Settings) -> anyhow::Result<(Self, Vec<Receiver>)> {
        let receiver = |name: &SinkName| Receiver {
            network: self.clone(),
            name: name.as_str().to_owned(),
        };
        Ok((self.clone(), settings.sinks.keys().map(receiver).collect()))
    }
}

impl Provider for Network {
    type Events = NoStream;

    async fn get_run(&self, id: &RunRef) -> Reply {
        // A process that is really frozen would make no requests meanwhile, so that the few that this one made count for
        // when it made them.
        let made_at = self.world.lock().now();
        self.world.leave(self.daemon).await;
        let (takes, fails) = {
            let state = &mut *self.world.lock();
            let now = state.now();
            state.requests.push(made_at);
            state.trace(format!("{} polls {id}", self.daemon));
            let fails = state.failing_until > now && state.random.u32(0..3) == 0;
            (state.random.u64(5..1_500), fails)
        };
        tokio::time::sleep(Duration::from_millis(takes)).await;
        self.world.thawed(self.daemon).await;
        if fails {
            return Reply::of(Err(ApiError::Timeout));
        }
        let state = self.world.lock();
        let Run { ends, verdict, .. } = state.runs[id];
        let status = match verdict {
            _ if state.now() < ends => RunState::Running,
            Verdict::Succeeded => RunState::Succeeded,
            _ => RunState::Failed,
        };
        Reply::of(Ok(Observation {
            status: Status::from(status),
            details: RunDetails::default(),
        }))
    }

    async fn open_events(&self, _: &RunRef, _: Option<&str>) -> Result<NoStream, ApiError> {
        Err(ApiError::NotFound {
            message: String::new(),
        })
    }
}

struct Receiver {
    network: Network,
    name: String,
}

impl Deliver for Receiver {
    async fn send(&self, message: &Message<'_>) -> Result<Sent, SendError> {
        let (world, daemon) = (&self.network.world, self.network.daemon);
        world.leave(daemon).await;
        let (takes, luck) = {
            let state = &mut *world.lock();
            (state.random.u64(5..2_000), state.random.u32(0..20))
        };
        tokio::time::sleep(Duration::from_millis(takes)).await;
        let failed = || SendError {
            detail: "reset".to_owned(),
            retry_after: None,
            gone: false,
            rejected: false,
        };
        if luck == 0 {
            return Err(failed());
        }
        {
            let state = &mut *world.lock();
            let run = message.event.run().map(|data| data.run.id.to_string());
            let key = (
                self.name.clone(),
                run.unwrap_or_default(),
                message.event.event_type.as_str().to_owned(),
            );
            state.trace(format!("{daemon} delivers {key:?}"));
            state.arrivals += 1;
            let ids = state.receipts.entry(key).or_default();
            let id = message.delivery.as_str();
            if !state.lost.deliveries.contains(id) {
                ids.insert(id.to_owned());
            }
        }
        world.thawed(daemon).await;
        if luck == 1 {
            return Err(failed());
        }
        Ok(Sent {
            detail: String::new(),
        })
    }
}

/// One process.
struct Life {
    watches: Watches,
    lease: LeaseHandle,
    holder: HolderId,
    clock: Clock,
    stop: Option<oneshot::Sender<()>>,
    tasks: JoinSet<()>,
}

struct Play {
    world: World,
    random: fastrand::Rng,
    server: SimulatedServer,
    settings: Settings,
    /// How long the lease of each daemon is.
    leases: Vec<Duration>,
    /// How many seconds the clock of each daemon counts in 100 s.
    rates: Vec<u32>,
    lives: Vec<Option<Life>>,
    /// When a process starts again, and whether it knows that the one before has ended.
    starts: Vec<(Ms, Option<HolderId>)>,
    followed: Arc<Mutex<Vec<Vec<i64>>>>,
    started: u64,
}

fn settings(budget: u32) -> Settings {
    let mut settings = Settings::default();
    settings.api.requests_per_minute = budget;
    settings.watch.events = EventsMode::Off;
    for name in SINKS {
        let sink = SinkSettings {
            kind: SinkKind::Command {
                argv: vec!["simulated".to_owned()],
                timeout: Duration::from_secs(30),
            },
            retry_schedule: vec![Duration::from_secs(5); 12],
            ..SinkSettings::log_of_verdicts()
        };
        let name = SinkName::new(name).expect("a name");
        settings.sinks.insert(name, sink);
    }
    settings
}

/// Plays one seed with several daemons in `folder`.
pub(crate) fn simulate(seed: u64, folder: &Path) -> Result<Outcome, Broken> {
    let mut random = fastrand::Rng::with_seed(seed ^ 0x11fe_5000);
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .rng_seed(RngSeed::from_bytes(&random.u64(..).to_le_bytes()))
        .build()
        .expect("a runtime");
    fastrand::seed(random.u64(..));
    let database = folder.join("server.db");
    runtime.block_on(play(random, &database))
}

async fn play(mut random: fastrand::Rng, database: &Path) -> Result<Outcome, Broken> {
    let (server, observer, writer) =
        SimulatedServer::open(database, LeaseRow::new(LEASE, true)).expect("it opens");
    let mut serving = JoinSet::new();
    serving.spawn(writer.run_on(AtOnce));
    let daemons = random.usize(2..=3);
    let budget = random.choice([20, 60, 60]).unwrap_or(60);
    let mut leases = vec![LEASE; daemons];
    if random.u32(0..3) == 0 {
        leases[0] = LEASE / 3;
    }
    let mut rates = vec![100; daemons];
    if random.u32(0..3) == 0 {
        rates.fill_with(|| random.u32(80..=120));
    }
    let world = World(Arc::new(Mutex::new(State {
        random: random.fork(),
        began: Instant::now(),
        runs: BTreeMap::new(),
        excuses: Vec::new(),
        acknowledged: BTreeMap::new(),
        requested: BTreeMap::new(),
        requests: Vec::new(),
        receipts: BTreeMap::new(),
        arrivals: 0,
        faults_of: (0..daemons).map(|_| Fault::default()).collect(),
        away_until: 0,
        failing_until: 0,
        promotes_at: None,
        promoted: 0,
        lost: LostRows::default(),
        quiet_since: 0,
        gates: vec![None; daemons],
        stepped: 0,
        faults: BTreeMap::new(),
        broken: None,
        trace: Vec::new(),
        digest: 0xcbf2_9ce4_8422_2325,
    })));
    let mut play = Play {
        world: world.clone(),
        random,
        server,
        settings: settings(budget),
        leases,
        rates,
        lives: (0..daemons).map(|_| None).collect(),
        starts: vec![(0, None); daemons],
        followed: Arc::new(Mutex::new(vec![Vec::new(); daemons])),
        started: 0,
    };
    play.run(&observer).await;
    for life in play.lives.iter_mut().flatten() {
        life.tasks.shutdown().await;
    }
    play.outcome(budget as usize)
}

impl Play {
    fn now(&self) -> Ms {
        self.world.lock().now()
    }

    async fn run(&mut self, observer: &Store) {
        let steps = self.random.u32(15..50);
        for _ in 0..steps {
            self.step(observer).await;
            let wait = match self.random.u32(0..10) {
                0..6 => self.random.u64(0..20 * SECOND),
                6..9 => self.random.u64(0..2 * MINUTE),
                _ => self.random.u64(5 * MINUTE..20 * MINUTE),
            };
            if !self.pass(wait, observer).await {
                return;
            }
        }
        // What is under way has time to end; then all must be done.
        let longest = {
            let state = self.world.lock();
            let ends = state.runs.values().map(|run| run.ends).max();
            ends.unwrap_or(0).max(state.quiet_since)
        };
        let left = longest.saturating_sub(self.now()) + KNOWN + MINUTE;
        if self.pass(left, observer).await {
            let settled = self.settled(observer).await;
            if let Err(what) = settled {
                self.world.lock().broken(what);
            }
        }
    }

    /// Lets time pass, starts what is to be started, and checks. Returns whether all is well.
    async fn pass(&mut self, time: Ms, observer: &Store) -> bool {
        let until = self.now() + time;
        let slowest = self.rates.iter().min().copied().unwrap_or(100);
        let takeover = TAKEOVER * 100 / Ms::from(slowest.min(100));
        loop {
            for daemon in 0..self.lives.len() {
                if self.lives[daemon].is_none() && self.starts[daemon].0 <= self.now() {
                    self.start(daemon);
                }
            }
            let now = self.now();
            let promotes_at = self.world.lock().promotes_at;
            if promotes_at.is_some_and(|at| at <= now) {
                self.promote();
            }
            if now >= until {
                return self.check(observer).await;
            }
            tokio::time::sleep(Duration::from_millis((until - now).min(SECOND))).await;
            let state = &mut *self.world.lock();
            let open = state.gates.iter().flatten().filter(|gate| gate.is_open());
            let (open, now) = (open.count(), state.now());
            if open > 1 {
                state.broken(format!("{open} daemons lead"));
            }
            if open == 0 && now > state.quiet_since + takeover {
                state.broken("no daemon leads".to_owned());
            }
            if state.broken.is_some() {
                return false;
            }
        }
    }

    fn start(&mut self, daemon: usize) {
        let ended = self.starts[daemon].1.take();
        self.started += 1;
        let clock = Clock::simulated_at_rate(self.world.lock().server_time(), self.rates[daemon]);
        let wire = Wire::new(self.world.clone(), daemon);
        let (store, connection) = self.server.connect(Arc::new(wire));
        let (control, gate) = Gate::closed(clock.clone());
        self.world.lock().gates[daemon] = Some(gate.clone());
        let published = watch::Sender::new(Published::default().to_text());
        let holder = HolderId::random();
        let candidate = Candidate {
            holder: holder.clone(),
            name: format!("daemon-{daemon}"),
            version: "0".to_owned(),
            ttl: self.leases[daemon],
        };
        let table = Table {
            server: self.server.clone(),
            wire: Wire::new(self.world.clone(), daemon),
        };
        let (task, lease) = LeaseTask::new(
            table,
            clock.clone(),
            candidate,
            control,
            ended,
            published.subscribe(),
        );
        let mut serving = JoinSet::new();
        serving.spawn(connection.run());
        serving.spawn(task.run());
        let shared = SharedStore {
            lease: lease.clone(),
            gate,
            published,
            tasks: serving,
            term: None,
            retry_at: None,
            unknown_commits: store.unknown_commits(),
            _holder_file: None,
        };
        let needs = ChoreNeeds {
            clock: clock.clone(),
            live_config: watch::channel(live_config(&self.settings)).1,
            views: watch::Sender::new(Vec::new()),
        };
        let network = Network {
            world: self.world.clone(),
            daemon,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(follow(store.clone(), Arc::clone(&self.followed), daemon));
        let leadership = Leadership::standing_by(store, shared, needs, network);
        let watches = leadership.watches.clone();
        let (stop, stopped) = oneshot::channel();
        let (settings, world) = (self.settings.clone(), self.world.clone());
        tasks.spawn(drive(leadership, settings, stopped, world));
        self.world.lock().trace(format!("{daemon} starts"));
        self.lives[daemon] = Some(Life {
            watches,
            lease,
            holder,
            clock,
            stop: Some(stop),
            tasks,
        });
    }

    /// What happens next.
    async fn step(&mut self, observer: &Store) {
        let daemon = self.random.usize(..self.lives.len());
        let now = self.now();
        let until = now + self.random.u64(SECOND..50 * SECOND);
        let world = self.world.clone();
        match self.random.u32(0..100) {
            0..33 => self.add(daemon).await,
            33..35 => self.set_clock(observer).await,
            35..39 => self.delay_standby(daemon).await,
            39..46 => self.kill(daemon).await,
            46..51 => self.stop(daemon).await,
            51..58 => {
                let state = &mut *world.lock();
                state.faults_of[daemon].frozen_until = until;
                state.excuses.push((now, until));
                state.fault("a daemon that freezes", daemon, until);
            }
            58..63 => self.suspend(daemon, until),
            63..71 => {
                let state = &mut *world.lock();
                state.faults_of[daemon].cut_until = until;
                state.fault("a daemon that is cut off", daemon, until + 4 * SECOND);
            }
            71..79 => {
                let state = &mut *world.lock();
                state.faults_of[daemon].loses_replies_until = until;
                state.fault(
                    "a server whose replies are lost",
                    daemon,
                    until + 4 * SECOND,
                );
            }
            79..84 => {
                let state = &mut *world.lock();
                state.away_until = until;
                state.fault("a server that is away", daemon, until + 4 * SECOND);
            }
            84..94 => {
                let state = &mut *world.lock();
                state.faults_of[daemon].slow_until = until;
                state.fault("a slow way to the server", daemon, until + 18 * SECOND);
            }
            94..97 => self.release(daemon).await,
            _ => {
                let state = &mut *world.lock();
                state.failing_until = until;
                state.excuses.push((now, until));
                state.fault("an API that fails", daemon, until);
            }
        }
    }

    /// Suspends the machine of a daemon, whose clock shows afterwards that it was.
    fn suspend(&mut self, daemon: usize, until: Ms) {
        let Some(life) = &mut self.lives[daemon] else {
            return;
        };
        let state = &mut *self.world.lock();
        let now = state.now();
        if state.faults_of[daemon].frozen_until > now {
            return;
        }
        state.faults_of[daemon].frozen_until = until;
        state.excuses.push((now, until));
        state.fault("a daemon that is suspended", daemon, until);
        let (clock, time) = (life.clock.clone(), Duration::from_millis(until - now));
        // What the process does afterwards, it does with the clock of then.
        let asleep = time.saturating_sub(Duration::from_millis(1));
        life.tasks.spawn(async move {
            tokio::time::sleep(asleep).await;
            clock.suspend(time);
        });
    }

    /// Lets a standby be promoted soon, which mostly lacks what is written from now on: also that a daemon died, and that
    /// another one leads.
    async fn delay_standby(&mut self, daemon: usize) {
        let longest = self.random.choice([10, 90]).unwrap_or(10);
        let after = self.random.u64(0..longest * SECOND);
        let lacks = self.random.u32(0..4) > 0;
        // A standby that lacks the first term of all lacks the tables too, which were made just before.
        let is_led = self.server.state().lease.holder.is_some();
        if self.world.lock().promotes_at.is_some() || !is_led {
            return;
        }
        if lacks && self.random.bool() {
            self.release(daemon).await;
            let released = async {
                while !self.server.state().lease.released {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            // A leader that is frozen or cut off releases nothing.
            drop(tokio::time::timeout(LEASE / 3, released).await);
        }
        let name = if lacks {
            self.server.delay_standby().expect("it is copied");
            "a promoted standby that lacks writes"
        } else {
            "a promoted standby"
        };
        let state = &mut *self.world.lock();
        let at = state.now() + after;
        state.promotes_at = Some(at);
        state.fault(name, daemon, at + 10 * SECOND);
    }

    /// Requests the leader to release the lease.
    async fn release(&mut self, daemon: usize) {
        if let Some(life) = &self.lives[daemon] {
            let request = life.lease.request_release();
            // A server that does not reply is not waited for.
            drop(tokio::time::timeout(Duration::from_secs(5), request).await);
            let state = &mut *self.world.lock();
            let now = state.now();
            state.fault("a release by request", daemon, now + 5 * SECOND);
        }
    }

    /// Promotes the standby. What it lacks is neither expected nor a repetition.
    fn promote(&mut self) {
        let lost = self.server.promote_standby().expect("it is copied back");
        let away = self.random.u64(0..4 * SECOND);
        let state = &mut *self.world.lock();
        state.promotes_at = None;
        state.promoted += 1;
        state.away_until = state.away_until.max(state.now() + away);
        let LostRows {
            events,
            deliveries,
            runs,
        } = lost;
        // The IDs of deliveries are others each time.
        let number = deliveries.len();
        state.trace(format!(
            "a standby is promoted, and lacks {events:?}, {number} deliveries, {runs:?}"
        ));
        state
            .acknowledged
            .retain(|run, _| !runs.contains(run.as_str()));
        for ids in state.receipts.values_mut() {
            ids.retain(|id| !deliveries.contains(id));
        }
        state.lost.events.extend(events);
        state.lost.deliveries.extend(deliveries);
    }

    /// Sets the clock of the server once all is well, and leaves the leader the time to notice and store it: a step that no
    /// leader notices moves the deadlines that are stored.
    async fn set_clock(&mut self, observer: &Store) {
        let calm = self.world.lock().quiet_since + TAKEOVER * 2;
        if !self.pass(calm.saturating_sub(self.now()), observer).await {
            return;
        }
        let size = match self.random.u32(0..2) {
            0 => self.random.i64(3_000..60_000),
            _ => self.random.i64(60_000..10_800_000),
        };
        let size = if self.random.bool() { size } else { -size };
        {
            let state = &mut *self.world.lock();
            state.stepped += size;
            state.trace(format!("the clock of the server is set by {size} ms"));
            *state
                .faults
                .entry("a clock of a server that is set")
                .or_default() += 1;
        }
        self.pass(NOTICED, observer).await;
    }

    async fn add(&mut self, daemon: usize) {
        let Some(life) = &self.lives[daemon] else {
            return;
        };
        let number = self.world.lock().runs.len();
        let again = number == MAX_RUNS || (number > 0 && self.random.u32(0..6) == 0);
        let number = if again {
            self.random.usize(..number)
        } else {
            number
        };
        let run = RunRef::new(&format!("run_{number}")).expect("an ID");
        let length = self
            .random
            .choice([5 * SECOND, MINUTE, 5 * MINUTE, 20 * MINUTE])
            .unwrap_or(MINUTE);
        let length = self.random.u64(length / 2..length * 2);
        let verdict = self
            .random
            .choice([Verdict::Succeeded, Verdict::Failed])
            .unwrap_or(Verdict::Failed);
        // A clock at another rate is wrong by some seconds while the server is slow.
        let least = match self.rates.iter().all(|rate| *rate == 100) {
            true => 5 * SECOND,
            false => 40 * SECOND,
        };
        let spare = match self.random.u32(0..3) {
            0 => self.random.u64(least..2 * MINUTE),
            _ => 10 * 24 * 60 * MINUTE,
        };
        let deadline = {
            let state = &mut *self.world.lock();
            let ends = state.now() + length;
            let new = Run {
                ends,
                verdict,
                deadline: ends + spare,
            };
            let known = *state.runs.entry(run.clone()).or_insert(new);
            let now = state.now();
            state.requested.entry(run.clone()).or_default().push(now);
            state.trace(format!("{run} is added at {daemon}: {known:?}"));
            known.deadline
        };
        // As the service does: a deadline is so long after the addition, by the clock of the daemon.
        let added_at = life.clock.now();
        let left = Duration::from_millis(deadline.saturating_sub(self.now()));
        let watch = Watch {
            run_id: run.clone(),
            name: None,
            labels: Labels::new(),
            sinks: None,
            trace: None,
            added_at,
            deadline_at: added_at + left,
        };
        let request = life.watches.add(watch, false);
        let added = tokio::time::timeout(Duration::from_secs(20), request).await;
        let state = &mut *self.world.lock();
        state.trace(format!("{run}: {added:?}"));
        if let Ok(Ok(Added::New | Added::AlreadyExists)) = added {
            let now = state.now();
            state.acknowledged.entry(run).or_insert(now);
        }
    }

    async fn kill(&mut self, daemon: usize) {
        let Some(mut life) = self.lives[daemon].take() else {
            return;
        };
        life.tasks.shutdown().await;
        let is_same_machine = self.random.bool();
        self.gone(
            daemon,
            "a death of a daemon",
            is_same_machine.then_some(life.holder),
        );
    }

    async fn stop(&mut self, daemon: usize) {
        let Some(mut life) = self.lives[daemon].take() else {
            return;
        };
        if let Some(stop) = life.stop.take() {
            let _ended = stop.send(());
        }
        // The task that follows events goes on until it is ended.
        let ended = async {
            while !life.tasks.is_empty() && life.tasks.len() > 1 {
                life.tasks.join_next().await;
            }
        };
        drop(tokio::time::timeout(Duration::from_secs(30), ended).await);
        life.tasks.shutdown().await;
        self.gone(daemon, "a clean stop of a daemon", None);
    }

    fn gone(&mut self, daemon: usize, how: &'static str, ended: Option<HolderId>) {
        let state = &mut *self.world.lock();
        state.gates[daemon] = None;
        state.faults_of[daemon] = Fault::default();
        let starts = state.now() + self.random.u64(0..40 * SECOND);
        // Another daemon may be away too.
        state.fault(how, daemon, starts);
        self.starts[daemon] = (starts, ended);
    }

    /// Checks what must hold now. Returns whether all is well.
    async fn check(&mut self, observer: &Store) -> bool {
        let events = observer.events_after(0, 10_000).await.expect("it is read");
        let mut reported = BTreeMap::<String, Vec<&str>>::new();
        for (_, event) in &events {
            if let Some(data) = event.run() {
                let of_run = reported.entry(data.run.id.to_string()).or_default();
                of_run.push(event.event_type.as_str());
            }
        }
        let terms = self.server.state().written_terms.clone();
        let state = &mut *self.world.lock();
        let now = state.now();
        let mut wrong = Vec::new();
        if !terms.is_sorted() {
            wrong.push(format!("a leader whose term was over wrote: {terms:?}"));
        }
        for (seq, _) in &events {
            if state.lost.events.contains(seq) {
                wrong.push(format!("the number {seq} stands for two events"));
            }
        }
        for (run, known) in &state.runs {
            let Run {
                ends,
                verdict,
                deadline,
            } = known;
            let found = reported.remove(&run.to_string()).unwrap_or_default();
            let is_unreachable = found.contains(&UNREACHABLE);
            // A watch that is added after the deadline has one at once.
            let requested = state.requested.get(run).into_iter().flatten();
            let mut decided = requested
                .filter(|at| *at > deadline)
                .chain(std::iter::once(deadline));
            let may_be_unreachable = decided.any(|at| {
                (state.excuses.iter())
                    .any(|(from, until)| *from < at + MINUTE && *until + MINUTE > *at)
            });
            let expected = match is_unreachable && may_be_unreachable {
                true => Verdict::Unreachable.event_type(),
                false => verdict.event_type(),
            };
            let ended = found
                .iter()
                .filter(|kind| **kind == expected.as_str())
                .count();
            let started = found.iter().filter(|kind| **kind == STARTED).count();
            if ended > 1 || started > 1 || found.len() > ended + started {
                wrong.push(format!(
                    "{run}, which is {verdict:?}, is reported as {found:?}"
                ));
            }
            if ended == 1 && now < *ends {
                wrong.push(format!("{run} is reported before its end"));
            }
            let known = state.acknowledged.get(run);
            let due = known.map(|at| (*at).max(*ends).max(state.quiet_since) + KNOWN);
            if ended == 0 && due.is_some_and(|due| due < now) {
                wrong.push(format!("{run} ended at {ends} ms, and is not reported"));
            }
        }
        for (key, ids) in &state.receipts {
            if ids.len() > 1 {
                wrong.push(format!("{key:?} arrived under {} IDs", ids.len()));
            }
        }
        for what in wrong {
            state.broken(what);
        }
        state.broken.is_none()
    }

    /// Checks what must hold in the end.
    async fn settled(&self, observer: &Store) -> Result<(), String> {
        let events = observer.events_after(0, 10_000).await.expect("it is read");
        let open = DeliveryFilter::default();
        let deliveries = observer.deliveries(open, 10_000).await.expect("it is read");
        for delivery in &deliveries.items {
            if delivery.state.as_str() != "delivered" {
                return Err(format!("{delivery:?} does not arrive"));
            }
        }
        for (_, event) in &events {
            let Some(data) = event.run() else { continue };
            if event.event_type.as_str() == STARTED {
                continue;
            }
            for sink in SINKS {
                let key = (
                    sink.to_owned(),
                    data.run.id.to_string(),
                    event.event_type.as_str().to_owned(),
                );
                let state = self.world.lock();
                if state.receipts.get(&key).is_none_or(BTreeSet::is_empty) {
                    return Err(format!("{key:?} never arrived"));
                }
            }
        }
        // Whether or not its addition was acknowledged.
        let now = wall(self.now());
        let active = observer.active_watches(now, None, u32::MAX).await;
        if let Some(left) = active.expect("it is read").first() {
            return Err(format!(
                "{} ended, and its watch goes on",
                left.watch.run_id
            ));
        }
        let all: Vec<_> = events.iter().map(|(seq, _)| *seq).collect();
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = &self.world.lock().lost.events;
        for (daemon, seen) in followed.iter().enumerate() {
            let mut kept = seen.clone();
            kept.retain(|seq| !lost.contains(seq));
            if kept != all {
                return Err(format!("a follower at {daemon} saw {seen:?} of {all:?}"));
            }
        }
        Ok(())
    }

    fn outcome(&self, budget: usize) -> Result<Outcome, Broken> {
        let state = &mut *self.world.lock();
        state.requests.sort_unstable();
        for window in state.requests.windows(budget + 1) {
            if window[budget] - window[0] < MINUTE && state.broken.is_none() {
                let what = format!(
                    "{} requests from {} ms on in a minute",
                    budget + 1,
                    window[0]
                );
                state.broken = Some(what);
            }
        }
        if let Some(what) = state.broken.clone() {
            let lines = crate::play::lines_of_trace();
            let first = state.trace.len().saturating_sub(lines);
            return Err(Broken {
                what,
                trace: state.trace[first..].join("\n"),
            });
        }
        let mut verdicts = BTreeMap::new();
        for run in state.acknowledged.keys() {
            *verdicts
                .entry(state.runs[run].verdict.as_str())
                .or_default() += 1;
        }
        Ok(Outcome {
            simulated: state.now(),
            lives: self.started,
            watches: state.acknowledged.len() as u64,
            verdicts,
            requests: state.requests.len() as u64,
            receipts: state.arrivals,
            delivered: state.receipts.len() as u64,
            faults: state.faults.clone(),
            digest: state.digest,
            ..Outcome::default()
        })
    }
}

/// Leads and stands by, as the service does, until it is stopped.
async fn drive(
    mut leadership: Leadership<Network>,
    settings: Settings,
    mut stopped: oneshot::Receiver<()>,
    world: World,
) {
    let grace = Duration::from_secs(10);
    loop {
        tokio::select! {
            Ok(()) = &mut stopped => break,
            event = leadership.next() => match event {
                LeadershipEvent::Changed => {
                    leadership.follow(&settings, grace).await;
                }
                LeadershipEvent::Broken(error) => {
                    world.lock().broken(format!("the engine broke: {error:#}"));
                    return;
                }
            },
        }
    }
    leadership.hand_over(grace).await;
    leadership.stop(grace).await;
}

/// Follows the events at one daemon, from where the follower was at the daemon before.
async fn follow(store: Store, followed: Arc<Mutex<Vec<Vec<i64>>>>, daemon: usize) {
    let seen = || followed.lock().unwrap_or_else(PoisonError::into_inner);
    let mut changed = store.history_changed();
    loop {
        changed.mark_unchanged();
        let last = seen()[daemon].last().copied().unwrap_or(0);
        match store.events_after(last, 100).await {
            Ok(events) if !events.is_empty() => {
                seen()[daemon].extend(events.iter().map(|(seq, _)| *seq));
                continue;
            }
            Ok(_) => {
                if changed.changed().await.is_err() {
                    return;
                }
            }
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}
