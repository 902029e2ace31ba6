//! `runwatch remove`.

use super::args::RunArg;
use super::client::Printer;
use super::failure::CommandFailure;
use super::run_names::RunNames;
use super::short_ids::{runs_of, watched_run};
use crate::control::Client;
use crate::domain::RunRef;

/// `runwatch remove`: a part of an ID that only one watch has is enough. With `json` one line per run, `{"provider","run_id","removed"}`.
///
/// # Errors
/// When the result cannot be written.
pub async fn remove(
    client: &Client,
    runs: &[RunArg],
    force: bool,
    pages: &RunNames,
    mut printer: Printer<'_>,
) -> anyhow::Result<u8> {
    let mut code = 0;
    let runs = runs_of(client, pages, runs).await;
    let of_configuration = |error| CommandFailure::of_command(error).is_of_configuration();
    if !runs.as_ref().is_err_and(of_configuration) {
        printer.warn_of_problems(pages.problems().as_ref())?;
    }
    for run_id in runs? {
        let (run_id, removed) = remove_one(client, run_id, force).await;
        if printer.json {
            printer.json(&serde_json::json!({
                "provider": run_id.provider(), "run_id": run_id.id(), "removed": removed.is_ok(),
            }))?;
        } else if removed.is_ok() {
            printer.line(&format!("{run_id}: no longer watched"))?;
        }
        if let Err(error) = removed {
            code = code.max(printer.failed(error.about("run_id", run_id))?);
        }
    }
    Ok(code)
}

/// Removes the watch of a run. Returns the run that was meant, and why its watch is still there.
async fn remove_one(
    client: &Client,
    run_id: RunRef,
    force: bool,
) -> (RunRef, Result<(), CommandFailure>) {
    let failure = match client.remove(&run_id, force).await {
        Ok(()) => return (run_id, Ok(())),
        Err(error) if error.is_unknown() => CommandFailure::from(&error),
        Err(error) => return (run_id, Err(CommandFailure::from(&error))),
    };
    match watched_run(client, run_id.as_str()).await {
        Ok(Some(meant)) => {
            let removed = client.remove(&meant, force).await;
            (meant, removed.map_err(|error| CommandFailure::from(&error)))
        }
        Ok(None) => (run_id, Err(failure)),
        Err(ambiguous) => (run_id, Err(ambiguous)),
    }
}
