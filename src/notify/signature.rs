//! Signatures of the Standard Webhooks specification, symmetric scheme `v1`
//! (github.com/standard-webhooks/standard-webhooks): HMAC-SHA256 over `id.timestamp.body`; and those of GitHub's webhooks.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use reqwest::header::HeaderMap;
use ring::hmac;

use crate::config::signing_keys;

/// Header with the ID of the message.
pub const ID_HEADER: &str = "webhook-id";
/// Header with the time of the attempt, in Unix seconds.
pub const TIMESTAMP_HEADER: &str = "webhook-timestamp";
/// Header with the signatures, separated by spaces.
pub const SIGNATURE_HEADER: &str = "webhook-signature";

/// Header with the signature that GitHub's webhooks have.
pub const GITHUB_HEADER: &str = "x-hub-signature-256";

/// How old or new a message may be: what the specification's reference libraries accept.
const TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

/// Why a message cannot be signed or is not accepted. No text holds a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// A secret does not have the form that the specification requires.
    #[error("line {line} of the signing secret is not whsec_ and base64")]
    InvalidSecret {
        /// The line, from 1.
        line: usize,
    },
    /// There is no secret.
    #[error("there is no signing secret")]
    NoSecret,
    /// A header is missing or unreadable.
    #[error("the header {0} is missing or unreadable")]
    Header(&'static str),
    /// The time of the message is too far from now.
    #[error("the message is too old or too new")]
    Expired,
    /// No signature is right.
    #[error("no signature is right")]
    Wrong,
}

/// Signs a message with each secret of `secrets`, one a line. Returns the value of the header: one
/// signature per secret, so that receivers can change theirs while both are sent.
///
/// # Errors
/// When there is no secret, or one is not `whsec_` and base64.
pub fn sign(
    secrets: &str,
    id: &str,
    timestamp: i64,
    body: &[u8],
) -> Result<String, SignatureError> {
    let content = content(id, &timestamp.to_string(), body);
    let sign = |key: hmac::Key| format!("v1,{}", STANDARD.encode(hmac::sign(&key, &content)));
    let signatures: Vec<_> = keys(secrets)
        .map(|key| key.map(sign))
        .collect::<Result<_, _>>()?;
    if signatures.is_empty() {
        Err(SignatureError::NoSecret)
    } else {
        Ok(signatures.join(" "))
    }
}

/// Signs a body as GitHub signs its webhooks (docs.github.com, "Validating webhook deliveries"): `sha256=` and the
/// HMAC-SHA256 in hexadecimal digits. The key is the text of the first secret of `secrets`, as it stands, because
/// receivers of such webhooks take the configured text for the key. There is room for one signature only.
///
/// # Errors
/// When there is no secret.
pub fn sign_as_github(secrets: &str, body: &[u8]) -> Result<String, SignatureError> {
    let mut lines = secrets.lines().map(str::trim);
    let secret = lines
        .find(|line| !line.is_empty())
        .ok_or(SignatureError::NoSecret)?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag = hmac::sign(&key, body);
    let digits = tag.as_ref().iter().map(|byte| format!("{byte:02x}"));
    Ok(format!("sha256={}", digits.collect::<String>()))
}

/// Checks a message: its headers, its age against `now`, and that one signature is of one of `secrets`.
/// Signatures are compared in constant time.
///
/// # Errors
/// When the message is not to be accepted; see [`SignatureError`].
pub fn verify(
    secrets: &str,
    headers: &HeaderMap,
    body: &[u8],
    now: Timestamp,
) -> Result<(), SignatureError> {
    let header = |name| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .ok_or(SignatureError::Header(name))
    };
    let (id, timestamp, signatures) = (
        header(ID_HEADER)?,
        header(TIMESTAMP_HEADER)?,
        header(SIGNATURE_HEADER)?,
    );
    let seconds: i64 = timestamp
        .parse()
        .map_err(|_not_seconds| SignatureError::Header(TIMESTAMP_HEADER))?;
    let sent = Timestamp::from_second(seconds)
        .map_err(|_out_of_range| SignatureError::Header(TIMESTAMP_HEADER))?;
    if now.duration_since(sent).abs() > TOLERANCE {
        return Err(SignatureError::Expired);
    }
    let content = content(id, timestamp, body);
    let tags: Vec<_> = signatures
        .split_ascii_whitespace()
        .filter_map(|signature| STANDARD.decode(signature.strip_prefix("v1,")?).ok())
        .collect();
    for key in keys(secrets) {
        let key = key?;
        if tags
            .iter()
            .any(|tag| hmac::verify(&key, &content, tag).is_ok())
        {
            return Ok(());
        }
    }
    Err(SignatureError::Wrong)
}

