use ackstream_core::{Leave, Nack};

use crate::workbench::{Workbench, ms};

#[test]
fn a_release_costs_nothing_and_others_get_the_message_at_once() {
    let (mut bench, giver) = Workbench::with(|policy| policy.max_retries = Some(0)).with_one_outstanding();
    let other = bench.attach(0);
    bench.events();

    bench.release(10, giver, 1);

    assert_eq!(bench.events(), ["10 ended 1 Released(GivenBack)", "10 requeued 1 for 0"]);
    let delivery = bench.take(10, other).expect("it is ready");
    assert_eq!((delivery.attempt, delivery.failures, delivery.interruptions), (2, 0, 0));
}

#[test]
fn whoever_released_a_message_passes_it_and_takes_the_next() {
    let (mut bench, giver) = Workbench::new().with_one_outstanding();
    bench.publish(0, 1);

    bench.release(10, giver, 1);

    assert_eq!(bench.take_all(10, giver), [(2, 1)]);
    assert_eq!(bench.take_all(109, giver), []);
}

#[test]
fn whoever_released_a_message_is_woken_for_it_after_one_ack_deadline() {
    let (mut bench, giver) = Workbench::new().with_one_outstanding();
    bench.release(10, giver, 1);
    assert_eq!(bench.take_all(10, giver), []);
    assert_eq!(bench.wakes(), []);
    assert_eq!(bench.next_due(), Some(110));

    bench.advance(110);

    assert_eq!(bench.wakes(), [giver]);
    assert_eq!(bench.take_all(110, giver), [(1, 2)]);
}

#[test]
fn of_two_that_release_each_may_have_what_the_other_gave_back() {
    let mut bench = Workbench::new();
    let [one, other] = [bench.attach(0), bench.attach(0)];
    bench.publish(0, 2);
    bench.take(0, one);
    bench.take(0, other);

    bench.release(10, one, 1);
    bench.release(11, other, 2);

    assert_eq!(bench.take_all(12, one), [(2, 2)]);
    assert_eq!(bench.take_all(12, other), [(1, 2)]);
}

#[test]
fn what_was_released_comes_after_other_redeliveries_and_before_first_deliveries() {
    let mut bench = Workbench::new();
    let [giver, other] = [bench.attach(0), bench.attach(0)];
    bench.publish(0, 2);
    bench.take_all(0, giver);
    bench.publish(5, 1);

    bench.release(10, giver, 1);
    bench.nack(20, giver, 2, Nack { delay: Some(ms(0)), ..Nack::default() });

    assert_eq!(bench.take_all(20, other), [(2, 2), (1, 2), (3, 1)]);
}

#[test]
fn the_bar_ends_when_whoever_released_leaves() {
    let (mut bench, giver) = Workbench::new().with_one_outstanding();
    bench.release(10, giver, 1);
    let next = bench.attach(10);
    bench.detach(20, giver, Leave::Clean);

    bench.nack(20, next, 1, Nack::default());

    assert_eq!(bench.take_all(20, next), [(1, 2)]);
}

#[test]
fn a_late_ack_settles_a_released_message() {
    let (mut bench, giver) = Workbench::new().with_one_outstanding();
    bench.release(10, giver, 1);

    bench.ack(20, 1);

    assert_eq!(bench.events().last().unwrap(), "20 acked 1 late");
    assert_eq!(bench.next_due(), None);
}

#[test]
fn a_release_goes_before_delay_and_drop() {
    let (mut bench, giver) = Workbench::new().with_one_outstanding();

    bench.nack(10, giver, 1, Nack { delay: Some(ms(500)), drop: true, release: true });

    assert_eq!(bench.events(), ["10 ended 1 Released(GivenBack)", "10 requeued 1 for 0"]);
}

#[test]
fn a_message_alone_that_is_released_waits_for_one_ack_deadline() {
    let mut bench = Workbench::new();
    bench.publish(0, 1);
    for at in [0, 0] {
        let victim = bench.attach(at);
        bench.take(at, victim);
        bench.detach(at, victim, Leave::Broken);
    }
    let giver = bench.attach(100);
    assert_eq!(bench.take_all(100, giver), [(1, 3)]);
    bench.events();

    bench.release(110, giver, 1);

    assert_eq!(bench.events(), ["110 ended 1 Released(GivenBack)", "110 requeued 1 for 100"]);
}
