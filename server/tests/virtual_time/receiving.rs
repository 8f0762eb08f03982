use std::time::Duration;

use ackstream::proto::stream_message::Kind;
use ackstream::proto::{AckBatch, AckMessage, Extend, ExtendBatch, Nack, Open};
use ackstream_core::Policy;
use tokio::time::Instant;

use crate::support::{Memory, about, settle, timed};

const DEADLINE: Duration = Duration::from_secs(2);

#[tokio::test(start_paused = true)]
async fn a_delivery_carries_the_message_and_an_ack_settles_it() {
    let memory = Memory::start().await;
    let mut consumer = memory.consume(Open::default()).await;
    memory.publish(1).await;
    let delivery = consumer.delivery().await;
    assert_eq!((delivery.id, delivery.delivery_attempt, delivery.requires_ack), (1, 1, true));
    assert_eq!(delivery.payload, "Message 1");
    consumer.ack_message(1).await;
    consumer.silent_for(10 * DEADLINE).await;
    assert_eq!(memory.counts().0.acked, 1);
}

#[tokio::test(start_paused = true)]
async fn an_unacked_message_is_sent_four_times_two_seconds_apart_and_dropped_after_eight() {
    let memory = Memory::start().await;
    let mut consumer = memory.consume(Open::default()).await;
    memory.publish(1).await;
    let first = consumer.delivery().await;
    let start = Instant::now();
    for attempt in 2..=4u32 {
        let (delivery, took) = timed(consumer.delivery()).await;
        assert_eq!((delivery.id, delivery.delivery_attempt), (1, attempt));
        assert_eq!(delivery.timestamp, first.timestamp, "the same in every attempt");
        assert!(about(took, DEADLINE), "{took:?}");
    }
    assert_eq!(memory.counts().0.dropped, 0);
    tokio::time::sleep_until(start + 4 * DEADLINE + Duration::from_millis(10)).await;
    assert_eq!(memory.counts().0.dropped, 1);
    consumer.silent_for(10 * DEADLINE).await;
}

