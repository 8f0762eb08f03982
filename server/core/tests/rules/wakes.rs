use ackstream_core::{ConsumerCounts, ConsumerId, Leave, PASS};

use crate::workbench::Workbench;

/// Consumers that have asked and found nothing.
fn waiting<const N: usize>(bench: &mut Workbench) -> [ConsumerId; N] {
    std::array::from_fn(|_| {
        let consumer = bench.attach(0);
        assert_eq!(bench.take(0, consumer), None);
        consumer
    })
}

#[test]
fn a_message_wakes_one_waiting_consumer() {
    let mut bench = Workbench::new();
    let [first, _, _] = waiting(&mut bench);
    bench.publish(1, 1);
    assert_eq!(bench.wakes(), [first]);
}

#[test]
fn as_many_are_woken_as_there_are_messages() {
    let mut bench = Workbench::new();
    let [first, second, _] = waiting(&mut bench);
    bench.publish(1, 2);
    assert_eq!(bench.wakes(), [first, second]);
}

#[test]
fn consumers_take_turns() {
    let mut bench = Workbench::new();
    let consumers: [_; 3] = waiting(&mut bench);
    for round in 0..6 {
        bench.publish(round, 1);
        let woken = bench.wakes();
        assert_eq!(woken, [consumers[usize::try_from(round).unwrap() % 3]]);
        let delivery = bench.take(round, woken[0]).unwrap();
        bench.ack(round, delivery.id.0);
        assert_eq!(bench.take(round, woken[0]), None);
    }
}

#[test]
fn asking_again_in_vain_keeps_the_turn() {
    let mut bench = Workbench::new();
    let [first, second] = waiting(&mut bench);
    assert_eq!(bench.take(1, first), None);
    bench.publish(2, 2);
    assert_eq!(bench.wakes(), [first, second]);
}

#[test]
fn a_ready_message_belongs_to_whoever_asks_first() {
    let mut bench = Workbench::new();
    let [woken] = waiting(&mut bench);
    bench.publish(1, 1);
    assert_eq!(bench.wakes(), [woken]);
    let stranger = bench.attach(1);
    assert!(bench.take(1, stranger).is_some());
    assert_eq!(bench.take(1, woken), None);
}

#[test]
fn where_the_woken_do_not_come_the_next_is_woken_after_5_ms() {
    let mut bench = Workbench::new();
    let [stuck, next] = waiting(&mut bench);
    bench.publish(10, 1);
    assert_eq!(bench.wakes(), [stuck]);
    assert_eq!(bench.next_due(), Some(15));
    bench.advance(14);
    assert_eq!(bench.wakes(), []);
    bench.advance(15);
    assert_eq!(bench.wakes(), [next]);
}

#[test]
fn a_stuck_consumer_can_still_come_later() {
    let mut bench = Workbench::new();
    let [stuck, next] = waiting(&mut bench);
    bench.publish(10, 1);
    bench.advance(15);
    assert!(bench.take(20, stuck).is_some());
    assert_eq!(bench.take(21, next), None);
    bench.wakes();
    bench.publish(30, 1);
    assert_eq!(bench.wakes(), [next]);
}

#[test]
fn nobody_is_timed_when_there_is_no_other_to_wake() {
    let mut bench = Workbench::new();
    let [_only] = waiting(&mut bench);
    bench.publish(10, 1);
    assert_eq!(bench.next_due(), None);
}

#[test]
fn when_a_woken_consumer_leaves_another_is_woken() {
    let mut bench = Workbench::new();
    let [first, second] = waiting(&mut bench);
    bench.publish(1, 1);
    bench.wakes();
    bench.detach(1, first, Leave::Broken);
    assert_eq!(bench.wakes(), [second]);
}

#[test]
fn a_full_consumer_is_woken_when_it_has_room_again() {
    let mut bench = Workbench::new();
    let consumer = bench.attach_with(0, 1, u64::MAX);
    bench.publish(0, 2);
    bench.take(0, consumer);
    assert_eq!(bench.take(0, consumer), None);
    assert_eq!(bench.subscription.consumer_counts(), ConsumerCounts { full: 1, ..ConsumerCounts::default() });
    assert_eq!(bench.wakes(), []);
    bench.ack(1, 1);
    assert_eq!(bench.wakes(), [consumer]);
}

#[test]
fn when_a_woken_consumer_has_no_room_another_is_woken() {
    let mut bench = Workbench::new();
    let small = bench.attach_with(0, 10, 5);
    bench.publish_sized(0, 4);
    bench.take(0, small);
    assert_eq!(bench.take(0, small), None);
    let large = bench.attach(0);
    assert_eq!(bench.take(0, large), None);
    bench.publish_sized(1, 4);
    assert_eq!(bench.wakes(), [small]);
    assert_eq!(bench.take(1, small), None);
    assert_eq!(bench.wakes(), [large]);
}

