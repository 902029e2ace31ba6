//! Logs.

mod sentences;

use std::backtrace::BacktraceStatus;
use std::io::{self, IsTerminal as _, Write};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::{LevelFilter, Targets, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, reload};

use self::sentences::{Sentences, is_narrated};
use crate::config::{LogFormat, LogLevel};
use crate::output::Output;
use crate::screen::Screen;
use crate::style::{Color, Style};
use crate::text::escape_json_for_terminal;

/// Target of the records that a `log` sink writes. They are shown whatever the log level is: they are
/// messages that a user configured, not diagnostics.
pub const EVENT_TARGET: &str = "runwatch::event";

/// The output of log records, once there is one: a `log` sink waits until its record is written.
static LOG: OnceLock<Output> = OnceLock::new();

/// The output that log records go to; `None` before [`init`].
pub(crate) fn log_output() -> Option<&'static Output> {
    LOG.get()
}

/// How long the report of a panic may take to be written: the process may be about to end.
const PANIC_LIMIT: Duration = Duration::from_millis(250);

/// Writes log records to an output.
#[derive(Debug, Clone)]
struct RecordWriter {
    output: Output,
    /// Records are JSON, in which a terminal could find something to act upon.
    json: bool,
    /// The record is a message of a `log` sink.
    message: bool,
    /// Lines go to the journal, with a mark in front that has this priority (sd-daemon(3)).
    priority: Option<u8>,
}

impl Write for RecordWriter {
    /// Takes a record, which comes in one piece.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = match std::str::from_utf8(bytes) {
            Ok(json) if self.json => escape_json_for_terminal(json).into_owned().into_bytes(),
            _ => bytes.to_vec(),
        };
        let text = match self.priority {
            Some(priority) => with_priority(priority, &text),
            None => text,
        };
        if self.message {
            self.output.record(text)
        } else {
            self.output.diagnose(text)
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for RecordWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Self {
        Self {
            message: meta.target() == EVENT_TARGET,
            priority: self.priority.map(|_| priority_of(*meta.level())),
            ..self.clone()
        }
    }
}

/// The priority of syslog(3) for a level: of errors 3, of warnings 4, of what happens 6, of details 7.
fn priority_of(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// Marks each line with a priority, which the journal takes off again.
fn with_priority(priority: u8, text: &[u8]) -> Vec<u8> {
    let lines = text.split_inclusive(|byte| *byte == b'\n');
    lines
        .flat_map(|line| [format!("<{priority}>").as_bytes(), line].concat())
        .collect()
}

/// The text of an error that ends the process, as standard error shows it best.
pub fn final_error(text: &str) -> String {
    if in_journal() {
        let marked = with_priority(priority_of(Level::ERROR), text.as_bytes());
        String::from_utf8_lossy(&marked).into_owned()
    } else {
        text.to_owned()
    }
}

/// The time of text records, in milliseconds.
struct Milliseconds;

impl FormatTime for Milliseconds {
    fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        write!(writer, "{:.3}", Timestamp::now())
    }
}

/// Changes how much is logged, while it is logged.
#[derive(Clone)]
pub struct LevelSwitch(Arc<dyn Fn(LogLevel) + Send + Sync>);

impl LevelSwitch {
    /// Logs `level` and worse from here on.
    pub fn set(&self, level: LogLevel) {
        (self.0)(level);
    }
}

/// Sends log records of `level` and worse to the screen from here on, for the rest of the process.
/// Only errors of the libraries below are shown, unless `level` is the most detailed one.
///
/// # Panics
/// When it is called a second time.
pub fn init(screen: &Screen, level: LogLevel, format: LogFormat, coloured: bool) -> LevelSwitch {
    let (filter, handle) = reload::Layer::new(filter(level));
    let set = move |level| {
        // It fails only when the subscriber is gone, and then nothing is logged.
        drop(handle.reload(self::filter(level)));
    };
    drop(LOG.set(screen.err.clone()));
    let writer = RecordWriter {
        output: screen.err.clone(),
        json: format == LogFormat::Json,
        message: false,
        priority: in_journal().then_some(priority_of(Level::INFO)),
    };
    let records = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(coloured && format == LogFormat::Text);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text if in_journal() => registry.with(records.without_time()).init(),
        LogFormat::Text => registry.with(records.with_timer(Milliseconds)).init(),
        LogFormat::Json => registry.with(records.json().flatten_event(true)).init(),
    }
    log_panics(screen.err.clone());
    LevelSwitch(Arc::new(set))
}

