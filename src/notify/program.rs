//! Why a program cannot be run, and what to do: the errors of the system name the wrong file, or none.

use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// First bytes of a file that are looked at: Linux itself reads 256 of them for the `#!` line (execve(2)).
const HEAD_BYTES: u64 = 1024;

/// `ENOEXEC` of the system: the file is not of a kind that can be run.
const NOT_RUNNABLE: i32 = rustix::io::Errno::NOEXEC.raw_os_error();

/// Why `program` cannot be run, and what to do. Reads the file, and so may block.
pub(super) fn why(program: &str, error: &std::io::Error) -> Option<String> {
    if program.starts_with('~') {
        return Some("the ~ is not read as a folder here; write the whole path".to_owned());
    }
    let Some(path) = found(program) else {
        return (error.kind() == ErrorKind::NotFound).then(|| {
            let what = if program.contains('/') {
                "there is no such file"
            } else {
                "it is not in any folder of PATH"
            };
            format!("{what}; write its whole path")
        });
    };
    let metadata = std::fs::metadata(&path).ok()?;
    if metadata.is_dir() {
        return Some("it is a folder; write the path of a program in it".to_owned());
    }
    if error.kind() == ErrorKind::PermissionDenied && metadata.permissions().mode() & 0o111 == 0 {
        return Some(format!("it is not executable; run `chmod +x {program}`"));
    }
    let head = head(&path);
    if let Some(script) = head.strip_prefix(b"\xef\xbb\xbf".as_slice())
        && script.starts_with(b"#!")
    {
        return Some(
            "a byte order mark stands before its #! line; save it as UTF-8 without one".to_owned(),
        );
    }
    if let Some(line) = head.strip_prefix(b"#!".as_slice()) {
        return script(line, error.kind());
    }
    if error.raw_os_error() == Some(NOT_RUNNABLE) {
        return Some(match head.starts_with(b"\x7fELF") {
            true => "it is a program for another kind of machine".to_owned(),
            false => {
                "it has no #! line that names its interpreter; begin it with #!/bin/sh or the like"
                    .to_owned()
            }
        });
    }
    (error.kind() == ErrorKind::NotFound && head.starts_with(b"\x7fELF"))
        .then(|| "its loader or a library is missing: it was built for another system".to_owned())
}

/// What may be wrong with a script that failed.
pub(super) fn suspicion(program: &str) -> Option<&'static str> {
    let head = head(&found(program)?);
    let is_script = head.starts_with(b"#!");
    (is_script && head.windows(2).any(|pair| pair == b"\r\n")).then_some(
        "it has the line ends of Windows, which shells take for part of a command; save it with line feeds alone",
    )
}

/// What is wrong with the `#!` line of a script, of which `line` is what follows the mark.
fn script(line: &[u8], kind: ErrorKind) -> Option<String> {
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    if line.ends_with(b"\r") {
        let what = "its #! line ends with a carriage return (CR), as Windows writes it, which counts as part of the interpreter's name";
        return Some(format!("{what}; save it with line feeds alone"));
    }
    let line = String::from_utf8_lossy(line);
    let interpreter = line.split_whitespace().next().unwrap_or_default();
    let metadata = std::fs::metadata(interpreter);
    match kind {
        ErrorKind::NotFound if metadata.is_err() => Some(format!(
            "the interpreter {interpreter:?} of its #! line does not exist; install it, or correct the line"
        )),
        ErrorKind::PermissionDenied => Some(format!(
            "the interpreter {interpreter:?} of its #! line cannot be run, or the disk is mounted noexec"
        )),
        _ => None,
    }
}

/// Where a program is, as the system looks for it.
fn found(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|path| path.exists());
    }
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders)
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

/// The first bytes of a file; none where it cannot be read, or is not a regular one.
fn head(path: &Path) -> Vec<u8> {
    let mut head = Vec::new();
    if path.is_file()
        && let Ok(file) = std::fs::File::open(path)
    {
        // A file that cannot be read shows nothing.
        drop(file.take(HEAD_BYTES).read_to_end(&mut head));
    }
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_named_and_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &[u8], mode: u32| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path.to_str().unwrap().to_owned()
        };
        for (program, word) in [
            (
                file("crlf", b"#!/bin/sh\r\nexit 0\r\n", 0o755),
                "carriage return",
            ),
            (
                file("bom", b"\xef\xbb\xbf#!/bin/sh\nexit 0\n", 0o755),
                "byte order mark",
            ),
            (file("none", b"echo hi\n", 0o755), "no #! line"),
            (
                file("gone", b"#!/opt/none/bash -e\nexit 0\n", 0o755),
                "interpreter \"/opt/none/bash\"",
            ),
            (file("plain", b"#!/bin/sh\nexit 0\n", 0o644), "chmod +x"),
            (folder.path().to_str().unwrap().to_owned(), "folder"),
            ("/no/such/program".to_owned(), "no such file"),
            ("no-such-program-here".to_owned(), "PATH"),
            ("~/hook".to_owned(), "whole path"),
        ] {
            let error = std::process::Command::new(&program).spawn().unwrap_err();
            let why = why(&program, &error).unwrap_or_default();
            assert!(why.contains(word), "{program}: {error}: {why}");
        }
    }

    #[test]
    fn a_script_with_the_line_ends_of_windows_is_suspected() {
        let folder = tempfile::tempdir().unwrap();
        for (text, suspected) in [
            ("#!/bin/sh\nset -e\r\n", true),
            ("#!/bin/sh\nset -e\n", false),
            ("\r\n", false),
        ] {
            let path = folder.path().join("hook");
            std::fs::write(&path, text).unwrap();
            assert_eq!(
                suspicion(path.to_str().unwrap()).is_some(),
                suspected,
                "{text:?}"
            );
        }
    }
}
