//! The log sink: a log record, or a line of JSON in a file.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use tokio::time::Instant;

use super::{Message, Preview, SendError, Sent, summary};
use crate::blocking::Lane;
use crate::domain::{EventData, MessageScope, SinkName, TraceContext};
use crate::logging::{self, EVENT_TARGET};
use crate::text::{escape_json_for_terminal, one_line};

/// Longest error text in a record, in characters.
const ERROR_CHARS: usize = 500;

/// Limit of one attempt: a disk that is gone never answers, and a pipe may not be read.
const LIMIT: Duration = Duration::from_secs(5);

/// A log sink.
#[derive(Debug)]
pub enum Log {
    /// Log records on standard error.
    Records,
    /// Lines in a file.
    Lines(LineFile),
}

/// A file to which lines are appended, and the thread that does it.
#[derive(Debug)]
pub struct LineFile {
    path: PathBuf,
    lane: Lane,
    /// A line to a pipe was cut short: the next one begins on a new line.
    torn: Arc<AtomicBool>,
}

impl Log {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        match path {
            None => Self::Records,
            Some(path) => Self::Lines(LineFile {
                path,
                lane: Lane::new("log", 1),
                torn: Arc::default(),
            }),
        }
    }

    pub(super) async fn send(&self, message: &Message<'_>) -> Result<Sent, SendError> {
        match self {
            Self::Records => log(message).await,
            Self::Lines(lines) => lines.append(line(message)).await,
        }
    }
}

impl Log {
    /// What would be written. A record is shown in the text form, without its time.
    pub(super) fn preview(&self, message: &Message<'_>) -> Preview {
        let (target, body) = match self {
            Self::Records => ("a log record".to_owned(), recorded(message)),
            Self::Lines(lines) => {
                let target = format!("a line at the end of {}", lines.path.display());
                (target, line(message))
            }
        };
        Preview {
            target,
            fields: BTreeMap::new(),
            body,
        }
    }
}

/// Takes the output of log records.
#[derive(Clone, Default)]
struct LogRecorder(Arc<Mutex<Vec<u8>>>);

