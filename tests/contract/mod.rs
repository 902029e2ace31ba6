//! What every store does, whatever its engine: tests/it runs these tests on SQLite, tests/cluster on PostgreSQL.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use runwatch::domain::{
    Event, EventData, EventFilter, EventType, FoundBy, GroupEvent, Labels, Limits, Observation,
    OverdueAfter, PollOutcome, Progress, ProviderName, ProviderNotice, Route, Routes, RunDetails,
    RunRef, RunState, SinkName, Status, Step, TraceContext, Verdict, Watch, WatchOrigin,
};
use runwatch::notify::payload::json_within;
use runwatch::store::{
    Added, Attempt, AttemptOutcome, DeliveryFilter, DeliveryState, DiscoveredRun, DiscoveryId,
    Fate, KnownRun, RoutedEvent, RunNote, Store, StoreError, WatchFilter, WatchId,
};
use tokio::task::JoinSet;

/// Where a store is.
pub(crate) trait Place {
    /// Opens the store as a process does that takes it up, with the tasks that serve it.
    async fn open(&self) -> (Store, JoinSet<()>);

    /// How many rows a table has.
    async fn rows_of(&self, table: &str) -> i64;
}

pub(crate) fn time(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

pub(crate) fn watch(id: &str) -> Watch {
    Watch {
        run_id: RunRef::new(id).unwrap(),
        name: Some("nightly".to_owned()),
        labels: Labels::from([("team".to_owned(), "search".to_owned())]),
        sinks: Some(vec![SinkName::new("ops").unwrap()]),
        added_at: time(0),
        deadline_at: time(3600),
        trace: None,
    }
}

pub(crate) fn step(watch: &Watch, progress: &Progress, status: &str, now: Timestamp) -> Step {
    let limits = Limits {
        not_found_grace: Duration::from_secs(120),
        overdue_after: OverdueAfter::Never,
        run_url: None,
    };
    let output = serde_json::value::to_raw_value(&[1, 2]).unwrap().into();
    let details = RunDetails {
        output: Some(output),
        created_at: Some(time(-5)),
        ..RunDetails::default()
    };
    let observation = Observation {
        status: Status::read(None, status),
        details,
    };
    progress
        .step(
            watch,
            PollOutcome::Seen(Box::new(observation)),
            now,
            &limits,
        )
        .unwrap()
}

pub(crate) fn routed_to(step: &Step, sinks: &[&str]) -> Vec<RoutedEvent> {
    let sinks: Vec<_> = sinks
        .iter()
        .map(|name| SinkName::new(name).unwrap())
        .collect();
    step.events
        .iter()
        .map(|event| RoutedEvent {
            event: event.clone(),
            sinks: sinks.clone(),
            held: Vec::new(),
        })
        .collect()
}

/// An event about the API at `at`.
pub(crate) fn incident(event_type: EventType, at: Timestamp) -> RoutedEvent {
    let notice = ProviderNotice {
        provider: ProviderName::crewship(),
        message: "no usable answer".to_owned(),
        since: at,
        fallback_for: None,
    };
    RoutedEvent {
        event: Event {
            event_type,
            timestamp: at,
            data: EventData::Provider(notice),
        },
        sinks: Vec::new(),
        held: Vec::new(),
    }
}

pub(crate) fn note(id: &str, attempt: Option<u64>) -> RunNote {
    RunNote {
        run_id: RunRef::new(id).unwrap(),
        attempt,
        ended_at: None,
    }
}

pub(crate) fn found(discovery: DiscoveryId, note: RunNote, again: bool) -> DiscoveredRun {
    DiscoveredRun {
        discovery,
        title: "crewship".to_owned(),
        note,
        again,
    }
}

/// A discovery of Crewship's runs that is stored as new at `time(0)`.
pub(crate) async fn discovery(store: &Store) -> DiscoveryId {
    let discoveries = vec![(ProviderName::crewship(), "{}".to_owned())];
    let begun = store.set_discoveries(discoveries, time(0)).await.unwrap();
    begun[0].id
}

pub(crate) async fn close(store: Store, mut tasks: JoinSet<()>) {
    drop(store);
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
}

pub(crate) async fn watches_verdicts_and_deliveries_outlive_the_process(place: &impl Place) {
    let (store, tasks) = place.open().await;
    let (first, second) = (watch("run_1"), watch("run_2"));
    let (added, first_id) = store.add_watch(first.clone()).await.unwrap();
    assert_eq!(added, Added::New);
    assert_eq!(
        store.add_watch(first.clone()).await.unwrap(),
        (Added::AlreadyExists, first_id)
    );
    let (added, second_id) = store.add_watch(second.clone()).await.unwrap();
    assert_eq!(added, Added::New);
    let running = step(&second, &Progress::begin(time(0)), "running", time(1));
    store
        .record_step(second_id, running, Vec::new(), None, FoundBy::Poll, time(1))
        .await
        .unwrap();
    let failed = step(&first, &Progress::begin(time(0)), "failed", time(2));
    let events = routed_to(&failed, &["ops", "desk"]);
    store
        .record_step(
            first_id,
            failed.clone(),
            events,
            None,
            FoundBy::Poll,
            time(2),
        )
        .await
        .unwrap();

    // The attempt is under way when the process dies.
    let ops = SinkName::new("ops").unwrap();
    let claimed = store
        .claim_due(ops.clone(), time(2), 10, usize::MAX)
        .await
        .unwrap();
    assert_eq!(claimed.len(), 1);
    assert_eq!(
        store
            .claim_due(ops.clone(), time(2), 10, usize::MAX)
            .await
            .unwrap()
            .len(),
        0,
        "claimed once only"
    );
    close(store, tasks).await;

    let (store, tasks) = place.open().await;
    let active = store.active_watches(time(100), None, 10).await.unwrap();
    assert_eq!(active.len(), 1);
    assert_eq!(active[0].watch, second);
    assert_eq!(
        active[0].progress.status,
        Some(Status::from(RunState::Running))
    );
    assert!(active[0].progress.seen_running);
    let details = store.details(second_id).await.unwrap().unwrap();
    assert_eq!(
        (details.output.as_ref().unwrap().get(), details.created_at),
        ("[1,2]", Some(time(-5)))
    );

    let again = store
        .claim_due(ops, time(100), 10, usize::MAX)
        .await
        .unwrap();
    assert_eq!(again.len(), 1);
    assert_eq!(
        (&again[0].id, again[0].attempt),
        (&claimed[0].id, 2),
        "same ID, next attempt"
    );
    assert_eq!(again[0].event.event_type, EventType::RunFailed);
    assert_eq!(again[0].event.to_json(), failed.events[0].to_json());
    close(store, tasks).await;
}

pub(crate) async fn a_verdict_is_given_once(place: &impl Place) {
    let (store, tasks) = place.open().await;
    let watch = watch("run_1");
    let (_, id) = store.add_watch(watch.clone()).await.unwrap();
    let failed = step(&watch, &Progress::begin(time(0)), "failed", time(2));
    assert_eq!(failed.progress.verdict, Some(Verdict::Failed));
    store
        .record_step(
            id,
            failed.clone(),
            routed_to(&failed, &["ops"]),
            None,
            FoundBy::Poll,
            time(2),
        )
        .await
        .unwrap();
    let succeeded = step(&watch, &Progress::begin(time(0)), "succeeded", time(3));
    let refused = store
        .record_step(
            id,
            succeeded.clone(),
            routed_to(&succeeded, &["ops"]),
            None,
            FoundBy::Poll,
            time(3),
        )
        .await;
    assert!(
        matches!(refused, Err(StoreError::Precondition { .. })),
        "{refused:?}"
    );
    let events = store.events_after(0, u32::MAX).await.unwrap();
    assert_eq!(
        events
            .iter()
            .map(|(_, event)| event.event_type)
            .collect::<Vec<_>>(),
        [EventType::RunFailed]
    );
    assert_eq!(
        store
            .deliveries(DeliveryFilter::default(), 100)
            .await
            .unwrap()
            .items
            .len(),
        1,
        "the refused step left nothing behind"
    );
    close(store, tasks).await;
}

pub(crate) async fn attempts_are_recorded_with_what_follows(place: &impl Place) {
    let (store, tasks) = place.open().await;
    let (watch, ops) = (watch("run_1"), SinkName::new("ops").unwrap());
    let (_, id) = store.add_watch(watch.clone()).await.unwrap();
    let failed = step(&watch, &Progress::begin(time(0)), "failed", time(2));
    store
        .record_step(
            id,
            failed.clone(),
            routed_to(&failed, &["ops"]),
            None,
            FoundBy::Poll,
            time(2),
        )
        .await
        .unwrap();

    let attempt = |attempt, at, outcome| Attempt {
        attempt,
        at: time(at),
        took: Duration::from_millis(15),
        detail: format!("answer {attempt}"),
        outcome,
    };
    let claimed = store
        .claim_due(ops.clone(), time(2), 10, usize::MAX)
        .await
        .unwrap()
        .remove(0);
    store
        .record_attempt(
            claimed.id.clone(),
            attempt(1, 2, AttemptOutcome::Retry(time(7))),
        )
        .await
        .unwrap();
    assert_eq!(store.next_due(ops.clone()).await.unwrap(), Some(time(7)));
    assert_eq!(
        store
            .claim_due(ops.clone(), time(6), 10, usize::MAX)
            .await
            .unwrap()
            .len(),
        0,
        "not due yet"
    );
    let again = store
        .claim_due(ops.clone(), time(7), 10, usize::MAX)
        .await
        .unwrap()
        .remove(0);
    assert_eq!((&again.id, again.attempt), (&claimed.id, 2));
    let stale = store
        .record_attempt(claimed.id.clone(), attempt(1, 7, AttemptOutcome::Delivered))
        .await;
    assert!(
        matches!(stale, Err(StoreError::Precondition { .. })),
        "an attempt that is over: {stale:?}"
    );
    store
        .record_attempt(claimed.id.clone(), attempt(2, 7, AttemptOutcome::Delivered))
        .await
        .unwrap();
    let deliveries = store
        .deliveries(DeliveryFilter::default(), 100)
        .await
        .unwrap()
        .items;
    assert_eq!(deliveries.len(), 1);
    assert_eq!(
        (deliveries[0].state, deliveries[0].attempts),
        (DeliveryState::Delivered, 2)
    );
    assert_eq!(deliveries[0].last_detail.as_deref(), Some("answer 2"));
    assert_eq!(store.next_due(ops).await.unwrap(), None);
    close(store, tasks).await;
}

pub(crate) async fn a_delivery_that_is_given_up_makes_one_to_the_fallback(place: &impl Place) {
    let (store, tasks) = place.open().await;
    let name = |text: &str| SinkName::new(text).unwrap();
    let watch = watch("run_1");
    let (_, id) = store.add_watch(watch.clone()).await.unwrap();
    let failed = step(&watch, &Progress::begin(time(0)), "failed", time(2));
    let routed = routed_to(&failed, &["ops", "desk"]);
    store
        .record_step(id, failed, routed, None, FoundBy::Poll, time(2))
        .await
        .unwrap();
    let attempt = async |sink: &str, number: u32, outcome, fallback: &str| {
        let mut claimed = store
            .claim_due(name(sink), time(200), 10, usize::MAX)
            .await
            .unwrap();
        assert_eq!(claimed.len(), 1, "{sink}");
        let claimed = claimed.remove(0);
        let attempt = Attempt {
            attempt: number,
            at: time(100),
            took: Duration::from_secs(1),
            detail: "no answer".to_owned(),
            outcome,
        };
        store
            .record_attempt_with(claimed.id, attempt, Some(name(fallback)))
            .await
            .unwrap();
        claimed
            .event
            .fallback_for()
            .map(|sink| sink.as_str().to_owned())
    };
    let listed = async || -> Vec<(String, Option<String>, DeliveryState)> {
        let all = store.deliveries(DeliveryFilter::default(), 10).await;
        let all = all.unwrap().items.into_iter();
        all.map(|delivery| {
            let fallback_for = delivery.fallback_for.map(|sink| sink.as_str().to_owned());
            (
                delivery.sink.as_str().to_owned(),
                fallback_for,
                delivery.state,
            )
        })
        .collect()
    };
    // Another attempt follows, so that the fallback gets nothing.
    attempt("ops", 1, AttemptOutcome::Retry(time(7)), "mail").await;
    assert_eq!(listed().await.len(), 2);
    assert_eq!(attempt("ops", 2, AttemptOutcome::Dead, "mail").await, None);
    assert_eq!(
        store.next_due(name("mail")).await.unwrap(),
        Some(time(101)),
        "due when the attempt ended"
    );
    // A chain: the fallback is given up as well.
    let why = attempt("mail", 1, AttemptOutcome::Dead, "pager").await;
    assert_eq!(why.as_deref(), Some("ops"));
    // The event has a delivery to that sink already.
    let why = attempt("pager", 1, AttemptOutcome::Dead, "desk").await;
    assert_eq!(why.as_deref(), Some("mail"));
    // A person retries the first one, which is given up again.
    let of_ops = DeliveryFilter {
        sink: Some(name("ops")),
        ..DeliveryFilter::default()
    };
    let first = store.deliveries(of_ops, 10).await.unwrap().items.remove(0);
    store
        .decide(first.id, Fate::Retry, time(100))
        .await
        .unwrap();
    assert_eq!(attempt("ops", 3, AttemptOutcome::Dead, "mail").await, None);
    let mut all = listed().await;
    all.sort_by(|a, b| a.0.cmp(&b.0));
    let of = |sink: &str, fallback_for: Option<&str>, state| {
        let fallback_for = fallback_for.map(ToOwned::to_owned);
        (sink.to_owned(), fallback_for, state)
    };
    assert_eq!(
        all,
        [
            of("desk", None, DeliveryState::Pending),
            of("mail", Some("ops"), DeliveryState::Dead),
            of("ops", None, DeliveryState::Dead),
            of("pager", Some("mail"), DeliveryState::Dead),
        ]
    );
    // It is about the watch like any other.
    let history = store.history(watch.run_id).await.unwrap().unwrap();
    assert_eq!(history.deliveries.len(), 4);
    close(store, tasks).await;
}

pub(crate) async fn held_deliveries_stay_where_they_are_on_the_wall_clock(place: &impl Place) {
    let (store, tasks) = place.open().await;
    let ops = SinkName::new("ops").unwrap();
    let watch = watch("run_1");
    let (_, id) = store.add_watch(watch.clone()).await.unwrap();
    let done = step(&watch, &Progress::begin(time(0)), "succeeded", time(2));
    let routed = routed_to(&done, &["ops"]);
    store
        .record_step(id, done, routed, None, FoundBy::Poll, time(2))
        .await
        .unwrap();
    let claim = async |at| {
        let mut claimed = store
            .claim_due(ops.clone(), time(at), 10, usize::MAX)
            .await
            .unwrap();
        claimed.pop()
    };
    let listed = async || {
        let all = store.deliveries(DeliveryFilter::default(), 10).await;
        all.unwrap().items.remove(0)
    };
    let claimed = claim(3).await.unwrap();
    assert_eq!((claimed.held_until, claimed.at_once), (None, false));
    let id = claimed.id;
    store.hold(id.clone(), 1, time(1000)).await.unwrap();
    let again = store.hold(id.clone(), 1, time(1000)).await;
    assert!(
        matches!(again, Err(StoreError::Precondition { .. })),
        "it is not claimed: {again:?}"
    );
    let held = listed().await;
    assert_eq!(
        (held.state, held.attempts, held.held_until),
        (DeliveryState::Pending, 0, Some(time(1000)))
    );
    let age = async |at| {
        let gauges = store.gauges(time(at), Vec::new()).await.unwrap();
        let of_sink = gauges.deliveries.iter().find(|known| known.sink == ops);
        let age = of_sink.unwrap().oldest_pending.unwrap();
        assert_eq!(gauges.oldest_pending(), Some(age));
        age.as_secs()
    };
    assert_eq!((age(900).await, age(1060).await), (0, 60));
    // The clock is set; the hold ends when that clock shows its end.
    for step in [300_000, -500_000] {
        store
            .shift_deadlines(Vec::new(), step, time(10))
            .await
            .unwrap();
        assert_eq!(store.next_due(ops.clone()).await.unwrap(), Some(time(1000)));
    }
    store.set_holds(ops.clone(), time(700)).await.unwrap();
    assert_eq!(listed().await.held_until, Some(time(700)));
    assert!(claim(699).await.is_none());
    let claimed = claim(700).await.unwrap();
    assert_eq!(
        (claimed.attempt, claimed.held_until),
        (1, Some(time(700))),
        "the hold was not an attempt"
    );
    // An attempt that fails after the hold is tried again by the schedule.
    let attempt = Attempt {
        attempt: 1,
        at: time(700),
        took: Duration::ZERO,
        detail: "no answer".to_owned(),
        outcome: AttemptOutcome::Retry(time(705)),
    };
    store.record_attempt(id.clone(), attempt).await.unwrap();
    assert_eq!(listed().await.held_until, None);
    store.set_holds(ops.clone(), time(2000)).await.unwrap();
    assert_eq!(store.next_due(ops.clone()).await.unwrap(), Some(time(705)));
    assert_eq!(age(760).await, 60);
    // A retry by hand is not held.
    assert_eq!(claim(705).await.unwrap().attempt, 2);
    store.hold(id.clone(), 2, time(3000)).await.unwrap();
    store.decide(id, Fate::Retry, time(710)).await.unwrap();
    let claimed = claim(710).await.unwrap();
    assert_eq!((claimed.held_until, claimed.at_once), (None, true));
    close(store, tasks).await;
}

/// Stores the ends of these runs, whose deliveries to the sink `ops` wait for a summary, and to `each` do not.
async fn end_unwatched(store: &Store, ends: &[(&str, &str)], at: i64) {
    for (id, status) in ends {
        let watch = watch(id);
        let (_, number) = store.add_watch(watch.clone()).await.unwrap();
        let ended = step(&watch, &Progress::begin(time(0)), status, time(at));
        let mut routed = routed_to(&ended, &["each"]);
        for routed in &mut routed {
            routed.held = vec![SinkName::new("ops").unwrap()];
        }
        store
            .record_step(number, ended, routed, None, FoundBy::Poll, time(at))
            .await
            .unwrap();
    }
}

pub(crate) async fn what_waits_for_a_summary_is_included_once(place: &impl Place) {
    let (store, tasks) = place.open().await;
    let (ops, each) = (
        SinkName::new("ops").unwrap(),
        SinkName::new("each").unwrap(),
    );
    let claim = async |sink: &SinkName, at| {
        let due = store.claim_due(sink.clone(), time(at), 100, usize::MAX);
        due.await.unwrap()
    };
    let of_ops = async |states: Vec<DeliveryState>| {
        let filter = DeliveryFilter {
            states,
            sink: Some(ops.clone()),
            ..DeliveryFilter::default()
        };
        store.deliveries(filter, 100).await.unwrap().items
    };
    let ends = [
        ("run_1", "succeeded"),
        ("run_2", "failed"),
        ("run_3", "succeeded"),
        ("run_4", "canceled"),
    ];
    end_unwatched(&store, &ends, 5).await;
    // They wait, whatever the time is and whether or not the process died.
    store.take_up().await.unwrap();
    assert_eq!(claim(&ops, 1000).await.len(), 0);
    assert_eq!(store.next_due(ops.clone()).await.unwrap(), None);
    assert_eq!(claim(&each, 1000).await.len(), 4, "others do not wait");
    let refused = store
        .remove_watches(RunRef::new("run_1").unwrap(), false)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("to be in the summary after downtime, and 1 more delivery"),
        "{refused}"
    );
    // A person takes one of them out.
    let first = of_ops(Vec::new()).await.remove(0);
    assert_eq!(
        (first.state, first.next_attempt_at, first.included_in),
        (DeliveryState::Pending, None, None)
    );
    store
        .decide(first.id, Fate::Retry, time(1000))
        .await
        .unwrap();
    let claimed = claim(&ops, 1000).await;
    assert_eq!(claimed.len(), 1);
    store
        .record_attempt(claimed[0].id.clone(), delivered(1001))
        .await
        .unwrap();
    store
        .summarize(each.clone(), true, time(1001))
        .await
        .unwrap();
    store
        .summarize(ops.clone(), true, time(1002))
        .await
        .unwrap();
    store
        .summarize(ops.clone(), true, time(1003))
        .await
        .unwrap();
    let claimed = claim(&ops, 1002).await;
    assert_eq!(claimed.len(), 1, "one summary");
    assert_eq!(claimed[0].event.event_type, EventType::RunDigest);
    let data = claimed[0].event.group().unwrap();
    let named: Vec<_> = data.runs.iter().map(|run| run.id.as_str()).collect();
    assert_eq!(named, ["run_2", "run_4", "run_3"], "the worst first");
    assert_eq!((data.total, data.scope.name()), (3, "ops"));
    let summary = claimed[0].id.clone();
    let included = of_ops(vec![DeliveryState::Included]).await;
    assert_eq!(included.len(), 3);
    for delivery in included {
        assert_eq!(delivery.included_in.as_ref(), Some(&summary));
        assert_eq!(
            (delivery.attempts, delivery.ended_at),
            (0, Some(time(1002)))
        );
        let id = delivery.id;
        let retried = store.decide(id.clone(), Fate::Retry, time(1003)).await;
        assert!(
            matches!(retried, Err(StoreError::Precondition { .. })),
            "{retried:?}"
        );
        let why = format!(
            "delivery {id}, which the summary {summary} includes, is not sent by itself; name the summary instead"
        );
        assert_eq!(retried.unwrap_err().to_string(), why);
    }
    let arrived = of_ops(vec![DeliveryState::Delivered]).await;
    assert_eq!(arrived.len(), 1, "included ones are not among them");
    // Given up, it goes to the fallback; a retry makes it again.
    let given_up = Attempt {
        outcome: AttemptOutcome::Dead,
        ..delivered(1004)
    };
    store
        .record_attempt_with(
            summary.clone(),
            given_up,
            Some(SinkName::new("mail").unwrap()),
        )
        .await
        .unwrap();
    let fallen = claim(&SinkName::new("mail").unwrap(), 1005).await;
    assert_eq!(fallen[0].event.group().unwrap().total, 3);
    assert_eq!(fallen[0].event.fallback_for(), Some(&ops));
    store
        .decide(summary.clone(), Fate::Retry, time(1006))
        .await
        .unwrap();
    let again = claim(&ops, 1006).await;
    assert_eq!((&again[0].id, again.len()), (&summary, 1));
    close(store, tasks).await;
}

