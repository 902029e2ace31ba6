//! Where configuration is read from, and the merging of all of it.
//!
//! The `config` crate merges four layers, the later ones winning: built-in defaults, the files in
//! order, the environment. Tables are merged key by key; any other value, lists included, replaces
//! the earlier one. Each value keeps its origin.
//!
//! Files are parsed here and not by `config::File`: that one forgets line and column, makes paths
//! relative to the current folder, and repeats the offending line in its error, which may hold a key.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use config::{Config, ConfigError, Environment, Map, Source, Value};

use super::problem::{Origin, Problem};
use crate::blocking;

/// Where to read configuration from. Nothing else is looked at, so a test decides it all.
#[derive(Clone, Default)]
pub struct Sources {
    /// The one file to read, from `--config` or `RUNWATCH_CONFIG`; it must exist.
    pub explicit: Option<PathBuf>,
    /// The files to read when none is given, the later ones winning; those that do not exist are
    /// passed over.
    pub files: Vec<PathBuf>,
    /// The environment.
    pub environment: BTreeMap<OsString, OsString>,
}

/// Why there is no place for the socket, and what to do; for the daemon and its clients.
pub(crate) const NO_SOCKET_PLACE: &str = "no place for the socket: XDG_RUNTIME_DIR is not set to an absolute path, as \
    under su, sudo and cron; set it (export XDG_RUNTIME_DIR=/run/user/$(id -u)), or set control.socket";

/// The system's configuration file.
const SYSTEM_FILE: &str = "/etc/runwatch/config.toml";

impl Sources {
    /// The sources of a real process: `explicit`, else `/etc/runwatch/config.toml` and
    /// `$XDG_CONFIG_HOME/runwatch/config.toml`, and the process's environment.
    ///
    /// An empty path counts as none, so that `RUNWATCH_CONFIG=` is as good as unset.
    pub fn from_process(explicit: Option<PathBuf>) -> Self {
        let mut environment: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
        // A service may run without HOME; the user database knows it then.
        if let (None, Some(home)) = (environment.get(OsStr::new("HOME")), std::env::home_dir()) {
            environment.insert("HOME".into(), home.into());
        }
        let explicit = explicit.filter(|path| !path.as_os_str().is_empty());
        let mut sources = Self {
            explicit,
            files: vec![SYSTEM_FILE.into()],
            environment,
        };
        sources.files.extend(sources.user_file());
        sources
    }

    /// The user's own configuration file, existing or not: `$XDG_CONFIG_HOME`, else `~/.config`,
    /// and `/runwatch/config.toml`. `None` without a home.
    pub fn user_file(&self) -> Option<PathBuf> {
        Some(
            self.xdg_dir("XDG_CONFIG_HOME", ".config")?
                .join("runwatch/config.toml"),
        )
    }

    /// The value of a variable as a path; `None` when it is unset or empty.
    pub(crate) fn path_of(&self, variable: &str) -> Option<PathBuf> {
        self.environment
            .get(OsStr::new(variable))
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    }

    /// An XDG base directory. A relative one is ignored, as the specification requires.
    fn xdg_dir(&self, variable: &str, below_home: &str) -> Option<PathBuf> {
        let set = self.path_of(variable).filter(|path| path.is_absolute());
        set.or_else(|| Some(self.path_of("HOME")?.join(below_home)))
    }

    /// The first directory that systemd gave in `variable`.
    fn systemd_dir(&self, variable: &str) -> Option<PathBuf> {
        let list = self.path_of(variable)?;
        std::env::split_paths(&list).find(|path| path.is_absolute())
    }

    /// Default of `store.path`.
    fn store_path(&self) -> Option<PathBuf> {
        let user = || {
            Some(
                self.xdg_dir("XDG_STATE_HOME", ".local/state")?
                    .join("runwatch"),
            )
        };
        Some(
            self.systemd_dir("STATE_DIRECTORY")
                .or_else(user)?
                .join("runwatch.db"),
        )
    }

    /// Default of `control.socket`. There is no stand-in for `$XDG_RUNTIME_DIR`: any other folder
    /// might let other users in.
    pub fn socket_path(&self) -> Option<PathBuf> {
        let user = || {
            Some(
                self.path_of("XDG_RUNTIME_DIR")
                    .filter(|path| path.is_absolute())?
                    .join("runwatch"),
            )
        };
        Some(
            self.systemd_dir("RUNTIME_DIRECTORY")
                .or_else(user)?
                .join("runwatch.sock"),
        )
    }
}

