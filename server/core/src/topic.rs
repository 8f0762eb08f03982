//! A topic: the sequence of its message ids, and fan-out to its subscriptions.

use std::ops::DerefMut;

use crate::event::{MessageId, Observer};
use crate::subscription::{Refusal, Subscription};
use crate::time::Time;

/// Gives out the ids of one topic, and publishes to all of its subscriptions or to none.
#[derive(Debug)]
pub struct Topic {
    next_id: u64,
}

/// A publish that was not accepted by any subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Which of the subscriptions refused, by its place in the list.
    pub subscription: usize,
    /// Why.
    pub refusal: Refusal,
}

impl Topic {
    /// A topic without messages; its first id is 1.
    pub const fn new() -> Self {
        Self { next_id: 1 }
    }

    /// Publishes a message of `size` bytes to all `subscriptions` of this topic.
    ///
    /// # Errors
    ///
    /// Where one of them refuses, none has accepted the message and no id is used.
    pub fn publish<M: Clone, O: Observer<M>>(
        &mut self,
        subscriptions: &mut [impl DerefMut<Target = Subscription<M, O>>],
        body: &M,
        size: u32,
        now: Time,
    ) -> Result<MessageId, Refused> {
        for (place, subscription) in subscriptions.iter_mut().enumerate() {
            if let Err(refusal) = subscription.check_room(size, now) {
                return Err(Refused { subscription: place, refusal });
            }
        }
        let id = MessageId(self.next_id);
        self.next_id += 1;
        for subscription in subscriptions {
            subscription.enqueue(id, body.clone(), size, now);
        }
        Ok(id)
    }
}

impl Default for Topic {
    fn default() -> Self {
        Self::new()
    }
}
