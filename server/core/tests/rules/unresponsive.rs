use ackstream_core::{ConsumerId, PROBE_AFTER_AT_LEAST};

use crate::workbench::Workbench;

/// Two consumers that wait. The first has let a delivery expire without a word; the message is ready since 100.
fn with_a_frozen_one() -> (Workbench, ConsumerId, ConsumerId) {
    let mut bench = Workbench::new();
    let frozen = bench.attach(0);
    bench.publish(0, 1);
    bench.take_all(0, frozen);
    let healthy = bench.attach(0);
    assert_eq!(bench.take(0, healthy), None);
    bench.advance(100);
    bench.events();
    (bench, frozen, healthy)
}

#[test]
fn a_consumer_that_lets_a_delivery_expire_and_says_nothing_is_unresponsive() {
    let (bench, ..) = with_a_frozen_one();

    assert_eq!(bench.subscription.consumer_counts().unresponsive, 1);
}

#[test]
fn a_consumer_that_said_something_after_it_got_a_delivery_stays_responsive_when_that_expires() {
    let (mut bench, consumer) = Workbench::new().with_one_outstanding();

    bench.heard(1, consumer);
    bench.advance(100);

    assert_eq!(bench.subscription.consumer_counts().unresponsive, 0);
}

#[test]
fn wakes_go_to_responsive_consumers_first() {
    let (mut bench, _, healthy) = with_a_frozen_one();

    assert_eq!(bench.wakes(), [healthy]);
}

#[test]
fn an_unresponsive_consumer_gets_nothing_while_a_responsive_one_takes_what_there_is() {
    let (mut bench, frozen, healthy) = with_a_frozen_one();

    assert_eq!(bench.take(100, frozen), None);
    assert_eq!(bench.take_all(101, healthy), [(1, 2)]);

    bench.publish(104, 1);
    assert_eq!(bench.take(104, frozen), None);
    assert_eq!(bench.take_all(104, healthy), [(2, 1)]);
}

#[test]
fn where_no_responsive_consumer_comes_for_5_ms_an_unresponsive_one_is_woken_and_gets_the_message() {
    let (mut bench, frozen, healthy) = with_a_frozen_one();
    assert_eq!(bench.wakes(), [healthy]);
    assert_eq!(bench.take(100, frozen), None);
    assert_eq!(bench.next_due(), Some(105));

    bench.advance(105);

    assert_eq!(bench.wakes(), [frozen]);
    assert_eq!(bench.take_all(105, frozen), [(1, 2)]);
}

#[test]
fn where_all_are_unresponsive_each_gets_what_it_asks_for() {
    let (mut bench, consumer) = Workbench::new().with_one_outstanding();

    assert_eq!(bench.take_all(100, consumer), [(1, 2)]);
}

#[test]
fn where_the_responsive_are_full_an_unresponsive_one_gets_what_it_asks_for() {
    let (mut bench, frozen, healthy) = with_a_frozen_one();
    bench.publish(100, 1_000);
    assert_eq!(bench.take_all(101, healthy).len(), 1_000);

    assert!(bench.take(101, frozen).is_some());
}

#[test]
fn a_word_ends_it_at_once() {
    let (mut bench, frozen, _) = with_a_frozen_one();
    assert_eq!(bench.take(100, frozen), None);

    bench.heard(101, frozen);

    assert_eq!(bench.take_all(101, frozen), [(1, 2)]);
}

#[test]
fn after_ten_ack_deadlines_but_at_least_30_s_it_is_probed_with_a_message_that_has_no_failure() {
    let (mut bench, frozen, healthy) = with_a_frozen_one();
    assert_eq!(bench.take_all(100, healthy), [(1, 2)]);
    bench.heard(101, healthy);
    assert_eq!(bench.take(101, frozen), None);
    bench.ack(102, 1);
    let later = 100 + u64::try_from(PROBE_AFTER_AT_LEAST.as_millis()).unwrap();
    bench.advance(later);
    bench.publish(later, 2);

    assert_eq!(bench.take_all(later, frozen), [(2, 1)], "one, and no more");

    bench.advance(later + 100);
    bench.publish(later + 101, 1);
    assert_eq!(bench.take(later + 101, frozen), None, "the time has begun anew");
}

#[test]
fn a_message_that_has_failed_is_no_probe() {
    let (mut bench, frozen, _) = with_a_frozen_one();
    let later = 100 + u64::try_from(PROBE_AFTER_AT_LEAST.as_millis()).unwrap();
    let third = bench.attach(later - 1);
    assert_eq!(bench.take_all(later - 1, third), [(1, 2)]);
    bench.heard(later, third);

    bench.nack(later, third, 1, ackstream_core::Nack { delay: Some(std::time::Duration::ZERO), ..Default::default() });

    assert_eq!(bench.take(later, frozen), None);
}
