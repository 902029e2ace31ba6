//! The small pieces of work that are done for every poll, every message and every write.
//!
//! `cargo bench --features bench-hooks --bench hot`, or with `-- --test` to see only that each piece works.

use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use jiff::Timestamp;
use runwatch::clock::Clock;
use runwatch::config::Settings;
use runwatch::domain::{
    Event, FoundBy, Labels, Limits, PollOutcome, Progress, RunRef, SinkName, Step, Watch,
};
use runwatch::notify::signature;
use runwatch::store::{Added, Location, RoutedEvent, Store, WatchId};
use runwatch::{app, providers};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::Instant;

const RUNNING: &[u8] = include_bytes!("../tests/data/running.json");
const SUCCEEDED: &[u8] = include_bytes!("../tests/data/succeeded.json");

fn run_id() -> RunRef {
    RunRef::new("run_xyz789abc").expect("letters and digits")
}

fn watch_of(run_id: RunRef) -> Watch {
    let added_at: Timestamp = "2024-01-15T10:34:59.1Z".parse().expect("a time");
    let deadline_at = added_at
        .checked_add(Duration::from_secs(24 * 3600))
        .expect("a time");
    Watch {
        run_id,
        name: None,
        labels: Labels::new(),
        sinks: None,
        added_at,
        deadline_at,
        trace: None,
    }
}

fn limits() -> Limits {
    app::policy(&Settings::default()).limits
}

fn observed(body: &[u8]) -> PollOutcome {
    PollOutcome::Seen(Box::new(
        providers::hot::observation(body, &run_id()).expect("a documented answer"),
    ))
}

/// A watch whose run was seen running, and the time of that.
fn going() -> (Watch, Progress, Timestamp) {
    let watch = watch_of(run_id());
    let now = watch
        .added_at
        .checked_add(Duration::from_secs(5))
        .expect("a time");
    let step = Progress::begin(watch.added_at)
        .step(&watch, observed(RUNNING), now, &limits())
        .expect("it goes on");
    (watch, step.progress, now)
}

fn poll(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("poll");
    let id = run_id();
    for (name, body) in [("running", RUNNING), ("succeeded", SUCCEEDED)] {
        group.bench_function(format!("parse an answer/{name}"), |bencher| {
            bencher.iter(|| {
                providers::hot::observation(black_box(body), &id).expect("a documented answer")
            });
        });
    }

    let ((watch, progress, now), limits) = (going(), limits());
    for (name, body, news) in [("unchanged", RUNNING, false), ("ended", SUCCEEDED, true)] {
        group.bench_function(format!("take a step/{name}"), |bencher| {
            let step = |answer| {
                progress
                    .step(black_box(&watch), answer, now, &limits)
                    .expect("it has no verdict")
            };
            assert_eq!(step(observed(body)).is_news(), news);
            bencher.iter_batched(|| observed(body), step, BatchSize::SmallInput);
        });
    }

    let backoff = app::policy(&Settings::default()).backoff;
    let mut random = fastrand::Rng::with_seed(7);
    group.bench_function("the next interval", |bencher| {
        bencher.iter(|| {
            let (current, waited) = (Some(Duration::from_secs(3)), Duration::from_secs(40));
            let interval = backoff
                .next(black_box(current))
                .min(backoff.interval_after(black_box(waited)));
            backoff.wait(interval, &mut random)
        });
    });

    let mut budget = runwatch::scheduler::hot::budget(1_000_000, Instant::now());
    group.bench_function("ask the budget", |bencher| {
        // With the reading of the clock, as the scheduler does it.
        bencher.iter(|| budget(black_box(Instant::now())));
    });
    group.finish();
}

