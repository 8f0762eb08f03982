//! The client's half of a stream: a task that reads every frame at once and never blocks, because unread ack frames make HTTP/2
//! implementations give up a connection (h2 0.4.20 does at about 2,150 of 7 bytes, measured).

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ackstream_core::{Attachment, Leave, MessageId, Window};
use rustc_hash::FxHashSet;
use tokio::sync::watch;
use tonic::Streaming;
use tracing::debug;

use crate::broker::{Broker, Denied, PublishError, Topic, UnknownName};
use crate::clock::Clock;
use crate::connection::Connection;
use crate::exchange::acks::MAX_BATCH;
use crate::exchange::frames::{Answer, from_wire, to_wire};
use crate::exchange::session::{Receiver, Session};
use crate::exchange::sessions::{Key, Sessions};
use crate::exchange::status::{MAX_CLIENT_ID, MAX_HELD, OPEN_WITHIN, Refused};
use crate::exchange::{Ending, StreamLimits};
use crate::message::Message;
use crate::proto::stream_message::Kind;
use crate::proto::{DataMessage, Feature, Nack, Open, Opened, StreamMessage};
use crate::security::{Caller, Unauthenticated, Verb};
use crate::subscription::{Locked, Subscription};

/// The topic and the subscription of a client that names none.
pub(crate) const DEFAULT_NAME: &str = "demo";
/// Messages outstanding for a consumer that names no number.
const DEFAULT_OUTSTANDING_MESSAGES: u32 = 1_000;
/// Bytes outstanding for a consumer that names no number.
const DEFAULT_OUTSTANDING_BYTES: u64 = 64 << 20;
/// How long a client may take to read the end of its stream before its connection is closed.
const END_READ_WITHIN: Duration = Duration::from_secs(5);
/// Whether a consumer is stuck is asked so often until it is said to be.
const LOOKS_UNTIL_STUCK: u32 = 6;

pub(super) struct Incoming {
    pub(super) frames: Streaming<StreamMessage>,
    pub(super) session: Arc<Session>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) broker: Arc<Broker>,
    pub(super) clock: Clock,
    pub(super) limits: StreamLimits,
    pub(super) ending: watch::Receiver<Option<Ending>>,
    pub(super) connection: Connection,
    pub(super) caller: Caller,
}

/// How the conversation ended.
struct Ended {
    leave: Leave,
    /// Whether the client may resume its session.
    may_resume: bool,
    how: Result<(), Refused>,
}

impl Ended {
    /// The server ends it.
    const fn closed(may_resume: bool, how: Result<(), Refused>) -> Self {
        Self { leave: Leave::Closed, may_resume, how }
    }
}

/// The client broke the rules, or the line.
impl From<Refused> for Ended {
    fn from(refused: Refused) -> Self {
        Self { leave: Leave::Broken, may_resume: true, how: Err(refused) }
    }
}

/// An opened stream.
struct Conversation {
    topic: Arc<Topic>,
    /// Why the client may not publish; `None` = it may.
    denied: Option<Denied>,
    receiver: Option<Receiver>,
    session: Arc<Session>,
    caller: Caller,
    clock: Clock,
}

impl Incoming {
    /// Reads until the stream ends, one way or the other.
    pub(super) async fn run(mut self) {
        let mut ending = self.ending.clone();
        let mut server_ends = pin!(async move {
            // An error means that the server itself is gone.
            ending.wait_for(Option::is_some).await.ok().and_then(|how| *how).unwrap_or(Ending::Stopping)
        });
        let (session, connection, caller) = (Arc::clone(&self.session), self.connection.clone(), self.caller.clone());
        let (after, unread) = (self.limits.consumer_stuck_after, self.limits.unread_bytes_per_stream);
        let _counted = connection.count_stream();
        let Ended { leave, may_resume, how } = tokio::select! {
            biased;
            how = &mut server_ends => Ended::closed(false, how.result()),
            () = connection.is_too_old() => Ended::closed(true, Err(Refused::ConnectionTooOld)),
            () = session.taken_over() => Ended::closed(true, Err(Refused::Resumed)),
            () = caller.revoked() => Ended::closed(false, Err(Refused::Unauthenticated(Unauthenticated::Revoked))),
            () = stuck(&session, &connection, unread, after) => {
                connection.count_stuck_consumer();
                Refused::Stuck { after }.into()
            }
            ended = self.converse() => ended,
        };
        debug!(?leave, how = how.as_ref().err().map(tracing::field::display), "stream ends");
        self.session.end(leave, may_resume, how);
        // This task goes with the stream, as soon as its end is read. A client that does not read is not polled, and would keep it.
        tokio::time::sleep(END_READ_WITHIN).await;
        debug!("the end of a stream was not read: its connection is closed");
        self.connection.close_unread();
    }

