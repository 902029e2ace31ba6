//! A simulated API with event streams, in paused time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use runwatch::app;
use runwatch::clock::Clock;
use runwatch::config::Settings;
use runwatch::domain::{Activity, Event, EventType, Hint, Labels, RunRef, Watch};
use runwatch::metrics::Metrics;
use runwatch::providers::{ApiError, EventStream, StreamItem};
use runwatch::scheduler::{AddedBy, Policy, Scheduler, SchedulerHandle};
use runwatch::store::{Added, Location, Store};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::support::all_events;
pub(crate) use crate::support::provider::LATENCY;
use crate::support::provider::{Answer, FakeProvider, Streams};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// After how long the API ends a stream ("Stream Events" of its reference).
const LIFE: Duration = Duration::from_secs(30 * 60);

/// What a stream does, given how long its run goes on from the moment it was opened.
#[derive(Debug, Clone)]
pub(crate) enum Stream {
    /// A sign of life every so often, and the end at the end; it ends after 30 minutes, as documented.
    Works { every: Duration },
    /// It is not opened, and this is why.
    Refused(fn() -> ApiError),
    /// It is never opened.
    NeverOpens,
    /// It opens, and nothing comes.
    Silent,
    /// Signs of life, every so often and for so long; then nothing comes.
    Hangs { every: Duration, after: Duration },
    /// It ends after so long, with signs of life until then.
    Ends { every: Duration, after: Duration },
    /// It breaks after so long, with signs of life until then.
    Breaks { every: Duration, after: Duration },
    /// It says at once that the run has ended.
    Lies,
    /// As many events as there is time for, whatever the run does.
    Floods,
    /// It ends with the run, and does not say so.
    NoTerminal { every: Duration },
}

#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) ends_at: Instant,
    pub(crate) stream: Stream,
}

#[derive(Debug, Clone)]
pub(crate) struct Opening {
    pub(crate) at: Instant,
    pub(crate) run_id: RunRef,
    pub(crate) last_id: Option<String>,
}

/// The API.
pub(crate) type Api = FakeProvider<Arc<World>>;

/// The runs of the API, and what was requested of their streams.
#[derive(Default)]
pub(crate) struct World {
    runs: Mutex<HashMap<RunRef, Run>>,
    openings: Mutex<Vec<Opening>>,
    open: Arc<AtomicUsize>,
    failing: Mutex<bool>,
}

fn api() -> Api {
    let world = Arc::new(World::default());
    let runs = Arc::clone(&world);
    Api::with_streams(world, move |poll| {
        if *runs.failing.lock().unwrap() {
            Answer::status(502, None)
        } else {
            Answer::until(runs.runs.lock().unwrap()[&poll.run_id].ends_at)
        }
    })
}

impl World {
    pub(crate) fn openings(&self) -> Vec<Opening> {
        self.openings.lock().unwrap().clone()
    }

    /// How many streams are open.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Has every poll fail, or not.
    pub(crate) fn set_failing(&self, failing: bool) {
        *self.failing.lock().unwrap() = failing;
    }

    pub(crate) fn set_stream(&self, run_id: &RunRef, stream: Stream) {
        self.runs.lock().unwrap().get_mut(run_id).unwrap().stream = stream;
    }
}

impl Streams for Arc<World> {
    type Events = Events;

    async fn open(&self, id: &RunRef, last_id: Option<&str>) -> Result<Events, ApiError> {
        let opening = Opening {
            at: Instant::now(),
            run_id: id.clone(),
            last_id: last_id.map(ToOwned::to_owned),
        };
        self.openings.lock().unwrap().push(opening);
        let run = self.runs.lock().unwrap()[id].clone();
        tokio::time::sleep(LATENCY).await;
        match run.stream {
            Stream::Refused(why) => return Err(why()),
            Stream::NeverOpens => return std::future::pending().await,
            _ => {}
        }
        self.open.fetch_add(1, Ordering::Relaxed);
        let (opened, open) = (Instant::now(), Arc::clone(&self.open));
        Ok(Events {
            run,
            opened,
            next: opened,
            number: 0,
            id: None,
            open,
        })
    }
}

