//! Groups of watches: what happens when the last one has its verdict, or is removed.

use jiff::Timestamp;
use tokio_postgres::Row;

use super::rows::get;
use super::sql::{Db, Perform, parameters};
use crate::domain::{GroupMember, Routes};
use crate::store::model::StoreError;
use crate::store::operations::{FinishGroups, HasCompleteGroup, RecordEvent, RecordGroupStep};
use crate::store::records::{GroupCounts, MemberRow, ROWS, group_finished};

/// The open group of a watch, where none of its watches is active.
pub(super) const GROUP_WITHOUT_ACTIVE: &str = "SELECT group_name FROM runwatch.watches w
    WHERE id = $1 AND group_name IS NOT NULL AND NOT group_done AND NOT EXISTS (
        SELECT 1 FROM runwatch.watches o WHERE o.group_name = w.group_name AND o.group_name IS NOT NULL
            AND NOT o.group_done AND o.verdict IS NULL)";

/// What an open group has.
pub(super) const COUNTS_OF_GROUP: &str = "SELECT count(*), min(group_size) FROM runwatch.watches
    WHERE group_name = $1 AND group_name IS NOT NULL AND NOT group_done";

/// The open groups whose watches all have verdicts, and that have all their watches; and those whose oldest verdict is from
/// before a time, also where further watches never end all at once.
pub(super) const COMPLETE_GROUPS: &str = "SELECT group_name FROM runwatch.watches
    WHERE group_name IS NOT NULL AND NOT group_done
    GROUP BY group_name HAVING min(verdict_at) < $1 OR (count(*) FILTER (WHERE verdict IS NULL) = 0
        AND (min(group_size) IS NULL OR count(*) >= min(group_size)))
    LIMIT $2";

/// Takes the watches of an open group that have verdicts. One that another daemon adds at the same time stays open, for
/// a new group.
const TAKE_MEMBERS: &str = "WITH taken AS (
        UPDATE runwatch.watches SET group_done = true
        WHERE group_name = $1 AND group_name IS NOT NULL AND NOT group_done AND verdict IS NOT NULL
        RETURNING id, run_id, name, labels, sinks, verdict, group_size)
    SELECT run_id, name, labels, sinks, verdict, group_size FROM taken ORDER BY id";

/// Makes an open group smaller by so many watches. Returns how many watches it has.
const SHRINK_ONE: &str = "UPDATE runwatch.watches SET group_size = group_size - $2
    WHERE group_name = $1 AND group_name IS NOT NULL AND NOT group_done AND group_size IS NOT NULL";

/// Makes the groups smaller to which watches belong that are about to be removed.
const SHRINK: &str = "UPDATE runwatch.watches w SET group_size = group_size - gone.watches
    FROM (SELECT group_name, count(*) AS watches FROM runwatch.watches
        WHERE id = ANY($1) AND group_name IS NOT NULL AND NOT group_done GROUP BY group_name) AS gone
    WHERE w.group_name = gone.group_name AND w.group_name IS NOT NULL AND NOT w.group_done AND w.group_size IS NOT NULL";

impl Perform for RecordGroupStep {
    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let Self { step, routes } = self;
        step.perform(db).await?;
        let row = db
            .row(GROUP_WITHOUT_ACTIVE, parameters![step.watch.0])
            .await?;
        let Some(row) = row else {
            return Ok(());
        };
        let group: &str = get(&row, 0)?;
        let row = db.row(COUNTS_OF_GROUP, parameters![group]).await?;
        let counts = |row: &Row| {
            Ok::<_, StoreError>(GroupCounts {
                total: get(row, 0)?,
                size: get(row, 1)?,
            })
        };
        match row.as_ref().map(counts).transpose()? {
            Some(counts) if counts.is_complete() => finish(db, group, routes, step.now).await,
            Some(_) | None => Ok(()),
        }
    }
}

impl Perform for HasCompleteGroup {
    const PIPELINED: bool = true;

    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let before = self.before.as_millisecond();
        let row = db.row(COMPLETE_GROUPS, parameters![before, 1_i64]).await?;
        Ok(row.is_some())
    }
}

impl Perform for FinishGroups {
    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let (before, rows) = (self.before.as_millisecond(), ROWS as i64);
        let groups: Vec<String> = db
            .read_all(COMPLETE_GROUPS, parameters![before, rows], |row| {
                get(row, 0)
            })
            .await?;
        for group in &groups {
            finish(db, group, &self.routes, self.now).await?;
        }
        Ok(groups.len())
    }
}

/// Makes the groups smaller to which watches belong that are about to be removed.
pub(super) async fn leave(db: &Db<'_>, ids: &[i64]) -> Result<(), StoreError> {
    db.execute(SHRINK, parameters![ids]).await.map(drop)
}

/// Stores the event about the watches of an open group that have verdicts. Those that go on, and those that are added later,
/// belong to a new one.
async fn finish(
    db: &Db<'_>,
    group: &str,
    routes: &Routes,
    now: Timestamp,
) -> Result<(), StoreError> {
    let members = db
        .read_all(TAKE_MEMBERS, parameters![group], read_member)
        .await?;
    if members.is_empty() {
        return Ok(());
    }
    let left = db
        .execute(SHRINK_ONE, parameters![group, members.len() as i64])
        .await?;
    let event = RecordEvent {
        watch: None,
        routed: group_finished(group, &members, left, routes, now),
        now,
    };
    event.perform(db).await
}

/// Reads the columns of a watch, which are the first.
pub(super) fn read_member(row: &Row) -> Result<GroupMember, StoreError> {
    let columns = MemberRow {
        run_id: get(row, 0)?,
        name: get(row, 1)?,
        labels: get(row, 2)?,
        sinks: get(row, 3)?,
        verdict: get(row, 4)?,
        size: get(row, 5)?,
    };
    columns.member()
}
