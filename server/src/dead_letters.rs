//! Where a subscription's dead letters go: what it gave up is published to another topic, with attributes that say where it came from
//! and what became of it there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ackstream_core::{Attempt, DropReason, MessageView, Time};
use serde::Serialize;

use crate::broker::Topic;
use crate::message::Message;
use crate::subscription::Locked;

/// The topic in which the message was given up.
pub const ORIGIN_TOPIC: &str = "ackstream.origin.topic";
/// The subscription that gave it up.
pub const ORIGIN_SUBSCRIPTION: &str = "ackstream.origin.subscription";
/// The id that it had there.
pub const ORIGIN_ID: &str = "ackstream.origin.id";
/// Why it was given up: `max_retries` or `rejected`.
pub const ORIGIN_REASON: &str = "ackstream.origin.reason";
/// How its deliveries ended, as a JSON list: the first and the last 16, each with `attempt`, `outcome`, `sent_at` and `ended_at`.
pub const ORIGIN_ATTEMPTS: &str = "ackstream.origin.attempts";

/// The attributes that a dead letter has besides its publisher's. They count against no bound of a publish, so that whatever was
/// given up can be published again as it is.
pub const ORIGIN_ATTRIBUTES: [&str; 5] = [ORIGIN_TOPIC, ORIGIN_SUBSCRIPTION, ORIGIN_ID, ORIGIN_REASON, ORIGIN_ATTEMPTS];

/// The bytes of those attributes among a message's, and how many there are.
pub fn added<'a>(attributes: impl IntoIterator<Item = (&'a str, &'a str)>) -> (usize, usize) {
    let added = attributes.into_iter().filter(|(name, _)| ORIGIN_ATTRIBUTES.contains(name));
    added.fold((0, 0), |(bytes, count), (name, value)| (bytes + name.len() + value.len(), count + 1))
}

/// The most bytes that these attributes add to a message: 32 attempts of at most 118 bytes, two names of at most 255, and the rest.
pub const MAX_ORIGIN_BYTES: u64 = 8 << 10;

/// At most so many are handed over under one lock, so that they hold nobody else up for long.
const LETTERS_PER_LOCK: usize = 64;

/// The way from one subscription to its dead-letter topic.
///
/// The topic is published to while the subscription is locked: topics lead to one another without a circle, so locks are only ever
/// taken along that way, and a message is dropped exactly when the other topic has it.
pub struct DeadLetters {
    to: Arc<Topic>,
    topic: String,
    subscription: String,
}

impl DeadLetters {
    /// From a subscription of `topic` to `to`.
    pub const fn new(to: Arc<Topic>, topic: String, subscription: String) -> Self {
        Self { to, topic, subscription }
    }

    /// Hands over what the locked subscription has on offer. What is left makes its `next_due` answer at once.
    pub fn hand_over(&self, locked: &mut Locked<'_>) {
        let now = locked.now;
        for _ in 0..LETTERS_PER_LOCK {
            // A million letters may wait for a topic that is full: what is refused is refused before it is written.
            let take = |message: &MessageView<'_, Message>, reason| {
                self.to.has_room_for(message.size) && self.to.publish_dead_letter(&self.write(message, reason)).is_ok()
            };
            if locked.offer_dead_letter(now, take).is_none() {
                break;
            }
        }
    }

    fn write(&self, dead: &MessageView<'_, Message>, reason: DropReason) -> Message {
        let attempts: Vec<_> = dead.history.iter().map(EndedAttempt::of).collect();
        let mut attributes: BTreeMap<String, String> =
            dead.body.attributes().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        attributes.extend([
            (ORIGIN_TOPIC.to_owned(), self.topic.clone()),
            (ORIGIN_SUBSCRIPTION.to_owned(), self.subscription.clone()),
            (ORIGIN_ID.to_owned(), dead.id.0.to_string()),
            (ORIGIN_REASON.to_owned(), reason.name().to_owned()),
            (ORIGIN_ATTEMPTS.to_owned(), serde_json::to_string(&attempts).expect("plain values make JSON")),
        ]);
        Message::new(dead.body.payload(), &attributes)
    }
}

/// A delivery as [`ORIGIN_ATTEMPTS`] tells it.
#[derive(Serialize)]
struct EndedAttempt {
    attempt: u32,
    outcome: &'static str,
    sent_at: String,
    ended_at: String,
}

impl EndedAttempt {
    fn of(attempt: &Attempt) -> Self {
        let (number, outcome) = (attempt.number, attempt.outcome.name());
        Self { attempt: number, outcome, sent_at: text(attempt.sent_at), ended_at: text(attempt.ended_at) }
    }
}

/// An instant as RFC 3339 has it, to the millisecond.
fn text(time: Time) -> String {
    humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + Duration::from_nanos(time.as_nanos())).to_string()
}
