//! Configuration: where it comes from, what is legal, and the validated result.
//!
//! ```text
//! defaults, files, environment --source--> one tree --reader--> Settings, or every Problem
//! ```
//!
//! [`load()`] is the only way in. It reads what [`Sources`] names and nothing else, merges it with the
//! `config` crate, and walks the result once with a reader that knows every key, its type and its
//! range. No secret is ever part of a [`Problem`] or of what [`Effective`] shows.

mod advice;
mod database;
mod discover;
mod effective;
mod email;
#[cfg(fuzzing)]
pub mod fuzzing;
mod heartbeat;
mod load;
mod problem;
mod providers;
mod proxy;
mod quiet;
mod reader;
mod rules;
mod secret;
mod settings;
mod sinks;
mod source;
mod store;
mod units;

pub use advice::advice;
pub use database::{Refusal, is_local_database, read_database_url};
pub use discover::{DiscoverySettings, EntryText};
pub use effective::{Effective, EffectiveEntry};
pub use heartbeat::{HeartbeatSettings, MAX_BEAT_INTERVAL, MIN_BEAT_INTERVAL};
pub use load::{
    IN_MEMORY, Loaded, MAX_DEADLINE, MAX_INTERVAL, MIN_DEADLINE, MIN_INTERVAL, control_socket,
    default_provider, load,
};
pub(crate) use load::{NAME_CHARS, watch_name};
pub use problem::{Origin, Problem, Problems};
pub use providers::{ProviderSettings, Providers};
pub(crate) use proxy::Proxies;
pub(crate) use reader::{
    LABEL_KEY_BYTES, LABEL_VALUE_CHARS, MAX_LABELS, check_label, check_labels,
};
pub(crate) use rules::{
    MAKE_SIGNING_SECRET, MAX_TEMPLATE_BYTES, SIGNING_PREFIX, read_template, signing_keys,
};
pub(crate) use secret::check_key;
use secret::key_of_variable;
pub use secret::{Secret, SecretError};
pub use settings::{
    ApiSettings, ControlSettings, DELIVERY_ID, EmailSettings, EmailTls, EventsMode, LogFormat,
    LogLevel, LogSettings, Settings, SinkKind, SinkSettings, StaticWatch, WatchSettings,
    WebhookFormat, WebhookMethod, WebhookSettings, WebhookSignature,
};
pub(crate) use source::NO_SOCKET_PLACE;
pub use source::Sources;
pub(crate) use store::schema_name;
pub use store::{MAX_LEASE, MIN_LEASE, MigrationMode, SharedStoreSettings, StoreSettings};
pub use units::{InvalidQuantity, format_duration, format_size, parse_duration, parse_size};
