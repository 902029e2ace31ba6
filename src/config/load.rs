//! Reads every key of the configuration but those of sinks, and checks them all.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;

use super::discover::read_discoveries;
use super::effective::Effective;
use super::heartbeat::read_heartbeat;
use super::problem::{Origin, Problem, Problems};
use super::providers::{Providers, read_providers};
use super::proxy::{BadProxy, Proxies};
use super::reader::{SettingsReader, Table, Violation};
use super::rules::{DAY, MIN_TIMEOUT, http_url, refusal};
use super::sinks::read_sinks;
use super::source::{Merged, Sources};
use super::store::read_store;
use super::{
    ApiSettings, ControlSettings, EventsMode, LogFormat, LogLevel, LogSettings, Secret,
    SecretError, Settings, StaticWatch, WatchSettings, check_key, key_of_variable,
};
use crate::domain::{OverdueAfter, ProviderName};
use crate::redact::REDACTED;

/// Shortest interval between two polls of a run.
pub const MIN_INTERVAL: Duration = Duration::from_millis(50);
/// Longest interval between two polls of a run.
pub const MAX_INTERVAL: Duration = DAY;
/// Shortest time that can be given to a watch.
pub const MIN_DEADLINE: Duration = Duration::from_millis(1);
/// Longest time that can be given to a watch, and longest retention: ten years.
pub const MAX_DEADLINE: Duration = Duration::from_secs(3650 * 24 * 60 * 60);

/// Longest time for a connection or a request.
pub(super) const MAX_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// Longest name of a watch, in characters: it is the title of notifications.
pub(crate) const NAME_CHARS: usize = 200;

/// Longest path of a Unix socket, in bytes: `sun_path` of unix(7) less its end mark.
const SOCKET_PATH_BYTES: usize = 107;

/// The value of `store.path` for a store without a file.
pub const IN_MEMORY: &str = ":memory:";

/// The environment variable with the API key.
const KEY_VARIABLE: &str = "CREWSHIP_API_KEY";

/// The systemd credential with the API key.
const KEY_CREDENTIAL: &str = "crewship-api-key";

/// A configuration without problems.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Its content.
    pub settings: Settings,
    /// The files that were read, the later ones winning.
    pub sources: Vec<PathBuf>,
    /// Every key with its value and origin, without secrets.
    pub effective: Effective,
}

impl Default for Settings {
    /// The built-in defaults: no key, no sinks, no watches, and no paths, as those depend on the
    /// environment.
    fn default() -> Self {
        load(&Sources::default())
            .expect("the built-in defaults are legal")
            .settings
    }
}

/// Loads, merges and checks the configuration.
///
/// The API key comes from the first of these that is set: `RUNWATCH_API__KEY` or
/// `RUNWATCH_API__KEY_FILE`; `CREWSHIP_API_KEY`; `api.key` or `api.key_file` in a file; the systemd
/// credential `crewship-api-key`, unless it is blank. To have none is no problem here.
///
/// Secret files are read once, to find mistakes early, and again whenever they are used.
///
/// # Errors
/// Everything that is wrong, at once. When a file cannot be read or parsed, keys that are absent are
/// not reported: they may stand in that file.
pub fn load(sources: &Sources) -> Result<Loaded, Problems> {
    let mut problems = Vec::new();
    let merged = Merged::read(sources, &mut problems);
    let mut reader = SettingsReader::new(sources, &merged, problems);
    let mut root = reader.root();
    reader.move_table(&mut root, "providers", ProviderName::CREWSHIP, "api");
    let api = read_api(&mut reader, &mut root, sources);
    let providers = read_providers(&mut reader, &mut root, api.clone(), sources);
    let watch = read_watch(&mut reader, &mut root);
    let store = read_store(&mut reader, &mut root);
    let control = read_control(&mut reader, &mut root);
    let log = read_log(&mut reader, &mut root);
    let heartbeat = read_heartbeat(&mut reader, &mut root);
    let sinks = read_sinks(&mut reader, &mut root);
    let settings = Settings {
        api,
        watch,
        store,
        control,
        log,
        heartbeat,
        watches: read_watches(&mut reader, &mut root, &providers),
        discoveries: read_discoveries(
            &mut reader,
            &mut root,
            &providers,
            &sinks.keys().cloned().collect(),
        ),
        sinks,
        providers,
    };
    reader.finish(root);
    if reader.problems.is_empty() {
        Ok(Loaded {
            settings,
            sources: merged.files.clone(),
            effective: reader.effective,
        })
    } else {
        let mut problems = reader.problems;
        problems.sort_by_key(|problem| reading_order(&merged.files, problem));
        Err(Problems(problems))
    }
}

