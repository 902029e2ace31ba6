//! Events, and the large values that events and watches share.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::rows::{payloads, read_all, stepped};
use super::writer::Execute;
use crate::clock::new_delivery_id;
use crate::domain::{Event, EventData, EventType, JsonText, RunEvent, RunRef, TraceContext};
use crate::store::model::{RoutedEvent, StoreError, WatchId};
use crate::store::operations::{EventsAfter, NewestEvent, NewestProviderEvents, RecordEvent};
use crate::store::records::{
    INLINE_BYTES, PAGE_BYTES, leave_out, payload, trace_context, unreadable,
};

/// The events after one, with their numbers.
pub(super) const EVENTS_AFTER: &str = concat!(
    "SELECT seq, body, ",
    payloads!("e"),
    " FROM events e WHERE seq > ? ORDER BY seq LIMIT ?"
);

impl Execute for RecordEvent {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        insert_event(db, self.watch, self.routed, self.now)
    }
}

impl Execute for EventsAfter {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self { seq, limit } = self;
        let mut statement = db.prepare_cached(EVENTS_AFTER)?;
        let mut rows = statement.query(params![seq, limit])?;
        let (mut events, mut bytes) = (Vec::new(), 0);
        while bytes < PAGE_BYTES
            && let Some(row) = rows.next()?
        {
            bytes += stored_bytes(row, 1)?;
            events.push((row.get(0)?, read_event(row, 1)?));
        }
        Ok(events)
    }

    fn bytes_read(events: &Self::Reply) -> usize {
        let runs = events.iter().filter_map(|(_, event)| event.run());
        runs.map(RunEvent::bytes).sum()
    }
}

impl Execute for NewestProviderEvents {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let types = [
            EventType::ApiUnreachable,
            EventType::ApiUnauthorized,
            EventType::ApiRecovered,
        ];
        // By number: the clock may have been set back. The sign keeps SQLite from walking
        // through all events.
        let sql = "SELECT body, NULL, NULL FROM events WHERE seq IN (
                SELECT max(+seq) FROM events WHERE watch_id IS NULL AND type IN (?, ?, ?)
                GROUP BY coalesce(body ->> '$.data.provider', 'crewship'))
            ORDER BY +seq";
        read_all(db, sql, types.map(EventType::as_str), |row| {
            read_event(row, 0)
        })
    }
}

impl Execute for NewestEvent {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        // Pruning may have taken the newest away; its number is not given again.
        let last: Option<i64> = db
            .prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = 'events'")?
            .query_row([], |row| row.get(0))
            .optional()?;
        Ok(last.unwrap_or(0))
    }
}

/// Stores an event, of `watch` if it is about one, with its deliveries.
pub(super) fn insert_event(
    db: &Connection,
    watch: Option<WatchId>,
    routed: RoutedEvent,
    now: Timestamp,
) -> Result<(), StoreError> {
    let RoutedEvent {
        mut event,
        sinks,
        held,
    } = routed;
    let (mut input_id, mut output_id) = (None, None);
    if let (Some(watch), EventData::Run(data)) = (watch, &mut event.data) {
        input_id = set_apart(db, watch, &mut data.run.input)?;
        output_id = set_apart(db, watch, &mut data.run.output)?;
    }
    let insert = "INSERT INTO events (watch_id, run_id, type, at, input_id, output_id, body) VALUES (?, ?, ?, ?, ?, ?, ?)";
    db.prepare_cached(insert)?.execute(params![
        watch.map(|watch| watch.0),
        event.run_id().map(RunRef::as_str),
        event.event_type.as_str(),
        event.timestamp.as_millisecond(),
        input_id,
        output_id,
        event.to_json(),
    ])?;
    let seq = db.last_insert_rowid();
    let at = Some(now.as_millisecond());
    let attempts = sinks.into_iter().map(|sink| (sink, at));
    // What waits for a summary has no time of an attempt.
    for (sink, at) in attempts.chain(held.into_iter().map(|sink| (sink, None))) {
        db.prepare_cached(concat!(
            "INSERT INTO deliveries (id, event_seq, sink, state, next_attempt_at, created_at)
             VALUES (?1, ?2, ?3, 'pending', ?4 - ",
            stepped!(),
            ", ?5)",
        ))?
        .execute(params![
            new_delivery_id().as_str(),
            seq,
            sink.as_str(),
            at,
            now.as_millisecond()
        ])?;
    }
    Ok(())
}

/// Takes a large value out of its row, and stores it in a row of its own, unless the watch has such
/// a row with the same value. Returns the number of that row.
pub(super) fn set_apart(
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
pub(super) fn read_payload(
    row: &Row<'_>,
    column: usize,
    value: &mut Option<JsonText>,
) -> Result<(), StoreError> {
    if let Some(text) = row.get::<_, Option<String>>(column)? {
        *value = Some(payload(text)?);
    }
    Ok(())
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

/// The stored bytes of an event: of its body in `column`, and of its large values in those after that.
fn stored_bytes(row: &Row<'_>, column: usize) -> Result<usize, rusqlite::Error> {
    let mut bytes = 0;
    for column in column..column + 3 {
        bytes += row.get_ref(column)?.as_str_or_null()?.map_or(0, str::len);
    }
    Ok(bytes)
}

/// Reads an event but for an input or output of more than `most_bytes`, which `truncated` names
/// then: the larger first, as where a message has no room for them. The other values are the trace of its watch, and the
/// number of bytes read.
pub(super) fn read_event_within(
    db: &Connection,
    seq: i64,
    most_bytes: i64,
) -> Result<(Event, Option<TraceContext>, usize), StoreError> {
    let sql = "SELECT body,
                   (SELECT p.body FROM payloads p WHERE p.id = e.input_id AND octet_length(p.body) <= ?2),
                   (SELECT p.body FROM payloads p WHERE p.id = e.output_id AND octet_length(p.body) <= ?2),
                   (SELECT octet_length(p.body) FROM payloads p WHERE p.id = e.input_id),
                   (SELECT octet_length(p.body) FROM payloads p WHERE p.id = e.output_id),
                   (SELECT w.trace FROM watches w WHERE w.id = e.watch_id)
               FROM events e WHERE seq = ?1";
    let mut statement = db.prepare_cached(sql)?;
    let mut rows = statement.query(params![seq, most_bytes])?;
    let row = rows.next()?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
    let mut event = read_event(row, 0)?;
    let size =
        |column| -> Result<i64, StoreError> { Ok(row.get::<_, Option<i64>>(column)?.unwrap_or(0)) };
    leave_out(&mut event, (size(3)?, size(4)?), most_bytes);
    let trace: Option<String> = row.get(5)?;
    let trace = trace.as_deref().map(trace_context).transpose()?;
    Ok((event, trace, stored_bytes(row, 0)?))
}
