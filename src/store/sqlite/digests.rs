//! Summaries of what ended while nothing watched.

use rusqlite::{Connection, params};

use super::events::insert_event;
use super::groups::read_member;
use super::rows::{read_all, stepped};
use super::writer::Execute;
use crate::store::model::StoreError;
use crate::store::operations::Summarize;
use crate::store::records::{SUMMARIZED_AT_ONCE, Summarized, summarized};

/// The deliveries of a sink that wait for a summary, some of them, with their watches.
pub(super) const WAITING: &str =
    "SELECT d.id, w.run_id, w.name, w.labels, w.sinks, w.verdict, w.group_size
    FROM deliveries d JOIN events e ON e.seq = d.event_seq JOIN watches w ON w.id = e.watch_id
    WHERE d.sink = ? AND d.state = 'pending' AND d.next_attempt_at IS NULL
    ORDER BY d.id LIMIT ?";

impl Execute for Summarize {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self { sink, digest, now } = self;
        let waiting = params![sink.as_str(), SUMMARIZED_AT_ONCE as i64];
        let (ids, members): (Vec<_>, Vec<_>) = read_all(db, WAITING, waiting, |row| {
            Ok((row.get::<_, String>(0)?, read_member(row)?))
        })?
        .into_iter()
        .unzip();
        let at = now.as_millisecond();
        match summarized(&sink, digest, &members, now) {
            Summarized::Released => {
                let mut release = db.prepare_cached(concat!(
                    "UPDATE deliveries SET next_attempt_at = ? - ",
                    stepped!(),
                    " WHERE id = ?"
                ))?;
                for id in &ids {
                    release.execute(params![at, id])?;
                }
            }
            Summarized::Included(event) => {
                insert_event(db, None, event, now)?;
                let summary: String = db
                    .prepare_cached("SELECT id FROM deliveries WHERE event_seq = ?")?
                    .query_row([db.last_insert_rowid()], |row| row.get(0))?;
                let mut include = db.prepare_cached(
                    "UPDATE deliveries SET state = 'delivered', ended_at = ?, included_in = ? WHERE id = ?",
                )?;
                for id in &ids {
                    include.execute(params![at, summary, id])?;
                }
            }
        }
        Ok(ids.len())
    }
}
