//! `runwatch store`: copies the store, makes or changes its tables, and checks it.

mod check;
mod copy;
mod migrate;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use check::check;
pub use copy::copy;
pub use migrate::migrate;

use super::failure::CommandFailure;
use crate::app::shared_connection;
use crate::blocking;
use crate::config::{IN_MEMORY, Secret, StoreSettings};
use crate::store::{CopyError, CopyPlace, PostgresSettings};
use crate::text::error_chain;

/// Exit code when the store cannot be used, or is not as it should be.
const NOT_DONE: u8 = 1;

/// How long the server is given to connect and for each statement that is not part of a copy.
const STATEMENT_LIMIT: Duration = Duration::from_secs(10);

/// The name of these commands for people who look at the connections of the server.
const CONNECTION: &str = "store";

/// The configured store.
///
/// # Errors
/// When it is in memory, or has no place.
async fn configured(settings: &StoreSettings) -> anyhow::Result<CopyPlace> {
    if let Some(shared) = &settings.shared {
        let connection = shared_connection(shared, CONNECTION).await?;
        return Ok(CopyPlace::Server(PostgresSettings {
            migrate: true,
            ..connection
        }));
    }
    let path = settings.path.clone().ok_or_else(|| {
        CommandFailure::usage("there is no store: HOME and STATE_DIRECTORY are not set")
            .fix("set store.path or store.url_file")
    })?;
    if path.as_os_str() == IN_MEMORY {
        let what = "the configured store is in memory, and is gone when its daemon ends";
        return Err(CommandFailure::usage(what)
            .fix("name a file, or set store.path or store.url_file")
            .into());
    }
    Ok(CopyPlace::File(path))
}

/// The database whose URL is in a file.
///
/// # Errors
/// When the file cannot be read.
async fn server(
    url_file: &Path,
    schema: &str,
    ca_file: Option<PathBuf>,
) -> anyhow::Result<CopyPlace> {
    let secret = Secret::File(url_file.to_owned());
    let url = blocking::run("store-url", move || secret.read()).await??;
    Ok(CopyPlace::Server(PostgresSettings {
        url,
        url_file: Some(url_file.to_owned()),
        schema: schema.to_owned(),
        ca_file,
        migrate: true,
        statement_limit: STATEMENT_LIMIT,
        name: CONNECTION.to_owned(),
    }))
}

/// What a command ends with that did not do it.
fn not_done(error: &CopyError) -> CommandFailure {
    CommandFailure::failed(error_chain(error), NOT_DONE)
}
