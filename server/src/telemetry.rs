//! What can be seen of messages and deliveries from outside. All of it comes from the core's events, through one exhaustive match
//! for each purpose, so that a new event does not compile until it has been thought of.

mod calls;
mod catalogue;
mod connection_counts;
mod exposition;
pub mod histogram;
mod lines;
mod metrics;
mod progress;
mod tally;
mod trace_counts;
mod traces;

use std::sync::Arc;

use ackstream_core::{ConsumerId, Event, Observer};

pub use calls::{Calls, CountedBody, CountedRoutes, MethodCalls};
pub use connection_counts::{ConnectionClosing, ConnectionCounts, ConnectionRefusal, OpenConnection};
pub use exposition::{Exposition, Snapshot};
pub use lines::{LineLimits, Lines};
pub use metrics::Metrics;
pub use progress::Progress;
pub use tally::{RETRY_ATTEMPTS, Settled, Tally};
pub use trace_counts::{OnTheWay, TraceCounts};
pub(crate) use traces::TRACEPARENT_LENGTH;
pub use traces::{Contexts, Environment, Exporter, Sampler, TRACEPARENT, TraceSettings, Traces, Tracing};

use crate::message::Message;

/// Watches one subscription: counts, writes log lines, and tells the generator how its messages fare.
pub struct Watch {
    tally: Tally,
    lines: Lines,
    progress: Option<Arc<Progress>>,
    traces: Option<Traces>,
}

impl Watch {
    /// A watch that writes `lines` and, in a demo, reports to the generator's `progress`.
    pub fn new(lines: Lines, progress: Option<Arc<Progress>>) -> Self {
        Self { tally: Tally::default(), lines, progress, traces: None }
    }

    /// The same, and it traces.
    #[must_use]
    pub fn with_traces(self, traces: Option<Traces>) -> Self {
        Self { traces, ..self }
    }

    /// Which trace each message belongs to; `None` where nothing is traced.
    pub fn contexts(&self) -> Option<Contexts> {
        self.traces.as_ref().map(Traces::contexts)
    }

    /// Whether the last delivery is of a message that will be traced: what its frame says.
    pub fn last_sampled(&self) -> bool {
        self.traces.as_ref().is_some_and(Traces::last_sampled)
    }

    /// How a consumer that has just attached calls itself.
    pub fn name(&mut self, consumer: ConsumerId, client_id: &str) {
        if let Some(traces) = &mut self.traces {
            traces.name(consumer, client_id);
        }
    }

    /// The log lines.
    pub const fn lines(&self) -> &Lines {
        &self.lines
    }

    /// The log lines, to make them speak.
    pub const fn lines_mut(&mut self) -> &mut Lines {
        &mut self.lines
    }

    /// What has been counted, besides the core's own counts.
    pub const fn tally(&self) -> &Tally {
        &self.tally
    }
}

impl Observer<Message> for Watch {
    fn observe(&mut self, event: &Event<'_, Message>) {
        self.tally.observe(event);
        self.lines.observe(event, self.contexts());
        if let Some(progress) = &self.progress {
            progress.observe(event);
        }
        if let Some(traces) = &mut self.traces {
            traces.observe(event);
        }
    }
}
