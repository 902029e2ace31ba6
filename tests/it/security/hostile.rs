//! Texts that the API, or a person who controls a run, may fill with anything: harmless wherever they show.

use runwatch::simulator::{Fault, Receiver, Script};
use serde_json::{Value, json};

use crate::support::{Ended, Program, api};

/// Terminal escapes (titles, the clipboard, links, clearing), in both their forms; markup for desktops and
/// chats; templates; shells; characters that turn, hide or end a line; and much of it.
fn hostile() -> String {
    let text = "\x1b]0;title\x07\x1b[2J\x1b[7;38;5;123mred\x1b[77A\x1b]52;c;ZXZpbA==\x07\x1b]8;;http://evil.example\x1b\\here\x1b]8;;\x1b\\ \
                \u{9b}31m\u{9d}0;title\u{9c}\u{90}q\u{9c} \x08\x08\x7f\r\x0b\x0c \
                <b>bold</b> &lt;i&gt; <!channel> <@U1> @everyone **x** _y_ `z` [a](http://evil.example) <http://evil.example|b> \
                {{ 7 * 7 }}{% for x in range(9) %}{{ x }}{% endfor %} ${PATH} $(touch pwned) `touch pwned` ; touch pwned \
                \u{202e}txet denrut\u{202c} \u{2066}alone\u{2069} \u{200b}\u{feff}\u{2028}\u{2029}\u{e0041} \0 end";
    format!("{text}\n{text}\r\n{}", "long ".repeat(20_000))
}

/// An answer whose every text is hostile.
fn answer(status: &str) -> String {
    let text = hostile();
    // serde_json leaves what JSON allows as it is; a lone surrogate it cannot write.
    let mut run = json!({
        "id": "run_1", "version_id": text, "deployment_id": text, "project": text, "status": status,
        "input": {"text": text, text.clone(): [text]}, "output": {"text": text, "lone": "LONE", "huge": 1},
        "error_message": text, "created_at": text, "started_at": text, "completed_at": text,
    })
    .to_string();
    run = run
        .replace("\"LONE\"", "\"\\ud800 and \\udfff\\ud800\"")
        .replace("\"huge\":1", "\"huge\":1e999");
    run
}

/// Why a text is not harmless to show on a terminal; `coloured` allows what runwatch itself sends to one:
/// colours, and moving and clearing in its own lines.
fn harm(text: &str, coloured: bool) -> Option<String> {
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if coloured && let Some(sequence) = rest.strip_prefix("\x1b[") {
            let end = sequence.find(|c: char| !c.is_ascii_digit() && c != ';' && c != '?')?;
            // The live lines erase what is below the cursor, never the whole screen.
            let erases_below = sequence.starts_with('J');
            if erases_below
                || matches!(
                    sequence.as_bytes()[end],
                    b'm' | b'K' | b'A' | b'B' | b'G' | b'h' | b'l'
                )
            {
                rest = &sequence[end + 1..];
                continue;
            }
        }
        let own = c == '\n' || (coloured && c == '\r');
        let hidden = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        if (c.is_control() && !own) || hidden {
            return Some(format!(
                "{c:?} in {:?}",
                rest.chars().take(60).collect::<String>()
            ));
        }
        rest = &rest[c.len_utf8()..];
    }
    None
}

#[track_caller]
fn harmless(place: &str, text: &str) {
    if let Some(harm) = harm(text, false) {
        panic!("{place}: {harm}");
    }
}

#[track_caller]
fn harmless_end(place: &str, ended: &Ended) {
    harmless(&format!("standard output of {place}"), &ended.stdout);
    harmless(&format!("standard error of {place}"), &ended.stderr);
}

/// Every text in a JSON document.
fn texts(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| texts(item, found)),
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            found.push(name.clone());
            texts(value, found);
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

const FORMATS: [&str; 6] = ["slack", "discord", "teams", "ntfy", "apprise", "template"];

/// A receiver that answers as all services do that accept a message: 200.
async fn accepting() -> Receiver {
    Receiver::start(vec![Fault::Empty; 200]).await.unwrap()
}

fn sinks(receiver: &Receiver) -> String {
    let mut config = String::from(
        "[sinks.file]\ntype = \"log\"\npath = \"events.jsonl\"\n[sinks.journal]\ntype = \"log\"\nevents = [\"*\"]\n\
         [sinks.hook]\ntype = \"command\"\nargv = [\"/bin/sh\", \"-c\", \"cat > hook.event; env > hook.env\"]\n",
    );
    for format in FORMATS.into_iter().chain(["standard"]) {
        let url = receiver.url().replace("hook", format);
        config += &format!(
            "[sinks.{format}]\ntype = \"webhook\"\nurl = {url:?}\nformat = {format:?}\nretry_schedule = []\n"
        );
        if format == "template" {
            config += "template_file = \"message.tmpl\"\n";
        }
    }
    config
}

const TEMPLATE: &str =
    r#"{"text": {{ text }}, "status": {{ data.run.status }}, "output": {{ data.run.output }}}"#;

