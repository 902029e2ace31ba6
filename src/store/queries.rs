//! What is stored and read: the only place that knows SQL.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Params, Row, named_params, params};

use super::{Store, StoreError, Wakes};
use crate::domain::{
    DeliveryId, Event, EventData, EventType, FoundBy, JsonText, Labels, Progress, RunDetails,
    RunEvent, RunId, SinkName, Status, Step, Verdict, Watch,
};
use crate::failpoint::mutant;

/// Number of a watch in the store. It is never given again, so that what belongs to one watch of a run never counts
/// for a later watch of the same run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchId(i64);

/// Largest `input` or `output` of a run, in bytes, that stays in the row of its watch and its events. A larger one is
/// stored once, in a row of its own.
const INLINE_BYTES: usize = 1024;

/// Most deadlines that are moved in one transaction, so that what else is to be written has its turn in between.
const MARKS: usize = 2_000;

/// Bytes of events after which a page of them ends, so that one page takes no more than this and its last event.
const PAGE_BYTES: usize = 256 * 1024;

/// Most status changes kept of one watch, the newest: a run that changes its status without end fills neither the disk
/// nor a list.
const KEPT_CHANGES: u32 = 1_000;

/// The columns of the large values of a watch or an event: its input, then its output.
macro_rules! payloads {
    ($row:literal) => {
        concat!(
            "(SELECT p.body FROM payloads p WHERE p.id = ",
            $row,
            ".input_id), ",
            "(SELECT p.body FROM payloads p WHERE p.id = ",
            $row,
            ".output_id)"
        )
    };
}
pub(super) use payloads;

/// How much more the wall clock shows than the times of next attempts in the store, in milliseconds.
macro_rules! stepped {
    () => {
        "(SELECT stepped_ms FROM clock)"
    };
}
pub(super) use stepped;

/// The deliveries of a sink that are due at a time, the longest due first, so many at the most.
pub(super) const DUE: &str = concat!(
    "SELECT id, event_seq FROM deliveries WHERE sink = ? AND state = 'pending' AND next_attempt_at <= ? - ",
    stepped!(),
    " ORDER BY next_attempt_at, id LIMIT ?"
);

/// When the first delivery of a sink that waits is due.
pub(super) const NEXT_DUE: &str = concat!(
    "SELECT next_attempt_at + ",
    stepped!(),
    " FROM deliveries WHERE sink = ? AND state = 'pending' ORDER BY next_attempt_at LIMIT 1"
);

/// The events after one, with their numbers.
pub(super) const EVENTS_AFTER: &str = concat!(
    "SELECT seq, body, ",
    payloads!("e"),
    " FROM events e WHERE seq > ? ORDER BY seq LIMIT ?"
);

/// What came of adding a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// It is new.
    New,
    /// A watch of that run was there already and stays as it is.
    AlreadyExists,
}

/// A stored watch.
#[derive(Debug, Clone)]
pub struct StoredWatch {
    /// Its number.
    pub id: WatchId,
    /// The watch.
    pub watch: Watch,
    /// How far it has come.
    pub progress: Progress,
    /// When its status last changed; when it was added if that never happened.
    pub changed_at: Timestamp,
}

/// A poll that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PollFailure {
    /// When.
    pub at: Timestamp,
    /// What was wrong; one line, no secrets.
    pub message: String,
}

/// An event with the sinks to tell of it.
#[derive(Debug, Clone)]
pub struct RoutedEvent {
    /// The event.
    pub event: Event,
    /// The sinks.
    pub sinks: Vec<SinkName>,
}

/// One change of a run's status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusChange {
    /// Grows with every change.
    pub seq: i64,
    /// The run.
    pub run_id: RunId,
    /// When it was observed.
    pub at: Timestamp,
    /// The status since then.
    pub status: Status,
}

/// A delivery claimed for one attempt.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// Its ID.
    pub id: DeliveryId,
    /// Number of this attempt, from 1.
    pub attempt: u32,
    /// Number of this attempt in the retry schedule, from 1: it begins anew when someone asks for it.
    pub try_number: u32,
    /// What to deliver.
    pub event: Event,
}

impl Claimed {
    /// Bytes of the run's input and output that it holds.
    pub fn bytes(&self) -> usize {
        self.event.run().map_or(0, RunEvent::bytes)
    }
}

/// How one attempt went.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Number of the attempt, from 1, as claimed.
    pub attempt: u32,
    /// When it began.
    pub at: Timestamp,
    /// How long it took.
    pub took: Duration,
    /// What the receiver said, or what went wrong; one line, no secrets.
    pub detail: String,
    /// What follows.
    pub outcome: Outcome,
}

