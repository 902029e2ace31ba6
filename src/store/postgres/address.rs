//! Where the PostgreSQL server is, and whether its certificate is checked.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use secrecy::{ExposeSecret as _, SecretString};
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres_rustls_improved::MakeRustlsConnect;

use crate::store::model::StoreError;

/// The parameter of an address that says whether TLS is used (postgresql.org/docs/15/libpq-ssl, "SSL Mode Descriptions").
const MODE: &str = "sslmode";

/// Reads an address. Its words are not repeated in errors, because one of them is a password.
///
/// Without `sslmode`, connections to other machines use TLS, and those to this machine do not. With TLS the certificate
/// is always checked, also where libpq would not: `require` and `verify-ca` mean `verify-full`.
///
/// # Errors
/// When it is not the URL of a PostgreSQL database.
pub(super) fn read_address(url: &SecretString) -> Result<Config, StoreError> {
    let (url, mode) = take_mode(url.expose_secret());
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(StoreError::Address(
            "the address of the store is not a URL of PostgreSQL; write postgres://USER@HOST/DATABASE",
        ));
    }
    let mut config: Config = url.parse().map_err(|_detail| {
        StoreError::Address(
            "the address of the store cannot be read; write postgres://USER:PASSWORD@HOST:PORT/DATABASE, with special \
             characters of the password as %XX",
        )
    })?;
    let unnamed = |host: &Host| matches!(host, Host::Tcp(name) if name.is_empty());
    let hosts = config.get_hosts();
    if hosts.iter().any(unnamed) || (hosts.is_empty() && config.get_hostaddrs().is_empty()) {
        return Err(StoreError::Address(
            "the address of the store names no host; write postgres://USER@HOST/DATABASE",
        ));
    }
    let is_local = is_local(&config);
    let mode = match mode.as_deref() {
        Some("disable") => SslMode::Disable,
        Some("require" | "verify-ca" | "verify-full") => SslMode::Require,
        None if is_local => SslMode::Disable,
        None => SslMode::Require,
        Some(_) => {
            return Err(StoreError::Address(
                "sslmode in the address of the store is not one of disable, require, verify-ca and verify-full",
            ));
        }
    };
    config.ssl_mode(mode);
    config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    Ok(config)
}

/// Splits `sslmode` off the parameters of a URL.
fn take_mode(url: &str) -> (String, Option<String>) {
    let Some((place, parameters)) = url.rsplit_once('?') else {
        return (url.to_owned(), None);
    };
    let mut mode = None;
    let others: Vec<_> = parameters
        .split('&')
        .filter(|parameter| match parameter.split_once('=') {
            Some((MODE, value)) => {
                mode = Some(value.to_owned());
                false
            }
            _ => true,
        })
        .collect();
    match others.is_empty() {
        true => (place.to_owned(), mode),
        false => (format!("{place}?{}", others.join("&")), mode),
    }
}

/// Whether every host is this machine.
pub(super) fn is_local(config: &Config) -> bool {
    config.get_hosts().iter().all(is_local_host)
        && config.get_hostaddrs().iter().all(IpAddr::is_loopback)
}

/// Whether a host is this machine.
fn is_local_host(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost"
                || name
                    .parse()
                    .is_ok_and(|address: IpAddr| address.is_loopback())
        }
    }
}

/// Makes TLS connections that trust the authorities in `ca_file`, or else those of the system. Blocks on the disk.
///
/// # Errors
/// When there are none.
pub(super) fn read_authorities(ca_file: Option<&Path>) -> Result<MakeRustlsConnect, io::Error> {
    let found = match ca_file {
        Some(path) => CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found);
    if roots.is_empty() {
        let place = ca_file.map_or("the system".into(), Path::to_string_lossy);
        return Err(io::Error::other(format!(
            "{place} has no certificates of authorities"
        )));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

/// How connections are secured.
#[derive(Debug, Clone)]
pub(super) enum Security {
    /// Not at all: the server is on this machine, or the address says so.
    Plain,
    /// By TLS, with the authorities in a file, or else those of the system.
    Tls(Option<PathBuf>),
}

impl Security {
    /// That of an address.
    pub(super) fn of(config: &Config, ca_file: Option<PathBuf>) -> Self {
        match config.get_ssl_mode() {
            SslMode::Disable => Self::Plain,
            _ => Self::Tls(ca_file),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Result<Config, StoreError> {
        read_address(&SecretString::from(url.to_owned()))
    }

    #[test]
    fn certificates_are_checked_unless_the_server_is_on_this_machine() {
        for (url, mode) in [
            ("postgres://db/runwatch", SslMode::Require),
            ("postgres://u:p@db1,db2:6432/x", SslMode::Require),
            ("postgres://u@localhost,db2/x", SslMode::Require),
            ("postgresql://u@localhost/x", SslMode::Disable),
            ("postgres://u@127.0.0.1:6432/x", SslMode::Disable),
            ("postgres://u@%2Frun%2Fpostgresql/x", SslMode::Disable),
            ("postgres:///x?host=/run/postgresql", SslMode::Disable),
            ("postgres://u@db/x?sslmode=disable", SslMode::Disable),
            (
                "postgres://u@localhost/x?sslmode=verify-full",
                SslMode::Require,
            ),
            (
                "postgres://u@db/x?connect_timeout=3&sslmode=verify-ca",
                SslMode::Require,
            ),
        ] {
            let config = read(url).unwrap();
            assert_eq!(config.get_ssl_mode(), mode, "{url}");
            assert_eq!(
                config.get_target_session_attrs(),
                TargetSessionAttrs::ReadWrite
            );
        }
    }

    #[test]
    fn an_address_that_cannot_be_read_is_not_repeated() {
        for url in [
            "mysql://u:hunter2@db/x",
            "hunter2",
            "postgres://u:hunter2@/x",
            "postgres://u:hunter2@db:port/x",
            "postgres://u:hunter2",
            "postgres://u:hunter2@db/x?sslmode=prefer",
            "postgres://u:hunter2@db/x?ssl=hunter2",
        ] {
            let refused = read(url).map(|_| url).unwrap_err();
            let shown = format!("{refused} {refused:?}");
            assert!(
                !shown.contains("hunter2") && shown.contains("the store"),
                "{shown}"
            );
        }
    }
}
