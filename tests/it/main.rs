//! Tests of the built program and of the library over real sockets.
#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test that cannot go on may panic"
)]

mod api;
mod completions;
mod config;
#[path = "../contract/mod.rs"]
mod contract;
mod control;
mod daemon;
mod day;
mod deadlines;
mod demo;
mod desktop;
mod discovery;
mod doctor;
mod documents;
mod durations;
mod failures;
mod gate;
mod hangs;
mod heartbeat;
mod incidents;
mod lists;
mod memory;
mod names;
mod openapi;
mod page;
mod promises;
mod providers;
mod security;
mod several;
mod sinks;
mod status;
mod store;
mod streams;
mod support;
mod terminal;
mod tls;
mod views;
mod wait;
