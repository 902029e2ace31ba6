//! Which runs a command is for: from the command line and from standard input.

use std::collections::BTreeSet;
use std::io::Read;

use anyhow::Context as _;
use serde_json::Value;

use crate::blocking;
use crate::cli::args::RunArg;
use crate::domain::{InvalidId, RunId};
use crate::text::{decoded, trimmed};

/// Most bytes of standard input that are read: room for a hundred thousand IDs.
const MAX_INPUT_BYTES: u64 = 16 * 1024 * 1024;

/// Reads the run IDs of `arguments`. Standard input is read on a thread of its own, because it may
/// take its time.
///
/// # Errors
/// As [`run_ids`].
pub(super) async fn read_run_ids(arguments: &[RunArg]) -> anyhow::Result<Vec<RunId>> {
    let arguments = arguments.to_vec();
    blocking::run("stdin", move || {
        run_ids(&arguments, std::io::stdin().lock())
    })
    .await?
}

/// Reads the run IDs of `arguments`, each once and in order; `-` stands for what `stdin` holds.
///
/// # Errors
/// When a line is no run ID, standard input cannot be read or is neither lines nor
/// JSON, or there is no run at all.
pub(super) fn run_ids(arguments: &[RunArg], stdin: impl Read) -> anyhow::Result<Vec<RunId>> {
    let mut stdin = Some(stdin);
    let mut seen = BTreeSet::new();
    let mut ids = Vec::new();
    for argument in arguments {
        let found = match argument {
            RunArg::Id(id) => vec![id.clone()],
            // Standard input that is named twice is read once.
            RunArg::Stdin => match stdin.take() {
                Some(stdin) => read_stdin(stdin).context("standard input")?,
                None => Vec::new(),
            },
        };
        ids.extend(found.into_iter().filter(|id| seen.insert(id.clone())));
    }
    anyhow::ensure!(
        !ids.is_empty(),
        "standard input names no run; give run IDs one a line, or JSON with run_id or id"
    );
    Ok(ids)
}

fn read_stdin(stdin: impl Read) -> anyhow::Result<Vec<RunId>> {
    let mut bytes = Vec::new();
    stdin
        .take(MAX_INPUT_BYTES + 1)
        .read_to_end(&mut bytes)
        .context("cannot be read")?;
    anyhow::ensure!(
        bytes.len() as u64 <= MAX_INPUT_BYTES,
        "holds more than {MAX_INPUT_BYTES} bytes"
    );
    let text = decoded(bytes).map_err(|what| anyhow::anyhow!("cannot be read as text: {what}"))?;
    if text.trim_start().starts_with(['{', '[', '"']) {
        from_json(&text)
    } else {
        Ok(from_lines(&text)?)
    }
}

fn from_lines(text: &str) -> Result<Vec<RunId>, InvalidId> {
    text.lines()
        .map(without_comment)
        .filter(|line| !line.is_empty())
        .map(RunId::new)
        .collect()
}

/// A line without what stands around a run ID: white space, byte order marks (files that were put together have them
/// inside), and a comment, which begins the line or follows white space.
fn without_comment(line: &str) -> &str {
    let line = trimmed(line);
    let comment = line
        .char_indices()
        .find(|&(at, c)| c == '#' && (at == 0 || line[..at].ends_with(char::is_whitespace)));
    trimmed(comment.map_or(line, |(at, _)| &line[..at]))
}

/// Reads JSON documents one after the other: each an object with `run_id` or `id`, the same inside
/// `data`, or a list of these, as the API answers when it creates or lists runs.
fn from_json(text: &str) -> anyhow::Result<Vec<RunId>> {
    let mut ids = Vec::new();
    for document in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
        collect(&document.context("is not JSON")?, &mut ids)?;
    }
    Ok(ids)
}

