//! The whole service in virtual time: gRPC over an in-memory duplex, under Tokio's paused clock. No port, no sleep that takes time; a
//! test of minutes runs in milliseconds.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../support/certificates.rs"]
mod certificates;
mod ending;
mod generating;
mod limits;
mod malformed;
mod opening;
mod publishing;
mod receiving;
mod resets;
mod security;
mod seeds;
mod sessions;
mod support;
mod topics;
