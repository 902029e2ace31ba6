//! Deliveries and their attempts.

use rusqlite::{Connection, OptionalExtension as _, Row, named_params, params};

use super::events::read_event_within;
use super::rows::{read_all, read_id, stepped};
use super::writer::Execute;
use crate::clock::new_delivery_id;
use crate::domain::{DeliveryId, SinkName};
use crate::failpoint::mutant;
use crate::store::lists::{deliveries_after, deliveries_where};
use crate::store::model::{
    AttemptOutcome, AttemptRecord, Claimed, Decided, DeliveryFilter, DeliverySummary, Fate,
    StoreError,
};
use crate::store::operations::{
    ClaimDue, Decide, DecideSome, Deliveries, Hold, NextDue, RecordAttempt, SetHolds,
    SinksWithOpenDeliveries, TakeMarks, TakeUp,
};
use crate::store::records::{
    AttemptRow, CANDIDATES, CLAIMED, DeliveryRow, PAGE_BYTES, ROWS, optional_time, page, read_time,
    sink_name, storable, to_json, undecidable,
};

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
    " FROM deliveries WHERE sink = ? AND state = 'pending' AND next_attempt_at IS NOT NULL ORDER BY next_attempt_at LIMIT 1"
);

/// Holds the deliveries of a sink that are held until another time. One is held while its next attempt is due at the end
/// of its hold.
const SET_HOLDS: &str = concat!(
    "UPDATE deliveries SET held_until = ?1, next_attempt_at = ?1 - ",
    stepped!(),
    " WHERE sink = ?2 AND state = 'pending' AND held_until = next_attempt_at + ",
    stepped!()
);

/// Moves what is held by some milliseconds against the clock that is never set.
pub(super) const KEEP_HOLDS: &str = concat!(
    "UPDATE deliveries SET next_attempt_at = next_attempt_at - ?
     WHERE state IN ('pending', 'sending') AND held_until IS NOT NULL AND state = 'pending'
         AND held_until = next_attempt_at + ",
    stepped!()
);

/// The columns that [`read_delivery`] reads, and where from.
macro_rules! select_deliveries {
    () => {
        concat!(
            "SELECT d.id, d.sink, e.run_id, e.type, d.state, d.attempts, d.next_attempt_at + ",
            stepped!(),
            ", (SELECT detail FROM attempts a WHERE a.delivery_id = d.id ORDER BY attempt DESC LIMIT 1),
                d.created_at, d.ended_at, d.earlier_tries, d.fallback_for, d.held_until,
                iif(e.type = 'group.finished', e.body ->> '$.data.group', NULL), d.included_in
         FROM deliveries d JOIN events e ON e.seq = d.event_seq"
        )
    };
}

impl Execute for ClaimDue {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self {
            sink,
            now,
            limit,
            most_bytes,
        } = self;
        let (limit, most_bytes) = (
            i64::try_from(limit).unwrap_or(i64::MAX),
            i64::try_from(most_bytes).unwrap_or(i64::MAX),
        );
        let claim = "UPDATE deliveries SET state = 'sending', attempts = attempts + 1 WHERE id = ?
                         RETURNING attempts, attempts - earlier_tries, fallback_for, held_until, at_once";
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
            let (mut event, trace, size) = read_event_within(db, event_seq, most_bytes)?;
            let mut claimed_one = db.prepare_cached(claim)?;
            let mut rows = claimed_one.query([id.as_str()])?;
            let row = rows.next()?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
            let fallback_for: Option<String> = row.get(2)?;
            event.set_fallback_for(fallback_for.as_deref().map(sink_name).transpose()?);
            bytes += size;
            claimed.push(Claimed {
                id,
                attempt: row.get(0)?,
                try_number: row.get(1)?,
                held_until: optional_time(row.get(3)?)?,
                at_once: row.get(4)?,
                event,
                trace,
            });
        }
        claimed.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(claimed)
    }

    fn bytes_read(claimed: &Self::Reply) -> usize {
        claimed.iter().map(Claimed::bytes).sum()
    }
}

impl Execute for NextDue {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self { sink } = self;
        let at: Option<i64> = db
            .prepare_cached(NEXT_DUE)?
            .query_row([sink.as_str()], |row| row.get(0))
            .optional()?;
        at.map(read_time).transpose()
    }
}

