use std::collections::BTreeMap;

use ackstream::proto::stream_message::Kind;
use ackstream::proto::{DataBatch, DataMessage, Open};
use bytes::Bytes;
use tonic::Code;

use crate::support::{Conversation, Memory};

async fn publisher(memory: &Memory) -> Conversation {
    memory.consume(Open { publish_only: true, ..Open::default() }).await
}

#[tokio::test(start_paused = true)]
async fn a_publish_is_answered_with_the_clients_number_and_the_messages_id() {
    let memory = Memory::start().await;
    let mut publisher = publisher(&memory).await;
    publisher.publish(70, b"one").await;
    publisher.publish(71, b"two").await;
    let (one, two) = (publisher.ack().await, publisher.ack().await);
    assert_eq!((one.ack_id, one.message_id, two.ack_id, two.message_id), (70, 1, 71, 2));
    assert!(one.timestamp.is_some());
}

#[tokio::test(start_paused = true)]
async fn attributes_are_delivered_unchanged() {
    let memory = Memory::start().await;
    let mut stream = memory.consume(Open::default()).await;
    let attributes = BTreeMap::from([("kind".into(), "new".into()), ("empty".into(), String::new())]);
    let data = DataMessage { id: 1, attributes: attributes.clone(), ..DataMessage::default() };
    stream.send(Kind::Data(data)).await;
    stream.ack().await;
    let delivery = stream.delivery().await;
    assert_eq!((delivery.attributes, delivery.payload), (attributes, Bytes::new()));
}

#[tokio::test(start_paused = true)]
async fn a_batch_of_publishes_is_answered_in_batches_only_where_they_were_asked_for() {
    let memory = Memory::start().await;
    let batch = || {
        let messages = (1..=3).map(|id| DataMessage { id, ..DataMessage::default() }).collect();
        Kind::DataBatch(DataBatch { messages })
    };
    let mut plain = publisher(&memory).await;
    plain.send(batch()).await;
    for id in 1..=3 {
        assert_eq!(plain.ack().await.ack_id, id);
    }
    let mut batched = memory.consume(Open { publish_only: true, max_batch_messages: 10, ..Open::default() }).await;
    batched.send(batch()).await;
    let Kind::AckBatch(answers) = batched.frame().await else { panic!("a batch was asked for") };
    assert_eq!((answers.ack_ids, answers.message_ids), (vec![1, 2, 3], vec![4, 5, 6]));
}

#[tokio::test(start_paused = true)]
async fn a_publish_that_is_too_large_is_refused_by_name_and_the_stream_goes_on() {
    let memory = Memory::start().await;
    let mut publisher = publisher(&memory).await;
    publisher.publish(1, &vec![0; (1 << 20) + 1]).await;
    let nack = publisher.nack().await;
    assert_eq!((nack.ack_id, nack.code), (1, Code::InvalidArgument as i32));
    assert_eq!(
        nack.reason,
        "not accepted: the message has 1048577 bytes, this server takes at most 1048576 (max_message_bytes)"
    );
    publisher.publish(2, &vec![0; 1 << 20]).await;
    assert_eq!(publisher.ack().await.ack_id, 2);
}

#[tokio::test(start_paused = true)]
async fn attributes_count_towards_the_size_of_a_message() {
    let memory = Memory::with(|settings| settings.max_message_bytes = 10).await;
    let mut publisher = publisher(&memory).await;
    let attributes = BTreeMap::from([("12345".into(), "123456".into())]);
    publisher.send(Kind::Data(DataMessage { id: 1, attributes, ..DataMessage::default() })).await;
    assert_eq!(publisher.nack().await.code, Code::InvalidArgument as i32);
}

