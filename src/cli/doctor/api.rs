//! The key, the API and the clock, by one request.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::report::Check;
use super::{Advice, within_limit};
use crate::cli::phrases::cause;
use crate::config::{ApiSettings, Loaded, Origin};
use crate::domain::RunRef;
use crate::providers::{ApiClient, ApiError, Probe};
use crate::style::Sign;
use crate::text::error_chain;

/// A run that no API has.
pub(super) const NO_RUN: &str = "runwatch-doctor-no-such-run";

/// The name of the check of the clock.
pub(super) const CLOCK: &str = "clock";

/// Longest time for the request, whatever is configured.
pub(super) const LIMIT: Duration = Duration::from_secs(15);

/// Difference of clocks at which a signature of Standard Webhooks is refused.
const SIGNATURE_TOLERANCE: Duration = Duration::from_secs(5 * 60);

/// Difference of clocks that is none: `Date` has whole seconds, and an answer takes some time.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(1);

/// What the request showed.
pub(super) struct ApiChecks {
    pub(super) checks: Vec<Check>,
    /// Whether the key is missing or refused.
    pub(super) is_key_refused: bool,
}

/// How one request went.
pub(super) struct Probed {
    pub(super) probe: Probe,
    pub(super) began_at: SystemTime,
    pub(super) took: Duration,
}

/// Makes one request for a run that there is not.
pub(super) async fn probe(client: &ApiClient, id: &RunRef) -> Probed {
    let (began_at, began) = (SystemTime::now(), Instant::now());
    let probe = tokio::time::timeout(LIMIT, client.probe(id)).await;
    Probed {
        began_at,
        took: began.elapsed(),
        probe: probe.unwrap_or(Probe {
            result: Err(ApiError::Timeout),
            is_json: false,
            date: None,
        }),
    }
}

/// Makes one request and checks the key, the API and the clock by its answer.
pub(super) async fn checks(loaded: &Loaded, advice: &Advice) -> ApiChecks {
    let mut settings = loaded.settings.api.clone();
    settings.connect_timeout = settings.connect_timeout.min(LIMIT);
    settings.request_timeout = settings.request_timeout.min(LIMIT);
    let host = host(&settings);
    let key_origin = key_origin(loaded, "api");
    let built = within_limit(move || ApiClient::new(&settings)).await;
    let client = match built {
        Ok(Ok(client)) => client,
        Ok(Err(error)) => return unusable(&error_chain(&error)),
        Err(stuck) => return unusable(&format!("the certificates cannot be read: {stuck}")),
    };
    let id = RunRef::new(NO_RUN).expect("a legal ID");
    let Probed {
        probe,
        began_at,
        took,
    } = probe(&client, &id).await;
    let is_key_refused = probe.result.as_ref().is_err_and(ApiError::is_unauthorized);
    let key = key_check(&probe, &key_origin, &host, took);
    let mut checks = vec![advice.about(&["api.key"], key)];
    checks.extend(api_check(&probe, loaded, &host, took));
    checks.extend(
        probe
            .date
            .map(|date| clock_check(date, (began_at, took), &host)),
    );
    ApiChecks {
        checks,
        is_key_refused,
    }
}

fn unusable(why: &str) -> ApiChecks {
    let check = Check::new("API", Sign::Bad, why)
        .with_fix("install the certificates of authorities, or name them in SSL_CERT_FILE");
    ApiChecks {
        checks: vec![check],
        is_key_refused: false,
    }
}

