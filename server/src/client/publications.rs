//! The publishes that have no answer yet: what to say on a stream, without I/O.

use std::collections::BTreeMap;

use tonic::Code;

use crate::dead_letters;
use crate::proto::stream_message::Kind;
use crate::proto::{DataMessage, StreamMessage};

/// At most so many publishes are without an answer: a server keeps 10,000 answers for a client that does not read, and this is
/// enough for 100,000 a second over a way of 50 ms.
const MAX_MESSAGES: usize = 5_000;
/// And about so many bytes of them, as they are kept until they are answered.
const MAX_BYTES: usize = 64 << 20;

/// What was read and is neither accepted nor refused. Each publish is sent until it is answered.
#[derive(Default)]
pub(super) struct Publications {
    /// To be sent, in the order of their numbers.
    queue: BTreeMap<u64, Publication>,
    /// Sent on the present stream.
    sent: BTreeMap<u64, Publication>,
    bytes: usize,
    counts: Counts,
}

struct Publication {
    data: DataMessage,
    size: usize,
    /// It was sent on a stream that broke before its answer came: it may be stored already.
    may_be_stored: bool,
}

/// What became of all publishes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Accepted by the server.
    pub(super) accepted: u64,
    /// Of those: sent again after a stream broke, and so perhaps stored twice.
    pub(super) perhaps_twice: u64,
}

/// Publishes without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Left {
    /// They were sent, and may be stored or not.
    pub(super) uncertain: u64,
    /// They were not sent, or refused for the time being: they are not stored.
    pub(super) unpublished: u64,
}

/// What the server's refusal means for a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It will be sent again: there is no room for it now, or its server stops.
    ForNow,
    /// It never will: the message itself is refused.
    ForGood,
    /// No such publish is without an answer.
    Unknown,
}

impl Publications {
    /// Whether another publish may be added.
    pub(super) fn has_room(&self) -> bool {
        self.unanswered() < MAX_MESSAGES && self.bytes < MAX_BYTES
    }

    /// Takes a publish, by a number that rises.
    pub(super) fn add(&mut self, number: u64, data: DataMessage) {
        let size = size(&data);
        self.bytes += size;
        let data = DataMessage { id: number, ..data };
        self.queue.insert(number, Publication { data, size, may_be_stored: false });
    }

    /// Whether there is something to send.
    pub(super) fn has_next(&self) -> bool {
        !self.queue.is_empty()
    }

    /// The next publish to send; it has been sent then.
    pub(super) fn next(&mut self) -> Option<StreamMessage> {
        let (number, publish) = self.queue.pop_first()?;
        let frame = StreamMessage { kind: Some(Kind::Data(publish.data.clone())) };
        self.sent.insert(number, publish);
        Some(frame)
    }

    /// The server has accepted a publish. `false`: no such publish is without an answer.
    pub(super) fn accept(&mut self, number: u64) -> bool {
        let Some(publish) = self.sent.remove(&number) else { return false };
        self.bytes -= publish.size;
        self.counts.accepted += 1;
        self.counts.perhaps_twice += u64::from(publish.may_be_stored);
        true
    }

    /// The server has refused a publish, with this code.
    pub(super) fn refuse(&mut self, number: u64, code: Code) -> Refusal {
        let Some(publish) = self.sent.remove(&number) else { return Refusal::Unknown };
        if matches!(code, Code::ResourceExhausted | Code::Unavailable) {
            self.queue.insert(number, publish);
            Refusal::ForNow
        } else {
            self.bytes -= publish.size;
            Refusal::ForGood
        }
    }

    /// The stream broke: what it had sent without an answer is sent again, before all else.
    pub(super) fn stream_broke(&mut self) {
        let sent = std::mem::take(&mut self.sent).into_iter();
        self.queue.extend(sent.map(|(number, publish)| (number, Publication { may_be_stored: true, ..publish })));
    }

    /// Publishes without an answer, sent or not.
    pub(super) fn unanswered(&self) -> usize {
        self.queue.len() + self.sent.len()
    }

    /// What is left of them when nobody goes on.
    pub(super) fn left(&self) -> Left {
        let uncertain = self.sent.len() + self.queue.values().filter(|publish| publish.may_be_stored).count();
        Left { uncertain: uncertain as u64, unpublished: (self.unanswered() - uncertain) as u64 }
    }

    /// What became of all others.
    pub(super) const fn counts(&self) -> Counts {
        self.counts
    }
}

