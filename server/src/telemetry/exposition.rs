//! What is shown to Prometheus, as text. Series are registered when this is made, so that each is there from the first scrape on.

use std::fmt::Write as _;

use ackstream_core::{Backlog, ConsumerCounts, Counts, DropReason, Ended, IgnoreReason, Policy, Release, Time, Verb};
use metrics::{Counter, Gauge, Key, KeyName, Label, Level, Metadata, Recorder as _};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::calls::{CODES, Calls};
use super::catalogue::{self as names, Family};
use super::connection_counts::{ConnectionClosing, ConnectionCounts, ConnectionRefusal};
use super::tally::{RETRY_ATTEMPTS, Settled, Tally};
use super::trace_counts::TraceCounts;
use crate::broker::{RejectReason, Rejections};
use crate::proto::message_stream_server::SERVICE_NAME;

const NANOS: f64 = 1e9;
/// Where `Exchange` is among the methods.
const EXCHANGE: (&str, &str) = (SERVICE_NAME, "Exchange");

/// One subscription at one instant, as its lock gave it.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// What the laws are about.
    pub counts: Counts,
    /// Messages not yet settled.
    pub backlog: Backlog,
    /// What is counted besides.
    pub tally: Tally,
    /// When the oldest message not yet settled was accepted.
    pub oldest: Option<Time>,
    /// Consumers by what they do.
    pub consumers: ConsumerCounts,
}

/// All series, and the values that they were last given.
pub struct Exposition {
    page: PrometheusHandle,
    topics: Vec<Vec<(RejectReason, Counter)>>,
    subscriptions: Vec<Series>,
    streams_closed: Vec<Counter>,
    handled: Vec<Vec<Counter>>,
    traces: [Counter; 4],
    connections: Connections,
    process: Vec<(Gauge, OfProcess)>,
}

type Process = metrics_process::collector::Metrics;
type OfProcess = fn(&Process) -> Option<u64>;

/// The series of one subscription.
struct Series {
    /// The labels of all of them, rendered.
    labels: String,
    published: Counter,
    sent: Counter,
    retried: Vec<(usize, bool, Counter)>,
    acked: Counter,
    dropped: Vec<(DropReason, Counter)>,
    ended: [Counter; 5],
    released: [(Release, Counter); Release::ALL.len()],
    dead_letters: [(bool, Counter); 2],
    late_acks: Counter,
    ignored: Vec<(Verb, IgnoreReason, Counter)>,
    messages: [Gauge; 3],
    oldest: Gauge,
    consumers: [Gauge; 3],
}

/// Registers series.
struct Register(PrometheusRecorder);

type Labels<'a> = [(&'static str, &'a str)];

impl Register {
    fn counter(&self, family: &Family, labels: &Labels<'_>) -> Counter {
        self.0.describe_counter(KeyName::from(family.name), None, family.help.into());
        self.0.register_counter(&key(family, labels), &METADATA)
    }

    fn gauge(&self, family: &Family, labels: &Labels<'_>) -> Gauge {
        self.0.describe_gauge(KeyName::from(family.name), None, family.help.into());
        self.0.register_gauge(&key(family, labels), &METADATA)
    }
}

static METADATA: Metadata<'_> = Metadata::new("ackstream", Level::INFO, None);

fn key(family: &Family, labels: &Labels<'_>) -> Key {
    let labels: Vec<_> = labels.iter().map(|&(name, value)| Label::new(name, value.to_owned())).collect();
    Key::from_parts(family.name, labels)
}

