//! What is read for people: lists, histories, counts.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, named_params, params};

use super::queries::{read_delivery, read_id, read_time, read_watch, unreadable};
use super::{DeliveryState, DeliverySummary, PollFailure, StatusChange, Store, StoreError, Wakes};
use crate::run::{DeliveryId, Event, EventType, Labels, RunId, SinkName, Status, Verdict, Watch};

/// Which watches are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchState {
    /// Those without a verdict.
    Active,
    /// Those with one.
    Finished,
}

/// Which watches to list. Those that fit every part are.
#[derive(Debug, Clone, Default)]
pub struct WatchFilter {
    /// Active or finished.
    pub state: Option<WatchState>,
    /// Finished with this verdict.
    pub verdict: Option<Verdict>,
    /// Carrying all of these labels.
    pub labels: Labels,
    /// Those after this one, in the order of the list: by time of adding, then by ID.
    pub after: Option<(Timestamp, RunId)>,
}

/// Some of a list.
#[derive(Debug, Clone)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Whether there are further ones.
    pub more: bool,
}

/// A watch as it is stored. Of an active one, the number of polls and the last error are as old as its
/// last change.
#[derive(Debug, Clone)]
pub struct WatchRecord {
    /// The watch.
    pub watch: Watch,
    /// The status last seen.
    pub status: Option<Status>,
    /// How many polls were made.
    pub polls: u64,
    /// Since when every answer was 404.
    pub missing_since: Option<Timestamp>,
    /// The last poll that failed.
    pub last_error: Option<PollFailure>,
    /// The verdict and when it was given.
    pub verdict: Option<(Verdict, Timestamp)>,
}

/// An event as the list of a watch shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happening {
    /// Its number.
    pub seq: i64,
    /// Its type.
    pub event_type: EventType,
    /// When it was observed.
    pub at: Timestamp,
}

/// One attempt of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRecord {
    /// Its number, from 1.
    pub attempt: u32,
    /// When it began.
    pub at: Timestamp,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// Whether it arrived.
    pub delivered: bool,
    /// What the receiver said, or what went wrong.
    pub detail: String,
}

/// Everything that is stored about one watch.
#[derive(Debug, Clone)]
pub struct History {
    /// The watch.
    pub record: WatchRecord,
    /// Its status changes, in order.
    pub changes: Vec<StatusChange>,
    /// Its events, in order.
    pub events: Vec<Happening>,
    /// Its deliveries with their attempts, in order.
    pub deliveries: Vec<(DeliverySummary, Vec<AttemptRecord>)>,
    /// The event that told its verdict.
    pub verdict_event: Option<Event>,
}

/// Which deliveries to list. Those that fit every part are.
#[derive(Debug, Clone, Default)]
pub struct DeliveryFilter {
    /// In one of these states; none means all.
    pub states: Vec<DeliveryState>,
    /// Of this sink.
    pub sink: Option<SinkName>,
    /// Those after this one; deliveries are listed in the order of their IDs, which is that of time.
    pub after: Option<DeliveryId>,
}

/// How much there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Active watches.
    pub active: u64,
    /// Deliveries that are waiting or being sent.
    pub pending: u64,
    /// Deliveries that were given up.
    pub dead: u64,
}

