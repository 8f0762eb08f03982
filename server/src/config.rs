//! The configuration: defaults < `ackstream.toml` < environment < flags. Every problem is found and told at once, with its key and the
//! source that it came from.

mod keys;
mod layers;
mod security;
mod topics;
mod values;

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use tracing_subscriber::filter::LevelFilter;

pub use keys::{DEMO_COUNT, KEYS, Key, Of};
pub use layers::{Defaults, Flag, Layers};

use crate::address::Listen;
use crate::connection::ConnectionLimits;
use crate::exchange::{DEFAULT_NAME, StreamLimits};
use crate::generator::Plan;
use crate::logging::LogFormat;
use crate::security::{Security, SecuritySettings};
use crate::server::Settings;
use crate::telemetry::LineLimits;
use values::Values;

/// A batch of small messages has no more bytes.
const LARGEST_BATCH: u64 = 1 << 20;
/// The largest message that any configuration may allow (16 MiB).
const LARGEST_MESSAGE: u64 = 16 << 20;

/// Everything that can be configured, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to serve gRPC.
    pub listen: Listen,
    /// Where to serve metrics over HTTP; `None` = nowhere.
    pub metrics_listen: Option<Listen>,
    /// What the server is made of.
    pub settings: Settings,
    /// Who may do what, and the files that say so; not read yet.
    pub security: SecuritySettings,
    /// How long a stopping server waits for outstanding messages.
    pub drain_timeout: Duration,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Which log lines there are.
    pub log_level: LevelFilter,
    /// What the demo publishes.
    pub plan: Plan,
    /// Whether the demo goes on serving when its messages are settled.
    pub keep_serving: bool,
    /// Each key with the value in force and its source.
    pub effective: Vec<Effective>,
}

/// One value in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// The table that it stands in; empty at the top level.
    pub table: String,
    /// The key.
    pub key: &'static str,
    /// Its value as it was written.
    pub value: String,
    /// Where it came from.
    pub source: String,
}

/// One thing that is wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key and its value, or whatever else is wrong.
    pub what: String,
    /// Where it came from; empty where that is no single place.
    pub source: String,
    /// What to do.
    pub must: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, source, must } = self;
        if source.is_empty() { write!(f, "{what}: {must}") } else { write!(f, "{what} ({source}): {must}") }
    }
}

impl Config {
    /// Reads and checks all layers.
    ///
    /// # Errors
    ///
    /// Everything that is wrong.
    pub fn load(layers: &Layers) -> Result<Self, Vec<Problem>> {
        let mut values = Values::new(layers);
        let policy = topics::default_policy(&mut values);
        let max_message_bytes: u64 = values.get("max_message_bytes", values::bytes);
        if !(1..=LARGEST_MESSAGE).contains(&max_message_bytes) {
            values.must("max_message_bytes", "between 1B and 16MiB");
        }
        if policy.max_backlog_bytes > 0 && policy.max_backlog_bytes < max_message_bytes {
            values.must("max_backlog_bytes", "at least max_message_bytes, or the largest message never fits");
        }
        let topics = topics::topics(&mut values, &policy, max_message_bytes);
        let hour = Duration::from_hours(1);
        let connections = connection_limits(&mut values);
        let limits = StreamLimits {
            max_streams: values.at_least_one("max_streams", values::number::<u32>) as usize,
            max_outstanding_messages: values.at_least_one("max_outstanding_messages", values::number),
            max_outstanding_bytes: values.at_least_one("max_outstanding_bytes", values::bytes),
            consumer_stuck_after: values.between("consumer_stuck_after", Duration::from_secs(1), hour),
            // What waits in HTTP/2, and the largest frame: a message, or a batch. Twice, for what the system holds.
            unread_bytes_per_stream: 2 * (connections.send_buffer_bytes as u64 + max_message_bytes.max(LARGEST_BATCH)),
            reconnect_grace: values.between("reconnect_grace", Duration::ZERO, Duration::from_mins(5)),
        };
        let drain_timeout = values.between("drain_timeout", Duration::ZERO, hour);
        let summary_interval = values.between("log_summary_interval", Duration::from_millis(100), hour);
        let count = NonZeroU64::new(values.get(DEMO_COUNT, values::count));
        let interval = values.between("demo.interval", Duration::from_millis(1), 24 * hour);
        let settings = Settings {
            policy,
            topics,
            max_message_bytes,
            limits,
            connections,
            log_lines: LineLimits { per_second: values.get("log_lines_per_second", values::number), summary_interval },
            security: Arc::default(), // its files are read where a server is started
            traces: None,             // the standard variables of OpenTelemetry say how
            traces_per_second: values.get("traces_per_second", values::number),
            demo_count: count.map(NonZeroU64::get),
        };
        let config = Self {
            listen: values.get("listen", values::listen),
            metrics_listen: values.get("metrics_listen", values::listen_or_off),
            security: security::security(&mut values, &settings.topics()),
            settings,
            drain_timeout,
            log_format: values.get("log_format", values::log_format),
            log_level: values.get("log_level", values::log_level),
            plan: Plan { count, interval },
            keep_serving: values.get("demo.keep_serving", values::boolean),
            effective: values.effective(),
        };
        let listen = if values.is_default("listen") { config.listen.or_loopback() } else { config.listen };
        let metrics_listen = if values.is_default("metrics_listen") {
            config.metrics_listen.map(Listen::or_loopback)
        } else {
            config.metrics_listen
        };
        values.finish().map(|()| Self { listen, metrics_listen, ..config })
    }
}