/// What follows an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The message arrived.
    Delivered,
    /// Another attempt at this time.
    Retry(Timestamp),
    /// No further attempt unless someone asks for it.
    Dead,
}

/// Where a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeliveryState {
    /// Waiting for its next attempt.
    Pending,
    /// An attempt is under way.
    Sending,
    /// Arrived.
    Delivered,
    /// Given up.
    Dead,
}

impl DeliveryState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Sending, Self::Delivered, Self::Dead];

    /// The word in the store and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Sending => "sending",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
        }
    }

    /// Reads the word of [`DeliveryState::as_str`].
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

/// A delivery and how it went so far.
#[derive(Debug, Clone)]
pub struct DeliverySummary {
    /// Its ID.
    pub id: DeliveryId,
    /// The sink.
    pub sink: SinkName,
    /// The run, unless it is about the API or a sink.
    pub run_id: Option<RunId>,
    /// What it tells.
    pub event_type: EventType,
    /// Where it stands.
    pub state: DeliveryState,
    /// Attempts made.
    pub attempts: u32,
    /// When the next one is due, if it is pending.
    pub next_attempt_at: Option<Timestamp>,
    /// What came of the last attempt.
    pub last_detail: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it arrived or was given up.
    pub ended_at: Option<Timestamp>,
}

impl Store {
    /// Stores a watch unless there is one of that run already, active or finished. Returns the number of the newest
    /// watch of the run too.
    ///
    /// # Errors
    /// When the store refuses; nothing is stored then.
    pub async fn add_watch(&self, watch: Watch) -> Result<(Added, WatchId), StoreError> {
        self.write(Wakes::default(), move |db| insert_watch(db, &watch))
            .await
    }

    /// As [`Store::add_watch`], but a finished watch of the run is no obstacle: it stays on record with its verdict
    /// and its deliveries, and the run is watched anew.
    ///
    /// # Errors
    /// As [`Store::add_watch`].
    pub async fn add_watch_again(&self, watch: Watch) -> Result<(Added, WatchId), StoreError> {
        self.write(Wakes::default(), move |db| {
            match newest_watch(db, &watch.run_id)? {
                Some((id, false)) => Ok((Added::AlreadyExists, id)),
                Some((_, true)) | None => insert_new_watch(db, &watch),
            }
        })
        .await
    }

    /// Stores a watch that the configuration asks for, unless it was added for the configuration before
    /// or is there already. Without a watch of the run there is no number.
    ///
    /// # Errors
    /// When the store refuses; nothing is stored then.
    pub async fn add_configured_watch(
        &self,
        watch: Watch,
    ) -> Result<(Added, Option<WatchId>), StoreError> {
        self.write(Wakes::default(), move |db| {
            let first = db
                .prepare_cached(
                    "INSERT INTO configured_watches (run_id) VALUES (?) ON CONFLICT DO NOTHING",
                )?
                .execute([watch.run_id.as_str()])?;
            if first == 1 {
                insert_watch(db, &watch).map(|(added, id)| (added, Some(id)))
            } else {
                Ok((
                    Added::AlreadyExists,
                    newest_watch(db, &watch.run_id)?.map(|(id, _)| id),
                ))
            }
        })
        .await
    }

    /// Forgets that watches were added for the configuration, but for those it still asks for: one that
    /// comes back to the configuration later is added again.
    ///
    /// # Errors
    /// When the store refuses.
    pub async fn keep_configured_watches(&self, run_ids: Vec<RunId>) -> Result<(), StoreError> {
        self.write(Wakes::default(), move |db| {
            let run_ids = to_json("run IDs", &run_ids)?;
            db.prepare_cached("DELETE FROM configured_watches WHERE run_id NOT IN (SELECT value FROM json_each(?))")?
                .execute([run_ids])?;
            Ok(())
        })
        .await
    }

