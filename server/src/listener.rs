//! The accept loop: every connection is served by hyper's HTTP/2 in a task of its own, with tonic's routes inside. It is ours, because
//! tonic's server can neither refuse a connection nor end one whose reader is stuck.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tower::ServiceExt as _;
use tracing::{debug, warn};

/// How long the loop waits after the system has refused a connection, for example because no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections until `stop`; what is open goes on in tasks of `connections`.
pub async fn accept(listener: TcpListener, routes: Routes, stop: CancellationToken, connections: TaskTracker) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let _ = stream.set_nodelay(true); // a connection that is gone already says so when it is read
                let (routes, stop) = (routes.clone(), stop.clone());
                connections.spawn(async move {
                    if let Err(error) = serve_connection(stream, routes, stop).await {
                        debug!(%peer, %error, "connection ends");
                    }
                });
            }
            Err(error) => {
                warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection until it ends. After `stop` it takes no new streams and ends with its last one.
///
/// # Errors
///
/// How the connection broke.
pub async fn serve_connection(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    routes: Routes,
    stop: CancellationToken,
) -> Result<(), hyper::Error> {
    let service = service_fn(move |request: http::Request<Incoming>| {
        routes.clone().oneshot(request.map(|body| RequestBody { body, broken: false }))
    });
    let mut http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    http2.timer(hyper_util::rt::TokioTimer::new());
    let mut connection = pin!(http2.serve_connection(TokioIo::new(io), service));
    tokio::select! {
        result = &mut connection => return result,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// A request body that tells a half-close from a reset. hyper ends the body in the same way for both, and a consumer whose stream
/// broke must not count as one that has left cleanly.
struct RequestBody {
    body: Incoming,
    broken: bool,
}

/// The client reset its stream, or its connection is gone.
#[derive(Debug)]
struct StreamBroken;

impl std::fmt::Display for StreamBroken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the client has gone without closing its stream")
    }
}

impl std::error::Error for StreamBroken {}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = StreamBroken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamBroken>>> {
        if self.broken {
            return Poll::Ready(None);
        }
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        let result = match frame {
            Some(Ok(frame)) => Some(Ok(frame)),
            None if self.body.is_end_stream() => None,
            Some(Err(_)) | None => {
                self.broken = true;
                Some(Err(StreamBroken))
            }
        };
        Poll::Ready(result)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
