//! One connection: hyper's HTTP/2 with tonic's routes inside, and the bounds on what a client may do with it. It is ours, because tonic's
//! server can neither end a connection whose reader is stuck nor one that never speaks.

use std::fmt;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::life::{Life, Watched};
use crate::security::{CertificateNames, Security, names_of};
use crate::telemetry::{ConnectionClosing, ConnectionCounts, CountedRoutes};

/// The first bytes of every HTTP/2 connection (RFC 9113, section 3.4).
const PREFACE: [u8; 24] = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// hyper asks for signs of life, and never ends a connection itself: it knows whole frames alone, and a large one takes its time.
const OUT_OF_REACH: Duration = Duration::from_hours(24 * 365);
/// Connections that began together do not end together: their age differs by up to this share of it, to either side (gRPC A9).
const AGE_JITTER: f64 = 0.1;

/// What connections may do; each bound is a key of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Connections that are open at the same time.
    pub max_connections: usize,
    /// Of those, from one address.
    pub max_connections_per_address: usize,
    /// A client has so long for its first 24 bytes, and as long for the handshake of TLS before them.
    pub handshake_timeout: Duration,
    /// The system gives a connection up whose bytes were not acknowledged for so long; Linux only.
    pub tcp_user_timeout: Duration,
    /// A silent client is asked for a sign of life this often,
    pub keepalive_interval: Duration,
    /// and has gone without one for so long.
    pub keepalive_timeout: Duration,
    /// A connection takes no new streams when it is so old, give or take a tenth. `None` = whenever.
    pub max_age: Option<Duration>,
    /// Its streams have so long to end by themselves, then the server ends them.
    pub age_grace: Duration,
    /// Streams on one connection.
    pub max_streams: u32,
    /// Bytes of the headers of a request, as HTTP/2 counts them.
    pub max_header_bytes: u32,
    /// Bytes of one HTTP/2 frame, 16 KiB to 1 MiB.
    pub max_frame_bytes: u32,
    /// Bytes that one stream may have waiting in HTTP/2 to be sent.
    pub send_buffer_bytes: usize,
}

impl ConnectionLimits {
    /// After so long without a sign of life a connection ends.
    const fn longest_silence(&self) -> Duration {
        self.keepalive_interval.saturating_add(self.keepalive_timeout)
    }
}

/// How a connection broke.
#[derive(Debug)]
pub enum ConnectionError {
    /// There was no handshake of TLS, or not in time.
    NoTls(String),
    /// It did not begin as HTTP/2 does, or not in time.
    NoPreface(String),
    /// HTTP/2 ended it.
    Http2(hyper::Error),
    /// Not a byte came for so long, although the client was asked for one.
    Silent(Duration),
}

impl fmt::Display for ConnectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTls(why) => write!(f, "no TLS: {why}"),
            Self::NoPreface(why) => write!(f, "this is not HTTP/2: {why}"),
            Self::Http2(error) => error.fmt(f),
            Self::Silent(silence) => {
                write!(f, "no sign of life for {}", humantime::format_duration(*silence))
            }
        }
    }
}

impl std::error::Error for ConnectionError {}

/// What serves connections; a handle to share.
#[derive(Clone)]
pub struct Connections {
    routes: CountedRoutes,
    limits: ConnectionLimits,
    counts: Arc<ConnectionCounts>,
    security: Arc<Security>,
}

impl Connections {
    /// Serves these routes, within these limits, encrypted as the security wants it.
    pub const fn new(
        routes: CountedRoutes,
        limits: ConnectionLimits,
        counts: Arc<ConnectionCounts>,
        security: Arc<Security>,
    ) -> Self {
        Self { routes, limits, counts, security }
    }

    /// What a connection may do.
    pub const fn limits(&self) -> &ConnectionLimits {
        &self.limits
    }

    /// What became of connections.
    pub const fn counts(&self) -> &Arc<ConnectionCounts> {
        &self.counts
    }

    /// Serves one connection until it ends. After `stop`, or at its age, it takes no new streams and ends with its last one.
    ///
    /// # Errors
    ///
    /// How the connection broke.
    pub async fn serve(
        &self,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        stop: CancellationToken,
    ) -> Result<(), ConnectionError> {
        let _open = self.counts.count_open();
        let life = Life::begin();
        let io = Watched::new(io, Arc::clone(&life));
        let Some(acceptor) = self.security.tls() else {
            return self.serve_http2(io, life, CertificateNames::default(), stop).await;
        };
        let handshake = tokio::time::timeout(self.limits.handshake_timeout, acceptor.accept(io));
        let stream = tokio::select! {
            shaken = handshake => match shaken {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return Err(self.no_tls(error.to_string())),
                Err(_) => return Err(self.no_tls("its handshake took too long".to_owned())),
            },
            () = stop.cancelled() => return Ok(()),
        };
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let names = CertificateNames(shown.map(names_of).unwrap_or_default().into());
        Box::pin(self.serve_http2(stream, life, names, stop)).await
    }

    fn no_tls(&self, why: String) -> ConnectionError {
        self.counts.count_closed(ConnectionClosing::NoTls);
        ConnectionError::NoTls(why)
    }

