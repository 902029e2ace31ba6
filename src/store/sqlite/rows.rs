//! Statements that return rows.

use rusqlite::{Connection, Params, Row};

use crate::store::model::StoreError;
use crate::store::records::unreadable;

/// The columns of the large values of a watch or an event: its input, then its output.
macro_rules! payloads {
    ($row:literal) => {
        concat!(
            "(SELECT p.body FROM payloads p WHERE p.id = ",
            $row,
            ".input_id), ",
            "(SELECT p.body FROM payloads p WHERE p.id = ",
            $row,
            ".output_id)"
        )
    };
}
pub(super) use payloads;

/// How much more the wall clock shows than the times of next attempts in the store, in
/// milliseconds.
macro_rules! stepped {
    () => {
        "(SELECT stepped_ms FROM clock)"
    };
}
pub(super) use stepped;

/// Runs a query and reads every row.
pub(super) fn read_all<T>(
    db: &Connection,
    sql: &str,
    parameters: impl Params,
    mut read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let mut statement = db.prepare_cached(sql)?;
    let mut rows = statement.query(parameters)?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        all.push(read(row)?);
    }
    Ok(all)
}

pub(super) fn read_id<T, E: std::fmt::Display>(
    row: &Row<'_>,
    column: impl rusqlite::RowIndex,
    read: impl FnOnce(&str) -> Result<T, E>,
) -> Result<T, StoreError> {
    let text: String = row.get(column)?;
    read(&text).map_err(|error| unreadable("an ID", &error))
}
