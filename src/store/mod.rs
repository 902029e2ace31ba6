//! The store: watches, events, deliveries and attempts in SQLite.
//!
//! One writer owns the connection that writes. Callers send it work; it runs what has queued up meanwhile as one
//! transaction, and answers after the commit. So many small writes cost one sync to disk, and whatever
//! was answered is safe. What the engine itself reads comes after the transaction, whether or not its commit held.
//! What people and programs read, which may take long, has connections of its own (`readers`), and so has moving what
//! is committed to the database (`checkpoints`).

mod checkpoints;
mod deliveries;
mod files;
mod inspect;
mod lock;
mod queries;
mod readers;
mod schema;
mod upkeep;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::domain::Verdict;
use crate::failpoint::mutant;
use crate::text::{error_chain, one_line};

use checkpoints::{Checkpointer, Log};
use files::Files;
use readers::{Question, Readers};

pub use checkpoints::Checkpoint;
pub use deliveries::{Decided, Fate};
pub use inspect::{
    AttemptRecord, Counts, DeliveryFilter, History, Page, WatchFilter, WatchRecord, WatchState,
};
pub use lock::{Lock, LockError};
pub use queries::{
    Added, Attempt, Claimed, DeliveryState, DeliverySummary, Outcome, PollFailure, RoutedEvent,
    StatusChange, StoredWatch, WatchId,
};
pub use readers::Reading;
pub use upkeep::Pruned;

/// Why the store could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be opened.
    #[error("cannot open the store {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// SQLite refused.
    #[error("the store refused")]
    Sql(#[source] Arc<rusqlite::Error>),
    /// What is stored is not what this program stores.
    #[error("the store holds {what} that cannot be read: {why}")]
    Unreadable {
        /// What.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// The database is damaged.
    #[error("the store {} is damaged ({what}); restore a backup, or move it away to start anew", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The first damage found.
        what: String,
    },
    /// A file of the database is not there any more, or is another one.
    #[error(
        "the store's file {} was {what} while it was in use, so nothing more can be kept: put it back, or restart \
         runwatch to go on with what is there now",
        path.display()
    )]
    Gone {
        /// The file.
        path: PathBuf,
        /// `removed` or `replaced`.
        what: &'static str,
    },
    /// The writer has been in one transaction for long.
    #[error("the store has made no progress for {} s", .0.as_secs())]
    Stuck(Duration),
    /// A newer runwatch wrote the database.
    #[error(
        "the store has version {found}, this program knows {known} and older: use the newer runwatch"
    )]
    Newer {
        /// Version found.
        found: u32,
        /// Newest version known.
        known: u32,
    },
    /// The row is not in the state that the change needs.
    #[error("{what} is not {wanted}")]
    Precondition {
        /// Which row.
        what: String,
        /// The state it would need to be in.
        wanted: &'static str,
    },
    /// The writer has ended.
    #[error("the store is closed")]
    Closed,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(Arc::new(error))
    }
}

/// Where the database is.
#[derive(Debug, Clone, Copy)]
pub enum Location<'a> {
    /// In memory, gone with the process.
    Memory,
    /// A file, made if it is not there.
    File(&'a Path),
}

/// Most pieces of work in one transaction: enough to share one sync among many, few enough that the
/// first of them does not wait long.
const MAX_BATCH: usize = 512;

/// Most bytes that a run said in one transaction, unless one piece of work has more: large outputs that come together
/// are stored some at a time, and what else is to be written has its turn in between.
const MAX_BATCH_BYTES: usize = 16 * 1024 * 1024;

/// Size to which the write-ahead log is cut back once it was larger, in bytes.
const WAL_BYTES: i64 = 16 * 1024 * 1024;

/// How long SQLite waits for another process, such as a backup, to let go of the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the store is checked for damage when it is opened: some gigabytes on an ordinary disk.
const CHECK_LIMIT: Duration = Duration::from_secs(10);

/// Statements kept prepared; there are fewer than this.
const CACHED_STATEMENTS: usize = 64;

