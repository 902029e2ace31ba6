//! Tests of the built program and of the library over real sockets.
#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on may panic")]

mod config;
mod day;
mod desktop;
mod sinks;
mod store;
mod support;
mod wait;
