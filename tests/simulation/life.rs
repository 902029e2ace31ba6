//! One seed: a process that lives, dies and is started again, under an adversary that decides at every step
//! what goes wrong next; then calm, in which all must come right.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use runwatch::app::Engine;
use runwatch::clock::{Clock, Jump};
use runwatch::config::{Settings, SinkKind, SinkSettings};
use runwatch::domain::{
    DeliveryId, EventFilter, Labels, OverdueAfter, RunRef, SinkName, Verdict, Watch,
};
use runwatch::scheduler::AddedBy;
use runwatch::store::{self, Added, Location, Store};
use tokio::runtime::{Builder, RngSeed};
use tokio::task::JoinSet;

use crate::check::{self, Requested, SCHEDULE};
use crate::discovery::{self, Ledger};
use crate::play;
use crate::world::{
    Api, Doom, Earlier, Fate, HOUR, Listing, MINUTE, Ms, Platter, Receiver, Reception, SECOND,
    SimulatedDisk, Weather, World, wall,
};

/// Sinks that are always there, the second for events of every kind; and one that comes and goes, for watches that
/// carry a label.
const ALWAYS: [&str; 2] = ["first", "second"];
const SOMETIMES: &str = "third";
const LABEL: (&str, &str) = ("team", "night");

/// Most runs of one seed, and where a list shows them.
const MAX_RUNS: usize = 12;
const MAX_LISTED_RUNS: usize = 40;

/// Most attempts of a run.
const MAX_ATTEMPTS: usize = 4;

/// Most time that calm may take to bring all to an end: the longest deadline, then a whole schedule of
/// attempts with its spread and twice what a receiver requested.
const LONGEST_CALM: Ms = 120 * HOUR;

/// What came of one seed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    pub(crate) simulated: Ms,
    pub(crate) lives: u64,
    pub(crate) watches: u64,
    /// Those of them that a discovery added.
    pub(crate) found: u64,
    pub(crate) verdicts: BTreeMap<&'static str, u64>,
    pub(crate) requests: u64,
    pub(crate) receipts: u64,
    pub(crate) delivered: u64,
    pub(crate) dead: u64,
    pub(crate) faults: BTreeMap<&'static str, u64>,
    pub(crate) digest: u64,
}

/// A promise that was broken.
#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) what: String,
    pub(crate) trace: String,
}

struct Play<'a> {
    world: World,
    random: fastrand::Rng,
    database: &'a Path,
    epoch: Timestamp,
    /// How far the wall clock is from the world's time.
    offset: i64,
    budget: u32,
    third: bool,
    streams: bool,
    lists: bool,
    /// The clock is set now and then.
    steps: bool,
    runs: usize,
    /// Runs are found in a list.
    discovers: bool,
    /// In which life of the process that begins.
    discovers_from: u32,
}

