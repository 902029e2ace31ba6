//! Reads for people and programs, on connections of their own: a long list does not delay writes.

use std::path::Path;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::{mpsc, oneshot};

use crate::store::model::StoreError;

/// The number of connections, and of queries that run at the same time. Further queries wait.
const CONNECTIONS: usize = 4;

/// The number of queries that wait for a connection. The callers of further queries wait for a
/// place in the queue.
const QUEUED: usize = 64;

/// A query, which sends its own reply.
pub(super) type StoreQuery = Box<dyn FnOnce(&Connection) + Send>;

/// A query with the connection that it runs on.
pub struct ReadJob {
    connection: Connection,
    query: StoreQuery,
}

impl ReadJob {
    /// Runs the query. Blocks on the disk. Returns the connection for the next one.
    pub fn run(self) -> Connection {
        (self.query)(&self.connection);
        self.connection
    }
}

/// The owner of the connections that only read.
pub(super) struct ReadConnections {
    idle: Vec<Connection>,
    queries: mpsc::Receiver<StoreQuery>,
}

impl ReadConnections {
    /// Opens the connections to a database that is open already.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub(super) fn open(path: &Path) -> Result<(mpsc::Sender<StoreQuery>, Self), StoreError> {
        let idle = (0..CONNECTIONS)
            .map(|_| connect(path))
            .collect::<Result<_, _>>()?;
        let (sender, queries) = mpsc::channel(QUEUED);
        Ok((sender, Self { idle, queries }))
    }

    /// Runs queries by `read` until every [`Store`](crate::store::Store) is gone; `None` when one panicked.
    pub(super) async fn run<R>(mut self, read: impl Fn(ReadJob) -> R) -> Option<()>
    where
        R: Future<Output = Option<Connection>>,
    {
        let mut busy = FuturesUnordered::new();
        loop {
            // Both arms are cancel-safe: an item that is not taken stays in the channel or in the
            // set.
            tokio::select! {
                Some(connection) = busy.next() => self.idle.push(connection?),
                query = self.queries.recv(), if !self.idle.is_empty() => {
                    let Some((query, connection)) = query.zip(self.idle.pop()) else { break };
                    busy.push(read(ReadJob { connection, query }));
                }
            }
        }
        while let Some(connection) = busy.next().await {
            connection?;
        }
        Some(())
    }
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    super::prepare_any(&connection)?;
    // The first query opens the files beside the database, so it must not run after they were
    // removed.
    let _version: i64 = connection.pragma_query_value(None, "schema_version", |row| row.get(0))?;
    Ok(connection)
}

/// Runs `work` on a connection that only reads, and waits for its result.
///
/// # Errors
/// When it cannot be read, or the store is closed.
pub(super) async fn run<T, W>(queries: &mpsc::Sender<StoreQuery>, work: W) -> Result<T, StoreError>
where
    T: Send + 'static,
    W: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
{
    let (reply, answer) = oneshot::channel();
    let query: StoreQuery = Box::new(move |connection| {
        // The caller may have stopped waiting: then nothing is read.
        if !reply.is_closed() {
            drop(reply.send(work(connection)));
        }
    });
    queries
        .send(query)
        .await
        .map_err(|_closed| StoreError::Closed)?;
    answer.await.map_err(|_closed| StoreError::Closed)?
}
