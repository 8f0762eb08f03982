//! What a subscription tells its observer, kept so that it can be compared, and what follows from these words alone.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use ackstream_core::{
    Backlog, ConsumerId, Counts, DropReason, Event, IgnoreReason, Leave, MessageView, Observer, Outcome, Time, Verb,
};

/// What is published: a number that differs from the message's id, so that neither can stand in for the other.
pub(crate) type Body = u64;

/// A message as an event showed it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Seen {
    pub(crate) id: u64,
    pub(crate) body: Body,
    pub(crate) size: u32,
    pub(crate) accepted_at: Time,
    pub(crate) attempts: u32,
    pub(crate) failures: u32,
    pub(crate) interruptions: u32,
    pub(crate) retries_left: Option<u32>,
}

/// An event that can be kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Told {
    pub(crate) at: Time,
    pub(crate) what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum What {
    Published(Seen),
    Sent { message: Seen, consumer: ConsumerId, after: Option<Outcome> },
    Extended { message: Seen, deadline: Time },
    Ended { message: Seen, consumer: ConsumerId, sent_at: Time, outcome: Outcome },
    Requeued { message: Seen, delay: Duration },
    Due(Seen),
    GivenUp { message: Seen, reason: DropReason },
    Offered { message: Seen, taken: bool },
    Acked { message: Seen, late: bool },
    Dropped { message: Seen, reason: DropReason },
    Ignored { id: u64, verb: Verb, reason: IgnoreReason },
    Attached(ConsumerId),
    Detached { consumer: ConsumerId, leave: Leave },
    Draining,
}

/// The observer of a simulated subscription; its clones share one list.
#[derive(Clone, Default)]
pub(crate) struct Recorder(Rc<RefCell<Vec<Told>>>);

impl Recorder {
    /// What was told since the last time.
    pub(crate) fn take(&self) -> Vec<Told> {
        self.0.take()
    }
}

impl Observer<Body> for Recorder {
    fn observe(&mut self, event: &Event<'_, Body>) {
        self.0.borrow_mut().push(keep(event));
    }
}

fn keep(event: &Event<'_, Body>) -> Told {
    let (at, what) = match event {
        Event::Published { at, message } => (at, What::Published(seen(message))),
        &Event::Sent { ref at, ref message, consumer, after } => {
            (at, What::Sent { message: seen(message), consumer, after })
        }
        &Event::Extended { ref at, ref message, deadline } => (at, What::Extended { message: seen(message), deadline }),
        &Event::Ended { ref at, ref message, consumer, sent_at, outcome } => {
            (at, What::Ended { message: seen(message), consumer, sent_at, outcome })
        }
        &Event::Requeued { ref at, ref message, delay } => (at, What::Requeued { message: seen(message), delay }),
        Event::Due { at, message } => (at, What::Due(seen(message))),
        &Event::GivenUp { ref at, ref message, reason } => (at, What::GivenUp { message: seen(message), reason }),
        &Event::Offered { ref at, ref message, taken } => (at, What::Offered { message: seen(message), taken }),
        &Event::Acked { ref at, ref message, late } => (at, What::Acked { message: seen(message), late }),
        &Event::Dropped { ref at, ref message, reason } => (at, What::Dropped { message: seen(message), reason }),
        &Event::Ignored { ref at, id, verb, reason } => (at, What::Ignored { id: id.0, verb, reason }),
        &Event::Attached { ref at, consumer } => (at, What::Attached(consumer)),
        &Event::Detached { ref at, consumer, leave } => (at, What::Detached { consumer, leave }),
        Event::Draining { at } => (at, What::Draining),
    };
    Told { at: *at, what }
}

fn seen(message: &MessageView<'_, Body>) -> Seen {
    Seen {
        id: message.id.0,
        body: *message.body,
        size: message.size,
        accepted_at: message.accepted_at,
        attempts: message.attempts,
        failures: message.failures,
        interruptions: message.interruptions,
        retries_left: message.retries_left,
    }
}

/// What somebody knows who has heard every event and nothing else. A subscription's getters must say the same.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) counts: Counts,
    pub(crate) backlog: Backlog,
    pub(crate) bytes: u64,
    /// What is on offer to the dead-letter topic, in its order, and since when.
    pub(crate) on_offer_as_dead: Vec<(u64, Time)>,
    unsettled: BTreeMap<u64, Entry>,
    held: BTreeMap<ConsumerId, Held>,
}

struct Entry {
    place: Place,
    size: u32,
    accepted_at: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Ready,
    Delayed,
    Outstanding,
    GivenUp,
}

