use ackstream_core::{ConsumerId, Leave, RESERVED_FOR};

use crate::workbench::Workbench;

/// Message 1 was interrupted twice at 0, and is ready at 100 to be delivered alone; no others are there.
fn with_one_alone() -> Workbench {
    let mut bench = Workbench::new();
    bench.publish(0, 1);
    for _ in 0..2 {
        let victim = bench.attach_handlers(0, 1);
        bench.take_all(0, victim);
        bench.detach(0, victim, Leave::Broken);
    }
    bench.events();
    bench
}

/// A consumer that holds the messages that were just published.
fn busy(bench: &mut Workbench, at: u64, messages: u64) -> ConsumerId {
    let consumer = bench.attach(at);
    bench.publish(at, messages);
    assert_eq!(bench.take_all(at, consumer).len() as u64, messages);
    consumer
}

#[test]
fn whoever_holds_a_message_alone_gets_nothing_else_until_its_delivery_ends() {
    let mut bench = with_one_alone();
    bench.publish(100, 2);
    let consumer = bench.attach(100);

    assert_eq!(bench.take_all(100, consumer), [(1, 3)]);
    bench.ack(110, 1);

    assert_eq!(bench.wakes(), [consumer]);
    assert_eq!(bench.take_all(110, consumer), [(2, 1), (3, 1)]);
}

#[test]
fn others_pass_a_message_that_waits_to_be_alone() {
    let mut bench = with_one_alone();
    let [reserved, other] = [busy(&mut bench, 50, 1), busy(&mut bench, 50, 2)];
    bench.advance(100);

    bench.publish(110, 1);

    assert_eq!(bench.take_all(110, reserved), [], "it has the fewest deliveries: it is to become empty");
    assert_eq!(bench.take_all(110, other), [(5, 1)]);
}

#[test]
fn a_consumer_that_became_empty_for_it_gets_it() {
    let mut bench = with_one_alone();
    let consumer = busy(&mut bench, 50, 2);
    bench.advance(100);
    assert_eq!(bench.take_all(100, consumer), []);
    bench.ack(110, 2);
    assert_eq!(bench.take_all(110, consumer), []);
    bench.wakes();

    bench.ack(120, 3);

    assert_eq!(bench.wakes(), [consumer]);
    assert_eq!(bench.take_all(120, consumer), [(1, 3)]);
}

#[test]
fn an_empty_consumer_that_asks_first_gets_it_and_the_reserved_one_is_free() {
    let mut bench = with_one_alone();
    let reserved = busy(&mut bench, 50, 1);
    bench.advance(100);
    assert_eq!(bench.take(100, reserved), None);

    let newcomer = bench.attach(110);
    assert_eq!(bench.take_all(110, newcomer), [(1, 3)]);

    bench.publish(120, 1);
    assert_eq!(bench.take_all(120, reserved), [(3, 1)]);
}

#[test]
fn a_reserved_consumer_that_does_not_become_empty_in_30_s_makes_way_for_the_next() {
    let mut bench = with_one_alone();
    let [first, second] = [busy(&mut bench, 50, 1), busy(&mut bench, 50, 2)];
    for id in 2..=4 {
        let holder = if id == 2 { first } else { second };
        bench.extend(60, holder, id, RESERVED_FOR * 10);
    }
    bench.advance(100);
    assert_eq!(bench.next_due(), Some(100 + RESERVED_FOR.as_millis()));

    let later = 100 + u64::try_from(RESERVED_FOR.as_millis()).unwrap();
    bench.advance(later);

    bench.publish(later, 2);
    assert_eq!(bench.take_all(later, second), [], "it is the second one's turn");
    assert_eq!(bench.take_all(later, first), [(5, 1), (6, 1)]);
}

#[test]
fn the_reservation_passes_on_when_its_consumer_leaves() {
    let mut bench = with_one_alone();
    let [reserved, next] = [busy(&mut bench, 50, 1), busy(&mut bench, 50, 2)];
    bench.advance(100);

    bench.detach(110, reserved, Leave::Clean);

    assert_eq!(bench.take_all(110, next), [], "what was released waits, as the next one is to become empty");
}

#[test]
fn of_200_messages_only_the_one_that_kills_its_consumers_is_dropped_wherever_it_stands() {
    for (poison, handlers) in [(1, 1), (21, 1), (137, 16), (200, 16)] {
        let mut bench = Workbench::new();
        bench.publish(0, 200);
        let (mut at, mut lives) = (0, 0);
        while bench.subscription.backlog().messages() > 0 {
            lives += 1;
            assert!(lives < 50, "poison {poison}: {:?}", bench.subscription.backlog());
            let consumer = bench.attach_handlers(at, handlers);
            let mut killed = false;
            let mut held = std::collections::VecDeque::new();
            while !killed {
                held.extend(bench.take_all(at, consumer));
                let Some((id, _)) = held.pop_front() else { break };
                // Whoever handles several at once has begun others when one of them kills it.
                killed = id == poison || held.iter().take(handlers as usize - 1).any(|&(id, _)| id == poison);
                if !killed {
                    bench.ack(at, id);
                }
            }
            bench.detach(at, consumer, if killed { Leave::Broken } else { Leave::Clean });
            at += 2_000;
        }
        let counts = bench.subscription.counts();
        assert_eq!((counts.acked, counts.dropped), (199, 1), "poison {poison}, {handlers} handlers");
    }
}
