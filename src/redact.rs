//! Takes secrets out of texts that come from outside, in whatever spelling a server repeats them.
//!
//! Every such text passes through a [`Redactor`] before anything else reads it, so that no way from a server to a
//! log, the store or a receiver can miss it. The text is not changed otherwise, and is not decoded: the search does
//! that as it goes, so that what JSON, HTML, an address or a mixture of them spells differently is found where it
//! stands.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::text::is_hidden;

/// What stands for a secret.
pub(crate) const REDACTED: &str = "[redacted]";

/// How often a spelling may be spelled again: an address in JSON inside of JSON, for example.
const DEPTH: u8 = 3;

/// Secrets shorter than this, in characters, are not looked for inside of words, nor in bodies of successes: each
/// letter of a text could be one.
pub(crate) const MIN_SECRET: usize = 8;

/// Shortest encoded spelling that is looked for, in characters.
const MIN_ENCODED: usize = 6;

/// Longest HTML entity that is read, in characters after the `&`.
const MAX_ENTITY: usize = 10;

/// Secrets, and how to find them.
#[derive(Clone, Default)]
pub(crate) struct Redactor {
    spellings: Vec<Spelling>,
    /// The spellings that may begin with this byte, where it is no escape.
    first: Vec<Vec<usize>>,
    /// By a first byte, the bytes after which it may begin one: a set of bits. Two bytes rule out nearly all places.
    second: Vec<[u64; 4]>,
}

#[derive(Clone, PartialEq, Eq)]
struct Spelling {
    /// In lower case.
    characters: Vec<u32>,
    /// Too short to be looked for inside of words, and in bodies of successes.
    short: bool,
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} spellings of secrets]", self.spellings.len())
    }
}

impl Redactor {
    /// One that finds these secrets. Empty ones are left out.
    pub(crate) fn new(secrets: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let mut spellings = Vec::new();
        for secret in secrets {
            let secret = secret.as_ref();
            let short = secret.chars().count() < MIN_SECRET;
            for characters in spellings_of(secret) {
                let spelling = Spelling { characters, short };
                if !spelling.characters.is_empty() && !spellings.contains(&spelling) {
                    spellings.push(spelling);
                }
            }
        }
        let mut first = vec![Vec::new(); 256];
        for (index, spelling) in spellings.iter().enumerate() {
            match char::from_u32(spelling.characters[0]) {
                Some(c) if c.is_ascii_alphabetic() => {
                    first[c as usize].push(index);
                    first[c.to_ascii_uppercase() as usize].push(index);
                }
                Some(c) if c.is_ascii() => first[c as usize].push(index),
                _ => first[0x80..]
                    .iter_mut()
                    .for_each(|indices| indices.push(index)),
            }
        }
        let second = (0..=u8::MAX)
            .map(|byte| seconds(byte, &spellings, &first[usize::from(byte)]))
            .collect();
        Self {
            spellings,
            first,
            second,
        }
    }

