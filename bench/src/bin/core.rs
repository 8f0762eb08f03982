//! The core alone: nanoseconds for one message that is accepted, handed over and acked, while so many others are outstanding.
//!
//! It prints one line of JSON for each number of outstanding messages.

use std::hint::black_box;
use std::time::{Duration, Instant};

use ackstream_core::{Attachment, Event, MessageId, Observer, Policy, Subscription, Time, Window};
use clap::Parser;

/// Measures the core's transitions.
#[derive(Parser)]
struct Options {
    /// How many messages are outstanding.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000,100000,1000000,10000000")]
    outstanding: Vec<u64>,
    /// Messages that come and go while that is measured.
    #[arg(long, default_value_t = 1_000_000)]
    messages: u64,
}

struct Nobody;

impl<M> Observer<M> for Nobody {
    fn observe(&mut self, event: &Event<'_, M>) {
        black_box(event);
    }
}

fn main() {
    let options = Options::parse();
    for &outstanding in &options.outstanding {
        let policy = Policy { max_backlog_messages: u64::MAX, max_backlog_bytes: u64::MAX, ..Policy::default() };
        let policy = Policy { ack_deadline: Duration::from_secs(600), ..policy };
        let mut subscription = Subscription::new(policy, Nobody);
        let window = Window { max_messages: u32::MAX, max_bytes: u64::MAX };
        let consumer = subscription.attach(Attachment { window, auto_ack: false, handlers: 0 }, Time::ZERO);
        let (mut accept, mut deliver, mut ack) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        let mut now = 1;
        let mut at = || {
            now += 100;
            Time::from_nanos(now)
        };
        // In groups, so that the clock costs next to nothing.
        const GROUP: u64 = 100;
        for first in (1..=outstanding + options.messages).step_by(GROUP as usize) {
            let ids = first..first + GROUP;
            let began = Instant::now();
            for id in ids.clone() {
                let now = at();
                subscription.check_room(128, now).expect("there is room");
                subscription.enqueue(MessageId(id), (), 128, now);
            }
            let accepted = Instant::now();
            for _ in ids.clone() {
                black_box(subscription.next_delivery(consumer, at())).expect("one is ready");
            }
            let delivered = Instant::now();
            if first > outstanding {
                accept += accepted - began;
                deliver += delivered - accepted;
                for id in ids {
                    subscription.ack(MessageId(id - outstanding), None, at());
                }
                ack += delivered.elapsed();
            }
        }
        let each = |time: Duration| time.as_nanos() as f64 / options.messages as f64;
        println!(
            "{}",
            serde_json::json!({
                "outstanding": outstanding, "accept_ns": each(accept), "deliver_ns": each(deliver), "ack_ns": each(ack),
            })
        );
    }
}
