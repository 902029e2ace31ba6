//! The world around the engine: what really happens to the runs, what the API and the receivers make of it,
//! and a record of all requests and messages that they got.
//!
//! Times are those of the world: milliseconds since the beginning of the simulation, which go on while the
//! process is dead or the machine sleeps, and which is never set back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use runwatch::domain::{
    Activity, EventType, Hint, JsonText, Observation, ProviderName, RunDetails, RunRef, RunState,
    Status, Verdict,
};
use runwatch::notify::{Deliver, Message, SendError, Sent};
use runwatch::providers::{
    ApiError, EventStream, ListEntry, ListPage, ListParameters, ListReply, ListRequest, Malformed,
    PageRef, Provider, Reply, StreamItem,
};
use runwatch::store::{Done, Transaction, TransactionRunner};
use rusqlite::Connection;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::check::{self, Books};
use crate::discovery::{self, Ledger};

/// Time of the world.
pub(crate) type Ms = u64;

pub(crate) const SECOND: Ms = 1_000;
pub(crate) const MINUTE: Ms = 60 * SECOND;
pub(crate) const HOUR: Ms = 60 * MINUTE;

/// The time of the API's clock at `at`: the simulation begins with 2026.
pub(crate) fn wall(at: Ms) -> Timestamp {
    let millis = 1_767_225_600_000 + i64::try_from(at).expect("a simulation is short");
    Timestamp::from_millisecond(millis).expect("a time")
}

/// The time of the world when a clock that was never set shows this.
pub(crate) fn of_wall(millis: i64) -> Ms {
    u64::try_from(millis - wall(0).as_millisecond()).unwrap_or(0)
}

/// How long a request to the API, or an attempt at a receiver, takes at the most.
const REQUEST_LIMIT: Ms = 15 * SECOND;

/// What really happens to a run.
#[derive(Debug, Clone)]
pub(crate) struct Fate {
    /// Before this the API does not know it.
    pub(crate) appears_at: Ms,
    pub(crate) starts_at: Ms,
    /// When it ends, if ever, and how.
    pub(crate) ends: Option<(Ms, Verdict)>,
    /// In between it says what no documentation knows, and goes back to pending.
    pub(crate) odd: bool,
    /// Characters of its output, if it succeeds.
    pub(crate) output: usize,
    /// Its earlier attempts, in order; what stands above is about the last one.
    pub(crate) earlier: Vec<Earlier>,
    /// It belongs to those that the list of the discovery shows. Its answers have times and attempts.
    pub(crate) found: bool,
}

/// An attempt of a run that was followed by another one.
#[derive(Debug, Clone)]
pub(crate) struct Earlier {
    pub(crate) starts_at: Ms,
    pub(crate) ended: (Ms, Verdict),
    /// When the next one began.
    pub(crate) until: Ms,
}

/// One attempt of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Try {
    /// From 1.
    pub(crate) number: u64,
    pub(crate) starts_at: Ms,
    pub(crate) ends: Option<(Ms, Verdict)>,
}

impl Fate {
    /// All its attempts, in order.
    pub(crate) fn tries(&self) -> impl Iterator<Item = Try> {
        let earlier = self
            .earlier
            .iter()
            .map(|before| (before.starts_at, Some(before.ended)));
        let all = earlier.chain([(self.starts_at, self.ends)]);
        all.zip(1..).map(|((starts_at, ends), number)| Try {
            number,
            starts_at,
            ends,
        })
    }

    /// The attempt that is the current one at a time.
    pub(crate) fn try_at(&self, now: Ms) -> Try {
        let index = self.earlier.partition_point(|before| before.until <= now);
        self.tries().nth(index).expect("each run has an attempt")
    }

    /// Its status; `None` while the API does not know it.
    pub(crate) fn status(&self, now: Ms) -> Option<Status> {
        if now < self.appears_at {
            return None;
        }
        let current = self.try_at(now);
        match current.ends {
            Some((at, verdict)) if now >= at => Some(match verdict {
                Verdict::Succeeded => Status::from(RunState::Succeeded),
                Verdict::Failed => Status::from(RunState::Failed),
                Verdict::Skipped => Status::from(RunState::Skipped),
                _ => Status::from(RunState::Canceled),
            }),
            _ if now < current.starts_at => Some(Status::from(RunState::Pending)),
            _ if self.odd && (now / MINUTE) % 3 == 1 => Some(Status::read(None, "SUCCEEDED")),
            _ if self.odd && (now / MINUTE) % 3 == 2 => Some(Status::from(RunState::Pending)),
            _ => Some(Status::from(RunState::Running)),
        }
    }

    /// What an answer with `status` says at a time besides the status.
    fn details(&self, id: &RunRef, status: &Status, now: Ms, numbers: bool) -> RunDetails {
        let output = (*status == Status::from(RunState::Succeeded)).then(|| self.output_of(id));
        RunDetails {
            output: output.and_then(|json| JsonText::new(json).ok()),
            ..self.times(now, numbers)
        }
    }

    /// The times of the run, and its attempt. Only some APIs number attempts.
    fn times(&self, now: Ms, numbers: bool) -> RunDetails {
        if !self.found {
            return RunDetails::default();
        }
        let current = self.try_at(now);
        let past = |at: Ms| Some(at).filter(|at| *at <= now).map(wall);
        RunDetails {
            attempt: numbers.then_some(current.number),
            created_at: Some(wall(self.appears_at)),
            started_at: past(current.starts_at),
            completed_at: current.ends.and_then(|(at, _)| past(at)),
            ..RunDetails::default()
        }
    }

