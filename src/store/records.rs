//! Rows as both engines store them: plain numbers and texts, and what they stand for.

use std::borrow::Cow;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::model::{
    Attempt, AttemptOutcome, DeliveryState, DeliverySummary, Page, PollFailure, RoutedEvent,
    StatusChange, StoreError, StoredWatch, WatchId, WatchRecord,
};
use crate::domain::{
    DeliveryId, Event, EventData, EventType, FoundBy, GroupEvent, GroupMember, JsonText, Labels,
    Progress, Routes, RunRef, SinkName, Status, Step, TraceContext, Verdict, Watch, WatchOrigin,
};

/// Largest `input` or `output` of a run, in bytes, that stays in the row of its watch and its
/// events. A larger one is stored once, in a row of its own.
pub(super) const INLINE_BYTES: usize = 1024;

/// The number of bytes after which a page of events or of claimed deliveries ends: a page has at
/// most this and its last event.
pub(super) const PAGE_BYTES: usize = 256 * 1024;

/// Most status changes kept of one watch, the newest: a run that changes its status without end
/// fills neither the disk nor a list.
pub(super) const KEPT_CHANGES: u32 = 1_000;

/// Most IDs that are named where the beginning of one is ambiguous.
pub(super) const CANDIDATES: i64 = 5;

/// Most deliveries of a sink that are changed in one transaction, and most rows of a kind that one turn of pruning
/// deletes.
pub(super) const ROWS: usize = 500;

/// What must hold before the watches of a run are removed without force.
pub(super) const REMOVABLE: &str =
    "delivered or given up yet; wait for it, or give it up with --force (force=true)";

/// What must hold before a fate is applied to a delivery.
const DECIDABLE: &str = "waiting or given up; it has arrived or is being sent";

/// What a delivery is not that is included in a summary.
const SENT_BY_ITSELF: &str = "sent by itself; name the summary instead";

/// Why a fate cannot be applied to a delivery, where `included_in` is the delivery of the summary that stands for it.
pub(super) fn undecidable(id: &DeliveryId, included_in: Option<&str>) -> StoreError {
    match included_in {
        Some(summary) => StoreError::Precondition {
            what: format!("delivery {id}, which the summary {summary} includes,"),
            wanted: SENT_BY_ITSELF,
        },
        None => StoreError::Precondition {
            what: format!("delivery {id}"),
            wanted: DECIDABLE,
        },
    }
}

/// What must hold before an attempt is stored, or a delivery held.
pub(super) const CLAIMED: &str = "claimed for this attempt";

/// The columns of a watch that is followed.
pub(super) struct WatchRow {
    pub(super) id: i64,
    pub(super) run_id: String,
    pub(super) name: Option<String>,
    pub(super) labels: String,
    pub(super) sinks: Option<String>,
    pub(super) added_at: i64,
    pub(super) deadline_at: i64,
    pub(super) status: Option<String>,
    pub(super) state: Option<String>,
    pub(super) polls: i64,
    pub(super) missing_since: Option<i64>,
    pub(super) seen_running: bool,
    pub(super) overdue_told: bool,
    pub(super) verdict: Option<String>,
    pub(super) trace: Option<String>,
    /// When its status last changed, where that was read.
    pub(super) changed_at: Option<i64>,
}

impl WatchRow {
    /// The watch, taken up at `now`.
    ///
    /// # Errors
    /// When a column holds what this program does not write.
    pub(super) fn stored(self, now: Timestamp) -> Result<StoredWatch, StoreError> {
        let watch = Watch {
            run_id: run_ref(&self.run_id)?,
            name: self.name,
            labels: from_json::<Labels>("labels", &self.labels)?,
            sinks: self
                .sinks
                .map(|json| from_json("sinks", &json))
                .transpose()?,
            added_at: read_time(self.added_at)?,
            deadline_at: read_time(self.deadline_at)?,
            trace: self.trace.as_deref().map(trace_context).transpose()?,
        };
        let mut progress = Progress::begin(now);
        let state = self.state.as_deref();
        progress.status = self.status.map(|status| Status::read(state, &status));
        progress.polls = self.polls.cast_unsigned();
        progress.missing_since = optional_time(self.missing_since)?;
        progress.seen_running = self.seen_running;
        progress.overdue_told = self.overdue_told;
        progress.verdict = match self.verdict {
            None => None,
            Some(word) => {
                Some(Verdict::from_word(&word).ok_or_else(|| unreadable("a verdict", &word))?)
            }
        };
        let changed_at = optional_time(self.changed_at)?.unwrap_or(watch.added_at);
        Ok(StoredWatch {
            id: WatchId(self.id),
            watch,
            progress,
            changed_at,
        })
    }
}