    /// Writes a watch and takes it away again, in one transaction that is synced like any other: one could
    /// be added now.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn probe_write(&self) -> Result<(), StoreError> {
        self.write(Wakes::default(), |db| {
            // No run has this ID.
            let watch = "INSERT INTO watches (run_id, labels, added_at, deadline_at) VALUES ('.', '{}', 0, 0)";
            db.prepare_cached(watch)?.execute([])?;
            db.prepare_cached("DELETE FROM watches WHERE run_id = '.'")?.execute([])?;
            Ok(())
        })
        .await
    }

    /// Deletes the watches of a run with their history and their deliveries. Returns their numbers; none when there
    /// was no watch of that run. With `force`, messages that are not delivered yet go with them.
    ///
    /// # Errors
    /// [`StoreError::Precondition`] without `force` when one has its verdict but not all messages of that are
    /// delivered or given up; nothing is deleted then.
    pub async fn remove_watches(
        &self,
        run_id: RunId,
        force: bool,
    ) -> Result<Vec<WatchId>, StoreError> {
        self.write(Wakes { history: true, deliveries: true, verdict: None }, move |db| {
            let waiting = "SELECT EXISTS (
                     SELECT 1 FROM watches w JOIN events e ON e.watch_id = w.id JOIN deliveries d ON d.event_seq = e.seq
                     WHERE w.run_id = ? AND w.verdict IS NOT NULL AND d.state IN ('pending', 'sending'))";
            if !force && db.prepare_cached(waiting)?.query_row([run_id.as_str()], |row| row.get(0))? {
                let what = format!("a message about {run_id}");
                let wanted = "delivered or given up yet; wait for it, or give it up with --force (force=true)";
                return Err(StoreError::Precondition { what, wanted });
            }
            let delete = "DELETE FROM watches WHERE run_id = ? RETURNING id";
            read_all(db, delete, [run_id.as_str()], |row| Ok(WatchId(row.get(0)?)))
        })
        .await
    }

    /// Up to `limit` of the watches without a verdict, the oldest first, taken up at `now`; those that come
    /// after the watch `after`, given as when it was added and its run. What was seen of their runs besides
    /// the status stays in the store ([`Store::details`]). None of them counts as missing: nobody asked while there
    /// was no process, so the grace begins anew.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn active_watches(
        &self,
        now: Timestamp,
        after: Option<(Timestamp, RunId)>,
        limit: u32,
    ) -> Result<Vec<StoredWatch>, StoreError> {
        self.read(move |db| {
            let sql = "SELECT id, run_id, name, labels, sinks, added_at, deadline_at, status, polls, missing_since,
                           seen_running, overdue_told, verdict,
                           (SELECT at FROM status_changes s WHERE s.watch_id = w.id ORDER BY seq DESC LIMIT 1) AS changed_at
                       FROM watches w WHERE verdict IS NULL AND (added_at, run_id) > (?, ?)
                       ORDER BY added_at, run_id LIMIT ?";
            let (at, run_id) = match &after {
                Some((at, run_id)) => (at.as_millisecond(), run_id.as_str()),
                None => (i64::MIN, ""),
            };
            read_all(db, sql, params![at, run_id, limit], |row| {
                let mut stored = read_watch(row, now)?;
                stored.progress.missing_since = None;
                Ok(stored)
            })
        })
        .await
    }

    /// What was last stored of a run besides its status; `None` when that is nothing, or the watch is gone.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn details(&self, watch: WatchId) -> Result<Option<RunDetails>, StoreError> {
        self.read(move |db| {
            let sql = concat!(
                "SELECT details, ",
                payloads!("w"),
                " FROM watches w WHERE id = ? AND details IS NOT NULL"
            );
            let details = read_all(db, sql, [watch.0], |row| {
                let json = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
                let mut details: RunDetails = from_json("details", json)?;
                read_payload(row, 1, &mut details.input)?;
                read_payload(row, 2, &mut details.output)?;
                Ok(details)
            });
            Ok(details?.pop())
        })
        .await
    }

    /// Stores a step of a watch: its new state, its events and their deliveries, all or nothing. Details that
    /// the step does not know stay as they are. `told` has the events of `step` with their sinks; `last_error`
    /// is what the last poll that failed said; `found_by` is what had the run asked for.
    ///
    /// # Errors
    /// [`StoreError::Precondition`] when the watch is gone or has its verdict already.
    pub async fn record_step(
        &self,
        watch: WatchId,
        step: Step,
        told: Vec<RoutedEvent>,
        last_error: Option<PollFailure>,
        found_by: FoundBy,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let deliveries = told.iter().any(|told| !told.sinks.is_empty());
        let (told, later) = if mutant("apart") {
            (Vec::new(), told)
        } else {
            (told, Vec::new())
        };
        let wakes = Wakes {
            history: true,
            deliveries,
            verdict: step.progress.verdict,
        };
        self.write_large(step.bytes(), wakes, move |db| {
            let run = told.first().and_then(|told| told.event.run_id()).filter(|_| mutant("old-watch-ends-new"));
            let newest = run.map(|run| {
                let sql = "SELECT id FROM watches WHERE run_id = ? AND verdict IS NULL";
                db.query_row(sql, [run.as_str()], |row| row.get(0)).map(WatchId)
            });
            let watch = newest.and_then(Result::ok).unwrap_or(watch);
            let mut next = step.progress;
            let status = next.status.as_ref().map(Status::as_str);
            let rows = db
                .prepare_cached(
                    "UPDATE watches SET status = :status, polls = :polls, missing_since = :missing_since,
                        seen_running = :seen_running, overdue_told = :overdue_told,
                        last_error = coalesce(:last_error, last_error),
                        last_error_at = coalesce(:last_error_at, last_error_at), verdict = :verdict, verdict_at = :verdict_at,
                        found_by = :found_by
                     WHERE id = :id AND verdict IS NULL",
                )?
                .execute(named_params! {
                    ":status": status,
                    ":polls": next.polls.cast_signed(),
                    ":missing_since": next.missing_since.map(Timestamp::as_millisecond),
                    ":seen_running": next.seen_running,
                    ":overdue_told": next.overdue_told,
                    ":last_error": last_error.as_ref().map(|failure| &failure.message),
                    ":last_error_at": last_error.as_ref().map(|failure| failure.at.as_millisecond()),
                    ":verdict": next.verdict.map(Verdict::as_str),
                    ":verdict_at": next.verdict.map(|_| now.as_millisecond()),
                    ":found_by": next.verdict.map(|_| found_by.as_str()),
                    ":id": watch.0,
                })?;
            if rows != 1 {
                return Err(StoreError::Precondition { what: format!("watch {}", watch.0), wanted: "active" });
            }
            if let Some(status) = status.filter(|_| step.status_changed) {
                insert_change(db, watch, status, now)?;
            }
            told.into_iter().try_for_each(|told| insert_event(db, Some(watch), told, now))?;
            match &mut next.details {
                Some(details) => replace_details(db, watch, details),
                None => Ok(()),
            }
        })
        .await?;
        for told in later {
            let wakes = Wakes {
                history: true,
                deliveries: true,
                verdict: None,
            };
            self.write(wakes, move |db| insert_event(db, Some(watch), told, now))
                .await?;
        }
        Ok(())
    }

    /// Stores an event that is not about a run, with its deliveries.
    ///
    /// # Errors
    /// When the store refuses.
    pub async fn record_event(&self, told: RoutedEvent, now: Timestamp) -> Result<(), StoreError> {
        let wakes = Wakes {
            history: true,
            deliveries: !told.sinks.is_empty(),
            verdict: None,
        };
        self.write(wakes, move |db| insert_event(db, None, told, now))
            .await
    }

    /// After the wall clock was set by `milliseconds`: stores the deadlines of these active watches, some at a time, has
    /// the grace of their missing runs begin anew at `now`, and then moves the times of all next attempts.
    ///
    /// # Errors
    /// When the store rejects it. Of many deadlines some may be stored then, which does no harm when all are stored
    /// again; nothing else is.
    pub async fn shift_deadlines(
        &self,
        deadlines: Vec<(WatchId, Timestamp)>,
        milliseconds: i64,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut some_at_a_time = deadlines
            .chunks(MARKS)
            .map(<[_]>::to_vec)
            .collect::<Vec<_>>();
        let last = some_at_a_time.pop().unwrap_or_default();
        for some in some_at_a_time {
            self.write(Wakes::default(), move |db| set_deadlines(db, &some, now))
                .await?;
        }
        self.write(
            Wakes {
                history: false,
                deliveries: true,
                verdict: None,
            },
            move |db| {
                if !mutant("marks-stay") {
                    set_deadlines(db, &last, now)?;
                }
                db.prepare_cached("UPDATE clock SET stepped_ms = stepped_ms + ?")?
                    .execute([milliseconds])?;
                Ok(())
            },
        )
        .await
    }

    /// Claims up to `limit` deliveries of `sink` that are due at `now`, the longest due first; fewer where they are
    /// large. An input or output of more than `most_bytes`, which the sink would leave out, is not read, and named in
    /// `truncated`.
    ///
    /// # Errors
    /// When the store refuses.
    pub async fn claim_due(
        &self,
        sink: SinkName,
        now: Timestamp,
        limit: usize,
        most_bytes: usize,
    ) -> Result<Vec<Claimed>, StoreError> {
        let (limit, most_bytes) = (
            i64::try_from(limit).unwrap_or(i64::MAX),
            i64::try_from(most_bytes).unwrap_or(i64::MAX),
        );
        self.write(Wakes::default(), move |db| {
            let claim =
                "UPDATE deliveries SET state = 'sending', attempts = attempts + 1 WHERE id = ?
                         RETURNING attempts, attempts - earlier_tries";
            let due = read_all(
                db,
                DUE,
                params![sink.as_str(), now.as_millisecond(), limit],
                |row| Ok((read_id(row, 0, DeliveryId::new)?, row.get::<_, i64>(1)?)),
            )?;
            let (mut claimed, mut bytes) = (Vec::new(), 0);
            for (id, event_seq) in due {
                if bytes >= PAGE_BYTES {
                    break;
                }
                let event = read_event_within(db, event_seq, most_bytes)?;
                let (attempt, try_number) = db
                    .prepare_cached(claim)?
                    .query_row([id.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?;
                let delivery = Claimed {
                    id,
                    attempt,
                    try_number,
                    event,
                };
                bytes += delivery.bytes();
                claimed.push(delivery);
            }
            claimed.sort_by(|a, b| a.id.cmp(&b.id));
            Ok(claimed)
        })
        .await
    }

    /// When the next delivery of `sink` is due.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn next_due(&self, sink: SinkName) -> Result<Option<Timestamp>, StoreError> {
        self.read(move |db| {
            let at: Option<i64> = db
                .prepare_cached(NEXT_DUE)?
                .query_row([sink.as_str()], |row| row.get(0))
                .optional()?;
            at.map(read_time).transpose()
        })
        .await
    }

    /// Stores how an attempt went and what follows, together.
    ///
    /// # Errors
    /// [`StoreError::Precondition`] when the delivery is not claimed for that attempt.
    pub async fn record_attempt(&self, id: DeliveryId, attempt: Attempt) -> Result<(), StoreError> {
        self.write(Wakes { history: false, deliveries: true, verdict: None }, move |db| {
            let took_ms = i64::try_from(attempt.took.as_millis()).unwrap_or(i64::MAX);
            let ended_at = attempt.at.as_millisecond().saturating_add(took_ms);
            let (state, next_at, ended_at) = match attempt.outcome {
                Outcome::Delivered => (DeliveryState::Delivered, None, Some(ended_at)),
                Outcome::Retry(at) => (DeliveryState::Pending, Some(at.as_millisecond()), None),
                Outcome::Dead => (DeliveryState::Dead, None, Some(ended_at)),
            };
            let rows = db
                .prepare_cached(concat!(
                    "UPDATE deliveries SET state = ?, next_attempt_at = ? - ",
                    stepped!(),
                    ", ended_at = ? WHERE id = ? AND state = 'sending' AND attempts = ?",
                ))?
                .execute(params![state.as_str(), next_at, ended_at, id.as_str(), attempt.attempt])?;
            if rows != 1 {
                let what = format!("delivery {id}");
                return Err(StoreError::Precondition { what, wanted: "claimed for this attempt" });
            }
            db.prepare_cached(
                "INSERT INTO attempts (delivery_id, attempt, at, took_ms, delivered, detail) VALUES (?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                id.as_str(),
                attempt.attempt,
                attempt.at.as_millisecond(),
                took_ms,
                attempt.outcome == Outcome::Delivered,
                attempt.detail,
            ])?;
            Ok(())
        })
        .await
    }

    /// The status changes after `seq`, in order.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn status_changes_after(&self, seq: i64) -> Result<Vec<StatusChange>, StoreError> {
        self.inspect(move |db| {
            let sql = "SELECT c.seq, w.run_id, c.at, c.status FROM status_changes c JOIN watches w ON w.id = c.watch_id
                       WHERE c.seq > ? ORDER BY c.seq";
            read_all(db, sql, [seq], read_change)
        })
        .await
    }

    /// Up to `limit` events after `seq`, in order, each with its number; fewer where they are large.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn events_after(
        &self,
        seq: i64,
        limit: u32,
    ) -> Result<Vec<(i64, Event)>, StoreError> {
        self.inspect(move |db| {
            let mut statement = db.prepare_cached(EVENTS_AFTER)?;
            let mut rows = statement.query(params![seq, limit])?;
            let (mut events, mut bytes) = (Vec::new(), 0);
            while bytes < PAGE_BYTES
                && let Some(row) = rows.next()?
            {
                let event = read_event(row, 1)?;
                let body = row.get_ref(1)?.as_str().map_or(0, str::len);
                bytes += body + event.run().map_or(0, RunEvent::bytes);
                events.push((row.get(0)?, event));
            }
            Ok(events)
        })
        .await
    }
}

