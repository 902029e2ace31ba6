//! The command sink: a program, never a shell.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStderr};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::{Message, Preview, SendError, Sent, program, summary};
use crate::blocking::{FILE_LIMIT, Lane};
use crate::domain::{
    EventData, MessageScope, TRACE_PARENT_VARIABLE, TRACE_STATE_VARIABLE, Verdict,
};
use crate::hardening::clear_secret_environment;
use crate::process_group::ProcessGroup;
use crate::text::{last_of_line, one_line};

/// Most bytes of standard error that are kept, from its end.
const KEPT_BYTES: usize = 4 * 1024;

/// Characters of standard error that are shown, from its end: that is where programs print what failed.
const SHOWN_CHARS: usize = 200;

/// Longest value in the environment that comes from the API, in characters.
const VALUE_CHARS: usize = 1000;

/// How long standard error may stay open after the program has ended: something it started may hold it.
const STDERR_GRACE: Duration = Duration::from_secs(1);

/// A program that is run for each message.
#[derive(Debug)]
pub struct CommandSink {
    argv: Vec<String>,
    timeout: Duration,
    /// Starts the program, which blocks where its file is on a disk that does not answer.
    starts: Lane,
}

/// Programs that are being started at once, of each sink.
const STARTS: usize = 4;

impl CommandSink {
    pub(super) fn new(argv: Vec<String>, timeout: Duration) -> Self {
        Self {
            argv,
            timeout,
            starts: Lane::new("starts", STARTS),
        }
    }

    pub(super) async fn send(&self, message: &Message<'_>) -> Result<Sent, SendError> {
        let (program, arguments) = self
            .argv
            .split_first()
            .expect("the configuration refuses an empty argv");
        let mut command = prepare(program, arguments, message);
        let runtime = Handle::current();
        let name = program.clone();
        let start = move || {
            let _context = runtime.enter();
            let started = command
                .spawn()
                .map(|child| (ProcessGroup::of(&child), child));
            started.map_err(|error| match program::why(&name, &error) {
                Some(why) => format!("{error}: {why}"),
                None => error.to_string(),
            })
        };
        let ends = Instant::now() + self.timeout;
        let cannot = |error: &dyn std::fmt::Display| {
            SendError::new(format!("cannot run {program}: {error}"))
        };
        let started = self
            .starts
            .run(self.timeout, start)
            .await
            .map_err(|stuck| cannot(&stuck))?;
        let (mut group, child) = started.map_err(|error| cannot(&error))?;
        let input = input(message);
        match tokio::time::timeout_at(ends, run(child, input)).await {
            Ok(Ok((status, output))) if status.success() => {
                group.release();
                Ok(Sent {
                    detail: one_line(&format!("{status} {output}"), SHOWN_CHARS),
                })
            }
            Ok(Ok((status, output))) => {
                group.release();
                let output = self.with_suspicion(program, output).await;
                Err(SendError::new(format!(
                    "{program} ended with {status}{output}"
                )))
            }
            Ok(Err(error)) => Err(SendError::new(format!("cannot follow {program}: {error}"))),
            Err(_elapsed) => Err(SendError::new(format!(
                "{program} did not end within {:?} and was killed",
                self.timeout
            ))),
        }
    }

    /// What the program would get, besides the environment of this process.
    pub(super) fn preview(&self, message: &Message<'_>) -> Preview {
        let fields = variables(message).into_iter();
        Preview {
            target: format!("the program {:?}", self.argv),
            fields: fields
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            body: input(message),
        }
    }

    /// The output of a program that failed, and the likely cause if its file shows one, as they follow its status.
    async fn with_suspicion(&self, program: &str, output: String) -> String {
        let mut detail = if output.is_empty() {
            output
        } else {
            format!(": {output}")
        };
        let name = program.to_owned();
        let look = move || program::suspicion(&name);
        if let Ok(Some(suspicion)) = self.starts.run(FILE_LIMIT, look).await {
            detail.push_str("; ");
            detail.push_str(suspicion);
        }
        detail
    }
}

