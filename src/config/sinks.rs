//! Reads the `[sinks.NAME]` tables.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use reqwest::header::{HeaderName, HeaderValue};

use super::email::read_email;
use super::problem::Origin;
use super::quiet::read_quiet;
use super::reader::{Item, SettingsReader, Table, Violation};
use super::rules::{
    DAY, MAKE_SIGNING_SECRET, MAX_TEMPLATE_BYTES, MIN_TIMEOUT, http_url, read_template,
    signing_keys,
};
use super::units::parse_duration;
use super::{
    Secret, SinkKind, SinkSettings, WebhookFormat, WebhookMethod, WebhookSettings, WebhookSignature,
};
use crate::domain::{EventFilter, EventType, Labels, SinkName};
use crate::redact::REDACTED;
use crate::text::nearest;

/// The kinds of sink.
const TYPES: [&str; 5] = ["desktop", "webhook", "email", "log", "command"];

/// What a webhook can send.
const FORMATS: [&str; 7] = [
    "standard", "slack", "discord", "teams", "ntfy", "apprise", "template",
];

/// The methods of a webhook.
const METHODS: [&str; 2] = ["POST", "PUT"];

/// The ways in which a webhook is signed.
const SIGNATURES: [&str; 2] = ["standard", "github"];

/// What a sink gets of a group: each verdict, or one message.
const GROUP_MODES: [&str; 2] = ["each", "one"];

/// The waits before further attempts: 27 hours and a half in all, so that a receiver may be down for
/// a day.
const RETRY_SCHEDULE: &str = "5s,5m,30m,2h,5h,10h,10h";

/// Most waits in a schedule, and the longest of them.
const MAX_RETRIES: usize = 100;
const MAX_RETRY_WAIT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Time for one run of a program.
const COMMAND_TIMEOUT: &str = "30s";

/// Headers that belong to the request itself, to the trace of a watch or to the signature.
const RESERVED_HEADERS: [&str; 11] = [
    "connection",
    "content-length",
    "content-type",
    "host",
    "traceparent",
    "tracestate",
    "transfer-encoding",
    "webhook-id",
    "webhook-signature",
    "webhook-timestamp",
    "x-hub-signature-256",
];

impl SinkSettings {
    /// A sink that writes a log record for each verdict: what the daemon has where none is configured.
    pub fn log_of_verdicts() -> Self {
        let waits = RETRY_SCHEDULE
            .split(',')
            .map(|wait| parse_duration(wait).expect("a legal duration"));
        Self {
            kind: SinkKind::Log { path: None },
            events: EventFilter::verdicts(),
            labels: Labels::new(),
            retry_schedule: waits.collect(),
            fallback: None,
            one_per_group: false,
            digest: false,
            quiet: None,
            page: None,
        }
    }
}

/// Reads all sinks.
pub(super) fn read_sinks(
    reader: &mut SettingsReader<'_>,
    root: &mut Table,
) -> BTreeMap<SinkName, SinkSettings> {
    let mut all = reader.table(root, "sinks");
    let mut sinks = BTreeMap::new();
    let mut fallbacks = BTreeMap::new();
    let mut names = BTreeSet::new();
    for item in reader.drain(&mut all) {
        let key = item.name().to_owned();
        names.insert(key.clone());
        let name = SinkName::new(item.name());
        if let Err(error) = &name {
            reader.refuse_unseen(&item, &error.to_string(), "rename it");
        }
        let Some(mut table) = reader.as_table(item) else {
            continue;
        };
        let fallback = reader.peek(&table, "fallback");
        fallbacks.extend(fallback.map(|item| (key, item)));
        let settings = read_sink(reader, &mut table);
        if let (Ok(name), Some(settings)) = (name, settings) {
            sinks.insert(name, settings);
        }
    }
    check_fallbacks(reader, &names, &fallbacks);
    sinks
}

/// Checks that fallbacks are sinks, and that none leads back to its sink. `fallbacks` has them by the name of the sink.
fn check_fallbacks(
    reader: &mut SettingsReader<'_>,
    names: &BTreeSet<String>,
    fallbacks: &BTreeMap<String, Item>,
) {
    let mut reported = BTreeSet::new();
    for (name, item) in fallbacks {
        // Another type is a problem of its own, reported already.
        let Some(fallback) = item.as_text() else {
            continue;
        };
        if !names.contains(fallback) {
            let others = names.iter().filter(|known| *known != name);
            let fix = match nearest(fallback, others.clone().map(String::as_str)) {
                Some(known) => format!("did you mean {known:?}?"),
                None => "write the name of another sink".to_owned(),
            };
            reader.refuse(item, "there is no sink of this name", fix);
            continue;
        }
        let mut way = vec![name.as_str()];
        let mut next = fallback;
        while !way.contains(&next) {
            way.push(next);
            match fallbacks.get(next).and_then(Item::as_text) {
                Some(after) => next = after,
                None => break,
            }
        }
        // A sink that leads to a cycle, but is not in it, is right once the cycle is.
        if next == name && !reported.contains(name.as_str()) {
            reported.extend(way.iter().copied());
            way.push(next);
            let what = format!("this leads back to the sink: {}", way.join(" → "));
            reader.refuse(item, what, "remove one of these fallbacks");
        }
    }
}