    /// What a list shows of the run with `status`, as of a time.
    pub(crate) fn entry(&self, id: &RunRef, status: Status, at: Ms, numbers: bool) -> ListEntry {
        let times = self.times(at, numbers);
        let has_ended = Verdict::of_status(&status).is_some();
        ListEntry {
            attempt: times.attempt,
            created_at: times.created_at,
            started_at: times.started_at,
            completed_at: times.completed_at.filter(|_| has_ended),
            ..ListEntry::new(id.clone(), status)
        }
    }

    /// The output of the run as JSON, which differs from that of every other run.
    pub(crate) fn output_of(&self, id: &RunRef) -> String {
        format!("\"{id}:{}\"", "x".repeat(self.output))
    }
}

/// How the API does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weather {
    Fine,
    /// Some requests fail, each in a way of its own.
    Mixed,
    Down,
    Hanging,
    /// 404 for every run.
    Forgetful,
    Refusing,
    /// 429 or 503 with a pause of so long.
    Throttling(Ms),
    /// Answers that are none.
    Garbage,
}

/// What is wrong with lists of runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listing {
    /// Nothing.
    True,
    /// They show what was so long ago.
    Lagging(Ms),
    /// They show some runs in states that they are not in.
    Lying,
    /// They leave out some runs.
    Losing,
    /// Each page has an order of its own, so that some runs are on no page and others on two.
    Shuffled,
    /// There is always another page.
    Endless,
    Hanging,
    Failing,
    /// Their first pages come, and no others.
    Torn,
    /// They show all runs as running, also those that have ended.
    Forever,
    /// They show other runs only.
    Foreign,
    /// They show a third of the runs.
    Third,
}

impl Listing {
    /// What it is called in the list of faults; `None` where each page that comes is true.
    pub(crate) fn word(self) -> Option<&'static str> {
        match self {
            Self::True | Self::Hanging | Self::Failing | Self::Torn => None,
            Self::Lagging(_) => Some("a list that lags"),
            Self::Lying => Some("a list that lies"),
            Self::Losing => Some("a list that loses runs"),
            Self::Shuffled => Some("a list whose pages do not fit"),
            Self::Endless => Some("a list without an end"),
            Self::Forever => Some("a list that does not forget"),
            Self::Foreign => Some("a list of other runs"),
            Self::Third => Some("a list of some runs"),
        }
    }

    /// Whether it leaves out a run.
    pub(crate) fn loses(self, run: &RunRef, random: &mut fastrand::Rng) -> bool {
        match self {
            Self::Losing => random.u32(0..4) == 0,
            Self::Third => !run.as_str().ends_with(['0', '3', '6']),
            _ => false,
        }
    }

    /// The time as of which it shows runs.
    pub(crate) fn seen_at(self, now: Ms) -> Ms {
        match self {
            Self::Lagging(lag) => now.saturating_sub(lag),
            _ => now,
        }
    }
}

/// How a receiver does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reception {
    Fine,
    Down,
    Hanging,
    /// Takes the message, and the word of that is lost.
    Mute,
    /// Asks for more time than is planned.
    Busy,
    /// Wants no more messages, ever.
    Gone,
    /// Takes many minutes until it fails.
    Blocked,
}

/// How the disk does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Platter {
    Fine,
    Slow,
    Full,
    /// Has no room for another page, which a statement meets.
    Tight,
    /// Another process holds the database, so that no transaction begins.
    Busy,
    /// Refuses each statement that writes.
    ReadOnly,
    /// Fails at the commit.
    Failing,
    /// Takes some transactions, and refuses others in any of these ways.
    Flaky,
}

/// How a transaction goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    Full,
    Tight,
    Busy,
    ReadOnly,
    Failing,
}

/// At which point the process dies, counted from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doom {
    BeforeCommit(u32),
    AfterCommit(u32),
    BeforeReceipt(u32),
    AfterReceipt(u32),
    /// The writer of the store panics, which ends the process.
    Panic(u32),
}

/// What came of a request about a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reported {
    Going,
    Ended(Verdict),
    Missing,
    Failed,
    /// The asker did not wait for the answer.
    Abandoned,
    /// The asker died.
    Orphaned,
}

/// What came of one request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answered {
    pub(crate) began: Ms,
    pub(crate) at: Ms,
    pub(crate) life: u32,
    pub(crate) reported: Reported,
    /// It reported that the run is running.
    pub(crate) running: bool,
    /// The attempt of the run that it was about; 0 where it was about none.
    pub(crate) attempt: u64,
}

/// One attempt at a delivery.
#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    pub(crate) sink: String,
    pub(crate) delivery: String,
    pub(crate) number: u32,
    pub(crate) life: u32,
    pub(crate) at: Ms,
    /// When it came to an end; `None` while it is under way, and where it was cut off.
    pub(crate) ended: Option<Ms>,
    /// For how long the receiver wants to be left alone.
    pub(crate) retry_after: Ms,
}

/// What a receiver got.
#[derive(Debug, Clone)]
pub(crate) struct Receipt {
    pub(crate) sink: String,
    pub(crate) delivery: String,
    pub(crate) attempt: u32,
    pub(crate) run: Option<RunRef>,
    /// Which watch of that run it is about.
    pub(crate) generation: u32,
    pub(crate) event_type: EventType,
}

