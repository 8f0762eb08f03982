use std::cell::RefCell;
use std::rc::Rc;

use ackstream_core::{
    Attachment, Attempt, ConsumerId, Event, HISTORY, Leave, MessageId, Nack, Observer, Outcome, Policy, Subscription,
    Time, Window,
};

use crate::workbench::{Workbench, ms};

/// An event's word, and the history that it showed.
type Shown = (&'static str, Vec<Attempt>);

/// Keeps what each event shows.
#[derive(Clone, Default)]
struct Histories(Rc<RefCell<Vec<Shown>>>);

impl Observer<u64> for Histories {
    fn observe(&mut self, event: &Event<'_, u64>) {
        let (word, message) = match event {
            Event::Published { message, .. } => ("published", message),
            Event::Sent { message, .. } => ("sent", message),
            Event::Extended { message, .. } => ("extended", message),
            Event::Ended { message, .. } => ("ended", message),
            Event::Requeued { message, .. } => ("requeued", message),
            Event::Due { message, .. } => ("due", message),
            Event::GivenUp { message, .. } => ("given up", message),
            Event::Offered { message, .. } => ("offered", message),
            Event::Acked { message, .. } => ("acked", message),
            Event::Dropped { message, .. } => ("dropped", message),
            Event::Ignored { .. } | Event::Attached { .. } | Event::Detached { .. } | Event::Draining { .. } => return,
        };
        self.0.borrow_mut().push((word, message.history.to_vec()));
    }
}

/// One message, delivered once at 0.
struct Bench {
    subscription: Subscription<u64, Histories>,
    histories: Histories,
    consumer: ConsumerId,
}

impl Bench {
    fn new(max_retries: Option<u32>) -> Self {
        let policy = Policy { ack_deadline: ms(100), max_retries, ..Policy::default() };
        let histories = Histories::default();
        let mut subscription = Subscription::new(policy, histories.clone());
        subscription.enqueue(MessageId(1), 1, 1, Workbench::time(0));
        let consumer = Self::attach(&mut subscription, 0);
        let mut bench = Self { subscription, histories, consumer };
        bench.take(0);
        bench
    }

    fn attach(subscription: &mut Subscription<u64, Histories>, at: u64) -> ConsumerId {
        let window = Window { max_messages: 1, max_bytes: 1 };
        subscription.attach(Attachment { window, handlers: 0, auto_ack: false }, Workbench::time(at))
    }

    fn take(&mut self, at: u64) {
        self.subscription.next_delivery(self.consumer, Workbench::time(at)).expect("the message is ready");
    }

    fn leave(&mut self, at: u64, leave: Leave) -> ConsumerId {
        self.subscription.detach(self.consumer, leave, Workbench::time(at));
        std::mem::replace(&mut self.consumer, Self::attach(&mut self.subscription, at))
    }

    fn nack(&mut self, at: u64, drop: bool) {
        let nack = Nack { delay: Some(ms(0)), drop, release: false };
        self.subscription.nack(self.consumer, MessageId(1), None, nack, Workbench::time(at));
    }

    fn ack(&mut self, at: u64) {
        self.subscription.ack(MessageId(1), None, Workbench::time(at));
    }

    /// What the last event with this word showed.
    fn shown(&self, word: &str) -> Vec<Attempt> {
        self.histories.0.borrow().iter().rfind(|(of, _)| *of == word).expect("there was such an event").1.clone()
    }
}

fn attempt(number: u32, outcome: Outcome, consumer: ConsumerId, sent_at: u64, ended_at: u64) -> Attempt {
    let (sent_at, ended_at): (Time, Time) = (Workbench::time(sent_at), Workbench::time(ended_at));
    Attempt { number, outcome, consumer, sent_at, ended_at }
}

#[test]
fn a_clean_message_has_no_history() {
    let mut bench = Bench::new(Some(3));
    bench.ack(10);
    for word in ["published", "sent", "ended", "acked"] {
        assert_eq!(bench.shown(word), [], "{word}");
    }
}

#[test]
fn the_history_says_of_each_delivery_that_failed_or_was_interrupted_who_held_it_from_when_to_when_and_how_it_ended() {
    let mut bench = Bench::new(Some(3));
    let first = bench.consumer;
    bench.take(100);
    bench.nack(150, false);
    bench.take(160);
    let broken = bench.leave(170, Leave::Broken);
    bench.subscription.advance(Workbench::time(270));
    bench.take(280);
    bench.ack(290);
    let expected = [
        attempt(1, Outcome::Expired, first, 0, 100),
        attempt(2, Outcome::Nacked, first, 100, 150),
        attempt(3, Outcome::Interrupted, broken, 160, 170),
    ];
    assert_eq!(bench.shown("acked"), expected);
    assert_eq!(bench.shown("sent"), expected, "the delivery that is acked is none of them");
}

#[test]
fn a_delivery_that_just_ended_is_in_the_history_that_its_event_shows() {
    let mut bench = Bench::new(Some(3));
    bench.nack(10, false);
    assert_eq!(bench.shown("ended"), [attempt(1, Outcome::Nacked, bench.consumer, 0, 10)]);
}

#[test]
fn a_release_is_not_in_the_history() {
    let mut bench = Bench::new(Some(3));

    bench.leave(10, Leave::Clean);
    bench.take(20);

    assert_eq!(bench.shown("sent"), []);
}

#[test]
fn a_dropped_message_shows_all_its_deliveries() {
    let mut bench = Bench::new(Some(0));
    bench.subscription.advance(Workbench::time(500));
    assert_eq!(bench.shown("dropped"), [attempt(1, Outcome::Expired, bench.consumer, 0, 100)]);
    let mut bench = Bench::new(Some(3));
    bench.nack(10, true);
    assert_eq!(bench.shown("dropped"), [attempt(1, Outcome::Nacked, bench.consumer, 0, 10)]);
}

#[test]
fn a_late_ack_shows_the_delivery_that_had_expired() {
    let mut bench = Bench::new(Some(3));
    bench.ack(130);
    assert_eq!(bench.shown("acked"), [attempt(1, Outcome::Expired, bench.consumer, 0, 100)]);
}

#[test]
fn of_many_deliveries_the_first_and_the_last_half_are_remembered() {
    let mut bench = Bench::new(None);
    for at in 1..1_000 {
        bench.nack(at, false);
        bench.take(at);
    }
    bench.ack(1_000);
    let numbers: Vec<u32> = bench.shown("acked").iter().map(|attempt| attempt.number).collect();
    let half = u32::try_from(HISTORY / 2).expect("small");
    assert_eq!(numbers, (1..=half).chain(1_000 - half..1_000).collect::<Vec<_>>());
}
