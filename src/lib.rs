//! runwatch watches runs of AI crews on Crewship until each one ends, and tells the people and
//! programs that wait for it.

pub mod api;
pub mod app;
pub mod backoff;
pub mod cli;
pub mod clock;
pub mod command;
pub mod config;
pub mod notify;
pub mod run;
pub mod simulator;
pub mod store;
pub mod telemetry;
pub mod text;
pub mod watch;
