//! What the server answers to HTTP: `/metrics` for Prometheus, and `/livez` and `/readyz` for those who cannot ask for its health over
//! gRPC. A client that sends half a request is closed after a second, so that it cannot keep probes out for long.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use crate::telemetry::Metrics;

/// Connections at the same time, at most; the others wait to be accepted. Each costs a task and a few kilobytes.
const MAX_CONNECTIONS: usize = 512;
/// How long a client may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a connection may last: it is for one request, whose answer fits into the buffers of most sockets.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the loop waits after the system has refused a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The text format of Prometheus.
const METRICS_TYPE: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
const TEXT_TYPE: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// What answers; a handle to share.
#[derive(Clone)]
pub struct Endpoint {
    metrics: Arc<Metrics>,
    ready: Arc<AtomicBool>,
}

impl Endpoint {
    /// Shows these metrics, and that the server is not ready.
    pub fn new(metrics: Metrics) -> Self {
        Self { metrics: Arc::new(metrics), ready: Arc::default() }
    }

    /// The metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Whether the server takes new work.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Says whether the server takes new work.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    /// Answers on `listener`. Never ends.
    pub async fn serve(self, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let place = Arc::clone(&places).acquire_owned().await.expect("nobody closes it");
            match listener.accept().await {
                Ok((stream, _)) => {
                    let endpoint = self.clone();
                    tokio::spawn(async move {
                        endpoint.serve_connection(stream).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    warn!("cannot accept a connection for metrics: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Answers one request on a connection, within ten seconds.
    pub async fn serve_connection(self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = service_fn(|request| {
            let endpoint = self.clone();
            async move { Ok::<_, Infallible>(endpoint.answer(&request).await) }
        });
        let mut http = http1::Builder::new();
        http.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(REQUEST_TIMEOUT);
        match tokio::time::timeout(CONNECTION_TIMEOUT, http.serve_connection(TokioIo::new(io), service)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "connection for metrics ends"),
            Err(_) => debug!("connection for metrics took too long"),
        }
    }

    async fn answer<B>(self, request: &Request<B>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if !matches!(path, "/metrics" | "/livez" | "/readyz") {
            return text(StatusCode::NOT_FOUND, "not found; there are /metrics, /livez and /readyz\n");
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are allowed\n");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match path {
            "/metrics" => {
                // It is called off where the process ends at this moment.
                let Ok(scrape) = tokio::task::spawn_blocking(move || self.metrics.scrape()).await else {
                    return text(StatusCode::SERVICE_UNAVAILABLE, "the server has stopped\n");
                };
                let mut response = Response::new(Full::from(scrape));
                response.headers_mut().insert(header::CONTENT_TYPE, METRICS_TYPE);
                response
            }
            "/readyz" if !self.is_ready() => text(StatusCode::SERVICE_UNAVAILABLE, "not serving\n"),
            _ => text(StatusCode::OK, "ok\n"),
        }
    }
}

fn text(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, TEXT_TYPE);
    response
}