pub(crate) async fn few_ends_have_no_summary(place: &impl Place) {
    let (store, tasks) = place.open().await;
    let ops = SinkName::new("ops").unwrap();
    let types = async |at| {
        let due = store.claim_due(ops.clone(), time(at), 100, usize::MAX);
        let mut types: Vec<_> = due
            .await
            .unwrap()
            .iter()
            .map(|claimed| claimed.event.event_type.as_str())
            .collect();
        types.sort_unstable();
        types
    };
    let two = [("run_1", "succeeded"), ("run_2", "failed")];
    end_unwatched(&store, &two, 5).await;
    store.summarize(ops.clone(), true, time(6)).await.unwrap();
    assert_eq!(types(5).await, [""; 0]);
    assert_eq!(store.next_due(ops.clone()).await.unwrap(), Some(time(6)));
    assert_eq!(types(6).await, ["run.failed", "run.succeeded"]);
    // A reload turned summaries off.
    let three = [
        ("run_3", "succeeded"),
        ("run_4", "failed"),
        ("run_5", "failed"),
    ];
    end_unwatched(&store, &three, 7).await;
    store.summarize(ops.clone(), false, time(8)).await.unwrap();
    assert_eq!(
        types(8).await,
        ["run.failed", "run.failed", "run.succeeded"]
    );
    // The sink is gone.
    let more = [
        ("run_6", "succeeded"),
        ("run_7", "failed"),
        ("run_8", "failed"),
    ];
    end_unwatched(&store, &more, 9).await;
    let kept = vec![SinkName::new("each").unwrap()];
    let pruned = store.prune(time(100), kept, time(100)).await.unwrap();
    assert_eq!(pruned.given_up, [(ops.clone(), 3)]);
    close(store, tasks).await;
}

