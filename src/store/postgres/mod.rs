//! The store in PostgreSQL, which several daemons share: one file per entity with its reads and its writes, and the
//! tasks that run them.
//!
//! Each daemon has five connections, each with one owner: the writer, two readers, the tail, which looks for what other
//! daemons stored, and the keeper of the lease. The owner makes its connection again when it is lost. Everything works
//! through a pooler that hands each transaction to another server process.

mod address;
mod connection;
mod copy;
mod deliveries;
mod digests;
mod discoveries;
mod durations;
mod errors;
mod events;
mod groups;
mod inspect;
mod jobs;
mod keeper;
mod marks;
mod migrations;
mod moved;
mod readers;
mod rights;
mod rows;
mod sql;
mod steps;
mod tail;
mod totals;
mod upkeep;
mod watches;
mod writer;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::mpsc;

use super::model::StoreError;
use super::operations::{ExecutionLane, Ping, Probe, WakeCouriers};
use super::signals::CommitSignals;
use super::{Store, StoreEngine};
use connection::{Connector, Line};
use jobs::Job;
use readers::{QUEUED, Readers};
use sql::Db;
use tail::Tail;
use writer::{MAX_BATCH, PostgresWriter};

pub use inspect::{Durability, Horizon, Rights, ServerFacts, TableFacts, inspect_server};
pub use keeper::{Candidate, HolderId, Keeper, LeaseRow, Renewal, Term};
pub use rights::MissingRights;

pub(super) use copy::{ServerEnd, ServerRows};
#[cfg(simulation)]
pub(super) use keeper::SKIPPED_NUMBERS;
pub(super) use sql::Perform;

/// Where the store is, and how it is used.
#[derive(Clone)]
pub struct PostgresSettings {
    /// The address, as a URL: `postgres://USER:PASSWORD@HOST/DATABASE`, with several hosts separated by commas.
    pub url: SecretString,
    /// The file with the address, which is read again for each connection: a new user and password count from then on.
    /// `None` where the address is not in a file.
    pub url_file: Option<PathBuf>,
    /// The schema that has the tables.
    pub schema: String,
    /// A file with the certificates of the authorities that are trusted; `None` for those of the system.
    pub ca_file: Option<PathBuf>,
    /// Whether missing tables are made, and older ones changed.
    pub migrate: bool,
    /// How long one statement may take, a lock may be waited for, and a transaction may be idle: a third of the lease.
    pub statement_limit: Duration,
    /// The name of this daemon, for people who look at the connections of the server.
    pub name: String,
}

impl fmt::Debug for PostgresSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresSettings")
            .field("schema", &self.schema)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The channels to the writer and to the readers.
#[derive(Debug, Clone)]
pub(super) struct PostgresChannels {
    writes: mpsc::Sender<Job>,
    reads: mpsc::Sender<Job>,
    /// The term in which writes count; any without one.
    term: Option<Term>,
}

impl PostgresChannels {
    /// Returns whether the server has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.writes.is_closed()
    }

    /// Sends an operation to where it is executed, and waits for its reply. Cancel-safe: a write that was sent is
    /// executed whether or not the caller still waits.
    ///
    /// # Errors
    /// When the operation or the commit failed, or the store is closed.
    pub(super) async fn run<O: Perform>(&self, operation: O) -> Result<O::Reply, StoreError> {
        let (job, reply) = Job::new(operation, self.term.clone());
        let channel = match O::PLACE {
            ExecutionLane::ReadBeside => &self.reads,
            ExecutionLane::Write | ExecutionLane::ReadInOrder => &self.writes,
        };
        channel
            .send(job)
            .await
            .map_err(|_closed| StoreError::Closed)?;
        reply.await.map_err(|_closed| StoreError::Closed)?
    }
}

/// The tasks of the store. [`PostgresServer::run`] serves until every [`Store`] is gone.
pub struct PostgresServer {
    writer: PostgresWriter,
    readers: Readers,
    tail: Tail,
}

impl PostgresServer {
    /// Connects, makes the tables where they are missing, and serves until every [`Store`] is gone. Connects again
    /// whenever a connection is lost.
    pub async fn run(self) {
        let serving = futures_util::future::join(self.writer.run(), self.readers.run());
        tokio::select! {
            _ = serving => {}
            () = self.tail.run() => {}
        }
    }
}

impl Store {
    /// A store in PostgreSQL. Does no I/O: until the server has connected, operations fail with
    /// [`StoreError::OutOfReach`].
    ///
    /// # Errors
    /// When the address cannot be read.
    pub fn postgres(settings: &PostgresSettings) -> Result<(Self, PostgresServer), StoreError> {
        let connector = Connector::new(settings)?;
        let (writes, write_jobs) = mpsc::channel(MAX_BATCH);
        let (reads, read_jobs) = mpsc::channel(QUEUED);
        let mut signals = CommitSignals::new();
        signals.figures.reconnects = connector.reconnects.clone();
        let store = signals.store(StoreEngine::Postgres(PostgresChannels {
            writes,
            reads,
            term: None,
        }));
        let server = PostgresServer {
            readers: Readers::new(&connector, read_jobs),
            tail: Tail {
                line: Line::new(connector.clone(), "tail"),
                history: signals.history.clone(),
                deliveries: signals.deliveries.clone(),
            },
            writer: PostgresWriter {
                line: Line::new(connector, "writer"),
                jobs: write_jobs,
                signals,
            },
        };
        Ok((store, server))
    }

    /// A handle whose writes count only in `term`: after another daemon has taken the lease, they fail with
    /// [`StoreError::Superseded`]. They mark nothing, because it is the leader that looks at marks. In SQLite it is an
    /// ordinary handle: no other process has the lock of the store.
    pub fn fenced(&self, term: Term) -> Self {
        let mut fenced = self.clone();
        match &mut fenced.engine {
            StoreEngine::Postgres(channels) => channels.term = Some(term),
            StoreEngine::Sqlite(_) => {}
            #[cfg(simulation)]
            StoreEngine::Simulated(channels) => channels.term = Some(term),
        }
        fenced
    }

    /// Returns whether other processes may use the store at the same time.
    pub fn is_shared(&self) -> bool {
        !matches!(self.engine, StoreEngine::Sqlite(_))
    }
}

impl Perform for Probe {
    const PIPELINED: bool = true;

    async fn perform(&self, _: &Db<'_>) -> Result<Self::Reply, StoreError> {
        Ok(())
    }
}

impl Perform for WakeCouriers {
    const PIPELINED: bool = true;

    async fn perform(&self, _: &Db<'_>) -> Result<Self::Reply, StoreError> {
        Ok(())
    }
}

impl Perform for Ping {
    const PIPELINED: bool = true;

    async fn perform(&self, _: &Db<'_>) -> Result<Self::Reply, StoreError> {
        Ok(())
    }
}
