//! The command line: types only.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser as _};
use clap::error::ErrorKind;
use clap::{Args, FromArgMatches as _, Parser, Subcommand};
use clap_complete::engine::ArgValueCandidates;

use super::completions::{event_types, open_deliveries, providers, runs, sinks, verdicts};
use super::help::{COMMON, command};
use crate::config::{
    LogFormat, LogLevel, MAX_DEADLINE, MAX_INTERVAL, MIN_DEADLINE, MIN_INTERVAL, check_label,
    format_duration, parse_duration, schema_name, watch_name,
};
use crate::domain::{DeliveryId, EventType, GROUP_LABEL, ProviderName, RunRef, SinkName, Verdict};
use crate::logging::level_of_environment;
use crate::style::Color;
use crate::text::nearest;

/// The version, and the commit with its date where the build knew them.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), env!("RUNWATCH_BUILD"));

const DOCTOR_HELP: &str = "\
Each line has a mark and, where something is wrong, what to do. One request to each configured provider is made, for a run that does not exist.

Exit code: 0 all is well, 1 something is not, be it a warning only, 2 the configuration cannot be used, 4 a key is missing or refused.";

const WAIT_HELP: &str = "\
Exit codes:
  0    succeeded
  1    failed
  2    wrong usage or configuration
  3    canceled
  4    API key missing or refused
  5    not found
  6    the API could not be reached before the time was up
  7    skipped
  8    waiting for a person (only with --exit-on-waiting)
  124  still going when the time was up
  130  interrupted (SIGINT)
  143  terminated (SIGTERM)
For several runs the code is that of the worst: failed, timed out, unreachable,
not found, canceled, skipped, succeeded. Running out of time never touches the run.

Examples:
  runwatch wait run_xyz789abc
  runwatch wait --timeout 2h --name \"nightly report\" run_xyz789abc
  create-run | runwatch wait -            the answer of Create Run, piped in
  runwatch wait --output run_xyz789abc > report.json
  runwatch wait --any run_1 run_2 run_3";

const STATUS_HELP: &str = "\
It makes one request to the API, whether a daemon watches the run or not. A part
of an ID is looked up among the watches of the daemon.

Exit codes:
  0    succeeded
  1    failed
  2    wrong usage or configuration
  3    canceled
  4    API key missing or refused
  5    not found
  6    the API gave no usable answer
  7    skipped
  8    waiting for a person
  9    still going

Examples:
  runwatch status run_xyz789abc
  runwatch status -q run_xyz789abc && deploy";

const DAEMON_HELP: &str = "\
Signals: SIGTERM and SIGINT stop it, a second one at once; SIGHUP reloads the configuration.

Exit codes:
  0  stopped by a signal; with --exit-when-done nothing was watched, or every
     run succeeded
  1  the store or something else that it needs failed
  2  the configuration is wrong, or another daemon uses the store or the socket";

const HEALTHCHECK_HELP: &str = "\
It answers within 4 seconds. Probes may kill it after 5.

Exit codes:
  0  it makes progress; with --ready it takes new runs
  1  it does not, or no daemon answers
  2  the command or the configuration is wrong";

const TOP_HELP: &str = "\
A run is named by its ID, if it is one of the default provider (Crewship, unless default_provider says otherwise), as \
PROVIDER:ID, such as github:acme/site/123456, or by the address of its page. `runwatch providers` lists the providers.

Configuration: /etc/runwatch/config.toml, then ~/.config/runwatch/config.toml, \
then the environment (RUNWATCH_SECTION__KEY). `runwatch config init` writes a \
commented file to start from.

Example:
  CREWSHIP_API_KEY=... runwatch wait run_xyz789abc";

const CONFIG_HELP: &str = "\
Files, the later ones winning: /etc/runwatch/config.toml, $XDG_CONFIG_HOME/runwatch/config.toml; \
or only that of --config. Then the environment: RUNWATCH_SECTION__KEY, such as \
RUNWATCH_API__BASE_URL or RUNWATCH_SINKS__OPS__URL_FILE; lists are separated by commas.

Exit codes:
  0  everything is right
  2  there are problems; each is printed";

