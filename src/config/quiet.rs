//! Reads the quiet hours of a sink: a text, or a table with a zone.

use jiff::civil::Time;
use jiff::tz::TimeZone;

use super::reader::{Item, SettingsReader, Table, Violation};
use crate::domain::QuietHours;

/// What a text of quiet hours looks like.
const EXAMPLE: &str = "write two times of the day, such as \"22:00-07:00\"";

/// Reads `quiet` of a sink. The first `None` stands for a problem, the second for no quiet hours.
pub(super) fn read_quiet(
    reader: &mut SettingsReader<'_>,
    sink: &mut Table,
) -> Option<Option<QuietHours>> {
    let Some(item) = reader.take(sink, "quiet", None) else {
        reader.show_unset(sink, "quiet");
        return Some(None);
    };
    if item.as_text().is_some() {
        // Of the environment, an empty text is as good as none.
        if item.as_text().is_some_and(|text| text.trim().is_empty()) {
            reader.show_unset(sink, "quiet");
            return Some(None);
        }
        let hours = reader.parsed(&item, hours)?;
        return QuietHours::new(hours.0, hours.1, TimeZone::system()).map(Some);
    }
    let origin = item.place.origin.clone();
    let mut table = reader.as_table(item)?;
    let parts = ["from", "to"].map(|name| read_part(reader, &mut table, name));
    let zone = read_zone(reader, &mut table);
    let shown = shown(&parts, zone.as_ref());
    reader.finish(table);
    reader.show_table(sink, "quiet", &origin, shown);
    let [from, to] = parts.map(|part| part.map(|(_, time)| time));
    let (from, to, zone) = (from?, to?, zone?);
    let hours = QuietHours::new(from, to, zone);
    if hours.is_none() {
        let key = format!("{}.quiet", sink.path);
        reader.outside(origin, &key, SAME.0, SAME.1);
    }
    hours.map(Some)
}

/// What is wrong with a beginning that is the end, and what to do.
const SAME: (&str, &str) = (
    "this begins and ends at the same time",
    "write two times that differ, or remove the key",
);

fn read_part(
    reader: &mut SettingsReader<'_>,
    table: &mut Table,
    name: &str,
) -> Option<(Item, Time)> {
    let Some(item) = reader.take(table, name, None) else {
        reader.missing(table, name, "write a time of the day, such as \"22:00\"");
        return None;
    };
    let Some(text) = item.as_text() else {
        reader.refuse(&item, "this must be a string", "put it in quotes");
        return None;
    };
    match time(text) {
        Ok(time) => Some((item, time)),
        Err((what, fix)) => {
            reader.refuse(&item, what, fix);
            None
        }
    }
}

/// Reads the zone; that of the system where there is none.
fn read_zone(reader: &mut SettingsReader<'_>, table: &mut Table) -> Option<TimeZone> {
    let Some(item) = reader.take(table, "zone", None) else {
        return Some(TimeZone::system());
    };
    let Some(name) = item.as_text() else {
        reader.refuse(&item, "this must be a string", "put it in quotes");
        return None;
    };
    match TimeZone::get(name) {
        Ok(zone) => Some(zone),
        Err(_unknown) => {
            reader.refuse(
                &item,
                "the database of time zones has no such zone",
                "write a name such as \"Europe/Berlin\"; the package tzdata has the database",
            );
            None
        }
    }
}

fn shown(
    parts: &[Option<(Item, Time)>; 2],
    zone: Option<&TimeZone>,
) -> serde_json::Map<String, serde_json::Value> {
    let mut shown = serde_json::Map::new();
    for (item, time) in parts.iter().flatten() {
        let text = time.strftime("%H:%M").to_string();
        shown.insert(item.name().to_owned(), text.into());
    }
    if let Some(name) = zone.and_then(TimeZone::iana_name) {
        shown.insert("zone".to_owned(), name.into());
    }
    shown
}

/// The beginning and the end, written as `22:00-07:00`.
fn hours(text: &str) -> Result<(Time, Time), Violation> {
    let Some((from, to)) = text.split_once('-') else {
        return Err((
            "there is no end of the quiet hours".to_owned(),
            EXAMPLE.to_owned(),
        ));
    };
    let (from, to) = (time(from.trim())?, time(to.trim())?);
    if from == to {
        return Err((SAME.0.to_owned(), SAME.1.to_owned()));
    }
    Ok((from, to))
}

/// A time of the day, written as `07:00`.
fn time(text: &str) -> Result<Time, Violation> {
    let number = |part: &str, most: i8| {
        let has_two_digits = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
        let number = part.parse::<i8>().ok().filter(|number| *number <= most);
        number.filter(|_| has_two_digits)
    };
    let parts = text
        .split_once(':')
        .and_then(|(hour, minute)| Some((number(hour, 23)?, number(minute, 59)?)));
    match parts {
        Some((hour, minute)) => Ok(Time::constant(hour, minute, 0, 0)),
        None => Err((
            format!("{text:?} is not a time of the day"),
            format!("{EXAMPLE}, from 00:00 to 23:59"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_have_two_digits_and_an_end() {
        let time = |hour, minute| Time::constant(hour, minute, 0, 0);
        assert_eq!(hours("22:00-07:30"), Ok((time(22, 0), time(7, 30))));
        assert_eq!(hours("00:00 - 23:59"), Ok((time(0, 0), time(23, 59))));
        for (text, mistake) in [
            ("22:00", "there is no end of the quiet hours"),
            ("22-7", "\"22\" is not a time of the day"),
            ("22:00-24:00", "\"24:00\" is not a time of the day"),
            ("22:00-07:60", "\"07:60\" is not a time of the day"),
            ("+2:00-07:00", "\"+2:00\" is not a time of the day"),
            ("7:00-08:00", "\"7:00\" is not a time of the day"),
            ("07:00-07:00", "this begins and ends at the same time"),
        ] {
            assert_eq!(hours(text).unwrap_err().0, mistake, "{text}");
        }
    }
}
