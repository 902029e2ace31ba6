//! The server that tests/cluster/run started.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use proptest::test_runner::{Config, TestRunner};
use runwatch::store::{PostgresSettings, Store, StoreError};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

use crate::contract::{Place, close};

/// How the server is reached.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Way {
    /// Directly.
    Direct,
    /// Through PgBouncer, which gives each transaction another connection.
    Pooled,
    /// Over TCP and TLS, with a password.
    Tls,
    /// Directly, a database whose collation is English.
    English,
}

/// How long statements may take: much longer than they do, because the machine may be busy.
const LIMIT: Duration = Duration::from_secs(20);

/// The socket of the server.
pub(crate) fn socket() -> PathBuf {
    std::env::var_os("RUNWATCH_TEST_SOCKET")
        .expect("tests/cluster/run sets it")
        .into()
}

/// The folder with the files of the server.
pub(crate) fn folder() -> PathBuf {
    std::env::var_os("RUNWATCH_TEST_FOLDER")
        .expect("tests/cluster/run sets it")
        .into()
}

/// The folder of the programs of the server's version.
pub(crate) fn programs() -> PathBuf {
    std::env::var_os("RUNWATCH_TEST_PROGRAMS")
        .expect("tests/cluster/run sets it")
        .into()
}

/// Settings with a schema that no other test has.
pub(crate) fn settings(way: Way, name: &str) -> PostgresSettings {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let variable = match way {
        Way::Direct => "RUNWATCH_TEST_POSTGRES",
        Way::Pooled => "RUNWATCH_TEST_PGBOUNCER",
        Way::English => "RUNWATCH_TEST_ENGLISH",
        Way::Tls => "RUNWATCH_TEST_TLS",
    };
    let url = std::env::var(variable)
        .unwrap_or_else(|_unset| panic!("{variable} is not set: run tests/cluster/run"));
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    PostgresSettings {
        url: SecretString::from(url),
        url_file: None,
        // A schema name has at most 63 bytes.
        schema: format!("t{number}_{}", &name[..name.len().min(40)]),
        ca_file: None,
        migrate: true,
        statement_limit: LIMIT,
        name: format!("test-{number}"),
    }
}

/// A schema of the server.
pub(crate) struct InSchema(pub(crate) PostgresSettings);

impl Place for InSchema {
    async fn open(&self) -> (Store, JoinSet<()>) {
        let (store, server) = Store::postgres(&self.0).unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(server.run());
        reach(&store).await;
        store.take_up().await.unwrap();
        (store, tasks)
    }

    async fn rows_of(&self, table: &str) -> i64 {
        let sql = format!("SELECT count(*) FROM {}.{table}", self.0.schema);
        let (client, _connection) = connect(&self.0).await;
        let rows = client.query_typed(&sql, &[]).await.unwrap();
        rows[0].get(0)
    }
}

/// A place that no other test has, reached directly.
pub(crate) fn direct(name: &str) -> InSchema {
    InSchema(settings(Way::Direct, name))
}

/// A place that no other test has, reached through the pooler.
pub(crate) fn pooled(name: &str) -> InSchema {
    InSchema(settings(Way::Pooled, name))
}

/// How long something may take that surely happens.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Looks again until there is a value, and returns it.
pub(crate) async fn eventually<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, found).await.unwrap()
}

/// Waits until a store can be written.
pub(crate) async fn reach(store: &Store) {
    eventually(async || match store.probe().await {
        Ok(()) => Some(()),
        Err(StoreError::OutOfReach { .. }) => None,
        Err(error) => panic!("{error:?}"),
    })
    .await;
}

/// A store and its tasks; nothing needs to be reached.
pub(crate) fn start(settings: &PostgresSettings) -> (Store, JoinSet<()>) {
    let (store, server) = Store::postgres(settings).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(server.run());
    (store, tasks)
}

/// Waits for the error that is not only that no connection was tried yet.
pub(crate) async fn refusal(store: &Store) -> StoreError {
    eventually(async || match store.probe().await {
        Err(StoreError::OutOfReach { why }) if why.contains("not connected yet") => None,
        Err(error) => Some(error),
        Ok(()) => panic!("it can be written"),
    })
    .await
}

/// The role of tests/cluster/with-server that owns nothing.
pub(crate) const WORKER: &str = "worker";

/// Makes the tables as their owner, grants [`WORKER`] what its refusal names, and returns settings with that role.
pub(crate) async fn granted(owner: &PostgresSettings) -> PostgresSettings {
    let (store, tasks) = InSchema(owner.clone()).open().await;
    close(store, tasks).await;
    let worker = elsewhere(owner, "runwatch@", &format!("{WORKER}@"));
    let (store, tasks) = start(&worker);
    let probed = eventually(async || match store.probe().await {
        Err(StoreError::OutOfReach { .. }) => None,
        probed => Some(probed),
    });
    if let Err(error) = probed.await {
        let (client, _connection) = connect(owner).await;
        client.batch_execute(&grant_of(&error)).await.unwrap();
    }
    close(store, tasks).await;
    worker
}

/// The statements that a refusal names.
pub(crate) fn grant_of(error: &StoreError) -> String {
    assert!(matches!(error, StoreError::Unusable(_)), "{error:?}");
    let shown = error.to_string();
    let grant = shown.split('`').nth(1);
    grant.unwrap_or_else(|| panic!("{shown}")).to_owned()
}

/// A schema of the server whose tables belong to another role than that of the store, which has only the rights that a
/// daemon needs.
pub(crate) struct Granted(InSchema);

impl Place for Granted {
    async fn open(&self) -> (Store, JoinSet<()>) {
        InSchema(granted(&self.0.0).await).open().await
    }

    async fn rows_of(&self, table: &str) -> i64 {
        self.0.rows_of(table).await
    }
}

/// A place that no other test has, whose tables belong to another role.
pub(crate) fn unowned(name: &str) -> Granted {
    Granted(direct(name))
}

/// Settings with another address, in which `from` stands as `to`.
pub(crate) fn elsewhere(settings: &PostgresSettings, from: &str, to: &str) -> PostgresSettings {
    let url = settings.url.expose_secret();
    assert!(url.contains(from), "{from}");
    PostgresSettings {
        url: SecretString::from(url.replace(from, to)),
        ..settings.clone()
    }
}

/// A connection of its own to the server of a store, which closes when the set is dropped.
pub(crate) async fn connect(settings: &PostgresSettings) -> (Client, JoinSet<()>) {
    let url = settings.url.expose_secret();
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    let mut task = JoinSet::new();
    task.spawn(async { drop(connection.await) });
    (client, task)
}

/// What plays `cases` random sequences on one thread, so that all of a round is handed over before the writer takes any.
pub(crate) fn in_rounds(cases: u32) -> (Runtime, TestRunner) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let runner = TestRunner::new(Config {
        max_shrink_iters: 100,
        failure_persistence: None,
        ..Config::with_cases(cases)
    });
    (runtime, runner)
}
