//! Event streams over HTTP, as they should be and as they should not: the built program against the
//! simulated API.

use std::collections::BTreeMap;
use std::time::Duration;

use runwatch::domain::RunRef;
use runwatch::simulator::{Fault, Receiver, Script, Simulator, StreamFault, StreamScript};
use serde_json::Value;
use tokio::process::Child;
use tokio::time::Instant;

use crate::support::{Ended, Program, api, eventually, finish, received, send_signal};

const SOON: Duration = Duration::from_millis(700);

/// A run that ends soon, however late the program begins to watch it.
fn soon(script: Script) -> Script {
    script.runs_for(SOON).from_first_poll()
}

/// A program whose polls come an hour apart: in the time of a test nothing but a stream has it ask again.
fn patient(simulator: &Simulator) -> Program {
    Program::with(simulator)
        .set("RUNWATCH_WATCH__INITIAL_INTERVAL", "1h")
        .set("RUNWATCH_WATCH__MAX_INTERVAL", "1h")
        .set("RUNWATCH_WATCH__MAX_STREAMS", "64")
}

/// Waits for all of `runs`. Returns each verdict.
async fn wait_for_all(program: &Program, runs: &[String]) -> (Ended, BTreeMap<String, Value>) {
    let runs: Vec<&str> = runs.iter().map(String::as_str).collect();
    let ended = program
        .run(&[&["wait", "--json"], runs.as_slice()].concat())
        .await;
    let verdicts = ended
        .json_lines()
        .into_iter()
        .map(|line| {
            (
                line["run_id"].as_str().unwrap().to_owned(),
                line["verdict"].clone(),
            )
        })
        .collect();
    (ended, verdicts)
}

