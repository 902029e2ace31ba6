//! The world around the engine: what really happens to the runs, what the API and the receivers make of it,
//! and a record of all they were asked and told.
//!
//! Times are those of the world: milliseconds since the beginning of the simulation, which go on while the
//! process is dead or the machine sleeps, and which nobody sets back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use runwatch::api::{ApiError, EventStream, Malformed, Reply, RunSource, StreamItem};
use runwatch::notify::{Deliver, Message, SendError, Sent};
use runwatch::run::{Activity, EventType, Hint, Observation, RunDetails, RunId, Status, Verdict};
use runwatch::store::{Disk, Done, Transaction};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::check::Books;

/// Time of the world.
pub(crate) type Ms = u64;

pub(crate) const SECOND: Ms = 1_000;
pub(crate) const MINUTE: Ms = 60 * SECOND;
pub(crate) const HOUR: Ms = 60 * MINUTE;

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
}

impl Fate {
    /// Its status; `None` while the API does not know it.
    fn status(&self, now: Ms) -> Option<Status> {
        if now < self.appears_at {
            return None;
        }
        match self.ends {
            Some((at, verdict)) if now >= at => Some(match verdict {
                Verdict::Succeeded => Status::Succeeded,
                Verdict::Failed => Status::Failed,
                _ => Status::from_api(if self.odd { "cancelled" } else { "canceled" }),
            }),
            _ if now < self.starts_at => Some(Status::Pending),
            _ if self.odd && (now / MINUTE) % 3 == 1 => Some(Status::from_api("SUCCEEDED")),
            _ if self.odd && (now / MINUTE) % 3 == 2 => Some(Status::Pending),
            _ => Some(Status::Running),
        }
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
}

/// How the disk does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Platter {
    Fine,
    Slow,
    Full,
    /// Takes some transactions and refuses others.
    Flaky,
}

/// At which point the process dies, counted from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doom {
    BeforeCommit(u32),
    AfterCommit(u32),
    BeforeReceipt(u32),
    AfterReceipt(u32),
}

/// What came of a request about a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
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
    pub(crate) at: Ms,
    pub(crate) life: u32,
    pub(crate) said: Said,
}

/// What a receiver got.
#[derive(Debug, Clone)]
pub(crate) struct Receipt {
    pub(crate) at: Ms,
    pub(crate) life: u32,
    pub(crate) sink: String,
    pub(crate) delivery: String,
    pub(crate) attempt: u32,
    pub(crate) run: Option<RunId>,
    pub(crate) event_type: EventType,
}

