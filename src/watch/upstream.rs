//! Whether the API may be asked now: one answer for all watches of a key.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::deadline::time_of_day;
use crate::api::ApiError;
use crate::backoff::Growth;
use crate::run::{Event, EventData, EventType, UpstreamNotice};

/// After how long without a usable answer `api.unreachable` is raised.
const UNREACHABLE_AFTER: SignedDuration = SignedDuration::from_mins(5);

/// How long a refused key is left alone before each of the first probes: a new key takes its time to be known
/// everywhere, and most refusals that end do so soon.
const FIRST_REFUSED_PROBES: [Duration; 3] = [Duration::from_secs(5), Duration::from_secs(15), Duration::from_secs(45)];

/// How long a refused key is left alone before each further probe.
pub(super) const REFUSED_PROBE: Duration = Duration::from_secs(60);

/// How long after a failure the API is polled again at the earliest, when a deadline makes it urgent.
pub(super) const URGENT_PROBE: Duration = Duration::from_secs(1);

/// How failed polls back off: 1 s to 60 s, for the API as a whole.
fn failure_growth() -> Growth {
    Growth { initial: Duration::from_secs(1), multiplier: 2.0, max: Duration::from_secs(60), jitter: 0.1 }
}

/// Why the API is not asked freely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Polls fail. One probe at a time, further and further apart.
    Failing,
    /// The API asked for a pause.
    Paused,
    /// The API refuses the key. Probes after 5 s, 15 s and 45 s, then one a minute.
    Refused,
}

/// The API as the scheduler sees it, for showing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UpstreamView {
    /// What is wrong; `None` when all is well.
    pub trouble: Option<Trouble>,
    /// What the last failure said; one line, no secrets.
    pub message: String,
    /// When it is asked again, while there is trouble.
    pub retry_at: Option<Timestamp>,
    /// Whether it ever gave a usable answer to this process.
    pub ever_answered: bool,
    /// Whether it ever gave any answer to this process, be it a refusal or an error.
    pub reached: bool,
    /// How many polls failed in a row.
    pub failures: u64,
}

impl UpstreamView {
    /// What is wrong, for people; `None` when all is well.
    pub fn trouble_text(&self) -> Option<String> {
        let what = match self.trouble? {
            Trouble::Failing => "no usable answer",
            Trouble::Paused => "the API asked for a pause",
            Trouble::Refused => "the API refuses the key",
        };
        Some(format!("{what}: {}", self.message))
    }
}

/// The state of the API.
#[derive(Debug)]
pub(super) struct Upstream {
    growth: Growth,
    trouble: Option<Trouble>,
    /// No poll goes out before this while there is trouble.
    closed_until: Instant,
    interval: Option<Duration>,
    last_failure: Option<Instant>,
    failing_since: Option<Timestamp>,
    unreachable_told: bool,
    unauthorized_told: bool,
    message: String,
    ever_answered: bool,
    reached: bool,
    failures: u64,
    /// How many probes of a refused key were refused in a row.
    refusals: usize,
}

