//! Watches with their status changes and the details of their runs.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, named_params, params};

use super::deliveries;
use super::durations;
use super::events::{insert_event, read_event, read_payload, set_apart};
use super::groups;
use super::rows::{payloads, read_all, stepped};
use super::writer::Execute;
use crate::domain::{RunDetails, RunRef, Status, TraceContext, Verdict, Watch, WatchOrigin};
use crate::failpoint::mutant;
use crate::store::lists::{watches_after, watches_where};
use crate::store::model::{
    Added, History, RoutedEvent, StatusChange, StoreError, StoredWatch, WatchId, WatchOrder,
    WatchRecord, WatchState,
};
use crate::store::operations::{
    ActiveWatches, ActiveWatchesOf, AddConfiguredWatch, AddWatch, Details, KeepConfiguredWatches,
    MoveClock, NewestWatch, ProbeWrite, RecordStep, RemoveWatches, SetDeadlines,
    StatusChangesAfter, WatchHistory, Watches,
};
use crate::store::records::{
    ChangeRow, KEPT_CHANGES, OpenDelivery, REMOVABLE, RecordRow, WatchRow, from_json, open_group,
    page, past_duration, storable, to_json,
};

/// The columns that [`read_record`] reads: all that cannot be large.
pub(super) const RECORD_COLUMNS: &str = "id, run_id, name, labels, sinks, added_at, deadline_at, status, state, polls, missing_since,
    seen_running, overdue_told, last_error, last_error_at, verdict, verdict_at, found_by, origin, run_group, started_at, trace, NULL AS changed_at";

/// The watches that are followed, with the columns that [`read_watch`] reads.
macro_rules! select_active {
    () => {
        "SELECT id, run_id, name, labels, sinks, added_at, deadline_at, status, state, polls, missing_since,
             seen_running, overdue_told, verdict, trace,
             (SELECT at FROM status_changes s WHERE s.watch_id = w.id ORDER BY seq DESC LIMIT 1) AS changed_at
         FROM watches w WHERE verdict IS NULL"
    };
}

/// The active watches of some runs, given as a JSON array.
pub(super) const ACTIVE_OF: &str = concat!(
    select_active!(),
    " AND run_id IN (SELECT value FROM json_each(?)) ORDER BY run_id"
);

/// The newest watch of a run, with [`RECORD_COLUMNS`] in place of `{}`.
pub(super) const NEWEST_RECORD: &str =
    "SELECT {} FROM watches WHERE run_id = ? ORDER BY id DESC LIMIT 1";

impl Execute for AddWatch {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        match newest_watch(db, &self.watch.run_id)? {
            Some((id, finished)) if !(finished && self.again) => Ok((Added::AlreadyExists, id)),
            Some(_) | None => insert_watch(db, &self.watch, &WatchOrigin::Request),
        }
    }
}

impl Execute for AddConfiguredWatch {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self { watch } = self;
        let first = db
            .prepare_cached(
                "INSERT INTO configured_watches (run_id) VALUES (?) ON CONFLICT DO NOTHING",
            )?
            .execute([watch.run_id.as_str()])?;
        match newest_watch(db, &watch.run_id)? {
            Some((id, _)) => Ok((Added::AlreadyExists, Some(id))),
            None if first == 1 => {
                let (added, id) = insert_watch(db, &watch, &WatchOrigin::Configuration)?;
                Ok((added, Some(id)))
            }
            None => Ok((Added::AlreadyExists, None)),
        }
    }
}

impl Execute for KeepConfiguredWatches {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self { run_ids } = self;
        let run_ids = to_json("run IDs", &run_ids)?;
        db.prepare_cached(
            "DELETE FROM configured_watches WHERE run_id NOT IN (SELECT value FROM json_each(?))",
        )?
        .execute([run_ids])?;
        Ok(())
    }
}

impl Execute for ProbeWrite {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        // No run has this ID.
        let watch =
            "INSERT INTO watches (run_id, labels, added_at, deadline_at) VALUES ('.', '{}', 0, 0)";
        db.prepare_cached(watch)?.execute([])?;
        db.prepare_cached("DELETE FROM watches WHERE run_id = '.'")?
            .execute([])?;
        Ok(())
    }
}

impl Execute for RemoveWatches {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self { run_id, force } = self;
        if !force && let Some(what) = open_delivery(db, &run_id)? {
            return Err(StoreError::Precondition {
                what,
                wanted: REMOVABLE,
            });
        }
        groups::leave(db, &run_id)?;
        let delete = "DELETE FROM watches WHERE run_id = ? RETURNING id";
        read_all(db, delete, [run_id.as_str()], |row| {
            Ok(WatchId(row.get(0)?))
        })
    }
}