/// A watch in the group `nightly` that waits for so many.
fn in_group(id: &str, size: &str) -> Watch {
    let mut watch = watch(id);
    watch.sinks = None;
    let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    watch.labels.extend([label("group", "nightly")]);
    if !size.is_empty() {
        watch.labels.extend([label("group_size", size)]);
    }
    watch
}

/// A sink that gets one message for a group, and one that gets each verdict.
fn group_routes() -> Arc<Routes> {
    let route = |sink: &str, one_per_group| Route {
        sink: SinkName::new(sink).unwrap(),
        events: EventFilter::verdicts(),
        labels: Labels::new(),
        one_per_group,
        digest: false,
    };
    Arc::new(Routes::from_iter([
        route("one", true),
        route("each", false),
    ]))
}

/// Stores the verdict of a watch of a group.
async fn end_in_group(store: &Store, watch: &Watch, id: WatchId, status: &str, at: i64) {
    let routes = group_routes();
    let ended = step(watch, &Progress::begin(time(0)), status, time(at));
    let routed = ended.events.iter().map(|event| RoutedEvent {
        event: event.clone(),
        sinks: routes.sinks_for(event, Some(watch)),
        held: Vec::new(),
    });
    let routed = routed.collect();
    store
        .record_group_step(id, ended, routed, None, FoundBy::Poll, time(at), routes)
        .await
        .unwrap();
}

