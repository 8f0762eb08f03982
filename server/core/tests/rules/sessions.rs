use ackstream_core::{Leave, MessageId};

use crate::workbench::{Workbench, ms};

/// A consumer with one handler that holds messages 1 to 4 since 0.
fn with_four_held() -> (Workbench, ackstream_core::ConsumerId) {
    let mut bench = Workbench::new();
    bench.publish(0, 4);
    let consumer = bench.attach_handlers(0, 1);
    bench.take_all(0, consumer);
    bench.events();
    (bench, consumer)
}

#[test]
fn a_consumer_that_resumes_holds_what_it_held_and_each_has_one_ack_deadline_more() {
    let (mut bench, consumer) = with_four_held();
    bench.suspend(50, consumer, Leave::Broken, 2_000);

    assert!(bench.resume(1_000, consumer, &[1, 2, 3, 4]));

    let extended: Vec<_> = (1..=4).map(|id| format!("1000 extended {id} to 1100")).collect();
    assert_eq!(bench.events(), extended);
    bench.subscription.nack(consumer, MessageId(1), Some(1), ackstream_core::Nack::default(), Workbench::time(1_010));
    assert_eq!(bench.events()[0], "1010 ended 1 Nacked", "it is the same delivery");
}

#[test]
fn no_deadline_passes_while_a_consumer_is_suspended() {
    let (mut bench, consumer) = with_four_held();

    bench.suspend(50, consumer, Leave::Broken, 2_000);

    assert_eq!(bench.next_due(), Some(2_000));
    bench.advance(1_999);
    assert_eq!(bench.events(), [""; 0]);
    assert_eq!(bench.subscription.backlog().outstanding, 4);
}

#[test]
fn a_delivery_that_had_expired_before_the_stream_broke_expires() {
    let (mut bench, consumer) = with_four_held();

    bench.suspend(100, consumer, Leave::Broken, 2_000);

    assert_eq!(bench.subscription.counts().ended.expired, 4);
}

#[test]
fn what_a_consumer_does_not_hold_any_more_when_it_resumes_is_released_at_once() {
    let (mut bench, consumer) = with_four_held();
    bench.suspend(50, consumer, Leave::Broken, 2_000);

    bench.resume(60, consumer, &[1, 4]);

    let events = bench.events();
    assert_eq!(events[1..3], ["60 ended 2 Released(NotReceived)", "60 requeued 2 for 0"]);
    assert_eq!(bench.take_all(60, consumer), [(2, 2), (3, 2)], "also for itself");
}

#[test]
fn where_nobody_resumes_the_end_of_the_grace_is_the_end_of_the_stream() {
    let (mut bench, consumer) = with_four_held();
    bench.suspend(50, consumer, Leave::Broken, 2_000);

    bench.advance(2_000);

    let ended = bench.subscription.counts().ended;
    assert_eq!((ended.interrupted, ended.released), (2, 2), "two were in progress when the stream broke");
    assert_eq!(bench.events().last().unwrap(), "2000 detached Broken");
    assert!(!bench.resume(2_000, consumer, &[1, 2, 3, 4]));
}

#[test]
fn a_stream_that_the_server_closed_and_nobody_resumes_interrupts_nothing() {
    let (mut bench, consumer) = with_four_held();
    bench.suspend(50, consumer, Leave::Closed, 2_000);

    bench.advance(2_000);

    assert_eq!(bench.subscription.counts().ended.released, 4);
}

#[test]
fn a_consumer_that_holds_nothing_can_resume() {
    let mut bench = Workbench::new();
    let consumer = bench.attach(0);
    bench.suspend(10, consumer, Leave::Broken, 2_000);

    assert!(bench.resume(20, consumer, &[]));

    bench.publish(20, 1);
    assert_eq!(bench.take_all(20, consumer), [(1, 1)]);
}

#[test]
fn a_suspended_consumer_gets_nothing_and_is_not_woken() {
    let mut bench = Workbench::new();
    let consumer = bench.attach(0);
    assert_eq!(bench.take(0, consumer), None);
    bench.suspend(10, consumer, Leave::Broken, 2_000);

    bench.publish(20, 1);

    assert_eq!(bench.wakes(), []);
    assert_eq!(bench.take(20, consumer), None);
}

