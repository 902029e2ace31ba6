//! The scheduler decides when each watched run is polled, and what follows from each observation.
//!
//! One task owns all watches. Each watch has a time at which it is due; the earliest due is polled
//! first, so that a small budget is shared fairly. A poll is a short task of its own. Its outcome
//! comes back to the owner, which takes the step ([`Progress::step`]) and stores it before it
//! counts. A step that the store rejects is not taken: the run is polled again, and the step is
//! taken then. Only the end of a run is kept in memory until the store accepts it, because the
//! provider may not report it again. A watch ends at most five seconds after its deadline, whatever
//! it waits for (see `deadline`).
//!
//! ```text
//! commands ──► owner ──► poll (≤ max_in_flight) ──► step ──► store ──► owner
//!                ▲  due times, budget, circuit breaker                   │
//!                ├───────────────────────────────────────────────────────┘
//!                └── wake-ups ◄── event streams (≤ max_streams)
//! ```

mod breaker;
mod budget;
mod catch_up;
mod deadline;
mod follow;
mod group;
mod handle;
#[cfg(feature = "bench-hooks")]
#[doc(hidden)]
pub mod hot;
mod lists;
mod persist;
mod poll;
mod provider_state;
mod registry;
mod streams;
mod watches;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::breaker::{BreakerView, Outage};
pub use self::budget::Usage;
use self::catch_up::CatchUp;
pub use self::group::{Account, Accounts, Breakers, SchedulerGroup, Schedulers, outage_texts};
pub use self::handle::{AddedBy, Removed, SchedulerHandle, WatchView};
use self::handle::{COMMANDS, SchedulerCommand};
use self::lists::PageDone;
use self::persist::{PendingWrites, Persisted};
use self::poll::Polled;
use self::provider_state::ProviderState;
use self::registry::{Key, Phase, Registry, WatchEntry};
pub use self::streams::RunActivity;
pub use self::watches::Watches;
use crate::backoff::BackoffPolicy;
use crate::catch_ups::CatchUps;
use crate::clock::{Clock, ClockReading, Jump, Now};
use crate::domain::{Event, Limits, PastDurations, Progress, ProviderName, Routes, RunRef, Watch};
use crate::failpoint::mutant;
use crate::metrics::Metrics;
use crate::providers::{AnyProvider, Provider};
use crate::store::{Added, Store, StoreError, StoredWatch, WatchId};

/// The rules that the scheduler keeps.
#[derive(Debug, Clone)]
pub struct Policy {
    /// How the interval of a watch grows.
    pub backoff: BackoffPolicy,
    /// Most requests in any 60 seconds, for all watches together.
    pub requests_per_minute: u32,
    /// Most polls under way at once, 1 or more.
    pub max_in_flight: usize,
    /// Most event streams open at once; 0 is none.
    pub max_streams: usize,
    /// The grace periods and limits that decide about verdicts.
    pub limits: Limits,
    /// Which sinks get which events.
    pub routes: Arc<Routes>,
}

/// How often the clocks are compared while there is a watch: how soon after a suspend runs are
/// polled.
const CLOCK_CHECK: Duration = Duration::from_secs(1);

/// How often the clocks are compared while there is no watch: deliveries may wait for their next
/// attempts, whose times move with the wall clock.
const IDLE_CLOCK_CHECK: Duration = Duration::from_secs(60);

/// The time between the first polls of watches that are loaded together. It is shorter where the
/// last of them would wait longer than the longest interval.
const SPREAD: Duration = Duration::from_millis(20);

/// Wall-clock times are whole milliseconds: a timer for one of them is set this much later, so that
/// the time has come when the timer fires.
const ROUNDING: Duration = Duration::from_millis(1);

