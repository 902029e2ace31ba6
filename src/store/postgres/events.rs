//! Events, and the large values that events and watches share.

use tokio_postgres::Row;

use super::rows::get;
use super::sql::{Db, Perform, parameters, payloads};
use crate::domain::{Event, EventData, JsonText};
use crate::store::model::StoreError;
use crate::store::operations::{EventsAfter, NewestEvent, NewestProviderEvents};
use crate::store::records::{PAGE_BYTES, payload, unreadable};

/// The events after one, with their numbers, up to the one with which the page is full.
pub(super) const EVENTS_AFTER: &str = concat!(
    "SELECT seq, body, ",
    payloads!("e"),
    " FROM (SELECT *, sum(octet_length(body)
             + coalesce((SELECT octet_length(p.body) FROM runwatch.payloads p WHERE p.id = input_id), 0)
             + coalesce((SELECT octet_length(p.body) FROM runwatch.payloads p WHERE p.id = output_id), 0))
             OVER (ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
         FROM (SELECT * FROM runwatch.events WHERE seq > $1 ORDER BY seq LIMIT $2) AS page) AS e
      WHERE before IS NULL OR before < $3 ORDER BY seq"
);

/// The number of the newest event of all, be it deleted. Numbers that a sequence has handed out do not count: the
/// transaction that got one may not be committed yet.
pub(super) const NEWEST_EVENT: &str = "SELECT greatest((SELECT max(seq) FROM runwatch.events),
    (SELECT max(newest) FROM runwatch.deleted_events), 0)";

/// The newest event about each API.
pub(super) const NEWEST_OF_PROVIDERS: &str = "SELECT body FROM runwatch.events WHERE seq IN (
        SELECT max(seq) FROM runwatch.events WHERE provider IS NOT NULL GROUP BY provider) ORDER BY seq";

/// No numbers.
const NONE: &[i64] = &[];

/// The number of a deleted event is noted where it was the newest one.
const NOTE_DELETED: &str = "UPDATE runwatch.deleted_events SET newest = gone.seq
    FROM (SELECT max(seq) AS seq FROM runwatch.events WHERE watch_id = ANY($1) OR seq = ANY($2)) AS gone
    WHERE newest < gone.seq AND gone.seq = (SELECT max(seq) FROM runwatch.events)";

impl Perform for EventsAfter {
    const PIPELINED: bool = true;

    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let (limit, bytes) = (i64::from(self.limit), PAGE_BYTES as i64);
        db.read_all(EVENTS_AFTER, parameters![self.seq, limit, bytes], |row| {
            Ok((get(row, 0)?, read_event(row, 1)?))
        })
        .await
    }
}

impl Perform for NewestProviderEvents {
    const PIPELINED: bool = true;

    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        db.read_all(NEWEST_OF_PROVIDERS, &[], |row| read_body(row, 0))
            .await
    }
}

impl Perform for NewestEvent {
    const PIPELINED: bool = true;

    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        newest_event(db).await
    }
}

/// The number of the newest event; 0 when there was none.
pub(super) async fn newest_event(db: &Db<'_>) -> Result<i64, StoreError> {
    let row = db.row(NEWEST_EVENT, &[]).await?;
    row.as_ref().map_or(Ok(0), |row| get(row, 0))
}

/// Deletes watches with all that belongs to them. Returns the numbers of those that were there.
pub(super) async fn delete_watches(db: &Db<'_>, ids: &[i64]) -> Result<Vec<i64>, StoreError> {
    db.execute(NOTE_DELETED, parameters![ids, NONE]).await?;
    let delete = "DELETE FROM runwatch.watches WHERE id = ANY($1) RETURNING id";
    let mut deleted = db
        .read_all(delete, parameters![ids], |row| get(row, 0))
        .await?;
    deleted.sort_unstable();
    Ok(deleted)
}

/// Deletes events that belong to no watch. Returns how many were there.
pub(super) async fn delete_events(db: &Db<'_>, seqs: &[i64]) -> Result<u64, StoreError> {
    db.execute(NOTE_DELETED, parameters![NONE, seqs]).await?;
    let delete = "DELETE FROM runwatch.events WHERE seq = ANY($1)";
    db.execute(delete, parameters![seqs]).await
}

/// Reads a large value, if there is one in this column.
pub(super) fn read_payload(
    row: &Row,
    column: usize,
    value: &mut Option<JsonText>,
) -> Result<(), StoreError> {
    if let Some(text) = get::<Option<String>>(row, column)? {
        *value = Some(payload(text)?);
    }
    Ok(())
}

/// Reads an event without its large values.
fn read_body(row: &Row, column: usize) -> Result<Event, StoreError> {
    Event::from_json(get(row, column)?).map_err(|error| unreadable("an event", &error))
}

/// Reads an event from its body and, in the columns after that, its large values.
pub(super) fn read_event(row: &Row, column: usize) -> Result<Event, StoreError> {
    let mut event = read_body(row, column)?;
    if let EventData::Run(data) = &mut event.data {
        read_payload(row, column + 1, &mut data.run.input)?;
        read_payload(row, column + 2, &mut data.run.output)?;
    }
    Ok(event)
}