/// The provider of a bare ID, by a configuration that may have problems elsewhere.
pub fn default_provider(sources: &Sources) -> Option<String> {
    let mut problems = Vec::new();
    let merged = Merged::read(sources, &mut problems);
    let mut reader = SettingsReader::new(sources, &merged, problems);
    let mut root = reader.root();
    let item = reader.take(&mut root, "default_provider", None)?;
    item.as_text().map(ToOwned::to_owned)
}

/// Where the daemon's socket is, by a configuration that may have problems elsewhere: a client of the
/// daemon what is wrong must not be stopped by that very thing.
pub fn control_socket(sources: &Sources) -> Option<PathBuf> {
    let mut problems = Vec::new();
    let merged = Merged::read(sources, &mut problems);
    let mut reader = SettingsReader::new(sources, &merged, problems);
    let mut root = reader.root();
    read_control(&mut reader, &mut root).socket
}

/// File by file and down each file; then what stands elsewhere.
fn reading_order(files: &[PathBuf], problem: &Problem) -> (usize, (usize, usize)) {
    match &problem.origin {
        Some(Origin::File { path, position }) => (
            files
                .iter()
                .position(|file| file == path)
                .unwrap_or(files.len()),
            position.unwrap_or_default(),
        ),
        Some(Origin::Default | Origin::Environment { .. } | Origin::Credential { .. }) | None => {
            (usize::MAX, (0, 0))
        }
    }
}

fn read_api(reader: &mut SettingsReader<'_>, root: &mut Table, sources: &Sources) -> ApiSettings {
    let mut table = reader.table(root, "api");
    let table = &mut table;
    let base_url = match reader.take(table, "base_url", None) {
        // Before the @ may stand a password, even if the text is no URL.
        Some(item) if item.as_text().is_some_and(|text| text.contains('@')) => {
            let what = "the URL has a user name or password, or another @";
            reader.refuse_unseen(&item, what, "remove it; the key goes to api.key_file");
            None
        }
        Some(item) => reader.parsed(&item, base_url),
        None => None,
    };
    let key = read_key(reader, table, sources);
    if let Err(BadProxy { variable, what }) =
        Proxies::read(|name| sources.path_of(name).map(Into::into))
    {
        let origin = Origin::Environment {
            variable: variable.to_owned(),
        };
        reader.outside(
            origin,
            "the proxy",
            &what,
            "write the address of an HTTP proxy such as http://proxy.example:3128",
        );
    }
    let requests_per_minute = integer(reader, table, "requests_per_minute", 1_000_000);
    let connect_timeout = duration(reader, table, "connect_timeout", MIN_TIMEOUT, MAX_TIMEOUT);
    let request_timeout = duration(reader, table, "request_timeout", MIN_TIMEOUT, MAX_TIMEOUT);
    let size = reader.take(table, "max_response_bytes", None);
    // Below 1 KiB no answer fits; above 1 GiB the limit protects nothing.
    let max_response_bytes = size.and_then(|item| reader.size(&item, 1 << 10, 1 << 30));
    let run_url = reader
        .take(table, "run_url", None)
        .and_then(|item| reader.parsed(&item, run_url))
        .flatten();
    let settings = ApiSettings {
        base_url: base_url.unwrap_or_default(),
        key,
        requests_per_minute,
        connect_timeout,
        request_timeout,
        max_response_bytes: max_response_bytes.unwrap_or_default(),
        run_url,
    };
    reader.finish_rest(table);
    settings
}

