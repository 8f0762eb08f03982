//! The topics of a server, and what it takes to publish to one.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ackstream_core::{MessageId, Refusal};

use crate::dead_letters;
use crate::message::Message;
use crate::security::Verb;
use crate::subscription::{Locked, Subscription};

/// The most attributes that a publisher may give a message.
pub const MAX_ATTRIBUTES: usize = 64;
/// The longest name of an attribute, in bytes; the shortest has one.
pub const MAX_ATTRIBUTE_NAME: usize = 256;
/// The longest value of an attribute, in bytes.
pub const MAX_ATTRIBUTE_VALUE: usize = 4096;

/// Everything that is published to and consumed from.
pub struct Broker {
    topics: BTreeMap<String, Arc<Topic>>,
}

/// One topic and its subscriptions.
pub struct Topic {
    name: String,
    epoch: u64,
    max_message_bytes: u64,
    ids: Mutex<ackstream_core::Topic>,
    subscriptions: Vec<Arc<Subscription>>,
    rejections: Rejections,
}

/// The kinds of reasons for which publishes are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectReason {
    /// A backlog has no room.
    BacklogFull,
    /// The message is too large.
    TooLarge,
    /// The message breaks a rule of its form.
    Invalid,
    /// The server is stopping.
    Draining,
    /// The client may not publish to this topic.
    Denied,
}

impl RejectReason {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::BacklogFull, Self::TooLarge, Self::Invalid, Self::Draining, Self::Denied];

    /// Its name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BacklogFull => "backlog_full",
            Self::TooLarge => "too_large",
            Self::Invalid => "invalid",
            Self::Draining => "draining",
            Self::Denied => "denied",
        }
    }
}

/// How many publishes a topic has refused, by reason.
#[derive(Debug, Default)]
pub struct Rejections([AtomicU64; RejectReason::ALL.len()]);

impl Rejections {
    /// How many were refused for this reason.
    pub fn get(&self, reason: RejectReason) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }

    fn count(&self, reason: RejectReason) {
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// Why a publish was not accepted. Nothing of it is stored, in any subscription.
#[derive(Debug, PartialEq, Eq)]
pub enum PublishError {
    /// A subscription of the topic has no room, or takes nothing any more.
    Refused {
        /// The topic.
        topic: String,
        /// The subscription that refused; `None`: the publisher may not know its name.
        subscription: Option<String>,
        /// Why.
        refusal: Refusal,
    },
    /// The message is larger than the server allows.
    TooLarge {
        /// Bytes of payload and attributes.
        size: usize,
        /// The bound, `max_message_bytes`.
        max: u64,
    },
    /// The message breaks a rule of its form; the sentence says which.
    Invalid(String),
    /// The client may not publish to this topic.
    Denied(Denied),
}

/// A client may not do what it wants to do. It is not told whether there is such a topic or subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// How the client calls itself.
    pub client: String,
    /// What it wants to do,
    pub verb: Verb,
    /// and with which topic or subscription.
    pub name: String,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, verb, name } = self;
        write!(f, "client {} may not {verb} {}", quoted(client), quoted(name))
    }
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { topic, subscription, refusal } => {
                let who = subscription
                    .as_ref()
                    .map_or_else(|| "a subscription".to_owned(), |name| format!("subscription {name:?}"));
                write!(f, "not accepted by topic \"{topic}\": {who} takes no message, {refusal}")
            }
            Self::TooLarge { size, max } => {
                write!(
                    f,
                    "not accepted: the message has {size} bytes, this server takes at most {max} (max_message_bytes)"
                )
            }
            Self::Invalid(what) => write!(f, "not accepted: {what}"),
            Self::Denied(denied) => write!(f, "not accepted: {denied}"),
        }
    }
}

impl std::error::Error for PublishError {}

impl PublishError {
    /// Whether the same publish may be accepted later: a backlog is full.
    pub const fn may_pass(&self) -> bool {
        matches!(self.reason(), RejectReason::BacklogFull)
    }

    /// The same, for a publisher that may know the names of only these subscriptions.
    #[must_use]
    pub fn as_told_to(self, may_know: impl FnOnce(&str) -> bool) -> Self {
        match self {
            Self::Refused { topic, subscription, refusal } => {
                Self::Refused { topic, subscription: subscription.filter(|name| may_know(name)), refusal }
            }
            Self::TooLarge { .. } | Self::Invalid(_) | Self::Denied(_) => self,
        }
    }

