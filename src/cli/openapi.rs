//! `runwatch openapi`: the OpenAPI document, without a daemon.

use std::io::Write;

use serde_json::Value;

use super::write_text;
use crate::control::OPENAPI_DOCUMENT;

/// Writes the OpenAPI document of the control interface with indentation, as `docs/openapi.json` has it; the exit code
/// is 0.
///
/// # Errors
/// When `out` cannot be written to; a closed pipe is no error.
pub fn openapi(out: &mut dyn Write) -> anyhow::Result<u8> {
    let document: Value = serde_json::from_str(OPENAPI_DOCUMENT)?;
    write_text(out, &format!("{document:#}\n"))?;
    Ok(0)
}
