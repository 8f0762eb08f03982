//! The real binary: what the environment makes of it, and what it says.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use ackstream::proto::message_stream_client::MessageStreamClient;
use ackstream::proto::stream_message::Kind;
use ackstream::proto::{AckMessage, Open, StreamMessage};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::collector::{Collector, Mood};

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

pub(crate) fn ackstream(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ackstream"));
    command
        .args(arguments)
        .args(["--listen", "127.0.0.1:0", "--metrics-listen", "off"])
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null());
    let foreign = |name: &str| name.starts_with("ACKSTREAM_") || name.starts_with("OTEL_");
    for (name, _) in std::env::vars().filter(|(name, _)| foreign(name)) {
        command.env_remove(name);
    }
    command.envs(environment.iter().copied());
    command
}

/// A running server, ended with the test.
pub(crate) struct Process {
    child: Child,
    lines: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it has ended, unless the test failed
        let _ = self.child.wait();
    }
}

impl Process {
    pub(crate) fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut child = ackstream(arguments, environment).stdout(Stdio::piped()).spawn().expect("the binary runs");
        let mut lines = BufReader::new(child.stdout.take().expect("piped"));
        let mut first = String::new();
        lines.read_line(&mut first).expect("a line");
        let address = first.trim().trim_end_matches("\"}").rsplit(' ').next().and_then(|address| address.parse().ok());
        let address = address.unwrap_or_else(|| panic!("the first line names the address: {first:?}"));
        Self { child, lines, address }
    }

    /// Acks everything until the stream ends, from the second attempt on where a message is to be `retried`. Returns the contexts.
    pub(crate) async fn ack_all(&self, retried: bool) -> Vec<String> {
        let endpoint = tonic::transport::Endpoint::new(format!("http://{}", self.address)).unwrap();
        let mut client = MessageStreamClient::new(endpoint.connect().await.unwrap());
        let (send, frames) = mpsc::channel(10);
        let frame = |kind| StreamMessage { kind: Some(kind) };
        send.send(frame(Kind::Open(Open { client_id: "alice".to_owned(), ..Open::default() }))).await.unwrap();
        let mut receive = client.exchange(ReceiverStream::new(frames)).await.unwrap().into_inner();
        let mut contexts = Vec::new();
        while let Some(StreamMessage { kind: Some(kind) }) = receive.message().await.unwrap() {
            let Kind::Data(data) = kind else { continue };
            contexts.push(data.trace_context);
            if !retried || data.delivery_attempt > 1 {
                let ack = AckMessage { ack_id: data.id, ..AckMessage::default() };
                send.send(frame(Kind::Ack(ack))).await.unwrap();
            }
        }
        contexts
    }

    /// Everything that is left to read, and the exit code.
    pub(crate) fn end(mut self) -> (String, Option<i32>) {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).expect("UTF-8");
        (rest, self.child.wait().expect("it ends").code())
    }
}

fn output(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    ackstream(arguments, environment).output().expect("the binary runs")
}

