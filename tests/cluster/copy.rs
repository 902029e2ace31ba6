//! Copies of a store from a file to a server and back: what arrives, what a copy leaves behind that was cut short, and
//! what is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use proptest::prop_assert_eq;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use runwatch::domain::{EventType, FoundBy, JsonText, Progress, RunRef, SinkName};
use runwatch::store::{
    Candidate, CopyError, CopyPlace, CopySummary, HolderId, Keeper, Location, PostgresSettings,
    Renewal, Store, StoreError, copy_store, migrate_store,
};
use secrecy::ExposeSecret as _;
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::contract::{Place, close, incident, routed_to, step, time, watch};
use crate::differential::{Doing, InFile, Side, doing};
use crate::server::{InSchema, Way, eventually, settings};

/// How many random stores go there and back.
const STORES: u32 = 24;
const OPERATIONS: usize = 40;

fn file(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("runwatch.db")
}

async fn copied(from: &CopyPlace, to: &CopyPlace) -> Result<CopySummary, CopyError> {
    copy_store(from, to, |_step| {}).await
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", chain(cause)),
        None => error.to_string(),
    }
}

/// Every row of every table of a file, as text, but for the note of a copy. What stands for no row is left out.
fn rows_of_file(path: &Path) -> BTreeMap<String, Vec<String>> {
    let db = rusqlite::Connection::open(path).unwrap();
    let names = "SELECT name FROM sqlite_master WHERE type = 'table' AND name != 'moved'";
    let mut names = db.prepare(names).unwrap();
    let names = names.query_map([], |row| row.get::<_, String>(0)).unwrap();
    let mut tables = BTreeMap::new();
    for name in names.map(Result::unwrap) {
        let condition = match name.as_str() {
            "totals" => "WHERE total != 0",
            "sqlite_sequence" => "WHERE seq != 0",
            _ => "",
        };
        let mut statement = db
            .prepare(&format!("SELECT * FROM {name} {condition}"))
            .unwrap();
        let columns = statement.column_count();
        let read = |row: &rusqlite::Row<'_>| {
            let values = (0..columns).map(|column| row.get::<_, rusqlite::types::Value>(column));
            Ok(format!("{:?}", values.collect::<Result<Vec<_>, _>>()?))
        };
        let mut rows: Vec<_> = statement
            .query_map([], read)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        rows.sort();
        tables.insert(name, rows);
    }
    tables
}

/// Fills a file at random, copies it to a server whose texts sort otherwise, and from there to another file.
async fn there_and_back(all: &[Doing]) -> Result<(), TestCaseError> {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["first.db", "second.db"].map(|name| folder.path().join(name));
    let mut original = Side::open(InFile(paths[0].clone())).await;
    for (number, doing) in all.iter().enumerate() {
        original.perform(doing, number).await;
    }
    // What is claimed becomes due again, as it does in a copy.
    original.perform(&Doing::Reopen, all.len()).await;
    let dump = original.dump(all.len()).await;
    let (deliveries, discoveries) = (original.deliveries.clone(), original.discoveries.clone());
    close(original.store.unwrap(), original.tasks).await;

    let before = rows_of_file(&paths[0]);
    let server = settings(Way::English, "there_and_back");
    let places = [
        CopyPlace::File(paths[0].clone()),
        CopyPlace::Server(server.clone()),
        CopyPlace::File(paths[1].clone()),
    ];
    for on_server in [true, false] {
        let (from, to) = (usize::from(!on_server), 1 + usize::from(!on_server));
        let summary = copied(&places[from], &places[to]).await.map_err(|error| {
            TestCaseError::fail(format!("on a server: {on_server}: {}", chain(&error)))
        })?;
        for (table, rows) in &summary.rows {
            prop_assert_eq!(*rows, before[*table].len() as u64, "{}", table);
        }
        if !on_server {
            prop_assert_eq!(&before, &rows_of_file(&paths[1]));
        }
        let mut side = match on_server {
            true => Side::open(InSchema(server.clone())).await,
            false => Side::open(InFile(paths[1].clone())).await,
        };
        (side.deliveries, side.discoveries) = (deliveries.clone(), discoveries.clone());
        let now = side.dump(all.len()).await;
        for (name, one) in &dump {
            prop_assert_eq!(
                Some(one),
                now.get(name),
                "on a server: {}: {}",
                on_server,
                name
            );
        }
        prop_assert_eq!(dump.len(), now.len());
        close(side.store.unwrap(), side.tasks).await;
    }
    Ok(())
}

