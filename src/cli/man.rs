//! `runwatch man`: manual pages, made from the definition of the command line and from the commented configuration.

use std::io::Write;
use std::path::Path;

use anyhow::Context as _;
use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::args::ManArgs;
use super::config::TEMPLATE;
use super::help::command;
use super::write_text;

/// The page of the configuration file.
const CONFIG_PAGE: &str = "runwatch.toml";

/// Variables, each with its meaning.
const ENVIRONMENT: [(&str, &str); 11] = [
    (
        "CREWSHIP_API_KEY",
        "The API key of Crewship. `runwatch providers show NAME` names the variables of another provider.",
    ),
    (
        "RUNWATCH_CONFIG",
        "As --config: the configuration file to read, and no other.",
    ),
    (
        "RUNWATCH_SECTION__KEY",
        "Any key of the configuration, such as RUNWATCH_API__BASE_URL; it wins over the files. Lists are separated by commas.",
    ),
    (
        "NO_COLOR, CLICOLOR, CLICOLOR_FORCE",
        "Whether texts are colored, unless --color says so.",
    ),
    (
        "TERM, LC_ALL, LC_CTYPE, LANG",
        "What the terminal can show: without UTF-8, or if TERM is dumb, glyphs are ASCII.",
    ),
    (
        "RUST_LOG",
        "The level of log records, unless --log-level or -v says so.",
    ),
    (
        "TRACEPARENT, TRACESTATE",
        "The trace that watches belong to which add and wait add, as W3C Trace Context writes it; webhooks about them name it.",
    ),
    ("TZ", "The time zone in which times are shown."),
    (
        "HTTPS_PROXY, HTTP_PROXY, NO_PROXY",
        "Proxies for the API and for webhooks; never for loopback addresses.",
    ),
    (
        "SSL_CERT_FILE, SSL_CERT_DIR",
        "Authorities that are trusted instead of those of the system.",
    ),
    (
        "XDG_CONFIG_HOME, XDG_STATE_HOME, XDG_RUNTIME_DIR, STATE_DIRECTORY, RUNTIME_DIRECTORY, CREDENTIALS_DIRECTORY",
        "Where the configuration, the store, the socket and the systemd credential crewship-api-key are.",
    ),
];

/// Files, each with its meaning.
const FILES: [(&str, &str); 5] = [
    (
        "/etc/runwatch/config.toml",
        "The configuration of the machine.",
    ),
    (
        "$XDG_CONFIG_HOME/runwatch/config.toml",
        "The configuration of a user (~/.config without the variable); it wins over that of the machine.",
    ),
    (
        "$XDG_STATE_HOME/runwatch/runwatch.db",
        "The store of a user's daemon (~/.local/state without the variable).",
    ),
    ("/var/lib/runwatch/runwatch.db", "The store of the service."),
    (
        "$XDG_RUNTIME_DIR/runwatch/runwatch.sock, /run/runwatch/runwatch.sock",
        "The socket of a user's daemon, and that of the service.",
    ),
];

/// Prints a manual page: that of the program with all its commands, or the one that is named. With a directory, writes
/// every page into it. The exit code is 0.
///
/// # Errors
/// When there is no such page, or a page cannot be written; a closed pipe is no error.
pub fn man(args: &ManArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    if let Some(folder) = &args.dir {
        write_pages(folder)?;
        return Ok(0);
    }
    let page = match args.page.as_deref() {
        None => whole_page()?,
        Some(name) => {
            let pages = pages()?;
            let known = |page: &&(String, String)| {
                page.0 == name || page.0.strip_prefix("runwatch-") == Some(name)
            };
            let names = || {
                pages
                    .iter()
                    .map(|(name, _)| name.as_str())
                    .collect::<Vec<_>>()
            };
            let page = pages.iter().find(known);
            let page = page.with_context(|| {
                format!(
                    "there is no page {name:?}; the pages are {}",
                    names().join(", ")
                )
            })?;
            page.1.clone()
        }
    };
    write_text(out, &page)?;
    Ok(0)
}

