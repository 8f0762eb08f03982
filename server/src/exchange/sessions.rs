//! The sessions of all clients: who may take up which consumer again, over another stream.

use std::sync::{Arc, Mutex, Weak};

use ackstream_core::ConsumerId;
use rustc_hash::FxHashMap;

use crate::exchange::session::{Receiver, Session};
use crate::security::Caller;
use crate::subscription::Subscription;

/// What a client shows to take its session up: random, so that nobody guesses another's.
pub(super) type Key = [u8; 16];

/// All sessions. A session is bound to its client and subscription: another's is as unknown as a wrong one.
#[derive(Default)]
pub(super) struct Sessions(Mutex<Known>);

#[derive(Default)]
struct Known {
    sessions: FxHashMap<Key, Entry>,
    /// Those that are over are forgotten when there are so many.
    forget_at: usize,
}

struct Entry {
    caller: Caller,
    subscription: Arc<Subscription>,
    consumer: ConsumerId,
    /// Its last stream.
    stream: Weak<Session>,
}

/// Below so many sessions nobody looks which of them are over.
const FORGET_AT_LEAST: usize = 64;

impl Sessions {
    /// The consumer of this session. If its last stream is open, that ends.
    pub(super) fn take_over(
        &self,
        key: &[u8],
        caller: &Caller,
        subscription: &Arc<Subscription>,
    ) -> Option<(Key, ConsumerId)> {
        let key: Key = key.try_into().ok()?;
        let known = self.0.lock().expect("a panic ends the process");
        let entry = known.sessions.get(&key)?;
        if !entry.caller.is(caller) || !Arc::ptr_eq(&entry.subscription, subscription) {
            return None;
        }
        if let Some(stream) = entry.stream.upgrade() {
            stream.take_over();
        }
        Some((key, entry.consumer))
    }

    /// The session has this stream, from now on.
    pub(super) fn remember(&self, key: Key, caller: &Caller, receiver: &Receiver, stream: &Arc<Session>) {
        let mut known = self.0.lock().expect("a panic ends the process");
        let Known { sessions, forget_at } = &mut *known;
        if sessions.len() >= *forget_at {
            sessions.retain(|_, entry| entry.subscription.lock().is_attached(entry.consumer));
            *forget_at = (2 * sessions.len()).max(FORGET_AT_LEAST);
        }
        let entry = Entry {
            caller: caller.clone(),
            subscription: Arc::clone(&receiver.subscription),
            consumer: receiver.consumer,
            stream: Arc::downgrade(stream),
        };
        sessions.insert(key, entry);
    }
}
