//! Discoveries: how far each has come, and which runs it noted.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::rows::read_all;
use super::watches::insert_watch;
use super::writer::Execute;
use crate::domain::{RunRef, WatchOrigin};
use crate::store::model::{
    Added, DiscoveryId, KnownRun, KnownWatch, NotedRun, RunNote, StoreError, StoredDiscovery,
};
use crate::store::operations::{AddDiscoveredWatch, EndRound, KnownRuns, NoteRuns, SetDiscoveries};
use crate::store::records::{notes_kept_since, optional_time, read_time, to_json};

/// The notes of a discovery that are older than a time.
pub(super) const OLD_NOTES: &str = "SELECT run_id FROM discovered_runs WHERE discovery = ? AND seen_at < ? ORDER BY seen_at LIMIT ?";

/// What is known of a run.
pub(super) const KNOWN_NOTE: &str = "SELECT attempt, ended_at, round, seen_at FROM discovered_runs WHERE discovery = ? AND run_id = ?";

/// The newest watch of a run, as [`read_known_watch`] reads it.
pub(super) const KNOWN_WATCH: &str =
    "SELECT verdict IS NULL, details ->> '$.attempt', details ->> '$.completed_at', verdict_at
     FROM watches WHERE run_id = ? ORDER BY id DESC LIMIT 1";

impl Execute for SetDiscoveries {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self { discoveries, now } = self;
        let mut begin = db.prepare_cached(
            "INSERT INTO discoveries (provider, match, began_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        )?;
        for (provider, parameters) in &discoveries {
            begin.execute(params![provider.as_str(), parameters, now.as_millisecond()])?;
        }
        let kept = to_json("discoveries", &discoveries)?;
        db.prepare_cached(
            "DELETE FROM discoveries WHERE NOT EXISTS (SELECT 1 FROM json_each(?) kept
                 WHERE kept.value ->> 0 = provider AND kept.value ->> 1 = match)",
        )?
        .execute([kept])?;
        let mut read = db.prepare_cached(
            "SELECT id, began_at, rounds, cursor_at, found, watched, settled_at FROM discoveries WHERE provider = ? AND match = ?",
        )?;
        let mut stored = Vec::with_capacity(discoveries.len());
        for (provider, parameters) in &discoveries {
            let mut rows = read.query([provider.as_str(), parameters])?;
            if let Some(row) = rows.next()? {
                stored.push(read_discovery(row)?);
            }
        }
        Ok(stored)
    }
}

impl Execute for KnownRuns {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self { discovery, run_ids } = self;
        let known = |run_id: &RunRef| {
            let noted = read_all(
                db,
                KNOWN_NOTE,
                params![discovery.0, run_id.as_str()],
                |row| {
                    Ok(NotedRun {
                        attempt: read_attempt(row, 0)?,
                        ended_at: optional_time(row.get(1)?)?,
                        round: row.get::<_, i64>(2)?.cast_unsigned(),
                        seen_at: read_time(row.get(3)?)?,
                    })
                },
            )?;
            Ok(KnownRun {
                noted: noted.into_iter().next(),
                watch: known_watch(db, run_id)?,
            })
        };
        run_ids.iter().map(known).collect()
    }
}

impl Execute for NoteRuns {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self {
            discovery,
            notes,
            now,
        } = self;
        notes
            .iter()
            .try_for_each(|note| note_run(db, discovery, note, now).map(|_noted| ()))
    }
}

impl Execute for AddDiscoveredWatch {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self { watch, found } = self;
        if !note_run(db, found.discovery, &found.note, watch.added_at)? {
            return Ok((Added::AlreadyExists, None));
        }
        let known = known_watch(db, &watch.run_id)?;
        let stays = known.is_some_and(|known| {
            let observed = known.attempt.zip(found.note.attempt);
            known.is_active
                || !found.again
                || observed.is_some_and(|(observed, listed)| observed >= listed)
        });
        if stays {
            return Ok((Added::AlreadyExists, None));
        }
        let origin = WatchOrigin::Discovery(found.title);
        let (added, id) = insert_watch(db, &watch, &origin)?;
        db.prepare_cached("UPDATE discoveries SET watched = watched + 1 WHERE id = ?")?
            .execute([found.discovery.0])?;
        Ok((added, Some(id)))
    }
}

impl Execute for EndRound {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let Self {
            discovery,
            began_at,
            settled_at,
        } = self;
        let (began_at, settled_at) = (began_at.as_millisecond(), settled_at.as_millisecond());
        db.prepare_cached(
            "UPDATE discoveries SET rounds = rounds + 1, cursor_at = ?, settled_at = ? WHERE id = ?",
        )?
        .execute([began_at, settled_at, discovery.0])?;
        Ok(())
    }
}

