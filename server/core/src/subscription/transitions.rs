//! The transitions that the inputs of a subscription share. Each change of state is made in one place, and told as one event.

use std::time::Duration;

use super::{Delivery, PASS, Subscription, WAKE_PATIENCE};
use crate::consumers::ConsumerId;
use crate::event::{Attempt, DropReason, Event, IgnoreReason, Leave, MessageId, MessageView, Observer, Outcome};
use crate::messages::State;
use crate::slab::Key;
use crate::time::Time;

impl<M: Clone, O: Observer<M>> Subscription<M, O> {
    // ---- what every input begins and ends with

    /// Time moves on, never back; effects that were due come before the input.
    pub(super) fn begin(&mut self, now: Time) {
        self.now = self.now.max(now);
        if self.now < self.quiet_until && self.later.len() == 0 {
            return;
        }
        for _ in 0..PASS {
            let Some((due, key)) = self.next_effect().filter(|&(due, _)| due <= self.now) else { break };
            self.let_in_before(due);
            match self.messages.slot(key).state {
                State::Outstanding { .. } => self.expire(key),
                State::Delayed => {
                    self.unschedule(key);
                    self.make_ready(key, false);
                    self.tell_at(key, due, |at, message| Event::Due { at, message });
                }
                State::GivenUp { reason, .. } => {
                    self.unschedule(key);
                    self.put_on_offer(key, reason);
                    self.tell_at(key, due, |at, message| Event::Due { at, message });
                }
                State::Ready { .. } => unreachable!("a ready message waits for no instant"),
            }
        }
        self.quiet_until = self.next_effect().map_or(Time::MAX, |(due, _)| due);
        self.let_in_before(self.quiet_until);
    }

    /// Whoever was short of bytes, and has room for what is next by now, waits for its turn.
    pub(super) fn offer_head(&mut self) {
        if self.consumers.any_short_of_bytes()
            && let Some(size) = self.next_size()
        {
            self.consumers.offer(size);
        }
    }

    /// Whether effects are due that no pass has come to.
    fn is_behind(&self) -> bool {
        self.now >= self.quiet_until && self.next_effect().is_some_and(|(due, _)| due <= self.now)
    }

    /// Puts a message on the schedule.
    pub(super) fn schedule(&mut self, due: Time, key: Key) {
        self.schedule.insert((due, self.messages.slot(key).id, key));
        self.quiet_until = self.quiet_until.min(due);
    }

    /// Takes a message off the schedule.
    fn unschedule(&mut self, key: Key) {
        self.schedule.remove(&(self.due(key), self.messages.slot(key).id, key));
    }

    /// What inputs made ready while effects were due takes its turn: after all that were due up to then, before those due later.
    fn let_in_before(&mut self, due: Time) {
        while let Some(key) = self.later.front().filter(|&key| self.messages.slot(key).at < due) {
            self.later.remove(&mut self.messages, key);
            self.messages.slot_mut(key).state = State::Ready { later: false };
            self.again.push_back(&mut self.messages, key);
        }
    }

    /// As many consumers are awake as there are messages to take, and both laws hold.
    pub(super) fn finish(&mut self) {
        self.offer_head();
        if self.consumers.any_waiting() && self.consumers.wake_for(self.deliverable()) {
            self.patience = self.now.plus(WAKE_PATIENCE);
        }
        let backlog = self.backlog();
        assert_eq!(backlog.messages(), self.messages.len(), "each message is in the one place that its state names");
        assert!(self.counts.messages_hold(backlog), "the law of messages: {:?} {backlog:?}", self.counts);
        assert!(self.counts.deliveries_hold(backlog), "the law of deliveries: {:?} {backlog:?}", self.counts);
    }

    /// The effect of time that is due first. At the same instant deadlines that nobody moved go first, in the order of hand-over, then
    /// the schedule, in the order of ids.
    pub(super) fn next_effect(&self) -> Option<(Time, Key)> {
        let deadline = self.deadlines.front().map(|key| (self.due(key), key));
        let scheduled = self.schedule.first().map(|&(due, _, key)| (due, key));
        match (deadline, scheduled) {
            (Some(deadline), Some(scheduled)) if scheduled.0 < deadline.0 => Some(scheduled),
            (None, scheduled) => scheduled,
            (deadline, _) => deadline,
        }
    }

