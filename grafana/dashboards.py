#!/usr/bin/env python3
"""Writes the dashboards in grafana/dashboards/; this file is their source.

    python3 grafana/dashboards.py            writes them
    python3 grafana/dashboards.py --check    exit code 1 where a file is not what this one makes

A panel is a title, a unit, what it asks Prometheus for, and what a bad shape means. It needs nothing but Python.
"""

import sys
from pathlib import Path

from rendering import (
    BLUE,
    GREEN,
    METRICS,
    ORANGE,
    RED,
    YELLOW,
    Dashboard,
    Json,
    Panel,
    Query,
    Row,
    Search,
    Text,
    constant,
    datasource,
    link,
    render,
    values,
)

FOLDER = Path(__file__).parent / "dashboards"

PROCESS = 'job=~"$job", instance=~"$instance"'
TOPIC = f'{PROCESS}, topic=~"$topic"'
WHICH = f'{TOPIC}, subscription=~"$subscription"'
ALERTS = 'alertname=~"Ackstream.*", alertstate="firing", job=~"$job", instance=~"$instance|"'
"""Alerts about a server that nobody finds have no instance."""


def rate(metric: str, more: str = "", labels: str = WHICH) -> str:
    """Returns the rate of a counter, selected by what the dashboard's variables say."""
    return f"rate({metric}{{{labels}{more and ', ' + more}}}[$__rate_interval])"


def of_servers(expression: str) -> str:
    """Returns an expression of processes without those that are no server: everything that is scraped may be chosen."""
    return f"({expression}) and on (job, instance) ackstream_build_info{{{PROCESS}}}"


def of_clients(expression: str) -> str:
    """Returns an expression of processes without those that are no client."""
    return f"({expression}) and on (job, instance) ackstream_client_connected{{{PROCESS}}}"


def quantile(share: float, histogram: str, more: str = "", labels: str = WHICH) -> str:
    """Returns a quantile of a histogram."""
    return f"histogram_quantile({share}, sum by (le) ({rate(histogram + '_bucket', more, labels)}))"


def quantiles(histogram: str, more: str = "", labels: str = WHICH, *, exemplars: bool = False) -> tuple[Query, ...]:
    """Returns the quantiles that latencies are shown by."""
    return tuple(
        Query(quantile(share, histogram, more, labels), name, exemplars=exemplars)
        for share, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    )


# ---- the server's dashboard, in the order of a message's path

