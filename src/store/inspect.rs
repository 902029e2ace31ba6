//! What is read for people: lists, histories, counts.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, named_params, params};

use super::queries::{
    payloads, read_all, read_change, read_delivery, read_event, read_id, read_time, read_watch,
    stepped, unreadable,
};
use super::{DeliveryState, DeliverySummary, PollFailure, StatusChange, Store, StoreError};
use crate::domain::{
    DeliveryId, Event, EventType, FoundBy, RunId, SinkName, Status, Verdict, Watch,
};
use crate::metrics::StoreGauges;

/// Which watches are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchState {
    /// Those without a verdict.
    Active,
    /// Those with one.
    Finished,
}

impl WatchState {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Active, Self::Finished];

    /// The word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Finished => "finished",
        }
    }

    /// Reads the word of [`WatchState::as_str`].
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

/// Which watches to list. Those that fit every part are.
#[derive(Debug, Clone, Default)]
pub struct WatchFilter {
    /// Active or finished.
    pub state: Option<WatchState>,
    /// Finished with this verdict.
    pub verdict: Option<Verdict>,
    /// Carrying all of these labels, each a key and a value.
    pub labels: Vec<(String, String)>,
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
    /// What had the run asked for when the verdict was found; not known of those of earlier versions.
    pub found_by: Option<FoundBy>,
}

impl WatchRecord {
    /// Of a watch that was just added.
    pub fn new(watch: Watch) -> Self {
        Self {
            watch,
            status: None,
            polls: 0,
            missing_since: None,
            last_error: None,
            verdict: None,
            found_by: None,
        }
    }
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

/// The columns that [`read_record`] reads: all but what can be large.
const RECORD_COLUMNS: &str = "id, run_id, name, labels, sinks, added_at, deadline_at, status, polls, missing_since,
    seen_running, overdue_told, last_error, last_error_at, verdict, verdict_at, found_by, NULL AS changed_at";

/// The newest watch of a run, with [`RECORD_COLUMNS`] in place of `{}`.
const NEWEST_RECORD: &str = "SELECT {} FROM watches WHERE run_id = ? ORDER BY id DESC LIMIT 1";

/// How many rows of a kind there are.
const TOTAL: &str = "SELECT coalesce(sum(total), 0) FROM totals WHERE what = ?";

/// When the oldest delivery was made that has not arrived and was not given up.
const OLDEST_OPEN: &str =
    "SELECT min(created_at) FROM deliveries WHERE state IN ('pending', 'sending')";

/// The columns that [`read_delivery`] reads, and where from.
macro_rules! select_deliveries {
    () => {
        concat!(
            "SELECT d.id, d.sink, e.run_id, e.type, d.state, d.attempts, d.next_attempt_at + ",
            stepped!(),
            ", (SELECT detail FROM attempts a WHERE a.delivery_id = d.id ORDER BY attempt DESC LIMIT 1),
                d.created_at, d.ended_at
         FROM deliveries d JOIN events e ON e.seq = d.event_seq"
        )
    };
}

impl Store {
    /// Up to `limit` watches.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn watches(
        &self,
        filter: WatchFilter,
        limit: u32,
    ) -> Result<Page<WatchRecord>, StoreError> {
        self.inspect(move |db| {
            let labels = serde_json::to_string(&filter.labels)
                .map_err(|error| unreadable("labels", &error))?;
            let (after_at, after_id) = match &filter.after {
                Some((at, id)) => (at.as_millisecond(), id.as_str()),
                None => (i64::MIN, ""),
            };
            let Some(sql) = watches_sql(filter.state, filter.verdict) else {
                return Ok(page(Vec::new(), limit));
            };
            let parameters = named_params! {
                ":after_at": after_at,
                ":after_id": after_id,
                ":verdict": filter.verdict.map(Verdict::as_str),
                ":labels": labels,
                ":limit": limit,
            };
            let items = read_all(db, &sql, parameters, read_record)?;
            Ok(page(items, limit))
        })
        .await
    }

