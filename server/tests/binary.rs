//! The real binary over real sockets: what it prints, what it exits with, and what signals do to it. The Python client's end-to-end
//! tests hold conversations with it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/process.rs"]
mod process;

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::process::{Output, Stdio};

use ackstream::proto::stream_message::Kind;
use ackstream::proto::{DataMessage, Open, StreamMessage};
use tonic::Code;

use crate::process::{Process, ack, ackstream, next};

fn output(arguments: &[&str]) -> Output {
    ackstream(arguments).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_tells_its_story_ends_its_streams_with_ok_and_exits_with_0() {
    let mut process = Process::start(&["2", "--interval", "10ms", "--ack-deadline", "200ms"]);
    assert_eq!(process.line(), "[RUST SERVER] Will send 2 messages at 10ms intervals");
    let (send, mut receive) = process.open(Open::default()).await;
    let mut seen = Vec::new();
    while let Some(Kind::Data(data)) = next(&mut receive).await.unwrap() {
        seen.push((data.id, data.delivery_attempt));
        if data.id == 1 || data.delivery_attempt == 2 {
            ack(&send, data.id).await;
        }
    }
    assert_eq!(seen, [(1, 1), (2, 1), (2, 2)]);
    let (rest, code) = process.end();
    // What happens to one message is in order; message 2 may be sent before the ACK for message 1 is received.
    let about = |message: u32| -> Vec<&str> {
        let of_it = |line: &&str| line.contains(&format!("essage {message}"));
        rest.lines().filter(of_it).map(|line| line.trim_start_matches("[RUST SERVER] ")).collect()
    };
    assert_eq!(about(1), ["Sent message 1/2", "Received ACK for message 1"]);
    assert_eq!(
        about(2),
        ["Sent message 2/2", "Retrying message 2 (retry 1 of 3): no ACK came in time", "Received ACK for message 2"]
    );
    let end = "\
[RUST SERVER] All messages completed, stopping retry handler
[RUST SERVER] Summary of topic demo, subscription demo:
[RUST SERVER]   messages:   2 published = 2 acked + 0 dropped + 0 ready + 0 delayed + 0 outstanding
[RUST SERVER]   deliveries: 3 sent = 2 acked + 0 nacked + 1 expired + 0 interrupted + 0 released + 0 outstanding
[RUST SERVER]   retries: 1, late ACKs: 0, ignored ACKs, NACKs and extends: 0
";
    assert!(rest.ends_with(end), "{rest}");
    assert_eq!(code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_keep_serving_the_server_stays_until_a_signal() {
    let mut process = Process::start(&["demo", "1", "--keep-serving"]);
    let (send, mut receive) = process.open(Open::default()).await;
    assert!(matches!(next(&mut receive).await, Ok(Some(Kind::Data(_)))));
    ack(&send, 1).await;
    while process.line() != "[RUST SERVER] Still serving (--keep-serving)" {}
    process.signal("-TERM");
    assert_eq!(next(&mut receive).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(process.end().1, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_lets_outstanding_messages_settle_and_says_what_is_left() {
    for signal in ["-TERM", "-INT"] {
        let mut process = Process::start(&["serve"]);
        let (send, mut receive) = process.open(Open { max_outstanding_messages: 1, ..Open::default() }).await;
        for id in 1..=2 {
            let data = DataMessage { id, ..DataMessage::default() };
            send.send(StreamMessage { kind: Some(Kind::Data(data)) }).await.unwrap();
        }
        let mut answered = 0;
        while answered < 2 {
            answered += u32::from(matches!(next(&mut receive).await, Ok(Some(Kind::Ack(_)))));
        }
        process.signal(signal);
        while process.line() != "[RUST SERVER] Stopping: waiting up to 8s for outstanding messages" {}
        ack(&send, 1).await;
        let end = loop {
            match next(&mut receive).await {
                Ok(_) => {}
                Err(status) => break status,
            }
        };
        assert_eq!(end.code(), Code::Unavailable);
        let (rest, code) = process.end();
        assert!(rest.contains("2 published = 1 acked + 0 dropped + 1 ready + 0 delayed + 0 outstanding"), "{rest}");
        assert!(rest.contains("not acked, and gone with this server: 1"), "{rest}");
        assert_eq!(code, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_at_once() {
    let mut process = Process::start(&["serve", "--ack-deadline", "1h", "--drain-timeout", "1h"]);
    let (send, mut receive) = process.open(Open::default()).await;
    send.send(StreamMessage { kind: Some(Kind::Data(DataMessage::default())) }).await.unwrap();
    while !matches!(next(&mut receive).await, Ok(Some(Kind::Data(_)))) {}
    process.signal("-TERM");
    while process.line() != "[RUST SERVER] Stopping: waiting up to 1h for outstanding messages" {}
    process.signal("-TERM");
    let (rest, code) = process.end();
    assert!(rest.contains("[RUST SERVER]   not acked, and gone with this server: 1"), "{rest}");
    assert_eq!(code, Some(0));
}

#[test]
fn a_port_that_is_taken_is_a_sentence_and_exit_code_69() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = output(&["serve", "--listen", &address]);
    assert_eq!(output.status.code(), Some(69));
    let error = text(&output.stderr);
    assert!(error.starts_with(&format!("ackstream: cannot listen on {address}: ")), "{error}");
    assert_eq!(error.lines().count(), 1);
}

#[test]
fn a_metrics_port_that_is_taken_is_a_sentence_and_exit_code_69() {
    let first = Process::start(&["serve"]);
    let address = first.metrics.to_string();
    let output = output(&["serve", "--listen", "127.0.0.1:0", "--metrics-listen", &address]);
    assert_eq!(output.status.code(), Some(69));
    let error = text(&output.stderr);
    assert!(error.starts_with(&format!("ackstream: cannot listen on {address}: ")), "{error}");
    assert!(error.contains("(--metrics-listen)"), "{error}");
    assert_eq!(text(&output.stdout), "");
}

#[test]
fn health_is_exit_code_0_where_the_server_serves_and_1_where_nobody_does() {
    let process = Process::start(&["serve"]);
    let address = process.address.to_string();
    for arguments in [
        &["health", "--target", &address][..],
        &["health", "--listen", &address], // as its own configuration says
        &["health", "--target", &address, "--service", "ackstream.v1.MessageStream"],
    ] {
        let output = output(arguments);
        assert_eq!((text(&output.stdout), output.status.code()), ("SERVING\n", Some(0)), "{arguments:?}");
    }
    let unknown = output(&["health", "--target", &address, "--service", "no.such.Service"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert_eq!(text(&unknown.stderr), "ackstream: the server has no service \"no.such.Service\"\n");
    drop(process);
    let nobody = output(&["health", "--target", &address]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text(&nobody.stderr).starts_with("ackstream: the server cannot be reached: "), "{nobody:?}");
}

#[test]
fn health_gives_up_on_a_server_that_accepts_and_is_silent() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let output = output(&["health", "--target", &address, "--timeout", "100ms"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stderr), "ackstream: no answer within 100ms (--timeout)\n");
}

#[test]
fn wrong_usage_tells_all_problems_and_is_exit_code_64() {
    let output = output(&["serve", "--bogus", "--ack-deadlin=3s", "--ack-deadline", "x", "--max-retries", "5000"]);
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(
        text(&output.stderr),
        "\
ackstream: --bogus (command line): there is no such argument here (see --help)
ackstream: --ack-deadlin=3s (command line): there is no such argument here; the nearest is --ack-deadline (see --help)
ackstream: ack_deadline = \"x\" (flag --ack-deadline): must be a length of time with its unit, such as \"2s\" or \"100ms\"
ackstream: max_retries = 5000 (flag --max-retries): must be at most 1000, or \"unlimited\"
"
    );
    assert_eq!(text(&output.stdout), "");
}

#[test]
fn problems_of_the_command_line_hide_none_of_the_others() {
    let arguments =
        ["serve", "--ack-deadline", "--max-message-bytes", "-5MiB", "--max-retrie", "7", "--log-level", "loud"];
    let output = output(&arguments);
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(
        text(&output.stderr),
        "\
ackstream: -5MiB (command line): there is no such argument here (see --help)
ackstream: --max-retrie (command line): there is no such argument here; the nearest is --max-retries (see --help)
ackstream: ack_deadline = \"\" (flag --ack-deadline): must be a length of time with its unit, such as \"2s\" or \"100ms\"
ackstream: max_message_bytes = \"\" (flag --max-message-bytes): must be a size such as \"4MiB\" or \"512B\", or a number of bytes, and at most 1PiB
ackstream: log_level = \"loud\" (flag --log-level): must be error, warn, info, debug or trace
"
    );
}

#[test]
fn the_last_of_a_repeated_flag_counts() {
    let output = output(&["config", "--max-retries", "1", "--max-retries", "2"]);
    assert!(text(&output.stdout).contains("max_retries = 2 "), "{output:?}");
}

#[test]
fn a_command_that_there_is_not_is_answered_with_those_that_there_are() {
    let output = output(&["frobnicate"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(
        text(&output.stderr)
            .ends_with("the commands are demo, serve, publish, consume, health, config and completions\n"),
        "{output:?}"
    );
}

#[test]
fn the_flags_of_the_demo_are_not_those_of_serve() {
    let output = output(&["serve", "--interval", "1s"]);
    assert_eq!(output.status.code(), Some(64));
}

#[test]
fn config_prints_what_is_in_force_and_where_it_came_from() {
    let output = ackstream(&["config", "--ack-deadline", "5s"]).env("ACKSTREAM_MAX_RETRIES", "7").output().unwrap();
    let printed = text(&output.stdout);
    let line =
        |key: &str| printed.lines().find(|line| line.starts_with(key)).unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(line("ack_deadline")[2..], ["\"5s\"", "#", "flag", "--ack-deadline"]);
    assert_eq!(line("max_retries")[2..], ["7", "#", "environment", "variable", "ACKSTREAM_MAX_RETRIES"]);
    assert_eq!(line("log_format")[2..], ["\"text\"", "#", "default"]);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn help_and_version_exit_with_0() {
    for arguments in [&["--help"][..], &["serve", "--help"], &["--version"]] {
        assert_eq!(output(arguments).status.code(), Some(0), "{arguments:?}");
    }
    assert_eq!(text(&output(&["--version"]).stdout), format!("ackstream {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn json_lines_say_what_they_are_about() {
    let mut process =
        ackstream(&["serve", "--listen", "127.0.0.1:0", "--metrics-listen", "off", "--log-format", "json"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
    let mut line = String::new();
    let mut lines = BufReader::new(process.stdout.take().unwrap());
    lines.read_line(&mut line).unwrap();
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(value["message"].as_str().unwrap().starts_with("Starting gRPC server on 127.0.0.1:"), "{value}");
    assert_eq!(value["level"], "INFO");
    assert!(value["timestamp"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_left_out_is_said_when_the_traffic_has_stopped() {
    let limits = ["--log-lines-per-second", "10", "--log-summary-interval", "100ms"];
    let mut process = Process::start(&[&["50", "--interval", "1ms", "--keep-serving"][..], &limits].concat());
    let (_send, mut receive) = process.open(Open { auto_ack: true, ..Open::default() }).await;
    for _ in 0..50 {
        assert!(matches!(next(&mut receive).await, Ok(Some(Kind::Data(_)))));
    }
    let (mut written, mut left_out) = (0, 0);
    while written + left_out < 2 * 50 {
        let line = process.line_within(std::time::Duration::from_secs(30));
        if let Some(many) = line.strip_prefix("[RUST SERVER] ... and ") {
            left_out += many.split(' ').next().unwrap().parse::<u32>().unwrap();
        } else if line.contains("Sent message") || line.contains("Received ACK") {
            written += 1;
        }
    }
    assert!(left_out >= 50, "{left_out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_leaves_lines_out_rather_than_grow_and_says_so() {
    let process = Process::start(&["200", "--interval", "1ms", "--log-lines-per-second", "10"]);
    let (_send, mut receive) = process.open(Open { auto_ack: true, ..Open::default() }).await;
    while next(&mut receive).await.unwrap().is_some() {}
    let (rest, _) = process.end();
    assert!(rest.contains(" more lines about messages (log_lines_per_second = 10)"), "{rest}");
    assert!(rest.matches("Sent message").count() < 100, "{rest}");
    assert!(rest.contains("200 published = 200 acked"), "{rest}");
}

#[test]
fn a_hangup_without_a_terminal_does_not_end_a_server() {
    let mut server = Process::start(&["serve"]);

    server.signal("-HUP");

    let line = server.line();
    assert!(line.contains("SIGHUP: going on; certificates and tokens are read anew every 5s"), "{line}");
    assert_eq!(server.metric("ackstream_connections"), 0, "it serves");
    server.signal("-TERM");
    assert_eq!(server.end().1, Some(0));
}

#[test]
fn a_server_that_was_to_ignore_hangups_says_nothing_of_them() {
    let unset = "unset ACKSTREAM_REVISION ACKSTREAM_RUSTC"; // the tests' own
    let script = format!("trap '' HUP; {unset}; exec \"$0\" serve --listen 127.0.0.1:0 \"$@\"");
    let mut shell = std::process::Command::new("sh");
    let server = Process::spawn(shell.args(["-c", &script, env!("CARGO_BIN_EXE_ackstream")]));

    server.signal("-HUP");
    server.signal("-TERM");

    let (log, code) = server.end();
    assert_eq!((log.contains("SIGHUP"), code), (false, Some(0)), "{log}");
}

#[test]
fn a_server_whose_output_nobody_reads_ends_all_the_same() {
    let options = ["serve", "--log-lines-per-second", "100000", "--drain-timeout", "100ms"];
    let mut server = Process::start(&options);
    let target = server.address.to_string();
    let load = ["bench", "--target", &target, "--count", "30000", "--metrics", "off"];
    assert!(ackstream(&load).stdout(std::process::Stdio::null()).status().expect("it runs").success());

    server.signal("-TERM");

    assert_eq!(
        server.ends_unread_within(std::time::Duration::from_secs(15)),
        Some(0),
        "5.1 s and what a busy machine adds"
    );
}

#[test]
fn a_standard_error_that_is_gone_changes_no_exit_code() {
    for (arguments, code) in [(&["serve", "--listen", "nonsense"][..], 64), (&["health", "--target", "127.0.0.1:9"], 1)]
    {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let status = ackstream(arguments).stderr(writer).status().expect("it runs");
        assert_eq!(status.code(), Some(code), "{arguments:?}");
    }
}
