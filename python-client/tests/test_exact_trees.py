"""For each way in which a message can go, the exact tree of spans that both sides make of it, also in Jaeger."""

import asyncio
import functools
import json
import shutil
import socket
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import ackstream
from tests.collector import Collector, attributes, collecting
from tests.processes import BINARY, TIMEOUT, running
from tests.proxy import proxied

pytestmark = [pytest.mark.real_time, pytest.mark.skipif(not BINARY, reason="ACKSTREAM_BIN names no binary")]

JAEGER = shutil.which("jaeger")

TREES = {
    "clean": """
send
  deliver: acked after 1
    push 1: acked
      process 1
        ack 1
""",
    "retried": """
send
  deliver: acked after 2
    push 1: expired, no ack came in time
      process 1, left
    push 2: acked, linked to 1
      process 2
        ack 2
""",
    "nacked": """
send
  deliver: acked after 2
    push 1: nacked, its consumer nacked it
      process 1, nacked
        nack 1
    push 2: acked, linked to 1
      process 2
        ack 2
""",
    "rejected": """
send
  deliver: dropped after 1, rejected, dropped: its consumer rejected it
    push 1: nacked, its consumer nacked it
      process 1, rejected
        nack 1
""",
    "dropped": """
send
  deliver: dropped after 2, max_retries, dropped: no retry is left
    push 1: expired, no ack came in time
      process 1, left
    push 2: expired, no ack came in time, linked to 1
      process 2, left
""",
    "interrupted": """
send
  deliver: acked after 2
    push 1: interrupted, its consumer's stream broke
      process 1, released
        ack 1
    push 2: acked, linked to 1
""",
}
"""What both sides make of a message, by its story. `draw` says how the lines are read off the spans."""

KINDS = {
    "send": Span.SPAN_KIND_PRODUCER,
    "deliver": Span.SPAN_KIND_INTERNAL,
    "push": Span.SPAN_KIND_PRODUCER,
    "process": Span.SPAN_KIND_CONSUMER,
    "ack": Span.SPAN_KIND_CLIENT,
    "nack": Span.SPAN_KIND_CLIENT,
}
OPERATIONS = {"send": "send", "push": "send", "process": "process", "ack": "settle", "nack": "settle"}
"""What the conventions know a span as; they have no word for a whole message's life."""

SERVERS = {"deliver", "push"}


async def tell_all_stories(collector: Collector) -> None:
    """Publishes a message for each story, one after the other, and handles it as its payload says."""
    endpoint = f"http://{collector.target}"
    provider = TracerProvider(resource=Resource({"service.name": "tester"}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=True)))
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_TRACES_SAMPLER": "always_on"}
    options = ("--ack-deadline", "300ms", "--max-retries", "1", "--listen", "127.0.0.1:0", "--metrics-listen", "off")
    immediately = ("--min-backoff", "0s", "--max-backoff", "0s", "--reconnect-grace", "0s")
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(running(BINARY, "serve", *options, *immediately, **environment))
        target = (await server.line(r"Starting gRPC server on (\S+)$"))[1]
        proxy = await stack.enter_async_context(proxied(target))

        async def handle(delivery: ackstream.Delivery) -> None:
            match delivery.payload.decode(), delivery.attempt:
                case ("retried", 1) | ("dropped", _):
                    delivery.leave()
                case "nacked", 1:
                    delivery.nack(delay=0)
                case "rejected", 1:
                    raise ackstream.Reject
                case "interrupted", 1:
                    proxy.reset()
                    await asyncio.sleep(1)  # meanwhile the second attempt comes, and is adopted
                case _:
                    pass

        connect = functools.partial(ackstream.connect, client_id="tester", tracer_provider=provider)
        publisher = await stack.enter_async_context(connect(target))
        for number, story in enumerate(TREES, 1):
            consumer = await stack.enter_async_context(connect(proxy.target))
            handler = consumer.consume("demo", "demo", max_outstanding_messages=8)
            run = asyncio.create_task(handler.run(handle, concurrency=4))
            await publisher.publish("demo", story.encode())
            settled = rf"(Received ACK for|Dropped) message {number}\b"
            await server.line(settled)
            run.cancel()
            await asyncio.wait([run])
        server.terminate()
        assert await server.exit_code() == 0
    await asyncio.to_thread(provider.shutdown)


@dataclass(frozen=True)
class Exported:
    """A span, and what its resource is called."""

    span: Span
    service: object


def values_of(span: Span) -> dict[str, object]:
    """The attributes of a span."""
    return dict(attributes(span.attributes))


