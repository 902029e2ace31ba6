//! Deliveries and their attempts.

use tokio_postgres::Row;

use super::events::read_event;
use super::rows::{get, read_delivery, read_places};
use super::sql::{Combinable, CombinedReply, Db, Perform, each, parameters, stepped};
use crate::clock::new_delivery_id;
use crate::domain::{DeliveryId, SinkName};
use crate::store::lists::{deliveries_after, deliveries_where};
use crate::store::model::{
    AttemptOutcome, AttemptRecord, Claimed, Decided, DeliveryFilter, DeliverySummary, Fate,
    StoreError,
};
use crate::store::operations::{
    ClaimDue, Decide, DecideSome, Deliveries, Hold, NextDue, RecordAttempt, SetHolds,
    SinksWithOpenDeliveries, TakeUp,
};
use crate::store::records::{
    AttemptRow, CANDIDATES, CLAIMED, PAGE_BYTES, ROWS, count32, delivery_id, leave_out,
    optional_time, page, read_time, sink_name, storable, trace_context, undecidable,
};

/// The columns that [`read_delivery`] reads, and where from.
macro_rules! select_deliveries {
    () => {
        concat!(
            "SELECT d.id, d.sink, e.run_id, e.type, d.state, d.attempts, d.next_attempt_at + ",
            stepped!(),
            ", (SELECT detail FROM runwatch.attempts a WHERE a.delivery_id = d.id ORDER BY attempt DESC LIMIT 1),
                d.created_at, d.ended_at, d.earlier_tries, d.fallback_for, d.held_until,
                CASE WHEN e.type = 'group.finished' THEN e.body::json #>> '{data,group}' END, d.included_in
         FROM runwatch.deliveries d JOIN runwatch.events e ON e.seq = d.event_seq"
        )
    };
}

/// Claims the deliveries of a sink that are due at a time, the longest due first, up to the one with which the page is
/// full. Large values of more than `$4` bytes are not read.
pub(super) const CLAIM: &str = concat!(
    "WITH due AS (
        SELECT d.id, d.next_attempt_at, e.body,
            (SELECT octet_length(p.body) FROM runwatch.payloads p WHERE p.id = e.input_id) AS input_size,
            (SELECT octet_length(p.body) FROM runwatch.payloads p WHERE p.id = e.output_id) AS output_size,
            e.input_id, e.output_id, (SELECT w.trace FROM runwatch.watches w WHERE w.id = e.watch_id) AS trace
        FROM (SELECT id, next_attempt_at, event_seq FROM runwatch.deliveries
              WHERE sink = $1 AND state = 'pending' AND next_attempt_at <= $2 - ",
    stepped!(),
    " ORDER BY next_attempt_at, id LIMIT $3) AS d JOIN runwatch.events e ON e.seq = d.event_seq
    ), page AS (
        SELECT *, sum(octet_length(body)
            + CASE WHEN input_size <= $4 THEN input_size ELSE 0 END
            + CASE WHEN output_size <= $4 THEN output_size ELSE 0 END)
            OVER (ORDER BY next_attempt_at, id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
        FROM due
    ), claimed AS (
        UPDATE runwatch.deliveries d SET state = 'sending', attempts = attempts + 1
        FROM page WHERE d.id = page.id AND d.state = 'pending' AND (before IS NULL OR before < $5)
        RETURNING d.id, d.attempts, d.attempts - d.earlier_tries AS try, d.fallback_for, d.held_until,
            d.at_once
    )
    SELECT page.body,
        (SELECT p.body FROM runwatch.payloads p WHERE p.id = page.input_id AND input_size <= $4),
        (SELECT p.body FROM runwatch.payloads p WHERE p.id = page.output_id AND output_size <= $4),
        coalesce(input_size, 0)::bigint, coalesce(output_size, 0)::bigint, claimed.id, claimed.attempts, claimed.try,
        claimed.fallback_for, claimed.held_until, claimed.at_once, page.trace
    FROM claimed JOIN page ON page.id = claimed.id ORDER BY claimed.id"
);

/// When the first delivery of a sink that waits is due.
pub(super) const NEXT_DUE: &str = concat!(
    "SELECT next_attempt_at + ",
    stepped!(),
    " FROM runwatch.deliveries WHERE sink = $1 AND state = 'pending' AND next_attempt_at IS NOT NULL
         ORDER BY next_attempt_at LIMIT 1"
);

/// Holds the deliveries of a sink that are held until another time. One is held while its next attempt is due at the end
/// of its hold.
const SET_HOLDS: &str = concat!(
    "UPDATE runwatch.deliveries SET held_until = $1, next_attempt_at = $1 - ",
    stepped!(),
    " WHERE sink = $2 AND state = 'pending' AND held_until = next_attempt_at + ",
    stepped!()
);

/// Moves what is held by some milliseconds against the clock that is never set.
const KEEP_HOLDS: &str = concat!(
    "UPDATE runwatch.deliveries SET next_attempt_at = next_attempt_at - $1
     WHERE state IN ('pending', 'sending') AND held_until IS NOT NULL AND state = 'pending'
         AND held_until = next_attempt_at + ",
    stepped!()
);

/// Stores attempts of different deliveries, where these are claimed for them: `$1` to `$11` have a value for each. With
/// `fallback`, that sink gets a delivery `new_id` of the same event, unless it has one. Returns the places of those that
/// are stored, from 1.
const RECORD: &str = concat!(
    "WITH given AS (
        SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) WITH ORDINALITY AS g (state, next_at,
            ended_at, id, attempt, at, took_ms, delivered, detail, new_id, fallback, place)
    ), done AS (
        UPDATE runwatch.deliveries d SET state = g.state, next_attempt_at = g.next_at - ",
    stepped!(),
    ", ended_at = g.ended_at FROM given g
        WHERE d.id = g.id AND d.state = 'sending' AND d.attempts = g.attempt
        RETURNING d.id, d.event_seq, d.sink, g.place, g.ended_at, g.new_id, g.fallback
    ), fallen AS (
        INSERT INTO runwatch.deliveries (id, event_seq, sink, state, next_attempt_at, created_at, fallback_for)
        SELECT DISTINCT ON (event_seq, fallback) new_id, event_seq, fallback, 'pending', ended_at - ",
    stepped!(),
    ", ended_at, sink FROM done WHERE fallback IS NOT NULL
            AND NOT EXISTS (SELECT 1 FROM runwatch.deliveries o
                WHERE o.event_seq = done.event_seq AND o.sink = done.fallback)
        ORDER BY event_seq, fallback, place
    ), tried AS (
        INSERT INTO runwatch.attempts (delivery_id, attempt, at, took_ms, delivered, detail)
        SELECT g.id, g.attempt, g.at, g.took_ms, g.delivered, g.detail FROM done JOIN given g ON g.place = done.place
    )
    SELECT place FROM done"
);