/// Work for the writer.
struct Job {
    /// It only reads, after the transaction: it does not fail because of what others write.
    reads: bool,
    /// About how many bytes it writes, where that may be many.
    bytes: usize,
    work: Work,
}

/// Given the connection, inside a transaction unless it only reads, or why there is none. It returns how to
/// answer once it is known whether the commit held.
type Work = Box<dyn FnOnce(Result<&Connection, StoreError>) -> Finish + Send>;

struct Finish {
    /// Whether to keep what the job changed.
    keep: bool,
    /// Wakes whoever waits for what the job changed.
    wakes: Wakes,
    answer: Box<dyn FnOnce(Result<(), StoreError>) + Send>,
}

/// Who must look again after a commit.
#[derive(Debug, Clone, Copy, Default)]
struct Wakes {
    history: bool,
    deliveries: bool,
    /// The verdict that was stored.
    verdict: Option<Verdict>,
}

/// A handle to the store; clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    jobs: mpsc::Sender<Job>,
    /// A database in memory has one connection.
    questions: Option<mpsc::Sender<Question>>,
    state: watch::Receiver<State>,
    history: watch::Receiver<u64>,
    deliveries: watch::Receiver<u64>,
}

/// What the writer says of itself.
#[derive(Debug, Clone, Copy)]
struct State {
    /// Since when it is in a transaction.
    busy_since: Option<Instant>,
    /// The worst verdict that was stored when it began and since, whether or not it is still there.
    worst: Option<Verdict>,
}

/// Where the writer has its transactions run. Simulations stand in for [`BlockingPool`].
pub trait TransactionRunner: Send + Sync + 'static {
    /// Runs a transaction; `None` when it panicked.
    fn run(&self, transaction: Transaction) -> impl Future<Output = Option<Done>> + Send;

    /// Reads; `None` when it panicked.
    fn read(&self, reading: Reading) -> impl Future<Output = Option<Connection>> + Send {
        std::future::ready(Some(reading.run()))
    }

    /// Makes a checkpoint; `None` when it panicked.
    fn checkpoint(
        &self,
        checkpoint: Checkpoint,
    ) -> impl Future<Output = Option<Connection>> + Send {
        std::future::ready(Some(checkpoint.run()))
    }
}

/// The threads of the runtime that may block.
#[derive(Debug)]
pub struct BlockingPool;

impl TransactionRunner for BlockingPool {
    async fn run(&self, transaction: Transaction) -> Option<Done> {
        tokio::task::spawn_blocking(|| transaction.run()).await.ok()
    }

    async fn read(&self, reading: Reading) -> Option<Connection> {
        tokio::task::spawn_blocking(|| reading.run()).await.ok()
    }

    async fn checkpoint(&self, checkpoint: Checkpoint) -> Option<Connection> {
        tokio::task::spawn_blocking(|| checkpoint.run()).await.ok()
    }
}

/// Something that was run on a connection panicked, and the connection is gone.
#[derive(Debug)]
struct Panicked;

/// Work that is to be run as one transaction.
pub struct Transaction {
    connection: Connection,
    files: Option<Arc<Files>>,
    jobs: Vec<Job>,
}

/// A transaction that was run, whether or not its commit held.
pub struct Done {
    connection: Connection,
    wrote: bool,
    /// Pages of the write-ahead log, where there is one.
    log_pages: Option<u32>,
    commit: Result<(), StoreError>,
    finished: Vec<Finish>,
    read: Vec<Finish>,
}

impl Done {
    /// The connection, as [`Transaction::connection`].
    pub fn connection(&self) -> &Connection {
        &self.connection
    }
}

impl Transaction {
    /// Runs it. Blocks on the disk.
    pub fn run(self) -> Done {
        self.run_with(|connection| execute(connection, "COMMIT"))
    }

