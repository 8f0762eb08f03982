//! Scrapes as numbers.

use std::collections::BTreeMap;

/// One scrape: each series with its labels, as it is written, and its value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Page(pub(crate) BTreeMap<String, f64>);

/// The labels of the one subscription.
pub(crate) const DEMO: &str = "topic=\"demo\",subscription=\"demo\"";

impl Page {
    pub(crate) fn parse(text: &str) -> Self {
        let series = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        });
        Self(series.collect())
    }

    /// The sum of all series of this name that have this in their labels.
    pub(crate) fn sum(&self, name: &str, labels: &str) -> u64 {
        let begin = format!("{name}{{");
        let mut found =
            self.0.iter().filter(|(series, _)| series.starts_with(&begin) && series.contains(labels)).peekable();
        assert!(found.peek().is_some(), "{name}{{{labels}}} is there");
        let sum: f64 = found.map(|(_, value)| value).sum();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        let sum = sum as u64;
        sum
    }

    /// Both laws, on this one scrape.
    pub(crate) fn assert_laws(&self) {
        let of = |name| self.sum(name, DEMO);
        assert_eq!(
            of("ackstream_messages_published_total"),
            of("ackstream_messages_acked_total") + of("ackstream_messages_dropped_total") + of("ackstream_messages"),
            "the law of messages: {self:#?}"
        );
        assert_eq!(
            of("ackstream_messages_sent_total"),
            of("ackstream_deliveries_ended_total") + self.sum("ackstream_messages", "state=\"outstanding\""),
            "the law of deliveries: {self:#?}"
        );
    }

    /// What has changed since `before`, buckets left out: each histogram's count and sum say as much.
    pub(crate) fn since(&self, before: &Self) -> Vec<(String, f64)> {
        assert!(self.0.keys().eq(before.0.keys()), "the same series in every scrape");
        let changes = self.0.iter().map(|(series, value)| (series.clone(), value - before.0[series]));
        changes
            .filter(|(series, change)| {
                let of_process = series.starts_with("process_");
                *change != 0.0 && !of_process && !series.contains("_bucket{")
            })
            .collect()
    }
}
