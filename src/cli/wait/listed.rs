//! Finds the runs to wait for in the list of a provider.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use tokio::time::{Instant, sleep, sleep_until};

use super::accounts::no_key;
use super::options::OutputOptions;
use crate::cli::KEY_REFUSED;
use crate::cli::args::RunArg;
use crate::cli::failure::CommandFailure;
use crate::config::Providers;
use crate::domain::{ProviderName, RunRef, Verdict};
use crate::profile::{ListProblem, Profile};
use crate::providers::{
    ApiClient, ApiError, ListEntry, ListParameters, ListRequest, Provider as _,
};

/// How long the list is looked at again for a run that was only just requested.
const GRACE: Duration = Duration::from_secs(10);

/// The time between two looks.
const BETWEEN: Duration = Duration::from_secs(2);

/// Most runs that are watched.
const MAX_RUNS: usize = 1000;

/// Most pages that are read for one look.
const MAX_PAGES: usize = 100;

/// Which runs of a list are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The newest.
    Latest,
    /// All that go on.
    AllActive,
}

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ListOutcome {
    /// The runs to watch.
    Runs(Vec<RunRef>),
    /// The command ends with this code.
    End(u8),
}

/// What a look at the list found.
struct RunsFound {
    entries: Vec<ListEntry>,
    /// There are more runs than are watched.
    more: bool,
}

/// Looks at a list, and again for ten seconds where it does not show what is wanted.
///
/// # Errors
/// When the provider is unknown, or its client cannot be set up.
pub(super) async fn find(
    (wanted, provider): (Wanted, &ProviderName),
    arguments: &[RunArg],
    providers: &Providers,
    connect_grace: Duration,
    options: &OutputOptions,
) -> anyhow::Result<ListOutcome> {
    let account = match providers.get(provider) {
        Ok(account) => account,
        Err(why) => return Ok(ListOutcome::End(options.fail(&CommandFailure::usage(why)))),
    };
    let parameters = match parameters(arguments, &account.profile, &account.name) {
        Ok(parameters) => parameters,
        Err(failure) => return Ok(ListOutcome::End(options.fail(&failure))),
    };
    if let Some(failure) = no_key(&account) {
        return Ok(ListOutcome::End(options.fail(&failure)));
    }
    let client = ApiClient::of_account(&account).context("cannot build the API client")?;
    let per_minute = account.api.requests_per_minute.max(1);
    let look = ListLook {
        client,
        provider: account.name.clone(),
        has_unlisted: (account.profile.list.as_ref()).is_some_and(|list| !list.unlisted.is_empty()),
        parameters,
        pace: Duration::from_secs(60) / per_minute,
        connect_grace,
    };
    Ok(look.until_found(wanted, options).await)
}

/// The parameters that arguments name.
fn parameters(
    arguments: &[RunArg],
    profile: &Profile,
    provider: &ProviderName,
) -> Result<ListParameters, CommandFailure> {
    let mut parameters = ListParameters::new();
    for argument in arguments {
        let pair = match argument {
            RunArg::Named(text) => text.split_once('='),
            RunArg::Stdin => None,
        };
        let Some((name, value)) = pair else {
            let shown = match argument {
                RunArg::Named(text) => text,
                RunArg::Stdin => "-",
            };
            let what = format!("{shown} is not a parameter of a list");
            let fix = "write NAME=VALUE; runs are named without --latest and --all-active";
            return Err(CommandFailure::usage(what).fix(fix));
        };
        if parameters
            .insert(name.to_owned(), value.to_owned())
            .is_some()
        {
            let what = format!("the parameter {name} is given twice");
            return Err(CommandFailure::usage(what).fix("give it once"));
        }
    }
    profile
        .check_list_parameters(&parameters)
        .map_err(|problem| {
            let failure = CommandFailure::usage(format!("{provider}: {problem}"));
            match problem {
                ListProblem::Missing(name) => failure.fix(format!("add {name}=VALUE")),
                ListProblem::None => failure.fix("name its runs"),
                ListProblem::Unknown { .. } | ListProblem::Value { .. } => failure,
            }
        })?;
    Ok(parameters)
}

/// How a list is looked at.
struct ListLook {
    client: ApiClient,
    provider: ProviderName,
    parameters: ListParameters,
    /// The list has runs that go on only where their status is requested.
    has_unlisted: bool,
    /// The time that each request takes of the budget.
    pace: Duration,
    /// How long a list that cannot be read is requested again.
    connect_grace: Duration,
}

/// How far a search has come.
struct Search {
    began_at: Timestamp,
    /// The newest run, and its attempt, when the list was first read.
    first: Option<(RunRef, Option<u64>)>,
    /// How often the list was looked at.
    looks: u32,
    /// There is no time for another look.
    is_over: bool,
}

impl Search {
    fn begin() -> Self {
        Self {
            began_at: Timestamp::now(),
            first: None,
            looks: 0,
            is_over: false,
        }
    }

    /// Whether a run goes on, or began or ended since the search began.
    fn is_new(&self, entry: &ListEntry) -> bool {
        Verdict::of_status(&entry.status).is_none()
            || entry.completed_at.is_some_and(|at| at >= self.began_at)
            || (self.looks > 1 && self.first != Some((entry.run_id.clone(), entry.attempt)))
    }
}

