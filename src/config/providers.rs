//! `[providers.*]`: accounts at run APIs, and which run a text names.

#[cfg(test)]
mod fixture;
mod read;
mod runs;

use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) use self::read::read_providers;
use self::read::{CONNECT_TIMEOUT, MAX_RESPONSE_BYTES, REQUEST_TIMEOUT, outside_key, text_of};
use super::source::Sources;
use super::{ApiSettings, Secret};
use crate::domain::ProviderName;
use crate::profile;
use crate::profile::{Profile, Scheme};

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

#[cfg(test)]
mod tests {
    use super::fixture::{OWN_HOST, name, providers};
    use super::*;
    use crate::config::load;

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
