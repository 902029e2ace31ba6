//! What the two stores take in: watches, verdicts with an event and a delivery, and deliveries with their attempts, a
//! second; SQLite in a file and PostgreSQL on the same disk, one after the other, several times.
//!
//! `tests/cluster/with-server cargo bench --bench stores -- [--rows N] [--rounds N] [--quick]`. With `--quick` there are
//! few rows, so that it cannot rot.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use runwatch::domain::{
    FoundBy, Labels, Limits, Observation, OverdueAfter, PollOutcome, Progress, RunDetails, RunRef,
    SinkName, Status, Watch,
};
use runwatch::store::{
    Added, Attempt, AttemptOutcome, Location, PostgresSettings, RoutedEvent, Store, WatchId,
};
use secrecy::SecretString;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How many callers wait at the same time: those of one daemon with many clients, and as many as share a transaction.
const CALLERS: [usize; 3] = [1, 64, 512];

/// How long the server may take to be reached.
const REACHED: Duration = Duration::from_secs(60);

struct Args {
    rows: usize,
    rounds: usize,
}

fn args() -> anyhow::Result<Args> {
    let mut parsed = Args {
        rows: 20_000,
        rounds: 3,
    };
    let mut given = std::env::args().skip(1);
    while let Some(argument) = given.next() {
        let mut number = || -> anyhow::Result<usize> {
            let number = given
                .next()
                .with_context(|| format!("{argument} takes a number"))?
                .parse()?;
            ensure!(number > 0, "{argument} takes a number from 1");
            Ok(number)
        };
        match argument.as_str() {
            "--rows" => parsed.rows = number()?,
            "--rounds" => parsed.rounds = number()?,
            "--quick" => (parsed.rows, parsed.rounds) = (600, 1),
            // Cargo's own.
            "--bench" => {}
            other => anyhow::bail!("{other:?} is not known"),
        }
    }
    Ok(parsed)
}

/// What was done in a second.
#[derive(Debug, Clone, Copy)]
struct Rates {
    adds: f64,
    verdicts: f64,
    deliveries: f64,
}

fn time(seconds: usize) -> anyhow::Result<Timestamp> {
    Ok(Timestamp::from_second(
        1_700_000_000 + i64::try_from(seconds)?,
    )?)
}

fn watch(number: usize) -> anyhow::Result<Watch> {
    Ok(Watch {
        run_id: RunRef::new(&format!("run_{number:020}"))?,
        name: Some("nightly".to_owned()),
        labels: Labels::from([("team".to_owned(), "search".to_owned())]),
        sinks: None,
        added_at: time(number)?,
        deadline_at: time(number + 3600)?,
        trace: None,
    })
}

/// How many rows a second `each` handles with so many callers.
async fn rate<T, F, R>(items: Vec<T>, callers: usize, each: F) -> anyhow::Result<(f64, Vec<R>)>
where
    F: Fn(T) -> std::pin::Pin<Box<dyn Future<Output = anyhow::Result<R>> + Send>>,
{
    let count = items.len();
    let began = Instant::now();
    let done: Vec<R> = stream::iter(items)
        .map(each)
        .buffered(callers)
        .try_collect()
        .await?;
    Ok((count as f64 / began.elapsed().as_secs_f64(), done))
}

async fn add(store: Store, number: usize) -> anyhow::Result<(WatchId, Watch)> {
    let watch = watch(number)?;
    let (added, id) = store.add_watch(watch.clone()).await?;
    ensure!(added == Added::New, "it is new");
    Ok((id, watch))
}

async fn end(store: Store, id: WatchId, watch: Watch) -> anyhow::Result<()> {
    let limits = Limits {
        not_found_grace: Duration::from_secs(120),
        overdue_after: OverdueAfter::Never,
        run_url: None,
    };
    let now = time(5)?;
    let output = serde_json::value::to_raw_value(&"x".repeat(200))?.into();
    let details = RunDetails {
        output: Some(output),
        completed_at: Some(now),
        ..RunDetails::default()
    };
    let seen = Observation {
        status: Status::read(None, "failed"),
        details,
    };
    let step =
        Progress::begin(now).step(&watch, PollOutcome::Seen(Box::new(seen)), now, &limits)?;
    let ops = SinkName::new("ops")?;
    let routed = step.events.iter().map(|event| RoutedEvent {
        event: event.clone(),
        sinks: vec![ops.clone()],
        held: Vec::new(),
    });
    let routed = routed.collect();
    store
        .record_step(id, step, routed, None, FoundBy::Poll, now)
        .await?;
    Ok(())
}

