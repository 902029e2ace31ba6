//! The API key: read when it is used, redacted from answers, and replaced without a false alarm.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::Instant;

use super::error::{ApiError, KeyProblem};
use crate::blocking::Lane;
use crate::config::{Secret, check_key};
use crate::http::proxy_secrets;
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

/// The API key and what is known of it.
pub(super) struct Keys {
    key: Option<Secret>,
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
    pub(super) fn new(key: Option<Secret>) -> Self {
        Self {
            key,
            lane: Lane::new("keys", READS),
            seen: Mutex::default(),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("no holder panics")
    }

    /// The `Authorization` header, read anew when the last reading is old.
    ///
    /// # Errors
    /// When there is no key, or it cannot be read or sent.
    pub(super) async fn authorization(&self) -> Result<HeaderValue, ApiError> {
        self.authorization_at(Instant::now()).await
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

    async fn read(&self) -> Result<SecretString, ApiError> {
        let key = self.key.as_ref().ok_or(ApiError::KeyMissing)?;
        let key = key
            .read_on(&self.lane)
            .await
            .map_err(|error| ApiError::KeyUnusable(KeyProblem::File(error)))?;
        let form = |(what, fix)| ApiError::KeyUnusable(KeyProblem::Form { what, fix });
        check_key(key.expose_secret()).map_err(form)?;
        Ok(key)
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
        if !matches!(self.key, Some(Secret::File(_))) {
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

impl Seen {
    /// Takes a key that was just read, and returns its header.
    fn take(&mut self, key: &SecretString, now: Instant) -> HeaderValue {
        let mut header = HeaderValue::try_from(format!("Bearer {}", key.expose_secret()))
            .expect("visible ASCII");
        header.set_sensitive(true);
        if self
            .keys
            .back()
            .is_none_or(|last| last.expose_secret() != key.expose_secret())
        {
            self.keys.push_back(key.clone());
            if self.keys.len() > REMEMBERED {
                self.keys.pop_front();
            }
            let keys = self.keys.iter().map(|key| key.expose_secret().to_owned());
            self.redactor = Arc::new(Redactor::new(keys.chain(proxy_secrets())));
        }
        if let Some((read_at, accepted)) = &mut self.accepted
            && *accepted == header
        {
            *read_at = now;
        }
        self.read = Some((now, header.clone()));
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_file_that_is_being_rewritten_is_no_refused_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("ck_first_1");
        let keys = Keys::new(Some(Secret::File(path.clone())));
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
