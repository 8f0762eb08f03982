"""The OpenTelemetry SDK as client.py uses it: sampler, batches, OTLP over gRPC. Imported only when it is wanted."""

import logging
from collections.abc import Sequence
from typing import Any

import grpc
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState, get_current_span
from opentelemetry.util.types import Attributes

from client_environment import TraceSettings
from client_output import printable
from client_tracing import OncePerKind

MAX_REASON = 200
"""Characters of a collector's text that are said."""


class Exporter:
    """Takes spans by its `provider`, and sends them. A collector that is slow or gone costs spans, never messages."""

    def __init__(self, settings: TraceSettings, *, version: str, instance_id: str) -> None:
        logger = logging.getLogger("opentelemetry")
        logger.handlers = [OncePerKind()]
        logger.propagate = False
        ours = {
            "service.name": "ackstream-client",
            "service.namespace": "ackstream",
            "service.version": version,
            "service.instance.id": instance_id,
        }
        resource = Resource.create({**ours, **settings.resource})  # what the environment says comes first
        self.provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self.provider.sampler = Keep(self.provider.sampler)
        self._sent = Counting(settings)
        self._processor = CountingProcessor(self._sent)
        self.provider.add_span_processor(self._processor)

    def shutdown(self) -> None:
        """Sends what is left and ends. May take as long as the SDK's timeouts allow."""
        self.provider.shutdown()

    def lost(self) -> int:
        """Returns how many sampled spans ended and were not taken by the collector."""
        return self._processor.ended - self._sent.exported


class Keep(Sampler):
    """Samples what `base` samples; and every attempt after the first, everything that failed, and what belongs to it.

    The server keeps retried messages whole, whatever share of the clean ones is wanted; so the client's side of them is
    kept under every sampler, also one that does not look at the parent.
    """

    def __init__(self, base: Sampler) -> None:
        self._base = base

    def should_sample(  # noqa: PLR0917 - as the SDK has it
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        parent = get_current_span(parent_context).get_span_context()
        child_of_kept = parent.is_valid and not parent.is_remote and parent.trace_flags.sampled
        given = attributes or {}
        attempt = given.get("messaging.ackstream.delivery_attempt", 1)
        retried = isinstance(attempt, int) and attempt > 1
        keep = child_of_kept or retried or "error.type" in given
        sampler = ALWAYS_ON if keep else self._base
        return sampler.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        return f"Keep{{{self._base.get_description()}}}"


class Counting(OTLPSpanExporter):
    """Counts what the collector took: of an export, all but the spans that it rejected.

    That it rejected some is in its answer (OTLP specification, "partial success"), which the SDK throws away: so it is
    heard where the SDK makes its stub.
    """

    def __init__(self, settings: TraceSettings) -> None:
        self.exported = 0
        self._partial_success = ExportTracePartialSuccess()
        secure = settings.endpoint.startswith("https:")
        super().__init__(
            endpoint=settings.endpoint,
            insecure=not secure,
            credentials=grpc.ssl_channel_credentials(*settings.certificates) if secure else None,
            headers=settings.headers,
            timeout=settings.timeout,
            compression=grpc.Compression.Gzip if settings.compressed else grpc.Compression.NoCompression,
            # The clients of this project use no proxy.
            channel_options=(("grpc.enable_http_proxy", 0),),  # type: ignore[arg-type] # gRPC takes numbers too
        )

    def _initialize_channel_and_stub(self) -> None:
        super()._initialize_channel_and_stub()  # type: ignore[no-untyped-call] # the SDK has it so
        stub: Any = self._client
        export = stub.Export

        def hear(**call: object) -> ExportTraceServiceResponse:
            response: ExportTraceServiceResponse = export(**call)
            self._partial_success = response.partial_success
            return response

        stub.Export = hear

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._partial_success = ExportTracePartialSuccess()
        result = super().export(spans)
        if result is SpanExportResult.SUCCESS:
            rejected = min(max(self._partial_success.rejected_spans, 0), len(spans))
            self.exported += len(spans) - rejected
            if rejected:
                why = printable(self._partial_success.error_message[:MAX_REASON])
                logging.getLogger("opentelemetry.exporter.rejected").warning(
                    "the collector rejected %d spans: %s", rejected, why
                )
        return result


class CountingProcessor(BatchSpanProcessor):
    """Counts what ended, all in the event loop's thread. What finds the queue full is lost without another word."""

    ended = 0

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            self.ended += 1
        super().on_end(span)
