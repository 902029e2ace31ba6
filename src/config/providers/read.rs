//! Reads `[providers.*]`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;

use super::{ProviderSettings, Providers, built_in};
use crate::config::load::{MAX_TIMEOUT, base_url, header_safe, run_url};
use crate::config::problem::{Origin, Problem};
use crate::config::reader::{Item, SettingsReader, Table};
use crate::config::rules::MIN_TIMEOUT;
use crate::config::source::Sources;
use crate::config::{ApiSettings, Secret, key_of_variable};
use crate::domain::ProviderName;
use crate::profile::{Profile, Scheme};
use crate::redact::REDACTED;
use crate::text::trimmed;
use crate::{blocking, profile};

/// Largest profile, in bytes.
const MAX_PROFILE_BYTES: u64 = 256 * 1024;

/// Default of `connect_timeout`, as in `[api]`.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Default of `request_timeout`, as in `[api]`.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// Default of `max_response_bytes`, as in `[api]`.
pub(super) const MAX_RESPONSE_BYTES: u64 = 8 * 1024 * 1024;

/// Reads all providers.
pub(in crate::config) fn read_providers(
    reader: &mut SettingsReader<'_>,
    root: &mut Table,
    crewship: ApiSettings,
    sources: &Sources,
) -> Providers {
    let mut all = reader.table(root, "providers");
    let mut configured = BTreeMap::new();
    for item in reader.drain(&mut all) {
        let name = ProviderName::new(item.name());
        if let Err(error) = &name {
            reader.refuse_unseen(&item, &error.to_string(), "rename it");
        }
        let Some(mut table) = reader.as_table(item) else {
            continue;
        };
        let Ok(name) = name else { continue };
        if let Some(settings) = read_provider(reader, &mut table, &name, sources) {
            configured.insert(name, settings);
        }
        reader.finish_rest(&mut table);
    }
    let default = reader
        .take(root, "default_provider", Some(ProviderName::CREWSHIP))
        .and_then(|item| {
            let known = |text: &str| {
                let name = ProviderName::new(text)
                    .map_err(|error| (error.to_string(), "correct it".to_owned()))?;
                if name.is_crewship()
                    || configured.contains_key(&name)
                    || profile::builtin_names().contains(&text)
                {
                    return Ok(name);
                }
                Err((
                    "no provider has this name".to_owned(),
                    format!(
                        "add [providers.{text}], or name a built-in one (`runwatch providers`)"
                    ),
                ))
            };
            reader.parsed(&item, known)
        });
    Providers {
        default: default.unwrap_or_else(ProviderName::crewship),
        crewship,
        configured,
        sources: sources.clone(),
    }
}

fn read_provider(
    reader: &mut SettingsReader<'_>,
    table: &mut Table,
    name: &ProviderName,
    sources: &Sources,
) -> Option<ProviderSettings> {
    let profile = read_profile(reader, table, name);
    let own_address = read_own_address(reader, table)?;
    let web = reader
        .take(table, "web", None)
        .and_then(|item| reader.parsed(&item, base_url));
    let user = reader
        .take(table, "user", None)
        .and_then(|item| reader.text(&item));
    let password = reader
        .take_secret(table, "password")
        .and_then(|found| reader.secret(found, |_| Ok(())));
    let key_command = reader
        .take(table, "key_command", None)
        .and_then(|item| reader.texts(&item))
        .unwrap_or_default();
    let key = reader.take_secret(table, "key");
    let allow_http = reader
        .take(table, "allow_http", Some("false"))
        .and_then(|item| reader.boolean(&item));
    let api = read_requests(reader, table, profile.as_deref());
    let profile = profile?;
    let base_url = match (&own_address, &profile.base_url) {
        (Some(own), _) => own.address.clone(),
        (None, Some(built_in)) => built_in.clone(),
        (None, None) => {
            let fix = "write the address of the API, such as https://ci.example.com";
            reader.missing(table, "base_url", fix);
            return None;
        }
    };
    let is_elsewhere = profile.base_url.as_ref() != Some(&base_url);
    let key = match key {
        Some(found) => reader.secret(found, header_safe),
        // A key in the environment is meant for the address of the profile, or for the provider of its name.
        None if is_elsewhere && profile.name != name.as_str() => None,
        None => read_outside_key(reader, table, name, &profile, sources),
    };
    let has_secret = key.is_some() || !key_command.is_empty() || password.is_some();
    if let Some(own) = own_address
        && has_secret
        && allow_http != Some(true)
    {
        own.refuse_unencrypted(reader);
    }
    let variable = |name: Option<&String>| text_of(sources, name?);
    let login = profile.auth.login.as_ref();
    Some(ProviderSettings {
        name: name.clone(),
        web: web.or_else(|| profile.web.clone().filter(|_| !is_elsewhere)),
        user: user
            .or_else(|| profile.auth.user.clone())
            .or_else(|| variable(profile.auth.user_env.as_ref()))
            .or_else(|| variable(login?.user_env.as_ref())),
        password: password.or_else(|| variable(login?.password_env.as_ref()).map(Secret::value)),
        key_command,
        api: ApiSettings {
            base_url,
            key,
            ..api?
        },
        profile,
    })
}

