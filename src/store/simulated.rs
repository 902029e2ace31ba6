//! A database server that daemons share, in simulated time: the operations as SQLite executes them, with what
//! PostgreSQL adds. A write of a leader requires its term in the same transaction; a write without a term marks what it
//! changes. Each daemon reaches the server over a [`ServerLink`], which delays and loses requests and replies. A standby
//! that lacks the newest writes can be promoted.

use std::any::Any;
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use rusqlite::Connection;
use rusqlite::config::DbConfig;
use rusqlite::types::FromSql;
use tokio::sync::{mpsc, oneshot};

use super::model::{Location, Mark, StoreError};
use super::operations::{
    AddConfiguredWatch, AddWatch, DecideSome, ExecutionLane, NewestEvent, RemoveWatches,
    StoreOperation, TakeMarks,
};
use super::postgres::{Candidate, LeaseRow, SKIPPED_NUMBERS, Term};
use super::signals::CommitSignals;
use super::sqlite::{self, Execute, Writer};
use super::{Store, StoreEngine, Wakes};
use crate::failpoint::mutant;

/// Operations that wait for the server.
const QUEUED: usize = 512;

/// How often a daemon looks for events that others stored.
const TAIL: Duration = Duration::from_secs(1);

/// The way of one daemon to the server.
pub trait ServerLink: Send + Sync + 'static {
    /// Returns once a request has arrived. An error shows that it is lost, and nothing is done.
    fn request(&self, writes: bool) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Returns once the reply has arrived. An error shows that it is lost.
    fn reply(&self, writes: bool) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Connects to the server that takes writes, after a request that it did not execute.
    fn reconnect(&self);
}

/// What the server has besides the tables.
#[derive(Debug)]
pub struct ServerState {
    /// The lease.
    pub lease: LeaseRow,
    /// How many standbys were promoted.
    promoted: i64,
    /// How many there were when the term began.
    promoted_before: i64,
    /// The numbers of the terms in which leaders wrote, in the order of their writes; one for writes in a row.
    pub written_terms: Vec<i64>,
    marks: VecDeque<Mark>,
    standby: Option<Standby>,
    /// The number that the next event has in the place of a higher one, with a deliberate bug.
    left_out: Option<i64>,
}

/// The state of a standby at the time of its last replicated write.
#[derive(Debug)]
struct Standby {
    /// Has the tables of the standby beside those of the server, which are in its file.
    db: Connection,
    lease: LeaseRow,
    promoted_before: i64,
    marks: VecDeque<Mark>,
}

/// What a standby lacks that was promoted.
#[derive(Debug, Default)]
pub struct LostRows {
    /// The numbers of events.
    pub events: BTreeSet<i64>,
    /// The IDs of deliveries.
    pub deliveries: BTreeSet<String>,
    /// The IDs of runs that have no watch.
    pub runs: BTreeSet<String>,
}

/// The server; clones share it.
#[derive(Clone)]
pub struct SimulatedServer {
    path: Arc<Path>,
    channels: sqlite::SqliteChannels,
    state: Arc<Mutex<ServerState>>,
}

/// An operation with the caller that waits for it.
type ServerJob =
    Box<dyn FnOnce(SimulatedServer, Arc<dyn ServerLink>) -> BoxFuture<'static, ()> + Send>;

/// The channels of one daemon.
#[derive(Clone)]
pub(super) struct SimulatedChannels {
    writes: mpsc::Sender<ServerJob>,
    reads: mpsc::Sender<ServerJob>,
    signals: CommitSignals,
    /// The term in which writes count; any without one.
    pub(super) term: Option<Term>,
}

impl fmt::Debug for SimulatedChannels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedChannels").finish_non_exhaustive()
    }
}

/// The tasks of one daemon that speak to the server.
pub struct SimulatedConnection {
    server: SimulatedServer,
    link: Arc<dyn ServerLink>,
    writes: mpsc::Receiver<ServerJob>,
    reads: mpsc::Receiver<ServerJob>,
    store: SimulatedChannels,
}

