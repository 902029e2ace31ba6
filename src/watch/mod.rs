//! The scheduler: decides when each watched run is asked for, and acts on what the answers lead to.
//!
//! One task owns all watches. Each watch has a time at which it is due; the earliest due goes first, so
//! that a short budget is shared fairly. A poll is a short task of its own; its answer comes back to
//! the owner, which takes the step ([`Progress::step`]) and has it stored before it counts. A step that
//! cannot be stored is not taken: the run is asked for again and the step is taken then.
//!
//! ```text
//! commands ──► owner ──► poll (≤ max_in_flight) ──► step ──► store ──► owner
//!                ▲  due times, budget, upstream state                    │
//!                ├───────────────────────────────────────────────────────┘
//!                └── hints ◄── event streams (≤ max_streams)
//! ```

mod budget;
#[doc(hidden)]
pub mod hot;
mod streams;
mod table;
mod upstream;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::budget::Budget;
pub use self::streams::Followed;
use self::streams::{Cause, Ended, News, Streams};
use self::table::{Entry, Key, Phase, Table};
use self::upstream::{REFUSED_PROBE, Upstream};
pub use self::upstream::{Trouble, UpstreamView};
use crate::api::{ApiError, Reply, RunSource};
use crate::backoff::Growth;
use crate::clock::{Clock, Jump, Reading};
use crate::crash;
use crate::metrics::Metrics;
use crate::run::{Answer, Event, FoundBy, Limits, Progress, Routes, RunDetails, RunId, Status, Step, Watch};
use crate::store::{Added, PollFailure, Removed, Store, StoreError, Stored, Told};
use crate::text::{one_line, with_causes};

/// What the scheduler is held to.
#[derive(Debug, Clone)]
pub struct Policy {
    /// How the interval of a watch grows.
    pub growth: Growth,
    /// Most requests in any 60 seconds, for all watches together.
    pub requests_per_minute: u32,
    /// Most polls under way at once, 1 or more.
    pub max_in_flight: usize,
    /// Most event streams open at once; 0 is none.
    pub max_streams: usize,
    /// What leads to which verdict.
    pub limits: Limits,
    /// Which sinks are told of what.
    pub routes: Routes,
}

/// How long past its deadline a watch waits for the answer of its last poll.
const LAST_POLL_LIMIT: Duration = Duration::from_secs(5);

/// How long after a failed write the step is tried again, with a fresh poll.
const STORE_RETRY: Duration = Duration::from_secs(5);

/// Most unknown status texts that are warned about, so that an API that makes up ever new ones fills
/// neither memory nor the log; and how much of one is shown, in characters.
const MAX_WARNED: usize = 100;
const STATUS_CHARS: usize = 200;

/// How often the clocks are compared while there is something to watch: how soon after waking up from
/// a suspend runs are asked for.
const CLOCK_CHECK: Duration = Duration::from_secs(1);

/// How far apart the first polls of watches are that are taken up together, unless there are so many
/// that the last would have to wait longer than the longest interval.
const SPREAD: Duration = Duration::from_millis(20);

/// How many polls may go out before a stream that could be opened has its turn: where polls take up the
/// whole budget, a stream is worth more than the one request that it costs.
const POLLS_PER_STREAM: u32 = 4;

/// Commands waiting for the owner. Senders wait when it is full.
const COMMANDS: usize = 256;

/// Wall-clock times are whole milliseconds: a timer for one is set this much later, so that it has
/// come when the timer fires.
const ROUNDING: Duration = Duration::from_millis(1);

/// A watch as it stands, for showing.
#[derive(Debug, Clone)]
pub struct WatchView {
    /// The run.
    pub run_id: RunId,
    /// The status last seen.
    pub status: Option<Status>,
    /// How many polls were made.
    pub polls: u64,
    /// Since when every answer was 404.
    pub missing_since: Option<Timestamp>,
    /// Whether a poll is under way.
    pub polling: bool,
    /// When it is due next.
    pub next_poll_at: Timestamp,
    /// The last poll that failed.
    pub last_error: Option<PollFailure>,
}

enum Command<S> {
    Add { watch: Box<Watch>, origin: AddedBy, reply: oneshot::Sender<Result<Added, StoreError>> },
    Remove { run_id: RunId, reply: oneshot::Sender<Result<Removed, StoreError>> },
    View { only: Option<Vec<RunId>>, reply: oneshot::Sender<Vec<WatchView>> },
    Reload { source: S, policy: Box<Policy>, reply: oneshot::Sender<()> },
    Ping { reply: oneshot::Sender<()> },
}

/// Who asks for a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddedBy {
    /// A person or a program.
    Request,
    /// The configuration: it is added once, and not again after its end.
    Configuration,
}

/// A handle to the scheduler; clones share it.
#[derive(Debug)]
pub struct Watches<S> {
    commands: mpsc::Sender<Command<S>>,
    upstream: watch::Receiver<UpstreamView>,
    followed: broadcast::Sender<Arc<Followed>>,
}

impl<S> Clone for Watches<S> {
    fn clone(&self) -> Self {
        let Self { commands, upstream, followed } = self;
        Self { commands: commands.clone(), upstream: upstream.clone(), followed: followed.clone() }
    }
}

