//! `[providers.*]`: accounts at run APIs, and which run a text names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;

use super::load::{MAX_TIMEOUT, base_url, header_safe, run_url};
use super::problem::{Origin, Problem};
use super::reader::{SettingsReader, Table};
use super::rules::MIN_TIMEOUT;
use super::source::Sources;
use super::{ApiSettings, Secret, check_key};
use crate::blocking;
use crate::domain::{ProviderName, RunRef};
use crate::profile::{self, Profile, Scheme};
use crate::redact::REDACTED;
use crate::text::trimmed;

/// Largest profile, in bytes.
const MAX_PROFILE_BYTES: u64 = 256 * 1024;

/// `[providers.NAME]`: an account at a service with a run API.
#[derive(Debug, Clone)]
pub struct ProviderSettings {
    /// Its name.
    pub name: ProviderName,
    /// How its API is read.
    pub profile: Arc<Profile>,
    /// Where its pages for people are, if not at the address of the API.
    pub web: Option<String>,
    /// The user, where credentials are a user and a key.
    pub user: Option<String>,
    /// The password of a profile that logs in.
    pub password: Option<Secret>,
    /// The program and its arguments whose output is the key; empty for none.
    pub key_command: Vec<String>,
    /// Address, key, limits and times.
    pub api: ApiSettings,
}

impl ProviderSettings {
    /// Whether requests can carry the credentials that the profile requires.
    pub fn has_credentials(&self) -> bool {
        let auth = &self.profile.auth;
        self.api.key.is_some()
            || !self.key_command.is_empty()
            || auth.optional
            || auth.scheme == Scheme::None
            || (auth.login.is_some() && self.user.is_some() && self.password.is_some())
    }

    /// What to do for a provider without credentials.
    pub fn how_to_give_a_key(&self) -> String {
        let key = format!("providers.{}.key_file in the configuration", self.name);
        if self.name.is_crewship() {
            return "CREWSHIP_API_KEY, or api.key_file in the configuration".to_owned();
        }
        match self.profile.auth.env.as_slice() {
            [] => key,
            names => format!("{}, or {key}", names.join(" or ")),
        }
    }
}

/// All accounts: those of the configuration, and the built-in ones that need none.
#[derive(Debug, Clone)]
pub struct Providers {
    default: ProviderName,
    crewship: ApiSettings,
    configured: BTreeMap<ProviderName, ProviderSettings>,
    /// The environment, for the keys of built-in providers without a table. Its `Debug` shows none of it.
    sources: Sources,
}

impl Providers {
    /// The provider of a bare ID.
    pub fn default_provider(&self) -> &ProviderName {
        &self.default
    }

    /// Whether some run can be polled: Crewship's key is there, or another provider is configured.
    pub fn has_account(&self) -> bool {
        self.crewship.key.is_some()
            || !self.default.is_crewship()
            || self
                .configured
                .values()
                .any(ProviderSettings::has_credentials)
    }

    /// The providers that the configuration names.
    pub fn configured(&self) -> impl Iterator<Item = &ProviderSettings> {
        self.configured.values()
    }

