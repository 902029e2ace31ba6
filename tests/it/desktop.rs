//! The desktop sink against a real session bus and a real notification daemon on a virtual display.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use runwatch::domain::RunRef;
use runwatch::simulator::Script;
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::support::{PATIENCE, Program, api, eventually, finish, send_signal};

const SINK: &str = "[sinks.desktop]\ntype = \"desktop\"\nretry_schedule = []\n";

/// Starts no services by itself: a bus with the machine's would start a second notification daemon.
const BUS: &str = r#"<busconfig><type>session</type><listen>unix:dir=DIR</listen>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy>
</busconfig>"#;

/// Not every dunst has the urgency in its history, but all have the timeout, which follows from it.
const DUNST: &str = "[global]\nmarkup = full\n[urgency_low]\ntimeout = 1h\n[urgency_normal]\ntimeout = 2h\n[urgency_critical]\ntimeout = 3h\n";

/// A desktop of its own: display, bus and notification daemon.
struct Desktop {
    variables: BTreeMap<&'static str, String>,
    display: Child,
    bus: Child,
    dunst: Child,
    // Removed last: the socket of the bus is in it.
    _dir: tempfile::TempDir,
}

/// A message as it was shown.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    title: String,
    body: String,
    urgency: &'static str,
}

fn start(program: &str, arguments: &[&str], variables: &BTreeMap<&str, String>) -> Child {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(variables)
        .kill_on_drop(true);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; run the tests with: bash tests/run"))
}

/// The first line that a program prints: where it is to be found.
async fn first_line(child: &mut Child) -> String {
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    let line = tokio::time::timeout(PATIENCE, lines.next_line())
        .await
        .expect("it starts in time");
    line.unwrap().expect("it starts")
}

impl Desktop {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name).display().to_string();
            std::fs::write(&path, text).unwrap();
            path
        };
        let bus = file(
            "bus.conf",
            &BUS.replace("DIR", &dir.path().display().to_string()),
        );
        let dunst = file("dunstrc", DUNST);
        let mut variables = BTreeMap::from([
            ("PATH", std::env::var("PATH").unwrap()),
            ("HOME", dir.path().display().to_string()),
            ("XDG_RUNTIME_DIR", dir.path().display().to_string()),
        ]);
        let display = [
            "-displayfd",
            "1",
            "-screen",
            "0",
            "800x600x24",
            "-nolisten",
            "tcp",
        ];
        let mut display = start("Xvfb", &display, &variables);
        variables.insert("DISPLAY", format!(":{}", first_line(&mut display).await));
        let mut bus = start(
            "dbus-daemon",
            &[
                &format!("--config-file={bus}"),
                "--print-address",
                "--nofork",
            ],
            &variables,
        );
        variables.insert("DBUS_SESSION_BUS_ADDRESS", first_line(&mut bus).await);
        let dunst = start("dunst", &["-conf", &dunst], &variables);
        let desktop = Self {
            variables,
            display,
            bus,
            dunst,
            _dir: dir,
        };
        eventually("the notification daemon answers", || {
            desktop.ask("dunstctl", &["count"]).is_some()
        })
        .await;
        desktop
    }

    /// What a program says that is run on this desktop; nothing if it fails.
    fn ask(&self, program: &str, arguments: &[&str]) -> Option<String> {
        let mut command = std::process::Command::new(program);
        let output = command
            .args(arguments)
            .env_clear()
            .envs(&self.variables)
            .output()
            .unwrap();
        output
            .status
            .success()
            .then(|| String::from_utf8(output.stdout).unwrap())
    }

    /// The program on this desktop.
    fn program(&self, program: Program) -> Program {
        program.set(
            "DBUS_SESSION_BUS_ADDRESS",
            &self.variables["DBUS_SESSION_BUS_ADDRESS"],
        )
    }

    /// What was shown so far, the newest first.
    fn shown(&self) -> Vec<Shown> {
        // Only what was closed is in the history.
        self.ask("dunstctl", &["close-all"]).expect("it answers");
        let history = self.ask("dunstctl", &["history"]).expect("it answers");
        let history: Value = serde_json::from_str(&history).unwrap();
        let messages = history["data"][0].as_array().unwrap().iter();
        let shown = |message: &Value| {
            let text = |key: &str| message[key]["data"].as_str().unwrap().to_owned();
            assert_eq!(text("appname"), "runwatch");
            let urgency = match message["timeout"]["data"].as_u64().unwrap() / 3_600_000_000 {
                1 => "low",
                2 => "normal",
                3 => "critical",
                hours => panic!("a timeout of {hours} h"),
            };
            Shown {
                title: text("summary"),
                body: text("body"),
                urgency,
            }
        };
        messages.map(shown).collect()
    }
}

