use std::time::Duration;

use ackstream_core::{Backoff, Leave, Nack, PASS};

use crate::workbench::{Workbench, ms};

#[test]
fn a_delivery_expires_at_its_deadline_and_not_before() {
    let (mut bench, _) = Workbench::new().with_one_outstanding();
    assert_eq!(bench.next_due(), Some(100));
    bench.advance(99);
    assert_eq!(bench.events(), [""; 0]);
    bench.advance(100);
    assert_eq!(bench.events(), ["100 ended 1 Expired", "100 requeued 1 for 0"]);
}

#[test]
fn the_deadline_starts_when_the_delivery_is_handed_over() {
    let mut bench = Workbench::new();
    bench.publish(0, 1);
    let consumer = bench.attach(50);
    let delivery = bench.take(70, consumer).unwrap();
    assert_eq!(delivery.deadline, Workbench::time(170));
    assert_eq!(delivery.accepted_at, Workbench::time(0));
}

#[test]
fn effects_happen_at_the_instant_they_were_due_however_late_the_timer_wakes() {
    let mut bench = Workbench::with(|policy| {
        policy.backoff = Backoff { minimum: ms(30), maximum: ms(30) };
    });
    let consumer = bench.attach(0);
    bench.publish(0, 2);
    bench.take(0, consumer);
    bench.take(20, consumer);
    bench.events();
    bench.advance(5_000);
    assert_eq!(
        bench.events(),
        [
            "100 ended 1 Expired",
            "100 requeued 1 for 30",
            "120 ended 2 Expired",
            "120 requeued 2 for 30",
            "130 due 1",
            "150 due 2",
        ]
    );
}

#[test]
fn effects_that_are_due_come_before_an_input_of_the_same_instant() {
    let (mut bench, consumer) = Workbench::new().with_one_outstanding();
    bench.nack(100, consumer, 1, Nack::default());
    assert_eq!(bench.events(), ["100 ended 1 Expired", "100 requeued 1 for 0", "100 ignored Nack 1 NotHeld"]);
}

#[test]
fn time_never_goes_back() {
    let (mut bench, _) = Workbench::new().with_one_outstanding();
    bench.advance(90);
    bench.ack(20, 1);
    assert_eq!(bench.events(), ["90 ended 1 Acked", "90 acked 1"]);
}

#[test]
fn a_message_is_sent_once_and_then_once_for_each_retry_and_dropped_after_the_last() {
    let (mut bench, consumer) = Workbench::new().with_one_outstanding();
    for (at, attempt) in [(100, 2), (200, 3), (300, 4)] {
        assert_eq!(bench.take_all(at, consumer), [(1, attempt)]);
    }
    bench.events();
    bench.advance(400);
    assert_eq!(bench.events(), ["400 ended 1 Expired", "400 dropped 1 MaxRetries"]);
    assert_eq!(bench.subscription.counts().sent, 4);
}

#[test]
fn an_unlimited_budget_never_ends() {
    let (mut bench, consumer) = Workbench::with(|policy| policy.max_retries = None).with_one_outstanding();
    for attempt in 2..=2_000 {
        assert_eq!(bench.take_all(u64::from(attempt - 1) * 100, consumer), [(1, attempt)]);
    }
}

#[test]
fn the_wait_doubles_with_each_attempt_up_to_the_maximum() {
    let backoff = Backoff { minimum: ms(10), maximum: ms(35) };
    let waits: Vec<_> = (0..=5).map(|failures| backoff.after(failures).as_millis()).collect();
    assert_eq!(waits, [0, 10, 20, 35, 35, 35]);
    assert_eq!(backoff.after(u32::MAX), ms(35));
    let from_nothing = Backoff { minimum: Duration::from_nanos(1), maximum: Duration::from_hours(24) };
    assert_eq!(from_nothing.after(41), Duration::from_nanos(1 << 40), "however small it begins");
    assert_eq!(Backoff::default().after(8), Duration::ZERO);
}

#[test]
fn an_expired_delivery_waits_out_the_backoff() {
    let policy = |policy: &mut ackstream_core::Policy| policy.backoff = Backoff { minimum: ms(40), maximum: ms(60) };
    let (mut bench, consumer) = Workbench::with(policy).with_one_outstanding();
    assert_eq!(bench.take_all(139, consumer), []);
    assert_eq!(bench.take_all(140, consumer), [(1, 2)]);
    assert_eq!(bench.take_all(299, consumer), []);
    assert_eq!(bench.take_all(300, consumer), [(1, 3)]);
}

#[test]
fn extend_sets_the_deadline_from_now_on() {
    let (mut bench, consumer) = Workbench::new().with_one_outstanding();
    bench.extend(90, consumer, 1, ms(300));
    assert_eq!(bench.events(), ["90 extended 1 to 390"]);
    bench.advance(389);
    bench.extend(389, consumer, 1, ms(5));
    assert_eq!(bench.next_due(), Some(394), "an extend may shorten too");
    bench.advance(394);
    assert_eq!(bench.events()[1..], ["394 ended 1 Expired", "394 requeued 1 for 0"]);
}

