//! What fuzzing does with the bytes of an API: whatever comes, no panic, and no verdict that a strict reader
//! of the same bytes would not give.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use jiff::Timestamp;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use super::answer::{PageLayout, PageRead, error_message};
use super::error::Malformed;
use super::rate_limit::RateHeaders;
use super::reader::Reader;
use super::stream::MAX_EVENT_BYTES;
use super::{activity, hot, naive};
use crate::domain::{
    Event, EventData, Labels, Limits, OverdueAfter, PollOutcome, Progress, RunRef, Verdict, Watch,
};
use crate::notify::payload::json_within;
use crate::profile::{self, Profile};
use crate::redact::{REDACTED, Redactor};
use crate::sse::Parser;

/// Largest message that a webhook sends, in bytes.
const MESSAGE_BYTES: usize = 19_999;

/// Most bytes of a page that are kept.
const MAX_PAGE_BYTES: u64 = 1 << 20;

/// The body of an answer about `run_1`, and everything that follows from it.
pub fn answer(body: &[u8]) {
    let message = error_message(body);
    assert!(!message.contains(char::is_control), "{message:?}");
    let run_id = RunRef::new("run_1").expect("a valid ID");
    let Ok(observation) = hot::observation(body, &run_id) else {
        return;
    };
    let expected = Verdict::of_status(&observation.status);
    if let Ok(strict) = serde_json::from_slice::<Value>(body) {
        let run = if strict["status"].is_null() && strict["data"].is_object() {
            &strict["data"]
        } else {
            &strict
        };
        let id = if run["id"].is_null() {
            &run["run_id"]
        } else {
            &run["id"]
        };
        assert_eq!(id.as_str(), Some("run_1"));
        assert_eq!(run["status"].as_str(), Some(observation.status.as_str()));
    }
    let now: Timestamp = "2024-01-15T10:35:05Z".parse().expect("a time");
    let later = now.checked_add(Duration::from_secs(3600)).expect("a time");
    let watch = Watch {
        run_id,
        name: None,
        labels: Labels::new(),
        sinks: None,
        added_at: now,
        deadline_at: later,
        trace: None,
    };
    let limits = Limits {
        not_found_grace: Duration::from_secs(60),
        overdue_after: OverdueAfter::Never,
        run_url: None,
    };
    let step = Progress::begin(now).step(
        &watch,
        PollOutcome::Seen(Box::new(observation)),
        now,
        &limits,
    );
    let step = step.expect("a watch that has just begun");
    assert_eq!(
        step.progress.verdict, expected,
        "the verdict is what the API reported"
    );
    for event in &step.events {
        check_event(event);
    }
}

/// A profile, a zero byte and a body: the name of a built-in profile, with a status code behind a blank if it is not
/// 200, or the text of a profile. No body has another outcome than that of a rule of the profile.
pub fn reading(bytes: &[u8]) {
    let at = bytes.iter().position(|byte| *byte == 0);
    let (head, body) = bytes.split_at(at.unwrap_or(bytes.len()));
    let body = body.get(1..).unwrap_or_default();
    let head = String::from_utf8_lossy(head);
    let (name, code) = head.split_once(' ').unwrap_or((&head, "200"));
    let (profile, code) = match profile::builtin(name) {
        Some(profile) => (profile, code.parse().unwrap_or(200)),
        None => (profile::parse(&head, "fuzzed").map(Arc::new), 200),
    };
    if let Ok(profile) = profile {
        naive::check(&profile, "run_1", code, body);
        check_page(&profile, body);
    }
}

/// The body of a page of a list: how it is cut makes no difference, and no text that people see has control characters.
fn check_page(profile: &Profile, body: &[u8]) {
    let Some(layout) = PageLayout::of(profile) else {
        return;
    };
    let read = |pieces: &[&[u8]]| {
        let mut reader = Reader::new(layout.plan(), MAX_PAGE_BYTES, None);
        for piece in pieces {
            if reader.push(piece).is_break() {
                break;
            }
        }
        layout.read(reader)
    };
    let (first, second) = body.split_at(body.len() / 2);
    let cut = read(&[first, second]);
    // An error shows the bytes that had come by then.
    let shown = |page: Result<PageRead, Malformed>| page.ok().map(|page| format!("{page:?}"));
    assert_eq!(shown(read(&[body])), shown(cut));
    let Ok(page) = read(&[body]) else {
        return;
    };
    for element in &page.elements {
        let shown = [&element.name, &element.group].into_iter().flatten();
        for text in shown.map(String::as_str).chain([element.status.as_str()]) {
            assert!(!text.contains(char::is_control), "{text:?}");
        }
    }
}

/// An event can be stored, read back, sent within its limit and shown.
fn check_event(event: &Event) {
    let json = event.to_json();
    assert!(!json.contains(['\n', '\r']), "{json}");
    drop(serde_json::from_str::<Value>(&json).expect("a strict parser takes every message"));
    let again = Event::from_json(&json).expect("an event reads back");
    assert_eq!(again.to_json(), json);
    assert!(json_within(event, MESSAGE_BYTES).len() <= MESSAGE_BYTES);
    let summary = crate::notify::summary::of(event);
    assert!(
        summary
            .lines
            .iter()
            .chain([&summary.title])
            .all(|line| !line.contains(char::is_control))
    );
    assert!(matches!(event.data, EventData::Run(_)));
}

