//! What the store holds and answers: records, filters, pages and errors. Nothing here depends on a
//! database engine.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::domain::{
    DeliveryId, Event, EventType, FoundBy, Progress, ProviderName, RunEvent, RunRef, SinkName,
    Status, TraceContext, Verdict, Watch, WatchOrigin,
};

/// The error of the database engine, with its own causes.
pub type DatabaseError = Arc<dyn Error + Send + Sync>;

/// Why an operation of the store failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be opened.
    #[error("cannot open the store {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: DatabaseError,
    },
    /// The database reported an error.
    #[error("the database reported an error")]
    Database(#[source] DatabaseError),
    /// A stored value is not one that this program writes.
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
    /// A file of the database was removed or replaced.
    #[error(
        "the store's file {} was {what} while it was in use, so nothing more can be stored: put it back, or restart \
         runwatch to go on with what is there now",
        path.display()
    )]
    Gone {
        /// The file.
        path: PathBuf,
        /// `removed` or `replaced`.
        what: &'static str,
    },
    /// The writer has been in one transaction for too long.
    #[error("the store has made no progress for {} s", .0.as_secs())]
    Stuck(Duration),
    /// A newer runwatch wrote the database.
    #[error(
        "the store has version {found}, but this program reads only version {known} and older: use the newer runwatch"
    )]
    Newer {
        /// Version found.
        found: u32,
        /// Newest version known.
        known: u32,
    },
    /// The store was copied to another place, which is used now.
    #[error(
        "the store was moved to {to}: configure that one, or copy it back with `runwatch store copy`"
    )]
    Moved {
        /// The place; no secrets.
        to: String,
    },
    /// A copy into the store did not end.
    #[error(
        "a copy of {from} into this store did not end: run the same `runwatch store copy` again"
    )]
    Incomplete {
        /// The place that is copied; no secrets.
        from: String,
    },
    /// The row is not in the state that the change needs.
    #[error("{what} is not {wanted}")]
    Precondition {
        /// Which row.
        what: String,
        /// The state it would need to be in.
        wanted: &'static str,
    },
    /// PostgreSQL cannot be reached, or does not take writes now. Nothing was changed.
    #[error("the store is out of reach ({why})")]
    OutOfReach {
        /// Why; one line, no secrets.
        why: String,
    },
    /// Another daemon leads now. Nothing was changed.
    #[error("another daemon leads now, so nothing was stored")]
    Superseded,
    /// PostgreSQL did not confirm a commit: the connection was lost, or its synchronous standby did not answer.
    #[error(
        "it is unknown whether the store kept the change: PostgreSQL did not confirm the commit"
    )]
    Unknown,
    /// The PostgreSQL server or database cannot hold the store; a person must change that.
    #[error("PostgreSQL cannot hold the store: {0}")]
    Unusable(String),
    /// The tables in PostgreSQL are of an earlier version, and were not to be changed.
    #[error(
        "PostgreSQL cannot hold the store: its tables in the schema {schema} have version {found}, and {known} is needed; \
         run `runwatch store migrate` with a role that may make them"
    )]
    OldTables {
        /// The schema.
        schema: String,
        /// Their version; 0 where there are none.
        found: i64,
        /// The version that this program makes.
        known: i64,
    },
    /// The address of a PostgreSQL store cannot be used.
    #[error("{what}; {fix}")]
    Address {
        /// What is wrong with it; no secrets.
        what: &'static str,
        /// What to do.
        fix: &'static str,
    },
    /// The writer has ended.
    #[error("the store is closed")]
    Closed,
}

/// Where the database is.
#[derive(Debug, Clone, Copy)]
pub enum Location<'a> {
    /// In memory, gone with the process.
    Memory,
    /// A file, made if it is not there.
    File(&'a Path),
}

/// The number of a watch in the store. It is never assigned again, so that data of one watch of a
/// run never counts for a later watch of the same run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchId(pub(crate) i64);

/// What another daemon changed, so that the leader looks at it again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// A watch of this run was added or removed.
    Run(RunRef),
    /// A delivery to this sink was retried or given up.
    Sink(SinkName),
}

