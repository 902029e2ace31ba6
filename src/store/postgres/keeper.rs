//! The lease: which daemon leads, and in which term.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::timeout;
use tokio_postgres::Row;

use super::PostgresSettings;
use super::connection::{CommitError, Connector, Line};
use super::rows::get;
use super::sql::{Db, Parameter, parameters};
use crate::failpoint::mutant;
use crate::store::model::StoreError;
use crate::store::records::read_time;

/// The number of the timeline on which the server writes, in hexadecimal: each promotion of a standby begins another one
/// (postgresql.org/docs/15/continuous-archiving, "Timelines"), and the names of the files of its log begin with it
/// (`pg_walfile_name` in postgresql.org/docs/15/functions-admin). The control file has the new number only after the next
/// checkpoint.
macro_rules! timeline {
    () => {
        "left(pg_walfile_name(pg_current_wal_lsn()), 8)"
    };
}

/// How many numbers of events are left out when a term begins on another timeline, for each timeline in between, as the
/// numbers that were left out on one may be lost as well. A standby that was promoted may lack the newest events; no number
/// is given to another event, unless more than these were lost.
pub(in crate::store) const SKIPPED_NUMBERS: i64 = 1_000_000;

/// Locks the row of the lease in a term until the transaction ends. Renewals do not wait for this lock; taking the
/// lease does, because it changes a key column (postgresql.org/docs/15/explicit-locking, "Row-Level Locks"). A term ends
/// with the timeline of the server: what the leader knows may be missing on another one.
pub(super) const FENCE: &str = concat!(
    "SELECT 1 FROM runwatch.leases
    WHERE name = 'leader' AND epoch = $1 AND holder = $2 AND timeline = ",
    timeline!(),
    " FOR KEY SHARE"
);

/// The lease, with the time and the timeline of the server.
const LOOK: &str = concat!(
    "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
        epoch, holder, holder_name, version, ttl_ms, renewals, released, release_requested, state,
        history.current, timeline NOT IN ('', history.current)
    FROM (SELECT 'leader' AS name, ",
    timeline!(),
    " AS current) AS history LEFT JOIN runwatch.leases USING (name)"
);

/// Takes the lease, where it is as it was seen, on the same timeline. On another one than that of the term before, numbers
/// of events are left out, where the role may change the sequence: that right may have been revoked.
const TAKE: &str = concat!(
    "UPDATE runwatch.leases AS lease SET epoch = lease.epoch + 1, holder = $3, holder_name = $4, version = $5,
        ttl_ms = $6, renewals = 0, released = false, release_requested = false, state = '', timeline = history.current
    FROM (SELECT timeline AS earlier, ",
    timeline!(),
    " AS current, pg_get_serial_sequence($7, 'seq') AS numbers FROM runwatch.leases WHERE name = 'leader') AS history
    WHERE lease.name = 'leader' AND lease.epoch = $1 AND lease.renewals = $2 AND lease.holder = $9
        AND history.current = $10
    RETURNING lease.epoch, CASE WHEN history.earlier NOT IN ('', history.current)
            AND has_sequence_privilege(history.numbers, 'USAGE') AND has_sequence_privilege(history.numbers, 'UPDATE')
        THEN setval(history.numbers::regclass, nextval(history.numbers::regclass) + $8 * greatest(1,
            ('x' || history.current)::bit(32)::bigint - ('x' || history.earlier)::bit(32)::bigint)) END"
);

/// Makes the lease, where there is none.
const MAKE: &str = concat!(
    "INSERT INTO runwatch.leases
        (name, epoch, holder, holder_name, version, ttl_ms, renewals, released, release_requested, state, timeline)
    VALUES ('leader', 1, $1, $2, $3, $4, 0, false, false, '', ",
    timeline!(),
    ") ON CONFLICT DO NOTHING RETURNING epoch"
);

/// Renews the lease in a term.
const RENEW: &str = concat!(
    "UPDATE runwatch.leases SET renewals = renewals + 1, state = $3
    WHERE name = 'leader' AND epoch = $1 AND holder = $2 AND timeline = ",
    timeline!(),
    " RETURNING (extract(epoch FROM clock_timestamp()) * 1000)::bigint, release_requested"
);

/// Releases the lease of a term.
const RELEASE: &str = "UPDATE runwatch.leases SET released = true
    WHERE name = 'leader' AND epoch = $1 AND holder = $2 RETURNING epoch";

/// Asks the leader of a term to release the lease.
const REQUEST_RELEASE: &str = "UPDATE runwatch.leases SET release_requested = true
    WHERE name = 'leader' AND epoch = $1 AND NOT released RETURNING epoch";

/// Names one life of a process: it is random, so that no other process is mistaken for it, whatever its host is called.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct HolderId(Arc<str>);

impl HolderId {
    /// A new one.
    pub fn random() -> Self {
        if mutant("host-name-is-me") {
            return Self::read("host");
        }
        // The random bits of version 7 are those of version 4, but for the time before them (RFC 9562, section 5.7).
        Self(uuid::Uuid::now_v7().to_string().into())
    }

    /// One that was written down, as in a file.
    pub fn read(text: &str) -> Self {
        Self(text.into())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for HolderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HolderId({})", self.0)
    }
}

/// A term: from when a daemon takes the lease until the next one does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// Its number; it grows by 1 with each.
    pub epoch: i64,
    /// Who leads in it. Where the database lost the newest terms, a number may be given again, but not to the same
    /// holder.
    pub holder: HolderId,
}

/// The lease, as it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRow {
    /// The number of its term; 0 when it was never taken.
    pub epoch: i64,
    /// Who holds it; `None` when it was never taken.
    pub holder: Option<HolderId>,
    /// The holder's name for people.
    pub holder_name: String,
    /// The version of the holder's program.
    pub version: String,
    /// How long the holder may be silent.
    pub ttl: Duration,
    /// How often it was renewed in this term.
    pub renewals: i64,
    /// Whether the next may take it at once: it was never taken, or its holder has released it.
    pub released: bool,
    /// Whether a release was requested of the holder.
    pub release_requested: bool,
    /// What the holder published with its last renewal.
    pub state: String,
    /// The timeline on which the server writes: another one after each promotion of a standby.
    pub timeline: String,
    /// Whether a standby was promoted since the term began. It may lack the newest changes of the lease, so that another
    /// daemon than the holder may have led last.
    pub is_promoted: bool,
    /// The time of the database.
    pub now: Timestamp,
}

/// What came of a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// The term goes on.
    Confirmed {
        /// Whether a release of the lease was requested of the holder.
        release_requested: bool,
        /// The time of the database.
        now: Timestamp,
    },
    /// Another daemon has taken the lease, the database has lost this term, or a standby of it was promoted.
    Superseded,
}