#[test]
fn a_store_that_goes_to_a_server_and_back_is_the_same() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut runner = TestRunner::new(Config {
        max_shrink_iters: 200,
        failure_persistence: None,
        ..Config::with_cases(STORES)
    });
    let sequences = proptest::collection::vec(doing(), 1..OPERATIONS);
    let same = runner.run(&sequences, |all| runtime.block_on(there_and_back(&all)));
    same.unwrap();
}

/// A store of a finished run, one that goes on, with an output of 3 MB each, one that was deleted with its events, and
/// a delivery that is being sent.
async fn fill(place: &impl Place) {
    let (store, tasks) = place.open().await;
    let ops = SinkName::new("ops").unwrap();
    for (name, status) in [
        ("run_1", "succeeded"),
        ("run_2", "succeeded"),
        ("run_3", "running"),
    ] {
        let run = watch(name);
        let (_, id) = store.add_watch(run.clone()).await.unwrap();
        let mut seen = step(&run, &Progress::begin(time(0)), status, time(2));
        let output = format!("\"{}\"", "é".repeat(1_500_000));
        let details = seen.progress.details.as_mut().unwrap();
        details.output = Some(JsonText::new(output).unwrap());
        let routed = match status {
            "running" => Vec::new(),
            _ => routed_to(&seen, &["ops"]),
        };
        store
            .record_step(id, seen, routed, None, FoundBy::Poll, time(2))
            .await
            .unwrap();
    }
    let claimed = store.claim_due(ops, time(3), 1, usize::MAX).await.unwrap();
    assert_eq!(claimed.len(), 1);
    for seconds in 4..6 {
        let routed = incident(EventType::ApiRecovered, time(seconds));
        store.record_event(routed, time(seconds)).await.unwrap();
    }
    let run = RunRef::new("run_2").unwrap();
    store.remove_watches(run, true).await.unwrap();
    close(store, tasks).await;
}

/// What a store holds after [`fill`], wherever it is.
async fn is_filled(place: &impl Place) {
    let (store, tasks) = place.open().await;
    let counts = store.counts().await.unwrap();
    assert_eq!((counts.active, counts.pending, counts.dead), (1, 1, 0));
    assert_eq!(store.newest_event().await.unwrap(), 4);
    let ops = SinkName::new("ops").unwrap();
    assert_eq!(store.next_due(ops).await.unwrap(), Some(time(2)));
    let active = store.active_watches(time(9), None, 10).await.unwrap();
    let details = store.details(active[0].id).await.unwrap();
    let output = details.unwrap().output.unwrap();
    assert_eq!(output.get().len(), 3_000_002);
    // The next numbers follow those that were given, also those of rows that were deleted.
    let (_, id) = store.add_watch(watch("run_4")).await.unwrap();
    assert_eq!(format!("{id:?}"), "WatchId(4)");
    close(store, tasks).await;
}

/// The program, configured with a store that is neither end of the copy.
pub(crate) fn program(folder: &Path, arguments: &[&str]) -> Command {
    let config = folder.join("config.toml");
    std::fs::write(&config, "").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_runwatch"));
    command
        .env_clear()
        .env("HOME", folder)
        .env("RUNWATCH_CONFIG", &config)
        .args(arguments);
    command
}

pub(crate) fn url_file(folder: &Path, settings: &PostgresSettings) -> String {
    let path = folder.join("store-url");
    std::fs::write(&path, settings.url.expose_secret()).unwrap();
    path.to_str().unwrap().to_owned()
}

pub(crate) fn text_of(output: &Output) -> String {
    let texts = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    texts.concat()
}

/// The arguments of a copy from a file to a server, and those of one back.
fn copies(path: &str, url_file: &str, schema: &str) -> [Vec<String>; 2] {
    let ends = [
        ["--from", path, "--to-file", url_file],
        ["--from-file", url_file, "--to", path],
    ];
    ends.map(|ends| {
        let all = ["store", "copy"].into_iter().chain(ends);
        all.chain(["--schema", schema]).map(str::to_owned).collect()
    })
}

