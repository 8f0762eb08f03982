//! What can be seen from outside: exactly the metrics that each event moves, both laws in every scrape, health, and the port for HTTP.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::float_cmp, reason = "what is compared was never rounded")]

mod calls;
mod endpoint;
mod events;
mod page;
mod storm;
#[path = "../virtual_time/support.rs"]
#[allow(dead_code, reason = "shared with the tests in virtual time")]
mod support;
