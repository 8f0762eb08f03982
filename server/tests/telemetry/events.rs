//! For every event of the core exactly the metrics that it moves.

use std::sync::Arc;
use std::time::Duration;

use ackstream::broker::Rejections;
use ackstream::message::Message;
use ackstream::telemetry::{
    Calls, ConnectionClosing, ConnectionCounts, ConnectionRefusal, Exposition, OnTheWay, Snapshot, TraceCounts,
};
use ackstream_core::{
    ConsumerId, DropReason, Event, IgnoreReason, Leave, MessageId, MessageView, Observer, Outcome, Policy, Release,
    Time, Verb,
};

use crate::page::{DEMO, Page};

type Told<'a> = Event<'a, Message>;

/// Instants in seconds since the message was accepted, chosen so that their differences are exact.
fn at(seconds: u64) -> Time {
    Time::from_nanos((1 << 40) + seconds * 1_000_000_000)
}

fn consumer() -> ConsumerId {
    let mut subscription = ackstream_core::Subscription::<(), ()>::new(Policy::default(), ());
    let window = ackstream_core::Window { max_messages: 1, max_bytes: 1 };
    subscription.attach(ackstream_core::Attachment { window, handlers: 0, auto_ack: false }, at(0))
}

/// The series that an event moves, with the change of each, as the names of the catalogue: "+" adds, and a histogram counts one sample.
fn moved_by(event: &Told<'_>) -> Vec<(&'static str, &'static str, f64)> {
    let late_ack = |late| if late { vec![("ackstream_late_acks_total", "", 1.0)] } else { vec![] };
    match event {
        Event::Published { .. } => vec![("ackstream_messages_published_total", "", 1.0)],
        Event::Sent { after: None, .. } => vec![("ackstream_messages_sent_total", "", 1.0)],
        Event::Sent { after: Some(after), message, .. } => {
            let labels = match (after, message.failures) {
                (Outcome::Acked, _) => unreachable!("an acked message is settled"),
                (Outcome::Expired, 1) => "retry=\"1\",reason=\"expired\"",
                (Outcome::Nacked, 4) => "retry=\"4\",reason=\"nacked\"",
                (Outcome::Expired, 5 | 700) => "retry=\"5+\",reason=\"expired\"",
                (Outcome::Interrupted | Outcome::Released(_), _) => {
                    return vec![("ackstream_messages_sent_total", "", 1.0)]; // no failure, no retry
                }
                other => unreachable!("not in the list: {other:?}"),
            };
            vec![("ackstream_messages_sent_total", "", 1.0), ("ackstream_messages_retried_total", labels, 1.0)]
        }
        Event::Ended { outcome: Outcome::Acked, .. } => vec![
            ("ackstream_deliveries_ended_total", "outcome=\"acked\"", 1.0),
            ("ackstream_ack_latency_seconds_count", "", 1.0),
            ("ackstream_ack_latency_seconds_sum", "", 2.0),
        ],
        Event::Ended { outcome: Outcome::Nacked, .. } => {
            vec![("ackstream_deliveries_ended_total", "outcome=\"nacked\"", 1.0)]
        }
        Event::Ended { outcome: Outcome::Expired, .. } => {
            vec![("ackstream_deliveries_ended_total", "outcome=\"expired\"", 1.0)]
        }
        Event::Ended { outcome: Outcome::Interrupted, .. } => {
            vec![("ackstream_deliveries_ended_total", "outcome=\"interrupted\"", 1.0)]
        }
        Event::Ended { outcome: Outcome::Released(why), .. } => {
            let labels = match why {
                Release::Left => "reason=\"left\"",
                Release::Closed => "reason=\"closed\"",
                Release::NotBegun => "reason=\"not_begun\"",
                Release::GivenBack => "reason=\"given_back\"",
                Release::NotReceived => "reason=\"not_received\"",
            };
            vec![
                ("ackstream_deliveries_ended_total", "outcome=\"released\"", 1.0),
                ("ackstream_deliveries_released_total", labels, 1.0),
            ]
        }
        Event::Acked { late, .. } => {
            let mut moved = vec![
                ("ackstream_messages_acked_total", "", 1.0),
                ("ackstream_settle_latency_seconds_count", "outcome=\"acked\"", 1.0),
                ("ackstream_settle_latency_seconds_sum", "outcome=\"acked\"", 3.0),
                ("ackstream_message_attempts_count", "outcome=\"acked\"", 1.0),
                ("ackstream_message_attempts_sum", "outcome=\"acked\"", 2.0),
            ];
            moved.extend(late_ack(*late));
            moved
        }
        Event::Dropped { reason, .. } => vec![
            (
                "ackstream_messages_dropped_total",
                match reason {
                    DropReason::MaxRetries => "reason=\"max_retries\"",
                    DropReason::Rejected => "reason=\"rejected\"",
                    DropReason::MaxInterruptions => "reason=\"max_interruptions\"",
                },
                1.0,
            ),
            ("ackstream_settle_latency_seconds_count", "outcome=\"dropped\"", 1.0),
            ("ackstream_settle_latency_seconds_sum", "outcome=\"dropped\"", 3.0),
            ("ackstream_message_attempts_count", "outcome=\"dropped\"", 1.0),
            ("ackstream_message_attempts_sum", "outcome=\"dropped\"", 2.0),
        ],
        Event::Ignored { verb, reason, .. } => {
            let labels = match (verb, reason) {
                (Verb::Ack, IgnoreReason::Settled) => "verb=\"ack\",reason=\"settled\"",
                (Verb::Ack, IgnoreReason::Unknown) => "verb=\"ack\",reason=\"unknown\"",
                (Verb::Ack, IgnoreReason::Stale) => "verb=\"ack\",reason=\"stale\"",
                (Verb::Ack, IgnoreReason::NotHeld) => "verb=\"ack\",reason=\"not_held\"",
                (Verb::Nack, IgnoreReason::Settled) => "verb=\"nack\",reason=\"settled\"",
                (Verb::Nack, IgnoreReason::Unknown) => "verb=\"nack\",reason=\"unknown\"",
                (Verb::Nack, IgnoreReason::Stale) => "verb=\"nack\",reason=\"stale\"",
                (Verb::Nack, IgnoreReason::NotHeld) => "verb=\"nack\",reason=\"not_held\"",
                (Verb::Extend, IgnoreReason::Settled) => "verb=\"extend\",reason=\"settled\"",
                (Verb::Extend, IgnoreReason::Unknown) => "verb=\"extend\",reason=\"unknown\"",
                (Verb::Extend, IgnoreReason::Stale) => "verb=\"extend\",reason=\"stale\"",
                (Verb::Extend, IgnoreReason::NotHeld) => "verb=\"extend\",reason=\"not_held\"",
            };
            vec![("ackstream_acks_ignored_total", labels, 1.0)]
        }
        Event::Offered { taken: true, .. } => vec![("ackstream_dead_letters_total", "outcome=\"published\"", 1.0)],
        Event::Offered { taken: false, .. } => vec![("ackstream_dead_letters_total", "outcome=\"refused\"", 1.0)],
        Event::Extended { .. }
        | Event::GivenUp { .. }
        | Event::Requeued { .. }
        | Event::Due { .. }
        | Event::Attached { .. }
        | Event::Detached { .. }
        | Event::Draining { .. } => vec![],
    }
}