fn content(id: &str, timestamp: &str, body: &[u8]) -> Vec<u8> {
    [id.as_bytes(), b".", timestamp.as_bytes(), b".", body].concat()
}

fn keys(secrets: &str) -> impl Iterator<Item = Result<hmac::Key, SignatureError>> {
    signing_keys(secrets).map(|key| {
        let key = key.map_err(|line| SignatureError::InvalidSecret { line })?;
        Ok(hmac::Key::new(hmac::HMAC_SHA256, &key))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const SENT: i64 = 1_614_265_330;
    const BODY: &[u8] = br#"{"test": 2432232314}"#;

    fn headers(signatures: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(ID_HEADER, ID.parse().unwrap());
        headers.insert(TIMESTAMP_HEADER, SENT.into());
        headers.insert(SIGNATURE_HEADER, signatures.parse().unwrap());
        headers
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(SENT + seconds).unwrap()
    }

    #[test]
    fn the_published_test_vector_holds() {
        // From the tests of the specification's reference libraries.
        let signature = sign(SECRET, ID, SENT, BODY).unwrap();
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn the_test_vector_of_github_holds() {
        // docs.github.com, "Validating webhook deliveries", "Testing the webhook payload validation".
        let signature =
            sign_as_github("\n It's a Secret to Everybody\nanother\n", b"Hello, World!");
        assert_eq!(
            signature.unwrap(),
            "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
        );
        assert_eq!(sign_as_github("\n\n", b"a"), Err(SignatureError::NoSecret));
    }

    #[test]
    fn each_secret_signs_and_any_one_verifies() {
        let other = "whsec_c2Vjb25kIHNlY3JldCBzZWNvbmQgc2VjcmV0";
        let both = sign(&format!("{SECRET}\n\n{other}\n"), ID, SENT, BODY).unwrap();
        assert_eq!(both.split(' ').count(), 2);
        for secret in [SECRET, other] {
            assert_eq!(verify(secret, &headers(&both), BODY, at(0)), Ok(()));
        }
        let unknown = "whsec_dW5rbm93biB1bmtub3duIHVua25vd24=";
        assert_eq!(
            verify(unknown, &headers(&both), BODY, at(0)),
            Err(SignatureError::Wrong)
        );
    }

    #[test]
    fn what_is_changed_old_or_unreadable_is_refused() {
        let signature = sign(SECRET, ID, SENT, BODY).unwrap();
        assert_eq!(
            verify(SECRET, &headers(&signature), b"{}", at(0)),
            Err(SignatureError::Wrong)
        );
        for tolerated in [-300, 300] {
            assert_eq!(
                verify(SECRET, &headers(&signature), BODY, at(tolerated)),
                Ok(())
            );
        }
        assert_eq!(
            verify(SECRET, &headers(&signature), BODY, at(301)),
            Err(SignatureError::Expired)
        );
        assert_eq!(
            verify(SECRET, &headers(&signature), BODY, at(-301)),
            Err(SignatureError::Expired)
        );
        assert_eq!(
            verify(SECRET, &HeaderMap::new(), BODY, at(0)),
            Err(SignatureError::Header(ID_HEADER))
        );
        assert_eq!(
            verify(SECRET, &headers("v2,abc nonsense"), BODY, at(0)),
            Err(SignatureError::Wrong)
        );
        for (secrets, line) in [
            ("plain", 1),
            ("whsec_", 1),
            ("whsec_%%%", 1),
            (&format!("{SECRET}\nno"), 2),
        ] {
            assert_eq!(
                sign(secrets, ID, SENT, BODY),
                Err(SignatureError::InvalidSecret { line })
            );
        }
        assert_eq!(sign("\n", ID, SENT, BODY), Err(SignatureError::NoSecret));
    }

    proptest! {
        #[test]
        fn what_was_signed_verifies(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let signature = sign(SECRET, ID, SENT, &body).unwrap();
            prop_assert_eq!(verify(SECRET, &headers(&signature), &body, at(100)), Ok(()));
        }
    }
}
