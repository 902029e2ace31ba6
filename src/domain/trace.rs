//! The trace that a watch belongs to, as W3C Trace Context level 2 writes it (w3.org/TR/trace-context-2). Sections are
//! named by their headings.

use std::fmt;

/// The names of the two headers, in lower case as they should be sent.
pub const TRACE_PARENT: &str = "traceparent";
/// See [`TRACE_PARENT`].
pub const TRACE_STATE: &str = "tracestate";

/// The environment variables for the same in processes (OpenTelemetry, "Environment Variables as Context Propagation
/// Carriers", a release candidate in 2026: opentelemetry.io/docs/specs/otel/context/env-carriers).
pub const TRACE_PARENT_VARIABLE: &str = "TRACEPARENT";
/// See [`TRACE_PARENT_VARIABLE`].
pub const TRACE_STATE_VARIABLE: &str = "TRACESTATE";

/// Length of a `traceparent` of version 00 in bytes: a version, a trace ID, a parent ID and flags in hexadecimal digits,
/// with dashes between them.
const PARENT_LENGTH: usize = 2 + 1 + 32 + 1 + 16 + 1 + 2;

/// The flags that level 2 defines (section "trace-flags"): "sampled" and "random trace ID".
const KNOWN_FLAGS: u8 = 0b11;

/// Longest `tracestate` that is passed on, in bytes: what should be passed on at least (section "tracestate Limits").
const MOST_STATE_BYTES: usize = 512;

/// Longest entry of a `tracestate` that is not among those that are left out first (section "tracestate Limits"), in bytes.
const SHORT_ENTRY_BYTES: usize = 128;

/// Most entries of a `tracestate` (section "tracestate Header Field Values").
const MOST_ENTRIES: usize = 32;

/// Longest key and longest value in an entry of a `tracestate` (section "list-members"), in bytes.
const MOST_KEY_BYTES: usize = 256;
const MOST_VALUE_BYTES: usize = 256;

/// A valid `traceparent`, and the `tracestate` that came with it. Both are passed on as they came, because no span is made
/// here: a service "which currently does not collect distributed tracing information" may do so (section "Mutating the
/// traceparent Field").
///
/// As text it is the `traceparent` and, where there is one, the `tracestate` after a space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext(Box<str>);

impl TraceContext {
    /// Reads the values of the two headers; `None` for a `traceparent` that must be ignored. A `tracestate` that cannot be
    /// read is left out, which section "A traceparent is Received" allows.
    pub fn read(parent: &str, state: &str) -> Option<Self> {
        let mut text = read_parent(parent)?;
        if let Some(state) = read_state(state) {
            text.push(' ');
            text.push_str(&state);
        }
        Some(Self(text.into()))
    }

