//! The configuration as users meet it: files, variables, and what is reported about mistakes.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic like tests do")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use runwatch::cli::config as command;
use runwatch::cli::failure::CommandFailure;
use runwatch::config::{
    Effective, Loaded, Problems, Secret, Settings, SinkKind, Sources, WebhookFormat, load,
};
use runwatch::domain::{EventType, OverdueAfter};
use secrecy::ExposeSecret as _;
use tempfile::TempDir;

/// What every secret of these tests contains, and no message may.
const MARKER: &str = "h7Kq2marker";

/// A folder with files, and sources that read nothing else.
struct Setup {
    folder: TempDir,
    sources: Sources,
}

impl Setup {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            sources: Sources::default(),
        }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    fn file(mut self, name: &str, text: &str) -> Self {
        let path = self.write(name, text);
        self.sources.files.push(path);
        self
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.sources.environment.insert(name.into(), value.into());
        self
    }

    fn load(&self) -> Result<Loaded, Problems> {
        load(&self.sources)
    }

    fn settings(&self) -> Settings {
        self.load()
            .unwrap_or_else(|problems| panic!("{problems}"))
            .settings
    }

    /// The problems, with the temporary folder replaced.
    fn problems(&self) -> String {
        let text = self.load().unwrap_err().to_string();
        text.replace(self.folder.path().to_str().unwrap(), "DIR")
    }
}

fn key_text(settings: &Settings) -> String {
    settings
        .api
        .key
        .as_ref()
        .unwrap()
        .read()
        .unwrap()
        .expose_secret()
        .to_owned()
}

#[test]
fn the_built_in_defaults_are_the_documented_ones() {
    let settings = Settings::default();
    assert_eq!(settings.api.base_url, "https://api.crewship.dev");
    assert_eq!(settings.api.requests_per_minute, 60);
    assert_eq!(settings.api.request_timeout, Duration::from_secs(15));
    assert_eq!(settings.api.max_response_bytes, 8 << 20);
    assert_eq!(settings.watch.multiplier, 1.2);
    assert_eq!(settings.watch.deadline, Duration::from_secs(24 * 3600));
    assert_eq!(settings.watch.overdue_after, OverdueAfter::Never);
    assert!(settings.api.key.is_none() && settings.sinks.is_empty() && settings.watches.is_empty());
    assert!(settings.store.path.is_none() && settings.control.socket.is_none());
}

#[test]
fn every_problem_of_a_file_is_reported_at_once() {
    let setup = Setup::new().file(
        "config.toml",
        r#"
[api]
base_url = "ftp://api.example.com"
requests_per_minute = "60"
max_response_bytes = "8 megs"
run_url = "https://example.com/runs/"
request_timout = "15s"
key = "a"
key_file = "b"

[watch]
initial_interval = "10ms"
multiplier = 0.5
max_interval = 30
jitter = 1.0
deadline = "-1h"

[control]
listen = "0.0.0.0:9477"

[sinks.ops]
type = "webhook"
format = "slak"
events = ["run.faild", "watch.*"]
retry_schedule = ["5s", "soon"]

[sinks.hook]
type = "command"
argv = []

[sinks.old]
type = "email"

[sinks.none]

[sinks."a.b"]
type = "desktop"

[[watches]]
run_id = "run_1"
labels = { "bad key" = "x", n = 1 }

[[watches]]
run_id = "run_1"

[[watches]]
run_id = "../keys"

[[watches]]
name = "x"

[wach]
x = 1
"#,
    );
    insta::assert_snapshot!(setup.problems());
}

#[test]
fn several_broken_files_are_all_reported_with_line_and_column() {
    let setup = Setup::new()
        .file("one.toml", &format!("[api]\nkey = \"{MARKER}\n"))
        .file("two.toml", "[watch]\n\ninitial_interval = \n")
        .file(
            "three.toml",
            "[watch]\njitter = 2\n[sinks.ops]\nurl = \"https://example.com\"\n",
        );
    let text = setup.problems();
    assert!(text.contains("DIR/one.toml:2:"), "{text}");
    assert!(text.contains("DIR/two.toml:3:"), "{text}");
    assert!(
        text.contains("DIR/three.toml:2:10: watch.jitter = 2"),
        "{text}"
    );
    assert!(
        !text.contains("required"),
        "what is absent may stand in a broken file: {text}"
    );
    assert!(!text.contains(MARKER), "{text}");
}