fn write_pages(folder: &Path) -> anyhow::Result<()> {
    let context = || format!("cannot write manual pages to {}", folder.display());
    std::fs::create_dir_all(folder).with_context(context)?;
    for (name, page) in pages()? {
        let section = if name == CONFIG_PAGE { 5 } else { 1 };
        let path = folder.join(format!("{name}.{section}"));
        std::fs::write(&path, page).with_context(context)?;
    }
    Ok(())
}

/// Every page with its name: the program, its commands and those below them, and the configuration file.
fn pages() -> anyhow::Result<Vec<(String, String)>> {
    let root = command();
    let mut names = Vec::new();
    collect(&root, "", &mut names);
    let all: Vec<_> = names.iter().map(|(name, _)| name.clone()).collect();
    let mut pages = vec![("runwatch".to_owned(), whole_page()?)];
    for (name, command) in &names {
        let mut page = Vec::new();
        let manual = Man::new(command.clone())
            .title(name.to_uppercase())
            .source(concat!("runwatch ", env!("CARGO_PKG_VERSION")))
            .manual("runwatch manual");
        manual.render_title(&mut page)?;
        let about = command.get_about().map(ToString::to_string);
        let mut roff = Roff::new();
        roff.control("SH", ["NAME"]);
        roff.text([roman(format!("{name} - {}", about.unwrap_or_default()))]);
        roff.to_writer(&mut page)?;
        render_body(command, &name.replace('-', " "), &mut page)?;
        let mut roff = Roff::new();
        // Not a part of what the last argument means.
        roff.control("PP", []);
        roff.text([roman(
            "The options that every command has are those of runwatch(1).",
        )]);
        notes(command, &mut roff);
        common_sections(&mut roff);
        see_also(all.iter().filter(|other| *other != name), &mut roff);
        roff.to_writer(&mut page)?;
        pages.push((name.clone(), text(page)?));
    }
    pages.push((CONFIG_PAGE.to_owned(), config_page()?));
    Ok(pages)
}

fn collect(command: &Command, parent: &str, found: &mut Vec<(String, Command)>) {
    for part in command.get_subcommands() {
        let parent = if parent.is_empty() {
            "runwatch"
        } else {
            parent
        };
        let name = format!("{parent}-{}", part.get_name());
        found.push((name.clone(), part.clone()));
        collect(part, &name, found);
    }
}

/// The page of the program: its own options, then each command with its own.
fn whole_page() -> anyhow::Result<String> {
    let root = command();
    let mut page = Vec::new();
    let manual = Man::new(root.clone()).manual("runwatch manual");
    manual.render_title(&mut page)?;
    manual.render_name_section(&mut page)?;
    manual.render_synopsis_section(&mut page)?;
    manual.render_options_section(&mut page)?;
    // Not built as a part of the whole, a command has its own flags only; the common ones stand above.
    for part in root.get_subcommands() {
        render_part(part, "runwatch", &mut page)?;
    }
    let mut names = Vec::new();
    collect(&root, "", &mut names);
    let mut roff = Roff::new();
    notes(&root, &mut roff);
    roff.control("SH", ["EXIT STATUS"]);
    roff.text([roman(
        "As each command says. 2 is wrong usage or a wrong configuration with all of them.",
    )]);
    common_sections(&mut roff);
    see_also(names.iter().map(|(name, _)| name), &mut roff);
    roff.to_writer(&mut page)?;
    text(page)
}

/// Appends one command and those below it, each as a section.
fn render_part(command: &Command, parent: &str, page: &mut Vec<u8>) -> anyhow::Result<()> {
    let name = format!("{parent} {}", command.get_name());
    writeln!(page, ".SH \"{}\"", name.to_uppercase())?;
    let mut body = Vec::new();
    render_body(command, &name, &mut body)?;
    let mut roff = Roff::new();
    notes(command, &mut roff);
    roff.to_writer(&mut body)?;
    // Below the heading of the command, its sections are one level deeper.
    page.extend(text(body)?.replace(".SH ", ".SS ").into_bytes());
    for part in command.get_subcommands() {
        render_part(part, &name, page)?;
    }
    Ok(())
}

