//! `runwatch demo` as a user runs it.

use runwatch::domain::Verdict;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::support::{Program, finish, send_signal};

#[tokio::test]
async fn the_demo_shows_every_fate_and_says_that_all_came() {
    let ended = Program::new().run(&["demo"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let results = ended.stdout.split("The receiver got:").next().unwrap();
    for (name, verdict) in [
        ("weekly report", Verdict::Succeeded),
        ("market research", Verdict::Failed),
        ("outreach mails", Verdict::Canceled),
        ("late arrival", Verdict::Succeeded),
        ("with a 429", Verdict::Succeeded),
        ("with a 502", Verdict::Succeeded),
    ] {
        assert!(
            results.contains(&format!("{name} {verdict}")),
            "{name}: {ended:?}"
        );
    }
    assert_eq!(
        ended.stdout.matches("signature verified").count(),
        6,
        "{ended:?}"
    );
    assert!(
        ended.stdout.contains("every verdict right, nothing lost"),
        "{ended:?}"
    );
    assert!(
        ended.stderr.contains("the API asked for a pause")
            && ended.stderr.contains("502 Bad Gateway"),
        "{ended:?}"
    );

    let as_json = Program::new().run(&["demo", "--json"]).await;
    assert_eq!(as_json.code, Some(0), "{as_json:?}");
    let lines = as_json.json_lines();
    assert_eq!(
        lines
            .iter()
            .filter(|line| line["verdict"].is_string())
            .count(),
        6,
        "{as_json:?}"
    );
    assert_eq!(lines.last().unwrap()["as_it_must_be"], true, "{as_json:?}");
}

#[tokio::test]
async fn a_served_demo_can_be_watched_from_another_terminal() {
    let mut server = Program::new()
        .command(&["demo", "--serve"])
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let exports = lines.next_line().await.unwrap().unwrap();
    let command = lines.next_line().await.unwrap().unwrap();
    let mut program = Program::new();
    for pair in exports.strip_prefix("export ").unwrap().split(' ') {
        let (name, value) = pair.split_once('=').unwrap();
        program = program.set(name, value);
    }
    let arguments: Vec<_> = command.split(' ').skip(1).collect();
    assert_eq!((arguments[0], arguments.len()), ("wait", 7), "{command}");
    let ended = program
        .run(&["wait", "run_demo_outreach", "--interval", "100ms"])
        .await;
    assert_eq!(ended.code, Some(3), "{ended:?}");
    send_signal(&server, rustix::process::Signal::TERM);
    assert_eq!(finish(server).await.code, Some(143));
}
