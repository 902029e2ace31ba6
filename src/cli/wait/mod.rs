//! `runwatch wait`: watches runs here and now, and ends with a code that a script can trust.

mod connect;
mod listed;
mod remote;
mod report;
mod sentences;
mod sinks;
mod tracked;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::time::{Instant, MissedTickBehavior};

use self::connect::{ConnectGrace, wrong_path};
use self::listed::{Listed, Wanted};
use self::report::WaitReport;
use self::sentences::reason;
use self::sinks::SinkTroubles;
use self::tracked::Tracked;
use self::view::Circumstances;
use super::client::warn_of_problems;
use super::failure::CommandFailure;
use super::run_ids::read_run_ids;
use super::run_names::RunNames;
use super::sinks::unknown_sink;
use super::{INTERRUPTED, KEY_REFUSED, Signals};
use crate::app::Engine;
use crate::cli::args::WaitArgs;
use crate::cli::phrases::{cause, counted};
use crate::clock::Clock;
use crate::config::{EventsMode, ProviderSettings, Settings, check_labels};
use crate::control::{ActivityResponse, Client, StreamMessage};
use crate::domain::{DeliveryId, Labels, ProviderName, RunRef, SinkName, Watch};
use crate::logging::Screen;
use crate::scheduler::{AddedBy, BreakerView, Breakers, Outage, RunActivity, Usage};
use crate::store::{DeliveryFilter, DeliveryState, DeliverySummary, Location};
use crate::style::{Mark, Style};
use crate::text::humanize;

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

/// How long messages that are being sent when the command ends are given, first attempts among them.
const GRACE: Duration = Duration::from_secs(10);

/// The states of a delivery that is not done with.
const OPEN: [DeliveryState; 2] = [DeliveryState::Pending, DeliveryState::Sending];

/// Events read at a time: their runs may have large outputs.
const EVENTS_AT_ONCE: u32 = 64;

/// No limit: the store of one command holds what its arguments name.
const ALL: u32 = u32::MAX;

/// How long they are given where `--linger` has passed.
const AFTER_LINGER: Duration = Duration::from_millis(500);

/// How often live lines are drawn anew.
const REDRAW: Duration = Duration::from_millis(200);

/// How the wait came to its end.
enum End {
    /// By what was waited for.
    Verdicts,
    /// The API of a provider refused the key at the first answer.
    Refused(ProviderName, String),
    /// By a signal, whose exit code this is.
    Signal(u8),
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
            Listed::Runs(run_ids) => run_ids,
            Listed::End(code) => return Ok(code),
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
    let labels: Labels = args.watch.labels.iter().cloned().collect();
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
    let clock = Clock::system();
    let engine = tokio::select! {
        engine = Engine::start(&settings, Location::Memory, clock.clone()) => engine?,
        code = signals.next() => return Ok(code),
    };
    let deadline = args.watch.timeout.unwrap_or(settings.watch.deadline);
    let watch = |run_id| {
        let added_at = clock.now();
        Watch {
            run_id,
            name: args.watch.name.clone(),
            labels: labels.clone(),
            sinks: (!args.watch.sinks.is_empty()).then(|| args.watch.sinks.clone()),
            added_at,
            deadline_at: added_at.checked_add(deadline).unwrap_or(Timestamp::MAX),
        }
    };
    let watches = run_ids.into_iter().map(watch).collect();
    let until = StopCondition {
        reached_within: Some(settings.watch.connect_grace),
        ..StopCondition::of(args)
    };
    follow(engine, clock.clone(), watches, until, options, signals).await
}

