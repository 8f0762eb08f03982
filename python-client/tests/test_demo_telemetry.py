"""The demo client's metrics and traces: real scrapes, and a real collector."""

import asyncio
import logging
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

import client_health
from ackstream._proto import ackstream_pb2 as pb
from ackstream._version import VERSION
from client_metrics import Metrics
from client_tracing import OncePerKind
from tests.collector import Collector, attributes, collecting
from tests.fake_server import FakeServer, delivery
from tests.processes import CLIENT, Process, running
from tests.spans import PUSH, SAMPLED, TRACE, UNSAMPLED, Recorder, context_of
from tests.test_demo_client import demonstrating
from tests.test_grpc import OPENED, Context, serving
from tests.virtual_time import everything_that_needs_no_time

SERIES = {
    "ackstream_client_messages_received_total": 0.0,
    **{
        f"ackstream_client_messages_processed_total{{outcome={outcome}}}": 0.0
        for outcome in ("acked", "simulated_drop", "nacked", "failed", "duplicate")
    },
    "ackstream_client_process_duration_seconds_count": 0.0,
    "ackstream_client_messages_outstanding": 0.0,
    "ackstream_client_connected": 0.0,
    "ackstream_client_reconnects_total": 0.0,
    "ackstream_client_acks_discarded_total": 0.0,
}


def ours(metrics: Metrics) -> dict[str, float]:
    """The values of the project's own series, but for the buckets and the sum of the histogram."""
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    return {
        sample.name + "".join(f"{{{name}={value}}}" for name, value in sample.labels.items()): sample.value
        for sample in samples
        if sample.name.startswith("ackstream_") and not sample.name.endswith(("_bucket", "_sum"))
    }


def moved(metrics: Metrics) -> dict[str, float]:
    """What is not 0."""
    return {name.removeprefix("ackstream_client_"): value for name, value in ours(metrics).items() if value}


# Metrics, in virtual time


def test_every_series_is_there_from_the_start() -> None:
    assert ours(Metrics()) == SERIES


@pytest.mark.parametrize(
    ("option", "outcome"),
    [
        ("--drop-rate=0", "acked"),
        ("--drop-rate=1", "simulated_drop"),
        ("--nack-rate=1", "nacked"),
        ("--fail-rate=1", "failed"),
        ("--poison-rate=1", "failed"),
    ],
)
async def test_a_delivery_moves_received_its_outcome_and_the_duration_and_nothing_else(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, option: str, outcome: str
) -> None:
    metrics = Metrics()
    async with demonstrating(server, monkeypatch, "--drop-rate=0", option, metrics=metrics) as it:
        it.stream.deliver(1)
        await everything_that_needs_no_time()
        assert moved(metrics) == {
            "messages_received_total": 1,
            f"messages_processed_total{{outcome={outcome}}}": 1,
            "process_duration_seconds_count": 1,
            "connected": 1,
        }


