//! `wait --daemon`: the daemon watches, this follows it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;

use super::report::Report;
use super::view::Tracked;
use super::{Manner, Until};
use crate::cli::WatchArgs;
use crate::command::remote::{add_all, failure_code};
use crate::command::{Signals, USAGE};
use crate::control::{Client, ClientError, WatchDoc};
use crate::run::{Event, EventData, RunEvent, RunId, Status, Verdict};
use crate::store::PollFailure;
use crate::watch::{UpstreamView, WatchView};

/// How long one question waits for a verdict: how old what is shown may be.
const FRESHNESS: Duration = Duration::from_secs(1);

/// Questions to the daemon under way at once.
const QUESTIONS: usize = 64;

/// How long a daemon that is gone is left alone before it is asked again.
const GONE_PAUSE: Duration = Duration::from_secs(1);

/// Hands the runs to the daemon and follows them. Returns the exit code.
pub(super) async fn wait(
    args: &WatchArgs,
    run_ids: Vec<RunId>,
    client: Client,
    until: Until,
    manner: Manner,
) -> anyhow::Result<u8> {
    let mut signals = Signals::listen()?;
    let screen = manner.screen.clone();
    let mut runs = Vec::new();
    for added in add_all(&client, args, &run_ids).await {
        match added {
            Ok((watch, _)) => runs.push(tracked(watch)),
            Err(error) => {
                screen.line(&format!("error: {error}"));
                return Ok(failure_code(&error));
            }
        }
    }
    let report = Report::new(manner, runs);
    let mut follower = Follower { report, client, gone: false, unwatched: BTreeSet::new(), seen: BTreeMap::new() };
    let code = tokio::select! {
        code = follower.follow(until) => code,
        code = signals.next() => {
            follower.report.clear();
            if follower.report.manner.progress {
                screen.line(&format!("interrupted; the daemon goes on with {}", follower.report.going()));
            }
            code
        }
    };
    Ok(code)
}

fn tracked(watch: WatchDoc) -> Tracked {
    Tracked { run_id: watch.run_id, name: watch.name, added_at: watch.added_at, status: None, verdict: None }
}

struct Follower {
    report: Report,
    client: Client,
    /// The daemon does not answer at the moment.
    gone: bool,
    /// Runs that no verdict can be had of: somebody removed them from the daemon.
    unwatched: BTreeSet<RunId>,
    /// How many status changes of each run were taken in.
    seen: BTreeMap<RunId, usize>,
}

impl Follower {
    /// Asks the daemon about every run that is going, again and again, until what was waited for is
    /// known. Cancel-safe: it only asks.
    async fn follow(&mut self, until: Until) -> u8 {
        loop {
            let going: Vec<RunId> = self
                .report
                .runs
                .values()
                .filter(|run| run.verdict.is_none() && !self.unwatched.contains(&run.run_id))
                .map(|run| run.run_id.clone())
                .collect();
            if going.is_empty() {
                self.report.clear();
                return if self.unwatched.is_empty() { self.report.verdict_code() } else { USAGE };
            }
            // With more runs than questions each would wait for the ones before it.
            let wait = if going.len() > QUESTIONS { Duration::ZERO } else { FRESHNESS };
            let client = self.client.clone();
            let asked = going.into_iter().map(|run_id| {
                let client = &client;
                async move {
                    let answer = client.watch(&run_id, wait).await;
                    (run_id, answer)
                }
            });
            let mut answers = stream::iter(asked).buffer_unordered(QUESTIONS);
            let (mut given, mut views) = (Vec::new(), Vec::new());
            while let Some((run_id, answer)) = answers.next().await {
                match answer {
                    Ok(watch) => {
                        self.gone = false;
                        views.extend(view(&watch));
                        given.extend(self.take_in(&watch));
                        if self.report.is_over(until, &given) {
                            self.report.clear();
                            return self.report.verdict_code();
                        }
                    }
                    Err(error) if error.is_unknown() => {
                        self.report.manner.screen.line(&format!("error: {run_id} is no longer watched by the daemon"));
                        self.unwatched.insert(run_id);
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut self.gone, true) {
                            self.say_gone(&error);
                        }
                    }
                }
            }
            self.report.show(Timestamp::now(), &views, &UpstreamView::default());
            if self.gone || wait.is_zero() {
                tokio::time::sleep(GONE_PAUSE).await;
            }
        }
    }

    /// Takes in what the daemon says of one run. Returns its verdict, if it has one now.
    fn take_in(&mut self, watch: &WatchDoc) -> Option<Verdict> {
        let history = watch.history.as_deref().unwrap_or_default();
        let seen = self.seen.insert(watch.run_id.clone(), history.len()).unwrap_or(0);
        for change in history.iter().skip(seen) {
            self.report.status(&watch.run_id, &Status::from_api(&change.status), change.at);
        }
        watch.verdict.as_ref()?;
        let Some((verdict, event)) = verdict_event(watch) else {
            self.report
                .manner
                .screen
                .line(&format!("error: {} ended in a way that this program does not know", watch.run_id));
            self.unwatched.insert(watch.run_id.clone());
            return None;
        };
        if let Some(data) = event.run() {
            self.report.verdict(verdict, &event, data);
        }
        Some(verdict)
    }

    fn say_gone(&self, error: &ClientError) {
        self.report.manner.screen.line(&format!("warning: {error}; waiting for it to come back"));
    }
}

/// The event that told the verdict of a watch that has one.
fn verdict_event(watch: &WatchDoc) -> Option<(Verdict, Event)> {
    let verdict = watch.known_verdict()?;
    let data: RunEvent = serde_json::from_str(watch.data.as_ref()?.get()).ok()?;
    let timestamp = watch.finished_at?;
    Some((verdict, Event { event_type: verdict.event_type(), timestamp, data: EventData::Run(Box::new(data)) }))
}

fn view(watch: &WatchDoc) -> Option<WatchView> {
    Some(WatchView {
        run_id: watch.run_id.clone(),
        status: watch.status.as_deref().map(Status::from_api),
        polls: watch.polls,
        missing_since: watch.missing_since,
        polling: watch.polling,
        next_poll_at: watch.next_poll_at?,
        last_error: watch.last_error.as_ref().map(|error| PollFailure { at: error.at, message: error.message.clone() }),
    })
}
