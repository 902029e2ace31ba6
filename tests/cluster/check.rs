//! What `runwatch store check` finds on real servers.

use std::process::Output;
use std::time::Duration;

use runwatch::store::{
    Candidate, CopyPlace, HolderId, Keeper, PostgresSettings, copy_store, inspect_server,
};
use secrecy::ExposeSecret as _;
use serde_json::Value;

use crate::contract::{Place, close, watch};
use crate::copy::{program, text_of, url_file};
use crate::server::{InSchema, Way, connect, elsewhere, eventually, folder, programs, settings};

/// Checks a store. Returns the exit code and the findings by name: mark, then text.
async fn check(settings: &PostgresSettings) -> (i32, Findings) {
    let place = tempfile::tempdir().unwrap();
    let url_file = url_file(place.path(), settings);
    let authority = folder().join("authority.pem");
    let output = program(place.path(), &["store", "check", "--json"])
        .env("RUNWATCH_STORE__URL_FILE", &url_file)
        .env("RUNWATCH_STORE__SCHEMA", &settings.schema)
        .env("RUNWATCH_STORE__CA_FILE", authority)
        .output()
        .await
        .unwrap();
    let shown = text_of(&output);
    assert!(
        !shown.contains("p%2Fw") && !shown.contains("p/w"),
        "{shown}"
    );
    (output.status.code().unwrap(), Findings::of(&output))
}

struct Findings(Value);

impl Findings {
    fn of(output: &Output) -> Self {
        let all = serde_json::from_slice(&output.stdout);
        Self(all.unwrap_or_else(|error| panic!("{error}: {}", text_of(output))))
    }

    fn check(&self, name: &str) -> &Value {
        let mut checks = self.0["checks"].as_array().unwrap().iter();
        let check = checks.find(|check| check["name"] == name);
        check.unwrap_or_else(|| panic!("{name}: {}", self.0))
    }

    /// What to do about a finding.
    fn fix(&self, name: &str) -> &str {
        self.check(name)["fix"].as_str().unwrap()
    }

    fn has(&self, name: &str, mark: &str, text: &str) {
        let check = self.check(name);
        assert_eq!(check["mark"], mark, "{check}");
        let found = check["text"].as_str().unwrap();
        assert!(found.contains(text), "{found}");
    }
}

/// Makes a database that no other test has, and returns settings for it.
async fn database(name: &str) -> PostgresSettings {
    let usual = settings(Way::Direct, name);
    let (client, _connection) = connect(&usual).await;
    let make = format!("CREATE DATABASE {name} TEMPLATE template0");
    client.batch_execute(&make).await.unwrap();
    elsewhere(&usual, "/runwatch?", &format!("/{name}?"))
}

#[tokio::test]
async fn a_store_that_is_well_has_its_server_rows_and_leader_in_the_check() {
    for (way, place, connection) in [
        (Way::Direct, "schema t", "without TLS, on this machine"),
        (Way::Pooled, "through a pooler", "without TLS"),
        (Way::Tls, "PostgreSQL at localhost", "secured by TLS"),
    ] {
        let settings = settings(way, "well");
        let (code, found) = check(&settings).await;
        assert_eq!(code, 1);
        found.has("tables", "problem", "there are none");
        found.has("rights", "ok", "make the tables");
        if !matches!(way, Way::Tls) {
            let (store, tasks) = InSchema(settings.clone()).open().await;
            store.add_watch(watch("run_1")).await.unwrap();
            close(store, tasks).await;
            let mut keeper = Keeper::new(&settings).unwrap();
            let candidate = Candidate {
                holder: HolderId::random(),
                name: "web-1".to_owned(),
                version: "0.2.0".to_owned(),
                ttl: Duration::from_secs(3),
            };
            let never = keeper.look().await.unwrap();
            keeper.take(&never, &candidate).await.unwrap().unwrap();
            let (code, found) = check(&settings).await;
            assert_eq!(code, 0, "{}", found.0);
            found.has("rows", "ok", "1 watches, 1 active watches, 0 events");
            found.has("lease", "ok", "web-1 (0.2.0, term 1) has it");
            found.has("rights", "ok", "change the tables");
            found.has("version", "ok", "3");
            found.has("clock", "ok", "as that of the database");
        }
        found.has("server", "ok", "encoding UTF8");
        found.has("store", "ok", place);
        found.has("connection", "ok", connection);
        assert_eq!(
            place.contains("pooler"),
            found.0.to_string().contains("pooler")
        );
    }
}

