//! What a leader publishes beside its lease, so that every daemon can show it and the next leader goes on from there.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::domain::ProviderName;

/// The state of a leader that is not in the tables of the store. It holds no secret.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Published {
    /// What an operator should know, one sentence each.
    pub notices: Vec<String>,
    /// Until when providers requested that no request is sent, by name.
    pub pauses: BTreeMap<String, Timestamp>,
    /// A number that differs where the settings that all daemons should share differ.
    pub settings: u64,
}

impl Published {
    /// Reads what a leader, perhaps of another version, published; nothing where that cannot be read.
    pub fn read(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    /// The text that is stored.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("it has only text keys")
    }

    /// The pauses of providers that are still known by their names.
    pub fn provider_pauses(&self) -> impl Iterator<Item = (ProviderName, Timestamp)> {
        let named =
            |(name, until): (&String, &Timestamp)| Some((ProviderName::new(name).ok()?, *until));
        self.pauses.iter().filter_map(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_versions_published_is_read_as_far_as_it_is_known() {
        let published = Published {
            notices: vec!["no usable answer: 503".to_owned()],
            pauses: BTreeMap::from([("github".to_owned(), Timestamp::UNIX_EPOCH)]),
            settings: 7,
        };
        assert_eq!(Published::read(&published.to_text()), published);
        assert_eq!(Published::read(r#"{"settings":7,"later":[1]}"#).settings, 7);
        for text in ["", "{", "[]", "null"] {
            assert_eq!(Published::read(text), Published::default(), "{text}");
        }
        let pauses: Vec<_> = published.provider_pauses().collect();
        assert_eq!(pauses[0].0.as_str(), "github");
    }
}
