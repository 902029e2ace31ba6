//! A schema of a server as one end of a copy.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use tokio::time::Instant;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Row, RowStream};

use super::PostgresSettings;
use super::connection::{CommitError, Connector, Link};
use super::errors::out_of_reach;
use super::rows::get;
use super::sql::{Db, Parameter, Perform as _, parameter, parameters};
use super::{migrations, moved};
use crate::store::model::StoreError;
use crate::store::operations::TakeUp;
use crate::store::tables::{
    ColumnKind, ColumnValues, CopiedTable, LastNumbers, MoveNote, MoveState, ReadColumn, RowBatch,
    TABLES, numbered_tables,
};

/// How long the tables are waited for, in milliseconds: a daemon or a backup may have them.
const LOCK_LIMIT: u64 = 10_000;

/// How often the lease is looked at, to see whether a leader renews it.
const LOOK_PERIOD: Duration = Duration::from_millis(250);

/// How much longer than its time a lease is looked at: a renewal may be late.
const PATIENCE: Duration = Duration::from_secs(1);

/// Who has the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) struct LeaseHolder {
    /// The number of the term and of the renewals in it.
    pub(in crate::store) seen: (i64, i64),
    /// The name for people.
    pub(in crate::store) name: String,
    /// How long it may be silent.
    pub(in crate::store) ttl: Duration,
}

/// A connection for a copy.
pub(in crate::store) struct ServerEnd {
    connector: Arc<Connector>,
    link: Link,
}

/// Rows of a table, as they come; `None` after the last one.
pub(in crate::store) struct ServerRows(Option<Pin<Box<RowStream>>>);

impl ServerEnd {
    /// Connects. Does not look at the tables.
    ///
    /// # Errors
    /// When the address cannot be read, or the server cannot be reached.
    pub(in crate::store) async fn open(settings: &PostgresSettings) -> Result<Self, StoreError> {
        let connector = Connector::new(settings)?;
        let link = connector.reach("copy").await?;
        Ok(Self { connector, link })
    }

