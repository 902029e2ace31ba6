//! An API for the tests of the client, and a client of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::ApiClient;
use crate::config::{ApiSettings, Secret, Settings};
use crate::domain::RunRef;

pub(super) const LIMIT: Duration = Duration::from_secs(60);

/// An API that answers `answers` requests on each of its connections and then closes it at the next one. Counts
/// its connections and requests.
pub(super) struct Api {
    pub(super) base_url: String,
    pub(super) connections: Arc<AtomicUsize>,
    pub(super) requests: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

pub(super) const ANSWER: &str = r#"{"id":"run_1","status":"running"}"#;

pub(super) async fn api(answers: usize) -> Api {
    api_with(answers, ANSWER, ANSWER.len()).await
}

pub(super) const LARGE_BYTES: usize = 256 * 1024;

/// The body of an answer of a run that ended with an output of `bytes`.
pub(super) fn large(bytes: usize) -> String {
    let output = "m".repeat(bytes);
    format!(r#"{{"id":"run_1","status":"succeeded","output":"{output}"}}"#)
}

/// [`Api`] with another body, of which each answer announces `length` bytes. Closes the connection after one that
/// is shorter than that.
pub(super) async fn api_with(answers: usize, body: impl Into<String>, length: usize) -> Api {
    let body: Arc<str> = body.into().into();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("http://{}", listener.local_addr().unwrap());
    let (connections, requests) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (Arc::clone(&connections), Arc::clone(&requests));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut serving = JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            counts.0.fetch_add(1, Ordering::SeqCst);
            let (requests, body) = (Arc::clone(&counts.1), Arc::clone(&body));
            serving.spawn(async move {
                let mut head = Vec::new();
                for number in 0.. {
                    while !head.ends_with(b"\r\n\r\n") {
                        if !matches!(stream.read_buf(&mut head).await, Ok(1..)) {
                            return;
                        }
                    }
                    head.clear();
                    requests.fetch_add(1, Ordering::SeqCst);
                    if number == answers {
                        return;
                    }
                    let answer =
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
                    if stream.write_all(answer.as_bytes()).await.is_err() || length > body.len() {
                        return;
                    }
                }
            });
        }
    });
    Api {
        base_url,
        connections,
        requests,
        _tasks: tasks,
    }
}

pub(super) fn client(api: &Api, key: &str) -> ApiClient {
    let settings = ApiSettings {
        base_url: api.base_url.clone(),
        key: Some(Secret::value(key)),
        request_timeout: LIMIT,
        ..Settings::default().api
    };
    ApiClient::new(&settings).unwrap()
}

pub(super) fn run() -> RunRef {
    RunRef::new("run_1").unwrap()
}
