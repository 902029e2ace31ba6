//! What happens in the demo, reported as it happens.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::{Instant, MissedTickBehavior};

use super::DemoOptions;
use super::parts::{PARTS, Part};
use super::report::{DemoReport, Notified, RunReport, delay_text};
use super::world::DemoWorld;
use crate::control::{AddRequest, DeliveryResponse};
use crate::domain::{Event, EventType, Verdict};
use crate::simulator::Received;
use crate::style::{Look, Sign};

/// Trouble that the demo makes.
#[derive(Debug, Clone, Copy)]
enum Act {
    ReceiverDown,
    KillDaemon,
    StartDaemon,
    ReceiverBack,
}

/// When each act begins after the runs were handed over, in milliseconds.
const ACTS: [(u64, Act); 4] = [
    (4000, Act::ReceiverDown),
    (6000, Act::KillDaemon),
    (7000, Act::StartDaemon),
    (8000, Act::ReceiverBack),
];

/// How often the world is looked at. What is measured has times of its own.
const LOOK: Duration = Duration::from_millis(20);

/// How long all of it may take. On a machine that is busy, runs are seen later.
const LIMIT: Duration = Duration::from_secs(60);

/// The demo while it is played.
pub(super) struct Story<'a> {
    options: &'a DemoOptions,
    began: Instant,
    kills: u32,
    down_since: Option<Instant>,
    down_for: Option<Duration>,
    /// How many requests to the API, and how many messages of the receiver, are reported.
    reported: (usize, usize),
    /// The runs whose end is reported, and those whose first 404 is.
    ended: BTreeSet<&'static str>,
    missing: BTreeSet<&'static str>,
}

impl<'a> Story<'a> {
    pub(super) fn new(options: &'a DemoOptions) -> Self {
        Self {
            options,
            began: Instant::now(),
            kills: 0,
            down_since: None,
            down_for: None,
            reported: (0, 0),
            ended: BTreeSet::new(),
            missing: BTreeSet::new(),
        }
    }

