//! What is given up goes to the dead-letter topic, where the policy has one.

use ackstream_core::{DropReason, Leave, MessageId, Nack, Refusal};

use crate::workbench::{Workbench, ms};

const REJECT: Nack = Nack { delay: None, drop: true, release: false };

/// No retries, ack deadline 100 ms, and a dead-letter topic.
fn bench() -> Workbench {
    Workbench::with(|policy| (policy.max_retries, policy.dead_letters) = (Some(0), true))
}

#[test]
fn what_has_no_retry_left_is_dropped_when_the_dead_letter_topic_has_taken_it() {
    let (mut bench, _) = bench().with_one_outstanding();
    bench.advance(100);
    assert_eq!(bench.events(), ["100 ended 1 Expired", "100 given up 1 MaxRetries"]);
    let taken = bench.offer(150, true);
    assert_eq!(taken, Some(true));
    assert_eq!(bench.events(), ["150 offered 1 taken", "150 dropped 1 MaxRetries"]);
    assert_eq!((bench.subscription.counts().dropped, bench.subscription.backlog().messages()), (1, 0));
}

#[test]
fn what_is_rejected_goes_the_same_way() {
    let (mut bench, consumer) = bench().with_one_outstanding();
    bench.nack(10, consumer, 1, REJECT);
    bench.offer(10, true);
    assert_eq!(
        bench.events(),
        ["10 ended 1 Nacked", "10 given up 1 Rejected", "10 offered 1 taken", "10 dropped 1 Rejected"]
    );
}

#[test]
fn so_does_what_kills_its_consumers() {
    let mut bench = Workbench::with(|policy| {
        policy.dead_letters = true;
        policy.max_interruptions = Some(0);
    });
    bench.publish(0, 1);
    let consumer = bench.attach(0);
    bench.take(0, consumer);

    bench.detach(10, consumer, Leave::Broken);
    bench.offer(10, true);

    assert!(bench.events().contains(&"10 dropped 1 MaxInterruptions".to_owned()));
}

#[test]
fn a_message_that_is_given_up_counts_as_delayed_and_is_delivered_to_nobody() {
    let (mut bench, consumer) = bench().with_one_outstanding();
    bench.advance(100);
    let backlog = bench.subscription.backlog();
    assert_eq!((backlog.ready, backlog.delayed, backlog.outstanding), (0, 1, 0));
    assert_eq!(bench.take(100, consumer), None);
}

#[test]
fn an_offer_is_due_at_once() {
    let (mut bench, _) = bench().with_one_outstanding();
    bench.advance(120);
    assert_eq!(bench.next_due(), Some(100), "when it was given up");
    bench.offer(120, true);
    assert_eq!(bench.next_due(), None);
}

#[test]
fn what_the_dead_letter_topic_refuses_is_offered_again_after_one_ack_deadline() {
    let (mut bench, _) = bench().with_one_outstanding();
    bench.advance(100);
    bench.events();
    assert_eq!(bench.offer(110, false), Some(false));
    assert_eq!(bench.offer(110, true), None, "it is not on offer");
    assert_eq!(bench.next_due(), Some(210));
    assert_eq!(bench.offer(209, true), None);
    assert_eq!(bench.offer(210, true), Some(true));
    assert_eq!(
        bench.events(),
        ["110 offered 1 refused", "210 due 1", "210 offered 1 taken", "210 dropped 1 MaxRetries"]
    );
}

#[test]
fn what_waits_for_the_dead_letter_topic_fills_the_backlog() {
    let mut bench = Workbench::with(|policy| {
        (policy.max_retries, policy.dead_letters, policy.max_backlog_messages) = (Some(0), true, 1);
    });
    let consumer = bench.attach(0);
    bench.publish(0, 1);
    bench.take(0, consumer);
    bench.advance(100);
    bench.offer(100, false);
    assert_eq!(
        bench.subscription.check_room(1, Workbench::time(100)),
        Err(Refusal::TooManyMessages { max: 1 }),
        "nothing is lost to make room"
    );
}