fn read_sink(reader: &mut SettingsReader<'_>, table: &mut Table) -> Option<SinkSettings> {
    let Some(item) = reader.take(table, "type", None) else {
        reader.missing(
            table,
            "type",
            "write one of desktop, webhook, email, log, command",
        );
        return None;
    };
    let kind = reader.parsed(&item, |text| one_of(text, &TYPES))?;
    let kind = match kind {
        "desktop" => Some(SinkKind::Desktop),
        "webhook" => {
            read_webhook(reader, table).map(|webhook| SinkKind::Webhook(Box::new(webhook)))
        }
        "email" => read_email(reader, table).map(|email| SinkKind::Email(Box::new(email))),
        "log" => Some(read_log(reader, table)),
        _ => read_command(reader, table),
    };
    let events = read_events(reader, table);
    let labels = reader.labels(table);
    let retry_schedule = read_schedule(reader, table);
    let fallback = read_fallback(reader, table);
    let quiet = read_quiet(reader, table);
    let item = reader.take(table, "group", Some("each"));
    let group = item.and_then(|item| reader.parsed(&item, |text| one_of(text, &GROUP_MODES)));
    let item = reader.take(table, "digest", Some("false"));
    let digest = item.and_then(|item| reader.boolean(&item));
    reader.finish_rest(table);
    Some(SinkSettings {
        kind: kind?,
        events,
        labels,
        retry_schedule,
        fallback,
        one_per_group: group? == "one",
        digest: digest?,
        quiet: quiet?,
        page: None,
    })
}

fn read_log(reader: &mut SettingsReader<'_>, table: &mut Table) -> SinkKind {
    let item = reader.take(table, "path", None);
    if item.is_none() {
        reader.show_unset(table, "path");
    }
    SinkKind::Log {
        path: item.and_then(|item| reader.path(&item)),
    }
}

fn read_command(reader: &mut SettingsReader<'_>, table: &mut Table) -> Option<SinkKind> {
    let item = reader.take(table, "argv", None);
    if item.is_none() {
        reader.missing(
            table,
            "argv",
            "write the program and its arguments: argv = [\"/usr/local/bin/on-run\"]",
        );
    }
    let argv = item.as_ref().and_then(|item| reader.texts(item));
    if let (Some(argv), Some(item)) = (&argv, &item) {
        if argv.first().is_none_or(String::is_empty) {
            reader.refuse_unseen(
                item,
                "there is no program in it",
                "write the program as its first part",
            );
        }
        if argv.iter().any(|part| part.contains('\0')) {
            reader.refuse_unseen(
                item,
                "a part has a NUL character",
                "remove it; no program can get one",
            );
        }
    }
    let item = reader.take(table, "timeout", Some(COMMAND_TIMEOUT));
    let timeout = item.and_then(|item| reader.duration(&item, MIN_TIMEOUT, DAY));
    Some(SinkKind::Command {
        argv: argv?,
        timeout: timeout?,
    })
}

fn read_webhook(reader: &mut SettingsReader<'_>, table: &mut Table) -> Option<WebhookSettings> {
    let url = match reader.take_secret(table, "url") {
        Some(found) => reader.secret(found, |text| http_url(text).map(drop)),
        None => {
            // Two URLs at once are a problem of their own, reported already.
            if !reader.has_problem_at(table, "url") {
                reader.missing(
                    table,
                    "url",
                    "write url, or url_file for the path of a file that holds it",
                );
            }
            None
        }
    };
    let method = reader.take(table, "method", Some("POST"));
    let method = method.and_then(|item| reader.parsed(&item, |text| one_of(text, &METHODS)));
    let secret = reader
        .take_secret(table, "secret")
        .and_then(|found| reader.secret(found, signing_secrets));
    let signature = read_signature(reader, table, secret.is_some());
    let cloudevents = reader.take(table, "cloudevents", Some("false"));
    let cloudevents = cloudevents.and_then(|item| reader.boolean(&item));
    let format = read_format(reader, table);
    let headers = read_secrets(reader, table, "headers", header_name, header_value);
    let is_template = matches!(format, Some(WebhookFormat::Template { .. }) | None);
    let value_name = if is_template { value_name } else { no_value };
    let values = read_secrets(reader, table, "values", value_name, |_any| Ok(()));
    Some(WebhookSettings {
        url: url?,
        method: match method? {
            "PUT" => WebhookMethod::Put,
            _ => WebhookMethod::Post,
        },
        secret,
        signature: signature?,
        cloudevents: cloudevents?,
        format: format?,
        headers,
        values,
    })
}

