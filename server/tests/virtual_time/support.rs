//! A server in memory, and conversations with it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use ackstream::connection::ConnectionLimits;
use ackstream::exchange::StreamLimits;
use ackstream::proto::message_stream_client::MessageStreamClient;
use ackstream::proto::stream_message::Kind;
use ackstream::proto::{AckMessage, DataMessage, Nack, Open, Opened, StreamMessage};
use ackstream::server::{Server, Settings};
use ackstream::telemetry::LineLimits;
use ackstream_core::{Backlog, Counts, Policy};
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tower::service_fn;

/// Nothing in virtual time takes longer: a test that waits in vain ends here.
const PATIENCE: Duration = Duration::from_hours(48);

pub(crate) fn settings() -> Settings {
    Settings {
        policy: Policy::default(),
        topics: Vec::new(),
        max_message_bytes: 1 << 20,
        limits: StreamLimits {
            max_streams: 100,
            max_outstanding_messages: 1_000_000,
            max_outstanding_bytes: 1 << 30,
            consumer_stuck_after: Duration::from_secs(30),
            unread_bytes_per_stream: 2 * ((128 << 10) + (1 << 20)),
            reconnect_grace: Duration::from_secs(2),
        },
        connections: ConnectionLimits {
            max_connections: 100,
            max_connections_per_address: 100,
            handshake_timeout: Duration::from_secs(5),
            tcp_user_timeout: Duration::from_secs(30),
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(10),
            max_age: None,
            age_grace: Duration::from_secs(30),
            max_streams: 1_000,
            max_header_bytes: 16 << 10,
            max_frame_bytes: 16 << 10,
            send_buffer_bytes: 128 << 10,
        },
        security: Arc::default(),
        log_lines: LineLimits { per_second: 0, summary_interval: Duration::from_secs(1) },
        traces: None,
        traces_per_second: 100,
        demo_count: None,
    }
}

/// A running server.
pub(crate) struct Memory {
    pub(crate) server: Arc<Server>,
    stop: CancellationToken,
}

impl Memory {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = settings();
        change(&mut settings);
        let server = Server::start(&settings).await.expect("the system has random numbers");
        server.serving().await;
        Self::of(server)
    }

    pub(crate) fn of(server: Server) -> Self {
        Self { server: Arc::new(server), stop: CancellationToken::new() }
    }

    /// A connection of its own, as bytes.
    pub(crate) fn dial(&self) -> DuplexStream {
        let (near, far) = tokio::io::duplex(64 << 10);
        let (connections, stop) = (self.server.connections().clone(), self.stop.clone());
        tokio::spawn(async move { connections.serve(far, stop).await });
        near
    }

    /// A connection of its own.
    pub(crate) async fn connect(&self) -> Channel {
        let mut near = Some(TokioIo::new(self.dial()));
        let connector = service_fn(move |_: Uri| {
            let near = near.take().ok_or(std::io::Error::other("a connection is made once"));
            async move { near }
        });
        Endpoint::from_static("http://memory").connect_with_connector(connector).await.expect("memory is there")
    }

    /// A stream whose first frame has been sent.
    pub(crate) async fn open(&self, open: Open) -> Conversation {
        let mut conversation = self.converse().await;
        conversation.send(Kind::Open(open)).await;
        conversation
    }

    /// A stream that has been opened.
    pub(crate) async fn consume(&self, open: Open) -> Conversation {
        let mut conversation = self.open(open).await;
        conversation.opened().await;
        conversation
    }

    /// A stream without any frame.
    pub(crate) async fn converse(&self) -> Conversation {
        let (send, frames) = mpsc::channel(1_000);
        let mut client = MessageStreamClient::new(self.connect().await).max_decoding_message_size(32 << 20);
        let receive = client.exchange(ReceiverStream::new(frames)).await.expect("headers come at once").into_inner();
        Conversation { send: Some(send), receive }
    }

    pub(crate) fn counts(&self) -> (Counts, Backlog) {
        let topic = self.server.broker().topic("demo").expect("every server has it");
        let locked = topic.subscription("demo").expect("every server has it").lock();
        (locked.counts(), locked.backlog())
    }

    /// What the health service says of the server as a whole, and of our service.
    pub(crate) async fn health(&self) -> [ServingStatus; 2] {
        let mut client = HealthClient::new(self.connect().await);
        let mut answers = [ServingStatus::Unknown; 2];
        for (answer, service) in answers.iter_mut().zip(["", "ackstream.v1.MessageStream"]) {
            let request = HealthCheckRequest { service: service.to_owned() };
            *answer = client.check(request).await.expect("both are known").into_inner().status();
        }
        answers
    }

    /// Publishes on a stream of its own, each with its number as payload, and waits until they are accepted.
    pub(crate) async fn publish(&self, count: u64) {
        let mut publisher = self.consume(Open { publish_only: true, ..Open::default() }).await;
        for number in 1..=count {
            publisher.publish(number, format!("Message {number}").as_bytes()).await;
            let ack = publisher.ack().await;
            assert_eq!(ack.ack_id, number);
        }
        publisher.half_close();
        publisher.ends_ok().await;
    }
}