impl ListLook {
    async fn until_found(&self, wanted: Wanted, options: &OutputOptions) -> ListOutcome {
        let mut search = Search::begin();
        // The grace for a run begins with the first list that can be read; until then there is that for a connection.
        let mut failing_since = Some(Instant::now());
        let mut began = Instant::now();
        loop {
            let found = match self.look(wanted).await {
                Ok(found) => found,
                Err(error) => {
                    let since = *failing_since.get_or_insert_with(Instant::now);
                    let wait = BETWEEN.max(error.retry_after().unwrap_or_default());
                    if is_lasting(&error) || since.elapsed() + wait > self.connect_grace {
                        return self.fail(&error, options);
                    }
                    if search.looks == 0 && options.progress {
                        let why = error.describe();
                        let provider = &self.provider;
                        options.screen.line(&format!(
                            "{provider}: the list cannot be read yet: {why}; trying again"
                        ));
                    }
                    search.looks = search.looks.max(1);
                    sleep(wait).await;
                    continue;
                }
            };
            if failing_since.take().is_some() {
                began = Instant::now();
                search.looks = 0;
            }
            search.looks += 1;
            search.is_over = began.elapsed() + BETWEEN > GRACE;
            let outcome = match wanted {
                Wanted::AllActive => self.active_runs(found, search.is_over, options),
                Wanted::Latest => self.latest_run(found, &mut search, options),
            };
            if let Some(outcome) = outcome {
                return outcome;
            }
            if search.looks == 1 && options.progress {
                options.screen.line(&format!(
                    "{}: no run of the list goes on; looking again for 10s",
                    self.provider
                ));
            }
            sleep(BETWEEN).await;
        }
    }

    /// All runs that were found, or the end of the search; `None` where the list is looked at again.
    fn active_runs(
        &self,
        found: RunsFound,
        is_over: bool,
        options: &OutputOptions,
    ) -> Option<ListOutcome> {
        if found.entries.is_empty() {
            if is_over && options.progress {
                let line = format!("{}: no run goes on", self.provider);
                options.screen.line(&line);
            }
            return is_over.then_some(ListOutcome::End(0));
        }
        if found.more {
            options.screen.line(&format!(
                "{}: more runs go on than can be watched here; the first {} are",
                self.provider,
                found.entries.len()
            ));
        }
        let runs = found.entries.into_iter().map(|entry| entry.run_id);
        Some(ListOutcome::Runs(runs.collect()))
    }

    /// The newest run, if it began or ended during the search or goes on; at the end of the search in any case.
    fn latest_run(
        &self,
        found: RunsFound,
        search: &mut Search,
        options: &OutputOptions,
    ) -> Option<ListOutcome> {
        match newest(found.entries) {
            Some(entry) if search.is_over || search.is_new(&entry) => {
                Some(ListOutcome::Runs(vec![entry.run_id]))
            }
            None if search.is_over => {
                let what = format!("{}: the list has no such run", self.provider);
                let failure = CommandFailure::failed(what, Verdict::NotFound.exit_code())
                    .fix("check the parameters, or start the run first");
                Some(ListOutcome::End(options.fail(&failure)))
            }
            newest => {
                if search.looks == 1 {
                    search.first = newest.map(|entry| (entry.run_id, entry.attempt));
                }
                None
            }
        }
    }

    /// Requests the pages that show what is wanted.
    async fn look(&self, wanted: Wanted) -> Result<RunsFound, ApiError> {
        if wanted == Wanted::AllActive {
            return self.pages(true, MAX_PAGES).await;
        }
        let mut found = self.pages(false, 1).await?;
        if self.has_unlisted {
            found
                .entries
                .extend(self.pages(true, MAX_PAGES).await?.entries);
        }
        Ok(found)
    }

    /// Requests at most `pages` pages: of all runs, or of those that go on.
    async fn pages(&self, only_active: bool, pages: usize) -> Result<RunsFound, ApiError> {
        let mut request = ListRequest {
            parameters: self.parameters.clone(),
            only_active,
            ..ListRequest::default()
        };
        let mut seen = BTreeSet::new();
        let mut found = RunsFound {
            entries: Vec::new(),
            more: false,
        };
        for page in 1.. {
            let sent = Instant::now();
            let reply = self.client.list(&self.provider, &request).await;
            let list = reply.result?;
            for entry in list.entries {
                let goes_on = Verdict::of_status(&entry.status).is_none();
                if (goes_on || !only_active) && seen.insert(entry.run_id.clone()) {
                    found.entries.push(entry);
                }
            }
            request.page = list.next;
            if found.entries.len() > MAX_RUNS {
                found.more = true;
                found.entries.truncate(MAX_RUNS);
            }
            if request.page.is_none() || found.more {
                break;
            }
            if page == pages {
                found.more = only_active;
                break;
            }
            let pause = reply.pause.unwrap_or_default();
            sleep_until(sent + pause.max(self.pace * reply.requests)).await;
        }
        Ok(found)
    }

    /// Shows why there is no list, and returns the exit code for that.
    fn fail(&self, error: &ApiError, options: &OutputOptions) -> ListOutcome {
        let what = format!(
            "{}: the list cannot be read: {}",
            self.provider,
            error.describe()
        );
        let code = match error {
            error if error.is_unauthorized() => KEY_REFUSED,
            error if error.is_not_found() => Verdict::NotFound.exit_code(),
            _ => Verdict::Unreachable.exit_code(),
        };
        ListOutcome::End(options.fail(&CommandFailure::failed(what, code)))
    }
}

/// Whether another request would have the same answer.
fn is_lasting(error: &ApiError) -> bool {
    error.is_unauthorized() || error.is_absent() || matches!(error, ApiError::List(_))
}

/// The newest run: by when it was created or started; of those without a time, the first.
fn newest(entries: Vec<ListEntry>) -> Option<ListEntry> {
    let at = |entry: &ListEntry| entry.created_at.or(entry.started_at);
    entries.into_iter().reduce(|newest, entry| {
        if at(&entry) > at(&newest) {
            entry
        } else {
            newest
        }
    })
}
