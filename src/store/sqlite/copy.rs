//! A file as one end of a copy.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row, params, params_from_iter};

use super::deliveries::release_claims;
use super::{Lock, LockError, migrations, moved, prepare_any, set_up, while_opening};
use crate::blocking;
use crate::store::model::StoreError;
use crate::store::tables::{
    ColumnValues, CopiedTable, LastNumbers, MoveNote, NOTED_VERSION, ReadColumn, RowBatch, TABLES,
    numbered_tables,
};

/// Why a file cannot be an end of a copy.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Another process uses it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// It cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A file with its lock. The connection is used on threads of their own, because a disk may be slow.
#[derive(Debug)]
pub(in crate::store) struct FileEnd {
    path: PathBuf,
    connection: Arc<Mutex<Connection>>,
    _lock: Arc<Lock>,
}

impl FileEnd {
    /// Opens a file, and makes it if `make` is set. Does not look at its tables.
    ///
    /// # Errors
    /// When another process uses it, or it cannot be opened.
    pub(in crate::store) async fn open(path: &Path, make: bool) -> Result<Self, FileError> {
        let path = path.to_owned();
        let opening = blocking::run("store-copy", move || {
            let lock = Lock::take(&path)?;
            let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            flags.set(OpenFlags::SQLITE_OPEN_CREATE, make);
            let open = || {
                let connection = Connection::open_with_flags(&path, flags)?;
                prepare_any(&connection)?;
                // It is read first here.
                let _version: u32 =
                    connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
                Ok(connection)
            };
            let connection = open().map_err(|error| while_opening(error, &path))?;
            Ok::<_, FileError>(Self {
                connection: Arc::new(Mutex::new(connection)),
                path,
                _lock: Arc::new(lock),
            })
        });
        opening.await.map_err(|_stuck| StoreError::Closed)?
    }

