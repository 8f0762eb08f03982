//! Histograms as plain integers, so that they can live beside a subscription's state and be moved under its lock.

use std::fmt::Write as _;

const MS: u64 = 1_000_000;
const S: u64 = 1_000 * MS;

/// Upper edges of times from the sending of a delivery to its ack, in nanoseconds: 100 us to 10 min.
pub const ACK_EDGES: [u64; 21] = [
    MS / 10,
    MS / 4,
    MS / 2,
    MS,
    5 * MS / 2,
    5 * MS,
    10 * MS,
    25 * MS,
    50 * MS,
    100 * MS,
    250 * MS,
    500 * MS,
    S,
    5 * S / 2,
    5 * S,
    10 * S,
    30 * S,
    60 * S,
    120 * S,
    300 * S,
    600 * S,
];

/// Upper edges of times from accept to ack or drop, in nanoseconds: 1 ms to 10 min. Those of a few seconds lie between the multiples of
/// the default ack deadline, so that each retry is a step.
pub const SETTLE_EDGES: [u64; 19] = [
    MS,
    5 * MS / 2,
    5 * MS,
    10 * MS,
    25 * MS,
    50 * MS,
    100 * MS,
    250 * MS,
    500 * MS,
    S,
    3 * S,
    5 * S,
    7 * S,
    10 * S,
    30 * S,
    60 * S,
    120 * S,
    300 * S,
    600 * S,
];

/// Upper edges of delivery attempts; a message has at most 1,001 unless its retries are unlimited or its consumers leave cleanly.
pub const ATTEMPT_EDGES: [u64; 10] = [1, 2, 3, 4, 5, 6, 10, 30, 100, 1_000];

/// Upper edges of the time that a unary call takes, in nanoseconds: 100 us to 1 s.
pub const CALL_EDGES: [u64; 9] = [MS / 10, MS / 4, MS / 2, MS, 5 * MS, 10 * MS, 50 * MS, 100 * MS, S];

/// How many samples fell under each edge. A sample belongs to the first edge that is not less than it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram<const EDGES: usize> {
    edges: &'static [u64; EDGES],
    counts: [u64; EDGES],
    beyond: u64,
    /// Where the last sample belonged, or the last edge.
    last: usize,
    /// 64 bits would last for a million messages that wait for five hours.
    sum: u128,
}

impl<const EDGES: usize> Histogram<EDGES> {
    /// An empty histogram with these upper edges, which rise.
    pub const fn new(edges: &'static [u64; EDGES]) -> Self {
        Self { edges, counts: [0; EDGES], beyond: 0, last: 0, sum: 0 }
    }

    /// Takes one sample.
    pub fn record(&mut self, sample: u64) {
        // Most samples are like the one before.
        let place = match self.last {
            place if place > 0 && self.edges[place - 1] < sample && sample <= self.edges[place] => place,
            0 if sample <= self.edges[0] => 0,
            _ => self.edges.partition_point(|edge| *edge < sample),
        };
        self.last = place.min(EDGES - 1);
        *self.counts.get_mut(place).unwrap_or(&mut self.beyond) += 1;
        self.sum += u128::from(sample);
    }

    /// Appends its lines in the exposition format. `labels` are rendered, without braces; `unit` is how many of what is recorded make
    /// one of what is shown.
    pub fn render(&self, out: &mut String, name: &str, labels: &str, unit: f64) {
        let mut total = 0;
        // Writing to a string cannot fail.
        for (edge, count) in self.edges.iter().zip(self.counts) {
            total += count;
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{}\"}} {total}", shown(u128::from(*edge), unit));
        }
        total += self.beyond;
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {total}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}", shown(self.sum, unit));
        let _ = writeln!(out, "{name}_count{{{labels}}} {total}");
    }
}

#[allow(clippy::cast_precision_loss, reason = "the format has 64-bit floats")]
fn shown(value: u128, unit: f64) -> f64 {
    value as f64 / unit
}

#[cfg(test)]
mod tests {
    use super::*;

    static EDGES: [u64; 2] = [10, 20];

    #[test]
    fn a_sample_on_an_edge_belongs_to_it_and_buckets_add_up() {
        let mut histogram = Histogram::new(&EDGES);
        for sample in [0, 10, 11, 20, 21, 1_000] {
            histogram.record(sample);
        }
        let mut out = String::new();
        histogram.render(&mut out, "h", "a=\"b\"", 10.0);
        let expected = "\
h_bucket{a=\"b\",le=\"1\"} 2
h_bucket{a=\"b\",le=\"2\"} 4
h_bucket{a=\"b\",le=\"+Inf\"} 6
h_sum{a=\"b\"} 106.2
h_count{a=\"b\"} 6
";
        assert_eq!(out, expected);
    }

    #[test]
    fn edges_rise() {
        assert!(
            ACK_EDGES.is_sorted() && SETTLE_EDGES.is_sorted() && ATTEMPT_EDGES.is_sorted() && CALL_EDGES.is_sorted()
        );
    }
}
