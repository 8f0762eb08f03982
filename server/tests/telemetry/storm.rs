//! Both laws in every scrape, whatever happens at the same time. In real time: the point is that it happens at once.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ackstream::exchange::Ending;
use ackstream::proto::stream_message::Kind;
use ackstream::proto::{AckMessage, DataBatch, DataMessage, Extend, Nack, Open};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::page::Page;
use crate::support::{Conversation, Memory};

const STORM: Duration = Duration::from_secs(10);
/// A server can be drained once: so many of them follow each other.
const SERVERS: u32 = 5;
const CONSUMERS: u64 = 6;
const PUBLISHERS: usize = 2;
/// Publishes between two looks at the answers.
const BATCH: u64 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_laws_hold_in_every_scrape_of_a_storm_of_drops_nacks_kills_and_drains() {
    let mut looks = 0;
    let mut last = Vec::new();
    for _ in 0..SERVERS {
        let memory = Arc::new(
            Memory::with(|settings| {
                settings.policy.ack_deadline = Duration::from_millis(20);
                settings.policy.max_retries = Some(2);
                settings.policy.max_backlog_messages = 2_000;
            })
            .await,
        );
        let over = Arc::new(AtomicBool::new(false));
        let scrapers = [(); 2].map(|()| {
            let (memory, over) = (Arc::clone(&memory), Arc::clone(&over));
            tokio::task::spawn_blocking(move || scrape_until(&over, &memory))
        });

        let end = Instant::now() + STORM / SERVERS;
        let mut load = JoinSet::new();
        for seed in 0..CONSUMERS {
            load.spawn(consume(Arc::clone(&memory), seed));
        }
        for _ in 0..PUBLISHERS {
            load.spawn(publish(Arc::clone(&memory)));
        }
        sleep_until(end).await;
        memory.server.drain(Duration::from_millis(100)).await;
        memory.server.end_streams(Ending::Stopping).await;
        load.shutdown().await;

        over.store(true, Ordering::Release);
        for scraper in scrapers {
            let (count, page) = scraper.await.unwrap();
            looks += count;
            last.push(page);
        }
    }
    assert!(looks > 100, "the laws were looked at {looks} times");
    println!("{looks} scrapes");
    // It was a storm of everything.
    let seen = |name: &str, labels: &str| {
        let sum: u64 = last.iter().map(|page| page.sum(name, labels)).sum();
        assert!(sum > 0, "{name} {labels}");
        println!("{name} {labels}: {}", sum / 2);
    };
    for outcome in ["acked", "nacked", "expired", "interrupted", "released"] {
        seen("ackstream_deliveries_ended_total", outcome);
    }
    for reason in ["max_retries", "rejected"] {
        seen("ackstream_messages_dropped_total", reason);
    }
    for reason in ["expired", "nacked"] {
        seen("ackstream_messages_retried_total", reason);
    }
    seen("ackstream_late_acks_total", "");
    seen("ackstream_messages_rejected_total", "draining");
    seen("ackstream_streams_closed_total", "CANCELLED");
    seen("ackstream_streams_closed_total", "UNAVAILABLE");
}

/// Looks until it is over, and once more. Returns how often, and what it saw last.
fn scrape_until(over: &AtomicBool, memory: &Memory) -> (u64, Page) {
    let mut scrapes = 0;
    loop {
        let last = over.load(Ordering::Acquire);
        let page = Page::parse(&memory.server.endpoint().metrics().scrape());
        page.assert_laws();
        scrapes += 1;
        if last {
            return (scrapes, page);
        }
    }
}

async fn publish(memory: Arc<Memory>) {
    let mut stream = memory.consume(Open { publish_only: true, ..Open::default() }).await;
    for first in (0..).step_by(usize::try_from(BATCH).unwrap()) {
        let messages = (first..first + BATCH)
            .map(|id| DataMessage { id, payload: "storm".into(), ..DataMessage::default() })
            .collect();
        if !stream.try_send(Kind::DataBatch(DataBatch { messages })).await {
            return;
        }
        for _ in 0..BATCH {
            if stream.next().await.is_err() {
                return;
            }
        }
    }
}

/// Opens one stream after the other, and does to each message what chance says.
async fn consume(memory: Arc<Memory>, seed: u64) {
    for life in 0.. {
        let open = Open {
            max_outstanding_messages: 50,
            auto_ack: chance(&[seed, life]).is_multiple_of(10),
            ..Open::default()
        };
        let mut stream = memory.open(open).await;
        loop {
            match stream.next().await {
                Ok(Some(Kind::Data(data))) => match chance(&[seed, life, data.id]) % 100 {
                    0 => break,               // killed
                    1 => stream.half_close(), // its end follows
                    2..100 if stream.is_half_closed() => {}
                    dice => act(&mut stream, &data, dice).await,
                },
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return, // the server stops
            }
        }
    }
}

async fn act(stream: &mut Conversation, data: &DataMessage, dice: u64) {
    let ack_id = data.id;
    let kind = match dice {
        ..40 => Kind::Ack(AckMessage { ack_id, ..AckMessage::default() }),
        40..50 => Kind::Nack(Nack { ack_id, delay: Some(prost_types::Duration::default()), ..Nack::default() }),
        50..60 => Kind::Nack(Nack { ack_id, ..Nack::default() }),
        60..70 => Kind::Nack(Nack { ack_id, drop: true, ..Nack::default() }),
        70..75 => Kind::Extend(Extend { ack_id, ..Extend::default() }),
        // An ack of an older message: late where it has expired, ignored where it is settled.
        75..85 => Kind::Ack(AckMessage { ack_id: ack_id.saturating_sub(60), ..AckMessage::default() }),
        _ => return, // dropped silently
    };
    let _ = stream.try_send(kind).await; // how the stream ended is read next
}

fn chance(of: &[u64]) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}