/// Notes a run. Returns whether the discovery is there.
fn note_run(
    db: &Connection,
    discovery: DiscoveryId,
    note: &RunNote,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let is_known = db
        .prepare_cached("SELECT 1 FROM discovered_runs WHERE discovery = ? AND run_id = ?")?
        .exists(params![discovery.0, note.run_id.as_str()])?;
    let noted = db
        .prepare_cached(
            "INSERT INTO discovered_runs (discovery, run_id, attempt, ended_at, round, seen_at)
                 SELECT id, ?2, ?3, ?4, rounds + 1, ?5 FROM discoveries WHERE id = ?1
             ON CONFLICT (discovery, run_id) DO UPDATE SET
                 attempt = max(coalesce(attempt, excluded.attempt), coalesce(excluded.attempt, attempt)),
                 ended_at = excluded.ended_at, seen_at = excluded.seen_at",
        )?
        .execute(params![
            discovery.0,
            note.run_id.as_str(),
            note.attempt.map(u64::cast_signed),
            note.ended_at.map(Timestamp::as_millisecond),
            now.as_millisecond(),
        ])?;
    if noted == 1 && !is_known {
        db.prepare_cached("UPDATE discoveries SET found = found + 1 WHERE id = ?")?
            .execute([discovery.0])?;
    }
    Ok(noted == 1)
}

/// Deletes up to `limit` notes of runs that were not listed for long (see [`notes_kept_since`]). Returns how many were
/// deleted.
pub(super) fn forget_runs(
    db: &Connection,
    before: Timestamp,
    now: Timestamp,
    limit: usize,
) -> Result<usize, StoreError> {
    let discoveries = read_all(
        db,
        "SELECT id, cursor_at FROM discoveries WHERE cursor_at IS NOT NULL",
        [],
        |row| Ok((row.get::<_, i64>(0)?, read_time(row.get(1)?)?)),
    )?;
    let mut deleted = 0;
    let mut delete =
        db.prepare_cached("DELETE FROM discovered_runs WHERE discovery = ? AND run_id = ?")?;
    for (discovery, cursor_at) in discoveries {
        let oldest = notes_kept_since(cursor_at, before, now);
        let room = (limit - deleted) as i64;
        let old = read_all(
            db,
            OLD_NOTES,
            params![discovery, oldest.as_millisecond(), room],
            |row| Ok(row.get::<_, String>(0)?),
        )?;
        for run_id in old {
            deleted += delete.execute(params![discovery, run_id])?;
        }
    }
    Ok(deleted)
}

fn known_watch(db: &Connection, run_id: &RunRef) -> Result<Option<KnownWatch>, StoreError> {
    let known = db
        .prepare_cached(KNOWN_WATCH)?
        .query_row([run_id.as_str()], read_known_watch)
        .optional()?;
    Ok(known)
}

fn read_known_watch(row: &Row<'_>) -> rusqlite::Result<KnownWatch> {
    // What is not a number or a time here is as good as absent.
    let attempt: Option<i64> = row.get(1).unwrap_or_default();
    let completed_at: Option<String> = row.get(2).unwrap_or_default();
    let verdict_at: Option<i64> = row.get(3)?;
    let completed_at = completed_at.and_then(|text| text.parse().ok());
    Ok(KnownWatch {
        is_active: row.get(0)?,
        attempt: attempt.map(i64::cast_unsigned),
        ended_at: completed_at
            .or_else(|| verdict_at.and_then(|at| Timestamp::from_millisecond(at).ok())),
    })
}

fn read_discovery(row: &Row<'_>) -> Result<StoredDiscovery, StoreError> {
    Ok(StoredDiscovery {
        id: DiscoveryId(row.get(0)?),
        began_at: read_time(row.get(1)?)?,
        rounds: row.get::<_, i64>(2)?.cast_unsigned(),
        cursor_at: optional_time(row.get(3)?)?,
        settled_at: optional_time(row.get(6)?)?,
        found: row.get::<_, i64>(4)?.cast_unsigned(),
        watched: row.get::<_, i64>(5)?.cast_unsigned(),
    })
}

fn read_attempt(row: &Row<'_>, column: usize) -> Result<Option<u64>, StoreError> {
    Ok(row.get::<_, Option<i64>>(column)?.map(i64::cast_unsigned))
}
