//! Runs that the daemon finds in a list: the built program beside a stand-in for an API with one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::routing::get;
use jiff::Timestamp;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::process::Child;
use tokio::task::JoinSet;

use crate::daemon::start;
use crate::support::{Ended, Program, finish, send_signal, until};

const PROFILE: &str = r#"
id = "{job}"
get = "/jobs/{job}"
check_id = "/id"
rules = [
    { when = { "/state" = "queued" }, is = "pending" },
    { when = { "/state" = "running" }, is = "running" },
    { when = { "/state" = "failed" }, is = "failed" },
]
created = "/created"
started = "/created"
finished = "/ended"
attempt = "/attempt"

[list]
get = "/jobs?state={status}&branch={branch}&since={since}"
items = ""
id = { job = "/id" }
active = ["running"]
since = "{time}"
values = { branch = "/branch" }
"#;

type Jobs = Arc<Mutex<BTreeMap<String, Value>>>;

/// An API with jobs, and a list of them.
struct Api {
    jobs: Jobs,
    base_url: String,
    _serving: JoinSet<()>,
}

impl Api {
    async fn start() -> Self {
        let jobs = Jobs::default();
        let job = async |State(jobs): State<Jobs>, Path(id): Path<String>| {
            let jobs = jobs.lock().unwrap();
            jobs.get(&id).map_or_else(String::new, Value::to_string)
        };
        let router = Router::new()
            .route("/jobs", get(list))
            .route("/jobs/{id}", get(job))
            .with_state(Arc::clone(&jobs));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}", listener.local_addr().unwrap());
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            jobs,
            base_url,
            _serving: serving,
        }
    }

    /// Sets how a job is: it goes on, or it failed just now.
    fn set(&self, id: &str, attempt: u64, goes_on: bool) {
        let now = Timestamp::now();
        let job = json!({
            "id": id, "branch": "main", "attempt": attempt, "created": now,
            "state": if goes_on { "running" } else { "failed" },
            "ended": (!goes_on).then_some(now),
        });
        self.jobs.lock().unwrap().insert(id.to_owned(), job);
    }

    /// A program with a discovery of these jobs.
    fn program(&self, more: &str) -> Program {
        let program = Program::new()
            .set("RUNWATCH_WATCH__INITIAL_INTERVAL", "50ms")
            .set("RUNWATCH_WATCH__MAX_INTERVAL", "100ms")
            .with_file("own.toml", PROFILE);
        let run = program.home().join("run");
        std::fs::create_dir_all(&run).unwrap();
        let program = program.set("XDG_RUNTIME_DIR", run.to_str().unwrap());
        self.configured(program, more)
    }

    fn configured(&self, program: Program, more: &str) -> Program {
        let base_url = &self.base_url;
        let path = program.home().join("events");
        program.configured(&format!(
            "[providers.own]\nprofile_file = \"own.toml\"\nbase_url = \"{base_url}\"\nrequests_per_minute = 60000\n\
             [sinks.file]\ntype = \"log\"\npath = {path:?}\n{more}"
        ))
    }
}

async fn list(State(jobs): State<Jobs>, RawQuery(query): RawQuery) -> String {
    let query = query.unwrap_or_default();
    let query: BTreeMap<_, _> = form_urlencoded::parse(query.as_bytes()).collect();
    let jobs = jobs.lock().unwrap();
    let fits = |job: &Value, name: &str| {
        let wanted = query.get(name);
        wanted.is_none_or(|wanted| job[name] == **wanted)
    };
    let is_listed = |job: &&Value| fits(job, "state") && fits(job, "branch");
    let listed: Vec<_> = jobs.values().filter(is_listed).collect();
    json!(listed).to_string()
}

const DISCOVERY: &str = "[[discover]]\nprovider = \"own\"\nmatch = { branch = \"main\" }\nlabels = { on = \"{branch}\" }\nevery = \"5s\"\n";

async fn stop(daemon: Child) -> Ended {
    send_signal(&daemon, Signal::TERM);
    finish(daemon).await
}

/// The watches of a run, all of them, as the daemon lists them.
async fn watches(program: &Program, id: &str) -> Vec<Value> {
    let list = program.run(&["list", "--all", "--json"]).await;
    let list: Value = serde_json::from_str(&list.stdout).unwrap_or_default();
    let watches = list["watches"].as_array().cloned().unwrap_or_default();
    watches
        .into_iter()
        .filter(|watch| watch["run_id"] == id)
        .collect()
}

/// The only discovery, when it is in this state.
async fn discovery(program: &Program, state: &str) -> Value {
    until("the discovery", async || {
        let list = program.run(&["discover", "--json"]).await;
        let list: Value = serde_json::from_str(&list.stdout).ok()?;
        let discovery = list["discoveries"].get(0)?.clone();
        (discovery["state"] == state).then_some(discovery)
    })
    .await
}