#[test]
fn an_explicit_file_must_exist_and_is_the_only_one() {
    let mut setup = Setup::new().file("config.toml", "[watch]\njitter = 0.5\n");
    setup
        .sources
        .files
        .push(setup.folder.path().join("absent.toml"));
    assert_eq!(setup.settings().watch.jitter, 0.5);
    setup.sources.explicit = Some(setup.write("own.toml", "[watch]\nmultiplier = 2\n"));
    let settings = setup.settings();
    assert_eq!(
        (settings.watch.jitter, settings.watch.multiplier),
        (0.1, 2.0)
    );
    setup.sources.explicit = Some(setup.folder.path().join("absent.toml"));
    assert!(
        setup
            .problems()
            .starts_with("DIR/absent.toml: the file cannot be read")
    );
}

#[test]
fn later_files_and_the_environment_win_key_by_key() {
    let setup = Setup::new()
        .file(
            "one.toml",
            "[watch]\njitter = 0.5\nmultiplier = 3\n[sinks.ops]\ntype = \"webhook\"\nurl = \"https://a\"\n",
        )
        .file("two.toml", "[watch]\nmultiplier = 4\n[sinks.ops]\nformat = \"slack\"\nurl_file = \"url\"\n")
        .variable("RUNWATCH_WATCH__MULTIPLIER", "5")
        .variable("RUNWATCH_API__REQUESTS_PER_MINUTE", "0123")
        .variable("RUNWATCH_SINKS__OPS__RETRY_SCHEDULE", "1s, 2m")
        .variable("RUNWATCH_SINKS__OPS__EVENTS", "run.failed,watch.*")
        .variable("RUNWATCH_SINKS__OPS__LABELS__TEAM", "search")
        .variable("RUNWATCH_CONFIG", "elsewhere")
        .variable("RUNWATCH_RUN_ID", "run_1");
    setup.write("url", "https://b.example.com/hook\n");
    let settings = setup.settings();
    assert_eq!(
        (settings.watch.jitter, settings.watch.multiplier),
        (0.5, 5.0)
    );
    assert_eq!(settings.api.requests_per_minute, 123);
    let (_, ops) = settings.sinks.first_key_value().unwrap();
    assert_eq!(
        ops.retry_schedule,
        [Duration::from_secs(1), Duration::from_secs(120)]
    );
    assert_eq!(ops.labels.get("team").map(String::as_str), Some("search"));
    let selected: Vec<_> = EventType::ALL
        .into_iter()
        .filter(|event| ops.events.selects(*event))
        .collect();
    let words: Vec<_> = selected.iter().map(|event| event.as_str()).collect();
    let watches = [
        "watch.not_found",
        "watch.unreachable",
        "watch.timed_out",
        "watch.overdue",
    ];
    assert_eq!(words, [&["run.failed"], &watches[..]].concat());
    let SinkKind::Webhook(webhook) = &ops.kind else {
        panic!("{:?}", ops.kind)
    };
    assert_eq!(webhook.format, WebhookFormat::Slack);
    assert!(matches!(&webhook.url, Secret::File(path) if path == &setup.folder.path().join("url")));
}

#[test]
fn the_address_of_the_page_ends_in_a_slash_and_holds_no_password() {
    let setup = |url: &str| Setup::new().variable("RUNWATCH_CONTROL__PUBLIC_URL", url);
    for (url, read) in [
        ("", None),
        (
            "https://watch.example.com",
            Some("https://watch.example.com/"),
        ),
        ("http://localhost:9477/", Some("http://localhost:9477/")),
        (
            "https://example.com/runwatch",
            Some("https://example.com/runwatch/"),
        ),
        (
            "https://example.com/runwatch/",
            Some("https://example.com/runwatch/"),
        ),
    ] {
        let settings = setup(url).settings();
        let found = settings.control.public_url.as_ref().map(|url| url.as_str());
        assert_eq!(found, read, "{url:?}");
    }
    for (url, problem) in [
        ("watch.example.com", "this is not a URL"),
        ("ftp://watch.example.com", "not http or https"),
        ("https://watch.example.com/?a=b", "a query or a fragment"),
        ("https://watch.example.com/#x", "a query or a fragment"),
        (
            "https://me:the-password@watch.example.com/",
            "a user name or password",
        ),
    ] {
        let problems = setup(url).problems();
        assert!(problems.contains(problem), "{url:?}: {problems}");
        assert!(!problems.contains("the-password"), "{problems}");
    }
}

