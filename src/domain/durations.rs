//! How long runs of a group took, and what that says about one that goes on.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;

use super::ProviderName;
use crate::text::humanize;

/// How many durations of a group are kept, the newest: enough for a 90th percentile, and few enough that a group that
/// became faster or slower is judged by how it is now.
pub const KEPT_DURATIONS: usize = 50;

/// Most groups of a provider whose durations are kept: those whose runs ended last.
pub const KEPT_GROUPS: usize = 1_000;

/// The smallest number of durations from which the usual one is computed.
const LEAST_DURATIONS: usize = 3;

/// Beyond how many times the 10th percentile the 90th makes a range of what is usual: durations with two peaks, or that
/// differ much, have no point that is true of most of them.
const RANGE: u64 = 3;

/// The shortest 10th percentile that counts for that, in milliseconds: APIs have whole seconds.
const LEAST_BEGINNING: u64 = 1_000;

/// A run that succeeded, as the durations of its group know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PastRun<'a> {
    /// The provider.
    pub provider: &'a ProviderName,
    /// What runs that are alike have in common.
    pub group: &'a str,
    /// From start to end, in milliseconds.
    pub ran_ms: u64,
}

/// How long runs of a group usually take, in milliseconds: values that occurred (nearest rank), in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsualDuration {
    /// The 10th percentile.
    pub p10_ms: u64,
    /// The median.
    pub median_ms: u64,
    /// The 90th percentile.
    pub p90_ms: u64,
}

/// How much longer a run takes that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeLeft {
    /// About this long.
    About(Duration),
    /// At most this long, in nine of ten cases.
    UpTo(Duration),
    /// It takes longer than nine of ten others.
    LongerThanUsual,
}

impl UsualDuration {
    /// What is usual by `durations`; `None` where there are fewer than three.
    pub fn of(durations: impl IntoIterator<Item = u64>) -> Option<Self> {
        let mut sorted: Vec<u64> = durations.into_iter().collect();
        if sorted.len() < LEAST_DURATIONS {
            return None;
        }
        sorted.sort_unstable();
        let percentile = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100);
            sorted[rank.saturating_sub(1)]
        };
        Some(Self {
            p10_ms: percentile(10),
            median_ms: percentile(50),
            p90_ms: percentile(90),
        })
    }

    /// Whether durations differ so much that a range says more than a point.
    pub fn is_range(&self) -> bool {
        self.p90_ms > self.p10_ms.max(LEAST_BEGINNING).saturating_mul(RANGE)
    }

    /// In words: `8m`, or `2m to 20m` where no point is true of most.
    pub fn text(&self) -> String {
        self.text_with(humanize)
    }

    /// As [`UsualDuration::text`], with durations as `shown` writes them.
    pub fn text_with(&self, shown: impl Fn(Duration) -> String) -> String {
        let shown = |ms| shown(Duration::from_millis(ms));
        if self.is_range() {
            format!("{} to {}", shown(self.p10_ms), shown(self.p90_ms))
        } else {
            shown(self.median_ms)
        }
    }

    /// After how long a run is overdue where that follows from what is usual: twice the 90th percentile.
    pub fn overdue_after(&self) -> Duration {
        Duration::from_millis(self.p90_ms.saturating_mul(2))
    }

    /// How much longer a run takes that has run for so long.
    pub fn left_after(&self, ran: Duration) -> TimeLeft {
        let longest = Duration::from_millis(self.p90_ms);
        let is_narrow = self.p90_ms.saturating_mul(2) <= self.median_ms.saturating_mul(3);
        match longest.checked_sub(ran).filter(|left| !left.is_zero()) {
            None => TimeLeft::LongerThanUsual,
            Some(left) if is_narrow => TimeLeft::About(left),
            Some(left) => TimeLeft::UpTo(left),
        }
    }

    /// Which share of the 90th percentile has passed for a run that has run for so long, from 0 to 1.
    pub fn share_after(&self, ran: Duration) -> f64 {
        let longest = Duration::from_millis(self.p90_ms);
        if ran >= longest {
            1.0
        } else {
            ran.as_secs_f64() / longest.as_secs_f64()
        }
    }
}

