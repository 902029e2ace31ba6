//! Configurations with accounts, for the tests.

use std::ffi::OsString;

use super::Providers;
use crate::config::load;
use crate::config::source::Sources;
use crate::domain::ProviderName;

pub(super) const API: &str = "[api]\nbase_url = \"https://api.example.com\"\n";

pub(super) const CONSOLE: &str = "[api]\nbase_url = \"https://api.example.com\"\n\
                           run_url = \"https://console.example.com/acme/run?id={run_id}\"\n";

pub(super) const OWN_HOST: &str =
    "[providers.ci]\nprofile = \"gitlab\"\nbase_url = \"https://gitlab.example.com\"\n";

pub(super) fn providers(text: &str, environment: &[(&str, &str)]) -> Providers {
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

pub(super) fn name(text: &str) -> ProviderName {
    ProviderName::new(text).unwrap()
}
