//! `runwatch wait`: watches runs here and now, and ends with a code that a script can trust.

mod connect;
mod listed;
mod remote;
mod report;
mod sentences;
mod session;
mod sinks;
mod tracked;
mod undelivered;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use self::listed::{ListOutcome, Wanted};
use self::report::WaitReport;
use self::session::Session;
use self::sinks::SinkTroubles;
use self::tracked::Tracked;
use self::view::Circumstances;
use super::Signals;
use super::client::warn_of_problems;
use super::failure::CommandFailure;
use super::run_ids::read_run_ids;
use super::run_names::RunNames;
use super::sinks::unknown_sink;
use super::trace::trace_of_process;
use crate::app::Engine;
use crate::cli::args::WaitArgs;
use crate::clock::Clock;
use crate::config::{EventsMode, ProviderSettings, Settings, check_labels};
use crate::control::Client;
use crate::domain::{GROUP_LABEL, GROUP_SIZE_LABEL, Labels, RunRef, Watch};
use crate::scheduler::AddedBy;
use crate::screen::Screen;
use crate::store::Location;
use crate::style::Style;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResultFormat {
    /// A readable line per run.
    Text,
    /// A JSON object per run.
    Json,
    /// The output of each run that succeeded, and nothing else.
    Output,
    /// Nothing.
    Nothing,
}

/// How `wait` talks to people.
#[derive(Debug, Clone)]
pub struct OutputOptions {
    /// Where progress goes.
    pub screen: Screen,
    /// Whether progress is shown.
    pub progress: bool,
    /// How it looks.
    pub style: Style,
    /// How results look.
    pub result_style: Style,
    /// How results are printed.
    pub results: ResultFormat,
    /// Whether the events of runs are shown as they come.
    pub follow: bool,
    /// Whether each change of state is a line of JSON.
    pub changes: bool,
    /// The group of the runs, about which there is one line at the end.
    pub group: Option<String>,
}

impl OutputOptions {
    /// Shows why the command ends and returns the exit code for that.
    fn fail(&self, failure: &CommandFailure) -> u8 {
        let json = self.results == ResultFormat::Json;
        let columns = self.screen.error_columns();
        self.screen.whole_line(&failure.text(json, columns));
        failure.exit_code()
    }
}

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
    // A label alone makes no group here: its other runs may be watched elsewhere, so that no message about it would come.
    for sink in settings.sinks.values_mut() {
        sink.one_per_group = args.group.is_some();
        // A wait is over before it could have missed several ends.
        sink.digest = false;
    }
    if let Err((what, fix)) = check_labels(&labels) {
        let failure = CommandFailure::usage(format!("--label: {what}")).fix(fix);
        return Ok(options.fail(&failure));
    }
    if let Some(interval) = args.interval {
        settings.watch.initial_interval = interval;
        settings.watch.max_interval = interval;
        settings.watch.multiplier = 1.0;
        settings.watch.jitter = 0.0;
    }
    if options.follow {
        settings.watch.events = EventsMode::Auto;
        let (runs, most) = (run_ids.len(), settings.watch.max_streams);
        if options.progress && runs > most {
            options.screen.line(&format!(
                "following {most} of {runs} runs at a time (watch.max_streams)"
            ));
        }
    }
    // It ends before the quiet hours do, and a person waits for it.
    for sink in settings.sinks.values_mut() {
        sink.quiet = None;
    }
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

/// The labels of the watches of a group of so many.
fn group_labels(group: &str, size: usize) -> [(String, String); 2] {
    [
        (GROUP_LABEL.to_owned(), group.to_owned()),
        (GROUP_SIZE_LABEL.to_owned(), size.to_string()),
    ]
}

/// How many runs there are, each counted once.
fn distinct<'a>(run_ids: impl IntoIterator<Item = &'a RunRef>) -> usize {
    run_ids.into_iter().collect::<BTreeSet<_>>().len()
}

