use ackstream_core::{Nack, Refusal};

use crate::workbench::{Workbench, ms};

#[test]
fn a_consumer_never_holds_more_messages_than_its_window() {
    let mut bench = Workbench::new();
    let consumer = bench.attach_with(0, 2, u64::MAX);
    bench.publish(0, 5);
    assert_eq!(bench.take_all(0, consumer), [(1, 1), (2, 1)]);
    bench.ack(1, 2);
    assert_eq!(bench.take_all(1, consumer), [(3, 1)]);
}

#[test]
fn a_consumer_never_holds_more_bytes_than_its_window() {
    let mut bench = Workbench::new();
    let consumer = bench.attach_with(0, 100, 10);
    for size in [4, 6, 1] {
        bench.publish_sized(0, size);
    }
    assert_eq!(bench.take_all(0, consumer), [(1, 1), (2, 1)]);
    bench.ack(1, 1);
    assert_eq!(bench.take_all(1, consumer), [(3, 1)]);
}

#[test]
fn a_message_larger_than_the_window_is_delivered_alone() {
    let mut bench = Workbench::new();
    let consumer = bench.attach_with(0, 100, 10);
    for size in [1, 50, 1] {
        bench.publish_sized(0, size);
    }
    assert_eq!(bench.take_all(0, consumer), [(1, 1)], "no message overtakes the large one");
    bench.ack(1, 1);
    assert_eq!(bench.take_all(1, consumer), [(2, 1)]);
    bench.ack(2, 2);
    assert_eq!(bench.take_all(2, consumer), [(3, 1)]);
}

#[test]
fn every_end_of_a_delivery_gives_its_room_back() {
    let mut bench = Workbench::new();
    let consumer = bench.attach_with(0, 1, u64::MAX);
    bench.publish(0, 1);
    bench.take(0, consumer).unwrap();
    assert_eq!(bench.take_all(100, consumer), [(1, 2)], "expired");
    bench.nack(110, consumer, 1, Nack { delay: Some(ms(0)), drop: false, release: false });
    assert_eq!(bench.take_all(110, consumer), [(1, 3)], "nacked");
    bench.ack(120, 1);
    bench.publish(120, 1);
    assert_eq!(bench.take_all(120, consumer), [(2, 1)], "acked");
}

#[test]
fn consumers_of_a_subscription_share_its_messages() {
    let mut bench = Workbench::new();
    let (one, other) = (bench.attach_with(0, 2, u64::MAX), bench.attach(0));
    bench.publish(0, 5);
    assert_eq!(bench.take_all(0, one), [(1, 1), (2, 1)]);
    assert_eq!(bench.take_all(0, other), [(3, 1), (4, 1), (5, 1)]);
}

#[test]
fn a_full_backlog_refuses_by_messages() {
    let mut bench = Workbench::with(|policy| policy.max_backlog_messages = 2);
    bench.publish(0, 2);
    assert_eq!(bench.subscription.check_room(0, Workbench::time(0)), Err(Refusal::TooManyMessages { max: 2 }));
    let consumer = bench.attach(0);
    bench.take(0, consumer);
    assert!(bench.subscription.check_room(0, Workbench::time(0)).is_err(), "an outstanding message is not settled");
    bench.ack(0, 1);
    assert_eq!(bench.subscription.check_room(0, Workbench::time(0)), Ok(()));
}

#[test]
fn a_full_backlog_refuses_by_bytes() {
    let mut bench = Workbench::with(|policy| policy.max_backlog_bytes = 10);
    bench.publish_sized(0, 6);
    assert_eq!(bench.subscription.check_room(5, Workbench::time(0)), Err(Refusal::TooManyBytes { max: 10 }));
    assert_eq!(bench.subscription.check_room(4, Workbench::time(0)), Ok(()));
}

#[test]
fn room_is_made_by_the_drops_that_are_due() {
    let mut bench = Workbench::with(|policy| (policy.max_backlog_messages, policy.max_retries) = (1, Some(0)));
    let consumer = bench.attach(0);
    bench.publish(0, 1);
    bench.take(0, consumer);
    assert_eq!(bench.subscription.check_room(1, Workbench::time(100)), Ok(()));
}

#[test]
fn the_oldest_unsettled_message_is_known_by_when_it_was_accepted() {
    let mut bench = Workbench::new();
    assert_eq!(bench.subscription.oldest_accepted_at(), None);
    let consumer = bench.attach(0);
    for at in [10, 20, 30] {
        bench.publish(at, 100);
    }
    bench.take_all(30, consumer);
    for id in (1..=150).rev() {
        bench.ack(40, id);
    }
    assert_eq!(bench.subscription.oldest_accepted_at(), Some(Workbench::time(20)));
    for id in 151..=300 {
        bench.ack(40, id);
    }
    assert_eq!(bench.subscription.oldest_accepted_at(), None);
}

#[test]
fn the_oldest_unsettled_message_is_known_after_all_before_it_are_gone() {
    let (mut bench, _) = Workbench::new().with_one_outstanding();
    bench.ack(1, 1);
    assert_eq!(bench.subscription.oldest_accepted_at(), None);
    bench.publish(4, 1);
    assert_eq!(bench.subscription.oldest_accepted_at(), Some(Workbench::time(4)));
}

#[test]
fn the_size_of_a_consumers_next_delivery_can_be_asked() {
    let mut bench = Workbench::new();
    let consumer = bench.attach_with(0, 1_000, 10);
    assert_eq!(bench.subscription.next_size(consumer), None);

    bench.publish_sized(0, 7);
    bench.publish_sized(0, 3);
    bench.publish_sized(0, 1);

    assert_eq!(bench.subscription.next_size(consumer), Some(7));
    bench.take(0, consumer);
    assert_eq!(bench.subscription.next_size(consumer), Some(3));
    bench.take(0, consumer);
    assert_eq!(bench.subscription.next_size(consumer), None, "its window has no room for it");
}
