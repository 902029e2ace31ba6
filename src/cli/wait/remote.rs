//! `wait --daemon`: the daemon watches, this follows it.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior, timeout, timeout_at};

use super::report::WaitReport;
use super::session::REDRAW;
use super::tracked::Tracked;
use super::{OutputOptions, StopCondition};
use crate::cli::args::WatchArgs;
use crate::cli::client::{add_all, request};
use crate::cli::failure::CommandFailure;
use crate::cli::phrases::{counted, not_applied, standing_of_known};
use crate::cli::trace::trace_of_process;
use crate::cli::{Signals, USAGE};
use crate::config::{MIN_DEADLINE, format_duration};
use crate::control::{
    Activities, AddRequest, Client, ClientError, PollingResponse, StreamMessage, WatchResponse,
};
use crate::domain::{Event, EventData, RunEvent, RunRef, Status, Verdict};
use crate::scheduler::WatchView;
use crate::store::PollFailure;

/// How long one question waits for a verdict: how old what is shown may be.
const FRESHNESS: Duration = Duration::from_secs(1);

/// Questions to the daemon under way at once.
const QUESTIONS: usize = 64;

/// How long it must have been quiet before a verdict is shown, where what runs are doing is shown too; five
/// times as long at the most.
const QUIET_TIME: Duration = Duration::from_millis(50);

/// The delay before a daemon that is gone is tried again.
const GONE_PAUSE: Duration = Duration::from_secs(1);

/// How long after its deadline a watch has its verdict at the latest, and the time to read it.
const VERDICT_WITHIN: Duration = Duration::from_secs(6);

/// As [`VERDICT_WITHIN`], for a watch whose deadline passed while no daemon ran: the API is tried for a minute then.
const LATE_VERDICT_WITHIN: Duration = Duration::from_secs(70);

/// Hands the runs to the daemon and follows them. Returns the exit code.
pub(super) async fn wait(
    (args, again): (&WatchArgs, bool),
    run_ids: Vec<RunRef>,
    client: Client,
    until: StopCondition,
    options: OutputOptions,
    mut signals: Signals,
) -> anyhow::Result<u8> {
    let screen = options.screen.clone();
    let began = Timestamp::now();
    let deadline = args
        .timeout
        .and_then(|timeout| Instant::now().checked_add(timeout));
    let mut limit = Limit::new(args.timeout, began);
    let added = add_all(&client, args, again, &run_ids).await;
    let (runs, dropped) = match take_added(added, &mut limit, began, &options) {
        Ok(taken) => taken,
        Err(error) => {
            return Ok(options.fail(&CommandFailure::from(&error)));
        }
    };
    let report = WaitReport::new(options, runs, deadline);
    let feed = if report.wants_activity() {
        ActivityFeed::Closed
    } else {
        ActivityFeed::None
    };
    let (unwatched, seen, renewed) = (BTreeSet::new(), BTreeMap::new(), BTreeSet::new());
    let mut follower = Follower {
        report,
        client,
        feed,
        gone: false,
        unwatched,
        seen,
        args,
        limit,
        renewed,
        views: BTreeMap::new(),
        polling: None,
    };
    let code = tokio::select! {
        // All is known, but not all was done as requested.
        code = follower.follow(until) => if code == 0 && dropped { USAGE } else { code },
        code = signals.next() => {
            follower.report.clear();
            if follower.report.options.progress {
                let going = counted(follower.report.going(), "run", "runs");
                screen.line_after_signal(&format!("stopped; the daemon continues to watch {going}"));
            }
            code
        }
    };
    Ok(code)
}

/// The runs of which the daemon will have a new watch: only these belong to the group of this wait. A run that cannot be
/// looked up counts as one of them; adding it says why.
pub(super) async fn without_watch(client: &Client, run_ids: &[RunRef], again: bool) -> Vec<RunRef> {
    let look = |run_id: RunRef| async move {
        let known = client.watch(&run_id, Duration::ZERO).await;
        let stays = known.is_ok_and(|watch| watch.verdict.is_none() || !again);
        (!stays).then_some(run_id)
    };
    stream::iter(run_ids.iter().cloned())
        .map(look)
        .buffered(QUESTIONS)
        .filter_map(std::future::ready)
        .collect()
        .await
}

