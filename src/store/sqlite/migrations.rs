//! The schema, as steps from one version to the next.

use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};

use super::moved;
use crate::store::model::StoreError;

/// The steps. Step N leads from `user_version` N to N + 1; a released step is never edited.
///
/// Times are Unix milliseconds. `details` and `body` are the JSON of the domain types; where
/// `input_id` or `output_id` has a number, that value is the `body` of this payload instead, which
/// details and events share. `earlier_tries` counts the attempts before the schedule last began
/// anew. `configured_watches` remembers which watches of the configuration were added once, so that
/// none is added again after its end. `totals` has how many watches are active or have a verdict,
/// and how many deliveries of a sink are in a state. `next_attempt_at` is a time of a clock that
/// was never set: the wall clock shows `stepped_ms` of `clock` more.
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
    // The reason for the poll that found the verdict.
    "ALTER TABLE watches ADD COLUMN found_by TEXT;",
    // A watch has a number of its own, because a run may be watched again after its end. Large
    // values stand last in their row or in a table of their own, so that no other value is read
    // through them, and totals are counted as rows change. Rows of earlier versions are moved by
    // [`move_rows`].
    "
    ALTER TABLE watches RENAME TO old_watches;
    ALTER TABLE status_changes RENAME TO old_status_changes;
    ALTER TABLE events RENAME TO old_events;
    ALTER TABLE deliveries RENAME TO old_deliveries;
    ALTER TABLE attempts RENAME TO old_attempts;

    CREATE TABLE watches (
        id            INTEGER PRIMARY KEY AUTOINCREMENT,
        run_id        TEXT NOT NULL,
        added_at      INTEGER NOT NULL,
        deadline_at   INTEGER NOT NULL,
        verdict       TEXT,
        verdict_at    INTEGER,
        found_by      TEXT,
        polls         INTEGER NOT NULL DEFAULT 0,
        missing_since INTEGER,
        seen_running  INTEGER NOT NULL DEFAULT 0,
        overdue_told  INTEGER NOT NULL DEFAULT 0,
        last_error_at INTEGER,
        input_id      INTEGER,
        output_id     INTEGER,
        name          TEXT,
        status        TEXT,
        sinks         TEXT,
        labels        TEXT NOT NULL,
        last_error    TEXT,
        details       TEXT
    ) STRICT;
    CREATE UNIQUE INDEX active_watch_of_run ON watches (run_id) WHERE verdict IS NULL;
    CREATE INDEX watches_of_run ON watches (run_id, id);
    CREATE INDEX watches_by_age ON watches (added_at, run_id);
    CREATE INDEX active_watches_by_age ON watches (added_at, run_id) WHERE verdict IS NULL;
    CREATE INDEX finished_watches_by_age ON watches (added_at, run_id) WHERE verdict IS NOT NULL;
    CREATE INDEX watches_by_verdict ON watches (verdict, added_at, run_id) WHERE verdict IS NOT NULL;
    CREATE INDEX watches_by_end ON watches (verdict_at) WHERE verdict IS NOT NULL;

    CREATE TABLE payloads (
        id       INTEGER PRIMARY KEY AUTOINCREMENT,
        watch_id INTEGER NOT NULL REFERENCES watches (id) ON DELETE CASCADE,
        body     TEXT NOT NULL
    ) STRICT;
    CREATE INDEX payloads_of_watch ON payloads (watch_id);

    CREATE TABLE status_changes (
        seq      INTEGER PRIMARY KEY AUTOINCREMENT,
        watch_id INTEGER NOT NULL REFERENCES watches (id) ON DELETE CASCADE,
        at       INTEGER NOT NULL,
        status   TEXT NOT NULL
    ) STRICT;
    CREATE INDEX status_changes_of_watch ON status_changes (watch_id, seq);

    CREATE TABLE events (
        seq       INTEGER PRIMARY KEY AUTOINCREMENT,
        watch_id  INTEGER REFERENCES watches (id) ON DELETE CASCADE,
        run_id    TEXT,
        type      TEXT NOT NULL,
        at        INTEGER NOT NULL,
        input_id  INTEGER,
        output_id INTEGER,
        body      TEXT NOT NULL
    ) STRICT;
    CREATE INDEX events_of_watch ON events (watch_id, seq);
    CREATE INDEX events_of_no_watch ON events (at) WHERE watch_id IS NULL;

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
    CREATE INDEX deliveries_by_turn ON deliveries (sink, next_attempt_at) WHERE state = 'pending';
    CREATE INDEX deliveries_to_event ON deliveries (event_seq);
    CREATE INDEX deliveries_to_sink ON deliveries (sink, id);
    CREATE INDEX undelivered ON deliveries (id) WHERE state != 'delivered';
    CREATE INDEX open_deliveries_by_age ON deliveries (created_at) WHERE state IN ('pending', 'sending');

    CREATE TABLE attempts (
        delivery_id TEXT NOT NULL REFERENCES deliveries (id) ON DELETE CASCADE,
        attempt     INTEGER NOT NULL,
        at          INTEGER NOT NULL,
        took_ms     INTEGER NOT NULL,
        delivered   INTEGER NOT NULL,
        detail      TEXT NOT NULL,
        PRIMARY KEY (delivery_id, attempt)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE totals (
        what  TEXT NOT NULL,
        sink  TEXT NOT NULL,
        total INTEGER NOT NULL,
        PRIMARY KEY (what, sink)
    ) STRICT, WITHOUT ROWID;
    CREATE TRIGGER count_new_watch AFTER INSERT ON watches BEGIN
        INSERT INTO totals VALUES (coalesce(new.verdict, 'active'), '', 1)
            ON CONFLICT (what, sink) DO UPDATE SET total = total + 1;
    END;
    CREATE TRIGGER count_verdict AFTER UPDATE OF verdict ON watches WHEN new.verdict IS NOT old.verdict BEGIN
        UPDATE totals SET total = total - 1 WHERE what = coalesce(old.verdict, 'active') AND sink = '';
        INSERT INTO totals VALUES (coalesce(new.verdict, 'active'), '', 1)
            ON CONFLICT (what, sink) DO UPDATE SET total = total + 1;
    END;
    CREATE TRIGGER count_deleted_watch AFTER DELETE ON watches BEGIN
        UPDATE totals SET total = total - 1 WHERE what = coalesce(old.verdict, 'active') AND sink = '';
    END;
    CREATE TRIGGER count_new_delivery AFTER INSERT ON deliveries BEGIN
        INSERT INTO totals VALUES (new.state, new.sink, 1)
            ON CONFLICT (what, sink) DO UPDATE SET total = total + 1;
    END;
    CREATE TRIGGER count_delivery AFTER UPDATE OF state ON deliveries WHEN new.state != old.state BEGIN
        UPDATE totals SET total = total - 1 WHERE what = old.state AND sink = old.sink;
        INSERT INTO totals VALUES (new.state, new.sink, 1)
            ON CONFLICT (what, sink) DO UPDATE SET total = total + 1;
    END;
    CREATE TRIGGER count_deleted_delivery AFTER DELETE ON deliveries BEGIN
        UPDATE totals SET total = total - 1 WHERE what = old.state AND sink = old.sink;
    END;

    INSERT INTO sqlite_sequence (name, seq)
        SELECT substr(name, 5), seq FROM sqlite_sequence WHERE name IN ('old_events', 'old_status_changes');
",
    // How far the wall clock was set since the store was made: one value, so that it moves all
    // attempts that wait at once, however many there are, and whether or not the process dies at
    // that moment.
    "
    CREATE TABLE clock (
        stepped_ms INTEGER NOT NULL
    ) STRICT;
    INSERT INTO clock VALUES (0);
",
    // What a status stands for. It is NULL in rows of earlier versions, whose status then is the word of the state.
    "
    ALTER TABLE watches ADD COLUMN state TEXT;
    ALTER TABLE status_changes ADD COLUMN state TEXT;
",
    // Where a watch comes from (NULL for those of earlier versions), and what discoveries found. `match` is the JSON of
    // the parameters of the list. `rounds` counts complete rounds, and `cursor_at` is the beginning of the newest of
    // them. `round` is the number of the round in which a run was noted, `attempt` the greatest one that was listed, and
    // `ended_at` the end that was listed last.
    "
    ALTER TABLE watches ADD COLUMN origin TEXT;

    CREATE TABLE discoveries (
        id        INTEGER PRIMARY KEY AUTOINCREMENT,
        provider  TEXT NOT NULL,
        match     TEXT NOT NULL,
        began_at  INTEGER NOT NULL,
        rounds    INTEGER NOT NULL DEFAULT 0,
        cursor_at INTEGER,
        found     INTEGER NOT NULL DEFAULT 0,
        watched   INTEGER NOT NULL DEFAULT 0,
        UNIQUE (provider, match)
    ) STRICT;
    CREATE TABLE discovered_runs (
        discovery INTEGER NOT NULL REFERENCES discoveries (id) ON DELETE CASCADE,
        run_id    TEXT NOT NULL,
        attempt   INTEGER,
        ended_at  INTEGER,
        round     INTEGER NOT NULL,
        seen_at   INTEGER NOT NULL,
        PRIMARY KEY (discovery, run_id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX discovered_runs_by_age ON discovered_runs (discovery, seen_at);
",
    // Since when a discovery reads runs. What earlier versions read again were the ten minutes before the cursor.
    "
    ALTER TABLE discoveries ADD COLUMN settled_at INTEGER;
    UPDATE discoveries SET settled_at = cursor_at - 600000;
",
    // The sink that could not be reached, where a delivery is one to its fallback.
    "ALTER TABLE deliveries ADD COLUMN fallback_for TEXT;",
    // Until when the wall clock shows a delivery was held for quiet hours, also after that, and whether a person wants it
    // to be attempted at once. A delivery that was held counts as old from the end of that time.
    "
    ALTER TABLE deliveries ADD COLUMN held_until INTEGER;
    ALTER TABLE deliveries ADD COLUMN at_once INTEGER NOT NULL DEFAULT 0;
    DROP INDEX open_deliveries_by_age;
    CREATE INDEX open_deliveries_by_age ON deliveries (created_at)
        WHERE state IN ('pending', 'sending') AND held_until IS NULL;
    CREATE INDEX held_deliveries ON deliveries (held_until)
        WHERE state IN ('pending', 'sending') AND held_until IS NOT NULL;
",
    // What the runs of a group took that succeeded: `ran_ms` is a JSON array of milliseconds, the oldest first. It is
    // kept when the watches are deleted. Watches of earlier versions name no group here.
    "
    ALTER TABLE watches ADD COLUMN run_group TEXT;
    ALTER TABLE watches ADD COLUMN started_at INTEGER;

    CREATE TABLE past_durations (
        provider  TEXT NOT NULL,
        run_group TEXT NOT NULL,
        newest_at INTEGER NOT NULL,
        ran_ms    TEXT NOT NULL,
        PRIMARY KEY (provider, run_group)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX past_durations_by_age ON past_durations (provider, newest_at);
",
    // The group of a watch and how many watches it waits for, by its labels, and whether the message about the group was
    // stored. A watch that was finished before there were groups belongs to none.
    "
    ALTER TABLE watches ADD COLUMN group_name TEXT;
    ALTER TABLE watches ADD COLUMN group_size INTEGER;
    ALTER TABLE watches ADD COLUMN group_done INTEGER NOT NULL DEFAULT 0;
    UPDATE watches SET group_name = nullif(labels ->> '$.group', '') WHERE verdict IS NULL;
    CREATE INDEX watches_of_open_group ON watches (group_name, verdict)
        WHERE group_name IS NOT NULL AND group_done = 0;
",
    // How long the oldest delivery of each sink waits.
    "
    DROP INDEX open_deliveries_by_age;
    DROP INDEX held_deliveries;
    CREATE INDEX open_deliveries_by_age ON deliveries (sink, coalesce(held_until, created_at))
        WHERE state IN ('pending', 'sending');
",
    // The delivery of the summary that stands for this one. Such a delivery counts as delivered; one that waits for a
    // summary is pending without the time of an attempt.
    "ALTER TABLE deliveries ADD COLUMN included_in TEXT;",
    // The trace that a watch belongs to: the `traceparent` of the request that added it and, after a space, its
    // `tracestate`.
    "ALTER TABLE watches ADD COLUMN trace TEXT;",
];

/// Most bytes of run details and events, and most watches, moved in one transaction by
/// [`move_rows`]: a start that is cut short loses no more than that.
const MOVED_BYTES: i64 = 16 * 1024 * 1024;
const MOVED_WATCHES: usize = 1_000;

/// Returns the version of a database. Changes nothing.
///
/// # Errors
/// [`StoreError::Newer`] when a newer runwatch wrote it, [`StoreError::Moved`] when it was copied to another place, and
/// [`StoreError::Incomplete`] when a copy into it did not end.
pub(super) fn version(connection: &Connection) -> Result<u32, StoreError> {
    let known = KNOWN_VERSION;
    let found: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if let Some(note) = moved::read_note(connection)? {
        Err(note.into_error())
    } else if found > known {
        Err(StoreError::Newer { found, known })
    } else {
        Ok(found)
    }
}

/// The version that all steps lead to.
pub(super) const KNOWN_VERSION: u32 = {
    assert!(STEPS.len() < 1000);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "there are fewer than 1,000 steps"
    )]
    let version = STEPS.len() as u32;
    version
};

/// Brings a database to the newest version, each step in a transaction of its own; those of a new database are one, so
/// that each page is written to its log once.
///
/// # Errors
/// [`StoreError::Newer`] when a newer runwatch wrote it; it is left as it is.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let found = version(connection)?;
    let missing: Vec<_> = (1..).zip(STEPS).skip(found as usize).collect();
    let together = if found == 0 { STEPS.len() } else { 1 };
    for steps in missing.chunks(together) {
        let transaction = connection.transaction()?;
        for (version, step) in steps {
            transaction.execute_batch(step)?;
            transaction.pragma_update(None, "user_version", version)?;
        }
        transaction.commit()?;
    }
    while move_rows(connection)? {}
    Ok(())
}