fn read_signature(
    reader: &mut SettingsReader<'_>,
    table: &mut Table,
    has_secret: bool,
) -> Option<WebhookSignature> {
    let item = reader.take(table, "signature", Some("standard"))?;
    match reader.parsed(&item, |text| one_of(text, &SIGNATURES))? {
        "github" => {
            // A secret that cannot be used is a problem of its own, reported already.
            if !has_secret && !reader.has_problem_at(table, "secret") {
                reader.missing(
                    table,
                    "secret",
                    "write secret_file for the path of a file with the secret that signs",
                );
            }
            Some(WebhookSignature::Github)
        }
        _ => Some(WebhookSignature::Standard),
    }
}

fn read_format(reader: &mut SettingsReader<'_>, table: &mut Table) -> Option<WebhookFormat> {
    let item = reader.take(table, "format", Some("standard"))?;
    let word = reader.parsed(&item, |text| one_of(text, &FORMATS));
    let template = reader.take(table, "template_file", None);
    let content_type = reader.take(table, "content_type", None);
    if word.is_some() && word != Some("template") {
        for item in template.iter().chain(&content_type) {
            reader.refuse(
                item,
                "this belongs to format = \"template\"",
                "remove it, or set that format",
            );
        }
    }
    match word? {
        "standard" => Some(WebhookFormat::Standard),
        "slack" => Some(WebhookFormat::Slack),
        "discord" => Some(WebhookFormat::Discord),
        "teams" => Some(WebhookFormat::Teams),
        "ntfy" => Some(WebhookFormat::Ntfy),
        "apprise" => Some(WebhookFormat::Apprise),
        _ => {
            let content_type = match content_type {
                Some(item) => reader.parsed(&item, media_type),
                None => Some("application/json".to_owned()),
            };
            let Some(item) = template else {
                reader.missing(table, "template_file", "write the path of the template");
                return None;
            };
            let file = reader.path(&item)?;
            match read_template(&file) {
                Ok(None) => {
                    let what = format!("the template has more than {MAX_TEMPLATE_BYTES} bytes");
                    reader.refuse(&item, what, "check the path");
                }
                Err(error) => {
                    let what = format!("the template cannot be read ({error})");
                    reader.refuse(&item, what, "check the path and its permissions");
                }
                Ok(Some(text)) => {
                    if let Err(error) = minijinja::Environment::new().template_from_str(&text) {
                        reader.refuse(
                            &item,
                            format!("the template has a mistake ({error})"),
                            "correct the template",
                        );
                    }
                }
            }
            Some(WebhookFormat::Template {
                file,
                content_type: content_type?,
            })
        }
    }
}

/// Checks the name of a secret in a table, and returns it as it is known, or what is wrong with it.
type CheckName = fn(&str) -> Result<String, (&'static str, &'static str)>;

/// Reads a table of secrets, each given as `NAME` or, as a file, `NAME_file`.
fn read_secrets(
    reader: &mut SettingsReader<'_>,
    table: &mut Table,
    key: &str,
    check_name: CheckName,
    rule: fn(&str) -> Result<(), Violation>,
) -> BTreeMap<String, Secret> {
    let mut secrets = BTreeMap::new();
    let mut shown = serde_json::Map::new();
    let mut origin = Origin::Default;
    let inner = reader
        .take(table, key, None)
        .and_then(|item| reader.as_table(item));
    if let Some(mut inner) = inner {
        for name in inner.names() {
            let name = name.strip_suffix("_file").unwrap_or(&name).to_owned();
            // The twin of a secret read before has been taken along with it.
            if !inner.has(&name) && !inner.has(&format!("{name}_file")) {
                continue;
            }
            let Some(found) = reader.take_secret(&mut inner, &name) else {
                continue;
            };
            let known = match check_name(&name) {
                Ok(known) if secrets.contains_key(&known) => Err((
                    "this header is set twice",
                    "keep one; upper and lower case are the same",
                )),
                checked => checked,
            };
            let known = match known {
                Ok(known) => known,
                Err((what, fix)) => {
                    reader.refuse_unseen(found.item(), what, fix);
                    continue;
                }
            };
            let Some(secret) = reader.unshown_secret(&found, rule) else {
                continue;
            };
            match &secret {
                Secret::Value(_) => shown.insert(name, REDACTED.into()),
                Secret::File(path) => {
                    shown.insert(format!("{name}_file"), path.display().to_string().into())
                }
            };
            origin = found.place().origin.clone();
            secrets.insert(known, secret);
        }
    }
    reader.show_table(table, key, &origin, shown);
    secrets
}