/// The columns of a watch that is shown.
pub(super) struct RecordRow {
    pub(super) watch: WatchRow,
    pub(super) verdict_at: Option<i64>,
    pub(super) found_by: Option<String>,
    pub(super) origin: Option<String>,
    pub(super) run_group: Option<String>,
    pub(super) started_at: Option<i64>,
    pub(super) last_error: Option<String>,
    pub(super) last_error_at: Option<i64>,
}

impl RecordRow {
    /// What they stand for.
    ///
    /// # Errors
    /// When a column holds what this program does not write.
    pub(super) fn record(self) -> Result<WatchRecord, StoreError> {
        let stored = self.watch.stored(Timestamp::UNIX_EPOCH)?;
        let verdict_at = optional_time(self.verdict_at)?;
        let failed_at = optional_time(self.last_error_at)?;
        Ok(WatchRecord {
            watch: stored.watch,
            origin: self
                .origin
                .map(|text| WatchOrigin::read(&text).ok_or_else(|| unreadable("an origin", &text)))
                .transpose()?,
            status: stored.progress.status,
            group: self.run_group,
            started_at: optional_time(self.started_at)?,
            polls: stored.progress.polls,
            missing_since: stored.progress.missing_since,
            last_error: self
                .last_error
                .zip(failed_at)
                .map(|(message, at)| PollFailure { at, message }),
            verdict: stored.progress.verdict.zip(verdict_at),
            found_by: self
                .found_by
                .map(|word| {
                    FoundBy::from_word(&word).ok_or_else(|| unreadable("a way of finding", &word))
                })
                .transpose()?,
        })
    }
}

/// The columns of a delivery that is listed.
pub(super) struct DeliveryRow {
    pub(super) id: String,
    pub(super) sink: String,
    pub(super) run_id: Option<String>,
    pub(super) event_type: String,
    pub(super) state: String,
    pub(super) attempts: i64,
    pub(super) next_attempt_at: Option<i64>,
    pub(super) last_detail: Option<String>,
    pub(super) created_at: i64,
    pub(super) ended_at: Option<i64>,
    pub(super) earlier_attempts: i64,
    pub(super) fallback_for: Option<String>,
    pub(super) held_until: Option<i64>,
    pub(super) group: Option<String>,
    pub(super) included_in: Option<String>,
}

impl DeliveryRow {
    /// What they stand for.
    ///
    /// # Errors
    /// When a column holds what this program does not write.
    pub(super) fn summary(self) -> Result<DeliverySummary, StoreError> {
        Ok(DeliverySummary {
            id: delivery_id(&self.id)?,
            sink: sink_name(&self.sink)?,
            run_id: self.run_id.as_deref().map(run_ref).transpose()?,
            group: self.group,
            event_type: EventType::from_word(&self.event_type)
                .ok_or_else(|| unreadable("an event type", &self.event_type))?,
            state: match &self.included_in {
                Some(_) => DeliveryState::Included,
                None => DeliveryState::from_word(&self.state)
                    .ok_or_else(|| unreadable("a delivery state", &self.state))?,
            },
            attempts: count32(self.attempts),
            next_attempt_at: optional_time(self.next_attempt_at)?,
            last_detail: self.last_detail,
            created_at: read_time(self.created_at)?,
            ended_at: optional_time(self.ended_at)?,
            earlier_attempts: count32(self.earlier_attempts),
            fallback_for: self.fallback_for.as_deref().map(sink_name).transpose()?,
            // The end of a hold that is over stays in the row, and is not the time of an attempt after it.
            held_until: optional_time(
                self.held_until
                    .filter(|_| self.state == DeliveryState::Pending.as_str())
                    .filter(|until| self.next_attempt_at == Some(*until)),
            )?,
            included_in: self.included_in.as_deref().map(delivery_id).transpose()?,
        })
    }
}

