//! A scrape: takes each subscription's lock once, for a copy of its counts, and shows what it found.

use std::sync::{Arc, Mutex};

use super::calls::Calls;
use super::connection_counts::ConnectionCounts;
use super::exposition::{Exposition, Snapshot};
use super::trace_counts::TraceCounts;
use crate::broker::Broker;
use crate::subscription::Subscription;

/// The metrics of a server.
pub struct Metrics {
    broker: Arc<Broker>,
    calls: Arc<Calls>,
    traces: Arc<TraceCounts>,
    connections: Arc<ConnectionCounts>,
    /// One scrape at a time: the series hold the values of one of them.
    exposition: Mutex<Exposition>,
}

impl Metrics {
    /// The metrics of these topics, calls and connections, and of what tracing counts.
    pub fn new(
        broker: Arc<Broker>,
        calls: Arc<Calls>,
        traces: Arc<TraceCounts>,
        connections: Arc<ConnectionCounts>,
    ) -> Self {
        let policies: Vec<_> = broker
            .subscriptions()
            .map(|(topic, subscription)| (topic.name(), subscription.name(), subscription.lock().policy().clone()))
            .collect();
        let subscriptions = policies.iter().map(|(topic, subscription, policy)| (*topic, *subscription, policy));
        let exposition = Exposition::new(broker.topics().map(|topic| topic.name()), subscriptions, &calls);
        Self { broker, calls, traces, connections, exposition: Mutex::new(exposition) }
    }

    /// What tracing counts of itself.
    pub const fn traces(&self) -> &Arc<TraceCounts> {
        &self.traces
    }

    /// All metrics at this moment, in the text format of Prometheus. Both laws hold in it for each subscription. Reads files of the
    /// system, which take time: not for an async task.
    pub fn scrape(&self) -> String {
        let mut exposition = self.exposition.lock().expect("a panic ends the process");
        let snapshots: Vec<_> = self.broker.subscriptions().map(|(_, subscription)| snapshot(subscription)).collect();
        let rejections: Vec<_> = self.broker.topics().map(|topic| topic.rejections()).collect();
        exposition.render(&rejections, &snapshots, &self.calls, &self.traces, &self.connections)
    }
}

fn snapshot(subscription: &Subscription) -> Snapshot {
    let mut locked = subscription.lock();
    let consumers = locked.consumer_counts();
    let oldest = locked.oldest_accepted_at();
    let (counts, backlog, tally) = (locked.counts(), locked.backlog(), locked.observer().tally().clone());
    Snapshot { counts, backlog, tally, oldest, consumers }
}
