//! Reads one answer about a run while its bytes arrive.
//!
//! No verdict may depend on a part of the answer that no verdict rests on. So the reader looks only for the ends
//! of values: it keeps the bytes of the values that a [`Plan`] names, each on its own, and [`super::answer`] parses each
//! on its own. An output that is not JSON (`NaN` of Python), one that is too large, and a body that breaks
//! off cost that part and not the status.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::plan::{NodeId, Plan, ROOT, Slot};
use crate::redact::Redactor;

/// Most bytes of a value that is not passed on whole (IDs, status, times).
const MAX_SMALL_BYTES: usize = 256 * 1024;

/// Up to which size, in bytes, a value grows step by step.
const GROWN_BYTES: usize = 64 * 1024;

/// How many times `max_response_bytes` are read for the status and the times of an answer that is too large.
pub(super) const READ_FACTOR: u64 = 8;

/// First bytes of the body that are kept to show what it is.
const BEGINNING_BYTES: usize = 320;

/// Longest usual name of a field, in bytes.
const NAME_BYTES: usize = 32;

/// The byte order mark of UTF-8, which RFC 8259 lets a reader skip.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What is known of one value.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// The answer has no such value, or `null`.
    #[default]
    Absent,
    /// Its bytes, which nothing has checked yet.
    Bytes(Vec<u8>),
    /// It has more bytes than are kept.
    TooLarge,
    /// The body ended within it.
    Cut,
}

/// Where the reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before the document.
    Start,
    /// Before a name, or the end of the object.
    Name,
    /// Before an element, or the end of the array.
    Element,
    /// In a name; whether the byte before was a backslash.
    InName { escaped: bool },
    /// Before the colon.
    Colon,
    /// Before a value.
    Value,
    /// In a value: how many brackets are open, and whether within a string, after a backslash.
    InValue {
        depth: u32,
        string: bool,
        escaped: bool,
    },
    /// After a value that has its end.
    AfterValue,
    /// After the document.
    End,
    /// After something that no document has there.
    Broken,
}

/// How a whole body turned out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// A document, whole.
    Whole,
    /// The document has no end.
    Cut,
    /// It stops being JSON at this byte.
    Broken(u64),
    /// The body has nothing but white space.
    Empty,
}

/// An object or array that is read, as it has something that is kept.
#[derive(Debug, Clone, Copy)]
struct Container {
    node: NodeId,
    /// Of an array, the index of the next element.
    next: Option<usize>,
}

/// Reads a body of any length with the memory that the values take that are kept, at most `max_bytes`.
#[derive(Debug)]
pub(super) struct Reader<'p> {
    plan: &'p Plan,
    at: At,
    /// The innermost container around the current place.
    container: Container,
    /// Those around it, the outermost first. At most as many as the longest place has steps.
    outer: Vec<Container>,
    name: Vec<u8>,
    /// Where the value is kept that is being read, if it is.
    slot: Option<Slot>,
    value: Value,
    /// The value of each slot, as far as there are any.
    values: Vec<Value>,
    /// Values that decide, of objects that came again.
    before: Vec<(Slot, Value)>,
    /// Two different values that decide.
    contradicts: bool,
    /// Bytes that may still be kept of the large values.
    left: usize,
    /// How many bytes the body has, where that is known.
    length: Option<u64>,
    seen: u64,
    /// How many bytes were read as JSON.
    parsed: u64,
    max_bytes: u64,
    /// How many times `max_bytes` are read.
    factor: u64,
    /// The first bytes of the body, as they came.
    beginning: Vec<u8>,
    /// Takes secrets out of the beginning when it is shown, which is for a few answers only.
    redactor: Option<Arc<Redactor>>,
}

impl<'p> Reader<'p> {
    /// Creates a reader that keeps at most `max_bytes` of the large values together, of a body of `length` bytes where
    /// that is known.
    pub(super) fn new(plan: &'p Plan, max_bytes: u64, length: Option<u64>) -> Self {
        Self {
            plan,
            at: At::Start,
            container: Container {
                node: ROOT,
                next: None,
            },
            outer: Vec::new(),
            name: Vec::with_capacity(NAME_BYTES),
            slot: None,
            value: Value::Absent,
            values: Vec::new(),
            before: Vec::new(),
            contradicts: false,
            left: usize::try_from(max_bytes).unwrap_or(usize::MAX),
            length,
            seen: 0,
            parsed: 0,
            max_bytes,
            factor: READ_FACTOR,
            beginning: Vec::with_capacity(BEGINNING_BYTES),
            redactor: None,
        }
    }

