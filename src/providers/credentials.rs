//! The API key: read when it is used, redacted from answers, and replaced without a false alarm.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::Instant;

use super::error::{ApiError, KeyProblem};
use crate::blocking::Lane;
use crate::config::{Secret, check_key};
use crate::http::proxy_secrets;
use crate::profile::{Auth, Scheme};
use crate::redact::Redactor;

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

/// The credentials of a provider's account: where they come from.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// The key, the token or the password.
    pub key: Option<Secret>,
    /// The user, for basic authentication.
    pub user: Option<Secret>,
}

impl Credentials {
    /// A key alone.
    pub fn of_key(key: Option<Secret>) -> Self {
        Self { key, user: None }
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
    /// Reads the key where it is in a file.
    lane: Lane,
    /// Held only to copy in and out.
    seen: Mutex<Seen>,
}

/// The keys that were read.
#[derive(Default)]
struct Seen {
    /// The header with the key, and when it was read; `None` after a refusal.
    read: Option<(Instant, HeaderValue)>,
    /// The header that the API accepted last, and when its key was last read.
    accepted: Option<(Instant, HeaderValue)>,
    /// The last ones, the newest last.
    keys: VecDeque<SecretString>,
    redactor: Arc<Redactor>,
}

impl Keys {
    /// For an account. A header whose name cannot be sent is not sent; a profile that was checked has none like that.
    pub(super) fn new(credentials: Credentials, auth: &Auth) -> Self {
        let name = match &auth.scheme {
            Scheme::Header(name) => HeaderName::try_from(name.as_str()).unwrap_or(AUTHORIZATION),
            Scheme::None | Scheme::Word(_) | Scheme::Basic => AUTHORIZATION,
        };
        Self {
            credentials,
            scheme: auth.scheme.clone(),
            optional: auth.optional,
            name,
            lane: Lane::new("keys", READS),
            seen: Mutex::default(),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
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
    pub(super) async fn authorization(&self) -> Result<Option<HeaderValue>, ApiError> {
        let without_key = self.scheme == Scheme::None || self.optional;
        if without_key && self.credentials.key.is_none() {
            return Ok(None);
        }
        self.authorization_at(Instant::now()).await.map(Some)
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

    async fn read(&self) -> Result<Key, ApiError> {
        let key = self.credentials.key.as_ref().ok_or(ApiError::KeyMissing)?;
        let unreadable = |error| ApiError::KeyUnusable(KeyProblem::File(error));
        let form = |(what, fix)| ApiError::KeyUnusable(KeyProblem::Form { what, fix });
        let key = key.read_on(&self.lane).await.map_err(unreadable)?;
        let text = key.expose_secret();
        if self.scheme != Scheme::Basic {
            check_key(text).map_err(form)?;
            let header = match &self.scheme {
                Scheme::Word(word) => format!("{word} {text}"),
                Scheme::Header(_) | Scheme::None | Scheme::Basic => text.to_owned(),
            };
            return Key::new(vec![key.clone()], &header);
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
        Key::new(vec![SecretString::from(encoded), password], &header)
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

/// A key as it is sent.
struct Key {
    header: HeaderValue,
    /// What must show nowhere; the last one is the key itself.
    secrets: Vec<SecretString>,
}

impl Key {
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

impl Seen {
    /// Takes a key that was just read, and returns its header.
    fn take(&mut self, key: &Key, now: Instant) -> HeaderValue {
        let Key { header, secrets } = key;
        let is_last = |known: &SecretString| {
            let last = secrets.last();
            last.is_some_and(|last| last.expose_secret() == known.expose_secret())
        };
        if !self.keys.back().is_some_and(is_last) {
            self.keys.extend(secrets.iter().cloned());
            while self.keys.len() > REMEMBERED {
                self.keys.pop_front();
            }
            let keys = self.keys.iter().map(|key| key.expose_secret().to_owned());
            self.redactor = Arc::new(Redactor::new(keys.chain(proxy_secrets())));
        }
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
            };
            let keys = Keys::new(credentials, &auth(scheme, false));
            let header = keys.authorization().await.unwrap().unwrap();
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
            let keys = Keys::new(Credentials::default(), &auth(scheme, optional));
            match keys.authorization().await {
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
        let keys = Keys::new(Credentials::of_key(Some(Secret::File(path.clone()))), &auth);
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