/// Makes deliveries due again whose attempt was under way when the process that made it died.
///
/// The attempt may have arrived; its number was used up, its delivery is made again under the same ID.
pub(super) fn release_claims(db: &Connection) -> Result<(), StoreError> {
    if mutant("claims") {
        return Ok(());
    }
    db.execute(
        concat!(
            "UPDATE deliveries SET state = 'pending', next_attempt_at = coalesce(next_attempt_at, created_at - ",
            stepped!(),
            ") WHERE state = 'sending' AND state != 'delivered'",
        ),
        [],
    )?;
    Ok(())
}

/// The newest watch of a run, and whether it is finished.
fn newest_watch(db: &Connection, run_id: &RunId) -> Result<Option<(WatchId, bool)>, StoreError> {
    let newest =
        "SELECT id, verdict IS NOT NULL FROM watches WHERE run_id = ? ORDER BY id DESC LIMIT 1";
    let read = |row: &Row<'_>| Ok((WatchId(row.get(0)?), row.get(1)?));
    Ok(db
        .prepare_cached(newest)?
        .query_row([run_id.as_str()], read)
        .optional()?)
}

fn insert_watch(db: &Connection, watch: &Watch) -> Result<(Added, WatchId), StoreError> {
    match newest_watch(db, &watch.run_id)? {
        Some((id, _)) => Ok((Added::AlreadyExists, id)),
        None => insert_new_watch(db, watch),
    }
}