impl fmt::Debug for Sources {
    /// Without the environment, which holds secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources")
            .field("explicit", &self.explicit)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

/// Built-in defaults, written as they would be in the environment. Sinks have theirs beside their
/// keys, since their names are not known here. What is not listed is unset.
const DEFAULTS: [(&str, &str); 30] = [
    ("api.base_url", "https://api.crewship.dev"),
    // One request a second: enough for dozens of runs at the longest interval, and no burden to the API.
    ("api.requests_per_minute", "60"),
    ("api.connect_timeout", "5s"),
    ("api.request_timeout", "15s"),
    // Room for a run whose output is a long text, and an end to an answer that never ends.
    ("api.max_response_bytes", "8MiB"),
    ("api.run_url", ""),
    ("watch.initial_interval", "1s"),
    // So the wait is at most about a fifth of the time already waited.
    ("watch.multiplier", "1.2"),
    ("watch.max_interval", "30s"),
    ("watch.jitter", "0.1"),
    ("watch.deadline", "24h"),
    // Long enough for a network that comes up, and short enough for a person with a wrong address.
    ("watch.connect_grace", "30s"),
    // A run just created may not be known everywhere yet.
    ("watch.not_found_grace", "2m"),
    ("watch.overdue_after", ""),
    ("watch.max_in_flight", "64"),
    ("watch.events", "auto"),
    // Each is a connection that stays open; the runs that may end soon are few.
    ("watch.max_streams", "16"),
    ("store.retention", "7d"),
    ("store.url_file", ""),
    ("store.schema", "runwatch"),
    // Long enough for a network that is down for some seconds, and short enough for the deadline of a run.
    ("store.lease", "15s"),
    ("store.ca_file", ""),
    ("store.migrate", "auto"),
    ("control.listen", ""),
    ("control.token_file", ""),
    ("control.public_url", ""),
    ("log.level", "info"),
    ("log.format", "text"),
    ("heartbeat.url_file", ""),
    // The shortest period that Healthchecks takes (healthchecks.io/docs/configuring_checks/).
    ("heartbeat.interval", "1m"),
];

/// All layers, merged, with the origin of each value.
pub(super) struct Merged {
    /// The merged tree.
    pub(super) tree: Map<String, Value>,
    /// The files that were read, in order.
    pub(super) files: Vec<PathBuf>,
    /// Whether every file could be read and parsed.
    pub(super) complete: bool,
    /// Variables by the key path they set.
    variables: BTreeMap<String, String>,
    /// Where tables stand: `config` gives merged tables no origin.
    tables: BTreeMap<String, Origin>,
    /// Line and column of each key, by the number of its file and its path: `config` knows values only.
    keys: BTreeMap<(usize, String), (usize, usize)>,
}

/// A layer with its rank: a higher one wins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SourcePlace {
    /// Where the value stands.
    pub(super) origin: Origin,
    /// 0 for defaults, then the files, then the environment.
    pub(super) rank: usize,
}

/// Largest configuration file, in bytes.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

fn read(path: &Path) -> io::Result<String> {
    let bytes = blocking::read_file(path, MAX_FILE_BYTES)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has more than {MAX_FILE_BYTES} bytes"),
        ));
    }
    blocking::text(bytes)
}

