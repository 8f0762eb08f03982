//! Acks that came together are handed on as one frame. Most clients ack each message by itself, in a frame of a few bytes; to tonic each
//! is a message that has a state, a buffer and a wake-up of its own, which costs more than the rest of an ack.
//!
//! ```text
//!  bytes from HTTP/2 ─▶ BatchedAcks: ack ack ack publish ack ack ─▶ ack_batch(3) publish ack_batch(2) ─▶ tonic's decoder
//! ```

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{Request, Response};
use hyper::body::{Body, Frame};
use prost::encoding::{encode_varint, encoded_len_varint};
use tonic::body::Body as TonicBody;
use tonic::server::NamedService;
use tower::Service;

use crate::exchange::codec::{ACK, ACK_BATCH, ACK_ID, ACK_IDS};

/// Acks in one frame, at most, as many as are applied under one lock: a larger batch would hold others up.
pub(super) const MAX_BATCH: usize = 1_000;
/// A gRPC message has one byte for its compression and four for its length in front.
const HEADER: usize = 5;
/// Of an `ack` with an id alone: two keys, the length, and an id of at most 63 bits.
const LONGEST_ACK: usize = 3 + 9;

/// A service whose requests have their acks batched.
#[derive(Clone, Debug)]
pub struct BatchingAcks<S>(pub S);

impl<S: NamedService> NamedService for BatchingAcks<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B: Body> Service<Request<B>> for BatchingAcks<S>
where
    S: Service<Request<BatchedAcks<B>>, Response = Response<TonicBody>, Error = Infallible>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        self.0.call(request.map(BatchedAcks::new))
    }
}

/// A request's body in which runs of acks have become batches. Everything else is handed on as it came: what is malformed, compressed
/// or too long is the decoder's to refuse. What has come is taken apart only as it is asked for, so that no more of it is held.
#[derive(Debug)]
pub struct BatchedAcks<B: Body> {
    body: B,
    /// What has come and is not taken apart.
    input: Bytes,
    /// So many bytes, from there on, are of frames that are no acks.
    passing: usize,
    /// The run: its ids, as varints,
    ids: BytesMut,
    /// and how many they are.
    acks: usize,
    /// Nothing follows what has come,
    ended: bool,
    /// but the trailers, or how the body broke.
    last: Option<Result<Frame<Bytes>, B::Error>>,
}

impl<B: Body> BatchedAcks<B> {
    fn new(body: B) -> Self {
        Self { body, input: Bytes::new(), passing: 0, ids: BytesMut::new(), acks: 0, ended: false, last: None }
    }

    fn take(&mut self, chunk: Bytes) {
        self.input = if self.input.is_empty() { chunk } else { [&self.input[..], &chunk].concat().into() };
    }

    /// What is handed on next, of what has come; `None` where that is nothing, or the beginning of what may be an ack.
    fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.passing > 0 && !self.input.is_empty() {
                return Some(self.end_run().unwrap_or_else(|| self.pass()));
            }
            match first(&self.input) {
                First::Ack { id, length } => {
                    self.ids.put_slice(&self.input[id..length]);
                    self.input.advance(length);
                    self.acks += 1;
                    if self.acks >= MAX_BATCH {
                        return self.end_run();
                    }
                }
                First::Other { length } => {
                    self.passing = length;
                    while self.passing < self.input.len()
                        && let First::Other { length } = first(&self.input[self.passing..])
                    {
                        self.passing += length;
                    }
                }
                First::Begun => {
                    self.input = Bytes::copy_from_slice(&self.input); // a few bytes must not keep all that they came with
                    return None;
                }
            }
        }
    }

    /// Those bytes of frames that are no acks which are here.
    fn pass(&mut self) -> Bytes {
        let length = self.passing.min(self.input.len());
        self.passing -= length;
        self.input.split_to(length)
    }

    /// The run as a frame, where there is one.
    fn end_run(&mut self) -> Option<Bytes> {
        if self.acks == 0 {
            return None;
        }
        self.acks = 0;
        let ids = self.ids.split();
        let batch = 1 + encoded_len_varint(ids.len() as u64) + ids.len();
        let message = 1 + encoded_len_varint(batch as u64) + batch;
        let mut bytes = BytesMut::with_capacity(HEADER + message);
        bytes.put_u8(0);
        bytes.put_u32(u32::try_from(message).expect("a run is short"));
        bytes.put_u8(ACK_BATCH);
        encode_varint(batch as u64, &mut bytes);
        bytes.put_u8(ACK_IDS);
        encode_varint(ids.len() as u64, &mut bytes);
        bytes.put(ids);
        Some(bytes.freeze())
    }

    /// What is left when nothing more comes: the run, then what only began like an ack.
    fn rest(&mut self) -> Option<Bytes> {
        self.end_run().or_else(|| Some(std::mem::take(&mut self.input)).filter(|input| !input.is_empty()))
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for BatchedAcks<B>
where
    B::Error: Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let data = |bytes| Poll::Ready(Some(Ok(Frame::data(bytes))));
        loop {
            if let Some(bytes) = self.next() {
                return data(bytes);
            }
            if self.ended {
                return self.rest().map_or_else(|| Poll::Ready(self.last.take()), data);
            }
            match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(chunk) => self.take(chunk),
                    Err(trailers) => (self.ended, self.last) = (true, Some(Ok(trailers))),
                },
                Poll::Ready(last) => (self.ended, self.last) = (true, last),
                Poll::Pending => return self.end_run().map_or(Poll::Pending, data),
            }
        }
    }
}

