//! The `runwatch` program: arguments, logs, configuration, then one command.
//!
//! It is part of the library, since what is asynchronous is compiled once for each crate that calls it.

use std::io::{self, IsTerminal as _, Write};
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use crate::cli as commands;
use crate::cli::args::{
    Cli, Command, Common, ConfigCommand, DaemonArgs, ListArgs, RunArg, SinksCommand, StoreCommand,
    WaitArgs,
};
use crate::cli::client::{self as cli_client, Printer};
use crate::cli::demo::DemoOptions;
use crate::cli::doctor::DoctorOptions;
use crate::cli::failure::CommandFailure;
use crate::cli::render::RenderOptions;
use crate::cli::run_names::RunNames;
use crate::cli::wait::{OutputOptions, ResultFormat};
use crate::config::{self, LogFormat, LogLevel, Problems, Settings, Sources};
use crate::control::Client;
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
    if let Command::Daemon(args) = &cli.command {
        return serve(args, &cli.common, screen);
    }
    init_logs(&cli.command, &cli.common, screen);
    let context = Context {
        pages: RunNames::new(Sources::from_process(cli.common.config.clone())),
        common: cli.common,
        screen,
    };
    let (pages, json) = (&context.pages, context.common.json);
    let (out, err) = (&mut io::stdout(), &mut io::stderr());
    let printer = printer(&context.common, out, err);
    match cli.command {
        Command::Wait(args) => wait(&args, &context),
        Command::Daemon(_) => unreachable!("it was started above"),
        Command::Healthcheck { ready } => {
            let client = context.client()?;
            block_on(commands::healthcheck::healthcheck(&client, ready, printer))
        }
        Command::Add(args) => {
            let client = context.client_for_runs()?;
            block_on(commands::add::add(&client, &args, pages, printer))
        }
        Command::List(args) => list(&args, &context, printer),
        Command::Show { run } => {
            let client = context.client_for_runs()?;
            block_on(commands::show::show(&client, &run, pages, printer))
        }
        Command::Status { run } => status(&run, &context, printer),
        Command::Open { run, print } => open(run.as_ref(), print, &context, printer),
        Command::Remove { runs, force } => {
            let client = context.client_for_runs()?;
            block_on(commands::remove::remove(
                &client, &runs, force, pages, printer,
            ))
        }
        Command::Events { after } => {
            let client = context.client()?;
            block_on(commands::events::events(&client, after, screen, json))
        }
        Command::Deliveries(args) => {
            let client = context.client()?;
            block_on(commands::deliveries::deliveries(&client, &args, printer))
        }
        Command::Sinks(command) => sinks(command, &context, printer),
        Command::Providers { command } => {
            let settings = context.settings()?;
            let command = command.as_ref();
            block_on(commands::providers::providers(
                command, pages, &settings, printer,
            ))
        }
        Command::Discover => block_on(commands::discover::discover(&context.client()?, printer)),
        Command::Lead { command } => {
            let client = context.client()?;
            block_on(commands::lead::lead(&client, command, printer))
        }
        Command::Store(command) => store(&command, &context, printer),
        Command::Config(command) => config_command(command, &context, printer),
        Command::Doctor { send } => {
            let options = doctor_options(&context.common, send);
            block_on(commands::doctor::doctor(
                context.sources(),
                &options,
                printer.out,
            ))
        }
        Command::Demo(args) if args.serve => {
            let progress = !context.common.quiet;
            block_on(commands::demo::serve(screen, progress, printer.out))
        }
        Command::Demo(_) => {
            let options = demo_options(&context.common, screen);
            block_on(commands::demo::demo(&options, printer.out))
        }
        Command::Completions { shell } => commands::completions::completions(shell, printer.out),
        Command::Openapi => commands::openapi::openapi(printer.out),
        Command::Man(args) => commands::man::man(&args, printer.out),
    }
}

/// What a command may need beside its own arguments, except the service.
struct Context<'a> {
    common: Common,
    pages: RunNames,
    screen: &'a Screen,
}

