//! The store on disk: what was answered is there after the process is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use runwatch::domain::{
    Event, EventData, EventType, FoundBy, Limits, Observation, OverdueAfter, PollOutcome, Progress,
    ProviderName, ProviderNotice, RunDetails, RunRef, SinkName, Status, Step, Verdict, Watch,
};
use runwatch::store::{
    Added, Checkpoint, DeliveryState, Done, Location, ReadJob, RoutedEvent, Store, StoreError,
    Transaction, TransactionRunner, WatchFilter,
};
use tokio::task::JoinSet;

use crate::contract::{Place, close, contract_tests, routed_to, time, watch};

/// A store and the task of its writer, which ends when the store is dropped.
fn open(path: &std::path::Path) -> (Store, JoinSet<()>) {
    let (store, writer) = Store::open(Location::File(path)).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(writer.run());
    (store, tasks)
}

/// A file, in a folder of its own.
struct InFile(tempfile::TempDir);

impl InFile {
    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("runwatch.db")
    }
}

impl Place for InFile {
    async fn open(&self) -> (Store, JoinSet<()>) {
        open(&self.path())
    }

    async fn rows_of(&self, table: &str) -> i64 {
        let db = rusqlite::Connection::open(self.path()).unwrap();
        let sql = format!("SELECT count(*) FROM {table}");
        db.query_row(&sql, [], |row| row.get(0)).unwrap()
    }
}

fn place(_name: &str) -> InFile {
    InFile(tempfile::tempdir().unwrap())
}

contract_tests!(place);

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
        "there was no poll meanwhile: the grace begins anew"
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
        fallback_for: None,
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
                    held: Vec::new(),
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
    let record = async |seconds: i64| {
        let data = EventData::Provider(ProviderNotice {
            provider: ProviderName::crewship(),
            message: message.clone(),
            since: time(0),
            fallback_for: None,
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
                    held: Vec::new(),
                },
                time(seconds),
            )
            .await
            .unwrap();
    };
    let size = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().len() >> 20;
    // The first checkpoint is under way from 4 MiB on, and what is written goes to the log.
    for seconds in 0..40 {
        record(seconds).await;
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
                record(seconds).await;
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
        overdue_after: OverdueAfter::Never,
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
                    routed_to(&step, &["ops"]),
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
                routed_to(&step, &[]),
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
