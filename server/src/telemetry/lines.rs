//! Log lines about single messages: the story as people read it, and at most so many lines a second.

use std::ops::Range;
use std::time::Duration;

use ackstream_core::{DropReason, Event, MessageView, Outcome, Release, Time};
use tracing::info;

use super::Contexts;
use crate::message::Message;

/// Where a `traceparent` has the trace's id, and the span's (W3C Trace Context, level 1).
const TRACE_ID: Range<usize> = 3..35;
const SPAN_ID: Range<usize> = 36..52;

/// How many lines may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineLimits {
    /// At most so many in a second.
    pub per_second: u32,
    /// What was left out is said so long after the first line that was.
    pub summary_interval: Duration,
}

/// Writes one subscription's lines.
#[derive(Debug)]
pub struct Lines {
    topic: String,
    subscription: String,
    /// What each line begins with: the subscription's name and a colon, or nothing where it is the only one.
    prefix: String,
    /// Where its dead letters go; `None` where they are discarded.
    dead_letter_topic: Option<String>,
    /// How many messages the demo will send; `None` where it has no end, or there is none.
    of: Option<u64>,
    limits: LineLimits,
    /// When the present second is over.
    next_second: Time,
    written: u32,
    left_out: u64,
    /// When to say how many were left out.
    summary_due: Option<Time>,
}

impl Lines {
    /// Lines of this subscription. A demo of `of` messages says "1/5" where others say "1".
    pub fn new(topic: String, subscription: String, of: Option<u64>, limits: LineLimits) -> Self {
        Self {
            topic,
            subscription,
            prefix: String::new(),
            dead_letter_topic: None,
            of,
            limits,
            next_second: Time::ZERO,
            written: 0,
            left_out: 0,
            summary_due: None,
        }
    }

    /// The same, of a subscription whose dead letters go to this topic.
    #[must_use]
    pub fn with_dead_letters(self, dead_letter_topic: Option<String>) -> Self {
        Self { dead_letter_topic, ..self }
    }

    /// The same, of one subscription among others: each line says which.
    #[must_use]
    pub fn among_others(self) -> Self {
        Self { prefix: format!("{}: ", self.subscription), ..self }
    }

    /// When [`advance`](Self::advance) has something to say.
    pub const fn next_due(&self) -> Option<Time> {
        self.summary_due
    }

    /// Says what was left out, where it is time.
    pub fn advance(&mut self, now: Time) {
        if self.summary_due.is_some_and(|due| due <= now) {
            self.say_what_was_left_out();
        }
    }

