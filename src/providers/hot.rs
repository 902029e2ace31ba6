//! What `benches/hot.rs` measures of this module.

use super::{Malformed, crewship};
use crate::domain::{Observation, RunRef};
use crate::redact::Redactor;

/// Reads the body of a successful answer about the run `requested`.
///
/// # Errors
/// When it is no answer about that run.
pub fn observation(body: &[u8], requested: &RunRef) -> Result<Observation, Malformed> {
    crewship::observation(body, requested)
}

/// Takes a key out of bodies, as it is done with each body before it is read.
pub fn redaction(key: &str) -> impl Fn(Vec<u8>) -> Vec<u8> + use<> {
    let redactor = Redactor::new([key]);
    move |body| redactor.body(body)
}
