//! JSON that is passed on as the API sent it.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::value::RawValue;

use crate::text::replace_lone_surrogates;

/// Deepest nesting of a run's `input` or `output` that is passed on. Deeper values are legal JSON,
/// but common parsers (serde_json: 128 levels) refuse the whole message for them.
const MAX_NESTING: usize = 100;

/// A JSON value of a run, as its text. Copies share the text: it can have megabytes.
#[derive(Clone)]
pub struct JsonText(Arc<SharedText>);

struct SharedText {
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
        Ok(Self(Arc::new(SharedText {
            json,
            _room: Some(Box::new(room)),
        })))
    }

    /// The text.
    pub fn get(&self) -> &str {
        self.0.json.get()
    }

    /// The value on one line and without halves of characters; `None` where it cannot be passed on: it is nested too
    /// deeply, or has a number that no 64-bit float holds. Common parsers refuse the whole message for each of these.
    pub fn passable(&self) -> Option<Self> {
        if nesting(self.get()) > MAX_NESTING {
            return None;
        }
        let value = match replace_lone_surrogates(self.get()) {
            Cow::Borrowed(_) => on_one_line(self),
            Cow::Owned(whole) => {
                on_one_line(&Self::new(whole).expect("an escape stands for another"))
            }
        };
        serde_json::from_str::<Readable>(value.get())
            .is_ok()
            .then_some(value)
    }
}

impl From<Box<RawValue>> for JsonText {
    fn from(json: Box<RawValue>) -> Self {
        Self(Arc::new(SharedText { json, _room: None }))
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

/// Any JSON value that a strict parser takes; nothing of it is kept.
struct Readable;

impl<'de> Deserialize<'de> for Readable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ReadableVisitor;
        impl<'de> de::Visitor<'de> for ReadableVisitor {
            type Value = Readable;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E>(self) -> Result<Readable, E> {
                Ok(Readable)
            }
            fn visit_bool<E>(self, _: bool) -> Result<Readable, E> {
                Ok(Readable)
            }
            fn visit_i64<E>(self, _: i64) -> Result<Readable, E> {
                Ok(Readable)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Readable, E> {
                Ok(Readable)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Readable, E> {
                Ok(Readable)
            }
            fn visit_str<E>(self, _: &str) -> Result<Readable, E> {
                Ok(Readable)
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Readable, A::Error> {
                while items.next_element::<Readable>()?.is_some() {}
                Ok(Readable)
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut fields: A) -> Result<Readable, A::Error> {
                while fields.next_entry::<Readable, Readable>()?.is_some() {}
                Ok(Readable)
            }
        }
        deserializer.deserialize_any(ReadableVisitor)
    }
}

/// The same JSON without line breaks and indentation: an event is one line wherever it is written.
fn on_one_line(value: &JsonText) -> JsonText {
    let text = value.get();
    if !text.contains(['\n', '\r']) {
        return value.clone();
    }
    // JSON has no bare line break inside a string, so what is trimmed here is between tokens.
    let folded: String = text
        .split(['\n', '\r'])
        .map(str::trim_ascii_start)
        .collect();
    JsonText::new(folded).expect("white space between tokens means nothing in JSON")
}

/// How deeply a valid JSON text is nested.
fn nesting(json: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
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

    #[test]
    fn a_value_of_several_lines_becomes_one_line_and_stays_as_it_is() {
        let pretty =
            "{\r\n  \"a\": 1.0,\n\n\t\"b c\": [\n 10000000000000000000001,\r  \"x\\n  y\" ]\n}";
        let value = JsonText::new(pretty.to_owned()).unwrap();
        assert_eq!(
            value.passable().unwrap().get(),
            r#"{"a": 1.0,"b c": [10000000000000000000001,"x\n  y" ]}"#
        );
    }

    #[test]
    fn a_value_is_passed_on_up_to_a_depth_and_shown_as_its_text() {
        let nested = |depth: usize| {
            let text = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
            JsonText::new(text).unwrap().passable().is_some()
        };
        assert_eq!([100, 101, 102].map(nested), [true, false, false]);
        let shown = format!("{:?}", JsonText::new("[12]".to_owned()).unwrap());
        assert!(shown.contains("[12]"), "{shown}");
    }

    #[test]
    fn nesting_is_counted_outside_of_strings_only() {
        assert_eq!(nesting(r#"{"a":["[[[[\"[[[",1]}"#), 2);
        assert_eq!(nesting(r#"["]",[1]]"#), 2);
        assert_eq!(nesting("[[],[],{}]"), 2);
        assert_eq!(nesting("1"), 0);
    }
}