impl Store {
    /// Up to `limit` watches.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn watches(&self, filter: WatchFilter, limit: u32) -> Result<Page<WatchRecord>, StoreError> {
        self.call(Wakes::default(), move |db| {
            let labels = serde_json::to_string(&filter.labels).map_err(|error| unreadable("labels", &error))?;
            let (after_at, after_id) = match &filter.after {
                Some((at, id)) => (at.as_millisecond(), id.as_str()),
                None => (i64::MIN, ""),
            };
            let mut statement = db.prepare_cached(
                "SELECT *, NULL AS changed_at FROM watches w
                 WHERE (added_at, run_id) > (:after_at, :after_id)
                   AND (:active IS NULL OR :active = (verdict IS NULL))
                   AND (:verdict IS NULL OR verdict = :verdict)
                   AND NOT EXISTS (SELECT 1 FROM json_each(:labels) wanted WHERE NOT EXISTS (
                       SELECT 1 FROM json_each(w.labels) have WHERE have.key = wanted.key AND have.value = wanted.value))
                 ORDER BY added_at, run_id LIMIT :limit + 1",
            )?;
            let mut rows = statement.query(named_params! {
                ":after_at": after_at,
                ":after_id": after_id,
                ":active": filter.state.map(|state| state == WatchState::Active),
                ":verdict": filter.verdict.map(Verdict::as_str),
                ":labels": labels,
                ":limit": limit,
            })?;
            let mut items = Vec::new();
            while let Some(row) = rows.next()? {
                items.push(read_record(row)?);
            }
            Ok(page(items, limit))
        })
        .await
    }

    /// Everything about the watch of one run, if there is one.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn history(&self, run_id: RunId) -> Result<Option<History>, StoreError> {
        self.call(Wakes::default(), move |db| {
            let mut statement = db.prepare_cached("SELECT *, NULL AS changed_at FROM watches WHERE run_id = ?")?;
            let mut rows = statement.query([run_id.as_str()])?;
            let Some(row) = rows.next()? else { return Ok(None) };
            let record = read_record(row)?;
            let verdict_event = match record.verdict {
                Some((verdict, _)) => read_event(db, &run_id, verdict.event_type())?,
                None => None,
            };
            let mut deliveries = Vec::new();
            for delivery in read_deliveries_of(db, &run_id)? {
                let attempts = read_attempts(db, &delivery.id)?;
                deliveries.push((delivery, attempts));
            }
            let (changes, events) = (read_changes(db, &run_id)?, read_happenings(db, &run_id)?);
            Ok(Some(History { record, changes, events, deliveries, verdict_event }))
        })
        .await
    }

    /// Up to `limit` deliveries.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn deliveries(&self, filter: DeliveryFilter, limit: u32) -> Result<Page<DeliverySummary>, StoreError> {
        self.call(Wakes::default(), move |db| {
            let words: Vec<_> = filter.states.iter().map(|state| state.as_str()).collect();
            let words = serde_json::to_string(&words).map_err(|error| unreadable("states", &error))?;
            let mut statement = db.prepare_cached(
                "SELECT d.id, d.sink, e.run_id, e.type, d.state, d.attempts, d.next_attempt_at,
                        (SELECT detail FROM attempts a WHERE a.delivery_id = d.id ORDER BY attempt DESC LIMIT 1),
                        d.created_at, d.ended_at
                 FROM deliveries d JOIN events e ON e.seq = d.event_seq
                 WHERE d.id > :after AND (:sink IS NULL OR d.sink = :sink)
                   AND (:states = '[]' OR d.state IN (SELECT value FROM json_each(:states)))
                 ORDER BY d.id LIMIT :limit + 1",
            )?;
            let mut rows = statement.query(named_params! {
                ":after": filter.after.as_ref().map_or("", DeliveryId::as_str),
                ":sink": filter.sink.as_ref().map(SinkName::as_str),
                ":states": words,
                ":limit": limit,
            })?;
            let mut items = Vec::new();
            while let Some(row) = rows.next()? {
                items.push(read_delivery(row)?);
            }
            Ok(page(items, limit))
        })
        .await
    }

    /// How much there is.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn counts(&self) -> Result<Counts, StoreError> {
        self.call(Wakes::default(), |db| {
            let count = |sql| -> Result<u64, StoreError> {
                Ok(db.prepare_cached(sql)?.query_row([], |row| row.get::<_, i64>(0))?.cast_unsigned())
            };
            Ok(Counts {
                active: count("SELECT count(*) FROM watches WHERE verdict IS NULL")?,
                pending: count(
                    "SELECT count(*) FROM deliveries WHERE state != 'delivered' AND state IN ('pending', 'sending')",
                )?,
                dead: count("SELECT count(*) FROM deliveries WHERE state != 'delivered' AND state = 'dead'")?,
            })
        })
        .await
    }

    /// The number of the newest event; 0 when there is none.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn newest_event(&self) -> Result<i64, StoreError> {
        self.call(Wakes::default(), |db| {
            // Pruning may have taken the newest away; its number is not given again.
            let last: Option<i64> = db
                .prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = 'events'")?
                .query_row([], |row| row.get(0))
                .optional()?;
            Ok(last.unwrap_or(0))
        })
        .await
    }

    /// The sinks that open deliveries are for, each with how many there are.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn sinks_with_open_deliveries(&self) -> Result<Vec<(SinkName, u64)>, StoreError> {
        self.call(Wakes::default(), |db| {
            let mut statement = db.prepare_cached(
                "SELECT sink, count(*) FROM deliveries WHERE state != 'delivered' AND state IN ('pending', 'sending')
                 GROUP BY sink",
            )?;
            let mut rows = statement.query([])?;
            let mut sinks = Vec::new();
            while let Some(row) = rows.next()? {
                sinks.push((read_id(row, 0, SinkName::new)?, row.get::<_, i64>(1)?.cast_unsigned()));
            }
            Ok(sinks)
        })
        .await
    }
}