IS_ANYTHING_LOST = Row(
    "Is anything lost?",
    (
        Panel(
            "Unaccounted", "short",
            "Accepted messages and deliveries that are in no place, and drops without a fault of the message's own: all three laws. Must be 0. "
            "Anything else is a bug of ackstream: keep /metrics and the log, and report it.",
            (Query(
                f"(sum(abs(ackstream:messages_unaccounted{{{WHICH}}})) + sum(abs(ackstream:deliveries_unaccounted{{{WHICH}}})) "
                f"+ sum(ackstream:drops_unexplained{{{WHICH}}})) or vector(0)"
            ),),
            "stat", 4, 4, steps=((None, GREEN), (1, RED)),
        ),
        Panel(
            "Dropped", "short",
            "Messages given up in the time shown. Should be 0 where nothing is poisoned (the demo poisons 0.5 %). Look at the traces of "
            "dropped messages below; max_retries means that deliveries failed until no retry was left, rejected that a consumer said so, "
            "max_interruptions that the message's consumers broke off each time.",
            (Query(f"sum(increase(ackstream_messages_dropped_total{{{WHICH}}}[$__range]))"),),
            "stat", 4, 4, decimals=0, steps=((None, GREEN), (1, ORANGE)),
        ),
        Panel(
            "Acked share", "percentunit",
            "Of the messages settled in the time shown, the share that was acked. Below 99 % consumers fail for good on some messages.",
            (Query(
                f"sum(increase(ackstream_messages_acked_total{{{WHICH}}}[$__range])) / (sum(increase(ackstream_messages_acked_total{{{WHICH}}}"
                f"[$__range])) + sum(increase(ackstream_messages_dropped_total{{{WHICH}}}[$__range])))"
            ),),
            "stat", 4, 4, decimals=2, steps=((None, RED), (0.95, ORANGE), (0.99, GREEN)),
        ),
        Panel(
            "Retry share", "percentunit",
            "Of all deliveries, the share that came after a failure. The demo has about 20 %. Above 25 % for long, look at the retries by "
            "reason.",
            (Query(f"sum({rate('ackstream_messages_retried_total')}) / (sum({rate('ackstream_messages_sent_total')}) > 0) or vector(0)"),),
            "stat", 4, 4, decimals=1, steps=((None, GREEN), (0.25, ORANGE), (0.5, RED)),
        ),
        Panel(
            "Outstanding", "short",
            "Delivered, not settled. Rises with the rate and with the consumers' latency; at a flat maximum their windows are full.",
            (Query(f'sum(ackstream_messages{{{WHICH}, state="outstanding"}})'),),
            "stat", 4, 4, steps=((None, BLUE),),
        ),
        Panel(
            "Backlog", "short",
            "Accepted, not settled: ready, delayed and outstanding. Growing without end means that consumers do not keep up; at the bound "
            "publishers are refused.",
            (Query(f"sum(ackstream_messages{{{WHICH}}})"),),
            "stat", 4, 4, steps=((None, BLUE),),
        ),
        Panel(
            "Oldest unacked", "s",
            "How long the oldest message that is not settled has waited. A message that uses all its retries takes (max retries + 1) ack "
            "deadlines; beyond three times that, consumers do not keep up or none is there.",
            (Query(f"max(ackstream:oldest_unacked_age_seconds{{{WHICH}}}) or vector(0)"),),
            "stat", 6, 4, decimals=1, steps=((None, GREEN), (10, YELLOW), (30, RED)),
        ),
        Panel(
            "Consumers", "short",
            "Consumers that wait for a message, whose window is full, or that do not answer; one that is being sent to counts in none. 0 with a "
            "backlog: no consumer is there.",
            (Query(f"sum(ackstream_consumers{{{WHICH}}})"),),
            "stat", 6, 4, steps=((None, RED), (1, GREEN)),
        ),
        Panel(
            "Firing alerts", "short",
            "Alerts of ackstream that fire. The demo's drops are one ticket; a page says that somebody must look at once. Their "
            "descriptions, at the link above, say what to do.",
            (Query(f"count(ALERTS{{{ALERTS}}}) or vector(0)"),),
            "stat", 6, 4, steps=((None, GREEN), (1, ORANGE)),
        ),
        Panel(
            "Servers", "short",
            "Servers that answer scrapes. 0: down, or not found by Prometheus; what they held is gone with them.",
            (Query(f"sum({of_servers(f'up{{{PROCESS}}}')}) or vector(0)"),),
            "stat", 6, 4, steps=((None, RED), (1, GREEN)),
        ),
    ),
)  # fmt: skip

BAD_DAYS = Row(
    "How to tell a bad day",
    (
        Text(
            "Four bad days",
            """\
| | retry storm | poison message | slow consumer | lost consumer |
| --- | --- | --- | --- | --- |
| **first seen in** | *Amplification* and *Retries by number*: up on **all** numbers | *Retries by number*: **flat**, as many of 1 as of 3 | *Ack latency*: p50 **at the deadline** | *Consumers*: fewer, then none |
| **outcomes** | nacked or expired, nearly all | a few nacked, all else acked | **expired** | a burst of **interrupted** |
| **backlog** | grows, delayed above all | small, steady; *Oldest unacked* saws up and down | outstanding up, *Consumers*: **full** | ready grows, nothing is sent |
| **also** | *Late and ignored acks* up | *Dropped* rises steadily | *Late and ignored acks* up | *Acked* at 0 |
| **do** | mend what all consumers need; lower the rate | read the trace of a dropped message; mend or reject it | raise the ack deadline, extend, or add consumers | start consumers; nothing is lost meanwhile |
""",
            height=8,
        ),
    ),
)  # fmt: skip