impl<S: RunSource> Watches<S> {
    /// Stores a watch and begins to follow it; one of the same run that is there already stays as it
    /// is. Cancel-safe: once sent, it is done whether or not anyone waits.
    ///
    /// # Errors
    /// When the store refuses, or the scheduler has ended.
    pub async fn add(&self, watch: Watch, origin: AddedBy) -> Result<Added, StoreError> {
        let watch = Box::new(watch);
        self.ask(|reply| Command::Add { watch, origin, reply }).await?
    }

    /// Deletes a watch and ceases to follow it. Cancel-safe as [`Watches::add`].
    ///
    /// # Errors
    /// As [`Store::remove_watch`], and when the scheduler has ended.
    pub async fn remove(&self, run_id: RunId) -> Result<Removed, StoreError> {
        self.ask(|reply| Command::Remove { run_id, reply }).await?
    }

    /// The active watches as they stand: all in the order of adding, or those of these runs.
    ///
    /// # Errors
    /// When the scheduler has ended.
    pub async fn view(&self, only: Option<Vec<RunId>>) -> Result<Vec<WatchView>, StoreError> {
        self.ask(|reply| Command::View { only, reply }).await
    }

    /// Has the scheduler ask `source` from here on, and hold to `policy`. No watch is lost.
    ///
    /// # Errors
    /// When the scheduler has ended.
    pub async fn reload(&self, source: S, policy: Policy) -> Result<(), StoreError> {
        let policy = Box::new(policy);
        self.ask(|reply| Command::Reload { source, policy, reply }).await
    }

    /// Comes back once the scheduler has seen to everything it was asked before: it makes progress.
    ///
    /// # Errors
    /// When the scheduler has ended.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.ask(|reply| Command::Ping { reply }).await
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command<S>) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_closed| StoreError::Closed)?;
        answer.await.map_err(|_closed| StoreError::Closed)
    }

    /// What the runs with an open event stream are doing, from now on. A receiver that lags behind misses
    /// some, and is told how many.
    pub fn followed(&self) -> broadcast::Receiver<Arc<Followed>> {
        self.followed.subscribe()
    }

    /// The state of the API, as it changes.
    pub fn upstream(&self) -> watch::Receiver<UpstreamView> {
        self.upstream.clone()
    }
}

struct Polled {
    key: Key,
    began: Instant,
    answer: Result<Reply, PollError>,
}

enum PollError {
    Api(ApiError),
    PastDeadline,
}

enum Done {
    Added {
        watch: Box<Watch>,
        reply: oneshot::Sender<Result<Added, StoreError>>,
        result: Result<Added, StoreError>,
        /// How far the wall clock had been set in all when it was asked for.
        stepped: SignedDuration,
    },
    /// `keys` are those of the entries that were there when it was asked for.
    Removed {
        keys: Vec<Key>,
        reply: oneshot::Sender<Result<Removed, StoreError>>,
        result: Result<Removed, StoreError>,
    },
    Step {
        key: Key,
        step: Box<Step>,
        /// When it was taken.
        at: Timestamp,
        result: Result<(), StoreError>,
        /// As with [`Done::Added`].
        stepped: SignedDuration,
    },
    /// What is stored of a run was read, for the step that `answer` leads to.
    Recalled {
        key: Key,
        answer: Answer,
        result: Result<Option<RunDetails>, StoreError>,
    },
    Told {
        event: Box<Event>,
        result: Result<(), StoreError>,
    },
    /// The marks were moved, after the clock was set by `milliseconds`.
    Moved {
        milliseconds: i64,
        result: Result<(), StoreError>,
    },
}

/// The owner of all watches. [`Scheduler::run`] is its task.
pub struct Scheduler<S> {
    source: Arc<S>,
    store: Store,
    clock: Clock,
    policy: Policy,
    random: fastrand::Rng,
    table: Table,
    budget: Budget,
    upstream: Upstream,
    streams: Streams,
    polls_since_stream: u32,
    /// Earlier than any due time: who is due then goes first.
    first_of_all: Instant,
    polls: JoinSet<Polled>,
    stores: JoinSet<Done>,
    commands: mpsc::Receiver<Command<S>>,
    view: watch::Sender<UpstreamView>,
    reading: Reading,
    metrics: Metrics,
    /// Since when the time in trouble is not counted yet.
    counted_until: Instant,
    /// Unknown status texts that were warned about, up to [`MAX_WARNED`].
    warned: HashSet<String>,
    /// How far the wall clock was set, in all.
    stepped: SignedDuration,
    /// What the store refused and asking again would not bring back: events about the API; ends of runs, which
    /// the API may not be there to tell again; and how far the wall clock was set, in milliseconds, where not
    /// all marks are known to have moved with it.
    untold: Vec<Event>,
    unstored: Vec<(Key, Box<Step>, Timestamp)>,
    unmoved: Option<i64>,
    /// When that is stored again.
    store_again_at: Option<Instant>,
}

