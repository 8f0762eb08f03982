"""How client.py starts and stops to send its spans, and what it says of that.

Nothing of the OpenTelemetry SDK is imported before an OTLP endpoint is set. The spans themselves are the library's.
"""

import logging
import os
import threading
import uuid
from typing import TYPE_CHECKING

from client_environment import BadVariables, TraceSettings

if TYPE_CHECKING:
    from client_exporter import Exporter

FLUSH_TIMEOUT = 3.0
"""Seconds that the last spans have to leave. A container has 10 s from SIGTERM to SIGKILL, by default."""


def start_tracing(settings: TraceSettings, version: str) -> "Exporter":
    """Returns the way that spans take.

    Raises:
        BadVariables: What the SDK itself does not like.
    """
    # The SDK reads more than it is told, and stumbles over what was ignored: it sees what it is to read, and no more.
    for name in [name for name in os.environ if name.startswith("OTEL_") and not name.startswith("OTEL_PYTHON_")]:
        del os.environ[name]
    os.environ.update(settings.for_sdk)

    # A good share of a second, spent only by those who want spans.
    from client_exporter import Exporter  # noqa: PLC0415

    try:
        return Exporter(settings, version=version, instance_id=str(uuid.uuid4()))
    except Exception as error:
        raise BadVariables([f"OTEL_*: {error}"]) from error


def stop_tracing(exporter: "Exporter") -> int:
    """Sends what is left, for at most FLUSH_TIMEOUT; returns how many spans never reached the collector."""
    flush = threading.Thread(target=exporter.shutdown, name="flush-spans", daemon=True)
    flush.start()
    flush.join(FLUSH_TIMEOUT)
    return exporter.lost()


class OncePerKind(logging.Handler):
    """Passes the SDK's warnings on, each kind once: a collector that is down would write one every second.

    What the exporter says is one kind, an outage, and what a collector rejects is another; everything else is told
    apart by its text before anything is put in.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        outage = record.name.startswith("opentelemetry.exporter")
        kind = record.name if outage else str(record.msg)
        if kind not in self._said:
            self._said.add(kind)
            what = "Spans are not exported" if outage else "OpenTelemetry says"
            logging.getLogger("ackstream.spans").warning("%s: %s. This is said once.", what, record.getMessage())
