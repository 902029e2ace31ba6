//! runwatch watches runs at services with a run API until each one ends, and notifies the people and programs that
//! wait for it.
//!
//! # How it works
//!
//! ```text
//!             polls, when due            stores each step first        claims, sends, stores the result
//! API ◄──────────────────── Scheduler ──────────────────────► Store ◄──────────────────────── Courier ──► Sink
//!   providers::AnyProvider            domain::Progress                           one courier per sink
//!  └── event streams: hints when to poll ──► Scheduler; activity of the runs ──► `wait --follow`
//! ```
//!
//! The scheduler owns all watches. Each answer of the API becomes an observation; one pure function,
//! [`domain::Progress::step`], decides what follows from it. A step that brings news is stored in one
//! transaction with the events and deliveries it leads to, and only then counts. The couriers claim due
//! deliveries in the store, one courier per sink, and store the result of each attempt. The event
//! streams of runs only give the scheduler reasons to poll sooner, or less often while they show that
//! a run continues; nothing from a stream is stored. The scheduler and the couriers do not know each
//! other; [`app::Engine`] builds them, owns their tasks and stops them in order.
//!
//! # What holds
//!
//! - A verdict comes from the API's answer to a poll of that very run, or from the watch's deadline,
//!   and never from an event stream; it is given once and never changes. No failed poll ends a watch,
//!   and no unknown status is final.
//! - An event is stored before it is sent, each delivery is sent at least once, and it has the same ID
//!   every time.
//! - The API is never polled more often than its budget allows in any 60 seconds, nor while it requests
//!   a pause.
//! - No secret is in a log, an error or `Debug` output.
//!
//! # Where things are
//!
//! | Module | What it is |
//! |---|---|
//! | [`domain`] | runs, watches, verdicts, events; pure |
//! | [`profile`] | what a run API looks like, as data |
//! | [`providers`] | everything that speaks to a run API |
//! | [`scheduler`] | when each run is polled, and what follows from an observation |
//! | [`store`] | what is persisted |
//! | [`notify`] | deliveries and sinks |
//! | [`control`] | the interface of the daemon: server and client |
//! | [`config`] | the settings and where they come from |
//! | [`app`] | the wiring of the engine |
//! | [`daemon`] | the service: start, reload, maintenance, the service manager |
//! | [`cli`] | the commands, their arguments and what they print |
//! | [`program`] | the start of the process, and one command |
//! | [`logging`], [`screen`], [`output`], `live_lines` | logs and the terminal; the threads that write them |
//! | [`metrics`] | counters and gauges |
//! | `blocking`, `http`, `sse` | calls that can block, on threads of their own; what HTTP clients share; event streams as bytes |
//! | [`clock`], [`backoff`] | time, growing intervals |
//! | [`hardening`] | what others can see of this process, and the limits it runs with |
//! | [`text`], `redact` | text made safe to print; secrets removed in every spelling |
//! | [`simulator`] | the simulated API and receiver of the tests and the demo |

pub mod app;
pub mod backoff;
mod blocking;
pub mod catch_ups;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod daemon;
pub mod discovery;
pub mod domain;
mod failpoint;
pub mod hardening;
mod http;
pub mod lease;
mod links;
mod live_lines;
pub mod logging;
mod memory;
pub mod metrics;
pub mod notify;
pub mod output;
mod process_group;
pub mod profile;
pub mod program;
pub mod providers;
mod redact;
mod reminder;
mod retry_after;
pub mod scheduler;
pub mod screen;
pub mod simulator;
mod sse;
pub mod store;
pub mod style;
pub mod text;
mod xdg_open;
