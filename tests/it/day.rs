//! A simulated day of a thousand watches, in paused time: what docs/performance.md promises about requests,
//! delays, the budget and fairness.

use std::collections::HashMap;
use std::time::Duration;

use runwatch::app;
use runwatch::clock::Clock;
use runwatch::config::Settings;
use runwatch::domain::{Labels, RunRef, Verdict, Watch};
use runwatch::metrics::Metrics;
use runwatch::scheduler::{Policy, Scheduler, SchedulerHandle};
use runwatch::store::{Added, Location, Store};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::support::all_events;
use crate::support::provider::{Answer, FakeProvider, LATENCY, Poll};

const DAY: Duration = Duration::from_secs(24 * 3600);
const MINUTE: Duration = Duration::from_secs(60);

struct Simulation {
    api: FakeProvider,
    ends_at: HashMap<RunRef, Instant>,
    clock: Clock,
    start: Instant,
    store: Store,
    tasks: JoinSet<()>,
    stop: CancellationToken,
    // Held so that the scheduler keeps serving.
    _watches: SchedulerHandle,
}

/// Watches runs that take `lengths`, all added at once.
async fn simulate(lengths: &[Duration], adjust: impl FnOnce(&mut Policy)) -> Simulation {
    let start = Instant::now();
    let clock = Clock::simulated("2026-01-01T00:00:00Z".parse().unwrap());
    let id = |index: usize| RunRef::new(&format!("run_{index}")).unwrap();
    let ends_at: HashMap<_, _> = lengths
        .iter()
        .enumerate()
        .map(|(index, length)| (id(index), start + *length))
        .collect();
    let ends = ends_at.clone();
    let api = FakeProvider::new(move |poll| Answer::until(ends[&poll.run_id]));
    let (store, writer) = Store::open(Location::Memory).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(writer.run());
    let mut policy = app::policy(&Settings::default());
    adjust(&mut policy);
    let (scheduler, watches) = Scheduler::new(
        api.clone(),
        store.clone(),
        clock.clone(),
        policy,
        Metrics::default(),
        7,
    );
    let stop = CancellationToken::new();
    tasks.spawn(scheduler.run(stop.clone()));
    let mut adding = JoinSet::new();
    for index in 0..lengths.len() {
        let added_at = clock.now();
        let watch = Watch {
            run_id: id(index),
            name: None,
            labels: Labels::new(),
            sinks: None,
            added_at,
            deadline_at: added_at.checked_add(DAY * 2).unwrap(),
            trace: None,
        };
        let watches = watches.clone();
        adding.spawn(async move {
            watches
                .add(watch, runwatch::scheduler::AddedBy::Request)
                .await
        });
    }
    while let Some(added) = adding.join_next().await {
        assert_eq!(added.unwrap().unwrap(), Added::New);
    }
    Simulation {
        api,
        ends_at,
        clock,
        start,
        store,
        tasks,
        stop,
        _watches: watches,
    }
}

impl Simulation {
    /// Waits for `count` verdicts and returns how long after its end each run's verdict was observed.
    async fn delays(&self, count: usize) -> HashMap<RunRef, Duration> {
        let mut changed = self.store.history_changed();
        let mut delays = HashMap::new();
        let mut seq = 0;
        let base = self.clock.now().checked_sub(self.start.elapsed()).unwrap();
        while delays.len() < count {
            changed.mark_unchanged();
            for (event_seq, event) in self.store.events_after(seq, u32::MAX).await.unwrap() {
                seq = event_seq;
                let Some(verdict) = event.event_type.verdict() else {
                    continue;
                };
                assert_eq!(verdict, Verdict::Succeeded);
                let id = event.run_id().unwrap();
                let ended = base.checked_add(self.ends_at[id] - self.start).unwrap();
                // Events have whole milliseconds.
                let delay =
                    event.timestamp.duration_since(ended) + jiff::SignedDuration::from_millis(1);
                let delay =
                    Duration::try_from(delay).expect("no verdict comes before the end of its run");
                assert_eq!(
                    delays.insert(id.clone(), delay),
                    None,
                    "one verdict for {id}"
                );
            }
            if delays.len() < count {
                changed.changed().await.unwrap();
            }
        }
        delays
    }

    async fn end(mut self) -> Vec<Poll> {
        self.stop.cancel();
        drop((self.store, self._watches));
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        self.api.polls()
    }
}

/// Fails if any window of a minute holds more than `budget` requests.
fn assert_within_budget(requests: &[Poll], budget: usize) {
    for window in requests.windows(budget + 1) {
        let span = window[budget].at - window[0].at;
        assert!(span >= MINUTE, "{} requests within {span:?}", budget + 1);
    }
}

/// The most requests that the default intervals need for a run of this length: each wait is a fifth of the
/// time waited before and a second, at most 30 s, less a tenth for jitter.
fn most_requests(length: Duration) -> usize {
    let (mut waited, mut requests) = (0.0_f64, 1);
    while waited < length.as_secs_f64() {
        waited += 0.9 * (1.0 + 0.2 * waited).min(30.0);
        requests += 1;
    }
    // One more for a run whose status changed at its first poll.
    requests + 1
}

