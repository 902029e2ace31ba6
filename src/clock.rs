//! The time: one source for the wall clock and for how long things take.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp, Unit};
use tokio::time::Instant;

use crate::domain::DeliveryId;
use crate::failpoint::mutant;

/// The time as the engine sees it.
///
/// [`Clock::system`] reads the machine's clocks. [`Clock::simulated`] follows tokio's time, which tests
/// pause and advance, and can be made to jump.
#[derive(Debug, Clone)]
pub struct Clock(Arc<Clocks>);

#[derive(Debug)]
struct Clocks {
    started: Instant,
    source: Source,
    /// A time of a shared store, and the time since boot when it was read.
    anchor: Mutex<Option<(Timestamp, Duration)>>,
}

#[derive(Debug)]
enum Source {
    System,
    Simulated {
        base: Timestamp,
        percent: u32,
        jumped: Mutex<Jump>,
        /// How much of tokio's time the machine was suspended.
        suspended: Mutex<Duration>,
    },
}

/// What happened to the clocks between two readings, besides time passing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Jump {
    /// How long the machine slept: timers stood still, time went on.
    pub slept: Duration,
    /// How far the wall clock was set forward (positive) or back.
    pub stepped: SignedDuration,
}

/// Differences below this are the ordinary slewing of a disciplined clock and the time that passes
/// between reading two clocks.
const SMALLEST_JUMP: SignedDuration = SignedDuration::from_secs(2);

/// Differences from the clock of a shared store below this are ordinary drift.
const SMALLEST_CORRECTION: SignedDuration = SignedDuration::from_millis(50);

/// One reading of all clocks.
#[derive(Debug, Clone, Copy)]
pub struct ClockReading {
    /// The wall clock, in whole milliseconds.
    pub wall: Timestamp,
    /// Time since start as timers see it: stands still while the machine sleeps.
    awake: Duration,
    /// Time since start including sleep; not moved by setting the wall clock.
    passed: Duration,
}

/// One moment on both clocks: the one of timers, and the one on the wall.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For intervals and timers.
    pub instant: Instant,
    /// For people, events and the store.
    pub wall: Timestamp,
}

impl Clock {
    /// The machine's clocks.
    pub fn system() -> Self {
        Self::of(Source::System)
    }

    /// A wall clock that shows `base` now and follows tokio's time from here on.
    pub fn simulated(base: Timestamp) -> Self {
        Self::simulated_at_rate(base, 100)
    }

    /// A clock that shows `base` now, in which `percent` seconds pass for 100 of tokio's time.
    pub fn simulated_at_rate(base: Timestamp, percent: u32) -> Self {
        Self::of(Source::Simulated {
            base,
            percent,
            jumped: Mutex::default(),
            suspended: Mutex::default(),
        })
    }

    fn of(source: Source) -> Self {
        Self(Arc::new(Clocks {
            started: Instant::now(),
            source,
            anchor: Mutex::default(),
        }))
    }

    /// Lets a simulated clock jump; a system clock cannot be moved and ignores it.
    pub fn jump(&self, jump: Jump) {
        if let Source::Simulated { jumped, .. } = &self.0.source {
            let mut total = jumped.lock().expect("no holder panics");
            total.slept += jump.slept;
            total.stepped += jump.stepped;
        }
    }

    /// Lets the last `time` of tokio's time be one in which the machine of a simulated clock was suspended; a system clock
    /// ignores it.
    pub fn suspend(&self, time: Duration) {
        if let Source::Simulated { suspended, .. } = &self.0.source {
            *suspended.lock().expect("no holder panics") += time;
        }
    }

    /// Time since start, including the time that the machine slept; setting the wall clock does not move it.
    pub fn passed(&self) -> Duration {
        self.read().passed
    }

    /// Follows the clock of a shared store, which showed `at` at some time since [`Clock::passed`] was `since`: all daemons
    /// agree on deadlines, and setting this machine's clock has no effect. A reading that is possible, to 50 ms, stays:
    /// however long the answer took, it is not known when the store read its clock. Any other one becomes the nearest that
    /// is possible. Returns how far this machine's own clock is ahead of that.
    pub fn follow(&self, at: Timestamp, since: Duration) -> SignedDuration {
        let own = self.0.own();
        let reading = self.read();
        let took = own.passed.saturating_sub(since);
        let latest = at.saturating_add(took).unwrap_or(Timestamp::MAX);
        let nearest = reading.wall.clamp(at, latest);
        let mut anchor = self.0.anchor.lock().expect("no holder panics");
        if anchor.is_none() || reading.wall.duration_since(nearest).abs() >= SMALLEST_CORRECTION {
            *anchor = Some((nearest, own.passed));
        }
        own.wall.duration_since(nearest)
    }

    /// The wall clock, in whole milliseconds: what is stored and sent is what is compared.
    pub fn now(&self) -> Timestamp {
        self.read().wall
    }

    /// Reads all clocks.
    pub fn read(&self) -> ClockReading {
        let own = self.0.own();
        let anchor = *self.0.anchor.lock().expect("no holder panics");
        let wall =
            anchor.and_then(|(at, then)| at.checked_add(own.passed.saturating_sub(then)).ok());
        ClockReading {
            wall: whole_milliseconds(wall.unwrap_or(own.wall)),
            ..own
        }
    }
}

