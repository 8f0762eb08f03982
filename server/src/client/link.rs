//! A stream to a server, opened again and again until it is there.

use std::fmt;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::backoff::Backoff;
use super::credentials::{AuthorizedChannel, explain_call};
use super::{Peer, say};
use crate::proto::message_stream_client::MessageStreamClient;
use crate::proto::stream_message::Kind;
use crate::proto::{Open, Opened, StreamMessage};

/// How long a client goes on without a server, unless it is told otherwise.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long a connection, and the answer to `open`, may take.
const OPENED_WITHIN: Duration = Duration::from_secs(10);
/// A silent server is asked for a sign of life this often, and has gone without one.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// How long that sign may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/2 windows, in bytes: room for what a server sends while a frame is being read. Larger ones gain no throughput (measured).
const RECEIVE_WINDOW: u32 = 1 << 20;
/// The largest that HTTP/2 has (RFC 9113, section 6.9.1).
const LARGEST_WINDOW: u32 = (1 << 31) - 1;
/// Frames that wait to be sent.
const FRAMES_WAITING: usize = 256;
/// The largest frame: a message of at most 16 MiB with what a frame may have besides.
const LARGEST_FRAME: usize = 32 << 20;

/// Why there is no stream.
#[derive(Debug)]
pub enum LinkError {
    /// Nobody answered for as long as the client was told to try.
    Unreachable {
        /// How long that was.
        after: Duration,
        /// What happened the last time.
        why: String,
    },
    /// The server refused, and will refuse again.
    Refused(Status),
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { after, why } => {
                let after = humantime::format_duration(*after);
                write!(f, "no server after {after} (--connect-timeout): {why}")
            }
            Self::Refused(status) => write!(f, "the server refuses: {}", status.message()),
        }
    }
}

impl std::error::Error for LinkError {}

/// The way to one server.
pub(super) struct Link {
    peer: Peer,
    open: Open,
    backoff: Backoff,
    /// When the last stream was opened.
    opened_at: Option<Instant>,
}

/// A stream that is open.
pub(super) struct Stream {
    /// What the server said to that.
    pub(super) opened: Opened,
    /// What is said there is sent; when it is dropped, the client half-closes.
    pub(super) say: mpsc::Sender<StreamMessage>,
    /// What the server says.
    pub(super) frames: Streaming<StreamMessage>,
}

impl Link {
    /// To this server, with `open` as the first frame of each stream.
    pub(super) fn new(peer: Peer, open: Open) -> Self {
        Self { peer, open, backoff: Backoff::new(), opened_at: None }
    }

    /// Opens a stream, after a wait where it is not the first, and tries again while that may help.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub(super) async fn open(&mut self) -> Result<Stream, LinkError> {
        let Peer { target, connect_timeout, .. } = self.peer.clone();
        let (began, mut said) = (Instant::now(), false);
        if let Some(opened_at) = self.opened_at.take() {
            self.backoff.stream_lasted(opened_at.elapsed());
            self.wait(connect_timeout).await;
        }
        loop {
            let status = match tokio::time::timeout(OPENED_WITHIN, self.try_open()).await {
                Ok(Ok(stream)) => {
                    self.opened_at = Some(Instant::now());
                    return Ok(stream);
                }
                Ok(Err(status)) if is_final(status.code()) => return Err(LinkError::Refused(status)),
                Ok(Err(status)) => status,
                Err(_) => Status::unavailable(format!("no answer within {} s", OPENED_WITHIN.as_secs())),
            };
            let why = format!("{target}: {}", status.message());
            let left = connect_timeout.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Err(LinkError::Unreachable { after: connect_timeout, why });
            }
            if !std::mem::replace(&mut said, true) && left > self.backoff.bound() {
                say(&format!("{why}; trying again for {}", humantime::format_duration(connect_timeout)));
            }
            self.wait(left).await;
        }
    }

    /// Waits, for `longest` at most; the next wait may be twice as long.
    async fn wait(&mut self, longest: Duration) {
        let drawn = getrandom::u32().unwrap_or(u32::MAX); // without random numbers: the longest wait
        let length = self.backoff.next(f64::from(drawn) / f64::from(u32::MAX));
        tokio::time::sleep(length.min(longest)).await;
    }

    async fn try_open(&self) -> Result<Stream, Status> {
        let channel = connect(&self.peer, 1).await?;
        let (say, frames) = mpsc::channel(FRAMES_WAITING);
        let open = StreamMessage { kind: Some(Kind::Open(self.open.clone())) };
        say.try_send(open).expect("the channel is new");
        let (opened, frames) = exchange(channel, ReceiverStream::new(frames))
            .await
            .map_err(|status| explain_call(status, &self.peer.credentials))?;
        Ok(Stream { opened, say, frames })
    }
}