/// The owner of all watches. [`Scheduler::run`] is its task.
pub struct Scheduler {
    provider: ProviderState,
    store: Store,
    clock: Clock,
    policy: Policy,
    random: fastrand::Rng,
    registry: Registry,
    /// How long runs took that ended.
    past: PastDurations,
    /// The last poll sent was the last poll of a watch.
    last_polls_turn_is_over: bool,
    /// When the scheduler last had a turn.
    turned_at: Instant,
    /// Until when failed last polls are repeated, since nothing could be polled for a while.
    waking_until: Instant,
    /// The reason why all watches end now, when they do.
    given_up: Option<String>,
    /// A time before every due time: a watch that is due then is polled first.
    earliest: Instant,
    polls: JoinSet<Polled>,
    pages: JoinSet<PageDone>,
    stores: JoinSet<Persisted>,
    /// How many watches are being stored, and those of them that were removed in the meantime.
    adding: usize,
    removed: HashSet<WatchId>,
    commands: mpsc::Receiver<SchedulerCommand>,
    reading: ClockReading,
    metrics: Metrics,
    /// Unknown status texts that were warned about, up to [`persist::MAX_WARNED`].
    warned: HashSet<String>,
    /// How far the wall clock was set since the start.
    stepped: SignedDuration,
    pending: PendingWrites,
    catch_up: CatchUp,
}

impl Scheduler {
    /// Returns a scheduler without watches; [`Scheduler::resume`] loads those of the store. `seed`
    /// decides the jitter.
    pub fn new(
        provider: impl Provider,
        store: Store,
        clock: Clock,
        policy: Policy,
        metrics: Metrics,
        seed: u64,
    ) -> (Self, SchedulerHandle) {
        let name = ProviderName::crewship();
        let client = AnyProvider::new(provider);
        Self::new_of(name, client, store, clock, policy, metrics, seed)
    }

    /// As [`Scheduler::new`], for the provider `name`.
    pub(super) fn new_of(
        name: ProviderName,
        client: AnyProvider,
        store: Store,
        clock: Clock,
        policy: Policy,
        metrics: Metrics,
        seed: u64,
    ) -> (Self, SchedulerHandle) {
        let (sender, commands) = mpsc::channel(COMMANDS);
        let (now, reading) = (Instant::now(), clock.read());
        let (provider, breaker) = ProviderState::new(
            name,
            client,
            policy.requests_per_minute,
            policy.max_streams,
            now,
        );
        let activities = provider.streams.activities();
        let scheduler = Self {
            provider,
            store,
            clock,
            random: fastrand::Rng::with_seed(seed),
            registry: Registry::new(now),
            past: PastDurations::default(),
            last_polls_turn_is_over: false,
            turned_at: now,
            waking_until: now,
            given_up: None,
            earliest: now,
            policy,
            polls: JoinSet::new(),
            pages: JoinSet::new(),
            stores: JoinSet::new(),
            adding: 0,
            removed: HashSet::new(),
            commands,
            reading,
            metrics,
            warned: HashSet::new(),
            stepped: SignedDuration::ZERO,
            pending: PendingWrites::default(),
            catch_up: CatchUp::default(),
        };
        (
            scheduler,
            SchedulerHandle {
                commands: sender,
                breaker,
                activities,
            },
        )
    }

    /// Loads unfinished watches of the store, the oldest first, before the scheduler runs. They are
    /// polled one after the other, so that all `of` of them are polled within the longest interval.
    pub fn resume(&mut self, stored: Vec<StoredWatch>, of: u64) {
        let now = Instant::now();
        let many = u32::try_from(of.max(1)).unwrap_or(u32::MAX);
        let gap = SPREAD.min(self.policy.backoff.max / many);
        for stored in stored {
            let before = u32::try_from(self.registry.ever()).unwrap_or(u32::MAX);
            let waited = Duration::try_from(self.reading.wall.duration_since(stored.changed_at));
            let waited = waited.unwrap_or_default();
            let entry = self.entry(
                (stored.id, stored.watch),
                stored.progress,
                waited,
                now,
                now + gap * before,
            );
            let key = self.registry.load(entry);
            self.enroll_in_list(key, now);
        }
        self.begin_catch_up(now);
    }

