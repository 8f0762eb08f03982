//! The accept loop: every connection is served by hyper's HTTP/2 in a task of its own, with tonic's routes inside. It is ours, because
//! tonic's server can neither refuse a connection nor end one whose reader is stuck.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::telemetry::CountedRoutes;
use crate::workers::Workers;

/// An HTTP/2 ping goes to a silent client this often, and one that does not answer in time has gone: a host that vanished, or a
/// process that was stopped, gives back what it holds within half a minute.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// How long the answer to a ping may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the loop waits after the system has refused a connection, for example because no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections until `stop`; what is open goes on in tasks of `connections`, which run on the `workers`.
pub async fn accept(
    listener: TcpListener,
    routes: CountedRoutes,
    stop: CancellationToken,
    connections: TaskTracker,
    workers: Arc<Workers>,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let _ = stream.set_nodelay(true); // a connection that is gone already says so when it is read
                let (routes, stop) = (routes.clone(), stop.clone());
                let (runtime, place) = workers.assign();
                let serve = async move {
                    let served = match move_here(stream) {
                        Ok(stream) => serve_connection(stream, routes, stop).await.map_err(|error| error.to_string()),
                        Err(error) => Err(error.to_string()),
                    };
                    if let Err(error) = served {
                        debug!(%peer, error, "connection ends");
                    }
                    drop(place);
                };
                connections.spawn_on(serve, runtime);
            }
            Err(error) => {
                warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A socket waits with the runtime on which it was made: from here on with this one.
fn move_here(stream: TcpStream) -> io::Result<TcpStream> {
    TcpStream::from_std(stream.into_std()?)
}

/// Serves one connection until it ends. After `stop` it takes no new streams and ends with its last one.
///
/// # Errors
///
/// How the connection broke.
pub async fn serve_connection(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    routes: CountedRoutes,
    stop: CancellationToken,
) -> Result<(), hyper::Error> {
    let handle = Connection::default();
    let closed = handle.clone();
    let service = service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(handle.clone());
        routes.clone().serve(request.map(|body| body.map_err(|_| StreamBroken)))
    });
    let mut http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    http2
        .timer(hyper_util::rt::TokioTimer::new())
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    let mut connection = pin!(http2.serve_connection(TokioIo::new(io), service));
    let until_stopped = async {
        tokio::select! {
            result = &mut connection => return result,
            () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    };
    tokio::select! {
        result = until_stopped => result,
        () = closed.0.cancelled() => Ok(()),
    }
}

/// A handle on the connection of a request, in the request's extensions.
#[derive(Clone, Debug, Default)]
pub struct Connection(CancellationToken);

impl Connection {
    /// Closes the connection at once, with all its streams.
    pub fn close(&self) {
        self.0.cancel();
    }
}

/// The client reset its stream, or its connection is gone. It stands for hyper's own error, in which tonic would find a reset with
/// CANCEL and make a clean end of the requests of it; but a consumer whose stream broke has not left cleanly.
#[derive(Debug)]
struct StreamBroken;

impl std::fmt::Display for StreamBroken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the client has gone without closing its stream")
    }
}

impl std::error::Error for StreamBroken {}
