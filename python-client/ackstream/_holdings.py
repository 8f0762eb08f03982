"""The deliveries that a consumer holds, and the answers that it owes: the consumer's side of a stream, without I/O.

A delivery is *held* from its arrival until it is answered, released, or past its deadline. What is held stays held over
a reconnect of the same epoch: the session is resumed, and the answers of the last seconds are repeated. What may be
sent for which delivery:

    the delivery               ack                     nack, extend, release
    held                       sent                    sent
    not held, same epoch       sent: it still counts   not sent: the server would ignore them
    of an epoch that is over   discarded, counted      discarded, counted

A redelivery of what the application has and has not answered is *adopted*: the application does not get it again, and
its answer is that of the new attempt.
"""

import asyncio
import contextlib
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from weakref import WeakValueDictionary

from google.protobuf.duration_pb2 import Duration
from opentelemetry.trace import Span

from ackstream._delivery import REVIEW_AFTER, Delivery
from ackstream._errors import UnsupportedByServer
from ackstream._events import AnswersDiscarded, OnEvent, StreamOpened
from ackstream._inbox import Inbox
from ackstream._proto import ackstream_pb2 as pb
from ackstream._tracing import DISCARDED, EXPIRED, LEFT, NACKED, REJECTED, RELEASED, ConsumerSpans, end_answers
from ackstream._window import Window

logger = logging.getLogger("ackstream")

UNLIMITED_RETRIES = 2**32 - 1
"""What `Opened.max_retries` says for "unlimited" (wire contract)."""

MAX_IDS_PER_FRAME = 100_000
"""An id takes at most 10 bytes: a frame stays at 1 MB, and servers accept 4 MiB (gRPC's default)."""

MIN_ACK_DEADLINE = 0.001
"""Seconds: what a server that names no deadline, or a shorter one, is taken to mean. No round trip is faster."""

REVIEW_GRAIN = 0.1
"""Share of the ack deadline by which an extension may be later than that, so that many share one frame."""

BLOCKED_AFTER = 0.5
"""Share of the ack deadline for which an event loop may be blocked without a word."""

MAX_QUEUE_WAIT = 30.0
"""Seconds after which what the application has not taken goes back to the subscription: others may have the time."""

REPEATED_FOR = 30.0
"""Seconds for which answers are remembered, to be repeated on the next stream (wire contract, `Resume.held`)."""

MAX_RESUMED = 10_000
"""The most deliveries that a stream resumes (wire contract, `Resume.held`)."""


