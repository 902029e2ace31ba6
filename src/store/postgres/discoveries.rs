//! Discoveries: how far each has come, and which runs it noted.

use jiff::Timestamp;
use tokio_postgres::Row;

use super::rows::get;
use super::sql::{Db, Perform, parameters};
use super::watches::add;
use crate::domain::{ProviderName, RunRef, WatchOrigin};
use crate::store::model::{
    Added, DiscoveryId, KnownRun, KnownWatch, NotedRun, RunNote, StoreError, StoredDiscovery,
};
use crate::store::operations::{AddDiscoveredWatch, EndRound, KnownRuns, NoteRuns, SetDiscoveries};
use crate::store::records::{notes_kept_since, optional_time, read_time};

/// The notes of a discovery that are older than a time.
pub(super) const OLD_NOTES: &str = "SELECT run_id FROM runwatch.discovered_runs
    WHERE discovery = $1 AND seen_at < $2 ORDER BY seen_at LIMIT $3";

/// What is known of runs, in their order: the note of a discovery, and the newest watch. Each run is looked up in the
/// index, however many there are: a join could read the whole table.
pub(super) const KNOWN: &str = "SELECT d.seen_at, d.attempt, d.ended_at, d.round,
        w.verdict IS NULL, w.verdict_at, w.details, w.id
    FROM unnest($2::text[]) WITH ORDINALITY AS wanted (run_id, n)
    LEFT JOIN LATERAL (SELECT * FROM runwatch.discovered_runs
        WHERE discovery = $1 AND run_id = wanted.run_id LIMIT 1) AS d ON true
    LEFT JOIN LATERAL (SELECT id, verdict, verdict_at, details FROM runwatch.watches
        WHERE run_id = wanted.run_id ORDER BY id DESC LIMIT 1) AS w ON true
    ORDER BY n";

/// Notes runs, each once, and counts those that are new. Returns whether the discovery is there.
const NOTE: &str = "WITH discovery AS (
        SELECT id, rounds FROM runwatch.discoveries WHERE id = $1
    ), wanted AS (
        SELECT * FROM unnest($2::text[], $3::bigint[], $4::bigint[]) AS n (run_id, attempt, ended_at)
    ), fresh AS (
        SELECT count(*) AS count FROM wanted LEFT JOIN LATERAL (SELECT true AS is_there FROM runwatch.discovered_runs d
            WHERE d.discovery = $1 AND d.run_id = wanted.run_id LIMIT 1) AS known ON true WHERE is_there IS NULL
    ), noted AS (
        INSERT INTO runwatch.discovered_runs AS d (discovery, run_id, attempt, ended_at, round, seen_at)
        SELECT discovery.id, run_id, attempt, ended_at, rounds + 1, $5 FROM discovery, wanted
        ON CONFLICT (discovery, run_id) DO UPDATE SET attempt = greatest(d.attempt, excluded.attempt),
            ended_at = excluded.ended_at, seen_at = excluded.seen_at
    ), counted AS (
        UPDATE runwatch.discoveries SET found = found + fresh.count FROM fresh WHERE id = $1 AND fresh.count > 0
    )
    SELECT 1 FROM discovery";

impl Perform for SetDiscoveries {
    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let Self { discoveries, now } = self;
        let (providers, parameters): (Vec<_>, Vec<_>) = discoveries
            .iter()
            .map(|(provider, parameters): &(ProviderName, String)| {
                (provider.as_str(), parameters.as_str())
            })
            .unzip();
        let begin = "INSERT INTO runwatch.discoveries (provider, parameters, began_at)
             SELECT provider, parameters, $3
             FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS wanted (provider, parameters, n) ORDER BY n
             ON CONFLICT (provider, parameters) DO NOTHING";
        db.execute(
            begin,
            parameters![providers, parameters, now.as_millisecond()],
        )
        .await?;
        let forget = "DELETE FROM runwatch.discoveries d WHERE NOT EXISTS (
             SELECT 1 FROM unnest($1::text[], $2::text[]) AS kept (provider, parameters)
             WHERE kept.provider = d.provider AND kept.parameters = d.parameters)";
        db.execute(forget, parameters![providers, parameters])
            .await?;
        let read = "SELECT id, began_at, rounds, cursor_at, found, watched, settled_at
             FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS wanted (provider, parameters, n)
             JOIN runwatch.discoveries d USING (provider, parameters) ORDER BY n";
        db.read_all(read, parameters![providers, parameters], read_discovery)
            .await
    }
}

