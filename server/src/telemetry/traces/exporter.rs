//! From the queue to the collector. Whatever the collector does, the server keeps at most the queue and one batch, and says once what
//! is wrong.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{Compression, RetryPolicy, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::TelemetryResourceDetector;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::subscriber::{NoSubscriber, with_default};
use tracing::{info, warn};

use super::outage::Outage;
use super::partial_success::PartialSuccesses;
use super::spans::Record;
use super::{Limits, TraceSettings, Tracing};
use crate::telemetry::{OnTheWay, TraceCounts};

/// Settled messages that wait to be exported, at most: at 300 a second (`traces_per_second`), more than three seconds of them; at most
/// about 4 MiB.
const QUEUE: usize = 1_024;
/// Settled messages that are taken out of the queue together, at most.
const BATCH_RECORDS: usize = 128;
/// An export stops at the first trace that reaches so many spans, below 1 MiB: collectors take 4 MiB by default.
const BATCH_SPANS: usize = 512;
/// How long the first trace of a batch waits for others.
const BATCH_DELAY: Duration = Duration::from_millis(500);

/// Exports traces until it is told to end.
#[derive(Debug)]
pub struct Exporter {
    tracing: Tracing,
    closing: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Exporter {
    /// Starts to export. Nothing is connected to before there is something to send.
    ///
    /// # Errors
    ///
    /// Where the system has no random numbers.
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime.
    pub fn start(
        settings: &TraceSettings,
        traces_per_second: u32,
        counts: Arc<TraceCounts>,
    ) -> Result<Self, getrandom::Error> {
        let retries = RetryPolicy::disabled()
            .with_max_retries(3)
            .with_initial_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_millis(1_600))
            .with_max_jitter(Duration::from_millis(100));
        let mut spans = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(&settings.endpoint)
            .with_timeout(settings.timeout)
            .with_retry_policy(retries);
        if settings.compressed {
            spans = spans.with_compression(Compression::Gzip); // otherwise it finds the same in the same variables
        }
        let build = || spans.build().expect("the endpoint was checked with the configuration");
        let mut spans = with_default(NoSubscriber::new(), build); // what it says of variables is said at start
        spans.set_resource(&resource(settings)?);
        let (send, queue) = mpsc::channel(QUEUE);
        let closing = CancellationToken::new();
        let task = Task {
            queue,
            closing: closing.clone(),
            spans,
            scope: InstrumentationScope::builder("ackstream").with_version(env!("CARGO_PKG_VERSION")).build(),
            endpoint: settings.endpoint.clone(),
            timeout: settings.timeout,
            counts: Arc::clone(&counts),
            outage: Outage::default(),
            partial_successes: PartialSuccesses::default(),
        };
        let limits = Arc::new(Limits::new(traces_per_second));
        let tracing = Tracing { sampler: settings.sampler, queue: send, limits, counts };
        Ok(Self { tracing, closing, task: Mutex::new(Some(tokio::spawn(task.run()))) })
    }

    /// For the subscriptions.
    pub const fn tracing(&self) -> &Tracing {
        &self.tracing
    }

    /// Exports what waits and ends, after `within` at the latest. What was not exported by then is counted as failed, and so is what
    /// comes later.
    pub async fn flush(&self, within: Duration) {
        self.closing.cancel();
        let task = self.task.lock().expect("a panic ends the process").take();
        let Some(mut task) = task else { return };
        if tokio::time::timeout(within, &mut task).await.is_err() {
            task.abort();
            let _ = task.await; // so that what it had is counted
        }
    }
}

/// What all spans have in common. What the environment says goes before what the server would say of itself.
fn resource(settings: &TraceSettings) -> Result<Resource, getrandom::Error> {
    let instance = format!("{:016x}{:016x}", getrandom::u64()?, getrandom::u64()?);
    let own = [
        ("service.name", "ackstream-server"),
        ("service.namespace", "ackstream"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", &instance),
    ];
    let own = own.map(|(name, value)| KeyValue::new(name, value.to_owned()));
    let given = settings.resource.iter().map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
    let resource = Resource::builder_empty().with_detector(Box::new(TelemetryResourceDetector));
    Ok(resource.with_attributes(own).with_attributes(given).build())
}

/// What is exported together.
struct Batch {
    spans: Vec<SpanData>,
    on_the_way: OnTheWay,
}

struct Task {
    queue: mpsc::Receiver<Record>,
    closing: CancellationToken,
    spans: opentelemetry_otlp::SpanExporter,
    scope: InstrumentationScope,
    endpoint: String,
    timeout: Duration,
    counts: Arc<TraceCounts>,
    outage: Outage,
    partial_successes: PartialSuccesses,
}

impl Task {
    async fn run(mut self) {
        loop {
            let records = self.gather().await;
            if records.is_empty() {
                return;
            }
            let mut batch = self.empty_batch();
            for record in records {
                record.write(&self.scope, &mut batch.spans);
                batch.on_the_way.join(record.on_the_way);
                if batch.spans.len() >= BATCH_SPANS {
                    let full = std::mem::replace(&mut batch, self.empty_batch());
                    self.export(full).await;
                }
            }
            if !batch.spans.is_empty() {
                self.export(batch).await;
            }
        }
    }

    fn empty_batch(&self) -> Batch {
        Batch { spans: Vec::new(), on_the_way: OnTheWay::new(Arc::clone(&self.counts), 0) }
    }

    /// The next records; none when there will be none. The first of them waits for others, unless the server stops.
    async fn gather(&mut self) -> Vec<Record> {
        let mut records = Vec::new();
        let mut until = None;
        while records.len() < BATCH_RECORDS {
            let room = BATCH_RECORDS - records.len();
            tokio::select! {
                biased;
                () = self.closing.cancelled(), if !self.queue.is_closed() => self.queue.close(),
                received = self.queue.recv_many(&mut records, room) => {
                    if received == 0 {
                        break;
                    }
                    until.get_or_insert_with(|| Instant::now() + BATCH_DELAY);
                }
                () = wait_until(until) => break,
            }
        }
        records
    }

    async fn export(&mut self, Batch { spans, on_the_way }: Batch) {
        let export = self.partial_successes.hear(self.spans.export(spans));
        let result = match tokio::time::timeout(self.timeout, export).await {
            Ok((Ok(()), rejected)) => {
                on_the_way.arrived(rejected.spans);
                if rejected.spans == 0 { Ok(()) } else { Err(rejected.to_string()) }
            }
            Ok((Err(error), _)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {}", humantime::format_duration(self.timeout))),
        };
        match result {
            Ok(()) => {
                if self.outage.succeeded() {
                    info!("Traces are exported to {} again", self.endpoint);
                }
            }
            Err(why) => {
                if self.outage.failed(Instant::now()) {
                    let why: String = why.chars().take(200).flat_map(char::escape_debug).collect(); // it may be the collector's text
                    warn!(
                        "Traces cannot be exported to {}: {why}. Messages are not affected; lost spans are counted",
                        self.endpoint
                    );
                }
            }
        }
    }
}

async fn wait_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}
