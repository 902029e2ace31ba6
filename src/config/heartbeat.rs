//! `[heartbeat]`: where the daemon reports that it makes progress.

use std::time::Duration;

use super::Secret;
use super::load::duration;
use super::reader::{SettingsReader, Table};
use super::rules::http_url;

/// Shortest interval: a request may take as long.
pub const MIN_BEAT_INTERVAL: Duration = Duration::from_secs(10);

/// Longest interval: a dead-man's switch that learns of an outage later than this is of little use.
pub const MAX_BEAT_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// `[heartbeat]`: where the daemon reports that it makes progress.
#[derive(Debug, Clone)]
pub struct HeartbeatSettings {
    /// The address of the dead-man's switch, http or https; who has it can report progress, so it is a secret.
    pub url: Secret,
    /// Time between two requests, [`MIN_BEAT_INTERVAL`] to [`MAX_BEAT_INTERVAL`]. Default: 1 min.
    pub interval: Duration,
}

/// Reads `[heartbeat]`; `None` without an address.
pub(super) fn read_heartbeat(
    reader: &mut SettingsReader<'_>,
    root: &mut Table,
) -> Option<HeartbeatSettings> {
    let mut table = reader.table(root, "heartbeat");
    let table = &mut table;
    let url = reader.take_secret(table, "url");
    if url.is_none() {
        reader.show_unset(table, "url_file");
    }
    let url = url.and_then(|found| reader.secret(found, |text| http_url(text).map(drop)));
    let interval = duration(
        reader,
        table,
        "interval",
        MIN_BEAT_INTERVAL,
        MAX_BEAT_INTERVAL,
    );
    reader.finish_rest(table);
    Some(HeartbeatSettings {
        url: url?,
        interval,
    })
}
