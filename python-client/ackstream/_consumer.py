"""Receives deliveries from one subscription and lets the application answer them."""

import asyncio
import contextlib
import contextvars
import functools
import inspect
import logging
import time
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeAlias

from ackstream._arguments import check_handler
from ackstream._backoff import Backoff
from ackstream._delivery import MAX_EXTENSION, Delivery
from ackstream._errors import Reject
from ackstream._events import OnEvent, StreamEvent, StreamLost
from ackstream._holdings import Holdings
from ackstream._inbox import Inbox
from ackstream._link import LEAVE_TIMEOUT, Link
from ackstream._proto import ackstream_pb2 as pb
from ackstream._tracing import ConsumerSpans
from ackstream._transport import StreamBroken, Transport
from ackstream._window import Window

__all__ = ["Consumer", "Handler"]

logger = logging.getLogger("ackstream")

Handler: TypeAlias = Callable[[Delivery], Awaitable[object] | object]
"""What `Consumer.run` calls with each delivery: an `async def` function, or a plain `def` one, which runs in a
thread."""

CANCELLED_LEAVE_TIMEOUT = 1.0
"""Seconds that a cancelled consumer takes to leave cleanly. What it holds goes back at once then, and at no cost."""

MAX_TURN = 0.01
"""Seconds of the application's after which answers and extensions that are due are written first."""

CATCH_UP_TIMEOUT = 1.0
"""Seconds that this may take: a stream that takes nothing is the business of whoever reads."""

STUBBORN_HANDLER_TIMEOUT = 1.0
"""Seconds that a cancelled handler has to end before the consumer leaves without it."""

USED = "a consumer is used once, by `run` or by `async for`: call `client.consume` again for another"


class Consumer:
    """One consumer of a subscription, made by `Client.consume`.

    It is used once: by `run`, or by `async for`, which may be left and entered again.

        await consumer.run(handle, concurrency=16)          async for delivery in consumer:
                                                                async with delivery:
                                                                    ...

    It connects on first use and again whenever the stream breaks, and ends when the server ends the stream with OK,
    after `stop`, or when nobody has it any more. What it holds stays held over a broken stream. Every delivery is
    extended when a third of its deadline has passed: in the queue for 30 s, then it goes back at no cost; from then on
    when the application got it until it is answered, for `max_extension` seconds. It asks for as many deliveries as are
    begun within some 10 s. A message may come more than once, and after a retry out of order.
    """

    def __init__(
        self,
        transport: Transport,
        open_frame: pb.Open,
        *,
        concurrency: int,
        max_extension: float,
        connect_timeout: float | None,
        on_event: OnEvent | None,
        spans: ConsumerSpans,
    ) -> None:
        if not 0 <= max_extension <= MAX_EXTENSION:
            raise ValueError(f"max_extension is {max_extension!r}: it must be from 0 to {MAX_EXTENSION:g} seconds")
        self._life = Life(
            transport,
            pb.StreamMessage(open=open_frame),
            concurrency=_check_concurrency(concurrency),
            max_extension=max_extension,
            connect_timeout=connect_timeout,
            reporter=_Reporter(transport.target, on_event),
            spans=spans,
        )
        # Whoever forgets a consumer, for example by `break`, leaves its subscription.
        weakref.finalize(self, self._life.abandon).atexit = False

    async def run(self, handler: Handler, *, concurrency: int = 1) -> None:
        """Calls `handler` with each delivery until the server ends the stream with OK, or `stop` is called.

        The delivery is acked when the handler returns, and nacked when it raises (logged with its traceback to the
        logger "ackstream"). `raise ackstream.Reject` drops the message. A handler may also answer the delivery itself;
        that comes first. A handler that is cancelled leaves its delivery to its deadline. Cancelling `run` cancels its
        handlers and leaves the subscription cleanly.

        Args:
            handler: An `async def` function, or a plain `def` one, each call of which runs in a thread.
            concurrency: How many deliveries are handled at the same time, from 1.

        Raises:
            TypeError: The handler cannot be called with one delivery, or makes a generator.
            StreamRefused: The server does not want this consumer: it does not know the subscription, for example.
            ServerUnreachable: No server could be had for `connect_timeout` seconds.
        """
        check_handler(handler)
        await self._life.run(handler, _check_concurrency(concurrency))

    def __aiter__(self) -> Self:
        self._life.start()
        return self

    async def __anext__(self) -> Delivery:
        """Returns the next delivery, which the application answers.

        Raises:
            StopAsyncIteration: The server ended the stream with OK, or `stop` was called.
            StreamRefused: As in `run`.
            ServerUnreachable: As in `run`.
        """
        delivery = await self._life.take()
        if delivery is None:
            raise StopAsyncIteration
        return delivery

    @property
    def outstanding(self) -> int:
        """How many deliveries the consumer holds, queued or handed out. May be asked from any thread."""
        return self._life.outstanding

    @property
    def ended(self) -> bool:
        """Whether the consumer has left, or was never used and stopped."""
        return self._life.ended

    def stop(self, grace: float = 10.0) -> asyncio.Future[None]:
        """Takes nothing new, lets handlers finish and their answers leave, and then leaves the subscription.

        It returns at once, and may be called from a handler or a signal handler of the event loop. What it returns can
        be awaited: it is done when the consumer has left (a handler that awaits it waits for itself). What was
        delivered and not handed to a handler goes back to the subscription, at no cost in retries; so does what has no
        answer when the grace is over.

        Args:
            grace: Seconds for handlers to finish; the ones left are cancelled then. A second call changes nothing.
        """
        return asyncio.shield(self._life.stop(grace, LEAVE_TIMEOUT))


