//! What a server shows of itself and of a store. Nothing is changed.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio_postgres::Row;

use super::PostgresSettings;
use super::connection::Connector;
use super::migrations::KNOWN_VERSION;
use super::moved::{read_note, read_version};
use super::rights::{MissingRights, missing_rights};
use super::rows::get;
use super::sql::{Db, parameters};
use super::totals::counts;
use crate::store::model::{Counts, StoreError};
use crate::store::records::read_time;
use crate::text::one_line;

/// Longest names of other sessions and replicas, in characters.
const NAME_CHARS: usize = 60;

/// What a server shows.
#[derive(Debug, Clone)]
pub struct ServerFacts {
    /// The server, the database and the schema, for people.
    pub place: String,
    /// The version of the server.
    pub server_version: String,
    /// The encoding of the database.
    pub encoding: String,
    /// Whether the connection is secured by TLS.
    pub is_secured: bool,
    /// Whether every host is this machine.
    pub is_local: bool,
    /// Whether a pooler hands out its connections.
    pub is_pooled: bool,
    /// How far the clock of this machine is ahead of the database's, as far as that is known.
    pub ahead: SignedDuration,
    /// What a commit waits for.
    pub durability: Durability,
    /// What keeps dead rows from being removed.
    pub horizon: Horizon,
    /// What the role may do.
    pub rights: Rights,
    /// The tables; `None` without any, or without the right to read them.
    pub tables: Option<TableFacts>,
}

/// What a commit waits for.
#[derive(Debug, Clone)]
pub struct Durability {
    /// `synchronous_commit`, as it is for this role and database.
    pub synchronous_commit: String,
    /// `synchronous_standby_names`.
    pub synchronous_standby_names: String,
    /// Whether `fsync` is on.
    pub fsync: bool,
    /// The connected replicas: name, and how commits wait for them, where the role may see it.
    pub replicas: Vec<(String, Option<String>)>,
}

/// What keeps dead rows from being removed, and for how long.
#[derive(Debug, Clone)]
pub struct Horizon {
    /// The oldest transaction of this database that the role may see, and its age.
    pub transaction: Option<(String, Duration)>,
    /// The oldest replication slot, and how many transactions began since.
    pub slot: Option<(String, u64)>,
}

/// What the role may do.
#[derive(Debug, Clone)]
pub struct Rights {
    /// Whether the schema is there.
    pub has_schema: bool,
    /// Whether the role may use what is in the schema.
    pub may_use: bool,
    /// Whether it may make the tables, and the schema where it is missing.
    pub may_make: bool,
    /// Whether the tables are its own, so that it may change them.
    pub owns_tables: bool,
    /// What it lacks.
    pub missing: Option<MissingRights>,
}

/// The tables of a store.
#[derive(Debug, Clone)]
pub struct TableFacts {
    /// Their version, and the newest one that this program knows.
    pub version: (i64, i64),
    /// Whether this program can work with them.
    pub is_known: bool,
    /// Why no daemon starts on them, where they were copied.
    pub note: Option<String>,
    /// Their size with their indexes, in bytes.
    pub bytes: u64,
    /// How many watches and events there are.
    pub watches: u64,
    /// See `watches`.
    pub events: u64,
    /// How many watches and deliveries are open.
    pub counts: Counts,
    /// Who has the lease: name, version and term, and whether it was released.
    pub lease: Option<(String, String, i64, bool)>,
}

