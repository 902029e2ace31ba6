//! Durations and sizes as people write them.

use std::time::Duration;

/// A text that is not a duration or not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidQuantity {
    /// There is nothing.
    #[error("it is empty")]
    Empty,
    /// Something other than a digit where a number belongs.
    #[error("it needs a whole number before each unit")]
    NoNumber,
    /// A number without a unit after it.
    #[error("it has a number without a unit")]
    NoUnit,
    /// A space between a number and its unit.
    #[error("it has a space before its unit")]
    Space,
    /// A number with a fraction.
    #[error("it has a number that is not whole")]
    Fraction,
    /// A unit that does not exist.
    #[error("the unit {0:?} is unknown")]
    UnknownUnit(String),
    /// A unit after a smaller one, or twice.
    #[error("its units do not go from large to small")]
    Order,
    /// More than can be counted.
    #[error("it is too large")]
    TooLarge,
}

/// Units of a duration with their length in milliseconds, the largest first.
const TIME_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

/// Units of a size with their length in bytes. The binary ones come first: they are what
/// [`format_size`] writes.
const SIZE_UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1000),
    ("B", 1),
];

/// Reads a duration: whole numbers with the units `d`, `h`, `m`, `s`, `ms`, from large to small and
/// without a sign, such as `500ms`, `30s`, `1h30m` or `7d`. A day is 24 hours.
///
/// # Errors
/// [`InvalidQuantity`] describes what is wrong with the text. A number alone is refused: its unit would
/// be a guess.
///
/// ```
/// use std::time::Duration;
/// use runwatch::config::parse_duration;
/// assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
/// assert!(parse_duration("90").is_err());
/// ```
pub fn parse_duration(text: &str) -> Result<Duration, InvalidQuantity> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(InvalidQuantity::Empty);
    }
    let mut units = TIME_UNITS.iter();
    let mut millis: u64 = 0;
    while !rest.is_empty() {
        let (count, after) = number(rest)?;
        let end = |text: &str| {
            let is_outside = |c: char| !c.is_alphabetic();
            text.find(is_outside).unwrap_or(text.len())
        };
        let (unit, next) = after.split_at(end(after));
        if unit.is_empty() {
            if after.starts_with(['.', ',']) {
                return Err(InvalidQuantity::Fraction);
            }
            let after = after.trim_start();
            let spaced = &after[..end(after)];
            let is_unit = TIME_UNITS.iter().any(|(name, _)| *name == spaced);
            return Err(match (spaced, is_unit) {
                ("", _) => InvalidQuantity::NoUnit,
                (_, true) => InvalidQuantity::Space,
                (unit, false) => unknown_unit(unit),
            });
        }
        if !TIME_UNITS.iter().any(|(name, _)| *name == unit) {
            return Err(unknown_unit(unit));
        }
        // The iterator goes on from the unit before, so a unit not found any more is out of order.
        let (_, length) = units
            .find(|(name, _)| *name == unit)
            .ok_or(InvalidQuantity::Order)?;
        let part = count
            .checked_mul(*length)
            .ok_or(InvalidQuantity::TooLarge)?;
        millis = millis.checked_add(part).ok_or(InvalidQuantity::TooLarge)?;
        rest = next;
    }
    Ok(Duration::from_millis(millis))
}

/// Writes a duration so that [`parse_duration`] reads it back; parts of a millisecond are dropped.
pub fn format_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, length) in TIME_UNITS {
        if rest >= length {
            text.push_str(&format!("{}{unit}", rest / length));
            rest %= length;
        }
    }
    if text.is_empty() {
        "0s".to_owned()
    } else {
        text
    }
}

/// Reads a size in bytes: a whole number and one of `B`, `KiB`, `MiB`, `GiB`, `kB`, `MB`, `GB`.
///
/// # Errors
/// [`InvalidQuantity`] describes what is wrong with the text.
pub fn parse_size(text: &str) -> Result<u64, InvalidQuantity> {
    let text = text.trim();
    if text.is_empty() {
        return Err(InvalidQuantity::Empty);
    }
    let (count, unit) = number(text)?;
    let unit = unit.trim_start();
    if unit.is_empty() {
        return Err(InvalidQuantity::NoUnit);
    }
    let (_, length) = SIZE_UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(|| unknown_unit(unit))?;
    count.checked_mul(*length).ok_or(InvalidQuantity::TooLarge)
}

