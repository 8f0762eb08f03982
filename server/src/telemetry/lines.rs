//! Log lines about single messages: the story as people read it, and at most so many lines a second.

use std::ops::Range;

use ackstream_core::{DropReason, Event, MessageView, Outcome, Time};
use tracing::info;

use super::Contexts;
use crate::message::Message;

/// Where a `traceparent` has the trace's id, and the span's (W3C Trace Context, level 1).
const TRACE_ID: Range<usize> = 3..35;
const SPAN_ID: Range<usize> = 36..52;

/// Writes one subscription's lines.
#[derive(Debug)]
pub struct Lines {
    topic: String,
    subscription: String,
    /// How many messages the demo will send; `None` where it has no end, or there is none.
    of: Option<u64>,
    per_second: u32,
    second: u64,
    written: u32,
    left_out: u64,
}

impl Lines {
    /// Lines of this subscription, at most `per_second` of them. A demo of `of` messages says "1/5" where others say "1".
    pub const fn new(topic: String, subscription: String, of: Option<u64>, per_second: u32) -> Self {
        Self { topic, subscription, of, per_second, second: 0, written: 0, left_out: 0 }
    }

    /// `contexts` are those of the subscription, where it is traced: a line says which span it is about.
    pub(super) fn observe<M: AsRef<Message>>(&mut self, event: &Event<'_, M>, contexts: Option<Contexts>) {
        match event {
            Event::Sent { at, message, after: None, .. } => {
                let of =
                    self.of.filter(|_| message.body.as_ref().number.is_some_and(|number| number.get() == message.id.0));
                self.line(*at, message, contexts, |id| match of {
                    Some(of) => format!("Sent message {id}/{of}"),
                    None => format!("Sent message {id}"),
                });
            }
            Event::Sent { at, message, after: Some(outcome), .. } => {
                let attempt = message.attempts;
                let why = match outcome {
                    Outcome::Acked => unreachable!("an acked message is settled"),
                    Outcome::Nacked => "it was nacked",
                    Outcome::Expired => "no ACK came in time",
                    Outcome::Released => "its consumer left",
                };
                let of = message.retries_left.map_or(String::new(), |left| format!(" of {}", attempt + left));
                self.line(*at, message, contexts, |id| format!("Retrying message {id} (attempt {attempt}{of}): {why}"));
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
                };
                self.line(*at, message, contexts, |id| {
                    format!("Dropped message {id} after {attempts} attempt{plural}: {why}")
                });
            }
            Event::Published { .. }
            | Event::Extended { .. }
            | Event::Ended { outcome: Outcome::Acked | Outcome::Expired | Outcome::Released, .. }
            | Event::Requeued { .. }
            | Event::Due { .. }
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
        let second = at.since(Time::ZERO).as_secs();
        if second > self.second {
            self.say_what_was_left_out();
            (self.second, self.written, self.left_out) = (second, 0, 0);
        }
        if self.written >= self.per_second {
            self.left_out += 1;
            return;
        }
        self.written += 1;
        let attributes = &message.body.as_ref().attributes;
        let context = contexts.map(|contexts| contexts.traceparent(message.id, message.attempts, attributes, false));
        info!(
            topic = self.topic,
            subscription = self.subscription,
            message_id = message.id.0,
            delivery_attempt = message.attempts,
            trace_id = context.as_ref().map(|context| &context[TRACE_ID]), // left out where there is none
            span_id = context.as_ref().map(|context| &context[SPAN_ID]),
            "{}",
            text(message.id.0)
        );
    }

    /// Says how many lines were left out since the last that was not.
    pub fn say_what_was_left_out(&self) {
        if self.left_out > 0 && self.per_second > 0 {
            let (topic, subscription, left_out) = (&self.topic, &self.subscription, self.left_out);
            info!(
                topic,
                subscription,
                "... and {left_out} more lines about messages (log_lines_per_second = {})",
                self.per_second
            );
        }
    }
}
