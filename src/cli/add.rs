//! `runwatch add`.

use jiff::Timestamp;

use super::args::AddArgs;
use super::client::{Printer, add_all};
use super::failure::CommandFailure;
use super::phrases::{not_applied, standing_of_known};
use super::run_ids::read_run_ids;
use super::run_names::RunNames;
use crate::control::{Client, ClientError};

/// `runwatch add`. With `json` one line per run, `{"run_id","added","watch"}`, `added` being `new` or
/// `known`.
///
/// # Errors
/// When the arguments or the result cannot be used.
pub async fn add(
    client: &Client,
    args: &AddArgs,
    pages: &RunNames,
    mut printer: Printer<'_>,
) -> anyhow::Result<u8> {
    let run_ids = read_run_ids(&args.runs, pages).await?;
    printer.warn_of_problems(pages.problems().as_ref())?;
    let mut code = 0;
    for (run_id, added) in run_ids
        .iter()
        .zip(add_all(client, &args.watch, args.again, &run_ids).await)
    {
        let dropped = added
            .as_ref()
            .ok()
            .and_then(|(watch, _)| not_applied(watch, ""));
        match added {
            Ok((watch, new)) if printer.json => {
                let added = if new { "new" } else { "known" };
                printer.json(
                    &serde_json::json!({ "provider": watch.provider, "run_id": watch.run_id, "added": added, "watch": watch }),
                )?;
            }
            Ok((watch, true)) => printer.line(&format!("{}: watching", watch.run()))?,
            Ok((watch, false)) => printer.line(&standing_of_known(&watch, Timestamp::now()))?,
            Err(error) => {
                if matches!(
                    error,
                    ClientError::NotRunning(_) | ClientError::Forbidden(_)
                ) {
                    return printer.failed(&error);
                }
                let failure =
                    CommandFailure::from(&error).prefixed(&format!("{run_id} is not watched: "));
                code = code.max(printer.failed(failure.about("run_id", run_id))?);
            }
        }
        if let Some(dropped) = dropped {
            let failure = CommandFailure::usage(dropped).about("run_id", run_id);
            code = code.max(printer.failed(failure)?);
        }
    }
    Ok(code)
}
