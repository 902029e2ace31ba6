//! Bodies for chat services: short, readable, and with nothing in them that the service would act on.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::{Value, json};

use super::body::MessageBody;
use super::summary::{self, Severity, Summary};
use crate::config::WebhookFormat;
use crate::domain::Event;
use crate::text::trimmed;

/// Green and red, as Slack and Discord show them beside a message.
const GOOD_COLOUR: u32 = 0x2e_b6_7d;
const BAD_COLOUR: u32 = 0xe0_1e_5a;

/// Longest title and text of an embed, in characters (discord.com/developers/docs/resources/message, "Embed Limits").
const DISCORD_TITLE_CHARS: usize = 256;
const DISCORD_TEXT_CHARS: usize = 4096;

/// Longest address in an embed or a header, in bytes; a longer one is left out.
const MAX_LINK_BYTES: usize = 2048;

/// Longest text of a Slack message (docs.slack.dev, "Truncating content": 4,000 characters are recommended).
const SLACK_CHARS: usize = 4000;

/// Largest message of ntfy, in bytes; a larger one becomes an attachment (docs.ntfy.sh/publish, "Limitations").
const NTFY_BYTES: usize = 4096;

fn json_body(value: &serde_json::Value) -> MessageBody {
    MessageBody {
        content_type: "application/json",
        text: value.to_string(),
        headers: HeaderMap::new(),
    }
}

fn colour(summary: &Summary) -> u32 {
    if summary.weight == Severity::Good {
        GOOD_COLOUR
    } else {
        BAD_COLOUR
    }
}

/// Slack incoming webhook (docs.slack.dev, "Sending messages using incoming webhooks" and "Formatting
/// message text"): `&`, `<` and `>` are escaped, which also keeps `<!channel>` from being a mention.
pub(super) fn slack(event: &Event) -> MessageBody {
    let summary = summary::of(event);
    let escape = |text: &str| {
        text.replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;")
    };
    let title = escape(&summary.title);
    let title = match &summary.url {
        Some(url) => format!("*<{}|{title}>*", escape(url).replace('|', "%7C")),
        None => format!("*{title}*"),
    };
    let mut message = json!({ "text": title });
    if !summary.lines.is_empty() {
        let lines: Vec<_> = summary.lines.iter().map(|line| escape(line)).collect();
        message["attachments"] = json!([{
            "color": format!("#{:06x}", colour(&summary)),
            "text": cut(lines.join("\n"), SLACK_CHARS),
            "mrkdwn_in": [],
        }]);
    }
    json_body(&message)
}

/// Discord webhook (discord.com/developers/docs/resources/webhook, "Execute Webhook"). Messages
/// mention no one, and markdown is escaped.
pub(super) fn discord(event: &Event) -> MessageBody {
    let summary = summary::of(event);
    let lines: Vec<_> = summary
        .lines
        .iter()
        .map(|line| escape_markdown(line))
        .collect();
    let mut embed = json!({
        "title": cut(escape_markdown(&summary.title), DISCORD_TITLE_CHARS),
        "description": cut(lines.join("\n"), DISCORD_TEXT_CHARS),
        "color": colour(&summary),
    });
    if let Some(url) = summary
        .url
        .as_ref()
        .filter(|url| url.len() <= MAX_LINK_BYTES)
    {
        embed["url"] = url.as_str().into();
    }
    json_body(&json!({ "embeds": [embed], "allowed_mentions": { "parse": [] } }))
}