impl Execute for RecordAttempt {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self {
            id,
            attempt,
            fallback,
        } = self;
        let row = AttemptRow::of(&attempt);
        let rows = db
            .prepare_cached(concat!(
                "UPDATE deliveries SET state = ?, next_attempt_at = ? - ",
                stepped!(),
                ", ended_at = ? WHERE id = ? AND state = 'sending' AND attempts = ?",
            ))?
            .execute(params![
                row.state.as_str(),
                row.next_at,
                row.ended_at,
                id.as_str(),
                attempt.attempt
            ])?;
        if rows != 1 {
            let what = format!("delivery {id}");
            return Err(StoreError::Precondition {
                what,
                wanted: CLAIMED,
            });
        }
        db.prepare_cached(
                "INSERT INTO attempts (delivery_id, attempt, at, took_ms, delivered, detail) VALUES (?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                id.as_str(),
                attempt.attempt,
                row.at,
                row.took_ms,
                row.delivered,
                storable(&attempt.detail),
            ])?;
        if let (AttemptOutcome::Dead, Some(fallback)) = (attempt.outcome, fallback) {
            fall_back(db, &id, &fallback, row.ended_at)?;
        }
        Ok(())
    }
}

impl Execute for Hold {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self { id, attempt, until } = self;
        let rows = db
            .prepare_cached(concat!(
                "UPDATE deliveries SET state = 'pending', attempts = attempts - 1, held_until = ?1, next_attempt_at = ?1 - ",
                stepped!(),
                " WHERE id = ?2 AND state = 'sending' AND attempts = ?3",
            ))?
            .execute(params![until.as_millisecond(), id.as_str(), attempt])?;
        if rows == 1 {
            return Ok(());
        }
        let what = format!("delivery {id}");
        Err(StoreError::Precondition {
            what,
            wanted: CLAIMED,
        })
    }
}

impl Execute for SetHolds {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self { sink, until } = self;
        db.prepare_cached(SET_HOLDS)?
            .execute(params![until.as_millisecond(), sink.as_str()])?;
        Ok(())
    }
}

/// Keeps the deliveries that are held where they are on the wall clock, before it is set by some milliseconds.
pub(super) fn keep_holds(db: &Connection, milliseconds: i64) -> Result<(), StoreError> {
    db.prepare_cached(KEEP_HOLDS)?.execute([milliseconds])?;
    Ok(())
}

impl Execute for Deliveries {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self { filter, limit } = self;
        let words: Vec<_> = filter.states.iter().map(|state| state.as_str()).collect();
        let words = to_json("states", &words)?;
        let sql = deliveries_sql(&filter);
        let parameters = named_params! {
            "$1": deliveries_after(&filter),
            "$2": filter.sink.as_ref().map(SinkName::as_str),
            "$3": words,
            "$4": limit,
        };
        let items = read_all(db, &sql, parameters, read_delivery)?;
        Ok(page(items, limit))
    }
}

impl Execute for Decide {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self {
            beginning,
            fate,
            now,
        } = self;
        let mut candidates = candidates(db, &beginning)?;
        let id = match candidates.len() {
            0 => return Ok(Decided::Unknown),
            1 => candidates.remove(0),
            _ => return Ok(Decided::Ambiguous(candidates)),
        };
        let rows = db
            .prepare_cached(statement(fate))?
            .execute(params![now.as_millisecond(), id.as_str()])?;
        if rows == 1 {
            return Ok(Decided::Done);
        }
        let included_in: Option<String> = db
            .prepare_cached("SELECT included_in FROM deliveries WHERE id = ?")?
            .query_row([id.as_str()], |row| row.get(0))?;
        Err(undecidable(&id, included_in.as_deref()))
    }
}

impl Execute for DecideSome {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self {
            sink,
            fate,
            now,
            after,
        } = self;
        let select = "SELECT id FROM deliveries WHERE sink = ?1 AND id > ?2
                         AND state != 'delivered' AND (state = 'pending' OR (state = 'dead' AND ?3))
                     ORDER BY id LIMIT ?4";
        let parameters = params![sink.as_str(), after, fate == Fate::Retry, ROWS as i64];
        let ids = read_all(db, select, parameters, read_delivery_id)?;
        let mut decide = db.prepare_cached(statement(fate))?;
        for id in &ids {
            decide.execute(params![now.as_millisecond(), id.as_str()])?;
        }
        Ok(ids)
    }
}

impl Execute for SinksWithOpenDeliveries {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let sql = "SELECT sink, sum(total) FROM totals WHERE what IN ('pending', 'sending')
                       GROUP BY sink HAVING sum(total) > 0";
        read_all(db, sql, [], |row| {
            Ok((
                read_id(row, 0, SinkName::new)?,
                row.get::<_, i64>(1)?.cast_unsigned(),
            ))
        })
    }
}

impl Execute for TakeUp {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        release_claims(db)
    }
}

impl Execute for TakeMarks {
    /// Nothing is ever marked: the process that has the lock of the store is the only one that writes.
    fn execute(self, _: &Connection) -> Result<Self::Reply, StoreError> {
        Ok(Vec::new())
    }
}