/// The result of adding a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// It is new.
    New,
    /// A watch of that run exists already and stays as it is.
    AlreadyExists,
}

/// A stored watch.
#[derive(Debug, Clone)]
pub struct StoredWatch {
    /// Its number.
    pub id: WatchId,
    /// The watch.
    pub watch: Watch,
    /// How far it has come.
    pub progress: Progress,
    /// When its status last changed; when it was added if that never happened.
    pub changed_at: Timestamp,
}

/// A group of runs that are alike: the provider, and what they have in common.
pub type GroupOfRuns = (ProviderName, String);

/// The number of a discovery in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiscoveryId(pub(crate) i64);

/// How far a discovery has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDiscovery {
    /// Its number.
    pub id: DiscoveryId,
    /// When it began.
    pub began_at: Timestamp,
    /// How many rounds were complete.
    pub rounds: u64,
    /// When the newest complete round began.
    pub cursor_at: Option<Timestamp>,
    /// Runs that began before need not be listed any more.
    pub settled_at: Option<Timestamp>,
    /// How many runs it found.
    pub found: u64,
    /// How many watches it added.
    pub watched: u64,
}

/// What a discovery notes of a run, so that it knows it from then on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunNote {
    /// The run.
    pub run_id: RunRef,
    /// The attempt that was listed; the greatest one counts.
    pub attempt: Option<u64>,
    /// When it ended, or was seen ended; `None` for a run that goes on. Before the discovery began for a run that is not
    /// watched because its end is an old one, and not before that for any other.
    pub ended_at: Option<Timestamp>,
}

/// A run that a discovery wants to be watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveredRun {
    /// The discovery.
    pub discovery: DiscoveryId,
    /// Its title, for people.
    pub title: String,
    /// What it notes of the run, in the same transaction.
    pub note: RunNote,
    /// Whether it is a new attempt of a run that may have a finished watch.
    pub again: bool,
}

/// What the store knows of a listed run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownRun {
    /// What the discovery noted of it.
    pub noted: Option<NotedRun>,
    /// Its newest watch.
    pub watch: Option<KnownWatch>,
}

/// What a discovery noted of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotedRun {
    /// The greatest attempt that was listed.
    pub attempt: Option<u64>,
    /// See [`RunNote::ended_at`].
    pub ended_at: Option<Timestamp>,
    /// The number of the round in which it was noted first, from 1.
    pub round: u64,
    /// When it was noted last.
    pub seen_at: Timestamp,
}

/// What decides whether a run is watched again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownWatch {
    /// Whether it has no verdict yet.
    pub is_active: bool,
    /// The attempt last observed.
    pub attempt: Option<u64>,
    /// When the run ended, or else when the verdict was given.
    pub ended_at: Option<Timestamp>,
}

/// A poll that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PollFailure {
    /// When.
    pub at: Timestamp,
    /// The reason; one line, no secrets.
    pub message: String,
}

/// One change of a run's status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusChange {
    /// Grows with every change.
    pub seq: i64,
    /// The run.
    pub run_id: RunRef,
    /// When it was observed.
    pub at: Timestamp,
    /// The status since then.
    pub status: Status,
}

/// Whether a watch has a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchState {
    /// Those without a verdict.
    Active,
    /// Those with one.
    Finished,
}

impl WatchState {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Active, Self::Finished];

    /// The word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Finished => "finished",
        }
    }

    /// Reads the word of [`WatchState::as_str`].
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

/// The order of a list of watches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WatchOrder {
    /// By time of adding, then by ID, the oldest first.
    #[default]
    Oldest,
    /// By time of adding, then by ID, the newest first.
    Newest,
    /// By time of the verdict, then by ID, the newest first; watches without a verdict are left out.
    Ended,
}

impl WatchOrder {
    /// Every order.
    pub const ALL: [Self; 3] = [Self::Oldest, Self::Newest, Self::Ended];

