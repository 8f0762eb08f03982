//! How frames become bytes. A delivery is written straight from the message that all of its subscriptions share, in the bytes that
//! prost would write for a `DataMessage` of it, without making one: that would cost three allocations and a second pass for the
//! lengths. Every other frame is prost's.

use ackstream_core::Delivery;
use bytes::{Buf as _, BufMut};
use prost::Message as _;
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_varint, encoded_len_varint, skip_field,
};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use crate::exchange::frames::timestamp;
use crate::message::{ATTRIBUTE, Message};
use crate::proto::StreamMessage;
use crate::telemetry::TRACEPARENT_LENGTH;

/// What the server sends.
#[derive(Debug)]
pub enum Frame {
    /// Anything but deliveries.
    Other(StreamMessage),
    /// One delivery.
    Data(Push),
    /// Several.
    DataBatch(Vec<Push>),
}

/// A delivery on its way to its consumer.
#[derive(Debug)]
pub struct Push {
    pub(super) delivery: Delivery<Message>,
    pub(super) requires_ack: bool,
    /// The trace context of this attempt, where deliveries are traced.
    pub(super) traceparent: Option<[u8; TRACEPARENT_LENGTH]>,
}

/// The key of a field: its number, and how its value is written.
const fn key(field: u8, wire_type: u8) -> u8 {
    field << 3 | wire_type
}
const VARINT: u8 = 0;
const LENGTH_DELIMITED: u8 = 2;
/// The largest number of a field whose key is one byte.
const LARGEST_OF_ONE_BYTE: u32 = 15;

// Fields of a `StreamMessage`,
const DATA: u8 = key(3, LENGTH_DELIMITED);
pub(super) const ACK: u8 = key(4, LENGTH_DELIMITED);
const DATA_BATCH: u8 = key(7, LENGTH_DELIMITED);
pub(super) const ACK_BATCH: u8 = key(8, LENGTH_DELIMITED);
// of a `DataBatch`,
const MESSAGES: u8 = key(1, LENGTH_DELIMITED);
// of a `DataMessage`,
const ID: u8 = key(1, VARINT);
const TIMESTAMP: u8 = key(2, LENGTH_DELIMITED);
const PAYLOAD: u8 = key(3, LENGTH_DELIMITED);
const REQUIRES_ACK: u8 = key(4, VARINT);
const DELIVERY_ATTEMPT: u8 = key(5, VARINT);
const TRACE_CONTEXT: u8 = key(7, LENGTH_DELIMITED);
const FAILURES: u8 = key(11, VARINT);
const INTERRUPTIONS: u8 = key(12, VARINT);
// of a `Timestamp`,
const SECONDS: u8 = key(1, VARINT);
const NANOS: u8 = key(2, VARINT);
// of an `AckMessage`,
pub(super) const ACK_ID: u8 = key(1, VARINT);
// and of an `AckBatch`.
pub(super) const ACK_IDS: u8 = key(1, LENGTH_DELIMITED);

/// What a `DataMessage` has before its payload's bytes, or behind them and before its attributes. It is written here first, since
/// the buffer of a connection asks for room with every piece.
struct Part {
    bytes: [u8; Self::LONGEST],
    len: usize,
}

impl Part {
    /// Five keys, an id, a timestamp of two varints and its length, and the payload's length.
    const LONGEST: usize = 5 + 10 + 1 + 10 + 5 + 5;

    const fn new() -> Self {
        Self { bytes: [0; Self::LONGEST], len: 0 }
    }

