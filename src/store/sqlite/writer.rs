//! The writer: one connection, and many small writes in one transaction.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::checkpoints::{self, Checkpoint, Checkpointer, WriteAheadLog};
use super::files::Files;
use super::readers::{self, ReadConnections, ReadJob, StoreQuery};
use crate::domain::Verdict;
use crate::failpoint::mutant;
use crate::memory;
use crate::metrics::StoreFigures;
use crate::reminder::Reminder;
use crate::store::model::StoreError;
use crate::store::operations::{ExecutionLane, Ping, Probe, StoreOperation, WakeCouriers};
use crate::store::{Wakes, WriterState};
use crate::text::{error_chain, humanize};

/// The largest number of jobs in one transaction: enough to share one sync among many, few enough
/// that the first of them does not wait long.
pub(super) const MAX_BATCH: usize = 512;

/// The largest number of bytes of run data in one transaction, unless a single job has more: large
/// outputs that arrive together are stored in several transactions, and other writes have their
/// turn in between.
const MAX_BATCH_BYTES: usize = 16 * 1024 * 1024;

/// How long no job comes, after jobs that wrote, read or deleted much, before SQLite frees the pages that it keeps in
/// memory: up to 2 MB
/// (sqlite.org/pragma.html, "cache_size").
const QUIET: Duration = Duration::from_millis(500);

/// A job for the writer.
pub(super) struct WriteJob {
    /// Whether it only reads: it runs after the transaction, and does not fail when a write of
    /// others fails.
    reads: bool,
    /// The approximate number of bytes that it writes; 0 when they are few.
    bytes: usize,
    work: WriteBody,
}

/// The channels to the writer and to the readers.
#[derive(Debug, Clone)]
pub(in crate::store) struct SqliteChannels {
    pub(super) jobs: mpsc::Sender<WriteJob>,
    /// A database in memory has one connection, and no readers.
    pub(super) queries: Option<mpsc::Sender<StoreQuery>>,
}

impl SqliteChannels {
    /// Returns whether the writer has ended.
    pub(in crate::store) fn is_closed(&self) -> bool {
        self.jobs.is_closed()
    }
}

/// The body of a job. It gets the connection, inside a transaction unless the job only reads, or
/// the error that prevented the transaction. It returns how to reply once the result of the commit
/// is known.
type WriteBody = Box<dyn FnOnce(Result<&Connection, StoreError>) -> Finish + Send>;

struct Finish {
    /// The approximate number of bytes of runs that the job read or deleted; 0 when they are few.
    bytes_read: usize,
    /// Whether to keep the changes of the job.
    keep: bool,
    /// The signals for the changes of the job.
    wakes: Wakes,
    answer: Box<dyn FnOnce(Result<(), StoreError>) + Send>,
}

/// Runs the transactions of the writer. Simulations replace [`BlockingPool`].
pub trait TransactionRunner: Send + Sync + 'static {
    /// Runs a transaction; `None` when it panicked.
    fn run(&self, transaction: Transaction) -> impl Future<Output = Option<Done>> + Send;

    /// Reads; `None` when it panicked.
    fn read(&self, job: ReadJob) -> impl Future<Output = Option<Connection>> + Send {
        std::future::ready(Some(job.run()))
    }

    /// Makes a checkpoint; `None` when it panicked.
    fn checkpoint(
        &self,
        checkpoint: Checkpoint,
    ) -> impl Future<Output = Option<Connection>> + Send {
        std::future::ready(Some(checkpoint.run()))
    }
}

/// The blocking threads of the tokio runtime.
#[derive(Debug)]
pub struct BlockingPool;

impl TransactionRunner for BlockingPool {
    async fn run(&self, transaction: Transaction) -> Option<Done> {
        tokio::task::spawn_blocking(|| transaction.run()).await.ok()
    }

    async fn read(&self, job: ReadJob) -> Option<Connection> {
        tokio::task::spawn_blocking(|| job.run()).await.ok()
    }

    async fn checkpoint(&self, checkpoint: Checkpoint) -> Option<Connection> {
        tokio::task::spawn_blocking(|| checkpoint.run()).await.ok()
    }
}

/// Jobs that are run as one transaction.
pub struct Transaction {
    connection: Connection,
    files: Option<Arc<Files>>,
    jobs: Vec<WriteJob>,
}

/// A transaction that was run, whether or not it was committed.
pub struct Done {
    connection: Connection,
    wrote: bool,
    /// Pages of the write-ahead log, where there is one.
    log_pages: Option<u32>,
    commit: Result<(), StoreError>,
    /// From the begin of the transaction to the end of the commit.
    took: Duration,
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

    /// Runs it, and rolls its writes back instead of the commit, as on a full disk. Blocks on the
    /// disk.
    pub fn reject(self) -> Done {
        let full = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
        self.reject_with(rusqlite::Error::SqliteFailure(full, None))
    }

