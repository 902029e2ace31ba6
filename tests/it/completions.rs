//! Completions as a shell gets them: bash runs the script, and the script runs the program.

use std::path::Path;

use runwatch::simulator::{Fault, Receiver, Script};

use crate::support::{Program, api, finish, received, until};

/// What bash offers for the last of `words`.
async fn offered(program: &Program, words: &[&str]) -> Vec<String> {
    let bin = Path::new(env!("CARGO_BIN_EXE_runwatch")).parent().unwrap();
    let script = r#"
        PATH=$1:$PATH; shift
        source <(runwatch completions bash)
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_TYPE=9
        _clap_complete_runwatch runwatch "${@: -1}" 2>&1
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let head = [
        "bash",
        "-c",
        script,
        "bash",
        bin.to_str().unwrap(),
        "runwatch",
    ];
    let child = program.shell(&[&head, words].concat()).spawn().unwrap();
    let ended = finish(child).await;
    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (Some(0), ""),
        "{ended:?}"
    );
    let lines = ended.stdout.lines().filter(|line| !line.is_empty());
    lines.map(str::to_owned).collect()
}

#[tokio::test]
async fn values_of_the_configuration_and_of_the_daemon_are_offered() {
    let simulator = api([
        ("run_1", Script::runs_forever()),
        ("run_2", Script::succeeds()),
    ])
    .await;
    let receiver = Receiver::start([Fault::status(500)]).await.unwrap();
    let config = format!(
        "[sinks.away]\ntype = \"webhook\"\nurl = \"{}\"\nretry_schedule = [\"1h\"]\n[sinks.journal]\ntype = \"log\"\n",
        receiver.url()
    );
    let program = Program::with(&simulator).configured(&config);
    let runtime = program.home().to_str().unwrap().to_owned();
    let program = program.set("XDG_RUNTIME_DIR", &runtime);
    assert_eq!(
        offered(&program, &["list", "--verdict", "time"]).await,
        ["timed_out"]
    );
    assert_eq!(
        offered(&program, &["wait", "--sink", ""]).await,
        ["away", "journal"]
    );
    assert_eq!(
        offered(&program, &["sinks", "test", "j"]).await,
        ["journal"]
    );
    assert!(
        offered(&program, &["providers", "show", "git"])
            .await
            .contains(&"github".to_owned())
    );
    // A configuration that the line names is the one that counts; bash makes three words of the second form.
    let other = program.home().join("other.toml");
    std::fs::write(&other, "[sinks.elsewhere]\ntype = \"log\"\n").unwrap();
    let other = other.to_str().unwrap();
    for named in [&["--config", other][..], &["--config", "=", other]] {
        let line = [&["wait"], named, &["--sink", ""]].concat();
        assert_eq!(offered(&program, &line).await, ["elsewhere"], "{named:?}");
    }
    // Without a daemon there is nothing, and no message.
    assert!(offered(&program, &["show", "run_"]).await.is_empty());
    assert!(
        offered(&program, &["deliveries", "retry", "msg"])
            .await
            .is_empty()
    );

    let daemon = program.command(&["daemon"]).spawn().unwrap();
    until("the daemon", async || {
        let added = program.run(&["add", "run_1", "run_2"]).await;
        (added.code == Some(0)).then_some(())
    })
    .await;
    received(&receiver, 1).await;
    for command in ["show", "remove", "status", "wait"] {
        let runs = offered(&program, &[command, "run_"]).await;
        assert_eq!(runs.len(), 2, "{command}: {runs:?}");
        assert!(runs.contains(&"run_1".to_owned()), "{command}: {runs:?}");
    }
    // The socket is that of the named configuration.
    let socket = program.home().join("runwatch/runwatch.sock");
    let named = format!("[control]\nsocket = \"{}\"\n", socket.display());
    std::fs::write(other, named).unwrap();
    let elsewhere = Program::new();
    assert!(offered(&elsewhere, &["show", "run_"]).await.is_empty());
    let runs = offered(&elsewhere, &["--config", other, "show", "run_"]).await;
    assert_eq!(runs.len(), 2, "{runs:?}");
    until("a delivery that failed", async || {
        let deliveries = offered(&program, &["deliveries", "retry", "msg"]).await;
        (deliveries.len() == 1 && deliveries[0].starts_with("msg_")).then_some(())
    })
    .await;
    drop(daemon);
}

#[tokio::test]
async fn a_broken_configuration_offers_no_values_and_prints_nothing() {
    let program = Program::new().configured("[nonsense\n");
    assert!(offered(&program, &["sinks", "test", "a"]).await.is_empty());
    assert!(
        offered(&program, &["list", "--ver"])
            .await
            .contains(&"--verdict".to_owned())
    );
}
