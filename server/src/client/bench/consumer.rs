//! A consumer of a load: takes deliveries as fast as they come, and acks them in its manner.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use futures_core::Stream;
use hdrhistogram::Histogram;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::ids::Ids;
use super::load::{Load, Manner, latencies};
use crate::client::link;
use crate::proto::stream_message::Kind;
use crate::proto::{AckBatch, AckMessage, DataMessage, Open, StreamMessage};

/// What a consumer has seen.
pub(super) struct Received {
    pub(super) subscription: String,
    /// The messages that were delivered here.
    pub(super) ids: Ids,
    /// From the sending of a message to its first delivery.
    pub(super) latency: Histogram<u64>,
}

/// Consumes until the load has had all, and the server has read the last ack.
///
/// # Errors
///
/// How the stream broke, or why it was not opened.
pub(super) async fn consume(
    channel: Channel,
    open: Open,
    manner: Manner,
    load: Arc<Load>,
    ready: impl AsyncFnOnce(),
) -> Result<Received, Status> {
    let acks =
        Acks(Arc::new(Mutex::new(Outbox { open: Some(open.clone()), batch: manner.batch, ..Outbox::default() })));
    let (opened, frames) = link::exchange(channel, acks.clone()).await?;
    ready().await;
    let max_retries = opened.max_retries.unwrap_or(u32::MAX);
    let received = Received { subscription: open.subscription, ids: Ids::default(), latency: latencies() };
    let mut consumer =
        Consumer { frames, acks, manner, load, max_retries, held: VecDeque::new(), answered: 0, retries: 0, received };
    consumer.run().await?;
    Ok(consumer.received)
}

struct Consumer {
    frames: Streaming<StreamMessage>,
    acks: Acks,
    manner: Manner,
    load: Arc<Load>,
    max_retries: u32,
    /// Deliveries that will be acked, and when, in their order.
    held: VecDeque<(u64, Option<Instant>)>,
    /// Not yet told to the load.
    answered: u64,
    retries: u64,
    received: Received,
}

impl Consumer {
    async fn run(&mut self) -> Result<(), Status> {
        let load = Arc::clone(&self.load);
        let mut consumed = pin!(load.consumed.cancelled());
        loop {
            let next_ack = self.next_ack();
            let mut timer = pin!(tokio::time::sleep_until(next_ack.unwrap_or_else(Instant::now)));
            let ended = poll_fn(|context| {
                let frames = self.poll_frames(context);
                if next_ack.is_some() && timer.as_mut().poll(context).is_ready() {
                    return Poll::Ready(None);
                }
                match frames {
                    Poll::Ready(end) => Poll::Ready(Some(end)),
                    Poll::Pending if consumed.as_mut().poll(context).is_ready() => Poll::Ready(Some(Ok(()))),
                    // What is held may be due sooner than the timer knows.
                    Poll::Pending if self.next_ack() != next_ack => Poll::Ready(None),
                    Poll::Pending => Poll::Pending,
                }
            });
            match ended.await {
                None => self.ack_what_is_due(self.manner.hold),
                Some(end) => {
                    end?;
                    return self.leave().await;
                }
            }
        }
    }

    /// Acks what is held, half-closes, and reads to the end of the stream.
    async fn leave(&mut self) -> Result<(), Status> {
        while !self.held.is_empty() {
            self.ack_what_is_due(0);
            if let Some(due) = self.held.front().and_then(|(_, due)| *due) {
                tokio::time::sleep_until(due).await;
            }
        }
        self.acks.close();
        while self.frames.message().await?.is_some() {} // what comes after the last ack goes back at no cost
        Ok(())
    }

    /// Takes what has come. `Ready`: the server ended the stream.
    fn poll_frames(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        let (mut delivered, before) = (0, self.retries);
        let end = loop {
            match Pin::new(&mut self.frames).poll_next(context) {
                Poll::Ready(Some(Ok(StreamMessage { kind: Some(Kind::Data(data)) }))) => {
                    self.take(&data);
                    delivered += 1;
                }
                Poll::Ready(Some(Ok(StreamMessage { kind: Some(Kind::DataBatch(batch)) }))) => {
                    batch.messages.iter().for_each(|data| self.take(data));
                    delivered += batch.messages.len() as u64;
                }
                Poll::Ready(Some(Ok(_))) => {} // nothing that a consumer listens to
                Poll::Ready(Some(Err(status))) => break Poll::Ready(Err(status)),
                Poll::Ready(None) => break Poll::Ready(Ok(())),
                Poll::Pending => break Poll::Pending,
            }
        };
        self.load.totals.delivered.fetch_add(delivered, Ordering::Relaxed);
        self.load.totals.retries.fetch_add(self.retries - before, Ordering::Relaxed);
        self.ack_what_is_due(self.manner.hold);
        self.load.answered(std::mem::take(&mut self.answered));
        end
    }

