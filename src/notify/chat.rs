//! Bodies for chat services: short, readable, and with nothing in them that the service would act on.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::json;

use super::summary::{self, Summary, Weight};
use super::webhook::Body;
use crate::run::Event;

/// Green and red, as Slack and Discord show them beside a message.
const GOOD_COLOUR: u32 = 0x2e_b6_7d;
const BAD_COLOUR: u32 = 0xe0_1e_5a;

fn json_body(value: &serde_json::Value) -> Body {
    Body { content_type: "application/json", text: value.to_string(), headers: HeaderMap::new() }
}

fn colour(summary: &Summary) -> u32 {
    if summary.weight == Weight::Good { GOOD_COLOUR } else { BAD_COLOUR }
}

/// Slack incoming webhook (docs.slack.dev, "Sending messages using incoming webhooks" and "Formatting
/// message text"): `&`, `<` and `>` are escaped, which also keeps `<!channel>` from being a mention.
pub(super) fn slack(event: &Event) -> Body {
    let summary = summary::of(event);
    let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
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
            "text": lines.join("\n"),
            "mrkdwn_in": [],
        }]);
    }
    json_body(&message)
}

/// Discord webhook (discord.com/developers/docs/resources/webhook, "Execute Webhook"). Nobody can be
/// mentioned, and markdown is escaped.
pub(super) fn discord(event: &Event) -> Body {
    let summary = summary::of(event);
    let lines: Vec<_> = summary.lines.iter().map(|line| escape_markdown(line)).collect();
    let mut embed = json!({
        "title": escape_markdown(&summary.title),
        "description": lines.join("\n"),
        "color": colour(&summary),
    });
    if let Some(url) = &summary.url {
        embed["url"] = url.as_str().into();
    }
    json_body(&json!({ "embeds": [embed], "allowed_mentions": { "parse": [] } }))
}

/// Microsoft Teams workflow webhook, "When a Teams webhook request is received": a message with an
/// Adaptive Card (adaptivecards.io). Text blocks read some markdown, which is escaped.
pub(super) fn teams(event: &Event) -> Body {
    let summary = summary::of(event);
    let colour = if summary.weight == Weight::Good { "Good" } else { "Attention" };
    let block = |text: &str| json!({ "type": "TextBlock", "text": escape_markdown(text), "wrap": true });
    let mut title = block(&summary.title);
    title["weight"] = "Bolder".into();
    title["color"] = colour.into();
    let blocks: Vec<_> = std::iter::once(title).chain(summary.lines.iter().map(|line| block(line))).collect();
    let mut card = json!({
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": blocks,
    });
    if let Some(url) = &summary.url {
        card["actions"] = json!([{ "type": "Action.OpenUrl", "title": "Open the run", "url": url }]);
    }
    json_body(&json!({
        "type": "message",
        "attachments": [{ "contentType": "application/vnd.microsoft.card.adaptive", "content": card }],
    }))
}

/// ntfy topic (docs.ntfy.sh/publish): the text is the body, all else is in headers. A title that is not
/// ASCII, or that looks encoded, is encoded as RFC 2047 has it, which ntfy reads.
pub(super) fn ntfy(event: &Event) -> Body {
    let summary = summary::of(event);
    let mut headers = HeaderMap::new();
    // A message must have a text; one that is all title needs no title above it.
    let (title, text) = if summary.lines.is_empty() {
        (None, summary.title)
    } else if summary.title.is_ascii() && !summary.title.contains("=?") {
        (Some(summary.title), summary.lines.join("\n"))
    } else {
        (Some(format!("=?UTF-8?B?{}?=", STANDARD.encode(&summary.title))), summary.lines.join("\n"))
    };
    let (priority, tags) = match summary.weight {
        Weight::Good => ("default", "white_check_mark"),
        Weight::Bad => ("high", "rotating_light"),
    };
    headers.insert("priority", HeaderValue::from_static(priority));
    headers.insert("tags", HeaderValue::from_static(tags));
    for (name, value) in [("title", title), ("click", summary.url)] {
        // Without a title or a link the message still says what it has to.
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            headers.insert(name, value);
        }
    }
    Body { content_type: "text/plain; charset=utf-8", text, headers }
}

/// Puts a backslash before everything that markdown could act on.
fn escape_markdown(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if matches!(c, '\\' | '*' | '_' | '~' | '`' | '|' | '>' | '<' | '#' | '[' | ']' | '(' | ')' | '@') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::summary::tests::event;
    use crate::run::EventType;

    fn hostile() -> Event {
        event(EventType::RunFailed, Some("<!channel> @everyone **now** [x](http://evil.example) & \x1b[31m\u{202e}"))
    }

    fn pretty(body: &Body) -> String {
        let value: serde_json::Value = serde_json::from_str(&body.text).unwrap();
        serde_json::to_string_pretty(&value).unwrap()
    }

    #[test]
    fn slack_messages() {
        insta::assert_snapshot!("slack_succeeded", pretty(&slack(&event(EventType::RunSucceeded, None))));
        insta::assert_snapshot!("slack_hostile", pretty(&slack(&hostile())));
    }

    #[test]
    fn discord_messages() {
        insta::assert_snapshot!("discord_succeeded", pretty(&discord(&event(EventType::RunSucceeded, None))));
        insta::assert_snapshot!("discord_hostile", pretty(&discord(&hostile())));
    }

    #[test]
    fn teams_messages() {
        insta::assert_snapshot!("teams_succeeded", pretty(&teams(&event(EventType::RunSucceeded, None))));
        insta::assert_snapshot!("teams_hostile", pretty(&teams(&hostile())));
    }

    #[test]
    fn ntfy_messages() {
        let shown = |event: &Event| {
            let body = ntfy(event);
            let mut headers: Vec<_> =
                body.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
            headers.sort();
            format!("{}\n\n{}", headers.join("\n"), body.text)
        };
        insta::assert_snapshot!("ntfy_succeeded", shown(&event(EventType::RunSucceeded, None)));
        insta::assert_snapshot!("ntfy_hostile", shown(&hostile()));
        let mut named = event(EventType::RunFailed, None);
        let crate::run::EventData::Run(data) = &mut named.data else { panic!("about a run") };
        data.watch.name = Some("täglicher Bericht".to_owned());
        insta::assert_snapshot!("ntfy_named", shown(&named));
    }
}
