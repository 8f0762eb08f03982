//! The state machine of one subscription: its inputs and what can be asked of it. What they lead to is in [`transitions`], [`offers`] and
//! [`leaving`].

mod leaving;
mod offers;
mod transitions;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use rustc_hash::FxHashMap;

use crate::consumers::{Attachment, ConsumerCounts, ConsumerId, Consumers};
use crate::counts::{Backlog, Counts};
use crate::event::{DropReason, Event, Leave, MessageId, MessageView, Observer, Outcome, Release, Verb};
use crate::messages::{BY_STATE, List, Messages};
use crate::policy::{MAX_DELAY, Policy};
use crate::slab::Key;
use crate::time::Time;
use transitions::Cause;

/// At most so many effects of time are applied in one call: at 40 to 160 ns each, well under a millisecond.
pub const PASS: usize = 1024;

/// Where a consumer was woken and nobody takes a message for so long, the next one is woken: a stream whose client's HTTP/2 window
/// is full is never polled, so its wake is lost (measured).
pub const WAKE_PATIENCE: Duration = Duration::from_millis(5);

/// While a message waits to be delivered alone, one consumer gets nothing else for so long, until it is empty: as long as the ack
/// deadline of a topic takes by default. Then it is the next one's turn.
pub const RESERVED_FOR: Duration = Duration::from_secs(30);

/// An unresponsive consumer is probed after so many ack deadlines, but after [`PROBE_AFTER_AT_LEAST`].
pub const PROBE_AFTER_DEADLINES: u32 = 10;
/// See [`PROBE_AFTER_DEADLINES`]: a process that was stopped for less is most likely about to return.
pub const PROBE_AFTER_AT_LEAST: Duration = Duration::from_secs(30);

/// One subscription of a topic: a full copy of the topic's messages, shared by its consumers.
///
/// `M` is the message as its consumers get it; the core never looks inside, and clones it for each delivery.
pub struct Subscription<M, O> {
    policy: Policy,
    observer: O,
    counts: Counts,
    messages: Messages<M>,
    consumers: Consumers,
    /// Ready and never delivered, in the order of their ids.
    first: List<BY_STATE>,
    /// Ready for redelivery, in the order in which they became due.
    again: List<BY_STATE>,
    /// Ready for redelivery, behind effects that were due before and that no pass has come to.
    later: List<BY_STATE>,
    /// Outstanding with the policy's deadline, in the order of hand-over. As all have the same length, that is the order of deadlines.
    deadlines: List<BY_STATE>,
    /// Given up, on offer to the dead-letter topic, in the order in which they came to be.
    given_up: List<BY_STATE>,
    /// Ready to be delivered alone, in the order in which they became ready.
    alone: List<BY_STATE>,
    /// Who gets nothing but the first of those.
    reserved: Option<Reservation>,
    reservations: u64,
    /// Consumers that have given ready messages back, by when they gave back the first of them, and how many messages these are.
    gave_back: BTreeSet<(Time, ConsumerId)>,
    given_back: u64,
    /// Delayed messages, refused dead letters, and deliveries that end at an instant of their own, by that instant.
    schedule: BTreeSet<(Time, MessageId, Key)>,
    /// When those deliveries end: the moved ones, and those of suspended consumers.
    extended: FxHashMap<Key, Time>,
    /// When suspended consumers leave that have not resumed.
    graces: BTreeSet<(Time, ConsumerId)>,
    /// When a responsive consumer took its last delivery.
    taken_at: Time,
    /// No effect of time is due before.
    quiet_until: Time,
    /// When to stop counting on the consumers that were woken.
    patience: Time,
    draining: bool,
    /// The latest time that any input told.
    now: Time,
}

/// A consumer that gets nothing but a message alone, once it is empty.
#[derive(Clone, Copy)]
struct Reservation {
    consumer: ConsumerId,
    /// When it is the next one's turn.
    until: Time,
}

/// A message that was just handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery<M> {
    /// The message's id.
    pub id: MessageId,
    /// The number of this delivery, from 1.
    pub attempt: u32,
    /// How many deliveries of it failed before.
    pub failures: u32,
    /// How many deliveries of it were interrupted before.
    pub interruptions: u32,
    /// What was published.
    pub body: M,
    /// When it was accepted.
    pub accepted_at: Time,
    /// When this delivery expires.
    pub deadline: Time,
}