/// Headers that ask for a pause, one a line.
pub fn pause(text: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in text.split(|byte| *byte == b'\n') {
        let Some((name, value)) = line.split_first() else {
            continue;
        };
        let name = [
            "retry-after",
            "x-ratelimit-reset",
            "x-ratelimit-remaining",
            "date",
        ][usize::from(name % 4)];
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(HeaderName::from_static(name), value);
        }
    }
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_705_315_800);
    let rate = RateHeaders::of(&profile::crewship().rate);
    for pause in [
        rate.pause(&headers, now),
        rate.any_pause(&headers, now),
        crate::retry_after::retry_after(&headers, now),
    ] {
        assert!(
            pause.is_none_or(|pause| !pause.is_zero() && pause <= Duration::from_secs(3600)),
            "{pause:?}"
        );
    }
}

/// An event stream; the first byte is the number of pieces into which it is cut. That makes no difference.
pub fn events(bytes: &[u8]) {
    let Some((pieces, bytes)) = bytes.split_first() else {
        return;
    };
    let read = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut parser, mut frames) = (Parser::new(MAX_EVENT_BYTES), Vec::new());
        for piece in pieces {
            let mut input = Bytes::copy_from_slice(piece);
            while !input.is_empty() {
                match parser.next(&mut input) {
                    Ok(frame) => frames.extend(frame),
                    Err(_too_large) => return None,
                }
            }
        }
        Some((frames, parser.last_id().map(ToOwned::to_owned)))
    };
    let types = profile::crewship().stream.clone().expect("it has one");
    let whole = read(&mut [bytes].into_iter());
    let cut = read(&mut bytes.chunks(usize::from(*pieces).max(1)));
    assert_eq!(whole, cut);
    for activity in whole
        .iter()
        .flat_map(|(frames, _)| frames)
        .filter_map(|frame| activity::of_frame(&types, frame))
    {
        assert!(!activity.summary.contains(char::is_control));
    }
}

/// Characters of keys: none of them begins an escape.
const KEY_CHARACTERS: &[u8] =
    b"_-.~+/=0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// Longest text that is searched for a secret, in bytes.
const SEARCHED: usize = 4096;

/// A text with a secret in it: the first byte says how the secret is spelled there, the rest of the first line what it
/// is, and the other lines what stands around it. However it is spelled, it is found, and JSON stays JSON.
pub fn redact(bytes: &[u8]) {
    let Some((spelling, bytes)) = bytes.split_first() else {
        return;
    };
    let (key, rest) = bytes.split_at(
        bytes
            .iter()
            .position(|byte| *byte == b'\n')
            .unwrap_or(bytes.len()),
    );
    if !(10..=60).contains(&key.len()) {
        return;
    }
    let character = |byte: &u8| match KEY_CHARACTERS.contains(byte) {
        true => char::from(*byte),
        false => char::from(KEY_CHARACTERS[usize::from(*byte) % KEY_CHARACTERS.len()]),
    };
    // No JSON has its beginning outside of strings.
    let secret = format!("k_{}", key.iter().map(character).collect::<String>());
    let text = String::from_utf8_lossy(&rest[..rest.len().min(SEARCHED)]).into_owned();
    let redactor = Redactor::new([&secret]);

    let spelled = respelled(
        &respelled(&encoded(&secret, spelling / 49), spelling / 7 % 7),
        spelling % 7,
    );
    let middle = text.floor_char_boundary(text.len() / 2);
    let whole = format!("{}{spelled}{}", &text[..middle], &text[middle..]);
    let shown = redactor.text(&whole);
    assert!(
        shown.contains(REDACTED) && !shown.contains(&spelled),
        "{spelled}"
    );
    assert!(shown_nowhere(&shown, &secret), "{shown}");
    // Cut off in the middle, what is there of it does not show either.
    let cut = &whole.as_bytes()[..middle + spelled.len() / 2 + 1];
    assert!(shown_nowhere(&redactor.beginning(cut), &secret));

    assert!(shown_nowhere(&redactor.text(&text), &secret));
    let body = redactor.body(text.clone().into_bytes());
    assert!(shown_nowhere(&String::from_utf8_lossy(&body), &secret));
    if serde_json::from_str::<Value>(&text).is_ok() {
        assert!(
            serde_json::from_slice::<Value>(&body).is_ok(),
            "{}",
            String::from_utf8_lossy(&body)
        );
    }
}

/// Whether a secret shows nowhere between the marks.
fn shown_nowhere(text: &str, secret: &str) -> bool {
    let secret = secret.to_ascii_lowercase();
    text.split(REDACTED)
        .all(|part| !part.to_ascii_lowercase().contains(&secret))
}

/// A secret as other programs encode it.
fn encoded(secret: &str, kind: u8) -> String {
    match kind {
        0 | 1 => secret.to_owned(),
        2 => STANDARD.encode(format!("user:{secret}")),
        3 => URL_SAFE_NO_PAD.encode(secret),
        4 => secret.bytes().map(|byte| format!("{byte:02x}")).collect(),
        _ => secret.bytes().map(|byte| format!("{byte:02X}")).collect(),
    }
}

/// A text with one more layer of escapes.
fn respelled(text: &str, kind: u8) -> String {
    let each = |escape: &dyn Fn(char) -> String| text.chars().map(escape).collect();
    match kind {
        0 => text.to_owned(),
        1 => each(&|c| {
            if c.is_ascii_alphanumeric() {
                c.to_string()
            } else {
                format!("%{:02X}", c as u32)
            }
        }),
        2 => each(&|c| format!("%{:02x}", c as u32)),
        3 => each(&|c| format!("\\u{:04x}", c as u32)),
        4 => each(&|c| {
            if c.is_ascii_alphanumeric() {
                c.to_string()
            } else {
                format!("\\{c}")
            }
        }),
        5 => each(&|c| format!("&#{};", c as u32)),
        _ => each(&|c| format!("&#x{:X};", c as u32)),
    }
}