#[test]
fn a_dash_in_the_name_of_a_sink_stays_one_in_its_variables() {
    let setup = Setup::new().variable("RUNWATCH_SINKS__OPS-TEAM__TYPE", "log");
    assert!(
        setup
            .settings()
            .sinks
            .keys()
            .any(|name| name.as_str() == "ops-team")
    );
}

#[test]
fn an_unusable_proxy_is_a_problem_of_the_configuration() {
    for value in [
        "socks5://user:h7Kq2marker@proxy.example:1080",
        "http://user:h7Kq2marker@",
    ] {
        let problems = Setup::new().variable("HTTPS_PROXY", value).problems();
        assert!(
            problems.contains("HTTPS_PROXY") && !problems.contains(MARKER),
            "{problems}"
        );
    }
}

#[test]
fn problems_of_variables_name_the_variable() {
    let setup = Setup::new()
        .variable("RUNWATCH_API__REQUESTS_PER_MINUTE", "many")
        .variable("RUNWATCH_WATCH__MAX_INTERVAL", "500ms")
        .variable("RUNWATCH_API__KYE", MARKER)
        .variable("RUNWATCH_X[9]__Y", "1")
        .variable("RUNWATCH_WATCH__JITTER", "0.1")
        .variable("RUNWATCH_watch__jitter", "0.2")
        .variable("RUNWATCH_SINKS__OPS__URL", "https://example.com");
    insta::assert_snapshot!(setup.problems());
}

#[test]
fn the_key_comes_from_the_first_source_that_has_one() {
    let mut setup = Setup::new();
    assert!(setup.settings().api.key.is_none());
    setup.write("credentials/crewship-api-key", "\n");
    let folder = setup.folder.path().join("credentials");
    setup = setup.variable("CREDENTIALS_DIRECTORY", folder.to_str().unwrap());
    assert!(
        setup.settings().api.key.is_none(),
        "a blank credential is none"
    );
    setup.write("credentials/crewship-api-key", "from-credential\n");
    assert_eq!(key_text(&setup.settings()), "from-credential");
    setup.write("key", "from-file\n");
    setup = setup.file("config.toml", "[api]\nkey_file = \"key\"\n");
    assert_eq!(key_text(&setup.settings()), "from-file");
    setup = setup.variable("CREWSHIP_API_KEY", "");
    assert_eq!(key_text(&setup.settings()), "from-file");
    setup = setup.variable("CREWSHIP_API_KEY", "from-variable");
    assert_eq!(key_text(&setup.settings()), "from-variable");
    // A key of one's own stands in for a file one may not read.
    std::fs::remove_file(setup.folder.path().join("key")).unwrap();
    assert_eq!(key_text(&setup.settings()), "from-variable");
    let own = setup.write("own", "from-own-file");
    setup = setup.variable("RUNWATCH_API__KEY_FILE", own.to_str().unwrap());
    assert_eq!(key_text(&setup.settings()), "from-own-file");
}

#[test]
fn a_secret_file_is_read_again_at_each_use() {
    let setup = Setup::new().file("config.toml", "[api]\nkey_file = \"key\"\n");
    setup.write("key", "first");
    let settings = setup.settings();
    setup.write("key", "second");
    assert_eq!(key_text(&settings), "second");
}

