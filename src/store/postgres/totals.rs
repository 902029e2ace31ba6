//! How many watches and deliveries there are. They are counted, in indexes that have nothing but them.

use super::rows::get;
use super::sql::{Db, Perform};
use crate::domain::Verdict;
use crate::metrics::{SinkGauges, StoreGauges};
use crate::store::model::{Counts, StoreError};
use crate::store::operations::{CountAll, Gauges};
use crate::store::records::{age, sink_name};

/// How many watches are active, and how many deliveries are open and dead.
pub(super) const COUNTS: &str = "SELECT (SELECT count(*) FROM runwatch.watches WHERE verdict IS NULL),
    (SELECT count(*) FROM runwatch.deliveries WHERE state <> 'delivered' AND state IN ('pending', 'sending')),
    (SELECT count(*) FROM runwatch.deliveries WHERE state <> 'delivered' AND state = 'dead')";

/// How many watches are finished.
pub(super) const FINISHED: &str = "SELECT count(*) FROM runwatch.watches WHERE verdict IS NOT NULL";

/// The sinks of deliveries that have not arrived, with how many are open and how many dead, and when the oldest open one
/// was made, or was not held any more.
pub(super) const BY_SINK: &str = "SELECT sink, open, dead, (SELECT min(coalesce(held_until, created_at)) FROM runwatch.deliveries d
        WHERE d.sink = counts.sink AND d.state IN ('pending', 'sending'))
    FROM (SELECT sink, count(*) FILTER (WHERE state <> 'dead') AS open, count(*) FILTER (WHERE state = 'dead') AS dead
        FROM runwatch.deliveries WHERE state <> 'delivered' GROUP BY sink) counts ORDER BY sink";

impl Perform for CountAll {
    const PIPELINED: bool = true;

    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        counts(db).await
    }
}

impl Perform for Gauges {
    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let Self { now, sinks } = self;
        let mut deliveries = db
            .read_all(BY_SINK, &[], |row| {
                let (open, dead): (i64, i64) = (get(row, 1)?, get(row, 2)?);
                let oldest: Option<i64> = get(row, 3)?;
                Ok(SinkGauges {
                    sink: sink_name(get(row, 0)?)?,
                    pending: open.cast_unsigned(),
                    dead: dead.cast_unsigned(),
                    oldest_pending: oldest.map(|at| age(at, *now)).transpose()?,
                })
            })
            .await?;
        for sink in sinks {
            if !deliveries.iter().any(|known| known.sink == *sink) {
                deliveries.push(SinkGauges::idle(sink.clone()));
            }
        }
        let active = counts(db).await?.active;
        let row = db.row(FINISHED, &[]).await?;
        let finished = row.as_ref().map(|row| get::<i64>(row, 0)).transpose()?;
        Ok(StoreGauges {
            active,
            finished: finished.unwrap_or_default().cast_unsigned(),
            deliveries,
        })
    }
}

/// How many watches and deliveries are open.
///
/// # Errors
/// When the server reports one.
pub(super) async fn counts(db: &Db<'_>) -> Result<Counts, StoreError> {
    let Some(row) = db.row(COUNTS, &[]).await? else {
        return Ok(Counts::default());
    };
    let count = |column| get::<i64>(&row, column).map(i64::cast_unsigned);
    Ok(Counts {
        active: count(0)?,
        pending: count(1)?,
        dead: count(2)?,
    })
}

/// The worst verdict of the stored watches.
pub(super) async fn worst_verdict(db: &Db<'_>) -> Result<Option<Verdict>, StoreError> {
    let given = "WITH RECURSIVE given AS (
            (SELECT verdict FROM runwatch.watches WHERE verdict IS NOT NULL ORDER BY verdict LIMIT 1)
            UNION ALL SELECT (SELECT w.verdict FROM runwatch.watches w
                WHERE w.verdict IS NOT NULL AND w.verdict > given.verdict ORDER BY w.verdict LIMIT 1)
            FROM given WHERE given.verdict IS NOT NULL)
        SELECT verdict FROM given WHERE verdict IS NOT NULL";
    let words: Vec<String> = db.read_all(given, &[], |row| get(row, 0)).await?;
    Ok(Verdict::worst(
        words.iter().filter_map(|word| Verdict::from_word(word)),
    ))
}