/// Moves some of the rows of versions before 3 into the tables of now, in a transaction of its own,
/// the oldest watch first. Returns whether there are further ones. A process that ends in between
/// goes on at its next start.
fn move_rows(connection: &mut Connection) -> Result<bool, StoreError> {
    if !connection.table_exists(None, "old_watches")? {
        return Ok(false);
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let (mut bytes, mut watches) = (0, 0);
    let more = loop {
        let next = "SELECT run_id, coalesce(octet_length(details), 0) +
                        (SELECT coalesce(sum(octet_length(body)), 0) FROM old_events e WHERE e.run_id = w.run_id)
                    FROM old_watches w ORDER BY added_at, run_id LIMIT 1";
        let next = transaction
            .prepare_cached(next)?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((run_id, size)): Option<(String, i64)> = next else {
            break false;
        };
        if watches >= MOVED_WATCHES || (watches > 0 && bytes + size > MOVED_BYTES) {
            break true;
        }
        (bytes, watches) = (bytes + size, watches + 1);
        move_watch(&transaction, &run_id)?;
    };
    if !more {
        // The remaining rows belong to no run, and are few.
        transaction.execute_batch(
            "INSERT INTO events (seq, type, at, body) SELECT seq, type, at, body FROM old_events WHERE run_id IS NULL;
             INSERT INTO deliveries (id, event_seq, sink, state, attempts, earlier_tries, next_attempt_at, created_at, ended_at)
                 SELECT id, event_seq, sink, state, attempts, earlier_tries, next_attempt_at, created_at, ended_at FROM old_deliveries;
             INSERT INTO attempts SELECT * FROM old_attempts;
             UPDATE watches SET group_name = nullif(labels ->> '$.group', '') WHERE verdict IS NULL AND group_name IS NULL;
             DROP TABLE old_attempts;
             DROP TABLE old_deliveries;
             DROP TABLE old_events;
             DROP TABLE old_status_changes;
             DROP TABLE old_watches;",
        )?;
    }
    transaction.commit()?;
    Ok(more)
}

/// Moves the watch of a run, and all that belongs to it, to the new tables.
fn move_watch(transaction: &Connection, run_id: &str) -> Result<(), StoreError> {
    transaction
        .prepare_cached(
            "INSERT INTO watches (run_id, added_at, deadline_at, verdict, verdict_at, found_by, polls, missing_since,
                 seen_running, overdue_told, last_error_at, name, status, sinks, labels, last_error, details)
             SELECT run_id, added_at, deadline_at, verdict, verdict_at, found_by, polls, missing_since,
                 seen_running, overdue_told, last_error_at, name, status, sinks, labels, last_error, details
             FROM old_watches WHERE run_id = ?",
        )?
        .execute([run_id])?;
    let id = transaction.last_insert_rowid();
    for copy in [
        "INSERT INTO status_changes (seq, watch_id, at, status)
         SELECT seq, ?1, at, status FROM old_status_changes WHERE run_id = ?2",
        "INSERT INTO events (seq, watch_id, run_id, type, at, body)
         SELECT seq, ?1, run_id, type, at, body FROM old_events WHERE run_id = ?2",
        "INSERT INTO deliveries (id, event_seq, sink, state, attempts, earlier_tries, next_attempt_at, created_at, ended_at)
         SELECT d.id, d.event_seq, d.sink, d.state, d.attempts, d.earlier_tries, d.next_attempt_at, d.created_at, d.ended_at
         FROM old_events e JOIN old_deliveries d ON d.event_seq = e.seq
         WHERE ?1 AND e.run_id = ?2",
        "INSERT INTO attempts SELECT a.* FROM old_events e JOIN old_deliveries d ON d.event_seq = e.seq
         JOIN old_attempts a ON a.delivery_id = d.id WHERE ?1 AND e.run_id = ?2",
    ] {
        transaction.prepare_cached(copy)?.execute(params![id, run_id])?;
    }
    // All else of it goes with it.
    transaction
        .prepare_cached("DELETE FROM old_watches WHERE run_id = ?")?
        .execute([run_id])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A database as version 2 left it, with `watches` finished watches, each with an output of
    /// `bytes`.
    fn version_2(watches: i64, bytes: usize) -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .pragma_update(None, "foreign_keys", true)
            .unwrap();
        STEPS[..2]
            .iter()
            .for_each(|step| connection.execute_batch(step).unwrap());
        connection.pragma_update(None, "user_version", 2).unwrap();
        let details = format!(r#"{{"output":"{}"}}"#, "x".repeat(bytes));
        for number in 0..watches {
            let run_id = format!("run_{number}");
            connection
                .execute(
                    "INSERT INTO watches (run_id, labels, added_at, deadline_at, status, details, polls, verdict, verdict_at, found_by)
                     VALUES (?, '{}', ?, 9, 'failed', ?, 3, 'failed', 5, 'poll')",
                    params![run_id, number, details],
                )
                .unwrap();
            connection
                .execute(
                    "INSERT INTO status_changes (run_id, at, status) VALUES (?, 5, 'failed')",
                    [&run_id],
                )
                .unwrap();
            let event =
                "INSERT INTO events (run_id, type, at, body) VALUES (?, 'run.failed', 5, '{}')";
            connection.execute(event, [&run_id]).unwrap();
            let delivery = "INSERT INTO deliveries (id, event_seq, sink, state, created_at) VALUES (?, ?, 'ops', 'dead', 5)";
            connection
                .execute(
                    delivery,
                    params![format!("msg_{number}"), connection.last_insert_rowid()],
                )
                .unwrap();
            let attempt = "INSERT INTO attempts VALUES (?, 1, 5, 1, 0, 'refused')";
            connection
                .execute(attempt, [format!("msg_{number}")])
                .unwrap();
        }
        connection
            .execute(
                "INSERT INTO events (type, at, body) VALUES ('api.recovered', 6, '{}')",
                [],
            )
            .unwrap();
        connection
    }

    fn count(connection: &Connection, table: &str) -> i64 {
        connection
            .query_row(&format!("SELECT count(*) FROM {table}"), [], |row| {
                row.get(0)
            })
            .unwrap()
    }

    #[test]
    fn rows_are_moved_some_at_a_time_and_a_start_that_was_cut_short_goes_on() {
        let mut connection = version_2(5, 6 * 1024 * 1024);
        connection.execute_batch(STEPS[2]).unwrap();
        connection.pragma_update(None, "user_version", 3).unwrap();
        assert!(
            move_rows(&mut connection).unwrap(),
            "there are further ones"
        );
        assert_eq!(
            (
                count(&connection, "watches"),
                count(&connection, "old_watches")
            ),
            (2, 3),
            "16 MiB at the most"
        );
        migrate(&mut connection).unwrap();
        assert!(!connection.table_exists(None, "old_watches").unwrap());
        for (table, rows) in [
            ("watches", 5),
            ("status_changes", 5),
            ("events", 6),
            ("deliveries", 5),
            ("attempts", 5),
        ] {
            assert_eq!(count(&connection, table), rows, "{table}");
        }
        let sql = "SELECT group_concat(w.run_id || e.seq || d.id ORDER BY w.id) FROM watches w
                   JOIN events e ON e.watch_id = w.id JOIN deliveries d ON d.event_seq = e.seq WHERE w.found_by = 'poll'";
        let joined: String = connection.query_row(sql, [], |row| row.get(0)).unwrap();
        assert_eq!(
            joined,
            "run_01msg_0,run_12msg_1,run_23msg_2,run_34msg_3,run_45msg_4"
        );
        let totals = "SELECT group_concat(what || sink || total ORDER BY what) FROM totals";
        let totals: String = connection.query_row(totals, [], |row| row.get(0)).unwrap();
        assert_eq!(totals, "deadops5,failed5");
        // Numbers of events are not given again.
        connection
            .execute("DELETE FROM events WHERE seq = 6", [])
            .unwrap();
        connection
            .execute(
                "INSERT INTO events (type, at, body) VALUES ('api.recovered', 6, '{}')",
                [],
            )
            .unwrap();
        assert_eq!(connection.last_insert_rowid(), 7);
    }

    #[test]
    fn totals_follow_what_is_stored() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection
            .pragma_update(None, "foreign_keys", true)
            .unwrap();
        migrate(&mut connection).unwrap();
        connection
            .execute_batch(
                "INSERT INTO watches (run_id, labels, added_at, deadline_at) VALUES ('run_1', '{}', 0, 0), ('run_2', '{}', 0, 0);
                 UPDATE watches SET verdict = 'failed', polls = 2 WHERE run_id = 'run_1';
                 INSERT INTO events (watch_id, type, at, body) SELECT id, 'run.failed', 0, '' FROM watches WHERE run_id = 'run_1';
                 INSERT INTO deliveries (id, event_seq, sink, state, created_at) VALUES ('a', 1, 'ops', 'pending', 0), ('b', 1, 'desk', 'pending', 0);
                 UPDATE deliveries SET state = 'sending', attempts = 1 WHERE id = 'a';",
            )
            .unwrap();
        let totals = |connection: &Connection| -> String {
            let sql = "SELECT coalesce(group_concat(what || ' ' || sink || total ORDER BY what), '') FROM totals WHERE total != 0";
            connection.query_row(sql, [], |row| row.get(0)).unwrap()
        };
        assert_eq!(
            totals(&connection),
            "active 1,failed 1,pending desk1,sending ops1"
        );
        connection.execute("DELETE FROM watches", []).unwrap();
        assert_eq!(totals(&connection), "");
    }
}
