use ackstream_core::{Leave, Refusal};

use crate::workbench::{Workbench, ms};

#[test]
fn a_clean_leave_makes_the_message_ready_at_once_and_costs_no_retry() {
    let mut bench = Workbench::with(|policy| policy.max_retries = Some(0));
    bench.publish(0, 1);
    for attempt in 1..=50 {
        let consumer = bench.attach(0);
        assert_eq!(bench.take_all(0, consumer), [(1, attempt)]);
        bench.detach(0, consumer, Leave::Clean);
    }
    assert_eq!(bench.subscription.backlog().ready, 1);
}

#[test]
fn what_a_leaving_consumer_held_goes_to_the_others_in_the_order_of_hand_over() {
    let mut bench = Workbench::new();
    let (one, other) = (bench.attach(0), bench.attach(0));
    bench.publish(0, 6);
    for _ in 0..3 {
        bench.take(0, one);
        bench.take(0, other);
    }
    bench.detach(10, one, Leave::Clean);
    assert_eq!(bench.take_all(10, other), [(1, 2), (3, 2), (5, 2)]);
}

#[test]
fn a_delivery_whose_deadline_has_passed_expires_also_when_its_consumer_leaves_first() {
    let mut bench = Workbench::new();
    let consumer = bench.attach_with(0, u32::MAX, u64::MAX);
    bench.publish(0, 5_000);
    bench.take_all(0, consumer);
    bench.events();
    bench.detach(100, consumer, Leave::Clean);
    while bench.next_due() == Some(100) {
        bench.advance(100);
    }
    let events = bench.events();
    assert_eq!(events.iter().filter(|line| line.ends_with("Expired")).count(), 5_000);
    assert_eq!(events.iter().filter(|line| line.contains("Released")).count(), 0);
}

#[test]
fn leaving_twice_changes_nothing() {
    let (mut bench, consumer) = Workbench::new().with_one_outstanding();
    bench.detach(10, consumer, Leave::Clean);
    let next = bench.attach(10);
    bench.take_all(10, next);
    bench.events();
    bench.detach(20, consumer, Leave::Broken);
    assert_eq!(bench.events(), [""; 0]);
    assert_eq!(bench.subscription.consumers(), 1);
}

#[test]
fn who_has_left_gets_nothing() {
    let mut bench = Workbench::new();
    let consumer = bench.attach(0);
    bench.detach(0, consumer, Leave::Clean);
    bench.publish(0, 1);
    assert_eq!(bench.take(0, consumer), None);
    assert_eq!(bench.subscription.backlog().ready, 1);
}

#[test]
fn a_draining_subscription_accepts_and_delivers_nothing_new() {
    let (mut bench, consumer) = Workbench::new().with_one_outstanding();
    bench.publish(0, 1);
    bench.subscription.drain(Workbench::time(10));
    assert_eq!(bench.subscription.check_room(1, Workbench::time(10)), Err(Refusal::Draining));
    assert_eq!(bench.take_all(10, consumer), []);
}

#[test]
fn a_draining_subscription_still_settles_what_is_outstanding() {
    let mut bench = Workbench::new();
    let consumer = bench.attach(0);
    bench.publish(0, 3);
    bench.take_all(0, consumer);
    bench.subscription.drain(Workbench::time(10));
    bench.events();
    bench.ack(20, 1);
    bench.extend(20, consumer, 2, ms(200));
    bench.advance(100);
    assert!(!bench.subscription.is_drained());
    bench.ack(150, 2);
    assert_eq!(bench.events().last().unwrap(), "150 acked 2");
    assert!(bench.subscription.is_drained());
}

#[test]
fn a_stop_is_no_drop() {
    let (mut bench, _) = Workbench::new().with_one_outstanding();
    bench.publish(0, 2);
    bench.subscription.drain(Workbench::time(10));
    bench.advance(100);
    let counts = bench.subscription.counts();
    assert_eq!((counts.dropped, bench.subscription.backlog().messages()), (0, 3), "they are left");
}

#[test]
fn draining_twice_is_told_once() {
    let mut bench = Workbench::new();
    bench.subscription.drain(Workbench::time(10));
    bench.subscription.drain(Workbench::time(20));
    assert_eq!(bench.events(), ["10 draining"]);
}
