//! The API key: read when it is used, redacted from answers, and replaced without a false alarm.

use std::collections::VecDeque;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Client, Url};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::AsyncReadExt as _;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::answer::{error_message, time};
use super::client::Spent;
use super::error::{ApiError, KeyProblem, Transport};
use super::value::{look_up, text};
use crate::blocking::Lane;
use crate::config::{Secret, check_key};
use crate::http::proxy_secrets;
use crate::process_group::ProcessGroup;
use crate::profile::{Auth, Pointer, Scheme};
use crate::redact::Redactor;
use crate::text::trimmed;

/// How often the key is read again at the most. A refusal has it read again at once.
const KEY_LIFE: Duration = Duration::from_secs(1);

/// How long an accepted key goes on being used while its file cannot be: a program that writes it anew takes moments.
const GRACE: Duration = Duration::from_secs(10);

/// How long a key that replaces an accepted one, and is refused, is given to be written to its end.
const WRITTEN_WITHIN: Duration = Duration::from_millis(200);

/// How many keys are remembered, so that they are redacted from answers.
const REMEMBERED: usize = 8;

/// Key files read at once.
const READS: usize = 4;

/// How long a program or a login may take that gives a token.
const OBTAIN_LIMIT: Duration = Duration::from_secs(10);

/// How long the output of such a program may stay open after it has ended.
const OUTPUT_GRACE: Duration = Duration::from_secs(1);

/// How long before its expiry a token is replaced.
const EXPIRY_MARGIN: Duration = Duration::from_secs(30);

/// Most bytes that a program writes, or a login answers, for a token.
const MAX_TOKEN_BYTES: u64 = 64 * 1024;

/// The credentials of a provider's account: where they come from.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// The key, the token or the password.
    pub key: Option<Secret>,
    /// The user, for basic authentication and for a login.
    pub user: Option<Secret>,
    /// The password of a profile that logs in.
    pub password: Option<Secret>,
    /// The program and its arguments whose output is the key; empty for none. It is not run by a shell.
    pub command: Vec<String>,
}

impl Credentials {
    /// A key alone.
    pub fn of_key(key: Option<Secret>) -> Self {
        Self {
            key,
            ..Self::default()
        }
    }
}

/// The API key and what is known of it.
pub(super) struct Keys {
    credentials: Credentials,
    /// How it is sent.
    scheme: Scheme,
    /// Requests are made without one, too.
    optional: bool,
    /// The header that it is sent in.
    name: HeaderName,
    /// How a token is obtained where there is no key.
    obtain: Option<Obtain>,
    /// Tokens are obtained one at a time: the others wait, and take it.
    obtaining: Semaphore,
    /// Reads the key where it is in a file.
    lane: Lane,
    /// Held only to copy in and out.
    seen: Mutex<KnownKeys>,
}

/// The keys that were read.
#[derive(Default)]
struct KnownKeys {
    /// The header with the key, and when it was read; `None` after a refusal.
    read: Option<(Instant, HeaderValue)>,
    /// The header that the API accepted last, and when its key was last read.
    accepted: Option<(Instant, HeaderValue)>,
    /// The token that was obtained, and until when it is used.
    token: Option<(HeaderValue, Option<Instant>)>,
    /// Why none could be obtained the last time, and when that was known.
    not_obtained: Option<(Instant, ApiError)>,
    /// The last ones, the newest last.
    keys: VecDeque<SecretString>,
    redactor: Arc<Redactor>,
}

