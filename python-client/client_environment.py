"""The standard OTEL_* variables, as far as client.py can keep what they ask for. The server reads them alike.

What cannot be kept is named, never silently passed over, and its default stands in (OpenTelemetry specification,
"Environment Variable Specification"); an endpoint to which nothing can be exported is an error.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

DEFAULT_TIMEOUT = 10_000
"""Milliseconds that an export may take where nobody says otherwise (OTLP exporter specification)."""

LONGEST_TIMEOUT = 600_000
"""Milliseconds that an export may take at most, whatever the environment says."""

SAMPLERS = (
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
)
"""Values of OTEL_TRACES_SAMPLER that the OpenTelemetry specification names and the SDK knows."""

LIMITS = (
    "OTEL_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
)

# What is said of traces goes before what is said of everything.
EITHER = ("OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_")

T = TypeVar("T")


class BadVariables(Exception):
    """Some OTEL_* variables make it impossible to export; `problems` names each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class TraceSettings:
    """How to trace."""

    endpoint: str
    """The collector, always with its port: `http://HOST:PORT`, or `https://HOST:PORT` over TLS."""
    timeout: float = DEFAULT_TIMEOUT / 1000
    """Seconds that an export may take, its retries included."""
    compressed: bool = False
    """Whether exports are compressed, with gzip."""
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """What is sent with every export; it may be secret."""
    certificates: tuple[bytes | None, bytes | None, bytes | None] = field(default=(None, None, None), repr=False)
    """For TLS, in PEM: whom to trust, the client's key, the client's certificate."""
    resource: Mapping[str, str] = field(default_factory=dict)
    """What the environment says of the client, by name."""
    for_sdk: Mapping[str, str] = field(default_factory=dict)
    """The variables that the SDK is to read by itself: sampler, batches and limits."""


@dataclass(frozen=True)
class Environment:
    """What the environment asks for."""

    traces: TraceSettings | None = None
    """How to trace; None = not at all."""
    ignored: tuple[str, ...] = ()
    """Each variable that is set and not kept, with its value where another value would have been."""


def read_environment(environment: Mapping[str, str]) -> Environment:
    """Reads the variables that begin with OTEL_. An empty one counts as not set, and so does one that is ignored.

    Raises:
        BadVariables: An endpoint to which nothing can be exported.
    """
    variables = _Variables(environment)
    if variables.read("OTEL_SDK_DISABLED", _one_of("true", "false")) == "true":
        return Environment()
    is_off = variables.read("OTEL_TRACES_EXPORTER", _one_of("otlp", "none")) == "none"
    named_endpoint = variables.endpoint()
    timeout = variables.either("TIMEOUT", _milliseconds)
    compressed = variables.either("COMPRESSION", _one_of("gzip", "none")) == "gzip"
    variables.either("PROTOCOL", _one_of("grpc"))
    variables.either("INSECURE", _one_of("true", "false"))  # the endpoint's scheme goes before it
    headers = variables.headers()
    key = variables.either("CLIENT_KEY", _content)
    certificates = variables.either("CERTIFICATE", _content), key, variables.either("CLIENT_CERTIFICATE", _content)
    variables.read("OTEL_PROPAGATORS", _one_of("tracecontext", "tracecontext,baggage"))
    variables.read("OTEL_METRICS_EXPORTER", _one_of("none"))
    variables.read("OTEL_LOGS_EXPORTER", _one_of("none"))
    resource = variables.resource()
    for_sdk = variables.for_sdk()
    ignored = tuple(sorted([*variables.ignored, *variables.left]))
    if is_off or named_endpoint is None:
        return Environment(ignored=ignored)
    return Environment(
        TraceSettings(
            endpoint=_endpoint(*named_endpoint),
            timeout=(timeout or DEFAULT_TIMEOUT) / 1000,
            compressed=compressed,
            headers=headers,
            certificates=certificates,
            resource=resource,
            for_sdk=for_sdk,
        ),
        ignored,
    )


