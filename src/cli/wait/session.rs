//! One `wait`: follows the runs until the stop condition holds, and sums up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::time::{Instant, MissedTickBehavior};

use super::StopCondition;
use super::connect::{ConnectGrace, wrong_path};
use super::report::WaitReport;
use super::sentences::reason;
use super::sinks::{LOOK, SinkTroubles};
use super::tracked::Tracked;
use super::undelivered::AFTER_LINGER;
use super::view::Circumstances;
use crate::app::Engine;
use crate::cli::failure::CommandFailure;
use crate::cli::phrases::counted;
use crate::cli::{INTERRUPTED, KEY_REFUSED, Signals};
use crate::clock::Clock;
use crate::control::{ActivityResponse, StreamMessage};
use crate::domain::{ProviderName, RunRef};
use crate::scheduler::{BreakerView, Breakers, Outage, RunActivity, Usage};
use crate::store::{DeliveryFilter, DeliveryState};
use crate::style::Sign;
use crate::text::humanize;

/// How long messages that are being sent when the command ends are given, first attempts among them.
pub(super) const GRACE: Duration = Duration::from_secs(10);

/// The states of a delivery that is not done with.
pub(super) const OPEN: [DeliveryState; 2] = [DeliveryState::Pending, DeliveryState::Sending];

/// Events read at a time: their runs may have large outputs.
const EVENTS_AT_ONCE: u32 = 64;

/// No limit: the store of one command holds what its arguments name.
pub(super) const ALL: u32 = u32::MAX;

/// How often live lines are drawn anew.
pub(super) const REDRAW: Duration = Duration::from_millis(200);

/// How the wait came to its end.
pub(super) enum SessionEnd {
    /// By what was waited for.
    Verdicts,
    /// The API of a provider refused the key at the first answer.
    Refused(ProviderName, String),
    /// By a signal, whose exit code this is.
    Signal(u8),
}

pub(super) struct Session {
    pub(super) report: WaitReport,
    pub(super) clock: Clock,
    pub(super) engine: Engine,
    pub(super) until: StopCondition,
    /// What the runs are doing, where somebody wants to see it.
    pub(super) activities: Option<broadcast::Receiver<Arc<RunActivity>>>,
    /// The time left to reach the API, until it was reached.
    pub(super) connect: BTreeMap<ProviderName, ConnectGrace>,
    pub(super) about: Circumstances,
    pub(super) troubles: SinkTroubles,
    pub(super) status_seq: i64,
    pub(super) event_seq: i64,
}

impl Session {
    /// Follows the runs until the stop condition holds.
    pub(super) async fn until_done(&mut self, signals: &mut Signals) -> anyhow::Result<SessionEnd> {
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
                return Ok(SessionEnd::Verdicts);
            }
            let refused = |(_, state): &(&ProviderName, &BreakerView)| {
                state.outage == Some(Outage::Refused) && !state.ever_answered
            };
            if let Some((provider, state)) = states.iter().find(refused) {
                self.about.host = self.host(provider);
                return Ok(SessionEnd::Refused(provider.clone(), state.message.clone()));
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
                        troubles_at = Some(Instant::now() + LOOK);
                        break;
                    }
                    _ = redraw.tick(), if live => break,
                    () = until(wakes_at), if wakes_at.is_some() => break,
                    // There may be results that wait for the reader of standard output.
                    () = self.report.room(), if unread => break,
                    code = signals.next() => return Ok(SessionEnd::Signal(code)),
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
    pub(super) fn wrong_path(
        &self,
        provider: &ProviderName,
        state: &BreakerView,
    ) -> Option<String> {
        let seen = |run: &Tracked| run.status.is_some() || run.verdict.is_some();
        if !provider.is_crewship() || !state.ever_answered || self.report.runs.values().any(seen) {
            return None;
        }
        let host = self.host(provider);
        let base_url = self.engine.watches.base_url(provider)?;
        wrong_path(&base_url, host.as_deref().unwrap_or("the API"))
    }

    /// The host of a provider.
    pub(super) fn host(&self, provider: &ProviderName) -> Option<String> {
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
    pub(super) async fn show(&mut self, states: &Breakers) {
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
    pub(super) async fn show_troubles(&mut self) -> anyhow::Result<()> {
        if !self.report.options.progress {
            return Ok(());
        }
        let undelivered = DeliveryFilter {
            states: OPEN.into_iter().chain([DeliveryState::Dead]).collect(),
            ..DeliveryFilter::default()
        };
        let undelivered = self.engine.store.deliveries(undelivered, ALL).await?.items;
        let mark = self.report.style().mark(Sign::Warning);
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
                self.take_in_activity();
                self.report.verdict(verdict, &event, data);
                if self.report.is_over(self.until, Some(verdict)) {
                    return Ok(true);
                }
            }
        }
        Ok(self.report.is_over(self.until, None))
    }

    /// Takes in the activity of the runs up to now: a stream passes it on before its run is polled, so that all of it
    /// belongs before the verdict.
    pub(super) fn take_in_activity(&mut self) {
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
    pub(super) async fn finish(
        mut self,
        end: SessionEnd,
        mut signals: Signals,
    ) -> anyhow::Result<u8> {
        self.report.clear();
        let (code, grace) = match end {
            SessionEnd::Verdicts => match self.linger(&mut signals).await? {
                None => (None, AFTER_LINGER),
                Some(signal) => (Some(signal), GRACE),
            },
            SessionEnd::Refused(provider, message) => {
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
            SessionEnd::Signal(code) => (Some(code), GRACE),
        };
        if let Some(code) = code.filter(|code| *code >= INTERRUPTED) {
            self.announce_stop(code).await?;
        }
        let screen = self.report.options.screen.clone();
        let settled = async {
            self.engine.settle(grace).await;
            self.report_undelivered().await?;
            if code.is_none() {
                self.report.sum_up_group();
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
    pub(super) async fn sum_up(&mut self) -> anyhow::Result<()> {
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

    /// How many requests the shown provider was sent.
    pub(super) async fn usage(&self) -> Option<Usage> {
        let mut usage = self.engine.watches.usage().await.ok()?;
        usage.remove(self.about.provider.as_ref()?)
    }
}

pub(super) async fn until(at: Option<Instant>) {
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