impl SimulatedServer {
    /// Opens the database of a server whose lease is `lease`. Returns a handle that looks at it from outside, and the
    /// writer.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path, lease: LeaseRow) -> Result<(Self, Store, Writer), StoreError> {
        let (store, writer) = Store::open(Location::File(path))?;
        let StoreEngine::Sqlite(channels) = &store.engine else {
            unreachable!("it was opened in SQLite");
        };
        let state = ServerState {
            lease,
            promoted: 0,
            promoted_before: 0,
            written_terms: Vec::new(),
            marks: VecDeque::new(),
            standby: None,
            left_out: None,
        };
        let server = Self {
            path: path.into(),
            channels: channels.clone(),
            state: Arc::new(Mutex::new(state)),
        };
        Ok((server, store, writer))
    }

    /// What the server has besides the tables. Nothing may be awaited meanwhile.
    pub fn state(&self) -> MutexGuard<'_, ServerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a standby receive no more writes.
    ///
    /// # Errors
    /// When the tables cannot be copied.
    pub fn delay_standby(&self) -> Result<(), StoreError> {
        let db = Connection::open(&self.path)?;
        // What follows from the tables is copied like them.
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
        db.execute_batch("PRAGMA foreign_keys = OFF; ATTACH ':memory:' AS standby; PRAGMA main.synchronous = OFF")?;
        for table in tables(&db)? {
            db.execute_batch(&format!(
                "CREATE TABLE standby.\"copy_{table}\" AS SELECT * FROM main.\"{table}\""
            ))?;
        }
        let state = &mut *self.state();
        state.standby = Some(Standby {
            db,
            lease: state.lease.clone(),
            promoted_before: state.promoted_before,
            marks: state.marks.clone(),
        });
        Ok(())
    }

    /// Promotes the standby that [`SimulatedServer::delay_standby`] made, and returns what it lacks. Without such a standby,
    /// one that has all writes is promoted.
    ///
    /// # Errors
    /// When the tables cannot be copied.
    pub fn promote_standby(&self) -> Result<LostRows, StoreError> {
        let state = &mut *self.state();
        let mut lost = LostRows::default();
        if let Some(standby) = state.standby.take() {
            let mut sql = String::from("BEGIN IMMEDIATE;");
            for table in tables(&standby.db)? {
                sql += &format!(
                    "DELETE FROM main.\"{table}\";
                     INSERT INTO main.\"{table}\" SELECT * FROM standby.\"copy_{table}\";"
                );
            }
            lost = LostRows::all(&standby.db)?;
            standby.db.execute_batch(&(sql + "COMMIT"))?;
            let kept = LostRows::all(&standby.db)?;
            lost.events.retain(|seq| !kept.events.contains(seq));
            lost.deliveries.retain(|id| !kept.deliveries.contains(id));
            lost.runs.retain(|run| !kept.runs.contains(run));
            state.lease = standby.lease;
            state.promoted_before = standby.promoted_before;
            state.marks = standby.marks;
        }
        state.promoted += 1;
        let timeline = state.promoted.to_string();
        state.lease.promote(timeline);
        state.written_terms.clear();
        Ok(lost)
    }

    /// Begins a term, where nothing changed since the lease was `seen`.
    ///
    /// # Errors
    /// When the numbers of events cannot be changed.
    pub fn take_lease(
        &self,
        seen: &LeaseRow,
        candidate: &Candidate,
    ) -> Result<Option<Term>, StoreError> {
        let state = &mut *self.state();
        let term = state.lease.take(seen, candidate);
        if term.is_some() {
            let timelines = state.promoted - state.promoted_before;
            state.promoted_before = state.promoted;
            if timelines > 0 && !mutant("numbers-again") {
                let db = Connection::open(&self.path)?;
                let newest = newest_event(&db)?;
                set_newest_event(&db, newest + SKIPPED_NUMBERS * timelines)?;
            }
        }
        Ok(term)
    }

    /// Lets a daemon in. Its store works while [`SimulatedConnection::run`] runs.
    pub fn connect(&self, link: Arc<dyn ServerLink>) -> (Store, SimulatedConnection) {
        let (writes, write_jobs) = mpsc::channel(QUEUED);
        let (reads, read_jobs) = mpsc::channel(QUEUED);
        let signals = CommitSignals::new();
        let channels = SimulatedChannels {
            writes,
            reads,
            signals: signals.clone(),
            term: None,
        };
        let store = signals.store(StoreEngine::Simulated(channels.clone()));
        let connection = SimulatedConnection {
            server: self.clone(),
            link,
            writes: write_jobs,
            reads: read_jobs,
            store: channels,
        };
        (store, connection)
    }
}

