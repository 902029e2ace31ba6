//! The delivery loop: one courier per sink takes due deliveries out of the store, makes one attempt
//! each, and stores how it went.
//!
//! Couriers share nothing but the store, so a slow or dead sink delays no other. A claim that is
//! still open when the process dies is made due again at the next start, under the same ID.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::trouble::SinkTrouble;
use super::{Deliver, Message, SendError, Sent};
use crate::catch_ups::CatchUps;
use crate::clock::{Clock, new_delivery_id};
use crate::domain::{
    DeliveryId, Event, EventData, EventType, QuietHours, Routes, SinkName, SinkNotice,
};
use crate::failpoint::{self, mutant};
use crate::memory;
use crate::metrics::Metrics;
use crate::reminder::Reminder;
use crate::store::{Attempt, AttemptOutcome, Claimed, RoutedEvent, STORE_RETRY, Store, StoreError};
use crate::text::error_chain;

/// Largest part by which a planned wait is made longer or shorter, so that many deliveries that
/// failed together do not come back together.
const SPREAD: f64 = 0.2;

/// Longest sleep without looking at the clock while a delivery waits: after a suspend or a step of the clock,
/// none that is due waits longer than this.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Bytes of inputs and outputs in the attempts under way of one courier from which on no further attempt is started:
/// they are what its memory goes to.
const BYTES_IN_FLIGHT: usize = 256 * 1024;

/// Why a receiver wants no more requests, once it answered 410. Holds until the sink is built again.
type Disabled = OnceLock<String>;

/// The end of the quiet time for which the store holds deliveries, once it was set; none outside of quiet hours.
#[derive(Default)]
struct HoldsInStore(Option<Option<Timestamp>>);

/// What one sink's deliveries need.
pub struct Courier<D> {
    /// The sink's name.
    pub name: SinkName,
    /// The sink.
    pub sink: Arc<D>,
    /// Waits before the second and each further attempt.
    pub retry_schedule: Vec<Duration>,
    /// The sink that gets what is given up here.
    pub fallback: Option<SinkName>,
    /// When only failures are sent; all else is held until the end of that time.
    pub quiet: Option<QuietHours>,
    /// Whether what ended while nothing watched is sent as one summary.
    pub digest: bool,
    /// The rounds of polls in which such ends become known.
    pub catch_ups: CatchUps,
    /// Most attempts under way at once, 1 or more.
    pub max_in_flight: usize,
    /// Where deliveries come from.
    pub store: Store,
    /// The time.
    pub clock: Clock,
    /// The routes of the event about a disabled sink.
    pub routes: Arc<Routes>,
    /// What is counted.
    pub metrics: Metrics,
    /// What was logged of failed attempts; [`Default`] at the start. Held only to change.
    pub trouble: Mutex<SinkTrouble>,
}

impl<D: Deliver> Courier<D> {
    /// Serves until `stop` is cancelled, then finishes the attempts under way. Dropping it instead
    /// leaves their deliveries claimed until the store is opened again.
    pub async fn run(self, stop: CancellationToken) {
        let courier = Arc::new(self);
        let mut changed = courier.store.deliveries_changed();
        let (mut attempts, mut bytes) = (JoinSet::new(), 0);
        let disabled = Arc::new(OnceLock::new());
        let mut holds = HoldsInStore::default();
        let (mut rounds, mut summarized) = (courier.catch_ups.changes(), None);
        while !stop.is_cancelled() {
            // Marked as seen before the store is read, so that no change in between is missed.
            changed.mark_unchanged();
            rounds.mark_unchanged();
            let free = if bytes < BYTES_IN_FLIGHT {
                courier.max_in_flight.saturating_sub(attempts.len())
            } else {
                0
            };
            let next_due = async {
                courier.keep_holds(&mut holds).await?;
                courier.summarize(&mut summarized).await?;
                courier
                    .start_due(free, &disabled, &mut attempts, &mut bytes)
                    .await
            };
            let next_due = match next_due.await {
                Ok(next_due) => next_due,
                Err(StoreError::Closed) => break,
                Err(error) => {
                    let error = error_chain(&error);
                    tracing::error!(sink = %courier.name, error, "cannot read due deliveries");
                    courier.clock.now().checked_add(STORE_RETRY).ok()
                }
            };
            // Every arm is cancel-safe: joining a set, waiting for a change and sleeping lose nothing.
            tokio::select! {
                () = stop.cancelled() => break,
                Some(first) = attempts.join_next() => {
                    // Each claim is a transaction, so that one claim replaces all attempts that have ended.
                    let others = std::iter::from_fn(|| attempts.try_join_next());
                    for ended in std::iter::once(first).chain(others) {
                        bytes -= ended.expect("an attempt does not panic and is not aborted");
                    }
                }
                () = wait_for(&mut changed) => {}
                Ok(()) = rounds.changed() => {}
                () = courier.until(next_due) => {}
            }
        }
        while let Some(ended) = attempts.join_next().await {
            ended.expect("an attempt does not panic and is not aborted");
        }
    }

