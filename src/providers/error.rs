//! What can go wrong with one request, as callers ask about it.

use std::time::Duration;

use reqwest::StatusCode;

use crate::config::SecretError;
use crate::http;
use crate::profile::ListProblem;
use crate::redact::Redactor;
use crate::text::{error_chain, one_line};

/// Longest description of an error, in characters.
const MAX_CHARS: usize = 300;

/// Why one request brought no usable answer. No variant holds a secret, and none shows more of the
/// URL than its host.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// The account of the run cannot be used.
    #[error("{why}")]
    NotConfigured {
        /// Why.
        why: String,
    },
    /// There is no API key.
    #[error("no API key is configured")]
    KeyMissing,
    /// The API key cannot be read, or cannot be sent.
    #[error("the API key cannot be used")]
    KeyUnusable(#[source] KeyProblem),
    /// 401, or a 403 without a rate limit.
    #[error("{}", answer_text(*status, message))]
    Unauthorized {
        /// The status code.
        status: u16,
        /// The message in the body.
        message: String,
    },
    /// 404: there is no such run, or not yet.
    #[error("{}", answer_text(404, message))]
    NotFound {
        /// The message in the body.
        message: String,
    },
    /// 410: there was such a run, and the API has deleted it.
    #[error("{}", answer_text(410, message))]
    Gone {
        /// The message in the body.
        message: String,
    },
    /// 3xx. Redirects are followed within one scheme, host and port only, so that the key does not travel.
    #[error("{} (redirects are not followed to another server; check its base_url)", status_text(*status))]
    Redirect {
        /// The status code.
        status: u16,
    },
    /// Any other status code that is no success.
    #[error("{}", answer_text(*status, message))]
    Status {
        /// The status code.
        status: u16,
        /// The message in the body.
        message: String,
        /// The requested pause.
        retry_after: Option<Duration>,
    },
    /// No connection, no answer in time, or it broke off.
    #[error("{}", .0.what)]
    Transport(#[source] Transport),
    /// No answer within the time for a request.
    #[error("no answer in time")]
    Timeout,
    /// The body is no answer about the run.
    #[error("the answer cannot be used")]
    Malformed(#[source] Malformed),
    /// The provider has no runs with an ID of this form; nothing was requested.
    #[error("the run ID cannot be used: {0}")]
    NotAnId(String),
    /// There is no such list; nothing was requested.
    #[error("the list cannot be requested")]
    List(#[source] ListProblem),
}

/// The error of the HTTP client, without secrets: servers and proxies put text of their own into it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{causes}")]
pub struct Transport {
    what: &'static str,
    causes: String,
    /// The answer broke off, or could not be decompressed.
    answer_began: bool,
}

impl Transport {
    /// The URL is left out: a proxy's may hold a password.
    pub(super) fn new(error: reqwest::Error, redactor: &Redactor) -> Self {
        let what = http::failure(&error);
        let answer_began = error.is_body() || error.is_decode();
        Self {
            what,
            answer_began,
            causes: redactor
                .text(&error_chain(&error.without_url()))
                .into_owned(),
        }
    }

    /// An answer that began and did not end in time.
    pub(super) fn late() -> Self {
        let causes = "the answer began and did not end".to_owned();
        Self {
            what: "no answer in time",
            answer_began: true,
            causes,
        }
    }
}

/// Why the API key cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KeyProblem {
    /// Its file cannot be used.
    #[error(transparent)]
    File(SecretError),
    /// It does not look like a key.
    #[error("{what}; {fix}")]
    Form {
        /// What is odd about it.
        what: &'static str,
        /// What to do.
        fix: &'static str,
    },
    /// The program that gives it does not.
    #[error("the program {program:?} gave no key: {why}; run it by hand to see what it writes")]
    Command {
        /// The program.
        program: String,
        /// Why.
        why: String,
    },
    /// What was to give it has none.
    #[error("there is no token in what the key command or the login gave")]
    NoToken,
}

/// Why a body is no answer about the run.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Malformed {
    /// There is nothing in it.
    #[error("it is empty")]
    Empty,
    /// It is not JSON.
    #[error("it is not JSON (to byte {at}); it begins with {beginning:?}")]
    NotJson {
        /// How many bytes could be read as JSON.
        at: u64,
        /// The first characters.
        beginning: String,
    },
    /// It goes on for longer than an answer may, and has neither status nor ID up to there.
    #[error("no status within its first {bytes} bytes (see max_response_bytes)")]
    TooLarge {
        /// How many bytes were read, after decompression.
        bytes: u64,
    },
    /// It is JSON of another shape.
    #[error("{0}")]
    Shape(&'static str),
    /// It is about another run.
    #[error("it is about another run, {found:?}")]
    OtherRun {
        /// The ID it names, shortened.
        found: String,
    },
}

impl ApiError {
    /// Whether the API knows no such run, or no longer.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::Gone { .. })
    }

    /// Whether the server does not have the requested resource at all.
    pub fn is_absent(&self) -> bool {
        matches!(
            self,
            Self::NotFound { .. }
                | Self::Gone { .. }
                | Self::Status {
                    status: 405 | 406 | 501,
                    ..
                }
        )
    }

    /// Whether no answer came at all: that of a server that was reached is another error.
    pub fn is_unreached(&self) -> bool {
        match self {
            Self::Transport(error) => !error.answer_began,
            Self::Timeout => true,
            Self::NotConfigured { .. }
            | Self::KeyMissing
            | Self::KeyUnusable(_)
            | Self::Unauthorized { .. }
            | Self::NotFound { .. }
            | Self::Gone { .. }
            | Self::Redirect { .. }
            | Self::Status { .. }
            | Self::Malformed(_)
            | Self::NotAnId(_)
            | Self::List(_) => false,
        }
    }

    /// Whether the key is missing, unusable or refused.
    pub fn is_unauthorized(&self) -> bool {
        matches!(
            self,
            Self::Unauthorized { .. } | Self::KeyMissing | Self::KeyUnusable(_)
        )
    }

    /// The kind of error as one word of a small fixed set, for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::KeyMissing | Self::KeyUnusable(_) | Self::Unauthorized { .. } => "unauthorized",
            Self::NotFound { .. } | Self::Gone { .. } => "not_found",
            Self::Redirect { .. } => "redirect",
            Self::Status {
                status: 429 | 403, ..
            } => "throttled",
            Self::Status { status: 500.., .. } => "server_error",
            Self::Status { .. } | Self::NotConfigured { .. } | Self::NotAnId(_) | Self::List(_) => {
                "client_error"
            }
            Self::Transport(_) | Self::Timeout => "no_answer",
            Self::Malformed(_) => "unusable_answer",
        }
    }

    /// The requested pause, at most an hour.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The error with its causes as one harmless line.
    pub fn describe(&self) -> String {
        one_line(&error_chain(self), MAX_CHARS)
    }
}

fn status_text(status: u16) -> String {
    match StatusCode::from_u16(status)
        .ok()
        .and_then(|code| code.canonical_reason())
    {
        Some(reason) => format!("{status} {reason}"),
        None => status.to_string(),
    }
}

/// A status code and the message of its body, unless that only repeats the text of the code.
fn answer_text(status: u16, message: &str) -> String {
    let status = status_text(status);
    let repeats = |text: &str| text.eq_ignore_ascii_case(message.trim());
    let is_said = status
        .split_once(' ')
        .is_some_and(|(_, text)| repeats(text));
    if message.is_empty() || is_said || repeats(&status) {
        status
    } else {
        format!("{status}: {message}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_repeats_the_code_is_left_out() {
        for (status, message, text) in [
            (502, "Bad Gateway", "502 Bad Gateway"),
            (502, "502 bad gateway", "502 Bad Gateway"),
            (404, "run not found", "404 Not Found: run not found"),
            (429, "", "429 Too Many Requests"),
            (599, "busy", "599: busy"),
        ] {
            assert_eq!(answer_text(status, message), text);
        }
    }
}