impl Merged {
    /// Reads and merges everything; what cannot be read is added to `problems`.
    pub(super) fn read(sources: &Sources, problems: &mut Vec<Problem>) -> Self {
        let mut merged = Self {
            tree: Map::new(),
            files: Vec::new(),
            complete: true,
            variables: BTreeMap::new(),
            tables: BTreeMap::new(),
            keys: BTreeMap::new(),
        };
        let mut builder = Config::builder();
        let paths = [
            ("store.path", sources.store_path()),
            ("control.socket", sources.socket_path()),
        ];
        let paths = paths
            .iter()
            .filter_map(|(key, path)| Some((*key, path.as_ref()?.to_str()?)));
        for (key, value) in DEFAULTS.into_iter().chain(paths) {
            builder = builder
                .set_default(key, value)
                .expect("the built-in keys are valid paths");
        }
        let required = sources.explicit.is_some();
        let wanted = sources
            .explicit
            .as_ref()
            .map_or(sources.files.as_slice(), std::slice::from_ref);
        for path in wanted {
            match read(path) {
                Ok(text) => {
                    if let Some(layer) = merged.parse(path, &text, problems) {
                        builder = builder.add_source(layer);
                    }
                    merged.files.push(path.clone());
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound && !required => {}
                Err(error) => problems.push(Problem {
                    origin: Some(Origin::File {
                        path: path.clone(),
                        position: None,
                    }),
                    key: String::new(),
                    value: None,
                    what: format!("the file cannot be read ({error})"),
                    fix: "check the path and its permissions".to_owned(),
                }),
            }
        }
        merged.complete = problems.is_empty();
        let variables = merged.select_variables(&sources.environment, problems);
        builder = builder.add_source(
            Environment::with_prefix("RUNWATCH")
                .prefix_separator("_")
                .separator("__")
                .try_parsing(false)
                .source(Some(variables)),
        );
        // Every layer is in memory and every top-level key is a plain word, so nothing can fail.
        merged.tree = builder
            .build()
            .and_then(|built| built.collect())
            .expect("layers in memory are readable");
        merged
    }

    /// Parses one file into a layer.
    fn parse(&mut self, path: &Path, text: &str, problems: &mut Vec<Problem>) -> Option<Layer> {
        let file = self.files.len();
        let lines = LineIndex::of(text);
        let at = |offset: usize| Origin::File {
            path: path.to_owned(),
            position: Some(lines.position(offset)),
        };
        let table = match toml::de::DeTable::parse(text) {
            Ok(table) => table.into_inner(),
            Err(error) => {
                problems.push(Problem {
                    origin: Some(at(error.span().map_or(0, |span| span.start))),
                    key: String::new(),
                    value: None,
                    what: format!(
                        "this is not valid TOML ({})",
                        error.message().replace('\n', ", ")
                    ),
                    fix: "correct it; https://toml.io has the rules".to_owned(),
                });
                return None;
            }
        };
        let mut layer = Conversion {
            file,
            lines: &lines,
            path,
            tables: &mut self.tables,
            keys: &mut self.keys,
        };
        let mut values = Map::new();
        for (key, value) in table {
            let start = key.span().start;
            let key = key.into_inner().into_owned();
            // `config` takes a top-level key for a path, in which brackets mean a place in a list.
            if is_plain(&key) {
                layer
                    .keys
                    .insert((file, key.clone()), lines.position(start));
                let value = layer.convert(&key, value);
                values.insert(key, value);
            } else {
                problems.push(Problem {
                    origin: Some(at(start)),
                    key: format!("{key:?}"),
                    value: None,
                    what: "there is no such section".to_owned(),
                    fix: "remove it, or write dots outside of quotes".to_owned(),
                });
            }
        }
        Some(Layer(values))
    }

    /// The variables that set a key: `RUNWATCH_` and `__` further on. The others with this prefix are
    /// no configuration: `RUNWATCH_CONFIG`, and what a `command` sink gives its program.
    fn select_variables(
        &mut self,
        environment: &BTreeMap<OsString, OsString>,
        problems: &mut Vec<Problem>,
    ) -> Map<String, String> {
        let mut selected = Map::new();
        for (name, value) in environment {
            let Some(name) = name.to_str() else { continue };
            let Some(rest) = name
                .strip_prefix("RUNWATCH_")
                .filter(|rest| rest.contains("__"))
            else {
                continue;
            };
            let key = rest.replace("__", ".").to_lowercase();
            let mut refuse = |what: &str, fix: &str| {
                problems.push(Problem {
                    origin: Some(Origin::Environment {
                        variable: name.to_owned(),
                    }),
                    key: key.clone(),
                    value: None,
                    what: what.to_owned(),
                    fix: fix.to_owned(),
                });
            };
            if !key.split('.').all(is_plain) {
                refuse(
                    "this names no key",
                    "write RUNWATCH_SECTION__KEY, such as RUNWATCH_API__BASE_URL",
                );
                continue;
            }
            let Some(value) = value.to_str() else {
                refuse("the value is not UTF-8", "set it to readable text");
                continue;
            };
            match self.variables.entry(key.clone()) {
                Entry::Vacant(entry) => {
                    entry.insert(name.to_owned());
                    selected.insert(name.to_owned(), value.to_owned());
                }
                Entry::Occupied(_) => {
                    refuse(
                        "another variable sets the same key",
                        "remove one; upper and lower case are the same",
                    );
                }
            }
        }
        selected
    }

    /// Where the value of `key` comes from.
    pub(super) fn place(&self, key: &str, value: &Value) -> SourcePlace {
        let Some(text) = value.origin() else {
            return SourcePlace {
                origin: Origin::Default,
                rank: 0,
            };
        };
        match parse_mark(text) {
            Some((file, line, column)) => {
                let path = self.files.get(file).cloned().unwrap_or_default();
                SourcePlace {
                    origin: Origin::File {
                        path,
                        position: Some((line, column)),
                    },
                    rank: file + 1,
                }
            }
            // The only source whose origin is not one of our marks is `Environment`.
            None => {
                let variable = self
                    .variables
                    .get(&key.to_lowercase())
                    .cloned()
                    .unwrap_or_default();
                SourcePlace {
                    origin: Origin::Environment { variable },
                    rank: usize::MAX,
                }
            }
        }
    }

    /// Where the name of the key `key` stands, whose value stands at `place`: in a file that is in front of the value.
    pub(super) fn key_origin(&self, key: &str, place: &SourcePlace) -> Origin {
        let position = place
            .rank
            .checked_sub(1)
            .and_then(|file| self.keys.get(&(file, key.to_owned())));
        match (&place.origin, position) {
            (Origin::File { path, .. }, Some(position)) => Origin::File {
                path: path.clone(),
                position: Some(*position),
            },
            (origin, _) => origin.clone(),
        }
    }

    /// Where the table `key` stands; its last mention counts.
    pub(super) fn table_origin(&self, key: &str) -> Option<Origin> {
        let variable = || {
            let prefix = format!("{}.", key.to_lowercase());
            let (_, name) = self
                .variables
                .iter()
                .find(|(path, _)| path.starts_with(&prefix))?;
            Some(Origin::Environment {
                variable: name.clone(),
            })
        };
        self.tables.get(key).cloned().or_else(variable)
    }
}

/// Whether a key can be written without quotes.
pub(super) fn is_plain(key: &str) -> bool {
    !key.is_empty()
        && key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// The path of a key in a table.
pub(super) fn join(table: &str, name: &str) -> String {
    let name = if is_plain(name) {
        name.to_owned()
    } else {
        format!("{name:?}")
    };
    if table.is_empty() {
        name
    } else {
        format!("{table}.{name}")
    }
}

/// One parsed file.
#[derive(Debug, Clone)]
struct Layer(Map<String, Value>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.0.clone())
    }
}

