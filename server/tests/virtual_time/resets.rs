//! Below gRPC: streams that are reset (tonic would take a reset with CANCEL for a half-close), and clients that fall silent.

use std::sync::Arc;
use std::time::Duration;

use ackstream::proto::stream_message::Kind;
use ackstream::proto::{Open, StreamMessage};
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::SendStream;
use prost::Message as _;
use tokio::sync::Notify;

use crate::support::{Memory, within};

/// A stream that is open and holds one delivery, and the task that drives its connection.
struct Holder {
    connection: tokio::task::JoinHandle<()>,
    send: SendStream<Bytes>,
    _client: h2::client::SendRequest<Bytes>,
    _receive: h2::RecvStream,
}

/// `open` as gRPC puts it on the wire.
fn open_frame() -> Bytes {
    let open = StreamMessage { kind: Some(Kind::Open(Open::default())) }.encode_to_vec();
    let mut frame = BytesMut::new();
    frame.put_u8(0); // not compressed
    frame.put_u32(u32::try_from(open.len()).unwrap());
    frame.put_slice(&open);
    frame.freeze()
}

fn exchange() -> http::Request<()> {
    http::Request::post("http://memory/ackstream.v1.MessageStream/Exchange")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

/// The connection is driven until `frozen`; then it stays open, and nobody answers.
async fn holder(memory: &Memory, frozen: Arc<Notify>) -> Holder {
    let (client, connection) = h2::client::handshake(memory.dial()).await.unwrap();
    let connection = tokio::spawn(async move {
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            _ = &mut connection => {}
            () = frozen.notified() => std::future::pending().await,
        }
    });
    let mut client = client.ready().await.unwrap();
    let (response, mut send) = client.send_request(exchange(), false).unwrap();
    send.send_data(open_frame(), false).unwrap();
    let mut receive = response.await.unwrap().into_body();
    while memory.counts().1.outstanding == 0 {
        within(receive.data()).await.unwrap().unwrap();
    }
    Holder { connection, send, _client: client, _receive: receive }
}

/// Whether the end of the requests or that of the responses is seen first is a matter of luck, so this asks many times.
/// Of 200 messages that no interruption may befall, how many are dropped and how many ready.
async fn a_message_whose_holder_ends_by(reset: impl Fn(&mut SendStream<Bytes>)) -> (u64, u64) {
    const ROUNDS: u64 = 200;
    let memory = Memory::with(|settings| {
        settings.policy.max_interruptions = Some(0);
        settings.policy.ack_deadline = Duration::from_mins(10);
    })
    .await;
    for round in 1..=ROUNDS {
        memory.publish(1).await;
        let mut holder = holder(&memory, Arc::default()).await;
        reset(&mut holder.send);
        within(async {
            while memory.counts().0.ended.released + memory.counts().0.ended.interrupted < round {
                tokio::task::yield_now().await;
            }
        })
        .await;
        if memory.counts().1.ready > 0 {
            break;
        }
    }
    let (counts, backlog) = memory.counts();
    (counts.dropped, backlog.ready)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_is_an_interruption() {
    let result = a_message_whose_holder_ends_by(|send| send.send_reset(h2::Reason::CANCEL)).await;
    assert_eq!(result, (200, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_close_is_none() {
    let result = a_message_whose_holder_ends_by(|send| send.send_data(Bytes::new(), true).unwrap()).await;
    assert_eq!(result, (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_falls_silent_gives_back_what_it_holds_within_half_a_minute() {
    let memory = Memory::with(|settings| settings.policy.ack_deadline = Duration::from_hours(1)).await;
    memory.publish(1).await;
    let frozen = Arc::new(Notify::new());
    let holder = holder(&memory, Arc::clone(&frozen)).await;
    tokio::time::sleep(Duration::from_mins(10)).await;
    assert_eq!(memory.counts().1.outstanding, 1, "whoever answers pings may be slow");
    frozen.notify_one();
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_eq!(memory.counts().1.ready, 1);
    holder.connection.abort();
}

/// The client answers pings, but takes no data: what has been written for it cannot be sent, and the end of its stream is never asked for.
#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_the_end_of_its_stream_loses_its_connection_and_its_place() {
    let memory = Memory::with(|settings| settings.limits.max_streams = 1).await;
    let builder = &mut h2::client::Builder::new();
    let (client, connection) = builder.initial_window_size(0).handshake(memory.dial()).await.unwrap();
    let connection = tokio::spawn(connection);
    let (response, mut send) = client.ready().await.unwrap().send_request(exchange(), false).unwrap();
    let _receive = response.await.unwrap();
    send.send_data(open_frame(), false).unwrap();
    send.send_data(open_frame(), false).unwrap(); // twice is an error, which ends the stream
    tokio::time::sleep(Duration::from_millis(4_900)).await;
    assert!(!connection.is_finished());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(connection.is_finished());
    memory.consume(Open::default()).await;
}
