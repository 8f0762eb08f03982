//! The rules of delivery, written down a second time: slow and obvious, without a glance at how the core does it.
//!
//! The model applies every effect of time at the instant at which it is due. The core may apply [`PASS`] of them in a call and the
//! rest later, so the model keeps a list of effects that have happened but that the core need not have told: it says exactly how
//! many of them each call tells, and what the core may therefore not know yet. Nothing else may differ.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use ackstream_core::{
    Attachment, ConsumerId, Delivery, DropReason, IgnoreReason, Leave, MessageId, Nack, Outcome, PASS, Policy, Refusal,
    Time, Verb,
};

use crate::told::{Body, Ledger, Seen, Told, What};

/// Nanoseconds since the Unix epoch.
pub(crate) type Nanos = u64;

const HOUR: Nanos = 3_600_000_000_000;
/// However often it is extended, a delivery ends so long after its hand-over.
const LONGEST_DELIVERY: Nanos = HOUR;
/// No nack delays a message for longer.
const LONGEST_DELAY: Nanos = 24 * HOUR;

/// What one subscription must do.
pub(crate) struct Model {
    policy: Policy,
    now: Nanos,
    draining: bool,
    messages: BTreeMap<u64, Message>,
    consumers: BTreeMap<ConsumerId, Attachment>,
    /// Ready and never delivered.
    first: BTreeSet<u64>,
    /// Ready for redelivery, in the order in which they became due.
    again: Vec<Again>,
    /// Everything that waits for an instant, in the order in which it comes.
    agenda: BTreeSet<Appointment>,
    hand_overs: u64,
    last_id: u64,
    /// Effects that have happened and that the core has not told.
    untold: VecDeque<Effect>,
    told: Vec<Told>,
    /// What follows from all that was told.
    pub(crate) ledger: Ledger,
}

struct Message {
    body: Body,
    size: u32,
    accepted_at: Nanos,
    attempts: u32,
    retries_used: u32,
    last_outcome: Option<Outcome>,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    Ready,
    Delayed {
        until: Nanos,
    },
    Outstanding(Outstanding),
    /// On offer to the dead-letter topic or, with an instant, until then not.
    GivenUp {
        reason: DropReason,
        refused_until: Option<Nanos>,
    },
}

#[derive(Clone, Copy)]
struct Outstanding {
    owner: ConsumerId,
    hand_over: u64,
    sent_at: Nanos,
    deadline: Nanos,
    moved: bool,
}

/// A message that is ready for redelivery.
#[derive(Clone, Copy)]
struct Again {
    id: u64,
    /// When an input made it ready; `None` where time did.
    given_back: Option<Nanos>,
}

/// At the same instant come first the deadlines that nobody moved, in the order of hand-over, then all else in the order of ids.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Appointment {
    due: Nanos,
    kind: Kind,
    order: u64,
    id: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    UnmovedDeadline,
    MovedDeadlineOrDelay,
}

/// What came about at one appointment.
struct Effect {
    id: u64,
    events: Vec<Told>,
}

