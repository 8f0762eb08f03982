//! What a consumer has been sent: what to print, what to ack, what to keep from expiring. Without I/O.

use std::collections::{BTreeSet, HashSet, VecDeque};

/// The last so many messages are known again when they are delivered again, and are not printed twice.
const REMEMBERED: usize = 100_000;

/// The deliveries of one subscription, over all streams.
pub(super) struct Holdings {
    /// At most so many are printed; `None` = without end.
    count: Option<u64>,
    epoch: Option<u64>,
    /// Given to be printed in this epoch, the last of them.
    seen: Seen,
    /// Given to be printed in this epoch, and not known to be printed.
    unprinted: HashSet<u64>,
    /// Those of the present stream that are not printed, which must not expire before they are, or before the stream ends.
    held: BTreeSet<u64>,
    /// Given to be printed, in all epochs.
    given: u64,
    /// Printed, in all epochs.
    printed: u64,
}

/// What to do with a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is new: print it.
    Print,
    /// It was printed before: say again what was said of it.
    Printed,
    /// It is being printed, or enough others are.
    Leave,
}

impl Holdings {
    pub(super) fn new(count: Option<u64>) -> Self {
        Self {
            count,
            epoch: None,
            seen: Seen::default(),
            unprinted: HashSet::new(),
            held: BTreeSet::new(),
            given: 0,
            printed: 0,
        }
    }

    /// A stream is open, and the topic's ids are of this epoch. It holds nothing yet. In another epoch the ids are other messages'.
    pub(super) fn opened(&mut self, epoch: u64) {
        self.held.clear();
        if self.epoch.replace(epoch) != Some(epoch) {
            self.seen = Seen::default();
            self.unprinted.clear();
        }
    }

    /// The message `id` is delivered on the present stream.
    pub(super) fn deliver(&mut self, id: u64) -> Verdict {
        if self.unprinted.contains(&id) {
            self.held.insert(id);
            return Verdict::Leave;
        }
        if self.seen.contains(id) {
            return Verdict::Printed;
        }
        if self.count.is_some_and(|count| self.given >= count) {
            self.held.insert(id); // it is for others, at no cost in retries: kept until the stream ends
            return Verdict::Leave;
        }
        self.given += 1;
        self.seen.insert(id);
        self.unprinted.insert(id);
        self.held.insert(id);
        Verdict::Print
    }

    /// These messages, of this epoch, are printed. `true`: it is the present epoch, and they may be acked.
    pub(super) fn printed(&mut self, epoch: u64, ids: &[u64]) -> bool {
        self.printed += ids.len() as u64;
        if self.epoch != Some(epoch) {
            return false;
        }
        for id in ids {
            self.unprinted.remove(id);
            self.held.remove(id);
        }
        true
    }

    /// What the present stream holds and is not printed.
    pub(super) const fn held(&self) -> &BTreeSet<u64> {
        &self.held
    }

    /// The epoch of the present stream.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.unwrap_or_default()
    }

    /// Whether everything that was given to be printed is.
    pub(super) const fn is_idle(&self) -> bool {
        self.printed == self.given
    }

    /// Whether as many are printed as were asked for.
    pub(super) fn is_complete(&self) -> bool {
        self.count.is_some_and(|count| self.printed >= count)
    }
}

/// The last ids, up to a bound.
#[derive(Default)]
struct Seen {
    ids: HashSet<u64>,
    in_order: VecDeque<u64>,
}

impl Seen {
    fn contains(&self, id: u64) -> bool {
        self.ids.contains(&id)
    }

    fn insert(&mut self, id: u64) {
        if self.in_order.len() >= REMEMBERED
            && let Some(oldest) = self.in_order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        self.in_order.push_back(id);
        self.ids.insert(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holdings(count: Option<u64>) -> Holdings {
        let mut holdings = Holdings::new(count);
        holdings.opened(1);
        holdings
    }

    #[test]
    fn a_message_is_printed_once_and_acked_as_often_as_it_comes() {
        let mut holdings = holdings(None);
        assert_eq!(holdings.deliver(5), Verdict::Print);
        assert_eq!(holdings.deliver(5), Verdict::Leave, "it is being printed");
        assert!(holdings.printed(1, &[5]));
        assert_eq!(holdings.deliver(5), Verdict::Printed);
    }

    #[test]
    fn what_is_not_printed_is_held() {
        let mut holdings = holdings(None);
        holdings.deliver(5);
        holdings.deliver(6);
        holdings.printed(1, &[5]);
        assert_eq!(holdings.held(), &BTreeSet::from([6]));
        assert!(!holdings.is_idle());
    }

    #[test]
    fn another_stream_holds_nothing_until_it_delivers() {
        let mut holdings = holdings(None);
        holdings.deliver(5);
        holdings.opened(1);
        assert_eq!(holdings.held(), &BTreeSet::new());
        assert_eq!(holdings.deliver(5), Verdict::Leave);
        assert_eq!(holdings.held(), &BTreeSet::from([5]));
    }

    #[test]
    fn in_another_epoch_an_id_is_another_message() {
        let mut holdings = holdings(None);
        holdings.deliver(5);
        holdings.opened(2);
        assert!(!holdings.printed(1, &[5]), "nothing of the old epoch is acked");
        assert_eq!(holdings.deliver(5), Verdict::Print);
        assert!(holdings.printed(2, &[5]));
        assert!(holdings.is_idle());
    }

    #[test]
    fn no_more_are_printed_than_were_asked_for() {
        let mut holdings = holdings(Some(2));
        assert_eq!([1, 2, 3].map(|id| holdings.deliver(id)), [Verdict::Print, Verdict::Print, Verdict::Leave]);
        assert_eq!(
            holdings.held(),
            &BTreeSet::from([1, 2, 3]),
            "the third goes to somebody else when the stream ends, and costs nothing"
        );
        holdings.printed(1, &[1]);
        assert!(!holdings.is_complete());
        holdings.printed(1, &[2]);
        assert!(holdings.is_complete());
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        let mut holdings = holdings(None);
        for id in 0..=REMEMBERED as u64 {
            holdings.deliver(id);
            holdings.printed(1, &[id]);
        }
        assert_eq!((holdings.seen.ids.len(), holdings.seen.in_order.len()), (REMEMBERED, REMEMBERED));
        assert_eq!(holdings.deliver(1), Verdict::Printed);
        assert_eq!(holdings.deliver(0), Verdict::Print, "it is too long ago");
    }
}
