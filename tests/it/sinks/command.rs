//! The command sink: real programs, well-behaved and not.

use std::collections::BTreeMap;

use runwatch::simulator::{Fault, Script};
use serde_json::{Value, json};

use super::wait;
use crate::support::{Ended, Program, api, eventually};

/// Hangs, with a process that it started.
const LEAVES_A_GRANDCHILD: &str = "trap '' TERM; sleep 600 & echo $! > id.new; mv id.new id; wait";

/// A sink that runs `script` in a shell.
fn shell(script: &str, more: &str) -> String {
    sink(
        &format!("\"/bin/sh\", \"-c\", '''{script}''', \"hook\""),
        more,
    )
}

fn sink(argv: &str, more: &str) -> String {
    format!("[sinks.hook]\ntype = \"command\"\nargv = [{argv}]\nretry_schedule = []\n{more}\n")
}

/// Waits for `run_1` with `script` as the sink. Returns the program for what was left in its directory.
async fn wait_with(run: Script, sinks: &str, arguments: &[&str]) -> (Ended, Program) {
    let simulator = api([("run_1", run)]).await;
    let program = Program::with(&simulator)
        .set("CREDENTIALS_DIRECTORY", "/run/credentials/runwatch.service")
        .set("LANG", "C.UTF-8")
        .configured(sinks);
    let ended = program.run(&[&["wait", "run_1"], arguments].concat()).await;
    (ended, program)
}

