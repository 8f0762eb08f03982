//! Broken streams and who pays for them: sessions, interruptions, releases, and consumers that say nothing.

use std::time::Duration;

use ackstream::proto::stream_message::Kind;
use ackstream::proto::{Feature, Nack, Open, Resume, StreamMessage};
use bytes::Bytes;
use tonic::Code;

use crate::support::{Conversation, Memory, about, settle, timed};

/// A consumer with one handler asks for a session, or for this one, and holds these messages.
fn resuming(session: &Bytes, held: &[u64]) -> Open {
    let resume = Resume { session: session.clone(), held: held.to_vec() };
    Open { max_concurrent_handlers: 1, resume: Some(resume), ..Open::default() }
}

/// A server with so many messages, and a consumer that holds all of them, with its session.
async fn holding(messages: u64) -> (Memory, Conversation, Bytes) {
    let memory = Memory::start().await;
    memory.publish(messages).await;
    let mut consumer = memory.open(resuming(&Bytes::new(), &[])).await;
    let session = consumer.opened().await.session;
    for _ in 0..messages {
        consumer.delivery().await;
    }
    (memory, consumer, session)
}

#[tokio::test(start_paused = true)]
async fn a_server_says_that_it_has_sessions_and_takes_releases() {
    let memory = Memory::start().await;
    let mut consumer = memory.open(resuming(&Bytes::new(), &[])).await;

    let opened = consumer.opened().await;

    assert_eq!(opened.features, [i32::from(Feature::Sessions), i32::from(Feature::Release)]);
    assert_eq!(opened.session.len(), 16);
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_for_no_session_has_none() {
    let memory = Memory::start().await;

    let opened = memory.open(Open::default()).await.opened().await;

    assert_eq!(opened.session.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn where_there_is_no_grace_there_are_no_sessions() {
    let memory = Memory::with(|settings| settings.limits.reconnect_grace = Duration::ZERO).await;

    let opened = memory.open(resuming(&Bytes::new(), &[])).await.opened().await;

    assert_eq!(opened.session.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn thirty_breaks_under_one_delivery_that_are_resumed_cost_nothing() {
    let (memory, mut consumer, session) = holding(1).await;

    for _ in 0..30 {
        drop(consumer);
        tokio::time::sleep(Duration::from_millis(900)).await;
        consumer = memory.open(resuming(&session, &[1])).await;
        assert_eq!(consumer.opened().await.session, session, "it goes on");
    }
    consumer.ack_message(1).await;
    settle().await;

    let (counts, _) = memory.counts();
    assert_eq!((counts.sent, counts.acked, counts.ended.acked, counts.ended.interrupted), (1, 1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn where_nobody_resumes_what_was_in_progress_is_interrupted_after_the_grace_and_the_rest_released() {
    let (memory, consumer, session) = holding(5).await;
    let mut other = memory.consume(Open::default()).await;

    drop(consumer);
    let (first, took) = timed(other.delivery()).await;

    assert!(about(took, Duration::from_secs(2)), "{took:?}");
    assert_eq!((first.id, first.failures, first.interruptions), (1, 0, 1));
    let (counts, _) = memory.counts();
    assert_eq!((counts.ended.interrupted, counts.ended.released), (2, 3));
    let too_late = memory.open(resuming(&session, &[1])).await.opened().await.session;
    assert!(too_late != session && too_late.len() == 16, "it begins anew");
}

#[tokio::test(start_paused = true)]
async fn what_a_client_does_not_hold_any_more_when_it_resumes_comes_again_at_no_cost() {
    let (memory, consumer, session) = holding(2).await;
    drop(consumer);

    let mut again = memory.open(resuming(&session, &[1])).await;
    again.opened().await;

    let lost = again.delivery().await;
    assert_eq!((lost.id, lost.delivery_attempt, lost.failures, lost.interruptions), (2, 2, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_resume_takes_over_from_a_stream_that_is_still_open() {
    let (memory, mut before, session) = holding(1).await;

    let mut after = memory.open(resuming(&session, &[1])).await;

    assert_eq!(after.opened().await.session, session);
    let status = before.ends_with().await;
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().starts_with("another stream has resumed this session"), "{status}");
    memory.publish(1).await;
    assert_eq!(after.delivery().await.id, 2);
    let (counts, backlog) = memory.counts();
    assert_eq!((counts.ended.interrupted, counts.ended.released, backlog.outstanding), (0, 0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_none_begins_anew() {
    let memory = Memory::start().await;
    for wrong in [Bytes::from_static(&[7; 16]), Bytes::from_static(b"short")] {
        let session = memory.open(resuming(&wrong, &[])).await.opened().await.session;
        assert!(session != wrong && session.len() == 16);
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_says_to_hold_more_than_a_session_may_have_is_told_so() {
    let memory = Memory::start().await;
    let held: Vec<u64> = (1..=10_001).collect();

    let status = memory.open(resuming(&Bytes::new(), &held)).await.ends_with().await;

    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().starts_with("resume names 10001 deliveries"), "{status}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_reaches_its_age_costs_nothing_whether_its_client_resumes_or_not() {
    for resumes in [true, false] {
        let memory = Memory::with(|settings| {
            settings.policy.max_interruptions = Some(0);
            settings.policy.ack_deadline = Duration::from_mins(10);
            settings.connections.max_age = Some(Duration::from_secs(10));
            settings.connections.age_grace = Duration::from_secs(1);
        })
        .await;
        memory.publish(1).await;
        let mut consumer = memory.open(resuming(&Bytes::new(), &[])).await;
        let session = consumer.opened().await.session;
        consumer.delivery().await;

        assert_eq!(consumer.ends_with().await.code(), Code::Unavailable);
        let mut resumed = None;
        if resumes {
            let mut again = memory.open(resuming(&session, &[1])).await;
            again.opened().await;
            resumed = Some(again);
        }
        tokio::time::sleep(Duration::from_secs(3)).await;

        let (counts, _) = memory.counts();
        assert_eq!((counts.dropped, counts.ended.interrupted), (0, 0));
        assert_eq!(counts.ended.released, u64::from(!resumes));
        drop(resumed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_goes_to_another_at_once_and_costs_nothing() {
    let (memory, mut giver, _) = holding(1).await;
    let mut other = memory.consume(Open::default()).await;

    giver.send(Kind::Nack(Nack { ack_id: 1, release: true, drop: true, ..Nack::default() })).await;

    let delivery = other.delivery().await;
    assert_eq!((delivery.id, delivery.failures, delivery.interruptions), (1, 0, 0));
    assert_eq!(memory.counts().0.dropped, 0);
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_lets_a_delivery_expire_comes_last_until_it_says_anything() {
    let (memory, mut frozen, _) = holding(1).await;
    let mut healthy = memory.consume(Open::default()).await;
    assert_eq!(healthy.delivery().await.id, 1, "after its ack deadline");
    healthy.ack_message(1).await;
    for id in 2..=10 {
        memory.publish(1).await;
        assert_eq!(healthy.delivery().await.id, id);
        healthy.ack_message(id).await;
    }

    frozen.send_frame(StreamMessage { kind: None }).await;
    settle().await;
    memory.publish(1).await;

    assert_eq!(frozen.delivery().await.id, 11, "it has waited for longest");
}