/// Watches runs at services with a run API until each one ends, and notifies the people and programs that wait for it.
#[derive(Debug, Parser)]
#[command(name = "runwatch", version = VERSION, max_term_width = 100, after_help = TOP_HELP)]
pub struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub common: Common,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Reads a command line, program name first.
    ///
    /// # Errors
    /// Wrong usage; also the texts of `--help` and `--version`. [`clap::Error::exit`] prints each
    /// where it belongs and ends with the right code.
    pub fn from_args(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut matches = command().try_get_matches_from(args)?;
        let cli = Self::from_arg_matches_mut(&mut matches)?;
        // Not declared to clap: it overlooks the conflict when the common flag stands before the command.
        if let (true, Command::Wait(WaitArgs { output: true, .. })) =
            (cli.common.json, &cli.command)
        {
            let what = "the argument '--output' cannot be used with '--json'";
            return Err(command().error(ErrorKind::ArgumentConflict, what));
        }
        Ok(cli)
    }
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = COMMON)]
pub struct Common {
    /// Read this configuration file and no other.
    // An empty variable passes here and counts as unset later; clap's own parser refuses it.
    #[arg(long, global = true, value_name = "PATH", env = "RUNWATCH_CONFIG", hide_env_values = true,
          value_parser = OsStringValueParser::new().map(PathBuf::from))]
    pub config: Option<PathBuf>,
    /// How much to log: error, warn, info, debug or trace.
    #[arg(
        hide_possible_values = true,
        long,
        global = true,
        value_enum,
        value_name = "LEVEL"
    )]
    pub log_level: Option<LogLevel>,
    /// Log more: -v informs, -vv has details, -vvv everything. RUST_LOG is respected as well.
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "log_level")]
    pub verbose: u8,
    /// Format of the log: text, or json with one object per line.
    #[arg(
        hide_possible_values = true,
        long,
        global = true,
        value_enum,
        value_name = "FORMAT"
    )]
    pub log_format: Option<LogFormat>,
    /// When to use colors: auto (on a terminal; NO_COLOR, CLICOLOR and CLICOLOR_FORCE are respected), always or never.
    #[arg(hide_possible_values = true, long, global = true, value_enum, value_name = "WHEN", default_value_t = Color::Auto)]
    pub color: Color,
    /// Print results as JSON.
    #[arg(long, global = true)]
    pub json: bool,
    /// Print results and problems only; `wait` and `status` print no results either.
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