    /// Stores when the deliveries that are held are due, where that changed: at the start, and when the configuration or
    /// the clock was set.
    async fn keep_holds(&self, holds: &mut HoldsInStore) -> Result<(), StoreError> {
        let now = self.clock.now();
        let end = self.quiet.as_ref().and_then(|quiet| quiet.end(now));
        if holds.0 != Some(end) {
            self.store
                .set_holds(self.name.clone(), end.unwrap_or(now))
                .await?;
            holds.0 = Some(end);
        }
        Ok(())
    }

    /// Decides about what was held for a summary, once after each round of polls: also without summaries, as a reload may
    /// have turned them off, and at the start, as the process may have died before.
    async fn summarize(&self, summarized: &mut Option<u64>) -> Result<(), StoreError> {
        let over = self.catch_ups.over();
        if over.is_some() && *summarized != over {
            let (sink, now) = (self.name.clone(), self.clock.now());
            self.store.summarize(sink, self.digest, now).await?;
            failpoint::point("summarized");
            *summarized = over;
        }
        Ok(())
    }

    /// Claims and starts what is due, as far as there is room. Returns when the next is due; `None` when only
    /// a change of the store or the end of an attempt is worth another look.
    async fn start_due(
        self: &Arc<Self>,
        free: usize,
        disabled: &Arc<Disabled>,
        attempts: &mut JoinSet<usize>,
        bytes: &mut usize,
    ) -> Result<Option<Timestamp>, StoreError> {
        if free == 0 {
            return Ok(None);
        }
        let (now, most_bytes) = (self.clock.now(), self.sink.most_bytes());
        let claimed = self
            .store
            .claim_due(self.name.clone(), now, free, most_bytes)
            .await?;
        let more_may_be_due = claimed.len() == free;
        for claimed in claimed {
            let (courier, disabled) = (Arc::clone(self), Arc::clone(disabled));
            let held = claimed.bytes();
            *bytes += held;
            attempts.spawn(async move {
                courier.attempt(claimed, &disabled).await;
                memory::used(held);
                held
            });
        }
        if more_may_be_due {
            Ok(None)
        } else {
            self.store.next_due(self.name.clone()).await
        }
    }

    /// Waits until the wall clock shows `due`; without it, never returns. A timer alone would not do: it stands still
    /// while the machine sleeps, and knows nothing of a clock that is set.
    async fn until(&self, due: Option<Timestamp>) {
        let Some(due) = due else {
            return std::future::pending().await;
        };
        while let Ok(left) = Duration::try_from(due.duration_since(self.clock.now()))
            && !left.is_zero()
        {
            tokio::time::sleep(left.min(LONGEST_SLEEP) + Duration::from_millis(1)).await;
        }
    }

