//! Where a subscription's messages live: slots in a slab, found by id through an index, and linked into first-in-first-out lists.

use rustc_hash::FxHashMap;

use crate::consumers::ConsumerId;
use crate::event::{DropReason, MessageId, MessageView, Outcome};
use crate::history::History;
use crate::policy::ALONE_AFTER;
use crate::slab::{Key, Slab};
use crate::time::Time;

/// One message and its delivery state.
pub(crate) struct Slot<M> {
    pub(crate) id: MessageId,
    pub(crate) body: M,
    pub(crate) size: u32,
    pub(crate) accepted_at: Time,
    pub(crate) state: State,
    /// Deliveries so far.
    pub(crate) attempts: u32,
    /// Deliveries that failed.
    pub(crate) failures: u32,
    /// Outstanding: when it was handed over. Ready, or on offer to the dead-letter topic: since when. In the schedule: until when.
    pub(crate) at: Time,
    /// Who got the last delivery.
    pub(crate) holder: ConsumerId,
    /// How the last delivery ended.
    pub(crate) last_outcome: Option<Outcome>,
    /// The deliveries that failed or were interrupted.
    pub(crate) history: History,
    links: [Links; 2],
}

/// Where a message is. Each state names the one list or schedule that holds the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// In the list that its queue names.
    Ready(Queue),
    /// In the schedule.
    Delayed,
    /// In the list of deadlines, or in the schedule where its deadline was moved.
    Outstanding(Until),
    /// In the list of messages on offer to the dead-letter topic or, once that has refused it, in the schedule.
    GivenUp { reason: DropReason, refused: bool },
}

/// Where a ready message waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queue {
    /// Never delivered, in the order of ids.
    First,
    /// For redelivery, in the order in which they became ready.
    Again,
    /// For redelivery, behind effects that were due before and that no pass has come to.
    Later,
    /// Given back by the consumer that its slot names as its holder, in the list of that.
    GivenBack,
    /// For redelivery alone.
    Alone,
}

/// What ends a delivery that nobody answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// The policy's ack deadline.
    Deadline,
    /// A deadline that was moved.
    Moved,
    /// The end of the grace of its consumer, which is suspended: then it ends so.
    Grace(Outcome),
}

/// A slot's neighbours in one list.
#[derive(Clone, Copy, Default)]
struct Links {
    previous: Option<NonMaxKey>,
    next: Option<NonMaxKey>,
}

/// A key in four bytes, `None` included: stored plus one.
type NonMaxKey = std::num::NonZeroU32;

fn pack(key: Key) -> NonMaxKey {
    NonMaxKey::MIN.saturating_add(key)
}

fn unpack(key: NonMaxKey) -> Key {
    key.get() - 1
}

/// The links that a slot's state uses: ready lists and the list of deadlines.
pub(crate) const BY_STATE: usize = 0;
/// The links of the deliveries that one consumer holds.
pub(crate) const BY_HOLDER: usize = 1;

/// A first-in-first-out list through the slots, along one of their two pairs of links. Any member can be taken out in constant time.
pub(crate) struct List<const ALONG: usize> {
    head: Option<NonMaxKey>,
    tail: Option<NonMaxKey>,
    len: u64,
}

impl<const ALONG: usize> List<ALONG> {
    pub(crate) const fn new() -> Self {
        Self { head: None, tail: None, len: 0 }
    }

    pub(crate) const fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn front(&self) -> Option<Key> {
        self.head.map(unpack)
    }

    pub(crate) fn push_back<M>(&mut self, messages: &mut Messages<M>, key: Key) {
        messages.slot_mut(key).links[ALONG] = Links { previous: self.tail, next: None };
        match self.tail {
            Some(tail) => messages.slot_mut(unpack(tail)).links[ALONG].next = Some(pack(key)),
            None => self.head = Some(pack(key)),
        }
        self.tail = Some(pack(key));
        self.len += 1;
    }

    /// Takes out a member of this list.
    pub(crate) fn remove<M>(&mut self, messages: &mut Messages<M>, key: Key) {
        let Links { previous, next } = std::mem::take(&mut messages.slot_mut(key).links[ALONG]);
        match previous {
            Some(previous) => messages.slot_mut(unpack(previous)).links[ALONG].next = next,
            None => self.head = next,
        }
        match next {
            Some(next) => messages.slot_mut(unpack(next)).links[ALONG].previous = previous,
            None => self.tail = previous,
        }
        self.len -= 1;
    }
}

/// Ids in a page of the index.
const PAGE: usize = 64;

/// The page of an id, and its place there.
#[expect(clippy::cast_possible_truncation, reason = "a place is less than PAGE")]
const fn locate(id: u64) -> (u64, usize) {
    (id / PAGE as u64, (id % PAGE as u64) as usize)
}

/// The messages that are not settled. Memory follows their number, not the span of their ids: a page of the index is freed
/// with its last message.
pub(crate) struct Messages<M> {
    slots: Slab<Slot<M>>,
    index: FxHashMap<u64, Page>,
    /// Of those that were interrupted, how often.
    interruptions: FxHashMap<Key, u32>,
    bytes: u64,
    /// No message older than this one is left; where the search for the oldest begins.
    oldest: u64,
    /// The id after the newest.
    end: u64,
}

struct Page {
    keys: Box<[Option<NonMaxKey>; PAGE]>,
    live: u8,
}

impl<M> Messages<M> {
    pub(crate) fn new() -> Self {
        let (index, interruptions) = (FxHashMap::default(), FxHashMap::default());
        Self { slots: Slab::new(), index, interruptions, bytes: 0, oldest: 1, end: 1 }
    }

