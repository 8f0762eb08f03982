"""Spans, by opentelemetry-api alone: without an SDK nothing is made, and a message pays for one comparison.

    send {topic}             PRODUCER   a publish, until it has its answer; its context goes into the attributes
      deliver {topic}                   the server's: the message
        push {topic}                    the server's: one attempt, whose context comes in the frame
          process {topic}    CONSUMER   the application handles that attempt
            ack, nack        CLIENT     its answer, until the stream takes it

The server decides once for the whole message: for an attempt that it did not sample no sampler is asked (which would
double the cost of an unsampled message), and the attempt's own context is the current one. An attempt that ends in
anything but an ack in time is recorded all the same, with its true start: its span is made at its end, as the child of
a sampled parent. Spans of the application itself inside an unsampled attempt stay unrecorded.
"""

import asyncio
import re
import time
from collections.abc import Mapping
from contextvars import Token

from opentelemetry import context as otel
from opentelemetry.trace import (
    NonRecordingSpan,
    NoOpTracer,
    NoOpTracerProvider,
    ProxyTracerProvider,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TracerProvider,
    get_tracer_provider,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ackstream._errors import PublishRefused
from ackstream._version import VERSION

TRACEPARENT = "traceparent"

MAX_ATTRIBUTES = 64
"""Names that a message may have (wire contract): a publish that uses them all travels without its trace context."""

MAX_DESCRIPTION = 256
"""Characters of an exception's text that go into a span's status."""

DISCARDED = "discarded"
"""`error.type`: the answer was to an epoch that is over."""

EXPIRED = "expired"
"""`error.type`: the ack deadline had passed before the answer."""

LEFT = "left"
"""`error.type`: the application left the delivery to its deadline."""

NACKED = "nacked"
"""`error.type`: the application nacked without an exception."""

REJECTED = "rejected"
"""`error.type`: the application gave the message up."""

RELEASED = "released"
"""`error.type`: the stream was gone before the answer."""

SYSTEM = "messaging.system"
OPERATION = "messaging.operation.name"
OPERATION_TYPE = "messaging.operation.type"
DESTINATION = "messaging.destination.name"
SUBSCRIPTION = "messaging.destination.subscription.name"
MESSAGE_ID = "messaging.message.id"
CLIENT_ID = "messaging.client.id"
ATTEMPT = "messaging.ackstream.delivery_attempt"
ERROR_TYPE = "error.type"

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_PROPAGATOR = TraceContextTextMapPropagator()

Attributes = dict[str, str | int]


def find_tracer(provider: TracerProvider | None) -> Tracer | None:
    """Returns the tracer of `provider`, or of the process; None where nobody has set one up."""
    provider = provider or get_tracer_provider()
    if isinstance(provider, (ProxyTracerProvider, NoOpTracerProvider)):
        return None
    tracer = provider.get_tracer("ackstream", VERSION)
    return None if isinstance(tracer, NoOpTracer) else tracer  # OTEL_SDK_DISABLED


class Processing:
    """The `process` span of one delivery, and those of its answers. Called in the event loop's thread."""

    __slots__ = (
        "_answered", "_attempt", "_common", "_context", "_depth", "_ended", "_error", "_given_up", "_message_id",
        "_name", "_parent", "_recorded", "_span", "_started_at", "_text", "_tracer",
    )  # fmt: skip

    def __init__(
        self,
        tracer: Tracer,
        name: str,
        common: Attributes,
        *,
        message_id: int,
        attempt: int,
        parent: SpanContext | None,
        unsampled: bool,
    ) -> None:
        self._tracer = tracer
        self._name = name
        self._common = common
        self._message_id = message_id
        self._attempt = attempt
        self._parent = parent
        self._started_at = time.time_ns()
        # The parent is the attempt and nothing else, whatever span the application has around its consumer.
        self._span = NonRecordingSpan(parent) if unsampled and parent else self._start(parent, self._attributes())
        self._recorded = self._span.is_recording()
        self._context = set_span_in_context(self._span)
        self._depth = 0
        self._answered = False
        self._ended = False
        self._error: str | None = None
        self._text: str | None = None
        self._given_up: str | None = None

    def enter(self) -> Token[otel.Context]:
        """Makes the span the current one, until `leave`."""
        self._depth += 1
        return otel.attach(self._context)

    def leave(self, token: Token[otel.Context]) -> None:
        """Ends what `enter` began."""
        otel.detach(token)
        self._depth -= 1
        self._end_if_over()

    def fail(self, error: BaseException) -> None:
        """Learns what the application raised."""
        self._error = _type_name(error)
        self._text = str(error)[:MAX_DESCRIPTION] or None

    def answer(self, verb: str | None, error: str | None = None) -> Span | None:
        """Takes the answer of the application, and returns the span of its sending.

        Args:
            verb: "ack" or "nack"; None where nothing is sent.
            error: Why the attempt failed where the application raised nothing; None = it did not fail.
        """
        self._error = self._error or self._given_up or error
        if self._error is not None:
            self._keep()
        sending = None
        if verb is not None and self._recorded:
            attributes = self._attributes() | {OPERATION: verb, OPERATION_TYPE: "settle"}
            sending = self._tracer.start_span(verb, self._context, SpanKind.CLIENT, attributes)
        self._answered = True
        self._end_if_over()
        return sending

    def give_up(self, error: str) -> None:
        """The delivery can no longer be answered in time. The span of a running handler goes on until it returns."""
        self._given_up = self._given_up or error
        if not self._depth and not self._ended:
            self.answer(None)

    # Helpers

    def _attributes(self) -> Attributes:
        return {**self._common, MESSAGE_ID: str(self._message_id), ATTEMPT: self._attempt}

    def _start(self, parent: SpanContext | None, attributes: Attributes, started_at: int | None = None) -> Span:
        context = set_span_in_context(NonRecordingSpan(parent), otel.Context()) if parent else otel.Context()
        return self._tracer.start_span(self._name, context, SpanKind.CONSUMER, attributes, start_time=started_at)

    def _keep(self) -> None:
        """Records the span after all, where the sampler did not want it."""
        if self._recorded or self._ended or self._error is None:
            return
        parent = self._parent
        if parent is not None:
            flags = TraceFlags(parent.trace_flags | TraceFlags.SAMPLED)
            parent = SpanContext(parent.trace_id, parent.span_id, parent.is_remote, flags, parent.trace_state)
        # A sampler sees these attributes, and may want a failed attempt for their sake.
        self._span = self._start(parent, self._attributes() | {ERROR_TYPE: self._error}, self._started_at)
        self._recorded = self._span.is_recording()
        self._context = set_span_in_context(self._span, self._context)

    def _end_if_over(self) -> None:
        if self._depth or not self._answered or self._ended:
            return
        self._ended = True
        if self._error is not None:
            _set_error(self._span, self._error, self._text)
        self._span.end()


class ConsumerSpans:
    """Makes the spans of one consumer.

    Attributes:
        tracer: None where nobody listens; looked up whenever a stream opens.
    """

    def __init__(self, provider: TracerProvider | None, client_id: str) -> None:
        self.tracer: Tracer | None = None
        self._provider = provider
        self._client_id = client_id
        self._name = ""
        self._attributes: Attributes = {}

    def opened(self, topic: str, subscription: str) -> None:
        """Learns what is consumed."""
        self.tracer = find_tracer(self._provider)
        self._name = f"process {topic}"
        self._attributes = {
            SYSTEM: "ackstream",
            OPERATION: "process",
            OPERATION_TYPE: "process",
            DESTINATION: topic,
            SUBSCRIPTION: subscription,
            CLIENT_ID: self._client_id,
        }

    def process(
        self, message_id: int, attempt: int, trace_context: str, attributes: Mapping[str, str]
    ) -> Processing | None:
        """Begins to process a delivery.

        Args:
            message_id: Its message.
            attempt: Its number.
            trace_context: The attempt's, from the frame; where the server traces nothing, the publisher's is the
                parent.
            attributes: The message's, with the publisher's trace context, if any.
        """
        if self.tracer is None:
            return None
        pushed = parse_context(trace_context)
        return Processing(
            self.tracer,
            self._name,
            self._attributes,
            message_id=message_id,
            attempt=attempt,
            parent=pushed or parse_context(attributes.get(TRACEPARENT, "")),
            unsampled=pushed is not None and not pushed.trace_flags.sampled,
        )


class PublisherSpans:
    """Makes the spans of one publisher."""

    def __init__(self, provider: TracerProvider | None, topic: str, client_id: str) -> None:
        self._provider = provider
        self._tracer: Tracer | None = None
        self._name = f"send {topic}"
        self._attributes: Attributes = {
            SYSTEM: "ackstream",
            OPERATION: "send",
            OPERATION_TYPE: "send",
            DESTINATION: topic,
            CLIENT_ID: client_id,
        }

    def opening(self) -> None:
        """A stream is about to open."""
        self._tracer = find_tracer(self._provider)

    def send(self, attributes: Mapping[str, str]) -> tuple[Span, dict[str, str]] | None:
        """Begins to send a message with these attributes; returns the span, and what is added to them.

        An application that put a `traceparent` there itself has a span of its own, and gets no other.
        """
        if self._tracer is None or TRACEPARENT in attributes:
            return None
        span = self._tracer.start_span(self._name, kind=SpanKind.PRODUCER, attributes=self._attributes)
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, set_span_in_context(span, otel.Context()))
        added = {name: value for name, value in carrier.items() if name not in attributes}
        return span, added if len(attributes) + len(added) <= MAX_ATTRIBUTES else {}


