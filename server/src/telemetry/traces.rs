//! What tracing counts of itself.

use std::sync::atomic::{AtomicU64, Ordering};

/// Totals that whoever makes and exports spans moves, and the metrics show. All rise.
#[derive(Debug, Default)]
pub struct TraceCounts {
    /// Spans that found no room in the queue before the exporter.
    pub queue_full: AtomicU64,
    /// Spans that the collector did not take.
    pub export_failed: AtomicU64,
    /// Spans of traces beyond the number that is allowed in a second.
    pub rate_limited: AtomicU64,
    /// Messages whose trace context could not be understood.
    pub contexts_ignored: AtomicU64,
}

impl TraceCounts {
    /// All totals, in the order of the fields.
    pub(super) fn values(&self) -> [u64; 4] {
        [&self.queue_full, &self.export_failed, &self.rate_limited, &self.contexts_ignored]
            .map(|count| count.load(Ordering::Relaxed))
    }
}
