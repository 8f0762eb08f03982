//! What happened, as the core tells it. Every transition is one [`Event`]; whatever is counted, traced or logged about messages and
//! deliveries comes from these and from nowhere else.

use std::time::Duration;

use crate::consumers::ConsumerId;
use crate::time::Time;

/// A message's id: the topic's sequence, from 1, the same in every subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub u64);

/// How a delivery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// An ack came in time.
    Acked,
    /// Its consumer nacked it.
    Nacked,
    /// Its ack deadline passed.
    Expired,
    /// Its consumer's stream broke while it was in progress.
    Interrupted,
    /// It went back at no cost.
    Released(Release),
}

/// Why a delivery went back at no cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Release {
    /// Its consumer left cleanly.
    Left,
    /// The server closed its stream.
    Closed,
    /// Its consumer's stream broke before the delivery was in progress.
    NotBegun,
    /// Its consumer gave it back.
    GivenBack,
    /// Its consumer resumed and did not hold it: the delivery was lost on the way.
    NotReceived,
}

/// Why a message was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// A delivery failed, and no retry was left.
    MaxRetries,
    /// A consumer nacked it with drop.
    Rejected,
    /// Consumers' streams broke too often while it was delivered alone or, where none may break, once.
    MaxInterruptions,
}

impl Outcome {
    /// Its name, in metrics, traces and attributes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Acked => "acked",
            Self::Nacked => "nacked",
            Self::Expired => "expired",
            Self::Interrupted => "interrupted",
            Self::Released(_) => "released",
        }
    }

    /// Whether the delivery failed, which costs a retry.
    pub const fn is_failure(self) -> bool {
        match self {
            Self::Nacked | Self::Expired => true,
            Self::Acked | Self::Interrupted | Self::Released(_) => false,
        }
    }
}

impl Release {
    /// All of them, in their order.
    pub const ALL: [Self; 5] = [Self::Left, Self::Closed, Self::NotBegun, Self::GivenBack, Self::NotReceived];

    /// Its name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Closed => "closed",
            Self::NotBegun => "not_begun",
            Self::GivenBack => "given_back",
            Self::NotReceived => "not_received",
        }
    }
}

impl DropReason {
    /// Its name, in metrics, traces and attributes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MaxRetries => "max_retries",
            Self::Rejected => "rejected",
            Self::MaxInterruptions => "max_interruptions",
        }
    }
}

/// How a consumer leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Leave {
    /// It half-closed: what it holds is released.
    Clean,
    /// The server closed its stream, for a reason that is not its consumer's: what it holds is released.
    Closed,
    /// Its stream broke. What was in progress is interrupted, so that a message which kills its consumers comes to an end; all else
    /// is released.
    Broken,
}

/// What a consumer said about a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// It is done.
    Ack,
    /// Deliver it again, or give it up.
    Nack,
    /// It needs longer.
    Extend,
}

/// Why an ack, nack or extend changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IgnoreReason {
    /// The message was acked or dropped before.
    Settled,
    /// No such message, or no such attempt, was ever delivered.
    Unknown,
    /// It names an attempt other than the outstanding one.
    Stale,
    /// The sender does not hold a delivery of the message.
    NotHeld,
}

/// A delivery in which something went wrong, as its message's history keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Its number, from 1.
    pub number: u32,
    /// How it ended: nacked, expired or interrupted; of the last delivery of a settled message also acked.
    pub outcome: Outcome,
    /// Who held it; it may have left.
    pub consumer: ConsumerId,
    /// When it was handed over.
    pub sent_at: Time,
    /// When it ended.
    pub ended_at: Time,
}

/// A message as an event shows it.
#[derive(Debug)]
pub struct MessageView<'a, M> {
    /// Its id.
    pub id: MessageId,
    /// What was published.
    pub body: &'a M,
    /// Its size in bytes, as the publisher's shell counted it.
    pub size: u32,
    /// When it was accepted.
    pub accepted_at: Time,
    /// How many deliveries it has had; the number of the last one.
    pub attempts: u32,
    /// How many deliveries failed, one that just ended included.
    pub failures: u32,
    /// How many deliveries were interrupted, one that just ended included.
    pub interruptions: u32,
    /// How many retries are left; `None` = unlimited.
    pub retries_left: Option<u32>,
    /// The deliveries that failed or were interrupted, oldest first, one that just ended included: all of them up to
    /// [`HISTORY`](crate::HISTORY), of more the first and the last half of that. Empty for a clean message.
    pub history: &'a [Attempt],
}

