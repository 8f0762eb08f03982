//! What a connection and a consumer may do, and what becomes of those that do more, or nothing.

use std::time::Duration;

use ackstream::proto::stream_message::Kind;
use ackstream::proto::{Extend, Open};
use ackstream::telemetry::ConnectionClosing;
use http::uri::PathAndQuery;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1alpha;

use crate::support::{Conversation, Memory, about, settle, timed};

/// More than HTTP/2 and tonic hold for a stream that is not read.
const MORE_THAN_IS_BUFFERED: u64 = 200;
/// Bytes of a message of those.
const LARGE: usize = 60_000;

async fn publish_large(memory: &Memory) {
    let mut publisher = memory.consume(Open { publish_only: true, ..Open::default() }).await;
    for id in 1..=MORE_THAN_IS_BUFFERED {
        publisher.publish(id, &vec![7; LARGE]).await;
        publisher.ack().await;
    }
}

/// A consumer that has been opened, on a server with more than it can take without reading.
async fn overwhelmed(memory: &Memory) -> Conversation {
    let consumer = memory.consume(Open { max_outstanding_messages: 1_000, ..Open::default() }).await;
    publish_large(memory).await;
    settle().await;
    assert!(memory.counts().1.ready > 0, "not all of it is on its way");
    consumer
}

fn closed(memory: &Memory, why: ConnectionClosing) -> u64 {
    memory.server.connections().counts().closed(why)
}

