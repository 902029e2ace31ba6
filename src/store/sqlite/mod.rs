//! The store in SQLite: one file per entity with its reads and its writes, and the tasks that run
//! them.
//!
//! The writer owns the only connection that writes. Callers send it jobs; it runs all jobs that are
//! queued as one transaction, and replies after the commit. So many small writes cost one sync to
//! disk, and every write with a reply is durable. Reads of the scheduler and the couriers run on
//! the same connection after the transaction, whether or not it was committed. Reads for people and
//! programs may take long and have connections of their own (`readers`). So have checkpoints, which
//! move committed pages to the database (`checkpoints`).

mod checkpoints;
mod copy;
mod deliveries;
mod digests;
mod discoveries;
mod durations;
mod events;
mod files;
mod groups;
mod inspect;
mod lock;
mod migrations;
mod moved;
mod readers;
mod rows;
mod totals;
mod upkeep;
mod watches;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::model::{Location, StoreError};
use super::{Store, StoreEngine, WriterState};
use crate::metrics::StoreFigures;
use crate::text::one_line;
use checkpoints::Checkpointer;
use files::Files;
use readers::ReadConnections;
use writer::MAX_BATCH;

pub use checkpoints::Checkpoint;
pub use copy::FileError;
pub use files::StoreFile;
pub use inspect::{FileFacts, inspect_file};
pub use lock::{Lock, LockError};
pub use readers::ReadJob;
pub use writer::{BlockingPool, Done, Transaction, TransactionRunner, Writer};

pub(super) use copy::FileEnd;
pub(super) use writer::{Execute, SqliteChannels};

/// The size to which SQLite truncates a larger write-ahead log, in bytes.
const WAL_BYTES: i64 = 16 * 1024 * 1024;

/// How long SQLite waits for the lock of another process, such as a backup.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the store is checked for damage when it is opened: some gigabytes on an ordinary disk.
const CHECK_LIMIT: Duration = Duration::from_secs(10);

/// After how many pages of a check, or instructions of the virtual machine, its time is looked at
/// (sqlite.org/c3ref/progress_handler.html).
const STEPS: i32 = 100;

/// Statements kept prepared; there are fewer than this.
const CACHED_STATEMENTS: usize = 96;

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(Arc::new(error))
    }
}

impl Store {
    /// Opens the database and migrates it to the newest version. Deliveries whose attempt was
    /// interrupted by the end of a process become due again.
    ///
    /// Blocks: for `CHECK_LIMIT` on a large store, longer where a new version changes its tables.
    ///
    /// # Errors
    /// When the file cannot be opened, is not a database, or was written by a newer runwatch. The
    /// file is never replaced.
    pub fn open(place: Location<'_>) -> Result<(Self, Writer), StoreError> {
        let (connection, files, reading, log) = match place {
            Location::Memory => (prepare(Connection::open_in_memory()?)?, None, None, None),
            Location::File(path) => {
                let open = || {
                    let mut connection = prepare(Connection::open(path)?)?;
                    check(&mut connection, path)?;
                    let files = Files::of(path).map_err(|_missing| StoreError::Gone {
                        path: path.to_owned(),
                        what: "removed",
                    })?;
                    let (reading, log) = (ReadConnections::open(path)?, Checkpointer::open(path)?);
                    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
                    Ok((connection, Some(Arc::new(files)), Some(reading), Some(log)))
                };
                open().map_err(|error| while_opening(error, path))?
            }
        };
        deliveries::release_claims(&connection)?;
        let (jobs, jobs_receiver) = mpsc::channel(MAX_BATCH);
        let (queries, readers) = reading.unzip();
        let worst = totals::verdicts(&connection)?.into_iter().next();
        let (state, state_receiver) = watch::channel(WriterState {
            busy_since: None,
            worst,
        });
        let (history, history_receiver) = watch::channel(0);
        let (deliveries, deliveries_receiver) = watch::channel(0);
        let figures = StoreFigures::default();
        let store = Self {
            engine: StoreEngine::Sqlite(SqliteChannels { jobs, queries }),
            state: state_receiver,
            history: history_receiver,
            deliveries: deliveries_receiver,
            unknown_commits: watch::channel(0).1,
            figures: figures.clone(),
        };
        Ok((
            store,
            Writer {
                connection,
                files,
                jobs: jobs_receiver,
                readers,
                log,
                state,
                history,
                deliveries,
                figures,
            },
        ))
    }
}

/// Adds the path to an error that the database reported while it was opened.
fn while_opening(error: StoreError, path: &Path) -> StoreError {
    let StoreError::Database(source) = error else {
        return error;
    };
    let path = path.to_owned();
    let code = source
        .downcast_ref()
        .and_then(rusqlite::Error::sqlite_error_code);
    if code == Some(ErrorCode::DatabaseCorrupt) {
        let what = one_line(&source.to_string(), 200);
        StoreError::Corrupt { path, what }
    } else {
        StoreError::Open { path, source }
    }
}

