//! The tables that hold what is stored, as data: what a copy from one engine to the other reads and writes.

use super::model::StoreError;
use super::records::storable;

/// Most bytes and rows that a copy has in memory at once, unless one row has more bytes.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// See [`BATCH_BYTES`].
const BATCH_ROWS: usize = 1_000;

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ColumnKind {
    /// Numbers and times.
    Integer,
    /// Truth values, which SQLite has as 0 and 1.
    Boolean,
    /// Texts.
    Text,
}

/// A column.
#[derive(Debug, Clone, Copy)]
pub(super) struct CopiedColumn {
    /// Its name.
    pub(super) name: &'static str,
    pub(super) kind: ColumnKind,
    /// Its name in SQLite, if it is another one.
    sqlite_name: Option<&'static str>,
    /// How it follows from other columns in SQLite, which does not have it.
    pub(super) derived: Option<&'static str>,
}

impl CopiedColumn {
    /// What a `SELECT` in SQLite names it.
    pub(super) fn in_sqlite(&self) -> &'static str {
        self.derived.or(self.sqlite_name).unwrap_or(self.name)
    }
}

const fn column(name: &'static str, kind: ColumnKind) -> CopiedColumn {
    CopiedColumn {
        name,
        kind,
        sqlite_name: None,
        derived: None,
    }
}

const fn integer(name: &'static str) -> CopiedColumn {
    column(name, ColumnKind::Integer)
}

const fn boolean(name: &'static str) -> CopiedColumn {
    column(name, ColumnKind::Boolean)
}

const fn text(name: &'static str) -> CopiedColumn {
    column(name, ColumnKind::Text)
}

/// A table.
#[derive(Debug)]
pub(super) struct CopiedTable {
    pub(super) name: &'static str,
    /// All columns, those of the primary key first.
    pub(super) columns: &'static [CopiedColumn],
    /// How many columns the primary key has.
    pub(super) key: usize,
    /// Whether the database numbers its rows, in the first column.
    pub(super) is_numbered: bool,
}

/// The provider of an event about an API, which SQLite has in the body only.
const PROVIDER_OF_EVENT: &str = "CASE WHEN watch_id IS NULL AND type IN ('api.unreachable', 'api.unauthorized', 'api.recovered') \
     THEN coalesce(body ->> '$.data.provider', 'crewship') END";

/// The tables, each after those that it refers to. `clock` and `deleted_events`, which have one row, and `totals` in
/// SQLite, which follows from the others, are not among them; nor is what only daemons that share a store need.
pub(super) const TABLES: &[CopiedTable] = &[
    CopiedTable {
        name: "watches",
        key: 1,
        is_numbered: true,
        columns: &[
            integer("id"),
            text("run_id"),
            integer("added_at"),
            integer("deadline_at"),
            text("verdict"),
            integer("verdict_at"),
            text("found_by"),
            integer("polls"),
            integer("missing_since"),
            boolean("seen_running"),
            boolean("overdue_told"),
            integer("last_error_at"),
            integer("input_id"),
            integer("output_id"),
            text("name"),
            text("status"),
            text("state"),
            text("origin"),
            text("run_group"),
            integer("started_at"),
            text("sinks"),
            text("labels"),
            text("last_error"),
            text("details"),
            text("group_name"),
            integer("group_size"),
            boolean("group_done"),
            text("trace"),
        ],
    },
    CopiedTable {
        name: "configured_watches",
        key: 1,
        is_numbered: false,
        columns: &[text("run_id")],
    },
    CopiedTable {
        name: "payloads",
        key: 1,
        is_numbered: true,
        columns: &[integer("id"), integer("watch_id"), text("body")],
    },
    CopiedTable {
        name: "status_changes",
        key: 1,
        is_numbered: true,
        columns: &[
            integer("seq"),
            integer("watch_id"),
            integer("at"),
            text("status"),
            text("state"),
        ],
    },
    CopiedTable {
        name: "events",
        key: 1,
        is_numbered: true,
        columns: &[
            integer("seq"),
            integer("watch_id"),
            text("run_id"),
            CopiedColumn {
                derived: Some(PROVIDER_OF_EVENT),
                ..text("provider")
            },
            text("type"),
            integer("at"),
            integer("input_id"),
            integer("output_id"),
            text("body"),
        ],
    },
    CopiedTable {
        name: "deliveries",
        key: 1,
        is_numbered: false,
        columns: &[
            text("id"),
            integer("event_seq"),
            text("sink"),
            text("state"),
            integer("attempts"),
            integer("earlier_tries"),
            integer("next_attempt_at"),
            integer("created_at"),
            integer("ended_at"),
            text("fallback_for"),
            integer("held_until"),
            boolean("at_once"),
            text("included_in"),
        ],
    },
    CopiedTable {
        name: "attempts",
        key: 2,
        is_numbered: false,
        columns: &[
            text("delivery_id"),
            integer("attempt"),
            integer("at"),
            integer("took_ms"),
            boolean("delivered"),
            text("detail"),
        ],
    },
    CopiedTable {
        name: "discoveries",
        key: 1,
        is_numbered: true,
        columns: &[
            integer("id"),
            text("provider"),
            CopiedColumn {
                sqlite_name: Some("match"),
                ..text("parameters")
            },
            integer("began_at"),
            integer("rounds"),
            integer("cursor_at"),
            integer("settled_at"),
            integer("found"),
            integer("watched"),
        ],
    },
    CopiedTable {
        name: "discovered_runs",
        key: 2,
        is_numbered: false,
        columns: &[
            integer("discovery"),
            text("run_id"),
            integer("attempt"),
            integer("ended_at"),
            integer("round"),
            integer("seen_at"),
        ],
    },
    CopiedTable {
        name: "past_durations",
        key: 2,
        is_numbered: false,
        columns: &[
            text("provider"),
            text("run_group"),
            integer("newest_at"),
            text("ran_ms"),
        ],
    },
];