    /// Assumes that a previous process used its whole burst just now: its requests count.
    pub fn charge_previous_process(&mut self) {
        self.provider.budget.use_up(Instant::now());
    }

    /// Continues the incident that a previous process reported with the event `incident`, the newest
    /// about the API: it is not reported again, and its end will be.
    pub fn remember(&mut self, incident: &Event) {
        self.provider.breaker.remember(incident);
    }

    /// Sends no request for this long, as the provider requested from another daemon.
    pub(super) fn pause(&mut self, pause: Duration) {
        self.provider.breaker.pause(pause, Instant::now());
    }

    /// Knows how long runs of the provider took, from the store. Called before the scheduler runs.
    pub(super) fn look_back(&mut self, past: PastDurations) {
        self.past = past;
    }

    /// Sends the activity of runs to the receivers of `activities`, too.
    fn share_activities(&mut self, activities: broadcast::Sender<Arc<RunActivity>>) {
        self.provider.streams.share_activities(activities);
    }

    /// Counts its rounds of polls after a start or a sleep among those of other schedulers. Called before any watch is
    /// loaded.
    pub fn share_catch_ups(&mut self, rounds: CatchUps) {
        self.catch_up.rounds = rounds;
    }

    /// Runs until `stop` is cancelled. It then drops the polls under way and waits for the writes.
    pub async fn run(mut self, stop: CancellationToken) {
        self.registry.put_in_order();
        let now = Instant::now();
        self.turned_at = now;
        if self
            .registry
            .next_deadline()
            .is_some_and(|deadline| deadline <= now + ROUNDING)
        {
            // The deadline of a loaded watch passed while no process ran, or during the start.
            self.be_patient(now);
        }
        loop {
            let now = self.look_at_clock();
            let is_open = self.may_request(now);
            if is_open {
                self.expire(now);
                self.dispatch(now);
                self.open_streams(now);
            }
            self.publish(now);
            let wake_at = match is_open {
                true => self.wake_at(now),
                false => self.wake_while_closed(now),
            };
            // Every arm is cancel-safe: receiving, joining a set and sleeping lose nothing when
            // they are dropped.
            tokio::select! {
                () = stop.cancelled() => break,
                Some(polled) = self.polls.join_next() => {
                    if let Some(polled) = finished(polled) {
                        self.polled(polled);
                    }
                }
                Some(done) = self.pages.join_next() => {
                    if let Some(done) = finished(done) {
                        self.page_done(done);
                    }
                }
                Some(done) = self.stores.join_next() => {
                    if let Some(done) = finished(done) {
                        self.stored(done);
                    }
                }
                Some(command) = self.commands.recv() => self.command(command),
                news = self.provider.streams.news() => self.stream_event(news),
                () = self.provider.client.opened(), if !is_open => {}
                () = tokio::time::sleep_until(wake_at) => {}
            }
        }
        self.polls.abort_all();
        self.pages.abort_all();
        self.commands.close();
        while let Some(done) = self.stores.join_next().await {
            if let Some(done) = finished(done) {
                self.stored(done);
            }
        }
    }

    fn command(&mut self, command: SchedulerCommand) {
        match command {
            SchedulerCommand::Add {
                watch,
                origin,
                reply,
            } => self.add(watch, origin, reply),
            SchedulerCommand::Remove {
                run_id,
                force,
                reply,
            } => {
                let store = self.store.clone();
                self.store_in_order(async move {
                    let result = store.remove_watches(run_id.clone(), force).await;
                    Persisted::Removed {
                        run_id,
                        reply,
                        result,
                    }
                });
            }
            SchedulerCommand::Refresh { runs, reply } => {
                self.refresh(runs);
                let _closed = reply.send(());
            }
            SchedulerCommand::View { only, reply } => {
                let views = self.views(only);
                // The caller may have left.
                drop(reply.send(views));
            }
            SchedulerCommand::Usage { reply } => {
                let (budget, watches) = (&mut self.provider.budget, self.registry.len());
                // The caller may have left.
                let _left = reply.send(budget.usage(Instant::now(), watches));
            }
            SchedulerCommand::List { request, reply } => self.want_page(*request, reply),
            SchedulerCommand::Reload {
                provider,
                policy,
                reply,
            } => {
                self.reload(provider, *policy);
                let _closed = reply.send(());
            }
            SchedulerCommand::GiveUp { why, reply } => {
                self.give_up(why);
                let _closed = reply.send(());
            }
            SchedulerCommand::Ping { reply } => {
                let _closed = reply.send(());
            }
        }
    }

