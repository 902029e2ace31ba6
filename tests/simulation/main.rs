//! The whole engine under an adversary, in simulated time, alone or with others on one store: scheduler, store and delivery
//! as they are, with the API, the receivers, the disk, the clock and the life of the process in its hands. A seed decides
//! all of it, and plays the same way each time.
//!
//! `tests/simulation/run`. `RUNWATCH_SEEDS=FIXED,FRESH` says how many seeds of the fixed set, and how many that
//! are new; `RUNWATCH_SEED=N` plays one, and shows the last `RUNWATCH_TRACE` lines of its trace where a promise is broken;
//! `RUNWATCH_THREADS=N` says how many are played at once. `tests/simulation/mutate` shows that bugs are found.
#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test that cannot go on may panic"
)]
#![allow(clippy::print_stdout, reason = "its report is what it is for")]

#[cfg(tokio_unstable)]
mod check;
#[cfg(tokio_unstable)]
mod discovery;
#[cfg(tokio_unstable)]
mod life;
#[cfg(tokio_unstable)]
mod lives;
#[cfg(tokio_unstable)]
mod play;
#[cfg(tokio_unstable)]
mod world;

#[cfg(tokio_unstable)]
fn main() -> std::process::ExitCode {
    play::all()
}

/// Without its seed, tokio decides by itself which of several things comes first.
#[cfg(not(tokio_unstable))]
fn main() -> std::process::ExitCode {
    println!("the simulation is built and run by tests/simulation/run");
    std::process::ExitCode::from(2)
}