/// The columns of a status change.
pub(super) struct ChangeRow<'a> {
    pub(super) seq: i64,
    pub(super) run_id: &'a str,
    pub(super) at: i64,
    pub(super) status: &'a str,
    pub(super) state: Option<&'a str>,
}

impl ChangeRow<'_> {
    /// What they stand for.
    ///
    /// # Errors
    /// When a column holds what this program does not write.
    pub(super) fn change(self) -> Result<StatusChange, StoreError> {
        Ok(StatusChange {
            seq: self.seq,
            run_id: run_ref(self.run_id)?,
            at: read_time(self.at)?,
            status: Status::read(self.state, self.status),
        })
    }
}

/// The duration of a run that succeeded, as it is added to those of its group.
pub(super) struct PastRow {
    pub(super) provider: String,
    pub(super) group: String,
    pub(super) ran_ms: i64,
}

/// What `step` adds to past durations.
pub(super) fn past_duration(step: &Step) -> Option<PastRow> {
    let run = step.past_run()?;
    Some(PastRow {
        provider: run.provider.as_str().to_owned(),
        group: storable(run.group).into_owned(),
        ran_ms: i64::try_from(run.ran_ms).ok()?,
    })
}

/// What an attempt leaves behind in the rows.
pub(super) struct AttemptRow {
    /// The state of the delivery after it.
    pub(super) state: DeliveryState,
    pub(super) next_at: Option<i64>,
    pub(super) ended_at: Option<i64>,
    pub(super) at: i64,
    pub(super) took_ms: i64,
    pub(super) delivered: bool,
}

impl AttemptRow {
    /// What `attempt` leaves behind.
    pub(super) fn of(attempt: &Attempt) -> Self {
        let at = attempt.at.as_millisecond();
        let took_ms = i64::try_from(attempt.took.as_millis()).unwrap_or(i64::MAX);
        let end = at.saturating_add(took_ms);
        let (state, next_at, ended_at) = match attempt.outcome {
            AttemptOutcome::Delivered => (DeliveryState::Delivered, None, Some(end)),
            AttemptOutcome::Retry(at) => (DeliveryState::Pending, Some(at.as_millisecond()), None),
            AttemptOutcome::Dead => (DeliveryState::Dead, None, Some(end)),
        };
        Self {
            state,
            next_at,
            ended_at,
            at,
            took_ms,
            delivered: attempt.outcome == AttemptOutcome::Delivered,
        }
    }
}

/// The columns of a watch of a group.
pub(super) struct MemberRow {
    pub(super) run_id: String,
    pub(super) name: Option<String>,
    pub(super) labels: String,
    pub(super) sinks: Option<String>,
    pub(super) verdict: String,
    pub(super) size: Option<i64>,
}

impl MemberRow {
    /// What they stand for.
    ///
    /// # Errors
    /// When a column holds what this program does not write.
    pub(super) fn member(self) -> Result<GroupMember, StoreError> {
        Ok(GroupMember {
            run_id: run_ref(&self.run_id)?,
            name: self.name,
            labels: from_json("labels", &self.labels)?,
            sinks: self
                .sinks
                .map(|json| from_json("sinks", &json))
                .transpose()?,
            verdict: Verdict::from_word(&self.verdict)
                .ok_or_else(|| unreadable("a verdict", &self.verdict))?,
            size: self.size.map(count32),
        })
    }
}

/// How many watches a group has, how many of them have no verdict, the smallest size that one of them has, and when the
/// last verdict was given.
pub(super) struct GroupCounts {
    pub(super) total: i64,
    pub(super) size: Option<i64>,
}

impl GroupCounts {
    /// Whether it waits for no watch that its size counts.
    pub(super) fn is_complete(&self) -> bool {
        self.total > 0 && self.size.is_none_or(|size| self.total >= size)
    }
}

