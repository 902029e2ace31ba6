//! The store on disk: what was answered is there after the process is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use runwatch::domain::{
    Event, EventData, EventType, FoundBy, Labels, Limits, Observation, PollOutcome, Progress,
    ProviderName, ProviderNotice, RunDetails, RunRef, RunState, SinkName, Status, Step, Verdict,
    Watch, WatchOrigin,
};
use runwatch::notify::payload::json_within;
use runwatch::store::{
    Added, Attempt, AttemptOutcome, Checkpoint, DeliveryFilter, DeliveryState, DiscoveredRun,
    DiscoveryId, Done, Fate, KnownRun, Location, ReadJob, RoutedEvent, RunNote, Store, StoreError,
    Transaction, TransactionRunner, WatchFilter,
};
use tokio::task::JoinSet;

fn time(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

fn watch(id: &str) -> Watch {
    Watch {
        run_id: RunRef::new(id).unwrap(),
        name: Some("nightly".to_owned()),
        labels: Labels::from([("team".to_owned(), "search".to_owned())]),
        sinks: Some(vec![SinkName::new("ops").unwrap()]),
        added_at: time(0),
        deadline_at: time(3600),
    }
}

fn step(watch: &Watch, progress: &Progress, status: &str, now: Timestamp) -> Step {
    let limits = Limits {
        not_found_grace: Duration::from_secs(120),
        overdue_after: None,
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

fn told(step: &Step, sinks: &[&str]) -> Vec<RoutedEvent> {
    let sinks: Vec<_> = sinks
        .iter()
        .map(|name| SinkName::new(name).unwrap())
        .collect();
    step.events
        .iter()
        .map(|event| RoutedEvent {
            event: event.clone(),
            sinks: sinks.clone(),
        })
        .collect()
}

/// A store and the task of its writer, which ends when the store is dropped.
fn open(path: &std::path::Path) -> (Store, JoinSet<()>) {
    let (store, writer) = Store::open(Location::File(path)).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(writer.run());
    (store, tasks)
}

async fn close(store: Store, mut tasks: JoinSet<()>) {
    drop(store);
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test]
async fn watches_verdicts_and_deliveries_outlive_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("runwatch.db");
    let (store, tasks) = open(&path);
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
    let events = told(&failed, &["ops", "desk"]);
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

    let (store, tasks) = open(&path);
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

#[tokio::test]
async fn a_verdict_is_given_once() {
    let dir = tempfile::tempdir().unwrap();
    let (store, tasks) = open(&dir.path().join("runwatch.db"));
    let watch = watch("run_1");
    let (_, id) = store.add_watch(watch.clone()).await.unwrap();
    let failed = step(&watch, &Progress::begin(time(0)), "failed", time(2));
    assert_eq!(failed.progress.verdict, Some(Verdict::Failed));
    store
        .record_step(
            id,
            failed.clone(),
            told(&failed, &["ops"]),
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
            told(&succeeded, &["ops"]),
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

#[tokio::test]
async fn attempts_are_recorded_with_what_follows() {
    let dir = tempfile::tempdir().unwrap();
    let (store, tasks) = open(&dir.path().join("runwatch.db"));
    let (watch, ops) = (watch("run_1"), SinkName::new("ops").unwrap());
    let (_, id) = store.add_watch(watch.clone()).await.unwrap();
    let failed = step(&watch, &Progress::begin(time(0)), "failed", time(2));
    store
        .record_step(
            id,
            failed.clone(),
            told(&failed, &["ops"]),
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

#[tokio::test]
async fn a_database_that_is_none_or_newer_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let garbage = dir.path().join("garbage.db");
    std::fs::write(&garbage, "this is no database".repeat(100)).unwrap();
    assert!(Store::open(Location::File(&garbage)).is_err());
    assert_eq!(
        std::fs::read_to_string(&garbage).unwrap(),
        "this is no database".repeat(100)
    );

    let newer = dir.path().join("newer.db");
    rusqlite::Connection::open(&newer)
        .unwrap()
        .pragma_update(None, "user_version", 99)
        .unwrap();
    let before = std::fs::read(&newer).unwrap();
    let refused = Store::open(Location::File(&newer)).map(|_| ()).unwrap_err();
    assert_eq!(std::fs::read(&newer).unwrap(), before);
    assert!(
        refused.to_string().contains("use the newer runwatch"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_store_that_is_opened_again_is_not_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("runwatch.db");
    let (store, tasks) = open(&path);
    store.add_watch(watch("run_1")).await.unwrap();
    close(store, tasks).await;
    let before = std::fs::read(&path).unwrap();
    drop(Store::open(Location::File(&path)).unwrap());
    // A disk that is full takes no write, be it of the header only.
    assert!(
        std::fs::read(&path).unwrap() == before,
        "the file has changed"
    );
}

#[tokio::test]
async fn many_writes_at_once_are_all_answered() {
    let dir = tempfile::tempdir().unwrap();
    let (store, tasks) = open(&dir.path().join("runwatch.db"));
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

/// The store of a daemon of the first format (version 1), stopped with a watch under way, three with
/// verdicts, and one message of each kind: delivered, waiting, given up.
#[tokio::test]
async fn a_store_of_the_first_format_opens_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("runwatch.db");
    std::fs::write(&path, include_bytes!("../data/store-1/runwatch.db")).unwrap();
    let (store, tasks) = open(&path);
    let active = store.active_watches(time(0), None, 10).await.unwrap();
    assert_eq!(active.len(), 1);
    assert_eq!(active[0].watch.run_id.as_str(), "run_absent");
    assert_eq!(active[0].watch.name.as_deref(), Some("täglicher Bericht"));
    assert_eq!(
        active[0].progress.missing_since, None,
        "nobody asked meanwhile: the grace begins anew"
    );

    let history = store
        .history(RunRef::new("run_demo_research").unwrap())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(history.record.verdict.unwrap().0, Verdict::Failed);
    assert_eq!(history.record.watch.labels.len(), 2);
    let event = history.verdict_event.unwrap();
    let data = event.run().unwrap();
    assert_eq!(
        data.run.error_message.as_deref(),
        Some("OpenAI API rate limit exceeded")
    );
    assert_eq!(
        data.run.input.as_ref().unwrap().get(),
        r#"{"topic":"AI agents"}"#
    );
    let words: Vec<_> = history
        .changes
        .iter()
        .map(|change| change.status.as_str().to_owned())
        .collect();
    assert_eq!(words, ["running", "failed"]);
    let mut states: Vec<_> = history
        .deliveries
        .iter()
        .filter(|(delivery, _)| delivery.event_type == EventType::RunFailed)
        .map(|(delivery, attempts)| {
            (
                delivery.sink.as_str().to_owned(),
                delivery.state,
                attempts.len(),
            )
        })
        .collect();
    states.sort_by(|a, b| a.0.cmp(&b.0));
    let expected = [
        ("closed".to_owned(), DeliveryState::Dead, 1),
        ("down".to_owned(), DeliveryState::Pending, 1),
        ("journal".to_owned(), DeliveryState::Delivered, 1),
    ];
    assert_eq!(states, expected);

    // It goes on: the message that waits can be claimed, and a watch of the configuration is not added again.
    let far = Timestamp::from_second(4_000_000_000).unwrap();
    let claimed = store
        .claim_due(SinkName::new("down").unwrap(), far, 10, usize::MAX)
        .await
        .unwrap();
    assert_eq!((claimed.len(), claimed[0].attempt), (1, 2));
    assert_eq!(
        store
            .add_configured_watch(watch("run_demo_outreach"))
            .await
            .unwrap()
            .0,
        Added::AlreadyExists
    );
    assert_eq!(
        store
            .add_configured_watch(watch("run_new"))
            .await
            .unwrap()
            .0,
        Added::New
    );
    close(store, tasks).await;
}

/// A disk that has no room when it comes to a commit.
struct Full;

impl TransactionRunner for Full {
    async fn run(&self, transaction: Transaction) -> Option<Done> {
        Some(transaction.reject())
    }
}

#[tokio::test]
async fn what_is_refused_leaves_nothing_and_holds_up_no_reading() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("runwatch.db");
    let (store, writer) = Store::open(Location::File(&path)).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(writer.run_on(Full));
    // Polled one after the other before the writer has its turn, they come in one batch.
    let (added, counts, ping) = tokio::join!(
        store.add_watch(watch("run_1")),
        store.counts(),
        store.ping()
    );
    assert!(matches!(added, Err(StoreError::Database(_))), "{added:?}");
    assert_eq!(counts.unwrap().active, 0);
    ping.unwrap();
    close(store, tasks).await;
    let (store, tasks) = open(&path);
    assert_eq!(store.add_watch(watch("run_1")).await.unwrap().0, Added::New);
    close(store, tasks).await;
}

#[tokio::test]
async fn a_step_of_the_wall_clock_moves_what_waits_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (store, tasks) = open(&dir.path().join("runwatch.db"));
    let watch = watch("run_1");
    let (_, id) = store.add_watch(watch.clone()).await.unwrap();
    let failed = step(&watch, &Progress::begin(time(0)), "failed", time(2));
    store
        .record_step(
            id,
            failed.clone(),
            told(&failed, &["ops"]),
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
    let (store, tasks) = open(&dir.path().join("runwatch.db"));
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
            told(&failed, &["ops"]),
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
    let (store, tasks) = open(&dir.path().join("runwatch.db"));
    assert_eq!(store.next_due(ops).await.unwrap(), Some(time(5)));
    close(store, tasks).await;
}

/// A disk that notes the most rows that one transaction changed.
struct Counting(Arc<AtomicU64>);

impl TransactionRunner for Counting {
    async fn run(&self, transaction: Transaction) -> Option<Done> {
        let before = transaction.connection().total_changes();
        let done = transaction.run();
        self.0
            .fetch_max(done.connection().total_changes() - before, Ordering::SeqCst);
        Some(done)
    }
}

#[tokio::test]
async fn a_step_of_the_wall_clock_moves_a_large_backlog_in_short_turns() {
    let (store, writer) = Store::open(Location::Memory).unwrap();
    let most = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    tasks.spawn(writer.run_on(Counting(Arc::clone(&most))));
    let sinks: Vec<_> = (0..1_000)
        .map(|number| SinkName::new(&format!("sink-{number}")).unwrap())
        .collect();
    let data = EventData::Provider(ProviderNotice {
        provider: ProviderName::crewship(),
        message: String::new(),
        since: time(0),
    });
    for seconds in 0..5 {
        let event = Event {
            event_type: EventType::ApiUnreachable,
            timestamp: time(seconds),
            data: data.clone(),
        };
        store
            .record_event(
                RoutedEvent {
                    event,
                    sinks: sinks.clone(),
                },
                time(seconds),
            )
            .await
            .unwrap();
    }
    let mut deadlines = Vec::new();
    for number in 0..2_100 {
        let watch = watch(&format!("run_{number}"));
        deadlines.push((store.add_watch(watch).await.unwrap().1, time(7200)));
    }
    most.store(0, Ordering::SeqCst);
    store
        .shift_deadlines(deadlines, 3_600_000, time(3600))
        .await
        .unwrap();
    let most = most.load(Ordering::SeqCst);
    assert!(most <= 2_000, "{most} rows in one transaction");
    assert_eq!(
        store.next_due(sinks[999].clone()).await.unwrap(),
        Some(time(3600))
    );
    let moved = store.active_watches(time(3600), None, 5_000).await.unwrap();
    assert!(
        moved.len() == 2_100
            && moved
                .iter()
                .all(|stored| stored.watch.deadline_at == time(7200))
    );
    close(store, tasks).await;
}

#[tokio::test]
async fn what_an_earlier_watch_of_a_run_leads_to_does_not_count_for_a_later_one() {
    let dir = tempfile::tempdir().unwrap();
    let (store, tasks) = open(&dir.path().join("runwatch.db"));
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
    let events = told(&failed, &["ops"]);
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

#[tokio::test]
async fn a_run_can_be_watched_again_and_its_earlier_verdict_stays_on_record() {
    let dir = tempfile::tempdir().unwrap();
    let (store, tasks) = open(&dir.path().join("runwatch.db"));
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
            told(&failed, &["ops"]),
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

#[tokio::test]
async fn a_large_output_is_stored_once_and_read_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("runwatch.db");
    let (store, tasks) = open(&path);
    let watch = watch("run_1");
    let (_, id) = store.add_watch(watch.clone()).await.unwrap();
    let limits = Limits {
        not_found_grace: Duration::from_secs(120),
        overdue_after: None,
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
                told(step, &["ops"]),
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

    let db = rusqlite::Connection::open(&path).unwrap();
    let payloads: i64 = db
        .query_row("SELECT count(*) FROM payloads", [], |row| row.get(0))
        .unwrap();
    assert_eq!(
        payloads, 3,
        "the input, the output that is told, and the last; what was seen in between is gone"
    );
}

/// A disk on which reading takes until it is let go on.
struct SlowReading(tokio::sync::Mutex<Option<tokio::sync::oneshot::Receiver<()>>>);

impl TransactionRunner for SlowReading {
    async fn run(&self, transaction: Transaction) -> Option<Done> {
        Some(transaction.run())
    }

    async fn read(&self, reading: ReadJob) -> Option<rusqlite::Connection> {
        let gate = self.0.lock().await.take();
        if let Some(gate) = gate {
            gate.await.unwrap();
        }
        Some(reading.run())
    }
}

#[tokio::test]
async fn a_list_that_takes_long_keeps_no_write_and_no_other_list_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let (store, writer) = Store::open(Location::File(&dir.path().join("runwatch.db"))).unwrap();
    let (go_on, gate) = tokio::sync::oneshot::channel();
    let mut tasks = JoinSet::new();
    tasks.spawn(writer.run_on(SlowReading(tokio::sync::Mutex::new(Some(gate)))));
    let mut listing = JoinSet::new();
    let asking = store.clone();
    listing.spawn(async move { asking.watches(WatchFilter::default(), 10).await });
    tokio::task::yield_now().await;
    assert_eq!(store.add_watch(watch("run_1")).await.unwrap().0, Added::New);
    assert_eq!(store.counts().await.unwrap().active, 1);
    assert!(listing.try_join_next().is_none(), "it is still being read");
    go_on.send(()).unwrap();
    listing.join_next().await.unwrap().unwrap().unwrap();
    close(store, tasks).await;
}

/// A disk on which a checkpoint takes until it is let go on.
struct SlowCheckpoint(Arc<tokio::sync::Semaphore>);

impl TransactionRunner for SlowCheckpoint {
    async fn run(&self, transaction: Transaction) -> Option<Done> {
        Some(transaction.run())
    }

    async fn checkpoint(&self, checkpoint: Checkpoint) -> Option<rusqlite::Connection> {
        drop(self.0.acquire().await.unwrap());
        Some(checkpoint.run())
    }
}

#[tokio::test]
async fn a_checkpoint_keeps_no_write_waiting_and_the_log_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("runwatch.db");
    let (store, writer) = Store::open(Location::File(&path)).unwrap();
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let mut tasks = JoinSet::new();
    tasks.spawn(writer.run_on(SlowCheckpoint(Arc::clone(&gate))));
    let message = "x".repeat(1024 * 1024);
    let tell = async |seconds: i64| {
        let data = EventData::Provider(ProviderNotice {
            provider: ProviderName::crewship(),
            message: message.clone(),
            since: time(0),
        });
        let event = Event {
            event_type: EventType::ApiUnreachable,
            timestamp: time(seconds),
            data,
        };
        store
            .record_event(
                RoutedEvent {
                    event,
                    sinks: Vec::new(),
                },
                time(seconds),
            )
            .await
            .unwrap();
    };
    let size = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().len() >> 20;
    // The first checkpoint is under way from 4 MiB on, and what is written goes to the log.
    for seconds in 0..40 {
        tell(seconds).await;
    }
    assert!(
        (40..60).contains(&size("runwatch.db-wal")),
        "{} MiB",
        size("runwatch.db-wal")
    );
    assert_eq!(size("runwatch.db"), 0);
    // A log that is too large is waited for.
    {
        let mut more = std::pin::pin!(async {
            for seconds in 40..200 {
                tell(seconds).await;
            }
        });
        let ahead = tokio::time::timeout(Duration::from_secs(2), &mut more).await;
        assert!(
            ahead.is_err() && size("runwatch.db-wal") < 70,
            "{} MiB",
            size("runwatch.db-wal")
        );
        gate.add_permits(1);
        more.await;
    }
    assert!(
        size("runwatch.db-wal") < 70,
        "{} MiB",
        size("runwatch.db-wal")
    );
    assert_eq!(store.events_after(199, 10).await.unwrap().len(), 1);
    close(store, tasks).await;
    assert!(size("runwatch.db") >= 200);
    let (store, tasks) = open(&path);
    assert_eq!(store.newest_event().await.unwrap(), 200);
    close(store, tasks).await;
}

#[tokio::test]
async fn nothing_is_acknowledged_once_a_file_of_the_store_is_gone() {
    for file in ["runwatch.db", "runwatch.db-wal"] {
        let dir = tempfile::tempdir().unwrap();
        let (path, aside) = (dir.path().join(file), dir.path().join("aside"));
        let (store, tasks) = open(&dir.path().join("runwatch.db"));
        store.add_watch(watch("run_1")).await.unwrap();
        std::fs::rename(&path, &aside).unwrap();
        let refused = store.add_watch(watch("run_2")).await;
        assert!(
            matches!(refused, Err(StoreError::Gone { .. })),
            "{file}: {refused:?}"
        );
        assert!(store.probe().await.is_err(), "{file}");
        assert_eq!(
            store.counts().await.unwrap().active,
            1,
            "{file}: what was refused is not there"
        );
        std::fs::rename(&aside, &path).unwrap();
        assert_eq!(
            store.add_watch(watch("run_2")).await.unwrap().0,
            Added::New,
            "{file}"
        );
        close(store, tasks).await;
        let (store, tasks) = open(&dir.path().join("runwatch.db"));
        assert_eq!(store.counts().await.unwrap().active, 2, "{file}");
        close(store, tasks).await;
    }
}

#[tokio::test]
async fn another_process_that_holds_the_database_is_no_ill_health() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("runwatch.db");
    let (store, tasks) = open(&path);
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let held = tokio::join!(store.add_watch(watch("run_1")), async {
        tokio::task::yield_now().await;
        store.progresses(Duration::from_secs(60)).unwrap();
    });
    assert!(
        matches!(held.0, Err(StoreError::Database(_))),
        "{:?}",
        held.0
    );
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(store.add_watch(watch("run_1")).await.unwrap().0, Added::New);
    store.progresses(Duration::ZERO).unwrap();
    close(store, tasks).await;
}

/// The end of a run with an output of so many bytes.
fn large_end(watch: &Watch, bytes: usize) -> Step {
    let limits = Limits {
        not_found_grace: Duration::from_secs(120),
        overdue_after: None,
        run_url: None,
    };
    let output = serde_json::value::to_raw_value(&"x".repeat(bytes))
        .unwrap()
        .into();
    let details = RunDetails {
        output: Some(output),
        ..RunDetails::default()
    };
    let seen = Observation {
        status: Status::read(None, "failed"),
        details,
    };
    Progress::begin(time(0))
        .step(watch, PollOutcome::Seen(Box::new(seen)), time(1), &limits)
        .unwrap()
}

#[tokio::test]
async fn large_outputs_that_come_together_share_no_transaction_and_leave_no_large_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("runwatch.db");
    let (store, tasks) = open(&path);
    let mut storing = JoinSet::new();
    for number in 0..24 {
        let watch = watch(&format!("run_{number}"));
        let (_, id) = store.add_watch(watch.clone()).await.unwrap();
        let step = large_end(&watch, 4 * 1024 * 1024);
        let store = store.clone();
        storing.spawn(async move {
            store
                .record_step(
                    id,
                    step.clone(),
                    told(&step, &["ops"]),
                    None,
                    FoundBy::Poll,
                    time(1),
                )
                .await
        });
    }
    while let Some(stored) = storing.join_next().await {
        stored.unwrap().unwrap();
    }
    for number in 0..4 {
        store
            .add_watch(watch(&format!("run_small_{number}")))
            .await
            .unwrap();
    }
    let log = std::fs::metadata(dir.path().join("runwatch.db-wal"))
        .unwrap()
        .len();
    assert!(
        log < 40 * 1024 * 1024,
        "the log has {log} bytes after 96 MiB were stored"
    );
    close(store, tasks).await;
}

#[tokio::test]
async fn pruning_is_bounded_in_bytes_and_gives_room_back_to_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("runwatch.db");
    let (store, tasks) = open(&path);
    for number in 0..5 {
        let watch = watch(&format!("run_{number}"));
        let (_, id) = store.add_watch(watch.clone()).await.unwrap();
        let step = large_end(&watch, 3 * 1024 * 1024);
        store
            .record_step(
                id,
                step.clone(),
                told(&step, &[]),
                None,
                FoundBy::Poll,
                time(number),
            )
            .await
            .unwrap();
    }
    assert_eq!(
        store
            .prune(time(0), Vec::new(), time(100))
            .await
            .unwrap()
            .deleted,
        0,
        "nothing is that old"
    );
    let (mut turns, mut freed) = (Vec::new(), Vec::new());
    loop {
        let pruned = store.prune(time(4), Vec::new(), time(100)).await.unwrap();
        if pruned.is_nothing() {
            break;
        }
        assert!(pruned.freed <= 512, "{pruned:?}");
        freed.push(pruned.freed);
        turns.push(pruned.deleted);
    }
    assert_eq!(turns[..4], [1, 1, 1, 1], "4 MiB at a time");
    assert_eq!(turns.iter().sum::<usize>(), 4);
    assert!(
        freed.iter().filter(|pages| **pages == 512).count() >= 4,
        "2 MiB at a time: {freed:?}"
    );
    assert_eq!(store.counts().await.unwrap().active, 0);
    close(store, tasks).await;
    let size = std::fs::metadata(&path).unwrap().len();
    assert!(
        size < 4 * 1024 * 1024,
        "the file has {size} bytes for one output of 3 MiB"
    );
}

#[tokio::test]
async fn messages_to_a_sink_that_is_gone_are_given_up_after_the_retention() {
    let dir = tempfile::tempdir().unwrap();
    let (store, tasks) = open(&dir.path().join("runwatch.db"));
    let [ops, gone] = ["ops", "gone"].map(|name| SinkName::new(name).unwrap());
    for (id, sinks) in [("run_1", &["gone"][..]), ("run_2", &["gone", "ops"])] {
        let watch = watch(id);
        let (_, id) = store.add_watch(watch.clone()).await.unwrap();
        let failed = step(&watch, &Progress::begin(time(0)), "failed", time(2));
        store
            .record_step(
                id,
                failed.clone(),
                told(&failed, sinks),
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

/// An event about the API at `at`.
fn incident(event_type: EventType, at: Timestamp) -> RoutedEvent {
    let notice = ProviderNotice {
        provider: ProviderName::crewship(),
        message: "no usable answer".to_owned(),
        since: at,
    };
    RoutedEvent {
        event: Event {
            event_type,
            timestamp: at,
            data: EventData::Provider(notice),
        },
        sinks: Vec::new(),
    }
}

#[tokio::test]
async fn an_incident_that_goes_on_outlives_pruning_and_a_clock_that_is_set_back() {
    let folder = tempfile::tempdir().unwrap();
    let (store, tasks) = open(&folder.path().join("runwatch.db"));
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

/// A disk on which each transaction panics.
struct Panicking;

impl TransactionRunner for Panicking {
    async fn run(&self, _transaction: Transaction) -> Option<Done> {
        None
    }
}

#[tokio::test]
async fn a_panic_of_the_writer_ends_the_store_though_handles_are_held() {
    let folder = tempfile::tempdir().unwrap();
    let (store, writer) = Store::open(Location::File(&folder.path().join("runwatch.db"))).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(writer.run_on(Panicking));
    let added = store.add_watch(watch("run_1")).await;
    assert!(matches!(added, Err(StoreError::Closed)), "{added:?}");
    let ended = tokio::time::timeout(Duration::from_secs(60), tasks.join_next()).await;
    ended
        .expect("its task ends, so that the process does")
        .unwrap()
        .unwrap();
}

/// A discovery of Crewship's runs that is stored as new at `time(0)`.
async fn discovery(store: &Store) -> DiscoveryId {
    let discoveries = vec![(ProviderName::crewship(), "{}".to_owned())];
    let begun = store.set_discoveries(discoveries, time(0)).await.unwrap();
    begun[0].id
}

fn note(id: &str, attempt: Option<u64>) -> RunNote {
    RunNote {
        run_id: RunRef::new(id).unwrap(),
        attempt,
        ended_at: None,
    }
}

fn found(discovery: DiscoveryId, note: RunNote, again: bool) -> DiscoveredRun {
    DiscoveredRun {
        discovery,
        title: "crewship".to_owned(),
        note,
        again,
    }
}

#[tokio::test]
async fn a_discovered_run_is_noted_and_watched_in_one_step_and_once_for_each_attempt() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("runwatch.db");
    let (store, tasks) = open(&path);
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
    let (store, tasks) = open(&path);
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

#[tokio::test]
async fn notes_of_discoveries_are_kept_for_a_week_of_rounds() {
    let (store, writer) = Store::open(Location::Memory).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(writer.run());
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
    store.end_round(id, time(2 * day)).await.unwrap();
    // No round was complete since then: what was not listed may still be there.
    assert_eq!(prune(30 * day).await, 0);
    store.end_round(id, time(7 * day + 1)).await.unwrap();
    assert_eq!(prune(30 * day).await, 1);
    assert!(!is_noted("run_1").await && is_noted("run_2").await);
    let noted = store
        .note_runs(id, vec![note("run_2", Some(1))], time(30 * day))
        .await;
    noted.unwrap();
    store.end_round(id, time(30 * day)).await.unwrap();
    assert_eq!(prune(30 * day).await, 0);
    assert!(is_noted("run_2").await);
    close(store, tasks).await;
}