impl Execute for ActiveWatches {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self { now, after, limit } = self;
        let sql = concat!(
            select_active!(),
            " AND (added_at, run_id) > (?, ?) ORDER BY added_at, run_id LIMIT ?"
        );
        let (at, run_id) = match &after {
            Some((at, run_id)) => (at.as_millisecond(), run_id.as_str()),
            None => (i64::MIN, ""),
        };
        read_all(db, sql, params![at, run_id, limit], |row| {
            read_stored(row, now)
        })
    }
}

impl Execute for ActiveWatchesOf {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self { now, run_ids } = self;
        let run_ids = to_json("run IDs", &run_ids)?;
        read_all(db, ACTIVE_OF, [run_ids], |row| read_stored(row, now))
    }
}

impl Execute for Details {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self { watch } = self;
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
    }
}

impl Execute for RecordStep {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self {
            watch,
            step,
            routed,
            last_error,
            found_by,
            now,
        } = self;
        let watch = target(db, watch, &routed);
        let past_run = past_duration(&step);
        let mut next = step.progress;
        let status = next.status.clone();
        let rows = db
                .prepare_cached(
                    "UPDATE watches SET status = :status, state = :state, polls = :polls, missing_since = :missing_since,
                        seen_running = :seen_running, overdue_told = :overdue_told,
                        last_error = coalesce(:last_error, last_error),
                        last_error_at = coalesce(:last_error_at, last_error_at), verdict = :verdict, verdict_at = :verdict_at,
                        found_by = :found_by
                     WHERE id = :id AND verdict IS NULL",
                )?
                .execute(named_params! {
                    ":status": status.as_ref().map(|status| storable(status.as_str())),
                    ":state": status.as_ref().map(|status| status.state().as_str()),
                    ":polls": next.polls.cast_signed(),
                    ":missing_since": next.missing_since.map(Timestamp::as_millisecond),
                    ":seen_running": next.seen_running,
                    ":overdue_told": next.overdue_told,
                    ":last_error": last_error.as_ref().map(|failure| storable(&failure.message)),
                    ":last_error_at": last_error.as_ref().map(|failure| failure.at.as_millisecond()),
                    ":verdict": next.verdict.map(Verdict::as_str),
                    ":verdict_at": next.verdict.map(|_| now.as_millisecond()),
                    ":found_by": next.verdict.map(|_| found_by.as_str()),
                    ":id": watch.0,
                })?;
        if rows != 1 {
            return Err(StoreError::Precondition {
                what: format!("watch {}", watch.0),
                wanted: "active",
            });
        }
        if let Some(status) = status.filter(|_| step.status_changed) {
            insert_change(db, watch, &status, now)?;
        }
        if let Some(run) = &past_run {
            durations::add(db, run, now)?;
        }
        routed
            .into_iter()
            .try_for_each(|routed| insert_event(db, Some(watch), routed, now))?;
        match &mut next.details {
            Some(details) => replace_details(db, watch, details),
            None => Ok(()),
        }
    }
}

/// The watch that a step is stored for: the one that took it.
fn target(db: &Connection, watch: WatchId, routed: &[RoutedEvent]) -> WatchId {
    let run = routed
        .first()
        .and_then(|routed| routed.event.run_id())
        .filter(|_| mutant("old-watch-ends-new"));
    let newest = run.map(|run| {
        let sql = "SELECT id FROM watches WHERE run_id = ? AND verdict IS NULL";
        db.query_row(sql, [run.as_str()], |row| row.get(0))
            .map(WatchId)
    });
    newest.and_then(Result::ok).unwrap_or(watch)
}

impl Execute for SetDeadlines {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        set_deadlines(db, &self.deadlines, self.now)
    }
}

impl Execute for MoveClock {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        set_deadlines(db, &self.deadlines, self.now)?;
        deliveries::keep_holds(db, self.milliseconds)?;
        db.prepare_cached("UPDATE clock SET stepped_ms = stepped_ms + ?")?
            .execute([self.milliseconds])?;
        Ok(())
    }
}

impl Execute for Watches {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self { filter, limit } = self;
        let labels = to_json("labels", &filter.labels)?;
        let (after_at, after_id) = watches_after(&filter);
        let Some(sql) = watches_sql(filter.state, filter.verdict, filter.order) else {
            return Ok(page(Vec::new(), limit));
        };
        let parameters = named_params! {
            "$1": after_at,
            "$2": after_id,
            "$3": filter.verdict.map(Verdict::as_str),
            "$4": labels,
            "$5": limit,
        };
        let items = read_all(db, &sql, parameters, read_record)?;
        Ok(page(items, limit))
    }
}

