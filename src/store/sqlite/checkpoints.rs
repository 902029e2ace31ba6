//! Checkpoints, which move committed pages from the write-ahead log to the database, beside the
//! writer: copying pages and two syncs would delay writes, for long on a busy disk. The log itself
//! makes a commit durable; a checkpoint only lets the log begin anew.

use std::path::Path;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use crate::store::model::StoreError;

/// The number of pages by which the log grows between two checkpoints: 4 MiB, the default of
/// SQLite.
const PAGES: u32 = 1_000;

/// Pages of the log from which on writes wait for a checkpoint: 64 MiB. As long as something is
/// written during each checkpoint, the log cannot begin anew.
const MOST_PAGES: u32 = 16_000;

/// One checkpoint, to be made on a connection of its own.
pub struct Checkpoint {
    connection: Connection,
}

impl Checkpoint {
    /// Moves the pages of the log, as far as no reader needs the older ones. Blocks on the disk,
    /// but neither the writer nor the readers. Pages that cannot be moved now stay in the log for
    /// the next checkpoint.
    pub fn run(self) -> Connection {
        let moved = self
            .connection
            .prepare_cached("PRAGMA wal_checkpoint(PASSIVE)")
            .and_then(|mut checkpoint| {
                checkpoint.query_row([], |row| Ok((row.get::<_, i64>(1)?, row.get::<_, i64>(2)?)))
            });
        match moved {
            Ok((log, moved)) => tracing::debug!(log, moved, "checkpoint"),
            Err(error) => {
                tracing::debug!(%error, "the write-ahead log cannot be moved to the database now")
            }
        }
        self.connection
    }
}

/// The owner of the connection that makes checkpoints.
pub(super) struct Checkpointer {
    connection: Connection,
    requests: mpsc::Receiver<CheckpointRequest>,
}

/// A checkpoint is due; the sender, if there is one, waits for its end.
type CheckpointRequest = Option<oneshot::Sender<()>>;

impl Checkpointer {
    /// Opens a connection to a database that is open already.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) fn open(path: &Path) -> Result<(WriteAheadLog, Self), StoreError> {
        let connection = Connection::open(path)?;
        super::prepare_any(&connection)?;
        connection.pragma_update(None, "synchronous", "full")?;
        // The files beside the database are opened with the first query.
        let _version: i64 =
            connection.pragma_query_value(None, "schema_version", |row| row.get(0))?;
        let (sender, requests) = mpsc::channel(1);
        Ok((
            WriteAheadLog {
                requests: sender,
                pages: 0,
                next_at: PAGES,
            },
            Self {
                connection,
                requests,
            },
        ))
    }

    /// Makes checkpoints by `make` until the writer has ended; `None` when one panicked.
    pub(super) async fn run<R>(mut self, make: impl Fn(Checkpoint) -> R) -> Option<()>
    where
        R: Future<Output = Option<Connection>>,
    {
        while let Some(reply) = self.requests.recv().await {
            let checkpoint = Checkpoint {
                connection: self.connection,
            };
            self.connection = make(checkpoint).await?;
            if let Some(reply) = reply {
                // The writer may have ended.
                let _unheard = reply.send(());
            }
        }
        Some(())
    }
}

/// The write-ahead log, as the writer sees it.
pub(super) struct WriteAheadLog {
    requests: mpsc::Sender<CheckpointRequest>,
    /// Its size after the last commit, and the size at which the next checkpoint is due.
    pages: u32,
    next_at: u32,
}

impl WriteAheadLog {
    /// Sets the number of pages after a commit, and requests a checkpoint when one is due.
    pub(super) fn grown_to(&mut self, pages: u32) {
        if pages < self.pages {
            self.next_at = PAGES;
        }
        self.pages = pages;
        // Where one is due already, this is tried again after the next commit.
        if pages >= self.next_at && self.requests.try_send(None).is_ok() {
            self.next_at = pages.saturating_add(PAGES);
        }
    }

    /// Waits for a checkpoint where the log is too large. Nothing is written meanwhile, so that the
    /// log can begin anew with the next write, unless a reader needs it.
    pub(super) async fn make_room(&self) {
        if self.pages < MOST_PAGES {
            return;
        }
        let (reply, made) = oneshot::channel();
        // The owner of the connection ends with the store.
        if self.requests.send(Some(reply)).await.is_ok() {
            drop(made.await);
        }
    }
}

/// How many pages the log has.
pub(super) fn log_pages(connection: &Connection) -> Result<u32, rusqlite::Error> {
    let pages: i64 = connection
        .prepare_cached("PRAGMA wal_checkpoint(NOOP)")?
        .query_row([], |row| row.get(1))?;
    Ok(u32::try_from(pages).unwrap_or(0))
}
