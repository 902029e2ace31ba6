//! What `wait` shows on a terminal: the screen, and not the bytes that made it.

use runwatch::simulator::{Fault, Receiver, Script};

use crate::support::terminal::Terminal;
use crate::support::{Program, api, finish, received, send_signal, with_daemon};

/// The rows that contain a text.
fn with<'a>(rows: &'a [String], text: &str) -> Vec<&'a String> {
    rows.iter().filter(|row| row.contains(text)).collect()
}

fn on_terminal(program: Program) -> Program {
    program
        .set("TERM", "xterm-256color")
        .set("LANG", "C.UTF-8")
        .set("NO_COLOR", "1")
}

#[tokio::test]
async fn live_rows_hold_through_ends_resizes_and_ctrl_c() {
    const RUNS: [&str; 3] = ["run_done", "run_broken", "run_goes_on"];
    let simulator = api([
        ("run_done", Script::succeeds().answers(vec!["running"])),
        (
            "run_broken",
            Script::fails("the disk of the crew is full").answers(vec!["running", "running"]),
        ),
        ("run_goes_on", Script::runs_forever()),
    ])
    .await;
    let program = on_terminal(Program::with(&simulator));
    let mut terminal = Terminal::start(&program, (24, 80), &[&["wait"], &RUNS[..]].concat());
    let shows_all = |rows: &[String]| {
        with(rows, "✓ run_done     succeeded").len() == 1
            && with(rows, "✗ run_broken   failed").len() == 1
            && with(rows, "run_goes_on  running").len() == 1
            && with(rows, "1 running · 1 succeeded · 1 failed").len() == 1
    };
    let rows = terminal.shows("two ends and a run", shows_all).await;
    assert_eq!(
        with(&rows, "the disk of the crew is full").len(),
        1,
        "{rows:#?}"
    );
    assert!(with(&rows, "req/min").len() == 1, "{rows:#?}");
    for columns in [40, 120, 200, 80] {
        terminal.resize(24, columns);
        let summary = |rows: &[String]| {
            let rows = with(rows, "1 running · 1 succ");
            rows.len() == 1 && (columns == 40) != rows[0].contains("req/min")
        };
        let rows = terminal
            .shows("the summary in its new width", summary)
            .await;
        assert_eq!(with(&rows, "run_goes_on").len(), 1, "{columns}: {rows:#?}");
        assert_eq!(with(&rows, "✓ run_done").len(), 1, "{columns}: {rows:#?}");
    }
    terminal.press("\u{3}");
    let (code, rows) = terminal.ended().await;
    assert_eq!(code, Some(130), "{rows:#?}");
    assert_eq!(rows.len(), 3, "nothing half erased: {rows:#?}");
    assert!(rows[0].starts_with("✓ run_done") && rows[1].starts_with("✗ run_broken"));
    assert_eq!(rows[2], "stopped; 1 run is still going and not affected");
}

#[tokio::test]
async fn the_end_of_a_wait_is_summed_up() {
    let simulator = api([
        (
            "run_1",
            Script::succeeds()
                .fault_on(2, Fault::status(502))
                .answers(vec!["running"]),
        ),
        ("run_2", Script::fails(&"a long story ".repeat(10))),
    ])
    .await;
    let program = on_terminal(Program::with(&simulator));
    let terminal = Terminal::start(&program, (24, 80), &["wait", "run_1", "run_2"]);
    let (code, rows) = terminal.ended().await;
    assert_eq!(code, Some(1), "{rows:#?}");
    let row = with(&rows, "✗ run_2  failed");
    assert!(row.len() == 1 && row[0].ends_with('…'), "{rows:#?}");
    assert_eq!(with(&rows, "✓ run_1  succeeded").len(), 1, "{rows:#?}");
    assert_eq!(
        with(&rows, "502 Bad Gateway").len(),
        1,
        "what was survived: {rows:#?}"
    );
    let last = rows.last().unwrap();
    assert!(
        last.starts_with("2 runs: 1 succeeded, 1 failed · ") && last.contains(" requests"),
        "{rows:#?}"
    );
    // What had no room is there in full.
    assert!(
        rows.concat()
            .contains(&"a long story ".repeat(10).trim_end().replace("  ", " "))
            || rows.join(" ").matches("a long story").count() > 10,
        "{rows:#?}"
    );
}

#[tokio::test]
async fn sentences_are_folded_between_words() {
    let simulator = api([("run_1", Script::runs_forever())]).await;
    let program = on_terminal(Program::with(&simulator));
    let mut terminal = Terminal::start(&program, (24, 40), &["wait", "run_1"]);
    let is_live = |rows: &[String]| with(rows, "1 running").len() == 1;
    terminal.shows("the run", is_live).await;
    terminal.press("\u{3}");
    let (code, rows) = terminal.ended().await;
    assert_eq!(code, Some(130), "{rows:#?}");
    assert_eq!(
        rows,
        ["stopped; 1 run is still going and not", "  affected"]
    );
}