/// Looks at a server and the store in it.
///
/// # Errors
/// When the server cannot be reached, or cannot hold the store.
pub async fn inspect_server(settings: &PostgresSettings) -> Result<ServerFacts, StoreError> {
    let connector = Connector::new(settings)?;
    // A server process that is older than this connection was handed out by a pooler.
    let first = connector.reach("check").await?;
    let begun = now_of(&Db::new(&first, &connector.schema, false)).await?;
    drop(first);
    let link = connector.reach("check").await?;
    let db = &Db::new(&link, &connector.schema, false);
    let is_pooled = one(db, IS_POOLED, parameters![begun], |row| get(row, 0)).await?;
    // Limits that end with the transaction, as everywhere.
    db.batch(&connector.begin("READ COMMITTED READ ONLY"))
        .await?;
    let facts = async {
        let ahead = ahead(db).await?;
        let rights = rights(db).await?;
        let (server_version, encoding, durability) = durability(db).await?;
        let tables = match rights.has_schema && rights.may_use {
            true => tables(db).await?,
            false => None,
        };
        Ok(ServerFacts {
            place: connector.place(),
            server_version,
            encoding,
            is_secured: connector.is_secured(),
            is_local: connector.is_local(),
            is_pooled,
            ahead,
            durability,
            horizon: horizon(db).await?,
            rights,
            tables,
        })
    };
    let facts = facts.await;
    drop(db.batch("ROLLBACK").await);
    facts
}

const IS_POOLED: &str = "SELECT (extract(epoch FROM backend_start) * 1000000)::bigint <= $1
    FROM pg_catalog.pg_stat_activity WHERE pid = pg_backend_pid()";

/// Reads the one row of a statement.
async fn one<T>(
    db: &Db<'_>,
    sql: &str,
    parameters: &[super::sql::Parameter<'_>],
    read: impl Fn(&Row) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let row = db.row(sql, parameters).await?;
    row.as_ref().map(read).ok_or(StoreError::Closed)?
}

/// The time of the database in Unix microseconds.
async fn now_of(db: &Db<'_>) -> Result<i64, StoreError> {
    let now = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    one(db, now, &[], |row| get(row, 0)).await
}

/// How far the clock of this machine is ahead; what the way to the server took does not count.
async fn ahead(db: &Db<'_>) -> Result<SignedDuration, StoreError> {
    let before = Timestamp::now();
    let there = read_time(now_of(db).await? / 1_000)?;
    let after = Timestamp::now();
    Ok(if there < before {
        before.duration_since(there)
    } else if there > after {
        after.duration_since(there)
    } else {
        SignedDuration::ZERO
    })
}

async fn durability(db: &Db<'_>) -> Result<(String, String, Durability), StoreError> {
    let settings = "SELECT current_setting('server_version'), current_setting('server_encoding'),
        current_setting('synchronous_commit'), current_setting('synchronous_standby_names'), current_setting('fsync')";
    // A role that may not see it gets NULL (postgresql.org/docs/15/monitoring-stats, "Viewing Statistics").
    let replicas =
        "SELECT coalesce(application_name, ''), sync_state FROM pg_catalog.pg_stat_replication";
    let replicas = db
        .read_all(replicas, &[], |row| {
            let name: &str = get(row, 0)?;
            Ok((one_line(name, NAME_CHARS), get(row, 1)?))
        })
        .await?;
    one(db, settings, &[], |row| {
        let durability = Durability {
            synchronous_commit: get(row, 2)?,
            synchronous_standby_names: get(row, 3)?,
            fsync: get::<&str>(row, 4)? != "off",
            replicas: replicas.clone(),
        };
        Ok((get(row, 0)?, get(row, 1)?, durability))
    })
    .await
}

async fn horizon(db: &Db<'_>) -> Result<Horizon, StoreError> {
    let transaction = "SELECT what, seconds FROM (
            SELECT 'a transaction of ' || coalesce(nullif(application_name, ''), usename::text, 'another user') AS what,
                extract(epoch FROM clock_timestamp() - xact_start)::bigint AS seconds
            FROM pg_catalog.pg_stat_activity
            WHERE backend_xmin IS NOT NULL AND xact_start IS NOT NULL AND pid <> pg_backend_pid()
                AND datname = current_database()
            UNION ALL
            SELECT 'the prepared transaction ' || gid, extract(epoch FROM clock_timestamp() - prepared)::bigint
            FROM pg_catalog.pg_prepared_xacts WHERE database = current_database()
        ) AS found ORDER BY seconds DESC LIMIT 1";
    let slot = "SELECT slot_name::text, age(xmin)::bigint FROM pg_catalog.pg_replication_slots WHERE xmin IS NOT NULL
        ORDER BY age(xmin) DESC LIMIT 1";
    let read = |row: &Row| Ok((one_line(get(row, 0)?, NAME_CHARS), get::<i64>(row, 1)?));
    let transaction = db.read_all(transaction, &[], read).await?.pop();
    let slot = db.read_all(slot, &[], read).await?.pop();
    let positive = |number: i64| u64::try_from(number).unwrap_or(0);
    Ok(Horizon {
        transaction: transaction.map(|(what, age)| (what, Duration::from_secs(positive(age)))),
        slot: slot.map(|(name, age)| (name, positive(age))),
    })
}