#[test]
fn paths_default_to_the_folders_of_systemd_then_of_the_user() {
    let setup = Setup::new()
        .variable("HOME", "/home/ann")
        .variable("XDG_RUNTIME_DIR", "/run/user/1");
    let settings = setup.settings();
    assert_eq!(
        settings.store.path.as_deref(),
        Some(Path::new("/home/ann/.local/state/runwatch/runwatch.db"))
    );
    assert_eq!(
        settings.control.socket.as_deref(),
        Some(Path::new("/run/user/1/runwatch/runwatch.sock"))
    );
    let setup = setup
        .variable("STATE_DIRECTORY", "/var/lib/runwatch:/var/lib/other")
        .variable("RUNTIME_DIRECTORY", "/run/runwatch")
        .file(
            "etc/config.toml",
            "[sinks.a]\ntype = \"log\"\npath = \"log\"\n[sinks.b]\ntype = \"log\"\npath = \"~/log\"\n",
        );
    let settings = setup.settings();
    assert_eq!(
        settings.store.path.as_deref(),
        Some(Path::new("/var/lib/runwatch/runwatch.db"))
    );
    assert_eq!(
        settings.control.socket.as_deref(),
        Some(Path::new("/run/runwatch/runwatch.sock"))
    );
    let paths: Vec<_> = settings.sinks.values().map(|sink| &sink.kind).collect();
    assert!(
        matches!(paths[0], SinkKind::Log { path: Some(path) } if *path == setup.folder.path().join("etc/log"))
    );
    assert!(
        matches!(paths[1], SinkKind::Log { path: Some(path) } if path == Path::new("/home/ann/log"))
    );
}

/// Every place a secret can stand, right and wrong.
#[test]
fn no_secret_is_ever_shown() {
    let right = format!(
        "[api]\nkey = \"{MARKER}\"\n[control]\nlisten = \"0.0.0.0:0\"\ntoken = \"{MARKER}\"\n[sinks.ops]\ntype = \"webhook\"\n\
         url = \"https://example.com/{MARKER}\"\nsecret = \"whsec_{MARKER}0\"\nheaders = {{ X-Token = \"{MARKER}\" }}\n"
    );
    let setup = Setup::new()
        .file("config.toml", &right)
        .variable("OTHER", MARKER);
    let loaded = setup.load().unwrap_or_else(|problems| panic!("{problems}"));
    let shown = format!(
        "{loaded:?} {:?} {}",
        setup.sources,
        loaded.effective.to_json()
    );
    assert!(!shown.contains(MARKER), "{shown}");
    assert_eq!(loaded.effective.to_toml().matches("[redacted]").count(), 5);

    let wrong = [
        format!("[api]\nkey = \"{MARKER} x\"\n"),
        format!("[api]\nkey = [\"{MARKER}\"]\n"),
        format!("[api]\nkye = \"{MARKER}\"\n"),
        format!("[api]\nkey_file = \"{MARKER}\"\n"),
        format!("[api]\nkey_file = \"{MARKER}/x\"\n"),
        format!("[api]\nkey = \"{MARKER}\"\nkey_file = \"{MARKER}\"\n"),
        format!("[api]\nbase_url = \"https://u:{MARKER}@example.com\"\n"),
        format!("[api]\nbase_url = \"u:{MARKER}@example.com\"\n"),
        format!("api = \"{MARKER}\"\n"),
        format!("sinks = [\"{MARKER}\"]\n"),
        format!("{MARKER}\n"),
        format!("[api]\nkey = {MARKER}\n"),
        format!("[api]\nkey = '{MARKER}\n"),
        format!("[control]\ntoken = \"{MARKER} x\"\n"),
        format!("[sinks.o]\ntype = \"webhook\"\nurl = \"{MARKER}\"\n"),
        format!("[sinks.o]\ntype = \"webhook\"\nurl = [\"https://{MARKER}\"]\n"),
        format!("[sinks.o]\ntype = \"webhook\"\nurl_file = \"https://{MARKER}\"\n"),
        format!("[sinks.o]\ntype = \"webhook\"\nurl = \"https://a\"\nsecret = \"{MARKER}\"\n"),
        format!(
            "[sinks.o]\ntype = \"webhook\"\nurl = \"https://a\"\nsecret_file = \"whsec_{MARKER}\"\n"
        ),
        format!(
            "[sinks.o]\ntype = \"webhook\"\nurl = \"https://a\"\nheaders = {{ X = \"{MARKER}\\nb\" }}\n"
        ),
        format!(
            "[sinks.o]\ntype = \"webhook\"\nurl = \"https://a\"\nheaders = {{ Host = \"{MARKER}\" }}\n"
        ),
        format!("[sinks.o]\ntype = \"webhook\"\nurl = \"https://a\"\nheaders = \"X: {MARKER}\"\n"),
        format!(
            "[sinks.o]\ntype = \"webhook\"\nurl = \"https://a\"\nvalues = {{ a = \"{MARKER}\" }}\n"
        ),
        format!("[sinks.o]\ntype = \"command\"\nargv = \"curl -H {MARKER}\"\n"),
        format!("[sinks.o]\ntype = \"desktop\"\ntoken = \"{MARKER}\"\n"),
    ];
    for text in wrong {
        let problems = Setup::new().file("config.toml", &text).load().unwrap_err();
        let shown = format!("{problems} {problems:?}");
        assert!(!shown.contains(MARKER), "{text}\n{shown}");
    }
    for name in [
        "CREWSHIP_API_KEY",
        "RUNWATCH_API__KEY",
        "RUNWATCH_API__KEY_FILE",
        "RUNWATCH_SINKS__O",
    ] {
        let problems = Setup::new()
            .variable(name, &format!("{MARKER} x"))
            .load()
            .unwrap_err();
        let shown = format!("{problems} {problems:?}");
        assert!(
            shown.contains(name) && !shown.contains(MARKER),
            "{name}\n{shown}"
        );
    }
}

