//! What `benches/hot.rs` measures of this module.

use std::sync::LazyLock;

use super::Malformed;
use super::answer::{Layout, body_of_run};
use crate::domain::{Observation, RunRef};
use crate::profile;
use crate::redact::Redactor;

/// As each client has one.
static LAYOUT: LazyLock<Layout> = LazyLock::new(|| Layout::of_run(&profile::crewship()));

/// Reads the body of a successful answer about the run `requested` of Crewship.
///
/// # Errors
/// When it is not an answer about that run.
pub fn observation(body: &[u8], requested: &RunRef) -> Result<Observation, Malformed> {
    body_of_run(&LAYOUT, body, requested.id())
}

/// Takes a key out of bodies, as it is done with each body before it is read.
pub fn redaction(key: &str) -> impl Fn(Vec<u8>) -> Vec<u8> + use<> {
    let redactor = Redactor::new([key]);
    move |body| redactor.body(body)
}
