//! The rules of delivery, written down a second time: slow and obvious, without a glance at how the core does it.
//!
//! The model applies every effect of time at the instant at which it is due. The core may apply [`PASS`] of them in a call and the
//! rest later, so the model keeps a list of effects that have happened but that the core need not have told: it says exactly how
//! many of them each call tells, and what the core may therefore not know yet. Nothing else may differ.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use ackstream_core::{
    Attachment, ConsumerId, Delivery, DropReason, IgnoreReason, Leave, MessageId, Nack, Outcome, PASS, Policy, Refusal,
    Release, Time, Verb,
};

use crate::told::{Body, Ledger, Seen, Told, What};

/// Nanoseconds since the Unix epoch.
pub(crate) type Nanos = u64;

const HOUR: Nanos = 3_600_000_000_000;
/// However often it is extended, a delivery ends so long after its hand-over.
const LONGEST_DELIVERY: Nanos = HOUR;
/// No nack delays a message for longer.
const LONGEST_DELAY: Nanos = 24 * HOUR;
const MINUTE: Nanos = HOUR / 60;
/// For so long a consumer is given the time to become empty for a message alone,
const TURN: Nanos = 30 * SECOND;
/// or to come where it is empty and others are there.
const PATIENCE: Nanos = 5_000_000;
const SECOND: Nanos = 1_000_000_000;

/// What one subscription must do.
pub(crate) struct Model {
    policy: Policy,
    now: Nanos,
    draining: bool,
    messages: BTreeMap<u64, Message>,
    consumers: BTreeMap<ConsumerId, Consumer>,
    /// When suspended consumers leave.
    graces: BTreeSet<(Nanos, ConsumerId)>,
    /// Ready and never delivered.
    first: BTreeSet<u64>,
    /// Ready for redelivery, in the order in which they became due.
    again: Vec<Again>,
    /// Ready, given back by a consumer, in that order.
    given_back: Vec<GivenBack>,
    /// Ready to be delivered alone, in the order in which they became so.
    alone: Vec<u64>,
    /// Who gets nothing but the first of those, and until when.
    pub(crate) reserved: Option<(ConsumerId, Nanos)>,
    reservations: u64,
    /// When a responsive consumer took something for the last time.
    taken_at: Nanos,
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
    failures: u32,
    interruptions: u32,
    last_outcome: Option<Outcome>,
    state: State,
    /// Since when it is ready.
    ready_since: Nanos,
}

struct Consumer {
    attachment: Attachment,
    heard_at: Nanos,
    /// It is unresponsive, and may be probed from this instant on; `Nanos::MAX` once it was.
    probe_at: Option<Nanos>,
    suspended: Option<(Nanos, Leave)>,
    holds_alone: bool,
    reserved_as: u64,
}

/// A ready message that a consumer gave back.
#[derive(Clone, Copy)]
struct GivenBack {
    id: u64,
    by: ConsumerId,
    since: Nanos,
}

