//! Reads the keys of an e-mail sink.

use std::net::IpAddr;
use std::time::Duration;

use super::reader::{SettingsReader, Table, Violation};
use super::rules::{MIN_TIMEOUT, refusal};
use super::sinks::one_of;
use super::{EmailSettings, EmailTls, Secret};

/// How a connection may be encrypted.
const TLS_MODES: [&str; 3] = ["starttls", "tls", "none"];

/// Time for one attempt: an answer to the end of a message may take long (RFC 5321, section 4.5.3.2.6).
const EMAIL_TIMEOUT: &str = "30s";

/// Longest limit of one attempt.
const MAX_EMAIL_TIMEOUT: Duration = Duration::from_secs(600);

/// Most recipients of a message; servers accept at least 100 (RFC 5321, section 4.5.3.1.8).
const MAX_RECIPIENTS: usize = 50;

/// Longest address with its name, in bytes.
const MAX_ADDRESS_BYTES: usize = 500;

pub(super) fn read_email(
    reader: &mut SettingsReader<'_>,
    table: &mut Table,
) -> Option<EmailSettings> {
    let host = read_required(reader, table, "host", "write the name of the SMTP server");
    let tls = reader.take(table, "tls", Some("starttls"));
    let tls = tls.and_then(|item| reader.parsed(&item, |text| one_of(text, &TLS_MODES)));
    let tls = tls.map(|word| match word {
        "tls" => EmailTls::Tls,
        "none" => EmailTls::None,
        _ => EmailTls::StartTls,
    });
    let usual = match tls {
        Some(EmailTls::Tls) => "465",
        Some(EmailTls::None) => "25",
        Some(EmailTls::StartTls) | None => "587",
    };
    let port = reader.take(table, "port", Some(usual));
    let port = port.and_then(|item| reader.integer(&item, 1, u16::MAX.into()));
    let credentials = read_credentials(reader, table, host.as_deref(), tls);
    let from = read_required(reader, table, "from", "write the address of the sender");
    let to = read_recipients(reader, table);
    let timeout = reader.take(table, "timeout", Some(EMAIL_TIMEOUT));
    let timeout = timeout.and_then(|item| reader.duration(&item, MIN_TIMEOUT, MAX_EMAIL_TIMEOUT));
    Some(EmailSettings {
        host: host?,
        port: u16::try_from(port?).ok()?,
        tls: tls?,
        credentials: credentials?,
        from: from?,
        to: to?,
        timeout: timeout?,
    })
}

/// A text that must be there. That of `from` is an address.
fn read_required(
    reader: &mut SettingsReader<'_>,
    table: &mut Table,
    name: &str,
    fix: &str,
) -> Option<String> {
    let Some(item) = reader.take(table, name, None) else {
        reader.missing(table, name, fix);
        return None;
    };
    let rule = if name == "from" { address } else { host_name };
    reader.parsed(&item, |text| rule(text).map(|()| text.to_owned()))
}

/// The user name and the password; `None` where they cannot be used.
fn read_credentials(
    reader: &mut SettingsReader<'_>,
    table: &mut Table,
    host: Option<&str>,
    tls: Option<EmailTls>,
) -> Option<Option<(String, Secret)>> {
    let user = reader.take(table, "username", None);
    let password = reader.take_secret(table, "password");
    let Some(item) = user else {
        if let Some(found) = password {
            let fix = "write username, or remove the password";
            reader.refuse_unseen(found.item(), "there is no user name for it", fix);
            return None;
        }
        reader.show_unset(table, "username");
        return Some(None);
    };
    let user = reader.text(&item);
    if tls == Some(EmailTls::None) && !host.is_some_and(is_loopback) {
        let what = "the password would be sent unencrypted";
        reader.refuse(&item, what, "set tls to starttls or tls");
        return None;
    }
    let Some(found) = password else {
        if !reader.has_problem_at(table, "password") {
            let fix = "write password_file for the path of a file that holds it, or password";
            reader.missing(table, "password", fix);
        }
        return None;
    };
    let password = reader.secret(found, |_any| Ok(()));
    Some(Some((user?, password?)))
}