    /// Has the store add a watch; the answer follows once it is on disk.
    fn add(
        &mut self,
        watch: Box<Watch>,
        origin: AddedBy,
        reply: oneshot::Sender<Result<Added, StoreError>>,
    ) {
        // The deadline was computed from the clock as it is now.
        self.look_at_clock();
        let (store, stepped) = (self.store.clone(), self.stepped);
        let reply = if mutant("early-answer") {
            drop(reply.send(Ok(Added::New)));
            oneshot::channel().0
        } else {
            reply
        };
        self.adding += 1;
        self.store_in_order(async move {
            let stored = Watch::clone(&watch);
            let some = |(added, id)| (added, Some(id));
            let result = match origin {
                AddedBy::Request => store.add_watch(stored).await.map(some),
                AddedBy::RequestAgain => store.add_watch_again(stored).await.map(some),
                AddedBy::Configuration => store.add_configured_watch(stored).await,
                AddedBy::Discovery(found) => store.add_discovered_watch(stored, *found).await,
            };
            Persisted::Added {
                watch,
                reply,
                result,
                stepped,
            }
        });
    }

    /// Follows exactly these watches of these runs, which another daemon added or removed. Those that are known keep
    /// their progress, which is newer than what is stored.
    fn refresh(&mut self, runs: Vec<(RunRef, Vec<StoredWatch>)>) {
        let now = self.look_at_clock();
        for (run_id, watches) in runs {
            for key in self.registry.keys_of(&run_id) {
                let is_stored =
                    |entry: &WatchEntry| watches.iter().any(|stored| stored.id == entry.id);
                if self
                    .registry
                    .get(key)
                    .is_some_and(|entry| !is_stored(entry))
                {
                    self.forget(key);
                }
            }
            let followed = self.registry.keys_of(&run_id);
            for stored in watches {
                let is_followed = |key: &Key| {
                    self.registry
                        .get(*key)
                        .is_some_and(|entry| entry.id == stored.id)
                };
                if followed.iter().any(is_followed) {
                    continue;
                }
                let entry = self.entry(
                    (stored.id, stored.watch),
                    stored.progress,
                    Duration::ZERO,
                    now,
                    now,
                );
                let key = self.registry.insert(entry);
                self.enroll_in_list(key, now);
            }
        }
    }

    /// Returns the watches of these runs, or all, as they are now.
    fn views(&self, only: Option<Vec<RunRef>>) -> Vec<WatchView> {
        let (now, wall) = (Instant::now(), self.clock.now());
        let keys = match only {
            Some(run_ids) => run_ids
                .iter()
                .flat_map(|run_id| self.registry.keys_of(run_id))
                .collect(),
            None => self.registry.keys(),
        };
        keys.iter()
            .filter_map(|key| Some(self.registry.get(*key)?.view(now, wall)))
            .collect()
    }