/// Everything that happened, and how things are.
pub(crate) struct State {
    pub(crate) random: fastrand::Rng,
    pub(crate) fates: BTreeMap<RunRef, Fate>,
    pub(crate) weather: Weather,
    pub(crate) listing: Listing,
    /// Until when lists were not true.
    pub(crate) list_trouble: Ms,
    pub(crate) receptions: BTreeMap<String, Reception>,
    pub(crate) platter: Platter,
    pub(crate) doom: Option<Doom>,
    pub(crate) answers: BTreeMap<RunRef, Vec<Answered>>,
    /// When requests of any kind began.
    pub(crate) requests: Vec<Ms>,
    /// From when until when this process was requested to make no requests.
    pub(crate) pauses: Vec<(Ms, Ms)>,
    /// When usable answers came.
    pub(crate) usable: Vec<Ms>,
    pub(crate) receipts: Vec<Receipt>,
    pub(crate) attempts: Vec<Attempt>,
    /// When a receiver refused further messages, and the life in which it did.
    pub(crate) farewells: Vec<(Ms, u32, String)>,
    pub(crate) gone: BTreeSet<String>,
    /// Until when the process had no peace: it began to live, a write was slow or refused, the machine slept,
    /// the clock was set.
    pub(crate) unrest: Ms,
    /// All times of unrest, in order.
    unrests: Vec<(Ms, Ms)>,
    /// From when until when there was no process, or the machine slept.
    pub(crate) naps: Vec<(Ms, Ms)>,
    /// Changes when all connections die.
    pub(crate) network: u64,
    /// Until when the network is away, and whether requests then hang.
    pub(crate) offline: (Ms, bool),
    /// The writer of the store panicked in this life.
    pub(crate) writer_failed: bool,
    /// Since when no request of this life got a usable answer, if one failed.
    pub(crate) failing_since: Option<Ms>,
    /// Until when the API did not answer everything as it should, as far as it got requests.
    pub(crate) api_trouble: Ms,
    pub(crate) faults: BTreeMap<&'static str, u64>,
    pub(crate) life: u32,
    pub(crate) alive: bool,
    began: Ms,
    life_began: Ms,
    since: Option<Instant>,
    slept: Ms,
    pub(crate) books: Books,
    /// What is known of the discovery, if there is one.
    pub(crate) discovery: Option<Ledger>,
    pub(crate) broken: Option<String>,
    trace: Vec<String>,
    digest: u64,
}

/// A handle to the world.
#[derive(Clone)]
pub(crate) struct World {
    state: Arc<Mutex<State>>,
    pub(crate) death: Arc<Notify>,
}

