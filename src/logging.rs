//! Sets up the logs: which records are shown, and in which form.

mod records;
mod sentences;

use std::backtrace::BacktraceStatus;
use std::io::{self, IsTerminal as _};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use tracing_subscriber::filter::{LevelFilter, Targets, filter_fn};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, reload};

pub use self::records::final_error;
use self::records::{RecordWriter, in_journal};
use self::sentences::{Sentences, is_narrated};
use crate::config::{LogFormat, LogLevel};
use crate::output::Output;
use crate::screen::Screen;
use crate::style::{Color, Style};

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
    let writer = RecordWriter::new(screen.err.clone(), format == LogFormat::Json);
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
    let writer = RecordWriter::new(screen.err.clone(), format == LogFormat::Json);
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
        .with_writer(writer.of_texts())
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
}
