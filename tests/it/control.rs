//! The control interface as a program meets it: every route over the Unix socket and over TCP, with right
//! and wrong input.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use reqwest::header::HeaderMap;
use runwatch::domain::RunRef;
use runwatch::simulator::{Fault, Receiver, Script, Simulator};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::process::Child;

use crate::daemon::{
    add, kill, listening, program, socket, start, stop, stop_expecting, text, verdict,
};
use crate::support::{
    PATIENCE, Program, api, eventually, finish, http_client, received, send_signal, until,
};

const TOKEN: &str = "a-token-for-tests";

/// A way to the daemon.
struct Door {
    http: reqwest::Client,
    base: String,
    token: Option<&'static str>,
}

/// What came back.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// That it is a refusal, as RFC 9457 has it, with such a reason.
    fn refuses(&self, status: u16, reason: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(
            self.headers["content-type"], "application/problem+json",
            "{self:?}"
        );
        let problem = self.json();
        assert_eq!(problem["status"], status, "{self:?}");
        assert!(
            problem["detail"].as_str().unwrap().contains(reason),
            "{reason}: {self:?}"
        );
    }
}

impl Door {
    fn unix(program: &Program) -> Self {
        let http = http_client()
            .unix_socket(socket(program))
            .no_proxy()
            .build()
            .unwrap();
        Self {
            http,
            base: "http://localhost".to_owned(),
            token: None,
        }
    }