/// Writes what is of `level` and worse to the screen as sentences from here on, for the rest of the process: for
/// commands of people who did not request log records. The messages of `log` sinks are records all the same, but on a
/// terminal.
///
/// # Panics
/// When it or [`init`] is called a second time.
pub fn init_sentences(screen: &Screen, level: LogLevel, format: LogFormat, style: Style) {
    drop(LOG.set(screen.err.clone()));
    let writer = RecordWriter {
        output: screen.err.clone(),
        json: format == LogFormat::Json,
        message: false,
        priority: in_journal().then_some(priority_of(Level::INFO)),
    };
    let messages = Targets::new().with_target(EVENT_TARGET, LevelFilter::INFO);
    let warnings = filter(level).with_target(EVENT_TARGET, LevelFilter::OFF);
    let not_narrated = filter_fn(|record| !is_narrated(record));
    let records = tracing_subscriber::fmt::layer()
        .with_writer(writer.clone())
        .with_ansi(style.colored && format == LogFormat::Text);
    let records = match format {
        // For people to read; programs read records.
        LogFormat::Text if io::stderr().is_terminal() => {
            records.event_format(Sentences(style)).boxed()
        }
        LogFormat::Text => records.boxed(),
        LogFormat::Json => records.json().flatten_event(true).boxed(),
    };
    let sentences = tracing_subscriber::fmt::layer()
        .with_writer(RecordWriter {
            json: false,
            ..writer
        })
        .event_format(Sentences(style));
    tracing_subscriber::registry()
        .with(records.with_filter(messages))
        .with(sentences.with_filter(warnings).with_filter(not_narrated))
        .init();
    log_panics(screen.err.clone());
}

/// The level that `RUST_LOG` requests for this program, in the form that Rust programs share: `debug`, or
/// `runwatch=debug,hyper=info`. `None` if it is not set or not in this form.
pub fn level_of_environment() -> Option<LogLevel> {
    level_of_directives(&std::env::var("RUST_LOG").ok()?)
}

fn level_of_directives(directives: &str) -> Option<LogLevel> {
    let targets: Targets = directives.parse().ok().filter(|_| !directives.is_empty())?;
    let ours = targets
        .iter()
        .filter(|(target, _)| target.starts_with("runwatch"))
        .map(|(_, level)| level);
    let level = ours.max().or(targets.default_level())?;
    Some(match level {
        level if level >= LevelFilter::TRACE => LogLevel::Trace,
        level if level >= LevelFilter::DEBUG => LogLevel::Debug,
        level if level >= LevelFilter::INFO => LogLevel::Info,
        level if level >= LevelFilter::WARN => LogLevel::Warn,
        _ => LogLevel::Error,
    })
}

/// Logs panics as records: the standard library would write to standard error itself, and wait where it is not read.
fn log_panics(output: Output) {
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        let what = panic.payload_as_str().unwrap_or("no reason given");
        let backtrace = std::backtrace::Backtrace::capture();
        let backtrace = match backtrace.status() {
            BacktraceStatus::Captured => format!("\nstack backtrace:\n{backtrace}"),
            _ => String::new(),
        };
        tracing::error!("panicked at {place}: {what}{backtrace}");
        output.flush_within(PANIC_LIMIT);
    }));
}

/// Whether standard error goes to systemd's journal, which has the time of every line itself:
/// `JOURNAL_STREAM` names the device and inode of that stream (systemd.exec(5)).
fn in_journal() -> bool {
    let Some(stream) = std::env::var("JOURNAL_STREAM").ok() else {
        return false;
    };
    let same = |status: rustix::fs::Stat| stream == format!("{}:{}", status.st_dev, status.st_ino);
    rustix::fs::fstat(io::stderr()).is_ok_and(same)
}

fn filter(level: LogLevel) -> Targets {
    let ours = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let others = if level == LogLevel::Trace {
        LevelFilter::TRACE
    } else {
        LevelFilter::ERROR
    };
    Targets::new()
        .with_default(others)
        .with_target("runwatch", ours)
        .with_target(EVENT_TARGET, LevelFilter::INFO)
}

/// Whether to color what goes to standard error.
pub fn coloured(choice: Color) -> bool {
    Style::of_process(choice, io::stderr().is_terminal()).colored
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rust_log_names_a_level_in_its_usual_forms() {
        for (directives, level) in [
            ("debug", Some(LogLevel::Debug)),
            ("INFO", Some(LogLevel::Info)),
            ("warn,runwatch=trace", Some(LogLevel::Trace)),
            ("runwatch::scheduler=debug", Some(LogLevel::Debug)),
            ("runwatch=off", Some(LogLevel::Error)),
            ("hyper=debug", None),
            ("", None),
            ("=,=", None),
        ] {
            assert_eq!(level_of_directives(directives), level, "{directives}");
        }
    }

    #[test]
    fn each_line_has_its_priority() {
        assert_eq!(
            with_priority(priority_of(Level::WARN), b"one\ntwo\n"),
            b"<4>one\n<4>two\n"
        );
        let levels = [
            Level::ERROR,
            Level::WARN,
            Level::INFO,
            Level::DEBUG,
            Level::TRACE,
        ];
        assert_eq!(levels.map(priority_of), [3, 4, 6, 7, 7]);
    }
}