    /// Polls another provider from here on, under another policy. Polls under way continue when the
    /// account is the same; no watch waits longer than the new longest interval.
    fn reload(&mut self, provider: AnyProvider, policy: Policy) {
        let now = Instant::now();
        let is_same_account = self.provider.client.is_same_account(&provider);
        let has_same_lists = self.provider.client.has_same_lists(&provider);
        self.provider.client = provider;
        self.provider.budget = self
            .provider
            .budget
            .changed_to(policy.requests_per_minute, now);
        self.provider.breaker.reloaded(now, is_same_account);
        if !is_same_account {
            self.provider.call_back_polls();
        }
        self.provider.streams.reset(policy.max_streams);
        self.policy = policy;
        if !has_same_lists {
            self.regroup(now);
        }
        let latest = now + self.policy.backoff.max;
        if mutant("reload-forgets") {
            self.registry
                .keys()
                .into_iter()
                .take(1)
                .for_each(|key| self.forget(key));
        }
        for key in self.registry.keys() {
            let Some(entry) = self.registry.get(key) else {
                continue;
            };
            let at_once = entry.refused || !is_same_account;
            if entry.phase == Phase::Waiting && (entry.due > latest || at_once) {
                let due = if at_once { entry.due.min(now) } else { latest };
                self.registry.queue(key, due);
            }
        }
    }

    /// Returns the entry of a stored watch, with its first poll at `due`, `waited` after its status
    /// last changed.
    fn entry(
        &self,
        (id, watch): (WatchId, Watch),
        progress: Progress,
        waited: Duration,
        now: Instant,
        due: Instant,
    ) -> WatchEntry {
        let deadline = instant_of(watch.deadline_at, self.reading.wall, now);
        let changed_at = now.checked_sub(waited).unwrap_or(now);
        let mut entry = WatchEntry::new(
            (id, watch),
            progress,
            due.min(deadline),
            deadline,
            changed_at,
        );
        entry.interval = Some(waited)
            .filter(|waited| !waited.is_zero())
            .map(|waited| self.policy.backoff.interval_after(waited));
        entry
    }

    /// Reads the clocks, and corrects all times after a sleep or a step of the wall clock.
    fn look_at_clock(&mut self) -> Instant {
        let now = Instant::now();
        let reading = self.clock.read();
        let jump = reading.jump_since(&self.reading);
        self.reading = reading;
        if let Some(jump) = jump {
            self.jumped(jump, now);
        }
        now
    }

    /// Makes every watch due at once after a sleep or a step of the wall clock; the budget prevents
    /// a burst. A step moves all deadlines with it, because it does not show that time has passed.
    fn jumped(&mut self, jump: Jump, now: Instant) {
        tracing::info!(slept = ?jump.slept, stepped = %jump.stepped, "the clock jumped; polling every run again");
        self.provider.breaker.stepped(jump.stepped);
        let slept = !jump.slept.is_zero();
        if slept {
            // The connections from before the sleep are most likely dead.
            if !mutant("dead-connections") {
                self.provider.client.reconnect();
            }
            self.provider.slept(jump.slept, self.policy.max_streams);
            self.provider.lists.end_sweeps();
        }
        let shift = |at: Timestamp| at.saturating_add(jump.stepped).unwrap_or(at);
        for key in self.registry.keys() {
            let Some(entry) = self.registry.get_mut(key) else {
                continue;
            };
            if !mutant("steps-count") {
                entry.deadline_at = shift(entry.deadline_at);
            }
            entry.slept(jump.slept);
            // As in the store.
            if !jump.stepped.is_zero() {
                entry.progress.missing_since =
                    entry.progress.missing_since.map(|_| self.reading.wall);
            }
            let deadline = instant_of(entry.deadline_at, self.reading.wall, now);
            let (waits, due) = (entry.phase == Phase::Waiting, entry.due.min(now));
            if entry.ends_at.is_none() {
                self.registry.set_deadline(key, deadline);
            }
            if waits {
                self.registry.queue(key, due);
            }
        }
        if slept {
            self.be_patient(now);
            self.begin_catch_up(now);
        }
        if !jump.stepped.is_zero() {
            self.stepped += jump.stepped;
            self.shift_deadlines(i64::try_from(jump.stepped.as_millis()).unwrap_or(0));
        }
    }

    fn forget(&mut self, key: Key) {
        self.withdraw_from_list(key);
        self.registry.remove(key);
        self.provider.streams.forget(key);
    }