impl Upstream {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            growth: failure_growth(),
            trouble: None,
            closed_until: now,
            interval: None,
            last_failure: None,
            failing_since: None,
            unreachable_told: false,
            unauthorized_told: false,
            message: String::new(),
            ever_answered: false,
            reached: false,
            failures: 0,
            refusals: 0,
        }
    }

    /// Takes note of the newest event that was told, by a process before this one.
    pub(super) fn remember(&mut self, told: &Event) {
        let EventData::Upstream(notice) = &told.data else { return };
        self.unreachable_told = told.event_type == EventType::ApiUnreachable;
        self.unauthorized_told = told.event_type == EventType::ApiUnauthorized;
        if self.unreachable_told || self.unauthorized_told {
            self.failing_since = Some(notice.since);
        }
    }

    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.trouble
    }

    /// From when on polls may go out.
    pub(super) fn opens_at(&self) -> Option<Instant> {
        self.trouble.map(|_| self.closed_until)
    }

    /// Whether a poll may go out at `now`, with so many under way. A troubled API gets one at a time.
    pub(super) fn admits(&self, now: Instant, in_flight: usize) -> bool {
        match self.trouble {
            None => true,
            Some(Trouble::Paused) => now >= self.closed_until,
            Some(Trouble::Failing | Trouble::Refused) => now >= self.closed_until && in_flight == 0,
        }
    }

    /// Lets the next probe of a failing API go out soon: a watch's deadline has come.
    pub(super) fn hurry(&mut self) {
        if self.trouble == Some(Trouble::Failing) {
            let soonest = self.last_failure.map_or(self.closed_until, |failed| failed + URGENT_PROBE);
            self.closed_until = self.closed_until.min(soonest);
        }
    }

    /// Lets the next poll go out at once, as the reason for the trouble may be gone. A pause that the API asked for is
    /// kept where requests go to the same API with the same key. Where they do not, nothing of before holds.
    pub(super) fn reloaded(&mut self, now: Instant, same_account: bool) {
        if !same_account {
            self.trouble = None;
            self.interval = None;
            self.last_failure = None;
            self.refusals = 0;
        }
        if self.trouble != Some(Trouble::Paused) {
            self.closed_until = now;
        }
    }

    /// Takes note that the machine slept, so that a pause is not slept through twice.
    pub(super) fn slept(&mut self, slept: Duration) {
        self.closed_until = self.closed_until.checked_sub(slept).unwrap_or(self.closed_until);
    }

    /// Takes note of a usable answer to a poll that began at `began`.
    pub(super) fn answered(&mut self, began: Instant, now: Timestamp) -> Option<Event> {
        (self.ever_answered, self.reached) = (true, true);
        // An answer that was under way when the API asked for a pause does not end the pause.
        if self.trouble == Some(Trouble::Paused) && began < self.closed_until {
            return None;
        }
        let since = self.failing_since.take();
        self.trouble = None;
        self.interval = None;
        self.failures = 0;
        self.refusals = 0;
        let told = self.unreachable_told || self.unauthorized_told;
        self.unreachable_told = false;
        self.unauthorized_told = false;
        told.then(|| notice(EventType::ApiRecovered, "the API answers again".to_owned(), since.unwrap_or(now), now))
    }

    /// Takes note of an answer that said how long no more requests are welcome.
    pub(super) fn pause(&mut self, pause: Duration, began: Instant) {
        self.trouble = Some(Trouble::Paused);
        self.closed_until = self.closed_until.max(began + pause);
        "the request limit is reached".clone_into(&mut self.message);
    }

    /// Takes note of a poll that failed. `own_refusal` says that the API refuses just this watch.
    pub(super) fn failed(
        &mut self,
        error: &ApiError,
        own_refusal: bool,
        now: (Instant, Timestamp),
        random: &mut fastrand::Rng,
    ) -> Option<Event> {
        let (instant, wall) = now;
        self.message = error.describe();
        self.reached |= !error.is_unreached();
        self.last_failure = Some(instant);
        self.failures += 1;
        let since = *self.failing_since.get_or_insert(wall);
        if error.is_unauthorized() {
            if own_refusal {
                return None;
            }
            // Refusals of polls that went out together count as one.
            if self.trouble != Some(Trouble::Refused) || instant >= self.closed_until {
                let wait = FIRST_REFUSED_PROBES.get(self.refusals).copied().unwrap_or(REFUSED_PROBE);
                self.closed_until = instant + wait;
                self.refusals += 1;
            }
            self.trouble = Some(Trouble::Refused);
            if std::mem::replace(&mut self.unauthorized_told, true) {
                return None;
            }
            return Some(notice(EventType::ApiUnauthorized, self.message.clone(), since, wall));
        }
        if let Some(pause) = error.retry_after() {
            self.trouble = Some(Trouble::Paused);
            self.closed_until = self.closed_until.max(instant + pause);
        } else if self.trouble != Some(Trouble::Paused) || instant >= self.closed_until {
            // Failures of polls that went out together count as one: the gate was open for all of them.
            let first = self.trouble != Some(Trouble::Failing) || instant >= self.closed_until;
            self.trouble = Some(Trouble::Failing);
            if first {
                let interval = self.growth.next(self.interval);
                self.interval = Some(interval);
                self.closed_until = instant + self.growth.wait(interval, random);
            }
        }
        None
    }

    /// Why no polls go out, for people; `None` where they do.
    pub(super) fn obstacle(&self, (instant, wall): (Instant, Timestamp)) -> Option<String> {
        let since = time_of_day(self.failing_since.unwrap_or(wall));
        let opens_at = wall.checked_add(self.closed_until.saturating_duration_since(instant)).unwrap_or(wall);
        Some(match self.trouble? {
            Trouble::Failing => format!("the API has failed since {since}: {}", self.message),
            Trouble::Paused => format!("the API asked for a pause until {}: {}", time_of_day(opens_at), self.message),
            Trouble::Refused => format!("the API has refused the key since {since}: {}", self.message),
        })
    }

    /// What is to be told because of the time that has passed: that the API gives no usable answer.
    pub(super) fn overdue(&mut self, now: Timestamp) -> Option<Event> {
        let since = self.failing_since.filter(|since| now.duration_since(*since) >= UNREACHABLE_AFTER)?;
        if self.trouble.is_none() || self.unauthorized_told || std::mem::replace(&mut self.unreachable_told, true) {
            return None;
        }
        let message = format!("no usable answer for 5 minutes: {}", self.message);
        Some(notice(EventType::ApiUnreachable, message, since, now))
    }

    pub(super) fn view(&self, now: (Instant, Timestamp)) -> UpstreamView {
        let (instant, wall) = now;
        let wait = self.closed_until.saturating_duration_since(instant);
        UpstreamView {
            trouble: self.trouble,
            message: self.message.clone(),
            retry_at: self.trouble.and_then(|_| wall.checked_add(wait).ok()),
            ever_answered: self.ever_answered,
            reached: self.reached,
            failures: self.failures,
        }
    }
}

fn notice(event_type: EventType, message: String, since: Timestamp, now: Timestamp) -> Event {
    Event { event_type, timestamp: now, data: EventData::Upstream(UpstreamNotice { message, since }) }
}