impl Keys {
    /// For an account; `login` is where it logs in, if its profile does that. A header whose name cannot be sent is not sent; a profile that was checked has none like that.
    pub(super) fn new(credentials: Credentials, auth: &Auth, login: Option<Url>) -> Self {
        let user_and_password = credentials.user.clone().zip(credentials.password.clone());
        let logs_in = login.zip(auth.login.as_ref()).zip(user_and_password);
        let obtain = match logs_in {
            _ if credentials.key.is_some() => None,
            _ if !credentials.command.is_empty() => {
                Some(Obtain::Command(credentials.command.clone()))
            }
            Some(((url, login), (user, password))) => Some(Obtain::Login {
                url,
                user,
                password,
                token: login.token.clone(),
            }),
            None => None,
        };
        let name = match &auth.scheme {
            Scheme::Header(name) => HeaderName::try_from(name.as_str()).unwrap_or(AUTHORIZATION),
            Scheme::None | Scheme::Word(_) | Scheme::Basic => AUTHORIZATION,
        };
        Self {
            credentials,
            scheme: auth.scheme.clone(),
            optional: auth.optional,
            name,
            obtain,
            obtaining: Semaphore::new(1),
            lane: Lane::new("keys", READS),
            seen: Mutex::default(),
        }
    }

    fn seen(&self) -> MutexGuard<'_, KnownKeys> {
        self.seen.lock().expect("no holder panics")
    }

    /// The name of the header with the key.
    pub(super) fn name(&self) -> &HeaderName {
        &self.name
    }

    /// The value of the header with the key, read anew when the last reading is old. `None` where requests are made
    /// without a key.
    ///
    /// # Errors
    /// When there is no key, or it cannot be read or sent.
    pub(super) async fn authorization(
        &self,
        http: &Client,
        spent: &mut Spent,
    ) -> Result<Option<HeaderValue>, ApiError> {
        if let Some(obtain) = &self.obtain {
            return self.token(obtain, http, spent).await.map(Some);
        }
        let without_key = self.scheme == Scheme::None || self.optional;
        if without_key && self.credentials.key.is_none() {
            return Ok(None);
        }
        self.authorization_at(Instant::now()).await.map(Some)
    }

    /// The token that was obtained, or a new one where there is none or its time is over.
    async fn token(
        &self,
        obtain: &Obtain,
        http: &Client,
        spent: &mut Spent,
    ) -> Result<HeaderValue, ApiError> {
        let known = || {
            let now = Instant::now();
            let valid = |(_, until): &&(HeaderValue, Option<Instant>)| {
                until.is_none_or(|until| now < until)
            };
            let seen = self.seen();
            seen.token
                .as_ref()
                .filter(valid)
                .map(|(header, _)| header.clone())
        };
        if let Some(header) = known() {
            return Ok(header);
        }
        let began = Instant::now();
        let _turn = self.obtaining.acquire().await.expect("it is never closed");
        if let Some(header) = known() {
            return Ok(header);
        }
        // A password that is wrong is tried once for all polls that wait: an account may be locked after a few.
        if let Some((_, error)) = self
            .seen()
            .not_obtained
            .as_ref()
            .filter(|(at, _)| *at >= began)
        {
            return Err(error.clone());
        }
        let obtained = self.obtain(obtain, http, spent).await;
        let mut seen = self.seen();
        let now = Instant::now();
        let (key, expires_at) = match obtained {
            Ok(obtained) => obtained,
            Err(error) => {
                seen.not_obtained = Some((now, error.clone()));
                return Err(error);
            }
        };
        let header = seen.take(&key, now);
        let left = expires_at.map(|at| {
            let left = at.duration_since(Timestamp::now());
            Duration::try_from(left)
                .unwrap_or_default()
                .saturating_sub(EXPIRY_MARGIN)
        });
        seen.token = Some((header.clone(), left.map(|left| now + left)));
        Ok(header)
    }

    /// Obtains a token, and returns it as it is sent, with its expiry where that is known.
    async fn obtain(
        &self,
        obtain: &Obtain,
        http: &Client,
        spent: &mut Spent,
    ) -> Result<(SentKey, Option<Timestamp>), ApiError> {
        let (token, expires_at) = match obtain {
            Obtain::Command(argv) => {
                let output = output_of(argv, &self.lane).await;
                output
                    .and_then(|output| token_of_output(&output))
                    .map_err(ApiError::KeyUnusable)?
            }
            Obtain::Login {
                url,
                user,
                password,
                token,
            } => {
                let unreadable = |error| ApiError::KeyUnusable(KeyProblem::File(error));
                let user = user.read_on(&self.lane).await.map_err(unreadable)?;
                let password = password.read_on(&self.lane).await.map_err(unreadable)?;
                self.seen().remember(std::slice::from_ref(&password));
                let redactor = self.redactor();
                spent.requests += 1;
                let logged_in = log_in(http, url, (&user, &password), token, &redactor);
                let token = tokio::time::timeout(OBTAIN_LIMIT, logged_in)
                    .await
                    .map_err(|_elapsed| ApiError::Timeout)??;
                (token, None)
            }
        };
        Ok((self.key_of(token).await?, expires_at))
    }

    async fn authorization_at(&self, now: Instant) -> Result<HeaderValue, ApiError> {
        let fresh =
            |(read_at, _): &&(Instant, HeaderValue)| now.duration_since(*read_at) < KEY_LIFE;
        if let Some((_, header)) = self.seen().read.as_ref().filter(fresh) {
            return Ok(header.clone());
        }
        match self.read().await {
            Ok(key) => Ok(self.seen().take(&key, now)),
            // A file that is being written is empty, or incomplete, for a moment.
            Err(problem) => match &self.seen().accepted {
                Some((read_at, header)) if now.duration_since(*read_at) < GRACE => {
                    Ok(header.clone())
                }
                _ => Err(problem),
            },
        }
    }

    async fn read(&self) -> Result<SentKey, ApiError> {
        let key = self.credentials.key.as_ref().ok_or(ApiError::KeyMissing)?;
        let unreadable = |error| ApiError::KeyUnusable(KeyProblem::File(error));
        let key = key.read_on(&self.lane).await.map_err(unreadable)?;
        self.key_of(key).await
    }

    /// A key as it is sent.
    async fn key_of(&self, key: SecretString) -> Result<SentKey, ApiError> {
        let unreadable = |error| ApiError::KeyUnusable(KeyProblem::File(error));
        let form = |(what, fix)| ApiError::KeyUnusable(KeyProblem::Form { what, fix });
        let text = key.expose_secret();
        if self.scheme != Scheme::Basic {
            check_key(text).map_err(form)?;
            let header = match &self.scheme {
                Scheme::Word(word) => format!("{word} {text}"),
                Scheme::Header(_) | Scheme::None | Scheme::Basic => text.to_owned(),
            };
            return SentKey::new(vec![key.clone()], &header);
        }
        // A key with a colon in it may be both.
        let pair = match &self.credentials.user {
            Some(user) => {
                let user = user.read_on(&self.lane).await.map_err(unreadable)?;
                format!("{}:{text}", user.expose_secret())
            }
            None if text.contains(':') => text.to_owned(),
            None => format!(":{text}"),
        };
        if pair.contains(char::is_control) {
            let what = "it has unusual characters: control characters";
            return Err(form((what, "write one key on one line")));
        }
        let password = pair.split_once(':').map_or("", |(_, password)| password);
        let encoded = STANDARD.encode(&pair);
        let header = format!("Basic {encoded}");
        let password = SecretString::from(password.to_owned());
        SentKey::new(vec![SecretString::from(encoded), password], &header)
    }

    /// Takes note that the API accepted a key.
    pub(super) fn accept(&self, header: &HeaderValue) {
        let mut seen = self.seen();
        if seen
            .accepted
            .as_ref()
            .is_none_or(|(_, accepted)| accepted != header)
        {
            let read_at = seen
                .read
                .as_ref()
                .map_or_else(Instant::now, |(read_at, _)| *read_at);
            seen.accepted = Some((read_at, header.clone()));
        }
    }

    /// Takes note that the API refused a key: it is read again before the next request.
    pub(super) fn refuse(&self) {
        self.seen().read = None;
    }

    /// Whether the key is another one by now than `refused`: its file was being written. One that replaces an accepted
    /// key is given a moment to be complete.
    pub(super) async fn has_another(&self, refused: &HeaderValue) -> bool {
        if self.obtain.is_some() {
            let mut seen = self.seen();
            let is = |header: &HeaderValue| header == refused;
            let was_accepted = seen.accepted.as_ref().is_some_and(|(_, header)| is(header));
            let replaced = seen.token.as_ref().is_some_and(|(header, _)| !is(header));
            if !replaced {
                seen.token = None;
            }
            // One that was accepted has expired. One that never was is refused, and the next poll obtains another.
            return was_accepted || replaced;
        }
        if !matches!(self.credentials.key, Some(Secret::File(_))) {
            return false;
        }
        let replaces = self
            .seen()
            .accepted
            .as_ref()
            .is_some_and(|(_, accepted)| accepted != refused);
        if replaces {
            tokio::time::sleep(WRITTEN_WITHIN).await;
        }
        match self.read().await {
            Ok(key) => {
                let mut seen = self.seen();
                let another = seen.take(&key, Instant::now()) != *refused;
                if !another {
                    seen.read = None;
                }
                another
            }
            Err(_unusable) => false,
        }
    }

    /// Whether both have the same key, of those that were read.
    pub(super) fn same_as(&self, other: &Self) -> bool {
        let last = |keys: &Self| {
            keys.seen()
                .keys
                .back()
                .map(|key| key.expose_secret().to_owned())
        };
        last(self) == last(other)
    }

    /// Redacts the keys from the answers of the API.
    pub(super) fn redactor(&self) -> Arc<Redactor> {
        Arc::clone(&self.seen().redactor)
    }
}