impl<S: RunSource> Scheduler<S> {
    /// A scheduler without watches; those of the store are taken up with [`Scheduler::resume`]. `seed` decides
    /// the jitter.
    pub fn new(
        source: S,
        store: Store,
        clock: Clock,
        policy: Policy,
        metrics: Metrics,
        seed: u64,
    ) -> (Self, Watches<S>) {
        let (sender, commands) = mpsc::channel(COMMANDS);
        let (view, upstream) = watch::channel(UpstreamView::default());
        let (now, reading) = (Instant::now(), clock.read());
        let scheduler = Self {
            source: Arc::new(source),
            store,
            clock,
            random: fastrand::Rng::with_seed(seed),
            table: Table::new(now),
            budget: Budget::new(policy.requests_per_minute, now),
            upstream: Upstream::new(now),
            streams: Streams::new(policy.max_streams),
            polls_since_stream: 0,
            first_of_all: now,
            policy,
            polls: JoinSet::new(),
            stores: JoinSet::new(),
            commands,
            view,
            reading,
            metrics,
            counted_until: now,
            warned: HashSet::new(),
            stepped: SignedDuration::ZERO,
            untold: Vec::new(),
            unstored: Vec::new(),
            unmoved: None,
            store_again_at: None,
        };
        let followed = scheduler.streams.followed();
        (scheduler, Watches { commands: sender, upstream, followed })
    }

    /// Takes up unfinished watches of the store, the oldest first, before it runs. They are asked for one after
    /// the other, so that all `of` of them have their turn within the longest interval.
    pub fn resume(&mut self, stored: Vec<Stored>, of: u64) {
        let now = Instant::now();
        let many = u32::try_from(of.max(1)).unwrap_or(u32::MAX);
        let gap = SPREAD.min(self.policy.growth.max / many);
        for stored in stored {
            let before = u32::try_from(self.table.ever()).unwrap_or(u32::MAX);
            let waited = Duration::try_from(self.reading.wall.duration_since(stored.changed_at));
            let waited = waited.unwrap_or_default();
            self.take_up(stored.watch, stored.progress, waited, now, now + gap * before);
        }
    }

    /// Takes note that there may have been a process before, up to now: its requests count in the budget.
    pub fn succeed_another(&mut self) {
        self.budget.use_up(Instant::now());
    }

    /// Goes on where the process before left off that told `incident`, the newest event about the API: what was
    /// told is not told again, and that it is over will be.
    #[must_use]
    pub fn remembering(mut self, incident: Option<&Event>) -> Self {
        if let Some(incident) = incident {
            self.upstream.remember(incident);
        }
        self
    }

