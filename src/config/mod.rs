//! Configuration: where it comes from, what is legal, and the validated result.

mod secret;
mod settings;

pub use secret::{Secret, SecretError};
pub use settings::{
    ApiSettings, ControlSettings, Settings, SinkKind, SinkSettings, StaticWatch, StoreSettings, WatchSettings,
    WebhookFormat, WebhookSettings,
};