impl Common {
    /// The level of the log records that are requested: by `--log-level`, by `-v`, or by `RUST_LOG`. `None` where
    /// nothing requests any.
    pub fn requested_level(&self) -> Option<LogLevel> {
        let by_flags = match self.verbose {
            0 => None,
            1 => Some(LogLevel::Info),
            2 => Some(LogLevel::Debug),
            _ => Some(LogLevel::Trace),
        };
        self.log_level.or(by_flags).or_else(level_of_environment)
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch runs here and now until each has a verdict.
    #[command(visible_alias = "watch", after_help = WAIT_HELP)]
    Wait(WaitArgs),
    /// Run the service: watch runs through restarts, and notify the configured sinks.
    #[command(after_help = DAEMON_HELP)]
    Daemon(DaemonArgs),
    /// Add runs to the daemon.
    Add(AddArgs),
    /// List the daemon's watches.
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show everything about one watch, such as who was notified and why.
    Show {
        /// The run: its ID, a part of it that only one watch has, or the address of its page.
        #[arg(value_name = "RUN_ID", value_parser = one_run, add = ArgValueCandidates::new(runs))]
        run: RunArg,
    },
    /// Look at one run once, without waiting: the exit code says where it is.
    #[command(after_help = STATUS_HELP)]
    Status {
        /// The run: its ID, a part of it that only one watch has, or the address of its page.
        #[arg(value_name = "RUN_ID", value_parser = one_run, add = ArgValueCandidates::new(runs))]
        run: RunArg,
    },
    /// Print the address of the daemon's page, and open it in the browser of a desktop.
    Open {
        /// A run, whose view is opened: its ID, PROVIDER:ID, or the address of its page.
        #[arg(value_name = "RUN_ID", value_parser = one_run, add = ArgValueCandidates::new(runs))]
        run: Option<RunArg>,
        /// Only print the address.
        #[arg(long)]
        print: bool,
    },
    /// Stop watching runs. The runs themselves are not stopped.
    Remove {
        /// The runs: IDs, or parts of them that only one watch has; `-` reads IDs, or JSON with `run_id` or `id`, from
        /// standard input.
        #[arg(required = true, value_name = "RUN_ID|-", add = ArgValueCandidates::new(runs))]
        runs: Vec<RunArg>,
        /// Give up their deliveries that are still open.
        #[arg(long)]
        force: bool,
    },
    /// Follow the daemon's events, one JSON object per line.
    Events {
        /// Begin after the event with this number; 0 shows all stored events [default: now].
        #[arg(long, value_name = "ID")]
        after: Option<u64>,
    },
    /// List deliveries to sinks, retry some, or give some up.
    Deliveries(DeliveriesArgs),
    /// Check the health of the daemon; for containers without a shell.
    #[command(after_help = HEALTHCHECK_HELP)]
    Healthcheck {
        /// Check whether it accepts new runs, instead of whether it makes progress.
        #[arg(long)]
        ready: bool,
    },
    /// Test the configured sinks, or show what they send.
    #[command(subcommand)]
    Sinks(SinksCommand),
    /// List the providers: services with a run API, built in or configured.
    Providers {
        /// What to do instead of listing them.
        #[command(subcommand)]
        command: Option<ProvidersCommand>,
    },
    /// Show how the daemon finds runs, as `[[discover]]` says.
    Discover,
    /// Show which daemon on a store leads, or let another one.
    Lead {
        /// What to do instead of showing it.
        #[command(subcommand)]
        command: Option<LeadCommand>,
    },
    /// Check the store of the daemon, copy it to another place, or change its tables.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Check, show or write the configuration.
    #[command(subcommand, after_help = CONFIG_HELP)]
    Config(ConfigCommand),
    /// Check the configuration, the keys, the APIs, the clock, the daemon, the store and the sinks.
    #[command(after_help = DOCTOR_HELP)]
    Doctor {
        /// Send a message marked as a test through each sink.
        #[arg(long)]
        send: bool,
    },
    /// Try everything on this machine, with a simulated API: no key, no network.
    Demo(DemoArgs),
    /// Print a completion script for a shell.
    #[command(
        after_help = "Example:\n  runwatch completions bash > ~/.local/share/bash-completion/completions/runwatch"
    )]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the OpenAPI document of the daemon and its webhooks.
    Openapi,
    /// Print a manual page.
    #[command(after_help = "Examples:\n  runwatch man | man -l -\n  runwatch man wait | man -l -")]
    Man(ManArgs),
}

/// What `store` does.
#[derive(Debug, Clone, Subcommand)]
pub enum StoreCommand {
    /// Copy a store from a file to PostgreSQL or back, and mark it as moved. No daemon may run on either.
    Copy(StoreCopyArgs),
    /// Make the tables of the configured store, or bring them to the newest version.
    Migrate,
    /// Check the configured store: version, size, damage, rights, and what a failure could lose.
    Check,
}

/// Arguments of `store copy`.
#[derive(Debug, Clone, Args)]
pub struct StoreCopyArgs {
    /// The file to copy [default: the configured store].
    #[arg(long, value_name = "PATH", conflicts_with = "from_file")]
    pub from: Option<PathBuf>,
    /// A file with the URL of the PostgreSQL database to copy.
    #[arg(long, value_name = "URL_FILE")]
    pub from_file: Option<PathBuf>,
    /// The file to copy to, which is made [default: the configured store].
    #[arg(long, value_name = "PATH", conflicts_with = "to_file",
          required_unless_present_any = ["to_file", "from", "from_file"])]
    pub to: Option<PathBuf>,
    /// A file with the URL of the PostgreSQL database to copy to.
    #[arg(long, value_name = "URL_FILE")]
    pub to_file: Option<PathBuf>,
    /// The schema in the database of a URL file.
    #[arg(long, value_name = "NAME", default_value = "runwatch", value_parser = schema)]
    pub schema: String,
    /// Certificates of the authorities that the server of a URL file is checked against [default: the system's].
    #[arg(long, value_name = "PATH")]
    pub ca_file: Option<PathBuf>,
}

