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
use runwatch::run::{DeliveryId, Labels, RunId, SinkName, Verdict, Watch};
use runwatch::store::{Fate, Place, Store};
use runwatch::watch::AddedBy;
use tokio::runtime::{Builder, RngSeed};

use crate::check::{self, Asked, SCHEDULE};
use crate::world::{
    Api, Doom, Fate, HOUR, MINUTE, Ms, Platter, Receiver, Reception, SECOND, SimulatedDisk, Weather, World,
};

/// Sinks that are always there, and one that comes and goes.
const ALWAYS: [&str; 2] = ["first", "second"];
const SOMETIMES: &str = "third";

/// Most runs of one seed.
const MAX_RUNS: usize = 12;

/// Most time that calm may take to bring all to an end: the longest deadline, then a whole schedule of
/// attempts with its spread and twice what a receiver asked for.
const LONGEST_CALM: Ms = 120 * HOUR;

/// What came of one seed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    pub(crate) simulated: Ms,
    pub(crate) lives: u64,
    pub(crate) runs: u64,
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
    largest_budget: u32,
    third: bool,
    streams: bool,
    /// The clock is set now and then.
    steps: bool,
    runs: usize,
}

/// Plays one seed in `folder`.
pub(crate) fn simulate(seed: u64, folder: &Path) -> Result<Outcome, Broken> {
    let mut random = fastrand::Rng::with_seed(seed);
    let database = folder.join("runwatch.db");
    let world = World::new(seed, database.clone(), &[ALWAYS[0], ALWAYS[1], SOMETIMES]);
    world.lock().books.always = ALWAYS.map(ToOwned::to_owned).into();
    let budget = random.choice([20, 60, 60, 300]).unwrap_or(60);
    let mut play = Play {
        world: world.clone(),
        database: &database,
        epoch: "2026-01-01T00:00:00Z".parse().expect("a time"),
        offset: 0,
        budget,
        largest_budget: budget,
        third: random.bool(),
        streams: random.bool(),
        steps: random.u32(0..3) == 0,
        random,
        runs: 0,
    };
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
        match check::settled(state).and_then(|done| check::receipts(state).map(|()| done)) {
            Ok((delivered, dead)) => (outcome.delivered, outcome.dead) = (delivered, dead),
            Err(broken) => state.broken(broken),
        }
        if let Err(broken) = check::within_budget(&state.requests, play.largest_budget as usize) {
            state.broken(broken);
        }
        outcome.simulated = state.now();
        outcome.lives = u64::from(state.life);
        outcome.runs = state.books.watches.len() as u64;
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
    Err(Broken { what, trace: state.last_of_trace(60) })
}

