//! What a file shows of a store. Nothing is changed, and a daemon may have it open.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::{migrations, moved, prepare_any, while_opening};
use crate::store::model::StoreError;
use crate::store::tables::NOTED_VERSION;
use crate::text::one_line;

/// Longest text about damage, in characters.
const DAMAGE_CHARS: usize = 200;

/// What a file shows.
#[derive(Debug, Clone)]
pub struct FileFacts {
    /// The version of its tables, and the newest one that this program knows.
    pub version: (u32, u32),
    /// Why no daemon starts on it, where it was copied.
    pub note: Option<String>,
    /// Bytes in use, and bytes of free pages.
    pub bytes: (u64, u64),
    /// The first damage that was found.
    pub damage: Option<String>,
    /// How many rows some tables have; none in a file of an old version.
    pub rows: Vec<(&'static str, u64)>,
}

/// Looks at a file, and reads all of it. Blocks on the disk.
///
/// # Errors
/// When it cannot be opened or is not a database.
pub fn inspect_file(path: &Path) -> Result<FileFacts, StoreError> {
    let look = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(path, flags)?;
        prepare_any(&db)?;
        facts(&db)
    };
    look().map_err(|error| while_opening(error, path))
}

fn facts(db: &Connection) -> Result<FileFacts, StoreError> {
    let number = |name: &str| -> Result<u64, StoreError> {
        let value: i64 = db.pragma_query_value(None, name, |row| row.get(0))?;
        Ok(value.cast_unsigned())
    };
    let found: u32 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let note = moved::read_note(db)?;
    let version = match note {
        Some(_) => found - NOTED_VERSION,
        None => found,
    };
    let (size, pages, free) = (
        number("page_size")?,
        number("page_count")?,
        number("freelist_count")?,
    );
    let health: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    let mut rows = Vec::new();
    for (what, sql) in [
        ("watches", "SELECT count(*) FROM watches"),
        (
            "active watches",
            "SELECT count(*) FROM watches WHERE verdict IS NULL",
        ),
        ("events", "SELECT count(*) FROM events"),
        (
            "open deliveries",
            "SELECT count(*) FROM deliveries WHERE state IN ('pending', 'sending')",
        ),
        (
            "dead deliveries",
            "SELECT count(*) FROM deliveries WHERE state = 'dead'",
        ),
    ] {
        if version == migrations::KNOWN_VERSION {
            let count: i64 = db.query_row(sql, [], |row| row.get(0))?;
            rows.push((what, count.cast_unsigned()));
        }
    }
    Ok(FileFacts {
        version: (version, migrations::KNOWN_VERSION),
        note: note.map(|note| note.into_error().to_string()),
        bytes: (size * (pages - free), size * free),
        damage: (health != "ok").then(|| one_line(&health, DAMAGE_CHARS)),
        rows,
    })
}
