//! The limit: a tonic server that sends the same frames as ackstream, reads the same acks, answers publishes, and keeps track of nothing.
//!
//! It prints the address on which it listens, and serves until it is killed.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use clap::Parser;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

mod proto {
    tonic::include_proto!("ackstream.v1");
}
use proto::message_stream_server::{MessageStream, MessageStreamServer};
use proto::stream_message::Kind;
use proto::{AckMessage, DataMessage, Opened, StreamMessage};

/// The same as ackstream's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A trace context as ackstream sends it where it traces: so many bytes more in each frame.
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
/// How often messages come where they have a rate.
const TICK: Duration = Duration::from_millis(1);

/// A tonic stream with no tracking.
#[derive(Clone, Parser)]
struct Options {
    /// Messages in all, over all streams that consume.
    #[arg(long)]
    count: u64,
    /// Bytes of payload.
    #[arg(long, default_value_t = 128)]
    payload: usize,
    /// Messages a second; without it as many as are pulled.
    #[arg(long)]
    rate: Option<f64>,
    /// Frames have a trace context.
    #[arg(long)]
    traced: bool,
    /// Each message has a payload of its own, that is in memory before the first is sent; without it all share one.
    #[arg(long)]
    stored: bool,
    /// Worker threads; 0 = one thread for everything.
    #[arg(long, default_value_t = 0)]
    workers: usize,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let mut builder = match options.workers {
        0 => tokio::runtime::Builder::new_current_thread(),
        workers => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(workers);
            builder
        }
    };
    builder.enable_all().build()?.block_on(serve(options))
}

async fn serve(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let service = MessageStreamServer::new(Raw { shared: Arc::new(Shared::new(options)) });
    println!("{}", listener.local_addr()?);
    let incoming = TcpListenerStream::new(listener);
    // tonic sets TCP_NODELAY only on what it has accepted itself.
    let incoming =
        tokio_stream::StreamExt::map(incoming, |stream| stream.inspect(|stream| _ = stream.set_nodelay(true)));
    Ok(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await?)
}

struct Shared {
    options: Options,
    next: AtomicU64,
    /// One for all messages, or one for each.
    payloads: Vec<Bytes>,
    /// Where latencies are measured, when each message was handed over.
    sent: Option<Mutex<Vec<Instant>>>,
    /// Nanoseconds from there to the ack.
    latencies: Mutex<Vec<u64>>,
}

impl Shared {
    fn new(options: Options) -> Self {
        let sent = options.rate.map(|_| Mutex::new(vec![Instant::now(); options.count as usize + 1]));
        let payloads = if options.stored { options.count } else { 1 };
        let payloads = (0..payloads).map(|_| Bytes::from(vec![b'.'; options.payload])).collect();
        Self { options, next: AtomicU64::new(1), payloads, sent, latencies: Mutex::default() }
    }

    fn handed_over(&self, id: u64) {
        if let Some(sent) = &self.sent {
            sent.lock().expect("no panic")[id as usize] = Instant::now();
        }
    }

    fn acked(&self, id: u64) {
        if let Some(sent) = &self.sent {
            let latency = sent.lock().expect("no panic")[id as usize].elapsed();
            self.latencies.lock().expect("no panic").push(latency.as_nanos() as u64);
        }
    }

    /// Says what was measured.
    fn tell(&self) {
        if self.sent.is_some() {
            println!("{}", ackstream_bench::quantiles(&mut self.latencies.lock().expect("no panic")));
        }
    }
}

struct Raw {
    shared: Arc<Shared>,
}

#[tonic::async_trait]
impl MessageStream for Raw {
    type ExchangeStream = Frames;

    async fn exchange(&self, request: Request<Streaming<StreamMessage>>) -> Result<Response<Frames>, Status> {
        let mut incoming = request.into_inner();
        let Some(StreamMessage { kind: Some(Kind::Open(open)) }) = incoming.message().await? else {
            return Err(Status::invalid_argument("the first frame is `open`"));
        };
        let (ended, end) = watch::channel(false);
        let (answer, answers) = mpsc::unbounded_channel();
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            while let Ok(Some(StreamMessage { kind })) = incoming.message().await {
                match kind {
                    Some(Kind::Data(data)) => _ = answer.send(data.id),
                    Some(Kind::Ack(ack)) => shared.acked(ack.ack_id),
                    Some(Kind::AckBatch(batch)) => batch.ack_ids.into_iter().for_each(|id| shared.acked(id)),
                    _ => {}
                }
            }
            if !open.publish_only {
                shared.tell();
            }
            ended.send_replace(true);
        });
        let now = prost_types::Timestamp::from(SystemTime::now());
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Response::new(Frames {
            shared: Arc::clone(&self.shared),
            opened: Some(Opened { topic: open.topic, ..Opened::default() }),
            consumes: !open.publish_only,
            answers,
            now,
            pace: self.shared.options.rate.map(|rate| Pace { rate, ticks, began: Instant::now(), allowed: 0, sent: 0 }),
            end: Box::pin(async move { _ = { end }.wait_for(|ended| *ended).await }),
        }))
    }
}

struct Pace {
    rate: f64,
    ticks: Interval,
    began: Instant,
    allowed: u64,
    sent: u64,
}

struct Frames {
    shared: Arc<Shared>,
    opened: Option<Opened>,
    consumes: bool,
    /// Publishes that are to be answered.
    answers: mpsc::UnboundedReceiver<u64>,
    now: prost_types::Timestamp,
    pace: Option<Pace>,
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl futures_core::Stream for Frames {
    type Item = Result<StreamMessage, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(opened) = self.opened.take() {
            return Poll::Ready(Some(Ok(StreamMessage { kind: Some(Kind::Opened(opened)) })));
        }
        if self.consumes && may_send(&mut self.pace, context) {
            let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
            if id <= self.shared.options.count {
                self.shared.handed_over(id);
                return Poll::Ready(Some(Ok(StreamMessage { kind: Some(Kind::Data(self.data(id))) })));
            }
        }
        if let Poll::Ready(Some(id)) = self.answers.poll_recv(context) {
            let ack = AckMessage { ack_id: id, message_id: id, ..AckMessage::default() };
            return Poll::Ready(Some(Ok(StreamMessage { kind: Some(Kind::Ack(ack)) })));
        }
        self.end.as_mut().poll(context).map(|()| None)
    }
}

fn may_send(pace: &mut Option<Pace>, context: &mut Context<'_>) -> bool {
    let Some(pace) = pace else { return true };
    while pace.ticks.poll_tick(context).is_ready() {
        pace.allowed = (pace.began.elapsed().as_secs_f64() * pace.rate) as u64;
    }
    let may = pace.sent < pace.allowed;
    pace.sent += u64::from(may);
    may
}

impl Frames {
    fn data(&self, id: u64) -> DataMessage {
        DataMessage {
            id,
            timestamp: Some(self.now),
            payload: self.shared.payloads[id as usize % self.shared.payloads.len()].clone(),
            requires_ack: true,
            delivery_attempt: 1,
            trace_context: if self.shared.options.traced { TRACEPARENT.to_owned() } else { String::new() },
            ..DataMessage::default()
        }
    }
}