#[test]
fn a_missing_secret_file_is_named_with_the_folder_it_is_looked_for_in() {
    for (name, shown) in [
        ("crewship-api-key", "DIR/crewship-api-key"),
        ("keys/prod", "DIR/keys/prod"),
        ("./K7", "DIR/K7"),
        ("~/key", "DIR/home/key"),
        ("K7", "DIR"),
    ] {
        let home = |setup: Setup| {
            let home = setup.folder.path().join("home");
            setup.variable("HOME", home.to_str().unwrap())
        };
        for (table, key) in [
            ("[api]", "key_file"),
            ("[control]", "token_file"),
            ("[sinks.o]\ntype = \"webhook\"", "url_file"),
            (
                "[sinks.o]\ntype = \"webhook\"\nurl = \"https://a\"",
                "secret_file",
            ),
        ] {
            let text = format!("{table}\n{key} = \"{name}\"\n");
            let problems = home(Setup::new().file("config.toml", &text)).problems();
            let file = if shown == "DIR" {
                format!("the secret file that {key} names in DIR cannot be read")
            } else {
                format!("the secret file {shown} cannot be read")
            };
            let create = if shown == "DIR" { "PATH" } else { shown };
            let create = format!("`install -m 600 /dev/stdin {create}`");
            assert!(
                problems.contains(&file) && problems.contains(&create),
                "{text}{problems}"
            );
        }
    }
}

#[test]
fn an_unknown_key_is_pointed_at_wherever_it_stands() {
    let text = "[api]\n  nme = \"x\"\n[sinks.o]\ntype = \"desktop\"\nlabels = { a = \"b\" }\nif.x = 1\n\
                [[watches]]\nrun_id = \"a\"\n[[watches]]\nrun_id = \"b\"\n\tnme = 1\n";
    let one = Setup::new().file("one.toml", "[watch]\nx = 1\n");
    let problems = one.file("two.toml", text).problems();
    let places: Vec<_> = problems
        .lines()
        .map(|line| line.split(": there").next().unwrap())
        .collect();
    assert_eq!(
        places,
        [
            "DIR/one.toml:2:1: watch.x",
            "DIR/two.toml:2:3: api.nme",
            "DIR/two.toml:6:1: sinks.o.if",
            "DIR/two.toml:11:2: watches[1].nme"
        ],
        "{problems}"
    );
}