/// The standard input of the program.
fn input(message: &Message<'_>) -> String {
    format!("{}\n", message.event.to_json())
}

/// The process to start: no secret is in its environment, and it has a group of its own, so that whatever it starts can
/// be ended with it.
fn prepare(program: &str, arguments: &[String], message: &Message<'_>) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    clear_secret_environment(&mut command);
    if message.trace.is_some() {
        // That of the process itself belongs to another trace.
        command.env_remove(TRACE_STATE_VARIABLE);
    }
    command.envs(variables(message));
    command.process_group(0).kill_on_drop(true);
    command
}

/// Gives a program its input and waits for its end. Returns the end of its standard error.
async fn run(
    mut child: Child,
    input: String,
) -> std::io::Result<(std::process::ExitStatus, String)> {
    let mut stdin = child.stdin.take().expect("piped");
    let stderr = child.stderr.take().expect("piped");
    let feed = async {
        // A program that does not read its input is none the worse for it.
        drop(stdin.write_all(input.as_bytes()).await);
        drop(stdin);
    };
    let mut output = Vec::new();
    let status = {
        let talk = async { tokio::join!(feed, listen(stderr, &mut output)) };
        tokio::pin!(talk);
        // `wait` is cancel-safe, and the talk is only polled on, not dropped.
        let first = tokio::select! {
            _ = &mut talk => None,
            status = child.wait() => Some(status?),
        };
        match first {
            None => child.wait().await?,
            Some(status) => {
                // Later output is not waited for.
                drop(tokio::time::timeout(STDERR_GRACE, talk).await);
                status
            }
        }
    };
    Ok((
        status,
        last_of_line(&String::from_utf8_lossy(&output), SHOWN_CHARS),
    ))
}

/// Reads standard error to its end and keeps the last of it.
async fn listen(mut stderr: ChildStderr, kept: &mut Vec<u8>) {
    let mut piece = [0; 1024];
    // What cannot be read is not shown.
    while let Ok(read @ 1..) = stderr.read(&mut piece).await {
        kept.extend_from_slice(&piece[..read]);
        let surplus = kept.len().saturating_sub(KEPT_BYTES);
        kept.drain(..surplus);
    }
}

fn variables(message: &Message<'_>) -> Vec<(&'static str, String)> {
    let mut variables = vec![
        (
            "RUNWATCH_EVENT",
            message.event.event_type.as_str().to_owned(),
        ),
        ("RUNWATCH_DELIVERY_ID", message.delivery.to_string()),
        ("RUNWATCH_ATTEMPT", message.attempt.to_string()),
        ("RUNWATCH_SUMMARY", summary::of(message.event).title),
    ];
    if let Some(sink) = message.event.fallback_for() {
        variables.push(("RUNWATCH_FALLBACK_FOR", sink.to_string()));
    }
    if let Some(MessageScope::Group(group)) = message.event.group().map(|data| &data.scope) {
        variables.push(("RUNWATCH_GROUP", one_line(group, VALUE_CHARS)));
    }
    if let EventData::Run(data) = &message.event.data {
        let verdict = message.event.event_type.verdict().map(Verdict::as_str);
        let values = [
            ("RUNWATCH_RUN_ID", Some(data.run.id.as_str())),
            ("RUNWATCH_VERDICT", verdict),
            ("RUNWATCH_STATUS", data.run.status.as_deref()),
            ("RUNWATCH_NAME", data.watch.name.as_deref()),
            ("RUNWATCH_ERROR", data.run.error_message.as_deref()),
            ("RUNWATCH_RUN_URL", data.run.url.as_deref()),
        ];
        let present = values
            .into_iter()
            .filter_map(|(name, value)| Some((name, one_line(value?, VALUE_CHARS))));
        variables.extend(present);
    }
    if let Some(trace) = message.trace {
        variables.push((TRACE_PARENT_VARIABLE, trace.parent().to_owned()));
        let state = trace.state().map(str::to_owned);
        variables.extend(state.map(|state| (TRACE_STATE_VARIABLE, state)));
    }
    variables
}
