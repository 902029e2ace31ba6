//! `runwatch man`: made from the definition of the command line.

use std::io::Write;

use anyhow::Context as _;
use clap::CommandFactory as _;

use super::write_text;
use crate::cli::args::Cli;

/// Writes the manual page: the program, and then each command with its own flags. The exit code is 0.
///
/// # Errors
/// When `out` cannot be written to; a closed pipe is no error.
pub fn man(out: &mut dyn Write) -> anyhow::Result<u8> {
    let mut page = Vec::new();
    render(&mut page).context("cannot make the manual page")?;
    write_text(
        out,
        &String::from_utf8(page).context("the manual page is not text")?,
    )?;
    Ok(0)
}

fn render(page: &mut Vec<u8>) -> std::io::Result<()> {
    let command = Cli::command();
    let manual = clap_mangen::Man::new(command.clone());
    manual.render_title(page)?;
    manual.render_name_section(page)?;
    manual.render_synopsis_section(page)?;
    manual.render_options_section(page)?;
    // Not built as a part of the whole, a command has its own flags only; the common ones stand above.
    for part in command.get_subcommands() {
        render_command(part, "runwatch", page)?;
    }
    page.extend(notes(&manual)?.into_bytes());
    Ok(())
}

/// What stands below the flags in `--help`, with its lines as they are: it has tables and examples.
fn notes(manual: &clap_mangen::Man) -> std::io::Result<String> {
    let mut section = Vec::new();
    manual.render_extra_section(&mut section)?;
    Ok(String::from_utf8_lossy(&section).replace(".SH EXTRA\n", ".SH NOTES\n.nf\n") + ".fi\n")
}

/// Appends one command and those below it, each as a section.
fn render_command(
    command: &clap::Command,
    parent: &str,
    page: &mut Vec<u8>,
) -> std::io::Result<()> {
    let name = format!("{parent} {}", command.get_name());
    writeln!(page, ".SH \"{}\"", name.to_uppercase())?;
    let manual = clap_mangen::Man::new(command.clone().bin_name(&name));
    let mut body = Vec::new();
    manual.render_description_section(&mut body)?;
    manual.render_synopsis_section(&mut body)?;
    manual.render_options_section(&mut body)?;
    let mut body = String::from_utf8_lossy(&body).into_owned();
    if command.get_after_help().is_some() {
        body.push_str(&notes(&manual)?);
    }
    // Below the heading of the command, its sections are one level deeper.
    let body = body.replace(".SH ", ".SS ");
    page.extend(body.into_bytes());
    for part in command.get_subcommands() {
        render_command(part, &name, page)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_every_command() {
        let mut page = Vec::new();
        assert_eq!(man(&mut page).unwrap(), 0);
        let page = String::from_utf8(page).unwrap();
        for heading in [
            ".TH runwatch",
            ".SH \"RUNWATCH WAIT\"",
            ".SH \"RUNWATCH CONFIG INIT\"",
            "\\-\\-linger",
        ] {
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