fn insert_new_watch(db: &Connection, watch: &Watch) -> Result<(Added, WatchId), StoreError> {
    let sinks = watch
        .sinks
        .as_ref()
        .map(|sinks| to_json("sinks", sinks))
        .transpose()?;
    db.prepare_cached(
        "INSERT INTO watches (run_id, name, labels, sinks, added_at, deadline_at) VALUES (?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        watch.run_id.as_str(),
        watch.name,
        to_json("labels", &watch.labels)?,
        sinks,
        watch.added_at.as_millisecond(),
        watch.deadline_at.as_millisecond(),
    ])?;
    Ok((Added::New, WatchId(db.last_insert_rowid())))
}

fn set_deadlines(
    db: &Connection,
    deadlines: &[(WatchId, Timestamp)],
    now: Timestamp,
) -> Result<(), StoreError> {
    let mut set = db.prepare_cached(
        "UPDATE watches SET deadline_at = ?1, missing_since = iif(missing_since IS NULL, NULL, ?2)
         WHERE id = ?3 AND verdict IS NULL",
    )?;
    for (watch, deadline_at) in deadlines {
        set.execute(params![
            deadline_at.as_millisecond(),
            now.as_millisecond(),
            watch.0
        ])?;
    }
    Ok(())
}

fn insert_change(
    db: &Connection,
    watch: WatchId,
    status: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    db.prepare_cached("INSERT INTO status_changes (watch_id, at, status) VALUES (?, ?, ?)")?
        .execute(params![watch.0, now.as_millisecond(), status])?;
    db.prepare_cached(
        "DELETE FROM status_changes WHERE watch_id = ?1 AND seq <= (
             SELECT seq FROM status_changes WHERE watch_id = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2)",
    )?
    .execute(params![watch.0, KEPT_CHANGES])?;
    Ok(())
}

