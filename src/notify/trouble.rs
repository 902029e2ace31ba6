//! How often the failures of a sink are logged: the first one, then at growing intervals.

use std::time::Duration;

use tokio::time::Instant;

/// After how long a failure of the same cause is logged again, at first; twice as long each time after that.
const FIRST_REPEAT: Duration = Duration::from_secs(60);

/// Longest time after which a failure of the same cause is logged again.
const LONGEST_REPEAT: Duration = Duration::from_secs(3600);

/// Least time between failures of different causes that are logged.
const BETWEEN_CAUSES: Duration = Duration::from_secs(10);

/// What was logged of a sink whose attempts fail.
#[derive(Debug, Default)]
pub struct SinkTrouble {
    last: Option<Logged>,
    /// Failed attempts since the last one that was logged.
    unlogged: u64,
    /// Whether a failure was logged and no success since.
    is_open: bool,
}

#[derive(Debug)]
struct Logged {
    cause: String,
    at: Instant,
    /// After how long the same cause is logged again.
    repeat: Duration,
}

impl SinkTrouble {
    /// Handles a failed attempt. Returns how many failed since the last one that was logged, this one included, if it
    /// is to be logged.
    pub(super) fn failed(&mut self, cause: &str, now: Instant) -> Option<u64> {
        self.unlogged += 1;
        let repeat = match &self.last {
            None => FIRST_REPEAT,
            Some(last) => {
                let passed = now.duration_since(last.at);
                let is_same = last.cause == cause;
                if passed < last.repeat && (is_same || passed < BETWEEN_CAUSES) {
                    return None;
                }
                // A sink that was well for long begins anew.
                if !is_same || passed > last.repeat * 4 {
                    FIRST_REPEAT
                } else {
                    (last.repeat * 2).min(LONGEST_REPEAT)
                }
            }
        };
        self.last = Some(Logged {
            cause: cause.to_owned(),
            at: now,
            repeat,
        });
        self.is_open = true;
        Some(std::mem::take(&mut self.unlogged))
    }

    /// Handles a successful attempt. Returns whether the end of the failures is to be logged. The intervals go on: a
    /// sink whose every second attempt fails would otherwise fill the log.
    pub(super) fn delivered(&mut self) -> bool {
        std::mem::take(&mut self.is_open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOWN: &str = "connection refused";

    fn seconds(at: u64) -> Instant {
        static BEGAN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        *BEGAN.get_or_init(Instant::now) + Duration::from_secs(at)
    }

    #[test]
    fn failures_are_logged_at_growing_intervals() {
        let mut trouble = SinkTrouble::default();
        let logged: Vec<_> = (0..=7200)
            .filter_map(|at| Some((at, trouble.failed(DOWN, seconds(at))?)))
            .collect();
        assert_eq!(
            logged,
            [
                (0, 1),
                (60, 60),
                (180, 120),
                (420, 240),
                (900, 480),
                (1860, 960),
                (3780, 1920)
            ]
        );
    }

    #[test]
    fn another_cause_is_logged_soon_and_two_in_turn_do_not_fill_the_log() {
        let mut trouble = SinkTrouble::default();
        assert_eq!(trouble.failed(DOWN, seconds(0)), Some(1));
        assert_eq!(trouble.failed("503", seconds(1)), None);
        assert_eq!(trouble.failed("503", seconds(20)), Some(2));
        let in_turn = (21..621).filter(|at| {
            let cause = if at % 2 == 0 { DOWN } else { "503" };
            trouble.failed(cause, seconds(*at)).is_some()
        });
        assert!(in_turn.count() <= 60);
    }

    #[test]
    fn the_end_of_failures_is_logged_once_and_a_flapping_sink_stays_quiet() {
        let mut trouble = SinkTrouble::default();
        assert!(!trouble.delivered());
        assert_eq!(trouble.failed(DOWN, seconds(0)), Some(1));
        assert!(trouble.delivered());
        assert_eq!(trouble.failed(DOWN, seconds(1)), None);
        assert!(!trouble.delivered());
        // Long after, it is news again.
        assert_eq!(trouble.failed(DOWN, seconds(1000)), Some(2));
        assert_eq!(trouble.failed(DOWN, seconds(1060)), Some(1));
    }
}