/// Plays one seed in `folder`.
pub(crate) fn simulate(seed: u64, folder: &Path) -> Result<Outcome, Broken> {
    let mut random = fastrand::Rng::with_seed(seed);
    let database = folder.join("runwatch.db");
    let world = World::new(seed, database.clone(), &[ALWAYS[0], ALWAYS[1], SOMETIMES]);
    world.lock().books.always = ALWAYS.map(ToOwned::to_owned).into();
    let budget = random.choice([20, 60, 60, 300]).unwrap_or(60);
    {
        let books = &mut world.lock().books;
        (books.everything, books.choosy) = (ALWAYS[1].to_owned(), SOMETIMES.to_owned());
        books.overdue_after = random
            .choice([None, Some(MINUTE), Some(20 * MINUTE)])
            .flatten();
        books.budgets.push((0, budget as usize));
    }
    let mut play = Play {
        world: world.clone(),
        database: &database,
        epoch: wall(0),
        offset: 0,
        budget,
        third: random.bool(),
        streams: random.bool(),
        lists: random.u32(0..3) == 0,
        steps: random.u32(0..3) == 0,
        random,
        runs: 0,
        discovers: false,
        discovers_from: 1,
    };
    play.prepare_discovery(seed);
    let lives = play.random.u32(2..7);
    for life in 0..=lives {
        play.live(life == lives);
        if world.lock().broken.is_some() {
            break;
        }
    }
    let state = &mut *world.lock();
    if state.broken.is_none() {
        let mut outcome = Outcome::default();
        match check::settled(state) {
            Ok((delivered, dead)) => (outcome.delivered, outcome.dead) = (delivered, dead),
            Err(broken) => state.broken(broken),
        }
        for check in [
            check::receipts,
            check::attempts,
            check::within_budget,
            discovery::settled,
        ] {
            if let Err(broken) = check(state) {
                state.broken(broken);
            }
        }
        outcome.simulated = state.now();
        outcome.lives = u64::from(state.life);
        outcome.watches = state.books.count();
        outcome.found = state.discovery.as_ref().map_or(0, |ledger| ledger.added);
        outcome.verdicts = state.books.verdicts();
        outcome.requests = state.requests.len() as u64;
        outcome.receipts = state.receipts.len() as u64;
        outcome.faults = state.faults.clone();
        outcome.digest = state.digest();
        if state.broken.is_none() {
            return Ok(outcome);
        }
    }
    let what = state.broken.clone().unwrap_or_default();
    Err(Broken {
        what,
        trace: state.last_of_trace(play::lines_of_trace()),
    })
}

