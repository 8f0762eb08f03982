//! Instants of the core.

use std::fmt;
use std::time::Duration;

/// An instant: nanoseconds since the Unix epoch, as the caller's clock tells them. It never goes back: an input that is older than
/// the one before counts as simultaneous with it.
///
/// 64 bits last until the year 2554.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// The Unix epoch.
    pub const ZERO: Self = Self(0);
    /// The last instant that there is.
    pub const MAX: Self = Self(u64::MAX);

    /// The instant `nanos` nanoseconds after the Unix epoch.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the Unix epoch.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The instant `length` later, or the last one that there is.
    #[must_use]
    pub fn plus(self, length: Duration) -> Self {
        let nanos = length.as_secs().saturating_mul(1_000_000_000).saturating_add(length.subsec_nanos().into());
        Self(self.0.saturating_add(nanos))
    }

    /// How long after `earlier` this is; zero where it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Time {
    /// Seconds since the Unix epoch, with nine decimals.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}
