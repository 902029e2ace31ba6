//! What all HTTP clients share: proxies, authorities, name lookups that cannot hold up anything else, and how a dead
//! connection shows.

use std::error::Error;
use std::ffi::OsString;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Certificate, Client, ClientBuilder, NoProxy, Proxy, Url, redirect};

use rustls_native_certs::load_certs_from_paths;

use crate::blocking::Lane;
use crate::config::Proxies;
use crate::text::error_chain;

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
            let lookup = move || {
                (name.as_str(), 0)
                    .to_socket_addrs()
                    .map(Iterator::collect::<Vec<SocketAddr>>)
            };
            let found = lane
                .run(LOOKUP_LIMIT, lookup)
                .await
                .map_err(|stuck| format!("the name lookup: {stuck}"))?;
            Ok(Box::new(found?.into_iter()) as Addrs)
        })
    }
}

/// Addresses of this machine, in the form of `NO_PROXY`: a proxy on another machine would reach that one instead.
const LOOPBACK: &str =
    "localhost,localhost.,ip6-localhost,ip6-loopback,127.0.0.0/8,::1,::ffff:127.0.0.0/104";

/// The value of `User-Agent` in all requests.
pub(crate) const USER_AGENT: &str = concat!("runwatch/", env!("CARGO_PKG_VERSION"));

/// A builder of clients, which use the cryptography of ring for TLS.
#[expect(clippy::disallowed_methods, reason = "the one place")]
pub(crate) fn builder() -> ClientBuilder {
    // An error means that it is set already.
    drop(rustls::crypto::ring::default_provider().install_default());
    Client::builder()
}

/// A client of servers on any machine: it follows no redirects, uses the proxies that the environment names except for
/// loopback addresses, and trusts the system's authorities, or instead those in `SSL_CERT_FILE` and `SSL_CERT_DIR`
/// where one of these is set.
pub(crate) fn client() -> ClientBuilder {
    let mut builder = builder()
        .user_agent(USER_AGENT)
        .redirect(redirect::Policy::none())
        .no_proxy();
    for proxy in proxies(proxies_of_environment()) {
        builder = builder.proxy(proxy);
    }
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    match own_authorities(set("SSL_CERT_FILE"), set("SSL_CERT_DIR")) {
        Some(authorities) => builder.tls_certs_only(authorities),
        None => builder,
    }
}

/// The user names and passwords of proxies, which error texts may repeat.
pub(crate) fn proxy_secrets() -> Vec<String> {
    let Proxies { http, https, .. } = proxies_of_environment();
    let secrets = http
        .iter()
        .chain(&https)
        .flat_map(|url| [Some(url.username()), url.password()]);
    secrets
        .flatten()
        .filter(|secret| !secret.is_empty())
        .map(ToOwned::to_owned)
        .collect()
}

fn proxies_of_environment() -> Proxies {
    // The configuration refuses unusable ones.
    Proxies::read(|name| std::env::var_os(name)).unwrap_or_default()
}

fn proxies(Proxies { http, https, none }: Proxies) -> Vec<Proxy> {
    let direct = || NoProxy::from_string(&format!("{LOOPBACK},{none}"));
    let of = |url: Option<Url>, make: fn(Url) -> reqwest::Result<Proxy>| {
        url.and_then(|url| make(url).ok())
    };
    let found = of(https, Proxy::https)
        .into_iter()
        .chain(of(http, Proxy::http));
    found.map(|proxy| proxy.no_proxy(direct())).collect()
}

/// How many authorities a file and folders name, of those that can be read.
pub(crate) fn count_authorities(file: Option<OsString>, folders: Option<OsString>) -> usize {
    own_authorities(file, folders).map_or(0, |authorities| authorities.len())
}

/// The certificates of authorities in a file and in folders, whose names are separated by colons; `None` where neither
/// is named. A file that cannot be read holds none.
fn own_authorities(file: Option<OsString>, folders: Option<OsString>) -> Option<Vec<Certificate>> {
    if file.is_none() && folders.is_none() {
        return None;
    }
    let mut found = load_certs_from_paths(file.as_deref().map(Path::new), None);
    for folder in folders.iter().flat_map(std::env::split_paths) {
        let more = load_certs_from_paths(None, Some(&folder));
        found.certs.extend(more.certs);
        found.errors.extend(more.errors);
    }
    for error in &found.errors {
        tracing::warn!(
            error = error_chain(error),
            "cannot read certificates of authorities that SSL_CERT_FILE or SSL_CERT_DIR names"
        );
    }
    let read = found
        .certs
        .iter()
        .filter_map(|certificate| Certificate::from_der(certificate).ok());
    let authorities: Vec<_> = read.collect();
    let usable = |authorities: &[Certificate]| {
        builder()
            .no_proxy()
            .tls_certs_only(authorities.iter().cloned())
            .build()
            .is_ok()
    };
    // One that cannot be read does not make the others useless.
    Some(if usable(&authorities) {
        authorities
    } else {
        authorities
            .into_iter()
            .filter(|authority| usable(std::slice::from_ref(authority)))
            .collect()
    })
}

