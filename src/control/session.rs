//! Sessions of browsers: who logs in with the token gets a cookie that proves it and does not contain it.
//!
//! A cookie holds the end of its session and an HMAC of that with the token as key (RFC 2104). So sessions outlive a
//! restart, hold at every daemon that has the same token, and end at once when the token changes; the daemon stores none.

use std::sync::Mutex;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, header};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use ring::hmac;
use tokio::time::Instant;

/// How long a session lasts after the page was last loaded: 7 days.
const SESSION: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Wrong tokens that the login form takes at once, and the time after which it takes a further one: ten a minute.
const FREE_FAILURES: u32 = 10;
const FAILURE_INTERVAL: Duration = Duration::from_secs(6);

/// What an HMAC is for, so that one never counts as another.
const FOR_SESSION: &[u8] = b"runwatch page: session until ";
const FOR_NAME: &[u8] = b"runwatch page: name of the cookie";

/// The sessions that a token gives.
pub(super) struct Sessions {
    key: hmac::Key,
}

impl Sessions {
    pub(super) fn of(token: &str) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, token.as_bytes()),
        }
    }

    /// The name of the cookie. It depends on the token: browsers keep cookies by host and not by port, and several
    /// daemons may be reached as `localhost`.
    fn name(&self) -> String {
        let tag = hmac::sign(&self.key, FOR_NAME);
        format!("runwatch-{}", URL_SAFE_NO_PAD.encode(&tag.as_ref()[..6]))
    }

    /// `Set-Cookie` for a session from `now` on; a `secure` one is sent over TLS only.
    pub(super) fn begin(&self, now: Timestamp, secure: bool) -> HeaderValue {
        let ends = now.as_second().saturating_add_unsigned(SESSION.as_secs());
        let tag = hmac::sign(&self.key, &signed(ends));
        let value = format!("{ends}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref()));
        self.cookie(&value, SESSION, secure)
    }

    /// `Set-Cookie` that makes a browser forget its session.
    pub(super) fn end(&self, secure: bool) -> HeaderValue {
        self.cookie("", Duration::ZERO, secure)
    }

    fn cookie(&self, value: &str, age: Duration, secure: bool) -> HeaderValue {
        let (name, age) = (self.name(), age.as_secs());
        let secure = if secure { "; Secure" } else { "" };
        let text =
            format!("{name}={value}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{secure}");
        HeaderValue::try_from(text).expect("visible ASCII characters")
    }

    /// Whether a request has a cookie of a session that goes on.
    pub(super) fn admits(&self, headers: &HeaderMap, now: Timestamp) -> bool {
        let name = self.name();
        headers
            .get_all(header::COOKIE)
            .iter()
            .filter_map(|cookies| cookies.to_str().ok())
            .flat_map(|cookies| cookies.split(';'))
            .filter_map(|cookie| cookie.trim().split_once('='))
            .filter(|(given, _)| *given == name)
            .any(|(_, value)| self.is_session(value, now))
    }

    fn is_session(&self, value: &str, now: Timestamp) -> bool {
        let read = || {
            let (ends, tag) = value.split_once('.')?;
            let ends: i64 = ends.parse().ok()?;
            let tag = URL_SAFE_NO_PAD.decode(tag).ok()?;
            Some((ends, tag))
        };
        // The comparison takes the same time wherever the first difference is.
        read().is_some_and(|(ends, tag)| {
            hmac::verify(&self.key, &signed(ends), &tag).is_ok() && now.as_second() < ends
        })
    }
}

fn signed(ends: i64) -> Vec<u8> {
    [FOR_SESSION, ends.to_string().as_bytes()].concat()
}

/// How many wrong tokens the login form takes: [`FREE_FAILURES`] at once, and one more in each [`FAILURE_INTERVAL`].
#[derive(Debug)]
pub(super) struct FailureLimit(Mutex<Failures>);

#[derive(Debug)]
struct Failures {
    left: u32,
    /// When one more was added last.
    since: Instant,
}