    /// The account of a provider: that of the configuration, or else that of the built-in profile of this name or alias.
    ///
    /// # Errors
    /// Why there is none, and what to do.
    pub fn get(&self, name: &ProviderName) -> Result<ProviderSettings, String> {
        if name.is_crewship() {
            return Ok(ProviderSettings {
                name: name.clone(),
                profile: built_in(ProviderName::CREWSHIP)
                    .unwrap_or_else(|| Err("it is not built in".to_owned()))?,
                web: None,
                user: None,
                password: None,
                key_command: Vec::new(),
                api: self.crewship.clone(),
            });
        }
        if let Some(settings) = self.configured.get(name) {
            return Ok(settings.clone());
        }
        let profile = built_in(name.as_str()).ok_or_else(|| self.unknown(name.as_str()))??;
        // An alias stands for the name, and so for the account that has it.
        if let Some((_, settings)) = self
            .configured
            .iter()
            .find(|(name, _)| name.as_str() == profile.name)
        {
            return Ok(settings.clone());
        }
        let Some(base_url) = profile.base_url.clone() else {
            return Err(format!(
                "{name} has no address of its own: set providers.{name}.base_url in the configuration"
            ));
        };
        let key = outside_key(name, &profile, &self.sources).map_or(Ok(None), |found| {
            found
                .map(|(key, _)| Some(key))
                .map_err(|(_, what, fix)| format!("{what}; {fix}"))
        })?;
        let variable = |name: &Option<String>| text_of(&self.sources, name.as_deref()?);
        let login = profile.auth.login.as_ref();
        Ok(ProviderSettings {
            name: ProviderName::new(&profile.name).map_err(|error| error.to_string())?,
            web: profile.web.clone(),
            user: profile
                .auth
                .user
                .clone()
                .or_else(|| variable(&profile.auth.user_env))
                .or_else(|| variable(&login?.user_env)),
            password: login
                .and_then(|login| variable(&login.password_env))
                .map(Secret::value),
            key_command: Vec::new(),
            api: ApiSettings {
                base_url,
                key,
                requests_per_minute: profile.rate.per_minute,
                connect_timeout: CONNECT_TIMEOUT,
                request_timeout: REQUEST_TIMEOUT,
                max_response_bytes: MAX_RESPONSE_BYTES,
                run_url: None,
            },
            profile,
        })
    }

    /// The run that a text names: an ID of the default provider, `PROVIDER:ID`, or the URL of a run's page.
    ///
    /// # Errors
    /// What is wrong with it, and what to do. No request is made.
    pub fn run(&self, text: &str) -> Result<RunRef, String> {
        if let Some((provider, id)) = text.split_once(':')
            && !id.starts_with("//")
        {
            let name = ProviderName::new(provider).map_err(|_invalid| self.unknown(provider))?;
            return self.run_of(&name, id);
        }
        if text.contains("://") {
            return self.run_of_page(text);
        }
        self.run_of(&self.default, text)
    }

    /// The run that `provider`, or the provider of this alias, knows as `id`.
    ///
    /// # Errors
    /// As [`Providers::run`].
    pub fn run_of(&self, provider: &ProviderName, id: &str) -> Result<RunRef, String> {
        if provider.is_crewship() {
            return RunRef::of(provider, id).map_err(|error| error.to_string());
        }
        let settings = self.get(provider)?;
        let name = &settings.name;
        let parts = settings
            .profile
            .read_id(id)
            .map_err(|problem| format!("{id:?} is not the ID of a run of {name}: {problem}"))?;
        RunRef::of(name, &settings.profile.write_id(&parts)).map_err(|error| error.to_string())
    }

    fn run_of_page(&self, page: &str) -> Result<RunRef, String> {
        let url = Url::parse(page).map_err(|error| format!("it is not a URL ({error})"))?;
        let of_crewship = run_of_crewship_page(
            page,
            &url,
            self.crewship.run_url.as_deref(),
            &self.crewship.base_url,
        );
        if let Some(run) = of_crewship {
            return run;
        }
        let mut named: Vec<ProviderSettings> = self.configured.values().cloned().collect();
        let built_in = profile::builtin_names().iter().filter_map(|name| {
            let name = ProviderName::new(name).ok()?;
            let is_new = !name.is_crewship() && !self.configured.contains_key(&name);
            is_new.then(|| self.get(&name).ok()).flatten()
        });
        let configured = named.len();
        named.extend(built_in);
        let runs = |settings: &ProviderSettings| {
            let (base, web) = (&settings.api.base_url, settings.web.as_deref());
            let parts = settings.profile.read_url(&url, base, web)?;
            RunRef::of(&settings.name, &settings.profile.write_id(&parts)).ok()
        };
        let found: Vec<RunRef> = named[..configured].iter().filter_map(runs).collect();
        match found.as_slice() {
            [run] => return Ok(run.clone()),
            [] => {}
            several => {
                let several: Vec<_> = several.iter().map(ToString::to_string).collect();
                return Err(format!(
                    "it is a run of several providers: write {}",
                    several.join(" or ")
                ));
            }
        }
        if let Some(run) = named[configured..].iter().find_map(runs) {
            return Ok(run);
        }
        Err(self.foreign_page(&url, &named))
    }