#[tokio::test]
async fn rights_that_are_missing_are_named() {
    let settings = settings(Way::Direct, "rights");
    let (store, tasks) = InSchema(settings.clone()).open().await;
    close(store, tasks).await;
    let (client, _connection) = connect(&settings).await;
    client
        .batch_execute("CREATE ROLE reader LOGIN")
        .await
        .unwrap();
    let reader = elsewhere(&settings, "runwatch@", "reader@");
    let (code, found) = check(&reader).await;
    assert_eq!(code, 1);
    found.has("rights", "problem", "no USAGE on the schema");
    let schema = &settings.schema;
    let grant = format!(
        "GRANT USAGE ON SCHEMA {schema} TO reader; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO reader;
         REVOKE INSERT, DELETE ON {schema}.events FROM reader"
    );
    client.batch_execute(&grant).await.unwrap();
    let (code, found) = check(&reader).await;
    assert_eq!(code, 1);
    let wanted = "no INSERT and DELETE on events; USAGE on payloads_id_seq; USAGE and UPDATE on events_seq_seq";
    found.has("rights", "problem", wanted);
    let fix = found.fix("rights");
    let grant = fix.split('`').nth(1).unwrap();
    client.batch_execute(grant).await.unwrap();
    let (code, found) = check(&reader).await;
    assert_eq!(code, 0, "{}", found.0);
    found.has("rights", "ok", "another role changes the tables");
}

#[tokio::test]
async fn commits_that_can_be_lost_and_old_transactions_are_found() {
    let settings = database("lossy").await;
    let (store, tasks) = InSchema(settings.clone()).open().await;
    close(store, tasks).await;
    let (client, _connection) = connect(&settings).await;
    client
        .batch_execute("ALTER DATABASE lossy SET synchronous_commit = off")
        .await
        .unwrap();
    let (held, _other) = connect(&settings).await;
    held.batch_execute(
        "SET application_name = 'a backup'; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1",
    )
    .await
    .unwrap();
    let facts = inspect_server(&settings).await.unwrap();
    assert_eq!(facts.durability.synchronous_commit, "off");
    let (what, _age) = facts.horizon.transaction.unwrap();
    assert_eq!(what, "a transaction of a backup");

    // A program that receives the log, as a replica does.
    let place = tempfile::tempdir().unwrap();
    let url = settings.url.expose_secret();
    let url = url.replace("/lossy?", "/?");
    let mut replica = tokio::process::Command::new(programs().join("pg_receivewal"))
        .arg("--dbname")
        .arg(&url)
        .arg("--directory")
        .arg(place.path())
        .env("PGAPPNAME", "replica-1")
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let state = eventually(async || {
        let replicas = inspect_server(&settings).await.unwrap().durability.replicas;
        assert_eq!(replica.try_wait().unwrap(), None, "it ended");
        let found = replicas.into_iter().find(|(name, _)| name == "replica-1");
        found.map(|(_, state)| state)
    })
    .await;
    assert_eq!(state.as_deref(), Some("async"));
    let on = "ALTER DATABASE lossy SET synchronous_commit = on";
    client.batch_execute(on).await.unwrap();
    let (_code, found) = check(&settings).await;
    // The server of the tests does not wait for the disk unless the variable says so, and that is found first.
    let fsync = std::env::var("RUNWATCH_TEST_FSYNC").is_ok_and(|fsync| fsync == "on");
    let wanted = match fsync {
        true => "no commit waits for",
        false => "fsync is off",
    };
    found.has("commits", "warning", wanted);
    replica.kill().await.unwrap();
}

#[tokio::test]
async fn a_store_that_was_moved_and_a_file_are_checked() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("runwatch.db");
    let settings = settings(Way::Direct, "checked");
    let (store, tasks) = InSchema(settings.clone()).open().await;
    store.add_watch(watch("run_1")).await.unwrap();
    close(store, tasks).await;
    let (from, to) = (
        CopyPlace::Server(settings.clone()),
        CopyPlace::File(path.clone()),
    );
    copy_store(&from, &to, |_step| {}).await.unwrap();
    let (code, found) = check(&settings).await;
    assert_eq!(code, 1);
    found.has("copy", "problem", "the store was moved to /");
    found.has("version", "ok", "3");

    let look = async || {
        program(place.path(), &["store", "check", "--json"])
            .env("RUNWATCH_STORE__PATH", &path)
            .output()
            .await
            .unwrap()
    };
    let before = std::fs::read(&path).unwrap();
    let output = look().await;
    let found = Findings::of(&output);
    assert_eq!(output.status.code(), Some(0), "{}", found.0);
    found.has("rows", "ok", "1 watches, 1 active watches, 0 events");
    found.has("pages", "ok", "no damage");
    assert_eq!(std::fs::read(&path).unwrap(), before);

    let next = CopyPlace::File(place.path().join("next.db"));
    copy_store(&to, &next, |_step| {}).await.unwrap();
    let output = look().await;
    assert_eq!(output.status.code(), Some(1));
    Findings::of(&output).has("copy", "problem", "next.db");
    // In place of some pages, there is something else.
    let mut bytes = std::fs::read(&path).unwrap();
    let half = bytes.len() / 2;
    bytes[half..].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(look().await.status.code(), Some(1));
}
