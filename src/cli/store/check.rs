//! `runwatch store check`.

use std::path::Path;
use std::time::Duration;

use jiff::SignedDuration;

use super::{NOT_DONE, configured};
use crate::blocking;
use crate::cli::client::Printer;
use crate::cli::doctor::report::{Check, CheckReport};
use crate::cli::phrases::size_text;
use crate::cli::write_text;
use crate::config::{Settings, format_duration};
use crate::store::{
    CopyPlace, Durability, FileFacts, Horizon, PostgresSettings, Rights, ServerFacts, StoreError,
    TableFacts, inspect_file, inspect_server,
};
use crate::style::Sign;
use crate::text::error_chain;

/// How long a server has for all answers: it counts rows.
const SERVER_LIMIT: Duration = Duration::from_secs(120);

/// How far the clock of this machine may differ: receivers check the times of signatures.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_secs(2);

/// The age of a transaction from which it is a warning: rows that were changed since cannot be removed.
const OLD_TRANSACTION: Duration = Duration::from_secs(10 * 60);

/// The age of a replication slot in transactions from which it is a warning.
const OLD_SLOT: u64 = 1_000_000;

/// Checks the configured store, and prints a line for each finding. With `json` one object. Returns 1 when there is a
/// problem; a warning is none.
///
/// # Errors
/// When the store is in memory, or the result cannot be written.
pub async fn check(settings: &Settings, printer: Printer<'_>) -> anyhow::Result<u8> {
    let report = CheckReport(match configured(&settings.store).await? {
        CopyPlace::File(path) => file(&path).await,
        CopyPlace::Server(connection) => server(&connection).await,
    });
    let code = match report.has_problem() {
        true => NOT_DONE,
        false => 0,
    };
    let text = if printer.json {
        report.json(code == 0)
    } else {
        let columns = printer.width.map_or(usize::MAX, usize::from);
        report.text(printer.style, columns, code)
    };
    write_text(printer.out, &text)?;
    Ok(code)
}

fn good(name: &str, text: impl AsRef<str>) -> Check {
    Check::new(name, Sign::Good, text)
}

fn warning(name: &str, text: impl AsRef<str>, fix: &str) -> Check {
    Check::new(name, Sign::Warning, text).with_fix(fix)
}

fn bad(name: &str, text: impl AsRef<str>, fix: &str) -> Check {
    Check::new(name, Sign::Bad, text).with_fix(fix)
}

async fn file(path: &Path) -> Vec<Check> {
    let shown = path.display();
    if !path.exists() {
        let text = format!("there is no file {shown}");
        return vec![bad(
            "store",
            text,
            "start the daemon, or run `runwatch store migrate`",
        )];
    }
    let looking = path.to_owned();
    let looked = blocking::run("store-check", move || inspect_file(&looking)).await;
    match looked {
        Ok(Ok(facts)) => of_file(path, &facts),
        Ok(Err(error)) => vec![bad(
            "store",
            error_chain(&error),
            "run this command as the user of the daemon, or restore a backup",
        )],
        Err(stuck) => vec![bad(
            "store",
            format!("{shown} cannot be looked at: {stuck}"),
            "does its disk answer?",
        )],
    }
}

fn of_file(path: &Path, facts: &FileFacts) -> Vec<Check> {
    let mut checks = vec![good("store", path.display().to_string())];
    checks.extend(note(facts.note.as_deref()));
    let (found, known) = facts.version;
    let version = format!("{found}");
    checks.push(if found > known {
        newer(&format!("{version}, and this program knows {known}"))
    } else if found < known {
        good(
            "version",
            format!("{version}; the next start changes it to {known}"),
        )
    } else {
        good("version", version)
    });
    checks.push(match &facts.damage {
        None => good("pages", "no damage was found"),
        Some(damage) => bad(
            "pages",
            format!("the file is damaged: {damage}"),
            "restore a backup",
        ),
    });
    let (used, free) = facts.bytes;
    let text = format!("{} in use, {} free", size_text(used), size_text(free));
    checks.push(good("size", text));
    let rows: Vec<_> = facts
        .rows
        .iter()
        .map(|(what, count)| format!("{count} {what}"))
        .collect();
    if !rows.is_empty() {
        checks.push(good("rows", rows.join(", ")));
    }
    checks
}

