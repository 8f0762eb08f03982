//! Faults, against the real binary: clients are killed under load, hang, answer nonsense or nothing; what lies between breaks, stalls and
//! slows; the server itself is stopped; collector and scraper hang.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/process.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod process;
#[path = "support/proxy.rs"]
mod proxy;

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ackstream::proto::message_stream_client::MessageStreamClient;
use ackstream::proto::stream_message::Kind;
use ackstream::proto::{AckBatch, AckMessage, DataMessage, Open, StreamMessage};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use crate::process::{Process, ack, ackstream, next};
use crate::proxy::{Mood, Proxy};

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
    let [failed, rejected, interrupted] = ["max_retries", "rejected", "max_interruptions"]
        .map(|reason| count(&server, "messages_dropped_total", &format!("reason=\"{reason}\"")));
    assert_eq!((stored, failed, rejected), (accepted, 0, 0));
    assert_eq!(stored, acked + interrupted);
    let outcomes = ["acked", "nacked", "expired", "interrupted", "released"].map(|outcome| ended(&server, outcome));
    assert_eq!(count(&server, "messages_sent_total", ""), outcomes.iter().sum::<u64>());
    assert!(outcomes[3] > 100, "consumers were killed with deliveries: {outcomes:?}");
    let early = count(&server, "message_attempts_bucket", "outcome=\"dropped\",le=\"4\"");
    assert_eq!(early, 0, "nothing is dropped before it was interrupted three times alone");
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

    until("they are interrupted", || ended(&server, "interrupted") == 50);

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

/// What a proxy does to the connections through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Stall,
    Slow,
    HalfClose,
    Reset,
}