RETRY_BEHAVIOUR = Row(
    "Retry behaviour",
    (
        Panel(
            "Flow", "ops",
            "Messages a second: accepted, handed over (retries included), acked, retried, dropped. Sent well above published: retries. Acked below "
            "published for long: the backlog grows.",
            (
                Query(f"sum({rate('ackstream_messages_published_total')})", "published"),
                Query(f"sum({rate('ackstream_messages_sent_total')})", "sent"),
                Query(f"sum({rate('ackstream_messages_acked_total')})", "acked"),
                Query(f"sum({rate('ackstream_messages_retried_total')})", "retried"),
                Query(f"sum({rate('ackstream_messages_dropped_total')})", "dropped"),
            ),
            width=12, height=8,
        ),
        Panel(
            "Delivery outcomes", "ops",
            "How deliveries ended. Nacked: consumers fail. Expired: they hang, or need longer than the ack deadline. Interrupted: their streams "
            "broke. Released: they went back at no cost.",
            (Query(f"sum by (outcome) ({rate('ackstream_deliveries_ended_total')})", "{{outcome}}"),),
            width=12, height=8, stacked=True,
        ),
        Panel(
            "Retries by number", "ops",
            "Falling steps (1 above 2 above 3) are chance failures, which retries mend. Equal steps are poison: the same messages fail every time.",
            (Query(f"sum by (retry) ({rate('ackstream_messages_retried_total')})", "retry {{retry}}"),),
            stacked=True,
        ),
        Panel(
            "Retries by reason", "ops",
            "How the failed delivery before ended: expired = no ack in time, nacked = the consumer failed.",
            (Query(f"sum by (reason) ({rate('ackstream_messages_retried_total')})", "{{reason}}"),),
            stacked=True,
        ),
        Panel(
            "Amplification", "none",
            "Deliveries for each that was no retry: 1 = no retry at all, 4 = every message uses three retries. It is the load that failing "
            "consumers add to themselves.",
            (Query(
                f"sum({rate('ackstream_messages_sent_total')}) / (sum({rate('ackstream_messages_sent_total')}) - "
                f"sum({rate('ackstream_messages_retried_total')}) > 0)", "deliveries a message",
            ),),
            decimals=2,
        ),
        Panel(
            "Attempts needed", "short",
            "Acked messages in the time shown by how many deliveries they needed. Each bar should be much shorter than the one before; a long last "
            "bar says that messages barely make it.",
            (Query(f'sum by (le) (increase(ackstream_message_attempts_bucket{{{WHICH}, outcome="acked"}}[$__range]))', "{{le}}", heatmap=True),),
            "bargauge", decimals=0,
        ),
        Panel(
            "Late and ignored acks", "ops",
            "Late: the ack came after its delivery had ended, and settled the message all the same. Ignored: it changed nothing; settled = acked "
            "twice, stale = of an earlier attempt, not_held = of another consumer. Many of them: consumers are slower than the deadline.",
            (
                Query(f"sum({rate('ackstream_late_acks_total')})", "late"),
                Query(f"sum by (reason) ({rate('ackstream_acks_ignored_total')})", "ignored: {{reason}}"),
            ),
        ),
        Panel(
            "Drops and dead letters", "ops",
            "Messages given up, by reason, and what their dead-letter topic did with them. Refused: it is full, and they are offered again; they "
            "wait as delayed messages.",
            (
                Query(f"sum by (reason) ({rate('ackstream_messages_dropped_total')})", "dropped: {{reason}}"),
                Query(f"sum by (outcome) ({rate('ackstream_dead_letters_total')})", "dead letters: {{outcome}}"),
            ),
        ),
    ),
)  # fmt: skip

DEADLINE = Query(f"max(ackstream_config_ack_deadline_seconds{{{WHICH}}})", "the ack deadline")

LATENCY = Row(
    "Latency",
    (
        Panel(
            "Ack latency", "s",
            "From the handing over of an attempt to its ack; expired ones are not in it. Lines that lean on the deadline are a slow consumer: "
            "what takes longer expires and is counted as a retry.",
            (*quantiles("ackstream_ack_latency_seconds"), DEADLINE),
        ),
        Panel(
            "Ack latency, all of it", "s",
            "The same as a heatmap. Two bands are two kinds of consumers or messages; a band that climbs is a consumer that gets slower.",
            (Query(f"sum by (le) ({rate('ackstream_ack_latency_seconds_bucket')})", "{{le}}", heatmap=True),),
            "heatmap",
        ),
        Panel(
            "Accept to settle", "s",
            "From accepting a message to its ack, waits and retries included: what a publisher's users feel. Steps at multiples of the ack "
            "deadline are retries.",
            quantiles("ackstream_settle_latency_seconds", 'outcome="acked"'),
        ),
    ),
)  # fmt: skip

