//! The commands' side of the control interface.

use std::error::Error as _;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use reqwest::{Client as Http, Method, RequestBuilder, Response, StatusCode, redirect};
use serde::de::DeserializeOwned;

use super::types::{
    ActivityResponse, AddRequest, DecisionResponse, DeliveryList, DeliveryResponse, DiscoveryList,
    LeaseResponse, PollingList, ProblemDetails, WatchList, WatchResponse,
};
use crate::domain::{DeliveryId, RunRef, SinkName, TRACE_PARENT, TRACE_STATE, TraceContext};
use crate::http::USER_AGENT;
use crate::links::segment;
use crate::sse::{Frame, Parser};
use crate::store::Fate;
use crate::text::error_chain;

/// Limit of one request, waiting not included. The daemon is on this machine; it may be busy.
const LIMIT: Duration = Duration::from_secs(30);

/// Limit of a probe: less than the 5 s after which a prober should end it, so that there is a reason.
const PROBE_LIMIT: Duration = Duration::from_secs(4);

/// Most bytes of an answer that are read.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// Watches or deliveries per request of a list.
const PAGE: &str = "1000";

/// Why a request to the daemon failed, or was rejected.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no answer.
    #[error(
        "no daemon answers at {}; start one with `runwatch daemon`, or as a service with `systemctl start runwatch` \
         (`systemctl --user start runwatch` on a desktop)",
        .0.display()
    )]
    NotRunning(PathBuf),
    /// The socket belongs to somebody else.
    #[error("no permission to use {}; the daemon belongs to another user", .0.display())]
    Forbidden(PathBuf),
    /// The daemon refuses.
    #[error("{}", .0.detail)]
    Refused(ProblemDetails),
    /// It answers, but not as it should.
    #[error("the daemon at {} does not answer as it should: {what}", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What happened.
        what: String,
    },
}

impl ClientError {
    /// Whether the daemon does not know the requested item.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Refused(problem) if problem.status == StatusCode::NOT_FOUND.as_u16())
    }
}

/// A client of the daemon.
#[derive(Debug, Clone)]
pub struct Client {
    http: Http,
    socket: PathBuf,
}

impl Client {
    /// Returns a client of the daemon at this socket. It sends nothing yet.
    ///
    /// # Errors
    /// When the client cannot be set up.
    pub fn new(socket: &Path) -> Result<Self, ClientError> {
        let broken = |error: reqwest::Error| ClientError::Broken {
            path: socket.to_owned(),
            what: error.to_string(),
        };
        let http = crate::http::builder()
            .unix_socket(socket)
            .no_proxy()
            // There is no TLS on a Unix socket: certificates that cannot be read must not keep users from the daemon.
            .tls_certs_only([])
            .redirect(redirect::Policy::none())
            .user_agent(USER_AGENT)
            .build()
            .map_err(broken)?;
        Ok(Self {
            http,
            socket: socket.to_owned(),
        })
    }

    /// Hands a run over, as a part of a trace. Returns its watch, and whether it is new.
    ///
    /// # Errors
    /// As [`ClientError`] has them.
    pub async fn add(
        &self,
        request: &AddRequest,
        trace: Option<&TraceContext>,
    ) -> Result<(WatchResponse, bool), ClientError> {
        let body = serde_json::to_vec(request).expect("text keys");
        let trace = [
            (TRACE_PARENT, trace.map(TraceContext::parent)),
            (TRACE_STATE, trace.and_then(TraceContext::state)),
        ];
        let mut add = self.request(Method::POST, "/v1/watches", &[]);
        for (name, value) in trace {
            if let Some(value) = value {
                add = add.header(name, value);
            }
        }
        let response = self.send(add.body(body).timeout(LIMIT)).await?;
        let new = response.status() == StatusCode::CREATED;
        Ok((self.read(response).await?, new))
    }

