//! A simulated world for tests, benchmarks and the demo: the documented API with scripted runs and
//! faults, and a webhook receiver. Both are real HTTP servers on loopback.

mod fault;
mod receiver;
mod script;
mod server;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use hyper::header::AUTHORIZATION;
use hyper::{HeaderMap, Method, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

pub use self::fault::Fault;
pub use self::receiver::{Received, Receiver};
pub use self::script::Script;
use self::server::{Answer, Request, Server};
use crate::run::RunId;

/// A simulated API on loopback. Its runs move with time from when they are added.
pub struct Simulator {
    server: Server,
    world: Arc<Mutex<World>>,
}

/// One request that the simulated API got.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// When.
    pub at: Instant,
    /// The method.
    pub method: Method,
    /// The path.
    pub path: String,
    /// The headers; the key is marked as sensitive.
    pub headers: HeaderMap,
}

struct World {
    key: String,
    started: (Instant, Timestamp),
    runs: BTreeMap<RunId, Run>,
    requests: Vec<Recorded>,
    outage: Option<Fault>,
}

struct Run {
    script: Script,
    added: Instant,
    polls: u32,
}

impl Simulator {
    /// Starts on a free port of loopback.
    ///
    /// # Errors
    /// When no port is to be had.
    pub async fn start() -> io::Result<Self> {
        Self::start_on(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// Starts on this address.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start_on(address: SocketAddr) -> io::Result<Self> {
        let world = Arc::new(Mutex::new(World {
            key: "simulated-key".to_owned(),
            started: (Instant::now(), Timestamp::now()),
            runs: BTreeMap::new(),
            requests: Vec::new(),
            outage: None,
        }));
        let answering = Arc::clone(&world);
        let server =
            Server::start(address, move |request| answering.lock().expect("no holder panics").answer(&request)).await?;
        Ok(Self { server, world })
    }

    /// The base URL, without a trailing slash.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// The key that is accepted.
    pub fn api_key(&self) -> String {
        self.world().key.clone()
    }

    /// Accepts another key from here on, and only that.
    pub fn set_api_key(&self, key: &str) {
        key.clone_into(&mut self.world().key);
    }

    /// Adds a run, or starts it anew.
    pub fn add_run(&self, id: &RunId, script: Script) {
        let run = Run { script, added: Instant::now(), polls: 0 };
        self.world().runs.insert(id.clone(), run);
    }

    /// Gives every request this fault, until told otherwise.
    pub fn set_outage(&self, fault: Option<Fault>) {
        self.world().outage = fault;
    }

    /// Every request so far, in order.
    pub fn requests(&self) -> Vec<Recorded> {
        self.world().requests.clone()
    }

    /// The status that the API would give a run now; `None` for one that is not there.
    pub fn truth(&self, id: &RunId) -> Option<String> {
        let world = self.world();
        let run = world.runs.get(id)?;
        run.script.status_after(run.added.elapsed()).map(ToOwned::to_owned)
    }

    /// Ends the server and its connections.
    pub async fn shutdown(self) {
        self.server.shutdown().await;
    }

    fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.world.lock().expect("no holder panics")
    }
}

impl World {
    fn answer(&mut self, request: &Request) -> Answer {
        let mut headers = request.headers.clone();
        if let Some(key) = headers.get_mut(AUTHORIZATION) {
            key.set_sensitive(true);
        }
        let path = request.path.clone();
        if path.ends_with("/events") {
            return problem(StatusCode::NOT_FOUND, "No such route");
        }
        self.requests.push(Recorded { at: Instant::now(), method: request.method.clone(), path, headers });
        let authorized = request.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok())
            == Some(&format!("Bearer {}", self.key));
        if let Some(fault) = &self.outage {
            return fault.answer(&json!({}));
        }
        if !authorized {
            return problem(StatusCode::UNAUTHORIZED, "Invalid API key");
        }
        match (&request.method, request.path.strip_prefix("/v1/runs")) {
            (&Method::POST, Some("" | "/")) => self.create(&request.body),
            (&Method::GET, Some(rest)) if rest.len() > 1 => self.get(rest.trim_start_matches('/')),
            _ => problem(StatusCode::NOT_FOUND, "No such route"),
        }
    }

    /// Create Run, as the current documentation has it: 202, with the ID under `run_id`.
    fn create(&mut self, body: &[u8]) -> Answer {
        let Ok(asked) = serde_json::from_slice::<Value>(body) else {
            return problem(StatusCode::BAD_REQUEST, "the body is not JSON");
        };
        if !asked["deployment_id"].is_string() {
            return problem(StatusCode::BAD_REQUEST, "deployment_id is required");
        }
        let id = format!("run_sim{}", self.runs.len() + 1);
        let script = Script::new_created(asked["input"].clone());
        let key = RunId::new(&id).expect("letters and digits");
        self.runs.insert(key, Run { script, added: Instant::now(), polls: 0 });
        let body = json!({"run_id": id, "version_id": "ver_sim1", "version_number": 1, "status": "running"});
        server::json(StatusCode::ACCEPTED, &body).into()
    }

    /// Get Run.
    fn get(&mut self, id: &str) -> Answer {
        let started = self.started;
        let run = RunId::new(id).ok().and_then(|id| self.runs.get_mut(&id).map(|run| (id, run)));
        let Some((id, run)) = run else { return problem(StatusCode::NOT_FOUND, "Run not found") };
        run.polls += 1;
        let wall = |at: Instant| started.1.checked_add(at.duration_since(started.0)).unwrap_or(started.1);
        let body = run.script.describe(&id, run.added, run.polls, wall);
        match (run.script.fault_at(run.polls), run.script.verbatim_body(), body) {
            (Some(fault), _, body) => fault.answer(&body.unwrap_or_else(|| json!({"id": id}))),
            (None, Some(text), _) => server::text("application/json", text.to_owned()).into(),
            (None, None, Some(body)) => server::json(StatusCode::OK, &body).into(),
            (None, None, None) => problem(StatusCode::NOT_FOUND, "Run not found"),
        }
    }
}

/// An error as the current documentation shows it.
fn problem(status: StatusCode, message: &str) -> Answer {
    server::json(status, &json!({"error": {"message": message}})).into()
}
