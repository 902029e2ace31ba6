//! Takes secrets, which may stand in a file of their own, and checks them without showing them.

use secrecy::{ExposeSecret as _, SecretString};

use super::{Item, Reader, Table, Violation};
use crate::config::effective::REDACTED;
use crate::config::rules::SIGNING_PREFIX;
use crate::config::source::Place;
use crate::config::{Secret, SecretError};

/// A secret and where it is configured.
pub(in crate::config) struct SecretItem {
    item: Item,
    in_file: bool,
}

impl SecretItem {
    /// Where it stands.
    pub(in crate::config) fn place(&self) -> &Place {
        &self.item.place
    }

    /// The key that gives it.
    pub(in crate::config) fn item(&self) -> &Item {
        &self.item
    }
}

impl Reader<'_> {
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
                let (what, fix) = unusable(&error);
                // What does not look like a path may be the secret itself in the wrong place.
                if text.starts_with(['/', '~', '.']) {
                    self.refuse(item, what, fix);
                } else {
                    self.refuse_unseen(item, &what, fix);
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

/// What is wrong with a secret file; its path stands beside it, where it may be shown.
fn unusable(error: &SecretError) -> (String, &'static str) {
    match error {
        SecretError::Unreadable { source, .. } => (
            format!("the secret file cannot be read ({source})"),
            "check the path and its permissions",
        ),
        SecretError::Empty { .. } => (
            "the secret file is empty".to_owned(),
            "write the secret into it",
        ),
        SecretError::TooLarge { .. } => (
            "the secret file is too large for a secret".to_owned(),
            "check the path",
        ),
    }
}