    fn publish(&mut self, now: Instant) {
        self.retry_pending_writes(now);
        if let Some(event) = self.provider.breaker.overdue(self.reading.wall) {
            self.emit(event);
        }
        self.look_at_catch_up(now);
        self.provider.count_outage(&self.metrics, now);
        let now = Now {
            instant: now,
            wall: self.reading.wall,
        };
        self.remind_of_outage(now);
        self.provider.publish(now);
    }

    /// Returns whether requests leave now. While none does, no watch ends, and one whose deadline passed gets more time
    /// then.
    fn may_request(&mut self, now: Instant) -> bool {
        let is_open = self.provider.client.is_open() || mutant("sent-while-closed");
        if std::mem::replace(&mut self.provider.was_open, is_open) != is_open && is_open {
            self.be_patient(now);
        }
        is_open
    }

    /// The time at which the scheduler acts while no request may leave.
    fn wake_while_closed(&self, now: Instant) -> Instant {
        let check = now + CLOCK_CHECK;
        self.pending.retry_at.map_or(check, |at| at.min(check))
    }

    /// The time at which the scheduler acts even if nothing comes in.
    fn wake_at(&self, now: Instant) -> Instant {
        let open_at = self.provider.opens_at(now);
        let in_flight = self.polls.len() + self.pages.len();
        let full = in_flight >= self.policy.max_in_flight
            || (in_flight > 0 && !self.provider.breaker.admits(open_at.max(now), in_flight));
        let next_page = self
            .page_turn(open_at.max(now))
            .map(|_| open_at)
            .filter(|_| !full);
        if self.registry.is_empty() {
            let check = next_page.unwrap_or(now + IDLE_CLOCK_CHECK);
            return self.pending.retry_at.map_or(check, |at| at.min(check));
        }
        let last_due = self.registry.first_last_due().filter(|_| self.may_end());
        let due = self
            .registry
            .first_due()
            .into_iter()
            .chain(last_due)
            .map(|(due, _)| due)
            .min();
        let next_poll = due.map(|due| due.max(open_at)).filter(|_| !full);
        let stream = self.provider.streams.wake_at().filter(|at| *at > now);
        let times = next_poll
            .into_iter()
            .chain(next_page)
            .chain(self.registry.next_deadline())
            .chain(stream)
            .chain(self.pending.retry_at);
        times.fold(now + CLOCK_CHECK, Instant::min)
    }
}

/// Returns the timer for a wall-clock time, where `now` is `wall`. Times beyond the reach of a timer
/// are a year away.
fn instant_of(at: Timestamp, wall: Timestamp, now: Instant) -> Instant {
    const FAR: Duration = Duration::from_secs(365 * 24 * 3600);
    match Duration::try_from(at.duration_since(wall)) {
        Ok(ahead) => now + ahead.min(FAR) + ROUNDING,
        Err(_past) => now,
    }
}

/// Returns the result of a task; `None` when it was cancelled, as all are when the runtime ends.
/// Resumes its panic.
fn finished<T>(joined: Result<T, JoinError>) -> Option<T> {
    joined
        .map_err(|error| {
            error
                .try_into_panic()
                .map(|panic| std::panic::resume_unwind(panic))
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use std::panic::AssertUnwindSafe;

    use super::*;

    #[tokio::test]
    async fn a_task_that_the_end_of_the_runtime_cancels_is_no_panic_and_a_panic_is_one() {
        let mut tasks = JoinSet::new();
        tasks.spawn(std::future::pending::<()>());
        tasks.abort_all();
        assert_eq!(finished(tasks.join_next().await.unwrap()), None);
        tasks.spawn(async { panic!("a fault of the program") });
        let joined = tasks.join_next().await.unwrap();
        let resumed = std::panic::catch_unwind(AssertUnwindSafe(|| finished(joined)));
        let panic = resumed.unwrap_err();
        assert_eq!(
            panic.downcast_ref::<&str>().copied(),
            Some("a fault of the program")
        );
        tasks.spawn(async {});
        assert_eq!(finished(tasks.join_next().await.unwrap()), Some(()));
    }
}