async def test_a_message_that_comes_again_after_its_ack_is_a_duplicate_and_acked_again(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics()
    async with demonstrating(server, monkeypatch, "--drop-rate=0", metrics=metrics) as it:
        it.stream.deliver(1)
        await everything_that_needs_no_time()
        it.stream.deliver(1, attempt=2)
        await everything_that_needs_no_time()
        assert it.stream.acked == [1, 1]
    assert ours(metrics)["ackstream_client_messages_processed_total{outcome=acked}"] == 1
    assert ours(metrics)["ackstream_client_messages_processed_total{outcome=duplicate}"] == 1


async def test_outstanding_is_what_the_client_holds_and_a_simulated_drop_is_held_no_more(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics()
    seen: list[float] = []
    async with demonstrating(server, monkeypatch, "--drop-rate=1", "--delay=5s", metrics=metrics) as it:
        it.stream.deliver(1, 2, 3)
        for _ in range(2):
            await asyncio.sleep(4)
            seen.append(ours(metrics)["ackstream_client_messages_outstanding"])
    assert seen == [3, 0]


async def test_connected_and_reconnects_follow_the_stream_and_discarded_the_epoch(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics()
    seen: list[dict[str, float]] = []
    async with demonstrating(server, monkeypatch, "--drop-rate=0", "--delay=5s", metrics=metrics) as it:
        it.stream.deliver(1, 2)
        await everything_that_needs_no_time()
        server.down = grpc.StatusCode.UNAVAILABLE
        it.stream.break_off(sentence="the server is draining")
        await everything_that_needs_no_time()
        seen.append(moved(metrics))
        server.down = None
        second = await server.next_stream()
        second.accept(epoch=2)
        await asyncio.sleep(6)
        seen.append(moved(metrics))
        second.end()
        await it.task
        seen.append(moved(metrics))
    assert seen == [
        {"messages_received_total": 2, "messages_outstanding": 2},
        {"messages_received_total": 2, "connected": 1, "reconnects_total": 1, "acks_discarded_total": 2},
        {"messages_received_total": 2, "reconnects_total": 1, "acks_discarded_total": 2},
    ]


async def test_a_sampled_span_is_an_exemplar_and_an_unsampled_one_is_not(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, recorder = Metrics(), Recorder()
    telemetry = {"metrics": metrics, "tracer_provider": recorder.provider}
    async with demonstrating(server, monkeypatch, "--drop-rate=0", **telemetry) as it:  # type: ignore[arg-type]
        it.stream.deliver(1, trace_context=UNSAMPLED)
        await everything_that_needs_no_time()
        assert exemplars(metrics) == []
        it.stream.deliver(2, trace_context=SAMPLED)
        await everything_that_needs_no_time()
    span = context_of(recorder.only("process demo")).span_id
    assert exemplars(metrics) == [{"trace_id": f"{TRACE:032x}", "span_id": f"{span:016x}"}]


def exemplars(metrics: Metrics) -> list[dict[str, str]]:
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    return [dict(sample.exemplar.labels) for sample in samples if sample.exemplar]


# Metrics, over HTTP


@pytest.mark.real_time
async def test_a_scrape_gets_text_or_openmetrics_as_it_asks_and_the_text_has_no_fault() -> None:
    metrics = Metrics()
    server, url = metrics.serve("127.0.0.1", 0)
    try:
        text = await asyncio.to_thread(scrape, url, "text/plain")
        openmetrics = await asyncio.to_thread(scrape, url, "application/openmetrics-text; version=1.0.0")
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()
    assert {family.name for family in parse_text(text)} >= {"ackstream_client_connected"}
    families = parse_openmetrics(openmetrics)  # type: ignore[no-untyped-call]
    assert {family.name for family in families} >= {"ackstream_client_connected"}
    assert "_created" not in text
    promtool = shutil.which("promtool")
    if promtool is None:
        print("SKIPPED: promtool is not there")  # noqa: T201 - the rest of the test has run
        return
    checked = await asyncio.to_thread(
        subprocess.run, [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def scrape(url: str, accept: str) -> str:
    with urlopen(Request(url, headers={"Accept": accept}), timeout=10) as answer:  # noqa: S310 - our own URL
        body: bytes = answer.read()
        return body.decode()


@pytest.mark.real_time
async def test_metrics_are_served_where_asked_and_a_stalled_scrape_stalls_nothing() -> None:
    async with consuming_from(delivery(1, trace_context=SAMPLED)) as (target, acked):
        async with client(target, "--metrics-listen", "127.0.0.1:0") as process:
            url = (await process.line(r"Metrics on (http://127\.0\.0\.1:\d+/metrics)$"))[1]
            port = int(url.split(":")[2].split("/")[0])
            with socket.create_connection(("127.0.0.1", port)) as stalled:
                stalled.sendall(b"GET /metrics HTTP/1.1\r\nHost:")
                await process.line("Sent ACK for message 1")
                text = await asyncio.to_thread(scrape, url, "text/plain")
            acked.set()
            assert await process.exit_code() == 0
    assert 'ackstream_client_messages_processed_total{outcome="acked"} 1.0' in text.splitlines()


@pytest.mark.real_time
async def test_a_metrics_port_that_is_taken_is_a_sentence_and_69() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with client("127.0.0.1:1", "--metrics-listen", f"127.0.0.1:{port}") as process:
            assert await process.exit_code() == 69
    assert process.lines == [f"[PYTHON CLIENT] Metrics cannot be served on 127.0.0.1:{port}: Address already in use"]


@pytest.mark.real_time
async def test_what_is_not_asked_for_is_not_imported() -> None:
    code = "import client, sys; print([m for m in sys.modules if m.startswith(('opentelemetry.sdk', 'prometheus'))])"
    async with running(sys.executable, "-c", code, PYTHONPATH=str(CLIENT.parent)) as process:
        assert await process.exit_code() == 0
    assert process.lines == ["[]"]


# Traces


@asynccontextmanager
async def consuming_from(
    *messages: pb.DataMessage, answers: int | None = None
) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A server that delivers these and ends the stream with OK when it has the answers and the event is set."""
    done = asyncio.Event()

    async def exchange(frames: AsyncIterator[pb.StreamMessage], context: Context) -> None:
        await anext(frames)
        await context.write(OPENED)
        for message in messages:
            await context.write(pb.StreamMessage(data=message))
        missing = len(messages) if answers is None else answers
        while missing:
            frame = await anext(frames)
            missing -= len(frame.ack_batch.ack_ids) + frame.HasField("nack")
        await done.wait()

    async with serving(exchange) as target:
        yield target, done


@asynccontextmanager
async def client(target: str, *arguments: str, **environment: str) -> AsyncIterator[Process]:
    command = [sys.executable, str(CLIENT), "--target", target, "--seed", "1", "--drop-rate", "0", *arguments]
    async with running(*command, **environment) as process:
        yield process


async def trace_one(collector: Collector, attempt: int, context: str, *arguments: str, **environment: str) -> Process:
    """Runs the demo client over one delivery, to its end."""
    endpoint = f"http://{collector.target}"
    answers = 0 if "--drop-rate=1" in arguments else 1
    async with AsyncExitStack() as stack:
        target, done = await stack.enter_async_context(consuming_from(delivery(1, attempt, context), answers=answers))
        process = await stack.enter_async_context(
            client(target, *arguments, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, **environment)
        )
        await process.line("(Sent N?ACK for|Dropped|Failed on) message 1")
        done.set()
        assert await process.exit_code() == 0
    return process


@pytest.mark.real_time
async def test_the_collector_gets_the_tree_with_its_resource() -> None:
    async with collecting() as collector:
        await trace_one(collector, 1, SAMPLED, OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test")
    process, ack = collector.spans
    assert (process.name, process.kind) == ("process demo", Span.SPAN_KIND_CONSUMER)
    assert (ack.name, ack.kind) == ("ack", Span.SPAN_KIND_CLIENT)
    assert {process.trace_id, ack.trace_id} == {TRACE.to_bytes(16)}
    assert (process.parent_span_id, ack.parent_span_id) == (PUSH.to_bytes(8), process.span_id)
    assert attributes(process.attributes)["messaging.message.id"] == "1"
    assert process.status.code == Status.STATUS_CODE_UNSET
    [resource] = collector.resources
    assert (resource["service.name"], resource["service.namespace"]) == ("ackstream-client", "ackstream")
    assert resource["service.version"] == VERSION
    assert resource["service.instance.id"]
    assert resource["deployment.environment.name"] == "test"
    [scope] = {scope.scope.name for each in collector.received for scope in each.scope_spans}
    assert scope == "ackstream"


@pytest.mark.real_time
async def test_otel_service_name_comes_before_the_clients_own() -> None:
    async with collecting() as collector:
        await trace_one(collector, 1, SAMPLED, OTEL_SERVICE_NAME="mine")
    assert collector.resources[0]["service.name"] == "mine"


NOTHING_SAMPLED = [
    {"OTEL_TRACES_SAMPLER": "always_off"},
    {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"},
    {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"},
]


@pytest.mark.real_time
@pytest.mark.parametrize("sampler", NOTHING_SAMPLED)
async def test_with_sampling_at_0_an_attempt_without_an_ack_and_a_retry_are_there_and_a_clean_one_is_not(
    sampler: dict[str, str],
) -> None:
    async with collecting() as collector:
        await trace_one(collector, 1, UNSAMPLED, **sampler)
        clean = len(collector.spans)
        await trace_one(collector, 1, UNSAMPLED, "--drop-rate=1", **sampler)
        await trace_one(collector, 1, UNSAMPLED, "--nack-rate=1", **sampler)
        await trace_one(collector, 2, SAMPLED, **sampler)
    assert clean == 0
    names = [(span.name, attributes(span.attributes).get("error.type")) for span in collector.spans]
    assert names == [
        ("process demo", "left"),
        ("process demo", "nacked"),
        ("nack", None),
        ("process demo", None),
        ("ack", None),
    ]
    parents = [span.parent_span_id for span in collector.spans if span.name == "process demo"]
    assert parents == [PUSH.to_bytes(8)] * 3


@pytest.mark.real_time
async def test_a_collector_that_is_down_is_said_once_and_costs_no_message_and_what_was_lost_is_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        target = f"127.0.0.1:{nobody.getsockname()[1]}"
    # Two batches, and a queue that is too small for what comes.
    small = {"OTEL_BSP_MAX_QUEUE_SIZE": "20", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "10", "OTEL_BSP_SCHEDULE_DELAY": "1"}
    messages = [delivery(n, trace_context=SAMPLED) for n in range(1, 101)]
    async with consuming_from(*messages) as (server_target, done):
        async with client(
            server_target, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{target}", OTEL_EXPORTER_OTLP_TIMEOUT="1000", **small
        ) as process:
            await process.line("Sent ACK", count=100)
            done.set()
            began = asyncio.get_running_loop().time()
            assert await process.exit_code() == 0
            took = asyncio.get_running_loop().time() - began
    assert took < 5, "the flush is bounded"
    assert len([line for line in process.lines if "not exported:" in line]) == 1
    assert process.lines[-1] == "[PYTHON CLIENT] 200 span(s) were not exported"


@pytest.mark.real_time
async def test_what_a_collector_rejects_is_said_once_and_counted_as_lost() -> None:
    two_by_two = {"OTEL_BSP_SCHEDULE_DELAY": "60000", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "2"}
    async with collecting() as collector:
        collector.rejected, collector.why = 1, "a name\nis too long"
        endpoint = f"http://{collector.target}"
        messages = [delivery(n, trace_context=SAMPLED) for n in (1, 2)]
        async with consuming_from(*messages) as (target, done):
            async with client(target, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, **two_by_two) as process:
                await process.line("Sent ACK", count=2)
                done.set()
                assert await process.exit_code() == 0
    said = [line for line in process.lines if "rejected" in line]
    assert len(said) == 1
    assert r"Spans are not exported: the collector rejected 1 spans: a name\nis too long. This is said once." in said[0]
    assert process.lines[-1] == "[PYTHON CLIENT] 2 span(s) were not exported"


@pytest.mark.real_time
async def test_a_collector_that_never_answers_does_not_hold_the_client_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        async with consuming_from(delivery(1, trace_context=SAMPLED)) as (target, done):
            async with client(target, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint) as process:
                await process.line("Sent ACK")
                done.set()
                began = asyncio.get_running_loop().time()
                assert await process.exit_code() == 0
                took = asyncio.get_running_loop().time() - began
    assert took < 5
    assert process.lines[-1] == "[PYTHON CLIENT] 2 span(s) were not exported"


def test_the_version_is_that_of_the_package_and_of_the_server() -> None:
    pyproject = (CLIENT.parent / "pyproject.toml").read_text("utf-8")
    assert f'\nversion = "{VERSION}"\n' in pyproject
    cargo = CLIENT.parent.parent / "Cargo.toml"
    if cargo.exists():  # not in the sdist
        assert re.search(rf'^version = "{VERSION}"$', Path(cargo).read_text("utf-8"), re.MULTILINE)


def test_an_outage_is_said_once_and_hides_nothing_else_nor_is_hidden_by_it(caplog: pytest.LogCaptureFixture) -> None:
    handler = OncePerKind()
    records = [
        ("opentelemetry.sdk.resources", "Invalid key value resource attribute pair %s", "foo"),
        ("opentelemetry.exporter.otlp.proto.grpc.exporter", "Failed to export %s", "traces"),
        ("opentelemetry.exporter.otlp.proto.grpc.exporter", "Transient error %s", "UNAVAILABLE"),
        ("opentelemetry.sdk._shared_internal", "Queue full, dropping %s.", "Span"),
        ("opentelemetry.sdk._shared_internal", "Queue full, dropping %s.", "Span"),
        ("opentelemetry.exporter.rejected", "the collector rejected %s", "2 spans"),
        ("opentelemetry.exporter.rejected", "the collector rejected %s", "3 spans"),
    ]
    for name, text, argument in records:
        handler.handle(logging.LogRecord(name, logging.WARNING, "", 0, text, (argument,), None))
    assert [record.getMessage() for record in caplog.records] == [
        "OpenTelemetry says: Invalid key value resource attribute pair foo. This is said once.",
        "Spans are not exported: Failed to export traces. This is said once.",
        "OpenTelemetry says: Queue full, dropping Span.. This is said once.",
        "Spans are not exported: the collector rejected 2 spans. This is said once.",
    ]


@pytest.mark.real_time
def test_the_container_is_healthy_while_the_stream_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    server, url = metrics.serve("127.0.0.1", 0)
    monkeypatch.setenv("ACKSTREAM_CLIENT_METRICS_LISTEN", url.removeprefix("http://").removesuffix("/metrics"))
    try:
        before = client_health.find_problem()
        metrics.connected(again=False)
        during = client_health.find_problem()
        metrics.disconnected()
        after = client_health.find_problem()
    finally:
        server.shutdown()
        server.server_close()
    gone = client_health.find_problem()
    assert (before, during, after) == ("no stream to the server is open", None, "no stream to the server is open")
    assert gone is not None
    assert gone.startswith("no metrics on port ")
