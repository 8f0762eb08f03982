//! A server: its topics, their drivers, and the gRPC services on them. It knows no socket; connections are brought to it.

use std::collections::BTreeMap;
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
use crate::connection::{ConnectionLimits, Connections};
use crate::dead_letters::DeadLetters;
use crate::endpoint::Endpoint;
use crate::exchange::{BatchingAcks, DEFAULT_NAME, Ending, Exchange, StreamLimits};
use crate::proto::message_stream_server::MessageStreamServer;
use crate::requests::BoundedRoutes;
use crate::security::{Guard, Security};
use crate::services;
use crate::subscription::Subscription;
use crate::telemetry::{
    Calls, ConnectionCounts, CountedRoutes, Exporter, LineLimits, Lines, Metrics, Progress, TraceCounts, TraceSettings,
    Traces, Watch,
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
    /// What the subscription `demo` does with its messages, where no topics are given.
    pub policy: Policy,
    /// Its topics; none = `demo` with its subscription `demo`. The dead-letter topics of their subscriptions are among them, and lead
    /// to one another without a circle.
    pub topics: Vec<TopicSettings>,
    /// The largest message that it takes, in bytes of payload and attributes.
    pub max_message_bytes: u64,
    /// What its streams may ask for.
    pub limits: StreamLimits,
    /// What connections may do.
    pub connections: ConnectionLimits,
    /// Who may do what.
    pub security: Arc<Security>,
    /// How many log lines there may be about single messages of one subscription.
    pub log_lines: LineLimits,
    /// How to trace messages; `None` = not at all.
    pub traces: Option<TraceSettings>,
    /// At most so many traces a second of each kind: clean, retried and dropped messages.
    pub traces_per_second: u32,
    /// How many messages the demo's generator will send, where there is one with an end; the log says "1/5".
    pub demo_count: Option<u64>,
}

/// A topic of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSettings {
    /// Its name.
    pub name: String,
    /// Its subscriptions.
    pub subscriptions: Vec<SubscriptionSettings>,
}

/// A subscription of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionSettings {
    /// Its name, unique on a server.
    pub name: String,
    /// What it does with its messages.
    pub policy: Policy,
    /// Where what it gives up is published; `None` = it is discarded.
    pub dead_letter_topic: Option<String>,
}

impl Settings {
    /// The topics that a server has.
    pub fn topics(&self) -> Vec<TopicSettings> {
        if !self.topics.is_empty() {
            return self.topics.clone();
        }
        let demo = SubscriptionSettings {
            name: DEFAULT_NAME.to_owned(),
            policy: self.policy.clone(),
            dead_letter_topic: None,
        };
        vec![TopicSettings { name: DEFAULT_NAME.to_owned(), subscriptions: vec![demo] }]
    }
}

