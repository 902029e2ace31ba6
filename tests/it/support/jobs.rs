//! A stand-in for an API with jobs and a list of them, and what a daemon reports about them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::routing::get;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::{Program, until};

pub(crate) const PROFILE: &str = r#"
id = "{job}"
get = "/jobs/{job}"
check_id = "/id"
rules = [
    { when = { "/state" = "queued" }, is = "pending" },
    { when = { "/state" = "running" }, is = "running" },
    { when = { "/state" = "failed" }, is = "failed" },
    { when = { "/state" = "succeeded" }, is = "succeeded" },
]
created = "/created"
started = "/created"
finished = "/ended"
attempt = "/attempt"
group = "/workflow"

[list]
get = "/jobs?state={status}&branch={branch}&since={since}"
items = ""
id = { job = "/id" }
active = ["running"]
since = "{time}"
values = { branch = "/branch" }
"#;

pub(crate) type Jobs = Arc<Mutex<BTreeMap<String, Value>>>;

/// An API with jobs, and a list of them.
pub(crate) struct Api {
    pub(crate) jobs: Jobs,
    base_url: String,
    _serving: JoinSet<()>,
}

impl Api {
    pub(crate) async fn start() -> Self {
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
    pub(crate) fn set(&self, id: &str, attempt: u64, goes_on: bool) {
        let now = Timestamp::now();
        let job = json!({
            "id": id, "branch": "main", "attempt": attempt, "created": now,
            "state": if goes_on { "running" } else { "failed" },
            "ended": (!goes_on).then_some(now),
        });
        self.put(id, job);
    }

    /// Sets what is answered about a job.
    pub(crate) fn put(&self, id: &str, job: Value) {
        self.jobs.lock().unwrap().insert(id.to_owned(), job);
    }

    /// A program with a discovery of these jobs.
    pub(crate) fn program(&self, more: &str) -> Program {
        let program = Program::new()
            .set("RUNWATCH_WATCH__INITIAL_INTERVAL", "50ms")
            .set("RUNWATCH_WATCH__MAX_INTERVAL", "100ms")
            .with_file("own.toml", PROFILE);
        let run = program.home().join("run");
        std::fs::create_dir_all(&run).unwrap();
        let program = program.set("XDG_RUNTIME_DIR", run.to_str().unwrap());
        self.configured(program, more)
    }

    pub(crate) fn configured(&self, program: Program, more: &str) -> Program {
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

/// Waits for so many events about a run in the file of the sink.
pub(crate) async fn events(program: &Program, id: &str, count: usize) -> Vec<Value> {
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
