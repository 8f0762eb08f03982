//! The whole service under random clients: publishers and consumers that ack, nack, extend, say nonsense, hang, half-close and break off,
//! as a seed decides. Afterwards one honest consumer comes, and everything is settled.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use ackstream::proto::stream_message::Kind;
use ackstream::proto::{AckBatch, AckMessage, Extend, Nack, Open};
use ackstream_core::{Backoff, Policy};
use fastrand::Rng;
use tokio::runtime::Builder;

use crate::support::{Conversation, Memory, settle};

const SEEDS: u64 = 200;
const STEPS: usize = 150;
/// Streams that are open at the same time.
const MAX_STREAMS: usize = 6;

/// What one seed has done: messages, deliveries, streams that broke or were left.
type Story = (u64, u64, u64);

#[test]
fn two_hundred_seeds_of_everything_that_clients_do_keep_both_laws_and_lose_nothing() {
    let alone = std::env::var("ACKSTREAM_SIM_SEED").ok().map(|seed| seed.parse::<u64>().expect("a seed is a number"));
    let seeds = alone.map_or(0..SEEDS, |seed| seed..seed + 1);
    let stories: Vec<Story> = seeds
        .map(|seed| {
            let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            let story = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(live(seed))));
            story.unwrap_or_else(|_| {
                panic!(
                    "seed {seed} breaks a rule, as told above; replay it with:\n\
                     ACKSTREAM_SIM_SEED={seed} cargo test --test virtual_time seeds"
                )
            })
        })
        .collect();
    let all = stories.iter().fold((0, 0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1, sum.2 + one.2));
    println!("{} seeds: {} messages, {} deliveries, {} streams left", stories.len(), all.0, all.1, all.2);
    assert!(alone.is_some() || all.0 > 20 * SEEDS && all.1 > all.0 && all.2 > 5 * SEEDS, "{all:?}");
}

async fn live(seed: u64) -> Story {
    let mut rng = Rng::with_seed(seed);
    let policy = Policy {
        ack_deadline: Duration::from_millis(rng.u64(10..3_000)),
        max_retries: [Some(0), Some(3), None][rng.usize(0..3)],
        backoff: Backoff { minimum: Duration::from_millis(rng.u64(0..500)), maximum: Duration::from_secs(1) },
        max_backlog_messages: rng.u64(1..200),
        ..Policy::default()
    };
    let memory = Memory::with(|settings| settings.policy = policy).await;
    let (mut streams, mut left): (Vec<Conversation>, u64) = (Vec::new(), 0);
    for _ in 0..STEPS {
        if streams.is_empty() || streams.len() < MAX_STREAMS && rng.u32(0..6) == 0 {
            let open = Open {
                publish_only: rng.u32(0..3) == 0,
                auto_ack: rng.u32(0..8) == 0,
                max_outstanding_messages: rng.u32(0..20),
                max_batch_messages: [0, 0, 5][rng.usize(0..3)],
                ..Open::default()
            };
            streams.push(memory.consume(open).await);
            continue;
        }
        let place = rng.usize(0..streams.len());
        if act(&mut streams[place], &mut rng).await.is_none() {
            let mut stream = streams.swap_remove(place);
            if rng.bool() {
                stream.half_close();
                settle().await;
            }
            left += 1;
        }
        let (counts, backlog) = memory.counts();
        assert!(counts.messages_hold(backlog) && counts.deliveries_hold(backlog), "{counts:?} {backlog:?}");
    }
    left += streams.len() as u64;
    drop(streams);
    settle().await;
    assert_eq!(memory.counts().1.outstanding, 0, "nobody is left who could hold anything");
    let mut honest = memory.consume(Open::default()).await;
    while memory.counts().1.messages() > 0 {
        let delivery = honest.delivery().await;
        honest.ack_message(delivery.id).await;
        settle().await;
    }
    let (counts, _) = memory.counts();
    assert_eq!(counts.published, counts.acked + counts.dropped);
    (counts.published, counts.sent, left)
}

/// Does one thing; `None`: it leaves.
async fn act(stream: &mut Conversation, rng: &mut Rng) -> Option<()> {
    let id = rng.u64(0..100);
    let attempt = [None, None, Some(1), Some(2)][rng.usize(0..4)];
    let length = prost_types::Duration { seconds: rng.i64(-1..4), nanos: 0 };
    let kind = match rng.u32(0..20) {
        0..=5 => {
            let payload = vec![b'x'; rng.usize(0..200)];
            stream.publish(id, &payload).await;
            settle().await;
            return Some(());
        }
        6..=8 => Kind::Ack(AckMessage { ack_id: id, delivery_attempt: attempt, ..AckMessage::default() }),
        9 => Kind::AckBatch(AckBatch { ack_ids: (0..id).collect(), ..AckBatch::default() }),
        10 => {
            let delay = rng.bool().then_some(length);
            Kind::Nack(Nack { ack_id: id, delivery_attempt: attempt, delay, drop: rng.bool(), ..Nack::default() })
        }
        11 => Kind::Extend(Extend { ack_id: id, delivery_attempt: attempt, ack_deadline: Some(length) }),
        12..=15 => {
            // It reads what there is by now.
            while let Ok(frame) = tokio::time::timeout(Duration::from_millis(1), stream.next()).await {
                frame.ok()??;
            }
            return Some(());
        }
        16..=18 => {
            tokio::time::sleep(Duration::from_millis(rng.u64(0..4_000))).await;
            return Some(());
        }
        _ => return None,
    };
    stream.try_send(kind).await.then_some(())
}