#[test]
fn an_endpoint_that_is_no_url_is_told_with_all_other_problems_before_a_port_opens() {
    let output = output(&["serve", "--max-retries", "x"], &[(ENDPOINT, "localhost:4317")]);
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(
        std::str::from_utf8(&output.stderr).unwrap(),
        "\
ackstream: max_retries = \"x\" (flag --max-retries): must be a whole number from 0 to 1000, or \"unlimited\", or \"auto\"
ackstream: OTEL_EXPORTER_OTLP_ENDPOINT = \"localhost:4317\" (environment variable OTEL_EXPORTER_OTLP_ENDPOINT): must be the URL of \
an OTLP collector's gRPC port, such as \"http://localhost:4317\"
"
    );
    assert!(output.stdout.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_binary_exports_what_it_has_before_it_exits_under_the_name_that_it_was_given() {
    let collector = Collector::start(Mood::Takes).await;
    let endpoint = format!("http://{}", collector.address);
    let environment =
        [(ENDPOINT, endpoint.as_str()), ("OTEL_SERVICE_NAME", "mine"), ("OTEL_TRACES_SAMPLER", "always_on")];
    let process = Process::start(&["3", "--interval", "1ms", "--ack-deadline", "1m"], &environment);
    let contexts = process.ack_all(false).await;
    let (rest, code) = process.end();

    assert_eq!(code, Some(0));
    assert!(!rest.contains("not supported") && !rest.contains("Spans that were not exported"), "{rest}");
    let pushes: Vec<_> = collector.spans().into_iter().filter(|span| span.name == "push demo").collect();
    let hex = crate::collector::hex;
    let exported = pushes.iter().map(|span| format!("00-{}-{}-01", hex(&span.trace_id), hex(&span.span_id)));
    assert_eq!(exported.collect::<Vec<_>>(), contexts);
    assert_eq!(collector.resource_and_scope().0["service.name"], "mine");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_down_is_reported_once_and_the_summary_says_what_was_lost() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap(); // closed again
    let endpoint = format!("http://{nobody}");
    let environment = [(ENDPOINT, endpoint.as_str()), ("OTEL_EXPORTER_OTLP_TIMEOUT", "50")];
    // Longer than two batches wait for company, so that the second one fails as well.
    let process = Process::start(&["60", "--interval", "20ms", "--ack-deadline", "1m"], &environment);
    assert_eq!(process.ack_all(false).await.len(), 60);
    let (rest, code) = process.end();

    assert_eq!(code, Some(0));
    assert_eq!(rest.matches(&format!("WARN: Traces cannot be exported to {endpoint}/: ")).count(), 1, "{rest}");
    assert!(rest.contains("60 published = 60 acked + 0 dropped + 0 ready"), "{rest}");
    let said = "Spans that were not exported: 120 = 120 export_failed + 0 queue_full + 0 rate_limited";
    assert!(rest.contains(said), "{rest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_that_are_not_supported_are_named_once() {
    let environment = [("OTEL_BSP_SCHEDULE_DELAY", "1"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")];
    let process = Process::start(&["1", "--ack-deadline", "1m"], &environment);
    process.ack_all(false).await;
    let (rest, code) = process.end();
    assert_eq!(code, Some(0));
    let line = "WARN: Set, but not supported by this server: OTEL_BSP_SCHEDULE_DELAY, OTEL_EXPORTER_OTLP_PROTOCOL=\"http/protobuf\"\n";
    assert_eq!(rest.matches(line).count(), 1, "{rest}");
    assert_eq!(rest.matches("OTEL_").count(), 2, "{rest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_are_compressed_where_that_is_asked_for_and_what_cannot_be_read_asks_for_nothing() {
    const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION";
    const ALL: &str = "OTEL_EXPORTER_OTLP_COMPRESSION";
    type Variables = &'static [(&'static str, &'static str)];
    let cases: [(Variables, &str, usize); 6] = [
        (&[], "", 0),
        (&[(ALL, "GZIP")], "gzip", 0),
        (&[(TRACES, "none"), (ALL, "gzip")], "", 0),
        (&[(TRACES, "gzip"), (ALL, "none")], "gzip", 0),
        (&[(TRACES, "zstd"), (ALL, "gzip")], "gzip", 1),
        (&[(ALL, "snappy")], "", 1),
    ];
    for (variables, encoding, named) in cases {
        let collector = Collector::start(Mood::Takes).await;
        let endpoint = format!("http://{}", collector.address);
        let environment = [&[(ENDPOINT, endpoint.as_str())], variables].concat();
        let process = Process::start(&["1", "--ack-deadline", "1m"], &environment);
        process.ack_all(false).await;
        let (rest, code) = process.end();
        assert_eq!(code, Some(0));
        assert_eq!(collector.encodings(), [encoding], "{variables:?}");
        assert_eq!(rest.matches("COMPRESSION").count(), named, "{rest}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn json_lines_about_a_message_name_its_trace_and_the_span_of_its_attempt() {
    let collector = Collector::start(Mood::Takes).await;
    let endpoint = format!("http://{}", collector.address);
    let arguments = ["1", "--interval", "1ms", "--ack-deadline", "100ms", "--log-format", "json"];
    let process = Process::start(&arguments, &[(ENDPOINT, endpoint.as_str())]);
    let contexts = process.ack_all(true).await;
    let (rest, _) = process.end();

    let lines = rest.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let about = lines.filter(|line| line["message_id"] == 1).map(|line| {
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        (line["delivery_attempt"].as_u64().unwrap(), format!("00-{}-{}", text("trace_id"), text("span_id")))
    });
    let expected: Vec<_> = contexts.iter().map(|context| context[..52].to_owned()).collect();
    assert_eq!(
        about.collect::<Vec<_>>(),
        [(1, expected[0].clone()), (2, expected[1].clone()), (2, expected[1].clone())] // sent, retried, acked
    );
}
