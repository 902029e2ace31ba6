//! The request budget: at most so many requests in any 60 seconds.

use std::time::Duration;

use tokio::time::Instant;

use crate::failpoint::mutant;

/// The window of a budget.
const WINDOW: Duration = Duration::from_secs(60);

/// A request budget that holds in every window of 60 seconds, wherever it begins.
///
/// It is the generic cell rate algorithm (ITU-T I.371): requests are spread evenly, and after a pause
/// a burst may go out at once. A burst of `b` and one request per interval `T` make at most
/// `b + 60 s / T - 1` requests in a window, so with a quarter of the budget kept for bursts, `T` is such
/// that the sum is the budget; three quarters of it can be used without a break.
#[derive(Debug)]
pub(super) struct Budget {
    interval: Duration,
    burst_span: Duration,
    /// When the requests so far would have ended if they had been spread evenly.
    spread_until: Instant,
    per_minute: u32,
    sent: SentRequests,
}

/// How many requests are sent, and may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Requests of the last 60 seconds, to the second.
    pub last_minute: u64,
    /// The most in any 60 seconds.
    pub per_minute: u32,
    /// Requests since the start.
    pub total: u64,
    /// The active watches, which share it.
    pub watches: usize,
}

/// Requests sent, counted per second.
#[derive(Debug, Clone)]
struct SentRequests {
    began: Instant,
    /// The number of the newest second.
    second: u64,
    /// The last 60 seconds; that with the number `n` is at `n % 60`.
    counts: [u32; 60],
    total: u64,
}

impl SentRequests {
    fn new(began: Instant) -> Self {
        Self {
            began,
            second: 0,
            counts: [0; 60],
            total: 0,
        }
    }

    /// Forgets the seconds that are over for a minute.
    fn advance(&mut self, now: Instant) {
        let second = now.saturating_duration_since(self.began).as_secs();
        for over in self.second.max(second.saturating_sub(60)) + 1..=second {
            *self.at(over) = 0;
        }
        self.second = self.second.max(second);
    }

    fn at(&mut self, second: u64) -> &mut u32 {
        let index = usize::try_from(second % 60).expect("less than 60");
        &mut self.counts[index]
    }
}

impl Budget {
    /// A budget of `per_minute` requests, 1 or more, none of it used at `now`.
    pub(super) fn new(per_minute: u32, now: Instant) -> Self {
        let per_minute = per_minute.max(1);
        let burst = (per_minute / 4).max(1);
        let interval = WINDOW / (per_minute - burst + 1);
        // Rounding down could fit one request more into a window.
        let interval = interval + Duration::from_nanos(1);
        Self {
            interval,
            burst_span: interval * (burst - 1),
            spread_until: now,
            per_minute,
            sent: SentRequests::new(now),
        }
    }

    /// Returns the budget that follows this one: `per_minute` requests, the burst of which counts as
    /// used. What was to wait for its turn goes on waiting.
    pub(super) fn changed_to(&self, per_minute: u32, now: Instant) -> Self {
        let mut changed = Self::new(per_minute, now);
        if changed.interval == self.interval {
            changed.spread_until = self.spread_until;
        } else {
            let next_at = self.next_at().max(now + changed.interval);
            changed.spread_until = next_at + changed.burst_span;
        }
        changed.sent.clone_from(&self.sent);
        changed
    }

    /// Counts the whole burst as used at `now`, because a previous process may have used it.
    pub(super) fn use_up(&mut self, now: Instant) {
        if !mutant("budget-anew") {
            self.spread_until = self.spread_until.max(now + self.burst_span + self.interval);
        }
    }

    /// The time from one request to the next, where no burst is left.
    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    /// When the next request may go out: `now` or earlier means at once.
    pub(super) fn next_at(&self) -> Instant {
        self.spread_until
            .checked_sub(self.burst_span)
            .unwrap_or(self.spread_until)
    }

    /// Takes one request from the budget. Returns false if there is none at `now`.
    pub(super) fn try_take(&mut self, now: Instant) -> bool {
        let spread_until = self.spread_until.max(now);
        if spread_until.duration_since(now) > self.burst_span {
            return false;
        }
        self.spread_until = spread_until + self.interval;
        self.sent.advance(now);
        let second = self.sent.second;
        *self.sent.at(second) += 1;
        self.sent.total += 1;
        true
    }

    /// Counts requests that were sent beyond the one that was taken: the next ones wait for them.
    pub(super) fn charge(&mut self, requests: u32, now: Instant) {
        self.spread_until = self.spread_until.max(now) + self.interval * requests;
        self.sent.advance(now);
        let second = self.sent.second;
        *self.sent.at(second) += requests;
        self.sent.total += u64::from(requests);
    }

