//! Logs, and the one place that writes to the terminal's standard error.

use std::io::{self, IsTerminal as _, Write};
use std::sync::Arc;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::cli::Color;
use crate::config::{LogFormat, LogLevel};
use crate::text::harmless_json;

/// Target of the records that a `log` sink writes. They are shown whatever the log level is: they are
/// messages somebody asked for, not diagnostics.
pub const EVENT_TARGET: &str = "runwatch::event";

/// Standard error, shared by log records, plain lines and live lines without mixing them up.
#[derive(Debug, Clone)]
pub struct Screen {
    live: Option<MultiProgress>,
}

impl Screen {
    /// Standard error without live lines.
    pub fn plain() -> Self {
        Self { live: None }
    }

    /// Standard error with live lines if it is a terminal that can move its cursor.
    pub fn detect() -> Self {
        let term = console::Term::stderr();
        let movable = term.is_term() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        // Ten draws a second at most: enough for a clock in seconds, little work for a terminal.
        let target = || ProgressDrawTarget::term(term, 10);
        Self { live: movable.then(|| MultiProgress::with_draw_target(target())) }
    }

    /// Whether there are live lines.
    pub fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// Rows of the terminal; 24 where that cannot be known.
    pub fn rows(&self) -> usize {
        usize::from(console::Term::stderr().size().0)
    }

    /// Columns of the terminal; 80 where that cannot be known.
    pub fn columns(&self) -> usize {
        usize::from(console::Term::stderr().size().1)
    }

    /// Writes a line to standard error, above the live lines. A closed standard error is no reason to
    /// stop watching.
    pub fn line(&self, text: &str) {
        self.aside(|| {
            let written = writeln!(io::stderr().lock(), "{text}");
            drop(written);
        });
    }

    /// Runs `write` with the live lines out of the way.
    pub fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.live {
            Some(live) => live.suspend(write),
            None => write(),
        }
    }

    /// A place for live lines, which are gone when it is dropped.
    pub fn live_area(&self) -> Option<LiveArea> {
        self.live.clone().map(|live| LiveArea { live, bars: Vec::new() })
    }
}

/// Live lines at the bottom of the terminal.
#[derive(Debug)]
pub struct LiveArea {
    live: MultiProgress,
    bars: Vec<ProgressBar>,
}

impl LiveArea {
    /// Shows `lines`, in place of those shown before, on a terminal with so many columns. Each is cut to what fits
    /// with room for the `^C` of a terminal, which would else begin a line that nobody takes away.
    pub fn show(&mut self, lines: &[String], columns: usize) {
        while self.bars.len() > lines.len() {
            if let Some(bar) = self.bars.pop() {
                bar.finish_and_clear();
                self.live.remove(&bar);
            }
        }
        while self.bars.len() < lines.len() {
            let style = ProgressStyle::with_template("{msg}").expect("a valid template");
            self.bars.push(self.live.add(ProgressBar::no_length().with_style(style)));
        }
        for (bar, line) in self.bars.iter().zip(lines) {
            bar.set_message(console::truncate_str(line, columns.saturating_sub(3), "…").into_owned());
            bar.tick();
        }
    }
}

impl Drop for LiveArea {
    fn drop(&mut self) {
        self.show(&[], 0);
    }
}

/// Writes log records to the screen.
#[derive(Debug, Clone)]
struct ScreenWriter {
    screen: Screen,
    /// Records are JSON, in which a terminal could find something to act upon.
    json: bool,
}

impl Write for ScreenWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(bytes) {
            // A record comes in one piece.
            Ok(json) if self.json => {
                self.screen.aside(|| io::stderr().lock().write_all(harmless_json(json).as_bytes()))?;
                Ok(bytes.len())
            }
            _ => self.screen.aside(|| io::stderr().lock().write(bytes)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

impl<'a> MakeWriter<'a> for ScreenWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
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
/// Only errors of the libraries below are shown, unless `level` asks for all there is.
///
/// # Panics
/// When it is called a second time.
pub fn init(screen: &Screen, level: LogLevel, format: LogFormat, coloured: bool) -> LevelSwitch {
    let (filter, handle) = reload::Layer::new(filter(level));
    let set = move |level| {
        // It fails only when the subscriber is gone, and then nobody logs.
        drop(handle.reload(self::filter(level)));
    };
    let writer = ScreenWriter { screen: screen.clone(), json: format == LogFormat::Json };
    let records = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(coloured && format == LogFormat::Text);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text if in_journal() => registry.with(records.without_time()).init(),
        LogFormat::Text => registry.with(records).init(),
        LogFormat::Json => registry.with(records.json().flatten_event(true)).init(),
    }
    LevelSwitch(Arc::new(set))
}

/// Whether standard error goes to systemd's journal, which has the time of every line itself:
/// `JOURNAL_STREAM` names the device and inode of that stream (systemd.exec(5)).
fn in_journal() -> bool {
    let Some(stream) = std::env::var("JOURNAL_STREAM").ok() else { return false };
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
    let others = if level == LogLevel::Trace { LevelFilter::TRACE } else { LevelFilter::ERROR };
    Targets::new().with_default(others).with_target("runwatch", ours).with_target(EVENT_TARGET, LevelFilter::INFO)
}

/// Whether to colour what goes to standard error; `auto` follows no-color.org.
pub fn coloured(choice: Color) -> bool {
    match choice {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && io::stderr().is_terminal(),
    }
}