impl Perform for KnownRuns {
    const PIPELINED: bool = true;

    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        known_runs(db, self.discovery, &self.run_ids).await
    }
}

impl Perform for NoteRuns {
    const PIPELINED: bool = true;

    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        note_runs(db, self.discovery, &self.notes, self.now)
            .await
            .map(|_is_there| ())
    }
}

impl Perform for AddDiscoveredWatch {
    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let Self { watch, found } = self;
        let note = std::slice::from_ref(&found.note);
        if !note_runs(db, found.discovery, note, watch.added_at).await? {
            return Ok((Added::AlreadyExists, None));
        }
        let run = std::slice::from_ref(&watch.run_id);
        let known = known_runs(db, found.discovery, run).await?.pop();
        let stays = known.and_then(|known| known.watch).is_some_and(|known| {
            let observed = known.attempt.zip(found.note.attempt);
            known.is_active
                || !found.again
                || observed.is_some_and(|(observed, listed)| observed >= listed)
        });
        if stays {
            return Ok((Added::AlreadyExists, None));
        }
        let origin = WatchOrigin::Discovery(found.title.clone());
        let (added, id) = add(db, watch, &origin, found.again).await?;
        if added == Added::AlreadyExists {
            return Ok((added, None));
        }
        let count = "UPDATE runwatch.discoveries SET watched = watched + 1 WHERE id = $1";
        db.execute(count, parameters![found.discovery.0]).await?;
        Ok((added, Some(id)))
    }
}

impl Perform for EndRound {
    const PIPELINED: bool = true;

    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let end = "UPDATE runwatch.discoveries SET rounds = rounds + 1, cursor_at = $1, settled_at = $2 WHERE id = $3";
        let (began_at, settled_at) = (
            self.began_at.as_millisecond(),
            self.settled_at.as_millisecond(),
        );
        let id = self.discovery.0;
        let parameters = parameters![began_at, settled_at, id];
        db.execute(end, parameters).await.map(drop)
    }
}

/// Notes runs. Returns whether the discovery is there.
async fn note_runs(
    db: &Db<'_>,
    discovery: DiscoveryId,
    notes: &[RunNote],
    now: Timestamp,
) -> Result<bool, StoreError> {
    let notes = merged(notes);
    let run_ids: Vec<_> = notes.iter().map(|note| note.run_id.as_str()).collect();
    let attempts: Vec<_> = notes
        .iter()
        .map(|note| note.attempt.map(u64::cast_signed))
        .collect();
    let ends: Vec<_> = notes
        .iter()
        .map(|note| note.ended_at.map(Timestamp::as_millisecond))
        .collect();
    let now = now.as_millisecond();
    let row = db
        .row(NOTE, parameters![discovery.0, run_ids, attempts, ends, now])
        .await?;
    Ok(row.is_some())
}

/// Notes of which each run has one: one statement cannot change a row twice.
fn merged(notes: &[RunNote]) -> Vec<RunNote> {
    let mut merged: Vec<RunNote> = Vec::with_capacity(notes.len());
    let mut places = std::collections::HashMap::with_capacity(notes.len());
    for note in notes {
        match places.get(&note.run_id) {
            None => {
                places.insert(&note.run_id, merged.len());
                merged.push(note.clone());
            }
            Some(place) => {
                let known: &mut RunNote = &mut merged[*place];
                // As the numbers are stored.
                let signed = |note: &RunNote| note.attempt.map(u64::cast_signed);
                known.attempt = signed(known).max(signed(note)).map(i64::cast_unsigned);
                known.ended_at = note.ended_at;
            }
        }
    }
    merged
}

