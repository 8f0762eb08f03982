"""A collector of traces: OpenTelemetry's own service, over gRPC, on a free port of this machine."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

Context = grpc.aio.ServicerContext[service.ExportTraceServiceRequest, service.ExportTraceServiceResponse]
Value = str | int | float | bool | bytes


@dataclass
class Collector:
    """What has come."""

    target: str = ""
    received: list[ResourceSpans] = field(default_factory=list)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    """Of each export."""
    rejected: int = 0
    """How many spans of each export it says to have rejected."""
    why: str = ""

    @property
    def spans(self) -> list[Span]:
        """Every span, in the order of its start."""
        spans = [span for each in self.received for scope in each.scope_spans for span in scope.spans]
        return sorted(spans, key=lambda span: span.start_time_unix_nano)

    @property
    def resources(self) -> list[dict[str, Value]]:
        return [attributes(each.resource.attributes) for each in self.received]


class _Service(rpc.TraceServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    async def Export(  # noqa: N802 - the service has it so; the stub knows no asyncio
        self, request: service.ExportTraceServiceRequest, context: Context
    ) -> service.ExportTraceServiceResponse:
        self._collector.received += request.resource_spans
        self._collector.metadata.append(dict(context.invocation_metadata() or ()))
        if not self._collector.rejected:
            return service.ExportTraceServiceResponse()
        partial_success = service.ExportTracePartialSuccess(
            rejected_spans=self._collector.rejected, error_message=self._collector.why
        )
        return service.ExportTraceServiceResponse(partial_success=partial_success)


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """Runs a collector."""
    collector = Collector()
    server = grpc.aio.server()
    rpc.add_TraceServiceServicer_to_server(_Service(collector), server)  # type: ignore[no-untyped-call]
    collector.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield collector
    finally:
        await server.stop(None)


def attributes(pairs: Iterable[KeyValue]) -> dict[str, Value]:
    """Attributes of a span or a resource as a dictionary."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value") for pair in pairs}
