//! The `runwatch` program: arguments, logs, configuration, then one command.
//!
//! It is part of the library, since what is asynchronous is compiled once for each crate that calls it.

use std::io::{self, IsTerminal as _, Write};
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use crate::cli as commands;
use crate::cli::args::{
    Cli, Command, Common, ConfigCommand, DaemonArgs, SinksCommand, StoreCommand, WaitArgs,
};
use crate::cli::client::{self as cli_client, Printer};
use crate::cli::demo::DemoOptions;
use crate::cli::doctor::DoctorOptions;
use crate::cli::failure::CommandFailure;
use crate::cli::render::RenderOptions;
use crate::cli::run_names::RunNames;
use crate::cli::wait::{OutputOptions, ResultFormat};
use crate::config::{self, LogFormat, LogLevel, Settings, Sources};
use crate::daemon::{self, Logging};
use crate::hardening;
use crate::logging;
use crate::screen::Screen;
use crate::style::Style;

/// How long each output may take at the end to write what is queued: one that is read takes a moment.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// Runs the program with the arguments of the process. Returns its exit code.
pub fn main() -> ExitCode {
    if commands::completions::answer_shell() {
        return ExitCode::SUCCESS;
    }
    runwatch_memory::limit_retention();
    hardening::forbid_core_dumps();
    hardening::raise_open_files_limit();
    let cli = match Cli::from_args(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return wrong_usage(&error),
    };
    let live = matches!(cli.command, Command::Wait(_)) && !cli.common.quiet;
    let screen = if live {
        Screen::detect()
    } else {
        Screen::plain()
    };
    let json = cli.common.json;
    let code = run(cli, &screen).unwrap_or_else(|error| {
        let failure = CommandFailure::of_command(&error);
        screen.whole_line(&logging::final_error(&failure.text(json, error_columns())));
        failure.exit_code()
    });
    screen.flush_within(FLUSH_LIMIT);
    ExitCode::from(code)
}

/// Prints the error of clap, and returns its exit code. Its own text is the best for people; with `--json`, which is
/// not read yet, programs get wrong usage as they get other errors.
fn wrong_usage(error: &clap::Error) -> ExitCode {
    let arguments = std::env::args_os().skip(1);
    let json = arguments
        .take_while(|argument| argument != "--")
        .any(|argument| argument == "--json");
    match CommandFailure::of_usage(error).filter(|_| json) {
        Some(failure) => {
            // There is no other place for it.
            let _gone = writeln!(io::stderr(), "{}", failure.text(true, None));
            ExitCode::from(failure.exit_code())
        }
        None => error.exit(),
    }
}

/// Columns of the terminal that errors go to, if they go to one.
fn error_columns() -> Option<usize> {
    let terminal = console::Term::stderr();
    terminal.is_term().then(|| terminal.size().1.into())
}