/// What to write about the holder when the lease is taken.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The process.
    pub holder: HolderId,
    /// Its name for people.
    pub name: String,
    /// The version of its program.
    pub version: String,
    /// How long it may be silent.
    pub ttl: Duration,
}

/// Looks at the lease, takes and renews it, on a connection of its own. Each call takes at most a few times the limit
/// of a statement. One that is dropped may have its effect nevertheless.
pub struct Keeper {
    line: Line,
}

impl Keeper {
    /// Of these settings. Does no I/O.
    ///
    /// # Errors
    /// When the address cannot be read.
    pub fn new(settings: &PostgresSettings) -> Result<Self, StoreError> {
        let line = Line::new(Connector::new(settings)?, "keeper");
        Ok(Self { line })
    }

    /// Looks at the lease.
    ///
    /// # Errors
    /// When the store cannot be reached.
    pub async fn look(&mut self) -> Result<LeaseRow, StoreError> {
        let row = self.run(LOOK, &[], 1).await?;
        let row = row.as_ref().ok_or(StoreError::Superseded)?;
        let text = |column| -> Result<String, StoreError> {
            Ok(get::<Option<_>>(row, column)?.unwrap_or_default())
        };
        let number =
            |column| -> Result<i64, StoreError> { Ok(get::<Option<_>>(row, column)?.unwrap_or(0)) };
        Ok(LeaseRow {
            now: read_time(get(row, 0)?)?,
            epoch: number(1)?,
            holder: get::<Option<&str>>(row, 2)?.map(HolderId::read),
            holder_name: text(3)?,
            version: text(4)?,
            ttl: Duration::from_millis(number(5)?.cast_unsigned()),
            renewals: number(6)?,
            released: get::<Option<bool>>(row, 7)?.unwrap_or(true),
            release_requested: get::<Option<bool>>(row, 8)?.unwrap_or(false),
            state: text(9)?,
            timeline: text(10)?,
            is_promoted: get::<Option<bool>>(row, 11)?.unwrap_or(false),
        })
    }

