//! The accounts at other providers: profile, key, and one request each where the profile allows one that is harmless.

use futures_util::future::join_all;

use super::api::{LIMIT, NO_RUN, Probed, clock_check, host, key_origin, probe};
use super::report::Check;
use super::{Advice, within_limit};
use crate::cli::phrases::cause;
use crate::config::{Loaded, ProviderSettings};
use crate::domain::RunRef;
use crate::profile::{PartKind, Profile, Scheme};
use crate::providers::{ApiClient, ApiError};
use crate::style::Sign;
use crate::text::error_chain;

/// A number that no run has.
const NO_NUMBER: &str = "0";

/// A UUID that no run has: the nil UUID (RFC 9562, 5.9).
const NO_UUID: &str = "00000000-0000-0000-0000-000000000000";

/// What was found out about one account.
pub(super) struct ProviderCheck {
    pub(super) check: Check,
    /// The clock of its API, if that answered.
    pub(super) clock: Option<Check>,
    /// Whether its key is missing or refused.
    pub(super) is_key_refused: bool,
}

/// Checks every account that the configuration names, and that of `default_provider`, all at the same time.
pub(super) async fn checks(loaded: &Loaded, advice: &Advice) -> Vec<ProviderCheck> {
    let providers = &loaded.settings.providers;
    let mut accounts: Vec<_> = providers.configured().cloned().collect();
    let default = providers.default_provider();
    let is_named = accounts.iter().any(|account| account.name == *default);
    let mut found = Vec::new();
    if !default.is_crewship() && !is_named {
        match providers.get(default) {
            Ok(account) => accounts.push(account),
            Err(why) => found.push(ProviderCheck {
                check: Check::new(format!("provider {default}"), Sign::Bad, why)
                    .with_fix("correct default_provider"),
                clock: None,
                is_key_refused: false,
            }),
        }
    }
    let checks = accounts.iter().map(async |account| {
        let found = examine(account, loaded).await;
        let keys = format!("providers.{}.", account.name);
        ProviderCheck {
            check: advice.about(&[&keys], found.check),
            ..found
        }
    });
    found.extend(join_all(checks).await);
    found
}

async fn examine(account: &ProviderSettings, loaded: &Loaded) -> ProviderCheck {
    let found = |mark, text: String| ProviderCheck {
        check: Check::new(format!("provider {}", account.name), mark, text),
        clock: None,
        is_key_refused: false,
    };
    let title = &account.profile.title;
    if !account.has_credentials() {
        let missing = found(Sign::Bad, format!("{title}, no key"));
        return ProviderCheck {
            check: missing
                .check
                .with_fix(&format!("set {}", account.how_to_give_a_key())),
            is_key_refused: true,
            ..missing
        };
    }
    let key = key_text(account, loaded);
    let Some(id) = no_run(account) else {
        return found(
            Sign::Good,
            format!("{title}, {key}; not tried, as each run has an address of its own"),
        );
    };
    let mut own = account.clone();
    own.api.connect_timeout = own.api.connect_timeout.min(LIMIT);
    own.api.request_timeout = own.api.request_timeout.min(LIMIT);
    let client = match within_limit(move || ApiClient::of_account(&own)).await {
        Ok(Ok(client)) => client,
        Ok(Err(error)) => return found(Sign::Bad, format!("{title}, {}", error_chain(&error))),
        Err(stuck) => {
            return found(
                Sign::Bad,
                format!("{title}; the certificates cannot be read: {stuck}"),
            );
        }
    };
    let probed = probe(&client, &id).await;
    let host = host(&account.api);
    let answer = ProbeAnswer::of(&probed, account, &host);
    let clock = probed
        .probe
        .date
        .map(|date| clock_check(date, (probed.began_at, probed.took), &host));
    let (mark, what, fix) = match answer {
        ProbeAnswer::Usable(what) => (Sign::Good, what, None),
        ProbeAnswer::Doubtful(what, fix) => (Sign::Warning, what, Some(fix)),
        ProbeAnswer::Bad(what, fix) => (Sign::Bad, what, Some(fix)),
    };
    let check = found(mark, format!("{title}, {key}, {what}")).check;
    ProviderCheck {
        check: match fix {
            Some(fix) => check.with_fix(&fix),
            None => check,
        },
        clock,
        is_key_refused: probed
            .probe
            .result
            .as_ref()
            .is_err_and(ApiError::is_unauthorized),
    }
}

