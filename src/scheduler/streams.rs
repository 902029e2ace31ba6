//! The event streams that are followed: which watches have one, and what comes of it.
//!
//! A stream is never believed, only used as a reason to ask: when it ends, whatever it said, the run is
//! asked for at once. A sign of life stands for the ordinary polls of one interval, up to the longest
//! interval in all, so that a stream that falls silent delays nothing. One task reads one stream and ends
//! with it; the scheduler decides what follows.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{broadcast, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout};

use super::registry::Key;
use crate::backoff::BackoffPolicy;
use crate::clock::Clock;
use crate::domain::{Activity, Hint, RunId};
use crate::providers::{AnyProvider, ApiError, EventStream, StreamItem};

/// After how long without a byte a stream is closed, and opened anew.
const IDLE_LIMIT: Duration = Duration::from_secs(300);

/// A stream that was followed for so long was no failure, however it ended.
const HEALTHY: Duration = Duration::from_secs(60);

/// How long a stream keeps its place before a newer watch may take it.
const HOLD: Duration = Duration::from_secs(60);

/// How long an API that has no streams is left alone with them.
const ABSENT: Duration = Duration::from_secs(3600);

/// How long streams rest, beyond the pause asked for, when the API has too much to do to open one.
const SHUT: BackoffPolicy =
    BackoffPolicy { initial: Duration::from_secs(60), multiplier: 2.0, max: ABSENT, jitter: 0.0 };

/// Events that followers may lag behind; those who lag more miss some, and are told how many.
const ACTIVITY_CAPACITY: usize = 256;

/// Hints waiting for the scheduler. A stream gives one at the most before it ends.
const HINTS: usize = 64;

/// What a run is doing, for those who follow.
#[derive(Debug, Clone)]
pub struct RunActivity {
    /// The run.
    pub run_id: RunId,
    /// When it came in.
    pub at: Timestamp,
    /// What it is.
    pub activity: Activity,
}

/// Why a stream is over.
#[derive(Debug)]
pub(super) enum Cause {
    /// It said something that looks like the end of the run.
    RunEnded,
    /// It ended by itself, as it may.
    Over,
    /// It was silent for too long.
    Idle,
    /// It could not be opened.
    NotOpened(ApiError),
    /// It broke off, or could not be read on.
    Broken(ApiError),
}

/// What a stream's task leaves behind.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) key: Key,
    pub(super) cause: Cause,
    number: u64,
    last_id: Option<String>,
    followed_for: Duration,
}

/// That a run may have started: its watch, and the number of the stream that says so.
type Started = (Key, u64);

/// A stream that is open, or being opened.
struct Open {
    number: u64,
    since: Instant,
    task: AbortHandle,
    heard: Arc<LastItem>,
}

/// What is kept of a watch's streams between two of them.
#[derive(Default)]
struct Memory {
    interval: Option<Duration>,
    last_id: Option<String>,
    /// Until when it rests, while it does.
    rests_until: Option<Instant>,
}

/// When an event last came in: milliseconds after `base`, plus one; 0 is never.
struct LastItem {
    base: Instant,
    at: AtomicU64,
}

impl LastItem {
    fn note(&self) {
        let milliseconds = u64::try_from(self.base.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.at.store(milliseconds + 1, Ordering::Relaxed);
    }

    fn at(&self) -> Option<Instant> {
        let milliseconds = self.at.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.base + Duration::from_millis(milliseconds))
    }
}

/// The streams of all watches.
pub(super) struct Streams {
    /// Most at once; 0 is none.
    limit: usize,
    backoff: BackoffPolicy,
    /// Watches that may have a stream and have none.
    ready: BTreeSet<Key>,
    /// Watches that may have one again at a time to come.
    resting: BTreeSet<(Instant, Key)>,
    open: BTreeMap<Key, Open>,
    memory: HashMap<Key, Memory>,
    /// Until when none is opened: the API has none, or asked for a pause of them.
    shut_until: Option<Instant>,
    /// One was opened since the API last said that there is none.
    served: bool,
    /// How long they rested beyond the pause that was asked for last, since one was opened.
    refused: Option<Duration>,
    tasks: JoinSet<Ended>,
    number: u64,
    hints: (mpsc::Sender<Started>, mpsc::Receiver<Started>),
    activities: broadcast::Sender<Arc<RunActivity>>,
}

/// What comes from the streams.
pub(super) enum StreamEvent {
    /// The run of this watch may have started.
    Started(Key),
    /// A stream is over.
    Ended(Ended),
}

