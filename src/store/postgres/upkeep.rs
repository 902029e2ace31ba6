//! Pruning: it deletes rows older than the retention. Each turn is bounded in rows and bytes, so that other writes have
//! their turn soon. PostgreSQL itself uses the room of deleted rows again.

use jiff::Timestamp;

use super::discoveries::forget_runs;
use super::events::{delete_events, delete_watches};
use super::rows::get;
use super::sql::{Db, Perform, parameters};
use crate::domain::SinkName;
use crate::store::model::{Pruned, StoreError};
use crate::store::operations::Prune;
use crate::store::records::{ROWS, choose_within, count_sinks, sink_name};

/// Most bytes of run details and events that one turn of pruning deletes, unless one watch has more.
const BYTES: i64 = 4 * 1024 * 1024;

/// Watches that ended before a time and have nothing to deliver, with their sizes, the oldest end first.
pub(super) const OLD_WATCHES: &str = "SELECT id, coalesce(octet_length(details), 0)
        + (SELECT coalesce(sum(octet_length(body)), 0) FROM runwatch.payloads p WHERE p.watch_id = w.id)
        + (SELECT coalesce(sum(octet_length(body)), 0) FROM runwatch.events e WHERE e.watch_id = w.id)
    FROM runwatch.watches w WHERE verdict IS NOT NULL AND verdict_at < $1
        AND (group_name IS NULL OR group_done) AND NOT EXISTS (
        SELECT 1 FROM runwatch.events e JOIN runwatch.deliveries d ON d.event_seq = e.seq
        WHERE e.watch_id = w.id AND d.state IN ('pending', 'sending'))
    ORDER BY verdict_at, run_id LIMIT $2";

/// Events about no watch that are older than a time and have nothing to deliver, but for the newest about each API.
pub(super) const OLD_NOTICES: &str = "SELECT seq, octet_length(body)::bigint
    FROM runwatch.events e WHERE watch_id IS NULL AND at < $1 AND NOT EXISTS (
        SELECT 1 FROM runwatch.deliveries d WHERE d.event_seq = e.seq AND d.state IN ('pending', 'sending'))
        AND (provider IS NULL OR EXISTS (
            SELECT 1 FROM runwatch.events n WHERE n.provider = e.provider AND n.seq > e.seq))
    ORDER BY at, seq LIMIT $2";

impl Perform for Prune {
    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let Self { before, sinks, now } = self;
        let given_up = give_up(db, *before, sinks, *now).await?;
        let mut room = BYTES;
        let watches = old_rows(db, OLD_WATCHES, *before, &mut room).await?;
        let notices = old_rows(db, OLD_NOTICES, *before, &mut room).await?;
        if !watches.is_empty() {
            delete_watches(db, &watches).await?;
        }
        if !notices.is_empty() {
            delete_events(db, &notices).await?;
        }
        let deleted = watches.len() + notices.len() + forget_runs(db, *before, *now, ROWS).await?;
        Ok(Pruned {
            deleted,
            given_up,
            freed: 0,
        })
    }
}

/// Gives up deliveries whose sink is not configured.
async fn give_up(
    db: &Db<'_>,
    before: Timestamp,
    sinks: &[SinkName],
    now: Timestamp,
) -> Result<Vec<(SinkName, u64)>, StoreError> {
    let sql = "UPDATE runwatch.deliveries SET state = 'dead', next_attempt_at = NULL, ended_at = $1
         WHERE state = 'pending' AND id IN (SELECT id FROM runwatch.deliveries
                      WHERE state IN ('pending', 'sending') AND state = 'pending' AND created_at < $2
                        AND sink <> ALL($3)
                      LIMIT $4)
         RETURNING sink";
    let sinks: Vec<_> = sinks.iter().map(SinkName::as_str).collect();
    let (now, before) = (now.as_millisecond(), before.as_millisecond());
    let given_up = db
        .read_all(sql, parameters![now, before, sinks, ROWS as i64], |row| {
            sink_name(get(row, 0)?)
        })
        .await?;
    Ok(count_sinks(given_up))
}

/// The numbers of the rows of `select`, which returns them with their sizes, in order while there is room.
async fn old_rows(
    db: &Db<'_>,
    select: &str,
    before: Timestamp,
    room: &mut i64,
) -> Result<Vec<i64>, StoreError> {
    let found: Vec<(i64, i64)> = db
        .read_all(
            select,
            parameters![before.as_millisecond(), ROWS as i64],
            |row| Ok((get(row, 0)?, get(row, 1)?)),
        )
        .await?;
    let mut found = found.into_iter();
    choose_within(room, BYTES, || Ok(found.next()))
}
