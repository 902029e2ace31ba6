//! `runwatch wait`: watches runs here and now, and ends with a code that a script can trust.

mod input;
mod view;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Write};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::time::{Instant, MissedTickBehavior};

use self::view::{Palette, Tracked, change_line, live_lines, upstream_line};
use super::{KEY_REFUSED, Signals, USAGE};
use crate::app::Engine;
use crate::cli::WaitArgs;
use crate::clock::Clock;
use crate::config::Settings;
use crate::notify::summary;
use crate::run::{Event, EventData, Labels, RunEvent, RunId, Verdict, Watch};
use crate::store::{DeliveryState, DeliverySummary, Place};
use crate::telemetry::{LiveArea, Screen};
use crate::text::span;
use crate::watch::{Trouble, UpstreamView};

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Results {
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
pub struct Manner {
    /// Where progress goes.
    pub screen: Screen,
    /// Whether progress is shown.
    pub progress: bool,
    /// Whether it is coloured.
    pub coloured: bool,
    /// How results are printed.
    pub results: Results,
}

/// How long messages that are being sent when the command ends are given, first attempts among them.
const GRACE: Duration = Duration::from_secs(10);

/// The same once they have had it, and were reported as not delivered.
const AFTER_LINGER: Duration = Duration::from_millis(500);

/// How often live lines are drawn anew.
const REDRAW: Duration = Duration::from_millis(250);

/// How the wait came to its end.
enum End {
    /// By what was waited for.
    Verdicts,
    /// The API refused the key at the first answer.
    Refused(String),
    /// By a signal, whose exit code this is.
    Signal(u8),
}

/// Waits for runs and returns the exit code.
///
/// # Errors
/// When the arguments do not fit the configuration, or the engine breaks.
pub async fn wait(args: &WaitArgs, mut settings: Settings, manner: Manner) -> anyhow::Result<u8> {
    let run_ids = input::run_ids(&args.runs, io::stdin().lock())?;
    if settings.api.key.is_none() {
        manner.screen.line(
            "error: no API key: set CREWSHIP_API_KEY, or api.key_file in the configuration (keys are made in the Crewship console under Settings, API Keys)",
        );
        return Ok(KEY_REFUSED);
    }
    for sink in &args.sinks {
        if !settings.sinks.contains_key(sink) {
            let known: Vec<_> = settings.sinks.keys().map(|name| name.as_str()).collect();
            let known = if known.is_empty() { "none is configured".to_owned() } else { known.join(", ") };
            manner.screen.line(&format!("error: no sink is called {sink}; known sinks: {known}"));
            return Ok(USAGE);
        }
    }
    if let Some(interval) = args.interval {
        settings.watch.initial_interval = interval;
        settings.watch.max_interval = interval;
        settings.watch.multiplier = 1.0;
        settings.watch.jitter = 0.0;
    }
    let clock = Clock::system();
    let engine = Engine::start(&settings, Place::Memory, clock.clone()).await?;
    let deadline = args.timeout.unwrap_or(settings.watch.deadline);
    let labels: Labels = args.labels.iter().cloned().collect();
    let watch = |run_id| {
        let added_at = clock.now();
        Watch {
            run_id,
            name: args.name.clone(),
            labels: labels.clone(),
            sinks: (!args.sinks.is_empty()).then(|| args.sinks.clone()),
            added_at,
            deadline_at: added_at.checked_add(deadline).unwrap_or(Timestamp::MAX),
        }
    };
    let watches = run_ids.into_iter().map(watch).collect();
    let until = Until { first: args.any, first_bad: args.fail_fast, linger: args.linger };
    follow(engine, clock.clone(), watches, until, manner).await
}

/// When a wait is over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Until {
    /// At the first verdict.
    pub(super) first: bool,
    /// At the first verdict that is not `succeeded`.
    pub(super) first_bad: bool,
    /// How long after that undelivered messages are tried again.
    pub(super) linger: Duration,
}