impl io::Write for LogRecorder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .expect("no holder panics")
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The record of a message as text.
fn recorded(message: &Message<'_>) -> String {
    let recorder = LogRecorder::default();
    let output = recorder.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .without_time()
        .with_writer(move || output.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, || record(message));
    let bytes = recorder.0.lock().expect("no holder panics");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Logs a record, and waits until it is written.
async fn log(message: &Message<'_>) -> Result<Sent, SendError> {
    let Some(output) = logging::log_output() else {
        record(message);
        return Ok(Sent {
            detail: "logged to standard error".to_owned(),
        });
    };
    if !output.has_room() {
        return Err(SendError::new(
            "standard error is not read, and too much waits to be written to it",
        ));
    }
    record(message);
    if tokio::time::timeout(LIMIT, output.flush()).await.is_err() {
        return Err(SendError::new(format!(
            "standard error was not read within {} s",
            LIMIT.as_secs()
        )));
    }
    match output.diagnostics_failed() {
        Some(error) => Err(SendError::new(format!(
            "cannot write to standard error: {error}"
        ))),
        None => Ok(Sent {
            detail: "logged to standard error".to_owned(),
        }),
    }
}

impl LineFile {
    async fn append(&self, line: String) -> Result<Sent, SendError> {
        let path = self.path.display();
        let (to, torn) = (self.path.clone(), Arc::clone(&self.torn));
        // The thread ends by itself before, unless the disk does not answer.
        match self
            .lane
            .run(LIMIT + LIMIT / 5, move || append(&to, line, &torn))
            .await
        {
            Ok(Ok(())) => Ok(Sent {
                detail: format!("appended to {path}"),
            }),
            Ok(Err(error)) => Err(SendError::new(format!("cannot append to {path}: {error}"))),
            Err(stuck) => Err(SendError::new(format!("cannot append to {path}: {stuck}"))),
        }
    }
}

/// Formats the event as one line of JSON, with the ID that identifies repeats; harmless on a terminal.
fn line(message: &Message<'_>) -> String {
    let event = message.event.to_json();
    let fields = event.strip_prefix('{').expect("an event is a JSON object");
    format!(
        "{{\"delivery_id\":\"{}\",{}\n",
        message.delivery,
        escape_json_for_terminal(fields)
    )
}

/// Appends a line and waits until it is on the disk. The file is opened each time, so that it can be moved away.
fn append(path: &Path, mut line: String, torn: &AtomicBool) -> io::Result<()> {
    let mut options = OpenOptions::new();
    // Outputs of runs concern only their owner. A pipe without a reader is an error (fifo(7), `ENXIO`), which needs
    // it to be opened for writing only; a terminal must not become the one that controls this process.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    options
        .append(true)
        .mode(0o640)
        .custom_flags(flags.bits().cast_signed());
    let is_special = std::fs::metadata(path).is_ok_and(|found| !found.is_file());
    let mut file = options.read(!is_special).create(!is_special).open(path)?;
    if is_special || !file.metadata()?.is_file() {
        if torn.swap(false, Ordering::Relaxed) {
            line.insert(0, '\n');
        }
        return write_in_time(&mut file, line.as_bytes(), torn);
    }
    if file.seek(SeekFrom::End(0))? > 0 {
        file.seek(SeekFrom::End(-1))?;
        let mut last = [0];
        file.read_exact(&mut last)?;
        // A line that a crash cut short must not spoil the next one.
        if last != *b"\n" {
            line.insert(0, '\n');
        }
    }
    file.write_all(line.as_bytes())?;
    file.sync_data()
}

/// Writes to a pipe, a terminal or a device that may not be read.
fn write_in_time(file: &mut File, line: &[u8], torn: &AtomicBool) -> io::Result<()> {
    let ends = Instant::now() + LIMIT;
    let mut left = line;
    while !left.is_empty() {
        match file.write(left) {
            Ok(written) => left = &left[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let wait = ends.saturating_duration_since(Instant::now());
                let wait = Timespec::try_from(wait).map_err(|_too_long| ErrorKind::InvalidInput)?;
                if poll(&mut [PollFd::new(&*file, PollFlags::OUT)], Some(&wait))? == 0 {
                    torn.store(left.len() < line.len(), Ordering::Relaxed);
                    return Err(io::Error::new(
                        ErrorKind::TimedOut,
                        format!("not read within {} s", LIMIT.as_secs()),
                    ));
                }
            }
            Err(error) => {
                torn.store(left.len() < line.len(), Ordering::Relaxed);
                return Err(error);
            }
        }
    }
    Ok(())
}

fn record(message: &Message<'_>) {
    let summary = summary::of(message.event);
    let event = message.event.event_type.as_str();
    let delivery_id = message.delivery.as_str();
    let fallback_for = message.event.fallback_for().map(SinkName::as_str);
    // The name that OpenTelemetry gives it ("Trace Context in non-OTLP Log Formats").
    let trace_id = message.trace.map(TraceContext::trace_id);
    match &message.event.data {
        EventData::Run(data) => {
            let error = data
                .run
                .error_message
                .as_deref()
                .map(|error| one_line(error, ERROR_CHARS));
            tracing::info!(
                target: EVENT_TARGET,
                event,
                run_id = %data.run.id,
                name = data.watch.name.as_deref(),
                status = data.run.status.as_deref().map(|status| one_line(status, ERROR_CHARS)),
                verdict = message.event.event_type.verdict().map(crate::domain::Verdict::as_str),
                error,
                ran_ms = data.timing.ran_ms,
                late = data.watch.late,
                fallback_for,
                trace_id,
                delivery_id,
                "{}",
                summary.title
            );
        }
        EventData::Group(data) => {
            let group = match &data.scope {
                MessageScope::Group(group) => Some(one_line(group, ERROR_CHARS)),
                MessageScope::Sink(_) => None,
            };
            let runs = data.total;
            tracing::info!(
                target: EVENT_TARGET, event, group, runs, fallback_for, delivery_id, "{}", summary.title
            );
        }
        EventData::Provider(notice) => {
            let detail = one_line(&notice.message, ERROR_CHARS);
            tracing::info!(target: EVENT_TARGET, event, detail, fallback_for, delivery_id, "{}", summary.title);
        }
        EventData::Sink(notice) => {
            let detail = one_line(&notice.message, ERROR_CHARS);
            tracing::info!(
                target: EVENT_TARGET, event, sink = %notice.sink, detail, fallback_for, delivery_id, "{}", summary.title
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn a_pipe_without_a_reader_is_an_error_and_one_that_is_not_read_an_error_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let torn = AtomicBool::new(false);
        let error = append(&pipe, "a line\n".to_owned(), &torn).unwrap_err();
        assert_eq!(
            error.raw_os_error(),
            Some(rustix::io::Errno::NXIO.raw_os_error()),
            "{error}"
        );

        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let mut reader = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(&pipe)
            .unwrap();
        append(&pipe, "a line\n".to_owned(), &torn).unwrap();
        let error = append(&pipe, "x".repeat(1024 * 1024), &torn).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        let mut read = vec![0; 1024 * 1024];
        let got = reader.read(&mut read).unwrap();
        assert!(read[..got].starts_with(b"a line\nxxx"));
        while reader.read(&mut read).is_ok_and(|got| got > 0) {}
        append(&pipe, "another\n".to_owned(), &torn).unwrap();
        let got = reader.read(&mut read).unwrap();
        assert_eq!(
            &read[..got],
            b"\nanother\n",
            "it does not continue the line that was cut short"
        );
    }

    #[test]
    fn a_line_that_was_cut_short_in_a_file_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("log");
        for line in ["one\n", "tw", "three\n"] {
            append(&file, line.to_owned(), &AtomicBool::new(false)).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "one\ntw\nthree\n");
    }
}
