//! Every key of the configuration: its default, its flag, and what it means. The command line, its help, `ackstream config` and the
//! check for unknown keys are made from this table.

/// One key.
#[derive(Debug)]
pub struct Key {
    /// Its name in the file, nested with dots.
    pub name: &'static str,
    /// The long flag that sets it, without dashes.
    pub flag: &'static str,
    /// Its value when nobody says otherwise.
    pub default: &'static str,
    /// What kind of value it takes, as help shows it. Empty: a flag without a value, for "true".
    pub value: &'static str,
    /// What it does.
    pub about: &'static str,
    /// Which commands have the flag.
    pub of: Of,
}

/// The commands that have a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// The server, and so the demo.
    Server,
    /// The demo alone.
    Demo,
}

const fn server(
    name: &'static str,
    flag: &'static str,
    default: &'static str,
    value: &'static str,
    about: &'static str,
) -> Key {
    Key { name, flag, default, value, about, of: Of::Server }
}

const fn demo(
    name: &'static str,
    flag: &'static str,
    default: &'static str,
    value: &'static str,
    about: &'static str,
) -> Key {
    Key { name, flag, default, value, about, of: Of::Demo }
}

/// What is different for the demo's own topic: its story is told in seconds.
pub(super) const DEMO_DEFAULTS: [(&str, &str); 4] =
    [("ack_deadline", "2s"), ("max_retries", "3"), ("min_backoff", "0s"), ("max_backoff", "0s")];

/// The positional argument of the demo; no flag.
pub const DEMO_COUNT: &str = "demo.count";

