//! The commands `publish` and `consume` of the real binary: what goes in comes out, whatever happens on the way.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/process.rs"]
mod process;
#[path = "support/proxy.rs"]
mod proxy;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Output, Stdio};

use ackstream::proto::stream_message::Kind;
use ackstream::proto::{Nack, Open, StreamMessage};

use crate::process::{Process, ack, ackstream, next};
use crate::proxy::Proxy;

/// A server whose topic `orders` gives up at once, and sends its dead letters to `dead`.
const TOPICS: &str = r#"
[topics.orders.subscriptions.orders]
max_retries = 0
dead_letter_topic = "dead"
[topics.dead.subscriptions.dead]
dead_letter_topic = "discard"
"#;

struct Server {
    process: Process,
    _folder: tempfile::TempDir,
}

impl Server {
    fn start(configuration: &str) -> Self {
        Self::start_that_says(configuration, 0)
    }

    /// So many lines a second are about single messages.
    fn start_that_says(configuration: &str, lines_per_second: u32) -> Self {
        let lines = lines_per_second.to_string();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.toml");
        std::fs::write(&path, configuration).unwrap();
        let process = Process::start(&["serve", "--log-lines-per-second", &lines, "--config", path.to_str().unwrap()]);
        Self { process, _folder: folder }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        command(&self.process.address.to_string(), arguments)
    }

    /// Runs `ackstream publish` with this input.
    fn publish(&self, arguments: &[&str], input: &[u8]) -> Output {
        let child = self.command(&[&["publish"], arguments].concat()).stdin(Stdio::piped()).spawn().unwrap();
        feed(child, input)
    }

    fn consume(&self, arguments: &[&str]) -> Output {
        self.command(&[&["consume"], arguments].concat()).output().unwrap()
    }

    /// What the server says at its end about a subscription: published, acked, dropped, ready, delayed, outstanding.
    fn stop(self, subscription: &str) -> [u64; 6] {
        self.process.signal("-TERM");
        let (rest, code) = self.process.end();
        assert_eq!(code, Some(0), "{rest}");
        let mut lines = rest.lines().skip_while(|line| !line.ends_with(&format!("subscription {subscription}:")));
        let law = lines.nth(1).unwrap_or_else(|| panic!("{rest}"));
        let numbers: Vec<u64> = law.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        numbers.try_into().unwrap_or_else(|_| panic!("{law}"))
    }
}

fn command(target: &str, arguments: &[&str]) -> Command {
    let mut command = ackstream(arguments);
    command.args(["--target", target]).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Writes all of it, and waits for the end.
fn feed(mut child: Child, input: &[u8]) -> Output {
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let _ = stdin.write_all(input); // it may have ended
        });
        child.wait_with_output().unwrap()
    })
}

fn out(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn err(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn numbered(lines: u64) -> String {
    (1..=lines).map(|number| format!("line {number}\n")).collect::<Vec<_>>().concat()
}

#[test]
fn each_line_is_published_printed_and_acked() {
    let server = Server::start("");
    let input = numbered(1_000);

    let published = server.publish(&[], input.as_bytes());
    let consumed = server.consume(&["--count", "1000"]);

    assert_eq!((err(&published), published.status.code()), ("ackstream: 1,000 published to topic demo\n", Some(0)));
    assert_eq!((out(&consumed), err(&consumed), consumed.status.code()), (input.as_str(), "", Some(0)));
    assert_eq!(server.stop("demo"), [1_000, 1_000, 0, 0, 0, 0]);
}

#[test]
fn a_file_is_published_as_the_standard_input_is() {
    let server = Server::start("");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"a\nb").unwrap();

    let published = server.command(&["publish", file.path().to_str().unwrap()]).output().unwrap();

    assert_eq!(published.status.code(), Some(0), "{}", err(&published));
    assert_eq!(out(&server.consume(&["--count", "2"])), "a\nb\n");
}

#[test]
fn whole_messages_go_through_a_pipe_as_json() {
    let server = Server::start("");
    let input = "{\"payload\":\"text\",\"attributes\":{\"a\":\"1\"}}\n{\"payload_base64\":\"/wA=\"}\n";

    let published = server.publish(&["--json", "--attribute", "b=2=3"], input.as_bytes());
    let consumed = server.consume(&["--json", "--count", "2"]);

    assert_eq!(published.status.code(), Some(0), "{}", err(&published));
    let lines: Vec<serde_json::Value> =
        out(&consumed).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["payload"], "text");
    assert_eq!(lines[0]["attributes"], serde_json::json!({"a": "1", "b": "2=3"}));
    assert_eq!((&lines[1]["payload_base64"], &lines[1]["id"]), (&"/wA=".into(), &2.into()));
}

