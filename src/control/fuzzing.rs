//! Fuzzes the requests of a caller: whatever is requested, the result names a run
//! and sinks that are configured, and nothing else.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::RawQuery;
use axum::http::Method;
use futures_util::FutureExt as _;
use jiff::Timestamp;
use tokio::sync::watch;

use super::LiveConfig;
use super::auth::Guard;
use super::browser;
use super::extract::Query;
use super::routes::{read_cursor, watch};
use super::types::AddRequest;
use crate::clock::Clock;
use crate::config::Secret;
use crate::domain::{EventFilter, Labels, Route, Routes, SinkName};

/// A request: its first byte decides whether the rest is a body, a query, or a path with headers.
pub fn request(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else {
        return;
    };
    match kind % 3 {
        0 => add(rest),
        1 => query(rest),
        _ => admit(rest),
    }
}

fn live_config() -> LiveConfig {
    let sink = SinkName::new("ops").expect("a valid name");
    let route = Route {
        sink,
        events: EventFilter::verdicts(),
        labels: Labels::new(),
        one_per_group: false,
        digest: false,
    };
    LiveConfig {
        routes: Arc::new(Routes::from_iter([route])),
        scheduled_attempts: Arc::default(),
        sink_types: Arc::default(),
        public_url: None,
        heartbeat: None,
        deadline: Duration::from_secs(60),
        retention: Duration::from_secs(60),
        token: Some(Secret::value("the-token")),
        discoveries: Arc::default(),
        providers: Arc::new(crate::config::Settings::default().providers),
        fingerprint: 0,
        rejected: None,
    }
}

fn add(body: &[u8]) {
    let Ok(request) = serde_json::from_slice::<AddRequest>(body) else {
        return;
    };
    let Ok(watch) = watch(request, &live_config(), Timestamp::UNIX_EPOCH) else {
        return;
    };
    assert!(
        watch
            .sinks
            .iter()
            .flatten()
            .all(|sink| sink.as_str() == "ops")
    );
    assert!(watch.deadline_at > watch.added_at);
    watch.run_id.check();
    assert!(
        watch
            .name
            .iter()
            .chain(watch.labels.values())
            .all(|text| !text.contains(char::is_control))
    );
}

fn query(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let Ok(query) = Query::read(
        RawQuery(Some(text.to_owned())),
        &["limit", "cursor", "label"],
    ) else {
        return;
    };
    if let Ok(limit) = query.limit() {
        assert!((1..=1000).contains(&limit));
    }
    drop(query.one("cursor", read_cursor, "a cursor"));
    assert!(query.all("label").count() <= text.len());
}

/// A path and headers, one a line: only who has the token is let in.
fn admit(text: &[u8]) {
    let (_sender, receiver) = watch::channel(live_config());
    let guard = Guard::new(
        receiver,
        true,
        Arc::new(["/healthz", "/readyz"]),
        Clock::system(),
    );
    let text = String::from_utf8_lossy(text);
    let mut lines = text.lines();
    let path = lines.next().unwrap_or_default();
    let mut headers = axum::http::HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if let (Ok(name), Ok(value)) =
            (axum::http::HeaderName::try_from(name), value.trim().parse())
        {
            headers.insert(name, value);
        }
    }
    if guard
        .admit(&Method::GET, path, &headers)
        .now_or_never()
        .expect("no file is read")
        .is_ok()
    {
        // Only the page itself, under the name that the request has.
        if headers.contains_key("origin") {
            assert!(browser::is_of_page(&headers) && headers.contains_key("host"));
        }
        // RFC 9110, 11.1 and 11.4: the scheme in any case, then one or more spaces.
        let given = headers
            .get("authorization")
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let (scheme, token) = given.split_once(' ').unwrap_or_default();
        let has_token =
            scheme.eq_ignore_ascii_case("bearer") && token.trim_start_matches(' ') == "the-token";
        assert!(path == "/healthz" || path == "/readyz" || has_token);
    }
}
