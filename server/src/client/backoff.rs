//! How long to wait before a stream is opened again.

use std::time::Duration;

/// The upper bound of the first wait. It doubles with each.
const FIRST_BOUND: Duration = Duration::from_millis(100);
/// The upper bound of every wait: a restarted server is found within that time.
const LAST_BOUND: Duration = Duration::from_secs(5);
/// A stream that lasted for so long was a good one: the waits begin anew. A server that breaks streams at once is not hammered.
const GOOD_AFTER: Duration = Duration::from_secs(1);

/// Exponential backoff with full jitter, which spreads the clients of a restarted server best ("Exponential Backoff And Jitter", AWS
/// Architecture Blog, 2015).
#[derive(Debug)]
pub(super) struct Backoff {
    bound: Duration,
}

impl Backoff {
    pub(super) const fn new() -> Self {
        Self { bound: FIRST_BOUND }
    }

    /// A stream has ended that lasted for so long.
    pub(super) fn stream_lasted(&mut self, length: Duration) {
        if length >= GOOD_AFTER {
            self.bound = FIRST_BOUND;
        }
    }

    /// The upper bound of the next wait.
    pub(super) const fn bound(&self) -> Duration {
        self.bound
    }

    /// The next wait: the share `drawn`, from 0 to 1, of its bound.
    pub(super) fn next(&mut self, drawn: f64) -> Duration {
        let wait = self.bound.mul_f64(drawn);
        self.bound = (self.bound * 2).min(LAST_BOUND);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wait_may_be_twice_as_long_up_to_a_bound() {
        let mut backoff = Backoff::new();
        let waits: Vec<_> = (0..8).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
        assert_eq!(backoff.next(0.5), LAST_BOUND / 2);
    }

    #[test]
    fn after_a_good_stream_the_waits_begin_anew_and_after_a_short_one_they_do_not() {
        let mut backoff = Backoff::new();
        backoff.next(0.0);
        backoff.stream_lasted(Duration::from_millis(999));
        assert_eq!(backoff.bound(), FIRST_BOUND * 2);
        backoff.stream_lasted(Duration::from_secs(1));
        assert_eq!(backoff.bound(), FIRST_BOUND);
    }
}
