//! An OTLP receiver: a gRPC server on a port of its own that implements the collector's `TraceService`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ackstream::telemetry::{Sampler, TraceSettings};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::codec::CompressionEncoding;
use tonic::{Code, Request, Response, Status};

/// What the collector does with an export.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mood {
    Takes,
    /// Refuses so many, then takes.
    Refuses(Code, u32),
    /// Takes all but so many spans of each export.
    Rejects(i64),
    /// Never answers.
    Stalls,
}

pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    mood: Mutex<Mood>,
    received: Mutex<Vec<ExportTraceServiceRequest>>,
    refused: Mutex<u32>,
    /// How the exports that were taken were compressed, as their headers say.
    encodings: Mutex<Vec<String>>,
}

struct Service(Arc<Shared>);

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mood = *self.0.mood.lock().unwrap();
        match mood {
            Mood::Stalls => std::future::pending().await,
            Mood::Refuses(code, left) if left > 0 => {
                *self.0.mood.lock().unwrap() = Mood::Refuses(code, left - 1);
                *self.0.refused.lock().unwrap() += 1;
                Err(Status::new(code, "not today"))
            }
            Mood::Rejects(rejected_spans) => {
                let error_message = "a name\nis too long".to_owned();
                let partial_success = Some(ExportTracePartialSuccess { rejected_spans, error_message });
                Ok(Response::new(ExportTraceServiceResponse { partial_success }))
            }
            Mood::Takes | Mood::Refuses(..) => {
                let encoding = request.metadata().get("grpc-encoding").map_or("", |value| value.to_str().unwrap());
                self.0.encodings.lock().unwrap().push(encoding.to_owned());
                self.0.received.lock().unwrap().push(request.into_inner());
                Ok(Response::new(ExportTraceServiceResponse::default()))
            }
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Collector {
    pub(crate) async fn start(mood: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            mood: Mutex::new(mood),
            received: Mutex::default(),
            refused: Mutex::default(),
            encodings: Mutex::default(),
        });
        let service =
            TraceServiceServer::new(Service(Arc::clone(&shared))).accept_compressed(CompressionEncoding::Gzip);
        let serving = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener));
        Self { address, shared, task: tokio::spawn(async move { serving.await.unwrap() }) }
    }

    /// Settings of a server that traces all its messages to this collector.
    pub(crate) fn settings(&self) -> TraceSettings {
        settings(self.address)
    }

    pub(crate) fn refused(&self) -> u32 {
        *self.shared.refused.lock().unwrap()
    }

    /// How each export was compressed; empty = not at all.
    pub(crate) fn encodings(&self) -> Vec<String> {
        self.shared.encodings.lock().unwrap().clone()
    }

    /// Every span that has come, in the order in which they came.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let received = self.shared.received.lock().unwrap();
        let resources = received.iter().flat_map(|request| &request.resource_spans);
        resources.flat_map(|resource| &resource.scope_spans).flat_map(|scope| &scope.spans).cloned().collect()
    }

    /// The spans by trace, each trace in the order in which its spans came.
    pub(crate) fn traces(&self) -> BTreeMap<String, Vec<Span>> {
        let mut traces: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for span in self.spans() {
            traces.entry(hex(&span.trace_id)).or_default().push(span);
        }
        traces
    }

    /// The one resource that all spans had, by name, and the name and version of their scope.
    pub(crate) fn resource_and_scope(&self) -> (BTreeMap<String, String>, (String, String)) {
        let received = self.shared.received.lock().unwrap();
        let mut all = received.iter().flat_map(|request| &request.resource_spans).map(|spans| {
            let scope = spans.scope_spans[0].scope.clone().unwrap();
            (values(&spans.resource.as_ref().unwrap().attributes), (scope.name, scope.version))
        });
        let first = all.next().expect("something was exported");
        assert!(all.all(|other| other == first), "all have one resource");
        first
    }
}

pub(crate) fn settings(collector: SocketAddr) -> TraceSettings {
    TraceSettings {
        endpoint: format!("http://{collector}"),
        timeout: Duration::from_secs(10),
        compressed: false,
        sampler: Sampler::new(1.0, true),
        resource: BTreeMap::new(),
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

pub(crate) fn values(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &AnyValue| match value.value.as_ref() {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        other => panic!("an attribute that nobody expects: {other:?}"),
    };
    attributes.iter().map(|pair| (pair.key.clone(), text(pair.value.as_ref().unwrap()))).collect()
}

/// The one trace of message `id`, as text: a line a span, indented below its parent, with everything that it says except ids and
/// times. What holds for every span is checked here: times in order, links into the same trace, nothing dropped, no events.
pub(crate) fn tree(spans: &[Span], id: u64) -> String {
    let mut text = String::new();
    let known = |parent: &[u8]| spans.iter().any(|span| span.span_id == parent);
    let mut before: Option<&Span> = None;
    for span in spans {
        assert_eq!(span.trace_id, spans[0].trace_id);
        assert!(span.start_time_unix_nano > 0 && span.start_time_unix_nano <= span.end_time_unix_nano, "{span:?}");
        assert_eq!((span.dropped_attributes_count, span.dropped_events_count, span.dropped_links_count), (0, 0, 0));
        assert!(span.events.is_empty());
        let depth = usize::from(known(&span.parent_span_id));
        if depth == 1 {
            assert_eq!(span.parent_span_id, spans[0].span_id);
            assert!(span.start_time_unix_nano >= spans[0].start_time_unix_nano);
            assert!(span.end_time_unix_nano <= spans[0].end_time_unix_nano);
            assert!(before.is_none_or(|before| before.end_time_unix_nano <= span.start_time_unix_nano));
            before = Some(span);
        }
        let kind = SpanKind::try_from(span.kind).unwrap();
        write!(text, "{}{} {kind:?}", "  ".repeat(depth), span.name).unwrap();
        if depth == 0 && !span.parent_span_id.is_empty() {
            write!(text, " below {}", hex(&span.parent_span_id)).unwrap();
            assert_eq!(span.flags & 0x300, 0x300, "the parent is remote");
        } else {
            assert_eq!(span.flags & 0x300, 0x100, "the parent is not remote");
        }
        assert_eq!(span.flags & 0xff, 1, "sampled");
        let mut attributes = values(&span.attributes);
        for (name, value) in [
            ("messaging.system", "ackstream"),
            ("messaging.destination.name", "demo"),
            ("messaging.destination.subscription.name", "demo"),
            ("messaging.message.id", id.to_string().as_str()),
            ("messaging.operation.name", span.name.split(' ').next().unwrap()),
        ] {
            assert_eq!(attributes.remove(name).as_deref(), Some(value), "{name}");
        }
        for (name, value) in attributes {
            write!(text, " {}={value}", name.trim_start_matches("messaging.").trim_start_matches("ackstream."))
                .unwrap();
        }
        let status = span.status.as_ref().unwrap();
        match status.code {
            0 => assert_eq!(status.message, ""),
            2 => write!(text, " ERROR({})", status.message).unwrap(),
            other => panic!("status {other}"),
        }
        for link in &span.links {
            assert_eq!(link.trace_id, span.trace_id);
            let linked = spans.iter().find(|other| other.span_id == link.span_id).expect("links lead to what is there");
            let attempt = &values(&linked.attributes)["messaging.ackstream.delivery_attempt"];
            write!(text, " after {attempt}").unwrap();
        }
        text.push('\n');
    }
    text
}
