//! Rate-limit headers: `Retry-After`, and those with which a provider says what is left and when that changes.

use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, HeaderName, RETRY_AFTER};

use crate::profile::Rate;
use crate::retry_after::{header_text as text, positive, retry_after, until, until_retry};

/// A reset further ahead than this is not a time that an API can mean; it is ignored.
const FURTHEST_RESET: Duration = Duration::from_secs(7 * 24 * 3600);

/// The pause after a rate limit without a time: most limits are for one minute.
const UNTOLD_PAUSE: Duration = Duration::from_secs(60);

/// Unix times from here on are in milliseconds: in seconds they would lie after the year 5000.
const FIRST_MILLISECONDS: u64 = 100_000_000_000;

/// Values of a reset below this are seconds from now, as Buildkite and CircleCI send them: as a Unix time, they would
/// be before the year 2002.
const FIRST_UNIX_TIME: u64 = 1_000_000_000;

/// The names of the rate-limit headers of a provider.
#[derive(Debug, Clone)]
pub(super) struct RateHeaders {
    /// How many requests are left.
    remaining: HeaderName,
    /// When the limit is reset: seconds from now, or Unix seconds or milliseconds.
    reset: HeaderName,
}

impl RateHeaders {
    /// Those of a profile. A name that cannot be one stands for the usual one; a profile that was checked has none.
    pub(super) fn of(rate: &Rate) -> Self {
        let name = |name: &str, usual| {
            HeaderName::try_from(name).unwrap_or(HeaderName::from_static(usual))
        };
        Self {
            remaining: name(&rate.remaining, "x-ratelimit-remaining"),
            reset: name(&rate.reset, "x-ratelimit-reset"),
        }
    }

    /// Returns the pause that `Retry-After` or the reset requests.
    ///
    /// `Retry-After` is seconds or an HTTP date (RFC 9110, section 10.2.3). A date is held against the
    /// answer's own `Date`, where it has one, so that a clock that is off does not matter.
    pub(super) fn pause(&self, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
        retry_after(headers, now).or_else(|| self.reset(headers, now))
    }

    /// Whether a 403 is a rate limit, as some services send one (documentation of the GitHub REST API, "Rate limits"):
    /// with `Retry-After`, or with a limit that is used up. Any other 403 refuses the key.
    pub(super) fn limits(&self, headers: &HeaderMap) -> bool {
        headers.contains_key(RETRY_AFTER) || self.none_left(headers)
    }

    /// Returns the pause that a rejection requests; `None` if there is none, or its time has come.
    pub(super) fn refusal_pause(
        &self,
        code: StatusCode,
        headers: &HeaderMap,
        now: SystemTime,
    ) -> Option<Duration> {
        match code {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                self.pause(headers, now)
            }
            StatusCode::FORBIDDEN if self.limits(headers) => {
                let has_come = until_retry(headers, now)
                    .or_else(|| self.until_reset(headers, now))
                    .is_some();
                self.pause(headers, now)
                    .or_else(|| (!has_come).then_some(UNTOLD_PAUSE))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => None,
            _ => self.any_pause(headers, now),
        }
    }

    /// Returns the pause that an answer of any kind requests: by `Retry-After`, as some services send it with successes
    /// (Azure DevOps, "Rate and usage limits"), or as no requests are left.
    pub(super) fn any_pause(&self, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
        let exhausted = || self.none_left(headers).then(|| self.reset(headers, now))?;
        retry_after(headers, now).or_else(exhausted)
    }

    fn none_left(&self, headers: &HeaderMap) -> bool {
        text(headers, &self.remaining).and_then(|remaining| remaining.parse::<u64>().ok())
            == Some(0)
    }

    /// Returns the pause until the reset, at most an hour; `None` if it is absent, past or unreadable.
    fn reset(&self, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
        positive(self.until_reset(headers, now))
    }

