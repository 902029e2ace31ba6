//! Every secret carries a mark; the marks are looked for in everything that comes out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use runwatch::domain::RunRef;
use runwatch::simulator::{Fault, Receiver, Script, Simulator, StreamScript};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::process::Child;
use tokio::task::JoinSet;

use crate::support::{Ended, PATIENCE, Program, eventually, finish, http_client, send_signal};

const KEY: &str = "ck0live7QmarkOfTheApiKey8Zt";
const URL_PATH: &str = "pathQmarkOfTheAddress3Vw";
const URL_QUERY: &str = "queryQmarkOfTheAddress9Xr";
const HEADER: &str = "Bearer-headerQmarkOfTheHeader5Lk";
const TOKEN: &str = "tokenQmarkOfTheControlInterface2Jn";
const PROXY_PASSWORD: &str = "proxyQmarkOfThePassword6Hb";

/// The bytes that sign, marked.
const SIGNING: &[u8] = b"signQmarkOfTheSigningSecret4Gd";

fn signing_secret() -> String {
    format!("whsec_{}", STANDARD.encode(SIGNING))
}

/// What must not show: each mark, and the forms that a secret takes on its way.
fn marks() -> Vec<(&'static str, Vec<u8>)> {
    let proxy = STANDARD.encode(format!("user:{PROXY_PASSWORD}"));
    vec![
        ("the API key", KEY.into()),
        ("the path of a webhook", URL_PATH.into()),
        ("the query of a webhook", URL_QUERY.into()),
        ("a header of a webhook", HEADER.into()),
        ("the control token", TOKEN.into()),
        ("the proxy's password", PROXY_PASSWORD.into()),
        ("the proxy's credentials", proxy.into_bytes()),
        ("the signing secret", STANDARD.encode(SIGNING).into_bytes()),
        ("the signing key", SIGNING.into()),
        // What a longer text cut off would leave of each.
        ("a piece of a secret", b"QmarkOf".to_vec()),
    ]
}

fn found(bytes: &[u8]) -> Option<&'static str> {
    let holds = |mark: &[u8]| bytes.windows(mark.len()).any(|window| window == mark);
    marks()
        .into_iter()
        .find(|(_, mark)| holds(mark))
        .map(|(what, _)| what)
}

#[track_caller]
fn clean(place: &str, bytes: &[u8]) {
    if let Some(what) = found(bytes) {
        let text = String::from_utf8_lossy(bytes);
        let at = marks()
            .iter()
            .find_map(|(_, mark)| text.find(std::str::from_utf8(mark).unwrap()))
            .unwrap_or(0);
        let from = text.floor_char_boundary(at.saturating_sub(300));
        let to = text.ceil_char_boundary((at + 100).min(text.len()));
        panic!("{place} shows {what}: …{}…", &text[from..to]);
    }
}

#[track_caller]
fn clean_end(place: &str, ended: &Ended) {
    clean(
        &format!("standard output of {place}"),
        ended.stdout.as_bytes(),
    );
    clean(
        &format!("standard error of {place}"),
        ended.stderr.as_bytes(),
    );
}

/// A receiver that repeats in its refusal all it was sent, as some servers do.
async fn repeating_server(serving: &mut JoinSet<()>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    serving.spawn(async move {
        while let Ok((mut stream, _client)) = listener.accept().await {
            let mut request = vec![0; 64 * 1024];
            let read = stream.read(&mut request).await.unwrap();
            let refusal = format!(
                "I do not like {}",
                String::from_utf8_lossy(&request[..read])
            );
            let head = format!(
                "HTTP/1.1 404 Not Found\r\ncontent-length: {}\r\n\r\n",
                refusal.len()
            );
            drop(stream.write_all((head + &refusal).as_bytes()).await);
        }
    });
    format!("http://{address}")
}

