//! `runwatch doctor` as a user runs it.

use std::os::unix::fs::PermissionsExt as _;

use runwatch::simulator::{Fault, Receiver, Simulator};
use serde_json::Value;
use tokio::process::Child;

use crate::support::{Program, until};

/// A part of each secret that is configured here.
const MARKER: &str = "h7Kq2marker";

/// Runs `doctor` and returns its exit code with what it printed as JSON.
async fn examine(program: &Program, flags: &[&str]) -> (Option<i32>, Value) {
    let ended = program.run(&[&["doctor", "--json"], flags].concat()).await;
    assert!(!format!("{ended:?}").contains(MARKER), "{ended:?}");
    let value = serde_json::from_str(&ended.stdout);
    (ended.code, value.unwrap_or_else(|_| panic!("{ended:?}")))
}

/// Mark, text and remedy of the check of this name.
fn check(report: &Value, name: &str) -> (String, String, String) {
    let checks = report["checks"].as_array().unwrap();
    let found = checks.iter().find(|check| check["name"] == name);
    let found = found.unwrap_or_else(|| panic!("{name}: {report:#}"));
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    (text("mark"), text("text"), text("fix"))
}

/// Makes a file beside the configuration readable by its owner only.
fn close(program: &Program, name: &str) {
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(program.beside_config(name), mode).unwrap();
}

/// A program with places for the socket and the store.
fn at_home(program: Program) -> Program {
    let home = program.home().display().to_string();
    program.set("XDG_RUNTIME_DIR", &home)
}

async fn start_daemon(program: &Program) -> Child {
    let daemon = program.command(&["daemon"]).spawn().unwrap();
    until("a daemon", async || {
        let ended = program.run(&["healthcheck", "--ready"]).await;
        (ended.code == Some(0)).then_some(())
    })
    .await;
    daemon
}

#[tokio::test]
async fn all_is_well_where_each_part_works() {
    let simulator = Simulator::start().await.unwrap();
    let receiver = Receiver::start([]).await.unwrap();
    let config = format!(
        "[sinks.ops]\ntype = \"webhook\"\nurl = \"{}/{MARKER}\"\nsecret_file = \"secret\"\n\
         [sinks.file]\ntype = \"log\"\npath = \"events.jsonl\"\n\
         [sinks.hook]\ntype = \"command\"\nargv = [\"true\"]\n",
        receiver.url()
    );
    let program = at_home(Program::with(&simulator))
        .configured(&config)
        .with_file("secret", &format!("whsec_{}", "A".repeat(32)));
    close(&program, "secret");
    close(&program, "config.toml");
    let daemon = start_daemon(&program).await;
    let before = simulator.requests().len();

    let (code, report) = examine(&program, &[]).await;
    assert_eq!((code, &report["ok"]), (Some(0), &true.into()), "{report:#}");
    assert_eq!(simulator.requests().len(), before + 1, "one request");
    assert_eq!(receiver.requests().len(), 0, "nothing is sent");
    let (_, key, _) = check(&report, "key");
    assert!(
        key.starts_with("CREWSHIP_API_KEY, accepted by 127.0.0.1:"),
        "{key}"
    );
    let (_, daemon_text, _) = check(&report, "daemon");
    assert!(
        daemon_text.contains(env!("CARGO_PKG_VERSION")),
        "{daemon_text}"
    );
    let (_, store, _) = check(&report, "store");
    assert!(
        store.contains("runwatch.db") && store.ends_with("writable"),
        "{store}"
    );
    let (_, sink, _) = check(&report, "sink ops");
    assert!(sink.starts_with("webhook to 127.0.0.1, signed"), "{sink}");

    let (code, report) = examine(&program, &["--send"]).await;
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!(receiver.requests().len(), 1);
    let text = program.run(&["doctor"]).await;
    assert_eq!(text.code, Some(0), "{text:?}");
    assert!(text.stdout.ends_with("all is well\n"), "{text:?}");
    assert!(!text.stdout.contains(MARKER), "{text:?}");
    drop(daemon);
}