/// How long a run that goes on is expected to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expectation {
    /// When it started.
    pub started_at: Timestamp,
    /// How long runs of its group usually take.
    pub usual: UsualDuration,
}

impl Expectation {
    /// When it is overdue where that follows from what is usual.
    pub fn overdue_at(&self) -> Timestamp {
        let after = self.usual.overdue_after();
        self.started_at.checked_add(after).unwrap_or(Timestamp::MAX)
    }

    /// For how long it has run at `now`; zero where the clock of the API is ahead.
    pub fn ran_at(&self, now: Timestamp) -> Duration {
        Duration::try_from(now.duration_since(self.started_at)).unwrap_or_default()
    }
}

/// The durations of the groups of one provider.
#[derive(Debug, Default)]
pub struct PastDurations {
    groups: HashMap<Box<str>, GroupDurations>,
    /// How many durations were ever added.
    added: u64,
}

#[derive(Debug)]
struct GroupDurations {
    /// The newest durations in milliseconds, the oldest first.
    ran_ms: Vec<u64>,
    usual: Option<UsualDuration>,
    /// The number of the newest.
    newest: u64,
}

impl PastDurations {
    /// Those of these groups, the group whose run ended last at the end.
    pub fn of(groups: impl IntoIterator<Item = (String, Vec<u64>)>) -> Self {
        let mut past = Self::default();
        for (group, ran_ms) in groups {
            past.added += 1;
            let usual = UsualDuration::of(ran_ms.iter().copied());
            let newest = past.added;
            let known = GroupDurations {
                ran_ms,
                usual,
                newest,
            };
            past.groups.insert(group.into_boxed_str(), known);
        }
        past
    }

    /// What is usual for a group, where that is known.
    pub fn usual(&self, group: &str) -> Option<UsualDuration> {
        self.groups.get(group)?.usual
    }