def draw(number: int, exported: Sequence[Exported]) -> str:
    """Draws the tree of message `number`; whatever is not in the drawing is as it is in every tree."""
    spans = {each.span.span_id: each for each in exported}
    mine = [each for each in exported if attributes(each.span.attributes)["messaging.message.id"] == str(number)]
    assert len({each.span.trace_id for each in mine}) == 1
    lines = [""]

    def add(each: Exported, depth: int) -> None:
        span, values = each.span, values_of(each.span)
        name = span.name.removesuffix(" demo")
        assert span.name == (name if name in {"ack", "nack"} else f"{name} demo")
        assert span.kind == KINDS[name]
        assert each.service == ("ackstream-server" if name in SERVERS else "tester")
        expected = {"messaging.system": "ackstream", "messaging.destination.name": "demo"}
        expected |= {"messaging.message.id": str(number), "messaging.operation.name": name}
        expected |= {} if name == "send" else {"messaging.destination.subscription.name": "demo"}
        expected |= {"messaging.operation.type": OPERATIONS[name]} if name in OPERATIONS else {}
        expected |= {} if name == "deliver" else {"messaging.client.id": "tester"}
        for key, value in expected.items():
            assert values.pop(key) == value, (name, key)
        error = values.pop("error.type", None)
        assert (span.status.code == Status.STATUS_CODE_ERROR) is (error is not None)
        line = f"{name}"
        if "messaging.ackstream.delivery_attempt" in values:
            line += f" {values.pop('messaging.ackstream.delivery_attempt')}"
        outcome = values.pop("messaging.ackstream.outcome", None)
        line += f": {outcome}" if outcome else ""
        if name == "deliver":
            line += f" after {values.pop('messaging.ackstream.delivery_attempts')}"
        line += f", {error}" if error and error != outcome else ""
        line += f", {span.status.message}" if span.status.message else ""
        links = [values_of(spans[link.span_id].span) for link in span.links]
        line += "".join(f", linked to {link['messaging.ackstream.delivery_attempt']}" for link in links)
        assert not values, f"{name} has more: {values}"
        lines.append("  " * depth + line)
        for child in mine:
            if child.span.parent_span_id == span.span_id:
                assert span.start_time_unix_nano <= child.span.start_time_unix_nano <= child.span.end_time_unix_nano
                add(child, depth + 1)

    (root,) = [each for each in mine if each.span.parent_span_id not in spans]
    assert not root.span.parent_span_id
    add(root, 0)
    assert len(lines) == len(mine) + 1, "each span is in the tree"
    return "\n".join([*lines, ""])


async def test_both_sides_make_exactly_these_trees_and_jaeger_shows_them(tmp_path: Path) -> None:
    async with collecting() as collector:
        await tell_all_stories(collector)
        exported = [
            Exported(span, attributes(each.resource.attributes)["service.name"])
            for each in collector.received
            for scope in each.scope_spans
            for span in scope.spans
        ]
        exported.sort(key=lambda each: each.span.start_time_unix_nano)

    for number, (story, tree) in enumerate(TREES.items(), 1):
        assert draw(number, exported) == tree, story

    if JAEGER is None:
        pytest.skip("jaeger is not installed: the trees are seen at a collector alone")
    async with jaeger(tmp_path) as (otlp, query):
        async with grpc.aio.insecure_channel(otlp) as channel:
            export = rpc.TraceServiceStub(channel).Export  # type: ignore[no-untyped-call]
            await export(service.ExportTraceServiceRequest(resource_spans=collector.received))
        for trace_id in {each.span.trace_id.hex() for each in exported}:
            shown = await asyncio.to_thread(fetch, f"{query}/api/traces/{trace_id}")
            assert as_shown(shown) == as_expected([each for each in exported if each.span.trace_id.hex() == trace_id])


Shown = dict[str, tuple[object, ...]]


def as_shown(answer: Any) -> Shown:
    """Returns each span of a trace by its id, as Jaeger's API has it."""
    (trace,) = answer["data"]
    spans: Shown = {}
    for span in trace["spans"]:
        tags = {tag["key"]: tag["value"] for tag in span["tags"]}
        references = sorted((reference["refType"], reference["spanID"]) for reference in span["references"])
        kind, error = tags.pop("span.kind"), tags.pop("error", False)
        message = tags.pop("otel.status_description", "")
        tags = {key: value for key, value in tags.items() if key.startswith(("messaging.", "error.type"))}
        name, of = span["operationName"], trace["processes"][span["processID"]]["serviceName"]
        spans[span["spanID"]] = (name, of, kind, error, message, references, tags, span["startTime"])
    return spans


def as_expected(exported: Sequence[Exported]) -> Shown:
    """Returns the same of the spans that were exported."""
    spans: Shown = {}
    for each in exported:
        span = each.span
        parents = [("CHILD_OF", span.parent_span_id.hex())] if span.parent_span_id else []
        references = sorted(parents + [("FOLLOWS_FROM", link.span_id.hex()) for link in span.links])
        kind = Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower()
        error = span.status.code == Status.STATUS_CODE_ERROR
        start = span.start_time_unix_nano // 1000
        values = values_of(span)
        spans[span.span_id.hex()] = (
            span.name,
            each.service,
            kind,
            error,
            span.status.message,
            references,
            values,
            start,
        )
    return spans


@asynccontextmanager
async def jaeger(folder: Path) -> AsyncIterator[tuple[str, str]]:
    """Runs Jaeger; gives where it takes spans and where it shows them."""
    assert JAEGER is not None
    free = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]  # it cannot say which ports it got
    query, query_grpc, otlp = (f"127.0.0.1:{one.getsockname()[1]}" for one in free)
    for one in free:
        one.close()
    ui = {"storage": {"traces": "memory"}, "http": {"endpoint": query}, "grpc": {"endpoint": query_grpc}}
    pipeline = {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}
    configuration = {
        "service": {
            "extensions": ["jaeger_storage", "jaeger_query"],
            "pipelines": {"traces": pipeline},
            "telemetry": {"metrics": {"level": "none"}},
        },
        "extensions": {
            "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": 100}}}},
            "jaeger_query": ui,
        },
        "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": otlp}}}},
        "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
    }
    file = folder / "jaeger.yaml"
    file.write_text(json.dumps(configuration))  # YAML, too
    async with running(JAEGER, "--config", str(file), OTEL_TRACES_SAMPLER="always_off") as process:
        await process.line("Everything is ready")
        yield otlp, f"http://{query}"


def fetch(url: str) -> Any:
    """Returns the JSON at a URL of this machine."""
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:  # noqa: S310 - loopback
        return json.load(answer)
