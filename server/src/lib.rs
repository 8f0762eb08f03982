//! ackstream: messages over gRPC bidirectional streams, at least once, and a way to watch it happen.
//!
//! The rules of delivery are in `ackstream-core`, which knows no clock, no lock and no socket. This crate is the shell around
//! them: configuration, the gRPC service, the timers, the log. ARCHITECTURE.md draws the whole.

pub mod address;
pub mod broker;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod connection;
pub mod dead_letters;
pub mod endpoint;
pub mod exchange;
pub mod exit;
pub mod generator;
pub mod health;
pub mod life;
pub mod listener;
pub mod logging;
pub mod message;
pub mod process;
pub mod requests;
pub mod security;
pub mod server;
pub mod services;
pub mod subscription;
pub mod telemetry;
pub mod workers;

/// The wire contract, made from `proto/ackstream/v1/ackstream.proto`, where every member is explained.
#[allow(clippy::pedantic, missing_docs, clippy::all, reason = "generated")]
pub mod proto {
    tonic::include_proto!("ackstream.v1");
    tonic::include_proto!("ackstream.v1.MessageStream");

    /// The contract's descriptors, with its comments.
    pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("ackstream.v1");
}