/// What a consumer finds that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// It is given this message.
    Message(u64),
    /// It is given this message, to see whether it answers.
    Probe(u64),
    /// It is not there, or suspended.
    Nobody,
    /// There is nothing for it.
    Nothing,
    /// Others may have what there is.
    OthersFirst,
    /// It has no room.
    Full,
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
    /// Its consumer is suspended: at the deadline it ends so.
    grace: Option<Outcome>,
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
    /// The message; 0 where a consumer leaves.
    id: u64,
    /// The consumer that leaves,
    leaves: Option<ConsumerId>,
    /// and the messages that it had given back.
    freed: Vec<u64>,
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
            graces: BTreeSet::new(),
            first: BTreeSet::new(),
            again: Vec::new(),
            given_back: Vec::new(),
            alone: Vec::new(),
            reserved: None,
            reservations: 0,
            taken_at: 0,
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
        loop {
            let next = self.agenda.first().filter(|next| next.due <= self.now).copied();
            let grace = self.graces.first().filter(|(due, _)| *due <= self.now).copied();
            match (next, grace) {
                (Some(next), grace) if grace.is_none_or(|(due, _)| next.due <= due) => {
                    let events = self.keep_appointment(next);
                    self.untold.push_back(Effect { id: next.id, leaves: None, freed: Vec::new(), events });
                }
                (_, Some((due, consumer))) => {
                    self.graces.remove(&(due, consumer));
                    let (_, leave) = self.consumers[&consumer].suspended.expect("it has a grace");
                    let freed = self.free(consumer, due, None);
                    let events = vec![Told { at: Time::from_nanos(due), what: What::Detached { consumer, leave } }];
                    self.untold.push_back(Effect { id: 0, leaves: Some(consumer), freed, events });
                }
                (None | Some(_), None) => break,
            }
        }
        for effect in self.untold.drain(..PASS.min(self.untold.len())).collect::<Vec<_>>() {
            self.tell_all(effect.events);
        }
    }

    fn keep_appointment(&mut self, Appointment { due, id, .. }: Appointment) -> Vec<Told> {
        match self.messages[&id].state {
            State::Outstanding(delivery) => self.end_unanswered(id, delivery),
            State::Delayed { .. } => {
                self.ready(id, due, false);
                vec![Told { at: Time::from_nanos(due), what: What::Due(self.see(id)) }]
            }
            State::GivenUp { reason, .. } => {
                self.put(id, State::GivenUp { reason, refused_until: None });
                vec![Told { at: Time::from_nanos(due), what: What::Due(self.see(id)) }]
            }
            State::Ready => unreachable!("a ready message waits for no instant"),
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
            failures: 0,
            interruptions: 0,
            last_outcome: None,
            state: State::Ready,
            ready_since: self.now,
        };
        self.messages.insert(id, message);
        self.first.insert(id);
        self.last_id = id;
        self.tell(What::Published(self.see(id)));
    }

    pub(crate) fn attach(&mut self, id: ConsumerId, attachment: Attachment) {
        let consumer = Consumer {
            attachment,
            heard_at: self.now,
            probe_at: None,
            suspended: None,
            holds_alone: false,
            reserved_as: 0,
        };
        self.consumers.insert(id, consumer);
        self.tell(What::Attached(id));
    }

    pub(crate) fn detach(&mut self, consumer: ConsumerId, leave: Leave) {
        let Some(known) = self.consumers.get(&consumer) else { return };
        if let Some((until, _)) = known.suspended
            && !self.graces.remove(&(until, consumer))
        {
            self.take_back_untold_leave(consumer);
        }
        for (id, outcome) in self.ends_of(consumer, leave) {
            self.end_without_fault(id, outcome);
        }
        self.free(consumer, self.now, Some(self.now));
        self.tell(What::Detached { consumer, leave });
    }

    /// The grace of a consumer is over, and that is untold: an input detaches it before.
    fn take_back_untold_leave(&mut self, consumer: ConsumerId) {
        let place = self.untold.iter().position(|effect| effect.leaves == Some(consumer)).expect("it is still there");
        let effect = self.untold.remove(place).expect("it was found");
        for id in effect.freed {
            let before = self.again.len();
            self.again.retain(|again| again.id != id);
            if self.again.len() < before {
                self.messages.get_mut(&id).expect("it is ready").ready_since = self.now;
                self.again.push(Again { id, given_back: Some(self.now) });
            }
        }
    }

    pub(crate) fn suspend(&mut self, consumer: ConsumerId, leave: Leave, until: Nanos) {
        if self.consumers.get(&consumer).is_none_or(|known| known.suspended.is_some()) {
            return;
        }
        if self.draining || until <= self.now {
            return self.detach(consumer, leave);
        }
        for (id, outcome) in self.ends_of(consumer, leave) {
            let State::Outstanding(delivery) = self.messages[&id].state else { unreachable!("it is held") };
            let (deadline, grace) = (until.min(delivery.sent_at + LONGEST_DELIVERY), Some(outcome));
            self.put(id, State::Outstanding(Outstanding { deadline, moved: true, grace, ..delivery }));
        }
        self.consumers.get_mut(&consumer).expect("it is there").suspended = Some((until, leave));
        self.graces.insert((until, consumer));
    }

    /// Says whether the consumer was still there.
    pub(crate) fn resume(&mut self, consumer: ConsumerId, attachment: Attachment, held: &BTreeSet<u64>) -> bool {
        let Some((until, _)) = self.consumers.get(&consumer).and_then(|known| known.suspended) else { return false };
        if self.draining || until <= self.now {
            return false;
        }
        self.graces.remove(&(until, consumer));
        let known = self.consumers.get_mut(&consumer).expect("it is there");
        known.suspended = None;
        known.attachment = attachment;
        for id in self.deliveries_of(consumer) {
            let State::Outstanding(delivery) = self.messages[&id].state else { unreachable!("it is held") };
            if held.contains(&id) {
                let deadline = (self.now + nanos(self.policy.ack_deadline)).min(delivery.sent_at + LONGEST_DELIVERY);
                self.put(id, State::Outstanding(Outstanding { deadline, moved: true, grace: None, ..delivery }));
                self.tell(What::Extended { message: self.see(id), deadline: Time::from_nanos(deadline) });
            } else {
                self.end_without_fault(id, Outcome::Released(Release::NotReceived));
            }
        }
        true
    }

    pub(crate) fn heard(&mut self, consumer: ConsumerId) {
        if let Some(known) = self.consumers.get_mut(&consumer) {
            known.heard_at = self.now;
            known.probe_at = None;
        }
    }

    pub(crate) fn next_delivery(&mut self, consumer: ConsumerId) -> Option<Delivery<Body>> {
        let id = match self.find(consumer) {
            Found::Message(id) => id,
            Found::Probe(id) => {
                self.consumers.get_mut(&consumer).expect("it asks").probe_at = Some(Nanos::MAX);
                id
            }
            Found::Nobody | Found::Nothing | Found::OthersFirst | Found::Full => return None,
        };
        self.hand_overs += 1;
        let deadline = self.now + nanos(self.policy.ack_deadline);
        let (hand_over, sent_at) = (self.hand_overs, self.now);
        let delivery = Outstanding { owner: consumer, hand_over, sent_at, deadline, moved: false, grace: None };
        self.put(id, State::Outstanding(delivery));
        let message = self.messages.get_mut(&id).expect("it was on offer");
        message.attempts += 1;
        let Message { attempts: attempt, body, last_outcome: after, failures, interruptions, .. } = *message;
        let accepted_at = Time::from_nanos(message.accepted_at);
        let known = self.consumers.get_mut(&consumer).expect("it asks");
        known.holds_alone = interruptions >= 2;
        if known.probe_at.is_none() {
            self.taken_at = self.now;
        }
        if known.holds_alone {
            self.reserved = None;
        }
        self.tell(What::Sent { message: self.see(id), consumer, after });
        if self.consumers[&consumer].attachment.auto_ack {
            self.end(id, Outcome::Acked);
            self.settle_acked(id, false);
        }
        let (id, deadline) = (MessageId(id), Time::from_nanos(deadline));
        Some(Delivery { id, attempt, failures, interruptions, body, accepted_at, deadline })
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
        if nack.release {
            self.end(id, Outcome::Released(Release::GivenBack));
            if self.is_alone(id) {
                let told = self.requeue(id, nanos(self.policy.ack_deadline), self.now, true);
                return self.tell_all(vec![told]);
            }
            let told = self.requeue(id, 0, self.now, true);
            self.again.retain(|again| again.id != id);
            self.given_back.push(GivenBack { id, by: consumer, since: self.now });
            return self.tell_all(vec![told]);
        }
        self.end(id, Outcome::Nacked);
        let events = if nack.drop {
            vec![self.give_up(id, DropReason::Rejected, self.now)]
        } else {
            let backoff = self.backoff_after(self.messages[&id].failures);
            let delay = match nack.delay {
                Some(delay) => nanos(delay).min(LONGEST_DELAY),
                None if backoff > 0 => backoff,
                None => nanos(self.policy.ack_deadline),
            };
            self.retry(id, delay, self.now, true)
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
            while let Some(&(_, consumer)) = self.graces.first() {
                self.detach(consumer, Leave::Closed);
            }
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
        let next = self.agenda.first().map(|next| next.due);
        let grace = self.graces.first().map(|(due, _)| *due);
        self.untold_since().or_else(|| next.into_iter().chain(grace).min())
    }

    /// What a consumer finds that asks.
    pub(crate) fn find(&self, id: ConsumerId) -> Found {
        let Some(consumer) = self.consumers.get(&id).filter(|consumer| consumer.suspended.is_none()) else {
            return Found::Nobody;
        };
        let comes_last = consumer.probe_at.is_some() && self.any_responsive();
        let is_empty = self.ledger.held(id).messages == 0;
        match self.alone.first() {
            Some(&alone) if is_empty && !comes_last && self.can_deliver_alone() => return Found::Message(alone),
            Some(_) | None => {}
        }
        if consumer.holds_alone || self.reserved.is_some_and(|(reserved, _)| reserved == id) {
            return Found::Full;
        }
        let Some(message) = self.on_offer_to(id) else { return Found::Nothing };
        if comes_last && self.others_first_until().is_some_and(|until| self.now < until) {
            let clean = |message: &u64| self.messages[message].failures == 0;
            let probe = Some(message).filter(clean).or_else(|| self.first.first().copied());
            let may_be_probed = consumer.probe_at.is_some_and(|at| at <= self.now);
            return match probe.filter(|_| may_be_probed) {
                Some(probe) if self.has_room(id, probe) => Found::Probe(probe),
                Some(_) | None => Found::OthersFirst,
            };
        }
        if self.has_room(id, message) { Found::Message(message) } else { Found::Full }
    }

    /// The message that is next for whoever asks: the first of the redeliveries, else what was given back, else the oldest message.
    /// While the core is behind, it is on offer only where nothing untold can bring one that goes first.
    fn on_offer(&self) -> Option<u64> {
        self.on_offer_but_of(None)
    }

    /// The same for one consumer, which passes what it gave back itself for one ack deadline.
    fn on_offer_to(&self, consumer: ConsumerId) -> Option<u64> {
        self.on_offer_but_of(Some(consumer))
    }

    fn on_offer_but_of(&self, consumer: Option<ConsumerId>) -> Option<u64> {
        if self.draining {
            return None;
        }
        if let Some(again) = self.again.first() {
            return Some(again.id).filter(|_| !self.may_come_after_the_untold(*again));
        }
        if self.is_behind() {
            return None;
        }
        let mut givers: BTreeMap<ConsumerId, GivenBack> = BTreeMap::new();
        for given_back in &self.given_back {
            givers.entry(given_back.by).or_insert(*given_back);
        }
        let mut givers: Vec<_> = givers.into_values().collect();
        givers.sort_by_key(|given_back| (given_back.since, given_back.by));
        let is_barred = |given_back: &&GivenBack| {
            Some(given_back.by) == consumer && self.now < given_back.since + nanos(self.policy.ack_deadline)
        };
        let given_back = givers.iter().find(|given_back| !is_barred(given_back)).map(|given_back| given_back.id);
        given_back.or_else(|| self.first.first().copied())
    }

    fn can_deliver_alone(&self) -> bool {
        !self.draining && !self.is_behind()
    }

    fn any_responsive(&self) -> bool {
        self.consumers.values().any(Consumer::is_responsive)
    }

    fn any_unresponsive(&self) -> bool {
        self.consumers.values().any(|consumer| consumer.suspended.is_none() && consumer.probe_at.is_some())
    }

    /// Until when unresponsive consumers wait for others to take what is next; `None` where there are no others with room.
    pub(crate) fn others_first_until(&self) -> Option<Nanos> {
        let head = self.on_offer().filter(|_| self.any_unresponsive())?;
        let reserved = self.reserved.map(|(consumer, _)| consumer);
        let mut others = self.consumers.iter().filter(|(_, consumer)| consumer.is_responsive());
        let open =
            others.any(|(id, consumer)| !consumer.holds_alone && Some(*id) != reserved && self.has_room(*id, head));
        open.then(|| self.messages[&head].ready_since.max(self.taken_at) + PATIENCE)
    }

    /// How many messages consumers with room may take, besides those alone.
    pub(crate) fn for_anybody(&self) -> u64 {
        if self.on_offer().is_none() { 0 } else { self.ledger.backlog.ready - self.alone.len() as u64 }
    }

    /// Whether messages wait to be delivered alone.
    pub(crate) const fn has_alone(&self) -> bool {
        !self.alone.is_empty()
    }

    /// When something may have to be done for consumers, besides effects.
    pub(crate) fn other_instants(&self) -> Vec<Nanos> {
        let probes = self.consumers.values().filter_map(|consumer| consumer.probe_at);
        let bars = self.given_back.iter().map(|given_back| given_back.since + nanos(self.policy.ack_deadline));
        let reserved = self.reserved.map(|(_, until)| until);
        probes.chain(bars).chain(reserved).chain(self.others_first_until()).collect()
    }

    /// When a consumer may have again what it gave back, where nothing else is there.
    pub(crate) fn bar_ends(&self, consumer: ConsumerId) -> Option<Nanos> {
        let first = self.given_back.iter().find(|given_back| given_back.by == consumer)?;
        Some(first.since + nanos(self.policy.ack_deadline))
    }

    /// Whether a consumer is unresponsive.
    pub(crate) fn is_unresponsive(&self, consumer: ConsumerId) -> bool {
        self.consumers.get(&consumer).is_some_and(|known| known.suspended.is_none() && known.probe_at.is_some())
    }

    /// How many consumers are unresponsive.
    pub(crate) fn unresponsive(&self) -> usize {
        self.consumers.keys().filter(|&&consumer| self.is_unresponsive(consumer)).count()
    }

    /// One consumer is to become empty while a message waits to be delivered alone. `waits`: who asked in vain.
    pub(crate) fn reserve(&mut self, waits: impl Fn(ConsumerId) -> bool) {
        let wanted = !self.alone.is_empty() && self.can_deliver_alone();
        let responsive_only = self.any_responsive();
        let suitable: Vec<ConsumerId> = self
            .consumers
            .iter()
            .filter(|(_, consumer)| {
                let responsive = !responsive_only || consumer.probe_at.is_none();
                wanted && consumer.suspended.is_none() && !consumer.holds_alone && responsive
            })
            .map(|(id, _)| *id)
            .collect();
        let held = |id: ConsumerId| self.ledger.held(id).messages;
        let idle = |id: ConsumerId| held(id) == 0 && waits(id);
        if let Some((reserved, until)) = self.reserved
            && self.now < until
            && suitable.contains(&reserved)
            && (held(reserved) == 0 || !suitable.iter().any(|&id| idle(id)))
        {
            return;
        }
        self.reserved = None;
        let rank = |&id: &ConsumerId| (!idle(id), self.consumers[&id].reserved_as, held(id));
        let Some(next) = suitable.iter().copied().min_by_key(rank) else { return };
        self.reservations += 1;
        self.reserved = Some((next, self.now + if held(next) == 0 && suitable.len() > 1 { PATIENCE } else { TURN }));
        self.consumers.get_mut(&next).expect("it is there").reserved_as = self.reservations;
    }

    fn may_come_after_the_untold(&self, again: Again) -> bool {
        match again.given_back {
            Some(at) => self.untold_since().is_some_and(|since| since <= at),
            None => self.untold.iter().any(|effect| effect.id == again.id || effect.freed.contains(&again.id)),
        }
    }

    fn untold_since(&self) -> Option<Nanos> {
        self.untold.front().and_then(|effect| effect.events.first()).map(|told| told.at.as_nanos())
    }

    /// Whether the consumer is attached and its window has room for the message. A delivery that has expired fills the window until
    /// that is told.
    pub(crate) fn has_room(&self, consumer: ConsumerId, id: u64) -> bool {
        let Some(Consumer { attachment: Attachment { window, .. }, .. }) = self.consumers.get(&consumer) else {
            return false;
        };
        let held = self.ledger.held(consumer);
        let fits = held.messages < u64::from(window.max_messages)
            && held.bytes + u64::from(self.messages[&id].size) <= window.max_bytes;
        held.messages == 0 || fits
    }

    /// The size of the message that the consumer would be given.
    pub(crate) fn size_on_offer(&self, consumer: ConsumerId) -> Option<u32> {
        match self.find(consumer) {
            Found::Message(id) | Found::Probe(id) => Some(self.messages[&id].size),
            Found::Nobody | Found::Nothing | Found::OthersFirst | Found::Full => None,
        }
    }

    /// Everybody who is attached, suspended or not.
    pub(crate) fn attached(&self) -> impl Iterator<Item = ConsumerId> {
        self.consumers.keys().copied()
    }

    /// Whether a consumer is suspended.
    pub(crate) fn is_suspended(&self, consumer: ConsumerId) -> bool {
        self.consumers.get(&consumer).is_some_and(|known| known.suspended.is_some())
    }

    /// What a consumer holds whose deadline has not passed.
    pub(crate) fn held_by(&self, consumer: ConsumerId) -> Vec<u64> {
        self.deliveries_of(consumer)
    }

    /// Whether an unsettled message has more bytes than its consumer allows.
    pub(crate) fn is_larger_than_window(&self, consumer: ConsumerId, id: u64) -> bool {
        u64::from(self.messages[&id].size) > self.consumers[&consumer].attachment.window.max_bytes
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

    fn end_unanswered(&mut self, id: u64, delivery: Outstanding) -> Vec<Told> {
        let at = delivery.deadline;
        if let Some(outcome) = delivery.grace {
            return self.ended_without_fault(id, outcome, at, false);
        }
        let backoff = self.backoff_after(self.messages[&id].failures + 1);
        let ended = self.ended(id, Outcome::Expired, at);
        let mut events = vec![ended];
        events.extend(self.retry(id, backoff, at, false));
        events
    }

    fn end_without_fault(&mut self, id: u64, outcome: Outcome) {
        let events = self.ended_without_fault(id, outcome, self.now, true);
        self.tell_all(events);
    }

    fn ended_without_fault(&mut self, id: u64, outcome: Outcome, at: Nanos, by_input: bool) -> Vec<Told> {
        let ended = self.ended(id, outcome, at);
        let interruptions = self.messages[&id].interruptions;
        let wait = match interruptions {
            _ if outcome != Outcome::Interrupted => 0,
            0 | 1 => 0,
            more => {
                let mut wait = nanos(self.policy.ack_deadline).min(MINUTE);
                for _ in 2..more {
                    wait = (wait * 2).min(MINUTE);
                }
                wait
            }
        };
        let most = self.policy.max_interruptions.map(|max| if max == 0 { 1 } else { 2 + max });
        let next = if outcome == Outcome::Interrupted && most.is_some_and(|most| interruptions >= most) {
            self.give_up(id, DropReason::MaxInterruptions, at)
        } else {
            self.requeue(id, wait, at, by_input)
        };
        vec![ended, next]
    }

    /// How the deliveries of a consumer end when it leaves.
    fn ends_of(&self, consumer: ConsumerId, leave: Leave) -> Vec<(u64, Outcome)> {
        let in_progress = match self.consumers[&consumer].attachment.handlers {
            0 => usize::MAX,
            handlers => 2 * handlers as usize,
        };
        let outcome = |place| match leave {
            Leave::Clean => Outcome::Released(Release::Left),
            Leave::Closed => Outcome::Released(Release::Closed),
            Leave::Broken if place < in_progress => Outcome::Interrupted,
            Leave::Broken => Outcome::Released(Release::NotBegun),
        };
        self.deliveries_of(consumer).into_iter().enumerate().map(|(place, id)| (id, outcome(place))).collect()
    }

    /// What a consumer gave back is anybody's. Returns which messages these are.
    fn free(&mut self, consumer: ConsumerId, at: Nanos, by_input: Option<Nanos>) -> Vec<u64> {
        let (its, others) = self.given_back.iter().partition(|given_back| given_back.by == consumer);
        self.given_back = others;
        let its: Vec<GivenBack> = its;
        for &GivenBack { id, .. } in &its {
            self.messages.get_mut(&id).expect("it is ready").ready_since = at;
            self.again.push(Again { id, given_back: by_input });
        }
        its.into_iter().map(|given_back| given_back.id).collect()
    }

    fn end(&mut self, id: u64, outcome: Outcome) {
        let event = self.ended(id, outcome, self.now);
        self.tell_all(vec![event]);
    }

    fn ended(&mut self, id: u64, outcome: Outcome, at: Nanos) -> Told {
        let message = self.messages.get_mut(&id).expect("it is outstanding");
        message.last_outcome = Some(outcome);
        match outcome {
            Outcome::Nacked | Outcome::Expired => message.failures += 1,
            Outcome::Interrupted => message.interruptions += 1,
            Outcome::Acked | Outcome::Released(_) => {}
        }
        let State::Outstanding(delivery) = message.state else { unreachable!("only a delivery ends") };
        let (consumer, sent_at) = (delivery.owner, Time::from_nanos(delivery.sent_at));
        Told { at: Time::from_nanos(at), what: What::Ended { message: self.see(id), consumer, sent_at, outcome } }
    }

    /// What follows on a failure.
    fn retry(&mut self, id: u64, delay: Nanos, at: Nanos, by_input: bool) -> Vec<Told> {
        let failures = self.messages[&id].failures;
        if self.policy.max_retries.is_some_and(|max| failures > max) {
            return vec![self.give_up(id, DropReason::MaxRetries, at)];
        }
        vec![self.requeue(id, delay, at, by_input)]
    }

    fn requeue(&mut self, id: u64, delay: Nanos, at: Nanos, by_input: bool) -> Told {
        if delay == 0 {
            self.ready(id, at, by_input);
        } else {
            self.put(id, State::Delayed { until: at + delay });
        }
        let delay = Duration::from_nanos(delay);
        Told { at: Time::from_nanos(at), what: What::Requeued { message: self.see(id), delay } }
    }

    fn ready(&mut self, id: u64, at: Nanos, by_input: bool) {
        self.put(id, State::Ready);
        self.messages.get_mut(&id).expect("it is not settled").ready_since = at;
        if self.is_alone(id) {
            self.alone.push(id);
        } else {
            self.again.push(Again { id, given_back: by_input.then_some(self.now) });
        }
    }

    fn is_alone(&self, id: u64) -> bool {
        self.messages[&id].interruptions >= 2
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

    /// The wait after so many failures: the minimum, doubled for each failure after the first.
    fn backoff_after(&self, failures: u32) -> Nanos {
        let mut wait = u128::from(nanos(self.policy.backoff.minimum));
        let longest = u128::from(nanos(self.policy.backoff.maximum));
        for _ in 1..failures {
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
            State::Outstanding(delivery) if delivery.owner != consumer || delivery.grace.is_some() => {
                IgnoreReason::NotHeld
            }
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
        self.leave(id, before);
        if let Some(appointment) = appointment(id, state) {
            self.agenda.insert(appointment);
        } // the queues of all others follow from what is told, or from `ready`
    }

    fn remove(&mut self, id: u64) {
        let message = self.messages.remove(&id).expect("a message is settled once");
        self.leave(id, message.state);
    }

    fn leave(&mut self, id: u64, state: State) {
        match appointment(id, state) {
            Some(appointment) => _ = self.agenda.remove(&appointment),
            None if matches!(state, State::GivenUp { .. }) => {}
            None => {
                self.first.remove(&id);
                self.again.retain(|again| again.id != id);
                self.given_back.retain(|given_back| given_back.id != id);
                self.alone.retain(|&alone| alone != id);
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
            failures: message.failures,
            interruptions: message.interruptions,
            retries_left: self.policy.max_retries.map(|max| max.saturating_sub(message.failures)),
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
            if let What::Ended { consumer, sent_at, outcome, .. } = event.what
                && let Some(known) = self.consumers.get_mut(&consumer)
            {
                known.holds_alone = false;
                if outcome == Outcome::Expired && known.heard_at <= sent_at.as_nanos() {
                    let wait = (nanos(self.policy.ack_deadline) * 10).max(30 * SECOND);
                    known.probe_at = Some(event.at.as_nanos() + wait);
                }
            }
            if let What::Detached { consumer, .. } = event.what {
                self.consumers.remove(&consumer);
            }
        }
        self.told.extend(events);
    }
}

impl Consumer {
    const fn is_responsive(&self) -> bool {
        self.suspended.is_none() && self.probe_at.is_none()
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
