//! The server's half of a stream. No delivery ages in a queue of ours: tonic polls it when HTTP/2 has room, and then it asks the
//! subscription, for about as much as tonic takes in one go. A slow reader therefore costs nothing.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ackstream_core::Delivery;
use futures_core::Stream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;
use tonic::Status;

use crate::exchange::codec::Frame;
use crate::exchange::frames;
use crate::exchange::session::{Receiver, Session, Turn};
use crate::exchange::status::Refused;
use crate::message::Message;

/// A batch stops at so many bytes of messages: far below the 4 MiB that gRPC clients take by default, and enough to make the
/// cost of a frame vanish.
const MAX_BATCH_BYTES: usize = 1 << 20;
/// Where each delivery has a frame of its own, so many are handed over under one lock,
const MAX_PULLED: usize = 64;
/// or so many bytes of them: tonic puts up to 32 KiB into one buffer before it looks whether HTTP/2 has room for it.
const MAX_PULLED_BYTES: usize = 16 << 10;
/// What a message costs in a frame besides its payload and attributes, rounded up: ids, timestamp, attempt, lengths.
const MESSAGE_OVERHEAD: usize = 64;

/// The response stream of one `Exchange`. When it is dropped before its end, the stream broke.
pub struct Outgoing {
    session: Arc<Session>,
    reader: AbortHandle,
    /// Handed over, and about to be sent; whether their frames say that they are sampled.
    pulled: VecDeque<(Delivery<Message>, bool)>,
    /// Whose they are.
    receiver: Option<Receiver>,
    /// How the stream ends, once that is sent.
    end: Option<Result<(), Refused>>,
    ended: bool,
    /// The stream's place among those that may be open.
    _place: OwnedSemaphorePermit,
}

impl Outgoing {
    pub(super) const fn new(session: Arc<Session>, reader: AbortHandle, place: OwnedSemaphorePermit) -> Self {
        Self { session, reader, pulled: VecDeque::new(), receiver: None, end: None, ended: false, _place: place }
    }
}

impl Stream for Outgoing {
    type Item = Result<Frame, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        this.session.moved();
        if (this.end.is_some() || !this.session.has_news())
            && let Some(frame) = this.next()
        {
            return Poll::Ready(Some(Ok(frame)));
        }
        let end = match this.end.take() {
            Some(end) => end,
            None => match this.session.turn(context) {
                Turn::Frame(frame) => return Poll::Ready(Some(Ok(frame))),
                Turn::Delivery(receiver) => {
                    this.receiver = receiver;
                    this.pull(context);
                    return this.next().map_or(Poll::Pending, |frame| Poll::Ready(Some(Ok(frame))));
                }
                Turn::End(end) => {
                    if let Some(frame) = this.last_frame() {
                        this.end = Some(end);
                        return Poll::Ready(Some(Ok(frame)));
                    }
                    end
                }
            },
        };
        this.ended = true;
        Poll::Ready(end.err().map(|refused| Err(refused.into())))
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.reader.abort();
        self.session.gone();
    }
}

impl Outgoing {
    /// Hands over what is to be sent next, under one lock, unless something is. The stream is woken when there may be more.
    fn pull(&mut self, context: &Context<'_>) {
        let Some(receiver) = self.receiver.as_ref().filter(|_| self.pulled.is_empty()) else { return };
        let (max, max_bytes) = match receiver.max_batch {
            0 => (MAX_PULLED, MAX_PULLED_BYTES),
            max_batch => (max_batch, MAX_BATCH_BYTES),
        };
        let mut bytes = 0;
        let mut locked = receiver.subscription.lock();
        let now = locked.now;
        if !locked.polls(receiver.consumer, receiver.stream, context.waker()) {
            return; // another stream has taken the consumer over
        }
        while self.pulled.len() < max {
            let fits = |size: u32| bytes + MESSAGE_OVERHEAD + size as usize <= max_bytes;
            if !self.pulled.is_empty() && !locked.next_size(receiver.consumer).is_some_and(fits) {
                break;
            }
            let Some(delivery) = locked.next_delivery(receiver.consumer, now) else { break };
            bytes += delivery.body.encoded_len() + MESSAGE_OVERHEAD;
            self.pulled.push_back((delivery, locked.observer().last_sampled()));
        }
    }

    /// The next frame of a stream that ends: what was acked when it was handed over is still sent, all else was given back.
    fn last_frame(&mut self) -> Option<Frame> {
        if !self.receiver.as_ref().is_some_and(|receiver| receiver.auto_ack) {
            self.pulled.clear();
        }
        self.next()
    }

    /// A frame with the next delivery, or with all that were handed over together where the client takes batches.
    fn next(&mut self) -> Option<Frame> {
        let Self { receiver, pulled, .. } = self;
        let receiver = receiver.as_ref()?;
        let push =
            |(delivery, sampled)| frames::push(delivery, !receiver.auto_ack, receiver.subscription.contexts(), sampled);
        if receiver.max_batch == 0 {
            return pulled.pop_front().map(|next| Frame::Data(push(next)));
        }
        (!pulled.is_empty()).then(|| Frame::DataBatch(pulled.drain(..).map(push).collect()))
    }
}
