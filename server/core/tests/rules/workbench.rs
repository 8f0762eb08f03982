//! A subscription on the workbench: inputs at given milliseconds, and the events since the last look.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use ackstream_core::{
    Attachment, ConsumerId, Delivery, Event, Leave, MessageId, Nack, Observer, Policy, Subscription, Time, Window,
};

/// When the test begins: any time that is not zero.
const START: Time = Time::from_nanos(1_000_000_000);

pub(crate) fn ms(length: u64) -> Duration {
    Duration::from_millis(length)
}

/// What an event says, as short text: what the tests compare.
#[derive(Clone, Default)]
pub(crate) struct Story(Rc<RefCell<Vec<String>>>);

impl Observer<u64> for Story {
    fn observe(&mut self, event: &Event<'_, u64>) {
        let line = match event {
            Event::Published { at, message } => format!("{} published {}", after(*at), message.id.0),
            Event::Sent { at, message, after: last, .. } => {
                let retry = last.map_or(String::new(), |outcome| format!(" after {outcome:?}"));
                format!("{} sent {}#{}{retry}", after(*at), message.id.0, message.attempts)
            }
            Event::Extended { at, message, deadline } => {
                format!("{} extended {} to {}", after(*at), message.id.0, after(*deadline))
            }
            Event::Ended { at, message, outcome, .. } => format!("{} ended {} {outcome:?}", after(*at), message.id.0),
            Event::Requeued { at, message, delay } => {
                format!("{} requeued {} for {}", after(*at), message.id.0, delay.as_millis())
            }
            Event::Due { at, message } => format!("{} due {}", after(*at), message.id.0),
            Event::GivenUp { at, message, reason } => format!("{} given up {} {reason:?}", after(*at), message.id.0),
            Event::Offered { at, message, taken } => {
                format!("{} offered {} {}", after(*at), message.id.0, if *taken { "taken" } else { "refused" })
            }
            Event::Acked { at, message, late } => {
                format!("{} acked {}{}", after(*at), message.id.0, if *late { " late" } else { "" })
            }
            Event::Dropped { at, message, reason } => format!("{} dropped {} {reason:?}", after(*at), message.id.0),
            Event::Ignored { at, id, verb, reason } => format!("{} ignored {verb:?} {} {reason:?}", after(*at), id.0),
            Event::Attached { at, .. } => format!("{} attached", after(*at)),
            Event::Detached { at, leave, .. } => format!("{} detached {leave:?}", after(*at)),
            Event::Draining { at } => format!("{} draining", after(*at)),
        };
        self.0.borrow_mut().push(line);
    }
}

fn after(time: Time) -> u128 {
    time.since(START).as_millis()
}

pub(crate) struct Workbench {
    pub(crate) subscription: Subscription<u64, Story>,
    story: Story,
    published: u64,
}

