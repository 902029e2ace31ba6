//! Quiet hours: when notifications that can wait are held.

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Timestamp, ToSpan as _};

/// A part of every day in a time zone, such as from 22:00 to 07:00.
///
/// It begins when the local time first reaches its beginning, and ends when the local time has passed its end for the
/// last time on that day. So where clocks are set forward across one of the two, that is the moment at which they are
/// set; where they are set back, the hour that comes twice is quiet both times.
#[derive(Debug, Clone)]
pub struct QuietHours {
    from: Time,
    to: Time,
    zone: TimeZone,
}

/// How many quiet times may follow each other without a gap: a zone that leaves out a whole day joins two.
const MOST_JOINED: usize = 4;

impl QuietHours {
    /// From one time of the day to the next one that shows `to`, in `zone`; `None` where both are the same.
    pub fn new(from: Time, to: Time, zone: TimeZone) -> Option<Self> {
        (from != to).then_some(Self { from, to, zone })
    }

    /// When the quiet time ends in which `now` falls; `None` outside of it.
    pub fn end(&self, now: Timestamp) -> Option<Timestamp> {
        let mut end = None;
        for _ in 0..MOST_JOINED {
            match self.end_of_one(end.unwrap_or(now)) {
                Some(later) => end = Some(later),
                None => break,
            }
        }
        end
    }

    /// The end of the quiet time of one day in which `at` falls.
    fn end_of_one(&self, at: Timestamp) -> Option<Timestamp> {
        let today = at.to_zoned_datetime(self.zone.clone()).date();
        // One that began yesterday may last until today, or longer where the clock was set back.
        let days = (-2..=1).filter_map(|days| today.checked_add(days.days()).ok());
        days.filter_map(|date| self.of_day(date))
            .filter(|(begin, end)| *begin <= at && at < *end)
            .map(|(_, end)| end)
            .max()
    }

    /// The quiet time that begins on a day.
    fn of_day(&self, date: Date) -> Option<(Timestamp, Timestamp)> {
        let last = if self.to > self.from {
            date
        } else {
            date.tomorrow().ok()?
        };
        let begin = self.moment(date.to_datetime(self.from), false)?;
        let end = self.moment(last.to_datetime(self.to), true)?;
        Some((begin, end))
    }