/// The text of a request without an answer in time.
pub(crate) const NO_ANSWER: &str = "no answer in time";

/// What failed when a request had no answer, and what to do where the cause leaves no doubt: an authority that is not
/// trusted (rustls, `CertificateError::UnknownIssuer`), or the other one of http and https.
pub(crate) fn failure(error: &reqwest::Error) -> &'static str {
    let causes = || error_chain(error);
    if error.is_timeout() {
        NO_ANSWER
    } else if error.is_connect() {
        match causes() {
            causes if causes.contains("UnknownIssuer") => {
                "no connection (to trust the authority of this certificate, set SSL_CERT_FILE to the file of the \
                 authority)"
            }
            causes if causes.contains("InvalidContentType") => {
                "no connection (the server did not answer with TLS; is this an http:// address?)"
            }
            _ => "no connection",
        }
    } else if error.is_body() || error.is_decode() {
        "the answer broke off"
    } else if causes().contains("invalid HTTP version") {
        "the request failed (the server did not answer with HTTP; is this an https:// address?)"
    } else {
        "the request failed"
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
            use io::ErrorKind::{
                BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof,
            };
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
        let found: Vec<_> = names
            .resolve("localhost".parse().unwrap())
            .await
            .unwrap()
            .collect();
        assert!(
            !found.is_empty() && found.iter().all(|address| address.ip().is_loopback()),
            "{found:?}"
        );
        // A label has at most 63 octets (RFC 1035, section 2.3.4): no resolver sends a query for a longer one.
        let unknown = format!("{}.invalid", "a".repeat(64));
        assert!(names.resolve(unknown.parse().unwrap()).await.is_err());
    }

    #[test]
    fn authorities_of_ones_own_are_all_that_is_trusted() {
        let files = tempfile::tempdir().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let pem = |path: std::path::PathBuf| {
            let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            std::fs::write(
                &path,
                params
                    .self_signed(&rcgen::KeyPair::generate().unwrap())
                    .unwrap()
                    .pem(),
            )
            .unwrap();
            path.into_os_string()
        };
        let count = |file: Option<OsString>, folders: Option<OsString>| {
            own_authorities(file, folders).map(|all| all.len())
        };
        assert_eq!(count(None, None), None, "the system's");
        let own = pem(files.path().join("own.pem"));
        assert_eq!(count(Some(own.clone()), None), Some(1));
        assert_eq!(count(Some("/no/such/file.pem".into()), None), Some(0));
        let of_folder = || Some(folder.path().into());
        assert_eq!(count(None, of_folder()), Some(0));
        pem(folder.path().join("01234567.0"));
        assert_eq!(count(None, of_folder()), Some(1));
        assert_eq!(count(Some(own), of_folder()), Some(2));
        let broken = files.path().join("broken.pem");
        std::fs::write(
            &broken,
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        )
        .unwrap();
        assert_eq!(count(Some(broken.into()), None), Some(0));
    }

    #[tokio::test]
    async fn loopback_is_reached_without_a_proxy() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = format!("http://{}", listener.local_addr().unwrap());
        let refused = async {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let answer =
                    b"HTTP/1.1 418 I'm a proxy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                stream.read_buf(&mut Vec::new()).await.unwrap();
                tokio::io::AsyncWriteExt::write_all(&mut stream, answer)
                    .await
                    .unwrap();
            }
        };
        let url = proxy.parse::<Url>().unwrap();
        let found = Proxies {
            http: Some(url.clone()),
            https: Some(url),
            none: "direct.example".to_owned(),
        };
        let mut builder = builder()
            .no_proxy()
            .connect_timeout(Duration::from_millis(500));
        for proxy in proxies(found) {
            builder = builder.proxy(proxy);
        }
        let client = builder.build().unwrap();
        let through_proxy = async |host: &str| {
            // Nothing listens on port 1.
            let answer = client.get(format!("http://{host}:1/")).send().await;
            answer.is_ok_and(|answer| answer.status().as_u16() == 418)
        };
        let test = async {
            for host in [
                "localhost",
                "LOCALHOST",
                "a.localhost",
                "localhost.",
                "127.0.0.1",
                "127.9.8.7",
                "[::1]",
                "[::ffff:127.0.0.1]",
            ] {
                assert!(!through_proxy(host).await, "{host}");
            }
            for host in ["api.example", "127.0.0.1.example", "notlocalhost"] {
                assert!(through_proxy(host).await, "{host}");
            }
        };
        tokio::select! {
            () = test => {}
            () = refused => {}
        }
    }

    #[tokio::test]
    async fn a_connection_that_ends_before_the_answer_is_known() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let close = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_buf(&mut Vec::new()).await.unwrap();
        };
        let client = builder().no_proxy().build().unwrap();
        let (answer, ()) = tokio::join!(client.get(format!("http://{address}")).send(), close);
        assert!(connection_ended(&answer.unwrap_err()));
        drop(listener);
        let refused = client
            .get(format!("http://{address}"))
            .send()
            .await
            .unwrap_err();
        assert!(!connection_ended(&refused), "{refused:?}");
    }
}
