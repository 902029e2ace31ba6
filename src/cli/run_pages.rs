//! The addresses of runs' pages, which are accepted where a run ID is.

use anyhow::Context as _;
use reqwest::Url;

use super::args::RunArg;
use crate::config::{self, Sources};
use crate::domain::RunRef;

/// Finds the run that the address of a page names. The configuration, which says whose addresses are trusted, is read
/// when there is such an address.
#[derive(Clone)]
pub struct RunPages(Sources);

impl RunPages {
    /// For the configuration from `sources`.
    pub fn new(sources: Sources) -> Self {
        Self(sources)
    }

    /// Returns the run of a page.
    ///
    /// # Errors
    /// When the configuration cannot be used, or the address is not one of a run's page there.
    pub(super) fn run_id(&self, page: &str) -> anyhow::Result<RunRef> {
        let settings = config::load(&self.0)
            .with_context(|| format!("{page}: the configuration does not say whose page it is"))?
            .settings;
        run_of_page(
            page,
            settings.api.run_url.as_deref(),
            &settings.api.base_url,
        )
        .map_err(|why| anyhow::anyhow!("{page} is not accepted as a run ID: {why}"))
    }

    /// Returns the run of a command's one argument.
    ///
    /// # Errors
    /// As `run_id`, and for `-`, which stands for many runs.
    pub fn one(&self, run: &RunArg) -> anyhow::Result<RunRef> {
        match run {
            RunArg::Id(run_id) => Ok(run_id.clone()),
            RunArg::Page(page) => self.run_id(page),
            RunArg::Stdin => anyhow::bail!("this command takes one run ID, not standard input"),
        }
    }
}

/// Reads the run ID in the address of a page: where `run_url` has it, or else after the last segment `runs`. The scheme,
/// the host and the port must be those of `run_url` or `base_url`: an address of another service names a run there.
///
/// # Errors
/// What is wrong, and what to do.
fn run_of_page(page: &str, run_url: Option<&str>, base_url: &str) -> Result<RunRef, String> {
    let url = Url::parse(page).map_err(|error| format!("it is not a URL ({error})"))?;
    let known: Vec<Url> = run_url
        .map(|template| template.replace("{run_id}", "RUN_ID"))
        .into_iter()
        .chain([base_url.to_owned()])
        .filter_map(|known| Url::parse(&known).ok())
        .collect();
    if !known.iter().any(|known| known.origin() == url.origin()) {
        let mut origins: Vec<_> = known
            .iter()
            .map(|known| known.origin().ascii_serialization())
            .collect();
        origins.dedup();
        return Err(format!(
            "runs are watched at {}; give the run's ID, or set api.run_url to the address of its page",
            origins.join(" and ")
        ));
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
    in_template
        .or(after_runs)
        .and_then(|id| RunRef::new(id).ok())
        .ok_or_else(|| "there is no run ID in it, such as in https://…/runs/RUN_ID".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const API: &str = "https://api.example.com";
    const CONSOLE: &str = "https://console.example.com/acme/run?id={run_id}";

    #[test]
    fn pages_of_the_configured_hosts_name_runs() {
        for (page, run_url) in [
            ("https://api.example.com/v1/runs/run_1", None),
            ("https://API.example.com:443/runs/run_1/", None),
            ("https://api.example.com/runs/run_1?tab=log#end", None),
            ("https://api.example.com/runs/run_1/steps/3", None),
            ("https://console.example.com/runs/run_1", Some(CONSOLE)),
            (
                "https://console.example.com/acme/run?id=run_1&tab=log",
                Some(CONSOLE),
            ),
            ("https://api.example.com/runs/run_1", Some(CONSOLE)),
        ] {
            let found = run_of_page(page, run_url, API);
            assert_eq!(found.unwrap().as_str(), "run_1", "{page}");
        }
    }

    #[test]
    fn pages_of_others_and_pages_without_a_run_are_refused() {
        for (page, why) in [
            (
                "https://evil.example.com/runs/run_1",
                "https://api.example.com",
            ),
            ("http://api.example.com/runs/run_1", "runs are watched at"),
            (
                "https://api.example.com:8443/runs/run_1",
                "runs are watched at",
            ),
            (
                "https://api.example.com@evil.example.com/runs/run_1",
                "runs are watched at",
            ),
            ("https://api.example.com/runs/", "no run ID in it"),
            ("https://api.example.com/runs/a%2Fb", "no run ID in it"),
            ("https://api.example.com/", "no run ID in it"),
            ("https://", "not a URL"),
        ] {
            let error = run_of_page(page, None, API).unwrap_err();
            assert!(error.contains(why), "{page}: {error}");
        }
    }
}