    /// The word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Oldest => "oldest",
            Self::Newest => "newest",
            Self::Ended => "ended",
        }
    }

    /// Reads the word of [`WatchOrder::as_str`].
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|order| order.as_str() == word)
    }

    /// The time by which a watch has its place in the list.
    pub fn time_of(self, record: &WatchRecord) -> Timestamp {
        match (self, record.verdict) {
            (Self::Ended, Some((_, at))) => at,
            (Self::Oldest | Self::Newest | Self::Ended, _) => record.watch.added_at,
        }
    }
}

/// Selects the watches of a list. A watch must match every field.
#[derive(Debug, Clone, Default)]
pub struct WatchFilter {
    /// Active or finished.
    pub state: Option<WatchState>,
    /// Finished with this verdict.
    pub verdict: Option<Verdict>,
    /// Carrying all of these labels, each a key and a value.
    pub labels: Vec<(String, String)>,
    /// The order of the list.
    pub order: WatchOrder,
    /// Those after this one, in the order of the list: the time of its place ([`WatchOrder::time_of`]) and its run.
    pub after: Option<(Timestamp, RunRef)>,
}

/// A watch as it is stored. Of an active one, the number of polls and the last error are as old as
/// its last change.
#[derive(Debug, Clone)]
pub struct WatchRecord {
    /// The watch.
    pub watch: Watch,
    /// Where it comes from; unknown for watches of earlier versions.
    pub origin: Option<WatchOrigin>,
    /// The status last seen.
    pub status: Option<Status>,
    /// What the run belongs to, by the provider.
    pub group: Option<String>,
    /// When the run started, by the provider.
    pub started_at: Option<Timestamp>,
    /// How many polls were made.
    pub polls: u64,
    /// Since when every answer was 404.
    pub missing_since: Option<Timestamp>,
    /// The last poll that failed.
    pub last_error: Option<PollFailure>,
    /// The verdict and when it was given.
    pub verdict: Option<(Verdict, Timestamp)>,
    /// The reason for the poll that found the verdict; unknown for watches of earlier versions.
    pub found_by: Option<FoundBy>,
}

impl WatchRecord {
    /// Of a watch that was just added by request.
    pub fn new(watch: Watch) -> Self {
        Self {
            watch,
            origin: Some(WatchOrigin::Request),
            status: None,
            group: None,
            started_at: None,
            polls: 0,
            missing_since: None,
            last_error: None,
            verdict: None,
            found_by: None,
        }
    }
}

/// Everything that is stored about one watch.
#[derive(Debug, Clone)]
pub struct History {
    /// The watch.
    pub record: WatchRecord,
    /// Its status changes, in order.
    pub changes: Vec<StatusChange>,
    /// Its deliveries with their attempts, in order.
    pub deliveries: Vec<(DeliverySummary, Vec<AttemptRecord>)>,
    /// The event of its verdict.
    pub verdict_event: Option<Event>,
}

/// A part of a list.
#[derive(Debug, Clone)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Whether there are further ones.
    pub more: bool,
}

/// An event with the sinks that receive it.
#[derive(Debug, Clone)]
pub struct RoutedEvent {
    /// The event.
    pub event: Event,
    /// The sinks.
    pub sinks: Vec<SinkName>,
    /// Further sinks, whose deliveries wait for [`crate::store::Store::summarize`]: they have no time of an attempt.
    pub held: Vec<SinkName>,
}

/// Where a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeliveryState {
    /// Waiting for its next attempt.
    Pending,
    /// An attempt is under way.
    Sending,
    /// Arrived.
    Delivered,
    /// Given up.
    Dead,
    /// Not sent, as a summary names the run: that is another delivery to the sink. Stored as delivered.
    Included,
}

impl DeliveryState {
    /// Every state.
    pub const ALL: [Self; 5] = [
        Self::Pending,
        Self::Sending,
        Self::Delivered,
        Self::Dead,
        Self::Included,
    ];

    /// The word in the store and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Sending => "sending",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
            Self::Included => "included",
        }
    }

    /// Reads the word of [`DeliveryState::as_str`].
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

