//! How soon people are notified: from the end of a simulated run to the arrival of its webhook, with event
//! streams and without, through the real engine with its store on disk and HTTP over loopback.
//!
//! `cargo bench --bench streams -- [--runs N] [--at-once N] [--quick]`. With `--quick` there are few runs
//! and no time is checked. Every run must be reported exactly once and rightly in any case.

use std::collections::HashMap;
use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use runwatch::app::Engine;
use runwatch::clock::Clock;
use runwatch::config::{EventsMode, Secret, Settings, SinkKind, SinkSettings, WebhookSettings};
use runwatch::domain::{Event, EventFilter, Labels, RunRef, SinkName, Verdict, Watch};
use runwatch::metrics::{Format, Scraped};
use runwatch::scheduler::AddedBy;
use runwatch::simulator::{Receiver, Script, Simulator};
use runwatch::store::Location;
use tokio::time::Instant;

/// The runs are so long, evenly spread: short enough for a thousand of them in a minute or two.
const LENGTHS: std::ops::Range<f64> = 0.5..1.5;

/// The program has as many workers.
const WORKERS: usize = 2;

/// How long one measurement may take, whatever happens.
const LIMIT: Duration = Duration::from_secs(600);

/// Targets of the delays with streams.
const MEDIAN_MS: f64 = 10.0;
const P99_MS: f64 = 50.0;

struct Args {
    runs: usize,
    at_once: usize,
    quick: bool,
}

fn args() -> anyhow::Result<Args> {
    // As many at once as streams are followed by default.
    let mut parsed = Args {
        runs: 1000,
        at_once: Settings::default().watch.max_streams,
        quick: false,
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
            "--runs" => parsed.runs = number()?,
            "--at-once" => parsed.at_once = number()?,
            "--quick" => (parsed.quick, parsed.runs) = (true, 40),
            // Cargo says so to every benchmark.
            "--bench" => {}
            other => bail!("unknown argument {other}; known: --runs N, --at-once N, --quick"),
        }
    }
    Ok(parsed)
}

/// What came of one measurement.
struct Measured {
    delays: Vec<Duration>,
    /// Verdicts that a stream gave a reason to ask for.
    by_stream: u64,
    requests_per_run: f64,
}

fn main() -> anyhow::Result<()> {
    let args = args()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()?;
    let mut out = std::io::stdout();
    writeln!(
        out,
        "From the end of a run to the arrival of its webhook: {} runs of {} to {} s, {} at once.",
        args.runs, LENGTHS.start, LENGTHS.end, args.at_once
    )?;
    writeln!(
        out,
        "One sync of the disk that the store is on takes {:.1} ms (median of 50).\n",
        sync_ms()?
    )?;
    writeln!(
        out,
        "{:<16}{:>10}{:>10}{:>10}{:>10}   requests per run",
        "", "p50", "p90", "p99", "max"
    )?;
    let mut with_streams = (0.0, 0.0);
    for (name, events) in [
        ("with streams", EventsMode::Auto),
        ("without", EventsMode::Off),
    ] {
        let measured = runtime.block_on(async {
            tokio::time::timeout(LIMIT, measure(&args, events))
                .await
                .context("it took too long")?
        })?;
        let ms = |part: f64| percentile(&measured.delays, part).as_secs_f64() * 1e3;
        if events == EventsMode::Auto {
            with_streams = (ms(0.5), ms(0.99));
            let share = measured.by_stream as f64 / args.runs as f64;
            // The small form asks nothing of the times: where runs are short, a busy machine polls first.
            ensure!(
                share > if args.quick { 0.0 } else { 0.9 },
                "only {:.0} % of the verdicts were found through a stream",
                share * 100.0
            );
        } else {
            ensure!(
                measured.by_stream == 0,
                "a verdict came through a stream that is off"
            );
        }
        writeln!(
            out,
            "{name:<16}{:>7.1} ms{:>7.1} ms{:>7.1} ms{:>7.1} ms   {:.1}",
            ms(0.5),
            ms(0.9),
            ms(0.99),
            ms(1.0),
            measured.requests_per_run,
        )?;
    }
    if !args.quick {
        let (median, p99) = with_streams;
        let held = median < MEDIAN_MS && p99 < P99_MS;
        let outcome = if held { "held" } else { "MISSED" };
        writeln!(
            out,
            "\nTarget with streams: p50 below {MEDIAN_MS} ms, p99 below {P99_MS} ms: {outcome}."
        )?;
        ensure!(held, "the target is missed");
    }
    Ok(())
}