/// Why no daemon starts on a store that was copied.
fn note(note: Option<&str>) -> Option<Check> {
    let (what, fix) = note?.split_once(": ")?;
    Some(bad("copy", what, fix))
}

fn newer(text: &str) -> Check {
    bad(
        "version",
        text,
        "use the runwatch that wrote it, or a newer one",
    )
}

async fn server(connection: &PostgresSettings) -> Vec<Check> {
    match tokio::time::timeout(SERVER_LIMIT, inspect_server(connection)).await {
        Ok(Ok(facts)) => of_server(&facts),
        Ok(Err(error)) => vec![bad(
            "store",
            format!(
                "PostgreSQL, schema {}: {}",
                connection.schema,
                error_chain(&error)
            ),
            correction(&error),
        )],
        Err(_elapsed) => vec![bad(
            "store",
            format!(
                "PostgreSQL, schema {}, did not answer in time",
                connection.schema
            ),
            "check the network and the load of the server",
        )],
    }
}

/// What to do about a database that cannot be looked at.
fn correction(error: &StoreError) -> &'static str {
    match error {
        StoreError::OutOfReach { .. } => "check store.url_file, the network, and the server",
        StoreError::Address { .. } => "correct store.url_file",
        _ => "change the database, or use another one",
    }
}

fn of_server(facts: &ServerFacts) -> Vec<Check> {
    let pooler = match facts.is_pooled {
        true => ", through a pooler",
        false => "",
    };
    let mut checks = vec![good("store", format!("{}{pooler}", facts.place))];
    let server = format!(
        "PostgreSQL {}, encoding {}",
        facts.server_version, facts.encoding
    );
    checks.push(good("server", server));
    checks.push(match (facts.is_secured, facts.is_local) {
        (true, _) => good(
            "connection",
            "secured by TLS, and the certificate is checked",
        ),
        (false, true) => good("connection", "without TLS, on this machine"),
        (false, false) => warning(
            "connection",
            "without TLS, to another machine: its network can read the password and all outputs",
            "write sslmode=verify-full in the URL",
        ),
    });
    checks.push(clock(facts.ahead));
    checks.push(commits(&facts.durability));
    checks.push(horizon(&facts.horizon));
    checks.push(rights(&facts.rights, facts.tables.is_some()));
    match &facts.tables {
        Some(tables) => checks.extend(of_tables(tables)),
        None => checks.push(bad(
            "tables",
            "there are none, or this role may not read them",
            "run `runwatch store migrate`, or start a daemon with store.migrate = \"auto\"",
        )),
    }
    checks
}

fn clock(ahead: SignedDuration) -> Check {
    if ahead.abs() <= CLOCK_TOLERANCE {
        return good("clock", "as that of the database");
    }
    let seconds = ahead.abs().as_secs_f64();
    let word = match ahead.is_negative() {
        true => "behind",
        false => "ahead of",
    };
    warning(
        "clock",
        format!(
            "this machine is {seconds:.1} s {word} the database; receivers check the times of signatures"
        ),
        "synchronize both, with NTP: timedatectl set-ntp true",
    )
}

