//! Errors that end a command: a sentence for people, one object for programs that use `--json`.

use runwatch::simulator::Script;
use serde_json::Value;

use crate::support::{Ended, Program, api};

/// The last line of standard error, as JSON. Warnings may precede it.
fn error_of(ended: &Ended) -> Value {
    let line = ended.stderr.lines().last().unwrap_or_default();
    let error: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{ended:?}"));
    assert_eq!(error["exit_code"], ended.code.unwrap(), "{ended:?}");
    assert!(error["error"].is_string(), "{error}");
    assert!(
        error["hint"].is_string() || error["hint"].is_null(),
        "{error}"
    );
    error
}

#[tokio::test]
async fn errors_are_json_where_json_is_requested() {
    let simulator = api([("run_1", Script::succeeds())]).await;
    let program = Program::with(&simulator);
    for (arguments, code, kind, what) in [
        (
            &["wait", "--timout", "5s", "run_1"][..],
            2,
            "usage",
            "unexpected argument '--timout' found",
        ),
        (&["show"][..], 2, "usage", "required arguments"),
        (&["frobnicate"][..], 2, "usage", "frobnicate"),
        (
            &["wait", "run_1", "--sink", "away"][..],
            2,
            "usage",
            "no sink is called away",
        ),
        (&["sinks", "test"][..], 2, "usage", "no sink is configured"),
        (&["list"][..], 2, "no_daemon", "no daemon answers at "),
        (
            &["add", "run_1"][..],
            2,
            "no_daemon",
            "no daemon answers at ",
        ),
        (&["deliveries"][..], 2, "no_daemon", "no daemon answers at "),
        (&["events"][..], 2, "no_daemon", "no daemon answers at "),
        (
            &["wait", "--daemon", "run_1"][..],
            2,
            "no_daemon",
            "no daemon answers at ",
        ),
        (
            &["healthcheck"][..],
            1,
            "no_daemon",
            "no daemon answers at ",
        ),
    ] {
        let json = program.run(&[&["--json"], arguments].concat()).await;
        assert_eq!(json.code, Some(code), "{json:?}");
        let error = error_of(&json);
        assert_eq!(error["kind"], kind, "{error}");
        assert!(error["error"].as_str().unwrap().contains(what), "{error}");
        assert!(error["hint"].is_string(), "{error}");
        // For people it stays a text, with the same code.
        let text = program.run(arguments).await;
        assert_eq!(text.code, Some(code), "{text:?}");
        assert!(text.stderr.starts_with("error: "), "{text:?}");
    }
}

#[tokio::test]
async fn a_wrong_key_a_wrong_configuration_and_a_wrong_host_have_kinds_of_their_own() {
    let simulator = api([("run_1", Script::succeeds())]).await;
    let wrong_key = Program::with(&simulator).set("CREWSHIP_API_KEY", "another-key");
    for command in [&["wait", "-q", "run_1"][..], &["status", "run_1"]] {
        let refused = wrong_key.run(&[command, &["--json"]].concat()).await;
        assert_eq!(refused.code, Some(4), "{refused:?}");
        let error = error_of(&refused);
        assert_eq!(error["kind"], "unauthorized", "{error}");
        assert!(
            error["hint"].as_str().unwrap().contains("CREWSHIP_API_KEY"),
            "{error}"
        );
    }
    let wrong = Program::with(&simulator).configured("[api]\nrequests_per_minut = 3\n");
    for command in [&["wait", "run_1"][..], &["config", "show"]] {
        let ended = wrong.run(&[command, &["--json"]].concat()).await;
        let error = error_of(&ended);
        assert_eq!(error["kind"], "configuration", "{error}");
        assert_eq!(
            error["problems"][0]["key"], "api.requests_per_minut",
            "{error}"
        );
        assert!(error["problems"][0]["fix"].is_string(), "{error}");
    }
    // A host that does not answer is no error of the command but the result of the run.
    let nowhere = Program::with(&simulator).set("RUNWATCH_API__BASE_URL", "http://127.0.0.1:9");
    let ended = nowhere.run(&["status", "run_1", "--json"]).await;
    assert_eq!(ended.code, Some(6), "{ended:?}");
    let result: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(result["verdict"], "unreachable", "{ended:?}");
    assert_eq!(ended.stderr, "");
}
