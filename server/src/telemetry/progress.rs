//! How the generator's messages fare.

use std::sync::atomic::{AtomicU64, Ordering};

use ackstream_core::Event;
use tokio::sync::Notify;

use crate::message::Message;

/// Seen by the subscription's watch, read by the generator.
#[derive(Debug, Default)]
pub struct Progress {
    settled: AtomicU64,
    consumers: AtomicU64,
    changed: Notify,
}

impl Progress {
    /// How many of the generator's messages are acked or dropped.
    pub fn settled(&self) -> u64 {
        self.settled.load(Ordering::Acquire)
    }

    /// How many consumers are attached.
    pub fn consumers(&self) -> u64 {
        self.consumers.load(Ordering::Acquire)
    }

    /// Waits until a message was settled, or a consumer came or went, since this was last called.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    pub(super) fn observe<M: AsRef<Message>>(&self, event: &Event<'_, M>) {
        match event {
            Event::Acked { message, .. } | Event::Dropped { message, .. } => {
                self.settled.fetch_add(u64::from(message.body.as_ref().number().is_some()), Ordering::Release);
            }
            Event::Attached { .. } => {
                self.consumers.fetch_add(1, Ordering::Release);
            }
            Event::Detached { .. } => {
                self.consumers.fetch_sub(1, Ordering::Release);
            }
            Event::Published { .. }
            | Event::Sent { .. }
            | Event::Extended { .. }
            | Event::Ended { .. }
            | Event::Requeued { .. }
            | Event::Due { .. }
            | Event::GivenUp { .. }
            | Event::Offered { .. }
            | Event::Ignored { .. }
            | Event::Draining { .. } => return,
        }
        self.changed.notify_one();
    }
}