#[tokio::test]
async fn ctrl_c_says_what_is_in_flight_and_a_second_one_ends_it() {
    let simulator = api([("run_1", Script::succeeds())]).await;
    let receiver = Receiver::start([Fault::Hang]).await.unwrap();
    let url = receiver.url();
    let program = on_terminal(
        Program::with(&simulator)
            .configured(&format!("[sinks.ops]\ntype = \"webhook\"\nurl = {url:?}\n")),
    );
    let mut terminal = Terminal::start(&program, (24, 80), &["wait", "run_1"]);
    received(&receiver, 1).await;
    terminal.press("\u{3}");
    let says = |rows: &[String]| {
        with(
            rows,
            "stopping: 1 notification in flight, up to 10 s; Ctrl-C again ends at once",
        )
        .len()
            == 1
    };
    let rows = terminal.shows("what happens now", says).await;
    assert!(
        rows.iter().any(|row| row.starts_with("stopping: ")),
        "{rows:#?}"
    );
    terminal.press("\u{3}");
    let (code, rows) = terminal.ended().await;
    assert_eq!(code, Some(130), "{rows:#?}");
    let last = rows.last().unwrap();
    assert_eq!(
        last, "ended at once; notifications in flight may not have arrived",
        "{rows:#?}"
    );
}

#[tokio::test]
async fn a_sink_that_is_down_is_one_sentence_and_no_log_record() {
    let runs: Vec<_> = (0..6).map(|number| format!("run_{number}")).collect();
    let simulator = api(runs.iter().map(|run| (run.as_str(), Script::succeeds()))).await;
    // The port is taken as long as it is held, and nothing listens.
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}", held.local_addr().unwrap());
    let program = on_terminal(Program::with(&simulator).configured(&format!(
        "[sinks.away]\ntype = \"webhook\"\nurl = {url:?}\nretry_schedule = [\"1s\", \"1h\"]\n"
    )));
    let arguments = ["wait", "--linger", "3s"]
        .into_iter()
        .chain(runs.iter().map(String::as_str));
    let terminal = Terminal::start(&program, (40, 100), &arguments.collect::<Vec<_>>());
    let (code, rows) = terminal.ended().await;
    assert_eq!(code, Some(0), "{rows:#?}");
    assert_eq!(
        with(&rows, "! away: connection refused; next attempt in").len(),
        1,
        "{rows:#?}"
    );
    assert!(
        with(&rows, "WARN").is_empty() && with(&rows, "runwatch::").is_empty(),
        "{rows:#?}"
    );
}

#[tokio::test]
async fn a_host_that_is_not_reached_and_a_path_that_is_wrong_are_sentences_with_a_remedy() {
    let simulator = api([("run_1", Script::runs_forever())]).await;
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let closed = format!("http://{}", held.local_addr().unwrap());
    let versioned = format!("{}/v1", simulator.base_url());
    for (url, live, reason) in [
        (
            closed,
            "connection refused; giving up in ",
            "was not reached within 2s: connection refused; check api.base_url",
        ),
        (
            versioned,
            "api.base_url ends in /v1; set it to ",
            "api.base_url ends in /v1; set it to ",
        ),
    ] {
        let program = on_terminal(Program::with(&simulator))
            .set("RUNWATCH_API__BASE_URL", &url)
            .set("RUNWATCH_WATCH__CONNECT_GRACE", "2s");
        let terminal = Terminal::start(&program, (24, 160), &["wait", "run_1"]);
        terminal
            .shows("why it waits", |rows| with(rows, live).len() == 1)
            .await;
        let (code, rows) = terminal.ended().await;
        assert_eq!(code, Some(6), "{rows:#?}");
        assert!(rows[0].starts_with("? run_1  unreachable"), "{rows:#?}");
        let text = rows.join("").replace(' ', "");
        assert!(text.contains(&reason.replace(' ', "")), "{rows:#?}");
    }
}

#[tokio::test]
async fn a_budget_that_is_too_small_is_pointed_out() {
    let runs: Vec<_> = (0..30).map(|number| format!("run_{number}")).collect();
    let simulator = api(runs
        .iter()
        .map(|run| (run.as_str(), Script::runs_forever())))
    .await;
    let program =
        on_terminal(Program::with(&simulator)).set("RUNWATCH_API__REQUESTS_PER_MINUTE", "20");
    let arguments = ["wait"].into_iter().chain(runs.iter().map(String::as_str));
    let mut terminal = Terminal::start(&program, (20, 80), &arguments.collect::<Vec<_>>());
    let says_why = |rows: &[String]| {
        let text = rows.join(" ");
        text.contains("30 runs share 20 requests a minute: each is polled about every 2 minutes")
            && text.contains("waiting for its turn")
    };
    let rows = terminal.shows("why they wait", says_why).await;
    assert_eq!(
        with(&rows, " more: ").len(),
        1,
        "counts for the rest: {rows:#?}"
    );
    assert!(rows.len() <= 19, "{rows:#?}");

    terminal.press("\u{3}");
    let (code, rows) = terminal.ended().await;
    assert_eq!((code, rows.len()), (Some(130), 1), "{rows:#?}");
}

