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

/// Names a run: the provider that knows it, and its ID there.
///
/// As text it is `PROVIDER:ID`, or the bare ID for a run of Crewship: `github:acme/site/123456`, `run_xyz789abc`. The
/// store, the registry and the control interface use this text as the key of a run.
///
/// A Crewship ID is 1 to 128 of `A-Z a-z 0-9 _ - .`, neither `.` nor `..`; the API documents the prefix `run_` and no
/// length, so nothing but what would be unsafe in a URL path is refused. An ID of another provider is 1 to 1,024 bytes
/// without control characters and without white space at its ends; its profile says more.
///
/// ```
/// use runwatch::domain::RunRef;
/// assert_eq!(RunRef::new("run_xyz789abc").unwrap().provider(), "crewship");
/// assert_eq!(RunRef::new("github:acme/site/7").unwrap().id(), "acme/site/7");
/// assert!(RunRef::new("../keys").is_err());
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct RunRef(Box<str>);

impl RunRef {
    const RULE: &'static str =
        "a run ID is 1 to 128 of the characters A-Z a-z 0-9 _ - . and is neither \".\" nor \"..\"";
    const FOREIGN_RULE: &'static str = "a run is named PROVIDER:ID, the provider by 1 to 64 of the characters a-z 0-9 - _, \
         the ID by at most 1,024 bytes without control characters";
    const MAX_ID_BYTES: usize = 1024;

    /// Reads the text of a reference.
    ///
    /// # Errors
    /// [`InvalidId`] when a character, the length or the whole text is not allowed.
    pub fn new(text: &str) -> Result<Self, InvalidId> {
        match text.split_once(':') {
            Some((provider, id)) => {
                let provider = ProviderName::new(provider)
                    .map_err(|_invalid| InvalidId::new("run ID", text, Self::FOREIGN_RULE))?;
                Self::of(&provider, id)
            }
            None => Self::of(&ProviderName::crewship(), text),
        }
    }

    /// The run that `provider` knows as `id`.
    ///
    /// # Errors
    /// [`InvalidId`] when a character, the length or the whole ID is not allowed.
    pub fn of(provider: &ProviderName, id: &str) -> Result<Self, InvalidId> {
        if provider.is_crewship() {
            let allowed =
                |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
            let valid =
                (1..=128).contains(&id.len()) && id.bytes().all(allowed) && id != "." && id != "..";
            return if valid {
                Ok(Self(id.into()))
            } else {
                Err(InvalidId::new("run ID", id, Self::RULE))
            };
        }
        // An address is not the ID of a provider that is named as its scheme is.
        let valid = (1..=Self::MAX_ID_BYTES).contains(&id.len())
            && !id.starts_with("//")
            && !id.chars().any(char::is_control)
            && id.trim() == id;
        if valid {
            Ok(Self(format!("{provider}:{id}").into()))
        } else {
            Err(InvalidId::new("run ID", id, Self::FOREIGN_RULE))
        }
    }

    /// The run that `provider` knows as `id`, as another process that checked it names it. Control characters are
    /// left out, so that it can be shown.
    pub(crate) fn checked_elsewhere(provider: &ProviderName, id: &str) -> Self {
        let id: String = id.chars().filter(|c| !c.is_control()).collect();
        if provider.is_crewship() {
            Self(id.into())
        } else {
            Self(format!("{provider}:{id}").into())
        }
    }

    /// The reference as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the provider.
    pub fn provider(&self) -> &str {
        self.0
            .split_once(':')
            .map_or(ProviderName::CREWSHIP, |(provider, _)| provider)
    }

    /// The ID, as the provider knows it.
    pub fn id(&self) -> &str {
        self.0.split_once(':').map_or(&self.0, |(_, id)| id)
    }

    /// The name of the provider, for those who keep it.
    pub fn provider_name(&self) -> ProviderName {
        ProviderName(self.provider().into())
    }
}

#[cfg(fuzzing)]
impl RunRef {
    /// Checks what holds for every run: the ID of one of Crewship is safe in a path, and the text reads back.
    pub(crate) fn check(&self) {
        let id = self.id();
        if self.provider() == ProviderName::CREWSHIP {
            assert!((1..=128).contains(&id.len()) && !matches!(id, "." | ".."));
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
            assert!(id.bytes().all(allowed));
        } else {
            assert!((1..=Self::MAX_ID_BYTES).contains(&id.len()) && !id.contains(char::is_control));
        }
        assert_eq!(Self::new(self.as_str()).as_ref(), Ok(self));
    }
}

/// The name of a provider: the key after `providers.`, 1 to 64 of `a-z 0-9 - _`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ProviderName(Box<str>);

impl ProviderName {
    /// The name of the built-in provider that `[api]` describes.
    pub const CREWSHIP: &'static str = "crewship";

    const RULE: &'static str = "a provider name is 1 to 64 of the characters a-z 0-9 - _";

    /// Checks `text` and takes it as the name of a provider.
    ///
    /// # Errors
    /// [`InvalidId`] when a character or the length is not allowed.
    pub fn new(text: &str) -> Result<Self, InvalidId> {
        let allowed = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-')
        };
        if (1..=64).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidId::new("provider name", text, Self::RULE))
        }
    }

    /// The built-in provider that `[api]` describes.
    pub fn crewship() -> Self {
        Self(Self::CREWSHIP.into())
    }

    /// Whether it is that of [`ProviderName::crewship`].
    pub fn is_crewship(&self) -> bool {
        &*self.0 == Self::CREWSHIP
    }

    /// The name as text.
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
shown_as_text!(RunRef, ProviderName, SinkName, DeliveryId);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn run_ids_allow_only_what_is_safe_in_a_path() {
        for good in ["run_xyz789abc", "a", "...", "A-b_c.9", &"x".repeat(128)] {
            assert_eq!(RunRef::new(good).unwrap().as_str(), good);
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
            let error = RunRef::new(bad).unwrap_err().to_string();
            assert!(error.contains("is not a run ID"), "{error}");
        }
    }

    #[test]
    fn a_run_of_another_provider_is_named_with_it() {
        for (text, provider, id) in [
            ("run_1", "crewship", "run_1"),
            ("crewship:run_1", "crewship", "run_1"),
            ("github:acme/site/7", "github", "acme/site/7"),
            (
                "airflow:etl/manual__2026-11-27T06:26:48.867841+00:00",
                "airflow",
                "etl/manual__2026-11-27T06:26:48.867841+00:00",
            ),
        ] {
            let run = RunRef::new(text).unwrap();
            assert_eq!((run.provider(), run.id()), (provider, id), "{text}");
            assert_eq!(RunRef::of(&run.provider_name(), run.id()).unwrap(), run);
        }
        assert_eq!(RunRef::new("crewship:run_1").unwrap().as_str(), "run_1");
        for bad in [
            ":a",
            "GitHub:a",
            "github:",
            "github: a",
            "github:a\n",
            "crewship:a/b",
            "ci:a\tb",
        ] {
            assert!(RunRef::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_id_is_shown_as_it_is_and_a_rule_says_what_it_looks_like() {
        assert_eq!(SinkName::new("ops").unwrap().as_str(), "ops");
        let refused = SinkName::new("a b").unwrap_err();
        assert!(refused.rule().starts_with("a sink name is "), "{refused}");
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
            if let Ok(id) = RunRef::new(&text) {
                let whole = format!("crewship:{id}");
                prop_assert!(text == id.as_str() || text == whole);
                prop_assert!(text.contains(':') || text.is_ascii() && !text.contains('/'));
            }
        }
    }
}