/// A running server.
pub struct Server {
    broker: Arc<Broker>,
    progress: Arc<Progress>,
    connections: Connections,
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
    /// Starts a server with its topics. Its health is `NOT_SERVING` until it is told that it [serves](Self::serving).
    ///
    /// # Errors
    ///
    /// Where the system has no random numbers.
    ///
    /// # Panics
    ///
    /// Where a dead-letter topic is missing, or leads back to where it came from: the configuration refuses that.
    pub async fn start(settings: &Settings) -> Result<Self, getrandom::Error> {
        let clock = Clock::start();
        let progress = Arc::new(Progress::default());
        let trace_counts = Arc::new(TraceCounts::default());
        let exporter = settings
            .traces
            .as_ref()
            .map(|traces| Exporter::start(traces, settings.traces_per_second, Arc::clone(&trace_counts)))
            .transpose()?;
        let subscriptions = settings.topics().iter().map(|topic| topic.subscriptions.len()).sum();
        let foundation =
            Foundation { settings, clock, progress: &progress, exporter: exporter.as_ref(), subscriptions };
        let broker = Arc::new(foundation.broker()?);

        let mut drivers = JoinSet::new();
        for (_, subscription) in broker.subscriptions() {
            let subscription = Arc::clone(subscription);
            drivers.spawn(async move { subscription.drive().await });
        }
        let security = Arc::clone(&settings.security);
        drivers.spawn(async move { security.keep_current().await });
        let (ending, ended) = watch::channel(None);
        let exchange = Exchange::new(Arc::clone(&broker), clock, settings.limits, ended);
        let max_frame = usize::try_from(settings.max_message_bytes + FRAME_OVER_MESSAGE).unwrap_or(usize::MAX);
        let exchange = BatchingAcks(MessageStreamServer::new(exchange).max_decoding_message_size(max_frame));
        let (health, health_service) = services::health();
        let routes = services::reflection().add_service(exchange).add_service(health_service).prepare();
        let routes = BoundedRoutes::new(routes, settings.limits.max_streams);
        let calls = Arc::new(Calls::default());
        let counts = Arc::new(ConnectionCounts::default());
        let metrics =
            Metrics::new(Arc::clone(&broker), Arc::clone(&calls), Arc::clone(&trace_counts), Arc::clone(&counts));
        let guard = Guard::new(Arc::clone(&settings.security));
        let routes = CountedRoutes::new(routes, guard, calls);
        let connections = Connections::new(routes, settings.connections, counts, Arc::clone(&settings.security));
        let endpoint = Endpoint::new(metrics);
        let health_names = std::iter::once(String::new()).chain(services::names()).collect();
        let server = Self {
            broker,
            progress,
            connections,
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

    /// What serves connections.
    pub const fn connections(&self) -> &Connections {
        &self.connections
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
            let Ended { acked: in_time, nacked, expired, interrupted, released } = ended;
            let Backlog { ready, delayed, outstanding } = backlog;
            let left = backlog.messages();
            info!("Summary of topic {}, subscription {}:", topic.name(), subscription.name());
            info!(
                "  messages:   {published} published = {acked} acked + {dropped} dropped + {ready} ready + {delayed} delayed \
                 + {outstanding} outstanding"
            );
            info!(
                "  deliveries: {sent} sent = {in_time} acked + {nacked} nacked + {expired} expired + {interrupted} interrupted \
                 + {released} released + {outstanding} outstanding"
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
                    "  dropped:    {} because no retry was left, {} because a consumer rejected them, {} because consumers' streams \
                     broke too often",
                    reason(DropReason::MaxRetries),
                    reason(DropReason::Rejected),
                    reason(DropReason::MaxInterruptions)
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

/// What topics are built on.
struct Foundation<'a> {
    settings: &'a Settings,
    clock: Clock,
    /// The progress of the demo's messages.
    progress: &'a Arc<Progress>,
    exporter: Option<&'a Exporter>,
    /// How many subscriptions there are.
    subscriptions: usize,
}

impl Foundation<'_> {
    /// All topics: each after those that its dead letters go to.
    fn broker(&self) -> Result<Broker, getrandom::Error> {
        let mut left = self.settings.topics();
        let mut built: BTreeMap<String, Arc<Topic>> = BTreeMap::new();
        while !left.is_empty() {
            let waits = |topic: &TopicSettings| {
                topic
                    .subscriptions
                    .iter()
                    .filter_map(|one| one.dead_letter_topic.as_ref())
                    .any(|to| !built.contains_key(to))
            };
            let (wait, ready): (Vec<_>, Vec<_>) = left.into_iter().partition(waits);
            assert!(!ready.is_empty(), "dead-letter topics exist, and none leads back");
            for topic in ready {
                built.insert(topic.name.clone(), Arc::new(self.topic(&topic, &built)?));
            }
            left = wait;
        }
        Ok(Broker::new(built.into_values()))
    }

    fn topic(&self, topic: &TopicSettings, built: &BTreeMap<String, Arc<Topic>>) -> Result<Topic, getrandom::Error> {
        let epoch = getrandom::u64()?;
        let subscriptions =
            topic.subscriptions.iter().map(|one| Arc::new(self.subscription(&topic.name, epoch, one, built)));
        Ok(Topic::new(topic.name.clone(), epoch, self.settings.max_message_bytes, subscriptions.collect()))
    }

    fn subscription(
        &self,
        topic: &str,
        epoch: u64,
        subscription: &SubscriptionSettings,
        built: &BTreeMap<String, Arc<Topic>>,
    ) -> Subscription {
        let SubscriptionSettings { name, policy, dead_letter_topic } = subscription;
        let (owned, is_demo) = (|name: &str| name.to_owned(), topic == DEFAULT_NAME);
        let count = self.settings.demo_count.filter(|_| is_demo);
        let lines = Lines::new(owned(topic), owned(name), count, self.settings.log_lines)
            .with_dead_letters(dead_letter_topic.clone());
        let lines = if self.subscriptions > 1 { lines.among_others() } else { lines };
        let progress = is_demo.then(|| Arc::clone(self.progress));
        let traces = self.exporter.map(|exporter| Traces::new(exporter.tracing().clone(), topic, epoch, name));
        let watch = Watch::new(lines, progress).with_traces(traces);
        let dead_letters =
            dead_letter_topic.as_ref().map(|to| DeadLetters::new(Arc::clone(&built[to]), owned(topic), owned(name)));
        Subscription::new(owned(name), policy, dead_letters, watch, self.clock)
    }
}