/// What `lead` does.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum LeadCommand {
    /// Let another daemon poll and deliver, for example before this machine is drained.
    Release,
}

/// Arguments of `wait`.
#[derive(Debug, Clone, Args)]
pub struct WaitArgs {
    /// Runs to watch: IDs, PROVIDER:ID or addresses of pages; `-` reads them, or JSON with `run_id` or `id`, from
    /// standard input.
    ///
    /// With --latest and --all-active: the parameters of the list, NAME=VALUE.
    #[arg(required_unless_present_any = ["latest", "all_active"], value_name = "RUN_ID|-", add = ArgValueCandidates::new(runs))]
    pub runs: Vec<RunArg>,
    /// Watch the newest run of this provider's list.
    ///
    /// For example `--latest github owner=acme repo=site branch=main`. For 10s, it looks again for a run that was only
    /// just requested.
    #[arg(long, value_name = "PROVIDER", value_parser = provider_name, conflicts_with = "all_active", add = ArgValueCandidates::new(providers))]
    pub latest: Option<ProviderName>,
    /// Watch all runs of this list that go on.
    ///
    /// At most 1,000. For 10s, it looks again if there is none; then the exit code is 0.
    #[arg(long, value_name = "PROVIDER", value_parser = provider_name, add = ArgValueCandidates::new(providers))]
    pub all_active: Option<ProviderName>,
    /// Options for the watches.
    #[command(flatten)]
    pub watch: WatchArgs,
    /// Let the daemon watch, and follow it. When this ends, the daemon continues to watch.
    #[arg(long, conflicts_with = "interval")]
    pub daemon: bool,
    /// With --daemon: watch finished runs again.
    #[arg(long, requires = "daemon")]
    pub again: bool,
    /// Poll at this fixed interval, 50ms or more, instead of a growing one.
    #[arg(long, value_name = "DURATION", value_parser = interval)]
    pub interval: Option<Duration>,
    /// Make the runs a group, with one notification.
    ///
    /// It is sent when all have verdicts, and a line at the end has how many have which.
    #[arg(long, value_name = "NAME", value_parser = group, conflicts_with_all = ["any", "fail_fast"])]
    pub group: Option<String>,
    /// End at the first verdict, with its exit code.
    #[arg(long)]
    pub any: bool,
    /// End at the first verdict other than succeeded.
    #[arg(long)]
    pub fail_fast: bool,
    /// With --json: a line of JSON for each change of state, before the last line of its run.
    #[arg(long)]
    pub changes: bool,
    /// End with code 8 when a run stops until a person acts.
    #[arg(long)]
    pub exit_on_waiting: bool,
    /// Print only the output of each succeeded run to standard output; not with --json.
    #[arg(long)]
    pub output: bool,
    /// Accepted without effect: the exit code is always that of the verdict.
    #[arg(long, hide = true)]
    pub exit_status: bool,
    /// Show the activity of the runs: agents, tasks, tools, logs, artifacts. With --json the events
    /// are lines of JSON with the key activity, before the last line of their run.
    #[arg(short, long)]
    pub follow: bool,
    /// After the verdicts, keep retrying messages whose next attempt is due within this time.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = linger)]
    pub linger: Duration,
}

/// Options for a watch.
#[derive(Debug, Clone, Args)]
pub struct WatchArgs {
    /// Give up on a run after this time [default: watch.deadline, 24h].
    #[arg(long, value_name = "DURATION", value_parser = deadline)]
    pub timeout: Option<Duration>,
    /// A name for the runs, shown in notifications.
    #[arg(long, value_name = "TEXT", value_parser = name)]
    pub name: Option<String>,
    /// A label for the runs, by which sinks can select them; repeatable.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// Notify only this sink; repeatable.
    #[arg(long = "sink", value_name = "NAME", add = ArgValueCandidates::new(sinks))]
    pub sinks: Vec<SinkName>,
}

/// Arguments of `daemon`.
#[derive(Debug, Clone, Args)]
pub struct DaemonArgs {
    /// End when every watch has its verdict and every delivery is delivered or given up, with the exit
    /// code that `wait` has for the worst verdict.
    #[arg(long)]
    pub exit_when_done: bool,
    /// With --exit-when-done: how long to wait for the first run.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = linger, requires = "exit_when_done")]
    pub idle_grace: Duration,
}