    /// Returns how much of it is used at `now` for so many watches.
    pub(super) fn usage(&mut self, now: Instant, watches: usize) -> Usage {
        self.sent.advance(now);
        Usage {
            last_minute: self.sent.counts.iter().copied().map(u64::from).sum(),
            per_minute: self.per_minute,
            total: self.sent.total,
            watches,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_window_holds_more_than_the_budget(
            per_minute in 1_u32..200,
            gaps in proptest::collection::vec(0_u64..200, 1..100),
        ) {
            let start = Instant::now();
            let mut budget = Budget::new(per_minute, start);
            let mut now = start;
            let mut taken = Vec::new();
            // Greedy for a while at each point: the worst a scheduler could do.
            for gap in gaps {
                now = now.max(budget.next_at()).max(start) + Duration::from_millis(gap % 7 * gap);
                for _ in 0..per_minute {
                    if budget.try_take(now) {
                        taken.push(now);
                    }
                }
            }
            for (index, first) in taken.iter().enumerate() {
                let in_window = taken[index..].iter().take_while(|at| at.duration_since(*first) < WINDOW).count();
                prop_assert!(in_window <= per_minute as usize, "{in_window} requests in 60 s of {per_minute}");
            }
        }

        #[test]
        fn no_window_holds_more_than_the_larger_budget_where_it_changes(
            budgets in proptest::collection::vec(1_u32..200, 2..6),
            gaps in proptest::collection::vec(0_u64..200, 1..40),
        ) {
            let start = Instant::now();
            let mut budget = Budget::new(budgets[0], start);
            let (mut now, mut taken) = (start, Vec::new());
            for per_minute in &budgets {
                budget = budget.changed_to(*per_minute, now);
                for gap in &gaps {
                    while budget.try_take(now) {
                        taken.push(now);
                    }
                    now += Duration::from_millis(gap % 7 * gap);
                }
            }
            let largest = budgets.iter().copied().max().unwrap_or(1) as usize;
            for (index, first) in taken.iter().enumerate() {
                let in_window = taken[index..].iter().take_while(|at| at.duration_since(*first) < WINDOW).count();
                prop_assert!(in_window <= largest, "{in_window} requests in 60 s of {largest}");
            }
        }

        #[test]
        fn a_request_is_to_be_had_when_it_was_promised(per_minute in 1_u32..100_000) {
            let now = Instant::now();
            let mut budget = Budget::new(per_minute, now);
            while budget.try_take(now) {}
            let next = budget.next_at();
            prop_assert!(next > now && next <= now + WINDOW + Duration::from_millis(1));
            prop_assert!(budget.try_take(next));
        }
    }

    proptest! {
        #[test]
        fn a_restart_puts_no_more_into_a_window(
            per_minute in 1_u32..200,
            lives in proptest::collection::vec(0_u64..90_000, 1..20),
        ) {
            let start = Instant::now();
            let (mut now, mut taken) = (start, Vec::new());
            for (life, milliseconds) in lives.into_iter().enumerate() {
                let mut budget = Budget::new(per_minute, now);
                if life > 0 {
                    budget.use_up(now);
                }
                let dies = now + Duration::from_millis(milliseconds);
                while now < dies {
                    if budget.try_take(now) {
                        taken.push(now);
                    } else {
                        now = budget.next_at();
                    }
                }
                now = dies;
            }
            for window in taken.windows(per_minute as usize + 1) {
                prop_assert!(window[per_minute as usize].duration_since(window[0]) >= WINDOW);
            }
        }
    }

    #[test]
    fn second_requests_of_a_poll_delay_the_next_ones() {
        let start = Instant::now();
        let mut budget = Budget::new(60, start);
        while budget.try_take(start) {}
        let next = budget.next_at();
        budget.charge(2, start);
        assert_eq!(budget.next_at(), next + 2 * budget.interval);
        assert_eq!(budget.usage(start, 1).last_minute, 17);
        budget.charge(0, start);
        assert_eq!(budget.usage(start, 1).total, 17);
    }

    #[test]
    fn a_changed_budget_begins_without_its_burst_and_an_equal_one_goes_on() {
        let start = Instant::now();
        let mut budget = Budget::new(60, start);
        assert!(budget.try_take(start));
        assert_eq!(
            budget.changed_to(60, start).spread_until,
            budget.spread_until
        );
        let taken_at_once = |mut budget: Budget| {
            let mut taken = 0;
            while budget.try_take(start) {
                taken += 1;
            }
            taken
        };
        assert_eq!(taken_at_once(budget.changed_to(60, start)), 14);
        assert_eq!(taken_at_once(budget.changed_to(120, start)), 0);
        assert_eq!(taken_at_once(Budget::new(120, start)), 30);
        // What further requests of a poll cost is not forgotten.
        budget.charge(60, start);
        assert!(budget.next_at() > start + WINDOW / 2);
        assert_eq!(budget.changed_to(120, start).next_at(), budget.next_at());
    }

    #[test]
    fn three_quarters_of_the_budget_can_be_used_without_a_break() {
        let start = Instant::now();
        let mut budget = Budget::new(60, start);
        let (mut now, mut taken) = (start, 0);
        while now < start + WINDOW * 60 {
            now = now.max(budget.next_at());
            assert!(budget.try_take(now));
            taken += 1;
        }
        assert!(
            (45 * 60..=60 * 60).contains(&taken),
            "{taken} requests in an hour"
        );
    }

    #[test]
    fn the_requests_of_the_last_minute_are_counted() {
        let start = Instant::now();
        let mut budget = Budget::new(60, start);
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        for second in [0, 0, 1, 30] {
            assert!(budget.try_take(at(second)));
        }
        let used = |budget: &mut Budget, second| budget.usage(at(second), 1).last_minute;
        let counted = [30, 59, 60, 61, 89, 90, 5_000].map(|second| used(&mut budget, second));
        assert_eq!(counted, [4, 4, 2, 1, 1, 0, 0]);
        let usage = budget.changed_to(120, at(5_000)).usage(at(5_000), 1);
        assert_eq!((usage.per_minute, usage.total), (120, 4));
    }
}