impl Model {
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            policy,
            now: 0,
            draining: false,
            messages: BTreeMap::new(),
            consumers: BTreeMap::new(),
            first: BTreeSet::new(),
            again: Vec::new(),
            agenda: BTreeSet::new(),
            hand_overs: 0,
            last_id: 0,
            untold: VecDeque::new(),
            told: Vec::new(),
            ledger: Ledger::default(),
        }
    }

    // ---- what happens

    /// It is `now`, or later if a call before said so. Everything that is due happens; one pass of it is told.
    pub(crate) fn time_passes(&mut self, now: Nanos) {
        self.now = self.now.max(now);
        while let Some(&Appointment { due, id, .. }) = self.agenda.first().filter(|next| next.due <= self.now) {
            let events = match self.messages[&id].state {
                State::Outstanding(delivery) => self.expire(id, delivery),
                State::Delayed { .. } => {
                    self.put(id, State::Ready);
                    vec![Told { at: Time::from_nanos(due), what: What::Due(self.see(id)) }]
                }
                State::GivenUp { reason, .. } => {
                    self.put(id, State::GivenUp { reason, refused_until: None });
                    vec![Told { at: Time::from_nanos(due), what: What::Due(self.see(id)) }]
                }
                State::Ready => unreachable!("a ready message waits for no instant"),
            };
            self.untold.push_back(Effect { id, events });
        }
        for effect in self.untold.drain(..PASS.min(self.untold.len())).collect::<Vec<_>>() {
            self.tell_all(effect.events);
        }
    }

    /// Whether a publish is accepted.
    pub(crate) const fn check_room(&self, size: u32) -> Result<(), Refusal> {
        let (messages, bytes) = (self.policy.max_backlog_messages, self.policy.max_backlog_bytes);
        let backlog = self.ledger.backlog;
        if self.draining {
            Err(Refusal::Draining)
        } else if backlog.ready + backlog.delayed + backlog.outstanding + 1 > messages {
            Err(Refusal::TooManyMessages { max: messages })
        } else if self.ledger.bytes + size as u64 > bytes {
            Err(Refusal::TooManyBytes { max: bytes })
        } else {
            Ok(())
        }
    }

    pub(crate) fn publish(&mut self, id: u64, body: Body, size: u32) {
        let message = Message {
            body,
            size,
            accepted_at: self.now,
            attempts: 0,
            retries_used: 0,
            last_outcome: None,
            state: State::Ready,
        };
        self.messages.insert(id, message);
        self.first.insert(id);
        self.last_id = id;
        self.tell(What::Published(self.see(id)));
    }

    pub(crate) fn attach(&mut self, consumer: ConsumerId, attachment: Attachment) {
        self.consumers.insert(consumer, attachment);
        self.tell(What::Attached(consumer));
    }

    pub(crate) fn detach(&mut self, consumer: ConsumerId, leave: Leave) {
        if self.consumers.remove(&consumer).is_none() {
            return;
        }
        for id in self.deliveries_of(consumer) {
            self.end(id, Outcome::Released);
            let first_attempt = self.messages[&id].attempts == 1;
            let events = match leave {
                Leave::Clean => vec![self.requeue(id, 0, self.now)],
                Leave::Broken if first_attempt => self.retry(id, 0, self.now),
                Leave::Broken => self.retry(id, nanos(self.policy.ack_deadline), self.now),
            };
            self.tell_all(events);
        }
        self.tell(What::Detached { consumer, leave });
    }

    pub(crate) fn next_delivery(&mut self, consumer: ConsumerId) -> Option<Delivery<Body>> {
        let id = self.on_offer()?;
        if !self.has_room(consumer, id) {
            return None;
        }
        self.hand_overs += 1;
        let deadline = self.now + nanos(self.policy.ack_deadline);
        let (hand_over, sent_at) = (self.hand_overs, self.now);
        self.put(id, State::Outstanding(Outstanding { owner: consumer, hand_over, sent_at, deadline, moved: false }));
        let message = self.messages.get_mut(&id).expect("it was on offer");
        message.attempts += 1;
        let (attempt, body, after) = (message.attempts, message.body, message.last_outcome);
        let accepted_at = Time::from_nanos(message.accepted_at);
        self.tell(What::Sent { message: self.see(id), consumer, after });
        if self.consumers[&consumer].auto_ack {
            self.end(id, Outcome::Acked);
            self.settle_acked(id, false);
        }
        Some(Delivery { id: MessageId(id), attempt, body, accepted_at, deadline: Time::from_nanos(deadline) })
    }

    pub(crate) fn ack(&mut self, id: u64, attempt: Option<u32>) {
        let Some(message) = self.messages.get(&id) else { return self.ignore_gone(id, Verb::Ack) };
        match message.state {
            _ if message.attempts == 0 => self.ignore(id, Verb::Ack, IgnoreReason::Unknown),
            State::Outstanding(_) if attempt.is_some_and(|attempt| attempt != message.attempts) => {
                self.ignore(id, Verb::Ack, IgnoreReason::Stale);
            }
            State::Outstanding(_) => {
                self.end(id, Outcome::Acked);
                self.settle_acked(id, false);
            }
            State::Ready | State::Delayed { .. } | State::GivenUp { .. }
                if attempt.is_some_and(|attempt| attempt == 0 || attempt > message.attempts) =>
            {
                self.ignore(id, Verb::Ack, IgnoreReason::Unknown);
            }
            State::Ready | State::Delayed { .. } | State::GivenUp { .. } => {
                self.tell_untold_of(id);
                self.settle_acked(id, true);
            }
        }
    }

    pub(crate) fn nack(&mut self, consumer: ConsumerId, id: u64, attempt: Option<u32>, nack: Nack) {
        if self.find_held(consumer, id, attempt, Verb::Nack).is_none() {
            return;
        }
        self.end(id, Outcome::Nacked);
        let events = if nack.drop {
            vec![self.give_up(id, DropReason::Rejected, self.now)]
        } else {
            let backoff = self.backoff_after(self.messages[&id].attempts);
            let delay = match nack.delay {
                Some(delay) => nanos(delay).min(LONGEST_DELAY),
                None if backoff > 0 => backoff,
                None => nanos(self.policy.ack_deadline),
            };
            self.retry(id, delay, self.now)
        };
        self.tell_all(events);
    }

    pub(crate) fn extend(&mut self, consumer: ConsumerId, id: u64, attempt: Option<u32>, length: Duration) {
        let Some(delivery) = self.find_held(consumer, id, attempt, Verb::Extend) else { return };
        let deadline = (self.now + nanos(length)).min(delivery.sent_at + LONGEST_DELIVERY);
        self.put(id, State::Outstanding(Outstanding { deadline, moved: true, ..delivery }));
        self.tell(What::Extended { message: self.see(id), deadline: Time::from_nanos(deadline) });
    }

    /// What is given up first is offered to the dead-letter topic, which takes it or not.
    pub(crate) fn offer_dead_letter(&mut self, takes: bool) -> Option<u64> {
        let &(id, _) = self.ledger.on_offer_as_dead.first()?;
        let State::GivenUp { reason, .. } = self.messages[&id].state else { unreachable!("only what is given up") };
        self.tell(What::Offered { message: self.see(id), taken: takes });
        if takes {
            let dropped = self.drop_message(id, reason, self.now);
            self.tell_all(vec![dropped]);
        } else {
            let refused_until = Some(self.now + nanos(self.policy.ack_deadline));
            self.put(id, State::GivenUp { reason, refused_until });
        }
        Some(id)
    }

    pub(crate) fn drain(&mut self) {
        if !self.draining {
            self.draining = true;
            self.tell(What::Draining);
        }
    }

    // ---- what can be asked

    /// Everything that must have been told since the last time.
    pub(crate) fn take_told(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.told)
    }

    /// The latest time that anybody told.
    pub(crate) const fn now(&self) -> Nanos {
        self.now
    }

    pub(crate) const fn is_draining(&self) -> bool {
        self.draining
    }

    /// Whether effects have happened that the core need not know of, or will before anything else does.
    pub(crate) fn is_behind(&self) -> bool {
        self.next_effect().is_some_and(|due| due <= self.now)
    }

    pub(crate) fn consumers(&self) -> usize {
        self.consumers.len()
    }

    /// When something happens by itself; an instant that has passed while something is untold.
    pub(crate) fn next_effect(&self) -> Option<Nanos> {
        self.untold_since().or_else(|| self.agenda.first().map(|next| next.due))
    }

    /// The message that whoever asks is given, if it has room: the first of the redeliveries, else the oldest message. While the core
    /// is behind, it is on offer only where nothing untold can bring one that goes first.
    pub(crate) fn on_offer(&self) -> Option<u64> {
        let (offer, withheld) = match self.again.first() {
            Some(again) => (again.id, self.may_come_after_the_untold(*again)),
            None => (self.first.first().copied()?, self.is_behind()),
        };
        (!self.draining && !withheld).then_some(offer)
    }

    fn may_come_after_the_untold(&self, again: Again) -> bool {
        match again.given_back {
            Some(at) => self.untold_since().is_some_and(|since| since <= at),
            None => self.untold.iter().any(|effect| effect.id == again.id),
        }
    }

    fn untold_since(&self) -> Option<Nanos> {
        self.untold.front().and_then(|effect| effect.events.first()).map(|told| told.at.as_nanos())
    }

    /// Whether the consumer is attached and its window has room for the message. A delivery that has expired fills the window until
    /// that is told.
    pub(crate) fn has_room(&self, consumer: ConsumerId, id: u64) -> bool {
        let Some(Attachment { window, .. }) = self.consumers.get(&consumer) else { return false };
        let held = self.ledger.held(consumer);
        let fits = held.messages < u64::from(window.max_messages)
            && held.bytes + u64::from(self.messages[&id].size) <= window.max_bytes;
        held.messages == 0 || fits
    }

    /// The size of the message that is on offer.
    pub(crate) fn size_on_offer(&self) -> Option<u32> {
        self.on_offer().map(|id| self.messages[&id].size)
    }

    /// Whether an unsettled message has more bytes than its consumer allows.
    pub(crate) fn is_larger_than_window(&self, consumer: ConsumerId, id: u64) -> bool {
        u64::from(self.messages[&id].size) > self.consumers[&consumer].window.max_bytes
    }

    /// The ids that are not settled.
    pub(crate) fn unsettled(&self) -> impl Iterator<Item = u64> {
        self.messages.keys().copied()
    }

    /// The attempt that is outstanding, with who holds it.
    pub(crate) fn outstanding(&self, id: u64) -> Option<(ConsumerId, u32)> {
        let message = self.messages.get(&id)?;
        match message.state {
            State::Outstanding(delivery) => Some((delivery.owner, message.attempts)),
            State::Ready | State::Delayed { .. } | State::GivenUp { .. } => None,
        }
    }

    /// When the outstanding delivery of a message was handed over.
    pub(crate) fn sent_at(&self, id: u64) -> Option<Nanos> {
        match self.messages.get(&id)?.state {
            State::Outstanding(delivery) => Some(delivery.sent_at),
            State::Ready | State::Delayed { .. } | State::GivenUp { .. } => None,
        }
    }

    // ---- what becomes of a message

    fn expire(&mut self, id: u64, delivery: Outstanding) -> Vec<Told> {
        let backoff = self.backoff_after(self.messages[&id].attempts);
        let ended = self.ended(id, Outcome::Expired, delivery.deadline);
        let mut events = vec![ended];
        events.extend(self.retry(id, backoff, delivery.deadline));
        events
    }

    fn end(&mut self, id: u64, outcome: Outcome) {
        let event = self.ended(id, outcome, self.now);
        self.tell_all(vec![event]);
    }

    fn ended(&mut self, id: u64, outcome: Outcome, at: Nanos) -> Told {
        let message = self.messages.get_mut(&id).expect("it is outstanding");
        message.last_outcome = Some(outcome);
        let State::Outstanding(delivery) = message.state else { unreachable!("only a delivery ends") };
        let (consumer, sent_at) = (delivery.owner, Time::from_nanos(delivery.sent_at));
        Told { at: Time::from_nanos(at), what: What::Ended { message: self.see(id), consumer, sent_at, outcome } }
    }

    /// What follows on an end that costs a retry.
    fn retry(&mut self, id: u64, delay: Nanos, at: Nanos) -> Vec<Told> {
        let message = self.messages.get_mut(&id).expect("its delivery has just ended");
        if self.policy.max_retries == Some(message.retries_used) {
            return vec![self.give_up(id, DropReason::MaxRetries, at)];
        }
        message.retries_used += 1;
        vec![self.requeue(id, delay, at)]
    }

    fn requeue(&mut self, id: u64, delay: Nanos, at: Nanos) -> Told {
        self.put(id, if delay == 0 { State::Ready } else { State::Delayed { until: at + delay } });
        let delay = Duration::from_nanos(delay);
        Told { at: Time::from_nanos(at), what: What::Requeued { message: self.see(id), delay } }
    }

    fn give_up(&mut self, id: u64, reason: DropReason, at: Nanos) -> Told {
        if !self.policy.dead_letters {
            return self.drop_message(id, reason, at);
        }
        self.put(id, State::GivenUp { reason, refused_until: None });
        Told { at: Time::from_nanos(at), what: What::GivenUp { message: self.see(id), reason } }
    }

    fn drop_message(&mut self, id: u64, reason: DropReason, at: Nanos) -> Told {
        let event = Told { at: Time::from_nanos(at), what: What::Dropped { message: self.see(id), reason } };
        self.remove(id);
        event
    }

    fn settle_acked(&mut self, id: u64, late: bool) {
        self.tell(What::Acked { message: self.see(id), late });
        self.remove(id);
    }

    /// The wait before the attempt that follows on `attempts`: the minimum, doubled for each attempt after the second.
    fn backoff_after(&self, attempts: u32) -> Nanos {
        let mut wait = u128::from(nanos(self.policy.backoff.minimum));
        let longest = u128::from(nanos(self.policy.backoff.maximum));
        for _ in 1..attempts {
            wait = (wait * 2).min(longest);
        }
        Nanos::try_from(wait.min(longest)).expect("no backoff is longer than a day")
    }

    // ---- helpers

    /// The delivery that the consumer holds; without one the input is ignored.
    fn find_held(&mut self, consumer: ConsumerId, id: u64, attempt: Option<u32>, verb: Verb) -> Option<Outstanding> {
        let Some(message) = self.messages.get(&id) else {
            self.ignore_gone(id, verb);
            return None;
        };
        let reason = match message.state {
            _ if message.attempts == 0 => IgnoreReason::Unknown,
            State::Ready | State::Delayed { .. } | State::GivenUp { .. } => IgnoreReason::NotHeld,
            State::Outstanding(_) if attempt.is_some_and(|attempt| attempt != message.attempts) => IgnoreReason::Stale,
            State::Outstanding(delivery) if delivery.owner != consumer => IgnoreReason::NotHeld,
            State::Outstanding(delivery) => return Some(delivery),
        };
        self.ignore(id, verb, reason);
        None
    }

    fn deliveries_of(&self, consumer: ConsumerId) -> Vec<u64> {
        let in_order_of_hand_over: BTreeMap<u64, u64> = self
            .messages
            .iter()
            .filter_map(|(&id, message)| match message.state {
                State::Outstanding(delivery) if delivery.owner == consumer => Some((delivery.hand_over, id)),
                State::Outstanding(_) | State::Ready | State::Delayed { .. } | State::GivenUp { .. } => None,
            })
            .collect();
        in_order_of_hand_over.into_values().collect()
    }

    /// A message changes its state; what its state stands in changes with it.
    fn put(&mut self, id: u64, state: State) {
        let message = self.messages.get_mut(&id).expect("only an unsettled message has a state");
        let before = std::mem::replace(&mut message.state, state);
        let by_time = matches!(before, State::Delayed { .. }) || message.last_outcome == Some(Outcome::Expired);
        self.leave(id, before);
        match appointment(id, state) {
            Some(appointment) => _ = self.agenda.insert(appointment),
            None if matches!(state, State::GivenUp { .. }) => {} // its queue follows from what is told
            None => self.again.push(Again { id, given_back: (!by_time).then_some(self.now) }),
        }
    }

    fn remove(&mut self, id: u64) {
        let message = self.messages.remove(&id).expect("a message is settled once");
        self.leave(id, message.state);
    }

    fn leave(&mut self, id: u64, state: State) {
        match appointment(id, state) {
            Some(appointment) => _ = self.agenda.remove(&appointment),
            None if matches!(state, State::GivenUp { .. }) => {}
            None if self.first.remove(&id) => {}
            None => {
                let place = self.again.iter().position(|again| again.id == id).expect("a ready message is in a queue");
                self.again.remove(place);
            }
        }
    }

    fn see(&self, id: u64) -> Seen {
        let message = &self.messages[&id];
        Seen {
            id,
            body: message.body,
            size: message.size,
            accepted_at: Time::from_nanos(message.accepted_at),
            attempts: message.attempts,
            retries_left: self.policy.max_retries.map(|max| max - message.retries_used),
        }
    }

    fn ignore(&mut self, id: u64, verb: Verb, reason: IgnoreReason) {
        self.tell(What::Ignored { id, verb, reason });
    }

    fn ignore_gone(&mut self, id: u64, verb: Verb) {
        self.tell_untold_of(id);
        let accepted = (1..=self.last_id).contains(&id);
        self.ignore(id, verb, if accepted { IgnoreReason::Settled } else { IgnoreReason::Unknown });
    }

    /// An input settles a message, or finds it settled, before a pass has come to it: how its delivery ended is told at this point.
    /// That its delay has passed is told no more.
    fn tell_untold_of(&mut self, id: u64) {
        let (its, others) = self.untold.drain(..).partition(|effect| effect.id == id);
        self.untold = others;
        let its: VecDeque<Effect> = its;
        for event in its.into_iter().flat_map(|effect| effect.events) {
            if !matches!(event.what, What::Due(_)) {
                self.tell_all(vec![event]);
            }
        }
    }

    fn tell(&mut self, what: What) {
        self.tell_all(vec![Told { at: Time::from_nanos(self.now), what }]);
    }

    fn tell_all(&mut self, events: Vec<Told>) {
        for event in &events {
            self.ledger.note(event);
        }
        self.told.extend(events);
    }
}

const fn appointment(id: u64, state: State) -> Option<Appointment> {
    match state {
        State::Ready | State::GivenUp { refused_until: None, .. } => None,
        State::Delayed { until: due }
        | State::GivenUp { refused_until: Some(due), .. }
        | State::Outstanding(Outstanding { deadline: due, moved: true, .. }) => {
            Some(Appointment { due, kind: Kind::MovedDeadlineOrDelay, order: id, id })
        }
        State::Outstanding(Outstanding { deadline: due, hand_over, moved: false, .. }) => {
            Some(Appointment { due, kind: Kind::UnmovedDeadline, order: hand_over, id })
        }
    }
}

/// A duration in nanoseconds.
pub(crate) fn nanos(duration: Duration) -> Nanos {
    Nanos::try_from(duration.as_nanos()).expect("no duration of the simulation is longer than 500 years")
}
