//! The e-mail sink against a real SMTP server.

use runwatch::simulator::Script;
use serde_json::{Value, json};

use super::{PythonServer, wait};
use crate::support::{Ended, Program, api};

const PASSWORD: &str = "smtp-0123456789";

/// A server, and a folder with its certificate, which is that of its own authority.
struct Smtp {
    server: PythonServer,
    port: u64,
    folder: tempfile::TempDir,
}

impl Smtp {
    async fn start(tls: &str, password: Option<&str>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let path = |name: &str| folder.path().join(name);
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(path("cert.pem"), certificate.pem()).unwrap();
        std::fs::write(path("key.pem"), key.serialize_pem()).unwrap();
        let input = json!({
            "tls": tls,
            "certificate": path("cert.pem"),
            "key": path("key.pem"),
            "password": password,
        });
        let mut server = PythonServer::start("smtp_server.py", &input).await;
        let port = server.line().await["port"].as_u64().unwrap();
        Self {
            server,
            port,
            folder,
        }
    }

    /// Waits for a run that fails, with an e-mail sink of these keys.
    async fn wait(&self, tls: &str, keys: &str, name: &str) -> Ended {
        let sinks = format!(
            "[sinks.mail]\ntype = \"email\"\nhost = \"localhost\"\nport = {}\ntls = {tls:?}\n\
             from = \"runwatch <runwatch@test.example>\"\nretry_schedule = [\"50ms\"]\n{keys}\n",
            self.port
        );
        let script = Script::fails("größer als 10 €\n.\nat line 3").answers(vec!["running"]);
        let simulator = api([("run_1", script)]).await;
        Program::with(&simulator)
            .configured(&sinks)
            .with_file("password", PASSWORD)
            .set(
                "SSL_CERT_FILE",
                self.folder.path().join("cert.pem").to_str().unwrap(),
            )
            .run(&[
                "wait",
                "run_1",
                "--name",
                name,
                "--label",
                "team=search",
                "--log-level",
                "trace",
            ])
            .await
    }
}

const WITH_PASSWORD: &str = "to = [\"ops@test.example\", \"Ann <ann@test.example>\"]\nusername = \"runwatch\"\npassword_file = \"password\"";
const WITHOUT: &str = "to = [\"ops@test.example\"]";

fn delivered(ended: &Ended) {
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(!ended.stderr.contains("not delivered"), "{ended:?}");
    assert!(!format!("{ended:?}").contains(PASSWORD), "{ended:?}");
}

