//! At most so many traces a second of each kind, for the whole server.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ackstream_core::Time;

/// Why a message is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The sampler said so; it was acked at its first delivery.
    Clean,
    /// It was acked after a delivery that ended otherwise.
    Retried,
    /// It was given up.
    Dropped,
}

const KINDS: usize = 3;

/// The caps. No lock: subscriptions share them.
#[derive(Debug)]
pub(super) struct Limits {
    per_second: u32,
    /// For each kind the second in the high half, and how many it has had in the low one.
    windows: [AtomicU64; KINDS],
}

impl Limits {
    pub(super) fn new(per_second: u32) -> Self {
        Self { per_second, windows: Default::default() }
    }

    /// Whether one more trace of this kind may be exported at `at`. An instant of an earlier second counts in the latest one.
    pub(super) fn admit(&self, kind: Kind, at: Time) -> bool {
        let second = at.since(Time::ZERO).as_secs() << 32;
        let next = |window: u64| {
            let window = if second > window { second } else { window };
            let had = window & u64::from(u32::MAX);
            (had < u64::from(self.per_second)).then_some(window + 1)
        };
        self.windows[kind as usize].try_update(Relaxed, Relaxed, next).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, Limits, Time};

    fn admitted(limits: &Limits, kind: Kind, second: u64) -> usize {
        (0..1_000).filter(|n| limits.admit(kind, Time::from_nanos(second * 1_000_000_000 + n))).count()
    }

    #[test]
    fn each_kind_has_its_own_cap_in_each_second() {
        let limits = Limits::new(100);
        for second in [1_700_000_000, 1_700_000_001] {
            for kind in [Kind::Clean, Kind::Retried, Kind::Dropped] {
                assert_eq!(admitted(&limits, kind, second), 100, "{kind:?}");
            }
        }
    }

    #[test]
    fn effects_that_were_due_earlier_do_not_open_the_cap_again() {
        let limits = Limits::new(100);
        assert_eq!(admitted(&limits, Kind::Retried, 20), 100);
        assert_eq!(admitted(&limits, Kind::Retried, 19), 0);
    }

    #[test]
    fn a_cap_of_zero_traces_nothing() {
        assert_eq!(admitted(&Limits::new(0), Kind::Dropped, 20), 0);
    }
}