fn redact(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("secrets");
    let redact = providers::hot::redaction("ck_live_0123456789abcdefghijklmnopqrstuvwxyz");
    let text = r#"A text of an agent, with a \"quotation\", a number (1705315805) and a path: /v1/runs.\n"#;
    let large = format!(r#"{{"output":"{}"}}"#, text.repeat(64 * 1024 / text.len()));
    for (name, body) in [("running", RUNNING), ("64 KiB", large.as_bytes())] {
        assert_eq!(redact(body.to_vec()), body, "there is no secret in it");
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(format!("search an answer/{name}"), |bencher| {
            bencher.iter_batched(|| body.to_vec(), &redact, BatchSize::SmallInput);
        });
    }
    group.finish();
}

fn sign(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("message");
    let (watch, progress, now) = going();
    let step = progress
        .step(&watch, observed(SUCCEEDED), now, &limits())
        .expect("it has no verdict");
    let event = step.events.last().expect("an end has an event").clone();
    let body = event.to_json();
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("write it", |bencher| {
        bencher.iter(|| black_box(&event).to_json())
    });
    group.bench_function("sign it", |bencher| {
        bencher.iter(|| {
            let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
            signature::sign(
                black_box(secret),
                id,
                1_705_315_805,
                black_box(body.as_bytes()),
            )
            .expect("a valid secret")
        });
    });
    group.finish();
}

/// A store on the disk, not in memory: a commit is worth what the disk makes of it.
struct OnDisk {
    runtime: Runtime,
    store: Store,
    next: u64,
    // The last field, so that it is removed once nothing writes to it.
    _folder: tempfile::TempDir,
}

impl OnDisk {
    fn open() -> Self {
        let folder = tempfile::tempdir_in(Path::new(env!("CARGO_TARGET_TMPDIR")))
            .expect("a place on the disk");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("threads are to be had");
        let (store, writer) =
            Store::open(Location::File(&folder.path().join("runwatch.db"))).expect("a new store");
        runtime.spawn(writer.run());
        Self {
            runtime,
            store,
            next: 0,
            _folder: folder,
        }
    }

    /// Runs that the store does not know yet.
    fn new_runs(&mut self, count: u64) -> Vec<RunRef> {
        let first = self.next;
        self.next += count;
        (first..self.next)
            .map(|number| RunRef::new(&format!("run_{number}")).expect("letters and digits"))
            .collect()
    }

    /// Adds all at once, so that they share commits, and waits for every answer.
    fn add(&self, runs: Vec<RunRef>) -> Vec<(WatchId, RunRef)> {
        self.runtime.block_on(async {
            let mut adding = JoinSet::new();
            for run_id in runs {
                let store = self.store.clone();
                adding.spawn(
                    async move { (store.add_watch(watch_of(run_id.clone())).await, run_id) },
                );
            }
            let mut added = Vec::new();
            while let Some(stored) = adding.join_next().await {
                let (stored, run_id) = stored.expect("it does not panic");
                let (new, id) = stored.expect("the disk has room");
                assert_eq!(new, Added::New);
                added.push((id, run_id));
            }
            added
        })
    }

    /// Stores a verdict with its event and one delivery for each, all at once.
    fn end(&self, ends: Vec<(WatchId, Step)>) {
        let (now, sinks) = (
            Clock::system().now(),
            vec![SinkName::new("ops").expect("a valid name")],
        );
        self.runtime.block_on(async {
            let mut storing = JoinSet::new();
            for (watch, step) in ends {
                let store = self.store.clone();
                let routed = |event: &Event| RoutedEvent {
                    event: event.clone(),
                    sinks: sinks.clone(),
                    held: Vec::new(),
                };
                let routed = step.events.iter().map(routed).collect();
                storing.spawn(async move {
                    store
                        .record_step(watch, step, routed, None, FoundBy::Poll, now)
                        .await
                });
            }
            while let Some(stored) = storing.join_next().await {
                stored
                    .expect("it does not panic")
                    .expect("the watch is there");
            }
        });
    }
}

fn store(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("store");
    group.sample_size(20);
    let mut disk = OnDisk::open();
    let ((_, progress, now), limits) = (going(), limits());
    let ends = |(watch, run_id): (WatchId, RunRef)| {
        let step = progress.step(&watch_of(run_id), observed(SUCCEEDED), now, &limits);
        (watch, step.expect("it has no verdict"))
    };
    for count in [1, 64, 512] {
        group.throughput(Throughput::Elements(count));
        group.bench_function(format!("add/{count} at once"), |bencher| {
            bencher.iter_custom(|times| {
                let mut taken = Duration::ZERO;
                for _ in 0..times {
                    let runs = disk.new_runs(count);
                    let began = Instant::now();
                    disk.add(runs);
                    taken += began.elapsed();
                }
                taken
            });
        });
        group.bench_function(format!("verdict/{count} at once"), |bencher| {
            bencher.iter_custom(|times| {
                let mut taken = Duration::ZERO;
                for _ in 0..times {
                    let runs = disk.new_runs(count);
                    let added = disk.add(runs);
                    let ends = added.into_iter().map(ends).collect();
                    let began = Instant::now();
                    disk.end(ends);
                    taken += began.elapsed();
                }
                taken
            });
        });
    }
    group.finish();
}

criterion_group!(benches, poll, redact, sign, store);
criterion_main!(benches);