    /// All watches that fit `query`, page after page.
    ///
    /// # Errors
    /// As [`ClientError`] has them.
    pub async fn watches(&self, query: &[(&str, &str)]) -> Result<WatchList, ClientError> {
        let mut all = WatchList {
            watches: Vec::new(),
            next_cursor: None,
            notices: Vec::new(),
        };
        loop {
            let cursor = all.next_cursor.take();
            let mut page: WatchList = self.page("/v1/watches", query, cursor.as_deref()).await?;
            all.watches.append(&mut page.watches);
            all.notices = page.notices;
            all.next_cursor = page.next_cursor;
            if all.next_cursor.is_none() {
                return Ok(all);
            }
        }
    }

    /// One watch, with all that is known of it; answered when it has its verdict or `wait` is over.
    ///
    /// # Errors
    /// As [`ClientError`] has them.
    pub async fn watch(
        &self,
        run_id: &RunRef,
        wait: Duration,
    ) -> Result<WatchResponse, ClientError> {
        let text = format!("{}ms", wait.as_millis());
        let request = self.request(
            Method::GET,
            &format!("/v1/watches/{}", segment(&run_id.to_string())),
            &[("wait", &text)],
        );
        self.read(self.send(request.timeout(LIMIT + wait)).await?)
            .await
    }

    /// Requests how polls of the API go. An older daemon refuses that as an unknown route.
    ///
    /// # Errors
    /// As [`ClientError`] has them.
    pub async fn polling(&self) -> Result<PollingList, ClientError> {
        let request = self.request(Method::GET, "/v1/polling", &[]);
        self.read(self.send(request.timeout(PROBE_LIMIT)).await?)
            .await
    }

    /// Requests how the discoveries go.
    ///
    /// # Errors
    /// As [`ClientError`] has them.
    pub async fn discoveries(&self) -> Result<DiscoveryList, ClientError> {
        let request = self.request(Method::GET, "/v1/discoveries", &[]);
        self.read(self.send(request.timeout(LIMIT)).await?).await
    }

    /// Requests which daemon leads.
    ///
    /// # Errors
    /// As [`ClientError`] has them.
    pub async fn lease(&self) -> Result<LeaseResponse, ClientError> {
        let request = self.request(Method::GET, "/v1/lease", &[]);
        self.read(self.send(request.timeout(LIMIT)).await?).await
    }

    /// Requests that another daemon leads.
    ///
    /// # Errors
    /// As [`ClientError`] has them.
    pub async fn release_lease(&self) -> Result<(), ClientError> {
        let request = self.request(Method::POST, "/v1/lease/release", &[]);
        self.send(request.timeout(LIMIT)).await.map(drop)
    }

    /// Requests whether the daemon makes progress.
    ///
    /// # Errors
    /// As [`ClientError`] has them.
    pub async fn health(&self) -> Result<serde_json::Value, ClientError> {
        self.read(
            self.send(
                self.request(Method::GET, "/healthz", &[])
                    .timeout(PROBE_LIMIT),
            )
            .await?,
        )
        .await
    }

    /// Requests the version of the daemon; `None` where it does not state one.
    ///
    /// # Errors
    /// As [`ClientError`] has them.
    pub async fn version(&self) -> Result<Option<String>, ClientError> {
        let request = self.request(Method::GET, "/v1/openapi.json", &[]);
        let response = self.send(request.timeout(PROBE_LIMIT)).await?;
        let document: serde_json::Value = self.read(response).await?;
        Ok(document["info"]["version"].as_str().map(ToOwned::to_owned))
    }

    /// Requests what is wrong in the daemon's view, such as a configuration that was not reloaded.
    ///
    /// # Errors
    /// As [`ClientError`] has them.
    pub async fn notices(&self) -> Result<Vec<String>, ClientError> {
        let request = self.request(Method::GET, "/v1/watches", &[("limit", "1")]);
        let response = self.send(request.timeout(PROBE_LIMIT)).await?;
        let list: WatchList = self.read(response).await?;
        Ok(list.notices)
    }

