//! One value of an answer, read from its bytes.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::plan::index;
use crate::profile::{Scalar, Token};

/// Most elements of an array that a status shows.
const SHOWN_ELEMENTS: usize = 16;

/// A value, as rules see it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Seen<'a> {
    /// Nothing: no such value, `null`, or an empty text, array or object.
    Absent,
    /// There may be something: the answer ended before, or it is too large or not JSON.
    Unknown,
    /// A text.
    Text(Cow<'a, str>),
    /// A number.
    Number(f64),
    /// `true` or `false`.
    Bool(bool),
    /// An array with elements, as JSON.
    Array(&'a [u8]),
    /// An object with members.
    Object,
}

impl<'a> Seen<'a> {
    /// Reads the bytes of a value.
    pub(super) fn of(json: &'a [u8]) -> Self {
        match json.first() {
            _ if is_nothing(json) => Self::Absent,
            Some(b'"') => text(json).map_or(Self::Unknown, Self::Text),
            Some(b'{') => Self::Object,
            Some(b'[') => Self::Array(json),
            _ => match json {
                b"true" => Self::Bool(true),
                b"false" => Self::Bool(false),
                number => serde_json::from_slice(number).map_or(Self::Unknown, Self::Number),
            },
        }
    }

    /// Whether it is `wanted`; texts letter for letter where `exact`.
    fn is(&self, wanted: &Scalar, exact: bool) -> bool {
        match (self, wanted) {
            (Self::Text(text), Scalar::Text(wanted)) if exact => text == wanted,
            (Self::Text(text), Scalar::Text(wanted)) => text.eq_ignore_ascii_case(wanted),
            #[expect(clippy::float_cmp, reason = "a profile means this number and no other")]
            (Self::Number(number), Scalar::Number(wanted)) => number == wanted,
            (Self::Bool(value), Scalar::Bool(wanted)) => value == wanted,
            _ => false,
        }
    }

    /// Whether it, or an element of it, is one of `wanted`.
    pub(super) fn is_one_of(&self, wanted: &[Scalar], exact: bool) -> bool {
        let is = |seen: &Seen<'_>| wanted.iter().any(|wanted| seen.is(wanted, exact));
        match self {
            Self::Array(json) => any_element(json, &mut |json| is(&Seen::of(json))),
            other => is(other),
        }
    }

    /// Whether it, or an element of it, has a kind that `holds`.
    pub(super) fn has_kind(&self, holds: &dyn Fn(&Seen<'_>) -> bool) -> bool {
        match self {
            Self::Array(json) => {
                holds(self) || any_element(json, &mut |json| holds(&Seen::of(json)))
            }
            other => holds(other),
        }
    }
}

/// Whether a value is as good as none: `null`, or an empty text, array or object.
pub(super) fn is_nothing(json: &[u8]) -> bool {
    match json {
        b"null" | b"\"\"" => true,
        [b'{' | b'[', rest @ ..] => rest.trim_ascii().len() == 1,
        _ => false,
    }
}

/// The text of a JSON string; `None` where it is not one.
pub(super) fn text(json: &[u8]) -> Option<Cow<'_, str>> {
    let inner = json.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    // A quotation mark within it has a backslash before it: the reader ends a text at the first that has none.
    let plain = |byte: &u8| *byte >= 0x20 && *byte != b'\\';
    if inner.iter().all(plain)
        && let Ok(text) = std::str::from_utf8(inner)
    {
        return Some(Cow::Borrowed(text));
    }
    serde_json::from_slice(json).ok().map(Cow::Owned)
}

/// A text, a number or a word as text; an array of them as a list. `None` for anything else and for nothing.
pub(super) fn shown(json: &[u8]) -> Option<Cow<'_, str>> {
    match Seen::of(json) {
        Seen::Text(text) => Some(text),
        Seen::Number(_) | Seen::Bool(_) => std::str::from_utf8(json).ok().map(Cow::Borrowed),
        Seen::Array(json) => {
            let mut all: Vec<String> = Vec::new();
            any_element(json, &mut |json| {
                if !matches!(json.first(), Some(b'[' | b'{')) {
                    all.extend(shown(json).map(Cow::into_owned));
                }
                all.len() == SHOWN_ELEMENTS
            });
            (!all.is_empty()).then(|| Cow::Owned(all.join(", ")))
        }
        Seen::Absent | Seen::Unknown | Seen::Object => None,
    }
}

