//! What is allowed in a configuration and still most likely a mistake.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use secrecy::ExposeSecret as _;

use super::load::Loaded;
use super::problem::{Origin, Problem};
use super::rules::MAKE_SIGNING_SECRET;
use super::{Secret, Settings, SinkKind, WebhookFormat};
use crate::blocking;
use crate::redact::MIN_SECRET;

/// Mode bits by which others than the owner of a file may read it.
const OTHERS_MAY_READ: u32 = 0o044;

/// Returns what should be corrected although the configuration can be used: a missing or very short key, a base URL
/// with `/v1`, secrets that other users may read, webhooks without a signature. Looks at files, for some seconds at
/// most.
pub fn advice(loaded: &Loaded) -> Vec<Problem> {
    let mut found = Vec::new();
    found.extend(missing_key(loaded));
    found.extend(short_keys(loaded));
    found.extend(versioned_base_url(loaded));
    found.extend(unsigned_webhooks(loaded));
    found.extend(open_files(loaded));
    found
}

fn origin_of(loaded: &Loaded, key: &str) -> Option<Origin> {
    let entries = loaded.effective.0.iter();
    let mut of_key = entries.filter(|entry| format!("{}.{}", entry.table, entry.key) == key);
    let origin = of_key.next()?.origin.clone();
    (origin != Origin::Default).then_some(origin)
}

fn missing_key(loaded: &Loaded) -> Option<Problem> {
    (!loaded.settings.providers.has_account()).then(|| Problem {
        origin: None,
        key: "api.key_file".to_owned(),
        value: None,
        what: "there is no API key, so no run can be polled".to_owned(),
        fix: "set CREWSHIP_API_KEY, or write the path of a file with the key".to_owned(),
    })
}

/// Keys that are so short that texts are searched for them as words only; those of services are much longer.
fn short_keys(loaded: &Loaded) -> Vec<Problem> {
    let secrets = secrets(&loaded.settings).into_iter();
    let keys = secrets.filter(|(name, _)| {
        name == "api.key" || name.starts_with("providers.") && name.ends_with(".key")
    });
    let short = keys.filter_map(|(name, secret)| {
        let name = match secret {
            Secret::File(_) => format!("{name}_file"),
            Secret::Value(_) => name,
        };
        let secret = secret.clone();
        let key = blocking::within_file_limit(move || secret.read().map_err(std::io::Error::other));
        (key.ok()?.expose_secret().chars().count() < MIN_SECRET).then(|| Problem {
            origin: origin_of(loaded, &name),
            key: name,
            value: None,
            what: format!("the API key has fewer than {MIN_SECRET} characters"),
            fix: "check that it is complete".to_owned(),
        })
    });
    short.collect()
}

/// The paths of the API begin with `/v1`, which a base URL that ends in it would double: each poll gets a 404.
fn versioned_base_url(loaded: &Loaded) -> Option<Problem> {
    let base_url = &loaded.settings.api.base_url;
    let shorter = base_url
        .strip_suffix("/runs")
        .unwrap_or(base_url)
        .strip_suffix("/v1")?;
    Some(Problem {
        origin: origin_of(loaded, "api.base_url"),
        key: "api.base_url".to_owned(),
        value: Some(format!("{base_url:?}")),
        what: format!("runs would be polled at {base_url}/v1/runs"),
        fix: format!("leave out the end: {shorter:?}"),
    })
}

/// Webhooks whose receiver cannot know who sent a message. Chat services know by the address.
fn unsigned_webhooks(loaded: &Loaded) -> Vec<Problem> {
    let sinks = loaded.settings.sinks.iter();
    let unsigned = sinks.filter(|(_, sink)| {
        matches!(&sink.kind, SinkKind::Webhook(webhook)
            if webhook.secret.is_none() && webhook.format == WebhookFormat::Standard)
    });
    unsigned
        .map(|(name, _)| Problem {
            origin: origin_of(loaded, &format!("sinks.{name}.type")),
            key: format!("sinks.{name}.secret_file"),
            value: None,
            what: "the webhook is not signed, so its receiver cannot know who sent a message"
                .to_owned(),
            fix: format!(
                "write the path of a file with a signing secret; {MAKE_SIGNING_SECRET} makes one"
            ),
        })
        .collect()
}

/// Files with secrets that other users may read. Credentials of systemd are in a folder of the service's own.
fn open_files(loaded: &Loaded) -> Vec<Problem> {
    let mut found = Vec::new();
    for (key, secret) in secrets(&loaded.settings) {
        let (path, file_key) = match secret {
            Secret::File(path) => (path.clone(), format!("{key}_file")),
            Secret::Value(_) => match origin_of(loaded, &key) {
                Some(Origin::File { path, .. }) => (path, key),
                _ => continue,
            },
        };
        let origin = origin_of(loaded, &file_key);
        // A profile may name the file, such as the token of a service account, which is not the user's to change.
        let is_of_profile = origin.is_none() && file_key.starts_with("providers.");
        if is_of_profile || matches!(origin, Some(Origin::Credential { .. })) {
            continue;
        }
        let Some(who) = who_may_read(&path) else {
            continue;
        };
        let path = path.display();
        found.push(Problem {
            origin,
            key: file_key,
            value: None,
            what: format!("{path} holds a secret, and {who} may read it"),
            fix: format!("chmod 600 {path}"),
        });
    }
    found
}

/// Who besides the owner may read a file; `None` if only the owner may, or that cannot be known.
fn who_may_read(path: &Path) -> Option<&'static str> {
    let path = path.to_owned();
    let status = blocking::within_file_limit(move || std::fs::metadata(path)).ok()?;
    let open = status.mode() & OTHERS_MAY_READ;
    match (status.is_file(), open & 0o004 != 0, open != 0) {
        (true, true, _) => Some("every user of this machine"),
        (true, false, true) => Some("its group"),
        _ => None,
    }
}