fn collect(value: &Value, ids: &mut Vec<RunId>) -> anyhow::Result<()> {
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| collect(item, ids)),
        Value::String(text) => {
            ids.push(RunId::new(text)?);
            Ok(())
        }
        Value::Object(object) => {
            // A run made in a thread is answered with other IDs beside `run_id`.
            let id = object.get("run_id").or_else(|| object.get("id"));
            let inside = object.get("data").or_else(|| object.get("runs"));
            match (id, inside) {
                (Some(id @ Value::String(_)), _) => collect(id, ids),
                (None, Some(inside @ (Value::Object(_) | Value::Array(_)))) => collect(inside, ids),
                _ => anyhow::bail!("a JSON document has neither run_id nor id"),
            }
        }
        other => anyhow::bail!("{other} is not a run; give an object with run_id or id"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str], stdin: &str) -> Result<Vec<String>, String> {
        let arguments: Vec<RunArg> = arguments.iter().map(|text| text.parse().unwrap()).collect();
        match run_ids(&arguments, stdin.as_bytes()) {
            Ok(ids) => Ok(ids.iter().map(|id| id.as_str().to_owned()).collect()),
            Err(error) => Err(format!("{error:#}")),
        }
    }

    #[test]
    fn ids_come_from_arguments_lines_and_json_each_once() {
        assert_eq!(read(&["a", "b", "a"], "").unwrap(), ["a", "b"]);
        assert_eq!(
            read(&["a", "-", "-"], "x\n\n  y \r\na\n").unwrap(),
            ["a", "x", "y"]
        );
        let created = r#"{"run_id":"run_1","version_id":"ver_1","status":"running"}"#;
        assert_eq!(read(&["-"], created).unwrap(), ["run_1"]);
        assert_eq!(
            read(
                &["-"],
                &format!("{created}\n{}", r#"{"data":{"id":"run_2"}}"#)
            )
            .unwrap(),
            ["run_1", "run_2"]
        );
        assert_eq!(
            read(&["-"], r#"{"runs":[{"id":"a"},{"id":"b"}]}"#).unwrap(),
            ["a", "b"]
        );
        assert_eq!(read(&["-"], r#"["a", {"id":"b"}]"#).unwrap(), ["a", "b"]);
    }

    #[test]
    fn lists_of_windows_and_comments_are_read() {
        for list in [
            "\u{feff}run_1\r\n# the nightly ones\r\n\r\n\u{feff}run_2 # slow\r\n",
            "\trun_1\t\n  #run_0\nrun_2",
        ] {
            assert_eq!(read(&["-"], list).unwrap(), ["run_1", "run_2"]);
        }
        assert_eq!(
            read(&["-"], "\u{feff}{\"run_id\":\"run_1\"}\r\n").unwrap(),
            ["run_1"]
        );
        let utf16: Vec<u8> = [0xfeff_u16]
            .into_iter()
            .chain("run_1\r\n".encode_utf16())
            .flat_map(u16::to_le_bytes)
            .collect();
        assert_eq!(
            run_ids(&[RunArg::Stdin], utf16.as_slice()).unwrap(),
            [RunId::new("run_1").unwrap()]
        );
        assert!(read(&["-"], "run_1#2").is_err());
        let error = run_ids(&[RunArg::Stdin], &b"run_\xff"[..]).unwrap_err();
        assert!(format!("{error:#}").contains("UTF-8"));
    }

    #[test]
    fn what_is_no_run_is_named() {
        assert!(
            read(&["-"], "ok\nnot ok\n")
                .unwrap_err()
                .contains("standard input: \"not ok\" is not a run ID")
        );
        assert!(read(&["-"], "").unwrap_err().contains("names no run"));
        assert!(
            read(&["-"], r#"{"status":"running"}"#)
                .unwrap_err()
                .contains("neither run_id nor id")
        );
        assert!(
            read(&["-"], r#"{"run_id":"#)
                .unwrap_err()
                .contains("is not JSON")
        );
        assert!(
            read(&["-"], r#"[1]"#)
                .unwrap_err()
                .contains("1 is not a run")
        );
    }
}