#[tokio::test(start_paused = true)]
async fn attributes_that_break_a_rule_are_refused_by_name() {
    let memory = Memory::start().await;
    let mut publisher = publisher(&memory).await;
    let long = "x".repeat(300);
    let many = (0..65).map(|n| (n.to_string(), String::new())).collect();
    let cases: [(BTreeMap<String, String>, &str); 4] = [
        (many, "not accepted: it has 65 attributes, at most 64 are allowed"),
        (
            BTreeMap::from([(String::new(), "v".into())]),
            "not accepted: the name of an attribute has 0 bytes, 1 to 256 are allowed",
        ),
        (
            BTreeMap::from([(long, "v".into())]),
            "not accepted: the name of an attribute has 300 bytes, 1 to 256 are allowed",
        ),
        (
            BTreeMap::from([("k".into(), "v".repeat(4097))]),
            "not accepted: attribute \"k\" has 4097 bytes, at most 4096 are allowed",
        ),
    ];
    for (attributes, reason) in cases {
        publisher.send(Kind::Data(DataMessage { id: 9, attributes, ..DataMessage::default() })).await;
        let nack = publisher.nack().await;
        assert_eq!((nack.code, nack.reason.as_str()), (Code::InvalidArgument as i32, reason));
    }
    assert_eq!(memory.counts().0.published, 0);
}

#[tokio::test(start_paused = true)]
async fn a_full_backlog_refuses_by_name_until_there_is_room() {
    let memory = Memory::with(|settings| settings.policy.max_backlog_messages = 1).await;
    let mut stream = memory.consume(Open::default()).await;
    stream.publish(1, b"one").await;
    stream.ack().await;
    stream.delivery().await;
    stream.publish(2, b"two").await;
    let nack = stream.nack().await;
    assert_eq!(nack.code, Code::ResourceExhausted as i32);
    assert_eq!(
        nack.reason,
        "not accepted by topic \"demo\": subscription \"demo\" takes no message, its backlog is full \
         (max_backlog_messages = 1)"
    );
    stream.ack_message(1).await;
    stream.publish(3, b"three").await;
    assert_eq!(stream.ack().await.message_id, 2);
}

#[tokio::test(start_paused = true)]
async fn a_draining_server_refuses_publishes_and_says_try_elsewhere() {
    let memory = Memory::start().await;
    let mut publisher = publisher(&memory).await;
    assert!(memory.server.drain(std::time::Duration::from_secs(1)).await);
    publisher.publish(1, b"x").await;
    assert_eq!(publisher.nack().await.code, Code::Unavailable as i32);
}

#[tokio::test(start_paused = true)]
async fn a_publisher_that_half_closes_gets_all_its_answers() {
    let memory = Memory::start().await;
    let mut publisher = publisher(&memory).await;
    for id in 1..=500 {
        publisher.publish(id, b"x").await;
    }
    publisher.half_close();
    for id in 1..=500 {
        assert_eq!(publisher.ack().await.ack_id, id);
    }
    publisher.ends_ok().await;
}

#[tokio::test(start_paused = true)]
async fn a_publisher_that_reads_may_send_more_in_one_frame_than_answers_may_wait() {
    let memory = Memory::start().await;
    let mut publisher = memory.consume(Open { publish_only: true, max_batch_messages: 100, ..Open::default() }).await;
    let messages = (0..25_000).map(|id| DataMessage { id, ..DataMessage::default() }).collect();
    publisher.send(Kind::DataBatch(DataBatch { messages })).await;
    let mut answered = 0;
    while answered < 25_000 {
        let Kind::AckBatch(answers) = publisher.frame().await else { panic!("a batch was asked for") };
        answered += answers.ack_ids.len();
    }
    assert_eq!(memory.counts().0.published, 25_000);
}

#[tokio::test(start_paused = true)]
async fn a_publisher_that_never_reads_loses_its_stream_and_nothing_is_stored_without_an_answer() {
    let memory = Memory::start().await;
    let mut publisher = publisher(&memory).await;
    let messages: Vec<_> = (0..1_000).map(|id| DataMessage { id, ..DataMessage::default() }).collect();
    for _ in 0..200 {
        publisher.send(Kind::DataBatch(DataBatch { messages: messages.clone() })).await;
    }
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    let stored = memory.counts().0.published;
    assert!((10_000..200_000).contains(&stored), "{stored}");
    let mut answered = 0;
    let status = loop {
        match publisher.next().await {
            Ok(Some(Kind::Ack(_))) => answered += 1,
            Ok(other) => panic!("an answer or the end was expected, not {other:?}"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!((answered, memory.counts().0.published), (stored, stored));
}
