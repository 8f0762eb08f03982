//! The name and the meaning of every metric, in one place.

/// Metrics of one name.
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
}

const fn family(name: &'static str, help: &'static str) -> Family {
    Family { name, help }
}

pub(super) const PUBLISHED: Family = family(
    "ackstream_messages_published_total",
    "Messages accepted. With recovered + replayed always equal to acked + dropped + purged + filtered + those in all states of \
     ackstream_messages.",
);
/// What later versions count: exported from the start, so that rules and dashboards of one version fit the next.
pub(super) const RESERVED: [Family; 4] = [
    family("ackstream_messages_recovered_total", "Messages that this process found when it started."),
    family("ackstream_messages_replayed_total", "Settled messages that are delivered again."),
    family("ackstream_messages_purged_total", "Messages settled without a delivery, by an operator."),
    family("ackstream_messages_filtered_total", "Messages that their subscription did not want."),
];
pub(super) const REJECTED: Family =
    family("ackstream_messages_rejected_total", "Publishes refused; nothing of them was stored.");
pub(super) const SENT: Family = family(
    "ackstream_messages_sent_total",
    "Deliveries, redeliveries included. Always equal to ackstream_deliveries_ended_total of all outcomes + the outstanding messages.",
);
pub(super) const RETRIED: Family = family(
    "ackstream_messages_retried_total",
    "Deliveries after a failure, by the number of failures and by how the last one ended; counted in sent, too.",
);
pub(super) const ACKED: Family =
    family("ackstream_messages_acked_total", "Messages settled by an ack, late ones included.");
pub(super) const DROPPED: Family = family(
    "ackstream_messages_dropped_total",
    "Messages given up: max_retries = a delivery failed and no retry was left, rejected = a consumer said so, max_interruptions = \
     consumers' streams broke too often while the message was delivered alone.",
);
pub(super) const ENDED: Family = family(
    "ackstream_deliveries_ended_total",
    "Deliveries by how they ended: acked in time, nacked, expired at the ack deadline, interrupted = the consumer's stream broke while \
     the delivery was in progress, released = it went back at no cost.",
);
pub(super) const RELEASED: Family = family(
    "ackstream_deliveries_released_total",
    "Deliveries that went back at no cost, by why: the consumer left, the server closed its stream, its stream broke before the \
     delivery had begun, it was given back, or it was lost on the way.",
);
pub(super) const LATE_ACKS: Family =
    family("ackstream_late_acks_total", "Acks that settled a message after its delivery had ended.");
pub(super) const IGNORED: Family = family(
    "ackstream_acks_ignored_total",
    "Acks, nacks and extends that changed nothing, by why: the message was settled, the message or attempt is unknown, a later attempt \
     is outstanding (stale), the sender does not hold it.",
);
pub(super) const DEAD_LETTERS: Family = family(
    "ackstream_dead_letters_total",
    "Dropped messages handed to a dead-letter topic: published, or refused and offered again later.",
);
pub(super) const MESSAGES: Family = family(
    "ackstream_messages",
    "Messages not yet settled: ready to be delivered, delayed until a retry is due, outstanding at a consumer.",
);
pub(super) const OLDEST: Family = family(
    "ackstream_oldest_unacked_timestamp_seconds",
    "When the oldest message not yet settled was accepted, in seconds since 1970; 0 = there is none.",
);
pub(super) const CONSUMERS: Family = family(
    "ackstream_consumers",
    "Consumers by what they do: waiting for a message, full = as many outstanding as they allow, unresponsive = let a delivery expire \
     and have said nothing since.",
);
pub(super) const STREAMS_CLOSED: Family = family(
    "ackstream_streams_closed_total",
    "Exchange streams that ended, by their status; CANCELLED = the client broke off.",
);
pub(super) const ACK_LATENCY: Family = family(
    "ackstream_ack_latency_seconds",
    "From the sending of the acked delivery to its ack; late acks are in no bucket.",
);
pub(super) const SETTLE_LATENCY: Family =
    family("ackstream_settle_latency_seconds", "From the accepting of a message to its ack or drop.");
pub(super) const ATTEMPTS: Family = family("ackstream_message_attempts", "Deliveries that a settled message has had.");
pub(super) const ACK_DEADLINE: Family =
    family("ackstream_config_ack_deadline_seconds", "The configured ack deadline of a delivery.");
pub(super) const MAX_INTERRUPTIONS: Family = family(
    "ackstream_config_max_interruptions",
    "The configured interruptions of a message alone before it is dropped; +Inf = unlimited.",
);
pub(super) const MAX_RETRIES: Family = family(
    "ackstream_config_max_retries",
    "The configured retries of a message before it is dropped; +Inf = unlimited.",
);
pub(super) const SPANS_DROPPED: Family = family(
    "ackstream_spans_dropped_total",
    "Spans that were not exported: the queue was full, the export failed, or more traces a second than allowed.",
);
pub(super) const CONTEXTS_IGNORED: Family = family(
    "ackstream_trace_contexts_ignored_total",
    "Messages published with a trace context that could not be understood.",
);
pub(super) const CONNECTIONS: Family = family("ackstream_connections", "Connections that are open.");
pub(super) const CONNECTIONS_REFUSED: Family = family(
    "ackstream_connections_refused_total",
    "Connections closed as soon as they were accepted: too many were open, in all or from one address.",
);
pub(super) const CONNECTIONS_CLOSED: Family = family(
    "ackstream_connections_closed_total",
    "Connections that the server closed: no HTTP/2 came in time (no_preface), the end of a stream was not read, or its age was reached.",
);
pub(super) const CONSUMERS_STUCK: Family = family(
    "ackstream_consumers_stuck_total",
    "Consumers whose stream was ended because they took nothing of what was due to them, and sent nothing.",
);
pub(super) const BUILD_INFO: Family = family("ackstream_build_info", "What this server was built from.");
pub(super) const HANDLED: Family =
    family("grpc_server_handled_total", "Calls that ended, by method and status; streams are counted at their end.");
pub(super) const HANDLING: Family = family("grpc_server_handling_seconds", "How long unary calls took.");
pub(super) const CPU_SECONDS: Family =
    family("process_cpu_seconds_total", "User and system time that the process has used.");
pub(super) const OPEN_FDS: Family = family("process_open_fds", "Open file descriptors.");
pub(super) const MAX_FDS: Family = family("process_max_fds", "The most file descriptors that may be open.");
pub(super) const VIRTUAL_MEMORY: Family = family("process_virtual_memory_bytes", "Virtual memory in use.");
pub(super) const VIRTUAL_MEMORY_MAX: Family =
    family("process_virtual_memory_max_bytes", "The most virtual memory that may be used.");
pub(super) const RESIDENT_MEMORY: Family = family("process_resident_memory_bytes", "Memory in RAM.");
pub(super) const START_TIME: Family =
    family("process_start_time_seconds", "When the process started, in seconds since 1970.");
pub(super) const THREADS: Family = family("process_threads", "Threads of the process.");
