//! A server: its topics, their drivers, and the gRPC services on them. It knows no socket; connections are brought to it.

use std::sync::Arc;
use std::time::Duration;

use ackstream_core::{Backlog, Counts, DropReason, Ended, Policy};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tracing::info;

use crate::broker::{Broker, Topic};
use crate::clock::Clock;
use crate::endpoint::Endpoint;
use crate::exchange::{DEFAULT_NAME, Ending, Exchange, StreamLimits};
use crate::proto::message_stream_server::MessageStreamServer;
use crate::services;
use crate::subscription::Subscription;
use crate::telemetry::{
    Calls, CountedRoutes, Exporter, LineLimits, Lines, Metrics, Progress, TraceCounts, TraceSettings, Traces, Watch,
};

/// A frame may be larger than a message by so much: batches of publishes come in one.
const FRAME_OVER_MESSAGE: u64 = 4 << 20;

/// How often a draining server looks whether it is done.
const DRAIN_CHECK_EVERY: Duration = Duration::from_millis(10);

/// Between the first word that a server stops and the end of its streams lies at least so much, so that whoever balances load by its
/// health has sent its clients elsewhere.
const NOTICE: Duration = Duration::from_millis(250);

/// What a server is made of.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What its subscription does with its messages.
    pub policy: Policy,
    /// The largest message that it takes, in bytes of payload and attributes.
    pub max_message_bytes: u64,
    /// What its streams may ask for.
    pub limits: StreamLimits,
    /// How many log lines there may be about single messages of one subscription.
    pub log_lines: LineLimits,
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
    routes: CountedRoutes,
    ending: watch::Sender<Option<Ending>>,
    health: HealthReporter,
    /// Whose health can be asked for: every service, and by the empty name the server.
    health_names: Vec<String>,
    endpoint: Endpoint,
    exporter: Option<Exporter>,
    trace_counts: Arc<TraceCounts>,
    /// Stopped with the server.
    _drivers: JoinSet<()>,
}

impl Server {
    /// Starts a server with the topic `demo` and its subscription `demo`. Its health is `NOT_SERVING` until it is told that it
    /// [serves](Self::serving).
    ///
    /// # Errors
    ///
    /// Where the system has no random numbers.
    pub async fn start(settings: &Settings) -> Result<Self, getrandom::Error> {
        let clock = Clock::start();
        let progress = Arc::new(Progress::default());
        let name = || DEFAULT_NAME.to_owned();
        let lines = Lines::new(name(), name(), settings.demo_count, settings.log_lines);
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
        let routes = services::reflection().add_service(exchange).add_service(health_service).prepare();
        let calls = Arc::new(Calls::default());
        let metrics = Metrics::new(Arc::clone(&broker), Arc::clone(&calls), Arc::clone(&trace_counts));
        let routes = CountedRoutes::new(routes, calls);
        let endpoint = Endpoint::new(metrics);
        let health_names = std::iter::once(String::new()).chain(services::names()).collect();
        let server = Self {
            broker,
            progress,
            routes,
            ending,
            health,
            health_names,
            endpoint,
            exporter,
            trace_counts,
            _drivers: drivers,
        };
        server.set_health(ServingStatus::NotServing).await;
        Ok(server)
    }

    /// The gRPC services, for one connection.
    pub fn routes(&self) -> CountedRoutes {
        self.routes.clone()
    }

    /// What answers to HTTP: the metrics, and whether the server is ready.
    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The topics.
    pub const fn broker(&self) -> &Arc<Broker> {
        &self.broker
    }

    /// How the generator's messages fare.
    pub const fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// The port is open: from here on the server's health is `SERVING`.
    pub async fn serving(&self) {
        self.set_health(ServingStatus::Serving).await;
    }

    /// Says first that it is `NOT_SERVING`, then accepts and delivers nothing new, and waits until what is outstanding is settled, at
    /// most `timeout`. Says whether it was. Takes at least 250 ms, so that the streams end no sooner.
    pub async fn drain(&self, timeout: Duration) -> bool {
        self.set_health(ServingStatus::NotServing).await;
        let noticed = Instant::now() + NOTICE;
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
        let in_time = tokio::time::timeout(timeout, drained).await.is_ok();
        tokio::time::sleep_until(noticed).await;
        in_time
    }

    /// Ends all streams, open and to come. Their consumers leave cleanly. Whoever watches the health sees `NOT_SERVING` and the end.
    pub async fn end_streams(&self, ending: Ending) {
        if self.endpoint.is_ready() {
            self.set_health(ServingStatus::NotServing).await;
        }
        self.ending.send_replace(Some(ending));
        let mut health = self.health.clone();
        for service in &self.health_names {
            health.clear_service_status(service).await;
        }
    }

    async fn set_health(&self, status: ServingStatus) {
        self.endpoint.set_ready(status == ServingStatus::Serving);
        for service in &self.health_names {
            self.health.set_service_status(service, status).await;
        }
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
            let mut locked = subscription.lock();
            locked.observer_mut().lines_mut().say_what_was_left_out();
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
                tally.retried_in_all(),
                tally.late_acks(),
                tally.ignored_in_all()
            );
            if dropped > 0 {
                let reason = |reason| tally.dropped(reason);
                info!(
                    "  dropped:    {} because no retry was left, {} because a consumer rejected them",
                    reason(DropReason::MaxRetries),
                    reason(DropReason::Rejected)
                );
            }
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
