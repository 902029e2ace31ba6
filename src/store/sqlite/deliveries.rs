//! Deliveries and their attempts.

use rusqlite::{Connection, OptionalExtension as _, Row, named_params, params};

use super::events::{PAGE_BYTES, read_event_within};
use super::rows::{page, read_all, read_id, read_time, stepped, to_json, unreadable};
use super::writer::Execute;
use crate::domain::{DeliveryId, EventType, RunRef, SinkName};
use crate::failpoint::mutant;
use crate::store::model::{
    AttemptOutcome, AttemptRecord, Claimed, Decided, DeliveryFilter, DeliveryState,
    DeliverySummary, Fate, StoreError,
};
use crate::store::operations::{
    ClaimDue, Decide, DecideSome, Deliveries, NextDue, RecordAttempt, SinksWithOpenDeliveries,
};

/// Most deliveries of a sink that are changed in one transaction.
const ROWS: usize = 500;

/// Most IDs that are named where the beginning of one is ambiguous.
const CANDIDATES: i64 = 5;

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

/// The columns that [`read_delivery`] reads, and where from.
macro_rules! select_deliveries {
    () => {
        concat!(
            "SELECT d.id, d.sink, e.run_id, e.type, d.state, d.attempts, d.next_attempt_at + ",
            stepped!(),
            ", (SELECT detail FROM attempts a WHERE a.delivery_id = d.id ORDER BY attempt DESC LIMIT 1),
                d.created_at, d.ended_at, d.earlier_tries
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
        let Self { id, attempt } = self;
        let took_ms = i64::try_from(attempt.took.as_millis()).unwrap_or(i64::MAX);
        let ended_at = attempt.at.as_millisecond().saturating_add(took_ms);
        let (state, next_at, ended_at) = match attempt.outcome {
            AttemptOutcome::Delivered => (DeliveryState::Delivered, None, Some(ended_at)),
            AttemptOutcome::Retry(at) => (DeliveryState::Pending, Some(at.as_millisecond()), None),
            AttemptOutcome::Dead => (DeliveryState::Dead, None, Some(ended_at)),
        };
        let rows = db
            .prepare_cached(concat!(
                "UPDATE deliveries SET state = ?, next_attempt_at = ? - ",
                stepped!(),
                ", ended_at = ? WHERE id = ? AND state = 'sending' AND attempts = ?",
            ))?
            .execute(params![
                state.as_str(),
                next_at,
                ended_at,
                id.as_str(),
                attempt.attempt
            ])?;
        if rows != 1 {
            let what = format!("delivery {id}");
            return Err(StoreError::Precondition {
                what,
                wanted: "claimed for this attempt",
            });
        }
        db.prepare_cached(
                "INSERT INTO attempts (delivery_id, attempt, at, took_ms, delivered, detail) VALUES (?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                id.as_str(),
                attempt.attempt,
                attempt.at.as_millisecond(),
                took_ms,
                attempt.outcome == AttemptOutcome::Delivered,
                attempt.detail,
            ])?;
        Ok(())
    }
}

impl Execute for Deliveries {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self { filter, limit } = self;
        let words: Vec<_> = filter.states.iter().map(|state| state.as_str()).collect();
        let words = to_json("states", &words)?;
        let sql = deliveries_sql(&filter);
        let parameters = named_params! {
            ":after": filter.after.as_ref().map_or(if filter.newest_first { PAST_ALL } else { "" }, DeliveryId::as_str),
            ":sink": filter.sink.as_ref().map(SinkName::as_str),
            ":states": words,
            ":limit": limit,
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
        let what = format!("delivery {id}");
        Err(StoreError::Precondition {
            what,
            wanted: "waiting or given up; it has arrived or is being sent",
        })
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
                ", ended_at = NULL, earlier_tries = attempts WHERE id = ?2 AND state IN ('pending', 'dead')"
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

/// A text that sorts after every ID of a delivery.
const PAST_ALL: &str = "~";

/// The statement that lists deliveries.
pub(super) fn deliveries_sql(filter: &DeliveryFilter) -> String {
    // Those that are not delivered are few among many, and have an index of their own.
    let delivered = filter.states.is_empty() || filter.states.contains(&DeliveryState::Delivered);
    let which = match (&filter.sink, delivered) {
        (Some(_), _) => {
            "d.sink = :sink AND (:states = '[]' OR d.state IN (SELECT value FROM json_each(:states)))"
        }
        (None, false) => {
            "d.state != 'delivered' AND :sink IS NULL AND d.state IN (SELECT value FROM json_each(:states))"
        }
        (None, true) => {
            ":sink IS NULL AND (:states = '[]' OR d.state IN (SELECT value FROM json_each(:states)))"
        }
    };
    let (after, direction) = if filter.newest_first {
        ("<", "DESC")
    } else {
        (">", "ASC")
    };
    let select = select_deliveries!();
    format!(
        "{select} WHERE {which} AND d.id {after} :after ORDER BY d.id {direction} LIMIT :limit + 1"
    )
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
    let word: String = row.get(3)?;
    let state: String = row.get(4)?;
    let run_id: Option<String> = row.get(2)?;
    Ok(DeliverySummary {
        id: read_id(row, 0, DeliveryId::new)?,
        sink: read_id(row, 1, SinkName::new)?,
        run_id: run_id
            .map(|id| RunRef::new(&id))
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
        earlier_attempts: row.get(10)?,
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

fn read_delivery_id(row: &Row<'_>) -> Result<DeliveryId, StoreError> {
    read_id(row, 0, DeliveryId::new)
}