/// Sets up a new connection and migrates the database to the newest version.
fn prepare(mut connection: Connection) -> Result<Connection, StoreError> {
    prepare_any(&connection)?;
    // Before anything is written, be it only to the header.
    migrations::version(&connection)?;
    set_up(&connection)?;
    migrations::migrate(&mut connection)?;
    Ok(connection)
}

/// Applies the settings of a connection that writes, and of a new file.
fn set_up(connection: &Connection) -> Result<(), StoreError> {
    connection.pragma_update(None, "foreign_keys", true)?;
    // Of a new file only: what is freed can be given back to the disk, some pages at a time
    // (sqlite.org/pragma.html, "auto_vacuum"). Files of earlier versions keep their size. In an
    // existing file it would write the header, and a start on a full disk would fail.
    let pages: u32 = connection.pragma_query_value(None, "page_count", |row| row.get(0))?;
    if pages == 0 {
        connection.pragma_update(None, "auto_vacuum", "incremental")?;
    }
    // With a write-ahead log and FULL, a commit is on disk when it returns
    // (sqlite.org/pragma.html).
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "journal_size_limit", WAL_BYTES)?;
    // Otherwise the journal of a large statement goes to a temporary file, and a container has no
    // place for it.
    connection.pragma_update(None, "temp_store", "memory")?;
    Ok(())
}

/// Applies the settings that every connection needs.
fn prepare_any(connection: &Connection) -> Result<(), StoreError> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
    // Otherwise SQLite plans a query again whenever its parameters change, which takes longer than
    // the query.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}

/// Looks for damage, but no longer than `CHECK_LIMIT`: a store of many gigabytes must not keep the
/// service from starting. Damage that was not looked at shows when it is read.
fn check(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    match health_within(connection, CHECK_LIMIT)?.as_deref() {
        Some("ok") => Ok(()),
        Some(what) => Err(StoreError::Corrupt {
            path: path.to_owned(),
            what: one_line(what, 200),
        }),
        None => {
            let limit = CHECK_LIMIT;
            tracing::warn!(
                ?limit,
                "the store is too large to be checked for damage as a whole; a part was checked"
            );
            Ok(())
        }
    }
}

/// Returns the first result of SQLite's check of its file; `None` when the check did not end within
/// `limit`.
fn health_within(
    connection: &mut Connection,
    limit: Duration,
) -> Result<Option<String>, StoreError> {
    let began = Instant::now();
    connection.progress_handler(STEPS, Some(move || began.elapsed() >= limit))?;
    let health = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0));
    connection.progress_handler(0, None::<fn() -> bool>)?;
    match health {
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => {
            Ok(None)
        }
        health => Ok(Some(health?)),
    }
}

#[cfg(test)]
mod tests {
    use super::deliveries::{DUE, NEXT_DUE, deliveries_sql};
    use super::digests::WAITING;
    use super::discoveries::{KNOWN_NOTE, KNOWN_WATCH, OLD_NOTES};
    use super::durations::{OF_GROUPS, OF_PROVIDER, TOO_MANY};
    use super::events::EVENTS_AFTER;
    use super::groups::{ACTIVE_IN_GROUP, COUNTS_OF_GROUP};
    use super::totals::{OLDEST_OPEN, TOTAL};
    use super::watches::{ACTIVE_OF, NEWEST_RECORD, RECORD_COLUMNS, watches_sql};
    use super::*;
    use crate::domain::{SinkName, Verdict};
    use crate::store::model::{DeliveryFilter, DeliveryState, WatchOrder, WatchState};

