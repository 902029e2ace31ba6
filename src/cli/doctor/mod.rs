//! `runwatch doctor`: looks at all that a run's end must pass on its way, and says what to do about what is wrong.

mod api;
mod heartbeat;
mod local;
mod providers;
pub(super) mod report;
mod sinks;

use std::io::Write;
use std::time::Duration;

use self::api::ApiChecks;
use self::report::{Check, CheckReport, worse};
use super::{KEY_REFUSED, USAGE, write_text};
use crate::blocking::{self, Stuck};
use crate::config::{Loaded, Problem, Sources, advice, load};
use crate::style::{Sign, Style};

/// How long a call that blocks may take, such as reading certificates from a disk that does not answer.
const BLOCKING_LIMIT: Duration = Duration::from_secs(15);

/// How `doctor` prints and what it does.
pub struct DoctorOptions {
    /// Whether to send a test message through each sink, and a heartbeat.
    pub send: bool,
    /// The result as JSON.
    pub json: bool,
    /// How standard output looks.
    pub style: Style,
    /// Columns of the terminal that results go to, if they go to one.
    pub columns: Option<u16>,
}

/// Checks everything and prints a line for each. Returns 0 when all is well, 2 when the configuration cannot be used, 4
/// when a key is missing or refused, 1 when anything else is not as it should be. Nothing is changed, and nothing is
/// sent but one request to each provider for a run that does not exist, and test messages and a heartbeat if `send` is set. Everything
/// is bounded in time.
///
/// # Errors
/// When the result cannot be written; a closed pipe is no error.
pub async fn doctor(
    sources: Sources,
    options: &DoctorOptions,
    out: &mut dyn Write,
) -> anyhow::Result<u8> {
    let (report, code) = examine(sources, options).await;
    let text = if options.json {
        report.json(code == 0)
    } else {
        let columns = options.columns.map_or(usize::MAX, usize::from);
        report.text(options.style, columns, code)
    };
    write_text(out, &text)?;
    Ok(code)
}

async fn examine(sources: Sources, options: &DoctorOptions) -> (CheckReport, u8) {
    let read = sources.clone();
    let loaded = within_limit(move || {
        let loaded = load(&read)?;
        let advice = advice(&loaded);
        Ok((loaded, advice))
    })
    .await;
    let (loaded, advice) = match loaded {
        Ok(Ok(found)) => found,
        Ok(Err::<_, crate::config::Problems>(problems)) => {
            let checks = problems.0.iter().map(of_problem).collect();
            return (CheckReport(checks), USAGE);
        }
        Err(stuck) => {
            let text = format!("the configuration cannot be read: {stuck}");
            let fix = "does the disk answer?";
            let check = Check::new("configuration", Sign::Bad, text).with_fix(fix);
            return (CheckReport(vec![check]), USAGE);
        }
    };
    let advice = Advice(advice);
    let mut checks = vec![configuration(&loaded, &advice)];
    let (api, providers, daemon, sinks, heartbeat) = tokio::join!(
        crewship(&loaded, &advice),
        providers::checks(&loaded, &advice),
        local::daemon(&sources, &loaded, &advice),
        sinks::checks(&loaded, &advice, options.send),
        heartbeat::check(&loaded, &advice, options.send),
    );
    let is_key_refused = api.is_key_refused || providers.iter().any(|found| found.is_key_refused);
    checks.extend(api.checks);
    let mut clock = None;
    for found in providers {
        checks.push(found.check);
        clock = clock.or(found.clock);
    }
    // One clock is enough: that of Crewship, or else of the first provider that answers.
    if !checks.iter().any(|check| check.name == api::CLOCK) {
        checks.extend(clock);
    }
    checks.push(local::network(&sources).await);
    checks.push(daemon);
    checks.push(local::store(&loaded).await);
    checks.extend(sinks);
    checks.extend(heartbeat);
    let report = CheckReport(checks);
    let code = match report.is_well() {
        true => 0,
        false if is_key_refused => KEY_REFUSED,
        false => 1,
    };
    (report, code)
}

/// Checks Crewship, unless there is no key for it and other providers are used.
async fn crewship(loaded: &Loaded, advice: &Advice) -> ApiChecks {
    let settings = &loaded.settings;
    if settings.api.key.is_none() && settings.providers.has_account() {
        return ApiChecks {
            checks: Vec::new(),
            is_key_refused: false,
        };
    }
    api::checks(loaded, advice).await
}

fn of_problem(problem: &Problem) -> Check {
    let origin = problem.origin.as_ref();
    let place = origin
        .map(|origin| format!("{origin}: "))
        .unwrap_or_default();
    let key = match (&problem.value, problem.key.as_str()) {
        (_, "") => String::new(),
        (None, key) => format!("{key}: "),
        (Some(value), key) => format!("{key} = {value}: "),
    };
    let text = format!("{place}{key}{}", problem.what);
    Check::new("configuration", Sign::Bad, text).with_fix(&problem.fix)
}

fn configuration(loaded: &Loaded, advice: &Advice) -> Check {
    let files: Vec<_> = loaded
        .sources
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let text = match files.len() {
        0 => "no file; built-in defaults and variables".to_owned(),
        _ => files.join(", "),
    };
    let check = Check::new("configuration", Sign::Good, text);
    advice.about(&["api.base_url"], check)
}

/// What is allowed and most likely a mistake; each is part of the check of its key.
struct Advice(Vec<Problem>);

impl Advice {
    /// Adds what concerns keys that begin with one of `keys` to a check.
    fn about(&self, keys: &[&str], mut check: Check) -> Check {
        let concerns = |problem: &&Problem| keys.iter().any(|key| problem.key.starts_with(key));
        for problem in self.0.iter().filter(concerns) {
            let text = match check.text.as_str() {
                "" => problem.what.clone(),
                before => format!("{before}; {}", problem.what),
            };
            check = Check {
                mark: worse(check.mark, Sign::Warning),
                text,
                ..check
            }
            .with_fix(&problem.fix);
        }
        check
    }
}

/// Makes a call that blocks on a thread of its own.
///
/// # Errors
/// When it did not end in time.
async fn within_limit<T: Send + 'static>(
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Stuck> {
    match tokio::time::timeout(BLOCKING_LIMIT, blocking::run("doctor", call)).await {
        Ok(result) => result,
        Err(_elapsed) => Err(Stuck::Late(BLOCKING_LIMIT)),
    }
}
