//! What names a run on a command line: its ID, `PROVIDER:ID`, or the URL of its page.

use std::sync::{Arc, OnceLock};

use anyhow::Context as _;

use super::args::RunArg;
use super::failure::CommandFailure;
use crate::config::{self, Problems, Providers, Sources};
use crate::domain::{ProviderName, RunRef};

/// Finds the run that a text names. The configuration, which says which providers there are, is read once, when a text
/// needs it.
#[derive(Clone)]
pub struct RunNames {
    sources: Sources,
    /// Whether a bare ID is one of Crewship.
    bare_is_crewship: Arc<OnceLock<bool>>,
    providers: Arc<OnceLock<Result<Providers, Problems>>>,
}

impl RunNames {
    /// For the configuration from `sources`.
    pub fn new(sources: Sources) -> Self {
        Self {
            sources,
            bare_is_crewship: Arc::default(),
            providers: Arc::default(),
        }
    }

    /// Returns the run that a text names.
    ///
    /// # Errors
    /// When the configuration cannot be used, or the text names no run there.
    pub(super) fn run(&self, text: &str) -> anyhow::Result<RunRef> {
        let is_bare = !text.contains([':', '/']);
        if is_bare && self.bare_is_crewship() {
            return RunRef::new(text).map_err(|why| CommandFailure::usage(why).into());
        }
        let named = self
            .providers()
            .with_context(|| format!("{text}: the configuration does not say whose run it is"))?
            .run(text);
        named.map_err(|why| {
            CommandFailure::usage(format!("{text} is not accepted as a run: {why}")).into()
        })
    }

    fn bare_is_crewship(&self) -> bool {
        *self.bare_is_crewship.get_or_init(|| {
            let named = config::default_provider(&self.sources);
            named.is_none_or(|name| name == ProviderName::CREWSHIP)
        })
    }

    /// The accounts of the configuration.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn providers(&self) -> Result<&Providers, Problems> {
        let load = || config::load(&self.sources).map(|loaded| loaded.settings.providers);
        self.providers
            .get_or_init(load)
            .as_ref()
            .map_err(Clone::clone)
    }

    /// What is wrong with the configuration, for commands that go on all the same: after they found their runs, since an
    /// error of that names it as well.
    pub(super) fn problems(&self) -> Option<Problems> {
        self.providers().err()
    }

    /// Returns the run of a command's one argument.
    ///
    /// # Errors
    /// As `run`, and for `-`, which stands for many runs.
    pub fn one(&self, run: &RunArg) -> anyhow::Result<RunRef> {
        match run {
            RunArg::Named(text) => self.run(text),
            RunArg::Stdin => {
                let what = "this command takes one run ID, not standard input";
                Err(CommandFailure::usage(what).into())
            }
        }
    }
}
