use std::num::NonZeroU64;
use std::time::Duration;

use ackstream::generator::{self, Plan};
use ackstream::proto::Open;
use tokio::time::Instant;

use crate::support::{Memory, about, settle, within};

const SECOND: Duration = Duration::from_secs(1);

fn generate(memory: &Memory, count: u64) -> tokio::task::JoinHandle<()> {
    let server = std::sync::Arc::clone(&memory.server);
    tokio::spawn(async move {
        let plan = Plan { count: NonZeroU64::new(count), interval: SECOND };
        let topic = server.broker().topic("demo").unwrap();
        generator::run(plan, topic, server.progress()).await.unwrap();
    })
}

#[tokio::test(start_paused = true)]
async fn it_starts_with_the_first_consumer() {
    let memory = Memory::start().await;
    generate(&memory, 3);
    tokio::time::sleep(100 * SECOND).await;
    assert_eq!(memory.counts().0.published, 0);
    let mut consumer = memory.consume(Open::default()).await;
    let first = Instant::now();
    for number in 1..=3u32 {
        let delivery = consumer.delivery().await;
        assert_eq!(delivery.payload, format!("Message {number}"));
        assert!(about(first.elapsed(), (number - 1) * SECOND), "{:?}", first.elapsed());
        consumer.ack_message(u64::from(number)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn it_ends_when_each_of_its_messages_is_acked_or_dropped() {
    let memory = Memory::with(|settings| settings.policy.max_retries = Some(0)).await;
    let run = generate(&memory, 2);
    let mut consumer = memory.consume(Open::default()).await;
    consumer.delivery().await;
    consumer.ack_message(1).await;
    consumer.delivery().await;
    settle().await;
    assert!(!run.is_finished(), "message 2 is outstanding");
    within(run).await.unwrap();
    let (counts, _) = memory.counts();
    assert_eq!((counts.acked, counts.dropped), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn messages_of_others_do_not_count_as_its_own() {
    let memory = Memory::start().await;
    let mut consumer = memory.consume(Open::default()).await;
    memory.publish(1).await;
    let run = generate(&memory, 1);
    for _ in 0..2 {
        consumer.delivery().await;
    }
    consumer.ack_message(1).await;
    settle().await;
    assert!(!run.is_finished(), "the first message was a client's");
    consumer.ack_message(2).await;
    within(run).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn it_waits_while_the_backlog_is_full() {
    let memory = Memory::with(|settings| settings.policy.max_backlog_messages = 1).await;
    let run = generate(&memory, 3);
    let mut consumer = memory.consume(Open::default()).await;
    for id in 1..=3 {
        assert_eq!(consumer.delivery().await.id, id);
        consumer.silent_for(SECOND).await;
        consumer.ack_message(id).await;
    }
    within(run).await.unwrap();
    assert_eq!(memory.counts().0.published, 3);
}