    /// The newest watch of a run, if there is one, without its history.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn watch(&self, run_id: RunId) -> Result<Option<WatchRecord>, StoreError> {
        self.inspect(move |db| Ok(newest_record(db, &run_id)?.map(|(_, record)| record)))
            .await
    }

    /// Everything about the newest watch of a run, if there is one.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn history(&self, run_id: RunId) -> Result<Option<History>, StoreError> {
        self.inspect(move |db| {
            let Some((id, record)) = newest_record(db, &run_id)? else { return Ok(None) };
            let verdict_event = match record.verdict {
                Some((verdict, _)) => {
                    let sql =
                        concat!("SELECT body, ", payloads!("e"), " FROM events e WHERE watch_id = ? AND type = ?");
                    let parameters = params![id, verdict.event_type().as_str()];
                    read_all(db, sql, parameters, |row| read_event(row, 0))?.pop()
                }
                None => None,
            };
            let sql = "SELECT c.seq, w.run_id, c.at, c.status FROM status_changes c JOIN watches w ON w.id = c.watch_id
                       WHERE c.watch_id = ? ORDER BY c.seq";
            let changes = read_all(db, sql, [id], read_change)?;
            let sql = concat!(select_deliveries!(), " WHERE e.watch_id = ? ORDER BY d.id");
            let with_attempts = |row: &Row<'_>| {
                let delivery = read_delivery(row)?;
                let sql = "SELECT attempt, at, took_ms, delivered, detail FROM attempts WHERE delivery_id = ?
                           ORDER BY attempt";
                let attempts = read_all(db, sql, [delivery.id.as_str()], read_attempt)?;
                Ok((delivery, attempts))
            };
            let deliveries = read_all(db, sql, [id], with_attempts)?;
            Ok(Some(History { record, changes, deliveries, verdict_event }))
        })
        .await
    }

    /// Up to `limit` deliveries.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn deliveries(
        &self,
        filter: DeliveryFilter,
        limit: u32,
    ) -> Result<Page<DeliverySummary>, StoreError> {
        self.inspect(move |db| {
            let words: Vec<_> = filter.states.iter().map(|state| state.as_str()).collect();
            let words =
                serde_json::to_string(&words).map_err(|error| unreadable("states", &error))?;
            let sql = deliveries_sql(&filter);
            let parameters = named_params! {
                ":after": filter.after.as_ref().map_or("", DeliveryId::as_str),
                ":sink": filter.sink.as_ref().map(SinkName::as_str),
                ":states": words,
                ":limit": limit,
            };
            let items = read_all(db, sql, parameters, read_delivery)?;
            Ok(page(items, limit))
        })
        .await
    }

    /// How much there is.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn counts(&self) -> Result<Counts, StoreError> {
        self.inspect(|db| {
            let pending = total(db, "pending")? + total(db, "sending")?;
            Ok(Counts {
                active: total(db, "active")?,
                pending,
                dead: total(db, "dead")?,
            })
        })
        .await
    }

    /// What metrics tell of the store: `now` and the configured `sinks`, each of which is told of.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn gauges(
        &self,
        now: Timestamp,
        sinks: Vec<SinkName>,
    ) -> Result<StoreGauges, StoreError> {
        self.inspect(move |db| {
            let sql = "SELECT sink, coalesce(sum(total) FILTER (WHERE what != 'dead'), 0),
                           coalesce(sum(total) FILTER (WHERE what = 'dead'), 0)
                       FROM totals WHERE what IN ('pending', 'sending', 'dead') GROUP BY sink HAVING sum(total) > 0";
            let mut deliveries = read_all(db, sql, [], |row| {
                let count = |index| row.get::<_, i64>(index).map(i64::cast_unsigned);
                Ok((read_id(row, 0, SinkName::new)?, count(1)?, count(2)?))
            })?;
            let absent = |name: &SinkName| !deliveries.iter().any(|(sink, ..)| sink == name);
            let absent: Vec<_> = sinks.into_iter().filter(absent).collect();
            deliveries.extend(absent.into_iter().map(|sink| (sink, 0, 0)));
            let oldest: Option<i64> = db.prepare_cached(OLDEST_OPEN)?.query_row([], |row| row.get(0))?;
            let age = oldest.map(read_time).transpose()?.map(|oldest| now.duration_since(oldest));
            Ok(StoreGauges {
                active: total(db, "active")?,
                finished: Verdict::WORST_FIRST
                    .into_iter()
                    .map(|verdict| total(db, verdict.as_str()))
                    .sum::<Result<_, _>>()?,
                deliveries,
                oldest_pending: age.map(|age| Duration::try_from(age).unwrap_or_default()),
            })
        })
        .await
    }

    /// The newest event about the API, if one is kept.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn newest_provider_event(&self) -> Result<Option<Event>, StoreError> {
        self.inspect(|db| {
            let types = [EventType::ApiUnreachable, EventType::ApiUnauthorized, EventType::ApiRecovered];
            // By number: the clock may have been set back. The sign keeps SQLite from walking through all events.
            let sql =
                "SELECT body, NULL, NULL FROM events WHERE watch_id IS NULL AND type IN (?, ?, ?) ORDER BY +seq DESC LIMIT 1";
            Ok(read_all(db, sql, types.map(EventType::as_str), |row| read_event(row, 0))?.pop())
        })
        .await
    }

    /// The number of the newest event; 0 when there is none.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn newest_event(&self) -> Result<i64, StoreError> {
        self.inspect(|db| {
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
        self.inspect(|db| {
            let sql = "SELECT sink, sum(total) FROM totals WHERE what IN ('pending', 'sending')
                       GROUP BY sink HAVING sum(total) > 0";
            read_all(db, sql, [], |row| {
                Ok((
                    read_id(row, 0, SinkName::new)?,
                    row.get::<_, i64>(1)?.cast_unsigned(),
                ))
            })
        })
        .await
    }
}

