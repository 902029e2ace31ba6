//! `list`, `deliveries` and `show` where people see them: on terminals of several widths.

use runwatch::simulator::{Fault, Receiver, Script};

use crate::support::terminal::Terminal;
use crate::support::{Program, api, received, until};

const FAILED: &str = "run_0123456789abcdef_market_research";

/// What a command leaves on a terminal of so many columns.
async fn seen(program: &Program, columns: u16, arguments: &[&str]) -> Vec<String> {
    let terminal = Terminal::start(program, (60, columns), arguments);
    let (code, rows) = terminal.ended().await;
    assert_eq!(code, Some(0), "{arguments:?}: {rows:#?}");
    for row in &rows {
        let width = console::measure_text_width(row);
        // A word of its own, such as an ID or a link, is never broken.
        let is_word = row.split_whitespace().count() == 1;
        assert!(
            is_word || width <= usize::from(columns),
            "{arguments:?} on {columns} columns: {rows:#?}"
        );
    }
    rows
}

#[tokio::test]
async fn lists_fit_the_terminal_and_their_ids_are_whole_and_of_use() {
    let failed = Script::fails("OpenAI API rate limit exceeded for the whole organization");
    let simulator = api([(FAILED, failed), ("run_2", Script::runs_forever())]).await;
    let receiver = Receiver::start([Fault::status(503), Fault::status(503)])
        .await
        .unwrap();
    let config = format!(
        "[sinks.away]\ntype = \"webhook\"\nurl = \"{}\"\nretry_schedule = [\"1h\"]\n",
        receiver.url()
    );
    let program = Program::with(&simulator).configured(&config);
    let home = program.home().to_str().unwrap().to_owned();
    let program = program
        .set("XDG_RUNTIME_DIR", &home)
        .set("TERM", "xterm-256color");
    let daemon = program.command(&["daemon"]).spawn().unwrap();
    until("the daemon", async || {
        let name = "market research \u{1f680} 週次 of a long name that goes on and on";
        let added = program.run(&["add", FAILED, "--name", name]).await;
        (added.code == Some(0)).then_some(())
    })
    .await;
    assert_eq!(program.run(&["add", "run_2"]).await.code, Some(0));
    received(&receiver, 1).await;
    until("a first attempt that failed", async || {
        let failed = program.run(&["deliveries", "--failed"]).await;
        failed.stdout.contains("503").then_some(())
    })
    .await;

    for columns in [40, 80, 120, 200] {
        let list = seen(&program, columns, &["list", "--all"]).await;
        assert!(list.len() == 4 && list[2].contains(FAILED), "{list:#?}");
        assert!(list[1].starts_with("⠹"), "the newest first: {list:#?}");
        // Below 80 columns it has no room.
        let (counts, requests) = list[3].split_once(" · ").unwrap_or((&list[3], ""));
        assert_eq!(counts, "2 watches: 1 running, 1 failed");
        assert_eq!(requests.ends_with(" req/min"), columns >= 80, "{list:#?}");
        let show = seen(&program, columns, &["show", FAILED]).await;
        let head = show[..5].join(" ");
        assert!(
            head.contains("failed") && head.contains("OpenAI API"),
            "{show:#?}"
        );
        let words = show.join(" ");
        let words: Vec<_> = words.split_whitespace().collect();
        assert!(
            words.join(" ").contains("attempt 1 of 2, next in"),
            "{show:#?}"
        );
        let deliveries = seen(&program, columns, &["deliveries"]).await;
        assert!(deliveries.len() == 3, "{deliveries:#?}");
        assert_eq!(deliveries[2], "1 delivery: 1 pending");
    }
    // The ID that is seen on a narrow terminal is one that is accepted.
    let deliveries = seen(&program, 40, &["deliveries"]).await;
    let id = deliveries[1].split_whitespace().last().unwrap();
    let retried = program.run(&["deliveries", "retry", id]).await;
    assert_eq!(retried.code, Some(0), "{retried:?}");
    received(&receiver, 2).await;
    // The schedule, which has two attempts, begins anew.
    let whole = until("a second attempt that failed", async || {
        let listed = program.run(&["deliveries", "--json"]).await;
        let listed: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
        let delivery = listed["deliveries"][0].clone();
        (delivery["state"] == "pending" && delivery["attempts"] == 2).then_some(delivery)
    })
    .await;
    assert_eq!(whole["most_attempts"], 3, "{whole}");
    let show = program.run(&["show", FAILED]).await;
    assert!(
        show.stdout.contains(", attempt 2 of 3, next in "),
        "{show:?}"
    );
    drop(daemon);
}