    /// Plays all of it and returns what was observed.
    ///
    /// # Errors
    /// When the daemon cannot be started, killed or used.
    pub(super) async fn play(mut self, world: &mut DemoWorld) -> anyhow::Result<DemoReport> {
        let id = world.daemon_id().unwrap_or_default();
        self.line(
            None,
            &format!("a simulated API, a webhook receiver and a daemon (process {id}) are up"),
        );
        self.hand_over(world).await?;
        let mut acts = ACTS.into_iter().peekable();
        let mut tick = tokio::time::interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let due = |(at, _): &(u64, Act)| self.began.elapsed() >= Duration::from_millis(*at);
            if let Some((_, act)) = acts.next_if(due) {
                self.perform(act, world).await?;
            }
            self.look(world);
            let messages = messages(world);
            let has_arrived = |part| messages.iter().any(|one| one.is_right_for(part));
            let is_over = acts.peek().is_none() && PARTS.iter().all(has_arrived);
            if is_over || self.began.elapsed() >= LIMIT {
                return self.report(world).await;
            }
        }
    }

    /// Prints a line with the time since the start.
    fn line(&self, mark: Option<String>, text: &str) {
        if self.options.progress {
            let seconds = self.began.elapsed().as_secs_f64();
            let mark = mark.unwrap_or_else(|| " ".to_owned());
            let time = self.options.style.dim(&format!("{seconds:>5.1}s"));
            self.options.screen.line(&format!("{time} {mark} {text}"));
        }
    }

    async fn hand_over(&mut self, world: &DemoWorld) -> anyhow::Result<()> {
        self.began = Instant::now();
        for part in &PARTS {
            part.add_to(&world.simulator, false);
            let request = AddRequest {
                run_id: part.id.to_owned(),
                name: Some(part.name.to_owned()),
                ..AddRequest::default()
            };
            world.client.add(&request, None).await?;
        }
        let count = PARTS.len();
        self.line(None, &format!("{count} runs are handed to the daemon"));
        Ok(())
    }

    async fn perform(&mut self, act: Act, world: &mut DemoWorld) -> anyhow::Result<()> {
        let style = self.options.style;
        let (bad, good) = (style.mark(Sign::Bad), style.mark(Sign::Good));
        match act {
            Act::ReceiverDown => {
                world.receiver.go_down().await;
                self.down_since = Some(Instant::now());
                self.line(
                    Some(bad),
                    "the receiver goes down: its port refuses connections",
                );
            }
            Act::ReceiverBack => {
                world.receiver.come_back().await?;
                self.down_for = self.down_since.take().map(|since| since.elapsed());
                self.line(Some(good), "the receiver is back");
            }
            Act::KillDaemon => {
                let id = world.daemon_id().unwrap_or_default();
                if world.kill_daemon().await? {
                    self.kills += 1;
                }
                self.line(Some(bad), &format!("kill -9 {id}: the daemon is dead"));
            }
            Act::StartDaemon => {
                world.start_daemon().await?;
                let id = world.daemon_id().unwrap_or_default();
                let kept = world.client.watches(&[("state", "active")]).await;
                let kept = kept.context("cannot list the watches")?.watches.len();
                self.line(
                    Some(good),
                    &format!(
                        "a new daemon (process {id}) finds {kept} active watches in its store"
                    ),
                );
            }
        }
        Ok(())
    }

    /// Reports what happened since the last look.
    fn look(&mut self, world: &DemoWorld) {
        let requests = world.simulator.requests();
        for request in requests.iter().skip(self.reported.0) {
            let part = PARTS.iter().find(|part| request.path.ends_with(part.id));
            let (Some(part), Some(status)) = (part, request.status) else {
                continue;
            };
            self.report_answer(part, status);
        }
        self.reported.0 = requests.len();
        for part in &PARTS {
            let is_over = world
                .simulator
                .ends_at(&part.run_id())
                .is_some_and(|end| end <= Instant::now());
            if is_over && self.ended.insert(part.id) {
                self.report_end(part, world);
            }
        }
        let messages = messages(world);
        for message in messages.iter().skip(self.reported.1) {
            self.report_message(message, world);
        }
        self.reported.1 = messages.len();
    }

    fn report_message(&self, message: &ReceivedMessage, world: &DemoWorld) {
        let style = self.options.style;
        let Some((part, word)) = message.part.zip(message.word()) else {
            self.line(Some(style.mark(Sign::Bad)), "an unexpected message");
            return;
        };
        let delay = delay_text(delay_of(message, part, world));
        let text = format!(
            "{} {}: notified {delay} after its end",
            part.name,
            style.state(word)
        );
        self.line(Some(style.glyph(Look::of(word))), &text);
    }

    fn report_answer(&mut self, part: &Part, status: u16) {
        let warning = self.options.style.mark(Sign::Warning);
        let text = match status {
            429 => "429 Too Many Requests: all polls pause for a second",
            502 => "502 Bad Gateway: polled again a little later",
            404 if self.missing.insert(part.id) => "404: not there yet",
            _ => return,
        };
        self.line(Some(warning), &format!("{}: {text}", part.name));
    }

    /// Reports the end of a run whose message must wait.
    fn report_end(&self, part: &Part, world: &DemoWorld) {
        let text = match (world.daemon_id().is_some(), world.receiver.is_up()) {
            (false, _) => "ends while no daemon runs",
            (true, false) => "ends; its notification waits for the receiver",
            (true, true) => return,
        };
        self.line(None, &format!("{} {text}", part.name));
    }

    async fn report(&self, world: &DemoWorld) -> anyhow::Result<DemoReport> {
        // The receiver has answered before the daemon stores that.
        let mut deliveries = world.client.deliveries(&[]).await?;
        let ends = Instant::now() + LIMIT / 10;
        while deliveries.iter().any(|one| one.state != "delivered") && Instant::now() < ends {
            tokio::time::sleep(LOOK).await;
            deliveries = world.client.deliveries(&[]).await?;
        }
        let requests = world.simulator.requests();
        let mut answers = BTreeMap::new();
        for status in requests.iter().filter_map(|request| request.status) {
            *answers.entry(status).or_insert(0) += 1;
        }
        let messages = messages(world);
        let ids: BTreeSet<_> = messages.iter().map(|message| &message.delivery).collect();
        Ok(DemoReport {
            runs: PARTS
                .iter()
                .map(|part| self.run_report(part, world, &messages, &deliveries))
                .collect(),
            messages: messages.len(),
            repeated: messages.len() - ids.len(),
            wrong: messages.iter().filter(|one| !one.is_right()).count(),
            requests: requests.len(),
            kills: self.kills,
            answers,
            down_for: self.down_for,
        })
    }

    fn run_report(
        &self,
        part: &'static Part,
        world: &DemoWorld,
        messages: &[ReceivedMessage],
        deliveries: &[DeliveryResponse],
    ) -> RunReport {
        let end = world.simulator.ends_at(&part.run_id());
        let of_run: Vec<_> = deliveries
            .iter()
            .filter(|one| one.run_id.as_deref() == Some(part.id))
            .collect();
        let notified = messages.iter().find(|one| one.is_right_for(part));
        RunReport {
            id: part.id,
            name: part.name,
            verdict: part.verdict,
            ended_after: end
                .map(|end| end.saturating_duration_since(self.began))
                .unwrap_or_default(),
            attempts: of_run.iter().map(|one| one.attempts).sum(),
            is_stored_as_delivered: matches!(of_run[..], [one] if one.state == "delivered"),
            notified: notified.map(|message| Notified {
                delay: delay_of(message, part, world),
                data: message.data.clone(),
            }),
        }
    }
}