BACKLOG = Row(
    "Backlog and streams",
    (
        Panel(
            "Messages not settled", "short",
            "Ready: may be delivered now. Growing: too few consumers. Delayed: wait out a backoff or a dead-letter topic. Outstanding: at consumers.",
            (Query(f"sum by (state) (ackstream_messages{{{WHICH}}})", "{{state}}"),),
            stacked=True,
        ),
        Panel(
            "Age of the oldest message", "s",
            "Saw teeth of one height are messages that use all their retries. A line that climbs is a subscription that falls behind.",
            (Query(f"max by (topic, subscription) (ackstream:oldest_unacked_age_seconds{{{WHICH}}})", "{{topic}}/{{subscription}}"),),
        ),
        Panel(
            "Consumers by state", "short",
            "Waiting: nothing to deliver to them. Full: they hold as many unacked messages as they allow; all full = consumers are the bottleneck. "
            "Unresponsive: they let a delivery expire and have said nothing since; others go first.",
            (Query(f"sum by (state) (ackstream_consumers{{{WHICH}}})", "{{state}}"),),
            stacked=True,
        ),
        Panel(
            "Refused publishes", "ops",
            "Should be 0. backlog_full: a subscription is at its bound; too_large and invalid: a publisher's mistake; draining: the server stops; denied: a client may not publish there.",
            (Query(f"sum by (topic, reason) ({rate('ackstream_messages_rejected_total', labels=TOPIC)})", "{{topic}}: {{reason}}"),),
            width=12,
        ),
        Panel(
            "Streams that ended", "ops",
            "By gRPC status. OK: finished. CANCELLED: the client broke off. UNAVAILABLE: the server stopped. Anything else is a client to look at.",
            (Query(f"sum by (grpc_code) ({rate('ackstream_streams_closed_total', labels=PROCESS)})", "{{grpc_code}}"),),
            width=12,
        ),
    ),
)  # fmt: skip

TRACE_SEARCHES = Row(
    "Traces",
    (
        Search(
            "Dropped messages",
            "Click a trace: every attempt, who had it, and how it ended. Retried and dropped messages are always traced; clean ones by sampling.",
            "messaging.ackstream.outcome=dropped",
        ),
        Search(
            "Retried messages",
            "Traces with a second delivery. Compare the attempts: the first one's error says why there was another.",
            "messaging.ackstream.delivery_attempt=2",
        ),
    ),
)

PROCESS_ROW = Row(
    "Server process",
    (
        Panel(
            "CPU", "percentunit", "Cores in use. A stream is served by one core at a time.",
            (Query(of_servers(rate("process_cpu_seconds_total", labels=PROCESS)), "{{instance}}"),), width=6,
        ),
        Panel(
            "Memory", "bytes", "Resident memory. It follows the backlog: about 104 bytes and the payload for each message that is not settled.",
            (Query(of_servers(f"process_resident_memory_bytes{{{PROCESS}}}"), "{{instance}}"),), width=6,
        ),
        Panel(
            "File descriptors", "short", "Open, and the most there may be. Each connection needs one.",
            (
                Query(of_servers(f"process_open_fds{{{PROCESS}}}"), "{{instance}} open"),
                Query(of_servers(f"process_max_fds{{{PROCESS}}}"), "{{instance}} at most"),
            ), width=6,
        ),
        Panel(
            "Unary calls", "s", "p99 of health checks and the like. Slow ones mean a server without CPU time.",
            (Query(
                f"histogram_quantile(0.99, sum by (le, grpc_method) ({rate('grpc_server_handling_seconds_bucket', labels=PROCESS)}))",
                "{{grpc_method}}",
            ),), width=6,
        ),
        Panel(
            "Calls that ended", "ops", "By method and status; streams are counted at their end.",
            (Query(f"sum by (grpc_method, grpc_code) ({rate('grpc_server_handled_total', labels=PROCESS)})", "{{grpc_method}}: {{grpc_code}}"),),
        ),
        Panel(
            "Spans lost", "ops",
            "Should be 0. queue_full and export_failed: the collector is slow or down; rate_limited: more traces a second than "
            "traces_per_second. No message is affected.",
            (
                Query(f"sum by (reason) ({rate('ackstream_spans_dropped_total', labels=PROCESS)})", "{{reason}}"),
                Query(f"sum({rate('ackstream_trace_contexts_ignored_total', labels=PROCESS)})", "contexts ignored"),
            ),
        ),
        Panel(
            "Up for", "s", "Since the last start; a small number that nobody expected is a crash. What an earlier life held is gone.",
            (Query(of_servers(f"time() - process_start_time_seconds{{{PROCESS}}}"), "{{instance}}"),), "stat", 4, steps=((None, BLUE),),
        ),
        Panel(
            "Version", "short", "What each server was built from. Two at once: a rollout, or one that was forgotten.",
            (Query(f"ackstream_build_info{{{PROCESS}}}", "{{version}} ({{revision}})"),), "stat", 4, steps=((None, BLUE),),
        ),
    ),
)  # fmt: skip