/// Deletes up to `limit` notes of runs that were not listed for long (see [`notes_kept_since`]). Returns how many were
/// deleted.
pub(super) async fn forget_runs(
    db: &Db<'_>,
    before: Timestamp,
    now: Timestamp,
    limit: usize,
) -> Result<usize, StoreError> {
    let select =
        "SELECT id, cursor_at FROM runwatch.discoveries WHERE cursor_at IS NOT NULL ORDER BY id";
    let discoveries: Vec<(i64, i64)> = db
        .read_all(select, &[], |row| Ok((get(row, 0)?, get(row, 1)?)))
        .await?;
    let mut deleted = 0;
    for (discovery, cursor_at) in discoveries {
        let oldest = notes_kept_since(read_time(cursor_at)?, before, now).as_millisecond();
        let room = (limit - deleted) as i64;
        let old: Vec<String> = db
            .read_all(OLD_NOTES, parameters![discovery, oldest, room], |row| {
                get(row, 0)
            })
            .await?;
        let delete =
            "DELETE FROM runwatch.discovered_runs WHERE discovery = $1 AND run_id = ANY($2)";
        let gone = db.execute(delete, parameters![discovery, old]).await?;
        deleted += usize::try_from(gone).unwrap_or(limit);
    }
    Ok(deleted)
}

async fn known_runs(
    db: &Db<'_>,
    discovery: DiscoveryId,
    run_ids: &[RunRef],
) -> Result<Vec<KnownRun>, StoreError> {
    let run_ids: Vec<_> = run_ids.iter().map(RunRef::as_str).collect();
    db.read_all(KNOWN, parameters![discovery.0, run_ids], read_known)
        .await
}

fn read_known(row: &Row) -> Result<KnownRun, StoreError> {
    let seen_at: Option<i64> = get(row, 0)?;
    let noted = match seen_at {
        None => None,
        Some(seen_at) => Some(NotedRun {
            attempt: get::<Option<i64>>(row, 1)?.map(i64::cast_unsigned),
            ended_at: optional_time(get(row, 2)?)?,
            round: get::<i64>(row, 3)?.cast_unsigned(),
            seen_at: read_time(seen_at)?,
        }),
    };
    let has_watch = get::<Option<i64>>(row, 7)?.is_some();
    let watch = if has_watch {
        Some(read_known_watch(row)?)
    } else {
        None
    };
    Ok(KnownRun { noted, watch })
}

/// Reads columns 4 to 6.
fn read_known_watch(row: &Row) -> Result<KnownWatch, StoreError> {
    /// What of the details decides.
    #[derive(Default, serde::Deserialize)]
    struct Deciding {
        #[serde(default)]
        attempt: Option<u64>,
        #[serde(default)]
        completed_at: Option<Timestamp>,
    }
    let details: Option<&str> = get(row, 6)?;
    // What is not a number or a time here is as good as absent.
    let deciding: Deciding = details
        .and_then(|json| serde_json::from_str(json).ok())
        .unwrap_or_default();
    let verdict_at = optional_time(get(row, 5)?)?;
    Ok(KnownWatch {
        is_active: get(row, 4)?,
        attempt: deciding
            .attempt
            .filter(|attempt| i64::try_from(*attempt).is_ok()),
        ended_at: deciding.completed_at.or(verdict_at),
    })
}

fn read_discovery(row: &Row) -> Result<StoredDiscovery, StoreError> {
    Ok(StoredDiscovery {
        id: DiscoveryId(get(row, 0)?),
        began_at: read_time(get(row, 1)?)?,
        rounds: get::<i64>(row, 2)?.cast_unsigned(),
        cursor_at: optional_time(get(row, 3)?)?,
        settled_at: optional_time(get(row, 6)?)?,
        found: get::<i64>(row, 4)?.cast_unsigned(),
        watched: get::<i64>(row, 5)?.cast_unsigned(),
    })
}
