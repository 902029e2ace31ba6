//! Completions: `runwatch completions` prints a script for a shell, and the script calls the program again for what
//! fits at the cursor: options, verdicts, sinks of the configuration, runs and deliveries of the daemon.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::{CompleteEnv, Shells};

use super::client::socket;
use super::help::command;
use super::phrases::standing;
use super::write_text;
use crate::config::{self, Sources};
use crate::control::{Client, ClientError};
use crate::domain::{EventType, Verdict};
use crate::profile::builtin_names;
use crate::text::one_line;

/// The variable by which the script of a shell asks for completions: the name of the shell.
const VARIABLE: &str = "_RUNWATCH_COMPLETE";

/// How long a daemon may take for its part: a person waits for the shell.
const LIMIT: Duration = Duration::from_millis(500);

/// Longest name that stands beside a value, in characters.
const HELP_CHARS: usize = 60;

/// Completes a command line where a shell asks for it, and returns whether one did. To be called before all else: it
/// changes the environment.
pub fn answer_shell() -> bool {
    let completer = CompleteEnv::with_factory(command).var(VARIABLE);
    let here = std::env::current_dir().ok();
    completer
        .try_complete(std::env::args_os(), here.as_deref())
        // A shell that is not known gets nothing.
        .unwrap_or(true)
}

/// Writes the completion script for `shell`; the exit code is 0.
///
/// # Errors
/// When `out` cannot be written to; a closed pipe is no error.
pub fn completions(shell: clap_complete::Shell, out: &mut dyn Write) -> anyhow::Result<u8> {
    let (shells, name) = (Shells::builtins(), shell.to_string());
    let completer = shells
        .completer(&name)
        .with_context(|| format!("there are no completions for {name}"))?;
    let mut script = Vec::new();
    completer
        .write_registration(VARIABLE, "runwatch", "runwatch", "runwatch", &mut script)
        .context("cannot make the completion script")?;
    let mut script = String::from_utf8(script).context("the completion script is not text")?;
    if shell == clap_complete::Shell::Zsh {
        // Where zsh loads it by itself, at the first use, the file is the function that completes.
        script.push_str(
            "if [ \"$funcstack[1]\" = \"_runwatch\" ]; then\n    _clap_dynamic_completer_runwatch \"$@\"\nfi\n",
        );
    }
    write_text(out, &script)?;
    Ok(0)
}

/// The words of all verdicts.
pub(super) fn verdicts() -> Vec<CompletionCandidate> {
    let words = Verdict::WORST_FIRST.into_iter().map(Verdict::as_str);
    words.map(CompletionCandidate::new).collect()
}

/// The words of all events.
pub(super) fn event_types() -> Vec<CompletionCandidate> {
    let words = EventType::ALL.into_iter().map(EventType::as_str);
    words.map(CompletionCandidate::new).collect()
}

/// The sinks of the configuration.
pub(super) fn sinks() -> Vec<CompletionCandidate> {
    let settings = config::load(&sources()).map(|loaded| loaded.settings);
    let names = settings
        .map(|settings| settings.sinks.into_keys())
        .into_iter();
    names
        .flatten()
        .map(|name| CompletionCandidate::new(name.as_str()))
        .collect()
}

/// The runs that the daemon watches or watched, the newest first, each with its name and state.
pub(super) fn runs() -> Vec<CompletionCandidate> {
    let list = from_daemon(async |client| client.watches(&[]).await);
    let watches = list.map(|list| list.watches).unwrap_or_default();
    let candidates = watches.iter().rev().enumerate().map(|(at, watch)| {
        let name = watch.name.as_deref().unwrap_or_default();
        let help = format!("{} {}", standing(watch), one_line(name, HELP_CHARS));
        CompletionCandidate::new(watch.run().to_string())
            .help(Some(help.trim_end().to_owned().into()))
            .display_order(Some(at))
    });
    candidates.collect()
}

