//! A caller of the control interface reaches nothing that is not configured: no address, no file, no
//! program.

use std::path::Path;

use runwatch::simulator::{Receiver, Script};
use rustix::process::Signal;
use serde_json::json;
use tokio::net::UnixStream;

use crate::support::{Program, api, eventually, finish, http_client, send_signal};

/// Everything in which a caller could hide a place: what the daemon would write, run or connect to.
fn requests(address: &str, file: &Path) -> Vec<(&'static str, String, String)> {
    let (url, file) = (format!("http://{address}/canary"), file.display());
    let places = [
        url.clone(),
        format!("//{address}/canary"),
        format!("@{address}/canary"),
        format!("..//{address}"),
        format!("run_1@{address}"),
        format!("run_1?url={url}"),
        format!("run_1#{url}"),
        format!("run_1\\..\\{address}"),
        format!("file://{file}"),
        format!("{file}"),
        format!("../../../..{file}"),
        format!("run_1\r\nHost: {address}"),
        format!("$(touch {file})"),
        format!("`touch {file}`"),
        format!("; touch {file}"),
        format!("run_1\0{file}"),
        ".".to_owned(),
        "..".to_owned(),
        "%2e%2e%2fkeys".to_owned(),
    ];
    let encoded = |text: &str| {
        text.bytes()
            .map(|byte| format!("%{byte:02x}"))
            .collect::<String>()
    };
    let mut all = Vec::new();
    for place in places {
        for body in [
            json!({"run_id": place}),
            json!({"run_id": "run_2", "sinks": [place]}),
            json!({"run_id": "run_2", "url": place}),
            json!({"run_id": "run_2", "webhook": place, "argv": ["touch", place]}),
            json!({"run_id": "run_2", "sinks": [{"type": "webhook", "url": place}]}),
            json!({"run_id": "run_2", "sinks": [{"type": "command", "argv": ["touch", place]}]}),
            json!({"run_id": "run_2", "sinks": {"x": {"type": "log", "path": place}}}),
            json!({"run_id": "run_2", "timeout": place}),
            // Legal where it is a name: then it is a text and nothing else.
            json!({"run_id": "run_3", "name": place}),
            json!({"run_id": "run_4", "labels": {place.clone(): place}}),
            json!({"run_id": "run_5", "labels": {"place": place}}),
        ] {
            all.push(("POST", "/v1/watches".to_owned(), body.to_string()));
        }
        let place = encoded(&place);
        for (method, path) in [
            ("GET", format!("/v1/watches/{place}")),
            ("GET", format!("/v1/watches/run_1?wait={place}")),
            ("GET", format!("/v1/watches?cursor={place}")),
            ("GET", format!("/v1/watches?label=a%3d{place}")),
            ("GET", format!("/v1/watches?url={place}")),
            ("GET", format!("/v1/deliveries?sink={place}")),
            ("GET", format!("/v1/deliveries?cursor={place}")),
            ("DELETE", format!("/v1/watches/{place}")),
            ("POST", format!("/v1/deliveries/{place}/retry")),
            ("GET", format!("/{place}")),
            ("PUT", format!("/v1/sinks/{place}")),
        ] {
            all.push((method, path, String::new()));
        }
    }
    all
}

#[tokio::test]
async fn no_request_reaches_a_place_that_is_not_configured() {
    let simulator = api((1..=5).map(|n| {
        (
            ["", "run_1", "run_2", "run_3", "run_4", "run_5"][n],
            Script::fails("no"),
        )
    }))
    .await;
    let (receiver, canary) = (
        Receiver::start([]).await.unwrap(),
        Receiver::start([]).await.unwrap(),
    );
    let program = Program::with(&simulator);
    let (run, file) = (program.home().join("run"), program.home().join("canary"));
    std::fs::create_dir(&run).unwrap();
    // The configured program passes on all it gets in the ways that a careless one would.
    let hook = "cat > event.json; printf '%s\\n' \"$RUNWATCH_NAME\" >> names";
    let config = format!(
        "[sinks.hook]\ntype = \"webhook\"\nurl = {:?}\n[sinks.program]\ntype = \"command\"\n\
         argv = [\"/bin/sh\", \"-c\", {hook:?}]\n[sinks.file]\ntype = \"log\"\npath = \"events.jsonl\"\n",
        receiver.url()
    );
    let program = program
        .configured(&config)
        .set("XDG_RUNTIME_DIR", run.to_str().unwrap());
    let socket = run.join("runwatch/runwatch.sock");
    let daemon = program.command(&["daemon"]).spawn().unwrap();
    eventually("the daemon listens", || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    })
    .await;
    drop(UnixStream::connect(&socket).await.unwrap());

    let http = http_client()
        .unix_socket(socket)
        .no_proxy()
        .build()
        .unwrap();
    let address = canary
        .url()
        .trim_start_matches("http://")
        .trim_end_matches("/hook")
        .to_owned();
    let (mut accepted, mut refused) = (0, 0);
    for (method, path, body) in requests(&address, &file) {
        let request = http
            .request(method.parse().unwrap(), format!("http://localhost{path}"))
            .body(body.clone());
        let status = request.send().await.unwrap().status();
        assert!(
            !status.is_server_error(),
            "{method} {path} {body}: {status}"
        );
        if status.is_success() {
            accepted += 1
        } else {
            refused += 1
        }
        // What is taken is a name, a label or a filter for one.
        if status.is_success() && !body.is_empty() {
            assert!(
                body.contains("\"name\"") || body.contains("\"labels\""),
                "{body}: {status}"
            );
        }
    }
    assert!(
        accepted > 10 && refused > 200,
        "{accepted} accepted, {refused} refused"
    );
    let ended = program
        .run(&["wait", "--daemon", "run_3", "run_4", "run_5"])
        .await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    crate::support::received(&receiver, 3).await;
    send_signal(&daemon, Signal::TERM);
    assert_eq!(finish(daemon).await.code, Some(0));

    assert_eq!(canary.requests().len(), 0, "nothing went to the address");
    assert!(!file.exists(), "no file was made");
    let known = ["/v1/runs/run_3", "/v1/runs/run_4", "/v1/runs/run_5"];
    for request in simulator.requests() {
        let path = request.path.trim_end_matches("/events");
        assert!(
            known.contains(&path),
            "the API got a request for {}",
            request.path
        );
    }
    for message in receiver.requests() {
        assert_eq!(message.path, "/hook");
    }
    let names = std::fs::read_to_string(program.home().join("names")).unwrap();
    assert!(
        names.contains("canary"),
        "a name is passed on as a text: {names}"
    );
}
