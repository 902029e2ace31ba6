//! The body of a webhook, in every format.

use reqwest::header::HeaderMap;

/// Largest body sent, in bytes: the Standard Webhooks specification recommends payloads under 20 kB.
pub(super) const MAX_BODY_BYTES: usize = 19_999;

/// The body of one request.
pub(super) struct MessageBody {
    pub(super) content_type: &'static str,
    pub(super) text: String,
    /// Headers of this message only.
    pub(super) headers: HeaderMap,
}