/// A first attempt at a time, which arrived.
fn delivered(at: i64) -> Attempt {
    Attempt {
        attempt: 1,
        at: time(at),
        took: Duration::ZERO,
        detail: String::new(),
        outcome: AttemptOutcome::Delivered,
    }
}

/// Makes the deliveries to a sink that are due.
async fn deliver(store: &Store, sink: SinkName, now: i64) {
    let due = store.claim_due(sink, time(now), 10, usize::MAX);
    for claimed in due.await.unwrap() {
        let attempt = delivered(now);
        store.record_attempt(claimed.id, attempt).await.unwrap();
    }
}

/// The groups that are finished: how many watches each had, with which verdicts, and how many were missing.
async fn finished_groups(store: &Store) -> Vec<(u64, String, u64)> {
    let events = store.events_after(0, 1000).await.unwrap();
    let groups = events.iter().filter_map(|(_, event)| event.group());
    let words = |group: &GroupEvent| {
        let counts = group
            .counts()
            .map(|(verdict, count)| format!("{count} {verdict}"));
        counts.collect::<Vec<_>>().join(" ")
    };
    groups
        .map(|group| (group.total, words(group), group.missing))
        .collect()
}

pub(crate) async fn a_group_is_finished_with_its_last_verdict(place: &impl Place) {
    let (store, tasks) = place.open().await;
    let mut added = Vec::new();
    for id in ["run_1", "run_2", "run_3"] {
        let watch = in_group(id, "");
        let (_, number) = store.add_watch(watch.clone()).await.unwrap();
        added.push((watch, number));
    }
    end_in_group(&store, &added[0].0, added[0].1, "succeeded", 2).await;
    end_in_group(&store, &added[1].0, added[1].1, "failed", 3).await;
    assert_eq!(finished_groups(&store).await, []);
    // The retention does not take a watch of a group that is open.
    let names = || {
        vec![
            SinkName::new("each").unwrap(),
            SinkName::new("one").unwrap(),
        ]
    };
    for sink in names() {
        deliver(&store, sink, 4).await;
    }
    let pruned = store.prune(time(100), names(), time(100)).await.unwrap();
    assert_eq!(pruned.deleted, 0, "{pruned:?}");
    end_in_group(&store, &added[2].0, added[2].1, "succeeded", 5).await;
    let first = (3, "1 failed 2 succeeded".to_owned(), 0);
    assert_eq!(finished_groups(&store).await, std::slice::from_ref(&first));
    let deliveries = store
        .deliveries(DeliveryFilter::default(), 10)
        .await
        .unwrap();
    let got: Vec<_> = deliveries
        .items
        .iter()
        .map(|delivery| (delivery.sink.as_str(), delivery.event_type.as_str()))
        .collect();
    assert_eq!(
        got,
        [
            ("each", "run.succeeded"),
            ("each", "run.failed"),
            ("each", "run.succeeded"),
            ("one", "group.finished"),
        ]
    );
    let claimed = store
        .claim_due(names().remove(1), time(6), 10, usize::MAX)
        .await
        .unwrap();
    let runs = &claimed[0].event.group().unwrap().runs;
    let named: Vec<_> = runs.iter().map(|run| run.id.as_str()).collect();
    assert_eq!(named, ["run_2", "run_1", "run_3"], "the worst first");
    // The same name later is a new group.
    let again = in_group("run_4", "");
    let (_, number) = store.add_watch(again.clone()).await.unwrap();
    end_in_group(&store, &again, number, "succeeded", 7).await;
    let second = (1, "1 succeeded".to_owned(), 0);
    assert_eq!(finished_groups(&store).await, [first, second]);
    let routes = group_routes();
    let left = store.finish_groups(routes, time(0), time(9)).await.unwrap();
    assert_eq!(left, 0, "nothing is finished twice");
    close(store, tasks).await;
}

pub(crate) async fn a_group_waits_for_its_size_and_not_for_what_is_removed(place: &impl Place) {
    let (store, tasks) = place.open().await;
    let add = async |id: &str, size: &str| {
        let watch = in_group(id, size);
        let (_, number) = store.add_watch(watch.clone()).await.unwrap();
        (watch, number)
    };
    let finish = async |before: i64| {
        let routes = group_routes();
        store
            .finish_groups(routes, time(before), time(before + 1))
            .await
            .unwrap()
    };
    let remove = async |id: &str| {
        let removed = store.remove_watches(RunRef::new(id).unwrap(), true).await;
        assert_eq!(removed.unwrap().len(), 1);
    };
    // The first one ends before the second one is added.
    let (watch, number) = add("run_1", "3").await;
    end_in_group(&store, &watch, number, "succeeded", 2).await;
    let (watch, number) = add("run_2", "3").await;
    end_in_group(&store, &watch, number, "succeeded", 3).await;
    assert_eq!(
        (finish(0).await, finished_groups(&store).await.len()),
        (0, 0)
    );
    let (watch, number) = add("run_3", "3").await;
    end_in_group(&store, &watch, number, "canceled", 4).await;
    let first = (3, "1 canceled 2 succeeded".to_owned(), 0);
    assert_eq!(finished_groups(&store).await, std::slice::from_ref(&first));

    // Of three, one is removed before it ends: the message is about the others.
    let (watch, number) = add("run_4", "3").await;
    add("run_5", "3").await;
    end_in_group(&store, &watch, number, "failed", 5).await;
    remove("run_5").await;
    assert_eq!(finish(0).await, 0, "one more is to be added");
    let (watch, number) = add("run_6", "3").await;
    end_in_group(&store, &watch, number, "succeeded", 6).await;
    let second = (2, "1 failed 1 succeeded".to_owned(), 0);
    assert_eq!(
        finished_groups(&store).await,
        [first.clone(), second.clone()]
    );

    // The last one without a verdict is removed.
    let (watch, number) = add("run_7", "").await;
    add("run_8", "").await;
    end_in_group(&store, &watch, number, "succeeded", 7).await;
    remove("run_8").await;
    assert_eq!((finish(0).await, finish(0).await), (1, 0));
    let third = (1, "1 succeeded".to_owned(), 0);

    // A watch that was never added: the message comes with the end of the retention.
    let (watch, number) = add("run_9", "5").await;
    end_in_group(&store, &watch, number, "succeeded", 8).await;
    assert_eq!((finish(8).await, finish(9).await), (0, 1));
    let fourth = (1, "1 succeeded".to_owned(), 4);
    // One that never has all verdicts at once: the message about those that ended comes then, too, and the rest goes on.
    let (watch, number) = add("run_11", "3").await;
    let (last, last_number) = add("run_12", "3").await;
    end_in_group(&store, &watch, number, "failed", 10).await;
    deliver(&store, SinkName::new("each").unwrap(), 10).await;
    let kept = store.remove_watches(watch.run_id.clone(), false).await;
    assert!(
        matches!(&kept, Err(StoreError::Precondition { what, .. }) if what.contains("nightly")),
        "its message is to come: {kept:?}"
    );
    assert_eq!((finish(10).await, finish(11).await), (0, 1));
    let fifth = (1, "1 failed".to_owned(), 1);
    end_in_group(&store, &last, last_number, "succeeded", 12).await;
    assert_eq!(finish(12).await, 0, "one more is to be added");
    let (watch, number) = add("run_13", "2").await;
    end_in_group(&store, &watch, number, "succeeded", 13).await;
    let sixth = (2, "2 succeeded".to_owned(), 0);
    assert_eq!(
        finished_groups(&store).await,
        [first, second, third, fourth, fifth, sixth]
    );
    // Without any watch there is no message.
    add("run_10", "2").await;
    remove("run_10").await;
    assert_eq!(finish(100).await, 0);
    close(store, tasks).await;
}