    /// Requests whether the daemon accepts new runs.
    ///
    /// # Errors
    /// As [`ClientError`] has them.
    pub async fn readiness(&self) -> Result<serde_json::Value, ClientError> {
        self.read(
            self.send(
                self.request(Method::GET, "/readyz", &[])
                    .timeout(PROBE_LIMIT),
            )
            .await?,
        )
        .await
    }

    /// Stops a watch. With `force`, messages about it that are not delivered yet are given up.
    ///
    /// # Errors
    /// As [`ClientError`] has them.
    pub async fn remove(&self, run_id: &RunRef, force: bool) -> Result<(), ClientError> {
        let query: &[_] = if force { &[("force", "true")] } else { &[] };
        let request = self.request(
            Method::DELETE,
            &format!("/v1/watches/{}", segment(&run_id.to_string())),
            query,
        );
        self.send(request.timeout(LIMIT)).await.map(drop)
    }

    /// All deliveries that fit `query`, page after page.
    ///
    /// # Errors
    /// As [`ClientError`] has them.
    pub async fn deliveries(
        &self,
        query: &[(&str, &str)],
    ) -> Result<Vec<DeliveryResponse>, ClientError> {
        let (mut all, mut cursor) = (Vec::new(), None);
        loop {
            let mut page: DeliveryList = self
                .page("/v1/deliveries", query, cursor.as_deref())
                .await?;
            all.append(&mut page.deliveries);
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok(all);
            }
        }
    }

    /// Retries a delivery at once, or gives it up. An unambiguous beginning of its ID is enough.
    ///
    /// # Errors
    /// As [`ClientError`] has them.
    pub async fn decide(&self, id: &DeliveryId, fate: Fate) -> Result<(), ClientError> {
        let request = self.request(
            Method::POST,
            &format!("/v1/deliveries/{id}/{}", fate.as_str()),
            &[],
        );
        self.send(request.timeout(LIMIT)).await.map(drop)
    }

    /// Retries every delivery to a sink that waits or was given up, or gives up those that wait.
    /// Returns how many.
    ///
    /// # Errors
    /// As [`ClientError`] has them.
    pub async fn decide_all(&self, sink: &SinkName, fate: Fate) -> Result<u64, ClientError> {
        let path = format!("/v1/deliveries/{}", fate.as_str());
        let request = self.request(Method::POST, &path, &[("sink", sink.as_str())]);
        let decided: DecisionResponse = self.read(self.send(request.timeout(LIMIT)).await?).await?;
        Ok(decided.deliveries)
    }

    /// The events from now on, or after the event `after`.
    ///
    /// # Errors
    /// As [`ClientError`] has them.
    pub async fn events(&self, after: Option<&str>) -> Result<Events, ClientError> {
        let mut request = self.request(Method::GET, "/v1/events", &[]);
        if let Some(after) = after {
            request = request.header("last-event-id", after);
        }
        let response = self.send(request).await?;
        Ok(Events::new(response, self.socket.clone()))
    }

    /// What the runs are doing whose event streams the daemon follows, from now on.
    ///
    /// # Errors
    /// As [`ClientError`] has them.
    pub async fn activity(&self) -> Result<Activities, ClientError> {
        let response = self
            .send(self.request(Method::GET, "/v1/activity", &[]))
            .await?;
        Ok(Activities(Events::new(response, self.socket.clone())))
    }

    fn request(&self, method: Method, path: &str, query: &[(&str, &str)]) -> RequestBuilder {
        let mut url = reqwest::Url::parse("http://localhost").expect("a URL");
        url.set_path(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        self.http.request(method, url)
    }

    async fn page<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
        cursor: Option<&str>,
    ) -> Result<T, ClientError> {
        let mut query = query.to_vec();
        query.push(("limit", PAGE));
        query.extend(cursor.map(|cursor| ("cursor", cursor)));
        self.read(
            self.send(self.request(Method::GET, path, &query).timeout(LIMIT))
                .await?,
        )
        .await
    }

    /// Sends a request; an answer that is no success is an error.
    async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = request
            .send()
            .await
            .map_err(|error| self.unreachable(error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        match self.read(response).await {
            Ok(problem) => Err(ClientError::Refused(problem)),
            Err(_no_problem) => Err(self.broken(status)),
        }
    }

    async fn read<T: DeserializeOwned>(&self, mut response: Response) -> Result<T, ClientError> {
        let mut body = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| self.broken(describe(error)))?
        {
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(self.broken("the answer is too large"));
            }
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body).map_err(|error| self.broken(error))
    }

    fn broken(&self, what: impl ToString) -> ClientError {
        ClientError::Broken {
            path: self.socket.clone(),
            what: what.to_string(),
        }
    }

    fn unreachable(&self, error: reqwest::Error) -> ClientError {
        let mut cause = error.source();
        while let Some(error) = cause {
            match error
                .downcast_ref::<std::io::Error>()
                .map(std::io::Error::kind)
            {
                Some(ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                    return ClientError::NotRunning(self.socket.clone());
                }
                Some(ErrorKind::PermissionDenied) => {
                    return ClientError::Forbidden(self.socket.clone());
                }
                _ => cause = error.source(),
            }
        }
        self.broken(describe(error))
    }
}