/// One transition. `at` is the instant at which it was due, which for an effect of time may be earlier than the input that
/// brought it about.
#[derive(Debug)]
pub enum Event<'a, M> {
    /// A message was accepted; it is ready.
    Published {
        /// When.
        at: Time,
        /// The message.
        message: MessageView<'a, M>,
    },
    /// A message was handed over to a consumer; it is outstanding.
    Sent {
        /// When.
        at: Time,
        /// The message, this delivery included.
        message: MessageView<'a, M>,
        /// Who holds it.
        consumer: ConsumerId,
        /// How the delivery before ended; `None` for the first. Anything else makes this a redelivery; after a failure it is a
        /// "retry" in metrics and logs.
        after: Option<Outcome>,
    },
    /// A delivery's ack deadline was moved.
    Extended {
        /// When.
        at: Time,
        /// The message.
        message: MessageView<'a, M>,
        /// The new deadline.
        deadline: Time,
    },
    /// A delivery ended. What becomes of the message follows as an event of its own.
    Ended {
        /// When.
        at: Time,
        /// The message.
        message: MessageView<'a, M>,
        /// Who held it; it may have left.
        consumer: ConsumerId,
        /// When the delivery was handed over.
        sent_at: Time,
        /// How it ended.
        outcome: Outcome,
    },
    /// A message is to be delivered again: at once where `delay` is zero, else after it.
    Requeued {
        /// When.
        at: Time,
        /// The message.
        message: MessageView<'a, M>,
        /// How long it is delayed.
        delay: Duration,
    },
    /// A delay has passed: the message is ready; one that was given up is on offer to its dead-letter topic again.
    Due {
        /// When.
        at: Time,
        /// The message.
        message: MessageView<'a, M>,
    },
    /// A message is settled: acked.
    Acked {
        /// When.
        at: Time,
        /// The message.
        message: MessageView<'a, M>,
        /// Whether the ack came after its delivery had ended.
        late: bool,
    },
    /// A message gets no further delivery. It is delayed until its dead-letter topic has taken it, and then dropped.
    GivenUp {
        /// When.
        at: Time,
        /// The message.
        message: MessageView<'a, M>,
        /// Why.
        reason: DropReason,
    },
    /// A message that was given up was offered to its dead-letter topic.
    Offered {
        /// When.
        at: Time,
        /// The message.
        message: MessageView<'a, M>,
        /// Whether it was taken; that the message is dropped follows as an event of its own. Otherwise it is offered again after one
        /// ack deadline.
        taken: bool,
    },
    /// A message is settled: dropped.
    Dropped {
        /// When.
        at: Time,
        /// The message.
        message: MessageView<'a, M>,
        /// Why.
        reason: DropReason,
    },
    /// An ack, nack or extend changed nothing.
    Ignored {
        /// When.
        at: Time,
        /// The message that it named.
        id: MessageId,
        /// What it was.
        verb: Verb,
        /// Why it changed nothing.
        reason: IgnoreReason,
    },
    /// A consumer attached.
    Attached {
        /// When.
        at: Time,
        /// Who.
        consumer: ConsumerId,
    },
    /// A consumer detached. Its deliveries end before this event.
    Detached {
        /// When.
        at: Time,
        /// Who.
        consumer: ConsumerId,
        /// How.
        leave: Leave,
    },
    /// From here on nothing is accepted or delivered; what is outstanding may still be settled.
    Draining {
        /// When.
        at: Time,
    },
}

/// Sees every event, in order, and cannot alter delivery.
pub trait Observer<M> {
    /// Takes note of one event. Called while the subscription is being changed: it must not block.
    fn observe(&mut self, event: &Event<'_, M>);
}

/// Observes nothing.
impl<M> Observer<M> for () {
    fn observe(&mut self, _: &Event<'_, M>) {}
}