impl Exposition {
    /// The series of these topics, of these subscriptions, each with its topic, and of all calls.
    pub fn new<'a>(
        topics: impl IntoIterator<Item = &'a str>,
        subscriptions: impl IntoIterator<Item = (&'a str, &'a str, &'a Policy)>,
        calls: &Calls,
    ) -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        let page = recorder.handle();
        let register = Register(recorder);
        let build: [(&str, &str); 3] = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("revision", env!("ACKSTREAM_REVISION")),
            ("rustc", env!("ACKSTREAM_RUSTC")),
        ];
        register.gauge(&names::BUILD_INFO, &build).set(1);
        let rejected = |topic| {
            let of = |reason: RejectReason| {
                (reason, register.counter(&names::REJECTED, &[("topic", topic), ("reason", reason.name())]))
            };
            RejectReason::ALL.map(of).into()
        };
        let spans_dropped = |reason| register.counter(&names::SPANS_DROPPED, &[("reason", reason)]);
        let process = |family, value: OfProcess| (register.gauge(family, &[]), value);
        Self {
            page,
            topics: topics.into_iter().map(rejected).collect(),
            subscriptions: subscriptions
                .into_iter()
                .map(|(topic, subscription, policy)| Series::new(&register, topic, subscription, policy))
                .collect(),
            streams_closed: CODES.map(|code| register.counter(&names::STREAMS_CLOSED, &[("grpc_code", code)])).into(),
            handled: handled(&register, calls),
            traces: [
                spans_dropped("queue_full"),
                spans_dropped("export_failed"),
                spans_dropped("rate_limited"),
                register.counter(&names::CONTEXTS_IGNORED, &[]),
            ],
            connections: Connections::new(&register),
            process: vec![
                process(&names::OPEN_FDS, |process| process.open_fds),
                process(&names::MAX_FDS, |process| process.max_fds),
                process(&names::VIRTUAL_MEMORY, |process| process.virtual_memory_bytes),
                // `None` is a limit that is not there.
                process(&names::VIRTUAL_MEMORY_MAX, |process| process.virtual_memory_max_bytes.or(Some(u64::MAX))),
                process(&names::RESIDENT_MEMORY, |process| process.resident_memory_bytes),
                process(&names::START_TIME, |process| process.start_time_seconds),
                process(&names::THREADS, |process| process.threads),
            ],
        }
    }

    /// All series with these values, as text. Topics and subscriptions are in the order in which they were registered.
    pub fn render(
        &mut self,
        topics: &[&Rejections],
        subscriptions: &[Snapshot],
        calls: &Calls,
        traces: &TraceCounts,
        connections: &ConnectionCounts,
    ) -> String {
        for (series, rejections) in self.topics.iter().zip(topics) {
            for (reason, counter) in series {
                counter.absolute(rejections.get(*reason));
            }
        }
        for (series, snapshot) in self.subscriptions.iter().zip(subscriptions) {
            series.set(snapshot);
        }
        for (series, method) in self.handled.iter().zip(calls.methods()) {
            let is_exchange = (method.method.service.as_str(), method.method.name.as_str()) == EXCHANGE;
            for (code, counter) in series.iter().enumerate() {
                counter.absolute(method.ended(code));
                if is_exchange {
                    self.streams_closed[code].absolute(method.ended(code));
                }
            }
        }
        for (counter, value) in self.traces.iter().zip(traces.values()) {
            counter.absolute(value);
        }
        self.connections.set(connections);
        let process = metrics_process::collector::collect();
        for (gauge, value) in &self.process {
            gauge.set(float(value(&process).unwrap_or_default()));
        }

        let mut text = self.page.render();
        self.append_histograms(&mut text, subscriptions, calls);
        // The exporter knows whole counts only.
        header(&mut text, &names::CPU_SECONDS, "counter");
        let _ = writeln!(text, "{} {}\n", names::CPU_SECONDS.name, process.cpu_seconds_total.unwrap_or_default());
        sorted(&text)
    }

    /// The exporter cannot be given a histogram, only its samples.
    fn append_histograms(&self, text: &mut String, subscriptions: &[Snapshot], calls: &Calls) {
        let of = || self.subscriptions.iter().map(|series| &series.labels).zip(subscriptions);
        header(text, &names::ACK_LATENCY, "histogram");
        for (labels, snapshot) in of() {
            snapshot.tally.ack_latency().render(text, names::ACK_LATENCY.name, labels, NANOS);
        }
        header(text, &names::SETTLE_LATENCY, "histogram");
        for (labels, snapshot) in of() {
            for (settled, outcome) in SETTLED {
                let labels = format!("{labels},outcome=\"{outcome}\"");
                snapshot.tally.settle_latency(settled).render(text, names::SETTLE_LATENCY.name, &labels, NANOS);
            }
        }
        header(text, &names::ATTEMPTS, "histogram");
        for (labels, snapshot) in of() {
            for (settled, outcome) in SETTLED {
                let labels = format!("{labels},outcome=\"{outcome}\"");
                snapshot.tally.attempts(settled).render(text, names::ATTEMPTS.name, &labels, 1.0);
            }
        }
        header(text, &names::HANDLING, "histogram");
        for calls in calls.methods().iter().filter(|calls| calls.method.is_unary()) {
            let (service, method) = (&calls.method.service, &calls.method.name);
            let labels = format!("grpc_type=\"unary\",grpc_service=\"{service}\",grpc_method=\"{method}\"");
            calls.handling().render(text, names::HANDLING.name, &labels, NANOS);
        }
        text.push('\n');
    }
}

