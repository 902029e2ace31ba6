//! Groups of watches: what happens when the last one has its verdict, or is removed.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::events::insert_event;
use super::rows::read_all;
use super::writer::Execute;
use crate::domain::{GroupMember, Routes, RunRef};
use crate::store::model::StoreError;
use crate::store::operations::{FinishGroups, HasCompleteGroup, RecordGroupStep};
use crate::store::records::{GroupCounts, MemberRow, ROWS, group_finished};

/// A watch of an open group that has no verdict.
pub(super) const ACTIVE_IN_GROUP: &str =
    "SELECT 1 FROM watches WHERE group_name = ? AND group_name IS NOT NULL
    AND group_done = 0 AND verdict IS NULL LIMIT 1";

/// What an open group has.
pub(super) const COUNTS_OF_GROUP: &str = "SELECT count(*), min(group_size)
    FROM watches WHERE group_name = ? AND group_name IS NOT NULL AND group_done = 0";

/// The open groups whose watches all have verdicts, and that have all their watches; and those whose oldest verdict is from
/// before a time, also where further watches never end all at once.
pub(super) const COMPLETE_GROUPS: &str =
    "SELECT group_name FROM watches WHERE group_name IS NOT NULL AND group_done = 0
    GROUP BY group_name HAVING min(verdict_at) < ? OR (count(*) FILTER (WHERE verdict IS NULL) = 0
        AND (min(group_size) IS NULL OR count(*) >= min(group_size)))
    LIMIT ?";

impl Execute for RecordGroupStep {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self { step, routes } = self;
        let (watch, now) = (step.watch, step.now);
        step.execute(db)?;
        let group: Option<String> = db
            .prepare_cached("SELECT group_name FROM watches WHERE id = ? AND group_done = 0")?
            .query_row([watch.0], |row| row.get(0))
            .optional()?
            .flatten();
        match group {
            Some(group) if is_complete(db, &group)? => finish(db, &group, &routes, now),
            Some(_) | None => Ok(()),
        }
    }
}

impl Execute for HasCompleteGroup {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let parameters = params![self.before.as_millisecond(), 1];
        Ok(db.prepare_cached(COMPLETE_GROUPS)?.exists(parameters)?)
    }
}

impl Execute for FinishGroups {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self {
            routes,
            before,
            now,
        } = self;
        let parameters = params![before.as_millisecond(), ROWS as i64];
        let groups = read_all(db, COMPLETE_GROUPS, parameters, |row| {
            Ok(row.get::<_, String>(0)?)
        })?;
        for group in &groups {
            finish(db, group, &routes, now)?;
        }
        Ok(groups.len())
    }
}

/// Makes an open group smaller by so many watches. Returns how many watches it has.
const SHRINK: &str = "UPDATE watches SET group_size = group_size - ?2
    WHERE group_name = ?1 AND group_name IS NOT NULL AND group_done = 0 AND group_size IS NOT NULL";

/// Makes the groups smaller to which watches of a run belong that are about to be removed.
pub(super) fn leave(db: &Connection, run_id: &RunRef) -> Result<(), StoreError> {
    let left = "SELECT group_name, count(*) FROM watches
        WHERE run_id = ? AND group_name IS NOT NULL AND group_done = 0 GROUP BY group_name";
    let left = read_all(db, left, [run_id.as_str()], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?))
    })?;
    let mut shrink = db.prepare_cached(SHRINK)?;
    for (group, watches) in left {
        shrink.execute(params![group, watches])?;
    }
    Ok(())
}

/// Whether an open group waits for nothing.
fn is_complete(db: &Connection, group: &str) -> Result<bool, StoreError> {
    let has_active = db.prepare_cached(ACTIVE_IN_GROUP)?.exists([group])?;
    if has_active {
        return Ok(false);
    }
    let counts = db
        .prepare_cached(COUNTS_OF_GROUP)?
        .query_row([group], |row| {
            Ok(GroupCounts {
                total: row.get(0)?,
                size: row.get(1)?,
            })
        })?;
    Ok(counts.is_complete())
}

/// Reads the columns of a watch, which are those after the first.
pub(super) fn read_member(row: &Row<'_>) -> Result<GroupMember, StoreError> {
    let columns = MemberRow {
        run_id: row.get(1)?,
        name: row.get(2)?,
        labels: row.get(3)?,
        sinks: row.get(4)?,
        verdict: row.get(5)?,
        size: row.get(6)?,
    };
    columns.member()
}

/// Stores the event about the watches of an open group that have verdicts. Those that go on, and those that are added later,
/// belong to a new one.
fn finish(db: &Connection, group: &str, routes: &Routes, now: Timestamp) -> Result<(), StoreError> {
    let members = "UPDATE watches SET group_done = 1
        WHERE group_name = ? AND group_name IS NOT NULL AND group_done = 0 AND verdict IS NOT NULL
        RETURNING id, run_id, name, labels, sinks, verdict, group_size";
    let mut members = read_all(db, members, [group], |row| {
        Ok((row.get::<_, i64>(0)?, read_member(row)?))
    })?;
    if members.is_empty() {
        return Ok(());
    }
    members.sort_unstable_by_key(|(id, _)| *id);
    let members: Vec<_> = members.into_iter().map(|(_, member)| member).collect();
    let left = db
        .prepare_cached(SHRINK)?
        .execute(params![group, members.len() as i64])?;
    let finished = group_finished(group, &members, left as u64, routes, now);
    insert_event(db, None, finished, now)
}
