//! The note in a store that was copied.

use super::errors::{MOVED, is_missing};
use super::rows::get;
use super::sql::{Db, parameters};
use crate::store::model::StoreError;
use crate::store::tables::{MoveNote, MoveState, NOTED_VERSION, TABLES};

/// The tables that only daemons which share a store need.
const SHARED: [&str; 2] = ["leases", "dirty"];

/// Reads the version of the tables, and which program can use them; `None` when there are no tables. Leaves the
/// transaction in which it is read to be rolled back.
///
/// # Errors
/// When the server reports one.
pub(super) async fn read_version(db: &Db<'_>) -> Result<Option<(i64, i64)>, StoreError> {
    let read = "SELECT version, compatible_from FROM runwatch.schema";
    match db.row(read, &[]).await {
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error),
        Ok(row) => row
            .map(|row| Ok((get(&row, 0)?, get(&row, 1)?)))
            .transpose(),
    }
}

/// Reads the note, if the store has one. Changes nothing.
///
/// # Errors
/// When the server reports one.
pub(super) async fn read_note(db: &Db<'_>) -> Result<Option<MoveNote>, StoreError> {
    let schema = db.schema().name();
    let exists = "SELECT 1 FROM pg_catalog.pg_tables WHERE schemaname = $1 AND tablename = 'moved'";
    if db.row(exists, parameters![schema]).await?.is_none() {
        return Ok(None);
    }
    let row = db
        .row("SELECT state, place, copy FROM runwatch.moved", &[])
        .await?;
    let read = |row: &tokio_postgres::Row| {
        Ok(MoveNote {
            state: MoveState::read(get(row, 0)?),
            place: get(row, 1)?,
            copy: get(row, 2)?,
        })
    };
    row.as_ref().map(read).transpose()
}

/// Writes a note, in the transaction that is under way. From then on the tables refuse new rows and changes, also those
/// of daemons that were connected before.
///
/// # Errors
/// When the server reports one, as when the role does not own the tables.
pub(super) async fn write_note(db: &Db<'_>, note: &MoveNote) -> Result<(), StoreError> {
    db.batch("CREATE TABLE runwatch.moved (state text NOT NULL, place text NOT NULL, copy text NOT NULL)")
        .await?;
    let (state, place, copy) = (note.state.as_str(), note.place.as_str(), note.copy.as_str());
    db.execute(
        "INSERT INTO runwatch.moved VALUES ($1, $2, $3)",
        parameters![state, place, copy],
    )
    .await?;
    for table in all_tables() {
        // Rows that are there are not looked at (postgresql.org/docs/15/sql-altertable, "ADD table_constraint").
        let refuse =
            format!("ALTER TABLE runwatch.{table} ADD CONSTRAINT {MOVED} CHECK (false) NOT VALID");
        db.batch(&refuse).await?;
    }
    raise_version(db, i64::from(NOTED_VERSION)).await
}

/// Removes the note, in the transaction that is under way.
///
/// # Errors
/// When the server reports one.
pub(super) async fn remove_note(db: &Db<'_>) -> Result<(), StoreError> {
    db.batch("DROP TABLE runwatch.moved").await?;
    for table in all_tables() {
        let allow = format!("ALTER TABLE runwatch.{table} DROP CONSTRAINT {MOVED}");
        db.batch(&allow).await?;
    }
    raise_version(db, -i64::from(NOTED_VERSION)).await
}

/// The tables that have rows, but for the version, the clock and the number of the newest event.
pub(super) fn all_tables() -> impl Iterator<Item = &'static str> {
    TABLES.iter().map(|table| table.name).chain(SHARED)
}

async fn raise_version(db: &Db<'_>, by: i64) -> Result<(), StoreError> {
    let raise = "UPDATE runwatch.schema SET compatible_from = compatible_from + $1";
    db.execute(raise, parameters![by]).await.map(drop)
}