    /// `text` with a mark in place of each secret.
    pub(crate) fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.redacted(text.as_bytes(), true, false)
            .map_or(Cow::Borrowed(text), |bytes| Cow::Owned(lossy(bytes)))
    }

    /// The beginning of a text that was cut off, with a mark in place of each secret, also of one that was cut off.
    pub(crate) fn beginning(&self, bytes: &[u8]) -> String {
        lossy(
            self.redacted(bytes, true, true)
                .unwrap_or_else(|| bytes.to_vec()),
        )
    }

    /// A body of a success, with a mark in place of each secret. JSON stays JSON.
    pub(crate) fn body(&self, body: Vec<u8>) -> Vec<u8> {
        self.redacted(&body, false, false).unwrap_or(body)
    }

    /// `None` where there is no secret.
    fn redacted(&self, text: &[u8], short: bool, cut: bool) -> Option<Vec<u8>> {
        if self.spellings.is_empty() {
            return None;
        }
        let (mut redacted, mut copied, mut at) = (Vec::new(), 0, 0);
        while at < text.len() {
            let end = self.may_begin(text, at);
            let end = end.then(|| self.longest_at(text, at, short, cut));
            let Some(end) = end.flatten() else {
                at += 1;
                continue;
            };
            redacted.extend_from_slice(&text[copied..before_escape(text, copied, at)]);
            redacted.extend_from_slice(REDACTED.as_bytes());
            (copied, at) = (end, end);
        }
        if copied == 0 {
            return None;
        }
        redacted.extend_from_slice(&text[copied..]);
        Some(redacted)
    }

    /// Whether a secret may begin at `at`, by two bytes.
    fn may_begin(&self, text: &[u8], at: usize) -> bool {
        let set = &self.second[usize::from(text[at])];
        text.get(at + 1)
            .is_none_or(|next| set[usize::from(next >> 6)] >> (next & 63) & 1 == 1)
    }

    /// Where the longest secret ends that begins at `at`.
    fn longest_at(&self, text: &[u8], at: usize, short: bool, cut: bool) -> Option<usize> {
        let wanted = |spelling: &&Spelling| short || !spelling.short;
        if !is_escape(text[at]) {
            let begun = self.first[usize::from(text[at])]
                .iter()
                .map(|index| &self.spellings[*index]);
            let begun = begun
                .filter(wanted)
                .filter(|spelling| spelling.may_begin(text, at));
            return begun
                .flat_map(|spelling| {
                    let ends = (0..=DEPTH).filter_map(|depth| spelling.end(text, at, depth, cut));
                    ends.filter(|end| !spelling.short || stands_alone(text, at, *end))
                })
                .max();
        }
        let ends = (0..=DEPTH).filter_map(|depth| {
            let first = lower(character(text, at, depth)?.0);
            let begun = self
                .spellings
                .iter()
                .filter(wanted)
                .filter(|spelling| spelling.characters[0] == first);
            begun
                .filter_map(|spelling| {
                    let end = spelling.end(text, at, depth, cut)?;
                    (!spelling.short || stands_alone(text, at, end)).then_some(end)
                })
                .max()
        });
        ends.max()
    }
}

/// The bytes after which one of `spellings` may begin with `byte`; `begun` are those that begin with it.
fn seconds(byte: u8, spellings: &[Spelling], begun: &[usize]) -> [u64; 4] {
    if is_escape(byte) {
        return [u64::MAX; 4];
    }
    let mut set = [0; 4];
    for next in 0..=u8::MAX {
        let may_begin = |index: &usize| spellings[*index].may_begin(&[byte, next], 0);
        if begun.iter().any(may_begin) {
            set[usize::from(next >> 6)] |= 1 << (next & 63);
        }
    }
    set
}

/// Whether neither a letter nor a digit stands beside this part of a text. An escape before it counts as neither.
fn stands_alone(text: &[u8], at: usize, end: usize) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || !byte.is_ascii();
    let before = text[..at].iter().rev();
    let letters = before.take_while(|byte| is_word(byte)).count();
    let escaped = text[..at - letters]
        .last()
        .is_some_and(|byte| is_escape(*byte));
    (letters == 0 || escaped) && !text.get(end).is_some_and(is_word)
}

/// Where the escape of JSON begins that `at` is in the middle of, which would be broken without its end; else `at`.
fn before_escape(text: &[u8], from: usize, at: usize) -> usize {
    // The longest is `\u{10ffff}`, of programming languages; there may be one more backslash to count.
    let begin = at.saturating_sub(10).max(from);
    let mut escape = begin
        - text[from..begin]
            .iter()
            .rev()
            .take_while(|byte| **byte == b'\\')
            .count()
            % 2;
    while escape < at {
        match character(text, escape, 1) {
            Some((_, next)) if next <= at => escape = next,
            Some(_) if text[escape] == b'\\' => return escape,
            Some(_) | None => break,
        }
    }
    // A backslash that begins no escape that is known.
    let slashes = text[from..at]
        .iter()
        .rev()
        .take_while(|byte| **byte == b'\\')
        .count();
    at - slashes % 2
}

/// Whether an escape may begin with this byte.
fn is_escape(byte: u8) -> bool {
    matches!(byte, b'%' | b'\\' | b'&')
}

fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

impl Spelling {
    /// Whether this may begin at `at`, whose first byte fits: a look at the next bytes, as long as they stand for
    /// themselves. It rules out nearly all places, at a fraction of the work.
    fn may_begin(&self, text: &[u8], at: usize) -> bool {
        let next = text[at..].iter().zip(&self.characters).skip(1);
        let mut plain =
            next.take_while(|(byte, _)| matches!(byte, b' '..=b'~') && !is_escape(**byte));
        plain.all(|(byte, wanted)| u32::from(byte.to_ascii_lowercase()) == *wanted)
    }

