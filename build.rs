//! Puts the commit and its date into the program, for `--version`, and the OpenAPI document; packs the relocations of a
//! release.
//!
//! A build without Git, or from an archive of the sources, has no commit, and works all the same.

use std::path::{Path, PathBuf};
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

/// Whether the C library of this machine, which is also that of the program, reads packed relocations: glibc 2.36 or
/// later.
fn reads_packed_relocations() -> bool {
    let variable = |name| std::env::var(name).unwrap_or_default();
    if variable("HOST") != variable("TARGET") || variable("CARGO_CFG_TARGET_ENV") != "gnu" {
        return false;
    }
    let Ok(output) = Command::new("getconf").arg("GNU_LIBC_VERSION").output() else {
        return false;
    };
    // `glibc 2.36`
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = shown.trim().trim_start_matches("glibc 2.");
    version.parse().is_ok_and(|minor: u32| minor >= 36)
}

/// Writes the OpenAPI document without the indentation that it has for people. No text in it spans lines, as JSON does
/// not allow that.
fn pack_openapi() -> std::io::Result<()> {
    let source = "docs/openapi.json";
    println!("cargo:rerun-if-changed={source}");
    let packed: String = std::fs::read_to_string(source)?
        .lines()
        .map(str::trim_start)
        .collect();
    let folder = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    std::fs::write(folder.join("openapi.json"), packed)
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    pack_openapi().expect("docs/openapi.json is there");
    // 400 KiB less. A program that is built like this needs glibc 2.36 where it runs, and reports that at its start. The
    // linkers that do not know the option only warn of it.
    if std::env::var("PROFILE").as_deref() == Ok("release") && reads_packed_relocations() {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
    println!("cargo:rerun-if-env-changed=RUNWATCH_COMMIT");
    // Builders that have the sources without the repository, such as that of the image, may set it.
    let given = std::env::var("RUNWATCH_COMMIT").ok();
    let commit = given.filter(|text| !text.trim().is_empty()).or_else(commit);
    let shown = commit.map_or_else(String::new, |commit| format!(" ({})", commit.trim()));
    println!("cargo:rustc-env=RUNWATCH_BUILD={shown}");
}
