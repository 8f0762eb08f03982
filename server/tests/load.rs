//! The command `bench` of the real binary: what it says of a load is true.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/process.rs"]
mod process;

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use ackstream::proto::Open;
use ackstream::proto::stream_message::Kind;

use crate::process::{Process, ack, ackstream, next};

fn server(arguments: &[&str]) -> Process {
    Process::start(&[&["serve", "--log-lines-per-second", "0"], arguments].concat())
}

fn bench(server: &Process, arguments: &[&str]) -> Output {
    let (target, metrics) = (server.address.to_string(), server.metrics.to_string());
    ackstream(&["bench", "--target", &target, "--metrics", &metrics]).args(arguments).output().unwrap()
}

/// The report of a load in JSON, and how the process ended.
fn report(server: &Process, arguments: &[&str]) -> (serde_json::Value, Option<i32>) {
    let output = bench(server, &[arguments, &["--json"]].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    let report =
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    (report, output.status.code())
}

/// What the server says at its end: published, acked, dropped, and all the rest.
fn books(server: &Process) -> [u64; 4] {
    let metrics = std::net::TcpStream::connect(server.metrics).and_then(|mut stream| {
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        std::io::read_to_string(stream)
    });
    let metrics = metrics.unwrap();
    ["published_total", "acked_total", "dropped_total", ""].map(|name| {
        let name = format!("ackstream_messages{}{name}{{", if name.is_empty() { "" } else { "_" });
        let values =
            metrics.lines().filter(|line| line.starts_with(&name)).map(|line| line.rsplit_once(' ').unwrap().1);
        values.map(|value| value.parse::<u64>().unwrap()).sum()
    })
}

#[test]
fn all_that_is_published_is_delivered_and_acked_and_the_laws_hold() {
    let server = server(&[]);
    for more in [
        &[][..],
        &["--batch", "64"],
        &["--publishers", "3", "--consumers", "5", "--connections", "2"],
        &["--hold", "700"],
    ] {
        let (said, code) = report(&server, &[&["--count", "5000"], more].concat());
        assert_eq!(
            (&said["published"]["accepted"], &said["published"]["refused"]),
            (&5_000.into(), &0.into()),
            "{more:?}"
        );
        assert_eq!(
            (&said["consumed"]["acked"], &said["consumed"]["delivered"]),
            (&5_000.into(), &5_000.into()),
            "{more:?}"
        );
        assert_eq!(
            (&said["consumed"]["missing"]["demo"], &said["laws"]["hold"]),
            (&0.into(), &true.into()),
            "{more:?}"
        );
        let p50 = |part: &str, what: &str| said[part][what]["p50"].as_u64().unwrap();
        assert!(p50("published", "answer_latency_ns") > 0 && p50("consumed", "delivery_latency_ns") > 0, "{said}");
        assert_eq!(code, Some(0));
    }
}

#[test]
fn what_was_stored_before_is_consumed_without_a_publisher() {
    let server = server(&[]);
    let (stored, _) = report(&server, &["--consumers", "0", "--count", "300"]);
    assert_eq!(stored["consumed"]["delivered"], 0);
    let (said, code) = report(&server, &["--publishers", "0", "--count", "300"]);
    assert_eq!((&said["consumed"]["acked"], code), (&300.into(), Some(0)));
}

#[test]
fn a_consumer_that_waits_for_the_others_does_not_hold_them_up() {
    let server = server(&[]);
    report(&server, &["--consumers", "0", "--count", "40000"]);
    let many =
        ["--publishers", "0", "--consumers", "20", "--connections", "1", "--window", "100000", "--count", "40000"];
    let (said, code) = report(&server, &many); // the first one to open would fill a window of 1 MiB that all share
    assert_eq!((&said["consumed"]["acked"], code), (&40_000.into(), Some(0)));
}

#[test]
fn deliveries_that_are_not_acked_come_again_until_they_are_dropped() {
    let server = server(&["--ack-deadline", "100ms", "--max-retries", "2"]);
    let (said, code) = report(&server, &["--count", "100", "--drop-rate", "1"]);
    assert_eq!((&said["consumed"]["acked"], &said["consumed"]["delivered"]), (&0.into(), &300.into()));
    assert_eq!((&said["consumed"]["retries"], &said["consumed"]["missing"]["demo"]), (&200.into(), &0.into()));
    assert_eq!(books(&server), [100, 0, 100, 0], "what was left to be dropped is");
    assert_eq!((&said["laws"]["hold"], code), (&true.into(), Some(0)));
}

#[test]
fn each_attempt_is_dropped_by_a_draw_of_its_own() {
    let server = server(&["--ack-deadline", "300ms", "--max-retries", "1000"]);
    let (said, code) = report(&server, &["--count", "4000", "--drop-rate", "0.5"]);
    // Each message is delivered until a draw lets it be acked: a geometric distribution, of two deliveries on average.
    let retries = said["consumed"]["retries"].as_u64().unwrap();
    assert!((3_500..4_500).contains(&retries), "4000 retries were expected, with a deviation of 90: {said}");
    assert_eq!((&said["laws"]["hold"], code), (&true.into(), Some(0)));
}

#[test]
fn a_publisher_with_a_low_rate_is_not_late_by_it() {
    let server = server(&[]);
    let (said, _) = report(&server, &["--rate", "20", "--count", "10", "--publishers", "2"]);
    // The interval of each is 100 ms. A busy machine may be late, but hardly half of the time by half of that.
    let p50 = said["published"]["answer_latency_ns"]["p50"].as_u64().unwrap();
    assert!(p50 < 50_000_000, "{said}");
}

#[test]
fn an_ack_waits_for_its_delay() {
    let server = server(&[]);
    let (said, code) = report(&server, &["--count", "10", "--ack-delay", "300ms"]);
    assert_eq!((&said["consumed"]["acked"], code), (&10.into(), Some(0)));
    assert!(said["consumed"]["seconds"].as_f64().unwrap() >= 0.3, "{said}");
}

#[test]
fn a_message_counts_once_however_often_it_is_delivered_and_acked() {
    let server = server(&["--ack-deadline", "100ms", "--max-retries", "1000"]);
    let (said, code) = report(
        &server,
        &["--count", "1000", "--rate", "1000", "--ack-delay", "350ms", "--consumers", "2", "--window", "9000"],
    );
    let delivered = said["consumed"]["delivered"].as_u64().unwrap();
    assert!(delivered > 1_300, "many come several times before their ack: {said}");
    assert_eq!((&said["consumed"]["acked"], &said["consumed"]["missing"]["demo"]), (&1_000.into(), &0.into()));
    assert_eq!((books(&server), code), ([1_000, 1_000, 0, 0], Some(0)));
}

#[test]
fn who_asks_a_third_time_does_not_wait_and_gets_a_report() {
    let server = server(&[]);
    let (target, metrics) = (server.address.to_string(), server.metrics.to_string());
    let mut load =
        ackstream(&["bench", "--target", &target, "--metrics", &metrics, "--rate", "100", "--ack-delay", "1h"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
    while books(&server)[0] == 0 {
        std::thread::yield_now(); // until it has begun
    }
    let began = Instant::now();
    while load.try_wait().unwrap().is_none() {
        let signal = if began.elapsed() < Duration::from_secs(30) { "-INT" } else { "-KILL" };
        let killed = Command::new("kill").args([signal, &load.id().to_string()]).status().unwrap();
        assert!(killed.success() || load.try_wait().unwrap().is_some());
        std::thread::yield_now();
    }
    let output = load.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("0 acked") && said.contains("laws       hold"), "{said}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn what_was_seen_before_a_stream_broke_is_told() {
    let server = server(&[]);
    let (target, metrics) = (server.address.to_string(), server.metrics.to_string());
    let load = ackstream(&[
        "bench",
        "--json",
        "--target",
        &target,
        "--metrics",
        &metrics,
        "--rate",
        "1000",
        "--duration",
        "1h",
    ])
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    while books(&server)[1] == 0 {
        std::thread::yield_now(); // until something is acked
    }
    server.signal("-KILL");
    let output = load.wait_with_output().unwrap();
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(said["consumed"]["acked"].as_u64().unwrap() > 0 && said["laws"]["checked"] == false, "{said}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("a stream ended"));
    assert_eq!(output.status.code(), Some(69));
}

#[test]
fn a_refused_publish_is_told_and_ends_with_1() {
    let server = server(&["--max-backlog-messages", "10"]);
    let output = bench(&server, &["--consumers", "0", "--count", "25"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("10 accepted, 15 refused") && said.contains("its backlog is full"), "{said}");
    assert_eq!(output.status.code(), Some(1));
}

#[tokio::test]
async fn a_message_that_another_consumer_took_is_missing() {
    let server = server(&[]);
    let (send, mut receive) = server.open(Open { max_outstanding_messages: 1, ..Open::default() }).await;
    let other = tokio::spawn(async move {
        while let Ok(Some(kind)) = next(&mut receive).await {
            if let Kind::Data(data) = kind {
                ack(&send, data.id).await;
            }
        }
    });
    // Slowly, so that it gets its turns.
    let load = move || bench(&server, &["--count", "500", "--rate", "1000"]);
    let output = tokio::task::spawn_blocking(load).await.unwrap();
    other.abort();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("came to no consumer here of demo"), "{said}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn every_wrong_option_is_told_at_once() {
    let wrong = [
        "--rate",
        "0",
        "--drop-rate",
        "2",
        "--payload",
        "1GiB",
        "--hold",
        "10",
        "--window",
        "5",
        "--metrics",
        "here",
        "--count",
        "0",
    ];
    let output = ackstream(&["bench"]).args(wrong).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((said.lines().count(), output.status.code()), (6, Some(64)), "{said}");
    let endless = [
        "--duration",
        "500000000000y",
        "--ack-delay",
        "25h",
        "--subscription",
        "a",
        "--subscription",
        "a",
        "--consumers",
        "2",
    ];
    let output = ackstream(&["bench"]).args(endless).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((said.lines().count(), output.status.code()), (3, Some(64)), "{said}");
}

#[test]
fn without_a_server_it_ends_with_69_and_without_its_topic_with_64() {
    let nobody = ackstream(&["bench", "--target", "127.0.0.1:1", "--connect-timeout", "0s"]).output().unwrap();
    assert_eq!(nobody.status.code(), Some(69), "{}", String::from_utf8_lossy(&nobody.stderr));
    let server = server(&[]);
    let unknown = bench(&server, &["--topic", "no-such"]);
    assert_eq!(unknown.status.code(), Some(64), "{}", String::from_utf8_lossy(&unknown.stderr));
    let unknown = bench(&server, &["--subscription", "no-such"]);
    assert_eq!(unknown.status.code(), Some(64), "{}", String::from_utf8_lossy(&unknown.stderr));
}

#[test]
fn each_subscription_is_waited_for_by_its_own_policy() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("ackstream.toml");
    let subscription = |name, retries| {
        format!(
            "[topics.demo.subscriptions.{name}]\ndead_letter_topic = \"discard\"\nack_deadline = \"100ms\"\nmax_retries = {retries}\n"
        )
    };
    std::fs::write(&config, subscription("none", 0) + &subscription("three", 3)).unwrap();
    let server = server(&["--config", config.to_str().unwrap()]);
    for names in [["none", "three"], ["three", "none"]] {
        let both = ["--subscription", names[0], "--subscription", names[1], "--consumers", "2"];
        let (report, code) = report(&server, &[&both[..], &["--count", "200", "--drop-rate", "0.5"]].concat());
        assert_eq!(code, Some(0), "{report}");
        for name in names {
            let left = ["ready", "delayed", "outstanding"].map(|state| {
                server
                    .metric(&format!("ackstream_messages{{topic=\"demo\",subscription=\"{name}\",state=\"{state}\"}}"))
            });
            assert_eq!(left, [0; 3], "of {name}, after {names:?}: {report}");
        }
    }
}

#[test]
fn fewer_messages_than_were_to_be_consumed_are_not_waited_for_without_end() {
    let server = server(&["--ack-deadline", "100ms"]);
    assert_eq!(report(&server, &["--consumers", "0", "--count", "3"]).1, Some(0));
    let (report, code) = report(&server, &["--publishers", "0", "--count", "5"]);
    assert_eq!(code, Some(1));
    assert_eq!((&report["consumed"]["acked"], &report["consumed"]["short"]), (&3.into(), &2.into()), "{report}");
}

#[test]
fn who_asks_twice_gets_what_is_held_acked() {
    let server = server(&[]);
    let target = server.address.to_string();
    let options = ["--json", "--metrics", "off", "--rate", "500", "--duration", "1h", "--ack-delay", "700ms"];
    let load = ackstream(&["bench", "--target", &target]).args(options).stdout(Stdio::piped()).spawn().unwrap();
    let interrupt = || assert!(Command::new("kill").args(["-INT", &load.id().to_string()]).status().unwrap().success());
    while books(&server)[0] == 0 {
        std::thread::yield_now(); // until it has begun
    }
    interrupt();
    while server.metric("ackstream_connections") > 1 {
        std::thread::yield_now(); // until the publisher has left
    }
    interrupt();
    let output = load.wait_with_output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert_eq!(report["consumed"]["acked"], report["published"]["accepted"]);
}