/// The sinks of open deliveries, with how many there are.
pub(super) const OPEN_BY_SINK: &str = "SELECT sink, count(*) FROM runwatch.deliveries
    WHERE state <> 'delivered' AND state IN ('pending', 'sending') GROUP BY sink ORDER BY sink";

/// Some deliveries of a sink that can be decided about, in the order of their IDs.
pub(super) const DECIDABLE_OF_SINK: &str =
    "SELECT id FROM runwatch.deliveries WHERE sink = $1 AND id > $2
        AND state <> 'delivered' AND (state = 'pending' OR (state = 'dead' AND $3))
    ORDER BY id LIMIT $4 FOR UPDATE";

impl Perform for ClaimDue {
    const PIPELINED: bool = true;

    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let limit = i64::try_from(self.limit).unwrap_or(i64::MAX);
        let most_bytes = i64::try_from(self.most_bytes).unwrap_or(i64::MAX);
        let (sink, now) = (self.sink.as_str(), self.now.as_millisecond());
        let parameters = parameters![sink, now, limit, most_bytes, PAGE_BYTES as i64];
        db.read_all(CLAIM, parameters, |row| {
            let mut event = read_event(row, 0)?;
            leave_out(&mut event, (get(row, 3)?, get(row, 4)?), most_bytes);
            event.set_fallback_for(get::<Option<&str>>(row, 8)?.map(sink_name).transpose()?);
            Ok(Claimed {
                id: delivery_id(get(row, 5)?)?,
                attempt: count32(get(row, 6)?),
                try_number: count32(get(row, 7)?),
                held_until: optional_time(get(row, 9)?)?,
                at_once: get(row, 10)?,
                event,
                trace: get::<Option<&str>>(row, 11)?
                    .map(trace_context)
                    .transpose()?,
            })
        })
        .await
    }
}

impl Perform for NextDue {
    const PIPELINED: bool = true;

    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let row = db.row(NEXT_DUE, parameters![self.sink.as_str()]).await?;
        row.as_ref()
            .map_or(Ok(None), |row| optional_time(get(row, 0)?))
    }
}

impl Perform for RecordAttempt {
    const PIPELINED: bool = true;

    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let replies = record_all(db, &[self]).await?;
        replies.into_iter().collect()
    }

    fn combinable(&self) -> Option<Combinable<'_>> {
        Some(Combinable::Attempt(self))
    }

    fn read_reply(reply: CombinedReply) -> Option<Result<Self::Reply, StoreError>> {
        reply.done()
    }
}