pub(crate) async fn many_writes_at_once_are_all_answered(place: &impl Place) {
    let (store, tasks) = place.open().await;
    let mut adding = JoinSet::new();
    for number in 0..2_000 {
        let store = store.clone();
        adding.spawn(async move { store.add_watch(watch(&format!("run_{number}"))).await });
    }
    while let Some(added) = adding.join_next().await {
        assert_eq!(added.unwrap().unwrap().0, Added::New);
    }
    assert_eq!(
        store
            .active_watches(time(1), None, 5_000)
            .await
            .unwrap()
            .len(),
        2_000
    );
    let (mut pages, mut after) = (Vec::new(), None);
    while let page = store
        .active_watches(time(1), after.take(), 700)
        .await
        .unwrap()
        && let Some(last) = page.last()
    {
        after = Some((last.watch.added_at, last.watch.run_id.clone()));
        pages.push(page.len());
    }
    assert_eq!(pages, [700, 700, 600]);
    close(store, tasks).await;
}

pub(crate) async fn a_step_of_the_wall_clock_moves_what_waits_with_it(place: &impl Place) {
    let (store, tasks) = place.open().await;
    let watch = watch("run_1");
    let (_, id) = store.add_watch(watch.clone()).await.unwrap();
    let failed = step(&watch, &Progress::begin(time(0)), "failed", time(2));
    store
        .record_step(
            id,
            failed.clone(),
            routed_to(&failed, &["ops"]),
            None,
            FoundBy::Poll,
            time(2),
        )
        .await
        .unwrap();
    let ops = SinkName::new("ops").unwrap();
    assert_eq!(store.next_due(ops.clone()).await.unwrap(), Some(time(2)));
    let going = self::watch("run_2");
    let (_, going_id) = store.add_watch(going.clone()).await.unwrap();
    let back = Duration::from_secs(3600);
    let deadlines =
        [(going_id, &going), (id, &watch)].map(|(id, watch)| (id, watch.deadline_at - back));
    store
        .shift_deadlines(deadlines.to_vec(), -3_600_000, time(3 - 3600))
        .await
        .unwrap();
    assert_eq!(
        store.next_due(ops.clone()).await.unwrap(),
        Some(time(2 - 3600)),
        "not late by the step"
    );
    let left = store.active_watches(time(3), None, 10).await.unwrap();
    assert_eq!(
        (left.len(), left[0].watch.deadline_at),
        (1, going.deadline_at - back)
    );
    close(store, tasks).await;

    // In the next process, and for all that is stored from here on, the times are those of the clock as it is now.
    let (store, tasks) = place.open().await;
    let shown = async || {
        store
            .deliveries(DeliveryFilter::default(), 10)
            .await
            .unwrap()
            .items[0]
            .next_attempt_at
    };
    assert_eq!(
        (store.next_due(ops.clone()).await.unwrap(), shown().await),
        (Some(time(-3598)), Some(time(-3598)))
    );
    assert!(
        store
            .claim_due(ops.clone(), time(-3599), 10, usize::MAX)
            .await
            .unwrap()
            .is_empty()
    );
    let claimed = store
        .claim_due(ops.clone(), time(-3598), 10, usize::MAX)
        .await
        .unwrap();
    let (at, outcome) = (time(-3598), AttemptOutcome::Retry(time(-3500)));
    let attempt = Attempt {
        attempt: 1,
        at,
        took: Duration::ZERO,
        detail: "500".to_owned(),
        outcome,
    };
    store
        .record_attempt(claimed[0].id.clone(), attempt)
        .await
        .unwrap();
    assert_eq!(
        (store.next_due(ops.clone()).await.unwrap(), shown().await),
        (Some(time(-3500)), Some(time(-3500)))
    );
    store
        .decide(claimed[0].id.clone(), Fate::Retry, time(-3590))
        .await
        .unwrap();
    assert_eq!(
        store.next_due(ops.clone()).await.unwrap(),
        Some(time(-3590))
    );
    let failed = step(&going, &Progress::begin(time(-3595)), "failed", time(-3595));
    store
        .record_step(
            going_id,
            failed.clone(),
            routed_to(&failed, &["ops"]),
            None,
            FoundBy::Poll,
            time(-3595),
        )
        .await
        .unwrap();
    assert_eq!(
        store.next_due(ops.clone()).await.unwrap(),
        Some(time(-3595))
    );
    // One whose attempt a death cuts short while the clock is set is due as it was.
    assert_eq!(
        store
            .claim_due(ops.clone(), time(-3595), 10, usize::MAX)
            .await
            .unwrap()
            .len(),
        1
    );
    store
        .shift_deadlines(Vec::new(), 3_600_000, time(5))
        .await
        .unwrap();
    close(store, tasks).await;
    let (store, tasks) = place.open().await;
    assert_eq!(store.next_due(ops).await.unwrap(), Some(time(5)));
    close(store, tasks).await;
}

pub(crate) async fn what_an_earlier_watch_of_a_run_leads_to_does_not_count_for_a_later_one(
    place: &impl Place,
) {
    let (store, tasks) = place.open().await;
    let watch = watch("run_1");
    let (_, earlier) = store.add_watch(watch.clone()).await.unwrap();
    let failed = step(&watch, &Progress::begin(time(0)), "failed", time(2));
    assert_eq!(
        store
            .remove_watches(watch.run_id.clone(), false)
            .await
            .unwrap(),
        [earlier]
    );
    let (_, later) = store.add_watch(watch.clone()).await.unwrap();
    assert_ne!(earlier, later, "a number is not given again");
    let events = routed_to(&failed, &["ops"]);
    let refused = store
        .record_step(
            earlier,
            failed.clone(),
            events,
            None,
            FoundBy::Poll,
            time(2),
        )
        .await;
    assert!(
        matches!(refused, Err(StoreError::Precondition { .. })),
        "{refused:?}"
    );
    store
        .shift_deadlines(vec![(earlier, time(7200))], 0, time(2))
        .await
        .unwrap();
    let active = store.active_watches(time(3), None, 10).await.unwrap();
    assert_eq!(
        (active.len(), active[0].id, active[0].watch.deadline_at),
        (1, later, watch.deadline_at)
    );
    assert!(
        store
            .deliveries(DeliveryFilter::default(), 10)
            .await
            .unwrap()
            .items
            .is_empty()
    );
    close(store, tasks).await;
}

