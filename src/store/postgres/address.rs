//! Where the PostgreSQL server is, and whether its certificate is checked.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use secrecy::{ExposeSecret as _, SecretString};
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls_improved::MakeRustlsConnect;

use crate::config::read_database_url;
use crate::store::model::StoreError;

/// Reads an address. Its words are not repeated in errors, because one of them is a password.
///
/// # Errors
/// As [`read_database_url`].
pub(super) fn read_address(url: &SecretString) -> Result<Config, StoreError> {
    read_database_url(url.expose_secret()).map_err(|(what, fix)| StoreError::Address { what, fix })
}

/// An address with the user and the password of another one; `None` where that is of another database.
pub(super) fn with_credentials(config: &Config, of: &Config) -> Option<Config> {
    let database = |config: &Config| {
        let name = config.get_dbname().or(config.get_user());
        name.map(str::to_owned)
    };
    let is_same = config.get_hosts() == of.get_hosts()
        && config.get_hostaddrs() == of.get_hostaddrs()
        && config.get_ports() == of.get_ports()
        && database(config) == database(of);
    if !is_same {
        return None;
    }
    let mut with = config.clone();
    if let Some(user) = of.get_user() {
        with.user(user);
    }
    if let Some(password) = of.get_password() {
        with.password(password);
    }
    Some(with)
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