/// A delivery and how it went so far.
#[derive(Debug, Clone)]
pub struct DeliverySummary {
    /// Its ID.
    pub id: DeliveryId,
    /// The sink.
    pub sink: SinkName,
    /// The run, unless it is about a group, the API or a sink.
    pub run_id: Option<RunRef>,
    /// The group, if it is about one.
    pub group: Option<String>,
    /// The type of its event.
    pub event_type: EventType,
    /// Where it stands.
    pub state: DeliveryState,
    /// Attempts made.
    pub attempts: u32,
    /// How many of them were made before its schedule last began anew.
    pub earlier_attempts: u32,
    /// When the next one is due, if it is pending and does not wait for a summary.
    pub next_attempt_at: Option<Timestamp>,
    /// The detail of the last attempt.
    pub last_detail: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it arrived or was given up.
    pub ended_at: Option<Timestamp>,
    /// The sink that could not be reached, for which this one is the fallback.
    pub fallback_for: Option<SinkName>,
    /// Until when it is held, if it is.
    pub held_until: Option<Timestamp>,
    /// The delivery of the summary that names its run, in its place.
    pub included_in: Option<DeliveryId>,
}

/// Selects the deliveries of a list. A delivery must match every field.
#[derive(Debug, Clone, Default)]
pub struct DeliveryFilter {
    /// In one of these states; none means all.
    pub states: Vec<DeliveryState>,
    /// Of this sink.
    pub sink: Option<SinkName>,
    /// The newest first.
    pub newest_first: bool,
    /// Those after this one; deliveries are listed in the order of their IDs, which is that of
    /// time.
    pub after: Option<DeliveryId>,
}

/// One attempt of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRecord {
    /// Its number, from 1.
    pub attempt: u32,
    /// When it began.
    pub at: Timestamp,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// Whether it arrived.
    pub delivered: bool,
    /// The answer of the receiver, or the error.
    pub detail: String,
}

/// A delivery claimed for one attempt.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// Its ID.
    pub id: DeliveryId,
    /// Number of this attempt, from 1.
    pub attempt: u32,
    /// The number of this attempt in the retry schedule, from 1. It begins anew with a retry by
    /// hand.
    pub try_number: u32,
    /// Until when it was held; a time that has come.
    pub held_until: Option<Timestamp>,
    /// Whether a person wants it to be attempted at once, so that it is not held.
    pub at_once: bool,
    /// The event to deliver.
    pub event: Event,
    /// The trace of the watch that the event is about.
    pub trace: Option<TraceContext>,
}

impl Claimed {
    /// Bytes of the run's input and output that it holds.
    pub fn bytes(&self) -> usize {
        self.event.run().map_or(0, RunEvent::bytes)
    }
}

/// How one attempt went.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Number of the attempt, from 1, as claimed.
    pub attempt: u32,
    /// When it began.
    pub at: Timestamp,
    /// How long it took.
    pub took: Duration,
    /// The answer of the receiver, or the error; one line, no secrets.
    pub detail: String,
    /// The result.
    pub outcome: AttemptOutcome,
}

/// The result of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// The message arrived.
    Delivered,
    /// Another attempt at this time.
    Retry(Timestamp),
    /// No further attempt, except by hand.
    Dead,
}

/// A decision about a delivery that has not arrived and is not being sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is due at once, and its schedule begins anew. Quiet hours do not hold it any more.
    Retry,
    /// It is given up. One that was given up before stays as it is.
    Drop,
}

impl Fate {
    /// The word in the control interface and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Drop => "drop",
        }
    }
}

/// The result of deciding the fate of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decided {
    /// It is done.
    Done,
    /// No delivery has an ID that begins with the given text.
    Unknown,
    /// Several deliveries have an ID that begins with the given text: the first of them.
    Ambiguous(Vec<DeliveryId>),
}

/// How many watches and deliveries the store has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Active watches.
    pub active: u64,
    /// Deliveries that are waiting or being sent.
    pub pending: u64,
    /// Deliveries that were given up.
    pub dead: u64,
}

/// The result of one turn of pruning.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Watches, notices and notes of discoveries that were deleted.
    pub deleted: usize,
    /// Deliveries that were given up because no sink of that name is configured any more: by sink.
    pub given_up: Vec<(SinkName, u64)>,
    /// Pages that were given back to the disk.
    pub freed: u32,
}

impl Pruned {
    /// Returns whether there was nothing to do.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}
