//! Who receives from a subscription: each consumer's window, the deliveries that it holds, and whose turn it is to be woken.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::event::Leave;
use crate::messages::{BY_HOLDER, BY_STATE, List};
use crate::time::Time;

/// One client that receives from a subscription, over one stream or over several that it resumes. Never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConsumerId {
    index: u32,
    generation: u32,
}

impl ConsumerId {
    /// The holder of a message that was never delivered.
    pub(crate) const NOBODY: Self = Self { index: u32::MAX, generation: u32::MAX };

    /// A small number, given again after the consumer has left: an index for what the shell keeps beside each consumer.
    pub const fn index(self) -> usize {
        self.index as usize
    }
}

/// Flow control: what a consumer allows to be outstanding at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Messages; at least 1.
    pub max_messages: u32,
    /// Bytes of messages. One that is larger is delivered alone.
    pub max_bytes: u64,
}

/// How a consumer receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// What it allows to be outstanding.
    pub window: Window,
    /// How many deliveries it handles at the same time. Twice as many, the oldest that it holds, are in progress. 0 = unknown: all
    /// may be.
    pub handlers: u32,
    /// Each delivery is acked at the moment it is handed over.
    pub auto_ack: bool,
}

/// How many consumers there are, by what they do. Those that are busy or suspended are in none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConsumerCounts {
    /// Wait for a message.
    pub waiting: usize,
    /// Wait for room in their window.
    pub full: usize,
    /// Let a delivery expire and have said nothing since they got it, whatever else they do.
    pub unresponsive: usize,
}

/// What a consumer is doing, as far as the core can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Demand {
    /// It took its last delivery and has not asked again.
    Busy,
    /// It asked and found nothing; `ticket` is its turn, among all or among those who come last.
    Waiting { ticket: u64, last: bool },
    /// It was woken in this round and has not come yet.
    Woken { round: u64 },
    /// It asked and its window was full; or it had `room` for so many bytes, and the next message was larger.
    Full { room: Option<u64> },
}

/// When an unresponsive consumer gets a message, to see whether it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    /// From this instant on.
    At(Time),
    /// That instant has come: it waits among all others.
    Due,
    /// It has got one.
    Sent,
}

pub(crate) struct Consumer {
    pub(crate) attachment: Attachment,
    pub(crate) held: List<BY_HOLDER>,
    pub(crate) held_bytes: u64,
    /// Ready messages that it gave back, in that order.
    pub(crate) given_back: List<BY_STATE>,
    /// What it holds is a message alone.
    pub(crate) holds_alone: bool,
    /// When it said something for the last time.
    pub(crate) heard_at: Time,
    /// Since it is unresponsive: when it may be probed.
    pub(crate) probe: Option<Probe>,
    /// Its stream is gone; until when it may resume, and how it leaves where it does not.
    pub(crate) suspended: Option<(Time, Leave)>,
    /// The number of its last reservation; 0 = none.
    pub(crate) reserved_as: u64,
    demand: Demand,
}

impl Consumer {
    /// Whether a message of `size` bytes may be handed over, besides what it holds.
    pub(crate) const fn has_room(&self, size: u32) -> bool {
        let window = &self.attachment.window;
        !self.holds_alone
            && (self.held.len() == 0
                || (self.held.len() < window.max_messages as u64 && self.held_bytes + size as u64 <= window.max_bytes))
    }

    /// Whether it can be expected to answer.
    pub(crate) const fn is_responsive(&self) -> bool {
        self.suspended.is_none() && self.probe.is_none()
    }

    /// How many of its oldest deliveries are in progress.
    pub(crate) const fn in_progress(&self) -> u64 {
        match self.attachment.handlers {
            0 => u64::MAX,
            handlers => 2 * handlers as u64,
        }
    }
}

/// The consumers of a subscription. A wake is a hint: a woken consumer that does not come loses nothing but its turn.
pub(crate) struct Consumers {
    places: Vec<Place>,
    vacant: Vec<u32>,
    /// Waiting consumers in the order of their turns: those that are responsive, and the others.
    waiting: BTreeMap<u64, ConsumerId>,
    waiting_last: BTreeMap<u64, ConsumerId>,
    /// When consumers may be probed for which that instant has not come.
    probes: BTreeSet<(Time, ConsumerId)>,
    /// Consumers that have room, but had too little for what was next, by that room.
    short_of_bytes: BTreeSet<(u64, ConsumerId)>,
    /// How many are attached and not suspended, and how many of those are unresponsive.
    present: usize,
    unresponsive: usize,
    next_ticket: u64,
    /// How many were woken in this round and have not come.
    woken: u64,
    round: u64,
    /// Wakes that the caller has not fetched.
    wakes: VecDeque<ConsumerId>,
}