/// Whether `is` holds for an element of the array, which is as good as its beginning is JSON.
pub(super) fn any_element(json: &[u8], is: &mut dyn FnMut(&[u8]) -> bool) -> bool {
    let mut found = false;
    let _end_or_error = each_element(json, &mut |json| {
        found = is(json);
        !found
    });
    found
}

/// Passes the elements of an array on, until `go_on` returns `false`.
///
/// # Errors
/// When it is not JSON.
pub(super) fn each_element<'a>(
    json: &'a [u8],
    go_on: &mut dyn FnMut(&'a [u8]) -> bool,
) -> Result<(), Unreadable> {
    struct Elements<'f, 'a>(&'f mut dyn FnMut(&'a [u8]) -> bool);
    impl<'a> Visitor<'a> for Elements<'_, 'a> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }
        fn visit_seq<A: SeqAccess<'a>>(self, mut elements: A) -> Result<(), A::Error> {
            let mut going = true;
            while going && let Some(element) = elements.next_element::<&RawValue>()? {
                going = (self.0)(element.get().as_bytes());
            }
            while elements.next_element::<IgnoredAny>()?.is_some() {}
            Ok(())
        }
    }
    let mut json = serde_json::Deserializer::from_slice(json);
    json.deserialize_seq(Elements(go_on))
        .and_then(|()| json.end())
        .map_err(|_not_json| Unreadable::NotJson)
}

/// Why a value cannot be looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// It is not JSON.
    NotJson,
    /// It has two different values of one name on the way.
    Contradicts,
}

/// Looks up a place in a value: one level after the other, without a tree of the whole.
///
/// # Errors
/// When what is looked through is not JSON, or has two different values of a name on the way.
pub(super) fn look_up<'a>(json: &'a [u8], steps: &[Token]) -> Result<Option<&'a [u8]>, Unreadable> {
    let mut at = json;
    for step in steps {
        let next = match (at.first(), step) {
            (Some(b'{'), Token::Key(key)) => member(at, key)?,
            (Some(b'['), Token::Key(key)) => match index(key) {
                Some(index) => element(at, index)?,
                None => None,
            },
            (Some(b'['), Token::Where { key, value }) => {
                let (mut found, mut problem) = (None, None);
                each_element(at, &mut |json| {
                    match member(json, key) {
                        Ok(Some(json)) if shown(json).is_some_and(|text| text == **value) => {
                            found = Some(json);
                        }
                        Ok(_) => return true,
                        Err(error) => problem = Some(error),
                    }
                    found = found.map(|_| json);
                    false
                })?;
                match problem {
                    Some(problem) => return Err(problem),
                    None => found,
                }
            }
            _ => None,
        };
        match next {
            Some(next) => at = next,
            None => return Ok(None),
        }
    }
    Ok(Some(at))
}

fn element(json: &[u8], index: usize) -> Result<Option<&[u8]>, Unreadable> {
    let (mut at, mut found) = (0, None);
    each_element(json, &mut |json| {
        if at == index {
            found = Some(json);
        }
        at += 1;
        found.is_none()
    })?;
    Ok(found)
}

/// The member `name` of an object; `None` for anything else.
fn member<'a>(json: &'a [u8], name: &str) -> Result<Option<&'a [u8]>, Unreadable> {
    struct Members<'n>(&'n str);
    impl<'a> Visitor<'a> for Members<'_> {
        type Value = Result<Option<&'a [u8]>, Unreadable>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'a>>(self, mut members: A) -> Result<Self::Value, A::Error> {
            let mut found: Option<&[u8]> = None;
            while let Some(named) = members.next_key_seed(Named(self.0))? {
                if !named {
                    members.next_value::<IgnoredAny>()?;
                    continue;
                }
                let value = members.next_value::<&RawValue>()?.get().as_bytes();
                if found.is_some_and(|found| found != value) {
                    return Ok(Err(Unreadable::Contradicts));
                }
                found = Some(value);
            }
            Ok(Ok(found))
        }
    }
    if json.first() != Some(&b'{') {
        return Ok(None);
    }
    let mut json = serde_json::Deserializer::from_slice(json);
    json.deserialize_map(Members(name))
        .map_err(|_not_json| Unreadable::NotJson)?
}