/// Microsoft Teams workflow webhook, "When a Teams webhook request is received": a message with an
/// Adaptive Card (adaptivecards.io). Text blocks read some markdown, which is escaped.
pub(super) fn teams(event: &Event) -> MessageBody {
    let summary = summary::of(event);
    let colour = if summary.weight == Severity::Good {
        "Good"
    } else {
        "Attention"
    };
    let block =
        |text: &str| json!({ "type": "TextBlock", "text": escape_markdown(text), "wrap": true });
    let mut title = block(&summary.title);
    title["weight"] = "Bolder".into();
    title["color"] = colour.into();
    let blocks: Vec<_> = std::iter::once(title)
        .chain(summary.lines.iter().map(|line| block(line)))
        .collect();
    let mut card = json!({
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": blocks,
    });
    if let Some(url) = &summary.url {
        card["actions"] =
            json!([{ "type": "Action.OpenUrl", "title": "Open the run", "url": url }]);
    }
    json_body(&json!({
        "type": "message",
        "attachments": [{ "contentType": "application/vnd.microsoft.card.adaptive", "content": card }],
    }))
}

/// ntfy topic (docs.ntfy.sh/publish): the text is the body, all else is in headers. A title that is not
/// ASCII, or that looks encoded, is encoded as RFC 2047 has it, which ntfy reads.
pub(super) fn ntfy(event: &Event) -> MessageBody {
    let summary = summary::of(event);
    let mut headers = HeaderMap::new();
    // A message must have a text; one that is all title needs no title above it.
    let (title, text) = if summary.lines.is_empty() {
        (None, summary.title)
    } else if summary.title.is_ascii() && !summary.title.contains("=?") {
        (Some(summary.title), summary.lines.join("\n"))
    } else {
        (
            Some(format!("=?UTF-8?B?{}?=", STANDARD.encode(&summary.title))),
            summary.lines.join("\n"),
        )
    };
    let (priority, tags) = match summary.weight {
        Severity::Good => ("default", "white_check_mark"),
        Severity::Bad => ("high", "rotating_light"),
    };
    headers.insert("priority", HeaderValue::from_static(priority));
    headers.insert("tags", HeaderValue::from_static(tags));
    for (name, value) in [("title", title), ("click", summary.url)] {
        // Without a title or a link the message is still complete.
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            headers.insert(name, value);
        }
    }
    let text = one_piece(text, NTFY_BYTES);
    MessageBody {
        content_type: "text/plain; charset=utf-8",
        text,
        headers,
    }
}

/// Whether the service of a format may report a failure in the body of a 2xx.
pub(super) fn explains(format: &WebhookFormat) -> bool {
    match format {
        WebhookFormat::Slack
        | WebhookFormat::Discord
        | WebhookFormat::Teams
        | WebhookFormat::Ntfy
        | WebhookFormat::Apprise => true,
        WebhookFormat::Standard | WebhookFormat::Template { .. } => false,
    }
}

/// A failure that a chat service reports in the body of a 2xx.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// Its text; from outside.
    pub(super) message: String,
    /// The requested pause.
    pub(super) retry_after: Option<Duration>,
}

/// What a chat service reports in the body of a 2xx, if that is a failure.
///
/// - Teams connectors answer `1`, or "Webhook message delivery failed with error: …" (learn.microsoft.com, "Create
///   Incoming Webhooks", rate limiting); workflows answer nothing.
/// - Slack answers `ok`, or a word such as `invalid_payload` (docs.slack.dev, "Sending messages using incoming
///   webhooks", error handling); its Web API and services like it answer `{"ok":false,"error":…}`.
/// - Discord answers nothing, or the message; an error has `code` and `message`, a limit has `retry_after`.
/// - ntfy answers the message; an error has `error`. So has one of apprise-api, whose successes have `null` there.
/// - A page is the answer of something in between, such as a login.
pub(super) fn failure(format: &WebhookFormat, body: &[u8]) -> Option<Failure> {
    let text = String::from_utf8_lossy(body);
    let text = trimmed(&text);
    let failed = |message: &str| {
        Some(Failure {
            message: message.to_owned(),
            retry_after: None,
        })
    };
    if let Ok(json) = serde_json::from_str::<Value>(text) {
        return reported(&json);
    }
    if text.starts_with('<') {
        return failed("it is a page, not the answer of the chat service");
    }
    match format {
        WebhookFormat::Teams => {
            let lowercase = text.to_lowercase();
            let words = [
                "fail",
                "error",
                "invalid",
                "bad request",
                "bad payload",
                "denied",
                "too many",
                "throttl",
            ];
            words
                .iter()
                .any(|word| lowercase.contains(word))
                .then(|| failed(text))
                .flatten()
        }
        WebhookFormat::Slack => {
            let is_word = !text.is_empty()
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            if is_word && text != "ok" {
                failed(text)
            } else {
                None
            }
        }
        WebhookFormat::Discord
        | WebhookFormat::Ntfy
        | WebhookFormat::Apprise
        | WebhookFormat::Standard
        | WebhookFormat::Template { .. } => None,
    }
}

