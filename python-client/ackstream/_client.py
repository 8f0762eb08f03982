"""The way in: `connect` and what it returns."""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterable, Iterable, Mapping
from types import TracebackType
from typing import Self

from opentelemetry.trace import TracerProvider

from ackstream._arguments import check_name, check_target
from ackstream._consumer import Consumer, Life
from ackstream._credentials import Tls, Token
from ackstream._errors import Misused, StreamEnded
from ackstream._events import OnEvent
from ackstream._link import LEAVE_TIMEOUT
from ackstream._proto import ackstream_pb2 as pb
from ackstream._publications import Message
from ackstream._publisher import MAX_UNANSWERED, Publisher
from ackstream._tracing import ConsumerSpans, PublisherSpans
from ackstream._transport import GrpcTransport, Transport

__all__ = ["Client", "connect"]

DEFAULT_CONNECT_TIMEOUT = 30.0
"""Seconds without a server after which the library gives up."""

DEFAULT_MAX_EXTENSION = 600.0
"""Seconds: 10 minutes."""

DEFAULT_MAX_BATCH_MESSAGES = 256
"""Deliveries per frame. One consumer on two cores took 110,000 messages a second in batches of 64, 165,000 in these."""


def connect(
    target: str = "localhost:50051",
    *,
    client_id: str | None = None,
    connect_timeout: float | None = DEFAULT_CONNECT_TIMEOUT,
    tracer_provider: TracerProvider | None = None,
    tls: Tls | None = None,
    token: Token | None = None,
) -> "Client":
    """Returns a client for the server at `target`, to be used as an async context manager.

    Nothing is sent before the first `publish` or the start of a consumer; each consumer, and each topic published to,
    has a stream on a connection of its own.

    Args:
        target: Host and port, for example "localhost:50051" or "[::1]:50051". No HTTP proxy is used.
        client_id: How the client calls itself in the server's logs; at most 256 bytes. Default: host name and process
            id.
        connect_timeout: Seconds without a server after which `ServerUnreachable` is raised, at the start and again
            whenever the server is lost. None = never.
        tracer_provider: Takes the spans: `send {topic}` for each publish, `process {topic}` for each delivery that is
            handled, `ack` or `nack` for its answer. Default: the process's own, as it is when a stream opens; without
            an OpenTelemetry SDK there are none.
        tls: How to speak TLS, where the server does. Default: unencrypted.
        token: The client's token, or a function that returns it, where the server asks for one. `ackstream.read_token`
            reads it from a file.

    Raises:
        ValueError: An argument is wrong, or what a file of `tls` or the token has.
        OSError: A file of `tls`, or that of the token, cannot be read.
    """
    if connect_timeout is not None and not connect_timeout >= 0:
        raise ValueError(f"connect_timeout is {connect_timeout!r}: it must be 0 or more seconds, or None")
    name = client_id if client_id is not None else f"{socket.gethostname()}-{os.getpid()}"
    transport = GrpcTransport(check_target(target), tls=tls, token=token)
    return Client(transport, client_id=name, connect_timeout=connect_timeout, tracer_provider=tracer_provider)