    /// Does something with the connection, on a thread of its own.
    async fn with<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let connection = Arc::clone(&self.connection);
        let acted = blocking::run("store-copy", move || {
            act(&mut connection.lock().unwrap_or_else(PoisonError::into_inner))
        });
        acted.await.map_err(|_stuck| StoreError::Closed)?
    }

    /// The file, for people.
    pub(in crate::store) fn place(&self) -> String {
        let path = std::path::absolute(&self.path);
        path.unwrap_or_else(|_| self.path.clone())
            .display()
            .to_string()
    }

    /// Reads the note.
    ///
    /// # Errors
    /// When the database reports one.
    pub(in crate::store) async fn note(&self) -> Result<Option<MoveNote>, StoreError> {
        self.with(|db| moved::read_note(db)).await
    }

    /// Brings the tables to the newest version, and makes them in an empty file. A file with a note must have that
    /// version. Returns the version that was found and the newest one.
    ///
    /// # Errors
    /// When the database reports one, or a newer runwatch wrote it.
    pub(in crate::store) async fn settle(&self) -> Result<(u32, u32), StoreError> {
        self.with(|db| {
            let found: u32 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
            if found == NOTED_VERSION + migrations::KNOWN_VERSION {
                set_up(db)?;
                return Ok((migrations::KNOWN_VERSION, migrations::KNOWN_VERSION));
            }
            migrations::version(db)?;
            set_up(db)?;
            migrations::migrate(db)?;
            Ok((found, migrations::KNOWN_VERSION))
        })
        .await
    }

    /// Begins the transaction of the copy.
    ///
    /// # Errors
    /// When the database reports one.
    pub(in crate::store) async fn begin(&self) -> Result<(), StoreError> {
        self.with(|db| Ok(db.execute_batch("BEGIN IMMEDIATE")?))
            .await
    }

    /// Commits.
    ///
    /// # Errors
    /// When the database reports one; nothing was changed then.
    pub(in crate::store) async fn commit(&self) -> Result<(), StoreError> {
        self.with(|db| Ok(db.execute_batch("COMMIT")?)).await
    }

    /// The number of rows of a table.
    ///
    /// # Errors
    /// When the database reports one.
    pub(in crate::store) async fn count(
        &self,
        table: &'static CopiedTable,
    ) -> Result<u64, StoreError> {
        self.with(move |db| {
            let sql = format!("SELECT count(*) FROM {}", table.name);
            let count: i64 = db.query_row(&sql, [], |row| row.get(0))?;
            Ok(count.cast_unsigned())
        })
        .await
    }

    /// Reads the rows after a key, in the order of their keys. Returns the next key, too.
    ///
    /// # Errors
    /// When the database reports one.
    pub(in crate::store) async fn read(
        &self,
        table: &'static CopiedTable,
        after: Vec<Value>,
    ) -> Result<(RowBatch, Vec<Value>), StoreError> {
        self.with(move |db| read_batch(db, table, after)).await
    }

    /// Writes rows.
    ///
    /// # Errors
    /// When the database reports one.
    pub(in crate::store) async fn write(
        &self,
        table: &'static CopiedTable,
        batch: RowBatch,
    ) -> Result<(), StoreError> {
        self.with(move |db| write_batch(db, table, &batch)).await
    }

    /// Deletes all rows and the note.
    ///
    /// # Errors
    /// When the database reports one.
    pub(in crate::store) async fn clear(&self) -> Result<(), StoreError> {
        self.with(|db| {
            for table in TABLES.iter().rev() {
                db.execute(&format!("DELETE FROM {}", table.name), [])?;
            }
            moved::remove_note(db)
        })
        .await
    }

    /// The numbers that were given last.
    ///
    /// # Errors
    /// When the database reports one.
    pub(in crate::store) async fn last_numbers(&self) -> Result<LastNumbers, StoreError> {
        self.with(|db| {
            let given = |(table, _number): (&str, &str)| {
                let sql = "SELECT seq FROM sqlite_sequence WHERE name = ?";
                let given: Option<i64> = db.query_row(sql, [table], |row| row.get(0)).optional()?;
                Ok(given.unwrap_or(0))
            };
            let numbers = numbered_tables().map(given);
            Ok(LastNumbers(numbers.collect::<Result<_, StoreError>>()?))
        })
        .await
    }

    /// Lets the next numbers follow these, or those that were given here before where they are greater.
    ///
    /// # Errors
    /// When the database reports one.
    pub(in crate::store) async fn set_last_numbers(
        &self,
        numbers: LastNumbers,
    ) -> Result<(), StoreError> {
        self.with(move |db| {
            for ((table, _number), last) in numbered_tables().zip(numbers.0) {
                // It is an ordinary table (sqlite.org/autoinc.html).
                let raise = "UPDATE sqlite_sequence SET seq = max(seq, ?2) WHERE name = ?1";
                if db.execute(raise, params![table, last])? == 0 && last > 0 {
                    let begin = "INSERT INTO sqlite_sequence (name, seq) VALUES (?1, ?2)";
                    db.execute(begin, params![table, last])?;
                }
            }
            Ok(())
        })
        .await
    }

    /// How far the wall clock was set, in milliseconds.
    ///
    /// # Errors
    /// When the database reports one.
    pub(in crate::store) async fn stepped(&self) -> Result<i64, StoreError> {
        let read = "SELECT stepped_ms FROM clock";
        self.with(|db| Ok(db.query_row(read, [], |row| row.get(0))?))
            .await
    }

    /// Stores how far the wall clock was set, and makes deliveries due whose attempt was under way.
    ///
    /// # Errors
    /// When the database reports one.
    pub(in crate::store) async fn take_over(&self, stepped_ms: i64) -> Result<(), StoreError> {
        self.with(move |db| {
            db.execute("UPDATE clock SET stepped_ms = ?", [stepped_ms])?;
            release_claims(db)
        })
        .await
    }

    /// Writes a note.
    ///
    /// # Errors
    /// When the database reports one.
    pub(in crate::store) async fn write_note(&self, note: MoveNote) -> Result<(), StoreError> {
        self.with(move |db| moved::write_note(db, &note)).await
    }

    /// Removes the note.
    ///
    /// # Errors
    /// When the database reports one.
    pub(in crate::store) async fn remove_note(&self) -> Result<(), StoreError> {
        self.with(|db| moved::remove_note(db)).await
    }
}

