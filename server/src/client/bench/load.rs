//! What all streams of one load share: the totals that the live line shows, which messages have come, and the two words at which they
//! stop.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ids::Ids;

/// Messages of this load begin with so many bytes: its number, and when they were sent.
pub(super) const STAMP: usize = 16;
/// The longest latency that is told apart from longer ones.
const LONGEST: Duration = Duration::from_hours(1);

/// What consumers do with their deliveries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    /// Acks go out so long after the delivery.
    pub(super) ack_delay: Duration,
    /// A consumer acks a message only when it holds so many later ones.
    pub(super) hold: usize,
    /// The share of the deliveries that are never acked.
    pub(super) drop_rate: f64,
    /// Ids in a frame of acks; 0 = each in a frame of its own.
    pub(super) batch: usize,
}

/// What a subscription does with a delivery that gets no ack.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    pub(super) ack_deadline: Duration,
    /// `u32::MAX` = unlimited.
    pub(super) max_retries: u32,
}

/// The messages of one subscription that its consumers here have seen.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    /// Delivered.
    pub(super) delivered: Ids,
    /// Of which no consumer will say more: acked, to be acked, or left to be dropped.
    pub(super) answered: Ids,
}

/// The state of one load.
pub(super) struct Load {
    /// Tells its messages from others'.
    pub(super) number: u64,
    began: Instant,
    /// Publishers stop.
    pub(super) published: CancellationToken,
    /// Consumers have had all there is: they ack what they hold and leave.
    pub(super) consumed: CancellationToken,
    pub(super) totals: Totals,
    /// For each subscription that is consumed.
    deliveries: Vec<Mutex<Deliveries>>,
    /// Of each of these, once it is known.
    pub(super) policies: Vec<OnceLock<Policy>>,
    /// How many messages are to be answered before consumers have had all.
    goal: AtomicU64,
}

/// Counts since the load began, moved now and then by each stream.
#[derive(Default)]
pub(super) struct Totals {
    pub(super) accepted: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) delivered: AtomicU64,
    pub(super) retries: AtomicU64,
    /// Messages, not acks.
    pub(super) acked: AtomicU64,
    /// Messages of which no consumer will say more.
    pub(super) answered: AtomicU64,
}

impl Load {
    pub(super) fn new(number: u64, subscriptions: usize) -> Self {
        Self {
            number,
            began: Instant::now(),
            published: CancellationToken::new(),
            consumed: CancellationToken::new(),
            totals: Totals::default(),
            deliveries: (0..subscriptions).map(|_| Mutex::default()).collect(),
            policies: (0..subscriptions).map(|_| OnceLock::new()).collect(),
            goal: AtomicU64::new(u64::MAX),
        }
    }

    /// How long it has been going on.
    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// What has come of a subscription, by its number.
    pub(super) fn deliveries(&self, subscription: usize) -> MutexGuard<'_, Deliveries> {
        self.deliveries[subscription].lock().expect("a panic ends the process")
    }

    /// Consumers have had all when so many messages are answered.
    pub(super) fn aim(&self, goal: u64) {
        self.goal.store(goal, Ordering::SeqCst);
        self.answered(0);
    }

    /// So many more messages are answered.
    pub(super) fn answered(&self, messages: u64) {
        if self.totals.answered.fetch_add(messages, Ordering::SeqCst) + messages >= self.goal.load(Ordering::SeqCst) {
            self.consumed.cancel();
        }
    }

    /// The first bytes of a message that is sent, or was to be sent, so long after the beginning.
    pub(super) fn stamp(&self, at: Duration) -> [u8; STAMP] {
        let nanos = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        (u128::from(self.number) << 64 | u128::from(nanos)).to_be_bytes()
    }

    /// When a message of this load was sent; `None` of any other.
    pub(super) fn sent_at(&self, payload: &[u8]) -> Option<Duration> {
        let stamp = u128::from_be_bytes(payload.first_chunk::<STAMP>().copied()?);
        let (number, nanos) = ((stamp >> 64) as u64, u64::try_from(stamp & u128::from(u64::MAX)).expect("64 bits"));
        (number == self.number).then_some(Duration::from_nanos(nanos))
    }
}

/// Latencies, in nanoseconds, with an error of at most 1 %.
pub(super) fn latencies() -> Histogram<u64> {
    let longest = u64::try_from(LONGEST.as_nanos()).expect("an hour fits");
    let mut histogram = Histogram::new_with_bounds(1_000, longest, 2).expect("the bounds are in order");
    histogram.auto(false);
    histogram
}