/// An open stream.
pub(crate) struct Events {
    run: Run,
    opened: Instant,
    next: Instant,
    number: u64,
    id: Option<String>,
    open: Arc<AtomicUsize>,
}

impl Drop for Events {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Events {
    fn item(kind: &'static str, hint: Option<Hint>) -> Result<Option<StreamItem>, ApiError> {
        Ok(Some(StreamItem::Activity(Activity {
            kind: kind.to_owned(),
            hint,
            is_news: kind != "heartbeat",
            is_failure: false,
            summary: String::new(),
            data: None,
        })))
    }

    /// The same, with no sign of life after the end of the run.
    async fn life_until(
        &mut self,
        every: Duration,
        until: Instant,
    ) -> Option<Result<Option<StreamItem>, ApiError>> {
        let item = self.life(every, until.min(self.run.ends_at)).await;
        if item.is_none() {
            tokio::time::sleep_until(until).await;
        }
        item
    }

    /// The next sign of life, if one comes before `until`; else it is `until` when this comes back.
    async fn life(
        &mut self,
        every: Duration,
        until: Instant,
    ) -> Option<Result<Option<StreamItem>, ApiError>> {
        // Cancel-safe: what counts is changed after the last wait.
        let next = self.next.max(self.opened);
        tokio::time::sleep_until(next.min(until)).await;
        if next >= until {
            return None;
        }
        self.next = next + every;
        self.number += 1;
        self.id = Some(self.number.to_string());
        Some(Self::item("heartbeat", None))
    }
}

impl EventStream for Events {
    async fn next(&mut self) -> Result<Option<StreamItem>, ApiError> {
        let ends_at = self.run.ends_at;
        match self.run.stream.clone() {
            Stream::Refused(_) | Stream::NeverOpens => unreachable!("it was not opened"),
            Stream::Silent => std::future::pending().await,
            Stream::Works { every } => {
                let over = self.opened + LIFE;
                match self.life(every, ends_at.min(over)).await {
                    Some(item) => item,
                    None if ends_at <= over => Self::item("run.completed", Some(Hint::Ended)),
                    None => Ok(None),
                }
            }
            Stream::NoTerminal { every } => self.life(every, ends_at).await.unwrap_or(Ok(None)),
            Stream::Hangs { every, after } => {
                match self.life_until(every, self.opened + after).await {
                    Some(item) => item,
                    None => std::future::pending().await,
                }
            }
            Stream::Ends { every, after } => self
                .life_until(every, self.opened + after)
                .await
                .unwrap_or(Ok(None)),
            Stream::Breaks { every, after } => self
                .life_until(every, self.opened + after)
                .await
                .unwrap_or(Err(ApiError::Timeout)),
            Stream::Lies => Self::item("run.completed", Some(Hint::Ended)),
            Stream::Floods => {
                tokio::time::sleep(Duration::from_millis(1)).await;
                Self::item("log", None)
            }
        }
    }

    fn last_id(&self) -> Option<&str> {
        self.id.as_deref()
    }
}

/// A scheduler that asks the API.
pub(crate) struct Simulation {
    pub(crate) api: Api,
    pub(crate) clock: Clock,
    pub(crate) start: Instant,
    pub(crate) store: Store,
    pub(crate) watches: SchedulerHandle,
    pub(crate) policy: Policy,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

pub(crate) fn id(index: usize) -> RunRef {
    RunRef::new(&format!("run_{index}")).unwrap()
}

impl Simulation {
    pub(crate) fn start(seed: u64, adjust: impl FnOnce(&mut Policy)) -> Self {
        let clock = Clock::simulated("2026-01-01T00:00:00Z".parse().unwrap());
        let api = self::api();
        let (store, writer) = Store::open(Location::Memory).unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(writer.run());
        let mut policy = app::policy(&Settings::default());
        adjust(&mut policy);
        let (scheduler, watches) = Scheduler::new(
            api.clone(),
            store.clone(),
            clock.clone(),
            policy.clone(),
            Metrics::default(),
            seed,
        );
        let stop = CancellationToken::new();
        tasks.spawn(scheduler.run(stop.clone()));
        Self {
            api,
            clock,
            start: Instant::now(),
            store,
            watches,
            policy,
            tasks,
            stop,
        }
    }