/// Both laws, and nothing left: all that was published is acked or dropped, and each delivery has ended.
fn all_is_settled(server: &Process) -> bool {
    let [published, acked, sent] =
        ["messages_published_total", "messages_acked_total", "messages_sent_total"].map(|name| count(server, name, ""));
    let dropped: u64 = ["max_retries", "rejected"]
        .map(|reason| count(server, "messages_dropped_total", &format!("reason=\"{reason}\"")))
        .iter()
        .sum();
    let outcomes: u64 = ["acked", "nacked", "expired", "released"].map(|outcome| ended(server, outcome)).iter().sum();
    published == acked + dropped && sent == outcomes
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_between_may_stall_slow_half_close_and_reset_and_no_message_is_lost() {
    const LINES: u64 = 500;
    const FAULTS: [Fault; 6] = [Fault::Stall, Fault::Slow, Fault::HalfClose, Fault::Reset, Fault::Slow, Fault::Stall];
    let server = Process::start(&[&QUIET[..], &["--ack-deadline", "200ms", "--max-retries", "unlimited"]].concat());
    let proxy = Proxy::before(server.address).await;
    let target = proxy.address.to_string();
    let mut publish = ackstream(&["publish", "--target", &target]);
    let mut publish = publish.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut consume = ackstream(&["consume", "--target", &target, "--wait", "1m"]);
    let mut consume = consume.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = publish.stdin.take().unwrap();
    for (round, fault) in (1..).zip(FAULTS) {
        let (hindered, connections) = (proxy.hindered(), proxy.connections());
        match fault {
            Fault::Stall => proxy.set_mood(Mood::Stalls),
            Fault::Slow => proxy.set_mood(Mood::Slow(256)),
            Fault::HalfClose | Fault::Reset => {}
        }
        for line in 0..LINES {
            writeln!(lines, "{round} {line}").unwrap();
        }
        lines.flush().unwrap();
        tokio::task::block_in_place(|| match fault {
            Fault::Stall => {
                until("something is kept", || proxy.hindered() > hindered);
                proxy.set_mood(Mood::Forwards);
            }
            Fault::Slow => until("much is slowed", || proxy.hindered() > hindered + 20),
            Fault::HalfClose | Fault::Reset => {
                if fault == Fault::HalfClose {
                    proxy.half_close();
                } else {
                    proxy.reset();
                }
                until("both connect again", || proxy.connections() >= connections + 2);
            }
        });
        let all = || count(&server, "messages_published_total", "") >= round * LINES && all_is_settled(&server);
        tokio::task::block_in_place(|| until("all of this round is settled", all));
        proxy.set_mood(Mood::Forwards);
    }
    drop(lines);
    assert!(tokio::task::block_in_place(|| publish.wait()).unwrap().success());
    consume.kill().unwrap();
    consume.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_that_never_ack_ack_twice_or_ack_what_nobody_knows_cost_the_honest_nothing() {
    const FLOOD: u64 = 100_000;
    let server = Process::start(&[&QUIET[..], &["--ack-deadline", "100ms", "--max-retries", "unlimited"]].concat());
    let window = || Open { max_outstanding_messages: 10, ..Open::default() };
    let (_silent_says, mut silent) = server.open(window()).await;
    let silent = tokio::spawn(async move { while let Ok(Some(_)) = next(&mut silent).await {} });
    let (twice_says, mut twice) = server.open(window()).await;
    let twice = tokio::spawn(async move {
        let mut acked = 0;
        while let Ok(Some(kind)) = next(&mut twice).await {
            if let Kind::Data(data) = kind {
                ack(&twice_says, data.id).await;
                ack(&twice_says, data.id).await;
                acked += 1;
            }
        }
        acked
    });
    let (flood_says, _flood) =
        server.open(Open { publish_only: false, max_outstanding_messages: 1, ..Open::default() }).await;
    for first in (0..FLOOD).step_by(1_000) {
        let ack_ids = (first..first + 1_000).map(|id| u64::MAX - id).collect();
        let batch = Kind::AckBatch(AckBatch { ack_ids, message_ids: Vec::new() });
        flood_says.send(StreamMessage { kind: Some(batch) }).await.unwrap();
    }
    let load = Load::start(&server, &["--count", "5000", "--rate", "5000"]);
    tokio::task::block_in_place(|| {
        until("all is published", || count(&server, "messages_published_total", "") == 5_000);
        until("all is acked", || count(&server, "messages_acked_total", "") == 5_000);
    });
    drop(load);
    assert!(all_is_settled(&server));
    let ignored = |reason| count(&server, "acks_ignored_total", &format!("verb=\"ack\",reason=\"{reason}\""));
    assert_eq!(ignored("unknown"), FLOOD);
    assert!(ignored("settled") > 0, "what was acked twice was ignored once");
    assert!(ended(&server, "expired") > 0, "the silent one had its share");
    silent.abort();
    twice.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_that_never_reads_its_answers_loses_its_stream_and_not_what_was_accepted() {
    let server = Process::start(&QUIET);
    let (says, answers) = server.open(Open { publish_only: true, ..Open::default() }).await;
    let flood = tokio::spawn(async move {
        for id in 1.. {
            let data = Kind::Data(DataMessage { id, ..DataMessage::default() });
            if says.send(StreamMessage { kind: Some(data) }).await.is_err() {
                return id; // the stream is gone
            }
        }
        unreachable!("numbers do not end")
    });
    let sent = tokio::time::timeout(PATIENCE, flood).await.expect("it loses its stream").unwrap();
    tokio::task::block_in_place(|| until("it is gone", || server.metric("ackstream_connections") == 0));
    let published = count(&server, "messages_published_total", "");
    assert!((10_000..sent).contains(&published), "{published} of {sent} were stored");
    drop(answers);
    assert_eq!(ackstream(&["health", "--target", &server.address.to_string()]).output().unwrap().stdout, b"SERVING\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_stopped_finds_all_deadlines_passed_and_hands_everything_out_again() {
    const MESSAGES: u64 = 2_000;
    let server = Process::start(&[&QUIET[..], &["--ack-deadline", "300ms"]].concat());
    let publisher = Load::start(&server, &["--consumers", "0", "--count", "2000"]);
    tokio::task::block_in_place(|| until("all is there", || messages(&server, "ready") == MESSAGES));
    drop(publisher);
    let (says, mut deliveries) = server.open(Open { max_outstanding_messages: 5_000, ..Open::default() }).await;
    let mut first = 0;
    while first < MESSAGES {
        first +=
            u64::from(matches!(next(&mut deliveries).await, Ok(Some(Kind::Data(data))) if data.delivery_attempt == 1));
    }
    server.signal("-STOP");
    let stopped = Instant::now();
    tokio::task::block_in_place(|| {
        until("every deadline has passed", || stopped.elapsed() > Duration::from_millis(400));
    });
    server.signal("-CONT");

    let mut again = std::collections::BTreeSet::new();
    while (again.len() as u64) < MESSAGES {
        let Ok(Some(Kind::Data(data))) = next(&mut deliveries).await else { panic!("the stream goes on") };
        if data.delivery_attempt > 1 && again.insert(data.id) {
            let ack = AckMessage { ack_id: data.id, ..AckMessage::default() };
            says.send(StreamMessage { kind: Some(Kind::Ack(ack)) }).await.unwrap();
        }
    }
    tokio::task::block_in_place(|| until("all is settled", || all_is_settled(&server)));
    assert_eq!(count(&server, "messages_acked_total", ""), MESSAGES);
    assert!(ended(&server, "expired") >= MESSAGES);
}

#[test]
fn a_collector_and_scrapers_that_hang_hold_nobody_up() {
    let collector = TcpListener::bind("127.0.0.1:0").unwrap(); // connects, and never says a word
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    let server = Process::spawn(
        ackstream(&[&QUIET[..], &["--listen", "127.0.0.1:0"]].concat()).env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
    );
    let scrapers: Vec<_> = (0..100)
        .map(|number| {
            let mut scraper = TcpStream::connect(server.metrics).unwrap();
            // Half of them ask for a page that they never read, the others do not come to the end of their request.
            let request: &[u8] = if number % 2 == 0 { b"GET /metrics HTTP/1.1\r\n\r\n" } else { b"GET /met" };
            scraper.write_all(request).unwrap();
            scraper
        })
        .collect();

    let load = ackstream(&[
        "bench",
        "--json",
        "--metrics",
        "off",
        "--count",
        "20000",
        "--target",
        &server.address.to_string(),
    ])
    .output()
    .unwrap();

    assert!(load.status.success());
    until("all is settled", || all_is_settled(&server));
    assert_eq!(count(&server, "messages_acked_total", ""), 20_000);
    drop(scrapers);
    server.signal("-TERM");
    let (said, code) = server.end();
    assert_eq!(code, Some(0), "{said}");
    drop(collector);
}

#[cfg(target_os = "linux")] // where a shell can bound the descriptors of what it starts
#[tokio::test(flavor = "multi_thread")]
async fn without_descriptors_the_server_waits_and_serves_again_when_there_are_some() {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 60 && exec \"$@\"", "sh"]).arg(env!("CARGO_BIN_EXE_ackstream"));
    command.args(["serve", "--listen", "127.0.0.1:0"]).env_clear().current_dir(std::env::temp_dir());
    let mut server = Process::spawn(&mut command);
    let (_says, mut deliveries) = server.open(Open::default()).await;

    let crowd: Vec<_> = (0..100).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    let line = server.line_within(PATIENCE);
    assert!(line.starts_with("[RUST SERVER] WARN: cannot accept a connection: Too many open files"), "{line}");
    drop(crowd);

    let (says, mut answers) = server.open(Open { publish_only: true, ..Open::default() }).await;
    says.send(StreamMessage { kind: Some(Kind::Data(DataMessage::default())) }).await.unwrap();
    assert!(matches!(next(&mut answers).await, Ok(Some(Kind::Ack(_)))));
    assert!(matches!(next(&mut deliveries).await, Ok(Some(Kind::Data(_)))), "who was there before goes on");
}
