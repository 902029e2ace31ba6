//! Totals: the number of watches by state and verdict, and of deliveries by sink and state.

use rusqlite::{Connection, OptionalExtension as _};

use super::rows::{read_all, read_id};
use super::writer::Execute;
use crate::domain::{SinkName, Verdict};
use crate::metrics::{SinkGauges, StoreGauges};
use crate::store::model::{Counts, StoreError};
use crate::store::operations::{CountAll, Gauges};
use crate::store::records::age;

/// How many rows of a kind there are.
pub(super) const TOTAL: &str = "SELECT coalesce(sum(total), 0) FROM totals WHERE what = ?";

/// When the oldest delivery of a sink was made, or was not held any more, that has not arrived and was not given up.
pub(super) const OLDEST_OPEN: &str = "SELECT coalesce(held_until, created_at) FROM deliveries
    WHERE sink = ? AND state IN ('pending', 'sending') ORDER BY coalesce(held_until, created_at) LIMIT 1";

impl Execute for CountAll {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let pending = total(db, "pending")? + total(db, "sending")?;
        Ok(Counts {
            active: total(db, "active")?,
            pending,
            dead: total(db, "dead")?,
        })
    }
}

impl Execute for Gauges {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self { now, sinks } = self;
        let sql = "SELECT sink, coalesce(sum(total) FILTER (WHERE what != 'dead'), 0),
                           coalesce(sum(total) FILTER (WHERE what = 'dead'), 0)
                       FROM totals WHERE what IN ('pending', 'sending', 'dead') GROUP BY sink HAVING sum(total) > 0";
        let mut deliveries = read_all(db, sql, [], |row| {
            let count = |index| row.get::<_, i64>(index).map(i64::cast_unsigned);
            Ok(SinkGauges {
                sink: read_id(row, 0, SinkName::new)?,
                pending: count(1)?,
                dead: count(2)?,
                oldest_pending: None,
            })
        })?;
        for of_sink in &mut deliveries {
            let mut oldest = db.prepare_cached(OLDEST_OPEN)?;
            let oldest: Option<i64> = oldest
                .query_row([of_sink.sink.as_str()], |row| row.get(0))
                .optional()?;
            of_sink.oldest_pending = oldest.map(|at| age(at, now)).transpose()?;
        }
        let absent = |name: &SinkName| !deliveries.iter().any(|known| known.sink == *name);
        let absent: Vec<_> = sinks.into_iter().filter(absent).collect();
        deliveries.extend(absent.into_iter().map(SinkGauges::idle));
        Ok(StoreGauges {
            active: total(db, "active")?,
            finished: Verdict::WORST_FIRST
                .into_iter()
                .map(|verdict| total(db, verdict.as_str()))
                .sum::<Result<_, _>>()?,
            deliveries,
        })
    }
}

/// Returns the verdicts of the stored watches, each once, the worst first.
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

/// How many watches are active or have a verdict, or how many deliveries are in a state: kept by
/// triggers, so that it takes no longer the more is stored.
fn total(db: &Connection, what: &str) -> Result<u64, StoreError> {
    Ok(db
        .prepare_cached(TOTAL)?
        .query_row([what], |row| row.get::<_, i64>(0))?
        .cast_unsigned())
}