#[tokio::test]
async fn each_thing_that_is_wrong_is_named_with_its_remedy() {
    let simulator = Simulator::start().await.unwrap();
    let config = format!(
        "[control]\nlisten = \"127.0.0.1:0\"\n\
         [sinks.bare]\ntype = \"webhook\"\nurl = \"http://127.0.0.1:1/{MARKER}\"\n\
         [sinks.open]\ntype = \"webhook\"\nurl = \"http://127.0.0.1:1/\"\nsecret_file = \"secret\"\n\
         [sinks.none]\ntype = \"command\"\nargv = [\"/no/such/program\"]\n\
         [sinks.lost]\ntype = \"log\"\npath = \"/no/such/folder/file\"\n\
         [sinks.desk]\ntype = \"desktop\"\n"
    );
    let program = at_home(Program::with(&simulator))
        .configured(&config)
        .with_file("secret", &format!("whsec_{}", "A".repeat(32)))
        .set("CREWSHIP_API_KEY", MARKER)
        .set("RUNWATCH_STORE__PATH", "/dev/null/runwatch.db")
        .set("SSL_CERT_FILE", "/no/such/file");
    let secret = program.beside_config("secret");
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o644)).unwrap();
    close(&program, "config.toml");
    let (code, report) = examine(&program, &[]).await;
    assert_eq!(code, Some(4), "{report:#}");
    for (name, mark, text, fix) in [
        (
            "key",
            "problem",
            "refused by 127.0.0.1",
            "copy the key again",
        ),
        ("network", "problem", "no certificate", "SSL_CERT_FILE"),
        ("daemon", "warning", "none answers at", "runwatch daemon"),
        (
            "store",
            "problem",
            "/dev/null/runwatch.db",
            "set store.path",
        ),
        (
            "sink bare",
            "warning",
            "not signed",
            "openssl rand -base64 32",
        ),
        (
            "sink open",
            "warning",
            "every user of this machine",
            "chmod 600",
        ),
        ("sink none", "problem", "/no/such/program", "argv"),
        ("sink lost", "problem", "not writable", "/no/such/folder"),
        (
            "sink desk",
            "problem",
            "no session bus",
            "graphical session",
        ),
    ] {
        let found = check(&report, name);
        assert!(
            found.0 == mark && found.1.contains(text) && found.2.contains(fix),
            "{name}: {found:?}"
        );
    }
    let text = program.run(&["doctor"]).await;
    assert_eq!(text.code, Some(4), "{text:?}");
    assert!(
        text.stdout.contains("✗ key ") && !text.stdout.contains(MARKER),
        "{text:?}"
    );
}

#[tokio::test]
async fn the_code_says_what_kind_of_thing_is_wrong() {
    let simulator = Simulator::start().await.unwrap();
    let program = || at_home(Program::with(&simulator));
    let (code, report) = examine(&program(), &[]).await;
    assert_eq!(code, Some(0), "{report:#}");

    let keyless = program().unset("CREWSHIP_API_KEY");
    let (code, report) = examine(&keyless, &[]).await;
    let (mark, _, fix) = check(&report, "key");
    assert_eq!((code, mark.as_str()), (Some(4), "problem"), "{report:#}");
    assert!(fix.contains("CREWSHIP_API_KEY"), "{fix}");

    let wrong = program().configured("[api]\nkye = \"x\"\n[watch]\njitter = 2\n");
    let (code, report) = examine(&wrong, &[]).await;
    assert_eq!(
        (code, &report["problems"]),
        (Some(2), &2.into()),
        "{report:#}"
    );

    let path = format!("{}/v1", simulator.base_url());
    let (code, report) = examine(&program().set("RUNWATCH_API__BASE_URL", &path), &[]).await;
    let (mark, _, fix) = check(&report, "configuration");
    assert_eq!((code, mark.as_str()), (Some(1), "warning"), "{report:#}");
    assert!(fix.contains("leave out the end"), "{fix}");
}

#[tokio::test]
async fn an_api_that_cannot_be_used_is_a_problem_of_its_own() {
    let simulator = Simulator::start().await.unwrap();
    let program = || at_home(Program::with(&simulator));
    for (address, cause) in [
        ("http://127.0.0.1:1", "onnection refused"),
        ("http://no-such-host.invalid", "no-such-host.invalid"),
    ] {
        let (code, report) = examine(&program().set("RUNWATCH_API__BASE_URL", address), &[]).await;
        let (mark, text, fix) = check(&report, "API");
        assert_eq!((code, mark.as_str()), (Some(1), "problem"), "{report:#}");
        assert!(
            text.contains(cause) && fix.contains("api.base_url"),
            "{text}; {fix}"
        );
        assert_eq!(check(&report, "key").0, "warning", "{report:#}");
    }
    for (fault, mark, cause) in [
        (Fault::status(503), "warning", "503"),
        (
            Fault::Redirect("http://127.0.0.1:1/".to_owned()),
            "problem",
            "302",
        ),
        (Fault::Html, "warning", "not with JSON"),
        (Fault::Reset, "problem", "cannot reach"),
        (Fault::Hang, "problem", "no answer in time"),
    ] {
        let shown = format!("{fault:?}");
        simulator.set_outage(Some(fault));
        let hasty = program().set("RUNWATCH_API__REQUEST_TIMEOUT", "300ms");
        let (code, report) = examine(&hasty, &[]).await;
        let (found, text, _) = check(&report, "API");
        assert_eq!(
            (code, found.as_str()),
            (Some(1), mark),
            "{shown}: {report:#}"
        );
        assert!(text.contains(cause), "{shown}: {text}");
    }
}

