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
//! | [`domain`] | runs, watches, verdicts, events; pure |
//! | [`providers`] | everything that speaks to a run API |
//! | [`scheduler`] | when each run is polled, and what follows from an observation |
//! | [`store`] | what is persisted |
//! | [`notify`] | deliveries and sinks |
//! | [`control`] | the interface of the daemon: server and client |
//! | [`config`] | the settings and where they come from |
//! | [`app`] | the wiring of the engine |
//! | [`daemon`] | the service: start, reload, maintenance, the service manager |
//! | [`cli`] | the commands, their arguments and what they print |
//! | [`logging`], [`output`] | logs and the terminal; the threads that write them |
//! | [`metrics`] | counters and gauges |
//! | `blocking`, `http` | calls that can block, on threads of their own; what HTTP clients share |
//! | [`clock`], [`backoff`] | time, growing intervals |
//! | [`hardening`] | what others can see of this process, and the limits it runs with |
//! | [`text`], `redact` | text made safe to print; secrets removed in every spelling |
//! | [`simulator`] | the simulated API and receiver of the tests and the demo |

pub mod app;
pub mod backoff;
mod blocking;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod daemon;
pub mod domain;
mod failpoint;
pub mod hardening;
mod http;
pub mod logging;
pub mod metrics;
pub mod notify;
pub mod output;
pub mod providers;
mod redact;
pub mod scheduler;
pub mod simulator;
pub mod store;
pub mod text;