/// The statement that lists watches. Each question has one of its own, because each has an index of its own. `None`
/// where there can be none.
fn watches_sql(state: Option<WatchState>, verdict: Option<Verdict>) -> Option<String> {
    let which = match (state, verdict) {
        (None, None) => "(added_at, run_id) > (:after_at, :after_id) AND :verdict IS NULL",
        (Some(WatchState::Active), None) => {
            "verdict IS NULL AND (added_at, run_id) > (:after_at, :after_id) AND :verdict IS NULL"
        }
        (Some(WatchState::Finished), None) => {
            "verdict IS NOT NULL AND (added_at, run_id) > (:after_at, :after_id) AND :verdict IS NULL"
        }
        (None | Some(WatchState::Finished), Some(_)) => {
            "verdict IS NOT NULL AND verdict = :verdict AND (added_at, run_id) > (:after_at, :after_id)"
        }
        (Some(WatchState::Active), Some(_)) => return None,
    };
    Some(format!(
        "SELECT {RECORD_COLUMNS} FROM watches w WHERE {which}
           AND NOT EXISTS (SELECT 1 FROM json_each(:labels) wanted WHERE NOT EXISTS (
               SELECT 1 FROM json_each(w.labels) have WHERE have.key = wanted.value ->> 0 AND have.value = wanted.value ->> 1))
         ORDER BY added_at, run_id LIMIT :limit + 1"
    ))
}

/// The statement that lists deliveries.
fn deliveries_sql(filter: &DeliveryFilter) -> &'static str {
    // Those that are not delivered are few among many, and have an index of their own.
    let delivered = filter.states.is_empty() || filter.states.contains(&DeliveryState::Delivered);
    match (&filter.sink, delivered) {
        (Some(_), _) => concat!(
            select_deliveries!(),
            " WHERE d.sink = :sink AND d.id > :after
                        AND (:states = '[]' OR d.state IN (SELECT value FROM json_each(:states)))
                      ORDER BY d.id LIMIT :limit + 1"
        ),
        (None, false) => concat!(
            select_deliveries!(),
            " WHERE d.state != 'delivered' AND d.id > :after AND :sink IS NULL
                        AND d.state IN (SELECT value FROM json_each(:states))
                      ORDER BY d.id LIMIT :limit + 1"
        ),
        (None, true) => concat!(
            select_deliveries!(),
            " WHERE d.id > :after AND :sink IS NULL
                        AND (:states = '[]' OR d.state IN (SELECT value FROM json_each(:states)))
                      ORDER BY d.id LIMIT :limit + 1"
        ),
    }
}

fn page<T>(mut items: Vec<T>, limit: u32) -> Page<T> {
    let more = items.len() > limit as usize;
    items.truncate(limit as usize);
    Page { items, more }
}

/// The verdicts there are, each once, the worst first.
pub(super) fn verdicts(db: &Connection) -> Result<Vec<Verdict>, StoreError> {
    let given =
        Verdict::WORST_FIRST
            .into_iter()
            .filter_map(|verdict| match total(db, verdict.as_str()) {
                Ok(0) => None,
                Ok(_) => Some(Ok(verdict)),
                Err(error) => Some(Err(error)),
            });
    given.collect()
}

