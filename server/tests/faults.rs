//! Faults of clients, against the real binary: they are killed under load, hang, and open streams only to leave them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/process.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod process;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ackstream::proto::message_stream_client::MessageStreamClient;
use ackstream::proto::stream_message::Kind;
use ackstream::proto::{Open, StreamMessage};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use crate::process::{Process, ackstream, next};

/// What a test waits for happens within this time.
const PATIENCE: Duration = Duration::from_secs(30);
const QUIET: [&str; 3] = ["serve", "--log-lines-per-second", "0"];

/// The labels of the only subscription.
const DEMO: &str = "topic=\"demo\",subscription=\"demo\"";

/// A count of the only subscription; `labels` are those besides its own.
fn count(server: &Process, name: &str, labels: &str) -> u64 {
    let comma = if labels.is_empty() { "" } else { "," };
    server.metric(&format!("ackstream_{name}{{{DEMO}{comma}{labels}}}"))
}

fn messages(server: &Process, state: &str) -> u64 {
    count(server, "messages", &format!("state=\"{state}\""))
}

fn ended(server: &Process, outcome: &str) -> u64 {
    count(server, "deliveries_ended_total", &format!("outcome=\"{outcome}\""))
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "{what}");
    }
}

/// `ackstream bench` in a process of its own, killed with the test.
struct Load(Child);

impl Load {
    fn start(server: &Process, options: &[&str]) -> Self {
        let target = server.address.to_string();
        let mut command = ackstream(&["bench", "--json", "--metrics", "off", "--target", &target]);
        Self(command.args(options).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.0.id().to_string()]).status().unwrap().success());
    }

    /// Lets it end, and returns its report.
    fn report(mut self) -> serde_json::Value {
        self.signal("-INT");
        let report = serde_json::from_reader(self.0.stdout.take().unwrap());
        self.0.wait().unwrap();
        report.unwrap()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it has ended, unless the test failed
        let _ = self.0.wait();
    }
}

#[test]
fn a_hundred_consumers_killed_under_load_lose_no_message() {
    let server = Process::start(&[&QUIET[..], &["--ack-deadline", "200ms"]].concat());
    let publisher = Load::start(&server, &["--consumers", "0", "--rate", "5000", "--duration", "1h"]);

    for _ in 0..100 {
        let sent = count(&server, "messages_sent_total", "");
        let consumer = Load::start(&server, &["--publishers", "0", "--duration", "1h", "--ack-delay", "5ms"]);
        until("it is sent something", || count(&server, "messages_sent_total", "") > sent + 100);
        consumer.signal("-KILL");
    }

    let accepted = publisher.report()["published"]["accepted"].as_u64().unwrap();
    let last = Load::start(&server, &["--publishers", "0", "--duration", "1h"]);
    let states = ["ready", "delayed", "outstanding"];
    until("all is settled", || states.iter().all(|state| messages(&server, state) == 0));
    last.signal("-INT");

    let [stored, acked] = ["messages_published_total", "messages_acked_total"].map(|name| count(&server, name, ""));
    let [exhausted, rejected] = ["max_retries", "rejected"]
        .map(|reason| count(&server, "messages_dropped_total", &format!("reason=\"{reason}\"")));
    assert_eq!((stored, rejected), (accepted, 0));
    assert_eq!(stored, acked + exhausted);
    let outcomes = ["acked", "nacked", "expired", "released"].map(|outcome| ended(&server, outcome));
    assert_eq!(count(&server, "messages_sent_total", ""), outcomes.iter().sum::<u64>());
    assert!(outcomes[3] > 100, "consumers were killed with deliveries: {outcomes:?}");
    let early = count(&server, "message_attempts_bucket", "outcome=\"dropped\",le=\"3\"");
    assert_eq!(early, 0, "nothing is dropped before its last retry");
}

#[test]
fn what_a_frozen_consumer_holds_comes_back_once_it_does_not_answer_pings() {
    let keepalive = ["--keepalive-interval", "1s", "--keepalive-timeout", "1s", "--ack-deadline", "1h"];
    let server = Process::start(&[&QUIET[..], &keepalive].concat());
    let frozen = Load::start(&server, &["--publishers", "0", "--duration", "1h", "--ack-delay", "1h"]);
    until("it is there", || {
        server.metric("ackstream_connections") == 1 && count(&server, "consumers", "state=\"waiting\"") == 1
    });
    frozen.signal("-STOP");
    let publisher = Load::start(&server, &["--consumers", "0", "--count", "50"]);
    until("it holds them", || messages(&server, "outstanding") == 50);
    drop(publisher);

    until("they are released", || ended(&server, "released") == 50);

    assert_eq!(messages(&server, "ready"), 50);
    until("its connection is gone", || server.metric("ackstream_connections") == 0);
    frozen.signal("-CONT");
}

#[cfg(target_os = "linux")] // which tells how much memory a process has
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_streams_that_are_opened_and_left_leave_nothing_behind() {
    let server = Process::start(&QUIET);
    let channel = Endpoint::new(format!("http://{}", server.address)).unwrap().connect().await.unwrap();
    let mut client = MessageStreamClient::new(channel);
    let mut open_and_leave = async || {
        let (send, frames) = mpsc::channel(1);
        send.send(StreamMessage { kind: Some(Kind::Open(Open::default())) }).await.unwrap();
        let mut receive = client.exchange(ReceiverStream::new(frames)).await.unwrap().into_inner();
        assert!(matches!(next(&mut receive).await, Ok(Some(Kind::Opened(_)))));
    };
    for _ in 0..1_000 {
        open_and_leave().await;
    }
    let (memory, descriptors) = (server.rss(), server.metric("process_open_fds"));
    for _ in 0..9_000 {
        open_and_leave().await;
    }
    let closed = |code| server.metric(&format!("ackstream_streams_closed_total{{grpc_code=\"{code}\"}}"));
    tokio::task::block_in_place(|| until("all are counted", || closed("OK") + closed("CANCELLED") == 10_000));
    assert_eq!(count(&server, "consumers", "state=\"waiting\""), 0);
    let grown = server.rss().saturating_sub(memory);
    assert!(grown < 5 << 20, "{} KiB", grown >> 10);
    assert_eq!(server.metric("process_open_fds"), descriptors);
}
