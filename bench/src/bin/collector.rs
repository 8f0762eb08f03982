//! An OTLP collector that only looks: whether the traces of retried messages are whole, and their deadlines were kept, and how long
//! acks took.
//!
//! It prints its address, and for each line on its standard input one line of JSON with what it has seen.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::codec::CompressionEncoding;
use tonic::{Request, Response, Status};

#[derive(Clone, Default)]
struct Collector {
    /// The server's spans of each trace.
    traces: Arc<Mutex<HashMap<Vec<u8>, Vec<Span>>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut traces = self.traces.lock().expect("no panic");
        let scopes = request.into_inner().resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        for span in scopes.flat_map(|scope| scope.spans) {
            traces.entry(span.trace_id.clone()).or_default().push(span);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    fn tell(&self) -> serde_json::Value {
        let traces = self.traces.lock().expect("no panic");
        let (mut retried, mut broken, mut shortest, mut acked) = (0, 0, u64::MAX, Vec::new());
        for spans in traces.values() {
            let (pushes, delivers): (Vec<_>, Vec<_>) = spans.iter().partition(|span| span.name.starts_with("push"));
            let attempts =
                delivers.first().map_or(0, |deliver| number(deliver, "messaging.ackstream.delivery_attempts"));
            broken += u64::from(delivers.len() != 1 || pushes.len() as i64 != attempts);
            retried += u64::from(attempts > 1);
            for push in pushes {
                let took = push.end_time_unix_nano - push.start_time_unix_nano;
                match outcome(push) {
                    "expired" => shortest = shortest.min(took),
                    "acked" => acked.push(took),
                    _ => {}
                }
            }
        }
        serde_json::json!({
            "traces": traces.len(), "retried": retried, "broken": broken, "shortest_expired_ns": (shortest < u64::MAX).then_some(shortest),
            "acked": ackstream_bench::quantiles(&mut acked),
        })
    }
}

fn value<'a>(span: &'a Span, name: &str) -> Option<&'a Value> {
    span.attributes.iter().find(|attribute| attribute.key == name)?.value.as_ref()?.value.as_ref()
}

fn number(span: &Span, name: &str) -> i64 {
    if let Some(Value::IntValue(number)) = value(span, name) { *number } else { 0 }
}

fn outcome(push: &Span) -> &str {
    if let Some(Value::StringValue(outcome)) = value(push, "messaging.ackstream.outcome") { outcome } else { "" }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    println!("{}", listener.local_addr()?);
    let collector = Collector::default();
    let service = TraceServiceServer::new(collector.clone()).accept_compressed(CompressionEncoding::Gzip);
    tokio::spawn(
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let mut questions = BufReader::new(tokio::io::stdin()).lines();
    while questions.next_line().await?.is_some() {
        println!("{}", collector.tell());
    }
    Ok(())
}