    /// How many messages a consumer with room could take now. None while more effects are due than one pass applies and
    /// no redelivery is ready: the next pass may bring one, and it goes first.
    pub(super) fn deliverable(&self) -> u64 {
        if self.draining || (self.again.len() == 0 && self.is_behind()) {
            0
        } else {
            self.again.len() + self.later.len() + self.first.len()
        }
    }

    /// The message that is delivered next, whoever asks.
    pub(super) fn head(&self) -> Option<Key> {
        self.again.front().or(self.first.front()).filter(|_| self.deliverable() > 0)
    }

    // ---- the transitions

    pub(super) fn try_delivery(&mut self, consumer: ConsumerId, turn: Option<u64>) -> Option<Delivery<M>> {
        let Some(key) = self.head() else {
            self.consumers.wait(consumer, turn);
            return None;
        };
        let receiver = self.consumers.get_mut(consumer)?;
        if !receiver.has_room(self.messages.slot(key).size) {
            self.consumers.wait_for_room(consumer);
            return None;
        }
        let auto_ack = receiver.attachment.auto_ack;
        let delivery = self.hand_over(key, consumer);
        if auto_ack {
            self.end_delivery(key, Outcome::Acked, false, self.now);
            self.settle_acked(key, false);
        }
        Some(delivery)
    }

    fn hand_over(&mut self, key: Key, consumer: ConsumerId) -> Delivery<M> {
        self.take_from_ready(key);
        let now = self.now;
        let deadline = now.plus(self.policy.ack_deadline);
        let slot = self.messages.slot_mut(key);
        slot.state = State::Outstanding { extended: false };
        slot.attempts += 1;
        slot.at = now;
        slot.holder = consumer;
        let after = slot.last_outcome;
        let delivery = Delivery {
            id: slot.id,
            attempt: slot.attempts,
            body: slot.body.clone(),
            accepted_at: slot.accepted_at,
            deadline,
        };
        let size = slot.size;
        self.deadlines.push_back(&mut self.messages, key);
        self.quiet_until = self.quiet_until.min(deadline);
        let receiver = self.consumers.get_mut(consumer).expect("only an attached consumer receives");
        receiver.held.push_back(&mut self.messages, key);
        receiver.held_bytes += u64::from(size);
        self.tell(key, |at, message| Event::Sent { at, message, consumer, after });
        delivery
    }

    pub(super) fn try_ack(&mut self, id: MessageId, attempt: Option<u32>) -> Result<(), IgnoreReason> {
        let key = self.find(id)?;
        let slot = self.messages.slot(key);
        let (state, attempts) = (slot.state, slot.attempts);
        let delivered = attempt.is_none_or(|attempt| (1..=attempts).contains(&attempt)) && attempts > 0;
        match state {
            State::Outstanding { .. } if !self.is_overdue(key) => {
                if attempt.is_some_and(|attempt| attempt != attempts) {
                    return Err(IgnoreReason::Stale);
                }
                self.end_delivery(key, Outcome::Acked, false, self.now);
                self.settle_acked(key, false);
            }
            State::Outstanding { .. } if delivered => {
                self.expire(key);
                self.take_from_queue(key);
                self.settle_acked(key, true);
            }
            State::Ready { .. } | State::Delayed | State::GivenUp { .. } if delivered => {
                self.take_from_queue(key);
                self.settle_acked(key, true);
            }
            State::Outstanding { .. } | State::Ready { .. } | State::Delayed | State::GivenUp { .. } => {
                return Err(IgnoreReason::Unknown);
            }
        }
        Ok(())
    }

    /// The delivery of `id` that `consumer` holds and whose deadline has not passed.
    pub(super) fn held_by(
        &mut self,
        consumer: ConsumerId,
        id: MessageId,
        attempt: Option<u32>,
    ) -> Result<Key, IgnoreReason> {
        let key = self.find(id)?;
        let slot = self.messages.slot(key);
        match slot.state {
            _ if slot.attempts == 0 => Err(IgnoreReason::Unknown),
            State::Ready { .. } | State::Delayed | State::GivenUp { .. } => Err(IgnoreReason::NotHeld),
            State::Outstanding { .. } if self.is_overdue(key) => Err(IgnoreReason::NotHeld),
            State::Outstanding { .. } if attempt.is_some_and(|attempt| attempt != slot.attempts) => {
                Err(IgnoreReason::Stale)
            }
            State::Outstanding { .. } if slot.holder != consumer => Err(IgnoreReason::NotHeld),
            State::Outstanding { .. } => Ok(key),
        }
    }