/// Arguments of `add`.
#[derive(Debug, Clone, Args)]
pub struct AddArgs {
    /// Runs to watch: IDs, PROVIDER:ID or addresses of pages; `-` reads them, or JSON with `run_id` or `id`, from
    /// standard input.
    #[arg(required = true, value_name = "RUN_ID|-")]
    pub runs: Vec<RunArg>,
    /// Watch finished runs again; their earlier watches are kept.
    #[arg(long)]
    pub again: bool,
    /// Options for the watches.
    #[command(flatten)]
    pub watch: WatchArgs,
}

/// Arguments of `list`.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// Finished watches too.
    #[arg(long)]
    pub all: bool,
    /// Only finished watches with this verdict: succeeded, failed, canceled, skipped, not_found,
    /// unreachable or timed_out.
    #[arg(long, value_name = "VERDICT", value_parser = verdict, add = ArgValueCandidates::new(verdicts))]
    pub verdict: Option<Verdict>,
    /// Only watches that carry this label; repeatable.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// Only the newest of them, so many at the most.
    #[arg(long, value_name = "N", value_parser = limit)]
    pub limit: Option<usize>,
}

/// Arguments of `deliveries`.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct DeliveriesArgs {
    /// Only those that failed at least once and have not arrived.
    #[arg(long)]
    pub failed: bool,
    /// Only those of this sink.
    #[arg(long, value_name = "NAME", add = ArgValueCandidates::new(sinks))]
    pub sink: Option<SinkName>,
    /// Only the newest of them, so many at the most.
    #[arg(long, value_name = "N", value_parser = limit)]
    pub limit: Option<usize>,
    /// What to do with some.
    #[command(subcommand)]
    pub command: Option<DeliveriesCommand>,
}

/// The commands of `deliveries`.
#[derive(Debug, Clone, Subcommand)]
pub enum DeliveriesCommand {
    /// Try deliveries again at once that were given up or wait for their next attempt.
    Retry(Deliveries),
    /// Give deliveries up that have not arrived, such as those to a sink that is gone.
    Drop(Deliveries),
}

/// Some deliveries.
#[derive(Debug, Clone, Args)]
pub struct Deliveries {
    /// Their IDs, or unambiguous beginnings of them, also without `msg_`.
    #[arg(required_unless_present = "sink", value_name = "ID", value_parser = delivery,
          add = ArgValueCandidates::new(open_deliveries))]
    pub ids: Vec<DeliveryId>,
    /// All of this sink that have not arrived.
    #[arg(long, value_name = "NAME", conflicts_with = "ids", add = ArgValueCandidates::new(sinks))]
    pub sink: Option<SinkName>,
}

/// One argument that names runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunArg {
    /// A text that names a run: its ID, `PROVIDER:ID`, or the URL of its page.
    Named(String),
    /// `-`: read standard input.
    Stdin,
}

impl FromStr for RunArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "-" {
            return Ok(Self::Stdin);
        }
        // A parameter of a list: it is read where it is known that one is wanted.
        if text.contains('=') {
            return Ok(Self::Named(text.to_owned()));
        }
        if text.contains(char::is_whitespace) {
            return Err("spaces are not allowed in a run ID".to_owned());
        }
        // What is left needs the configuration, which says which providers there are.
        // So does an ID whose middle is left out, as tables show long ones.
        if !text.contains([':', '/', '…']) {
            RunRef::new(text).map_err(|error| error.rule().to_owned())?;
        }
        Ok(Self::Named(text.to_owned()))
    }
}

/// The commands of `providers`.
#[derive(Debug, Subcommand)]
pub enum ProvidersCommand {
    /// Print the profile of a provider: what its run API looks like.
    Show {
        /// The provider.
        #[arg(value_name = "NAME", add = ArgValueCandidates::new(providers))]
        name: String,
    },
    /// Make one request for a run, or read an answer from a file, and print how it is read.
    Test {
        /// The run: PROVIDER:ID, or the URL of its page.
        #[arg(value_name = "RUN", value_parser = one_run)]
        run: RunArg,
        /// A file with the body of an answer, instead of a request.
        #[arg(long, value_name = "PATH")]
        file: Option<PathBuf>,
        /// With --file: the status code of the answer.
        #[arg(long, value_name = "CODE", default_value = "200", requires = "file")]
        code: u16,
    },
}

