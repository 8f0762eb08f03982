//! What a clean message that is not sampled costs more with tracing on than with tracing off: publish, hand-over with its trace
//! context, and ack, through the shell's own subscription. `cargo bench --bench unsampled` prints nanoseconds a message; the goal is
//! at most 30. Both ways take turns in short rounds, and the fastest tenth of each is compared: the rounds that nobody else on the
//! machine disturbed.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ackstream::clock::Clock;
use ackstream::message::Message;
use ackstream::subscription::Subscription;
use ackstream::telemetry::{Exporter, LineLimits, Lines, Sampler, TraceCounts, TraceSettings, Traces, Watch};
use ackstream_core::{Attachment, ConsumerId, MessageId, Policy, Window};

/// Messages in a round.
const MESSAGES: u64 = 2_000;
const ROUNDS: usize = 2_001;

struct Bench {
    subscription: Subscription,
    consumer: ConsumerId,
    next: u64,
}

impl Bench {
    fn new(traces: Option<Traces>) -> Self {
        let name = || "demo".to_owned();
        let limits = LineLimits { per_second: 0, summary_interval: Duration::from_secs(1) };
        let watch = Watch::new(Lines::new(name(), name(), None, limits), None).with_traces(traces);
        let policy = Policy { ack_deadline: Duration::from_hours(1), ..Policy::default() };
        let subscription = Subscription::new(name(), &policy, None, watch, Clock::start());
        let mut locked = subscription.lock();
        let (window, now) = (Window { max_messages: 1_000, max_bytes: u64::MAX }, locked.now);
        let consumer = locked.attach(Attachment { window, auto_ack: false, handlers: 0 }, now);
        drop(locked);
        Self { subscription, consumer, next: 1 }
    }

    /// Nanoseconds a message.
    #[expect(clippy::cast_precision_loss, reason = "it is a figure for people")]
    fn round(&mut self, message: &Message) -> f64 {
        let start = Instant::now();
        for _ in 0..MESSAGES {
            let id = MessageId(self.next);
            self.next += 1;
            let mut locked = self.subscription.lock();
            let now = locked.now;
            locked.enqueue(id, message.clone(), 1, now);
            let delivery = locked.next_delivery(self.consumer, now).expect("a message is ready");
            let sampled = locked.observer().last_sampled();
            drop(locked);
            let context = self.subscription.contexts().map_or_else(String::new, |contexts| {
                contexts.traceparent(delivery.id, delivery.attempt, &delivery.body, sampled)
            });
            drop(black_box(context));
            let mut locked = self.subscription.lock();
            let now = locked.now;
            locked.ack(id, None, now);
        }
        start.elapsed().as_nanos() as f64 / MESSAGES as f64
    }
}

/// The slowest of the fastest tenth.
fn undisturbed(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 10]
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let settings = TraceSettings {
        endpoint: "http://127.0.0.1:9".to_owned(), // nothing is sampled, so nothing is sent
        timeout: Duration::from_secs(1),
        compressed: false,
        sampler: Sampler::new(0.0, true),
        resource: std::collections::BTreeMap::new(),
    };
    let counts = Arc::new(TraceCounts::default());
    let exporter = Exporter::start(&settings, 100, counts).expect("the system has random numbers");
    let message = Message::new(b"", &std::collections::BTreeMap::new());
    let mut off = Bench::new(None);
    let mut on = Bench::new(Some(Traces::new(exporter.tracing().clone(), "demo", 7, "demo")));
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (one, other) = (off.round(&message), on.round(&message));
        if round > 0 {
            without.push(one); // the first one warms up
            with.push(other);
        }
    }
    let (without, with) = (undisturbed(without), undisturbed(with));
    println!("tracing off:              {without:6.1} ns a message");
    println!("tracing on, not sampled:  {with:6.1} ns a message");
    println!("more:                     {:6.1} ns a message (goal: at most 30)", with - without);
}