/// Finds the runs: those that are named, or those that a list shows.
async fn runs_to_watch(
    args: &WaitArgs,
    pages: &RunNames,
    connect_grace: Duration,
    options: &OutputOptions,
) -> anyhow::Result<ListOutcome> {
    let (wanted, provider) = match (&args.latest, &args.all_active) {
        (Some(provider), _) => (Wanted::Latest, provider),
        (None, Some(provider)) => (Wanted::AllActive, provider),
        (None, None) => return read_run_ids(&args.runs, pages).await.map(ListOutcome::Runs),
    };
    let list = (wanted, provider);
    listed::find(list, &args.runs, pages.providers()?, connect_grace, options).await
}

/// Says why runs cannot be polled for want of an account or its key; returns the exit code for that.
fn without_account(
    run_ids: &[RunRef],
    settings: &Settings,
    options: &OutputOptions,
) -> anyhow::Result<Option<u8>> {
    let providers: BTreeSet<_> = run_ids.iter().map(RunRef::provider_name).collect();
    for provider in providers {
        let account = settings.providers.get(&provider);
        let account = account.map_err(|why| anyhow::anyhow!(why))?;
        if let Some(failure) = no_key(&account) {
            return Ok(Some(options.fail(&failure)));
        }
    }
    Ok(None)
}

/// Why an account cannot be used for want of a key.
fn no_key(account: &ProviderSettings) -> Option<CommandFailure> {
    if account.has_credentials() {
        return None;
    }
    let (how, provider) = (account.how_to_give_a_key(), &account.name);
    let fix = if provider.is_crewship() {
        format!("set {how} (keys are made in the Crewship console under Settings, API Keys)")
    } else {
        format!("set {how}")
    };
    let what = format!("no API key for {provider}");
    Some(CommandFailure::unauthorized(what).fix(fix))
}

/// Has the daemon watch the runs, follows it, and returns the exit code. When this ends, the watches
/// stay there.
///
/// # Errors
/// When the arguments cannot be used.
pub async fn wait_on_daemon(
    args: &WaitArgs,
    pages: &RunNames,
    client: Client,
    options: OutputOptions,
) -> anyhow::Result<u8> {
    // The configuration of the daemon is its own.
    let connect_grace = Settings::default().watch.connect_grace;
    let mut signals = Signals::listen()?;
    let run_ids = tokio::select! {
        runs = runs_to_watch(args, pages, connect_grace, &options) => match runs? {
            ListOutcome::Runs(run_ids) => run_ids,
            ListOutcome::End(code) => return Ok(code),
        },
        code = signals.next() => return Ok(code),
    };
    warn_of_problems(pages.problems().as_ref(), &options.screen);
    let mut watch_args = args.watch.clone();
    if let Some(group) = &args.group {
        let new = remote::without_watch(&client, &run_ids, args.again).await;
        let size = distinct(&new).max(1);
        watch_args.labels.extend(group_labels(group, size));
    }
    remote::wait(
        (&watch_args, args.again),
        run_ids,
        client,
        StopCondition::of(args),
        options,
        signals,
    )
    .await
}

/// When a wait is over.
#[derive(Debug, Clone, Copy)]
pub(super) struct StopCondition {
    /// At the first verdict.
    pub(super) first: bool,
    /// At the first verdict that is not `succeeded`.
    pub(super) first_bad: bool,
    /// When a run waits for a person.
    pub(super) waiting: bool,
    /// How long after that undelivered messages are tried again.
    pub(super) linger: Duration,
    /// How long an API is tried that was never reached; `None` means until the deadline.
    pub(super) reached_within: Option<Duration>,
}

impl StopCondition {
    fn of(args: &WaitArgs) -> Self {
        Self {
            first: args.any,
            first_bad: args.fail_fast,
            waiting: args.exit_on_waiting,
            linger: args.linger,
            reached_within: None,
        }
    }
}

/// Adds `watches` to a fresh engine, follows them, stops the engine, and returns the exit code.
pub(super) async fn follow(
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