/// Where the key comes from; never the key.
fn key_text(account: &ProviderSettings, loaded: &Loaded) -> String {
    let origin = key_origin(loaded, &format!("providers.{}", account.name));
    let auth = &account.profile.auth;
    if !origin.is_empty() {
        origin
    } else if !account.key_command.is_empty() {
        format!("key of {}", account.key_command[0])
    } else if account.password.is_some() {
        "user and password".to_owned()
    } else if account.api.key.is_some() {
        match auth.env.as_slice() {
            [] => "key set".to_owned(),
            names => format!("key of {}", names.join(" or ")),
        }
    } else if auth.scheme == Scheme::None {
        "needs no key".to_owned()
    } else {
        "no key, which is optional".to_owned()
    }
}

/// A run that the provider does not have; `None` where an ID is an address, at which anything could be.
fn no_run(account: &ProviderSettings) -> Option<RunRef> {
    let profile: &Profile = &account.profile;
    let value = |name: &str| match profile.parts.get(name) {
        Some(PartKind::Number) => Some(NO_NUMBER),
        Some(PartKind::Uuid) => Some(NO_UUID),
        Some(PartKind::Token) | None => Some(NO_RUN),
        Some(PartKind::Url) => None,
    };
    let values: Option<Vec<_>> = profile
        .id
        .names()
        .map(|name| Some((name, value(name)?)))
        .collect();
    let parts = profile.make_parts(values?).ok()?;
    RunRef::of(&account.name, &profile.write_id(&parts)).ok()
}

/// What the answer means, and what to do.
enum ProbeAnswer {
    Usable(String),
    Doubtful(String, String),
    Bad(String, String),
}

impl ProbeAnswer {
    fn of(probed: &Probed, account: &ProviderSettings, host: &str) -> Self {
        let took = probed.took.as_millis();
        let address = format!("providers.{}.base_url", account.name);
        let has_key = account.api.key.is_some()
            || account.password.is_some()
            || !account.key_command.is_empty();
        let accepted = if has_key { "accepted" } else { "answered" };
        match &probed.probe.result {
            Ok(()) if probed.probe.is_json => {
                Self::Usable(format!("{accepted} by {host} in {took} ms"))
            }
            // Some services answer with a page for people where there is no such run.
            Ok(()) => Self::Usable(format!(
                "{host} answers in {took} ms, but not with JSON; `runwatch providers test RUN` shows whether it is the API"
            )),
            Err(error @ ApiError::Unauthorized { .. }) => Self::Bad(
                format!("refused by {host}: {}", error.describe()),
                format!(
                    "set {}, to a key that is valid",
                    account.how_to_give_a_key()
                ),
            ),
            Err(error @ (ApiError::KeyMissing | ApiError::KeyUnusable(_))) => Self::Bad(
                error.describe(),
                format!("set {}", account.how_to_give_a_key()),
            ),
            Err(error @ (ApiError::Transport(_) | ApiError::Timeout)) => Self::Bad(
                format!("cannot reach {host}: {}", cause(&error.describe())),
                format!("check {address}, the network and the proxy variables"),
            ),
            Err(error @ ApiError::Redirect { .. }) => Self::Bad(
                format!("{host}: {}", error.describe()),
                format!("check {address}"),
            ),
            // The ID of no run may have a form that the service refuses; a key is looked at before.
            Err(ApiError::Status {
                status: 400 | 422, ..
            }) => Self::Usable(format!("{accepted} by {host} in {took} ms")),
            Err(error) => Self::Doubtful(
                format!("{host}: {}", error.describe()),
                "`runwatch providers test RUN` tries a run that there is".to_owned(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};
    use crate::domain::ProviderName;
    use crate::profile::builtin_names;

    #[test]
    fn every_built_in_profile_has_a_run_that_there_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        let table = |name: &&&str| **name != ProviderName::CREWSHIP;
        let tables = builtin_names().iter().filter(table);
        let text: String = tables
            .map(|name| format!("[providers.{name}]\nbase_url = \"http://127.0.0.1:1\"\n"))
            .collect();
        std::fs::write(&file, text).unwrap();
        let loaded = load(&Sources {
            explicit: Some(file),
            ..Sources::default()
        })
        .unwrap();
        let providers = &loaded.settings.providers;
        let without: Vec<_> = providers
            .configured()
            .filter(|account| no_run(account).is_none())
            .map(|account| account.name.as_str())
            .collect();
        // Those whose IDs are addresses.
        assert_eq!(without, ["azure-lro", "http202"]);
        let id = |name: &str| {
            let account = providers.get(&ProviderName::new(name).unwrap()).unwrap();
            no_run(&account).unwrap().to_string()
        };
        assert_eq!(
            id("github"),
            format!("github:{NO_RUN}/{NO_RUN}/{NO_NUMBER}")
        );
        assert_eq!(id("prefect"), format!("prefect:{NO_UUID}"));
    }
}
