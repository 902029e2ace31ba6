//! How soon ends are seen, and with how many requests, where many runs share a small budget: with and
//! without the list of the provider, and beside a poller that polls all runs in turns with the whole
//! budget. The real scheduler with the default settings in simulated time.
//!
//! `cargo bench --profile dev --bench lists -- [--json] [--quick]`. Nothing here depends on how fast
//! the machine is. The runs were seen running an hour before. Twenty of them end in each minute, spread
//! evenly, and each must be found succeeded. The list shows the runs that go on, a hundred on each page.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use runwatch::app;
use runwatch::clock::Clock;
use runwatch::config::Settings;
use runwatch::domain::RunState;
use runwatch::metrics::Metrics;
use runwatch::providers::{ListPage, PageRef};
use runwatch::scheduler::Scheduler;
use runwatch::store::{Location, Store};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

#[allow(dead_code, reason = "the tests use all of it")]
#[path = "../tests/it/support/provider.rs"]
mod provider;
#[path = "../tests/it/support/watches.rs"]
mod watches;

use provider::{Answer, FakeProvider, LATENCY, Listed, entry};
use watches::{store_running, watch_of};

/// Runs that end in each minute.
const ENDS_A_MINUTE: u32 = 20;

/// Before the first end: the time in which the scheduler finds out what the list covers.
const WARM_UP: Duration = Duration::from_secs(1800);

/// Runs on a page.
const PAGE: usize = 100;

/// How many runs of the page before a page repeats, so that none is missed when those before it end.
const OVERLAP: usize = 5;

/// The runs, by their numbers: when each ends and when that was found.
#[derive(Clone, Default)]
struct Runs(Arc<Mutex<Vec<Run>>>);

struct Run {
    ends_at: Option<Instant>,
    found_at: Option<Instant>,
}

fn api(runs: &Runs, has_list: bool, found: watch::Sender<usize>) -> FakeProvider {
    let (of_list, of_polls) = (runs.clone(), runs.clone());
    let poll = move |poll: &provider::Poll| {
        let mut runs = of_polls.0.lock().expect("no holder panics");
        let number: usize = poll.run_id.id()[4..].parse().expect("run_ and a number");
        let run = &mut runs[number];
        let answered_at = Instant::now() + LATENCY;
        let Some(ends_at) = run.ends_at else {
            return Answer::seen(RunState::Running);
        };
        if answered_at >= ends_at && run.found_at.replace(answered_at).is_none() {
            found.send_modify(|found| *found += 1);
        }
        Answer::until(ends_at)
    };
    if !has_list {
        return FakeProvider::new(poll);
    }
    let list = move |listing: &provider::Listing| {
        let runs = of_list.0.lock().expect("no holder panics");
        let now = Instant::now();
        let going = |(_, run): &(usize, &Run)| run.ends_at.is_none_or(|ends_at| now < ends_at);
        let from: usize = match &listing.request.page {
            Some(page) => page.as_str().parse().expect("a number"),
            None => 0,
        };
        let ids = runs.iter().enumerate().filter(going).skip(from).take(PAGE);
        let entries: Vec<_> = ids
            .map(|(number, _)| entry(&format!("run_{number}"), RunState::Running))
            .collect();
        let next =
            (entries.len() == PAGE).then(|| PageRef::new((from + PAGE - OVERLAP).to_string()));
        Listed::of(Ok(ListPage {
            entries,
            next,
            ..ListPage::default()
        }))
    };
    FakeProvider::with_list(list, poll)
}

/// What came of it.
struct Outcome {
    mean_delay: f64,
    worst_delay: f64,
    polls_a_minute: f64,
    pages_a_minute: f64,
}