/// The commands of `sinks`.
#[derive(Debug, Subcommand)]
pub enum SinksCommand {
    /// Send a message marked as a test through each sink and print the results.
    Test {
        /// The sinks; all of them if none is named.
        #[arg(value_name = "SINK", add = ArgValueCandidates::new(sinks))]
        sinks: Vec<SinkName>,
    },
    /// Print what a sink would send, without sending it and without secrets.
    Render {
        /// The sink.
        #[arg(value_name = "SINK", add = ArgValueCandidates::new(sinks))]
        sink: SinkName,
        /// The event [default: sink.test, or with --run the one of its verdict].
        #[arg(long, value_name = "EVENT", value_parser = event_type, add = ArgValueCandidates::new(event_types))]
        event: Option<EventType>,
        /// A run that the daemon watches or watched, in place of a sample: its ID, a part of it that only one watch
        /// has, or the address of its page.
        #[arg(long, value_name = "RUN_ID", value_parser = one_run, add = ArgValueCandidates::new(runs))]
        run: Option<RunArg>,
    },
}

/// The commands of `config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Report every problem at once.
    Check,
    /// Print every key in force and where its value comes from, without secrets.
    Show,
    /// Write a commented file to start from.
    Init {
        /// Where to; `-` is standard output [default: the user's configuration file].
        path: Option<PathBuf>,
        /// Replace a file that exists.
        #[arg(long)]
        force: bool,
    },
}

/// Arguments of `man`.
#[derive(Debug, Clone, Args)]
pub struct ManArgs {
    /// The page, such as wait, config-check or runwatch.toml [default: all commands on one page].
    pub page: Option<String>,
    /// Write every page into this directory instead.
    #[arg(long, value_name = "DIR", conflicts_with = "page")]
    pub dir: Option<PathBuf>,
}

/// Arguments of `demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Serve the simulated API until interrupted, and watch nothing.
    #[arg(long)]
    pub serve: bool,
}

/// A duration within limits, both included.
fn within(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let duration = parse_duration(text)
        .map_err(|error| format!("{error}; write a duration such as 30s or 1h30m"))?;
    if (least..=most).contains(&duration) {
        Ok(duration)
    } else {
        Err(format!(
            "out of range; write {} to {}",
            format_duration(least),
            format_duration(most)
        ))
    }
}

/// Reads the name of a schema.
fn schema(text: &str) -> Result<String, String> {
    schema_name(text).map_err(|(what, fix)| format!("{what}; {fix}"))
}

fn deadline(text: &str) -> Result<Duration, String> {
    within(text, MIN_DEADLINE, MAX_DEADLINE)
}

fn interval(text: &str) -> Result<Duration, String> {
    within(text, MIN_INTERVAL, MAX_INTERVAL)
}

fn linger(text: &str) -> Result<Duration, String> {
    within(text, Duration::ZERO, MAX_DEADLINE)
}

fn verdict(text: &str) -> Result<Verdict, String> {
    let words = || Verdict::WORST_FIRST.map(Verdict::as_str).join(", ");
    Verdict::from_word(text).ok_or_else(|| format!("write one of {}", words()))
}

/// A number of rows.
fn limit(text: &str) -> Result<usize, String> {
    let count: Option<usize> = text.parse().ok().filter(|count| *count > 0);
    count.ok_or_else(|| "write a whole number from 1 on".to_owned())
}

fn provider_name(text: &str) -> Result<ProviderName, String> {
    ProviderName::new(text).map_err(|error| error.rule().to_owned())
}

fn one_run(text: &str) -> Result<RunArg, String> {
    match text.parse()? {
        RunArg::Stdin => Err("write one run ID; - is for commands that take several".to_owned()),
        run => Ok(run),
    }
}

