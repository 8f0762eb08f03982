//! One trace per message, as a real OTLP receiver on a real socket gets it. Time is real here, so no test waits for any: a delivery
//! expires because its consumer asks for a millisecond.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod binary;
mod collector;
mod outages;
mod sampling;
mod trees;

#[path = "../virtual_time/support.rs"]
#[allow(dead_code, reason = "the tests in virtual time use the rest")]
mod support;
