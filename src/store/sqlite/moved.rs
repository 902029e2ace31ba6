//! The note in a store that was copied.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::migrations::KNOWN_VERSION;
use crate::store::model::StoreError;
use crate::store::tables::{MoveNote, MoveState, NOTED_VERSION};

/// Reads the note, if the store has one. Changes nothing.
///
/// # Errors
/// When the database reports one.
pub(super) fn read_note(db: &Connection) -> Result<Option<MoveNote>, StoreError> {
    let version: u32 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version < NOTED_VERSION || !db.table_exists(None, "moved")? {
        return Ok(None);
    }
    let read = |row: &rusqlite::Row<'_>| {
        Ok(MoveNote {
            state: MoveState::read(&row.get::<_, String>(0)?),
            place: row.get(1)?,
            copy: row.get(2)?,
        })
    };
    let note = db
        .query_row("SELECT state, place, copy FROM moved", [], read)
        .optional()?;
    Ok(note)
}

/// Writes a note, in the transaction that is under way. The tables have the newest version.
///
/// # Errors
/// When the database reports one.
pub(super) fn write_note(db: &Connection, note: &MoveNote) -> Result<(), StoreError> {
    db.execute_batch(
        "CREATE TABLE moved (state TEXT NOT NULL, place TEXT NOT NULL, copy TEXT NOT NULL) STRICT",
    )?;
    db.execute(
        "INSERT INTO moved VALUES (?, ?, ?)",
        params![note.state.as_str(), note.place, note.copy],
    )?;
    db.pragma_update(None, "user_version", NOTED_VERSION + KNOWN_VERSION)?;
    Ok(())
}

/// Removes the note, in the transaction that is under way.
///
/// # Errors
/// When the database reports one.
pub(super) fn remove_note(db: &Connection) -> Result<(), StoreError> {
    db.execute_batch("DROP TABLE moved")?;
    db.pragma_update(None, "user_version", KNOWN_VERSION)?;
    Ok(())
}