/// Everything that happened, and how things are.
pub(crate) struct State {
    pub(crate) random: fastrand::Rng,
    pub(crate) fates: BTreeMap<RunId, Fate>,
    pub(crate) weather: Weather,
    pub(crate) receptions: BTreeMap<String, Reception>,
    pub(crate) platter: Platter,
    pub(crate) doom: Option<Doom>,
    pub(crate) answers: BTreeMap<RunId, Vec<Answered>>,
    /// When requests of any kind began.
    pub(crate) requests: Vec<Ms>,
    /// From when until when this process was asked not to ask.
    pub(crate) pauses: Vec<(Ms, Ms)>,
    /// When usable answers came.
    pub(crate) usable: Vec<Ms>,
    pub(crate) receipts: Vec<Receipt>,
    pub(crate) gone: BTreeSet<String>,
    /// When writes were refused.
    pub(crate) refusals: Vec<Ms>,
    /// Until when the process had no peace: it began to live, a write was slow or refused, the machine slept,
    /// the clock was set.
    pub(crate) unrest: Ms,
    /// Until when the API did not answer everything as it should, as far as it was asked.
    pub(crate) api_trouble: Ms,
    pub(crate) faults: BTreeMap<&'static str, u64>,
    pub(crate) life: u32,
    pub(crate) alive: bool,
    began: Ms,
    since: Option<Instant>,
    slept: Ms,
    pub(crate) books: Books,
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
            receptions: sinks.iter().map(|sink| ((*sink).to_owned(), Reception::Fine)).collect(),
            platter: Platter::Fine,
            doom: None,
            answers: BTreeMap::new(),
            requests: Vec::new(),
            pauses: Vec::new(),
            usable: Vec::new(),
            receipts: Vec::new(),
            gone: BTreeSet::new(),
            refusals: Vec::new(),
            unrest: 0,
            api_trouble: 0,
            faults: BTreeMap::new(),
            life: 0,
            alive: false,
            began: 0,
            since: None,
            slept: 0,
            books: Books::new(database),
            broken: None,
            trace: Vec::new(),
            digest: 0xcbf2_9ce4_8422_2325,
        };
        Self { state: Arc::new(Mutex::new(state)), death: Arc::new(Notify::new()) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The process dies here, should this be the point. Everybody stands still then.
    async fn die_here(&self, doom: fn(u32) -> Doom, name: &'static str) {
        let dies = {
            let mut state = self.lock();
            let left = match state.doom {
                Some(Doom::BeforeCommit(left) | Doom::AfterCommit(left)) => left,
                Some(Doom::BeforeReceipt(left) | Doom::AfterReceipt(left)) => left,
                None => return,
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
        let awake = self.since.map_or(0, |since| u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX));
        self.began + awake + self.slept
    }

    /// A process begins its life, on timers of its own.
    pub(crate) fn begin_life(&mut self) {
        self.life += 1;
        self.alive = true;
        self.since = Some(Instant::now());
        // What a process is asked, the next one is not.
        self.pauses.clear();
        self.doom = None;
        self.unrest = self.now();
    }

    /// The process is dead, and its timers with it.
    pub(crate) fn end_life(&mut self) {
        self.trace("the process is dead".to_owned());
        (self.began, self.slept, self.since, self.alive) = (self.now(), 0, None, false);
    }

    /// Lets time pass while there is no process.
    pub(crate) fn pass(&mut self, down: Ms) {
        self.began += down;
    }

    pub(crate) fn sleep(&mut self, slept: Ms) {
        self.slept += slept;
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

    /// Notes that a promise is broken, the first time.
    pub(crate) fn broken(&mut self, what: String) {
        self.trace(format!("BROKEN: {what}"));
        self.broken.get_or_insert(what);
    }

    fn asked(&mut self, what: &str) {
        let now = self.now();
        self.requests.push(now);
        if let Some((from, until)) = self.pauses.iter().find(|(from, until)| *from < now && now < *until) {
            let (from, until) = (from / SECOND, until / SECOND);
            self.broken(format!("{what} was asked for in the pause from {from} s to {until} s"));
        }
    }

    fn pause(&mut self, pause: Ms) {
        let now = self.now();
        self.api_trouble = self.api_trouble.max(now + pause);
        self.pauses.push((now, now + pause));
    }
}

/// The API.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) world: World,
    pub(crate) streams: bool,
}

/// Notes that nobody waited for an answer.
struct Asking {
    world: World,
    run: RunId,
    answered: bool,
}

impl Asking {
    fn answer(&mut self, said: Said) {
        self.answered = true;
        let mut state = self.world.lock();
        let at = state.now();
        if matches!(said, Said::Going | Said::Ended(_) | Said::Missing) {
            state.usable.push(at);
        }
        // In which order a dead process lets go of what it was at, nothing decides.
        if said != Said::Orphaned {
            state.trace(format!("{} is {said:?}", self.run));
        }
        let life = state.life;
        if said == Said::Failed || said == Said::Abandoned {
            state.api_trouble = state.api_trouble.max(at);
        }
        state.answers.entry(self.run.clone()).or_default().push(Answered { at, life, said });
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if !self.answered {
            let alive = self.world.lock().alive;
            self.answer(if alive { Said::Abandoned } else { Said::Orphaned });
        }
    }
}

fn status(status: u16, retry_after: Option<Ms>) -> ApiError {
    ApiError::Status { status, message: String::new(), retry_after: retry_after.map(Duration::from_millis) }
}

impl Api {
    /// What is wrong with one request, and how long it takes.
    fn trouble(&self, weather: Weather) -> (Ms, Option<Result<(), ApiError>>) {
        let state = &mut *self.world.lock();
        let random = &mut state.random;
        let (takes, pick) = (random.u64(1..400), random.u32(0..12));
        let malformed = || ApiError::Malformed(Malformed::OtherRun { found: "run_other".to_owned() });
        let (word, trouble) = match weather {
            Weather::Fine => return (takes, None),
            Weather::Mixed => match pick {
                0 => ("502", Err(status(502, None))),
                1 => ("a hang", Err(ApiError::Timeout)),
                2 => ("no JSON", Err(ApiError::Malformed(Malformed::Empty))),
                3 => ("another run", Err(malformed())),
                4 => ("a page", Err(ApiError::Redirect { status: 302 })),
                5 => ("429", Err(status(429, Some(random.u64(1..30) * SECOND)))),
                6 => ("404", Err(ApiError::NotFound { message: String::new() })),
                _ => return (takes, None),
            },
            Weather::Down => ("503", Err(status(503, None))),
            Weather::Hanging => ("a hang", Err(ApiError::Timeout)),
            Weather::Forgetful => ("404", Err(ApiError::NotFound { message: String::new() })),
            Weather::Refusing => ("401", Err(ApiError::Unauthorized { status: 401, message: String::new() })),
            Weather::Throttling(pause) if pick < 6 => ("429", Err(status(429, Some(pause)))),
            Weather::Throttling(pause) => ("503 with a pause", Err(status(503, Some(pause)))),
            Weather::Garbage => {
                ("an answer too large", Err(ApiError::Malformed(Malformed::TooLarge { bytes: 64 << 20 })))
            }
        };
        *state.faults.entry(word).or_default() += 1;
        let takes = if word == "a hang" { REQUEST_LIMIT } else { takes };
        (takes, Some(trouble))
    }
}

impl RunSource for Api {
    type Events = Stream;

    async fn get_run(&self, id: &RunId) -> Result<Reply, ApiError> {
        self.world.lock().asked(id.as_str());
        let mut asking = Asking { world: self.world.clone(), run: id.clone(), answered: false };
        let weather = self.world.lock().weather;
        let (takes, trouble) = self.trouble(weather);
        // What an answer says was so when it was asked for, or when it is given.
        let before = self.world.lock().random.bool();
        let look = |world: &World| {
            let state = world.lock();
            state.fates.get(id).and_then(|fate| fate.status(state.now()))
        };
        let early = look(&self.world);
        tokio::time::sleep(Duration::from_millis(takes)).await;
        if let Some(Err(error)) = trouble {
            if let Some(pause) = error.retry_after() {
                self.world.lock().pause(u64::try_from(pause.as_millis()).unwrap_or(0));
            }
            asking.answer(if error.is_not_found() { Said::Missing } else { Said::Failed });
            return Err(error);
        }
        let Some(status) = (if before { early } else { look(&self.world) }) else {
            asking.answer(Said::Missing);
            return Err(ApiError::NotFound { message: String::new() });
        };
        asking.answer(Verdict::of_status(&status).map_or(Said::Going, Said::Ended));
        let used_up = self.world.lock().random.u32(0..400) == 0;
        let pause = used_up.then(|| Duration::from_secs(self.world.lock().random.u64(1..60)));
        if let Some(pause) = pause {
            self.world.lock().note("a used-up limit", String::new());
            self.world.lock().pause(u64::try_from(pause.as_millis()).unwrap_or(0));
        }
        Ok(Reply { observation: Observation { status, details: RunDetails::default() }, pause })
    }

    async fn open_events(&self, id: &RunId, _: Option<&str>) -> Result<Stream, ApiError> {
        self.world.lock().asked("a stream");
        if !self.streams {
            return Err(ApiError::NotFound { message: String::new() });
        }
        let weather = self.world.lock().weather;
        let (takes, trouble) = self.trouble(weather);
        tokio::time::sleep(Duration::from_millis(takes)).await;
        if let Some(Err(error)) = trouble {
            // A limit on requests is one for polls too; 503 may be the trouble of the streams alone.
            if let ApiError::Status { status: 429, retry_after: Some(pause), .. } = &error {
                self.world.lock().pause(u64::try_from(pause.as_millis()).unwrap_or(0));
            }
            return Err(error);
        }
        Ok(Stream { world: self.world.clone(), run: id.clone(), lies: self.world.lock().random.u32(0..3) == 0 })
    }
}

/// An event stream, which may lie.
pub(crate) struct Stream {
    world: World,
    run: RunId,
    lies: bool,
}

impl EventStream for Stream {
    async fn next(&mut self) -> Result<Option<StreamItem>, ApiError> {
        let (pick, wait) = {
            let random = &mut self.world.lock().random;
            (random.u32(0..40), random.u64(200..20_000))
        };
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let activity = |kind, hint| Ok(Some(StreamItem::Activity(Activity { kind, hint, data: None })));
        let ended = {
            let state = self.world.lock();
            let now = state.now();
            state.fates.get(&self.run).and_then(|fate| fate.ends).is_some_and(|(at, _)| now >= at)
        };
        match pick {
            0 => Ok(None),
            1 => Err(ApiError::Timeout),
            2 => std::future::pending().await,
            3 if self.lies => {
                self.world.lock().note("a stream that lies about an end", String::new());
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
        let error = |detail: &str, retry_after: Option<Ms>, gone| SendError {
            detail: detail.to_owned(),
            retry_after: retry_after.map(Duration::from_millis),
            gone,
        };
        let (reception, before, after) = {
            let state = &mut *self.world.lock();
            let reception = state.receptions[&self.name];
            (reception, state.random.u64(1..200), state.random.u64(1..200))
        };
        self.world.die_here(Doom::BeforeReceipt, "death before a message").await;
        tokio::time::sleep(Duration::from_millis(before)).await;
        match reception {
            Reception::Fine | Reception::Mute => {}
            Reception::Down => {
                self.world.lock().note("a receiver that fails", String::new());
                return Err(error("500", None, false));
            }
            Reception::Hanging => {
                self.world.lock().note("a receiver that hangs", String::new());
                tokio::time::sleep(Duration::from_millis(REQUEST_LIMIT)).await;
                return Err(error("no answer in time", None, false));
            }
            Reception::Busy => {
                self.world.lock().note("a receiver that asks for time", String::new());
                return Err(error("503", Some(HOUR), false));
            }
            Reception::Gone => {
                let state = &mut *self.world.lock();
                state.note("a receiver that is gone", String::new());
                state.gone.insert(self.name.clone());
                return Err(error("410", None, true));
            }
        }
        {
            let state = &mut *self.world.lock();
            let receipt = Receipt {
                at: state.now(),
                life: state.life,
                sink: self.name.clone(),
                delivery: message.delivery.as_str().to_owned(),
                attempt: message.attempt,
                run: message.event.run_id().cloned(),
                event_type: message.event.event_type,
            };
            let about = receipt.run.as_ref().map_or("", RunId::as_str);
            state.trace(format!("{} gets {} {about}, attempt {}", receipt.sink, receipt.event_type, receipt.attempt));
            if let Err(broken) = state.books.admits(&receipt) {
                state.broken(broken);
            }
            state.receipts.push(receipt);
        }
        self.world.die_here(Doom::AfterReceipt, "death after a message").await;
        tokio::time::sleep(Duration::from_millis(after)).await;
        if reception == Reception::Mute {
            self.world.lock().note("an answer of a receiver that is lost", String::new());
            return Err(error("the answer broke off", None, false));
        }
        Ok(Sent { detail: "200".to_owned() })
    }
}

/// The disk.
pub(crate) struct SimulatedDisk {
    pub(crate) world: World,
}

impl Disk for SimulatedDisk {
    async fn run(&self, transaction: Transaction) -> Option<Done> {
        let (before, after, refused) = {
            let state = &mut *self.world.lock();
            let random = &mut state.random;
            let (before, after, coin) = (random.u64(0..3_000), random.u64(0..1_000), random.u32(0..3) == 0);
            match state.platter {
                Platter::Fine => (0, 0, false),
                Platter::Slow => (before, after, false),
                Platter::Full => (0, 0, true),
                Platter::Flaky => (0, 0, coin),
            }
        };
        self.world.die_here(Doom::BeforeCommit, "death before a commit").await;
        if before + after > 0 || refused {
            let state = &mut *self.world.lock();
            state.unrest = state.now() + before + after;
            *state.faults.entry(if refused { "a write refused" } else { "a slow write" }).or_default() += 1;
        }
        if before > 0 {
            tokio::time::sleep(Duration::from_millis(before)).await;
        }
        if refused {
            let state = &mut *self.world.lock();
            let now = state.now();
            state.refusals.push(now);
            return Some(transaction.refuse());
        }
        let done = transaction.run();
        self.world.die_here(Doom::AfterCommit, "death after a commit").await;
        if after > 0 {
            tokio::time::sleep(Duration::from_millis(after)).await;
        }
        Some(done)
    }
}