/// How many watches are active or have a verdict, or how many deliveries are in a state: kept by triggers, so that it
/// takes no longer the more is stored.
fn total(db: &Connection, what: &str) -> Result<u64, StoreError> {
    Ok(db
        .prepare_cached(TOTAL)?
        .query_row([what], |row| row.get::<_, i64>(0))?
        .cast_unsigned())
}

/// The newest watch of a run with its number.
fn newest_record(
    db: &Connection,
    run_id: &RunId,
) -> Result<Option<(i64, WatchRecord)>, StoreError> {
    let sql = NEWEST_RECORD.replace("{}", RECORD_COLUMNS);
    Ok(read_all(db, &sql, [run_id.as_str()], |row| {
        Ok((row.get("id")?, read_record(row)?))
    })?
    .pop())
}

fn read_record(row: &Row<'_>) -> Result<WatchRecord, StoreError> {
    let stored = read_watch(row, Timestamp::UNIX_EPOCH)?;
    let verdict_at = row
        .get::<_, Option<i64>>("verdict_at")?
        .map(read_time)
        .transpose()?;
    let found_by: Option<String> = row.get("found_by")?;
    let failed_at = row
        .get::<_, Option<i64>>("last_error_at")?
        .map(read_time)
        .transpose()?;
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
        found_by: found_by
            .map(|word| {
                FoundBy::from_word(&word).ok_or_else(|| unreadable("a way of finding", &word))
            })
            .transpose()?,
    })
}

fn read_attempt(row: &Row<'_>) -> Result<AttemptRecord, StoreError> {
    Ok(AttemptRecord {
        attempt: row.get(0)?,
        at: read_time(row.get(1)?)?,
        took_ms: row.get::<_, i64>(2)?.cast_unsigned(),
        delivered: row.get(3)?,
        detail: row.get(4)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{prepare, queries};

    /// How SQLite answers a statement, a line for each table.
    fn plan(db: &Connection, sql: &str) -> Vec<String> {
        let mut statement = db.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let (mut steps, mut details) = (statement.raw_query(), Vec::new());
        while let Some(step) = steps.next().unwrap() {
            details.push(step.get("detail").unwrap());
        }
        details
    }

    #[test]
    fn no_question_reads_all_that_is_stored() {
        let db = prepare(Connection::open_in_memory().unwrap()).unwrap();
        let failed = Some(Verdict::Failed);
        let by = |states: &[DeliveryState], sink: Option<&str>| {
            let sink = sink.map(|name| SinkName::new(name).unwrap());
            deliveries_sql(&DeliveryFilter {
                states: states.to_vec(),
                sink,
                after: None,
            })
            .to_owned()
        };
        let questions = [
            (watches_sql(None, None).unwrap(), "watches_by_age"),
            (
                watches_sql(Some(WatchState::Active), None).unwrap(),
                "active_watches_by_age",
            ),
            (
                watches_sql(Some(WatchState::Finished), None).unwrap(),
                "finished_watches_by_age",
            ),
            (watches_sql(None, failed).unwrap(), "watches_by_verdict"),
            (
                watches_sql(Some(WatchState::Finished), failed).unwrap(),
                "watches_by_verdict",
            ),
            (
                NEWEST_RECORD.replace("{}", RECORD_COLUMNS),
                "watches_of_run",
            ),
            (by(&[], None), "PRIMARY KEY"),
            (
                by(&[DeliveryState::Dead, DeliveryState::Pending], None),
                "undelivered",
            ),
            (by(&[], Some("ops")), "deliveries_to_sink"),
            (TOTAL.to_owned(), "PRIMARY KEY"),
            (OLDEST_OPEN.to_owned(), "open_deliveries_by_age"),
            (queries::EVENTS_AFTER.to_owned(), "INTEGER PRIMARY KEY"),
            (queries::DUE.to_owned(), "deliveries_by_turn"),
            (queries::NEXT_DUE.to_owned(), "deliveries_by_turn"),
        ];
        for (sql, index) in questions {
            let plan = plan(&db, &sql);
            let table = plan
                .iter()
                .find(|step| !step.contains("json_each"))
                .unwrap();
            assert!(
                table.starts_with("SEARCH") && table.contains(index),
                "{index}: {plan:?}\n{sql}"
            );
            let sorted = plan
                .iter()
                .any(|step| step.contains("TEMP B-TREE FOR ORDER BY"));
            assert!(!sorted, "{plan:?}\n{sql}");
        }
    }
}