/// A message that the receiver got.
struct ReceivedMessage {
    at: Instant,
    /// Whether its signature holds and it was accepted.
    is_accepted: bool,
    /// Its ID, the same on every attempt.
    delivery: Option<String>,
    part: Option<&'static Part>,
    event_type: Option<EventType>,
    data: serde_json::Value,
}

impl ReceivedMessage {
    fn of(request: &Received) -> Self {
        let event = Event::from_json(&String::from_utf8_lossy(&request.body)).ok();
        let run_id = event.as_ref().and_then(Event::run_id);
        let mut body: serde_json::Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let id = request.headers.get("webhook-id");
        Self {
            at: request.at,
            is_accepted: request.accepted && request.verified == Some(true),
            delivery: id.and_then(|id| id.to_str().ok()).map(ToOwned::to_owned),
            part: run_id.and_then(|id| PARTS.iter().find(|part| part.id == id.as_str())),
            event_type: event.map(|event| event.event_type),
            data: body["data"].take(),
        }
    }

    fn is_right(&self) -> bool {
        self.part.is_some_and(|part| self.is_right_for(part))
    }

    /// Whether it reports the end of this run as it was.
    fn is_right_for(&self, part: &Part) -> bool {
        self.is_accepted
            && self.part.is_some_and(|own| own.id == part.id)
            && self.event_type == Some(part.verdict.event_type())
    }

    /// The word for the verdict that it reports.
    fn word(&self) -> Option<&'static str> {
        let of_type = |verdict: &&Verdict| Some(verdict.event_type()) == self.event_type;
        let verdict = Verdict::WORST_FIRST.iter().find(of_type)?;
        Some(verdict.as_str())
    }
}

fn messages(world: &DemoWorld) -> Vec<ReceivedMessage> {
    world
        .receiver
        .requests()
        .iter()
        .map(ReceivedMessage::of)
        .collect()
}

/// From the end of a run to the arrival of its message.
fn delay_of(message: &ReceivedMessage, part: &Part, world: &DemoWorld) -> Duration {
    let end = world.simulator.ends_at(&part.run_id());
    end.map(|end| message.at.saturating_duration_since(end))
        .unwrap_or_default()
}
