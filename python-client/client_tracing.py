"""Where client.py sends its spans: what the standard OTEL_* variables say.

Nothing of the OpenTelemetry SDK is imported before an OTLP endpoint is set. The spans themselves are the library's.
"""

import logging
import re
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from client_exporter import Exporter

FLUSH_TIMEOUT = 3.0
"""Seconds that the last spans have to leave. A container has 10 s from SIGTERM to SIGKILL, by default."""

SAMPLERS = (
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
)
"""Values of OTEL_TRACES_SAMPLER that the OpenTelemetry specification names and the SDK knows."""

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class BadVariables(Exception):
    """Some OTEL_* variables cannot be used; `problems` names each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def unsupported_variables(environment: Mapping[str, str]) -> list[str]:
    """Returns the OTEL_* variables that are set and do nothing here."""
    return sorted(
        name for name, value in environment.items() if name.startswith("OTEL_") and value and not _known(name)
    )


def start_tracing(environment: Mapping[str, str], version: str) -> "Exporter | None":
    """Returns the way that spans take, or None where no endpoint is set or tracing is switched off.

    Raises:
        BadVariables: With every problem there is.
    """
    is_off = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if is_off or exporter == "none" or not any(environment.get(name) for name in ENDPOINTS):
        return None
    problems = [
        f"{name}: {problem}"
        for name, value in environment.items()
        if value and (check := _check_of(name)) and (problem := check(value))
    ]
    if problems:
        raise BadVariables(sorted(problems))

    # A good share of a second, spent only by those who want spans.
    from client_exporter import Exporter  # noqa: PLC0415

    try:
        return Exporter(version=version, instance_id=str(uuid.uuid4()))
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

    What the exporter says is one kind, an outage; everything else is told apart by its text before anything is put in.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        outage = record.name.startswith("opentelemetry.exporter")
        kind = "outage" if outage else str(record.msg)
        if kind not in self._said:
            self._said.add(kind)
            what = "Spans are not exported" if outage else "OpenTelemetry says"
            logging.getLogger("ackstream.spans").warning("%s: %s. This is said once.", what, record.getMessage())


def _url(text: str) -> str | None:
    try:
        url = urlsplit(text)
        good = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        good = False
    return None if good else f'{text!r} is no URL of a collector: it takes for example "http://localhost:4317"'


def _one_of(*allowed: str) -> Callable[[str], str | None]:
    def check(text: str) -> str | None:
        known = text.strip().lower() in allowed
        return None if known else f"{text!r} is not supported here: it takes {' or '.join(allowed)}"

    return check


def _number(text: str) -> str | None:
    try:
        good = 0 < float(text) < float("inf")
    except ValueError:
        good = False
    return None if good else f"{text!r} is no number above 0"


def _count(text: str) -> str | None:
    return None if re.fullmatch(r"\s*0*[1-9]\d{0,8}\s*", text) else f"{text!r} is no whole number above 0"


def _ratio(text: str) -> str | None:
    try:
        good = 0 <= float(text) <= 1
    except ValueError:
        good = False
    return None if good else f"{text!r} is no share: it takes a number from 0 to 1"


def _anything(_: str) -> None:
    return None


# What each supported variable takes; "*" stands for "" and "TRACES_".
CHECKS: dict[str, Callable[[str], str | None]] = {
    "OTEL_EXPORTER_OTLP_*ENDPOINT": _url,
    "OTEL_EXPORTER_OTLP_*PROTOCOL": _one_of("grpc"),
    "OTEL_EXPORTER_OTLP_*COMPRESSION": _one_of("gzip"),
    "OTEL_EXPORTER_OTLP_*TIMEOUT": _number,
    "OTEL_EXPORTER_OTLP_*HEADERS": _anything,
    "OTEL_EXPORTER_OTLP_*INSECURE": _one_of("true", "false"),
    "OTEL_EXPORTER_OTLP_*CERTIFICATE": _anything,
    "OTEL_EXPORTER_OTLP_*CLIENT_KEY": _anything,
    "OTEL_EXPORTER_OTLP_*CLIENT_CERTIFICATE": _anything,
    "OTEL_TRACES_EXPORTER": _one_of("otlp", "none"),
    "OTEL_TRACES_SAMPLER": _one_of(*SAMPLERS),
    "OTEL_TRACES_SAMPLER_ARG": _ratio,
    "OTEL_BSP_MAX_QUEUE_SIZE": _count,
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": _count,
    "OTEL_BSP_SCHEDULE_DELAY": _count,
    "OTEL_SERVICE_NAME": _anything,
    "OTEL_RESOURCE_ATTRIBUTES": _anything,
    "OTEL_SDK_DISABLED": _anything,
    "OTEL_ATTRIBUTE_COUNT_LIMIT": _count,
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": _count,
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": _count,
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": _count,
}


def _check_of(name: str) -> Callable[[str], str | None] | None:
    general = re.sub(r"^OTEL_EXPORTER_OTLP_(TRACES_)?", "OTEL_EXPORTER_OTLP_*", name)
    return CHECKS.get(general)


def _known(name: str) -> bool:
    # "none" switches off what this client does not have anyway; OTEL_PYTHON_* is the SDK's own business.
    return (
        _check_of(name) is not None
        or name in ("OTEL_METRICS_EXPORTER", "OTEL_LOGS_EXPORTER")
        or name.startswith("OTEL_PYTHON_")
    )