impl Drop for Desktop {
    fn drop(&mut self) {
        for child in [&mut self.dunst, &mut self.bus, &mut self.display] {
            // It gets SIGTERM, so that the display removes its socket and lock; it is killed if it does not end.
            if child.id().is_some() {
                send_signal(child, Signal::TERM);
                send_signal(child, Signal::CONT);
            }
            for _ in 0..500 {
                if !matches!(child.try_wait(), Ok(None)) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            drop(child.start_kill());
        }
    }
}

/// A run that is seen running first, so that its end is not a late one however slow the machine is.
fn seen(script: Script) -> Script {
    script.answers(vec!["running"])
}

#[tokio::test]
async fn messages_are_shown_with_their_weight_and_as_text() {
    let desktop = Desktop::start().await;
    let hostile =
        "out of <b>memory</b> & <a href=\"http://evil.example\">more</a>\n\x1b[31msecond line";
    let cases: [(Script, &[&str], i32, Shown); 4] = [
        (
            seen(Script::succeeds()),
            &[],
            0,
            Shown { title: "run_1 succeeded".to_owned(), body: String::new(), urgency: "normal" },
        ),
        (
            seen(Script::fails(hostile)),
            &["--name", "nightly <i>report</i> & more"],
            1,
            Shown {
                title: "nightly <i>report</i> & more failed".to_owned(),
                body: "out of &lt;b&gt;memory&lt;/b&gt; &amp; &lt;a href=\"http://evil.example\"&gt;more&lt;/a&gt;\n[31msecond line\nrun_1".to_owned(),
                urgency: "critical",
            },
        ),
        (
            seen(Script::canceled()),
            &[],
            3,
            Shown { title: "run_1 canceled".to_owned(), body: String::new(), urgency: "critical" },
        ),
        (
            Script::runs_forever(),
            &["--timeout", "500ms"],
            124,
            Shown {
                title: "run_1 timed_out: still going at the deadline".to_owned(),
                body: String::new(),
                urgency: "critical",
            },
        ),
    ];
    let count = cases.len();
    for (number, (script, arguments, code, expected)) in cases.into_iter().enumerate() {
        let simulator = api([("run_1", script)]).await;
        let program = desktop.program(Program::with(&simulator)).configured(SINK);
        let ended = program.run(&[&["wait", "run_1"], arguments].concat()).await;
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert!(!ended.stderr.contains("not delivered"), "{ended:?}");
        let shown = desktop.shown();
        assert_eq!(
            (shown.len(), &shown[0]),
            (number + 1, &expected),
            "{ended:?}"
        );
    }
    let ended = desktop
        .program(Program::new())
        .configured(SINK)
        .run(&["sinks", "test"])
        .await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(
        ended
            .stdout
            .starts_with("desktop  ✓ ok      shown as notification "),
        "{ended:?}"
    );
    let shown = desktop.shown();
    let title = "This is a test message from runwatch".to_owned();
    assert_eq!(
        (shown.len(), &shown[0]),
        (
            count + 1,
            &Shown {
                title,
                body: String::new(),
                urgency: "normal"
            }
        )
    );
}

#[tokio::test]
async fn a_click_opens_the_run_and_no_shell_reads_the_link() {
    let desktop = Desktop::start().await;
    let simulator = api([
        ("run_1", Script::fails("no")),
        ("run_2", Script::runs_forever()),
    ])
    .await;
    let link = "https://console.example/runs/{run_id}?a=1&b=$(touch${IFS}x)";
    let program = desktop
        .program(Program::with(&simulator))
        .configured(&format!("[api]\nrun_url = '{link}'\n{SINK}"));
    let bin = program.home().join("bin");
    std::fs::create_dir(&bin).unwrap();
    // Written by another process: one that this process holds open for writing cannot be run, and a
    // child that another test starts may hold it a moment longer.
    let written = std::process::Command::new("/bin/sh")
        .args(["-c", r#"printf '#!/bin/sh\nenv > environment\nprintf "%%s\\n" "$@" >> opened\n' > xdg-open && chmod +x xdg-open"#])
        .current_dir(&bin)
        .status();
    assert!(written.unwrap().success());
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let program = program.set("PATH", &path);
    let child = program
        .command(&["wait", "run_1", "run_2"])
        .spawn()
        .unwrap();
    let bus = [
        "--session",
        "--print-reply",
        "--dest=org.freedesktop.DBus",
        "/org/freedesktop/DBus",
    ];
    let rules = [
        &bus as &[_],
        &["org.freedesktop.DBus.Debug.Stats.GetAllMatchRules"],
    ]
    .concat();
    let listens = || {
        desktop
            .ask("dbus-send", &rules)
            .is_some_and(|rules| rules.contains("member='NotificationClosed'"))
    };
    eventually("it listens for a click", listens).await;
    let opened = || std::fs::read_to_string(program.home().join("opened")).unwrap_or_default();
    let click = || {
        let done = opened().ends_with('\n');
        if !done {
            // Shown again, should it have been closed by a click that came too early.
            desktop.ask("dunstctl", &["action"]);
            desktop.ask("dunstctl", &["history-pop"]);
        }
        done
    };
    eventually("the link is opened", click).await;
    assert_eq!(opened(), link.replace("{run_id}", "run_1") + "\n");
    assert!(!program.home().join("x").exists());
    let environment = std::fs::read_to_string(program.home().join("environment")).unwrap();
    assert!(
        environment.contains("PATH=") && !environment.contains("simulated-key"),
        "{environment}"
    );
    simulator.add_run(&RunRef::new("run_2").unwrap(), Script::succeeds());
    let ended = finish(child).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
}

#[tokio::test]
async fn a_desktop_that_hangs_or_is_gone_changes_no_verdict() {
    let mut desktop = Desktop::start().await;
    let simulator = api([("run_1", Script::fails("no"))]).await;
    let program = desktop.program(Program::with(&simulator)).configured(SINK);
    let failed = async |why: &str| {
        let ended = program.run(&["wait", "run_1"]).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        let warning =
            format!("run.failed of run_1 was not delivered to desktop after 1 attempt: {why}");
        assert!(ended.stderr.contains(&warning), "{ended:?}");
        assert!(!ended.stderr.contains("panic"), "{ended:?}");
        let tested = program.run(&["sinks", "test"]).await;
        assert_eq!(tested.code, Some(1), "{tested:?}");
        assert!(
            tested
                .stdout
                .starts_with(&format!("desktop  ✗ failed  {why}")),
            "{tested:?}"
        );
    };
    for daemon in [&desktop.dunst, &desktop.bus] {
        send_signal(daemon, Signal::STOP);
        failed("the desktop did not answer within 2 s").await;
        send_signal(daemon, Signal::CONT);
    }
    desktop.dunst.kill().await.unwrap();
    failed("no desktop to be reached: ").await;
    desktop.bus.kill().await.unwrap();
    failed("no desktop to be reached: ").await;
}

#[tokio::test]
async fn without_a_bus_the_attempt_fails_and_says_why() {
    let simulator = api([("run_1", Script::succeeds())]).await;
    let program = Program::with(&simulator).configured(SINK);
    let empty = program.home().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let empty = empty.display().to_string();
    let absent = format!("unix:path={empty}/absent");
    let program = program.set("XDG_RUNTIME_DIR", &empty);
    for (address, why) in [("", empty.as_str()), (&absent, &absent), ("nonsense", "")] {
        let mut command = program.command(&["wait", "run_1"]);
        if !address.is_empty() {
            command.env("DBUS_SESSION_BUS_ADDRESS", address);
        }
        let ended = finish(command.spawn().unwrap()).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let warning = "was not delivered to desktop after 1 attempt: no desktop to be reached: ";
        assert!(
            ended.stderr.contains(warning) && ended.stderr.contains(why),
            "{address}: {ended:?}"
        );
        assert!(!ended.stderr.contains("panic"), "{ended:?}");
    }
}