impl Execute for NewestWatch {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self { run_id } = self;
        Ok(newest_record(db, &run_id)?.map(|(_, record)| record))
    }
}

impl Execute for WatchHistory {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self { run_id } = self;
        let Some((id, record)) = newest_record(db, &run_id)? else {
            return Ok(None);
        };
        let verdict_event = match record.verdict {
            Some((verdict, _)) => {
                let sql = concat!(
                    "SELECT body, ",
                    payloads!("e"),
                    " FROM events e WHERE watch_id = ? AND type = ?"
                );
                let parameters = params![id, verdict.event_type().as_str()];
                read_all(db, sql, parameters, |row| read_event(row, 0))?.pop()
            }
            None => None,
        };
        let sql = "SELECT c.seq, w.run_id, c.at, c.status, c.state FROM status_changes c JOIN watches w ON w.id = c.watch_id
                       WHERE c.watch_id = ? ORDER BY c.seq";
        let changes = read_all(db, sql, [id], read_change)?;
        let deliveries = deliveries::of_watch(db, id)?;
        Ok(Some(History {
            record,
            changes,
            deliveries,
            verdict_event,
        }))
    }
}

impl Execute for StatusChangesAfter {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self { seq } = self;
        let sql = "SELECT c.seq, w.run_id, c.at, c.status, c.state FROM status_changes c JOIN watches w ON w.id = c.watch_id
                       WHERE c.seq > ? ORDER BY c.seq";
        read_all(db, sql, [seq], read_change)
    }
}

/// The newest watch of a run, and whether it is finished.
fn newest_watch(db: &Connection, run_id: &RunRef) -> Result<Option<(WatchId, bool)>, StoreError> {
    let newest =
        "SELECT id, verdict IS NOT NULL FROM watches WHERE run_id = ? ORDER BY id DESC LIMIT 1";
    let read = |row: &Row<'_>| Ok((WatchId(row.get(0)?), row.get(1)?));
    Ok(db
        .prepare_cached(newest)?
        .query_row([run_id.as_str()], read)
        .optional()?)
}

/// Describes what is still to be delivered about a run that has its verdict: the delivery that is due first, and how
/// many others there are; `None` if there is nothing.
fn open_delivery(db: &Connection, run_id: &RunRef) -> Result<Option<String>, StoreError> {
    let select = concat!(
        "SELECT d.id, e.type, d.sink, d.state = 'pending', d.next_attempt_at + ",
        stepped!(),
        ", count(*) OVER () - 1
             FROM watches w JOIN events e ON e.watch_id = w.id JOIN deliveries d ON d.event_seq = e.seq
             WHERE w.run_id = ? AND w.verdict IS NOT NULL AND d.state IN ('pending', 'sending')
             ORDER BY d.next_attempt_at, d.id LIMIT 1"
    );
    let describe = |row: &Row<'_>| {
        let (id, event, sink): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let open = OpenDelivery {
            id: &id,
            event: &event,
            sink: &sink,
            is_sending: !row.get::<_, bool>(3)?,
            next_at: row.get(4)?,
            others: row.get(5)?,
        };
        open.describe()
    };
    if let Some(open) = read_all(db, select, [run_id.as_str()], describe)?.pop() {
        return Ok(Some(open));
    }
    let in_group = "SELECT group_name FROM watches
        WHERE run_id = ? AND verdict IS NOT NULL AND group_name IS NOT NULL AND group_done = 0 LIMIT 1";
    let group: Option<String> = db
        .prepare_cached(in_group)?
        .query_row([run_id.as_str()], |row| row.get(0))
        .optional()?;
    Ok(group.as_deref().map(open_group))
}

pub(super) fn insert_watch(
    db: &Connection,
    watch: &Watch,
    origin: &WatchOrigin,
) -> Result<(Added, WatchId), StoreError> {
    let sinks = watch
        .sinks
        .as_ref()
        .map(|sinks| to_json("sinks", sinks))
        .transpose()?;
    db.prepare_cached(
        "INSERT INTO watches (run_id, name, labels, sinks, added_at, deadline_at, origin, group_name, group_size, trace)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        watch.run_id.as_str(),
        watch.name.as_deref().map(storable),
        to_json("labels", &watch.labels)?,
        sinks,
        watch.added_at.as_millisecond(),
        watch.deadline_at.as_millisecond(),
        storable(&origin.to_string()),
        watch.group().map(storable),
        watch.group_size(),
        watch.trace.as_ref().map(TraceContext::as_str),
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
    status: &Status,
    now: Timestamp,
) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT INTO status_changes (watch_id, at, status, state) VALUES (?, ?, ?, ?)",
    )?
    .execute(params![
        watch.0,
        now.as_millisecond(),
        storable(status.as_str()),
        status.state().as_str()
    ])?;
    db.prepare_cached(
        "DELETE FROM status_changes WHERE watch_id = ?1 AND seq <= (
             SELECT seq FROM status_changes WHERE watch_id = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2)",
    )?
    .execute(params![watch.0, KEPT_CHANGES])?;
    Ok(())
}