    fn tcp(address: &str) -> Self {
        let http = http_client().no_proxy().build().unwrap();
        Self {
            http,
            base: format!("http://{address}"),
            token: Some(TOKEN),
        }
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> reqwest::Response {
        let mut request = self
            .http
            .request(method.parse().unwrap(), format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = self.token {
            request = request.bearer_auth(token);
        }
        if !body.is_empty() {
            request = request.body(body.to_owned());
        }
        tokio::time::timeout(PATIENCE, request.send())
            .await
            .expect("an answer")
            .expect("an answer")
    }

    async fn ask_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let response = self.send(method, path, headers, body).await;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Answer {
            status,
            headers,
            text: text(response).await,
        }
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        self.ask_with(method, path, &[], body).await
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.ask("GET", path, "").await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        assert_eq!(answer.headers["content-type"], "application/json", "{path}");
        answer.json()
    }

    /// Adds a run and returns its watch.
    async fn watch(&self, run: &str) -> Value {
        let answer = self
            .ask("POST", "/v1/watches", &json!({ "run_id": run }).to_string())
            .await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.json()
    }

    /// Asks until `path` says what is wanted.
    async fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let asking = async {
            loop {
                let answer = self.get(path).await;
                if wanted(&answer) {
                    return answer;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, asking)
            .await
            .unwrap_or_else(|_| panic!("{path}"))
    }
}

/// A daemon that listens on TCP too, with a token, and both ways to it.
async fn both_doors(simulator: &Simulator, receiver: &Receiver) -> (Program, Child, [Door; 2]) {
    let program = program(simulator, receiver, "").with_file("token", TOKEN);
    let token = program.beside_config("token");
    let program = program
        .set("RUNWATCH_CONTROL__LISTEN", "127.0.0.1:0")
        .set("RUNWATCH_CONTROL__TOKEN_FILE", token.to_str().unwrap());
    let (daemon, address) = listening(&program).await;
    let doors = [Door::unix(&program), Door::tcp(&address)];
    (program, daemon, doors)
}

/// Sends these bytes and returns all that comes back until the daemon ends the connection.
async fn raw(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &[u8]) -> String {
    let exchange = async {
        // The daemon may end the connection before it has read everything.
        let _sent = stream.write_all(request).await;
        let mut answer = Vec::new();
        let _ended = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    };
    tokio::time::timeout(PATIENCE, exchange)
        .await
        .expect("the connection ends")
}

fn documented(document: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let methods = |item: &Value| {
        item.as_object()
            .unwrap()
            .keys()
            .map(|method| method.to_uppercase())
            .collect()
    };
    document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(path, item)| (path.clone(), methods(item)))
        .collect()
}

#[tokio::test]
async fn the_document_is_of_the_routes_that_are_served() {
    let simulator = api([]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let (_program, daemon, doors) = both_doors(&simulator, &receiver).await;
    let document = doors[0].get("/v1/openapi.json").await;
    assert_eq!(document, doors[1].get("/v1/openapi.json").await);
    assert_eq!(
        (&document["openapi"], &document["info"]["version"]),
        (&json!("3.1.0"), &json!(env!("CARGO_PKG_VERSION")))
    );
    let routes = documented(&document);

    // docs/control-api.md has the same routes, several in one row where they belong together.
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/control-api.md"))
        .unwrap();
    let in_text: BTreeSet<String> = text
        .lines()
        .filter(|line| {
            line.starts_with("| `GET /")
                || line.starts_with("| `POST /")
                || line.starts_with("| `DELETE /")
        })
        .flat_map(|line| {
            line.split('|')
                .nth(1)
                .unwrap()
                .split(',')
                .map(|route| route.trim().trim_matches('`').to_owned())
        })
        .collect();
    let in_document: BTreeSet<String> = routes
        .iter()
        .flat_map(|(path, methods)| methods.iter().map(move |method| format!("{method} {path}")))
        .collect();
    assert_eq!(in_text, in_document);

    for (path, methods) in &routes {
        let filled = path.replace("{run_id}", "run_1").replace("{id}", "msg_1");
        let refused = doors[0].ask("PATCH", &filled, "").await;
        refused.refuses(405, "Allow");
        let mut expected = methods.clone();
        if methods.contains("GET") {
            expected.insert("HEAD".to_owned());
        }
        let allowed: BTreeSet<String> = refused.headers["allow"]
            .to_str()
            .unwrap()
            .split(',')
            .map(|method| method.trim().to_owned())
            .collect();
        assert_eq!(allowed, expected, "{path}");
        for (method, operation) in document["paths"][path].as_object().unwrap() {
            let (method, open) = (method.to_uppercase(), operation["security"] == json!([]));
            let keyless = Door {
                token: None,
                ..Door::tcp(doors[1].base.trim_start_matches("http://"))
            };
            let answer = keyless.send(&method, &filled, &[], "").await;
            assert_eq!(answer.status() == 401, !open, "{method} {path}: {answer:?}");
            let answer = doors[0].send(&method, &filled, &[], "").await;
            let status = answer.status().as_str().to_owned();
            assert!(
                operation["responses"].get(&status).is_some(),
                "{method} {path}: {answer:?}"
            );
        }
    }
    for path in [
        "/v1",
        "/v1/",
        "/v1/watches/",
        "/v1/watches/run_1/",
        "/v1/watches/a/b",
        "/v1/deliveries/msg_1",
        "/docs",
    ] {
        doors[0]
            .ask("GET", path, "")
            .await
            .refuses(404, "no such route");
    }
    // What is referred to is there.
    let text = document.to_string();
    for reference in text
        .split("\"$ref\":\"#")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap())
    {
        assert!(document.pointer(reference).is_some(), "{reference}");
    }
    stop(daemon).await;
}

#[tokio::test]
async fn polling_shows_the_budget_and_the_reason_of_a_pause() {
    let pause = Fault::status(429).with_retry_after("600");
    let simulator = api([("run_1", Script::runs_forever().fault_on(1, pause))]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let (program, daemon, doors) = both_doors(&simulator, &receiver).await;
    let calm = doors[1].get("/v1/polling").await["providers"][0].clone();
    assert_eq!(
        (
            &calm["watches"],
            &calm["requests_last_minute"],
            &calm["outage"]
        ),
        (&json!(0), &json!(0), &json!(null)),
        "{calm}"
    );
    doors[0].watch("run_1").await;
    let paused = until("a pause", async || {
        let polling = doors[0].get("/v1/polling").await["providers"][0].clone();
        (polling["outage"] == "rate_limited").then_some(polling)
    })
    .await;
    assert_eq!(
        (&paused["watches"], &paused["reached"]),
        (&json!(1), &json!(true)),
        "{paused}"
    );
    assert!(
        paused["requests_last_minute"].as_u64().unwrap() >= 1,
        "{paused}"
    );
    let message = paused["outage_message"].as_str().unwrap();
    assert!(message.starts_with("429"), "{paused}");
    doors[0]
        .ask("GET", "/v1/polling?limit=1", "")
        .await
        .refuses(400, "limit");
    // The commands show when the next request may go out, and not that the watch is due.
    let list = program.run(&["list"]).await;
    assert!(list.stdout.contains("in 10 min"), "{list:?}");
    assert!(list.stderr.contains(" req/min"), "{list:?}");
    let show = program.run(&["show", "run_1"]).await;
    assert!(show.stdout.contains("next poll in 10 min"), "{show:?}");
    stop(daemon).await;
}

#[tokio::test]
async fn lists_come_in_pages_and_only_their_own_cursors_count() {
    let runs: Vec<String> = (1..=5).map(|n| format!("run_{n}")).collect();
    let simulator = api(runs.iter().map(|run| (run.as_str(), Script::canceled()))).await;
    let receiver = Receiver::start([]).await.unwrap();
    let (program, daemon, doors) = both_doors(&simulator, &receiver).await;
    for run in &runs {
        doors[0].watch(run).await;
    }
    for run in &runs {
        verdict(&program, run).await;
    }
    for door in &doors {
        for (path, list, key) in [
            ("/v1/watches?state=finished&", "watches", "run_id"),
            ("/v1/watches?verdict=canceled&", "watches", "run_id"),
            ("/v1/deliveries?sink=hook&", "deliveries", "run_id"),
        ] {
            let (mut seen, mut sizes, mut cursor) = (Vec::new(), Vec::new(), None::<String>);
            loop {
                let after = cursor
                    .map(|cursor| format!("&cursor={cursor}"))
                    .unwrap_or_default();
                let page = door.get(&format!("{path}limit=2{after}")).await;
                let items = page[list].as_array().unwrap();
                sizes.push(items.len());
                seen.extend(
                    items
                        .iter()
                        .map(|item| item[key].as_str().unwrap().to_owned()),
                );
                cursor = page["next_cursor"].as_str().map(ToOwned::to_owned);
                if cursor.is_none() {
                    break;
                }
            }
            let all: BTreeSet<_> = seen.iter().cloned().collect();
            assert_eq!((sizes, all.len()), (vec![2, 2, 1], 5), "{path}: {seen:?}");
            if list == "watches" {
                assert_eq!(seen, runs, "the oldest first");
            }
        }
        let of_watches = door.get("/v1/watches?limit=1").await["next_cursor"]
            .as_str()
            .unwrap()
            .to_owned();
        let of_deliveries = door.get("/v1/deliveries?limit=1").await["next_cursor"]
            .as_str()
            .unwrap()
            .to_owned();
        // The place of a cursor stays, whatever else the list asks for.
        let rest = door
            .get(&format!("/v1/watches?verdict=canceled&cursor={of_watches}"))
            .await;
        assert_eq!(rest["watches"].as_array().unwrap().len(), 4, "{rest}");
        for path in [
            format!("/v1/watches?cursor={of_deliveries}"),
            format!("/v1/deliveries?cursor={of_watches}"),
            "/v1/watches?cursor=".to_owned(),
            "/v1/watches?cursor=1.a%2Fb".to_owned(),
            "/v1/watches?cursor=99999999999999999999.run_1".to_owned(),
            "/v1/watches?cursor=x.run_1".to_owned(),
            "/v1/deliveries?cursor=msg_".to_owned(),
        ] {
            door.ask("GET", &path, "").await.refuses(400, "next_cursor");
        }
        for (path, reason) in [
            ("/v1/watches?limit=1001", "1 to 1000"),
            ("/v1/watches?limit=-1", "1 to 1000"),
            ("/v1/watches?limit=ten", "1 to 1000"),
            ("/v1/deliveries?limit=0", "1 to 1000"),
            ("/v1/watches?limit=1&limit=2", "more than once"),
            ("/v1/watches?state=active&state=finished", "more than once"),
            ("/v1/watches?label=%20=x", "label"),
            ("/v1/deliveries?sink=a%20b", "sink"),
            ("/v1/deliveries?verdict=failed", "no parameter"),
            ("/v1/events?after=1", "no parameter"),
            ("/v1/watches/run_1?state=active", "no parameter"),
        ] {
            door.ask("GET", path, "").await.refuses(400, reason);
        }
        // Both at once hold for no watch.
        let none = door.get("/v1/watches?label=team=a&label=team=b").await;
        assert_eq!(none["watches"], json!([]));
    }
    stop(daemon).await;
}

#[tokio::test]
async fn lists_begin_where_their_order_says_and_go_on_there() {
    let runs: Vec<String> = (1..=5).map(|n| format!("run_{n}")).collect();
    let simulator = api([]).await;
    let script = |run: &str, script| simulator.add_run(&RunRef::new(run).unwrap(), script);
    let receiver = Receiver::start([]).await.unwrap();
    let (program, daemon, doors) = both_doors(&simulator, &receiver).await;
    let door = &doors[0];
    for run in &runs {
        script(run, Script::runs_forever());
        door.watch(run).await;
    }
    // They end in another order than they were added in.
    let ends = ["run_4", "run_1", "run_5", "run_2"];
    for run in ends {
        script(run, Script::canceled());
        verdict(&program, run).await;
    }
    // Each page goes on behind the one before.
    let all = async |path: &str, list: &str| {
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = door.get(&format!("{path}&limit=2{cursor}")).await;
            let items = page[list].as_array().unwrap().iter();
            seen.extend(items.map(|item| item["run_id"].as_str().unwrap().to_owned()));
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return seen,
            }
        }
    };
    for (query, expected) in [
        (
            "order=oldest",
            &["run_1", "run_2", "run_3", "run_4", "run_5"][..],
        ),
        (
            "order=newest",
            &["run_5", "run_4", "run_3", "run_2", "run_1"],
        ),
        ("order=newest&state=active", &["run_3"]),
        (
            "order=newest&state=finished",
            &["run_5", "run_4", "run_2", "run_1"],
        ),
        (
            "order=newest&verdict=canceled",
            &["run_5", "run_4", "run_2", "run_1"],
        ),
        ("order=ended", &["run_2", "run_5", "run_1", "run_4"]),
        (
            "order=ended&state=finished",
            &["run_2", "run_5", "run_1", "run_4"],
        ),
        (
            "order=ended&verdict=canceled",
            &["run_2", "run_5", "run_1", "run_4"],
        ),
        ("order=ended&verdict=failed", &[]),
        ("order=ended&state=active", &[]),
    ] {
        assert_eq!(
            all(&format!("/v1/watches?{query}"), "watches").await,
            expected,
            "{query}"
        );
    }
    for (query, expected) in [
        ("order=oldest", ends),
        ("order=newest", ["run_2", "run_5", "run_1", "run_4"]),
        (
            "order=newest&sink=hook",
            ["run_2", "run_5", "run_1", "run_4"],
        ),
    ] {
        assert_eq!(
            all(&format!("/v1/deliveries?{query}"), "deliveries").await,
            expected,
            "{query}"
        );
    }
    door.ask("GET", "/v1/watches?order=best", "")
        .await
        .refuses(400, "oldest, newest or ended");
    door.ask("GET", "/v1/deliveries?order=ended", "")
        .await
        .refuses(400, "oldest or newest");
    stop(daemon).await;
}

