//! What a subscription does with its messages, and the bounds that it keeps.

use std::fmt;
use std::time::Duration;

/// The longest that one delivery may last, from its hand-over, however often it is extended.
pub const MAX_DELIVERY: Duration = Duration::from_hours(1);
/// The longest delay that a nack or a backoff may ask for.
pub const MAX_DELAY: Duration = Duration::from_hours(24);
/// The shortest ack deadline: ten times the granularity of the timers that drive the core.
pub const MIN_ACK_DEADLINE: Duration = Duration::from_millis(10);
/// The largest retry budget short of an unlimited one.
pub const MAX_RETRIES: u32 = 1_000;

/// How a subscription treats its messages. The default is the one of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How long after its hand-over an unsettled delivery expires: 10 ms to 1 h, 2 s by default.
    pub ack_deadline: Duration,
    /// How many deliveries of a message may end nacked, expired or by a broken stream before the next such end drops it: 0 to 1,000,
    /// 3 by default; `None` = unlimited.
    pub max_retries: Option<u32>,
    /// How long a message waits before a redelivery; no wait by default.
    pub backoff: Backoff,
    /// At most so many messages are not settled; 1,000,000 by default.
    pub max_backlog_messages: u64,
    /// At most so many bytes of messages are not settled; 1 GiB by default.
    pub max_backlog_bytes: u64,
    /// Whether a message that is given up is dropped only once a dead-letter topic has taken it; no by default: it is discarded.
    pub dead_letters: bool,
}

/// The wait before delivery attempt n, for n from 2: `minimum` x 2^(n-2), at most `maximum`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    /// The wait before attempt 2. Zero: no wait at all.
    pub minimum: Duration,
    /// The longest wait, at most 24 h.
    pub maximum: Duration,
}

impl Backoff {
    /// The wait before delivery attempt `attempt`; zero for the first.
    pub fn before(self, attempt: u32) -> Duration {
        let Some(doublings) = attempt.checked_sub(2) else { return Duration::ZERO };
        let factor = 1u128.checked_shl(doublings).unwrap_or(u128::MAX);
        let nanos = self.minimum.as_nanos().saturating_mul(factor).min(self.maximum.as_nanos());
        Duration::from_nanos_u128(nanos)
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            ack_deadline: Duration::from_secs(2),
            max_retries: Some(3),
            backoff: Backoff::default(),
            max_backlog_messages: 1_000_000,
            max_backlog_bytes: 1 << 30,
            dead_letters: false,
        }
    }
}

/// A value of a policy that is out of its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyError {
    /// The key of the value, as the configuration spells it.
    pub key: &'static str,
    /// What the value must be.
    pub must: &'static str,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} must be {}", self.key, self.must)
    }
}

impl std::error::Error for PolicyError {}

impl Policy {
    /// All values that are out of their bounds; empty for a policy that a subscription can keep.
    pub fn problems(&self) -> Vec<PolicyError> {
        let rules = [
            ((MIN_ACK_DEADLINE..=MAX_DELIVERY).contains(&self.ack_deadline), "ack_deadline", "between 10ms and 1h"),
            (self.max_retries.is_none_or(|n| n <= MAX_RETRIES), "max_retries", "at most 1000, or \"unlimited\""),
            (self.backoff.maximum <= MAX_DELAY, "max_backoff", "at most 24h"),
            (self.backoff.minimum <= self.backoff.maximum, "min_backoff", "at most max_backoff"),
            (self.max_backlog_messages > 0, "max_backlog_messages", "at least 1"),
            (self.max_backlog_bytes > 0, "max_backlog_bytes", "at least 1B"),
        ];
        rules.into_iter().filter(|(kept, ..)| !kept).map(|(_, key, must)| PolicyError { key, must }).collect()
    }
}
