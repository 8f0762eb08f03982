//! The log: lines for people, with a prefix, or JSON. A thread of its own writes it, so that a stopped terminal stops no message.

use std::fmt::{self, Write as _};
use std::io::IsTerminal as _;

use anstyle::{AnsiColor, Style};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// "[RUST SERVER] " and a sentence, in colour on a terminal unless `NO_COLOR` is set.
    Text,
    /// One JSON object a line: timestamp, level, message, and what the line is about.
    Json,
}

/// Lines that wait to be written, at most; beyond it lines are lost rather than messages held up.
const MAX_WAITING_LINES: usize = 16_384;

/// The running log. What was written reaches the output at the latest when this is dropped.
pub struct Log {
    lost: ErrorCounter,
    _writer: WorkerGuard,
}

impl Log {
    /// How many lines were lost, because whoever reads the output was too slow.
    pub fn lost_lines(&self) -> usize {
        self.lost.dropped_lines()
    }
}

/// Starts the log on standard output.
///
/// # Panics
///
/// Where a log was started before.
pub fn start(format: LogFormat, level: LevelFilter) -> Log {
    let (output, writer) =
        NonBlockingBuilder::default().buffered_lines_limit(MAX_WAITING_LINES).lossy(true).finish(std::io::stdout());
    let lost = output.error_counter();
    // Libraries are heard only when something is wrong.
    let filter = Targets::new().with_default(level.min(LevelFilter::WARN)).with_target("ackstream", level);
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(output);
    match format {
        LogFormat::Text => registry.with(layer.event_format(Text { colour: use_colour() })).init(),
        LogFormat::Json => {
            registry.with(layer.json().flatten_event(true).with_target(false).with_current_span(false)).init();
        }
    }
    Log { lost, _writer: writer }
}

fn use_colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

struct Text {
    colour: bool,
}

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let style = if self.colour { AnsiColor::Cyan.on_default() } else { Style::new() };
        write!(writer, "{style}[RUST SERVER]{style:#} ")?;
        let level = *event.metadata().level();
        if level != Level::INFO {
            write!(writer, "{level}: ")?;
        }
        let mut sentence = Sentence::default();
        event.record(&mut sentence);
        writer.write_str(&sentence.message)?;
        if level > Level::INFO {
            writer.write_str(&sentence.fields)?; // the sentences of debug and trace are incomplete without
        }
        writeln!(writer)
    }
}

/// The message of an event, and its fields as " name=value".
#[derive(Default)]
struct Sentence {
    message: String,
    fields: String,
}

impl Visit for Sentence {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}
