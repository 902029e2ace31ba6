//! How long runs of a group took that succeeded.

use jiff::Timestamp;
use rusqlite::{Connection, params};

use super::rows::{read_all, read_id};
use super::writer::Execute;
use crate::domain::{KEPT_DURATIONS, KEPT_GROUPS, ProviderName};
use crate::store::model::StoreError;
use crate::store::operations::{Durations, DurationsOf};
use crate::store::records::{PastRow, from_json, to_json};

/// The durations of the groups of a provider.
pub(super) const OF_PROVIDER: &str =
    "SELECT run_group, ran_ms FROM past_durations WHERE provider = ? ORDER BY newest_at, run_group";

/// The durations of some groups, given as a JSON array of pairs.
pub(super) const OF_GROUPS: &str = "SELECT provider, run_group, ran_ms FROM json_each(?)
     JOIN past_durations ON provider = json_each.value ->> 0 AND run_group = json_each.value ->> 1";

/// The groups of a provider beyond so many, those whose runs ended last left out.
pub(super) const TOO_MANY: &str = "SELECT run_group FROM past_durations WHERE provider = ?1
     ORDER BY newest_at DESC, run_group DESC LIMIT -1 OFFSET ?2";

/// Adds the duration of a run that succeeded at `now`.
pub(super) fn add(db: &Connection, run: &PastRow, now: Timestamp) -> Result<(), StoreError> {
    let now = now.as_millisecond();
    let added = db
        .prepare_cached(
            "UPDATE past_durations SET newest_at = ?3, ran_ms = json_insert(
                 iif(json_array_length(ran_ms) >= ?5, json_remove(ran_ms, '$[0]'), ran_ms), '$[#]', ?4)
             WHERE provider = ?1 AND run_group = ?2",
        )?
        .execute(params![
            run.provider,
            run.group,
            now,
            run.ran_ms,
            KEPT_DURATIONS as i64
        ])?;
    if added > 0 {
        return Ok(());
    }
    db.prepare_cached("INSERT INTO past_durations VALUES (?, ?, ?, json_array(?))")?
        .execute(params![run.provider, run.group, now, run.ran_ms])?;
    let mut delete =
        db.prepare_cached("DELETE FROM past_durations WHERE provider = ? AND run_group = ?")?;
    let others: Vec<String> = read_all(
        db,
        TOO_MANY,
        params![run.provider, KEPT_GROUPS as i64],
        |row| Ok(row.get(0)?),
    )?;
    for group in others {
        delete.execute([&run.provider, &group])?;
    }
    Ok(())
}

impl Execute for DurationsOf {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        read_all(db, OF_PROVIDER, [self.provider.as_str()], |row| {
            let ran_ms: String = row.get(1)?;
            Ok((row.get(0)?, from_json("durations", &ran_ms)?))
        })
    }
}

impl Execute for Durations {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        read_all(db, OF_GROUPS, [to_json("groups", &self.groups)?], |row| {
            let ran_ms: String = row.get(2)?;
            let provider = read_id(row, 0, ProviderName::new)?;
            Ok(((provider, row.get(1)?), from_json("durations", &ran_ms)?))
        })
    }
}
