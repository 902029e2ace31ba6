//! Reads texts, times and numbers of answers.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use reqwest::Url;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::profile::{PartKind, Token};
use crate::providers::value::{Seen, look_up, text};
use crate::text::{one_line, replace_lone_surrogates};

/// Longest piece of a body that a message shows, in characters.
pub(super) const SHOWN_CHARS: usize = 80;

/// Longest address of a page that is kept, in bytes.
const MAX_URL_BYTES: usize = 2048;

/// Earliest and latest second of a time that counts, since 1970: programs send the year 1, the epoch or the year
/// 9999 for a time that is not there (`time.Time{}` of Go, `DateTime.MinValue` and `MaxValue` of .NET).
const TIMES: std::ops::Range<i64> = 31_536_000..221_845_392_000;

/// Times from this number on are in milliseconds.
const FIRST_MILLISECONDS: f64 = 1e11;

/// Whether two texts name the same run; of UUIDs, case does not matter.
pub(super) fn is_same_id(found: &str, requested: &str) -> bool {
    found == requested || (PartKind::Uuid.fits(requested) && found.eq_ignore_ascii_case(requested))
}

/// A text or a number; halves of characters and bytes that are not UTF-8 are replaced.
pub(super) fn shown_text(json: &[u8]) -> Option<String> {
    match json.first() {
        Some(b'"') => match text(json) {
            Some(text) => Some(text.into_owned()),
            None => {
                let json = String::from_utf8_lossy(json);
                serde_json::from_str(&replace_lone_surrogates(&json)).ok()
            }
        },
        _ => match Seen::of(json) {
            Seen::Number(_) => Some(String::from_utf8_lossy(json).into_owned()),
            _ => None,
        },
    }
}

/// A number of milliseconds.
pub(super) fn milliseconds(json: &[u8]) -> Option<u64> {
    if let Ok(whole) = serde_json::from_slice(json) {
        return Some(whole);
    }
    let number: f64 = serde_json::from_slice(json).ok()?;
    // Zero where it is negative, the highest number where it is too large.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it saturates"
    )]
    (number >= 0.0).then_some(number.round() as u64)
}

/// A number without a fraction, as such or as text.
pub(super) fn whole_number(json: &[u8]) -> Option<u64> {
    shown_text(json)?.parse().ok()
}

/// The address of a page.
pub(super) fn page(json: &[u8]) -> Option<String> {
    let text = text(json)?;
    let url: Url = (text.len() <= MAX_URL_BYTES).then(|| text.parse().ok())??;
    let plain = url.username().is_empty() && url.password().is_none();
    (matches!(url.scheme(), "http" | "https") && plain).then(|| url.into())
}

/// A time as RFC 3339 writes it, or without a zone, which then is UTC (`datetime.utcnow().isoformat()` of Python),
/// or as seconds or milliseconds since 1970.
pub(in crate::providers) fn time(json: &[u8]) -> Option<Timestamp> {
    let time = if json.first() == Some(&b'"') {
        let text = text(json)?;
        let text = text.trim();
        let zoned = text.parse::<Timestamp>().ok();
        zoned.or_else(|| {
            TimeZone::UTC
                .to_timestamp(text.parse::<DateTime>().ok()?)
                .ok()
        })
    } else {
        let number: serde_json::Number = serde_json::from_slice(json).ok()?;
        // Milliseconds where they would be a year after 5138 as seconds.
        match (number.as_i64(), number.as_f64()?) {
            (Some(number), value) if value >= FIRST_MILLISECONDS => {
                Timestamp::from_millisecond(number).ok()
            }
            (Some(number), _) => Timestamp::from_second(number).ok(),
            (None, value) => {
                let seconds = if value >= FIRST_MILLISECONDS {
                    value / 1000.0
                } else {
                    value
                };
                let since = SignedDuration::try_from_secs_f64(seconds).ok()?;
                Timestamp::from_duration(since).ok()
            }
        }
    };
    time.filter(|time| TIMES.contains(&time.as_second()))
}

