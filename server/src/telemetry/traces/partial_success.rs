//! How many spans of an export the collector rejected although it took the export (OTLP specification, "partial success"). The
//! exporter says so in an event of its log and in no other way, so that is where it is heard, during each export.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::instrument::WithSubscriber as _;
use tracing::{Dispatch, Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, SubscriberExt as _};

/// The exporter's name for the event.
const PARTIAL_SUCCESS: &str = "TonicTracesClient.PartialSuccess";

/// What the collector rejected of one export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rejected {
    pub(super) spans: u64,
    why: String,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the collector rejected {} spans: {}", self.spans, self.why)
    }
}

impl Visit for Rejected {
    fn record_i64(&mut self, field: &Field, value: i64) {
        if field.name() == "rejected_spans" {
            self.spans = value.try_into().unwrap_or(0); // a negative number means nothing
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "error_message" {
            value.clone_into(&mut self.why);
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

/// Hears of partial successes.
pub(super) struct PartialSuccesses {
    heard: Arc<Mutex<Rejected>>,
    dispatch: Dispatch,
}

impl Default for PartialSuccesses {
    fn default() -> Self {
        let heard = Arc::new(Mutex::new(Rejected::default()));
        let ear = Ear(Arc::clone(&heard)).with_filter(LevelFilter::WARN);
        Self { heard, dispatch: tracing_subscriber::registry().with(ear).into() }
    }
}

impl PartialSuccesses {
    /// Awaits an export, and returns with its result what was rejected of it.
    pub(super) async fn hear<T>(&self, export: impl Future<Output = T>) -> (T, Rejected) {
        let result = export.with_subscriber(self.dispatch.clone()).await;
        (result, std::mem::take(&mut self.heard.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

struct Ear(Arc<Mutex<Rejected>>);

impl<S: Subscriber> Layer<S> for Ear {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().name() == PARTIAL_SUCCESS {
            event.record(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}
