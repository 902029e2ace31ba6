//! Records as sentences for people.

use std::fmt;

use tracing::field::{Field, Visit};
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::EVENT_TARGET;
use crate::screen::terminal_columns;
use crate::style::{Sign, Style, fold};
use crate::text::one_line;

/// Whether commands show in their own words what a record reports: a failed attempt, an unknown status, the state of the
/// API.
pub(super) fn is_narrated(record: &Metadata<'_>) -> bool {
    let has = |field| record.fields().field(field).is_some();
    match record.target() {
        "runwatch::notify::courier" => has("delivery"),
        "runwatch::scheduler::persist" => has("status") || has("event"),
        _ => false,
    }
}

/// Formats a record as a sentence: `! cannot read the file: no such file`, and the message of a `log` sink as
/// `notification: weekly report failed after 45s (run.failed, run_1): no credits`.
pub(super) struct Sentences(pub(super) Style);

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
            Level::ERROR => self.0.mark(Sign::Bad),
            _ => self.0.mark(Sign::Warning),
        };
        let columns = terminal_columns().unwrap_or(usize::MAX);
        writeln!(writer, "{}", fold(&format!("{start} {parts}"), columns))
    }
}

/// The fields of a record: its message, its causes, and the others as `name value`.
#[derive(Default)]
pub(super) struct SentenceParts {
    pub(super) message: String,
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

#[cfg(test)]
mod tests {
    use std::io::{self, Write};

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

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
}
