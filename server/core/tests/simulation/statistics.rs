//! What a simulation went through, so that a human can see that its faults really happened, and a test that they all did.

use std::collections::BTreeMap;
use std::fmt;

use ackstream_core::{DropReason, IgnoreReason, Leave, Outcome, Refusal, Release, Verb};

use crate::told::{Told, What};

/// All that must have happened at least once in a run of the default length.
const MUST_HAPPEN: [&str; 65] = [
    "published",
    "refused: too many messages",
    "refused: too many bytes",
    "refused: draining",
    "fan-outs refused",
    "sent",
    "retried after nacked",
    "retried after expired",
    "sent again after interrupted",
    "sent again after released",
    "delivered alone, larger than the window",
    "window full",
    "acked",
    "acked by auto_ack",
    "late acks",
    "dropped: max_retries",
    "dropped: rejected",
    "given up",
    "dead letters taken",
    "dead letters refused",
    "late acks of what was given up",
    "nacked",
    "expired",
    "interrupted",
    "released: left",
    "released: closed",
    "released: not_begun",
    "released: given_back",
    "released: not_received",
    "dropped: max_interruptions",
    "suspended",
    "resumed",
    "resumed too late",
    "delivered alone after interruptions",
    "reserved",
    "others first",
    "probed",
    "passed what it gave back",
    "said something",
    "extended",
    "extended up to the cap",
    "delayed up to the cap",
    "ignored ack: settled",
    "ignored ack: unknown",
    "ignored ack: stale",
    "ignored nack: settled",
    "ignored nack: unknown",
    "ignored nack: stale",
    "ignored nack: not_held",
    "ignored extend: settled",
    "ignored extend: unknown",
    "ignored extend: stale",
    "ignored extend: not_held",
    "inputs of consumers that had left",
    "woken",
    "wakes lost",
    "impatient wakes",
    "mass expiries",
    "asked in vain while behind",
    "given back while behind",
    "clock jumps",
    "inputs from the past",
    "advanced in time",
    "advanced late",
    "drains",
];

/// How often each kind of thing happened, by its name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Statistics(BTreeMap<&'static str, u64>);

impl Statistics {
    pub(crate) fn count(&mut self, name: &'static str) {
        self.add(name, 1);
    }

    pub(crate) fn add(&mut self, name: &'static str, times: u64) {
        if times > 0 {
            *self.0.entry(name).or_default() += times;
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (name, times) in &other.0 {
            self.add(name, *times);
        }
    }

    pub(crate) fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// How often each happened in an hour, when all did in so many.
    pub(crate) fn an_hour(&self, hours: u64) -> String {
        let lines = self.0.iter().map(|(name, times)| format!("{:>12} {name}\n", times.div_ceil(hours)));
        lines.collect()
    }

    /// What must have happened in a long run and has not.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        MUST_HAPPEN.into_iter().filter(|name| !self.0.contains_key(name)).collect()
    }

    pub(crate) fn count_refusal(&mut self, refusal: Refusal) {
        self.count(match refusal {
            Refusal::TooManyMessages { .. } => "refused: too many messages",
            Refusal::TooManyBytes { .. } => "refused: too many bytes",
            Refusal::Draining => "refused: draining",
        });
    }

    /// Counts the events of one call.
    pub(crate) fn count_events(&mut self, events: &[Told]) {
        for event in events {
            self.count(name(&event.what));
            if let What::Sent { after: Some(outcome), .. } = event.what {
                self.count(retried(outcome));
            }
        }
    }
}

const fn name(what: &What) -> &'static str {
    match what {
        What::Published(_) => "published",
        What::Sent { .. } => "sent",
        What::Extended { .. } => "extended",
        What::Ended { outcome: Outcome::Acked, .. } => "acked in time",
        What::Ended { outcome: Outcome::Nacked, .. } => "nacked",
        What::Ended { outcome: Outcome::Expired, .. } => "expired",
        What::Ended { outcome: Outcome::Interrupted, .. } => "interrupted",
        What::Ended { outcome: Outcome::Released(release), .. } => match release {
            Release::Left => "released: left",
            Release::Closed => "released: closed",
            Release::NotBegun => "released: not_begun",
            Release::GivenBack => "released: given_back",
            Release::NotReceived => "released: not_received",
        },
        What::Requeued { delay, .. } if delay.is_zero() => "ready again at once",
        What::Requeued { .. } => "delayed",
        What::Due(_) => "due after a delay",
        What::GivenUp { .. } => "given up",
        What::Offered { taken: true, .. } => "dead letters taken",
        What::Offered { taken: false, .. } => "dead letters refused",
        What::Acked { late: true, .. } => "late acks",
        What::Acked { late: false, .. } => "acked",
        What::Dropped { reason: DropReason::MaxRetries, .. } => "dropped: max_retries",
        What::Dropped { reason: DropReason::Rejected, .. } => "dropped: rejected",
        What::Dropped { reason: DropReason::MaxInterruptions, .. } => "dropped: max_interruptions",
        What::Ignored { verb, reason, .. } => ignored(*verb, *reason),
        What::Attached(_) => "attached",
        What::Detached { leave: Leave::Clean, .. } => "left clean",
        What::Detached { leave: Leave::Closed, .. } => "left closed",
        What::Detached { leave: Leave::Broken, .. } => "left broken",
        What::Draining => "drains",
    }
}

const fn retried(after: Outcome) -> &'static str {
    match after {
        Outcome::Acked => unreachable!(),
        Outcome::Nacked => "retried after nacked",
        Outcome::Expired => "retried after expired",
        Outcome::Interrupted => "sent again after interrupted",
        Outcome::Released(_) => "sent again after released",
    }
}

const fn ignored(verb: Verb, reason: IgnoreReason) -> &'static str {
    match (verb, reason) {
        (Verb::Ack, IgnoreReason::Settled) => "ignored ack: settled",
        (Verb::Ack, IgnoreReason::Unknown) => "ignored ack: unknown",
        (Verb::Ack, IgnoreReason::Stale) => "ignored ack: stale",
        (Verb::Ack, IgnoreReason::NotHeld) => unreachable!(),
        (Verb::Nack, IgnoreReason::Settled) => "ignored nack: settled",
        (Verb::Nack, IgnoreReason::Unknown) => "ignored nack: unknown",
        (Verb::Nack, IgnoreReason::Stale) => "ignored nack: stale",
        (Verb::Nack, IgnoreReason::NotHeld) => "ignored nack: not_held",
        (Verb::Extend, IgnoreReason::Settled) => "ignored extend: settled",
        (Verb::Extend, IgnoreReason::Unknown) => "ignored extend: unknown",
        (Verb::Extend, IgnoreReason::Stale) => "ignored extend: stale",
        (Verb::Extend, IgnoreReason::NotHeld) => "ignored extend: not_held",
    }
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (name, times)) in self.0.iter().enumerate() {
            write!(f, "{}{name} {times}", if place == 0 { "" } else { " · " })?;
        }
        Ok(())
    }
}
