//! runwatch
pub mod backoff;
pub mod clock;
pub mod config;
pub mod run;
pub mod store;
pub mod text;
