//! What people see on the terminal.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use crate::output::Output;
use crate::style::fold;

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
pub(crate) fn terminal_columns() -> Option<usize> {
    let terminal = console::Term::stderr();
    terminal.is_term().then(|| terminal.size().1.into())
}

/// Whether `TERM` names a terminal that knows colors and cursor movement: "dumb" and none do not (terminfo(5)).
fn terminal_is_able() -> bool {
    std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb")
}
