//! The address of a PostgreSQL database (postgresql.org/docs/15/libpq-connect, "Connection URIs").

use std::net::IpAddr;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

/// The parameter of an address that says whether TLS is used (postgresql.org/docs/15/libpq-ssl, "SSL Mode Descriptions").
const MODE: &str = "sslmode";

/// What to write in place of an address with wrong characters.
const ESCAPED: &str = "write special characters of the password as %XX, such as %40 for an @";

/// What is wrong with an address, and what to do. Nothing of the address is in it: a part may be a password.
pub type Refusal = (&'static str, &'static str);

/// Reads an address.
///
/// Without `sslmode`, connections to other machines use TLS, and those to this machine do not. With TLS the certificate
/// is always checked, also where libpq would not: `require` and `verify-ca` mean `verify-full`.
///
/// # Errors
/// When it is not the URL of a PostgreSQL database.
pub fn read_database_url(url: &str) -> Result<Config, Refusal> {
    check_text(url)?;
    let (url, mode) = take_mode(url);
    let mut config: Config = url.parse().map_err(|_detail| {
        (
            "the address of the store cannot be read, or has a parameter that is not known",
            "write postgres://USER:PASSWORD@HOST:PORT/DATABASE, with special characters of the password as %XX",
        )
    })?;
    let hosts = config.get_hosts();
    let unnamed = |host: &Host| matches!(host, Host::Tcp(name) if name.is_empty());
    if hosts.iter().any(unnamed) || (hosts.is_empty() && config.get_hostaddrs().is_empty()) {
        return Err((
            "the address of the store names no host",
            "write postgres://USER@HOST/DATABASE",
        ));
    }
    if !hosts.iter().all(is_plain) {
        return Err((
            "the address of the store has a host with unusual characters",
            ESCAPED,
        ));
    }
    let mode = match mode.as_deref() {
        Some("disable") => SslMode::Disable,
        Some("require" | "verify-ca" | "verify-full") => SslMode::Require,
        None if is_local_database(&config) => SslMode::Disable,
        None => SslMode::Require,
        Some(_) => {
            return Err((
                "sslmode in the address of the store is not known",
                "write disable, require, verify-ca or verify-full",
            ));
        }
    };
    config.ssl_mode(mode);
    config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    Ok(config)
}

/// Whether every host is this machine.
pub fn is_local_database(config: &Config) -> bool {
    config.get_hosts().iter().all(is_local_host)
        && config.get_hostaddrs().iter().all(IpAddr::is_loopback)
}

/// Checks what the reader of the client takes for something else, such as the end of a password for a host.
fn check_text(url: &str) -> Result<(), Refusal> {
    let after_scheme = ["postgres://", "postgresql://"]
        .iter()
        .find_map(|scheme| url.strip_prefix(scheme));
    let Some(rest) = after_scheme else {
        return Err((
            "the address of the store is not the URL of a PostgreSQL database",
            "write postgres://USER@HOST/DATABASE",
        ));
    };
    if rest.contains(char::is_whitespace) || rest.contains('#') {
        return Err((
            "the address of the store has a space, a line end or a #",
            "write them as %20, %0A and %23",
        ));
    }
    let is_escape = |after: &str| {
        let digits = after.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    if !rest.split('%').skip(1).all(is_escape) {
        return Err((
            "the address of the store has a % that two hexadecimal digits do not follow",
            "write a % as %25",
        ));
    }
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    if authority.matches('@').count() > 1 {
        return Err(("the address of the store has more than one @", ESCAPED));
    }
    let hosts = authority.rsplit('@').next().unwrap_or_default();
    let has_port = |host: &str| match host.rsplit_once(':') {
        Some((_, port)) if !host.ends_with(']') => port.parse::<u16>().is_ok_and(|port| port > 0),
        _ => true,
    };
    match hosts.split(',').all(has_port) {
        true => Ok(()),
        false => Err((
            "a port in the address of the store is not a number from 1 to 65535",
            ESCAPED,
        )),
    }
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

/// Whether a host is a path, or has the characters of a name or an address only: it is shown to people.
fn is_plain(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => name
            .chars()
            .all(|c| c.is_alphanumeric() || ".-_:".contains(c)),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_checked_unless_the_server_is_on_this_machine() {
        for (url, mode) in [
            ("postgres://db/runwatch", SslMode::Require),
            ("postgres://u:p@db1,db2:6432/x", SslMode::Require),
            ("postgres://u:p%40%2F%25@db_1.example/x", SslMode::Require),
            ("postgres://u@localhost,db2/x", SslMode::Require),
            ("postgresql://u@localhost/x", SslMode::Disable),
            ("postgres://u@127.0.0.1:6432/x", SslMode::Disable),
            ("postgres://u@[::1]:6432/x", SslMode::Disable),
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
            let config =
                read_database_url(url).unwrap_or_else(|refusal| panic!("{url}: {refusal:?}"));
            assert_eq!(config.get_ssl_mode(), mode, "{url}");
            assert_eq!(
                config.get_target_session_attrs(),
                TargetSessionAttrs::ReadWrite
            );
        }
    }

    #[test]
    fn an_address_that_cannot_be_read_is_refused_and_not_repeated() {
        for url in [
            "mysql://u:hunter2@db/x",
            "hunter2",
            "db.example",
            "postgres://u:hunter2@/x",
            "postgres://u:hunter2@db:port/x",
            "postgres://u:hunter2",
            "postgres://u:hunter2@db/x?sslmode=prefer",
            "postgres://u:hunter2@db/x?sslmode=sometimes",
            "postgres://u:hunter2@db/x?ssl=hunter2",
            "postgres://u:p@hunter2@db/x",
            "postgres://u:p@hunter2@127.0.0.1:5432/x",
            "postgres://u:hunter2%zz@db/x",
            "postgres://u:hunter2%4@db/x",
            "postgres://u:hunter2@[::1/x",
            "postgres://u:hunt;er2@d;b/x",
            "postgres://u:hun/ter2@db/x",
            "postgres://u:hun?ter2@db/x",
            "postgres://u:hun#ter2@db/x",
            "postgres://u:hun ter2@db/x",
        ] {
            let Err((what, fix)) = read_database_url(url) else {
                panic!("{url} is taken");
            };
            assert!(
                !what.contains("hunter2") && !fix.contains("hunter2") && what.contains("the store"),
                "{what}; {fix}"
            );
        }
    }
}