#[test]
fn a_consumer_that_was_short_of_bytes_is_woken_when_the_next_message_fits() {
    let mut bench = Workbench::new();
    let small = bench.attach_with(0, 10, 100);
    for size in [50, 90, 10] {
        bench.publish_sized(0, size);
    }
    bench.take(0, small);
    assert_eq!(bench.take(0, small), None, "50 and 90 are more than 100");
    let large = bench.attach(0);
    bench.take(0, large);
    assert_eq!(bench.wakes(), [small], "50 and 10 are not");
}

#[test]
fn a_late_ack_of_the_next_message_wakes_whoever_has_room_for_the_one_after_it() {
    let mut bench = Workbench::new();
    let (small, large) = (bench.attach_with(0, 10, 100), bench.attach(0));
    for size in [90, 50, 10] {
        bench.publish_sized(0, size);
    }
    bench.take(0, large);
    bench.take(50, small);
    bench.advance(100);
    assert_eq!(bench.take(100, small), None, "50 and 90 are more than 100");
    bench.wakes();
    bench.ack(100, 1);
    assert_eq!(bench.wakes(), [small]);
}

#[test]
fn an_empty_message_does_not_wake_whoever_holds_more_than_its_window() {
    let mut bench = Workbench::new();
    let small = bench.attach_with(0, 10, 100);
    bench.publish_sized(0, 500);
    bench.publish_sized(0, 0);
    bench.take(0, small);
    assert_eq!(bench.take(0, small), None);
    bench.attach(1);
    assert_eq!(bench.wakes(), []);
}

#[test]
fn an_expiry_wakes() {
    let (mut bench, consumer) = Workbench::new().with_one_outstanding();
    assert_eq!(bench.take(0, consumer), None);
    bench.advance(100);
    assert_eq!(bench.wakes(), [consumer]);
}

#[test]
fn what_a_leaving_consumer_held_wakes_the_others() {
    let (mut bench, holder) = Workbench::new().with_one_outstanding();
    let other = bench.attach(0);
    assert_eq!(bench.take(0, other), None);
    bench.detach(1, holder, Leave::Clean);
    assert_eq!(bench.wakes(), [other]);
}

#[test]
fn nobody_is_woken_while_draining() {
    let mut bench = Workbench::new();
    let [_waiting, taker] = waiting(&mut bench);
    bench.publish(0, 1);
    bench.wakes();
    bench.take(0, taker);
    bench.subscription.drain(Workbench::time(1));
    bench.advance(100);
    assert_eq!(bench.wakes(), []);
}

#[test]
fn a_consumer_is_awaited_while_a_message_is_ready_for_it_and_it_does_not_come() {
    let mut bench = Workbench::new();
    let [woken, next] = waiting(&mut bench);
    let busy = bench.attach_with(0, 2, u64::MAX);
    let awaited = |bench: &Workbench| [woken, next, busy].map(|consumer| bench.subscription.is_awaited(consumer));
    assert_eq!(awaited(&bench), [false; 3], "nothing is ready");
    bench.publish(1, 1);
    bench.wakes();
    assert_eq!(awaited(&bench), [true, false, true], "whoever waits for its turn is not");
    assert!(bench.take(1, woken).is_some());
    assert_eq!(awaited(&bench), [false; 3], "it came");
    bench.publish(2, 9);
    bench.wakes();
    assert_eq!(awaited(&bench), [true, true, true]);
    for _ in 0..2 {
        bench.take(2, busy).unwrap();
    }
    assert_eq!(awaited(&bench), [true, true, false], "its window is full");
    assert_eq!(bench.take(2, busy), None);
    assert_eq!(awaited(&bench), [true, true, false]);
}

#[test]
fn who_comes_late_does_not_come_for_whoever_was_woken_in_its_place() {
    let mut bench = Workbench::new();
    let [late, next, _] = waiting(&mut bench);
    bench.publish(0, 1);
    assert_eq!(bench.wakes(), [late]);
    bench.advance(5);
    assert_eq!(bench.wakes(), [next], "in its place");
    assert!(bench.take(6, late).is_some());
    bench.publish(7, 1);
    assert_eq!(bench.wakes(), [], "the one message is for the consumer that was woken and is about to come");
}

#[test]
fn whoever_waits_is_woken_when_the_last_effect_that_no_pass_came_to_is_settled_by_an_ack() {
    // Three passes and one effect more: to publish takes two of them, to ack the third.
    let last = 3 * PASS as u64 + 1;
    let mut bench = Workbench::with(|policy| policy.max_retries = Some(0));
    bench.publish(0, last);
    let hoarder = bench.attach_with(0, u32::MAX, u64::MAX);
    for id in 1..=last {
        assert_eq!(bench.take(0, hoarder).map(|delivery| delivery.id.0), Some(id));
    }
    let [waits] = waiting(&mut bench);

    bench.publish(100, 1);
    assert_eq!(bench.wakes(), [], "an effect that is due may bring what goes first");
    bench.ack(100, last);

    assert_eq!(bench.wakes(), [waits]);
}
