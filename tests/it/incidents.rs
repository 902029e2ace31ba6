//! What is reported to the operator when things go wrong for long, and how a restart treats the API: in
//! paused time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use runwatch::app;
use runwatch::clock::{Clock, Jump};
use runwatch::config::Settings;
use runwatch::domain::{
    Event, EventData, EventType, OverdueAfter, ProviderName, ProviderNotice, RunRef, RunState,
    SinkName, Status, Watch,
};
use runwatch::metrics::Metrics;
use runwatch::scheduler::{AddedBy, Policy, Scheduler, SchedulerHandle};
use runwatch::store::{Done, Location, RoutedEvent, Store, Transaction, TransactionRunner};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::support::all_events;
use crate::support::log::LogLines;
use crate::support::provider::{Answer, FakeProvider, Poll};
use crate::support::watches::{store_running, watch_of};

const MINUTE: Duration = Duration::from_secs(60);

/// How long an answer takes that is a failure.
const FAILS_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
enum Mood {
    Running,
    /// Running, and no more requests are welcome for ten minutes.
    Pausing,
    BadGateway,
    Refusing,
    /// Running, but for run_0: 502.
    Poisoned,
}

impl Mood {
    fn answer(self, poll: &Poll) -> Answer {
        match self {
            Self::Poisoned if poll.run_id.as_str() == "run_0" => {
                Answer::status(502, None).after(Duration::ZERO)
            }
            Self::Running | Self::Poisoned => Answer::seen(RunState::Running).after(Duration::ZERO),
            Self::Pausing => Answer::used_up(MINUTE * 10).after(Duration::ZERO),
            Self::BadGateway => Answer::status(502, None).after(FAILS_AFTER),
            Self::Refusing => Answer::refused_key().after(Duration::ZERO),
        }
    }
}

/// An API in a mood that can be set, whose runs never end.
fn moody() -> (FakeProvider, Arc<Mutex<Mood>>) {
    let mood = Arc::new(Mutex::new(Mood::Running));
    let of_api = Arc::clone(&mood);
    let api = FakeProvider::new(move |poll| {
        let mood = *of_api.lock().unwrap();
        mood.answer(poll)
    });
    (api, mood)
}

struct World {
    api: FakeProvider,
    mood: Arc<Mutex<Mood>>,
    clock: Clock,
    store: Store,
    watches: SchedulerHandle,
    tasks: JoinSet<()>,
    stop: CancellationToken,
    /// Whether the disk of the store is full.
    full: Arc<Mutex<bool>>,
}

fn watch(index: usize, added_at: Timestamp) -> Watch {
    watch_of(&format!("run_{index}"), added_at, MINUTE * 60 * 24 * 30)
}

/// A scheduler over a store that holds `stored` watches already, of runs seen running an hour ago.
async fn world(stored: usize, adjust: impl FnOnce(&mut Policy)) -> World {
    world_at(Location::Memory, stored, adjust).await
}

async fn world_at(place: Location<'_>, stored: usize, adjust: impl FnOnce(&mut Policy)) -> World {
    let clock = Clock::simulated("2026-01-01T00:00:00Z".parse().unwrap());
    let (api, mood) = moody();
    let (store, writer) = Store::open(place).unwrap();
    let mut tasks = JoinSet::new();
    let full = Arc::new(Mutex::new(false));
    tasks.spawn(writer.run_on(Platter(Arc::clone(&full))));
    let long_ago = clock.now().checked_sub(MINUTE * 60).unwrap();
    let mut policy = app::policy(&Settings::default());
    adjust(&mut policy);
    for index in 0..stored {
        store_running(&store, &watch(index, long_ago), &policy.limits).await;
    }
    let active = store
        .active_watches(clock.now(), None, u32::MAX)
        .await
        .unwrap();
    let (mut scheduler, watches) = Scheduler::new(
        api.clone(),
        store.clone(),
        clock.clone(),
        policy,
        Metrics::default(),
        7,
    );
    let many = active.len() as u64;
    scheduler.resume(active, many);
    let stop = CancellationToken::new();
    for incident in store.newest_provider_events().await.unwrap() {
        scheduler.remember(&incident);
    }
    tasks.spawn(scheduler.run(stop.clone()));
    World {
        api,
        mood,
        clock,
        store,
        watches,
        tasks,
        stop,
        full,
    }
}