/// How a token is obtained.
enum Obtain {
    /// It is the output of a program.
    Command(Vec<String>),
    /// It is in the answer to a POST with user and password.
    Login {
        url: Url,
        user: Secret,
        password: Secret,
        token: Pointer,
    },
}

/// What a program writes, at most [`MAX_TOKEN_BYTES`].
async fn output_of(argv: &[String], lane: &Lane) -> Result<Vec<u8>, KeyProblem> {
    let (program, arguments) = argv.split_first().ok_or(KeyProblem::NoToken)?;
    let problem = |why: String| KeyProblem::Command {
        program: program.clone(),
        why,
    };
    let mut command = tokio::process::Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // It may have secrets.
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
    let runtime = Handle::current();
    let start = move || {
        let _context = runtime.enter();
        command
            .spawn()
            .map(|child| (ProcessGroup::of(&child), child))
    };
    let started = lane.run(OBTAIN_LIMIT, start).await;
    // What the program starts ends with it, when it takes too long or writes too much.
    let (mut group, mut child) = started
        .map_err(|stuck| problem(stuck.to_string()))?
        .map_err(|error| problem(error.to_string()))?;
    let stdout = child.stdout.take().expect("piped");
    let mut stdout = stdout.take(MAX_TOKEN_BYTES + 1);
    let mut output = Vec::new();
    let run = async {
        let status = {
            let read = stdout.read_to_end(&mut output);
            tokio::pin!(read);
            // `wait` is cancel-safe, and the reading is only polled on, not dropped.
            tokio::select! {
                read = &mut read => read.map(|_bytes| None)?,
                status = child.wait() => {
                    // An agent that it started may hold its output open.
                    if let Ok(read) = tokio::time::timeout(OUTPUT_GRACE, read).await {
                        read?;
                    }
                    Some(status?)
                }
            }
        };
        if output.len() as u64 > MAX_TOKEN_BYTES {
            // It would wait for room otherwise.
            return Ok(None);
        }
        let status = match status {
            Some(status) => status,
            None => child.wait().await?,
        };
        Ok::<_, std::io::Error>(Some(status))
    };
    let ended = tokio::time::timeout(OBTAIN_LIMIT, run).await;
    match ended {
        Ok(Ok(None)) => Err(problem("its output is larger than 64 KiB".to_owned())),
        Ok(Ok(Some(status))) => {
            group.release();
            if status.success() {
                Ok(output)
            } else {
                Err(problem(format!("it ended with {status}")))
            }
        }
        Ok(Err(error)) => Err(problem(error.to_string())),
        Err(_elapsed) => Err(problem("it did not end within 10 s".to_owned())),
    }
}

