use ackstream_core::{MessageId, Policy, Refusal, Refused, Subscription, Topic};

use crate::workbench::Workbench;

fn subscription(max_backlog_messages: u64) -> Box<Subscription<u64, ()>> {
    Box::new(Subscription::new(Policy { max_backlog_messages, ..Policy::default() }, ()))
}

#[test]
fn a_publish_is_accepted_by_every_subscription_under_the_same_id() {
    let mut topic = Topic::new();
    let mut subscriptions = [subscription(10), subscription(10)];
    for id in 1..=3 {
        assert_eq!(topic.publish(&mut subscriptions, &7, 1, Workbench::time(0)), Ok(MessageId(id)));
    }
    assert!(subscriptions.iter().all(|subscription| subscription.counts().published == 3));
}

#[test]
fn a_publish_is_accepted_by_every_subscription_or_by_none() {
    let mut topic = Topic::new();
    let mut subscriptions = [subscription(10), subscription(1), subscription(10)];
    topic.publish(&mut subscriptions, &7, 1, Workbench::time(0)).unwrap();
    let refused = topic.publish(&mut subscriptions, &7, 1, Workbench::time(0));
    assert_eq!(refused, Err(Refused { subscription: 1, refusal: Refusal::TooManyMessages { max: 1 } }));
    assert!(subscriptions.iter().all(|subscription| subscription.counts().published == 1));
}

#[test]
fn a_refused_publish_uses_no_id() {
    let mut topic = Topic::new();
    let mut subscriptions = [subscription(1)];
    topic.publish(&mut subscriptions, &7, 1, Workbench::time(0)).unwrap();
    topic.publish(&mut subscriptions, &7, 1, Workbench::time(0)).unwrap_err();
    let mut others = [subscription(10)];
    assert_eq!(topic.publish(&mut others, &7, 1, Workbench::time(0)), Ok(MessageId(2)));
}
