//! What the commands that use the daemon have in common: its client, their printer, their exit codes.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use futures_util::{StreamExt as _, stream};

use super::args::WatchArgs;
use super::failure::CommandFailure;
use super::trace::trace_of_process;
use super::{USAGE, write_text};
use crate::config::{self, NO_SOCKET_PLACE, Problems, Sources, format_duration};
use crate::control::{AddRequest, Client, ClientError, WatchResponse};
use crate::domain::RunRef;
use crate::screen::Screen;
use crate::style::{Style, fold};
use crate::text::escape_json_for_terminal;

/// Exit code when the daemon refuses a correct request.
pub(super) const REFUSED: u8 = 1;

/// The socket of systemd/runwatch.service, which only root may use.
const SERVICE_SOCKET: &str = "/run/runwatch/runwatch.sock";

/// Requests under way at once when many runs are handed over: they share syncs to the disk.
const AT_ONCE: usize = 64;

/// Where a command prints, and how.
pub struct Printer<'a> {
    /// Results.
    pub out: &'a mut dyn Write,
    /// Everything else.
    pub err: &'a mut dyn Write,
    /// Results as JSON.
    pub json: bool,
    /// Width of the terminal that results go to, if they go to one.
    pub width: Option<u16>,
    /// Columns of the terminal that errors go to, if they go to one.
    pub error_columns: Option<usize>,
    /// Colors and characters of results.
    pub style: Style,
    /// Whether what is neither a result nor a problem is left out.
    pub quiet: bool,
}

impl Printer<'_> {
    pub(super) fn line(&mut self, text: &str) -> anyhow::Result<()> {
        write_text(self.out, &format!("{text}\n"))
    }

    pub(super) fn json(&mut self, value: &impl serde::Serialize) -> anyhow::Result<()> {
        self.line(&escape_json_for_terminal(&serde_json::to_string(value)?))
    }

    /// Prints a remark about the results, unless it is to be quiet.
    pub(super) fn remark(&mut self, text: &str) -> anyhow::Result<()> {
        if self.quiet {
            return Ok(());
        }
        self.sentence(text)
    }

    /// Prints what people should know about the results, folded between words where it is wider than the terminal.
    pub(super) fn warning(&mut self, text: &str) -> anyhow::Result<()> {
        self.sentence(&format!("warning: {text}"))
    }

    /// Prints what is wrong with the configuration, of which each command takes what it can.
    pub(super) fn warn_of_problems(&mut self, problems: Option<&Problems>) -> anyhow::Result<()> {
        let mut problems = problems.iter().flat_map(|problems| &problems.0);
        problems.try_for_each(|problem| self.warning(&problem.to_string()))
    }

    fn sentence(&mut self, text: &str) -> anyhow::Result<()> {
        let text = fold(text, self.error_columns.unwrap_or(usize::MAX));
        write_text(self.err, &format!("{text}\n"))
    }

    /// Prints why something was not done and returns the exit code for that.
    pub(super) fn failed(&mut self, failure: impl Into<CommandFailure>) -> anyhow::Result<u8> {
        let failure = failure.into();
        let text = failure.text(self.json, self.error_columns);
        write_text(self.err, &format!("{text}\n"))?;
        Ok(failure.exit_code())
    }
}

/// The exit code for a failed request: 1 when the daemon refused a correct request, 2 otherwise.
pub(super) fn failure_code(error: &ClientError) -> u8 {
    match error {
        ClientError::Refused(problem) if problem.status != 400 && !problem.is_ambiguous() => {
            REFUSED
        }
        _ => USAGE,
    }
}

/// A client of the daemon at the socket that the configuration names. Other problems of the
/// configuration only lead to warnings: the daemon may be running all the same.
///
/// # Errors
/// When there is no place for a socket.
pub fn client(sources: &Sources, screen: &Screen) -> anyhow::Result<Client> {
    warn_of_problems(config::load(sources).err().as_ref(), screen);
    connect(sources)
}

/// Shows problems of the configuration that do not stop a command.
pub fn warn_of_problems(problems: Option<&Problems>, screen: &Screen) {
    for problem in problems.iter().flat_map(|problems| &problems.0) {
        screen.line(&format!("warning: {problem}"));
    }
}

/// As [`client`], without the warnings.
///
/// # Errors
/// When there is no place for a socket.
pub fn connect(sources: &Sources) -> anyhow::Result<Client> {
    let socket = socket(sources).with_context(|| {
        let service = format!("the system's daemon would be at {SERVICE_SOCKET}");
        format!("{NO_SOCKET_PLACE}; {service}, set as RUNWATCH_CONTROL__SOCKET")
    })?;
    Ok(Client::new(&socket)?)
}

/// Root, who seldom has a session with a daemon in it, means the machine's service unless something else
/// is configured or there.
pub(super) fn socket(sources: &Sources) -> Option<PathBuf> {
    let own = config::control_socket(sources);
    let absent = own == sources.socket_path() && !own.as_deref().is_some_and(Path::exists);
    let service = Path::new(SERVICE_SOCKET);
    let root = rustix::process::geteuid().is_root();
    if absent && root && (own.is_none() || service.exists()) {
        Some(service.to_owned())
    } else {
        own
    }
}

/// What is requested for a run.
pub(super) fn request(args: &WatchArgs, run_id: &RunRef, again: bool) -> AddRequest {
    let sinks: Vec<_> = args
        .sinks
        .iter()
        .map(|name| name.as_str().to_owned())
        .collect();
    AddRequest {
        run_id: run_id.as_str().to_owned(),
        provider: None,
        name: args.name.clone(),
        labels: args.labels.iter().cloned().collect(),
        sinks: (!sinks.is_empty()).then_some(sinks),
        timeout: args.timeout.map(format_duration),
        again,
    }
}

/// Hands runs to the daemon. The answers come in the same order: each run is either watched now, with
/// whether that is new, or refused.
pub(super) async fn add_all(
    client: &Client,
    args: &WatchArgs,
    again: bool,
    run_ids: &[RunRef],
) -> Vec<Result<(WatchResponse, bool), ClientError>> {
    let trace = trace_of_process();
    let add = |run_id: &RunRef| {
        let add_request = request(args, run_id, again);
        let trace = trace.as_ref();
        async move { client.add(&add_request, trace).await }
    };
    stream::iter(run_ids)
        .map(add)
        .buffered(AT_ONCE)
        .collect()
        .await
}