/// Whether a name is this one.
struct Named<'n>(&'n str);

impl<'a> DeserializeSeed<'a> for Named<'_> {
    type Value = bool;

    fn deserialize<D: serde::Deserializer<'a>>(self, name: D) -> Result<bool, D::Error> {
        name.deserialize_str(self)
    }
}

impl Visitor<'_> for Named<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }
    fn visit_str<E>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Pointer;

    fn at<'a>(json: &'a str, steps: &[Token]) -> Result<Option<&'a str>, Unreadable> {
        let found = look_up(json.as_bytes(), steps)?;
        Ok(found.map(|json| std::str::from_utf8(json).unwrap()))
    }

    fn key(name: &str) -> Token {
        Token::Key(name.to_owned())
    }

    fn named(key: &str, value: &str) -> Token {
        Token::Where {
            key: key.to_owned(),
            value: value.to_owned(),
        }
    }

    #[test]
    fn places_are_found_by_names_indices_and_members() {
        let json = r#"{"a":[{"type":"x"},{"type":"y","n":[1,{"t":null}]},{"type":"y","n":0},{"k":7,"v":true}],"b":"t"}"#;
        for (steps, found) in [
            (vec![], Some(json)),
            (vec![key("b")], Some(r#""t""#)),
            (vec![key("a"), key("0")], Some(r#"{"type":"x"}"#)),
            (
                vec![key("a"), named("type", "y"), key("n"), key("0")],
                Some("1"),
            ),
            (vec![key("a"), named("k", "7"), key("v")], Some("true")),
            (vec![key("a"), named("type", "z")], None),
            (vec![key("a"), key("01")], None),
            (vec![key("a"), key("9")], None),
            (vec![key("b"), key("c")], None),
            (vec![named("type", "y")], None),
        ] {
            assert_eq!(at(json, &steps), Ok(found), "{:?}", Pointer(steps.clone()));
        }
        assert_eq!(at(r#"{"a":NaN}"#, &[key("a")]), Err(Unreadable::NotJson));
        let twice = r#"{"a":1,"a":2}"#;
        assert_eq!(at(twice, &[key("a")]), Err(Unreadable::Contradicts));
        assert_eq!(at(r#"{"a":1,"a":1}"#, &[key("a")]), Ok(Some("1")));
    }

    #[test]
    fn what_is_empty_counts_as_nothing() {
        for json in ["null", r#""""#, "[]", "[ ]", "{}", "{\n}"] {
            assert_eq!(Seen::of(json.as_bytes()), Seen::Absent, "{json}");
        }
        for json in ["NaN", "01", "\"\u{1}\"", "tru", ""] {
            assert_eq!(Seen::of(json.as_bytes()), Seen::Unknown, "{json:?}");
        }
        assert_eq!(Seen::of(br#""a\u0062""#), Seen::Text("ab".into()));
        assert_eq!(Seen::of(b"0"), Seen::Number(0.0));
        assert_eq!(Seen::of(b"false"), Seen::Bool(false));
    }

    #[test]
    fn an_array_is_compared_by_its_elements() {
        let flags = Seen::of(br#"["COMPLETED",["x"],"completing"]"#);
        let text = |text: &str| vec![Scalar::Text(text.to_owned())];
        assert!(flags.is_one_of(&text("COMPLETING"), false));
        assert!(!flags.is_one_of(&text("COMPLETING"), true));
        assert!(!flags.is_one_of(&text("x"), false));
        assert_eq!(shown(br#"["A",3,{"a":1},true]"#).unwrap(), "A, 3, true");
    }

    #[test]
    fn kinds_are_not_mixed() {
        let is = |json: &str, wanted| Seen::of(json.as_bytes()).is_one_of(&[wanted], false);
        assert!(is("10", Scalar::Number(10.0)) && is("10.0", Scalar::Number(10.0)));
        assert!(!is(r#""10""#, Scalar::Number(10.0)) && !is("10", Scalar::Text("10".into())));
        assert!(!is("1", Scalar::Bool(true)) && !is(r#""true""#, Scalar::Bool(true)));
    }
}
