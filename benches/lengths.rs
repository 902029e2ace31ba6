//! What it takes to watch a run of a given length, and how late its end is seen: the real scheduler with the
//! default settings in simulated time, beside fixed intervals.
//!
//! `cargo bench --profile dev --bench lengths -- [--json] [SECONDS...]`. Nothing here depends on how fast the
//! machine is. The runs of one length are up to a tenth shorter or longer, evenly spread, so that their ends fall
//! anywhere between two polls. Each must be found succeeded, once.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use runwatch::app;
use runwatch::backoff::BackoffPolicy;
use runwatch::clock::Clock;
use runwatch::config::Settings;
use runwatch::domain::{Labels, RunRef, Watch};
use runwatch::metrics::Metrics;
use runwatch::scheduler::{AddedBy, Scheduler};
use runwatch::store::{Location, Store};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

#[allow(dead_code, reason = "the tests use all of it")]
#[path = "../tests/it/support/provider.rs"]
mod provider;

use provider::{Answer, FakeProvider, LATENCY};

/// Lengths that are measured when none is named.
const SECONDS: [u64; 5] = [10, 60, 600, 3600, 8 * 3600];

/// Most runs of one length, and most seconds of runs in all: a poll costs the same however long its run is.
const MAX_RUNS: u64 = 200;
const MAX_SECONDS: u64 = 600_000;

/// When each run ends, and when that was found.
type Runs = Arc<Mutex<HashMap<RunRef, (Instant, Option<Instant>)>>>;

/// An API whose runs are running until a set time, and then have succeeded.
fn api(runs: &Runs, found: watch::Sender<usize>) -> FakeProvider {
    let runs = Arc::clone(runs);
    FakeProvider::new(move |poll| {
        let mut runs = runs.lock().expect("no holder panics");
        let Some((ends_at, found_at)) = runs.get_mut(&poll.run_id) else {
            return Answer::missing();
        };
        let answered_at = Instant::now() + LATENCY;
        if answered_at >= *ends_at && found_at.replace(answered_at).is_none() {
            found.send_modify(|found| *found += 1);
        }
        Answer::until(*ends_at)
    })
}

/// What came of watching runs of one length.
struct Outcome {
    requests: f64,
    fewest: u64,
    most: u64,
    mean_delay: f64,
    worst_delay: f64,
}

async fn watched(length: Duration, backoff: Option<BackoffPolicy>) -> anyhow::Result<Outcome> {
    let count = (MAX_SECONDS / length.as_secs().max(1)).clamp(1, MAX_RUNS);
    let clock = Clock::simulated("2026-01-01T00:00:00Z".parse()?);
    let (found, mut all_found) = watch::channel(0);
    let runs = Runs::default();
    let api = api(&runs, found);
    let (store, writer) = Store::open(Location::Memory)?;
    let mut tasks = JoinSet::new();
    tasks.spawn(writer.run());
    let mut policy = app::policy(&Settings::default());
    // The budget is not what is measured.
    policy.requests_per_minute = 1_000_000;
    policy.max_streams = 0;
    policy.backoff = backoff.unwrap_or(policy.backoff);
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
    for index in 0..count {
        let run_id = RunRef::new(&format!("run_{index}"))?;
        let part = 0.9 + 0.2 * (index as f64 + 0.5) / count as f64;
        let ends_at = Instant::now() + length.mul_f64(part);
        runs.lock()
            .expect("no holder panics")
            .insert(run_id.clone(), (ends_at, None));
        let added_at = clock.now();
        let deadline_at = added_at.checked_add(Duration::from_secs(30 * 24 * 3600))?;
        let watch = Watch {
            run_id,
            name: None,
            labels: Labels::new(),
            sinks: None,
            added_at,
            deadline_at,
            trace: None,
        };
        watches.add(watch, AddedBy::Request).await?;
    }
    let all = usize::try_from(count)?;
    all_found.wait_for(|found| *found == all).await?;
    // A run that is polled again after its end is polled within this.
    tokio::time::sleep(Duration::from_secs(60)).await;
    stop.cancel();
    drop((store, watches));
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    let runs = std::mem::take(&mut *runs.lock().expect("no holder panics"));
    let requests: Vec<_> = runs
        .keys()
        .map(|id| api.polls_of(id.as_str()).len() as u64)
        .collect();
    let delay = |(ends_at, found_at): &(Instant, Option<Instant>)| {
        Some(found_at.as_ref()?.duration_since(*ends_at).as_secs_f64())
    };
    let delays: Vec<f64> = runs
        .values()
        .map(delay)
        .collect::<Option<_>>()
        .context("each was found")?;
    let mean = |sum: f64| sum / count as f64;
    Ok(Outcome {
        requests: mean(requests.iter().sum::<u64>() as f64),
        fewest: *requests.iter().min().context("there are runs")?,
        most: *requests.iter().max().context("there are runs")?,
        mean_delay: mean(delays.iter().sum()),
        worst_delay: delays.iter().copied().fold(0.0, f64::max),
    })
}

fn main() -> anyhow::Result<()> {
    let (mut json, mut lengths) = (false, Vec::new());
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--json" => json = true,
            // Cargo says so to every benchmark.
            "--bench" => {}
            other => match other.parse() {
                Ok(seconds @ 1..=86_400) => lengths.push(seconds),
                _ => bail!("{other} is no length in seconds from 1 to 86,400; known: --json"),
            },
        }
    }
    if lengths.is_empty() {
        lengths.extend(SECONDS);
    }
    let mut out = std::io::stdout();
    if !json {
        writeln!(
            out,
            "{:>8}  {:<12}{:>20}{:>14}{:>14}",
            "length", "interval", "requests", "mean delay", "worst"
        )?;
    }
    for seconds in lengths {
        let fixed = |seconds| Some(BackoffPolicy::fixed(Duration::from_secs(seconds)));
        for (name, backoff) in [("growing", None), ("3 s", fixed(3)), ("10 s", fixed(10))] {
            // Simulated time: it goes on to the next timer whenever there is nothing to do.
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(true)
                .build()?;
            let Outcome {
                requests,
                fewest,
                most,
                mean_delay,
                worst_delay,
            } = runtime.block_on(watched(Duration::from_secs(seconds), backoff))?;
            ensure!(fewest >= 1, "a run was never polled");
            if json {
                let row = json!({
                    "seconds": seconds, "interval": name, "requests": requests, "fewest": fewest, "most": most,
                    "mean_delay": mean_delay, "worst_delay": worst_delay,
                });
                writeln!(out, "{row}")?;
            } else {
                let spread = format!("{requests:.1} ({fewest}-{most})");
                writeln!(
                    out,
                    "{seconds:>6} s  {name:<12}{spread:>20}{mean_delay:>12.2} s{worst_delay:>12.2} s"
                )?;
            }
        }
    }
    Ok(())
}