/// A failure that JSON reports.
fn reported(json: &Value) -> Option<Failure> {
    let no = |name: &str| json[name] == Value::Bool(false);
    let is_error = match &json["error"] {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        _ => true,
    };
    let coded = json["message"].is_string() && json["code"].is_number() && json["id"].is_null();
    let limited = json["retry_after"].is_number() && json["id"].is_null();
    if !(no("ok") || no("success") || is_error || coded || limited) {
        return None;
    }
    let texts = [
        &json["error"]["message"],
        &json["error"],
        &json["message"],
        &json["description"],
    ];
    let text = texts
        .into_iter()
        .find_map(Value::as_str)
        .filter(|text| !text.is_empty());
    let retry_after = json["retry_after"]
        .as_f64()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    Some(Failure {
        message: text.unwrap_or("no reason is given").to_owned(),
        retry_after,
    })
}

/// The beginning of an escaped text, at most `limit` characters, with no half of an escape at its end.
fn cut(escaped: String, limit: usize) -> String {
    if escaped.chars().count() <= limit {
        return escaped;
    }
    let mut cut: String = escaped.chars().take(limit - 1).collect();
    if cut.chars().rev().take_while(|c| *c == '\\').count() % 2 == 1 {
        cut.pop();
    }
    cut.push('…');
    cut
}

/// The beginning of a text, at most `most` bytes.
fn one_piece(mut text: String, most: usize) -> String {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most - '…'.len_utf8()));
        text.push('…');
    }
    text
}