    /// The message `id`, found as it is at this instant: a delivery whose expiry drops the message is expired here, also when the pass
    /// has not come to it.
    fn find(&mut self, id: MessageId) -> Result<Key, IgnoreReason> {
        let gone = if self.messages.was_accepted(id) { IgnoreReason::Settled } else { IgnoreReason::Unknown };
        let key = self.messages.find(id).ok_or(gone)?;
        if self.is_overdue(key) && !self.has_retries_left(key) && !self.policy.dead_letters {
            self.expire(key);
            return Err(gone);
        }
        Ok(key)
    }

    fn expire(&mut self, key: Key) {
        let slot = self.messages.slot(key);
        let (due, delay) = (self.due(key), self.policy.backoff.before(slot.attempts + 1));
        self.end_delivery(key, Outcome::Expired, true, due);
        self.retry(key, delay, due);
    }

    pub(super) fn release(&mut self, key: Key, leave: Leave) {
        self.end_delivery(key, Outcome::Released, leave == Leave::Broken, self.now);
        match leave {
            Leave::Clean => self.requeue(key, Duration::ZERO, self.now),
            Leave::Broken => {
                let first = self.messages.slot(key).attempts == 1;
                let delay = if first { Duration::ZERO } else { self.policy.ack_deadline };
                self.retry(key, delay, self.now);
            }
        }
    }

    /// A delivery ended in a way that costs a retry: the message is delivered again, or given up where no retry is left.
    pub(super) fn retry(&mut self, key: Key, delay: Duration, at: Time) {
        if self.has_retries_left(key) {
            let slot = self.messages.slot_mut(key);
            slot.failures = slot.failures.saturating_add(1);
            self.requeue(key, delay, at);
        } else {
            self.give_up(key, DropReason::MaxRetries, at);
        }
    }

    fn requeue(&mut self, key: Key, delay: Duration, at: Time) {
        if delay.is_zero() {
            // An expiry takes its turn in the pass; what an input makes ready comes after effects that are due already.
            let slot = self.messages.slot_mut(key);
            slot.at = at;
            let later = slot.last_outcome != Some(Outcome::Expired) && self.is_behind();
            self.make_ready(key, later);
        } else {
            let (slot, due) = (self.messages.slot_mut(key), at.plus(delay));
            slot.state = State::Delayed;
            slot.at = due;
            self.schedule(due, key);
        }
        self.tell_at(key, at, |at, message| Event::Requeued { at, message, delay });
    }

    fn make_ready(&mut self, key: Key, later: bool) {
        self.messages.slot_mut(key).state = State::Ready { later };
        let list = if later { &mut self.later } else { &mut self.again };
        list.push_back(&mut self.messages, key);
    }

    fn settle_acked(&mut self, key: Key, late: bool) {
        self.tell(key, |at, message| Event::Acked { at, message, late });
        self.messages.remove(key);
    }

    /// The message gets no further delivery: it is dropped, where it must be by way of the dead-letter topic.
    pub(super) fn give_up(&mut self, key: Key, reason: DropReason, at: Time) {
        if self.policy.dead_letters {
            self.messages.slot_mut(key).at = at;
            self.put_on_offer(key, reason);
            self.tell_at(key, at, |at, message| Event::GivenUp { at, message, reason });
        } else {
            self.drop_message(key, reason, at);
        }
    }

    fn put_on_offer(&mut self, key: Key, reason: DropReason) {
        self.messages.slot_mut(key).state = State::GivenUp { reason, refused: false };
        self.given_up.push_back(&mut self.messages, key);
    }

