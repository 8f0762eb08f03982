//! Frames that no client of ours would send: bytes go over the wire as they are.

use std::collections::BTreeMap;

use ackstream::proto::stream_message::Kind;
use ackstream::proto::{DataBatch, DataMessage, Open, StreamMessage};
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

/// A frame with one `data_batch`.
fn batch(messages: Vec<DataMessage>) -> Bytes {
    StreamMessage { kind: Some(Kind::DataBatch(DataBatch { messages })) }.encode_to_vec().into()
}

#[tokio::test(start_paused = true)]
async fn a_frame_with_more_messages_or_attributes_than_it_may_have_is_refused_whole() {
    let memory = Memory::start().await;
    let status = end_after(&memory, batch(vec![DataMessage::default(); 32_769])).await;
    assert_eq!(status.code(), Code::InvalidArgument);
    let told = "a frame could not be read: a frame has at most 32768 messages and 100000 attributes in all, and this one has 32769 and 0";
    assert_eq!(status.message(), told);

    let attributes: BTreeMap<_, _> = (0..50_001).map(|n| (n.to_string(), String::new())).collect();
    let much = DataMessage { attributes, ..DataMessage::default() };
    let status = end_after(&memory, batch(vec![much.clone(), much])).await;
    assert!(status.message().ends_with("and this one has 2 and 100002"), "{status}");
    assert_eq!(memory.counts().0.published, 0);
}

/// Opens a stream of bytes, sends `frame` on it, and returns how the stream ended.
async fn end_after(memory: &Memory, frame: Bytes) -> Status {
    let (send, frames) = mpsc::channel(10);
    let mut client = tonic::client::Grpc::new(memory.connect().await);
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/ackstream.v1.MessageStream/Exchange");
    let response = client.streaming(Request::new(ReceiverStream::new(frames)), path, Raw).await.unwrap();
    let mut receive: Streaming<Bytes> = response.into_inner();
    let open = StreamMessage { kind: Some(Kind::Open(Open::default())) };
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
