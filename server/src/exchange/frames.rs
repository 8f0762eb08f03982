//! Between the wire and the core: times, lengths of time, deliveries and answers.

use std::collections::VecDeque;
use std::time::Duration;

use ackstream_core::{Delivery, MessageId, Time};

use crate::broker::PublishError;
use crate::exchange::codec::{Frame, Push};
use crate::message::Message;
use crate::proto::stream_message::Kind;
use crate::proto::{AckBatch, AckMessage, Nack, StreamMessage};
use crate::telemetry::Contexts;

const NANOS: u64 = 1_000_000_000;

/// An instant on the wire.
pub(super) fn timestamp(time: Time) -> prost_types::Timestamp {
    let nanos = time.as_nanos();
    prost_types::Timestamp {
        seconds: i64::try_from(nanos / NANOS).expect("64 bits of nanoseconds are few seconds"),
        nanos: i32::try_from(nanos % NANOS).expect("less than a second"),
    }
}

/// A length of time on the wire.
pub(super) fn to_wire(length: Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(length).expect("every length of a policy is at most a day")
}

/// A length of time from the wire. The contract has no negative ones: they count as zero.
pub(super) fn from_wire(length: prost_types::Duration) -> Duration {
    Duration::try_from(length).unwrap_or_default()
}

/// A frame with this member.
pub(super) const fn frame(kind: Kind) -> Frame {
    Frame::Other(StreamMessage { kind: Some(kind) })
}

/// A delivery as its consumer gets it, with its trace context, `sampled` or not, where deliveries are traced.
pub(super) fn push(
    delivery: Delivery<Message>,
    requires_ack: bool,
    contexts: Option<&Contexts>,
    sampled: bool,
) -> Push {
    let Delivery { id, attempt, body, .. } = &delivery;
    let traceparent = contexts.map(|contexts| contexts.encoded_traceparent(*id, *attempt, body, sampled));
    Push { delivery, requires_ack, traceparent }
}

/// The answer to one publish.
#[derive(Debug)]
pub(super) struct Answer {
    /// The number that the client gave its publish.
    pub(super) ack_id: u64,
    pub(super) result: Result<MessageId, PublishError>,
    pub(super) at: Time,
}

/// The next frame of answers: refusals alone, acceptances up to `max_batch` together.
pub(super) fn next_answers(answers: &mut VecDeque<Answer>, max_batch: usize) -> Option<Frame> {
    let Answer { ack_id, result, at } = answers.pop_front()?;
    let first = match result {
        Ok(id) => id,
        Err(error) => {
            let (code, reason) = (error.code() as i32, error.to_string());
            return Some(frame(Kind::Nack(Nack { ack_id, code, reason, ..Nack::default() })));
        }
    };
    let mut batch = AckBatch { ack_ids: vec![ack_id], message_ids: vec![first.0] };
    while batch.ack_ids.len() < max_batch {
        let Some(&Answer { ack_id, result: Ok(id), .. }) = answers.front() else { break };
        batch.ack_ids.push(ack_id);
        batch.message_ids.push(id.0);
        answers.pop_front();
    }
    Some(frame(if max_batch > 0 {
        Kind::AckBatch(batch)
    } else {
        Kind::Ack(AckMessage { ack_id, timestamp: Some(timestamp(at)), delivery_attempt: None, message_id: first.0 })
    }))
}
