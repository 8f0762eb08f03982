//! The transitions that the inputs of a subscription share. Each change of state is made in one place, and told as one event.

use std::time::Duration;

use super::offers::Found;
use super::{Delivery, PASS, PROBE_AFTER_AT_LEAST, PROBE_AFTER_DEADLINES, Reservation, Subscription, WAKE_PATIENCE};
use crate::consumers::ConsumerId;
use crate::event::{Attempt, DropReason, Event, IgnoreReason, Leave, MessageId, MessageView, Observer, Outcome};
use crate::messages::{Queue, State, Until};
use crate::policy::MAX_DELIVERY;
use crate::slab::Key;
use crate::time::Time;

/// What time brings about.
#[derive(Clone, Copy)]
pub(super) enum Effect {
    /// A delivery ends, or a delay.
    OfMessage(Key),
    /// A suspended consumer leaves.
    GraceEnds(ConsumerId, Leave),
}

/// Why something happens.
#[derive(Clone, Copy)]
pub(super) enum Cause {
    /// An input brings it about, now.
    Input,
    /// It was due then.
    Time(Time),
}

impl<M: Clone, O: Observer<M>> Subscription<M, O> {
    // ---- what every input begins and ends with

    /// Time moves on, never back; effects that were due come before the input.
    pub(super) fn begin(&mut self, now: Time) {
        self.now = self.now.max(now);
        if self.now < self.quiet_until && self.later.len() == 0 {
            return;
        }
        for _ in 0..PASS {
            let Some((due, effect)) = self.next_effect().filter(|&(due, _)| due <= self.now) else { break };
            self.let_in_before(due);
            let key = match effect {
                Effect::OfMessage(key) => key,
                Effect::GraceEnds(consumer, leave) => {
                    self.forget(consumer, leave, Cause::Time(due));
                    continue;
                }
            };
            match self.messages.slot(key).state {
                State::Outstanding(_) => self.end_unanswered(key),
                State::Delayed => {
                    self.unschedule(key);
                    self.make_ready(key, Cause::Time(due));
                    self.tell_at(key, due, |at, message| Event::Due { at, message });
                }
                State::GivenUp { reason, .. } => {
                    self.unschedule(key);
                    self.put_on_offer(key, reason);
                    self.tell_at(key, due, |at, message| Event::Due { at, message });
                }
                State::Ready(_) => unreachable!("a ready message waits for no instant"),
            }
        }
        self.quiet_until = self.next_effect().map_or(Time::MAX, |(due, _)| due);
        self.let_in_before(self.quiet_until);
    }

    /// Whether effects are due that no pass has come to.
    pub(super) fn is_behind(&self) -> bool {
        self.now >= self.quiet_until && self.next_effect().is_some_and(|(due, _)| due <= self.now)
    }

    /// Puts a message on the schedule.
    pub(super) fn schedule(&mut self, due: Time, key: Key) {
        self.schedule.insert((due, self.messages.slot(key).id, key));
        self.quiet_until = self.quiet_until.min(due);
    }

    /// Takes a message off the schedule.
    pub(super) fn unschedule(&mut self, key: Key) {
        self.schedule.remove(&(self.due(key), self.messages.slot(key).id, key));
    }

    /// What inputs made ready while effects were due takes its turn: after all that were due up to then, before those due later.
    pub(super) fn let_in_before(&mut self, due: Time) {
        while let Some(key) = self.later.front().filter(|&key| self.messages.slot(key).at < due) {
            self.later.remove(&mut self.messages, key);
            self.messages.slot_mut(key).state = State::Ready(Queue::Again);
            self.again.push_back(&mut self.messages, key);
        }
    }

    /// As many consumers are awake as there are messages to take, and both laws hold.
    pub(super) fn finish(&mut self) {
        self.reserve();
        self.offer_head();
        self.consumers.probes_are_due(self.now);
        if self.consumers.any_waiting() {
            // Whoever finds nothing but what it gave back itself is not woken for that.
            let except = self.exception().filter(|(_, key)| key.is_none()).map(|(who, _)| who);
            let last_too = self.last_come_at().is_none_or(|at| at <= self.now);
            // Whoever was woken for a message alone takes no other.
            let for_alone = self.reserved.is_some_and(|reserved| self.consumers.is_woken(reserved.consumer));
            if self.consumers.wake_for(self.deliverable() + u64::from(for_alone), except, last_too) {
                self.patience = self.now.plus(WAKE_PATIENCE);
            }
        }
        let backlog = self.backlog();
        assert_eq!(backlog.messages(), self.messages.len(), "each message is in the one place that its state names");
        assert!(self.counts.messages_hold(backlog), "the law of messages: {:?} {backlog:?}", self.counts);
        assert!(self.counts.deliveries_hold(backlog), "the law of deliveries: {:?} {backlog:?}", self.counts);
    }

