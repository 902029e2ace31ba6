//! The page as a browser requests it: what it shows, who may see it, and who may change something from it.

use reqwest::header::HeaderMap;
use runwatch::simulator::{Receiver, Script};
use serde_json::json;

use crate::daemon::{add, listening, program, socket, start, stop, text};
use crate::support::{Program, api, http_client, received};

const TOKEN: &str = "a-token-for-tests";

/// What came back.
#[derive(Debug)]
struct Shown {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Shown {
    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

/// A browser with a jar for one cookie, at an address.
struct Browser {
    http: reqwest::Client,
    base: String,
    cookie: Option<String>,
}

impl Browser {
    fn at(address: &str) -> Self {
        let http = http_client()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none());
        Self {
            http: http.build().unwrap(),
            base: format!("http://{address}"),
            cookie: None,
        }
    }

    fn on_socket(program: &Program) -> Self {
        let http = http_client().unix_socket(socket(program)).no_proxy();
        Self {
            http: http.build().unwrap(),
            base: "http://localhost".to_owned(),
            cookie: None,
        }
    }

    async fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Shown {
        let url = format!("{}{path}", self.base);
        let mut request = self.http.request(method.parse().unwrap(), url);
        if let Some(cookie) = &self.cookie {
            request = request.header("cookie", cookie);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.body(body.to_owned()).send().await.unwrap();
        let shown = Shown {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            text: text(response).await,
        };
        if let Some(set) = shown.headers.get("set-cookie") {
            let set = set.to_str().unwrap();
            let ended = set.contains("Max-Age=0");
            self.cookie = (!ended).then(|| set.split(';').next().unwrap().to_owned());
        }
        shown
    }

    async fn open(&mut self, path: &str) -> Shown {
        self.send("GET", path, &[("accept", "text/html,*/*;q=0.8")], "")
            .await
    }

    /// Sends the login form as a browser does.
    async fn log_in(&mut self, query: &str, token: &str) -> Shown {
        let origin = self.base.clone();
        let form = ("content-type", "application/x-www-form-urlencoded");
        let headers = [
            ("origin", origin.as_str()),
            form,
            ("sec-fetch-site", "same-origin"),
        ];
        let path = format!("/login{query}");
        self.send("POST", &path, &headers, &format!("token={token}"))
            .await
    }
}

#[tokio::test]
async fn the_page_shows_runs_without_script_and_every_text_as_text() {
    let simulator = api([
        ("run_1", Script::fails("<b>broke</b>")),
        ("run_2", Script::runs_forever()),
    ])
    .await;
    let receiver = Receiver::start([]).await.unwrap();
    let program = program(&simulator, &receiver, "").set("RUNWATCH_CONTROL__LISTEN", "127.0.0.1:0");
    let (daemon, address) = listening(&program).await;
    let mut browser = Browser::at(&address);
    let name = "<script>alert(1)</script>\" onload='x' {{token}}\u{202e}é";
    for (run, name) in [("run_1", Some(name)), ("run_2", None)] {
        let body = json!({ "run_id": run, "name": name }).to_string();
        let added = browser.send("POST", "/v1/watches", &[], &body).await;
        assert_eq!(added.status, 201, "{added:?}");
    }
    let ended = browser.open("/v1/watches/run_1?wait=1m").await;
    assert!(ended.text.contains("\"verdict\":\"failed\""), "{ended:?}");
    let shown_name = "&lt;script&gt;alert(1)&lt;/script&gt;&quot; onload=&#39;x&#39; {{token}}é";
    let mut socket = Browser::on_socket(&program);
    for shown in [browser.open("/").await, socket.open("/").await] {
        assert_eq!(
            (shown.status, shown.header("content-type")),
            (200, "text/html; charset=utf-8")
        );
        let parts = [
            &format!(
                "<a href=\"./runs/crewship:run_1\"><bdi>{shown_name}</bdi></a><small><bdi>run_1</bdi>"
            ),
            "<a href=\"./runs/crewship:run_2\"><bdi>run_2</bdi></a>",
            "<bdi>hook</bdi>",
        ];
        for part in parts {
            assert!(shown.text.contains(part), "{part}\n{}", shown.text);
        }
        assert!(!shown.text.contains("alert(1)</script>") && !shown.text.contains("Log out"));
    }
    let shown = browser.open("/runs/crewship:run_1").await;
    for part in [
        shown_name,
        "href=\"../page.css\"",
        "failed",
        "the watch was added",
        "hook",
    ] {
        assert!(shown.text.contains(part), "{part}\n{}", shown.text);
    }
    for (path, why) in [
        ("/runs/run_3", "run_3 is not watched"),
        ("/runs/nowhere:1", "nowhere:1 is not watched"),
        ("/runs/%3Cb%3E", "names no run"),
    ] {
        let nothing = browser.open(path).await;
        assert!(
            nothing.status == 404 && nothing.text.contains(why),
            "{path}: {nothing:?}"
        );
    }
    for (path, kind) in [
        ("/page.css", "text/css; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
    ] {
        let file = browser
            .send("GET", path, &[("sec-fetch-site", "same-origin")], "")
            .await;
        assert_eq!((file.status, file.header("content-type")), (200, kind));
        assert_eq!(file.header("x-content-type-options"), "nosniff");
        assert_eq!(file.header("cross-origin-resource-policy"), "same-origin");
    }
    let policy = browser
        .open("/")
        .await
        .header("content-security-policy")
        .to_owned();
    assert!(
        policy.starts_with("default-src 'none'; script-src 'self'"),
        "{policy}"
    );
    // A page of another name that resolves to this machine sees nothing.
    let foreign = browser
        .send(
            "GET",
            "/",
            &[("host", "evil.example"), ("accept", "text/html")],
            "",
        )
        .await;
    assert_eq!(foreign.status, 403, "{foreign:?}");
    stop(daemon).await;
}

#[tokio::test]
async fn a_session_begins_with_the_token_and_ends_with_it() {
    let simulator = api([("run_1", Script::runs_forever())]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let program = program(&simulator, &receiver, "").with_file("token", TOKEN);
    let token_file = program.beside_config("token");
    let program = program
        .set("RUNWATCH_CONTROL__LISTEN", "127.0.0.1:0")
        .set("RUNWATCH_CONTROL__TOKEN_FILE", token_file.to_str().unwrap());
    let (daemon, address) = listening(&program).await;
    let mut browser = Browser::at(&address);
    // A person gets the form, and a program what it always got.
    let form = browser.open("/runs/crewship:run_1").await;
    assert_eq!(
        (form.status, form.header("www-authenticate")),
        (401, "Bearer")
    );
    assert!(
        form.text
            .contains("action=\"../login?next=runs%2Fcrewship%3Arun_1\""),
        "{}",
        form.text
    );
    assert!(!form.text.contains("id=\"facts\""), "{}", form.text);
    let refused = browser.send("GET", "/", &[], "").await;
    assert_eq!(
        (refused.status, refused.header("content-type")),
        (401, "application/problem+json")
    );
    let wrong = browser.log_in("", "wrong").await;
    assert!(
        wrong.status == 401 && wrong.text.contains("not the token") && browser.cookie.is_none()
    );
    let foreign = [
        ("origin", "http://evil.example"),
        ("sec-fetch-site", "cross-site"),
    ];
    let forged = browser
        .send("POST", "/login", &foreign, &format!("token={TOKEN}"))
        .await;
    assert!(
        forged.status == 403 && browser.cookie.is_none(),
        "{forged:?}"
    );

    let right = browser.log_in("?next=runs%2Fcrewship%3Arun_1", TOKEN).await;
    assert_eq!(
        (right.status, right.header("location")),
        (303, "./runs/crewship:run_1")
    );
    let set = right.header("set-cookie").to_owned();
    assert!(
        set.contains("HttpOnly") && set.contains("SameSite=Strict") && !set.contains(TOKEN),
        "{set}"
    );
    let overview = browser.open("/").await;
    assert!(
        overview.status == 200 && overview.text.contains("Log out"),
        "{overview:?}"
    );
    assert!(
        overview.headers.contains_key("set-cookie"),
        "it lasts longer"
    );

    // It reads everything, and changes something from the page only.
    assert_eq!(browser.open("/v1/watches").await.status, 200);
    let origin = browser.base.clone();
    let own = ("origin", origin.as_str());
    let json = ("content-type", "application/json");
    let body = json!({ "run_id": "run_1" }).to_string();
    for (headers, status) in [
        (&[json][..], 403),
        (&[own], 403),
        (&[own, ("content-type", "text/plain")], 403),
        (&[("origin", "http://localhost:1"), json], 403),
        (&[own, json], 201),
    ] {
        let added = browser.send("POST", "/v1/watches", headers, &body).await;
        assert_eq!(added.status, status, "{headers:?}: {added:?}");
    }
    assert_eq!(
        browser
            .send("DELETE", "/v1/watches/run_1", &[], "")
            .await
            .status,
        403
    );
    assert_eq!(
        browser
            .send("DELETE", "/v1/watches/run_1", &[own], "")
            .await
            .status,
        204
    );

    let out = browser.send("POST", "/logout", &[own], "").await;
    assert!(out.status == 303 && browser.cookie.is_none(), "{out:?}");
    assert_eq!(browser.open("/").await.status, 401);
    // A token that changes ends every session.
    browser.log_in("", TOKEN).await;
    assert_eq!(browser.open("/").await.status, 200);
    std::fs::write(&token_file, "another-token").unwrap();
    assert_eq!(browser.open("/").await.status, 401);
    stop(daemon).await;
}

#[tokio::test]
async fn the_login_form_takes_few_wrong_tokens_and_the_header_goes_on() {
    let simulator = api([]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let program = program(&simulator, &receiver, "").with_file("token", TOKEN);
    let token_file = program.beside_config("token");
    let program = program
        .set("RUNWATCH_CONTROL__LISTEN", "127.0.0.1:0")
        .set("RUNWATCH_CONTROL__TOKEN_FILE", token_file.to_str().unwrap());
    let (daemon, address) = listening(&program).await;
    let mut browser = Browser::at(&address);
    let mut refusals = Vec::new();
    // Some may come back in the meantime: one in six seconds.
    while refusals.last() != Some(&429) && refusals.len() < 1000 {
        refusals.push(browser.log_in("", "wrong").await.status);
    }
    let wrong = refusals.iter().filter(|status| **status == 401).count();
    assert!(wrong >= 10 && refusals.last() == Some(&429), "{refusals:?}");
    let bearer = format!("Bearer {TOKEN}");
    let headers = [("authorization", bearer.as_str())];
    assert_eq!(
        browser
            .send("GET", "/v1/watches", &headers, "")
            .await
            .status,
        200
    );
    stop(daemon).await;
}

#[tokio::test]
async fn behind_a_proxy_the_public_address_is_that_of_the_page() {
    let simulator = api([("run_1", Script::runs_forever())]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let program = program(&simulator, &receiver, "").with_file("token", TOKEN);
    let token_file = program.beside_config("token");
    let program = program
        .set("RUNWATCH_CONTROL__LISTEN", "127.0.0.1:0")
        .set(
            "RUNWATCH_CONTROL__PUBLIC_URL",
            "https://watch.example.com/runwatch",
        )
        .set("RUNWATCH_CONTROL__TOKEN_FILE", token_file.to_str().unwrap());
    let (daemon, address) = listening(&program).await;
    let mut browser = Browser::at(&address);
    let body = json!({ "run_id": "run_1" }).to_string();
    let bearer = format!("Bearer {TOKEN}");
    for (origin, status) in [
        ("https://watch.example.com", 201),
        ("http://watch.example.com", 403),
        ("https://evil.example.com", 403),
    ] {
        let headers = [
            ("authorization", bearer.as_str()),
            ("origin", origin),
            ("content-type", "application/json"),
        ];
        let added = browser.send("POST", "/v1/watches", &headers, &body).await;
        assert_eq!(added.status, status, "{origin}: {added:?}");
    }
    stop(daemon).await;
}

#[tokio::test]
async fn open_prints_the_address_and_opens_it_on_a_desktop() {
    let simulator = api([("run_1", Script::runs_forever())]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let program = program(&simulator, &receiver, "").with_file("token", TOKEN);
    let none = program.run(&["open"]).await;
    assert!(
        none.code == Some(2) && none.stderr.contains("control.listen"),
        "{none:?}"
    );
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let token_file = program.beside_config("token");
    let program = program
        .set("RUNWATCH_CONTROL__LISTEN", &format!("127.0.0.1:{port}"))
        .set("RUNWATCH_CONTROL__TOKEN_FILE", token_file.to_str().unwrap());
    let down = program.run(&["open", "--json"]).await;
    assert!(
        down.code == Some(2) && down.stderr.contains("\"no_daemon\""),
        "{down:?}"
    );
    let (daemon, _) = listening(&program).await;
    let printed = program.run(&["open"]).await;
    assert_eq!(
        (printed.code, printed.stdout),
        (Some(0), format!("http://localhost:{port}/\n"))
    );

    // A desktop whose opener notes what it was given. Written by another process, which keeps no one from running it.
    let bin = program.home().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let script = "printf '#!/bin/sh\\nprintf \"%%s\\\\n\" \"$@\" > \"$HOME/opened\"\\n' > xdg-open && chmod +x xdg-open";
    let written = std::process::Command::new("/bin/sh")
        .args(["-c", script])
        .current_dir(&bin)
        .status();
    assert!(written.unwrap().success());
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let program = program.set("PATH", &path).set("DISPLAY", ":99");
    let opened = || std::fs::read_to_string(program.home().join("opened")).ok();
    let printed = program.run(&["open", "--print", "run_1"]).await;
    let address = format!("http://localhost:{port}/runs/crewship:run_1");
    assert_eq!(
        (printed.code, printed.stdout.trim(), opened()),
        (Some(0), address.as_str(), None)
    );
    let ended = program.run(&["open", "run_1", "--json"]).await;
    assert_eq!(
        ended.json_lines(),
        [json!({ "url": address, "opened": true })],
        "{ended:?}"
    );
    assert_eq!(opened(), Some(format!("{address}\n")), "without the token");
    stop(daemon).await;

    // An address behind a proxy needs no daemon here.
    let program = program.set(
        "RUNWATCH_CONTROL__PUBLIC_URL",
        "https://watch.example.com/at",
    );
    let public = program
        .run(&["open", "--print", "github:acme/site/1"])
        .await;
    assert_eq!(
        public.stdout, "https://watch.example.com/at/runs/github:acme%2Fsite%2F1\n",
        "{public:?}"
    );
    std::fs::remove_file(bin.join("xdg-open")).unwrap();
    let program = program.set("PATH", bin.to_str().unwrap());
    let failed = program.run(&["open"]).await;
    assert_eq!(
        (failed.code, failed.stdout.as_str()),
        (Some(0), "https://watch.example.com/at/\n")
    );
    assert!(
        failed.stderr.contains("warning: no browser can be opened"),
        "{failed:?}"
    );
}

#[tokio::test]
async fn messages_for_people_link_to_the_page_where_the_run_has_no_address_of_its_own() {
    let simulator = api([("run_1", Script::fails("no"))]).await;
    let (standard, chat) = (
        Receiver::start([]).await.unwrap(),
        Receiver::start([]).await.unwrap(),
    );
    let sink = format!(
        "[sinks.chat]\ntype = \"webhook\"\nformat = \"slack\"\nurl = \"{}\"\n",
        chat.url()
    );
    for (run_url, link) in [
        ("", "https://watch.example.com/runs/crewship:run_1"),
        (
            "https://console.example.com/{run_id}",
            "https://console.example.com/run_1",
        ),
    ] {
        let (before, sent) = (chat.requests().len(), standard.requests().len());
        let program = program(&simulator, &standard, &sink)
            .set("RUNWATCH_CONTROL__PUBLIC_URL", "https://watch.example.com")
            .set("RUNWATCH_API__RUN_URL", run_url);
        let daemon = start(&program).await;
        add(&program, "run_1").await;
        let message = received(&chat, before + 1).await.pop().unwrap();
        let body = String::from_utf8(message.body.to_vec()).unwrap();
        assert!(body.contains(&format!("<{link}|run_1 failed")), "{body}");
        // Programs get what the configuration says of the run, and nothing else.
        let message = received(&standard, sent + 1).await.pop().unwrap();
        let event: serde_json::Value = serde_json::from_slice(&message.body).unwrap();
        let own = (!run_url.is_empty()).then_some(link);
        assert_eq!(event["data"]["run"]["url"].as_str(), own, "{event}");
        stop(daemon).await;
        // `wait` has no page.
        let waited = program
            .run(&["wait", "-q", "run_1", "--sink", "chat"])
            .await;
        assert_eq!(waited.code, Some(1), "{waited:?}");
        let message = received(&chat, before + 2).await.pop().unwrap();
        let body = String::from_utf8(message.body.to_vec()).unwrap();
        assert_eq!(body.contains(link), own.is_some(), "{body}");
    }
}