#[test]
fn secret_files_are_checked_when_loading() {
    let setup = Setup::new().file(
        "config.toml",
        "[sinks.o]\ntype = \"webhook\"\nurl_file = \"./url\"\nsecret_file = \"./secret\"\nheaders = { A_file = \"./a\", B_file = \"./b\" }\n",
    );
    setup.write("url", "not a url");
    setup.write(
        "secret",
        &format!("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n{MARKER}\n"),
    );
    setup.write("a", "");
    let text = setup.problems();
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(
        !text.contains(MARKER) && !text.contains("not a url"),
        "{text}"
    );
    setup.write("url", "https://example.com/hook\n");
    setup.write(
        "secret",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\nwhsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n",
    );
    setup.write("a", "x");
    setup.write("b", "y");
    let settings = setup.settings();
    let SinkKind::Webhook(webhook) = &settings.sinks.first_key_value().unwrap().1.kind else {
        panic!()
    };
    assert_eq!(webhook.headers.keys().collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn cross_field_rules_hold() {
    for (text, expected) in [
        (
            "[watch]\ninitial_interval = \"40s\"\n",
            "shorter than watch.initial_interval",
        ),
        ("[control]\nlisten = \"[::]:1\"\n", "no token is set"),
        ("[control]\nlisten = \"localhost:1\"\n", "not an address"),
        ("[api]\nbase_url = \"https://a/?x\"\n", "query"),
        (
            "[sinks.o]\ntype = \"webhook\"\n",
            "sinks.o.url: this is required",
        ),
        (
            "[sinks.o]\ntype = \"command\"\n",
            "sinks.o.argv: this is required",
        ),
        (
            "[sinks.o]\ntype = \"webhook\"\nurl = \"https://a\"\nformat = \"template\"\n",
            "template_file: this is required",
        ),
        (
            "[sinks.o]\ntype = \"webhook\"\nurl = \"https://a\"\ncontent_type = \"a/b\"\n",
            "format = \"template\"",
        ),
        (
            "[sinks.o]\ntype = \"log\"\ndigest = \"often\"\n",
            "sinks.o.digest = \"often\": this must be true or false",
        ),
        ("[store]\nretention = \"4000d\"\n", "out of range"),
        (
            "[control]\nsocket = \"/very/long/SOCKET\"\n",
            "at most 107 bytes",
        ),
    ] {
        let text = text.replace("SOCKET", &"x".repeat(100));
        let problems = Setup::new().file("config.toml", &text).problems();
        assert!(
            problems.contains(expected) && problems.lines().count() == 1,
            "{text}\n{problems}"
        );
    }
    let setup = Setup::new().file(
        "config.toml",
        "[control]\nlisten = \"127.0.0.1:0\"\n[sinks.o]\ntype = \"log\"\nretry_schedule = []\n",
    );
    assert!(
        setup
            .settings()
            .sinks
            .first_key_value()
            .unwrap()
            .1
            .retry_schedule
            .is_empty()
    );
}

/// The text of a file of the repository's `config` folder.
fn example(name: &str) -> String {
    std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("config")
            .join(name),
    )
    .unwrap()
}

/// Writes a file for every relative path of a secret or template that the text names.
fn write_named_files(setup: &Setup, text: &str) {
    for line in text.lines() {
        for part in line.split("_file = \"").skip(1) {
            let name = part.split('"').next().unwrap();
            let content = match line {
                _ if name.contains("url") => "https://example.com/hook",
                _ if line.starts_with("secret_file") => "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
                _ => "some-secret",
            };
            if !name.is_empty() {
                setup.write(name, content);
            }
        }
    }
}

#[test]
fn every_example_loads() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let names = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names: Vec<String> = names.filter(|name| name.ends_with(".toml")).collect();
    assert!(names.len() >= 4, "{names:?}");
    for name in names {
        let text = example(&name);
        let setup = Setup::new().file("config.toml", &text);
        write_named_files(&setup, &text);
        setup
            .load()
            .unwrap_or_else(|problems| panic!("{name}\n{problems}"));
    }
}

/// The documented keys as if the user had removed every `#` that stands before a key or a table.
fn uncommented() -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(rest)
            if rest.starts_with(|first: char| first.is_ascii_alphabetic() || first == '[') =>
        {
            rest.to_owned()
        }
        _ => line.to_owned(),
    };
    example("runwatch.toml")
        .lines()
        .map(line)
        .collect::<Vec<_>>()
        .join("\n")
}

fn values(effective: &Effective) -> BTreeMap<String, Option<serde_json::Value>> {
    effective
        .0
        .iter()
        .map(|entry| {
            (
                format!("{}.{}", entry.table, entry.key),
                entry.value.clone(),
            )
        })
        .collect()
}

#[test]
fn the_documented_defaults_are_the_real_ones() {
    let text = uncommented();
    let general = text.split("[sinks.desktop]").next().unwrap();
    // These depend on the machine; their lines are examples.
    let examples = ["key_file =", "path =", "socket ="];
    let kept = general
        .lines()
        .filter(|line| !examples.iter().any(|start| line.starts_with(start)));
    let setup = Setup::new().file("config.toml", &kept.collect::<Vec<_>>().join("\n"));
    let documented = setup
        .load()
        .unwrap_or_else(|problems| panic!("{problems}"))
        .effective;
    let real = load(&Sources::default()).unwrap().effective;
    assert_eq!(values(&documented), values(&real));
    let undocumented = documented
        .0
        .iter()
        .filter(|entry| entry.origin.to_string() == "default" && entry.value.is_some());
    assert_eq!(
        undocumented.collect::<Vec<_>>(),
        Vec::<&runwatch::config::EffectiveEntry>::new()
    );
}