    /// `contexts` are those of the subscription, where it is traced: a line says which span it is about.
    pub(super) fn observe<M: AsRef<Message>>(&mut self, event: &Event<'_, M>, contexts: Option<Contexts>) {
        match event {
            Event::Sent { at, message, after: None, .. } => {
                let of = self.of.filter(|_| {
                    message.body.as_ref().number().is_some_and(|number| u64::from(number.get()) == message.id.0)
                });
                self.line(*at, message, contexts, |id| match of {
                    Some(of) => format!("Sent message {id}/{of}"),
                    None => format!("Sent message {id}"),
                });
            }
            Event::Sent { at, message, after: Some(outcome), .. } => {
                let (is_retry, why) = match outcome {
                    Outcome::Acked => unreachable!("an acked message is settled"),
                    Outcome::Nacked => (true, "it was nacked"),
                    Outcome::Expired => (true, "no ACK came in time"),
                    Outcome::Interrupted => (false, "its consumer's stream broke"),
                    Outcome::Released(Release::Left) => (false, "its consumer left"),
                    Outcome::Released(Release::Closed) => (false, "the server closed its consumer's stream"),
                    Outcome::Released(Release::NotBegun) => {
                        (false, "its consumer's stream broke before it was handled")
                    }
                    Outcome::Released(Release::GivenBack) => (false, "its consumer gave it back"),
                    Outcome::Released(Release::NotReceived) => (false, "it was lost on the way"),
                };
                let failures = message.failures;
                let of = message.retries_left.map_or(String::new(), |left| format!(" of {}", failures + left));
                self.line(*at, message, contexts, |id| {
                    if is_retry {
                        format!("Retrying message {id} (retry {failures}{of}): {why}")
                    } else {
                        format!("Sent message {id} again, at no cost: {why}")
                    }
                });
            }
            Event::Ended { at, message, outcome: Outcome::Nacked, .. } => {
                self.line(*at, message, contexts, |id| format!("Received NACK for message {id}"));
            }
            Event::Acked { at, message, late: false } => {
                self.line(*at, message, contexts, |id| format!("Received ACK for message {id}"));
            }
            Event::Acked { at, message, late: true } => {
                self.line(*at, message, contexts, |id| {
                    format!("Received late ACK for message {id}: it counts, no retry is needed")
                });
            }
            Event::Dropped { at, message, reason } => {
                let attempts = message.attempts;
                let plural = if attempts == 1 { "" } else { "s" };
                let why = match reason {
                    DropReason::MaxRetries => "no retry is left",
                    DropReason::Rejected => "its consumer rejected it",
                    DropReason::MaxInterruptions => "its consumers' streams broke too often",
                };
                let letter =
                    self.dead_letter_topic.as_ref().map_or_else(String::new, |to| format!("; topic {to} has it"));
                self.line(*at, message, contexts, |id| {
                    format!("Dropped message {id} after {attempts} attempt{plural}: {why}{letter}")
                });
            }
            Event::Offered { at, message, taken: false } => {
                let to = self.dead_letter_topic.clone().unwrap_or_default();
                self.line(*at, message, contexts, |id| {
                    format!("Message {id} has no place in dead-letter topic {to}: it waits and is offered again")
                });
            }
            Event::Published { .. }
            | Event::Extended { .. }
            | Event::Ended {
                outcome: Outcome::Acked | Outcome::Expired | Outcome::Interrupted | Outcome::Released(_),
                ..
            }
            | Event::Requeued { .. }
            | Event::Due { .. }
            | Event::GivenUp { .. }
            | Event::Offered { taken: true, .. }
            | Event::Ignored { .. }
            | Event::Attached { .. }
            | Event::Detached { .. }
            | Event::Draining { .. } => {}
        }
    }

    fn line<M: AsRef<Message>>(
        &mut self,
        at: Time,
        message: &MessageView<'_, M>,
        contexts: Option<Contexts>,
        text: impl FnOnce(u64) -> String,
    ) {
        if at >= self.next_second {
            let second = Duration::from_secs(at.since(Time::ZERO).as_secs() + 1);
            (self.next_second, self.written) = (Time::ZERO.plus(second), 0);
        }
        if self.written >= self.limits.per_second {
            self.left_out += 1;
            if self.limits.per_second > 0 && self.summary_due.is_none() {
                self.summary_due = Some(at.plus(self.limits.summary_interval));
            }
            return;
        }
        self.written += 1;
        let body = message.body.as_ref();
        let context = contexts.map(|contexts| contexts.traceparent(message.id, message.attempts, body, false));
        info!(
            topic = self.topic,
            subscription = self.subscription,
            message_id = message.id.0,
            delivery_attempt = message.attempts,
            trace_id = context.as_ref().map(|context| &context[TRACE_ID]), // left out where there is none
            span_id = context.as_ref().map(|context| &context[SPAN_ID]),
            "{}{}",
            self.prefix,
            text(message.id.0)
        );
    }

    /// Says how many lines were left out since it was said the last time.
    pub fn say_what_was_left_out(&mut self) {
        if self.summary_due.take().is_some() {
            let Self { topic, subscription, prefix, .. } = &*self;
            let left_out = self.left_out;
            info!(
                topic,
                subscription,
                "{prefix}... and {left_out} more lines about messages (log_lines_per_second = {})",
                self.limits.per_second
            );
            self.left_out = 0;
        }
    }
}
