//! `runwatch completions`: made from the definition of the command line.

use std::io::Write;

use anyhow::Context as _;
use clap::CommandFactory as _;

use super::write_text;
use crate::cli::args::Cli;

/// Writes the completion script for `shell`; the exit code is 0.
///
/// # Errors
/// When `out` cannot be written to; a closed pipe is no error.
pub fn completions(shell: clap_complete::Shell, out: &mut dyn Write) -> anyhow::Result<u8> {
    // The generator panics when it cannot write, so it writes to memory.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "runwatch", &mut script);
    let script = String::from_utf8(script).context("the completion script is not text")?;
    write_text(out, &script)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_gets_a_script() {
        for shell in <clap_complete::Shell as clap::ValueEnum>::value_variants() {
            let mut out = Vec::new();
            assert_eq!(completions(*shell, &mut out).unwrap(), 0);
            assert!(String::from_utf8(out).unwrap().contains("runwatch"));
        }
    }
}
