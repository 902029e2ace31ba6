//! Deadlines and grace periods when the budget, the slots, the API, the machine or the process stand in the way: in
//! paused time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use runwatch::app;
use runwatch::catch_ups::CatchUps;
use runwatch::clock::{Clock, Jump};
use runwatch::config::Settings;
use runwatch::domain::{
    Event, EventFilter, EventType, Labels, Route, Routes, RunState, SinkName, Status, Watch,
};
use runwatch::metrics::Metrics;
use runwatch::scheduler::{AddedBy, Policy, Scheduler, SchedulerHandle};
use runwatch::store::{DeliveryFilter, DeliveryState, DeliverySummary, Location, Store};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::support::provider::{Answer, FakeProvider};
use crate::support::watches::watch_of;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// How long after its deadline a watch ends at the latest, and what rounding to milliseconds adds.
const AT_THE_LATEST: Duration = Duration::from_millis(5_010);

/// What a poll brings.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    Going,
    /// Going, in words of its own.
    Says(&'static str),
    /// Going, and no more requests are welcome for so long.
    UsedUp(Duration),
    Succeeded,
    Missing,
    BadGateway,
    Refused,
    /// 429 with a pause of so long.
    Throttled(Duration),
    /// No answer within the 15 s that a request may take.
    Hangs,
}

use Outcome::*;

impl Outcome {
    fn answer(self) -> Answer {
        match self {
            Going => Answer::seen(RunState::Running),
            Says(status) => Answer::seen(Status::read(None, status)),
            UsedUp(pause) => Answer::used_up(pause),
            Succeeded => Answer::seen(RunState::Succeeded),
            Missing => Answer::missing(),
            BadGateway => Answer::status(502, None),
            Throttled(pause) => Answer::status(429, Some(pause)),
            Refused => Answer::refused_key(),
            Hangs => Answer::timeout(SECOND * 15),
        }
    }
}

