//! The spans of one settled message: `deliver {topic}` from accept to ack or drop, and below it a `push {topic}` for each delivery.
//!
//! Names and attributes are those of OpenTelemetry's messaging conventions where they have one, else `messaging.ackstream.*`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ackstream_core::{Attempt, DropReason, MessageId, Outcome, Time};
use opentelemetry::trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::OnTheWay;
use super::context::Trace;

/// Where messages come from.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) topic: String,
    pub(super) subscription: String,
}

/// All that the spans of one message are made of. It holds nothing of the message's own, so that a queue of them has a bound in bytes.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) origin: Arc<Origin>,
    pub(super) id: MessageId,
    pub(super) trace: Trace,
    pub(super) accepted_at: Time,
    pub(super) settled_at: Time,
    pub(super) end: End,
    /// Deliveries, those that are not in `pushes` included.
    pub(super) attempts: u32,
    pub(super) pushes: Box<[Push]>,
    /// Its spans, as they are counted.
    pub(super) on_the_way: OnTheWay,
}

/// How a message was settled.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    Acked {
        /// After its delivery had ended.
        late: bool,
    },
    Dropped(DropReason),
}

/// One delivery.
#[derive(Debug)]
pub(super) struct Push {
    pub(super) attempt: Attempt,
    pub(super) client_id: Option<Arc<str>>,
}

impl Record {
    /// Makes the spans, the message's own first.
    pub(super) fn write(&self, scope: &InstrumentationScope, spans: &mut Vec<SpanData>) {
        spans.push(self.deliver(scope));
        let mut before = None;
        for push in &self.pushes {
            spans.push(self.push(push, before, scope));
            before = Some(push.attempt.number);
        }
    }

    fn deliver(&self, scope: &InstrumentationScope) -> SpanData {
        let mut attributes = self.attributes("deliver");
        attributes.push(KeyValue::new("messaging.ackstream.delivery_attempts", i64::from(self.attempts)));
        let left_out = self.attempts - u32::try_from(self.pushes.len()).expect("a history is short");
        if left_out > 0 {
            attributes.push(KeyValue::new("messaging.ackstream.delivery_attempts_left_out", i64::from(left_out)));
        }
        let outcome = match self.end {
            End::Acked { .. } => "acked",
            End::Dropped(_) => "dropped",
        };
        attributes.push(KeyValue::new("messaging.ackstream.outcome", outcome));
        let status = match self.end {
            End::Acked { late: false } => Status::Unset,
            End::Acked { late: true } => {
                attributes.push(KeyValue::new("messaging.ackstream.late_ack", true));
                Status::Unset
            }
            End::Dropped(reason) => {
                let why = match reason {
                    DropReason::MaxRetries => "dropped: no retry is left",
                    DropReason::Rejected => "dropped: its consumer rejected it",
                    DropReason::MaxInterruptions => "dropped: consumers' streams broke too often while it was handled",
                };
                attributes.push(KeyValue::new("error.type", reason.name()));
                Status::error(why)
            }
        };
        let parent = self.trace.parent.map_or(SpanId::INVALID, |parent| span_id(parent.span));
        SpanData {
            span_context: self.context(self.trace.deliver_span()),
            parent_span_id: parent,
            parent_span_is_remote: parent != SpanId::INVALID,
            span_kind: SpanKind::Internal,
            name: format!("deliver {}", self.origin.topic).into(),
            start_time: wall(self.accepted_at),
            end_time: wall(self.settled_at),
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status,
            instrumentation_scope: scope.clone(),
        }
    }

    fn push(&self, push: &Push, before: Option<u32>, scope: &InstrumentationScope) -> SpanData {
        let Attempt { number, outcome, sent_at, ended_at, consumer: _ } = push.attempt;
        let mut attributes = self.attributes("push");
        attributes.push(KeyValue::new("messaging.operation.type", "send"));
        if let Some(client_id) = &push.client_id {
            attributes.push(KeyValue::new("messaging.client.id", Value::from(Arc::clone(client_id))));
        }
        attributes.push(KeyValue::new("messaging.ackstream.delivery_attempt", i64::from(number)));
        let (why, failed) = match outcome {
            Outcome::Acked | Outcome::Released(_) => ("", false),
            Outcome::Nacked => ("its consumer nacked it", true),
            Outcome::Expired => ("no ack came in time", true),
            Outcome::Interrupted => ("its consumer's stream broke", true),
        };
        attributes.push(KeyValue::new("messaging.ackstream.outcome", outcome.name()));
        if failed {
            attributes.push(KeyValue::new("error.type", outcome.name()));
        }
        let mut links = SpanLinks::default();
        let before = before.map(|before| self.context(self.trace.push_span(before)));
        links.links.extend(before.map(|before| Link::new(before, Vec::new(), 0)));
        SpanData {
            span_context: self.context(self.trace.push_span(number)),
            parent_span_id: span_id(self.trace.deliver_span()),
            parent_span_is_remote: false,
            span_kind: SpanKind::Producer,
            name: format!("push {}", self.origin.topic).into(),
            start_time: wall(sent_at),
            end_time: wall(ended_at),
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links,
            status: if failed { Status::error(why) } else { Status::Unset },
            instrumentation_scope: scope.clone(),
        }
    }

    fn attributes(&self, operation: &'static str) -> Vec<KeyValue> {
        let mut attributes = Vec::with_capacity(10);
        attributes.extend([
            KeyValue::new("messaging.system", "ackstream"),
            KeyValue::new("messaging.operation.name", operation),
            KeyValue::new("messaging.destination.name", self.origin.topic.clone()),
            KeyValue::new("messaging.destination.subscription.name", self.origin.subscription.clone()),
            KeyValue::new("messaging.message.id", self.id.0.to_string()),
        ]);
        attributes
    }

    fn context(&self, span: u64) -> SpanContext {
        let trace = TraceId::from_bytes(self.trace.id.to_be_bytes());
        SpanContext::new(trace, span_id(span), TraceFlags::SAMPLED, false, TraceState::NONE)
    }
}

const fn span_id(id: u64) -> SpanId {
    SpanId::from_bytes(id.to_be_bytes())
}

fn wall(time: Time) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(time.as_nanos())
}
