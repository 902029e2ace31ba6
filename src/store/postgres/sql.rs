//! Statements in PostgreSQL, and the trait of the operations that make them.
//!
//! Every statement is unnamed and takes one round trip, because poolers such as PgBouncer before 1.21 hand the next
//! transaction to another server process, which does not know the statements that were prepared before
//! (pgbouncer.org/faq, "How to use prepared statements with transaction pooling").

use std::borrow::Cow;
use std::sync::Arc;

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use super::connection::{CommitError, Link};
use crate::store::model::{Added, StoreError, WatchId};
use crate::store::operations::{AddWatch, RecordAttempt, RecordStep, StoreOperation};

/// A parameter with its type.
pub(super) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// A value whose type in PostgreSQL is known.
pub(super) trait Value: ToSql + Sync {
    /// The type.
    const TYPE: Type;
}

macro_rules! values {
    ($($rust:ty => $sql:ident / $array:ident),* $(,)?) => {$(
        impl Value for $rust {
            const TYPE: Type = Type::$sql;
        }
        impl Value for Option<$rust> {
            const TYPE: Type = Type::$sql;
        }
        impl Value for Vec<$rust> {
            const TYPE: Type = Type::$array;
        }
        impl Value for &[$rust] {
            const TYPE: Type = Type::$array;
        }
        impl Value for Vec<Option<$rust>> {
            const TYPE: Type = Type::$array;
        }
    )*};
}
values! {
    i64 => INT8 / INT8_ARRAY,
    bool => BOOL / BOOL_ARRAY,
    String => TEXT / TEXT_ARRAY,
    &str => TEXT / TEXT_ARRAY,
    Cow<'_, str> => TEXT / TEXT_ARRAY,
}

/// A value as a parameter.
pub(super) fn parameter<T: Value>(value: &T) -> Parameter<'_> {
    (value, T::TYPE)
}

/// A value of each item, in order.
pub(super) fn each<'a, T, V>(items: &'a [T], value: impl FnMut(&'a T) -> V) -> Vec<V> {
    items.iter().map(value).collect()
}

/// Parameters of a statement, in order.
macro_rules! parameters {
    ($($value:expr),* $(,)?) => {
        &[$($crate::store::postgres::sql::parameter(&$value)),*]
    };
}
pub(super) use parameters;

/// How much more the wall clock shows than the times of next attempts in the store, in milliseconds.
macro_rules! stepped {
    () => {
        "(SELECT stepped_ms FROM runwatch.clock)"
    };
}
pub(super) use stepped;

/// The columns of the large values of a watch or an event: its input, then its output.
macro_rules! payloads {
    ($row:literal) => {
        concat!(
            "(SELECT p.body FROM runwatch.payloads p WHERE p.id = ",
            $row,
            ".input_id), (SELECT p.body FROM runwatch.payloads p WHERE p.id = ",
            $row,
            ".output_id)"
        )
    };
}
pub(super) use payloads;

/// The schema that has the tables. In the texts of statements it is `runwatch`.
#[derive(Debug, Clone)]
pub(in crate::store) struct Schema {
    name: Arc<str>,
    quoted: Arc<str>,
}

impl Schema {
    /// The schema of this name.
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            quoted: format!("\"{}\".", name.replace('"', "\"\"")).into(),
        }
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// A statement with the name of the schema.
    pub(super) fn place<'a>(&self, sql: &'a str) -> Cow<'a, str> {
        if &*self.name == "runwatch" {
            Cow::Borrowed(sql)
        } else {
            Cow::Owned(sql.replace("runwatch.", &self.quoted))
        }
    }
}

/// A connection inside a transaction.
#[derive(Clone, Copy)]
pub(in crate::store) struct Db<'a> {
    link: &'a Link,
    schema: &'a Schema,
    marks: bool,
}

impl<'a> Db<'a> {
    /// Of a connection. With `marks`, operations mark what they change, so that the leader looks at it.
    pub(super) fn new(link: &'a Link, schema: &'a Schema, marks: bool) -> Self {
        Self {
            link,
            schema,
            marks,
        }
    }

