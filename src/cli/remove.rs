//! `runwatch remove`.

use super::args::RunArg;
use super::client::Printer;
use super::failure::CommandFailure;
use super::run_ids::read_run_ids;
use super::run_names::RunNames;
use crate::control::Client;

/// `runwatch remove`. With `json` one line per run, `{"provider","run_id","removed"}`.
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
    for run_id in &read_run_ids(runs, pages).await? {
        let removed = client.remove(run_id, force).await;
        if printer.json {
            printer.json(&serde_json::json!({
                "provider": run_id.provider(), "run_id": run_id.id(), "removed": removed.is_ok(),
            }))?;
        } else if removed.is_ok() {
            printer.line(&format!("{run_id}: no longer watched"))?;
        }
        if let Err(error) = removed {
            let failure = CommandFailure::from(&error).about("run_id", run_id);
            code = code.max(printer.failed(failure)?);
        }
    }
    Ok(code)
}