    /// What kind of reason this is.
    pub const fn reason(&self) -> RejectReason {
        match self {
            Self::Refused { refusal: Refusal::TooManyMessages { .. } | Refusal::TooManyBytes { .. }, .. } => {
                RejectReason::BacklogFull
            }
            Self::Refused { refusal: Refusal::Draining, .. } => RejectReason::Draining,
            Self::TooLarge { .. } => RejectReason::TooLarge,
            Self::Invalid(_) => RejectReason::Invalid,
            Self::Denied(_) => RejectReason::Denied,
        }
    }
}

/// A name that the server does not know.
#[derive(Debug, PartialEq, Eq)]
pub enum UnknownName {
    /// No such topic.
    Topic {
        /// What was asked for.
        name: String,
        /// The topics that there are.
        known: Vec<String>,
    },
    /// No such subscription of a topic that there is.
    Subscription {
        /// The topic.
        topic: String,
        /// What was asked for.
        name: String,
        /// The topic's subscriptions.
        known: Vec<String>,
    },
}

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic { name, known } => {
                write!(f, "there is no topic {}{}", quoted(name), listed("this server has", known))
            }
            Self::Subscription { topic, name, known } => {
                write!(f, "topic {} has no subscription {}{}", quoted(topic), quoted(name), listed("it has", known))
            }
        }
    }
}

impl std::error::Error for UnknownName {}

/// A name from outside: quoted, escaped and cut to a length that fits a sentence.
fn quoted(name: &str) -> String {
    const LONGEST: usize = 64;
    match name.char_indices().nth(LONGEST) {
        None => format!("{name:?}"),
        Some((end, _)) => format!("{:?}...", &name[..end]),
    }
}

/// The end of a sentence with names, where there are any: as many as fit one, as a status travels in a header of bounded size.
fn listed(before: &str, names: &[String]) -> String {
    const MOST: usize = 16;
    if names.is_empty() {
        return String::new();
    }
    let mut text = format!("; {before} {}", names.iter().take(MOST).map(String::as_str).collect::<Vec<_>>().join(", "));
    if names.len() > MOST {
        let _ = write!(text, " and {} more", names.len() - MOST);
    }
    text
}

impl Broker {
    /// A server with these topics.
    pub fn new(topics: impl IntoIterator<Item = Arc<Topic>>) -> Self {
        Self { topics: topics.into_iter().map(|topic| (topic.name.clone(), topic)).collect() }
    }

    /// The topic of this name.
    ///
    /// # Errors
    ///
    /// Where there is none; the error names those that exist.
    pub fn topic(&self, name: &str) -> Result<&Arc<Topic>, UnknownName> {
        self.topics
            .get(name)
            .ok_or_else(|| UnknownName::Topic { name: name.to_owned(), known: self.topics.keys().cloned().collect() })
    }

    /// All topics, in the order of their names.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.topics.values()
    }

    /// All subscriptions, with their topics.
    pub fn subscriptions(&self) -> impl Iterator<Item = (&Arc<Topic>, &Arc<Subscription>)> {
        self.topics().flat_map(|topic| topic.subscriptions.iter().map(move |subscription| (topic, subscription)))
    }
}

