//! Daemons that share a PostgreSQL of two servers, each with ways of its own to them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use runwatch::notify::signature;
use runwatch::simulator::{Receiver, Simulator};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::Child;

use crate::postgres::USER;
use crate::proxy::{Mode, Proxy};
use crate::support::{Program, find_within, http_client};

/// How many daemons there are.
pub(crate) const DAEMONS: usize = 3;

/// The shortest lease.
pub(crate) const LEASE: Duration = Duration::from_secs(3);

/// What a busy machine may add, so that no verdict of this test is about its speed.
pub(crate) const BUSY: Duration = Duration::from_secs(25);

/// Most requests in any 60 s, of all daemons together.
pub(crate) const BUDGET: u32 = 3_000;

/// Most polls that a daemon has under way; those that were decided when it froze cannot be called back.
pub(crate) const MAX_IN_FLIGHT: usize = 8;

/// The secret of the receiver.
pub(crate) const SECRET: &str = "whsec_dG9ydHVyZSB0b3J0dXJlIHRvcnR1cmU=";

/// One machine with a daemon.
pub(crate) struct Node {
    pub(crate) program: Program,
    /// The ways to both servers of the database.
    pub(crate) links: [Proxy; 2],
    pub(crate) http: reqwest::Client,
    pub(crate) child: Option<Child>,
}

impl Node {
    /// Its daemon does not run yet. `servers` are the addresses of both servers of the database.
    pub(crate) async fn new(
        index: usize,
        simulator: &Simulator,
        receiver: &Receiver,
        servers: [SocketAddr; 2],
    ) -> Self {
        let [first, second] = servers;
        let links = [Proxy::start(first).await, Proxy::start(second).await];
        let waits = ["\"200ms\""; 60].join(", ");
        let config = format!(
            "[store]\nurl = \"postgres://{USER}@{},{}/{USER}?sslmode=disable\"\nlease = \"{}s\"\n\
             [watch]\nmax_in_flight = {MAX_IN_FLIGHT}\n\
             [sinks.hook]\ntype = \"webhook\"\nurl = \"{}\"\nsecret = \"{SECRET}\"\n\
             events = [\"run.succeeded\", \"run.failed\", \"run.canceled\", \"watch.*\"]\nretry_schedule = [{waits}]\n",
            links[0].address,
            links[1].address,
            LEASE.as_secs(),
            receiver.url(),
        );
        let program = Program::with(simulator)
            .set("RUNWATCH_API__BASE_URL", &simulator.base_url_of(index))
            .set("RUNWATCH_API__REQUESTS_PER_MINUTE", &BUDGET.to_string())
            .set("RUNWATCH_WATCH__INITIAL_INTERVAL", "200ms")
            .set("RUNWATCH_WATCH__MAX_INTERVAL", "1s")
            .configured(&config);
        let run = program.home().join("run");
        std::fs::create_dir(&run).unwrap();
        let program = program
            .set("RUNTIME_DIRECTORY", run.to_str().unwrap())
            .set("STATE_DIRECTORY", program_state(&run));
        let http = http_client()
            .unix_socket(run.join("runwatch.sock"))
            .timeout(Duration::from_secs(20))
            .build()
            .unwrap();
        Self {
            program,
            links,
            http,
            child: None,
        }
    }

    /// Starts its daemon.
    pub(crate) fn start(&mut self) {
        let log = self.program.home().join("log");
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        let child = self
            .program
            .command(&["daemon"])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.child = Some(child.unwrap());
    }

    /// What happens to its connections to the database.
    pub(crate) fn set_links(&self, mode: Mode) {
        self.links.iter().for_each(|link| link.set(mode));
    }