/// The token in the output of a program, and when it expires: a text alone, or JSON with `token` or `access_token`, and
/// `expires_at`, `expiration`, `expirationTimestamp` or `exp` as a time, or `expires_in` in seconds, where it has one;
/// also within `status`, as Kubernetes has it (client.authentication.k8s.io/v1, `ExecCredential`).
fn token_of_output(output: &[u8]) -> Result<(SecretString, Option<Timestamp>), KeyProblem> {
    let text = String::from_utf8_lossy(output);
    let text = trimmed(&text);
    if text.is_empty() {
        return Err(KeyProblem::NoToken);
    }
    if !text.starts_with('{') {
        return Ok((SecretString::from(text), None));
    }
    let json: serde_json::Value =
        serde_json::from_str(text).map_err(|_not_json| KeyProblem::NoToken)?;
    let json = json
        .get("status")
        .filter(|it| it.is_object())
        .unwrap_or(&json);
    let first = |names: &[&str]| names.iter().find_map(|name| json.get(*name));
    let token = first(&["token", "access_token", "accessToken"]).and_then(|token| token.as_str());
    let token = token
        .filter(|token| !token.is_empty())
        .ok_or(KeyProblem::NoToken)?;
    let at = first(&[
        "expires_at",
        "expiration",
        "expirationTimestamp",
        "expiry",
        "exp",
    ]);
    let expires_at = at
        .and_then(|at| time(at.to_string().as_bytes()))
        .or_else(|| {
            let seconds = json.get("expires_in")?.as_i64()?;
            Timestamp::now()
                .checked_add(SignedDuration::from_secs(seconds))
                .ok()
        });
    Ok((SecretString::from(token), expires_at))
}