/// The host of the API, with its port if it has one.
pub(super) fn host(settings: &ApiSettings) -> String {
    let Ok(url) = settings.base_url.parse::<reqwest::Url>() else {
        return settings.base_url.clone();
    };
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Where the key of a table comes from; empty where there is none.
pub(super) fn key_origin(loaded: &Loaded, table: &str) -> String {
    let entries = loaded.effective.0.iter();
    let mut keys = entries.filter(|entry| {
        entry.table == table
            && matches!(entry.key.as_str(), "key" | "key_file")
            && entry.value.is_some()
    });
    let Some(entry) = keys.next() else {
        return String::new();
    };
    let file = entry.value.as_ref().and_then(|value| value.as_str());
    match (&entry.origin, entry.key.as_str(), file) {
        (Origin::Environment { variable }, "key", _) => variable.clone(),
        (Origin::Credential { name }, ..) => format!("systemd credential {name}"),
        (_, "key_file", Some(file)) => file.to_owned(),
        (origin, ..) => format!("{table}.key of {origin}"),
    }
}

fn key_check(probe: &Probe, origin: &str, host: &str, took: Duration) -> Check {
    let check = |mark, text: String| Check::new("key", mark, text);
    match &probe.result {
        Ok(()) => {
            let took = took.as_millis();
            check(
                Sign::Good,
                format!("{origin}, accepted by {host} in {took} ms"),
            )
        }
        // The advice about a missing key has the remedy.
        Err(ApiError::KeyMissing) => check(Sign::Bad, String::new()),
        Err(error @ ApiError::KeyUnusable(_)) => {
            check(Sign::Bad, format!("{origin}: {}", error.describe())).with_fix("correct the key")
        }
        Err(error @ ApiError::Unauthorized { .. }) => check(
            Sign::Bad,
            format!("{origin}, refused by {host}: {}", error.describe()),
        )
        .with_fix("copy the key again, and check that it belongs to this API"),
        Err(_) => {
            check(Sign::Warning, format!("{origin}, not checked")).with_fix("correct the API first")
        }
    }
}

fn api_check(probe: &Probe, loaded: &Loaded, host: &str, took: Duration) -> Option<Check> {
    let base_url = &loaded.settings.api.base_url;
    let check = |mark, text: String| Some(Check::new("API", mark, text));
    match &probe.result {
        Err(ApiError::KeyMissing | ApiError::KeyUnusable(_)) => None,
        Ok(()) if !probe.is_json => check(
            Sign::Warning,
            format!("{base_url} answers, but not with JSON, so it is most likely not the API"),
        )
        .map(|check| check.with_fix("check api.base_url")),
        Ok(()) | Err(ApiError::Unauthorized { .. }) => {
            let took = took.as_millis();
            check(Sign::Good, format!("{base_url} answers in {took} ms"))
        }
        Err(error @ (ApiError::Transport(_) | ApiError::Timeout)) => check(
            Sign::Bad,
            format!("cannot reach {host}: {}", cause(&error.describe())),
        )
        .map(|check| check.with_fix("check api.base_url, the network and the proxy variables")),
        Err(error @ ApiError::Redirect { .. }) => {
            check(Sign::Bad, format!("{base_url}: {}", error.describe()))
                .map(|check| check.with_fix("check api.base_url"))
        }
        Err(error) => check(Sign::Warning, format!("{host}: {}", error.describe()))
            .map(|check| check.with_fix("try again later")),
    }
}

/// Compares clocks: `Date` was made between `began_at` and `took` later, and has whole seconds.
pub(super) fn clock_check(
    date: SystemTime,
    (began_at, took): (SystemTime, Duration),
    host: &str,
) -> Check {
    let answered_at = began_at + took;
    let behind = date.duration_since(answered_at).unwrap_or_default();
    let ahead = began_at
        .duration_since(date + Duration::from_secs(1))
        .unwrap_or_default();
    let (difference, word) = if behind > ahead {
        (behind, "behind")
    } else {
        (ahead, "ahead of")
    };
    if difference <= CLOCK_TOLERANCE {
        return Check::new(CLOCK, Sign::Good, format!("as that of {host}"));
    }
    let seconds = difference.as_secs_f64();
    let mark = if difference < SIGNATURE_TOLERANCE {
        Sign::Warning
    } else {
        Sign::Bad
    };
    let text = format!("{seconds:.1} s {word} that of {host}; signatures allow 5 min");
    Check::new(CLOCK, mark, text).with_fix("set it, with NTP: timedatectl set-ntp true")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_difference_beyond_whole_seconds_counts() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_900);
        let took = Duration::from_millis(300);
        let at = |seconds: i64| {
            let date = SystemTime::UNIX_EPOCH
                + Duration::from_secs(1_700_000_000_u64.saturating_add_signed(seconds));
            let check = clock_check(date, (now, took), "api");
            (check.mark, check.text)
        };
        assert_eq!(at(0).0, Sign::Good);
        assert_eq!(at(1).0, Sign::Good);
        assert_eq!(at(2).0, Sign::Good);
        assert_eq!(at(-1).0, Sign::Good);
        let (mark, text) = at(10);
        assert_eq!(mark, Sign::Warning);
        assert!(text.starts_with("8.8 s behind that of api"), "{text}");
        let (mark, text) = at(-10);
        assert_eq!(mark, Sign::Warning);
        assert!(text.starts_with("9.9 s ahead of that of api"), "{text}");
        assert_eq!(at(400).0, Sign::Bad);
        assert_eq!(at(-400).0, Sign::Bad);
    }
}