/// A receiver whose refusal is so long that the secret in it is cut off in the middle.
async fn cutting_server(serving: &mut JoinSet<()>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    serving.spawn(async move {
        while let Ok((mut stream, _client)) = listener.accept().await {
            let mut request = vec![0; 64 * 1024];
            drop(stream.read(&mut request).await);
            // White space is folded, so that what comes after much of it is shown.
            let refusal = format!("{:1000}/{URL_PATH} is not known here", "no");
            let head = format!(
                "HTTP/1.1 404 Not Found\r\ncontent-length: {}\r\n\r\n",
                refusal.len()
            );
            drop(stream.write_all((head + &refusal).as_bytes()).await);
        }
    });
    format!("http://{address}")
}

struct World {
    simulator: Simulator,
    accepting: Receiver,
    failing: Receiver,
    repeating: String,
    cutting: String,
    _serving: JoinSet<()>,
}

impl World {
    async fn start() -> Self {
        let simulator = Simulator::start().await.unwrap();
        simulator.set_api_key(KEY);
        for run in ["run_1", "run_2"] {
            simulator.add_run(
                &RunRef::new(run).unwrap(),
                Script::fails("no").answers(vec!["running"]),
            );
        }
        let mut serving = JoinSet::new();
        Self {
            simulator,
            accepting: Receiver::start([]).await.unwrap(),
            failing: Receiver::start((0..20).map(|_| Fault::status(500)))
                .await
                .unwrap(),
            repeating: repeating_server(&mut serving).await,
            cutting: cutting_server(&mut serving).await,
            _serving: serving,
        }
    }

    /// The API is reached through a proxy with a password: the simulator is both.
    fn proxy(&self) -> String {
        self.simulator
            .base_url()
            .replace("http://", &format!("http://user:{PROXY_PASSWORD}@"))
    }
}

/// How the API key gets in.
const WAYS: [&str; 5] = [
    "CREWSHIP_API_KEY",
    "RUNWATCH_API__KEY",
    "key",
    "key_file",
    "credential",
];

const HOOK: &str = "cat > hook.event; env > hook.env; tr '\\0' ' ' < /proc/self/cmdline > hook.cmdline; \
                    tr '\\0' '\\n' < /proc/$$/environ > hook.environ";

