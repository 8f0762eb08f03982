use ackstream_core::{
    Attachment, Backlog, Counts, DropReason, Ended, Leave, Outcome, Policy, Refusal, Release, Time, Window,
};

use crate::workbench::Workbench;

#[test]
fn outcomes_and_reasons_have_the_names_that_metrics_show() {
    let released = Outcome::Released(Release::Left);
    let outcomes = [Outcome::Acked, Outcome::Nacked, Outcome::Expired, Outcome::Interrupted, released];
    assert_eq!(outcomes.map(Outcome::name), ["acked", "nacked", "expired", "interrupted", "released"]);
    let reasons = [DropReason::MaxRetries, DropReason::Rejected, DropReason::MaxInterruptions];
    assert_eq!(reasons.map(DropReason::name), ["max_retries", "rejected", "max_interruptions"]);
    let why = ["left", "closed", "not_begun", "given_back", "not_received"];
    assert_eq!(Release::ALL.map(Release::name), why);
}

#[test]
fn an_instant_is_shown_in_seconds_since_the_epoch() {
    assert_eq!(Time::from_nanos(1_700_000_000_000_000_042).to_string(), "1700000000.000000042");
}

#[test]
fn a_refusal_says_why_with_its_bound() {
    let refusals = [Refusal::TooManyMessages { max: 3 }, Refusal::TooManyBytes { max: 7 }, Refusal::Draining];
    assert_eq!(
        refusals.map(|refusal| refusal.to_string()),
        [
            "its backlog is full (max_backlog_messages = 3)",
            "its backlog is full (max_backlog_bytes = 7)",
            "it is draining"
        ]
    );
}

#[test]
fn a_problem_with_a_policy_says_its_key_and_its_bound() {
    let policy = Policy { max_backlog_messages: 0, ..Policy::default() };
    let told: Vec<_> = policy.problems().iter().map(ToString::to_string).collect();
    assert_eq!(told, ["max_backlog_messages must be at least 1"]);
}

#[test]
fn each_law_says_no_where_its_numbers_do_not_add_up() {
    let backlog = Backlog { ready: 1, delayed: 2, outstanding: 3 };
    let ended = Ended { acked: 1, nacked: 2, expired: 3, interrupted: 5, released: 4 };
    let whole = Counts { published: 16, acked: 4, dropped: 6, sent: 18, ended };
    assert!(whole.messages_hold(backlog) && whole.deliveries_hold(backlog));
    for broken in [Counts { published: 17, ..whole }, Counts { acked: 5, ..whole }, Counts { dropped: 5, ..whole }] {
        assert!(!broken.messages_hold(backlog) && broken.deliveries_hold(backlog), "{broken:?}");
    }
    for broken in [
        Counts { sent: 17, ..whole },
        Counts { ended: Ended { acked: 0, ..ended }, ..whole },
        Counts { ended: Ended { nacked: 0, ..ended }, ..whole },
        Counts { ended: Ended { expired: 0, ..ended }, ..whole },
        Counts { ended: Ended { interrupted: 0, ..ended }, ..whole },
        Counts { ended: Ended { released: 0, ..ended }, ..whole },
    ] {
        assert!(broken.messages_hold(backlog) && !broken.deliveries_hold(backlog), "{broken:?}");
    }
}

#[test]
fn a_consumer_is_attached_until_it_leaves_and_a_subscription_drains_from_when_it_is_told_to() {
    let mut bench = Workbench::new();
    let window = Window { max_messages: 1, max_bytes: 1 };
    let subscription = &mut bench.subscription;
    let consumer = subscription.attach(Attachment { window, handlers: 0, auto_ack: false }, Workbench::time(0));
    assert!(subscription.is_attached(consumer) && !subscription.is_draining());
    subscription.detach(consumer, Leave::Clean, Workbench::time(1));
    assert!(!subscription.is_attached(consumer));
    subscription.drain(Workbench::time(2));
    assert!(subscription.is_draining());
}