    /// Runs it, and undoes what it wrote when it comes to the commit, as where the disk is full. Blocks on the disk.
    pub fn refuse(self) -> Done {
        let full = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
        self.refuse_with(rusqlite::Error::SqliteFailure(full, None))
    }

    /// As [`Transaction::refuse`], with the error that the commit meets.
    pub fn refuse_with(self, error: rusqlite::Error) -> Done {
        self.run_with(|_| Err(error.into()))
    }

    /// The connection, so that a simulated disk can make SQLite itself fail.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    fn run_with(self, commit: impl FnOnce(&Connection) -> Result<(), StoreError>) -> Done {
        let Self {
            connection,
            files,
            jobs,
        } = self;
        let before = connection.total_changes();
        let (reads, writes): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job.reads);
        let mut finished = Vec::with_capacity(writes.len());
        let intact = || files.as_ref().map_or(Ok(()), |files| files.check());
        let commit = if writes.is_empty() {
            Ok(())
        } else {
            // What was committed counts only where a later start finds it.
            write(&connection, intact(), writes, commit, &mut finished).and_then(|()| intact())
        };
        let wrote = commit.is_ok() && connection.total_changes() > before;
        // Giving room back to the disk changes no row, and is written all the same.
        let log_pages = files
            .filter(|_| commit.is_ok())
            .and_then(|_| checkpoints::log_pages(&connection).ok());
        let read = reads
            .into_iter()
            .map(|job| (job.work)(Ok(&connection)))
            .collect();
        Done {
            connection,
            wrote,
            log_pages,
            commit,
            finished,
            read,
        }
    }
}

/// The owner of the connection. [`Writer::run`] serves until every [`Store`] is gone.
pub struct Writer {
    connection: Connection,
    files: Option<Arc<Files>>,
    jobs: mpsc::Receiver<Job>,
    readers: Option<Readers>,
    /// A database in memory has no log.
    log: Option<(Log, Checkpointer)>,
    state: watch::Sender<State>,
    history: watch::Sender<u64>,
    deliveries: watch::Sender<u64>,
}

