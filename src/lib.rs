//! runwatch watches runs of AI crews on Crewship until each one ends, and tells the people and
//! programs that wait for it.
//!
//! # How it works
//!
//! ```text
//!              asks, when due           moves on, stored first         takes, tells, stores how it went
//! API ◄──────────────────── Scheduler ──────────────────────► Store ◄──────────────────────── Courier ──► Sink
//!      api::ApiClient       watch::Scheduler   run::Progress  store::Store                notify::Courier, one a sink
//!  └── event streams: hints when to ask ──► Scheduler; what runs are doing ──► `wait --follow`
//! ```
//!
//! The scheduler owns all watches. Each answer of the API becomes an observation; one pure function,
//! [`run::Progress::step`], says what follows from it. A step that brings news is stored in one
//! transaction with the events and deliveries it leads to, and only then counts. Couriers take due
//! deliveries out of the store, one courier per sink, and store how each attempt went. The event streams
//! of runs only give the scheduler reasons to ask sooner, or less often while they show that a run goes
//! on; nothing that they say is stored. The scheduler
//! and the couriers know nothing of each other; [`app::Engine`] builds them, owns their tasks and stops
//! them in order.
//!
//! # What holds
//!
//! - A verdict comes from the API's own words about that very run when asked for it, or from the watch's
//!   deadline, and never from an event stream; it is given once and never changes. No failed poll ends a
//!   watch, and no unknown status is final.
//! - A message is stored before it is sent, is sent at least once, and has the same ID every time.
//! - The API is never asked more often than its budget allows in any 60 seconds, nor while it asks for
//!   a pause.
//! - No secret is in a log, an error or `Debug` output.
//!
//! # Where things are
//!
//! | Module | What it is |
//! |---|---|
//! | [`run`] | the domain: runs, watches, verdicts, events; pure |
//! | [`api`] | the client of the API |
//! | [`watch`] | when to ask for which run |
//! | [`store`] | SQLite |
//! | [`notify`] | deliveries and sinks |
//! | [`control`] | the interface of the daemon: server and client |
//! | [`config`], [`cli`] | what the user asks for |
//! | [`app`], [`command`] | the wiring, the commands |
//! | [`telemetry`], [`output`] | logs and the terminal; the threads that write them |
//! | [`metrics`], [`service`] | figures, the service manager |
//! | `blocking`, `http` | calls that can block, on threads of their own; what HTTP clients share |
//! | [`clock`], [`backoff`] | time, growing intervals |
//! | [`process`] | what others see of this process |
//! | [`text`], [`table`] | harmless text, tables that fit |
//! | `redact` | secrets taken out of what servers say, whatever their spelling |
//! | [`simulator`] | the simulated API and receiver of the tests and the demo |

pub mod api;
pub mod app;
pub mod backoff;
mod blocking;
pub mod cli;
pub mod clock;
pub mod command;
pub mod config;
pub mod control;
mod crash;
mod http;
pub mod metrics;
pub mod notify;
pub mod output;
pub mod process;
mod redact;
pub mod run;
pub mod service;
pub mod simulator;
pub mod store;
pub mod table;
pub mod telemetry;
pub mod text;
pub mod watch;