#[test]
fn lines_that_cannot_be_published_are_told_by_their_number_and_the_rest_is_published() {
    let server = Server::start("max_message_bytes = \"1KiB\"");
    let long = "x".repeat(1025);
    let input = format!(
        "{{\"payload\":\"one\"}}\n{{\"payload\":\n{{\"payload\":\"{long}\"}}\n{{\"payload\":\"four\",\"attributes\":{{\"\":\"\"}}}}\n{{\"payload\":\"five\"}}\n"
    );

    let published = server.publish(&["--json"], input.as_bytes());

    assert_eq!(published.status.code(), Some(1));
    assert_eq!(
        err(&published).lines().collect::<BTreeSet<_>>(),
        [
            "ackstream: line 2 is not published: it is no message in JSON: EOF while parsing a value (column 11)",
            "ackstream: line 3 is not published: it has 1025 bytes, this server takes at most 1024",
            "ackstream: line 4 is not published: not accepted: the name of an attribute has 0 bytes, 1 to 256 are allowed",
            "ackstream: 2 published to topic demo, 3 refused",
        ]
        .into()
    );
    assert_eq!(out(&server.consume(&["--count", "2"])), "one\nfive\n");
}

#[test]
fn after_many_lines_that_cannot_be_published_the_others_are_counted() {
    let server = Server::start("");
    let published = server.publish(&["--json"], "x\n".repeat(1_000).as_bytes());
    let lines: Vec<_> = err(&published).lines().collect();
    assert_eq!(lines.len(), 22);
    assert_eq!(
        lines[20..],
        [
            "ackstream: further lines that are not published are counted",
            "ackstream: 0 published to topic demo, 1,000 refused"
        ]
    );
}

#[test]
fn a_missing_file_is_told_before_anybody_is_talked_to() {
    let output = command("127.0.0.1:1", &["publish", "/nowhere/at/all"]).output().unwrap();
    assert_eq!(output.status.code(), Some(66));
    assert_eq!(err(&output), "ackstream: /nowhere/at/all cannot be read: No such file or directory (os error 2)\n");
    let output = command("127.0.0.1:1", &["publish", "/"]).output().unwrap();
    assert_eq!((err(&output), output.status.code()), ("ackstream: / cannot be read: it is a directory\n", Some(66)));
}

#[test]
fn a_topic_or_a_subscription_that_is_not_there_is_wrong_usage() {
    let server = Server::start(TOPICS);
    let published = server.publish(&["--topic", "order"], b"x");
    assert_eq!(published.status.code(), Some(64));
    assert!(
        err(&published)
            .starts_with("ackstream: the server refuses: there is no topic \"order\"; this server has dead, orders\n")
    );
    let consumed = server.consume(&["--topic", "orders"]);
    assert_eq!(consumed.status.code(), Some(64));
    assert_eq!(
        err(&consumed),
        "ackstream: the server refuses: topic \"orders\" has no subscription \"demo\"; it has orders\n"
    );
}

#[test]
fn without_a_server_both_give_up_in_time() {
    for name in ["publish", "consume"] {
        let output = command("127.0.0.1:1", &[name, "--connect-timeout", "50ms"]).output().unwrap();
        assert_eq!(output.status.code(), Some(69), "{}", err(&output));
        assert!(err(&output).contains("no server after 50ms (--connect-timeout): 127.0.0.1:1: "), "{}", err(&output));
    }
}

