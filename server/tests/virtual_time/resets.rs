//! A stream that is reset, below gRPC, where tonic would take a reset with CANCEL for a half-close.

use std::time::Duration;

use ackstream::proto::stream_message::Kind;
use ackstream::proto::{Open, StreamMessage};
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::SendStream;
use prost::Message as _;

use crate::support::{Memory, within};

/// A stream that is open and holds one delivery.
async fn holder(memory: &Memory) -> (h2::client::SendRequest<Bytes>, SendStream<Bytes>, h2::RecvStream) {
    let (client, connection) = h2::client::handshake(memory.dial()).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post("http://memory/ackstream.v1.MessageStream/Exchange")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let mut client = client.ready().await.unwrap();
    let (response, mut send) = client.send_request(request, false).unwrap();
    let open = StreamMessage { kind: Some(Kind::Open(Open::default())) }.encode_to_vec();
    let mut frame = BytesMut::new();
    frame.put_u8(0); // not compressed
    frame.put_u32(u32::try_from(open.len()).unwrap());
    frame.put_slice(&open);
    send.send_data(frame.freeze(), false).unwrap();
    let mut receive = response.await.unwrap().into_body();
    while memory.counts().1.outstanding == 0 {
        within(receive.data()).await.unwrap().unwrap();
    }
    (client, send, receive)
}

/// Whether the end of the requests or that of the responses is seen first is a matter of luck, so this asks many times.
async fn a_message_whose_holder_ends_by(reset: impl Fn(SendStream<Bytes>)) -> (u64, u64) {
    const ROUNDS: u64 = 200;
    let memory = Memory::with(|settings| {
        settings.policy.max_retries = Some(0);
        settings.policy.ack_deadline = Duration::from_mins(10);
    })
    .await;
    for round in 1..=ROUNDS {
        memory.publish(1).await;
        let (_client, send, _receive) = holder(&memory).await;
        reset(send);
        within(async {
            while memory.counts().0.ended.released < round {
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
async fn a_reset_costs_a_retry() {
    let result = a_message_whose_holder_ends_by(|mut send| send.send_reset(h2::Reason::CANCEL)).await;
    assert_eq!(result, (200, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_close_costs_none() {
    let result = a_message_whose_holder_ends_by(|mut send| send.send_data(Bytes::new(), true).unwrap()).await;
    assert_eq!(result, (0, 1));
}
