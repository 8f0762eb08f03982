//! Calls and health over gRPC.

use std::time::Duration;

use ackstream::exchange::Ending;
use ackstream::proto::stream_message::Kind;
use ackstream::proto::{DataMessage, Open};
use tokio::time::Instant;
use tonic::{Code, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::page::Page;
use crate::support::{Memory, settle};

const SERVICES: [&str; 5] = [
    "",
    "ackstream.v1.MessageStream",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

fn scrape(memory: &Memory) -> Page {
    Page::parse(&memory.server.endpoint().metrics().scrape())
}

fn closed(memory: &Memory, code: &str) -> u64 {
    scrape(memory).sum("ackstream_streams_closed_total", &format!("\"{code}\""))
}

fn asking(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

async fn health(memory: &Memory, service: &str) -> ServingStatus {
    HealthClient::new(memory.connect().await).check(asking(service)).await.unwrap().into_inner().status()
}

async fn seen(watch: &mut Streaming<HealthCheckResponse>) -> Option<ServingStatus> {
    watch.message().await.unwrap().map(|answer| answer.status())
}

#[tokio::test(start_paused = true)]
async fn every_service_is_not_serving_until_the_port_is_open_and_from_the_drain_on() {
    let server = ackstream::server::Server::start(&crate::support::settings()).await.unwrap();
    let memory = Memory::of(server);
    for service in SERVICES {
        assert_eq!(health(&memory, service).await, ServingStatus::NotServing, "{service}");
    }
    memory.server.serving().await;
    for service in SERVICES {
        assert_eq!(health(&memory, service).await, ServingStatus::Serving, "{service}");
    }
    memory.server.drain(Duration::ZERO).await;
    for service in SERVICES {
        assert_eq!(health(&memory, service).await, ServingStatus::NotServing, "{service}");
    }
    let unknown = HealthClient::new(memory.connect().await).check(asking("no.such.Service")).await;
    assert_eq!(unknown.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(start_paused = true)]
async fn whoever_watches_sees_not_serving_250_ms_before_the_streams_end_and_then_the_end() {
    let memory = Memory::start().await;
    let mut consumer = memory.consume(Open::default()).await;
    let mut client = HealthClient::new(memory.connect().await);
    let mut watch = client.watch(asking("")).await.unwrap().into_inner();
    assert_eq!(seen(&mut watch).await, Some(ServingStatus::Serving));
    let server = std::sync::Arc::clone(&memory.server);
    tokio::spawn(async move {
        server.drain(Duration::from_secs(8)).await;
        server.end_streams(Ending::Stopping).await;
    });
    assert_eq!(seen(&mut watch).await, Some(ServingStatus::NotServing));
    let noticed = Instant::now();
    assert_eq!(consumer.ends_with().await.code(), Code::Unavailable);
    assert!(noticed.elapsed() >= Duration::from_millis(250), "{:?}", noticed.elapsed());
    assert_eq!(seen(&mut watch).await, None); // it holds no closing connection open
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_counted_once_with_the_code_of_its_end() {
    let memory = Memory::start().await;
    let before = scrape(&memory);

    let mut clean = memory.consume(Open::default()).await;
    clean.half_close();
    clean.ends_ok().await;
    let mut unknown = memory.open(Open { topic: "no such".into(), ..Open::default() }).await;
    assert_eq!(unknown.ends_with().await.code(), Code::NotFound);
    drop(memory.consume(Open::default()).await);
    let mut stopped = memory.consume(Open::default()).await;
    memory.server.end_streams(Ending::Stopping).await;
    stopped.ends_with().await;
    settle().await;

    for code in ["OK", "NOT_FOUND", "CANCELLED", "UNAVAILABLE"] {
        assert_eq!(closed(&memory, code), 1, "{code}");
    }
    let after = scrape(&memory);
    let streams = "grpc_service=\"ackstream.v1.MessageStream\"";
    assert_eq!(after.sum("grpc_server_handled_total", streams), 4);
    // Nothing else is moved by a stream that carries nothing, but the number of connections.
    let moved = after.since(&before);
    assert_eq!(moved.iter().filter(|(series, _)| series != "ackstream_connections").count(), 8);
}

#[tokio::test(start_paused = true)]
async fn unary_calls_are_timed_and_streams_are_not() {
    let memory = Memory::start().await;
    health(&memory, "").await;
    settle().await;
    let page = scrape(&memory);
    let check = "grpc_service=\"grpc.health.v1.Health\",grpc_method=\"Check\"";
    assert_eq!(page.sum("grpc_server_handling_seconds_count", check), 1);
    assert_eq!(page.sum("grpc_server_handled_total", &format!("{check},grpc_code=\"OK\"")), 1);
    assert!(!page.0.keys().any(|series| series.contains("handling") && series.contains("Exchange")));
}

#[tokio::test(start_paused = true)]
async fn a_refused_publish_is_counted_by_its_reason_and_nowhere_else() {
    let memory = Memory::with(|settings| {
        settings.max_message_bytes = 20;
        settings.policy.max_backlog_messages = 1;
    })
    .await;
    memory.publish(1).await; // "Message 1" has nine bytes
    let before = scrape(&memory);
    let mut publisher = memory.consume(Open { publish_only: true, ..Open::default() }).await;
    publisher.publish(1, b"one more").await;
    publisher.nack().await;
    publisher.publish(2, &[0; 21]).await;
    publisher.nack().await;
    let attributes = [(String::new(), "without a name".to_owned())].into();
    publisher.send(Kind::Data(DataMessage { id: 3, attributes, ..DataMessage::default() })).await;
    publisher.nack().await;
    memory.server.drain(Duration::from_secs(1)).await;
    publisher.publish(4, b"late").await;
    publisher.nack().await;
    let rejected = |reason| (format!("ackstream_messages_rejected_total{{topic=\"demo\",reason=\"{reason}\"}}"), 1.0);
    let expected = ["backlog_full", "draining", "invalid", "too_large"].map(rejected);
    assert_eq!(scrape(&memory).since(&before), expected);
}