    pub(crate) const fn len(&self) -> u64 {
        self.slots.len() as u64
    }

    /// The sizes of all messages together.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn slot(&self, key: Key) -> &Slot<M> {
        self.slots.get(key)
    }

    pub(crate) fn slot_mut(&mut self, key: Key) -> &mut Slot<M> {
        self.slots.get_mut(key)
    }

    /// The delivery after `key` among those of its holder.
    pub(crate) fn next_held(&self, key: Key) -> Option<Key> {
        self.slot(key).links[BY_HOLDER].next.map(unpack)
    }

    /// Whether this id was given to a message, settled by now or not.
    pub(crate) const fn was_accepted(&self, id: MessageId) -> bool {
        id.0 != 0 && id.0 < self.end
    }

    pub(crate) fn find(&self, id: MessageId) -> Option<Key> {
        let (page, place) = locate(id.0);
        self.index.get(&page)?.keys[place].map(unpack)
    }

    /// Stores a new message; its id is higher than any before.
    pub(crate) fn insert(&mut self, id: MessageId, body: M, size: u32, now: Time) -> Key {
        assert!(id.0 >= self.end, "ids rise");
        let key = self.slots.insert(Slot {
            id,
            body,
            size,
            accepted_at: now,
            state: State::Ready(Queue::First),
            attempts: 0,
            failures: 0,
            at: Time::ZERO,
            holder: ConsumerId::NOBODY,
            last_outcome: None,
            history: History::default(),
            links: [Links::default(); 2],
        });
        let (page, place) = locate(id.0);
        let page = self.index.entry(page).or_insert_with(|| Page { keys: Box::new([None; PAGE]), live: 0 });
        page.keys[place] = Some(pack(key));
        page.live += 1;
        self.bytes += u64::from(size);
        self.end = id.0 + 1;
        key
    }

    /// Forgets a message that is in no list.
    pub(crate) fn remove(&mut self, key: Key) {
        if !self.interruptions.is_empty() {
            self.interruptions.remove(&key);
        }
        let slot = self.slots.remove(key);
        let (number, place) = locate(slot.id.0);
        let page = self.index.get_mut(&number).expect("every message is in the index");
        page.keys[place] = None;
        page.live -= 1;
        if page.live == 0 {
            self.index.remove(&number);
            // A quarter full: half of the table goes back.
            if self.index.len() * 4 < self.index.capacity() && self.index.capacity() > 64 {
                self.index.shrink_to(self.index.capacity() / 2);
            }
        }
        self.bytes -= u64::from(slot.size);
    }

    /// The oldest message. Ids that are gone are passed over once, so that all calls together cost at most one step for each page
    /// of ids and one for each id of pages in use.
    pub(crate) fn oldest(&mut self) -> Option<Key> {
        while self.oldest < self.end {
            let (number, place) = locate(self.oldest);
            match self.index.get(&number) {
                None => self.oldest = ((number + 1) * PAGE as u64).min(self.end),
                Some(page) => match page.keys[place] {
                    Some(key) => return Some(unpack(key)),
                    None => self.oldest += 1,
                },
            }
        }
        None
    }

    /// How often the message was interrupted.
    pub(crate) fn interruptions(&self, key: Key) -> u32 {
        if self.interruptions.is_empty() { 0 } else { self.interruptions.get(&key).copied().unwrap_or_default() }
    }

    /// The message was interrupted once more.
    pub(crate) fn count_interruption(&mut self, key: Key) {
        let count = self.interruptions.entry(key).or_default();
        *count = count.saturating_add(1);
    }

    /// Whether the message is delivered alone.
    pub(crate) fn is_alone(&self, key: Key) -> bool {
        self.interruptions(key) >= ALONE_AFTER
    }

    /// The message as events show it; `max_retries` is the policy's.
    pub(crate) fn view(&self, key: Key, max_retries: Option<u32>) -> MessageView<'_, M> {
        let slot = self.slot(key);
        MessageView {
            id: slot.id,
            body: &slot.body,
            size: slot.size,
            accepted_at: slot.accepted_at,
            attempts: slot.attempts,
            failures: slot.failures,
            interruptions: self.interruptions(key),
            retries_left: max_retries.map(|max| max.saturating_sub(slot.failures)),
            history: slot.history.attempts(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(ids: std::ops::RangeInclusive<u64>) -> Messages<()> {
        let mut messages = Messages::new();
        for id in ids {
            messages.insert(MessageId(id), (), 1, Time::ZERO);
        }
        messages
    }

    fn settle(messages: &mut Messages<()>, ids: std::ops::RangeInclusive<u64>) {
        for id in ids {
            let key = messages.find(MessageId(id)).expect("it is stored");
            messages.remove(key);
        }
    }

    #[test]
    fn the_index_follows_the_backlog_and_not_the_span_of_ids() {
        let mut messages = store(1..=1);
        for first in (2..1_000_000).step_by(1_000) {
            let ids = first..=first + 999;
            for id in ids.clone() {
                messages.insert(MessageId(id), (), 1, Time::ZERO);
            }
            settle(&mut messages, ids);
        }
        assert_eq!(messages.index.len(), 1, "the page of the one old message");
        assert!(messages.index.capacity() < 200, "{}", messages.index.capacity());
    }

    #[test]
    fn memory_goes_back_after_a_peak() {
        let mut messages = store(1..=500_000);
        settle(&mut messages, 1..=500_000);
        assert_eq!((messages.index.len(), messages.bytes(), messages.len()), (0, 0, 0));
        assert!(messages.index.capacity() < 200, "{}", messages.index.capacity());
    }
}
