//! Servers and databases that cannot hold the store, and connections that are lost at the worst moments.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use runwatch::domain::{FoundBy, Progress, RunRef, SinkName, TraceContext, Watch};
use runwatch::simulator::Receiver;
use runwatch::store::{
    Added, Candidate, DeliveryFilter, DeliveryState, HolderId, Keeper, PostgresSettings, StoreError,
};
use secrecy::SecretString;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::Child;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

use crate::contract::{Place, close, routed_to, step, time, watch};
use crate::copy::program;
use crate::postgres::{Postgres, Stop};
use crate::server::{
    InSchema, SOON, Way, connect, elsewhere, eventually, folder, reach, refusal, settings, start,
};
use crate::small::SmallPostgres;

#[tokio::test]
async fn a_database_that_cannot_hold_the_store_is_named_with_what_to_do() {
    let usual = settings(Way::Direct, "unusable");
    let (client, _connection) = connect(&usual).await;
    client
        .batch_execute("CREATE ROLE weak LOGIN")
        .await
        .unwrap();
    let unmade = PostgresSettings {
        migrate: false,
        ..usual.clone()
    };
    for (settings, wanted) in [
        (elsewhere(&usual, "/runwatch?", "/latin?"), "UTF8"),
        (elsewhere(&usual, "runwatch@", "weak@"), "CREATE SCHEMA"),
    ] {
        let (store, tasks) = start(&settings);
        let error = refusal(&store).await;
        let shown = error.to_string();
        assert!(matches!(error, StoreError::Unusable(_)), "{error:?}");
        assert!(shown.contains(wanted), "{shown}");
        close(store, tasks).await;
    }
    let (store, tasks) = start(&unmade);
    let error = refusal(&store).await;
    assert!(
        matches!(error, StoreError::OldTables { found: 0, .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("runwatch store migrate"));
    close(store, tasks).await;
    for (from, to) in [("/runwatch?", "/absent?"), ("?host=", "?host=/nowhere")] {
        let (store, tasks) = start(&elsewhere(&usual, from, to));
        let error = refusal(&store).await;
        assert!(matches!(error, StoreError::OutOfReach { .. }), "{error:?}");
        close(store, tasks).await;
    }
}

#[tokio::test]
async fn a_schema_that_its_owner_made_is_enough() {
    let settings = settings(Way::Direct, "granted");
    let (client, _connection) = connect(&settings).await;
    let make = format!(
        "CREATE ROLE granted LOGIN; CREATE SCHEMA {} AUTHORIZATION granted",
        settings.schema
    );
    client.batch_execute(&make).await.unwrap();
    let place = InSchema(elsewhere(&settings, "runwatch@", "granted@"));
    let (store, tasks) = place.open().await;
    store.add_watch(watch("run_1")).await.unwrap();
    close(store, tasks).await;
}

#[tokio::test]
async fn tables_of_a_newer_version_are_used_only_if_they_say_so() {
    let settings = settings(Way::Direct, "newer");
    let (store, tasks) = InSchema(settings.clone()).open().await;
    store.add_watch(watch("run_1")).await.unwrap();
    close(store, tasks).await;
    let (client, _connection) = connect(&settings).await;
    let set = |compatible_from: i64| {
        format!(
            "UPDATE {}.schema SET version = 99, compatible_from = {compatible_from}",
            settings.schema
        )
    };
    client.batch_execute(&set(99)).await.unwrap();
    let (store, tasks) = start(&settings);
    let error = refusal(&store).await;
    assert!(
        matches!(error, StoreError::Newer { found: 99, .. }),
        "{error:?}"
    );
    close(store, tasks).await;
    client.batch_execute(&set(1)).await.unwrap();
    let (store, tasks) = InSchema(settings).open().await;
    assert_eq!(store.counts().await.unwrap().active, 1);
    close(store, tasks).await;
}

#[tokio::test]
async fn tables_of_the_version_before_get_what_they_lack_beside_a_daemon_that_uses_them() {
    let settings = settings(Way::Direct, "older");
    let (store, tasks) = InSchema(settings.clone()).open().await;
    store.add_watch(watch("run_1")).await.unwrap();
    close(store, tasks).await;
    let (older, _connection) = connect(&settings).await;
    let schema = &settings.schema;
    let undo = format!(
        "ALTER TABLE {schema}.watches DROP COLUMN trace; ALTER TABLE {schema}.leases DROP COLUMN timeline;
         UPDATE {schema}.schema SET version = 1"
    );
    older.batch_execute(&undo).await.unwrap();
    // As a daemon of that version does, with a statement that it prepared before.
    let insert = format!(
        "INSERT INTO {schema}.watches (run_id, labels, added_at, deadline_at) VALUES ($1, '{{}}', 0, 0)"
    );
    let insert = older.prepare(&insert).await.unwrap();
    let select = format!("SELECT id, run_id FROM {schema}.watches WHERE run_id = $1");
    let select = older.prepare(&select).await.unwrap();
    older.execute(&insert, &[&"run_2"]).await.unwrap();

    let (store, tasks) = InSchema(settings.clone()).open().await;
    let traced = Watch {
        trace: TraceContext::read(
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "",
        ),
        ..watch("run_3")
    };
    store.add_watch(traced.clone()).await.unwrap();
    older.execute(&insert, &[&"run_4"]).await.unwrap();
    for (run, trace) in [
        ("run_1", None),
        ("run_2", None),
        ("run_3", traced.trace),
        ("run_4", None),
    ] {
        let known = store.watch(RunRef::new(run).unwrap()).await.unwrap();
        assert_eq!(known.unwrap().watch.trace, trace, "{run}");
        assert_eq!(older.query(&select, &[&run]).await.unwrap().len(), 1);
    }
    let versions = format!("SELECT version, compatible_from FROM {schema}.schema");
    let row = older.query_one(&versions, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (3, 1));
    close(store, tasks).await;
}

#[tokio::test]
async fn a_server_that_is_read_only_is_left_and_used_again_when_it_takes_writes() {
    let usual = settings(Way::Direct, "standby");
    let (client, _connection) = connect(&usual).await;
    client
        .batch_execute("CREATE DATABASE standby TEMPLATE template0")
        .await
        .unwrap();
    let settings = elsewhere(&usual, "/runwatch?", "/standby?");
    let (store, tasks) = InSchema(settings.clone()).open().await;
    store.add_watch(watch("run_1")).await.unwrap();
    // As after a switch of the primary: the sessions that are there become read-only, and new ones are.
    client
        .batch_execute(
            "ALTER DATABASE standby SET default_transaction_read_only = on;
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'standby'",
        )
        .await
        .unwrap();
    eventually(async || match store.add_watch(watch("run_2")).await {
        Err(StoreError::OutOfReach { why }) if why.contains("read-only") => Some(()),
        Err(StoreError::OutOfReach { .. } | StoreError::Unknown) => None,
        other => panic!("{other:?}"),
    })
    .await;
    client
        .batch_execute("ALTER DATABASE standby SET default_transaction_read_only = off")
        .await
        .unwrap();
    reach(&store).await;
    assert_eq!(store.add_watch(watch("run_2")).await.unwrap().0, Added::New);
    close(store, tasks).await;
}

#[tokio::test]
async fn connections_that_the_server_ends_are_made_again() {
    let settings = settings(Way::Direct, "ended");
    let (store, tasks) = InSchema(settings.clone()).open().await;
    let (client, _connection) = connect(&settings).await;
    for number in 0..20 {
        let run = watch(&format!("run_{number}"));
        client
            .batch_execute(&format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE application_name LIKE 'runwatch/{}/%'",
                settings.name
            ))
            .await
            .unwrap();
        eventually(async || match store.add_watch(run.clone()).await {
            Ok(_) => Some(()),
            // Where the outcome is not known, it may be stored; the next attempt shows.
            Err(StoreError::OutOfReach { .. } | StoreError::Unknown) => None,
            Err(error) => panic!("{error:?}"),
        })
        .await;
        // A read is tried again on a new connection by itself.
        let count = timeout(SOON, store.counts()).await.unwrap();
        assert_eq!(count.unwrap().active, number + 1);
    }
    close(store, tasks).await;
}

#[tokio::test]
async fn a_job_that_fails_fails_alone() {
    let settings = settings(Way::Pooled, "alone");
    let (store, tasks) = InSchema(settings.clone()).open().await;
    let failing = watch("run_1");
    let (_, id) = store.add_watch(failing.clone()).await.unwrap();
    let failed = step(&failing, &Progress::begin(time(0)), "failed", time(2));
    let routed = routed_to(&failed, &["ops"]);
    store
        .record_step(id, failed, routed, None, FoundBy::Poll, time(2))
        .await
        .unwrap();
    let (client, _connection) = connect(&settings).await;
    let damage = format!("UPDATE {}.events SET body = 'damaged'", settings.schema);
    client.batch_execute(&damage).await.unwrap();
    let ops = SinkName::new("ops").unwrap();
    for number in 2..6 {
        let (before, claimed, after) = tokio::join!(
            store.add_watch(watch(&format!("run_before_{number}"))),
            store.claim_due(ops.clone(), time(9), 10, usize::MAX),
            store.add_watch(watch(&format!("run_after_{number}"))),
        );
        assert!(
            matches!(claimed, Err(StoreError::Unreadable { .. })),
            "{claimed:?}"
        );
        assert_eq!(before.unwrap().0, Added::New);
        assert_eq!(after.unwrap().0, Added::New);
    }
    let left = store.deliveries(DeliveryFilter::default(), 10).await;
    let left = left.unwrap().items;
    assert_eq!(
        (left[0].state, left[0].attempts),
        (DeliveryState::Pending, 0),
        "the claim was undone"
    );
    close(store, tasks).await;
}

#[tokio::test]
async fn a_lock_that_is_held_too_long_is_not_waited_for() {
    let mut settings = settings(Way::Direct, "locked");
    settings.statement_limit = Duration::from_secs(1);
    let (store, tasks) = InSchema(settings.clone()).open().await;
    let run = watch("run_1");
    store.add_watch(run.clone()).await.unwrap();
    let (client, _connection) = connect(&settings).await;
    let lock = format!(
        "BEGIN; SELECT 1 FROM {}.watches FOR UPDATE",
        settings.schema
    );
    client.batch_execute(&lock).await.unwrap();
    let removed = timeout(SOON, store.remove_watches(run.run_id.clone(), false)).await;
    assert!(
        matches!(removed, Ok(Err(StoreError::OutOfReach { .. }))),
        "{removed:?}"
    );
    client.batch_execute("ROLLBACK").await.unwrap();
    reach(&store).await;
    let removed = store.remove_watches(run.run_id, false).await.unwrap();
    assert_eq!(removed.len(), 1);
    close(store, tasks).await;
}

#[tokio::test]
async fn the_certificate_of_a_server_is_checked() {
    let far = settings(Way::Tls, "tls");
    let with = |ca_file: &str| PostgresSettings {
        ca_file: Some(folder().join(ca_file)),
        ..far.clone()
    };
    let (store, tasks) = InSchema(with("authority.pem")).open().await;
    assert_eq!(store.add_watch(watch("run_1")).await.unwrap().0, Added::New);
    close(store, tasks).await;
    let by_address = elsewhere(&with("authority.pem"), "@localhost:", "@127.0.0.1:");
    let without_tls = elsewhere(&with("authority.pem"), "sslmode=require", "sslmode=disable");
    let wrong_password = elsewhere(&with("authority.pem"), "remote:p", "remote:q");
    for (settings, wanted) in [
        (with("other.pem"), "certificate"),
        (with("absent.pem"), "absent.pem"),
        (by_address, "certificate"),
        (without_tls, "pg_hba.conf"),
        (wrong_password, "password authentication failed"),
    ] {
        let (store, tasks) = start(&settings);
        let error = refusal(&store).await;
        let shown = error.to_string();
        assert!(matches!(error, StoreError::OutOfReach { .. }), "{error:?}");
        assert!(shown.contains(wanted) && shown.contains(':'), "{shown}");
        assert!(!shown.contains("p/w"), "{shown}");
        close(store, tasks).await;
    }
}

/// Where a [`Proxy`] cuts a connection, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// A statement with this text does not reach the server.
    Before(&'static str),
    /// A statement with this text reaches the server, and its reply does not come back.
    After(&'static str),
}

/// A proxy between the store and the server.
struct Proxy {
    cut: Arc<Mutex<Option<Cut>>>,
    folder: tempfile::TempDir,
    _tasks: JoinSet<()>,
}

impl Proxy {
    fn start() -> Self {
        let socket = tempfile::tempdir().unwrap();
        let server = crate::server::socket();
        let listener = UnixListener::bind(socket.path().join(server.file_name().unwrap())).unwrap();
        let cut = Arc::new(Mutex::new(None));
        let (cuts, mut tasks) = (Arc::clone(&cut), JoinSet::new());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(forward(client, server.clone(), Arc::clone(&cuts)));
            }
        });
        Self {
            cut,
            folder: socket,
            _tasks: tasks,
        }
    }

    fn cut(&self, cut: Cut) {
        *self.cut.lock().unwrap() = Some(cut);
    }
}

