//! A small HTTP/1.1 server on loopback that can also misbehave.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt as _};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Largest body of a request that is read, in bytes.
const MAX_REQUEST_BYTES: usize = 1024 * 1024;

pub(super) type ResponseBody = UnsyncBoxBody<Bytes, io::Error>;

/// A request, read whole.
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// What comes back.
pub(super) enum ServedAnswer {
    /// A response.
    Response(Box<Response<ResponseBody>>),
    /// The connection ends.
    Nothing,
    /// Nothing comes, ever.
    Silence,
}

impl From<Response<ResponseBody>> for ServedAnswer {
    fn from(response: Response<ResponseBody>) -> Self {
        Self::Response(Box::new(response))
    }
}

/// Why a connection ends without an answer.
#[derive(Debug, thiserror::Error)]
#[error("ended on purpose")]
struct Ended;

/// A response whose body comes in these pieces. An error among them ends the connection.
pub(super) fn streaming(
    pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> Response<ResponseBody> {
    Response::new(StreamBody::new(pieces.map_ok(Frame::data)).boxed_unsync())
}

/// A response with this text.
pub(super) fn text(content_type: &'static str, text: impl Into<Bytes>) -> Response<ResponseBody> {
    let body = Full::new(text.into()).map_err(|never: Infallible| match never {});
    let mut response = Response::new(body.boxed_unsync());
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A response with this JSON.
pub(super) fn json(status: StatusCode, body: &Value) -> Response<ResponseBody> {
    let mut response = text("application/json", body.to_string());
    *response.status_mut() = status;
    response
}

/// A server that answers each request with what a function makes of it.
pub(super) struct Server {
    address: SocketAddr,
    stop: CancellationToken,
    accepting: JoinSet<()>,
}

impl Server {
    pub(super) async fn start(
        address: SocketAddr,
        answer: impl Fn(Request) -> ServedAnswer + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, Arc::new(answer), stop.clone()));
        Ok(Self {
            address,
            stop,
            accepting,
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) async fn shutdown(mut self) {
        self.stop.cancel();
        while self.accepting.join_next().await.is_some() {}
    }
}

async fn accept<F>(listener: TcpListener, answer: Arc<F>, stop: CancellationToken)
where
    F: Fn(Request) -> ServedAnswer + Send + Sync + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        // Accepting, joining and waiting for a token are cancel-safe.
        tokio::select! {
            () = stop.cancelled() => return,
            Some(_ended) = connections.join_next() => {}
            accepted = listener.accept() => {
                // A connection that was gone before it was accepted is the client's affair.
                let Ok((stream, _client)) = accepted else { continue };
                // As web servers do: an event must not wait until the one before it is acknowledged.
                drop(stream.set_nodelay(true));
                let answer = Arc::clone(&answer);
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        let answer = Arc::clone(&answer);
                        async move { respond(request, answer.as_ref()).await }
                    });
                    let connection = hyper::server::conn::http1::Builder::new();
                    // It ends with an error when a fault requires it, or when the client has left.
                    let served = connection.serve_connection(TokioIo::new(stream), service).await;
                    drop(served);
                });
            }
        }
    }
}

async fn respond(
    request: hyper::Request<Incoming>,
    answer: &(impl Fn(Request) -> ServedAnswer + Sync),
) -> Result<Response<ResponseBody>, Ended> {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, MAX_REQUEST_BYTES)
        .collect()
        .await
        .map_err(|_unreadable| Ended)?
        .to_bytes();
    let path = parts.uri.path().to_owned();
    match answer(Request {
        method: parts.method,
        path,
        headers: parts.headers,
        body,
    }) {
        ServedAnswer::Response(response) => Ok(*response),
        ServedAnswer::Nothing => Err(Ended),
        ServedAnswer::Silence => std::future::pending().await,
    }
}