impl Topic {
    /// A topic whose store begins empty, and whose epoch was drawn for it.
    pub fn new(name: String, epoch: u64, max_message_bytes: u64, subscriptions: Vec<Arc<Subscription>>) -> Self {
        let (ids, rejections) = (Mutex::default(), Rejections::default());
        Self { name, epoch, max_message_bytes, ids, subscriptions, rejections }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The random number that names this life of its ids.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The largest message that it takes, in bytes of payload and attributes.
    pub const fn max_message_bytes(&self) -> u64 {
        self.max_message_bytes
    }

    /// How many publishes it has refused.
    pub const fn rejections(&self) -> &Rejections {
        &self.rejections
    }

    /// Whether it takes no messages any more, because the server stops.
    pub fn is_draining(&self) -> bool {
        self.subscriptions.iter().any(|subscription| subscription.lock().is_draining())
    }

    /// Its subscription of this name.
    ///
    /// # Errors
    ///
    /// Where there is none; the error names those that exist.
    pub fn subscription(&self, name: &str) -> Result<&Arc<Subscription>, UnknownName> {
        self.subscriptions.iter().find(|subscription| subscription.name() == name).ok_or_else(|| {
            UnknownName::Subscription {
                topic: self.name.clone(),
                name: name.to_owned(),
                known: self.subscriptions.iter().map(|subscription| subscription.name().to_owned()).collect(),
            }
        })
    }

    /// Its subscriptions.
    pub fn subscriptions(&self) -> &[Arc<Subscription>] {
        &self.subscriptions
    }

    /// Publishes to every subscription of this topic, or to none.
    ///
    /// # Errors
    ///
    /// Why the message was not accepted.
    pub fn publish(&self, message: &Message) -> Result<MessageId, PublishError> {
        self.check(message).and_then(|()| self.store(message)).map_err(|error| self.reject(error))
    }

    /// Counts a publish that was not accepted.
    pub fn reject(&self, why: PublishError) -> PublishError {
        self.rejections.count(why.reason());
        why
    }

    /// Whether all its subscriptions would take a message of so many bytes now.
    pub fn has_room_for(&self, size: u32) -> bool {
        self.subscriptions.iter().all(|subscription| {
            let mut locked = subscription.lock();
            let now = locked.now;
            locked.check_room(size, now).is_ok()
        })
    }

    /// Publishes what another topic's subscription has given up. It is offered again where it is refused, so that it does not count
    /// among the rejected; and it kept the rules of a publish before it got the attributes of a dead letter.
    ///
    /// # Errors
    ///
    /// Which subscription refused it.
    pub fn publish_dead_letter(&self, message: &Message) -> Result<MessageId, PublishError> {
        self.store(message)
    }

    fn store(&self, message: &Message) -> Result<MessageId, PublishError> {
        let size = u32::try_from(message.size()).unwrap_or(u32::MAX); // what is larger fits no backlog
        // The topic before its subscriptions, and those in their order: the one order in which these locks are taken.
        let mut ids = self.ids.lock().expect("a panic ends the process");
        let mut subscriptions: Vec<Locked<'_>> = self.subscriptions.iter().map(|one| one.lock()).collect();
        let now = subscriptions.iter().map(|locked| locked.now).max().unwrap_or_default();
        ids.publish(&mut subscriptions, message, size, now).map_err(|refused| PublishError::Refused {
            topic: self.name.clone(),
            subscription: Some(self.subscriptions[refused.subscription].name().to_owned()),
            refusal: refused.refusal,
        })
    }

    /// Whether a message keeps all rules.
    fn check(&self, message: &Message) -> Result<(), PublishError> {
        // A dead letter is published again with what the server has added to it.
        let (added_bytes, added) = dead_letters::added(message.attributes());
        let count = message.attributes().count() - added;
        if count > MAX_ATTRIBUTES {
            return Err(PublishError::Invalid(format!(
                "it has {count} attributes, at most {MAX_ATTRIBUTES} are allowed"
            )));
        }
        for (name, value) in message.attributes() {
            if !(1..=MAX_ATTRIBUTE_NAME).contains(&name.len()) {
                let length = name.len();
                return Err(PublishError::Invalid(format!(
                    "the name of an attribute has {length} bytes, 1 to {MAX_ATTRIBUTE_NAME} are allowed"
                )));
            }
            if value.len() > MAX_ATTRIBUTE_VALUE {
                let (name, length) = (quoted(name), value.len());
                return Err(PublishError::Invalid(format!(
                    "attribute {name} has {length} bytes, at most {MAX_ATTRIBUTE_VALUE} are allowed"
                )));
            }
        }
        let size = message.size() - added_bytes;
        if size as u64 <= self.max_message_bytes {
            Ok(())
        } else {
            Err(PublishError::TooLarge { size, max: self.max_message_bytes })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publisher_is_not_told_the_name_of_a_subscription_that_it_may_not_know() {
        let refused = || PublishError::Refused {
            topic: "orders".into(),
            subscription: Some("secret".into()),
            refusal: Refusal::TooManyMessages { max: 1 },
        };

        let [known, unknown] = [true, false].map(|may_know| refused().as_told_to(|_| may_know).to_string());

        let full = "takes no message, its backlog is full (max_backlog_messages = 1)";
        assert_eq!(known, format!("not accepted by topic \"orders\": subscription \"secret\" {full}"));
        assert_eq!(unknown, format!("not accepted by topic \"orders\": a subscription {full}"));
    }
}