#[test]
fn the_documented_defaults_of_sinks_are_the_real_ones() {
    let template = example("runwatch.toml");
    // The block of defaults stands in comments, indented by three spaces; explanations by five.
    let block: Vec<&str> = template
        .lines()
        .skip_while(|line| !line.starts_with("#   events"))
        .take_while(|line| line.starts_with("#   "))
        .filter(|line| !line.starts_with("#     ") || line.starts_with("#             "))
        .map(|line| &line[1..])
        .collect();
    let documented = Setup::new().file(
        "config.toml",
        &format!("[sinks.x]\ntype = \"desktop\"\n{}\n", block.join("\n")),
    );
    let real = Setup::new().file("config.toml", "[sinks.x]\ntype = \"desktop\"\n");
    let effective = |setup: &Setup| {
        values(
            &setup
                .load()
                .unwrap_or_else(|problems| panic!("{problems}"))
                .effective,
        )
    };
    assert_eq!(effective(&documented), effective(&real));
    assert!(block.len() >= 3, "{block:?}");
}

#[test]
fn every_documented_key_exists() {
    // The template belongs to one format only.
    let text = uncommented().replace("format = \"standard\"", "format = \"template\"");
    let setup = Setup::new().file("config.toml", &text);
    write_named_files(&setup, &text);
    let settings = setup.settings();
    assert_eq!((settings.sinks.len(), settings.watches.len()), (5, 1));
    for sink in settings.sinks.values() {
        if let SinkKind::Command { timeout, .. } = &sink.kind {
            assert_eq!(*timeout, Duration::from_secs(30));
        }
    }
}

#[test]
fn show_tells_the_origin_of_each_key_and_reads_back() {
    let setup = Setup::new()
        .file(
            "config.toml",
            "[watch]\njitter = 0.5\n[sinks.ops]\ntype = \"webhook\"\nurl = \"https://example.com/secret\"\n\
             labels = { team = \"a\\\"b\" }\n[[watches]]\nrun_id = \"run_1\"\n[[watches]]\nrun_id = \"run_2\"\nname = \"n\"\n",
        )
        .variable("RUNWATCH_WATCH__DEADLINE", "90m");
    let (mut out, mut err) = (Vec::new(), Vec::new());
    assert_eq!(
        command::show(&setup.sources, false, &mut out, &mut err).unwrap(),
        0
    );
    assert!(err.is_empty());
    let text = String::from_utf8(out).unwrap();
    insta::assert_snapshot!(text.replace(setup.folder.path().to_str().unwrap(), "DIR"));
    let again = Setup::new().file(
        "config.toml",
        &text.replace("[redacted]", "https://example.com/secret"),
    );
    assert_eq!(
        values(&again.load().unwrap().effective),
        values(&setup.load().unwrap().effective)
    );

    let mut out = Vec::new();
    command::show(&setup.sources, true, &mut out, &mut err).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
    let jitter = json["settings"]
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["key"] == "watch.jitter")
        .unwrap();
    assert_eq!(jitter["value"], 0.5);
}

#[test]
fn check_answers_with_code_and_text() {
    let run = |setup: &Setup, json| {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = command::check(&setup.sources, json, &mut out, &mut err).unwrap();
        (
            code,
            String::from_utf8(out).unwrap(),
            String::from_utf8(err).unwrap(),
        )
    };
    let keyless = Setup::new().file("config.toml", "");
    let (code, _, err) = run(&keyless, false);
    assert_eq!((code, err.lines().count()), (0, 1), "{err}");
    assert!(
        err.starts_with("warning: api.key_file: there is no API key"),
        "{err}"
    );
    let (code, out, _) = run(&keyless, true);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, json["ok"].as_bool()), (0, Some(true)));
    assert_eq!(json["warnings"][0]["key"], "api.key_file");
    let good = keyless.variable("CREWSHIP_API_KEY", "ck_12345");
    let (code, out, err) = run(&good, false);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(
        out.starts_with("ok: ") && out.ends_with("config.toml\n"),
        "{out}"
    );
    let bad = Setup::new().file("config.toml", "[api]\nx = 1\n[watch]\ny = 2\n");
    let (code, out, err) = run(&bad, false);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(
        err.lines().count() == 3 && err.ends_with("2 problems in the configuration\n"),
        "{err}"
    );
    let (code, out, _) = run(&bad, true);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, json["ok"].as_bool()), (2, Some(false)));
    assert_eq!(json["problems"][0]["key"], "api.x");
}