impl Store {
    /// Opens the database and brings it to the newest version. Deliveries that a dead process left in
    /// the middle of an attempt become due again.
    ///
    /// Blocks: for `CHECK_LIMIT` on a large store, longer where a new version changes its tables.
    ///
    /// # Errors
    /// When the file cannot be opened, is no database, or was written by a newer runwatch. It is never
    /// replaced.
    pub fn open(place: Location<'_>) -> Result<(Self, Writer), StoreError> {
        let (connection, files, reading, log) = match place {
            Location::Memory => (prepare(Connection::open_in_memory()?)?, None, None, None),
            Location::File(path) => {
                let open = || {
                    let connection = prepare(Connection::open(path)?)?;
                    check(&connection, path)?;
                    let files = Files::of(path).map_err(|_missing| StoreError::Gone {
                        path: path.to_owned(),
                        what: "removed",
                    })?;
                    let (reading, log) = (Readers::open(path)?, Checkpointer::open(path)?);
                    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
                    Ok((connection, Some(Arc::new(files)), Some(reading), Some(log)))
                };
                open().map_err(|error| match error {
                    StoreError::Sql(source)
                        if source.sqlite_error_code()
                            == Some(rusqlite::ErrorCode::DatabaseCorrupt) =>
                    {
                        StoreError::Corrupt {
                            path: path.to_owned(),
                            what: one_line(&source.to_string(), 200),
                        }
                    }
                    StoreError::Sql(source) => StoreError::Open {
                        path: path.to_owned(),
                        source,
                    },
                    other => other,
                })?
            }
        };
        queries::release_claims(&connection)?;
        let (jobs, jobs_receiver) = mpsc::channel(MAX_BATCH);
        let (questions, readers) = reading.unzip();
        let worst = inspect::verdicts(&connection)?.into_iter().next();
        let (state, state_receiver) = watch::channel(State {
            busy_since: None,
            worst,
        });
        let (history, history_receiver) = watch::channel(0);
        let (deliveries, deliveries_receiver) = watch::channel(0);
        let store = Self {
            jobs,
            questions,
            state: state_receiver,
            history: history_receiver,
            deliveries: deliveries_receiver,
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
            },
        ))
    }

    /// The worst verdict of all that were in the store when it was opened and that were given since, those included
    /// that were deleted meanwhile.
    pub fn worst_verdict(&self) -> Option<Verdict> {
        self.state.borrow().worst
    }

    /// Looks whether the writer makes progress, without waiting for it: another process, such as a backup, may keep
    /// it waiting for a while, and that is no ill health.
    ///
    /// # Errors
    /// When the writer has ended, or has been in one transaction for longer than `limit`.
    pub fn progresses(&self, limit: Duration) -> Result<(), StoreError> {
        if self.jobs.is_closed() {
            return Err(StoreError::Closed);
        }
        let busy = self.state.borrow().busy_since.map(|since| since.elapsed());
        busy.filter(|busy| *busy > limit)
            .map_or(Ok(()), |busy| Err(StoreError::Stuck(busy)))
    }

    /// Looks whether the store could be written: whether its files are there, and nobody else holds them.
    ///
    /// # Errors
    /// When it could not.
    pub async fn probe(&self) -> Result<(), StoreError> {
        self.write(Wakes::default(), |_| Ok(())).await
    }

    /// Comes back once the writer has seen to what it was given before: it makes progress.
    ///
    /// # Errors
    /// When the writer has ended.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.read(|_| Ok(())).await
    }

    /// Changes whenever status changes or events were committed.
    pub fn history_changed(&self) -> watch::Receiver<u64> {
        self.history.clone()
    }

    /// Changes whenever deliveries were added, claimed, attempted or put back.
    pub fn deliveries_changed(&self) -> watch::Receiver<u64> {
        self.deliveries.clone()
    }

    /// Has the writer do `work` and waits for the commit. Cancel-safe: once sent, the work is done
    /// whether or not anyone waits.
    async fn write<T, W>(&self, wakes: Wakes, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        self.call(false, 0, wakes, work).await
    }

    /// As [`Store::write`], for what writes about so many bytes.
    async fn write_large<T, W>(&self, bytes: usize, wakes: Wakes, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        self.call(false, bytes, wakes, work).await
    }

    /// Has `work`, which changes nothing and may take long, done beside the writer. It sees all that was answered.
    async fn inspect<T, W>(&self, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        match &self.questions {
            Some(questions) => readers::ask(questions, work).await,
            None => self.read(work).await,
        }
    }

    /// Has the writer do `work`, which changes nothing, and sees what was stored before.
    async fn read<T, W>(&self, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        self.call(true, 0, Wakes::default(), work).await
    }

    async fn call<T, W>(
        &self,
        reads: bool,
        bytes: usize,
        wakes: Wakes,
        work: W,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let work: Work = Box::new(move |connection| {
            let result = connection.and_then(work);
            Finish {
                keep: result.is_ok(),
                wakes,
                answer: Box::new(move |commit| {
                    // Whoever asked may have left; the work is done all the same.
                    drop(reply.send(commit.and(result)));
                }),
            }
        });
        self.jobs
            .send(Job { reads, bytes, work })
            .await
            .map_err(|_closed| StoreError::Closed)?;
        answer.await.map_err(|_closed| StoreError::Closed)?
    }
}

/// Sets a fresh connection up and brings the database to the newest version.
fn prepare(mut connection: Connection) -> Result<Connection, StoreError> {
    prepare_any(&connection)?;
    // Before anything is written, be it only to the header.
    schema::version(&connection)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // Of a new file only: what is freed can be given back to the disk, some pages at a time (sqlite.org/pragma.html,
    // "auto_vacuum"). Files of earlier versions keep their size. In an existing file it would write the header, and a
    // start on a full disk would fail.
    let pages: u32 = connection.pragma_query_value(None, "page_count", |row| row.get(0))?;
    if pages == 0 {
        connection.pragma_update(None, "auto_vacuum", "incremental")?;
    }
    // With a write-ahead log and FULL, a commit is on disk when it returns (sqlite.org/pragma.html).
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "journal_size_limit", WAL_BYTES)?;
    // The journal of a large statement would go to a file elsewhere, and a container has no elsewhere.
    connection.pragma_update(None, "temp_store", "memory")?;
    schema::migrate(&mut connection)?;
    Ok(connection)
}