    /// The effect of time that is due first. At the same instant deadlines that nobody moved go first, in the order of hand-over, then
    /// the schedule, in the order of ids, and then the ends of graces.
    pub(super) fn next_effect(&self) -> Option<(Time, Effect)> {
        let deadline = self.deadlines.front().map(|key| (self.due(key), Effect::OfMessage(key)));
        let scheduled = self.schedule.first().map(|&(due, _, key)| (due, Effect::OfMessage(key)));
        let grace = self.graces.first().map(|&(due, consumer)| {
            let suspended = self.consumers.get(consumer).and_then(|consumer| consumer.suspended);
            let (_, leave) = suspended.expect("whoever has a grace is suspended");
            (due, Effect::GraceEnds(consumer, leave))
        });
        // Of several that are least, the first.
        [deadline, scheduled, grace].into_iter().flatten().min_by_key(|&(due, _)| due)
    }

    // ---- the transitions

    pub(super) fn try_delivery(&mut self, consumer: ConsumerId, turn: Option<u64>) -> Option<Delivery<M>> {
        let key = match self.find_for(consumer) {
            Found::Message(key) => key,
            Found::Probe(key) => {
                self.consumers.probed(consumer);
                key
            }
            Found::Nobody => return None,
            Found::Nothing => {
                self.consumers.wait(consumer, turn);
                return None;
            }
            Found::OthersFirst => {
                self.consumers.wait_last(consumer, turn);
                return None;
            }
            Found::Full { by_bytes } => {
                self.consumers.wait_for_room(consumer, by_bytes);
                return None;
            }
        };
        let delivery = self.hand_over(key, consumer);
        if self.consumers.get(consumer).is_some_and(|receiver| receiver.attachment.auto_ack) {
            self.end_delivery(key, Outcome::Acked, self.now);
            self.settle_acked(key, false);
        }
        Some(delivery)
    }

    pub(super) fn hand_over(&mut self, key: Key, consumer: ConsumerId) -> Delivery<M> {
        self.take_from_ready(key);
        let now = self.now;
        let deadline = now.plus(self.policy.ack_deadline);
        let interruptions = self.messages.interruptions(key);
        let slot = self.messages.slot_mut(key);
        slot.state = State::Outstanding(Until::Deadline);
        slot.attempts += 1;
        slot.at = now;
        slot.holder = consumer;
        let after = slot.last_outcome;
        let delivery = Delivery {
            id: slot.id,
            attempt: slot.attempts,
            failures: slot.failures,
            interruptions,
            body: slot.body.clone(),
            accepted_at: slot.accepted_at,
            deadline,
        };
        let size = slot.size;
        self.deadlines.push_back(&mut self.messages, key);
        self.quiet_until = self.quiet_until.min(deadline);
        let is_alone = self.messages.is_alone(key);
        let receiver = self.consumers.get_mut(consumer).expect("only an attached consumer receives");
        receiver.held.push_back(&mut self.messages, key);
        receiver.held_bytes += u64::from(size);
        receiver.holds_alone = is_alone;
        if receiver.is_responsive() {
            self.taken_at = now;
        }
        if is_alone && let Some(Reservation { consumer, .. }) = self.reserved.take() {
            self.consumers.room_made(consumer); // another one's turn may have been cut short
        }
        self.tell(key, |at, message| Event::Sent { at, message, consumer, after });
        delivery
    }