#[tokio::test]
async fn a_clock_that_differs_is_compared_with_the_servers() {
    let simulator = Simulator::start().await.unwrap();
    for (seconds, mark) in [
        (0, "ok"),
        (-60, "warning"),
        (60, "warning"),
        (-900, "problem"),
    ] {
        let at = std::time::SystemTime::now();
        let difference = std::time::Duration::from_secs(u64::from(i32::unsigned_abs(seconds)));
        let date = if seconds < 0 {
            at - difference
        } else {
            at + difference
        };
        let fault = Fault::status(404).with_header("date", &httpdate::fmt_http_date(date));
        simulator.set_outage(Some(fault));
        let program = at_home(Program::with(&simulator));
        let (_, report) = examine(&program, &[]).await;
        let (found, text, _) = check(&report, "clock");
        assert_eq!(found, mark, "{seconds}: {text}");
    }
}

#[tokio::test]
async fn every_configured_provider_is_tried_with_one_request() {
    const OWN: &str = "title = \"Own job\"\nauth = { scheme = \"bearer\" }\nid = \"{job}\"\nget = \"/v1/runs/{job}\"\n\
         rules = [{ when = { \"/status\" = \"succeeded\" }, is = \"succeeded\" }]\n";
    let simulator = Simulator::start().await.unwrap();
    let url = simulator.base_url();
    let own = |name: &str, url: &str, key: &str| {
        format!("[providers.{name}]\nprofile_file = \"own.toml\"\nbase_url = \"{url}\"\n{key}\n")
    };
    let config = [
        own("good", &url, "key_file = \"key\""),
        own("open", &url, "key_file = \"open-key\""),
        own("wrong", &url, &format!("key = \"{MARKER}\"")),
        own("keyless", &url, ""),
        own("lost", "http://127.0.0.1:1", "key_file = \"key\""),
        "[providers.any]\nprofile = \"http202\"\nbase_url = \"http://127.0.0.1:1\"\n".to_owned(),
    ];
    let key = simulator.api_key();
    let program = at_home(Program::with(&simulator))
        .unset("CREWSHIP_API_KEY")
        .configured(&config.concat())
        .with_file("own.toml", OWN)
        .with_file("key", &key)
        .with_file("open-key", &key);
    close(&program, "key");
    close(&program, "config.toml");
    let open = program.beside_config("open-key");
    std::fs::set_permissions(open, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (code, report) = examine(&program, &[]).await;
    assert_eq!(code, Some(4), "{report:#}");
    for (name, mark, text, fix) in [
        ("good", "ok", "accepted by 127.0.0.1", ""),
        ("open", "warning", "every user of this machine", "chmod 600"),
        (
            "wrong",
            "problem",
            "refused by 127.0.0.1",
            "providers.wrong.key_file",
        ),
        ("keyless", "problem", "no key", "providers.keyless.key_file"),
        (
            "lost",
            "problem",
            "cannot reach 127.0.0.1:1: connection refused",
            "base_url",
        ),
        (
            "any",
            "ok",
            "not tried, as each run has an address of its own",
            "",
        ),
    ] {
        let found = check(&report, &format!("provider {name}"));
        assert!(
            found.0 == mark && found.1.contains(text) && found.2.contains(fix),
            "{name}: {found:?}"
        );
    }
    // Crewship is not used, and its clock is not the one that is compared.
    let checks = report["checks"].as_array().unwrap();
    let named = |name| checks.iter().filter(|check| check["name"] == name).count();
    assert_eq!((named("key"), named("clock")), (0, 1), "{report:#}");
    assert_eq!(simulator.requests().len(), 3);
}
