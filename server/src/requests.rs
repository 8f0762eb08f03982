//! Bounds on requests that the services themselves do not have: how long one may take, and how many streams may be open that carry no
//! messages.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use hyper::body::{Body, Frame};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::Status;
use tonic::body::Body as TonicBody;
use tonic::service::Routes;
use tower::ServiceExt as _;

use crate::connection::Connection;
use crate::proto::message_stream_server::SERVICE_NAME as MESSAGES;
use crate::services;

/// A request must have come within so long, where it is one message: what has come of it is held until then.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);

/// The services, with their requests bounded.
#[derive(Clone)]
pub struct BoundedRoutes {
    routes: Routes,
    /// Paths of streams that carry no messages: a watch of the health, or reflection.
    other_streams: Arc<HashSet<String>>,
    /// For those. They take none of the places of streams of messages: anyone may watch the health.
    places: Arc<Semaphore>,
}

impl BoundedRoutes {
    /// Serves these routes. Of streams that carry no messages, at most `max_streams` are open at the same time.
    pub fn new(routes: Routes, max_streams: usize) -> Self {
        let others = services::methods().into_iter().filter(|method| !method.is_unary() && method.service != MESSAGES);
        let other_streams = Arc::new(others.map(|method| method.path()).collect());
        Self { routes, other_streams, places: Arc::new(Semaphore::new(max_streams)) }
    }

    /// Serves one request.
    pub async fn serve<B>(self, request: Request<B>) -> Response<TonicBody>
    where
        B: Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        if !self.other_streams.contains(request.uri().path()) {
            return answer(self.routes, request).await;
        }
        let Ok(place) = self.places.try_acquire_owned() else {
            return Status::resource_exhausted("as many such streams are open as may be (max_streams)").into_http();
        };
        let too_old = request.extensions().get::<Connection>().map(|connection| Box::pin(connection.is_too_old()));
        answer(self.routes, request).await.map(|body| TonicBody::new(OtherStream { body: Some(body), too_old, place }))
    }
}

/// The answer on a stream that carries no messages. It ends when its connection is too old, as streams of messages do, and has its place
/// until then.
struct OtherStream {
    /// `None` once it has ended.
    body: Option<TonicBody>,
    too_old: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    #[expect(dead_code, reason = "it is held, and given back with this")]
    place: OwnedSemaphorePermit,
}

impl Body for OtherStream {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        if this.too_old.as_mut().is_none_or(|too_old| too_old.as_mut().poll(context).is_pending()) {
            return Pin::new(body).poll_frame(context);
        }
        this.body = None;
        let mut trailers = HeaderMap::new();
        Status::unavailable("the connection has reached its age (max_connection_age); reconnect")
            .add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }
}

/// The answer to a request; an error where that takes too long. A stream of messages answers before it has read any.
async fn answer<B>(routes: Routes, request: Request<B>) -> Response<TonicBody>
where
    B: Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    let Ok(Ok(answered)) = tokio::time::timeout(REQUEST_WITHIN, routes.oneshot(request)).await else {
        let within = humantime::format_duration(REQUEST_WITHIN);
        return Status::deadline_exceeded(format!("the request did not come within {within}")).into_http();
    };
    answered
}
