//! Reading every provider: answers of real servers and documented shapes, over HTTP, each to its expected state.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use runwatch::config::{ApiSettings, Secret, Settings};
use runwatch::domain::{Observation, ProviderName, RunRef, RunState};
use runwatch::profile::{self, Profile};
use runwatch::providers::{
    ApiClient, ApiError, Credentials, ListEntry, ListParameters, ListRequest, Provider as _, Reply,
};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// An API that gives its answers one after the other, the last one again and again.
struct Scripted {
    base_url: String,
    /// The heads of the requests.
    requests: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

/// Status code, further headers and body.
#[derive(Clone)]
struct Canned(u16, Vec<String>, String);

fn ok(body: impl Into<String>) -> Canned {
    Canned(200, Vec::new(), body.into())
}

impl Canned {
    fn with(mut self, header: &str) -> Self {
        self.1.push(header.to_owned());
        self
    }
}

/// Whether a request has come with all of its body.
fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    body.len() >= length.map_or(0, |length| length.parse().unwrap())
}

impl Scripted {
    async fn start(answers: Vec<Canned>) -> Self {
        Self::listen(|_| answers).await
    }

    /// One that always gives the same answer, which may name the address.
    async fn start_with(answer: impl FnOnce(&str) -> Canned) -> Self {
        Self::listen(|base_url| vec![answer(base_url)]).await
    }

    async fn listen(answers: impl FnOnce(&str) -> Vec<Canned>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}", listener.local_addr().unwrap());
        let answers = answers(&base_url);
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, mut tasks) = (Arc::clone(&requests), JoinSet::new());
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !is_whole(&head) {
                    if !matches!(stream.read_buf(&mut head).await, Ok(1..)) {
                        break;
                    }
                }
                let number = {
                    let mut seen: std::sync::MutexGuard<'_, Vec<String>> = seen.lock().unwrap();
                    seen.push(String::from_utf8_lossy(&head).into_owned());
                    seen.len() - 1
                };
                let Canned(code, headers, body) = &answers[number.min(answers.len() - 1)];
                let mut answer = format!("HTTP/1.1 {code} X\r\nconnection: close\r\n");
                for header in headers {
                    answer.push_str(&format!("{header}\r\n"));
                }
                if *code != 304 {
                    answer.push_str(&format!("content-length: {}\r\n", body.len()));
                }
                answer.push_str("\r\n");
                if *code != 304 {
                    answer.push_str(body);
                }
                let _gone = stream.write_all(answer.as_bytes()).await;
            }
        });
        Self {
            base_url,
            requests,
            _tasks: tasks,
        }
    }

    /// The first line and the headers of each request, in lower case.
    fn requests(&self) -> Vec<String> {
        let requests = self.requests.lock().unwrap();
        requests.iter().map(|head| head.to_lowercase()).collect()
    }
}

fn client(profile: Arc<Profile>, base_url: &str) -> ApiClient {
    let settings = ApiSettings {
        base_url: base_url.to_owned(),
        request_timeout: Duration::from_secs(60),
        ..Settings::default().api
    };
    let credentials = Credentials::of_key(Some(Secret::value("a-key-of-this-test")));
    ApiClient::of_profile(profile, &settings, credentials).unwrap()
}

fn run(profile: &Profile, id: &str) -> RunRef {
    RunRef::of(&ProviderName::new(&profile.name).unwrap(), id).unwrap()
}

fn builtin(name: &str) -> Arc<Profile> {
    profile::builtin(name).unwrap().unwrap()
}

fn own(text: &str) -> Arc<Profile> {
    Arc::new(profile::parse(text, "own").unwrap())
}

/// What a poll of the run observes at an API that gives these answers.
async fn poll(
    profile: Arc<Profile>,
    id: &str,
    answers: Vec<Canned>,
) -> Result<Observation, ApiError> {
    reply(profile, id, answers).await.result
}

