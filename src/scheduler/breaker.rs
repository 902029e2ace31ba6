//! The circuit breaker: whether requests to the API may go out now, for all watches of a key.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::deadline::time_of_day;
use crate::backoff::BackoffPolicy;
use crate::clock::Now;
use crate::domain::{Event, EventData, EventType, ProviderName, ProviderNotice};
use crate::failpoint::mutant;
use crate::providers::ApiError;
use crate::reminder::Reminder;

/// How long there is no usable answer before `api.unreachable` is raised.
const UNREACHABLE_AFTER: SignedDuration = SignedDuration::from_mins(5);

/// The waits before the first probes of a rejected key: a new key needs time to be known to all
/// servers, and most rejections that end do so soon.
const FIRST_REFUSED_PROBES: [Duration; 3] = [
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(45),
];

/// The wait before each further probe of a rejected key.
pub(super) const REFUSED_PROBE: Duration = Duration::from_secs(60);

/// The shortest wait after a failure when a deadline makes the next poll urgent.
pub(super) const URGENT_PROBE: Duration = Duration::from_secs(1);

/// The backoff of failed polls: 1 s to 60 s, for the API as a whole.
fn failure_backoff() -> BackoffPolicy {
    BackoffPolicy {
        initial: Duration::from_secs(1),
        multiplier: 2.0,
        max: Duration::from_secs(60),
        jitter: 0.1,
    }
}

/// Why requests are blocked or limited to one probe at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// Polls fail. One probe at a time, further and further apart.
    Failing,
    /// The API is rate limiting requests, with a time at which they may go on.
    Paused,
    /// The API rejects the key. Probes go out after 5 s, 15 s and 45 s, then once a minute.
    Refused,
}

impl Outage {
    /// The word of the metrics, one of [`crate::metrics::PAUSE_REASONS`].
    pub fn reason(self) -> &'static str {
        match self {
            Self::Failing => "failing",
            Self::Paused => "rate_limited",
            Self::Refused => "unauthorized",
        }
    }

    /// The outage with this word, as [`Outage::reason`] has it.
    pub fn of_reason(word: &str) -> Option<Self> {
        [Self::Failing, Self::Paused, Self::Refused]
            .into_iter()
            .find(|outage| outage.reason() == word)
    }
}

/// The state of the circuit breaker, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BreakerView {
    /// Why requests are blocked; `None` while they flow.
    pub outage: Option<Outage>,
    /// The text of the last failure; one line, no secrets.
    pub message: String,
    /// When the next request goes out, during an outage.
    pub retry_at: Option<Timestamp>,
    /// Whether this process ever received a usable answer.
    pub ever_answered: bool,
    /// Whether this process ever received any answer, including rejections and errors.
    pub reached: bool,
    /// How many polls failed in a row.
    pub failures: u64,
}

impl BreakerView {
    /// Describes the outage for people; `None` without one.
    pub fn outage_text(&self) -> Option<String> {
        let what = match self.outage? {
            Outage::Failing => "no usable answer",
            Outage::Paused => "the API requested a pause",
            // It is not the API that refuses a key that is not there.
            Outage::Refused if self.message.starts_with("no API key") => {
                return Some(format!(
                    "{}; `runwatch doctor` says what to do",
                    self.message
                ));
            }
            Outage::Refused => "the API refuses the key",
        };
        Some(format!("{what}: {}", self.message))
    }
}

/// The circuit breaker of one provider.
#[derive(Debug)]
pub(super) struct Breaker {
    backoff: BackoffPolicy,
    outage: Option<Outage>,
    /// No poll goes out before this time during an outage.
    blocked_until: Instant,
    interval: Option<Duration>,
    last_failure: Option<Instant>,
    failing_since: Option<Timestamp>,
    unreachable_reported: bool,
    unauthorized_reported: bool,
    message: String,
    ever_answered: bool,
    reached: bool,
    failures: u64,
    /// How many probes of a rejected key were rejected in a row.
    refusals: usize,
    /// When an outage that was reported is logged.
    reminder: Reminder,
}

