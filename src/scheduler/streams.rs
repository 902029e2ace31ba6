//! The event streams of runs: which watches have one, and when another is opened.
//!
//! No verdict rests on a stream; it is only a reason to poll. When it ends, for whatever reason, the
//! run is polled at once. An event replaces the ordinary polls of one interval, up to the longest
//! interval in all, so that a stream that falls silent delays nothing. One task reads one stream and
//! ends with it; the scheduler decides what follows.

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
use crate::domain::{Activity, Hint, RunRef};
use crate::providers::{AnyProvider, ApiError, EventStream, StreamItem};

/// How long a stream may be silent before it is closed and opened again.
const IDLE_LIMIT: Duration = Duration::from_secs(300);

/// A stream that was open for this long counts as a success, however it ended.
const HEALTHY: Duration = Duration::from_secs(60);

/// How long a stream is kept before a newer watch may take its place.
const HOLD: Duration = Duration::from_secs(60);

/// How long no stream is opened after the API answered that it has none.
const ABSENT_PAUSE: Duration = Duration::from_secs(3600);

/// How long no stream is opened, beyond the requested pause, after the API rejected one as too much.
const REFUSED_BACKOFF: BackoffPolicy = BackoffPolicy {
    initial: Duration::from_secs(60),
    multiplier: 2.0,
    max: ABSENT_PAUSE,
    jitter: 0.0,
};

/// How many activities a receiver may lag behind before it misses some.
pub(super) const ACTIVITY_CAPACITY: usize = 256;

/// Wake-ups waiting for the scheduler. A stream sends at most one before it ends.
const HINTS: usize = 64;

/// One activity of a run, for people and programs that follow it.
#[derive(Debug, Clone)]
pub struct RunActivity {
    /// The run.
    pub run_id: RunRef,
    /// When it was received.
    pub at: Timestamp,
    /// The activity.
    pub activity: Activity,
}

/// Why a stream ended.
#[derive(Debug)]
pub(super) enum EndReason {
    /// An event looked like the end of the run.
    RunEnded,
    /// The API closed it, as it may at any time.
    Over,
    /// It was silent for too long.
    Idle,
    /// It could not be opened.
    NotOpened(ApiError),
    /// It broke, or could not be read further.
    Broken(ApiError),
}

/// What the task of a stream returns.
#[derive(Debug)]
pub(super) struct EndedStream {
    pub(super) key: Key,
    pub(super) cause: EndReason,
    number: u64,
    last_id: Option<String>,
    followed_for: Duration,
}

/// A run that may have started: its watch, and the number of the stream that reported it.
type StartedRun = (Key, u64);

/// A stream that is open, or being opened.
struct OpenStream {
    number: u64,
    since: Instant,
    task: AbortHandle,
    last_item: Arc<LastItem>,
}

/// What is remembered of the streams of a watch between two of them.
#[derive(Default)]
struct StreamHistory {
    interval: Option<Duration>,
    last_id: Option<String>,
    /// No stream is opened before this time.
    rests_until: Option<Instant>,
}

/// When the last event was received: milliseconds after `base`, plus one; 0 is never.
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
    /// Watches without a stream that may have one now.
    ready: BTreeSet<Key>,
    /// Watches that may have one at a later time.
    resting: BTreeSet<(Instant, Key)>,
    open: BTreeMap<Key, OpenStream>,
    memory: HashMap<Key, StreamHistory>,
    /// Until when none is opened: the API has none, or is rate limiting them.
    closed_until: Option<Instant>,
    /// One was opened since the API last answered that there is none.
    served: bool,
    /// How long the last pause was beyond the requested one, since one was opened.
    refused: Option<Duration>,
    tasks: JoinSet<EndedStream>,
    number: u64,
    hints: (mpsc::Sender<StartedRun>, mpsc::Receiver<StartedRun>),
    activities: broadcast::Sender<Arc<RunActivity>>,
}