/// A program with every secret, in files where `in_files`.
fn program(world: &World, way: &str, in_files: bool) -> Program {
    let proxy = world.proxy();
    let secret = |key: &str, value: &str, file: &str| match in_files {
        true => format!("{key}_file = \"secrets/{file}\"\n"),
        false => format!("{key} = {value:?}\n"),
    };
    let mut files = BTreeMap::from([
        ("token".to_owned(), TOKEN.to_owned()),
        ("header".to_owned(), HEADER.to_owned()),
        ("signing".to_owned(), signing_secret()),
        ("key".to_owned(), KEY.to_owned()),
    ]);
    let mut config = String::from("[api]\nbase_url = \"http://api.invalid\"\n");
    match way {
        "key" => config += &format!("key = {KEY:?}\n"),
        "key_file" => config += "key_file = \"secrets/key\"\n",
        _ => {}
    }
    config += "[control]\nlisten = \"127.0.0.1:0\"\ntoken_file = \"secrets/token\"\n";
    let path = format!("/services/{URL_PATH}?token={URL_QUERY}");
    for (name, base, format) in [
        (
            "accepting",
            world.accepting.url().replace("/hook", ""),
            "standard",
        ),
        ("failing", world.failing.url().replace("/hook", ""), "slack"),
        ("repeating", world.repeating.clone(), "ntfy"),
        ("cutting", world.cutting.clone(), "discord"),
        ("proxied", "https://hooks.invalid".to_owned(), "teams"),
        ("closed", "http://127.0.0.1:9".to_owned(), "standard"),
    ] {
        let url = base + &path;
        config += &format!(
            "[sinks.{name}]\ntype = \"webhook\"\nformat = {format:?}\nretry_schedule = [\"50ms\"]\n"
        );
        config += &secret("url", &url, name);
        config += &secret("secret", &signing_secret(), "signing");
        config += &format!(
            "[sinks.{name}.headers]\n{}",
            secret("x-token", HEADER, "header")
        );
        files.insert(name.to_owned(), url);
    }
    let url = world.repeating.clone() + &path;
    config += &format!("[heartbeat]\n{}", secret("url", &url, "beat"));
    files.insert("beat".to_owned(), url);
    config +=
        "[sinks.file]\ntype = \"log\"\npath = \"events.jsonl\"\n[sinks.journal]\ntype = \"log\"\n";
    config +=
        &format!("[sinks.hook]\ntype = \"command\"\nargv = [\"/bin/sh\", \"-c\", {HOOK:?}]\n");
    let mut program = Program::with(&world.simulator)
        .unset("CREWSHIP_API_KEY")
        .unset("RUNWATCH_API__BASE_URL")
        .set("HTTP_PROXY", &proxy)
        .set("HTTPS_PROXY", &proxy)
        .set("NO_PROXY", "127.0.0.1,localhost")
        .set("RUST_BACKTRACE", "full")
        .configured(&config);
    for (name, text) in files {
        program = program.with_file(&format!("secrets/{name}"), &text);
    }
    let run = program.home().join("run");
    std::fs::create_dir_all(&run).unwrap();
    let program = program.set("XDG_RUNTIME_DIR", run.to_str().unwrap());
    match way {
        "CREWSHIP_API_KEY" | "RUNWATCH_API__KEY" => program.set(way, KEY),
        "credential" => {
            let credentials = program.beside_config("secrets/credentials");
            let program = program.with_file("secrets/credentials/crewship-api-key", KEY);
            program.set("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap())
        }
        _ => program,
    }
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files_below(&entry.path(), found);
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
}

/// Looks through every file that the program wrote: all but its configuration and its secrets.
fn clean_files(program: &Program, expected: &[&str]) {
    let mut files = Vec::new();
    files_below(program.home(), &mut files);
    let ours = |path: &PathBuf| {
        !path.starts_with(program.beside_config("secrets")) && !path.ends_with("config.toml")
    };
    files.retain(ours);
    for name in expected {
        assert!(
            files.iter().any(|path| path.ends_with(name)),
            "{name} is there: {files:?}"
        );
    }
    for path in files {
        // The password of the proxy is in the environment for all programs, as its user put it there.
        let own = ["hook.env", "hook.environ"]
            .iter()
            .any(|name| path.ends_with(name));
        let bytes = std::fs::read(&path).unwrap();
        let bytes = if own {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            text.lines()
                .filter(|line| !line.contains("_PROXY="))
                .collect::<Vec<_>>()
                .join("\n")
                .into_bytes()
        } else {
            bytes
        };
        clean(&path.display().to_string(), &bytes);
    }
}

/// That the secrets were in use: without that, their absence would show nothing.
fn all_were_used(world: &World) {
    let requests = world.simulator.requests();
    let poll = requests
        .iter()
        .find(|request| request.path == "/v1/runs/run_1")
        .expect("the run is polled");
    assert_eq!(poll.headers["authorization"], format!("Bearer {KEY}"));
    let proxy = format!(
        "Basic {}",
        STANDARD.encode(format!("user:{PROXY_PASSWORD}"))
    );
    assert_eq!(poll.headers["proxy-authorization"], proxy);
    let messages = world.accepting.requests();
    let message = messages.first().expect("a message arrives");
    assert_eq!(message.path, format!("/services/{URL_PATH}"));
    assert_eq!(message.headers["x-token"], HEADER);
    assert!(message.headers.contains_key("webhook-signature"));
    let secret = signing_secret();
    let now = jiff::Timestamp::now();
    runwatch::notify::signature::verify(&secret, &message.headers, &message.body, now)
        .expect("it is signed");
}

#[test]
fn marks_are_found_where_they_are() {
    assert_eq!(
        found(format!("error: {KEY} is wrong").as_bytes()),
        Some("the API key")
    );
    assert_eq!(found(b"...QmarkOfTh"), Some("a piece of a secret"));
    assert_eq!(found(b"nothing"), None);
}

#[tokio::test]
async fn no_secret_is_in_anything_that_a_wait_leaves() {
    for (way, format) in WAYS
        .into_iter()
        .zip(["text", "json", "text", "json", "text"])
    {
        let world = World::start().await;
        let program = program(&world, way, format == "json");
        let common = ["--log-level", "trace", "--log-format", format];
        let ended = program
            .run(&[&["wait", "run_1", "--linger", "60s", "--json"], &common[..]].concat())
            .await;
        assert_eq!(ended.code, Some(1), "{way}: {ended:?}");
        assert!(
            ended.stderr.contains("not delivered to proxied"),
            "{way}: {ended:?}"
        );
        clean_end("wait", &ended);
        clean_files(
            &program,
            &["hook.event", "hook.env", "hook.environ", "events.jsonl"],
        );
        for arguments in [
            &["config", "show"][..],
            &["config", "show", "--json"],
            &["config", "check"],
            &["sinks", "test"],
        ] {
            let ended = program.run(&[arguments, &common[..]].concat()).await;
            assert!(ended.stdout.len() > 10, "{arguments:?}: {ended:?}");
            clean_end(&format!("{arguments:?}"), &ended);
        }
        all_were_used(&world);
    }
}

#[tokio::test]
async fn no_secret_is_in_the_problems_of_a_wrong_configuration() {
    let world = World::start().await;
    for in_files in [false, true] {
        let mut program = program(&world, "key", in_files);
        let text = std::fs::read_to_string(program.beside_config("config.toml")).unwrap();
        for (right, wrong) in [
            ("http://127", "htp://127"),
            ("whsec_", "whsek_"),
            ("x-token", "x token"),
            ("url", "ulr"),
            ("secret", "sercet"),
            ("[sinks.closed.headers]", "[sinks.closed.headers"),
            ("key = \"", "key = \"has space "),
            ("key = \"", "key_file = \""),
            ("token_file = \"", "token = \"x\"\ntoken_file = \""),
            ("retry_schedule = [\"50ms\"]\nurl", "retry_schedule = url"),
        ] {
            program = program.configured(&text.replace(right, wrong));
            for arguments in [
                &["config", "check"][..],
                &["config", "check", "--json"],
                &["wait", "run_1"],
                &["daemon"],
            ] {
                let ended = program
                    .run(&[arguments, &["--log-level", "trace"]].concat())
                    .await;
                if text.contains(right) {
                    assert_eq!(ended.code, Some(2), "{right}: {ended:?}");
                    clean_end(&format!("{arguments:?} with {wrong}"), &ended);
                }
                if !text.contains(right) {
                    break;
                }
            }
        }
    }
}

/// Starts the daemon and waits until it answers.
async fn start(program: &Program, format: &str) -> Child {
    let mut child = program
        .command(&["daemon", "--log-level", "trace", "--log-format", format])
        .spawn()
        .unwrap();
    let socket = program.home().join("run/runwatch/runwatch.sock");
    eventually("the daemon listens", || {
        assert!(child.try_wait().unwrap().is_none(), "the daemon ended");
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    })
    .await;
    child
}

/// All that the daemon says, read as it comes: at this level it would fill a pipe.
fn collect(child: &mut Child, tasks: &mut JoinSet<Vec<u8>>) {
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    tasks.spawn(async move {
        let mut bytes = Vec::new();
        out.read_to_end(&mut bytes).await.unwrap();
        bytes
    });
    tasks.spawn(async move {
        let mut bytes = Vec::new();
        err.read_to_end(&mut bytes).await.unwrap();
        bytes
    });
}

#[tokio::test]
async fn no_secret_is_in_anything_that_the_daemon_leaves() {
    for (way, format) in [("CREWSHIP_API_KEY", "json"), ("key_file", "text")] {
        let world = World::start().await;
        let program = program(&world, way, way == "key_file");
        let mut daemon = start(&program, format).await;
        let mut outputs = JoinSet::new();
        collect(&mut daemon, &mut outputs);
        let common = ["--log-level", "trace"];
        let run = async |arguments: &[&str]| {
            let ended = program.run(&[arguments, &common[..]].concat()).await;
            clean_end(&format!("{arguments:?}"), &ended);
            ended
        };
        assert_eq!(run(&["add", "run_1", "run_2"]).await.code, Some(0));
        run(&["wait", "--daemon", "run_1"]).await;
        run(&["wait", "--daemon", "run_2"]).await;
        // All but those that fail are delivered, and those are given up.
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let ended = run(&["deliveries", "--json"]).await;
            if !ended.stdout.contains("\"pending\"") && !ended.stdout.contains("\"sending\"") {
                assert!(ended.stdout.contains("\"dead\""), "{ended:?}");
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "{ended:?}");
        }
        for arguments in [
            &["show", "run_1"][..],
            &["show", "run_1", "--json"],
            &["list", "--all", "--json"],
            &["deliveries"],
        ] {
            let ended = run(arguments).await;
            assert!(
                ended.code == Some(0) && ended.stdout.len() > 100,
                "{arguments:?}: {ended:?}"
            );
        }
        let http = http_client()
            .unix_socket(program.home().join("run/runwatch/runwatch.sock"))
            .no_proxy();
        let http = http.build().unwrap();
        for path in [
            "/v1/watches",
            "/v1/watches/run_1",
            "/v1/watches/run_9",
            "/v1/deliveries",
            "/v1/openapi.json",
            "/healthz",
            "/readyz",
            "/metrics",
            "/v1/watches?sink=nonsense",
        ] {
            let mut response = http
                .get(format!("http://localhost{path}"))
                .send()
                .await
                .unwrap();
            let mut body = format!("{:?}", response.headers()).into_bytes();
            while let Some(chunk) = response.chunk().await.unwrap() {
                body.extend_from_slice(&chunk);
            }
            clean(path, &body);
        }
        let body = r#"{"run_id":"run_3","sinks":["nonsense"]}"#;
        let mut refused = http
            .post("http://localhost/v1/watches")
            .body(body)
            .send()
            .await
            .unwrap();
        clean("a refusal", &refused.chunk().await.unwrap().unwrap());
        let mut following = http
            .get("http://localhost/v1/events")
            .header("last-event-id", "0")
            .send()
            .await
            .unwrap();
        clean("the events", &following.chunk().await.unwrap().unwrap());

        let pid = daemon.id().unwrap();
        let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(!command_line.is_empty());
        clean("the command line", &command_line);
        // A reload with a wrong file says what is wrong.
        let text = std::fs::read_to_string(program.beside_config("config.toml")).unwrap();
        let program = program.configured(&text.replace("type = \"webhook\"", "type = \"webhok\""));
        send_signal(&daemon, Signal::HUP);
        crate::support::until("the warning", async || {
            let listed = program.run(&["list"]).await;
            clean_end("list", &listed);
            listed.stderr.contains("not in force").then_some(())
        })
        .await;
        clean_files(
            &program,
            &[
                "hook.event",
                "hook.env",
                "events.jsonl",
                "runwatch.db",
                "runwatch.db-wal",
            ],
        );
        send_signal(&daemon, Signal::TERM);
        assert_eq!(finish(daemon).await.code, Some(0));
        let mut log = Vec::new();
        while let Some(bytes) = outputs.join_next().await {
            let bytes = bytes.unwrap();
            clean("the log", &bytes);
            log.extend_from_slice(&bytes);
        }
        let log = String::from_utf8(log).unwrap();
        assert!(
            log.contains("hyper") && log.contains("delivery given up") && log.contains("webhok"),
            "{log}"
        );
        clean_files(&program, &["runwatch.db"]);
        all_were_used(&world);
    }
}