/// The word of an event.
fn event_type(text: &str) -> Result<EventType, String> {
    EventType::from_word(text).ok_or_else(|| {
        let words = EventType::ALL.map(EventType::as_str);
        match nearest(text, words) {
            Some(word) => format!("there is no such event; did you mean {word}?"),
            None => format!("there is no such event; use one of {}", words.join(", ")),
        }
    })
}

/// A delivery ID or the beginning of one, also without its `msg_`.
fn delivery(text: &str) -> Result<DeliveryId, String> {
    DeliveryId::new(text)
        .or_else(|_| DeliveryId::new(&format!("msg_{text}")))
        .map_err(|error| error.rule().to_owned())
}

fn name(text: &str) -> Result<String, String> {
    watch_name(text).map_err(|(what, _)| what)
}

fn group(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("a group needs a name".to_owned());
    }
    check_label(GROUP_LABEL, text).map_err(|(what, fix)| format!("{what}; {fix}"))?;
    Ok(text.to_owned())
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or("there is no = in it; write KEY=VALUE")?;
    check_label(key, value).map_err(|(what, fix)| format!("{what}; {fix}"))?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(line: &str) -> Result<WaitArgs, String> {
        let parsed =
            Cli::from_args(line.split_whitespace().map(OsString::from)).map_err(|error| {
                assert_eq!(error.exit_code(), 2);
                error.to_string()
            })?;
        match parsed.command {
            Command::Wait(args) => Ok(args),
            other => panic!("not wait: {other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn wait_takes_all_its_flags() {
        let args = wait(
            "runwatch watch run_1 - --timeout 2h --name n --label a=b --label c=d=e --sink ops --interval 50ms \
             --any --fail-fast --output --exit-status --linger 0s -q -f",
        )
        .unwrap();
        assert_eq!(
            args.runs,
            [RunArg::Named("run_1".to_owned()), RunArg::Stdin]
        );
        assert_eq!(args.watch.timeout, Some(Duration::from_secs(7200)));
        assert_eq!(
            args.watch.labels,
            [("a".into(), "b".into()), ("c".into(), "d=e".into())]
        );
        assert_eq!(args.interval, Some(Duration::from_millis(50)));
        assert_eq!((args.linger, args.follow), (Duration::ZERO, true));
        assert_eq!(
            wait("runwatch wait run_1").unwrap().linger,
            Duration::from_secs(30)
        );
    }

    #[test]
    fn wait_takes_a_list_in_place_of_runs() {
        let args = wait("runwatch wait --latest github owner=acme branch=a/b").unwrap();
        assert_eq!(args.latest.unwrap().as_str(), "github");
        let named = |text: &str| RunArg::Named(text.to_owned());
        assert_eq!(args.runs, [named("owner=acme"), named("branch=a/b")]);
        let args = wait("runwatch wait --all-active prefect --daemon").unwrap();
        assert_eq!(
            (args.all_active.unwrap().as_str(), args.runs.len()),
            ("prefect", 0)
        );
        let error = wait("runwatch wait --latest github --all-active github").unwrap_err();
        assert!(error.contains("--all-active"), "{error}");
        assert!(wait("runwatch wait --latest A:b").is_err());
    }

    #[test]
    fn mistakes_name_the_argument() {
        for (line, named) in [
            ("runwatch wait run_1 a%b", "a%b"),
            ("runwatch wait ..", ".."),
            ("runwatch wait", "RUN_ID"),
            ("runwatch wait run_1 --timeout 90", "--timeout"),
            ("runwatch wait run_1 --interval 49ms", "--interval"),
            ("runwatch wait run_1 --label team", "--label"),
            ("runwatch wait run_1 --sink a.b", "--sink"),
            ("runwatch wait run_1 --output --json", "--output"),
            ("runwatch --json wait run_1 --output", "--output"),
        ] {
            let error = wait(line).unwrap_err();
            assert!(error.contains(named), "{line}: {error}");
        }
    }

    #[test]
    fn common_flags_go_before_and_after_the_command() {
        for line in [
            "runwatch --json --config x config check",
            "runwatch config check --json --config x",
        ] {
            let cli = Cli::from_args(line.split_whitespace().map(OsString::from)).unwrap();
            assert!(
                cli.common.json && cli.common.config == Some(PathBuf::from("x")),
                "{line}"
            );
        }
    }
}