    fn put(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.put(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.put(value.to_le_bytes()[0]);
    }

    /// A field of a number, which is left out where it is 0.
    fn number(&mut self, key: u8, value: u64) {
        if value != 0 {
            self.put(key);
            self.varint(value);
        }
    }

    fn written(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// A `DataMessage`, ready to be written.
struct Data<'a> {
    before: Part,
    behind: Part,
    last: Part,
    push: &'a Push,
}

impl<'a> Data<'a> {
    fn new(push: &'a Push) -> Self {
        let Push { delivery, requires_ack, .. } = push;
        let (mut before, mut behind, mut last) = (Part::new(), Part::new(), Part::new());
        before.number(ID, delivery.id.0);
        let accepted_at = timestamp(delivery.accepted_at);
        let (seconds, nanos) = (accepted_at.seconds.unsigned_abs(), u64::from(accepted_at.nanos.unsigned_abs()));
        let length = |value| if value == 0 { 0 } else { 1 + encoded_len_varint(value) as u64 };
        before.put(TIMESTAMP);
        before.varint(length(seconds) + length(nanos));
        before.number(SECONDS, seconds);
        before.number(NANOS, nanos);
        let payload = delivery.body.payload().len() as u64;
        before.number(PAYLOAD, payload);
        behind.number(REQUIRES_ACK, u64::from(*requires_ack));
        behind.number(DELIVERY_ATTEMPT, u64::from(delivery.attempt));
        last.number(FAILURES, u64::from(delivery.failures));
        last.number(INTERRUPTIONS, u64::from(delivery.interruptions));
        Self { before, behind, last, push }
    }

    fn len(&self) -> usize {
        let trace_context = if self.push.traceparent.is_some() { 2 + TRACEPARENT_LENGTH } else { 0 };
        self.before.len + self.behind.len + self.last.len + self.push.delivery.body.encoded_len() + trace_context
    }

    fn write(&self, out: &mut impl BufMut) {
        let body = &self.push.delivery.body;
        out.put_slice(self.before.written());
        out.put_slice(body.payload());
        out.put_slice(self.behind.written());
        out.put_slice(body.encoded_attributes());
        if let Some(traceparent) = &self.push.traceparent {
            let mut head = Part::new();
            head.put(TRACE_CONTEXT);
            head.varint(TRACEPARENT_LENGTH as u64);
            out.put_slice(head.written());
            out.put_slice(traceparent);
        }
        out.put_slice(self.last.written());
    }

    /// Writes it as a field.
    fn write_as(&self, key: u8, out: &mut impl BufMut) {
        let mut head = Part::new();
        head.put(key);
        head.varint(self.len() as u64);
        out.put_slice(head.written());
        self.write(out);
    }

    /// The length of that field.
    fn len_as_field(&self) -> usize {
        1 + encoded_len_varint(self.len() as u64) + self.len()
    }
}

impl Frame {
    fn write(&self, out: &mut impl BufMut) {
        match self {
            Self::Other(message) => message.encode_raw(out),
            Self::Data(push) => Data::new(push).write_as(DATA, out),
            Self::DataBatch(pushes) => {
                let data: Vec<Data<'_>> = pushes.iter().map(Data::new).collect();
                out.put_u8(DATA_BATCH);
                encode_varint(data.iter().map(Data::len_as_field).sum::<usize>() as u64, out);
                for data in &data {
                    data.write_as(MESSAGES, out);
                }
            }
        }
    }
}

/// The most messages in a frame of a client: decoded, they take 4 MiB besides what they carry, though each may have two bytes in the frame.
const MAX_BATCH_MESSAGES: usize = 32_768;
/// The most attributes in a frame of a client, for the same reason.
const MAX_BATCH_ATTRIBUTES: usize = 100_000;

/// What takes more memory in a frame once it is decoded than before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    messages: usize,
    attributes: usize,
}

/// Counts what a client's frame has of it, up to where it cannot be read: that is prost's to tell.
fn count(frame: &[u8]) -> Counted {
    let mut counted = Counted::default();
    each_part(frame, &mut |key, part| match key {
        DATA => counted.message(part),
        DATA_BATCH => each_part(part, &mut |key, message| {
            if key == MESSAGES {
                counted.message(message);
            }
        }),
        _ => {}
    });
    counted
}

impl Counted {
    fn message(&mut self, message: &[u8]) {
        self.messages += 1;
        each_part(message, &mut |key, _| self.attributes += usize::from(key == ATTRIBUTE));
    }
}

/// Calls `found` with the key and the bytes of each field that has a length, and a key of one byte as all of ours have.
fn each_part(mut rest: &[u8], found: &mut dyn FnMut(u8, &[u8])) {
    while let Ok((number, wire_type)) = decode_key(&mut rest) {
        if wire_type != WireType::LengthDelimited {
            let Ok(()) = skip_field(wire_type, number, &mut rest, DecodeContext::default()) else { return };
            continue;
        }
        let length = decode_varint(&mut rest).ok().and_then(|length| usize::try_from(length).ok());
        let Some((part, behind)) = length.and_then(|length| rest.split_at_checked(length)) else { return };
        if number <= LARGEST_OF_ONE_BYTE {
            found(key(number.to_le_bytes()[0], LENGTH_DELIMITED), part);
        }
        rest = behind;
    }
}

/// The codec of `Exchange` on the server.
#[derive(Clone, Copy, Debug, Default)]
pub struct FrameCodec;

impl Codec for FrameCodec {
    type Encode = Frame;
    type Decode = StreamMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for FrameCodec {
    type Item = Frame;
    type Error = Status;

    fn encode(&mut self, frame: Frame, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        frame.write(out);
        Ok(())
    }
}

impl Decoder for FrameCodec {
    type Item = StreamMessage;
    type Error = Status;

