//! The API client against a real server that misbehaves.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use runwatch::config::{ApiSettings, Secret, Settings};
use runwatch::domain::{Observation, RunRef, RunState, Status};
use runwatch::providers::{ApiClient, ApiError, Provider as _};
use runwatch::simulator::{Fault, Receiver, Script, Simulator};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::{Program, api};

fn id() -> RunRef {
    RunRef::new("run_1").unwrap()
}

fn settings(simulator: &Simulator) -> ApiSettings {
    let mut settings = Settings::default().api;
    settings.base_url = simulator.base_url();
    settings.key = Some(Secret::value(simulator.api_key()));
    settings
}

/// Asks once with settings of its own.
async fn ask_with(
    simulator: &Simulator,
    adjust: impl FnOnce(&mut ApiSettings),
) -> Result<Observation, ApiError> {
    let mut settings = settings(simulator);
    adjust(&mut settings);
    poll(&settings).await
}

/// What one poll by a client of its own observes.
async fn poll(settings: &ApiSettings) -> Result<Observation, ApiError> {
    let client = ApiClient::new(settings).unwrap();
    client.get_run(&id()).await.result
}

/// Asks once for a run whose first answer is `fault`.
async fn meet(fault: Fault) -> Result<Observation, ApiError> {
    // Short where the time is what is tested, and otherwise no matter how busy the machine is.
    let endless =
        matches!(fault, Fault::Hang) || matches!(fault, Fault::Drip(pause) if !pause.is_zero());
    let limit = Duration::from_millis(if endless { 300 } else { 60_000 });
    let simulator = api([("run_1", Script::runs_forever().fault_on(1, fault))]).await;
    ask_with(&simulator, |settings| {
        settings.request_timeout = limit;
        settings.max_response_bytes = 64 * 1024;
    })
    .await
}

fn refused(result: Result<Observation, ApiError>) -> ApiError {
    match result {
        Err(error) => error,
        Ok(reply) => panic!("taken for an answer: {reply:?}"),
    }
}

#[tokio::test]
async fn a_run_that_is_gone_is_not_found_after_the_grace_period() {
    let gone = (2..200).fold(Script::runs_forever(), |script, poll| {
        script.fault_on(poll, Fault::status(410))
    });
    let simulator = api([("run_1", gone)]).await;
    let program = Program::with(&simulator)
        .configured("[watch]\nnot_found_grace = \"500ms\"\nevents = \"off\"\n");
    let ended = program
        .run(&[
            "wait",
            "run_1",
            "--timeout",
            "5m",
            "--interval",
            "50ms",
            "--json",
        ])
        .await;
    assert_eq!(ended.code, Some(5), "{ended:?}");
    let line = &ended.json_lines()[0];
    assert_eq!(line["verdict"], "not_found");
    assert!(
        line["data"]["reason"]
            .as_str()
            .unwrap()
            .to_lowercase()
            .contains("gone"),
        "{line}"
    );
}

#[tokio::test]
async fn each_fault_is_an_error_that_says_what_it_is() {
    for (fault, expected) in [
        (Fault::status(400), "400 Bad Request"),
        (Fault::status(401), "401 Unauthorized"),
        (Fault::status(403), "403 Forbidden"),
        (Fault::status(404), "404 Not Found"),
        (Fault::status(405), "405 Method Not Allowed"),
        (Fault::status(429), "429 Too Many Requests"),
        (Fault::status(500), "500 Internal Server Error"),
        (Fault::status(502), "502 Bad Gateway"),
        (Fault::status(503), "503 Service Unavailable"),
        (Fault::status(504), "504 Gateway Timeout"),
        (Fault::status(599), "599"),
        (Fault::Html, "it is not JSON"),
        (Fault::Empty, "it is empty"),
        (Fault::HalfBody, "the answer broke off"),
        (Fault::Reset, "the request failed"),
        (Fault::Hang, "no answer in time"),
        (Fault::Drip(Duration::from_millis(100)), "no answer in time"),
        (Fault::Endless, "see max_response_bytes"),
        (Fault::Oversize(64 * 1024 + 1), "it is empty"),
        (Fault::GzipBomb(4 * 1024 * 1024), "see max_response_bytes"),
        (Fault::OtherRun, "another run"),
        (Fault::WrongTypes, "no status that is a text"),
        (
            Fault::Redirect("http://127.0.0.1:1/".to_owned()),
            "redirects are not followed",
        ),
    ] {
        let shown = format!("{fault:?}");
        let error = refused(meet(fault).await);
        let described = error.describe();
        assert!(described.contains(expected), "{shown}: {described}");
        assert!(
            described.lines().count() == 1 && described.chars().count() <= 300,
            "{shown}: {described}"
        );
        assert_eq!(
            error.is_unauthorized(),
            matches!(expected, "401 Unauthorized" | "403 Forbidden"),
            "{shown}"
        );
        assert_eq!(error.is_not_found(), expected == "404 Not Found", "{shown}");
        assert_eq!(error.retry_after(), None, "{shown}");
        assert!(
            !format!("{described}{error:?}{error:#}").contains("simulated-key"),
            "{shown}: {error:?}"
        );
    }
}