/// What a nack asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nack {
    /// Deliver the message again after this long, at most 24 h; zero = at once. `None`: after the backoff, or after one ack deadline
    /// where the policy has no backoff.
    pub delay: Option<Duration>,
    /// Give the message up, whatever retries are left.
    pub drop: bool,
    /// It has not failed: it goes back at no cost, and whoever gives it back gets it again after one ack deadline at the earliest.
    /// Goes before all else.
    pub release: bool,
}

/// Why a subscription does not take a message. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its backlog holds as many messages as the policy allows.
    TooManyMessages {
        /// The bound.
        max: u64,
    },
    /// With this message its backlog would hold more bytes than the policy allows.
    TooManyBytes {
        /// The bound.
        max: u64,
    },
    /// It is draining.
    Draining,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyMessages { max } => write!(f, "its backlog is full (max_backlog_messages = {max})"),
            Self::TooManyBytes { max } => write!(f, "its backlog is full (max_backlog_bytes = {max})"),
            Self::Draining => write!(f, "it is draining"),
        }
    }
}

impl<M: Clone, O: Observer<M>> Subscription<M, O> {
    /// A subscription without messages or consumers.
    ///
    /// # Panics
    ///
    /// Where the policy has [problems](Policy::problems).
    pub fn new(policy: Policy, observer: O) -> Self {
        assert_eq!(policy.problems(), [], "a policy within its bounds");
        Self {
            policy,
            observer,
            counts: Counts::default(),
            messages: Messages::new(),
            consumers: Consumers::new(),
            first: List::new(),
            again: List::new(),
            later: List::new(),
            deadlines: List::new(),
            given_up: List::new(),
            alone: List::new(),
            reserved: None,
            reservations: 0,
            gave_back: BTreeSet::new(),
            given_back: 0,
            schedule: BTreeSet::new(),
            extended: FxHashMap::default(),
            graces: BTreeSet::new(),
            taken_at: Time::ZERO,
            quiet_until: Time::MAX,
            patience: Time::ZERO,
            draining: false,
            now: Time::ZERO,
        }
    }

