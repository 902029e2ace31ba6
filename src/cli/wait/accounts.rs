//! Whether the accounts of runs have a key, so that the runs can be polled here.

use std::collections::BTreeSet;

use super::options::OutputOptions;
use crate::cli::failure::CommandFailure;
use crate::config::{ProviderSettings, Settings};
use crate::domain::RunRef;

/// Says why runs cannot be polled for want of an account or its key; returns the exit code for that.
pub(super) fn without_account(
    run_ids: &[RunRef],
    settings: &Settings,
    options: &OutputOptions,
) -> anyhow::Result<Option<u8>> {
    let providers: BTreeSet<_> = run_ids.iter().map(RunRef::provider_name).collect();
    for provider in providers {
        let account = settings.providers.get(&provider);
        let account = account.map_err(|why| anyhow::anyhow!(why))?;
        if let Some(failure) = no_key(&account) {
            return Ok(Some(options.fail(&failure)));
        }
    }
    Ok(None)
}

/// Why an account cannot be used for want of a key.
pub(super) fn no_key(account: &ProviderSettings) -> Option<CommandFailure> {
    if account.has_credentials() {
        return None;
    }
    let (how, provider) = (account.how_to_give_a_key(), &account.name);
    let fix = if provider.is_crewship() {
        format!("set {how} (keys are made in the Crewship console under Settings, API Keys)")
    } else {
        format!("set {how}")
    };
    let what = format!("no API key for {provider}");
    Some(CommandFailure::unauthorized(what).fix(fix))
}
