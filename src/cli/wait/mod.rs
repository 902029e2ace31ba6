//! `runwatch wait`: watches runs here and now, and ends with a code that a script can trust.

mod accounts;
mod connect;
mod listed;
mod local;
mod options;
mod remote;
mod report;
mod runs;
mod sentences;
mod session;
mod sinks;
mod tracked;
mod undelivered;
mod view;

use self::listed::ListOutcome;
pub use self::local::wait;
use self::options::StopCondition;
pub use self::options::{OutputOptions, ResultFormat};
use self::runs::{distinct, group_labels, runs_to_watch};
use super::Signals;
use super::client::warn_of_problems;
use super::run_names::RunNames;
use crate::cli::args::WaitArgs;
use crate::config::Settings;
use crate::control::Client;

/// Adds watches of the runs to the daemon, follows it, and returns the exit code. When this ends, the watches
/// stay there.
///
/// # Errors
/// When the arguments cannot be used.
pub async fn wait_on_daemon(
    args: &WaitArgs,
    pages: &RunNames,
    client: Client,
    options: OutputOptions,
) -> anyhow::Result<u8> {
    // The configuration of the daemon is its own.
    let connect_grace = Settings::default().watch.connect_grace;
    let mut signals = Signals::listen()?;
    let run_ids = tokio::select! {
        runs = runs_to_watch(args, pages, connect_grace, &options) => match runs? {
            ListOutcome::Runs(run_ids) => run_ids,
            ListOutcome::End(code) => return Ok(code),
        },
        code = signals.next() => return Ok(code),
    };
    warn_of_problems(pages.problems().as_ref(), &options.screen);
    let mut watch_args = args.watch.clone();
    if let Some(group) = &args.group {
        let new = remote::without_watch(&client, &run_ids, args.again).await;
        let size = distinct(&new).max(1);
        watch_args.labels.extend(group_labels(group, size));
    }
    remote::wait(
        (&watch_args, args.again),
        run_ids,
        client,
        StopCondition::of(args),
        options,
        signals,
    )
    .await
}