impl Workbench {
    /// Ack deadline 100 ms, 3 retries, no backoff.
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut Policy)) -> Self {
        let mut policy = Policy { ack_deadline: ms(100), ..Policy::default() };
        change(&mut policy);
        let story = Story::default();
        Self { subscription: Subscription::new(policy, story.clone()), story, published: 0 }
    }

    pub(crate) fn time(at: u64) -> Time {
        START.plus(ms(at))
    }

    /// Publishes messages of one byte.
    pub(crate) fn publish(&mut self, at: u64, count: u64) {
        for _ in 0..count {
            self.publish_sized(at, 1);
        }
    }

    pub(crate) fn publish_sized(&mut self, at: u64, size: u32) {
        self.subscription.check_room(size, Self::time(at)).expect("the test publishes no more than fits");
        self.published += 1;
        self.subscription.enqueue(MessageId(self.published), self.published, size, Self::time(at));
    }

    /// A consumer with room for a thousand messages.
    pub(crate) fn attach(&mut self, at: u64) -> ConsumerId {
        self.attach_with(at, 1_000, u64::MAX)
    }

    pub(crate) fn attach_with(&mut self, at: u64, max_messages: u32, max_bytes: u64) -> ConsumerId {
        let window = Window { max_messages, max_bytes };
        self.subscription.attach(Attachment { window, handlers: 0, auto_ack: false }, Self::time(at))
    }

    /// A consumer with room for a thousand messages that handles so many at the same time.
    pub(crate) fn attach_handlers(&mut self, at: u64, handlers: u32) -> ConsumerId {
        self.subscription.attach(Self::attachment(handlers), Self::time(at))
    }

    pub(crate) const fn attachment(handlers: u32) -> Attachment {
        Attachment { window: Window { max_messages: 1_000, max_bytes: u64::MAX }, handlers, auto_ack: false }
    }

    pub(crate) fn suspend(&mut self, at: u64, consumer: ConsumerId, leave: Leave, until: u64) {
        self.subscription.suspend(consumer, leave, Self::time(until), Self::time(at));
    }

    /// A suspended consumer is back, with one handler, and holds these messages.
    pub(crate) fn resume(&mut self, at: u64, consumer: ConsumerId, held: &[u64]) -> bool {
        self.subscription.resume(consumer, Self::attachment(1), |id| held.contains(&id.0), Self::time(at))
    }

    pub(crate) fn release(&mut self, at: u64, consumer: ConsumerId, id: u64) {
        self.nack(at, consumer, id, Nack { release: true, ..Nack::default() });
    }

    pub(crate) fn heard(&mut self, at: u64, consumer: ConsumerId) {
        self.subscription.heard(consumer, Self::time(at));
    }

    pub(crate) fn detach(&mut self, at: u64, consumer: ConsumerId, leave: Leave) {
        self.subscription.detach(consumer, leave, Self::time(at));
    }

    pub(crate) fn take(&mut self, at: u64, consumer: ConsumerId) -> Option<Delivery<u64>> {
        self.subscription.next_delivery(consumer, Self::time(at))
    }

    /// Takes all that the consumer gets, as (id, attempt).
    pub(crate) fn take_all(&mut self, at: u64, consumer: ConsumerId) -> Vec<(u64, u32)> {
        std::iter::from_fn(|| self.take(at, consumer)).map(|delivery| (delivery.id.0, delivery.attempt)).collect()
    }

    pub(crate) fn ack(&mut self, at: u64, id: u64) {
        self.subscription.ack(MessageId(id), None, Self::time(at));
    }

    pub(crate) fn ack_attempt(&mut self, at: u64, id: u64, attempt: u32) {
        self.subscription.ack(MessageId(id), Some(attempt), Self::time(at));
    }

    pub(crate) fn nack(&mut self, at: u64, consumer: ConsumerId, id: u64, nack: Nack) {
        self.subscription.nack(consumer, MessageId(id), None, nack, Self::time(at));
    }

    pub(crate) fn extend(&mut self, at: u64, consumer: ConsumerId, id: u64, length: Duration) {
        self.subscription.extend(consumer, MessageId(id), None, length, Self::time(at));
    }

    pub(crate) fn advance(&mut self, at: u64) {
        self.subscription.advance(Self::time(at));
    }

    /// Offers one message that was given up to a dead-letter topic that takes it or not.
    pub(crate) fn offer(&mut self, at: u64, takes: bool) -> Option<bool> {
        self.subscription.offer_dead_letter(Self::time(at), |_, _| takes)
    }

    /// The events since the last look.
    pub(crate) fn events(&mut self) -> Vec<String> {
        std::mem::take(&mut self.story.0.borrow_mut())
    }

    /// Everyone who is to be woken.
    pub(crate) fn wakes(&mut self) -> Vec<ConsumerId> {
        std::iter::from_fn(|| self.subscription.next_wake()).collect()
    }

    /// When time is due next, in milliseconds after the start.
    pub(crate) fn next_due(&self) -> Option<u128> {
        self.subscription.next_due().map(after)
    }

    /// One message, delivered to a new consumer at 0; the events of that are forgotten.
    pub(crate) fn with_one_outstanding(mut self) -> (Self, ConsumerId) {
        let consumer = self.attach(0);
        self.publish(0, 1);
        assert_eq!(self.take_all(0, consumer), [(1, 1)]);
        self.events();
        (self, consumer)
    }
}
