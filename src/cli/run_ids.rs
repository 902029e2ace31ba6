//! Which runs a command is for: from the command line and from standard input.

use std::collections::BTreeSet;
use std::io::Read;

use anyhow::Context as _;
use serde_json::Value;

use crate::blocking;
use crate::cli::args::RunArg;
use crate::cli::failure::CommandFailure;
use crate::cli::run_names::RunNames;
use crate::config::Problems;
use crate::domain::RunRef;
use crate::text::{decoded, trimmed};

/// Most bytes of standard input that are read: room for a hundred thousand IDs.
const MAX_INPUT_BYTES: u64 = 16 * 1024 * 1024;

/// Reads the run IDs of `arguments`. Standard input is read on a thread of its own, because it may
/// take its time.
///
/// # Errors
/// As [`run_ids`].
pub(super) async fn read_run_ids(
    arguments: &[RunArg],
    names: &RunNames,
) -> anyhow::Result<Vec<RunRef>> {
    let (arguments, names) = (arguments.to_vec(), names.clone());
    blocking::run("stdin", move || {
        run_ids(&arguments, std::io::stdin().lock(), &|text| names.run(text))
    })
    .await?
    .map_err(|error: anyhow::Error| {
        if error.is::<Problems>() {
            error
        } else {
            CommandFailure::usage(format!("{error:#}")).into()
        }
    })
}

/// Finds the run that a text names.
pub(super) type RunOf<'a> = &'a dyn Fn(&str) -> anyhow::Result<RunRef>;

/// Reads the run IDs of `arguments`, each once and in order; `-` stands for what `stdin` holds, and `run_of` reads
/// the addresses of pages.
///
/// # Errors
/// When a line is not a run ID, standard input cannot be read or is neither lines nor
/// JSON, or there is no run at all.
pub(super) fn run_ids(
    arguments: &[RunArg],
    stdin: impl Read,
    run_of: RunOf<'_>,
) -> anyhow::Result<Vec<RunRef>> {
    let mut stdin = Some(stdin);
    let mut seen = BTreeSet::new();
    let mut ids = Vec::new();
    for argument in arguments {
        let found = match argument {
            RunArg::Named(text) => vec![run_of(text)?],
            // Standard input that is named twice is read once.
            RunArg::Stdin => match stdin.take() {
                Some(stdin) => read_stdin(stdin, run_of).context("standard input")?,
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

fn read_stdin(stdin: impl Read, run_of: RunOf<'_>) -> anyhow::Result<Vec<RunRef>> {
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
        from_json(&text, run_of)
    } else {
        from_lines(&text, run_of)
    }
}

/// Reads run IDs, one a line or separated by commas.
fn from_lines(text: &str, run_of: RunOf<'_>) -> anyhow::Result<Vec<RunRef>> {
    text.lines()
        .flat_map(|line| without_comment(line).split(','))
        .map(trimmed)
        .filter(|id| !id.is_empty())
        .map(run_of)
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
fn from_json(text: &str, run_of: RunOf<'_>) -> anyhow::Result<Vec<RunRef>> {
    let mut ids = Vec::new();
    for document in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
        collect(&document.context("is not JSON")?, &mut ids, run_of)?;
    }
    Ok(ids)
}

fn collect(value: &Value, ids: &mut Vec<RunRef>, run_of: RunOf<'_>) -> anyhow::Result<()> {
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| collect(item, ids, run_of)),
        Value::String(text) => {
            ids.push(run_of(text)?);
            Ok(())
        }
        Value::Object(object) => {
            // A run made in a thread is answered with other IDs beside `run_id`.
            let id = object.get("run_id").or_else(|| object.get("id"));
            let inside = object.get("data").or_else(|| object.get("runs"));
            let provider = object.get("provider").and_then(Value::as_str);
            match (id, inside) {
                (Some(Value::String(id)), _) if provider.is_some() => {
                    let provider = provider.unwrap_or_default();
                    ids.push(run_of(&format!("{provider}:{id}"))?);
                    Ok(())
                }
                (Some(id @ Value::String(_)), _) => collect(id, ids, run_of),
                (None, Some(inside @ (Value::Object(_) | Value::Array(_)))) => {
                    collect(inside, ids, run_of)
                }
                _ => anyhow::bail!("a JSON document has neither run_id nor id"),
            }
        }
        other => anyhow::bail!("{other} is not a run; give an object with run_id or id"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(text: &str) -> anyhow::Result<RunRef> {
        if !text.contains("://") {
            return Ok(RunRef::new(text)?);
        }
        let id = text.strip_prefix("https://here/runs/");
        Ok(RunRef::new(id.context("another host")?)?)
    }

    fn read(arguments: &[&str], stdin: &str) -> Result<Vec<String>, String> {
        let arguments: Vec<RunArg> = arguments.iter().map(|text| text.parse().unwrap()).collect();
        match run_ids(&arguments, stdin.as_bytes(), &page) {
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
        assert_eq!(
            read(&["-"], "a, b,c,\n,\n d , # e, f\n").unwrap(),
            ["a", "b", "c", "d"]
        );
    }

    #[test]
    fn pages_stand_for_their_runs() {
        assert_eq!(
            read(&["-"], "HTTPS://x\n").unwrap_err(),
            "standard input: another host"
        );
        assert_eq!(
            read(&["https://here/runs/a", "-", "a"], "https://here/runs/b, c").unwrap(),
            ["a", "b", "c"]
        );
        assert_eq!(read(&["-"], r#"["https://here/runs/b"]"#).unwrap(), ["b"]);
        assert!(read(&["https://there/runs/a"], "").is_err());
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
            run_ids(&[RunArg::Stdin], utf16.as_slice(), &page).unwrap(),
            [RunRef::new("run_1").unwrap()]
        );
        assert!(read(&["-"], "run_1#2").is_err());
        let error = run_ids(&[RunArg::Stdin], &b"run_\xff"[..], &page).unwrap_err();
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