/// Whether the server is there, has the topic, and speaks our contract.
///
/// # Errors
///
/// Why not.
pub(super) async fn reach(peer: &Peer) -> Result<(), LinkError> {
    let open = Open { topic: peer.topic.clone(), publish_only: true, ..Open::default() };
    let stream = Link::new(peer.clone(), open).open().await?;
    stream.leave(OPENED_WITHIN).await.map_err(LinkError::Refused)
}

/// A connection to a server, for so many streams: one try, at every place where it may be.
///
/// # Errors
///
/// Why there is none.
pub(super) async fn connect(peer: &Peer, streams: u32) -> Result<AuthorizedChannel, Status> {
    // A stream that nobody reads for a while holds up no other one.
    let window = RECEIVE_WINDOW.saturating_mul(streams).min(LARGEST_WINDOW);
    let mut refused = Status::unavailable("there is nowhere to connect to");
    for authority in peer.target.authorities() {
        let presented =
            peer.credentials.present().map_err(|problem| Status::unavailable(format!("not tried: {problem}")))?;
        let connected = presented.connect(&authority, |endpoint| {
            endpoint
                .connect_timeout(OPENED_WITHIN)
                .initial_stream_window_size(RECEIVE_WINDOW)
                .initial_connection_window_size(window)
                .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
                .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        });
        match connected.await {
            Ok(channel) => return Ok(channel),
            Err(status) if is_final(status.code()) => return Err(status),
            Err(status) => refused = status,
        }
    }
    Err(refused)
}

/// Opens a stream of a connection: `says`, of which the first frame is `open`, are what the client says. Returns the answer to that,
/// and what the server says from then on.
///
/// # Errors
///
/// Why the server did not open it.
pub(super) async fn exchange(
    channel: AuthorizedChannel,
    says: impl futures_core::Stream<Item = StreamMessage> + Send + 'static,
) -> Result<(Opened, Streaming<StreamMessage>), Status> {
    let mut client = MessageStreamClient::new(channel).max_decoding_message_size(LARGEST_FRAME);
    let mut frames = client.exchange(says).await?.into_inner();
    match frames.message().await? {
        Some(StreamMessage { kind: Some(Kind::Opened(opened)) }) => Ok((opened, frames)),
        Some(_) => Err(Status::unimplemented("this is no ackstream server: it did not answer `open` with `opened`")),
        None => Err(Status::unavailable("the server has ended the stream")),
    }
}

impl Stream {
    /// Half-closes, and waits for `within` at most until the server has read everything. `Ok`: it has.
    pub(super) async fn leave(self, within: Duration) -> Result<(), Status> {
        let Self { say, mut frames, .. } = self;
        drop(say);
        let to_the_end = async {
            while frames.message().await?.is_some() {}
            Ok(())
        };
        tokio::time::timeout(within, to_the_end)
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("the server does not end the stream")))
    }
}

/// Whether a stream that ended so would end so again (the contract's comment on `Exchange` says which).
pub(super) const fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument | Code::NotFound | Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented
    )
}
