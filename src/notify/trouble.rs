//! How often the failures of a sink are logged: the first one, then at growing intervals.

use std::time::Duration;

use tokio::time::Instant;

use crate::reminder::Reminder;

/// Least time between failures of different causes that are logged.
const BETWEEN_CAUSES: Duration = Duration::from_secs(10);

/// What was logged of a sink whose attempts fail.
#[derive(Debug, Default)]
pub struct SinkTrouble {
    reminder: Reminder,
    /// The cause that was logged last.
    cause: String,
    /// Failed attempts since the last one that was logged.
    unlogged: u64,
    /// Whether a failure was logged and no success since.
    is_open: bool,
}

impl SinkTrouble {
    /// Handles a failed attempt. Returns how many failed since the last one that was logged, this one included, if it
    /// is to be logged.
    pub(super) fn failed(&mut self, cause: &str, now: Instant) -> Option<u64> {
        self.unlogged += 1;
        let is_other = self.cause != cause;
        let passed = self.reminder.since_last(now);
        if is_other && passed.is_none_or(|passed| passed >= BETWEEN_CAUSES) {
            self.reminder.restart(now);
        } else if !self.reminder.is_due(now) {
            return None;
        }
        cause.clone_into(&mut self.cause);
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
