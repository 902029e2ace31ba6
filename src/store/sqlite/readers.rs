//! Reading for people and programs, on connections of its own: a long list keeps no write waiting.

use std::path::Path;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::{mpsc, oneshot};

use super::writer::{Panicked, TransactionRunner};
use crate::store::model::StoreError;

/// Connections, and so questions that are answered at once. More of them wait for a turn.
const READERS: usize = 4;

/// Questions that wait for a connection. Those who come later wait to be let in.
const QUESTIONS: usize = 64;

/// A question, which answers for itself.
pub(super) type Question = Box<dyn FnOnce(&Connection) + Send>;

/// One question to be answered on a connection that nobody else uses meanwhile.
pub struct Reading {
    connection: Connection,
    question: Question,
}

impl Reading {
    /// Reads and answers. Blocks on the disk. Returns the connection, for the next.
    pub fn run(self) -> Connection {
        (self.question)(&self.connection);
        self.connection
    }
}

/// The owner of the connections that only read.
pub(super) struct Readers {
    idle: Vec<Connection>,
    questions: mpsc::Receiver<Question>,
}

impl Readers {
    /// Opens the connections to a database that is open already.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub(super) fn open(path: &Path) -> Result<(mpsc::Sender<Question>, Self), StoreError> {
        let idle = (0..READERS)
            .map(|_| connect(path))
            .collect::<Result<_, _>>()?;
        let (sender, questions) = mpsc::channel(QUESTIONS);
        Ok((sender, Self { idle, questions }))
    }

    /// Answers until nobody can ask any more.
    ///
    /// # Errors
    /// When a question panicked.
    pub(super) async fn run(mut self, disk: &impl TransactionRunner) -> Result<(), Panicked> {
        let mut busy = FuturesUnordered::new();
        loop {
            // Both arms are cancel-safe: what is not taken stays in the channel and in the set.
            tokio::select! {
                Some(connection) = busy.next() => self.idle.push(Option::ok_or(connection, Panicked)?),
                question = self.questions.recv(), if !self.idle.is_empty() => {
                    let Some((question, connection)) = question.zip(self.idle.pop()) else { break };
                    busy.push(disk.read(Reading { connection, question }));
                }
            }
        }
        while let Some(connection) = busy.next().await {
            connection.ok_or(Panicked)?;
        }
        Ok(())
    }
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    super::prepare_any(&connection)?;
    // The files beside the database are opened with the first question, which must not be the one that finds them gone.
    let _version: i64 = connection.pragma_query_value(None, "schema_version", |row| row.get(0))?;
    Ok(connection)
}

/// Has `work` done on a connection that only reads, and waits for what it brings.
///
/// # Errors
/// When it cannot be read, or the store is closed.
pub(super) async fn ask<T, W>(questions: &mpsc::Sender<Question>, work: W) -> Result<T, StoreError>
where
    T: Send + 'static,
    W: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
{
    let (reply, answer) = oneshot::channel();
    let question: Question = Box::new(move |connection| {
        // Who asked may have left meanwhile: then nothing is read.
        if !reply.is_closed() {
            drop(reply.send(work(connection)));
        }
    });
    questions
        .send(question)
        .await
        .map_err(|_closed| StoreError::Closed)?;
    answer.await.map_err(|_closed| StoreError::Closed)?
}