async fn watched(
    count: usize,
    per_minute: u32,
    has_list: bool,
    ends: usize,
) -> anyhow::Result<Outcome> {
    let clock = Clock::simulated("2026-01-01T00:00:00Z".parse()?);
    let (found, mut all_found) = watch::channel(0);
    let runs = Runs::default();
    let api = api(&runs, has_list, found);
    let (store, writer) = Store::open(Location::Memory)?;
    let mut tasks = JoinSet::new();
    tasks.spawn(writer.run());
    let mut policy = app::policy(&Settings::default());
    let long_ago = clock.now().checked_sub(Duration::from_secs(3600))?;
    for number in 0..count {
        let deadline = Duration::from_secs(30 * 24 * 3600);
        let watch = watch_of(&format!("run_{number}"), long_ago, deadline);
        store_running(&store, &watch, &policy.limits).await;
    }
    policy.requests_per_minute = per_minute;
    policy.max_streams = 0;
    let (mut scheduler, watches) = Scheduler::new(
        api.clone(),
        store.clone(),
        clock.clone(),
        policy,
        Metrics::default(),
        7,
    );
    let active = store.active_watches(clock.now(), None, u32::MAX).await?;
    ensure!(active.len() == count, "all are stored");
    scheduler.resume(active, count as u64);
    let begins = Instant::now() + WARM_UP;
    let gap = Duration::from_secs(60) / ENDS_A_MINUTE;
    // The runs that end are spread over all pages, and in no order.
    let step = (0..)
        .map(|more| 7919 + more)
        .find(|step| coprime(*step, count))
        .context("there is one")?;
    let mut numbers = HashMap::new();
    for nth in 0..ends.min(count) {
        numbers.insert(nth * step % count, begins + gap * u32::try_from(nth)?);
    }
    runs.0
        .lock()
        .expect("no holder panics")
        .extend((0..count).map(|number| Run {
            ends_at: numbers.get(&number).copied(),
            found_at: None,
        }));
    let stop = CancellationToken::new();
    tasks.spawn(scheduler.run(stop.clone()));
    let all = numbers.len();
    all_found.wait_for(|found| *found == all).await?;
    let minutes = Instant::now().duration_since(begins).as_secs_f64() / 60.0;
    let since = |at: &Instant| *at >= begins;
    let polls = api.polls().iter().filter(|poll| since(&poll.at)).count();
    let pages = api.listings().iter().filter(|page| since(&page.at)).count();
    stop.cancel();
    drop((store, watches));
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    let runs = std::mem::take(&mut *runs.0.lock().expect("no holder panics"));
    let delay = |run: &Run| Some(run.found_at?.duration_since(run.ends_at?).as_secs_f64());
    let delays: Vec<f64> = runs.iter().filter_map(delay).collect();
    ensure!(delays.len() == all, "each was found");
    Ok(Outcome {
        mean_delay: delays.iter().sum::<f64>() / all as f64,
        worst_delay: delays.iter().copied().fold(0.0, f64::max),
        polls_a_minute: polls as f64 / minutes,
        pages_a_minute: pages as f64 / minutes,
    })
}

fn coprime(mut a: usize, mut b: usize) -> bool {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a == 1
}

/// A poller that polls all runs in turns, with one request each time that the budget allows one.
fn in_turns(count: usize, per_minute: u32) -> Outcome {
    let round = count as f64 * 60.0 / f64::from(per_minute);
    Outcome {
        mean_delay: round / 2.0,
        worst_delay: round,
        polls_a_minute: f64::from(per_minute),
        pages_a_minute: 0.0,
    }
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (json, quick) = (
        arguments.iter().any(|argument| argument == "--json"),
        arguments.iter().any(|argument| argument == "--quick"),
    );
    let counts: &[usize] = if quick { &[100] } else { &[100, 1_000, 10_000] };
    let ends = if quick { 20 } else { 200 };
    let mut out = std::io::stdout();
    if !json {
        writeln!(
            out,
            "{:>6}  {:>10}  {:<10}{:>12}{:>12}{:>12}{:>12}",
            "runs", "budget", "how", "mean delay", "worst", "polls/min", "pages/min"
        )?;
    }
    for &count in counts {
        for per_minute in [60, 300] {
            let mut rows = BTreeMap::new();
            rows.insert("1 in turns", in_turns(count, per_minute));
            for (how, has_list) in [("2 polls", false), ("3 list", true)] {
                // Simulated time: it goes on to the next timer whenever there is nothing to do.
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .start_paused(true)
                    .build()?;
                rows.insert(
                    how,
                    runtime.block_on(watched(count, per_minute, has_list, ends))?,
                );
            }
            for (how, row) in rows {
                let how = &how[2..];
                let Outcome {
                    mean_delay,
                    worst_delay,
                    polls_a_minute,
                    pages_a_minute,
                } = row;
                if json {
                    let row = json!({
                        "runs": count, "per_minute": per_minute, "how": how, "mean_delay": mean_delay,
                        "worst_delay": worst_delay, "polls": polls_a_minute, "pages": pages_a_minute,
                    });
                    writeln!(out, "{row}")?;
                } else {
                    writeln!(
                        out,
                        "{count:>6}  {per_minute:>6}/min  {how:<10}{mean_delay:>10.1} s{worst_delay:>10.1} s{polls_a_minute:>12.1}{pages_a_minute:>12.1}"
                    )?;
                }
            }
        }
    }
    Ok(())
}