/// The series of connections.
struct Connections {
    open: Gauge,
    refused: [(ConnectionRefusal, Counter); ConnectionRefusal::ALL.len()],
    closed: [(ConnectionClosing, Counter); ConnectionClosing::ALL.len()],
    stuck_consumers: Counter,
}

impl Connections {
    fn new(register: &Register) -> Self {
        let refused =
            |why: ConnectionRefusal| (why, register.counter(&names::CONNECTIONS_REFUSED, &[("reason", why.name())]));
        let closed =
            |why: ConnectionClosing| (why, register.counter(&names::CONNECTIONS_CLOSED, &[("reason", why.name())]));
        Self {
            open: register.gauge(&names::CONNECTIONS, &[]),
            refused: ConnectionRefusal::ALL.map(refused),
            closed: ConnectionClosing::ALL.map(closed),
            stuck_consumers: register.counter(&names::CONSUMERS_STUCK, &[]),
        }
    }

    fn set(&self, counts: &ConnectionCounts) {
        self.open.set(float(counts.open()));
        for (why, counter) in &self.refused {
            counter.absolute(counts.refused(*why));
        }
        for (why, counter) in &self.closed {
            counter.absolute(counts.closed(*why));
        }
        self.stuck_consumers.absolute(counts.stuck_consumers());
    }
}

impl Series {
    fn new(register: &Register, topic: &str, subscription: &str, policy: &Policy) -> Self {
        let own = [("topic", topic), ("subscription", subscription)];
        let counter = |family, more: &Labels<'_>| register.counter(family, &[&own[..], more].concat());
        let gauge = |family, more: &Labels<'_>| register.gauge(family, &[&own[..], more].concat());

        gauge(&names::ACK_DEADLINE, &[]).set(policy.ack_deadline);
        gauge(&names::MAX_RETRIES, &[]).set(policy.max_retries.map_or(f64::INFINITY, f64::from));
        gauge(&names::MAX_INTERRUPTIONS, &[]).set(policy.max_interruptions.map_or(f64::INFINITY, f64::from));
        for family in &names::RESERVED {
            counter(family, &[]).absolute(0);
        }
        let mut retried = Vec::new();
        for (retry, label) in (1..).zip(["1", "2", "3", "4", "5+"]) {
            for (nacked, reason) in [(false, "expired"), (true, "nacked")] {
                let labels = [("retry", label), ("reason", reason)];
                retried.push((retry, nacked, counter(&names::RETRIED, &labels)));
            }
        }
        assert_eq!(retried.len(), 2 * RETRY_ATTEMPTS, "each retry that is counted has its label");
        let mut ignored = Vec::new();
        for (verb, verb_name) in [(Verb::Ack, "ack"), (Verb::Nack, "nack"), (Verb::Extend, "extend")] {
            for reason in [IgnoreReason::Settled, IgnoreReason::Unknown, IgnoreReason::Stale, IgnoreReason::NotHeld] {
                let labels = [("verb", verb_name), ("reason", ignore_name(reason))];
                ignored.push((verb, reason, counter(&names::IGNORED, &labels)));
            }
        }
        Self {
            labels: own.map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).join(","),
            published: counter(&names::PUBLISHED, &[]),
            sent: counter(&names::SENT, &[]),
            retried,
            acked: counter(&names::ACKED, &[]),
            dropped: [DropReason::MaxRetries, DropReason::Rejected, DropReason::MaxInterruptions]
                .map(|reason| (reason, counter(&names::DROPPED, &[("reason", reason.name())])))
                .into(),
            ended: OUTCOMES.map(|outcome| counter(&names::ENDED, &[("outcome", outcome)])),
            released: Release::ALL.map(|reason| (reason, counter(&names::RELEASED, &[("reason", reason.name())]))),
            dead_letters: [(true, "published"), (false, "refused")]
                .map(|(taken, outcome)| (taken, counter(&names::DEAD_LETTERS, &[("outcome", outcome)]))),
            late_acks: counter(&names::LATE_ACKS, &[]),
            ignored,
            messages: ["ready", "delayed", "outstanding"].map(|state| gauge(&names::MESSAGES, &[("state", state)])),
            oldest: gauge(&names::OLDEST, &[]),
            consumers: ["waiting", "full", "unresponsive"].map(|state| gauge(&names::CONSUMERS, &[("state", state)])),
        }
    }

    fn set(&self, snapshot: &Snapshot) {
        let Snapshot { counts, backlog, tally, oldest, consumers } = snapshot;
        let Counts { published, acked, dropped: _, sent, ended } = *counts;
        let Ended { acked: in_time, nacked, expired, interrupted, released } = ended;
        self.published.absolute(published);
        self.sent.absolute(sent);
        self.acked.absolute(acked);
        for (counter, value) in self.ended.iter().zip([in_time, nacked, expired, interrupted, released]) {
            counter.absolute(value);
        }
        for (reason, counter) in &self.released {
            counter.absolute(tally.released(*reason));
        }
        for (retry, nacked, counter) in &self.retried {
            counter.absolute(tally.retried(*retry, *nacked));
        }
        for (reason, counter) in &self.dropped {
            counter.absolute(tally.dropped(*reason));
        }
        for (taken, counter) in &self.dead_letters {
            counter.absolute(tally.dead_letters(*taken));
        }
        self.late_acks.absolute(tally.late_acks());
        for (verb, reason, counter) in &self.ignored {
            counter.absolute(tally.ignored(*verb, *reason));
        }
        let Backlog { ready, delayed, outstanding } = *backlog;
        for (gauge, value) in self.messages.iter().zip([ready, delayed, outstanding]) {
            gauge.set(float(value));
        }
        self.oldest.set(oldest.map_or(0.0, |time| float(time.as_nanos()) / NANOS));
        let ConsumerCounts { waiting, full, unresponsive } = *consumers;
        for (gauge, value) in self.consumers.iter().zip([waiting, full, unresponsive]) {
            gauge.set(float(value as u64));
        }
    }
}