#[tokio::test]
async fn a_message_arrives_over_starttls_with_a_password() {
    let mut smtp = Smtp::start("starttls", Some(PASSWORD)).await;
    delivered(
        &smtp
            .wait("starttls", WITH_PASSWORD, "täglicher Bericht")
            .await,
    );
    let got = smtp.server.line().await;
    assert_eq!(
        (&got["encrypted"], &got["authenticated"]),
        (&json!(true), &json!(true))
    );
    assert_eq!(got["to"], json!(["ops@test.example", "ann@test.example"]));
    let headers = &got["headers"];
    assert!(
        headers["Subject"]
            .as_str()
            .unwrap()
            .starts_with("täglicher Bericht failed"),
        "{headers}"
    );
    for (name, value) in [
        ("Auto-Submitted", "auto-generated"),
        ("X-Runwatch-Event", "run.failed"),
        ("From", "runwatch <runwatch@test.example>"),
    ] {
        assert_eq!(headers[name], value, "{headers}");
    }
    let id = headers["Message-ID"].as_str().unwrap();
    assert!(
        id.starts_with("<msg_") && id.ends_with("@test.example>"),
        "{id}"
    );
    let text = got["text"].as_str().unwrap();
    for part in [
        "täglicher Bericht failed",
        "    größer als 10 €\n    .\n    at line 3\n",
        "Run:      run_1\n",
        "Labels:   team=search\n",
        &format!("Delivery: {}\n", &id[1..id.find('@').unwrap()]),
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[tokio::test]
async fn implicit_tls_and_no_encryption_on_loopback_work_too() {
    for (tls, keys, encrypted) in [("tls", WITH_PASSWORD, true), ("none", WITHOUT, false)] {
        let password = encrypted.then_some(PASSWORD);
        let mut smtp = Smtp::start(tls, password).await;
        delivered(&smtp.wait(tls, keys, "report").await);
        assert_eq!(smtp.server.line().await["encrypted"], encrypted, "{tls}");
    }
}

#[tokio::test]
async fn a_recipient_that_is_refused_for_now_is_tried_again_and_one_for_good_is_not() {
    let mut smtp = Smtp::start("none", None).await;
    let ended = smtp
        .wait("none", "to = [\"later@test.example\"]", "report")
        .await;
    delivered(&ended);
    assert!(
        ended.stderr.contains("451 Try again later") || ended.stderr.contains("(451)"),
        "{ended:?}"
    );
    assert_eq!(
        smtp.server.line().await["to"],
        json!(["later@test.example"])
    );

    let ended = smtp
        .wait("none", "to = [\"never@test.example\"]", "report")
        .await;
    assert!(
        ended
            .stderr
            .contains("was not delivered to mail after 1 attempt: ")
            && ended.stderr.contains("No such user here"),
        "{ended:?}"
    );
}

#[tokio::test]
async fn what_is_not_safe_is_not_sent() {
    // A refused password is about the configuration: it is tried again.
    let smtp = Smtp::start("starttls", Some("another")).await;
    let ended = smtp.wait("starttls", WITH_PASSWORD, "report").await;
    assert!(
        ended
            .stderr
            .contains("was not delivered to mail after 2 attempts: ")
            && ended.stderr.contains("535"),
        "{ended:?}"
    );
    assert!(!format!("{ended:?}").contains(PASSWORD), "{ended:?}");
    // A server without STARTTLS gets neither the password nor the message.
    let smtp = Smtp::start("none", None).await;
    let ended = smtp.wait("starttls", WITH_PASSWORD, "report").await;
    assert!(
        ended.stderr.contains("was not delivered to mail"),
        "{ended:?}"
    );
    assert!(ended.stderr.contains("STARTTLS"), "{ended:?}");
    // One with a certificate of another authority does not either.
    let (smtp, other) = (
        Smtp::start("tls", None).await,
        Smtp::start("tls", None).await,
    );
    std::fs::copy(
        other.folder.path().join("cert.pem"),
        smtp.folder.path().join("cert.pem"),
    )
    .unwrap();
    let ended = smtp.wait("tls", WITHOUT, "report").await;
    assert!(
        ended.stderr.contains("was not delivered to mail"),
        "{ended:?}"
    );
    assert!(ended.stderr.contains("certificate"), "{ended:?}");
}

#[tokio::test]
async fn a_name_adds_no_header() {
    let mut smtp = Smtp::start("none", None).await;
    let name = "x =?utf-8?q?y?= \u{2028}Bcc: eve@test.example <script>";
    delivered(&smtp.wait("none", WITHOUT, name).await);
    let got = smtp.server.line().await;
    assert_eq!(got["to"], json!(["ops@test.example"]));
    assert!(got["headers"].get("Bcc").is_none(), "{got}");
    let subject = got["headers"]["Subject"].as_str().unwrap();
    assert!(subject.starts_with("x = ?utf-8?q?y?= "), "{subject}");
}

#[tokio::test]
async fn a_message_can_be_looked_at_before() {
    let sinks = format!(
        "[sinks.mail]\ntype = \"email\"\nhost = \"smtp.test.example\"\nfrom = \"runwatch@test.example\"\n{WITH_PASSWORD}\n"
    );
    let program = Program::new()
        .configured(&sinks)
        .with_file("password", PASSWORD);
    let ended = program
        .run(&["sinks", "render", "mail", "--event", "run.failed", "--json"])
        .await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let shown: Value = ended.json_lines().remove(0);
    assert_eq!(
        shown["target"],
        "a message to smtp.test.example:587 with STARTTLS"
    );
    assert_eq!(
        shown["fields"]["Subject"],
        "nightly report failed after 42s"
    );
    assert!(
        shown["body"]
            .as_str()
            .unwrap()
            .contains("Event:    run.failed\n")
    );
    assert!(!format!("{ended:?}").contains(PASSWORD), "{ended:?}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_a_failure() {
    let sinks = "[sinks.mail]\ntype = \"email\"\nhost = \"127.0.0.1\"\nport = 1\ntls = \"none\"\n\
                 from = \"a@test.example\"\nto = [\"b@test.example\"]\nretry_schedule = []\n";
    let ended = wait(Script::succeeds(), sinks, &[]).await;
    assert!(
        ended
            .stderr
            .contains("was not delivered to mail after 1 attempt: "),
        "{ended:?}"
    );
}
