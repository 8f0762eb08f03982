//! Consumers that leave, for good or until they resume.

use super::Subscription;
use super::transitions::Cause;
use crate::consumers::{Attachment, ConsumerId};
use crate::event::{Event, Leave, MessageId, Observer, Outcome, Release};
use crate::messages::Until;
use crate::policy::MAX_DELIVERY;
use crate::slab::Key;
use crate::time::Time;

impl<M: Clone, O: Observer<M>> Subscription<M, O> {
    /// How the delivery at this place among those of a consumer ends when that leaves.
    pub(super) fn end_of(leave: Leave, in_progress: bool) -> Outcome {
        match leave {
            Leave::Clean => Outcome::Released(Release::Left),
            Leave::Closed => Outcome::Released(Release::Closed),
            Leave::Broken if in_progress => Outcome::Interrupted,
            Leave::Broken => Outcome::Released(Release::NotBegun),
        }
    }

    /// The deliveries of a consumer whose deadlines have not passed, in the order of hand-over, and whether they are in progress.
    pub(super) fn held_by_consumer(&self, consumer: ConsumerId) -> Vec<(Key, bool)> {
        let Some(holder) = self.consumers.get(consumer) else { return Vec::new() };
        let (mut next, mut held) = (holder.held.front(), Vec::new());
        while let Some(key) = next {
            next = self.messages.next_held(key);
            if !self.is_overdue(key) {
                held.push((key, (held.len() as u64) < holder.in_progress()));
            }
        }
        held
    }

    pub(super) fn leave(&mut self, consumer: ConsumerId, leave: Leave) {
        for (key, in_progress) in self.held_by_consumer(consumer) {
            self.end_without_fault(key, Self::end_of(leave, in_progress), Cause::Input);
        }
        // What is left has expired; a later pass tells so.
        while let Some(key) = self.consumers.get(consumer).and_then(|holder| holder.held.front()) {
            self.take_from_holder(key);
        }
        self.forget(consumer, leave, Cause::Input);
    }

    /// A consumer that holds nothing is no longer there. What it gave back is anybody's.
    pub(super) fn forget(&mut self, consumer: ConsumerId, leave: Leave, cause: Cause) {
        let at = self.instant_of(cause);
        while let Some(key) = self.first_given_back(consumer) {
            self.take_from_ready(key);
            self.messages.slot_mut(key).at = at;
            self.make_ready(key, cause);
        }
        if let Some(gone) = self.consumers.detach(consumer) {
            if let Some((until, _)) = gone.suspended {
                self.graces.remove(&(until, consumer));
            }
            self.tell_event(&Event::Detached { at, consumer, leave });
        }
    }

    /// The deliveries of a consumer end with its grace, and none later than [`MAX_DELIVERY`] after its hand-over.
    pub(super) fn begin_grace(&mut self, consumer: ConsumerId, leave: Leave, until: Time) {
        for (key, in_progress) in self.held_by_consumer(consumer) {
            self.take_from_deadlines(key);
            let end = until.min(self.messages.slot(key).at.plus(MAX_DELIVERY));
            self.end_at(key, Until::Grace(Self::end_of(leave, in_progress)), end);
        }
        self.consumers.suspend(consumer, until, leave);
        self.graces.insert((until, consumer));
        self.quiet_until = self.quiet_until.min(until);
    }

    pub(super) fn end_grace(
        &mut self,
        consumer: ConsumerId,
        attachment: Attachment,
        holds: impl Fn(MessageId) -> bool,
    ) {
        let suspended = self.consumers.get(consumer).and_then(|known| known.suspended);
        let (until, _) = suspended.expect("only a suspended consumer resumes");
        self.graces.remove(&(until, consumer));
        self.consumers.resume(consumer, attachment);
        for (key, _) in self.held_by_consumer(consumer) {
            if holds(self.messages.slot(key).id) {
                self.move_deadline(key, self.policy.ack_deadline);
            } else {
                self.end_without_fault(key, Outcome::Released(Release::NotReceived), Cause::Input);
            }
        }
    }
}