/// Appends the usage, the description and the options of a command.
fn render_body(command: &Command, name: &str, page: &mut Vec<u8>) -> anyhow::Result<()> {
    let command = command.clone().bin_name(name);
    let usage = command.clone().render_usage().to_string();
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]);
    roff.control("nf", []);
    for line in usage.trim_start_matches("Usage:").lines() {
        roff.text([roman(line.trim())]);
    }
    roff.control("fi", []);
    roff.to_writer(page)?;
    let manual = Man::new(command);
    manual.render_description_section(page)?;
    manual.render_options_section(page)?;
    Ok(())
}

/// Appends what stands below the options in `--help`: exit codes, examples and the rest, each as a section with its
/// lines as they are.
fn notes(command: &Command, roff: &mut Roff) {
    let notes = command.get_after_long_help().map(ToString::to_string);
    let mut is_open = false;
    for paragraph in notes.iter().flat_map(|notes| notes.split("\n\n")) {
        let (first, rest) = paragraph.split_once('\n').unwrap_or((paragraph, ""));
        let (heading, body) = match first {
            "Exit codes:" => ("EXIT STATUS", rest),
            "Example:" | "Examples:" => ("EXAMPLES", rest),
            _ if first.starts_with("Exit code: ") => {
                ("EXIT STATUS", paragraph.trim_start_matches("Exit code: "))
            }
            _ => ("NOTES", paragraph),
        };
        if heading != "NOTES" || !is_open {
            roff.control("SH", [heading]);
        }
        is_open = heading == "NOTES";
        let keeps_lines = body.lines().any(|line| line.starts_with(' '));
        if keeps_lines {
            roff.control("nf", []);
        }
        body.lines().for_each(|line| {
            roff.text([roman(line)]);
        });
        roff.control(if keeps_lines { "fi" } else { "PP" }, []);
    }
}

fn common_sections(roff: &mut Roff) {
    for (heading, entries) in [("ENVIRONMENT", &ENVIRONMENT[..]), ("FILES", &FILES)] {
        roff.control("SH", [heading]);
        for (name, meaning) in entries {
            roff.control("TP", []);
            roff.text([bold(*name)]);
            roff.text([roman(*meaning)]);
        }
    }
}

fn see_also<'a>(names: impl Iterator<Item = &'a String>, roff: &mut Roff) {
    let names = names.map(|name| format!("{name}(1)"));
    let all: Vec<_> = std::iter::once("runwatch(1)".to_owned())
        .chain(names)
        .chain([format!("{CONFIG_PAGE}(5)")])
        .collect();
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(all.join(", "))]);
}

/// The page of the configuration file, from the file that `config init` writes: a comment describes the keys below it.
fn config_page() -> anyhow::Result<String> {
    let mut roff = Roff::new();
    let version = format!("runwatch {}", env!("CARGO_PKG_VERSION"));
    roff.control(
        "TH",
        [
            "RUNWATCH.TOML",
            "5",
            "",
            version.as_str(),
            "runwatch manual",
        ],
    );
    roff.control("SH", ["NAME"]);
    roff.text([roman(format!("{CONFIG_PAGE} - configuration of runwatch"))]);
    roff.control("SH", ["DESCRIPTION"]);
    for line in TEMPLATE.lines() {
        config_line(line, &mut roff);
    }
    for (heading, entries) in [("FILES", &FILES[..2])] {
        roff.control("SH", [heading]);
        for (name, meaning) in entries {
            roff.control("TP", []);
            roff.text([bold(*name)]);
            roff.text([roman(*meaning)]);
        }
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(
        "runwatch(1), runwatch-config-check(1), runwatch-config-show(1), runwatch-config-init(1)",
    )]);
    let mut page = Vec::new();
    roff.to_writer(&mut page)?;
    text(page)
}

