//! Pruning: it deletes rows older than the retention, and returns free pages to the disk. Each turn
//! is bounded in rows and bytes, so that other writes have their turn soon.

use jiff::Timestamp;
use rusqlite::{Connection, named_params, params};

use super::discoveries::forget_runs;
use super::rows::{read_all, read_id};
use super::writer::Execute;
use crate::domain::SinkName;
use crate::store::model::{Pruned, StoreError};
use crate::store::operations::Prune;
use crate::store::records::{ROWS, choose_within, count_sinks, to_json};

/// Most bytes of run details and events that one turn of pruning deletes, unless one watch has
/// more. SQLite reads all that it deletes: this much takes some 20 ms from memory, and ten times as
/// long from a slow disk.
const BYTES: i64 = 4 * 1024 * 1024;

/// Most pages that one turn of pruning gives back to the disk: 2 MiB.
const PAGES: u32 = 512;

impl Execute for Prune {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self { before, sinks, now } = self;
        let given_up = give_up(db, before, &sinks, now)?;
        let watches = "SELECT id, coalesce(octet_length(details), 0)
                     + (SELECT coalesce(sum(octet_length(body)), 0) FROM payloads p WHERE p.watch_id = w.id)
                     + (SELECT coalesce(sum(octet_length(body)), 0) FROM events e WHERE e.watch_id = w.id)
                 FROM watches w WHERE verdict IS NOT NULL AND verdict_at < ?
                     AND (group_name IS NULL OR group_done = 1) AND NOT EXISTS (
                     SELECT 1 FROM events e JOIN deliveries d ON d.event_seq = e.seq
                     WHERE e.watch_id = w.id AND d.state IN ('pending', 'sending'))
                 ORDER BY verdict_at";
        let notices =
                "SELECT seq, octet_length(body) FROM events e WHERE watch_id IS NULL AND at < ? AND NOT EXISTS (
                     SELECT 1 FROM deliveries d WHERE d.event_seq = e.seq AND d.state IN ('pending', 'sending'))
                     AND e.seq NOT IN (SELECT max(+seq) FROM events WHERE watch_id IS NULL AND type LIKE 'api.%'
                         GROUP BY coalesce(body ->> '$.data.provider', 'crewship'))
                 ORDER BY at";
        let mut room = BYTES;
        let deleted = delete_within(
            db,
            watches,
            "DELETE FROM watches WHERE id = ?",
            before,
            &mut room,
        )? + delete_within(
            db,
            notices,
            "DELETE FROM events WHERE seq = ?",
            before,
            &mut room,
        )? + forget_runs(db, before, now, ROWS)?;
        let freed = if deleted == 0 { give_back(db)? } else { 0 };
        Ok(Pruned {
            deleted,
            given_up,
            freed,
        })
    }

    fn bytes_read(pruned: &Self::Reply) -> usize {
        // Each page that is given back was read, and most are 4 KiB (sqlite.org/pragma.html, "page_size").
        usize::try_from(pruned.freed)
            .unwrap_or(usize::MAX)
            .saturating_mul(4096)
    }
}

/// Gives up deliveries whose sink is not configured.
fn give_up(
    db: &Connection,
    before: Timestamp,
    sinks: &[SinkName],
    now: Timestamp,
) -> Result<Vec<(SinkName, u64)>, StoreError> {
    let sql = "UPDATE deliveries SET state = 'dead', next_attempt_at = NULL, ended_at = :now
         WHERE id IN (SELECT id FROM deliveries
                      WHERE state IN ('pending', 'sending') AND state = 'pending' AND created_at < :before
                        AND sink NOT IN (SELECT value FROM json_each(:sinks))
                      LIMIT :rows)
         RETURNING sink";
    let parameters = named_params! {
        ":now": now.as_millisecond(),
        ":before": before.as_millisecond(),
        ":sinks": to_json("sinks", &sinks)?,
        ":rows": ROWS as i64,
    };
    let given_up = read_all(db, sql, parameters, |row| read_id(row, 0, SinkName::new))?;
    Ok(count_sinks(given_up))
}

/// Deletes the rows of `select`, which returns their numbers and sizes, in order while there is
/// room. A row larger than the room is deleted when it comes first. Returns the number of deleted
/// rows.
fn delete_within(
    db: &Connection,
    select: &str,
    delete: &str,
    before: Timestamp,
    room: &mut i64,
) -> Result<usize, StoreError> {
    let mut select = db.prepare_cached(select)?;
    let mut rows = select.query([before.as_millisecond()])?;
    let chosen = choose_within(room, BYTES, || {
        let row = rows.next()?;
        Ok(row
            .map(|row| Ok::<_, rusqlite::Error>((row.get(0)?, row.get(1)?)))
            .transpose()?)
    })?;
    drop(rows);
    let mut delete = db.prepare_cached(delete)?;
    for number in &chosen {
        delete.execute(params![number])?;
    }
    Ok(chosen.len())
}

/// Removes free pages from the file, if it was created with incremental vacuum. Returns their
/// number.
fn give_back(db: &Connection) -> Result<u32, StoreError> {
    let free: u32 = db.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
    let incremental: u32 = db.pragma_query_value(None, "auto_vacuum", |row| row.get(0))?;
    if free == 0 || incremental != 2 {
        return Ok(0);
    }
    // Each step returns one page to the disk, and an empty row to us.
    let mut vacuum = db.prepare(&format!("PRAGMA incremental_vacuum({PAGES})"))?;
    let mut pages = vacuum.query([])?;
    while pages.next()?.is_some() {}
    let left: u32 = db.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
    Ok(free.saturating_sub(left))
}