/// Stores an event, of `watch` if it is about one, with its deliveries.
fn insert_event(
    db: &Connection,
    watch: Option<WatchId>,
    told: RoutedEvent,
    now: Timestamp,
) -> Result<(), StoreError> {
    let RoutedEvent { mut event, sinks } = told;
    let (mut input_id, mut output_id) = (None, None);
    if let (Some(watch), EventData::Run(data)) = (watch, &mut event.data) {
        input_id = set_apart(db, watch, &mut data.run.input)?;
        output_id = set_apart(db, watch, &mut data.run.output)?;
    }
    let insert = "INSERT INTO events (watch_id, run_id, type, at, input_id, output_id, body) VALUES (?, ?, ?, ?, ?, ?, ?)";
    db.prepare_cached(insert)?.execute(params![
        watch.map(|watch| watch.0),
        event.run_id().map(RunId::as_str),
        event.event_type.as_str(),
        event.timestamp.as_millisecond(),
        input_id,
        output_id,
        event.to_json(),
    ])?;
    let seq = db.last_insert_rowid();
    for sink in sinks {
        db.prepare_cached(concat!(
            "INSERT INTO deliveries (id, event_seq, sink, state, next_attempt_at, created_at)
             VALUES (?1, ?2, ?3, 'pending', ?4 - ",
            stepped!(),
            ", ?4)",
        ))?
        .execute(params![
            DeliveryId::generate().as_str(),
            seq,
            sink.as_str(),
            now.as_millisecond()
        ])?;
    }
    Ok(())
}

/// Stores what is known of a run besides its status, in place of what was known before.
fn replace_details(
    db: &Connection,
    watch: WatchId,
    details: &mut RunDetails,
) -> Result<(), StoreError> {
    let input_id = set_apart(db, watch, &mut details.input)?;
    let output_id = set_apart(db, watch, &mut details.output)?;
    db.prepare_cached("UPDATE watches SET details = ?, input_id = ?, output_id = ? WHERE id = ?")?
        .execute(params![
            to_json("details", details)?,
            input_id,
            output_id,
            watch.0
        ])?;
    // What an earlier answer had, and no event tells.
    db.prepare_cached(
        "DELETE FROM payloads WHERE watch_id = ?1 AND id NOT IN (
             SELECT input_id FROM watches WHERE id = ?1 AND input_id IS NOT NULL
             UNION ALL SELECT output_id FROM watches WHERE id = ?1 AND output_id IS NOT NULL
             UNION ALL SELECT input_id FROM events WHERE watch_id = ?1 AND input_id IS NOT NULL
             UNION ALL SELECT output_id FROM events WHERE watch_id = ?1 AND output_id IS NOT NULL)",
    )?
    .execute([watch.0])?;
    Ok(())
}