    /// Why the address of a page is not accepted.
    fn foreign_page(&self, url: &Url, named: &[ProviderSettings]) -> String {
        let host = url.host_str().unwrap_or_default();
        let origin = url.origin().ascii_serialization();
        let mut shapes: Vec<String> = named
            .iter()
            .filter(|settings| settings.profile.url_shape(url))
            .map(|settings| settings.name.to_string())
            .collect();
        let without_address = profile::builtin_names().iter().filter(|name| {
            built_in(name)
                .and_then(Result::ok)
                .is_some_and(|profile| profile.base_url.is_none() && profile.url_shape(url))
        });
        shapes.extend(without_address.map(|name| (*name).to_owned()));
        shapes.sort_unstable();
        shapes.dedup();
        match shapes.as_slice() {
            [] => {
                let known = [
                    self.crewship.run_url.clone(),
                    Some(self.crewship.base_url.clone()),
                ];
                let mut origins: Vec<_> = known
                    .into_iter()
                    .flatten()
                    .filter_map(|known| Url::parse(&known.replace("{run_id}", "RUN_ID")).ok())
                    .map(|known| known.origin().ascii_serialization())
                    .collect();
                origins.dedup();
                format!(
                    "no provider has its runs at {origin}; runs are watched at {} and at the providers that `runwatch \
                     providers` lists; give the run as PROVIDER:ID, or set api.run_url to the address of its page",
                    origins.join(" and ")
                )
            }
            shapes => format!(
                "it looks like a run of {}, but none of them is configured for {origin}, and the key must not go there \
                 by itself; add [providers.NAME] with profile = \"{}\" and the base_url of {host}, and use NAME",
                shapes.join(" or "),
                shapes[0],
            ),
        }
    }

    fn unknown(&self, name: &str) -> String {
        let mut known: Vec<_> = self.configured.keys().map(ProviderName::as_str).collect();
        known.extend(profile::builtin_names());
        known.sort_unstable();
        known.dedup();
        format!(
            "no provider is named {name:?}; known are {}; another one needs [providers.NAME] in the configuration",
            known.join(", ")
        )
    }
}

/// The built-in profile of this name or alias. One that cannot be read is a mistake in this program.
fn built_in(name: &str) -> Option<Result<Arc<Profile>, String>> {
    let found = profile::builtin(name)?;
    Some(found.map_err(|faults| {
        let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
        format!(
            "the built-in profile {name} cannot be read: {}",
            faults.join("; ")
        )
    }))
}

/// Reads the run ID in the address of a page of Crewship: where `run_url` has it, or else after the last segment `runs`.
/// The scheme, the host and the port must be those of `run_url` or `base_url`, as an address of another service names a
/// run there; `None` where they are not.
fn run_of_crewship_page(
    page: &str,
    url: &Url,
    run_url: Option<&str>,
    base_url: &str,
) -> Option<Result<RunRef, String>> {
    let known = run_url
        .map(|template| template.replace("{run_id}", "RUN_ID"))
        .into_iter()
        .chain([base_url.to_owned()])
        .filter_map(|known| Url::parse(&known).ok());
    let plain = url.username().is_empty() && url.password().is_none();
    if !plain
        || !known
            .into_iter()
            .any(|known| known.origin() == url.origin())
    {
        return None;
    }
    let in_template = run_url
        .and_then(|template| template.split_once("{run_id}"))
        .and_then(|(before, _)| page.strip_prefix(before))
        .and_then(|rest| rest.split(['/', '?', '#', '&']).next());
    let segments: Vec<_> = url.path_segments().into_iter().flatten().collect();
    let after_runs = segments
        .iter()
        .rposition(|segment| *segment == "runs")
        .and_then(|at| segments.get(at + 1).copied());
    let run = in_template
        .or(after_runs)
        .and_then(|id| RunRef::of(&ProviderName::crewship(), id).ok());
    Some(run.ok_or_else(|| "there is no run ID in it, such as in https://…/runs/RUN_ID".to_owned()))
}

/// Default of `connect_timeout`, as in `[api]`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Default of `request_timeout`, as in `[api]`.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Default of `max_response_bytes`, as in `[api]`.
const MAX_RESPONSE_BYTES: u64 = 8 * 1024 * 1024;