def end_sending(span: Span, answer: asyncio.Future[int]) -> None:
    """Ends the span of a publish that has its answer."""
    if answer.cancelled():
        _set_error(span, "cancelled", None)
    elif (error := answer.exception()) is not None:
        name = error.code.name if isinstance(error, PublishRefused) else _type_name(error)
        _set_error(span, name, str(error)[:MAX_DESCRIPTION])
    else:
        span.set_attribute(MESSAGE_ID, str(answer.result()))
    span.end()


def end_answers(spans: list[Span], error: str | None = None) -> None:
    """Ends the spans of answers, and empties the list."""
    for span in spans:
        if error is not None:
            _set_error(span, error, None)
        span.end()
    spans.clear()


def parse_context(text: str) -> SpanContext | None:
    """Returns what a `traceparent` of version 00 says; None where it is empty or malformed, however long."""
    match = _TRACEPARENT.fullmatch(text) if text else None
    if match is None:
        return None
    context = SpanContext(
        int(match[1], 16), int(match[2], 16), is_remote=True, trace_flags=TraceFlags(int(match[3], 16))
    )
    return context if context.is_valid else None


def _set_error(span: Span, name: str, text: str | None) -> None:
    span.set_attribute(ERROR_TYPE, name)
    span.set_status(Status(StatusCode.ERROR, text))


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