/// The event about these watches of a group, of which `left` go on, with the sinks that get it.
pub(super) fn group_finished(
    group: &str,
    members: &[GroupMember],
    left: u64,
    routes: &Routes,
    now: Timestamp,
) -> RoutedEvent {
    RoutedEvent {
        event: Event {
            event_type: EventType::GroupFinished,
            timestamp: now,
            data: EventData::Group(Box::new(GroupEvent::of(group, members, left))),
        },
        sinks: routes.sinks_for_group(members),
        held: Vec::new(),
    }
}

/// Most runs that one summary stands for; of more, there are several.
pub(super) const SUMMARIZED_AT_ONCE: usize = 10_000;

/// Fewest runs of a summary: of less, each has its own message.
const FEWEST_SUMMARIZED: usize = 3;

/// What becomes of the deliveries of a sink that wait for a summary.
pub(super) enum Summarized {
    /// Each is sent, as one that was never held.
    Released,
    /// They are in this summary.
    Included(RoutedEvent),
}

/// Decides about the deliveries of a sink that wait for a summary, each with its watch. `digest` says whether the sink
/// gets any.
pub(super) fn summarized(
    sink: &SinkName,
    digest: bool,
    members: &[GroupMember],
    now: Timestamp,
) -> Summarized {
    if !digest || members.len() < FEWEST_SUMMARIZED {
        return Summarized::Released;
    }
    Summarized::Included(RoutedEvent {
        event: Event {
            event_type: EventType::RunDigest,
            timestamp: now,
            data: EventData::Group(Box::new(GroupEvent::digest(sink, members))),
        },
        sinks: vec![sink.clone()],
        held: Vec::new(),
    })
}

/// What is still to be delivered about a finished watch of an open group.
pub(super) fn open_group(group: &str) -> String {
    format!("the message about its group {group}")
}

/// What is still to be delivered about a run: the delivery that is due first, and how many others there are.
pub(super) struct OpenDelivery<'a> {
    pub(super) id: &'a str,
    pub(super) event: &'a str,
    pub(super) sink: &'a str,
    /// Whether it is being sent.
    pub(super) is_sending: bool,
    /// When its next attempt is due; `None` while it is being sent, or waits for a summary.
    pub(super) next_at: Option<i64>,
    pub(super) others: i64,
}

impl OpenDelivery<'_> {
    /// In words.
    ///
    /// # Errors
    /// When a column holds what this program does not write.
    pub(super) fn describe(self) -> Result<String, StoreError> {
        let Self {
            id,
            event,
            sink,
            is_sending,
            next_at,
            others,
        } = self;
        let next = match next_at {
            _ if is_sending => "being sent now".to_owned(),
            Some(at) => format!("next attempt at {:.0}", read_time(at)?),
            None => "to be in the summary after downtime".to_owned(),
        };
        let others = match others {
            0 => String::new(),
            1 => ", and 1 more delivery".to_owned(),
            others => format!(", and {others} more deliveries"),
        };
        Ok(format!("{event} to {sink} ({id}, {next}{others})"))
    }
}

/// Names in `truncated` which of the input and output of an event were not read, as they have more than `most_bytes`:
/// the larger first. `sizes` are those of the input and of the output that are stored apart, 0 for none.
pub(super) fn leave_out(event: &mut Event, sizes: (i64, i64), most_bytes: i64) {
    if let EventData::Run(data) = &mut event.data {
        let mut sizes = [("input", sizes.0), ("output", sizes.1)];
        sizes.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
        let left_out = sizes.iter().filter(|(_, size)| *size > most_bytes);
        data.truncated
            .extend(left_out.map(|(name, _)| (*name).to_owned()));
    }
}

/// The shortest time for which a run stays noted after it was listed last: much longer than lists lag behind, and than
/// the time after which a discovery takes the end of a run for an old one.
const KEPT_AT_LEAST: SignedDuration = SignedDuration::from_hours(7 * 24);

