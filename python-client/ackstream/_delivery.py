"""One handing-over of one message."""

from contextvars import Token
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Self

from opentelemetry.context import Context

from ackstream._errors import Reject
from ackstream._events import StreamOpened
from ackstream._proto import ackstream_pb2 as pb
from ackstream._tracing import Processing

if TYPE_CHECKING:
    from ackstream._holdings import Holdings

__all__ = ["MAX_NACK_DELAY", "Delivery"]

MAX_NACK_DELAY = 24 * 3600.0
"""Seconds: the server takes a longer delay for this one (wire contract, `Nack.delay`)."""

MAX_EXTENSION = 3600.0
"""Seconds after its hand-over beyond which no delivery can be extended (wire contract, `Extend.ack_deadline`)."""

REVIEW_AFTER = 1 / 3
"""Share of the ack deadline after which a delivery is extended: who is blocked for half of it comes in time."""

_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Delivery:
    """One handing-over of one message to this consumer.

    It is answered once, by `ack`, `nack`, `release` or `leave`; what follows is ignored. Until then the consumer
    extends it by itself, for `max_extension` seconds. All methods return at once, may be called from any thread, and
    never raise for what the server may make of them: an answer that comes too late is counted there and ignored.

    As a context manager it is acked when the block ends, nacked when it raises (the exception goes on), dropped when it
    raises `Reject` (which ends there), and left to its deadline when it is cancelled. Inside the block, as inside a
    handler, the span `process {topic}` is the current one.

    Attributes:
        id: The message's id: unique and rising within an epoch, the same in every subscription.
        attempt: The number of this delivery of the message, from 1. It only numbers deliveries: not each one before
            was a failure.
        failures: How many deliveries of the message have failed before.
        interruptions: How many deliveries of the message were interrupted before: their consumer's connection broke
            while it may have handled them.
        payload: The content.
        attributes: Names and values of the publisher's choice.
    """

    __slots__ = (
        "__weakref__", "_answered", "_expires_at", "_handed", "_handed_at", "_holdings", "_lapsed", "_nanos",
        "_processing", "_received_at", "_review_at", "_seconds", "_stream", "_token", "_trace_context", "attempt",
        "attributes", "failures", "id", "interruptions", "payload",
    )  # fmt: skip

    def __init__(self, message: pb.DataMessage, stream: StreamOpened, holdings: "Holdings", now: float) -> None:
        self.id = message.id
        self.attempt = message.delivery_attempt
        self.failures = message.failures
        self.interruptions = message.interruptions
        self.payload = message.payload
        # Copying an empty map costs 1 us, six times as much as asking whether it is one (protobuf 6.33).
        self.attributes: dict[str, str] = dict(message.attributes) if message.attributes else {}
        timestamp = message.timestamp
        self._seconds = timestamp.seconds
        self._nanos = timestamp.nanos
        self._stream = stream
        self._holdings = holdings
        # Event loop time, seconds. The server's deadline runs from the hand-over, a little earlier than `now`.
        self._received_at = now
        self._expires_at = now + stream.ack_deadline
        self._review_at = now + stream.ack_deadline * REVIEW_AFTER
        self._handed = False
        self._handed_at = 0.0
        self._answered = False
        # It waited in the queue for so long that it is not this consumer's any more.
        self._lapsed = False
        # Set where somebody listens to spans: on arrival, when it is handed over, in an `async with` block.
        self._trace_context = ""
        self._processing: Processing | None = None
        self._token: Token[Context] | None = None

    @property
    def published_at(self) -> datetime:
        """When the server accepted the message, in UTC: the same in every attempt, cut to microseconds."""
        return _UNIX_EPOCH + timedelta(seconds=self._seconds, microseconds=self._nanos // 1000)

    @property
    def topic(self) -> str:
        """The topic to which the message was published."""
        return self._stream.topic

    @property
    def subscription(self) -> str:
        """The subscription that delivered it."""
        return self._stream.subscription

    @property
    def retries_left(self) -> int | None:
        """How many more deliveries of the message may fail after this one; None = unlimited."""
        most = self._stream.max_retries
        return None if most is None else max(most - self.failures, 0)

    @property
    def epoch(self) -> int:
        """The life of the topic's ids to which `id` belongs: `(epoch, id)` recognises a message seen before."""
        return self._stream.epoch

    def ack(self) -> None:
        """Says that the message is done: it is never delivered again.

        Counts also when the deadline has passed, or when the stream broke meanwhile and another one of the same epoch
        is open.
        """
        self._holdings.ack(self)

    def nack(self, *, delay: float | None = None, drop: bool = False) -> None:
        """Says that this delivery failed. It costs the message one retry; with none left the server drops it.

        Args:
            delay: Seconds until the message is delivered again, from 0 (at once) to 24 h (more counts as 24 h).
                Default: the subscription's backoff, or one ack deadline where it has none.
            drop: Give the message up, whatever retries are left.

        Raises:
            ValueError: `delay` is negative or not a number.
        """
        if delay is not None and not delay >= 0:
            raise ValueError(f"delay is {delay!r}: it must be 0 or more seconds")
        self._holdings.nack(self, None if delay is None else min(delay, MAX_NACK_DELAY), drop)

    def release(self) -> None:
        """Gives the delivery back at no cost: others get the message at once, this consumer after one ack deadline.

        Raises:
            UnsupportedByServer: The server is of a version that takes nothing back at no cost.
        """
        self._holdings.release(self)

    def extend(self, seconds: float | None = None) -> None:
        """Moves the ack deadline to `seconds` from now; the consumer's own extensions never shorten that.

        Args:
            seconds: More than 0 and at most 3,600, after the hand-over (the server's bound). Default: one ack deadline.

        Raises:
            ValueError: `seconds` is out of bounds.
        """
        if seconds is not None and not 0 < seconds <= MAX_EXTENSION:
            raise ValueError(f"seconds is {seconds!r}: it must be more than 0 and at most {MAX_EXTENSION:g}")
        self._holdings.extend(self, seconds)

    def leave(self) -> None:
        """Leaves the delivery to its deadline: it is neither answered nor extended any more."""
        self._holdings.leave(self)

    async def __aenter__(self) -> Self:
        if self._processing is not None:
            self._token = self._processing.enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        processing = self._processing
        if processing is not None and exception is not None and not isinstance(exception, Reject):
            processing.fail(exception)
        if exception is None:
            self.ack()
        elif isinstance(exception, Reject):
            self.nack(drop=True)
        elif isinstance(exception, Exception):
            self.nack()
        else:
            self.leave()
        if processing is not None and self._token is not None:
            processing.leave(self._token)
        return isinstance(exception, Reject)

    def __repr__(self) -> str:
        return (
            f"<Delivery {self.topic}/{self.subscription} id={self.id} attempt={self.attempt} {len(self.payload)} bytes>"
        )

    def _adopt(self, message: pb.DataMessage, stream: StreamOpened, now: float) -> None:
        """Becomes a later attempt of the same message, which the application handles already."""
        self.attempt = message.delivery_attempt
        self.failures = message.failures
        self.interruptions = message.interruptions
        self._stream = stream
        self._received_at = now
        self._expires_at = now + stream.ack_deadline
        self._review_at = now + stream.ack_deadline * REVIEW_AFTER