/// The deliveries that have not arrived, each with its event and its sink.
pub(super) fn open_deliveries() -> Vec<CompletionCandidate> {
    let states = [("state", "pending"), ("state", "dead")];
    let deliveries = from_daemon(async |client| client.deliveries(&states).await);
    let deliveries = deliveries.unwrap_or_default();
    let candidates = deliveries.iter().rev().map(|delivery| {
        let help = format!("{} to {}", delivery.event, delivery.sink);
        CompletionCandidate::new(delivery.id.as_str()).help(Some(help.into()))
    });
    candidates.collect()
}

/// The answer of the daemon; nothing without one, or if it takes longer than [`LIMIT`].
fn from_daemon<T>(request: impl AsyncFnOnce(&Client) -> Result<T, ClientError>) -> Option<T> {
    let client = Client::new(&socket(&sources())?).ok()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()?;
    let answer = runtime.block_on(async { tokio::time::timeout(LIMIT, request(&client)).await });
    answer.ok()?.ok()
}

/// The providers that are built in or configured.
pub(super) fn providers() -> Vec<CompletionCandidate> {
    let settings = config::load(&sources()).map(|loaded| loaded.settings);
    let configured = settings.iter().flat_map(|settings| {
        let accounts = settings.providers.configured();
        accounts.map(|account| account.name.to_string())
    });
    let mut names: Vec<_> = configured.collect();
    names.extend(builtin_names().iter().map(|name| (*name).to_owned()));
    names.sort_unstable();
    names.dedup();
    names.into_iter().map(CompletionCandidate::new).collect()
}

/// The configuration that the command line names, or else the environment.
fn sources() -> Sources {
    let named = config_of(std::env::args_os());
    Sources::from_process(named.or_else(|| std::env::var_os("RUNWATCH_CONFIG").map(PathBuf::from)))
}

/// The file after the last `--config` of a command line that a shell completes. It follows `--`, after the program's
/// own. Words are as they were typed: bash makes three of `--config=FILE`, and `~` stands for the home folder.
fn config_of(arguments: impl Iterator<Item = OsString>) -> Option<PathBuf> {
    let mut words = arguments.skip_while(|word| word != "--").skip(1);
    let mut found = None;
    while let Some(word) = words.next() {
        if word == "--config" {
            found = words.next();
            if found.as_deref() == Some(OsStr::new("=")) {
                found = words.next();
            }
        } else if word == "--" {
            break;
        } else if let Some(path) = word.as_bytes().strip_prefix(b"--config=") {
            found = Some(OsStr::from_bytes(path).to_owned());
        }
    }
    let path = PathBuf::from(found.filter(|path| !path.is_empty())?);
    Some(match path.strip_prefix("~") {
        Ok(rest) => std::env::home_dir()?.join(rest),
        Err(_absolute_or_here) => path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_gets_a_script() {
        for shell in <clap_complete::Shell as clap::ValueEnum>::value_variants() {
            let mut out = Vec::new();
            assert_eq!(completions(*shell, &mut out).unwrap(), 0);
            let script = String::from_utf8(out).unwrap();
            assert!(script.contains("runwatch"), "{script}");
            assert!(script.contains(VARIABLE), "{script}");
        }
    }

    #[test]
    fn the_configuration_is_that_of_the_command_line() {
        let of = |line: &str| {
            let words = ["runwatch", "--", "runwatch"].into_iter();
            config_of(words.chain(line.split(' ')).map(OsString::from))
        };
        let a = Some(PathBuf::from("a.toml"));
        assert_eq!(of("--config a.toml wait --sink"), a);
        assert_eq!(of("wait --config=a.toml --sink"), a);
        assert_eq!(of("wait --config = a.toml --sink"), a);
        assert_eq!(of("wait --config b.toml --config a.toml"), a);
        assert_eq!(of("wait --sink"), None);
        assert_eq!(of("wait --config"), None);
        assert_eq!(of("wait -- --config a.toml"), None);
        let home = std::env::home_dir().unwrap();
        assert_eq!(of("list --config ~/a.toml"), Some(home.join("a.toml")));
    }
}