fn config_line(line: &str, roff: &mut Roff) {
    let key = line.strip_prefix('#').unwrap_or(line);
    match line.strip_prefix("# ") {
        // A table of lines, such as the keys that all sinks have.
        Some(comment) if comment.starts_with(' ') => {
            roff.control("br", []);
            roff.text([roman(comment)]);
        }
        Some(comment) => {
            roff.text([roman(comment)]);
        }
        None if key.starts_with('[') => {
            roff.control("SH", [key]);
        }
        None if key.trim().is_empty() => {
            roff.control("PP", []);
        }
        None => {
            roff.control("br", []);
            roff.text([bold(key)]);
            roff.control("br", []);
        }
    }
}

fn text(page: Vec<u8>) -> anyhow::Result<String> {
    String::from_utf8(page).context("the manual page is not text")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(page: Option<&str>) -> anyhow::Result<String> {
        let args = ManArgs {
            page: page.map(str::to_owned),
            dir: None,
        };
        let mut out = Vec::new();
        man(&args, &mut out)?;
        Ok(String::from_utf8(out)?)
    }

    #[test]
    fn the_page_names_every_command() {
        let page = shown(None).unwrap();
        for heading in [
            ".TH runwatch",
            ".SH \"RUNWATCH WAIT\"",
            ".SH \"RUNWATCH CONFIG INIT\"",
            "\\-\\-linger",
            ".SS \"EXIT STATUS\"",
            ".SH \"SEE ALSO\"",
        ] {
            assert!(page.contains(heading), "{heading}\n{page}");
        }
    }

    #[test]
    fn every_command_has_a_page_with_every_section() {
        let pages = pages().unwrap();
        assert!(pages.len() > 20);
        for (name, page) in pages.iter().filter(|(name, _)| name != CONFIG_PAGE) {
            for section in [
                "NAME",
                "SYNOPSIS",
                "OPTIONS",
                "ENVIRONMENT",
                "FILES",
                "\"SEE ALSO\"",
            ] {
                assert!(
                    page.contains(&format!(".SH {section}\n")),
                    "{name}: {section}\n{page}"
                );
            }
        }
        let wait = shown(Some("wait")).unwrap();
        for part in [
            ".SH \"EXIT STATUS\"",
            ".SH EXAMPLES",
            "runwatch.toml(5)",
            "[RUN_ID|\\-]...",
        ] {
            assert!(wait.contains(part), "{part}\n{wait}");
        }
        assert_eq!(
            shown(Some("runwatch-config-init")).unwrap(),
            shown(Some("config-init")).unwrap()
        );
        let error = shown(Some("nonsense")).unwrap_err().to_string();
        assert!(error.contains("runwatch-wait"), "{error}");
    }

    #[test]
    fn the_page_of_the_configuration_has_every_key() {
        let page = shown(Some(CONFIG_PAGE)).unwrap();
        for line in TEMPLATE.lines() {
            let key = line.strip_prefix('#').unwrap_or(line);
            let name = key.split(" = ").next().filter(|_| !key.starts_with(' '));
            if let (Some(name), true) = (name, key.contains(" = ")) {
                assert!(page.contains(&format!("\\fB{name} = ")), "{name}\n{page}");
            }
        }
        assert!(page.contains(".SH [api]"), "{page}");
    }

    #[test]
    fn every_page_is_written_into_a_directory() {
        let folder = tempfile::tempdir().unwrap();
        write_pages(&folder.path().join("man")).unwrap();
        for name in [
            "runwatch.1",
            "runwatch-wait.1",
            "runwatch-deliveries-retry.1",
            "runwatch.toml.5",
        ] {
            assert!(folder.path().join("man").join(name).is_file(), "{name}");
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
        let args = ManArgs {
            page: None,
            dir: None,
        };
        assert_eq!(man(&args, &mut Closed).unwrap(), 0);
    }
}
