//! The one clock: the wall at the start, plus monotonic time since.

use std::time::{Duration, SystemTime};

use ackstream_core::Time;
use tokio::time::Instant;

/// Tells the time in nanoseconds since the Unix epoch. It never goes back, whatever happens to the wall clock; under Tokio's paused
/// clock it stands still too.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    wall: Time,
}

impl Clock {
    /// A clock that starts at this moment.
    pub fn start() -> Self {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), wall: Time::ZERO.plus(wall) }
    }

    /// This moment.
    pub fn now(&self) -> Time {
        self.wall.plus(self.started.elapsed())
    }

    /// The moment at which this clock will tell `time`; the past counts as the start.
    pub fn instant_of(&self, time: Time) -> Instant {
        // A century stands for every later time: Tokio's timers reach no further.
        self.started + time.since(self.wall).min(Duration::from_hours(24 * 36_500))
    }
}