/// Obtains a token for a user and a password.
async fn log_in(
    http: &Client,
    url: &Url,
    (user, password): (&SecretString, &SecretString),
    token: &Pointer,
    redactor: &Redactor,
) -> Result<SecretString, ApiError> {
    let body = serde_json::json!({
        "username": user.expose_secret(),
        "password": password.expose_secret(),
    });
    let request = http
        .post(url.clone())
        .header(ACCEPT, HeaderValue::from_static("application/json"))
        .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .body(body.to_string());
    let transport = |error| ApiError::Transport(Transport::new(error, redactor));
    let mut response = request.send().await.map_err(transport)?;
    let code = response.status();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(transport)? {
        body.extend_from_slice(&chunk);
        if body.len() as u64 > MAX_TOKEN_BYTES {
            return Err(ApiError::KeyUnusable(KeyProblem::NoToken));
        }
    }
    if !code.is_success() {
        let message = error_message(redactor.beginning(&body).as_bytes());
        let status = code.as_u16();
        return Err(match status {
            400 | 401 | 403 | 422 => ApiError::Unauthorized { status, message },
            _ => ApiError::Status {
                status,
                message,
                retry_after: None,
            },
        });
    }
    let found = look_up(&body, &token.0).ok().flatten().and_then(text);
    let token = found.filter(|token| !token.is_empty());
    let token = token.ok_or(ApiError::KeyUnusable(KeyProblem::NoToken))?;
    Ok(SecretString::from(token.into_owned()))
}

/// A key as it is sent.
struct SentKey {
    header: HeaderValue,
    /// What must show nowhere; the last one is the key itself.
    secrets: Vec<SecretString>,
}

impl SentKey {
    fn new(secrets: Vec<SecretString>, header: &str) -> Result<Self, ApiError> {
        let mut header = HeaderValue::try_from(header).map_err(|_invalid| {
            ApiError::KeyUnusable(KeyProblem::Form {
                what: "it cannot be sent in a header",
                fix: "copy the key again",
            })
        })?;
        header.set_sensitive(true);
        Ok(Self { header, secrets })
    }
}