    /// Where this ends if it begins at `at`. What is invisible may stand in between: it is taken out when the text is
    /// shown.
    fn end(&self, text: &[u8], at: usize, depth: u8, cut: bool) -> Option<usize> {
        let (mut at, mut matched) = (at, 0);
        while let Some(wanted) = self.characters.get(matched) {
            let Some((character, next)) = character(text, at, depth) else {
                return (cut && matched > 0).then_some(text.len());
            };
            if lower(character) == *wanted {
                matched += 1;
            } else if matched == 0 || !char::from_u32(character).is_some_and(is_hidden) {
                // Half of an escape at the end of what was cut off stands for anything.
                let rest = &text[at..];
                let escape = rest.len() < 6 * usize::from(depth)
                    && rest.first().is_some_and(|byte| is_escape(*byte));
                return (cut && matched > 0 && escape).then_some(text.len());
            }
            at = next;
        }
        Some(at)
    }
}

fn lower(character: u32) -> u32 {
    char::from_u32(character).map_or(character, |c| c.to_ascii_lowercase().into())
}

/// The spellings of a secret that are not found by decoding a text: the secret itself and what it stands for, as base64
/// has it anywhere in a longer text, in hexadecimal digits, and where it is not ASCII, as addresses have it.
fn spellings_of(secret: &str) -> Vec<Vec<u32>> {
    let plain = |text: &str| text.chars().map(|c| lower(c.into())).collect::<Vec<_>>();
    let mut spellings = vec![plain(secret)];
    for depth in 1..=DEPTH {
        let (mut decoded, mut at) = (Vec::new(), 0);
        while let Some((character, next)) = character(secret.as_bytes(), at, depth) {
            decoded.push(lower(character));
            at = next;
        }
        if decoded.len() >= MIN_ENCODED {
            spellings.push(decoded);
        }
    }
    for before in 0..3 {
        let bytes = [vec![0; before], secret.as_bytes().to_vec()].concat();
        let encoded = STANDARD_NO_PAD.encode(&bytes);
        // Characters that also depend on the bytes before and after.
        let (first, last) = (
            [0, 2, 3][before],
            encoded.len() - usize::from(bytes.len() % 3 != 0),
        );
        if first < last && last - first >= MIN_ENCODED {
            let own = &encoded[first..last];
            spellings.extend([plain(own), plain(&own.replace('+', "-").replace('/', "_"))]);
        }
    }
    let hexadecimal = |before: &str| {
        secret
            .bytes()
            .map(|byte| format!("{before}{byte:02x}"))
            .collect::<String>()
    };
    if 2 * secret.len() >= MIN_ENCODED {
        spellings.push(plain(&hexadecimal("")));
    }
    if !secret.is_ascii() {
        spellings.push(plain(&hexadecimal("%")));
        let mixed = |c: char| {
            if c.is_ascii() {
                c.to_string()
            } else {
                c.to_string().bytes().map(|b| format!("%{b:02x}")).collect()
            }
        };
        spellings.push(plain(&secret.chars().map(mixed).collect::<String>()));
    }
    spellings
}

/// The character that begins at `at` when `depth` layers of escapes are read, and where the next one begins.
fn character(text: &[u8], at: usize, depth: u8) -> Option<(u32, usize)> {
    let Some(below) = depth.checked_sub(1) else {
        return plain_character(text, at);
    };
    let (first, next) = character(text, at, below)?;
    let escaped = match char::from_u32(first) {
        Some('%') => digits(text, next, below, 16, 2, 2),
        Some('\\') => backslash(text, next, below),
        Some('&') => entity(text, next, below),
        _ => None,
    };
    Some(escaped.unwrap_or((first, next)))
}

fn plain_character(text: &[u8], at: usize) -> Option<(u32, usize)> {
    let first = *text.get(at)?;
    if first.is_ascii() {
        return Some((first.into(), at + 1));
    }
    let rest = &text[at..text.len().min(at + 4)];
    let valid = match std::str::from_utf8(rest) {
        Ok(valid) => valid,
        Err(error) => std::str::from_utf8(&rest[..error.valid_up_to()]).unwrap_or_default(),
    };
    Some(
        valid
            .chars()
            .next()
            .map_or((0xfffd, at + 1), |c| (c.into(), at + c.len_utf8())),
    )
}

