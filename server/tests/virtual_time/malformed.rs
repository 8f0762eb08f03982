//! Frames that no client of ours would send: bytes go over the wire as they are.

use ackstream::proto::Open;
use ackstream::proto::stream_message::Kind;
use bytes::{Buf as _, BufMut as _, Bytes};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Status, Streaming};

use crate::support::Memory;

#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// Opens a stream of bytes, sends `frame` on it, and returns how the stream ended.
async fn end_after(memory: &Memory, frame: Bytes) -> Status {
    let (send, frames) = mpsc::channel(10);
    let mut client = tonic::client::Grpc::new(memory.connect().await);
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/ackstream.v1.MessageStream/Exchange");
    let response = client.streaming(Request::new(ReceiverStream::new(frames)), path, Raw).await.unwrap();
    let mut receive: Streaming<Bytes> = response.into_inner();
    let open = ackstream::proto::StreamMessage { kind: Some(Kind::Open(Open::default())) };
    send.send(open.encode_to_vec().into()).await.unwrap();
    receive.message().await.unwrap();
    send.send(frame).await.unwrap();
    receive.message().await.unwrap_err()
}

#[tokio::test(start_paused = true)]
async fn malformed_protobuf_ends_its_stream_with_a_status_and_nobody_else_notices() {
    let memory = Memory::start().await;
    let mut other = memory.consume(Open::default()).await;
    let status = end_after(&memory, Bytes::from_static(&[0xff; 40])).await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("a frame could not be read"), "{status}");
    other.publish(1, b"still here").await;
    assert_eq!(other.ack().await.ack_id, 1);
}

#[tokio::test(start_paused = true)]
async fn an_oversize_frame_ends_its_stream_with_a_status_and_nobody_else_notices() {
    let memory = Memory::start().await;
    let mut other = memory.consume(Open::default()).await;
    let status = end_after(&memory, vec![0; 6 << 20].into()).await;
    assert_eq!(status.code(), Code::InvalidArgument);
    other.publish(1, b"still here").await;
    assert_eq!(other.ack().await.ack_id, 1);
}