impl FailureLimit {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Failures {
            left: FREE_FAILURES,
            since: Instant::now(),
        }))
    }

    /// Takes one attempt, before it is known whether it fails.
    ///
    /// # Errors
    /// The time after which there is one again.
    pub(super) fn take(&self) -> Result<(), Duration> {
        let mut failures = self.0.lock().expect("no holder panics");
        let now = Instant::now();
        while failures.left < FREE_FAILURES
            && now.duration_since(failures.since) >= FAILURE_INTERVAL
        {
            failures.left += 1;
            failures.since += FAILURE_INTERVAL;
        }
        if failures.left == FREE_FAILURES {
            failures.since = now;
        }
        match failures.left.checked_sub(1) {
            Some(left) => {
                failures.left = left;
                Ok(())
            }
            None => Err(FAILURE_INTERVAL.saturating_sub(now.duration_since(failures.since))),
        }
    }

    /// Gives an attempt back that did not fail.
    pub(super) fn give_back(&self) {
        let mut failures = self.0.lock().expect("no holder panics");
        failures.left = FREE_FAILURES.min(failures.left + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-11-28T12:00:00Z".parse().unwrap()
    }

    /// The request of a browser that got this `Set-Cookie`, with cookies of others around it.
    fn sent(set_cookie: &HeaderValue) -> HeaderMap {
        let cookie = set_cookie.to_str().unwrap().split(';').next().unwrap();
        let all = format!("other=1; {cookie}; theme=dark");
        HeaderMap::from_iter([(header::COOKIE, HeaderValue::try_from(all).unwrap())])
    }

    #[test]
    fn a_session_ends_with_its_time_and_with_its_token() {
        let sessions = Sessions::of("the-token");
        let cookie = sessions.begin(now(), false);
        let headers = sent(&cookie);
        let after = |days: i64, seconds: i64| {
            now()
                + jiff::SignedDuration::from_hours(days * 24)
                + jiff::SignedDuration::from_secs(seconds)
        };
        assert!(sessions.admits(&headers, now()));
        assert!(sessions.admits(&headers, after(7, -1)));
        assert!(!sessions.admits(&headers, after(7, 0)));
        // As after a restart, and as at another daemon.
        assert!(Sessions::of("the-token").admits(&headers, now()));
        assert!(!Sessions::of("another-token").admits(&headers, now()));
        assert!(!sessions.admits(&HeaderMap::new(), now()));
        assert!(!sessions.admits(&sent(&sessions.end(false)), now()));
    }

    #[test]
    fn a_cookie_that_was_changed_admits_no_one() {
        let sessions = Sessions::of("the-token");
        let cookie = sessions.begin(now(), false);
        let text = cookie.to_str().unwrap();
        let (name, value) = text.split(';').next().unwrap().split_once('=').unwrap();
        let (ends, tag) = value.split_once('.').unwrap();
        let later = ends.parse::<i64>().unwrap() + 1;
        for value in [
            format!("{later}.{tag}"),
            format!("{ends}.{}", &tag[1..]),
            format!("{ends}.{}A", &tag[..tag.len() - 1]),
            format!("{ends}."),
            format!(".{tag}"),
            format!("+{ends}.{tag}x"),
            ends.to_owned(),
            tag.to_owned(),
            String::new(),
        ] {
            let changed = HeaderValue::try_from(format!("{name}={value}")).unwrap();
            assert!(!sessions.admits(&sent(&changed), now()), "{value}");
        }
        let other = HeaderValue::try_from(format!("runwatch={value}")).unwrap();
        assert!(!sessions.admits(&sent(&other), now()));
    }

    #[test]
    fn a_cookie_does_not_hold_the_token_and_is_not_for_scripts_or_other_sites() {
        let cookie = Sessions::of("the-token").begin(now(), false);
        let text = cookie.to_str().unwrap();
        assert!(!text.contains("the-token"), "{text}");
        for part in [
            "; HttpOnly",
            "; SameSite=Strict",
            "; Path=/",
            "; Max-Age=604800",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("Secure"), "{text}");
        let secure = Sessions::of("the-token").begin(now(), true);
        assert!(secure.to_str().unwrap().ends_with("; Secure"));
        let other = Sessions::of("another-token").begin(now(), false);
        let name = |cookie: &HeaderValue| {
            cookie
                .to_str()
                .unwrap()
                .split('=')
                .next()
                .unwrap()
                .to_owned()
        };
        assert_ne!(name(&cookie), name(&other), "two daemons of one host");
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_tokens_are_few_and_right_ones_are_not_counted() {
        let limit = FailureLimit::new();
        for _ in 0..100 {
            limit.take().unwrap();
            limit.give_back();
        }
        for _ in 0..FREE_FAILURES {
            limit.take().unwrap();
        }
        assert_eq!(limit.take(), Err(FAILURE_INTERVAL));
        tokio::time::advance(FAILURE_INTERVAL / 2).await;
        assert_eq!(limit.take(), Err(FAILURE_INTERVAL / 2));
        tokio::time::advance(FAILURE_INTERVAL / 2).await;
        limit.take().unwrap();
        assert!(limit.take().is_err());
        tokio::time::advance(FAILURE_INTERVAL * 100).await;
        for _ in 0..FREE_FAILURES {
            limit.take().unwrap();
        }
        assert!(limit.take().is_err(), "what was not used is not saved up");
    }
}
