//! Counts beside those that the core keeps for its laws.

use ackstream_core::{DropReason, Event, IgnoreReason, Verb};

/// Totals of one subscription.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Deliveries after a message's first.
    pub retried: u64,
    /// Acks that settled a message after its delivery had ended.
    pub late_acks: u64,
    /// Messages dropped because no retry was left.
    pub dropped_max_retries: u64,
    /// Messages dropped by a consumer's nack.
    pub dropped_rejected: u64,
    ignored: [[u64; 4]; 3],
}

impl Tally {
    /// Acks, nacks or extends that changed nothing, for this reason.
    pub const fn ignored(&self, verb: Verb, reason: IgnoreReason) -> u64 {
        self.ignored[verb as usize][reason as usize]
    }

    /// All acks, nacks and extends that changed nothing.
    pub fn ignored_in_all(&self) -> u64 {
        self.ignored.iter().flatten().sum()
    }

    pub(super) fn observe<M>(&mut self, event: &Event<'_, M>) {
        match event {
            Event::Sent { after: Some(_), .. } => self.retried += 1,
            Event::Acked { late: true, .. } => self.late_acks += 1,
            Event::Dropped { reason: DropReason::MaxRetries, .. } => self.dropped_max_retries += 1,
            Event::Dropped { reason: DropReason::Rejected, .. } => self.dropped_rejected += 1,
            Event::Ignored { verb, reason, .. } => self.ignored[*verb as usize][*reason as usize] += 1,
            Event::Published { .. }
            | Event::Sent { after: None, .. }
            | Event::Extended { .. }
            | Event::Ended { .. }
            | Event::Requeued { .. }
            | Event::Due { .. }
            | Event::Acked { late: false, .. }
            | Event::Attached { .. }
            | Event::Detached { .. }
            | Event::Draining { .. } => {}
        }
    }
}