/// What is lost with the primary (postgresql.org/docs/15/runtime-config-wal, "synchronous_commit").
fn commits(durability: &Durability) -> Check {
    let name = "commits";
    let commit = durability.synchronous_commit.as_str();
    if !durability.fsync {
        return warning(
            name,
            "fsync is off: a crash of the database's machine can destroy the store",
            "set fsync = on",
        );
    }
    if commit == "off" {
        return warning(
            name,
            "synchronous_commit is off: a crash of the database loses the last transactions",
            "set synchronous_commit = on for the role or the database",
        );
    }
    let waits = !durability.synchronous_standby_names.is_empty() && commit != "local";
    let is_asynchronous = |state: Option<&str>| match state {
        Some(state) => state == "async",
        // Not to be seen with this role: with names, some of them are waited for.
        None => !waits,
    };
    let asynchronous: Vec<_> = durability
        .replicas
        .iter()
        .filter(|(_, state)| !waits || is_asynchronous(state.as_deref()))
        .map(|(name, _)| match name.as_str() {
            "" => "a replica",
            name => name,
        })
        .collect();
    if !asynchronous.is_empty() {
        let text = format!(
            "no commit waits for {}: a failover to it loses the last transactions, acknowledged watches among them",
            asynchronous.join(", ")
        );
        let fix = "set synchronous_standby_names, and fail over to synchronous replicas only";
        return warning(name, text, fix);
    }
    match durability.replicas.len() {
        0 if waits => good(
            name,
            format!(
                "on disk when acknowledged (synchronous_commit = {commit}); no replica is connected"
            ),
        ),
        0 => good(
            name,
            format!(
                "on disk when acknowledged (synchronous_commit = {commit}); there are no replicas"
            ),
        ),
        count => good(
            name,
            format!(
                "on disk, and on synchronous replicas, when acknowledged (synchronous_commit = {commit}); {count} connected"
            ),
        ),
    }
}

fn horizon(horizon: &Horizon) -> Check {
    let name = "dead rows";
    let why = "rows that were changed since cannot be removed, and the store grows and slows down";
    if let Some((what, age)) = &horizon.transaction
        && *age >= OLD_TRANSACTION
    {
        let text = format!("{what} is {} old: {why}", format_duration(*age));
        return warning(name, text, "end it");
    }
    if let Some((slot, age)) = &horizon.slot
        && *age >= OLD_SLOT
    {
        let text = format!("the replication slot {slot} is {age} transactions old: {why}");
        return warning(name, text, "drop the slot if its replica is gone");
    }
    good(name, "no old transaction keeps them")
}

fn rights(rights: &Rights, are_there: bool) -> Check {
    let name = "rights";
    if let Some(missing) = &rights.missing {
        let grant = format!("let the owner of the tables run `{}`", missing.grant);
        return bad(name, format!("no {}", missing.what), &grant);
    }
    match (are_there, rights.owns_tables, rights.may_make) {
        (true, true, _) => good(name, "read, write, and change the tables"),
        (true, false, _) => good(
            name,
            "read and write; another role changes the tables for a new version",
        ),
        (false, _, true) => good(name, "make the tables"),
        (false, _, false) => bad(
            name,
            "this role may not make the tables",
            "grant it CREATE on the database, or make a schema with its AUTHORIZATION",
        ),
    }
}

