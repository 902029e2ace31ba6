//! A simulated world for tests, benchmarks and the demo: the documented API with scripted runs and
//! faults, and a webhook receiver. Both are real HTTP servers on loopback.

mod fault;
mod receiver;
mod script;
mod server;
mod stream;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use hyper::header::AUTHORIZATION;
use hyper::{HeaderMap, Method, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::fault::Fault;
pub use self::receiver::{Received, Receiver};
pub use self::script::Script;
use self::server::{Request, ServedAnswer, Server};
use self::stream::{Feed, Traffic};
pub use self::stream::{StreamFault, StreamScript};
use crate::domain::RunRef;

/// A simulated API on loopback. Its runs move with time from when they are added.
pub struct Simulator {
    /// The same API at one or more addresses.
    servers: Vec<Server>,
    world: Arc<Mutex<ApiState>>,
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
    /// The status of its answer; `None` where none came.
    pub status: Option<u16>,
    /// Which of the addresses of the API it was sent to, from 0.
    pub address: usize,
}

struct ApiState {
    key: String,
    started: (Instant, Timestamp),
    runs: BTreeMap<RunRef, SimulatedRun>,
    requests: Vec<Recorded>,
    stream_requests: Vec<Recorded>,
    outage: Option<Fault>,
    stream_outage: Option<Fault>,
    traffic: Arc<Traffic>,
}

struct SimulatedRun {
    script: Script,
    added: Instant,
    polls: u32,
    streams: u32,
    gone: CancellationToken,
    /// Ends the run's streams when the run is replaced.
    _end_streams: DropGuard,
}

impl SimulatedRun {
    fn new(script: Script) -> Self {
        let gone = CancellationToken::new();
        let end_streams = gone.clone().drop_guard();
        Self {
            script,
            added: Instant::now(),
            polls: 0,
            streams: 0,
            gone,
            _end_streams: end_streams,
        }
    }
}

impl Simulator {
    /// Starts on a free port of loopback.
    ///
    /// # Errors
    /// When no port is to be had.
    pub async fn start() -> io::Result<Self> {
        Self::start_on(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// Starts on so many free ports of loopback, 1 or more, so that the requests of several callers can be distinguished.
    ///
    /// # Errors
    /// When no port is to be had.
    pub async fn start_on_ports(ports: usize) -> io::Result<Self> {
        let mut simulator = Self::start().await?;
        for index in 1..ports {
            let server = simulator
                .serve(SocketAddr::from(([127, 0, 0, 1], 0)), index)
                .await?;
            simulator.servers.push(server);
        }
        Ok(simulator)
    }

    async fn serve(&self, address: SocketAddr, index: usize) -> io::Result<Server> {
        let answering = Arc::clone(&self.world);
        Server::start(address, move |request| {
            answering
                .lock()
                .expect("no holder panics")
                .answer(&request, index)
        })
        .await
    }

    /// Starts on this address.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start_on(address: SocketAddr) -> io::Result<Self> {
        let world = Arc::new(Mutex::new(ApiState {
            key: "simulated-key".to_owned(),
            started: (Instant::now(), Timestamp::now()),
            runs: BTreeMap::new(),
            requests: Vec::new(),
            stream_requests: Vec::new(),
            outage: None,
            stream_outage: None,
            traffic: Arc::default(),
        }));
        let mut simulator = Self {
            servers: Vec::new(),
            world,
        };
        let server = simulator.serve(address, 0).await?;
        simulator.servers.push(server);
        Ok(simulator)
    }

    /// The base URL, without a trailing slash.
    pub fn base_url(&self) -> String {
        self.base_url_of(0)
    }

    /// The base URL at one of its addresses, from 0.
    pub fn base_url_of(&self, address: usize) -> String {
        format!("http://{}", self.servers[address].address())
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
    pub fn add_run(&self, id: &RunRef, script: Script) {
        self.world()
            .runs
            .insert(id.clone(), SimulatedRun::new(script));
    }

    /// Gives every request this fault, until another is set.
    pub fn set_outage(&self, fault: Option<Fault>) {
        self.world().outage = fault;
    }

    /// Gives every request for an event stream this fault, until another is set.
    pub fn set_stream_outage(&self, fault: Option<Fault>) {
        self.world().stream_outage = fault;
    }

    /// Every request so far, in order, but for those for event streams.
    pub fn requests(&self) -> Vec<Recorded> {
        self.world().requests.clone()
    }

    /// Every request for an event stream so far, in order.
    pub fn stream_requests(&self) -> Vec<Recorded> {
        self.world().stream_requests.clone()
    }

    /// How many event streams are open.
    pub fn open_streams(&self) -> usize {
        self.world().traffic.open()
    }

    /// How many bytes of event streams were handed to the connections.
    pub fn streamed_bytes(&self) -> u64 {
        self.world().traffic.bytes()
    }

    /// The status that the API would give a run now; `None` for one that is not there.
    pub fn truth(&self, id: &RunRef) -> Option<String> {
        let world = self.world();
        let run = world.runs.get(id)?;
        run.script
            .status_after(run.added.elapsed())
            .map(ToOwned::to_owned)
    }

    /// When a run ends; `None` for one that is not there or never ends.
    pub fn ends_at(&self, id: &RunRef) -> Option<Instant> {
        let world = self.world();
        let run = world.runs.get(id)?;
        Some(run.added + run.script.span().1?)
    }

    /// Ends the server and its connections.
    pub async fn shutdown(self) {
        for server in self.servers {
            server.shutdown().await;
        }
    }

    fn world(&self) -> std::sync::MutexGuard<'_, ApiState> {
        self.world.lock().expect("no holder panics")
    }
}

impl ApiState {
    fn answer(&mut self, request: &Request, address: usize) -> ServedAnswer {
        let answer = self.reply(request);
        let mut headers = request.headers.clone();
        if let Some(key) = headers.get_mut(AUTHORIZATION) {
            key.set_sensitive(true);
        }
        let path = request.path.clone();
        let recorded = Recorded {
            at: Instant::now(),
            method: request.method.clone(),
            path,
            headers,
            status: match &answer {
                ServedAnswer::Response(response) => Some(response.status().as_u16()),
                ServedAnswer::Nothing | ServedAnswer::Silence => None,
            },
            address,
        };
        if streamed_run(&request.path).is_some() {
            &mut self.stream_requests
        } else {
            &mut self.requests
        }
        .push(recorded);
        answer
    }

    fn reply(&mut self, request: &Request) -> ServedAnswer {
        let streamed = streamed_run(&request.path);
        let authorized = request
            .headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            == Some(&format!("Bearer {}", self.key));
        if let Some(fault) = &self.outage {
            return fault.answer(&json!({}));
        }
        if !authorized {
            return problem(StatusCode::UNAUTHORIZED, "Invalid API key");
        }
        if let (&Method::GET, Some(id)) = (&request.method, streamed) {
            return self.stream(id, &request.headers);
        }
        match (&request.method, request.path.strip_prefix("/v1/runs")) {
            (&Method::POST, Some("" | "/")) => self.create(&request.body),
            (&Method::GET, Some(rest)) if rest.len() > 1 => self.get(rest.trim_start_matches('/')),
            _ => problem(StatusCode::NOT_FOUND, "No such route"),
        }
    }

    /// Create Run, as the current documentation has it: 202, with the ID under `run_id`.
    fn create(&mut self, body: &[u8]) -> ServedAnswer {
        let Ok(request) = serde_json::from_slice::<Value>(body) else {
            return problem(StatusCode::BAD_REQUEST, "the body is not JSON");
        };
        if !request["deployment_id"].is_string() {
            return problem(StatusCode::BAD_REQUEST, "deployment_id is required");
        }
        let id = format!("run_sim{}", self.runs.len() + 1);
        let script = Script::new_created(request["input"].clone());
        let key = RunRef::new(&id).expect("letters and digits");
        self.runs.insert(key, SimulatedRun::new(script));
        let body = json!({"run_id": id, "version_id": "ver_sim1", "version_number": 1, "status": "running"});
        server::json(StatusCode::ACCEPTED, &body).into()
    }

    /// Get Run.
    fn get(&mut self, id: &str) -> ServedAnswer {
        let started = self.started;
        let run = RunRef::new(id)
            .ok()
            .and_then(|id| self.runs.get_mut(&id).map(|run| (id, run)));
        let Some((id, run)) = run else {
            return problem(StatusCode::NOT_FOUND, "Run not found");
        };
        run.polls += 1;
        if run.polls == 1 && run.script.begins_with_poll() {
            run.added = Instant::now();
        }
        let wall = |at: Instant| wall(started, at);
        let body = run.script.describe(&id, run.added, run.polls, wall);
        match (
            run.script.fault_at(run.polls),
            run.script.verbatim_body(),
            body,
        ) {
            (Some(fault), _, body) => fault.answer(&body.unwrap_or_else(|| json!({"id": id}))),
            (None, Some(text), _) => server::text("application/json", text.to_owned()).into(),
            (None, None, Some(body)) => server::json(StatusCode::OK, &body).into(),
            (None, None, None) => problem(StatusCode::NOT_FOUND, "Run not found"),
        }
    }

    /// Stream Events. A run that does not exist is reported by an `error` event, as in the reference.
    fn stream(&mut self, id: &str, headers: &HeaderMap) -> ServedAnswer {
        if let Some(fault) = &self.stream_outage {
            return fault.answer(&json!({}));
        }
        let found = RunRef::new(id)
            .ok()
            .and_then(|id| self.runs.get_mut(&id).map(|run| (id, run)));
        let Some((id, run)) = found else {
            return stream::not_found().into();
        };
        if run.script.status_after(run.added.elapsed()).is_none() {
            return stream::not_found().into();
        }
        run.streams += 1;
        let last_id = headers
            .get("last-event-id")
            .and_then(|value| value.to_str().ok()?.parse().ok());
        let feed = Feed::new(
            id,
            &run.script,
            (run.added, wall(self.started, run.added)),
            run.streams,
            last_id,
            run.gone.clone(),
            Arc::clone(&self.traffic),
        );
        feed.answer()
    }
}

/// The run whose event stream is at this path.
fn streamed_run(path: &str) -> Option<&str> {
    path.strip_prefix("/v1/runs/")?.strip_suffix("/events")
}

/// What the wall clock shows at `at`.
fn wall(started: (Instant, Timestamp), at: Instant) -> Timestamp {
    started
        .1
        .checked_add(at.duration_since(started.0))
        .unwrap_or(started.1)
}

/// An error as the current documentation shows it.
fn problem(status: StatusCode, message: &str) -> ServedAnswer {
    server::json(status, &json!({"error": {"message": message}})).into()
}