/// Copies bytes between a client and the server until one of them ends, or a cut is due.
async fn forward(mut client: UnixStream, server: PathBuf, cuts: Arc<Mutex<Option<Cut>>>) {
    let Ok(mut server) = UnixStream::connect(server).await else {
        return;
    };
    let (mut sent, mut received) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        tokio::select! {
            count = client.read(&mut sent) => {
                let Some(count) = count.ok().filter(|count| *count > 0) else { return };
                let sent = &sent[..count];
                let has = |text: &str| sent.windows(text.len()).any(|part| part == text.as_bytes());
                let due = cuts.lock().unwrap().take_if(|cut| match cut {
                    Cut::Before(text) | Cut::After(text) => has(text),
                });
                match due {
                    Some(Cut::Before(_)) => return,
                    Some(Cut::After(_)) => {
                        server.write_all(sent).await.unwrap();
                        // The server has done it once it replies.
                        let _count = server.read(&mut received).await.unwrap();
                        return;
                    }
                    None => if server.write_all(sent).await.is_err() { return },
                }
            }
            count = server.read(&mut received) => {
                let Some(count) = count.ok().filter(|count| *count > 0) else { return };
                if client.write_all(&received[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}

#[tokio::test]
async fn it_is_known_of_each_write_whether_it_counts_unless_the_commit_was_cut_off() {
    let usual = settings(Way::Direct, "cut");
    let proxy = Proxy::start();
    let here = format!("?host={}", folder().display());
    let there = format!("?host={}", proxy.folder.path().display());
    let place = InSchema(elsewhere(&usual, &here, &there));
    let (store, tasks) = place.open().await;
    for (number, (cut, stored)) in [
        (Cut::Before("INSERT INTO"), Some(false)),
        (Cut::After("INSERT INTO"), Some(false)),
        (Cut::Before("COMMIT\0"), None),
        (Cut::After("COMMIT\0"), None),
    ]
    .into_iter()
    .enumerate()
    {
        let run = watch(&format!("run_{number}"));
        proxy.cut(cut);
        let lost = timeout(SOON, store.add_watch(run.clone())).await.unwrap();
        match stored {
            Some(_) => assert!(
                matches!(lost, Err(StoreError::OutOfReach { .. })),
                "{cut:?}: {lost:?}"
            ),
            None => assert!(
                matches!(lost, Err(StoreError::Unknown)),
                "{cut:?}: {lost:?}"
            ),
        }
        reach(&store).await;
        let is_there = store.watch(run.run_id.clone()).await.unwrap().is_some();
        let wanted = stored.unwrap_or(cut == Cut::After("COMMIT\0"));
        assert_eq!(is_there, wanted, "{cut:?}");
        // Whatever came of it, the same addition can be made again.
        let again = store.add_watch(run).await.unwrap().0;
        assert_eq!(again == Added::AlreadyExists, wanted);
    }
    close(store, tasks).await;
}

#[tokio::test]
async fn a_new_password_in_the_file_of_the_address_needs_no_restart() {
    let server = Postgres::start();
    server.require_password("changing");
    server.sql("CREATE ROLE changing LOGIN PASSWORD 'password-1'");
    server.sql("GRANT CREATE ON DATABASE runwatch TO changing");
    let address = |password: &str, database: &str| {
        let port = server.port;
        format!("postgres://changing:{password}@127.0.0.1:{port}/{database}?sslmode=disable")
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("url");
    let change = |password: &str, database: &str| {
        server.sql(&format!("ALTER ROLE changing PASSWORD '{password}'"));
        std::fs::write(&file, address(password, database)).unwrap();
    };
    let cut = || {
        let ended = "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity WHERE usename = 'changing'";
        assert_ne!(server.sql(ended), "0");
    };
    change("password-1", "runwatch");
    let settings = PostgresSettings {
        url: SecretString::from(address("password-1", "runwatch")),
        url_file: Some(file.clone()),
        ..settings(Way::Direct, "changing")
    };
    let (store, tasks) = InSchema(settings).open().await;
    store.add_watch(watch("run_1")).await.unwrap();

    server.sql("ALTER ROLE changing PASSWORD 'password-2'");
    cut();
    let why = eventually(async || match store.add_watch(watch("run_2")).await {
        Err(StoreError::OutOfReach { why }) => why.contains("authentication").then_some(why),
        Err(StoreError::Unknown) => None,
        other => panic!("the old password counts: {other:?}"),
    })
    .await;
    assert!(!why.contains("password-"), "{why}");
    change("password-2", "runwatch");
    eventually(async || store.add_watch(watch("run_2")).await.ok()).await;
    assert!(store.figures().reconnects.get() > 0);

    // Another database would be another store: its address is not followed.
    change("password-1", "postgres");
    cut();
    let known = eventually(async || store.add_watch(watch("run_1")).await.ok()).await;
    assert_eq!(known.0, Added::AlreadyExists);
    close(store, tasks).await;
}

#[tokio::test]
async fn a_standby_refuses_a_transaction_that_is_to_write_with_the_code_that_is_known() {
    let primary = Postgres::start();
    let standby = primary.standby();
    let (client, connection) = tokio_postgres::connect(&standby.url(), NoTls)
        .await
        .unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(connection);
    let begin = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";
    let refused = client.batch_execute(begin).await.unwrap_err();
    // src/store/postgres/errors.rs counts it as a server that is out of reach.
    assert_eq!(
        refused.code(),
        Some(&SqlState::FEATURE_NOT_SUPPORTED),
        "{refused:?}"
    );
}

/// Cancels the wait of a commit for the synchronous standby, as soon as one waits.
async fn cancel_wait(server: &Postgres) {
    let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    eventually(async || (server.sql(cancel) == "t").then_some(())).await;
}

#[tokio::test]
async fn a_commit_that_the_standby_did_not_confirm_is_unknown() {
    let server = Postgres::start();
    let settings = PostgresSettings {
        url: SecretString::from(server.url()),
        ..settings(Way::Direct, "unconfirmed")
    };
    let (store, tasks) = InSchema(settings.clone()).open().await;
    let mut keeper = Keeper::new(&settings).unwrap();
    let seen = keeper.look().await.unwrap();
    let candidate = Candidate {
        holder: HolderId::random(),
        name: "a".to_owned(),
        version: "1".to_owned(),
        ttl: Duration::from_secs(15),
    };
    let term = keeper.take(&seen, &candidate).await.unwrap().unwrap();
    // No standby is there. Each commit waits for one until that is canceled, and is then on this server alone.
    server.wait_for_standby(true);
    let run = watch("run_1");
    let (added, ()) = tokio::join!(store.add_watch(run.clone()), cancel_wait(&server));
    assert!(matches!(added, Err(StoreError::Unknown)), "{added:?}");
    let (renewed, ()) = tokio::join!(keeper.renew(&term, ""), cancel_wait(&server));
    assert!(
        matches!(renewed, Err(StoreError::OutOfReach { .. })),
        "{renewed:?}"
    );
    server.wait_for_standby(false);
    let again = eventually(async || store.add_watch(run.clone()).await.ok()).await;
    assert_eq!(again.0, Added::AlreadyExists);
    eventually(async || keeper.renew(&term, "").await.ok()).await;
    close(store, tasks).await;
}

#[tokio::test]
async fn a_full_disk_refuses_what_it_cannot_keep_and_is_used_again() {
    let mut server = SmallPostgres::start();
    eventually(async || server.is_ready().then_some(())).await;
    let settings = PostgresSettings {
        url: SecretString::from(server.url()),
        ..settings(Way::Direct, "full")
    };
    let (store, tasks) = InSchema(settings).open().await;
    server.fill();
    // The tables have a little room of their own.
    let mut kept = Vec::new();
    let refused = eventually(async || {
        let mut run = watch(&format!("run_{}", kept.len()));
        let long = ("long".to_owned(), "x".repeat(1_000));
        run.labels.extend([long]);
        match store.add_watch(run.clone()).await {
            Ok(_) => {
                kept.push(run);
                None
            }
            Err(error) => Some(error),
        }
    })
    .await;
    let why = refused.to_string();
    assert!(
        matches!(refused, StoreError::OutOfReach { .. }) && why.contains("No space left"),
        "{refused:?}"
    );
    for run in &kept {
        assert!(store.watch(run.run_id.clone()).await.unwrap().is_some());
    }
    let lost = watch(&format!("run_{}", kept.len()));
    assert!(store.watch(lost.run_id.clone()).await.unwrap().is_none());
    server.free();
    let added = eventually(async || store.add_watch(lost.clone()).await.ok()).await;
    assert_eq!(added.0, Added::New);
    close(store, tasks).await;
}

/// A daemon that sends heartbeats, with a folder and a receiver of heartbeats of its own.
struct BeatingDaemon {
    folder: tempfile::TempDir,
    switch: Receiver,
    child: Child,
}

impl BeatingDaemon {
    async fn start(server: &Postgres) -> Self {
        let switch = Receiver::start([]).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("beat"), format!("http://{}/beat", switch.address())).unwrap();
        std::fs::set_permissions(at("beat"), std::fs::Permissions::from_mode(0o600)).unwrap();
        let config = format!(
            "[store]\nurl = \"{}\"\nlease = \"3s\"\n[heartbeat]\nurl_file = \"beat\"\ninterval = \"10s\"\n",
            server.url()
        );
        std::fs::write(at("runwatch.toml"), config).unwrap();
        let log = std::fs::File::create(at("log")).unwrap();
        let child = program(folder.path(), &["daemon"])
            .env("RUNWATCH_CONFIG", at("runwatch.toml"))
            .env("RUNWATCH_CONTROL__SOCKET", at("socket"))
            .stdout(std::process::Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self {
            folder,
            switch,
            child,
        }
    }

    fn beats(&self) -> usize {
        self.switch.requests().len()
    }

    /// Waits until there are more heartbeats than `count`.
    async fn beats_beyond(&self, count: usize) {
        eventually(async || (self.beats() > count).then_some(())).await;
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Waits until it has logged a text.
    async fn logs(&self, text: &str) {
        self.logs_one_of(0, &[text]).await;
    }

    /// Waits until it has logged one of some texts after the first `from` bytes of its log, and returns that.
    async fn logs_one_of<'a>(&self, from: usize, texts: &[&'a str]) -> &'a str {
        let found = eventually(async || {
            let log = self.log();
            texts
                .iter()
                .copied()
                .find(|text| log[from..].contains(text))
        });
        found.await
    }
}

#[tokio::test]
async fn no_heartbeat_is_sent_while_the_database_is_away() {
    const WITHHELD: &str = "no heartbeat is sent";
    let server = Postgres::start();
    let daemon = BeatingDaemon::start(&server).await;
    for _ in 0..10 {
        daemon.beats_beyond(daemon.beats()).await;
        let from = daemon.log().len();
        server.stop(Stop::Immediate);
        // Where a commit was under way, its outcome is not known: the term ends, and with it the heartbeats.
        let why = daemon
            .logs_one_of(from, &[WITHHELD, "the outcome of a commit is not known"])
            .await;
        let before = daemon.beats();
        server.resume();
        daemon.beats_beyond(before).await;
        if why == WITHHELD {
            return;
        }
    }
    panic!("each time a commit was under way:\n{}", daemon.log());
}

#[tokio::test]
async fn a_standby_sends_no_heartbeat_until_it_leads() {
    let server = Postgres::start();
    let mut leader = BeatingDaemon::start(&server).await;
    leader.beats_beyond(0).await;
    let standby = BeatingDaemon::start(&server).await;
    standby.logs("standing by").await;
    // An interval of the leader is one of the standby as well.
    let before = leader.beats();
    leader.beats_beyond(before + 1).await;
    assert_eq!(standby.beats(), 0);
    leader.child.kill().await.unwrap();
    standby.beats_beyond(0).await;
}
