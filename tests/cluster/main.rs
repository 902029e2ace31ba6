//! The store on a real PostgreSQL, directly and through a pooler. tests/cluster/run starts both.
#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test that cannot go on may panic"
)]

mod additions;
mod batches;
mod check;
#[path = "../contract/mod.rs"]
mod contract;
mod copy;
#[allow(dead_code, reason = "shared with the torture of several daemons")]
mod daemons;
mod differential;
mod faults;
#[allow(dead_code, reason = "shared with the torture of several daemons")]
mod history;
mod lease;
#[allow(dead_code, reason = "shared with the torture of several daemons")]
mod pooler;
#[allow(dead_code, reason = "shared with the torture")]
mod postgres;
#[path = "../torture/proxy.rs"]
#[allow(dead_code, reason = "shared with the torture of one daemon")]
mod proxy;
mod rights;
mod scans;
mod server;
mod small;
#[path = "../it/support/mod.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod support;
mod switch;
mod unconfirmed;

mod direct {
    crate::contract::contract_tests!(crate::server::direct);
}

mod granted {
    crate::contract::contract_tests!(crate::server::unowned);
}

mod pooled {
    crate::contract::contract_tests!(crate::server::pooled);
}