    /// Makes one attempt: sends the event, decides what follows, reports that, and stores it.
    async fn attempt(&self, claimed: Claimed, disabled: &Disabled) {
        static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        failpoint::point("claimed");
        let _turn = if mutant("one-at-a-time") {
            Some(TURN.lock().await)
        } else {
            None
        };
        let (at, began) = (self.clock.now(), Instant::now());
        if let Some(until) = self.holds(&claimed, at) {
            return self.hold(&claimed, until).await;
        }
        let attempt = |took, detail, outcome| Attempt {
            attempt: claimed.attempt,
            at,
            took,
            detail,
            outcome,
        };
        if mutant("noted-first") {
            let early = attempt(Duration::ZERO, String::new(), AttemptOutcome::Delivered);
            drop(self.store.record_attempt(claimed.id.clone(), early).await);
        }
        let result = self.send(&claimed, at, disabled).await;
        failpoint::point("sent");
        let took = began.elapsed();
        let (outcome, detail) = self.decide(claimed.try_number, result, disabled).await;
        self.report(&claimed, &outcome, &detail);
        self.store_attempt(&claimed.id, attempt(took, detail, outcome))
            .await;
    }

    /// Until when a delivery is held instead of an attempt now.
    fn holds(&self, claimed: &Claimed, now: Timestamp) -> Option<Timestamp> {
        let quiet = self.quiet.as_ref()?;
        let can_wait = claimed.event.can_wait() && !claimed.at_once;
        can_wait.then(|| quiet.end(now)).flatten()
    }

    /// Holds a delivery, again and again while the store rejects that: it would otherwise stay claimed.
    async fn hold(&self, claimed: &Claimed, until: Timestamp) {
        let (sink, id) = (&self.name, &claimed.id);
        tracing::debug!(%sink, delivery = %id, %until, "held for quiet hours");
        self.store_about(id, "hold a delivery", || {
            self.store.hold(id.clone(), claimed.attempt, until)
        })
        .await;
        failpoint::point("held");
    }

    /// Hands the event to the sink, unless its receiver wants no more requests.
    async fn send(
        &self,
        claimed: &Claimed,
        now: Timestamp,
        disabled: &Disabled,
    ) -> Result<Sent, SendError> {
        if let Some(why) = disabled.get() {
            return Err(SendError {
                detail: format!("not sent: {why}"),
                retry_after: None,
                gone: true,
                rejected: false,
            });
        }
        let other = (mutant("new-id") && claimed.attempt > 1).then(new_delivery_id);
        let message = Message {
            delivery: other.as_ref().unwrap_or(&claimed.id),
            sink: &self.name,
            attempt: claimed.attempt,
            event: &claimed.event,
            trace: claimed.trace.as_ref(),
            now,
        };
        self.sink.send(&message).await
    }

    /// Decides what follows the result of an attempt, and returns that with its text. Disables the sink if the
    /// receiver wants no more requests.
    async fn decide(
        &self,
        try_number: u32,
        result: Result<Sent, SendError>,
        disabled: &Disabled,
    ) -> (AttemptOutcome, String) {
        match result {
            Ok(sent) => (AttemptOutcome::Delivered, sent.detail),
            Err(error) if error.gone => {
                // Of several attempts with that answer, the first stores the event, before its own result
                // is stored: a wait for open deliveries would otherwise miss the delivery of this event.
                if disabled.set(error.detail.clone()).is_ok() {
                    self.report_disabled(&error.detail).await;
                }
                (AttemptOutcome::Dead, error.detail)
            }
            Err(error) if error.rejected => (AttemptOutcome::Dead, error.detail),
            Err(error) => (self.next_attempt(try_number, &error), error.detail),
        }
    }

