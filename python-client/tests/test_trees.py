"""One trace per message, made by both sides: the real server and the demo client export to one collector."""

import itertools
import json
import re
import sys
from collections import defaultdict

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.collector import Collector, attributes, collecting
from tests.processes import BINARY, CLIENT, running

pytestmark = [
    pytest.mark.real_time,
    pytest.mark.skipif(not BINARY, reason="ACKSTREAM_BIN names no server binary"),
]

MESSAGES = 30
PARENTS = {"deliver demo": None, "push demo": "deliver demo", "process demo": "push demo"} | dict.fromkeys(
    ("ack", "nack"), "process demo"
)
KINDS = {
    "deliver demo": Span.SPAN_KIND_INTERNAL,
    "push demo": Span.SPAN_KIND_PRODUCER,
    "process demo": Span.SPAN_KIND_CONSUMER,
    "ack": Span.SPAN_KIND_CLIENT,
    "nack": Span.SPAN_KIND_CLIENT,
}


async def run(collector: Collector, sampler: dict[str, str]) -> dict[int, int]:
    """Runs the demo with drops and nacks; returns how many deliveries each message had, as the client printed them."""
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.target}"} | sampler
    addresses = ("--listen", "127.0.0.1:0", "--metrics-listen", "off")
    demo = (BINARY, "demo", str(MESSAGES), "--interval", "5ms", "--ack-deadline", "200ms", "--max-retries", "2")
    rates = ("--drop-rate", "0.3", "--nack-rate", "0.2", "--seed", "7")
    async with running(*demo, *addresses, **environment) as server:
        target = (await server.line(r"^\[RUST SERVER\] Starting gRPC server on (\S+)$"))[1]
        async with running(sys.executable, str(CLIENT), "--target", target, *rates, **environment) as client:
            assert await client.exit_code() == 0
        assert await server.exit_code() == 0
    deliveries: dict[int, int] = defaultdict(int)
    for line in client.lines:
        if match := re.search(r"Received message (\d+)(?: again|:)", line):
            deliveries[int(match[1])] += 1
    assert len(deliveries) == MESSAGES
    return deliveries


def trees(collector: Collector) -> dict[int, list[Span]]:
    """The traces by the id of their message; each span of each is where it belongs."""
    traces = defaultdict(list)
    for span in collector.spans:
        traces[span.trace_id].append(span)
    by_message = {}
    for spans in traces.values():
        by_id = {span.span_id: span for span in spans}
        assert len(by_id) == len(spans), "no span comes twice"
        ids = {attributes(span.attributes)["messaging.message.id"] for span in spans}
        assert len(ids) == 1
        for span in spans:
            parent = by_id.get(span.parent_span_id)
            assert (parent.name if parent else None) == PARENTS[span.name]
            assert span.kind == KINDS[span.name]
            assert span.start_time_unix_nano <= span.end_time_unix_nano
            if parent is not None:
                assert parent.start_time_unix_nano <= span.start_time_unix_nano
        pushes = [span for span in spans if span.name == "push demo"]
        for before, push in itertools.pairwise(pushes):
            assert [link.span_id for link in push.links] == [before.span_id]
        by_message[int(str(ids.pop()))] = spans
    assert len(by_message) == len(traces), "one trace per message"
    return by_message


@pytest.mark.parametrize("clean_ones_too", [True, False])
async def test_both_sides_make_one_tree_of_each_message(*, clean_ones_too: bool) -> None:
    sampler = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "1" if clean_ones_too else "0"}
    async with collecting() as collector:
        deliveries = await run(collector, sampler)
        traced = trees(collector)

    assert traced.keys() == {message for message, count in deliveries.items() if clean_ones_too or count > 1}
    for message, spans in traced.items():
        names = [span.name for span in spans]
        assert names.count("deliver demo") == 1
        # Each attempt is there on both sides, also the first one that nobody had asked to sample.
        assert names.count("push demo") == names.count("process demo") == deliveries[message]
        failed = [span for span in spans if span.name == "push demo" and span.status.code == Status.STATUS_CODE_ERROR]
        [deliver] = [span for span in spans if span.name == "deliver demo"]
        dropped = deliver.status.code == Status.STATUS_CODE_ERROR
        assert len(failed) == deliveries[message] - (not dropped)
        assert names.count("ack") == (not dropped)
    assert {resource["service.name"] for resource in collector.resources} == {"ackstream-server", "ackstream-client"}


async def test_lines_in_json_say_which_message_and_which_span_they_are_about() -> None:
    async with collecting() as collector:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.target}"}
        demo = (BINARY, "demo", "1", "--listen", "127.0.0.1:0", "--metrics-listen", "off")
        async with running(*demo, **environment) as server:
            target = (await server.line(r"^\[RUST SERVER\] Starting gRPC server on (\S+)$"))[1]
            command = (sys.executable, str(CLIENT), "--target", target, "--drop-rate", "0", "--log-format", "json")
            async with running(*command, **environment) as client:
                assert await client.exit_code() == 0
    lines = [json.loads(line) for line in client.lines]
    assert all({"timestamp", "level", "message"} <= line.keys() for line in lines)
    [acked] = [line for line in lines if line["message"] == "Sent ACK for message 1"]
    [process] = [span for span in collector.spans if span.name == "process demo"]
    ids = {"trace_id": process.trace_id.hex(), "span_id": process.span_id.hex()}
    expected = {"level": "INFO", "topic": "demo", "subscription": "demo", "message_id": 1, "delivery_attempt": 1} | ids
    assert expected.items() <= acked.items()