impl SimulatedConnection {
    /// Serves, one operation after the other on each of the two connections, without end.
    pub async fn run(self) {
        let Self {
            server,
            link,
            writes,
            reads,
            store,
        } = self;
        let serve = |mut jobs: mpsc::Receiver<ServerJob>| {
            let (server, link) = (server.clone(), Arc::clone(&link));
            async move {
                while let Some(job) = jobs.recv().await {
                    job(server.clone(), Arc::clone(&link)).await;
                }
            }
        };
        tokio::join!(serve(writes), serve(reads), store.follow());
    }
}

impl SimulatedChannels {
    pub(super) fn is_closed(&self) -> bool {
        self.writes.is_closed()
    }

    /// Sends an operation to the server, and waits for its reply. Cancel-safe: a write that was sent is executed whether
    /// or not the caller still waits.
    pub(super) async fn run<O: Execute>(&self, operation: O) -> Result<O::Reply, StoreError> {
        let (reply, received) = oneshot::channel();
        let (term, signals) = (self.term.clone(), self.signals.clone());
        let (writes, wakes) = (O::PLACE == ExecutionLane::Write, operation.wakes());
        let job: ServerJob = Box::new(move |server, link| {
            Box::pin(async move {
                let reconnecting = Arc::clone(&link);
                let result = perform(operation, term, server, link).await;
                let is_unknown = matches!(result, Err(StoreError::Unknown));
                let is_away = matches!(result, Err(StoreError::OutOfReach { .. }));
                if (is_away || is_unknown) && !mutant("pinned-to-standby") {
                    reconnecting.reconnect();
                }
                let may_be_kept = writes && (result.is_ok() || is_unknown);
                if is_unknown && !mutant("unknown-is-refused") {
                    signals.count_unknown_commit();
                }
                // The caller may have stopped waiting.
                drop(reply.send(result));
                if may_be_kept {
                    signals.send(wakes);
                }
            })
        });
        let channel = match O::PLACE {
            ExecutionLane::ReadBeside => &self.reads,
            ExecutionLane::Write | ExecutionLane::ReadInOrder => &self.writes,
        };
        let sent = channel.send(job).await;
        sent.map_err(|_closed| StoreError::Closed)?;
        received.await.map_err(|_closed| StoreError::Closed)?
    }

    /// Looks for events that other daemons stored, without end.
    async fn follow(self) {
        let mut known = None;
        loop {
            if let Ok(newest) = self.run(NewestEvent {}).await {
                if known.is_some_and(|known| known != newest) {
                    self.signals.send(Wakes {
                        history: true,
                        deliveries: true,
                        verdict: None,
                    });
                }
                known = Some(newest);
            }
            tokio::time::sleep(TAIL).await;
        }
    }
}

async fn perform<O: Execute>(
    operation: O,
    term: Option<Term>,
    server: SimulatedServer,
    link: Arc<dyn ServerLink>,
) -> Result<O::Reply, StoreError> {
    let writes = O::PLACE == ExecutionLane::Write;
    link.request(writes).await?;
    let mark = match &term {
        None if writes => mark(&operation),
        _ => None,
    };
    let (in_transaction, apart) = if mutant("mark-apart") {
        (None, mark)
    } else {
        (mark, None)
    };
    let fenced = Fenced {
        operation,
        term,
        mark: in_transaction,
        state: Arc::clone(&server.state),
    };
    let result = server.channels.run(fenced).await;
    link.reply(writes).await?;
    server.state().marks.extend(apart);
    result
}

/// An operation as a server executes it.
struct Fenced<O> {
    operation: O,
    term: Option<Term>,
    /// What a leader has to look at, in the same transaction.
    mark: Option<Mark>,
    state: Arc<Mutex<ServerState>>,
}

impl<O: fmt::Debug> fmt::Debug for Fenced<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.operation.fmt(f)
    }
}

impl<O: StoreOperation> StoreOperation for Fenced<O> {
    type Reply = O::Reply;

    const PLACE: ExecutionLane = O::PLACE;

    fn bytes(&self) -> usize {
        self.operation.bytes()
    }

    fn wakes(&self) -> Wakes {
        self.operation.wakes()
    }
}