    /// Counts and logs an attempt. Of attempts that are made again, the first failure is logged as a warning, others at
    /// growing intervals; all of them are in `runwatch deliveries`.
    fn report(&self, claimed: &Claimed, outcome: &AttemptOutcome, detail: &str) {
        let Claimed {
            id, attempt, event, ..
        } = claimed;
        let (sink, run_id) = (&self.name, event.run_id().map(tracing::field::display));
        match outcome {
            AttemptOutcome::Delivered => {
                // A time in which it was held is not a delay.
                let since = claimed.held_until.map_or(event.timestamp, |held_until| {
                    event.timestamp.max(held_until)
                });
                let after = self.clock.now().duration_since(since);
                self.metrics
                    .delivered(sink, Duration::try_from(after).unwrap_or_default());
                tracing::debug!(%sink, delivery = %id, run_id, attempt, detail, "delivered");
                if self.trouble().delivered() {
                    tracing::info!(%sink, delivery = %id, attempt, "the sink accepts notifications again");
                }
            }
            AttemptOutcome::Retry(next_at) => {
                self.metrics.failed(sink, false);
                let next_at = format_args!("{next_at:.3}");
                match self.trouble().failed(detail, Instant::now()) {
                    Some(failed_attempts) => tracing::warn!(
                        %sink, delivery = %id, run_id, attempt, error = detail, %next_at, failed_attempts,
                        "the sink does not accept notifications; each is tried again by its schedule"
                    ),
                    None => tracing::debug!(
                        %sink, delivery = %id, run_id, attempt, error = detail, %next_at, "attempt failed"
                    ),
                }
            }
            AttemptOutcome::Dead => {
                self.metrics.failed(sink, true);
                let fallback = self.fallback.as_ref().map(SinkName::as_str);
                tracing::error!(
                    %sink, delivery = %id, run_id, attempt, error = detail, fallback,
                    "delivery given up; `runwatch deliveries retry` makes it again"
                );
            }
        }
    }

    fn trouble(&self) -> MutexGuard<'_, SinkTrouble> {
        self.trouble.lock().expect("no holder panics")
    }

    /// Stores an attempt, again and again while the store rejects it: the delivery would otherwise be made again.
    async fn store_attempt(&self, id: &DeliveryId, attempt: Attempt) {
        self.store_about(id, "store an attempt", || {
            let fallback = self.fallback.clone();
            self.store
                .record_attempt_with(id.clone(), attempt.clone(), fallback)
        })
        .await;
        failpoint::point("recorded");
    }

    /// Writes what belongs to a delivery that is claimed, again and again while the store rejects it. `what` says what
    /// that is, after "cannot".
    async fn store_about<F>(&self, id: &DeliveryId, what: &str, write: impl Fn() -> F)
    where
        F: Future<Output = Result<(), StoreError>>,
    {
        let mut reminder = Reminder::default();
        loop {
            match write().await {
                Ok(()) => return,
                Err(error @ (StoreError::Closed | StoreError::Precondition { .. })) => {
                    tracing::error!(sink = %self.name, delivery = %id, %error, "cannot {what}");
                    return;
                }
                Err(error) => {
                    if reminder.is_due(Instant::now()) {
                        let error = error_chain(&error);
                        tracing::error!(sink = %self.name, delivery = %id, error, "cannot {what}; trying again");
                    }
                    tokio::time::sleep(STORE_RETRY).await;
                }
            }
        }
    }

    /// What follows a failed attempt: the planned wait, spread a little; longer where the receiver
    /// requests that, but at most twice the plan.
    fn next_attempt(&self, try_number: u32, error: &SendError) -> AttemptOutcome {
        let index = try_number.saturating_sub(u32::from(!mutant("dead-too-soon")));
        let Some(planned) = self.retry_schedule.get(index as usize) else {
            return AttemptOutcome::Dead;
        };
        let planned = if mutant("impatient") {
            &self.retry_schedule[0]
        } else {
            planned
        };
        let spread = planned.mul_f64(1.0 + SPREAD * (2.0 * fastrand::f64() - 1.0));
        let requested = error
            .retry_after
            .filter(|_| !mutant("retry-after-ignored"))
            .unwrap_or_default()
            .min(*planned * 2);
        AttemptOutcome::Retry(
            self.clock
                .now()
                .checked_add(spread.max(requested))
                .unwrap_or(Timestamp::MAX),
        )
    }

    async fn report_disabled(&self, why: &str) {
        if mutant("gone-unsaid") {
            return;
        }
        tracing::error!(sink = %self.name, why, "sink disabled until the next start or reload");
        let now = self.clock.now();
        let notice = SinkNotice {
            sink: self.name.clone(),
            message: why.to_owned(),
            fallback_for: None,
        };
        let event = Event {
            event_type: EventType::SinkDisabled,
            timestamp: now,
            data: EventData::Sink(notice),
        };
        let mut sinks = self.routes.sinks_for(&event, None);
        sinks.retain(|sink| *sink != self.name);
        let routed = RoutedEvent {
            event,
            sinks,
            held: Vec::new(),
        };
        loop {
            match self.store.record_event(routed.clone(), now).await {
                Ok(()) | Err(StoreError::Closed) => break,
                // The store logs its own failures, once. So does this.
                Err(_refused) => tokio::time::sleep(STORE_RETRY).await,
            }
        }
    }
}

