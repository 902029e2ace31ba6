//! Columns of rows.

use tokio_postgres::Row;
use tokio_postgres::types::FromSql;

use crate::store::model::{DeliverySummary, StatusChange, StoreError, StoredWatch, WatchRecord};
use crate::store::records::{ChangeRow, DeliveryRow, RecordRow, WatchRow};

/// The columns that [`read_record`] reads: all that cannot be large.
pub(super) const RECORD_COLUMNS: &str =
    "id, run_id, name, labels, sinks, added_at, deadline_at, status, state, polls, missing_since,
    seen_running, overdue_told, verdict, trace, NULL::bigint AS changed_at,
    verdict_at, found_by, origin, run_group, started_at, last_error, last_error_at";

/// The watches that are followed, with the columns that [`read_stored`] reads.
macro_rules! select_active {
    () => {
        "SELECT id, run_id, name, labels, sinks, added_at, deadline_at, status, state, polls, missing_since,
             seen_running, overdue_told, verdict, trace,
             (SELECT at FROM runwatch.status_changes s WHERE s.watch_id = w.id ORDER BY seq DESC LIMIT 1) AS changed_at
         FROM runwatch.watches w WHERE verdict IS NULL"
    };
}
pub(super) use select_active;

/// Reads a column.
///
/// # Errors
/// When its type is another one.
pub(super) fn get<'a, T: FromSql<'a>>(row: &'a Row, column: usize) -> Result<T, StoreError> {
    Ok(row.try_get(column)?)
}

fn read_watch(row: &Row) -> Result<WatchRow, StoreError> {
    Ok(WatchRow {
        id: get(row, 0)?,
        run_id: get(row, 1)?,
        name: get(row, 2)?,
        labels: get(row, 3)?,
        sinks: get(row, 4)?,
        added_at: get(row, 5)?,
        deadline_at: get(row, 6)?,
        status: get(row, 7)?,
        state: get(row, 8)?,
        polls: get(row, 9)?,
        missing_since: get(row, 10)?,
        seen_running: get(row, 11)?,
        overdue_told: get(row, 12)?,
        verdict: get(row, 13)?,
        trace: get(row, 14)?,
        changed_at: get(row, 15)?,
    })
}

/// Reads a watch that is taken up at `now`. It does not count as missing: there were no polls.
pub(super) fn read_stored(row: &Row, now: jiff::Timestamp) -> Result<StoredWatch, StoreError> {
    let mut stored = read_watch(row)?.stored(now)?;
    stored.progress.missing_since = None;
    Ok(stored)
}

pub(super) fn read_record(row: &Row) -> Result<WatchRecord, StoreError> {
    let columns = RecordRow {
        watch: read_watch(row)?,
        verdict_at: get(row, 16)?,
        found_by: get(row, 17)?,
        origin: get(row, 18)?,
        run_group: get(row, 19)?,
        started_at: get(row, 20)?,
        last_error: get(row, 21)?,
        last_error_at: get(row, 22)?,
    };
    columns.record()
}

/// Reads `seq, run_id, at, status, state`.
pub(super) fn read_change(row: &Row) -> Result<StatusChange, StoreError> {
    let columns = ChangeRow {
        seq: get(row, 0)?,
        run_id: get(row, 1)?,
        at: get(row, 2)?,
        status: get(row, 3)?,
        state: get(row, 4)?,
    };
    columns.change()
}

pub(super) fn read_delivery(row: &Row) -> Result<DeliverySummary, StoreError> {
    let columns = DeliveryRow {
        id: get(row, 0)?,
        sink: get(row, 1)?,
        run_id: get(row, 2)?,
        event_type: get(row, 3)?,
        state: get(row, 4)?,
        attempts: get(row, 5)?,
        next_attempt_at: get(row, 6)?,
        last_detail: get(row, 7)?,
        created_at: get(row, 8)?,
        ended_at: get(row, 9)?,
        earlier_attempts: get(row, 10)?,
        fallback_for: get(row, 11)?,
        held_until: get(row, 12)?,
        group: get(row, 13)?,
        included_in: get(row, 14)?,
    };
    columns.summary()
}

/// Reads the places, from 1, of what is stored of several items. Returns for each item whether it is; if not, with the error
/// that `refused` makes.
///
/// # Errors
/// When a place is NULL: the items are to be stored one by one.
pub(super) fn read_places<T>(
    rows: &[Row],
    items: &[T],
    refused: impl Fn(&T) -> StoreError,
) -> Result<Vec<Result<(), StoreError>>, StoreError> {
    let mut replies: Vec<_> = items.iter().map(|item| Err(refused(item))).collect();
    for row in rows {
        let place: Option<i64> = get(row, 0)?;
        let place = place.ok_or_else(|| StoreError::Precondition {
            what: "several steps".to_owned(),
            wanted: "independent of each other",
        })?;
        let reply = usize::try_from(place - 1).ok();
        if let Some(reply) = reply.and_then(|place| replies.get_mut(place)) {
            *reply = Ok(());
        }
    }
    Ok(replies)
}