/// A secret in spellings in which servers repeat what they were sent.
fn spellings(secret: &str) -> Vec<String> {
    let each = |escape: &dyn Fn(char) -> String| secret.chars().map(escape).collect::<String>();
    vec![
        each(&|c| format!("%{:02x}", c as u32)),
        each(&|c| format!("%{:02X}", c as u32)),
        each(&|c| format!("%25{:02X}", c as u32)),
        each(&|c| format!("\\u{:04x}", c as u32)),
        each(&|c| format!("\\u{:04X}", c as u32)),
        each(&|c| format!("&#{};", c as u32)),
        each(&|c| format!("&#x{:x};", c as u32)),
        each(&|c| format!("{:02x}", c as u32)),
        each(&|c| format!("{:02X}", c as u32)),
        STANDARD.encode(secret),
        STANDARD.encode(format!("user:{secret}")),
        URL_SAFE_NO_PAD.encode(format!("Bearer {secret}")),
    ]
}

/// A receiver whose refusals hold what it was sent, in every spelling in turn.
async fn respelling_server(serving: &mut JoinSet<()>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    serving.spawn(async move {
        let refusals: Vec<_> = [URL_PATH, HEADER, TOKEN]
            .into_iter()
            .flat_map(spellings)
            .collect();
        for refusal in refusals
            .into_iter()
            .filter(|refusal| !refusal.is_empty())
            .cycle()
        {
            let Ok((mut stream, _client)) = listener.accept().await else {
                return;
            };
            drop(stream.read(&mut vec![0; 64 * 1024]).await);
            let head = format!(
                "HTTP/1.1 400 Bad Request\r\ncontent-length: {}\r\n\r\n",
                refusal.len()
            );
            drop(stream.write_all((head + &refusal).as_bytes()).await);
        }
    });
    format!("http://{address}")
}