pub(crate) async fn a_run_can_be_watched_again_and_its_earlier_verdict_stays_on_record(
    place: &impl Place,
) {
    let (store, tasks) = place.open().await;
    let watch = watch("run_1");
    let (_, first) = store.add_watch_again(watch.clone()).await.unwrap();
    assert_eq!(
        store.add_watch_again(watch.clone()).await.unwrap(),
        (Added::AlreadyExists, first),
        "it is not over"
    );
    let failed = step(&watch, &Progress::begin(time(0)), "failed", time(2));
    store
        .record_step(
            first,
            failed.clone(),
            routed_to(&failed, &["ops"]),
            None,
            FoundBy::Poll,
            time(2),
        )
        .await
        .unwrap();
    assert_eq!(
        store.add_watch(watch.clone()).await.unwrap(),
        (Added::AlreadyExists, first)
    );
    let anew = Watch {
        added_at: time(10),
        ..watch.clone()
    };
    let (added, second) = store.add_watch_again(anew).await.unwrap();
    assert_eq!(added, Added::New);

    let all = store
        .watches(WatchFilter::default(), 10)
        .await
        .unwrap()
        .items;
    assert_eq!(
        all.iter()
            .map(|record| record.verdict.is_some())
            .collect::<Vec<_>>(),
        [true, false]
    );
    let history = store.history(watch.run_id.clone()).await.unwrap().unwrap();
    assert!(
        history.record.verdict.is_none() && history.deliveries.is_empty(),
        "of the newest watch"
    );
    assert_eq!(
        store
            .deliveries(DeliveryFilter::default(), 10)
            .await
            .unwrap()
            .items
            .len(),
        1
    );

    let succeeded = step(&watch, &Progress::begin(time(10)), "succeeded", time(12));
    store
        .record_step(second, succeeded, Vec::new(), None, FoundBy::Poll, time(12))
        .await
        .unwrap();
    let waiting = store.remove_watches(watch.run_id.clone(), false).await;
    assert!(
        matches!(waiting, Err(StoreError::Precondition { .. })),
        "{waiting:?}"
    );
    assert_eq!(
        store
            .remove_watches(watch.run_id.clone(), true)
            .await
            .unwrap(),
        [first, second]
    );
    assert_eq!(
        store.worst_verdict(),
        Some(Verdict::Failed),
        "that it is removed changes nothing about it"
    );
    assert!(
        store
            .deliveries(DeliveryFilter::default(), 10)
            .await
            .unwrap()
            .items
            .is_empty()
    );
    close(store, tasks).await;
}

pub(crate) async fn a_large_output_is_stored_once_and_read_back_whole(place: &impl Place) {
    let (store, tasks) = place.open().await;
    let watch = watch("run_1");
    let (_, id) = store.add_watch(watch.clone()).await.unwrap();
    let limits = Limits {
        not_found_grace: Duration::from_secs(120),
        overdue_after: OverdueAfter::Never,
        run_url: None,
    };
    let seen = |progress: &Progress, status: &str, output: &str, now| {
        let output = serde_json::value::to_raw_value(&output.repeat(100_000))
            .unwrap()
            .into();
        let input = serde_json::value::to_raw_value(&"in".repeat(100_000))
            .unwrap()
            .into();
        let details = RunDetails {
            input: Some(input),
            output: Some(output),
            ..RunDetails::default()
        };
        let observation = Observation {
            status: Status::read(None, status),
            details,
        };
        progress
            .step(
                &watch,
                PollOutcome::Seen(Box::new(observation)),
                now,
                &limits,
            )
            .unwrap()
    };
    let running = seen(&Progress::begin(time(0)), "running", "before", time(1));
    let paused = seen(&running.progress, "paused", "between", time(2));
    let failed = seen(&paused.progress, "failed", "after", time(3));
    for (step, at) in [(&running, 1), (&paused, 2), (&failed, 3)] {
        store
            .record_step(
                id,
                step.clone(),
                routed_to(step, &["ops"]),
                None,
                FoundBy::Poll,
                time(at),
            )
            .await
            .unwrap();
    }
    let details = store.details(id).await.unwrap().unwrap();
    let expected = failed.progress.details.as_ref().unwrap();
    assert_eq!(
        details.output.unwrap().get(),
        expected.output.as_ref().unwrap().get()
    );
    assert_eq!(
        details.input.unwrap().get(),
        expected.input.as_ref().unwrap().get()
    );
    let (mut events, ops) = (Vec::new(), SinkName::new("ops").unwrap());
    for _ in 0..2 {
        let page = store
            .events_after(events.last().map_or(0, |(seq, _)| *seq), 10)
            .await
            .unwrap();
        assert_eq!(page.len(), 1, "a large event ends a page");
        events.extend(page);
    }
    let jsons: Vec<_> = events.iter().map(|(_, event)| event.to_json()).collect();
    assert_eq!(
        jsons,
        [running.events[0].to_json(), failed.events[0].to_json()]
    );
    for json in &jsons {
        let claimed = store
            .claim_due(ops.clone(), time(9), 10, usize::MAX)
            .await
            .unwrap();
        assert_eq!((claimed.len(), &claimed[0].event.to_json()), (1, json));
        let attempt = Attempt {
            attempt: 1,
            at: time(9),
            took: Duration::ZERO,
            detail: String::new(),
            outcome: AttemptOutcome::Retry(time(20)),
        };
        store
            .record_attempt(claimed[0].id.clone(), attempt)
            .await
            .unwrap();
    }
    // The values of a sink that has no room for them are not even read.
    let claimed = store.claim_due(ops, time(20), 10, 19_999).await.unwrap();
    let expected: Vec<_> = events
        .iter()
        .map(|(_, event)| json_within(event, 19_999))
        .collect();
    assert_eq!(
        claimed
            .iter()
            .map(|claimed| claimed.event.to_json())
            .collect::<Vec<_>>(),
        expected
    );
    assert!(
        claimed.iter().all(|claimed| claimed.bytes() == 0),
        "{claimed:?}"
    );
    let history = store.history(watch.run_id.clone()).await.unwrap().unwrap();
    assert_eq!(history.verdict_event.unwrap().to_json(), jsons[1]);
    close(store, tasks).await;

    let payloads = place.rows_of("payloads").await;
    assert_eq!(
        payloads, 3,
        "the input, the output of the event, and the last; what was seen in between is gone"
    );
}

pub(crate) async fn messages_to_a_sink_that_is_gone_are_given_up_after_the_retention(
    place: &impl Place,
) {
    let (store, tasks) = place.open().await;
    let [ops, gone] = ["ops", "gone"].map(|name| SinkName::new(name).unwrap());
    for (id, sinks) in [("run_1", &["gone"][..]), ("run_2", &["gone", "ops"])] {
        let watch = watch(id);
        let (_, id) = store.add_watch(watch.clone()).await.unwrap();
        let failed = step(&watch, &Progress::begin(time(0)), "failed", time(2));
        store
            .record_step(
                id,
                failed.clone(),
                routed_to(&failed, sinks),
                None,
                FoundBy::Poll,
                time(2),
            )
            .await
            .unwrap();
    }
    let pruned = store
        .prune(time(2), vec![ops.clone()], time(100))
        .await
        .unwrap();
    assert!(
        pruned.given_up.is_empty() && pruned.deleted == 0,
        "not yet: {pruned:?}"
    );
    let pruned = store
        .prune(time(3), vec![ops.clone()], time(100))
        .await
        .unwrap();
    assert_eq!(pruned.given_up, [(gone, 2)]);
    while !store
        .prune(time(3), vec![ops.clone()], time(100))
        .await
        .unwrap()
        .is_nothing()
    {}
    let left = store
        .deliveries(DeliveryFilter::default(), 10)
        .await
        .unwrap()
        .items;
    let left: Vec<_> = left
        .iter()
        .map(|left| (left.sink.as_str(), left.state))
        .collect();
    assert_eq!(
        left,
        [
            ("gone", DeliveryState::Dead),
            ("ops", DeliveryState::Pending)
        ],
        "the second watch waits for ops"
    );
    close(store, tasks).await;
}

pub(crate) async fn an_incident_that_goes_on_outlives_pruning_and_a_clock_that_is_set_back(
    place: &impl Place,
) {
    let (store, tasks) = place.open().await;
    for (event_type, seconds) in [
        (EventType::ApiUnreachable, 0),
        (EventType::ApiRecovered, 10),
        (EventType::ApiUnauthorized, 5),
    ] {
        store
            .record_event(incident(event_type, time(seconds)), time(seconds))
            .await
            .unwrap();
    }
    let newest = store.newest_provider_events().await.unwrap().pop().unwrap();
    assert_eq!(
        newest.event_type,
        EventType::ApiUnauthorized,
        "the last to be stored, whatever the clock showed"
    );
    store
        .prune(time(1000), Vec::new(), time(1000))
        .await
        .unwrap();
    let left = store.events_after(0, 10).await.unwrap();
    assert_eq!(
        left.iter()
            .map(|(_, event)| event.event_type)
            .collect::<Vec<_>>(),
        [EventType::ApiUnauthorized]
    );
    close(store, tasks).await;
}