/// The time since when a run must have been listed to stay noted at `now`: as long as from `before` to then, and at
/// least [`KEPT_AT_LEAST`], before `cursor_at`, the newest complete round of its discovery. What was not listed because
/// there were no rounds stays noted.
pub(super) fn notes_kept_since(
    cursor_at: Timestamp,
    before: Timestamp,
    now: Timestamp,
) -> Timestamp {
    let kept = now.duration_since(before).max(KEPT_AT_LEAST);
    cursor_at
        .min(now)
        .checked_sub(kept)
        .unwrap_or(Timestamp::MIN)
}

/// Chooses rows that `next` returns with their sizes while there is `room`, which is `whole` at first: at most [`ROWS`].
/// A row larger than the room is chosen when it comes first.
///
/// # Errors
/// Those of `next`.
pub(super) fn choose_within(
    room: &mut i64,
    whole: i64,
    mut next: impl FnMut() -> Result<Option<(i64, i64)>, StoreError>,
) -> Result<Vec<i64>, StoreError> {
    let mut chosen = Vec::new();
    while chosen.len() < ROWS
        && let Some((number, size)) = next()?
    {
        if *room <= 0 || (size > *room && *room < whole) {
            break;
        }
        *room -= size;
        chosen.push(number);
    }
    Ok(chosen)
}

/// How often each sink is named.
pub(super) fn count_sinks(named: Vec<SinkName>) -> Vec<(SinkName, u64)> {
    let mut counts: Vec<(SinkName, u64)> = Vec::new();
    for sink in named {
        match counts.iter_mut().find(|(known, _)| *known == sink) {
            Some((_, count)) => *count += 1,
            None => counts.push((sink, 1)),
        }
    }
    counts
}

/// The first `limit` of `items`, of which one more was read where there is one.
pub(super) fn page<T>(mut items: Vec<T>, limit: u32) -> Page<T> {
    let more = items.len() > limit as usize;
    items.truncate(limit as usize);
    Page { items, more }
}

/// `text` as every engine stores it: PostgreSQL takes no U+0000 in a text (postgresql.org/docs/15/datatype-character),
/// so that character is replaced in both.
pub(super) fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        Cow::Owned(text.replace('\0', "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

pub(super) fn run_ref(text: &str) -> Result<RunRef, StoreError> {
    RunRef::new(text).map_err(|error| unreadable("an ID", &error))
}

pub(super) fn delivery_id(text: &str) -> Result<DeliveryId, StoreError> {
    DeliveryId::new(text).map_err(|error| unreadable("an ID", &error))
}

pub(super) fn sink_name(text: &str) -> Result<SinkName, StoreError> {
    SinkName::new(text).map_err(|error| unreadable("an ID", &error))
}

pub(super) fn trace_context(text: &str) -> Result<TraceContext, StoreError> {
    TraceContext::from_text(text).ok_or_else(|| unreadable("a trace context", &text))
}

pub(super) fn payload(text: String) -> Result<JsonText, StoreError> {
    JsonText::new(text).map_err(|error| unreadable("a value of a run", &error))
}

/// A count of attempts, which grows by one at a time.
pub(super) fn count32(count: i64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// How old at `now` is what happened at a stored time; no age for what is to come.
pub(super) fn age(at: i64, now: Timestamp) -> Result<Duration, StoreError> {
    let age = now.duration_since(read_time(at)?);
    Ok(Duration::try_from(age).unwrap_or_default())
}

pub(super) fn read_time(milliseconds: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_millisecond(milliseconds).map_err(|error| unreadable("a time", &error))
}

pub(super) fn optional_time(milliseconds: Option<i64>) -> Result<Option<Timestamp>, StoreError> {
    milliseconds.map(read_time).transpose()
}

pub(super) fn to_json<T: serde::Serialize + ?Sized>(
    what: &'static str,
    value: &T,
) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| unreadable(what, &error))
}

pub(super) fn from_json<'a, T: serde::Deserialize<'a>>(
    what: &'static str,
    json: &'a str,
) -> Result<T, StoreError> {
    serde_json::from_str(json).map_err(|error| unreadable(what, &error))
}

pub(super) fn unreadable(what: &'static str, why: &dyn std::fmt::Display) -> StoreError {
    StoreError::Unreadable {
        what,
        why: why.to_string(),
    }
}
