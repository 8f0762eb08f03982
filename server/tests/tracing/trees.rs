use std::collections::BTreeMap;
use std::time::Duration;

use ackstream::proto::stream_message::Kind;
use ackstream::proto::{DataMessage, Extend, Nack, Open};
use ackstream::telemetry::TRACEPARENT;
use opentelemetry_proto::tonic::trace::v1::Span;

use crate::collector::{Collector, Mood, hex, tree};
use crate::support::{Conversation, Memory};

const FLUSH: Duration = Duration::from_secs(30);

/// A server that traces everything, its collector, and a consumer that calls itself "alice".
struct Traced {
    collector: Collector,
    memory: Memory,
}

impl Traced {
    async fn new(max_retries: u32) -> Self {
        let collector = Collector::start(Mood::Takes).await;
        let memory = Memory::with(|settings| {
            settings.traces = Some(collector.settings());
            settings.policy.ack_deadline = Duration::from_mins(10);
            settings.policy.max_retries = Some(max_retries);
        })
        .await;
        Self { collector, memory }
    }

    async fn consumer(&self, client_id: &str) -> Conversation {
        self.memory.consume(Open { client_id: client_id.to_owned(), ..Open::default() }).await
    }

    /// Publishes one message with these attributes.
    async fn publish(&self, attributes: &[(&str, &str)]) {
        let mut publisher = self.memory.consume(Open { publish_only: true, ..Open::default() }).await;
        let attributes = attributes.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        publisher.send(Kind::Data(DataMessage { attributes, ..DataMessage::default() })).await;
        publisher.ack().await;
    }

    /// The one trace that was exported.
    async fn trace(&self) -> Vec<Span> {
        self.memory.server.flush_traces(FLUSH).await;
        let mut traces: Vec<_> = self.collector.traces().into_values().collect();
        assert_eq!(traces.len(), 1, "{traces:?}");
        assert_eq!(self.memory.server.trace_counts().spans_dropped(), 0);
        traces.remove(0)
    }
}

async fn nack(consumer: &mut Conversation, delay: Option<Duration>, drop: bool) {
    let delay = delay.map(|delay| prost_types::Duration::try_from(delay).unwrap());
    consumer.send(Kind::Nack(Nack { ack_id: 1, delay, drop, ..Nack::default() })).await;
}

/// Waits until the server has done all that this consumer has asked for.
async fn finish(mut consumer: Conversation) {
    consumer.half_close();
    consumer.ends_ok().await;
}

/// The context that the frame of this attempt must carry.
fn context(trace: &[Span], attempt: usize) -> String {
    let push = &trace[attempt];
    format!("00-{}-{}-01", hex(&push.trace_id), hex(&push.span_id))
}

