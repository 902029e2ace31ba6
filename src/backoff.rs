//! How an interval grows. The only module that knows the `backoff` crate, so that it can be replaced
//! in one place.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;

/// The rule by which an interval grows.
#[derive(Debug, Clone, PartialEq)]
pub struct BackoffPolicy {
    /// The first interval.
    pub initial: Duration,
    /// Factor from one interval to the next, 1 or more.
    pub multiplier: f64,
    /// The longest interval.
    pub max: Duration,
    /// Largest part of an interval by which a wait may be shorter, 0 to less than 1. A wait is never
    /// longer than its interval, so that promises about delays hold with jitter too.
    pub jitter: f64,
}

impl BackoffPolicy {
    /// The same interval every time, exactly.
    pub fn fixed(interval: Duration) -> Self {
        Self {
            initial: interval,
            multiplier: 1.0,
            max: interval,
            jitter: 0.0,
        }
    }

    /// The interval after `current`; the first one when there is none.
    pub fn next(&self, current: Option<Duration>) -> Duration {
        let Some(current) = current else {
            return self.initial.min(self.max);
        };
        // The crate hands out the current interval and grows the one after it, and by default gives up
        // after 15 minutes. Its jitter is not used: it would make waits longer, too, and cannot be seeded.
        let mut growth = ExponentialBackoff {
            current_interval: current,
            multiplier: self.multiplier,
            max_interval: self.max,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        let handed_out = growth.next_backoff();
        debug_assert!(
            handed_out.is_some(),
            "without a limit in time it never gives up"
        );
        growth.current_interval.min(self.max)
    }

    /// The interval that a wait of `waited` in all leads to: each interval is longer than the one before
    /// by its factor, so their sum grows as the interval itself does.
    pub fn interval_after(&self, waited: Duration) -> Duration {
        let grown = self.initial.as_secs_f64() + waited.as_secs_f64() * (self.multiplier - 1.0);
        Duration::try_from_secs_f64(grown)
            .unwrap_or(self.max)
            .min(self.max)
    }

    /// How long to wait in an interval: all of it, less a random part of at most `jitter`.
    pub fn wait(&self, interval: Duration, random: &mut fastrand::Rng) -> Duration {
        interval.mul_f64(1.0 - self.jitter * random.f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn default_backoff() -> BackoffPolicy {
        BackoffPolicy {
            initial: Duration::from_secs(1),
            multiplier: 1.2,
            max: Duration::from_secs(30),
            jitter: 0.1,
        }
    }

    #[test]
    fn an_interval_is_at_most_a_fifth_of_the_time_waited_and_the_first_one() {
        let growth = default_backoff();
        let (mut waited, mut interval) = (Duration::ZERO, None);
        for _ in 0..60 {
            let next = growth.next(interval);
            assert!(
                next <= growth.initial + waited.mul_f64(0.2) + Duration::from_micros(1),
                "{next:?} after {waited:?}"
            );
            waited += next;
            interval = Some(next);
        }
        assert_eq!(interval, Some(growth.max));
    }

    #[test]
    fn the_interval_after_a_time_is_the_one_it_would_have_grown_to() {
        let growth = default_backoff();
        let (mut waited, mut interval) = (Duration::ZERO, growth.next(None));
        for _ in 0..40 {
            let resumed = growth.interval_after(waited).as_secs_f64();
            assert!(
                (resumed - interval.as_secs_f64()).abs() < 0.001,
                "{resumed} s after {waited:?}, not {interval:?}"
            );
            waited += interval;
            interval = growth.next(Some(interval));
        }
        assert_eq!(growth.interval_after(Duration::MAX), growth.max);
    }

    #[test]
    fn it_never_gives_up() {
        let growth = BackoffPolicy::fixed(Duration::from_secs(3600));
        let last = (0..1000).fold(None, |interval, _| Some(growth.next(interval)));
        assert_eq!(last, Some(Duration::from_secs(3600)));
    }

    proptest! {
        #[test]
        fn intervals_grow_to_the_cap_and_waits_stay_within(
            initial in 50_u64..10_000, cap in 50_u64..100_000, multiplier in 1.0_f64..5.0, jitter in 0.0_f64..0.99, seed: u64,
        ) {
            let cap = cap.max(initial);
            let growth = BackoffPolicy {
                initial: Duration::from_millis(initial), multiplier, max: Duration::from_millis(cap), jitter,
            };
            let mut random = fastrand::Rng::with_seed(seed);
            let mut interval = growth.next(None);
            for _ in 0..50 {
                let wait = growth.wait(interval, &mut random);
                prop_assert!(wait <= interval && wait >= interval.mul_f64((1.0 - jitter).max(0.0)) - Duration::from_nanos(1));
                let next = growth.next(Some(interval));
                prop_assert!(next >= interval && next <= growth.max);
                interval = next;
            }
        }
    }
}