fn page<T>(mut items: Vec<T>, limit: u32) -> Page<T> {
    let more = items.len() > limit as usize;
    items.truncate(limit as usize);
    Page { items, more }
}

fn read_record(row: &Row<'_>) -> Result<WatchRecord, StoreError> {
    let stored = read_watch(row, Timestamp::UNIX_EPOCH)?;
    let verdict_at = row.get::<_, Option<i64>>("verdict_at")?.map(read_time).transpose()?;
    let failed_at = row.get::<_, Option<i64>>("last_error_at")?.map(read_time).transpose()?;
    Ok(WatchRecord {
        watch: stored.watch,
        status: stored.progress.status,
        polls: stored.progress.polls,
        missing_since: stored.progress.missing_since,
        last_error: row
            .get::<_, Option<String>>("last_error")?
            .zip(failed_at)
            .map(|(message, at)| PollFailure { at, message }),
        verdict: stored.progress.verdict.zip(verdict_at),
    })
}

fn read_event(db: &Connection, run_id: &RunId, event_type: EventType) -> Result<Option<Event>, StoreError> {
    let body: Option<String> = db
        .prepare_cached("SELECT body FROM events WHERE run_id = ? AND type = ? ORDER BY seq DESC LIMIT 1")?
        .query_row(params![run_id.as_str(), event_type.as_str()], |row| row.get(0))
        .optional()?;
    body.map(|body| Event::from_json(&body).map_err(|error| unreadable("an event", &error))).transpose()
}

fn read_changes(db: &Connection, run_id: &RunId) -> Result<Vec<StatusChange>, StoreError> {
    let mut statement =
        db.prepare_cached("SELECT seq, at, status FROM status_changes WHERE run_id = ? ORDER BY seq")?;
    let mut rows = statement.query([run_id.as_str()])?;
    let mut changes = Vec::new();
    while let Some(row) = rows.next()? {
        changes.push(StatusChange {
            seq: row.get(0)?,
            run_id: run_id.clone(),
            at: read_time(row.get(1)?)?,
            status: Status::from_api(&row.get::<_, String>(2)?),
        });
    }
    Ok(changes)
}

fn read_happenings(db: &Connection, run_id: &RunId) -> Result<Vec<Happening>, StoreError> {
    let mut statement = db.prepare_cached("SELECT seq, type, at FROM events WHERE run_id = ? ORDER BY seq")?;
    let mut rows = statement.query([run_id.as_str()])?;
    let mut events = Vec::new();
    while let Some(row) = rows.next()? {
        let word: String = row.get(1)?;
        let event_type = EventType::from_word(&word).ok_or_else(|| unreadable("an event type", &word))?;
        events.push(Happening { seq: row.get(0)?, event_type, at: read_time(row.get(2)?)? });
    }
    Ok(events)
}

fn read_deliveries_of(db: &Connection, run_id: &RunId) -> Result<Vec<DeliverySummary>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT d.id, d.sink, e.run_id, e.type, d.state, d.attempts, d.next_attempt_at,
                (SELECT detail FROM attempts a WHERE a.delivery_id = d.id ORDER BY attempt DESC LIMIT 1),
                d.created_at, d.ended_at
         FROM events e JOIN deliveries d ON d.event_seq = e.seq WHERE e.run_id = ? ORDER BY d.id",
    )?;
    let mut rows = statement.query([run_id.as_str()])?;
    let mut deliveries = Vec::new();
    while let Some(row) = rows.next()? {
        deliveries.push(read_delivery(row)?);
    }
    Ok(deliveries)
}

fn read_attempts(db: &Connection, id: &DeliveryId) -> Result<Vec<AttemptRecord>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT attempt, at, took_ms, delivered, detail FROM attempts WHERE delivery_id = ? ORDER BY attempt",
    )?;
    let mut rows = statement.query([id.as_str()])?;
    let mut attempts = Vec::new();
    while let Some(row) = rows.next()? {
        attempts.push(AttemptRecord {
            attempt: row.get(0)?,
            at: read_time(row.get(1)?)?,
            took_ms: row.get::<_, i64>(2)?.cast_unsigned(),
            delivered: row.get(3)?,
            detail: row.get(4)?,
        });
    }
    Ok(attempts)
}