class Holdings:
    """What a consumer holds and owes. Time is the event loop's, in seconds."""

    def __init__(
        self,
        open_frame: pb.StreamMessage,
        *,
        target: str,
        inbox: Inbox,
        window: Window,
        max_extension: float,
        wake: Callable[[], None],
        reopen: Callable[[], None],
        on_event: OnEvent,
        spans: ConsumerSpans,
    ) -> None:
        self._open = open_frame.open
        self._target = target
        self._inbox = inbox
        self._window = window
        self._max_extension = max_extension
        self._wake = wake
        self._reopen = reopen
        self._on_event = on_event
        self._spans = spans
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

        self._stream: StreamOpened | None = None
        self._session = b""
        self._features: frozenset[int] = frozenset()
        # In the order of their `_review_at`: it rises with each arrival and each review.
        self._held: OrderedDict[int, Delivery] = OrderedDict()
        # What the application has and has not answered, though it is not held: its redelivery is adopted.
        self._astray: WeakValueDictionary[int, Delivery] = WeakValueDictionary()
        self._not_before = 0.0
        self._handed = 0
        self._on_none_handed: asyncio.Future[None] | None = None
        self._acks: list[int] = []
        self._nacks: list[pb.StreamMessage] = []
        self._extends: list[tuple[Delivery, float | None]] = []
        self._owes_a_sign = False
        # The answers of the last `frames`: written once `written` is called.
        self._writing: list[int] = []
        self._writing_nacks: list[pb.StreamMessage] = []
        # Answers of the last `REPEATED_FOR` seconds, with the time of their writing.
        self._answered: deque[tuple[float, list[int], list[pb.StreamMessage]]] = deque()
        self._on_written: list[asyncio.Future[None]] = []
        self._has_warned = False
        # Of the answers that the next `frames` takes.
        self._ack_spans: list[Span] = []
        self._nack_spans: list[Span] = []

    # What the application does

    def hand_over(self, delivery: Delivery) -> None:
        """The application gets the delivery."""
        delivery._handed = True
        delivery._handed_at = self._loop.time()
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
        if held is not None and held is not delivery:
            held._answered = True  # the message is done, also where a later attempt is held
        self._is_handled(delivery)
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
        self._is_handled(delivery)
        sending = processing.answer("nack", REJECTED if drop else NACKED) if processing is not None else None
        if sending is not None:
            self._nack_spans.append(sending)
        nack = pb.Nack(ack_id=delivery.id, delivery_attempt=delivery.attempt, drop=drop)
        if delay is not None:
            nack.delay.CopyFrom(_duration(delay))
        self._nacks.append(pb.StreamMessage(nack=nack))
        self._wake()

    def release(self, delivery: Delivery) -> None:
        if pb.FEATURE_RELEASE not in self._features:
            raise UnsupportedByServer("release", self._target)
        if self._elsewhere(self.release, delivery) or delivery._answered:
            return
        delivery._answered = True
        if self._is_stranger(delivery) or self._held.get(delivery.id) is not delivery:
            return
        self._release(delivery.id)
        if delivery._processing is not None:
            delivery._processing.answer(None, RELEASED)
        self._give_back(delivery)
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

    def has_lapsed(self, delivery: Delivery) -> bool:
        """Whether a queued delivery is not the consumer's any more: it is forgotten then."""
        if delivery._lapsed:
            return True
        if delivery._expires_at > self._loop.time() or self._held.get(delivery.id) is not delivery:
            return False
        self._lapse(delivery)
        self._wake()
        return True

    def asks_for_more(self) -> None:
        """The application has begun all that there is, and waits for the next."""
        if self._handed >= self._window.size and self._resumes and self._window.grow_as_all_is_begun(self._handed):
            self._reopen()

    @property
    def unwritten(self) -> int:
        """How many answers are not written."""
        return len(self._acks) + len(self._nacks) + len(self._writing) + len(self._writing_nacks)

    async def until_written(self, most: int) -> None:
        """Returns when no more than so many answers are unwritten."""
        while self.unwritten > most:
            written = self._loop.create_future()
            self._on_written.append(written)
            await written

    async def none_handed(self) -> None:
        """Returns when the application holds no delivery."""
        if self._handed:
            self._on_none_handed = self._loop.create_future()
            await self._on_none_handed

    # What the stream does: see `_link.Side`

    def open_frame(self) -> pb.StreamMessage:
        self._open.max_outstanding_messages = self._window.size
        self._open.max_concurrent_handlers = self._window.concurrency
        self._open.resume.session = self._session
        del self._open.resume.held[:]
        if self._session:
            self._forget_old_answers(self._loop.time())
            nacked = (frame.nack.ack_id for frame in self._nacks)
            answered = (i for _, acks, nacks in self._answered for i in (*acks, *(n.nack.ack_id for n in nacks)))
            held = dict.fromkeys((*self._held, *self._acks, *nacked, *answered))
            self._open.resume.held.extend(list(held)[:MAX_RESUMED])
        return pb.StreamMessage(open=self._open)

    def opened(self, opened: pb.Opened) -> None:
        before = self._stream
        resumed = bool(opened.session) and opened.session == self._session
        self._session = opened.session
        self._features = frozenset(opened.features)
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
        if before is None:
            return
        if before.epoch != opened.epoch:
            self._begin_anew()
        elif resumed:
            self._go_on()
        else:
            self._give_up_the_session()

    def needs_another_stream(self) -> bool:
        """Whether the window must be large at once, as the server has no sessions in which it could grow."""
        return self._stream is not None and not self._resumes and self._window.grow_to_the_most()

    def received(self, frame: pb.StreamMessage, now: float) -> None:
        kind = frame.WhichOneof("kind")
        if kind == "data_batch":
            self._arrive(frame.data_batch.messages, now)
        elif kind == "data":
            self._arrive([frame.data], now)
        # A consumer takes nothing else; a member that it does not know is ignored, as the wire contract asks.

    def frames(self, now: float) -> list[pb.StreamMessage]:
        frames: list[pb.StreamMessage] = []
        self._writing, self._acks = self._acks, []
        self._writing_nacks, self._nacks = self._nacks, []
        if self._ack_spans or self._nack_spans:
            end_answers(self._ack_spans)
            end_answers(self._nack_spans)
        if self._writing:
            frames += (pb.StreamMessage(ack_batch=pb.AckBatch(ack_ids=ids)) for ids in _chunks(self._writing))
        frames += self._writing_nacks
        if self._extends:
            frames += self._asked_extensions(now)
        if self._held and now >= self._next_review():
            self._warn_if_blocked(now)
            frames += self._review(now)
            if self._nacks:  # releases of the review
                frames += self._nacks
                self._writing_nacks += self._nacks
                self._nacks = []
        if self._owes_a_sign:
            self._owes_a_sign = False
            if not frames:
                frames.append(pb.StreamMessage())  # the server learns that this consumer lives
        return frames

    def written(self, now: float) -> None:
        if self._writing or self._writing_nacks:
            self._answered.append((now, self._writing, self._writing_nacks))
            self._forget_old_answers(now)
            self._writing, self._writing_nacks = [], []
        for waiting in self._on_written:
            if not waiting.done():
                waiting.set_result(None)
        self._on_written.clear()

    def due(self) -> float | None:
        return self._next_review() if self._held else None

    def lost(self) -> None:
        self._acks = self._writing + self._acks
        self._nacks = self._writing_nacks + self._nacks
        self._writing, self._writing_nacks = [], []
        if not self._session:
            self._give_up_the_session()

    def ended(self) -> None:
        """Learns that no stream will follow."""
        self._give_up_all()
        self._held.clear()
        end_answers(self._ack_spans, RELEASED)
        end_answers(self._nack_spans, RELEASED)

    # Helpers

    @property
    def _resumes(self) -> bool:
        return bool(self._session)

    def _begin_anew(self) -> None:
        """Another epoch has begun: nothing that was said counts, and its ids are others'."""
        self._discard(len(self._acks) + len(self._nacks) + len(self._extends))
        self._acks, self._nacks, self._extends = [], [], []
        self._answered.clear()
        end_answers(self._ack_spans, DISCARDED)
        end_answers(self._nack_spans, DISCARDED)
        self._give_up_all()
        self._inbox.clear()
        self._held.clear()
        self._astray.clear()
        self._handed = 0
        self._tell_none_handed()

    def _go_on(self) -> None:
        """The session goes on: the server holds what this consumer holds, and may have missed the last answers."""
        assert self._stream is not None, "called when it has opened"
        now, deadline = self._loop.time(), self._stream.ack_deadline
        for delivery in self._held.values():
            delivery._expires_at = now + deadline
            delivery._review_at = now + deadline * REVIEW_AFTER
        self._acks = [i for _, acks, _ in self._answered for i in acks] + self._acks
        self._nacks = [nack for _, _, nacks in self._answered for nack in nacks] + self._nacks
        self._answered.clear()
        self._wake()

    def _give_up_the_session(self) -> None:
        """The server has released what was held, and delivers it anew. What the application has can still be acked."""
        self._inbox.clear()
        self._give_up_all()
        for delivery in self._held.values():
            if delivery._handed:
                self._astray[delivery.id] = delivery
        self._held.clear()
        self._handed = 0
        self._tell_none_handed()
        # Only the stream that holds a delivery can nack or extend it, and that one is gone.
        self._nacks, self._extends = [], []
        self._acks = [i for _, acks, _ in self._answered for i in acks] + self._acks
        self._answered.clear()
        end_answers(self._nack_spans, RELEASED)

    def _forget_old_answers(self, now: float) -> None:
        count = sum(len(acks) + len(nacks) for _, acks, nacks in self._answered)
        while self._answered and (self._answered[0][0] < now - REPEATED_FOR or count > MAX_RESUMED):
            _, acks, nacks = self._answered.popleft()
            count -= len(acks) + len(nacks)

    def _is_handled(self, delivery: Delivery) -> None:
        if delivery._handed:
            self._window.handled(self._loop.time() - delivery._handed_at)
            if self._resumes and self._window.grow():
                self._reopen()

    def _give_back(self, delivery: Delivery) -> None:
        nack = pb.Nack(ack_id=delivery.id, delivery_attempt=delivery.attempt, release=True)
        self._nacks.append(pb.StreamMessage(nack=nack))

    def _lapse(self, delivery: Delivery) -> None:
        """A delivery is past its deadline: the server has taken it back."""
        self._release(delivery.id)
        self._give_up(delivery, EXPIRED)
        self._owes_a_sign = True
        if delivery._handed:
            self._astray[delivery.id] = delivery
        else:
            delivery._lapsed = True

    def _arrive(self, messages: Iterable[pb.DataMessage], now: float) -> None:
        stream = self._stream
        assert stream is not None, "the link passes frames on only after `opened`"
        held, astray = self._held, self._astray
        if not held:
            self._wake()  # the writer waits without a timer: see `due`
        fresh: list[Delivery] = []
        traced = self._spans.tracer is not None
        for message in messages:
            delivery = held.pop(message.id, None)
            if delivery is not None and not delivery._handed:
                delivery._lapsed = True  # it is queued: its redelivery goes to the end
                delivery = None
            elif delivery is None and astray:
                delivery = astray.pop(message.id, None)
                if delivery is not None and delivery._answered:
                    delivery = None
                self._handed += delivery is not None
            if delivery is None:
                delivery = Delivery(message, stream, self, now)
                fresh.append(delivery)
                if traced:
                    delivery._trace_context = message.trace_context
            else:
                delivery._adopt(message, stream, now)
            held[delivery.id] = delivery
        self._window.holds(len(held))
        self._inbox.put(fresh)

    def _next_review(self) -> float:
        return max(next(iter(self._held.values()))._review_at, self._not_before)

    def _review(self, now: float) -> Iterator[pb.StreamMessage]:
        """Extends what is past a third of its deadline, gives back what has waited, forgets what has expired."""
        stream = self._stream
        assert stream is not None, "something is held"
        extended: list[int] = []
        while self._held:
            delivery = next(iter(self._held.values()))
            if delivery._review_at > now:
                break
            if delivery._expires_at <= now:
                self._lapse(delivery)
                continue
            if not delivery._handed and now - delivery._received_at >= MAX_QUEUE_WAIT and self._can_release:
                self._release(delivery.id)
                delivery._lapsed = True
                self._give_back(delivery)
                continue
            if self._is_kept(delivery, now) and delivery._expires_at < now + stream.ack_deadline:
                extended.append(delivery.id)
                delivery._expires_at = now + stream.ack_deadline
            delivery._review_at = min(now + stream.ack_deadline * REVIEW_AFTER, max(delivery._expires_at, now + 1e-3))
            self._held.move_to_end(delivery.id)
        self._not_before = now + stream.ack_deadline * REVIEW_GRAIN
        deadline = _duration(stream.ack_deadline)
        for ids in _chunks(extended):
            yield pb.StreamMessage(extend_batch=pb.ExtendBatch(ack_ids=ids, ack_deadline=deadline))

    @property
    def _can_release(self) -> bool:
        return pb.FEATURE_RELEASE in self._features

    def _is_kept(self, delivery: Delivery, now: float) -> bool:
        """Whether the deadline of a delivery is moved on."""
        if delivery._handed:
            return now - delivery._handed_at < self._max_extension
        return self._can_release or now - delivery._received_at < self._max_extension

    def _warn_if_blocked(self, now: float) -> None:
        late = now - self._next_review()
        if self._has_warned or self._stream is None or late <= self._stream.ack_deadline * BLOCKED_AFTER:
            return
        self._has_warned = True
        logger.warning(
            "the event loop was blocked for about %.1f s, with an ack deadline of %g s: what waits for its answer "
            "expires meanwhile; make a handler that blocks a plain `def`, which runs in a thread",
            late,
            self._stream.ack_deadline,
        )

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
            return self._loop.is_closed()  # nobody is left to be told
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            self._loop.call_soon_threadsafe(method, *args)
        return True


def _chunks(ids: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(ids), MAX_IDS_PER_FRAME):
        yield ids[start : start + MAX_IDS_PER_FRAME]


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMicroseconds(round(seconds * 1e6))
    return duration