/// The reply of a poll of the run at an API that gives these answers.
async fn reply(profile: Arc<Profile>, id: &str, answers: Vec<Canned>) -> Reply {
    let api = Scripted::start(answers).await;
    // An ID that is an address names this API.
    let id = match id.strip_prefix("https://") {
        Some(rest) if profile.get.is_url() => {
            let path = rest.split_once('/').map_or("", |(_, path)| path);
            format!("{}/{path}", api.base_url)
        }
        _ => id.to_owned(),
    };
    let run = run(&profile, &id);
    client(profile, &api.base_url).get_run(&run).await
}

fn state(reply: &Result<Observation, ApiError>) -> String {
    match reply {
        Ok(reply) => reply.status.state().as_str().to_owned(),
        Err(ApiError::NotFound { .. } | ApiError::Gone { .. }) => "not_found".to_owned(),
        Err(ApiError::Malformed(_)) => "unusable".to_owned(),
        Err(error) => error.describe(),
    }
}

#[derive(Deserialize)]
struct Expected {
    answers: Vec<Sample>,
    words: Vec<Words>,
}

#[derive(Deserialize)]
struct Sample {
    profile: String,
    id: String,
    file: Option<String>,
    body: Option<String>,
    http: Option<u16>,
    second: Option<String>,
    state: String,
    status: Option<String>,
    attempt: Option<u64>,
    name: Option<String>,
    group: Option<String>,
    error: Option<String>,
    created: Option<String>,
    started: Option<String>,
    finished: Option<String>,
}

#[derive(Deserialize)]
struct Words {
    profile: String,
    id: String,
    body: String,
    #[serde(flatten)]
    states: std::collections::BTreeMap<String, Vec<toml::Value>>,
}

fn samples() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/providers/samples")
}

fn expected() -> Expected {
    let text = std::fs::read_to_string(samples().join("expected.toml")).unwrap();
    toml::from_str(&text).unwrap()
}

/// A page of a list, and what it shows.
#[derive(Deserialize)]
struct Page {
    profile: String,
    #[serde(rename = "match")]
    parameters: ListParameters,
    link: Option<String>,
    body: String,
    #[serde(default)]
    full: bool,
    shows: Vec<String>,
    then: Option<String>,
}

#[derive(Deserialize)]
struct Pages {
    pages: Vec<Page>,
}

/// Reads a page, and requests the next one. Returns what is not as expected.
async fn differences(page: &Page) -> Vec<String> {
    let mut profile = builtin(&page.profile);
    if page.full {
        let list = Arc::make_mut(&mut profile).list.as_mut().unwrap();
        list.limit = u32::try_from(page.shows.len()).unwrap();
    }
    let answer = |base_url: &str| {
        let text = |text: &str| text.replace("BASE", base_url);
        let answer = ok(text(&page.body));
        match &page.link {
            Some(link) => answer.with(&format!("link: {}", text(link))),
            None => answer,
        }
    };
    let api = Scripted::start_with(answer).await;
    let client = client(profile, &api.base_url);
    let name = ProviderName::new(&page.profile).unwrap();
    let mut request = ListRequest {
        parameters: page.parameters.clone(),
        ..ListRequest::default()
    };
    let read = match client.list(&name, &request).await.result {
        Ok(read) => read,
        Err(error) => return vec![error.describe()],
    };
    let shown = |entry: &ListEntry| {
        let attempt = entry.attempt.map(|attempt| format!(" {attempt}"));
        let state = entry.status.state().as_str();
        format!(
            "{} {state}{}",
            entry.run_id.id(),
            attempt.unwrap_or_default()
        )
    };
    let shown: Vec<String> = read.entries.iter().map(shown).collect();
    let mut wrong = Vec::new();
    if shown != page.shows {
        wrong.push(format!("it shows {shown:?}, not {:?}", page.shows));
    }
    if read.next.is_some() != page.then.is_some() {
        wrong.push(format!(
            "the next page is {:?}, not {:?}",
            read.next, page.then
        ));
    }
    if let (Some(next), Some(then)) = (read.next, &page.then) {
        request.page = Some(next);
        if let Err(error) = client.list(&name, &request).await.result {
            wrong.push(format!("the next page: {}", error.describe()));
        }
        let last = api.requests().pop().unwrap();
        if !last.replace(' ', "").contains(then) {
            wrong.push(format!(
                "the request for the next page has no {then}: {last}"
            ));
        }
    }
    wrong
}