fn of_tables(tables: &TableFacts) -> Vec<Check> {
    let mut checks: Vec<_> = note(tables.note.as_deref()).into_iter().collect();
    let (found, known) = tables.version;
    checks.push(if !tables.is_known {
        newer(&format!("{found}, and this program knows {known}"))
    } else if found < known {
        bad(
            "version",
            format!("{found}, and {known} is needed"),
            "run `runwatch store migrate`, or start a daemon with store.migrate = \"auto\"",
        )
    } else {
        good("version", found.to_string())
    });
    checks.push(good("size", size_text(tables.bytes)));
    let counts = tables.counts;
    checks.push(good(
        "rows",
        format!(
            "{} watches, {} active watches, {} events, {} open deliveries, {} dead deliveries",
            tables.watches, counts.active, tables.events, counts.pending, counts.dead
        ),
    ));
    checks.push(match &tables.lease {
        None => good("lease", "no daemon has led yet"),
        Some((name, version, term, true)) => good(
            "lease",
            format!("released by {name} ({version}, term {term})"),
        ),
        Some((name, version, term, false)) => {
            good("lease", format!("{name} ({version}, term {term}) has it"))
        }
    });
    checks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MissingRights;

    fn durability(commit: &str, names: &str, replicas: &[(&str, Option<&str>)]) -> Durability {
        Durability {
            synchronous_commit: commit.to_owned(),
            synchronous_standby_names: names.to_owned(),
            fsync: true,
            replicas: replicas
                .iter()
                .map(|(name, state)| ((*name).to_owned(), state.map(str::to_owned)))
                .collect(),
        }
    }

    #[test]
    fn commits_that_a_failover_loses_are_a_warning() {
        for (commit, names, replicas, mark, text) in [
            ("on", "", &[][..], Sign::Good, "there are no replicas"),
            ("off", "", &[], Sign::Warning, "loses the last transactions"),
            (
                "on",
                "",
                &[("db-2", None)],
                Sign::Warning,
                "waits for db-2:",
            ),
            ("on", "", &[("db-2", Some("async"))], Sign::Warning, "db-2"),
            (
                "local",
                "db-2",
                &[("db-2", Some("sync"))],
                Sign::Warning,
                "db-2",
            ),
            ("on", "db-2", &[], Sign::Good, "no replica is connected"),
            (
                "on",
                "db-2",
                &[("db-2", Some("sync"))],
                Sign::Good,
                "1 connected",
            ),
            (
                "on",
                "ANY 1 (*)",
                &[("", Some("quorum"))],
                Sign::Good,
                "1 connected",
            ),
            (
                "remote_apply",
                "db-2",
                &[("db-2", Some("sync")), ("", Some("async"))],
                Sign::Warning,
                "waits for a replica:",
            ),
            ("on", "db-2", &[("db-2", None)], Sign::Good, "1 connected"),
        ] {
            let check = commits(&durability(commit, names, replicas));
            assert_eq!(check.mark, mark, "{check:?}");
            assert!(check.text.contains(text), "{check:?}");
        }
        let unsafe_disk = Durability {
            fsync: false,
            ..durability("on", "", &[])
        };
        assert_eq!(commits(&unsafe_disk).mark, Sign::Warning);
    }

    #[test]
    fn what_keeps_dead_rows_for_long_is_a_warning() {
        let of = |seconds: u64, age: u64| {
            horizon(&Horizon {
                transaction: Some((
                    "a transaction of pg_dump".to_owned(),
                    Duration::from_secs(seconds),
                )),
                slot: Some(("db_3".to_owned(), age)),
            })
        };
        assert_eq!(of(599, 999_999).mark, Sign::Good);
        let old = of(600, 0);
        assert_eq!(old.mark, Sign::Warning);
        assert!(
            old.text.starts_with("a transaction of pg_dump is 10m old"),
            "{old:?}"
        );
        let slot = of(0, 1_000_000);
        assert_eq!(slot.mark, Sign::Warning);
        assert!(slot.text.contains("the replication slot db_3"), "{slot:?}");
    }

    #[test]
    fn a_clock_may_differ_by_two_seconds() {
        let of = |milliseconds| clock(SignedDuration::from_millis(milliseconds));
        assert_eq!(of(-2_000).mark, Sign::Good);
        assert!(of(2_500).text.contains("2.5 s ahead of the database"));
        assert!(of(-2_500).text.contains("2.5 s behind the database"));
    }

    fn server() -> ServerFacts {
        ServerFacts {
            place: "PostgreSQL at db-1:5432, database runwatch, schema runwatch".to_owned(),
            server_version: "15.18".to_owned(),
            encoding: "UTF8".to_owned(),
            is_secured: false,
            is_local: false,
            is_pooled: true,
            ahead: SignedDuration::ZERO,
            durability: durability("on", "", &[("db-2", Some("async"))]),
            horizon: Horizon {
                transaction: None,
                slot: None,
            },
            rights: Rights {
                has_schema: true,
                may_use: true,
                may_make: false,
                owns_tables: false,
                missing: Some(MissingRights {
                    role: "worker".to_owned(),
                    what: "INSERT on events".to_owned(),
                    grant: "GRANT INSERT ON runwatch.events TO worker".to_owned(),
                }),
            },
            tables: Some(TableFacts {
                version: (0, 1),
                is_known: true,
                note: Some("the store was moved to /runwatch.db: configure that one".to_owned()),
                bytes: 12 << 20,
                watches: 3,
                events: 7,
                counts: crate::store::Counts::default(),
                lease: Some(("web-1".to_owned(), "0.2.0".to_owned(), 7, false)),
            }),
        }
    }

    #[test]
    fn each_finding_is_a_line_with_what_to_do() {
        let report = CheckReport(of_server(&server()));
        insta::assert_snapshot!(report.text(crate::style::Style::PLAIN, 100, 1));
    }
}