    pub(super) fn try_ack(&mut self, id: MessageId, attempt: Option<u32>) -> Result<(), IgnoreReason> {
        let key = self.find(id)?;
        let slot = self.messages.slot(key);
        let (state, attempts) = (slot.state, slot.attempts);
        let delivered = attempt.is_none_or(|attempt| (1..=attempts).contains(&attempt)) && attempts > 0;
        match state {
            State::Outstanding(_) if !self.is_overdue(key) => {
                if attempt.is_some_and(|attempt| attempt != attempts) {
                    return Err(IgnoreReason::Stale);
                }
                self.end_delivery(key, Outcome::Acked, self.now);
                self.settle_acked(key, false);
            }
            State::Outstanding(_) if delivered => {
                self.end_unanswered(key);
                self.take_from_queue(key);
                self.settle_acked(key, true);
            }
            State::Ready(_) | State::Delayed | State::GivenUp { .. } if delivered => {
                self.take_from_queue(key);
                self.settle_acked(key, true);
            }
            State::Outstanding(_) | State::Ready(_) | State::Delayed | State::GivenUp { .. } => {
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
        let is_outstanding = matches!(slot.state, State::Outstanding(_)) && !self.is_overdue(key);
        let is_suspended = matches!(slot.state, State::Outstanding(Until::Grace(_))); // who must resume first
        if slot.attempts == 0 {
            Err(IgnoreReason::Unknown)
        } else if !is_outstanding {
            Err(IgnoreReason::NotHeld)
        } else if attempt.is_some_and(|attempt| attempt != slot.attempts) {
            Err(IgnoreReason::Stale)
        } else if slot.holder != consumer || is_suspended {
            Err(IgnoreReason::NotHeld)
        } else {
            Ok(key)
        }
    }

    /// The message `id`, found as it is at this instant: a delivery whose end drops the message ends here, also when the pass has not
    /// come to it.
    pub(super) fn find(&mut self, id: MessageId) -> Result<Key, IgnoreReason> {
        let gone = if self.messages.was_accepted(id) { IgnoreReason::Settled } else { IgnoreReason::Unknown };
        let key = self.messages.find(id).ok_or(gone)?;
        if self.is_overdue(key) && !self.policy.dead_letters && self.is_given_up_unanswered(key) {
            self.end_unanswered(key);
            return Err(gone);
        }
        Ok(key)
    }

    /// Whether an outstanding message is given up where nobody answers.
    pub(super) fn is_given_up_unanswered(&self, key: Key) -> bool {
        match self.messages.slot(key).state {
            State::Outstanding(Until::Grace(Outcome::Interrupted)) => {
                self.policy.drops_after(self.messages.interruptions(key) + 1)
            }
            State::Outstanding(Until::Deadline | Until::Moved) => {
                self.policy.is_last_failure(self.messages.slot(key).failures)
            }
            State::Outstanding(Until::Grace(_)) | State::Ready(_) | State::Delayed | State::GivenUp { .. } => false,
        }
    }

    /// Nobody has answered a delivery in time: its deadline has passed, or the grace of its consumer.
    pub(super) fn end_unanswered(&mut self, key: Key) {
        let due = self.due(key);
        if let State::Outstanding(Until::Grace(outcome)) = self.messages.slot(key).state {
            self.end_without_fault(key, outcome, Cause::Time(due));
            return;
        }
        let slot = self.messages.slot(key);
        let (holder, sent_at, delay) = (slot.holder, slot.at, self.policy.backoff.after(slot.failures + 1));
        self.end_delivery(key, Outcome::Expired, due);
        if self.consumers.get(holder).is_some_and(|consumer| consumer.heard_at <= sent_at) {
            let wait = PROBE_AFTER_AT_LEAST.max(self.policy.ack_deadline * PROBE_AFTER_DEADLINES);
            self.consumers.becomes_unresponsive(holder, due.plus(wait));
        }
        self.retry(key, delay, Cause::Time(due));
    }

    /// A delivery is interrupted or released: the message goes back, unless it was interrupted too often.
    pub(super) fn end_without_fault(&mut self, key: Key, outcome: Outcome, cause: Cause) {
        let at = self.instant_of(cause);
        self.end_delivery(key, outcome, at);
        let interruptions = self.messages.interruptions(key);
        if outcome != Outcome::Interrupted {
            self.requeue(key, Duration::ZERO, cause);
        } else if self.policy.drops_after(interruptions) {
            self.give_up(key, DropReason::MaxInterruptions, at);
        } else {
            self.requeue(key, self.policy.delay_after_interruption(interruptions), cause);
        }
    }

    /// The delivery expires `length` from now, at most [`MAX_DELIVERY`] after its hand-over.
    pub(super) fn move_deadline(&mut self, key: Key, length: Duration) {
        self.take_from_deadlines(key);
        let deadline = self.now.plus(length).min(self.messages.slot(key).at.plus(MAX_DELIVERY));
        self.end_at(key, Until::Moved, deadline);
        self.tell(key, |at, message| Event::Extended { at, message, deadline });
    }

    /// The delivery ends at an instant of its own.
    pub(super) fn end_at(&mut self, key: Key, until: Until, at: Time) {
        self.messages.slot_mut(key).state = State::Outstanding(until);
        self.extended.insert(key, at);
        self.schedule(at, key);
    }

    /// A delivery failed: the message is delivered again, or given up where no retry is left.
    pub(super) fn retry(&mut self, key: Key, delay: Duration, cause: Cause) {
        let failures = self.messages.slot(key).failures;
        if self.policy.is_last_failure(failures - 1) {
            self.give_up(key, DropReason::MaxRetries, self.instant_of(cause));
        } else {
            self.requeue(key, delay, cause);
        }
    }

    /// The consumer that held a message gave it back: all others may have it at once. One that is delivered alone is delayed instead,
    /// as the next one that is empty would most likely be the same.
    pub(super) fn give_back(&mut self, key: Key, consumer: ConsumerId) {
        if self.messages.is_alone(key) {
            self.requeue(key, self.policy.ack_deadline, Cause::Input);
            return;
        }
        let slot = self.messages.slot_mut(key);
        slot.state = State::Ready(Queue::GivenBack);
        slot.at = self.now;
        let giver = self.consumers.get_mut(consumer).expect("only an attached consumer holds a delivery");
        if giver.given_back.len() == 0 {
            self.gave_back.insert((self.now, consumer));
        }
        giver.given_back.push_back(&mut self.messages, key);
        self.given_back += 1;
        self.tell(key, |at, message| Event::Requeued { at, message, delay: Duration::ZERO });
    }

    pub(super) fn requeue(&mut self, key: Key, delay: Duration, cause: Cause) {
        let at = self.instant_of(cause);
        if delay.is_zero() {
            self.messages.slot_mut(key).at = at;
            self.make_ready(key, cause);
        } else {
            let (slot, due) = (self.messages.slot_mut(key), at.plus(delay));
            slot.state = State::Delayed;
            slot.at = due;
            self.schedule(due, key);
        }
        self.tell_at(key, at, |at, message| Event::Requeued { at, message, delay });
    }

    /// An effect of time takes its turn in the pass; what an input makes ready comes after effects that are due already.
    pub(super) fn make_ready(&mut self, key: Key, cause: Cause) {
        let (queue, list) = if self.messages.is_alone(key) {
            (Queue::Alone, &mut self.alone)
        } else if matches!(cause, Cause::Input) && self.is_behind() {
            (Queue::Later, &mut self.later)
        } else {
            (Queue::Again, &mut self.again)
        };
        self.messages.slot_mut(key).state = State::Ready(queue);
        list.push_back(&mut self.messages, key);
    }

    pub(super) const fn instant_of(&self, cause: Cause) -> Time {
        match cause {
            Cause::Input => self.now,
            Cause::Time(due) => due,
        }
    }

    pub(super) fn settle_acked(&mut self, key: Key, late: bool) {
        self.tell(key, |at, message| Event::Acked { at, message, late });
        self.messages.remove(key);
    }

    /// The message gets no further delivery: it is dropped, where it must be by way of the dead-letter topic.
    pub(super) fn give_up(&mut self, key: Key, reason: DropReason, at: Time) {
        assert!(self.is_fair(key, reason), "the law of fairness: {reason:?}");
        if self.policy.dead_letters {
            self.messages.slot_mut(key).at = at;
            self.put_on_offer(key, reason);
            self.tell_at(key, at, |at, message| Event::GivenUp { at, message, reason });
        } else {
            self.drop_message(key, reason, at);
        }
    }

    /// The law of fairness: a message is given up for what was its own fault, and for nothing else.
    pub(super) fn is_fair(&self, key: Key, reason: DropReason) -> bool {
        let slot = self.messages.slot(key);
        match reason {
            DropReason::Rejected => slot.last_outcome == Some(Outcome::Nacked),
            DropReason::MaxRetries => self.policy.max_retries.is_some_and(|max| slot.failures > max),
            DropReason::MaxInterruptions => self.policy.drops_after(self.messages.interruptions(key)),
        }
    }

    pub(super) fn put_on_offer(&mut self, key: Key, reason: DropReason) {
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

    pub(super) fn drop_message(&mut self, key: Key, reason: DropReason, at: Time) {
        self.tell_at(key, at, |at, message| Event::Dropped { at, message, reason });
        self.messages.remove(key);
    }

    /// The one place where a delivery ends: it leaves the deadlines and its holder, and is counted and kept in the history where
    /// something went wrong.
    pub(super) fn end_delivery(&mut self, key: Key, outcome: Outcome, at: Time) {
        self.take_from_deadlines(key);
        self.take_from_holder(key);
        if outcome == Outcome::Interrupted {
            self.messages.count_interruption(key);
        }
        let slot = self.messages.slot_mut(key);
        slot.last_outcome = Some(outcome);
        let (consumer, sent_at) = (slot.holder, slot.at);
        if outcome.is_failure() {
            slot.failures = slot.failures.saturating_add(1);
        }
        if outcome.is_failure() || outcome == Outcome::Interrupted {
            slot.history.push(Attempt { number: slot.attempts, outcome, consumer, sent_at, ended_at: at });
        }
        self.tell_at(key, at, |at, message| Event::Ended { at, message, consumer, sent_at, outcome });
    }

    pub(super) fn take_from_deadlines(&mut self, key: Key) {
        if self.messages.slot(key).state == State::Outstanding(Until::Deadline) {
            self.deadlines.remove(&mut self.messages, key);
        } else {
            self.unschedule(key);
            self.extended.remove(&key);
        }
    }

    /// Gives the room back to the holder, unless it has left.
    pub(super) fn take_from_holder(&mut self, key: Key) {
        let slot = self.messages.slot(key);
        let (holder, size) = (slot.holder, slot.size);
        if let Some(consumer) = self.consumers.get_mut(holder) {
            consumer.held.remove(&mut self.messages, key);
            consumer.held_bytes -= u64::from(size);
            consumer.holds_alone = false; // whoever holds a message alone holds no other
            self.consumers.room_made(holder);
        }
    }

    pub(super) fn take_from_ready(&mut self, key: Key) {
        let slot = self.messages.slot(key);
        let State::Ready(queue) = slot.state else { unreachable!("only a ready message is in such a list") };
        let list = match queue {
            Queue::First => &mut self.first,
            Queue::Again => &mut self.again,
            Queue::Later => &mut self.later,
            Queue::Alone => &mut self.alone,
            Queue::GivenBack => {
                self.take_from_given_back(key);
                return;
            }
        };
        list.remove(&mut self.messages, key);
    }

    pub(super) fn take_from_given_back(&mut self, key: Key) {
        let consumer = self.messages.slot(key).holder;
        let since = |this: &Self| this.first_given_back(consumer).map(|key| this.messages.slot(key).at);
        let before = since(self).expect("the list has this message");
        let giver = self.consumers.get_mut(consumer).expect("what a consumer gave back is anybody's when it leaves");
        giver.given_back.remove(&mut self.messages, key);
        self.given_back -= 1;
        self.gave_back.remove(&(before, consumer));
        if let Some(after) = since(self) {
            self.gave_back.insert((after, consumer));
        }
    }

    /// Takes a message that is not outstanding out of where it waits.
    pub(super) fn take_from_queue(&mut self, key: Key) {
        let slot = self.messages.slot(key);
        match slot.state {
            State::Ready(_) => self.take_from_ready(key),
            State::Delayed | State::GivenUp { refused: true, .. } => self.unschedule(key),
            State::GivenUp { refused: false, .. } => self.given_up.remove(&mut self.messages, key),
            State::Outstanding(_) => unreachable!("an outstanding message is in no queue"),
        }
    }

    // ---- small questions

    pub(super) fn is_overdue(&self, key: Key) -> bool {
        let slot = self.messages.slot(key);
        matches!(slot.state, State::Outstanding(_)) && self.due(key) <= self.now
    }

    /// When the delivery of an outstanding message ends that nobody answers; of any other message the instant that its slot names.
    pub(super) fn due(&self, key: Key) -> Time {
        let slot = self.messages.slot(key);
        match slot.state {
            State::Outstanding(Until::Deadline) => slot.at.plus(self.policy.ack_deadline),
            State::Outstanding(Until::Moved | Until::Grace(_)) => self.extended[&key],
            State::Ready(_) | State::Delayed | State::GivenUp { .. } => slot.at,
        }
    }

    pub(super) fn default_nack_delay(&self, key: Key) -> Duration {
        let backoff = self.policy.backoff.after(self.messages.slot(key).failures + 1);
        if backoff.is_zero() { self.policy.ack_deadline } else { backoff }
    }

    // ---- telling

    pub(super) fn tell(&mut self, key: Key, event: impl for<'a> FnOnce(Time, MessageView<'a, M>) -> Event<'a, M>) {
        self.tell_at(key, self.now, event);
    }

    pub(super) fn tell_at(
        &mut self,
        key: Key,
        at: Time,
        event: impl for<'a> FnOnce(Time, MessageView<'a, M>) -> Event<'a, M>,
    ) {
        let event = event(at, self.messages.view(key, self.policy.max_retries));
        self.counts.observe(&event);
        self.observer.observe(&event);
    }

    pub(super) fn tell_event(&mut self, event: &Event<'_, M>) {
        self.counts.observe(event);
        self.observer.observe(event);
    }
}