impl Play<'_> {
    fn settings(&self) -> Settings {
        let mut settings = Settings::default();
        settings.api.requests_per_minute = self.budget;
        let names = ALWAYS.into_iter().chain(self.third.then_some(SOMETIMES));
        for name in names {
            let argv = vec!["simulated".to_owned()];
            let kind = SinkKind::Command { argv, timeout: Duration::from_secs(30) };
            let schedule = SCHEDULE.map(Duration::from_millis).to_vec();
            let sink = SinkSettings { kind, retry_schedule: schedule, ..SinkSettings::log_of_verdicts() };
            settings.sinks.insert(SinkName::new(name).expect("a name"), sink);
        }
        settings
    }

    fn receivers(&self, settings: &Settings) -> Vec<Receiver> {
        let receiver = |name: &SinkName| Receiver { world: self.world.clone(), name: name.as_str().to_owned() };
        settings.sinks.keys().map(receiver).collect()
    }

    /// One life of the process. The last one is calm, and ends when all is done.
    fn live(&mut self, calm: bool) {
        // A runtime is all that a process has besides its store: dropping it is a death.
        let seed = RngSeed::from_bytes(&self.random.u64(..).to_le_bytes());
        let mut builder = Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).rng_seed(seed).build().expect("a runtime");
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
            let wall = i64::try_from(now).unwrap_or(i64::MAX).saturating_add(self.offset);
            let clock = Clock::simulated(self.epoch.checked_add(SignedDuration::from_millis(wall)).expect("a time"));
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
        let down = if self.random.bool() { self.random.u64(0..5 * SECOND) } else { self.random.u64(0..3 * HOUR) };
        world.lock().pass(down);
        check::look(&mut world.lock());
        world.lock().books.close();
    }

    async fn act(&mut self, clock: Clock, calm: bool) -> Result<(), String> {
        {
            let state = &mut *self.world.lock();
            state.platter = Platter::Fine;
            if calm {
                state.weather = Weather::Fine;
                state.receptions.values_mut().for_each(|reception| *reception = Reception::Fine);
            }
        }
        // What waits for the sink that comes and goes has somewhere to go in the end.
        self.third |= calm;
        let settings = self.settings();
        let api = Api { world: self.world.clone(), streams: self.streams };
        let (store, writer) = Store::open(Place::File(self.database)).map_err(|error| format!("{error:#}"))?;
        let writer = writer.run_on(SimulatedDisk { world: self.world.clone() });
        let receivers = self.receivers(&settings);
        let engine = Engine::start_with(api, receivers, &settings, (store, writer), clock.clone()).await;
        let mut engine = engine.map_err(|error| format!("the process does not start: {error:#}"))?;
        if calm {
            return self.calm().await;
        }
        let steps = self.random.u32(8..40);
        for _ in 0..steps {
            self.step(&mut engine, &clock).await?;
            let wait = match self.random.u32(0..20) {
                0..12 => self.random.u64(0..MINUTE),
                12..19 => self.random.u64(MINUTE..20 * MINUTE),
                _ => self.random.u64(HOUR..6 * HOUR),
            };
            tokio::select! {
                biased;
                error = engine.broken() => return Err(format!("the engine broke: {error:#}")),
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
            engine.stop(Duration::from_secs(10)).await;
        } else {
            self.world.lock().note("a death at any moment", String::new());
        }
        Ok(())
    }

    /// What goes wrong, or is asked for, next.
    async fn step(&mut self, engine: &mut Engine<Api>, clock: &Clock) -> Result<(), String> {
        match self.random.u32(0..100) {
            0..28 => self.add(engine, clock).await,
            28..32 => self.remove(engine).await,
            32..50 => {
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
                let state = &mut *self.world.lock();
                state.weather = weather.unwrap_or(Weather::Fine);
                state.api_trouble = state.api_trouble.max(state.now());
                state.trace(format!("the API is {:?}", state.weather));
            }
            50..68 => {
                let sink = self.random.choice([ALWAYS[0], ALWAYS[1], SOMETIMES]).unwrap_or(SOMETIMES);
                let gone = if self.random.u32(0..10) == 0 { Reception::Gone } else { Reception::Down };
                let reception = self.random.choice([
                    Reception::Fine,
                    Reception::Fine,
                    Reception::Down,
                    Reception::Hanging,
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
                let platter =
                    self.random.choice([Platter::Fine, Platter::Fine, Platter::Slow, Platter::Full, Platter::Flaky]);
                let state = &mut *self.world.lock();
                state.platter = platter.unwrap_or(Platter::Fine);
                state.trace(format!("the disk is {:?}", state.platter));
            }
            78..82 => self.reload(engine).await?,
            82..86 => {
                let slept = self.random.u64(MINUTE..3 * HOUR);
                clock.jump(Jump { slept: Duration::from_millis(slept), stepped: SignedDuration::ZERO });
                let state = &mut *self.world.lock();
                state.sleep(slept);
                state.books.unsteady_until = state.now();
                state.unrest = state.now();
                state.note("a suspend", format!("of {} s", slept / SECOND));
            }
            86..89 if self.steps => {
                let far = self.random.u64(10 * SECOND..2 * HOUR);
                let span = i64::try_from(far).unwrap_or(0) * if self.random.bool() { 1 } else { -1 };
                clock.jump(Jump { slept: Duration::ZERO, stepped: SignedDuration::from_millis(span) });
                self.offset += span;
                let state = &mut *self.world.lock();
                state.books.clock_set(state.now(), far);
                state.books.unsteady_until = state.now() + 30 * HOUR;
                state.unrest = state.now();
                state.note("a clock that is set", format!("by {} s", span / 1000));
            }
            89..93 => self.ask_again(engine, clock).await?,
            93..100 => {
                let left = self.random.u32(0..12);
                let doom = self.random.choice([
                    Doom::BeforeCommit(left),
                    Doom::AfterCommit(left),
                    Doom::BeforeReceipt(left / 4),
                    Doom::AfterReceipt(left / 4),
                ]);
                self.world.lock().doom = doom;
            }
            _ => {}
        }
        Ok(())
    }

    async fn add(&mut self, engine: &Engine<Api>, clock: &Clock) {
        if self.runs == MAX_RUNS {
            return;
        }
        let run = RunId::new(&format!("run_{}", self.runs)).expect("an ID");
        self.runs += 1;
        let random = &mut self.random;
        let timeout = random.choice([MINUTE, 10 * MINUTE, HOUR, 6 * HOUR, 12 * HOUR]).unwrap_or(HOUR);
        let length = random.choice([2 * SECOND, 20 * SECOND, 3 * MINUTE, 40 * MINUTE, 5 * HOUR]).unwrap_or(MINUTE);
        let length = random.u64(length / 2..length * 2);
        let (appears, starts) = match random.u32(0..6) {
            0 => (random.u64(0..4 * MINUTE), random.u64(0..MINUTE)),
            _ => (0, random.u64(0..20 * SECOND)),
        };
        let verdict = random.choice([Verdict::Succeeded, Verdict::Failed, Verdict::Canceled]);
        let ends = verdict.filter(|_| random.u32(0..6) != 0);
        let odd = random.u32(0..4) == 0;
        let now = {
            let state = &mut *self.world.lock();
            let now = state.now();
            let appears_at = now + appears;
            let starts_at = appears_at + starts;
            let fate = Fate { appears_at, starts_at, ends: ends.map(|verdict| (starts_at + length, verdict)), odd };
            state.trace(format!("{run} is added for {} s: {fate:?}", timeout / SECOND));
            state.fates.insert(run.clone(), fate);
            state.books.watches.insert(run.clone(), Asked::until(now + timeout));
            now
        };
        let added_at = clock.now();
        let deadline_at = added_at.checked_add(Duration::from_millis(timeout)).expect("a time");
        let watch =
            Watch { run_id: run.clone(), name: None, labels: Labels::new(), sinks: None, added_at, deadline_at };
        let added = engine.watches.add(watch, AddedBy::Request).await;
        let state = &mut *self.world.lock();
        if let Some(asked) = state.books.watches.get_mut(&run).filter(|_| added.is_ok()) {
            asked.acknowledged = true;
        }
        // A slow disk moves nothing: the deadline is that of the request.
        state.trace(format!("{run} added: {} after {} ms", added.is_ok(), state.now() - now));
    }

    async fn remove(&mut self, engine: &Engine<Api>) {
        if self.runs == 0 {
            return;
        }
        let run = RunId::new(&format!("run_{}", self.random.usize(0..self.runs))).expect("an ID");
        let before = {
            let state = &mut *self.world.lock();
            let Some(asked) = state.books.watches.get_mut(&run) else { return };
            std::mem::replace(&mut asked.removed, true)
        };
        let removed = engine.watches.remove(run.clone(), false).await;
        let state = &mut *self.world.lock();
        if let Some(asked) = state.books.watches.get_mut(&run) {
            // What was refused is as it was before.
            asked.removed = before || removed.is_ok();
        }
        state.note("a removal", format!("of {run}: {removed:?}"));
    }

    async fn reload(&mut self, engine: &mut Engine<Api>) -> Result<(), String> {
        self.third = self.random.bool();
        self.budget = self.random.choice([20, 60, 300]).unwrap_or(60);
        self.largest_budget = self.largest_budget.max(self.budget);
        let settings = self.settings();
        let api = Api { world: self.world.clone(), streams: self.streams };
        let receivers = self.receivers(&settings);
        self.world.lock().note("a reload", format!("third: {}, budget: {}", self.third, self.budget));
        engine.reload_with(api, receivers, &settings).await.map_err(|error| format!("no reload: {error:#}"))
    }

    async fn ask_again(&mut self, engine: &Engine<Api>, clock: &Clock) -> Result<(), String> {
        let dead = check::dead(&mut self.world.lock())?;
        let Some((id, attempts)) = dead.get(self.random.usize(0..dead.len().max(1))).cloned() else { return Ok(()) };
        self.world.lock().books.asked_again.entry(id.clone()).or_insert(0);
        let delivery = DeliveryId::new(&id).expect("an ID of the store");
        let again = engine.store.decide(delivery, Fate::Retry, clock.now()).await;
        let state = &mut *self.world.lock();
        state.note("a message asked for again", format!("{again:?}"));
        // What a death or a disk kept from being stored leaves it as it was.
        if again.is_ok() {
            state.books.asked_again.insert(id, attempts);
        }
        Ok(())
    }

    /// Nothing goes wrong any more: all must come to its end.
    async fn calm(&mut self) -> Result<(), String> {
        let began = self.world.lock().now();
        self.world.lock().trace("calm".to_owned());
        // What the API asked the process before to leave it alone for, this one does not know.
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
                return Err(format!("{watches} watches and {messages} messages are open after {hours} h of calm"));
            }
        }
    }
}
