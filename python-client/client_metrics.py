"""What client.py counts, and the port where Prometheus asks for it. Imported only when --metrics-listen is given."""

import errno
from collections.abc import Callable
from wsgiref.simple_server import WSGIServer

from opentelemetry.trace import get_current_span
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)

OUTCOMES = ("acked", "simulated_drop", "nacked", "failed", "duplicate")
"""How a delivery ends here. A duplicate is acked too: this client had acked the message before."""

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Seconds. The demo holds a message for --delay."""

SCRAPE_TIMEOUT = 10.0
"""Seconds after which a scrape that has come to a standstill loses its connection, and gives its thread back."""


class Metrics:
    """Every series of the demo consumer, there from the start. Its methods may be called in any thread."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._received = Counter(
            "ackstream_client_messages_received_total", "Deliveries received, redeliveries included", registry=registry
        )
        processed = Counter(
            "ackstream_client_messages_processed_total",
            "Deliveries that were handled, by what became of them; a duplicate is acked like any other",
            ["outcome"],
            registry=registry,
        )
        self._processed = {outcome: processed.labels(outcome) for outcome in OUTCOMES}
        self._duration = Histogram(
            "ackstream_client_process_duration_seconds",
            "From the receipt of a delivery to the decision about it",
            buckets=BUCKETS,
            registry=registry,
        )
        self._outstanding = Gauge(
            "ackstream_client_messages_outstanding", "Deliveries that this client holds", registry=registry
        )
        self._connected = Gauge(
            "ackstream_client_connected", "1 while the stream to the server is open", registry=registry
        )
        self._reconnects = Counter(
            "ackstream_client_reconnects_total", "Streams opened after the first one", registry=registry
        )
        self._discarded = Counter(
            "ackstream_client_acks_discarded_total",
            "Answers thrown away because the server had begun another epoch",
            registry=registry,
        )

    def received(self) -> None:
        """Counts a delivery."""
        self._received.inc()

    def processed(self, outcome: str, seconds: float) -> None:
        """Counts what became of a delivery, one of OUTCOMES; the current span is the exemplar where it is sampled."""
        self._processed[outcome].inc()
        span = get_current_span().get_span_context()
        exemplar = {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}
        self._duration.observe(seconds, exemplar if span.is_valid and span.trace_flags.sampled else None)

    def watch_outstanding(self, count: Callable[[], int]) -> None:
        """Asks `count` at each scrape."""
        self._outstanding.set_function(count)

    def connected(self, *, again: bool) -> None:
        """A stream is open."""
        self._connected.set(1)
        if again:
            self._reconnects.inc()

    def disconnected(self) -> None:
        """No stream is open."""
        self._connected.set(0)

    def discarded(self, count: int) -> None:
        """Counts answers to an epoch that is over."""
        self._discarded.inc(count)

    def serve(self, host: str, port: int) -> tuple[WSGIServer, str]:
        """Answers scrapes, in threads; returns the server and its URL.

        Args:
            host: A name or an address; "" means all addresses of both families.
            port: 0 picks one.

        Raises:
            OSError: The address cannot be had.
        """
        try:
            server, _ = start_http_server(port, host or "::", self.registry)
        except OSError as error:
            if host or error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise
            server, _ = start_http_server(port, "0.0.0.0", self.registry)  # noqa: S104 - asked for; there is no IPv6
        handler = server.RequestHandlerClass
        server.RequestHandlerClass = type("Handler", (handler,), {"timeout": SCRAPE_TIMEOUT})  # type: ignore[arg-type]
        bound, bound_port = server.server_address[:2]
        shown = f"[{bound!s}]" if ":" in str(bound) else str(bound)
        return server, f"http://{shown}:{bound_port}/metrics"