/// What a log says of an outage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OutageLine {
    pub(super) outage: Outage,
    /// The text of the last failure.
    pub(super) why: String,
    /// How long there is no usable answer; not negative.
    pub(super) lasted: Duration,
}

impl Breaker {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            backoff: failure_backoff(),
            outage: None,
            blocked_until: now,
            interval: None,
            last_failure: None,
            failing_since: None,
            unreachable_reported: false,
            unauthorized_reported: false,
            message: String::new(),
            ever_answered: false,
            reached: false,
            failures: 0,
            refusals: 0,
            reminder: Reminder::default(),
        }
    }

    /// Continues the incident that a previous process reported with its newest event.
    pub(super) fn remember(&mut self, reported: &Event) {
        if mutant("incident-forgotten") {
            return;
        }
        let EventData::Provider(notice) = &reported.data else {
            return;
        };
        self.unreachable_reported = reported.event_type == EventType::ApiUnreachable;
        self.unauthorized_reported = reported.event_type == EventType::ApiUnauthorized;
        if self.unreachable_reported || self.unauthorized_reported {
            self.failing_since = Some(notice.since);
        }
    }

    pub(super) fn outage(&self) -> Option<Outage> {
        self.outage
    }

    /// Returns when polls may go out again; `None` while they may.
    pub(super) fn opens_at(&self) -> Option<Instant> {
        self.outage.map(|_| self.blocked_until)
    }

    /// Whether a poll may go out at `now`, with `in_flight` under way. A failing API gets one at a
    /// time.
    pub(super) fn admits(&self, now: Instant, in_flight: usize) -> bool {
        match self.outage {
            None => true,
            Some(Outage::Paused) => now >= self.blocked_until,
            Some(Outage::Failing | Outage::Refused) => now >= self.blocked_until && in_flight == 0,
        }
    }

    /// Lets the next probe of a failing API go out soon, because the deadline of a watch has come.
    pub(super) fn hurry(&mut self) {
        if self.outage == Some(Outage::Failing) {
            let soonest = self
                .last_failure
                .map_or(self.blocked_until, |failed| failed + URGENT_PROBE);
            self.blocked_until = self.blocked_until.min(soonest);
        }
    }

    /// Lets the next poll go out at once, because a reload may have removed the cause of an outage.
    /// For the same API and key a requested pause is kept; for another, all state is reset.
    pub(super) fn reloaded(&mut self, now: Instant, is_same_account: bool) {
        if !is_same_account {
            self.outage = None;
            self.interval = None;
            self.last_failure = None;
            self.refusals = 0;
        }
        if self.outage != Some(Outage::Paused) {
            self.blocked_until = now;
        }
    }

    /// Moves the begin of an outage with the wall clock, because a clock that is set does not make an
    /// outage longer or shorter.
    pub(super) fn stepped(&mut self, stepped: SignedDuration) {
        self.failing_since = self
            .failing_since
            .map(|since| since.saturating_add(stepped).unwrap_or(since));
    }

    /// Shortens a pause by the time for which the machine slept.
    pub(super) fn slept(&mut self, slept: Duration) {
        self.blocked_until = self
            .blocked_until
            .checked_sub(slept)
            .unwrap_or(self.blocked_until);
    }

    /// Handles a usable answer to a poll that began at `began`.
    pub(super) fn answered(&mut self, began: Instant, now: Timestamp) -> Option<Event> {
        (self.ever_answered, self.reached) = (true, true);
        // An answer to a poll from before a pause does not end the pause.
        if self.outage == Some(Outage::Paused) && began < self.blocked_until {
            return None;
        }
        let since = self.failing_since.take();
        self.outage = None;
        self.interval = None;
        self.failures = 0;
        self.refusals = 0;
        let reported = self.unreachable_reported || self.unauthorized_reported;
        self.unreachable_reported = false;
        self.unauthorized_reported = false;
        self.reminder = Reminder::default();
        reported.then(|| {
            notice(
                EventType::ApiRecovered,
                "the API answers again".to_owned(),
                since.unwrap_or(now),
                now,
            )
        })
    }

    /// Handles an answer whose rate-limit headers ask for a pause.
    pub(super) fn pause(&mut self, pause: Duration, began: Instant) {
        self.outage = Some(Outage::Paused);
        if !mutant("pause-ignored") {
            self.blocked_until = self.blocked_until.max(began + pause);
        }
        "the request limit is reached".clone_into(&mut self.message);
    }

    /// Handles a failed poll. `own_refusal` means that the API rejects this watch only.
    pub(super) fn failed(
        &mut self,
        error: &ApiError,
        own_refusal: bool,
        now: Now,
        random: &mut fastrand::Rng,
    ) -> Option<Event> {
        let Now { instant, wall } = now;
        self.message = error.describe();
        self.reached |= !error.is_unreached();
        self.last_failure = Some(instant);
        self.failures += 1;
        let since = *self.failing_since.get_or_insert(wall);
        if error.is_unauthorized() {
            if own_refusal {
                return None;
            }
            // Rejections of polls that went out together count as one. A pause is kept to its end.
            let is_kept = matches!(self.outage, Some(Outage::Refused | Outage::Paused))
                && instant < self.blocked_until;
            if !is_kept {
                let wait = FIRST_REFUSED_PROBES
                    .get(self.refusals)
                    .copied()
                    .unwrap_or(REFUSED_PROBE);
                self.blocked_until = instant + wait;
                self.refusals += 1;
                self.outage = Some(Outage::Refused);
            }
            if std::mem::replace(&mut self.unauthorized_reported, true) {
                return None;
            }
            return Some(notice(
                EventType::ApiUnauthorized,
                self.message.clone(),
                since,
                wall,
            ));
        }
        if let Some(pause) = error.retry_after() {
            self.outage = Some(Outage::Paused);
            self.blocked_until = self.blocked_until.max(instant + pause);
        } else if self.outage != Some(Outage::Paused) || instant >= self.blocked_until {
            // Failures of polls that went out together count as one: the breaker was closed for all
            // of them.
            let first = self.outage != Some(Outage::Failing) || instant >= self.blocked_until;
            self.outage = Some(Outage::Failing);
            if first {
                let interval = self.backoff.next(self.interval);
                self.interval = Some(interval);
                self.blocked_until = instant + self.backoff.wait(interval, random);
            }
        }
        None
    }

    /// Describes why no polls go out, for people; `None` while they do.
    pub(super) fn obstacle(&self, Now { instant, wall }: Now) -> Option<String> {
        let since = time_of_day(self.failing_since.unwrap_or(wall));
        let opens_at = wall
            .checked_add(self.blocked_until.saturating_duration_since(instant))
            .unwrap_or(wall);
        Some(match self.outage? {
            Outage::Failing => format!("the API has failed since {since}: {}", self.message),
            Outage::Paused => format!(
                "the API requested a pause until {}: {}",
                time_of_day(opens_at),
                self.message
            ),
            // It is not the API that refuses a key that is not there.
            Outage::Refused if self.message.starts_with("no API key") => self.message.clone(),
            Outage::Refused => format!(
                "the API has refused the key since {since}: {}",
                self.message
            ),
        })
    }

    /// Returns the event that the API has given no usable answer for 5 minutes, once.
    pub(super) fn overdue(&mut self, now: Timestamp) -> Option<Event> {
        let since = self
            .failing_since
            .filter(|since| now.duration_since(*since) >= UNREACHABLE_AFTER)?;
        if self.outage.is_none()
            || self.unauthorized_reported
            || std::mem::replace(&mut self.unreachable_reported, true)
        {
            return None;
        }
        let message = format!("no usable answer for 5 minutes: {}", self.message);
        Some(notice(EventType::ApiUnreachable, message, since, now))
    }

    /// Returns what is to be logged now of an outage that was reported: at first, and again at growing intervals while it
    /// lasts.
    pub(super) fn line_to_log(&mut self, Now { instant, wall }: Now) -> Option<OutageLine> {
        let outage = self
            .outage
            .filter(|_| self.unreachable_reported || self.unauthorized_reported)?;
        let since = self.failing_since.unwrap_or(wall);
        self.reminder.is_due(instant).then(|| OutageLine {
            outage,
            why: self.message.clone(),
            lasted: Duration::try_from(wall.duration_since(since)).unwrap_or_default(),
        })
    }

    pub(super) fn view(&self, now: Now) -> BreakerView {
        let Now { instant, wall } = now;
        let wait = self.blocked_until.saturating_duration_since(instant);
        BreakerView {
            outage: self.outage,
            message: self.message.clone(),
            retry_at: self.outage.and_then(|_| wall.checked_add(wait).ok()),
            ever_answered: self.ever_answered,
            reached: self.reached,
            failures: self.failures,
        }
    }
}

