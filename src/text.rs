//! Texts for people: made harmless, and short.

use std::borrow::Cow;
use std::time::Duration;

/// `text` as one line of at most `max_chars` characters, harmless on a terminal, a desktop or in a
/// chat: control characters (terminal escapes among them) and bidirectional overrides are taken out,
/// and white space is folded.
///
/// Of an escape sequence the visible characters stay (`[31m`). Were they taken out, too, a secret that is split by
/// one would not be whole where secrets are redacted, and would be whole where the text is shown.
pub fn one_line(text: &str, max_chars: usize) -> String {
    let visible = |c: &char| !is_hidden(*c) || c.is_whitespace();
    let folded = text.chars().filter(visible).collect::<String>();
    shorten(
        &folded.split_whitespace().collect::<Vec<_>>().join(" "),
        max_chars,
    )
}

/// Bytes as text, without a byte order mark: UTF-8, or UTF-16 with such a mark, as Windows PowerShell writes
/// files and standard input (Microsoft, "about_Character_Encoding").
///
/// # Errors
/// What the bytes are not, in words.
pub(crate) fn decoded(bytes: Vec<u8>) -> Result<String, &'static str> {
    let utf16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let (pairs, rest) = bytes.as_chunks::<2>();
        let text = String::from_utf16(&pairs.iter().copied().map(unit).collect::<Vec<_>>()).ok();
        text.filter(|_| rest.is_empty())
            .ok_or("it begins like UTF-16 text but is not; save it as UTF-8")
    };
    match bytes.as_slice() {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        _ => {
            let mut text = String::from_utf8(bytes).map_err(|_invalid| "it is not UTF-8")?;
            if text.starts_with(BYTE_ORDER_MARK) {
                text.drain(..BYTE_ORDER_MARK.len_utf8());
            }
            Ok(text)
        }
    }
}

/// What many Windows programs write before a text.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// `text` without white space and byte order marks around it.
pub(crate) fn trimmed(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || c == BYTE_ORDER_MARK || c == '\0')
}

/// Like [`one_line`], with the end kept instead of the beginning.
pub fn last_of_line(text: &str, max_chars: usize) -> String {
    let line = one_line(text, usize::MAX);
    match line.chars().count().checked_sub(max_chars) {
        None | Some(0) => line,
        Some(surplus) => std::iter::once('…')
            .chain(line.chars().skip(surplus + 1))
            .collect(),
    }
}

/// The first `max_lines` lines of `text` that are not empty, each as [`one_line`] makes it.
pub fn first_lines(text: &str, max_lines: usize, max_chars: usize) -> Vec<String> {
    let lines = text
        .lines()
        .map(|line| one_line(line, max_chars))
        .filter(|line| !line.is_empty());
    lines.take(max_lines).collect()
}

/// An error with its causes, as one line of text. What a layer repeats of the one below is left out.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    error_chain_after(error.to_string(), error)
}

/// `text`, which stands for an error itself, with the error's causes.
pub fn error_chain_after(mut text: String, error: &dyn std::error::Error) -> String {
    let mut cause = error.source();
    while let Some(error) = cause {
        let cause_text = error.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        cause = error.source();
    }
    text
}

/// `text`, cut to `max_chars` characters, the last an ellipsis where it was longer.
fn shorten(text: &str, max_chars: usize) -> String {
    match text.char_indices().nth(max_chars) {
        None => text.to_owned(),
        Some(_) => text
            .chars()
            .take(max_chars.saturating_sub(1))
            .chain(['…'])
            .collect(),
    }
}

/// JSON that means the same and is harmless on a terminal: what JSON allows as it is but a terminal may act
/// upon, or hide, is written as an escape. JSON has such characters nowhere but inside of strings.
pub fn escape_json_for_terminal(json: &str) -> Cow<'_, str> {
    let acts = |c: char| is_hidden(c) && !c.is_ascii_whitespace();
    if !json.contains(acts) {
        return Cow::Borrowed(json);
    }
    let mut escaped = String::with_capacity(json.len() + 64);
    for c in json.chars() {
        if acts(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                escaped.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// Valid JSON without halves of characters: each escape of a surrogate without its other half (RFC 8259,
/// section 8.2) becomes that of the replacement character. Programs that cut texts leave such halves, and
/// many parsers refuse a whole document for one.
pub fn replace_lone_surrogates(json: &str) -> Cow<'_, str> {
    /// The code unit of the `\u` escape that `text` begins with.
    fn unit(text: &[u8]) -> Option<u16> {
        let digits = text.strip_prefix(b"\\u")?.get(..4)?;
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    }
    let bytes = json.as_bytes();
    let (mut whole, mut copied, mut at) = (String::new(), 0, 0);
    while let Some(next) = bytes[at..].iter().position(|byte| *byte == b'\\') {
        at += next;
        match (unit(&bytes[at..]), bytes.get(at + 6..).and_then(unit)) {
            (Some(0xd800..0xdc00), Some(0xdc00..0xe000)) => at += 12,
            (Some(0xd800..0xe000), _) => {
                whole.push_str(&json[copied..at]);
                whole.push_str("\\ufffd");
                at += 6;
                copied = at;
            }
            (Some(_), _) => at += 6,
            // Another escape takes one character, which may be a backslash too.
            (None, _) => at = (at + 2).min(bytes.len()),
        }
    }
    if copied == 0 {
        return Cow::Borrowed(json);
    }
    whole.push_str(&json[copied..]);
    Cow::Owned(whole)
}

/// Control characters, and characters that change how their neighbors are shown or are not shown at
/// all: Unicode's bidirectional formatting characters (UAX #9), zero-width ones, separators, annotation marks
/// and tags; also those without a glyph that are letters or marks (`Default_Ignorable_Code_Point` of
/// DerivedCoreProperties.txt): the soft hyphen, the grapheme joiner and the Hangul fillers.
pub(crate) fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}' | '\u{34f}' | '\u{115f}'..='\u{1160}' | '\u{3164}' | '\u{ffa0}'
        )
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{61c}' | '\u{180e}')
        || matches!(c, '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Formats a span of time in at most two units: `340ms`, `45s`, `3m 20s`, `2h 5m`, `3d 4h`.
pub fn humanize(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let two = |big: u64, big_unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{big}{big_unit}"),
        small => format!("{big}{big_unit} {small}{small_unit}"),
    };
    match seconds {
        0 if duration.subsec_millis() > 0 => format!("{}ms", duration.subsec_millis()),
        0..60 => format!("{seconds}s"),
        60..3600 => two(seconds / 60, "m", seconds % 60, "s"),
        3600..86_400 => two(seconds / 3600, "h", seconds % 3600 / 60, "m"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3600, "h"),
    }
}