class _Reporter:
    """Tells the application what happens to a consumer's stream."""

    def __init__(self, target: str, listener: OnEvent | None) -> None:
        self.target = target
        self._listener = listener

    def tell(self, event: StreamEvent) -> None:
        logger.debug("%s", event)
        if self._listener is None:
            return
        try:
            self._listener(event)
        except Exception:
            logger.exception("on_event failed on %s", event)

    def tell_lost(self, broken: StreamBroken, retry_in: float) -> None:
        self.tell(StreamLost(self.target, str(broken), retry_in))


class Life:
    """What a consumer does, as long as its stream, handlers or clean-up last. It knows nothing of the `Consumer`."""

    def __init__(
        self,
        transport: Transport,
        open_frame: pb.StreamMessage,
        *,
        concurrency: int,
        max_extension: float,
        connect_timeout: float | None,
        reporter: _Reporter,
        spans: ConsumerSpans,
    ) -> None:
        self._transport = transport
        self._open_frame = open_frame
        self._concurrency = concurrency
        self._max_extension = max_extension
        self._connect_timeout = connect_timeout
        self._reporter = reporter
        self._spans = spans
        self._backoff = Backoff()
        self._inbox = Inbox()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._holdings: Holdings | None = None
        self._link: Link | None = None
        self._workers: list[asyncio.Task[None]] = []
        self._stopping: asyncio.Task[None] | None = None
        self._last_turn = 0.0

    async def run(self, handler: Handler, concurrency: int) -> None:
        if self._stopping is not None:
            return
        if self._link is not None:
            raise RuntimeError(USED)
        self._concurrency = concurrency
        self.start()
        threads = (
            None if _is_async(handler) else ThreadPoolExecutor(concurrency, thread_name_prefix="ackstream-handler")
        )
        call = functools.partial(_call_in_thread, threads, handler) if threads else functools.partial(_call, handler)
        self._workers = [asyncio.create_task(self._work(call)) for _ in range(concurrency)]
        try:
            done, _ = await asyncio.wait(self._workers, return_when=asyncio.FIRST_EXCEPTION)
            for worker in done:
                if not worker.cancelled():
                    worker.result()  # raises what only a bug of this library raises: handlers' exceptions end in nacks
            await self._until_ended()
        except BaseException:
            # In a task of its own: whoever cancels this one again cancels the waiting, and not the leaving.
            await asyncio.shield(self.stop(0, CANCELLED_LEAVE_TIMEOUT))
            raise
        finally:
            if threads:
                threads.shutdown(wait=False, cancel_futures=True)

    async def take(self) -> Delivery | None:
        """Returns the next delivery for the application, or None at the end."""
        if self._workers:
            raise RuntimeError(USED)
        self.start()  # `anext` may come first
        if self._link is None or self._holdings is None:
            return None  # stopped before its first use
        await self._catch_up(self._last_turn)
        if self._inbox.is_empty:
            self._holdings.asks_for_more()
        delivery = await self._next()
        self._last_turn = time.monotonic()
        if delivery is None:
            await self._until_ended()
            return None
        return delivery

    @property
    def outstanding(self) -> int:
        return 0 if self._holdings is None else self._holdings.count

    @property
    def ended(self) -> bool:
        if self._link is not None:
            return self._link.task.done()
        return self._stopping is not None and self._stopping.done()

    def stop(self, grace: float, timeout: float) -> asyncio.Task[None]:
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._leave(grace=grace, timeout=timeout))
            _LEAVING.add(self._stopping)
            self._stopping.add_done_callback(_LEAVING.discard)
        return self._stopping

    def abandon(self) -> None:
        """Nobody has the consumer any more. May be called in any thread."""
        if self._loop is None or self.ended or self._workers:
            return  # never used, or in the hands of `run`
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(self._abandon)

    def start(self) -> None:
        if self._workers:
            raise RuntimeError(USED)
        if self._link is not None or self._stopping is not None:
            return
        self._loop = asyncio.get_running_loop()
        # The link calls its side and the side wakes the link; the side comes first and nothing wakes before a stream is
        # open.
        self._holdings = Holdings(
            self._open_frame,
            target=self._transport.target,
            inbox=self._inbox,
            window=Window(self._concurrency, self._open_frame.open.max_outstanding_messages),
            max_extension=self._max_extension,
            wake=lambda: self._link.wake() if self._link else None,
            reopen=lambda: self._link.reopen() if self._link else None,
            on_event=self._reporter.tell,
            spans=self._spans,
        )
        self._link = Link(
            self._transport,
            self._holdings,
            connect_timeout=self._connect_timeout,
            on_lost=self._reporter.tell_lost,
            backoff=self._backoff,
        )
        self._link.task.add_done_callback(self._close_inbox)

    # Helpers

    def _abandon(self) -> None:
        if not self.ended:
            self.stop(0, LEAVE_TIMEOUT)

    def _close_inbox(self, task: asyncio.Task[None]) -> None:
        self._inbox.close()
        if self._holdings is not None:
            self._holdings.ended()
        if not task.cancelled():
            task.exception()  # raised by `run` or `async for`, if either is still there to hear it

    async def _next(self) -> Delivery | None:
        assert self._holdings is not None, "set by start"
        while (delivery := await self._inbox.take()) is not None:
            if not self._holdings.has_lapsed(delivery):
                self._holdings.hand_over(delivery)
                return delivery
        return None

    async def _catch_up(self, since: float) -> None:
        """Where the application had the event loop for long: what is due is written before it gets more."""
        assert self._link is not None, "set by start"
        if time.monotonic() - since > MAX_TURN:
            await self._link.catch_up(CATCH_UP_TIMEOUT)

    async def _work(self, call: Callable[[Delivery], Awaitable[object]]) -> None:
        assert self._holdings is not None, "set by start"
        while True:
            # What is handled and not acked is handled again after a crash: that is never much.
            await self._holdings.until_written(self._concurrency)
            delivery = await self._next()
            if delivery is None:
                return
            began = time.monotonic()
            await self._handle(delivery, call)
            await self._catch_up(began)

    async def _handle(self, delivery: Delivery, call: Callable[[Delivery], Awaitable[object]]) -> None:
        processing = delivery._processing
        token = processing.enter() if processing is not None else None
        try:
            await call(delivery)
        except Reject:
            logger.debug("handler rejected %r", delivery)
            delivery.nack(drop=True)
        except asyncio.CancelledError as error:
            if processing is not None:
                processing.fail(error)
            delivery.leave()
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
        except (Exception, GeneratorExit) as error:
            logger.exception("handler failed on %r: it is delivered again while retries are left", delivery)
            if processing is not None:
                processing.fail(error)
            delivery.nack()
        else:
            delivery.ack()
        finally:
            if processing is not None and token is not None:
                processing.leave(token)

    async def _until_ended(self) -> None:
        """Waits for the end of the consumer, and raises what ended it."""
        if self._stopping is not None:
            await asyncio.shield(self._stopping)
        if self._link is None:
            return  # stopped before its first use
        await asyncio.wait([self._link.task])
        if not self._link.task.cancelled():
            self._link.task.result()

    async def _leave(self, *, grace: float, timeout: float) -> None:  # noqa: ASYNC109 - a bound for the server
        self._inbox.close()
        if self._link is None or self._holdings is None:
            return
        try:
            async with asyncio.timeout(grace):
                if self._workers:
                    await asyncio.wait(self._workers)
                await self._holdings.none_handed()
        except TimeoutError:
            for worker in self._workers:
                worker.cancel()
            if self._workers:
                await asyncio.wait(self._workers, timeout=STUBBORN_HANDLER_TIMEOUT)
        except asyncio.CancelledError:
            # The event loop ends, and waits for this task: it leaves before that.
            for worker in self._workers:
                worker.cancel()
            await self._link.leave(min(timeout, CANCELLED_LEAVE_TIMEOUT))
            raise
        await self._link.leave(timeout)


_LEAVING: set[asyncio.Task[None]] = set()
"""Tasks that see consumers off: nobody else may hold them."""


def _check_concurrency(concurrency: int) -> int:
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency!r}: it must be 1 or more")
    return concurrency


def _is_async(handler: Handler) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004


async def _call(handler: Handler, delivery: Delivery) -> None:
    await _finish(handler(delivery))


async def _finish(result: object) -> None:
    """Waits for what a handler has begun, where it has not done all of it."""
    if inspect.isawaitable(result):  # for example of a lambda around an `async def` function
        await result
    elif inspect.isgenerator(result) or inspect.isasyncgen(result):
        raise TypeError("the handler made a generator, which handled nothing")


async def _call_in_thread(threads: ThreadPoolExecutor, handler: Handler, delivery: Delivery) -> None:
    call = functools.partial(contextvars.copy_context().run, _without_stop_iteration, handler, delivery)
    result = await asyncio.get_running_loop().run_in_executor(threads, call)
    await _finish(result)


def _without_stop_iteration(handler: Handler, delivery: Delivery) -> object:
    try:
        return handler(delivery)
    except StopIteration as error:  # no future can carry it
        raise RuntimeError("handler raised StopIteration") from error
