//! The port for HTTP, over memory and in virtual time.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use ackstream::exchange::Ending;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use crate::support::{Memory, timed};

fn dial(memory: &Memory) -> DuplexStream {
    let (near, far) = tokio::io::duplex(256);
    tokio::spawn(memory.server.endpoint().clone().serve_connection(far));
    near
}

async fn ask(memory: &Memory, request: &str) -> (u16, String) {
    let mut connection = dial(memory);
    connection.write_all(format!("{request} HTTP/1.1\r\nHost: memory\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    (answer[9..12].parse().unwrap(), answer)
}

#[tokio::test(start_paused = true)]
async fn it_answers_what_it_has_and_refuses_the_rest() {
    let memory = Memory::start().await;
    let (code, page) = ask(&memory, "GET /metrics").await;
    assert_eq!(code, 200);
    assert!(page.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{page}");
    assert!(page.contains("ackstream_messages_published_total{topic=\"demo\",subscription=\"demo\"} 0\n"), "{page}");
    let (code, head) = ask(&memory, "HEAD /metrics").await;
    assert_eq!(code, 200);
    assert!(head.ends_with("\r\n\r\n"), "{head}");
    assert_eq!(ask(&memory, "GET /livez").await.0, 200);
    assert_eq!(ask(&memory, "GET /").await.0, 404);
    let (code, refused) = ask(&memory, "POST /metrics").await;
    assert_eq!(code, 405);
    assert!(refused.contains("allow: GET, HEAD\r\n"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn it_is_ready_while_the_server_serves_and_live_to_the_end() {
    let server = ackstream::server::Server::start(&crate::support::settings()).await.unwrap();
    let memory = Memory::of(server);
    assert_eq!(ask(&memory, "GET /readyz").await.0, 503);
    memory.server.serving().await;
    assert_eq!(ask(&memory, "GET /readyz").await.0, 200);
    memory.server.drain(Duration::ZERO).await;
    assert_eq!(ask(&memory, "GET /readyz").await.0, 503);
    memory.server.end_streams(Ending::Stopping).await;
    assert_eq!(ask(&memory, "GET /livez").await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stalls_half_way_through_its_request_loses_its_connection() {
    let memory = Memory::start().await;
    let mut connection = dial(&memory);
    connection.write_all(b"GET /metr").await.unwrap();
    let (_, took) = timed(connection.read_to_string(&mut String::new())).await;
    assert_eq!(took.as_secs(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stalls_half_way_through_the_answer_holds_up_nobody() {
    let memory = Memory::start().await;
    let mut connection = dial(&memory);
    connection.write_all(b"GET /metrics HTTP/1.1\r\nHost: memory\r\n\r\n").await.unwrap();
    let mut first = [0; 100];
    connection.read_exact(&mut first).await.unwrap();
    let (answer, took) = timed(ask(&memory, "GET /metrics")).await;
    assert_eq!((answer.0, took), (200, Duration::ZERO));
    memory.publish(1).await;
    tokio::time::sleep(Duration::from_secs(11)).await;
    let mut rest = String::new();
    connection.read_to_string(&mut rest).await.unwrap();
    assert!(!rest.contains("process_threads"), "the rest was not sent");
}

#[tokio::test(start_paused = true)]
async fn promtool_finds_nothing_wrong() {
    let memory = Memory::start().await;
    memory.publish(3).await;
    let page = memory.server.endpoint().metrics().scrape();
    let promtool = Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).spawn();
    let Ok(mut promtool) = promtool else {
        println!("SKIPPED: promtool is not installed");
        return;
    };
    promtool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    assert!(promtool.wait().unwrap().success(), "{page}");
}