    /// When the local time shows `local`, for the first or the last time; where it never does, when it passes it.
    fn moment(&self, local: DateTime, last: bool) -> Option<Timestamp> {
        match self.zone.to_ambiguous_timestamp(local).offset() {
            AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(local).ok(),
            AmbiguousOffset::Fold { before, after } => {
                let offset = if last { after } else { before };
                offset.to_timestamp(local).ok()
            }
            AmbiguousOffset::Gap { after, .. } => {
                let before_gap = after.to_timestamp(local).ok()?;
                let gap = self.zone.following(before_gap).next()?;
                Some(gap.timestamp())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Zones by their rules, so that no test depends on a database: clocks that are set by an hour and by half of one,
    /// at night, at midnight, and none.
    const ZONES: [&str; 6] = [
        "CET-1CEST,M3.5.0,M10.5.0/3",
        "EST5EDT,M3.2.0,M11.1.0",
        "<-04>4<-03>,M9.1.6/24,M4.1.6/24",
        "<+1030>-10:30<+11>-11,M10.1.0,M4.1.0",
        "IST-1GMT0,M10.5.0,M3.5.0/1",
        "<+0545>-5:45",
    ];

    fn quiet(from: &str, to: &str, zone: &str) -> QuietHours {
        let zone = TimeZone::posix(zone).unwrap();
        QuietHours::new(from.parse().unwrap(), to.parse().unwrap(), zone).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_night_ends_in_the_morning() {
        let night = quiet("22:00", "07:00", "CET-1");
        for (now, end) in [
            ("2026-01-10T20:59:59.999Z", None),
            ("2026-01-10T21:00:00Z", Some("2026-01-11T06:00:00Z")),
            ("2026-01-11T05:59:59.999Z", Some("2026-01-11T06:00:00Z")),
            ("2026-01-11T06:00:00Z", None),
        ] {
            assert_eq!(night.end(at(now)), end.map(at), "{now}");
        }
        let lunch = quiet("12:00", "13:00", "CET-1");
        assert_eq!(
            lunch.end(at("2026-01-11T11:30:00Z")),
            Some(at("2026-01-11T12:00:00Z"))
        );
        assert_eq!(lunch.end(at("2026-01-11T12:00:00Z")), None);
        let same: Time = "07:00".parse().unwrap();
        assert!(QuietHours::new(same, same, TimeZone::UTC).is_none());
    }

    #[test]
    fn clocks_that_are_set_at_night_make_it_shorter_and_longer() {
        let berlin = "CET-1CEST,M3.5.0,M10.5.0/3";
        // The clock goes from 2:00 to 3:00, over the end, and over the beginning.
        let gap = at("2026-03-29T01:00:00Z");
        let ends_in_gap = quiet("22:00", "02:30", berlin);
        assert_eq!(ends_in_gap.end(at("2026-03-29T00:59:00Z")), Some(gap));
        assert_eq!(ends_in_gap.end(gap), None);
        let begins_in_gap = quiet("02:30", "07:00", berlin);
        assert_eq!(begins_in_gap.end(at("2026-03-29T00:59:59Z")), None);
        assert_eq!(begins_in_gap.end(gap), Some(at("2026-03-29T05:00:00Z")));
        // It goes from 3:00 back to 2:00.
        let ends_in_fold = quiet("22:00", "02:30", berlin);
        let end = at("2026-10-25T01:30:00Z");
        for now in [
            "2026-10-25T00:15:00Z",
            "2026-10-25T00:45:00Z",
            "2026-10-25T01:15:00Z",
        ] {
            assert_eq!(ends_in_fold.end(at(now)), Some(end), "{now}");
        }
        let begins_in_fold = quiet("02:30", "07:00", berlin);
        let morning = Some(at("2026-10-25T06:00:00Z"));
        assert_eq!(begins_in_fold.end(at("2026-10-25T00:29:00Z")), None);
        assert_eq!(begins_in_fold.end(at("2026-10-25T00:30:00Z")), morning);
        assert_eq!(begins_in_fold.end(at("2026-10-25T01:05:00Z")), morning);
    }

    /// The minutes of four days from `first`, each with the local time that a clock shows.
    fn minutes(zone: &TimeZone, first: Timestamp) -> Vec<(Timestamp, DateTime)> {
        let minute = |number: i64| {
            let at = first.checked_add(number.minutes()).unwrap();
            (at, zone.to_datetime(at))
        };
        (0..4 * 24 * 60).map(minute).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]
        /// By looking at a clock each minute: the quiet time of a day lasts from the first minute that shows its
        /// beginning, or more, to the last one that shows less than its end.
        #[test]
        fn every_minute_is_as_a_clock_shows(
            zone in prop::sample::select(&ZONES[..]),
            day in 0..730_i64,
            from in 0..24 * 60_i64,
            length in 1..24 * 60_i64,
        ) {
            let zone = TimeZone::posix(zone).unwrap();
            let time = |minutes: i64| Time::midnight().wrapping_add(minutes.minutes());
            let (from, to) = (time(from), time(from + length));
            let hours = QuietHours::new(from, to, zone.clone()).unwrap();
            let first = at("2026-01-01T00:00:00Z").checked_add((day * 24).hours()).unwrap();
            let shown = minutes(&zone, first);
            let mut quiet = vec![false; shown.len()];
            let mut date = shown[0].1.date().yesterday().unwrap();
            for _ in 0..7 {
                let last = if to > from { date } else { date.tomorrow().unwrap() };
                let (begin, end) = (date.to_datetime(from), last.to_datetime(to));
                let begins = shown.iter().position(|(_, local)| *local >= begin);
                let ends = shown.iter().rposition(|(_, local)| *local < end);
                if let (Some(begins), Some(ends)) = (begins, ends) {
                    quiet[begins..=ends].fill(true);
                }
                date = date.tomorrow().unwrap();
            }
            // The minutes of the first and the last day belong to quiet times that are not seen as a whole.
            let whole = 24 * 60..3 * 24 * 60;
            for place in whole.step_by(7) {
                let expected = quiet[place].then(|| {
                    let ahead = quiet[place..].iter().position(|is_quiet| !is_quiet);
                    ahead.map(|ahead| shown[place + ahead].0)
                });
                let found = hours.end(shown[place].0);
                match expected {
                    Some(Some(end)) => prop_assert_eq!(found, Some(end), "at {}", shown[place].1),
                    Some(None) => prop_assert!(found.is_some_and(|end| end > shown[shown.len() - 1].0)),
                    None => prop_assert_eq!(found, None, "at {}", shown[place].1),
                }
            }
        }
    }
}