/// Reads all providers.
pub(super) fn read_providers(
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
    let own_address = match reader.take(table, "base_url", None) {
        // Before the @ may stand a password, even if the text is no URL.
        Some(item) if item.as_text().is_some_and(|text| text.contains('@')) => {
            let what = "the URL has a user name or password, or another @";
            reader.refuse_unseen(&item, what, "remove it; the key goes to key_file");
            return None;
        }
        Some(item) => {
            let found = reader.parsed(&item, base_url)?;
            Some((item, found))
        }
        None => None,
    };
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
    let per_minute = profile
        .as_ref()
        .map_or(60, |profile| profile.rate.per_minute)
        .to_string();
    let integer = reader.take(table, "requests_per_minute", Some(&per_minute));
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
    let profile = profile?;
    let base = match (&own_address, &profile.base_url) {
        (Some((_, own)), _) => own.clone(),
        (None, Some(built_in)) => built_in.clone(),
        (None, None) => {
            reader.missing(
                table,
                "base_url",
                "write the address of the API, such as https://ci.example.com",
            );
            return None;
        }
    };
    let own = own_address.is_some()
        && own_address.as_ref().map(|(_, own)| own) != profile.base_url.as_ref();
    let key = match key {
        Some(found) => reader.secret(found, header_safe),
        // A key in the environment is meant for the address of the profile, or for the provider of its name.
        None if own && profile.name != name.as_str() => None,
        None => match outside_key(name, &profile, sources) {
            Some(Ok((key, origin))) => {
                reader.show_outside(table, "key", REDACTED, origin);
                Some(key)
            }
            Some(Err((origin, what, fix))) => {
                reader.outside(origin, &format!("providers.{name}.key"), &what, &fix);
                None
            }
            None => None,
        },
    };
    let is_local = Url::parse(&base).is_ok_and(|url| is_loopback(&url));
    if let Some((item, own)) = &own_address
        && own.starts_with("http:")
        && !is_local
        && (key.is_some() || !key_command.is_empty() || password.is_some())
        && allow_http != Some(true)
    {
        reader.refuse(
            item,
            "the key would be sent unencrypted over a network",
            "use https, or set allow_http = true where the network is trusted",
        );
    }
    let variable = |name: Option<&String>| text_of(sources, name?);
    let login = profile.auth.login.as_ref();
    Some(ProviderSettings {
        name: name.clone(),
        web: web.or_else(|| profile.web.clone().filter(|_| !own)),
        user: user
            .or_else(|| profile.auth.user.clone())
            .or_else(|| variable(profile.auth.user_env.as_ref()))
            .or_else(|| variable(login?.user_env.as_ref())),
        password: password.or_else(|| variable(login?.password_env.as_ref()).map(Secret::value)),
        key_command,
        api: ApiSettings {
            base_url: base,
            key,
            requests_per_minute: requests_per_minute?,
            connect_timeout: connect_timeout?,
            request_timeout: request_timeout?,
            max_response_bytes: max_response_bytes?,
            run_url,
        },
        profile,
    })
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

fn problem(path: &Path, fault: profile::Fault) -> Problem {
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

fn text_of(sources: &Sources, variable: &str) -> Option<String> {
    let value = sources.path_of(variable)?;
    value.to_str().map(|value| trimmed(value).to_owned())
}

type BadKey = (Origin, String, String);

/// The key of a provider that is not in its table: in a variable or the file of its profile, or in the systemd
/// credential `NAME-api-key`.
fn outside_key(
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
        let checked = match value.to_str().map(trimmed) {
            Some(value) => check_key(value).map(|()| value),
            None => Err((
                "it has unusual characters: it is not UTF-8",
                "copy the key again",
            )),
        };
        return Some(match checked {
            Ok(value) => Ok((Secret::value(value), origin)),
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

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::config::load;

    const API: &str = "[api]\nbase_url = \"https://api.example.com\"\n";
    const CONSOLE: &str = "[api]\nbase_url = \"https://api.example.com\"\n\
                           run_url = \"https://console.example.com/acme/run?id={run_id}\"\n";
    const OWN_HOST: &str =
        "[providers.ci]\nprofile = \"gitlab\"\nbase_url = \"https://gitlab.example.com\"\n";

    fn providers(text: &str, environment: &[(&str, &str)]) -> Providers {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        let environment = environment.iter();
        let sources = Sources {
            explicit: Some(path),
            environment: environment
                .map(|(name, value)| (OsString::from(name), OsString::from(value)))
                .collect(),
            ..Sources::default()
        };
        load(&sources)
            .unwrap_or_else(|problems| panic!("{problems}"))
            .settings
            .providers
    }

    fn name(text: &str) -> ProviderName {
        ProviderName::new(text).unwrap()
    }

    #[test]
    fn pages_of_the_configured_hosts_name_runs() {
        for (page, text) in [
            ("https://api.example.com/v1/runs/run_1", API),
            ("https://API.example.com:443/runs/run_1/", API),
            ("https://api.example.com/runs/run_1?tab=log#end", API),
            ("https://api.example.com/runs/run_1/steps/3", API),
            ("https://console.example.com/runs/run_1", CONSOLE),
            (
                "https://console.example.com/acme/run?id=run_1&tab=log",
                CONSOLE,
            ),
            ("https://api.example.com/runs/run_1", CONSOLE),
        ] {
            let found = providers(text, &[]).run(page);
            assert_eq!(found.unwrap().as_str(), "run_1", "{page}");
        }
    }

    #[test]
    fn pages_of_others_and_pages_without_a_run_are_refused() {
        let providers = providers(API, &[]);
        for (page, why) in [
            (
                "https://evil.example.com/runs/run_1",
                "https://api.example.com",
            ),
            (
                "http://api.example.com/runs/run_1",
                "no provider has its runs at http://api.example.com",
            ),
            (
                "https://api.example.com:8443/runs/run_1",
                "no provider has its runs at https://api.example.com:8443",
            ),
            (
                "https://api.example.com@evil.example.com/runs/run_1",
                "runs are watched at https://api.example.com",
            ),
            ("https://api.example.com/runs/", "no run ID in it"),
            ("https://api.example.com/runs/a%2Fb", "no run ID in it"),
            ("https://api.example.com/", "no run ID in it"),
            ("https://", "not a URL"),
        ] {
            let error = providers.run(page).unwrap_err();
            assert!(error.contains(why), "{page}: {error}");
        }
    }

    #[test]
    fn runs_are_named_by_provider_alias_or_page() {
        let providers = providers(OWN_HOST, &[]);
        for (text, run) in [
            ("run_1", "run_1"),
            ("crewship:run_1", "run_1"),
            ("github:acme/site/7", "github:acme/site/7"),
            ("gh:acme/site/7", "github:acme/site/7"),
            (
                "https://github.com/acme/site/actions/runs/7/attempts/2?pr=1#job",
                "github:acme/site/7",
            ),
            ("ci:group/sub/project/12", "ci:group/sub/project/12"),
            (
                "https://gitlab.example.com/group/sub/project/-/pipelines/12",
                "ci:group/sub/project/12",
            ),
            (
                "https://gitlab.com/group/project/-/pipelines/12",
                "gitlab:group/project/12",
            ),
        ] {
            assert_eq!(providers.run(text).unwrap().as_str(), run, "{text}");
        }
    }

    #[test]
    fn what_names_no_run_is_refused_with_what_to_do() {
        let providers = providers(OWN_HOST, &[]);
        for (text, why) in [
            ("../keys", "is not a run ID"),
            ("a/b", "is not a run ID"),
            ("nope:1", "no provider is named \"nope\""),
            ("GitHub:acme/site/7", "no provider is named"),
            ("github:acme/7", "{owner}/{repo}/{run}"),
            ("github:acme/site/seven", "github"),
            ("github:acme/../7", "github"),
            ("gitea:acme/site/7", "providers.gitea.base_url"),
            (
                "https://ghe.example.com/acme/site/actions/runs/7",
                "looks like a run of",
            ),
            (
                "https://github.com.evil.example/acme/site/actions/runs/7",
                "the key must not go there",
            ),
            (
                "https://github.com@evil.example/acme/site/actions/runs/7",
                "no provider has its runs at",
            ),
        ] {
            let error = providers.run(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn an_alias_stands_for_the_configured_account() {
        let text = "[providers.gitea]\nbase_url = \"https://git.example.com\"\n";
        let providers = providers(text, &[]);
        let account = providers.get(&name("forgejo")).unwrap();
        assert_eq!(
            (account.name.as_str(), account.api.base_url.as_str()),
            ("gitea", "https://git.example.com")
        );
        let run = providers.run("forgejo:acme/site/7").unwrap();
        assert_eq!(run.as_str(), "gitea:acme/site/7");
    }

    #[test]
    fn a_page_of_two_accounts_names_both() {
        let other = OWN_HOST.replace("[providers.ci]", "[providers.other]");
        let providers = providers(&format!("{OWN_HOST}{other}"), &[]);
        let page = "https://gitlab.example.com/group/project/-/pipelines/12";
        let error = providers.run(page).unwrap_err();
        assert!(
            error.contains("ci:group/project/12 or other:group/project/12"),
            "{error}"
        );
    }

    #[test]
    fn a_key_of_the_environment_goes_to_the_address_of_its_profile_only() {
        let environment = [
            ("GITLAB_TOKEN", "glpat_12345678"),
            ("GH_TOKEN", "ghp_12345678"),
        ];
        let providers = providers(OWN_HOST, &environment);
        let has_key = |provider| {
            let account = providers.get(&name(provider)).unwrap();
            (account.api.key.is_some(), account.has_credentials())
        };
        assert_eq!(has_key("github"), (true, true));
        assert_eq!(has_key("gitlab"), (true, true));
        assert_eq!(has_key("ci"), (false, false), "another host");
        assert_eq!(has_key("crewship"), (false, false));
        assert_eq!(has_key("prefect"), (false, true), "its key is optional");
        assert!(!format!("{providers:?}").contains("12345678"));
    }

    #[test]
    fn the_default_provider_has_the_bare_ids() {
        let providers = providers("default_provider = \"github\"\n", &[]);
        let run = |text| providers.run(text).unwrap().as_str().to_owned();
        assert_eq!(run("acme/site/7"), "github:acme/site/7");
        assert_eq!(run("crewship:run_1"), "run_1");
    }

    #[test]
    fn the_table_of_crewship_is_that_of_the_api() {
        let text = "[providers.crewship]\nbase_url = \"https://crews.example.com\"\nrequests_per_minute = 7\n\
                    [api]\nrequests_per_minute = 9\n";
        let account = providers(text, &[]).get(&name("crewship")).unwrap();
        let api = account.api;
        assert_eq!(
            (api.base_url.as_str(), api.requests_per_minute),
            ("https://crews.example.com", 9)
        );
    }

    #[test]
    fn faults_of_accounts_are_named_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(
            folder.path().join("bad.toml"),
            "id = \"{run}\"\nget = \"//evil/{run}\"\n",
        )
        .unwrap();
        for (text, key, what) in [
            ("[providers.x]\n", "providers.x.profile", "required"),
            (
                "[providers.x]\nprofile = \"nope\"\n",
                "providers.x.profile",
                "no built-in profile",
            ),
            (
                "[providers.gitea]\n",
                "providers.gitea.base_url",
                "required",
            ),
            (
                "[providers.GitHub]\nprofile = \"github\"\n",
                "providers.GitHub",
                "provider name",
            ),
            (
                "[providers.ci]\nprofile = \"gitlab\"\nbase_url = \"http://git.example.com\"\nkey = \"glpat_12345678\"\n",
                "providers.ci.base_url",
                "unencrypted",
            ),
            (
                "[providers.ci]\nprofile = \"gitlab\"\nbase_url = \"https://u:p@git.example.com\"\n",
                "providers.ci.base_url",
                "another @",
            ),
            ("[providers.x]\nprofile_file = \"bad.toml\"\n", "get", ""),
            (
                "default_provider = \"nope\"\n",
                "default_provider",
                "no provider has this name",
            ),
        ] {
            std::fs::write(&path, text).unwrap();
            let sources = Sources {
                explicit: Some(path.clone()),
                ..Sources::default()
            };
            let problems = load(&sources).unwrap_err();
            let found = problems.0.iter().any(|problem| {
                problem.key == key
                    && problem.what.contains(what)
                    && problem.origin.is_some()
                    && !problem.fix.is_empty()
            });
            assert!(found, "{text}: {problems}");
            assert!(!problems.to_string().contains("12345678"), "{problems}");
        }
    }
}