    /// Of a body that is useless where not all of it can be kept.
    pub(super) fn of_whole(plan: &'p Plan, max_bytes: u64, length: Option<u64>) -> Self {
        Self {
            factor: 1,
            ..Self::new(plan, max_bytes, length)
        }
    }

    /// Takes the next bytes of the body; breaks when more of them would change nothing or are too many.
    pub(super) fn push(&mut self, bytes: &[u8]) -> ControlFlow<()> {
        let room = BEGINNING_BYTES - self.beginning.len();
        self.beginning
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
        if let Some(slot) = self.plan.whole() {
            self.keep_whole(slot, bytes);
        }
        let mut rest = bytes;
        while let Some(byte) = rest.first() {
            let used = match self.at {
                At::InValue { .. } => self.in_value(rest),
                At::InName { escaped } => self.in_name(rest, escaped),
                At::End | At::Broken if self.plan.whole().is_none() => {
                    return ControlFlow::Break(());
                }
                At::End | At::Broken => {
                    self.seen += rest.len() as u64;
                    break;
                }
                _ if byte.is_ascii_whitespace() => {
                    let white = |byte: &u8| byte.is_ascii_whitespace();
                    rest.iter()
                        .position(|byte| !white(byte))
                        .unwrap_or(rest.len())
                }
                // The mark may come in pieces.
                At::Start if self.mark() == Some(byte) => 1,
                At::Start | At::Name | At::Element | At::Colon | At::Value | At::AfterValue => {
                    usize::from(self.token(*byte))
                }
            };
            self.seen += used as u64;
            self.parsed = self.seen;
            rest = &rest[used..];
        }
        if self.is_too_large() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    /// Takes secrets out of all that was kept, before anything else reads it.
    pub(super) fn redact(&mut self, redactor: Arc<Redactor>) {
        for value in &mut self.values {
            if let Value::Bytes(bytes) = value {
                *bytes = redactor.body(std::mem::take(bytes));
            }
        }
        self.redactor = Some(redactor);
    }

    /// How many bytes of the large values are kept.
    pub(super) fn kept(&self) -> u64 {
        self.max_bytes.saturating_sub(self.left as u64)
    }

    /// How many bytes of the body were read.
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    /// Most bytes of the body that are kept.
    pub(super) fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// Whether the body is larger than what is read at all.
    pub(super) fn is_too_large(&self) -> bool {
        self.seen > self.max_bytes.saturating_mul(self.factor)
    }

    /// The first bytes of the body, without secrets; not UTF-8 is replaced.
    pub(super) fn beginning(&self) -> String {
        match &self.redactor {
            Some(redactor) => redactor.beginning(&self.beginning),
            None => String::from_utf8_lossy(&self.beginning).into_owned(),
        }
    }

    /// Ends the reading: how the body turned out, and the value of each slot.
    pub(super) fn finish(&mut self) -> (Ending, Vec<Value>) {
        let ending = match self.at {
            At::End => Ending::Whole,
            At::Broken => Ending::Broken(self.parsed),
            At::Start if self.beginning.iter().all(u8::is_ascii_whitespace) => Ending::Empty,
            _ => Ending::Cut,
        };
        if ending != Ending::Whole
            && let Some(slot) = self.slot.take()
        {
            *place(&mut self.values, slot, self.plan) = Value::Cut;
        }
        (ending, std::mem::take(&mut self.values))
    }

    /// Whether two values that decide contradict each other; `values` are those of [`Reader::finish`].
    pub(super) fn contradicts(&self, values: &[Value]) -> bool {
        let differs = |(slot, before): &(Slot, Value)| values.get(*slot) != Some(before);
        self.contradicts || self.before.iter().any(differs)
    }

    /// The byte of a byte order mark that would be next.
    fn mark(&self) -> Option<&'static u8> {
        BYTE_ORDER_MARK.get(usize::try_from(self.seen).ok()?)
    }