/// The name of a header, in lower case.
fn header_name(name: &str) -> Result<String, (&'static str, &'static str)> {
    let lower = name.to_ascii_lowercase();
    if HeaderName::from_bytes(name.as_bytes()).is_err() {
        Err((
            "this is not the name of a header",
            "use letters, digits and -",
        ))
    } else if RESERVED_HEADERS.contains(&lower.as_str()) {
        Err(("this header is set by runwatch itself", "remove it"))
    } else {
        Ok(lower)
    }
}

/// The name of a value of a template, as an expression can have it.
fn value_name(name: &str) -> Result<String, (&'static str, &'static str)> {
    let valid = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    if valid {
        Ok(name.to_owned())
    } else {
        Err((
            "this cannot be the name of a value",
            "use a-z, 0-9 and _, a letter first",
        ))
    }
}

fn no_value(_name: &str) -> Result<String, (&'static str, &'static str)> {
    Err((
        "this belongs to format = \"template\"",
        "remove it, or set that format",
    ))
}

fn read_events(reader: &mut SettingsReader<'_>, table: &mut Table) -> EventFilter {
    let Some(item) = reader.take(table, "events", None) else {
        let words =
            crate::domain::Verdict::WORST_FIRST.map(|verdict| verdict.event_type().as_str());
        reader.show_outside(table, "events", words.as_slice(), Origin::Default);
        return EventFilter::verdicts();
    };
    let patterns = reader.texts(&item).unwrap_or_default();
    for pattern in &patterns {
        if EventFilter::parse([pattern.as_str()]).is_err() {
            let words = EventType::ALL.map(EventType::as_str);
            let families = ["run.*", "watch.*", "group.*", "api.*", "sink.*", "*"];
            let fix = match nearest(pattern, words.into_iter().chain(families)) {
                Some(word) => format!("did you mean {word:?}?"),
                None => format!("use {}, or {}", words.join(", "), families.join(", ")),
            };
            reader.refuse(&item, format!("{pattern:?} names no event"), fix);
        }
    }
    let known = patterns
        .iter()
        .map(String::as_str)
        .filter(|pattern| EventFilter::parse([*pattern]).is_ok());
    EventFilter::parse(known).unwrap_or_else(|_| EventFilter::verdicts())
}

fn read_schedule(reader: &mut SettingsReader<'_>, table: &mut Table) -> Vec<Duration> {
    let Some(item) = reader.take(table, "retry_schedule", Some(RETRY_SCHEDULE)) else {
        return Vec::new();
    };
    let schedule = reader
        .durations(&item, Duration::ZERO, MAX_RETRY_WAIT)
        .unwrap_or_default();
    if schedule.len() > MAX_RETRIES {
        reader.refuse_unseen(
            &item,
            "this schedule is too long",
            &format!("write at most {MAX_RETRIES} waits"),
        );
    }
    schedule
}

fn read_fallback(reader: &mut SettingsReader<'_>, table: &mut Table) -> Option<SinkName> {
    let Some(item) = reader.take(table, "fallback", None) else {
        reader.show_unset(table, "fallback");
        return None;
    };
    let rule = |text: &str| {
        SinkName::new(text).map_err(|error| (error.to_string(), "write the name of a sink".into()))
    };
    reader.parsed(&item, rule)
}