/// Runs one command. Returns the exit code.
fn run(cli: Cli, screen: &Screen) -> anyhow::Result<u8> {
    let common = cli.common;
    let sources = || Sources::from_process(common.config.clone());
    if let Command::Daemon(args) = &cli.command {
        return serve(args, &common, screen);
    }
    init_logs(&cli.command, &common, screen);
    let client = || cli_client::client(&sources(), screen);
    // These report problems of the configuration by themselves, once they know their runs.
    let client_for_runs = || {
        cli_client::connect(&sources()).inspect_err(|_| {
            cli_client::warn_of_problems(config::load(&sources()).err().as_ref(), screen);
        })
    };
    let pages = RunNames::new(sources());
    let (out, err) = (&mut io::stdout(), &mut io::stderr());
    match cli.command {
        Command::Wait(args) => wait(&args, &common, &pages, screen),
        Command::Daemon(_) => unreachable!("it was started above"),
        Command::Healthcheck { ready } => block_on(commands::healthcheck::healthcheck(
            &client()?,
            ready,
            printer(&common, out, err),
        )),
        Command::Add(args) => block_on(commands::add::add(
            &client_for_runs()?,
            &args,
            &pages,
            printer(&common, out, err),
        )),
        Command::List(args) => block_on(commands::list::list(
            &cli_client::connect(&sources())?,
            &args,
            config::load(&sources()).err().as_ref(),
            printer(&common, out, err),
        )),
        Command::Show { run } => block_on(commands::show::show(
            &client_for_runs()?,
            &run,
            &pages,
            printer(&common, out, err),
        )),
        Command::Status { run } => block_on(commands::status::status(
            &run,
            &pages,
            cli_client::connect(&sources()).ok().as_ref(),
            &settings(&sources())?,
            printer(&common, out, err),
        )),
        Command::Open { run, print } => {
            let run = run.map(|run| pages.one(&run)).transpose()?;
            block_on(commands::open::open(
                &settings(&sources())?.control,
                run.as_ref(),
                !print && commands::open::is_desktop(|name| std::env::var_os(name)),
                || cli_client::connect(&sources()),
                printer(&common, out, err),
            ))
        }
        Command::Remove { runs, force } => block_on(commands::remove::remove(
            &client_for_runs()?,
            &runs,
            force,
            &pages,
            printer(&common, out, err),
        )),
        Command::Events { after } => block_on(commands::events::events(
            &client()?,
            after,
            screen,
            common.json,
        )),
        Command::Deliveries(args) => block_on(commands::deliveries::deliveries(
            &client()?,
            &args,
            printer(&common, out, err),
        )),
        Command::Sinks(SinksCommand::Test { sinks }) => block_on(commands::sinks::test(
            &settings(&sources())?,
            &sinks,
            printer(&common, out, err),
        )),
        Command::Sinks(SinksCommand::Render { sink, event, run }) => {
            block_on(commands::render::render(
                &settings(&sources())?,
                &RenderOptions { sink, event, run },
                || cli_client::connect(&sources()),
                &pages,
                printer(&common, out, err),
            ))
        }
        Command::Providers { command } => block_on(commands::providers::providers(
            command.as_ref(),
            &pages,
            &settings(&sources())?,
            printer(&common, out, err),
        )),
        Command::Discover => block_on(commands::discover::discover(
            &client()?,
            printer(&common, out, err),
        )),
        Command::Lead { command } => block_on(commands::lead::lead(
            &client()?,
            command,
            printer(&common, out, err),
        )),
        Command::Store(StoreCommand::Copy(args)) => block_on(commands::store::copy(
            &args,
            || settings(&sources()),
            printer(&common, out, err),
        )),
        Command::Store(StoreCommand::Migrate) => block_on(commands::store::migrate(
            &settings(&sources())?,
            printer(&common, out, err),
        )),
        Command::Store(StoreCommand::Check) => block_on(commands::store::check(
            &settings(&sources())?,
            printer(&common, out, err),
        )),
        Command::Config(ConfigCommand::Check) => {
            commands::config::check(&sources(), common.json, out, err)
        }
        Command::Config(ConfigCommand::Show) => {
            commands::config::show(&sources(), common.json, out, err)
        }
        Command::Config(ConfigCommand::Init { path, force }) => {
            commands::config::init(&sources(), path.as_deref(), force, out, err)
        }
        Command::Doctor { send } => block_on(commands::doctor::doctor(
            sources(),
            &doctor_options(&common, send),
            out,
        )),
        Command::Demo(args) if args.serve => {
            block_on(commands::demo::serve(screen, !common.quiet, out))
        }
        Command::Demo(_) => block_on(commands::demo::demo(&demo_options(&common, screen), out)),
        Command::Completions { shell } => commands::completions::completions(shell, out),
        Command::Openapi => commands::openapi::openapi(out),
        Command::Man(args) => commands::man::man(&args, out),
    }
}

/// Runs the service, whose configuration says how it logs.
fn serve(args: &DaemonArgs, common: &Common, screen: &Screen) -> anyhow::Result<u8> {
    let sources = || Sources::from_process(common.config.clone());
    let settings = settings(&sources())?;
    let requested = common.requested_level();
    let level = requested.unwrap_or(settings.log.level);
    let format = common.log_format.unwrap_or(settings.log.format);
    let levels = logging::init(screen, level, format, logging::coloured(common.color));
    let logging = Logging {
        levels,
        level: requested,
    };
    block_on(daemon::daemon(args, settings, sources, logging))
}