/// Adds `watches` to a fresh engine, follows them, stops the engine, and returns the exit code.
pub(super) async fn follow(
    engine: Engine,
    clock: Clock,
    watches: Vec<Watch>,
    until: Until,
    manner: Manner,
) -> anyhow::Result<u8> {
    let mut signals = Signals::listen()?;
    let tracked = |watch: &Watch| Tracked {
        run_id: watch.run_id.clone(),
        name: watch.name.clone(),
        added_at: watch.added_at,
        status: None,
        verdict: None,
    };
    let mut session = Session {
        manner,
        clock,
        engine,
        until,
        order: watches.iter().map(|watch| watch.run_id.clone()).collect(),
        runs: watches.iter().map(|watch| (watch.run_id.clone(), tracked(watch))).collect(),
        status_seq: 0,
        event_seq: 0,
        shown_upstream: UpstreamView::default(),
        zone: TimeZone::system(),
        unwritable: None,
    };
    for watch in watches {
        session.engine.watches.add(watch).await?;
    }
    let end = session.until_done(&mut signals).await?;
    session.finish(end, signals).await
}

struct Session {
    manner: Manner,
    clock: Clock,
    engine: Engine,
    until: Until,
    order: Vec<RunId>,
    runs: BTreeMap<RunId, Tracked>,
    status_seq: i64,
    event_seq: i64,
    shown_upstream: UpstreamView,
    zone: TimeZone,
    /// Why standard output cannot be written, once it could not.
    unwritable: Option<io::Error>,
}