#[test]
fn init_writes_a_private_file_once() {
    use std::os::unix::fs::PermissionsExt as _;
    let setup = Setup::new();
    let home = setup.folder.path().to_str().unwrap().to_owned();
    let setup = setup.variable("HOME", &home);
    let path = setup.folder.path().join(".config/runwatch/config.toml");
    let run = |target: Option<&Path>, force| {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = match command::init(&setup.sources, target, force, &mut out, &mut err) {
            Ok(code) => code,
            Err(error) => CommandFailure::of_command(&error).exit_code(),
        };
        (
            code,
            String::from_utf8(out).unwrap(),
            String::from_utf8(err).unwrap(),
        )
    };
    let (code, out, err) = run(None, false);
    assert_eq!((code, out.as_str()), (0, ""));
    assert!(err.contains("config check"), "{err}");
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        example("runwatch.toml")
    );
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    std::fs::write(&path, "# mine").unwrap();
    assert_eq!(run(None, false).0, 2);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "# mine");
    assert_eq!(run(Some(&path), true).0, 0);
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        example("runwatch.toml")
    );
    assert_eq!(run(Some(Path::new("-")), false).1, example("runwatch.toml"));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(128))]
    #[test]
    fn any_value_of_any_key_is_taken_or_refused(
        key in "api.(base_url|key|key_file|run_url|max_response_bytes)|watch.(jitter|deadline|max_in_flight)\
               |sinks.(a|\"b.c\").(type|url|events|headers.x|labels.\"y z\")|watches|[a-z]{1,5}",
        value in "-?[0-9]{1,20}(\\.[0-9]{1,3})?|\"[a-z0-9:/@._-]{0,12}\"|\\[\"[a-z.*]{0,5}\"\\]|nan|true|1979-05-27",
    ) {
        let text = format!("{key} = {value}\n");
        let setup = Setup::new().file("config.toml", &text);
        match setup.load() {
            Ok(loaded) => {
                // What is shown must be readable.
                let shown: Result<toml::Table, _> = loaded.effective.to_toml().parse();
                proptest::prop_assert!(shown.is_ok(), "{}", text);
            }
            Err(problems) => proptest::prop_assert!(!problems.0.is_empty()),
        }
    }
}

#[tokio::test]
async fn a_wrong_configuration_is_shown_once_by_commands_that_name_runs() {
    let program = crate::support::Program::new()
        .set("XDG_RUNTIME_DIR", "/nonexistent")
        .configured("[watch]\ninitial_intervall = \"1s\"\n");
    let (bare, foreign) = ("run_1", "github:acme/site/1");
    for (arguments, code) in [
        (&["add", bare][..], 2),
        (&["add", foreign], 2),
        (&["show", bare], 2),
        (&["show", foreign], 2),
        (&["remove", bare], 2),
        (&["remove", foreign], 2),
        (&["wait", "--daemon", bare], 2),
        (&["wait", "--daemon", foreign], 2),
        (&["status", foreign], 2),
        (&["list"], 2),
    ] {
        let ended = program.run(arguments).await;
        assert_eq!(ended.code, Some(code), "{arguments:?}: {ended:?}");
        let shown = ended.stderr.matches("initial_intervall").count();
        assert_eq!(shown, 1, "{arguments:?}: {}", ended.stderr);
        if arguments[0] == "status" {
            continue;
        }
        let is_error = arguments.contains(&foreign);
        let whose = "the configuration does not say whose run it is";
        assert_eq!(ended.stderr.contains(whose), is_error, "{ended:?}");
        assert_eq!(ended.stderr.contains("no daemon answers"), !is_error);
    }
}