    /// Sends a signal to its daemon.
    pub(crate) fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().and_then(Child::id).unwrap();
        let id = Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
        kill_process(id, signal).unwrap();
    }

    /// Ends the daemon, and waits for that end.
    pub(crate) async fn end(&mut self, signal: Signal) {
        self.signal(signal);
        if signal == Signal::KILL {
            // A frozen process ends as well.
            self.signal(Signal::CONT);
        }
        let ended = tokio::time::timeout(BUSY, self.child.as_mut().unwrap().wait()).await;
        let status = ended.expect("the daemon ends").unwrap();
        assert!(
            signal == Signal::KILL || status.success(),
            "{status}\n{}",
            self.log()
        );
        self.child = None;
    }

    /// The answer to a request; `None` where there is none.
    pub(crate) async fn get(&self, path: &str) -> Option<Value> {
        let answer = self
            .http
            .get(format!("http://localhost{path}"))
            .send()
            .await;
        read_json(answer.ok().filter(|answer| answer.status().is_success())?).await
    }

    /// The number of the term in which it leads; `None` where it does not.
    async fn term(&self) -> Option<i64> {
        let lease = tokio::time::timeout(Duration::from_secs(2), self.get("/v1/lease"));
        let lease = lease.await.ok().flatten()?;
        (lease["leads"] == true).then(|| lease["leader"]["term"].as_i64())?
    }

    /// The end of its log.
    pub(crate) fn log(&self) -> String {
        let log = std::fs::read_to_string(self.program.home().join("log")).unwrap_or_default();
        log[log.ceil_char_boundary(log.len().saturating_sub(6000))..].to_owned()
    }

    /// How often it panicked or ended by itself.
    pub(crate) fn check_alive(&mut self) {
        if let Some(child) = &mut self.child {
            let ended = child.try_wait().unwrap();
            assert!(
                ended.is_none(),
                "the daemon ended by itself: {ended:?}\n{}",
                self.log()
            );
        }
    }
}

/// The API, the receiver and all daemons, which are started. `servers` has the addresses of both servers of the database
/// for each daemon.
pub(crate) async fn start(
    servers: impl Fn(usize) -> [SocketAddr; 2],
) -> (Arc<Simulator>, Receiver, Vec<Node>) {
    let simulator = Arc::new(Simulator::start_on_ports(DAEMONS).await.unwrap());
    let verify = |headers: &reqwest::header::HeaderMap, body: &[u8]| {
        signature::verify(SECRET, headers, body, jiff::Timestamp::now()).is_ok()
    };
    let receiver = Receiver::start_verifying(verify).await.unwrap();
    let mut nodes = Vec::new();
    for index in 0..DAEMONS {
        let mut node = Node::new(index, &simulator, &receiver, servers(index)).await;
        node.start();
        nodes.push(node);
    }
    (simulator, receiver, nodes)
}

/// The daemon that leads in a term after this one, and the number of its term, once there is one; `but` does not count.
pub(crate) async fn leader(
    nodes: &mut [Node],
    but: Option<usize>,
    after: i64,
    limit: Duration,
) -> (usize, i64) {
    let found = find_within(limit, async || {
        for (index, node) in nodes.iter_mut().enumerate() {
            if Some(index) == but || node.child.is_none() {
                continue;
            }
            node.check_alive();
            if let Some(term) = node.term().await.filter(|term| *term > after) {
                return Some((index, term));
            }
        }
        None
    });
    let found = found.await;
    found.unwrap_or_else(|| {
        let logs: Vec<_> = nodes.iter().map(Node::log).collect();
        panic!("no daemon leads\n{}", logs.join("\n---\n"))
    })
}

/// The body of an answer; `None` where it is cut short.
pub(crate) async fn read_body(mut answer: reqwest::Response) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.ok()? {
        body.extend_from_slice(&chunk);
    }
    Some(body)
}

/// The JSON of an answer; `None` where it is cut short.
pub(crate) async fn read_json(answer: reqwest::Response) -> Option<Value> {
    serde_json::from_slice(&read_body(answer).await?).ok()
}

fn program_state(run: &std::path::Path) -> &str {
    // The same folder does: it belongs to this daemon alone.
    run.to_str().unwrap()
}
