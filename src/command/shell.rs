//! `runwatch completions` and `runwatch man`: made from the definition of the command line.

use std::io::Write;

use anyhow::Context as _;
use clap::CommandFactory as _;

use super::write_text;
use crate::cli::Cli;

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

/// Writes the manual page: the program, and then each command with its flags. The exit code is 0.
///
/// # Errors
/// When `out` cannot be written to; a closed pipe is no error.
pub fn man(out: &mut dyn Write) -> anyhow::Result<u8> {
    let mut command = Cli::command();
    command.build();
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page).context("cannot make the manual page")?;
    for part in command.get_subcommands().filter(|part| part.get_name() != "help") {
        append(part, &mut page)?;
    }
    write_text(out, &String::from_utf8(page).context("the manual page is not text")?)?;
    Ok(0)
}

/// Appends one command and those below it, as sections of the same page.
fn append(command: &clap::Command, page: &mut Vec<u8>) -> anyhow::Result<()> {
    let name = command.get_bin_name().unwrap_or(command.get_name()).to_uppercase();
    writeln!(page, ".SH \"{name}\"").context("cannot make the manual page")?;
    let manual = clap_mangen::Man::new(command.clone());
    let mut body = Vec::new();
    manual.render_description_section(&mut body).context("cannot make the manual page")?;
    manual.render_synopsis_section(&mut body).context("cannot make the manual page")?;
    manual.render_options_section(&mut body).context("cannot make the manual page")?;
    if command.get_after_help().is_some() {
        manual.render_extra_section(&mut body).context("cannot make the manual page")?;
    }
    // Below the heading of the command, its sections are one level deeper.
    page.extend(String::from_utf8_lossy(&body).replace(".SH ", ".SS ").into_bytes());
    for part in command.get_subcommands().filter(|part| part.get_name() != "help") {
        append(part, page)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_gets_a_script_and_the_page_names_every_command() {
        for shell in <clap_complete::Shell as clap::ValueEnum>::value_variants() {
            let mut out = Vec::new();
            assert_eq!(completions(*shell, &mut out).unwrap(), 0);
            assert!(String::from_utf8(out).unwrap().contains("runwatch"));
        }
        let mut page = Vec::new();
        assert_eq!(man(&mut page).unwrap(), 0);
        let page = String::from_utf8(page).unwrap();
        for heading in [".TH runwatch", ".SH \"RUNWATCH WAIT\"", ".SH \"RUNWATCH CONFIG INIT\"", "\\-\\-linger"] {
            assert!(page.contains(heading), "{heading}\n{page}");
        }
    }

    #[test]
    fn a_closed_pipe_is_no_error() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        assert_eq!(man(&mut Closed).unwrap(), 0);
    }
}