/// Claims deliveries as a courier does, 16 at a time, and stores an attempt for each. Returns how many a second.
async fn deliver(store: &Store, rows: usize) -> anyhow::Result<f64> {
    let ops = SinkName::new("ops")?;
    let (began, mut done) = (Instant::now(), 0);
    while done < rows {
        let claimed = store
            .claim_due(ops.clone(), time(10)?, 16, usize::MAX)
            .await?;
        ensure!(!claimed.is_empty(), "{done} of {rows} are delivered");
        done += claimed.len();
        let attempts = claimed.into_iter().map(|claimed| {
            let attempt = Attempt {
                attempt: claimed.attempt,
                at: Timestamp::UNIX_EPOCH,
                took: Duration::from_millis(5),
                detail: "200 OK".to_owned(),
                outcome: AttemptOutcome::Delivered,
            };
            store.record_attempt(claimed.id, attempt)
        });
        futures_util::future::try_join_all(attempts).await?;
    }
    Ok(rows as f64 / began.elapsed().as_secs_f64())
}

async fn measure(store: &Store, rows: usize, callers: usize) -> anyhow::Result<Rates> {
    let to_add = store.clone();
    let (adds, added) = rate((0..rows).collect(), callers, move |number| {
        Box::pin(add(to_add.clone(), number))
    })
    .await?;
    let to_end = store.clone();
    let (verdicts, _) = rate(added, callers, move |(id, watch)| {
        Box::pin(end(to_end.clone(), id, watch))
    })
    .await?;
    let deliveries = deliver(store, rows).await?;
    Ok(Rates {
        adds,
        verdicts,
        deliveries,
    })
}

async fn close(store: Store, mut tasks: JoinSet<()>) {
    drop(store);
    while tasks.join_next().await.is_some() {}
}

async fn in_sqlite(folder: &Path, rows: usize, callers: usize) -> anyhow::Result<Rates> {
    let folder = tempfile::tempdir_in(folder)?;
    let path = folder.path().join("runwatch.db");
    let (store, writer) = Store::open(Location::File(&path))?;
    let mut tasks = JoinSet::new();
    tasks.spawn(writer.run());
    let rates = measure(&store, rows, callers).await;
    close(store, tasks).await;
    rates
}

async fn in_postgres(
    url: &str,
    rows: usize,
    callers: usize,
    round: usize,
) -> anyhow::Result<Rates> {
    let settings = PostgresSettings {
        url: SecretString::from(url),
        url_file: None,
        schema: format!("bench_{callers}_{round}"),
        ca_file: None,
        migrate: true,
        statement_limit: Duration::from_secs(20),
        name: "bench".to_owned(),
    };
    let (store, server) = Store::postgres(&settings)?;
    let mut tasks = JoinSet::new();
    tasks.spawn(server.run());
    let reached = async {
        while store.probe().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(REACHED, reached).await?;
    let rates = measure(&store, rows, callers).await;
    close(store, tasks).await;
    rates
}

/// The best of several rounds: a machine is disturbed, it is never faster than it is.
fn best(rates: &[Rates], of: fn(&Rates) -> f64) -> f64 {
    rates.iter().map(of).fold(0.0, f64::max)
}

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "the table is what it makes")]
async fn main() -> anyhow::Result<()> {
    let Args { rows, rounds } = args()?;
    let set = |name: &str| {
        std::env::var(name)
            .with_context(|| format!("{name}: start it by tests/cluster/with-server"))
    };
    let (url, folder) = (set("RUNWATCH_TEST_POSTGRES")?, set("RUNWATCH_TEST_FOLDER")?);
    println!("| Store | Callers | Watches added /s | Verdicts /s | Deliveries /s |");
    println!("|---|---|---|---|---|");
    for callers in CALLERS {
        // One caller waits for a sync of the disk each time.
        let rows = if callers == 1 {
            rows.div_ceil(20)
        } else {
            rows
        };
        let (mut file, mut server) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            file.push(in_sqlite(Path::new(&folder), rows, callers).await?);
            server.push(in_postgres(&url, rows, callers, round).await?);
        }
        for (name, rates) in [("SQLite", file), ("PostgreSQL", server)] {
            println!(
                "| {name} | {callers} | {:.0} | {:.0} | {:.0} |",
                best(&rates, |rates| rates.adds),
                best(&rates, |rates| rates.verdicts),
                best(&rates, |rates| rates.deliveries)
            );
        }
    }
    Ok(())
}