struct World {
    start: Instant,
    api: FakeProvider,
    clock: Clock,
    store: Store,
    watches: SchedulerHandle,
    policy: Policy,
    rounds: CatchUps,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl World {
    /// `script` has what the poll of a run brings, given its number and when it comes after the start.
    async fn new(
        script: impl Fn(&str, usize, Duration) -> Outcome + Send + Sync + 'static,
    ) -> Self {
        Self::with(|_| (), &[], script).await
    }

    /// A scheduler that takes up watches of a process before it: deadlines in seconds from now, which may be past.
    async fn with(
        adjust: impl FnOnce(&mut Policy),
        stored: &[i64],
        script: impl Fn(&str, usize, Duration) -> Outcome + Send + Sync + 'static,
    ) -> Self {
        let start = Instant::now();
        let clock = Clock::simulated("2026-01-01T10:20:00Z".parse().unwrap());
        let api = FakeProvider::new(move |poll| {
            script(poll.run_id.as_str(), poll.number, poll.at - start).answer()
        });
        let (store, writer) = Store::open(Location::Memory).unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(writer.run());
        let mut policy = app::policy(&Settings::default());
        policy.backoff.jitter = 0.0;
        adjust(&mut policy);
        for (index, deadline) in stored.iter().enumerate() {
            let mut watch = watch(&format!("run_{index}"), &clock, Duration::ZERO);
            watch.added_at = clock.now().checked_sub(MINUTE * 60).unwrap();
            watch.deadline_at = clock
                .now()
                .checked_add(SignedDuration::from_secs(*deadline))
                .unwrap();
            store.add_watch(watch).await.unwrap();
        }
        let (mut scheduler, watches) = Scheduler::new(
            api.clone(),
            store.clone(),
            clock.clone(),
            policy.clone(),
            Metrics::default(),
            7,
        );
        let active = store
            .active_watches(clock.now(), None, u32::MAX)
            .await
            .unwrap();
        let rounds = CatchUps::default();
        scheduler.share_catch_ups(rounds.clone());
        let many = active.len() as u64;
        scheduler.resume(active, many);
        let stop = CancellationToken::new();
        tasks.spawn(scheduler.run(stop.clone()));
        Self {
            start,
            api,
            clock,
            store,
            watches,
            policy,
            rounds,
            tasks,
            stop,
        }
    }

    async fn add(&self, id: &str, timeout: Duration) {
        self.watches
            .add(watch(id, &self.clock, timeout), AddedBy::Request)
            .await
            .unwrap();
    }

    async fn until(&self, at: Duration) {
        tokio::time::sleep_until(self.start + at).await;
    }

    /// The verdicts so far by run: what they are, when they were given after the start on the wall clock, and why.
    async fn verdicts(&self) -> HashMap<String, (EventType, Duration, String)> {
        let began = self.clock.now().checked_sub(self.start.elapsed()).unwrap();
        // A page is bounded in bytes.
        let mut events = Vec::new();
        loop {
            let last = events.last().map_or(0, |(seq, _)| *seq);
            let page = self.store.events_after(last, u32::MAX).await.unwrap();
            if page.is_empty() {
                break;
            }
            events.extend(page);
        }
        let verdicts = events
            .into_iter()
            .map(|(_, event)| event)
            .filter(|event| event.event_type.verdict().is_some());
        let of = |event: Event| {
            let (data, at) = (event.run().unwrap(), event.timestamp.duration_since(began));
            let why = data.reason.clone().unwrap_or_default();
            (
                data.run.id.to_string(),
                (event.event_type, at.try_into().unwrap_or_default(), why),
            )
        };
        verdicts.map(of).collect()
    }

    async fn verdict(&self, id: &str) -> Option<(EventType, Duration, String)> {
        self.verdicts().await.remove(id)
    }

    fn polls_of(&self, id: &str) -> Vec<Duration> {
        let polls = self.api.polls_of(id);
        polls.into_iter().map(|at| at - self.start).collect()
    }

    async fn end(mut self) {
        self.stop.cancel();
        drop((self.store, self.watches));
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

fn watch(id: &str, clock: &Clock, timeout: Duration) -> Watch {
    watch_of(id, clock.now(), timeout)
}

#[tokio::test(start_paused = true)]
async fn more_last_polls_than_slots_and_an_api_that_hangs_delay_no_deadline() {
    let adjust =
        |policy: &mut Policy| (policy.requests_per_minute, policy.max_in_flight) = (1_000_000, 64);
    let world = World::with(
        adjust,
        &[],
        |_, _, at| if at > SECOND * 6 { Hangs } else { Going },
    )
    .await;
    for index in 0..256 {
        world.add(&format!("run_{index}"), SECOND * 8).await;
    }
    world.until(SECOND * 14).await;
    let verdicts = world.verdicts().await;
    assert_eq!(verdicts.len(), 256);
    for (id, (_, at, why)) in verdicts {
        assert!(
            at >= SECOND * 8 && at <= SECOND * 8 + AT_THE_LATEST,
            "{id} after {at:?}: {why}"
        );
    }
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn deadlines_together_on_a_short_budget_end_in_time_and_leave_room_for_new_watches() {
    let script = |id: &str, _: usize, _: Duration| if id == "new" { Succeeded } else { Going };
    let world = World::with(|policy| policy.requests_per_minute = 60, &[], script).await;
    for index in 0..300 {
        world.add(&format!("run_{index}"), MINUTE * 2).await;
    }
    world.until(MINUTE * 2 + SECOND).await;
    world.add("new", MINUTE * 60).await;
    world.until(MINUTE * 2 + SECOND * 10).await;
    let verdicts = world.verdicts().await;
    assert_eq!(verdicts.len(), 301);
    let mut unreachable = 0;
    for (id, (verdict, at, why)) in verdicts.iter().filter(|(id, _)| *id != "new") {
        assert!(*at <= MINUTE * 2 + AT_THE_LATEST, "{id} after {at:?}");
        if *verdict == EventType::WatchUnreachable {
            unreachable += 1;
            assert!(
                (why.starts_with("never polled") || why.starts_with("not polled since"))
                    && why.ends_with("share 60 requests a minute"),
                "{why}"
            );
        }
    }
    assert!(
        (200..300).contains(&unreachable),
        "{unreachable} of them were not polled for long"
    );
    assert!(
        world.polls_of("new")[0] <= MINUTE * 2 + SECOND * 8,
        "{:?}",
        world.polls_of("new")
    );
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn deadlines_that_never_cease_leave_room_for_other_watches() {
    let world = World::with(
        |policy| policy.requests_per_minute = 30,
        &[],
        |_, _, _| Going,
    )
    .await;
    world.add("long", MINUTE * 60).await;
    for index in 0..600 {
        world.add(&format!("run_{index}"), SECOND * 30).await;
        tokio::time::sleep(SECOND).await;
        if index == 300 {
            world.add("late", MINUTE * 60).await;
        }
    }
    // Some 23 requests a minute are to be had for 60 last polls a minute, and as many first ones.
    let late = world.polls_of("late");
    assert!(
        late[0] <= SECOND * 301 + MINUTE * 2,
        "first polled at {late:?}"
    );
    let last = world.polls_of("long").last().copied().unwrap();
    assert!(last > SECOND * 400, "last polled at {last:?}");
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn only_an_answer_of_its_own_that_is_young_enough_lets_a_watch_time_out() {
    let pause = MINUTE * 60;
    for (outcome, text) in [
        (UsedUp(pause), "the API requested a pause until 11:2"),
        (Throttled(pause), "the API requested a pause until 11:2"),
        (Refused, "the API has refused the key since 10:24 UTC"),
    ] {
        let world = World::new(move |_, _, at| if at > MINUTE * 4 { outcome } else { Going }).await;
        world.add("old", MINUTE * 5 + SECOND * 30).await;
        world.until(MINUTE * 7).await;
        let (verdict, at, why) = world.verdict("old").await.unwrap();
        assert_eq!(verdict, EventType::WatchUnreachable, "{outcome:?}");
        assert!(
            at <= MINUTE * 5 + SECOND * 30 + AT_THE_LATEST && why.starts_with(text),
            "{outcome:?}: {at:?}, {why}"
        );
        world.end().await;
    }
    // The answer that requested the pause is ten seconds old, where the next poll was due after half a minute.
    let world = World::new(|_, _, at| {
        if at > MINUTE * 5 {
            UsedUp(MINUTE * 60)
        } else {
            Going
        }
    })
    .await;
    world.add("young", MINUTE * 5 + SECOND * 20).await;
    world.until(MINUTE * 6).await;
    let (verdict, at, _) = world.verdict("young").await.unwrap();
    assert_eq!(verdict, EventType::WatchTimedOut);
    assert!(at <= MINUTE * 5 + SECOND * 20 + AT_THE_LATEST, "{at:?}");
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_passed_in_a_sleep_waits_for_the_network_to_come_back() {
    // (after how long there is a network again, the verdict, when after waking at the latest)
    for (network, verdict, within) in [
        (Duration::ZERO, EventType::RunSucceeded, SECOND * 2),
        (SECOND * 20, EventType::RunSucceeded, SECOND * 25),
        (MINUTE * 5, EventType::WatchUnreachable, SECOND * 66),
    ] {
        let woken = MINUTE;
        let script = move |_: &str, _: usize, at: Duration| match at {
            at if at < SECOND * 50 => Going,
            // Under way when the machine falls asleep.
            at if at < woken => Hangs,
            at if at < woken + network => BadGateway,
            _ => Succeeded,
        };
        let world = World::new(script).await;
        for index in 0..3 {
            world.add(&format!("run_{index}"), MINUTE * 30).await;
        }
        world.until(woken).await;
        world.clock.jump(Jump {
            slept: MINUTE * 60,
            stepped: SignedDuration::ZERO,
        });
        world.until(woken + within).await;
        let verdicts = world.verdicts().await;
        assert_eq!(verdicts.len(), 3, "{network:?}: {verdicts:?}");
        assert!(
            verdicts.values().all(|(given, _, _)| *given == verdict),
            "{network:?}: {verdicts:?}"
        );
        assert_eq!(
            world.api.reconnects(),
            1,
            "the connections of before are let go"
        );
        world.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_passed_while_no_process_ran_waits_for_the_network_to_come_up() {
    for (network, verdict, within) in [
        (Duration::ZERO, EventType::RunSucceeded, SECOND * 2),
        (SECOND * 40, EventType::RunSucceeded, SECOND * 45),
        (MINUTE * 5, EventType::WatchUnreachable, SECOND * 66),
    ] {
        let script = move |_: &str, _: usize, at: Duration| {
            if at < network { BadGateway } else { Succeeded }
        };
        let world = World::with(|_| (), &[-600, -1, 0], script).await;
        world.until(SECOND * 59).await;
        let early = world.verdicts().await;
        assert!(
            early
                .values()
                .all(|(given, _, _)| *given == EventType::RunSucceeded),
            "{network:?}: {early:?}"
        );
        world.until(within.max(SECOND * 59)).await;
        let verdicts = world.verdicts().await;
        assert_eq!(verdicts.len(), 3, "{network:?}");
        for (given, at, _) in verdicts.values() {
            assert!(
                *given == verdict && *at <= within,
                "{network:?}: {given:?} after {at:?}"
            );
        }
        world.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_is_not_missing_while_it_could_not_be_polled() {
    let script = |id: &str, number: usize, _: Duration| match (id, number) {
        ("slow", 1) => UsedUp(MINUTE * 10),
        ("slow", _) => Going,
        // There since the second look.
        ("hidden", 1 | 2) => Missing,
        ("hidden", _) => Succeeded,
        _ => Missing,
    };
    let world = World::new(script).await;
    for id in ["hidden", "slow", "never"] {
        world.add(id, MINUTE * 60).await;
    }
    world.until(MINUTE * 11).await;
    assert_eq!(
        world.verdict("hidden").await.map(|(verdict, _, _)| verdict),
        Some(EventType::RunSucceeded)
    );
    assert!(world.verdict("never").await.is_none());
    world.until(MINUTE * 13).await;
    let (verdict, at, why) = world.verdict("never").await.unwrap();
    assert_eq!(verdict, EventType::WatchNotFound);
    assert!(
        at >= MINUTE * 12 - SECOND && at <= MINUTE * 12 + SECOND,
        "{at:?}"
    );
    assert!(why.contains("never knew"), "{why}");
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_sleep_is_no_time_in_which_a_run_was_missing() {
    let world = World::new(|_, _, _| Missing).await;
    world.add("run_1", MINUTE * 600).await;
    for _ in 0..3 {
        tokio::time::sleep(SECOND * 30).await;
        world.clock.jump(Jump {
            slept: MINUTE * 10,
            stepped: SignedDuration::ZERO,
        });
    }
    tokio::time::sleep(SECOND).await;
    assert!(world.verdict("run_1").await.is_none());
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!(
        world.verdict("run_1").await.map(|(verdict, _, _)| verdict),
        Some(EventType::WatchNotFound)
    );
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_reload_to_another_account_ends_the_pause_of_the_one_before() {
    for (account, polled) in [("second", true), ("first", false)] {
        let world = World::new(|_, _, at| {
            if at < SECOND {
                Throttled(MINUTE * 60)
            } else {
                Going
            }
        })
        .await;
        world.add("run_1", MINUTE * 60).await;
        world.until(SECOND * 10).await;
        world
            .watches
            .reload(world.api.with_account(account), world.policy.clone())
            .await
            .unwrap();
        world.until(SECOND * 11).await;
        assert_eq!(world.polls_of("run_1").len() > 1, polled, "{account}");
        world.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_key_is_probed_soon_at_first() {
    let world = World::new(|_, _, _| Refused).await;
    for index in 0..5 {
        world.add(&format!("run_{index}"), MINUTE * 600).await;
    }
    world.until(MINUTE * 5).await;
    let mut probes: Vec<u64> = world
        .api
        .polls()
        .iter()
        .map(|poll| (poll.at - world.start).as_secs())
        .collect();
    probes.dedup();
    assert_eq!(probes, [0, 5, 20, 65, 125, 185, 245]);
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_failing_api_gets_one_probe_at_a_time_from_1_to_60_seconds_apart() {
    for (outcome, takes) in [(BadGateway, 0.02), (Hangs, 15.0)] {
        let world = World::new(move |_, _, _| outcome).await;
        for index in 0..20 {
            world.add(&format!("run_{index}"), MINUTE * 600).await;
        }
        world.until(MINUTE * 180).await;
        assert_eq!(world.api.most_repeated(), 1, "{outcome:?}");
        let polls: Vec<_> = world
            .api
            .polls()
            .iter()
            .map(|poll| (poll.at - world.start).as_secs_f64())
            .collect();
        // The first polls of all went out before anything was known.
        let probes = &polls[polls.iter().filter(|at| **at < takes + 0.1).count()..];
        for pair in probes.windows(2) {
            let wait = pair[1] - pair[0] - takes;
            assert!(
                (0.89..=60.01).contains(&wait),
                "{outcome:?}: {wait} s from an answer to the next probe"
            );
        }
        let longest = 180.0 * 60.0 / (60.0 + takes);
        let expected = longest * 0.95..longest * 1.2 + 10.0;
        assert!(
            expected.contains(&(probes.len() as f64)),
            "{outcome:?}: {} probes in 3 h",
            probes.len()
        );
        world.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_that_changes_its_status_at_each_poll_is_polled_more_and_more_rarely_all_the_same() {
    let script = |_: &str, number: usize, _: Duration| Says(["moving", "shaking"][number % 2]);
    let world = World::new(script).await;
    world.add("run_1", MINUTE * 600).await;
    world.until(MINUTE * 10).await;
    let before = world.polls_of("run_1").len();
    world.until(MINUTE * 70).await;
    let polls = world.polls_of("run_1").len() - before;
    assert!((110..=130).contains(&polls), "{polls} polls in an hour");
    world.end().await;
}

/// Whether the deliveries of these runs to the sink `ops` wait for a summary, by the run.
async fn waiting(world: &World) -> Vec<(String, bool)> {
    let all = world.store.deliveries(DeliveryFilter::default(), 100);
    let of = |delivery: DeliverySummary| {
        let waits = delivery.state == DeliveryState::Pending && delivery.next_attempt_at.is_none();
        (delivery.run_id.unwrap().to_string(), waits)
    };
    all.await.unwrap().items.into_iter().map(of).collect()
}

/// The sink `ops` gets a summary.
fn with_summaries(policy: &mut Policy) {
    policy.routes = Arc::new(Routes::from_iter([Route {
        sink: SinkName::new("ops").unwrap(),
        events: EventFilter::verdicts(),
        labels: Labels::new(),
        one_per_group: false,
        digest: true,
    }]));
}

#[tokio::test(start_paused = true)]
async fn ends_are_held_until_every_run_was_polled_after_the_start_or_a_sleep() {
    let script = |run: &str, _, at| match run {
        "run_0" => Succeeded,
        "run_1" if at < SECOND * 20 => BadGateway,
        "run_2" if at > MINUTE * 3 => Succeeded,
        _ => Going,
    };
    let hours = 3600 * 5;
    let world = World::with(with_summaries, &[hours; 3], script).await;
    world.until(SECOND * 5).await;
    assert_eq!(world.rounds.over(), None, "one run was not polled yet");
    assert_eq!(waiting(&world).await, [("run_0".to_owned(), true)]);
    world.until(SECOND * 60).await;
    assert_eq!(world.rounds.over(), Some(1));
    // It went on in the round, so that its end is not a late one.
    world.until(MINUTE * 4).await;
    let held = waiting(&world).await;
    assert_eq!(held[1], ("run_2".to_owned(), false));
    world.clock.jump(Jump {
        slept: MINUTE * 30,
        stepped: SignedDuration::ZERO,
    });
    world.until(MINUTE * 5).await;
    assert_eq!(world.rounds.over(), Some(2), "a sleep is another round");
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_api_that_is_down_holds_ends_for_two_minutes() {
    let script = |run: &str, _, at| match run {
        "run_0" => Succeeded,
        _ if at < MINUTE * 10 => BadGateway,
        _ => Succeeded,
    };
    let hours = 3600 * 5;
    let world = World::with(with_summaries, &[hours; 2], script).await;
    world.until(SECOND * 110).await;
    assert_eq!(world.rounds.over(), None);
    world.until(SECOND * 125).await;
    assert_eq!(world.rounds.over(), Some(1));
    world.until(MINUTE * 20).await;
    assert_eq!(
        waiting(&world).await,
        [("run_0".to_owned(), true), ("run_1".to_owned(), false)],
        "what becomes known later is sent as usual"
    );
    world.end().await;
}