#[tokio::test]
async fn a_run_that_the_budget_left_no_poll_says_so_and_a_daemon_without_a_key_does() {
    let runs: Vec<_> = (0..40).map(|number| format!("run_{number}")).collect();
    let simulator = api(runs
        .iter()
        .map(|run| (run.as_str(), Script::runs_forever())))
    .await;
    let program = Program::with(&simulator).set("RUNWATCH_API__REQUESTS_PER_MINUTE", "8");
    let arguments = ["wait", "--json", "--timeout", "1s"];
    let arguments = arguments.into_iter().chain(runs.iter().map(String::as_str));
    let ended = program.run(&arguments.collect::<Vec<_>>()).await;
    let reason = "never polled: 40 runs share 8 requests a minute";
    let never_polled = |line: &serde_json::Value| line["data"]["reason"] == reason;
    assert!(
        ended.json_lines().iter().any(never_polled),
        "{reason}: {ended:?}"
    );

    let program = Program::with(&simulator).unset("CREWSHIP_API_KEY");
    let (program, daemon) = with_daemon(program).await;
    let ended = program
        .run(&["wait", "--daemon", "--timeout", "4s", "run_1"])
        .await;
    assert_eq!(ended.code, Some(6), "{ended:?}");
    assert!(
        ended.stderr.contains("no API key in the daemon"),
        "{ended:?}"
    );
    assert!(
        ended.stdout.contains("no API key is configured"),
        "{ended:?}"
    );
    send_signal(&daemon, rustix::process::Signal::TERM);
    assert_eq!(finish(daemon).await.code, Some(0));
}

#[tokio::test]
async fn a_wait_on_the_daemon_has_the_same_view() {
    let simulator = api([
        (
            "run_done",
            Script::fails("it broke").answers(vec!["running"]),
        ),
        ("run_goes_on", Script::runs_forever()),
    ])
    .await;
    let program = on_terminal(Program::with(&simulator));
    let (program, daemon) = with_daemon(program).await;
    let arguments = ["wait", "--daemon", "run_done", "run_goes_on"];
    let mut terminal = Terminal::start(&program, (24, 80), &arguments);
    let shows_all = |rows: &[String]| {
        with(rows, "✗ run_done     failed").len() == 1
            && with(rows, "run_goes_on  running").len() == 1
            && with(rows, "1 running · 1 failed").len() == 1
            && with(rows, " req/min").len() == 1
    };
    terminal
        .shows("an end, a run and the budget", shows_all)
        .await;
    terminal.press("\u{3}");
    let (code, rows) = terminal.ended().await;
    assert_eq!((code, rows.len()), (Some(130), 2), "{rows:#?}");
    assert_eq!(rows[1], "stopped; the daemon continues to watch 1 run");
    send_signal(&daemon, rustix::process::Signal::TERM);
    assert_eq!(finish(daemon).await.code, Some(0));
}

#[tokio::test]
async fn a_log_sink_that_writes_to_the_terminal_writes_sentences() {
    let sink = "[sinks.log]\ntype = \"log\"\n";
    let program = on_terminal(Program::new().configured(sink));
    let terminal = Terminal::start(&program, (24, 80), &["sinks", "test"]);
    let (code, rows) = terminal.ended().await;
    assert_eq!(code, Some(0), "{rows:#?}");
    assert_eq!(
        rows,
        [
            "notification: This is a test message from runwatch (sink.test, run_test)",
            "log  ✓ ok      logged to standard error",
        ]
    );
    // A program gets the record.
    let ended = program.run(&["sinks", "test"]).await;
    assert!(
        ended.stderr.contains("INFO runwatch::event: This is a"),
        "{ended:?}"
    );

    let simulator = api([("run_1", Script::fails("no credits"))]).await;
    let program = on_terminal(Program::with(&simulator).configured(sink));
    let arguments = ["wait", "run_1", "--name", "weekly report"];
    let (code, rows) = Terminal::start(&program, (24, 80), &arguments)
        .ended()
        .await;
    assert_eq!(code, Some(1), "{rows:#?}");
    let notifications = with(&rows, "notification: weekly report failed");
    assert_eq!(notifications.len(), 1, "{rows:#?}");
    assert!(
        notifications[0].ends_with("(run.failed, run_1): no credits"),
        "{rows:#?}"
    );
}