/// Every event, in every kind that is counted by itself.
fn all_events(body: &Message, consumer: ConsumerId) -> Vec<Told<'_>> {
    let view = |attempts: u32| MessageView {
        id: MessageId(1),
        body,
        size: 1,
        accepted_at: at(0),
        attempts: if attempts > 2 { attempts + 3 } else { attempts }, // some were no failures
        failures: attempts.saturating_sub(1),
        interruptions: 0,
        retries_left: None,
        history: &[],
    };
    let sent = |attempts, after| Event::Sent { at: at(1), message: view(attempts), consumer, after };
    let mut events = vec![
        Event::Published { at: at(0), message: view(0) },
        sent(1, None),
        sent(2, Some(Outcome::Expired)),
        sent(5, Some(Outcome::Nacked)),
        sent(6, Some(Outcome::Expired)),
        sent(701, Some(Outcome::Expired)),
        sent(2, Some(Outcome::Interrupted)),
        sent(2, Some(Outcome::Released(Release::Left))),
        Event::Extended { at: at(1), message: view(1), deadline: at(9) },
        Event::Requeued { at: at(1), message: view(1), delay: Duration::from_secs(1) },
        Event::Due { at: at(1), message: view(1) },
        Event::GivenUp { at: at(2), message: view(2), reason: DropReason::MaxRetries },
        Event::Offered { at: at(3), message: view(2), taken: true },
        Event::Offered { at: at(3), message: view(2), taken: false },
        Event::Acked { at: at(3), message: view(2), late: false },
        Event::Acked { at: at(3), message: view(2), late: true },
        Event::Dropped { at: at(3), message: view(2), reason: DropReason::MaxRetries },
        Event::Dropped { at: at(3), message: view(2), reason: DropReason::Rejected },
        Event::Dropped { at: at(3), message: view(2), reason: DropReason::MaxInterruptions },
        Event::Attached { at: at(1), consumer },
        Event::Detached { at: at(1), consumer, leave: Leave::Clean },
        Event::Detached { at: at(1), consumer, leave: Leave::Broken },
        Event::Draining { at: at(1) },
    ];
    let released = Release::ALL.map(Outcome::Released);
    for outcome in [Outcome::Acked, Outcome::Nacked, Outcome::Expired, Outcome::Interrupted].into_iter().chain(released)
    {
        events.push(Event::Ended { at: at(3), message: view(1), consumer, sent_at: at(1), outcome });
    }
    for verb in [Verb::Ack, Verb::Nack, Verb::Extend] {
        for reason in [IgnoreReason::Settled, IgnoreReason::Unknown, IgnoreReason::Stale, IgnoreReason::NotHeld] {
            events.push(Event::Ignored { at: at(1), id: MessageId(1), verb, reason });
        }
    }
    events
}

