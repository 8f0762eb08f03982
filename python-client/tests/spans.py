"""Spans in memory, and what tests ask of them."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.trace import SpanContext

TRACE = 0x0AF7651916CD43DD8448EB211C80319C
PUSH = 0xB7AD6B7169203331
SAMPLED = f"00-{TRACE:032x}-{PUSH:016x}-01"
UNSAMPLED = f"00-{TRACE:032x}-{PUSH:016x}-00"


class Recorder(SpanProcessor):
    """Keeps sampled spans in the order of their end."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        self.started = 0
        self.spans: list[ReadableSpan] = []
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(self)

    def on_start(self, span: Span, parent_context: object = None) -> None:  # noqa: ARG002 - as the SDK calls it
        self.started += 1

    def on_end(self, span: ReadableSpan) -> None:
        if context_of(span).trace_flags.sampled:
            self.spans.append(span)

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def only(self, name: str) -> ReadableSpan:
        [span] = self.named(name)
        return span

    @contextmanager
    def current(self, name: str) -> Iterator[SpanContext]:
        """A span of the application."""
        with self.provider.get_tracer("application").start_as_current_span(name) as span:
            yield span.get_span_context()


def context_of(span: ReadableSpan) -> SpanContext:
    context: SpanContext | None = span.context
    assert context is not None
    return context


def parent_of(span: ReadableSpan) -> tuple[int, int] | None:
    """The trace and the parent of a span; None for a root."""
    return (span.parent.trace_id, span.parent.span_id) if span.parent else None


def error_of(span: ReadableSpan) -> object:
    """The span's `error.type`, which is there exactly when its status is an error."""
    error = (span.attributes or {}).get("error.type")
    assert span.status.is_ok is (error is None)
    return error
