//! What a consumer finds that asks for a delivery: which message is next for it, whether others come first, and who is to become empty
//! for a message that is delivered alone.

use super::{RESERVED_FOR, Reservation, Subscription, WAKE_PATIENCE};
use crate::consumers::{Consumer, ConsumerId, Probe};
use crate::event::Observer;
use crate::slab::Key;
use crate::time::Time;

/// What a consumer finds that asks for a delivery.
pub(super) enum Found {
    /// This message.
    Message(Key),
    /// This message, to see whether it answers.
    Probe(Key),
    /// Nothing: there is no such consumer, or it is suspended.
    Nobody,
    /// Nothing.
    Nothing,
    /// Others may have what there is.
    OthersFirst,
    /// A message, but no room for it. `by_bytes`: a smaller one may fit.
    Full { by_bytes: bool },
}

impl<M: Clone, O: Observer<M>> Subscription<M, O> {
    /// How many messages consumers with room could take now, besides those alone. None while more effects are due than one pass
    /// applies and no redelivery is ready: the next pass may bring one, and it goes first.
    pub(super) fn deliverable(&self) -> u64 {
        if self.draining || (self.again.len() == 0 && self.is_behind()) {
            0
        } else {
            self.again.len() + self.later.len() + self.given_back + self.first.len()
        }
    }

    /// The message that is delivered next, whoever asks, but that what a consumer gave back is not for itself.
    pub(super) fn head(&self) -> Option<Key> {
        let given_back = || self.gave_back.first().and_then(|&(_, consumer)| self.first_given_back(consumer));
        self.again.front().or_else(given_back).or(self.first.front()).filter(|_| self.deliverable() > 0)
    }

    /// The consumer for which another message is next than for all others, or none, and which: it gave the next one back.
    pub(super) fn exception(&self) -> Option<(ConsumerId, Option<Key>)> {
        let &(since, consumer) = self.gave_back.first()?;
        if self.again.front().is_some() || self.deliverable() == 0 || self.bar_ends(since) <= self.now {
            return None;
        }
        let others = self.gave_back.iter().nth(1).and_then(|&(_, other)| self.first_given_back(other));
        Some((consumer, others.or(self.first.front())))
    }

    pub(super) fn first_given_back(&self, consumer: ConsumerId) -> Option<Key> {
        self.consumers.get(consumer)?.given_back.front()
    }

    /// When whoever gave a message back at `since` may get it again.
    pub(super) fn bar_ends(&self, since: Time) -> Time {
        since.plus(self.policy.ack_deadline)
    }

    /// When a consumer may be woken that waits and finds nothing but what it gave back itself.
    pub(super) fn given_back_is_due(&self) -> Option<Time> {
        let (consumer, _) = self.exception().filter(|(_, key)| key.is_none())?;
        let &(since, _) = self.gave_back.first()?;
        self.consumers.is_waiting(consumer).then(|| self.bar_ends(since))
    }

    /// The message that is next among all for this consumer, whether it has room or not.
    pub(super) fn head_for(&self, consumer: ConsumerId) -> Option<Key> {
        match self.exception() {
            Some((who, key)) if who == consumer => key,
            Some(_) | None => self.head(),
        }
    }

    /// What a consumer finds that asks.
    pub(super) fn find_for(&self, id: ConsumerId) -> Found {
        let Some(consumer) = self.consumers.get(id).filter(|consumer| consumer.suspended.is_none()) else {
            return Found::Nobody;
        };
        let is_last = consumer.probe.is_some() && self.consumers.any_responsive();
        if consumer.held.len() == 0
            && !is_last
            && let Some(key) = self.alone.front().filter(|_| self.can_deliver_alone())
        {
            return Found::Message(key);
        }
        if consumer.holds_alone || self.reserved.is_some_and(|reserved| reserved.consumer == id) {
            return Found::Full { by_bytes: false };
        }
        let Some(key) = self.head_for(id) else { return Found::Nothing };
        if is_last && self.last_come_at().is_some_and(|at| self.now < at) {
            let may_be_probed = match consumer.probe {
                Some(Probe::Due) => true,
                Some(Probe::At(at)) => at <= self.now,
                Some(Probe::Sent) | None => false,
            };
            let without_failure = |key: &Key| self.messages.slot(*key).failures == 0;
            let probe = Some(key).filter(without_failure).or(self.first.front()).filter(|_| may_be_probed);
            return match probe {
                Some(key) if consumer.has_room(self.messages.slot(key).size) => Found::Probe(key),
                Some(_) | None => Found::OthersFirst,
            };
        }
        if consumer.has_room(self.messages.slot(key).size) {
            Found::Message(key)
        } else {
            Found::Full { by_bytes: true }
        }
    }