    fn take(&mut self, data: &DataMessage) {
        let is_new = self.received.ids.insert(data.id);
        if data.delivery_attempt > 1 {
            self.retries += 1;
        } else if is_new && let Some(sent_at) = self.load.sent_at(&data.payload) {
            let latency = self.load.elapsed().saturating_sub(sent_at);
            self.received.latency.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
        }
        if self.drops(data) {
            self.answered += u64::from(data.delivery_attempt > self.max_retries); // the server drops it
            return;
        }
        self.answered += 1;
        let due = (!self.manner.ack_delay.is_zero()).then(|| Instant::now() + self.manner.ack_delay);
        self.held.push_back((data.id, due));
    }

    /// Whether this delivery is never acked.
    fn drops(&self, data: &DataMessage) -> bool {
        if self.manner.drop_rate <= 0.0 {
            return false;
        }
        let hash =
            BuildHasherDefault::<DefaultHasher>::default().hash_one((self.load.number, data.id, data.delivery_attempt));
        share_of(hash) < self.manner.drop_rate
    }

    /// When the next ack is due, where that is a question of time.
    fn next_ack(&self) -> Option<Instant> {
        let waits_for_time = self.held.len() > self.manner.hold;
        self.held.front().filter(|_| waits_for_time).and_then(|(_, due)| *due)
    }

    /// Acks the oldest deliveries that are due, down to `hold` of them.
    fn ack_what_is_due(&mut self, hold: usize) {
        if self.held.len() <= hold {
            return;
        }
        let timed = !self.manner.ack_delay.is_zero();
        let now = timed.then(Instant::now);
        let is_due = |(_, due): &mut (u64, Option<Instant>)| *due <= now;
        let mut acked = 0;
        let mut outbox = self.acks.lock();
        while self.held.len() > hold
            && let Some((id, _)) = self.held.pop_front_if(is_due)
        {
            outbox.ids.push_back(id);
            acked += 1;
        }
        outbox.wake();
        drop(outbox);
        self.load.totals.acked.fetch_add(acked, Ordering::Relaxed);
    }
}

/// A number from 0 to 1, below 1, from the bits of a hash.
#[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
fn share_of(hash: u64) -> f64 {
    (hash >> 11) as f64 / (1_u64 << 53) as f64
}

/// What a consumer says, as tonic asks for it.
#[derive(Clone)]
struct Acks(Arc<Mutex<Outbox>>);

#[derive(Default)]
struct Outbox {
    open: Option<Open>,
    ids: VecDeque<u64>,
    batch: usize,
    closed: bool,
    waker: Option<Waker>,
}

impl Acks {
    fn lock(&self) -> std::sync::MutexGuard<'_, Outbox> {
        self.0.lock().expect("a panic ends the process")
    }

    /// After what waits, the stream half-closes.
    fn close(&self) {
        let mut outbox = self.lock();
        outbox.closed = true;
        outbox.wake();
    }
}

impl Outbox {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn next(&mut self) -> Option<Kind> {
        if let Some(open) = self.open.take() {
            return Some(Kind::Open(open));
        }
        if self.batch == 0 {
            return self.ids.pop_front().map(|ack_id| Kind::Ack(AckMessage { ack_id, ..AckMessage::default() }));
        }
        let ids: Vec<u64> = self.ids.drain(..self.ids.len().min(self.batch)).collect();
        (!ids.is_empty()).then(|| Kind::AckBatch(AckBatch { ack_ids: ids, ..AckBatch::default() }))
    }
}

impl Stream for Acks {
    type Item = StreamMessage;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<StreamMessage>> {
        let mut outbox = self.lock();
        if let Some(kind) = outbox.next() {
            return Poll::Ready(Some(StreamMessage { kind: Some(kind) }));
        }
        if outbox.closed {
            return Poll::Ready(None);
        }
        outbox.waker = Some(context.waker().clone());
        Poll::Pending
    }
}
