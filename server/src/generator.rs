//! The demo's publisher: COUNT messages at an interval, and the wait until each is acked or dropped.

use std::num::NonZeroU64;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use tracing::info;

use crate::broker::{PublishError, Topic};
use crate::message::Message;
use crate::telemetry::Progress;

/// How often the generator says that nobody consumes.
const REMIND_EVERY: Duration = Duration::from_secs(10);

/// What the generator publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// How many messages; `None` = without end.
    pub count: Option<NonZeroU64>,
    /// The time between two messages.
    pub interval: Duration,
}

/// Publishes "Message 1", "Message 2", ... to `topic`, beginning with the first consumer, and returns when each of them is acked or
/// dropped; never for a plan without end.
///
/// # Errors
///
/// Where the topic takes no more messages, because the server stops.
pub async fn run(plan: Plan, topic: &Topic, progress: &Progress) -> Result<(), PublishError> {
    tokio::select! {
        result = publish_and_wait(plan, topic, progress) => result,
        () = remind(topic, progress) => unreachable!("the reminder has no end"),
    }
}

async fn publish_and_wait(plan: Plan, topic: &Topic, progress: &Progress) -> Result<(), PublishError> {
    wait_until(progress, |progress| progress.consumers() > 0).await;
    let mut ticks = tokio::time::interval(plan.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let numbers = 1..=plan.count.map_or(u64::MAX, NonZeroU64::get);
    for number in numbers.clone() {
        ticks.tick().await;
        publish(number, topic, progress).await?;
    }
    let all = numbers.end().saturating_mul(topic.subscriptions().len() as u64); // each subscription has its own copy
    wait_until(progress, |progress| progress.settled() >= all).await;
    Ok(())
}

/// Publishes one message; while a backlog is full, waits until something is settled.
async fn publish(number: u64, topic: &Topic, progress: &Progress) -> Result<(), PublishError> {
    loop {
        let message = Message::numbered(format!("Message {number}").as_bytes(), number);
        match topic.publish(&message) {
            Ok(_) => return Ok(()),
            Err(error) if error.may_pass() => progress.changed().await,
            Err(error) => return Err(error),
        }
    }
}

/// Says so while nobody consumes.
async fn remind(topic: &Topic, progress: &Progress) {
    let mut since = Instant::now();
    loop {
        tokio::time::sleep_until(since + REMIND_EVERY).await;
        since = Instant::now();
        if progress.consumers() == 0 {
            info!("No consumer on topic {}: waiting for one", topic.name());
        }
    }
}

async fn wait_until(progress: &Progress, reached: impl Fn(&Progress) -> bool) {
    while !reached(progress) {
        progress.changed().await;
    }
}