    async fn converse(&mut self) -> Ended {
        match self.open().await {
            Ok(conversation) => self.listen(&conversation).await,
            Err(refused) => refused.into(),
        }
    }

    async fn open(&mut self) -> Result<Conversation, Refused> {
        let first = tokio::time::timeout(OPEN_WITHIN, self.frames.message()).await;
        let first = first.map_err(|_| Refused::NotOpened)?.map_err(Refused::Unreadable)?;
        let Some(StreamMessage { kind: Some(Kind::Open(open)) }) = first else {
            return Err(Refused::OpenNotFirst);
        };
        let length = open.client_id.len();
        if length > MAX_CLIENT_ID {
            return Err(Refused::ClientIdTooLong { length });
        }
        let (topic_name, subscription_name) = (or_default(&open.topic), or_default(&open.subscription));
        let denied = self.check(Verb::Publish, topic_name).err();
        match denied.clone() {
            Some(denied) if open.publish_only => return Err(denied.into()),
            _ if !open.publish_only => self.check(Verb::Consume, subscription_name)?,
            _ => {}
        }
        let topic = Arc::clone(self.broker.topic(topic_name).map_err(|unknown| self.tell(unknown, &open))?);
        let mut opened = Opened {
            epoch: topic.epoch(),
            topic: topic.name().to_owned(),
            max_message_bytes: topic.max_message_bytes(),
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
            features: vec![Feature::Sessions.into(), Feature::Release.into()],
            ..Opened::default()
        };
        let subscription = if open.publish_only {
            None
        } else {
            let subscription = topic.subscription(subscription_name).map_err(|unknown| self.tell(unknown, &open))?;
            let subscription = Arc::clone(subscription);
            let policy = subscription.lock().policy().clone();
            subscription.name().clone_into(&mut opened.subscription);
            opened.ack_deadline = Some(to_wire(policy.ack_deadline));
            opened.max_retries = Some(policy.max_retries.unwrap_or(u32::MAX));
            Some(subscription)
        };
        // Only whoever may know that there is such a topic learns this.
        if topic.is_draining() {
            return Err(Refused::Stopping); // it would wait for the end of the drain, and the next server may be there already
        }
        debug!(client_id = open.client_id, topic = opened.topic, subscription = opened.subscription, "stream opens");
        let max_batch = open.max_batch_messages as usize;
        let receiver = match subscription {
            Some(subscription) => self.attach(&subscription, opened, &open, max_batch)?,
            None => self.session.open(max_batch, || (opened, None)),
        };
        let (session, caller, clock) = (Arc::clone(&self.session), self.caller.clone(), self.clock);
        Ok(Conversation { topic, denied, receiver, session, caller, clock })
    }