/// What comes first.
#[derive(Debug, PartialEq, Eq)]
enum First {
    /// An ack of so many bytes, of which those from `id` on are its id.
    Ack { id: usize, length: usize },
    /// Anything else, of so many bytes, whether all of them are here or not.
    Other { length: usize },
    /// Too little to say.
    Begun,
}

/// Of an ack only the shortest form is known, in which it names nothing but an id.
fn first(bytes: &[u8]) -> First {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else { return First::Begun };
    let [compressed, length @ ..] = *header;
    let length = u32::from_be_bytes(length) as usize;
    let other = First::Other { length: HEADER + length };
    if compressed != 0 || length > LONGEST_ACK {
        return other;
    }
    let Some(message) = rest.get(..length) else { return First::Begun };
    match message {
        [ACK, ack, ACK_ID, id @ ..] if usize::from(*ack) == 1 + id.len() && is_varint(id) => {
            First::Ack { id: HEADER + 3, length: HEADER + length }
        }
        _ => other,
    }
}

/// Whether these bytes are one number, which has at most 63 bits as there are at most nine.
fn is_varint(bytes: &[u8]) -> bool {
    bytes.split_last().is_some_and(|(last, before)| last & 0x80 == 0 && before.iter().all(|byte| byte & 0x80 != 0))
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use http_body_util::{BodyExt as _, StreamBody};
    use prost::Message as _;

    use super::*;
    use crate::proto::stream_message::Kind;
    use crate::proto::{AckBatch, AckMessage, DataMessage, Extend, StreamMessage};

    fn ack(ack_id: u64) -> Kind {
        Kind::Ack(AckMessage { ack_id, ..AckMessage::default() })
    }

    fn batch(ack_ids: &[u64]) -> Kind {
        Kind::AckBatch(AckBatch { ack_ids: ack_ids.to_vec(), message_ids: Vec::new() })
    }

    fn publish(payload: usize) -> Kind {
        Kind::Data(DataMessage { payload: vec![7; payload].into(), ..DataMessage::default() })
    }

    fn wire(frames: &[Kind]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for kind in frames {
            let frame = StreamMessage { kind: Some(kind.clone()) }.encode_to_vec();
            bytes.put_u8(0);
            bytes.put_u32(u32::try_from(frame.len()).unwrap());
            bytes.put_slice(&frame);
        }
        bytes
    }

    type Chunks = StreamBody<tokio_stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, &'static str>>>>;

    /// A body that comes in these pieces.
    fn batched(pieces: &[&[u8]], end: Option<&'static str>) -> BatchedAcks<Chunks> {
        let pieces = pieces.iter().map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece))));
        let pieces: Vec<_> = pieces.chain(end.map(Err)).collect();
        BatchedAcks::new(StreamBody::new(tokio_stream::iter(pieces)))
    }

    /// All that is handed on, as far as it goes.
    async fn handed_on(mut body: BatchedAcks<Chunks>) -> (Vec<u8>, Option<&'static str>) {
        let mut bytes = Vec::new();
        loop {
            match body.frame().await {
                Some(Ok(frame)) => bytes.put(frame.into_data().unwrap()),
                Some(Err(error)) => return (bytes, Some(error)),
                None => return (bytes, None),
            }
        }
    }

    #[tokio::test]
    async fn runs_of_acks_become_batches_however_the_bytes_are_cut() {
        let attempt = Kind::Ack(AckMessage { ack_id: 9, delivery_attempt: Some(2), ..AckMessage::default() });
        let extend = Kind::Extend(Extend { ack_id: 9, ..Extend::default() });
        let largest = (1 << 63) - 1;
        let frames = [
            publish(3),
            ack(1),
            ack(300),
            ack(largest),
            attempt.clone(),
            ack(2),
            publish(40),
            publish(0),
            ack(0),
            extend.clone(),
            ack(1 << 63),
            ack(7),
            ack(7),
        ]; // 0 is written as nothing, and 2^63 has ten bytes
        let expected = wire(&[
            publish(3),
            batch(&[1, 300, largest]),
            attempt,
            batch(&[2]),
            publish(40),
            publish(0),
            ack(0),
            extend,
            ack(1 << 63),
            batch(&[7, 7]),
        ]);
        let bytes = wire(&frames);
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let pieces = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                assert_eq!(handed_on(batched(&pieces, None)).await, (expected.clone(), None), "{first}, {second}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_ack_is_not_touched() {
        let ack = wire(&[ack(5)]);
        let mut compressed = ack.clone();
        compressed[0] = 1;
        let mut endless = ack.clone();
        endless[HEADER + 3] = 0x80;
        let mut longer_inside = ack.clone();
        longer_inside[HEADER + 1] = 3;
        let truncated = &ack[..ack.len() - 1];
        let long = [0, 0xff, 0xff, 0xff, 0xff, ACK, 2, ACK_ID, 5];
        for bytes in [&compressed, &endless, &longer_inside, truncated, &ack[..3], &long, &[]] {
            assert_eq!(handed_on(batched(&[bytes], None)).await, (bytes.to_vec(), None), "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn acks_before_an_error_are_handed_on() {
        let bytes = wire(&[ack(1), ack(2)]);
        assert_eq!(handed_on(batched(&[&bytes], Some("reset"))).await, (wire(&[batch(&[1, 2])]), Some("reset")));
    }

    #[tokio::test]
    async fn no_batch_is_longer_than_its_bound() {
        let ids: Vec<u64> = (1..=2_500).collect();
        let bytes = wire(&ids.iter().copied().map(ack).collect::<Vec<_>>());
        let expected = wire(&ids.chunks(MAX_BATCH).map(batch).collect::<Vec<_>>());
        assert_eq!(handed_on(batched(&[&bytes], None)).await, (expected, None));
    }

    #[tokio::test]
    async fn what_has_come_is_taken_apart_only_as_it_is_asked_for() {
        let frames = [ack(5), publish(0)];
        let bytes = wire(&frames).repeat(1_000);
        let mut body = batched(&[&bytes], None);
        let mut held = bytes.len();
        while let Some(frame) = body.frame().await {
            assert!(frame.unwrap().into_data().unwrap().len() < 20);
            assert!(body.input.len() >= held.saturating_sub(20), "no more is taken apart than is handed on");
            held = body.input.len();
        }
        assert_eq!(held, 0);
    }

    #[test]
    fn acks_do_not_wait_for_more_to_come() {
        let bytes = Bytes::from(wire(&[ack(1), ack(2)]));
        let never = tokio_stream::once(Ok::<_, Infallible>(Frame::data(bytes)));
        let never = tokio_stream::StreamExt::chain(never, tokio_stream::pending());
        let mut body = BatchedAcks::new(StreamBody::new(never));
        let mut context = Context::from_waker(Waker::noop());
        let mut poll = || Pin::new(&mut body).poll_frame(&mut context);
        let Poll::Ready(Some(Ok(frame))) = poll() else { panic!("there are acks") };
        assert_eq!(frame.into_data().unwrap(), wire(&[batch(&[1, 2])]));
        assert!(poll().is_pending());
    }
}
