//! What a subscription does with its messages, and the bounds that it keeps.

use std::fmt;
use std::time::Duration;

/// The longest that one delivery may last, from its hand-over, however often it is extended.
pub const MAX_DELIVERY: Duration = Duration::from_hours(1);
/// The longest delay that a nack or a backoff may ask for.
pub const MAX_DELAY: Duration = Duration::from_hours(24);
/// The shortest ack deadline: ten times the granularity of the timers that drive the core.
pub const MIN_ACK_DEADLINE: Duration = Duration::from_millis(10);
/// The largest budget of retries, and of interruptions, short of an unlimited one.
pub const MAX_RETRIES: u32 = 1_000;
/// From so many interruptions on a message is delivered alone.
pub const ALONE_AFTER: u32 = 2;
/// The longest wait after an interruption: a consumer that was killed is back by then.
pub const MAX_INTERRUPTION_DELAY: Duration = Duration::from_mins(1);

/// How a subscription treats its messages. The default is the one of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How long after its hand-over an unsettled delivery expires: 10 ms to 1 h, 2 s by default.
    pub ack_deadline: Duration,
    /// How many deliveries of a message may fail before the next failure drops it: 0 to 1,000, 3 by default; `None` = unlimited.
    pub max_retries: Option<u32>,
    /// How many deliveries of a message alone may be interrupted, the last of which drops it: 0 to 1,000, 3 by default; `None` =
    /// unlimited. At 0 the first interruption drops it, alone or not.
    pub max_interruptions: Option<u32>,
    /// How long a message waits before a retry; no wait by default.
    pub backoff: Backoff,
    /// At most so many messages are not settled; 1,000,000 by default.
    pub max_backlog_messages: u64,
    /// At most so many bytes of messages are not settled; 1 GiB by default.
    pub max_backlog_bytes: u64,
    /// Whether a message that is given up is dropped only once a dead-letter topic has taken it; no by default: it is discarded.
    pub dead_letters: bool,
}

/// The wait after the n-th failure: `minimum` x 2^(n-1), at most `maximum`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    /// The wait after the first failure. Zero: no wait at all.
    pub minimum: Duration,
    /// The longest wait, at most 24 h.
    pub maximum: Duration,
}

impl Backoff {
    /// The wait after so many failures; zero after none.
    pub fn after(self, failures: u32) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
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
            max_interruptions: Some(3),
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
    /// Whether a message's next failure drops it.
    pub(crate) fn is_last_failure(&self, failures: u32) -> bool {
        self.max_retries.is_some_and(|max| failures >= max)
    }

    /// Whether a message that was interrupted so often is dropped.
    pub(crate) fn drops_after(&self, interruptions: u32) -> bool {
        self.max_interruptions.is_some_and(|max| match max {
            0 => interruptions > 0,
            max => interruptions >= ALONE_AFTER + max,
        })
    }

    /// The wait after so many interruptions: none after the first, one ack deadline after the second, and twice as long after each
    /// further one, at most [`MAX_INTERRUPTION_DELAY`].
    pub(crate) fn delay_after_interruption(&self, interruptions: u32) -> Duration {
        let wait = Backoff { minimum: self.ack_deadline, maximum: MAX_INTERRUPTION_DELAY };
        wait.after(interruptions.saturating_sub(ALONE_AFTER - 1))
    }

    /// All values that are out of their bounds; empty for a policy that a subscription can keep.
    pub fn problems(&self) -> Vec<PolicyError> {
        let rules = [
            ((MIN_ACK_DEADLINE..=MAX_DELIVERY).contains(&self.ack_deadline), "ack_deadline", "between 10ms and 1h"),
            (self.max_retries.is_none_or(|n| n <= MAX_RETRIES), "max_retries", "at most 1000, or \"unlimited\""),
            (
                self.max_interruptions.is_none_or(|n| n <= MAX_RETRIES),
                "max_interruptions",
                "at most 1000, or \"unlimited\"",
            ),
            (self.backoff.maximum <= MAX_DELAY, "max_backoff", "at most 24h"),
            (self.backoff.minimum <= self.backoff.maximum, "min_backoff", "at most max_backoff"),
            (self.max_backlog_messages > 0, "max_backlog_messages", "at least 1"),
            (self.max_backlog_bytes > 0, "max_backlog_bytes", "at least 1B"),
        ];
        rules.into_iter().filter(|(kept, ..)| !kept).map(|(_, key, must)| PolicyError { key, must }).collect()
    }
}
