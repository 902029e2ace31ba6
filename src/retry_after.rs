//! `Retry-After`: how long a server wants to be left without requests.

use std::time::{Duration, SystemTime};

use reqwest::header::{DATE, HeaderMap, HeaderName, RETRY_AFTER};

/// Longest pause that a server can ask for. An hour is far more than any documented limit needs, and
/// short enough that a wrong header does not silence a day.
pub(crate) const MAX_PAUSE: Duration = Duration::from_secs(3600);

/// Returns the pause that `Retry-After` requests, at most an hour; `None` if it is absent, past or unreadable.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    positive(until_retry(headers, now))
}

/// How long it is until the time of `Retry-After`: zero where it has come; nothing when it is absent or unreadable.
pub(crate) fn until_retry(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = header_text(headers, &RETRY_AFTER)?;
    Some(match seconds(value) {
        Some(seconds) => Duration::from_secs(seconds),
        None => until(httpdate::parse_http_date(value).ok()?, headers, now),
    })
}

/// Whole seconds, rounded up where there is a fraction, as some services send one (`299.997`).
fn seconds(value: &str) -> Option<u64> {
    let (whole, fraction) = value.split_once('.').unwrap_or((value, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    let up = u64::from(fraction.bytes().any(|digit| digit != b'0'));
    whole
        .parse::<u64>()
        .ok()
        .map(|whole| whole.saturating_add(up))
}

/// A pause of at most an hour; `None` if it is zero.
pub(crate) fn positive(pause: Option<Duration>) -> Option<Duration> {
    pause
        .filter(|pause| !pause.is_zero())
        .map(|pause| pause.min(MAX_PAUSE))
}

/// How long it is until `at` by the clock of the server: zero where it has come.
pub(crate) fn until(at: SystemTime, headers: &HeaderMap, now: SystemTime) -> Duration {
    at.duration_since(server_time(headers, now))
        .unwrap_or_default()
}

fn server_time(headers: &HeaderMap, now: SystemTime) -> SystemTime {
    header_text(headers, &DATE)
        .and_then(|date| httpdate::parse_http_date(date).ok())
        .unwrap_or(now)
}

/// The text of a header without white space around it; `None` if it is absent or not ASCII.
pub(crate) fn header_text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}