#[tokio::test]
async fn a_hostile_run_is_delivered_everywhere_and_does_no_harm() {
    let receiver = accepting().await;
    let simulator = api([("run_1", Script::succeeds().verbatim(answer("failed")))]).await;
    for (format, arguments) in [
        ("text", &["--json"][..]),
        ("json", &[]),
        ("text", &["--output"]),
    ] {
        let program = Program::with(&simulator)
            .configured(&sinks(&receiver))
            .with_file("message.tmpl", TEMPLATE);
        let common = [
            "--log-level",
            "debug",
            "--log-format",
            format,
            "--name",
            "\u{202e}eman $(touch pwned) =?UTF-8?B?G1sybQ==?=",
        ];
        let ended = program
            .run(&[&["wait", "run_1"], arguments, &common[..]].concat())
            .await;
        assert_eq!(ended.code, Some(1), "{ended:.2000?}");
        assert!(
            !ended.stderr.contains("not delivered"),
            "every sink takes the message: {:.2000}",
            ended.stderr
        );
        harmless_end(&format!("wait {arguments:?} with {format} logs"), &ended);
        assert!(
            ended.stderr.len() < 100_000,
            "logs stay short: {}",
            ended.stderr.len()
        );
        harmless(
            "the log file",
            &std::fs::read_to_string(program.beside_config("events.jsonl")).unwrap(),
        );
        harmless(
            "the environment",
            &std::fs::read_to_string(program.home().join("hook.env")).unwrap(),
        );
        let event = std::fs::read_to_string(program.home().join("hook.event")).unwrap();
        let event: Value = serde_json::from_str(&event).expect("JSON that a strict parser takes");
        assert_eq!(
            event["data"]["run"]["error_message"],
            hostile(),
            "a program gets the text as it is"
        );
        assert!(!program.home().join("pwned").exists());
    }
    let received = receiver.requests();
    assert_eq!(received.len(), 3 * (FORMATS.len() + 1));
    for got in received {
        let place = got.path.trim_start_matches('/');
        let body = std::str::from_utf8(&got.body).unwrap();
        assert!(body.len() < 70_000, "{place}: {} bytes", body.len());
        for (name, value) in &got.headers {
            harmless(
                &format!("the header {name} of {place}"),
                value.to_str().unwrap(),
            );
        }
        match place {
            "ntfy" => {
                harmless(place, body);
                // Encoded, so that nothing in the name is taken for an encoding.
                assert!(
                    got.headers["title"]
                        .to_str()
                        .unwrap()
                        .starts_with("=?UTF-8?B?ZW1hbiAk"),
                    "{got:?}"
                );
            }
            "standard" | "template" => {
                assert!(
                    place == "template" || body.len() < 20_000,
                    "{place}: {} bytes",
                    body.len()
                );
                drop(serde_json::from_str::<Value>(body).expect("JSON that a strict parser takes"));
            }
            _ => {
                let mut found = Vec::new();
                texts(&serde_json::from_str(body).unwrap(), &mut found);
                found.iter().for_each(|text| harmless(place, text));
                let marked = |mark: &str| found.iter().any(|text| text.contains(mark));
                assert!(
                    place != "slack" || (!marked("<!channel>") && !marked("<http")),
                    "{place}: {found:?}"
                );
                // What the Apprise library gets is marked as plain text.
                let is_plain = place == "apprise" && body.contains(r#""format":"text""#);
                assert!(
                    is_plain || place == "slack" || (!marked(" [a](http") && !marked(" **x**")),
                    "{place}: {found:?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn an_unknown_status_is_shown_harmlessly() {
    let receiver = accepting().await;
    let simulator = api([("run_1", Script::succeeds().verbatim(answer(&hostile())))]).await;
    for format in ["text", "json"] {
        let program = Program::with(&simulator)
            .configured(&sinks(&receiver))
            .with_file("message.tmpl", TEMPLATE);
        let arguments = [
            "wait",
            "run_1",
            "--timeout",
            "500ms",
            "--log-level",
            "debug",
            "--log-format",
            format,
        ];
        let ended = program.run(&arguments).await;
        assert_eq!(ended.code, Some(124), "{ended:.2000?}");
        assert!(
            !ended.stderr.contains("not delivered"),
            "{:.2000}",
            ended.stderr
        );
        harmless_end("wait", &ended);
        assert!(
            ended.stderr.len() < 100_000,
            "logs stay short: {}",
            ended.stderr.len()
        );
    }
    for (body, what) in [
        (hostile(), "no JSON"),
        (
            json!({"id": hostile(), "status": "succeeded"}).to_string(),
            "another run",
        ),
        (
            r#"{"id":"run_1","status":"\ud800"}"#.to_owned(),
            "half a character",
        ),
    ] {
        let simulator = api([("run_1", Script::succeeds().verbatim(body))]).await;
        let ended = Program::with(&simulator)
            .run(&[
                "wait",
                "run_1",
                "--timeout",
                "300ms",
                "--log-level",
                "debug",
            ])
            .await;
        assert_eq!(ended.code, Some(6), "{what}: {ended:.2000?}");
        harmless_end(what, &ended);
    }
}

#[tokio::test]
async fn a_terminal_is_sent_nothing_but_our_own_colours() {
    let receiver = accepting().await;
    let mut shown = Vec::new();
    for (status, more) in [
        ("failed", ""),
        ("failed", "--json"),
        ("succeeded", "--output"),
        (hostile().as_str(), "--timeout 500ms"),
    ] {
        let simulator = api([("run_1", Script::succeeds().verbatim(answer(status)))]).await;
        let program = Program::with(&simulator)
            .set("TERM", "xterm-256color")
            .set("COLUMNS", "80");
        let program = program
            .configured(&sinks(&receiver))
            .with_file("message.tmpl", TEMPLATE);
        let command = format!(
            "{} wait run_1 --log-level debug {more}",
            env!("CARGO_BIN_EXE_runwatch")
        );
        // script(1) gives it a terminal.
        let ended = program
            .shell(&["script", "-qec", &command, "/dev/null"])
            .output()
            .await
            .unwrap();
        let text = String::from_utf8(ended.stdout).expect("UTF-8");
        assert!(text.contains("\x1b["), "it has colours: {text:.300}");
        if let Some(harm) = harm(&text, true) {
            panic!("{status:.20} {more}: {harm}");
        }
        // What the program could send as well, but never sends: it would come from the run.
        for sequence in ["\x1b[7;38;5;123m", "\x1b[77A"] {
            assert!(
                !text.contains(sequence),
                "{status:.20} {more}: {sequence:?}"
            );
        }
        shown.push(text);
    }
    assert!(
        shown[0].contains("failed") && shown[2].contains("denrut"),
        "{:.2000}",
        shown[2]
    );
}

#[tokio::test]
async fn what_the_daemon_shows_of_a_hostile_run_is_harmless() {
    let receiver = accepting().await;
    let (failed, odd) = (
        answer("failed"),
        answer(&hostile()).replace("run_1", "run_2"),
    );
    let scripts = [
        ("run_1", Script::succeeds().verbatim(failed)),
        ("run_2", Script::succeeds().verbatim(odd)),
    ];
    let simulator = api(scripts).await;
    let program = Program::with(&simulator)
        .configured(&sinks(&receiver))
        .with_file("message.tmpl", TEMPLATE);
    let run = program.home().join("run");
    std::fs::create_dir(&run).unwrap();
    let program = program.set("XDG_RUNTIME_DIR", run.to_str().unwrap());
    let daemon = program
        .command(&["daemon", "--log-level", "debug"])
        .spawn()
        .unwrap();
    let socket = run.join("runwatch/runwatch.sock");
    crate::support::eventually("the daemon listens", || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    })
    .await;
    let label = format!("team=$(touch pwned){}", "x".repeat(100));
    let ended = program
        .run(&[
            "add",
            "run_1",
            "run_2",
            "--name",
            "\u{202e}eman",
            "--label",
            &label,
        ])
        .await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(
        program.run(&["wait", "--daemon", "run_1"]).await.code,
        Some(1)
    );
    crate::support::received(&receiver, 6).await;
    let mut following = program
        .command(&["events", "--after", "0"])
        .spawn()
        .unwrap();
    let mut lines = tokio::io::BufReader::new(following.stdout.take().unwrap());
    let mut line = String::new();
    tokio::io::AsyncBufReadExt::read_line(&mut lines, &mut line)
        .await
        .unwrap();
    assert!(line.contains("denrut"), "{line:.500}");
    harmless("events", &line);
    for arguments in [
        &["list", "--all"][..],
        &["list", "--all", "--json"],
        &["show", "run_1"],
        &["show", "run_1", "--json"],
        &["show", "run_2"],
        &["show", "run_2", "--json"],
        &["deliveries"],
        &["deliveries", "--json"],
        &["wait", "--daemon", "run_1", "--json"],
        &["wait", "--daemon", "run_1"],
    ] {
        let ended = program.run(arguments).await;
        assert!(!ended.stdout.is_empty(), "{arguments:?}: {ended:.2000?}");
        harmless_end(&format!("{arguments:?}"), &ended);
    }
    crate::support::send_signal(&daemon, rustix::process::Signal::TERM);
    let ended = crate::support::finish(daemon).await;
    harmless_end("the daemon", &ended);
    assert!(!program.home().join("pwned").exists());
}

#[test]
fn harm_is_found() {
    for text in [
        "a\x1b]0;x\x07",
        "a\u{9b}31m",
        "a\u{202e}b",
        "\0",
        "\x1b[31m",
        "a\rb",
        "\u{feff}",
    ] {
        assert!(harm(text, false).is_some(), "{text:?}");
    }
    assert_eq!(harm("fine\nשלום 日本", false), None);
    assert_eq!(harm("\x1b[1;31mred\x1b[0m\r\n\x1b[2K", true), None);
    for text in ["\x1b]0;x\x07", "\x1b[2J", "\x1b[5n", "\u{9b}31m"] {
        assert!(harm(text, true).is_some(), "{text:?}");
    }
}