/// An address that the table of a provider has.
struct OwnAddress {
    item: Item,
    address: String,
}

impl OwnAddress {
    /// Reports a secret that a network would carry unencrypted to this address.
    fn refuse_unencrypted(&self, reader: &mut SettingsReader<'_>) {
        let is_local = Url::parse(&self.address).is_ok_and(|url| is_loopback(&url));
        if self.address.starts_with("http:") && !is_local {
            reader.refuse(
                &self.item,
                "the key would be sent unencrypted over a network",
                "use https, or set allow_http = true where the network is trusted",
            );
        }
    }
}

/// The address that the table has, if it has one; `None` where there is one that cannot be used.
fn read_own_address(
    reader: &mut SettingsReader<'_>,
    table: &mut Table,
) -> Option<Option<OwnAddress>> {
    let Some(item) = reader.take(table, "base_url", None) else {
        return Some(None);
    };
    // Before the @ may stand a password, even if the text is no URL.
    if item.as_text().is_some_and(|text| text.contains('@')) {
        let what = "the URL has a user name or password, or another @";
        reader.refuse_unseen(&item, what, "remove it; the key goes to key_file");
        return None;
    }
    let address = reader.parsed(&item, base_url)?;
    Some(Some(OwnAddress { item, address }))
}

/// How requests are made, without the address and the key.
fn read_requests(
    reader: &mut SettingsReader<'_>,
    table: &mut Table,
    profile: Option<&Profile>,
) -> Option<ApiSettings> {
    let per_minute = profile.map_or(60, |profile| profile.rate.per_minute);
    let integer = reader.take(table, "requests_per_minute", Some(&per_minute.to_string()));
    let requests_per_minute = integer.and_then(|item| reader.integer(&item, 1, 1_000_000));
    let mut time = |key, default| {
        let item = reader.take(table, key, Some(default))?;
        reader.duration(&item, MIN_TIMEOUT, MAX_TIMEOUT)
    };
    let connect_timeout = time("connect_timeout", "5s");
    let request_timeout = time("request_timeout", "15s");
    let size = reader.take(table, "max_response_bytes", Some("8MiB"));
    let max_response_bytes = size.and_then(|item| reader.size(&item, 1 << 10, 1 << 30));
    let run_url = reader
        .take(table, "run_url", Some(""))
        .and_then(|item| reader.parsed(&item, run_url))
        .flatten();
    Some(ApiSettings {
        base_url: String::new(),
        key: None,
        requests_per_minute: requests_per_minute?,
        connect_timeout: connect_timeout?,
        request_timeout: request_timeout?,
        max_response_bytes: max_response_bytes?,
        run_url,
    })
}

/// The key that is outside of the table, as [`outside_key`] finds it.
fn read_outside_key(
    reader: &mut SettingsReader<'_>,
    table: &mut Table,
    name: &ProviderName,
    profile: &Profile,
    sources: &Sources,
) -> Option<Secret> {
    match outside_key(name, profile, sources)? {
        Ok((key, origin)) => {
            reader.show_outside(table, "key", REDACTED, origin);
            Some(key)
        }
        Err((origin, what, fix)) => {
            reader.outside(origin, &format!("providers.{name}.key"), &what, &fix);
            None
        }
    }
}

