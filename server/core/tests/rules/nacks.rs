use ackstream_core::{Backoff, MessageId, Nack};

use crate::workbench::{Workbench, ms};

const AT_ONCE: Nack = Nack { delay: Some(std::time::Duration::ZERO), drop: false, release: false };
const DROP: Nack = Nack { delay: None, drop: true, release: false };

#[test]
fn a_nack_with_delay_zero_makes_the_message_ready_at_once() {
    let (mut bench, consumer) = Workbench::new().with_one_outstanding();
    bench.nack(10, consumer, 1, AT_ONCE);
    assert_eq!(bench.take_all(10, consumer), [(1, 2)]);
    assert_eq!(bench.events(), ["10 ended 1 Nacked", "10 requeued 1 for 0", "10 sent 1#2 after Nacked"]);
}

#[test]
fn a_nack_delays_the_message_by_its_own_delay() {
    let (mut bench, consumer) = Workbench::with(|policy| policy.backoff = backoff(30, 30)).with_one_outstanding();
    bench.nack(10, consumer, 1, Nack { delay: Some(ms(70)), drop: false, release: false });
    assert_eq!(bench.next_due(), Some(80));
    assert_eq!(bench.take_all(79, consumer), []);
    assert_eq!(bench.take_all(80, consumer), [(1, 2)]);
}

#[test]
fn a_nack_without_delay_waits_out_the_backoff() {
    let (mut bench, consumer) = Workbench::with(|policy| policy.backoff = backoff(30, 1000)).with_one_outstanding();
    bench.nack(10, consumer, 1, Nack::default());
    assert_eq!(bench.take_all(40, consumer), [(1, 2)]);
    bench.nack(50, consumer, 1, Nack::default());
    assert_eq!(bench.next_due(), Some(110), "twice as long before attempt 3");
}

#[test]
fn a_nack_without_delay_and_without_backoff_waits_one_ack_deadline() {
    let (mut bench, consumer) = Workbench::new().with_one_outstanding();
    bench.nack(10, consumer, 1, Nack::default());
    assert_eq!(bench.next_due(), Some(110));
}

#[test]
fn a_nack_cannot_delay_by_more_than_a_day() {
    let (mut bench, consumer) = Workbench::new().with_one_outstanding();
    let year = std::time::Duration::from_hours(24 * 365);
    bench.nack(0, consumer, 1, Nack { delay: Some(year), drop: false, release: false });
    assert_eq!(bench.next_due(), Some(24 * 3_600_000));
}

#[test]
fn a_nack_with_drop_gives_the_message_up_whatever_retries_are_left() {
    let (mut bench, consumer) = Workbench::with(|policy| policy.max_retries = None).with_one_outstanding();
    bench.nack(10, consumer, 1, DROP);
    assert_eq!(bench.events(), ["10 ended 1 Nacked", "10 dropped 1 Rejected"]);
}

#[test]
fn a_nack_uses_up_one_retry() {
    let (mut bench, consumer) = Workbench::with(|policy| policy.max_retries = Some(1)).with_one_outstanding();
    bench.nack(10, consumer, 1, AT_ONCE);
    assert_eq!(bench.take_all(10, consumer), [(1, 2)]);
    bench.nack(20, consumer, 1, AT_ONCE);
    assert_eq!(bench.events().last().unwrap(), "20 dropped 1 MaxRetries");
}

#[test]
fn a_message_that_is_out_of_retries_is_dropped_without_a_wait() {
    let (mut bench, consumer) = Workbench::with(|policy| policy.max_retries = Some(0)).with_one_outstanding();
    bench.nack(10, consumer, 1, Nack { delay: Some(ms(500)), drop: false, release: false });
    assert_eq!(bench.events(), ["10 ended 1 Nacked", "10 dropped 1 MaxRetries"]);
}

#[test]
fn nothing_but_an_ack_counts_from_a_stream_that_does_not_hold_the_delivery() {
    let (mut bench, _) = Workbench::new().with_one_outstanding();
    let other = bench.attach(1);
    bench.events();
    bench.nack(10, other, 1, DROP);
    bench.extend(10, other, 1, ms(500));
    assert_eq!(bench.events(), ["10 ignored Nack 1 NotHeld", "10 ignored Extend 1 NotHeld"]);
    assert_eq!(bench.next_due(), Some(100));
}

#[test]
fn a_nack_of_a_message_that_is_ready_again_is_ignored() {
    let (mut bench, consumer) = Workbench::new().with_one_outstanding();
    bench.advance(100);
    bench.events();
    bench.nack(110, consumer, 1, DROP);
    assert_eq!(bench.events(), ["110 ignored Nack 1 NotHeld"]);
}

#[test]
fn a_nack_after_the_deadline_is_ignored_also_when_the_pass_has_not_come_to_it() {
    let mut bench = Workbench::new();
    let consumer = bench.attach_with(0, 10_000, u64::MAX);
    bench.publish(0, 5_000);
    bench.take_all(0, consumer);
    bench.nack(100, consumer, 4_999, DROP);
    assert_eq!(bench.events().last().unwrap(), "100 ignored Nack 4999 NotHeld");
}

#[test]
fn a_delivery_whose_expiry_dropped_its_message_is_settled_also_when_the_pass_has_not_come_to_it() {
    let mut bench = Workbench::with(|policy| policy.max_retries = Some(0));
    let consumer = bench.attach_with(0, 10_000, u64::MAX);
    bench.publish(0, 5_000);
    bench.take_all(0, consumer);
    bench.nack(100, consumer, 4_999, DROP);
    bench.ack(100, 4_998);
    bench.extend(100, consumer, 4_997, ms(1));
    let ignored: Vec<_> = bench.events().into_iter().filter(|line| line.contains("ignored")).collect();
    assert_eq!(
        ignored,
        ["100 ignored Nack 4999 Settled", "100 ignored Ack 4998 Settled", "100 ignored Extend 4997 Settled"]
    );
}

#[test]
fn a_nack_that_names_another_attempt_is_stale() {
    let (mut bench, consumer) = Workbench::new().with_one_outstanding();
    bench.subscription.nack(consumer, MessageId(1), Some(2), DROP, Workbench::time(10));
    assert_eq!(bench.events(), ["10 ignored Nack 1 Stale"]);
}

#[test]
fn a_nack_or_extend_of_a_settled_or_unknown_message_is_ignored() {
    let (mut bench, consumer) = Workbench::new().with_one_outstanding();
    bench.ack(10, 1);
    bench.publish(10, 1);
    bench.events();
    bench.nack(20, consumer, 1, DROP);
    bench.extend(20, consumer, 1, ms(1));
    bench.nack(20, consumer, 2, DROP);
    bench.extend(20, consumer, 3, ms(1));
    assert_eq!(
        bench.events(),
        [
            "20 ignored Nack 1 Settled",
            "20 ignored Extend 1 Settled",
            "20 ignored Nack 2 Unknown",
            "20 ignored Extend 3 Unknown"
        ]
    );
}

fn backoff(minimum: u64, maximum: u64) -> Backoff {
    Backoff { minimum: ms(minimum), maximum: ms(maximum) }
}
