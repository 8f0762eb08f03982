//! What people type: whole conversations with the tools that they have. A tool that is not installed is skipped by name.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/process.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod process;

use std::io::Write as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Deserializer, Value, json};

use crate::process::Process;

/// A current one, and the last that speaks only v1alpha of reflection.
const GRPCURLS: [&str; 2] = ["grpcurl", "grpcurl-1.8.6"];

/// Does `with` with each grpcurl that there is.
fn with_each_grpcurl(with: impl Fn(&str)) {
    for tool in GRPCURLS {
        if Command::new(tool).arg("--version").stderr(Stdio::null()).status().is_ok() {
            with(tool);
        } else {
            println!("SKIPPED: {tool} is not installed");
        }
    }
}

fn answer(tool: &str, arguments: &[&str]) -> String {
    let output = Command::new(tool).arg("-plaintext").args(arguments).output().unwrap();
    assert!(output.status.success(), "{tool} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A conversation typed line by line.
struct Typed {
    child: Child,
    input: Option<ChildStdin>,
    frames: Box<dyn Iterator<Item = serde_json::Result<Value>>>,
}

impl Typed {
    fn start(tool: &str, address: &str) -> Self {
        let method = "ackstream.v1.MessageStream/Exchange";
        let mut child = Command::new(tool)
            .args(["-plaintext", "-d", "@", address, method])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output: ChildStdout = child.stdout.take().unwrap();
        let frames = Box::new(Deserializer::from_reader(output).into_iter::<Value>());
        Self { input: child.stdin.take(), child, frames }
    }

    fn type_line(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    fn frame(&mut self) -> Value {
        self.frames.next().expect("the conversation goes on").unwrap()
    }

    fn delivery(&mut self) -> (Value, Value) {
        let frame = self.frame();
        (frame["data"]["id"].clone(), frame["data"]["deliveryAttempt"].clone())
    }

    /// Half-closes; returns the exit code.
    fn end(mut self) -> Option<i32> {
        self.input = None;
        self.child.wait().unwrap().code()
    }
}

impl Drop for Typed {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it has ended, unless it is a tail or the test failed
        let _ = self.child.wait();
    }
}

#[test]
fn grpcurl_lists_and_describes_every_service_with_its_comments() {
    let process = Process::start(&["serve"]);
    let address = process.address.to_string();
    with_each_grpcurl(|tool| {
        let services: Vec<_> = answer(tool, &[&address, "list"]).lines().map(str::to_owned).collect();
        assert_eq!(
            services,
            [
                "ackstream.v1.MessageStream",
                "grpc.health.v1.Health",
                "grpc.reflection.v1.ServerReflection",
                "grpc.reflection.v1alpha.ServerReflection"
            ]
        );
        for service in &services {
            assert!(answer(tool, &[&address, "describe", service]).contains("service "), "{service}");
        }
        let described = answer(tool, &[&address, "describe", "ackstream.v1.Open"]);
        assert!(described.contains("// "), "comments are there: {described}");
    });
}

#[test]
fn grpcurl_asks_for_health() {
    let process = Process::start(&["serve"]);
    let address = process.address.to_string();
    with_each_grpcurl(|tool| {
        let health = answer(
            tool,
            &["-d", r#"{"service":"ackstream.v1.MessageStream"}"#, &address, "grpc.health.v1.Health/Check"],
        );
        assert_eq!(serde_json::from_str::<Value>(&health).unwrap(), json!({"status": "SERVING"}));
    });
}

#[test]
fn grpcurl_holds_a_whole_conversation() {
    with_each_grpcurl(|tool| {
        let process = Process::start(&["serve", "--ack-deadline", "200ms"]);
        let mut typed = Typed::start(tool, &process.address.to_string());
        typed.type_line(r#"{"open":{}}"#);
        let opened = typed.frame();
        assert_eq!(opened["opened"]["subscription"], "demo", "{opened}");
        assert_eq!(opened["opened"]["ackDeadline"], "0.200s", "{opened}");
        typed.type_line(r#"{"data":{"id":7,"payload":"aGVsbG8="}}"#);
        let mut frames = [typed.frame(), typed.frame()]; // the answer and the delivery, in any order
        frames.sort_by_key(|frame| frame.get("ack").is_none());
        assert_eq!((&frames[0]["ack"]["ackId"], &frames[0]["ack"]["messageId"]), (&json!("7"), &json!("1")));
        assert_eq!((&frames[1]["data"]["id"], &frames[1]["data"]["payload"]), (&json!("1"), &json!("aGVsbG8=")));
        assert_eq!(frames[1]["data"]["deliveryAttempt"], 1);
        assert_eq!(typed.delivery(), (json!("1"), json!(2))); // the first expired
        typed.type_line(r#"{"nack":{"ack_id":1,"delay":"0s"}}"#);
        assert_eq!(typed.delivery(), (json!("1"), json!(3)));
        typed.type_line(r#"{"ack":{"ack_id":1}}"#);
        assert_eq!(typed.end(), Some(0));
        process.signal("-TERM");
        let (log, _) = process.end();
        assert!(log.contains("1 published = 1 acked + 0 dropped + 0 ready"), "{log}");
    });
}

#[test]
fn grpcurl_is_a_tail_with_auto_ack() {
    with_each_grpcurl(|tool| {
        let process = Process::start(&["serve"]);
        let address = process.address.to_string();
        let mut tail = Typed::start(tool, &address);
        tail.type_line(r#"{"open":{"auto_ack":true}}"#);
        assert!(tail.frame()["opened"].is_object());
        tail.input = None; // half-closed, as after -d '{"open":{"auto_ack":true}}'
        let mut publisher = Typed::start(tool, &address);
        publisher.type_line(r#"{"open":{"publish_only":true}}{"data":{"id":1}}{"data":{"id":2}}"#);
        assert_eq!(publisher.end(), Some(0));
        assert_eq!(tail.delivery(), (json!("1"), json!(1)));
        assert_eq!(tail.delivery(), (json!("2"), json!(1)));
    });
}

#[test]
fn buf_curl_lists_and_calls() {
    if Command::new("buf").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        println!("SKIPPED: buf is not installed");
        return;
    }
    let process = Process::start(&["serve"]);
    let url = format!("http://{}", process.address);
    let buf = |arguments: &[&str]| {
        let output = Command::new("buf")
            .args(["curl", "--http2-prior-knowledge", "--protocol", "grpc"])
            .args(arguments)
            .output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    assert!(buf(&["--list-methods", &url]).contains("ackstream.v1.MessageStream/Exchange"));
    let health = buf(&["--data", "{}", &format!("{url}/grpc.health.v1.Health/Check")]);
    assert!(health.contains("SERVING"), "{health}");
}