#[test]
fn a_late_ack_wins_while_the_message_is_on_offer() {
    let (mut bench, _) = bench().with_one_outstanding();
    bench.advance(100);
    bench.events();
    bench.ack(110, 1);
    assert_eq!(bench.events(), ["110 acked 1 late"]);
    assert_eq!(bench.offer(110, true), None);
}

#[test]
fn a_late_ack_wins_while_the_message_waits_to_be_offered_again() {
    let (mut bench, _) = bench().with_one_outstanding();
    bench.advance(100);
    bench.offer(100, false);
    bench.events();
    bench.ack_attempt(110, 1, 1);
    assert_eq!(bench.events(), ["110 acked 1 late"]);
    assert_eq!(bench.next_due(), None);
}

#[test]
fn a_late_ack_wins_at_the_very_instant_at_which_the_last_delivery_expires() {
    let mut bench = bench();
    let consumer = bench.attach_with(0, u32::MAX, u64::MAX);
    bench.publish(0, 3_000);
    bench.take_all(0, consumer);
    bench.events();
    bench.ack(100, 3_000); // no pass has come to it
    let events = bench.events();
    let of_the_last = events.iter().filter(|line| line.contains(" 3000")).collect::<Vec<_>>();
    assert_eq!(of_the_last, ["100 ended 3000 Expired", "100 given up 3000 MaxRetries", "100 acked 3000 late"]);
}

#[test]
fn nobody_holds_what_is_given_up() {
    let (mut bench, consumer) = bench().with_one_outstanding();
    bench.advance(100);
    bench.events();
    bench.nack(110, consumer, 1, REJECT);
    bench.extend(110, consumer, 1, ms(50));
    bench.ack_attempt(110, 1, 2);
    assert_eq!(
        bench.events(),
        ["110 ignored Nack 1 NotHeld", "110 ignored Extend 1 NotHeld", "110 ignored Ack 1 Unknown"]
    );
}

#[test]
fn what_was_given_up_first_is_offered_first_and_each_once() {
    let mut bench = bench();
    let consumer = bench.attach(0);
    bench.publish(0, 3);
    bench.take_all(0, consumer);
    bench.nack(10, consumer, 2, REJECT);
    bench.advance(100);
    let mut offered = Vec::new();
    while bench
        .subscription
        .offer_dead_letter(Workbench::time(100), |message, reason| {
            offered.push((message.id, reason));
            message.id != MessageId(1)
        })
        .is_some()
    {}
    assert_eq!(
        offered,
        [
            (MessageId(2), DropReason::Rejected),
            (MessageId(1), DropReason::MaxRetries),
            (MessageId(3), DropReason::MaxRetries)
        ]
    );
    assert_eq!(bench.subscription.backlog().delayed, 1);
}

#[test]
fn a_dead_letter_shows_its_history() {
    let mut bench = Workbench::with(|policy| (policy.max_retries, policy.dead_letters) = (Some(1), true));
    let consumer = bench.attach(0);
    bench.publish(0, 1);
    bench.take(0, consumer);
    bench.nack(30, consumer, 1, Nack { delay: Some(ms(0)), drop: false, release: false });
    bench.take(30, consumer);
    bench.advance(130);
    let mut seen = None;
    bench.subscription.offer_dead_letter(Workbench::time(130), |message, _| {
        let attempts: Vec<_> = message.history.iter().map(|attempt| format!("{:?}", attempt.outcome)).collect();
        seen = Some((message.attempts, attempts));
        true
    });
    assert_eq!(seen, Some((2, vec!["Nacked".to_owned(), "Expired".to_owned()])));
}

#[test]
fn a_subscription_that_drains_may_leave_what_it_has_given_up() {
    let (mut bench, _) = bench().with_one_outstanding();
    bench.subscription.drain(Workbench::time(10));
    bench.advance(100);
    bench.offer(100, false);
    assert!(bench.subscription.is_drained());
    assert_eq!((bench.subscription.counts().dropped, bench.subscription.backlog().messages()), (0, 1), "it is left");
}
