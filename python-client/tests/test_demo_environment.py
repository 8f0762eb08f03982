"""The standard OTEL_* variables: what the demo client keeps of them, and that the server reads them alike."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest

from client_environment import BadVariables, TraceSettings, read_environment
from tests.collector import attributes, collecting
from tests.processes import BINARY, CLIENT, running

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4317"}


def traced(variables: Mapping[str, str]) -> tuple[TraceSettings, tuple[str, ...]]:
    """With an endpoint."""
    environment = read_environment({**ENDPOINT, **variables})
    assert environment.traces
    return environment.traces, environment.ignored


def named(variables: Mapping[str, str]) -> list[str]:
    """Returns what the environment is said to ask for in vain; the defaults stand in."""
    settings, ignored = traced(variables)
    assert settings == traced({})[0]
    return list(ignored)


@pytest.mark.parametrize(
    "off",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_SERVICE_NAME": "x"},
        ENDPOINT | {"OTEL_SDK_DISABLED": "TRUE", "OTEL_PROPAGATORS": "b3"},
        ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "no URL", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_without_an_endpoint_or_switched_off_nothing_is_traced(off: dict[str, str]) -> None:
    environment = read_environment(off)
    assert (environment.traces, environment.ignored) == (None, ())


NO_ENDPOINTS = [
    "localhost:4317",
    "localhost",
    "http://",
    "http:// x",
    "grpc://x",
    "/a",
    "http://[::1",
    "http://x:",
    "http://x:0",
    "http://x:99999",
    "http://x:y",
    "http://[::1]:-1",
    "http://user:secret@x:4317",
    "user:secret@x:4317",
]
"""Endpoints to which neither side can export."""


@pytest.mark.parametrize("value", NO_ENDPOINTS)
@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
def test_an_endpoint_that_is_none_is_an_error_that_shows_no_secret(name: str, value: str) -> None:
    with pytest.raises(BadVariables) as raised:
        read_environment({name: value})
    [problem] = raised.value.problems
    assert problem.startswith(name)
    assert "secret@" not in problem


@pytest.mark.parametrize(
    ("value", "endpoint"),
    [
        (" http://localhost:4317 ", "http://localhost:4317"),
        ("HTTP://my_host/", "http://my_host:80"),
        ("https://x.example?a", "https://x.example:443"),
        ("http://[::1]:1/path", "http://[::1]:1"),
    ],
)
def test_an_endpoint_has_a_port(value: str, endpoint: str) -> None:
    assert traced({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": value})[0].endpoint == endpoint


def test_an_endpoint_for_all_may_be_of_no_use_where_there_is_one_for_traces() -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "x", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://y:1"}
    settings, ignored = traced(variables)
    assert (settings.endpoint, ignored) == ("http://y:1", ())


KEPT = [
    {"OTEL_EXPORTER_OTLP_COMPRESSION": "none"},
    {"OTEL_EXPORTER_OTLP_INSECURE": "false"},
    {"OTEL_EXPORTER_OTLP_PROTOCOL": "GRPC"},
    {"OTEL_EXPORTER_OTLP_TIMEOUT": "10000"},
    {"OTEL_EXPORTER_OTLP_TRACES_INSECURE": "True"},
    {"OTEL_LOGS_EXPORTER": "none"},
    {"OTEL_METRICS_EXPORTER": "none"},
    {"OTEL_PROPAGATORS": "tracecontext"},
    {"OTEL_PROPAGATORS": "tracecontext,baggage"},
    {"OTEL_PYTHON_LOG_LEVEL": "info"},
    {"OTEL_SDK_DISABLED": "false"},
    {"OTEL_TRACES_EXPORTER": "otlp"},
    {"OTEL_TRACES_SAMPLER": ""},
]


@pytest.mark.parametrize("variables", KEPT)
def test_what_asks_for_what_is_anyway_so_is_not_named(variables: dict[str, str]) -> None:
    assert named(variables) == []


NOT_KEPT = [
    ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
    ("OTEL_EXPORTER_OTLP_INSECURE", "perhaps"),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "-1"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "1.5"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "18446744073709551616"),
    ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "snappy"),
    ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
    ("OTEL_LOGS_EXPORTER", "otlp"),
    ("OTEL_METRICS_EXPORTER", "prometheus"),
    ("OTEL_PROPAGATORS", "b3"),
    ("OTEL_RESOURCE_ATTRIBUTES", "a=1,b"),
    ("OTEL_RESOURCE_ATTRIBUTES", "a=%FF"),
    ("OTEL_SDK_DISABLED", "maybe"),
    ("OTEL_TRACES_EXPORTER", "zipkin"),
    ("OTEL_TRACES_SAMPLER", "parentbased_xray"),
    ("OTEL_TRACES_SAMPLER_ARG", "2"),
    ("OTEL_TRACES_SAMPLER_ARG", "-1"),
    ("OTEL_TRACES_SAMPLER_ARG", "NaN"),
    ("OTEL_TRACES_SAMPLER_ARG", "half"),
]
"""What neither side keeps."""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *NOT_KEPT,
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2049"),
        ("OTEL_BSP_SCHEDULE_DELAY", "0"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/there/is/none"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many"),
    ],
)
def test_what_is_not_kept_is_named_with_its_value(name: str, value: str) -> None:
    assert named({name: value}) == [f'{name}="{value}"']


def test_what_is_not_known_is_named_in_order() -> None:
    variables = {
        "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://x",
        "OTEL_EXPORTER_ZIPKIN_ENDPOINT": "",
        "OTEL_BSP_EXPORT_TIMEOUT": "1",
        "OTEL_SERVICE_NAME": "\udcff",
    }
    assert named(variables) == [
        "OTEL_BSP_EXPORT_TIMEOUT",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
        'OTEL_LOGS_EXPORTER="otlp"',
        "OTEL_SERVICE_NAME (it is not UTF-8)",
    ]


NO_HEADERS = ["secret", "=secret", "a=", "se cret=1", "a=%0Asecret", "a=s\xe9cret", "secret-bin=1"]


@pytest.mark.parametrize("value", NO_HEADERS)
@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"])
def test_headers_that_are_none_are_named_and_not_shown_and_the_others_are_kept(name: str, value: str) -> None:
    assert named({name: value}) == [f"{name} (some of it is no header)"]
    settings, ignored = traced({name: f"Authorization = Basic%20YTpi,{value}, x=1 ,"})
    assert settings.headers == (("authorization", "Basic YTpi"), ("x", "1"))
    assert ignored == (f"{name} (some of it is no header)",)
    assert "YTpi" not in repr(settings)


def test_what_is_said_of_traces_goes_before_what_is_said_of_all_if_it_can_be_read() -> None:
    variables = {
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "soon",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "6",
        "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": "gzip",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "a=1",
        "OTEL_EXPORTER_OTLP_HEADERS": "a=2",
    }
    settings, ignored = traced(variables)
    assert (settings.timeout, settings.compressed, settings.headers) == (0.006, True, (("a", "1"),))
    assert ignored == ('OTEL_EXPORTER_OTLP_TRACES_TIMEOUT="soon"',)


def test_no_export_may_take_longer_than_ten_minutes() -> None:
    assert traced({"OTEL_EXPORTER_OTLP_TIMEOUT": "3600000"})[0].timeout == 600


def test_the_resource_is_what_the_environment_says() -> None:
    variables = {"OTEL_RESOURCE_ATTRIBUTES": "service.name=a, deployment=b%2Cc ,", "OTEL_SERVICE_NAME": "mine"}
    settings, ignored = traced(variables)
    assert (settings.resource, ignored) == ({"deployment": "b,c", "service.name": "mine"}, ())


def test_the_sdk_reads_what_it_can_read() -> None:
    settings, ignored = traced(
        {
            "OTEL_TRACES_SAMPLER": "TraceIdRatio",
            "OTEL_TRACES_SAMPLER_ARG": "1e-1",
            "OTEL_BSP_MAX_QUEUE_SIZE": "20",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "21",
            "OTEL_BSP_SCHEDULE_DELAY": "1",
            "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "5",
        }
    )
    assert settings.for_sdk == {
        "OTEL_TRACES_SAMPLER": "traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.1",
        "OTEL_BSP_MAX_QUEUE_SIZE": "20",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "20",
        "OTEL_BSP_SCHEDULE_DELAY": "1",
        "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "5",
    }
    assert ignored == ('OTEL_BSP_MAX_EXPORT_BATCH_SIZE="21"',)


# Both sides, as programs

SERVER = (BINARY, "serve", "--listen", "127.0.0.1:0", "--metrics-listen", "off")
NO_SERVER = (sys.executable, str(CLIENT), "--target", "127.0.0.1:1", "--connect-timeout", "0s")
PROGRAMS = [
    pytest.param(SERVER, marks=pytest.mark.skipif(not BINARY, reason="ACKSTREAM_BIN names no server binary")),
    NO_SERVER,
]


async def said(command: tuple[str, ...], variables: dict[str, str]) -> list[str]:
    """Starts a program; returns what it says of its variables."""
    async with running(*command, **variables) as process:
        await process.line("Starting gRPC server|Connecting to")
        process.terminate()
        assert await process.exit_code() in {0, 69, -15}
    return [line for line in process.lines if "OTEL_" in line or "OpenTelemetry" in line or "secret" in line]


@pytest.mark.real_time
@pytest.mark.parametrize("command", PROGRAMS)
@pytest.mark.parametrize("n", range(5))
async def test_both_sides_name_what_they_do_not_keep_in_one_line_and_start(command: tuple[str, ...], n: int) -> None:
    """A variable has up to five values, so there are as many runs."""
    values: dict[str, list[str]] = {"OTEL_EXPORTER_OTLP_HEADERS": ["a=1,secret", "=secret", "a=%0Asecret"]}
    for name, value in NOT_KEPT:
        values.setdefault(name, []).append(value)
    variables = {name: these[n % len(these)] for name, these in values.items()}
    lines = await said(command, ENDPOINT | variables)
    expected = [
        f"{name} (some of it is no header)" if name.endswith("HEADERS") else f"{name}={json.dumps(value)}"
        for name, value in sorted(variables.items())
    ]
    assert len(lines) == 1
    assert lines[0].partition("Set, but not supported by this ")[2].partition(": ")[2] == ", ".join(expected)


@pytest.mark.real_time
@pytest.mark.parametrize("command", PROGRAMS)
async def test_both_sides_name_nothing_that_they_keep(command: tuple[str, ...]) -> None:
    both = {name: value for variables in KEPT for name, value in variables.items()}
    assert await said(command, ENDPOINT | both | {"OTEL_TRACES_SAMPLER": "always_off"}) == []


@pytest.mark.real_time
@pytest.mark.parametrize("command", PROGRAMS)
async def test_to_both_sides_an_endpoint_that_is_none_is_a_wrong_configuration(command: tuple[str, ...]) -> None:
    async def refused(value: str) -> None:
        async with running(*command, OTEL_EXPORTER_OTLP_ENDPOINT=value) as process:
            assert await process.exit_code() == 64, value
        [line] = process.lines
        assert "OTEL_EXPORTER_OTLP_ENDPOINT" in line
        assert "secret@" not in line

    for value in NO_ENDPOINTS:
        await refused(value)


# What arrives

DEMO = (BINARY, "demo", "1", "--interval", "5ms", "--listen", "127.0.0.1:0", "--metrics-listen", "off")


@asynccontextmanager
async def relay(target: str) -> AsyncIterator[tuple[str, bytearray]]:
    """Passes bytes on to a target, and keeps those that go there."""
    kept = bytearray()
    tasks = []

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = target.rsplit(":", 1)
        back, there = await asyncio.open_connection(host, int(port))

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter, copied: bytearray) -> None:
            while data := await source.read(1 << 16):
                copied += data
                sink.write(data)
                await sink.drain()
            sink.close()

        tasks.append(asyncio.create_task(copy(back, writer, bytearray())))
        tasks.append(asyncio.create_task(copy(reader, there, kept)))

    async with await asyncio.start_server(accepted, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", kept
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.real_time
@pytest.mark.skipif(not BINARY, reason="ACKSTREAM_BIN names no server binary")
@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
async def test_both_sides_compress_and_send_headers_alike(compression: str) -> None:
    async with collecting() as collector, relay(collector.target) as (target, sent):
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{target}",
            "OTEL_EXPORTER_OTLP_COMPRESSION": compression,
            "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Basic%20YTpi,no header,x-scope=1",
        }
        async with running(*DEMO, **variables) as server:
            address = (await server.line(r"Starting gRPC server on (\S+)$"))[1]
            consumer = (sys.executable, str(CLIENT), "--target", address, "--drop-rate", "0")
            async with running(*consumer, **variables) as client:
                assert await client.exit_code() == 0
            assert await server.exit_code() == 0
    assert {resource["service.name"] for resource in collector.resources} == {"ackstream-server", "ackstream-client"}
    assert {attributes(span.attributes)["messaging.message.id"] for span in collector.spans} == {"1"}
    for metadata in collector.metadata:
        assert (metadata["authorization"], metadata["x-scope"]) == ("Basic YTpi", "1")
    for name in (b"ackstream-server", b"ackstream-client"):
        assert (name in sent) == (compression != "gzip")