#[tokio::test]
async fn a_page_of_each_list_is_read_as_expected() {
    let text = std::fs::read_to_string(samples().join("pages.toml")).unwrap();
    let Pages { pages } = toml::from_str(&text).unwrap();
    let mut wrong = Vec::new();
    for page in &pages {
        let differences = differences(page).await;
        wrong.extend(
            differences
                .iter()
                .map(|what| format!("{}: {what}", page.profile)),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for name in profile::builtin_names() {
        let has_page = pages.iter().any(|page| page.profile == *name);
        assert_eq!(builtin(name).list.is_some(), has_page, "{name}");
    }
}

/// A second answer with which the outcome of the first stays.
const NOTHING_MORE: &str = r#"{"status":"idle","items":[]}"#;

#[tokio::test]
async fn each_sample_is_read_as_expected() {
    let mut wrong = Vec::new();
    for sample in expected().answers {
        let text = |file: &str| std::fs::read_to_string(samples().join(file)).unwrap();
        let body = sample.file.as_deref().map(text).or(sample.body);
        let second = match sample.second {
            Some(file) if file.ends_with(".json") => text(&file),
            Some(body) => body,
            None if sample.state == "not_found" => "{}".to_owned(),
            None => NOTHING_MORE.to_owned(),
        };
        let first = Canned(
            sample.http.unwrap_or(200),
            Vec::new(),
            body.unwrap_or_default(),
        );
        let what = format!("{} {} ({})", sample.profile, sample.id, first.2);
        let reply = poll(
            builtin(&sample.profile),
            &sample.id,
            vec![first, ok(second)],
        )
        .await;
        if state(&reply) != sample.state {
            wrong.push(format!(
                "{what}: {}, not {}: {reply:?}",
                state(&reply),
                sample.state
            ));
            continue;
        }
        let Ok(reply) = reply else { continue };
        let status = reply.status.as_str().to_owned();
        let details = reply.details;
        // To the millisecond, as they are written there.
        let time = |time: Option<jiff::Timestamp>| time.map(|time| format!("{:.3}", time));
        for (field, expected, found) in [
            ("status", sample.status, Some(status)),
            (
                "attempt",
                sample.attempt.map(|n| n.to_string()),
                details.attempt.map(|n| n.to_string()),
            ),
            ("name", sample.name, details.name),
            ("group", sample.group, details.group),
            ("error", sample.error, details.error_message),
            ("created", sample.created, time(details.created_at)),
            ("started", sample.started, time(details.started_at)),
            ("finished", sample.finished, time(details.completed_at)),
        ] {
            if expected.is_some() && expected != found {
                wrong.push(format!("{what}: {field} is {found:?}, not {expected:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn each_word_stands_for_its_state() {
    let mut wrong = Vec::new();
    for words in expected().words {
        let profile = builtin(&words.profile);
        for (state_name, words_of_state) in &words.states {
            for word in words_of_state {
                let word = match word {
                    toml::Value::String(word) => word.clone(),
                    toml::Value::Integer(number) => number.to_string(),
                    other => panic!("{other:?} is not a word"),
                };
                let body = words.body.replace("WORD", &word);
                let second = match &**state_name {
                    "not_found" => "{}",
                    _ => NOTHING_MORE,
                };
                let answers = vec![ok(body.clone()), ok(second)];
                let reply = poll(Arc::clone(&profile), &words.id, answers).await;
                if state(&reply) != *state_name {
                    wrong.push(format!(
                        "{}: {body}: {}, not {state_name}",
                        words.profile,
                        state(&reply)
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

const MINIMAL: &str = r#"
    title = "own"
    base_url = "https://api.example.com"
    auth = { header = "X-Api-Key", env = ["KEY"] }
    headers = { X-Version = "7" }
    id = "{org}/{run}"
    get = "/v1/{org}/runs/{run}?short=true"
    check_id = "/id"
    rules = [
      { when = { "/state" = "going" }, is = "running" },
      { when = { "/state" = "done" }, is = "succeeded" },
      { when = { "/state" = "broken" }, is = "failed" },
    ]
"#;

fn with(more: &str) -> Arc<Profile> {
    own(&format!("{MINIMAL}{more}"))
}

const GOING: &str = r#"{"id":"a:b","state":"going"}"#;
const DONE: &str = r#"{"id":"a:b","state":"done"}"#;
const BROKEN: &str = r#"{"id":"a:b","state":"broken"}"#;

#[tokio::test]
async fn a_request_has_the_parts_of_the_id_encoded_and_the_headers_of_the_profile() {
    let api = Scripted::start(vec![ok(GOING)]).await;
    let profile = with("");
    let client = client(Arc::clone(&profile), &format!("{}/base/", api.base_url));
    let reply = client.get_run(&run(&profile, "acme & co/a:b")).await;
    reply.result.unwrap();
    assert_eq!(reply.requests, 1);
    let request = &api.requests()[0];
    assert!(
        request.starts_with("get /base/v1/acme%20%26%20co/runs/a%3ab?short=true http/1.1\r\n"),
        "{request}"
    );
    for header in [
        "x-api-key: a-key-of-this-test",
        "x-version: 7",
        "accept: application/json",
    ] {
        assert!(request.contains(&format!("{header}\r\n")), "{request}");
    }
    assert!(!request.contains("authorization:"), "{request}");
    assert!(matches!(
        client.get_run(&run(&profile, "../a:b")).await.result,
        Err(ApiError::NotAnId(_))
    ));
    assert_eq!(api.requests().len(), 1);
}

#[tokio::test]
async fn redirects_are_followed_to_the_same_origin_only_and_three_at_most() {
    let to = |place: &str| Canned(301, vec![format!("location: {place}")], String::new());
    let api = Scripted::start(vec![to("/moved/1"), to("again?x=1"), ok(GOING)]).await;
    let profile = with("");
    let id = run(&profile, "a/a:b");
    let reply = client(Arc::clone(&profile), &api.base_url)
        .get_run(&id)
        .await;
    reply.result.unwrap();
    assert_eq!(reply.requests, 3);
    let requests = api.requests();
    assert!(requests[1].starts_with("get /moved/1 "), "{}", requests[1]);
    assert!(
        requests[2].starts_with("get /moved/again?x=1 "),
        "{}",
        requests[2]
    );
    assert!(requests.iter().all(|request| request.contains("x-api-key")));

    let elsewhere = Scripted::start(vec![ok(DONE)]).await;
    for target in [
        elsewhere.base_url.clone(),
        elsewhere.base_url.replace("127.0.0.1", "localhost"),
    ] {
        let error = poll(with(""), "a/a:b", vec![to(&target)])
            .await
            .unwrap_err();
        assert!(
            matches!(error, ApiError::Redirect { status: 301 }),
            "{error:?}"
        );
    }
    assert_eq!(elsewhere.requests().len(), 0);

    let api = Scripted::start(vec![to("/loop")]).await;
    let error = client(Arc::clone(&profile), &api.base_url)
        .get_run(&id)
        .await
        .result
        .unwrap_err();
    assert!(matches!(error, ApiError::Redirect { .. }), "{error:?}");
    assert_eq!(api.requests().len(), 4);
}

#[tokio::test]
async fn an_answer_that_has_not_changed_is_the_one_before() {
    let tagged = with("rate = { etag_free = true }\n");
    let unchanged = Canned(304, Vec::new(), String::new());
    let api = Scripted::start(vec![
        ok(GOING).with("etag: W/\"one\""),
        unchanged.clone(),
        ok(DONE),
        unchanged,
    ])
    .await;
    let client = client(Arc::clone(&tagged), &api.base_url);
    let id = run(&tagged, "a/a:b");
    for state in [RunState::Running, RunState::Running, RunState::Succeeded] {
        let reply = client.get_run(&id).await.result.unwrap();
        assert_eq!(reply.status.state(), state);
    }
    // The answer without a tag took the tag away, and so nothing is known that could be unchanged.
    let error = client.get_run(&id).await.result.unwrap_err();
    assert!(
        matches!(error, ApiError::Redirect { status: 304 }),
        "{error:?}"
    );
    let sent = api.requests();
    let tags: Vec<bool> = sent
        .iter()
        .map(|head| head.contains("if-none-match: w/\"one\""))
        .collect();
    assert_eq!(tags, [false, true, true, false]);

    let api = Scripted::start(vec![ok(GOING).with("etag: \"one\"")]).await;
    let plain = self::client(with(""), &api.base_url);
    for _ in 0..2 {
        plain.get_run(&id).await.result.unwrap();
    }
    assert!(!api.requests()[1].contains("if-none-match"));
}

const CONFIRM: &str = r#"
    confirm = { on = ["succeeded"], get = "/v1/{org}", rules = [
      { when = { "/state" = "asks" }, is = "waiting" },
    ], output = "/values" }
"#;

#[tokio::test]
async fn a_login_gives_a_token_that_is_used_until_it_is_refused() {
    let profile = own(r#"
        title = "own"
        base_url = "https://api.example.com"
        auth = { scheme = "bearer", env = ["T"], login = { post = "/auth/token", token = "/in/token" } }
        id = "{run}"
        get = "/{run}"
        rules = [{ when = { "/s" = "go" }, is = "running" }]
        "#);
    let going = ok(r#"{"s":"go"}"#);
    let refused = Canned(
        401,
        Vec::new(),
        r#"{"error":"pass-word-9 is old"}"#.to_owned(),
    );
    let token = |token: &str| {
        Canned(
            201,
            Vec::new(),
            format!(r#"{{"in":{{"token":"{token}"}}}}"#),
        )
    };
    let client_of = |base_url: &str| {
        let settings = ApiSettings {
            base_url: base_url.to_owned(),
            ..Settings::default().api
        };
        let credentials = Credentials {
            user: Some(Secret::value("ann")),
            password: Some(Secret::value("pass-word-9")),
            ..Credentials::default()
        };
        ApiClient::of_profile(Arc::clone(&profile), &settings, credentials).unwrap()
    };
    let id = run(&profile, "r");
    let api = Scripted::start(vec![
        token("tok_1"),
        going.clone(),
        going.clone(),
        refused.clone(),
        token("tok_2"),
        going,
    ])
    .await;
    let client = client_of(&api.base_url);
    for _ in 0..3 {
        client.get_run(&id).await.result.unwrap();
    }
    let requests = api.requests();
    let lines: Vec<&str> = requests
        .iter()
        .filter_map(|head| head.lines().next())
        .collect();
    let (login, get) = ("post /auth/token http/1.1", "get /r http/1.1");
    assert_eq!(lines, [login, get, get, get, login, get]);
    assert!(
        requests[1].contains("authorization: bearer tok_1\r\n"),
        "{}",
        requests[1]
    );
    assert!(
        requests[5].contains("authorization: bearer tok_2\r\n"),
        "{}",
        requests[5]
    );

    // A password that is refused is a refused key, and shows nowhere.
    let api = Scripted::start(vec![refused]).await;
    let error = client_of(&api.base_url)
        .get_run(&id)
        .await
        .result
        .unwrap_err();
    assert!(error.is_unauthorized(), "{error:?}");
    assert!(
        !error.describe().contains("pass-word-9"),
        "{}",
        error.describe()
    );
    for failure in [
        ok("{}"),
        ok("<html>"),
        Canned(404, Vec::new(), String::new()),
    ] {
        let api = Scripted::start(vec![failure]).await;
        let error = client_of(&api.base_url)
            .get_run(&id)
            .await
            .result
            .unwrap_err();
        assert!(!error.is_not_found(), "{error:?}");
    }
}

#[tokio::test]
async fn a_verdict_that_needs_a_second_request_is_given_on_both_answers_only() {
    let idle = ok(r#"{"state":"idle","values":{"x":1}}"#);
    let reply = reply(with(CONFIRM), "a/a:b", vec![ok(DONE), idle]).await;
    assert_eq!(reply.requests, 2);
    let poll = |second| poll(with(CONFIRM), "a/a:b", vec![ok(DONE), second]);
    let reply = reply.result.unwrap();
    assert_eq!(reply.status.state(), RunState::Succeeded);
    assert_eq!(reply.details.output.unwrap().get(), r#"{"x":1}"#);
    let reply = poll(ok(r#"{"state":"asks"}"#)).await.unwrap();
    assert_eq!(reply.status.state(), RunState::Waiting);
    assert_eq!(reply.status.as_str(), "done");
    for failure in [
        Canned(502, Vec::new(), String::new()),
        Canned(404, Vec::new(), String::new()),
        ok(""),
        ok("{}"),
        ok("<html>"),
        ok(r#"{"state":"idle","values":"#),
        ok(r#"{"state":"idle","state":"asks"}"#),
    ] {
        let body = failure.2.clone();
        let error = poll(failure).await.unwrap_err();
        assert!(!error.is_not_found(), "{body}: {error:?}");
    }
}

#[tokio::test]
async fn details_add_to_a_verdict_and_never_change_or_prevent_it() {
    let detail = r#"detail = { get = "/v1/{org}/log", error = "/why" }"#;
    let poll = |first: &str, second| poll(with(detail), "a/a:b", vec![ok(first), second]);
    let observed = poll(BROKEN, ok(r#"{"why":"out of memory","state":"done"}"#))
        .await
        .unwrap();
    assert_eq!(observed.status.state(), RunState::Failed);
    assert_eq!(
        observed.details.error_message.as_deref(),
        Some("out of memory")
    );
    for failure in [Canned(500, Vec::new(), String::new()), ok("{"), ok("{}")] {
        let reply = reply(with(detail), "a/a:b", vec![ok(BROKEN), failure]).await;
        assert_eq!(reply.result.unwrap().status.state(), RunState::Failed);
        assert_eq!(reply.requests, 2);
    }
    for first in [GOING, DONE] {
        let reply = reply(with(detail), "a/a:b", vec![ok(first), ok("{}")]).await;
        assert_eq!(reply.requests, 1);
    }
}

const EACH: &str = r#"
    each = { get = "/v1/{org}/jobs", items = "/jobs", name = "/name", rules = [
      { when = { "/s" = "wait" }, is = "waiting" },
      { when = { "/s" = "new" }, is = "pending" },
      { when = { "/s" = "go" }, is = "running" },
      { when = { "/s" = "ok" }, is = "succeeded" },
      { when = { "/s" = "bad" }, is = "failed" },
    ] }
"#;

#[tokio::test]
async fn a_run_of_parts_is_as_the_worst_and_not_final_before_all_are() {
    let jobs = |words: &[&str], more: &str| {
        let jobs: Vec<String> = words
            .iter()
            .enumerate()
            .map(|(n, word)| format!(r#"{{"name":"job {n}","s":"{word}"}}"#))
            .collect();
        ok(format!(r#"{{"jobs":[{}]{more}}}"#, jobs.join(",")))
    };
    for (second, state, error) in [
        (jobs(&[], ""), RunState::Pending, None),
        (jobs(&["new", "new"], ""), RunState::Pending, None),
        (jobs(&["new", "ok"], ""), RunState::Running, None),
        (jobs(&["bad", "go"], ""), RunState::Running, None),
        (jobs(&["bad", "wait", "go"], ""), RunState::Waiting, None),
        (
            jobs(&["ok", "bad", "bad"], ""),
            RunState::Failed,
            Some("failed: job 1, job 2"),
        ),
        (jobs(&["ok", "ok"], ""), RunState::Succeeded, None),
        (jobs(&["ok", "odd"], ""), RunState::Running, None),
        // The other pages are not read, so they may have one that is not final.
        (
            jobs(&["ok"], r#","next_page_token":"p2""#),
            RunState::Running,
            None,
        ),
        (
            jobs(&["ok"], r#","next_page_token":null"#),
            RunState::Succeeded,
            None,
        ),
        (
            jobs(&["ok"], "").with("link: </v1?page=2>; rel=\"next\""),
            RunState::Running,
            None,
        ),
    ] {
        let body = second.2.clone();
        let reply = poll(with(EACH), "a/a:b", vec![ok(GOING), second])
            .await
            .unwrap();
        assert_eq!(reply.status.state(), state, "{body}");
        assert_eq!(reply.details.error_message.as_deref(), error, "{body}");
    }
    for second in [
        "{}",
        r#"{"jobs":{}}"#,
        r#"{"jobs":[{"s":"ok"},{}]}"#,
        r#"{"jobs":[{"s":"ok"}"#,
    ] {
        let reply = poll(with(EACH), "a/a:b", vec![ok(GOING), ok(second)]).await;
        assert!(reply.is_err(), "{second}: {reply:?}");
    }
    // A run that failed before it had parts needs none.
    let reply = reply(with(EACH), "a/a:b", vec![ok(BROKEN), ok("{}")]).await;
    assert_eq!(reply.requests, 1);
    assert_eq!(reply.result.unwrap().status.state(), RunState::Failed);
}

#[tokio::test]
async fn a_run_that_was_moved_is_found_at_its_other_place() {
    let fallback = r#"fallback_get = "/old/{org}/{run}""#;
    let absent = |code| Canned(code, Vec::new(), String::new());
    for code in [404, 410] {
        let reply = reply(with(fallback), "a/a:b", vec![absent(code), ok(DONE)]).await;
        assert_eq!(reply.requests, 2);
        assert_eq!(reply.result.unwrap().status.state(), RunState::Succeeded);
    }
    for second in [absent(404), ok("{}"), ok("[]")] {
        let error = poll(with(fallback), "a/a:b", vec![absent(404), second])
            .await
            .unwrap_err();
        assert!(error.is_not_found(), "{error:?}");
    }
    // That it is not there follows from both answers only.
    let error = poll(with(fallback), "a/a:b", vec![absent(404), absent(502)])
        .await
        .unwrap_err();
    assert!(!error.is_not_found(), "{error:?}");
}

#[tokio::test]
async fn rules_of_status_codes_hold_for_answers_that_are_no_success() {
    let coded = own(r#"
        title = "own"
        base_url = "https://api.example.com"
        id = "{run}"
        get = "/{run}"
        rules = [
          { when = { "@http" = 202 }, is = "running" },
          { when = { "@http" = 200 }, is = "succeeded" },
          { when = { "@http" = 409, "/code" = "STOPPED" }, is = "canceled" },
          { when = { "@http" = [401, 403, 409, 429, 500, 503] }, is = "failed" },
        ]
        output = ""
        "#);
    for (code, body, expected) in [
        (202, "", "running"),
        (200, "plain text", "succeeded"),
        (409, r#"{"code":"STOPPED"}"#, "canceled"),
        (409, "<html>", "unusable"),
        (500, "{}", "failed"),
        (401, "{}", "401 X"),
        (403, "{}", "403 X"),
        (429, "{}", "429 X"),
        (503, "{}", "503 X"),
        (404, "{}", "not_found"),
    ] {
        let reply = poll(
            Arc::clone(&coded),
            "a",
            vec![Canned(code, Vec::new(), body.into())],
        )
        .await;
        let found = state(&reply);
        let fits = found == expected
            || expected
                .split(' ')
                .next()
                .is_some_and(|word| word.parse::<u16>().is_ok() && found.starts_with(word));
        // An answer that cannot be decided is its status code, and no verdict.
        let undecided = expected == "unusable" && found.starts_with("409");
        assert!(fits || undecided, "{code} {body}: {found}");
    }
    let reply = poll(coded, "a", vec![ok("plain \"text\"")]).await.unwrap();
    assert_eq!(reply.details.output.unwrap().get(), r#""plain \"text\"""#);
}

#[tokio::test]
async fn any_answer_may_request_a_pause() {
    let limited = with(r#"rate = { remaining = "ratelimit-left", reset = "ratelimit-reset" }"#);
    let pause = async |answer: Canned| {
        let reply = reply(Arc::clone(&limited), "a/a:b", vec![answer]).await;
        let of_error = match &reply.result {
            Ok(_) => None,
            Err(error) => {
                assert!(!error.is_unauthorized(), "{error:?}");
                error.retry_after()
            }
        };
        assert!(reply.pause.is_none() || of_error.is_none());
        reply.pause.or(of_error)
    };
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    assert_eq!(pause(ok(GOING).with("retry-after: 7")).await, seconds(7));
    let used_up = |answer: Canned| answer.with("ratelimit-left: 0").with("ratelimit-reset: 33");
    assert_eq!(pause(used_up(ok(GOING))).await, seconds(33));
    assert_eq!(pause(ok(GOING).with("ratelimit-reset: 33")).await, None);
    for code in [302, 403, 404, 410, 429, 500] {
        assert_eq!(
            pause(used_up(Canned(code, Vec::new(), String::new()))).await,
            seconds(33),
            "{code}"
        );
    }
    for unusable in ["{", "<html>", "{}", r#"{"id":"other","state":"done"}"#] {
        let reply = reply(Arc::clone(&limited), "a/a:b", vec![used_up(ok(unusable))]).await;
        assert!(reply.result.is_err(), "{unusable}: {reply:?}");
        assert_eq!(reply.pause, seconds(33), "{unusable}");
    }
}

#[tokio::test]
async fn second_requests_may_request_a_pause() {
    let slow = |answer: Canned| answer.with("retry-after: 7");
    let detail = r#"detail = { get = "/v1/{org}/log", error = "/why" }"#;
    let limited = slow(Canned(429, Vec::new(), String::new()));
    for (profile, first, second, is_seen) in [
        (detail, BROKEN, slow(ok("{}")), true),
        (detail, BROKEN, limited.clone(), true),
        (CONFIRM, DONE, slow(ok(r#"{"state":"idle"}"#)), true),
        (CONFIRM, DONE, limited, false),
        (
            CONFIRM,
            DONE,
            slow(Canned(404, Vec::new(), String::new())),
            false,
        ),
    ] {
        let reply = reply(with(profile), "a/a:b", vec![ok(first), second]).await;
        let of_error = reply.result.as_ref().err().and_then(ApiError::retry_after);
        assert_eq!(
            reply.pause.or(of_error),
            Some(Duration::from_secs(7)),
            "{reply:?}"
        );
        assert_eq!(
            (reply.result.is_ok(), reply.requests),
            (is_seen, 2),
            "{reply:?}"
        );
    }
}

#[tokio::test]
async fn an_answer_that_ends_too_early_decides_nothing() {
    // The rule that comes first looks at what was cut off, so that no other one may hold.
    let ordered = own(r#"
        title = "own"
        base_url = "https://api.example.com"
        id = "{run}"
        get = "/{run}"
        rules = [
          { when = { "/state" = "ended", "/canceled_at" = { present = true } }, is = "canceled" },
          { when = { "/state" = "ended" }, is = "succeeded" },
        ]
        "#);
    let api = Scripted::start(vec![ok(r#"{"state":"ended","#)]).await;
    let client = client(Arc::clone(&ordered), &api.base_url);
    for _ in 0..3 {
        let error = client
            .get_run(&run(&ordered, "a"))
            .await
            .result
            .unwrap_err();
        assert!(matches!(error, ApiError::Malformed(_)), "{error:?}");
    }
}

#[tokio::test]
async fn uuids_are_the_same_whatever_their_case() {
    let profile = own(r#"
        title = "own"
        base_url = "https://api.example.com"
        id = "{run}"
        get = "/{run}"
        check_id = "/id"
        rules = [{ when = { "/s" = "done" }, is = "succeeded" }]
        "#);
    for (id, answer, same) in [
        (
            "01A21BAD-d42f-4181-9956-ff8b4e33711d",
            r#""01a21bad-D42F-4181-9956-FF8B4E33711D""#,
            true,
        ),
        ("Run", r#""run""#, false),
        ("7", "7", true),
        ("7", r#""7""#, true),
        ("7", "8", false),
        ("7", "null", false),
    ] {
        let body = format!(r#"{{"id":{answer},"s":"done"}}"#);
        let reply = poll(Arc::clone(&profile), id, vec![ok(body)]).await;
        assert_eq!(reply.is_ok(), same, "{id} {answer}");
    }
}
