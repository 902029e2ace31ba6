//! Logs, and what people see on the terminal.

use std::backtrace::BacktraceStatus;
use std::fmt;
use std::io::{self, IsTerminal as _, Write};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use tracing::field::{Field, Visit};
use tracing::{Level, Metadata};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets, filter_fn};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{LogFormat, LogLevel};
use crate::output::Output;
use crate::style::Color;
use crate::style::{Mark, Style, fold};
use crate::text::{escape_json_for_terminal, one_line};

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

/// What people see: standard error for log records, plain lines and live lines, and standard output for results.
#[derive(Debug, Clone)]
pub struct Screen {
    /// Standard output.
    pub out: Output,
    /// Standard error.
    pub err: Output,
}

impl Screen {
    /// Without live lines.
    pub fn plain() -> Self {
        let (out, err) = Output::of_process(false);
        Self { out, err }
    }

    /// With live lines if standard error is a terminal that can move its cursor.
    pub fn detect() -> Self {
        let (out, err) =
            Output::of_process(console::Term::stderr().is_term() && terminal_is_able());
        Self { out, err }
    }

    /// Whether there are live lines.
    pub fn is_live(&self) -> bool {
        self.err.is_live()
    }

    /// Rows of the terminal; 24 where that cannot be known.
    pub fn rows(&self) -> usize {
        usize::from(console::Term::stderr().size().0)
    }

    /// Columns of the terminal; 80 where that cannot be known.
    pub fn columns(&self) -> usize {
        usize::from(console::Term::stderr().size().1)
    }

    /// Columns of the terminal that standard error goes to, if it goes to one.
    pub fn error_columns(&self) -> Option<usize> {
        terminal_columns()
    }

    /// Writes a sentence to standard error, above the live lines, folded between words where it is wider than the
    /// terminal. A standard error that is closed or not read is no reason to stop watching.
    pub fn line(&self, text: &str) {
        self.whole_line(&fold(text, self.error_columns().unwrap_or(usize::MAX)));
    }

    /// Writes a line as [`Screen::line`] does, and as it is.
    pub fn whole_line(&self, text: &str) {
        self.err.diagnose(format!("{text}\n"));
    }

    /// Writes a line after a signal that may have come from the keyboard, on a row of its own: the terminal has shown
    /// `^C`.
    pub fn line_after_signal(&self, text: &str) {
        let start = match io::stderr().is_terminal() {
            true if self.is_live() => "\r\x1b[K",
            true => "\n",
            false => "",
        };
        self.line(&format!("{start}{text}"));
    }

    /// Gives the outputs at most `limit` each to write what is queued.
    pub fn flush_within(&self, limit: Duration) {
        self.err.flush_within(limit);
        if !self.out.is(&self.err) {
            self.out.flush_within(limit);
        }
    }
}

/// Columns of the terminal that standard error goes to, if it goes to one.
fn terminal_columns() -> Option<usize> {
    let terminal = console::Term::stderr();
    terminal.is_term().then(|| terminal.size().1.into())
}

/// Whether `TERM` names a terminal that knows colors and cursor movement: "dumb" and none do not (terminfo(5)).
fn terminal_is_able() -> bool {
    std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb")
}

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

/// Whether commands show in their own words what a record reports: a failed attempt, an unknown status, the state of the
/// API.
fn is_narrated(record: &Metadata<'_>) -> bool {
    let has = |field| record.fields().field(field).is_some();
    match record.target() {
        "runwatch::notify::courier" => has("delivery"),
        "runwatch::scheduler::persist" => has("status") || has("event"),
        _ => false,
    }
}

/// Formats a record as a sentence: `! cannot read the file: no such file`, and the message of a `log` sink as
/// `notification: weekly report failed after 45s (run.failed, run_1): no credits`.
struct Sentences(Style);

impl<S, N> FormatEvent<S, N> for Sentences
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> fmt::Result {
        let mut parts = SentenceParts {
            is_message: event.metadata().target() == EVENT_TARGET,
            ..SentenceParts::default()
        };
        event.record(&mut parts);
        let start = match *event.metadata().level() {
            _ if parts.is_message => "notification:".to_owned(),
            Level::ERROR => self.0.mark(Mark::Bad),
            _ => self.0.mark(Mark::Warning),
        };
        let columns = terminal_columns().unwrap_or(usize::MAX);
        writeln!(writer, "{}", fold(&format!("{start} {parts}"), columns))
    }
}

/// The fields of a record: its message, its causes, and the others as `name value`.
#[derive(Default)]
struct SentenceParts {
    message: String,
    causes: Vec<String>,
    facts: Vec<String>,
    /// It is a message of a `log` sink, whose sentence has most of its fields already.
    is_message: bool,
}

impl fmt::Display for SentenceParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let known = |fact: &&String| !self.is_message || !self.message.contains(fact.as_str());
        let facts: Vec<_> = self
            .facts
            .iter()
            .filter(known)
            .map(String::as_str)
            .collect();
        if !facts.is_empty() {
            write!(f, " ({})", facts.join(", "))?;
        }
        self.causes
            .iter()
            .try_for_each(|cause| write!(f, ": {cause}"))
    }
}

impl Visit for SentenceParts {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = one_line(&format!("{value:?}"), MAX_SENTENCE_CHARS);
        match field.name() {
            "message" => self.message = text,
            "error" | "why" | "what" | "detail" => self.causes.push(text),
            "event" | "run_id" if self.is_message => self.facts.push(text),
            _ if self.is_message => {}
            name => self
                .facts
                .push(format!("{} {text}", name.replace('_', " "))),
        }
    }
}

/// Longest part of a sentence, in characters.
const MAX_SENTENCE_CHARS: usize = 500;

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
    fn warnings_are_sentences() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let sender = std::sync::Mutex::new(sender);
        struct Lines(std::sync::Arc<std::sync::Mutex<std::sync::mpsc::Sender<String>>>);
        impl Write for Lines {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let text = String::from_utf8_lossy(bytes).into_owned();
                self.0.lock().unwrap().send(text).unwrap();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let sender = std::sync::Arc::new(sender);
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(move || Lines(std::sync::Arc::clone(&sender)))
            .event_format(Sentences(Style::PLAIN));
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(error = "no such\x1b[2J file", run_id = %"run_1", "cannot read it");
            tracing::error!("it broke");
        });
        let lines: Vec<_> = receiver.try_iter().collect();
        assert_eq!(
            lines,
            [
                "! cannot read it (run id run_1): no such[2J file\n",
                "✗ it broke\n"
            ]
        );
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
