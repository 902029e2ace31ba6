//! When a fault that lasts is logged again: at growing intervals, so that a journal shows it and is not filled by it.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::BackoffPolicy;

/// The time after which a fault is logged again: 1 min at first, twice as long each time after that, at most 1 h.
const INTERVALS: BackoffPolicy = BackoffPolicy {
    initial: Duration::from_secs(60),
    multiplier: 2.0,
    max: Duration::from_secs(3600),
    jitter: 0.0,
};

/// A fault of which no line was due for this many times its interval is logged as a new one.
const FORGOTTEN_AFTER: u32 = 4;

/// Decides which occurrences of one fault are logged.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reminder {
    last: Option<LoggedLine>,
}

/// The line that was logged last.
#[derive(Debug, Clone, Copy)]
struct LoggedLine {
    at: Instant,
    /// After how long the next one is due.
    interval: Duration,
}

impl Reminder {
    /// Handles an occurrence of the fault. Returns whether it is to be logged.
    pub(crate) fn is_due(&mut self, now: Instant) -> bool {
        let interval = match self.last {
            None => None,
            Some(line) => {
                let passed = now.saturating_duration_since(line.at);
                if passed < line.interval {
                    return false;
                }
                Some(line.interval).filter(|interval| passed <= *interval * FORGOTTEN_AFTER)
            }
        };
        let interval = INTERVALS.next(interval);
        self.last = Some(LoggedLine { at: now, interval });
        true
    }

    /// Handles an occurrence that is logged in any case, as a new fault.
    pub(crate) fn restart(&mut self, now: Instant) {
        self.last = None;
        self.is_due(now);
    }

    /// Returns the time since the last line; `None` before the first one.
    pub(crate) fn since_last(&self, now: Instant) -> Option<Duration> {
        self.last.map(|line| now.saturating_duration_since(line.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_logged_at_growing_intervals_up_to_an_hour() {
        let start = Instant::now();
        let mut reminder = Reminder::default();
        let logged: Vec<_> = (0..5 * 3600)
            .filter(|second| reminder.is_due(start + Duration::from_secs(*second)))
            .collect();
        assert_eq!(
            logged,
            [0, 60, 180, 420, 900, 1860, 3780, 7380, 10_980, 14_580]
        );
        // Long after, it is a new fault.
        let later = start + Duration::from_secs(100 * 3600);
        let minute = Duration::from_secs(60);
        assert!(reminder.is_due(later) && reminder.is_due(later + minute));
        reminder.restart(later + minute * 2);
        assert!(reminder.is_due(later + minute * 3));
    }
}