    /// Reads the text of a trace context; `None` for one that this program does not write.
    pub fn from_text(text: &str) -> Option<Self> {
        let (parent, state) = text.split_once(' ').unwrap_or((text, ""));
        Self::read(parent, state).filter(|context| context.as_str() == text)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The value of the header `traceparent`.
    pub fn parent(&self) -> &str {
        &self.0[..PARENT_LENGTH]
    }

    /// The value of the header `tracestate`, if there is one.
    pub fn state(&self) -> Option<&str> {
        self.0.get(PARENT_LENGTH + 1..)
    }

    /// The ID of the trace: 32 hexadecimal digits.
    pub fn trace_id(&self) -> &str {
        &self.0[3..35]
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Reads a `traceparent`. Of a higher version the parts of version 00 are taken, without flags that are not known here,
/// and version 00 is made of them (sections "Versioning of traceparent" and "A traceparent is Received").
fn read_parent(value: &str) -> Option<String> {
    let (head, rest) = value.split_at_checked(PARENT_LENGTH)?;
    let mut parts = head.split('-');
    let mut part = |length: usize| {
        let part = parts.next()?;
        let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        (part.len() == length && part.bytes().all(digit)).then_some(part)
    };
    let (version, trace, parent, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
    let is_zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    if is_zero(trace) || is_zero(parent) {
        return None;
    }
    match version {
        "00" => rest.is_empty().then(|| value.to_owned()),
        "ff" => None,
        _ if rest.is_empty() || rest.starts_with('-') => {
            let flags = u8::from_str_radix(flags, 16).ok()? & KNOWN_FLAGS;
            Some(format!("00-{trace}-{parent}-{flags:02x}"))
        }
        _ => None,
    }
}

/// Reads a `tracestate`, several headers with commas between them. `None` for one that is invalid or empty. Of one that
/// is too long whole entries are left out, long ones first and then from the end, as section "tracestate Limits" requires.
fn read_state(value: &str) -> Option<String> {
    let entries = value
        .split(',')
        .map(|entry| entry.trim_matches([' ', '\t']));
    let mut entries: Vec<_> = entries.filter(|entry| !entry.is_empty()).collect();
    if entries.len() > MOST_ENTRIES || !entries.iter().all(|entry| is_entry(entry)) {
        return None;
    }
    // Each has a comma after it but the last.
    let length = |entries: &[&str]| entries.iter().map(|entry| entry.len() + 1).sum::<usize>();
    while length(&entries) > MOST_STATE_BYTES + 1 {
        let long = entries
            .iter()
            .rposition(|entry| entry.len() > SHORT_ENTRY_BYTES);
        entries.remove(long.unwrap_or(entries.len() - 1));
    }
    (!entries.is_empty()).then(|| entries.join(","))
}

/// Whether a text is an entry of a `tracestate`: a key, `=` and a value (section "list-members").
fn is_entry(entry: &str) -> bool {
    let Some((key, value)) = entry.split_once('=') else {
        return false;
    };
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    key.bytes().next().is_some_and(letter)
        && key.len() <= MOST_KEY_BYTES
        && key
            .bytes()
            .all(|byte| letter(byte) || b"_-*/@".contains(&byte))
        && (1..=MOST_VALUE_BYTES).contains(&value.len())
        && value
            .bytes()
            .all(|byte| matches!(byte, b' '..=b'~') && byte != b'=')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The example of the recommendation.
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn parent(value: &str) -> Option<String> {
        TraceContext::read(value, "").map(|context| context.parent().to_owned())
    }

    fn state(value: &str) -> Option<String> {
        let context = TraceContext::read(PARENT, value).unwrap();
        context.state().map(str::to_owned)
    }

    #[test]
    fn a_valid_parent_is_passed_on_as_it_is() {
        for flags in ["00", "01", "02", "03", "ff"] {
            let value = PARENT.replace("-01", &format!("-{flags}"));
            assert_eq!(parent(&value).as_ref(), Some(&value));
        }
        let context = TraceContext::read(PARENT, "rojo=00f067aa0ba902b7").unwrap();
        assert_eq!(context.trace_id(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(context.parent(), PARENT);
        assert_eq!(context.state(), Some("rojo=00f067aa0ba902b7"));
    }

    #[test]
    fn a_higher_version_is_read_as_far_as_version_00_goes() {
        for (flags, known) in [("01", "01"), ("ff", "03"), ("fc", "00")] {
            for more in ["", "-", "-what the future will be like"] {
                let value = PARENT.replacen("00", "cc", 1).replace("-01", "-");
                let wanted = PARENT.replace("-01", &format!("-{known}"));
                assert_eq!(parent(&format!("{value}{flags}{more}")), Some(wanted));
            }
        }
    }

    #[test]
    fn a_parent_that_must_be_ignored_is_ignored() {
        for bad in [
            "",
            "00",
            &PARENT.to_uppercase(),
            &format!("{PARENT}-what"),
            &format!("{PARENT}-"),
            &format!("{PARENT}."),
            &format!("{PARENT},{PARENT}"),
            &format!(" {PARENT}"),
            &PARENT.replacen("00", "ff", 1),
            &PARENT.replacen("00", "0x", 1),
            &PARENT.replacen("00", "cc", 1).replace("-01", "-01.what"),
            &PARENT.replacen("00", "cc", 1).replace("-01", "-0"),
            &PARENT.replace("-01", "-0x"),
            &PARENT.replace('-', "_"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319-cb7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333.-01",
            "0é-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-é",
        ] {
            assert_eq!(parent(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_state_is_passed_on_in_its_order() {
        for (given, wanted) in [
            ("congo=t61rcWkgMzE", "congo=t61rcWkgMzE"),
            ("rojo=1,congo=2,rojo=3", "rojo=1,congo=2,rojo=3"),
            (" rojo=1\t, ,\tcongo= 2 ,,", "rojo=1,congo= 2"),
            ("fw529a3039@dt=FfAA", "fw529a3039@dt=FfAA"),
            ("0_-*/@=~!", "0_-*/@=~!"),
        ] {
            assert_eq!(state(given).as_deref(), Some(wanted), "{given}");
        }
        let many = vec!["a=1"; MOST_ENTRIES].join(",");
        assert_eq!(state(&many), Some(many));
    }

    #[test]
    fn a_state_that_cannot_be_read_costs_nothing_but_itself() {
        let (key, value) = ("k".repeat(257), "v".repeat(257));
        for bad in [
            "",
            " , ",
            "rojo",
            "=1",
            "rojo=",
            "rojo=1=2",
            "Rojo=1",
            "_rojo=1",
            "ro jo=1",
            "rojo=1,congo",
            "rojo=é",
            "rojo=\u{7f}",
            &format!("{key}=1"),
            &format!("rojo={value}"),
            &vec!["a=1"; MOST_ENTRIES + 1].join(","),
        ] {
            assert_eq!(state(bad), None, "{bad}");
        }
    }

    #[test]
    fn of_a_state_that_is_too_long_whole_entries_are_left_out() {
        let entry = |key: &str, bytes: usize| format!("{key}={}", "x".repeat(bytes - 2));
        let (long, short) = (entry("l", 129), |key| entry(key, 128));
        let whole = [short("a"), short("b"), short("c"), entry("d", 125)].join(",");
        assert_eq!(whole.len(), 512);
        assert_eq!(state(&whole).as_ref(), Some(&whole));
        assert_eq!(state(&format!("{long},{whole}")).as_ref(), Some(&whole));
        assert_eq!(state(&format!("{whole},e=1")), Some(whole));
        let two = format!(
            "{long},a=1,{},{},{}",
            entry("m", 200),
            entry("n", 200),
            short("b")
        );
        let left = format!("{long},a=1,{},{}", entry("m", 200), short("b"));
        assert_eq!(state(&two), Some(left), "the last of the long ones");
    }

    proptest! {
        #[test]
        fn what_was_read_reads_back(flags in "[0-9a-f]{2}", given in "[a-c=,@ \t~é]{0,40}") {
            let value = PARENT.replace("-01", &format!("-{flags}"));
            let context = TraceContext::read(&value, &given).unwrap();
            prop_assert_eq!(context.parent(), value);
            prop_assert_eq!(TraceContext::from_text(context.as_str()), Some(context.clone()));
            prop_assert!(context.state().is_none_or(|state| state.len() <= MOST_STATE_BYTES));
        }
    }

    #[test]
    fn a_text_of_another_form_is_not_read() {
        for text in [
            "",
            &format!("{PARENT} "),
            &format!("{PARENT} a=1, b=2"),
            "00",
        ] {
            assert_eq!(TraceContext::from_text(text), None, "{text}");
        }
    }
}