#[tokio::test]
async fn the_list_of_sinks_has_what_they_get_and_no_secrets() {
    let simulator = api([("run_1", Script::succeeds()), ("run_2", Script::succeeds())]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let more = "[sinks.odd]\ntype = \"command\"\nargv = [\"false\", \"an-argument\"]\nevents = [\"run.succeeded\"]\n\
                labels = { team = \"search\" }\nretry_schedule = []\n\
                [sinks.later]\ntype = \"command\"\nargv = [\"false\"]\nretry_schedule = [\"1h\"]\n";
    let program = program(&simulator, &receiver, more);
    let daemon = start(&program).await;
    let door = Door::unix(&program);
    let labeled = json!({ "run_id": "run_1", "labels": { "team": "search" } }).to_string();
    assert_eq!(door.ask("POST", "/v1/watches", &labeled).await.status, 201);
    door.watch("run_2").await;
    let left = |sink: &Value| {
        (
            sink["pending"].as_u64().unwrap(),
            sink["dead"].as_u64().unwrap(),
        )
    };
    let list = door
        .until("/v1/sinks", |list| {
            let left: Vec<_> = list["sinks"].as_array().unwrap().iter().map(left).collect();
            left == [(0, 0), (2, 0), (0, 1)]
        })
        .await;
    let [hook, later, odd] = [0, 1, 2].map(|place| list["sinks"][place].clone());
    assert_eq!(
        (&hook["name"], &hook["type"]),
        (&json!("hook"), &json!("webhook"))
    );
    assert_eq!(hook["most_attempts"], 5, "{hook}");
    assert_eq!(
        (&later["name"], &later["type"]),
        (&json!("later"), &json!("command"))
    );
    assert_eq!(
        odd,
        json!({ "name": "odd", "type": "command", "events": ["run.succeeded"], "labels": { "team": "search" },
                "most_attempts": 1, "pending": 0, "dead": 1 })
    );
    let text = list.to_string();
    assert!(
        !text.contains(&receiver.url()) && !text.contains("an-argument"),
        "{text}"
    );
    // A sink that is no longer configured is there as long as deliveries are left for it.
    let _program = program.configured("[sinks.quiet]\ntype = \"log\"\n");
    send_signal(&daemon, Signal::HUP);
    let list = door
        .until("/v1/sinks", |list| {
            list["sinks"]
                .as_array()
                .unwrap()
                .iter()
                .any(|sink| sink["name"] == "quiet")
        })
        .await;
    let names: Vec<_> = list["sinks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|sink| &sink["name"])
        .collect();
    assert_eq!(names, ["later", "odd", "quiet"], "{list}");
    assert_eq!(list["sinks"][0]["type"], json!(null), "{list}");
    stop_expecting(daemon, &["delivery given up"]).await;
}

#[tokio::test]
async fn a_run_is_added_once_whatever_the_way_and_the_type_of_content() {
    let simulator = api([("run_1", Script::runs_forever())]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let (_program, daemon, doors) = both_doors(&simulator, &receiver).await;
    let request = json!({"run_id": "run_1", "name": "nightly", "labels": {"team": "search"}, "sinks": ["hook"], "timeout": "2h"});
    let added = doors[1]
        .ask_with(
            "POST",
            "/v1/watches",
            &[("content-type", "application/json")],
            &request.to_string(),
        )
        .await;
    assert_eq!(added.status, 201, "{added:?}");
    let first = added.json();
    assert_eq!(
        (&first["name"], &first["labels"], &first["sinks"]),
        (
            &json!("nightly"),
            &json!({"team": "search"}),
            &json!(["hook"])
        )
    );
    for door in &doors {
        // `curl -d` says that it sends a form.
        for content_type in [
            "application/x-www-form-urlencoded",
            "text/plain",
            "application/json; charset=utf-8",
        ] {
            let body = json!({"run_id": "run_1", "name": "another name"}).to_string();
            let again = door
                .ask_with(
                    "POST",
                    "/v1/watches",
                    &[("content-type", content_type)],
                    &body,
                )
                .await;
            assert_eq!(again.status, 200, "{again:?}");
            let again = again.json();
            for key in ["name", "labels", "sinks", "added_at", "deadline_at"] {
                assert_eq!(again[key], first[key], "{key}");
            }
        }
        for (body, reason) in [
            (r#"{"run_id":"run_2","Name":"x"}"#, "Name"),
            (r#"{"run_id":"run_2","run_id":"run_3"}"#, "run_id"),
            (r#"{"run_id":7}"#, "body"),
            (r#"["run_2",null,{},null,null]"#, "object"),
            (r#"{"run_id":"run_2","labels":{"a":1}}"#, "body"),
            (r#"{"run_id":"run_2","timeout":"0s"}"#, "timeout"),
            (r#"{"run_id":"run_2","timeout":"4000d"}"#, "timeout"),
            (r#"{"run_id":"run_2","name":" "}"#, "name"),
            (r#"{"run_id":"run_2"} {}"#, "body"),
            ("\u{feff}{\"run_id\":\"run_2\"}", "body"),
        ] {
            door.ask("POST", "/v1/watches", body)
                .await
                .refuses(400, reason);
        }
        let few_but_long: BTreeMap<_, _> = (0..32)
            .map(|number| (format!("l{number}"), "\u{1f980}".repeat(64)))
            .collect();
        let many: BTreeMap<_, _> = (0..33)
            .map(|number| (format!("l{number}"), String::new()))
            .collect();
        for (labels, reason) in [(few_but_long, "8192 bytes"), (many, "33 labels")] {
            let body = json!({ "run_id": "run_2", "labels": labels }).to_string();
            door.ask("POST", "/v1/watches", &body)
                .await
                .refuses(400, reason);
        }
    }
    assert_eq!(
        doors[0].get("/v1/watches").await["watches"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    stop(daemon).await;
}

#[tokio::test]
async fn an_address_that_is_kept_over_a_reload_keeps_its_token() {
    let (simulator, receiver) = (api([]).await, Receiver::start([]).await.unwrap());
    let listen = "[control]\nlisten = \"127.0.0.1:0\"\ntoken_file = \"token\"\n";
    let program = program(&simulator, &receiver, listen).with_file("token", TOKEN);
    let (daemon, address) = listening(&program).await;
    let door = Door::tcp(&address);
    // Without the address it needs no token, but the address goes only at the next start.
    let mut program = program;
    for reloads in 1..=2 {
        program = program.configured(&format!("[[watches]]\nrun_id = \"run_{reloads}\"\n"));
        send_signal(&daemon, Signal::HUP);
        door.until("/v1/watches", |list| {
            list["watches"].as_array().unwrap().len() == reloads
        })
        .await;
    }
    Door {
        token: None,
        ..door
    }
    .ask("GET", "/v1/watches", "")
    .await
    .refuses(401, "token");
    stop(daemon).await;
}

#[tokio::test]
async fn a_wait_ends_with_the_verdict_and_too_many_are_refused() {
    let simulator = api([
        ("run_1", Script::runs_forever()),
        ("run_2", Script::runs_forever()),
    ])
    .await;
    let receiver = Receiver::start([]).await.unwrap();
    runwatch::hardening::raise_open_files_limit();
    let (program, daemon, doors) = both_doors(&simulator, &receiver).await;
    for run in ["run_1", "run_2"] {
        doors[0].watch(run).await;
    }
    for door in &doors {
        for wait in ["601s", "11m", "-1s", "30", "soon", ""] {
            door.ask("GET", &format!("/v1/watches/run_1?wait={wait}"), "")
                .await
                .refuses(400, "up to 10m");
        }
        door.ask("GET", "/v1/watches/run_1?wait=1s&wait=2s", "")
            .await
            .refuses(400, "more than once");
        door.ask("GET", "/v1/watches/run_9?wait=10m", "")
            .await
            .refuses(404, "run_9");
        door.ask("GET", "/v1/watches/%FF", "")
            .await
            .refuses(400, "path");
        for wait in ["0s", "1ms"] {
            assert_eq!(
                door.get(&format!("/v1/watches/run_1?wait={wait}")).await["state"],
                "active"
            );
        }
    }
    // As many as there are places for.
    let mut waiting = Vec::new();
    for _ in 0..256 {
        let mut stream = UnixStream::connect(socket(&program)).await.unwrap();
        stream
            .write_all(b"GET /v1/watches/run_2?wait=10m HTTP/1.1\r\nhost: localhost\r\n\r\n")
            .await
            .unwrap();
        waiting.push(stream);
    }
    let full = async {
        while doors[1]
            .send("GET", "/v1/watches/run_1?wait=1ms", &[], "")
            .await
            .status()
            == 200
        {}
    };
    tokio::time::timeout(PATIENCE, full)
        .await
        .expect("no place is left");
    for door in &doors {
        door.ask("GET", "/v1/watches/run_1?wait=10m", "")
            .await
            .refuses(503, "256");
        door.ask("GET", "/v1/events", "").await.refuses(503, "256");
        // No other client is held up.
        assert_eq!(door.get("/healthz").await, json!({"status": "ok"}));
        assert_eq!(door.get("/v1/watches/run_1").await["state"], "active");
    }
    // Those who leave make room; the verdict ends a wait long before its time.
    drop(waiting);
    let room = async {
        while doors[1]
            .send("GET", "/v1/watches/run_1?wait=1ms", &[], "")
            .await
            .status()
            != 200
        {}
    };
    tokio::time::timeout(PATIENCE, room)
        .await
        .expect("there is room again");
    let watches = async {
        let (first, second) = tokio::join!(
            doors[0].get("/v1/watches/run_1?wait=10m"),
            doors[1].get("/v1/watches/run_1?wait=10m"),
        );
        [first, second]
    };
    let end =
        async { simulator.add_run(&RunRef::new("run_1").unwrap(), Script::fails("it broke")) };
    let (watches, ()) = tokio::join!(watches, end);
    for watch in watches {
        assert_eq!(
            (&watch["verdict"], &watch["data"]["run"]["error_message"]),
            (&json!("failed"), &json!("it broke"))
        );
    }
    stop(daemon).await;
}

/// The next of the Server-Sent Events, as its number, its type and its data.
async fn next_event(response: &mut reqwest::Response, buffer: &mut String) -> (i64, String, Value) {
    let reading = async {
        loop {
            if let Some((event, rest)) = buffer.split_once("\n\n") {
                let field = |name: &str| {
                    event
                        .lines()
                        .find_map(|line| line.strip_prefix(name))
                        .map(|rest| rest.trim().to_owned())
                };
                let event = (field("id:"), field("event:"), field("data:"));
                *buffer = rest.to_owned();
                if let (Some(id), Some(kind), Some(data)) = event {
                    return (
                        id.parse().unwrap(),
                        kind,
                        serde_json::from_str(&data).unwrap(),
                    );
                }
                continue;
            }
            let chunk = response.chunk().await.unwrap().expect("the stream goes on");
            buffer.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    };
    tokio::time::timeout(PATIENCE, reading)
        .await
        .expect("an event")
}

#[tokio::test]
async fn events_resume_from_the_store_after_a_crash() {
    let simulator = api([("run_1", Script::succeeds()), ("run_2", Script::canceled())]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let program = program(&simulator, &receiver, "");
    let daemon = start(&program).await;
    let door = Door::unix(&program);
    let follow = async |door: &Door, after: &str| {
        let response = door
            .send("GET", "/v1/events", &[("last-event-id", after)], "")
            .await;
        assert_eq!(
            (
                response.status().as_u16(),
                &response.headers()["content-type"]
            ),
            (200, &"text/event-stream".parse().unwrap())
        );
        (response, String::new())
    };
    door.watch("run_1").await;
    let (mut response, mut buffer) = follow(&door, "0").await;
    let (first, kind, data) = next_event(&mut response, &mut buffer).await;
    assert_eq!(
        (kind.as_str(), &data["type"], &data["data"]["run"]["id"]),
        ("run.succeeded", &json!("run.succeeded"), &json!("run_1"))
    );
    kill(daemon).await;

    let daemon = start(&program).await;
    let door = Door::unix(&program);
    door.watch("run_2").await;
    verdict(&program, "run_2").await;
    // From the store, and nothing twice.
    let (mut response, mut buffer) = follow(&door, &first.to_string()).await;
    let (second, kind, data) = next_event(&mut response, &mut buffer).await;
    assert_eq!(
        (kind.as_str(), &data["data"]["run"]["id"], second > first),
        ("run.canceled", &json!("run_2"), true)
    );
    // Of a store that is no more: all there is.
    for strange in [second + 1, 4_000_000_000, i64::MAX] {
        let (mut response, mut buffer) = follow(&door, &strange.to_string()).await;
        assert_eq!(
            next_event(&mut response, &mut buffer).await.0,
            first,
            "{strange}"
        );
    }
    // At the newest, it waits for the next.
    let (mut response, mut buffer) = follow(&door, &second.to_string()).await;
    simulator.add_run(&RunRef::new("run_3").unwrap(), Script::fails("it broke"));
    door.watch("run_3").await;
    assert_eq!(next_event(&mut response, &mut buffer).await.1, "run.failed");
    for wrong in [
        "",
        "-1",
        "+1",
        "1.5",
        "run_1",
        "99999999999999999999",
        "0x1",
    ] {
        door.ask_with("GET", "/v1/events", &[("last-event-id", wrong)], "")
            .await
            .refuses(400, "Last-Event-ID");
    }
    let twice = [("last-event-id", "1"), ("last-event-id", "2")];
    door.ask_with("GET", "/v1/events", &twice, "")
        .await
        .refuses(400, "more than once");
    stop(daemon).await;
    assert!(
        response.chunk().await.unwrap().is_none(),
        "a stop ends the stream in order"
    );
}

#[tokio::test]
async fn malformed_http_is_rejected_and_does_no_harm() {
    let simulator = api([]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let (program, daemon, doors) = both_doors(&simulator, &receiver).await;
    let address: SocketAddr = doors[1].base.trim_start_matches("http://").parse().unwrap();
    let key = format!("authorization: Bearer {TOKEN}\r\n");
    let post =
        format!("POST /v1/watches HTTP/1.1\r\nhost: localhost\r\n{key}connection: close\r\n");
    let body = "x".repeat(900_000);
    let cases = [
        // Probes need no Host; all else needs one where a page in a browser could send the request.
        (
            "GET /healthz HTTP/1.0\r\n\r\n".to_owned(),
            "HTTP/1.0 200",
            "HTTP/1.0 200",
        ),
        (
            format!("GET /v1/watches HTTP/1.0\r\n{key}\r\n"),
            "HTTP/1.0 200",
            "HTTP/1.0 403",
        ),
        (
            "GET /healthz HTTP/1.0\r\nhost: localhost\r\n\r\n".to_owned(),
            "HTTP/1.0 200",
            "HTTP/1.0 200",
        ),
        (
            "GET /healthz HTTP/1.1\r\nconnection: close\r\n\r\n".to_owned(),
            "HTTP/1.1 200",
            "HTTP/1.1 200",
        ),
        (
            format!(
                "GET /v1/watches HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\n{key}connection: close\r\n\r\n"
            ),
            "HTTP/1.1 200",
            "HTTP/1.1 403",
        ),
        (
            "GET /healthz HTTP/2.0\r\nhost: localhost\r\n\r\n".to_owned(),
            "HTTP/1.1 400",
            "HTTP/1.1 400",
        ),
        (
            "\u{16}\u{3}\u{1}\u{2}TLS?\r\n\r\n".to_owned(),
            "HTTP/1.1 400",
            "HTTP/1.1 400",
        ),
        (
            "GET no/path HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned(),
            "HTTP/1.1 400",
            "HTTP/1.1 400",
        ),
        (
            format!(
                "GET /healthz HTTP/1.1\r\nhost: localhost\r\nlong: {}\r\n\r\n",
                "x".repeat(20_000)
            ),
            "HTTP/1.1 431",
            "HTTP/1.1 431",
        ),
        (
            format!("{post}content-length: 900000\r\n\r\n{body}"),
            "HTTP/1.1 413",
            "HTTP/1.1 413",
        ),
        (
            format!("{post}transfer-encoding: chunked\r\n\r\nDBBA0\r\n{body}\r\n0\r\n\r\n"),
            "HTTP/1.1 413",
            "HTTP/1.1 413",
        ),
        (
            format!("{post}transfer-encoding: chunked\r\n\r\nno number\r\n"),
            "HTTP/1.1 400",
            "HTTP/1.1 400",
        ),
        (
            format!("{post}content-length: 2\r\ncontent-length: 3\r\n\r\n{{}}"),
            "HTTP/1.1 400",
            "HTTP/1.1 400",
        ),
    ];
    for (request, over_unix, over_tcp) in &cases {
        let answer = raw(
            UnixStream::connect(socket(&program)).await.unwrap(),
            request.as_bytes(),
        )
        .await;
        assert!(
            answer.starts_with(over_unix),
            "{over_unix}: {request:.120}\n{answer}"
        );
        let answer = raw(
            TcpStream::connect(address).await.unwrap(),
            request.as_bytes(),
        )
        .await;
        assert!(
            answer.starts_with(over_tcp),
            "{over_tcp}: {request:.120}\n{answer}"
        );
    }
    // A head, and no more, with the length that the body would have.
    for path in [
        "/healthz",
        "/readyz",
        "/metrics",
        "/v1/watches",
        "/v1/deliveries",
        "/v1/polling",
        "/v1/openapi.json",
    ] {
        let head =
            format!("HEAD {path} HTTP/1.1\r\nhost: localhost\r\n{key}connection: close\r\n\r\n");
        let answer = raw(TcpStream::connect(address).await.unwrap(), head.as_bytes()).await;
        let (lines, rest) = answer.split_once("\r\n\r\n").unwrap();
        assert!(
            lines.starts_with("HTTP/1.1 200") && lines.contains("content-length: "),
            "{path}: {answer}"
        );
        assert_eq!(rest, "", "{path}");
    }
    assert_eq!(doors[1].get("/healthz").await, json!({"status": "ok"}));
    stop(daemon).await;
}

#[tokio::test]
async fn slow_callers_are_shown_out_and_leave_room() {
    let simulator = api([]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let (program, daemon, doors) = both_doors(&simulator, &receiver).await;
    let address = doors[1].base.trim_start_matches("http://").to_owned();
    let late = format!(
        "POST /v1/watches HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: 100\r\n\
         connection: close\r\n\r\n{{"
    );
    let bodies = async {
        let unix = UnixStream::connect(socket(&program)).await.unwrap();
        let tcp = TcpStream::connect(&address).await.unwrap();
        let (unix, tcp) = tokio::join!(raw(unix, late.as_bytes()), raw(tcp, late.as_bytes()));
        for answer in [unix, tcp] {
            assert!(
                answer.starts_with("HTTP/1.1 408") && answer.contains("application/problem+json"),
                "{answer}"
            );
        }
    };
    bodies.await;
    runwatch::hardening::raise_open_files_limit();
    // Half a head each, as many as there is room for: the next client is served when their time is up.
    let mut slow = Vec::new();
    for _ in 0..512 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\nhost: loc")
            .await
            .unwrap();
        slow.push(stream);
    }
    let unix = doors[0].get("/healthz").await;
    assert_eq!(
        unix,
        json!({"status": "ok"}),
        "the other listener has its own room"
    );
    let next = Door::tcp(&address);
    assert_eq!(next.get("/healthz").await, json!({"status": "ok"}));
    for stream in slow {
        assert!(
            !raw(stream, b"").await.contains("200"),
            "half a head is no request"
        );
    }
    stop(daemon).await;
}

#[tokio::test]
async fn without_a_token_loopback_is_for_this_machine_and_not_for_web_pages() {
    let simulator = api([]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let program = program(&simulator, &receiver, "").set("RUNWATCH_CONTROL__LISTEN", "127.0.0.1:0");
    let (daemon, address) = listening(&program).await;
    let door = Door {
        token: None,
        ..Door::tcp(&address)
    };
    for (headers, status) in [
        (&[][..], 200),
        (&[("origin", "http://localhost:3000")], 403),
        (&[("origin", "null")], 403),
        (&[("host", "evil.example")], 403),
        (&[("host", "localhost.evil.example:9477")], 403),
        (&[("host", "127.0.0.1")], 200),
        (&[("sec-fetch-site", "cross-site")], 403),
        (&[("sec-fetch-site", "same-site")], 403),
        // What a browser says of an address that somebody typed.
        (&[("sec-fetch-site", "none")], 200),
    ] {
        for (method, path) in [
            ("GET", "/v1/watches"),
            ("GET", "/metrics"),
            ("POST", "/v1/watches"),
            ("OPTIONS", "/v1/watches"),
        ] {
            let answer = door.ask_with(method, path, headers, "").await;
            if status == 403 {
                answer.refuses(403, "");
            } else {
                assert_ne!(
                    answer.status, 403,
                    "{method} {path} {headers:?}: {answer:?}"
                );
            }
            assert!(
                !answer.headers.contains_key("access-control-allow-origin"),
                "{answer:?}"
            );
        }
    }
    stop(daemon).await;
}

#[tokio::test]
async fn a_token_is_needed_for_a_network_through_every_change() {
    let simulator = api([]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let control = "[control]\nlisten = \"0.0.0.0:0\"\ntoken_file = \"token\"";
    let mut program = program(&simulator, &receiver, control).with_file("token", TOKEN);
    let (daemon, address) = listening(&program).await;
    let port = address.rsplit_once(':').unwrap().1.to_owned();
    let door = Door {
        token: None,
        ..Door::tcp(&format!("127.0.0.1:{port}"))
    };
    let bearer = |token: &str| format!("Bearer {token}");
    let status = async |authorization: &str| {
        door.send(
            "GET",
            "/v1/watches",
            &[
                ("authorization", authorization),
                ("host", "runwatch.example"),
            ],
            "",
        )
        .await
        .status()
        .as_u16()
    };
    for (authorization, expected) in [
        (bearer(TOKEN), 200),
        (format!("bearer {TOKEN}"), 200),
        (format!("BEARER   {TOKEN} "), 200),
        (format!("Token {TOKEN}"), 401),
        (TOKEN.to_owned(), 401),
        ("Bearer".to_owned(), 401),
        ("Bearer ".to_owned(), 401),
        (bearer(&format!("{TOKEN}x")), 401),
        (bearer(&TOKEN[1..]), 401),
    ] {
        assert_eq!(status(&authorization).await, expected, "{authorization:?}");
    }
    // No token is worse than a wrong one: no client gets in until it is there again.
    for broken in [Some("\n"), None] {
        let path = program.beside_config("token");
        match broken {
            Some(text) => std::fs::write(&path, text).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        for authorization in ["Bearer ", "Bearer", &bearer(TOKEN)] {
            assert_eq!(status(authorization).await, 503, "{broken:?}");
        }
        std::fs::write(&path, TOKEN).unwrap();
        assert_eq!(status(&bearer(TOKEN)).await, 200);
    }
    // A reload changes the token, and not where the daemon listens.
    program = program.configured("[sinks.quiet]\ntype = \"log\"\n");
    send_signal(&daemon, Signal::HUP);
    let unix = Door::unix(&program);
    let quiet = async {
        while !unix
            .ask("GET", "/metrics", "")
            .await
            .text
            .contains("runwatch_deliveries_pending{sink=\"quiet\"}")
        {}
    };
    tokio::time::timeout(PATIENCE, quiet)
        .await
        .expect("the new configuration is in force");
    for (authorization, expected) in [("", 401), ("Bearer ", 401), (&bearer(TOKEN), 200)] {
        assert_eq!(status(authorization).await, expected, "{authorization:?}");
    }
    stop_expecting(daemon, &["cannot read the token of the control interface"]).await;
}

#[tokio::test]
async fn a_delivery_is_tried_again_only_where_that_makes_sense() {
    let simulator = api([
        ("run_1", Script::succeeds()),
        ("run_2", Script::succeeds()),
        ("run_3", Script::succeeds()),
    ])
    .await;
    let (fine, hangs, refuses) = (
        Receiver::start([]).await.unwrap(),
        Receiver::start([Fault::Hang]).await.unwrap(),
        Receiver::start([Fault::status(500)]).await.unwrap(),
    );
    let sink = |name: &str, receiver: &Receiver| {
        format!(
            "[sinks.{name}]\ntype = \"webhook\"\nurl = \"{}\"\nretry_schedule = [\"1h\"]\n",
            receiver.url()
        )
    };
    let sinks = format!("{}{}", sink("hangs", &hangs), sink("refuses", &refuses));
    let program = program(&simulator, &fine, &sinks);
    let daemon = start(&program).await;
    let door = Door::unix(&program);
    door.watch("run_1").await;
    received(&hangs, 1).await;
    let watch = door
        .until("/v1/watches/run_1", |watch| {
            let states = watch["deliveries"].as_array().unwrap();
            let state =
                |sink: &str| states.iter().find(|d| d["sink"] == sink).unwrap()["state"].clone();
            state("hook") == "delivered"
                && state("hangs") == "sending"
                && state("refuses") == "pending"
        })
        .await;
    let id = |sink: &str| {
        let deliveries = watch["deliveries"].as_array().unwrap();
        deliveries
            .iter()
            .find(|delivery| delivery["sink"] == sink)
            .unwrap()["id"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let retry = async |id: &str| {
        door.ask("POST", &format!("/v1/deliveries/{id}/retry"), "")
            .await
    };
    retry(&id("hook")).await.refuses(409, "arrived");
    retry(&id("hangs")).await.refuses(409, "being sent");
    retry("msg_unknown").await.refuses(404, "msg_unknown");
    retry("run_1").await.refuses(400, "run_1");
    retry("%FF").await.refuses(400, "path");
    // A watch whose messages are under way stays.
    door.ask("DELETE", "/v1/watches/run_1", "")
        .await
        .refuses(409, "delivered or given up");
    let due = retry(&id("refuses")).await;
    assert_eq!((due.status, due.text.as_str()), (202, ""), "{due:?}");
    assert_eq!(received(&refuses, 2).await.len(), 2);
    let all = door
        .ask("POST", "/v1/deliveries/retry?sink=refuses", "")
        .await;
    assert_eq!(
        (all.status, all.text.as_str()),
        (202, r#"{"deliveries":0}"#),
        "it has arrived: {all:?}"
    );
    door.ask("POST", "/v1/deliveries/retry", "")
        .await
        .refuses(400, "sink=NAME");
    door.ask("POST", "/v1/deliveries/drop?sink=absent", "")
        .await
        .refuses(404, "absent");
    door.until("/v1/deliveries?state=delivered&sink=refuses", |list| {
        list["deliveries"][0]["attempts"] == 2
    })
    .await;
    for (states, count) in [
        ("state=sending", 1),
        ("state=delivered", 2),
        ("state=sending&state=delivered", 3),
        ("state=dead", 0),
    ] {
        assert_eq!(
            door.get(&format!("/v1/deliveries?{states}")).await["deliveries"]
                .as_array()
                .unwrap()
                .len(),
            count,
            "{states}"
        );
    }
    // A watch without messages that are due is removed, once.
    simulator.add_run(&RunRef::new("run_4").unwrap(), Script::runs_forever());
    door.watch("run_4").await;
    let gone = door.ask("DELETE", "/v1/watches/run_4", "").await;
    assert_eq!((gone.status, gone.text.as_str()), (204, ""));
    door.ask("DELETE", "/v1/watches/run_4", "")
        .await
        .refuses(404, "run_4");
    door.ask("DELETE", "/v1/watches/a%20b", "")
        .await
        .refuses(400, "a b");
    send_signal(&daemon, Signal::TERM);
    send_signal(&daemon, Signal::TERM);
    finish(daemon).await;
}

#[tokio::test]
async fn a_stop_takes_nothing_new_and_finishes_what_is_under_way() {
    let simulator = api([("run_1", Script::succeeds())]).await;
    let receiver = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", receiver.local_addr().unwrap());
    let unused = Receiver::start([]).await.unwrap();
    let program = program(&simulator, &unused, "").configured(&format!(
        "[sinks.hook]\ntype = \"webhook\"\nurl = \"{url}\"\nretry_schedule = [\"1h\"]\n"
    ));
    let daemon = start(&program).await;
    // A connection that was used before, and lives on.
    let mut known = UnixStream::connect(socket(&program)).await.unwrap();
    known
        .write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut buffer = [0; 4096];
    assert!(known.read(&mut buffer).await.unwrap() > 0);
    add(&program, "run_1").await;
    let (mut under_way, _) = tokio::time::timeout(PATIENCE, receiver.accept())
        .await
        .expect("a delivery")
        .unwrap();
    let read = under_way.read(&mut buffer).await.unwrap();
    assert!(buffer[..read].starts_with(b"POST /hook"));

    send_signal(&daemon, Signal::TERM);
    eventually("no more connections taken", || {
        std::os::unix::net::UnixStream::connect(socket(&program)).is_err()
    })
    .await;
    let refused =
        raw(known, b"POST /v1/watches HTTP/1.1\r\nhost: localhost\r\ncontent-length: 18\r\n\r\n{\"run_id\":\"run_2\"}")
            .await;
    assert!(
        refused.is_empty() || refused.starts_with("HTTP/1.1 503"),
        "{refused}"
    );
    // The attempt is under way still, and its answer counts.
    under_way
        .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
        .await
        .unwrap();
    let ended = finish(daemon).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");

    let daemon = start(&program).await;
    let door = Door::unix(&program);
    let delivery = door.get("/v1/deliveries").await["deliveries"][0].clone();
    assert_eq!(
        (&delivery["state"], &delivery["attempts"]),
        (&json!("delivered"), &json!(1))
    );
    assert_eq!(
        door.get("/v1/watches").await["watches"]
            .as_array()
            .unwrap()
            .len(),
        1,
        "the refused run is not watched"
    );
    stop(daemon).await;
}

#[tokio::test]
async fn metrics_come_in_the_requested_format() {
    let simulator = api([]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let (_program, daemon, doors) = both_doors(&simulator, &receiver).await;
    for door in &doors {
        for (accept, content_type, last) in [
            (
                "*/*",
                "text/plain; version=0.0.4; charset=utf-8",
                "runwatch_build_info",
            ),
            (
                "text/plain;version=0.0.4",
                "text/plain; version=0.0.4; charset=utf-8",
                "runwatch_build_info",
            ),
            (
                "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                "# EOF",
            ),
        ] {
            let answer = door
                .ask_with("GET", "/metrics", &[("accept", accept)], "")
                .await;
            assert_eq!(answer.headers["content-type"], content_type);
            assert!(
                answer.text.lines().last().unwrap().starts_with(last),
                "{accept}: {}",
                answer.text
            );
        }
    }
    stop(daemon).await;
}

#[tokio::test]
async fn what_waits_for_a_sink_can_be_tried_again_given_up_or_removed_with_its_watch() {
    let runs = ["run_1", "run_2", "run_3", "run_4"];
    let simulator = api(runs.map(|run| (run, Script::succeeds()))).await;
    let (fine, away) = (
        Receiver::start([]).await.unwrap(),
        Receiver::start([
            Fault::status(500),
            Fault::status(500),
            Fault::status(500),
            Fault::status(500),
        ])
        .await
        .unwrap(),
    );
    let sink = format!(
        "[sinks.away]\ntype = \"webhook\"\nurl = \"{}\"\nretry_schedule = [\"1h\"]\n",
        away.url()
    );
    let program = program(&simulator, &fine, &sink);
    let daemon = start(&program).await;
    let door = Door::unix(&program);
    let mut ids = Vec::new();
    for run in runs {
        door.watch(run).await;
        let watch = door
            .until(&format!("/v1/watches/{run}"), |watch| {
                let deliveries = watch["deliveries"].as_array().unwrap();
                let state = |sink: &str| {
                    deliveries
                        .iter()
                        .find(|d| d["sink"] == sink)
                        .map(|d| d["state"].clone())
                };
                state("hook").is_some_and(|state| state == "delivered")
                    && deliveries.iter().any(|d| {
                        d["sink"] == "away" && d["state"] == "pending" && d["attempts"] == 1
                    })
            })
            .await;
        let deliveries = watch["deliveries"].as_array().unwrap();
        ids.push(
            deliveries.iter().find(|d| d["sink"] == "away").unwrap()["id"]
                .as_str()
                .unwrap()
                .to_owned(),
        );
    }
    let done = async |arguments: &[&str]| {
        let ended = program.run(arguments).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended
    };
    // One is given up by the beginning of its ID: its watch can be removed then.
    let beginning = &ids[0][..ids[0].len() - 1];
    assert!(
        ids[1..].iter().all(|id| !id.starts_with(beginning)),
        "they end at random: {ids:?}"
    );
    let ambiguous = program.run(&["deliveries", "drop", "msg_0"]).await;
    assert_eq!(ambiguous.code, Some(2), "{ambiguous:?}");
    assert!(
        ids.iter().any(|id| ambiguous.stderr.contains(id)),
        "candidates are listed: {ambiguous:?}"
    );
    // The common beginning of all IDs may be left out.
    let beginning = beginning.strip_prefix("msg_").unwrap();
    let dropped = done(&["deliveries", "drop", beginning, "--json"])
        .await
        .json_lines();
    assert_eq!(dropped[0]["dropped"], true, "{dropped:?}");
    done(&["remove", "run_1"]).await;
    // One is removed with its watch, as `--force` demands.
    let refused = program.run(&["remove", "run_2"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    for part in ["--force", "to away", &ids[1], "next attempt at 20"] {
        assert!(refused.stderr.contains(part), "{part}: {refused:?}");
    }
    let removed = program
        .run_with_input(
            &["remove", "--force", "-"],
            "# the second\n\nrun_2, # done\n",
        )
        .await;
    assert_eq!(removed.code, Some(0), "{removed:?}");
    assert_eq!(removed.stdout, "run_2: no longer watched\n");
    // The others are tried again together.
    let retried = done(&["deliveries", "retry", "--sink", "away"]).await;
    assert_eq!(retried.stdout, "2 messages to away are being tried again\n");
    door.until("/v1/deliveries?state=delivered&sink=away", |list| {
        list["deliveries"].as_array().unwrap().len() == 2
    })
    .await;
    let none = done(&["deliveries", "drop", "--sink", "away"]).await;
    assert_eq!(none.stdout, "0 messages to away are given up\n");
    let unknown = program
        .run(&["deliveries", "retry", "--sink", "absent"])
        .await;
    assert_eq!(unknown.code, Some(1), "{unknown:?}");
    send_signal(&daemon, Signal::TERM);
    finish(daemon).await;
}