    /// As [`Transaction::reject`], with the error of the commit.
    pub fn reject_with(self, error: rusqlite::Error) -> Done {
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
        let (began, before) = (Instant::now(), connection.total_changes());
        let (reads, writes): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job.reads);
        let mut finished = Vec::with_capacity(writes.len());
        let intact = || files.as_ref().map_or(Ok(()), |files| files.check());
        let commit = if writes.is_empty() {
            Ok(())
        } else {
            // A commit counts only when a later start finds its files.
            write(&connection, intact(), writes, commit, &mut finished).and_then(|()| intact())
        };
        let took = began.elapsed();
        let wrote = commit.is_ok() && connection.total_changes() > before;
        // An incremental vacuum changes no row, but it writes to the log.
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
            took,
            finished,
            read,
        }
    }
}

/// The owner of the connection. [`Writer::run`] serves until every [`Store`](crate::store::Store) is gone.
pub struct Writer {
    pub(super) connection: Connection,
    pub(super) files: Option<Arc<Files>>,
    pub(super) jobs: mpsc::Receiver<WriteJob>,
    pub(super) readers: Option<ReadConnections>,
    /// A database in memory has no log.
    pub(super) log: Option<(WriteAheadLog, Checkpointer)>,
    pub(super) state: watch::Sender<WriterState>,
    pub(super) history: watch::Sender<u64>,
    pub(super) deliveries: watch::Sender<u64>,
    pub(super) figures: StoreFigures,
}

impl SqliteChannels {
    /// Sends an operation to where it is executed, and waits for its reply. Cancel-safe: a write that was sent is
    /// executed whether or not the caller still waits.
    ///
    /// # Errors
    /// When the operation or the commit failed, or the store is closed.
    pub(in crate::store) async fn run<O: Execute>(
        &self,
        operation: O,
    ) -> Result<O::Reply, StoreError> {
        match &self.queries {
            Some(queries) if O::PLACE == ExecutionLane::ReadBeside => {
                readers::run(queries, |db| {
                    let reply = operation.execute(db)?;
                    if memory::is_large(O::bytes_read(&reply)) {
                        free_pages(db);
                    }
                    Ok(reply)
                })
                .await
            }
            _ => self.call(operation).await,
        }
    }

    async fn call<O: Execute>(&self, operation: O) -> Result<O::Reply, StoreError> {
        let (reply, answer) = oneshot::channel();
        let (bytes, wakes) = (operation.bytes(), operation.wakes());
        let work: WriteBody = Box::new(move |connection| {
            let result = connection.and_then(|db| operation.execute(db));
            Finish {
                bytes_read: result.as_ref().map_or(0, O::bytes_read),
                keep: result.is_ok(),
                wakes,
                answer: Box::new(move |commit| {
                    // The caller may have stopped waiting.
                    drop(reply.send(commit.and(result)));
                }),
            }
        });
        let reads = O::PLACE != ExecutionLane::Write;
        self.jobs
            .send(WriteJob { reads, bytes, work })
            .await
            .map_err(|_closed| StoreError::Closed)?;
        answer.await.map_err(|_closed| StoreError::Closed)?
    }
}

/// An operation in SQLite.
pub(in crate::store) trait Execute: StoreOperation {
    /// Executes it on a connection, inside a transaction if it writes. Blocks on the disk.
    ///
    /// # Errors
    /// When it fails; the writer then undoes what it wrote.
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError>;

    /// The approximate number of bytes of runs that it read or deleted; 0 when they are few.
    fn bytes_read(_reply: &Self::Reply) -> usize {
        0
    }
}

impl Execute for Probe {
    fn execute(self, _: &Connection) -> Result<Self::Reply, StoreError> {
        Ok(())
    }
}

impl Execute for WakeCouriers {
    fn execute(self, _: &Connection) -> Result<Self::Reply, StoreError> {
        Ok(())
    }
}

impl Execute for Ping {
    fn execute(self, _: &Connection) -> Result<Self::Reply, StoreError> {
        Ok(())
    }
}

impl Writer {
    /// Serves until every [`Store`](crate::store::Store) is gone, then closes the database.
    pub async fn run(self) {
        self.run_on(BlockingPool).await;
    }

    /// As [`Writer::run`], on another [`TransactionRunner`].
    pub async fn run_on(mut self, disk: impl TransactionRunner) {
        let readers = self.readers.take();
        let (log, checkpointer) = self.log.take().unzip();
        let mut writing = std::pin::pin!(self.write_on(log, &disk));
        let reading = async {
            match readers {
                Some(readers) => readers.run(|job| disk.read(job)).await.ok_or(()),
                None => Ok(()),
            }
        };
        let checkpoints = async {
            match checkpointer {
                Some(owner) => owner.run(|due| disk.checkpoint(due)).await.ok_or(()),
                None => Ok(()),
            }
        };
        let mut beside = std::pin::pin!(async { tokio::try_join!(reading, checkpoints).is_ok() });
        // The connection that writes is closed last: SQLite then moves the log to the database.
        let (written, well) = tokio::select! {
            // Without the writer nothing works, and every handle to the store would keep the
            // readers alive.
            connection = &mut writing => match connection {
                Some(connection) => (Some(connection), beside.await),
                None => (None, true),
            },
            ended = &mut beside => match ended {
                true => (writing.await, true),
                false => (None, false),
            },
        };
        if !well {
            // Every caller sees Closed.
            tracing::error!("a reader of the store, or its checkpoint, failed");
        }
        drop(written);
    }

