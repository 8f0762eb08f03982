//! A publisher of a load: publishes at its rate, or as fast as it goes, and takes the answers.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use hdrhistogram::Histogram;
use tokio::time::{Interval, MissedTickBehavior};
use tonic::{Status, Streaming};

use super::ids::Ids;
use super::load::{Load, STAMP, latencies};
use crate::client::credentials::AuthorizedChannel;
use crate::client::link;
use crate::proto::stream_message::Kind;
use crate::proto::{DataBatch, DataMessage, Open, StreamMessage};

/// At most so many publishes are without an answer: a server keeps 10,000 answers for a client that does not read.
const MAX_UNANSWERED: usize = 5_000;
/// A batch stops at so many bytes of payload, as the server's do.
const MAX_BATCH_BYTES: usize = 1 << 20;
/// How often a publisher with a rate sends what is due.
const TICK: Duration = Duration::from_millis(1);
/// What is sent so much after its time was held up: its latency counts from that time on, or waiting would not be seen (known as
/// coordinated omission). Less than that is the timer's.
const LATE: Duration = Duration::from_millis(2);

/// What a publisher is to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Task {
    /// When its turn begins, so that several with a rate do not publish at the same instants.
    pub(super) offset: Duration,
    /// Messages a second; `None` = as fast as it goes.
    pub(super) rate: Option<f64>,
    /// Messages in all; `None` = until it is told to stop.
    pub(super) count: Option<u64>,
    /// Bytes of payload.
    pub(super) payload: usize,
    /// Publishes in a frame; 0 = each in a frame of its own.
    pub(super) batch: usize,
}

/// What became of the publishes.
pub(super) struct Published {
    /// The accepted ones.
    pub(super) ids: Ids,
    pub(super) accepted: u64,
    /// The reason that the server gave last.
    pub(super) refusal: Option<String>,
    /// From the sending to the answer.
    pub(super) latency: Histogram<u64>,
}

/// Publishes until its task is done or the load is over, and waits for all answers.
///
/// # Errors
///
/// How the stream broke, or why it was not opened.
pub(super) async fn publish(
    channel: AuthorizedChannel,
    open: Open,
    task: Task,
    load: Arc<Load>,
    ready: impl AsyncFnOnce(),
) -> Result<Published, Status> {
    let pace = Pace {
        open: Some(open),
        began: Duration::ZERO,
        next: 1,
        allowed: 0,
        unanswered: VecDeque::new(),
        closed: false,
        waker: None,
    };
    let requests = Publishes { pace: Arc::new(Mutex::new(pace)), task, load: Arc::clone(&load) };
    let (_, frames) = link::exchange(channel, requests.clone()).await?;
    ready().await;
    let nothing = Published { ids: Ids::default(), accepted: 0, refusal: None, latency: latencies() };
    let mut publisher = Publisher { frames, publishes: requests, load, published: nothing };
    publisher.run().await?;
    Ok(publisher.published)
}

struct Publisher {
    frames: Streaming<StreamMessage>,
    publishes: Publishes,
    load: Arc<Load>,
    published: Published,
}

impl Publisher {
    async fn run(&mut self) -> Result<(), Status> {
        let load = Arc::clone(&self.load);
        let mut over = pin!(load.published.cancelled());
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let began = load.elapsed() + self.publishes.task.offset;
        self.publishes.lock().began = began;
        let mut stopped = false;
        poll_fn(|context| {
            if !stopped && over.as_mut().poll(context).is_ready() {
                stopped = true;
                self.publishes.lock().close();
            }
            self.allow_what_is_due(began, &mut ticks, context);
            self.poll_answers(context)
        })
        .await
    }

    fn allow_what_is_due(&self, began: Duration, ticks: &mut Interval, context: &mut Context<'_>) {
        let Some(rate) = self.publishes.task.rate else {
            self.publishes.lock().allow(u64::MAX);
            return;
        };
        while ticks.poll_tick(context).is_ready() {
            let Some(elapsed) = self.load.elapsed().checked_sub(began) else { continue };
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is positive, and bounded")]
            let due = (elapsed.as_secs_f64() * rate) as u64 + 1; // the first one at once
            self.publishes.lock().allow(due);
        }
    }

