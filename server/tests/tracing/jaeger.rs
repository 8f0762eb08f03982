//! The same seen through Jaeger's API, where Jaeger is installed.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::binary::Process;

/// A Jaeger on ports of its own that keeps traces in memory, ended with the test.
struct Jaeger {
    child: Child,
    query: SocketAddr,
    otlp: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Drop for Jaeger {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it has ended, unless the test failed
        let _ = self.child.wait();
    }
}

impl Jaeger {
    /// `None` where it is not installed.
    fn start() -> Option<Self> {
        // It cannot say which port it got, so three that are free are picked for it.
        let free: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<_> = free.iter().map(|listener| listener.local_addr().unwrap()).collect();
        drop(free);
        let (query, query_grpc, otlp) = (addresses[0], addresses[1], addresses[2]);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("jaeger.yaml");
        let config = format!(
            "\
service:
  extensions: [jaeger_storage, jaeger_query]
  pipelines:
    traces: {{receivers: [otlp], exporters: [jaeger_storage_exporter]}}
  telemetry: {{metrics: {{level: none}}}}
extensions:
  jaeger_storage: {{backends: {{memory: {{memory: {{max_traces: 100}}}}}}}}
  jaeger_query: {{storage: {{traces: memory}}, http: {{endpoint: \"{query}\"}}, grpc: {{endpoint: \"{query_grpc}\"}}}}
receivers:
  otlp: {{protocols: {{grpc: {{endpoint: \"{otlp}\"}}}}}}
exporters:
  jaeger_storage_exporter: {{trace_storage: memory}}
"
        );
        std::fs::write(&file, config).unwrap();
        let mut child = Command::new("jaeger")
            .arg("--config")
            .arg(&file)
            .env("OTEL_TRACES_SAMPLER", "always_off") // of its own work
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .ok()?;
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("Everything is ready")), "Jaeger has started");
        std::thread::spawn(move || lines.for_each(drop)); // so that it never waits for a reader
        Some(Self { child, query, otlp, _folder: folder })
    }

    fn get(&self, path: &str) -> serde_json::Value {
        let mut connection = TcpStream::connect(self.query).unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        write!(connection, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(" 200 OK"), "{answer}");
        serde_json::from_str(body).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jaeger_shows_one_tree_for_a_retried_message() {
    let Some(jaeger) = Jaeger::start() else {
        println!("SKIPPED: jaeger is not installed");
        return;
    };
    let endpoint = format!("http://{}", jaeger.otlp);
    let process =
        Process::start(&["1", "--ack-deadline", "50ms"], &[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())]);
    let contexts = process.ack_all(true).await;
    let (rest, code) = process.end();
    assert_eq!(code, Some(0), "{rest}");
    let parts: Vec<Vec<&str>> = contexts.iter().map(|context| context.split('-').collect()).collect();

    let found = jaeger.get(&format!("/api/traces/{}", parts[0][1]));

    assert_eq!(found["data"].as_array().unwrap().len(), 1, "{found}");
    let trace = &found["data"][0];
    let spans = trace["spans"].as_array().unwrap();
    let of = |span: &serde_json::Value, key: &str| {
        let tags = span["tags"].as_array().unwrap().iter().find(|tag| tag["key"] == key).cloned();
        tags.map(|tag| tag["value"].clone()).unwrap_or_default()
    };
    let push = |attempt: u64| {
        let mut pushes = spans.iter().filter(|span| span["operationName"] == "push demo");
        pushes.find(|span| of(span, "messaging.ackstream.delivery_attempt") == attempt).unwrap()
    };
    let deliver = spans.iter().find(|span| span["operationName"] == "deliver demo").unwrap();
    assert_eq!(spans.len(), 1 + contexts.len());
    assert_eq!((&push(1)["spanID"], &push(2)["spanID"]), (&parts[0][2].into(), &parts[1][2].into()));
    assert_eq!(of(push(1), "error"), true);
    assert_eq!(of(push(1), "messaging.ackstream.outcome"), "expired");
    assert_eq!(of(push(1), "span.kind"), "producer");
    assert_eq!(of(deliver, "error"), serde_json::Value::Null);
    let references: BTreeMap<&str, &str> = push(2)["references"]
        .as_array()
        .unwrap()
        .iter()
        .map(|reference| (reference["refType"].as_str().unwrap(), reference["spanID"].as_str().unwrap()))
        .collect();
    let expected = [("CHILD_OF", deliver["spanID"].as_str().unwrap()), ("FOLLOWS_FROM", parts[0][2])];
    assert_eq!(references, BTreeMap::from(expected));
    let services: Vec<_> = trace["processes"].as_object().unwrap().values().map(|one| &one["serviceName"]).collect();
    assert_eq!(services, ["ackstream-server"]);
}