#[test]
fn wrong_options_are_told_all_at_once() {
    let output = command("nowhere", &["consume", "--count", "0", "--wait", "2", "--topics", "x"]).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    let said: BTreeSet<_> = err(&output).lines().collect();
    for line in [
        "ackstream: --topics (command line): there is no such argument here; the nearest is --topic (see --help)",
        "ackstream: target = \"nowhere\" (flag --target): must be HOST:PORT such as \"localhost:50051\" or \"[::1]:50051\"",
        "ackstream: count = \"0\" (flag --count): must be a whole number of messages, at least 1",
        "ackstream: wait = \"2\" (flag --wait): must be a length of time with its unit, such as \"2s\" or \"100ms\"",
    ] {
        assert!(said.contains(line), "{line} is not in {said:?}");
    }
    let output = command("localhost:1", &["publish", "--attribut", "a=b", "file"]).output().unwrap();
    let line = "ackstream: --attribut (command line): there is no such argument here; the nearest is --attribute (see --help)\n";
    assert_eq!(err(&output), line, "its value goes with it");
    let output = command("localhost:1", &["publish", "--attribute", "x"]).output().unwrap();
    assert_eq!(err(&output), "ackstream: attribute = \"x\" (flag --attribute): must be NAME=VALUE\n");
}