/// Takes a value that is large out of what is stored, and stores it in a row of its own, unless the watch has one
/// with just this value. Returns the number of that row.
fn set_apart(
    db: &Connection,
    watch: WatchId,
    value: &mut Option<JsonText>,
) -> Result<Option<i64>, StoreError> {
    let Some(large) = value.take_if(|value| value.get().len() > INLINE_BYTES) else {
        return Ok(None);
    };
    let known =
        "SELECT id FROM payloads WHERE watch_id = ? AND octet_length(body) = ? AND body = ?";
    let size = i64::try_from(large.get().len()).unwrap_or(i64::MAX);
    let known: Option<i64> = db
        .prepare_cached(known)?
        .query_row(params![watch.0, size, large.get()], |row| row.get(0))
        .optional()?;
    if known.is_some() {
        return Ok(known);
    }
    db.prepare_cached("INSERT INTO payloads (watch_id, body) VALUES (?, ?)")?
        .execute(params![watch.0, large.get()])?;
    Ok(Some(db.last_insert_rowid()))
}

/// Reads a large value, if there is one in this column.
fn read_payload(
    row: &Row<'_>,
    column: usize,
    value: &mut Option<JsonText>,
) -> Result<(), StoreError> {
    if let Some(text) = row.get::<_, Option<String>>(column)? {
        *value = Some(JsonText::new(text).map_err(|error| unreadable("a value of a run", &error))?);
    }
    Ok(())
}

/// Runs a query and reads every row.
pub(super) fn read_all<T>(
    db: &Connection,
    sql: &str,
    parameters: impl Params,
    mut read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let mut statement = db.prepare_cached(sql)?;
    let mut rows = statement.query(parameters)?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        all.push(read(row)?);
    }
    Ok(all)
}

pub(super) fn read_watch(row: &Row<'_>, now: Timestamp) -> Result<StoredWatch, StoreError> {
    let text = |column: &str| -> Result<Option<String>, rusqlite::Error> { row.get(column) };
    let time = |column: &str| -> Result<Option<Timestamp>, StoreError> {
        row.get::<_, Option<i64>>(column)?
            .map(read_time)
            .transpose()
    };
    let required = |column: &str| read_time(row.get(column)?);
    let labels: Labels = from_json("labels", &row.get::<_, String>("labels")?)?;
    let watch = Watch {
        run_id: read_id(row, "run_id", RunId::new)?,
        name: text("name")?,
        labels,
        sinks: text("sinks")?
            .map(|json| from_json("sinks", &json))
            .transpose()?,
        added_at: required("added_at")?,
        deadline_at: required("deadline_at")?,
    };
    let mut progress = Progress::begin(now);
    progress.status = text("status")?.map(|status| Status::from_api(&status));
    progress.polls = row.get::<_, i64>("polls")?.cast_unsigned();
    progress.missing_since = time("missing_since")?;
    progress.seen_running = row.get("seen_running")?;
    progress.overdue_told = row.get("overdue_told")?;
    progress.verdict = match text("verdict")? {
        None => None,
        Some(word) => {
            Some(Verdict::from_word(&word).ok_or_else(|| unreadable("a verdict", &word))?)
        }
    };
    let changed_at = time("changed_at")?.unwrap_or(watch.added_at);
    Ok(StoredWatch {
        id: WatchId(row.get("id")?),
        watch,
        progress,
        changed_at,
    })
}