    /// Serves until `stop` is cancelled. Polls under way are dropped then; what is being stored is
    /// waited for.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let now = self.look_at_clock();
            self.expire(now);
            self.dispatch(now);
            self.open_streams(now);
            self.publish(now);
            let wake_at = self.wake_at(now);
            // Every arm is cancel-safe: receiving, joining a set and sleeping lose nothing when dropped.
            tokio::select! {
                () = stop.cancelled() => break,
                Some(polled) = self.polls.join_next() => {
                    if let Some(polled) = finished(polled) {
                        self.polled(polled);
                    }
                }
                Some(done) = self.stores.join_next() => {
                    if let Some(done) = finished(done) {
                        self.stored(done);
                    }
                }
                Some(command) = self.commands.recv() => self.command(command),
                news = self.streams.news() => self.heard(news),
                () = sleep_until(wake_at) => {}
            }
        }
        self.polls.abort_all();
        self.commands.close();
        while let Some(done) = self.stores.join_next().await {
            if let Some(done) = finished(done) {
                self.stored(done);
            }
        }
    }

    fn command(&mut self, command: Command<S>) {
        match command {
            Command::Add { watch, origin, reply } => {
                // Its deadline is one of the clock as it is now.
                self.look_at_clock();
                let (store, stepped) = (self.store.clone(), self.stepped);
                self.store_in_order(async move {
                    let stored = Watch::clone(&watch);
                    let result = match origin {
                        AddedBy::Request => store.add_watch(stored).await,
                        AddedBy::Configuration => store.add_configured_watch(stored).await,
                    };
                    Done::Added { watch, reply, result, stepped }
                });
            }
            Command::Remove { run_id, reply } => {
                let (store, keys) = (self.store.clone(), self.table.keys_of(&run_id));
                self.store_in_order(async move {
                    let result = store.remove_watch(run_id).await;
                    Done::Removed { keys, reply, result }
                });
            }
            Command::View { only, reply } => {
                let (now, wall) = (Instant::now(), self.clock.now());
                let keys = match only {
                    Some(run_ids) => run_ids.iter().flat_map(|run_id| self.table.keys_of(run_id)).collect(),
                    None => self.table.keys(),
                };
                let views = keys.iter().filter_map(|key| Some(self.table.get(*key)?.view(now, wall))).collect();
                // Whoever asked may have left.
                drop(reply.send(views));
            }
            Command::Reload { source, policy, reply } => {
                self.reload(source, *policy);
                let _unheard = reply.send(());
            }
            Command::Ping { reply } => {
                let _unheard = reply.send(());
            }
        }
    }

    /// Has something stored. It takes its place in the store's queue now: what is stored later comes later.
    fn store_in_order(&mut self, work: impl Future<Output = Done> + Send + 'static) {
        let mut work = Box::pin(work);
        match work.as_mut().now_or_never() {
            Some(done) => self.stores.spawn(std::future::ready(done)),
            None => self.stores.spawn(work),
        };
    }

    /// Asks another source from here on and holds to another policy. Polls under way are not called
    /// back; no watch waits longer than the new longest interval.
    fn reload(&mut self, source: S, policy: Policy) {
        let now = Instant::now();
        self.source = Arc::new(source);
        self.budget = self.budget.changed_to(policy.requests_per_minute, now);
        self.upstream.reloaded(now);
        self.streams.renew(policy.max_streams);
        self.policy = policy;
        let latest = now + self.policy.growth.max;
        for key in self.table.keys() {
            let Some(entry) = self.table.get(key) else { continue };
            if entry.phase == Phase::Waiting && (entry.due > latest || entry.refused) {
                let due = if entry.refused { now } else { latest };
                self.table.queue(key, due);
            }
        }
    }

    /// Begins to follow a watch that is stored, with the first poll at `due`, `waited` after its status last
    /// changed.
    fn take_up(&mut self, watch: Watch, progress: Progress, waited: Duration, now: Instant, due: Instant) {
        let deadline = instant_of(watch.deadline_at, self.reading.wall, now);
        let due = due.min(deadline);
        self.table.insert(Entry {
            watch,
            progress,
            phase: Phase::Waiting,
            interval: Some(waited).filter(|waited| !waited.is_zero()).map(|waited| self.policy.growth.after(waited)),
            due,
            deadline,
            decides_at: None,
            changed_at: now.checked_sub(waited).unwrap_or(now),
            polled_at: None,
            hinted: false,
            asked_on_hint: false,
            refused: false,
            last_error: None,
        });
    }

    /// Reads the clocks, and sets right what a sleep or a step of the wall clock made wrong.
    fn look_at_clock(&mut self) -> Instant {
        let now = Instant::now();
        let reading = self.clock.read();
        let jump = reading.jump_since(&self.reading);
        self.reading = reading;
        if let Some(jump) = jump {
            self.jumped(jump, now);
        }
        now
    }

    /// After a sleep or a step of the clock every watch is due at once; the budget prevents a burst.
    /// A step moves the marks of all watches with it: it is no evidence that time has passed.
    fn jumped(&mut self, jump: Jump, now: Instant) {
        tracing::info!(slept = ?jump.slept, stepped = %jump.stepped, "the clock jumped; asking for every run again");
        self.upstream.slept(jump.slept);
        if !jump.slept.is_zero() {
            // The connections of the time before are most likely dead.
            self.streams.renew(self.policy.max_streams);
        }
        let shift = |at: Timestamp| at.saturating_add(jump.stepped).unwrap_or(at);
        for key in self.table.keys() {
            let Some(entry) = self.table.get_mut(key) else { continue };
            entry.watch.deadline_at = shift(entry.watch.deadline_at);
            // Where the clock cannot be trusted, the grace begins anew.
            if !jump.stepped.is_zero() {
                entry.progress.missing_since = entry.progress.missing_since.map(|_| self.reading.wall);
            }
            let deadline = instant_of(entry.watch.deadline_at, self.reading.wall, now);
            let (waits, due) = (entry.phase == Phase::Waiting, entry.due.min(now));
            self.table.set_deadline(key, deadline);
            if waits {
                self.table.queue(key, due);
            }
        }
        if !jump.stepped.is_zero() {
            self.stepped += jump.stepped;
            self.move_marks(i64::try_from(jump.stepped.as_millis()).unwrap_or(0));
        }
    }

    /// Has the marks stored after the wall clock was set by `milliseconds`: deadlines as they are here, so that
    /// it does no harm to do so twice.
    fn move_marks(&mut self, milliseconds: i64) {
        let milliseconds = milliseconds.saturating_add(self.unmoved.take().unwrap_or(0));
        let entries = self.table.keys().into_iter().filter_map(|key| self.table.get(key));
        let deadlines = entries.map(|entry| (entry.watch.run_id.clone(), entry.watch.deadline_at)).collect();
        let (store, now) = (self.store.clone(), self.reading.wall);
        self.store_in_order(async move {
            Done::Moved { milliseconds, result: store.move_marks(deadlines, milliseconds, now).await }
        });
    }

    /// Deals with watches whose deadline has come. Each gets a last poll; where the API may not be
    /// asked now, it ends without.
    fn expire(&mut self, now: Instant) {
        for key in self.table.expire(now) {
            // Its last poll goes ahead of others, that may be put off.
            if self.table.get(key).is_some_and(|entry| entry.phase == Phase::Waiting) {
                self.table.queue(key, self.first_of_all);
            }
        }
        if self.upstream.trouble().is_none() || self.table.expired().next().is_none() {
            return;
        }
        let failing = self.upstream.trouble() == Some(Trouble::Failing);
        let silent = self.upstream.silent_for(self.reading.wall) > self.policy.growth.max;
        let may_end = |entry: &Entry| {
            let asked_in_vain = !failing || self.upstream.failed_since(entry.deadline);
            let shut = self.upstream.opens_at().is_some_and(|opens| opens > now);
            // One that is due later waits for a store that failed.
            entry.phase == Phase::Waiting && shut && asked_in_vain && entry.due <= now
        };
        let ending: Vec<Key> = self.table.expired().filter(|(_, entry)| may_end(entry)).map(|(key, _)| key).collect();
        for key in ending {
            self.take_step(key, Answer::NotAsked { silent });
        }
        if self.table.expired().any(|(_, entry)| entry.phase == Phase::Waiting) {
            self.upstream.hurry();
        }
    }

    /// Sends polls for watches that are due, the longest due first, as far as all limits allow.
    fn dispatch(&mut self, now: Instant) {
        while let Some((due, key)) = self.table.first_due() {
            let in_flight = self.polls.len();
            if due > now || in_flight >= self.policy.max_in_flight || !self.upstream.admits(now, in_flight) {
                return;
            }
            if let Some(later) = self.postponed(key, now) {
                self.table.queue(key, later);
                continue;
            }
            if self.polls_since_stream >= POLLS_PER_STREAM && self.table.get(key).is_some_and(|entry| !entry.hinted) {
                self.open_stream(now);
            }
            if !self.budget.try_take(now) {
                return;
            }
            self.polls_since_stream = self.polls_since_stream.saturating_add(1);
            let entry = self.table.unqueue(key);
            entry.phase = Phase::Polling;
            entry.polled_at = Some(now);
            entry.asked_on_hint = std::mem::take(&mut entry.hinted);
            let source = Arc::clone(&self.source);
            let run_id = entry.watch.run_id.clone();
            let limit = entry.deadline.max(now) + LAST_POLL_LIMIT;
            self.polls.spawn(async move {
                let answer = match tokio::time::timeout_at(limit, source.get_run(&run_id)).await {
                    Ok(answer) => answer.map_err(PollError::Api),
                    Err(_elapsed) => Err(PollError::PastDeadline),
                };
                Polled { key, began: now, answer }
            });
        }
    }

    /// To when the poll of a watch that is due can be put off because its stream shows that the run goes on:
    /// to where it would be if the last sign of life had been a poll.
    fn postponed(&mut self, key: Key, now: Instant) -> Option<Instant> {
        let entry = self.table.get_mut(key)?;
        if entry.hinted {
            return None;
        }
        let heard_at = self.streams.heard_at(key)?;
        let growth = &self.policy.growth;
        let stands_until = heard_at + growth.after(heard_at.saturating_duration_since(entry.changed_at));
        let longest = entry.polled_at? + growth.max;
        let later = stands_until.min(longest).min(entry.decides_at.unwrap_or(longest));
        (later > now).then(|| {
            entry.interval = Some(growth.after(now.duration_since(entry.changed_at)));
            later
        })
    }

    /// Opens streams, as far as the budget has room beside the polls that are due.
    fn open_streams(&mut self, now: Instant) {
        let polls_wait = self.table.first_due().is_some_and(|(due, _)| due <= now);
        while !polls_wait && self.open_stream(now) {}
        self.metrics.streams(self.streams.count());
    }

    /// Opens one stream, if there is one to open and the budget has room for it. Returns whether it did.
    fn open_stream(&mut self, now: Instant) -> bool {
        if self.upstream.trouble().is_some() {
            return false;
        }
        let Some(key) = self.streams.next_to_open(now) else { return false };
        if !self.budget.try_take(now) {
            return false;
        }
        self.polls_since_stream = 0;
        let Some(entry) = self.table.get(key) else { return false };
        let (run_id, started) = (entry.watch.run_id.clone(), entry.progress.seen_running);
        self.streams.open(key, run_id, started, Arc::clone(&self.source), self.clock.clone());
        true
    }

    /// Takes in what a stream said, or that it is over.
    fn heard(&mut self, news: News) {
        let now = self.look_at_clock();
        match news {
            News::Started(key) => self.ask_anew(key, now),
            News::Ended(ended) => {
                // What a stream said before it was closed is as good a reason to ask as any.
                if self.streams.ended(&ended, now, &mut self.random) || matches!(ended.cause, Cause::RunEnded) {
                    self.stream_ended(ended, now);
                }
            }
        }
    }

    /// Has the run asked for whose stream is over: it may have ended.
    fn stream_ended(&mut self, ended: Ended, now: Instant) {
        let Ended { key, cause, .. } = ended;
        let Some(entry) = self.table.get_mut(key) else { return };
        let run_id = &entry.watch.run_id;
        match &cause {
            Cause::NotOpened(error) => {
                tracing::debug!(%run_id, error = error.describe(), "cannot follow the events of a run");
                // A limit on requests is one for all requests of the key. Anything else is the affair of the
                // streams: polls never depended on them.
                if let ApiError::Status { status: 429, retry_after: Some(pause), .. } = error {
                    self.upstream.pause(*pause, now);
                }
                return;
            }
            Cause::RunEnded => return self.ask_anew(key, now),
            Cause::Broken(error) => tracing::debug!(%run_id, error = error.describe(), "a stream of events broke off"),
            Cause::Over | Cause::Idle => tracing::trace!(%run_id, ?cause, "a stream of events ended"),
        }
        entry.interval = Some(self.policy.growth.after(now.duration_since(entry.changed_at)));
        self.ask_now(key);
    }

    /// Has a run asked for as if its status had just changed: should the API's answer lag behind its stream,
    /// it is asked again soon.
    fn ask_anew(&mut self, key: Key, now: Instant) {
        let Some(entry) = self.table.get_mut(key) else { return };
        entry.changed_at = now;
        entry.interval = None;
        self.ask_now(key);
    }

    /// Has a run asked for ahead of all others, as far as the budget allows.
    fn ask_now(&mut self, key: Key) {
        let Some(entry) = self.table.get_mut(key) else { return };
        entry.hinted = true;
        // A poll under way may have been answered before the hint: then there will be another.
        if entry.phase == Phase::Waiting {
            self.table.queue(key, self.first_of_all);
        }
    }

    /// Takes in what a poll brought.
    fn polled(&mut self, polled: Polled) {
        let now = (self.look_at_clock(), self.reading.wall);
        let Polled { key, began, answer } = polled;
        let result = match &answer {
            Ok(_) => "ok",
            Err(PollError::Api(error)) => error.kind(),
            Err(PollError::PastDeadline) => "abandoned",
        };
        self.metrics.polled(result, now.0.duration_since(began));
        let Some(entry) = self.table.get_mut(key) else { return };
        entry.phase = Phase::Waiting;
        let (answer, told) = match answer {
            Ok(reply) => {
                entry.refused = false;
                let told = self.upstream.answered(began, now.1);
                if let Some(pause) = reply.pause {
                    self.upstream.pause(pause, now.0);
                }
                (Answer::Seen(Box::new(reply.observation)), told)
            }
            Err(PollError::Api(error)) if error.is_not_found() => {
                entry.refused = false;
                (Answer::Missing, self.upstream.answered(began, now.1))
            }
            Err(PollError::Api(error)) => {
                let message = error.describe();
                tracing::debug!(run_id = %entry.watch.run_id, error = %message, "poll failed");
                // Refused again, though the API served others meanwhile: it is this run, not the key.
                let own_refusal = error.is_unauthorized()
                    && std::mem::replace(&mut entry.refused, error.is_unauthorized())
                    && self.upstream.trouble() != Some(Trouble::Refused);
                entry.last_error = Some(Box::new(PollFailure { at: now.1, message }));
                (Answer::Failed, self.upstream.failed(&error, own_refusal, now, &mut self.random))
            }
            Err(PollError::PastDeadline) => {
                let message = "no answer to the last poll within 5 s of the deadline".to_owned();
                entry.last_error = Some(Box::new(PollFailure { at: now.1, message }));
                (Answer::Failed, None)
            }
        };
        if let Some(event) = told {
            self.tell(event);
        }
        self.take_step(key, answer);
    }

    /// Takes the step that an answer leads to; what is news is stored before it counts.
    fn take_step(&mut self, key: Key, answer: Answer) {
        let now = self.reading.wall;
        let entry = self.table.get_mut(key).expect("the caller holds a key of an entry");
        let failed = matches!(answer, Answer::Failed);
        // What ends for want of an answer was not found by asking.
        entry.asked_on_hint &= !matches!(answer, Answer::NotAsked { .. });
        // Kept for the case that the step has to be taken again. What was seen is stored with the step.
        let unseen = match &answer {
            Answer::Seen(_) => None,
            Answer::Missing | Answer::Failed | Answer::NotAsked { .. } => Some(answer.clone()),
        };
        let step = match entry.progress.step(&entry.watch, answer, now, &self.policy.limits) {
            Ok(step) => step,
            Err(illegal) => {
                tracing::error!(run_id = %entry.watch.run_id, %illegal, "a finished watch was polled");
                return self.forget(key);
            }
        };
        if let Some(Status::Unknown(text)) = &step.progress.status {
            let shown = one_line(text, STATUS_CHARS);
            if self.warned.len() < MAX_WARNED && self.warned.insert(shown.clone()) {
                tracing::warn!(run_id = %entry.watch.run_id, status = shown, "unknown status; not taken as an end");
            }
        }
        if let Some(answer) = unseen.filter(|_| !step.events.is_empty())
            && entry.progress.status.is_some()
            && entry.progress.details.is_none()
        {
            return self.recall(key, answer);
        }
        match step.progress.verdict {
            Some(_) => crash::point("observed"),
            None if step.progress.seen_going() => self.streams.welcome(key),
            None => {}
        }
        if !step.is_news() {
            entry.progress = step.progress;
            entry.progress.details = None;
            return self.reschedule(key, if failed { Pace::Behind } else { Pace::Onward });
        }
        self.store_step(key, Box::new(step), now);
    }

    /// Has a step stored that was taken at `at`.
    fn store_step(&mut self, key: Key, step: Box<Step>, at: Timestamp) {
        // Somebody may have removed it meanwhile.
        if self.table.get(key).is_none() {
            return;
        }
        let entry = self.table.unqueue(key);
        entry.phase = Phase::Storing;
        let watch = &entry.watch;
        let found_by = if entry.asked_on_hint { FoundBy::Stream } else { FoundBy::Poll };
        let told =
            |event: &Event| Told { event: event.clone(), sinks: self.policy.routes.sinks_for(event, Some(watch)) };
        let told = step.events.iter().map(told).collect();
        let (store, run_id, last_error) =
            (self.store.clone(), watch.run_id.clone(), entry.last_error.as_deref().cloned());
        let stepped = self.stepped;
        self.store_in_order(async move {
            let result = store.record_step(run_id, Step::clone(&step), told, last_error, found_by, at).await;
            Done::Step { key, step, at, result, stepped }
        });
    }

    /// Reads what was last seen of a run, which an event without a new answer tells, then takes the step.
    fn recall(&mut self, key: Key, answer: Answer) {
        let entry = self.table.unqueue(key);
        entry.phase = Phase::Storing;
        let (store, run_id) = (self.store.clone(), entry.watch.run_id.clone());
        self.store_in_order(async move { Done::Recalled { key, answer, result: store.details(run_id).await } });
    }

    /// Takes in that something was stored, or not.
    fn stored(&mut self, done: Done) {
        let now = self.look_at_clock();
        match done {
            Done::Added { mut watch, reply, result, stepped } => {
                if let Ok(Added::New) = result {
                    let since = self.stepped - stepped;
                    watch.deadline_at = watch.deadline_at.saturating_add(since).unwrap_or(watch.deadline_at);
                    let progress = Progress::begin(self.reading.wall);
                    self.take_up(*watch, progress, Duration::ZERO, now, now);
                    if !since.is_zero() {
                        self.move_marks(0);
                    }
                }
                // Whoever asked may have left; the watch is stored and followed all the same.
                drop(reply.send(result));
            }
            Done::Removed { keys, reply, result } => {
                if let Ok(Removed::Removed) = result {
                    keys.into_iter().for_each(|key| self.forget(key));
                }
                drop(reply.send(result));
            }
            Done::Step { key, step, at, result, stepped } => {
                let Some(entry) = self.table.get_mut(key) else { return };
                entry.phase = Phase::Waiting;
                match result {
                    Ok(()) => {
                        let changed = step.status_changed;
                        if changed {
                            entry.changed_at = now;
                        }
                        entry.progress = step.progress;
                        if stepped != self.stepped {
                            entry.progress.missing_since = entry.progress.missing_since.map(|_| self.reading.wall);
                        }
                        // The store has it, for a million watches it is too much to keep here as well.
                        entry.progress.details = None;
                        let told = step.events.iter().rfind(|event| event.event_type.verdict().is_some());
                        if let Some(after) = told.and_then(Event::run).and_then(|data| data.timing.detected_after_ms) {
                            self.metrics.detected(Duration::from_millis(after));
                        }
                        if entry.progress.verdict.is_some() {
                            self.metrics.found_by(if entry.asked_on_hint { FoundBy::Stream } else { FoundBy::Poll });
                            crash::point("verdict-stored");
                            self.forget(key);
                        } else {
                            self.reschedule(key, if changed { Pace::Anew } else { Pace::Onward });
                        }
                    }
                    Err(error @ StoreError::Precondition { .. }) => {
                        tracing::warn!(run_id = %entry.watch.run_id, %error, "no longer watched");
                        self.forget(key);
                    }
                    Err(error) => {
                        entry.progress.heed(&step.progress, self.reading.wall);
                        if step.ends_by_status() {
                            entry.phase = Phase::Storing;
                            self.unstored.push((key, step, at));
                            self.store_again_at = Some(now + STORE_RETRY);
                            return;
                        }
                        // The store says itself, and once, that it fails.
                        let error = with_causes(&error);
                        tracing::debug!(run_id = %entry.watch.run_id, error, "cannot store a step; it will be taken again");
                        self.reschedule(key, Pace::In(STORE_RETRY));
                    }
                }
            }
            Done::Recalled { key, answer, result } => {
                let Some(entry) = self.table.get_mut(key) else { return };
                entry.phase = Phase::Waiting;
                match result {
                    Ok(details) => {
                        entry.progress.details = Some(Box::new(details.unwrap_or_default()));
                        self.take_step(key, answer);
                    }
                    Err(error) => {
                        let wall = self.reading.wall;
                        if let Ok(step) = entry.progress.step(&entry.watch, answer, wall, &self.policy.limits) {
                            entry.progress.heed(&step.progress, wall);
                        }
                        let error = with_causes(&error);
                        tracing::debug!(run_id = %entry.watch.run_id, error, "cannot read what was seen of a run; asking again");
                        self.reschedule(key, Pace::In(STORE_RETRY));
                    }
                }
            }
            Done::Told { event, result } => {
                // Closed is the end. Anything else may pass, and this is told once only.
                if let Err(error) = result.as_ref()
                    && !matches!(error, StoreError::Closed)
                {
                    self.untold.push(*event);
                    self.store_again_at = Some(now + STORE_RETRY);
                }
            }
            Done::Moved { milliseconds, result } => {
                if let Err(error) = result.as_ref()
                    && !matches!(error, StoreError::Closed)
                {
                    self.unmoved = Some(self.unmoved.unwrap_or(0).saturating_add(milliseconds));
                    self.store_again_at = Some(now + STORE_RETRY);
                }
            }
        }
    }

    /// Sets when a watch is due again.
    fn reschedule(&mut self, key: Key, pace: Pace) {
        let (now, wall) = (Instant::now(), self.reading.wall);
        let entry = self.table.get_mut(key).expect("the caller holds a key of an entry");
        let growth = &self.policy.growth;
        let wait = match pace {
            Pace::In(wait) => wait,
            Pace::Behind if entry.refused => REFUSED_PROBE,
            Pace::Behind | Pace::Onward | Pace::Anew => {
                let current = entry.interval.filter(|_| pace != Pace::Anew);
                // Waits are shorter than their intervals by the jitter, so the intervals alone would grow faster
                // than the time that a promise about delays is a part of.
                let interval = growth.next(current).min(growth.after(now.duration_since(entry.changed_at)));
                entry.interval = Some(interval);
                growth.wait(interval, &mut self.random)
            }
        };
        let mark = entry.progress.next_mark(&entry.watch, &self.policy.limits);
        let mark = mark.map(|mark| instant_of(mark, wall, now)).filter(|mark| *mark > now);
        let deadline_at = entry.watch.deadline_at;
        let deadline = (deadline_at > wall).then(|| instant_of(deadline_at, wall, now));
        entry.decides_at = mark.into_iter().chain(deadline).min();
        let mut due = now + wait;
        if let Some(opens_at) = self.upstream.opens_at().filter(|_| pace == Pace::Behind) {
            due = due.max(opens_at + ROUNDING);
        }
        let due = match (entry.hinted, pace) {
            // A store that fails is given its time, whatever a stream said: else this would go round and round.
            (true, Pace::In(_)) => due,
            (true, _) => self.first_of_all,
            (false, _) => entry.decides_at.map_or(due, |decides_at| decides_at.min(due)),
        };
        self.table.queue(key, due);
    }

    fn forget(&mut self, key: Key) {
        self.table.remove(key);
        self.streams.forget(key);
    }

    /// Has an event about the API stored and sent.
    fn tell(&mut self, event: Event) {
        tracing::warn!(event = %event.event_type, "state of the API changed");
        self.store_told(event);
    }

    fn store_told(&mut self, event: Event) {
        let sinks = self.policy.routes.sinks_for(&event, None);
        let (store, now) = (self.store.clone(), event.timestamp);
        self.store_in_order(async move {
            let told = Told { event: event.clone(), sinks };
            Done::Told { event: Box::new(event), result: store.record_event(told, now).await }
        });
    }

    fn publish(&mut self, now: Instant) {
        if self.store_again_at.is_some_and(|at| at <= now) {
            self.store_again_at = None;
            std::mem::take(&mut self.untold).into_iter().for_each(|event| self.store_told(event));
            let unstored = std::mem::take(&mut self.unstored);
            unstored.into_iter().for_each(|(key, step, at)| self.store_step(key, step, at));
            if self.unmoved.is_some() {
                self.move_marks(0);
            }
        }
        if let Some(event) = self.upstream.overdue(self.reading.wall) {
            self.tell(event);
        }
        // Counted before the state may change.
        if let Some(trouble) = self.upstream.trouble() {
            self.metrics.paused(trouble, now.saturating_duration_since(self.counted_until));
        }
        self.counted_until = now;
        let mut view = self.upstream.view((now, self.reading.wall));
        self.view.send_if_modified(|shown| {
            // The time of the next try moves by rounding; only a real change is worth waking anyone.
            let same_time = match (shown.retry_at, view.retry_at) {
                (Some(shown), Some(new)) => shown.duration_since(new).abs() <= jiff::SignedDuration::from_millis(50),
                (shown, new) => shown == new,
            };
            if same_time {
                view.retry_at = shown.retry_at;
            }
            let changed = *shown != view;
            if changed {
                shown.clone_from(&view);
            }
            changed
        });
    }

    /// When there is something to do without anything coming in; `None` when there never is.
    fn wake_at(&self, now: Instant) -> Option<Instant> {
        if self.table.is_empty() {
            return self.store_again_at;
        }
        let due = self.table.first_due().map(|(due, _)| due);
        let open_at = self.upstream.opens_at().unwrap_or(now).max(self.budget.next_at());
        let full = self.polls.len() >= self.policy.max_in_flight
            || (!self.polls.is_empty() && !self.upstream.admits(open_at.max(now), self.polls.len()));
        let next_poll = due.map(|due| due.max(open_at)).filter(|_| !full);
        let next_deadline = self.table.first_deadline().map(|(deadline, _)| deadline);
        let stream = self.streams.wake_at().filter(|at| *at > now);
        let put_off = self.table.expired().map(|(_, entry)| entry.due).filter(|due| *due > now).min();
        next_poll
            .into_iter()
            .chain(next_deadline)
            .chain(stream)
            .chain(put_off)
            .chain(self.store_again_at)
            .chain([now + CLOCK_CHECK])
            .min()
    }
}

/// When a watch is asked for again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// After the next, longer interval.
    Onward,
    /// After the first interval: something changed.
    Anew,
    /// The same, and behind those that are due when the API may be asked again: the poll failed, and the
    /// next that goes out must not be of the same run, should it be the run's fault.
    Behind,
    /// After this time.
    In(Duration),
}

/// The timer for a wall-clock time, where `now` is `wall`. Times out of a timer's reach are a year off.
fn instant_of(at: Timestamp, wall: Timestamp, now: Instant) -> Instant {
    const FAR: Duration = Duration::from_secs(365 * 24 * 3600);
    match Duration::try_from(at.duration_since(wall)) {
        Ok(ahead) => now + ahead.min(FAR) + ROUNDING,
        Err(_past) => now,
    }
}

/// What a task returned; `None` when it was cancelled, as all are when the runtime ends. A panic goes on.
fn finished<T>(joined: Result<T, JoinError>) -> Option<T> {
    joined.map_err(|error| error.try_into_panic().map(|panic| std::panic::resume_unwind(panic))).ok()
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