    /// Whether a message of `size` bytes would be accepted at `now`.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn check_room(&mut self, size: u32, now: Time) -> Result<(), Refusal> {
        self.begin(now);
        self.finish();
        let Policy { max_backlog_messages, max_backlog_bytes, .. } = self.policy;
        if self.draining {
            Err(Refusal::Draining)
        } else if self.messages.len() >= max_backlog_messages {
            Err(Refusal::TooManyMessages { max: max_backlog_messages })
        } else if self.messages.bytes() + u64::from(size) > max_backlog_bytes {
            Err(Refusal::TooManyBytes { max: max_backlog_bytes })
        } else {
            Ok(())
        }
    }

    /// Accepts a message for which [`check_room`](Self::check_room) found room. `id` is higher than any before.
    pub fn enqueue(&mut self, id: MessageId, body: M, size: u32, now: Time) {
        self.begin(now);
        let key = self.messages.insert(id, body, size, self.now);
        self.first.push_back(&mut self.messages, key);
        self.tell(key, |at, message| Event::Published { at, message });
        self.finish();
    }

    /// A consumer attaches. It gets nothing until it asks with [`next_delivery`](Self::next_delivery).
    pub fn attach(&mut self, attachment: Attachment, now: Time) -> ConsumerId {
        self.begin(now);
        let consumer = self.consumers.attach(attachment, self.now);
        self.tell_event(&Event::Attached { at: self.now, consumer });
        self.finish();
        consumer
    }

    /// A consumer leaves. What it holds is released in the order of hand-over, but that what was in progress on a broken stream is
    /// interrupted. What it has given back is anybody's.
    pub fn detach(&mut self, consumer: ConsumerId, leave: Leave, now: Time) {
        self.begin(now);
        self.leave(consumer, leave);
        self.finish();
    }

    /// A consumer's stream is gone, and it may [`resume`](Self::resume) until then. Its deliveries end at that instant, or
    /// [`MAX_DELIVERY`](crate::MAX_DELIVERY) after their hand-over if that is sooner. While draining it leaves at once.
    pub fn suspend(&mut self, consumer: ConsumerId, leave: Leave, until: Time, now: Time) {
        self.begin(now);
        if self.consumers.get(consumer).is_some_and(|known| known.suspended.is_none()) {
            if self.draining || until <= self.now {
                self.leave(consumer, leave);
            } else {
                self.begin_grace(consumer, leave, until);
            }
        }
        self.finish();
    }

    /// A suspended consumer is back. Of what it held before, each delivery that it still `holds` has one ack deadline from now; all
    /// others are released. It keeps its place. Says whether it was still there.
    pub fn resume(
        &mut self,
        consumer: ConsumerId,
        attachment: Attachment,
        holds: impl Fn(MessageId) -> bool,
        now: Time,
    ) -> bool {
        self.begin(now);
        let grace = self.consumers.get(consumer).and_then(|known| known.suspended);
        let resumes = !self.draining && grace.is_some_and(|(until, _)| until > self.now);
        if resumes {
            self.end_grace(consumer, attachment, holds);
        }
        self.finish();
        resumes
    }

    /// A consumer said something, whatever it was.
    pub fn heard(&mut self, consumer: ConsumerId, now: Time) {
        self.begin(now);
        self.consumers.heard(consumer, self.now);
        self.finish();
    }

    /// A consumer asks for its next delivery. With `None` it is woken (see [`next_wake`](Self::next_wake)) when asking again may help:
    /// a message is ready and its window has room.
    ///
    /// Redeliveries go before first deliveries, in the order in which they became due.
    pub fn next_delivery(&mut self, consumer: ConsumerId, now: Time) -> Option<Delivery<M>> {
        self.begin(now);
        let turn = self.consumers.come(consumer);
        let delivery = self.try_delivery(consumer, turn);
        if delivery.is_some() {
            self.patience = self.now.plus(WAKE_PATIENCE);
        }
        self.finish();
        delivery
    }

    /// The size of the message that this consumer's next delivery would be; `None` where there is none for it.
    pub fn next_size(&self, consumer: ConsumerId) -> Option<u32> {
        self.next_for(consumer).map(|key| self.messages.slot(key).size)
    }

    /// The message is done, whoever says so: an outstanding one, or one that is ready or delayed after an earlier delivery (a late ack
    /// wins). `attempt` narrows it to that delivery; any other ack is ignored.
    pub fn ack(&mut self, id: MessageId, attempt: Option<u32>, now: Time) {
        self.begin(now);
        if let Err(reason) = self.try_ack(id, attempt) {
            self.tell_event(&Event::Ignored { at: self.now, id, verb: Verb::Ack, reason });
        }
        self.finish();
    }

    /// The delivery that `consumer` holds has failed, unless the nack only releases it.
    pub fn nack(&mut self, consumer: ConsumerId, id: MessageId, attempt: Option<u32>, nack: Nack, now: Time) {
        self.begin(now);
        match self.held_by(consumer, id, attempt) {
            Ok(key) if nack.release => {
                self.end_delivery(key, Outcome::Released(Release::GivenBack), self.now);
                self.give_back(key, consumer);
            }
            Ok(key) => {
                let delay = nack.delay.map_or_else(|| self.default_nack_delay(key), |delay| delay.min(MAX_DELAY));
                self.end_delivery(key, Outcome::Nacked, self.now);
                if nack.drop {
                    self.give_up(key, DropReason::Rejected, self.now);
                } else {
                    self.retry(key, delay, Cause::Input);
                }
            }
            Err(reason) => self.tell_event(&Event::Ignored { at: self.now, id, verb: Verb::Nack, reason }),
        }
        self.finish();
    }

    /// The delivery that `consumer` holds expires `length` from now, at most 1 h after its hand-over.
    pub fn extend(&mut self, consumer: ConsumerId, id: MessageId, attempt: Option<u32>, length: Duration, now: Time) {
        self.begin(now);
        match self.held_by(consumer, id, attempt) {
            Ok(key) => self.move_deadline(key, length),
            Err(reason) => self.tell_event(&Event::Ignored { at: self.now, id, verb: Verb::Extend, reason }),
        }
        self.finish();
    }

    /// Offers the message that was given up first, and why, to the dead-letter topic; `take` says whether that took it. It is dropped
    /// if so, and else offered again after one ack deadline. `None`: nothing is on offer. To be called while
    /// [`next_due`](Self::next_due) answers with an instant that has passed.
    pub fn offer_dead_letter(
        &mut self,
        now: Time,
        take: impl FnOnce(&MessageView<'_, M>, DropReason) -> bool,
    ) -> Option<bool> {
        self.begin(now);
        let key = self.given_up.front();
        let taken = key.map(|key| self.try_dead_letter(key, take));
        self.finish();
        taken
    }

    /// From here on nothing is accepted and nothing is delivered; what is outstanding may still be settled, but nobody resumes. What is
    /// left at the end is left, not dropped.
    pub fn drain(&mut self, now: Time) {
        self.begin(now);
        if !std::mem::replace(&mut self.draining, true) {
            self.tell_event(&Event::Draining { at: self.now });
            while let Some(&(_, consumer)) = self.graces.first() {
                self.leave(consumer, Leave::Closed);
            }
        }
        self.finish();
    }

    /// It is `now`: applies up to [`PASS`] effects that were due. To be called when [`next_due`](Self::next_due) says, and
    /// [`offer_dead_letter`](Self::offer_dead_letter) after it.
    pub fn advance(&mut self, now: Time) {
        self.begin(now);
        self.offer_head();
        if self.now >= self.patience && self.consumers.others_could_come() && self.deliverable() > 0 {
            self.consumers.give_up_on_the_woken();
        }
        self.finish();
    }

    /// When [`advance`](Self::advance) must be called next; at once where that time has passed, never for `None`. Any input may
    /// change it.
    pub fn next_due(&self) -> Option<Time> {
        let effect = self.next_effect().map(|(due, _)| due);
        let deliverable = self.deliverable() > 0;
        let patience = (self.consumers.others_could_come() && deliverable).then_some(self.patience);
        let offer = self.given_up.front().map(|key| self.messages.slot(key).at);
        let reserved = self.reserved.map(|reserved| reserved.until);
        let last = if self.consumers.any_waiting_last() && deliverable { self.last_come_at() } else { None };
        let last = last.filter(|&at| at > self.now);
        let given_back = self.given_back_is_due();
        let probe = self.consumers.next_probe().filter(|_| deliverable && self.consumers.any_responsive());
        let times = [effect, patience, offer, reserved, last, given_back, probe];
        times.into_iter().flatten().min()
    }

    /// A consumer that should ask for its next delivery. A hint, and no reservation: a message belongs to whoever asks first. To be
    /// called after every input until it says `None`.
    pub fn next_wake(&mut self) -> Option<ConsumerId> {
        self.consumers.next_wake()
    }

    /// The policy.
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The observer.
    pub const fn observer(&self) -> &O {
        &self.observer
    }

    /// The observer, for what it cannot learn from events. Delivery never depends on it.
    pub const fn observer_mut(&mut self) -> &mut O {
        &mut self.observer
    }

    /// Totals since the subscription began.
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// The messages that are not settled, by state.
    pub fn backlog(&self) -> Backlog {
        Backlog {
            ready: self.first.len() + self.again.len() + self.later.len() + self.given_back + self.alone.len(),
            delayed: self.schedule.len() as u64 - self.extended.len() as u64 + self.given_up.len(),
            outstanding: self.deadlines.len() + self.extended.len() as u64,
        }
    }

    /// When the oldest message that is not settled was accepted.
    pub fn oldest_accepted_at(&mut self) -> Option<Time> {
        self.messages.oldest().map(|key| self.messages.slot(key).accepted_at)
    }

    /// Whether this consumer is attached, suspended or not.
    pub fn is_attached(&self, consumer: ConsumerId) -> bool {
        self.consumers.get(consumer).is_some()
    }

    /// How many consumers are attached, suspended ones included.
    pub const fn consumers(&self) -> usize {
        self.consumers.len()
    }

    /// How many consumers there are, by what they do.
    pub fn consumer_counts(&self) -> ConsumerCounts {
        self.consumers.counts()
    }

    /// Whether a message is ready for this consumer, which has room for it and does not come: it was woken, or has taken its last
    /// delivery and not asked again. Who waits for its turn is not awaited.
    pub fn is_awaited(&self, consumer: ConsumerId) -> bool {
        self.consumers.is_expected(consumer) && self.next_for(consumer).is_some()
    }

    /// Whether it is draining.
    pub const fn is_draining(&self) -> bool {
        self.draining
    }

    /// Whether it is draining and nothing is outstanding.
    pub fn is_drained(&self) -> bool {
        self.draining && self.backlog().outstanding == 0
    }
}
