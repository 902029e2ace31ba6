//! Reads one answer about a run while its bytes arrive.
//!
//! No verdict may depend on a part of the answer that no verdict rests on. So the reader looks only for the ends
//! of values: it keeps the bytes of the fields that it knows, each on its own, and parses each on its own in
//! [`super`]. An output that is not JSON (`NaN` of Python), one that is too large, and a body that breaks
//! off cost that part and not the status.

use std::ops::ControlFlow;

use crate::redact::Redactor;

/// Most bytes of a field that is not passed on whole (IDs, status, times).
const MAX_SMALL_BYTES: usize = 256 * 1024;

/// Up to which size, in bytes, a value grows step by step.
const GROWN_BYTES: usize = 64 * 1024;

/// Longest name of a field, with escapes, that is looked at. The longest known one, all escaped, has 78.
const MAX_NAME_BYTES: usize = 128;

/// How many times `max_response_bytes` are read for the status and the times of an answer that is too large.
pub(in crate::providers) const READ_FACTOR: u64 = 8;

/// First bytes of the body that are kept to show what it is.
const BEGINNING_BYTES: usize = 320;

/// The byte order mark of UTF-8, which RFC 8259 lets a reader skip.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The fields of an answer that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(in crate::providers) enum Field {
    Id,
    RunRef,
    Status,
    VersionId,
    DeploymentId,
    Project,
    Input,
    Output,
    ErrorMessage,
    Error,
    CreatedAt,
    StartedAt,
    CompletedAt,
    DurationMs,
}

impl Field {
    const COUNT: usize = 14;

    fn named(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"id" => Self::Id,
            b"run_id" => Self::RunRef,
            b"status" => Self::Status,
            b"version_id" => Self::VersionId,
            b"deployment_id" => Self::DeploymentId,
            b"project" => Self::Project,
            b"input" => Self::Input,
            b"output" => Self::Output,
            b"error_message" => Self::ErrorMessage,
            b"error" => Self::Error,
            b"created_at" => Self::CreatedAt,
            b"started_at" => Self::StartedAt,
            b"completed_at" => Self::CompletedAt,
            b"duration_ms" => Self::DurationMs,
            _ => return None,
        })
    }

    /// Its name, as events call it.
    pub(in crate::providers) fn name(self) -> &'static str {
        match self {
            Self::Id | Self::RunRef => "id",
            Self::Status => "status",
            Self::VersionId => "version_id",
            Self::DeploymentId => "deployment_id",
            Self::Project => "project",
            Self::Input => "input",
            Self::Output => "output",
            Self::ErrorMessage | Self::Error => "error_message",
            Self::CreatedAt => "created_at",
            Self::StartedAt => "started_at",
            Self::CompletedAt => "completed_at",
            Self::DurationMs => "duration_ms",
        }
    }

    /// Whether the field may take as much as the whole answer may.
    fn is_large(self) -> bool {
        matches!(
            self,
            Self::Input | Self::Output | Self::ErrorMessage | Self::Error
        )
    }

    /// Whether two different values make an answer useless.
    fn decides(self) -> bool {
        matches!(self, Self::Id | Self::RunRef | Self::Status)
    }
}

/// What is known of one field.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(in crate::providers) enum Value {
    /// The answer has no such field, or `null`.
    #[default]
    Absent,
    /// The bytes of its value, which nothing has checked yet.
    Bytes(Vec<u8>),
    /// It has more bytes than are kept.
    TooLarge,
    /// The body ended within it.
    Cut,
}

/// The fields of one object.
#[derive(Debug, Default)]
pub(in crate::providers) struct Fields([Value; Field::COUNT]);

impl Fields {
    pub(in crate::providers) fn get(&self, field: Field) -> &Value {
        &self.0[field as usize]
    }

    pub(in crate::providers) fn take(&mut self, field: Field) -> Value {
        std::mem::take(&mut self.0[field as usize])
    }

    /// The bytes of the field's value, if all of them are there.
    pub(in crate::providers) fn bytes(&self, field: Field) -> Option<&[u8]> {
        match self.get(field) {
            Value::Bytes(bytes) => Some(bytes),
            Value::Absent | Value::TooLarge | Value::Cut => None,
        }
    }
}

/// Where the reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before the object.
    Start,
    /// Before a name, or the end of the object.
    Name,
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
    /// After the object.
    End,
    /// After something that no object has there.
    Broken,
}

/// How a whole body turned out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::providers) enum Ending {
    /// An object, whole.
    Whole,
    /// The object has no end.
    Cut,
    /// It stops being JSON at this byte.
    Broken(u64),
    /// The body has nothing but white space.
    Empty,
}

/// Reads a body of any length with the memory that its known fields take, at most `max_bytes`.
#[derive(Debug)]
pub(in crate::providers) struct Reader {
    at: At,
    /// 0 in the outer object, 1 in the one under `data`.
    level: usize,
    name: Vec<u8>,
    /// The known field whose value is being read.
    field: Option<Field>,
    value: Value,
    fields: [Fields; 2],
    /// Two different values for a field that decides.
    contradicts: bool,
    /// Whether `data` of the outer object is an object, if there is any.
    data: Option<bool>,
    /// Bytes that may still be kept of the large fields.
    left: usize,
    /// How many bytes the body has, where that is known.
    length: Option<u64>,
    seen: u64,
    max_bytes: u64,
    beginning: Vec<u8>,
}

