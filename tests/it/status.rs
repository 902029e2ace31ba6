//! `status`: one look at a run.

use runwatch::simulator::{Fault, Script};

use crate::support::{Program, api, with_daemon};

#[tokio::test]
async fn status_makes_one_request_and_ends_with_the_code_of_what_it_saw() {
    let simulator = api([
        ("going", Script::runs_forever()),
        ("good", Script::succeeds()),
        ("bad", Script::fails("it broke")),
        ("stopped", Script::canceled()),
        ("broken", Script::succeeds().fault_on(1, Fault::status(502))),
    ])
    .await;
    let program = Program::with(&simulator);
    for (run, code, verdict, line) in [
        ("going", 9, None, " for 0:"),
        ("good", 0, Some("succeeded"), "✓ good succeeded after "),
        ("bad", 1, Some("failed"), ": it broke\n"),
        ("stopped", 3, Some("canceled"), "⊘ stopped canceled"),
        ("unknown", 5, Some("not_found"), "? unknown not_found: 404"),
        (
            "broken",
            6,
            Some("unreachable"),
            "? broken unreachable: 502 Bad Gateway",
        ),
    ] {
        let before = simulator.requests().len();
        let ended = program.run(&["status", run]).await;
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert!(ended.stdout.contains(line), "{line}: {ended:?}");
        assert_eq!(ended.stdout.lines().count(), 1, "{ended:?}");
        assert_eq!(simulator.requests().len(), before + 1, "one request");
        let quiet = program.run(&["status", run, "-q"]).await;
        assert_eq!(quiet.stdout, "", "{quiet:?}");
        if run != "broken" {
            let ended = program.run(&["status", run, "--json"]).await;
            assert_eq!(ended.code, Some(code), "{ended:?}");
            let line = ended.json_lines().remove(0);
            assert_eq!(line["run_id"], run);
            assert_eq!(line["verdict"].as_str(), verdict, "{line}");
        }
    }
}

#[tokio::test]
async fn status_says_what_is_wrong_with_a_key_a_host_and_an_argument() {
    let simulator = api([("run_1", Script::succeeds())]).await;
    let refused = Program::with(&simulator).set("CREWSHIP_API_KEY", "ck_wrong");
    let ended = refused.run(&["status", "run_1"]).await;
    assert_eq!(ended.code, Some(4), "{ended:?}");
    assert!(ended.stderr.contains("401"), "{ended:?}");
    let without = Program::with(&simulator).unset("CREWSHIP_API_KEY");
    let ended = without.run(&["status", "run_1"]).await;
    assert_eq!(ended.code, Some(4), "{ended:?}");
    assert!(ended.stderr.contains("CREWSHIP_API_KEY"), "{ended:?}");
    let gone = Program::with(&simulator).set("RUNWATCH_API__BASE_URL", "http://127.0.0.1:1");
    let ended = gone.run(&["status", "run_1"]).await;
    assert_eq!(ended.code, Some(6), "{ended:?}");
    assert!(ended.stdout.contains("connection refused"), "{ended:?}");
    for wrong in [&["status", "-"][..], &["status", "a b"], &["status"]] {
        assert_eq!(gone.run(wrong).await.code, Some(2), "{wrong:?}");
    }
}

#[tokio::test]
async fn a_part_of_an_id_that_only_one_watch_has_is_enough_to_look_and_to_remove() {
    let simulator = api([
        ("run_alpha_1", Script::runs_forever()),
        ("run_alpha_2", Script::runs_forever()),
        ("run_beta_1234567", Script::runs_forever()),
        ("run_beta", Script::canceled()),
    ])
    .await;
    let (program, _daemon) = with_daemon(Program::with(&simulator)).await;
    let runs = ["run_alpha_1", "run_alpha_2", "run_beta_1234567"];
    let added = program.run(&[&["add"], &runs[..]].concat()).await;
    assert_eq!(added.code, Some(0), "{added:?}");

    for part in ["run_beta_", "run_b…567", "run_be...67"] {
        let ended = program.run(&["status", part]).await;
        assert_eq!(ended.code, Some(9), "{part}: {ended:?}");
        assert!(ended.stdout.contains(" run_beta_1234567 "), "{ended:?}");
    }
    // A run of this very ID is what was meant, and three characters are too few to mean another.
    let whole = program.run(&["status", "run_beta"]).await;
    assert_eq!(whole.code, Some(3), "{whole:?}");
    for unknown in ["run_gamma", "run"] {
        let ended = program.run(&["status", unknown]).await;
        assert_eq!(ended.code, Some(5), "{ended:?}");
    }
    for command in ["status", "remove", "show"] {
        let ended = program.run(&[command, "run_alpha"]).await;
        assert_eq!(ended.code, Some(2), "{ended:?}");
        let candidates = "run_alpha could be run_alpha_1, run_alpha_2; write more of it";
        assert!(ended.stderr.contains(candidates), "{ended:?}");
    }
    let removed = program
        .run(&["remove", "run_b…567", "run_beta_1", "run_alpha_1"])
        .await;
    assert_eq!(removed.code, Some(1), "the second is gone: {removed:?}");
    assert_eq!(
        removed.stdout,
        "run_beta_1234567: no longer watched\nrun_alpha_1: no longer watched\n"
    );
    let removed = program.run(&["remove", "run_alpha", "--json"]).await;
    assert_eq!(
        removed.json_lines()[0],
        serde_json::json!({ "provider": "crewship", "run_id": "run_alpha_2", "removed": true })
    );
}
