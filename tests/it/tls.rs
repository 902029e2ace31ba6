//! HTTPS as users meet it: authorities of their own, and servers that must not be trusted.

use std::path::Path;
use std::sync::{Arc, Mutex};

use hyper::service::service_fn;
use hyper::{Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use runwatch::simulator::Simulator;

use crate::support::Program;

const KEY: &str = "ck_over_tls_0123456789";

/// What is wrong with a server for whose certificate there is something to do.
const UNKNOWN: &str = "an unknown authority";

/// A server that says over TLS that the run has succeeded, and remembers in which version of HTTP
/// each request came.
struct TlsServer {
    port: u16,
    versions: Arc<Mutex<Vec<Version>>>,
    _tasks: JoinSet<()>,
}

impl TlsServer {
    async fn start(certificate: CertificateDer<'static>, key: &KeyPair) -> Self {
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let versions = Arc::new(Mutex::new(Vec::new()));
        let remembered = Arc::clone(&versions);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, versions) = (acceptor.clone(), Arc::clone(&remembered));
                connections.spawn(async move {
                    // A client that does not trust the certificate leaves here.
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let answer = service_fn(move |request: hyper::Request<_>| {
                        versions.lock().unwrap().push(request.version());
                        let body = r#"{"id":"run_1","status":"succeeded"}"#.to_owned();
                        async move { Ok::<_, std::convert::Infallible>(Response::new(body)) }
                    });
                    let server = auto::Builder::new(TokioExecutor::new());
                    drop(server.serve_connection(TokioIo::new(stream), answer).await);
                });
            }
        });
        Self {
            port,
            versions,
            _tasks: tasks,
        }
    }

    fn versions(&self) -> Vec<Version> {
        self.versions.lock().unwrap().clone()
    }
}

struct Authority {
    params: CertificateParams,
    key: KeyPair,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { params, key, pem }
    }

    async fn server(&self, name: &str, expired: bool) -> TlsServer {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        if expired {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params
            .signed_by(&key, &Issuer::from_params(&self.params, &self.key))
            .unwrap();
        TlsServer::start(certificate.der().clone(), &key).await
    }
}