    /// One byte between names and values; whether it is used up.
    fn token(&mut self, byte: u8) -> bool {
        let in_array = self.container.next.is_some();
        self.at = match (self.at, byte) {
            (At::Start, b'{') => self.enter(ROOT, true),
            (At::Start, b'[') if self.plan.whole().is_some() || self.plan.follows(ROOT, false) => {
                self.enter(ROOT, false)
            }
            (At::Name, b'"') => {
                self.name.clear();
                At::InName { escaped: false }
            }
            (At::Colon, b':') => At::Value,
            (At::Name, b'}') => self.leave(),
            (At::AfterValue, b'}') if !in_array => self.leave(),
            (At::Element, b']') => self.leave(),
            (At::AfterValue, b']') if in_array => self.leave(),
            (At::AfterValue, b',') if in_array => At::Element,
            (At::AfterValue, b',') => At::Name,
            (At::Value | At::Element, byte) => return self.begin_value(byte),
            _ => At::Broken,
        };
        self.at != At::Broken
    }

    /// Goes into an object, or else an array.
    fn enter(&mut self, node: NodeId, object: bool) -> At {
        let next = (!object).then_some(0);
        let inner = Container { node, next };
        let outer = std::mem::replace(&mut self.container, inner);
        // The document itself is in nothing.
        if self.at != At::Start {
            self.outer.push(outer);
        }
        if object { At::Name } else { At::Element }
    }

    /// Leaves the innermost object or array.
    fn leave(&mut self) -> At {
        match self.outer.pop() {
            Some(outer) => {
                self.container = outer;
                At::AfterValue
            }
            None => At::End,
        }
    }

    /// Goes on in a name, to its end or to the end of `bytes`; how many of them it took.
    fn in_name(&mut self, bytes: &[u8], escaped: bool) -> usize {
        let special = |byte: &u8| matches!(byte, b'"' | b'\\');
        let (used, at) = if escaped {
            (1, At::InName { escaped: false })
        } else {
            let plain = bytes.iter().position(special).unwrap_or(bytes.len());
            match bytes.get(plain) {
                None => (plain, At::InName { escaped: false }),
                Some(b'"') => (plain, At::Colon),
                Some(_backslash) => (plain + 1, At::InName { escaped: true }),
            }
        };
        let room = self.plan.name_bytes() - self.name.len();
        self.name.extend_from_slice(&bytes[..used.min(room)]);
        self.at = at;
        used + usize::from(at == At::Colon)
    }

    /// The node of the value that begins, if anything of it is kept.
    fn node(&mut self) -> Option<NodeId> {
        let container = &mut self.container;
        if let Some(next) = &mut container.next {
            let index = *next;
            *next += 1;
            return self.plan.element(container.node, index);
        }
        if !self.name.contains(&b'\\') {
            return self.plan.member(container.node, &self.name);
        }
        let quoted = [b"\"".as_slice(), &self.name, b"\""].concat();
        let name: String = serde_json::from_slice(&quoted).ok()?;
        self.plan.member(container.node, name.as_bytes())
    }

    fn begin_value(&mut self, byte: u8) -> bool {
        let node = self.node();
        self.slot = node.and_then(|node| self.plan.slot(node));
        if let (Some(node), None) = (node, self.slot) {
            self.forget_below(node);
            let object = byte == b'{';
            if (object || byte == b'[') && self.plan.follows(node, object) {
                self.at = self.enter(node, object);
                return true;
            }
        }
        self.value = Value::Bytes(Vec::new());
        self.at = At::InValue {
            depth: 0,
            string: false,
            escaped: false,
        };
        false
    }

    /// Forgets what an object had that comes again: of two, the last counts, as in most parsers. What decides must be
    /// the same again.
    fn forget_below(&mut self, node: NodeId) {
        for slot in self.plan.below(node) {
            let value = self.values.get_mut(*slot).map(std::mem::take);
            let value = value.unwrap_or_default();
            if value == Value::Absent {
                continue;
            }
            let usage = self.plan.usage(*slot);
            if let (Value::Bytes(bytes), true) = (&value, usage.large) {
                self.left += bytes.len();
            }
            if usage.decides && self.before.len() < self.plan.slots() {
                self.before.push((*slot, value));
            } else if usage.decides {
                self.contradicts = true;
            }
        }
    }