class _Variables:
    def __init__(self, environment: Mapping[str, str]) -> None:
        # OTEL_PYTHON_* is the SDK's own business. What is `left` nobody has looked at.
        self.left = {
            name: value
            for name, value in environment.items()
            if name.startswith("OTEL_") and not name.startswith("OTEL_PYTHON_") and value
        }
        self.ignored: list[str] = []

    def take(self, name: str) -> str | None:
        """Returns the value of a variable that is text."""
        value = self.left.pop(name, None)
        if value is not None and re.search("[\udc80-\udcff]", value):
            self.ignored.append(f"{name} (it is not UTF-8)")
            return None
        return value

    def read(self, name: str, read: Callable[[str], T | None]) -> T | None:
        """Returns what a variable says; one that cannot be read is ignored."""
        value = self.take(name)
        if value is None:
            return None
        said = read(value)
        if said is None:
            self.ignored.append(f"{name}={json.dumps(value[:64], ensure_ascii=False)}")
        return said

    def either(self, name: str, read: Callable[[str], T | None]) -> T | None:
        """Returns what the variable for traces says or, where that says nothing, the one for everything."""
        traces, everything = (self.read(prefix + name, read) for prefix in EITHER)
        return everything if traces is None else traces

    def endpoint(self) -> tuple[str, str] | None:
        """Returns name and value. That for everything may be of no use here where there is one for traces."""
        named = [(name, value) for prefix in EITHER if (value := self.take(name := f"{prefix}ENDPOINT")) is not None]
        return named[0] if named else None

    def headers(self) -> tuple[tuple[str, str], ...]:
        """Returns what is well-formed. The rest may be secret, so it is not shown."""
        each = []
        for prefix in EITHER:
            name = f"{prefix}HEADERS"
            value = self.take(name)
            pairs = [_header(pair) for pair in (value or "").split(",") if pair.strip()]
            if None in pairs:
                self.ignored.append(f"{name} (some of it is no header)")
            if value is not None:
                each.append(tuple(pair for pair in pairs if pair))
        return each[0] if each else ()

    def resource(self) -> dict[str, str]:
        """Returns OTEL_RESOURCE_ATTRIBUTES, as a whole or not at all, and OTEL_SERVICE_NAME, which goes before."""
        resource = self.read("OTEL_RESOURCE_ATTRIBUTES", _attributes) or {}
        name = self.take("OTEL_SERVICE_NAME")
        return resource | ({"service.name": name} if name else {})

    def for_sdk(self) -> dict[str, str]:
        """Returns what the SDK can read, and its defaults where those would contradict what is set."""
        queue = self.read("OTEL_BSP_MAX_QUEUE_SIZE", _count) or 2048

        def batch_size(text: str) -> int | None:
            count = _count(text)
            return count if count and count <= queue else None

        kept: dict[str, object] = {
            "OTEL_TRACES_SAMPLER": self.read("OTEL_TRACES_SAMPLER", _one_of(*SAMPLERS)),
            "OTEL_TRACES_SAMPLER_ARG": self.read("OTEL_TRACES_SAMPLER_ARG", _ratio),
            "OTEL_BSP_MAX_QUEUE_SIZE": queue,
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": self.read("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", batch_size)
            or min(512, queue),
            "OTEL_BSP_SCHEDULE_DELAY": self.read("OTEL_BSP_SCHEDULE_DELAY", _count),
            **{name: self.read(name, _count) for name in LIMITS},
        }
        return {name: str(value) for name, value in kept.items() if value is not None}


def _endpoint(name: str, value: str) -> str:
    if "@" in value:
        raise BadVariables([f"{name} has a user or a password; OTEL_EXPORTER_OTLP_HEADERS is for secrets"])
    url = re.fullmatch(
        r"(https?)://([\w.~-]+|\[[0-9a-f:.]+\])(?::([^/?#]*))?(?:[/?#]\S*)?", value.strip(), re.ASCII | re.IGNORECASE
    )
    if not url:
        raise BadVariables(
            [f'{name}: {value!r} is no URL of a collector: it takes for example "http://localhost:4317"']
        )
    scheme, host, port = url[1].lower(), url[2], url[3]
    if port is None:
        port = "443" if scheme == "https" else "80"
    if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 1 << 16:
        raise BadVariables([f"{name}: {value!r} has no port from 1 to 65535"])
    return f"{scheme}://{host}:{port}"


def _one_of(*words: str) -> Callable[[str], str | None]:
    """Reads one of a few words, in capitals or not."""
    return lambda text: text.lower() if text.lower() in words else None


def _milliseconds(text: str) -> int | None:
    # What a Rust u64 can hold and how it is written, as the server reads it.
    if not re.fullmatch(r"\+?[0-9]+", text) or not 0 < int(text[:30]) < 1 << 64:
        return None
    return min(int(text), LONGEST_TIMEOUT)


def _count(text: str) -> int | None:
    return int(text) if re.fullmatch("[0-9]{1,9}", text) and int(text) else None


def _ratio(text: str) -> float | None:
    try:
        ratio = float(text) if re.fullmatch("[0-9.eE+-]+", text) else -1
    except ValueError:
        return None
    return ratio if 0 <= ratio <= 1 else None


def _content(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError):
        return None


def _attributes(text: str) -> dict[str, str] | None:
    attributes = {}
    for pair in text.split(","):
        name, equals, value = pair.partition("=")
        if not pair.strip():
            continue
        try:
            decoded = unquote(value.strip(), errors="strict")
        except UnicodeDecodeError:
            return None
        if not equals or not name.strip():
            return None
        attributes[name.strip()] = decoded
    return attributes


def _header(pair: str) -> tuple[str, str] | None:
    """Returns what gRPC can send as text (gRPC over HTTP/2, "Custom-Metadata")."""
    name, _, value = pair.partition("=")
    name, value = name.strip().lower(), unquote(value.strip(), "latin-1")
    if not re.fullmatch(r"[0-9a-z_.-]+", name) or name.endswith("-bin") or not re.fullmatch("[ -~]+", value):
        return None
    return name, value
