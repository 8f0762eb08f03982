//! The whole service in virtual time: gRPC over an in-memory duplex, under Tokio's paused clock. No port, no sleep that takes time; a
//! test of minutes runs in milliseconds.

mod ending;
mod generating;
mod malformed;
mod opening;
mod publishing;
mod receiving;
mod support;