impl Context<'_> {
    fn sources(&self) -> Sources {
        Sources::from_process(self.common.config.clone())
    }

    fn settings(&self) -> anyhow::Result<Settings> {
        settings(&self.sources())
    }

    /// The client of the daemon, after a warning of problems of the configuration.
    fn client(&self) -> anyhow::Result<Client> {
        cli_client::client(&self.sources(), self.screen)
    }

    /// The client of the daemon, for a command that reports problems of the configuration by itself, once it knows its
    /// runs.
    fn client_for_runs(&self) -> anyhow::Result<Client> {
        self.connect().inspect_err(|_| {
            cli_client::warn_of_problems(self.problems().as_ref(), self.screen);
        })
    }

    fn connect(&self) -> anyhow::Result<Client> {
        cli_client::connect(&self.sources())
    }

    fn problems(&self) -> Option<Problems> {
        config::load(&self.sources()).err()
    }
}

fn list(args: &ListArgs, context: &Context<'_>, printer: Printer<'_>) -> anyhow::Result<u8> {
    let client = context.connect()?;
    let problems = context.problems();
    block_on(commands::list::list(
        &client,
        args,
        problems.as_ref(),
        printer,
    ))
}

fn status(run: &RunArg, context: &Context<'_>, printer: Printer<'_>) -> anyhow::Result<u8> {
    let client = context.connect().ok();
    block_on(commands::status::status(
        run,
        &context.pages,
        client.as_ref(),
        &context.settings()?,
        printer,
    ))
}

fn open(
    run: Option<&RunArg>,
    print: bool,
    context: &Context<'_>,
    printer: Printer<'_>,
) -> anyhow::Result<u8> {
    let run = run.map(|run| context.pages.one(run)).transpose()?;
    block_on(commands::open::open(
        &context.settings()?.control,
        run.as_ref(),
        !print && commands::open::is_desktop(|name| std::env::var_os(name)),
        || context.connect(),
        printer,
    ))
}

fn sinks(command: SinksCommand, context: &Context<'_>, printer: Printer<'_>) -> anyhow::Result<u8> {
    let settings = context.settings()?;
    match command {
        SinksCommand::Test { sinks } => block_on(commands::sinks::test(&settings, &sinks, printer)),
        SinksCommand::Render { sink, event, run } => block_on(commands::render::render(
            &settings,
            &RenderOptions { sink, event, run },
            || context.connect(),
            &context.pages,
            printer,
        )),
    }
}

fn store(
    command: &StoreCommand,
    context: &Context<'_>,
    printer: Printer<'_>,
) -> anyhow::Result<u8> {
    match command {
        StoreCommand::Copy(args) => {
            block_on(commands::store::copy(args, || context.settings(), printer))
        }
        StoreCommand::Migrate => block_on(commands::store::migrate(&context.settings()?, printer)),
        StoreCommand::Check => block_on(commands::store::check(&context.settings()?, printer)),
    }
}

fn config_command(
    command: ConfigCommand,
    context: &Context<'_>,
    Printer { out, err, json, .. }: Printer<'_>,
) -> anyhow::Result<u8> {
    let sources = context.sources();
    match command {
        ConfigCommand::Check => commands::config::check(&sources, json, out, err),
        ConfigCommand::Show => commands::config::show(&sources, json, out, err),
        ConfigCommand::Init { path, force } => {
            commands::config::init(&sources, path.as_deref(), force, out, err)
        }
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
fn wait(args: &WaitArgs, context: &Context<'_>) -> anyhow::Result<u8> {
    let (common, pages) = (&context.common, &context.pages);
    let results = match (common.json, args.output, common.quiet) {
        (true, ..) => ResultFormat::Json,
        (_, true, _) => ResultFormat::Output,
        (.., true) => ResultFormat::Nothing,
        _ => ResultFormat::Text,
    };
    let options = OutputOptions {
        screen: context.screen.clone(),
        progress: !common.quiet,
        style: Style::of_process(common.color, io::stderr().is_terminal()),
        result_style: Style::of_process(common.color, io::stdout().is_terminal()),
        results,
        follow: args.follow,
        changes: args.changes && common.json,
        group: args.group.clone(),
    };
    if args.daemon {
        let client = context.client_for_runs()?;
        block_on(commands::wait::wait_on_daemon(args, pages, client, options))
    } else {
        let settings = context.settings()?;
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