    /// Offers a message that is on offer.
    pub(super) fn try_dead_letter(
        &mut self,
        key: Key,
        take: impl FnOnce(&MessageView<'_, M>, DropReason) -> bool,
    ) -> bool {
        let State::GivenUp { reason, .. } = self.messages.slot(key).state else {
            unreachable!("only what was given up is on offer")
        };
        let taken = take(&self.messages.view(key, self.policy.max_retries), reason);
        self.given_up.remove(&mut self.messages, key);
        self.tell(key, |at, message| Event::Offered { at, message, taken });
        if taken {
            self.drop_message(key, reason, self.now);
        } else {
            let (slot, due) = (self.messages.slot_mut(key), self.now.plus(self.policy.ack_deadline));
            slot.state = State::GivenUp { reason, refused: true };
            slot.at = due;
            self.schedule(due, key);
        }
        taken
    }

    fn drop_message(&mut self, key: Key, reason: DropReason, at: Time) {
        self.tell_at(key, at, |at, message| Event::Dropped { at, message, reason });
        self.messages.remove(key);
    }

    /// The one place where a delivery ends: it leaves the deadlines and its holder, and stays in the history unless it was acked.
    pub(super) fn end_delivery(&mut self, key: Key, outcome: Outcome, failed: bool, at: Time) {
        self.take_from_deadlines(key);
        self.take_from_holder(key);
        let slot = self.messages.slot_mut(key);
        slot.last_outcome = Some(outcome);
        let (consumer, sent_at) = (slot.holder, slot.at);
        if outcome != Outcome::Acked {
            slot.history.push(Attempt { number: slot.attempts, outcome, failed, consumer, sent_at, ended_at: at });
        }
        self.tell_at(key, at, |at, message| Event::Ended { at, message, consumer, sent_at, outcome });
    }

    pub(super) fn take_from_deadlines(&mut self, key: Key) {
        if self.messages.slot(key).state == (State::Outstanding { extended: true }) {
            self.unschedule(key);
            self.extended.remove(&key);
        } else {
            self.deadlines.remove(&mut self.messages, key);
        }
    }

    /// Gives the room back to the holder, unless it has left.
    pub(super) fn take_from_holder(&mut self, key: Key) {
        let slot = self.messages.slot(key);
        let (holder, size) = (slot.holder, slot.size);
        if let Some(consumer) = self.consumers.get_mut(holder) {
            consumer.held.remove(&mut self.messages, key);
            consumer.held_bytes -= u64::from(size);
            self.consumers.room_made(holder);
        }
    }

    fn take_from_ready(&mut self, key: Key) {
        let slot = self.messages.slot(key);
        let list = if slot.state == (State::Ready { later: true }) {
            &mut self.later
        } else if slot.attempts == 0 {
            &mut self.first
        } else {
            &mut self.again
        };
        list.remove(&mut self.messages, key);
    }

    /// Takes a message that is not outstanding out of where it waits.
    fn take_from_queue(&mut self, key: Key) {
        let slot = self.messages.slot(key);
        match slot.state {
            State::Ready { .. } => self.take_from_ready(key),
            State::Delayed | State::GivenUp { refused: true, .. } => self.unschedule(key),
            State::GivenUp { refused: false, .. } => self.given_up.remove(&mut self.messages, key),
            State::Outstanding { .. } => unreachable!("an outstanding message is in no queue"),
        }
    }

    // ---- small questions

    pub(super) fn is_overdue(&self, key: Key) -> bool {
        let slot = self.messages.slot(key);
        matches!(slot.state, State::Outstanding { .. }) && self.due(key) <= self.now
    }

    /// The ack deadline of an outstanding message; of any other the instant that its slot names.
    pub(super) fn due(&self, key: Key) -> Time {
        let slot = self.messages.slot(key);
        match slot.state {
            State::Outstanding { extended: false } => slot.at.plus(self.policy.ack_deadline),
            State::Outstanding { extended: true } => self.extended[&key],
            State::Ready { .. } | State::Delayed | State::GivenUp { .. } => slot.at,
        }
    }

    fn has_retries_left(&self, key: Key) -> bool {
        self.policy.max_retries.is_none_or(|max| self.messages.slot(key).failures < max)
    }

    pub(super) fn default_nack_delay(&self, key: Key) -> Duration {
        let backoff = self.policy.backoff.before(self.messages.slot(key).attempts + 1);
        if backoff.is_zero() { self.policy.ack_deadline } else { backoff }
    }

    // ---- telling

    pub(super) fn tell(&mut self, key: Key, event: impl for<'a> FnOnce(Time, MessageView<'a, M>) -> Event<'a, M>) {
        self.tell_at(key, self.now, event);
    }

    fn tell_at(&mut self, key: Key, at: Time, event: impl for<'a> FnOnce(Time, MessageView<'a, M>) -> Event<'a, M>) {
        let event = event(at, self.messages.view(key, self.policy.max_retries));
        self.counts.observe(&event);
        self.observer.observe(&event);
    }

    pub(super) fn tell_event(&mut self, event: &Event<'_, M>) {
        self.counts.observe(event);
        self.observer.observe(event);
    }
}