/// Reads `seq, run_id, at, status`.
pub(super) fn read_change(row: &Row<'_>) -> Result<StatusChange, StoreError> {
    Ok(StatusChange {
        seq: row.get(0)?,
        run_id: read_id(row, 1, RunId::new)?,
        at: read_time(row.get(2)?)?,
        status: Status::from_api(row.get_ref(3)?.as_str().map_err(rusqlite::Error::from)?),
    })
}

/// Reads an event from its body and, in the columns after that, its large values.
pub(super) fn read_event(row: &Row<'_>, column: usize) -> Result<Event, StoreError> {
    let body = row
        .get_ref(column)?
        .as_str()
        .map_err(rusqlite::Error::from)?;
    let mut event = Event::from_json(body).map_err(|error| unreadable("an event", &error))?;
    if let EventData::Run(data) = &mut event.data {
        read_payload(row, column + 1, &mut data.run.input)?;
        read_payload(row, column + 2, &mut data.run.output)?;
    }
    Ok(event)
}

/// Reads an event but for an input or output of more than `most_bytes`, which `truncated` names then: the larger first,
/// as where a message has no room for them.
fn read_event_within(db: &Connection, seq: i64, most_bytes: i64) -> Result<Event, StoreError> {
    let sql = "SELECT body,
                   (SELECT p.body FROM payloads p WHERE p.id = e.input_id AND octet_length(p.body) <= ?2),
                   (SELECT p.body FROM payloads p WHERE p.id = e.output_id AND octet_length(p.body) <= ?2),
                   (SELECT octet_length(p.body) FROM payloads p WHERE p.id = e.input_id),
                   (SELECT octet_length(p.body) FROM payloads p WHERE p.id = e.output_id)
               FROM events e WHERE seq = ?1";
    let mut statement = db.prepare_cached(sql)?;
    let mut rows = statement.query(params![seq, most_bytes])?;
    let row = rows.next()?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
    let mut event = read_event(row, 0)?;
    if let EventData::Run(data) = &mut event.data {
        let size = |column| -> Result<i64, StoreError> {
            Ok(row.get::<_, Option<i64>>(column)?.unwrap_or(0))
        };
        let mut sizes = [("input", size(3)?), ("output", size(4)?)];
        sizes.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
        let left_out = sizes.iter().filter(|(_, size)| *size > most_bytes);
        data.truncated
            .extend(left_out.map(|(name, _)| (*name).to_owned()));
    }
    Ok(event)
}

pub(super) fn read_delivery(row: &Row<'_>) -> Result<DeliverySummary, StoreError> {
    let word: String = row.get(3)?;
    let state: String = row.get(4)?;
    let run_id: Option<String> = row.get(2)?;
    Ok(DeliverySummary {
        id: read_id(row, 0, DeliveryId::new)?,
        sink: read_id(row, 1, SinkName::new)?,
        run_id: run_id
            .map(|id| RunId::new(&id))
            .transpose()
            .map_err(|error| unreadable("an ID", &error))?,
        event_type: EventType::from_word(&word)
            .ok_or_else(|| unreadable("an event type", &word))?,
        state: DeliveryState::from_word(&state)
            .ok_or_else(|| unreadable("a delivery state", &state))?,
        attempts: row.get(5)?,
        next_attempt_at: row.get::<_, Option<i64>>(6)?.map(read_time).transpose()?,
        last_detail: row.get(7)?,
        created_at: read_time(row.get(8)?)?,
        ended_at: row.get::<_, Option<i64>>(9)?.map(read_time).transpose()?,
    })
}

pub(super) fn read_id<T, E: std::fmt::Display>(
    row: &Row<'_>,
    column: impl rusqlite::RowIndex,
    read: impl FnOnce(&str) -> Result<T, E>,
) -> Result<T, StoreError> {
    let text: String = row.get(column)?;
    read(&text).map_err(|error| unreadable("an ID", &error))
}

pub(super) fn read_time(milliseconds: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_millisecond(milliseconds).map_err(|error| unreadable("a time", &error))
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