pub(crate) async fn a_discovered_run_is_noted_and_watched_in_one_step_and_once_for_each_attempt(
    place: &impl Place,
) {
    let (store, tasks) = place.open().await;
    let id = discovery(&store).await;
    let add = async |attempt, again| {
        let run = found(id, note("run_1", Some(attempt)), again);
        let added = store.add_discovered_watch(watch("run_1"), run).await;
        added.unwrap()
    };
    let (added, first) = add(1, false).await;
    let first = first.unwrap();
    assert_eq!(added, Added::New);
    assert_eq!(add(1, false).await, (Added::AlreadyExists, None));
    assert_eq!(
        add(2, true).await,
        (Added::AlreadyExists, None),
        "it is active"
    );
    let record = store.watch(watch("run_1").run_id).await.unwrap().unwrap();
    let origin = WatchOrigin::Discovery("crewship".to_owned());
    assert_eq!(record.origin, Some(origin));

    let mut failed = step(
        &watch("run_1"),
        &Progress::begin(time(0)),
        "failed",
        time(2),
    );
    failed.progress.details.as_mut().unwrap().attempt = Some(2);
    failed.progress.details.as_mut().unwrap().completed_at = Some(time(1));
    let recorded = store
        .record_step(first, failed, Vec::new(), None, FoundBy::Poll, time(2))
        .await;
    recorded.unwrap();
    assert_eq!(
        add(2, true).await,
        (Added::AlreadyExists, None),
        "its verdict is there"
    );
    assert_eq!(
        add(3, false).await,
        (Added::AlreadyExists, None),
        "not again"
    );
    let known = |run: &str| store.known_runs(id, vec![RunRef::new(run).unwrap()]);
    let known_run = known("run_1").await.unwrap().pop().unwrap();
    let noted = known_run.noted.unwrap();
    assert_eq!((noted.attempt, noted.round), (Some(3), 1));
    let known_watch = known_run.watch.unwrap();
    let expected = (false, Some(2), Some(time(1)));
    let seen = (
        known_watch.is_active,
        known_watch.attempt,
        known_watch.ended_at,
    );
    assert_eq!(seen, expected);
    assert_eq!(add(3, true).await.0, Added::New);
    assert_eq!(known("run_2").await.unwrap(), [KnownRun::default()]);

    // All of it is on disk.
    close(store, tasks).await;
    let (store, tasks) = place.open().await;
    let again = store
        .set_discoveries(vec![(ProviderName::crewship(), "{}".to_owned())], time(50))
        .await
        .unwrap();
    let expected = (id, time(0), 1, 2);
    let again = &again[0];
    assert_eq!(
        (again.id, again.began_at, again.found, again.watched),
        expected
    );
    // One that the configuration has no more leaves nothing behind, and adds nothing.
    store.set_discoveries(Vec::new(), time(60)).await.unwrap();
    let run = found(id, note("run_3", None), false);
    let added = store.add_discovered_watch(watch("run_3"), run).await;
    assert_eq!(added.unwrap(), (Added::AlreadyExists, None));
    let known_runs = store
        .known_runs(id, vec![RunRef::new("run_1").unwrap()])
        .await;
    assert_eq!(known_runs.unwrap()[0].noted, None);
    close(store, tasks).await;
}

pub(crate) async fn notes_of_discoveries_are_kept_for_a_week_of_rounds(place: &impl Place) {
    let (store, tasks) = place.open().await;
    let id = discovery(&store).await;
    let day = 24 * 3600;
    let is_noted = async |run: &str| {
        let known = store.known_runs(id, vec![RunRef::new(run).unwrap()]).await;
        known.unwrap()[0].noted.is_some()
    };
    let prune = async |now| {
        let pruned = store.prune(time(now - 10), Vec::new(), time(now)).await;
        pruned.unwrap().deleted
    };
    for (run, at) in [("run_1", 0), ("run_2", day)] {
        let noted = store.note_runs(id, vec![note(run, None)], time(at)).await;
        noted.unwrap();
    }
    store
        .end_round(id, time(2 * day), time(2 * day - 700))
        .await
        .unwrap();
    // No round was complete since then: what was not listed may still be there.
    assert_eq!(prune(30 * day).await, 0);
    store
        .end_round(id, time(7 * day + 1), time(7 * day))
        .await
        .unwrap();
    assert_eq!(prune(30 * day).await, 1);
    assert!(!is_noted("run_1").await && is_noted("run_2").await);
    let noted = store
        .note_runs(id, vec![note("run_2", Some(1))], time(30 * day))
        .await;
    noted.unwrap();
    store
        .end_round(id, time(30 * day), time(30 * day))
        .await
        .unwrap();
    assert_eq!(prune(30 * day).await, 0);
    assert!(is_noted("run_2").await);
    close(store, tasks).await;
}

/// An observation of a run of a group that started at `time(0)`.
pub(crate) fn ended(status: &str, group: Option<&str>, ran_ms: Option<i64>) -> PollOutcome {
    let completed_at = ran_ms
        .map(|ran_ms| Timestamp::from_millisecond(time(0).as_millisecond() + ran_ms).unwrap());
    let details = RunDetails {
        group: group.map(ToOwned::to_owned),
        started_at: Some(time(0)),
        completed_at,
        ..RunDetails::default()
    };
    PollOutcome::Seen(Box::new(Observation {
        status: Status::read(None, status),
        details,
    }))
}

/// The step that the first observation of a run leads to.
pub(crate) fn first_step(watch: &Watch, outcome: PollOutcome, now: Timestamp) -> Step {
    let limits = Limits {
        not_found_grace: Duration::from_secs(120),
        overdue_after: OverdueAfter::Never,
        run_url: None,
    };
    let step = Progress::begin(now).step(watch, outcome, now, &limits);
    step.unwrap()
}

/// Watches a run, and stores its end at `now`.
async fn end(store: &Store, id: &str, outcome: PollOutcome, now: Timestamp) {
    let watch = Watch {
        added_at: now,
        ..watch(id)
    };
    let (_, id) = store.add_watch(watch.clone()).await.unwrap();
    let step = first_step(&watch, outcome, now);
    let routed = routed_to(&step, &[]);
    store
        .record_step(id, step.clone(), routed.clone(), None, FoundBy::Poll, now)
        .await
        .unwrap();
    // A second time is refused, and adds nothing.
    let again = store.record_step(id, step, routed, None, FoundBy::Poll, now);
    assert!(matches!(again.await, Err(StoreError::Precondition { .. })));
}

pub(crate) async fn what_runs_of_a_group_took_outlives_their_watches(place: &impl Place) {
    let (store, tasks) = place.open().await;
    let (crewship, ci) = (ProviderName::crewship(), ProviderName::new("ci").unwrap());
    let group = Some("a \u{0}b");
    end(
        &store,
        "run_1",
        ended("succeeded", group, Some(7_000)),
        time(8),
    )
    .await;
    end(&store, "run_2", ended("succeeded", group, Some(0)), time(9)).await;
    end(
        &store,
        "ci:1",
        ended("succeeded", Some("c"), Some(5)),
        time(10),
    )
    .await;
    end(
        &store,
        "ci:2",
        ended("succeeded", Some("b"), Some(6)),
        time(10),
    )
    .await;
    // What says nothing about how long a run takes.
    end(&store, "run_3", ended("failed", group, Some(1)), time(11)).await;
    end(&store, "run_4", ended("succeeded", group, None), time(11)).await;
    end(
        &store,
        "run_5",
        ended("succeeded", group, Some(-1)),
        time(11),
    )
    .await;
    end(&store, "run_6", ended("succeeded", None, Some(1)), time(11)).await;
    let record = store.watch(RunRef::new("run_1").unwrap()).await.unwrap();
    let record = record.unwrap();
    assert_eq!(record.group.as_deref(), Some("a \u{fffd}b"));
    assert_eq!(record.started_at, Some(time(0)));
    let expected = vec![("a \u{fffd}b".to_owned(), vec![7_000, 0])];
    assert_eq!(
        store.durations_of(crewship.clone()).await.unwrap(),
        expected
    );
    loop {
        let pruned = store.prune(time(900), Vec::new(), time(1_000)).await;
        if pruned.unwrap().is_nothing() {
            break;
        }
    }
    assert_eq!(place.rows_of("watches").await, 0);
    close(store, tasks).await;
    let (store, tasks) = place.open().await;
    assert_eq!(
        store.durations_of(crewship.clone()).await.unwrap(),
        expected
    );
    let of_ci = store.durations_of(ci.clone()).await.unwrap();
    assert_eq!(
        of_ci,
        [("b".to_owned(), vec![6]), ("c".to_owned(), vec![5])]
    );
    let (known, other) = ((ci.clone(), "c".to_owned()), (crewship, "c".to_owned()));
    let groups = vec![known.clone(), other, (ci, "none".to_owned())];
    assert_eq!(store.durations(groups).await.unwrap(), [(known, vec![5])]);
    assert_eq!(store.durations(Vec::new()).await.unwrap(), []);
    close(store, tasks).await;
}

