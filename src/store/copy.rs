//! Copies a store to another place: from a file to a PostgreSQL database, back, or between two of a kind.
//!
//! Both stores are out of use meanwhile, and each is read or written in one transaction. At its end there are three
//! commits, so that a process that dies between two of them leaves neither two stores that could be used nor none:
//!
//! 1. the target has all rows, and a note that they arrive;
//! 2. the source has a note that it was moved;
//! 3. the target has no note any more.
//!
//! The same copy, begun again, goes on from there.

use std::path::PathBuf;
use std::time::Duration;

use rusqlite::types::Value;

use super::model::StoreError;
use super::postgres::{PostgresSettings, ServerEnd, ServerRows};
use super::sqlite::{FileEnd, FileError};
use super::tables::{CopiedTable, LastNumbers, MoveNote, MoveState, RowBatch, TABLES};
use crate::failpoint;

/// Where an end of a copy is.
#[derive(Debug, Clone)]
pub enum CopyPlace {
    /// In a file.
    File(PathBuf),
    /// On a server.
    Server(PostgresSettings),
}

/// Why a store was not copied. Unless it says otherwise, the source can be used as before, and the target is empty.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// An end cannot be used.
    #[error("{place}")]
    End {
        /// Which.
        place: String,
        /// Why.
        #[source]
        source: FileError,
    },
    /// There is nothing at the source.
    #[error("there is no store at {0}")]
    Absent(String),
    /// The target has rows.
    #[error("{0} is not empty; name another file, or another schema with --schema")]
    NotEmpty(String),
    /// The target was copied to another place itself.
    #[error(
        "{0} was moved, so nothing is copied into it; name another file, or another schema with --schema"
    )]
    TargetMoved(String),
    /// The source is the target.
    #[error("the source and the target are the same file")]
    OnePlace,
    /// A daemon uses an end.
    #[error("{name} leads on the store {place}; stop all its daemons first")]
    Leads {
        /// The daemon.
        name: String,
        /// The store.
        place: String,
    },
    /// Rows were lost on the way. Nothing was stored.
    #[error("{target} of {source_rows} rows of {table} arrived, so nothing was stored")]
    Counts {
        /// The table.
        table: &'static str,
        /// Rows there.
        source_rows: u64,
        /// Rows here.
        target: u64,
    },
    /// The rows are stored, but the end is not.
    #[error(
        "the rows were copied, but {place} could not be given its note; run the same command again"
    )]
    Unfinished {
        /// Which end.
        place: String,
        /// Why.
        #[source]
        source: StoreError,
    },
}

/// How far a copy is.
#[derive(Debug, Clone)]
pub enum CopyStep {
    /// It is seen whether a leader is still there.
    Waiting {
        /// Its name.
        name: String,
        /// For how long, unless it shows itself.
        time: Duration,
    },
    /// Rows of a table were copied.
    Copying {
        /// The table.
        table: &'static str,
        /// So many.
        copied: u64,
        /// Of so many.
        total: u64,
    },
    /// The rows are stored, and the source is marked.
    Finishing,
}

