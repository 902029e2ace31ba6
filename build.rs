//! Puts the commit and its date into the program, for `--version`.
//!
//! A build without Git, or from an archive of the sources, has neither, and works all the same.

use std::path::Path;
use std::process::Command;

/// The output of a Git command in the folder of this package; `None` where there is no Git or no repository.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// Commit and date of this package's own repository, such as `0f1cfe9 2026-11-27`. The date is that of the commit, so
/// that two builds of it are the same.
fn commit() -> Option<String> {
    let top = git(&["rev-parse", "--show-toplevel"])?;
    let own = std::env::var("CARGO_MANIFEST_DIR").ok()?;
    // Sources that were unpacked inside of another repository.
    if Path::new(&top).canonicalize().ok()? != Path::new(&own).canonicalize().ok()? {
        return None;
    }
    // Changes with each commit and each branch that is checked out.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo:rerun-if-changed={log}");
    }
    git(&["log", "-1", "--format=%h %cs"])
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=RUNWATCH_COMMIT");
    // Builders that have the sources without the repository, such as that of the image, may set it.
    let given = std::env::var("RUNWATCH_COMMIT").ok();
    let commit = given.filter(|text| !text.trim().is_empty()).or_else(commit);
    let shown = commit.map_or_else(String::new, |commit| format!(" ({})", commit.trim()));
    println!("cargo:rustc-env=RUNWATCH_BUILD={shown}");
}
