//! Watches with their status changes and the details of their runs.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, named_params, params};

use super::deliveries;
use super::events::{insert_event, read_event, read_payload, set_apart};
use super::rows::{
    from_json, page, payloads, read_all, read_id, read_time, stepped, to_json, unreadable,
};
use super::writer::Execute;
use crate::domain::{
    FoundBy, Labels, Progress, RunDetails, RunRef, Status, Verdict, Watch, WatchOrigin,
};
use crate::failpoint::mutant;
use crate::store::model::{
    Added, History, PollFailure, RoutedEvent, StatusChange, StoreError, StoredWatch, WatchId,
    WatchOrder, WatchRecord, WatchState,
};
use crate::store::operations::{
    ActiveWatches, AddConfiguredWatch, AddWatch, Details, KeepConfiguredWatches, MoveClock,
    NewestWatch, ProbeWrite, RecordStep, RemoveWatches, SetDeadlines, StatusChangesAfter,
    WatchHistory, Watches,
};

/// Most status changes kept of one watch, the newest: a run that changes its status without end
/// fills neither the disk nor a list.
const KEPT_CHANGES: u32 = 1_000;

/// The columns that [`read_record`] reads: all that cannot be large.
pub(super) const RECORD_COLUMNS: &str = "id, run_id, name, labels, sinks, added_at, deadline_at, status, state, polls, missing_since,
    seen_running, overdue_told, last_error, last_error_at, verdict, verdict_at, found_by, origin, NULL AS changed_at";

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
            let wanted =
                "delivered or given up yet; wait for it, or give it up with --force (force=true)";
            return Err(StoreError::Precondition { what, wanted });
        }
        let delete = "DELETE FROM watches WHERE run_id = ? RETURNING id";
        read_all(db, delete, [run_id.as_str()], |row| {
            Ok(WatchId(row.get(0)?))
        })
    }
}

impl Execute for ActiveWatches {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self { now, after, limit } = self;
        let sql = "SELECT id, run_id, name, labels, sinks, added_at, deadline_at, status, state, polls, missing_since,
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
                    ":status": status.as_ref().map(Status::as_str),
                    ":state": status.as_ref().map(|status| status.state().as_str()),
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
            return Err(StoreError::Precondition {
                what: format!("watch {}", watch.0),
                wanted: "active",
            });
        }
        if let Some(status) = status.filter(|_| step.status_changed) {
            insert_change(db, watch, &status, now)?;
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
        db.prepare_cached("UPDATE clock SET stepped_ms = stepped_ms + ?")?
            .execute([self.milliseconds])?;
        Ok(())
    }
}