/// The profile that `profile` or `profile_file` names, or the built-in one with the provider's name.
fn read_profile(
    reader: &mut SettingsReader<'_>,
    table: &mut Table,
    name: &ProviderName,
) -> Option<Arc<Profile>> {
    let built_in_item = reader.take(table, "profile", None);
    let file = reader.take(table, "profile_file", None);
    match (built_in_item, file) {
        (Some(item), Some(_)) => {
            reader.refuse(
                &item,
                "both profile and profile_file are set",
                "keep one of them",
            );
            None
        }
        (Some(item), None) => reader.parsed(&item, |text| {
            built_in(text)
                .unwrap_or_else(|| Err("there is no built-in profile of this name".to_owned()))
                .map_err(|what| {
                    (
                        what,
                        format!("write one of {}", profile::builtin_names().join(", ")),
                    )
                })
        }),
        (None, Some(item)) => {
            let path = reader.path(&item)?;
            let text = match read_file(&path) {
                Ok(text) => text,
                Err(what) => {
                    reader.refuse(&item, what, "check the path and its permissions");
                    return None;
                }
            };
            profile::parse(&text, name.as_str())
                .map(Arc::new)
                .map_err(|faults| {
                    reader
                        .problems
                        .extend(faults.into_iter().map(|fault| problem(&path, fault)))
                })
                .ok()
        }
        (None, None) => match built_in(name.as_str()) {
            Some(Ok(profile)) => Some(profile),
            _ => {
                let fix = "write the name of a built-in profile (`runwatch providers`), or set profile_file";
                reader.missing(table, "profile", fix);
                None
            }
        },
    }
}

pub(super) fn problem(path: &Path, fault: profile::ProfileFault) -> Problem {
    Problem {
        origin: Some(Origin::File {
            path: path.to_owned(),
            position: Some((fault.line, 1)),
        }),
        key: fault.key,
        value: None,
        what: fault.what,
        fix: fault.fix,
    }
}

fn read_file(path: &Path) -> Result<String, String> {
    let bytes = blocking::read_file(path, MAX_PROFILE_BYTES)
        .map_err(|error| format!("the file cannot be read ({error})"))?;
    if bytes.len() as u64 > MAX_PROFILE_BYTES {
        return Err(format!("the file has more than {MAX_PROFILE_BYTES} bytes"));
    }
    blocking::text(bytes).map_err(|error| format!("the file cannot be read ({error})"))
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host.ends_with(".localhost")
        || address
            .parse()
            .is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

pub(super) fn text_of(sources: &Sources, variable: &str) -> Option<String> {
    let value = sources.path_of(variable)?;
    value.to_str().map(|value| trimmed(value).to_owned())
}

type BadKey = (Origin, String, String);

/// The key of a provider that is not in its table: in a variable or the file of its profile, or in the systemd
/// credential `NAME-api-key`.
pub(super) fn outside_key(
    name: &ProviderName,
    profile: &Profile,
    sources: &Sources,
) -> Option<Result<(Secret, Origin), BadKey>> {
    if profile.auth.scheme == Scheme::None {
        return None;
    }
    for variable in &profile.auth.env {
        let Some(value) = sources.path_of(variable) else {
            continue;
        };
        let origin = Origin::Environment {
            variable: variable.clone(),
        };
        return Some(match key_of_variable(&value) {
            Ok(key) => Ok((key, origin)),
            Err((what, fix)) => Err((
                origin,
                format!("{variable} is not a key: {what}"),
                fix.to_owned(),
            )),
        });
    }
    let file = profile.auth.file.as_ref().map(PathBuf::from);
    if let Some(path) = file.filter(|path| path.exists()) {
        let origin = Origin::File {
            path: path.clone(),
            position: None,
        };
        return Some(Ok((Secret::File(path), origin)));
    }
    let credential = format!("{name}-api-key");
    let path = sources.path_of("CREDENTIALS_DIRECTORY")?.join(&credential);
    path.exists().then(|| {
        let origin = Origin::Credential { name: credential };
        Ok((Secret::File(path), origin))
    })
}
