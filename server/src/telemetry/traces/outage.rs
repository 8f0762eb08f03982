//! When to say that the collector takes nothing: once an outage, and not again soon.

use std::time::Duration;

use tokio::time::Instant;

/// Two reports are at least so far apart, so that a collector that comes and goes fills no log.
const REPORT_EVERY: Duration = Duration::from_mins(1);

/// What is known of the collector's outages.
#[derive(Debug, Default)]
pub(super) struct Outage {
    /// Nothing was taken since then.
    since: Option<Instant>,
    reported: Option<Instant>,
}

impl Outage {
    /// An export has failed. Says whether to report it.
    pub(super) fn failed(&mut self, now: Instant) -> bool {
        if self.since.is_some() {
            return false;
        }
        self.since = Some(now);
        let report = self.reported.is_none_or(|reported| now - reported >= REPORT_EVERY);
        if report {
            self.reported = Some(now);
        }
        report
    }

    /// An export has succeeded. Says whether that ends an outage that was reported.
    pub(super) fn succeeded(&mut self) -> bool {
        self.since.take().is_some_and(|since| self.reported == Some(since))
    }
}

#[cfg(test)]
mod tests {
    use super::{Instant, Outage, REPORT_EVERY};

    #[test]
    fn an_outage_is_reported_when_it_begins_and_when_it_ends() {
        let (start, mut outage) = (Instant::now(), Outage::default());
        assert!(!outage.succeeded(), "nothing has ended");
        assert!(outage.failed(start));
        assert!(!outage.failed(start + 10 * REPORT_EVERY), "however long it lasts");
        assert!(outage.succeeded());
        assert!(!outage.succeeded());
    }

    #[test]
    fn a_collector_that_comes_and_goes_is_reported_once_a_minute() {
        let (start, mut outage) = (Instant::now(), Outage::default());
        let reports = (0..600).filter(|&second| {
            let report = outage.failed(start + second * REPORT_EVERY / 60);
            assert_eq!(outage.succeeded(), report, "an end is reported where the beginning was");
            report
        });
        assert_eq!(reports.count(), 10);
    }
}