    #[test]
    fn the_check_of_a_large_store_ends_in_time_and_harms_no_later_query() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch("CREATE TABLE t (x); CREATE INDEX i ON t (x)")
            .unwrap();
        let many = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000) \
                    INSERT INTO t SELECT i FROM n";
        connection.execute_batch(many).unwrap();
        assert_eq!(
            health_within(&mut connection, Duration::ZERO).unwrap(),
            None
        );
        assert_eq!(
            health_within(&mut connection, Duration::from_secs(600))
                .unwrap()
                .as_deref(),
            Some("ok")
        );
    }

    /// How SQLite answers a statement, a line for each table.
    fn plan(db: &Connection, sql: &str) -> Vec<String> {
        let mut statement = db.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let (mut steps, mut details) = (statement.raw_query(), Vec::new());
        while let Some(step) = steps.next().unwrap() {
            details.push(step.get("detail").unwrap());
        }
        details
    }

    #[test]
    fn no_query_is_planned_again_when_its_parameters_change() {
        let db = prepare(Connection::open_in_memory().unwrap()).unwrap();
        // A parameter that can decide whether a partial index serves, or how a LIKE is answered, makes SQLite plan again.
        db.execute_batch(
            "CREATE TABLE t (x TEXT); CREATE INDEX some ON t (x) WHERE x > 'm'; CREATE INDEX every ON t (x)",
        )
        .unwrap();
        for sql in [
            "SELECT x FROM t WHERE x > ?1",
            "SELECT x FROM t WHERE x GLOB ?1",
        ] {
            let mut statement = db.prepare(sql).unwrap();
            for parameter in ["a*", "n*", "z*", "b*"] {
                let found = statement.query_map([parameter], |row| row.get::<_, String>(0));
                assert_eq!(found.unwrap().count(), 0);
            }
            let again = statement.get_status(rusqlite::StatementStatus::RePrepare);
            assert_eq!(again, 0, "{sql}");
        }
    }

    #[test]
    fn no_question_reads_all_that_is_stored() {
        let db = prepare(Connection::open_in_memory().unwrap()).unwrap();
        let failed = Some(Verdict::Failed);
        let by = |states: &[DeliveryState], sink: Option<&str>, newest_first: bool| {
            let sink = sink.map(|name| SinkName::new(name).unwrap());
            deliveries_sql(&DeliveryFilter {
                states: states.to_vec(),
                sink,
                newest_first,
                after: None,
            })
        };
        let watches = |state, verdict, order| watches_sql(state, verdict, order).unwrap();
        let (oldest, newest, ended) = (WatchOrder::Oldest, WatchOrder::Newest, WatchOrder::Ended);
        let undelivered = [DeliveryState::Dead, DeliveryState::Pending];
        let queries = [
            (watches(None, None, oldest), "watches_by_age"),
            (watches(None, None, newest), "watches_by_age"),
            (
                watches(Some(WatchState::Active), None, oldest),
                "active_watches_by_age",
            ),
            (
                watches(Some(WatchState::Active), None, newest),
                "active_watches_by_age",
            ),
            (
                watches(Some(WatchState::Finished), None, oldest),
                "finished_watches_by_age",
            ),
            (
                watches(Some(WatchState::Finished), None, newest),
                "finished_watches_by_age",
            ),
            (
                watches(Some(WatchState::Finished), None, ended),
                "watches_by_end",
            ),
            (watches(None, None, ended), "watches_by_end"),
            (watches(None, failed, oldest), "watches_by_verdict"),
            (watches(None, failed, newest), "watches_by_verdict"),
            (
                watches(Some(WatchState::Finished), failed, oldest),
                "watches_by_verdict",
            ),
            (
                NEWEST_RECORD.replace("{}", RECORD_COLUMNS),
                "watches_of_run",
            ),
            (by(&[], None, false), "PRIMARY KEY"),
            (by(&[], None, true), "PRIMARY KEY"),
            (by(&undelivered, None, false), "undelivered"),
            (by(&undelivered, None, true), "undelivered"),
            (by(&[], Some("ops"), false), "deliveries_to_sink"),
            (by(&[], Some("ops"), true), "deliveries_to_sink"),
            (TOTAL.to_owned(), "PRIMARY KEY"),
            (OLDEST_OPEN.to_owned(), "open_deliveries_by_age"),
            (ACTIVE_IN_GROUP.to_owned(), "watches_of_open_group"),
            (COUNTS_OF_GROUP.to_owned(), "watches_of_open_group"),
            (EVENTS_AFTER.to_owned(), "INTEGER PRIMARY KEY"),
            (DUE.to_owned(), "deliveries_by_turn"),
            (NEXT_DUE.to_owned(), "deliveries_by_turn"),
            (WAITING.to_owned(), "deliveries_by_turn"),
            (ACTIVE_OF.to_owned(), "active_watch_of_run"),
            (KNOWN_NOTE.to_owned(), "PRIMARY KEY"),
            (KNOWN_WATCH.to_owned(), "watches_of_run"),
            (OLD_NOTES.to_owned(), "discovered_runs_by_age"),
            (OF_PROVIDER.to_owned(), "past_durations_by_age"),
            (TOO_MANY.to_owned(), "past_durations_by_age"),
            (OF_GROUPS.to_owned(), "PRIMARY KEY"),
        ];
        for (sql, index) in queries {
            let plan = plan(&db, &sql);
            let table = plan
                .iter()
                .find(|step| !step.contains("json_each"))
                .unwrap();
            assert!(
                table.starts_with("SEARCH") && table.contains(index),
                "{index}: {plan:?}\n{sql}"
            );
            let sorted = plan
                .iter()
                .any(|step| step.contains("TEMP B-TREE FOR ORDER BY"));
            assert!(!sorted, "{plan:?}\n{sql}");
        }
    }
}
