use std::time::Duration;

use ackstream_core::{Backoff, Policy};

fn problems(change: impl FnOnce(&mut Policy)) -> Vec<&'static str> {
    let mut policy = Policy::default();
    change(&mut policy);
    policy.problems().into_iter().map(|problem| problem.key).collect()
}

#[test]
fn the_default_policy_is_within_its_bounds() {
    assert_eq!(problems(|_| {}), [""; 0]);
}

#[test]
fn an_ack_deadline_is_between_10_ms_and_1_h() {
    for (deadline, allowed) in [(9, false), (10, true), (3_600_000, true), (3_600_001, false)] {
        let found = problems(|policy| policy.ack_deadline = Duration::from_millis(deadline));
        assert_eq!(found.is_empty(), allowed, "{deadline} ms");
    }
}

#[test]
fn a_retry_budget_is_at_most_1000_or_unlimited() {
    for (budget, allowed) in [(Some(0), true), (Some(1000), true), (Some(1001), false), (None, true)] {
        assert_eq!(problems(|policy| policy.max_retries = budget).is_empty(), allowed, "{budget:?}");
    }
}

#[test]
fn all_problems_are_told_at_once() {
    let found = problems(|policy| {
        policy.ack_deadline = Duration::ZERO;
        policy.max_retries = Some(5_000);
        policy.max_interruptions = Some(1_001);
        policy.backoff = Backoff { minimum: Duration::from_hours(26), maximum: Duration::from_hours(25) };
        policy.max_backlog_messages = 0;
        policy.max_backlog_bytes = 0;
    });
    assert_eq!(
        found,
        [
            "ack_deadline",
            "max_retries",
            "max_interruptions",
            "max_backoff",
            "min_backoff",
            "max_backlog_messages",
            "max_backlog_bytes"
        ]
    );
}