# ---- the client's dashboard

CLIENT_HEALTH = Row(
    "Are the clients well?",
    (
        Panel(
            "Clients connected", "short", "Clients with an open stream. Fewer than you run: look at the logs of the others.",
            (Query(f"sum(ackstream_client_connected{{{PROCESS}}}) or vector(0)"),), "stat", 6, 4, steps=((None, RED), (1, GREEN)),
        ),
        Panel(
            "Handled", "ops", "Deliveries a second that got their decision.",
            (Query(f"sum({rate('ackstream_client_messages_processed_total', labels=PROCESS)}) or vector(0)"),), "stat", 6, 4, decimals=1, steps=((None, BLUE),),
        ),
        Panel(
            "Outstanding", "short", "Deliveries that the clients hold. Flat at their window: they are the bottleneck.",
            (Query(f"sum(ackstream_client_messages_outstanding{{{PROCESS}}}) or vector(0)"),), "stat", 6, 4, steps=((None, BLUE),),
        ),
        Panel(
            "Answers discarded", "short", "In the time shown, because the server had started anew: those messages were gone with it.",
            (Query(f"sum(increase(ackstream_client_acks_discarded_total{{{PROCESS}}}[$__range]))"),),
            "stat", 6, 4, decimals=0, steps=((None, GREEN), (1, ORANGE)),
        ),
    ),
)  # fmt: skip

CLIENT_WORK = Row(
    "What they do",
    (
        Panel(
            "Outcomes", "ops",
            "What became of deliveries here. simulated_drop, nacked and failed are on purpose in the demo; duplicate: acked before, delivered again.",
            (Query(f"sum by (outcome) ({rate('ackstream_client_messages_processed_total', labels=PROCESS)})", "{{outcome}}"),),
            width=12, stacked=True,
        ),
        Panel(
            "Received by client", "ops", "Consumers of a subscription share its messages; a client at 0 is stuck or has lost its stream.",
            (Query(f"sum by (instance) ({rate('ackstream_client_messages_received_total', labels=PROCESS)})", "{{instance}}"),),
            width=12, stacked=True,
        ),
        Panel(
            "Handling time", "s",
            "From receipt to decision. Above the ack deadline, deliveries expire while they are worked on. The dots are traces of single messages.",
            quantiles("ackstream_client_process_duration_seconds", labels=PROCESS, exemplars=True), width=12,
        ),
        Panel(
            "Handling time, all of it", "s", "The same as a heatmap; the demo's slow deliveries are the band on top.",
            (Query(f"sum by (le) ({rate('ackstream_client_process_duration_seconds_bucket', labels=PROCESS)})", "{{le}}", heatmap=True),),
            "heatmap", width=12,
        ),
    ),
)  # fmt: skip

