use std::time::Duration;

use ackstream::exchange::Ending;
use ackstream::proto::Open;
use ackstream::proto::stream_message::Kind;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::support::{Memory, settle, timed};

#[tokio::test(start_paused = true)]
async fn a_server_that_has_finished_ends_its_streams_with_ok() {
    let memory = Memory::start().await;
    let mut consumer = memory.consume(Open::default()).await;
    let mut tail = memory.consume(Open { auto_ack: true, ..Open::default() }).await;
    tail.half_close();
    memory.server.end_streams(Ending::Completed).await;
    consumer.ends_ok().await;
    tail.ends_ok().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_tail_was_handed_is_sent_before_its_stream_ends() {
    let memory = Memory::start().await;
    let mut publisher = memory.consume(Open { publish_only: true, ..Open::default() }).await;
    for id in 1..=5_000 {
        publisher.publish(id, &[7; 1_000]).await;
        publisher.ack().await;
    }
    // It reads nothing, until HTTP/2 has no room and the server waits with what it has handed over.
    let mut tail = memory.consume(Open { auto_ack: true, ..Open::default() }).await;
    settle().await;
    memory.server.end_streams(Ending::Completed).await;
    let (counts, _) = memory.counts();
    let mut came = 0;
    while let Some(Kind::Data(_)) = tail.next().await.unwrap() {
        came += 1;
    }
    assert!((1..5_000).contains(&came), "HTTP/2 had room for all: {came}");
    assert_eq!(came, counts.acked, "each of them counts as acked");
}

#[tokio::test(start_paused = true)]
async fn a_stopping_server_ends_its_streams_with_unavailable_and_a_sentence() {
    let memory = Memory::start().await;
    let mut consumer = memory.consume(Open::default()).await;
    memory.server.end_streams(Ending::Stopping).await;
    let status = consumer.ends_with().await;
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().starts_with("the server is stopping"), "{status}");
}

#[tokio::test(start_paused = true)]
async fn what_a_consumer_held_when_the_server_ended_its_stream_costs_no_retry() {
    let memory = Memory::with(|settings| settings.policy.max_retries = Some(0)).await;
    let mut consumer = memory.consume(Open::default()).await;
    memory.publish(1).await;
    consumer.delivery().await;
    memory.server.end_streams(Ending::Stopping).await;
    consumer.ends_with().await;
    let (counts, backlog) = memory.counts();
    assert_eq!((counts.dropped, counts.ended.released, backlog.ready), (0, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn draining_waits_for_what_is_outstanding() {
    let memory = Memory::start().await;
    let mut consumer = memory.consume(Open::default()).await;
    memory.publish(2).await;
    consumer.delivery().await;
    consumer.delivery().await;
    let server = std::sync::Arc::clone(&memory.server);
    let drain = tokio::spawn(async move { timed(server.drain(Duration::from_mins(1))).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    consumer.ack_message(1).await;
    consumer.ack_message(2).await;
    let (drained, took) = drain.await.unwrap();
    assert!(drained);
    assert!(took < Duration::from_millis(1_100), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_draining_server_opens_no_stream() {
    let memory = Memory::start().await;
    assert!(memory.server.drain(Duration::from_secs(1)).await);
    for publish_only in [false, true] {
        let mut late = memory.open(Open { publish_only, ..Open::default() }).await;
        assert_eq!(late.ends_with().await.code(), Code::Unavailable);
    }
}

#[tokio::test(start_paused = true)]
async fn draining_gives_up_after_its_timeout_and_what_is_left_is_not_dropped() {
    let memory = Memory::with(|settings| settings.policy.ack_deadline = Duration::from_mins(10)).await;
    let mut consumer = memory.consume(Open::default()).await;
    memory.publish(1).await;
    consumer.delivery().await;
    let (drained, took) = timed(memory.server.drain(Duration::from_secs(8))).await;
    assert!(!drained);
    assert_eq!(took.as_secs(), 8);
    let (counts, backlog) = memory.counts();
    assert_eq!((counts.dropped, backlog.outstanding), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_goes_before_it_has_opened_leaves_nothing_behind() {
    let memory = Memory::start().await;
    drop(memory.converse().await);
    drop(memory.open(Open::default()).await);
    settle().await;
    let topic = memory.server.broker().topic("demo").unwrap();
    assert_eq!(topic.subscription("demo").unwrap().lock().consumers(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_draining_server_says_first_that_it_is_not_serving() {
    let memory = Memory::with(|settings| settings.policy.ack_deadline = Duration::from_mins(10)).await;
    let mut consumer = memory.consume(Open::default()).await;
    memory.publish(1).await;
    consumer.delivery().await;
    assert_eq!(memory.health().await, [ServingStatus::Serving; 2]);
    let server = std::sync::Arc::clone(&memory.server);
    let drain = tokio::spawn(async move { server.drain(Duration::from_secs(8)).await });
    settle().await;
    assert_eq!(memory.health().await, [ServingStatus::NotServing; 2], "while it waits for what is outstanding");
    drain.await.unwrap();
}
