//! `wait --daemon`: the daemon watches, this follows it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use tokio::time::{Instant, timeout, timeout_at};

use super::report::Report;
use super::view::Tracked;
use super::{Manner, Until};
use crate::cli::WatchArgs;
use crate::command::remote::{add_all, failure_code};
use crate::command::{Signals, USAGE};
use crate::control::{Activities, Client, ClientError, Heard, WatchDoc};
use crate::run::{Event, EventData, RunEvent, RunId, Status, Verdict};
use crate::store::PollFailure;
use crate::watch::{UpstreamView, WatchView};

/// How long one question waits for a verdict: how old what is shown may be.
const FRESHNESS: Duration = Duration::from_secs(1);

/// Questions to the daemon under way at once.
const QUESTIONS: usize = 64;

/// How long it must have been quiet before a verdict is shown, where what runs are doing is shown too; five
/// times as long at the most.
const HEAR_OUT: Duration = Duration::from_millis(50);

/// How long a daemon that is gone is left alone before it is asked again.
const GONE_PAUSE: Duration = Duration::from_secs(1);

/// Hands the runs to the daemon and follows them. Returns the exit code.
pub(super) async fn wait(
    args: &WatchArgs,
    run_ids: Vec<RunId>,
    client: Client,
    until: Until,
    manner: Manner,
    mut signals: Signals,
) -> anyhow::Result<u8> {
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
    let deadline = args.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let report = Report::new(manner, runs, deadline);
    let feed = if report.wants_activity() { Feed::Closed } else { Feed::None };
    let (unwatched, seen) = (BTreeSet::new(), BTreeMap::new());
    let mut follower = Follower { report, client, feed, gone: false, unwatched, seen };
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
    Tracked {
        run_id: watch.run_id,
        name: watch.name,
        added_at: watch.added_at,
        status: None,
        activity: None,
        verdict: None,
    }
}

/// What the daemon says of what runs are doing.
enum Feed {
    /// Nobody wants it, or it is not to be had.
    None,
    /// To be opened.
    Closed,
    /// Open.
    Open(Activities),
}

impl Feed {
    /// What comes next. Cancel-safe. It never comes where the feed is not open.
    async fn next(&mut self) -> Heard {
        if let Self::Open(activities) = self {
            if let Ok(Some(heard)) = activities.next().await {
                return heard;
            }
            // The daemon is gone, or stopping; another may come.
            *self = Self::Closed;
        }
        std::future::pending().await
    }
}

struct Follower {
    report: Report,
    client: Client,
    feed: Feed,
    /// The daemon does not answer at the moment.
    gone: bool,
    /// Runs that no verdict can be had of: somebody removed them from the daemon.
    unwatched: BTreeSet<RunId>,
    /// How many status changes of each run were taken in.
    seen: BTreeMap<RunId, usize>,
}

impl Follower {
    /// Asks the daemon about every run that is going, again and again, until what was waited for is
    /// known and printed. Cancel-safe: it only asks.
    async fn follow(&mut self, until: Until) -> u8 {
        let over = self.follow_runs(until).await;
        self.report.clear();
        self.report.flush().await;
        match self.report.verdict_code() {
            // Not all is known, so not all is well.
            0 if !over => USAGE,
            code => code,
        }
    }

    /// Returns whether what was waited for is known; else there is nothing left that could be.
    async fn follow_runs(&mut self, until: Until) -> bool {
        loop {
            let going: Vec<RunId> = self
                .report
                .runs
                .values()
                .filter(|run| run.verdict.is_none() && !self.unwatched.contains(&run.run_id))
                .map(|run| run.run_id.clone())
                .collect();
            if going.is_empty() {
                return self.unwatched.is_empty();
            }
            if !self.gone && matches!(self.feed, Feed::Closed) {
                self.open_feed().await;
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
            let mut views = Vec::new();
            loop {
                // Both arms are cancel-safe.
                let (run_id, answer) = tokio::select! {
                    answer = answers.next() => match answer {
                        Some(answer) => answer,
                        None => break,
                    },
                    heard = self.feed.next() => {
                        self.report.heard(heard);
                        continue;
                    }
                };
                match answer {
                    Ok(watch) => {
                        self.gone = false;
                        if watch.verdict.is_some() {
                            self.hear_out().await;
                        }
                        views.extend(view(&watch));
                        let given = self.take_in(&watch);
                        if self.report.is_over(until, given) {
                            return true;
                        }
                        // What follows waits where standard output is not read.
                        self.report.room().await;
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
                let ends = Instant::now() + GONE_PAUSE;
                // What comes next is kept until it is whole.
                while let Ok(heard) = timeout_at(ends, self.feed.next()).await {
                    self.report.heard(heard);
                }
            }
        }
    }

    /// Takes in what the runs have said so far, which comes another way than their verdicts do.
    async fn hear_out(&mut self) {
        let ends = Instant::now() + HEAR_OUT * 5;
        while Instant::now() < ends
            && let Ok(heard) = timeout(HEAR_OUT, self.feed.next()).await
        {
            self.report.heard(heard);
        }
    }

    /// Opens the feed of what runs are doing; says so where it is asked for and not to be had.
    async fn open_feed(&mut self) {
        match self.client.activity().await {
            Ok(activities) => self.feed = Feed::Open(activities),
            Err(error @ ClientError::Refused(_)) => {
                self.feed = Feed::None;
                if self.report.manner.follow {
                    self.report.manner.screen.line(&format!("warning: the events of runs cannot be shown: {error}"));
                }
            }
            // The next question finds out what is wrong.
            Err(_gone) => {}
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