impl Session {
    /// Follows the runs until what was asked for is known.
    async fn until_done(&mut self, signals: &mut Signals) -> anyhow::Result<End> {
        let mut history = self.engine.store.history_changed();
        let mut upstream = self.engine.watches.upstream();
        let mut area = if self.manner.progress { self.manner.screen.live_area() } else { None };
        let mut redraw = tokio::time::interval(REDRAW);
        redraw.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Marked as seen before the store is read, so that no change in between is missed.
            history.mark_unchanged();
            let state = upstream.borrow_and_update().clone();
            if let Some(verdict) = self.catch_up().await? {
                let first_bad = self.until.first_bad && verdict != Verdict::Succeeded;
                if self.until.first || first_bad {
                    return Ok(End::Verdicts);
                }
            }
            if self.runs.values().all(|run| run.verdict.is_some()) {
                return Ok(End::Verdicts);
            }
            if state.trouble == Some(Trouble::Refused) && !state.ever_answered {
                return Ok(End::Refused(state.message));
            }
            self.show(&state, area.as_mut()).await;
            // Every arm is cancel-safe: they wait for changes, ticks and signals, and lose none.
            tokio::select! {
                Ok(()) = history.changed() => {}
                Ok(()) = upstream.changed() => {}
                _ = redraw.tick(), if area.is_some() => {}
                code = signals.next() => return Ok(End::Signal(code)),
                error = self.engine.broken() => return Err(error),
            }
        }
    }

    /// Takes in what was stored since the last time. Returns the verdict that ends the wait soonest:
    /// the first that is not `succeeded`, or else the first.
    async fn catch_up(&mut self) -> anyhow::Result<Option<Verdict>> {
        for change in self.engine.store.status_changes_after(self.status_seq).await? {
            self.status_seq = change.seq;
            let Some(run) = self.runs.get_mut(&change.run_id) else { continue };
            run.status = Some(change.status.clone());
            if self.manner.progress && !self.manner.screen.is_live() {
                let line =
                    change_line(self.palette(), change.at, &self.zone, &self.runs[&change.run_id], &change.status);
                self.manner.screen.line(&line);
            }
        }
        let mut given = None;
        for (seq, event) in self.engine.store.events_after(self.event_seq).await? {
            self.event_seq = seq;
            let (Some(verdict), EventData::Run(data)) = (event.event_type.verdict(), &event.data) else { continue };
            let Some(run) = self.runs.get_mut(&data.run.id) else { continue };
            run.verdict = Some(verdict);
            self.print_result(verdict, &event, data);
            given = given.filter(|earlier| *earlier != Verdict::Succeeded).or(Some(verdict));
        }
        Ok(given)
    }

    fn palette(&self) -> Palette {
        Palette { coloured: self.manner.coloured }
    }

    async fn show(&mut self, state: &UpstreamView, area: Option<&mut LiveArea>) {
        let now = self.clock.now();
        if let Some(area) = area {
            let views = self.engine.watches.view().await;
            let runs: Vec<_> = self.order.iter().map(|id| self.runs[id].clone()).collect();
            // Room is left for the prompt and for the line about the API.
            let most = self.manner.screen.rows().saturating_sub(3).max(1);
            area.show(&live_lines(self.palette(), now, &runs, &views, state, most));
        } else if self.manner.progress && *state != self.shown_upstream {
            let line = match (upstream_line(self.palette(), now, state), self.shown_upstream.trouble) {
                (None, Some(_)) => Some("the API answers again".to_owned()),
                (line, _) => line,
            };
            if let Some(line) = line {
                self.manner.screen.line(&line);
            }
        }
        self.shown_upstream.clone_from(state);
    }

    /// Prints what is known now of one run.
    fn print_result(&mut self, verdict: Verdict, event: &Event, data: &RunEvent) {
        let human = self.result_line(verdict, event);
        let quiet = !self.manner.progress;
        match self.manner.results {
            Results::Text => {
                self.print(&human);
                if self.manner.screen.is_live() && !io::stdout().is_terminal() && !quiet {
                    self.manner.screen.line(&human);
                }
            }
            Results::Json => {
                let line = serde_json::json!({ "run_id": data.run.id, "verdict": verdict.as_str() });
                let mut line = line.to_string();
                // The data goes in as text: a JSON value would change the run's own numbers.
                let json = serde_json::to_string(data).expect("an event has only text keys");
                line.truncate(line.len() - 1);
                self.print(&format!("{line},\"data\":{json}}}"));
                if !io::stdout().is_terminal() && !quiet {
                    self.manner.screen.line(&human);
                }
            }
            Results::Output => {
                if let (Verdict::Succeeded, Some(output)) = (verdict, &data.run.output) {
                    self.print(output.get());
                }
                if !quiet {
                    self.manner.screen.line(&human);
                }
            }
            Results::Nothing => {}
        }
    }

    fn result_line(&self, verdict: Verdict, event: &Event) -> String {
        let summary = summary::of(event);
        let mut line = summary.title.replacen(verdict.as_str(), &self.palette().status(verdict.as_str()), 1);
        for detail in &summary.lines {
            line.push_str("\n  ");
            line.push_str(detail);
        }
        line
    }

    /// Prints to standard output. One that cannot be written is remembered, not fatal: the messages to
    /// others matter all the same.
    fn print(&mut self, text: &str) {
        let written = self.manner.screen.aside(|| {
            let mut stdout = io::stdout().lock();
            writeln!(stdout, "{text}").and_then(|()| stdout.flush())
        });
        if let Err(error) = written
            && self.unwritable.is_none()
        {
            self.manner.screen.line(&format!("cannot write to standard output: {error}"));
            self.unwritable = Some(error);
        }
    }

    /// Gives undelivered messages their time, stops the engine, and says with which code to exit.
    async fn finish(mut self, end: End, mut signals: Signals) -> anyhow::Result<u8> {
        let (code, grace) = match end {
            End::Verdicts => match self.linger(&mut signals).await? {
                None => (self.verdict_code(), AFTER_LINGER),
                Some(signal) => (signal, GRACE),
            },
            End::Refused(message) => {
                self.manner.screen.line(&format!("error: the API refused the key: {message}"));
                (KEY_REFUSED, GRACE)
            }
            End::Signal(code) => {
                let going = self.runs.values().filter(|run| run.verdict.is_none()).count();
                if self.manner.progress {
                    self.manner.screen.line(&format!("interrupted; {going} still going, and left alone"));
                }
                (code, GRACE)
            }
        };
        let screen = self.manner.screen.clone();
        tokio::select! {
            () = self.engine.stop(grace) => Ok(code),
            second = signals.next() => {
                screen.line("ended at once; messages under way may not have arrived");
                Ok(second)
            }
        }
    }

    fn verdict_code(&self) -> u8 {
        let worst = Verdict::worst(self.runs.values().filter_map(|run| run.verdict));
        let code = worst.map_or(0, Verdict::exit_code);
        match &self.unwritable {
            // A reader that has seen enough closes the pipe; anything else lost a result.
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe && code == 0 => USAGE,
            _ => code,
        }
    }

    /// Waits until every message is delivered or given up, as long as the next attempt is due within
    /// `linger`, and a little longer for attempts under way. Says what was not delivered. Returns the
    /// code of a signal that ended it early.
    async fn linger(&mut self, signals: &mut Signals) -> anyhow::Result<Option<u8>> {
        let linger = self.until.linger;
        let ends_at = self.clock.now().checked_add(linger).unwrap_or(Timestamp::MAX);
        let ends = Instant::now() + linger;
        let cut_off = ends + GRACE;
        let mut changed = self.engine.store.deliveries_changed();
        let mut announced = false;
        loop {
            changed.mark_unchanged();
            let deliveries = self.engine.store.deliveries().await?;
            let open: Vec<_> = deliveries.iter().filter(|delivery| is_open(delivery)).collect();
            let now = Instant::now();
            let waited_for = |delivery: &&&DeliverySummary| {
                let under_way = delivery.state == DeliveryState::Sending || delivery.attempts == 0;
                let due = delivery.next_attempt_at.is_none_or(|at| at <= ends_at);
                (under_way && now < cut_off) || (due && now < ends)
            };
            if !open.iter().any(|delivery| waited_for(&delivery)) {
                self.report_undelivered(&deliveries);
                return Ok(None);
            }
            let retrying = open.iter().any(|delivery| delivery.last_detail.is_some());
            if retrying && self.manner.progress && !std::mem::replace(&mut announced, true) {
                self.manner.screen.line(&format!("{} still to be delivered; trying again", messages(open.len())));
            }
            // Every arm is cancel-safe, as above.
            tokio::select! {
                Ok(()) = changed.changed() => {}
                () = tokio::time::sleep_until(if now < ends { ends } else { cut_off }) => {}
                code = signals.next() => return Ok(Some(code)),
                error = self.engine.broken() => return Err(error),
            }
        }
    }

    fn report_undelivered(&self, deliveries: &[DeliverySummary]) {
        let now = self.clock.now();
        let undelivered: Vec<_> =
            deliveries.iter().filter(|delivery| delivery.state != DeliveryState::Delivered).collect();
        for delivery in &undelivered {
            let about = delivery.run_id.as_ref().map(|id| format!(" of {id}")).unwrap_or_default();
            let why = delivery.last_detail.as_ref().map(|detail| format!(": {detail}")).unwrap_or_default();
            let next = match (delivery.state, delivery.next_attempt_at) {
                (DeliveryState::Sending, _) => " (the last one was cut off)".to_owned(),
                (DeliveryState::Pending, Some(at)) => {
                    format!(" (the next attempt would be in {})", span(at.duration_since(now).unsigned_abs()))
                }
                _ => String::new(),
            };
            self.manner.screen.line(&format!(
                "warning: {}{about} was not delivered to {} after {}{why}{next}",
                delivery.event_type,
                delivery.sink,
                if delivery.attempts == 1 { "1 attempt".to_owned() } else { format!("{} attempts", delivery.attempts) },
            ));
        }
        if undelivered.iter().any(|delivery| is_open(delivery)) {
            self.manner.screen.line("these messages end with this command; a longer --linger gives them more time");
        }
    }
}

fn is_open(delivery: &DeliverySummary) -> bool {
    matches!(delivery.state, DeliveryState::Pending | DeliveryState::Sending)
}

fn messages(count: usize) -> String {
    if count == 1 { "1 message".to_owned() } else { format!("{count} messages") }
}