impl Perform for Hold {
    const PIPELINED: bool = true;

    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let Self { id, attempt, until } = self;
        let hold = concat!(
            "UPDATE runwatch.deliveries SET state = 'pending', attempts = attempts - 1, held_until = $1,
                 next_attempt_at = $1 - ",
            stepped!(),
            " WHERE id = $2 AND state = 'sending' AND attempts = $3",
        );
        let (until, attempt) = (until.as_millisecond(), i64::from(*attempt));
        let held = db
            .execute(hold, parameters![until, id.as_str(), attempt])
            .await?;
        if held == 1 {
            return Ok(());
        }
        Err(StoreError::Precondition {
            what: format!("delivery {id}"),
            wanted: CLAIMED,
        })
    }
}

impl Perform for SetHolds {
    const PIPELINED: bool = true;

    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let (until, sink) = (self.until.as_millisecond(), self.sink.as_str());
        db.execute(SET_HOLDS, parameters![until, sink])
            .await
            .map(drop)
    }
}

/// Stores attempts of different deliveries in one statement. Returns a reply for each, in order.
///
/// # Errors
/// When the statement fails. It has stored none.
pub(super) async fn record_all(
    db: &Db<'_>,
    records: &[&RecordAttempt],
) -> Result<Vec<Result<(), StoreError>>, StoreError> {
    let columns = each(records, |record| AttemptRow::of(&record.attempt));
    let rows = db
        .rows(
            RECORD,
            parameters![
                each(&columns, |row| row.state.as_str()),
                each(&columns, |row| row.next_at),
                each(&columns, |row| row.ended_at),
                each(records, |record| record.id.as_str()),
                each(records, |record| i64::from(record.attempt.attempt)),
                each(&columns, |row| row.at),
                each(&columns, |row| row.took_ms),
                each(&columns, |row| row.delivered),
                each(records, |record| storable(&record.attempt.detail)),
                each(records, |_| new_delivery_id().as_str().to_owned()),
                each(records, |record| {
                    let fallback = record.fallback.as_ref();
                    fallback
                        .filter(|_| record.attempt.outcome == AttemptOutcome::Dead)
                        .map(SinkName::as_str)
                })
            ],
        )
        .await?;
    read_places(&rows, records, |record| StoreError::Precondition {
        what: format!("delivery {}", record.id),
        wanted: CLAIMED,
    })
}

/// Keeps the deliveries that are held where they are on the wall clock, before it is set by some milliseconds.
pub(super) async fn keep_holds(db: &Db<'_>, milliseconds: i64) -> Result<(), StoreError> {
    db.execute(KEEP_HOLDS, parameters![milliseconds])
        .await
        .map(drop)
}

impl Perform for Deliveries {
    const PIPELINED: bool = true;

    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let Self { filter, limit } = self;
        let states: Vec<_> = filter.states.iter().map(|state| state.as_str()).collect();
        let after = deliveries_after(filter);
        let sink = filter.sink.as_ref().map(SinkName::as_str);
        let read = i64::from(*limit) + 1;
        let items = db
            .read_all(
                &deliveries_sql(filter),
                parameters![after, sink, states, read],
                read_delivery,
            )
            .await?;
        Ok(page(items, *limit))
    }
}

impl Perform for Decide {
    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let Self {
            beginning,
            fate,
            now,
        } = self;
        let mut candidates = candidates(db, beginning).await?;
        let id = match candidates.len() {
            0 => return Ok(Decided::Unknown),
            1 => candidates.remove(0),
            _ => return Ok(Decided::Ambiguous(candidates)),
        };
        let ids = vec![id.as_str()];
        if decide(db, *fate, now.as_millisecond(), &ids).await? == 1 {
            return Ok(Decided::Done);
        }
        let included = "SELECT included_in FROM runwatch.deliveries WHERE id = $1";
        let row = db.row(included, parameters![id.as_str()]).await?;
        let included_in = row.as_ref().map_or(Ok(None), |row| get(row, 0))?;
        Err(undecidable(&id, included_in))
    }
}

impl Perform for DecideSome {
    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let Self {
            sink,
            fate,
            now,
            after,
        } = self;
        let (sink, after) = (sink.as_str(), after.as_str());
        let (retries, rows) = (*fate == Fate::Retry, ROWS as i64);
        let parameters = parameters![sink, after, retries, rows];
        let ids: Vec<DeliveryId> = db
            .read_all(DECIDABLE_OF_SINK, parameters, |row| {
                delivery_id(get(row, 0)?)
            })
            .await?;
        let texts: Vec<_> = ids.iter().map(DeliveryId::as_str).collect();
        decide(db, *fate, now.as_millisecond(), &texts).await?;
        Ok(ids)
    }
}

impl Perform for SinksWithOpenDeliveries {
    const PIPELINED: bool = true;

    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        db.read_all(OPEN_BY_SINK, &[], |row| {
            let count: i64 = get(row, 1)?;
            Ok((sink_name(get(row, 0)?)?, count.cast_unsigned()))
        })
        .await
    }
}