/// A number of `least` to `most` digits.
fn digits(
    text: &[u8],
    mut at: usize,
    depth: u8,
    radix: u32,
    least: usize,
    most: usize,
) -> Option<(u32, usize)> {
    let (mut number, mut read) = (0_u32, 0);
    while read < most
        && let Some((character, next)) = character(text, at, depth)
        && let Some(digit) = char::from_u32(character).and_then(|c| c.to_digit(radix))
    {
        number = number.saturating_mul(radix).saturating_add(digit);
        (at, read) = (next, read + 1);
    }
    (read >= least).then_some((number, at))
}

/// What follows a backslash in JSON (RFC 8259, section 7), programming languages and Markdown.
fn backslash(text: &[u8], at: usize, depth: u8) -> Option<(u32, usize)> {
    let (kind, next) = character(text, at, depth)?;
    match char::from_u32(kind)? {
        'u' => digits(text, next, depth, 16, 4, 4).or_else(|| {
            let (_, open) = character(text, next, depth).filter(|(c, _)| *c == u32::from('{'))?;
            let (number, close) = digits(text, open, depth, 16, 1, 6)?;
            let (_, end) = character(text, close, depth).filter(|(c, _)| *c == u32::from('}'))?;
            Some((number, end))
        }),
        'U' => digits(text, next, depth, 16, 8, 8),
        'x' => digits(text, next, depth, 16, 2, 2),
        '0'..='7' => digits(text, at, depth, 8, 1, 3),
        'b' => Some((8, next)),
        't' => Some((9, next)),
        'n' => Some((10, next)),
        'f' => Some((12, next)),
        'r' => Some((13, next)),
        c if c.is_ascii_punctuation() => Some((kind, next)),
        _ => None,
    }
}

/// What follows the `&` of an HTML entity, for all that stand for visible ASCII characters.
fn entity(text: &[u8], at: usize, depth: u8) -> Option<(u32, usize)> {
    let semicolon = |at| {
        character(text, at, depth)
            .filter(|(c, _)| *c == u32::from(';'))
            .map(|(_, next)| next)
    };
    let (first, next) = character(text, at, depth)?;
    if first == u32::from('#') {
        let (kind, after) = character(text, next, depth)?;
        let (number, end) = if lower(kind) == u32::from('x') {
            digits(text, after, depth, 16, 1, 6)?
        } else {
            digits(text, next, depth, 10, 1, 7)?
        };
        return Some((number, semicolon(end).unwrap_or(end)));
    }
    let (mut name, mut at) = (String::new(), at);
    while name.len() < MAX_ENTITY
        && let Some((character, next)) = character(text, at, depth)
        && let Some(c) = char::from_u32(character).filter(char::is_ascii_alphanumeric)
    {
        name.push(c);
        at = next;
    }
    let end = semicolon(at)?;
    Some((named_character(&name)?.into(), end))
}