impl Reader {
    /// Creates a reader that keeps at most `max_bytes` of the large fields together, of a body of `length` bytes where
    /// that is known.
    pub(in crate::providers) fn new(max_bytes: u64, length: Option<u64>) -> Self {
        Self {
            at: At::Start,
            level: 0,
            name: Vec::new(),
            field: None,
            value: Value::Absent,
            fields: [Fields::default(), Fields::default()],
            contradicts: false,
            data: None,
            left: usize::try_from(max_bytes).unwrap_or(usize::MAX),
            length,
            seen: 0,
            max_bytes,
            beginning: Vec::new(),
        }
    }

    /// Takes the next bytes of the body; breaks when more of them would change nothing or are too many.
    pub(in crate::providers) fn push(&mut self, bytes: &[u8]) -> ControlFlow<()> {
        let room = BEGINNING_BYTES - self.beginning.len();
        self.beginning
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
        let mut rest = bytes;
        while let Some(byte) = rest.first() {
            let used = match self.at {
                At::InValue { .. } => self.in_value(rest),
                At::InName { escaped } => {
                    self.in_name(*byte, escaped);
                    1
                }
                At::End | At::Broken => return ControlFlow::Break(()),
                _ if byte.is_ascii_whitespace() => 1,
                // The mark may come in pieces.
                At::Start if self.mark() == Some(byte) => 1,
                At::Start | At::Name | At::Colon | At::Value | At::AfterValue => {
                    usize::from(self.token(*byte))
                }
            };
            self.seen += used as u64;
            rest = &rest[used..];
        }
        if self.is_too_large() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    /// Takes secrets out of all that was kept, before anything else reads it.
    pub(in crate::providers) fn redact(&mut self, redactor: &Redactor) {
        for value in self.fields.iter_mut().flat_map(|fields| &mut fields.0) {
            if let Value::Bytes(bytes) = value {
                *bytes = redactor.body(std::mem::take(bytes));
            }
        }
        self.beginning = redactor.beginning(&self.beginning).into_bytes();
    }

    /// How many bytes of the large fields are kept.
    pub(in crate::providers) fn kept(&self) -> u64 {
        self.max_bytes.saturating_sub(self.left as u64)
    }

    /// How many bytes of the body were read.
    pub(in crate::providers) fn seen(&self) -> u64 {
        self.seen
    }

    /// Most bytes of the body that are kept.
    pub(in crate::providers) fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// Whether the body is larger than what is read at all.
    pub(in crate::providers) fn is_too_large(&self) -> bool {
        self.seen > self.max_bytes.saturating_mul(READ_FACTOR)
    }

    /// Whether `data` of the outer object is an object; `None` where it has none.
    pub(in crate::providers) fn data(&self) -> Option<bool> {
        self.data
    }

    /// The first bytes of the body.
    pub(in crate::providers) fn beginning(&self) -> &[u8] {
        &self.beginning
    }

    /// Whether two values of the ID or of the status contradict each other.
    pub(in crate::providers) fn contradicts(&self) -> bool {
        self.contradicts
    }

    /// Ends the reading: how the body turned out, and the fields of the outer object and of the one under `data`.
    pub(in crate::providers) fn finish(&mut self) -> (Ending, [Fields; 2]) {
        let ending = match self.at {
            At::End => Ending::Whole,
            At::Broken => Ending::Broken(self.seen),
            At::Start if self.beginning.iter().all(u8::is_ascii_whitespace) => Ending::Empty,
            _ => Ending::Cut,
        };
        if ending != Ending::Whole
            && let Some(field) = self.field.take()
        {
            self.fields[self.level].0[field as usize] = Value::Cut;
        }
        (ending, std::mem::take(&mut self.fields))
    }

    /// The byte of a byte order mark that would be next.
    fn mark(&self) -> Option<&'static u8> {
        BYTE_ORDER_MARK.get(usize::try_from(self.seen).ok()?)
    }

    /// One byte between names and values; whether it is used up.
    fn token(&mut self, byte: u8) -> bool {
        self.at = match (self.at, byte) {
            (At::Start, b'{') => At::Name,
            (At::Name, b'"') => {
                self.name.clear();
                At::InName { escaped: false }
            }
            (At::Colon, b':') => At::Value,
            (At::Value, byte) => return self.begin_value(byte),
            (At::AfterValue, b',') => At::Name,
            (At::Name | At::AfterValue, b'}') if self.level == 0 => At::End,
            (At::Name | At::AfterValue, b'}') => {
                self.level = 0;
                At::AfterValue
            }
            _ => At::Broken,
        };
        self.at != At::Broken
    }