CLIENT_STREAMS = Row(
    "Streams and processes",
    (
        Panel(
            "Connected", "short", "1 while a client's stream is open.",
            (Query(f"ackstream_client_connected{{{PROCESS}}}", "{{instance}}"),), width=6,
        ),
        Panel(
            "Reconnects", "ops", "Should be 0 but for restarts of the server.",
            (Query(rate("ackstream_client_reconnects_total", labels=PROCESS), "{{instance}}"),), width=6,
        ),
        Panel(
            "CPU", "percentunit", "Cores in use; Python uses one at most.",
            (Query(of_clients(rate("process_cpu_seconds_total", labels=PROCESS)), "{{instance}}"),), width=6,
        ),
        Panel(
            "Memory", "bytes", "Resident memory; it follows what the client holds.",
            (Query(of_clients(f"process_resident_memory_bytes{{{PROCESS}}}"), "{{instance}}"),), width=6,
        ),
    ),
)  # fmt: skip


SOURCES = [
    datasource("datasource", "Prometheus", "prometheus", "prometheus"),
    datasource("traces", "Jaeger", "jaeger", "jaeger"),
]
PAGES = [constant("prometheus_page", "http://localhost:9090"), constant("jaeger_page", "http://localhost:16686")]
TO_PAGES = [
    link("Jaeger", "${jaeger_page}/search?service=ackstream-server", "All traces, in Jaeger's own page"),
    link("Alerts", "${prometheus_page}/alerts", "Every alert, with what to do"),
    link("README", "/public/ackstream/README.txt", "What all of this is, and what to try"),
]


def alerts(name: str, severity: str, colour: str, *, shown: bool) -> Json:
    """Returns the annotation of alerts that fire, for those who look at the page and those who do not."""
    return {
        "name": name, "datasource": METRICS, "enable": shown, "iconColor": colour, "step": "5s",
        "expr": f'ALERTS{{{ALERTS}, severity="{severity}"}}',
        "titleFormat": "{{alertname}}", "textFormat": "{{topic}} {{subscription}}",
    }  # fmt: skip


ANNOTATIONS: list[Json] = [
    alerts("Pages", "page", RED, shown=True),
    alerts("Tickets", "ticket", ORANGE, shown=False),  # the demo always has one
    {
        "name": "Server starts", "datasource": METRICS, "enable": True, "iconColor": BLUE,
        "expr": f"process_start_time_seconds{{{PROCESS}}} * 1000 * on (job, instance) group_left (version, revision) ackstream_build_info{{{PROCESS}}}",
        "useValueForTime": True, "titleFormat": "server start", "textFormat": "{{instance}}: {{version}} ({{revision}})", "step": "5s",
    },
]  # fmt: skip

DASHBOARDS = (
    Dashboard(
        "ackstream-delivery", "message-delivery.json", "Message delivery",
        "What becomes of every message: accepted, delivered, retried, acked or dropped.",
        [
            *SOURCES,
            values("job", "Job", "ackstream_build_info"),
            values("instance", "Instance", 'ackstream_build_info{job=~"$job"}'),
            values("topic", "Topic", f"ackstream_messages_published_total{{{PROCESS}}}"),
            values("subscription", "Subscription", f"ackstream_messages_published_total{{{TOPIC}}}"),
            *PAGES,
        ],
        [link("Clients", "/d/ackstream-client", "The other side of the streams"), *TO_PAGES],
        (IS_ANYTHING_LOST, RETRY_BEHAVIOUR, LATENCY, BACKLOG, TRACE_SEARCHES, BAD_DAYS, PROCESS_ROW),
        ANNOTATIONS,
    ),
    Dashboard(
        "ackstream-client", "client.json", "Demo clients", "The consumers' side: what they receive, and what they make of it.",
        [
            *SOURCES,
            values("job", "Job", "ackstream_client_connected"),
            values("instance", "Instance", 'ackstream_client_connected{job=~"$job"}'),
            *PAGES,
        ],
        [link("Message delivery", "/d/ackstream-delivery", "The server's side"), *TO_PAGES],
        (CLIENT_HEALTH, CLIENT_WORK, CLIENT_STREAMS),
    ),
)  # fmt: skip


def main(arguments: list[str]) -> int:
    """Writes the files, or compares them; returns the exit code."""
    differing = 0
    for dashboard in DASHBOARDS:
        path, text = FOLDER / dashboard.file, render(dashboard)
        if arguments != ["--check"]:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            print(f"{path} is not what {Path(__file__).name} makes: run it", file=sys.stderr)
            differing = 1
    return differing


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