    fn db(&self) -> Db<'_> {
        Db::new(&self.link, &self.connector.schema, false)
    }

    /// The server, the database and the schema, for people.
    pub(in crate::store) fn place(&self) -> String {
        self.connector.place()
    }

    /// Whether there are tables of the store.
    ///
    /// # Errors
    /// When the server reports one.
    pub(in crate::store) async fn is_there(&self) -> Result<bool, StoreError> {
        let exists =
            "SELECT 1 FROM pg_catalog.pg_tables WHERE schemaname = $1 AND tablename = 'schema'";
        let schema = self.connector.schema.name();
        Ok(self.db().row(exists, parameters![schema]).await?.is_some())
    }

    /// Reads the note.
    ///
    /// # Errors
    /// When the server reports one.
    pub(in crate::store) async fn note(&self) -> Result<Option<MoveNote>, StoreError> {
        moved::read_note(&self.db()).await
    }

    /// Brings the tables to the newest version, and makes them where they are missing. Returns the version that was
    /// found, 0 for none, and the newest one.
    ///
    /// # Errors
    /// When they cannot be made or changed, or a newer runwatch made them.
    pub(in crate::store) async fn settle(&self) -> Result<(u32, u32), StoreError> {
        let number = |version: i64| u32::try_from(version).unwrap_or(u32::MAX);
        let found = migrations::version(&self.db(), &self.connector).await?;
        migrations::settle(&self.link, &self.connector).await?;
        let newest = found.max(migrations::KNOWN_VERSION);
        Ok((number(found), number(newest)))
    }

    /// Who has the lease; `None` when it was released or never taken.
    ///
    /// # Errors
    /// When the server reports one.
    pub(in crate::store) async fn lease(&self) -> Result<Option<LeaseHolder>, StoreError> {
        let read = "SELECT epoch, renewals, holder_name, ttl_ms FROM runwatch.leases
            WHERE name = 'leader' AND NOT released";
        let row = self.db().row(read, &[]).await?;
        let read = |row: &Row| {
            Ok(LeaseHolder {
                seen: (get(row, 0)?, get(row, 1)?),
                name: get(row, 2)?,
                ttl: Duration::from_millis(get::<i64>(row, 3)?.cast_unsigned()),
            })
        };
        row.as_ref().map(read).transpose()
    }

    /// Looks at the lease for as long as its holder may be silent. Returns whether it was renewed or taken meanwhile.
    /// No clocks of two machines are compared.
    ///
    /// # Errors
    /// When the server reports one.
    pub(in crate::store) async fn is_renewed(
        &self,
        holder: &LeaseHolder,
    ) -> Result<bool, StoreError> {
        let ends = Instant::now() + holder.ttl + PATIENCE;
        while Instant::now() < ends {
            tokio::time::sleep(LOOK_PERIOD).await;
            match self.lease().await? {
                Some(now) if now.seen == holder.seen => {}
                // It was released: the next one takes it at once.
                Some(_) | None => return Ok(true),
            }
        }
        Ok(false)
    }

    /// Begins the transaction of the copy. Until it ends, no daemon reads or writes the tables.
    ///
    /// # Errors
    /// When the tables are in use, or the server reports another error.
    pub(in crate::store) async fn begin(&self) -> Result<(), StoreError> {
        let db = self.db();
        db.batch(&format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL statement_timeout = 0; \
             SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL lock_timeout = {LOCK_LIMIT}"
        ))
        .await?;
        let mut tables = vec![
            "runwatch.schema",
            "runwatch.clock",
            "runwatch.deleted_events",
        ];
        let others: Vec<_> = moved::all_tables()
            .map(|table| format!("runwatch.{table}"))
            .collect();
        tables.extend(others.iter().map(String::as_str));
        let lock = format!("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", tables.join(", "));
        db.batch(&lock).await.map_err(|error| match error {
            StoreError::OutOfReach { why } if why.contains("lock timeout") => {
                let why = "its tables are in use, by a daemon or a backup";
                StoreError::OutOfReach {
                    why: why.to_owned(),
                }
            }
            error => error,
        })
    }

    /// Commits.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when it is not known whether the transaction is committed.
    pub(in crate::store) async fn commit(&self) -> Result<(), StoreError> {
        self.link.commit().await.map_err(|error| match error {
            CommitError::Undone(error) => out_of_reach(&error),
            CommitError::Unknown(_) => StoreError::Unknown,
        })
    }

    /// The number of rows of a table.
    ///
    /// # Errors
    /// When the server reports one.
    pub(in crate::store) async fn count(&self, table: &CopiedTable) -> Result<u64, StoreError> {
        let sql = format!("SELECT count(*) FROM runwatch.{}", table.name);
        let row = self.db().row(&sql, &[]).await?;
        let count: i64 = row.as_ref().map_or(Ok(0), |row| get(row, 0))?;
        Ok(count.cast_unsigned())
    }

    /// Begins to read the rows of a table, in the order of their keys. The server sends them as they are taken.
    ///
    /// # Errors
    /// When the server reports one.
    pub(in crate::store) async fn rows(
        &self,
        table: &CopiedTable,
    ) -> Result<ServerRows, StoreError> {
        let names = names(table);
        let sql = format!(
            "SELECT {} FROM runwatch.{} ORDER BY {}",
            names.join(", "),
            table.name,
            names[..table.key].join(", ")
        );
        let sql = self.connector.schema.place(&sql);
        let none = std::iter::empty::<(&(dyn ToSql + Sync), Type)>();
        let rows = self.link.client().query_typed_raw(&sql, none).await?;
        Ok(ServerRows(Some(Box::pin(rows))))
    }

    /// Writes rows, in one statement.
    ///
    /// # Errors
    /// When the server reports one.
    pub(in crate::store) async fn write(
        &self,
        table: &CopiedTable,
        batch: &RowBatch,
    ) -> Result<(), StoreError> {
        let arrays = table.columns.iter().zip(1..).map(|(column, number)| {
            let sql_type = match column.kind {
                ColumnKind::Integer => "bigint",
                ColumnKind::Boolean => "boolean",
                ColumnKind::Text => "text",
            };
            format!("${number}::{sql_type}[]")
        });
        let sql = format!(
            "INSERT INTO runwatch.{} ({}) SELECT * FROM unnest({})",
            table.name,
            names(table).join(", "),
            arrays.collect::<Vec<_>>().join(", ")
        );
        let values: Vec<Parameter<'_>> = batch
            .columns
            .iter()
            .map(|column| match column {
                ColumnValues::Integers(values) => parameter(values),
                ColumnValues::Booleans(values) => parameter(values),
                ColumnValues::Texts(values) => parameter(values),
            })
            .collect();
        self.db().execute(&sql, &values).await.map(drop)
    }

    /// Deletes all rows and the note.
    ///
    /// # Errors
    /// When the server reports one.
    pub(in crate::store) async fn clear(&self) -> Result<(), StoreError> {
        let db = self.db();
        for table in TABLES.iter().rev() {
            db.batch(&format!("DELETE FROM runwatch.{}", table.name))
                .await?;
        }
        moved::remove_note(&db).await
    }

    /// The numbers that were given last, also those of transactions that were not committed.
    ///
    /// # Errors
    /// When the server reports one.
    pub(in crate::store) async fn last_numbers(&self) -> Result<LastNumbers, StoreError> {
        let db = self.db();
        let mut numbers = Vec::new();
        for (table, number) in numbered_tables() {
            let sql = format!(
                "SELECT greatest((SELECT max({number}) FROM runwatch.{table}), (SELECT last_value FROM \
                 pg_catalog.pg_sequences WHERE quote_ident(schemaname) || '.' || quote_ident(sequencename) \
                 = pg_get_serial_sequence('runwatch.{table}', '{number}')), {}, 0)",
                match table {
                    "events" => "(SELECT newest FROM runwatch.deleted_events)",
                    _ => "0",
                }
            );
            let row = db.row(&sql, &[]).await?;
            numbers.push(row.as_ref().map_or(Ok(0), |row| get(row, 0))?);
        }
        Ok(LastNumbers(numbers))
    }

    /// Lets the next numbers follow these, or those that were given here before where they are greater.
    ///
    /// # Errors
    /// When the server reports one.
    pub(in crate::store) async fn set_last_numbers(
        &self,
        numbers: &LastNumbers,
    ) -> Result<(), StoreError> {
        let db = self.db();
        let here = self.last_numbers().await?;
        let all = numbered_tables().zip(numbers.0.iter().zip(here.0));
        for ((table, number), (&there, here)) in all {
            let last = there.max(here);
            if last > 0 {
                let set = format!(
                    "SELECT setval(pg_get_serial_sequence('runwatch.{table}', '{number}'), $1)"
                );
                db.rows(&set, parameters![last]).await?;
            }
            if table == "events" {
                let note = "UPDATE runwatch.deleted_events SET newest = CASE WHEN $1 > coalesce((SELECT max(seq)
                    FROM runwatch.events), 0) THEN $1 ELSE 0 END";
                db.execute(note, parameters![there]).await?;
            }
        }
        Ok(())
    }

    /// How far the wall clock was set, in milliseconds.
    ///
    /// # Errors
    /// When the server reports one.
    pub(in crate::store) async fn stepped(&self) -> Result<i64, StoreError> {
        let row = self
            .db()
            .row("SELECT stepped_ms FROM runwatch.clock", &[])
            .await?;
        row.as_ref().map_or(Ok(0), |row| get(row, 0))
    }

    /// Stores how far the wall clock was set, and makes deliveries due whose attempt was under way.
    ///
    /// # Errors
    /// When the server reports one.
    pub(in crate::store) async fn take_over(&self, stepped_ms: i64) -> Result<(), StoreError> {
        let db = self.db();
        let set = "UPDATE runwatch.clock SET stepped_ms = $1";
        db.execute(set, parameters![stepped_ms]).await?;
        TakeUp {}.perform(&db).await
    }

    /// Writes a note.
    ///
    /// # Errors
    /// When the server reports one.
    pub(in crate::store) async fn write_note(&self, note: &MoveNote) -> Result<(), StoreError> {
        moved::write_note(&self.db(), note).await
    }

    /// Tries whether a note can be written, and leaves none: after the rows are copied it is too late to find out.
    ///
    /// # Errors
    /// When the server reports one, as when the role does not own the tables.
    pub(in crate::store) async fn try_note(&self) -> Result<(), StoreError> {
        let db = self.db();
        let note = MoveNote {
            state: MoveState::Arriving,
            place: String::new(),
            copy: String::new(),
        };
        db.batch("SAVEPOINT trial").await?;
        moved::write_note(&db, &note).await?;
        db.batch("ROLLBACK TO SAVEPOINT trial").await
    }

    /// Removes the note.
    ///
    /// # Errors
    /// When the server reports one.
    pub(in crate::store) async fn remove_note(&self) -> Result<(), StoreError> {
        moved::remove_note(&self.db()).await
    }
}

impl ServerRows {
    /// The next rows; none at the end.
    ///
    /// # Errors
    /// When the server reports one.
    pub(in crate::store) async fn next(
        &mut self,
        table: &CopiedTable,
    ) -> Result<RowBatch, StoreError> {
        let mut batch = RowBatch::new(table);
        while !batch.is_full()
            && let Some(rows) = &mut self.0
        {
            match rows.try_next().await? {
                Some(row) => batch.add(&row)?,
                None => self.0 = None,
            }
        }
        Ok(batch)
    }
}

impl ReadColumn for Row {
    type Error = StoreError;

    fn integer(&self, column: usize) -> Result<Option<i64>, StoreError> {
        get(self, column)
    }

    fn boolean(&self, column: usize) -> Result<Option<bool>, StoreError> {
        get(self, column)
    }

    fn text(&self, column: usize) -> Result<Option<String>, StoreError> {
        get(self, column)
    }
}

fn names(table: &CopiedTable) -> Vec<&'static str> {
    table.columns.iter().map(|column| column.name).collect()
}
