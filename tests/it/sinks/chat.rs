//! Chat formats and templates: what arrives, and that the address, which is the secret, is shown nowhere.

use runwatch::simulator::{Fault, Script};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::{body, closed_port, header, receiver, wait, webhook};
use crate::support::{Program, api};

const FORMATS: [&str; 6] = ["standard", "slack", "discord", "teams", "ntfy", "apprise"];

/// A path as chat services give it out.
const SECRET_PATH: &str = "/services/T00000000/B00000000/0123456789abcdefghijklmn";

const HEADERS: &str = r#"headers = { x-token = "hdr_0123456789" }"#;

fn format(format: &str) -> String {
    format!("format = {format:?}\nretry_schedule = []")
}

#[tokio::test]
async fn a_template_file_that_never_ends_is_refused() {
    let config = "[sinks.own]\ntype = \"webhook\"\nurl = \"http://127.0.0.1:9/\"\nformat = \"template\"\n\
                  content_type = \"text/plain\"\ntemplate_file = \"/dev/zero\"\n";
    let ended = Program::new()
        .set("CREWSHIP_API_KEY", "key")
        .configured(config)
        .run(&["config", "check"])
        .await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(format!("{ended:?}").contains("/dev/zero"), "{ended:?}");
}

#[tokio::test]
async fn each_format_is_what_its_service_reads() {
    for (kind, content_type, shown) in [
        ("slack", "application/json", "/attachments/0/text"),
        ("discord", "application/json", "/embeds/0/description"),
        (
            "teams",
            "application/json",
            "/attachments/0/content/body/1/text",
        ),
        ("ntfy", "text/plain; charset=utf-8", ""),
    ] {
        let receiver = receiver([]).await;
        // Seen running first: a late end would say so, on a slow machine only.
        let script = Script::fails("out of memory").answers(vec!["running"]);
        let ended = wait(
            script,
            &webhook("chat", &receiver.url(), &format(kind)),
            &[],
        )
        .await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        let got = &receiver.requests()[0];
        assert_eq!(header(got, "content-type"), content_type, "{kind}");
        let text = String::from_utf8(got.body.to_vec()).unwrap();
        if shown.is_empty() {
            assert_eq!(text, "out of memory");
            assert!(header(got, "title").starts_with("run_1 failed"), "{got:?}");
            assert_eq!(
                (header(got, "priority"), header(got, "tags")),
                ("high", "rotating_light")
            );
        } else {
            assert!(
                text.contains("run_1 failed") || text.contains("run\\\\_1 failed"),
                "{kind}: {text}"
            );
            assert_eq!(
                body(got).pointer(shown).unwrap(),
                "out of memory",
                "{kind}: {text}"
            );
        }
    }
}

#[tokio::test]
async fn a_template_makes_the_body() {
    let (simulator, receiver) = (
        api([("run_1", Script::fails("say \"no\""))]).await,
        receiver([]).await,
    );
    let template = |name: &str, content_type: &str| {
        let more = format!(
            "template_file = \"{name}.tmpl\"\ncontent_type = {content_type:?}\n{}",
            format("template")
        );
        webhook(name, &receiver.url().replace("hook", name), &more)
    };
    let sinks = template("json", "application/vnd.example+json")
        + &template("text", "text/plain")
        + &template("wrong", "text/plain");
    let mut program = Program::with(&simulator).configured(&sinks);
    for (name, text) in [
        (
            "json",
            r#"{"why": {{ data.run.error_message }}, "kind": {{ type }}, "attempt": {{ attempt }}}"#,
        ),
        ("text", "{{ data.run.id }}: {{ lines[0] | upper }}"),
        ("wrong", "{{ data.run.eror_message }}{{ nothing.at.all }}"),
    ] {
        program = program.with_file(&format!("{name}.tmpl"), text);
    }
    let ended = program.run(&["wait", "run_1"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let mut got = receiver.requests();
    got.sort_by(|a, b| a.path.cmp(&b.path));
    let got: Vec<_> = got
        .iter()
        .map(|got| {
            (
                &got.path[1..],
                header(got, "content-type"),
                std::str::from_utf8(&got.body).unwrap(),
            )
        })
        .collect();
    let json = r#"{"why": "say \"no\"", "kind": "run.failed", "attempt": 1}"#;
    assert_eq!(
        got,
        [
            ("json", "application/vnd.example+json", json),
            ("text", "text/plain", "run_1: SAY \"NO\"")
        ],
        "{ended:?}"
    );
    assert!(
        ended
            .stderr
            .contains("was not delivered to wrong after 1 attempt: the template"),
        "{ended:?}"
    );
}

/// A server that repeats the address and a header in its refusal, as some do.
async fn repeating_server(serving: &mut JoinSet<()>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    serving.spawn(async move {
        while let Ok((mut stream, _client)) = listener.accept().await {
            let mut request = vec![0; 64 * 1024];
            let read = stream.read(&mut request).await.unwrap();
            let request = String::from_utf8_lossy(&request[..read]);
            let token = request
                .lines()
                .find(|line| line.starts_with("x-token"))
                .unwrap();
            let refusal = format!("Cannot {} with {token}", request.lines().next().unwrap());
            let answer = format!(
                "HTTP/1.1 404 Not Found\r\ncontent-length: {}\r\n\r\n{refusal}",
                refusal.len()
            );
            drop(stream.write_all(answer.as_bytes()).await);
        }
    });
    format!("http://{address}/")
}

#[tokio::test]
async fn an_address_is_shown_nowhere() {
    let mut serving = JoinSet::new();
    let ((_held, closed), repeating) = (closed_port(), repeating_server(&mut serving).await);
    for kind in FORMATS {
        let (failing, accepting) = (
            receiver([Fault::status(500)]).await,
            receiver([Fault::Empty]).await,
        );
        let at = |url: &str| {
            format!(
                "{}{SECRET_PATH}?token=tok_0123456789",
                &url[..url.rfind('/').unwrap()]
            )
        };
        let sinks: String = [("closed", &closed), ("repeats", &repeating)]
            .into_iter()
            .chain([("failing", &failing.url()), ("accepting", &accepting.url())])
            .map(|(name, url)| webhook(name, &at(url), &format!("{}\n{HEADERS}", format(kind))))
            .collect();
        let ended = wait(Script::fails("no"), &sinks, &["--log-level", "trace"]).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert_eq!(
            ended.stderr.matches("was not delivered to ").count(),
            3,
            "{ended:?}"
        );
        assert!(
            ended
                .stderr
                .contains("repeats after 1 attempt: 404 Not Found: Cannot POST [redacted]?token=[redacted] HTTP/1.1 with x-token: [redacted]"),
            "{:?}",
            ended.stderr.lines().filter(|line| line.contains("repeats")).collect::<Vec<_>>()
        );
        let accepted = &accepting.requests()[0];
        assert_eq!(
            (accepted.path.as_str(), header(accepted, "x-token")),
            (SECRET_PATH, "hdr_0123456789")
        );
        let program = Program::new().configured(&sinks);
        let tested = program
            .run(&["sinks", "test", "--log-level", "trace"])
            .await;
        assert_eq!(tested.code, Some(1), "{tested:?}");
        for ended in [ended, tested] {
            let shown = ended.stdout + &ended.stderr;
            for part in SECRET_PATH
                .split('/')
                .filter(|part| part.len() >= 8)
                .chain(["tok_0123456789", "hdr_0123456789"])
            {
                assert!(
                    part == "services" || !shown.contains(part),
                    "{kind}: {part} is shown: {shown}"
                );
            }
        }
    }
}