#[tokio::test]
async fn a_copy_that_is_killed_leaves_one_store_that_can_be_used_and_goes_on_when_it_is_begun_again()
 {
    for (number, to_server) in [(0, true), (1, false)] {
        for point in ["copy:rows", "copy:stored", "copy:marked"] {
            let folder = tempfile::tempdir().unwrap();
            let (path, server) = (file(&folder), settings(Way::Direct, "killed"));
            let (in_file, in_schema) = (InFile(path.clone()), InSchema(server.clone()));
            match to_server {
                true => fill(&in_file).await,
                false => fill(&in_schema).await,
            }
            let url_file = url_file(folder.path(), &server);
            let all = copies(path.to_str().unwrap(), &url_file, &server.schema);
            let arguments: Vec<_> = all[number].iter().map(String::as_str).collect();
            let killed = program(folder.path(), &arguments)
                .env("RUNWATCH_CRASH_AT", point)
                .output()
                .await
                .unwrap();
            assert_eq!(killed.status.code(), None, "{point}: {}", text_of(&killed));

            let opened = [usable(&in_file).await, usable_server(&server).await];
            let (source, target) = match to_server {
                true => (&opened[0], &opened[1]),
                false => (&opened[1], &opened[0]),
            };
            match point {
                "copy:rows" => {
                    assert_eq!(source, &Ok(2), "{point}");
                    assert_eq!(target, &Ok(0), "{point}");
                }
                "copy:stored" => {
                    assert_eq!(source, &Ok(2), "{point}");
                    let why = target.as_ref().unwrap_err();
                    assert!(why.contains("did not end"), "{point}: {why}");
                }
                _ => {
                    let why = source.as_ref().unwrap_err();
                    assert!(why.contains("was moved to"), "{point}: {why}");
                    let why = target.as_ref().unwrap_err();
                    assert!(why.contains("did not end"), "{point}: {why}");
                }
            }

            let again = program(folder.path(), &arguments).output().await.unwrap();
            assert!(again.status.success(), "{point}: {}", text_of(&again));
            match to_server {
                true => is_filled(&in_schema).await,
                false => is_filled(&in_file).await,
            }
            let opened = match to_server {
                true => usable(&in_file).await,
                false => usable_server(&server).await,
            };
            let why = opened.unwrap_err();
            assert!(why.contains("was moved to"), "{point}: {why}");
        }
    }
}