#[tokio::test(start_paused = true)]
async fn two_consumers_have_disjoint_shares() {
    let memory = Memory::start().await;
    let open = || Open { max_outstanding_messages: 5, ..Open::default() };
    let (mut one, mut other) = (memory.consume(open()).await, memory.consume(open()).await);
    memory.publish(10).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(one.delivery().await.id);
        ids.push(other.delivery().await.id);
    }
    ids.sort_unstable();
    assert_eq!(ids, (1..=10).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn what_a_broken_stream_held_goes_to_another_at_once_and_costs_no_retry() {
    let memory = Memory::with(|settings| settings.policy.max_retries = Some(0)).await;
    let mut victim = memory.consume(Open::default()).await;
    memory.publish(1).await;
    victim.delivery().await;
    let mut other = memory.consume(Open::default()).await;
    drop(victim);
    let (delivery, took) = timed(other.delivery()).await;
    assert_eq!((delivery.delivery_attempt, delivery.failures, delivery.interruptions), (2, 0, 1));
    assert!(took < Duration::from_millis(50), "{took:?}");
    drop(other);
    settle().await;
    assert_eq!((memory.counts().0.dropped, memory.counts().1.delayed), (0, 1), "it waits, and is delivered alone");
}

#[tokio::test(start_paused = true)]
async fn what_a_consumer_held_that_half_closed_goes_to_another_at_once_and_costs_nothing() {
    let memory = Memory::with(|settings| settings.policy.max_retries = Some(0)).await;
    memory.publish(1).await;
    for attempt in 1..=5 {
        let mut consumer = memory.consume(Open::default()).await;
        assert_eq!(consumer.delivery().await.delivery_attempt, attempt);
        consumer.half_close();
        consumer.ends_ok().await;
    }
    assert_eq!(memory.counts().1.ready, 1);
}

#[tokio::test(start_paused = true)]
async fn a_nack_brings_the_message_back_after_its_delay() {
    let memory = Memory::start().await;
    let mut consumer = memory.consume(Open::default()).await;
    memory.publish(1).await;
    consumer.delivery().await;
    let delay = Some(prost_types::Duration { seconds: 30, nanos: 0 });
    consumer.send(Kind::Nack(Nack { ack_id: 1, delay, ..Nack::default() })).await;
    let (delivery, took) = timed(consumer.delivery()).await;
    assert_eq!(delivery.delivery_attempt, 2);
    assert!(about(took, Duration::from_secs(30)), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_negative_delay_counts_as_none() {
    let memory = Memory::start().await;
    let mut consumer = memory.consume(Open::default()).await;
    memory.publish(1).await;
    consumer.delivery().await;
    let delay = Some(prost_types::Duration { seconds: -30, nanos: -5 });
    consumer.send(Kind::Nack(Nack { ack_id: 1, delay, ..Nack::default() })).await;
    let (_, took) = timed(consumer.delivery()).await;
    assert!(took < Duration::from_millis(50), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_nack_with_drop_ends_the_message() {
    let memory = Memory::start().await;
    let mut consumer = memory.consume(Open::default()).await;
    memory.publish(1).await;
    consumer.delivery().await;
    consumer.send(Kind::Nack(Nack { ack_id: 1, drop: true, ..Nack::default() })).await;
    consumer.silent_for(10 * DEADLINE).await;
    assert_eq!(memory.counts().0.dropped, 1);
}

#[tokio::test(start_paused = true)]
async fn extends_move_deadlines_one_by_one_and_many_at_once() {
    let memory = Memory::start().await;
    let mut consumer = memory.consume(Open::default()).await;
    memory.publish(3).await;
    for _ in 0..3 {
        consumer.delivery().await;
    }
    let start = Instant::now();
    let minute = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    consumer.send(Kind::Extend(Extend { ack_id: 1, ack_deadline: minute, ..Extend::default() })).await;
    let ten = Some(prost_types::Duration { seconds: 10, nanos: 0 });
    consumer.send(Kind::ExtendBatch(ExtendBatch { ack_ids: vec![2, 3], ack_deadline: ten })).await;
    let mut came = Vec::new();
    for _ in 0..2 {
        came.push(consumer.delivery().await.id);
    }
    assert!(about(start.elapsed(), Duration::from_secs(10)), "{:?}", start.elapsed());
    assert_eq!(came, [2, 3]);
    consumer.send(Kind::AckBatch(AckBatch { ack_ids: vec![2, 3], ..AckBatch::default() })).await;
    assert_eq!(consumer.delivery().await.id, 1);
    assert!(about(start.elapsed(), Duration::from_mins(1)), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_extend_without_a_length_is_one_ack_deadline() {
    let memory = Memory::start().await;
    let mut consumer = memory.consume(Open::default()).await;
    memory.publish(1).await;
    consumer.delivery().await;
    tokio::time::sleep(DEADLINE / 2).await;
    consumer.send(Kind::Extend(Extend { ack_id: 1, ..Extend::default() })).await;
    let (_, took) = timed(consumer.delivery()).await;
    assert!(about(took, DEADLINE), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn strange_acks_are_never_an_error() {
    let memory = Memory::start().await;
    let mut consumer = memory.consume(Open::default()).await;
    memory.publish(1).await;
    consumer.delivery().await;
    for ack_id in [0, 1, 1, 99, u64::MAX] {
        consumer.ack_message(ack_id).await;
        consumer.send(Kind::Nack(Nack { ack_id, ..Nack::default() })).await;
        consumer.send(Kind::Extend(Extend { ack_id, ..Extend::default() })).await;
    }
    let stale = AckMessage { ack_id: 1, delivery_attempt: Some(7), ..AckMessage::default() };
    consumer.send(Kind::Ack(stale)).await;
    consumer.publish(5, b"still here").await;
    assert_eq!(consumer.ack().await.ack_id, 5);
    assert_eq!(memory.counts().0.acked, 1);
}

#[tokio::test(start_paused = true)]
async fn a_window_bounds_what_is_outstanding_by_messages_and_by_bytes() {
    let memory = Memory::start().await;
    let mut by_messages = memory.consume(Open { max_outstanding_messages: 2, ..Open::default() }).await;
    memory.publish(3).await;
    by_messages.delivery().await;
    by_messages.delivery().await;
    by_messages.silent_for(Duration::from_secs(1)).await;
    by_messages.ack_message(1).await;
    assert_eq!(by_messages.delivery().await.id, 3);
    drop(by_messages);
    let mut by_bytes = memory.consume(Open { max_outstanding_bytes: 10, ..Open::default() }).await;
    by_bytes.delivery().await;
    by_bytes.silent_for(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_window_is_at_most_what_the_server_allows() {
    let memory = Memory::with(|settings| settings.limits.max_outstanding_messages = 1).await;
    let mut consumer = memory.consume(Open { max_outstanding_messages: 500, ..Open::default() }).await;
    memory.publish(2).await;
    consumer.delivery().await;
    consumer.silent_for(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn under_auto_ack_a_half_closed_stream_is_a_tail() {
    let memory = Memory::start().await;
    let mut tail = memory.consume(Open { auto_ack: true, ..Open::default() }).await;
    tail.half_close();
    tail.silent_for(Duration::from_secs(100)).await;
    memory.publish(2).await;
    let delivery = tail.delivery().await;
    assert_eq!((delivery.id, delivery.requires_ack), (1, false));
    assert_eq!(tail.delivery().await.id, 2);
    assert_eq!(memory.counts().0.acked, 2);
    drop(tail);
    settle().await;
    memory.publish(1).await;
    assert_eq!(memory.counts().1.ready, 1, "a tail that has gone takes nothing");
}

#[tokio::test(start_paused = true)]
async fn only_who_asks_for_batches_gets_them() {
    let memory = Memory::start().await;
    memory.publish(5).await;
    let mut plain = memory.consume(Open { max_outstanding_messages: 2, ..Open::default() }).await;
    assert_eq!((plain.delivery().await.id, plain.delivery().await.id), (1, 2));
    let mut batched = memory.consume(Open { max_batch_messages: 2, ..Open::default() }).await;
    for expected in [vec![3, 4], vec![5]] {
        let Kind::DataBatch(batch) = batched.frame().await else { panic!("a batch was asked for") };
        assert_eq!(batch.messages.iter().map(|message| message.id).collect::<Vec<_>>(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_stops_at_one_mebibyte() {
    let memory = Memory::start().await;
    let mut publisher = memory.consume(Open { publish_only: true, ..Open::default() }).await;
    let sizes = [400 << 10, 400 << 10, 400 << 10, 1 << 20, 10];
    for (id, size) in (1..).zip(sizes) {
        publisher.publish(id, &vec![0; size]).await;
        publisher.ack().await;
    }
    let mut consumer = memory.consume(Open { max_batch_messages: 100, ..Open::default() }).await;
    for expected in [vec![1, 2], vec![3], vec![4], vec![5]] {
        let Kind::DataBatch(batch) = consumer.frame().await else { panic!("a batch was asked for") };
        assert_eq!(batch.messages.iter().map(|message| message.id).collect::<Vec<_>>(), expected);
    }
}

/// A stream whose client does not read is not polled once its HTTP/2 window is full, so its wake is lost.
#[tokio::test(start_paused = true)]
async fn a_consumer_that_does_not_read_holds_no_message_up_that_another_could_take() {
    let memory = Memory::with(|settings| {
        settings.policy = Policy { ack_deadline: Duration::from_mins(10), ..Policy::default() };
    })
    .await;
    let stuck = memory.consume(Open::default()).await;
    let mut publisher = memory.consume(Open { publish_only: true, ..Open::default() }).await;
    for id in 1..=40 {
        publisher.publish(id, &vec![0; 100 << 10]).await;
        publisher.ack().await;
    }
    let mut honest = memory.consume(Open::default()).await;
    let mut last = 0;
    while last < 40 {
        let (delivery, took) = timed(honest.delivery()).await;
        assert!(took < Duration::from_millis(50), "{took:?}");
        last = delivery.id;
        honest.ack_message(last).await;
    }
    for id in 41..=60 {
        publisher.publish(id, b"small").await;
        publisher.ack().await;
        let (delivery, took) = timed(honest.delivery()).await;
        assert_eq!(delivery.id, id);
        assert!(took < Duration::from_millis(20), "{took:?}");
        honest.ack_message(id).await;
    }
    drop(stuck);
}