/// Bytes of payload and attributes.
fn size(data: &DataMessage) -> usize {
    data.payload.len() + data.attributes.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
}

/// Those that count against the server's bound: what it has added to a dead letter does not.
pub(super) fn bounded_size(data: &DataMessage) -> usize {
    size(data) - dead_letters::added(data.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str()))).0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(numbers: impl IntoIterator<Item = u64>) -> Publications {
        let mut publications = Publications::default();
        for number in numbers {
            publications.add(number, DataMessage { payload: number.to_string().into(), ..DataMessage::default() });
        }
        publications
    }

    /// Sends all that is to be sent; their numbers.
    fn send(publications: &mut Publications) -> Vec<u64> {
        let frames = std::iter::from_fn(|| publications.next());
        let number = |frame: StreamMessage| match frame.kind {
            Some(Kind::Data(data)) => data.id,
            other => panic!("{other:?} is no publish"),
        };
        frames.map(number).collect()
    }

    #[test]
    fn publishes_are_sent_once_in_their_order() {
        let mut publications = of(1..=3);
        assert_eq!((send(&mut publications), send(&mut publications)), (vec![1, 2, 3], vec![]));
        assert_eq!(publications.unanswered(), 3);
    }

    #[test]
    fn an_answer_settles_its_publish_and_no_other() {
        let mut publications = of(1..=2);
        send(&mut publications);
        assert!(publications.accept(2));
        assert!(!publications.accept(2), "only once");
        assert!(!publications.accept(9));
        assert_eq!((publications.unanswered(), publications.counts().accepted), (1, 1));
    }

    #[test]
    fn after_a_broken_stream_all_without_an_answer_is_sent_again_and_may_be_stored_twice() {
        let mut publications = of(1..=3);
        send(&mut publications);
        publications.accept(2);
        publications.add(4, DataMessage::default());
        publications.stream_broke();
        assert_eq!(send(&mut publications), [1, 3, 4]);
        for number in [1, 3, 4] {
            publications.accept(number);
        }
        assert_eq!(publications.counts(), Counts { accepted: 4, perhaps_twice: 2 });
    }

    #[test]
    fn what_finds_no_room_is_sent_again_in_its_order_and_is_stored_once() {
        let mut publications = of(1..=4);
        send(&mut publications);
        assert_eq!(publications.refuse(3, Code::ResourceExhausted), Refusal::ForNow);
        assert_eq!(publications.refuse(1, Code::Unavailable), Refusal::ForNow);
        assert_eq!(send(&mut publications), [1, 3]);
        publications.accept(1);
        assert_eq!(publications.counts(), Counts { accepted: 1, perhaps_twice: 0 });
    }

    #[test]
    fn what_is_left_is_not_stored_unless_it_was_sent_and_not_answered() {
        let mut publications = of(1..=4);
        send(&mut publications);
        publications.refuse(1, Code::ResourceExhausted);
        publications.accept(2);
        publications.stream_broke();
        publications.add(5, DataMessage::default());
        assert_eq!(publications.left(), Left { uncertain: 2, unpublished: 2 });
    }

    #[test]
    fn what_is_refused_for_itself_is_not_sent_again() {
        let mut publications = of([1]);
        send(&mut publications);
        assert_eq!(publications.refuse(1, Code::InvalidArgument), Refusal::ForGood);
        assert_eq!(publications.refuse(1, Code::InvalidArgument), Refusal::Unknown);
        assert_eq!((publications.unanswered(), publications.has_next()), (0, false));
    }

    #[test]
    fn it_is_bounded_in_messages() {
        let mut publications = of(1..MAX_MESSAGES as u64);
        assert!(publications.has_room());
        publications.add(MAX_MESSAGES as u64, DataMessage::default());
        assert!(!publications.has_room());
        send(&mut publications);
        assert!(!publications.has_room(), "sent is not answered");
        publications.accept(1);
        assert!(publications.has_room());
    }

    #[test]
    fn it_is_bounded_in_bytes() {
        let mut publications = Publications::default();
        let payload = bytes::Bytes::from(vec![0; MAX_BYTES]);
        publications.add(1, DataMessage { payload, ..DataMessage::default() });
        assert!(!publications.has_room());
        send(&mut publications);
        publications.refuse(1, Code::ResourceExhausted);
        assert!(!publications.has_room(), "what is sent again is still kept");
        send(&mut publications);
        publications.accept(1);
        assert!(publications.has_room());
    }
}