impl Streams {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            backoff: BackoffPolicy {
                initial: Duration::from_secs(1),
                multiplier: 2.0,
                max: Duration::from_secs(300),
                jitter: 0.3,
            },
            ready: BTreeSet::new(),
            resting: BTreeSet::new(),
            open: BTreeMap::new(),
            memory: HashMap::new(),
            shut_until: None,
            served: false,
            refused: None,
            tasks: JoinSet::new(),
            number: 0,
            hints: mpsc::channel(HINTS),
            activities: broadcast::channel(ACTIVITY_CAPACITY).0,
        }
    }

    /// A sender of what is followed, for handing out receivers.
    pub(super) fn activities(&self) -> broadcast::Sender<Arc<RunActivity>> {
        self.activities.clone()
    }

    /// How many are open or being opened.
    pub(super) fn count(&self) -> usize {
        self.open.len()
    }

    /// Takes note that a run was seen going, so that its stream is worth following.
    pub(super) fn enroll(&mut self, key: Key) {
        let known = self.limit == 0 || self.open.contains_key(&key) || self.memory.contains_key(&key);
        if !known {
            self.ready.insert(key);
        }
    }

    /// Lets go of a watch.
    pub(super) fn forget(&mut self, key: Key) {
        if let Some(open) = self.open.remove(&key) {
            open.task.abort();
        }
        self.ready.remove(&key);
        if let Some(rests_until) = self.memory.remove(&key).and_then(|memory| memory.rests_until) {
            self.resting.remove(&(rests_until, key));
        }
    }

    /// Closes all streams, which may be opened again at once; at most `limit` of them from here on.
    pub(super) fn reset(&mut self, limit: usize) {
        let open = std::mem::take(&mut self.open);
        open.values().for_each(|open| open.task.abort());
        self.ready.extend(open.into_keys());
        self.ready.extend(std::mem::take(&mut self.resting).into_iter().map(|(_, key)| key));
        self.memory.clear();
        self.shut_until = None;
        self.served = false;
        self.limit = limit;
        if limit == 0 {
            self.ready.clear();
        }
    }

    /// The watch whose stream is to be opened next, if there is room: the newest, as young runs are the
    /// most likely to end soon. It may take the place of the oldest.
    pub(super) fn next_to_open(&mut self, now: Instant) -> Option<Key> {
        if self.shut_until.is_some_and(|until| now < until) {
            return None;
        }
        self.shut_until = None;
        while let Some(&(at, key)) = self.resting.first().filter(|(at, _)| *at <= now) {
            self.resting.remove(&(at, key));
            if let Some(memory) = self.memory.get_mut(&key) {
                memory.rests_until = None;
            }
            self.ready.insert(key);
        }
        let newest = self.ready.last().copied()?;
        if self.open.len() >= self.limit {
            let (&oldest, held) = self.open.first_key_value()?;
            if oldest > newest || now.duration_since(held.since) < HOLD {
                return None;
            }
        }
        Some(newest)
    }

    /// When there may be a stream to open without anything coming in.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let rested = self.resting.first().map(|&(at, _)| at)?;
        Some(rested.max(self.shut_until.unwrap_or(rested)))
    }

    /// Opens the stream of the watch that [`Streams::next_to_open`] named. `started` is whether its run was
    /// seen running already.
    pub(super) fn open(&mut self, key: Key, run_id: RunId, started: bool, provider: AnyProvider, clock: Clock) {
        if self.open.len() >= self.limit
            && let Some((oldest, held)) = self.open.pop_first()
        {
            held.task.abort();
            self.ready.insert(oldest);
        }
        self.ready.remove(&key);
        self.number += 1;
        let now = Instant::now();
        let heard = Arc::new(LastItem { base: now, at: AtomicU64::new(0) });
        let memory = self.memory.entry(key).or_default();
        let last_id = memory.last_id.clone();
        let reading = Reading {
            key,
            number: self.number,
            run_id,
            started,
            first: memory.interval.is_none(),
            clock,
            heard: Arc::clone(&heard),
            hints: self.hints.0.clone(),
            activities: self.activities.clone(),
        };
        let task = self.tasks.spawn(reading.follow(provider, last_id));
        self.open.insert(key, Open { number: self.number, since: now, task, heard });
    }

    /// What comes next from any stream. Cancel-safe. It never comes when no stream is open.
    pub(super) async fn news(&mut self) -> StreamEvent {
        loop {
            // Both arms are cancel-safe: joining a set and receiving lose nothing when dropped.
            tokio::select! {
                Some(ended) = self.tasks.join_next() => match ended {
                    Ok(ended) => return StreamEvent::Ended(ended),
                    Err(error) => assert!(error.is_cancelled(), "reading a stream does not panic"),
                },
                Some((key, number)) = self.hints.1.recv() => {
                    if self.open.get(&key).is_some_and(|open| open.number == number) {
                        return StreamEvent::Started(key);
                    }
                }
            }
        }
    }

    /// Takes note of the end of a stream. Returns whether it is news: that of a stream that was closed is
    /// none.
    pub(super) fn ended(&mut self, ended: &Ended, now: Instant, random: &mut fastrand::Rng) -> bool {
        if self.open.get(&ended.key).is_none_or(|open| open.number != ended.number) {
            return false;
        }
        self.open.remove(&ended.key);
        match &ended.cause {
            Cause::NotOpened(error) if error.is_absent() => {
                let others = self.open.values().any(|open| open.heard.at().is_some());
                // Where there are streams, one that is missing is the affair of its run.
                if !(error.is_not_found() && (std::mem::take(&mut self.served) || others)) {
                    self.shut_until = Some(now + ABSENT);
                }
            }
            Cause::NotOpened(error) => {
                if let Some(pause) = error.retry_after() {
                    // Each attempt costs a request that a poll could have: they grow rare.
                    let rest = SHUT.next(self.refused);
                    self.refused = Some(rest);
                    self.shut_until = self.shut_until.max(Some(now + pause + rest));
                }
            }
            Cause::RunEnded | Cause::Over | Cause::Idle | Cause::Broken(_) => {
                self.served = true;
                self.refused = None;
            }
        }
        let memory = self.memory.entry(ended.key).or_default();
        memory.last_id.clone_from(&ended.last_id);
        let anew = ended.followed_for >= HEALTHY || (matches!(ended.cause, Cause::Over) && memory.interval.is_none());
        let interval = self.backoff.next(memory.interval.filter(|_| !anew));
        memory.interval = Some(interval);
        let rests_until = now + self.backoff.wait(interval, random);
        memory.rests_until = Some(rests_until);
        self.resting.insert((rests_until, ended.key));
        true
    }

    /// When the stream of a watch last showed that its run goes on; `None` when it has none that did.
    pub(super) fn last_item_at(&self, key: Key) -> Option<Instant> {
        self.open.get(&key)?.heard.at()
    }
}

