//! What `--help` and the manual pages say besides the options: exit codes and examples of each command.

use clap::{Command, CommandFactory as _};

use super::args::Cli;

/// The heading of the options that every command has.
pub(super) const COMMON: &str = "Common options";

/// Exit codes of the commands that use the daemon.
macro_rules! codes {
    ($more:literal) => {
        concat!(
            "Exit codes:\n  0  done\n  1  the daemon refused it, or does not know the run or the delivery\n",
            "  2  wrong usage or configuration, or no daemon answers",
            $more
        )
    };
}

/// The command line with all that its help says. `-h` is short: it has neither the options that every command has nor
/// exit codes and examples.
pub fn command() -> Command {
    let root = Cli::command().mut_args(|arg| {
        let is_common = arg.get_help_heading() == Some(COMMON);
        arg.hide_short_help(is_common)
    });
    with_notes(root, "")
}

/// Moves the notes of a command and those below it to the long help.
fn with_notes(command: Command, parent: &str) -> Command {
    let path = match parent {
        "" if command.get_name() == "runwatch" => String::new(),
        "" => command.get_name().to_owned(),
        parent => format!("{parent} {}", command.get_name()),
    };
    let own = command.get_after_help().map(ToString::to_string);
    let notes = own.or_else(|| notes(&path).map(str::to_owned));
    command
        .after_help(None)
        .after_long_help(notes.map(Into::into).map_or(
            clap::builder::Resettable::Reset,
            clap::builder::Resettable::Value,
        ))
        .mut_subcommands(|part| with_notes(part, &path))
}