/// No connection need be older: whoever wants more turns the bound off.
const LONGEST_AGE: Duration = Duration::from_hours(365 * 24);

fn connection_limits(values: &mut Values<'_>) -> ConnectionLimits {
    let (instant, minute, hour) = (Duration::from_millis(100), Duration::from_mins(1), Duration::from_hours(1));
    let max_age = values.get("max_connection_age", values::duration_or_off);
    if max_age.is_some_and(|age| !(Duration::from_secs(1)..=LONGEST_AGE).contains(&age)) {
        values.must("max_connection_age", "between 1s and 365days, or \"off\"");
    }
    ConnectionLimits {
        max_connections: values.at_least_one("max_connections", values::number::<u32>) as usize,
        max_connections_per_address: values.at_least_one("max_connections_per_address", values::number::<u32>) as usize,
        handshake_timeout: values.between("handshake_timeout", instant, minute),
        tcp_user_timeout: values.between("tcp_user_timeout", Duration::from_secs(1), hour),
        keepalive_interval: values.between("keepalive_interval", Duration::from_secs(1), hour),
        keepalive_timeout: values.between("keepalive_timeout", instant, hour),
        max_age,
        age_grace: values.between("max_connection_age_grace", Duration::ZERO, hour),
        max_streams: values.at_least_one("max_streams_per_connection", values::number),
        max_header_bytes: values.size_between("max_header_bytes", 1 << 10, 1 << 20),
        max_frame_bytes: values.size_between("max_frame_bytes", 16 << 10, 1 << 20),
        send_buffer_bytes: values.size_between("send_buffer_bytes", 16 << 10, 64 << 20) as usize,
    }
}

impl Config {
    /// The same, with the files of its security read.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with them.
    pub fn with_files(mut self) -> Result<Self, Vec<Problem>> {
        self.settings.security = Arc::new(Security::load(self.security.clone())?);
        Ok(self)
    }

    /// The same, where it suits what is to be run: the demo needs its topic.
    ///
    /// # Errors
    ///
    /// Why it does not.
    pub fn suits(self, demo: bool) -> Result<Self, Vec<Problem>> {
        let topics = self.settings.topics();
        if !demo || topics.iter().any(|topic| topic.name == DEFAULT_NAME) {
            return Ok(self);
        }
        let must = "the demo publishes to this topic: add [topics.demo.subscriptions.demo], or run `ackstream serve`";
        Err(vec![Problem { what: "topics.demo".to_owned(), source: String::new(), must: must.to_owned() }])
    }
}

/// The configuration in force, as a file that would give it again, with the source of each value.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut current = "";
        for Effective { table, key, value, source } in &self.effective {
            if table != current {
                current = table;
                writeln!(f, "\n[{current}]")?;
            }
            writeln!(f, "{:<44}# {source}", format!("{key} = {value}"))?;
        }
        Ok(())
    }
}
