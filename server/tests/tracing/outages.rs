use std::time::Duration;

use ackstream::proto::Open;
use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;
use tonic::Code;

use crate::collector::{Collector, Mood, settings};
use crate::support::Memory;

/// A server that traces to this address, with a timeout short enough for a test.
async fn memory(collector: std::net::SocketAddr, timeout: Duration) -> Memory {
    Memory::with(|server| {
        server.traces = Some(settings(collector));
        server.traces.as_mut().unwrap().timeout = timeout;
        server.traces_per_second = u32::MAX;
        server.policy.ack_deadline = Duration::from_mins(10);
    })
    .await
}

/// So many messages are published, delivered and acked, whatever becomes of their traces.
async fn deliver(memory: &Memory, count: u64) {
    let mut tail = memory.consume(Open { auto_ack: true, ..Open::default() }).await;
    memory.publish(count).await;
    for id in 1..=count {
        assert_eq!(tail.delivery().await.id, id);
    }
    assert_eq!(memory.counts().0.acked, count);
}

#[tokio::test]
async fn a_collector_that_is_down_costs_no_message_and_what_was_lost_is_counted() {
    let nobody = {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap()
    };
    let memory = memory(nobody, Duration::from_millis(300)).await;
    deliver(&memory, 20).await;
    memory.server.flush_traces(Duration::from_secs(30)).await;
    let counts = memory.server.trace_counts();
    assert_eq!((counts.export_failed(), counts.queue_full(), counts.rate_limited()), (40, 0, 0));
}

#[tokio::test]
async fn a_collector_that_refuses_costs_no_message_and_what_was_lost_is_counted() {
    let collector = Collector::start(Mood::Refuses(Code::PermissionDenied, u32::MAX)).await;
    let memory = memory(collector.address, Duration::from_secs(10)).await;
    deliver(&memory, 20).await;
    memory.server.flush_traces(Duration::from_secs(30)).await;
    assert_eq!(memory.server.trace_counts().export_failed(), 40);
    assert_eq!(collector.spans().len(), 0);
}

#[tokio::test]
async fn spans_that_the_collector_rejects_out_of_an_export_are_counted() {
    for (says, counts) in [(3, 3), (0, 0), (-1, 0), (1_000, 40)] {
        let collector = Collector::start(Mood::Rejects(says)).await;
        let memory = memory(collector.address, Duration::from_secs(10)).await;
        deliver(&memory, 20).await;
        memory.server.flush_traces(Duration::from_secs(30)).await;
        assert_eq!(memory.server.trace_counts().export_failed(), counts, "{says}");
    }
}

#[tokio::test]
async fn something_that_is_no_collector_costs_no_message_and_what_was_lost_is_counted() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let memory = memory(listener.local_addr().unwrap(), Duration::from_millis(300)).await;
    let web_server = tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await; // the other side may be gone
        }
    });
    deliver(&memory, 20).await;
    memory.server.flush_traces(Duration::from_secs(30)).await;
    assert_eq!(memory.server.trace_counts().export_failed(), 40);
    web_server.abort();
}

#[tokio::test]
async fn a_collector_that_is_busy_for_a_moment_is_asked_again_and_nothing_is_lost() {
    let collector = Collector::start(Mood::Refuses(Code::Unavailable, 2)).await;
    let memory = memory(collector.address, Duration::from_secs(30)).await;
    deliver(&memory, 20).await;
    memory.server.flush_traces(Duration::from_secs(30)).await;
    assert_eq!((collector.refused(), collector.spans().len()), (2, 40));
    assert_eq!(memory.server.trace_counts().spans_dropped(), 0);
}

#[tokio::test]
async fn a_collector_that_stalls_costs_no_message_and_a_bounded_queue() {
    const MESSAGES: u64 = 3_000;
    let collector = Collector::start(Mood::Stalls).await;
    let memory = memory(collector.address, Duration::from_mins(10)).await;
    deliver(&memory, MESSAGES).await;

    let start = Instant::now();
    memory.server.flush_traces(Duration::from_millis(100)).await;

    assert!(start.elapsed() < Duration::from_secs(10), "a flush ends in time: {:?}", start.elapsed());
    let counts = memory.server.trace_counts();
    // All but the queue and the batches that were taken out of it.
    assert!(counts.queue_full() >= (MESSAGES - 1_024 - 2 * 128) * 2, "{}", counts.queue_full());
    assert_eq!(
        counts.queue_full() + counts.export_failed(),
        MESSAGES * 2,
        "what waited when the server ended is counted"
    );
}

#[tokio::test]
async fn what_is_settled_after_the_flush_is_counted_as_lost() {
    let collector = Collector::start(Mood::Takes).await;
    let memory = memory(collector.address, Duration::from_secs(10)).await;
    memory.server.flush_traces(Duration::from_secs(30)).await;
    deliver(&memory, 3).await;
    assert_eq!(memory.server.trace_counts().export_failed(), 6);
    memory.server.flush_traces(Duration::from_secs(30)).await;
    assert_eq!(memory.server.trace_counts().export_failed(), 6, "once");
}