    /// Takes the answers that have come. `Ready`: the stream has ended.
    fn poll_answers(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        let before = self.published.accepted;
        let mut refused = 0;
        let end = loop {
            match Pin::new(&mut self.frames).poll_next(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.kind {
                    Some(Kind::Ack(ack)) => self.accepted(&[ack.message_id]),
                    Some(Kind::AckBatch(batch)) => self.accepted(&batch.message_ids),
                    Some(Kind::Nack(nack)) => {
                        refused += 1;
                        self.published.refusal = Some(nack.reason);
                        self.publishes.lock().answered();
                    }
                    Some(
                        Kind::Open(_)
                        | Kind::Opened(_)
                        | Kind::Data(_)
                        | Kind::DataBatch(_)
                        | Kind::Extend(_)
                        | Kind::ExtendBatch(_),
                    )
                    | None => {} // nothing that a publisher listens to
                },
                Poll::Ready(Some(Err(status))) => break Poll::Ready(Err(status)),
                Poll::Ready(None) => break Poll::Ready(Ok(())),
                Poll::Pending => break Poll::Pending,
            }
        };
        self.load.totals.accepted.fetch_add(self.published.accepted - before, Ordering::Relaxed);
        self.load.totals.refused.fetch_add(refused, Ordering::Relaxed);
        self.publishes.lock().wake();
        end
    }

    fn accepted(&mut self, ids: &[u64]) {
        let mut pace = self.publishes.lock();
        let now = self.load.elapsed();
        for &id in ids {
            if let Some(sent_at) = pace.answered() {
                let latency = now.saturating_sub(sent_at);
                self.published.latency.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
            }
            self.published.ids.insert(id);
        }
        self.published.accepted += ids.len() as u64;
    }
}

/// What a publisher says, made as tonic asks for it.
#[derive(Clone)]
struct Publishes {
    pace: Arc<Mutex<Pace>>,
    task: Task,
    load: Arc<Load>,
}

struct Pace {
    open: Option<Open>,
    /// When the load began for this publisher.
    began: Duration,
    /// The number of the next publish, from 1.
    next: u64,
    /// So many are due.
    allowed: u64,
    /// When those without an answer were sent; the server answers in their order.
    unanswered: VecDeque<Duration>,
    closed: bool,
    waker: Option<Waker>,
}

impl Publishes {
    fn lock(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().expect("a panic ends the process")
    }

    /// The next publish, where one may be sent.
    fn next(&self, pace: &mut Pace) -> Option<DataMessage> {
        let Task { rate, count, payload, .. } = self.task;
        let wanted = pace.allowed.min(count.unwrap_or(u64::MAX));
        if pace.next > wanted || pace.unanswered.len() >= MAX_UNANSWERED {
            return None;
        }
        let now = self.load.elapsed();
        #[expect(clippy::cast_precision_loss, reason = "it is good for 285 years at a million a second")]
        let due = rate.map_or(now, |rate| pace.began + Duration::from_secs_f64((pace.next - 1) as f64 / rate));
        let sent_at = if now > due + LATE { due } else { now };
        let mut content = vec![b'.'; payload];
        if let Some(head) = content.first_chunk_mut::<STAMP>() {
            *head = self.load.stamp(sent_at);
        }
        let data = DataMessage { id: pace.next, payload: Bytes::from(content), ..DataMessage::default() };
        pace.next += 1;
        pace.unanswered.push_back(sent_at);
        Some(data)
    }
}

impl Pace {
    fn allow(&mut self, publishes: u64) {
        self.allowed = publishes;
        self.wake();
    }

    fn close(&mut self) {
        self.closed = true;
        self.wake();
    }

    /// The oldest publish without an answer has one; when it was sent.
    fn answered(&mut self) -> Option<Duration> {
        self.unanswered.pop_front()
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Stream for Publishes {
    type Item = StreamMessage;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<StreamMessage>> {
        let mut pace = self.lock();
        let frame = |kind| Poll::Ready(Some(StreamMessage { kind: Some(kind) }));
        if let Some(open) = pace.open.take() {
            return frame(Kind::Open(open));
        }
        if pace.closed || self.task.count.is_some_and(|count| pace.next > count) {
            return Poll::Ready(None);
        }
        if let Some(first) = self.next(&mut pace) {
            if self.task.batch == 0 {
                return frame(Kind::Data(first));
            }
            let mut messages = vec![first];
            let most = self.task.batch.min(MAX_BATCH_BYTES / self.task.payload.max(1));
            while messages.len() < most
                && let Some(more) = self.next(&mut pace)
            {
                messages.push(more);
            }
            return frame(Kind::DataBatch(DataBatch { messages }));
        }
        pace.waker = Some(context.waker().clone());
        Poll::Pending
    }
}