fn read_recipients(reader: &mut SettingsReader<'_>, table: &mut Table) -> Option<Vec<String>> {
    let Some(item) = reader.take(table, "to", None) else {
        let fix = "write the addresses of the recipients: to = [\"ops@example.com\"]";
        reader.missing(table, "to", fix);
        return None;
    };
    let all = reader.texts(&item)?;
    let wrong = all.iter().find_map(|text| address(text).err());
    let wrong = match all.len() {
        1..=MAX_RECIPIENTS => wrong,
        _ => Some(refusal(
            "there are too few or too many of them",
            "write 1 to 50 addresses",
        )),
    };
    if let Some((what, fix)) = wrong {
        reader.refuse(&item, what, fix);
        return None;
    }
    Some(all)
}

/// Whether a connection to this host stays on this machine.
fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

fn host_name(text: &str) -> Result<(), Violation> {
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | ':' | '_');
    if !text.is_empty() && text.len() <= 253 && text.chars().all(allowed) {
        Ok(())
    } else {
        let what = "this is not the name of a server";
        Err(refusal(
            what,
            "write it without a scheme, such as smtp.example.com",
        ))
    }
}

/// What every address has; the sink checks the rest.
fn address(text: &str) -> Result<(), Violation> {
    let is_address = text.contains('@') && text.len() <= MAX_ADDRESS_BYTES;
    if is_address && !text.chars().any(char::is_control) {
        Ok(())
    } else {
        let what = "this is not an e-mail address";
        let fix = "write it as ops@example.com or \"Name <ops@example.com>\"";
        Err(refusal(what, fix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{SinkKind, Sources, load};

    /// Loads an e-mail sink with these keys.
    fn loaded(keys: &str) -> Result<EmailSettings, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        std::fs::write(&file, format!("[sinks.o]\ntype = \"email\"\n{keys}\n")).unwrap();
        let sources = Sources {
            explicit: Some(file),
            ..Sources::default()
        };
        let settings = load(&sources).map_err(|problems| problems.to_string())?;
        match settings.settings.sinks.into_values().next().unwrap().kind {
            SinkKind::Email(email) => Ok(*email),
            other => panic!("{other:?}"),
        }
    }

    const COMMON: &str = "from = \"a@b\"\nto = [\"Ann <c@d>\"]";

    #[test]
    fn the_port_follows_from_the_encryption() {
        for (tls, port) in [
            ("", 587),
            ("tls = \"starttls\"", 587),
            ("tls = \"tls\"", 465),
            ("tls = \"none\"", 25),
            ("tls = \"tls\"\nport = 4650", 4650),
        ] {
            let email = loaded(&format!("host = \"smtp.example\"\n{COMMON}\n{tls}")).unwrap();
            assert_eq!(email.port, port, "{tls}");
        }
    }

    #[test]
    fn a_password_goes_unencrypted_to_this_machine_only() {
        let keys = |host: &str| {
            let password = "username = \"u\"\npassword = \"p\"\ntls = \"none\"";
            loaded(&format!("host = {host:?}\n{COMMON}\n{password}"))
        };
        for host in ["localhost", "127.0.0.1", "::1"] {
            assert!(keys(host).unwrap().credentials.is_some());
        }
        let problem = keys("smtp.example").unwrap_err();
        assert!(problem.contains("would be sent unencrypted"), "{problem}");
    }

    #[test]
    fn mistakes_are_named() {
        for (keys, mistake) in [
            (COMMON, "write the name of the SMTP server"),
            (
                "host = \"https://smtp.example\"\nfrom = \"a@b\"\nto = [\"c@d\"]",
                "without a scheme",
            ),
            (
                "host = \"smtp.example\"\nfrom = \"a\"\nto = [\"c@d\"]",
                "not an e-mail address",
            ),
            ("host = \"h\"\nfrom = \"a@b\"\nto = []", "write 1 to 50"),
            (
                "host = \"h\"\nfrom = \"a@b\"",
                "addresses of the recipients",
            ),
            (
                "host = \"h\"\nfrom = \"a@b\"\nto = [\"c@d\"]\nusername = \"u\"",
                "write password_file",
            ),
            (
                "host = \"h\"\nfrom = \"a@b\"\nto = [\"c@d\"]\npassword = \"p\"",
                "there is no user name for it",
            ),
        ] {
            let problem = loaded(keys).unwrap_err();
            assert!(problem.contains(mistake), "{keys}: {problem}");
            assert_eq!(problem.lines().count(), 1, "{problem}");
        }
    }
}