#[test]
fn an_extended_delivery_can_be_acked_nacked_and_released() {
    let mut bench = Workbench::new();
    let consumer = bench.attach(0);
    bench.publish(0, 3);
    bench.take_all(0, consumer);
    for id in 1..=3 {
        bench.extend(50, consumer, id, ms(500));
    }
    bench.events();
    bench.ack(200, 1);
    bench.nack(200, consumer, 2, Nack { delay: None, drop: true, release: false });
    bench.detach(200, consumer, Leave::Clean);
    assert_eq!(
        bench.events(),
        [
            "200 ended 1 Acked",
            "200 acked 1",
            "200 ended 2 Nacked",
            "200 dropped 2 Rejected",
            "200 ended 3 Released(Left)",
            "200 requeued 3 for 0",
            "200 detached Clean",
        ]
    );
}

#[test]
fn no_delivery_lasts_longer_than_an_hour_after_its_hand_over() {
    let (mut bench, consumer) = Workbench::new().with_one_outstanding();
    bench.extend(50, consumer, 1, Duration::from_hours(5));
    assert_eq!(bench.next_due(), Some(3_600_000));
    bench.extend(3_599_000, consumer, 1, ms(60_000));
    assert_eq!(bench.next_due(), Some(3_600_000));
}

#[test]
fn redeliveries_go_before_first_deliveries_in_the_order_in_which_they_became_due() {
    let mut bench = Workbench::new();
    let consumer = bench.attach(0);
    bench.publish(0, 4);
    for at in [0, 10, 20] {
        bench.take(at, consumer);
    }
    bench.nack(25, consumer, 1, Nack { delay: Some(ms(200)), drop: false, release: false }); // due at 225
    bench.publish(25, 1);
    assert_eq!(bench.take_all(500, consumer), [(2, 2), (3, 2), (1, 2), (4, 1), (5, 1)]);
}

#[test]
fn one_pass_is_bounded_and_the_rest_is_due_at_once() {
    let mut bench = Workbench::new();
    let consumer = bench.attach_with(0, u32::MAX, u64::MAX);
    bench.publish(0, 3 * PASS as u64);
    bench.take_all(0, consumer);
    bench.events();
    bench.advance(100);
    assert_eq!(bench.events().len(), 2 * PASS, "an end and a requeue for each");
    assert_eq!(bench.next_due(), Some(100));
}

#[test]
fn no_first_delivery_overtakes_a_redelivery_that_the_pass_has_not_come_to() {
    let mut bench = Workbench::with(|policy| policy.max_retries = Some(1));
    let consumer = bench.attach_with(0, u32::MAX, u64::MAX);
    let doomed = 3 * PASS as u64;
    bench.publish(0, doomed + 1);
    // All but the last message are in their last attempt, and all expire together.
    bench.take_all(0, consumer);
    bench.ack(0, doomed + 1);
    assert_eq!(bench.take_all(100, consumer).len() as u64, doomed);
    bench.publish(100, 1);
    let late = bench.take(100, consumer).unwrap();
    assert_eq!((late.id.0, late.attempt), (doomed + 2, 1));
    bench.publish(100, 1);
    // At 200 all the doomed are dropped, a pass at a time, and then the late one is due again: it goes before the new one.
    let mut asked = 0;
    let next = loop {
        asked += 1;
        if let Some(delivery) = bench.take(200, consumer) {
            break delivery;
        }
        assert_eq!(bench.next_due(), Some(200), "the rest is due at once");
    };
    assert_eq!((next.id.0, next.attempt), (doomed + 2, 2));
    assert!(asked > 1, "one pass was not enough");
}

#[test]
fn what_an_input_makes_ready_waits_its_turn_behind_effects_that_the_pass_has_not_come_to() {
    for leave in [None, Some(Leave::Clean), Some(Leave::Broken)] {
        let mut bench = Workbench::new();
        let (one, other) = (bench.attach_with(0, u32::MAX, u64::MAX), bench.attach(0));
        let count = 3 * PASS as u64;
        bench.publish(0, count + 1);
        for _ in 0..count {
            bench.take(0, one);
        }
        bench.take(50, other);
        bench.heard(51, one); // it is not unresponsive when its deliveries expire
        match leave {
            None => {
                bench.nack(120, other, count + 1, Nack { delay: Some(Duration::ZERO), drop: false, release: false });
            }
            Some(leave) => bench.detach(120, other, leave),
        }
        let again = bench.take_all(120, one);
        assert_eq!(again, (1..=count + 1).map(|id| (id, 2)).collect::<Vec<_>>(), "{leave:?}");
    }
}

#[test]
fn deliveries_that_expire_together_come_again_in_order_however_many() {
    let count = 100_000;
    let mut bench = Workbench::new();
    let consumer = bench.attach_with(0, u32::MAX, u64::MAX);
    bench.publish(0, count);
    bench.take_all(0, consumer);
    let again = bench.take_all(100, consumer);
    assert_eq!(again, (1..=count).map(|id| (id, 2)).collect::<Vec<_>>());
}