    /// The message that the consumer gets if it asks.
    pub(super) fn next_for(&self, consumer: ConsumerId) -> Option<Key> {
        match self.find_for(consumer) {
            Found::Message(key) | Found::Probe(key) => Some(key),
            Found::Nobody | Found::Nothing | Found::OthersFirst | Found::Full { .. } => None,
        }
    }

    pub(super) fn can_deliver_alone(&self) -> bool {
        !self.draining && !self.is_behind()
    }

    /// When an unresponsive consumer may take the next message: once responsive ones that have room for it did not for so long. `None`:
    /// at any time, as there is no such one.
    pub(super) fn last_come_at(&self) -> Option<Time> {
        if !self.consumers.any_unresponsive() {
            return None;
        }
        let slot = self.messages.slot(self.head()?);
        let reserved = self.reserved.map(|reserved| reserved.consumer);
        let mut others = self.consumers.iter();
        let open = others.any(|(id, other)| other.is_responsive() && other.has_room(slot.size) && reserved != Some(id));
        let ready_since = if slot.attempts == 0 { slot.accepted_at } else { slot.at };
        open.then(|| ready_since.max(self.taken_at).plus(WAKE_PATIENCE))
    }

    /// While a message waits to be delivered alone, one consumer gets nothing else: one that is empty and waits, where there is any; else
    /// the one whose last such turn is the longest ago, and of those the one with the fewest deliveries. It is a responsive one, where
    /// there is any.
    pub(super) fn reserve(&mut self) {
        let wanted = self.alone.len() > 0 && self.can_deliver_alone();
        if !wanted && self.reserved.is_none() {
            return;
        }
        let responsive_only = self.consumers.any_responsive();
        let suits = |consumer: &Consumer| {
            let responsive = !responsive_only || consumer.probe.is_none();
            wanted && consumer.suspended.is_none() && !consumer.holds_alone && responsive
        };
        let all = || self.consumers.iter().filter(|(_, consumer)| suits(consumer));
        let rank = |id, consumer: &Consumer| {
            let is_busy = consumer.held.len() > 0 || self.consumers.is_expected(id);
            (is_busy, consumer.reserved_as, consumer.held.len())
        };
        let next = all().map(|(id, consumer)| (rank(id, consumer), id)).min_by_key(|&(rank, _)| rank);
        let stays = self.reserved.filter(|&Reservation { consumer, until }| {
            let reserved = self.consumers.get(consumer);
            let better = next.is_some_and(|((is_busy, ..), _)| !is_busy);
            self.now < until && reserved.is_some_and(|known| suits(known) && (known.held.len() == 0 || !better))
        });
        let others = all().nth(1).is_some();
        if let Some(Reservation { consumer, .. }) = stays {
            self.call_the_reserved(consumer);
            return;
        }
        if let Some(Reservation { consumer, .. }) = self.reserved.take() {
            self.consumers.room_made(consumer);
        }
        let Some((_, consumer)) = next else { return };
        self.reservations += 1;
        let number = self.reservations;
        let chosen = self.consumers.get_mut(consumer).expect("it was found");
        chosen.reserved_as = number;
        let patience = if chosen.held.len() == 0 && others { WAKE_PATIENCE } else { RESERVED_FOR };
        self.reserved = Some(Reservation { consumer, until: self.now.plus(patience) });
        self.call_the_reserved(consumer);
    }

    /// A reserved consumer that is empty, and waits, is woken.
    pub(super) fn call_the_reserved(&mut self, consumer: ConsumerId) {
        if self.consumers.get(consumer).is_some_and(|reserved| reserved.held.len() == 0)
            && !self.consumers.is_expected(consumer)
        {
            self.consumers.wake(consumer);
            self.patience = self.now.plus(WAKE_PATIENCE);
        }
    }

    /// Whoever was short of bytes, and has room for what is next by now, waits for its turn.
    pub(super) fn offer_head(&mut self) {
        if self.consumers.any_short_of_bytes()
            && let Some(key) = self.head()
        {
            let exception = self.exception().map(|(who, key)| (who, key.map(|key| self.messages.slot(key).size)));
            self.consumers.offer(self.messages.slot(key).size, exception);
        }
    }
}