const SETTLED: [(Settled, &str); 2] = [(Settled::Acked, "acked"), (Settled::Dropped, "dropped")];
const OUTCOMES: [&str; 5] = ["acked", "nacked", "expired", "interrupted", "released"];

const fn ignore_name(reason: IgnoreReason) -> &'static str {
    match reason {
        IgnoreReason::Settled => "settled",
        IgnoreReason::Unknown => "unknown",
        IgnoreReason::Stale => "stale",
        IgnoreReason::NotHeld => "not_held",
    }
}

/// The counters of each method, one for each code.
fn handled(register: &Register, calls: &Calls) -> Vec<Vec<Counter>> {
    let of = |calls: &super::calls::MethodCalls| {
        let method = &calls.method;
        let kind = match (method.client_streams, method.server_streams) {
            (false, false) => "unary",
            (true, false) => "client_stream",
            (false, true) => "server_stream",
            (true, true) => "bidi_stream",
        };
        let counter = |code| {
            let labels = [
                ("grpc_type", kind),
                ("grpc_service", &method.service),
                ("grpc_method", &method.name),
                ("grpc_code", code),
            ];
            register.counter(&names::HANDLED, &labels)
        };
        CODES.map(counter).into()
    };
    calls.methods().iter().map(of).collect()
}

#[allow(clippy::cast_precision_loss, reason = "the format has 64-bit floats")]
const fn float(value: u64) -> f64 {
    value as f64
}

fn header(text: &mut String, family: &Family, kind: &str) {
    let Family { name, help } = family;
    // Writing to a string cannot fail. Families are told apart by an empty line.
    let _ = writeln!(text, "\n# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// A label's value, as the format writes it.
fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

/// Families in the order of their names and, where they are no histograms, series in the order of their labels: people read this, too,
/// and compare it.
fn sorted(text: &str) -> String {
    let mut families: Vec<_> = text.split("\n\n").map(str::trim).filter(|family| !family.is_empty()).collect();
    families.sort_unstable();
    let mut out = String::with_capacity(text.len());
    for family in families {
        let mut lines: Vec<_> = family.lines().collect();
        if !family.contains("_bucket{") {
            let head = lines.iter().take_while(|line| line.starts_with('#')).count();
            lines[head..].sort_unstable();
        }
        for line in lines {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}