/// What was copied.
#[derive(Debug, Clone)]
pub struct CopySummary {
    /// The source.
    pub from: String,
    /// The target.
    pub to: String,
    /// The number of rows of each table.
    pub rows: Vec<(&'static str, u64)>,
}

/// Copies a store. `report` is called as it goes on.
///
/// # Errors
/// When it was not copied, or not to the end; see [`CopyError`].
pub async fn copy_store(
    source: &CopyPlace,
    target: &CopyPlace,
    mut report: impl FnMut(CopyStep),
) -> Result<CopySummary, CopyError> {
    if is_one_file(source, target) {
        return Err(CopyError::OnePlace);
    }
    let from = CopyEnd::open(source, false).await?;
    let to = CopyEnd::open(target, true).await?;
    let notes = (from.note().await, to.note().await);
    let arriving = match (from.named(notes.0)?, to.named(notes.1)?) {
        (Some(there), Some(here)) if is_one_copy(&there, &here) => {
            return finish(&from, &to).await;
        }
        (Some(note), _) => return from.named(Err(note.into_error())),
        (None, Some(note)) if note.state == MoveState::Arriving && note.place == from.place() => {
            true
        }
        (None, Some(note)) if note.state == MoveState::Moved => {
            return Err(CopyError::TargetMoved(to.place()));
        }
        (None, Some(note)) => return to.named(Err(note.into_error())),
        (None, None) => false,
    };
    from.named(from.settle().await)?;
    if !arriving || matches!(to, CopyEnd::File(_)) {
        to.named(to.settle().await)?;
    }
    for end in [&from, &to] {
        end.begin(&mut report).await?;
    }
    from.named(from.try_note().await)?;
    if arriving {
        to.named(to.clear().await)?;
    }
    for table in TABLES {
        if to.named(to.count(table).await)? > 0 {
            return Err(CopyError::NotEmpty(to.place()));
        }
    }
    let summary = copy_rows(&from, &to, &mut report).await?;
    let note = |state, other: &CopyEnd, copy: &str| MoveNote {
        state,
        place: other.place(),
        copy: copy.to_owned(),
    };
    let copy = uuid::Uuid::now_v7().to_string();
    to.named(to.write_note(note(MoveState::Arriving, &from, &copy)).await)?;
    to.named(to.commit().await)?;
    failpoint::point("copy:stored");
    let marked = async {
        from.write_note(note(MoveState::Moved, &to, &copy)).await?;
        from.commit().await
    };
    marked.await.map_err(|error| from.unfinished(error))?;
    failpoint::point("copy:marked");
    report(CopyStep::Finishing);
    to.release().await.map_err(|error| to.unfinished(error))?;
    Ok(summary)
}

/// Whether both are one file.
fn is_one_file(source: &CopyPlace, target: &CopyPlace) -> bool {
    let (CopyPlace::File(source), CopyPlace::File(target)) = (source, target) else {
        return false;
    };
    let found = |path: &std::path::Path| path.canonicalize().ok();
    source == target || found(source).is_some_and(|source| found(target) == Some(source))
}

/// Whether the notes are of one copy that is stored, and whose source is marked.
fn is_one_copy(there: &MoveNote, here: &MoveNote) -> bool {
    there.copy == here.copy && (there.state, here.state) == (MoveState::Moved, MoveState::Arriving)
}

/// Ends a copy of which only the last commit is missing.
async fn finish(from: &CopyEnd, to: &CopyEnd) -> Result<CopySummary, CopyError> {
    to.named(to.settle_noted().await)?;
    let mut rows = Vec::new();
    for table in TABLES {
        rows.push((table.name, to.named(to.count(table).await)?));
    }
    to.release().await.map_err(|error| to.unfinished(error))?;
    Ok(CopySummary {
        from: from.place(),
        to: to.place(),
        rows,
    })
}

/// Copies all rows, and compares their numbers.
async fn copy_rows(
    from: &CopyEnd,
    to: &CopyEnd,
    report: &mut impl FnMut(CopyStep),
) -> Result<CopySummary, CopyError> {
    let mut rows = Vec::new();
    for table in TABLES {
        let total = from.named(from.count(table).await)?;
        let mut copied = 0;
        let mut reading = from.named(from.rows(table).await)?;
        loop {
            let step = CopyStep::Copying {
                table: table.name,
                copied,
                total,
            };
            report(step);
            let batch = from.named(from.next(table, &mut reading).await)?;
            if batch.rows == 0 {
                break;
            }
            copied += batch.rows as u64;
            to.named(to.write(table, batch).await)?;
            failpoint::point("copy:rows");
        }
        rows.push((table.name, total));
    }
    let stepped = from.named(from.stepped().await)?;
    to.named(to.take_over(stepped).await)?;
    let numbers = from.named(from.last_numbers().await)?;
    to.named(to.set_last_numbers(numbers).await)?;
    for (table, (_, source_rows)) in TABLES.iter().zip(&rows) {
        let target = to.named(to.count(table).await)?;
        if target != *source_rows {
            return Err(CopyError::Counts {
                table: table.name,
                source_rows: *source_rows,
                target,
            });
        }
    }
    Ok(CopySummary {
        from: from.place(),
        to: to.place(),
        rows,
    })
}

/// Makes or changes the tables of a store. Returns its place, the version that was found, 0 for none, and the newest
/// one.
///
/// # Errors
/// When a daemon uses the file, or the tables cannot be made or changed.
pub async fn migrate_store(place: &CopyPlace) -> Result<(String, u32, u32), CopyError> {
    let end = CopyEnd::open(place, true).await?;
    let note = end.named(end.note().await)?;
    if let Some(note) = note {
        return end.named(Err(note.into_error()));
    }
    let (found, newest) = end.named(end.settle().await)?;
    Ok((end.place(), found, newest))
}

/// One end of a copy.
enum CopyEnd {
    File(FileEnd),
    Server(ServerEnd),
}

/// How far a table was read.
enum TableReading {
    File(Vec<Value>),
    Server(ServerRows),
}

/// Does the same in a file and on a server.
macro_rules! either {
    ($end:expr, $one:ident => $act:expr) => {
        match $end {
            CopyEnd::File($one) => $act,
            CopyEnd::Server($one) => $act,
        }
    };
}

impl CopyEnd {
    /// Opens an end. With `make`, a file is made that is not there.
    async fn open(place: &CopyPlace, make: bool) -> Result<Self, CopyError> {
        match place {
            CopyPlace::File(path) => {
                if !make && !path.exists() {
                    return Err(CopyError::Absent(path.display().to_string()));
                }
                let opened = FileEnd::open(path, make).await;
                opened.map(Self::File).map_err(|source| CopyError::End {
                    place: path.display().to_string(),
                    source,
                })
            }
            CopyPlace::Server(settings) => {
                let opened = async {
                    let end = ServerEnd::open(settings).await?;
                    let is_there = make || end.is_there().await?;
                    Ok((end, is_there))
                };
                let schema = &settings.schema;
                match opened.await {
                    Ok((end, true)) => Ok(Self::Server(end)),
                    Ok((end, false)) => Err(CopyError::Absent(end.place())),
                    Err(error) => Err(CopyError::End {
                        place: format!("PostgreSQL, schema {schema}"),
                        source: FileError::Store(error),
                    }),
                }
            }
        }
    }