/// Finds the runs: those that are named, or those that a list shows.
async fn runs_to_watch(
    args: &WaitArgs,
    pages: &RunNames,
    connect_grace: Duration,
    options: &OutputOptions,
) -> anyhow::Result<Listed> {
    let (wanted, provider) = match (&args.latest, &args.all_active) {
        (Some(provider), _) => (Wanted::Latest, provider),
        (None, Some(provider)) => (Wanted::AllActive, provider),
        (None, None) => return read_run_ids(&args.runs, pages).await.map(Listed::Runs),
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
            Listed::Runs(run_ids) => run_ids,
            Listed::End(code) => return Ok(code),
        },
        code = signals.next() => return Ok(code),
    };
    warn_of_problems(pages.problems().as_ref(), &options.screen);
    remote::wait(
        (&args.watch, args.again),
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

struct Session {
    report: WaitReport,
    clock: Clock,
    engine: Engine,
    until: StopCondition,
    /// What the runs are doing, where somebody wants to see it.
    activities: Option<broadcast::Receiver<Arc<RunActivity>>>,
    /// The time left to reach the API, until it was reached.
    connect: BTreeMap<ProviderName, ConnectGrace>,
    about: Circumstances,
    troubles: SinkTroubles,
    status_seq: i64,
    event_seq: i64,
}

impl Session {
    /// Follows the runs until the stop condition holds.
    async fn until_done(&mut self, signals: &mut Signals) -> anyhow::Result<End> {
        let mut history = self.engine.store.history_changed();
        let mut deliveries = self.engine.store.deliveries_changed();
        let mut breakers = self.engine.watches.breakers();
        let mut redraw = tokio::time::interval(REDRAW);
        redraw.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut troubles_at = None;
        if let Some(within) = self.until.reached_within {
            let grace = || ConnectGrace::new(within, Instant::now(), self.clock.now());
            let providers = self.report.runs.keys().map(RunRef::provider_name);
            self.connect = providers.map(|provider| (provider, grace())).collect();
        }
        loop {
            // Marked as seen before the store is read, so that no change in between is missed.
            history.mark_unchanged();
            let states = breakers.borrow_and_update().clone();
            if self.catch_up().await? {
                return Ok(End::Verdicts);
            }
            let refused = |(_, state): &(&ProviderName, &BreakerView)| {
                state.outage == Some(Outage::Refused) && !state.ever_answered
            };
            if let Some((provider, state)) = states.iter().find(refused) {
                self.about.host = self.host(provider);
                return Ok(End::Refused(provider.clone(), state.message.clone()));
            }
            // The first provider that is given up: the others may be reached all the while.
            let mut gives_up_at = None;
            for (provider, state) in &states {
                let of_it = self.look_at_connection(provider, state).await?;
                gives_up_at = gives_up_at.into_iter().chain(of_it).min();
            }
            self.about.gives_up_at = gives_up_at;
            if troubles_at.is_some_and(|at| at <= Instant::now()) {
                troubles_at = None;
                self.show_troubles().await?;
            }
            self.show(&states).await;
            let live = self.report.is_live();
            let wakes_at = self.connect.values().map(ConnectGrace::looks_at).min();
            let wakes_at = [wakes_at, self.report.wakes_at(), troubles_at];
            let wakes_at = wakes_at.into_iter().flatten().min();
            let unread = !self.report.has_room();
            loop {
                // Every arm is cancel-safe: they wait for changes, ticks, events and signals, and lose none.
                tokio::select! {
                    Ok(()) = history.changed() => break,
                    Ok(()) = breakers.changed() => break,
                    Ok(()) = deliveries.changed(), if troubles_at.is_none() => {
                        troubles_at = Some(Instant::now() + sinks::LOOK);
                        break;
                    }
                    _ = redraw.tick(), if live => break,
                    () = until(wakes_at), if wakes_at.is_some() => break,
                    // There may be results that wait for the reader of standard output.
                    () = self.report.room(), if unread => break,
                    code = signals.next() => return Ok(End::Signal(code)),
                    error = self.engine.broken() => return Err(error),
                    message = hear(&mut self.activities) => self.report.activity(message),
                }
            }
        }
    }

    /// Ends the watches of a provider when its API was not reached in time. Returns when that will be, as long as the
    /// API is not reached.
    async fn look_at_connection(
        &mut self,
        provider: &ProviderName,
        state: &BreakerView,
    ) -> anyhow::Result<Option<Timestamp>> {
        let wrong_path = self.wrong_path(provider, state);
        let host = self.host(provider);
        let host = host.as_deref().unwrap_or("the API");
        let Some(connect) = self.connect.get_mut(provider) else {
            return Ok(None);
        };
        let now = self.clock.now();
        if state.reached && wrong_path.is_none() {
            // A run that is missing shows only that something answers, and not that it is the API.
            let seen =
                |run: &Tracked| run.run_id.provider() == provider.as_str() && run.status.is_some();
            if self.report.runs.values().any(seen) || state.ever_answered {
                self.connect.remove(provider);
            }
            return Ok(None);
        }
        let left = connect.look(Instant::now(), now);
        if !left.is_zero() {
            return Ok(now.checked_add(left).ok());
        }
        self.connect.remove(provider);
        let within = humanize(self.until.reached_within.unwrap_or_default());
        let key = if provider.is_crewship() {
            "api.base_url".to_owned()
        } else {
            format!("providers.{provider}.base_url")
        };
        let why = match wrong_path {
            Some(fix) => fix,
            None if state.message.is_empty() => {
                format!("{host} was not reached within {within}: no answer")
            }
            None => format!(
                "{host} was not reached within {within}: {}; check {key}, the network and the proxy variables",
                reason(&state.message)
            ),
        };
        self.engine.watches.give_up(provider, why).await?;
        Ok(None)
    }

    /// What is wrong with the address of the API, if all runs are missing and its path is the likely cause.
    fn wrong_path(&self, provider: &ProviderName, state: &BreakerView) -> Option<String> {
        let seen = |run: &Tracked| run.status.is_some() || run.verdict.is_some();
        if !provider.is_crewship() || !state.ever_answered || self.report.runs.values().any(seen) {
            return None;
        }
        let host = self.host(provider);
        let base_url = self.engine.watches.base_url(provider)?;
        wrong_path(&base_url, host.as_deref().unwrap_or("the API"))
    }

    /// The host of a provider.
    fn host(&self, provider: &ProviderName) -> Option<String> {
        host_of(&self.engine.watches.base_url(provider)?)
    }

    /// The provider that is shown: the first one with an outage, or else the one with the most runs.
    fn shown_provider(&self, states: &Breakers) -> ProviderName {
        let mut runs: BTreeMap<ProviderName, usize> = BTreeMap::new();
        for run in self
            .report
            .runs
            .values()
            .filter(|run| run.verdict.is_none())
        {
            *runs.entry(run.run_id.provider_name()).or_default() += 1;
        }
        let has_outage = |provider: &&ProviderName| {
            states
                .get(*provider)
                .is_some_and(|state| state.outage.is_some())
        };
        let most = runs.iter().max_by_key(|(_, count)| **count);
        runs.keys()
            .find(has_outage)
            .or(most.map(|(provider, _)| provider))
            .or(self.about.provider.as_ref())
            .cloned()
            .unwrap_or_else(ProviderName::crewship)
    }

    /// Shows how things are.
    async fn show(&mut self, states: &Breakers) {
        let provider = self.shown_provider(states);
        let state = states.get(&provider).cloned().unwrap_or_default();
        self.about.wrong_path = self.wrong_path(&provider, &state);
        self.about.host = self.host(&provider);
        self.about.breaker = state;
        self.about.provider = Some(provider);
        let views = if self.report.wants_views() {
            self.about.usage = self.usage().await;
            self.engine.watches.view(None).await.unwrap_or_default()
        } else {
            Vec::new()
        };
        self.report.show(self.clock.now(), &views, &self.about);
    }

    /// Shows which sinks have trouble.
    async fn show_troubles(&mut self) -> anyhow::Result<()> {
        if !self.report.options.progress {
            return Ok(());
        }
        let undelivered = DeliveryFilter {
            states: OPEN.into_iter().chain([DeliveryState::Dead]).collect(),
            ..DeliveryFilter::default()
        };
        let undelivered = self.engine.store.deliveries(undelivered, ALL).await?.items;
        let mark = self.report.style().mark(Mark::Warning);
        let lines = self
            .troubles
            .look(&undelivered, self.clock.now(), Instant::now());
        for line in lines {
            self.report.say(&format!("{mark} {line}"));
        }
        Ok(())
    }

    /// Takes in what was stored since the last time, up to the verdict that ends the wait. Returns whether
    /// that was there: the code is that of the verdicts up to it, however many came together.
    async fn catch_up(&mut self) -> anyhow::Result<bool> {
        loop {
            // Read before the changes of status: what is stored in between has its change shown before its verdict.
            let events = self
                .engine
                .store
                .events_after(self.event_seq, EVENTS_AT_ONCE)
                .await?;
            for change in self
                .engine
                .store
                .status_changes_after(self.status_seq)
                .await?
            {
                self.status_seq = change.seq;
                self.report
                    .status(&change.run_id, &change.status, change.at);
            }
            if events.is_empty() {
                break;
            }
            for (seq, event) in events {
                if !self.report.has_room() {
                    return Ok(false);
                }
                self.event_seq = seq;
                let (Some(verdict), Some(data)) = (event.event_type.verdict(), event.run()) else {
                    continue;
                };
                self.hear_out();
                self.report.verdict(verdict, &event, data);
                if self.report.is_over(self.until, Some(verdict)) {
                    return Ok(true);
                }
            }
        }
        Ok(self.report.is_over(self.until, None))
    }

    /// Takes in what the runs have said so far: a stream tells its followers before its run is asked for, so
    /// all of it belongs before the verdict.
    fn hear_out(&mut self) {
        let Some(activities) = &mut self.activities else {
            return;
        };
        for _ in 0..activities.len() {
            match activities.try_recv() {
                Ok(activities) => self
                    .report
                    .activity(StreamMessage::Activity(ActivityResponse::of(&activities))),
                Err(TryRecvError::Lagged(missed)) => {
                    self.report.activity(StreamMessage::Missed(missed))
                }
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    /// Gives undelivered messages their time, stops the engine, and says with which code to exit.
    async fn finish(mut self, end: End, mut signals: Signals) -> anyhow::Result<u8> {
        self.report.clear();
        let (code, grace) = match end {
            End::Verdicts => match self.linger(&mut signals).await? {
                None => (None, AFTER_LINGER),
                Some(signal) => (Some(signal), GRACE),
            },
            End::Refused(provider, message) => {
                let host = self.about.host.as_deref().unwrap_or("the API");
                let keys = if provider.is_crewship() {
                    "CREWSHIP_API_KEY or api.key_file".to_owned()
                } else {
                    format!(
                        "providers.{provider}.key_file, or the variable that `runwatch providers` names"
                    )
                };
                let what = format!("{host} refused the key: {message}");
                let failure = CommandFailure::unauthorized(what).fix(format!("check {keys}"));
                self.report.options.fail(&failure);
                (Some(KEY_REFUSED), GRACE)
            }
            End::Signal(code) => (Some(code), GRACE),
        };
        if let Some(code) = code.filter(|code| *code >= INTERRUPTED) {
            self.announce_stop(code).await?;
        }
        let screen = self.report.options.screen.clone();
        let settled = async {
            self.engine.settle(grace).await;
            self.report_undelivered().await?;
            if code.is_none() {
                self.sum_up().await?;
                self.report.flush().await;
            }
            anyhow::Ok(())
        };
        let reported = tokio::select! {
            reported = settled => reported,
            second = signals.next() => {
                screen.line_after_signal("ended at once; notifications in flight may not have arrived");
                return Ok(second);
            }
        };
        self.engine.close().await;
        reported.map(|()| code.unwrap_or_else(|| self.report.verdict_code(self.until)))
    }

    /// Says what happens now that a signal came.
    async fn announce_stop(&self, code: u8) -> anyhow::Result<()> {
        if !self.report.options.progress {
            return Ok(());
        }
        let in_flight = DeliveryFilter {
            states: vec![DeliveryState::Sending],
            ..DeliveryFilter::default()
        };
        let in_flight = self
            .engine
            .store
            .deliveries(in_flight, ALL)
            .await?
            .items
            .len();
        let again = if code == INTERRUPTED {
            "Ctrl-C again"
        } else {
            "a second signal"
        };
        let what = match (in_flight, self.report.going()) {
            (0, 0) => "stopped".to_owned(),
            (0, going) => format!("stopped; {} and not affected", still_going(going)),
            (in_flight, _) => format!(
                "stopping: {} in flight, up to {} s; {again} ends at once",
                counted(in_flight, "notification", "notifications"),
                GRACE.as_secs()
            ),
        };
        self.report.options.screen.line_after_signal(&what);
        Ok(())
    }

    /// Sums the wait up on a terminal, with what did not fit into its rows.
    async fn sum_up(&mut self) -> anyhow::Result<()> {
        let options = &self.report.options;
        if !options.progress || !options.screen.is_live() {
            return Ok(());
        }
        let delivered = DeliveryFilter {
            states: vec![DeliveryState::Delivered],
            ..DeliveryFilter::default()
        };
        let delivered = self
            .engine
            .store
            .deliveries(delivered, ALL)
            .await?
            .items
            .len();
        // Its task ends before this: it is the last number that was shown.
        let requests = self.about.usage.map(|usage| usage.total);
        self.report.sum_up(requests, delivered);
        Ok(())
    }

    /// Waits until every message is delivered or given up, as long as the next attempt is due within `linger`. Every
    /// first attempt is made, however many stand before it, and has [`GRACE`] from its beginning; an attempt that is
    /// under way when `linger` has passed has as long from then. Returns the code of a signal that ended it early.
    async fn linger(&mut self, signals: &mut Signals) -> anyhow::Result<Option<u8>> {
        let linger = self.until.linger;
        let ends_at = self
            .clock
            .now()
            .checked_add(linger)
            .unwrap_or(Timestamp::MAX);
        let ends = Instant::now() + linger;
        let mut changed = self.engine.store.deliveries_changed();
        let mut cut_offs: BTreeMap<DeliveryId, Instant> = BTreeMap::new();
        self.about.usage = self.usage().await;
        loop {
            changed.mark_unchanged();
            let open = DeliveryFilter {
                states: OPEN.to_vec(),
                ..DeliveryFilter::default()
            };
            let open = self.engine.store.deliveries(open, ALL).await?.items;
            let now = Instant::now();
            let mut look_again = None;
            let mut is_waited_for = false;
            for delivery in &open {
                let first = delivery.attempts <= 1;
                let until = match delivery.state {
                    // Each sink ends its attempts itself, so that each one has its turn.
                    _ if delivery.attempts == 0 => None,
                    DeliveryState::Sending if first => {
                        let cut_off = *cut_offs.entry(delivery.id.clone()).or_insert(now + GRACE);
                        Some(cut_off.max(ends))
                    }
                    DeliveryState::Sending => Some(ends + GRACE),
                    _ if delivery.next_attempt_at.is_none_or(|at| at <= ends_at) => Some(ends),
                    _ => Some(now),
                };
                is_waited_for |= until.is_none_or(|until| now < until);
                look_again = until
                    .filter(|until| now < *until)
                    .into_iter()
                    .chain(look_again)
                    .min();
            }
            if !is_waited_for {
                return Ok(None);
            }
            self.show_troubles().await?;
            let look_again = async {
                match look_again {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            // Every arm is cancel-safe, as above.
            tokio::select! {
                Ok(()) = changed.changed() => {}
                () = look_again => {}
                code = signals.next() => return Ok(Some(code)),
                error = self.engine.broken() => return Err(error),
            }
        }
    }

    /// How many requests the shown provider was sent.
    async fn usage(&self) -> Option<Usage> {
        let mut usage = self.engine.watches.usage().await.ok()?;
        usage.remove(self.about.provider.as_ref()?)
    }

    /// Reports which notifications did not arrive, and why.
    async fn report_undelivered(&self) -> anyhow::Result<()> {
        let now = self.clock.now();
        let states = OPEN.into_iter().chain([DeliveryState::Dead]).collect();
        let undelivered = DeliveryFilter {
            states,
            ..DeliveryFilter::default()
        };
        let undelivered = self.engine.store.deliveries(undelivered, ALL).await?.items;
        let mut by_sink: BTreeMap<&SinkName, Vec<&DeliverySummary>> = BTreeMap::new();
        for delivery in &undelivered {
            by_sink.entry(&delivery.sink).or_default().push(delivery);
        }
        for (sink, deliveries) in by_sink {
            for delivery in deliveries.iter().take(SHOWN_PER_SINK) {
                let line = undelivered_line(delivery, now);
                self.report.options.screen.line(&line);
            }
            let more = deliveries.len().saturating_sub(SHOWN_PER_SINK);
            if more > 0 {
                self.report.options.screen.line(&format!(
                    "warning: {} more {} not delivered to {sink}",
                    counted(more, "notification", "notifications"),
                    if more == 1 { "was" } else { "were" }
                ));
            }
        }
        if undelivered
            .iter()
            .any(|delivery| OPEN.contains(&delivery.state))
        {
            self.report.options.screen.line(
                "these notifications end with this command; a longer --linger gives them more time",
            );
        }
        Ok(())
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Returns the next activity of the runs; waits without end if it is not shown. Cancel-safe.
async fn hear(activities: &mut Option<broadcast::Receiver<Arc<RunActivity>>>) -> StreamMessage {
    let Some(receiver) = activities else {
        return std::future::pending().await;
    };
    match receiver.recv().await {
        Ok(activities) => StreamMessage::Activity(ActivityResponse::of(&activities)),
        Err(RecvError::Lagged(missed)) => StreamMessage::Missed(missed),
        // The scheduler has ended, which others report.
        Err(RecvError::Closed) => std::future::pending().await,
    }
}

/// Most notifications that are named for one sink when they were not delivered.
const SHOWN_PER_SINK: usize = 5;

/// The line about a notification that was not delivered.
fn undelivered_line(delivery: &DeliverySummary, now: Timestamp) -> String {
    let about = delivery
        .run_id
        .as_ref()
        .map(|id| format!(" of {id}"))
        .unwrap_or_default();
    let why = delivery
        .last_detail
        .as_ref()
        .map(|detail| format!(": {}", cause(detail)))
        .unwrap_or_default();
    let next = match (delivery.state, delivery.next_attempt_at) {
        (DeliveryState::Sending, _) => " (the last one was cut off)".to_owned(),
        (DeliveryState::Pending, Some(at)) => format!(
            " (the next attempt would be in {})",
            humanize(at.duration_since(now).unsigned_abs())
        ),
        _ => String::new(),
    };
    format!(
        "warning: {}{about} was not delivered to {} after {}{why}{next}",
        delivery.event_type,
        delivery.sink,
        counted(
            usize::try_from(delivery.attempts).unwrap_or(usize::MAX),
            "attempt",
            "attempts"
        ),
    )
}

/// The host of a URL, with its port where that is given.
fn host_of(url: &str) -> Option<String> {
    let url = reqwest::Url::parse(url).ok()?;
    let host = url.host_str()?;
    Some(match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
}

fn still_going(count: usize) -> String {
    let verb = if count == 1 { "is" } else { "are" };
    format!("{} {verb} still going", counted(count, "run", "runs"))
}
