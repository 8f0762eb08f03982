//! What became of traces, besides those that were exported.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Totals since the server began, of all its subscriptions together.
#[derive(Debug, Default)]
pub struct TraceCounts {
    queue_full: AtomicU64,
    export_failed: AtomicU64,
    rate_limited: AtomicU64,
    contexts_ignored: AtomicU64,
    waiting: AtomicU64,
}

impl TraceCounts {
    /// Spans lost because the exporter was so far behind that its queue was full.
    pub fn queue_full(&self) -> u64 {
        self.queue_full.load(Relaxed)
    }

    /// Spans lost because the collector did not take them, or not before the server had stopped.
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

    /// Spans found no room in the queue.
    pub fn count_queue_full(&self, spans: u64) {
        self.waiting.fetch_sub(spans, Relaxed);
        self.queue_full.fetch_add(spans, Relaxed);
    }

    /// Spans were not taken by the collector.
    pub fn count_export_failed(&self, spans: u64) {
        self.waiting.fetch_sub(spans, Relaxed);
        self.export_failed.fetch_add(spans, Relaxed);
    }

    /// Spans were beyond the cap of their kind.
    pub fn count_rate_limited(&self, spans: u64) {
        self.rate_limited.fetch_add(spans, Relaxed);
    }

    /// A trace context was none.
    pub fn count_context_ignored(&self) {
        self.contexts_ignored.fetch_add(1, Relaxed);
    }

    /// Spans go towards the exporter.
    pub fn count_waiting(&self, spans: u64) {
        self.waiting.fetch_add(spans, Relaxed);
    }

    pub(super) fn count_exported(&self, spans: u64) {
        self.waiting.fetch_sub(spans, Relaxed);
    }

    /// The exporter has ended: what still waits for it is lost.
    pub(super) fn give_up_waiting(&self) {
        let spans = self.waiting.swap(0, Relaxed);
        self.export_failed.fetch_add(spans, Relaxed);
    }
}
