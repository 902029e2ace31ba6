//! `status`: one look at a run.

use runwatch::simulator::{Fault, Script};

use crate::support::{Program, api};

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
