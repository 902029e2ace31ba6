//! Totals: the number of watches by state and verdict, and of deliveries by sink and state.

use std::time::Duration;

use rusqlite::Connection;

use super::rows::{read_all, read_id};
use super::writer::Execute;
use crate::domain::{SinkName, Verdict};
use crate::metrics::StoreGauges;
use crate::store::model::{Counts, StoreError};
use crate::store::operations::{CountAll, Gauges};
use crate::store::records::read_time;

/// How many rows of a kind there are.
pub(super) const TOTAL: &str = "SELECT coalesce(sum(total), 0) FROM totals WHERE what = ?";

/// When the oldest delivery was made that has not arrived, was not given up and was never held.
pub(super) const OLDEST_OPEN: &str = "SELECT min(created_at) FROM deliveries WHERE state IN ('pending', 'sending') AND held_until IS NULL";

/// Until when the oldest delivery was held, or is, that has not arrived and was not given up.
pub(super) const OLDEST_HELD: &str = "SELECT min(held_until) FROM deliveries WHERE state IN ('pending', 'sending') AND held_until IS NOT NULL";

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
            Ok((read_id(row, 0, SinkName::new)?, count(1)?, count(2)?))
        })?;
        let absent = |name: &SinkName| !deliveries.iter().any(|(sink, ..)| sink == name);
        let absent: Vec<_> = sinks.into_iter().filter(absent).collect();
        deliveries.extend(absent.into_iter().map(|sink| (sink, 0, 0)));
        let oldest = |sql| -> Result<Option<i64>, StoreError> {
            Ok(db.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
        };
        let oldest = [oldest(OLDEST_OPEN)?, oldest(OLDEST_HELD)?];
        let age = oldest
            .into_iter()
            .flatten()
            .min()
            .map(read_time)
            .transpose()?
            .map(|oldest| now.duration_since(oldest));
        Ok(StoreGauges {
            active: total(db, "active")?,
            finished: Verdict::WORST_FIRST
                .into_iter()
                .map(|verdict| total(db, verdict.as_str()))
                .sum::<Result<_, _>>()?,
            deliveries,
            oldest_pending: age.map(|age| Duration::try_from(age).unwrap_or_default()),
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