/// A server with a certificate that no authority has signed.
async fn self_signed() -> TlsServer {
    let key = KeyPair::generate().unwrap();
    let own = CertificateParams::new(vec!["localhost".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    TlsServer::start(own.der().clone(), &key).await
}

fn program(server: &TlsServer, trusted: Option<&Path>) -> Program {
    let program = Program::new().set("CREWSHIP_API_KEY", KEY).set(
        "RUNWATCH_API__BASE_URL",
        &format!("https://localhost:{}", server.port),
    );
    match trusted {
        Some(file) => program.set("SSL_CERT_FILE", file.to_str().unwrap()),
        None => program,
    }
}

#[tokio::test]
async fn an_authority_of_ones_own_is_trusted_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new("an authority");
    let trusted = dir.path().join("authority.pem");
    std::fs::write(&trusted, &authority.pem).unwrap();

    let good = authority.server("localhost", false).await;
    let ended = program(&good, Some(&trusted))
        .run(&["wait", "run_1", "--log-level", "trace"])
        .await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(
        good.versions(),
        [Version::HTTP_2],
        "the newest version that both speak"
    );
    assert!(
        ended.stderr.contains("h2::") && !ended.stderr.contains(KEY),
        "{ended:?}"
    );

    let other = dir.path().join("folder");
    std::fs::create_dir(&other).unwrap();
    // A folder has its certificates under their hashes, as `openssl rehash` names them, or under any other name.
    std::fs::copy(&trusted, other.join("authority.pem")).unwrap();
    let by_folder = program(&good, None).set("SSL_CERT_DIR", other.to_str().unwrap());
    let ended = by_folder.run(&["wait", "run_1"]).await;
    assert_eq!(
        (ended.code, good.versions().len()),
        (Some(0), 2),
        "{ended:?}"
    );

    let untrusted = Authority::new("another authority")
        .server("localhost", false)
        .await;
    let other_name = authority.server("api.example.com", false).await;
    let expired = authority.server("localhost", true).await;
    let self_signed = self_signed().await;
    for (server, trusted, what) in [
        (&untrusted, Some(trusted.as_path()), UNKNOWN),
        (&other_name, Some(trusted.as_path()), "another name"),
        (&expired, Some(trusted.as_path()), "an expired certificate"),
        (
            &self_signed,
            Some(trusted.as_path()),
            "a certificate signed by itself",
        ),
        (&good, None, UNKNOWN),
    ] {
        let before = server.versions().len();
        let ended = program(server, trusted)
            .run(&[
                "wait",
                "run_1",
                "--timeout",
                "300ms",
                "--log-level",
                "debug",
            ])
            .await;
        assert_eq!(ended.code, Some(6), "{what}: {ended:?}");
        assert!(
            ended.stderr.contains("certificate"),
            "{what} is named: {ended:?}"
        );
        if what == UNKNOWN {
            assert!(
                ended
                    .stderr
                    .contains("set SSL_CERT_FILE to the file of the authority"),
                "{ended:?}"
            );
        }
        assert_eq!(
            server.versions().len(),
            before,
            "{what}: the key was not sent"
        );
    }
}

#[tokio::test]
async fn a_webhook_trusts_the_same_authorities() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new("an authority");
    let trusted = dir.path().join("authority.pem");
    std::fs::write(&trusted, &authority.pem).unwrap();
    let server = authority.server("localhost", false).await;
    let sink = format!(
        "[sinks.ops]\ntype = \"webhook\"\nurl = \"https://localhost:{}/secret-path\"\n",
        server.port
    );
    let arguments = ["sinks", "test", "--log-level", "trace"];
    let ended = program(&server, Some(&trusted))
        .configured(&sink)
        .run(&arguments)
        .await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(
        ended.stderr.contains("h2::") && !ended.stderr.contains("secret-path"),
        "{ended:?}"
    );
    let ended = program(&server, None)
        .configured(&sink)
        .run(&["sinks", "test"])
        .await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended.stdout.contains("certificate") && !format!("{ended:?}").contains("secret-path"),
        "{ended:?}"
    );
    assert_eq!(server.versions().len(), 1);

    let untrusted = Authority::new("another authority")
        .server("localhost", false)
        .await;
    let other_name = authority.server("hooks.example.com", false).await;
    let expired = authority.server("localhost", true).await;
    let self_signed = self_signed().await;
    for (server, what) in [
        (&untrusted, UNKNOWN),
        (&other_name, "another name"),
        (&expired, "an expired certificate"),
        (&self_signed, "a certificate signed by itself"),
    ] {
        let sink = format!(
            "[sinks.ops]\ntype = \"webhook\"\nurl = \"https://localhost:{}/secret-path\"\n",
            server.port
        );
        let ended = program(server, Some(&trusted))
            .configured(&sink)
            .run(&["sinks", "test"])
            .await;
        assert_eq!(ended.code, Some(1), "{what}: {ended:?}");
        assert!(
            ended.stdout.contains("certificate"),
            "{what} is named: {ended:?}"
        );
        if what == UNKNOWN {
            assert!(
                ended
                    .stdout
                    .contains("set SSL_CERT_FILE to the file of the authority"),
                "{ended:?}"
            );
        }
        assert!(
            !format!("{ended:?}").contains("secret-path"),
            "{what}: {ended:?}"
        );
        assert_eq!(
            server.versions().len(),
            0,
            "{what}: the message was not sent"
        );
    }
}

#[tokio::test]
async fn the_other_scheme_is_named_where_the_server_does_not_answer_in_this_one() {
    let simulator = Simulator::start().await.unwrap();
    let plain_port = simulator.base_url().replace("http:", "https:");
    let server = self_signed().await;
    let tls_port = format!("http://127.0.0.1:{}", server.port);
    for (address, question) in [
        (&plain_port, "is this an http:// address?"),
        (&tls_port, "is this an https:// address?"),
    ] {
        let sink = format!("[sinks.ops]\ntype = \"webhook\"\nurl = \"{address}/hook\"\n");
        let program = Program::new().configured(&sink);
        let ended = program.run(&["sinks", "test"]).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stdout.contains(question), "{ended:?}");
        let waiting = program
            .set("CREWSHIP_API_KEY", KEY)
            .set("RUNWATCH_API__BASE_URL", address);
        let arguments = ["wait", "run_1", "--timeout", "300ms"];
        let ended = waiting.run(&arguments).await;
        assert_eq!(ended.code, Some(6), "{ended:?}");
        assert!(ended.stderr.contains(question), "{ended:?}");
    }
}