impl World {
    async fn live(&self, mood: Mood, time: Duration) {
        *self.mood.lock().unwrap() = mood;
        tokio::time::sleep(time).await;
    }

    async fn event_types(&self) -> Vec<EventType> {
        let events = all_events(&self.store).await;
        events.into_iter().map(|event| event.event_type).collect()
    }

    fn requests(&self) -> usize {
        self.api.polls().len()
    }

    async fn end(mut self) -> Vec<Poll> {
        self.stop.cancel();
        drop((self.store, self.watches));
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        self.api.polls()
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_moves_waiting_attempts_though_no_run_is_watched() {
    let world = world(0, |_| ()).await;
    let ops = SinkName::new("ops").unwrap();
    let due = world.clock.now().checked_add(MINUTE * 600).unwrap();
    let data = EventData::Provider(ProviderNotice {
        provider: ProviderName::crewship(),
        message: String::new(),
        since: due,
        fallback_for: None,
    });
    let event = Event {
        event_type: EventType::ApiUnreachable,
        timestamp: due,
        data,
    };
    world
        .store
        .record_event(
            RoutedEvent {
                event,
                sinks: vec![ops.clone()],
                held: Vec::new(),
            },
            due,
        )
        .await
        .unwrap();
    let mut shown = due;
    for hours in [-2, 3] {
        let stepped = SignedDuration::from_hours(hours);
        world.clock.jump(Jump {
            slept: Duration::ZERO,
            stepped,
        });
        world
            .live(Mood::Running, MINUTE + Duration::from_secs(1))
            .await;
        shown = shown.checked_add(stepped).unwrap();
        assert_eq!(
            world.store.next_due(ops.clone()).await.unwrap(),
            Some(shown)
        );
    }
    assert!(world.end().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_pause_holds_whatever_the_answer_is_about_and_whether_or_not_the_run_is_still_watched() {
    let pause = MINUTE * 10;
    let second = Duration::from_secs(1);
    let answers: [fn(Duration) -> Answer; 4] = [
        Answer::used_up,
        |pause| Answer::missing().pausing(pause),
        |pause| Answer::status(500, None).pausing(pause),
        |pause| Answer::status(429, Some(pause)),
    ];
    for (number, answer) in answers.into_iter().enumerate() {
        for is_removed in [false, true] {
            let mut world = world(0, |_| ()).await;
            let api = FakeProvider::new(move |poll| match poll.run_id.as_str() {
                "run_0" if poll.number == 1 => answer(pause).after(2 * second),
                _ => Answer::seen(RunState::Running),
            });
            world.api = api.clone();
            let policy = app::policy(&Settings::default());
            world.watches.reload(api, policy).await.unwrap();
            let first = watch(0, world.clock.now());
            world
                .watches
                .add(first.clone(), AddedBy::Request)
                .await
                .unwrap();
            tokio::time::sleep(second).await;
            if is_removed {
                world.watches.remove(first.run_id, true).await.unwrap();
            }
            tokio::time::sleep(2 * second).await;
            let later = watch(1, world.clock.now());
            world.watches.add(later, AddedBy::Request).await.unwrap();
            tokio::time::sleep(pause - 5 * second).await;
            let about = format!("answer {number}, removed: {is_removed}");
            assert_eq!(world.requests(), 1, "{about}");
            tokio::time::sleep(MINUTE).await;
            assert!(world.requests() > 1, "{about}");
            world.end().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_incident_is_reported_once() {
    let world = world(3, |_| ()).await;
    world.live(Mood::Running, MINUTE).await;
    // Four minutes are no incident.
    world.live(Mood::BadGateway, MINUTE * 4).await;
    world.live(Mood::Running, MINUTE * 2).await;
    assert_eq!(world.event_types().await, []);
    for _ in 0..2 {
        let before = world.requests();
        world.live(Mood::BadGateway, MINUTE * 180).await;
        let requests = world.api.polls()[before..].to_vec();
        // The three watches may be under way together when the first of them fails. From then on there is one probe
        // at a time: 1 s, 2 s, ... 32 s and then 60 s apart, give or take a tenth.
        let probes = &requests[3..];
        assert!(
            (165..=205).contains(&probes.len()),
            "{} probes in three hours",
            probes.len()
        );
        for two in probes.windows(2) {
            let apart = two[1].at - two[0].at;
            assert!(
                (FAILS_AFTER..=MINUTE * 11 / 10 + FAILS_AFTER).contains(&apart),
                "{apart:?} apart"
            );
        }
        world.live(Mood::Running, MINUTE * 5).await;
    }
    let incident = [EventType::ApiUnreachable, EventType::ApiRecovered];
    assert_eq!(world.event_types().await, [incident, incident].concat());
    // A refused key: one probe a minute for all watches together, reported once.
    let before = world.requests();
    world.live(Mood::Refusing, MINUTE * 60).await;
    let probes = world.requests() - before;
    assert!((58..=64).contains(&probes), "{probes} probes in an hour");
    world.live(Mood::Running, MINUTE * 2).await;
    let refusal = [EventType::ApiUnauthorized, EventType::ApiRecovered];
    assert_eq!(world.event_types().await[4..], refusal);
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_lasts_is_logged_again_at_growing_intervals_with_its_cause() {
    let log = LogLines::collect();
    let world = world(3, |_| ()).await;
    world.live(Mood::Running, MINUTE).await;
    // After 5 min, and 1, 3, 7, 15, 31, 63, 123, 183 and 243 min later.
    world.live(Mood::BadGateway, MINUTE * 60 * 5).await;
    let lines = log.take("gives no usable answer");
    assert_eq!(lines.len(), 10, "{lines:#?}");
    assert!(
        lines.iter().all(|line| line.contains("502")),
        "each has the cause: {lines:#?}"
    );
    assert!(lines[0].contains("lasted=5m"), "{}", lines[0]);
    assert!(lines[9].contains("lasted=4h 8m"), "{}", lines[9]);
    world.live(Mood::Running, MINUTE * 5).await;
    assert_eq!(log.take("answers again").len(), 1);
    // A refused key: at once, and 1, 3, 7, 15, 31 and 63 min later.
    world.live(Mood::Refusing, MINUTE * 90).await;
    let lines = log.take("the key is missing or refused");
    assert_eq!(lines.len(), 7, "{lines:#?}");
    // A full disk as well: its writes are tried again every few seconds.
    *world.full.lock().unwrap() = true;
    world.live(Mood::Running, MINUTE * 90).await;
    let lines = log.take("the store cannot be written");
    assert_eq!(lines.len(), 7, "{lines:#?}");
    assert!(!lines[0].contains("lasted"), "{}", lines[0]);
    assert!(lines[6].contains("lasted=\"1h 3m\""), "{}", lines[6]);
    *world.full.lock().unwrap() = false;
    world.live(Mood::Running, MINUTE).await;
    assert_eq!(log.take("the store can be written again").len(), 1);
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_event_about_the_api_that_a_full_disk_rejects_is_stored_later() {
    let world = world(3, |_| ()).await;
    world.live(Mood::Running, MINUTE).await;
    *world.full.lock().unwrap() = true;
    world.live(Mood::BadGateway, MINUTE * 10).await;
    assert_eq!(world.event_types().await, []);
    *world.full.lock().unwrap() = false;
    world.live(Mood::BadGateway, MINUTE * 2).await;
    assert_eq!(world.event_types().await, [EventType::ApiUnreachable]);
    *world.full.lock().unwrap() = true;
    world.live(Mood::Running, MINUTE * 5).await;
    *world.full.lock().unwrap() = false;
    world.live(Mood::Running, MINUTE * 2).await;
    assert_eq!(
        world.event_types().await,
        [EventType::ApiUnreachable, EventType::ApiRecovered]
    );
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_does_not_change_when_an_incident_begins() {
    for hours in [1, -1] {
        let world = world(3, |_| ()).await;
        world.live(Mood::Running, MINUTE).await;
        world.live(Mood::BadGateway, MINUTE * 2).await;
        let stepped = jiff::SignedDuration::from_hours(hours);
        world.clock.jump(runwatch::clock::Jump {
            slept: Duration::ZERO,
            stepped,
        });
        world.live(Mood::BadGateway, MINUTE * 2).await;
        assert_eq!(
            world.event_types().await,
            [],
            "four minutes, with a clock set by {hours} h"
        );
        world.live(Mood::BadGateway, MINUTE * 3).await;
        assert_eq!(
            world.event_types().await,
            [EventType::ApiUnreachable],
            "seven minutes, with a clock set by {hours} h"
        );
        world.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_overdue_run_is_reported_once() {
    let world = world(0, |policy| {
        policy.limits.overdue_after = OverdueAfter::Watched(MINUTE * 10)
    })
    .await;
    for index in 0..2 {
        world
            .watches
            .add(watch(index, world.clock.now()), AddedBy::Request)
            .await
            .unwrap();
    }
    world.live(Mood::Running, MINUTE * 9).await;
    assert_eq!(world.event_types().await, [EventType::RunStarted; 2]);
    world.live(Mood::Running, MINUTE * 60).await;
    assert_eq!(world.event_types().await[2..], [EventType::WatchOverdue; 2]);
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_polls_are_spread_and_go_on_at_the_pace_they_had() {
    let start = Instant::now();
    let world = world(1000, |policy| policy.requests_per_minute = 1_000_000).await;
    world.live(Mood::Running, MINUTE * 5).await;
    let requests = world.end().await;
    let within = |span: Duration| {
        requests
            .iter()
            .filter(|poll| poll.at - start <= span)
            .count()
    };
    let second = within(Duration::from_secs(1));
    assert!(
        (40..=60).contains(&second),
        "{second} requests in the first second"
    );
    let first_round = within(Duration::from_secs(20));
    assert!(
        (950..=1100).contains(&first_round),
        "{first_round} requests until all were polled once"
    );
    // Running for an hour, each is polled at the longest interval: 10 or 11 times in five minutes.
    assert!(
        (9_000..=11_500).contains(&requests.len()),
        "{} requests in five minutes",
        requests.len()
    );
    let polled: std::collections::HashSet<_> = requests.iter().map(|poll| &poll.run_id).collect();
    assert_eq!(polled.len(), 1000);
}

#[tokio::test(start_paused = true)]
async fn a_reload_keeps_every_watch_and_takes_up_the_new_limits() {
    let world = world(20, |_| ()).await;
    world.live(Mood::Running, MINUTE * 20).await;
    let before = world.requests();
    let mut policy = app::policy(&Settings::default());
    policy.backoff.max = Duration::from_secs(5);
    policy.requests_per_minute = 6000;
    world
        .watches
        .reload(world.api.clone(), policy)
        .await
        .unwrap();
    world.live(Mood::Running, MINUTE).await;
    let views = world.watches.view(None).await.unwrap();
    assert_eq!(views.len(), 20);
    // Every watch is polled at least once in each five seconds and a bit.
    let polls = world.requests() - before;
    assert!(
        (20 * 11..=20 * 15).contains(&polls),
        "{polls} polls in a minute"
    );
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_incident_is_reported_once_through_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("runwatch.db");
    let place = Location::File(&path);
    let first = world_at(place, 1, |_| ()).await;
    first.live(Mood::Refusing, MINUTE).await;
    assert_eq!(first.event_types().await, [EventType::ApiUnauthorized]);
    first.end().await;
    let second = world_at(place, 0, |_| ()).await;
    second.live(Mood::Refusing, MINUTE * 3).await;
    assert_eq!(
        second.event_types().await,
        [EventType::ApiUnauthorized],
        "reported by the process before"
    );
    second.end().await;
    let third = world_at(place, 0, |_| ()).await;
    third.live(Mood::Running, MINUTE).await;
    let all = [EventType::ApiUnauthorized, EventType::ApiRecovered];
    assert_eq!(third.event_types().await, all);
    third.end().await;
    let fourth = world_at(place, 0, |_| ()).await;
    fourth.live(Mood::Running, MINUTE).await;
    assert_eq!(fourth.event_types().await, all);
    fourth.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_that_the_api_cannot_answer_for_delays_no_other() {
    let world = world(4, |policy| policy.requests_per_minute = 6000).await;
    world.live(Mood::Poisoned, MINUTE * 60).await;
    let requests = world.end().await;
    for index in 1..4 {
        let id = RunRef::new(&format!("run_{index}")).unwrap();
        let polls: Vec<_> = requests
            .iter()
            .filter(|poll| poll.run_id == id)
            .map(|poll| poll.at)
            .collect();
        let longest = polls
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .max()
            .unwrap();
        // The longest interval, and the shortest pause after a failure.
        assert!(
            longest <= Duration::from_millis(31_500),
            "{id} waited {longest:?}"
        );
    }
    let poisoned = requests
        .iter()
        .filter(|poll| poll.run_id.as_str() == "run_0")
        .count();
    assert!(
        (110..=140).contains(&poisoned),
        "{poisoned} polls of the run itself in an hour"
    );
}

/// The verdicts of watches whose deadline comes in a minute, in `mood` from half a minute before it.
async fn at_the_deadline(mood: Mood, before: Duration) -> Vec<EventType> {
    let world = world(0, |_| ()).await;
    let deadline_at = world.clock.now().checked_add(MINUTE * 10).unwrap();
    for index in 0..3 {
        let watch = Watch {
            deadline_at,
            ..watch(index, world.clock.now())
        };
        world.watches.add(watch, AddedBy::Request).await.unwrap();
    }
    world.live(Mood::Running, MINUTE * 10 - before).await;
    world.live(mood, before + MINUTE).await;
    let events = all_events(&world.store).await;
    let mut verdicts: Vec<_> = events
        .into_iter()
        .filter(|event| event.event_type.verdict().is_some())
        .collect();
    verdicts.sort_by_key(|event| event.run_id().cloned());
    world.end().await;
    verdicts.into_iter().map(|event| event.event_type).collect()
}

#[tokio::test(start_paused = true)]
async fn the_last_poll_decides_at_a_deadline_when_the_api_may_not_be_polled() {
    // The run whose answer brought the pause was seen half a minute before the deadline, the others longer before that
    // than they were due to wait.
    let mut paused = at_the_deadline(Mood::Pausing, MINUTE / 2).await;
    paused.sort_by_key(|event_type| event_type.as_str());
    assert_eq!(
        paused,
        [
            EventType::WatchTimedOut,
            EventType::WatchUnreachable,
            EventType::WatchUnreachable
        ]
    );
    assert_eq!(
        at_the_deadline(Mood::Pausing, MINUTE * 5).await,
        [EventType::WatchUnreachable; 3]
    );
    assert_eq!(
        at_the_deadline(Mood::BadGateway, MINUTE * 5).await,
        [EventType::WatchUnreachable; 3]
    );
    assert_eq!(
        at_the_deadline(Mood::Refusing, MINUTE * 5).await,
        [EventType::WatchUnreachable; 3]
    );
    let poisoned = at_the_deadline(Mood::Poisoned, MINUTE * 5).await;
    assert_eq!(
        poisoned,
        [
            EventType::WatchUnreachable,
            EventType::WatchTimedOut,
            EventType::WatchTimedOut
        ]
    );
}

/// An API whose runs have all failed, each with an output of 1 MiB.
fn ended() -> FakeProvider {
    FakeProvider::new(|_| {
        let mut answer = Answer::seen(RunState::Failed).after(Duration::ZERO);
        let output = serde_json::value::to_raw_value(&"x".repeat(1024 * 1024)).unwrap();
        if let Ok(observation) = &mut answer.reply.result {
            observation.details.output = Some(output.into());
        }
        answer
    })
}

/// A disk that is full as long as this is so.
struct Platter(Arc<Mutex<bool>>);

impl TransactionRunner for Platter {
    async fn run(&self, transaction: Transaction) -> Option<Done> {
        let full = *self.0.lock().unwrap();
        Some(if full {
            transaction.reject()
        } else {
            transaction.run()
        })
    }
}

#[tokio::test(start_paused = true)]
async fn ends_that_a_full_disk_rejects_are_all_delivered_later_but_not_all_their_outputs() {
    const RUNS: usize = 40;
    let clock = Clock::simulated("2026-01-01T00:00:00Z".parse().unwrap());
    let (store, writer) = Store::open(Location::Memory).unwrap();
    let full = Arc::new(Mutex::new(false));
    let mut tasks = JoinSet::new();
    tasks.spawn(writer.run_on(Platter(Arc::clone(&full))));
    for index in 0..RUNS {
        store.add_watch(watch(index, clock.now())).await.unwrap();
    }
    *full.lock().unwrap() = true;
    let policy = Policy {
        requests_per_minute: 6_000,
        ..app::policy(&Settings::default())
    };
    let (mut scheduler, watches) = Scheduler::new(
        ended(),
        store.clone(),
        clock.clone(),
        policy,
        Metrics::default(),
        7,
    );
    scheduler.resume(
        store
            .active_watches(clock.now(), None, u32::MAX)
            .await
            .unwrap(),
        RUNS as u64,
    );
    let stop = CancellationToken::new();
    tasks.spawn(scheduler.run(stop.clone()));
    tokio::time::sleep(MINUTE).await;
    assert_eq!(store.counts().await.unwrap().active, RUNS as u64);
    *full.lock().unwrap() = false;
    tokio::time::sleep(MINUTE).await;
    assert_eq!(store.counts().await.unwrap().active, 0);
    let mut events = Vec::new();
    loop {
        let last = events.last().map_or(0, |(seq, _)| *seq);
        let page = store.events_after(last, u32::MAX).await.unwrap();
        if page.is_empty() {
            break;
        }
        events.extend(page);
    }
    let data: Vec<_> = events.iter().filter_map(|(_, event)| event.run()).collect();
    assert_eq!(data.len(), RUNS, "every end has its event");
    let whole = data.iter().filter(|data| data.run.output.is_some()).count();
    assert!(
        (1..=16).contains(&whole),
        "{whole} outputs of 1 MiB were kept in memory"
    );
    let named = data
        .iter()
        .filter(|data| data.truncated == ["output"] && data.run.output.is_none())
        .count();
    assert_eq!(whole + named, RUNS);
    stop.cancel();
    drop((store, watches));
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
}

/// A disk that another process holds as long as this is so: each transaction waits for five seconds, in vain.
struct Held(Arc<Mutex<bool>>);

impl TransactionRunner for Held {
    async fn run(&self, transaction: Transaction) -> Option<Done> {
        if !*self.0.lock().unwrap() {
            return Some(transaction.run());
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
        Some(transaction.reject_with(rusqlite::Error::SqliteFailure(busy, None)))
    }
}

#[tokio::test(start_paused = true)]
async fn a_status_that_a_held_store_rejects_stops_no_polls_and_is_not_lost() {
    const SECOND: Duration = Duration::from_secs(1);
    let clock = Clock::simulated("2026-01-01T00:00:00Z".parse().unwrap());
    let (api, _mood) = moody();
    let (store, writer) = Store::open(Location::Memory).unwrap();
    let held = Arc::new(Mutex::new(false));
    let mut tasks = JoinSet::new();
    tasks.spawn(writer.run_on(Held(Arc::clone(&held))));
    let mut policy = Policy {
        requests_per_minute: 6_000,
        ..app::policy(&Settings::default())
    };
    (policy.backoff.initial, policy.backoff.max) = (SECOND * 2, SECOND * 2);
    // Of run_0 to run_2 the status is known, of run_3 it is new.
    for index in 0..3 {
        store_running(&store, &watch(index, clock.now()), &policy.limits).await;
    }
    store.add_watch(watch(3, clock.now())).await.unwrap();
    let (mut scheduler, watches) = Scheduler::new(
        api.clone(),
        store.clone(),
        clock.clone(),
        policy,
        Metrics::default(),
        7,
    );
    scheduler.resume(
        store
            .active_watches(clock.now(), None, u32::MAX)
            .await
            .unwrap(),
        4,
    );
    *held.lock().unwrap() = true;
    let (began, stop) = (Instant::now(), CancellationToken::new());
    tasks.spawn(scheduler.run(stop.clone()));
    tokio::time::sleep(MINUTE).await;
    assert_eq!(
        store.status_changes_after(3).await.unwrap(),
        [],
        "it is rejected"
    );
    for index in 0..4 {
        let times = api.polls_of(&format!("run_{index}"));
        let times: Vec<_> = std::iter::once(began)
            .chain(times)
            .chain([began + MINUTE])
            .collect();
        let longest = times
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .max()
            .unwrap();
        // The write of the one waits for 5 s, and follows 5 s after it was rejected.
        let most = if index == 3 { SECOND * 11 } else { SECOND * 3 };
        assert!(
            longest <= most,
            "run_{index} was not polled for {longest:?}"
        );
    }
    *held.lock().unwrap() = false;
    tokio::time::sleep(SECOND * 16).await;
    let changes = store.status_changes_after(3).await.unwrap();
    let run_ids: Vec<_> = changes
        .iter()
        .map(|change| change.run_id.as_str())
        .collect();
    assert_eq!(
        (run_ids, &changes[0].status),
        (vec!["run_3"], &Status::from(RunState::Running))
    );
    stop.cancel();
    drop((store, watches));
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
}