impl Execute for Watches {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self { filter, limit } = self;
        let labels = to_json("labels", &filter.labels)?;
        let (after_at, after_id) = match (&filter.after, filter.order) {
            (Some((at, id)), _) => (at.as_millisecond(), id.as_str()),
            (None, WatchOrder::Oldest) => (i64::MIN, ""),
            (None, WatchOrder::Newest | WatchOrder::Ended) => (i64::MAX, ""),
        };
        let Some(sql) = watches_sql(filter.state, filter.verdict, filter.order) else {
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
        let next = if row.get(3)? {
            format!("next attempt at {:.0}", read_time(row.get(4)?)?)
        } else {
            "being sent now".to_owned()
        };
        let others = match row.get::<_, i64>(5)? {
            0 => String::new(),
            1 => ", and 1 more delivery".to_owned(),
            others => format!(", and {others} more deliveries"),
        };
        Ok(format!("{event} to {sink} ({id}, {next}{others})"))
    };
    Ok(read_all(db, select, [run_id.as_str()], describe)?.pop())
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
        "INSERT INTO watches (run_id, name, labels, sinks, added_at, deadline_at, origin) VALUES (?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        watch.run_id.as_str(),
        watch.name,
        to_json("labels", &watch.labels)?,
        sinks,
        watch.added_at.as_millisecond(),
        watch.deadline_at.as_millisecond(),
        origin.to_string(),
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
        status.as_str(),
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
    db.prepare_cached("UPDATE watches SET details = ?, input_id = ?, output_id = ? WHERE id = ?")?
        .execute(params![
            to_json("details", details)?,
            input_id,
            output_id,
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
    let state = match order {
        WatchOrder::Ended => Some(state.unwrap_or(WatchState::Finished)),
        WatchOrder::Oldest | WatchOrder::Newest => state,
    };
    let which = match (state, verdict) {
        (Some(WatchState::Active), Some(_)) => return None,
        (Some(WatchState::Active), None) if order == WatchOrder::Ended => return None,
        (None, None) => ":verdict IS NULL",
        (Some(WatchState::Active), None) => "verdict IS NULL AND :verdict IS NULL",
        (Some(WatchState::Finished), None) => "verdict IS NOT NULL AND :verdict IS NULL",
        (None | Some(WatchState::Finished), Some(_)) => {
            "verdict IS NOT NULL AND verdict = :verdict"
        }
    };
    let (after, by) = match order {
        WatchOrder::Oldest => (
            "(added_at, run_id) > (:after_at, :after_id)",
            "added_at, run_id",
        ),
        WatchOrder::Newest => (
            "(added_at, run_id) < (:after_at, :after_id)",
            "added_at DESC, run_id DESC",
        ),
        WatchOrder::Ended => (
            "(verdict_at, run_id) < (:after_at, :after_id)",
            "verdict_at DESC, run_id DESC",
        ),
    };
    Some(format!(
        "SELECT {RECORD_COLUMNS} FROM watches w WHERE {which} AND {after}
           AND NOT EXISTS (SELECT 1 FROM json_each(:labels) wanted WHERE NOT EXISTS (
               SELECT 1 FROM json_each(w.labels) have WHERE have.key = wanted.value ->> 0 AND have.value = wanted.value ->> 1))
         ORDER BY {by} LIMIT :limit + 1"
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

fn read_watch(row: &Row<'_>, now: Timestamp) -> Result<StoredWatch, StoreError> {
    let text = |column: &str| -> Result<Option<String>, rusqlite::Error> { row.get(column) };
    let time = |column: &str| -> Result<Option<Timestamp>, StoreError> {
        row.get::<_, Option<i64>>(column)?
            .map(read_time)
            .transpose()
    };
    let required = |column: &str| read_time(row.get(column)?);
    let labels: Labels = from_json("labels", &row.get::<_, String>("labels")?)?;
    let watch = Watch {
        run_id: read_id(row, "run_id", RunRef::new)?,
        name: text("name")?,
        labels,
        sinks: text("sinks")?
            .map(|json| from_json("sinks", &json))
            .transpose()?,
        added_at: required("added_at")?,
        deadline_at: required("deadline_at")?,
    };
    let mut progress = Progress::begin(now);
    let state = text("state")?;
    progress.status = text("status")?.map(|status| Status::read(state.as_deref(), &status));
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

fn read_record(row: &Row<'_>) -> Result<WatchRecord, StoreError> {
    let stored = read_watch(row, Timestamp::UNIX_EPOCH)?;
    let verdict_at = row
        .get::<_, Option<i64>>("verdict_at")?
        .map(read_time)
        .transpose()?;
    let found_by: Option<String> = row.get("found_by")?;
    let origin: Option<String> = row.get("origin")?;
    let failed_at = row
        .get::<_, Option<i64>>("last_error_at")?
        .map(read_time)
        .transpose()?;
    Ok(WatchRecord {
        watch: stored.watch,
        origin: origin
            .map(|text| WatchOrigin::read(&text).ok_or_else(|| unreadable("an origin", &text)))
            .transpose()?,
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

/// Reads `seq, run_id, at, status, state`.
fn read_change(row: &Row<'_>) -> Result<StatusChange, StoreError> {
    Ok(StatusChange {
        seq: row.get(0)?,
        run_id: read_id(row, 1, RunRef::new)?,
        at: read_time(row.get(2)?)?,
        status: read_status(row)?,
    })
}

/// Reads the status in columns 3 and 4.
fn read_status(row: &Row<'_>) -> rusqlite::Result<Status> {
    let (text, state) = (row.get_ref(3)?.as_str()?, row.get_ref(4)?.as_str_or_null()?);
    Ok(Status::read(state, text))
}
