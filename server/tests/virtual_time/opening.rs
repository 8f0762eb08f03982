use std::time::Duration;

use ackstream::proto::stream_message::Kind;
use ackstream::proto::{AckMessage, Open, Opened, StreamMessage};
use tonic::Code;

use crate::support::{Memory, about, timed};

#[tokio::test(start_paused = true)]
async fn an_empty_open_is_enough_and_is_answered_before_anything_else() {
    let memory = Memory::start().await;
    memory.publish(1).await;
    let mut consumer = memory.open(Open::default()).await;
    let opened = consumer.opened().await;
    assert_eq!(
        opened,
        Opened {
            epoch: memory.server.broker().topic("demo").unwrap().epoch(),
            topic: "demo".into(),
            subscription: "demo".into(),
            ack_deadline: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
            max_retries: Some(3),
            max_message_bytes: 1 << 20,
            server_version: env!("CARGO_PKG_VERSION").into(),
            features: vec![1, 2],
            session: bytes::Bytes::new(),
        }
    );
    assert_eq!(consumer.delivery().await.id, 1);
}

#[tokio::test(start_paused = true)]
async fn a_publisher_looks_at_no_subscription() {
    let memory = Memory::start().await;
    let open = Open { publish_only: true, subscription: "nope".into(), ..Open::default() };
    let mut publisher = memory.open(open).await;
    let opened = publisher.opened().await;
    assert_eq!((opened.subscription.as_str(), opened.ack_deadline, opened.max_retries), ("", None, None));
}

#[tokio::test(start_paused = true)]
async fn each_life_of_a_topic_has_an_epoch_of_its_own() {
    let (one, other) = (Memory::start().await, Memory::start().await);
    let epoch = async |memory: &Memory| memory.open(Open::default()).await.opened().await.epoch;
    assert_eq!(epoch(&one).await, epoch(&one).await);
    assert_ne!(epoch(&one).await, epoch(&other).await);
}

#[tokio::test(start_paused = true)]
async fn a_first_frame_that_is_not_open_is_an_invalid_argument() {
    let memory = Memory::start().await;
    let mut conversation = memory.converse().await;
    conversation.ack_message(1).await;
    let status = conversation.ends_with().await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("the first frame must be `open`"), "{status}");
}

#[tokio::test(start_paused = true)]
async fn closing_without_any_frame_is_an_invalid_argument() {
    let memory = Memory::start().await;
    let mut conversation = memory.converse().await;
    conversation.half_close();
    assert_eq!(conversation.ends_with().await.code(), Code::InvalidArgument);
}

#[tokio::test(start_paused = true)]
async fn a_second_open_is_an_invalid_argument() {
    let memory = Memory::start().await;
    let mut conversation = memory.consume(Open::default()).await;
    conversation.send(Kind::Open(Open::default())).await;
    let status = conversation.ends_with().await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("twice"), "{status}");
}

#[tokio::test(start_paused = true)]
async fn opened_comes_from_the_server_only() {
    let memory = Memory::start().await;
    let mut conversation = memory.consume(Open::default()).await;
    conversation.send(Kind::Opened(Opened::default())).await;
    assert_eq!(conversation.ends_with().await.code(), Code::InvalidArgument);
}

#[tokio::test(start_paused = true)]
async fn open_is_due_within_five_seconds() {
    let memory = Memory::start().await;
    let mut conversation = memory.converse().await;
    let (status, took) = timed(conversation.ends_with()).await;
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(about(took, Duration::from_secs(5)), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn an_unknown_topic_is_named_with_those_that_exist() {
    let memory = Memory::start().await;
    let mut conversation = memory.open(Open { topic: "orders".into(), ..Open::default() }).await;
    let status = conversation.ends_with().await;
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(status.message(), "there is no topic \"orders\"; this server has demo");
}

#[tokio::test(start_paused = true)]
async fn an_unknown_subscription_is_named_with_those_that_exist() {
    let memory = Memory::start().await;
    let mut conversation = memory.open(Open { subscription: "mail".into(), ..Open::default() }).await;
    let status = conversation.ends_with().await;
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(status.message(), "topic \"demo\" has no subscription \"mail\"; it has demo");
}

#[tokio::test(start_paused = true)]
async fn a_hostile_name_fits_a_sentence() {
    let memory = Memory::start().await;
    let mut conversation = memory.open(Open { topic: "\u{7}é".repeat(10_000), ..Open::default() }).await;
    let status = conversation.ends_with().await;
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().len() < 600, "{status}");
    assert!(!status.message().contains('\u{7}'), "control characters are escaped");
}

#[tokio::test(start_paused = true)]
async fn a_client_id_of_more_than_256_bytes_is_an_invalid_argument() {
    let memory = Memory::start().await;
    let mut conversation = memory.open(Open { client_id: "x".repeat(257), ..Open::default() }).await;
    assert_eq!(conversation.ends_with().await.code(), Code::InvalidArgument);
    memory.consume(Open { client_id: "x".repeat(256), ..Open::default() }).await;
}

#[tokio::test(start_paused = true)]
async fn a_member_that_the_server_does_not_know_is_ignored() {
    let memory = Memory::start().await;
    let mut consumer = memory.consume(Open::default()).await;
    consumer.send_frame(StreamMessage { kind: None }).await;
    consumer.publish(1, b"still here").await;
    assert_eq!(consumer.ack().await.ack_id, 1);
}

#[tokio::test(start_paused = true)]
async fn streams_are_bounded_and_a_place_is_given_back() {
    let memory = Memory::with(|settings| settings.limits.max_streams = 1).await;
    let first = memory.consume(Open::default()).await;
    let mut client = ackstream::proto::message_stream_client::MessageStreamClient::new(memory.connect().await);
    let refused = client.exchange(tokio_stream::pending::<StreamMessage>()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    drop(first);
    crate::support::settle().await;
    memory.consume(Open::default()).await;
}

#[tokio::test(start_paused = true)]
async fn acks_on_a_stream_that_only_publishes_are_ignored() {
    let memory = Memory::start().await;
    let mut publisher = memory.consume(Open { publish_only: true, ..Open::default() }).await;
    publisher.send(Kind::Ack(AckMessage { ack_id: 5, ..AckMessage::default() })).await;
    publisher.publish(1, b"x").await;
    assert_eq!(publisher.ack().await.message_id, 1);
}