/// Sets up what every connection needs.
fn prepare_any(connection: &Connection) -> Result<(), StoreError> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
    // Else SQLite plans a query anew each time that its parameters are others, which takes longer than the query.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}

/// Looks for damage, but no longer than `CHECK_LIMIT`: a store of many gigabytes must not keep the service from
/// starting. Damage that was not looked at shows when it is read.
fn check(connection: &Connection, path: &Path) -> Result<(), StoreError> {
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

/// What SQLite says of the state of its file; `None` where it did not come to an end within `limit`.
fn health_within(connection: &Connection, limit: Duration) -> Result<Option<String>, StoreError> {
    let interrupt = connection.get_interrupt_handle();
    let (ended, end) = std::sync::mpsc::channel::<()>();
    let health = std::thread::scope(|scope| {
        scope.spawn(move || {
            if end.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                interrupt.interrupt();
            }
        });
        let health = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0));
        drop(ended);
        health
    });
    match health {
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => {
            Ok(None)
        }
        health => Ok(Some(health?)),
    }
}

impl Writer {
    /// Serves until every [`Store`] is gone, then closes the database.
    pub async fn run(self) {
        self.run_on(BlockingPool).await;
    }

    /// As [`Writer::run`], with the transactions run by `disk`.
    pub async fn run_on(mut self, disk: impl TransactionRunner) {
        let readers = self.readers.take();
        let (log, checkpointer) = self.log.take().unzip();
        let mut writing = std::pin::pin!(self.write_on(log, &disk));
        let reading = async {
            match readers {
                Some(readers) => readers.run(&disk).await,
                None => Ok(()),
            }
        };
        let checkpoints = async {
            match checkpointer {
                Some(checkpointer) => checkpointer.run(&disk).await,
                None => Ok(()),
            }
        };
        let mut beside = std::pin::pin!(async { tokio::try_join!(reading, checkpoints).map(drop) });
        // The connection that writes is closed last: what the log holds goes to the database then.
        let (written, ended) = tokio::select! {
            // Without the writer nothing works, and whoever holds a handle would keep the readers going.
            connection = &mut writing => match connection {
                Some(connection) => (Some(connection), beside.await),
                None => (None, Ok(())),
            },
            ended = &mut beside => match ended {
                Ok(()) => (writing.await, Ok(())),
                panicked => (None, panicked),
            },
        };
        if let Err(Panicked) = ended {
            // Every caller sees Closed.
            tracing::error!("a reader of the store, or its checkpoint, failed");
        }
        drop(written);
    }