/// Takes in the watches that the daemon has now. Returns their runs, and whether an option does not apply to one.
fn take_added(
    added: Vec<Result<(WatchResponse, bool), ClientError>>,
    limit: &mut Limit,
    began: Timestamp,
    options: &OutputOptions,
) -> Result<(Vec<Tracked>, bool), ClientError> {
    let (mut runs, mut dropped) = (Vec::new(), false);
    for added in added {
        let (watch, new) = added?;
        // Its own time goes for this wait, whatever the watch has.
        if let Some(what) = not_applied(&watch, "--timeout") {
            options.screen.line(&format!("warning: {what}"));
            dropped = true;
        }
        let ended_before = !new && watch.verdict.is_some() && !limit.outlasts(&watch, began);
        if ended_before && options.progress {
            options.screen.line(&standing_of_known(&watch, began));
        }
        limit.include(&watch);
        runs.push(tracked(watch));
    }
    Ok((runs, dropped))
}

fn tracked(watch: WatchResponse) -> Tracked {
    Tracked::new(watch.run(), watch.name, watch.added_at)
}

/// How long the runs are waited for.
#[derive(Debug, Clone, Copy)]
struct Limit {
    /// Until when by the command line.
    own: Option<Timestamp>,
    /// When the last verdict is there at the latest, by the deadlines of the watches.
    last: Timestamp,
}

impl Limit {
    fn new(timeout: Option<Duration>, began: Timestamp) -> Self {
        let own = timeout.map(|timeout| began.checked_add(timeout).unwrap_or(Timestamp::MAX));
        Self {
            own,
            last: own.unwrap_or(began),
        }
    }

    /// Takes in a watch that is waited for.
    fn include(&mut self, watch: &WatchResponse) {
        let within = match self.own {
            None => LATE_VERDICT_WITHIN,
            // The daemon gives a verdict of its own about then.
            Some(own)
                if watch.deadline_at
                    <= own
                        .checked_add(VERDICT_WITHIN / 2)
                        .unwrap_or(Timestamp::MAX) =>
            {
                VERDICT_WITHIN
            }
            Some(_) => return,
        };
        let from = self.own.unwrap_or(watch.deadline_at);
        self.last = self
            .last
            .max(from.checked_add(within).unwrap_or(Timestamp::MAX));
    }

    /// Whether a watch ended for want of time, and this wait has time left.
    fn outlasts(&self, watch: &WatchResponse, now: Timestamp) -> bool {
        let for_want_of_time = matches!(
            watch.known_verdict(),
            Some(Verdict::TimedOut | Verdict::Unreachable)
        );
        for_want_of_time && self.left(now).is_some()
    }

    /// The time that the command line gives and that is left.
    fn left(&self, now: Timestamp) -> Option<Duration> {
        Duration::try_from(self.own?.duration_since(now))
            .ok()
            .filter(|left| *left >= MIN_DEADLINE)
    }
}

/// The activity of runs, as the daemon reports it.
enum ActivityFeed {
    /// It is not shown, or not available.
    None,
    /// To be opened.
    Closed,
    /// Open.
    Open(Box<Activities>),
}

impl ActivityFeed {
    /// What comes next. Cancel-safe. It never comes where the feed is not open.
    async fn next(&mut self) -> StreamMessage {
        if let Self::Open(activities) = self {
            if let Ok(Some(message)) = activities.next().await {
                return message;
            }
            // The daemon is gone, or stopping; another may come.
            *self = Self::Closed;
        }
        std::future::pending().await
    }
}

struct Follower<'a> {
    args: &'a WatchArgs,
    limit: Limit,
    /// Runs that are watched anew, since their watches ended before the time of this wait.
    renewed: BTreeSet<RunRef>,
    report: WaitReport,
    client: Client,
    feed: ActivityFeed,
    /// The daemon does not answer at the moment.
    gone: bool,
    /// Runs that no verdict can be had of: somebody removed them from the daemon.
    unwatched: BTreeSet<RunRef>,
    /// How many status changes of each run were taken in.
    seen: BTreeMap<RunRef, usize>,
    /// What the daemon knows of the runs that are still going.
    views: BTreeMap<RunRef, WatchView>,
    /// How polls of the API go, for all watches of the daemon; `None` where that is not known.
    polling: Option<PollingResponse>,
}