    /// Attaches a consumer to the subscription, or takes up again the one that the client's session names.
    fn attach(
        &self,
        subscription: &Arc<Subscription>,
        mut opened: Opened,
        open: &Open,
        max_batch: usize,
    ) -> Result<Option<Receiver>, Refused> {
        let attachment = self.attachment(open);
        let resume = open.resume.as_ref().filter(|_| !self.limits.reconnect_grace.is_zero());
        let held = resume.map_or(&[][..], |resume| &resume.held);
        if held.len() > MAX_HELD {
            return Err(Refused::TooManyHeld { held: held.len() });
        }
        let known = resume.and_then(|resume| self.sessions.take_over(&resume.session, &self.caller, subscription));
        let mut fresh = Key::default();
        getrandom::fill(&mut fresh).map_err(|_| Refused::NoRandomNumbers)?;
        let mut key = fresh;
        let receiver = self.session.open(max_batch, || {
            let held: FxHashSet<u64> = held.iter().copied().collect();
            let mut locked = subscription.lock();
            let resumed = known.and_then(|(its, consumer)| {
                let stream = locked.rejoin(consumer, attachment, |id| held.contains(&id.0))?;
                key = its;
                Some((consumer, stream))
            });
            let (consumer, stream) = resumed.unwrap_or_else(|| {
                let (consumer, stream) = locked.join(attachment);
                locked.observer_mut().name(consumer, &open.client_id);
                (consumer, stream)
            });
            drop(locked);
            if resume.is_some() {
                opened.session = key.to_vec().into();
            }
            let grace = resume.map(|_| self.limits.reconnect_grace);
            let (subscription, auto_ack) = (Arc::clone(subscription), attachment.auto_ack);
            (opened, Some(Receiver { subscription, consumer, stream, grace, auto_ack, max_batch }))
        });
        if let Some(receiver) = receiver.as_ref().filter(|_| resume.is_some()) {
            self.sessions.remember(key, &self.caller, receiver, &self.session);
        }
        Ok(receiver)
    }

    /// Whether the client may do that.
    fn check(&self, verb: Verb, name: &str) -> Result<(), Denied> {
        if self.caller.may(verb, name) {
            return Ok(());
        }
        Err(Denied { client: self.caller.to_string(), verb, name: name.to_owned() })
    }

    /// The same; a client that may not know all topics and subscriptions is not told which there are, nor which of the two is missing.
    fn tell(&self, unknown: UnknownName, open: &Open) -> Refused {
        if self.caller.may_know_all() {
            return unknown.into();
        }
        let (topic, name) = (or_default(&open.topic).to_owned(), or_default(&open.subscription).to_owned());
        let known = Vec::new();
        Refused::Unknown(if open.publish_only {
            UnknownName::Topic { name: topic, known }
        } else {
            UnknownName::Subscription { topic, name, known }
        })
    }

    fn attachment(&self, open: &Open) -> Attachment {
        let StreamLimits { max_outstanding_messages, max_outstanding_bytes, .. } = self.limits;
        let messages = if open.max_outstanding_messages == 0 {
            DEFAULT_OUTSTANDING_MESSAGES
        } else {
            open.max_outstanding_messages
        };
        let bytes =
            if open.max_outstanding_bytes == 0 { DEFAULT_OUTSTANDING_BYTES } else { open.max_outstanding_bytes };
        let window = Window {
            max_messages: messages.min(max_outstanding_messages),
            max_bytes: bytes.min(max_outstanding_bytes),
        };
        Attachment { window, handlers: open.max_concurrent_handlers, auto_ack: open.auto_ack }
    }

    async fn listen(&mut self, conversation: &Conversation) -> Ended {
        loop {
            match self.frames.message().await {
                Ok(Some(frame)) => {
                    self.session.moved();
                    if let Err(refused) = conversation.take(frame).await {
                        return refused.into();
                    }
                }
                // A tail reads on after its half-close, until it goes or the server ends.
                Ok(None) if conversation.receiver.as_ref().is_some_and(|receiver| receiver.auto_ack) => {
                    std::future::pending::<()>().await;
                }
                Ok(None) => return Ended { leave: Leave::Clean, may_resume: false, how: Ok(()) },
                Err(status) => return Refused::Unreadable(status).into(),
            }
        }
    }
}

impl Conversation {
    /// Does what one frame asks for. An error ends the stream; whatever an ack, nack or extend names, it is none.
    async fn take(&self, frame: StreamMessage) -> Result<(), Refused> {
        match frame.kind {
            Some(Kind::Open(_)) => return Err(Refused::OpenedTwice),
            Some(Kind::Opened(_)) => return Err(Refused::ServersMember("opened")),
            Some(Kind::Data(data)) => {
                self.hear();
                self.publish(data).await?;
            }
            Some(Kind::DataBatch(batch)) => {
                self.hear();
                for data in batch.messages {
                    self.publish(data).await?;
                }
            }
            Some(Kind::Ack(ack)) => self.ack(&[ack.ack_id], ack.delivery_attempt),
            Some(Kind::AckBatch(batch)) => self.ack(&batch.ack_ids, None),
            Some(Kind::Nack(nack)) => self.nack(&nack),
            Some(Kind::Extend(extend)) => self.extend(&[extend.ack_id], extend.delivery_attempt, extend.ack_deadline),
            Some(Kind::ExtendBatch(batch)) => self.extend(&batch.ack_ids, None, batch.ack_deadline),
            None => self.hear(), // a sign of life, or a member of a later version
        }
        Ok(())
    }