    /// Writes until every [`Store`] is gone. Returns the connection, unless it is lost.
    async fn write_on(
        mut self,
        mut log: Option<Log>,
        disk: &impl TransactionRunner,
    ) -> Option<Connection> {
        let (mut received, mut queue) = (Vec::new(), VecDeque::new());
        let mut failing = false;
        loop {
            if queue.is_empty() {
                if self.jobs.recv_many(&mut received, MAX_BATCH).await == 0 {
                    return Some(self.connection);
                }
                queue.extend(received.drain(..));
            }
            let mut batch = Vec::new();
            let mut bytes = 0_usize;
            while let Some(job) = queue.pop_front_if(|job: &mut Job| {
                bytes = bytes.saturating_add(job.bytes);
                batch.is_empty() || bytes <= MAX_BATCH_BYTES
            }) {
                batch.push(job);
            }
            self.state
                .send_modify(|state| state.busy_since = Some(Instant::now()));
            if let Some(log) = &log {
                log.make_room().await;
            }
            let transaction = Transaction {
                connection: self.connection,
                files: self.files.clone(),
                jobs: batch,
            };
            let Some(Done {
                connection,
                wrote,
                log_pages,
                commit,
                finished,
                read,
            }) = disk.run(transaction).await
            else {
                // A panic in a query: the connection is gone and every caller sees Closed.
                tracing::error!("the store's writer failed");
                return None;
            };
            self.connection = connection;
            if let Some((log, pages)) = log.as_mut().zip(log_pages) {
                log.grown_to(pages);
            }
            let committed = commit.is_ok();
            // Once when it begins and once when it ends: whoever asked is told each time.
            match &commit {
                Err(error) if !std::mem::replace(&mut failing, true) => {
                    tracing::error!(error = error_chain(error), "the store cannot be written");
                }
                // Where nothing was changed, that went well on a full disk, too.
                Ok(()) if wrote && std::mem::take(&mut failing) => {
                    tracing::info!("the store can be written again")
                }
                Ok(()) | Err(_) => {}
            }
            let wakes = || {
                finished
                    .iter()
                    .filter(|finish| finish.keep && committed)
                    .map(|finish| finish.wakes)
            };
            let (history, deliveries) = (
                wakes().any(|wakes| wakes.history),
                wakes().any(|wakes| wakes.deliveries),
            );
            let worst = Verdict::worst(wakes().filter_map(|wakes| wakes.verdict));
            self.state.send_modify(|state| {
                *state = State {
                    busy_since: None,
                    worst: Verdict::worst(state.worst.into_iter().chain(worst)),
                };
            });
            for finish in finished {
                (finish.answer)(if mutant("unheeded") {
                    Ok(())
                } else {
                    commit.clone()
                });
            }
            for finish in read {
                (finish.answer)(Ok(()));
            }
            if history {
                self.history.send_modify(|generation| *generation += 1);
            }
            if deliveries && !mutant("not-woken") {
                self.deliveries.send_modify(|generation| *generation += 1);
            }
        }
    }
}

/// Does jobs in one transaction, which `commit` ends, where the files are `intact`. A job that fails is undone alone.
fn write(
    connection: &Connection,
    intact: Result<(), StoreError>,
    jobs: Vec<Job>,
    commit: impl FnOnce(&Connection) -> Result<(), StoreError>,
    finished: &mut Vec<Finish>,
) -> Result<(), StoreError> {
    let mut transaction = intact.and_then(|()| execute(connection, "BEGIN IMMEDIATE"));
    for job in jobs {
        transaction = transaction.and_then(|()| execute(connection, "SAVEPOINT job"));
        let finish = (job.work)(transaction.clone().map(|()| connection));
        transaction = transaction.and_then(|()| {
            if !finish.keep {
                execute(connection, "ROLLBACK TO job")?;
            }
            execute(connection, "RELEASE job")
        });
        finished.push(finish);
    }
    let committed = transaction.and_then(|()| commit(connection));
    // SQLite may have rolled back by itself, as it does on a full disk.
    if committed.is_err()
        && !connection.is_autocommit()
        && let Err(error) = execute(connection, "ROLLBACK")
    {
        tracing::error!(%error, "cannot roll back");
    }
    committed
}

fn execute(connection: &Connection, sql: &str) -> Result<(), StoreError> {
    connection.prepare_cached(sql)?.execute([])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_of_a_large_store_ends_in_time_and_harms_no_later_query() {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch("CREATE TABLE t (x); CREATE INDEX i ON t (x)")
            .unwrap();
        let many = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000) \
                    INSERT INTO t SELECT i FROM n";
        connection.execute_batch(many).unwrap();
        assert_eq!(
            health_within(&connection, Duration::from_millis(1)).unwrap(),
            None
        );
        assert_eq!(
            health_within(&connection, Duration::from_secs(600))
                .unwrap()
                .as_deref(),
            Some("ok")
        );
    }
}