/// Writes a size in the largest unit that loses nothing, so that [`parse_size`] reads it back.
pub fn format_size(bytes: u64) -> String {
    let fits = |(_, length): &&(&str, u64)| bytes >= *length && bytes.is_multiple_of(*length);
    let (unit, length) = SIZE_UNITS.iter().find(fits).unwrap_or(&("B", 1));
    format!("{}{unit}", bytes / length)
}

/// Longest unknown unit that an error repeats, in characters.
const SHOWN_UNIT_CHARS: usize = 20;

fn unknown_unit(unit: &str) -> InvalidQuantity {
    InvalidQuantity::UnknownUnit(unit.chars().take(SHOWN_UNIT_CHARS).collect())
}

/// Splits the leading whole number off.
fn number(text: &str) -> Result<(u64, &str), InvalidQuantity> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    if end == 0 {
        return Err(InvalidQuantity::NoNumber);
    }
    let (digits, rest) = text.split_at(end);
    // Only digits are left, so all that can go wrong is their number.
    digits
        .parse()
        .map(|count| (count, rest))
        .or(Err(InvalidQuantity::TooLarge))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_read_as_documented() {
        let millis = |text| parse_duration(text).map(|duration| duration.as_millis());
        assert_eq!(millis("500ms"), Ok(500));
        assert_eq!(millis("1h30m"), Ok(5_400_000));
        assert_eq!(millis(" 7d "), Ok(604_800_000));
        assert_eq!(millis("0s"), Ok(0));
        assert_eq!(millis("1m500ms"), Ok(60_500));
        assert_eq!(millis(""), Err(InvalidQuantity::Empty));
        assert_eq!(millis("30"), Err(InvalidQuantity::NoUnit));
        assert_eq!(millis("1h30"), Err(InvalidQuantity::NoUnit));
        assert_eq!(millis("-5s"), Err(InvalidQuantity::NoNumber));
        assert_eq!(millis("s"), Err(InvalidQuantity::NoNumber));
        assert_eq!(millis("1w"), Err(unknown_unit("w")));
        assert_eq!(millis("1µs"), Err(unknown_unit("µs")));
        assert_eq!(millis("3 hours"), Err(unknown_unit("hours")));
        assert_eq!(millis("3 h"), Err(InvalidQuantity::Space));
        assert_eq!(millis("1.5s"), Err(InvalidQuantity::Fraction));
        assert_eq!(millis("1s1h"), Err(InvalidQuantity::Order));
        assert_eq!(millis("1s1s"), Err(InvalidQuantity::Order));
        assert_eq!(
            millis("99999999999999999999s"),
            Err(InvalidQuantity::TooLarge)
        );
        assert_eq!(
            millis("18446744073709551615d"),
            Err(InvalidQuantity::TooLarge)
        );
    }

    #[test]
    fn sizes_are_read_as_documented() {
        assert_eq!(parse_size("8MiB"), Ok(8 << 20));
        assert_eq!(parse_size("1 kB"), Ok(1000));
        assert_eq!(parse_size("8"), Err(InvalidQuantity::NoUnit));
        assert_eq!(parse_size("8mb"), Err(unknown_unit("mb")));
        assert_eq!(parse_size("99999999999GiB"), Err(InvalidQuantity::TooLarge));
        assert_eq!(format_size(8 << 20), "8MiB");
        assert_eq!(format_size(2000), "2kB");
        assert_eq!(format_size(0), "0B");
    }

    proptest! {
        #[test]
        fn durations_survive_a_round_trip(millis in 0..=u64::MAX) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn sizes_survive_a_round_trip(bytes in 0..=u64::MAX) {
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in "\\PC{0,20}|[0-9]{0,22}[a-zA-Z]{0,3}[0-9]{0,3}[dhms]{0,2}") {
            if let Ok(duration) = parse_duration(&text) {
                prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
            }
            if let Ok(bytes) = parse_size(&text) {
                prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
            }
        }
    }
}