/// The ASCII characters that HTML has names for.
fn named_character(name: &str) -> Option<char> {
    Some(match name {
        "amp" | "AMP" => '&',
        "lt" | "LT" => '<',
        "gt" | "GT" => '>',
        "quot" | "QUOT" => '"',
        "apos" => '\'',
        "sol" => '/',
        "bsol" => '\\',
        "plus" => '+',
        "equals" => '=',
        "lowbar" | "UnderBar" => '_',
        "hyphen" | "dash" => '-',
        "period" => '.',
        "colon" => ':',
        "semi" => ';',
        "comma" => ',',
        "num" => '#',
        "dollar" => '$',
        "percnt" => '%',
        "commat" => '@',
        "excl" => '!',
        "quest" => '?',
        "ast" | "midast" => '*',
        "lpar" => '(',
        "rpar" => ')',
        "lsqb" | "lbrack" => '[',
        "rsqb" | "rbrack" => ']',
        "lcub" | "lbrace" => '{',
        "rcub" | "rbrace" => '}',
        "vert" | "verbar" | "VerticalLine" => '|',
        "Hat" => '^',
        "grave" => '`',
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "ck_live/AbCdEf+0123456789/xyzXYZ";

    fn redactor() -> Redactor {
        Redactor::new([KEY])
    }

    #[test]
    fn a_secret_is_found_in_every_spelling() {
        let each = |escape: &dyn Fn(char) -> String| KEY.chars().map(escape).collect::<String>();
        let percent = |c: char| {
            if c.is_ascii_alphanumeric() {
                c.to_string()
            } else {
                format!("%{:02X}", c as u32)
            }
        };
        let twice = each(&percent).replace('%', "%25");
        for spelling in [
            KEY.to_owned(),
            KEY.to_uppercase(),
            KEY.replace('/', "\\/"),
            KEY.replace('/', "\\\\\\/"),
            KEY.replace('+', "\\u002B").replace('_', "\\u005f"),
            KEY.replace('+', "\\\\u002b"),
            KEY.replace('_', "\\_"),
            each(&percent),
            each(&|c| percent(c).to_lowercase()),
            each(&|c| format!("%{:02x}", c as u32)),
            twice,
            each(&|c| format!("\\u{:04x}", c as u32)),
            each(&|c| format!("\\x{:02x}", c as u32)),
            each(&|c| format!("\\{:03o}", c as u32)),
            each(&|c| format!("\\u{{{:x}}}", c as u32)),
            each(&|c| format!("&#{};", c as u32)),
            each(&|c| format!("&#x{:X};", c as u32)),
            KEY.replace('/', "&sol;")
                .replace('+', "&plus;")
                .replace('_', "&lowbar;"),
            each(&|c| format!("{c}\u{200b}")),
            each(&|c| format!("{c}\u{ad}\u{3164}")),
            each(&|c| format!("{c}\0")),
            STANDARD.encode(KEY),
            STANDARD.encode(KEY).replace('/', "\\/"),
            STANDARD.encode(format!("user:{KEY}")),
            STANDARD.encode(format!("Bearer {KEY}!")),
            URL_SAFE_NO_PAD.encode(format!("x{KEY}")),
            KEY.bytes().map(|byte| format!("{byte:02x}")).collect(),
            KEY.bytes().map(|byte| format!("{byte:02X}")).collect(),
        ] {
            let text = format!("the key <{spelling}> is unknown");
            let shown = redactor().text(&text).into_owned();
            assert!(
                shown.starts_with("the key <") && shown.ends_with("> is unknown"),
                "{text}: {shown}"
            );
            assert!(
                shown.contains(REDACTED)
                    && shown.len() <= "the key <> is unknown".len() + 24 + REDACTED.len(),
                "{text}: {shown}"
            );
        }
    }

    #[test]
    fn other_texts_stay_as_they_are() {
        for text in [
            "",
            "the key ck_live/AbC is unknown",
            "100% \\ & &amp; %2 \\u00 &#; \u{e9}\u{1f600}",
            "ck_live",
        ] {
            assert!(matches!(redactor().text(text), Cow::Borrowed(same) if same == text));
            assert_eq!(redactor().body(text.as_bytes().to_vec()), text.as_bytes());
        }
        assert_eq!(Redactor::default().text(KEY), KEY);
        // Words that are secrets would make every status unknown.
        assert_eq!(
            Redactor::new(["failed"]).body(b"failed".to_vec()),
            b"failed"
        );
        assert_eq!(Redactor::new(["failed"]).text("it failed"), "it [redacted]");
    }

    #[test]
    fn json_stays_json() {
        let json = serde_json::json!({ "a": format!("\n{KEY}\\"), "b": [format!("\\{KEY}"), KEY] });
        for text in [json.to_string(), json.to_string().replace('/', "\\/")] {
            let shown = redactor().body(text.into_bytes());
            let read: serde_json::Value = serde_json::from_slice(&shown).unwrap();
            assert_eq!(
                read,
                serde_json::json!({ "a": "\n[redacted]\\", "b": ["\\[redacted]", "[redacted]"] })
            );
        }
        let newline = Redactor::new(["newline_key"]).body(br#""\newline_key""#.to_vec());
        assert_eq!(newline, br#""[redacted]""#);
        for escape in [r"\u", r"\u00", "\\\\\\u0", r"\\\n\u005f\u00e9\u"] {
            let body = format!(r#""{escape}005fkey_0123""#);
            let shown = Redactor::new(["005fkey_0123"]).body(body.clone().into_bytes());
            let read = serde_json::from_slice::<serde_json::Value>(&shown);
            assert!(read.is_ok(), "{body}: {}", String::from_utf8_lossy(&shown));
        }
    }

    #[test]
    fn only_the_escape_that_a_secret_begins_in_goes_with_it() {
        // What precedes the secret, whole escapes each.
        const TOKENS: [&str; 5] = ["x", r"\\", r"\t", r"\u00e9", r"\/"];
        // Beginnings of escapes that the first characters of the secret complete.
        for (half, secret) in [
            ("", "005fkey_0123"),
            (r"\", "newline_key"),
            (r"\u", "005fkey_0123"),
            (r"\u0", "05fkey_0123"),
            (r"\u00", "5fkey_0123"),
        ] {
            let redactor = Redactor::new([secret]);
            for number in 0..TOKENS.len().pow(5) {
                let digits = (0..5).map(|digit| number / TOKENS.len().pow(digit) % TOKENS.len());
                let before: String = digits.map(|token| TOKENS[token]).collect();
                let text = format!(r#""{before}{half}{secret} after""#);
                let shown = redactor.body(text.into_bytes());
                let expected = format!(r#""{before}{REDACTED} after""#);
                assert_eq!(String::from_utf8_lossy(&shown), expected);
            }
        }
    }

    #[test]
    fn another_character_in_the_middle_makes_another_text() {
        for at in 1..KEY.len() {
            let text = format!("{}!{}", &KEY[..at], &KEY[at..]);
            assert_eq!(redactor().text(&text), text);
            // Only a text that was cut off may end in half of an escape.
            for half in ["%2", "\\u00", "&am"] {
                let text = format!("{}{half}", &KEY[..at]);
                assert_eq!(redactor().text(&text), text);
            }
        }
        // Longer than any escape of three layers.
        let text = format!("the key {}%{}", &KEY[..9], "z".repeat(17));
        assert_eq!(redactor().beginning(text.as_bytes()), text);
    }

    #[test]
    fn a_secret_that_is_an_encoding_is_found_decoded_too() {
        let redactor = Redactor::new(["a%20b%2Fc-key_x"]);
        assert_eq!(redactor.text("<a b/c-key_x>"), format!("<{REDACTED}>"));
        // Whole groups of base64 depend on nothing else.
        let redactor = Redactor::new(["abcdefghijkl"]);
        assert_eq!(redactor.text(&STANDARD.encode("abcdefghijkl")), REDACTED);
    }

    #[test]
    fn a_short_secret_is_found_alone_and_not_inside_of_words() {
        let redactor = Redactor::new(["a"]);
        let same = "a bad gateway has no answer: 401 at /v1/runs";
        assert_eq!(
            redactor.text(same),
            format!("{REDACTED} bad gateway has no answer: 401 at /v1/runs")
        );
        for text in [
            "Bearer a",
            "key=a&next=1",
            "the key \"a\" is wrong",
            r"the key \u0061 is wrong",
            "x%20a%20y",
        ] {
            assert!(redactor.text(text).contains(REDACTED), "{text}");
        }
        // From eight characters on a secret is found everywhere.
        let long = Redactor::new(["abcdefgh"]);
        assert_eq!(long.text("xabcdefghy"), format!("x{REDACTED}y"));
    }

    #[test]
    fn encodings_of_short_secrets_and_of_other_alphabets_are_found() {
        let short = Redactor::new(["ab1"]);
        assert_eq!(short.text("616231"), REDACTED);
        // Too few characters of base64 to be more than chance.
        for text in ["YWIx", "AGFiMQ", "AABhYjE"] {
            assert_eq!(short.text(text), text);
        }
        let redactor = Redactor::new(["schl\u{fc}ssel-key"]);
        for text in [
            "schl%c3%bcssel-key",
            "%73%63%68%6C%C3%BC%73%73%65%6C%2D%6B%65%79",
        ] {
            assert_eq!(redactor.text(text), REDACTED);
        }
    }

    #[test]
    fn escapes_of_control_characters_and_long_ones_are_read() {
        let secret = "a\u{8}b\tc\nd\u{c}e\rf_key";
        let redactor = Redactor::new([secret]);
        let json = serde_json::to_string(secret).unwrap();
        assert_eq!(redactor.text(&json), format!("\"{REDACTED}\""));
        let long = secret.replace('_', r"\U0000005f");
        assert_eq!(redactor.text(&long), REDACTED);
    }

    #[test]
    fn debugging_shows_no_secret() {
        let shown = format!("{:?}", redactor());
        assert!(shown.ends_with(" spellings of secrets]"), "{shown}");
    }

    #[test]
    fn a_secret_that_was_cut_off_is_found() {
        for end in 1..KEY.len() {
            assert_eq!(
                redactor().beginning(format!("the key {}", &KEY[..end]).as_bytes()),
                "the key [redacted]"
            );
        }
        let percent = |text: &str| {
            let bytes = text.bytes().map(|byte| format!("%{byte:02x}"));
            bytes.collect::<String>()
        };
        for spelling in [
            percent(KEY),
            percent(KEY).replace('%', "%2525"),
            respelled(KEY, 3),
            respelled(&respelled(KEY, 3), 2),
            respelled(KEY, 5),
        ] {
            // Once the first character is there.
            let first = (1..spelling.len())
                .find(|end| {
                    character(&spelling.as_bytes()[..*end], 0, DEPTH)
                        .is_some_and(|(c, _)| c == u32::from(b'c'))
                })
                .unwrap();
            for end in first..spelling.len() {
                let shown =
                    redactor().beginning(format!("the key {}", &spelling[..end]).as_bytes());
                assert_eq!(shown, "the key [redacted]", "{}", &spelling[..end]);
            }
        }
        assert_eq!(
            redactor().beginning(b"the key \xff is"),
            "the key \u{fffd} is"
        );
    }

    fn respelled(text: &str, kind: u8) -> String {
        let each = |escape: &dyn Fn(char) -> String| text.chars().map(escape).collect();
        match kind % 7 {
            0 => text.to_owned(),
            1 => each(&|c| {
                if c.is_ascii_alphanumeric() {
                    c.to_string()
                } else {
                    format!("%{:02X}", c as u32)
                }
            }),
            2 => serde_json::to_string(text)
                .unwrap()
                .trim_matches('"')
                .replace('/', "\\/"),
            3 => each(&|c| format!("\\u{:04x}", c as u32)),
            4 => text
                .replace('&', "&amp;")
                .replace('<', "&lt;")
                .replace('>', "&gt;")
                .replace('"', "&#34;"),
            5 => each(&|c| {
                if c.is_ascii_alphabetic() {
                    c.to_string()
                } else {
                    format!("&#x{:x};", c as u32)
                }
            }),
            _ => text.replace('%', "%25"),
        }
    }

    proptest! {
        #[test]
        fn no_layers_of_spelling_hide_a_secret(
            secret in "[A-Za-z0-9][A-Za-z0-9_/+=.~-]{10,40}",
            before in "[ -~]{0,20}",
            after in "[ -~]{0,20}",
            kinds in proptest::collection::vec(0_u8..7, 0..3),
        ) {
            let redactor = Redactor::new([&secret]);
            let mut spelled = secret.clone();
            for kind in kinds {
                spelled = respelled(&spelled, kind);
            }
            let text = format!("{before} {spelled} {after}");
            let shown = redactor.text(&text);
            prop_assert!(shown.contains(REDACTED), "{text}");
            prop_assert!(!shown.contains(&spelled) && !shown.contains(&secret), "{text}: {shown}");
        }

        #[test]
        fn base64_hides_no_secret(secret in "[!-~]{12,40}", before in ".{0,9}", after in ".{0,9}") {
            let text = STANDARD.encode(format!("{before}{secret}{after}"));
            prop_assert!(Redactor::new([&secret]).text(&text).contains(REDACTED));
        }

        #[test]
        fn json_with_a_secret_stays_json(secret in "[!-~]{8,20}", before in ".{0,9}", after in ".{0,9}") {
            let json = serde_json::to_string(&format!("{before}{secret}{after}")).unwrap();
            let shown = Redactor::new([&secret]).body(json.into_bytes());
            let read = serde_json::from_slice::<String>(&shown);
            // A secret that ends or begins like an escape may take a quotation mark with it.
            prop_assert!(read.is_ok() || secret.contains(['\\', '"']), "{}", String::from_utf8_lossy(&shown));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), secret in "\\PC{0,12}") {
            let redactor = Redactor::new([&secret]);
            redactor.beginning(&bytes);
            redactor.body(bytes);
        }
    }
}
