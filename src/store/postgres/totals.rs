//! How many watches and deliveries there are. They are counted, in indexes that have nothing but them.

use std::time::Duration;

use super::rows::get;
use super::sql::{Db, Perform};
use crate::domain::Verdict;
use crate::metrics::StoreGauges;
use crate::store::model::{Counts, StoreError};
use crate::store::operations::{CountAll, Gauges};
use crate::store::records::{read_time, sink_name};

/// How many watches are active, and how many deliveries are open and dead.
pub(super) const COUNTS: &str = "SELECT (SELECT count(*) FROM runwatch.watches WHERE verdict IS NULL),
    (SELECT count(*) FROM runwatch.deliveries WHERE state <> 'delivered' AND state IN ('pending', 'sending')),
    (SELECT count(*) FROM runwatch.deliveries WHERE state <> 'delivered' AND state = 'dead')";

/// How many watches are finished, and when the oldest delivery was made that has not arrived and was not given up, or
/// was not held any more.
pub(super) const FINISHED: &str =
    "SELECT (SELECT count(*) FROM runwatch.watches WHERE verdict IS NOT NULL),
    least((SELECT min(created_at) FROM runwatch.deliveries WHERE state IN ('pending', 'sending') AND held_until IS NULL),
        (SELECT min(held_until) FROM runwatch.deliveries
            WHERE state IN ('pending', 'sending') AND held_until IS NOT NULL))";

/// The sinks of deliveries that have not arrived, with how many are open and how many dead.
pub(super) const BY_SINK: &str =
    "SELECT sink, count(*) FILTER (WHERE state <> 'dead'), count(*) FILTER (WHERE state = 'dead')
    FROM runwatch.deliveries WHERE state <> 'delivered' GROUP BY sink ORDER BY sink";

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
                let sink = sink_name(get(row, 0)?)?;
                Ok((sink, open.cast_unsigned(), dead.cast_unsigned()))
            })
            .await?;
        for sink in sinks {
            if !deliveries.iter().any(|(known, ..)| known == sink) {
                deliveries.push((sink.clone(), 0, 0));
            }
        }
        let active = counts(db).await?.active;
        let row = db.row(FINISHED, &[]).await?;
        let (finished, oldest) = match &row {
            Some(row) => (get::<i64>(row, 0)?, get::<Option<i64>>(row, 1)?),
            None => (0, None),
        };
        let age = oldest
            .map(read_time)
            .transpose()?
            .map(|oldest| now.duration_since(oldest));
        Ok(StoreGauges {
            active,
            finished: finished.cast_unsigned(),
            deliveries,
            oldest_pending: age.map(|age| Duration::try_from(age).unwrap_or_default()),
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