    fn decode(&mut self, frame: &mut DecodeBuf<'_>) -> Result<Option<StreamMessage>, Status> {
        debug_assert_eq!(frame.chunk().len(), frame.remaining(), "tonic hands a frame over in one piece");
        // A message takes two bytes or more, and so does an attribute: most frames are too short to have too many of either.
        let Counted { messages, attributes } =
            if frame.remaining() < 2 * MAX_BATCH_MESSAGES { Counted::default() } else { count(frame.chunk()) };
        if messages > MAX_BATCH_MESSAGES || attributes > MAX_BATCH_ATTRIBUTES {
            return Err(Status::invalid_argument(format!(
                "a frame has at most {MAX_BATCH_MESSAGES} messages and {MAX_BATCH_ATTRIBUTES} attributes in all, and this one has \
                 {messages} and {attributes}"
            )));
        }
        // The code and the sentence of tonic's own codec.
        StreamMessage::decode(frame).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ackstream_core::{MessageId, Time};

    use super::*;
    use crate::proto::stream_message::Kind;
    use crate::proto::{DataBatch, DataMessage};

    const TRACEPARENT: &[u8; TRACEPARENT_LENGTH] = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    /// Deliveries of all shapes, and what prost makes of them.
    fn shapes() -> Vec<(Push, DataMessage)> {
        let mut shapes = Vec::new();
        let attributes: BTreeMap<String, String> =
            [("kind", "new"), ("long", &*"v".repeat(200))].map(|(name, value)| (name.into(), value.into())).into();
        for (id, nanos) in
            [(0, 0), (1, 999_999_999), (127, 1_000_000_000), (128, u64::MAX), (u64::MAX, 1_700_000_000_123_456_789)]
        {
            for payload in [0, 1, 127, 128, 20_000] {
                for (attributes, traced, requires_ack) in [(&BTreeMap::new(), false, true), (&attributes, true, false)]
                {
                    let (payload, accepted_at) = (vec![7; payload], Time::from_nanos(nanos));
                    let attempt = u32::try_from(id % 1_000).unwrap();
                    let delivery = Delivery {
                        id: MessageId(id),
                        attempt,
                        failures: attempt / 2,
                        interruptions: attempt / 3,
                        body: Message::new(&payload, attributes),
                        accepted_at,
                        deadline: Time::ZERO,
                    };
                    let data = DataMessage {
                        id,
                        timestamp: Some(timestamp(accepted_at)),
                        payload: payload.into(),
                        requires_ack,
                        delivery_attempt: attempt,
                        failures: attempt / 2,
                        interruptions: attempt / 3,
                        attributes: attributes.clone(),
                        trace_context: if traced {
                            String::from_utf8(TRACEPARENT.to_vec()).unwrap()
                        } else {
                            String::new()
                        },
                    };
                    shapes.push((Push { delivery, requires_ack, traceparent: traced.then_some(*TRACEPARENT) }, data));
                }
            }
        }
        shapes
    }

    fn written(frame: &Frame) -> Vec<u8> {
        let mut out = Vec::new();
        frame.write(&mut out);
        out
    }

    fn by_prost(kind: Kind) -> Vec<u8> {
        StreamMessage { kind: Some(kind) }.encode_to_vec()
    }

    #[test]
    fn a_delivery_is_written_as_prost_would() {
        for (push, data) in shapes() {
            assert_eq!(written(&Frame::Data(push)), by_prost(Kind::Data(data)));
        }
    }

    #[test]
    fn a_batch_is_written_as_prost_would() {
        let (pushes, messages) = shapes().into_iter().unzip();
        assert_eq!(written(&Frame::DataBatch(pushes)), by_prost(Kind::DataBatch(DataBatch { messages })));
    }
}