async fn rights(db: &Db<'_>) -> Result<Rights, StoreError> {
    let schema = db.schema().name();
    let of_schema = "SELECT n.oid IS NOT NULL, coalesce(has_schema_privilege(n.oid, 'USAGE'), false),
            coalesce(has_schema_privilege(n.oid, 'CREATE'), has_database_privilege(current_database(), 'CREATE')),
            coalesce((SELECT bool_and(pg_has_role(tableowner, 'USAGE')) FROM pg_catalog.pg_tables
                WHERE schemaname = $1), false)
        FROM (VALUES (1)) AS one LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = $1";
    let missing = missing_rights(db).await?;
    one(db, of_schema, parameters![schema], |row| {
        Ok(Rights {
            has_schema: get(row, 0)?,
            may_use: get(row, 1)?,
            may_make: get(row, 2)?,
            owns_tables: get(row, 3)?,
            missing: missing.clone(),
        })
    })
    .await
}

async fn tables(db: &Db<'_>) -> Result<Option<TableFacts>, StoreError> {
    let schema = db.schema().name();
    let size = "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint, coalesce(bool_and(
            has_table_privilege(c.oid, 'SELECT')), true), count(*) FILTER (WHERE c.relname = 'schema')
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = $1 AND c.relkind = 'r'";
    let read = |row: &Row| {
        Ok((
            get::<i64>(row, 0)?,
            get::<bool>(row, 1)?,
            get::<i64>(row, 2)?,
        ))
    };
    let (bytes, may_read, are_there) = one(db, size, parameters![schema], read).await?;
    if !may_read || are_there == 0 {
        return Ok(None);
    }
    let Some((version, compatible_from)) = read_version(db).await? else {
        return Ok(None);
    };
    let note = read_note(db).await?;
    let rows =
        "SELECT (SELECT count(*) FROM runwatch.watches), (SELECT count(*) FROM runwatch.events)";
    let rows = one(db, rows, &[], |row| {
        Ok((get::<i64>(row, 0)?, get::<i64>(row, 1)?))
    });
    let (watches, events) = rows.await?;
    let lease =
        "SELECT holder_name, version, epoch, released FROM runwatch.leases WHERE name = 'leader'";
    let lease = db
        .read_all(lease, &[], |row| {
            let (name, version): (&str, &str) = (get(row, 0)?, get(row, 1)?);
            let (name, version) = (one_line(name, NAME_CHARS), one_line(version, NAME_CHARS));
            Ok((name, version, get(row, 2)?, get(row, 3)?))
        })
        .await?;
    Ok(Some(TableFacts {
        version: (version, KNOWN_VERSION),
        is_known: compatible_from <= KNOWN_VERSION || note.is_some(),
        note: note.map(|note| note.into_error().to_string()),
        bytes: bytes.cast_unsigned(),
        watches: watches.cast_unsigned(),
        events: events.cast_unsigned(),
        counts: counts(db).await?,
        lease: lease.into_iter().next(),
    }))
}