impl Perform for TakeUp {
    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let release = concat!(
            "UPDATE runwatch.deliveries SET state = 'pending', next_attempt_at = coalesce(next_attempt_at, created_at - ",
            stepped!(),
            ") WHERE state = 'sending' AND state <> 'delivered'",
        );
        db.execute(release, &[]).await.map(drop)
    }
}

/// Applies a fate to deliveries that are not delivered and not being sent. Returns how many these were. Marks their
/// sinks.
async fn decide(db: &Db<'_>, fate: Fate, now: i64, ids: &[&str]) -> Result<u64, StoreError> {
    let change = match fate {
        Fate::Retry => concat!(
            "WITH decided AS (UPDATE runwatch.deliveries SET state = 'pending', next_attempt_at = $1 - ",
            stepped!(),
            ", ended_at = NULL, earlier_tries = attempts, held_until = NULL, at_once = true
                WHERE id = ANY($2) AND state IN ('pending', 'dead') RETURNING sink), "
        ),
        Fate::Drop => {
            "WITH decided AS (UPDATE runwatch.deliveries SET state = 'dead', next_attempt_at = NULL,
                ended_at = coalesce(ended_at, $1)
                WHERE id = ANY($2) AND state IN ('pending', 'dead') RETURNING sink), "
        }
    };
    let sql = format!(
        "{change} marked AS (INSERT INTO runwatch.dirty (kind, key) SELECT DISTINCT 'sink', sink FROM decided WHERE $3)
         SELECT count(*) FROM decided"
    );
    let marks = db.marks();
    let row = db.row(&sql, parameters![now, ids, marks]).await?;
    let count: i64 = row.as_ref().map_or(Ok(0), |row| get(row, 0))?;
    Ok(count.cast_unsigned())
}

/// The deliveries of the events of a watch, with their attempts, in order.
pub(super) async fn of_watch(
    db: &Db<'_>,
    watch: i64,
) -> Result<Vec<(DeliverySummary, Vec<AttemptRecord>)>, StoreError> {
    let sql = concat!(select_deliveries!(), " WHERE e.watch_id = $1 ORDER BY d.id");
    let deliveries = db.read_all(sql, parameters![watch], read_delivery).await?;
    let ids: Vec<_> = deliveries
        .iter()
        .map(|delivery| delivery.id.as_str())
        .collect();
    let attempts =
        "SELECT attempt, at, took_ms, delivered, detail, delivery_id FROM runwatch.attempts
        WHERE delivery_id = ANY($1) ORDER BY delivery_id, attempt";
    let attempts = db.rows(attempts, parameters![ids]).await?;
    let mut with_attempts: Vec<_> = deliveries
        .into_iter()
        .map(|delivery| (delivery, Vec::new()))
        .collect();
    for row in &attempts {
        let of: &str = get(row, 5)?;
        let place = with_attempts.binary_search_by(|(delivery, _)| delivery.id.as_str().cmp(of));
        if let Ok(place) = place {
            with_attempts[place].1.push(read_attempt(row)?);
        }
    }
    Ok(with_attempts)
}

/// The statement that lists deliveries.
pub(super) fn deliveries_sql(filter: &DeliveryFilter) -> String {
    let (which, direction) = deliveries_where(filter, "cardinality($3) = 0", "SELECT unnest($3)");
    let select = select_deliveries!();
    format!("{select} WHERE {which} ORDER BY d.id {direction} LIMIT $4")
}

/// Returns the IDs that begin with `beginning`, the first [`CANDIDATES`] of them; a whole ID has no others beside it.
async fn candidates(db: &Db<'_>, beginning: &DeliveryId) -> Result<Vec<DeliveryId>, StoreError> {
    // In the order of the index, all IDs with this beginning come before the beginning followed by
    // a character that sorts after all letters.
    let select =
        "SELECT id FROM runwatch.deliveries WHERE id >= $1 AND id < $2 ORDER BY id LIMIT $3";
    let text = beginning.as_str();
    let mut ids: Vec<DeliveryId> = db
        .read_all(
            select,
            parameters![text, format!("{text}{{"), CANDIDATES],
            |row| delivery_id(get(row, 0)?),
        )
        .await?;
    if ids.first() == Some(beginning) {
        ids.truncate(1);
    }
    Ok(ids)
}

fn read_attempt(row: &Row) -> Result<AttemptRecord, StoreError> {
    let took_ms: i64 = get(row, 2)?;
    Ok(AttemptRecord {
        attempt: count32(get(row, 0)?),
        at: read_time(get(row, 1)?)?,
        took_ms: took_ms.cast_unsigned(),
        delivered: get(row, 3)?,
        detail: get(row, 4)?,
    })
}