#[tokio::test]
async fn what_is_strange_but_usable_is_used() {
    for fault in [Fault::Drip(Duration::ZERO), Fault::DeeplyNested(10_000)] {
        let shown = format!("{fault:?}");
        let reply = meet(fault)
            .await
            .unwrap_or_else(|error| panic!("{shown}: {}", error.describe()));
        assert_eq!(reply.status, Status::from(RunState::Running), "{shown}");
    }
    for envelope in [false, true] {
        let script = Script::succeeds()
            .output(json!({"score": 1.0}))
            .envelope(envelope);
        let simulator = api([("run_1", script)]).await;
        let reply = ask_with(&simulator, |_| ()).await.unwrap();
        assert_eq!(reply.status, Status::from(RunState::Succeeded));
        assert_eq!(reply.details.output.unwrap().get(), r#"{"score":1.0}"#);
    }
}

#[tokio::test]
async fn an_answer_that_always_breaks_off_counts_the_second_time_in_a_row() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = tokio::task::JoinSet::new();
    server.spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(connection.read_u8().await.unwrap());
            }
            let body = r#"{"id":"run_1","status":"succeeded","output":{"text":"#;
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{body}");
            connection.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let mut settings = Settings::default().api;
    settings.base_url = format!("http://{address}");
    settings.key = Some(Secret::value("simulated-key".to_owned()));
    let client = ApiClient::new(&settings).unwrap();
    for _ in 0..2 {
        let error = client.get_run(&id()).await.result.map(|_| ()).unwrap_err();
        assert!(
            error.describe().contains("broke off"),
            "{}",
            error.describe()
        );
        let reply = client.get_run(&id()).await.result.unwrap();
        assert_eq!(reply.status, Status::from(RunState::Succeeded));
        assert_eq!(reply.details.left_out, ["output"]);
    }
}

#[tokio::test]
async fn an_output_that_is_too_large_is_left_out_of_an_answer() {
    for (bytes, left_out) in [(60 * 1024, false), (100 * 1024, true), (400 * 1024, true)] {
        let script = Script::succeeds().output(json!("x".repeat(bytes)));
        let simulator = api([("run_1", script)]).await;
        let reply = ask_with(&simulator, |settings| {
            settings.max_response_bytes = 64 * 1024
        })
        .await
        .unwrap();
        assert_eq!(reply.status, Status::from(RunState::Succeeded));
        let details = reply.details;
        assert_eq!(
            (details.output.is_none(), details.left_out.len()),
            (left_out, usize::from(left_out)),
            "{bytes}"
        );
        assert!(details.completed_at.is_some());
    }
}

