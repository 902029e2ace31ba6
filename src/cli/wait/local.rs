//! Waits with an engine in this process.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::accounts::without_account;
use super::listed::ListOutcome;
use super::options::{OutputOptions, StopCondition};
use super::report::WaitReport;
use super::runs::{distinct, group_labels, runs_to_watch};
use super::session::Session;
use super::sinks::SinkTroubles;
use super::tracked::Tracked;
use super::view::Circumstances;
use crate::app::Engine;
use crate::cli::Signals;
use crate::cli::args::WaitArgs;
use crate::cli::failure::CommandFailure;
use crate::cli::run_names::RunNames;
use crate::cli::sinks::unknown_sink;
use crate::cli::trace::trace_of_process;
use crate::clock::Clock;
use crate::config::{EventsMode, Settings, check_labels};
use crate::domain::{Labels, Watch};
use crate::scheduler::AddedBy;
use crate::store::Location;

/// Waits for runs and returns the exit code.
///
/// # Errors
/// When the arguments do not fit the configuration, or the engine breaks.
pub async fn wait(
    args: &WaitArgs,
    pages: &RunNames,
    mut settings: Settings,
    options: OutputOptions,
) -> anyhow::Result<u8> {
    let mut signals = Signals::listen()?;
    let run_ids = tokio::select! {
        runs = runs_to_watch(args, pages, settings.watch.connect_grace, &options) => match runs? {
            ListOutcome::Runs(run_ids) => run_ids,
            ListOutcome::End(code) => return Ok(code),
        },
        code = signals.next() => return Ok(code),
    };
    if let Some(code) = without_account(&run_ids, &settings, &options)? {
        return Ok(code);
    }
    for sink in &args.watch.sinks {
        if !settings.sinks.contains_key(sink) {
            return Ok(options.fail(&unknown_sink(sink, &settings)));
        }
    }
    let mut labels: Labels = args.watch.labels.iter().cloned().collect();
    if let Some(group) = &args.group {
        labels.extend(group_labels(group, distinct(&run_ids)));
    }
    if let Err((what, fix)) = check_labels(&labels) {
        let failure = CommandFailure::usage(format!("--label: {what}")).fix(fix);
        return Ok(options.fail(&failure));
    }
    adapt(&mut settings, args, &options, run_ids.len());
    let clock = Clock::system();
    let engine = tokio::select! {
        engine = Engine::start(&settings, Location::Memory, clock.clone()) => engine?,
        code = signals.next() => return Ok(code),
    };
    let deadline = args.watch.timeout.unwrap_or(settings.watch.deadline);
    let trace = trace_of_process();
    let watch = |run_id| {
        let added_at = clock.now();
        Watch {
            run_id,
            name: args.watch.name.clone(),
            labels: labels.clone(),
            sinks: (!args.watch.sinks.is_empty()).then(|| args.watch.sinks.clone()),
            added_at,
            deadline_at: added_at.checked_add(deadline).unwrap_or(Timestamp::MAX),
            trace: trace.clone(),
        }
    };
    let watches = run_ids.into_iter().map(watch).collect();
    let until = StopCondition {
        reached_within: Some(settings.watch.connect_grace),
        ..StopCondition::of(args)
    };
    follow(engine, clock.clone(), watches, until, options, signals).await
}

/// Changes what a wait does otherwise than the daemon.
fn adapt(settings: &mut Settings, args: &WaitArgs, options: &OutputOptions, runs: usize) {
    for sink in settings.sinks.values_mut() {
        // A label alone makes no group here: its other runs may be watched elsewhere, so that no message about it would
        // come.
        sink.one_per_group = args.group.is_some();
        // A wait is over before it could have missed several ends.
        sink.digest = false;
        // It ends before the quiet hours do, and a person waits for it.
        sink.quiet = None;
    }
    if let Some(interval) = args.interval {
        settings.watch.initial_interval = interval;
        settings.watch.max_interval = interval;
        settings.watch.multiplier = 1.0;
        settings.watch.jitter = 0.0;
    }
    if options.follow {
        settings.watch.events = EventsMode::Auto;
        let most = settings.watch.max_streams;
        if options.progress && runs > most {
            options.screen.line(&format!(
                "following {most} of {runs} runs at a time (watch.max_streams)"
            ));
        }
    }
}

/// Adds `watches` to a fresh engine, follows them, stops the engine, and returns the exit code.
async fn follow(
    engine: Engine,
    clock: Clock,
    watches: Vec<Watch>,
    until: StopCondition,
    options: OutputOptions,
    mut signals: Signals,
) -> anyhow::Result<u8> {
    let tracked =
        |watch: &Watch| Tracked::new(watch.run_id.clone(), watch.name.clone(), watch.added_at);
    let left = |watch: &Watch| {
        Duration::try_from(watch.deadline_at.duration_since(clock.now())).unwrap_or_default()
    };
    let deadline = Instant::now().checked_add(watches.iter().map(left).max().unwrap_or_default());
    let report = WaitReport::new(options, watches.iter().map(tracked).collect(), deadline);
    let activities = report.wants_activity().then(|| engine.watches.activities());
    let about = Circumstances {
        grace: Some(engine.not_found_grace),
        ..Circumstances::default()
    };
    let mut session = Session {
        report,
        clock,
        engine,
        until,
        activities,
        connect: BTreeMap::new(),
        about,
        troubles: SinkTroubles::default(),
        status_seq: 0,
        event_seq: 0,
    };
    for watch in watches {
        session.engine.watches.add(watch, AddedBy::Request).await?;
    }
    let end = session.until_done(&mut signals).await?;
    session.finish(end, signals).await
}