/// Waits for a change. Never returns once the store is gone, which other arms notice.
async fn wait_for(changed: &mut watch::Receiver<u64>) {
    if changed.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{EventFilter, Labels, Route};
    use crate::store::{DeliveryFilter, Location};
    use proptest::prelude::*;

    /// A sink that is not used.
    struct Nowhere;

    impl Deliver for Nowhere {
        async fn send(&self, _message: &Message<'_>) -> Result<Sent, SendError> {
            unreachable!("no attempt is made")
        }
    }

    fn name(text: &str) -> SinkName {
        SinkName::new(text).unwrap()
    }

    fn courier(retry_schedule: Vec<Duration>) -> (Courier<Nowhere>, crate::store::Writer) {
        let (store, writer) = Store::open(Location::Memory).unwrap();
        let route = |sink: &str| Route {
            sink: name(sink),
            events: EventFilter::parse(["*"]).unwrap(),
            labels: Labels::new(),
            one_per_group: false,
            digest: false,
        };
        let courier = Courier {
            name: name("gone"),
            sink: Arc::new(Nowhere),
            retry_schedule,
            fallback: None,
            quiet: None,
            digest: false,
            catch_ups: CatchUps::default(),
            max_in_flight: 1,
            store,
            clock: Clock::simulated(Timestamp::UNIX_EPOCH),
            routes: Arc::new(Routes::from_iter([route("gone"), route("other")])),
            metrics: Metrics::default(),
            trouble: Mutex::default(),
        };
        (courier, writer)
    }

    /// The wait after a failed attempt, in milliseconds; `None` where no other follows.
    fn wait_after(
        courier: &Courier<Nowhere>,
        try_number: u32,
        retry_after: Option<Duration>,
    ) -> Option<i64> {
        let now = courier.clock.now().as_millisecond();
        match courier.next_attempt(
            try_number,
            &SendError {
                detail: String::new(),
                retry_after,
                gone: false,
                rejected: false,
            },
        ) {
            AttemptOutcome::Retry(at) => Some(at.as_millisecond() - now),
            AttemptOutcome::Dead => None,
            AttemptOutcome::Delivered => unreachable!("it failed"),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn each_wait_follows_the_schedule_within_a_fifth_or_the_retry_after_up_to_twice_that(
            planned in prop::collection::vec(1_000..100_000_i64, 1..6),
            requested in prop::option::of(0..300_000_i64),
        ) {
            let millis = |millis: i64| Duration::from_millis(millis.unsigned_abs());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            let _entered = runtime.enter();
            let (courier, _writer) = courier(planned.iter().copied().map(millis).collect());
            for (index, planned) in (1..).zip(&planned) {
                let wait = wait_after(&courier, index, requested.map(millis)).unwrap();
                let requested = requested.unwrap_or(0).min(planned * 2);
                prop_assert!(wait >= requested.max(planned * 8 / 10 - 1), "{wait} of {planned}, {requested}");
                prop_assert!(wait <= requested.max(planned * 12 / 10 + 1), "{wait} of {planned}, {requested}");
            }
            prop_assert_eq!(wait_after(&courier, u32::try_from(planned.len()).unwrap() + 1, None), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn deliveries_that_failed_together_do_not_come_back_together() {
        let (courier, _writer) = courier(vec![Duration::from_secs(1000)]);
        let waits: Vec<_> = (0..100)
            .map(|_| wait_after(&courier, 1, None).unwrap())
            .collect();
        let (least, most) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
        assert!(
            *least < 900_000 && *most > 1_100_000,
            "{least} to {most} ms"
        );
    }

    /// Keeps what it gets.
    #[derive(Clone, Default)]
    struct EventRecorder(Arc<Mutex<Vec<EventType>>>);

    impl Deliver for EventRecorder {
        async fn send(&self, message: &Message<'_>) -> Result<Sent, SendError> {
            let mut got = self.0.lock().unwrap();
            got.push(message.event.event_type);
            let detail = String::new();
            Ok(Sent { detail })
        }
    }

    /// A sink with quiet hours from 22:00 to 07:00 at a time of the day, whose couriers come and go.
    struct Night {
        store: Store,
        clock: Clock,
        got: EventRecorder,
        courier: Option<(JoinSet<()>, CancellationToken)>,
        _writer: JoinSet<()>,
    }

    impl Night {
        fn at(time: &str) -> Self {
            let (store, writer) = Store::open(Location::Memory).unwrap();
            let mut tasks = JoinSet::new();
            tasks.spawn(writer.run());
            Self {
                store,
                clock: Clock::simulated(format!("2026-03-01T{time}:00Z").parse().unwrap()),
                got: EventRecorder::default(),
                courier: None,
                _writer: tasks,
            }
        }

        /// Ends the courier, and starts another one.
        async fn begin(&mut self, is_quiet: bool) {
            if let Some((mut tasks, stop)) = self.courier.take() {
                stop.cancel();
                while tasks.join_next().await.is_some() {}
            }
            let times = ["22:00", "07:00"].map(|time| time.parse().unwrap());
            let quiet = QuietHours::new(times[0], times[1], jiff::tz::TimeZone::UTC);
            let courier = Courier {
                name: name("ops"),
                sink: Arc::new(self.got.clone()),
                retry_schedule: Vec::new(),
                fallback: None,
                quiet: quiet.filter(|_| is_quiet),
                digest: false,
                catch_ups: CatchUps::default(),
                max_in_flight: 1,
                store: self.store.clone(),
                clock: self.clock.clone(),
                routes: Arc::new(Routes::default()),
                metrics: Metrics::default(),
                trouble: Mutex::default(),
            };
            let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
            tasks.spawn(courier.run(stop.clone()));
            self.courier = Some((tasks, stop));
        }

        async fn event(&self, event_type: EventType) {
            let now = self.clock.now();
            let event = Event::sample_of(event_type, now);
            let sinks = vec![name("ops")];
            let routed = RoutedEvent {
                event,
                sinks,
                held: Vec::new(),
            };
            self.store.record_event(routed, now).await.unwrap();
        }

        /// Passes time until the clock shows `time`, on the same day or the next one.
        async fn until(&self, time: &str) {
            let now = self.clock.now().to_zoned_datetime(jiff::tz::TimeZone::UTC);
            let wanted = now.date().to_datetime(time.parse().unwrap());
            let mut wanted = jiff::tz::TimeZone::UTC.to_timestamp(wanted).unwrap();
            if wanted < self.clock.now() {
                wanted += jiff::SignedDuration::from_hours(24);
            }
            let left = wanted.duration_since(self.clock.now());
            tokio::time::sleep(left.unsigned_abs()).await;
            // The tasks that are due have their turn.
            for _ in 0..100 {
                self.store.ping().await.unwrap();
                tokio::task::yield_now().await;
            }
        }

        fn got(&self) -> Vec<&'static str> {
            let got = self.got.0.lock().unwrap();
            got.iter().map(|event_type| event_type.as_str()).collect()
        }

        async fn held_until(&self) -> Vec<Option<String>> {
            let all = self.store.deliveries(DeliveryFilter::default(), 10).await;
            let all = all.unwrap().items.into_iter();
            all.map(|delivery| Some(delivery.held_until?.strftime("%d %H:%M").to_string()))
                .collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn quiet_hours_hold_what_can_wait_and_nothing_else() {
        let mut night = Night::at("21:59");
        night.begin(true).await;
        night.event(EventType::RunStarted).await;
        night.until("22:00").await;
        night.event(EventType::RunSucceeded).await;
        night.event(EventType::RunCanceled).await;
        night.event(EventType::RunFailed).await;
        night.event(EventType::ApiUnreachable).await;
        night.until("22:10").await;
        assert_eq!(
            night.got(),
            ["run.started", "run.failed", "api.unreachable"],
            "a failure does not wait for what is held"
        );
        let held = Some("02 07:00".to_owned());
        assert_eq!(
            night.held_until().await,
            [None, held.clone(), held, None, None]
        );
        let gauges = night
            .store
            .gauges(night.clock.now(), Vec::new())
            .await
            .unwrap();
        assert_eq!(gauges.oldest_pending(), Some(Duration::ZERO));
        // A restart keeps it.
        night.begin(true).await;
        night.until("06:59").await;
        assert_eq!(night.got().len(), 3);
        night.until("07:00").await;
        night.until("07:01").await;
        assert_eq!(night.got()[3..], ["run.succeeded", "run.canceled"]);
        let all = night.store.deliveries(DeliveryFilter::default(), 10).await;
        assert!(
            all.unwrap()
                .items
                .iter()
                .all(|delivery| delivery.attempts == 1)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_held_follows_the_configuration_the_clock_and_a_person() {
        let mut night = Night::at("23:00");
        night.begin(true).await;
        night.event(EventType::RunSucceeded).await;
        night.until("23:10").await;
        // The clock is set forward by two hours: the morning is the same one.
        night.clock.jump(crate::clock::Jump {
            slept: Duration::ZERO,
            stepped: jiff::SignedDuration::from_hours(2),
        });
        let now = night.clock.now();
        night
            .store
            .shift_deadlines(Vec::new(), 7_200_000, now)
            .await
            .unwrap();
        let morning = Some("02 07:00".to_owned());
        assert_eq!(night.held_until().await, [morning]);
        // It is set back by a day: the morning is an earlier one.
        night.clock.jump(crate::clock::Jump {
            slept: Duration::ZERO,
            stepped: jiff::SignedDuration::from_hours(-24),
        });
        let now = night.clock.now();
        night
            .store
            .shift_deadlines(Vec::new(), -86_400_000, now)
            .await
            .unwrap();
        night.until("02:00").await;
        assert_eq!(night.held_until().await, [Some("01 07:00".to_owned())]);
        // A configuration without quiet hours lets it go.
        night.begin(false).await;
        night.until("02:10").await;
        assert_eq!(night.got(), ["run.succeeded"]);
        // A person does not wait.
        night.begin(true).await;
        night.event(EventType::RunSkipped).await;
        night.until("02:20").await;
        assert_eq!(night.got().len(), 1);
        let all = night.store.deliveries(DeliveryFilter::default(), 10).await;
        let id = all.unwrap().items.pop().unwrap().id;
        let now = night.clock.now();
        night
            .store
            .decide(id, crate::store::Fate::Retry, now)
            .await
            .unwrap();
        night.until("02:30").await;
        assert_eq!(night.got(), ["run.succeeded", "run.skipped"]);
    }

    #[tokio::test]
    async fn a_disabled_sink_is_reported_to_the_others_only() {
        let (courier, writer) = courier(Vec::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(writer.run());
        courier.report_disabled("410 Gone").await;
        let deliveries = courier
            .store
            .deliveries(DeliveryFilter::default(), 10)
            .await
            .unwrap()
            .items;
        assert_eq!(
            deliveries
                .iter()
                .map(|delivery| delivery.sink.as_str())
                .collect::<Vec<_>>(),
            ["other"]
        );
        let events = courier.store.events_after(0, 10).await.unwrap();
        assert_eq!(
            events
                .iter()
                .map(|(_, event)| event.event_type)
                .collect::<Vec<_>>(),
            [EventType::SinkDisabled]
        );
    }
}