#[tokio::test]
async fn pauses_are_read_in_every_form_and_never_longer_than_an_hour() {
    let now = SystemTime::now();
    let date = |ahead: u64| httpdate::fmt_http_date(now + Duration::from_secs(ahead));
    let unix = |ahead: u64| {
        (now.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs()
            + ahead)
            .to_string()
    };
    for (code, header, value, seconds) in [
        (429, "retry-after", "120".to_owned(), Some(120)),
        (503, "retry-after", "120".to_owned(), Some(120)),
        (429, "retry-after", date(120), Some(120)),
        (429, "x-ratelimit-reset", unix(120), Some(120)),
        (429, "retry-after", "999999999".to_owned(), Some(3600)),
        (
            429,
            "retry-after",
            "99999999999999999999999".to_owned(),
            None,
        ),
        (429, "retry-after", "0".to_owned(), None),
        (429, "retry-after", "-5".to_owned(), None),
        (429, "retry-after", "soon".to_owned(), None),
        (
            429,
            "retry-after",
            "Mon, 15 Jan 2024 10:51:00 GMT".to_owned(),
            None,
        ),
        (429, "x-ratelimit-reset", "0".to_owned(), None),
        // What is too small for a Unix time of today is a number of seconds.
        (429, "x-ratelimit-reset", "17".to_owned(), Some(17)),
        // Whatever the answer is: a gateway knows how long it takes, too.
        (502, "retry-after", "120".to_owned(), Some(120)),
    ] {
        let error = refused(meet(Fault::status(code).with_header(header, &value)).await);
        let pause = error.retry_after().map(|pause| pause.as_secs());
        // Dates have whole seconds, and time goes on.
        let fits = match (pause, seconds) {
            (Some(pause), Some(seconds)) => pause <= seconds && pause + 5 >= seconds,
            (pause, seconds) => pause == seconds,
        };
        assert!(fits, "{code} {header}: {value}: {pause:?}");
    }
}

#[tokio::test]
async fn a_redirect_does_not_take_the_key_along() {
    let elsewhere = Receiver::start([]).await.unwrap();
    for target in [elsewhere.url(), "//127.0.0.1/".to_owned()] {
        let error = refused(meet(Fault::Redirect(target)).await);
        assert!(
            error.describe().contains("302 Found"),
            "{}",
            error.describe()
        );
    }
    assert_eq!(elsewhere.requests().len(), 0);
}

#[tokio::test]
async fn requests_carry_the_key_and_the_name_of_the_program() {
    let simulator = api([("run_1", Script::runs_forever())]).await;
    ask_with(&simulator, |_| ()).await.unwrap();
    let requests = simulator.requests();
    assert_eq!(
        (requests.len(), requests[0].path.as_str()),
        (1, "/v1/runs/run_1")
    );
    assert_eq!(
        requests[0].headers["authorization"],
        format!("Bearer {}", simulator.api_key())
    );
    assert_eq!(
        requests[0].headers["user-agent"],
        concat!("runwatch/", env!("CARGO_PKG_VERSION"))
    );
}