#[tokio::test(start_paused = true)]
async fn with_enough_budget_every_end_is_seen_as_soon_as_promised() {
    // A thousand runs from 5 seconds to a day, as many short as long ones.
    let mut random = fastrand::Rng::with_seed(42);
    let lengths: Vec<_> = (0..1000)
        .map(|_| Duration::from_secs_f64(5.0 * (DAY.as_secs_f64() / 5.0).powf(random.f64())))
        .collect();
    let budget = 20_000;
    let simulation = simulate(&lengths, |policy| policy.requests_per_minute = budget).await;
    let delays = simulation.delays(lengths.len()).await;
    let requests = simulation.end().await;

    let slack = LATENCY * 2 + Duration::from_millis(50);
    let mut polls: HashMap<&RunRef, usize> = HashMap::new();
    requests
        .iter()
        .for_each(|poll| *polls.entry(&poll.run_id).or_default() += 1);
    for (index, length) in lengths.iter().enumerate() {
        let id = RunRef::new(&format!("run_{index}")).unwrap();
        // The promise of docs/performance.md: a fifth of the run's age and a second, and never more than half a minute.
        let promised = (length.mul_f64(0.2) + Duration::from_secs(1)).min(Duration::from_secs(30));
        assert!(
            delays[&id] <= promised + slack,
            "{id} of {length:?} was seen {:?} late",
            delays[&id]
        );
        assert!(
            polls[&id] <= most_requests(*length),
            "{id} of {length:?} took {} requests",
            polls[&id]
        );
    }
    assert_within_budget(&requests, budget as usize);
}

#[tokio::test(start_paused = true)]
async fn with_a_short_budget_every_watch_gets_its_turn() {
    // A thousand watches want 2,000 requests a minute; they may make 60.
    let simulation = simulate(&vec![DAY; 1000], |policy| policy.requests_per_minute = 60).await;
    tokio::time::sleep_until(simulation.start + DAY - MINUTE).await;
    let requests = simulation.end().await;

    assert_within_budget(&requests, 60);
    // At least three quarters of the budget is used ...
    assert!(
        requests.len() >= 45 * 60 * 24 - 60,
        "{} requests",
        requests.len()
    );
    // ... and shared fairly: a round of all watches takes 1000 / 46 minutes, and none waits for two.
    let round = MINUTE * 1000 / 45;
    let mut last: HashMap<&RunRef, Instant> = HashMap::new();
    for Poll { at, run_id: id, .. } in &requests {
        let since = last
            .insert(id, *at)
            .map_or(*at - requests[0].at, |before| *at - before);
        assert!(since <= round + MINUTE, "{id} waited {since:?}");
    }
    assert_eq!(last.len(), 1000);
    let most = requests.iter().fold(
        HashMap::<_, usize>::new(),
        |mut counts, Poll { run_id: id, .. }| {
            *counts.entry(id).or_default() += 1;
            counts
        },
    );
    let (least, most) = (most.values().min().unwrap(), most.values().max().unwrap());
    assert!(most - least <= 1, "between {least} and {most} polls each");
}

#[tokio::test(start_paused = true)]
async fn after_a_suspend_all_are_polled_at_once_without_a_burst() {
    let simulation = simulate(&vec![DAY; 200], |policy| policy.requests_per_minute = 600).await;
    tokio::time::sleep(MINUTE * 30).await;
    let before = simulation.api.polls().len();
    let slept = Duration::from_secs(3 * 3600);
    simulation.clock.jump(runwatch::clock::Jump {
        slept,
        stepped: jiff::SignedDuration::ZERO,
    });
    let woke = Instant::now();
    tokio::time::sleep(MINUTE).await;
    let requests = simulation.end().await;
    let first_round: Vec<_> = requests[before..].iter().take(200).collect();
    let polled: std::collections::HashSet<_> =
        first_round.iter().map(|poll| &poll.run_id).collect();
    assert_eq!(polled.len(), 200, "each once before any twice");
    assert!(
        first_round[0].at - woke <= Duration::from_secs(2),
        "the first at once"
    );
    assert_within_budget(&requests, 600);
}

#[tokio::test(start_paused = true)]
async fn a_step_of_the_wall_clock_is_no_evidence_that_time_passed() {
    let simulation = simulate(&[MINUTE * 10], |_| ()).await;
    tokio::time::sleep(MINUTE).await;
    // Set forward by a year, far past the deadline: the watch goes on, to the right verdict.
    let year = jiff::SignedDuration::from_hours(365 * 24);
    simulation.clock.jump(runwatch::clock::Jump {
        slept: Duration::ZERO,
        stepped: year,
    });
    let mut changed = simulation.store.history_changed();
    let verdict = loop {
        let events = all_events(&simulation.store).await;
        if let Some(verdict) = events.iter().find_map(|event| event.event_type.verdict()) {
            break verdict;
        }
        changed.changed().await.unwrap();
    };
    assert_eq!(verdict, Verdict::Succeeded);
    simulation.end().await;
}