    /// Takes the lease, if it still has the holder, the number and the renewals of `seen`, on the same timeline: a database
    /// that lost its last transactions may give the same numbers to another holder, or lack that another one took the
    /// lease. Waits for transactions of the term before, of which none can begin anew. Returns the new term, or `None` when
    /// the lease has changed.
    ///
    /// # Errors
    /// When the store cannot be reached. The lease may be taken nevertheless; look at it again.
    pub async fn take(
        &mut self,
        seen: &LeaseRow,
        candidate: &Candidate,
    ) -> Result<Option<Term>, StoreError> {
        let holder = candidate.holder.as_str();
        let (name, version) = (candidate.name.as_str(), candidate.version.as_str());
        let ttl = i64::try_from(candidate.ttl.as_millis()).unwrap_or(i64::MAX);
        // A frozen transaction is ended by the server after the limit of a statement.
        let patience = 2;
        let row = if let Some(seen_holder) = &seen.holder {
            let (epoch, renewals, seen_holder) = (seen.epoch, seen.renewals, seen_holder.as_str());
            let timeline = seen.timeline.as_str();
            let schema = self.line.connector().schema.clone();
            let events = schema.place("runwatch.events");
            let events = &*events;
            let parameters = parameters![
                epoch,
                renewals,
                holder,
                name,
                version,
                ttl,
                events,
                SKIPPED_NUMBERS,
                seen_holder,
                timeline
            ];
            self.run(TAKE, parameters, patience).await?
        } else {
            let parameters = parameters![holder, name, version, ttl];
            self.run(MAKE, parameters, patience).await?
        };
        let taken = row.as_ref().map(|row| get(row, 0)).transpose()?;
        Ok(taken.map(|epoch| Term {
            epoch,
            holder: candidate.holder.clone(),
        }))
    }

    /// Renews the lease in its term, and publishes `state`.
    ///
    /// # Errors
    /// When the store cannot be reached. Whether the lease is renewed is unknown then, but the term goes on unless
    /// another daemon takes it.
    pub async fn renew(&mut self, term: &Term, state: &str) -> Result<Renewal, StoreError> {
        let holder = term.holder.as_str();
        let parameters = parameters![term.epoch, holder, state];
        match self.run(RENEW, parameters, 1).await? {
            Some(row) => Ok(Renewal::Confirmed {
                now: read_time(get(&row, 0)?)?,
                release_requested: get(&row, 1)?,
            }),
            None => Ok(Renewal::Superseded),
        }
    }

    /// Releases the lease of a term, so that the next may take it at once. Returns whether the term went on until then.
    ///
    /// # Errors
    /// When the store cannot be reached.
    pub async fn release(&mut self, term: &Term) -> Result<bool, StoreError> {
        let holder = term.holder.as_str();
        let parameters = parameters![term.epoch, holder];
        Ok(self.run(RELEASE, parameters, 1).await?.is_some())
    }

    /// Asks the leader of the term `epoch` to release the lease; its next renewal says so. Returns whether that term
    /// goes on.
    ///
    /// # Errors
    /// When the store cannot be reached.
    pub async fn ask_release(&mut self, epoch: i64) -> Result<bool, StoreError> {
        Ok(self
            .run(REQUEST_RELEASE, parameters![epoch], 1)
            .await?
            .is_some())
    }

    /// Runs a statement in a transaction of its own, with `patience` times the limit of a statement, in one round trip.
    async fn run(
        &mut self,
        sql: &str,
        parameters: &[Parameter<'_>],
        patience: u32,
    ) -> Result<Option<Row>, StoreError> {
        let connector = self.line.connector().clone();
        let limit = connector.limit * patience;
        let begin = format!(
            "{}; SET LOCAL statement_timeout = {limit}; SET LOCAL lock_timeout = {limit}",
            connector.begin("READ COMMITTED READ WRITE"),
            limit = limit.as_millis()
        );
        let db = self.line.db(false).await?;
        let ended = timeout(limit * 2, whole(db, &begin, sql, parameters)).await;
        let ended = ended.unwrap_or_else(|_elapsed| {
            Err(StoreError::OutOfReach {
                why: "the server did not answer in time".to_owned(),
            })
        });
        if let Err(error) = &ended {
            self.line.close(error);
        }
        ended
    }
}

/// Runs a statement with the beginning and the end of its transaction.
async fn whole(
    db: Db<'_>,
    begin: &str,
    sql: &str,
    parameters: &[Parameter<'_>],
) -> Result<Option<Row>, StoreError> {
    // The first poll sends all three in order. After an error, COMMIT rolls back.
    let (began, row, committed) =
        futures_util::future::join3(db.batch(begin), db.row(sql, parameters), db.commit()).await;
    began?;
    let row = row?;
    committed.map_err(|error| match error {
        CommitError::Undone(error) => StoreError::from(error),
        CommitError::Unknown(why) => StoreError::OutOfReach { why },
    })?;
    Ok(row)
}