fn read_key(
    reader: &mut SettingsReader<'_>,
    table: &mut Table,
    sources: &Sources,
) -> Option<Secret> {
    let configured = reader.take_secret(table, "key");
    if let Some(found) = configured {
        let explicit = matches!(found.place().origin, Origin::Environment { .. });
        // A key of the user's own also stands in for a file that only the service may read.
        if explicit || sources.path_of(KEY_VARIABLE).is_none() {
            return reader.secret(found, header_safe);
        }
    }
    if let Some(value) = sources.path_of(KEY_VARIABLE) {
        let origin = Origin::Environment {
            variable: KEY_VARIABLE.to_owned(),
        };
        return match key_of_variable(&value) {
            Ok(key) => {
                reader.show_outside(table, "key", REDACTED, origin);
                Some(key)
            }
            Err((what, fix)) => {
                let what = format!("this is not a key: {what}");
                reader.outside(origin, "api.key", &what, fix);
                None
            }
        };
    }
    let credential = sources
        .path_of("CREDENTIALS_DIRECTORY")
        .map(|folder| folder.join(KEY_CREDENTIAL));
    if let Some(path) = credential.filter(|path| path.exists()) {
        let origin = Origin::Credential {
            name: KEY_CREDENTIAL.to_owned(),
        };
        let secret = Secret::File(path.clone());
        match secret.read() {
            Ok(_) => {
                reader.show_outside(table, "key_file", path.display().to_string(), origin);
                return Some(secret);
            }
            // Blank is what a unit falls back to with `SetCredential=` while there is no file.
            Err(SecretError::Empty { .. }) => {}
            Err(error) => {
                reader.outside(
                    origin,
                    "api.key",
                    &error.to_string(),
                    "correct the credential, or remove it",
                );
                return None;
            }
        }
    }
    reader.show_unset(table, "key");
    None
}

fn read_watch(reader: &mut SettingsReader<'_>, root: &mut Table) -> WatchSettings {
    let mut table = reader.table(root, "watch");
    let table = &mut table;
    let initial_interval = duration(
        reader,
        table,
        "initial_interval",
        MIN_INTERVAL,
        MAX_INTERVAL,
    );
    let multiplier = number(
        reader,
        table,
        "multiplier",
        |value| (1.0..=100.0).contains(&value),
        "a number from 1 to 100",
    );
    let max_interval = read_max_interval(reader, table, initial_interval);
    let jitter = number(
        reader,
        table,
        "jitter",
        |value| (0.0..1.0).contains(&value),
        "a number from 0 to less than 1",
    );
    let deadline = duration(reader, table, "deadline", MIN_DEADLINE, MAX_DEADLINE);
    let connect_grace = duration(
        reader,
        table,
        "connect_grace",
        Duration::from_millis(1),
        DAY,
    );
    let not_found_grace = duration(reader, table, "not_found_grace", Duration::ZERO, DAY);
    let overdue = reader.take(table, "overdue_after", None);
    let overdue_after = overdue.and_then(|item| match item.as_text() {
        Some("") => reader.text(&item).and(None),
        Some("auto") => reader.text(&item).map(|_auto| OverdueAfter::Unusual),
        _ => reader
            .duration(&item, MIN_DEADLINE, MAX_DEADLINE)
            .map(OverdueAfter::Watched),
    });
    let max_in_flight = integer(reader, table, "max_in_flight", 65_536);
    let events = reader
        .take(table, "events", None)
        .and_then(|item| reader.parsed(&item, word));
    let max_streams = integer(reader, table, "max_streams", 1024);
    let settings = WatchSettings {
        initial_interval,
        multiplier,
        max_interval,
        jitter,
        deadline,
        connect_grace,
        not_found_grace,
        overdue_after: overdue_after.unwrap_or_default(),
        max_in_flight: usize::try_from(max_in_flight).unwrap_or(usize::MAX),
        events: events.unwrap_or(EventsMode::Auto),
        max_streams: usize::try_from(max_streams).unwrap_or(usize::MAX),
    };
    reader.finish_rest(table);
    settings
}

/// The longest interval, which must not be shorter than the first one.
fn read_max_interval(
    reader: &mut SettingsReader<'_>,
    table: &mut Table,
    initial_interval: Duration,
) -> Duration {
    let item = reader.take(table, "max_interval", None);
    let max_interval = item
        .as_ref()
        .and_then(|item| reader.duration(item, MIN_INTERVAL, MAX_INTERVAL))
        .unwrap_or_default();
    if let Some(item) = item.filter(|_| !max_interval.is_zero() && max_interval < initial_interval)
    {
        reader.refuse(
            &item,
            "this is shorter than watch.initial_interval",
            "raise it, or lower watch.initial_interval",
        );
    }
    max_interval
}