fn notice(event_type: EventType, message: String, since: Timestamp, now: Timestamp) -> Event {
    Event {
        event_type,
        timestamp: now,
        data: EventData::Provider(ProviderNotice {
            // The scheduler, which knows it, names it.
            provider: ProviderName::crewship(),
            message,
            since,
            fallback_for: None,
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::SinkNotice;

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);

    /// A moment on both clocks, `seconds` after the start.
    fn at(start: Instant, seconds: f64) -> Now {
        let passed = Duration::from_secs_f64(seconds);
        let wall: Timestamp = "2026-01-01T10:20:00Z".parse().unwrap();
        Now {
            instant: start + passed,
            wall: wall.checked_add(passed).unwrap(),
        }
    }

    fn status(status: u16, retry_after: Option<Duration>) -> ApiError {
        ApiError::Status {
            status,
            message: String::new(),
            retry_after,
        }
    }

    fn refusal() -> ApiError {
        ApiError::Unauthorized {
            status: 401,
            message: "no such key".to_owned(),
        }
    }

    /// One whose failures back off without jitter.
    fn fresh() -> (Breaker, Instant) {
        let start = Instant::now();
        let mut breaker = Breaker::new(start);
        breaker.backoff.jitter = 0.0;
        (breaker, start)
    }

    fn fail(breaker: &mut Breaker, error: &ApiError, now: Now) -> Option<EventType> {
        let mut random = fastrand::Rng::with_seed(7);
        breaker
            .failed(error, false, now, &mut random)
            .map(|event| event.event_type)
    }

    /// When it opens, in seconds after the start.
    fn opens(breaker: &Breaker, start: Instant) -> Option<f64> {
        breaker
            .opens_at()
            .map(|opens_at| opens_at.duration_since(start).as_secs_f64())
    }

    #[test]
    fn one_that_is_well_admits_all_and_has_no_obstacle() {
        let (mut breaker, start) = fresh();
        let now = at(start, 0.0);
        assert!(breaker.admits(now.instant, 0) && breaker.admits(now.instant, 1000));
        assert_eq!(
            (breaker.outage(), breaker.opens_at(), breaker.obstacle(now)),
            (None, None, None)
        );
        assert_eq!(breaker.view(now), BreakerView::default());
        assert!(breaker.overdue(at(start, 3600.0).wall).is_none());
        assert!(
            breaker.answered(now.instant, now.wall).is_none(),
            "nothing was reported, so nothing is over"
        );
        assert_eq!(
            breaker.view(now),
            BreakerView {
                ever_answered: true,
                reached: true,
                ..BreakerView::default()
            }
        );
    }

    #[test]
    fn failures_back_off_from_one_second_to_sixty_with_one_probe_at_a_time() {
        let (mut breaker, start) = fresh();
        let mut now = 0.0;
        for wait in [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0] {
            assert_eq!(fail(&mut breaker, &status(502, None), at(start, now)), None);
            assert_eq!(opens(&breaker, start), Some(now + wait));
            // Those of polls that went out together are one.
            fail(&mut breaker, &status(502, None), at(start, now + 0.5));
            assert_eq!(opens(&breaker, start), Some(now + wait));
            now += wait;
            assert!(!breaker.admits(at(start, now - 0.001).instant, 0));
            assert!(breaker.admits(at(start, now).instant, 0));
            assert!(!breaker.admits(at(start, now).instant, 1), "one at a time");
        }
        assert_eq!(breaker.view(at(start, now)).failures, 16);
        // An answer ends it, and the next failure begins again.
        assert!(
            breaker
                .answered(at(start, now).instant, at(start, now).wall)
                .is_none()
        );
        assert_eq!(breaker.view(at(start, now)).failures, 0);
        fail(&mut breaker, &status(502, None), at(start, now));
        assert_eq!(opens(&breaker, start), Some(now + 1.0));
    }

    #[test]
    fn a_refused_key_is_probed_after_5_15_and_45_seconds_then_once_a_minute() {
        let (mut breaker, start) = fresh();
        let mut now = 0.0;
        for (number, wait) in [5.0, 15.0, 45.0, 60.0, 60.0].into_iter().enumerate() {
            let reported = fail(&mut breaker, &refusal(), at(start, now));
            assert_eq!(
                reported,
                (number == 0).then_some(EventType::ApiUnauthorized)
            );
            assert_eq!(
                fail(&mut breaker, &refusal(), at(start, now + 1.0)),
                None,
                "it went out with the first"
            );
            assert_eq!(
                (breaker.outage(), opens(&breaker, start)),
                (Some(Outage::Refused), Some(now + wait))
            );
            now += wait;
            assert!(
                breaker.admits(at(start, now).instant, 0)
                    && !breaker.admits(at(start, now).instant, 1)
            );
        }
        assert_eq!(
            breaker
                .overdue(at(start, now + 3600.0).wall)
                .map(|event| event.event_type),
            None,
            "it was reported"
        );
        let recovered = breaker
            .answered(at(start, now).instant, at(start, now).wall)
            .unwrap();
        assert_eq!(recovered.event_type, EventType::ApiRecovered);
        let EventData::Provider(notice) = recovered.data else {
            panic!("about the API")
        };
        assert_eq!(notice.since, at(start, 0.0).wall);
        fail(&mut breaker, &refusal(), at(start, now));
        assert_eq!(
            opens(&breaker, start),
            Some(now + 5.0),
            "the next refusal begins again"
        );
    }

    #[test]
    fn a_run_that_is_refused_alone_is_no_trouble_of_the_key() {
        let (mut breaker, start) = fresh();
        let mut random = fastrand::Rng::with_seed(7);
        assert!(
            breaker
                .failed(&refusal(), true, at(start, 0.0), &mut random)
                .is_none()
        );
        assert_eq!(breaker.outage(), None);
        assert_eq!(breaker.view(at(start, 0.0)).failures, 1);
    }

    #[test]
    fn a_pause_lasts_as_long_as_the_api_requested() {
        for by_refusal in [true, false] {
            let (mut breaker, start) = fresh();
            let mut pause = |seconds: u64, now: f64| {
                let pause = Duration::from_secs(seconds);
                match by_refusal {
                    true => drop(fail(
                        &mut breaker,
                        &status(429, Some(pause)),
                        at(start, now),
                    )),
                    false => breaker.pause(pause, at(start, now).instant),
                }
                opens(&breaker, start)
            };
            assert_eq!(pause(30, 1.0), Some(31.0));
            assert_eq!(pause(5, 2.0), Some(31.0), "the longer one holds");
            assert_eq!(pause(60, 3.0), Some(63.0));
            assert_eq!(breaker.outage(), Some(Outage::Paused));
            // A failure meanwhile does not shorten it, nor does a deadline, nor an answer from before its end.
            fail(&mut breaker, &status(502, None), at(start, 10.0));
            assert_eq!(
                fail(&mut breaker, &refusal(), at(start, 11.0)),
                Some(EventType::ApiUnauthorized)
            );
            breaker.hurry();
            assert!(
                breaker
                    .answered(at(start, 62.0).instant, at(start, 64.0).wall)
                    .is_none()
            );
            assert_eq!(
                (breaker.outage(), opens(&breaker, start)),
                (Some(Outage::Paused), Some(63.0))
            );
            assert!(!breaker.admits(at(start, 62.999).instant, 0));
            assert!(
                breaker.admits(at(start, 63.0).instant, 1000),
                "all at once, as far as the budget allows"
            );
            // A failure of a poll after it is one of the API.
            fail(&mut breaker, &status(502, None), at(start, 63.0));
            assert_eq!(breaker.outage(), Some(Outage::Failing));
            breaker.answered(at(start, 64.0).instant, at(start, 64.0).wall);
            assert_eq!(breaker.outage(), None);
        }
    }

    #[test]
    fn a_deadline_hurries_the_probe_of_a_failing_api_only() {
        let (mut breaker, start) = fresh();
        for now in [0.0, 1.0, 3.0, 7.0] {
            fail(&mut breaker, &status(502, None), at(start, now));
        }
        assert_eq!(opens(&breaker, start), Some(15.0));
        breaker.hurry();
        assert_eq!(
            opens(&breaker, start),
            Some(8.0),
            "a second after the last failure"
        );
        breaker.hurry();
        assert_eq!(opens(&breaker, start), Some(8.0));
        let (mut refused, start) = fresh();
        fail(&mut refused, &refusal(), at(start, 0.0));
        refused.hurry();
        assert_eq!(opens(&refused, start), Some(5.0));
    }

    #[test]
    fn an_outage_is_reported_after_five_minutes_and_once() {
        let (mut breaker, start) = fresh();
        fail(&mut breaker, &status(502, None), at(start, 0.0));
        fail(&mut breaker, &status(503, None), at(start, 200.0));
        assert!(breaker.overdue(at(start, 299.999).wall).is_none());
        let reported = breaker.overdue(at(start, 300.0).wall).unwrap();
        assert_eq!(reported.event_type, EventType::ApiUnreachable);
        let EventData::Provider(notice) = reported.data else {
            panic!("about the API")
        };
        assert_eq!(notice.since, at(start, 0.0).wall);
        assert!(notice.message.contains("503"), "{}", notice.message);
        assert!(breaker.overdue(at(start, 3600.0).wall).is_none());
        let now = at(start, 3600.0);
        assert_eq!(
            breaker.answered(now.instant, now.wall).unwrap().event_type,
            EventType::ApiRecovered
        );
        assert!(breaker.answered(now.instant, now.wall).is_none());
        // A failure that was followed by answers is no outage.
        fail(&mut breaker, &status(502, None), at(start, 4000.0));
        breaker.answered(at(start, 4001.0).instant, at(start, 4001.0).wall);
        assert!(breaker.overdue(at(start, 9000.0).wall).is_none());
    }

    #[test]
    fn what_a_previous_process_reported_is_not_repeated_and_its_end_is() {
        let now = at(Instant::now(), 0.0).wall;
        let since = now.checked_sub(MINUTE * 60).unwrap();
        let event = |event_type, data| Event {
            event_type,
            timestamp: now,
            data,
        };
        let upstream_event = |event_type| {
            event(
                event_type,
                EventData::Provider(ProviderNotice {
                    provider: ProviderName::crewship(),
                    message: String::new(),
                    since,
                    fallback_for: None,
                }),
            )
        };
        for (reported, again, recovers) in [
            (EventType::ApiUnauthorized, None, true),
            (
                EventType::ApiUnreachable,
                Some(EventType::ApiUnauthorized),
                true,
            ),
            (
                EventType::ApiRecovered,
                Some(EventType::ApiUnauthorized),
                false,
            ),
        ] {
            let (mut breaker, start) = fresh();
            breaker.remember(&upstream_event(reported));
            let recovered = breaker.answered(start, now);
            assert_eq!(recovered.is_some(), recovers, "{reported}");
            if let Some(EventData::Provider(notice)) = recovered.map(|event| event.data) {
                assert_eq!(notice.since, since, "{reported}");
            }
            let (mut breaker, start) = fresh();
            breaker.remember(&upstream_event(reported));
            assert_eq!(
                fail(&mut breaker, &refusal(), at(start, 1.0)),
                again,
                "{reported}"
            );
            let (mut breaker, start) = fresh();
            breaker.remember(&upstream_event(reported));
            fail(&mut breaker, &status(502, None), at(start, 1.0));
            let after = breaker
                .overdue(at(start, 301.0).wall)
                .map(|event| event.event_type);
            assert_eq!(
                after.is_some(),
                reported == EventType::ApiRecovered,
                "{reported}"
            );
        }
        let (mut breaker, start) = fresh();
        let sink = "ops".parse().unwrap();
        breaker.remember(&event(
            EventType::SinkDisabled,
            EventData::Sink(SinkNotice {
                sink,
                message: String::new(),
                fallback_for: None,
            }),
        ));
        assert!(breaker.answered(start, now).is_none());
    }

    #[test]
    fn a_reload_keeps_the_pause_of_the_same_account_and_nothing_of_another() {
        type Cause = fn() -> ApiError;
        let causes: [(Cause, f64); 3] = [
            (|| status(502, None), 10.0),
            (refusal, 10.0),
            (|| status(429, Some(MINUTE)), 60.0),
        ];
        for (cause, same) in causes {
            let (mut breaker, start) = fresh();
            fail(&mut breaker, &cause(), at(start, 0.0));
            breaker.reloaded(at(start, 10.0).instant, true);
            assert_eq!(opens(&breaker, start), Some(same));
            breaker.reloaded(at(start, 10.0).instant, false);
            assert_eq!((breaker.outage(), breaker.opens_at()), (None, None));
            assert!(breaker.admits(at(start, 10.0).instant, 10));
            // Back-off and probes begin again.
            fail(&mut breaker, &cause(), at(start, 10.0));
            let first = [1.0, 5.0, 60.0].map(|wait| Some(10.0 + wait));
            assert!(
                first.contains(&opens(&breaker, start)),
                "{:?}",
                opens(&breaker, start)
            );
        }
        // The end of an incident is reported, whichever account it was of.
        let (mut breaker, start) = fresh();
        fail(&mut breaker, &refusal(), at(start, 0.0));
        breaker.reloaded(at(start, 1.0).instant, false);
        assert!(
            breaker
                .answered(at(start, 2.0).instant, at(start, 2.0).wall)
                .is_some()
        );
    }

    #[test]
    fn a_clock_that_is_set_moves_the_begin_of_an_outage() {
        for hours in [2, -2] {
            let (mut breaker, start) = fresh();
            fail(&mut breaker, &status(503, None), at(start, 0.0));
            breaker.stepped(SignedDuration::from_hours(hours));
            let after = |seconds| {
                let wall = at(start, seconds).wall;
                wall.checked_add(SignedDuration::from_hours(hours)).unwrap()
            };
            assert!(breaker.overdue(after(299.0)).is_none(), "{hours}");
            assert!(breaker.overdue(after(300.0)).is_some(), "{hours}");
        }
    }

    #[test]
    fn each_outage_has_its_word_in_the_metrics() {
        let outages = [Outage::Failing, Outage::Paused, Outage::Refused];
        assert_eq!(
            outages.map(Outage::reason),
            ["failing", "rate_limited", "unauthorized"]
        );
    }

    #[test]
    fn a_sleep_shortens_every_wait() {
        let (mut breaker, start) = fresh();
        fail(&mut breaker, &status(429, Some(MINUTE)), at(start, 0.0));
        breaker.slept(SECOND * 45);
        assert_eq!(opens(&breaker, start), Some(15.0));
    }

    #[test]
    fn the_view_and_the_obstacle_say_what_is_wrong_and_until_when() {
        let (mut breaker, start) = fresh();
        let now = at(start, 0.0);
        fail(&mut breaker, &ApiError::Timeout, now);
        let view = breaker.view(at(start, 0.25));
        let expected = BreakerView {
            outage: Some(Outage::Failing),
            message: "no answer in time".to_owned(),
            retry_at: Some(at(start, 1.0).wall),
            ever_answered: false,
            reached: false,
            failures: 1,
        };
        assert_eq!(view, expected);
        assert_eq!(
            view.outage_text().unwrap(),
            "no usable answer: no answer in time"
        );
        let obstacle = |breaker: &Breaker| breaker.obstacle(at(start, 60.0)).unwrap();
        assert_eq!(
            obstacle(&breaker),
            "the API has failed since 10:20 UTC: no answer in time"
        );
        fail(
            &mut breaker,
            &status(429, Some(MINUTE * 5)),
            at(start, 60.0),
        );
        assert!(breaker.view(at(start, 60.0)).reached);
        assert!(obstacle(&breaker).starts_with("the API requested a pause until 10:26 UTC: 429"));
        let (mut breaker, _) = fresh();
        fail(&mut breaker, &refusal(), now);
        assert!(obstacle(&breaker).starts_with("the API has refused the key since 10:20 UTC: 401"));
        let (mut breaker, _) = fresh();
        fail(&mut breaker, &ApiError::KeyMissing, now);
        assert_eq!(obstacle(&breaker), "no API key is configured");
    }

    /// What a poll brings, in the property test.
    #[derive(Debug, Clone)]
    enum Brought {
        PollOutcome,
        UsedUp(u64),
        Error,
        Throttled(u64),
        Refusal,
    }

    fn brought() -> impl Strategy<Value = Brought> {
        prop_oneof![
            3 => Just(Brought::PollOutcome),
            1 => (1_u64..3600).prop_map(Brought::UsedUp),
            4 => Just(Brought::Error),
            2 => (1_u64..3600).prop_map(Brought::Throttled),
            3 => Just(Brought::Refusal),
        ]
    }

    proptest! {
        /// Polls go out as soon as they are admitted, a few at once where that is, and are answered later.
        #[test]
        fn no_sequence_breaks_a_pause_hides_an_end_or_tells_twice(
            seed: u64,
            polls in proptest::collection::vec((brought(), 0_u64..20_000, any::<bool>()), 1..80),
        ) {
            let start = Instant::now();
            let mut breaker = Breaker::new(start);
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut now, mut reported, mut paused_until) = (0_u64, Vec::new(), 0);
            let moment = |milliseconds: u64| at(start, milliseconds as f64 / 1000.0);
            for (brought, takes, hurries) in polls {
                if hurries {
                    breaker.hurry();
                }
                if let Some(opens_at) = breaker.opens_at() {
                    let wait = opens_at.saturating_duration_since(moment(now).instant);
                    // What is not a pause lasts for a minute at the most, so that an end of it is seen.
                    let longest = if breaker.outage() == Some(Outage::Paused) { MINUTE * 60 } else { MINUTE };
                    prop_assert!(wait <= longest, "{:?}: {wait:?}", breaker.outage());
                    if !wait.is_zero() {
                        prop_assert!(!breaker.admits(moment(now).instant, 0));
                    }
                    now += u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap();
                }
                let began = moment(now);
                prop_assert!(breaker.admits(began.instant, 0));
                prop_assert!(now >= paused_until, "polled in a pause until {paused_until} ms");
                let alone = matches!(breaker.outage(), Some(Outage::Failing | Outage::Refused));
                prop_assert_eq!(breaker.admits(began.instant, 1), !alone);
                now += takes;
                let Now { instant, wall } = moment(now);
                let pause = |seconds: u64| (Duration::from_secs(seconds), now + seconds * 1000);
                let event = match brought {
                    Brought::PollOutcome => breaker.answered(began.instant, wall),
                    Brought::UsedUp(seconds) => {
                        let event = breaker.answered(began.instant, wall);
                        breaker.pause(pause(seconds).0, instant);
                        paused_until = pause(seconds).1;
                        event
                    }
                    Brought::Error => breaker.failed(&status(502, None), false, Now { instant, wall }, &mut random),
                    Brought::Throttled(seconds) => {
                        let error = status(429, Some(pause(seconds).0));
                        paused_until = pause(seconds).1;
                        breaker.failed(&error, false, Now { instant, wall }, &mut random)
                    }
                    Brought::Refusal => breaker.failed(&refusal(), false, Now { instant, wall }, &mut random),
                };
                let answered = matches!(brought, Brought::PollOutcome | Brought::UsedUp(_));
                prop_assert_eq!(breaker.outage().is_none(), matches!(brought, Brought::PollOutcome));
                let recovers = event.as_ref().is_some_and(|event| event.event_type == EventType::ApiRecovered);
                prop_assert_eq!(recovers, answered && reported.last().is_some_and(|last| *last != EventType::ApiRecovered));
                reported.extend(event.map(|event| event.event_type));
                reported.extend(breaker.overdue(wall).map(|event| event.event_type));
                prop_assert!(reported.windows(2).all(|pair| pair[0] != pair[1]), "{reported:?}");
            }
        }
    }
}