fn stuck(memory: &Memory) -> u64 {
    memory.server.connections().counts().stuck_consumers()
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_or_half_a_preface_is_closed_after_five_seconds() {
    let memory = Memory::start().await;
    for said in [&b""[..], b"PRI * HTTP/2.0\r\n"] {
        let mut connection = memory.dial();
        connection.write_all(said).await.unwrap();
        let (end, took) = timed(connection.read(&mut [0; 100])).await;
        assert_eq!(end.unwrap(), 0);
        assert!(about(took, Duration::from_secs(5)), "{took:?}");
    }
    settle().await;
    assert_eq!(closed(&memory, ConnectionClosing::NoPreface), 2);
    assert_eq!(memory.server.connections().counts().open(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_http2_is_closed_at_once() {
    let memory = Memory::start().await;
    let mut connection = memory.dial();
    connection.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let (end, took) = timed(connection.read(&mut [0; 100])).await;
    assert_eq!(end.unwrap(), 0);
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_takes_nothing_of_what_is_due_to_it_is_told_so_after_thirty_seconds() {
    let memory = Memory::with(|settings| settings.policy.ack_deadline = Duration::from_mins(10)).await;
    let mut consumer = overwhelmed(&memory).await;
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert_eq!((stuck(&memory), memory.counts().0.ended.interrupted), (0, 0));
    tokio::time::sleep(Duration::from_secs(8)).await;
    let (counts, backlog) = memory.counts();
    assert_eq!((stuck(&memory), counts.ended.interrupted, backlog.outstanding), (1, counts.sent, 0));
    let status = loop {
        match consumer.next().await {
            Ok(frame) => assert!(matches!(frame, Some(Kind::Data(_)))),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().starts_with("nothing was read and nothing was sent for 30s"), "{status}");
    assert_eq!(closed(&memory, ConnectionClosing::EndNotRead), 0);
}

#[tokio::test(start_paused = true)]
async fn where_it_does_not_even_read_that_its_connection_is_closed() {
    let memory = Memory::with(|settings| settings.policy.ack_deadline = Duration::from_mins(10)).await;
    let _consumer = overwhelmed(&memory).await;
    tokio::time::sleep(Duration::from_secs(30 + 6 + 6)).await;
    assert_eq!((stuck(&memory), closed(&memory, ConnectionClosing::EndNotRead)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_slow_but_steady_reader_is_left_alone() {
    let memory = Memory::with(|settings| settings.policy.ack_deadline = Duration::from_hours(1)).await;
    let mut consumer = overwhelmed(&memory).await;
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_secs(20)).await;
        consumer.delivery().await;
    }
    assert_eq!(stuck(&memory), 0);
}

#[tokio::test(start_paused = true)]
async fn who_sends_frames_is_not_stuck() {
    let memory = Memory::with(|settings| settings.policy.ack_deadline = Duration::from_hours(1)).await;
    let mut consumer = overwhelmed(&memory).await;
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_secs(20)).await;
        consumer.send(Kind::Extend(Extend { ack_id: 1, ..Extend::default() })).await;
    }
    assert_eq!(stuck(&memory), 0);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_message_or_holds_all_it_may_is_not_stuck() {
    let memory = Memory::with(|settings| settings.policy.ack_deadline = Duration::from_hours(1)).await;
    let mut full = memory.consume(Open { max_outstanding_messages: 1, ..Open::default() }).await;
    memory.publish(2).await;
    full.delivery().await;
    let _quiet = memory.consume(Open { subscription: "demo".to_owned(), ..Open::default() }).await;
    tokio::time::sleep(Duration::from_mins(50)).await;
    assert_eq!(stuck(&memory), 0);
}

#[tokio::test(start_paused = true)]
async fn an_old_connection_takes_no_new_streams_and_ends_those_it_has_after_the_grace() {
    let memory = Memory::with(|settings| {
        settings.policy.ack_deadline = Duration::from_hours(1);
        settings.policy.max_retries = Some(0);
        settings.connections.max_age = Some(Duration::from_mins(10));
    })
    .await;
    let mut consumer = memory.consume(Open::default()).await;
    memory.publish(1).await;
    consumer.delivery().await;
    let (status, took) = timed(consumer.ends_with()).await;
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().starts_with("the connection has reached its age"), "{status}");
    let (least, most) =
        (Duration::from_mins(9) + Duration::from_secs(29), Duration::from_mins(11) + Duration::from_secs(31));
    assert!((least..=most).contains(&took), "{took:?}");
    let (counts, backlog) = memory.counts();
    assert_eq!((counts.ended.released, counts.dropped, backlog.ready), (1, 0, 1), "it costs no retry");
    settle().await;
    assert_eq!(memory.server.connections().counts().open(), 0, "its connection is closed");
}

/// Ages at which the connections of a consumer each end.
async fn ages(connections: usize) -> Vec<Duration> {
    let memory = Memory::with(|settings| {
        settings.connections.max_age = Some(Duration::from_mins(10));
        settings.connections.age_grace = Duration::ZERO;
    })
    .await;
    let mut consumers = Vec::new();
    for _ in 0..connections {
        consumers.push(memory.consume(Open::default()).await);
    }
    let began = Instant::now();
    let ends = consumers.into_iter().map(|mut consumer| async move {
        consumer.ends_with().await;
        began.elapsed()
    });
    let ends: Vec<_> = ends.map(tokio::spawn).collect();
    let mut ages = Vec::new();
    for end in ends {
        ages.push(end.await.unwrap());
    }
    ages
}

#[tokio::test(start_paused = true)]
async fn connections_that_began_together_do_not_end_together() {
    let ages = ages(20).await;
    let (first, last) = (ages.iter().min().unwrap(), ages.iter().max().unwrap());
    // That twenty of them lie within a tenth of where they may lie happens less than once in 10^17 runs.
    assert!(last.saturating_sub(*first) > Duration::from_secs(12), "{ages:?}");
}

fn asking(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

#[tokio::test(start_paused = true)]
async fn a_request_of_one_message_must_come_within_5_s() {
    let memory = Memory::start().await;
    let mut client = tonic::client::Grpc::new(memory.connect().await);
    client.ready().await.unwrap();
    let never = tonic::Request::new(tokio_stream::pending::<HealthCheckRequest>());
    let (path, codec) = (PathAndQuery::from_static("/grpc.health.v1.Health/Check"), ProstCodec::default());
    let call = client.client_streaming::<_, _, HealthCheckResponse, _>(never, path, codec);
    let (refused, took) = timed(call).await;
    let status = refused.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::DeadlineExceeded, "the request did not come within 5s"));
    assert!(about(took, Duration::from_secs(5)), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_health_or_reflection_says_little() {
    let memory = Memory::start().await;
    let mut health = HealthClient::new(memory.connect().await);
    let asked = health.check(asking(&"x".repeat(4_000))).await.unwrap_err();
    assert_eq!(asked.code(), Code::NotFound, "it is read");
    let asked = health.check(asking(&"x".repeat(5_000))).await.unwrap_err();
    assert_eq!(asked.code(), Code::OutOfRange, "it is not read: {asked}");
    let asked = health.watch(asking(&"x".repeat(5_000))).await.unwrap_err();
    assert_eq!(asked.code(), Code::OutOfRange, "it is not read: {asked}");

    let mut reflection = ServerReflectionClient::new(memory.connect().await);
    let request = MessageRequest::FileContainingSymbol("x".repeat(5_000));
    let request = ServerReflectionRequest { message_request: Some(request), ..ServerReflectionRequest::default() };
    let asked = reflection.server_reflection_info(tokio_stream::once(request)).await;
    assert_eq!(asked.unwrap().into_inner().message().await.unwrap(), None, "it is not read, and ends the stream");

    let mut reflection = v1alpha::server_reflection_client::ServerReflectionClient::new(memory.connect().await);
    let request = v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol("x".repeat(5_000));
    let request = v1alpha::ServerReflectionRequest {
        message_request: Some(request),
        ..v1alpha::ServerReflectionRequest::default()
    };
    let asked = reflection.server_reflection_info(tokio_stream::once(request)).await;
    assert_eq!(asked.unwrap().into_inner().message().await.unwrap(), None, "it is not read, and ends the stream");
}

#[tokio::test(start_paused = true)]
async fn who_watches_the_health_takes_no_place_of_a_stream_of_messages_and_has_no_more_places_than_those() {
    let memory = Memory::with(|settings| settings.limits.max_streams = 2).await;
    let mut health = HealthClient::new(memory.connect().await);
    let mut watches = Vec::new();
    for _ in 0..2 {
        watches.push(health.watch(asking("")).await.unwrap());
    }
    let status = health.watch(asking("")).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.message(), "as many such streams are open as may be (max_streams)");
    health.check(asking("")).await.unwrap();
    let _consumers = [memory.consume(Open::default()).await, memory.consume(Open::default()).await];
    watches.pop();
    settle().await;
    health.watch(asking("")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn streams_that_carry_no_messages_end_with_their_connection_too() {
    let memory = Memory::with(|settings| {
        settings.connections.max_age = Some(Duration::from_mins(10));
        settings.connections.age_grace = Duration::from_secs(30);
    })
    .await;
    let mut health = HealthClient::new(memory.connect().await);
    let mut known = health.watch(asking("")).await.unwrap().into_inner();
    let mut unknown = health.watch(asking("nope")).await.unwrap().into_inner();
    assert!(known.message().await.unwrap().is_some());
    assert!(unknown.message().await.unwrap().is_some());
    let (ends, took) =
        timed(async { [known.message().await.unwrap_err(), unknown.message().await.unwrap_err()] }).await;
    assert!(took > Duration::from_mins(9), "{took:?}");
    for status in ends {
        assert_eq!(status.code(), Code::Unavailable, "{status}");
    }
    settle().await;
    assert_eq!(memory.server.connections().counts().open(), 0, "their connection is closed");
}

#[tokio::test(start_paused = true)]
async fn who_watches_a_service_that_is_not_there_learns_so_on_a_stream_that_stays_open() {
    let memory = Memory::start().await;
    let mut health = HealthClient::new(memory.connect().await);
    let mut watch = health.watch(asking("nope")).await.unwrap().into_inner();
    let told = watch.message().await.unwrap().unwrap();
    assert_eq!(told.status(), ServingStatus::ServiceUnknown);
    let more = tokio::time::timeout(Duration::from_mins(10), watch.message()).await;
    assert!(more.is_err(), "it stays open: {more:?}");
    assert_eq!(health.check(asking("nope")).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_line_that_is_slow_lives_and_one_that_is_silent_ends_after_thirty_seconds() {
    let memory = Memory::start().await;
    let mut connection = memory.dial();
    connection.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    connection.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap(); // empty SETTINGS
    connection.write_all(&[0, 39, 16, 0xfe, 0, 0, 0, 0, 0]).await.unwrap(); // 10,000 bytes of a frame that nobody knows
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(5)).await;
        connection.write_all(&[0]).await.unwrap();
    }
    assert_eq!(memory.server.connections().counts().open(), 1, "no PING was answered, but bytes came");

    let (end, took) = timed(connection.read_to_end(&mut Vec::new())).await;

    end.unwrap();
    assert!(about(took, Duration::from_secs(30)), "{took:?}");
}
