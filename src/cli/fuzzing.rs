//! What fuzzing does with arguments and standard input: what comes out of them are run IDs, each once.

use std::collections::BTreeSet;

use super::run_ids::run_ids;
use crate::cli::args::{Cli, RunArg};
use crate::domain::RunRef;

/// Standard input of `wait -`.
pub fn input(bytes: &[u8]) {
    let Ok(ids) = run_ids(&[RunArg::Stdin], bytes, &|page| Ok(RunRef::new(page)?)) else {
        return;
    };
    assert!(!ids.is_empty());
    let unique: BTreeSet<_> = ids.iter().collect();
    assert_eq!(unique.len(), ids.len());
    for id in &ids {
        id.check();
    }
}

/// A command line, its arguments separated by zero bytes.
pub fn arguments(bytes: &[u8]) {
    use std::os::unix::ffi::OsStrExt as _;
    let arguments = bytes
        .split(|byte| *byte == 0)
        .map(|part| std::ffi::OsStr::from_bytes(part).to_owned());
    if let Err(error) = Cli::from_args(std::iter::once("runwatch".into()).chain(arguments)) {
        drop(error.to_string());
    }
}
