//! The event stream of a simulated run, as documented and as it may go wrong.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use hyper::Response;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::server::{ResponseBody, ServedAnswer, streaming};
use super::{Fault, Script};
use crate::domain::RunRef;

/// How often the API looks into its database where the runner cannot be reached ("Stream Events" of the
/// reference).
const LOOK: Duration = Duration::from_secs(2);

/// After how long a connection times out (same place).
const LIFE: Duration = Duration::from_secs(30 * 60);

/// How the event stream of a simulated run goes. Without more it comes from the runner as the API reference
/// has it: `run.started`, something every 500 ms, and the end at the moment of the end.
#[derive(Debug, Clone)]
pub struct StreamScript {
    /// In the words and the shape of the streaming guide.
    guide: bool,
    /// From the database: heartbeats, and the end when it is looked for.
    database: bool,
    with_ids: bool,
    replays: bool,
    pace: Duration,
    message: String,
    faults: BTreeMap<u32, StreamFault>,
    always: Option<StreamFault>,
}

/// What can go wrong with one connection of a stream.
#[derive(Debug, Clone)]
pub enum StreamFault {
    /// This in place of a stream; [`Fault::Hang`] never opens.
    Answer(Fault),
    /// The stream, as another content type.
    ContentType(&'static str),
    /// It opens, and nothing comes.
    Silent,
    /// Nothing more comes after so many events, though the connection stays.
    HangsAfter(usize),
    /// It ends after so many events.
    EndsAfter(usize),
    /// The connection breaks after so many bytes.
    BreaksAfter(usize),
    /// It reports the end of the run at once: `run.completed`, `run.failed`, `complete`.
    Lies(&'static str),
    /// Events without an end, as fast as they are taken, whatever the run does.
    Floods,
    /// A line of so many bytes, in the middle of an event.
    LongLine(usize),
    /// Bytes that are no text, in and between events.
    NoText,
    /// It goes on after the end of the run as if nothing had happened.
    NeverSaysEnd,
    /// It ends with the run, without an event.
    NoTerminal,
}

impl Default for StreamScript {
    fn default() -> Self {
        Self {
            guide: false,
            database: false,
            with_ids: false,
            replays: false,
            pace: Duration::from_millis(500),
            message: "fetching sources".to_owned(),
            faults: BTreeMap::new(),
            always: None,
        }
    }
}

impl StreamScript {
    /// In the words and the shape of the streaming guide.
    pub fn guide() -> Self {
        Self {
            guide: true,
            ..Self::default()
        }
    }

    /// From the API's database, as when the runner cannot be reached.
    pub fn database() -> Self {
        Self {
            database: true,
            ..Self::default()
        }
    }

    /// With an ID per event, so that a client can go on where it left off.
    #[must_use]
    pub fn with_ids(self) -> Self {
        Self {
            with_ids: true,
            ..self
        }
    }

    /// Every connection that names no last event begins with all events so far.
    #[must_use]
    pub fn replays(self) -> Self {
        Self {
            replays: true,
            ..self
        }
    }

    /// Something every so often while the run goes on.
    #[must_use]
    pub fn pace(self, pace: Duration) -> Self {
        Self { pace, ..self }
    }

    /// With this message in its logs.
    #[must_use]
    pub fn message(self, message: &str) -> Self {
        Self {
            message: message.to_owned(),
            ..self
        }
    }

    /// With a fault of one connection, counted from 1.
    #[must_use]
    pub fn fault_on(mut self, connection: u32, fault: StreamFault) -> Self {
        self.faults.insert(connection, fault);
        self
    }

    /// With a fault of every connection that has none of its own.
    #[must_use]
    pub fn always(self, fault: StreamFault) -> Self {
        Self {
            always: Some(fault),
            ..self
        }
    }

    /// What is done at step `step` of a run, as type and data.
    fn activity(&self, step: usize) -> (&'static str, Value) {
        match (self.guide, step % 4) {
            (false, 1) => (
                "task.started",
                json!({"task": "research", "agent": "researcher"}),
            ),
            (false, 2) => (
                "tool_use",
                json!({"tool": "web_search", "input": {"query": "AI agents"}}),
            ),
            (false, 3) => ("log", json!({"level": "info", "message": self.message})),
            (false, _) => (
                "agent.action",
                json!({"agent": "researcher", "action": "reads 3 pages"}),
            ),
            (true, 1) => ("agent.started", json!({"name": "researcher"})),
            (true, 2) => (
                "tool.called",
                json!({"tool": "web_search", "args": {"query": "AI agents"}}),
            ),
            (true, 3) => (
                "log",
                json!({"level": "info", "message": self.message, "timestamp": null}),
            ),
            (true, _) => (
                "tool.result",
                json!({"tool": "web_search", "result": "3 pages"}),
            ),
        }
    }

    /// One event as it goes over the wire.
    fn frame(&self, id: Option<usize>, kind: &str, data: &Value) -> Bytes {
        let body = if self.guide { "payload" } else { "data" };
        let id = id
            .filter(|_| self.with_ids)
            .map(|id| format!("id: {id}\n"))
            .unwrap_or_default();
        format!("{id}data: {}\n\n", json!({ "type": kind, body: data })).into()
    }
}

/// What goes over all streams of a simulator.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    open: AtomicUsize,
    bytes: AtomicU64,
}

impl Traffic {
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// The stream of a run that is not there.
pub(super) fn not_found() -> Response<ResponseBody> {
    let frame = StreamScript::default().frame(None, "error", &json!({"message": "run not found"}));
    event_stream(streaming(stream::iter([Ok(frame)])), "text/event-stream")
}

fn event_stream(
    mut response: Response<ResponseBody>,
    content_type: &'static str,
) -> Response<ResponseBody> {
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// What comes next on a connection.
enum NextStep {
    /// An event at this time after the run was added, with its number where it has one.
    Event(Duration, Option<usize>, &'static str, Value),
    /// The end of the stream at this time.
    End(Duration),
}

/// One connection.
pub(super) struct Feed {
    id: RunRef,
    script: StreamScript,
    added: (Instant, Timestamp),
    starts: Duration,
    ends: Option<Duration>,
    end: Option<String>,
    error_message: Value,
    fault: Option<StreamFault>,
    connected: Duration,
    /// The number of the next event; for one from the database, of the next look.
    next: usize,
    /// It was over when the connection was made, or the last event was sent.
    over: bool,
    sent_events: usize,
    sent_bytes: usize,
    gone: CancellationToken,
    traffic: Arc<Traffic>,
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.traffic.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Feed {
    pub(super) fn new(
        id: RunRef,
        script: &Script,
        added: (Instant, Timestamp),
        connection: u32,
        last_id: Option<usize>,
        gone: CancellationToken,
        traffic: Arc<Traffic>,
    ) -> Self {
        traffic.open.fetch_add(1, Ordering::Relaxed);
        let (starts, ends) = script.span();
        let (end, error_message) = script.end();
        let stream = script.stream_script().clone();
        let fault = stream
            .faults
            .get(&connection)
            .or(stream.always.as_ref())
            .cloned();
        let mut feed = Self {
            id,
            script: stream,
            added,
            starts,
            ends,
            end: end.map(ToOwned::to_owned),
            error_message: error_message.clone(),
            fault,
            connected: added.0.elapsed(),
            next: 0,
            over: false,
            sent_events: 0,
            sent_bytes: 0,
            gone,
            traffic,
        };
        if !feed.script.database {
            feed.next = match last_id.filter(|_| feed.script.with_ids) {
                Some(last_id) => last_id + 1,
                None if feed.script.replays => 0,
                None => feed.first_after(feed.connected),
            };
        }
        feed
    }

    pub(super) fn answer(self) -> ServedAnswer {
        let content_type = match &self.fault {
            Some(StreamFault::Answer(fault)) => return fault.answer(&json!({})),
            Some(StreamFault::ContentType(other)) => other,
            _ => "text/event-stream",
        };
        let traffic = Arc::clone(&self.traffic);
        let pieces = stream::unfold(
            self,
            |mut feed| async move { Some((feed.piece().await?, feed)) },
        );
        let counted = pieces.inspect(move |piece| {
            let bytes = piece.as_ref().map_or(0, |bytes: &Bytes| bytes.len() as u64);
            traffic.bytes.fetch_add(bytes, Ordering::Relaxed);
        });
        event_stream(streaming(counted), content_type).into()
    }

    /// What is sent next; `None` ends the stream as it should end, an error breaks it.
    async fn piece(&mut self) -> Option<io::Result<Bytes>> {
        match self.fault {
            Some(StreamFault::Silent) => return std::future::pending().await,
            Some(StreamFault::HangsAfter(events)) if self.sent_events >= events => {
                return std::future::pending().await;
            }
            Some(StreamFault::EndsAfter(events)) if self.sent_events >= events => return None,
            Some(StreamFault::BreaksAfter(bytes)) if self.sent_bytes >= bytes => {
                // The server sends what it has when it must wait for more.
                tokio::task::yield_now().await;
                return Some(Err(io::Error::other("broken on purpose")));
            }
            Some(StreamFault::Lies(kind)) => {
                let lie = self
                    .script
                    .frame(None, kind, &json!({"status": "succeeded"}));
                self.fault = Some(StreamFault::Silent);
                return Some(Ok(lie));
            }
            Some(StreamFault::Floods) => {
                let event = self
                    .script
                    .frame(None, "log", &json!({"message": "again and again"}));
                tokio::task::yield_now().await;
                return Some(Ok(event.repeat(100).into()));
            }
            Some(StreamFault::LongLine(bytes)) => return Some(Ok(self.piece_of_line(bytes))),
            Some(StreamFault::NoText) if self.sent_events % 2 == 1 => {
                self.sent_events += 1;
                let piece =
                    b"\xff\xfe: \xc3\n\xf0\x28\ndata: {\"type\":\"log\",\"data\":{\"message\":\"\xff\xc0\x80\"}}\n\n";
                return Some(Ok(Bytes::from_static(piece)));
            }
            _ => {}
        }
        let frame = match self.upcoming() {
            NextStep::End(at) => {
                self.wait(at).await?;
                return None;
            }
            NextStep::Event(at, number, kind, data) => {
                self.wait(at).await?;
                self.next += 1;
                self.script.frame(number, kind, &data)
            }
        };
        self.sent_events += 1;
        let before = self.sent_bytes;
        self.sent_bytes += frame.len();
        match self.fault {
            Some(StreamFault::BreaksAfter(bytes)) if self.sent_bytes > bytes => {
                self.sent_bytes = bytes;
                Some(Ok(frame.slice(..bytes - before)))
            }
            _ => Some(Ok(frame)),
        }
    }

    /// Returns the next piece of an event whose one line has this many bytes.
    fn piece_of_line(&mut self, bytes: usize) -> Bytes {
        let sent = self.sent_bytes;
        self.sent_bytes += 64 * 1024;
        match sent {
            0 => Bytes::from_static(b"data: {\"type\":\"log\",\"data\":{\"message\":\""),
            _ if sent < bytes => vec![b'x'; 64 * 1024].into(),
            _ => {
                self.fault = None;
                Bytes::from_static(b"\"}}\n\n")
            }
        }
    }

    /// Waits until so long after the run was added; `None` when the run is gone before.
    async fn wait(&self, at: Duration) -> Option<()> {
        // Both arms are cancel-safe.
        tokio::select! {
            () = self.gone.cancelled() => None,
            () = tokio::time::sleep_until(self.added.0 + at) => Some(()),
        }
    }

    fn upcoming(&mut self) -> NextStep {
        let timeout = self.connected + LIFE;
        let says_end = !matches!(self.fault, Some(StreamFault::NeverSaysEnd));
        let ends = self.ends.filter(|_| says_end);
        if self.over {
            return NextStep::End(Duration::ZERO);
        }
        if ends.is_some_and(|ends| ends <= self.connected) {
            // Over already when the connection was made: one event, at once.
            self.over = true;
            return NextStep::Event(
                Duration::ZERO,
                None,
                "complete",
                json!({ "status": self.end }),
            );
        }
        if self.script.database {
            self.database_event(ends, timeout)
        } else {
            self.runner_event(ends, timeout)
        }
    }

    fn database_event(&mut self, ends: Option<Duration>, timeout: Duration) -> NextStep {
        let look = self.connected + LOOK * u32::try_from(self.next + 1).unwrap_or(u32::MAX);
        let ended = ends.is_some_and(|ends| ends <= look);
        self.over = ended || look >= timeout;
        if ended && matches!(self.fault, Some(StreamFault::NoTerminal)) {
            NextStep::End(look)
        } else if ended {
            NextStep::Event(look, None, "complete", json!({ "status": self.end }))
        } else if look >= timeout {
            NextStep::Event(timeout, None, "timeout", json!({}))
        } else {
            NextStep::Event(look, None, "heartbeat", json!({"status": "running"}))
        }
    }

    fn runner_event(&mut self, ends: Option<Duration>, timeout: Duration) -> NextStep {
        let number = self.next;
        let at = self.time_of(number);
        if ends.is_none_or(|ends| at < ends) {
            if at >= timeout {
                return NextStep::End(timeout);
            }
            let (kind, data) = match number {
                0 if self.script.guide => (
                    "run.started",
                    json!({"run_id": self.id, "started_at": self.time(at)}),
                ),
                0 => ("run.started", json!({"entrypoint": "default"})),
                step => self.script.activity(step),
            };
            return NextStep::Event(at, Some(number), kind, data);
        }
        let ends = ends.unwrap_or(at);
        let last_activity = self.first_after(ends);
        if number <= last_activity && self.end.as_deref() == Some("succeeded") {
            let artifact =
                json!({"name": "report.md", "size": 1234, "content_type": "text/markdown"});
            return NextStep::Event(ends, Some(number), "artifact", artifact);
        }
        self.over = true;
        match self
            .terminal(ends)
            .filter(|_| !matches!(self.fault, Some(StreamFault::NoTerminal)))
        {
            Some((kind, data)) => NextStep::Event(ends, Some(number), kind, data),
            None => NextStep::End(ends),
        }
    }

    /// The event of the end. The reference has none for a run that is canceled.
    fn terminal(&self, ends: Duration) -> Option<(&'static str, Value)> {
        let (id, error) = (&self.id, &self.error_message);
        Some(match (self.end.as_deref()?, self.script.guide) {
            ("succeeded", false) => ("run.completed", json!({"status": "succeeded"})),
            ("failed", false) => ("run.failed", json!({ "error": error })),
            ("succeeded", true) => {
                let took = u64::try_from((ends - self.starts).as_millis()).unwrap_or(u64::MAX);
                (
                    "run.completed",
                    json!({"run_id": id, "duration_ms": took, "result": "done"}),
                )
            }
            ("failed", true) => (
                "run.failed",
                json!({"run_id": id, "error": error, "stack_trace": null}),
            ),
            ("canceled", true) => (
                "run.canceled",
                json!({"run_id": id, "canceled_at": self.time(ends)}),
            ),
            _ => return None,
        })
    }

    /// When what has this number is done, after the run was added.
    fn time_of(&self, number: usize) -> Duration {
        self.starts + self.script.pace * u32::try_from(number).unwrap_or(u32::MAX)
    }

    /// The number of the first event that comes at `at` or later.
    fn first_after(&self, at: Duration) -> usize {
        let steps = at
            .saturating_sub(self.starts)
            .as_nanos()
            .div_ceil(self.script.pace.as_nanos().max(1));
        usize::try_from(steps).unwrap_or(usize::MAX)
    }

    fn time(&self, at: Duration) -> String {
        format!(
            "{:.0}",
            self.added.1.checked_add(at).unwrap_or(self.added.1)
        )
    }
}