    async fn serve_http2(
        &self,
        mut io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        life: Arc<Life>,
        names: CertificateNames,
        stop: CancellationToken,
    ) -> Result<(), ConnectionError> {
        tokio::select! {
            read = self.read_preface(&mut io) => {
                read.inspect_err(|_| self.counts.count_closed(ConnectionClosing::NoPreface))?;
            }
            () = stop.cancelled() => return Ok(()),
        }
        let handle = Connection::new(Arc::clone(&self.counts), Arc::clone(&life));
        let (routes, of_request) = (self.routes.clone(), handle.clone());
        let service = service_fn(move |mut request: http::Request<Incoming>| {
            request.extensions_mut().insert(of_request.clone());
            request.extensions_mut().insert(names.clone());
            routes.clone().serve(request.map(|body| body.map_err(|_| StreamBroken)))
        });
        let io = TokioIo::new(Preceded { first: &PREFACE, io });
        let mut connection = pin!(self.http2().serve_connection(io, service));
        let until_stopped = async {
            tokio::select! {
                result = &mut connection => return result,
                () = stop.cancelled() => {}
                () = self.reach_age() => {
                    self.counts.count_closed(ConnectionClosing::MaxAge);
                    connection.as_mut().graceful_shutdown();
                    tokio::select! {
                        result = &mut connection => return result,
                        () = stop.cancelled() => {}
                        () = tokio::time::sleep(self.limits.age_grace) => handle.end_streams.cancel(),
                    }
                }
            }
            connection.as_mut().graceful_shutdown();
            connection.await
        };
        tokio::select! {
            result = until_stopped => result.map_err(ConnectionError::Http2),
            () = handle.close.cancelled() => Ok(()),
            () = life.ends_after(self.limits.longest_silence()) => {
                Err(ConnectionError::Silent(self.limits.longest_silence()))
            }
        }
    }

    async fn read_preface(&self, io: &mut (impl AsyncRead + Unpin)) -> Result<(), ConnectionError> {
        let mut first = [0; PREFACE.len()];
        let within = self.limits.handshake_timeout;
        match tokio::time::timeout(within, io.read_exact(&mut first)).await {
            Ok(Ok(_)) if first == PREFACE => Ok(()),
            Ok(Ok(_)) => {
                Err(ConnectionError::NoPreface(format!("it begins with {:?}", first.escape_ascii().to_string())))
            }
            Ok(Err(error)) => Err(ConnectionError::NoPreface(error.to_string())),
            Err(_) => Err(ConnectionError::NoPreface(format!(
                "its first 24 bytes did not come within {}",
                humantime::format_duration(within)
            ))),
        }
    }

    fn http2(&self) -> http2::Builder<TokioExecutor> {
        let limits = &self.limits;
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .keep_alive_interval(limits.keepalive_interval)
            .keep_alive_timeout(OUT_OF_REACH)
            .max_concurrent_streams(limits.max_streams)
            .max_header_list_size(limits.max_header_bytes)
            .max_frame_size(limits.max_frame_bytes)
            .max_send_buf_size(limits.send_buffer_bytes);
        http2
    }

    /// Waits until the connection is as old as it may be.
    async fn reach_age(&self) {
        let Some(age) = self.limits.max_age else { return std::future::pending().await };
        let drawn = f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / f64::from(u32::MAX); // 0 to 1; without random numbers: a half
        tokio::time::sleep(age.mul_f64(1.0 + AGE_JITTER * (2.0 * drawn - 1.0))).await;
    }
}

/// A handle on the connection of a request, in the request's extensions.
#[derive(Clone, Debug)]
pub struct Connection {
    close: CancellationToken,
    end_streams: CancellationToken,
    counts: Arc<ConnectionCounts>,
    life: Arc<Life>,
    streams: Arc<AtomicU64>,
}

impl Connection {
    fn new(counts: Arc<ConnectionCounts>, life: Arc<Life>) -> Self {
        let (close, end_streams) = (CancellationToken::new(), CancellationToken::new());
        Self { close, end_streams, counts, life, streams: Arc::default() }
    }

    /// The bytes that the system has taken to be sent on it.
    pub fn taken(&self) -> u64 {
        self.life.taken()
    }

    /// A stream of messages is open on it, until this is dropped.
    pub fn count_stream(&self) -> OpenStream {
        self.streams.fetch_add(1, Ordering::Relaxed);
        OpenStream(Arc::clone(&self.streams))
    }

    /// How many streams of messages are open on it.
    pub fn streams(&self) -> u64 {
        self.streams.load(Ordering::Relaxed)
    }

    /// Closes the connection at once, with all its streams, because a client did not read the end of one.
    pub fn close_unread(&self) {
        if !self.close.is_cancelled() {
            self.counts.count_closed(ConnectionClosing::EndNotRead); // once, however many streams are not read
        }
        self.close.cancel();
    }

    /// Waits until the streams are to end, since the connection is too old.
    pub fn is_too_old(&self) -> WaitForCancellationFutureOwned {
        self.end_streams.clone().cancelled_owned()
    }

    /// One of its consumers was stuck.
    pub fn count_stuck_consumer(&self) {
        self.counts.count_stuck_consumer();
    }
}

/// A stream that is counted.
#[derive(Debug)]
pub struct OpenStream(Arc<AtomicU64>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What was read from it comes again, before the rest.
struct Preceded<IO> {
    first: &'static [u8],
    io: IO,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Preceded<IO> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.io).poll_read(context, out);
        }
        let length = self.first.len().min(out.remaining());
        out.put_slice(&self.first[..length]);
        self.first.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Preceded<IO> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// The client reset its stream, or its connection is gone. It stands for hyper's own error, in which tonic would find a reset with
/// CANCEL and make a clean end of the requests of it; but a consumer whose stream broke has not left cleanly.
#[derive(Debug)]
struct StreamBroken;

impl fmt::Display for StreamBroken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the client has gone without closing its stream")
    }
}

impl std::error::Error for StreamBroken {}