/// How many watches a file holds, or why no daemon starts on it.
async fn usable(place: &InFile) -> Result<usize, String> {
    let (store, writer) = match Store::open(Location::File(&place.0)) {
        Ok(opened) => opened,
        Err(error) => return Err(chain(&error)),
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(writer.run());
    watches_of(store, tasks).await
}

/// The same of a schema.
async fn usable_server(settings: &PostgresSettings) -> Result<usize, String> {
    let (store, server) = Store::postgres(settings).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(server.run());
    eventually(async || match store.probe().await {
        Ok(()) => Some(Ok(())),
        // The transaction of a process that was killed ends soon.
        Err(StoreError::OutOfReach { .. }) => None,
        Err(error) => Some(Err(chain(&error))),
    })
    .await?;
    watches_of(store, tasks).await
}

async fn watches_of(store: Store, tasks: JoinSet<()>) -> Result<usize, String> {
    let all = store
        .watches(runwatch::store::WatchFilter::default(), 10)
        .await;
    close(store, tasks).await;
    Ok(all.unwrap().items.len())
}

#[tokio::test]
async fn a_store_that_is_not_empty_or_in_use_or_was_moved_is_not_copied() {
    let folder = tempfile::tempdir().unwrap();
    let (path, server) = (file(&folder), settings(Way::Pooled, "refused"));
    fill(&InFile(path.clone())).await;
    let full = settings(Way::Direct, "full");
    let (store, tasks) = InSchema(full.clone()).open().await;
    store.add_watch(watch("run_1")).await.unwrap();
    close(store, tasks).await;
    let from = CopyPlace::File(path.clone());
    let refused = async |from: &CopyPlace, to: &CopyPlace, wanted: &str| {
        let error = copied(from, to).await.unwrap_err();
        let text = chain(&error);
        assert!(text.contains(wanted), "{text}");
    };
    refused(&from, &CopyPlace::Server(full.clone()), "is not empty").await;
    let absent = CopyPlace::File(folder.path().join("absent.db"));
    refused(
        &absent,
        &CopyPlace::Server(server.clone()),
        "there is no store",
    )
    .await;
    assert!(!folder.path().join("absent.db").exists());
    let unmade = CopyPlace::Server(settings(Way::Direct, "unmade"));
    refused(&unmade, &absent, "there is no store").await;

    // Another process has the lock of the file.
    let lock = runwatch::store::Lock::take(&path).unwrap();
    refused(
        &from,
        &CopyPlace::Server(server.clone()),
        "is in use by process",
    )
    .await;
    drop(lock);

    // A daemon leads on the server; when it is gone, its lease is waited for.
    let mut keeper = Keeper::new(&server).unwrap();
    let never = keeper.look().await.unwrap();
    let candidate = Candidate {
        holder: HolderId::random(),
        name: "web-1".to_owned(),
        version: "0.2.0".to_owned(),
        ttl: Duration::from_secs(3),
    };
    let term = keeper.take(&never, &candidate).await.unwrap().unwrap();
    let renewing = async {
        // As a daemon does, in time before the lease is over.
        let mut renewals = tokio::time::interval(candidate.ttl / 5);
        loop {
            renewals.tick().await;
            let renewed = keeper.renew(&term, "").await;
            assert!(
                matches!(renewed, Ok(Renewal::Confirmed { .. })),
                "{renewed:?}"
            );
        }
    };
    let to = CopyPlace::Server(server.clone());
    tokio::select! {
        () = refused(&from, &to, "web-1 leads on the store") => {}
        () = renewing => {}
    }
    // A daemon that was connected before the copy, and adds afterwards.
    copied(&from, &to).await.unwrap();
    let (connected, tasks) = InSchema(server.clone()).open().await;
    connected.add_watch(watch("run_5")).await.unwrap();
    let next = CopyPlace::File(folder.path().join("next.db"));
    let summary = copied(&to, &next).await.unwrap();
    assert!(summary.from.contains("schema"), "{summary:?}");
    let late = connected.add_watch(watch("run_6")).await.unwrap_err();
    assert!(matches!(late, StoreError::Moved { .. }), "{late:?}");
    drop(connected);
    drop(tasks);

    refused(&from, &absent, "was moved to PostgreSQL at").await;
    refused(&to, &absent, "was moved to /").await;
    refused(&next, &to, "nothing is copied into it; name another file").await;
    refused(&next, &next, "are the same file").await;
    let migrated = migrate_store(&from).await.unwrap_err();
    assert!(chain(&migrated).contains("was moved to"), "{migrated:?}");
    assert_eq!(usable(&InFile(folder.path().join("next.db"))).await, Ok(3));
}

#[tokio::test]
async fn a_role_that_does_not_own_the_tables_copies_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server = settings(Way::Direct, "borrowed");
    fill(&InSchema(server.clone())).await;
    let (client, _connection) = crate::server::connect(&server).await;
    let schema = &server.schema;
    let grant = format!(
        "CREATE ROLE borrower LOGIN; GRANT USAGE, CREATE ON SCHEMA {schema} TO borrower;
         GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO borrower"
    );
    client.batch_execute(&grant).await.unwrap();
    let url = server.url.expose_secret();
    let borrowed = PostgresSettings {
        url: url.replace("runwatch@", "borrower@").into(),
        ..server.clone()
    };
    let path = file(&folder);
    let to = CopyPlace::File(path.clone());
    let error = copied(&CopyPlace::Server(borrowed), &to).await.unwrap_err();
    assert!(chain(&error).contains("must be owner"), "{}", chain(&error));
    assert_eq!(usable(&InFile(path)).await, Ok(0));
    assert_eq!(usable_server(&server).await, Ok(2));
    copied(&CopyPlace::Server(server), &to).await.unwrap();
}

#[tokio::test]
async fn both_engines_have_the_same_columns() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder);
    assert_eq!(usable(&InFile(path.clone())).await, Ok(0));
    let server = settings(Way::Direct, "columns");
    assert_eq!(usable_server(&server).await, Ok(0));
    let db = rusqlite::Connection::open(&path).unwrap();
    let sql = "SELECT m.name || '.' || c.name FROM sqlite_master m JOIN pragma_table_info(m.name) c
        WHERE m.type = 'table' AND m.name NOT IN ('totals', 'sqlite_sequence')";
    let mut statement = db.prepare(sql).unwrap();
    let names = statement.query_map([], |row| row.get::<_, String>(0));
    let mut in_file: Vec<_> = names.unwrap().map(Result::unwrap).collect();
    in_file.retain(|name| name != "discoveries.match");
    in_file.extend(["discoveries.parameters", "events.provider"].map(str::to_owned));
    in_file.sort();
    let (client, _connection) = crate::server::connect(&server).await;
    let sql = format!(
        "SELECT table_name || '.' || column_name FROM information_schema.columns
         WHERE table_schema = '{}' AND table_name NOT IN ('schema', 'leases', 'dirty', 'deleted_events')",
        server.schema
    );
    let rows = client.query_typed(&sql, &[]).await.unwrap();
    let mut on_server: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    on_server.sort();
    assert_eq!(in_file, on_server);
}