fn left(program: &Program, name: &str) -> String {
    std::fs::read_to_string(program.home().join(name))
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[tokio::test]
async fn a_program_gets_the_event_and_no_secret() {
    let script = "cat > event.json; env > environment; echo noise; echo more noise >&2";
    let (ended, program) = wait_with(
        Script::fails("no\nmemory \x1b[31m"),
        &shell(script, ""),
        &["--name", "nightly", "--json"],
    )
    .await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(!ended.stderr.contains("not delivered"), "{ended:?}");
    assert_eq!(
        ended.json_lines().len(),
        1,
        "what the program prints is not printed: {ended:?}"
    );
    let event: Value = serde_json::from_str(&left(&program, "event.json")).unwrap();
    assert_eq!(
        (&event["type"], &event["data"]["run"]["id"]),
        (&json!("run.failed"), &json!("run_1"))
    );
    assert_eq!(event["data"], ended.json_lines()[0]["data"]);

    let environment = left(&program, "environment");
    assert!(
        !environment.contains("simulated-key") && !environment.contains("CREDENTIALS"),
        "{environment}"
    );
    assert!(environment.contains("LANG=C.UTF-8\n"), "{environment}");
    let ours: BTreeMap<_, _> = environment
        .lines()
        .filter(|line| line.starts_with("RUNWATCH_"))
        .filter_map(|line| line.split_once('='))
        .collect();
    let mut expected = BTreeMap::from([
        ("RUNWATCH_ATTEMPT", "1"),
        ("RUNWATCH_ERROR", "no memory [31m"),
        ("RUNWATCH_EVENT", "run.failed"),
        ("RUNWATCH_NAME", "nightly"),
        ("RUNWATCH_RUN_ID", "run_1"),
        ("RUNWATCH_STATUS", "failed"),
        ("RUNWATCH_VERDICT", "failed"),
    ]);
    for (name, begins) in [
        ("RUNWATCH_DELIVERY_ID", "msg_"),
        ("RUNWATCH_SUMMARY", "nightly failed"),
    ] {
        assert!(ours[name].starts_with(begins), "{environment}");
        expected.insert(name, ours[name]);
    }
    assert_eq!(ours, expected);
}

#[tokio::test]
async fn only_exit_code_0_is_success_and_the_rest_is_told() {
    for (sinks, why) in [
        (shell("exit 0", ""), None),
        (
            shell("printf 'the disk \\033[31mis full' >&2; exit 3", ""),
            Some("/bin/sh ended with exit status: 3: the disk [31mis full"),
        ),
        (
            shell("exit 4", ""),
            Some("/bin/sh ended with exit status: 4 "),
        ),
        (
            shell("kill -KILL $$", ""),
            Some("/bin/sh ended with signal: 9 (SIGKILL)"),
        ),
        (
            sink("\"/nowhere/on-run\"", ""),
            Some("cannot run /nowhere/on-run: No such file or directory"),
        ),
        (
            sink("\"/etc/passwd\"", ""),
            Some("cannot run /etc/passwd: Permission denied"),
        ),
    ] {
        let ended = wait(Script::canceled(), &sinks, &[]).await;
        assert_eq!(ended.code, Some(3), "{ended:?}");
        match why {
            None => assert!(!ended.stderr.contains("not delivered"), "{ended:?}"),
            Some(why) => {
                let warning = format!("was not delivered to hook after 1 attempt: {why}");
                assert!(
                    (ended.stderr.clone() + " ")
                        .replace('\n', " ")
                        .contains(&warning),
                    "{why}: {ended:?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_failed_program_is_run_again_with_the_same_id() {
    let script = "echo $RUNWATCH_DELIVERY_ID >> ids; exec test $RUNWATCH_ATTEMPT = 3";
    let again = "retry_schedule = [\"50ms\", \"50ms\", \"50ms\"]";
    let (ended, program) = wait_with(
        Script::succeeds(),
        &shell(script, "").replace("retry_schedule = []", again),
        &[],
    )
    .await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!ended.stderr.contains("not delivered"), "{ended:?}");
    let ids = left(&program, "ids");
    let ids: Vec<_> = ids.lines().collect();
    assert_eq!(ids, [ids[0]; 3]);
}

#[tokio::test]
async fn a_program_that_hangs_is_killed_with_all_that_it_started() {
    let (ended, program) = wait_with(
        Script::succeeds(),
        &shell(LEAVES_A_GRANDCHILD, "timeout = \"3s\""),
        &[],
    )
    .await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(
        ended
            .stderr
            .contains("/bin/sh did not end within 3s and was killed"),
        "{ended:?}"
    );
    grandchild_ends(&program).await;
}

#[tokio::test]
async fn what_hangs_at_the_end_is_cut_off_and_reported() {
    let webhook = super::receiver([Fault::Hang]).await;
    let sinks = shell(LEAVES_A_GRANDCHILD, "") + &super::webhook("slow", &webhook.url(), "");
    let (ended, program) = wait_with(Script::fails("no"), &sinks, &["--linger", "0s"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    for sink in ["hook", "slow"] {
        let warning = format!(
            "warning: run.failed of run_1 was not delivered to {sink} after 1 attempt (the last one was cut off)\n"
        );
        assert!(ended.stderr.contains(&warning), "{ended:?}");
    }
    grandchild_ends(&program).await;
}

#[tokio::test]
async fn without_lingering_every_first_attempt_has_its_turn_and_its_time() {
    // Twice as many as run at once, so that the later ones begin when the earlier ones are done.
    let runs: Vec<_> = (1..=8).map(|number| format!("run_{number}")).collect();
    let simulator = api(runs.iter().map(|id| (id.as_str(), Script::succeeds()))).await;
    let sinks = shell("sleep 6; echo $RUNWATCH_RUN_ID >> runs", "");
    let program = Program::with(&simulator).configured(&sinks);
    let mut arguments = vec!["wait", "--linger", "0s"];
    arguments.extend(runs.iter().map(String::as_str));
    let ended = program.run(&arguments).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(
        left(&program, "runs").lines().count(),
        runs.len(),
        "{ended:?}"
    );
}

/// Waits for the end of the process whose ID a program left.
async fn grandchild_ends(program: &Program) {
    let id = left(program, "id");
    // One that is dead has no command line, reaped or not.
    let command_line = format!("/proc/{}/cmdline", id.trim());
    eventually("the grandchild is killed", || {
        std::fs::read(&command_line).unwrap_or_default().is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_program_may_leave_something_behind() {
    // What it left holds all three streams open.
    let script = "cat > /dev/null; sleep 600 & echo $! > id; exit 0";
    let (ended, program) = wait_with(Script::succeeds(), &shell(script, ""), &[]).await;
    let id = left(&program, "id");
    let id = rustix::process::Pid::from_raw(id.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::KILL).expect("it was left alone");
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!ended.stderr.contains("not delivered"), "{ended:?}");
}

#[tokio::test]
async fn a_large_event_arrives_whole_or_is_not_read_at_all() {
    let big = || Script::succeeds().output(json!("x".repeat(3_000_000)));
    let (ended, program) = wait_with(big(), &shell("cat > event.json", ""), &[]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let event: Value = serde_json::from_str(&left(&program, "event.json")).unwrap();
    assert_eq!(
        event["data"]["run"]["output"].as_str().map(str::len),
        Some(3_000_000)
    );
    for ignoring in ["exit 0", "exec 0<&-; exit 0", "head -c 10 > /dev/null"] {
        let ended = wait(big(), &shell(ignoring, ""), &[]).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(
            !ended.stderr.contains("not delivered"),
            "{ignoring}: {ended:?}"
        );
    }
}

#[tokio::test]
async fn of_much_output_the_end_is_shown() {
    let script =
        "yes 'noise and more noise' | head -c 5000000 >&2; echo 'the last words' >&2; exit 1";
    let ended = wait(Script::succeeds(), &shell(script, ""), &[]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let warning = ended
        .stderr
        .lines()
        .find(|line| line.starts_with("warning: "))
        .unwrap();
    assert!(
        warning.contains("exit status: 1: …") && warning.ends_with("the last words"),
        "{ended:?}"
    );
    assert!(warning.len() < 500, "{ended:?}");
}

#[tokio::test]
async fn arguments_never_go_through_a_shell() {
    let argv = r#""/bin/sh", "-c", 'printf "%s\n" "$@" > arguments', "hook", "$(touch x)", "; touch x", "a  b", "*", """#;
    let (ended, program) = wait_with(
        Script::succeeds(),
        &sink(argv, ""),
        &["--name", "$(touch x)"],
    )
    .await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(
        left(&program, "arguments"),
        "$(touch x)\n; touch x\na  b\n*\n\n"
    );
    assert!(!program.home().join("x").exists());
}