/// Makes a delivery of the event of another one, which was given up at `now`, to the fallback of its sink.
fn fall_back(
    db: &Connection,
    given_up: &DeliveryId,
    fallback: &SinkName,
    now: Option<i64>,
) -> Result<(), StoreError> {
    db.prepare_cached(concat!(
        "INSERT INTO deliveries (id, event_seq, sink, state, next_attempt_at, created_at, fallback_for)
             SELECT ?1, event_seq, ?2, 'pending', ?3 - ",
        stepped!(),
        ", ?3, sink FROM deliveries d WHERE id = ?4
                 AND NOT EXISTS (SELECT 1 FROM deliveries o WHERE o.event_seq = d.event_seq AND o.sink = ?2)",
    ))?
    .execute(params![
        new_delivery_id().as_str(),
        fallback.as_str(),
        now,
        given_up.as_str()
    ])?;
    Ok(())
}

/// Makes deliveries due again whose attempt was under way when the process that made it died.
///
/// The attempt may have arrived; its number was used up, its delivery is made again under the same
/// ID.
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

/// The statement for the delivery with the ID `?2`, where it is not delivered and not being sent:
/// at the time `?1`.
fn statement(fate: Fate) -> &'static str {
    match fate {
        Fate::Retry => {
            concat!(
                "UPDATE deliveries SET state = 'pending', next_attempt_at = ?1 - ",
                stepped!(),
                ", ended_at = NULL, earlier_tries = attempts, held_until = NULL, at_once = 1
                 WHERE id = ?2 AND state IN ('pending', 'dead')"
            )
        }
        Fate::Drop => {
            "UPDATE deliveries SET state = 'dead', next_attempt_at = NULL, ended_at = coalesce(ended_at, ?1)
             WHERE id = ?2 AND state IN ('pending', 'dead')"
        }
    }
}

/// The deliveries of the events of a watch, with their attempts, in order.
pub(super) fn of_watch(
    db: &Connection,
    watch: i64,
) -> Result<Vec<(DeliverySummary, Vec<AttemptRecord>)>, StoreError> {
    let sql = concat!(select_deliveries!(), " WHERE e.watch_id = ? ORDER BY d.id");
    read_all(db, sql, [watch], |row| {
        let delivery = read_delivery(row)?;
        let sql =
            "SELECT attempt, at, took_ms, delivered, detail FROM attempts WHERE delivery_id = ?
                   ORDER BY attempt";
        let attempts = read_all(db, sql, [delivery.id.as_str()], read_attempt)?;
        Ok((delivery, attempts))
    })
}

/// The statement that lists deliveries.
pub(super) fn deliveries_sql(filter: &DeliveryFilter) -> String {
    let states = "SELECT value FROM json_each($3)";
    let (which, direction) = deliveries_where(filter, "$3 = '[]'", states);
    let select = select_deliveries!();
    format!("{select} WHERE {which} ORDER BY d.id {direction} LIMIT $4 + 1")
}

/// Returns the IDs that begin with `beginning`, the first [`CANDIDATES`] of them; a whole ID has no others beside it.
fn candidates(db: &Connection, beginning: &DeliveryId) -> Result<Vec<DeliveryId>, StoreError> {
    // In the order of the index, all IDs with this beginning come before the beginning followed by
    // a character that sorts after all letters.
    let select = "SELECT id FROM deliveries WHERE id >= ?1 AND id < ?1 || '{' ORDER BY id LIMIT ?2";
    let mut ids = read_all(
        db,
        select,
        params![beginning.as_str(), CANDIDATES],
        read_delivery_id,
    )?;
    if ids.first() == Some(beginning) {
        ids.truncate(1);
    }
    Ok(ids)
}

fn read_delivery(row: &Row<'_>) -> Result<DeliverySummary, StoreError> {
    let columns = DeliveryRow {
        id: row.get(0)?,
        sink: row.get(1)?,
        run_id: row.get(2)?,
        event_type: row.get(3)?,
        state: row.get(4)?,
        attempts: row.get(5)?,
        next_attempt_at: row.get(6)?,
        last_detail: row.get(7)?,
        created_at: row.get(8)?,
        ended_at: row.get(9)?,
        earlier_attempts: row.get(10)?,
        fallback_for: row.get(11)?,
        held_until: row.get(12)?,
        group: row.get(13)?,
        included_in: row.get(14)?,
    };
    columns.summary()
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

fn read_delivery_id(row: &Row<'_>) -> Result<DeliveryId, StoreError> {
    read_id(row, 0, DeliveryId::new)
}
