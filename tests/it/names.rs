//! How runs are named: by ID, by the address of their page, and in lists.

use runwatch::simulator::Script;

use crate::support::{Program, api};

#[tokio::test]
async fn the_address_of_a_page_of_the_configured_host_names_its_run() {
    let simulator = api([("run_1", Script::succeeds()), ("run_2", Script::succeeds())]).await;
    let program = Program::with(&simulator).set(
        "RUNWATCH_API__RUN_URL",
        "https://console.example.com/acme/{run_id}/log",
    );
    let page = format!("{}/v1/runs/run_1?tab=log", simulator.base_url());
    let list = "# of tonight\n\nhttps://console.example.com/acme/run_2/log , run_1\n";
    let ended = program
        .run_with_input(&["wait", "--json", &page, "-"], list)
        .await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let mut runs: Vec<_> = ended
        .json_lines()
        .iter()
        .map(|line| line["run_id"].as_str().unwrap().to_owned())
        .collect();
    runs.sort();
    assert_eq!(runs, ["run_1", "run_2"]);
}

#[tokio::test]
async fn the_address_of_another_host_is_refused_before_any_request() {
    let simulator = api([("run_1", Script::succeeds())]).await;
    let program = Program::with(&simulator);
    let page = "https://console.example.com/runs/run_1";
    for arguments in [&["wait", page][..], &["show", page], &["remove", page]] {
        let program =
            Program::with(&simulator).set("XDG_RUNTIME_DIR", program.home().to_str().unwrap());
        let ended = program.run(arguments).await;
        assert_eq!(ended.code, Some(2), "{ended:?}");
        for part in [page, "api.run_url", &simulator.base_url()] {
            assert!(ended.stderr.contains(part), "{part}: {ended:?}");
        }
    }
    assert!(simulator.requests().is_empty());
}
