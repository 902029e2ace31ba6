//! `runwatch config check`, `show` and `init`.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::failure::{CommandFailure, problem_json};
use super::{USAGE, write_text};
use crate::config::{Loaded, Problem, Problems, Settings, SinkSettings, Sources, advice, load};
use crate::domain::SinkName;
use crate::notify::{BuildSinkError, Sink};
use crate::text::error_chain;

/// The file that `config init` writes.
pub(super) const TEMPLATE: &str = include_str!("../../config/runwatch.toml");

/// Checks the configuration. Prints `ok` and the files read to `out`, what is most likely a mistake to `err`, and exits
/// with 0, or prints every problem to `err` and exits with 2. With `json` the answer goes to `out` in both cases:
/// `{"ok", "files", "problems": [{"origin", "key", "value", "what", "fix"}], "warnings": [..]}`, with warnings of the
/// same form.
///
/// # Errors
/// When `out` or `err` cannot be written to; a closed pipe is no error.
pub fn check(
    sources: &Sources,
    json: bool,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<u8> {
    let result = load(sources).and_then(|loaded| match unusable_sinks(&loaded.settings) {
        problems if problems.is_empty() => Ok(loaded),
        problems => Err(Problems(problems)),
    });
    let code = if result.is_ok() { 0 } else { USAGE };
    match result {
        result if json => write_text(out, &format!("{}\n", check_json(&result)))?,
        Ok(loaded) => {
            if loaded.sources.is_empty() {
                write_text(out, "ok: no file, built-in defaults only\n")?;
            } else {
                write_text(out, &format!("ok: {}\n", files(&loaded).join(", ")))?;
            }
            for warning in advice(&loaded) {
                write_text(err, &format!("warning: {warning}\n"))?;
            }
        }
        Err(problems) => report(&problems, err)?,
    }
    Ok(code)
}

/// What is wrong with sinks that shows only once they are set up.
fn unusable_sinks(settings: &Settings) -> Vec<Problem> {
    let problem = |(name, sink): (&SinkName, &SinkSettings)| {
        let error = Sink::build(sink).err()?;
        let fix = match error {
            BuildSinkError::Http(_) => {
                "install the certificates of authorities, or name them in SSL_CERT_FILE"
            }
            BuildSinkError::Template(_) => "correct the template",
            BuildSinkError::Email(_) => "correct the address, or the server",
            BuildSinkError::NoEmail => {
                "take another type of sink, or a build with the feature `email`"
            }
            BuildSinkError::NoDesktop => {
                "take another type of sink, or a build with the feature `desktop`"
            }
        };
        Some(Problem {
            origin: None,
            key: format!("sinks.{name}"),
            value: None,
            what: error_chain(&error),
            fix: fix.to_owned(),
        })
    };
    settings.sinks.iter().filter_map(problem).collect()
}

fn check_json(result: &Result<Loaded, Problems>) -> serde_json::Value {
    let problems = result
        .as_ref()
        .err()
        .map_or(&[][..], |problems| &problems.0);
    let warnings = result.as_ref().map(advice).unwrap_or_default();
    serde_json::json!({
        "ok": result.is_ok(),
        "files": result.as_ref().map_or_else(|_| Vec::new(), files),
        "problems": problems.iter().map(problem_json).collect::<Vec<_>>(),
        "warnings": warnings.iter().map(problem_json).collect::<Vec<_>>(),
    })
}

fn files(loaded: &Loaded) -> Vec<String> {
    loaded
        .sources
        .iter()
        .map(|path| path.display().to_string())
        .collect()
}

/// Prints the configuration in force as TOML, each key with its origin, without secrets. With `json`:
/// `{"files", "settings": [{"key", "value", "origin"}]}`. A wrong configuration is reported to
/// `err`, with exit code 2.
///
/// # Errors
/// When `out` or `err` cannot be written to; a closed pipe is no error.
pub fn show(
    sources: &Sources,
    json: bool,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<u8> {
    match load(sources) {
        Err(problems) if json => {
            let failure = CommandFailure::from(&problems);
            write_text(err, &format!("{}\n", failure.text(true, None)))?;
            Ok(failure.exit_code())
        }
        Err(problems) => {
            report(&problems, err)?;
            Ok(USAGE)
        }
        Ok(loaded) if json => {
            let shown = serde_json::json!({ "files": files(&loaded), "settings": loaded.effective.to_json() });
            write_text(out, &format!("{shown}\n"))?;
            Ok(0)
        }
        Ok(loaded) => {
            write_text(out, &loaded.effective.to_toml())?;
            Ok(0)
        }
    }
}

/// Writes the commented default file to `path`, to standard output for `-`, else to the user's
/// configuration file. Missing folders are made. A file that exists is kept, with exit code 2,
/// unless `force` is set.
///
/// The file gets the mode 0600, since keys may be written into it.
///
/// # Errors
/// When the file cannot be written, or `out` or `err`; a closed pipe is no error.
pub fn init(
    sources: &Sources,
    path: Option<&Path>,
    force: bool,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<u8> {
    if path == Some(Path::new("-")) {
        write_text(out, TEMPLATE)?;
        return Ok(0);
    }
    let Some(path) = path.map(Path::to_owned).or_else(|| sources.user_file()) else {
        write_text(
            err,
            "there is no home folder to write to; name a path, or - for standard output\n",
        )?;
        return Ok(USAGE);
    };
    if let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    if !write_file(&path, force).with_context(|| format!("cannot write {}", path.display()))? {
        let failure = CommandFailure::usage(format!("{} exists and is kept", path.display()));
        return Err(failure.fix("--force replaces it").into());
    }
    let mut next = format!("wrote {} (readable by you only)\n", path.display());
    let read_later = sources.explicit.as_ref() == Some(&path) || sources.files.contains(&path);
    let flag = if read_later {
        String::new()
    } else {
        format!(" --config {}", path.display())
    };
    next.push_str(&format!(
        "next: put your API key into it or into CREWSHIP_API_KEY, then: runwatch{flag} config check\n"
    ));
    write_text(err, &next)?;
    Ok(0)
}

/// Writes the file; `false` when it exists and must be kept.
fn write_file(path: &PathBuf, force: bool) -> std::io::Result<bool> {
    use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
    let mut options = std::fs::OpenOptions::new();
    options.write(true).mode(0o600);
    if force {
        options.create(true).truncate(true);
    } else {
        // One call that checks and creates: nothing can come between.
        options.create_new(true);
    }
    let mut file = match options.open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && !force => {
            return Ok(false);
        }
        other => other?,
    };
    // The mode above is only for a new file.
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    file.write_all(TEMPLATE.as_bytes())?;
    Ok(true)
}

fn report(problems: &Problems, err: &mut dyn Write) -> anyhow::Result<()> {
    let count = problems.0.len();
    let noun = if count == 1 { "problem" } else { "problems" };
    write_text(
        err,
        &format!("{problems}\n{count} {noun} in the configuration\n"),
    )
}
