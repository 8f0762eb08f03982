//! The real binary is asked to stop under load, fifty times.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "telemetry/page.rs"]
#[allow(dead_code, reason = "shared with the tests of telemetry")]
mod page;
#[path = "support/process.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod process;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use ackstream::proto::stream_message::Kind;
use ackstream::proto::{AckMessage, DataMessage, Nack, Open, StreamMessage};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::page::Page;
use crate::process::{Process, next};

const TIMES: u32 = 50;
/// Stopping takes at least 250 ms of waiting: so many go on side by side.
const AT_ONCE: u32 = 5;
/// Publishes that wait for their answer, at most.
const UNANSWERED: u64 = 100;

#[tokio::test(flavor = "multi_thread")]
async fn fifty_times_sigterm_under_load_leaves_no_message_unaccounted_for() {
    for _ in 0..TIMES / AT_ONCE {
        let side_by_side: Vec<_> = (0..AT_ONCE).map(|_| tokio::spawn(stop_under_load())).collect();
        for one in side_by_side {
            one.await.unwrap();
        }
    }
}

async fn stop_under_load() {
    let process =
        Process::start(&["serve", "--ack-deadline", "30ms", "--max-retries", "1", "--log-lines-per-second", "0"]);
    let not_serving = watch_health(process.address).await;
    let accepting = publish(&process).await;
    let (enough, mut wait) = mpsc::channel(1);
    let consumers = [consume(&process, enough.clone()).await, consume(&process, enough).await];
    let metrics = process.metrics;
    let scraper = tokio::task::spawn_blocking(move || scrape_to_the_end(metrics));
    wait.recv().await.unwrap();

    process.signal("-TERM");

    let not_serving = not_serving.await.unwrap();
    for consumer in consumers {
        let (status, ended) = consumer.await.unwrap();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(status.message().starts_with("the server is stopping"), "{status}");
        assert!(ended > not_serving, "NOT_SERVING is seen first"); // 250 ms before, which virtual time can tell exactly
    }
    let accepted = accepting.await.unwrap();
    let (log, code) = tokio::task::spawn_blocking(|| process.end()).await.unwrap();
    assert_eq!(code, Some(0), "{log}");
    let last = scraper.await.unwrap();
    last.assert_laws();

    let messages = numbers(&log, "  messages: ");
    let [published, acked, dropped, ready, delayed, outstanding] = messages[..] else { panic!("{log}") };
    assert!(published >= accepted, "{accepted} were accepted: {log}");
    assert_eq!((published, outstanding), (acked + dropped + ready + delayed, 0), "{log}");
    let [sent, in_time, nacked, expired, interrupted, released, outstanding] = numbers(&log, "  deliveries: ")[..]
    else {
        panic!("{log}")
    };
    assert_eq!((sent, outstanding), (in_time + nacked + expired + interrupted + released, 0), "{log}");
    let reasons: u64 = if dropped > 0 { numbers(&log, "  dropped: ").iter().sum() } else { 0 };
    assert_eq!(reasons, dropped, "{log}");
    assert_eq!(
        last.sum("ackstream_messages_published_total", ""),
        published,
        "nothing is accepted after the drain: {log}"
    );
}

/// The numbers of the line that has this in it.
fn numbers(log: &str, part: &str) -> Vec<u64> {
    let line = log.lines().find_map(|line| line.split_once(part)).unwrap_or_else(|| panic!("{part:?} in {log}")).1;
    line.split(|character: char| !character.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// When the health is not SERVING any more.
async fn watch_health(address: SocketAddr) -> oneshot::Receiver<Instant> {
    let channel = Endpoint::new(format!("http://{address}")).unwrap().connect().await.unwrap();
    let mut client = HealthClient::new(channel);
    let mut watch = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let (tell, told) = oneshot::channel();
    tokio::spawn(async move {
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        tell.send(Instant::now()).unwrap();
        let _ = watch.message().await; // to the end, so that it would hold the server up if it could
    });
    told
}

/// Publishes as fast as it is answered, until the stream ends. Returns how many were accepted.
async fn publish(process: &Process) -> JoinHandle<u64> {
    let (send, mut receive) = process.open(Open { publish_only: true, ..Open::default() }).await;
    tokio::spawn(async move {
        let (mut published, mut answered, mut accepted) = (0, 0, 0);
        loop {
            while published < answered + UNANSWERED {
                let data = DataMessage { id: published, payload: "load".into(), ..DataMessage::default() };
                if send.send(StreamMessage { kind: Some(Kind::Data(data)) }).await.is_err() {
                    break;
                }
                published += 1;
            }
            match next(&mut receive).await {
                Ok(Some(Kind::Ack(_))) => (answered, accepted) = (answered + 1, accepted + 1),
                Ok(Some(Kind::Nack(Nack { code, .. }))) => {
                    assert_eq!(code, Code::Unavailable as i32);
                    answered += 1;
                    tokio::task::yield_now().await;
                }
                Ok(other) => panic!("{other:?}"),
                Err(_) => return accepted,
            }
        }
    })
}

/// Acks, nacks and forgets; says when there has been enough of it.
async fn consume(process: &Process, enough: mpsc::Sender<()>) -> JoinHandle<(Status, Instant)> {
    let (send, mut receive) = process.open(Open::default()).await;
    tokio::spawn(async move {
        let mut seen = 0;
        let end = end_of(&send, &mut receive, || {
            seen += 1;
            if seen == 1_000 {
                let _ = enough.try_send(()); // the other consumer may have said so
            }
        });
        end.await
    })
}

async fn end_of(
    send: &mpsc::Sender<StreamMessage>,
    receive: &mut Streaming<StreamMessage>,
    mut see: impl FnMut(),
) -> (Status, Instant) {
    loop {
        match next(receive).await {
            Ok(Some(Kind::Data(DataMessage { id, .. }))) => {
                see();
                let kind = match id % 10 {
                    0 => continue, // expires
                    1 => Kind::Nack(Nack { ack_id: id, drop: true, ..Nack::default() }),
                    2 => Kind::Nack(Nack { ack_id: id, ..Nack::default() }),
                    _ => Kind::Ack(AckMessage { ack_id: id, ..AckMessage::default() }),
                };
                let _ = send.send(StreamMessage { kind: Some(kind) }).await; // the end is told by the other half
            }
            Ok(Some(_)) => {}
            Ok(None) => panic!("a stopping server ends its streams with UNAVAILABLE"),
            Err(status) => return (status, Instant::now()),
        }
    }
}

/// Scrapes until nobody answers; both laws hold each time. Returns the last.
fn scrape_to_the_end(metrics: SocketAddr) -> Page {
    let mut last = None;
    while let Some(page) = scrape(metrics) {
        page.assert_laws();
        last = Some(page);
    }
    last.expect("the metrics were there")
}

fn scrape(metrics: SocketAddr) -> Option<Page> {
    let mut connection = TcpStream::connect(metrics).ok()?;
    connection.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).ok()?;
    let (head, page) = answer.split_once("\r\n\r\n").filter(|(head, _)| head.starts_with("HTTP/1.1 200 "))?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?;
    (length.parse() == Ok(page.len())).then(|| Page::parse(page)) // the process may end in the middle
}