fn read_control(reader: &mut SettingsReader<'_>, root: &mut Table) -> ControlSettings {
    let mut table = reader.table(root, "control");
    let table = &mut table;
    let socket = own_path(reader, table, "socket");
    let listen_item = reader.take(table, "listen", None);
    let listen = listen_item
        .as_ref()
        .and_then(|item| reader.parsed(item, listen_address))
        .flatten();
    let found = reader.take_secret(table, "token");
    let given = found.is_some();
    if !given {
        reader.show_unset(table, "token_file");
    }
    let token = found.and_then(|found| reader.secret(found, header_safe));
    if let (Some(address), false, Some(item)) = (listen, given, &listen_item)
        && !address.ip().is_loopback()
    {
        let fix = "set control.token_file, or listen on 127.0.0.1 or [::1]";
        reader.refuse(
            item,
            "this address can be reached from other machines, and no token is set",
            fix,
        );
    }
    let public_url = match reader.take(table, "public_url", None) {
        // Before the @ may stand a password.
        Some(item) if item.as_text().is_some_and(|text| text.contains('@')) => {
            let what = "the URL has a user name or password, or another @";
            let fix = "remove it; who may see the page is decided by control.token_file";
            reader.refuse_unseen(&item, what, fix);
            None
        }
        Some(item) => reader.parsed(&item, public_url).flatten(),
        None => None,
    };
    let settings = ControlSettings {
        socket,
        listen,
        token,
        public_url,
    };
    reader.finish_rest(table);
    settings
}

fn read_log(reader: &mut SettingsReader<'_>, root: &mut Table) -> LogSettings {
    let mut table = reader.table(root, "log");
    let table = &mut table;
    let level = reader
        .take(table, "level", None)
        .and_then(|item| reader.parsed(&item, word))
        .unwrap_or(LogLevel::Info);
    let format = reader
        .take(table, "format", None)
        .and_then(|item| reader.parsed(&item, word))
        .unwrap_or(LogFormat::Text);
    reader.finish_rest(table);
    LogSettings { level, format }
}

/// One of a few words.
pub(super) fn word<T: clap::ValueEnum>(text: &str) -> Result<T, Violation> {
    T::from_str(text, false).map_err(|_unknown| {
        let words = T::value_variants()
            .iter()
            .filter_map(clap::ValueEnum::to_possible_value);
        let words: Vec<_> = words.map(|word| word.get_name().to_owned()).collect();
        (
            "the value is unknown".to_owned(),
            format!("write one of {}", words.join(", ")),
        )
    })
}

fn read_watches(
    reader: &mut SettingsReader<'_>,
    root: &mut Table,
    providers: &Providers,
) -> Vec<StaticWatch> {
    let mut watches: Vec<StaticWatch> = Vec::new();
    for mut table in reader.tables(root, "watches") {
        let table = &mut table;
        let id = reader.take(table, "run_id", None);
        if id.is_none() {
            reader.missing(
                table,
                "run_id",
                "write the ID that Create Run answered with",
            );
        }
        let provider = reader
            .take(table, "provider", None)
            .and_then(|item| reader.parsed(&item, provider_name));
        let run_id = id.as_ref().and_then(|item| {
            reader.parsed(item, |text| {
                let run = match &provider {
                    Some(provider) => providers.run_of(provider, text),
                    None => providers.run(text),
                };
                run.map_err(|error| (error, "correct it".to_owned()))
            })
        });
        let name = reader
            .take(table, "name", None)
            .and_then(|item| reader.parsed(&item, watch_name));
        let labels = reader.labels(table);
        reader.finish_rest(table);
        if let (Some(run_id), Some(item)) = (run_id, id) {
            if watches.iter().any(|watch| watch.run_id == run_id) {
                reader.refuse(&item, "this run is listed twice", "keep one of them");
            }
            watches.push(StaticWatch {
                run_id,
                name,
                labels,
            });
        }
    }
    watches
}

pub(super) fn provider_name(text: &str) -> Result<ProviderName, Violation> {
    ProviderName::new(text).map_err(|error| (error.to_string(), "correct it".to_owned()))
}