#[tokio::test]
async fn a_clean_message_is_one_delivery_in_one_trace() {
    let traced = Traced::new(3).await;
    let mut consumer = traced.consumer("alice").await;
    traced.publish(&[]).await;
    let data = consumer.delivery().await;
    consumer.ack_message(1).await;
    finish(consumer).await;

    let trace = traced.trace().await;

    assert_eq!(
        tree(&trace, 1),
        "\
deliver demo Internal delivery_attempts=1 outcome=acked
  push demo Producer delivery_attempt=1 outcome=acked client.id=alice operation.type=send
"
    );
    assert_eq!(data.trace_context, context(&trace, 1));
    let accepted = data.timestamp.unwrap();
    let nanos = u64::try_from(accepted.seconds).unwrap() * 1_000_000_000 + u64::try_from(accepted.nanos).unwrap();
    assert_eq!(trace[0].start_time_unix_nano, nanos, "it begins when the message was accepted");
    assert_eq!(trace[0].end_time_unix_nano, trace[1].end_time_unix_nano, "and ends with the ack");
    let (resource, scope) = traced.collector.resource_and_scope();
    let expected = [
        ("service.name", "ackstream-server"),
        ("service.namespace", "ackstream"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("telemetry.sdk.language", "rust"),
        ("telemetry.sdk.name", "opentelemetry"),
    ];
    for (name, value) in expected {
        assert_eq!(resource[name], value);
    }
    assert_eq!(resource["service.instance.id"].len(), 32);
    assert_eq!(scope, ("ackstream".to_owned(), env!("CARGO_PKG_VERSION").to_owned()));
}

#[tokio::test]
async fn each_retry_is_a_delivery_of_its_own_linked_to_the_one_before() {
    let traced = Traced::new(3).await;
    let mut consumer = traced.consumer("alice").await;
    traced.publish(&[]).await;
    let mut contexts = vec![consumer.delivery().await.trace_context];
    let extend =
        Extend { ack_id: 1, ack_deadline: Some(prost_types::Duration { seconds: 0, nanos: 1 }), ..Extend::default() };
    consumer.send(Kind::Extend(extend)).await;
    contexts.push(consumer.delivery().await.trace_context);
    nack(&mut consumer, Some(Duration::ZERO), false).await;
    contexts.push(consumer.delivery().await.trace_context);
    consumer.ack_message(1).await;
    finish(consumer).await;

    let trace = traced.trace().await;

    assert_eq!(
        tree(&trace, 1),
        "\
deliver demo Internal delivery_attempts=3 outcome=acked
  push demo Producer error.type=expired delivery_attempt=1 outcome=expired client.id=alice operation.type=send ERROR(no ack came in time)
  push demo Producer error.type=nacked delivery_attempt=2 outcome=nacked client.id=alice operation.type=send ERROR(its consumer nacked it) after 1
  push demo Producer delivery_attempt=3 outcome=acked client.id=alice operation.type=send after 2
"
    );
    assert_eq!(contexts, [context(&trace, 1), context(&trace, 2), context(&trace, 3)]);
}

#[tokio::test]
async fn a_consumer_that_leaves_cleanly_has_not_failed_and_is_known_by_its_name_when_it_is_gone() {
    let traced = Traced::new(0).await;
    traced.publish(&[]).await;
    let mut first = traced.consumer("alice").await;
    first.delivery().await;
    finish(first).await;
    let mut second = traced.consumer("bob").await;
    second.delivery().await;
    second.ack_message(1).await;
    finish(second).await;

    assert_eq!(
        tree(&traced.trace().await, 1),
        "\
deliver demo Internal delivery_attempts=2 delivery_attempts_left_out=1 outcome=acked
  push demo Producer delivery_attempt=2 outcome=acked client.id=bob operation.type=send
"
    );
}

#[tokio::test]
async fn a_broken_stream_is_an_interrupted_delivery() {
    let traced = Traced::new(1).await;
    traced.publish(&[]).await;
    let mut first = traced.consumer("").await;
    first.delivery().await;
    drop(first);
    let mut second = traced.consumer("").await;
    second.delivery().await;
    second.ack_message(1).await;
    finish(second).await;

    assert_eq!(
        tree(&traced.trace().await, 1),
        "\
deliver demo Internal delivery_attempts=2 outcome=acked
  push demo Producer error.type=interrupted delivery_attempt=1 outcome=interrupted operation.type=send ERROR(its consumer's stream broke)
  push demo Producer delivery_attempt=2 outcome=acked operation.type=send after 1
"
    );
}

#[tokio::test]
async fn a_late_ack_ends_the_message_but_not_the_delivery_that_had_failed() {
    let traced = Traced::new(3).await;
    let mut consumer = traced.consumer("").await;
    traced.publish(&[]).await;
    consumer.delivery().await;
    nack(&mut consumer, Some(Duration::from_mins(1)), false).await;
    consumer.ack_message(1).await;
    finish(consumer).await;

    assert_eq!(
        tree(&traced.trace().await, 1),
        "\
deliver demo Internal delivery_attempts=1 late_ack=true outcome=acked
  push demo Producer error.type=nacked delivery_attempt=1 outcome=nacked operation.type=send ERROR(its consumer nacked it)
"
    );
}

#[tokio::test]
async fn a_message_without_a_retry_left_is_an_error() {
    let traced = Traced::new(1).await;
    let mut consumer = traced.consumer("").await;
    traced.publish(&[]).await;
    for _ in 0..2 {
        consumer.delivery().await;
        nack(&mut consumer, Some(Duration::ZERO), false).await;
    }
    finish(consumer).await;

    assert_eq!(
        tree(&traced.trace().await, 1),
        "\
deliver demo Internal error.type=max_retries delivery_attempts=2 outcome=dropped ERROR(dropped: no retry is left)
  push demo Producer error.type=nacked delivery_attempt=1 outcome=nacked operation.type=send ERROR(its consumer nacked it)
  push demo Producer error.type=nacked delivery_attempt=2 outcome=nacked operation.type=send ERROR(its consumer nacked it) after 1
"
    );
}

#[tokio::test]
async fn a_rejected_message_is_an_error() {
    let traced = Traced::new(3).await;
    let mut consumer = traced.consumer("").await;
    traced.publish(&[]).await;
    consumer.delivery().await;
    nack(&mut consumer, None, true).await;
    finish(consumer).await;

    assert_eq!(
        tree(&traced.trace().await, 1),
        "\
deliver demo Internal error.type=rejected delivery_attempts=1 outcome=dropped ERROR(dropped: its consumer rejected it)
  push demo Producer error.type=nacked delivery_attempt=1 outcome=nacked operation.type=send ERROR(its consumer nacked it)
"
    );
}

#[tokio::test]
async fn an_auto_acked_delivery_ends_when_it_begins() {
    let traced = Traced::new(3).await;
    let mut tail = traced.memory.consume(Open { auto_ack: true, ..Open::default() }).await;
    traced.publish(&[]).await;
    let data = tail.delivery().await;

    let trace = traced.trace().await;

    assert_eq!(data.trace_context, context(&trace, 1));
    assert_eq!(trace[1].start_time_unix_nano, trace[1].end_time_unix_nano);
}

#[tokio::test]
async fn a_publishers_span_is_the_parent_and_its_attributes_stay_as_they_were() {
    let traced = Traced::new(3).await;
    let mut consumer = traced.consumer("").await;
    let published =
        [(TRACEPARENT, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), ("tracestate", "vendor=1")];
    traced.publish(&published).await;
    let data = consumer.delivery().await;
    consumer.ack_message(1).await;
    finish(consumer).await;

    let trace = traced.trace().await;

    assert_eq!(hex(&trace[0].trace_id), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(
        tree(&trace, 1),
        "\
deliver demo Internal below b7ad6b7169203331 delivery_attempts=1 outcome=acked
  push demo Producer delivery_attempt=1 outcome=acked operation.type=send
"
    );
    assert_eq!(data.trace_context, context(&trace, 1));
    let attributes = published.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(data.attributes, BTreeMap::from(attributes));
    assert_eq!(traced.memory.server.trace_counts().contexts_ignored(), 0);
}

#[tokio::test]
async fn a_context_that_is_none_is_ignored_and_counted_once_a_message() {
    let traced = Traced::new(3).await;
    let mut consumer = traced.consumer("").await;
    let hostile = "0".repeat(4_000);
    traced.publish(&[(TRACEPARENT, &hostile)]).await;
    let data = consumer.delivery().await;
    nack(&mut consumer, Some(Duration::ZERO), false).await;
    consumer.delivery().await;
    consumer.ack_message(1).await;
    finish(consumer).await;

    let trace = traced.trace().await;

    assert!(trace[0].parent_span_id.is_empty(), "the message has a trace of its own");
    assert_eq!(data.attributes[TRACEPARENT], hostile);
    assert_eq!(traced.memory.server.trace_counts().contexts_ignored(), 1);
}

#[tokio::test]
async fn of_many_deliveries_the_first_and_the_last_are_shown_and_the_rest_is_said() {
    let traced = Traced::new(1_000).await;
    let mut consumer = traced.consumer("").await;
    traced.publish(&[]).await;
    for _ in 0..99 {
        consumer.delivery().await;
        nack(&mut consumer, Some(Duration::ZERO), false).await;
    }
    consumer.delivery().await;
    consumer.ack_message(1).await;
    finish(consumer).await;

    let tree = tree(&traced.trace().await, 1);

    let lines: Vec<_> = tree.lines().collect();
    assert_eq!(lines.len(), 1 + 32 + 1);
    assert_eq!(lines[0], "deliver demo Internal delivery_attempts=100 delivery_attempts_left_out=67 outcome=acked");
    assert!(lines[16].contains(" delivery_attempt=16 "));
    assert!(lines[17].contains(" delivery_attempt=84 ") && lines[17].ends_with(" after 16"));
}

#[tokio::test]
async fn without_tracing_a_frame_carries_no_context() {
    let memory = Memory::start().await;
    let mut consumer = memory.consume(Open::default()).await;
    memory.publish(1).await;
    assert_eq!(consumer.delivery().await.trace_context, "");
    assert_eq!(memory.server.trace_counts().contexts_ignored(), 0);
}
