//! Which run a text names: an ID, a provider and an ID, or the address of a page.

use reqwest::Url;

use super::{ProviderSettings, Providers, built_in};
use crate::domain::{ProviderName, RunRef};
use crate::profile;

impl Providers {
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

    pub(super) fn unknown(&self, name: &str) -> String {
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

#[cfg(test)]
mod tests {
    use crate::config::providers::fixture::{API, CONSOLE, OWN_HOST, providers};

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
    fn the_default_provider_has_the_bare_ids() {
        let providers = providers("default_provider = \"github\"\n", &[]);
        let run = |text| providers.run(text).unwrap().as_str().to_owned();
        assert_eq!(run("acme/site/7"), "github:acme/site/7");
        assert_eq!(run("crewship:run_1"), "run_1");
    }
}