impl<O: Execute> Execute for Fenced<O> {
    fn execute(self, db: &Connection) -> Result<Self::Reply, StoreError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if O::PLACE != ExecutionLane::Write {
            return self.operation.execute(db);
        }
        if let Some(term) = &self.term {
            if !state.lease.is_of(term) && !mutant("no-fence") {
                return Err(StoreError::Superseded);
            }
            if state.written_terms.last() != Some(&term.epoch) {
                state.written_terms.push(term.epoch);
            }
        }
        let operation: &dyn Any = &self.operation;
        if let Some(take) = operation.downcast_ref::<TakeMarks>() {
            let reply: Box<dyn Any> = Box::new(state.take_marks(take.limit as usize));
            let reply = reply.downcast().expect("it is the reply of this operation");
            return Ok(*reply);
        }
        let reply = if mutant("second-event-writer") {
            state.leave_out(db, |db| self.operation.execute(db))?
        } else {
            self.operation.execute(db)?
        };
        state.marks.extend(self.mark);
        Ok(reply)
    }

    fn bytes_read(reply: &Self::Reply) -> usize {
        O::bytes_read(reply)
    }
}

impl ServerState {
    /// Executes a write as one of two writers at once: of two events, the one that is committed last has the lower number.
    fn leave_out<T>(
        &mut self,
        db: &Connection,
        write: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let newest = newest_event(db)?;
        let reply = write(db)?;
        let written = newest_event(db)?;
        if written == newest + 1 {
            let left_out = self.left_out.take();
            let number = left_out.unwrap_or(written + 1);
            db.execute_batch(&format!(
                "PRAGMA defer_foreign_keys = ON;
                 UPDATE events SET seq = {number} WHERE seq = {written};
                 UPDATE deliveries SET event_seq = {number} WHERE event_seq = {written};"
            ))?;
            if left_out.is_none() {
                self.left_out = Some(written);
                set_newest_event(db, number)?;
            }
        }
        Ok(reply)
    }

    /// Takes the oldest marks, each once.
    fn take_marks(&mut self, limit: usize) -> Vec<Mark> {
        let taken = self.marks.drain(..limit.min(self.marks.len()));
        let mut seen = BTreeSet::new();
        taken.filter(|mark| seen.insert(mark.clone())).collect()
    }
}

impl LostRows {
    /// All rows of the server.
    fn all(db: &Connection) -> Result<Self, StoreError> {
        Ok(Self {
            events: column(db, "SELECT seq FROM main.events")?,
            deliveries: column(db, "SELECT id FROM main.deliveries")?,
            runs: column(db, "SELECT run_id FROM main.watches")?,
        })
    }
}

/// The values that a query reads.
fn column<T: FromSql + Ord>(db: &Connection, sql: &str) -> Result<BTreeSet<T>, StoreError> {
    let mut query = db.prepare(sql)?;
    let values = query.query_map([], |row| row.get(0))?;
    Ok(values.collect::<Result<_, _>>()?)
}

/// The names of the tables; the last one has the numbers that were given out, which inserts change.
fn tables(db: &Connection) -> Result<Vec<String>, StoreError> {
    let mut names = db.prepare(
        "SELECT name FROM main.sqlite_schema
         WHERE type = 'table' AND (name NOT LIKE 'sqlite\\_%' ESCAPE '\\' OR name = 'sqlite_sequence')
         ORDER BY name = 'sqlite_sequence'",
    )?;
    let names = names.query_map([], |row| row.get(0))?;
    Ok(names.collect::<Result<_, _>>()?)
}

/// The highest number that an event had.
fn newest_event(db: &Connection) -> Result<i64, StoreError> {
    NewestEvent {}.execute(db)
}

/// Sets the highest number that an event had.
fn set_newest_event(db: &Connection, number: i64) -> Result<(), StoreError> {
    let changed = "UPDATE sqlite_sequence SET seq = ? WHERE name = 'events'";
    if db.execute(changed, [number])? == 0 {
        let made = "INSERT INTO sqlite_sequence (name, seq) VALUES ('events', ?)";
        db.execute(made, [number])?;
    }
    Ok(())
}

/// What a leader has to look at after this operation of another daemon.
fn mark(operation: &dyn Any) -> Option<Mark> {
    if mutant("mark-missing") {
        return None;
    }
    if let Some(add) = operation.downcast_ref::<AddWatch>() {
        return Some(Mark::Run(add.watch.run_id.clone()));
    }
    if let Some(add) = operation.downcast_ref::<AddConfiguredWatch>() {
        return Some(Mark::Run(add.watch.run_id.clone()));
    }
    if let Some(remove) = operation.downcast_ref::<RemoveWatches>() {
        return Some(Mark::Run(remove.run_id.clone()));
    }
    let decide = operation.downcast_ref::<DecideSome>()?;
    Some(Mark::Sink(decide.sink.clone()))
}