/// All keys, in the order in which people read them.
pub const KEYS: &[Key] = &[
    demo(DEMO_COUNT, "", "10", "COUNT", "Messages that the generator publishes; 0 = without end"),
    demo("demo.interval", "interval", "1s", "TIME", "Time between two generated messages"),
    demo(
        "demo.keep_serving",
        "keep-serving",
        "false",
        "",
        "Go on serving when all generated messages are acked or dropped",
    ),
    server(
        "listen",
        "listen",
        "[::1]:50051",
        "ADDRESS",
        "Where to serve gRPC; \":PORT\" is all addresses, port 0 picks one",
    ),
    server(
        "metrics_listen",
        "metrics-listen",
        "[::1]:9464",
        "ADDRESS",
        "Where to serve /metrics, /livez and /readyz over HTTP, or \"off\"",
    ),
    server(
        "ack_deadline",
        "ack-deadline",
        "30s",
        "TIME",
        "How long a delivery waits for its ACK before it has failed; 2s in the demo",
    ),
    server(
        "max_retries",
        "max-retries",
        "auto",
        "N",
        "Retries before a message is dropped: 0 to 1000, \"unlimited\", or \"auto\": 10 where dead letters have a topic, else unlimited; 3 in the demo",
    ),
    server(
        "max_interruptions",
        "max-interruptions",
        "auto",
        "N",
        "How often consumers' streams may break while they handle a message alone before it is dropped: 0 to 1000, \"unlimited\", or \"auto\": 0 where max_retries is 0, else 3; at 0 the first interruption drops it",
    ),
    server(
        "min_backoff",
        "min-backoff",
        "1s",
        "TIME",
        "Wait after a first failure; doubles with each further one; 0s in the demo",
    ),
    server("max_backoff", "max-backoff", "5m", "TIME", "Longest wait after a failure; 0s in the demo"),
    server(
        "max_backlog_messages",
        "max-backlog-messages",
        "1000000",
        "N",
        "Messages that a subscription keeps, at most",
    ),
    server(
        "max_backlog_bytes",
        "max-backlog-bytes",
        "1GiB",
        "SIZE",
        "Bytes of messages that a subscription keeps, at most",
    ),
    server(
        "max_message_bytes",
        "max-message-bytes",
        "1MiB",
        "SIZE",
        "Largest message, attributes included; at most 16MiB, as every stream may have one in memory",
    ),
    server(
        "max_outstanding_messages",
        "max-outstanding-messages",
        "1000000",
        "N",
        "Most that a consumer may have outstanding",
    ),
    server(
        "max_outstanding_bytes",
        "max-outstanding-bytes",
        "1GiB",
        "SIZE",
        "Most bytes that a consumer may have outstanding",
    ),
    server(
        "max_streams",
        "max-streams",
        "10000",
        "N",
        "Streams of messages that are open at the same time, at most: one for each connection that there may be; as many again may watch the health or use reflection",
    ),
    server(
        "consumer_stuck_after",
        "consumer-stuck-after",
        "30s",
        "TIME",
        "A consumer that takes nothing of what is due to it for so long, and sends nothing, loses its stream: who is only slow has read something by then",
    ),
    server(
        "reconnect_grace",
        "reconnect-grace",
        "2s",
        "TIME",
        "How long a client may take to resume its session after its stream broke, at no cost; 0s = there are no sessions",
    ),
    server(
        "max_connections",
        "max-connections",
        "10000",
        "N",
        "Connections that are open at the same time, at most; an idle one costs 17 KiB and a descriptor",
    ),
    server(
        "max_connections_per_address",
        "max-connections-per-address",
        "1024",
        "N",
        "Connections from one address, at most: one host must not take all",
    ),
    server(
        "max_streams_per_connection",
        "max-streams-per-connection",
        "1000",
        "N",
        "Streams on one connection, at most: one client must not have all; it waits with further ones",
    ),
    server(
        "handshake_timeout",
        "handshake-timeout",
        "5s",
        "TIME",
        "How long a client may take for its first bytes, which cost a whole connection until then",
    ),
    server(
        "tcp_user_timeout",
        "tcp-user-timeout",
        "30s",
        "TIME",
        "After so long without the other host taking a byte its connection is gone, as pings find out in so long; Linux only",
    ),
    server(
        "keepalive_interval",
        "keepalive-interval",
        "20s",
        "TIME",
        "A silent client is asked so often whether it lives: before balancers and NATs forget its connection",
    ),
    server(
        "keepalive_timeout",
        "keepalive-timeout",
        "10s",
        "TIME",
        "How long its answer may take: a stopped process has none",
    ),
    server(
        "max_connection_age",
        "max-connection-age",
        "off",
        "TIME",
        "A connection ends when it is so old, give or take a tenth, so that clients spread anew over servers; or \"off\"",
    ),
    server(
        "max_connection_age_grace",
        "max-connection-age-grace",
        "30s",
        "TIME",
        "How long its streams then have to end by themselves: most handlers are done by then",
    ),
    server(
        "max_header_bytes",
        "max-header-bytes",
        "16KiB",
        "SIZE",
        "Headers of a request, at most, as HTTP/2 counts them: tokens fit, floods do not",
    ),
    server(
        "max_frame_bytes",
        "max-frame-bytes",
        "16KiB",
        "SIZE",
        "Largest HTTP/2 frame that is taken, 16KiB (HTTP/2's own bound) to 1MiB; messages may take several",
    ),
    server(
        "send_buffer_bytes",
        "send-buffer-bytes",
        "128KiB",
        "SIZE",
        "What one stream may have waiting in HTTP/2 to be sent. A client that never reads costs this and one frame: a message, or a batch of up to 1MiB",
    ),
    server(
        "tls_cert",
        "tls-cert",
        "off",
        "FILE",
        "The server's certificate in PEM, and those up to its authority; \"off\" is without TLS",
    ),
    server(
        "tls_key",
        "tls-key",
        "off",
        "FILE",
        "The private key of that certificate in PEM, which others must not read",
    ),
    server(
        "tls_client_ca",
        "tls-client-ca",
        "off",
        "FILE",
        "The authorities of clients' certificates in PEM: clients have to say who they are",
    ),
    server(
        "tokens",
        "tokens",
        "off",
        "FILE",
        "Clients' tokens, a line NAME TOKEN for each, which others must not read: clients have to say who they are",
    ),
    server(
        "reload_interval",
        "reload-interval",
        "5s",
        "TIME",
        "Certificates and tokens are read anew so often; new ones hold from the second look that finds them",
    ),
    server("drain_timeout", "drain-timeout", "8s", "TIME", "How long a stopping server waits for outstanding messages"),
    server("log_format", "log-format", "text", "FORMAT", "text or json"),
    server("log_level", "log-level", "info", "LEVEL", "error, warn, info, debug or trace"),
    server(
        "log_lines_per_second",
        "log-lines-per-second",
        "1000",
        "N",
        "Log lines about single messages, at most; 0 = none",
    ),
    server(
        "log_summary_interval",
        "log-summary-interval",
        "1s",
        "TIME",
        "After so long the log says how many such lines were left out",
    ),
    server(
        "traces_per_second",
        "traces-per-second",
        "100",
        "N",
        "Traces of clean, of retried and of dropped messages, at most each; 0 = none",
    ),
];
