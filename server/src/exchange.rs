//! The gRPC service: one `Exchange` stream is one session.
//!
//! ```text
//!  client's frames ─▶ incoming (a task that never blocks) ─▶ subscription, topic
//!                                │ answers, end                    │ wake
//!                                ▼                                 ▼
//!  server's frames ◀──────── outgoing (a stream that tonic polls) ─ pulls the next delivery
//! ```

mod acks;
mod codec;
mod frames;
mod incoming;
mod outgoing;
mod session;
mod sessions;
mod status;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tonic::{Request, Response, Status, Streaming};

use crate::broker::Broker;
use crate::clock::Clock;
use crate::connection::Connection;
pub(crate) use crate::exchange::incoming::DEFAULT_NAME;
use crate::exchange::incoming::Incoming;
use crate::exchange::outgoing::Outgoing;
use crate::exchange::session::Session;
use crate::exchange::sessions::Sessions;
use crate::exchange::status::Refused;
use crate::proto::StreamMessage;
use crate::proto::message_stream_server::MessageStream;
use crate::security::Caller;

pub use acks::BatchingAcks;
pub use codec::{Frame, FrameCodec};

/// How the server ends the streams that are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// There is nothing more to come: the streams end with OK.
    Completed,
    /// The server stops: the streams end with UNAVAILABLE, and their clients go on elsewhere.
    Stopping,
}

/// What one stream may ask for; each bound is a key of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct StreamLimits {
    /// Streams that are open at the same time, on all connections.
    pub max_streams: usize,
    /// The most messages that a consumer may have outstanding, whatever it asks for.
    pub max_outstanding_messages: u32,
    /// The most bytes that a consumer may have outstanding, whatever it asks for.
    pub max_outstanding_bytes: u64,
    /// A consumer that takes nothing of what is due to it for so long, and sends nothing, is stuck.
    pub consumer_stuck_after: Duration,
    /// A connection takes no more than so many bytes for each of its streams while nobody reads them.
    pub unread_bytes_per_stream: u64,
    /// So long may a client with a session take to resume it after its stream broke; zero: there are no sessions.
    pub reconnect_grace: Duration,
}

/// The service `ackstream.v1.MessageStream`.
pub struct Exchange {
    broker: Arc<Broker>,
    clock: Clock,
    limits: StreamLimits,
    places: Arc<Semaphore>,
    sessions: Arc<Sessions>,
    ending: watch::Receiver<Option<Ending>>,
}

impl Exchange {
    /// The service on these topics. All its streams end when `ending` says how.
    pub fn new(
        broker: Arc<Broker>,
        clock: Clock,
        limits: StreamLimits,
        ending: watch::Receiver<Option<Ending>>,
    ) -> Self {
        Self {
            broker,
            clock,
            limits,
            places: Arc::new(Semaphore::new(limits.max_streams)),
            sessions: Arc::default(),
            ending,
        }
    }
}

#[tonic::async_trait]
impl MessageStream for Exchange {
    type ExchangeStream = Outgoing;

    async fn exchange(&self, request: Request<Streaming<StreamMessage>>) -> Result<Response<Outgoing>, Status> {
        let place = Arc::clone(&self.places)
            .try_acquire_owned()
            .map_err(|_| Refused::TooManyStreams { max: self.limits.max_streams })?;
        let connection =
            request.extensions().get::<Connection>().cloned().expect("every request has come on a connection");
        let caller = request.extensions().get::<Caller>().cloned().expect("every request has a caller");
        let session = Arc::new(Session::new());
        let incoming = Incoming {
            frames: request.into_inner(),
            session: Arc::clone(&session),
            sessions: Arc::clone(&self.sessions),
            broker: Arc::clone(&self.broker),
            clock: self.clock,
            limits: self.limits,
            ending: self.ending.clone(),
            connection,
            caller,
        };
        let reader = tokio::spawn(incoming.run());
        Ok(Response::new(Outgoing::new(session, reader.abort_handle(), place)))
    }
}
