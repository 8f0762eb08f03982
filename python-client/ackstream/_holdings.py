"""The deliveries that a consumer holds, and the answers that it owes: the consumer's side of a stream, without I/O.

A delivery is *held* from its arrival until it is answered, superseded by a later attempt, past its deadline, or its
stream is gone. Held ones are extended, whether queued or handed to the application. What may be sent for which
delivery:

    the delivery               ack                     nack, extend
    held                       sent                    sent
    not held, same epoch       sent: it still counts   not sent: the server would ignore them
    of an epoch that is over   discarded, counted      discarded, counted
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

from google.protobuf.duration_pb2 import Duration
from opentelemetry.trace import Span

from ackstream._delivery import Delivery
from ackstream._events import AnswersDiscarded, OnEvent, StreamOpened
from ackstream._inbox import Inbox
from ackstream._proto import ackstream_pb2 as pb
from ackstream._tracing import DISCARDED, EXPIRED, LEFT, NACKED, REJECTED, RELEASED, ConsumerSpans, end_answers

UNLIMITED_RETRIES = 2**32 - 1
"""What `Opened.max_retries` says for "unlimited" (wire contract)."""

MAX_IDS_PER_FRAME = 100_000
"""An id takes at most 10 bytes: a frame stays at 1 MB, and servers accept 4 MiB (gRPC's default)."""

MIN_ACK_DEADLINE = 0.001
"""Seconds: what a server that names no deadline, or a shorter one, is taken to mean. No round trip is faster."""

REVIEW_GRAIN = 0.1
"""Share of the ack deadline by which an extension may be later than half the deadline, so that many share one frame."""


class Holdings:
    """What a consumer holds and owes. Time is the event loop's, in seconds."""

    def __init__(
        self,
        open_frame: pb.StreamMessage,
        *,
        target: str,
        inbox: Inbox,
        max_extension: float,
        wake: Callable[[], None],
        on_event: OnEvent,
        spans: ConsumerSpans,
    ) -> None:
        self._open_frame = open_frame
        self._target = target
        self._inbox = inbox
        self._max_extension = max_extension
        self._wake = wake
        self._on_event = on_event
        self._spans = spans
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

        self._stream: StreamOpened | None = None
        # In the order of their `_review_at`: it rises with each arrival and each review.
        self._held: OrderedDict[int, Delivery] = OrderedDict()
        self._not_before = 0.0
        self._handed = 0
        self._on_none_handed: asyncio.Future[None] | None = None
        self._acks: list[int] = []
        self._nacks: list[pb.StreamMessage] = []
        self._extends: list[tuple[Delivery, float | None]] = []
        # The acks of the last `frames`: written once it is called again.
        self._writing: list[int] = []
        # Of the answers that the next `frames` takes.
        self._ack_spans: list[Span] = []
        self._nack_spans: list[Span] = []

    # What the application does

    def hand_over(self, delivery: Delivery) -> None:
        """The application gets the delivery."""
        delivery._handed = True
        if self._held.get(delivery.id) is delivery:
            self._handed += 1
        if self._spans.tracer is not None:
            delivery._processing = self._spans.process(
                delivery.id, delivery.attempt, delivery._trace_context, delivery.attributes
            )

    def ack(self, delivery: Delivery) -> None:
        if self._elsewhere(self.ack, delivery) or delivery._answered:
            return
        delivery._answered = True
        if self._is_stranger(delivery):
            return
        held = self._release(delivery.id)
        if held is not None:
            held._answered = True  # the message is done, also where a later attempt is held
        if delivery._processing is not None or held is not delivery:
            self._trace_ack(delivery, held)
        if not self._acks:
            self._wake()
        # It names no attempt: the work is done, whichever attempt is outstanding, and many fit into one frame.
        self._acks.append(delivery.id)

    def nack(self, delivery: Delivery, delay: float | None, drop: bool) -> None:  # noqa: FBT001 - private
        if self._elsewhere(self.nack, delivery, delay, drop) or delivery._answered:
            return
        delivery._answered = True
        if self._is_stranger(delivery):
            return
        processing = delivery._processing
        if self._held.get(delivery.id) is not delivery:
            if processing is not None:
                processing.answer(None, EXPIRED)
            return
        self._release(delivery.id)
        sending = processing.answer("nack", REJECTED if drop else NACKED) if processing is not None else None
        if sending is not None:
            self._nack_spans.append(sending)
        nack = pb.Nack(ack_id=delivery.id, delivery_attempt=delivery.attempt, drop=drop)
        if delay is not None:
            nack.delay.CopyFrom(_duration(delay))
        self._nacks.append(pb.StreamMessage(nack=nack))
        self._wake()

    def extend(self, delivery: Delivery, seconds: float | None) -> None:
        if self._elsewhere(self.extend, delivery, seconds) or delivery._answered:
            return
        if self._is_stranger(delivery) or self._held.get(delivery.id) is not delivery:
            return
        self._extends.append((delivery, seconds))
        self._wake()

    def leave(self, delivery: Delivery) -> None:
        if self._elsewhere(self.leave, delivery) or delivery._answered:
            return
        delivery._answered = True
        if self._held.get(delivery.id) is delivery:
            self._release(delivery.id)
        if delivery._processing is not None:
            delivery._processing.answer(None, LEFT)

    @property
    def count(self) -> int:
        """How many deliveries are held."""
        return len(self._held)

    async def none_handed(self) -> None:
        """Returns when the application holds no delivery."""
        if self._handed:
            self._on_none_handed = self._loop.create_future()
            await self._on_none_handed

    # What the stream does: see `_link.Side`

    def open_frame(self) -> pb.StreamMessage:
        return self._open_frame

    def opened(self, opened: pb.Opened) -> None:
        before = self._stream
        self._stream = StreamOpened(
            target=self._target,
            epoch=opened.epoch,
            topic=opened.topic,
            subscription=opened.subscription,
            ack_deadline=max(opened.ack_deadline.ToMicroseconds() / 1e6, MIN_ACK_DEADLINE),
            max_retries=None if opened.max_retries == UNLIMITED_RETRIES else opened.max_retries,
            server_version=opened.server_version,
            reconnected=before is not None,
        )
        self._spans.opened(opened.topic, opened.subscription)
        self._on_event(self._stream)
        if before is not None and before.epoch != opened.epoch:
            self._discard(len(self._acks) + len(self._nacks) + len(self._extends))
            self._acks.clear()
            end_answers(self._ack_spans, DISCARDED)
            end_answers(self._nack_spans, DISCARDED)
        # Only the stream that holds a delivery can nack or extend it, and that one is gone.
        self._nacks.clear()
        end_answers(self._nack_spans, RELEASED)
        self._extends.clear()

    def received(self, frame: pb.StreamMessage, now: float) -> None:
        kind = frame.WhichOneof("kind")
        if kind == "data_batch":
            self._arrive(frame.data_batch.messages, now)
        elif kind == "data":
            self._arrive([frame.data], now)
        # A consumer takes nothing else; a member that it does not know is ignored, as the wire contract asks.

    def frames(self, now: float) -> list[pb.StreamMessage]:
        frames: list[pb.StreamMessage] = []
        self._writing = self._acks
        if self._ack_spans or self._nack_spans:
            end_answers(self._ack_spans)
            end_answers(self._nack_spans)
        if self._acks:
            frames += (pb.StreamMessage(ack_batch=pb.AckBatch(ack_ids=ids)) for ids in _chunks(self._acks))
            self._acks = []
        if self._nacks:
            frames += self._nacks
            self._nacks.clear()
        if self._extends:
            frames += self._asked_extensions(now)
        if self._held and now >= self._next_review():
            frames += self._review(now)
        return frames

    def due(self) -> float | None:
        return self._next_review() if self._held else None

    def lost(self) -> None:
        self._acks = self._writing + self._acks
        self._writing = []
        # The server has released them all and delivers them anew. Those that the application has can still be acked.
        self._inbox.clear()
        self._give_up_all()
        self._held.clear()
        self._handed = 0
        self._tell_none_handed()

    def ended(self) -> None:
        """Learns that no stream will follow."""
        self._give_up_all()
        end_answers(self._ack_spans, RELEASED)
        end_answers(self._nack_spans, RELEASED)

    # Helpers

    def _arrive(self, messages: Iterable[pb.DataMessage], now: float) -> None:
        stream = self._stream
        assert stream is not None, "the link passes frames on only after `opened`"
        held = self._held
        if not held:
            self._wake()  # the writer waits without a timer: see `due`
        fresh: list[Delivery] = []
        traced = self._spans.tracer is not None
        for message in messages:
            delivery = held.pop(message.id, None)
            if delivery is None:
                delivery = Delivery(message, stream, self, now)
                fresh.append(delivery)
            elif delivery._handed:
                # The deadline had passed. The attempt that the application has can still be acked.
                self._handed -= 1
                self._give_up(delivery, EXPIRED)
                delivery = Delivery(message, stream, self, now)
                fresh.append(delivery)
            else:
                # The deadline had passed in the queue: the new attempt keeps the place of the old one.
                delivery._renew(message, stream, now)
            if traced:
                delivery._trace_context = message.trace_context
            held[delivery.id] = delivery
        self._inbox.put(fresh)

    def _next_review(self) -> float:
        return max(next(iter(self._held.values()))._review_at, self._not_before)

    def _review(self, now: float) -> Iterator[pb.StreamMessage]:
        """Extends what is past half its deadline, and forgets what is past all of it."""
        stream = self._stream
        assert stream is not None, "something is held"
        extended: list[int] = []
        while self._held:
            delivery = next(iter(self._held.values()))
            if delivery._review_at > now:
                break
            half = stream.ack_deadline / 2
            young = now - delivery._received_at < self._max_extension
            if young and delivery._expires_at < now + stream.ack_deadline:
                extended.append(delivery.id)
                delivery._expires_at = now + stream.ack_deadline
            if delivery._expires_at <= now:
                self._release(delivery.id)
                self._give_up(delivery, EXPIRED)
                continue
            delivery._review_at = now + half
            self._held.move_to_end(delivery.id)
        self._not_before = now + stream.ack_deadline * REVIEW_GRAIN
        deadline = _duration(stream.ack_deadline)
        for ids in _chunks(extended):
            yield pb.StreamMessage(extend_batch=pb.ExtendBatch(ack_ids=ids, ack_deadline=deadline))

    def _asked_extensions(self, now: float) -> Iterator[pb.StreamMessage]:
        stream = self._stream
        assert stream is not None, "something was held"
        for delivery, seconds in self._extends:
            if delivery._answered:
                continue
            length = stream.ack_deadline if seconds is None else seconds
            if self._max_extension > 0:
                length = max(length, stream.ack_deadline)
            delivery._expires_at = now + length
            yield pb.StreamMessage(
                extend=pb.Extend(ack_id=delivery.id, delivery_attempt=delivery.attempt, ack_deadline=_duration(length))
            )
        self._extends = []

    def _release(self, message_id: int) -> Delivery | None:
        delivery = self._held.pop(message_id, None)
        if delivery is not None and delivery._handed:
            self._handed -= 1
            self._tell_none_handed()
        return delivery

    def _tell_none_handed(self) -> None:
        waiting = self._on_none_handed
        if waiting is not None and not self._handed and not waiting.done():
            waiting.set_result(None)

    def _trace_ack(self, delivery: Delivery, held: Delivery | None) -> None:
        """Makes the spans of an ack, for the attempt that it is of and the one that it takes with it."""
        if held is not None and held is not delivery and held._processing is not None:
            held._processing.answer(None)
        processing = delivery._processing
        if processing is not None:
            # One that is held no more was given up, and says so itself.
            in_time = self._loop.time() <= delivery._expires_at
            sending = processing.answer("ack", None if in_time else EXPIRED)
            if sending is not None:
                self._ack_spans.append(sending)

    def _give_up_all(self) -> None:
        for delivery in self._held.values():
            self._give_up(delivery, RELEASED)

    def _give_up(self, delivery: Delivery, error: str) -> None:
        if delivery._processing is not None:
            delivery._processing.give_up(error)

    def _is_stranger(self, delivery: Delivery) -> bool:
        """Whether the delivery's epoch is over; counts the answer that is discarded with it."""
        if self._stream is not None and delivery._stream.epoch == self._stream.epoch:
            return False
        if delivery._processing is not None and delivery._answered:
            delivery._processing.answer(None, DISCARDED)
        self._discard(1)
        return True

    def _discard(self, count: int) -> None:
        if count:
            self._on_event(AnswersDiscarded(count))

    def _elsewhere(self, method: Callable[..., None], *args: object) -> bool:
        """Passes a call from another thread on to the event loop's."""
        if threading.get_ident() == self._thread:
            return False
        self._loop.call_soon_threadsafe(method, *args)
        return True


def _chunks(ids: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(ids), MAX_IDS_PER_FRAME):
        yield ids[start : start + MAX_IDS_PER_FRAME]


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMicroseconds(round(seconds * 1e6))
    return duration
