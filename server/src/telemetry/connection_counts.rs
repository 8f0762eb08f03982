//! What became of connections, which the core does not know.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Why a connection was closed as soon as it was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionRefusal {
    /// As many were open as may be (`max_connections`).
    TooMany,
    /// As many were open from its address as may be (`max_connections_per_address`).
    TooManyOfAddress,
}

/// Why the server closed a connection that it had served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionClosing {
    /// Its handshake of TLS failed, or did not come in time (`handshake_timeout`).
    NoTls,
    /// Its first bytes did not come in time, or were not those of HTTP/2 (`handshake_timeout`).
    NoPreface,
    /// A client did not read the end of its stream.
    EndNotRead,
    /// It was as old as a connection may be (`max_connection_age`).
    MaxAge,
}

impl ConnectionRefusal {
    /// All, in the order of their counters.
    pub(super) const ALL: [Self; 2] = [Self::TooMany, Self::TooManyOfAddress];

    /// Its name in metrics.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::TooMany => "max_connections",
            Self::TooManyOfAddress => "max_connections_per_address",
        }
    }
}

impl ConnectionClosing {
    /// All, in the order of their counters.
    pub(super) const ALL: [Self; 4] = [Self::NoTls, Self::NoPreface, Self::EndNotRead, Self::MaxAge];

    /// Its name in metrics.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::NoTls => "no_tls",
            Self::NoPreface => "no_preface",
            Self::EndNotRead => "end_not_read",
            Self::MaxAge => "max_age",
        }
    }
}

/// Totals since the server began, and how many connections are open.
#[derive(Debug, Default)]
pub struct ConnectionCounts {
    open: AtomicU64,
    refused: [AtomicU64; ConnectionRefusal::ALL.len()],
    closed: [AtomicU64; ConnectionClosing::ALL.len()],
    stuck_consumers: AtomicU64,
}

impl ConnectionCounts {
    /// Connections that are served.
    pub fn open(&self) -> u64 {
        self.open.load(Relaxed)
    }

    /// Connections that were not served.
    pub fn refused(&self, why: ConnectionRefusal) -> u64 {
        self.refused[why as usize].load(Relaxed)
    }

    /// Connections that the server closed.
    pub fn closed(&self, why: ConnectionClosing) -> u64 {
        self.closed[why as usize].load(Relaxed)
    }

    /// Consumers whose stream was ended because they took nothing of what was due to them.
    pub fn stuck_consumers(&self) -> u64 {
        self.stuck_consumers.load(Relaxed)
    }

    /// A connection is open, until what is returned is dropped.
    pub fn count_open(self: &Arc<Self>) -> OpenConnection {
        self.open.fetch_add(1, Relaxed);
        OpenConnection(Arc::clone(self))
    }

    /// A connection was refused.
    pub fn count_refused(&self, why: ConnectionRefusal) {
        self.refused[why as usize].fetch_add(1, Relaxed);
    }

    /// The server closed a connection.
    pub fn count_closed(&self, why: ConnectionClosing) {
        self.closed[why as usize].fetch_add(1, Relaxed);
    }

    /// A consumer was stuck.
    pub fn count_stuck_consumer(&self) {
        self.stuck_consumers.fetch_add(1, Relaxed);
    }
}

/// A connection that is open.
#[derive(Debug)]
pub struct OpenConnection(Arc<ConnectionCounts>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}