#[tokio::test]
async fn a_store_of_the_first_release_is_copied() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder);
    std::fs::write(&path, include_bytes!("../data/store-1/runwatch.db")).unwrap();
    let server = settings(Way::Pooled, "first_release");
    let to = CopyPlace::Server(server.clone());
    let summary = copied(&CopyPlace::File(path.clone()), &to).await.unwrap();
    let after = rows_of_file(&path);
    for (table, rows) in &summary.rows {
        assert_eq!(*rows, after[*table].len() as u64, "{table}");
    }
    let watches = usable_server(&server).await.unwrap();
    assert!(watches > 0);
    assert_eq!(watches, after["watches"].len());
}

#[tokio::test]
async fn no_daemon_starts_on_a_store_that_was_moved_and_no_password_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder);
    fill(&InFile(path.clone())).await;
    let server = settings(Way::Tls, "secret");
    let url_file = url_file(folder.path(), &server);
    let authority = crate::server::folder().join("authority.pem");
    let schema = &server.schema;
    let mut arguments = copies(path.to_str().unwrap(), &url_file, schema)[0].clone();
    arguments.extend(["--json", "--ca-file", authority.to_str().unwrap()].map(str::to_owned));
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let output = program(folder.path(), &arguments).output().await.unwrap();
    assert!(output.status.success(), "{}", text_of(&output));
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["tables"]["watches"], 2);
    assert_eq!(summary["from"], path.to_str().unwrap());
    let shown = text_of(&output);
    assert!(shown.contains("copying payloads: 0 of 2"), "{shown}");

    let daemon = program(folder.path(), &["daemon"])
        .env("RUNWATCH_STORE__PATH", &path)
        .env("RUNWATCH_CONTROL__SOCKET", folder.path().join("socket"))
        .output()
        .await
        .unwrap();
    let why = text_of(&daemon);
    assert_eq!(daemon.status.code(), Some(1), "{why}");
    assert!(
        why.contains("the store was moved to PostgreSQL at"),
        "{why}"
    );

    // A wrong address is not repeated.
    let url = server.url.expose_secret();
    std::fs::write(&url_file, url.replace("postgres://", "mysql://")).unwrap();
    let unreadable = program(folder.path(), &arguments).output().await.unwrap();
    assert_eq!(
        unreadable.status.code(),
        Some(1),
        "{}",
        text_of(&unreadable)
    );
    for text in [shown, why, text_of(&unreadable)] {
        assert!(!text.contains("p%2Fw") && !text.contains("p/w"), "{text}");
    }
}

#[tokio::test]
async fn tables_are_made_by_a_command_where_daemons_may_not_make_them() {
    let folder = tempfile::tempdir().unwrap();
    let server = settings(Way::Direct, "made");
    let url_file = url_file(folder.path(), &server);
    let migrate = async |json: bool| {
        let flag = if json { "--json" } else { "--quiet" };
        program(folder.path(), &["store", "migrate", flag])
            .env("RUNWATCH_STORE__URL_FILE", &url_file)
            .env("RUNWATCH_STORE__SCHEMA", &server.schema)
            .env("RUNWATCH_STORE__MIGRATE", "never")
            .output()
            .await
            .unwrap()
    };
    let made = migrate(true).await;
    assert!(made.status.success(), "{}", text_of(&made));
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!((&made["from"], &made["to"]), (&0.into(), &3.into()));
    let again = text_of(&migrate(false).await);
    assert!(
        again.contains("its tables have version 3 already"),
        "{again}"
    );
    let never = PostgresSettings {
        migrate: false,
        ..server
    };
    let (store, tasks) = InSchema(never).open().await;
    close(store, tasks).await;

    let path = folder.path().join("new.db");
    let made = program(folder.path(), &["store", "migrate"])
        .env("RUNWATCH_STORE__PATH", &path)
        .output()
        .await
        .unwrap();
    assert!(
        text_of(&made).contains("its tables were made"),
        "{}",
        text_of(&made)
    );
    assert_eq!(usable(&InFile(path)).await, Ok(0));
}
