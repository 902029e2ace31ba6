//! `[store]`: a file of this daemon's own, or a PostgreSQL database that several daemons share.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use super::Secret;
use super::database::read_database_url;
use super::load::{MAX_DEADLINE, duration, own_path, word};
use super::problem::Origin;
use super::reader::{SettingsReader, Table, Violation};
use super::rules::refusal;

/// Shortest and longest lease: a shorter one ends with every hiccup of a network, and a longer one leaves runs without
/// polls for too long.
pub const MIN_LEASE: Duration = Duration::from_secs(3);
/// See [`MIN_LEASE`].
pub const MAX_LEASE: Duration = Duration::from_secs(5 * 60);

/// Longest name of a schema, in bytes: PostgreSQL cuts longer ones off (postgresql.org/docs/15/sql-syntax-lexical.html,
/// "Identifiers and Key Words").
const SCHEMA_BYTES: usize = 63;

/// `[store]`: where the daemon keeps its state.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    /// The database file; `None` when no directory for it could be found. Default: `runwatch.db` in the
    /// first of `$STATE_DIRECTORY`, else in `$XDG_STATE_HOME/runwatch` or `~/.local/state/runwatch`.
    /// [`super::IN_MEMORY`] keeps it in memory. It means nothing beside `shared`.
    pub path: Option<PathBuf>,
    /// The database that several daemons share. Default: none.
    pub shared: Option<SharedStoreSettings>,
    /// How long finished watches and their deliveries are kept, 0 to 3650 days. Default: 7 days.
    pub retention: Duration,
}

/// A store on PostgreSQL.
#[derive(Debug, Clone)]
pub struct SharedStoreSettings {
    /// `postgres://user:password@host1,host2/database?sslmode=verify-full`; it may hold a password, so it is a secret.
    pub url: Secret,
    /// The schema of all tables, 1 to 63 lower-case letters, digits and underscores, the first of them a letter.
    /// Default: `runwatch`.
    pub schema: String,
    /// For how long a silent leader is waited for, 3 s to 5 min. Default: 15 s.
    pub lease: Duration,
    /// Certificates of the authorities that the server's certificate is checked against. Default: the system's.
    pub ca_file: Option<PathBuf>,
    /// Who changes the tables when a new version needs that. Default: auto.
    pub migrate: MigrationMode,
    /// The file that shows, at a restart on the same machine, that the process before has ended; `None` when no
    /// directory for it could be found.
    pub holder_file: Option<PathBuf>,
}

/// Who changes the tables when a new version needs that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MigrationMode {
    /// The daemon, at its start.
    Auto,
    /// Another daemon, whose role has the rights.
    Never,
}

/// Reads `[store]`.
pub(super) fn read_store(reader: &mut SettingsReader<'_>, root: &mut Table) -> StoreSettings {
    let mut table = reader.table(root, "store");
    let table = &mut table;
    let url = reader.take_secret(table, "url");
    let path_item = reader.peek(table, "path");
    let path = own_path(reader, table, "path");
    if let (Some(_), Some(item)) = (&url, path_item)
        && item.place.origin != Origin::Default
    {
        let what = "both store.url and store.path are set";
        reader.refuse_unseen(&item, what, "keep one of them: a store is in one place");
    }
    let retention = duration(reader, table, "retention", Duration::ZERO, MAX_DEADLINE);
    if url.is_none() {
        reader.show_unset(table, "url_file");
    }
    let url = url.and_then(|found| reader.secret(found, postgres_url));
    let schema = reader
        .take(table, "schema", None)
        .and_then(|item| reader.parsed(&item, schema_name));
    let lease = duration(reader, table, "lease", MIN_LEASE, MAX_LEASE);
    let ca_file = reader
        .take(table, "ca_file", None)
        .and_then(|item| match item.as_text() {
            Some("") => reader.text(&item).and(None),
            _ => reader.path(&item),
        });
    let migrate = reader
        .take(table, "migrate", None)
        .and_then(|item| reader.parsed(&item, word));
    reader.finish_rest(table);
    let shared = url.map(|url| SharedStoreSettings {
        url,
        schema: schema.unwrap_or_default(),
        lease,
        ca_file,
        migrate: migrate.unwrap_or(MigrationMode::Auto),
        holder_file: path.as_ref().map(|path| path.with_file_name("holder")),
    });
    StoreSettings {
        path,
        shared,
        retention,
    }
}

/// An address of a PostgreSQL database, as the daemon reads it. The text is never repeated: it may hold a password.
fn postgres_url(text: &str) -> Result<(), Violation> {
    read_database_url(text)
        .map(drop)
        .map_err(|(what, fix)| refusal(what, fix))
}

/// A name that needs no quotes in SQL.
///
/// # Errors
/// What is wrong with it, and what to do.
pub(crate) fn schema_name(text: &str) -> Result<String, Violation> {
    let begins = text.starts_with(|c: char| c.is_ascii_lowercase());
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if begins && text.chars().all(plain) && text.len() <= SCHEMA_BYTES && !text.starts_with("pg_") {
        return Ok(text.to_owned());
    }
    let what = format!(
        "a schema has 1 to {SCHEMA_BYTES} lower-case letters, digits and underscores, begins with a letter, and not with pg_"
    );
    Err((what, "write a name such as runwatch".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_need_no_quotes() {
        for name in ["runwatch", "a", "team_2", &"a".repeat(63)] {
            assert_eq!(schema_name(name).as_deref(), Ok(name));
        }
        for name in [
            "",
            "Runwatch",
            "2teams",
            "_a",
            "pg_runs",
            "a-b",
            "a\"b",
            "é",
            &"a".repeat(64),
        ] {
            assert!(schema_name(name).is_err(), "{name:?}");
        }
    }
}