    /// The connection.
    pub(super) fn client(&self) -> &'a Client {
        self.link.client()
    }

    /// Commits, as [`Link::commit`].
    ///
    /// # Errors
    /// When the server does not confirm that the transaction is kept.
    pub(super) async fn commit(&self) -> Result<(), CommitError> {
        self.link.commit().await
    }

    /// Whether operations mark what they change.
    pub(super) fn marks(&self) -> bool {
        self.marks
    }

    /// The name of the schema.
    pub(super) fn schema(&self) -> &'a Schema {
        self.schema
    }

    /// Runs a statement, and returns its rows. The statement is sent when this is polled first.
    ///
    /// # Errors
    /// When it fails.
    pub(super) async fn rows(
        &self,
        sql: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, StoreError> {
        let sql = self.schema.place(sql);
        Ok(self.client().query_typed(&sql, parameters).await?)
    }

    /// As [`Db::rows`], of a statement that returns one row at most.
    ///
    /// # Errors
    /// When it fails.
    pub(super) async fn row(
        &self,
        sql: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.rows(sql, parameters).await?.into_iter().next())
    }

    /// As [`Db::rows`], with each row read by `read`.
    ///
    /// # Errors
    /// When it fails, or a row cannot be read.
    pub(super) async fn read_all<T>(
        &self,
        sql: &str,
        parameters: &[Parameter<'_>],
        read: impl Fn(&Row) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        self.rows(sql, parameters).await?.iter().map(read).collect()
    }

    /// Runs statements without parameters and results.
    ///
    /// # Errors
    /// When one fails.
    pub(super) async fn batch(&self, sql: &str) -> Result<(), StoreError> {
        Ok(self.client().batch_execute(&self.schema.place(sql)).await?)
    }

    /// Runs a read in a transaction that begins with `begin` and is rolled back, in one round trip: all is sent when this
    /// is polled first.
    ///
    /// # Errors
    /// When one of its statements fails.
    pub(super) async fn read_within<T>(
        &self,
        begin: &str,
        read: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let (began, read, ended) =
            futures_util::future::join3(self.batch(begin), read, self.batch("ROLLBACK")).await;
        began?;
        let read = read?;
        ended.map(|()| read)
    }

    /// Runs a statement, and returns how many rows it changed.
    ///
    /// # Errors
    /// When it fails.
    pub(super) async fn execute(
        &self,
        sql: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<u64, StoreError> {
        let sql = self.schema.place(sql);
        Ok(self.client().execute_typed(&sql, parameters).await?)
    }
}

/// An operation in PostgreSQL.
pub(in crate::store) trait Perform: StoreOperation + Sync {
    /// Whether it is one statement: it may be sent before the replies to those before it have come.
    const PIPELINED: bool = false;

    /// Performs it inside a transaction. It may be performed again, in another transaction, where that one failed.
    ///
    /// # Errors
    /// When it fails. With [`StoreError::Precondition`] it has changed nothing; otherwise the transaction must be
    /// rolled back.
    fn perform(&self, db: &Db<'_>) -> impl Future<Output = Result<Self::Reply, StoreError>> + Send;

    /// What it is, where one statement may do it together with others.
    fn combinable(&self) -> Option<Combinable<'_>> {
        None
    }

    /// The result of such an operation, from the reply to what it is.
    fn read_reply(_reply: CombinedReply) -> Option<Result<Self::Reply, StoreError>> {
        None
    }
}

/// An operation that one statement may do together with others of its kind.
pub(in crate::store) enum Combinable<'a> {
    Addition(&'a AddWatch),
    Step(&'a RecordStep),
    Attempt(&'a RecordAttempt),
}

/// The reply to one.
pub(in crate::store) enum CombinedReply {
    Added((Added, WatchId)),
    /// A step or an attempt is stored, or a precondition did not hold.
    Done(Result<(), StoreError>),
}

impl CombinedReply {
    /// That to an addition.
    pub(super) fn added<E>(self) -> Option<Result<(Added, WatchId), E>> {
        match self {
            Self::Added(added) => Some(Ok(added)),
            Self::Done(_) => None,
        }
    }

    /// That to a step or an attempt.
    pub(super) fn done(self) -> Option<Result<(), StoreError>> {
        match self {
            Self::Done(done) => Some(done),
            Self::Added(_) => None,
        }
    }
}
