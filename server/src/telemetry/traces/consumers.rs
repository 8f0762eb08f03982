//! How consumers call themselves, for `messaging.client.id`. A message may be settled long after a consumer that once had it is gone.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use ackstream_core::ConsumerId;

/// The names of so many consumers that have left are kept; of older ones, spans have no name.
const REMEMBERED: usize = 1_024;

/// The names of one subscription's consumers: of those attached, and of the last that left.
#[derive(Debug, Default)]
pub(super) struct Consumers {
    names: HashMap<ConsumerId, Arc<str>>,
    left: VecDeque<ConsumerId>,
}

impl Consumers {
    pub(super) fn name(&mut self, consumer: ConsumerId, client_id: &str) {
        if !client_id.is_empty() {
            self.names.insert(consumer, client_id.into());
        }
    }

    pub(super) fn left(&mut self, consumer: ConsumerId) {
        if !self.names.contains_key(&consumer) {
            return;
        }
        if self.left.len() >= REMEMBERED
            && let Some(oldest) = self.left.pop_front()
        {
            self.names.remove(&oldest);
        }
        self.left.push_back(consumer);
    }

    pub(super) fn client_id(&self, consumer: ConsumerId) -> Option<Arc<str>> {
        self.names.get(&consumer).cloned()
    }
}

#[cfg(test)]
mod tests {
    use ackstream_core::{Attachment, Leave, Policy, Subscription, Time, Window};

    use super::{Consumers, REMEMBERED};

    #[test]
    fn names_of_consumers_that_left_are_kept_up_to_a_bound() {
        let mut core = Subscription::<(), ()>::new(Policy::default(), ());
        let mut consumers = Consumers::default();
        let window = Window { max_messages: 1, max_bytes: 1 };
        let mut all = Vec::new();
        for number in 0..2 * REMEMBERED {
            let consumer = core.attach(Attachment { window, handlers: 0, auto_ack: false }, Time::ZERO);
            consumers.name(consumer, &number.to_string());
            core.detach(consumer, Leave::Clean, Time::ZERO);
            consumers.left(consumer);
            all.push(consumer);
        }
        assert_eq!(consumers.names.len(), REMEMBERED);
        assert_eq!(consumers.client_id(all[REMEMBERED - 1]), None);
        assert_eq!(consumers.client_id(all[REMEMBERED]).as_deref(), Some(REMEMBERED.to_string().as_str()));
    }
}