impl World {
    pub(crate) fn new(seed: u64, database: PathBuf, sinks: &[&str]) -> Self {
        let state = State {
            random: fastrand::Rng::with_seed(seed ^ 0x5eed_0000),
            fates: BTreeMap::new(),
            weather: Weather::Fine,
            listing: Listing::True,
            list_trouble: 0,
            receptions: sinks
                .iter()
                .map(|sink| ((*sink).to_owned(), Reception::Fine))
                .collect(),
            platter: Platter::Fine,
            doom: None,
            answers: BTreeMap::new(),
            requests: Vec::new(),
            pauses: Vec::new(),
            usable: Vec::new(),
            receipts: Vec::new(),
            attempts: Vec::new(),
            farewells: Vec::new(),
            gone: BTreeSet::new(),
            unrest: 0,
            unrests: Vec::new(),
            naps: vec![(0, 0)],
            network: 0,
            offline: (0, false),
            writer_failed: false,
            failing_since: None,
            api_trouble: 0,
            faults: BTreeMap::new(),
            life: 0,
            alive: false,
            began: 0,
            life_began: 0,
            since: None,
            slept: 0,
            books: Books::new(database),
            discovery: None,
            broken: None,
            trace: Vec::new(),
            digest: 0xcbf2_9ce4_8422_2325,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            death: Arc::new(Notify::new()),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The process dies here, should this be the point. Everybody stands still then.
    async fn die_here(&self, doom: fn(u32) -> Doom, name: &'static str) {
        let dies = {
            let mut state = self.lock();
            let left = match state.doom {
                Some(Doom::BeforeCommit(left) | Doom::AfterCommit(left)) => left,
                Some(Doom::BeforeReceipt(left) | Doom::AfterReceipt(left)) => left,
                Some(Doom::Panic(_)) | None => return,
            };
            if state.doom != Some(doom(left)) {
                return;
            }
            state.doom = left.checked_sub(1).map(doom);
            if left == 0 {
                state.note(name, String::new());
            }
            left == 0
        };
        if dies {
            self.death.notify_one();
            std::future::pending::<()>().await;
        }
    }
}

impl State {
    pub(crate) fn now(&self) -> Ms {
        let awake = self.since.map_or(0, |since| {
            u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
        });
        self.began + awake + self.slept
    }

    /// A process begins its life, on timers of its own.
    pub(crate) fn begin_life(&mut self) {
        self.life += 1;
        self.alive = true;
        self.since = Some(Instant::now());
        // The pauses of a process do not bind the next one, which does not know what was listed to it either.
        self.pauses.clear();
        if let Some(ledger) = &mut self.discovery {
            ledger.forget_listings();
        }
        (self.doom, self.writer_failed, self.failing_since) = (None, false, None);
        let now = self.now();
        if let Some(nap) = self.naps.last_mut().filter(|_| self.life > 1) {
            nap.1 = now;
        }
        self.life_began = now;
        self.disturb(now);
    }

    /// Takes note that the process has no peace from now until `until`.
    pub(crate) fn disturb(&mut self, until: Ms) {
        let now = self.now();
        self.unrest = self.unrest.max(until);
        match self.unrests.last_mut() {
            Some(last) if now <= last.1 => last.1 = last.1.max(until),
            _ => self.unrests.push((now, until)),
        }
    }

    /// Whether the process had peace from `from` until `until`.
    pub(crate) fn peaceful(&self, from: Ms, until: Ms) -> bool {
        let first = self.unrests.partition_point(|(_, ends)| *ends < from);
        self.unrests
            .get(first)
            .is_none_or(|(begins, _)| *begins > until)
    }

    /// When this life of the process began.
    pub(crate) fn life_began(&self) -> Ms {
        self.life_began
    }

    /// Since when there has been a process that was awake without a break.
    pub(crate) fn awake_since(&self) -> Ms {
        self.naps.last().map_or(0, |(_, until)| *until)
    }

    /// How long there was a process that was awake from `from` until `until`.
    pub(crate) fn awake_between(&self, from: Ms, until: Ms) -> Ms {
        let within = |(a, b): &(Ms, Ms)| (*b).min(until).saturating_sub((*a).max(from));
        let asleep: Ms = self
            .naps
            .iter()
            .rev()
            .take_while(|(_, b)| *b > from)
            .map(within)
            .sum();
        until.saturating_sub(from).saturating_sub(asleep)
    }

    /// The process is dead, and its timers with it.
    pub(crate) fn end_life(&mut self) {
        self.trace("the process is dead".to_owned());
        (self.began, self.slept, self.since, self.alive) = (self.now(), 0, None, false);
        self.naps.push((self.began, Ms::MAX));
    }

    /// Lets time pass while there is no process.
    pub(crate) fn pass(&mut self, down: Ms) {
        self.began += down;
    }

    /// The machine sleeps, and timers stand still.
    pub(crate) fn sleep(&mut self, slept: Ms) {
        let before = self.now();
        self.slept += slept;
        let now = self.now();
        self.naps.push((before, now));
        self.unrests.push((before, now));
        (self.unrest, self.failing_since) = (self.unrest.max(now), None);
    }

    /// Notes a fault, and the word for it in the trace.
    pub(crate) fn note(&mut self, fault: &'static str, more: String) {
        *self.faults.entry(fault).or_default() += 1;
        self.trace(format!("{fault} {more}"));
    }

    pub(crate) fn trace(&mut self, what: String) {
        let line = format!("{:>10.3} s  {what}", self.now() as f64 / 1000.0);
        for byte in line.bytes() {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        self.trace.push(line);
    }

    /// The last lines of the trace.
    pub(crate) fn last_of_trace(&self, lines: usize) -> String {
        self.trace[self.trace.len().saturating_sub(lines)..].join("\n")
    }

    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    /// How often the rounds of a discovery were begun.
    fn beginnings(&self) -> u32 {
        self.discovery
            .as_ref()
            .map_or(0, |ledger| ledger.beginnings)
    }

    /// Whether the API numbers the attempts of runs.
    fn numbers(&self) -> bool {
        self.discovery.as_ref().is_some_and(|ledger| ledger.numbers)
    }

    /// Notes that a promise is broken, the first time.
    pub(crate) fn broken(&mut self, what: String) {
        self.trace(format!("BROKEN: {what}"));
        self.broken.get_or_insert(what);
    }

    fn requested(&mut self, what: &str) {
        let now = self.now();
        self.requests.push(now);
        if let Some((from, until)) = self
            .pauses
            .iter()
            .find(|(from, until)| *from < now && now < *until)
        {
            let (from, until) = (from / SECOND, until / SECOND);
            self.broken(format!(
                "{what} was requested in the pause from {from} s to {until} s"
            ));
        }
    }

    fn pause(&mut self, pause: Ms) {
        let now = self.now();
        self.api_trouble = self.api_trouble.max(now + pause);
        self.pauses.push((now, now + pause));
    }
}

/// The API.
pub(crate) struct Api {
    world: World,
    streams: bool,
    /// One list shows all runs.
    lists: bool,
    /// The network in which its connections were made.
    connected: AtomicU64,
}

/// Notes that no request waited for an answer.
struct Asking {
    world: World,
    run: RunRef,
    began: Ms,
    /// See [`Answered::attempt`].
    attempt: u64,
    answered: bool,
}

impl Asking {
    fn answer(&mut self, reported: Reported, running: bool) {
        self.answered = true;
        let mut state = self.world.lock();
        let at = state.now();
        if matches!(
            reported,
            Reported::Going | Reported::Ended(_) | Reported::Missing
        ) {
            state.usable.push(at);
            state.failing_since = None;
        } else if reported == Reported::Failed {
            state.failing_since.get_or_insert(at);
        }
        // In which order a dead process lets go of what it was at, nothing decides.
        if reported != Reported::Orphaned {
            state.trace(format!("{} is {reported:?}", self.run));
        }
        let life = state.life;
        if reported == Reported::Failed || reported == Reported::Abandoned {
            state.api_trouble = state.api_trouble.max(at);
        }
        let answered = Answered {
            began: self.began,
            at,
            life,
            reported,
            running,
            attempt: self.attempt,
        };
        state
            .answers
            .entry(self.run.clone())
            .or_default()
            .push(answered);
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if !self.answered {
            let alive = self.world.lock().alive;
            self.answer(
                if alive {
                    Reported::Abandoned
                } else {
                    Reported::Orphaned
                },
                false,
            );
        }
    }
}

fn status(status: u16, retry_after: Option<Ms>) -> ApiError {
    ApiError::Status {
        status,
        message: String::new(),
        retry_after: retry_after.map(Duration::from_millis),
    }
}

impl Api {
    pub(crate) fn new(world: &World, streams: bool, lists: bool) -> Self {
        let connected = AtomicU64::new(world.lock().network);
        Self {
            world: world.clone(),
            streams,
            lists,
            connected,
        }
    }

    /// Whether its connections were made before a sleep that they did not survive. Once the process has seen that it
    /// slept, it may use them no more.
    fn is_cut_off(&self) -> bool {
        let state = &mut *self.world.lock();
        let cut_off = self.connected.load(Ordering::Relaxed) != state.network;
        if cut_off {
            let woke = state.awake_since();
            if state.now() > woke + 2 * SECOND {
                state.broken(format!(
                    "a request goes over a connection that died before {} s",
                    woke / SECOND
                ));
            }
        }
        cut_off
    }

    /// The pause that an answer requests beside what it reports, now and then.
    fn pause_beside(&self, answers: bool) -> Option<Duration> {
        let state = &mut *self.world.lock();
        if !answers || state.random.u32(0..400) != 0 {
            return None;
        }
        let pause = Duration::from_secs(state.random.u64(1..60));
        state.note("a used-up limit", String::new());
        state.pause(u64::try_from(pause.as_millis()).unwrap_or(0));
        Some(pause)
    }

    /// One page of the runs that go on, as the list shows them.
    fn page(&self, from: usize) -> ListPage {
        let state = &mut *self.world.lock();
        let (now, listing) = (state.now(), state.listing);
        let numbers = state.numbers();
        let (random, fates) = (&mut state.random, &state.fates);
        let seen_at = listing.seen_at(now);
        let mut entries = Vec::new();
        for (run, fate) in fates {
            let shown = match listing {
                Listing::Forever => Some(Status::from(RunState::Running)),
                _ => fate.status(seen_at),
            };
            let Some(mut status) = shown else { continue };
            let lies = listing == Listing::Lying && random.u32(0..3) == 0;
            if lies {
                let other = random.choice(RunState::ALL).unwrap_or(RunState::Unknown);
                status = Status::from(other);
            }
            if listing.loses(run, random) || (!lies && Verdict::of_status(&status).is_some()) {
                continue;
            }
            entries.push(fate.entry(run, status, seen_at, numbers));
        }
        match listing {
            Listing::Shuffled => random.shuffle(&mut entries),
            Listing::Foreign => {
                let other = |number: usize| RunRef::new(&format!("other_{number}")).expect("an ID");
                let running = || Status::from(RunState::Running);
                entries = (0..20)
                    .map(|number| ListEntry::new(other(number), running()))
                    .collect();
            }
            _ => {}
        }
        let word = listing.word();
        if let Some(word) = word {
            *state.faults.entry(word).or_default() += 1;
        }
        // What shows few runs is true all the same.
        if word.is_some() && !matches!(listing, Listing::Foreign | Listing::Third) {
            state.list_trouble = now;
        }
        let more = entries.len() > from + PAGE || listing == Listing::Endless;
        let next = (from + PAGE - 1).to_string();
        let entries: Vec<_> = entries.into_iter().skip(from).take(PAGE).collect();
        state.trace(format!("a list shows {} runs from {from}", entries.len()));
        ListPage {
            entries,
            next: more.then(|| PageRef::new(next)),
            unreadable: 0,
        }
    }

    /// What is wrong with one request, and how long it takes.
    fn trouble(&self, weather: Weather) -> (Ms, Option<Result<(), ApiError>>) {
        let cut_off = self.is_cut_off();
        let state = &mut *self.world.lock();
        let offline = state.now() < state.offline.0;
        let weather = match state.offline.1 {
            _ if cut_off => Weather::Hanging,
            _ if !offline => weather,
            true => Weather::Hanging,
            false => Weather::Down,
        };
        let random = &mut state.random;
        let (takes, pick) = (random.u64(1..400), random.u32(0..12));
        let malformed = || {
            ApiError::Malformed(Malformed::OtherRun {
                found: "run_other".to_owned(),
            })
        };
        let (word, trouble) = match weather {
            Weather::Fine => return (takes, None),
            Weather::Mixed => match pick {
                0 => ("502", Err(status(502, None))),
                1 => ("a hang", Err(ApiError::Timeout)),
                2 => ("no JSON", Err(ApiError::Malformed(Malformed::Empty))),
                3 => ("another run", Err(malformed())),
                4 => ("a page", Err(ApiError::Redirect { status: 302 })),
                5 => ("429", Err(status(429, Some(random.u64(1..30) * SECOND)))),
                6 => (
                    "404",
                    Err(ApiError::NotFound {
                        message: String::new(),
                    }),
                ),
                _ => return (takes, None),
            },
            Weather::Down => ("503", Err(status(503, None))),
            Weather::Hanging => ("a hang", Err(ApiError::Timeout)),
            Weather::Forgetful => (
                "404",
                Err(ApiError::NotFound {
                    message: String::new(),
                }),
            ),
            Weather::Refusing => (
                "401",
                Err(ApiError::Unauthorized {
                    status: 401,
                    message: String::new(),
                }),
            ),
            Weather::Throttling(pause) if pick < 6 => ("429", Err(status(429, Some(pause)))),
            Weather::Throttling(pause) => ("503 with a pause", Err(status(503, Some(pause)))),
            Weather::Garbage => (
                "an answer too large",
                Err(ApiError::Malformed(Malformed::TooLarge { bytes: 64 << 20 })),
            ),
        };
        *state.faults.entry(word).or_default() += 1;
        let takes = if word == "a hang" {
            REQUEST_LIMIT
        } else {
            takes
        };
        (takes, Some(trouble))
    }
}

/// Runs on a page of a list.
pub(crate) const PAGE: usize = 6;

impl Provider for Api {
    type Events = Stream;

    fn list_of(&self, _: &RunRef) -> Option<ListParameters> {
        self.lists.then(ListParameters::new)
    }

    async fn list(&self, _: &ProviderName, request: &ListRequest) -> ListReply {
        self.world.lock().requested("a list");
        let weather = self.world.lock().weather;
        let (takes, trouble) = self.trouble(weather);
        let from = request
            .page
            .as_ref()
            .map_or(0, |page| page.as_str().parse().expect("a number"));
        let (before, listing) = {
            let state = &mut *self.world.lock();
            (state.random.bool(), state.listing)
        };
        let beginnings = self.world.lock().beginnings();
        // The other list, of all runs, stands for polls.
        let discovers = !request.parameters.is_empty();
        let look = || match discovers {
            true => discovery::page(&mut self.world.lock(), request, from),
            false => self.page(from),
        };
        let early = look();
        tokio::time::sleep(Duration::from_millis(takes)).await;
        let failed = match listing {
            Listing::Hanging => {
                self.world.lock().note("a list that hangs", String::new());
                let hangs = if discovers { REQUEST_LIMIT } else { HOUR };
                tokio::time::sleep(Duration::from_millis(hangs)).await;
                Some(ApiError::Timeout)
            }
            Listing::Failing => {
                self.world.lock().note("a list that fails", String::new());
                Some(status(500, None))
            }
            Listing::Torn if from > 0 => {
                let fault = "a list whose later pages fail";
                self.world.lock().note(fault, String::new());
                Some(status(500, None))
            }
            _ => trouble.and_then(Result::err),
        };
        if let Some(error) = failed {
            if let Some(pause) = error.retry_after() {
                let pause = u64::try_from(pause.as_millis()).unwrap_or(0);
                self.world.lock().pause(pause);
            }
            return ListReply::of(Err(error));
        }
        let mut page = if before { early } else { look() };
        if discovers {
            discovery::deliver(&mut self.world.lock(), &mut page, beginnings);
        }
        ListReply {
            pause: self.pause_beside(true),
            ..ListReply::of(Ok(page))
        }
    }

    fn reconnect(&self) {
        self.connected
            .store(self.world.lock().network, Ordering::Relaxed);
    }

    async fn get_run(&self, id: &RunRef) -> Reply {
        self.world.lock().requested(id.as_str());
        let began = self.world.lock().now();
        let mut asking = Asking {
            world: self.world.clone(),
            run: id.clone(),
            began,
            attempt: 0,
            answered: false,
        };
        let weather = self.world.lock().weather;
        let (takes, trouble) = self.trouble(weather);
        // What an answer reports was so when it was requested, or when it is given.
        let before = self.world.lock().random.bool();
        let look = |world: &World| {
            let state = world.lock();
            let now = state.now();
            let fate = state.fates.get(id)?;
            let status = fate.status(now)?;
            let details = fate.details(id, &status, now, state.numbers());
            Some((status, details, fate.try_at(now).number))
        };
        let early = look(&self.world);
        tokio::time::sleep(Duration::from_millis(takes)).await;
        if let Some(Err(error)) = trouble {
            if let Some(pause) = error.retry_after() {
                self.world
                    .lock()
                    .pause(u64::try_from(pause.as_millis()).unwrap_or(0));
            }
            // A pause may come with any answer, also with one that says nothing about the run.
            let answers = error.is_not_found() || matches!(error, ApiError::Malformed(_));
            let pause = self.pause_beside(answers);
            asking.answer(
                if error.is_not_found() {
                    Reported::Missing
                } else {
                    Reported::Failed
                },
                false,
            );
            return Reply {
                pause,
                ..Reply::of(Err(error))
            };
        }
        let pause = self.pause_beside(true);
        let seen = if before { early } else { look(&self.world) };
        let Some((status, details, attempt)) = seen else {
            asking.answer(Reported::Missing, false);
            let error = ApiError::NotFound {
                message: String::new(),
            };
            return Reply {
                pause,
                ..Reply::of(Err(error))
            };
        };
        asking.attempt = attempt;
        asking.answer(
            Verdict::of_status(&status).map_or(Reported::Going, Reported::Ended),
            status == Status::from(RunState::Running),
        );
        Reply {
            pause,
            ..Reply::of(Ok(Observation { status, details }))
        }
    }

    async fn open_events(&self, id: &RunRef, _: Option<&str>) -> Result<Stream, ApiError> {
        self.world.lock().requested("a stream");
        if !self.streams {
            return Err(ApiError::NotFound {
                message: String::new(),
            });
        }
        let weather = self.world.lock().weather;
        let (takes, trouble) = self.trouble(weather);
        tokio::time::sleep(Duration::from_millis(takes)).await;
        if let Some(Err(error)) = trouble {
            // What the refusal of a stream asks for is for the streams alone.
            return Err(error);
        }
        Ok(Stream {
            world: self.world.clone(),
            run: id.clone(),
            lies: self.world.lock().random.u32(0..3) == 0,
        })
    }
}

/// An event stream, which may lie.
pub(crate) struct Stream {
    world: World,
    run: RunRef,
    lies: bool,
}

impl EventStream for Stream {
    async fn next(&mut self) -> Result<Option<StreamItem>, ApiError> {
        let (pick, wait) = {
            let random = &mut self.world.lock().random;
            (random.u32(0..40), random.u64(200..20_000))
        };
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let activity = |kind: &str, hint| {
            Ok(Some(StreamItem::Activity(Activity {
                kind: kind.to_owned(),
                hint,
                is_news: true,
                is_failure: false,
                summary: String::new(),
                data: None,
            })))
        };
        let ended = {
            let state = self.world.lock();
            let now = state.now();
            state
                .fates
                .get(&self.run)
                .and_then(|fate| fate.ends)
                .is_some_and(|(at, _)| now >= at)
        };
        match pick {
            0 => Ok(None),
            1 => Err(ApiError::Timeout),
            2 => std::future::pending().await,
            3 if self.lies => {
                self.world
                    .lock()
                    .note("a stream that lies about an end", String::new());
                activity("run.completed", Some(Hint::Ended))
            }
            4 => activity("run.started", Some(Hint::Started)),
            5 => Ok(Some(StreamItem::Life)),
            _ if ended && !self.lies => activity("run.completed", Some(Hint::Ended)),
            _ => activity("log", None),
        }
    }

    fn last_id(&self) -> Option<&str> {
        None
    }
}

/// A receiver.
pub(crate) struct Receiver {
    pub(crate) world: World,
    pub(crate) name: String,
}

impl Deliver for Receiver {
    async fn send(&self, message: &Message<'_>) -> Result<Sent, SendError> {
        let index = {
            let state = &mut *self.world.lock();
            let attempt = Attempt {
                sink: self.name.clone(),
                delivery: message.delivery.as_str().to_owned(),
                number: message.attempt,
                life: state.life,
                at: state.now(),
                ended: None,
                retry_after: 0,
            };
            state.attempts.push(attempt);
            state.attempts.len() - 1
        };
        let result = self.receive(message).await;
        let state = &mut *self.world.lock();
        let retry_after = result
            .as_ref()
            .err()
            .and_then(|error| error.retry_after)
            .unwrap_or_default();
        let ended = state.now();
        let attempt = &mut state.attempts[index];
        (attempt.ended, attempt.retry_after) = (
            Some(ended),
            u64::try_from(retry_after.as_millis()).unwrap_or(0),
        );
        result
    }
}

impl Receiver {
    async fn receive(&self, message: &Message<'_>) -> Result<Sent, SendError> {
        let error = |detail: &str, retry_after: Option<Ms>, gone| SendError {
            detail: detail.to_owned(),
            retry_after: retry_after.map(Duration::from_millis),
            gone,
            rejected: false,
        };
        let (reception, before, after, busy, blocked) = {
            let state = &mut *self.world.lock();
            let reception = state.receptions[&self.name];
            let random = &mut state.random;
            let (before, after) = (random.u64(1..200), random.u64(1..200));
            (
                reception,
                before,
                after,
                random.u64(SECOND..HOUR),
                random.u64(MINUTE..30 * MINUTE),
            )
        };
        self.world
            .die_here(Doom::BeforeReceipt, "death before a message")
            .await;
        tokio::time::sleep(Duration::from_millis(before)).await;
        match reception {
            Reception::Fine | Reception::Mute => {}
            Reception::Down => {
                self.world
                    .lock()
                    .note("a receiver that fails", String::new());
                return Err(error("500", None, false));
            }
            Reception::Hanging => {
                self.world
                    .lock()
                    .note("a receiver that hangs", String::new());
                tokio::time::sleep(Duration::from_millis(REQUEST_LIMIT)).await;
                return Err(error("no answer in time", None, false));
            }
            Reception::Blocked => {
                self.world
                    .lock()
                    .note("a receiver that blocks for minutes", String::new());
                tokio::time::sleep(Duration::from_millis(blocked)).await;
                return Err(error("no answer in time", None, false));
            }
            Reception::Busy => {
                self.world
                    .lock()
                    .note("a receiver that asks for time", String::new());
                return Err(error("503", Some(busy), false));
            }
            Reception::Gone => {
                let state = &mut *self.world.lock();
                state.note("a receiver that is gone", String::new());
                state.gone.insert(self.name.clone());
                let farewell = (state.now(), state.life, self.name.clone());
                state.farewells.push(farewell);
                return Err(error("410", None, true));
            }
        }
        {
            let state = &mut *self.world.lock();
            let receipt = Receipt {
                sink: self.name.clone(),
                delivery: message.delivery.as_str().to_owned(),
                attempt: message.attempt,
                run: message.event.run_id().cloned(),
                generation: check::generation(message.event),
                event_type: message.event.event_type,
            };
            let about = receipt.run.as_ref().map_or("", RunRef::as_str);
            state.trace(format!(
                "{} gets {} {about}, attempt {}",
                receipt.sink, receipt.event_type, receipt.attempt
            ));
            if let Err(broken) = state
                .books
                .admits(&receipt)
                .and_then(|()| check::whole(state, message.event))
            {
                state.broken(broken);
            }
            state.receipts.push(receipt);
        }
        self.world
            .die_here(Doom::AfterReceipt, "death after a message")
            .await;
        tokio::time::sleep(Duration::from_millis(after)).await;
        if reception == Reception::Mute {
            self.world
                .lock()
                .note("an answer of a receiver that is lost", String::new());
            return Err(error("the answer broke off", None, false));
        }
        Ok(Sent {
            detail: "200".to_owned(),
        })
    }
}

/// The disk.
pub(crate) struct SimulatedDisk {
    pub(crate) world: World,
}

/// How long after a refused write what it held is written again, at the latest.
const WRITTEN_AGAIN: Ms = 5 * SECOND;

impl SimulatedDisk {
    /// How the next transaction goes, and how long it takes before and after its commit.
    fn next(&self) -> (Ms, Ms, Trouble) {
        let state = &mut *self.world.lock();
        let random = &mut state.random;
        let (before, after, coin, pick) = (
            random.u64(0..3_000),
            random.u64(0..1_000),
            random.u32(0..3) == 0,
            random.u32(0..5),
        );
        let any = [
            Trouble::Full,
            Trouble::Tight,
            Trouble::Busy,
            Trouble::ReadOnly,
            Trouble::Failing,
        ][pick as usize];
        match state.platter {
            Platter::Fine => (0, 0, Trouble::None),
            Platter::Slow => (before, after, Trouble::None),
            Platter::Full => (0, 0, Trouble::Full),
            Platter::Tight => (0, 0, Trouble::Tight),
            Platter::Busy => (0, 0, Trouble::Busy),
            Platter::ReadOnly => (0, 0, Trouble::ReadOnly),
            Platter::Failing => (0, 0, Trouble::Failing),
            Platter::Flaky => (0, 0, if coin { any } else { Trouble::None }),
        }
    }

    /// Runs a transaction on a disk in this trouble.
    fn run_in(&self, transaction: Transaction, trouble: Trouble) -> Done {
        let pragma = |connection: &Connection, name: &str, value: u32| {
            let set = connection.query_row(&format!("PRAGMA {name} = {value}"), [], |_| Ok(()));
            // Some answer with the value, others with nothing.
            assert!(
                matches!(set, Ok(()) | Err(rusqlite::Error::QueryReturnedNoRows)),
                "{name}: {set:?}"
            );
        };
        match trouble {
            Trouble::None => transaction.run(),
            Trouble::Full => transaction.reject(),
            Trouble::Failing => {
                let failed = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_WRITE);
                transaction.reject_with(rusqlite::Error::SqliteFailure(failed, None))
            }
            Trouble::Tight => {
                // Fewer than there are is as many as there are.
                pragma(transaction.connection(), "max_page_count", 1);
                let done = transaction.run();
                pragma(done.connection(), "max_page_count", u32::MAX - 1);
                done
            }
            Trouble::ReadOnly => {
                pragma(transaction.connection(), "query_only", 1);
                let done = transaction.run();
                pragma(done.connection(), "query_only", 0);
                done
            }
            Trouble::Busy => {
                pragma(transaction.connection(), "busy_timeout", 0);
                let held = self.world.lock().books.hold();
                let done = transaction.run();
                pragma(done.connection(), "busy_timeout", 5_000);
                drop(held);
                done
            }
        }
    }
}

impl TransactionRunner for SimulatedDisk {
    async fn run(&self, transaction: Transaction) -> Option<Done> {
        let (before, after, trouble) = self.next();
        self.world
            .die_here(Doom::BeforeCommit, "death before a commit")
            .await;
        let (began, peace) = {
            let state = &mut *self.world.lock();
            if let Some(Doom::Panic(left)) = state.doom {
                state.doom = left.checked_sub(1).map(Doom::Panic);
                if left == 0 {
                    state.note("a panic of the writer", String::new());
                    state.writer_failed = true;
                    return None;
                }
            }
            let (now, peace) = (state.now(), state.unrest);
            if before + after > 0 {
                state.disturb(now + before + after);
            }
            if trouble != Trouble::None {
                state.disturb(now + WRITTEN_AGAIN);
            }
            let word = match trouble {
                Trouble::None if before + after > 0 => Some("a slow write"),
                Trouble::None => None,
                Trouble::Full => Some("a write refused at its commit"),
                Trouble::Failing => Some("an I/O error at a commit"),
                Trouble::Tight => Some("no room within a statement"),
                Trouble::Busy => Some("a database that another process holds"),
                Trouble::ReadOnly => Some("a statement refused"),
            };
            if let Some(word) = word {
                *state.faults.entry(word).or_default() += 1;
            }
            (now, peace)
        };
        if before > 0 {
            tokio::time::sleep(Duration::from_millis(before)).await;
        }
        let done = self.run_in(transaction, trouble);
        check::committed(&mut self.world.lock(), began, peace);
        self.world
            .die_here(Doom::AfterCommit, "death after a commit")
            .await;
        if after > 0 {
            tokio::time::sleep(Duration::from_millis(after)).await;
        }
        Some(done)
    }
}