/// One stream, from the client's side.
pub(crate) struct Conversation {
    send: Option<mpsc::Sender<StreamMessage>>,
    receive: Streaming<StreamMessage>,
}

impl Conversation {
    pub(crate) async fn send(&mut self, kind: Kind) {
        self.send_frame(StreamMessage { kind: Some(kind) }).await;
    }

    /// The same, on a stream that the server may have ended. `false`: it has.
    #[allow(dead_code, reason = "shared with the tests of telemetry")]
    pub(crate) async fn try_send(&mut self, kind: Kind) -> bool {
        let send = self.send.as_ref().expect("not half-closed");
        send.send(StreamMessage { kind: Some(kind) }).await.is_ok()
    }

    pub(crate) async fn send_frame(&mut self, frame: StreamMessage) {
        self.send.as_ref().expect("not half-closed").send(frame).await.expect("the stream is open");
    }

    pub(crate) fn half_close(&mut self) {
        self.send = None;
    }

    #[allow(dead_code, reason = "shared with the tests of telemetry")]
    pub(crate) const fn is_half_closed(&self) -> bool {
        self.send.is_none()
    }

    pub(crate) async fn ack_message(&mut self, id: u64) {
        self.send(Kind::Ack(AckMessage { ack_id: id, ..AckMessage::default() })).await;
    }

    pub(crate) async fn publish(&mut self, id: u64, payload: &[u8]) {
        let payload = bytes::Bytes::copy_from_slice(payload);
        self.send(Kind::Data(DataMessage { id, payload, ..DataMessage::default() })).await;
    }

    /// The next frame, or how the stream ended.
    pub(crate) async fn next(&mut self) -> Result<Option<Kind>, Status> {
        let frame = within(self.receive.message()).await?;
        Ok(frame.map(|frame| frame.kind.expect("the server sends members that this client knows")))
    }

    pub(crate) async fn frame(&mut self) -> Kind {
        self.next().await.expect("the stream goes on").expect("the stream goes on")
    }

    pub(crate) async fn opened(&mut self) -> Opened {
        let Kind::Opened(opened) = self.frame().await else { panic!("`opened` comes first") };
        opened
    }

    pub(crate) async fn delivery(&mut self) -> DataMessage {
        let frame = self.frame().await;
        let Kind::Data(data) = frame else { panic!("a delivery was expected, not {frame:?}") };
        data
    }

    pub(crate) async fn ack(&mut self) -> AckMessage {
        let frame = self.frame().await;
        let Kind::Ack(ack) = frame else { panic!("an ack was expected, not {frame:?}") };
        ack
    }

    pub(crate) async fn nack(&mut self) -> Nack {
        let frame = self.frame().await;
        let Kind::Nack(nack) = frame else { panic!("a nack was expected, not {frame:?}") };
        nack
    }

    pub(crate) async fn ends_ok(&mut self) {
        assert_eq!(self.next().await.expect("the stream ends with OK"), None);
    }

    pub(crate) async fn ends_with(&mut self) -> Status {
        self.next().await.expect_err("the stream ends with an error")
    }

    /// Nothing comes for so long.
    pub(crate) async fn silent_for(&mut self, length: Duration) {
        let frame = tokio::time::timeout(length, self.receive.message()).await;
        assert!(frame.is_err(), "nothing was expected, not {frame:?}");
    }
}

/// How long it took in virtual time.
pub(crate) async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let start = Instant::now();
    let result = within(work).await;
    (result, start.elapsed())
}

pub(crate) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("what the test waits for happens")
}

/// Waits until the server has seen what was sent to it: in virtual time, everything else runs first.
pub(crate) async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// Whether a virtual time is `expected`, up to the granularity of timers and what `settle` takes.
pub(crate) fn about(actual: Duration, expected: Duration) -> bool {
    actual >= expected && actual <= expected + Duration::from_millis(10)
}