/// What went wrong with a request, in words.
fn describe(error: reqwest::Error) -> String {
    if error.is_timeout() {
        "no answer in time".to_owned()
    } else {
        error_chain(&error.without_url())
    }
}

/// Events as they come.
pub struct Events {
    response: Response,
    parser: Parser,
    /// What was received and not yet read.
    rest: Bytes,
    socket: PathBuf,
}

impl Events {
    fn new(response: Response, socket: PathBuf) -> Self {
        Self {
            response,
            parser: Parser::new(MAX_ANSWER_BYTES),
            rest: Bytes::new(),
            socket,
        }
    }

    /// The next event: its ID and its JSON; `None` when the daemon ends the stream. Cancel-safe.
    ///
    /// # Errors
    /// When the daemon is gone or sends what is no stream of events.
    pub async fn next(&mut self) -> Result<Option<(String, String)>, ClientError> {
        while let Some(frame) = self.frame().await? {
            if let Some(id) = self.parser.last_id() {
                return Ok(Some((id.to_owned(), frame.data)));
            }
        }
        Ok(None)
    }

    fn broken(&self, what: String) -> ClientError {
        ClientError::Broken {
            path: self.socket.clone(),
            what,
        }
    }

    /// The next event; `None` when the daemon ends the stream. Cancel-safe.
    async fn frame(&mut self) -> Result<Option<Frame>, ClientError> {
        loop {
            match self.parser.next(&mut self.rest) {
                Ok(Some(frame)) => return Ok(Some(frame)),
                Ok(None) => {}
                Err(error) => return Err(self.broken(error.to_string())),
            }
            match self.response.chunk().await {
                Ok(Some(chunk)) => self.rest = chunk,
                Ok(None) => return Ok(None),
                Err(error) => return Err(self.broken(describe(error))),
            }
        }
    }
}

/// What runs are doing, as it comes.
pub struct Activities(Events);

/// What comes next of it.
#[derive(Debug)]
pub enum StreamMessage {
    /// An event of a run.
    Activity(ActivityResponse),
    /// So many events went by because they came too fast.
    Missed(u64),
}

impl Activities {
    /// What comes next; `None` when the daemon ends the stream. Cancel-safe.
    ///
    /// # Errors
    /// When the daemon is gone or sends what is no stream of events.
    pub async fn next(&mut self) -> Result<Option<StreamMessage>, ClientError> {
        while let Some(frame) = self.0.frame().await? {
            let data = &frame.data;
            let message = match &*frame.event {
                "activity" => serde_json::from_str(data).ok().map(StreamMessage::Activity),
                "missed" => data.parse().ok().map(StreamMessage::Missed),
                _ => None,
            };
            if message.is_some() {
                return Ok(message);
            }
        }
        Ok(None)
    }
}