#[test]
fn what_a_suspended_consumer_holds_can_be_acked_by_anybody_but_not_nacked() {
    let (mut bench, consumer) = with_four_held();
    bench.suspend(50, consumer, Leave::Broken, 2_000);

    bench.ack(60, 1);
    bench.nack(60, consumer, 2, ackstream_core::Nack::default());
    bench.extend(60, consumer, 3, ms(10));

    let told = ["60 ended 1 Acked", "60 acked 1", "60 ignored Nack 2 NotHeld", "60 ignored Extend 3 NotHeld"];
    assert_eq!(bench.events(), told);
}

#[test]
fn thirty_breaks_under_one_delivery_are_no_interruption_and_end_no_delivery() {
    let (mut bench, consumer) = Workbench::with(|policy| policy.max_interruptions = Some(0)).with_one_outstanding();

    for at in (10..30_010).step_by(1_000) {
        bench.suspend(at, consumer, Leave::Broken, at + 2_000);
        assert!(bench.resume(at + 900, consumer, &[1]));
        bench.extend(at + 950, consumer, 1, ms(100));
    }
    bench.subscription.ack(MessageId(1), Some(1), Workbench::time(30_000));

    let counts = bench.subscription.counts();
    assert_eq!((counts.sent, counts.acked, counts.ended.acked), (1, 1, 1));
}

#[test]
fn what_is_in_progress_stays_so_over_a_resume() {
    let (mut bench, consumer) = with_four_held();
    bench.suspend(10, consumer, Leave::Broken, 2_000);
    bench.resume(20, consumer, &[1, 2, 3, 4]);

    bench.detach(30, consumer, Leave::Broken);

    assert_eq!(bench.subscription.counts().ended.interrupted, 2);
    let events = bench.events();
    assert!(events.contains(&"30 ended 1 Interrupted".to_owned()), "the oldest: {events:?}");
}

#[test]
fn a_resumed_consumer_gets_nothing_new_while_it_holds_more_than_its_window() {
    let (mut bench, consumer) = with_four_held();
    bench.publish(0, 1);
    bench.suspend(10, consumer, Leave::Broken, 2_000);
    let window = ackstream_core::Window { max_messages: 2, max_bytes: 1_000 };
    let attachment = ackstream_core::Attachment { window, ..Workbench::attachment(1) };
    bench.subscription.resume(consumer, attachment, |_| true, Workbench::time(20));

    assert_eq!(bench.take(20, consumer), None);
    for id in 1..=3 {
        bench.ack(30, id);
    }

    assert_eq!(bench.take_all(30, consumer), [(5, 1)]);
}

#[test]
fn a_drain_releases_what_suspended_consumers_hold_and_nobody_resumes() {
    let (mut bench, consumer) = with_four_held();
    bench.suspend(10, consumer, Leave::Broken, 2_000);

    bench.subscription.drain(Workbench::time(20));

    assert_eq!(bench.subscription.counts().ended.released, 4);
    assert!(!bench.resume(30, consumer, &[1]));
    assert!(bench.subscription.is_drained());
}

#[test]
fn a_stream_that_breaks_during_a_drain_has_no_grace() {
    let (mut bench, consumer) = with_four_held();
    bench.subscription.drain(Workbench::time(10));

    bench.suspend(20, consumer, Leave::Closed, 2_000);

    assert!(bench.subscription.is_drained());
    assert!(!bench.subscription.is_attached(consumer));
}

#[test]
fn no_resume_makes_a_delivery_last_longer_than_an_hour() {
    let mut bench = Workbench::with(|policy| policy.ack_deadline = ms(3_600_000));
    bench.publish(0, 1);
    let consumer = bench.attach(0);
    bench.take(0, consumer);
    bench.suspend(3_599_000, consumer, Leave::Broken, 3_700_000);

    bench.resume(3_599_500, consumer, &[1]);

    assert_eq!(bench.next_due(), Some(3_600_000));
}

#[test]
fn no_grace_makes_a_delivery_last_longer_than_an_hour() {
    let mut bench = Workbench::with(|policy| policy.ack_deadline = ms(3_600_000));
    bench.publish(0, 1);
    let consumer = bench.attach(0);
    bench.take(0, consumer);

    bench.suspend(3_599_000, consumer, Leave::Broken, 3_700_000);

    assert_eq!(bench.next_due(), Some(3_600_000));
}