/// Fails where a place shows a spelling of a secret that a server was sent, or what it stands for.
#[track_caller]
fn clean_of_spellings(place: &str, bytes: &[u8]) {
    clean(place, bytes);
    let text = String::from_utf8_lossy(bytes);
    let once_less = text.replace("\\\\", "\\");
    for spelling in [KEY, URL_PATH, HEADER].into_iter().flat_map(spellings) {
        // What base64 shares with the characters before and after is no part of the secret.
        let own = spelling.get(12..spelling.len() - 4).expect("a long one");
        assert!(
            !text.contains(own) && !once_less.contains(own),
            "{place} shows {spelling}"
        );
    }
}

#[tokio::test]
async fn no_spelling_of_a_secret_is_in_anything_that_the_daemon_leaves() {
    let mut serving = JoinSet::new();
    let (repeating, accepting) = (
        respelling_server(&mut serving).await,
        Receiver::start([]).await.unwrap(),
    );
    let simulator = Simulator::start().await.unwrap();
    simulator.set_api_key(KEY);
    for (index, spelling) in spellings(KEY).into_iter().enumerate() {
        let (error, run) = (
            format!("the key {spelling} may not do this"),
            format!("run_{index}"),
        );
        let answer = serde_json::json!({
            "id": run, "status": "failed", "error_message": error, "output": { spelling.clone(): [error] }, "input": error,
        });
        // One layer less than what the JSON of a text has.
        let answer = answer.to_string().replace("\\\\u", "\\u");
        let stream = StreamScript::default().message(&spelling);
        simulator.add_run(
            &RunRef::new(&run).unwrap(),
            Script::fails("no").verbatim(answer).stream(stream),
        );
        let refused = format!("refused_{index}");
        simulator.add_run(
            &RunRef::new(&refused).unwrap(),
            Script::succeeds().verbatim(error),
        );
    }
    let count = spellings(KEY).len();
    let mut config =
        String::from("[sinks.file]\ntype = \"log\"\npath = \"events.jsonl\"\nevents = [\"*\"]\n");
    config +=
        &format!("[sinks.hook]\ntype = \"command\"\nargv = [\"/bin/sh\", \"-c\", {HOOK:?}]\n");
    config += &format!(
        "[sinks.accepting]\ntype = \"webhook\"\nurl = {:?}\n",
        accepting.url()
    );
    config += &format!(
        "[sinks.repeating]\ntype = \"webhook\"\nurl = \"{repeating}/{URL_PATH}\"\nretry_schedule = [\"50ms\", \"50ms\"]\n\
         [sinks.repeating.headers]\nx-token = {HEADER:?}\n"
    );
    let program = Program::with(&simulator).configured(&config);
    let run = program.home().join("run");
    std::fs::create_dir_all(&run).unwrap();
    let program = program.set("XDG_RUNTIME_DIR", run.to_str().unwrap());
    let mut daemon = start(&program, "text").await;
    let mut outputs = JoinSet::new();
    collect(&mut daemon, &mut outputs);
    for index in 0..count {
        let ended = format!("run_{index}");
        let activities = program
            .run(&["wait", "--daemon", "--follow", "--json", &ended])
            .await;
        assert_eq!(activities.code, Some(1), "{activities:?}");
        clean_of_spellings(&ended, format!("{activities:?}").as_bytes());
        clean_of_spellings(&ended, activities.stdout.as_bytes());
    }
    let refused: Vec<_> = (0..count).map(|index| format!("refused_{index}")).collect();
    assert_eq!(
        program
            .run_with_input(&["add", "-"], &refused.join("\n"))
            .await
            .code,
        Some(0)
    );
    crate::support::received(&accepting, count).await;
    for sent in accepting.requests() {
        assert!(
            String::from_utf8_lossy(&sent.body).contains("[redacted]"),
            "{sent:?}"
        );
        clean_of_spellings("a message", &sent.body);
    }
    crate::support::until(
        "the refused deliveries to be given up and the polls to fail",
        async || {
            let deliveries = program
                .run(&["deliveries", "--failed", "--json"])
                .await
                .stdout;
            let listed = program.run(&["show", "refused_0"]).await.stdout;
            (deliveries.matches("\"dead\"").count() == count && listed.contains("not JSON"))
                .then_some(())
        },
    )
    .await;
    for index in 0..count {
        for run in [format!("run_{index}"), format!("refused_{index}")] {
            let shown = program.run(&["show", "--json", &run]).await;
            clean_of_spellings(&format!("show {run}"), shown.stdout.as_bytes());
            clean_of_spellings(
                &format!("show {run}"),
                program.run(&["show", &run]).await.stdout.as_bytes(),
            );
        }
    }
    for arguments in [
        &["deliveries", "--json"][..],
        &["deliveries"],
        &["list", "--all", "--json"],
        &["list", "--all"],
    ] {
        let ended = program.run(arguments).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        clean_of_spellings(&format!("{arguments:?}"), ended.stdout.as_bytes());
    }
    let http = http_client()
        .unix_socket(run.join("runwatch/runwatch.sock"))
        .no_proxy()
        .build()
        .unwrap();
    let mut events = http
        .get("http://localhost/v1/events")
        .header("last-event-id", "0")
        .send()
        .await
        .unwrap();
    clean_of_spellings("the events", &events.chunk().await.unwrap().unwrap());
    send_signal(&daemon, Signal::TERM);
    assert_eq!(finish(daemon).await.code, Some(0));
    while let Some(bytes) = outputs.join_next().await {
        clean_of_spellings("the log", &bytes.unwrap());
    }
    clean_files(&program, &["hook.event", "events.jsonl", "runwatch.db"]);
    for name in [
        "hook.event",
        ".config/runwatch/events.jsonl",
        ".local/state/runwatch/runwatch.db",
    ] {
        clean_of_spellings(name, &std::fs::read(program.home().join(name)).unwrap());
    }
}

#[tokio::test]
async fn no_secret_is_in_what_a_panic_leaves() {
    for point in ["observed", "claimed", "sent", "recorded"] {
        let world = World::start().await;
        let program = program(&world, "CREWSHIP_API_KEY", false)
            .set("RUNWATCH_CRASH_AT", &format!("panic:{point}"));
        let mut daemon = start(&program, "text").await;
        let mut outputs = JoinSet::new();
        collect(&mut daemon, &mut outputs);
        drop(program.run(&["add", "run_1"]).await);
        let ended = finish(daemon).await;
        assert_eq!(
            ended.code,
            Some(1),
            "{point}: a broken part stops the daemon"
        );
        let mut log = String::new();
        while let Some(bytes) = outputs.join_next().await {
            log += &String::from_utf8(bytes.unwrap()).unwrap();
        }
        assert!(
            log.contains("panicked at") && log.contains("panic on purpose"),
            "{point}: {log}"
        );
        assert!(log.contains("stack backtrace"), "{point}: {log}");
        clean("the log of a panic", log.as_bytes());
        clean_files(&program, &["runwatch.db"]);
    }
}
