//! The commands: each takes its arguments and the settings, and returns the exit code of the process.

pub mod add;
pub mod args;
pub mod client;
pub mod completions;
pub mod config;
pub mod deliveries;
pub mod demo;
pub mod discover;
pub mod doctor;
pub mod events;
mod expectation;
pub mod failure;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod healthcheck;
pub mod help;
pub mod lead;
pub mod list;
pub mod man;
pub mod open;
pub mod openapi;
mod phrases;
pub mod providers;
pub mod remove;
pub mod render;
mod run_ids;
pub mod run_names;
#[cfg(test)]
mod samples;
mod short_ids;
pub mod show;
pub mod sinks;
pub mod status;
pub mod store;
mod table;
mod trace;
pub mod wait;

use std::io::{ErrorKind, Write};

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Exit code for wrong usage or configuration.
pub const USAGE: u8 = 2;

/// Exit code for an API key that is missing or refused.
pub const KEY_REFUSED: u8 = 4;

/// Exit code of `status` for a run without a verdict.
pub const STILL_GOING: u8 = 9;

/// The exit code for a run that waits for a person.
pub const WAITING: u8 = 8;

/// Exit code after SIGINT: 128 and the signal's number, as shells have it.
pub const INTERRUPTED: u8 = 130;

/// Exit code after SIGTERM.
pub const TERMINATED: u8 = 143;

/// Writes a whole text. A reader that has gone away has seen what it wanted: that is no error.
fn write_text(out: &mut dyn Write, text: &str) -> anyhow::Result<()> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("cannot write the result")
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The signals that end a command.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub(crate) fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Waits for a signal and returns its exit code. Cancel-safe.
    pub(crate) async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => INTERRUPTED,
            _ = self.terminate.recv() => TERMINATED,
        }
    }
}
