//! What is on this machine: proxy and certificate variables, the daemon, the store.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, access};

use super::report::Check;
use super::{Advice, within_limit};
use crate::app::shared_connection;
use crate::cli::client::socket;
use crate::cli::phrases::{notice_text, size_text};
use crate::config::{
    IN_MEMORY, Loaded, MigrationMode, NO_SOCKET_PLACE, Proxies, SharedStoreSettings, Sources,
};
use crate::control::{Client, ClientError};
use crate::store::{Keeper, PostgresSettings, StoreError, StoreFile};
use crate::style::Sign;

/// How long a shared store has to answer.
const SHARED_LIMIT: Duration = Duration::from_secs(10);

/// Checks the variables that decide how other machines are reached. Unusable proxies are errors of the configuration.
pub(super) async fn network(sources: &Sources) -> Check {
    let mut parts = Vec::new();
    let proxies = Proxies::read(|name| sources.path_of(name).map(Into::into)).unwrap_or_default();
    for (scheme, proxy) in [("https", &proxies.https), ("http", &proxies.http)] {
        // Only its host: the rest may be a password.
        if let Some(host) = proxy.as_ref().and_then(|url| url.host_str()) {
            parts.push(format!("{scheme} through the proxy {host}"));
        }
    }
    if parts.is_empty() {
        parts.push("no proxy".to_owned());
    } else if !proxies.none.is_empty() {
        parts.push(format!("but not to {}", proxies.none));
    }
    let set = |name| sources.path_of(name).map(std::ffi::OsString::from);
    let (file, folders) = (set("SSL_CERT_FILE"), set("SSL_CERT_DIR"));
    let is_own = file.is_some() || folders.is_some();
    let found = within_limit(move || match is_own {
        true => {
            let unreadable = unreadable_authorities(file.as_deref(), folders.as_deref());
            (crate::http::count_authorities(file, folders), unreadable)
        }
        false => (rustls_native_certs::load_native_certs().certs.len(), None),
    })
    .await;
    let whose = if is_own {
        "SSL_CERT_FILE and SSL_CERT_DIR"
    } else {
        "the system"
    };
    let (mark, authorities) = match found {
        Ok((0, _)) => (
            Sign::Bad,
            format!("no certificate of an authority in {whose}"),
        ),
        Ok((count, Some(what))) => (
            Sign::Warning,
            format!("{count} authorities of {whose}, but {what}"),
        ),
        Ok((count, None)) => (Sign::Good, format!("{count} authorities of {whose}")),
        Err(stuck) => (
            Sign::Bad,
            format!("the certificates cannot be read: {stuck}"),
        ),
    };
    parts.push(authorities);
    let check = Check::new("network", mark, parts.join(", "));
    match mark {
        Sign::Good => check,
        Sign::Warning | Sign::Bad => check
            .with_fix("install ca-certificates, or name a file of authorities in SSL_CERT_FILE"),
    }
}

/// The first of the paths of own authorities that cannot be read. Blocks on the disk.
fn unreadable_authorities(file: Option<&OsStr>, folders: Option<&OsStr>) -> Option<String> {
    let file = file.map(Path::new);
    let file = file.and_then(|path| Some((path.to_owned(), std::fs::File::open(path).err()?)));
    let mut folders = folders.into_iter().flat_map(std::env::split_paths);
    let unreadable = file.or_else(|| {
        folders.find_map(|path| {
            let error = std::fs::read_dir(&path).err()?;
            Some((path, error))
        })
    });
    unreadable.map(|(path, error)| format!("{} cannot be read ({error})", path.display()))
}

/// Checks whether a daemon answers, is ready, is this version and has no complaints.
pub(super) async fn daemon(sources: &Sources, loaded: &Loaded, advice: &Advice) -> Check {
    advice.about(&["control."], daemon_check(sources, loaded).await)
}