/// The value below which this part of `sorted` is.
fn percentile(sorted: &[Duration], part: f64) -> Duration {
    let last = sorted.len() - 1;
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index of the slice"
    )]
    let index = (last as f64 * part).round() as usize;
    sorted[index.min(last)]
}

/// How long the disk takes to keep a small write, in milliseconds.
fn sync_ms() -> anyhow::Result<f64> {
    let mut file = tempfile::tempfile()?;
    let mut times = Vec::new();
    for _ in 0..50 {
        let began = Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        times.push(began.elapsed());
    }
    times.sort_unstable();
    Ok(percentile(&times, 0.5).as_secs_f64() * 1e3)
}

fn settings(
    simulator: &Simulator,
    receiver: &Receiver,
    events: EventsMode,
) -> anyhow::Result<Settings> {
    let mut settings = Settings::default();
    settings.api.base_url = simulator.base_url();
    settings.api.key = Some(Secret::value(simulator.api_key()));
    // The budget is not what is measured.
    settings.api.requests_per_minute = 1_000_000;
    settings.watch.events = events;
    let webhook = WebhookSettings {
        secret: Some(Secret::value("whsec_c29tZSBieXRlcyBmb3IgYSBiZW5jaG1hcms=")),
        ..WebhookSettings::new(Secret::value(receiver.url()))
    };
    let sink = SinkSettings {
        kind: SinkKind::Webhook(Box::new(webhook)),
        events: EventFilter::verdicts(),
        labels: Labels::new(),
        retry_schedule: Vec::new(),
        fallback: None,
        one_per_group: false,
        digest: false,
        quiet: None,
        page: None,
    };
    settings.sinks.insert(SinkName::new("bench")?, sink);
    Ok(settings)
}

async fn measure(args: &Args, events: EventsMode) -> anyhow::Result<Measured> {
    let simulator = Simulator::start().await?;
    let receiver = Receiver::start([]).await?;
    let settings = settings(&simulator, &receiver, events)?;
    let dir = tempfile::tempdir()?;
    let (path, clock) = (dir.path().join("runwatch.db"), Clock::system());
    let engine = Engine::start(&settings, Location::File(&path), clock.clone()).await?;
    let mut random = fastrand::Rng::with_seed(11);
    let (mut ends, mut delays) = (HashMap::new(), Vec::new());
    let mut added = 0;
    while delays.len() < args.runs {
        while added < args.runs && added - delays.len() < args.at_once {
            let run_id = RunRef::new(&format!("run_{added}"))?;
            let length = LENGTHS.start + random.f64() * (LENGTHS.end - LENGTHS.start);
            simulator.add_run(
                &run_id,
                Script::succeeds().runs_for(Duration::from_secs_f64(length)),
            );
            ends.insert(
                run_id.clone(),
                simulator.ends_at(&run_id).context("it ends")?,
            );
            let added_at = clock.now();
            let deadline_at = added_at.checked_add(Duration::from_secs(3600))?;
            let watch = Watch {
                run_id,
                name: None,
                labels: Labels::new(),
                sinks: None,
                added_at,
                deadline_at,
                trace: None,
            };
            engine.watches.add(watch, AddedBy::Request).await?;
            added += 1;
        }
        for received in receiver.wait_beyond(delays.len()).await {
            let event = Event::from_json(std::str::from_utf8(&received.body)?)?;
            ensure!(
                event.event_type.verdict() == Some(Verdict::Succeeded),
                "{} is wrong",
                event.event_type
            );
            let run_id = event.run_id().context("it is about a run")?;
            let ended = ends
                .remove(run_id)
                .with_context(|| format!("{run_id} was reported twice"))?;
            delays.push(received.at.duration_since(ended));
        }
    }
    let text = engine.metrics.to_text(&Scraped::default(), Format::Text);
    let by_stream = text.lines().find_map(|line| {
        line.strip_prefix("runwatch_detection_total{via=\"stream\",provider=\"crewship\"} ")
    });
    let by_stream = by_stream.context("it is counted")?.parse()?;
    let requests = simulator.requests().len() + simulator.stream_requests().len();
    engine.stop(Duration::from_secs(5)).await;
    receiver.shutdown().await;
    simulator.shutdown().await;
    delays.sort_unstable();
    Ok(Measured {
        delays,
        by_stream,
        requests_per_run: requests as f64 / args.runs as f64,
    })
}
