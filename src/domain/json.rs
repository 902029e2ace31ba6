//! JSON that is passed on as the API sent it.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// A JSON value of a run, as its text. Copies share the text: it can have megabytes.
#[derive(Clone)]
pub struct JsonText(Arc<Shared>);

struct Shared {
    json: Box<RawValue>,
    /// What is given back when the last copy is dropped: the room that the text takes of a bound on bytes.
    _room: Option<Box<dyn Any + Send + Sync>>,
}

impl JsonText {
    /// Takes the text of one JSON value.
    ///
    /// # Errors
    /// When the text is not JSON.
    pub fn new(text: String) -> Result<Self, serde_json::Error> {
        RawValue::from_string(text).map(Self::from)
    }

    /// Like [`JsonText::new`], and keeps `room` until the last copy is dropped.
    ///
    /// # Errors
    /// When the text is not JSON.
    pub fn with_room(
        text: String,
        room: impl Any + Send + Sync,
    ) -> Result<Self, serde_json::Error> {
        let json = RawValue::from_string(text)?;
        Ok(Self(Arc::new(Shared {
            json,
            _room: Some(Box::new(room)),
        })))
    }

    /// The text.
    pub fn get(&self) -> &str {
        self.0.json.get()
    }
}

impl From<Box<RawValue>> for JsonText {
    fn from(json: Box<RawValue>) -> Self {
        Self(Arc::new(Shared { json, _room: None }))
    }
}

impl fmt::Debug for JsonText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.json.fmt(f)
    }
}

impl Serialize for JsonText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.json.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for JsonText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_share_the_text_and_give_the_room_back_with_the_last() {
        let (text, room) = (r#"{"a": 1}"#, Arc::new(()));
        let json = JsonText::with_room(text.to_owned(), Arc::clone(&room)).unwrap();
        let copy = json.clone();
        assert!(std::ptr::eq(json.get(), copy.get()));
        drop(json);
        assert_eq!((copy.get(), Arc::strong_count(&room)), (text, 2));
        drop(copy);
        assert_eq!(Arc::strong_count(&room), 1);
        assert!(JsonText::new("NaN".to_owned()).is_err());
        let read: Vec<JsonText> = serde_json::from_str(r#"[{"a": 1}]"#).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), r#"[{"a": 1}]"#);
    }
}