    /// Goes on in a value, to its end or to the end of `bytes`; how many of them it took.
    fn in_value(&mut self, bytes: &[u8]) -> usize {
        let At::InValue {
            mut depth,
            mut string,
            mut escaped,
        } = self.at
        else {
            return 0;
        };
        let mut used = 0;
        let mut ended = false;
        while let Some(byte) = bytes.get(used).filter(|_| !ended) {
            if escaped {
                escaped = false;
                used += 1;
            } else if string {
                let Some(next) = bytes[used..]
                    .iter()
                    .position(|byte| matches!(byte, b'"' | b'\\'))
                else {
                    used = bytes.len();
                    break;
                };
                used += next + 1;
                escaped = bytes[used - 1] == b'\\';
                string = escaped;
                ended = !string && depth == 0;
            } else if depth == 0
                && (matches!(byte, b',' | b'}' | b']') || byte.is_ascii_whitespace())
            {
                // The end of a number or a word, which is not part of it.
                ended = true;
            } else {
                used += 1;
                match byte {
                    b'"' => string = true,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => {
                        depth -= 1;
                        ended = depth == 0;
                    }
                    _ => {}
                }
            }
        }
        let is_null = ended && bytes[..used] == *b"null" && self.value == Value::Bytes(Vec::new());
        if is_null {
            self.value = Value::Absent;
        } else {
            self.keep(&bytes[..used]);
        }
        if ended {
            self.end_value();
        } else {
            self.at = At::InValue {
                depth,
                string,
                escaped,
            };
        }
        used
    }

    fn keep(&mut self, bytes: &[u8]) {
        let (Some(slot), Value::Bytes(kept)) = (self.slot, &mut self.value) else {
            return;
        };
        let large = self.plan.usage(slot).large;
        let room = if large {
            self.left
        } else {
            MAX_SMALL_BYTES - kept.len()
        };
        if bytes.len() <= room {
            // Once for all that may come: each step of growth would be a copy beside the one before it.
            if let Some(length) = self.length.filter(|_| kept.len() > GROWN_BYTES) {
                let rest = usize::try_from(length.saturating_sub(self.seen)).unwrap_or(usize::MAX);
                kept.reserve_exact(rest.min(room).max(bytes.len()));
            }
            if kept.is_empty() {
                // Most values come whole: no more is taken than they have.
                *kept = bytes.to_vec();
            } else {
                kept.extend_from_slice(bytes);
            }
            self.left -= if large { bytes.len() } else { 0 };
        } else {
            self.left += if large { kept.len() } else { 0 };
            self.value = Value::TooLarge;
        }
    }

    /// Keeps the body as it is.
    fn keep_whole(&mut self, slot: Slot, bytes: &[u8]) {
        let place = place(&mut self.values, slot, self.plan);
        if *place == Value::Absent {
            *place = Value::Bytes(Vec::new());
        }
        let Value::Bytes(kept) = place else {
            return;
        };
        if bytes.len() <= self.left {
            kept.extend_from_slice(bytes);
            self.left -= bytes.len();
        } else {
            self.left += kept.len();
            *place = Value::TooLarge;
        }
    }

    fn end_value(&mut self) {
        self.at = At::AfterValue;
        let Some(slot) = self.slot.take() else {
            return;
        };
        let usage = self.plan.usage(slot);
        let mut value = std::mem::take(&mut self.value);
        if let Value::Bytes(bytes) = &mut value {
            bytes.truncate(bytes.trim_ascii_end().len());
            if bytes == b"null" {
                self.left += if usage.large { bytes.len() } else { 0 };
                value = Value::Absent;
            }
        }
        let place = place(&mut self.values, slot, self.plan);
        if usage.decides && *place != Value::Absent && *place != value {
            self.contradicts = true;
        }
        if let (Value::Bytes(before), true) = (&*place, usage.large) {
            self.left += before.len();
        }
        *place = value;
    }
}