#[test]
fn what_finds_a_backlog_full_is_published_when_there_is_room() {
    let server = Server::start("max_backlog_messages = 10");
    let input = numbered(500);

    let consuming = server.command(&["consume", "--count", "500"]).spawn().unwrap();
    let reading = std::thread::spawn(move || consuming.wait_with_output().unwrap()); // what is not read is not acked
    let published = server.publish(&[], input.as_bytes());
    let consumed = reading.join().unwrap();

    assert_eq!(published.status.code(), Some(0));
    let said: Vec<_> = err(&published).lines().collect();
    assert_eq!(said.last(), Some(&"ackstream: 500 published to topic demo"));
    assert!(
        said.len() <= 2 && said[0].contains("subscription \"demo\" takes no message") || said.len() == 1,
        "{said:?}"
    );
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(lines(out(&consumed)), lines(&input));
    assert_eq!(server.stop("demo"), [500, 500, 0, 0, 0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_line_is_lost_over_streams_that_break() {
    const PARTS: usize = 5;
    const LINES: usize = 4_000; // of a part
    let server = Server::start("");
    let proxy = Proxy::before(server.process.address).await;
    let target = proxy.address.to_string();
    let mut publishing = command(&target, &["publish"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = publishing.stdin.take().unwrap();
    let mut consuming = command(&target, &["consume"]).spawn().unwrap();
    let mut printed = BufReader::new(consuming.stdout.take().unwrap()).lines();

    let mut seen = BTreeSet::new();
    for part in 0..PARTS {
        for line in 0..LINES {
            writeln!(stdin, "line {}", part * LINES + line).unwrap();
        }
        proxy.reset(); // wherever publisher and consumer are
        while seen.len() < (part + 1) * LINES {
            seen.insert(printed.next().unwrap().unwrap()); // a line may come twice
        }
    }
    drop(stdin);
    let published = publishing.wait_with_output().unwrap();

    assert_eq!(published.status.code(), Some(0), "{}", err(&published));
    assert!(err(&published).contains("broken streams)"), "{}", err(&published));
    assert!(proxy.connections() > PARTS as u64, "{}", proxy.connections());
    let killed = Command::new("kill").args(["-TERM", &consuming.id().to_string()]).status().unwrap();
    assert!(killed.success());
    drop(printed);
    assert_eq!(consuming.wait().unwrap().code(), Some(0));
    let [stored, acked, dropped, ready, delayed, outstanding] = server.stop("demo");
    assert!(stored >= (PARTS * LINES) as u64, "{stored}");
    assert_eq!((acked, dropped, ready + delayed + outstanding), (stored, 0, 0));
}

#[test]
fn a_closed_output_ends_quietly_and_what_was_not_printed_is_not_acked() {
    let server = Server::start("max_retries = 0");
    let payload = "x".repeat(10_000);
    server.publish(&[], format!("{payload}\n").repeat(500).as_bytes());
    let mut consuming = server.command(&["consume"]).spawn().unwrap();
    let mut stdout = BufReader::new(consuming.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    drop(stdout);

    let output = consuming.wait_with_output().unwrap();

    assert_eq!((err(&output), output.status.code()), ("", Some(0)));
    assert_eq!(server.stop("demo"), [500, 0, 0, 500, 0, 0], "what its reader has not taken is not acked");
}

#[test]
fn a_closed_output_is_noticed_while_there_is_nothing_to_print() {
    let server = Server::start("");
    let mut consuming = server.command(&["consume"]).spawn().unwrap();
    server.publish(&[], b"a");
    let mut stdout = BufReader::new(consuming.stdout.take().unwrap());
    stdout.read_line(&mut String::new()).unwrap();
    drop(stdout);
    assert_eq!(consuming.wait().unwrap().code(), Some(0));
    assert_eq!(server.stop("demo"), [1, 1, 0, 0, 0, 0], "what its reader has taken is acked");
}

#[cfg(unix)]
#[test]
fn without_a_standard_output_nothing_is_consumed() {
    let server = Server::start("");
    server.publish(&[], b"a");
    let target = server.process.address.to_string();
    let script = format!("exec {} consume --target {target} --count 1 >&-", env!("CARGO_BIN_EXE_ackstream"));
    let output = Command::new("sh").args(["-c", &script]).stderr(Stdio::piped()).output().unwrap();
    assert_eq!((err(&output), output.status.code()), ("", Some(0)));
    assert_eq!(server.stop("demo"), [1, 0, 0, 1, 0, 0]);
}

#[test]
fn a_pipe_into_a_publish_that_cannot_begin_loses_nothing() {
    let server = Server::start(TOPICS);
    server.publish(&["--topic", "dead"], b"a\nb\n");
    let letters = ["consume", "--topic", "dead", "--subscription", "dead", "--json", "--count", "2"];
    let mut from = server.command(&letters).spawn().unwrap();
    let pipe = from.stdout.take().unwrap();
    let to = server.command(&["publish", "--topic", "ordres", "--json"]).stdin(pipe).output().unwrap();
    assert_eq!(to.status.code(), Some(64), "{}", err(&to));
    assert_eq!(from.wait().unwrap().code(), Some(0));
    assert_eq!(server.stop("dead"), [2, 0, 0, 2, 0, 0]);
}

#[test]
fn an_interrupted_publish_takes_what_is_in_its_pipe() {
    let server = Server::start("");
    let mut publishing = server.command(&["publish"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = publishing.stdin.take().unwrap();
    stdin.write_all(b"a\n").unwrap();
    assert_eq!(out(&server.consume(&["--count", "1"])), "a\n");
    let killed = Command::new("kill").args(["-INT", &publishing.id().to_string()]).status().unwrap();
    assert!(killed.success());
    stdin.write_all(b"b\nc\n").unwrap();
    drop(stdin);
    let output = publishing.wait_with_output().unwrap();
    assert_eq!((err(&output), output.status.code()), ("ackstream: 3 published to topic demo\n", Some(0)));
}

#[test]
fn what_is_delivered_beyond_the_count_costs_no_retry() {
    let server = Server::start("max_retries = 0\nack_deadline = \"500ms\"");
    let line = "x".repeat(40_000);
    server.publish(&[], format!("{line}\n").repeat(40).as_bytes());
    let mut consuming = server.command(&["consume", "--count", "20"]).spawn().unwrap();
    let mut stdout = BufReader::new(consuming.stdout.take().unwrap());
    for _ in 0..10 {
        stdout.read_line(&mut String::new()).unwrap();
    }
    // Those that are beyond the count, and those that wait to be read, would be given up in this time.
    assert_eq!(
        out(&server.consume(&["--no-ack", "--wait", "1500ms"])).lines().filter(|other| **other != line).count(),
        0
    );
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest.lines().count(), 10);
    assert_eq!(consuming.wait().unwrap().code(), Some(0));
    assert_eq!(server.stop("demo"), [40, 20, 0, 20, 0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_message_can_be_put_back() {
    let server = Server::start(TOPICS);
    server.publish(&["--topic", "orders"], &vec![b'q'; 1 << 20]);
    let orders = Open { topic: "orders".into(), subscription: "orders".into(), ..Open::default() };
    let (send, mut receive) = server.process.open(orders).await;
    assert!(matches!(next(&mut receive).await, Ok(Some(Kind::Data(_)))));
    let nack = Kind::Nack(Nack { ack_id: 1, drop: true, ..Nack::default() });
    send.send(StreamMessage { kind: Some(nack) }).await.unwrap();
    let letter = server.consume(&["--topic", "dead", "--subscription", "dead", "--json", "--count", "1"]);
    let published = server.publish(&["--topic", "orders", "--json"], &letter.stdout);
    assert_eq!((err(&published), published.status.code()), ("ackstream: 1 published to topic orders\n", Some(0)));
}

#[test]
fn whoever_only_looks_costs_nothing() {
    let server = Server::start("max_retries = 0\nack_deadline = \"500ms\"");
    server.publish(&[], b"a\nb\nc\n");
    for _ in 0..2 {
        let looked = server.consume(&["--no-ack", "--wait", "800ms"]);
        assert_eq!((out(&looked), looked.status.code()), ("a\nb\nc\n", Some(0)), "{}", err(&looked));
    }
    let looked = server.consume(&["--no-ack", "--count", "1"]);
    assert_eq!(out(&looked), "a\n");
    assert_eq!(server.stop("demo"), [3, 0, 0, 3, 0, 0]);
}

#[test]
fn what_waits_to_be_printed_does_not_expire() {
    let server = Server::start("max_retries = 0\nack_deadline = \"500ms\"");
    let payload = "x".repeat(10_000);
    server.publish(&[], format!("{payload}\n").repeat(100).as_bytes());
    let mut consuming = server.command(&["consume", "--count", "100"]).spawn().unwrap();
    let mut stdout = consuming.stdout.take().unwrap();
    let mut first = [0; 1];
    stdout.read_exact(&mut first).unwrap();
    // Another message would be given up in this time.
    let canary = server.command(&["publish"]).stdin(Stdio::piped()).spawn().unwrap();
    feed(canary, b"canary");
    let late = server.consume(&["--wait", "1500ms"]);
    assert_eq!(out(&late), "canary\n");

    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();

    assert_eq!(rest.lines().count(), 100);
    assert_eq!(consuming.wait().unwrap().code(), Some(0));
    assert_eq!(server.stop("demo"), [101, 101, 0, 0, 0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_queue_is_put_back_with_a_pipe() {
    let server = Server::start(TOPICS);
    let input =
        "{\"payload\":\"a\",\"attributes\":{\"kind\":\"new\"}}\n{\"payload_base64\":\"/w==\"}\n{\"payload\":\"c\"}\n";
    server.publish(&["--topic", "orders", "--json"], input.as_bytes());
    let orders = Open { topic: "orders".into(), subscription: "orders".into(), ..Open::default() };
    let (send, mut receive) = server.process.open(orders).await;
    for id in 1..=3 {
        assert!(matches!(next(&mut receive).await, Ok(Some(Kind::Data(data))) if data.id == id));
        let nack = Kind::Nack(Nack { ack_id: id, drop: true, ..Nack::default() });
        send.send(StreamMessage { kind: Some(nack) }).await.unwrap();
    }

    let mut from = server
        .command(&["consume", "--topic", "dead", "--subscription", "dead", "--json", "--count", "3"])
        .spawn()
        .unwrap();
    let pipe = from.stdout.take().unwrap();
    let to = server.command(&["publish", "--topic", "orders", "--json"]).stdin(pipe).output().unwrap();

    assert_eq!((err(&to), to.status.code()), ("ackstream: 3 published to topic orders\n", Some(0)));
    assert_eq!(from.wait().unwrap().code(), Some(0));
    for (id, payload) in (4..=6).zip([&b"a"[..], b"\xff", b"c"]) {
        let Ok(Some(Kind::Data(data))) = next(&mut receive).await else { panic!("they come back") };
        assert_eq!((data.id, data.payload.as_ref()), (id, payload));
        assert_eq!(data.attributes["ackstream.origin.topic"], "orders");
        assert_eq!(data.attributes["ackstream.origin.id"], (id - 3).to_string());
        assert_eq!(data.attributes.get("kind").map(String::as_str), (id == 4).then_some("new"));
        ack(&send, id).await;
    }
    drop(send);
    while let Ok(Some(_)) = next(&mut receive).await {}
    assert_eq!(server.stop("orders"), [6, 3, 3, 0, 0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_says_which_of_several_subscriptions_a_line_is_about() {
    let mut server = Server::start_that_says(TOPICS, 100);
    server.publish(&["--topic", "orders"], b"x");
    let orders = Open { topic: "orders".into(), subscription: "orders".into(), ..Open::default() };
    let (send, mut receive) = server.process.open(orders).await;
    assert!(matches!(next(&mut receive).await, Ok(Some(Kind::Data(_)))));
    let nack = Kind::Nack(Nack { ack_id: 1, drop: true, ..Nack::default() });
    send.send(StreamMessage { kind: Some(nack) }).await.unwrap();
    assert_eq!(out(&server.consume(&["--topic", "dead", "--subscription", "dead", "--count", "1"])), "x\n");
    let said: Vec<_> = (0..5).map(|_| server.process.line()).collect();
    assert_eq!(
        said,
        [
            "[RUST SERVER] orders: Sent message 1",
            "[RUST SERVER] orders: Received NACK for message 1",
            "[RUST SERVER] orders: Dropped message 1 after 1 attempt: its consumer rejected it; topic dead has it",
            "[RUST SERVER] dead: Sent message 1",
            "[RUST SERVER] dead: Received ACK for message 1",
        ]
    );
}

#[test]
fn an_interrupted_publish_says_what_it_has_done_and_that_it_is_not_all() {
    let server = Server::start("");
    let mut publishing = server.command(&["publish"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = publishing.stdin.take().unwrap();
    stdin.write_all(b"a\nb\n").unwrap();
    assert_eq!(out(&server.consume(&["--count", "2"])), "a\nb\n");

    let killed = Command::new("kill").args(["-INT", &publishing.id().to_string()]).status().unwrap();

    assert!(killed.success());
    let output = publishing.wait_with_output().unwrap();
    assert_eq!(
        (err(&output), output.status.code()),
        ("ackstream: 2 published to topic demo, interrupted: what was not read is not published\n", Some(1))
    );
    drop(stdin);
}

#[test]
fn both_go_on_with_the_next_server_and_another_epoch_is_another_life() {
    let first = Server::start("");
    let address = first.process.address.to_string();
    let mut consuming = first.command(&["consume"]).spawn().unwrap();
    let mut printed = BufReader::new(consuming.stdout.take().unwrap()).lines();
    first.publish(&[], b"one");
    assert_eq!(printed.next().unwrap().unwrap(), "one");
    drop(first);

    let second = Process::start_at(&["serve"], &address);
    feed(command(&address, &["publish"]).stdin(Stdio::piped()).spawn().unwrap(), b"two");

    assert_eq!(printed.next().unwrap().unwrap(), "two", "it has the same id as the first of the other server");
    second.signal("-TERM");
    let _ = consuming.kill();
    let _ = consuming.wait();
}

#[test]
fn each_shell_gets_its_completions() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = ackstream(&["completions", shell]).output().unwrap();
        assert!(output.status.success());
        assert!(out(&output).contains("ack-deadline") && out(&output).contains("consume"), "{shell}");
    }
    let output = ackstream(&["completions", "tcsh"]).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
}

#[test]
fn a_publisher_that_is_told_to_wait_for_a_server_finds_it() {
    let reserved = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = reserved.local_addr().unwrap().to_string();
    drop(reserved);
    let mut publishing = command(&address, &["publish"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(publishing.stderr.take().unwrap()).lines();
    let first = said.next().unwrap().unwrap();
    assert!(first.ends_with("; trying again for 30s"), "{first}");

    let server = Process::start_at(&["serve"], &address);
    let output = feed(publishing, b"x");

    assert_eq!(output.status.code(), Some(0));
    server.signal("-TERM");
}
