//! The schema, as steps from one version to the next.

use rusqlite::Connection;

use super::StoreError;

/// The steps. Step N leads from `user_version` N to N + 1; a released step is never edited.
///
/// Times are Unix milliseconds. `details` and `body` are the JSON of the domain types. `earlier_tries`
/// counts the attempts before the schedule last began anew. `configured_watches` remembers which watches
/// of the configuration were added once, so that none is added again after its end.
const STEPS: &[&str] = &[
    "
    CREATE TABLE watches (
        run_id        TEXT PRIMARY KEY,
        name          TEXT,
        labels        TEXT NOT NULL,
        sinks         TEXT,
        added_at      INTEGER NOT NULL,
        deadline_at   INTEGER NOT NULL,
        status        TEXT,
        details       TEXT,
        polls         INTEGER NOT NULL DEFAULT 0,
        missing_since INTEGER,
        seen_running  INTEGER NOT NULL DEFAULT 0,
        overdue_told  INTEGER NOT NULL DEFAULT 0,
        last_error    TEXT,
        last_error_at INTEGER,
        verdict       TEXT,
        verdict_at    INTEGER
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX active_watches ON watches (added_at) WHERE verdict IS NULL;
    CREATE INDEX watches_in_order ON watches (added_at, run_id);
    CREATE INDEX finished_watches ON watches (verdict_at) WHERE verdict IS NOT NULL;

    CREATE TABLE configured_watches (
        run_id TEXT PRIMARY KEY
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE status_changes (
        seq    INTEGER PRIMARY KEY AUTOINCREMENT,
        run_id TEXT NOT NULL REFERENCES watches (run_id) ON DELETE CASCADE,
        at     INTEGER NOT NULL,
        status TEXT NOT NULL
    ) STRICT;
    CREATE INDEX status_changes_of_run ON status_changes (run_id);

    CREATE TABLE events (
        seq    INTEGER PRIMARY KEY AUTOINCREMENT,
        run_id TEXT REFERENCES watches (run_id) ON DELETE CASCADE,
        type   TEXT NOT NULL,
        at     INTEGER NOT NULL,
        body   TEXT NOT NULL
    ) STRICT;
    CREATE INDEX events_of_run ON events (run_id, seq);
    CREATE INDEX events_of_no_run ON events (at) WHERE run_id IS NULL;

    CREATE TABLE deliveries (
        id              TEXT PRIMARY KEY,
        event_seq       INTEGER NOT NULL REFERENCES events (seq) ON DELETE CASCADE,
        sink            TEXT NOT NULL,
        state           TEXT NOT NULL CHECK (state IN ('pending', 'sending', 'delivered', 'dead')),
        attempts        INTEGER NOT NULL DEFAULT 0,
        earlier_tries   INTEGER NOT NULL DEFAULT 0,
        next_attempt_at INTEGER,
        created_at      INTEGER NOT NULL,
        ended_at        INTEGER
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX due_deliveries ON deliveries (sink, next_attempt_at) WHERE state = 'pending';
    CREATE INDEX deliveries_of_event ON deliveries (event_seq);
    CREATE INDEX open_deliveries ON deliveries (state, sink) WHERE state != 'delivered';

    CREATE TABLE attempts (
        delivery_id TEXT NOT NULL REFERENCES deliveries (id) ON DELETE CASCADE,
        attempt     INTEGER NOT NULL,
        at          INTEGER NOT NULL,
        took_ms     INTEGER NOT NULL,
        delivered   INTEGER NOT NULL,
        detail      TEXT NOT NULL,
        PRIMARY KEY (delivery_id, attempt)
    ) STRICT, WITHOUT ROWID;
",
    // What had the run asked for whose verdict this is.
    "ALTER TABLE watches ADD COLUMN found_by TEXT;",
];

/// Brings a database to the newest version, each step in a transaction of its own.
///
/// # Errors
/// [`StoreError::Newer`] when a newer runwatch wrote it; it is left as it is.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let known = u32::try_from(STEPS.len()).expect("a handful of steps");
    let found: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > known {
        return Err(StoreError::Newer { found, known });
    }
    for (version, step) in (0..known).zip(STEPS).skip(found as usize) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", version + 1)?;
        transaction.commit()?;
    }
    Ok(())
}