impl Follower<'_> {
    /// Requests every active run from the daemon again and again, until the stop condition is
    /// met and the result is printed. Cancel-safe: it only reads.
    async fn follow(&mut self, until: StopCondition) -> u8 {
        let last = self.limit.last;
        let over = tokio::select! {
            over = self.follow_runs(until) => over,
            () = until_time(last) => {
                self.give_up();
                true
            }
        };
        self.report.clear();
        self.report.sum_up_group();
        if self.report.options.progress && self.report.options.screen.is_live() {
            self.report.sum_up(None, 0);
        }
        self.report.flush().await;
        match self.report.verdict_code(until) {
            // Not all is known, so not all is well.
            0 if !over => USAGE,
            code => code,
        }
    }

    /// Ends the wait for all runs that have no verdict by now.
    fn give_up(&mut self) {
        let (verdict, why) = match self.gone {
            true => (
                Verdict::Unreachable,
                "the daemon does not answer; it goes on with its watches when it is back",
            ),
            false => (
                Verdict::TimedOut,
                "no verdict in the time of this wait; the daemon goes on watching",
            ),
        };
        let going = self
            .report
            .runs
            .values()
            .filter(|run| run.verdict.is_none());
        let going: Vec<_> = going
            .map(|run| run.run_id.clone())
            .filter(|id| !self.unwatched.contains(id))
            .collect();
        for run_id in going {
            self.report.given_up(&run_id, verdict, why);
        }
    }

    /// Has a run watched anew whose watch ended for want of time, for the time that this wait has left. Returns whether
    /// it is.
    async fn renew(&mut self, watch: &WatchResponse) -> bool {
        let now = Timestamp::now();
        let Some(left) = self
            .limit
            .left(now)
            .filter(|_| self.limit.outlasts(watch, now))
        else {
            return false;
        };
        if !self.renewed.insert(watch.run().clone()) {
            return false;
        }
        let timeout = Some(format_duration(Duration::from_millis(
            left.as_millis().try_into().unwrap_or(u64::MAX),
        )));
        let request = AddRequest {
            timeout,
            ..request(self.args, &watch.run(), true)
        };
        let renewed = self
            .client
            .add(&request, trace_of_process().as_ref())
            .await
            .is_ok();
        if renewed {
            self.seen.remove(&watch.run());
            if self.report.options.progress {
                let verdict = watch.verdict.as_deref().unwrap_or_default();
                let line = format!(
                    "{}: an earlier watch ended as {verdict}; it is watched anew",
                    watch.run()
                );
                self.report.options.screen.line(&line);
            }
        }
        renewed
    }

    /// Returns whether what was waited for is known; else there is nothing left that could be.
    async fn follow_runs(&mut self, until: StopCondition) -> bool {
        let mut redraw = tokio::time::interval(REDRAW);
        redraw.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let going = self.going();
            if going.is_empty() {
                return self.unwatched.is_empty();
            }
            if !self.gone && matches!(self.feed, ActivityFeed::Closed) {
                self.open_feed().await;
            }
            // With more runs than questions each would wait for the ones before it.
            let wait = if going.len() > QUESTIONS {
                Duration::ZERO
            } else {
                FRESHNESS
            };
            let client = self.client.clone();
            let request = going.into_iter().map(|run_id| {
                let client = &client;
                async move {
                    let answer = client.watch(&run_id, wait).await;
                    (run_id, answer)
                }
            });
            let mut answers = stream::iter(request).buffer_unordered(QUESTIONS);
            let live = self.report.is_live();
            let mut polling = pin!(client.polling());
            let mut is_open = self.report.options.progress;
            loop {
                // Every arm is cancel-safe.
                let (run_id, answer) = tokio::select! {
                    answer = answers.next() => match answer {
                        Some(answer) => answer,
                        None => break,
                    },
                    message = self.feed.next() => {
                        self.report.activity(message);
                        continue;
                    }
                    state = &mut polling, if is_open => {
                        is_open = false;
                        self.polling = state.ok().and_then(|list| list.shown().cloned());
                        continue;
                    }
                    _ = redraw.tick(), if live => {
                        self.show();
                        continue;
                    }
                };
                if self.take_answer(run_id, answer, until).await {
                    return true;
                }
            }
            self.show();
            if self.gone || wait.is_zero() {
                let ends = Instant::now() + GONE_PAUSE;
                // What comes next is kept until it is whole.
                while let Ok(message) = timeout_at(ends, self.feed.next()).await {
                    self.report.activity(message);
                }
            }
        }
    }

    /// The runs whose verdicts are waited for.
    fn going(&self) -> Vec<RunRef> {
        let runs = self.report.runs.values();
        runs.filter(|run| run.verdict.is_none() && !self.unwatched.contains(&run.run_id))
            .map(|run| run.run_id.clone())
            .collect()
    }

    /// Handles the daemon's answer about a run. Returns whether what was waited for is known.
    async fn take_answer(
        &mut self,
        run_id: RunRef,
        answer: Result<WatchResponse, ClientError>,
        until: StopCondition,
    ) -> bool {
        match answer {
            Ok(watch) => {
                self.gone = false;
                if self.renew(&watch).await {
                    return false;
                }
                if watch.verdict.is_some() {
                    self.take_in_activity().await;
                }
                match view(&watch).filter(|_| watch.verdict.is_none()) {
                    Some(view) => self.views.insert(run_id, view),
                    None => self.views.remove(&run_id),
                };
                let given = self.take_in(&watch);
                if self.report.is_live() && given.is_some() {
                    self.show();
                }
                if self.report.is_over(until, given) {
                    return true;
                }
                // What follows waits where standard output is not read.
                self.report.room().await;
            }
            Err(error) if error.is_unknown() => {
                let what = format!("{run_id} is no longer watched by the daemon");
                self.fail_run(&run_id, what);
                self.views.remove(&run_id);
                self.unwatched.insert(run_id);
            }
            Err(error) => {
                if !std::mem::replace(&mut self.gone, true) {
                    self.say_gone(&error);
                }
            }
        }
        false
    }

    /// Shows what is known of the runs that are still going.
    fn show(&mut self) {
        let now = Timestamp::now();
        let views: Vec<_> = self.views.values().cloned().collect();
        let about = self
            .report
            .circumstances_of(&views, self.polling.as_ref(), now);
        self.report.show(now, &views, &about);
    }

    /// Takes in the activity of the runs up to now, which comes another way than their verdicts do.
    async fn take_in_activity(&mut self) {
        let ends = Instant::now() + QUIET_TIME * 5;
        while Instant::now() < ends
            && let Ok(message) = timeout(QUIET_TIME, self.feed.next()).await
        {
            self.report.activity(message);
        }
    }

    /// Opens the feed of activity; reports it if it is requested and not available.
    async fn open_feed(&mut self) {
        match self.client.activity().await {
            Ok(activities) => self.feed = ActivityFeed::Open(Box::new(activities)),
            Err(error @ ClientError::Refused(_)) => {
                self.feed = ActivityFeed::None;
                if self.report.options.follow {
                    self.report.options.screen.line(&format!(
                        "warning: the events of runs cannot be shown: {error}"
                    ));
                }
            }
            // The next question finds out what is wrong.
            Err(_gone) => {}
        }
    }

    /// Handles the state of one run. Returns its verdict, if it has one now.
    fn take_in(&mut self, watch: &WatchResponse) -> Option<Verdict> {
        let history = watch.history.as_deref().unwrap_or_default();
        let seen = self
            .seen
            .insert(watch.run().clone(), history.len())
            .unwrap_or(0);
        for change in history.iter().skip(seen) {
            self.report.status(
                &watch.run(),
                &Status::read(change.run_state.as_deref(), &change.status),
                change.at,
            );
        }
        watch.verdict.as_ref()?;
        let Some((verdict, event)) = verdict_event(watch) else {
            let what = format!(
                "{} ended in a way that this program does not know",
                watch.run()
            );
            self.fail_run(&watch.run(), what);
            self.unwatched.insert(watch.run().clone());
            return None;
        };
        if let Some(data) = event.run() {
            self.report.verdict(verdict, &event, data);
        }
        Some(verdict)
    }

    /// Shows why there will be no verdict of a run.
    fn fail_run(&self, run_id: &RunRef, what: String) {
        let failure = CommandFailure::failed(what, USAGE).about("run_id", run_id);
        self.report.options.fail(&failure);
    }

    fn say_gone(&self, error: &ClientError) {
        self.report
            .options
            .screen
            .line(&format!("warning: {error}; waiting for it to come back"));
    }
}