    /// How long it is until the reset, as [`until_retry`].
    fn until_reset(&self, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
        let value: u64 = text(headers, &self.reset)?.parse().ok()?;
        let pause = if value < FIRST_UNIX_TIME {
            Duration::from_secs(value)
        } else {
            let seconds = if value >= FIRST_MILLISECONDS {
                value.div_ceil(1000)
            } else {
                value
            };
            let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
            until(at, headers, now)
        };
        Some(pause).filter(|pause| *pause <= FURTHEST_RESET)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry_after::MAX_PAUSE;
    use proptest::prelude::*;
    use reqwest::header::HeaderValue;

    fn usual() -> RateHeaders {
        RateHeaders {
            remaining: HeaderName::from_static("x-ratelimit-remaining"),
            reset: HeaderName::from_static("x-ratelimit-reset"),
        }
    }

    const NOW: Duration = Duration::from_secs(1_705_315_800);

    fn pause_of(pairs: &[(&'static str, &str)]) -> Option<u64> {
        let headers = pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        let headers = headers.collect();
        let pause = usual().pause(&headers, SystemTime::UNIX_EPOCH + NOW);
        pause.map(|pause| pause.as_secs())
    }

    #[test]
    fn both_forms_of_retry_after_and_the_reset_are_understood() {
        assert_eq!(pause_of(&[("retry-after", "120")]), Some(120));
        assert_eq!(
            pause_of(&[("retry-after", "Mon, 15 Jan 2024 10:51:00 GMT")]),
            Some(60)
        );
        // The server's clock is an hour ahead of ours; it requests ten seconds.
        let ahead = [
            ("retry-after", "Mon, 15 Jan 2024 11:50:10 GMT"),
            ("date", "Mon, 15 Jan 2024 11:50:00 GMT"),
        ];
        assert_eq!(pause_of(&ahead), Some(10));
        assert_eq!(pause_of(&[("x-ratelimit-reset", "1705315860")]), Some(60));
        assert_eq!(pause_of(&[("retry-after", "4.2")]), Some(5));
        assert_eq!(pause_of(&[("retry-after", "0.001")]), Some(1));
        assert_eq!(pause_of(&[("retry-after", "4.0")]), Some(4));
        assert_eq!(
            pause_of(&[("x-ratelimit-reset", "1705315860000")]),
            Some(60),
            "milliseconds"
        );
        assert_eq!(
            pause_of(&[("retry-after", "5"), ("x-ratelimit-reset", "1705315860")]),
            Some(5)
        );
        assert_eq!(
            pause_of(&[
                ("retry-after", "later"),
                ("x-ratelimit-reset", "1705315860")
            ]),
            Some(60)
        );
    }

    #[test]
    fn what_makes_no_sense_is_ignored_and_what_is_too_long_is_cut() {
        for value in [
            "",
            "0",
            "-1",
            "soon",
            "1e1",
            "1.",
            ".5",
            "2, 3",
            "Mon, 15 Jan 2024 10:49:00 GMT",
        ] {
            assert_eq!(pause_of(&[("retry-after", value)]), None, "{value}");
        }
        // Some services send how many seconds are left, and no Unix time of a limit is in 1970.
        assert_eq!(pause_of(&[("x-ratelimit-reset", "17")]), Some(17));
        assert_eq!(pause_of(&[("x-ratelimit-reset", "7200")]), Some(3600));
        assert_eq!(pause_of(&[("x-ratelimit-reset", "0")]), None);
        assert_eq!(pause_of(&[("x-ratelimit-reset", "1705402200")]), Some(3600));
        for (value, pause) in [
            ("1705920600", Some(3600)),
            ("1705920601", None),
            ("1805315800", None),
        ] {
            let pause_until = pause_of(&[("x-ratelimit-reset", value)]);
            assert_eq!(pause_until, pause, "at most a week ahead: {value}");
        }
        assert_eq!(pause_of(&[("retry-after", "999999999999")]), Some(3600));
        assert_eq!(
            pause_of(&[("x-ratelimit-reset", "18446744073709551615")]),
            None
        );
        assert_eq!(pause_of(&[]), None);
    }

    #[test]
    fn an_answer_with_no_requests_left_requests_a_pause_until_the_reset() {
        let pause_of = |remaining: &str, reset: &str| {
            let headers = [
                ("x-ratelimit-remaining", remaining),
                ("x-ratelimit-reset", reset),
            ]
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
            usual()
                .any_pause(&headers.into_iter().collect(), SystemTime::UNIX_EPOCH + NOW)
                .map(|pause| pause.as_secs())
        };
        assert_eq!(pause_of("0", "1705315860"), Some(60));
        assert_eq!(pause_of("0", "17"), Some(17), "seconds from now");
        assert_eq!(pause_of("0", "1705315799"), None, "the limit is over");
        assert_eq!(pause_of("1", "1705315860"), None);
        assert_eq!(pause_of("", "1705315860"), None);
    }

    #[test]
    fn a_forbidden_answer_is_a_rate_limit_only_where_it_says_so() {
        let pause_of = |code: u16, pairs: &[(&'static str, &str)]| {
            let headers = pairs
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
            let code = StatusCode::from_u16(code).unwrap();
            usual()
                .refusal_pause(code, &headers.collect(), SystemTime::UNIX_EPOCH + NOW)
                .map(|pause| pause.as_secs())
        };
        let reset = ("x-ratelimit-reset", "1705315860");
        assert_eq!(pause_of(403, &[("retry-after", "2")]), Some(2));
        assert_eq!(
            pause_of(403, &[("x-ratelimit-remaining", "0"), reset]),
            Some(60)
        );
        assert_eq!(
            pause_of(403, &[("x-ratelimit-remaining", "7"), reset]),
            None
        );
        assert_eq!(pause_of(403, &[reset]), None);
        assert_eq!(
            pause_of(403, &[("x-ratelimit-remaining", "0")]),
            Some(60),
            "no reset"
        );
        for past in ["0", "1705315799", "1705315799000"] {
            let past = ("x-ratelimit-reset", past);
            assert_eq!(
                pause_of(403, &[("x-ratelimit-remaining", "0"), past]),
                None,
                "the limit is over"
            );
            assert_eq!(pause_of(403, &[("retry-after", "soon"), past]), None);
            assert_eq!(pause_of(403, &[("retry-after", "3"), past]), Some(3));
        }
        assert_eq!(
            pause_of(
                403,
                &[
                    ("x-ratelimit-remaining", "0"),
                    ("x-ratelimit-reset", "1805315800")
                ]
            ),
            Some(60)
        );
        assert_eq!(pause_of(403, &[("retry-after", "0")]), None, "at once");
        assert_eq!(
            pause_of(403, &[("retry-after", "Mon, 15 Jan 2024 10:49:00 GMT")]),
            None,
            "past"
        );
        assert_eq!(pause_of(403, &[("retry-after", "0"), reset]), Some(60));
        assert_eq!(pause_of(403, &[("retry-after", "soon")]), Some(60));
        assert_eq!(pause_of(403, &[("x-ratelimit-remaining", "none")]), None);
        assert_eq!(pause_of(401, &[("x-ratelimit-remaining", "0")]), None);
        assert_eq!(pause_of(401, &[("retry-after", "2")]), None);
        assert_eq!(pause_of(429, &[reset]), Some(60));
    }

    #[test]
    fn an_answer_of_any_kind_may_ask_for_a_pause_in_the_headers_of_its_provider() {
        let buildkite = RateHeaders {
            remaining: HeaderName::from_static("ratelimit-user-remaining"),
            reset: HeaderName::from_static("ratelimit-user-reset"),
        };
        let of = |pairs: &[(&'static str, &str)]| -> HeaderMap {
            let pairs = pairs
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
            pairs.collect()
        };
        let now = SystemTime::UNIX_EPOCH + NOW;
        let used_up = of(&[
            ("ratelimit-user-remaining", "0"),
            ("ratelimit-user-reset", "31"),
        ]);
        let seconds = Duration::from_secs;
        assert_eq!(buildkite.any_pause(&used_up, now), Some(seconds(31)));
        assert_eq!(
            usual().any_pause(&used_up, now),
            None,
            "of another provider"
        );
        for code in [
            StatusCode::FORBIDDEN,
            StatusCode::BAD_GATEWAY,
            StatusCode::TOO_MANY_REQUESTS,
        ] {
            assert_eq!(
                buildkite.refusal_pause(code, &used_up, now),
                Some(seconds(31)),
                "{code}"
            );
        }
        assert_eq!(
            buildkite.refusal_pause(StatusCode::UNAUTHORIZED, &used_up, now),
            None
        );
        let left = of(&[
            ("ratelimit-user-remaining", "3"),
            ("ratelimit-user-reset", "31"),
        ]);
        assert_eq!(buildkite.any_pause(&left, now), None);
        let header = of(&[("retry-after", "9")]);
        assert_eq!(buildkite.any_pause(&header, now), Some(seconds(9)));
        assert_eq!(
            buildkite.refusal_pause(StatusCode::INTERNAL_SERVER_ERROR, &header, now),
            Some(seconds(9))
        );
    }

    proptest! {
        #[test]
        fn no_header_panics_or_asks_for_more_than_an_hour(retry in "\\PC{0,40}", reset in "[0-9]{0,22}") {
            let mut headers = HeaderMap::new();
            if let Ok(value) = retry.parse() {
                headers.insert(RETRY_AFTER, value);
            }
            headers.insert("x-ratelimit-reset", reset.parse().unwrap());
            headers.insert("x-ratelimit-remaining", HeaderValue::from_static("0"));
            let now = SystemTime::UNIX_EPOCH + NOW;
            for pause in [usual().pause(&headers, now), usual().any_pause(&headers, now)] {
                prop_assert!(pause.is_none_or(|pause| pause <= MAX_PAUSE && !pause.is_zero()));
            }
        }
    }
}
