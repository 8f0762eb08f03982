//! The rules of at-least-once delivery, as a pure state machine.
//!
//! A [`Subscription`] owns every message that its topic has accepted until the message is **settled**: acked, or dropped for a
//! reason. It is *sans I/O*: it reads no clock, takes no lock, starts no task and draws no random number. All that moves it are
//! its inputs, each with the time at which it happened, so the same inputs at the same times give the same result.
//!
//! ```text
//!                 hand over                       ack
//!   publish ──▶ ready ────────▶ outstanding ────────────▶ settled: acked
//!                 ▲  ▲               │  │                    ▲
//!                 │  │ retry         │  │ nack with drop,    │ late ack, of a message that is
//!                 │  ╰───────────────┤  │ or no retry left   │ ready, delayed or given up
//!             due │        retry     │  ├──────────▶ settled: dropped
//!                 ╰──── delayed ◀────╯  │                    ▲
//!                                       ╰─ given up ─────────╯ taken by the dead-letter topic,
//!                                                              where the policy has one
//! ```
//!
//! A message that is given up counts as delayed.
//!
//! How a delivery ends says what it costs. A **failure** (nacked, expired) costs a retry. An **interruption** (the consumer's stream
//! broke while the delivery was in progress, and it did not resume) costs none; from the second one on the message is delivered
//! **alone**, and only interruptions while it is alone can drop it. A **release** costs nothing.
//!
//! A consumer is attached over one stream or several. Between two of them it is **suspended**: it holds what it holds, no deadline
//! passes, and it gets nothing.
//!
//! ```text
//!             suspend                 resume
//!   attached ─────────▶ suspended ─────────────▶ attached
//!       │ detach            │ its grace is over, or a drain
//!       ╰───────────────────┴──────▶ detached
//! ```
//!
//! The methods of [`Subscription`] are of four kinds:
//!
//! - **inputs** change it: [`enqueue`](Subscription::enqueue) (through [`Topic::publish`]), [`attach`](Subscription::attach),
//!   [`detach`](Subscription::detach), [`suspend`](Subscription::suspend), [`resume`](Subscription::resume),
//!   [`heard`](Subscription::heard), [`ack`](Subscription::ack), [`nack`](Subscription::nack), [`extend`](Subscription::extend),
//!   [`drain`](Subscription::drain);
//! - **pulls** hand something over: [`next_delivery`](Subscription::next_delivery) when a consumer asks for one,
//!   [`offer_dead_letter`](Subscription::offer_dead_letter) when the dead-letter topic may take one,
//!   [`next_wake`](Subscription::next_wake) after every other call;
//! - **time**: [`next_due`](Subscription::next_due) says when [`advance`](Subscription::advance) must be called;
//! - **getters** change nothing that anyone could see.
//!
//! What happens is told as [`Event`]s to an [`Observer`], which cannot alter it. Three laws hold after every call, and a call that
//! would break them panics:
//!
//! ```text
//! messages:    published = acked + dropped + ready + delayed + outstanding
//! deliveries:  sent      = acked + nacked + expired + interrupted + released + outstanding
//! fairness:    each drop names the message's own failures, its rejection, or its own interruptions
//! ```
//!
//! Effects of time happen in the order and at the instant in which they were due, however late they are computed: before an input at
//! t come all effects that were due at t. A call applies at most [`PASS`] of them, so that a million deliveries that expire
//! together hold nobody up. What is left makes `next_due` answer at once; nothing overtakes it, an input finds it as it will be, and
//! until a pass comes to it it fills the windows and the backlog that it filled before.

mod consumers;
mod counts;
mod event;
mod history;
mod messages;
mod policy;
mod slab;
mod subscription;
mod time;
mod topic;

pub use consumers::{Attachment, ConsumerCounts, ConsumerId, Window};
pub use counts::{Backlog, Counts, Ended};
pub use event::{
    Attempt, DropReason, Event, IgnoreReason, Leave, MessageId, MessageView, Observer, Outcome, Release, Verb,
};
pub use history::HISTORY;
pub use policy::{
    ALONE_AFTER, Backoff, MAX_DELAY, MAX_DELIVERY, MAX_INTERRUPTION_DELAY, MAX_RETRIES, MIN_ACK_DEADLINE, Policy,
    PolicyError,
};
pub use subscription::{
    Delivery, Nack, PASS, PROBE_AFTER_AT_LEAST, PROBE_AFTER_DEADLINES, RESERVED_FOR, Refusal, Subscription,
    WAKE_PATIENCE,
};
pub use time::Time;
pub use topic::{Refused, Topic};
