//! What all HTTP clients share: name lookups that cannot hold up anything else, and how a dead connection shows.

use std::error::Error;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::blocking::Lane;

/// How long a name lookup may take. The system's own resolver gives up after 5 s to 40 s (resolv.conf(5), `timeout`
/// and `attempts`); what comes later than this is of no use to a request.
const LOOKUP_LIMIT: Duration = Duration::from_secs(10);

/// Name lookups by the system's resolver, on threads of their own.
pub(crate) struct Names(Lane);

impl Names {
    /// A resolver that makes at most `at_once` lookups at once.
    pub(crate) fn new(at_once: usize) -> Arc<Self> {
        Arc::new(Self(Lane::new("names", at_once)))
    }
}

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let lane = self.0.clone();
        Box::pin(async move {
            let name = name.as_str().to_owned();
            // The port is filled in by the client.
            let lookup = move || (name.as_str(), 0).to_socket_addrs().map(Iterator::collect::<Vec<SocketAddr>>);
            let found = lane.run(LOOKUP_LIMIT, lookup).await.map_err(|stuck| format!("the name lookup: {stuck}"))?;
            Ok(Box::new(found?.into_iter()) as Addrs)
        })
    }
}

/// Whether a request failed because its connection ended before any answer came, as one that was kept alive does when
/// the server closed it meanwhile (RFC 9112, 9.3.1: a client may send the request again if that does no harm).
pub(crate) fn connection_ended(error: &reqwest::Error) -> bool {
    if error.is_timeout() || error.is_connect() || error.is_body() || error.is_decode() {
        return false;
    }
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<hyper::Error>()
            && (error.is_incomplete_message() || error.is_canceled() || error.is_closed())
        {
            return true;
        }
        if let Some(error) = error.downcast_ref::<io::Error>() {
            use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
            return matches!(
                error.kind(),
                BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof
            );
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn names_are_looked_up_and_unknown_ones_are_errors() {
        let names = Names::new(1);
        let found: Vec<_> = names.resolve("localhost".parse().unwrap()).await.unwrap().collect();
        assert!(!found.is_empty() && found.iter().all(|address| address.ip().is_loopback()), "{found:?}");
        assert!(names.resolve("no.such.name.invalid".parse().unwrap()).await.is_err());
    }

    #[tokio::test]
    async fn a_connection_that_ends_before_the_answer_is_known() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let close = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_buf(&mut Vec::new()).await.unwrap();
        };
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let (answer, ()) = tokio::join!(client.get(format!("http://{address}")).send(), close);
        assert!(connection_ended(&answer.unwrap_err()));
        drop(listener);
        let refused = client.get(format!("http://{address}")).send().await.unwrap_err();
        assert!(!connection_ended(&refused), "{refused:?}");
    }
}