/// Simulates `runs` and waits for them with `program`. Returns the simulator.
async fn each_has_its_verdict(
    runs: Vec<(String, Script, &'static str)>,
    program: impl FnOnce(&Simulator) -> Program,
) -> Simulator {
    let simulator = api(runs
        .iter()
        .map(|(id, script, _)| (id.as_str(), script.clone())))
    .await;
    let ids: Vec<String> = runs.iter().map(|(id, ..)| id.clone()).collect();
    let (ended, verdicts) = wait_for_all(&program(&simulator), &ids).await;
    for (id, _, verdict) in &runs {
        assert_eq!(
            verdicts.get(id),
            Some(&Value::from(*verdict)),
            "{id}: {}",
            ended.stderr
        );
    }
    assert_eq!(ended.json_lines().len(), runs.len(), "{ended:?}");
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
    simulator
}

fn polls_of(simulator: &Simulator, id: &str) -> usize {
    simulator
        .requests()
        .iter()
        .filter(|request| request.path == format!("/v1/runs/{id}"))
        .count()
}

#[tokio::test]
async fn the_documented_streams_tell_of_every_end() {
    let mut runs = Vec::new();
    let streams = [
        ("reference", StreamScript::default()),
        (
            "replayed",
            StreamScript::default()
                .replays()
                .pace(Duration::from_millis(20)),
        ),
        ("guide", StreamScript::guide()),
        ("guide_with_ids", StreamScript::guide().with_ids()),
        ("database", StreamScript::database()),
    ];
    for (name, stream) in streams {
        for (script, verdict) in [
            (Script::succeeds(), "succeeded"),
            (Script::fails("it broke"), "failed"),
            // The reference has no event for it: the stream ends.
            (Script::canceled(), "canceled"),
        ] {
            runs.push((
                format!("{name}_{verdict}"),
                soon(script).stream(stream.clone()),
                verdict,
            ));
        }
    }
    let ids: Vec<String> = runs.iter().map(|(id, ..)| id.clone()).collect();
    let simulator = each_has_its_verdict(runs, patient).await;
    for id in ids {
        // At the start and at the end; and where the stream reports the start once more, then too.
        assert!(
            polls_of(&simulator, &id) <= 3,
            "{id}: {} polls",
            polls_of(&simulator, &id)
        );
    }
    let opened = simulator.stream_requests();
    assert_eq!(opened.len(), 15);
    for request in &opened {
        assert_eq!(request.headers["accept"], "text/event-stream");
        assert_eq!(
            request.headers["authorization"],
            format!("Bearer {}", simulator.api_key())
        );
    }
}

#[tokio::test]
async fn a_start_is_delivered_too() {
    let script = soon(Script::succeeds()).queued_for(SOON);
    let simulator = api([("run_1", script)]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let events = format!(
        "[sinks.all]\ntype = \"webhook\"\nurl = \"{}\"\nevents = [\"run.started\", \"run.succeeded\"]\n",
        receiver.url()
    );
    let ended = patient(&simulator)
        .configured(&events)
        .run(&["wait", "run_1"])
        .await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let messages: Vec<Value> = receiver
        .requests()
        .iter()
        .map(|request| serde_json::from_slice(&request.body).unwrap())
        .collect();
    let mut types: Vec<_> = messages
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    types.sort_unstable();
    assert_eq!(types, ["run.started", "run.succeeded"]);
}

#[tokio::test]
async fn a_stream_that_ends_wherever_it_ends_is_a_reason_to_poll_and_is_opened_again() {
    // The first connection ends too early; the second one is as it should be.
    let first = |fault: StreamFault| {
        let pace = Duration::from_millis(100);
        let stream = StreamScript::default()
            .with_ids()
            .pace(pace)
            .fault_on(1, fault);
        Script::succeeds()
            .runs_for(Duration::from_millis(2500))
            .from_first_poll()
            .stream(stream)
    };
    let mut runs = Vec::new();
    // The first events take about 60 bytes each: this is every place in an event, and some events.
    for bytes in (0..130).step_by(5) {
        runs.push((
            format!("breaks_after_{bytes}"),
            first(StreamFault::BreaksAfter(bytes)),
            "succeeded",
        ));
    }
    for events in 0..3 {
        runs.push((
            format!("ends_after_{events}"),
            first(StreamFault::EndsAfter(events)),
            "succeeded",
        ));
    }
    for lie in [
        "run.completed",
        "run.failed",
        "complete",
        "error",
        "timeout",
    ] {
        runs.push((
            format!("lies_{}", lie.replace('.', "_")),
            first(StreamFault::Lies(lie)),
            "succeeded",
        ));
    }
    runs.push((
        "long_line".to_owned(),
        first(StreamFault::LongLine(10 * 1024 * 1024)),
        "succeeded",
    ));
    let end = StreamScript::default().fault_on(1, StreamFault::NoTerminal);
    runs.push((
        "no_terminal".to_owned(),
        soon(Script::fails("it broke")).stream(end),
        "failed",
    ));
    let ids: Vec<String> = runs.iter().map(|(id, ..)| id.clone()).collect();
    let simulator = each_has_its_verdict(runs, patient).await;
    for id in ids {
        let path = format!("/v1/runs/{id}/events");
        let opened: Vec<_> = simulator
            .stream_requests()
            .into_iter()
            .filter(|request| request.path == path)
            .collect();
        assert!(
            (1..=4).contains(&opened.len()),
            "{id}: {} streams",
            opened.len()
        );
        // Each end causes one poll, besides the first one.
        assert!(
            polls_of(&simulator, &id) <= opened.len() + 2,
            "{id}: {} polls",
            polls_of(&simulator, &id)
        );
        if id == "ends_after_2" {
            let last_id = opened[1].headers["last-event-id"].to_str().unwrap();
            assert!(last_id.parse::<u64>().is_ok(), "{last_id}");
        }
    }
}

#[tokio::test]
async fn a_stream_that_is_of_no_use_changes_no_verdict() {
    let faults = [
        ("never_opens", StreamFault::Answer(Fault::Hang)),
        ("resets", StreamFault::Answer(Fault::Reset)),
        ("server_error", StreamFault::Answer(Fault::status(500))),
        ("unauthorized", StreamFault::Answer(Fault::status(401))),
        (
            "unavailable",
            StreamFault::Answer(Fault::status(503).with_retry_after("3600")),
        ),
        (
            "redirects",
            StreamFault::Answer(Fault::Redirect("http://127.0.0.1:1/".to_owned())),
        ),
        ("page", StreamFault::Answer(Fault::Html)),
        (
            "bomb",
            StreamFault::Answer(Fault::GzipBomb(64 * 1024 * 1024)),
        ),
        ("other_type", StreamFault::ContentType("application/json")),
        ("silent", StreamFault::Silent),
        ("hangs", StreamFault::HangsAfter(2)),
        ("floods", StreamFault::Floods),
        ("long_lines", StreamFault::LongLine(10 * 1024 * 1024)),
        ("no_text", StreamFault::NoText),
        ("never_says_end", StreamFault::NeverSaysEnd),
        ("lies", StreamFault::Lies("run.failed")),
        ("breaks", StreamFault::BreaksAfter(90)),
        ("ends", StreamFault::EndsAfter(1)),
    ];
    let mut runs = Vec::new();
    for (name, fault) in faults {
        let stream = StreamScript::default()
            .pace(Duration::from_millis(50))
            .always(fault);
        for (script, verdict) in [
            (Script::succeeds(), "succeeded"),
            (Script::canceled(), "canceled"),
        ] {
            runs.push((
                format!("{name}_{verdict}"),
                soon(script).stream(stream.clone()),
                verdict,
            ));
        }
    }
    each_has_its_verdict(runs, |simulator| {
        Program::with(simulator).set("RUNWATCH_WATCH__MAX_STREAMS", "64")
    })
    .await;
}

#[tokio::test]
async fn an_api_without_streams_is_requested_one_only_once() {
    for code in [404, 405, 406, 501] {
        let simulator = api([("run_1", soon(Script::succeeds()))]).await;
        simulator.set_stream_outage(Some(Fault::status(code)));
        let ended = Program::with(&simulator).run(&["wait", "run_1"]).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(simulator.stream_requests().len(), 1, "{code}");
        assert!(
            !ended.stderr.contains(&code.to_string()),
            "it is not reported: {ended:?}"
        );
    }
    let simulator = api([("run_1", soon(Script::succeeds()))]).await;
    let ended = Program::with(&simulator)
        .set("RUNWATCH_WATCH__EVENTS", "off")
        .run(&["wait", "run_1"])
        .await;
    assert_eq!(
        (ended.code, simulator.stream_requests().len()),
        (Some(0), 0),
        "{ended:?}"
    );
}

/// The most memory that a process has had so far, in bytes (proc(5), `VmHWM`).
fn peak_memory(child: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id().unwrap())).unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[tokio::test]
async fn floods_and_endless_lines_take_no_memory_and_delay_nothing() {
    const MIB: u64 = 1024 * 1024;
    let fault = |fault| Script::runs_forever().stream(StreamScript::default().always(fault));
    let streams = 8;
    let peak = async |bad: StreamFault, bytes: u64| {
        let names: Vec<String> = (0..streams).map(|index| format!("bad_{index}")).collect();
        let simulator = api(names.iter().map(|name| (name.as_str(), fault(bad.clone())))).await;
        let receiver = Receiver::start([]).await.unwrap();
        let sink = format!(
            "[sinks.hook]\ntype = \"webhook\"\nurl = \"{}\"\n",
            receiver.url()
        );
        let program = Program::with(&simulator).configured(&sink);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let began = Instant::now();
        let child = program
            .command(&[&["wait", "run_good"], names.as_slice()].concat())
            .spawn()
            .unwrap();
        eventually("all streams", || {
            simulator.stream_requests().len() >= streams
        })
        .await;
        eventually("some bytes", || simulator.streamed_bytes() >= bytes).await;
        // In the middle of it a run ends and is reported.
        simulator.add_run(&RunRef::new("run_good").unwrap(), Script::succeeds());
        let ended_at = Instant::now();
        received(&receiver, 1).await;
        // A poll is 100 ms away at the most, and a machine that is busy needs some time.
        assert!(
            ended_at.elapsed() < Duration::from_secs(10),
            "{bad:?}: {:?}",
            ended_at.elapsed()
        );
        let peak = peak_memory(&child);
        let taken = simulator.streamed_bytes();
        // A mebibyte a second from each stream, and what the sockets between hold.
        let most =
            (began.elapsed().as_secs() + 2) * MIB * streams as u64 + streams as u64 * 16 * MIB;
        assert!(
            taken <= most,
            "{bad:?}: {taken} bytes taken, {most} expected at the most"
        );
        send_signal(&child, rustix::process::Signal::TERM);
        let ended = finish(child).await;
        assert_eq!(ended.code, Some(143), "{ended:?}");
        peak
    };
    let quiet = peak(StreamFault::Silent, 0).await;
    for (bad, bytes) in [
        (StreamFault::Floods, 24 * MIB),
        (StreamFault::LongLine(1 << 40), 8 * MIB),
    ] {
        let loud = peak(bad.clone(), bytes).await;
        // Each stream may hold an event and a line of 256 KiB, and what was received in one piece.
        assert!(
            loud <= quiet + 16 * MIB,
            "{bad:?}: {loud} bytes, {quiet} without"
        );
    }
}