    async fn publish(&self, data: DataMessage) -> Result<(), Refused> {
        self.session.room_for_answer().await?;
        let ack_id = data.id;
        let result = match self.denied.clone() {
            None => {
                let published = self.topic.publish(&Message::from(data));
                published.map_err(|error| error.as_told_to(|subscription| self.caller.may(Verb::Consume, subscription)))
            }
            Some(denied) => Err(self.topic.reject(PublishError::Denied(denied))),
        };
        self.session.answer(Answer { ack_id, result, at: self.clock.now() });
        Ok(())
    }

    /// The client lives.
    fn hear(&self) {
        if let Some(receiver) = &self.receiver {
            Self::locked(receiver);
        }
    }

    /// The locked subscription of a consumer that says something.
    fn locked(receiver: &Receiver) -> Locked<'_> {
        let mut locked = receiver.subscription.lock();
        let now = locked.now;
        locked.heard(receiver.consumer, now);
        locked
    }

    fn ack(&self, ids: &[u64], attempt: Option<u32>) {
        let Some(receiver) = &self.receiver else { return };
        for ids in ids.chunks(MAX_BATCH) {
            let mut locked = Self::locked(receiver);
            let now = locked.now;
            for &id in ids {
                locked.ack(MessageId(id), attempt, now);
            }
        }
    }

    fn nack(&self, nack: &Nack) {
        let Some(receiver) = &self.receiver else { return };
        let (delay, drop, release) = (nack.delay.map(from_wire), nack.drop, nack.release);
        let asked = ackstream_core::Nack { delay, drop, release };
        let mut locked = Self::locked(receiver);
        let now = locked.now;
        locked.nack(receiver.consumer, MessageId(nack.ack_id), nack.delivery_attempt, asked, now);
    }

    fn extend(&self, ids: &[u64], attempt: Option<u32>, length: Option<prost_types::Duration>) {
        let Some(receiver) = &self.receiver else { return };
        for ids in ids.chunks(MAX_BATCH) {
            let mut locked = Self::locked(receiver);
            let now = locked.now;
            let length = length.map_or(locked.policy().ack_deadline, from_wire);
            for &id in ids {
                locked.extend(receiver.consumer, MessageId(id), attempt, length, now);
            }
        }
    }
}

/// So many bytes between two looks are what HTTP/2 says of itself, such as a PING of 17 bytes, and no stream's progress.
const NO_PROGRESS: u64 = 256;

/// Returns once a consumer has taken nothing of what was due to it for so long, and has sent nothing. What its connection takes counts
/// as well, as a large message takes its time on a slow line; but no more than the streams on it may have waiting, since others may read.
async fn stuck(session: &Session, connection: &Connection, unread_bytes_per_stream: u64, after: Duration) {
    let (mut looks, mut taken) = (0, connection.taken());
    let mut taken_at_last_move = taken;
    while looks < LOOKS_UNTIL_STUCK {
        tokio::time::sleep(after / LOOKS_UNTIL_STUCK).await;
        let before = std::mem::replace(&mut taken, connection.taken());
        if session.has_moved() || !session.is_awaited() {
            taken_at_last_move = taken;
            looks = 0;
            continue;
        }
        let may_be_its_own = taken - taken_at_last_move <= unread_bytes_per_stream.saturating_mul(connection.streams());
        looks = if taken > before + NO_PROGRESS && may_be_its_own { 0 } else { looks + 1 };
    }
}

fn or_default(name: &str) -> &str {
    if name.is_empty() { DEFAULT_NAME } else { name }
}
