//! How a simulated run goes.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Fault, StreamScript};
use crate::domain::RunRef;

/// How a simulated run goes: when it appears, how long it is pending and running, how it ends, and
/// which requests for it meet a fault. Without more, it has ended already when it is added.
#[derive(Debug, Clone)]
pub struct Script {
    /// The final status; `None` for a run that never ends.
    end: Option<String>,
    appears_after: Duration,
    queued_for: Duration,
    runs_for: Duration,
    from_first_poll: bool,
    input: Value,
    output: Value,
    error_message: Value,
    envelope: bool,
    verbatim: Option<String>,
    answers: Vec<String>,
    faults: BTreeMap<u32, Fault>,
    stream: StreamScript,
}

impl Script {
    fn ending(end: Option<&str>) -> Self {
        Self {
            end: end.map(ToOwned::to_owned),
            appears_after: Duration::ZERO,
            queued_for: Duration::ZERO,
            runs_for: Duration::ZERO,
            from_first_poll: false,
            input: json!({"topic": "AI agents"}),
            output: Value::Null,
            error_message: Value::Null,
            envelope: false,
            verbatim: None,
            answers: Vec::new(),
            faults: BTreeMap::new(),
            stream: StreamScript::default(),
        }
    }

    /// It succeeds, with an output.
    pub fn succeeds() -> Self {
        Self {
            output: json!({"result": "Generated report about AI agents..."}),
            ..Self::ending(Some("succeeded"))
        }
    }

    /// It fails, with this message.
    pub fn fails(message: &str) -> Self {
        Self {
            error_message: message.into(),
            ..Self::ending(Some("failed"))
        }
    }

    /// It is canceled.
    pub fn canceled() -> Self {
        Self::ending(Some("canceled"))
    }

    /// It never ends.
    pub fn runs_forever() -> Self {
        Self::ending(None)
    }

    /// A run made by Create Run: it succeeds after about ten seconds.
    pub(super) fn new_created(input: Value) -> Self {
        let script = Self::succeeds()
            .queued_for(Duration::from_secs(2))
            .runs_for(Duration::from_secs(8));
        Self { input, ..script }
    }

    /// 404 for so long.
    #[must_use]
    pub fn appears_after(self, appears_after: Duration) -> Self {
        Self {
            appears_after,
            ..self
        }
    }

    /// Pending for so long, once it has appeared.
    #[must_use]
    pub fn queued_for(self, queued_for: Duration) -> Self {
        Self { queued_for, ..self }
    }

    /// Running for so long.
    #[must_use]
    pub fn runs_for(self, runs_for: Duration) -> Self {
        Self { runs_for, ..self }
    }

    /// Its time begins with the first request for it, however long that takes to come.
    #[must_use]
    pub fn from_first_poll(self) -> Self {
        Self {
            from_first_poll: true,
            ..self
        }
    }

    /// Whether its time begins with the first request for it.
    pub(super) fn begins_with_poll(&self) -> bool {
        self.from_first_poll
    }

    /// With this output at the end.
    #[must_use]
    pub fn output(self, output: Value) -> Self {
        Self { output, ..self }
    }

    /// With this input.
    #[must_use]
    pub fn input(self, input: Value) -> Self {
        Self { input, ..self }
    }

    /// In the older shape, inside `{"data":{…}}`.
    #[must_use]
    pub fn envelope(self, envelope: bool) -> Self {
        Self { envelope, ..self }
    }

    /// Every answer is this text, whatever else the script contains.
    #[must_use]
    pub fn verbatim(self, body: impl Into<String>) -> Self {
        Self {
            verbatim: Some(body.into()),
            ..self
        }
    }

    pub(super) fn verbatim_body(&self) -> Option<&str> {
        self.verbatim.as_deref()
    }

    /// With this word for its end.
    #[must_use]
    pub fn status_text(self, end: &str) -> Self {
        Self {
            end: Some(end.to_owned()),
            ..self
        }
    }

    /// With these words as the status of the first answers, whatever the time.
    #[must_use]
    pub fn answers(self, answers: Vec<&str>) -> Self {
        Self {
            answers: answers.into_iter().map(ToOwned::to_owned).collect(),
            ..self
        }
    }

    /// With a fault in place of the answer to one request for it, counted from 1.
    #[must_use]
    pub fn fault_on(mut self, request: u32, fault: Fault) -> Self {
        self.faults.insert(request, fault);
        self
    }

    /// With this event stream.
    #[must_use]
    pub fn stream(self, stream: StreamScript) -> Self {
        Self { stream, ..self }
    }

    pub(super) fn stream_script(&self) -> &StreamScript {
        &self.stream
    }

    /// When it starts after it was added, and when it ends, if it does.
    pub(super) fn span(&self) -> (Duration, Option<Duration>) {
        let starts = self.appears_after + self.queued_for;
        (starts, self.end.as_ref().map(|_| starts + self.runs_for))
    }

    /// The final status, and the message of one that failed.
    pub(super) fn end(&self) -> (Option<&str>, &Value) {
        (self.end.as_deref(), &self.error_message)
    }

    pub(super) fn fault_at(&self, request: u32) -> Option<&Fault> {
        self.faults.get(&request)
    }

    /// The status after so long; `None` before it appears.
    pub(super) fn status_after(&self, elapsed: Duration) -> Option<&str> {
        let going = elapsed.checked_sub(self.appears_after)?;
        let ran = going.checked_sub(self.queued_for);
        Some(match (ran, &self.end) {
            (None, _) => "pending",
            (Some(ran), Some(end)) if ran >= self.runs_for => end,
            (Some(_), _) => "running",
        })
    }

    /// The body of the answer to one request; `None` before the run appears.
    pub(super) fn describe(
        &self,
        id: &RunRef,
        added: Instant,
        request: u32,
        wall: impl Fn(Instant) -> Timestamp,
    ) -> Option<Value> {
        let status = self.status_after(added.elapsed())?;
        let listed = (request as usize)
            .checked_sub(1)
            .and_then(|index| self.answers.get(index));
        let ended = listed.is_none() && self.end.as_deref() == Some(status);
        let status = listed.map_or(status, String::as_str);
        let created = added + self.appears_after;
        let started = created + self.queued_for;
        // The documentation shows whole seconds; parts of one show how soon an end is detected.
        let time = |at| format!("{:.3}", wall(at));
        let shown = |shown: bool, at| {
            if shown {
                Value::from(time(at))
            } else {
                Value::Null
            }
        };
        let run = json!({
            "id": id,
            "version_id": "ver_abc123xyz",
            "deployment_id": "dep_abc123xyz",
            "status": status,
            "input": self.input,
            "output": if ended { self.output.clone() } else { Value::Null },
            "error_message": if ended { self.error_message.clone() } else { Value::Null },
            "created_at": time(created),
            "started_at": shown(status != "pending", started),
            "completed_at": shown(ended, started + self.runs_for),
        });
        Some(if self.envelope {
            json!({ "data": run })
        } else {
            run
        })
    }
}