/// Comes back at `at` by the clock on the wall: a sleep of the machine counts.
async fn until_time(at: Timestamp) {
    while let Ok(left) = Duration::try_from(at.duration_since(Timestamp::now()))
        && !left.is_zero()
    {
        tokio::time::sleep(left.min(GONE_PAUSE)).await;
    }
}

/// Returns the event with the verdict of a watch that has one.
fn verdict_event(watch: &WatchResponse) -> Option<(Verdict, Event)> {
    let verdict = watch.known_verdict()?;
    let data: RunEvent = serde_json::from_str(watch.data.as_ref()?.get()).ok()?;
    let timestamp = watch.finished_at?;
    Some((
        verdict,
        Event {
            event_type: verdict.event_type(),
            timestamp,
            data: EventData::Run(Box::new(data)),
        },
    ))
}

fn view(watch: &WatchResponse) -> Option<WatchView> {
    Some(WatchView {
        run_id: watch.run().clone(),
        status: watch
            .status
            .as_deref()
            .map(|text| Status::read(watch.run_state.as_deref(), text)),
        polls: watch.polls,
        missing_since: watch.missing_since,
        expected: watch.expected(),
        polling: watch.polling,
        next_poll_at: watch.next_poll_at?,
        last_error: watch.last_error.as_ref().map(|error| PollFailure {
            at: error.at,
            message: error.message.clone(),
        }),
    })
}