    /// Adds the run `index`, which takes `length` from now.
    pub(crate) async fn add(&self, index: usize, length: Duration, stream: Stream) -> RunRef {
        self.add_with_timeout(index, length, stream, HOUR * 24 * 30)
            .await
    }

    /// The same, watched for `timeout` at the most.
    pub(crate) async fn add_with_timeout(
        &self,
        index: usize,
        length: Duration,
        stream: Stream,
        timeout: Duration,
    ) -> RunRef {
        let run = Run {
            ends_at: Instant::now() + length,
            stream,
        };
        self.api
            .streams()
            .runs
            .lock()
            .unwrap()
            .insert(id(index), run);
        let added_at = self.clock.now();
        let watch = Watch {
            run_id: id(index),
            name: None,
            labels: Labels::new(),
            sinks: None,
            added_at,
            deadline_at: added_at.checked_add(timeout).unwrap(),
            trace: None,
        };
        assert_eq!(
            self.watches.add(watch, AddedBy::Request).await.unwrap(),
            Added::New
        );
        id(index)
    }

    /// The verdict of a run, once it is in, with how long after the end of the run it was observed.
    pub(crate) async fn verdict(&self, run_id: &RunRef) -> (EventType, Duration) {
        let mut changed = self.store.history_changed();
        loop {
            changed.mark_unchanged();
            let events = all_events(&self.store).await;
            let is_verdict = |event: &Event| {
                event.run_id() == Some(run_id) && event.event_type.verdict().is_some()
            };
            if let Some(event) = events.iter().find(|event| is_verdict(event)) {
                let ended = self.api.streams().runs.lock().unwrap()[run_id].ends_at;
                let base = self.clock.now().checked_sub(self.start.elapsed()).unwrap();
                let ended = base.checked_add(ended - self.start).unwrap();
                // Events have whole milliseconds.
                let delay =
                    event.timestamp.duration_since(ended) + jiff::SignedDuration::from_millis(1);
                let delay =
                    Duration::try_from(delay).expect("no verdict comes before the end of its run");
                return (event.event_type, delay);
            }
            changed.changed().await.unwrap();
        }
    }

    /// The types of the events so far.
    pub(crate) async fn event_types(&self) -> Vec<EventType> {
        let events = all_events(&self.store).await;
        events.into_iter().map(|event| event.event_type).collect()
    }

    /// How the verdict of a run was found.
    pub(crate) async fn found_by(&self, run_id: &RunRef) -> &'static str {
        let history = self.store.history(run_id.clone()).await.unwrap().unwrap();
        history.record.found_by.unwrap().as_str()
    }

    pub(crate) async fn end(mut self) {
        self.stop.cancel();
        drop((self.store, self.watches));
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

/// Fails if any window of a minute holds more requests of any kind than `budget`.
pub(crate) fn assert_within_budget(api: &Api, budget: usize) {
    let polls = api.polls().into_iter().map(|poll| poll.at);
    let mut requests: Vec<_> = polls
        .chain(
            api.streams()
                .openings()
                .into_iter()
                .map(|opening| opening.at),
        )
        .collect();
    requests.sort_unstable();
    for window in requests.windows(budget + 1) {
        let span = window[budget] - window[0];
        assert!(span >= MINUTE, "{} requests within {span:?}", budget + 1);
    }
}
