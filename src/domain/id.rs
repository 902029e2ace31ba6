//! Identifiers: checked when made, opaque afterwards.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A text that is not an identifier of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {kind}: {rule}")]
pub struct InvalidId {
    kind: &'static str,
    text: String,
    rule: &'static str,
}

/// Longest text of an identifier that an error message repeats, in characters.
const SHOWN_CHARS: usize = 60;

impl InvalidId {
    fn new(kind: &'static str, text: &str, rule: &'static str) -> Self {
        let mut shown: String = text.chars().take(SHOWN_CHARS).collect();
        if shown.len() < text.len() {
            shown.push('…');
        }
        Self {
            kind,
            text: shown,
            rule,
        }
    }

    /// What a text of this kind looks like.
    pub fn rule(&self) -> &'static str {
        self.rule
    }
}

/// The ID of a run, as the API gave it: 1 to 128 of `A-Z a-z 0-9 _ - .`, neither `.` nor `..`.
///
/// The API documents the prefix `run_` and no length, so nothing but what would be
/// unsafe in a URL path is refused.
///
/// ```
/// use runwatch::domain::RunId;
/// assert_eq!(RunId::new("run_xyz789abc").unwrap().as_str(), "run_xyz789abc");
/// assert!(RunId::new("../keys").is_err());
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct RunId(Box<str>);

impl RunId {
    const RULE: &'static str =
        "a run ID is 1 to 128 of the characters A-Z a-z 0-9 _ - . and is neither \".\" nor \"..\"";

    /// Checks `text` and takes it as a run ID.
    ///
    /// # Errors
    /// [`InvalidId`] when a character, the length or the whole text is not allowed.
    pub fn new(text: &str) -> Result<Self, InvalidId> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
        let valid = (1..=128).contains(&text.len())
            && text.bytes().all(allowed)
            && text != "."
            && text != "..";
        if valid {
            Ok(Self(text.into()))
        } else {
            Err(InvalidId::new("run ID", text, Self::RULE))
        }
    }

    /// The ID as text, safe as one segment of a URL path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of a configured sink: the key after `sinks.`, 1 to 64 of `A-Z a-z 0-9 _ -`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct SinkName(Box<str>);

impl SinkName {
    const RULE: &'static str = "a sink name is 1 to 64 of the characters A-Z a-z 0-9 _ -";

    /// Checks `text` and takes it as a sink name.
    ///
    /// # Errors
    /// [`InvalidId`] when a character or the length is not allowed.
    pub fn new(text: &str) -> Result<Self, InvalidId> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        let valid = (1..=64).contains(&text.len()) && text.bytes().all(allowed);
        if valid {
            Ok(Self(text.into()))
        } else {
            Err(InvalidId::new("sink name", text, Self::RULE))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The ID of one delivery: the same on every attempt, sent as `webhook-id`.
///
/// It starts with `msg_`, as the Standard Webhooks specification suggests for message IDs, and
/// sorts by the time it was made.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct DeliveryId(Box<str>);

impl DeliveryId {
    /// The ID of this number. IDs sort as the numbers do.
    pub fn of(number: u128) -> Self {
        Self(format!("msg_{number:032x}").into())
    }

    /// An ID read back, from the store or a command line: `msg_` and 1 to 60 letters or digits.
    ///
    /// # Errors
    /// [`InvalidId`] when the text has another form.
    pub fn new(text: &str) -> Result<Self, InvalidId> {
        let valid = text.strip_prefix("msg_").is_some_and(|rest| {
            (1..=60).contains(&rest.len()) && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
        });
        if valid {
            Ok(Self(text.into()))
        } else {
            Err(InvalidId::new(
                "delivery ID",
                text,
                "a delivery ID is msg_ and 1 to 60 letters or digits",
            ))
        }
    }

    /// The ID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! shown_as_text {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
        impl std::str::FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::new(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
            }
        }
    )*};
}
shown_as_text!(RunId, SinkName, DeliveryId);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn run_ids_allow_only_what_is_safe_in_a_path() {
        for good in ["run_xyz789abc", "a", "...", "A-b_c.9", &"x".repeat(128)] {
            assert_eq!(RunId::new(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "a?b",
            "a%2fb",
            "é",
            "a\n",
            &"x".repeat(129),
        ] {
            let error = RunId::new(bad).unwrap_err().to_string();
            assert!(error.contains("is not a run ID"), "{error}");
        }
    }

    #[test]
    fn delivery_ids_sort_as_their_numbers_and_read_back() {
        let first = DeliveryId::of(u128::MAX >> 4);
        assert!(DeliveryId::of(9) < DeliveryId::of(10) && DeliveryId::of(10) < first);
        assert_eq!(DeliveryId::new(first.as_str()).unwrap(), first);
        assert!(DeliveryId::new("run_1").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_taken_unchanged_or_refused(text in "\\PC{0,140}") {
            if let Ok(id) = RunId::new(&text) {
                prop_assert_eq!(id.as_str(), text.as_str());
                prop_assert!(text.is_ascii() && !text.contains('/'));
            }
        }
    }
}
