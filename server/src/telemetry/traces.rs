//! One trace per message. The spans of a message are made when it is settled, from the instants that its state holds. Whether they
//! will be is decided when it is handed over, since the frame tells the client: what a frame promises is kept. Until a message is
//! settled nothing of it is held but that promise, and an unsampled message costs two decisions. Under a subscription's lock a settled
//! message only becomes a small record in a bounded queue; a task of its own makes the spans and sends them.

mod consumers;
mod context;
mod environment;
mod exporter;
mod limits;
mod outage;
mod partial_success;
mod spans;

use std::sync::Arc;

use ackstream_core::{Attempt, ConsumerId, DropReason, Event, MessageId, MessageView, Outcome, Time};
use rustc_hash::FxHashSet;
use tokio::sync::mpsc;

use super::{OnTheWay, TraceCounts};
use crate::message::Message;
use consumers::Consumers;
pub(crate) use context::LENGTH as TRACEPARENT_LENGTH;
pub use context::{Contexts, Sampler, TRACEPARENT};
pub use environment::{Environment, TraceSettings};
pub use exporter::Exporter;
use limits::{Kind, Limits};
use spans::{End, Origin, Push, Record};

/// Its own and that of its one delivery.
const SPANS_OF_A_CLEAN_MESSAGE: u64 = 2;

/// Where settled messages go to be traced, and what decides whether they may; shared by all subscriptions.
#[derive(Clone, Debug)]
pub struct Tracing {
    sampler: Sampler,
    queue: mpsc::Sender<Record>,
    limits: Arc<Limits>,
    counts: Arc<TraceCounts>,
}

/// Traces one subscription's messages.
#[derive(Debug)]
pub struct Traces {
    tracing: Tracing,
    contexts: Contexts,
    origin: Arc<Origin>,
    consumers: Consumers,
    /// Unsettled messages of which a frame said that they are sampled: no more than are unsettled, and no more than the caps let in.
    promised: FxHashSet<MessageId>,
    /// Whether the last delivery is of those.
    last_sampled: bool,
}

impl Traces {
    /// Of this subscription, of a topic with this epoch.
    pub fn new(tracing: Tracing, topic: &str, epoch: u64, subscription: &str) -> Self {
        let contexts = Contexts::new(epoch, subscription, tracing.sampler);
        let origin = Arc::new(Origin { topic: topic.to_owned(), subscription: subscription.to_owned() });
        let consumers = Consumers::default();
        Self { tracing, contexts, origin, consumers, promised: FxHashSet::default(), last_sampled: false }
    }

    /// Which trace each message belongs to.
    pub const fn contexts(&self) -> Contexts {
        self.contexts
    }

    /// Whether the last delivery's frame says that it is sampled.
    pub const fn last_sampled(&self) -> bool {
        self.last_sampled
    }

    /// How a consumer that has just attached calls itself.
    pub fn name(&mut self, consumer: ConsumerId, client_id: &str) {
        self.consumers.name(consumer, client_id);
    }

    #[inline] // a clean message passes here four times
    pub(super) fn observe<M: AsRef<Message>>(&mut self, event: &Event<'_, M>) {
        match event {
            Event::Published { message, .. } => {
                if context::parent_in(message.body.as_ref()).is_err() {
                    self.tracing.counts.count_context_ignored();
                }
            }
            Event::Ended { at, message, consumer, sent_at, outcome: Outcome::Acked } => {
                let clean = message.history.is_empty();
                if clean && (self.promised.is_empty() || !self.promised.contains(&message.id)) {
                    if self.is_wanted(message) {
                        self.tracing.counts.count_rate_limited(SPANS_OF_A_CLEAN_MESSAGE);
                    }
                    return;
                }
                let last = Attempt {
                    number: message.attempts,
                    outcome: Outcome::Acked,
                    consumer: *consumer,
                    sent_at: *sent_at,
                    ended_at: *at,
                };
                self.settled(*at, message, End::Acked { late: false }, Some(last));
            }
            Event::Acked { at, message, late: true } => self.settled(*at, message, End::Acked { late: true }, None),
            Event::Dropped { at, message, reason } => self.settled(*at, message, End::Dropped(*reason), None),
            Event::Detached { consumer, .. } => self.consumers.left(*consumer),
            Event::Sent { at, message, after, .. } => {
                self.last_sampled = match after {
                    None => self.is_wanted(message) && self.promise(Kind::Clean, *at, message.id),
                    Some(_) => self.promised.contains(&message.id) || self.promise(Kind::Retried, *at, message.id),
                };
            }
            Event::Acked { late: false, .. } // its delivery has told
            | Event::Extended { .. }
            | Event::Ended { outcome: Outcome::Nacked | Outcome::Expired | Outcome::Interrupted | Outcome::Released(_), .. }
            | Event::Requeued { .. }
            | Event::Due { .. }
            | Event::GivenUp { .. }
            | Event::Offered { .. }
            | Event::Ignored { .. }
            | Event::Attached { .. }
            | Event::Draining { .. } => {}
        }
    }

    /// Whether the sampler wants a message with which nothing went wrong.
    #[inline]
    fn is_wanted<M: AsRef<Message>>(&self, message: &MessageView<'_, M>) -> bool {
        self.contexts.samples(message.id, message.body.as_ref())
    }

    /// Promises a trace of this message, where the cap has room for it.
    #[cold]
    fn promise(&mut self, kind: Kind, at: Time, id: MessageId) -> bool {
        self.tracing.limits.admit(kind, at) && self.promised.insert(id)
    }

    /// A message is settled and to be traced. `last` is its last delivery where that was acked; all others are in the history.
    #[cold]
    fn settled<M: AsRef<Message>>(&mut self, at: Time, message: &MessageView<'_, M>, end: End, last: Option<Attempt>) {
        let kind = match end {
            End::Dropped(DropReason::MaxRetries | DropReason::Rejected | DropReason::MaxInterruptions) => Kind::Dropped,
            End::Acked { .. } if message.history.is_empty() => Kind::Clean,
            End::Acked { .. } => Kind::Retried,
        };
        let attempts = message.history.iter().copied().chain(last);
        let spans = 1 + attempts.clone().count() as u64;
        let counts = &self.tracing.counts;
        // A client records every attempt that it did not ack, but one that it acked only where the frame said so.
        let admitted = self.promised.remove(&message.id) || (last.is_none() && self.tracing.limits.admit(kind, at));
        if !admitted {
            counts.count_rate_limited(spans);
            return;
        }
        let trace = self.contexts.trace(message.id, message.body.as_ref());
        let record = Record {
            origin: Arc::clone(&self.origin),
            id: message.id,
            trace,
            accepted_at: message.accepted_at,
            settled_at: at,
            end,
            attempts: message.attempts,
            pushes: attempts
                .map(|attempt| Push { client_id: self.consumers.client_id(attempt.consumer), attempt })
                .collect(),
            on_the_way: OnTheWay::new(Arc::clone(counts), spans),
        };
        if let Err(mpsc::error::TrySendError::Full(record)) = self.tracing.queue.try_send(record) {
            record.on_the_way.found_it_full();
        }
    }
}