/// The word of a list that the text is.
pub(super) fn one_of(text: &str, words: &[&'static str]) -> Result<&'static str, Violation> {
    let fix = || match nearest(text, words.iter().copied()) {
        Some(word) => format!("did you mean {word:?}?"),
        None => format!("use one of {}", words.join(", ")),
    };
    words
        .iter()
        .find(|word| **word == text)
        .copied()
        .ok_or_else(|| ("there is no such choice".to_owned(), fix()))
}

/// Signing secrets of Standard Webhooks: `whsec_` and base64, one a line.
fn signing_secrets(text: &str) -> Result<(), Violation> {
    if signing_keys(text).all(|key| key.is_ok()) {
        Ok(())
    } else {
        let what = "this is not a signing secret".to_owned();
        Err((
            what,
            format!(
                "write whsec_ and the base64 of 24 to 64 random bytes, one secret a line; {MAKE_SIGNING_SECRET} \
                 makes one"
            ),
        ))
    }
}

fn header_value(text: &str) -> Result<(), Violation> {
    let refused = |_| {
        (
            "this cannot be the value of a header".to_owned(),
            "write one line of plain text".to_owned(),
        )
    };
    HeaderValue::from_str(text).map(drop).map_err(refused)
}

fn media_type(text: &str) -> Result<String, Violation> {
    if HeaderValue::from_str(text).is_ok()
        && text
            .split_once('/')
            .is_some_and(|(kind, sub)| !kind.is_empty() && !sub.is_empty())
    {
        Ok(text.to_owned())
    } else {
        Err((
            "this is not a content type".to_owned(),
            "write one such as \"application/json\"".to_owned(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Settings, Sources, load};

    /// Loads a webhook sink with these keys, beside a template.
    fn loaded(keys: &str) -> Result<Settings, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        let table = "[sinks.o]\ntype = \"webhook\"\nurl = \"https://a/{delivery_id}\"\n";
        std::fs::write(&file, format!("{table}{keys}")).unwrap();
        std::fs::write(folder.path().join("o.j2"), "{}").unwrap();
        let sources = Sources {
            explicit: Some(file),
            ..Sources::default()
        };
        load(&sources)
            .map(|loaded| loaded.settings)
            .map_err(|problems| problems.to_string())
    }

    #[test]
    fn a_fallback_is_another_sink_that_does_not_lead_back() {
        let to = |name: &str| format!("fallback = \"{name}\"\n");
        let log = |name: &str, keys: &str| format!("[sinks.{name}]\ntype = \"log\"\n{keys}");
        let chain = to("desk") + &log("desk", &to("last")) + &log("last", "");
        let settings = loaded(&chain).unwrap();
        let fallback = |name: &str| {
            let sink = &settings.sinks[&SinkName::new(name).unwrap()];
            sink.fallback.as_ref().map(SinkName::as_str)
        };
        assert_eq!(
            ["o", "desk", "last"].map(fallback),
            [Some("desk"), Some("last"), None]
        );
        for (keys, mistake) in [
            (
                to("desc") + &log("desk", ""),
                "there is no sink of this name; did you mean \"desk\"?",
            ),
            (to("o"), "this leads back to the sink: o → o"),
            (
                to("desk") + &log("desk", &to("last")) + &log("last", &to("o")),
                "this leads back to the sink: desk → last → o → desk",
            ),
            // The first sink only leads to a cycle.
            (
                to("desk") + &log("desk", &to("last")) + &log("last", &to("desk")),
                "this leads back to the sink: desk → last → desk",
            ),
            (
                "fallback = 3\n".to_owned(),
                "this must be a string; put it in quotes",
            ),
        ] {
            let problems = loaded(&keys).unwrap_err();
            assert!(
                problems.contains(mistake) && problems.lines().count() == 1,
                "{keys}: {problems}"
            );
        }
    }

    const TEMPLATE: &str = "format = \"template\"\ntemplate_file = \"o.j2\"\n";

    #[test]
    fn a_template_has_values_and_a_method() {
        let keys = format!("{TEMPLATE}method = \"PUT\"\nvalues = {{ room_2 = \"a b\" }}\n");
        let settings = loaded(&keys).unwrap();
        let SinkKind::Webhook(webhook) = &settings.sinks.first_key_value().unwrap().1.kind else {
            panic!("{settings:?}")
        };
        assert_eq!(webhook.method, WebhookMethod::Put);
        assert_eq!(webhook.values.keys().collect::<Vec<_>>(), ["room_2"]);
    }

    #[test]
    fn what_does_not_fit_together_is_a_mistake() {
        for (keys, mistake) in [
            (
                "values = { a = \"b\" }\n".to_owned(),
                "this belongs to format = \"template\"",
            ),
            (
                format!("{TEMPLATE}values = {{ a-b = \"c\" }}\n"),
                "this cannot be the name of a value",
            ),
            ("method = \"PATCH\"\n".to_owned(), "there is no such choice"),
            (
                "signature = \"github\"\n".to_owned(),
                "write secret_file for the path",
            ),
            (
                "signature = \"github\"\nsecret = \"plain\"\n".to_owned(),
                "this is not a signing secret",
            ),
        ] {
            let problems = loaded(&keys).unwrap_err();
            assert!(
                problems.contains(mistake) && problems.lines().count() == 1,
                "{keys}: {problems}"
            );
        }
    }
}
