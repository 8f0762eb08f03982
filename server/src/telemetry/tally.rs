//! What is counted of one subscription beside the core's own counts: plain integers, moved under the subscription's lock.

use ackstream_core::{DropReason, Event, IgnoreReason, Observer, Outcome, Release, Verb};

use super::histogram::{ACK_EDGES, ATTEMPT_EDGES, Histogram, SETTLE_EDGES};

/// The numbers that retries are counted by: 1, 2, 3, 4, and 5 with all that follow.
pub const RETRY_ATTEMPTS: usize = 5;

/// How a message was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// By an ack.
    Acked,
    /// By giving it up.
    Dropped,
}

/// Totals of one subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Deliveries after a failure, by what its number would be without releases and interruptions, and by how the failed one ended.
    retried: [[u64; 2]; RETRY_ATTEMPTS],
    released: [u64; Release::ALL.len()],
    late_acks: u64,
    dropped: [u64; 3],
    dead_letters: [u64; 2],
    ignored: [[u64; 4]; 3],
    ack_latency: Histogram<{ ACK_EDGES.len() }>,
    settle_latency: [Histogram<{ SETTLE_EDGES.len() }>; 2],
    attempts: [Histogram<{ ATTEMPT_EDGES.len() }>; 2],
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            retried: [[0; 2]; RETRY_ATTEMPTS],
            released: [0; Release::ALL.len()],
            late_acks: 0,
            dropped: [0; 3],
            dead_letters: [0; 2],
            ignored: [[0; 4]; 3],
            ack_latency: Histogram::new(&ACK_EDGES),
            settle_latency: [const { Histogram::new(&SETTLE_EDGES) }; 2],
            attempts: [const { Histogram::new(&ATTEMPT_EDGES) }; 2],
        }
    }
}

impl Tally {
    /// Retries with a number of `retry`, from 1, after a delivery that was nacked or has expired; the last number stands for all that
    /// follow.
    pub const fn retried(&self, retry: usize, nacked: bool) -> u64 {
        self.retried[retry_place(retry)][nacked as usize]
    }

    /// Deliveries that went back at no cost, for this reason.
    pub const fn released(&self, reason: Release) -> u64 {
        self.released[reason as usize]
    }

    /// Deliveries after a failure.
    pub fn retried_in_all(&self) -> u64 {
        self.retried.iter().flatten().sum()
    }

    /// Acks that settled a message after its delivery had ended.
    pub const fn late_acks(&self) -> u64 {
        self.late_acks
    }

    /// Messages given up, for this reason.
    pub const fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize]
    }

    /// Messages that were offered to the dead-letter topic, and taken by it or not.
    pub const fn dead_letters(&self, taken: bool) -> u64 {
        self.dead_letters[taken as usize]
    }

    /// Acks, nacks or extends that changed nothing, for this reason.
    pub const fn ignored(&self, verb: Verb, reason: IgnoreReason) -> u64 {
        self.ignored[verb as usize][reason as usize]
    }

    /// All acks, nacks and extends that changed nothing.
    pub fn ignored_in_all(&self) -> u64 {
        self.ignored.iter().flatten().sum()
    }

    /// Nanoseconds from the sending of an acked attempt to its ack.
    pub const fn ack_latency(&self) -> &Histogram<{ ACK_EDGES.len() }> {
        &self.ack_latency
    }

    /// Nanoseconds from accept to ack or drop.
    pub const fn settle_latency(&self, settled: Settled) -> &Histogram<{ SETTLE_EDGES.len() }> {
        &self.settle_latency[settled as usize]
    }

    /// Deliveries of a settled message.
    pub const fn attempts(&self, settled: Settled) -> &Histogram<{ ATTEMPT_EDGES.len() }> {
        &self.attempts[settled as usize]
    }

    fn settle(&mut self, settled: Settled, latency: std::time::Duration, attempts: u32) {
        self.settle_latency[settled as usize].record(nanos(latency));
        self.attempts[settled as usize].record(u64::from(attempts));
    }
}

impl<M> Observer<M> for Tally {
    fn observe(&mut self, event: &Event<'_, M>) {
        match event {
            Event::Sent { message, after: Some(after), .. } if after.is_failure() => {
                let nacked = matches!(after, Outcome::Nacked);
                self.retried[retry_place(message.failures as usize)][usize::from(nacked)] += 1;
            }
            Event::Ended { outcome: Outcome::Released(reason), .. } => self.released[*reason as usize] += 1,
            Event::Ended { at, sent_at, outcome: Outcome::Acked, .. } => {
                self.ack_latency.record(nanos(at.since(*sent_at)));
            }
            Event::Acked { at, message, late } => {
                self.late_acks += u64::from(*late);
                self.settle(Settled::Acked, at.since(message.accepted_at), message.attempts);
            }
            Event::Dropped { at, message, reason } => {
                self.dropped[*reason as usize] += 1;
                self.settle(Settled::Dropped, at.since(message.accepted_at), message.attempts);
            }
            Event::Offered { taken, .. } => self.dead_letters[usize::from(*taken)] += 1,
            Event::Ignored { verb, reason, .. } => self.ignored[*verb as usize][*reason as usize] += 1,
            Event::Published { .. }
            | Event::Sent { .. }
            | Event::Extended { .. }
            | Event::Ended { outcome: Outcome::Nacked | Outcome::Expired | Outcome::Interrupted, .. }
            | Event::Requeued { .. }
            | Event::Due { .. }
            | Event::GivenUp { .. }
            | Event::Attached { .. }
            | Event::Detached { .. }
            | Event::Draining { .. } => {}
        }
    }
}

const fn retry_place(retry: usize) -> usize {
    let place = retry.saturating_sub(1);
    if place < RETRY_ATTEMPTS { place } else { RETRY_ATTEMPTS - 1 }
}

fn nanos(length: std::time::Duration) -> u64 {
    u64::try_from(length.as_nanos()).unwrap_or(u64::MAX)
}
