use ackstream_core::{Leave, MessageId};

use crate::workbench::{Workbench, ms};

/// Consumers with one handler take everything and break, at these times.
fn break_at<const N: usize>(bench: &mut Workbench, times: [u64; N]) -> [Vec<(u64, u32)>; N] {
    times.map(|at| {
        let victim = bench.attach_handlers(at, 1);
        let taken = bench.take_all(at, victim);
        bench.detach(at, victim, Leave::Broken);
        taken
    })
}

#[test]
fn what_was_in_progress_on_a_broken_stream_is_interrupted_and_costs_no_retry() {
    let (mut bench, consumer) = Workbench::with(|policy| policy.max_retries = Some(1)).with_one_outstanding();

    bench.detach(10, consumer, Leave::Broken);

    assert_eq!(bench.events(), ["10 ended 1 Interrupted", "10 requeued 1 for 0", "10 detached Broken"]);
    let next = bench.attach(20);
    let delivery = bench.take(20, next).expect("it is ready at once");
    assert_eq!((delivery.failures, delivery.interruptions), (0, 1));
}

#[test]
fn twice_as_many_as_the_handlers_are_in_progress_and_these_are_the_oldest() {
    let mut bench = Workbench::new();
    bench.publish(0, 10);
    let consumer = bench.attach_handlers(0, 2);
    bench.take_all(0, consumer);
    bench.ack(5, 2);
    bench.events();

    bench.detach(10, consumer, Leave::Broken);

    let events = bench.events();
    let ended = |how: &str| -> Vec<String> {
        let of = events.iter().filter(|line| line.contains("ended") && line.ends_with(how));
        of.map(|line| line.split(' ').nth(2).expect("its id").to_owned()).collect()
    };
    assert_eq!(ended("Interrupted"), ["1", "3", "4", "5"]);
    assert_eq!(ended("Released(NotBegun)"), ["6", "7", "8", "9", "10"]);
}

#[test]
fn where_the_handlers_are_unknown_all_may_be_in_progress() {
    let mut bench = Workbench::new();
    bench.publish(0, 3);
    let consumer = bench.attach(0);
    bench.take_all(0, consumer);

    bench.detach(10, consumer, Leave::Broken);

    assert_eq!(bench.subscription.counts().ended.interrupted, 3);
}

#[test]
fn a_stream_that_the_server_closed_interrupts_nothing() {
    let (mut bench, consumer) = Workbench::with(|policy| policy.max_interruptions = Some(0)).with_one_outstanding();

    bench.detach(10, consumer, Leave::Closed);

    assert_eq!(bench.events(), ["10 ended 1 Released(Closed)", "10 requeued 1 for 0", "10 detached Closed"]);
}

#[test]
fn from_the_second_interruption_on_the_wait_is_one_ack_deadline_and_doubles() {
    let mut bench = Workbench::with(|policy| policy.max_interruptions = None);
    bench.publish(0, 1);

    let taken = break_at(&mut bench, [0, 10, 109, 110, 309, 310, 709, 710]);

    let attempts = [1, 2, 0, 3, 0, 4, 0, 5].map(|attempt| if attempt == 0 { vec![] } else { vec![(1, attempt)] });
    assert_eq!(taken, attempts);
}

#[test]
fn no_interruption_makes_a_message_wait_for_more_than_a_minute() {
    let mut bench = Workbench::with(|policy| {
        policy.ack_deadline = ms(600_000);
        policy.max_interruptions = None;
    });
    bench.publish(0, 1);

    break_at(&mut bench, [0, 0]);

    assert_eq!(bench.next_due(), Some(60_000));
}

#[test]
fn a_message_that_kills_its_consumers_is_dropped_when_it_was_interrupted_max_interruptions_times_alone() {
    let mut bench = Workbench::new();
    bench.publish(0, 1);

    break_at(&mut bench, [0, 10, 110, 310]);
    assert_eq!(bench.subscription.counts().dropped, 0);
    break_at(&mut bench, [710]);

    assert!(bench.events().contains(&"710 dropped 1 MaxInterruptions".to_owned()));
    assert_eq!(bench.subscription.counts().ended.interrupted, 5, "two among others, three alone");
}

#[test]
fn where_no_interruption_is_allowed_the_first_drops_the_message() {
    let (mut bench, consumer) = Workbench::with(|policy| policy.max_interruptions = Some(0)).with_one_outstanding();

    bench.detach(10, consumer, Leave::Broken);

    assert_eq!(bench.events(), ["10 ended 1 Interrupted", "10 dropped 1 MaxInterruptions", "10 detached Broken"]);
}

#[test]
fn a_late_ack_of_an_interrupted_message_counts() {
    let (mut bench, consumer) = Workbench::new().with_one_outstanding();
    bench.detach(10, consumer, Leave::Broken);

    bench.subscription.ack(MessageId(1), Some(1), Workbench::time(20));

    assert_eq!(bench.events().last().unwrap(), "20 acked 1 late");
}

#[test]
fn backoff_and_retries_count_failures_and_nothing_else() {
    let mut bench = Workbench::with(|policy| {
        policy.max_retries = Some(2);
        policy.backoff.minimum = ms(10);
        policy.backoff.maximum = ms(1_000);
    });
    bench.publish(0, 1);
    for _ in 0..5 {
        let leaver = bench.attach(0);
        bench.take(0, leaver);
        bench.detach(0, leaver, Leave::Clean);
    }
    let consumer = bench.attach(0);
    bench.take(0, consumer);
    bench.events();

    bench.advance(100);

    assert_eq!(bench.events(), ["100 ended 1 Expired", "100 requeued 1 for 10"], "the first failure of six attempts");
    assert_eq!(bench.take(110, consumer).expect("it is due").failures, 1);
    bench.advance(210);
    assert!(bench.events().contains(&"210 requeued 1 for 20".to_owned()));
}