async fn daemon_check(sources: &Sources, loaded: &Loaded) -> Check {
    let check = |mark, text: &str| Check::new("daemon", mark, text);
    let settings = &loaded.settings;
    let is_wanted = !settings.watches.is_empty() || settings.control.listen.is_some();
    let Some(socket) = socket(sources) else {
        let (text, fix) = NO_SOCKET_PLACE
            .split_once("; ")
            .unwrap_or((NO_SOCKET_PLACE, ""));
        return check(Sign::Warning, text).with_fix(fix);
    };
    let client = match Client::new(&socket) {
        Ok(client) => client,
        Err(error) => return check(Sign::Bad, &error.to_string()),
    };
    let shown = socket.display();
    match client.readiness().await {
        Ok(_) => ready_daemon(&client, &socket).await,
        Err(ClientError::NotRunning(_)) if is_wanted || socket.exists() => check(
            Sign::Warning,
            &format!("none answers at {shown}"),
        )
        .with_fix("start it: systemctl start runwatch, systemctl --user start runwatch, or runwatch daemon"),
        Err(ClientError::NotRunning(_)) => check(
            Sign::Good,
            &format!("none runs at {shown}; `runwatch wait` needs none"),
        ),
        Err(error @ ClientError::Forbidden(_)) => {
            check(Sign::Bad, &error.to_string()).with_fix("use sudo, or a daemon of your own")
        }
        Err(error @ ClientError::Refused(_)) => {
            check(Sign::Bad, &format!("at {shown}, not ready: {error}")).with_fix("read its log")
        }
        Err(error @ ClientError::Broken { .. }) => {
            check(Sign::Bad, &error.to_string()).with_fix("read its log, and restart it")
        }
    }
}

async fn ready_daemon(client: &Client, socket: &Path) -> Check {
    let own = env!("CARGO_PKG_VERSION");
    let shown = socket.display();
    let check = |mark, text: String| Check::new("daemon", mark, text);
    let version = client.version().await.ok().flatten();
    let notices = client.notices().await.unwrap_or_default();
    let version_text = version.as_deref().unwrap_or("of an unknown version");
    let text = format!("{version_text} is ready at {shown}");
    if let Some(notice) = notices.first() {
        return check(Sign::Warning, format!("{text}; {}", notice_text(notice)))
            .with_fix("`runwatch list` and the log of the daemon say more");
    }
    if version.as_deref() == Some(own) {
        check(Sign::Good, text)
    } else {
        check(Sign::Warning, format!("{text}, and this is {own}"))
            .with_fix("restart the daemon: systemctl restart runwatch")
    }
}

/// Checks the file of the store without opening it: a daemon may have it.
pub(super) async fn store(loaded: &Loaded) -> Check {
    let check = |mark, text: &str| Check::new("store", mark, text);
    if let Some(shared) = &loaded.settings.store.shared {
        return shared_store(shared).await;
    }
    let Some(path) = loaded.settings.store.path.clone() else {
        return check(
            Sign::Warning,
            "no place for it: HOME and STATE_DIRECTORY are not set",
        )
        .with_fix("set store.path");
    };
    if path.as_os_str() == IN_MEMORY {
        return check(Sign::Warning, "in memory: watches end with the daemon")
            .with_fix("set store.path to a file");
    }
    let looked = within_limit(move || store_check(&path)).await;
    looked.unwrap_or_else(|stuck| {
        check(Sign::Bad, &format!("it cannot be looked at: {stuck}"))
            .with_fix("does its disk answer?")
    })
}

/// Checks whether a shared store answers, and who leads. Changes nothing.
async fn shared_store(settings: &SharedStoreSettings) -> Check {
    let check = |mark, text: String| Check::new("store", mark, text);
    let place = format!("PostgreSQL, schema {}", settings.schema);
    let looked = async {
        let connection = shared_connection(settings, "doctor").await?;
        let connection = PostgresSettings {
            migrate: false,
            ..connection
        };
        Ok::<_, anyhow::Error>(Keeper::new(&connection)?.look().await?)
    };
    match tokio::time::timeout(SHARED_LIMIT, looked).await {
        Ok(Ok(row)) if row.holder.is_some() && !row.released => check(
            Sign::Good,
            format!(
                "{place}; {} leads ({}, term {})",
                row.holder_name, row.version, row.epoch
            ),
        ),
        Ok(Ok(_)) => check(Sign::Good, format!("{place}; no daemon leads")),
        Ok(Err(error)) => {
            let failed = check(Sign::Bad, format!("{place}: {error:#}"));
            match error.downcast_ref() {
                Some(StoreError::OldTables { found, known, .. })
                    if settings.migrate == MigrationMode::Auto =>
                {
                    let what = match found {
                        0 => format!("{place}, whose tables the start of a daemon makes"),
                        _ => format!(
                            "{place}, whose tables of version {found} the start of a daemon changes to version {known}"
                        ),
                    };
                    check(Sign::Good, what)
                }
                // It says itself what to do.
                Some(StoreError::Unusable(_) | StoreError::OldTables { .. }) => failed,
                _ => failed.with_fix(
                    "check store.url, the network, and that a daemon has made the tables",
                ),
            }
        }
        Err(_elapsed) => check(Sign::Bad, format!("{place} does not answer"))
            .with_fix("check store.url and the network"),
    }
}

