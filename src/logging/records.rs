//! Writes log records to standard error, or with their priority to systemd's journal.

use std::io::{self, Write};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use super::EVENT_TARGET;
use crate::output::Output;
use crate::text::escape_json_for_terminal;

/// Writes log records to an output.
#[derive(Debug, Clone)]
pub(super) struct RecordWriter {
    output: Output,
    /// Records are JSON, in which a terminal could find something to act upon.
    json: bool,
    /// The record is a message of a `log` sink.
    message: bool,
    /// Lines go to the journal, with a mark in front that has this priority (sd-daemon(3)).
    priority: Option<u8>,
}

impl RecordWriter {
    pub(super) fn new(output: Output, json: bool) -> Self {
        Self {
            output,
            json,
            message: false,
            priority: in_journal().then_some(priority_of(Level::INFO)),
        }
    }

    /// The same with records that are not JSON.
    pub(super) fn of_texts(self) -> Self {
        Self {
            json: false,
            ..self
        }
    }
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

/// Whether standard error goes to systemd's journal, which has the time of every line itself:
/// `JOURNAL_STREAM` names the device and inode of that stream (systemd.exec(5)).
pub(super) fn in_journal() -> bool {
    let Some(stream) = std::env::var("JOURNAL_STREAM").ok() else {
        return false;
    };
    let same = |status: rustix::fs::Stat| stream == format!("{}:{}", status.st_dev, status.st_ino);
    rustix::fs::fstat(io::stderr()).is_ok_and(same)
}

#[cfg(test)]
mod tests {
    use super::*;

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
