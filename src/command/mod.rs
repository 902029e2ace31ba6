//! The commands that only read, check and print.
//!
//! Each writes to what it is given and answers with the exit code of the process.

pub mod config;
pub mod shell;

use std::io::{ErrorKind, Write};

use anyhow::Context as _;

/// Writes a whole text. A reader that has gone away has seen what it wanted: that is no error.
fn write_text(out: &mut dyn Write, text: &str) -> anyhow::Result<()> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write the result"),
        Ok(()) | Err(_) => Ok(()),
    }
}