fn store_check(path: &Path) -> Check {
    let shown = path.display();
    let check = |mark, text: String| Check::new("store", mark, text);
    let folder = existing_folder(path);
    let fix_folder = format!(
        "make {} writable for this user, or set store.path to another place",
        folder.display()
    );
    let is_writable = |path: &Path| access(path, Access::WRITE_OK).is_ok();
    match StoreFile::look(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if is_writable(&folder) {
                let text = format!("{shown}, which the first start of the daemon creates");
                check(Sign::Good, text)
            } else {
                let text = format!("{shown} cannot be created in {}", folder.display());
                check(Sign::Bad, text).with_fix(&fix_folder)
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            check(Sign::Warning, format!("{shown} belongs to another user"))
                .with_fix("run this command as the user of the daemon, such as with sudo")
        }
        Err(error) => check(Sign::Bad, format!("{shown} cannot be read ({error})"))
            .with_fix("set store.path to another place"),
        Ok(StoreFile {
            version: None,
            bytes,
            ..
        }) if bytes > 0 => check(Sign::Bad, format!("{shown} is not a database of runwatch"))
            .with_fix("set store.path to another place, or put the right file back"),
        Ok(file) => {
            let version = file.version.unwrap_or_default();
            let size = size_text(file.bytes);
            let text = format!("{shown}, {size}, version {version}");
            if file.is_noted {
                let text = format!("{text}, which was copied, or a copy into it did not end");
                check(Sign::Bad, text).with_fix("`runwatch store check` says where the store is")
            } else if version > StoreFile::KNOWN_VERSION {
                let text = format!(
                    "{text}, and this program knows {}",
                    StoreFile::KNOWN_VERSION
                );
                check(Sign::Bad, text).with_fix("use the runwatch that wrote it, or a newer one")
            } else if is_writable(path) && is_writable(&folder) {
                check(Sign::Good, format!("{text}, writable"))
            } else {
                check(Sign::Bad, format!("{text}, not writable")).with_fix(&fix_folder)
            }
        }
    }
}

/// The folder of a path, or the nearest one above it that exists.
fn existing_folder(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let above = path.ancestors().skip(1);
    let mut existing = above.filter(|folder| folder.exists());
    existing.next().unwrap_or(Path::new("/")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_looked_at_and_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/runwatch.db");
        let check = store_check(&path);
        assert_eq!(check.mark, Sign::Good, "{check:?}");
        assert!(!path.parent().unwrap().exists());

        let path = folder.path().join("runwatch.db");
        std::fs::write(&path, "not a database").unwrap();
        let check = store_check(&path);
        assert!(check.mark == Sign::Bad && check.fix.is_some(), "{check:?}");

        let mut header = b"SQLite format 3\0".to_vec();
        header.resize(2048, 0);
        header[63] = 200;
        std::fs::write(&path, &header).unwrap();
        let check = store_check(&path);
        assert!(
            check.mark == Sign::Bad && check.text.contains("2 KiB, version 200, and this program"),
            "{check:?}"
        );
        let noted = 1_000_000 + StoreFile::KNOWN_VERSION;
        header[60..64].copy_from_slice(&noted.to_be_bytes());
        std::fs::write(&path, &header).unwrap();
        let check = store_check(&path);
        assert!(
            check.mark == Sign::Bad && check.text.contains("which was copied"),
            "{check:?}"
        );
        header[60..64].copy_from_slice(&1_u32.to_be_bytes());
        std::fs::write(&path, &header).unwrap();
        let check = store_check(&path);
        assert!(
            check.mark == Sign::Good && check.text.ends_with("2 KiB, version 1, writable"),
            "{check:?}"
        );
        assert_eq!(std::fs::read(&path).unwrap(), header);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

        let check = store_check(&folder.path().join("runwatch.db/below"));
        assert_eq!(check.mark, Sign::Bad, "{check:?}");
    }
}