impl KnownKeys {
    /// Has secrets redacted from answers from now on.
    fn remember(&mut self, secrets: &[SecretString]) {
        let is_last = |known: &SecretString| {
            let last = secrets.last();
            last.is_some_and(|last| last.expose_secret() == known.expose_secret())
        };
        if self.keys.back().is_some_and(is_last) {
            return;
        }
        self.keys.extend(secrets.iter().cloned());
        while self.keys.len() > REMEMBERED {
            self.keys.pop_front();
        }
        let keys = self.keys.iter().map(|key| key.expose_secret().to_owned());
        self.redactor = Arc::new(Redactor::new(keys.chain(proxy_secrets())));
    }

    /// Takes a key that was just read, and returns its header.
    fn take(&mut self, key: &SentKey, now: Instant) -> HeaderValue {
        let SentKey { header, secrets } = key;
        self.remember(secrets);
        if let Some((read_at, accepted)) = &mut self.accepted
            && accepted == header
        {
            *read_at = now;
        }
        self.read = Some((now, header.clone()));
        header.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(scheme: Scheme, optional: bool) -> Auth {
        Auth {
            scheme,
            env: Vec::new(),
            file: None,
            user_env: None,
            user: None,
            optional,
            login: None,
        }
    }

    fn http() -> Client {
        crate::http::client().build().unwrap()
    }

    /// Keys of a program, which writes its output for each run of it, the last one again and again.
    fn of_command(folder: &std::path::Path, script: &str) -> Keys {
        let path = folder.join("token.sh");
        std::fs::write(&path, script).unwrap();
        let credentials = Credentials {
            command: vec!["/bin/sh".to_owned(), path.to_str().unwrap().to_owned()],
            ..Credentials::default()
        };
        Keys::new(credentials, &bearer(), None)
    }

    #[tokio::test]
    async fn the_output_of_a_program_is_used_until_it_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let count = folder.path().join("count");
        let script = format!(
            "echo x >>{0}; echo token_$(wc -l <{0})_abc",
            count.display()
        );
        let keys = of_command(folder.path(), &script);
        let http = http();
        let header = async || {
            keys.authorization(&http, &mut Spent::default())
                .await
                .unwrap()
                .unwrap()
        };
        let first = header().await;
        assert_eq!(first, "Bearer token_1_abc");
        assert_eq!(header().await, first, "it is not run again");
        keys.accept(&first);
        assert!(keys.has_another(&first).await, "it has expired");
        let second = header().await;
        assert_eq!(second, "Bearer token_2_abc");
        assert!(!keys.has_another(&second).await, "a fresh one is refused");
        assert!(
            keys.redactor()
                .text("token_1_abc token_2_abc")
                .starts_with("[redacted] [redacted]")
        );
        assert_eq!(std::fs::read_to_string(count).unwrap().lines().count(), 2);
    }

