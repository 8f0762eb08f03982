//! A consumer of a load: takes deliveries as fast as they come, and acks them in its manner.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_core::Stream;
use hdrhistogram::Histogram;
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::load::{Load, Manner, Policy, latencies};
use crate::client::credentials::AuthorizedChannel;
use crate::client::link;
use crate::proto::stream_message::Kind;
use crate::proto::{AckBatch, AckMessage, DataMessage, Open, StreamMessage};

/// After its deadline, a delivery has expired within this time.
const EXPIRED_WITHIN: Duration = Duration::from_millis(200);

/// What a consumer has seen.
pub(super) struct Received {
    /// From the sending of a message to its first delivery.
    pub(super) latency: Histogram<u64>,
    /// When the server had read its last ack.
    pub(super) done_at: Instant,
}

/// Consumes from a subscription, by its number in the load, until that has had all and the server has read the last ack.
///
/// # Errors
///
/// How the stream broke, or why it was not opened.
pub(super) async fn consume(
    channel: AuthorizedChannel,
    open: Open,
    subscription: usize,
    manner: Manner,
    load: Arc<Load>,
    opened: impl FnOnce(),
) -> Result<Received, Status> {
    let acks = Acks(Arc::new(Mutex::new(Outbox { open: Some(open), batch: manner.batch, ..Outbox::default() })));
    let (answer, frames) = link::exchange(channel, acks.clone()).await?;
    opened();
    let policy = *load.policies[subscription].get_or_init(|| Policy {
        ack_deadline: answer.ack_deadline.and_then(|length| length.try_into().ok()).unwrap_or_default(),
        max_retries: answer.max_retries.unwrap_or(u32::MAX),
    });
    let mut consumer = Consumer {
        frames,
        acks,
        subscription,
        manner,
        load,
        policy,
        came: Vec::new(),
        held: VecDeque::new(),
        left_at: None,
        latency: latencies(),
    };
    let done_at = consumer.run().await?;
    Ok(Received { latency: consumer.latency, done_at })
}

struct Consumer {
    frames: Streaming<StreamMessage>,
    acks: Acks,
    subscription: usize,
    manner: Manner,
    load: Arc<Load>,
    policy: Policy,
    /// What has come and is not yet told to the load.
    came: Vec<Came>,
    held: VecDeque<Held>,
    /// When the last delivery came that is left to be dropped.
    left_at: Option<Instant>,
    latency: Histogram<u64>,
}

/// A delivery.
struct Came {
    id: u64,
    is_retry: bool,
    then: Then,
}

/// What is done with a delivery.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// It is acked, where there is a delay at that instant.
    Ack(Option<Instant>),
    /// It is not, and the message comes again.
    Ignore,
    /// It is not, and no retry is left: the server drops the message.
    Leave,
}

/// A delivery that will be acked.
struct Held {
    id: u64,
    due: Option<Instant>,
    /// No other delivery of the message is.
    is_first: bool,
}

impl Consumer {
    /// Returns when the server had read the last ack.
    async fn run(&mut self) -> Result<Instant, Status> {
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
    async fn leave(&mut self) -> Result<Instant, Status> {
        while !self.held.is_empty() {
            self.ack_what_is_due(0);
            if let Some(due) = self.held.front().and_then(|held| held.due) {
                tokio::time::sleep_until(due).await;
            }
        }
        let done_at = Instant::now();
        if let Some(left_at) = self.left_at {
            // Whoever leaves before a deadline gives the message back, and it would not be dropped.
            tokio::time::sleep_until(left_at + self.policy.ack_deadline + EXPIRED_WITHIN).await;
        }
        self.acks.close();
        while self.frames.message().await?.is_some() {} // what comes after the last ack goes back at no cost
        Ok(if self.left_at.is_some() { done_at } else { Instant::now() })
    }

    /// Takes what has come. `Ready`: the server ended the stream.
    fn poll_frames(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        let end = loop {
            match Pin::new(&mut self.frames).poll_next(context) {
                Poll::Ready(Some(Ok(StreamMessage { kind: Some(Kind::Data(data)) }))) => self.take(&data),
                Poll::Ready(Some(Ok(StreamMessage { kind: Some(Kind::DataBatch(batch)) }))) => {
                    batch.messages.iter().for_each(|data| self.take(data));
                }
                Poll::Ready(Some(Ok(_))) => {} // nothing that a consumer listens to
                Poll::Ready(Some(Err(status))) => break Poll::Ready(Err(status)),
                Poll::Ready(None) => break Poll::Ready(Ok(())),
                Poll::Pending => break Poll::Pending,
            }
        };
        self.tell_what_came();
        self.ack_what_is_due(self.manner.hold);
        end
    }

    fn take(&mut self, data: &DataMessage) {
        let is_retry = data.delivery_attempt > 1;
        if !is_retry && let Some(sent_at) = self.load.sent_at(&data.payload) {
            let latency = self.load.elapsed().saturating_sub(sent_at);
            self.latency.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
        }
        let timed = !self.manner.ack_delay.is_zero();
        let then = match self.drops(data) {
            false => Then::Ack(timed.then(|| Instant::now() + self.manner.ack_delay)),
            true if data.delivery_attempt > self.policy.max_retries => Then::Leave,
            true => Then::Ignore,
        };
        self.came.push(Came { id: data.id, is_retry, then });
    }

    /// Each message counts once, however often it comes and to whomever.
    fn tell_what_came(&mut self) {
        if self.came.is_empty() {
            return;
        }
        let (delivered, mut retries, mut answered) = (self.came.len() as u64, 0, 0);
        let mut deliveries = self.load.deliveries(self.subscription);
        for Came { id, is_retry, then } in self.came.drain(..) {
            deliveries.delivered.insert(id);
            retries += u64::from(is_retry);
            let is_first = then != Then::Ignore && deliveries.answered.insert(id);
            answered += u64::from(is_first);
            match then {
                Then::Ack(due) => self.held.push_back(Held { id, due, is_first }),
                Then::Leave => self.left_at = Some(Instant::now()),
                Then::Ignore => {}
            }
        }
        drop(deliveries);
        self.load.totals.delivered.fetch_add(delivered, Ordering::Relaxed);
        self.load.totals.retries.fetch_add(retries, Ordering::Relaxed);
        self.load.answered(answered);
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
        self.held.front().filter(|_| waits_for_time).and_then(|held| held.due)
    }

    /// Acks the oldest deliveries that are due, down to `hold` of them.
    fn ack_what_is_due(&mut self, hold: usize) {
        if self.held.len() <= hold {
            return;
        }
        let timed = !self.manner.ack_delay.is_zero();
        let now = timed.then(Instant::now);
        let mut acked = 0;
        let mut outbox = self.acks.lock();
        while self.held.len() > hold
            && let Some(held) = self.held.pop_front_if(|held| held.due <= now)
        {
            outbox.ids.push_back(held.id);
            acked += u64::from(held.is_first);
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