/// A path of the daemon's own that has a default depending on the environment.
pub(super) fn own_path(
    reader: &mut SettingsReader<'_>,
    table: &mut Table,
    name: &str,
) -> Option<PathBuf> {
    let Some(item) = reader.take(table, name, None) else {
        reader.show_unset(table, name);
        return None;
    };
    let path = if name == "path" && item.as_text() == Some(IN_MEMORY) {
        reader.text(&item).map(PathBuf::from)
    } else {
        reader.path(&item)
    };
    if item.as_text() == Some("") {
        reader.refuse(
            &item,
            "this path is empty",
            "write a path, or remove the key for the default",
        );
    }
    let too_long = |path: &Path| name == "socket" && path.as_os_str().len() > SOCKET_PATH_BYTES;
    // A default that is too long hurts only the daemon, which reports it when it opens the socket.
    if path.as_deref().is_some_and(too_long) && item.place.origin != Origin::Default {
        let what = format!("the path of a socket can have at most {SOCKET_PATH_BYTES} bytes");
        reader.refuse(&item, what, "use a shorter folder");
    }
    path
}

/// A duration that has a built-in default.
pub(super) fn duration(
    reader: &mut SettingsReader<'_>,
    table: &mut Table,
    name: &str,
    least: Duration,
    most: Duration,
) -> Duration {
    reader
        .take(table, name, None)
        .and_then(|item| reader.duration(&item, least, most))
        .unwrap_or_default()
}

/// A number from 1 up that has a built-in default.
fn integer(reader: &mut SettingsReader<'_>, table: &mut Table, name: &str, most: u32) -> u32 {
    reader
        .take(table, name, None)
        .and_then(|item| reader.integer(&item, 1, most))
        .unwrap_or_default()
}

/// A number that has a built-in default.
fn number(
    reader: &mut SettingsReader<'_>,
    table: &mut Table,
    name: &str,
    legal: fn(f64) -> bool,
    range: &str,
) -> f64 {
    reader
        .take(table, name, None)
        .and_then(|item| reader.number(&item, legal, range))
        .unwrap_or_default()
}

/// Checks the base URL of the API and takes the slash off its end.
pub(super) fn base_url(text: &str) -> Result<String, Violation> {
    let url = http_url(text)?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err(refusal(
            "the URL has a query or a fragment",
            "remove all from ? or # on",
        ));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// The template of a link to a run; empty is none.
pub(super) fn run_url(text: &str) -> Result<Option<String>, Violation> {
    if text.is_empty() {
        return Ok(None);
    }
    if !text.contains("{run_id}") {
        return Err(refusal(
            "there is no {run_id} in it",
            "put {run_id} where the ID of the run belongs",
        ));
    }
    http_url(&text.replace("{run_id}", "run_1"))?;
    Ok(Some(text.to_owned()))
}

/// The address at which browsers find the page; empty is none. Its path ends in a slash.
fn public_url(text: &str) -> Result<Option<Url>, Violation> {
    if text.is_empty() {
        return Ok(None);
    }
    let mut url = http_url(&base_url(text)?)?;
    let path = format!("{}/", url.path().trim_end_matches('/'));
    url.set_path(&path);
    Ok(Some(url))
}

/// Address and port to listen on; empty is none.
fn listen_address(text: &str) -> Result<Option<SocketAddr>, Violation> {
    if text.is_empty() {
        return Ok(None);
    }
    let fix = "write an IP address and a port, such as 127.0.0.1:9477 or [::1]:9477";
    text.parse()
        .map(Some)
        .map_err(|error| (format!("this is not an address ({error})"), fix.to_owned()))
}

/// A name of a watch.
pub(crate) fn watch_name(text: &str) -> Result<String, Violation> {
    let length = text.chars().count();
    if text.trim().is_empty() || length > NAME_CHARS || text.chars().any(char::is_control) {
        let what = format!("a name has 1 to {NAME_CHARS} characters and no line ends");
        return Err((what, "correct it, or leave it out".to_owned()));
    }
    Ok(text.to_owned())
}

/// A secret that is sent as part of a header, after `Bearer`.
pub(super) fn header_safe(text: &str) -> Result<(), Violation> {
    check_key(text).map_err(|(what, fix)| refusal(what, fix))
}
