//! What became of traces, besides those that were exported.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Totals since the server began, of all its subscriptions together.
#[derive(Debug, Default)]
pub struct TraceCounts {
    queue_full: AtomicU64,
    export_failed: AtomicU64,
    rate_limited: AtomicU64,
    contexts_ignored: AtomicU64,
}

impl TraceCounts {
    /// Spans lost because the exporter was so far behind that its queue was full.
    pub fn queue_full(&self) -> u64 {
        self.queue_full.load(Relaxed)
    }

    /// Spans lost because the collector did not take or refused them, or did not take them before the server had stopped.
    pub fn export_failed(&self) -> u64 {
        self.export_failed.load(Relaxed)
    }

    /// Spans of traces beyond the cap of their kind (`traces_per_second`).
    pub fn rate_limited(&self) -> u64 {
        self.rate_limited.load(Relaxed)
    }

    /// Messages whose publisher gave a trace context that is none; each counts once in every subscription.
    pub fn contexts_ignored(&self) -> u64 {
        self.contexts_ignored.load(Relaxed)
    }

    /// Spans that were to be exported and are lost, for whatever reason.
    pub fn spans_dropped(&self) -> u64 {
        self.queue_full() + self.export_failed() + self.rate_limited()
    }

    /// What the metrics show: lost by reason (`queue_full`, `export_failed`, `rate_limited`), then ignored contexts.
    pub(super) fn values(&self) -> [u64; 4] {
        [self.queue_full(), self.export_failed(), self.rate_limited(), self.contexts_ignored()]
    }

    /// Spans were beyond the cap of their kind.
    pub fn count_rate_limited(&self, spans: u64) {
        self.rate_limited.fetch_add(spans, Relaxed);
    }

    /// A trace context was none.
    pub fn count_context_ignored(&self) {
        self.contexts_ignored.fetch_add(1, Relaxed);
    }
}

/// Spans on their way to the collector. Those that have not arrived when it is dropped, wherever that is, are counted as lost.
#[derive(Debug)]
pub struct OnTheWay {
    counts: Arc<TraceCounts>,
    spans: u64,
}

impl OnTheWay {
    /// So many spans set out.
    pub const fn new(counts: Arc<TraceCounts>, spans: u64) -> Self {
        Self { counts, spans }
    }

    /// These go on together with others.
    pub fn join(&mut self, mut other: Self) {
        self.spans += std::mem::take(&mut other.spans);
    }

    /// The collector has taken them, all but those that it `rejected`.
    pub fn arrived(mut self, rejected: u64) {
        self.spans = self.spans.min(rejected);
    }

    /// They found no room in the queue.
    pub fn found_it_full(mut self) {
        self.counts.queue_full.fetch_add(std::mem::take(&mut self.spans), Relaxed);
    }
}

impl Drop for OnTheWay {
    fn drop(&mut self) {
        self.counts.export_failed.fetch_add(self.spans, Relaxed);
    }
}
