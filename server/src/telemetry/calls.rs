//! The calls of all connections: how many of each method ended with which code, and how long unary ones took. The shell counts these,
//! because the core knows no calls.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Instant;

use http::{HeaderMap, Request, Response};
use hyper::body::{Body, Frame, SizeHint};
use tonic::body::Body as TonicBody;
use tonic::{Code, Status};

use super::histogram::{CALL_EDGES, Histogram};
use crate::requests::BoundedRoutes;
use crate::security::Guard;
use crate::services::{self, Method};

/// All codes, in the order of their numbers, as the gRPC documents spell them.
pub(super) const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The calls of one method.
#[derive(Debug)]
pub struct MethodCalls {
    /// The method.
    pub method: Method,
    ended: [AtomicU64; CODES.len()],
    /// Nanoseconds; of unary calls only.
    handling: Mutex<Histogram<{ CALL_EDGES.len() }>>,
}

impl MethodCalls {
    /// How many calls ended with the code of this number.
    pub(super) fn ended(&self, code: usize) -> u64 {
        self.ended[code].load(Ordering::Relaxed)
    }

    /// How long unary calls took, in nanoseconds.
    pub(super) fn handling(&self) -> Histogram<{ CALL_EDGES.len() }> {
        self.handling.lock().expect("a panic ends the process").clone()
    }
}

/// The calls of all methods. Those of a method that no service has are in no count: their names come from outside and have no bound.
#[derive(Debug)]
pub struct Calls {
    methods: Vec<MethodCalls>,
    /// Places in `methods`, by path.
    paths: HashMap<String, usize>,
}

impl Default for Calls {
    fn default() -> Self {
        let of = |method| MethodCalls {
            method,
            ended: Default::default(),
            handling: Mutex::new(Histogram::new(&CALL_EDGES)),
        };
        let methods: Vec<_> = services::methods().into_iter().map(of).collect();
        let paths = methods.iter().enumerate().map(|(place, calls)| (calls.method.path(), place)).collect();
        Self { methods, paths }
    }
}

impl Calls {
    /// The calls of each method.
    pub fn methods(&self) -> &[MethodCalls] {
        &self.methods
    }
}

/// The services, with their calls counted.
#[derive(Clone)]
pub struct CountedRoutes {
    routes: BoundedRoutes,
    guard: Guard,
    calls: Arc<Calls>,
}

impl CountedRoutes {
    /// Counts the calls of `routes` in `calls`, those that the guard refuses among them.
    pub const fn new(routes: BoundedRoutes, guard: Guard, calls: Arc<Calls>) -> Self {
        Self { routes, guard, calls }
    }

    /// Serves one call.
    ///
    /// # Errors
    ///
    /// None: a call that fails says so in its response.
    pub async fn serve<B>(self, mut request: Request<B>) -> Result<Response<CountedBody>, Infallible>
    where
        B: Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        let place = self.calls.paths.get(request.uri().path()).copied();
        let mut call = place.map(|place| Call { calls: self.calls, place, began: Instant::now(), code: None });
        let response = match self.guard.admit(&mut request) {
            Ok(()) => self.routes.serve(request).await,
            Err(refused) => refused.into_http(),
        };
        let (head, body) = response.into_parts();
        if let Some(call) = &mut call {
            call.look(&head.headers); // a call without any message says its end here
        }
        Ok(Response::from_parts(head, CountedBody { body, call }))
    }
}

/// A call that goes on. It is counted when this is dropped.
struct Call {
    calls: Arc<Calls>,
    place: usize,
    began: Instant,
    /// The code, once the server has said it.
    code: Option<Code>,
}

impl Call {
    /// Looks for the code in headers or trailers.
    fn look(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get("grpc-status") {
            self.code = Some(Code::from_bytes(status.as_bytes()));
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let calls = &self.calls.methods[self.place];
        // Who goes before the end has cancelled.
        calls.ended[self.code.unwrap_or(Code::Cancelled) as usize].fetch_add(1, Ordering::Relaxed);
        if calls.method.is_unary() {
            let took = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
            calls.handling.lock().expect("a panic ends the process").record(took);
        }
    }
}

/// The response to a call, which is counted at its end.
pub struct CountedBody {
    body: TonicBody,
    call: Option<Call>,
}

impl Body for CountedBody {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let (Poll::Ready(Some(Ok(frame))), Some(call)) = (&polled, &mut self.call)
            && let Some(trailers) = frame.trailers_ref()
        {
            call.look(trailers);
            self.call = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