/// Waits for so many events about a run in the file of the sink.
async fn events(program: &Program, id: &str, count: usize) -> Vec<Value> {
    until("events", async || {
        let text = std::fs::read_to_string(program.home().join("events")).ok()?;
        let events = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        let events: Vec<Value> = events
            .filter(|event: &Value| event["data"]["run"]["id"] == id)
            .collect();
        (events.len() >= count).then_some(events)
    })
    .await
}

#[tokio::test]
async fn runs_of_a_list_are_watched_as_they_appear_and_a_reload_goes_on() {
    let api = Api::start().await;
    api.set("old", 1, false);
    api.set("going", 1, true);
    let program = api.program(DISCOVERY);
    let daemon = start(&program).await;
    let began = discovery(&program, "following").await;
    assert_eq!(began["title"], "own branch=main");
    assert_eq!((&began["found"], &began["watched"]), (&json!(2), &json!(1)));
    let watch = watches(&program, "going").await.pop().unwrap();
    assert_eq!(watch["origin"], "discovery");
    assert_eq!(watch["discovery"], "own branch=main");
    assert_eq!(watch["labels"]["on"], "main");
    assert_eq!(watches(&program, "old").await, [] as [Value; 0]);
    let shown = program.run(&["show", "own:going"]).await.stdout;
    assert!(shown.contains("by discovery of own branch=main"), "{shown}");
    let table = program.run(&["discover"]).await.stdout;
    assert!(
        table.contains("own branch=main") && table.contains("following"),
        "{table}"
    );

    api.set("new", 1, false);
    api.set("going", 1, false);
    events(&program, "new", 1).await;
    // A discovery with another name goes on, also for its runs.
    let program = api.configured(program, &format!("{DISCOVERY}name = \"job\"\n"));
    send_signal(&daemon, Signal::HUP);
    let renamed = until("the other name", async || {
        let discovery = discovery(&program, "following").await;
        (discovery["title"] == "job").then_some(discovery)
    })
    .await;
    assert_eq!(renamed["began_at"], began["began_at"]);
    api.set("going", 2, true);
    let again = until("the second attempt", async || {
        let watch = watches(&program, "going").await.pop()?;
        (watch["state"] == "active").then_some(watch)
    })
    .await;
    assert_eq!(
        (&again["name"], &again["discovery"]),
        (&json!("job"), &json!("job"))
    );
    // One that is taken out is forgotten.
    let program = api.configured(program, "");
    send_signal(&daemon, Signal::HUP);
    until("no discovery", async || {
        let list = program.run(&["discover", "--json"]).await.stdout;
        (list.trim() == r#"{"discoveries":[]}"#).then_some(())
    })
    .await;
    assert_eq!(events(&program, "going", 1).await.len(), 1);
    assert_eq!(events(&program, "new", 1).await.len(), 1);
    stop(daemon).await;
}

#[tokio::test]
async fn a_death_while_runs_are_discovered_leads_to_no_second_watch_and_loses_none() {
    for point in ["listed", "discovered"] {
        let api = Api::start().await;
        let program = api.program(DISCOVERY);
        let daemon = start(&program).await;
        discovery(&program, "following").await;
        stop(daemon).await;

        // It ends while no daemon is there.
        api.set("short", 1, false);
        api.set("long", 1, true);
        let program = program.set("RUNWATCH_CRASH_AT", point);
        let daemon = program.command(&["daemon"]).spawn().unwrap();
        let ended = finish(daemon).await;
        assert_eq!(ended.code, None, "{point}: it dies there: {ended:?}");
        let program = program.set("RUNWATCH_CRASH_AT", "");
        let daemon = start(&program).await;
        discovery(&program, "following").await;
        assert_eq!(events(&program, "short", 1).await.len(), 1, "{point}");
        assert_eq!(watches(&program, "long").await.len(), 1, "{point}");
        assert_eq!(watches(&program, "short").await.len(), 1, "{point}");
        api.set("long", 1, false);
        assert_eq!(events(&program, "long", 1).await.len(), 1);
        stop(daemon).await;
        assert_eq!(events(&program, "short", 1).await.len(), 1, "{point}");
    }
}

#[tokio::test]
async fn a_list_that_cannot_be_read_is_shown_with_its_reason_and_what_to_do() {
    let program = Program::new();
    let api = Api::start().await;
    let run = program.home().join("run");
    std::fs::create_dir_all(&run).unwrap();
    let program = program
        .set("XDG_RUNTIME_DIR", run.to_str().unwrap())
        .with_file("own.toml", &PROFILE.replace("/jobs?state", "/none?state"));
    let program = api.configured(program, DISCOVERY);
    let daemon = start(&program).await;
    let failing = discovery(&program, "failing").await;
    let message = failing["last_error"]["message"].as_str().unwrap();
    assert!(message.starts_with("404"), "{message}");
    assert_eq!(failing["last_round_at"], Value::Null);
    let ended = stop(daemon).await;
    let warnings = ended
        .stderr
        .matches("the list of runs cannot be read")
        .count();
    assert_eq!(warnings, 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("check match"), "{}", ended.stderr);
}
