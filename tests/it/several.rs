//! Runs of several providers, as the commands name them.

use runwatch::simulator::Script;

use crate::support::terminal::Terminal;
use crate::support::{Program, api, until, with_daemon};

/// An API whose runs have a name of two parts, the second of which the simulator knows.
const PROFILE: &str = r#"
title = "Own job"
auth = { scheme = "bearer" }
id = "{folder}/{job}"
get = "/v1/runs/{job}?folder={folder}"
rules = [
  { when = { "/status" = "running" }, is = "running" },
  { when = { "/status" = "succeeded" }, is = "succeeded" },
]
"#;

const LONG: &str =
    "own:one_folder_with_a_name_that_is_very_long_indeed,_and_100%_longer_than_others/run_2";

async fn two_providers() -> (Program, impl Sized) {
    let simulator = api([
        ("run_1", Script::runs_forever()),
        ("run_2", Script::runs_forever()),
    ])
    .await;
    let config = format!(
        "[providers.own]\nprofile_file = \"own.toml\"\nbase_url = \"{}\"\nkey = \"{}\"\n",
        simulator.base_url(),
        simulator.api_key()
    );
    let program = Program::with(&simulator)
        .configured(&config)
        .with_file("own.toml", PROFILE);
    let (program, daemon) = with_daemon(program).await;
    (program, (daemon, simulator))
}

#[tokio::test]
async fn runs_whose_ids_have_slashes_are_shown_waited_for_and_removed() {
    let (program, _running) = two_providers().await;
    for run in ["own:a/run_1", LONG] {
        let added = program.run(&["add", run]).await;
        assert_eq!(added.code, Some(0), "{added:?}");
        until("the run to be polled", async || {
            let shown = program.run(&["show", run]).await;
            assert_eq!(shown.code, Some(0), "{shown:?}");
            assert!(shown.stdout.contains(run), "{shown:?}");
            shown.stdout.contains("running").then_some(())
        })
        .await;
        let waited = program
            .run(&["wait", "--daemon", "--timeout", "200ms", run])
            .await;
        assert_eq!(waited.code, Some(124), "{waited:?}");
        let removed = program.run(&["remove", run]).await;
        assert_eq!(removed.code, Some(0), "{removed:?}");
    }
}

#[tokio::test]
async fn long_ids_fit_the_terminal_and_what_is_shown_of_them_is_accepted() {
    let (program, _running) = two_providers().await;
    for run in ["run_1", "own:a/run_1", LONG] {
        let added = program.run(&["add", run]).await;
        assert_eq!(added.code, Some(0), "{added:?}");
    }
    let (code, rows) = Terminal::start(&program, (24, 80), &["list"]).ended().await;
    assert_eq!((code, rows.len()), (Some(0), 5), "{rows:#?}");
    let words: Vec<_> = rows[1].split_whitespace().collect();
    let shown = words.iter().find(|word| word.contains('…'));
    let shown = shown.unwrap_or_else(|| panic!("{rows:#?}"));
    assert!(
        rows[0].contains("STATE") && rows[0].contains("NEXT POLL"),
        "{rows:#?}"
    );
    assert!(
        rows[2].contains(" own:a/run_1 ") && rows[3].contains(" run_1 "),
        "{rows:#?}"
    );
    for short in [shown, "run_2", "own:one_folder"] {
        let found = program.run(&["show", short]).await;
        assert_eq!(found.code, Some(0), "{found:?}");
        assert!(found.stdout.contains(LONG), "{found:?}");
    }
    // The whole ID of one counts before a part of another; a part of several is none.
    let whole = program.run(&["show", "run_1"]).await;
    assert!(
        whole.code == Some(0) && !whole.stdout.contains("own:"),
        "{whole:?}"
    );
    let several = program.run(&["show", "own:"]).await;
    assert_eq!(several.code, Some(2), "{several:?}");
    assert!(
        several.stderr.contains("own: could be ") && several.stderr.contains("own:a/run_1"),
        "{several:?}"
    );
    let none = program.run(&["show", "run_9"]).await;
    assert!(
        none.code == Some(1) && none.stderr.contains("run_9 is not known here"),
        "{none:?}"
    );
}

#[tokio::test]
async fn the_list_of_providers_shows_whole_columns_at_80() {
    let terminal = Terminal::start(&Program::new(), (60, 80), &["providers"]);
    let (code, rows) = terminal.ended().await;
    assert_eq!(code, Some(0), "{rows:#?}");
    let row = rows.iter().find(|row| row.starts_with("openai-batch "));
    let words: Vec<_> = row.unwrap().split_whitespace().collect();
    let whole = [
        "openai-batch",
        "openai-batch:{batch}",
        "missing",
        "https://api.openai.com",
    ];
    assert_eq!(words, whole, "{rows:#?}");
}