#[tokio::test]
async fn the_key_file_is_read_again_after_a_refusal() {
    let simulator = api([("run_1", Script::runs_forever())]).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    std::fs::write(&file, "an-old-key\n").unwrap();
    let mut settings = settings(&simulator);
    settings.key = Some(Secret::File(file.clone()));
    let client = ApiClient::new(&settings).unwrap();
    assert!(refused(client.get_run(&id()).await.result).is_unauthorized());
    std::fs::write(&file, format!("{}\n", simulator.api_key())).unwrap();
    client
        .get_run(&id())
        .await
        .result
        .expect("the new key is used at once");

    let broken: [(&dyn Fn(), &str); 3] = [
        (
            &|| std::fs::write(&file, "two words").unwrap(),
            "it has spaces",
        ),
        (&|| std::fs::write(&file, "").unwrap(), "empty"),
        (&|| std::fs::remove_file(&file).unwrap(), "No such file"),
    ];
    for (break_it, expected) in broken {
        break_it();
        let error = refused(poll(&settings).await);
        assert!(error.is_unauthorized(), "{}", error.describe());
        assert!(error.describe().contains(expected), "{}", error.describe());
        assert!(
            !error.describe().contains("two words"),
            "{}",
            error.describe()
        );
    }
    settings.key = None;
    let error = refused(poll(&settings).await);
    assert!(
        error.is_unauthorized() && error.describe().contains("no API key"),
        "{}",
        error.describe()
    );
    let keys: Vec<_> = simulator
        .requests()
        .iter()
        .map(|request| {
            request.headers["authorization"]
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(
        keys.len(),
        2,
        "no request without a key that can be sent: {keys:?}"
    );
}

#[tokio::test]
async fn an_unreachable_server_is_distinguished_from_an_unknown_name() {
    let simulator = api([]).await;
    // It refuses connections as long as it is held: no other test gets its port.
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
        .unwrap();
    let port = held.local_addr().unwrap();
    let closed = refused(
        ask_with(&simulator, |settings| {
            settings.base_url = format!("http://{port}")
        })
        .await,
    );
    assert!(
        closed.describe().contains("no connection") && closed.describe().contains("refused"),
        "{closed:?}"
    );
    // A label has at most 63 octets (RFC 1035, section 2.3.4): no resolver sends a query for a longer one, so that the
    // test does not depend on the machine's.
    let label = "a".repeat(64);
    let nameless =
        |settings: &mut ApiSettings| settings.base_url = format!("http://{label}.invalid");
    let nameless = refused(ask_with(&simulator, nameless).await);
    assert!(
        nameless.describe().contains("no connection"),
        "{}",
        nameless.describe()
    );
    assert_ne!(closed.describe(), nameless.describe());
}

#[tokio::test]
async fn a_proxy_is_used_unless_it_must_not_be() {
    let simulator = api([("run_1", Script::succeeds())]).await;
    // It answers every request itself: what it gets is what would have been passed on.
    let proxy = Receiver::start((0..100).map(|_| Fault::Html))
        .await
        .unwrap();
    let proxy_url = proxy
        .url()
        .replace("/hook", "")
        .replace("http://", "http://user:proxy-password@");
    // Only a proxy can reach a name that is reserved for tests (RFC 6761).
    let elsewhere = Program::with(&simulator).set("RUNWATCH_API__BASE_URL", "http://api.test");
    let through = elsewhere.set("HTTP_PROXY", &proxy_url);
    let ended = through
        .run(&[
            "wait",
            "run_1",
            "--timeout",
            "300ms",
            "--log-level",
            "trace",
        ])
        .await;
    assert_eq!(ended.code, Some(6), "{ended:?}");
    let requests = proxy.requests();
    assert_eq!(
        (requests[0].path.as_str(), simulator.requests().len()),
        ("/v1/runs/run_1", 0)
    );
    assert!(
        requests[0].headers.contains_key("proxy-authorization"),
        "{:?}",
        requests[0].headers
    );
    assert!(!ended.stderr.contains("proxy-password"), "{ended:?}");
    let passed_on = proxy.requests().len();
    let beside = through
        .set("NO_PROXY", "api.test")
        .run(&["wait", "run_1", "--timeout", "300ms"])
        .await;
    assert_eq!(beside.code, Some(6), "{beside:?}");
    // What runs on this machine is reached without a proxy, whatever the environment says.
    let local = Program::with(&simulator).set("HTTP_PROXY", &proxy_url);
    assert_eq!(local.run(&["wait", "run_1"]).await.code, Some(0));
    assert_eq!(proxy.requests().len(), passed_on);
}

#[tokio::test]
async fn a_key_that_the_api_repeats_is_not_shown() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let base_url = format!("http://{}", listener.local_addr().unwrap());
    let key = "key_that_the_api_repeats";
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _head = stream.read(&mut [0; 4096]).await.unwrap();
        let padding = "x".repeat(200);
        let body =
            json!({"error": {"message": format!("Incorrect API key provided: {key}. {padding} {key}")}}).to_string();
        let answer = format!("HTTP/1.1 401 Unauthorized\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    let mut settings = Settings::default().api;
    settings.base_url = base_url;
    settings.key = Some(Secret::value(key));
    let error = refused(poll(&settings).await);
    let shown = format!("{} {error:?}", error.describe());
    assert!(
        shown.contains("Incorrect API key provided: [redacted]"),
        "{shown}"
    );
    assert!(!shown.contains("key_that"), "{shown}");
}