#[test]
fn every_event_moves_exactly_the_metrics_of_its_list() {
    let (body, policy, calls, traces) =
        (Message::numbered(b"", 1), Policy::default(), Calls::default(), TraceCounts::default());
    let mut exposition = Exposition::new(["demo"], [("demo", "demo", &policy)], &calls);
    let mut snapshot = Snapshot::default();
    let mut scrape = |snapshot: &Snapshot| {
        Page::parse(&exposition.render(
            &[&Rejections::default()],
            std::slice::from_ref(snapshot),
            &calls,
            &traces,
            &ConnectionCounts::default(),
        ))
    };
    let mut before = scrape(&snapshot);
    for event in all_events(&body, consumer()) {
        snapshot.counts.observe(&event);
        snapshot.tally.observe(&event);
        let after = scrape(&snapshot);
        let mut expected: Vec<_> = moved_by(&event)
            .into_iter()
            .map(|(name, labels, change)| {
                let comma = if labels.is_empty() { "" } else { "," };
                (format!("{name}{{{DEMO}{comma}{labels}}}"), change)
            })
            .collect();
        expected.sort_by(|one, other| one.0.cmp(&other.0));
        assert_eq!(after.since(&before), expected, "{event:?}");
        before = after;
    }
}

#[test]
fn what_tracing_counts_is_shown() {
    let calls = Calls::default();
    let traces = Arc::new(TraceCounts::default());
    let spans = |count| OnTheWay::new(Arc::clone(&traces), count);
    spans(1).found_it_full();
    drop(spans(2));
    let mut many = spans(3);
    many.join(spans(4));
    many.arrived(5);
    spans(1).arrived(5); // a collector cannot reject more than it was sent
    traces.count_rate_limited(3);
    (0..4).for_each(|_| traces.count_context_ignored());
    let mut exposition = Exposition::new([], [], &calls);
    let page = Page::parse(&exposition.render(&[], &[], &calls, &traces, &ConnectionCounts::default()));
    assert_eq!(page.0["ackstream_spans_dropped_total{reason=\"queue_full\"}"], 1.0);
    assert_eq!(page.0["ackstream_spans_dropped_total{reason=\"export_failed\"}"], 8.0);
    assert_eq!(page.0["ackstream_spans_dropped_total{reason=\"rate_limited\"}"], 3.0);
    assert_eq!(page.0["ackstream_trace_contexts_ignored_total"], 4.0);
}

#[test]
fn what_becomes_of_connections_is_shown() {
    let (calls, counts) = (Calls::default(), Arc::new(ConnectionCounts::default()));
    let open = [counts.count_open(), counts.count_open()];
    drop(counts.count_open());
    counts.count_refused(ConnectionRefusal::TooMany);
    (0..2).for_each(|_| counts.count_refused(ConnectionRefusal::TooManyOfAddress));
    (0..3).for_each(|_| counts.count_closed(ConnectionClosing::NoPreface));
    (0..4).for_each(|_| counts.count_closed(ConnectionClosing::EndNotRead));
    (0..5).for_each(|_| counts.count_closed(ConnectionClosing::MaxAge));
    (0..6).for_each(|_| counts.count_stuck_consumer());
    let mut exposition = Exposition::new([], [], &calls);
    let page = Page::parse(&exposition.render(&[], &[], &calls, &TraceCounts::default(), &counts));
    let shown = [
        "connections",
        "connections_refused_total{reason=\"max_connections\"}",
        "connections_refused_total{reason=\"max_connections_per_address\"}",
        "connections_closed_total{reason=\"no_preface\"}",
        "connections_closed_total{reason=\"end_not_read\"}",
        "connections_closed_total{reason=\"max_age\"}",
        "consumers_stuck_total",
    ]
    .map(|name| page.0[&format!("ackstream_{name}")]);
    assert_eq!(shown, [2.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    drop(open);
}

#[test]
fn unlimited_retries_are_infinitely_many_and_a_label_is_escaped() {
    let (calls, policy) = (Calls::default(), Policy { max_retries: None, ..Policy::default() });
    let mut exposition = Exposition::new([], [("a\"b\\c", "demo", &policy)], &calls);
    let text =
        exposition.render(&[], &[Snapshot::default()], &calls, &TraceCounts::default(), &ConnectionCounts::default());
    let page = Page::parse(&text);
    let labels = r#"{topic="a\"b\\c",subscription="demo"}"#;
    assert_eq!(page.0[&format!("ackstream_config_max_retries{labels}")], f64::INFINITY);
    assert_eq!(page.0[&format!("ackstream_ack_latency_seconds_count{labels}")], 0.0); // ours is escaped as the exporter's
}
