//! Roles that lack rights.

use std::path::Path;
use std::process::Stdio;

use runwatch::store::{Added, PostgresSettings, StoreError};
use tokio::process::Command;

use crate::contract::{Place, close, watch};
use crate::copy::{program, text_of, url_file};
use crate::server::{
    InSchema, WORKER, Way, connect, eventually, grant_of, granted, reach, refusal, settings, start,
};

/// The rights of [`WORKER`] on tables and sequences of a schema: the right, and what it is on as `GRANT` names it.
async fn rights(client: &tokio_postgres::Client, schema: &str) -> Vec<(String, String)> {
    let rights = format!(
        "SELECT a.privilege_type, CASE c.relkind WHEN 'S' THEN 'SEQUENCE ' ELSE '' END || '{schema}.' || c.relname
         FROM pg_class c, aclexplode(c.relacl) a
         WHERE c.relnamespace = '{schema}'::regnamespace AND a.grantee = '{WORKER}'::regrole ORDER BY 2, 1"
    );
    let rows = client.query(&rights, &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// The refusal of a store.
async fn refused(settings: &PostgresSettings) -> StoreError {
    let (store, tasks) = start(settings);
    let error = refusal(&store).await;
    close(store, tasks).await;
    error
}

#[tokio::test]
async fn a_role_that_lacks_one_right_is_refused_with_the_statement_that_grants_it() {
    let owner = settings(Way::Direct, "lacking");
    let worker = granted(&owner).await;
    let (client, _connection) = connect(&owner).await;
    let schema = &owner.schema;
    let mut rights = rights(&client, schema).await;
    assert!(rights.len() > 40, "{rights:?}");
    rights.push(("USAGE".to_owned(), format!("SCHEMA {schema}")));
    for (right, place) in rights {
        let revoke = format!("REVOKE {right} ON {place} FROM {WORKER}");
        client.batch_execute(&revoke).await.unwrap();
        let error = refused(&worker).await;
        let wanted = format!("GRANT {right} ON {place} TO {WORKER}");
        assert_eq!(grant_of(&error), wanted, "{error}");
        assert!(error.to_string().contains(&format!("the role {WORKER} ")));
        client.batch_execute(&wanted).await.unwrap();
    }
    let (store, tasks) = InSchema(worker).open().await;
    close(store, tasks).await;
}

#[tokio::test]
async fn a_right_that_is_revoked_is_named_until_it_is_granted_again() {
    let owner = settings(Way::Direct, "revoked");
    let (store, tasks) = InSchema(granted(&owner).await).open().await;
    store.add_watch(watch("run_1")).await.unwrap();
    let (client, _connection) = connect(&owner).await;
    let table = format!("{}.watches", owner.schema);
    let revoke = format!("REVOKE INSERT ON {table} FROM {WORKER}");
    client.batch_execute(&revoke).await.unwrap();
    let denied = store.add_watch(watch("run_2")).await.unwrap_err();
    assert!(matches!(denied, StoreError::Unusable(_)), "{denied:?}");
    // The next connection finds what to do.
    let error = eventually(async || match store.add_watch(watch("run_2")).await {
        Err(error) if error.to_string().contains("GRANT") => Some(error),
        Err(_) => None,
        Ok(added) => panic!("{added:?}"),
    })
    .await;
    client.batch_execute(&grant_of(&error)).await.unwrap();
    eventually(async || store.probe().await.ok()).await;
    reach(&store).await;
    assert_eq!(store.add_watch(watch("run_2")).await.unwrap().0, Added::New);
    close(store, tasks).await;
}

/// The program with a store of these settings.
fn command(place: &Path, arguments: &[&str], settings: &PostgresSettings) -> Command {
    let mut command = program(place, arguments);
    command
        .env("RUNWATCH_STORE__URL_FILE", url_file(place, settings))
        .env("RUNWATCH_STORE__SCHEMA", &settings.schema)
        .env("RUNWATCH_CONTROL__SOCKET", place.join("socket"))
        .stdin(Stdio::null());
    command
}

#[tokio::test]
async fn commands_name_the_rights_that_a_role_lacks_and_the_daemon_ends() {
    let owner = settings(Way::Direct, "commands");
    let worker = granted(&owner).await;
    let (client, _connection) = connect(&owner).await;
    let revoke = format!("REVOKE UPDATE ON {}.leases FROM {WORKER}", owner.schema);
    client.batch_execute(&revoke).await.unwrap();
    let place = tempfile::tempdir().unwrap();
    // `doctor` finds no API key either.
    for (arguments, code) in [
        (&["daemon"][..], 1),
        (&["store", "check"], 1),
        (&["doctor"], 4),
    ] {
        let output = command(place.path(), arguments, &worker)
            .output()
            .await
            .unwrap();
        let shown = text_of(&output);
        let wanted = format!("GRANT UPDATE ON {}.leases TO {WORKER}", owner.schema);
        assert!(shown.contains(&wanted), "{arguments:?}: {shown}");
        assert!(shown.contains("UPDATE on leases"), "{arguments:?}: {shown}");
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {shown}");
    }
}

#[tokio::test]
async fn doctor_makes_no_tables() {
    let unmade = settings(Way::Direct, "diagnosed");
    let (client, _connection) = connect(&unmade).await;
    let place = tempfile::tempdir().unwrap();
    for (mode, wanted) in [
        ("auto", "whose tables the start of a daemon makes"),
        ("never", "run `runwatch store migrate`"),
    ] {
        let output = command(place.path(), &["doctor"], &unmade)
            .env("RUNWATCH_STORE__MIGRATE", mode)
            .output()
            .await
            .unwrap();
        let shown = text_of(&output);
        let words: Vec<_> = shown.split_whitespace().collect();
        assert!(words.join(" ").contains(wanted), "{shown}");
    }
    let made = "SELECT count(*) FROM pg_namespace WHERE nspname = $1";
    let made: i64 = client
        .query_one(made, &[&unmade.schema])
        .await
        .unwrap()
        .get(0);
    assert_eq!(made, 0);
}