    /// Waits for jobs and adds them to `queue`. Returns `false` once every [`Store`](crate::store::Store) is gone. Cancel-safe.
    async fn receive(&mut self, queue: &mut VecDeque<WriteJob>) -> bool {
        let mut received = Vec::new();
        let any = self.jobs.recv_many(&mut received, MAX_BATCH).await > 0;
        queue.extend(received);
        any
    }

    /// Writes until every [`Store`](crate::store::Store) is gone. Returns the connection, unless it is lost.
    async fn write_on(
        mut self,
        mut log: Option<WriteAheadLog>,
        disk: &impl TransactionRunner,
    ) -> Option<Connection> {
        let mut queue = VecDeque::new();
        let mut rejections = Rejections::default();
        let mut moved_much = false;
        loop {
            if queue.is_empty() {
                if moved_much && timeout(QUIET, self.receive(&mut queue)).await.is_err() {
                    moved_much = false;
                    free_pages(&self.connection);
                }
                if queue.is_empty() && !self.receive(&mut queue).await {
                    return Some(self.connection);
                }
            }
            let (batch, mut bytes) = next_batch(&mut queue);
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
                took,
                finished,
                read,
            }) = disk.run(transaction).await
            else {
                // A panic in a query: the connection is gone and every caller sees Closed.
                tracing::error!("the store's writer failed");
                return None;
            };
            self.connection = connection;
            for finish in finished.iter().chain(&read) {
                bytes = bytes.saturating_add(finish.bytes_read);
            }
            moved_much |= memory::is_large(bytes);
            if let Some((log, pages)) = log.as_mut().zip(log_pages) {
                log.grown_to(pages);
            }
            if wrote {
                self.figures.count_commit(took, finished.len());
            }
            rejections.log(&commit, wrote, Instant::now());
            self.reply(&commit, finished, read);
        }
    }

    /// Replies to the callers of a transaction, and signals what it changed.
    fn reply(&self, commit: &Result<(), StoreError>, finished: Vec<Finish>, read: Vec<Finish>) {
        let kept = |finish: &&Finish| finish.keep && commit.is_ok();
        let wakes = || finished.iter().filter(kept).map(|finish| finish.wakes);
        let (history, deliveries) = (
            wakes().any(|wakes| wakes.history),
            wakes().any(|wakes| wakes.deliveries),
        );
        let worst = Verdict::worst(wakes().filter_map(|wakes| wakes.verdict));
        self.state.send_modify(|state| {
            *state = WriterState {
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

/// Takes the jobs of the next transaction from the queue; the second value is how many bytes they write at most.
fn next_batch(queue: &mut VecDeque<WriteJob>) -> (Vec<WriteJob>, usize) {
    let mut batch = Vec::new();
    let mut bytes = 0_usize;
    while let Some(job) = queue.pop_front_if(|job: &mut WriteJob| {
        bytes = bytes.saturating_add(job.bytes);
        batch.is_empty() || bytes <= MAX_BATCH_BYTES
    }) {
        batch.push(job);
    }
    (batch, bytes)
}

/// What was logged of writes that the store rejects.
#[derive(Debug, Default)]
struct Rejections {
    reminder: Reminder,
    /// Since when it rejects all of them.
    since: Option<Instant>,
    /// Whether a rejection was logged, and no write that was accepted since.
    is_open: bool,
}

impl Rejections {
    /// Logs a line when the store begins to reject writes, again at growing intervals while it does, and one when it
    /// ends: every caller gets the error as well.
    fn log(&mut self, commit: &Result<(), StoreError>, wrote: bool, now: Instant) {
        match commit {
            Err(error) => {
                let lasted = now.saturating_duration_since(*self.since.get_or_insert(now));
                if self.reminder.is_due(now) {
                    self.is_open = true;
                    let error = error_chain(error);
                    let lasted = (!lasted.is_zero()).then(|| humanize(lasted));
                    tracing::error!(error, lasted, "the store cannot be written");
                }
            }
            // A transaction without changes succeeds on a full disk as well.
            Ok(()) if wrote => {
                self.since = None;
                if std::mem::take(&mut self.is_open) {
                    tracing::info!("the store can be written again");
                }
            }
            Ok(()) => {}
        }
    }
}

/// Runs jobs in one transaction, which `commit` ends, if the files are `intact`. A job that fails
/// is rolled back alone.
fn write(
    connection: &Connection,
    intact: Result<(), StoreError>,
    jobs: Vec<WriteJob>,
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

/// Frees the pages that SQLite keeps in memory. Reads and writes no file.
fn free_pages(connection: &Connection) {
    if let Err(error) = connection.execute_batch("PRAGMA shrink_memory") {
        tracing::debug!(%error, "cannot free pages of the store");
    }
    memory::freed();
}

fn execute(connection: &Connection, sql: &str) -> Result<(), StoreError> {
    connection.prepare_cached(sql)?.execute([])?;
    Ok(())
}