/// The place of a slot. Answers of the usual form need the first root alone.
fn place<'v>(values: &'v mut Vec<Value>, slot: Slot, plan: &Plan) -> &'v mut Value {
    if slot >= values.len() {
        let half = plan.slots() / plan.roots();
        let length = if slot < half { half } else { plan.slots() };
        values.resize_with(length, Value::default);
    }
    &mut values[slot]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Pointer;
    use crate::providers::plan::{Builder, Place, Use};
    use proptest::prelude::*;

    const LIMIT: u64 = 1000;

    /// A plan of the places `of`, the large ones after a `+`.
    fn plan(roots: &[&str], of: &[&str]) -> (Plan, Vec<Place>) {
        let pointer = |text: &str| Pointer::parse(text).unwrap();
        let roots: Vec<_> = roots.iter().map(|root| pointer(root)).collect();
        let mut builder = Builder::new(&roots);
        let places = of
            .iter()
            .map(|text| match text.strip_prefix('+') {
                Some(large) => builder.at(&pointer(large), Use::LARGE),
                None => builder.at(&pointer(text), Use::DECIDES),
            })
            .collect();
        (builder.build(), places)
    }

    const PLACES: [&str; 5] = ["/id", "/status", "+/output", "+/input", "+/error"];

    /// What was read of a body: how it turned out, and each of [`PLACES`], in the outer object and in `data`.
    type WholeRead = (Ending, [Vec<Value>; 2]);

    /// Reads `body` in pieces of `piece` bytes.
    fn read(body: &[u8], piece: usize) -> WholeRead {
        let (plan, places) = plan(&["", "/data"], &PLACES);
        let mut reader = Reader::new(&plan, LIMIT, None);
        for bytes in body.chunks(piece) {
            if reader.push(bytes).is_break() {
                break;
            }
        }
        let (ending, values) = reader.finish();
        let of = |root| {
            let value = |place: &Place| {
                let slot = plan.locate(*place, root).0;
                values.get(slot).cloned().unwrap_or_default()
            };
            places.iter().map(value).collect()
        };
        (ending, [of(0), of(1)])
    }

    fn value<'v>(values: &'v [Value], place: &str) -> &'v Value {
        &values[PLACES
            .iter()
            .position(|known| known.trim_start_matches('+') == place)
            .unwrap()]
    }

    fn bytes(values: &[Value], place: &str) -> Option<String> {
        match value(values, place) {
            Value::Bytes(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
            Value::Absent | Value::TooLarge | Value::Cut => None,
        }
    }

    #[test]
    fn values_are_kept_as_they_are_however_the_body_is_cut_into_pieces() {
        let body = br#"{ "id" : "a\"}," ,"output":{"a":[1,"]}"],"n":NaN} , "x":[{"status":"no"}],"status":"running"
            ,"error":null,"data":{"status":"failed","id":7,"data":{"id":8}}} trailing"#;
        for piece in [1, 2, 3, 7, 1000] {
            let (ending, [outer, inner]) = read(body, piece);
            assert_eq!(ending, Ending::Whole);
            assert_eq!(bytes(&outer, "/id").unwrap(), r#""a\"},""#);
            assert_eq!(
                bytes(&outer, "/output").unwrap(),
                r#"{"a":[1,"]}"],"n":NaN}"#
            );
            assert_eq!(bytes(&outer, "/status").unwrap(), r#""running""#);
            assert_eq!(value(&outer, "/error"), &Value::Absent);
            assert_eq!(bytes(&inner, "/status").unwrap(), r#""failed""#);
            assert_eq!(bytes(&inner, "/id").unwrap(), "7");
        }
    }

    #[test]
    fn too_large_a_field_costs_that_field_only() {
        let large = "x".repeat(2000);
        let body = format!(
            r#"{{"output":"{large}","input":"{}","status":"succeeded"}}"#,
            "y".repeat(900)
        );
        for piece in [1, 64, 10_000] {
            let (ending, [outer, _]) = read(body.as_bytes(), piece);
            assert_eq!(ending, Ending::Whole);
            assert_eq!(value(&outer, "/output"), &Value::TooLarge);
            assert_eq!(bytes(&outer, "/input").map(|text| text.len()), Some(902));
            assert_eq!(bytes(&outer, "/status").unwrap(), r#""succeeded""#);
        }
        let endless = format!(r#"{{"status":"succeeded","output":"{}"#, large.repeat(10));
        let (plan, _places) = plan(&[], &PLACES);
        let mut reader = Reader::new(&plan, LIMIT, None);
        let read = endless
            .as_bytes()
            .chunks(100)
            .take_while(|bytes| reader.push(bytes).is_continue())
            .count();
        assert!(read as u64 * 100 <= READ_FACTOR * LIMIT + 100, "{read}");
        assert_eq!(reader.finish().0, Ending::Cut);
    }

    #[test]
    fn a_body_that_breaks_off_or_breaks_keeps_what_came_before() {
        for (body, expected) in [
            (r#"{"status":"failed","output":{"a"#, Ending::Cut),
            (r#"{"status":"failed","output":1]"#, Ending::Broken(30)),
            (r#"{"status":"failed" "output":1}"#, Ending::Broken(19)),
        ] {
            let (ending, [outer, _]) = read(body.as_bytes(), 5);
            if let (Ending::Broken(at), Ending::Broken(expected)) = (ending, expected) {
                assert!(at.abs_diff(expected) <= 1, "{body}: {at}");
            } else {
                assert_eq!(ending, expected, "{body}");
            }
            assert_eq!(bytes(&outer, "/status").unwrap(), r#""failed""#, "{body}");
        }
        assert_eq!(read(b" \n", 1).0, Ending::Empty);
        assert_eq!(read(b"", 1).0, Ending::Empty);
        assert_eq!(read(b"[]", 1).0, Ending::Broken(0));
        assert_eq!(read(b"\xef\xbb\xbf{}", 1).0, Ending::Whole);
    }

    /// The values of `places` in `body`, and whether they contradict each other.
    fn values(places: &[&str], body: &str) -> (Vec<Value>, bool) {
        let (plan, places) = plan(&[], places);
        let mut reader = Reader::new(&plan, LIMIT, None);
        let _all = reader.push(body.as_bytes());
        let (_ending, values) = reader.finish();
        let contradicts = reader.contradicts(&values);
        let value = |place: &Place| {
            let slot = plan.locate(*place, 0).0;
            values.get(slot).cloned().unwrap_or_default()
        };
        (places.iter().map(value).collect(), contradicts)
    }

    #[test]
    fn places_are_followed_through_objects_and_arrays() {
        let json = |text: &str| Value::Bytes(text.as_bytes().to_vec());
        let places = ["/a/b/1/c", "/jobs/0/state", "/x~1y/1", "/jobs/2", "/none/0"];
        let body = r#"{"q":[[{"c":9}]],"a":{"b":[{"c":1},{"d":[],"c":"two","c2":3},{"c":4}],"c":5},
            "jobs":[{"state":["A","B"]},{"state":"no"},7],"x\/y":{"1":"name"},"none":{}}"#;
        let (found, contradicts) = values(&places, body);
        assert!(!contradicts);
        assert_eq!(
            found,
            [
                json(r#""two""#),
                json(r#"["A","B"]"#),
                json(r#""name""#),
                json("7"),
                Value::Absent
            ]
        );
        // An index is the name of a member of an object, too, and a document may be an array.
        assert_eq!(values(&["/1/a"], r#"{"1":{"a":2}}"#).0, [json("2")]);
        assert_eq!(values(&["/1/a"], r#"[{"a":1},{"a":2}]"#).0, [json("2")]);
        assert_eq!(values(&["/1/a"], r#"[1,[{"a":3}]]"#).0, [Value::Absent]);
        assert_eq!(values(&["/a"], r#"[{"a":1}]"#).0, [Value::Absent]);
    }

    #[test]
    fn the_whole_document_is_kept_beside_its_values() {
        let json = |text: &str| Value::Bytes(text.as_bytes().to_vec());
        let body = r#"{"status":"ok"} "#;
        assert_eq!(
            values(&["+", "/status"], body).0,
            [json(body), json(r#""ok""#)]
        );
        for body in ["plain text", "[1,2]", "7", "{\"a\":"] {
            assert_eq!(
                values(&["+", "/status"], body).0,
                [json(body), Value::Absent]
            );
        }
        assert_eq!(values(&["+"], &"x".repeat(2000)).0, [Value::TooLarge]);
    }

    #[test]
    fn an_object_that_comes_again_must_decide_the_same() {
        for (body, contradicts) in [
            (r#"{"a":{"s":1},"a":{"s":1}}"#, false),
            (r#"{"a":{"s":1},"a":{"s":2}}"#, true),
            (r#"{"a":{"s":1},"a":{}}"#, true),
            (r#"{"a":{"s":1},"a":null}"#, true),
            (r#"{"a":{},"a":{"s":1}}"#, false),
            (r#"{"a":{"s":1,"s":2}}"#, true),
            (r#"{"a":{"s":1,"s":1}}"#, false),
        ] {
            assert_eq!(values(&["/a/s"], body).1, contradicts, "{body}");
        }
        let (found, _) = values(&["+/a/o"], r#"{"a":{"o":1},"a":{"x":2}}"#);
        assert_eq!(found, [Value::Absent], "of two, the last counts");
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(body in "[{}\\[\\]\":, a\\\\]{0,60}|\\{\"status\":\"[a-z]\",\"output\":[\\[{}\\]\", 1\\\\]{0,40}\\}", piece in 1_usize..9) {
            let (whole, cut) = (read(body.as_bytes(), 10_000), read(body.as_bytes(), piece));
            prop_assert_eq!(format!("{whole:?}"), format!("{cut:?}"));
        }
    }
}