/// What the streams report to the scheduler.
pub(super) enum StreamEvent {
    /// The run of this watch may have started.
    Started(Key),
    /// A stream ended.
    Ended(EndedStream),
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
            closed_until: None,
            served: false,
            refused: None,
            tasks: JoinSet::new(),
            number: 0,
            hints: mpsc::channel(HINTS),
            activities: broadcast::channel(ACTIVITY_CAPACITY).0,
        }
    }

    /// Sends activities to the receivers of `activities` from here on.
    pub(super) fn share_activities(&mut self, activities: broadcast::Sender<Arc<RunActivity>>) {
        self.activities = activities;
    }

    /// Returns the sender of activities, from which receivers are made.
    pub(super) fn activities(&self) -> broadcast::Sender<Arc<RunActivity>> {
        self.activities.clone()
    }

    /// Returns how many are open or being opened.
    pub(super) fn count(&self) -> usize {
        self.open.len()
    }

    /// Adds a watch whose run was seen active, so that its stream is worth following.
    pub(super) fn enroll(&mut self, key: Key) {
        let known =
            self.limit == 0 || self.open.contains_key(&key) || self.memory.contains_key(&key);
        if !known {
            self.ready.insert(key);
        }
    }

    /// Removes a watch and closes its stream.
    pub(super) fn forget(&mut self, key: Key) {
        if let Some(open) = self.open.remove(&key) {
            open.task.abort();
        }
        self.ready.remove(&key);
        if let Some(rests_until) = self
            .memory
            .remove(&key)
            .and_then(|memory| memory.rests_until)
        {
            self.resting.remove(&(rests_until, key));
        }
    }

    /// Closes all streams. They may be opened again at once, at most `limit` at a time.
    pub(super) fn reset(&mut self, limit: usize) {
        let open = std::mem::take(&mut self.open);
        open.values().for_each(|open| open.task.abort());
        self.ready.extend(open.into_keys());
        self.ready.extend(
            std::mem::take(&mut self.resting)
                .into_iter()
                .map(|(_, key)| key),
        );
        self.memory.clear();
        self.closed_until = None;
        self.served = false;
        self.limit = limit;
        if limit == 0 {
            self.ready.clear();
        }
    }

    /// Returns the watch whose stream is opened next, if there is room: the newest, because young
    /// runs are the most likely to end soon. It may take the place of the oldest.
    pub(super) fn next_to_open(&mut self, now: Instant) -> Option<Key> {
        if self.closed_until.is_some_and(|until| now < until) {
            return None;
        }
        self.closed_until = None;
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

    /// Returns when a stream can be opened next even if nothing comes in.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let rested = self.resting.first().map(|&(at, _)| at)?;
        Some(rested.max(self.closed_until.unwrap_or(rested)))
    }

    /// Opens the stream of the watch that [`Streams::next_to_open`] returned. `started` is whether
    /// its run was seen running already.
    pub(super) fn open(
        &mut self,
        key: Key,
        run_id: RunRef,
        started: bool,
        provider: AnyProvider,
        clock: Clock,
    ) {
        if self.open.len() >= self.limit
            && let Some((oldest, held)) = self.open.pop_first()
        {
            held.task.abort();
            self.ready.insert(oldest);
        }
        self.ready.remove(&key);
        self.number += 1;
        let now = Instant::now();
        let last_item = Arc::new(LastItem {
            base: now,
            at: AtomicU64::new(0),
        });
        let memory = self.memory.entry(key).or_default();
        let last_id = memory.last_id.clone();
        let reading = StreamReader {
            key,
            number: self.number,
            run_id,
            started,
            first: memory.interval.is_none(),
            clock,
            last_item: Arc::clone(&last_item),
            hints: self.hints.0.clone(),
            activities: self.activities.clone(),
        };
        let task = self.tasks.spawn(reading.follow(provider, last_id));
        self.open.insert(
            key,
            OpenStream {
                number: self.number,
                since: now,
                task,
                last_item,
            },
        );
    }

    /// Returns the next report of any stream; waits without end while none is open. Cancel-safe.
    pub(super) async fn news(&mut self) -> StreamEvent {
        loop {
            // Both arms are cancel-safe: joining a set and receiving lose nothing when they are dropped.
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

    /// Handles the end of a stream. Returns false for a stream that was closed before.
    pub(super) fn ended(
        &mut self,
        ended: &EndedStream,
        now: Instant,
        random: &mut fastrand::Rng,
    ) -> bool {
        if self
            .open
            .get(&ended.key)
            .is_none_or(|open| open.number != ended.number)
        {
            return false;
        }
        self.open.remove(&ended.key);
        match &ended.cause {
            EndReason::NotOpened(error) if error.is_absent() => {
                let others = self.open.values().any(|open| open.last_item.at().is_some());
                // Where other streams work, a missing one concerns its run only.
                if !(error.is_not_found() && (std::mem::take(&mut self.served) || others)) {
                    self.closed_until = Some(now + ABSENT_PAUSE);
                }
            }
            EndReason::NotOpened(error) => {
                if let Some(pause) = error.retry_after() {
                    // Each attempt costs a request that a poll could use: they become rare.
                    let rest = REFUSED_BACKOFF.next(self.refused);
                    self.refused = Some(rest);
                    self.closed_until = self.closed_until.max(Some(now + pause + rest));
                }
            }
            EndReason::RunEnded | EndReason::Over | EndReason::Idle | EndReason::Broken(_) => {
                self.served = true;
                self.refused = None;
            }
        }
        let memory = self.memory.entry(ended.key).or_default();
        memory.last_id.clone_from(&ended.last_id);
        let anew = ended.followed_for >= HEALTHY
            || (matches!(ended.cause, EndReason::Over) && memory.interval.is_none());
        let interval = self.backoff.next(memory.interval.filter(|_| !anew));
        memory.interval = Some(interval);
        let rests_until = now + self.backoff.wait(interval, random);
        memory.rests_until = Some(rests_until);
        self.resting.insert((rests_until, ended.key));
        true
    }

    /// Returns when the stream of a watch last received an event; `None` if it never did.
    pub(super) fn last_item_at(&self, key: Key) -> Option<Instant> {
        self.open.get(&key)?.last_item.at()
    }
}

/// The state of the task that reads one stream.
struct StreamReader {
    key: Key,
    number: u64,
    run_id: RunRef,
    started: bool,
    /// It is the first stream of its watch.
    first: bool,
    clock: Clock,
    last_item: Arc<LastItem>,
    hints: mpsc::Sender<StartedRun>,
    activities: broadcast::Sender<Arc<RunActivity>>,
}

impl StreamReader {
    async fn follow(mut self, provider: AnyProvider, last_id: Option<String>) -> EndedStream {
        let opened = provider.open_events(&self.run_id, last_id.as_deref()).await;
        let since = Instant::now();
        let (cause, last_id) = match opened {
            Err(error) => {
                if self.first {
                    self.emit(Activity::unavailable(&error.describe()));
                }
                (EndReason::NotOpened(error), last_id)
            }
            Ok(mut stream) => {
                let cause = self.read(&mut stream).await;
                (cause, stream.last_id().map(ToOwned::to_owned).or(last_id))
            }
        };
        EndedStream {
            key: self.key,
            number: self.number,
            cause,
            last_id,
            followed_for: since.elapsed(),
        }
    }

    /// Sends an activity to the receivers, if there are any.
    fn emit(&self, activity: Activity) {
        if self.activities.receiver_count() > 0 {
            let activities = RunActivity {
                run_id: self.run_id.clone(),
                at: self.clock.now(),
                activity,
            };
            // The receivers may have left in the meantime.
            drop(self.activities.send(Arc::new(activities)));
        }
    }

    /// Reads until the stream ends, or an event looks like the end of the run.
    async fn read(&mut self, stream: &mut impl EventStream) -> EndReason {
        loop {
            let item = match timeout(IDLE_LIMIT, stream.next()).await {
                Err(_elapsed) => return EndReason::Idle,
                Ok(Err(error)) => return EndReason::Broken(error),
                Ok(Ok(None)) => return EndReason::Over,
                Ok(Ok(Some(item))) => item,
            };
            // Data that was received in one piece is read without waiting: let other tasks run.
            tokio::task::coop::consume_budget().await;
            // Other bytes only show that the connection is alive, not that the run is.
            let StreamItem::Activity(activity) = item else {
                continue;
            };
            self.last_item.note();
            let hint = activity.hint;
            if activity.is_news {
                self.emit(activity);
            }
            match hint {
                Some(Hint::Ended) => return EndReason::RunEnded,
                Some(Hint::StreamOver) => return EndReason::Over,
                Some(Hint::Started) if !std::mem::replace(&mut self.started, true) => {
                    // The scheduler may have ended.
                    let _closed = self.hints.send((self.key, self.number)).await;
                }
                Some(Hint::Started) | None => {}
            }
        }
    }
}
