//! What is said of a load at its end.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hdrhistogram::Histogram;
use indicatif::HumanCount;
use serde_json::json;

use super::ids::Ids;
use super::laws::{Books, Ledger};
use super::load::{Load, latencies};
use super::{Options, Outcome};
use crate::exit::Exit;
use crate::process;

/// The shares of all latencies that are told: a half, and what is seldom.
const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

/// How long the parts of a load took, from its beginning.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// Until the last publish had its answer.
    pub(super) publishing: Duration,
    /// Until the server had read the last ack.
    pub(super) consuming: Duration,
}

/// What became of a load.
pub(super) struct Report {
    times: Times,
    publishers: u32,
    consumers: u32,
    accepted: u64,
    refused: u64,
    refusal: Option<String>,
    delivered: u64,
    retries: u64,
    acked: u64,
    /// Messages that were to be consumed, and were not there.
    short: u64,
    /// Accepted messages that no consumer of this load has seen, by subscription.
    missing: BTreeMap<String, u64>,
    answer: Histogram<u64>,
    delivery: Histogram<u64>,
    /// The server's books, once all streams had ended.
    ledger: Result<Ledger, String>,
}

impl Report {
    pub(super) fn new(
        options: &Options,
        load: &Load,
        times: Times,
        outcomes: Vec<Outcome>,
        ledger: Result<Ledger, String>,
    ) -> Self {
        let (mut accepted, mut answer, mut delivery) = (Ids::default(), latencies(), latencies());
        let mut refusal = None;
        for outcome in outcomes {
            match outcome {
                Outcome::Published(published) => {
                    accepted.merge(published.ids);
                    refusal = refusal.or(published.refusal);
                    answer += published.latency;
                }
                Outcome::Received(consumer) => {
                    delivery += consumer.latency;
                }
            }
        }
        let consumed = if options.consumers > 0 { &options.subscriptions[..] } else { &[] };
        let missing = consumed.iter().enumerate().map(|(number, name)| {
            let missing = accepted.missing_in(&mut load.deliveries(number).delivered);
            (name.clone(), missing)
        });
        let count = |total: &std::sync::atomic::AtomicU64| total.load(Ordering::Relaxed);
        let to_consume = options.count.filter(|_| options.publishers == 0).unwrap_or_default();
        Self {
            times,
            publishers: options.publishers,
            consumers: options.consumers,
            accepted: count(&load.totals.accepted),
            refused: count(&load.totals.refused),
            refusal,
            delivered: count(&load.totals.delivered),
            retries: count(&load.totals.retries),
            acked: count(&load.totals.acked),
            short: to_consume.saturating_sub(count(&load.totals.answered)),
            missing: missing.collect(),
            answer,
            delivery,
            ledger,
        }
    }

    /// Whether everything was there, accepted and delivered, and no law is seen to be broken.
    pub(super) fn is_good(&self) -> bool {
        let laws_hold = self.ledger.as_ref().map_or(true, |ledger| ledger.values().all(Books::hold));
        self.refused == 0 && self.short == 0 && self.missing.values().all(|&missing| missing == 0) && laws_hold
    }

    /// Prints it, and says how the process ends where nothing else went wrong.
    pub(super) fn print(&self, as_json: bool) -> Exit {
        process::answer(&if as_json { format!("{}\n", self.json()) } else { self.text() })
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, what: String| _ = writeln!(text, "{name:<10} {what}");
        if self.publishers > 0 {
            let Self { accepted, refused, .. } = *self;
            let speed = HumanCount(per_second(accepted, self.times.publishing));
            let accepted = HumanCount(accepted);
            line(
                "published",
                format!("{accepted} accepted, {refused} refused in {:.2?}: {speed}/s", self.times.publishing),
            );
            if let Some(refusal) = &self.refusal {
                line("", refusal.clone());
            }
        }
        if self.consumers > 0 {
            let (delivered, retries) = (HumanCount(self.delivered), HumanCount(self.retries));
            let (acked, speed) = (HumanCount(self.acked), HumanCount(per_second(self.acked, self.times.consuming)));
            line(
                "consumed",
                format!(
                    "{acked} acked in {:.2?}: {speed}/s; {delivered} deliveries, {retries} of them retries",
                    self.times.consuming
                ),
            );
        }
        if !self.answer.is_empty() || !self.delivery.is_empty() {
            let names = QUANTILES.map(|(name, _)| format!("{name:>10}")).concat();
            line("latency", format!("{:<26}{names}{:>10}", "", "max"));
        }
        for (name, histogram) in
            [("publish to its answer", &self.answer), ("publish to first delivery", &self.delivery)]
        {
            if !histogram.is_empty() {
                let values = QUANTILES.map(|(_, quantile)| histogram.value_at_quantile(quantile));
                let values = values
                    .into_iter()
                    .chain([histogram.max()])
                    .map(|nanos| format!("{:>10}", format!("{:.2?}", Duration::from_nanos(nanos))));
                line("", format!("{name:<26}{}", values.collect::<String>()));
            }
        }
        if self.short > 0 {
            line("short", format!("{} messages fewer than --count came", HumanCount(self.short)));
        }
        for (subscription, missing) in self.missing.iter().filter(|(_, missing)| **missing > 0) {
            line(
                "missing",
                format!(
                    "{missing} accepted messages came to no consumer here of {subscription}: they are another's, or wait still"
                ),
            );
        }
        match &self.ledger {
            Err(why) => line("laws", format!("not looked at: {why}")),
            Ok(ledger) => {
                for (subscription, books) in ledger {
                    let verdict = if books.hold() { "hold" } else { "ARE BROKEN" };
                    line("laws", format!("{verdict}: {subscription}: {books}"));
                }
            }
        }
        text
    }

    fn json(&self) -> serde_json::Value {
        let latency = |histogram: &Histogram<u64>| {
            let told =
                QUANTILES.map(|(name, quantile)| (name.to_owned(), json!(histogram.value_at_quantile(quantile))));
            let told = told.into_iter().chain([("max".to_owned(), json!(histogram.max()))]);
            (!histogram.is_empty()).then(|| told.collect::<serde_json::Map<_, _>>())
        };
        let laws = match &self.ledger {
            Err(why) => json!({"checked": false, "why": why}),
            Ok(ledger) => json!({"checked": true, "hold": ledger.values().all(Books::hold)}),
        };
        json!({
            "published": {
                "accepted": self.accepted, "refused": self.refused, "seconds": self.times.publishing.as_secs_f64(),
                "answer_latency_ns": latency(&self.answer),
            },
            "consumed": {
                "acked": self.acked, "delivered": self.delivered, "retries": self.retries, "seconds": self.times.consuming.as_secs_f64(),
                "delivery_latency_ns": latency(&self.delivery), "missing": self.missing, "short": self.short,
            },
            "laws": laws,
        })
    }
}

/// A rate; 0 where there was no time.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "it is for people"
)]
pub(super) fn per_second(count: u64, within: Duration) -> u64 {
    if within.is_zero() { 0 } else { (count as f64 / within.as_secs_f64()) as u64 }
}
