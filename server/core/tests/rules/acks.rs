use ackstream_core::{Leave, MessageId, Nack};

use crate::workbench::{Workbench, ms};

#[test]
fn an_ack_settles_an_outstanding_message() {
    let (mut bench, _) = Workbench::new().with_one_outstanding();
    bench.ack(50, 1);
    assert_eq!(bench.events(), ["50 ended 1 Acked", "50 acked 1"]);
    assert_eq!(bench.subscription.backlog().messages(), 0);
}

#[test]
fn an_ack_settles_whoever_sends_it() {
    let (mut bench, _) = Workbench::new().with_one_outstanding();
    bench.attach(1); // acks carry no consumer: a stranger's looks the same
    bench.ack_attempt(50, 1, 1);
    assert_eq!(bench.events()[1..], ["50 ended 1 Acked", "50 acked 1"]);
}

#[test]
fn a_late_ack_of_a_ready_message_wins() {
    let (mut bench, consumer) = Workbench::new().with_one_outstanding();
    bench.advance(100);
    bench.ack(150, 1);
    assert_eq!(bench.events(), ["100 ended 1 Expired", "100 requeued 1 for 0", "150 acked 1 late"]);
    assert_eq!(bench.take_all(200, consumer), []);
}

#[test]
fn a_late_ack_of_a_delayed_message_wins() {
    let (mut bench, consumer) = Workbench::new().with_one_outstanding();
    bench.nack(10, consumer, 1, Nack { delay: Some(ms(500)), drop: false, release: false });
    bench.ack(20, 1);
    assert_eq!(bench.events(), ["10 ended 1 Nacked", "10 requeued 1 for 500", "20 acked 1 late"]);
    assert_eq!(bench.next_due(), None);
}

#[test]
fn a_late_ack_may_name_any_attempt_that_was_delivered() {
    let (mut bench, consumer) = Workbench::new().with_one_outstanding();
    assert_eq!(bench.take_all(100, consumer), [(1, 2)]);
    bench.advance(200);
    bench.ack_attempt(210, 1, 1);
    assert_eq!(bench.events().last().unwrap(), "210 acked 1 late");
}

#[test]
fn an_ack_after_the_deadline_is_late_also_when_the_pass_has_not_come_to_it() {
    let mut bench = Workbench::with(|policy| policy.max_backlog_messages = 10_000);
    let consumer = bench.attach_with(0, 10_000, u64::MAX);
    bench.publish(0, 5_000);
    assert_eq!(bench.take_all(0, consumer).len(), 5_000);
    bench.ack(100, 4_999); // far behind what one pass expires
    let events = bench.events();
    assert_eq!(
        events[events.len() - 3..],
        ["100 ended 4999 Expired", "100 requeued 4999 for 0", "100 acked 4999 late"]
    );
}

#[test]
fn an_ack_of_an_attempt_other_than_the_outstanding_one_is_stale() {
    let (mut bench, consumer) = Workbench::new().with_one_outstanding();
    assert_eq!(bench.take_all(100, consumer), [(1, 2)]);
    bench.events();
    bench.ack_attempt(110, 1, 1);
    bench.ack_attempt(110, 1, 3);
    assert_eq!(bench.events(), ["110 ignored Ack 1 Stale", "110 ignored Ack 1 Stale"]);
    assert_eq!(bench.subscription.backlog().outstanding, 1);
}

#[test]
fn an_ack_of_a_settled_message_is_ignored() {
    let (mut bench, _) = Workbench::new().with_one_outstanding();
    bench.ack(10, 1);
    bench.events();
    bench.ack(20, 1);
    assert_eq!(bench.events(), ["20 ignored Ack 1 Settled"]);
}

#[test]
fn an_ack_of_a_message_that_was_never_delivered_is_unknown() {
    let mut bench = Workbench::new();
    bench.publish(0, 1);
    bench.events();
    for id in [0, 1, 2, u64::MAX] {
        bench.ack(10, id);
    }
    bench.ack_attempt(10, 1, 1);
    let unknown = |id: u64| format!("10 ignored Ack {id} Unknown");
    assert_eq!(bench.events(), [unknown(0), unknown(1), unknown(2), unknown(u64::MAX), unknown(1)]);
    assert_eq!(bench.subscription.backlog().ready, 1);
}

#[test]
fn a_late_ack_of_an_attempt_that_never_was_is_unknown() {
    let (mut bench, _) = Workbench::new().with_one_outstanding();
    bench.advance(100);
    bench.events();
    bench.ack_attempt(110, 1, 2);
    bench.ack_attempt(110, 1, 0);
    assert_eq!(bench.events(), ["110 ignored Ack 1 Unknown", "110 ignored Ack 1 Unknown"]);
}

#[test]
fn an_ack_from_a_consumer_that_has_left_still_counts() {
    let (mut bench, consumer) = Workbench::new().with_one_outstanding();
    bench.detach(10, consumer, Leave::Broken);
    bench.ack(20, 1);
    assert_eq!(bench.events().last().unwrap(), "20 acked 1 late");
}

#[test]
fn a_delivery_under_auto_ack_is_acked_at_the_moment_it_is_handed_over() {
    let mut bench = Workbench::new();
    let window = ackstream_core::Window { max_messages: 1, max_bytes: 1 };
    let tail = bench
        .subscription
        .attach(ackstream_core::Attachment { window, handlers: 0, auto_ack: true }, Workbench::time(0));
    bench.publish(0, 3);
    bench.events();
    assert_eq!(bench.take_all(5, tail), [(1, 1), (2, 1), (3, 1)]);
    assert_eq!(bench.events()[..3], ["5 sent 1#1", "5 ended 1 Acked", "5 acked 1"]);
    assert_eq!(bench.subscription.backlog().messages(), 0);
}

#[test]
fn ids_are_found_whatever_their_distance() {
    let mut bench = Workbench::new();
    let consumer = bench.attach(0);
    for id in [1, 64, 65, 1 << 40, u64::MAX - 1] {
        bench.subscription.enqueue(MessageId(id), id, 1, Workbench::time(0));
    }
    assert_eq!(bench.take_all(0, consumer).len(), 5);
    for id in [1 << 40, 1, u64::MAX - 1, 65, 64] {
        bench.ack(1, id);
    }
    assert_eq!(bench.subscription.counts().acked, 5);
}