/// The values of a column in some rows.
#[derive(Debug, Clone)]
pub(super) enum ColumnValues {
    Integers(Vec<Option<i64>>),
    Booleans(Vec<Option<bool>>),
    Texts(Vec<Option<String>>),
}

/// Some rows of a table, by columns.
#[derive(Debug, Clone)]
pub(super) struct RowBatch {
    pub(super) columns: Vec<ColumnValues>,
    pub(super) rows: usize,
    bytes: usize,
}

impl RowBatch {
    /// Without rows.
    pub(super) fn new(table: &CopiedTable) -> Self {
        let empty = |column: &CopiedColumn| match column.kind {
            ColumnKind::Integer => ColumnValues::Integers(Vec::new()),
            ColumnKind::Boolean => ColumnValues::Booleans(Vec::new()),
            ColumnKind::Text => ColumnValues::Texts(Vec::new()),
        };
        Self {
            columns: table.columns.iter().map(empty).collect(),
            rows: 0,
            bytes: 0,
        }
    }

    /// Adds a row, whose values `read` returns by the numbers of their columns.
    ///
    /// # Errors
    /// When a value cannot be read; the batch cannot be used then.
    pub(super) fn add<E>(&mut self, row: &impl ReadColumn<Error = E>) -> Result<(), E> {
        for (number, column) in self.columns.iter_mut().enumerate() {
            self.bytes += size_of::<Option<i64>>();
            match column {
                ColumnValues::Integers(values) => values.push(row.integer(number)?),
                ColumnValues::Booleans(values) => values.push(row.boolean(number)?),
                ColumnValues::Texts(values) => {
                    let value = row.text(number)?.map(|text| match text.contains('\0') {
                        true => storable(&text).into_owned(),
                        false => text,
                    });
                    self.bytes += value.as_ref().map_or(0, String::len);
                    values.push(value);
                }
            }
        }
        self.rows += 1;
        Ok(())
    }

    /// Whether no further row fits.
    pub(super) fn is_full(&self) -> bool {
        self.rows >= BATCH_ROWS || self.bytes >= BATCH_BYTES
    }
}

/// A row of a database, whose columns are read by number.
pub(super) trait ReadColumn {
    /// Why a column cannot be read.
    type Error;

    /// A number.
    ///
    /// # Errors
    /// When it is not one.
    fn integer(&self, column: usize) -> Result<Option<i64>, Self::Error>;

    /// A truth value.
    ///
    /// # Errors
    /// When it is not one.
    fn boolean(&self, column: usize) -> Result<Option<bool>, Self::Error>;

    /// A text.
    ///
    /// # Errors
    /// When it is not one.
    fn text(&self, column: usize) -> Result<Option<String>, Self::Error>;
}

/// The numbers that were given last, of the tables that number their rows. They are in the order of [`TABLES`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LastNumbers(pub(super) Vec<i64>);

/// The tables that number their rows, in order, each with the name of its number.
pub(super) fn numbered_tables() -> impl Iterator<Item = (&'static str, &'static str)> {
    TABLES
        .iter()
        .filter(|table| table.is_numbered)
        .map(|table| (table.name, table.columns[0].name))
}

/// What becomes of a store that is copied, as it is written into it: no daemon starts on a store with such a note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MoveNote {
    pub(super) state: MoveState,
    /// The other store, for people; no secrets.
    pub(super) place: String,
    /// Which copy it was.
    pub(super) copy: String,
}

impl MoveNote {
    /// Why the store cannot be used.
    pub(super) fn into_error(self) -> StoreError {
        match self.state {
            MoveState::Moved => StoreError::Moved { to: self.place },
            MoveState::Arriving => StoreError::Incomplete { from: self.place },
        }
    }
}

/// Which end of a copy a store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MoveState {
    /// It was copied to another place, which is used now.
    Moved,
    /// It holds a copy whose source was not marked yet.
    Arriving,
}

impl MoveState {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Moved => "moved",
            Self::Arriving => "arriving",
        }
    }

    /// The state of a word; any other word means that the store must not be used either.
    pub(super) fn read(word: &str) -> Self {
        if word == Self::Arriving.as_str() {
            Self::Arriving
        } else {
            Self::Moved
        }
    }
}

/// What is added to the version of the tables of a store with a note. So every program refuses it, also those that do
/// not know such notes.
pub(super) const NOTED_VERSION: u32 = 1_000_000;
