"""The publishes that have no answer yet: the publisher's side of a stream, without I/O."""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import grpc

from ackstream._errors import AckstreamError, PublishRefused
from ackstream._proto import ackstream_pb2 as pb

__all__ = ["Message"]

MAX_BATCH_BYTES = 1024 * 1024
"""Messages of one frame stop here, as the server's do; a larger message goes alone."""

MAX_BATCH_MESSAGES = 1_000
"""Answers to publishes, and messages, in one frame."""

NO_CONTEXT: Mapping[str, str] = MappingProxyType({})

_CODES = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class Message:
    """What `Client.publish_many` publishes.

    Attributes:
        payload: The content; may be empty. Together with the attributes at most the server's message size (1 MiB by
            default).
        attributes: At most 64; names of 1 to 256 bytes, values of at most 4,096.
    """

    payload: bytes
    attributes: Mapping[str, str] = field(default_factory=dict)


class Publication:
    """One publish and its answer, the message's id."""

    __slots__ = ("_trace_context", "answer", "data", "size")

    def __init__(
        self, number: int, message: Message, trace_context: Mapping[str, str], answer: asyncio.Future[int]
    ) -> None:
        self.data = pb.DataMessage(id=number, payload=message.payload, attributes=message.attributes)
        self.size = len(message.payload) + _size(message.attributes)
        self.answer = answer
        self._trace_context = trace_context
        if trace_context:
            self.data.attributes.update(trace_context)
            self.size += _size(trace_context)

    def drop_trace_context(self) -> None:
        """Travels without its trace context: the message is what the application gave, and no larger."""
        for name in self._trace_context:
            del self.data.attributes[name]
        self.size -= _size(self._trace_context)
        self._trace_context = {}


class Publications:
    """What was published on one topic and has no answer. After a reconnect all of it is sent again, in its order."""

    def __init__(self, topic: str, client_id: str, max_unanswered: int) -> None:
        self._topic = topic
        self._client_id = client_id
        self._loop = asyncio.get_running_loop()
        self._last_number = 0
        self._max_message_bytes = 0
        self._unanswered: dict[int, Publication] = {}
        self._queue: deque[Publication] = deque()
        self._room = asyncio.Semaphore(max_unanswered)

    async def room(self) -> None:
        """Waits until another publish may be without an answer; `add` or `give_back` must follow."""
        await self._room.acquire()

    def give_back(self) -> None:
        """Takes back the room of a publish that does not happen."""
        self._room.release()

    def add(self, message: Message, trace_context: Mapping[str, str] = NO_CONTEXT) -> asyncio.Future[int]:
        """Takes a publish; returns its answer to come: the message's id, or an AckstreamError.

        What `trace_context` names joins the message's attributes.
        """
        self._last_number += 1
        try:
            publication = Publication(self._last_number, message, trace_context, self._loop.create_future())
        except BaseException:
            self.give_back()
            raise
        self._unanswered[self._last_number] = publication
        self._queue.append(publication)
        return publication.answer

    def fail(self, error: AckstreamError) -> None:
        """Answers all that is left with an error."""
        for number in list(self._unanswered):
            self._answer(number, error)
        self._queue.clear()

    # What the stream does: see `_link.Side`

    def open_frame(self) -> pb.StreamMessage:
        return pb.StreamMessage(
            open=pb.Open(
                topic=self._topic, client_id=self._client_id, max_batch_messages=MAX_BATCH_MESSAGES, publish_only=True
            )
        )

    def opened(self, opened: pb.Opened) -> None:
        self._max_message_bytes = opened.max_message_bytes

    def received(self, frame: pb.StreamMessage, now: float) -> None:  # noqa: ARG002 - see Side
        kind = frame.WhichOneof("kind")
        if kind == "ack_batch":
            # A server that names fewer ids than publishes would break the contract; `strict` shows it.
            for number, message_id in zip(frame.ack_batch.ack_ids, frame.ack_batch.message_ids, strict=True):
                self._answer(number, message_id)
        elif kind == "ack":
            self._answer(frame.ack.ack_id, frame.ack.message_id)
        elif kind == "nack":
            code = _CODES.get(frame.nack.code, grpc.StatusCode.UNKNOWN)
            self._answer(frame.nack.ack_id, PublishRefused(code, frame.nack.reason))

    def frames(self, now: float) -> list[pb.StreamMessage]:  # noqa: ARG002 - see Side
        frames: list[pb.StreamMessage] = []
        batch: list[pb.DataMessage] = []
        size = 0
        while self._queue:
            publication = self._queue.popleft()
            if publication.answer.done():  # its publisher was cancelled before it was sent
                self._forget(publication.data.id)
                continue
            if publication.size > self._max_message_bytes:
                publication.drop_trace_context()
            # Refused here: a frame beyond what the server reads at all would end the stream with every publish on it.
            if publication.size > self._max_message_bytes:
                sentence = (
                    f"the message has {publication.size:,} bytes of payload and attributes; "
                    f"topic {self._topic!r} takes at most {self._max_message_bytes:,}"
                )
                self._answer(publication.data.id, PublishRefused(grpc.StatusCode.INVALID_ARGUMENT, sentence))
                continue
            if batch and (size + publication.size > MAX_BATCH_BYTES or len(batch) == MAX_BATCH_MESSAGES):
                frames.append(pb.StreamMessage(data_batch=pb.DataBatch(messages=batch)))
                batch, size = [], 0
            batch.append(publication.data)
            size += publication.size
        if batch:
            frames.append(pb.StreamMessage(data_batch=pb.DataBatch(messages=batch)))
        return frames

    def written(self, now: float) -> None:
        pass

    def needs_another_stream(self) -> bool:
        return False

    def due(self) -> float | None:
        return None

    def lost(self) -> None:
        self._queue = deque(self._unanswered.values())

    # Helpers

    def _answer(self, number: int, result: int | AckstreamError) -> None:
        publication = self._forget(number)
        if publication is None or publication.answer.done():
            return
        if isinstance(result, int):
            publication.answer.set_result(result)
        else:
            publication.answer.set_exception(result)

    def _forget(self, number: int) -> Publication | None:
        publication = self._unanswered.pop(number, None)
        if publication is not None:
            self._room.release()
        return publication


ORIGIN = frozenset(f"ackstream.origin.{name}" for name in ("topic", "subscription", "id", "reason", "attempts"))
"""What the server has added to a dead letter; it counts against no bound when the message is published again."""


def _size(attributes: Mapping[str, str]) -> int:
    own = ((name, value) for name, value in attributes.items() if name not in ORIGIN)
    return sum(len(name.encode()) + len(value.encode()) for name, value in own)
