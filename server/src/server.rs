//! A server: its topics, their drivers, and the gRPC services on them. It knows no socket; connections are brought to it.

use std::sync::Arc;
use std::time::Duration;

use ackstream_core::{Backlog, Counts, Ended, Policy};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::service::Routes;
use tracing::info;

use crate::broker::{Broker, Topic};
use crate::clock::Clock;
use crate::exchange::{DEFAULT_NAME, Ending, Exchange, StreamLimits};
use crate::proto::FILE_DESCRIPTOR_SET;
use crate::proto::message_stream_server::MessageStreamServer;
use crate::subscription::Subscription;
use crate::telemetry::{Exporter, Lines, Progress, TraceCounts, TraceSettings, Traces, Watch};

/// A frame may be larger than a message by so much: batches of publishes come in one.
const FRAME_OVER_MESSAGE: u64 = 4 << 20;

/// How often a draining server looks whether it is done.
const DRAIN_CHECK_EVERY: Duration = Duration::from_millis(10);

/// What a server is made of.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What its subscription does with its messages.
    pub policy: Policy,
    /// The largest message that it takes, in bytes of payload and attributes.
    pub max_message_bytes: u64,
    /// What its streams may ask for.
    pub limits: StreamLimits,
    /// At most so many log lines a second about single messages of one subscription.
    pub log_lines_per_second: u32,
    /// How to trace messages; `None` = not at all.
    pub traces: Option<TraceSettings>,
    /// At most so many traces a second of each kind: clean, retried and dropped messages.
    pub traces_per_second: u32,
    /// How many messages the demo's generator will send, where there is one with an end; the log says "1/5".
    pub demo_count: Option<u64>,
}

/// A running server.
pub struct Server {
    broker: Arc<Broker>,
    progress: Arc<Progress>,
    routes: Routes,
    ending: watch::Sender<Option<Ending>>,
    health: tonic_health::server::HealthReporter,
    exporter: Option<Exporter>,
    trace_counts: Arc<TraceCounts>,
    /// Stopped with the server.
    _drivers: JoinSet<()>,
}

impl Server {
    /// Starts a server with the topic `demo` and its subscription `demo`.
    ///
    /// # Errors
    ///
    /// Where the system has no random numbers.
    pub async fn start(settings: &Settings) -> Result<Self, getrandom::Error> {
        let clock = Clock::start();
        let progress = Arc::new(Progress::default());
        let name = || DEFAULT_NAME.to_owned();
        let lines = Lines::new(name(), name(), settings.demo_count, settings.log_lines_per_second);
        let epoch = getrandom::u64()?;
        let trace_counts = Arc::new(TraceCounts::default());
        let exporter = settings
            .traces
            .as_ref()
            .map(|traces| Exporter::start(traces, settings.traces_per_second, Arc::clone(&trace_counts)))
            .transpose()?;
        let traces = exporter
            .as_ref()
            .map(|exporter| Traces::new(exporter.tracing().clone(), DEFAULT_NAME, epoch, DEFAULT_NAME));
        let watch = Watch::new(lines, Some(Arc::clone(&progress))).with_traces(traces);
        let subscription = Arc::new(Subscription::new(name(), settings.policy.clone(), watch, clock));
        let topic = Topic::new(name(), epoch, settings.max_message_bytes, vec![subscription]);
        let broker = Arc::new(Broker::new([topic]));

        let mut drivers = JoinSet::new();
        for (_, subscription) in broker.subscriptions() {
            let subscription = Arc::clone(subscription);
            drivers.spawn(async move { subscription.drive().await });
        }
        let (ending, ended) = watch::channel(None);
        let exchange = Exchange::new(Arc::clone(&broker), clock, settings.limits, ended);
        let max_frame = usize::try_from(settings.max_message_bytes + FRAME_OVER_MESSAGE).unwrap_or(usize::MAX);
        let exchange = MessageStreamServer::new(exchange).max_decoding_message_size(max_frame);
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<MessageStreamServer<Exchange>>().await;
        let routes = reflection().add_service(exchange).add_service(health_service).prepare();
        Ok(Self { broker, progress, routes, ending, health, exporter, trace_counts, _drivers: drivers })
    }

