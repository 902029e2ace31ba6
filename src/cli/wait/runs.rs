//! Which runs a wait is for, and the labels of their group.

use std::collections::BTreeSet;
use std::time::Duration;

use super::listed::{self, ListOutcome, Wanted};
use super::options::OutputOptions;
use crate::cli::args::WaitArgs;
use crate::cli::run_ids::read_run_ids;
use crate::cli::run_names::RunNames;
use crate::domain::{GROUP_LABEL, GROUP_SIZE_LABEL, RunRef};

/// The labels of the watches of a group of so many.
pub(super) fn group_labels(group: &str, size: usize) -> [(String, String); 2] {
    [
        (GROUP_LABEL.to_owned(), group.to_owned()),
        (GROUP_SIZE_LABEL.to_owned(), size.to_string()),
    ]
}

/// How many runs there are, each counted once.
pub(super) fn distinct<'a>(run_ids: impl IntoIterator<Item = &'a RunRef>) -> usize {
    run_ids.into_iter().collect::<BTreeSet<_>>().len()
}

/// Finds the runs: those that are named, or those that a list shows.
pub(super) async fn runs_to_watch(
    args: &WaitArgs,
    pages: &RunNames,
    connect_grace: Duration,
    options: &OutputOptions,
) -> anyhow::Result<ListOutcome> {
    let (wanted, provider) = match (&args.latest, &args.all_active) {
        (Some(provider), _) => (Wanted::Latest, provider),
        (None, Some(provider)) => (Wanted::AllActive, provider),
        (None, None) => return read_run_ids(&args.runs, pages).await.map(ListOutcome::Runs),
    };
    let list = (wanted, provider);
    listed::find(list, &args.runs, pages.providers()?, connect_grace, options).await
}
