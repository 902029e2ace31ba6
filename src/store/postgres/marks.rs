//! Marks of what daemons that do not lead have changed.
//!
//! Each mark is a row of its own, stored in the transaction of the change: a row that is there already would be taken
//! by the leader before that transaction ends, and the change would be lost to it.

use super::rows::get;
use super::sql::{Db, Perform, parameters};
use crate::store::model::{Mark, StoreError};
use crate::store::operations::TakeMarks;
use crate::store::records::{run_ref, sink_name, unreadable};

/// Takes the oldest marks.
const TAKE: &str =
    "DELETE FROM runwatch.dirty WHERE id IN (SELECT id FROM runwatch.dirty ORDER BY id LIMIT $1)
    RETURNING id, kind, key";

impl Perform for TakeMarks {
    const PIPELINED: bool = true;

    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let limit = i64::from(self.limit);
        let mut rows: Vec<(i64, Mark)> = db
            .read_all(TAKE, parameters![limit], |row| {
                let (kind, key): (&str, &str) = (get(row, 1)?, get(row, 2)?);
                let mark = match kind {
                    "run" => Mark::Run(run_ref(key)?),
                    "sink" => Mark::Sink(sink_name(key)?),
                    other => return Err(unreadable("a kind of mark", &other)),
                };
                Ok((get(row, 0)?, mark))
            })
            .await?;
        rows.sort_by_key(|(id, _)| *id);
        let mut seen = std::collections::BTreeSet::new();
        let marks = rows.into_iter().map(|(_, mark)| mark);
        Ok(marks.filter(|mark| seen.insert(mark.clone())).collect())
    }
}
