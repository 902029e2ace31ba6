//! `runwatch store migrate`.

use rustix::fs::Mode;
use serde_json::json;

use super::{configured, not_done};
use crate::cli::client::Printer;
use crate::config::Settings;
use crate::store::migrate_store;
use crate::style::Sign;

/// Makes or changes the tables of the configured store, also where `store.migrate` is `never`, and prints from which
/// version to which. Returns 1 when that was not done.
///
/// # Errors
/// When the store is in memory, or the result cannot be written.
pub async fn migrate(settings: &Settings, mut printer: Printer<'_>) -> anyhow::Result<u8> {
    // A file that is made here is for this user alone, as that of the daemon.
    rustix::process::umask(Mode::from_raw_mode(0o077));
    let place = configured(&settings.store).await?;
    let (place, from, to) = match migrate_store(&place).await {
        Ok(done) => done,
        Err(error) => return printer.failed(not_done(&error)),
    };
    if printer.json {
        printer.json(&json!({"place": place, "from": from, "to": to}))?;
        return Ok(0);
    }
    let good = printer.style.mark(Sign::Good);
    let what = match from {
        0 => format!("its tables were made, with version {to}"),
        from if from == to => format!("its tables have version {to} already"),
        from => format!("its tables were changed from version {from} to {to}"),
    };
    printer.line(&format!("{good} {place}: {what}"))?;
    Ok(0)
}
