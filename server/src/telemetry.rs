//! What can be seen of messages and deliveries from outside. All of it comes from the core's events, through one exhaustive match
//! for each purpose, so that a new event does not compile until it has been thought of.

mod calls;
mod catalogue;
mod exposition;
pub mod histogram;
mod lines;
mod metrics;
mod progress;
mod tally;
mod traces;

use std::sync::Arc;

use ackstream_core::{Event, Observer};

pub use calls::{Calls, CountedBody, CountedRoutes, MethodCalls};
pub use exposition::{Exposition, Snapshot};
pub use lines::Lines;
pub use metrics::Metrics;
pub use progress::Progress;
pub use tally::{RETRY_ATTEMPTS, Settled, Tally};
pub use traces::TraceCounts;

use crate::message::Message;

/// Watches one subscription: counts, writes log lines, and tells the generator how its messages fare.
pub struct Watch {
    tally: Tally,
    lines: Lines,
    progress: Option<Arc<Progress>>,
}

impl Watch {
    /// A watch that writes `lines` and, in a demo, reports to the generator's `progress`.
    pub fn new(lines: Lines, progress: Option<Arc<Progress>>) -> Self {
        Self { tally: Tally::default(), lines, progress }
    }

    /// The log lines.
    pub const fn lines(&self) -> &Lines {
        &self.lines
    }

    /// What has been counted, besides the core's own counts.
    pub const fn tally(&self) -> &Tally {
        &self.tally
    }
}

impl Observer<Arc<Message>> for Watch {
    fn observe(&mut self, event: &Event<'_, Arc<Message>>) {
        self.tally.observe(event);
        self.lines.observe(event);
        if let Some(progress) = &self.progress {
            progress.observe(event);
        }
    }
}