    /// The gRPC services, for one connection.
    pub fn routes(&self) -> Routes {
        self.routes.clone()
    }

    /// The topics.
    pub const fn broker(&self) -> &Arc<Broker> {
        &self.broker
    }

    /// How the generator's messages fare.
    pub const fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Accepts and delivers nothing new, and waits until what is outstanding is settled, at most `timeout`. Says whether it was.
    pub async fn drain(&self, timeout: Duration) -> bool {
        self.health.set_not_serving::<MessageStreamServer<Exchange>>().await;
        self.health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
        for (_, subscription) in self.broker.subscriptions() {
            let mut locked = subscription.lock();
            let now = locked.now;
            locked.drain(now);
        }
        let drained = async {
            while !self.broker.subscriptions().all(|(_, subscription)| subscription.lock().is_drained()) {
                tokio::time::sleep(DRAIN_CHECK_EVERY).await;
            }
        };
        tokio::time::timeout(timeout, drained).await.is_ok()
    }

    /// Ends all streams, open and to come. Their consumers leave cleanly.
    pub fn end_streams(&self, ending: Ending) {
        self.ending.send_replace(Some(ending));
    }

    /// What became of traces, besides those that were exported.
    pub const fn trace_counts(&self) -> &Arc<TraceCounts> {
        &self.trace_counts
    }

    /// Exports the traces that wait, for `within` at most. To be called once the streams have ended: what comes later is lost.
    pub async fn flush_traces(&self, within: Duration) {
        if let Some(exporter) = &self.exporter {
            exporter.flush(within).await;
        }
    }

    /// Says what became of all messages: both laws, with their numbers.
    pub fn say_summary(&self) {
        for (topic, subscription) in self.broker.subscriptions() {
            let locked = subscription.lock();
            locked.observer().lines().say_what_was_left_out();
            let (counts, backlog, tally) = (locked.counts(), locked.backlog(), locked.observer().tally().clone());
            drop(locked);
            let Counts { published, acked, dropped, sent, ended } = counts;
            let Ended { acked: in_time, nacked, expired, released } = ended;
            let Backlog { ready, delayed, outstanding } = backlog;
            let left = backlog.messages();
            info!("Summary of topic {}, subscription {}:", topic.name(), subscription.name());
            info!(
                "  messages:   {published} published = {acked} acked + {dropped} dropped + {ready} ready + {delayed} delayed \
                 + {outstanding} outstanding"
            );
            info!(
                "  deliveries: {sent} sent = {in_time} acked + {nacked} nacked + {expired} expired + {released} released \
                 + {outstanding} outstanding"
            );
            info!(
                "  retries: {}, late ACKs: {}, ignored ACKs, NACKs and extends: {}",
                tally.retried,
                tally.late_acks,
                tally.ignored_in_all()
            );
            if left > 0 {
                info!("  not acked, and gone with this server: {left}");
            }
        }
        let counts = &self.trace_counts;
        if counts.spans_dropped() > 0 {
            info!(
                "Spans that were not exported: {} = {} export_failed + {} queue_full + {} rate_limited",
                counts.spans_dropped(),
                counts.export_failed(),
                counts.queue_full(),
                counts.rate_limited()
            );
        }
    }
}

/// Why the descriptors can be read.
const MADE_BY_BUILD: &str = "the descriptors were made by the build";

/// Reflection, as of v1 and v1alpha, of all services.
fn reflection() -> Routes {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Routes::new(builder().build_v1().expect(MADE_BY_BUILD)).add_service(builder().build_v1alpha().expect(MADE_BY_BUILD))
}
