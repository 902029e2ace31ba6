//! How much longer a run takes, in words and as a bar.

use std::time::Duration;

use jiff::Timestamp;

use crate::domain::{Expectation, TimeLeft, UsualDuration};
use crate::style::{Look, Style, elapsed, pad, whole_seconds, width};

/// The columns of a bar.
const BAR: usize = 10;

/// The columns of the words after a bar, so that nothing moves as the time passes: `59:59 left`, `up to 59:59 left`.
const LEFT: usize = 10;
const LEFT_UP_TO: usize = 16;

/// The columns of a bar with the words after it, as most are.
pub(super) const BAR_WITH_TEXT: usize = BAR + 1 + LEFT;

/// How much longer a run takes: `0:22 left`, `up to 4:10 left`, `longer than usual`.
pub(super) fn left_text(expected: &Expectation, now: Timestamp) -> String {
    let shown = |left| elapsed(whole_seconds(left));
    match expected.usual.left_after(expected.ran_at(now)) {
        TimeLeft::About(left) => format!("{} left", shown(left)),
        TimeLeft::UpTo(left) => format!("up to {} left", shown(left)),
        TimeLeft::LongerThanUsual => "longer than usual".to_owned(),
    }
}

/// What is usual: `usually 0:44`, `usually 2:00 to 20:00`.
pub(super) fn usual_text(usual: &UsualDuration) -> String {
    format!("usually {}", usual.text_with(elapsed))
}

/// A bar with the time left, or the words alone where there is no room for both in so many columns. It has the same
/// width from one second to the next.
pub(super) fn bar_with_text(
    style: Style,
    expected: &Expectation,
    now: Timestamp,
    columns: usize,
) -> String {
    let ran = expected.ran_at(now);
    let text = left_text(expected, now);
    let words = match expected.usual.left_after(Duration::ZERO) {
        TimeLeft::About(_) => LEFT,
        TimeLeft::UpTo(_) | TimeLeft::LongerThanUsual => LEFT_UP_TO,
    };
    let whole = BAR + 1 + words;
    if columns < whole.max(width(&text)) {
        return text;
    }
    if expected.usual.left_after(ran) == TimeLeft::LongerThanUsual {
        return pad(&text, whole);
    }
    let share = expected.usual.share_after(ran);
    format!("{} {}", bar(style, share), pad(&text, words))
}

/// A bar of which this share is full.
fn bar(style: Style, share: f64) -> String {
    let is_full = |cell: &usize| {
        let end = f64::from(u32::try_from(cell + 1).unwrap_or(u32::MAX));
        end <= share * 10.0
    };
    let full = (0..BAR).filter(is_full).count();
    let (full_cell, empty_cell) = if style.unicode {
        ("█", "░")
    } else {
        ("#", "-")
    };
    let filled = style.as_look(Look::Running, &full_cell.repeat(full));
    format!("{filled}{}", style.dim(&empty_cell.repeat(BAR - full)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(durations: [u64; 3]) -> Expectation {
        Expectation {
            started_at: Timestamp::UNIX_EPOCH,
            usual: UsualDuration::of(durations.map(|seconds| seconds * 1000)).unwrap(),
        }
    }

    fn after(expected: &Expectation, seconds: i64, columns: usize) -> String {
        let now = Timestamp::from_second(seconds).unwrap();
        bar_with_text(Style::PLAIN, expected, now, columns)
    }

    #[test]
    fn a_bar_fills_up_and_then_says_that_it_takes_longer() {
        let alike = expected([60, 69, 70]);
        assert_eq!(after(&alike, -5, 40), "░░░░░░░░░░ 1:10 left ");
        assert_eq!(after(&alike, 47, 40), "██████░░░░ 0:23 left ");
        assert_eq!(after(&alike, 69, 40), "█████████░ 0:01 left ");
        assert_eq!(after(&alike, 70, 40), "longer than usual    ");
        assert_eq!(after(&alike, 47, 20), "0:23 left");
        assert_eq!(usual_text(&alike.usual), "usually 1:09");
        let apart = expected([60, 70, 1200]);
        assert_eq!(after(&apart, 300, 40), "██░░░░░░░░ up to 15:00 left");
        assert_eq!(usual_text(&apart.usual), "usually 1:00 to 20:00");
    }

    #[test]
    fn nothing_moves_as_the_time_passes() {
        for durations in [[60, 69, 70], [60, 70, 1200], [3000, 3300, 3500]] {
            let expected = expected(durations);
            let columns = width(&after(&expected, 0, 40));
            for second in 0..3700 {
                assert_eq!(width(&after(&expected, second, 40)), columns, "{second}");
            }
        }
    }
}