/// Returns the text of an `error`: a text, or an object with `message` or `code`; anything else as it is.
pub(super) fn error_text(error: &[u8]) -> String {
    #[derive(Deserialize)]
    struct ErrorParts {
        message: Option<String>,
        detail: Option<String>,
        code: Option<String>,
    }
    let error = String::from_utf8_lossy(error);
    let error = replace_lone_surrogates(&error);
    if let Ok(text) = serde_json::from_str::<String>(&error) {
        return text;
    }
    let parts: Option<ErrorParts> = serde_json::from_str(&error).ok();
    parts
        .and_then(|parts| parts.message.or(parts.detail).or(parts.code))
        .unwrap_or_else(|| error.into_owned())
}

/// Returns the message in the body of an error, as one short line; empty if there is none.
///
/// Documented are `{"error":{"message":…}}`, with and without `code` and `details` (Crewship), `{"message":…}`
/// (GitHub, GitLab, Databricks), `{"detail":…}` (Airflow, Prefect) and `{"errors":[{"detail":…}]}` (HCP Terraform).
/// Gateways answer with anything: of that, nothing is shown.
pub(in crate::providers) fn error_message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Body<'a> {
        #[serde(borrow)]
        error: Option<&'a RawValue>,
        #[serde(borrow)]
        message: Option<&'a RawValue>,
        #[serde(borrow)]
        detail: Option<&'a RawValue>,
        #[serde(borrow)]
        errors: Option<&'a RawValue>,
    }
    let Ok(body) = serde_json::from_slice::<Body<'_>>(body) else {
        return String::new();
    };
    let first_of_all = body
        .errors
        .and_then(|errors| look_up(errors.get().as_bytes(), &[Token::Key("0".into())]).ok()?);
    let message = [body.message, body.error, body.detail]
        .into_iter()
        .flatten()
        .map(|json| json.get().as_bytes())
        .chain(first_of_all)
        .find(|json| !matches!(Seen::of(json), Seen::Absent | Seen::Bool(_)));
    one_line(
        &message.map(error_text).unwrap_or_default(),
        2 * SHOWN_CHARS,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_without_a_zone_are_utc_and_those_that_stand_for_none_are_none() {
        for (json, expected) in [
            (r#""2024-01-15T10:35:02.5""#, Some("2024-01-15T10:35:02.5Z")),
            (r#""2024-01-15 10:35:02""#, Some("2024-01-15T10:35:02Z")),
            (r#""2024-01-15 10:35:02Z""#, Some("2024-01-15T10:35:02Z")),
            (
                r#""2024-01-15T10:35:02+0100""#,
                Some("2024-01-15T09:35:02Z"),
            ),
            ("1705314902", Some("2024-01-15T10:35:02Z")),
            ("1705314902500", Some("2024-01-15T10:35:02.5Z")),
            ("1705314902.5", Some("2024-01-15T10:35:02.5Z")),
            (r#""0001-01-01T00:00:00Z""#, None),
            (r#""0001-01-01T00:00:00""#, None),
            (r#""1970-01-01T00:00:00Z""#, None),
            (r#""9999-12-31T23:59:59.9999999Z""#, None),
            ("0", None),
            ("12", None),
            ("-1e300", None),
            (r#""""#, None),
            (r#""soon""#, None),
        ] {
            assert_eq!(
                time(json.as_bytes()),
                expected.map(|time| time.parse().unwrap()),
                "{json}"
            );
        }
    }

    #[test]
    fn error_bodies_of_every_documented_form_are_read() {
        assert_eq!(
            error_message(br#"{"error":{"message":"deployment_id is required"}}"#),
            "deployment_id is required"
        );
        assert_eq!(
            error_message(br#"{"error":{"code":"bad_request","message":"Cannot"}}"#),
            "Cannot"
        );
        assert_eq!(error_message(b"<html>502</html>"), "");
        assert_eq!(error_message(b""), "");
    }
}