    /// Adds the duration of a run that ended. The store does the same.
    pub fn add(&mut self, group: &str, ran_ms: u64) {
        self.added += 1;
        let newest = self.added;
        if let Some(known) = self.groups.get_mut(group) {
            if known.ran_ms.len() >= KEPT_DURATIONS {
                known.ran_ms.remove(0);
            }
            known.ran_ms.push(ran_ms);
            known.usual = UsualDuration::of(known.ran_ms.iter().copied());
            known.newest = newest;
            return;
        }
        if self.groups.len() >= KEPT_GROUPS {
            let oldest = self.groups.iter().min_by_key(|(_, known)| known.newest);
            if let Some(oldest) = oldest.map(|(group, _)| group.clone()) {
                self.groups.remove(&oldest);
            }
        }
        let known = GroupDurations {
            ran_ms: vec![ran_ms],
            usual: None,
            newest,
        };
        self.groups.insert(group.into(), known);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: u64 = 60_000;

    fn usual(durations: &[u64]) -> UsualDuration {
        UsualDuration::of(durations.iter().copied()).unwrap()
    }

    #[test]
    fn two_durations_say_nothing_and_three_do() {
        assert_eq!(UsualDuration::of([1, 2]), None);
        let of_three = usual(&[30, 10, 20]);
        assert_eq!(
            (of_three.p10_ms, of_three.median_ms, of_three.p90_ms),
            (10, 20, 30)
        );
        let of_ten: Vec<u64> = (1..=10).rev().collect();
        let of_ten = usual(&of_ten);
        assert_eq!((of_ten.p10_ms, of_ten.median_ms, of_ten.p90_ms), (1, 5, 9));
    }

    #[test]
    fn two_peaks_are_a_range_whichever_has_more() {
        for short in [2, 5, 8] {
            let durations = (0..10).map(|n| if n < short { MINUTE } else { 20 * MINUTE });
            let usual = UsualDuration::of(durations).unwrap();
            assert!(usual.is_range(), "{short}");
            assert_eq!(usual.text(), "1m to 20m");
        }
        let alike = usual(&[7 * MINUTE, 8 * MINUTE, 9 * MINUTE]);
        assert_eq!(alike.text(), "8m");
        // Differences of a whole second are those of the API's clock.
        assert_eq!(usual(&[0, 1_000, 2_000, 3_000]).text(), "1s");
    }

    #[test]
    fn what_is_left_is_a_point_an_upper_limit_or_nothing_that_is_known() {
        let alike = usual(&[60_000, 69_000, 70_000]);
        let after = |seconds| alike.left_after(Duration::from_secs(seconds));
        assert_eq!(after(0), TimeLeft::About(Duration::from_secs(70)));
        assert_eq!(after(69), TimeLeft::About(Duration::from_secs(1)));
        assert_eq!(after(70), TimeLeft::LongerThanUsual);
        assert_eq!(alike.overdue_after(), Duration::from_secs(140));
        let apart = usual(&[MINUTE, MINUTE, 20 * MINUTE]);
        assert_eq!(
            apart.left_after(Duration::from_secs(120)),
            TimeLeft::UpTo(Duration::from_secs(18 * 60))
        );
        let nothing = usual(&[0, 0, 0]);
        assert_eq!(
            nothing.left_after(Duration::ZERO),
            TimeLeft::LongerThanUsual
        );
        assert_eq!(nothing.share_after(Duration::ZERO), 1.0);
    }

    #[test]
    fn the_newest_durations_and_groups_are_kept() {
        let mut past = PastDurations::of([("a".to_owned(), vec![9; 3])]);
        assert_eq!(past.usual("a").unwrap().median_ms, 9);
        for ran_ms in 1..=50 {
            past.add("a", ran_ms);
        }
        assert_eq!(past.usual("a").unwrap().median_ms, 25);
        assert_eq!(past.usual("b"), None);
        for group in 1..KEPT_GROUPS {
            past.add(&format!("group {group}"), 1);
        }
        past.add("a", 51);
        past.add("one more", 1);
        assert_eq!(past.groups.len(), KEPT_GROUPS);
        assert!(past.usual("a").is_some());
        assert!(!past.groups.contains_key("group 1"));
    }

    proptest! {
        #[test]
        fn percentiles_occurred_are_in_order_and_divide_the_durations(
            durations in prop::collection::vec(any::<u64>(), 3..60),
        ) {
            let usual = UsualDuration::of(durations.iter().copied()).unwrap();
            let values = [(10, usual.p10_ms), (50, usual.median_ms), (90, usual.p90_ms)];
            for (percent, value) in values {
                prop_assert!(durations.contains(&value));
                // The value is the smallest one that at least so many durations do not exceed.
                let up_to = |value| durations.iter().filter(|ran| **ran <= value).count() * 100;
                let below = durations.iter().filter(|ran| **ran < value).count() * 100;
                prop_assert!(up_to(value) >= percent * durations.len());
                prop_assert!(below < percent * durations.len());
            }
            prop_assert!(usual.p10_ms <= usual.median_ms && usual.median_ms <= usual.p90_ms);
        }

        #[test]
        fn the_bar_grows_to_its_end_and_stays_there(
            durations in prop::collection::vec(0..10_000_000_u64, 3..60),
            ran in 0..20_000_000_u64,
        ) {
            let usual = UsualDuration::of(durations).unwrap();
            let (ran, later) = (Duration::from_millis(ran), Duration::from_millis(ran + 1));
            let share = usual.share_after(ran);
            prop_assert!((0.0..=1.0).contains(&share));
            prop_assert!(usual.share_after(later) >= share);
            let is_longer = usual.left_after(ran) == TimeLeft::LongerThanUsual;
            prop_assert_eq!(is_longer, share >= 1.0);
        }
    }
}