/// What one consumer holds.
#[derive(Clone, Copy, Default)]
pub(crate) struct Held {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

impl Ledger {
    /// Notes one event. An event that cannot follow on those before it is a panic: nothing is published twice, nothing is settled
    /// twice, nothing ends that was not handed over.
    pub(crate) fn note(&mut self, told: &Told) {
        match &told.what {
            What::Published(message) => {
                let entry = Entry { place: Place::Ready, size: message.size, accepted_at: message.accepted_at };
                let before = self.unsettled.insert(message.id, entry);
                assert!(before.is_none(), "message {} was published twice", message.id);
                self.counts.published += 1;
                self.backlog.ready += 1;
                self.bytes += u64::from(message.size);
            }
            What::Sent { message, consumer, after: _ } => {
                self.put(message.id, Place::Ready, Place::Outstanding);
                self.counts.sent += 1;
                let held = self.held.get_mut(consumer).expect("only an attached consumer receives");
                held.messages += 1;
                held.bytes += u64::from(message.size);
            }
            What::Ended { message, consumer, sent_at: _, outcome } => {
                // Where it goes is told next; the laws are checked after that.
                self.put(message.id, Place::Outstanding, Place::Ready);
                let ended = &mut self.counts.ended;
                *match outcome {
                    Outcome::Acked => &mut ended.acked,
                    Outcome::Nacked => &mut ended.nacked,
                    Outcome::Expired => &mut ended.expired,
                    Outcome::Interrupted => &mut ended.interrupted,
                    Outcome::Released(_) => &mut ended.released,
                } += 1;
                if let Some(held) = self.held.get_mut(consumer) {
                    held.messages -= 1;
                    held.bytes -= u64::from(message.size);
                }
            }
            What::Requeued { message, delay } if !delay.is_zero() => {
                self.put(message.id, Place::Ready, Place::Delayed);
            }
            What::Due(message) if self.is_given_up(message.id) => self.on_offer_as_dead.push((message.id, told.at)),
            What::Due(message) => self.put(message.id, Place::Delayed, Place::Ready),
            What::GivenUp { message, reason: _ } => {
                self.put(message.id, Place::Ready, Place::GivenUp);
                self.on_offer_as_dead.push((message.id, told.at));
            }
            What::Offered { message, taken: _ } => {
                let (first, _) = self.on_offer_as_dead.remove(0);
                assert_eq!(first, message.id, "dead letters are offered in their order");
            }
            What::Acked { message, late: _ } => {
                self.counts.acked += 1;
                self.settle(message.id);
            }
            What::Dropped { message, reason: _ } => {
                self.counts.dropped += 1;
                self.settle(message.id);
            }
            What::Attached(consumer) => {
                let before = self.held.insert(*consumer, Held::default());
                assert!(before.is_none(), "{consumer:?} was given twice");
            }
            What::Detached { consumer, leave: _ } => {
                self.held.remove(consumer).expect("a consumer that leaves was attached");
            }
            What::Requeued { .. } | What::Extended { .. } | What::Ignored { .. } | What::Draining => {}
        }
    }

    /// When the oldest message that is not settled was accepted.
    pub(crate) fn oldest_accepted_at(&self) -> Option<Time> {
        self.unsettled.values().next().map(|entry| entry.accepted_at)
    }

    /// What an attached consumer holds; nothing for any other.
    pub(crate) fn held(&self, consumer: ConsumerId) -> Held {
        self.held.get(&consumer).copied().unwrap_or_default()
    }

    /// Whether the message waits for its dead-letter topic.
    pub(crate) fn is_given_up(&self, id: u64) -> bool {
        self.unsettled.get(&id).is_some_and(|entry| entry.place == Place::GivenUp)
    }

    fn put(&mut self, id: u64, from: Place, to: Place) {
        let entry = self.unsettled.get_mut(&id).expect("only an unsettled message moves");
        assert_eq!(entry.place, from, "message {id} moves from where it is");
        entry.place = to;
        *self.count(from) -= 1;
        *self.count(to) += 1;
    }

    fn settle(&mut self, id: u64) {
        let entry = self.unsettled.remove(&id).expect("a message is settled once");
        *self.count(entry.place) -= 1;
        self.on_offer_as_dead.retain(|(dead, _)| *dead != id);
        self.bytes -= u64::from(entry.size);
    }

    const fn count(&mut self, place: Place) -> &mut u64 {
        match place {
            Place::Ready => &mut self.backlog.ready,
            Place::Delayed | Place::GivenUp => &mut self.backlog.delayed,
            Place::Outstanding => &mut self.backlog.outstanding,
        }
    }
}
