//! `runwatch healthcheck`.

use super::client::{Printer, REFUSED};
use super::failure::CommandFailure;
use crate::control::Client;

/// `runwatch healthcheck`. With `json` the answer of `GET /healthz`, or with `ready` of `GET /readyz`.
///
/// # Errors
/// When the result cannot be written.
pub async fn healthcheck(
    client: &Client,
    ready: bool,
    mut printer: Printer<'_>,
) -> anyhow::Result<u8> {
    match if ready {
        client.readiness().await
    } else {
        client.health().await
    } {
        Ok(health) if printer.json => printer.json(&health)?,
        Ok(health) => printer.line(
            health
                .get("status")
                .and_then(|status| status.as_str())
                .unwrap_or("ok"),
        )?,
        // One that is not there is unwell, too. Docker reserves the code 2.
        Err(error) => return printer.failed(CommandFailure::from(&error).exit_with(REFUSED)),
    }
    Ok(0)
}