/// What the task of one stream needs.
struct Reading {
    key: Key,
    number: u64,
    run_id: RunId,
    started: bool,
    /// It is the first stream of its watch.
    first: bool,
    clock: Clock,
    heard: Arc<LastItem>,
    hints: mpsc::Sender<Started>,
    activities: broadcast::Sender<Arc<RunActivity>>,
}

impl Reading {
    async fn follow(mut self, provider: AnyProvider, last_id: Option<String>) -> Ended {
        let opened = provider.open_events(&self.run_id, last_id.as_deref()).await;
        let since = Instant::now();
        let (cause, last_id) = match opened {
            Err(error) => {
                if self.first {
                    self.emit(Activity::unavailable(&error.describe()));
                }
                (Cause::NotOpened(error), last_id)
            }
            Ok(mut stream) => {
                let cause = self.read(&mut stream).await;
                (cause, stream.last_id().map(ToOwned::to_owned).or(last_id))
            }
        };
        Ended { key: self.key, number: self.number, cause, last_id, followed_for: since.elapsed() }
    }

    /// Tells those who follow, if anybody does.
    fn emit(&self, activity: Activity) {
        if self.activities.receiver_count() > 0 {
            let activities = RunActivity { run_id: self.run_id.clone(), at: self.clock.now(), activity };
            // Whoever followed may have left meanwhile.
            drop(self.activities.send(Arc::new(activities)));
        }
    }

    /// Reads until the stream ends or says something that looks like an end.
    async fn read(&mut self, stream: &mut impl EventStream) -> Cause {
        loop {
            let item = match timeout(IDLE_LIMIT, stream.next()).await {
                Err(_elapsed) => return Cause::Idle,
                Ok(Err(error)) => return Cause::Broken(error),
                Ok(Ok(None)) => return Cause::Over,
                Ok(Ok(Some(item))) => item,
            };
            // What was received in one piece is read without waiting: others get their turn in between.
            tokio::task::coop::consume_budget().await;
            // Other bytes show that the connection is alive, and nothing of the run.
            let StreamItem::Activity(activity) = item else { continue };
            self.heard.note();
            let hint = activity.hint;
            if activity.is_news() {
                self.emit(activity);
            }
            match hint {
                Some(Hint::Ended) => return Cause::RunEnded,
                Some(Hint::StreamOver) => return Cause::Over,
                Some(Hint::Started) if !std::mem::replace(&mut self.started, true) => {
                    // The scheduler may be gone; then nobody waits for this.
                    let _unheard = self.hints.send((self.key, self.number)).await;
                }
                Some(Hint::Started) | None => {}
            }
        }
    }
}