struct Place {
    generation: u32,
    consumer: Option<Consumer>,
}

impl Consumers {
    pub(crate) const fn new() -> Self {
        Self {
            places: Vec::new(),
            vacant: Vec::new(),
            waiting: BTreeMap::new(),
            waiting_last: BTreeMap::new(),
            probes: BTreeSet::new(),
            short_of_bytes: BTreeSet::new(),
            present: 0,
            unresponsive: 0,
            next_ticket: 0,
            woken: 0,
            round: 0,
            wakes: VecDeque::new(),
        }
    }

    pub(crate) fn attach(&mut self, attachment: Attachment, now: Time) -> ConsumerId {
        let consumer = Consumer {
            attachment,
            held: List::new(),
            held_bytes: 0,
            given_back: List::new(),
            holds_alone: false,
            heard_at: now,
            probe: None,
            suspended: None,
            reserved_as: 0,
            demand: Demand::Busy,
        };
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.places.push(Place { generation: 0, consumer: None });
            u32::try_from(self.places.len() - 1).expect("streams are bounded below 2^32")
        });
        let place = &mut self.places[index as usize];
        place.consumer = Some(consumer);
        self.present += 1;
        ConsumerId { index, generation: place.generation }
    }

    /// Forgets a consumer; what it held is the caller's to release.
    pub(crate) fn detach(&mut self, id: ConsumerId) -> Option<Consumer> {
        self.come(id);
        let place = self.places.get_mut(id.index()).filter(|place| place.generation == id.generation)?;
        let consumer = place.consumer.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.vacant.push(id.index);
        if let Some(Probe::At(at)) = consumer.probe {
            self.probes.remove(&(at, id));
        }
        if consumer.suspended.is_none() {
            self.present -= 1;
            self.unresponsive -= usize::from(consumer.probe.is_some());
        }
        Some(consumer)
    }

    /// The consumer's stream is gone: it is not asked until it resumes.
    pub(crate) fn suspend(&mut self, id: ConsumerId, until: Time, leave: Leave) {
        self.come(id);
        let consumer = self.get_mut(id).expect("only an attached consumer is suspended");
        consumer.suspended = Some((until, leave));
        let unresponsive = consumer.probe.is_some();
        self.present -= 1;
        self.unresponsive -= usize::from(unresponsive);
    }

    /// The consumer is back, over a stream of its own.
    pub(crate) fn resume(&mut self, id: ConsumerId, attachment: Attachment) {
        let consumer = self.get_mut(id).expect("only an attached consumer resumes");
        consumer.attachment = attachment;
        consumer.suspended = None;
        let unresponsive = consumer.probe.is_some();
        self.present += 1;
        self.unresponsive += usize::from(unresponsive);
    }

    /// The consumer let a delivery expire without a word: others go first, until it is probed or says something.
    pub(crate) fn becomes_unresponsive(&mut self, id: ConsumerId, probe_at: Time) {
        self.set_probe(id, Some(Probe::At(probe_at)));
    }

    /// The consumer said something: it is responsive.
    pub(crate) fn heard(&mut self, id: ConsumerId, now: Time) {
        let Some(consumer) = self.get_mut(id) else { return };
        consumer.heard_at = now;
        if consumer.probe.is_some() {
            self.set_probe(id, None);
        }
    }

    /// The unresponsive consumer gets a message, to see whether it answers.
    pub(crate) fn probed(&mut self, id: ConsumerId) {
        self.set_probe(id, Some(Probe::Sent));
    }

    /// The consumers that may be probed from now on, or before, wait among all others.
    pub(crate) fn probes_are_due(&mut self, now: Time) {
        while let Some((_, id)) = self.probes.first().copied().filter(|&(at, _)| at <= now) {
            self.set_probe(id, Some(Probe::Due));
        }
    }

    fn set_probe(&mut self, id: ConsumerId, probe: Option<Probe>) {
        let Some(consumer) = self.get_mut(id) else { return };
        let before = std::mem::replace(&mut consumer.probe, probe);
        if consumer.suspended.is_none() {
            self.unresponsive -= usize::from(before.is_some());
            self.unresponsive += usize::from(probe.is_some());
        }
        if let Some(Probe::At(at)) = before {
            self.probes.remove(&(at, id));
        }
        if let Some(Probe::At(at)) = probe {
            self.probes.insert((at, id));
        }
        if let Some(ticket @ Some(_)) = self.is_waiting(id).then(|| self.come(id)) {
            self.wait(id, ticket);
        }
    }

    pub(crate) fn get(&self, id: ConsumerId) -> Option<&Consumer> {
        self.places.get(id.index()).filter(|place| place.generation == id.generation)?.consumer.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: ConsumerId) -> Option<&mut Consumer> {
        self.places.get_mut(id.index()).filter(|place| place.generation == id.generation)?.consumer.as_mut()
    }

    /// Every consumer, in the order of its place.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (ConsumerId, &Consumer)> {
        (0..).zip(&self.places).filter_map(|(index, place)| {
            Some((ConsumerId { index, generation: place.generation }, place.consumer.as_ref()?))
        })
    }

    /// How many consumers are attached, suspended ones included.
    pub(crate) const fn len(&self) -> usize {
        self.places.len() - self.vacant.len()
    }

    pub(crate) const fn any_unresponsive(&self) -> bool {
        self.unresponsive > 0
    }

    pub(crate) const fn any_responsive(&self) -> bool {
        self.present > self.unresponsive
    }

    pub(crate) fn counts(&self) -> ConsumerCounts {
        let waiting = self.waiting.values().filter(|&&id| self.get(id).is_some_and(Consumer::is_responsive));
        let full = self.iter().filter(|(_, c)| c.is_responsive() && matches!(c.demand, Demand::Full { .. })).count();
        ConsumerCounts {
            waiting: if self.unresponsive == 0 { self.waiting.len() } else { waiting.count() },
            full,
            unresponsive: self.unresponsive,
        }
    }

    /// The consumer has come for a delivery: it is neither waiting nor expected any longer. Returns its turn where it was waiting.
    pub(crate) fn come(&mut self, id: ConsumerId) -> Option<u64> {
        let round = self.round;
        match std::mem::replace(&mut self.get_mut(id)?.demand, Demand::Busy) {
            Demand::Waiting { ticket, last } => {
                if last { &mut self.waiting_last } else { &mut self.waiting }.remove(&ticket);
                Some(ticket)
            }
            Demand::Woken { round: woken } => {
                self.woken -= u64::from(woken == round);
                None
            }
            Demand::Full { room } => {
                self.short_of_bytes.remove(&(room.unwrap_or_default(), id));
                None
            }
            Demand::Busy => None,
        }
    }

    /// The consumer found nothing: it waits for its turn, an old one where it has kept it.
    pub(crate) fn wait(&mut self, id: ConsumerId, turn: Option<u64>) {
        let last = match self.get(id).and_then(|consumer| consumer.probe) {
            None | Some(Probe::Due) => false,
            Some(Probe::At(_) | Probe::Sent) => true,
        };
        self.wait_among(id, turn, last);
    }

    /// The consumer may take nothing while others can: it waits for its turn among those who come last.
    pub(crate) fn wait_last(&mut self, id: ConsumerId, turn: Option<u64>) {
        self.wait_among(id, turn, true);
    }

    fn wait_among(&mut self, id: ConsumerId, turn: Option<u64>, last: bool) {
        let ticket = turn.unwrap_or(self.next_ticket);
        let Some(consumer) = self.get_mut(id) else { return };
        consumer.demand = Demand::Waiting { ticket, last };
        if last { &mut self.waiting_last } else { &mut self.waiting }.insert(ticket, id);
        self.next_ticket = self.next_ticket.max(ticket + 1);
    }

    /// The consumer found its window full: it waits until something that it holds is given back. `by_bytes`: or until a smaller
    /// message comes.
    pub(crate) fn wait_for_room(&mut self, id: ConsumerId, by_bytes: bool) {
        if let Some(consumer) = self.get_mut(id) {
            let window = consumer.attachment.window;
            let by_messages = consumer.held.len() < u64::from(window.max_messages);
            // None also for who holds one message that is larger than the window.
            let room = window.max_bytes.checked_sub(consumer.held_bytes).filter(|_| by_messages && by_bytes);
            consumer.demand = Demand::Full { room };
            if let Some(room) = room {
                self.short_of_bytes.insert((room, id));
            }
        }
    }

    /// The consumer has given something back, or is free again.
    pub(crate) fn room_made(&mut self, id: ConsumerId) {
        if let Some(Demand::Full { room }) = self.get(id).map(|consumer| consumer.demand) {
            self.short_of_bytes.remove(&(room.unwrap_or_default(), id));
            self.wait(id, None);
        }
    }

    /// Whether the consumer has neither waited in vain nor waits for room: it is to come.
    pub(crate) fn is_expected(&self, id: ConsumerId) -> bool {
        self.get(id).is_some_and(|consumer| match consumer.demand {
            Demand::Busy | Demand::Woken { .. } => consumer.suspended.is_none(),
            Demand::Waiting { .. } | Demand::Full { .. } => false,
        })
    }

    /// Whether the consumer was woken and has not come.
    pub(crate) fn is_woken(&self, id: ConsumerId) -> bool {
        self.get(id).is_some_and(|consumer| matches!(consumer.demand, Demand::Woken { round } if round == self.round))
    }

    /// Whether the consumer waits for a message.
    pub(crate) fn is_waiting(&self, id: ConsumerId) -> bool {
        self.get(id).is_some_and(|consumer| matches!(consumer.demand, Demand::Waiting { .. }))
    }

    /// Whether somebody has room, but had too little for what was next.
    pub(crate) fn any_short_of_bytes(&self) -> bool {
        !self.short_of_bytes.is_empty()
    }

    /// Whether somebody waits for a message.
    pub(crate) fn any_waiting(&self) -> bool {
        !self.waiting.is_empty() || !self.waiting_last.is_empty()
    }

    /// Whether somebody waits for a message who comes last.
    pub(crate) fn any_waiting_last(&self) -> bool {
        !self.waiting_last.is_empty()
    }

    /// When the next consumer may be probed for which that instant has not come.
    pub(crate) fn next_probe(&self) -> Option<Time> {
        self.probes.first().map(|&(at, _)| at)
    }

    /// Whoever was short of bytes, and has room for what would be handed over to it by now, waits for its turn. That is a message of
    /// `size` bytes for all but one consumer, `exception`.
    pub(crate) fn offer(&mut self, size: u32, exception: Option<(ConsumerId, Option<u32>)>) {
        let size_for = |id| match exception {
            Some((other, size)) if other == id => size,
            Some(_) | None => Some(size),
        };
        let fits = |(room, id): (u64, ConsumerId)| size_for(id).is_some_and(|size| room >= u64::from(size));
        loop {
            let largest = self.short_of_bytes.iter().rev().copied();
            let excepted = |id| exception.is_some_and(|(other, _)| other == id);
            let Some((room, id)) = largest.take(2).find(|&(room, id)| fits((room, id)) || !excepted(id)) else { break };
            if !fits((room, id)) {
                break;
            }
            self.short_of_bytes.remove(&(room, id));
            self.wait(id, None);
        }
    }

    /// Wakes waiting consumers, in turn, until as many are expected as there are messages to take: not `except`, and those who come
    /// last only where they may.
    pub(crate) fn wake_for(&mut self, messages: u64, except: Option<ConsumerId>, last_too: bool) -> bool {
        let mut any = false;
        while self.woken < messages {
            let may = |id: &ConsumerId| Some(*id) != except;
            let next = self.waiting.values().take(2).copied().find(may);
            let last = || self.waiting_last.values().take(2).copied().find(may).filter(|_| last_too);
            let Some(id) = next.or_else(last) else { break };
            self.wake(id);
            any = true;
        }
        any
    }

    /// Wakes one consumer that waits, or whose window was full.
    pub(crate) fn wake(&mut self, id: ConsumerId) {
        self.come(id);
        let round = self.round;
        self.get_mut(id).expect("only an attached consumer is woken").demand = Demand::Woken { round };
        self.woken += 1;
        self.wakes.push_back(id);
    }

    /// Nobody came for too long: those who were woken are not counted on any more.
    pub(crate) const fn give_up_on_the_woken(&mut self) {
        self.woken = 0;
        self.round += 1;
    }

    /// Whether somebody was woken and has not come while others wait.
    pub(crate) fn others_could_come(&self) -> bool {
        self.woken > 0 && self.any_waiting()
    }

    pub(crate) fn next_wake(&mut self) -> Option<ConsumerId> {
        self.wakes.pop_front()
    }
}