impl ReadColumn for Row<'_> {
    type Error = StoreError;

    fn integer(&self, column: usize) -> Result<Option<i64>, StoreError> {
        Ok(self.get(column)?)
    }

    fn boolean(&self, column: usize) -> Result<Option<bool>, StoreError> {
        Ok(self.get(column)?)
    }

    fn text(&self, column: usize) -> Result<Option<String>, StoreError> {
        Ok(self.get(column)?)
    }
}

fn read_batch(
    db: &Connection,
    table: &CopiedTable,
    after: Vec<Value>,
) -> Result<(RowBatch, Vec<Value>), StoreError> {
    let columns: Vec<_> = table.columns.iter().map(|one| one.in_sqlite()).collect();
    let key = columns[..table.key].join(", ");
    let rest = match after.is_empty() {
        true => String::new(),
        false => format!("WHERE ({key}) > ({})", vec!["?"; table.key].join(", ")),
    };
    let sql = format!(
        "SELECT {} FROM {} {rest} ORDER BY {key}",
        columns.join(", "),
        table.name
    );
    let mut statement = db.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(&after))?;
    let (mut batch, mut last) = (RowBatch::new(table), after);
    while !batch.is_full()
        && let Some(row) = rows.next()?
    {
        batch.add(row)?;
        last = (0..table.key)
            .map(|number| row.get(number))
            .collect::<Result<_, _>>()?;
    }
    Ok((batch, last))
}

fn write_batch(db: &Connection, table: &CopiedTable, batch: &RowBatch) -> Result<(), StoreError> {
    let written = || {
        let all = table.columns.iter().zip(&batch.columns);
        all.filter(|(column, _)| column.derived.is_none())
    };
    let names: Vec<_> = written().map(|(column, _)| column.in_sqlite()).collect();
    let sql = format!(
        "INSERT INTO {} ({}) VALUES ({})",
        table.name,
        names.join(", "),
        vec!["?"; names.len()].join(", ")
    );
    let mut statement = db.prepare_cached(&sql)?;
    for row in 0..batch.rows {
        for (number, (_, values)) in written().enumerate() {
            match values {
                ColumnValues::Integers(all) => {
                    statement.raw_bind_parameter(number + 1, all[row])?;
                }
                ColumnValues::Booleans(all) => {
                    statement.raw_bind_parameter(number + 1, all[row])?;
                }
                ColumnValues::Texts(all) => {
                    statement.raw_bind_parameter(number + 1, all[row].as_deref())?;
                }
            }
        }
        statement.raw_execute()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The columns of a table, sorted.
    fn columns_of(db: &Connection, table: &str) -> Vec<String> {
        let sql = "SELECT name FROM pragma_table_info(?) ORDER BY name";
        let mut statement = db.prepare(sql).unwrap();
        let names = statement.query_map([table], |row| row.get(0)).unwrap();
        names.collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn every_column_of_every_table_is_copied() {
        let mut db = Connection::open_in_memory().unwrap();
        migrations::migrate(&mut db).unwrap();
        for table in TABLES {
            let own = table.columns.iter().filter(|one| one.derived.is_none());
            let mut copied: Vec<_> = own.map(|one| one.in_sqlite()).collect();
            copied.sort_unstable();
            assert_eq!(copied, columns_of(&db, table.name), "{}", table.name);
        }
        let names = "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name";
        let mut names = db.prepare(names).unwrap();
        let names = names.query_map([], |row| row.get::<_, String>(0)).unwrap();
        let others: Vec<_> = names
            .map(Result::unwrap)
            .filter(|name| TABLES.iter().all(|table| table.name != name))
            .collect();
        // The totals follow from the rows; the others have ways of their own.
        assert_eq!(others, ["clock", "sqlite_sequence", "totals"]);
    }
}