/// The candidate that `word` is most likely a misspelling of, if one is close.
pub(crate) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    // A third of the letters may be wrong; more, and the suggestion would be a guess.
    let limit = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::levenshtein(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_windows_are_read() {
        let utf16 = |mark: &[u8], unit: fn(u16) -> [u8; 2]| {
            [
                mark,
                &"run_1\r\n"
                    .encode_utf16()
                    .flat_map(unit)
                    .collect::<Vec<_>>(),
            ]
            .concat()
        };
        for bytes in [
            b"run_1\r\n".to_vec(),
            b"\xef\xbb\xbfrun_1\r\n".to_vec(),
            utf16(b"\xff\xfe", u16::to_le_bytes),
            utf16(b"\xfe\xff", u16::to_be_bytes),
        ] {
            assert_eq!(decoded(bytes).unwrap(), "run_1\r\n");
        }
        assert!(
            decoded(b"\xff\xfea".to_vec())
                .unwrap_err()
                .contains("UTF-16")
        );
        assert!(decoded(b"\xffa".to_vec()).unwrap_err().contains("UTF-8"));
        assert_eq!(trimmed(" \u{feff}key\u{a0}\r\n"), "key");
    }

    #[test]
    fn hostile_text_becomes_one_harmless_line() {
        assert_eq!(
            one_line("a\x1b[31mb\x07\r\n\tc\u{202e}d\u{200b}", 80),
            "a[31mb cd"
        );
        for hidden in [
            '\u{ad}', '\u{34f}', '\u{115f}', '\u{1160}', '\u{3164}', '\u{ffa0}',
        ] {
            assert_eq!(one_line(&format!("a{hidden}b"), 80), "ab", "{hidden:?}");
        }
        assert_eq!(one_line("  much   space ", 80), "much space");
        assert_eq!(one_line("0123456789", 5), "0123…");
        assert_eq!(one_line("01234", 5), "01234");
        assert_eq!(last_of_line("0\n12345", 5), "…2345");
        assert_eq!(last_of_line("0\n123", 5), "0 123");
        assert_eq!(first_lines("\n\none\n \ntwo\nthree", 2, 10), ["one", "two"]);
    }

    #[test]
    fn json_for_a_terminal_means_the_same() {
        let value = serde_json::json!({"a\u{9b}": "\u{202e}\u{7f}\u{e0041}\x1b[2J שלום \n"});
        let json = serde_json::to_string_pretty(&value).unwrap();
        let harmless = escape_json_for_terminal(&json);
        assert!(
            harmless.chars().all(|c| !is_hidden(c) || c == '\n'),
            "{harmless}"
        );
        assert!(harmless.contains("שלום"), "{harmless}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&harmless).unwrap(),
            value
        );
        assert!(matches!(
            escape_json_for_terminal("{\"a\": 1}\n"),
            Cow::Borrowed(_)
        ));
    }

    #[test]
    fn halves_of_characters_are_replaced_and_whole_ones_kept() {
        for (json, whole) in [
            (r#""\ud83d\ude00""#, r#""\ud83d\ude00""#),
            (r#""\ud83d""#, r#""\ufffd""#),
            (
                r#""\uDE00\uD83D\ud83d\ude00x""#,
                r#""\ufffd\ufffd\ud83d\ude00x""#,
            ),
            (r#""\\ud83d \\\ud83d""#, r#""\\ud83d \\\ufffd""#),
            (
                r#"{"\ud800\n":"\u00e9\ud800\u0041"}"#,
                r#"{"\ufffd\n":"\u00e9\ufffd\u0041"}"#,
            ),
            ("[1,2]", "[1,2]"),
        ] {
            assert_eq!(replace_lone_surrogates(json), whole);
            assert!(
                serde_json::from_str::<serde_json::Value>(&replace_lone_surrogates(json)).is_ok(),
                "{json}"
            );
        }
    }

    #[test]
    fn spans_have_two_units_at_most() {
        let shown = |milliseconds| humanize(Duration::from_millis(milliseconds));
        assert_eq!(shown(0), "0s");
        assert_eq!(shown(340), "340ms");
        assert_eq!(shown(45_999), "45s");
        assert_eq!(shown(200_000), "3m 20s");
        assert_eq!(shown(7_200_000), "2h");
        assert_eq!(shown(274_000_000), "3d 4h");
    }

    #[test]
    fn suggestions_are_close_or_absent() {
        let keys = ["base_url", "key", "key_file", "run_url"];
        assert_eq!(nearest("bas_url", keys), Some("base_url"));
        assert_eq!(nearest("kee", keys), Some("key"));
        assert_eq!(nearest("keyfile", keys), Some("key_file"));
        assert_eq!(nearest("colour", keys), None);
    }
}