/// Replaces the details of a run.
fn replace_details(
    db: &Connection,
    watch: WatchId,
    details: &mut RunDetails,
) -> Result<(), StoreError> {
    let input_id = set_apart(db, watch, &mut details.input)?;
    let output_id = set_apart(db, watch, &mut details.output)?;
    db.prepare_cached(
        "UPDATE watches SET details = ?, input_id = ?, output_id = ?, run_group = ?, started_at = ? WHERE id = ?",
    )?
    .execute(params![
        to_json("details", details)?,
        input_id,
        output_id,
        details.group.as_deref().map(storable),
        details.started_at.map(Timestamp::as_millisecond),
        watch.0
    ])?;
    // Values of an earlier observation that no event contains.
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

/// Returns the statement that lists watches. Each combination has a statement of its own, because
/// each has an index of its own. `None` when no watch can match.
pub(super) fn watches_sql(
    state: Option<WatchState>,
    verdict: Option<Verdict>,
    order: WatchOrder,
) -> Option<String> {
    let (which, by) = watches_where(state, verdict, order)?;
    Some(format!(
        "SELECT {RECORD_COLUMNS} FROM watches w WHERE {which}
           AND NOT EXISTS (SELECT 1 FROM json_each($4) wanted WHERE NOT EXISTS (
               SELECT 1 FROM json_each(w.labels) have WHERE have.key = wanted.value ->> 0 AND have.value = wanted.value ->> 1))
         ORDER BY {by} LIMIT $5 + 1"
    ))
}

/// The newest watch of a run with its number.
fn newest_record(
    db: &Connection,
    run_id: &RunRef,
) -> Result<Option<(i64, WatchRecord)>, StoreError> {
    let sql = NEWEST_RECORD.replace("{}", RECORD_COLUMNS);
    Ok(read_all(db, &sql, [run_id.as_str()], |row| {
        Ok((row.get("id")?, read_record(row)?))
    })?
    .pop())
}

fn read_watch(row: &Row<'_>) -> Result<WatchRow, rusqlite::Error> {
    Ok(WatchRow {
        id: row.get("id")?,
        run_id: row.get("run_id")?,
        name: row.get("name")?,
        labels: row.get("labels")?,
        sinks: row.get("sinks")?,
        added_at: row.get("added_at")?,
        deadline_at: row.get("deadline_at")?,
        status: row.get("status")?,
        state: row.get("state")?,
        polls: row.get("polls")?,
        missing_since: row.get("missing_since")?,
        seen_running: row.get("seen_running")?,
        overdue_told: row.get("overdue_told")?,
        verdict: row.get("verdict")?,
        trace: row.get("trace")?,
        changed_at: row.get("changed_at")?,
    })
}

/// Reads a watch that is taken up at `now`. It does not count as missing: there were no polls.
fn read_stored(row: &Row<'_>, now: Timestamp) -> Result<StoredWatch, StoreError> {
    let mut stored = read_watch(row)?.stored(now)?;
    stored.progress.missing_since = None;
    Ok(stored)
}

fn read_record(row: &Row<'_>) -> Result<WatchRecord, StoreError> {
    let columns = RecordRow {
        watch: read_watch(row)?,
        verdict_at: row.get("verdict_at")?,
        found_by: row.get("found_by")?,
        origin: row.get("origin")?,
        run_group: row.get("run_group")?,
        started_at: row.get("started_at")?,
        last_error: row.get("last_error")?,
        last_error_at: row.get("last_error_at")?,
    };
    columns.record()
}

/// Reads `seq, run_id, at, status, state`.
fn read_change(row: &Row<'_>) -> Result<StatusChange, StoreError> {
    let text = |column| row.get_ref(column).map(|value| value.as_str_or_null());
    let required = |column| -> Result<&str, rusqlite::Error> {
        Ok(text(column)??.ok_or(rusqlite::types::FromSqlError::InvalidType)?)
    };
    let columns = ChangeRow {
        seq: row.get(0)?,
        run_id: required(1)?,
        at: row.get(2)?,
        status: required(3)?,
        state: text(4)?.map_err(rusqlite::Error::from)?,
    };
    columns.change()
}