impl Clocks {
    /// Reads the clocks of this machine, whatever the one of a shared store shows.
    fn own(&self) -> ClockReading {
        let elapsed = self.started.elapsed();
        match &self.source {
            Source::System => ClockReading {
                wall: Timestamp::now(),
                awake: elapsed,
                passed: time_since_boot().unwrap_or(elapsed),
            },
            Source::Simulated {
                base,
                percent,
                jumped,
                suspended,
            } => {
                let suspended = *suspended.lock().expect("no holder panics");
                let awake = elapsed.saturating_sub(suspended) * *percent / 100;
                let jumped = *jumped.lock().expect("no holder panics");
                let time = elapsed * *percent / 100 + jumped.slept;
                let passed = if mutant("clock-stops-in-suspend") {
                    awake
                } else {
                    time
                };
                let wall = base
                    .checked_add(time)
                    .and_then(|wall| wall.checked_add(jumped.stepped));
                ClockReading {
                    wall: wall.unwrap_or(Timestamp::MAX),
                    awake,
                    passed,
                }
            }
        }
    }
}

impl ClockReading {
    /// What happened to the clocks since an earlier reading; `None` for nothing worth acting on.
    pub fn jump_since(&self, earlier: &ClockReading) -> Option<Jump> {
        let span =
            |duration: Duration| SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
        let passed = span(self.passed.saturating_sub(earlier.passed));
        let awake = span(self.awake.saturating_sub(earlier.awake));
        let slept = passed - awake;
        let stepped = self.wall.duration_since(earlier.wall) - passed;
        let counts = |jump: SignedDuration| {
            if jump.abs() < SMALLEST_JUMP {
                SignedDuration::ZERO
            } else {
                jump
            }
        };
        let jump = Jump {
            slept: counts(slept).try_into().unwrap_or_default(),
            stepped: counts(stepped),
        };
        (jump != Jump::default()).then_some(jump)
    }
}

fn whole_milliseconds(timestamp: Timestamp) -> Timestamp {
    timestamp.round(Unit::Millisecond).unwrap_or(timestamp)
}

/// Linux counts the time since boot with and without sleep (clock_gettime(2), `CLOCK_BOOTTIME`).
/// Elsewhere a sleep looks like a step of the wall clock, which leads to a poll at once just as well.
#[cfg(target_os = "linux")]
fn time_since_boot() -> Option<Duration> {
    Duration::try_from(rustix::time::clock_gettime(rustix::time::ClockId::Boottime)).ok()
}

#[cfg(not(target_os = "linux"))]
fn time_since_boot() -> Option<Duration> {
    None
}

/// A new ID of a delivery. IDs that one process makes sort in the order in which they were made, whatever happens to its
/// clock; those of several processes sort by the time of the clock, in milliseconds (RFC 9562, UUID version 7).
pub(crate) fn new_delivery_id() -> DeliveryId {
    DeliveryId::of(uuid::Uuid::now_v7().as_u128())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_sleep_and_a_step_are_distinguished() {
        let clock = Clock::simulated("2026-01-01T00:00:00Z".parse().unwrap());
        let first = clock.read();
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(clock.read().jump_since(&first), None);
        assert_eq!(clock.now().to_string(), "2026-01-01T00:00:30Z");

        let slept = Jump {
            slept: Duration::from_secs(3600),
            stepped: SignedDuration::ZERO,
        };
        clock.jump(slept);
        assert_eq!(clock.read().jump_since(&first), Some(slept));
        assert_eq!(clock.now().to_string(), "2026-01-01T01:00:30Z");

        let second = clock.read();
        let stepped = Jump {
            slept: Duration::ZERO,
            stepped: SignedDuration::from_secs(-60),
        };
        clock.jump(stepped);
        assert_eq!(clock.read().jump_since(&second), Some(stepped));
    }

    #[test]
    fn a_clock_follows_the_one_of_the_store() {
        let clock = Clock::system();
        let at: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let ahead = clock.follow(at, clock.passed());
        assert!(ahead < SignedDuration::from_hours(-1), "{ahead}");
        let shown = clock.now().duration_since(at);
        assert!(shown < SignedDuration::from_secs(60), "{shown}");
        // A small difference changes nothing, and a large one does.
        let later = at + SignedDuration::from_hours(1);
        clock.follow(later, clock.passed());
        assert!(clock.now() >= later);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_of_the_store_that_took_long_makes_no_right_clock_wrong() {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let clock = Clock::simulated(start);
        let long = Duration::from_secs(20);
        for read_after in [0, 10, 20] {
            let (began, since) = (clock.now(), clock.passed());
            tokio::time::advance(long).await;
            let ahead = clock.follow(began + Duration::from_secs(read_after), since);
            assert_eq!(ahead, SignedDuration::ZERO, "read after {read_after} s");
            assert_eq!(clock.now(), began + long);
        }
        // One that cannot be right is corrected as far as is known.
        let since = clock.passed();
        tokio::time::advance(long).await;
        let at = clock.now() + Duration::from_secs(3600);
        assert_eq!(clock.follow(at, since), SignedDuration::from_hours(-1));
        assert_eq!(clock.now(), at);
    }

    #[test]
    fn the_system_clock_does_not_jump_by_being_read() {
        let clock = Clock::system();
        let first = clock.read();
        assert_eq!(clock.read().jump_since(&first), None);
    }
}