/// The notes of the commands that have none in their definition.
fn notes(path: &str) -> Option<&'static str> {
    Some(match path {
        "add" => codes!(
            "; also if the run is\n     watched already and an option did not apply\n\nExamples:\n  runwatch add run_xyz789abc\n  \
             create-run | runwatch add --name \"nightly report\" -"
        ),
        "list" => {
            codes!("\n\nExamples:\n  runwatch list\n  runwatch list --verdict failed --limit 20")
        }
        "show" => codes!("\n\nExample:\n  runwatch show run_xyz789abc"),
        "open" => {
            "Exit codes:\n  0  done\n  2  wrong usage or configuration, the page has no address, or no daemon answers\n\nExamples:\n  runwatch open\n  runwatch open run_xyz789abc"
        }
        "remove" => codes!(
            "\n\nExamples:\n  runwatch remove run_xyz789abc\n  runwatch remove --force - < runs.txt"
        ),
        "events" => {
            "Exit codes:\n  1    the daemon has stopped, or refused it\n  2    wrong usage or configuration, or no daemon answers\n  \
             130  interrupted (SIGINT)\n  143  terminated (SIGTERM)\n\nExample:\n  runwatch events --after 0 | jq -r .type"
        }
        "deliveries" => codes!(
            "\n\nExamples:\n  runwatch deliveries --failed\n  runwatch deliveries retry --sink ops"
        ),
        "deliveries retry" => {
            codes!(
                "; also if the\n     beginning of an ID is ambiguous\n\nExamples:\n  runwatch deliveries retry 01a21bcccaa87045\n  runwatch deliveries retry --sink ops"
            )
        }
        "deliveries drop" => {
            codes!(
                "; also if the\n     beginning of an ID is ambiguous\n\nExample:\n  runwatch deliveries drop 01a21bcccaa87045"
            )
        }
        "providers" | "providers show" => {
            "Exit codes:\n  0  done\n  2  wrong usage or configuration, or there is no such provider\n\nExamples:\n  runwatch providers\n  runwatch providers show github"
        }
        "providers test" => {
            "Exit codes:\n  0  the answer can be used\n  1  it cannot\n  2  wrong usage or configuration\n  4  API key missing or refused\n  6  no answer\n\nExamples:\n  runwatch providers test github:acme/site/123456\n  runwatch providers test --file answer.json github:acme/site/123456"
        }
        "lead" => codes!("\n\nExamples:\n  runwatch lead\n  runwatch lead release"),
        "lead release" => {
            "Exit codes:\n  0  another daemon leads\n  1  none took over, or the store is the daemon's own\n  2  wrong usage or configuration, or no daemon answers\n\nExample:\n  runwatch lead release"
        }
        "store" | "store migrate" => {
            "Exit codes:\n  0  done\n  1  not done: a daemon uses the store, or it cannot be reached or changed\n  2  wrong usage or configuration\n\nExample:\n  runwatch store migrate"
        }
        "store check" => {
            "A daemon may use the store meanwhile. Nothing is changed.\n\nExit codes:\n  0  no problem; there may be warnings\n  1  there is a problem\n  2  wrong usage or configuration\n\nExamples:\n  runwatch store check\n  runwatch store check --json | jq '.checks[].mark'"
        }
        "store copy" => {
            "All rows are copied in one transaction; what was being sent is sent again. Then\nno daemon starts on the source any more. If the copy is interrupted, run the\nsame command again. A URL stands in a file only, because it may hold a password.\n\nExit codes:\n  0  done\n  1  not done: a daemon uses a store, the target is not empty, or a store cannot\n     be reached\n  2  wrong usage or configuration\n\nExamples:\n  runwatch store copy --to-file /run/secrets/store-url\n  runwatch store copy --from-file /run/secrets/store-url --to runwatch.db"
        }
        "discover" => codes!(
            "\n\nExamples:\n  runwatch discover\n  runwatch discover --json | jq '.discoveries[].state'"
        ),
        "sinks" | "sinks test" => {
            "Exit codes:\n  0  every message arrived\n  1  one did not\n  2  wrong usage or configuration\n\nExample:\n  runwatch sinks test ops"
        }
        "sinks render" => {
            "Exit codes:\n  0  done\n  1  the message cannot be made, or the daemon does not have the run\n  2  wrong usage or configuration, or no daemon answers\n\nExamples:\n  runwatch sinks render ops --event run.failed\n  runwatch sinks render ops --run run_xyz789abc\n  runwatch sinks render ops --json | jq -r .body"
        }
        "config check" => {
            "Exit codes:\n  0  everything is right\n  2  there are problems; each is printed"
        }
        "config show" => "Exit codes:\n  0  done\n  2  wrong usage or configuration",
        "config init" => {
            "Exit codes:\n  0  done\n  2  wrong usage, or the file exists or cannot be written\n\nExample:\n  runwatch config init"
        }
        "openapi" => {
            "Exit codes:\n  0  done\n  2  wrong usage\n\nExample:\n  runwatch openapi > openapi.json"
        }
        "demo" => {
            "Exit codes:\n  0  all went as it should\n  1  it did not\n  130  interrupted (SIGINT)\n\nExample:\n  runwatch demo"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each(command: &Command, act: &mut dyn FnMut(&Command)) {
        act(command);
        for part in command.get_subcommands() {
            each(part, act);
        }
    }

    #[test]
    fn every_help_fits_80_columns_and_common_options_are_in_the_long_one() {
        let mut root = command().term_width(80);
        root.build();
        each(&root, &mut |command| {
            let mut command = command.clone().term_width(80);
            let (short, long) = (command.render_help(), command.render_long_help());
            for text in [&short, &long] {
                let text = text.to_string();
                let wide = text.lines().find(|line| line.chars().count() > 80);
                assert_eq!(wide, None, "{}", command.get_name());
            }
            let (short, long) = (short.to_string(), long.to_string());
            let lines = short.lines().count();
            assert!(
                lines <= 40,
                "{} has {lines} lines:\n{short}",
                command.get_name()
            );
            assert!(!short.contains("--log-format"), "{short}");
            // The help about help has no options.
            let has_options = command
                .get_arguments()
                .any(|arg| arg.get_id() == "log_format");
            assert_eq!(long.contains("--log-format"), has_options, "{long}");
        });
    }

    #[test]
    fn every_command_says_how_it_ends() {
        each(&command(), &mut |command| {
            let is_plain = ["runwatch", "completions", "man"].contains(&command.get_name());
            if !is_plain {
                let notes = command.get_after_long_help().map(ToString::to_string);
                assert!(
                    notes.is_some_and(|notes| notes.contains("Exit code")),
                    "{}",
                    command.get_name()
                );
            }
        });
    }
}
