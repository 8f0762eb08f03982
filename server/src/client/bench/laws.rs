//! What the server itself says after a load: its counts, as its metrics tell them, and whether both laws hold.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::client::Target;

/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// One subscription's counts: both laws are about them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Books {
    pub(super) published: i128,
    pub(super) acked: i128,
    pub(super) dropped: i128,
    /// Ready, delayed and outstanding.
    pub(super) backlog: i128,
    pub(super) outstanding: i128,
    pub(super) sent: i128,
    /// Deliveries that ended, however.
    pub(super) ended: i128,
}

/// The books of each subscription of a topic.
pub(super) type Ledger = BTreeMap<String, Books>;

impl Books {
    /// Whether both laws hold.
    pub(super) const fn hold(&self) -> bool {
        self.published == self.acked + self.dropped + self.backlog && self.sent == self.ended + self.outstanding
    }
}

impl fmt::Display for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { published, acked, dropped, backlog, outstanding, sent, ended } = self;
        write!(
            f,
            "{published} published = {acked} acked + {dropped} dropped + {backlog} in the backlog; {sent} sent = {ended} ended + {outstanding} \
             outstanding"
        )
    }
}

/// Asks a server for its metrics: the books of all subscriptions of `topic`.
///
/// # Errors
///
/// A sentence that says why there are none.
pub(super) async fn fetch(server: &Target, topic: &str) -> Result<Ledger, String> {
    let text = tokio::time::timeout(ANSWER_WITHIN, scrape(server))
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER_WITHIN.as_secs())));
    let ledger = read(&text.map_err(|why| format!("no metrics from {server}: {why}"))?, topic);
    if ledger.is_empty() { Err(format!("the metrics of {server} tell of no topic \"{topic}\"")) } else { Ok(ledger) }
}

async fn scrape(server: &Target) -> Result<String, String> {
    let told = |error: &dyn std::error::Error| crate::client::root_cause(error);
    let mut stream = Err("there is nowhere to connect to".to_owned());
    for authority in server.authorities() {
        stream = TcpStream::connect(&authority).await.map_err(|error| told(&error));
        if stream.is_ok() {
            break;
        }
    }
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream?)).await.map_err(|error| told(&error))?;
    tokio::spawn(connection); // its error is the answer's
    let request = http::Request::get("/metrics").header(http::header::HOST, server.to_string());
    let request = request.body(Empty::<bytes::Bytes>::new()).expect("it is a request");
    let answer = sender.send_request(request).await.map_err(|error| told(&error))?;
    if !answer.status().is_success() {
        return Err(format!("it answers {}", answer.status()));
    }
    let body = answer.into_body().collect().await.map_err(|error| told(&error))?.to_bytes();
    String::from_utf8(body.into()).map_err(|_| "it answers with no text".to_owned())
}

/// Reads metrics in Prometheus' text format.
fn read(text: &str, topic: &str) -> Ledger {
    let mut ledger = Ledger::new();
    for line in text.lines() {
        let Some((name, labels, value)) = sample(line).filter(|(_, labels, _)| label(labels, "topic") == Some(topic))
        else {
            continue;
        };
        let Some(subscription) = label(labels, "subscription") else { continue };
        let books = ledger.entry(subscription.to_owned()).or_default();
        match name {
            "ackstream_messages_published_total" => books.published += value,
            "ackstream_messages_acked_total" => books.acked += value,
            "ackstream_messages_dropped_total" => books.dropped += value,
            "ackstream_messages_sent_total" => books.sent += value,
            "ackstream_deliveries_ended_total" => books.ended += value,
            "ackstream_messages" => {
                books.backlog += value;
                books.outstanding += if label(labels, "state") == Some("outstanding") { value } else { 0 };
            }
            _ => {}
        }
    }
    ledger
}

/// Name, labels and value of a line; `None` where it has no labels, or no whole number.
fn sample(line: &str) -> Option<(&str, &str, i128)> {
    let (name, rest) = line.split_once('{')?;
    let (labels, value) = rest.rsplit_once("} ")?;
    Some((name, labels, value.parse().ok()?))
}

/// The value of a label. Names of topics and subscriptions have nothing that is escaped.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels.split(',').find_map(|label| label.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = r#"# TYPE ackstream_messages_published_total counter
ackstream_messages_published_total{topic="orders",subscription="billing"} 10
ackstream_messages_published_total{topic="other",subscription="demo"} 99
ackstream_messages_acked_total{topic="orders",subscription="billing"} 6
ackstream_messages_dropped_total{topic="orders",subscription="billing",reason="max_retries"} 1
ackstream_messages_dropped_total{topic="orders",subscription="billing",reason="rejected"} 0
ackstream_messages{topic="orders",subscription="billing",state="ready"} 1
ackstream_messages{topic="orders",subscription="billing",state="delayed"} 0
ackstream_messages{topic="orders",subscription="billing",state="outstanding"} 2
ackstream_messages_sent_total{topic="orders",subscription="billing"} 12
ackstream_deliveries_ended_total{topic="orders",subscription="billing",outcome="acked"} 6
ackstream_deliveries_ended_total{topic="orders",subscription="billing",outcome="expired"} 4
ackstream_ack_latency_seconds_bucket{topic="orders",subscription="billing",le="0.5"} 6
process_open_fds 12
"#;

    #[test]
    fn both_laws_are_read_from_the_metrics_of_one_topic() {
        let ledger = read(METRICS, "orders");
        let wanted = Books { published: 10, acked: 6, dropped: 1, backlog: 3, outstanding: 2, sent: 12, ended: 10 };
        assert_eq!(ledger.into_iter().collect::<Vec<_>>(), [("billing".to_owned(), wanted)]);
        assert!(wanted.hold());
    }

    #[test]
    fn a_message_that_is_nowhere_breaks_the_law() {
        let lost = read(&METRICS.replace("state=\"ready\"} 1", "state=\"ready\"} 0"), "orders");
        assert!(!lost["billing"].hold());
        let unended = read(&METRICS.replace("outcome=\"expired\"} 4", "outcome=\"expired\"} 3"), "orders");
        assert!(!unended["billing"].hold());
    }
}
