//! Takes secrets, which may stand in a file of their own, and checks them without showing them.

use std::path::Path;

use secrecy::{ExposeSecret as _, SecretString};

use super::{Item, SettingsReader, Table, Violation};
use crate::config::rules::SIGNING_PREFIX;
use crate::config::source::SourcePlace;
use crate::config::{Secret, SecretError};
use crate::redact::REDACTED;

/// A secret and where it is configured.
pub(in crate::config) struct SecretItem {
    item: Item,
    in_file: bool,
}

impl SecretItem {
    /// Where it stands.
    pub(in crate::config) fn place(&self) -> &SourcePlace {
        &self.item.place
    }

    /// The key that gives it.
    pub(in crate::config) fn item(&self) -> &Item {
        &self.item
    }
}

impl SettingsReader<'_> {
    /// Takes a secret, given as `name` or, as a file, `name_file`. Of two in different layers the
    /// later one wins; two in one layer are a problem.
    pub(in crate::config) fn take_secret(
        &mut self,
        table: &mut Table,
        name: &str,
    ) -> Option<SecretItem> {
        let inline = self.take(table, name, None);
        let file = self.take(table, &format!("{name}_file"), None);
        // An empty path stands for none, as in the documented defaults.
        let file = file.filter(|item| item.as_text() != Some(""));
        match (inline, file) {
            (Some(inline), Some(file)) if inline.place.rank == file.place.rank => {
                let what = format!("both {name} and {name}_file are set");
                self.refuse_unseen(&inline, &what, "keep one of them; the file is safer");
                None
            }
            (Some(inline), Some(file)) if inline.place.rank > file.place.rank => Some(SecretItem {
                item: inline,
                in_file: false,
            }),
            (_, Some(item)) => Some(SecretItem {
                item,
                in_file: true,
            }),
            (Some(item), None) => Some(SecretItem {
                item,
                in_file: false,
            }),
            (None, None) => None,
        }
    }

    /// Checks a secret and what is in its file.
    pub(in crate::config) fn secret(
        &mut self,
        found: SecretItem,
        rule: fn(&str) -> Result<(), Violation>,
    ) -> Option<Secret> {
        let secret = self.unshown_secret(&found, rule)?;
        let shown = match &secret {
            Secret::Value(_) => REDACTED.to_owned(),
            Secret::File(path) => path.display().to_string(),
        };
        self.show(&found.item, Some(shown.into()));
        Some(secret)
    }

    /// Checks a secret without a note for `config show`.
    pub(in crate::config) fn unshown_secret(
        &mut self,
        found: &SecretItem,
        rule: fn(&str) -> Result<(), Violation>,
    ) -> Option<Secret> {
        let item = &found.item;
        let Some(text) = item.as_text() else {
            self.refuse_unseen(item, "this must be a string", "put it in quotes");
            return None;
        };
        let secret = if found.in_file {
            // People put the secret itself here; it must not come back in a message.
            if text.contains("://")
                || text.starts_with(SIGNING_PREFIX)
                || text.chars().any(char::is_control)
            {
                let inline = item.name.trim_end_matches("_file");
                let fix =
                    format!("write the path of a file that holds it, or use the key {inline}");
                self.refuse_unseen(item, "this is not a path", &fix);
                return None;
            }
            Secret::File(self.resolve(item, text)?)
        } else {
            Secret::value(text)
        };
        match secret.read() {
            Ok(value) => self.check_secret(found, &value, rule).then_some(secret),
            Err(error) => {
                // What does not look like a path may be the secret itself in the wrong place.
                if let (Secret::File(path), true) = (&secret, is_surely_a_path(text)) {
                    let (what, fix) = unusable(&error, &whole(path), true);
                    self.refuse(item, what, fix);
                } else {
                    let named = format!("that {} names in {}", item.name, whole(item.folder()));
                    let (what, fix) = unusable(&error, &named, false);
                    self.refuse_unseen(item, &what, &fix);
                }
                None
            }
        }
    }

    fn check_secret(
        &mut self,
        found: &SecretItem,
        value: &SecretString,
        rule: fn(&str) -> Result<(), Violation>,
    ) -> bool {
        let value = value.expose_secret();
        let checked = if value.is_empty() {
            Err((
                "this is empty".to_owned(),
                "write the value, or remove the key".to_owned(),
            ))
        } else {
            rule(value)
        };
        let Err((what, fix)) = checked else {
            return true;
        };
        if found.in_file {
            self.refuse(&found.item, format!("in that file: {what}"), fix);
        } else {
            self.refuse_unseen(&found.item, &what, &fix);
        }
        false
    }
}

/// Words of which one is in the name of most files with a secret.
const FILE_WORDS: [&str; 8] = [
    "key", "token", "secret", "url", "hook", "webhook", "password", "crewship",
];

/// Whether a text names a file, rather than being a secret in the wrong place: it begins like a path, or has no digits
/// and capitals, as a random secret has, and a folder, an ending or one of [`FILE_WORDS`].
fn is_surely_a_path(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || matches!(c, '_' | '-' | '.' | '/');
    text.starts_with(['/', '~', '.'])
        || text.chars().all(plain)
            && (text.contains(['/', '.'])
                || text
                    .split(['-', '_'])
                    .any(|word| FILE_WORDS.contains(&word)))
}

/// A path from the root on.
fn whole(path: &Path) -> String {
    // Of an empty path that is the current folder.
    let path = Path::new(".").join(path);
    let path = std::path::absolute(&path).unwrap_or(path);
    path.display().to_string()
}

/// What is wrong with the secret file `named`, and what to do; `is_path` when that is its path.
fn unusable(error: &SecretError, named: &str, is_path: bool) -> (String, String) {
    let written = if is_path {
        format!("install -m 600 /dev/stdin {}", quoted(named))
    } else {
        "install -m 600 /dev/stdin PATH".to_owned()
    };
    let create = format!("enter `{written}`, paste the secret, and end with Ctrl-D");
    match error {
        SecretError::Unreadable { source, .. } => {
            let fix = if source.kind() == std::io::ErrorKind::NotFound {
                format!("to create it, {create}")
            } else {
                "check the path and its permissions".to_owned()
            };
            (
                format!("the secret file {named} cannot be read ({source})"),
                fix,
            )
        }
        SecretError::Empty { .. } => (
            format!("the secret file {named} is empty"),
            format!("to fill it, {create}"),
        ),
        SecretError::TooLarge { .. } => (
            format!("the secret file {named} is too large for a secret"),
            "check the path".to_owned(),
        ),
    }
}

/// A path as a shell takes it as one word.
fn quoted(path: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '+' | ',');
    if path.chars().all(plain) {
        path.to_owned()
    } else {
        format!("'{}'", path.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_in_place_of_a_path_is_not_taken_for_a_path() {
        for path in [
            "/run/secrets/x1",
            "~/K",
            "./a",
            "crewship-api-key",
            "ops-secret",
            "keys/prod",
            "token.txt",
        ] {
            assert!(is_surely_a_path(path), "{path}");
        }
        for secret in [
            "ck_live_0123456789abcdef",
            "abcdefghij",
            "Token",
            "key 1",
            "sk-3f9a",
            "correct-horse-battery",
            "monkeys",
        ] {
            assert!(!is_surely_a_path(secret), "{secret}");
        }
    }

    #[test]
    fn a_path_is_one_word_for_a_shell() {
        assert_eq!(quoted("/etc/runwatch/key"), "/etc/runwatch/key");
        assert_eq!(quoted("/a b/it's"), "'/a b/it'\\''s'");
    }
}
