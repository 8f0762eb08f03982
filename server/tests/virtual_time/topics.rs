//! Several topics and subscriptions, and the dead letters that go from one to another.

use std::collections::BTreeMap;
use std::time::Duration;

use ackstream::proto::stream_message::Kind;
use ackstream::proto::{DataMessage, Nack, Open};
use ackstream::server::{SubscriptionSettings, TopicSettings};
use ackstream_core::{Backlog, Counts, Policy};
use tonic::Code;

use crate::support::{Conversation, Memory, about, settle, timed};

/// What a subscription under test has of its own: its name, its dead-letter topic, its policy.
type Under<'a> = (&'a str, Option<&'a str>, Policy);

/// A server with these topics.
async fn server(topics: &[(&str, &[Under<'_>])]) -> Memory {
    let topics = topics.iter().map(|(name, subscriptions)| TopicSettings {
        name: (*name).to_owned(),
        subscriptions: subscriptions
            .iter()
            .map(|(name, to, policy)| SubscriptionSettings {
                name: (*name).to_owned(),
                policy: policy.clone(),
                dead_letter_topic: to.map(str::to_owned),
            })
            .collect(),
    });
    let topics = topics.collect::<Vec<_>>();
    Memory::with(|settings| settings.topics = topics).await
}

/// No retries.
fn strict() -> Policy {
    Policy { max_retries: Some(0), max_interruptions: Some(0), ..Policy::default() }
}

async fn consumer(memory: &Memory, topic: &str, subscription: &str) -> Conversation {
    let open = Open { topic: topic.to_owned(), subscription: subscription.to_owned(), ..Open::default() };
    memory.consume(open).await
}

async fn publisher(memory: &Memory, topic: &str) -> Conversation {
    memory.consume(Open { topic: topic.to_owned(), publish_only: true, ..Open::default() }).await
}

/// Publishes a message on a stream of its own.
async fn publish(memory: &Memory, topic: &str, message: DataMessage) {
    let mut publisher = publisher(memory, topic).await;
    publisher.send(Kind::Data(message)).await;
    publisher.ack().await;
}

fn counts(memory: &Memory, topic: &str, subscription: &str) -> (Counts, Backlog) {
    let topic = memory.server.broker().topic(topic).unwrap();
    let locked = topic.subscription(subscription).unwrap().lock();
    (locked.counts(), locked.backlog())
}

fn assert_metric(memory: &Memory, line: &str) {
    let page = memory.server.endpoint().metrics().scrape();
    assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
}

async fn reject(consumer: &mut Conversation, id: u64) {
    consumer.send(Kind::Nack(Nack { ack_id: id, drop: true, ..Nack::default() })).await;
}

#[tokio::test(start_paused = true)]
async fn each_subscription_gets_its_own_copy_under_its_own_policy() {
    let quick = Policy { ack_deadline: Duration::from_secs(1), ..Policy::default() };
    let slow = Policy { ack_deadline: Duration::from_secs(9), ..Policy::default() };
    let memory = server(&[("orders", &[("quick", None, quick), ("slow", None, slow)])]).await;
    let mut one = consumer(&memory, "orders", "quick").await;
    let mut other = consumer(&memory, "orders", "slow").await;
    publish(&memory, "orders", DataMessage::default()).await;
    assert_eq!((one.delivery().await.id, other.delivery().await.id), (1, 1));
    other.ack_message(1).await;
    let (again, took) = timed(one.delivery()).await;
    assert_eq!(again.delivery_attempt, 2);
    assert!(about(took, Duration::from_secs(1)), "{took:?}");
    other.silent_for(Duration::from_secs(20)).await;
}

#[tokio::test(start_paused = true)]
async fn a_publish_is_accepted_by_all_subscriptions_or_by_none() {
    let small = Policy { max_backlog_messages: 1, ..Policy::default() };
    let default = Policy::default;
    let memory = server(&[("orders", &[("a", None, default()), ("b", None, small), ("c", None, default())])]).await;
    let mut stream = publisher(&memory, "orders").await;
    stream.publish(1, b"x").await;
    stream.ack().await;
    stream.publish(2, b"y").await;
    let nack = stream.nack().await;
    assert_eq!(nack.code, Code::ResourceExhausted as i32);
    assert!(nack.reason.contains("topic \"orders\": subscription \"b\" takes no message"), "{}", nack.reason);
    let published = ["a", "b", "c"].map(|name| counts(&memory, "orders", name).0.published);
    assert_eq!(published, [1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_names_no_topic_wants_demo_and_is_told_what_there_is() {
    let memory = server(&[("orders", &[("billing", None, strict())])]).await;
    let status = memory.open(Open::default()).await.ends_with().await;
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(status.message(), "there is no topic \"demo\"; this server has orders");
}

#[tokio::test(start_paused = true)]
async fn what_is_given_up_comes_to_the_dead_letter_topic_with_its_payload_and_its_history() {
    let memory =
        server(&[("orders", &[("billing", Some("dead"), strict())]), ("dead", &[("dead", None, strict())])]).await;
    let mut dead = consumer(&memory, "dead", "dead").await;
    let mut billing = consumer(&memory, "orders", "billing").await;
    let attributes = BTreeMap::from([("kind".to_owned(), "new".to_owned())]);
    let payload = bytes::Bytes::from_static(b"poison");
    publish(&memory, "orders", DataMessage { payload, attributes, ..DataMessage::default() }).await;
    billing.delivery().await;

    let (letter, took) = timed(dead.delivery()).await;

    assert!(about(took, Duration::from_secs(2)), "at the ack deadline: {took:?}");
    assert_eq!((letter.id, letter.delivery_attempt, letter.payload.as_ref()), (1, 1, &b"poison"[..]));
    let of = |name: &str| letter.attributes[name].as_str();
    assert_eq!(of("kind"), "new");
    assert_eq!(
        ["topic", "subscription", "id", "reason"].map(|name| of(&format!("ackstream.origin.{name}"))),
        ["orders", "billing", "1", "max_retries"]
    );
    let attempts: serde_json::Value = serde_json::from_str(of("ackstream.origin.attempts")).unwrap();
    let attempts = attempts.as_array().unwrap();
    assert_eq!(attempts.len(), 1);
    assert_eq!((&attempts[0]["attempt"], &attempts[0]["outcome"]), (&1.into(), &"expired".into()));
    let instant = |name: &str| humantime::parse_rfc3339(attempts[0][name].as_str().unwrap()).unwrap();
    assert_eq!(instant("ended_at").duration_since(instant("sent_at")).unwrap(), Duration::from_secs(2));
    assert_eq!(counts(&memory, "orders", "billing").0.dropped, 1);
    assert_metric(
        &memory,
        "ackstream_dead_letters_total{topic=\"orders\",subscription=\"billing\",outcome=\"published\"} 1",
    );
}

#[tokio::test(start_paused = true)]
async fn a_long_history_fits_an_attribute() {
    let patient = Policy { max_retries: Some(99), ..Policy::default() };
    let memory =
        server(&[("orders", &[("billing", Some("dead"), patient)]), ("dead", &[("dead", None, strict())])]).await;
    let mut billing = consumer(&memory, "orders", "billing").await;
    publish(&memory, "orders", DataMessage::default()).await;
    for attempt in 1..=100 {
        assert_eq!(billing.delivery().await.delivery_attempt, attempt);
    }
    let letter = consumer(&memory, "dead", "dead").await.delivery().await;
    let text = &letter.attributes["ackstream.origin.attempts"];
    assert!(text.len() <= ackstream::broker::MAX_ATTRIBUTE_VALUE, "{}", text.len());
    let attempts: Vec<BTreeMap<String, serde_json::Value>> = serde_json::from_str(text).unwrap();
    let numbers: Vec<_> = attempts.iter().map(|attempt| attempt["attempt"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=16).chain(85..=100).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn while_the_dead_letter_topic_is_full_a_message_waits_and_is_not_lost() {
    let small = Policy { max_backlog_messages: 1, ..Policy::default() };
    let memory =
        server(&[("orders", &[("billing", Some("dead"), strict())]), ("dead", &[("dead", None, small)])]).await;
    let mut billing = consumer(&memory, "orders", "billing").await;
    let mut stream = publisher(&memory, "orders").await;
    for id in 1..=3 {
        stream.publish(id, b"x").await;
        billing.delivery().await;
        reject(&mut billing, id).await;
    }
    settle().await;
    let (before, backlog) = counts(&memory, "orders", "billing");
    assert_eq!((before.dropped, backlog.delayed), (1, 2), "one found room");
    let refused = "ackstream_dead_letters_total{topic=\"orders\",subscription=\"billing\",outcome=\"refused\"} 2";
    assert_metric(&memory, refused);
    assert_metric(&memory, "ackstream_messages_rejected_total{topic=\"dead\",reason=\"backlog_full\"} 0");

    let mut dead = consumer(&memory, "dead", "dead").await;
    let mut origins = Vec::new();
    for id in 1..=3 {
        let letter = dead.delivery().await;
        origins.push(letter.attributes["ackstream.origin.id"].clone());
        dead.ack_message(id).await;
    }

    assert_eq!(origins, ["1", "2", "3"]);
    settle().await;
    let (after, backlog) = counts(&memory, "orders", "billing");
    assert_eq!((after.dropped, backlog.messages()), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_can_be_published_again_as_it_is_though_it_was_as_large_as_messages_may_be() {
    let memory =
        server(&[("orders", &[("billing", Some("dead"), strict())]), ("dead", &[("dead", None, strict())])]).await;
    let mut billing = consumer(&memory, "orders", "billing").await;
    let mut stream = publisher(&memory, "orders").await;
    let attributes: BTreeMap<_, _> = (0..64).map(|n| (format!("{n:02}"), String::new())).collect();
    let payload = bytes::Bytes::from(vec![7; (1 << 20) - 128]);
    stream.send(Kind::Data(DataMessage { id: 1, payload, attributes, ..DataMessage::default() })).await;
    stream.ack().await;
    billing.delivery().await;
    reject(&mut billing, 1).await;
    let letter = consumer(&memory, "dead", "dead").await.delivery().await;
    assert_eq!(letter.attributes.len(), 69);

    stream.send(Kind::Data(DataMessage { id: 2, ..letter.clone() })).await;

    assert_eq!(stream.ack().await.message_id, 2);
    let again = billing.delivery().await;
    assert_eq!((again.payload, again.attributes), (letter.payload, letter.attributes));
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_may_die_again() {
    let memory = server(&[
        ("orders", &[("billing", Some("dead"), strict())]),
        ("dead", &[("dead", Some("grave"), strict())]),
        ("grave", &[("grave", None, strict())]),
    ])
    .await;
    let mut stream = publisher(&memory, "orders").await;
    stream.publish(1, b"x").await;
    for (topic, subscription) in [("orders", "billing"), ("dead", "dead")] {
        let mut consumer = consumer(&memory, topic, subscription).await;
        consumer.delivery().await;
        reject(&mut consumer, 1).await;
    }
    let letter = consumer(&memory, "grave", "grave").await.delivery().await;
    assert_eq!(letter.attributes["ackstream.origin.topic"], "dead", "where it died last");
}

#[tokio::test(start_paused = true)]
async fn a_demo_ends_when_all_its_subscriptions_have_settled_everything() {
    use ackstream::generator::{self, Plan};
    let memory = server(&[("demo", &[("a", None, strict()), ("b", None, strict())])]).await;
    let plan = Plan { count: std::num::NonZeroU64::new(2), interval: Duration::from_secs(1) };
    let topic = memory.server.broker().topic("demo").unwrap();
    let run = generator::run(plan, topic, memory.server.progress());
    let consume = async {
        let mut a = consumer(&memory, "demo", "a").await;
        for id in 1..=2 {
            a.delivery().await;
            a.ack_message(id).await;
        }
        settle().await;
        assert_eq!(counts(&memory, "demo", "a").0.acked, 2);
        let mut b = consumer(&memory, "demo", "b").await;
        b.delivery().await;
        b.delivery().await; // both expire, without a retry
        b
    };
    let (took, _b) = tokio::join!(async { timed(run).await.1 }, consume);
    assert!(took >= Duration::from_secs(3), "it waits for the second subscription: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_subscription_that_is_stuck_and_full_holds_up_publishers_but_no_other_subscription() {
    let small = Policy { max_backlog_messages: 3, ..Policy::default() };
    let default = Policy::default;
    let memory = server(&[("orders", &[("a", None, default()), ("b", None, default()), ("stuck", None, small)])]).await;
    let mut a = consumer(&memory, "orders", "a").await;
    let mut b = consumer(&memory, "orders", "b").await;
    let mut stream = publisher(&memory, "orders").await;
    for id in 1..=3 {
        stream.publish(id, b"x").await;
        stream.ack().await;
        let (ids, took) = timed(async { (a.delivery().await.id, b.delivery().await.id) }).await;
        assert_eq!(ids, (id, id));
        assert_eq!(took, Duration::ZERO);
    }
    for id in 4..=100 {
        stream.publish(id, b"y").await;
        assert!(stream.nack().await.reason.contains("subscription \"stuck\""));
    }
    a.send(Kind::Nack(Nack { ack_id: 2, delay: Some(prost_types::Duration::default()), ..Nack::default() })).await;
    let (again, took) = timed(a.delivery()).await;
    assert_eq!((again.id, again.delivery_attempt, took), (2, 2, Duration::ZERO), "it keeps its latency");
    for name in ["a", "b", "stuck"] {
        assert_eq!(counts(&memory, "orders", name).0.published, 3, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn eight_poison_messages_arrive_in_a_dead_letter_topic_that_has_room_for_four() {
    let names = ["s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8"];
    let policy = Policy { max_retries: Some(2), ..Policy::default() };
    let small = Policy { max_backlog_messages: 4, ..Policy::default() };
    let under = names.map(|name| (name, Some("dead"), policy.clone()));
    let memory = server(&[("orders", &under), ("dead", &[("dead", None, small)])]).await;
    publish(&memory, "orders", DataMessage { payload: "poison".into(), ..DataMessage::default() }).await;
    for name in names {
        let mut consumer = consumer(&memory, "orders", name).await;
        for attempt in 1..=3 {
            assert_eq!(consumer.delivery().await.delivery_attempt, attempt);
            let delay = Some(prost_types::Duration::default());
            consumer.send(Kind::Nack(Nack { ack_id: 1, delay, ..Nack::default() })).await;
        }
        settle().await;
    }
    let dropped = || names.map(|name| counts(&memory, "orders", name).0.dropped).into_iter().sum::<u64>();
    assert_eq!(dropped(), 4, "as many as fit");

    let mut dead = consumer(&memory, "dead", "dead").await;
    let mut arrived = Vec::new();
    for id in 1..=8 {
        let letter = dead.delivery().await;
        let attempts: serde_json::Value =
            serde_json::from_str(&letter.attributes["ackstream.origin.attempts"]).unwrap();
        let outcomes: Vec<_> = attempts.as_array().unwrap().iter().map(|attempt| attempt["outcome"].clone()).collect();
        assert_eq!(outcomes, ["nacked", "nacked", "nacked"]);
        assert_eq!(
            (letter.attributes["ackstream.origin.reason"].as_str(), letter.payload.as_ref()),
            ("max_retries", &b"poison"[..])
        );
        arrived.push(letter.attributes["ackstream.origin.subscription"].clone());
        dead.ack_message(id).await;
    }

    arrived.sort();
    assert_eq!(arrived, names);
    settle().await;
    assert_eq!(dropped(), 8);
    let left = names.map(|name| counts(&memory, "orders", name).1.messages()).into_iter().sum::<u64>();
    assert_eq!(left, 0, "nothing is left, and nothing is lost");
}
