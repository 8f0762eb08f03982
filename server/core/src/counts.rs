//! What a subscription has seen, counted from its events, and the two laws that these counts keep.

use crate::event::{Event, Observer, Outcome};

/// Totals since the subscription began, each moved by events alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages accepted.
    pub published: u64,
    /// Messages settled by an ack, late ones included.
    pub acked: u64,
    /// Messages settled by giving them up.
    pub dropped: u64,
    /// Deliveries, redeliveries included.
    pub sent: u64,
    /// How deliveries ended.
    pub ended: Ended,
}

/// Deliveries by the way in which they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// By an ack in time.
    pub acked: u64,
    /// By a nack.
    pub nacked: u64,
    /// By their deadline.
    pub expired: u64,
    /// In progress, by the break of their consumer's stream.
    pub interrupted: u64,
    /// By going back at no cost.
    pub released: u64,
}

/// The messages that are not settled, by state. The backlog is their sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// May be delivered now.
    pub ready: u64,
    /// Wait out a delay.
    pub delayed: u64,
    /// Delivered, not settled.
    pub outstanding: u64,
}

impl Backlog {
    /// Messages that are not settled.
    pub const fn messages(self) -> u64 {
        self.ready + self.delayed + self.outstanding
    }
}

impl Counts {
    /// The law of messages: published = acked + dropped + ready + delayed + outstanding.
    pub const fn messages_hold(&self, backlog: Backlog) -> bool {
        self.published == self.acked + self.dropped + backlog.messages()
    }

    /// The law of deliveries: sent = acked + nacked + expired + interrupted + released + outstanding.
    pub const fn deliveries_hold(&self, backlog: Backlog) -> bool {
        let Ended { acked, nacked, expired, interrupted, released } = self.ended;
        self.sent == acked + nacked + expired + interrupted + released + backlog.outstanding
    }
}

impl<M> Observer<M> for Counts {
    fn observe(&mut self, event: &Event<'_, M>) {
        let count = match event {
            Event::Published { .. } => &mut self.published,
            Event::Sent { .. } => &mut self.sent,
            Event::Ended { outcome: Outcome::Acked, .. } => &mut self.ended.acked,
            Event::Ended { outcome: Outcome::Nacked, .. } => &mut self.ended.nacked,
            Event::Ended { outcome: Outcome::Expired, .. } => &mut self.ended.expired,
            Event::Ended { outcome: Outcome::Interrupted, .. } => &mut self.ended.interrupted,
            Event::Ended { outcome: Outcome::Released(_), .. } => &mut self.ended.released,
            Event::Acked { .. } => &mut self.acked,
            Event::Dropped { .. } => &mut self.dropped,
            Event::Extended { .. }
            | Event::Requeued { .. }
            | Event::Due { .. }
            | Event::GivenUp { .. }
            | Event::Offered { .. }
            | Event::Ignored { .. }
            | Event::Attached { .. }
            | Event::Detached { .. }
            | Event::Draining { .. } => return,
        };
        *count += 1;
    }
}