/// Sets up the logs of a command that is not the service: sentences, unless a level is requested.
fn init_logs(command: &Command, common: &Common, screen: &Screen) {
    let format = common.log_format.unwrap_or(LogFormat::Text);
    // `doctor` reports what is wrong by itself.
    let unless_requested = match command {
        Command::Doctor { .. } => LogLevel::Error,
        _ => LogLevel::Warn,
    };
    let coloured = logging::coloured(common.color);
    match common.requested_level() {
        Some(level) => drop(logging::init(screen, level, format, coloured)),
        None => {
            let style = Style::of_process(common.color, io::stderr().is_terminal());
            logging::init_sentences(screen, unless_requested, format, style);
        }
    }
}

/// Waits for runs, here or with the daemon.
fn wait(args: &WaitArgs, common: &Common, pages: &RunNames, screen: &Screen) -> anyhow::Result<u8> {
    let sources = Sources::from_process(common.config.clone());
    let results = match (common.json, args.output, common.quiet) {
        (true, ..) => ResultFormat::Json,
        (_, true, _) => ResultFormat::Output,
        (.., true) => ResultFormat::Nothing,
        _ => ResultFormat::Text,
    };
    let options = OutputOptions {
        screen: screen.clone(),
        progress: !common.quiet,
        style: Style::of_process(common.color, io::stderr().is_terminal()),
        result_style: Style::of_process(common.color, io::stdout().is_terminal()),
        results,
        follow: args.follow,
        changes: args.changes && common.json,
        group: args.group.clone(),
    };
    if args.daemon {
        let client = cli_client::connect(&sources).inspect_err(|_| {
            cli_client::warn_of_problems(config::load(&sources).err().as_ref(), screen);
        })?;
        block_on(commands::wait::wait_on_daemon(args, pages, client, options))
    } else {
        let settings = settings(&sources)?;
        block_on(commands::wait::wait(args, pages, settings, options))
    }
}

fn settings(sources: &Sources) -> anyhow::Result<Settings> {
    Ok(config::load(sources)?.settings)
}

fn printer<'a>(common: &Common, out: &'a mut dyn Write, err: &'a mut dyn Write) -> Printer<'a> {
    let terminal = console::Term::stdout();
    Printer {
        out,
        err,
        json: common.json,
        width: terminal.is_term().then(|| terminal.size().1),
        error_columns: error_columns(),
        style: Style::of_process(common.color, terminal.is_term()),
        quiet: common.quiet,
    }
}

fn doctor_options(common: &Common, send: bool) -> DoctorOptions {
    let terminal = console::Term::stdout();
    DoctorOptions {
        send,
        json: common.json,
        style: Style::of_process(common.color, terminal.is_term()),
        columns: terminal.is_term().then(|| terminal.size().1),
    }
}

fn demo_options(common: &Common, screen: &Screen) -> DemoOptions {
    let terminal = console::Term::stdout();
    let style = |term: &console::Term| Style::of_process(common.color, term.is_term());
    DemoOptions {
        screen: screen.clone(),
        progress: !common.quiet && !common.json,
        style: style(&console::Term::stderr()),
        out_style: style(&terminal),
        json: common.json,
        columns: terminal.is_term().then(|| terminal.size().1),
    }
}

/// Runs a command to its end.
fn block_on(command: impl Future<Output = anyhow::Result<u8>>) -> anyhow::Result<u8> {
    run_to_end(Box::pin(command))
}

/// One thread is plenty, as the work is waiting; what blocks has threads of its own. A second worker made polls and
/// adds no quicker, and took twice the processor time (docs/performance.md).
///
/// The command is boxed, so that this is compiled once and not for each.
fn run_to_end(
    command: Pin<Box<dyn Future<Output = anyhow::Result<u8>> + '_>>,
) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let code = runtime.block_on(async {
        let _survived = hardening::survive_file_size_limit()?;
        // Both are given up when the other ends; reaping never does.
        tokio::select! {
            code = command => code,
            never = hardening::reap_orphans() => match never?  {},
        }
    });
    // A call that blocks, such as a write to a disk that is gone, must not hold the end of the process.
    runtime.shutdown_background();
    code
}
