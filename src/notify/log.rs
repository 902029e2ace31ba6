//! The log sink: a log record, or a line of JSON in a file.

use std::path::PathBuf;

use tokio::fs::OpenOptions;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _, SeekFrom};

use super::{Message, SendError, Sent, summary};
use crate::run::EventData;
use crate::telemetry::EVENT_TARGET;
use crate::text::{harmless_json, one_line};

/// Longest error text in a record, in characters.
const ERROR_CHARS: usize = 500;

/// A log sink.
#[derive(Debug)]
pub struct Log {
    path: Option<PathBuf>,
}

impl Log {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        Self { path }
    }

    pub(super) async fn send(&self, message: &Message<'_>) -> Result<Sent, SendError> {
        match &self.path {
            None => {
                record(message);
                Ok(Sent { detail: "logged".to_owned() })
            }
            Some(path) => match append(path, &line(message)).await {
                Ok(()) => Ok(Sent { detail: format!("appended to {}", path.display()) }),
                Err(error) => Err(SendError::new(format!("cannot append to {}: {error}", path.display()))),
            },
        }
    }
}

/// The event as one line of JSON, with the ID by which a repeat can be told; harmless to look at.
fn line(message: &Message<'_>) -> String {
    let event = message.event.to_json();
    let fields = event.strip_prefix('{').expect("an event is a JSON object");
    format!("{{\"delivery_id\":\"{}\",{}\n", message.delivery, harmless_json(fields))
}

/// Appends a line and has it reach the disk. The file is opened each time, so that it can be moved away.
async fn append(path: &std::path::Path, line: &str) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    // Outputs of runs are nobody else's business.
    let mut file = options.create(true).read(true).append(true).mode(0o640).open(path).await?;
    let mut text = String::with_capacity(line.len() + 1);
    if file.metadata().await?.is_file() && file.seek(SeekFrom::End(0)).await? > 0 {
        file.seek(SeekFrom::End(-1)).await?;
        // A line that a crash cut short must not spoil the next one.
        if file.read_u8().await? != b'\n' {
            text.push('\n');
        }
    }
    text.push_str(line);
    file.write_all(text.as_bytes()).await?;
    file.flush().await?;
    if file.metadata().await?.is_file() { file.sync_data().await } else { Ok(()) }
}

fn record(message: &Message<'_>) {
    let summary = summary::of(message.event);
    let event = message.event.event_type.as_str();
    let delivery_id = message.delivery.as_str();
    match &message.event.data {
        EventData::Run(data) => {
            let error = data.run.error_message.as_deref().map(|error| one_line(error, ERROR_CHARS));
            tracing::info!(
                target: EVENT_TARGET,
                event,
                run_id = %data.run.id,
                name = data.watch.name.as_deref(),
                status = data.run.status.as_deref().map(|status| one_line(status, ERROR_CHARS)),
                verdict = message.event.event_type.verdict().map(crate::run::Verdict::as_str),
                error,
                ran_ms = data.timing.ran_ms,
                late = data.watch.late,
                delivery_id,
                "{}",
                summary.title
            );
        }
        EventData::Upstream(notice) => {
            let detail = one_line(&notice.message, ERROR_CHARS);
            tracing::info!(target: EVENT_TARGET, event, detail, delivery_id, "{}", summary.title);
        }
        EventData::Sink(notice) => {
            let detail = one_line(&notice.message, ERROR_CHARS);
            tracing::info!(target: EVENT_TARGET, event, sink = %notice.sink, detail, delivery_id, "{}", summary.title);
        }
    }
}