/// Every secret with its key, without `_file`.
fn secrets(settings: &Settings) -> Vec<(String, &Secret)> {
    let mut found = Vec::new();
    found.extend(
        settings
            .api
            .key
            .iter()
            .map(|key| ("api.key".to_owned(), key)),
    );
    for account in settings.providers.configured() {
        let key = account.api.key.iter().map(|secret| ("key", secret));
        let password = account.password.iter().map(|secret| ("password", secret));
        let both = key.chain(password);
        found.extend(
            both.map(|(key, secret)| (format!("providers.{}.{key}", account.name), secret)),
        );
    }
    let token = settings.control.token.iter();
    found.extend(token.map(|token| ("control.token".to_owned(), token)));
    let heartbeat = settings.heartbeat.iter();
    found.extend(heartbeat.map(|heartbeat| ("heartbeat.url".to_owned(), &heartbeat.url)));
    for (name, sink) in &settings.sinks {
        if let SinkKind::Email(email) = &sink.kind {
            let password = email.credentials.iter().map(|(_user, password)| password);
            found.extend(password.map(|secret| (format!("sinks.{name}.password"), secret)));
        }
        if let SinkKind::Webhook(webhook) = &sink.kind {
            found.push((format!("sinks.{name}.url"), &webhook.url));
            let secret = webhook.secret.iter();
            found.extend(secret.map(|secret| (format!("sinks.{name}.secret"), secret)));
            let headers = webhook.headers.iter();
            found.extend(
                headers.map(|(header, value)| (format!("sinks.{name}.headers.{header}"), value)),
            );
            let values = webhook.values.iter();
            found.extend(
                values.map(|(value, secret)| (format!("sinks.{name}.values.{value}"), secret)),
            );
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::config::{Sources, load};

    fn advice_on(folder: &Path, text: &str) -> Vec<String> {
        let file = folder.join("config.toml");
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let sources = Sources {
            explicit: Some(file),
            ..Sources::default()
        };
        let found = advice(&load(&sources).unwrap());
        let shown =
            |problem: &Problem| problem.to_string().replace(folder.to_str().unwrap(), "DIR");
        found.iter().map(shown).collect()
    }

    #[test]
    fn what_is_most_likely_a_mistake_is_named_with_its_remedy() {
        let folder = tempfile::tempdir().unwrap();
        for (name, mode) in [("key", 0o600), ("url", 0o640), ("ops-secret", 0o644)] {
            let path = folder.path().join(name);
            let text = match name {
                "url" => "https://hooks.example/1".to_owned(),
                "key" => "ck_12345".to_owned(),
                _ => format!("whsec_{}", "A".repeat(32)),
            };
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        insta::assert_snapshot!(advice_on(
            folder.path(),
            "[api]\nbase_url = \"https://api.example.com/v1\"\n[sinks.ops]\ntype = \"webhook\"\nurl_file = \"url\"\n\
             secret_file = \"ops-secret\"\n[sinks.bare]\ntype = \"webhook\"\nurl = \"http://127.0.0.1:1/\"\n\
             [sinks.chat]\ntype = \"webhook\"\nformat = \"slack\"\nurl = \"http://127.0.0.1:1/\"\n"
        )
        .join("\n"), @r#"
        api.key_file: there is no API key, so no run can be polled; set CREWSHIP_API_KEY, or write the path of a file with the key
        DIR/config.toml:2:12: api.base_url = "https://api.example.com/v1": runs would be polled at https://api.example.com/v1/v1/runs; leave out the end: "https://api.example.com"
        DIR/config.toml:8:8: sinks.bare.secret_file: the webhook is not signed, so its receiver cannot know who sent a message; write the path of a file with a signing secret; `echo "whsec_$(openssl rand -base64 32)"` makes one
        DIR/config.toml:5:12: sinks.ops.url_file: DIR/url holds a secret, and its group may read it; chmod 600 DIR/url
        DIR/config.toml:6:15: sinks.ops.secret_file: DIR/ops-secret holds a secret, and every user of this machine may read it; chmod 600 DIR/ops-secret
        "#);
        let short = "[api]\nkey = \"ck_1234\"\n";
        let found = advice_on(folder.path(), short).join("\n");
        assert!(
            found.ends_with("the API key has fewer than 8 characters; check that it is complete")
                && !found.contains("ck_1234"),
            "{found}"
        );
        let file = folder.path().join("gh-token");
        std::fs::write(&file, "gh_123").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let text = "[providers.github]\nkey_file = \"gh-token\"\n";
        let found = advice_on(folder.path(), text);
        insta::assert_snapshot!(found.join("\n"), @r"
        DIR/config.toml:2:12: providers.github.key_file: the API key has fewer than 8 characters; check that it is complete
        DIR/config.toml:2:12: providers.github.key_file: DIR/gh-token holds a secret, and every user of this machine may read it; chmod 600 DIR/gh-token
        ");
        let well = "[api]\nkey_file = \"key\"\n[sinks.log]\ntype = \"log\"\n";
        assert_eq!(advice_on(folder.path(), well), [] as [String; 0]);
    }

    #[test]
    fn a_configuration_with_a_secret_in_it_is_for_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        let text = "[api]\nkey = \"ck_12345\"\n";
        assert_eq!(advice_on(folder.path(), text), [] as [String; 0]);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let sources = Sources {
            explicit: Some(file),
            ..Sources::default()
        };
        let found = advice(&load(&sources).unwrap());
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].fix.starts_with("chmod 600") && !found[0].to_string().contains("ck_12345")
        );
    }
}