    fn place(&self) -> String {
        either!(self, end => end.place())
    }

    /// A result with the place in its error.
    fn named<T>(&self, result: Result<T, StoreError>) -> Result<T, CopyError> {
        result.map_err(|error| CopyError::End {
            place: self.place(),
            source: FileError::Store(error),
        })
    }

    fn unfinished(&self, source: StoreError) -> CopyError {
        CopyError::Unfinished {
            place: self.place(),
            source,
        }
    }

    async fn note(&self) -> Result<Option<MoveNote>, StoreError> {
        either!(self, end => end.note().await)
    }

    async fn settle(&self) -> Result<(u32, u32), StoreError> {
        either!(self, end => end.settle().await)
    }

    /// Prepares a store with a note.
    async fn settle_noted(&self) -> Result<(), StoreError> {
        match self {
            Self::File(end) => end.settle().await.map(drop),
            Self::Server(_) => Ok(()),
        }
    }

    /// Begins the transaction of the copy, unless a daemon leads on the store.
    async fn begin(&self, report: &mut impl FnMut(CopyStep)) -> Result<(), CopyError> {
        let end = match self {
            Self::File(end) => return self.named(end.begin().await),
            Self::Server(end) => end,
        };
        let holder = self.named(end.lease().await)?;
        let leads = |name: String| CopyError::Leads {
            name,
            place: self.place(),
        };
        if let Some(holder) = &holder {
            let (name, time) = (holder.name.clone(), holder.ttl);
            report(CopyStep::Waiting { name, time });
            if self.named(end.is_renewed(holder).await)? {
                return Err(leads(holder.name.clone()));
            }
        }
        self.named(end.begin().await)?;
        // The last moment at which a daemon could take it.
        match self.named(end.lease().await)? {
            Some(now) if Some(&now) != holder.as_ref() => Err(leads(now.name)),
            Some(_) | None => Ok(()),
        }
    }

    /// Tries whether a note can be written at the end. Who may write a file may do so.
    async fn try_note(&self) -> Result<(), StoreError> {
        match self {
            Self::File(_) => Ok(()),
            Self::Server(end) => end.try_note().await,
        }
    }

    async fn commit(&self) -> Result<(), StoreError> {
        either!(self, end => end.commit().await)
    }

    async fn clear(&self) -> Result<(), StoreError> {
        either!(self, end => end.clear().await)
    }

    async fn count(&self, table: &'static CopiedTable) -> Result<u64, StoreError> {
        either!(self, end => end.count(table).await)
    }

    /// Begins to read a table.
    async fn rows(&self, table: &'static CopiedTable) -> Result<TableReading, StoreError> {
        match self {
            Self::File(_) => Ok(TableReading::File(Vec::new())),
            Self::Server(end) => end.rows(table).await.map(TableReading::Server),
        }
    }

    /// The next rows of a table; none at the end.
    async fn next(
        &self,
        table: &'static CopiedTable,
        reading: &mut TableReading,
    ) -> Result<RowBatch, StoreError> {
        match (self, reading) {
            (Self::File(end), TableReading::File(after)) => {
                let (batch, last) = end.read(table, std::mem::take(after)).await?;
                *after = last;
                Ok(batch)
            }
            (_, TableReading::Server(rows)) => rows.next(table).await,
            (Self::Server(_), TableReading::File(_)) => Err(StoreError::Closed),
        }
    }

    async fn write(&self, table: &'static CopiedTable, batch: RowBatch) -> Result<(), StoreError> {
        match self {
            Self::File(end) => end.write(table, batch).await,
            Self::Server(end) => end.write(table, &batch).await,
        }
    }

    async fn stepped(&self) -> Result<i64, StoreError> {
        either!(self, end => end.stepped().await)
    }

    async fn take_over(&self, stepped_ms: i64) -> Result<(), StoreError> {
        either!(self, end => end.take_over(stepped_ms).await)
    }

    async fn last_numbers(&self) -> Result<LastNumbers, StoreError> {
        either!(self, end => end.last_numbers().await)
    }

    async fn set_last_numbers(&self, numbers: LastNumbers) -> Result<(), StoreError> {
        match self {
            Self::File(end) => end.set_last_numbers(numbers).await,
            Self::Server(end) => end.set_last_numbers(&numbers).await,
        }
    }

    async fn write_note(&self, note: MoveNote) -> Result<(), StoreError> {
        match self {
            Self::File(end) => end.write_note(note).await,
            Self::Server(end) => end.write_note(&note).await,
        }
    }

    /// Removes the note, in a transaction of its own. From then on the store can be used.
    async fn release(&self) -> Result<(), StoreError> {
        match self {
            Self::File(end) => {
                end.begin().await?;
                end.remove_note().await?;
            }
            Self::Server(end) => {
                end.begin().await?;
                end.remove_note().await?;
            }
        }
        self.commit().await
    }
}