    #[tokio::test]
    async fn a_program_that_gives_no_token_is_named_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        for (script, why) in [
            ("exit 3", "exit status: 3"),
            ("true", "no token"),
            ("echo '{\"no\":1}'", "no token"),
            ("head -c 70000 /dev/zero; sleep 60", "64 KiB"),
            ("echo secret words", "spaces"),
        ] {
            let error = of_command(folder.path(), script)
                .authorization(&http(), &mut Spent::default())
                .await
                .unwrap_err();
            let shown = error.describe();
            assert!(
                error.is_unauthorized() && shown.contains(why),
                "{script}: {shown}"
            );
            assert!(!shown.contains("secret"), "{shown}");
        }
    }

    #[tokio::test]
    async fn what_a_program_leaves_open_delays_no_token_and_ends_with_it_where_it_fails() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let agent = |rest: &str| format!("sleep 600 & echo $! >{}; {rest}", pid.display());
        let runs = || {
            let pid = std::fs::read_to_string(&pid).unwrap();
            let status = std::fs::read_to_string(format!("/proc/{}/status", pid.trim()));
            // One that ended and that nothing has waited for is as good as gone.
            status.is_ok_and(|status| !status.contains("State:\tZ"))
        };
        let keys = of_command(folder.path(), &agent("echo token_1_abc"));
        let spent = &mut Spent::default();
        let header = keys.authorization(&http(), spent).await.unwrap().unwrap();
        assert_eq!(header, "Bearer token_1_abc");
        assert!(runs(), "an agent goes on");
        let group = std::fs::read_to_string(&pid).unwrap();
        let agent_id = rustix::process::Pid::from_raw(group.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(agent_id, rustix::process::Signal::KILL).unwrap();

        let keys = of_command(folder.path(), &agent("head -c 70000 /dev/zero; wait"));
        let error = keys.authorization(&http(), spent).await.unwrap_err();
        assert!(error.describe().contains("64 KiB"), "{}", error.describe());
        let patience = Instant::now() + Duration::from_secs(60);
        while runs() {
            assert!(Instant::now() < patience, "what it started goes on");
            tokio::task::yield_now().await;
        }
        assert_eq!(spent.requests, 0);
    }

    #[tokio::test]
    async fn what_gives_no_token_is_tried_once_for_all_that_wait() {
        let folder = tempfile::tempdir().unwrap();
        let (count, go) = (folder.path().join("count"), folder.path().join("go"));
        let script = format!(
            "echo x >>{}; while ! test -e {}; do sleep 0.02; done; exit 3",
            count.display(),
            go.display()
        );
        let keys = of_command(folder.path(), &script);
        let http = http();
        let poll = async || {
            let error = keys.authorization(&http, &mut Spent::default()).await;
            let shown = error.unwrap_err().describe();
            assert!(shown.contains("exit status: 3"), "{shown}");
        };
        let tries = || std::fs::read_to_string(&count).map_or(0, |text| text.lines().count());
        let all = async { tokio::join!(poll(), poll(), poll(), poll()) };
        let release = async {
            let patience = Instant::now() + Duration::from_secs(60);
            while tries() == 0 && Instant::now() < patience {
                tokio::task::yield_now().await;
            }
            std::fs::write(&go, "").unwrap();
        };
        tokio::join!(all, release);
        assert_eq!(tries(), 1);
        poll().await;
        assert_eq!(tries(), 2, "a later poll tries again");
    }

    #[test]
    fn a_token_may_come_with_the_time_of_its_expiry() {
        for (output, token, expires_at) in [
            ("tok_1\n", "tok_1", None),
            (
                r#"{"token":"tok_1","expires_at":"2030-01-01T00:00:00Z"}"#,
                "tok_1",
                Some("2030-01-01T00:00:00Z"),
            ),
            (
                r#"{"access_token":"tok_1","exp":1893456000}"#,
                "tok_1",
                Some("2030-01-01T00:00:00Z"),
            ),
            (
                r#"{"kind":"ExecCredential","status":{"token":"tok_1","expirationTimestamp":"2030-01-01T00:00:00Z"}}"#,
                "tok_1",
                Some("2030-01-01T00:00:00Z"),
            ),
        ] {
            let (found, at) = token_of_output(output.as_bytes()).unwrap();
            assert_eq!(found.expose_secret(), token);
            assert_eq!(at, expires_at.map(|at| at.parse().unwrap()), "{output}");
        }
        let (_, at) = token_of_output(br#"{"token":"t","expires_in":3600}"#).unwrap();
        assert!(at.unwrap() > Timestamp::now());
    }

    fn bearer() -> Auth {
        auth(Scheme::Word("Bearer".to_owned()), false)
    }

    #[tokio::test]
    async fn a_key_is_sent_as_the_profile_says_and_shows_nowhere() {
        let secret = |text: &str| Some(Secret::value(text));
        for (scheme, user, key, name, value) in [
            (
                bearer().scheme,
                None,
                "tok_12345678",
                "authorization",
                "Bearer tok_12345678",
            ),
            (
                Scheme::Word("Token".to_owned()),
                None,
                "tok_12345678",
                "authorization",
                "Token tok_12345678",
            ),
            (
                Scheme::Header("X-Api-Key".to_owned()),
                None,
                "tok_12345678",
                "x-api-key",
                "tok_12345678",
            ),
            (
                Scheme::Basic,
                Some("ann"),
                "pass word:9",
                "authorization",
                "Basic YW5uOnBhc3Mgd29yZDo5",
            ),
            (
                Scheme::Basic,
                Some(""),
                "tok_12345678",
                "authorization",
                "Basic OnRva18xMjM0NTY3OA==",
            ),
            (
                Scheme::Basic,
                None,
                "ann:tok_12345678",
                "authorization",
                "Basic YW5uOnRva18xMjM0NTY3OA==",
            ),
            (
                Scheme::Basic,
                None,
                "tok_12345678",
                "authorization",
                "Basic OnRva18xMjM0NTY3OA==",
            ),
        ] {
            let credentials = Credentials {
                key: secret(key),
                user: user.and_then(secret),
                ..Credentials::default()
            };
            let keys = Keys::new(credentials, &auth(scheme, false), None);
            let header = keys
                .authorization(&http(), &mut Spent::default())
                .await
                .unwrap()
                .unwrap();
            assert_eq!(
                (keys.name().as_str(), header.to_str().unwrap()),
                (name, value)
            );
            assert!(header.is_sensitive());
            let sent = value.rsplit(' ').next().unwrap();
            let password = key
                .rsplit_once("ann:")
                .map_or(key, |(_, password)| password);
            let shown = keys
                .redactor()
                .text(&format!("{sent} {password}"))
                .into_owned();
            assert!(
                !shown.contains(sent) && !shown.contains(password),
                "{shown}"
            );
        }
    }

    #[tokio::test]
    async fn without_a_key_requests_are_made_only_where_that_is_allowed() {
        for (scheme, optional, allowed) in [
            (Scheme::None, false, true),
            (bearer().scheme, true, true),
            (bearer().scheme, false, false),
            (Scheme::Basic, false, false),
        ] {
            let keys = Keys::new(Credentials::default(), &auth(scheme, optional), None);
            match keys.authorization(&http(), &mut Spent::default()).await {
                Ok(header) => assert!(allowed && header.is_none()),
                Err(error) => assert!(!allowed && matches!(error, ApiError::KeyMissing)),
            }
        }
    }

    #[tokio::test]
    async fn a_key_file_that_is_being_rewritten_is_no_refused_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("ck_first_1");
        let auth = bearer();
        let keys = Keys::new(
            Credentials::of_key(Some(Secret::File(path.clone()))),
            &auth,
            None,
        );
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let first = keys.authorization_at(at(0)).await.unwrap();
        keys.accept(&first);
        // Truncated, not yet written.
        write("");
        assert_eq!(keys.authorization_at(at(2)).await.unwrap(), first);
        // Half written: it is sent, refused, and complete by then.
        write("ck_sec");
        let half = keys.authorization_at(at(4)).await.unwrap();
        keys.refuse();
        write("ck_second_2");
        assert!(keys.has_another(&half).await);
        keys.refuse();
        let second = keys.authorization_at(at(6)).await.unwrap();
        assert_eq!(second, "Bearer ck_second_2");
        // A key that stays refused is refused.
        keys.refuse();
        assert!(!keys.has_another(&second).await);
        // All of them are redacted from answers.
        let shown = keys.redactor().text("ck_first_1 ck_second_2").into_owned();
        assert_eq!(shown, "[redacted] [redacted]");
        // A file that stays empty is an error.
        keys.accept(&second);
        write("");
        assert!(keys.authorization_at(at(3600)).await.is_err());
    }
}