/// The origin given to `config`: number of the file, line, column.
fn mark(file: usize, (line, column): (usize, usize)) -> String {
    format!("{file}:{line}:{column}")
}

fn parse_mark(text: &str) -> Option<(usize, usize, usize)> {
    let mut parts = text.split(':').map(str::parse);
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(Ok(file)), Some(Ok(line)), Some(Ok(column)), None) => Some((file, line, column)),
        _ => None,
    }
}

/// Turns parsed TOML into values of `config`.
struct Conversion<'a> {
    file: usize,
    lines: &'a LineIndex<'a>,
    path: &'a Path,
    tables: &'a mut BTreeMap<String, Origin>,
    keys: &'a mut BTreeMap<(usize, String), (usize, usize)>,
}

impl Conversion<'_> {
    fn convert(&mut self, key: &str, value: toml::Spanned<toml::de::DeValue<'_>>) -> Value {
        use toml::de::DeValue;
        let position = self.lines.position(value.span().start);
        let origin = mark(self.file, position);
        let origin = Some(&origin);
        match value.into_inner() {
            DeValue::String(text) => Value::new(origin, text.into_owned()),
            DeValue::Boolean(value) => Value::new(origin, value),
            // A number out of range stays text and is then refused where a number is expected.
            DeValue::Integer(number) => {
                match i64::from_str_radix(number.as_str(), number.radix()) {
                    Ok(value) => Value::new(origin, value),
                    Err(_) => Value::new(origin, number.to_string()),
                }
            }
            DeValue::Float(number) => match number.as_str().parse::<f64>() {
                Ok(value) => Value::new(origin, value),
                Err(_) => Value::new(origin, number.to_string()),
            },
            DeValue::Datetime(datetime) => Value::new(origin, datetime.to_string()),
            DeValue::Array(items) => {
                let convert = |(index, item)| self.convert(&format!("{key}[{index}]"), item);
                let items: Vec<Value> = items.into_iter().enumerate().map(convert).collect();
                Value::new(origin, items)
            }
            DeValue::Table(table) => {
                let here = Origin::File {
                    path: self.path.to_owned(),
                    position: Some(position),
                };
                self.tables.insert(key.to_owned(), here);
                let mut values = Map::new();
                for (name, item) in table {
                    let start = name.span().start;
                    let name = name.into_inner().into_owned();
                    let path = join(key, &name);
                    self.keys
                        .insert((self.file, path.clone()), self.lines.position(start));
                    let item = self.convert(&path, item);
                    values.insert(name, item);
                }
                Value::new(origin, values)
            }
        }
    }
}

/// Finds line and column of an offset.
struct LineIndex<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> LineIndex<'a> {
    fn of(text: &'a str) -> Self {
        let starts = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(index, _)| index + 1))
            .collect();
        Self { text, starts }
    }

    /// Line and column in characters, both from 1.
    fn position(&self, offset: usize) -> (usize, usize) {
        let line = self.starts.partition_point(|start| *start <= offset);
        let start = self.starts[line - 1];
        let column = self
            .text
            .get(start..offset)
            .map_or(0, |before| before.chars().count());
        (line, column + 1)
    }
}