/// Puts a backslash before everything that markdown could act on.
fn escape_markdown(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if matches!(
            c,
            '\\' | '*' | '_' | '~' | '`' | '|' | '>' | '<' | '#' | '[' | ']' | '(' | ')' | '@'
        ) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::EventType;
    use crate::notify::summary::tests::event;

    fn hostile() -> Event {
        event(
            EventType::RunFailed,
            Some("<!channel> @everyone **now** [x](http://evil.example) & \x1b[31m\u{202e}"),
        )
    }

    fn pretty(body: &MessageBody) -> String {
        let value: serde_json::Value = serde_json::from_str(&body.text).unwrap();
        serde_json::to_string_pretty(&value).unwrap()
    }

    #[test]
    fn slack_messages() {
        insta::assert_snapshot!(
            "slack_succeeded",
            pretty(&slack(&event(EventType::RunSucceeded, None)))
        );
        insta::assert_snapshot!("slack_hostile", pretty(&slack(&hostile())));
    }

    #[test]
    fn discord_messages() {
        insta::assert_snapshot!(
            "discord_succeeded",
            pretty(&discord(&event(EventType::RunSucceeded, None)))
        );
        insta::assert_snapshot!("discord_hostile", pretty(&discord(&hostile())));
    }

    #[test]
    fn teams_messages() {
        insta::assert_snapshot!(
            "teams_succeeded",
            pretty(&teams(&event(EventType::RunSucceeded, None)))
        );
        insta::assert_snapshot!("teams_hostile", pretty(&teams(&hostile())));
    }

    #[test]
    fn a_long_title_fits_into_what_discord_takes() {
        let mut long = event(EventType::WatchNotFound, None);
        let data = long.run_mut().expect("it is about a run");
        for id in ["_".repeat(128), format!("a{}", "_".repeat(127))] {
            data.run.id = crate::domain::RunRef::new(&id).unwrap();
            let body: Value = serde_json::from_str(
                &discord(&Event {
                    data: crate::domain::EventData::Run(Box::new(data.clone())),
                    ..event(EventType::WatchNotFound, None)
                })
                .text,
            )
            .unwrap();
            let title = body["embeds"][0]["title"].as_str().unwrap();
            assert!(title.chars().count() <= DISCORD_TITLE_CHARS, "{title}");
            assert!(title.ends_with("\\_…"), "{title}");
        }
        assert_eq!(cut("a\\\\\\_b".to_owned(), 5), "a\\\\…");
        assert_eq!(one_piece("äää".to_owned(), 5), "ä…");
    }

    #[test]
    fn failures_in_a_success_are_found() {
        use WebhookFormat::{Discord, Ntfy, Slack, Teams};
        for (format, body, message) in [
            (
                Teams,
                "Webhook message delivery failed with error: Microsoft Teams endpoint returned HTTP error 429 with ContextId x",
                "429",
            ),
            (
                Teams,
                "Summary or Text is required: Bad payload received",
                "Bad payload",
            ),
            (
                Teams,
                "{\"error\":{\"code\":\"x\",\"message\":\"the flow is off\"}}",
                "the flow is off",
            ),
            (Slack, "invalid_payload", "invalid_payload"),
            (Slack, "no_service\n", "no_service"),
            (
                Slack,
                "{\"ok\":false,\"error\":\"channel_not_found\"}",
                "channel_not_found",
            ),
            (Slack, "{\"success\":false}", "no reason"),
            (
                Discord,
                "{\"message\":\"Unknown Webhook\",\"code\":10015}",
                "Unknown Webhook",
            ),
            (
                Ntfy,
                "{\"code\":40301,\"http\":403,\"error\":\"forbidden\"}",
                "forbidden",
            ),
            (Ntfy, "<!DOCTYPE html><title>Log in</title>", "page"),
        ] {
            let failure =
                failure(&format, body.as_bytes()).unwrap_or_else(|| panic!("{format:?} {body}"));
            assert!(failure.message.contains(message), "{failure:?}");
        }
        let limited = failure(
            &Discord,
            br#"{"message":"You are being rate limited.","retry_after":1.5,"global":false}"#,
        )
        .unwrap();
        assert_eq!(limited.retry_after, Some(Duration::from_millis(1500)));
        for (format, body) in [
            (Teams, "1"),
            (Teams, ""),
            (Teams, "{}"),
            (Slack, "ok"),
            (Slack, "{\"ok\":true,\"error\":null}"),
            (Slack, ""),
            (Discord, ""),
            (
                Discord,
                "{\"id\":\"1\",\"content\":\"it failed with an error\",\"type\":0}",
            ),
            (
                Ntfy,
                "{\"id\":\"x\",\"event\":\"message\",\"message\":\"run failed: error\"}",
            ),
        ] {
            assert_eq!(failure(&format, body.as_bytes()), None, "{format:?} {body}");
        }
    }

    #[test]
    fn ntfy_messages() {
        let shown = |event: &Event| {
            let body = ntfy(event);
            let mut headers: Vec<_> = body
                .headers
                .iter()
                .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
                .collect();
            headers.sort();
            format!("{}\n\n{}", headers.join("\n"), body.text)
        };
        insta::assert_snapshot!(
            "ntfy_succeeded",
            shown(&event(EventType::RunSucceeded, None))
        );
        insta::assert_snapshot!("ntfy_hostile", shown(&hostile()));
        let mut named = event(EventType::RunFailed, None);
        let data = named.run_mut().expect("it is about a run");
        data.watch.name = Some("täglicher Bericht".to_owned());
        insta::assert_snapshot!("ntfy_named", shown(&named));
    }
}
