//! The commands that talk to a running server as any client does: `publish`, `consume` and `bench`.
//!
//! ```text
//!   publish:  input (a thread) ─▶ publications (no I/O) ─▶ link ═══ Exchange ═══ server
//!   consume:  server ═══ Exchange ═══ link ─▶ holdings (no I/O) ─▶ output (a thread)
//! ```

mod backoff;
pub mod bench;
pub mod consume;
mod credentials;
mod holdings;
mod input;
mod json;
mod link;
mod output;
mod publications;
pub mod publish;
mod target;

use std::time::Duration;

pub(crate) use credentials::{AuthorizedChannel, explain_call, root_cause};
pub use credentials::{Credentials, Identity, Tls, Trust};
pub use link::{LinkError, PATIENCE};
pub use target::{NoTarget, Target};

/// Whom to talk to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The server.
    pub target: Target,
    /// The topic.
    pub topic: String,
    /// How to present itself to it.
    pub credentials: Credentials,
    /// How long to go on without a server.
    pub connect_timeout: Duration,
}

/// Says something to whoever ran the command; the standard output is for messages alone.
fn say(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "ackstream: {text}"); // a closed output has nobody to tell
}