class Client:
    """Publishes and consumes. Made by `connect`.

    At the end of its `async with` block its consumers leave (handlers that still run are cancelled) and its publishers
    half-close.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        client_id: str,
        connect_timeout: float | None,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        self._transport = transport
        self._client_id = client_id
        self._tracer_provider = tracer_provider
        self._connect_timeout = connect_timeout
        self._lives: list[Life] = []
        self._owner: tuple[asyncio.AbstractEventLoop, int, int] | None = None
        self._publishers: dict[str, Publisher] = {}
        self._closed = False

    async def publish(
        self, topic: str, payload: bytes, *, attributes: Mapping[str, str] | None = None, retry_for: float = 0.0
    ) -> int:
        """Publishes one message and returns its id once the server has accepted it.

        A publish without an answer is sent again over the next stream, so that a message may be stored twice. Many
        publishes at the same time share frames; `publish_many` does so for one caller.

        Args:
            topic: Where to publish.
            payload: The content; may be empty.
            attributes: Names and values, delivered unchanged; see `Message`. Where spans are recorded, a `traceparent`
                (and a `tracestate`) joins them, unless there is one or 64 names already.
            retry_for: Seconds during which a refusal that a retry may cure (a full backlog, a draining server) is
                retried, with backoff and jitter. Default: the first refusal is raised.

        Raises:
            PublishRefused: The server did not take the message; nothing is stored.
            StreamRefused: The server does not know the topic, for example.
            ServerUnreachable: No server could be had for `connect_timeout` seconds; the message may be stored.
            StreamEnded: The server has finished; the message may be stored.
        """
        return await self._publisher(topic).publish(Message(payload, attributes or {}), retry_for)

    async def publish_many(
        self,
        topic: str,
        messages: Iterable[Message | bytes] | AsyncIterable[Message | bytes],
        *,
        window: int = 1_000,
        retry_for: float = 30.0,
    ) -> list[int]:
        """Publishes messages and returns their ids once all are accepted.

        Up to `window` of them are without an answer at any time. They are stored in their order, except where one is
        refused and retried, or the stream breaks. At the first refusal that stays, no more are taken, and the refusal
        is raised once those already sent have their answers: `position` names the message, `accepted` what is stored.

        Args:
            topic: Where to publish.
            messages: Messages, or payloads; asynchronous or not. Taken as the window moves, never all at once.
            window: From 1 to 5,000.
            retry_for: As in `publish`, for each message. A full backlog is what slows a fast publisher down, hence the
                default.

        Raises:
            PublishRefused: As in `publish`.
            StreamRefused: As in `publish`.
            ServerUnreachable: As in `publish`.
            StreamEnded: As in `publish`.
        """
        if not 1 <= window <= MAX_UNANSWERED:
            raise ValueError(f"window is {window!r}: it must be from 1 to {MAX_UNANSWERED:,}")
        return await self._publisher(topic).publish_many(messages, window, retry_for)

    def consume(
        self,
        topic: str,
        subscription: str,
        *,
        concurrency: int = 1,
        max_outstanding_messages: int = 1_000,
        max_outstanding_bytes: int = 64 * 1024 * 1024,
        max_batch_messages: int = DEFAULT_MAX_BATCH_MESSAGES,
        max_extension: float = DEFAULT_MAX_EXTENSION,
        on_event: OnEvent | None = None,
    ) -> Consumer:
        """Returns a consumer of a subscription; it connects when it is used.

        Args:
            topic: The topic of the subscription.
            subscription: Its consumers share its messages.
            concurrency: How many deliveries `async for` handles at the same time, from 1; it is only announced to the
                server, which then knows what may have been begun. `run` has its own.
            max_outstanding_messages: At most so many messages are held by this consumer at any time, from 1. It asks
                for fewer as long as its handlers are slow.
            max_outstanding_bytes: At most so many bytes of payload and attributes, from 1; a larger message comes
                alone.
            max_batch_messages: Up to so many deliveries come in one frame, from 1. It costs no latency: the server
                batches what is ready.
            max_extension: Seconds for which a delivery is extended from when the application got it, from 0 (never) to
                3,600 (the server's bound).
            on_event: Called with what happens to the stream: a `StreamOpened`, `StreamLost` or `AnswersDiscarded`. It
                runs in the event loop and should return at once; what it raises is logged.
        """
        self._check_open()
        bounds = {
            "max_outstanding_messages": (max_outstanding_messages, 2**32 - 1),
            "max_outstanding_bytes": (max_outstanding_bytes, 2**64 - 1),
            "max_batch_messages": (max_batch_messages, 2**32 - 1),
        }
        for name, (value, most) in bounds.items():
            if not 1 <= value <= most:
                raise ValueError(f"{name} is {value!r}: it must be from 1 to {most:,}")
        open_frame = pb.Open(
            topic=check_name("topic", topic),
            subscription=check_name("subscription", subscription),
            client_id=self._client_id,
            max_outstanding_messages=max_outstanding_messages,
            max_outstanding_bytes=max_outstanding_bytes,
            max_batch_messages=max_batch_messages,
        )
        consumer = Consumer(
            self._transport,
            open_frame,
            concurrency=concurrency,
            max_extension=max_extension,
            connect_timeout=self._connect_timeout,
            on_event=on_event,
            spans=ConsumerSpans(self._tracer_provider, self._client_id),
        )
        self._lives = [life for life in self._lives if not life.ended] + [consumer._life]
        return consumer

    async def __aenter__(self) -> Self:
        self._check_open()
        self._check_owner()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed = True
        leaving = [asyncio.shield(life.stop(0, LEAVE_TIMEOUT)) for life in self._lives if not life.ended]
        await asyncio.gather(*leaving, *(publisher.close() for publisher in self._publishers.values()))

    def _publisher(self, topic: str) -> Publisher:
        self._check_open()
        self._check_owner()
        check_name("topic", topic)
        if topic not in self._publishers:
            self._publishers[topic] = Publisher(
                self._transport,
                topic,
                client_id=self._client_id,
                connect_timeout=self._connect_timeout,
                spans=PublisherSpans(self._tracer_provider, topic, self._client_id),
            )
        return self._publishers[topic]

    def _check_owner(self) -> None:
        """Looks whether the client is where it began: in its event loop, thread and process."""
        here = asyncio.get_running_loop(), threading.get_ident(), os.getpid()
        self._owner = self._owner or here
        if here[2] != self._owner[2]:
            raise Misused("the client belongs to the process that this one was forked from: connect anew here")
        if here != self._owner:
            raise Misused(
                "the client belongs to another event loop: connect once in each `asyncio.run`, or each thread"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise StreamEnded("the client is closed")