pub(crate) async fn the_newest_durations_of_the_newest_groups_are_kept(place: &impl Place) {
    let (store, tasks) = place.open().await;
    let crewship = ProviderName::crewship();
    for ran_ms in 1..=52 {
        let outcome = ended("succeeded", Some("first"), Some(ran_ms));
        end(&store, &format!("run_{ran_ms}"), outcome, time(60)).await;
    }
    let all = store.durations_of(crewship.clone()).await.unwrap();
    assert_eq!(all, [("first".to_owned(), (3..=52).collect())]);
    for number in 0..999 {
        let group = format!("group {number:03}");
        let outcome = ended("succeeded", Some(&group), Some(1));
        end(
            &store,
            &format!("run_g{number}"),
            outcome,
            time(100 + number),
        )
        .await;
    }
    // One more of a group that is known displaces none; of a new one, the group whose run ended first.
    end(
        &store,
        "run_a",
        ended("succeeded", Some("first"), Some(9)),
        time(5_000),
    )
    .await;
    assert_eq!(place.rows_of("past_durations").await, 1_000);
    end(
        &store,
        "run_b",
        ended("succeeded", Some("last"), Some(9)),
        time(4_000),
    )
    .await;
    let all = store.durations_of(crewship).await.unwrap();
    let names: Vec<_> = all.iter().map(|(group, _)| group.as_str()).collect();
    assert_eq!(names.len(), 1_000);
    assert_eq!(names[..2], ["group 001", "group 002"]);
    assert_eq!(names[998..], ["last", "first"]);
    assert_eq!(all[999].1.len(), 50);
    assert_eq!(all[999].1.last(), Some(&9));
    close(store, tasks).await;
}

/// The traces of the deliveries to a sink that are due, each with its event. They are made if `arrives`, and else due
/// again.
async fn due_traces(
    store: &Store,
    sink: &str,
    now: i64,
    arrives: bool,
) -> Vec<(String, Option<TraceContext>)> {
    let sink = SinkName::new(sink).unwrap();
    let mut traces = Vec::new();
    let claimed = store.claim_due(sink, time(now), 10, usize::MAX);
    for claimed in claimed.await.unwrap() {
        let outcome = match arrives {
            true => AttemptOutcome::Delivered,
            false => AttemptOutcome::Retry(time(now + 1)),
        };
        let attempt = Attempt {
            attempt: claimed.attempt,
            outcome,
            ..delivered(now)
        };
        store.record_attempt(claimed.id, attempt).await.unwrap();
        traces.push((claimed.event.event_type.to_string(), claimed.trace));
    }
    traces
}

pub(crate) async fn a_watch_keeps_its_trace_and_its_deliveries_have_it(place: &impl Place) {
    let (store, tasks) = place.open().await;
    let trace = |number: usize| {
        let parent = format!("00-{number:032x}-b7ad6b7169203331-01");
        TraceContext::read(&parent, "rojo=00f067aa0ba902b7, congo= t61rcWkgMzE").unwrap()
    };
    let with = |watch: Watch, number: usize| Watch {
        trace: Some(trace(number)),
        ..watch
    };
    let (traced, plain) = (with(in_group("run_1", ""), 1), in_group("run_2", ""));
    let (_, first) = store.add_watch(traced.clone()).await.unwrap();
    let (_, second) = store.add_watch(plain.clone()).await.unwrap();
    // The first one counts.
    let (added, _) = store.add_watch(with(traced.clone(), 2)).await.unwrap();
    assert_eq!(added, Added::AlreadyExists);
    let traces = async |store: &Store| {
        let active = store.active_watches(time(1), None, 10).await.unwrap();
        let active = active.into_iter().map(|stored| stored.watch);
        let listed = store.watches(WatchFilter::default(), 10).await.unwrap();
        let listed = listed.items.into_iter().map(|record| record.watch);
        active
            .chain(listed)
            .map(|watch| watch.trace)
            .collect::<Vec<_>>()
    };
    let wanted = [Some(trace(1)), None, Some(trace(1)), None];
    assert_eq!(traces(&store).await, wanted);
    close(store, tasks).await;

    let (store, tasks) = place.open().await;
    assert_eq!(traces(&store).await, wanted);
    end_in_group(&store, &traced, first, "failed", 2).await;
    end_in_group(&store, &plain, second, "succeeded", 3).await;
    let routed = RoutedEvent {
        sinks: vec![SinkName::new("each").unwrap()],
        ..incident(EventType::ApiUnreachable, time(4))
    };
    store.record_event(routed, time(4)).await.unwrap();
    let own = |event: &str, trace: Option<TraceContext>| (event.to_owned(), trace);
    let each = [
        own("run.failed", Some(trace(1))),
        own("run.succeeded", None),
        own("api.unreachable", None),
    ];
    assert_eq!(due_traces(&store, "each", 5, false).await, each);
    assert_eq!(due_traces(&store, "each", 6, true).await, each, "again");
    let group = [own("group.finished", None)];
    assert_eq!(due_traces(&store, "one", 6, true).await, group);

    let (added, _) = store.add_watch_again(with(traced, 3)).await.unwrap();
    assert_eq!(added, Added::New);
    let newest = store.watch(RunRef::new("run_1").unwrap()).await.unwrap();
    assert_eq!(newest.unwrap().watch.trace, Some(trace(3)));
    close(store, tasks).await;
}

/// A test for each part of the contract, at the place that the function `$place` makes of its name.
macro_rules! contract_tests {
    ($place:expr) => {
        $crate::contract::contract_tests! { @ $place;
            watches_verdicts_and_deliveries_outlive_the_process,
            a_verdict_is_given_once,
            attempts_are_recorded_with_what_follows,
            a_delivery_that_is_given_up_makes_one_to_the_fallback,
            held_deliveries_stay_where_they_are_on_the_wall_clock,
            what_waits_for_a_summary_is_included_once,
            few_ends_have_no_summary,
            a_group_is_finished_with_its_last_verdict,
            a_group_waits_for_its_size_and_not_for_what_is_removed,
            many_writes_at_once_are_all_answered,
            a_step_of_the_wall_clock_moves_what_waits_with_it,
            what_an_earlier_watch_of_a_run_leads_to_does_not_count_for_a_later_one,
            a_run_can_be_watched_again_and_its_earlier_verdict_stays_on_record,
            a_large_output_is_stored_once_and_read_back_whole,
            messages_to_a_sink_that_is_gone_are_given_up_after_the_retention,
            an_incident_that_goes_on_outlives_pruning_and_a_clock_that_is_set_back,
            a_discovered_run_is_noted_and_watched_in_one_step_and_once_for_each_attempt,
            notes_of_discoveries_are_kept_for_a_week_of_rounds,
            what_runs_of_a_group_took_outlives_their_watches,
            the_newest_durations_of_the_newest_groups_are_kept,
            a_watch_keeps_its_trace_and_its_deliveries_have_it,
        }
    };
    (@ $place:expr; $($name:ident,)*) => {$(
        #[tokio::test]
        async fn $name() {
            let place = $place(stringify!($name));
            $crate::contract::$name(&place).await;
        }
    )*};
}
pub(crate) use contract_tests;
