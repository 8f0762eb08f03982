//! The server's half of a stream. It holds no queue of deliveries: tonic polls it when HTTP/2 has room, and then it asks the
//! subscription. A slow reader therefore costs nothing, and no delivery ages in a buffer of ours.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ackstream_core::Delivery;
use futures_core::Stream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;
use tonic::Status;

use crate::exchange::frames;
use crate::exchange::session::{Receiver, Session, Turn};
use crate::message::Message;
use crate::proto::stream_message::Kind;
use crate::proto::{DataBatch, DataMessage, StreamMessage};

/// A batch stops at so many bytes of messages: far below the 4 MiB that gRPC clients take by default, and enough to make the
/// cost of a frame vanish.
const MAX_BATCH_BYTES: usize = 1 << 20;
/// What a message costs in a frame besides its payload and attributes, rounded up: ids, timestamp, attempt, lengths.
const MESSAGE_OVERHEAD: usize = 64;

/// The response stream of one `Exchange`. When it is dropped before its end, the stream broke.
pub struct Outgoing {
    session: Arc<Session>,
    reader: AbortHandle,
    ended: bool,
    /// The stream's place among those that may be open.
    _place: OwnedSemaphorePermit,
}

impl Outgoing {
    pub(super) const fn new(session: Arc<Session>, reader: AbortHandle, place: OwnedSemaphorePermit) -> Self {
        Self { session, reader, ended: false, _place: place }
    }
}

impl Stream for Outgoing {
    type Item = Result<StreamMessage, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match self.session.turn(context) {
            Turn::Frame(frame) => Poll::Ready(Some(Ok(frame))),
            Turn::Delivery(receiver) => match receiver.and_then(|receiver| pull(&receiver, context)) {
                Some(frame) => Poll::Ready(Some(Ok(frame))),
                None => Poll::Pending,
            },
            Turn::End(end) => {
                self.ended = true;
                Poll::Ready(end.err().map(|refused| Err(refused.into())))
            }
        }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.reader.abort();
        self.session.gone();
    }
}

/// The next delivery, or as many as fit a batch, handed over under one lock and turned into a frame outside of it.
fn pull(receiver: &Receiver, context: &Context<'_>) -> Option<StreamMessage> {
    let mut locked = receiver.subscription.lock();
    let now = locked.now;
    locked.set_waker(receiver.consumer, context.waker());
    let first = locked.next_delivery(receiver.consumer, now)?;
    let sampled = locked.observer().last_sampled();
    if receiver.max_batch == 0 {
        drop(locked);
        return Some(frames::frame(Kind::Data(data(receiver, &first, sampled))));
    }
    let mut bytes = cost(&first);
    let mut batch = vec![(first, sampled)];
    while batch.len() < receiver.max_batch {
        let fits = |size: u32| bytes + MESSAGE_OVERHEAD + size as usize <= MAX_BATCH_BYTES;
        if !locked.next_size().is_some_and(fits) {
            break;
        }
        let Some(delivery) = locked.next_delivery(receiver.consumer, now) else { break };
        bytes += cost(&delivery);
        batch.push((delivery, locked.observer().last_sampled()));
    }
    drop(locked);
    let messages = batch.iter().map(|(delivery, sampled)| data(receiver, delivery, *sampled)).collect();
    Some(frames::frame(Kind::DataBatch(DataBatch { messages })))
}

fn data(receiver: &Receiver, delivery: &Delivery<Arc<Message>>, sampled: bool) -> DataMessage {
    frames::data(delivery, !receiver.auto_ack, receiver.subscription.contexts(), sampled)
}

fn cost(delivery: &Delivery<Arc<Message>>) -> usize {
    delivery.body.size() + MESSAGE_OVERHEAD
}