impl Play<'_> {
    /// Decides whether runs are found in a list. The times of a list mean nothing to a clock that is set.
    fn prepare_discovery(&mut self, seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed ^ 0xd15c_0000);
        self.discovers = random.u32(0..3) == 0;
        if self.discovers {
            self.steps = false;
            self.discovers_from = random.u32(1..3);
            let state = &mut *self.world.lock();
            state.discovery = Some(Ledger::new(&mut random));
        }
    }

    fn settings(&self) -> Settings {
        let mut settings = Settings::default();
        settings.api.requests_per_minute = self.budget;
        settings.watch.overdue_after = self
            .world
            .lock()
            .books
            .overdue_after
            .map_or(OverdueAfter::Never, |after| {
                OverdueAfter::Watched(Duration::from_millis(after))
            });
        let names = ALWAYS.into_iter().chain(self.third.then_some(SOMETIMES));
        for name in names {
            let argv = vec!["simulated".to_owned()];
            let kind = SinkKind::Command {
                argv,
                timeout: Duration::from_secs(30),
            };
            let schedule = SCHEDULE.map(Duration::from_millis).to_vec();
            let mut sink = SinkSettings {
                kind,
                retry_schedule: schedule,
                ..SinkSettings::log_of_verdicts()
            };
            if name == ALWAYS[1] {
                sink.events = EventFilter::parse(["*"]).expect("a pattern");
            } else if name == SOMETIMES {
                sink.labels = Labels::from([(LABEL.0.to_owned(), LABEL.1.to_owned())]);
            }
            settings
                .sinks
                .insert(SinkName::new(name).expect("a name"), sink);
        }
        settings
    }

    fn receivers(&self, settings: &Settings) -> Vec<Receiver> {
        let receiver = |name: &SinkName| Receiver {
            world: self.world.clone(),
            name: name.as_str().to_owned(),
        };
        settings.sinks.keys().map(receiver).collect()
    }

    /// One life of the process. The last one is calm, and ends when all is done.
    fn live(&mut self, calm: bool) {
        // A runtime is all that a process has besides its store: dropping it is a death.
        let seed = RngSeed::from_bytes(&self.random.u64(..).to_le_bytes());
        let mut builder = Builder::new_current_thread();
        let runtime = builder
            .enable_time()
            .start_paused(true)
            .rng_seed(seed)
            .build()
            .expect("a runtime");
        // For what draws from the thread's own numbers.
        fastrand::seed(self.random.u64(..));
        let world = self.world.clone();
        let death = Arc::clone(&world.death);
        runtime.block_on(async {
            world.lock().begin_life();
            let (life, now) = {
                let state = world.lock();
                (state.life, state.now())
            };
            world.lock().trace(format!("life {life} begins"));
            let wall = i64::try_from(now)
                .unwrap_or(i64::MAX)
                .saturating_add(self.offset);
            let clock = Clock::simulated(
                self.epoch
                    .checked_add(SignedDuration::from_millis(wall))
                    .expect("a time"),
            );
            tokio::select! {
                biased;
                () = death.notified() => {}
                ended = self.act(clock, calm) => if let Err(broken) = ended {
                    world.lock().broken(broken);
                },
            }
            world.lock().end_life();
        });
        drop(runtime);
        let down = if self.random.bool() {
            self.random.u64(0..5 * SECOND)
        } else {
            self.random.u64(0..3 * HOUR)
        };
        world.lock().pass(down);
        check::look(&mut world.lock());
        world.lock().books.close();
    }

    async fn act(&mut self, clock: Clock, calm: bool) -> Result<(), String> {
        {
            let state = &mut *self.world.lock();
            state.platter = Platter::Fine;
            state.offline = (0, false);
            if calm {
                state.weather = Weather::Fine;
                state.listing = Listing::True;
                if let Some(ledger) = &mut state.discovery {
                    ledger.shifts = false;
                }
                state
                    .receptions
                    .values_mut()
                    .for_each(|reception| *reception = Reception::Fine);
            }
        }
        if !calm && (self.lists || self.discovers) {
            self.turn_list();
        }
        if !calm && self.random.u32(0..4) == 0 {
            self.go_offline("a start without network", 2 * MINUTE);
        }
        // What waits for the sink that comes and goes has somewhere to go in the end.
        self.third |= calm;
        let settings = self.settings();
        let api = Api::new(&self.world, self.streams, self.lists);
        let (store, writer) =
            Store::open(Location::File(self.database)).map_err(|error| format!("{error:#}"))?;
        let writer = writer.run_on(SimulatedDisk {
            world: self.world.clone(),
        });
        let receivers = self.receivers(&settings);
        let engine =
            Engine::start_with(api, receivers, &settings, (store, writer), clock.clone()).await;
        let mut engine =
            engine.map_err(|error| format!("the process does not start: {error:#}"))?;
        let mut rounds = self.discover(&engine, &clock);
        if calm {
            return self.calm().await;
        }
        let steps = self.random.u32(8..40);
        for _ in 0..steps {
            match self.step(&mut engine, &mut rounds, &clock).await {
                Err(_closed) if self.world.lock().writer_failed => return Ok(()),
                stepped => stepped?,
            }
            let wait = match self.random.u32(0..20) {
                0..12 => self.random.u64(0..MINUTE),
                12..19 => self.random.u64(MINUTE..20 * MINUTE),
                _ => self.random.u64(HOUR..6 * HOUR),
            };
            tokio::select! {
                biased;
                error = engine.broken() => {
                    // It ends with its writer, and is started again.
                    let expected = self.world.lock().writer_failed;
                    return if expected { Ok(()) } else { Err(format!("the engine broke: {error:#}")) };
                }
                () = tokio::time::sleep(Duration::from_millis(wait)) => {}
            }
            let state = &mut *self.world.lock();
            check::look(state);
            check::nobody_waits(state);
            if state.broken.is_some() {
                return Ok(());
            }
        }
        if self.random.u32(0..3) == 0 {
            self.world.lock().note("an orderly stop", String::new());
            self.interrupt(&mut rounds).await;
            engine.stop(Duration::from_secs(10)).await;
        } else {
            self.world
                .lock()
                .note("a death at any moment", String::new());
        }
        Ok(())
    }

    /// What goes wrong, or is requested, next.
    async fn step(
        &mut self,
        engine: &mut Engine,
        rounds: &mut JoinSet<()>,
        clock: &Clock,
    ) -> Result<(), String> {
        if self.discovers {
            self.change_found(engine, clock).await;
        }
        match self.random.u32(0..100) {
            0..25 => {
                let several = if self.lists {
                    self.random.u32(4..12)
                } else {
                    1
                };
                for _ in 0..several {
                    self.add(engine, clock).await;
                }
            }
            25..29 => self.remove(engine, clock).await,
            29..31 => self.prune(engine, clock).await,
            31..37 if self.lists || self.discovers => self.turn_list(),
            31..50 => {
                let pause = self.random.u64(5 * SECOND..20 * MINUTE);
                let weather = self.random.choice([
                    Weather::Fine,
                    Weather::Fine,
                    Weather::Fine,
                    Weather::Mixed,
                    Weather::Mixed,
                    Weather::Down,
                    Weather::Hanging,
                    Weather::Forgetful,
                    Weather::Refusing,
                    Weather::Throttling(pause),
                    Weather::Garbage,
                ]);
                // Lists are used where polls go well.
                let fine = (self.lists || self.discovers) && self.random.u32(0..3) != 0;
                let weather = weather.filter(|_| !fine);
                let state = &mut *self.world.lock();
                state.weather = weather.unwrap_or(Weather::Fine);
                state.api_trouble = state.api_trouble.max(state.now());
                state.trace(format!("the API is {:?}", state.weather));
            }
            50..68 => {
                let sink = self
                    .random
                    .choice([ALWAYS[0], ALWAYS[1], SOMETIMES])
                    .unwrap_or(SOMETIMES);
                let gone = if self.random.u32(0..10) == 0 {
                    Reception::Gone
                } else {
                    Reception::Down
                };
                let reception = self.random.choice([
                    Reception::Fine,
                    Reception::Fine,
                    Reception::Down,
                    Reception::Hanging,
                    Reception::Blocked,
                    Reception::Mute,
                    Reception::Busy,
                    gone,
                ]);
                let state = &mut *self.world.lock();
                let reception = reception.unwrap_or(Reception::Fine);
                state.receptions.insert(sink.to_owned(), reception);
                state.trace(format!("{sink} is {reception:?}"));
            }
            68..78 => {
                let platter = self.random.choice([
                    Platter::Fine,
                    Platter::Fine,
                    Platter::Fine,
                    Platter::Slow,
                    Platter::Slow,
                    Platter::Full,
                    Platter::Tight,
                    Platter::Busy,
                    Platter::ReadOnly,
                    Platter::Failing,
                    Platter::Flaky,
                ]);
                let state = &mut *self.world.lock();
                state.platter = platter.unwrap_or(Platter::Fine);
                state.trace(format!("the disk is {:?}", state.platter));
            }
            78..82 => {
                self.reload(engine).await?;
                // The daemon begins its rounds anew.
                self.interrupt(rounds).await;
                *rounds = self.discover(engine, clock);
            }
            82..86 => {
                let slept = self.random.u64(MINUTE..3 * HOUR);
                clock.jump(Jump {
                    slept: Duration::from_millis(slept),
                    stepped: SignedDuration::ZERO,
                });
                {
                    let state = &mut *self.world.lock();
                    state.sleep(slept);
                    state.note("a suspend", format!("of {} s", slept / SECOND));
                    state.network += 1;
                }
                if self.random.u32(0..3) == 0 {
                    self.go_offline("a wake-up without network", 2 * MINUTE);
                }
            }
            86..89 if self.steps => {
                let far = self.random.u64(10 * SECOND..2 * HOUR);
                let span =
                    i64::try_from(far).unwrap_or(0) * if self.random.bool() { 1 } else { -1 };
                clock.jump(Jump {
                    slept: Duration::ZERO,
                    stepped: SignedDuration::from_millis(span),
                });
                self.offset += span;
                let state = &mut *self.world.lock();
                state.books.clock_set(state.now(), far);
                state.books.unsteady_until = state.now() + 30 * HOUR;
                let now = state.now();
                state.disturb(now);
                state.failing_since = None;
                state.note("a clock that is set", format!("by {} s", span / 1000));
            }
            89..93 => self.retry(engine, clock).await?,
            93..100 => {
                let left = self.random.u32(0..12);
                let doom = self.random.choice([
                    Doom::BeforeCommit(left),
                    Doom::AfterCommit(left),
                    Doom::BeforeReceipt(left / 4),
                    Doom::AfterReceipt(left / 4),
                    Doom::Panic(left),
                ]);
                self.world.lock().doom = doom;
            }
            _ => {}
        }
        Ok(())
    }

    /// Begins the rounds of the discovery, if there is one.
    fn discover(&mut self, engine: &Engine, clock: &Clock) -> JoinSet<()> {
        if !self.discovers || self.world.lock().life < self.discovers_from {
            return JoinSet::new();
        }
        let every = self
            .random
            .choice([20 * SECOND, MINUTE, MINUTE, 5 * MINUTE]);
        discovery::start(&self.world, engine, clock, every.unwrap_or(MINUTE))
    }

    /// Ends the rounds at any moment.
    async fn interrupt(&self, rounds: &mut JoinSet<()>) {
        rounds.shutdown().await;
        if let Some(ledger) = &mut self.world.lock().discovery {
            ledger.interrupt();
        }
    }

    /// Runs appear, run again, are watched by request, or watched no more.
    async fn change_found(&mut self, engine: &Engine, clock: &Clock) {
        match self.random.u32(0..12) {
            0..3 => {
                let after = match self.random.u32(0..3) {
                    0 => 0,
                    1 => self.random.u64(0..20 * MINUTE),
                    _ => self.random.u64(0..4 * HOUR),
                };
                let (several, spread) = (self.random.u32(1..12), self.random.u64(1..HOUR));
                for _ in 0..several {
                    let after = after + self.random.u64(0..spread);
                    self.appear(after);
                }
            }
            3..5 => self.run_again(),
            5 => {
                if let Some(run) = self.any_found() {
                    self.watch(run, engine, clock).await;
                }
            }
            6 => {
                if let Some(run) = self.any_found() {
                    self.remove_run(run, engine, clock).await;
                }
            }
            7 => self.turn_list(),
            _ => {}
        }
    }

    fn any_found(&mut self) -> Option<RunRef> {
        let runs = discovery::found_runs(&self.world.lock());
        self.random.choice(runs)
    }

    /// A run appears of which no watch was requested.
    fn appear(&mut self, after: Ms) {
        let Some(run) = discovery::next_run(&self.world.lock()) else {
            return;
        };
        let fate = Fate {
            found: true,
            ..self.fate(after, true)
        };
        let state = &mut *self.world.lock();
        state.trace(format!("{run} comes: {fate:?}"));
        state.fates.insert(run, fate);
    }

    /// A run that has ended runs again, under the same ID.
    fn run_again(&mut self) {
        let Some(run) = self.any_found() else {
            return;
        };
        let random = &mut self.random;
        let until = if random.bool() {
            random.u64(0..2 * HOUR)
        } else {
            0
        };
        let (starts, length) = (random.u64(0..20 * SECOND), random.u64(SECOND..HOUR));
        let ends = random.u32(0..6) != 0;
        let state = &mut *self.world.lock();
        let now = state.now();
        let fate = state.fates.get_mut(&run).expect("it was found");
        let Some(ended) = fate.ends.filter(|(at, _)| *at <= now) else {
            return;
        };
        if fate.earlier.len() + 1 == MAX_ATTEMPTS {
            return;
        }
        let until = now + until;
        fate.earlier.push(Earlier {
            starts_at: fate.starts_at,
            ended,
            until,
        });
        fate.starts_at = until + starts;
        fate.ends = ends.then_some((until + starts + length, ended.1));
        state.note("a run that runs again", format!("{run} at {until} ms"));
    }

    /// The network is away from now on for up to `longest`, and requests fail at once or hang.
    fn go_offline(&mut self, fault: &'static str, longest: Ms) {
        let (span, hangs) = (self.random.u64(SECOND..longest), self.random.bool());
        let state = &mut *self.world.lock();
        let until = state.now() + span;
        state.offline = (until, hangs);
        state.api_trouble = state.api_trouble.max(until);
        state.note(
            fault,
            format!(
                "for {} s, {}",
                span / SECOND,
                if hangs { "hanging" } else { "failing" }
            ),
        );
    }

    /// Lists become better or worse.
    fn turn_list(&mut self) {
        let lag = self.random.u64(5 * SECOND..10 * MINUTE);
        let listing = self.random.choice([
            Listing::True,
            Listing::True,
            Listing::True,
            Listing::Lagging(lag),
            Listing::Lying,
            Listing::Losing,
            Listing::Shuffled,
            Listing::Endless,
            Listing::Hanging,
            Listing::Failing,
            Listing::Torn,
            Listing::Forever,
            Listing::Foreign,
            Listing::Third,
            Listing::Third,
        ]);
        let state = &mut *self.world.lock();
        state.listing = listing.unwrap_or(Listing::True);
        state.trace(format!("lists are {:?}", state.listing));
    }

    async fn add(&mut self, engine: &Engine, clock: &Clock) {
        let most = if self.lists {
            MAX_LISTED_RUNS
        } else {
            MAX_RUNS
        };
        let known = self.runs > 0 && (self.runs == most || self.random.u32(0..6) == 0);
        let run = if known {
            self.any_run()
        } else {
            self.new_run()
        };
        if known {
            self.world
                .lock()
                .note("a run added again", format!("{run}"));
        }
        self.watch(run, engine, clock).await;
    }

    /// Requests a watch of a run.
    async fn watch(&mut self, run: RunRef, engine: &Engine, clock: &Clock) {
        let watch = self.request(run, clock);
        let origin = if self.random.bool() {
            AddedBy::Request
        } else {
            AddedBy::RequestAgain
        };
        let added = engine.watches.add(watch.clone(), origin).await;
        self.acknowledge(&watch, added.as_ref().ok().copied());
    }

    fn any_run(&mut self) -> RunRef {
        RunRef::new(&format!("run_{}", self.random.usize(0..self.runs))).expect("an ID")
    }

    fn new_run(&mut self) -> RunRef {
        let run = RunRef::new(&format!("run_{}", self.runs)).expect("an ID");
        self.runs += 1;
        let fate = self.fate(0, !self.lists);
        let state = &mut *self.world.lock();
        state.trace(format!("{run} comes: {fate:?}"));
        state.fates.insert(run.clone(), fate);
        run
    }

    /// What happens to a run that comes after a while.
    fn fate(&mut self, after: Ms, may_be_short: bool) -> Fate {
        let random = &mut self.random;
        let length = random
            .choice([2 * SECOND, 20 * SECOND, 3 * MINUTE, 40 * MINUTE, 5 * HOUR])
            .filter(|length| may_be_short || *length > 3 * MINUTE)
            .unwrap_or(HOUR);
        let length = random.u64(length / 2..length * 2);
        let (appears, starts) = match random.u32(0..6) {
            0 => (random.u64(0..4 * MINUTE), random.u64(0..MINUTE)),
            _ => (0, random.u64(0..20 * SECOND)),
        };
        let verdict = random.choice([
            Verdict::Succeeded,
            Verdict::Failed,
            Verdict::Canceled,
            Verdict::Skipped,
        ]);
        let ends = verdict.filter(|_| random.u32(0..6) != 0);
        let odd = random.u32(0..4) == 0;
        let output = random.choice([0, 10, 10, 1 << 10, 1 << 16]).unwrap_or(0);
        let output = random.usize(0..=output);
        let appears_at = self.world.lock().now() + after + appears;
        let starts_at = appears_at + starts;
        let ends = ends.map(|verdict| (starts_at + length, verdict));
        Fate {
            appears_at,
            starts_at,
            ends,
            odd,
            output,
            earlier: Vec::new(),
            found: false,
        }
    }

    /// A watch of a run, with a deadline, labels and sinks of its own.
    fn request(&mut self, run: RunRef, clock: &Clock) -> Watch {
        let number = self.world.lock().books.next_generation();
        let random = &mut self.random;
        let timeout = random
            .choice([20 * SECOND, MINUTE, 10 * MINUTE, HOUR, 6 * HOUR, 12 * HOUR])
            .filter(|timeout| !self.lists || *timeout > 10 * MINUTE)
            .unwrap_or(4 * HOUR);
        let name = random.bool().then(|| format!("watch {number} — «né»"));
        let mut labels = Labels::from([("generation".to_owned(), number.to_string())]);
        let labeled = random.bool();
        if labeled {
            labels.insert(LABEL.0.to_owned(), LABEL.1.to_owned());
        }
        let chosen: Option<&[&str]> = match random.u32(0..8) {
            0 => Some(&ALWAYS[..1]),
            1 => Some(&ALWAYS[1..]),
            2 => Some(&[ALWAYS[0], SOMETIMES]),
            _ => None,
        };
        let sinks = chosen.map(|names| {
            names
                .iter()
                .map(|name| SinkName::new(name).expect("a name"))
                .collect()
        });
        let state = &mut *self.world.lock();
        let now = state.now();
        let chosen = chosen.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        let requested = Requested::new(number, now, now + timeout, chosen);
        state.trace(format!(
            "watch {number} of {run} is requested, for {} s",
            timeout / SECOND
        ));
        if labeled {
            state.books.labeled.insert((run.clone(), number));
        }
        if state.books.watches.contains_key(&run) {
            state
                .books
                .candidates
                .entry(run.clone())
                .or_default()
                .push(requested);
        } else {
            state.books.watches.insert(run.clone(), requested);
        }
        let added_at = clock.now();
        let deadline_at = added_at
            .checked_add(Duration::from_millis(timeout))
            .expect("a time");
        Watch {
            run_id: run,
            name,
            labels,
            sinks,
            added_at,
            deadline_at,
            trace: None,
        }
    }

    /// Takes note of what came of a request for a watch.
    fn acknowledge(&self, watch: &Watch, added: Option<Added>) {
        let generation: u32 = watch.labels["generation"].parse().expect("a number");
        let state = &mut *self.world.lock();
        state.trace(format!(
            "watch {generation} of {} is {added:?}",
            watch.run_id
        ));
        if added == Some(Added::New) {
            let books = &mut state.books;
            let candidates = books
                .candidates
                .get_mut(&watch.run_id)
                .into_iter()
                .flatten();
            let all = books
                .watches
                .get_mut(&watch.run_id)
                .into_iter()
                .chain(candidates);
            all.filter(|requested| requested.generation == generation)
                .for_each(|requested| requested.acknowledged = true);
        }
        check::look(state);
    }

    /// Has a run watched no more; now and then it is added again at once, while its poll may be in flight.
    async fn remove(&mut self, engine: &Engine, clock: &Clock) {
        if self.runs == 0 {
            return;
        }
        let run = self.any_run();
        self.remove_run(run, engine, clock).await;
    }

    async fn remove_run(&mut self, run: RunRef, engine: &Engine, clock: &Clock) {
        let force = self.random.u32(0..8) == 0;
        if self.discovers {
            let state = &mut *self.world.lock();
            check::look(state);
            state.books.removing = Some(run.clone());
        }
        let before = self.world.lock().books.remove(&run);
        if force {
            self.world.lock().books.may_be_given_up(&run);
        }
        let removed = if self.random.bool() {
            self.world
                .lock()
                .note("a run removed and added again at once", format!("{run}"));
            let watch = self.request(run.clone(), clock);
            if self.random.bool() {
                self.world.lock().platter = Platter::Slow;
            }
            let removal = engine.watches.remove(run.clone(), force);
            let (removed, added) =
                tokio::join!(biased; removal, engine.watches.add(watch.clone(), AddedBy::Request));
            self.settle_removal(&run, &before, removed.is_ok());
            self.acknowledge(&watch, added.as_ref().ok().copied());
            removed
        } else {
            let removed = engine.watches.remove(run.clone(), force).await;
            self.settle_removal(&run, &before, removed.is_ok());
            removed
        };
        self.world.lock().books.removing = None;
        // Not the text of an error: it names a delivery, whose ID is another one each time.
        let removed = removed.map_err(|error| std::mem::discriminant(&error));
        self.world
            .lock()
            .note("a removal", format!("of {run}: {removed:?}"));
    }

    /// Takes note of whether a removal was done. Watches whose removal was rejected are as they were before.
    fn settle_removal(&self, run: &RunRef, before: &[u32], done: bool) {
        if !done {
            self.world.lock().books.keep(run, before);
        }
    }

    /// Deletes watches that ended some time ago, as the daemon does.
    async fn prune(&mut self, engine: &Engine, clock: &Clock) {
        {
            let state = &mut *self.world.lock();
            check::look(state);
            state.books.may_be_pruned();
        }
        let age = SignedDuration::from_secs(i64::from(self.random.u32(0..3600)));
        let before = clock.now().checked_sub(age).expect("a time");
        // What waits for the sink that comes and goes is not given up.
        let sinks =
            [ALWAYS[0], ALWAYS[1], SOMETIMES].map(|name| SinkName::new(name).expect("a name"));
        let pruned = engine
            .store
            .prune(before, sinks.to_vec(), clock.now())
            .await;
        self.world.lock().note("a pruning", format!("{pruned:?}"));
    }

    async fn reload(&mut self, engine: &mut Engine) -> Result<(), String> {
        self.third = self.random.bool();
        let before = self.budget as usize;
        self.budget = self.random.choice([20, 60, 300]).unwrap_or(60);
        let budget = self.budget as usize;
        let settings = self.settings();
        let api = Api::new(&self.world, self.streams, self.lists);
        let receivers = self.receivers(&settings);
        {
            let state = &mut *self.world.lock();
            state.note(
                "a reload",
                format!("third: {}, budget: {budget}", self.third),
            );
            let now = state.now();
            state.books.budgets.push((now, budget.max(before)));
        }
        engine
            .reload_with(api, receivers, &settings)
            .await
            .map_err(|error| format!("no reload: {error:#}"))?;
        let state = &mut *self.world.lock();
        let now = state.now();
        state.books.budgets.push((now, budget));
        Ok(())
    }

    async fn retry(&mut self, engine: &Engine, clock: &Clock) -> Result<(), String> {
        let dead = check::dead(&mut self.world.lock())?;
        let Some((id, attempts)) = dead.get(self.random.usize(0..dead.len().max(1))).cloned()
        else {
            return Ok(());
        };
        self.world
            .lock()
            .books
            .retried
            .entry(id.clone())
            .or_insert(0);
        let delivery = DeliveryId::new(&id).expect("an ID of the store");
        let again = engine
            .store
            .decide(delivery, store::Fate::Retry, clock.now())
            .await;
        let state = &mut *self.world.lock();
        state.note("a delivery retried by request", format!("{again:?}"));
        // What a death or a disk kept from being stored leaves it as it was.
        if again.is_ok() {
            state.books.retried.insert(id, attempts);
        }
        Ok(())
    }

    /// Nothing goes wrong any more: all must come to its end.
    async fn calm(&mut self) -> Result<(), String> {
        let began = self.world.lock().now();
        self.world.lock().trace("calm".to_owned());
        // How long the API requested the process before to make no requests, this one does not know.
        tokio::time::sleep(Duration::from_millis(10 * MINUTE)).await;
        check::nothing_starves(&mut self.world.lock(), began);
        loop {
            tokio::time::sleep(Duration::from_millis(HOUR)).await;
            let state = &mut *self.world.lock();
            check::look(state);
            let (watches, messages) = check::open(state)?;
            if state.broken.is_some() || (watches, messages) == (0, 0) {
                return Ok(());
            }
            if state.now() - began > LONGEST_CALM {
                let hours = LONGEST_CALM / HOUR;
                return Err(format!(
                    "{watches} watches and {messages} messages are open after {hours} h of calm"
                ));
            }
        }
    }
}