    fn in_name(&mut self, byte: u8, escaped: bool) {
        if byte == b'"' && !escaped {
            self.at = At::Colon;
            return;
        }
        if self.name.len() < MAX_NAME_BYTES {
            self.name.push(byte);
        }
        self.at = At::InName {
            escaped: byte == b'\\' && !escaped,
        };
    }

    fn begin_value(&mut self, byte: u8) -> bool {
        if self.name.contains(&b'\\') {
            let quoted = [b"\"".as_slice(), &self.name, b"\""].concat();
            self.name = serde_json::from_slice::<String>(&quoted)
                .map(String::into_bytes)
                .unwrap_or_default();
        }
        if self.level == 0 && self.name == b"data" {
            // Of two values, the last counts, as in most parsers.
            self.fields[1] = Fields::default();
            self.data = Some(byte == b'{');
            if byte == b'{' {
                (self.level, self.at) = (1, At::Name);
                return true;
            }
        }
        self.field = Field::named(&self.name);
        self.value = Value::Bytes(Vec::new());
        self.at = At::InValue {
            depth: 0,
            string: false,
            escaped: false,
        };
        false
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
        self.keep(&bytes[..used]);
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
        let (Some(field), Value::Bytes(kept)) = (self.field, &mut self.value) else {
            return;
        };
        let room = if field.is_large() {
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
            kept.extend_from_slice(bytes);
            self.left -= if field.is_large() { bytes.len() } else { 0 };
        } else {
            self.left += if field.is_large() { kept.len() } else { 0 };
            self.value = Value::TooLarge;
        }
    }

    fn end_value(&mut self) {
        self.at = At::AfterValue;
        let Some(field) = self.field.take() else {
            return;
        };
        let mut value = std::mem::take(&mut self.value);
        if let Value::Bytes(bytes) = &mut value {
            bytes.truncate(bytes.trim_ascii_end().len());
            if bytes == b"null" {
                self.left += if field.is_large() { bytes.len() } else { 0 };
                value = Value::Absent;
            }
        }
        let place = &mut self.fields[self.level].0[field as usize];
        if field.decides() && *place != Value::Absent && *place != value {
            self.contradicts = true;
        }
        if let (Value::Bytes(before), true) = (&*place, field.is_large()) {
            self.left += before.len();
        }
        *place = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: u64 = 1000;

    /// Reads `body` in pieces of `piece` bytes.
    fn read(body: &[u8], piece: usize) -> (Ending, [Fields; 2]) {
        let mut reader = Reader::new(LIMIT, None);
        for bytes in body.chunks(piece) {
            if reader.push(bytes).is_break() {
                break;
            }
        }
        reader.finish()
    }

    fn bytes(fields: &Fields, field: Field) -> Option<String> {
        fields
            .bytes(field)
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    #[test]
    fn values_are_kept_as_they_are_however_the_body_is_cut_into_pieces() {
        let body = br#"{ "id" : "a\"}," ,"output":{"a":[1,"]}"],"n":NaN} , "x":[{"status":"no"}],"status":"running"
            ,"error":null,"data":{"status":"failed","id":7,"data":{"id":8}}} trailing"#;
        for piece in [1, 2, 3, 7, 1000] {
            let (ending, [outer, inner]) = read(body, piece);
            assert_eq!(ending, Ending::Whole);
            assert_eq!(bytes(&outer, Field::Id).unwrap(), r#""a\"},""#);
            assert_eq!(
                bytes(&outer, Field::Output).unwrap(),
                r#"{"a":[1,"]}"],"n":NaN}"#
            );
            assert_eq!(bytes(&outer, Field::Status).unwrap(), r#""running""#);
            assert_eq!(outer.get(Field::Error), &Value::Absent);
            assert_eq!(bytes(&inner, Field::Status).unwrap(), r#""failed""#);
            assert_eq!(bytes(&inner, Field::Id).unwrap(), "7");
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
            assert_eq!(outer.get(Field::Output), &Value::TooLarge);
            assert_eq!(outer.bytes(Field::Input).map(<[u8]>::len), Some(902));
            assert_eq!(bytes(&outer, Field::Status).unwrap(), r#""succeeded""#);
        }
        let endless = format!(r#"{{"status":"succeeded","output":"{}"#, large.repeat(10));
        let mut reader = Reader::new(LIMIT, None);
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
            assert_eq!(
                bytes(&outer, Field::Status).unwrap(),
                r#""failed""#,
                "{body}"
            );
        }
        assert_eq!(read(b" \n", 1).0, Ending::Empty);
        assert_eq!(read(b"", 1).0, Ending::Empty);
        assert_eq!(read(b"[]", 1).0, Ending::Broken(0));
        assert_eq!(read(b"\xef\xbb\xbf{}", 1).0, Ending::Whole);
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(body in "[{}\\[\\]\":, a\\\\]{0,60}|\\{\"status\":\"[a-z]\",\"output\":[\\[{}\\]\", 1\\\\]{0,40}\\}", piece in 1_usize..9) {
            let (whole, cut) = (read(body.as_bytes(), 10_000), read(body.as_bytes(), piece));
            prop_assert_eq!(format!("{whole:?}"), format!("{cut:?}"));
        }
    }
}
