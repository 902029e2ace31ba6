//! What `benches/hot.rs` measures of this module.

use super::{Malformed, wire};
use crate::run::{Observation, RunId};

/// Reads the body of a successful answer about the run `asked`.
///
/// # Errors
/// When it is no answer about that run.
pub fn observation(body: &[u8], asked: &RunId) -> Result<Observation, Malformed> {
    wire::observation(body, asked)
}
