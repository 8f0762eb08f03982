//! Who receives from a subscription: each consumer's window, the deliveries that it holds, and whose turn it is to be woken.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::messages::{BY_HOLDER, List};

/// One open stream that receives from a subscription. Never given twice.
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
    /// Each delivery is acked at the moment it is handed over.
    pub auto_ack: bool,
}

/// What a consumer is doing, as far as the core can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Demand {
    /// It took its last delivery and has not asked again.
    Busy,
    /// It asked and found nothing; `ticket` is its turn.
    Waiting { ticket: u64 },
    /// It was woken in this round and has not come yet.
    Woken { round: u64 },
    /// It asked and its window was full; or it had `room` for so many bytes, and the next message was larger.
    Full { room: Option<u64> },
}

pub(crate) struct Consumer {
    pub(crate) attachment: Attachment,
    pub(crate) held: List<BY_HOLDER>,
    pub(crate) held_bytes: u64,
    demand: Demand,
}

impl Consumer {
    /// Whether a message of `size` bytes may be handed over.
    pub(crate) const fn has_room(&self, size: u32) -> bool {
        let window = &self.attachment.window;
        self.held.len() == 0
            || (self.held.len() < window.max_messages as u64 && self.held_bytes + size as u64 <= window.max_bytes)
    }
}

/// The consumers of a subscription. A wake is a hint: a woken consumer that does not come loses nothing but its turn.
pub(crate) struct Consumers {
    places: Vec<Place>,
    vacant: Vec<u32>,
    /// Waiting consumers in the order of their turns.
    waiting: BTreeMap<u64, ConsumerId>,
    /// Consumers that have room, but had too little for what was next, by that room.
    short_of_bytes: BTreeSet<(u64, ConsumerId)>,
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
            short_of_bytes: BTreeSet::new(),
            next_ticket: 0,
            woken: 0,
            round: 0,
            wakes: VecDeque::new(),
        }
    }

    pub(crate) fn attach(&mut self, attachment: Attachment) -> ConsumerId {
        let consumer = Consumer { attachment, held: List::new(), held_bytes: 0, demand: Demand::Busy };
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.places.push(Place { generation: 0, consumer: None });
            u32::try_from(self.places.len() - 1).expect("streams are bounded below 2^32")
        });
        let place = &mut self.places[index as usize];
        place.consumer = Some(consumer);
        ConsumerId { index, generation: place.generation }
    }

    /// Forgets a consumer; what it held is the caller's to release.
    pub(crate) fn detach(&mut self, id: ConsumerId) -> Option<Consumer> {
        self.come(id);
        let place = self.places.get_mut(id.index()).filter(|place| place.generation == id.generation)?;
        let consumer = place.consumer.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.vacant.push(id.index);
        Some(consumer)
    }

    pub(crate) fn get(&self, id: ConsumerId) -> Option<&Consumer> {
        self.places.get(id.index()).filter(|place| place.generation == id.generation)?.consumer.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: ConsumerId) -> Option<&mut Consumer> {
        self.places.get_mut(id.index()).filter(|place| place.generation == id.generation)?.consumer.as_mut()
    }

    /// How many consumers are attached.
    pub(crate) const fn len(&self) -> usize {
        self.places.len() - self.vacant.len()
    }

    /// How many consumers wait for a message, and how many for room in their window.
    pub(crate) fn waiting_and_full(&self) -> (usize, usize) {
        let full = self
            .places
            .iter()
            .filter_map(|place| place.consumer.as_ref())
            .filter(|c| matches!(c.demand, Demand::Full { .. }));
        (self.waiting.len(), full.count())
    }

    /// The consumer has come for a delivery: it is neither waiting nor expected any longer. Returns its turn where it was waiting.
    pub(crate) fn come(&mut self, id: ConsumerId) -> Option<u64> {
        let round = self.round;
        match std::mem::replace(&mut self.get_mut(id)?.demand, Demand::Busy) {
            Demand::Waiting { ticket } => {
                self.waiting.remove(&ticket);
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
        let ticket = turn.unwrap_or(self.next_ticket);
        let Some(consumer) = self.get_mut(id) else { return };
        consumer.demand = Demand::Waiting { ticket };
        self.waiting.insert(ticket, id);
        self.next_ticket = self.next_ticket.max(ticket + 1);
    }

    /// The consumer found its window full: it waits until something that it holds is given back.
    pub(crate) fn wait_for_room(&mut self, id: ConsumerId) {
        if let Some(consumer) = self.get_mut(id) {
            let window = consumer.attachment.window;
            let by_messages = consumer.held.len() < u64::from(window.max_messages);
            // None also for who holds one message that is larger than the window.
            let room = window.max_bytes.checked_sub(consumer.held_bytes).filter(|_| by_messages);
            consumer.demand = Demand::Full { room };
            if let Some(room) = room {
                self.short_of_bytes.insert((room, id));
            }
        }
    }

    /// The consumer has given something back.
    pub(crate) fn room_made(&mut self, id: ConsumerId) {
        if let Some(Demand::Full { room }) = self.get(id).map(|consumer| consumer.demand) {
            self.short_of_bytes.remove(&(room.unwrap_or_default(), id));
            self.wait(id, None);
        }
    }

    /// Whether a consumer with room for a message of `size` bytes should come for it, and has not.
    pub(crate) fn is_expected(&self, id: ConsumerId, size: u32) -> bool {
        self.get(id).is_some_and(|consumer| match consumer.demand {
            Demand::Busy | Demand::Woken { .. } => consumer.has_room(size),
            Demand::Waiting { .. } | Demand::Full { .. } => false,
        })
    }

    /// Whether somebody has room, but had too little for what was next.
    pub(crate) fn any_short_of_bytes(&self) -> bool {
        !self.short_of_bytes.is_empty()
    }

    /// Whether somebody waits for a message.
    pub(crate) fn any_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The next message has `size` bytes: whoever was short of bytes and has room for this one waits for its turn.
    pub(crate) fn offer(&mut self, size: u32) {
        while let Some(&(room, id)) = self.short_of_bytes.last().filter(|(room, _)| *room >= u64::from(size)) {
            self.short_of_bytes.remove(&(room, id));
            self.wait(id, None);
        }
    }

    /// Wakes waiting consumers, in turn, until as many are expected as there are messages to take.
    pub(crate) fn wake_for(&mut self, messages: u64) -> bool {
        let mut any = false;
        while self.woken < messages {
            let Some((_, id)) = self.waiting.pop_first() else { break };
            let round = self.round;
            self.get_mut(id).expect("a waiting consumer is attached").demand = Demand::Woken { round };
            self.woken += 1;
            self.wakes.push_back(id);
            any = true;
        }
        any
    }

    /// Nobody came for too long: those who were woken are not counted on any more.
    pub(crate) const fn give_up_on_the_woken(&mut self) {
        self.woken = 0;
        self.round += 1;
    }

    /// Whether somebody was woken and has not come while others wait.
    pub(crate) fn others_could_come(&self) -> bool {
        self.woken > 0 && !self.waiting.is_empty()
    }

    pub(crate) fn next_wake(&mut self) -> Option<ConsumerId> {
        self.wakes.pop_front()
    }
}
