//! What PostgreSQL's errors mean for the store.

use std::sync::Arc;

use tokio_postgres::Error;
use tokio_postgres::error::{DbError, Severity, SqlState};

use crate::store::model::{DatabaseError, StoreError};
use crate::text::{error_chain, one_line};

/// The constraint of the tables of a store that was moved.
pub(super) const MOVED: &str = "the_store_was_moved";

/// How a standby refuses a transaction that is to write (check_transaction_read_only in PostgreSQL 15,
/// src/backend/commands/variable.c). A connection to a pooler stays where its server becomes a standby.
const READ_WRITE_IN_RECOVERY: SqlState = SqlState::FEATURE_NOT_SUPPORTED;

/// The longest text of an error of the server, in characters.
const WHY_CHARS: usize = 300;

impl From<Error> for StoreError {
    /// What came of a statement. Where the server or the way to it failed, it is out of reach; any other error is a
    /// defect of the statement or its data.
    fn from(error: Error) -> Self {
        match error.as_db_error() {
            Some(reported) if is_of_server(reported.code()) => out_of_reach(&error),
            Some(reported) if reported.constraint() == Some(MOVED) => Self::Moved {
                to: "another place".to_owned(),
            },
            Some(reported) if *reported.code() == SqlState::INSUFFICIENT_PRIVILEGE => {
                Self::Unusable(one_line(reported.message(), WHY_CHARS))
            }
            Some(_) => Self::Database(Arc::new(error)),
            None if is_of_data(&error) => Self::Database(Arc::new(error)),
            None => out_of_reach(&error),
        }
    }
}

/// Whether a parameter or a column could not be converted, which is no fault of the connection.
fn is_of_data(error: &Error) -> bool {
    let text = error.to_string();
    [
        "error serializing",
        "error deserializing",
        "invalid column",
        "error encoding",
    ]
    .iter()
    .any(|beginning| text.starts_with(beginning))
}

/// The error of a server that cannot be reached, or does not do what is wanted now.
pub(super) fn out_of_reach(error: &Error) -> StoreError {
    let why = match error.as_db_error() {
        Some(reported)
            if [SqlState::READ_ONLY_SQL_TRANSACTION, READ_WRITE_IN_RECOVERY]
                .contains(reported.code()) =>
        {
            "the server answers but is read-only".to_owned()
        }
        Some(reported) => one_line(reported.message(), WHY_CHARS),
        None => one_line(&error_chain(error), WHY_CHARS),
    };
    // The words of the client for a server that is not the primary.
    let why = match why.contains("database does not allow writes") {
        true => "the server answers but is read-only".to_owned(),
        false => why,
    };
    StoreError::OutOfReach { why }
}

/// Whether it was the server or the connection that failed, not the statement (postgresql.org/docs/15/errcodes-appendix).
fn is_of_server(code: &SqlState) -> bool {
    let server = [
        SqlState::QUERY_CANCELED,
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::READ_ONLY_SQL_TRANSACTION,
        READ_WRITE_IN_RECOVERY,
        SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
    ];
    // Classes: connection exception, insufficient resources, operator intervention, system error, authorization, and
    // a database that is not there.
    let classes = ["08", "53", "57", "58", "28", "3D"];
    server.contains(code) || classes.iter().any(|class| code.code().starts_with(class))
}

/// Whether the transaction failed only because of others that ran at the same time, so that it may succeed alone.
pub(super) fn is_conflict(error: &StoreError) -> bool {
    let codes = [
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::T_R_DEADLOCK_DETECTED,
    ];
    reported(error).is_some_and(|error| codes.contains(error.code()))
}

/// Whether the tables, or their schema, are not there.
pub(super) fn is_missing(error: &StoreError) -> bool {
    let codes = [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME];
    reported(error).is_some_and(|error| codes.contains(error.code()))
}

fn reported(error: &StoreError) -> Option<&DbError> {
    let StoreError::Database(source) = error else {
        return None;
    };
    let source: &DatabaseError = source;
    source.downcast_ref::<Error>()?.as_db_error()
}

/// What a failed commit means: whether the transaction was surely undone.
pub(super) fn is_undone(error: &Error) -> bool {
    // A fatal error may come after the transaction was committed, as where the wait for a standby is ended.
    error
        .as_db_error()
        .is_some_and(|reported| reported.parsed_severity() == Some(Severity::Error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_takes_no_writes_is_out_of_reach() {
        for code in [
            "25006", "0A000", "57P01", "08006", "53100", "28P01", "3D000",
        ] {
            assert!(is_of_server(&SqlState::from_code(code)), "{code}");
        }
        for code in ["23505", "42501", "42P01", "40001", "22021"] {
            assert!(!is_of_server(&SqlState::from_code(code)), "{code}");
        }
    }
}
