"""Receives deliveries from one subscription and lets the application answer them."""

import asyncio
import contextvars
import functools
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeAlias

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

__all__ = ["Consumer", "Handler"]

logger = logging.getLogger("ackstream")

Handler: TypeAlias = Callable[[Delivery], Awaitable[object] | object]
"""What `Consumer.run` calls with each delivery: an `async def` function, or a plain `def` one, which runs in a
thread."""

CANCELLED_LEAVE_TIMEOUT = 1.0
"""Seconds that a cancelled consumer takes to leave cleanly. A broken stream would cost every message that it holds one
retry."""

MAX_TURN = 0.01
"""Seconds after which `async for` gives the event loop a turn."""

STUBBORN_HANDLER_TIMEOUT = 1.0
"""Seconds that a cancelled handler has to end before the consumer leaves without it."""

USED = "a consumer is used once, by `run` or by `async for`: call `client.consume` again for another"


class Consumer:
    """One consumer of a subscription, made by `Client.consume`.

    It is used once: by `run`, or by `async for`, which may be left and entered again.

        await consumer.run(handle, concurrency=16)          async for delivery in consumer:
                                                                async with delivery:
                                                                    ...

    It connects on first use and again whenever the stream breaks, and ends when the server ends the stream with OK, or
    after `stop`. Every delivery that it holds, queued or handed to the application, is extended when half its deadline
    has passed, until it is answered or `max_extension` old. A message may come more than once, and after a retry out of
    order; it may be handled twice at the same time when its deadline could not be extended.
    """

    def __init__(
        self,
        transport: Transport,
        open_frame: pb.Open,
        *,
        max_extension: float,
        connect_timeout: float | None,
        on_event: OnEvent | None,
        spans: ConsumerSpans,
    ) -> None:
        if not 0 <= max_extension <= MAX_EXTENSION:
            raise ValueError(f"max_extension is {max_extension!r}: it must be from 0 to {MAX_EXTENSION:g} seconds")
        self._transport = transport
        self._open_frame = pb.StreamMessage(open=open_frame)
        self._max_extension = max_extension
        self._connect_timeout = connect_timeout
        self._listener = on_event
        self._spans = spans
        self._backoff = Backoff()
        self._inbox = Inbox()
        self._holdings: Holdings | None = None
        self._link: Link | None = None
        self._workers: list[asyncio.Task[None]] = []
        self._stopping: asyncio.Task[None] | None = None
        self._last_turn = 0.0

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
            StreamRefused: The server does not want this consumer: it does not know the subscription, for example.
            ServerUnreachable: No server could be had for `connect_timeout` seconds.
        """
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency!r}: it must be 1 or more")
        if self._stopping is not None:
            return
        if self._link is not None:
            raise RuntimeError(USED)
        self._start()
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
            await self._ended()
        except BaseException:
            await self._leave(grace=0, timeout=CANCELLED_LEAVE_TIMEOUT)
            raise
        finally:
            if threads:
                threads.shutdown(wait=False, cancel_futures=True)

    def __aiter__(self) -> Self:
        if self._workers:
            raise RuntimeError(USED)
        if self._link is None and self._stopping is None:
            self._start()
        return self

    async def __anext__(self) -> Delivery:
        """Returns the next delivery, which the application answers.

        Raises:
            StopAsyncIteration: The server ended the stream with OK, or `stop` was called.
            StreamRefused: As in `run`.
            ServerUnreachable: As in `run`.
        """
        self.__aiter__()  # `anext` may come first
        # Taking from a queue with something in it never waits. The event loop gets its turn all the same, so that
        # answers and extensions leave while an application without a single `await` works through a long queue.
        if time.monotonic() - self._last_turn > MAX_TURN:
            await asyncio.sleep(0)
            self._last_turn = time.monotonic()
        delivery = await self._inbox.take()
        if delivery is None:
            await self._ended()
            raise StopAsyncIteration
        assert self._holdings is not None, "set by _start"
        self._holdings.hand_over(delivery)
        return delivery

    @property
    def outstanding(self) -> int:
        """How many deliveries the consumer holds, queued or handed out. May be asked from any thread."""
        return 0 if self._holdings is None else self._holdings.count

    @property
    def ended(self) -> bool:
        """Whether the consumer has left, or was never used and stopped."""
        if self._link is not None:
            return self._link.task.done()
        return self._stopping is not None and self._stopping.done()

    def stop(self, grace: float = 10.0) -> asyncio.Future[None]:
        """Takes nothing new, lets handlers finish and their answers leave, and then leaves the subscription.

        It returns at once, and may be called from a handler or a signal handler of the event loop. What it returns can
        be awaited: it is done when the consumer has left (a handler that awaits it waits for itself). What was
        delivered and not handed to a handler goes back to the subscription, at no cost in retries; so does what has no
        answer when the grace is over.

        Args:
            grace: Seconds for handlers to finish; the ones left are cancelled then. A second call changes nothing.
        """
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._leave(grace=grace, timeout=LEAVE_TIMEOUT))
        return asyncio.shield(self._stopping)

    # Helpers

    def _start(self) -> None:
        # The link calls its side and the side wakes the link; the side comes first and nothing wakes before a stream is
        # open.
        self._holdings = Holdings(
            self._open_frame,
            target=self._transport.target,
            inbox=self._inbox,
            max_extension=self._max_extension,
            wake=lambda: self._link.wake() if self._link else None,
            on_event=self._tell,
            spans=self._spans,
        )
        self._link = Link(
            self._transport,
            self._holdings,
            connect_timeout=self._connect_timeout,
            on_lost=self._tell_lost,
            backoff=self._backoff,
        )
        self._link.task.add_done_callback(self._close_inbox)

    def _close_inbox(self, task: asyncio.Task[None]) -> None:
        self._inbox.close()
        if self._holdings is not None:
            self._holdings.ended()
        if not task.cancelled():
            task.exception()  # raised by `run` or `async for`, if either is still there to hear it

    async def _work(self, call: Callable[[Delivery], Awaitable[object]]) -> None:
        assert self._holdings is not None, "set by _start"
        while (delivery := await self._inbox.take()) is not None:
            self._holdings.hand_over(delivery)
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
            except Exception as error:
                logger.exception("handler failed on %r: it is delivered again while retries are left", delivery)
                if processing is not None:
                    processing.fail(error)
                delivery.nack()
            else:
                delivery.ack()
            finally:
                if processing is not None and token is not None:
                    processing.leave(token)

    async def _ended(self) -> None:
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
        await self._link.leave(timeout)

    def _tell_lost(self, broken: StreamBroken, retry_in: float) -> None:
        self._tell(StreamLost(self._transport.target, str(broken), retry_in))

    def _tell(self, event: StreamEvent) -> None:
        logger.debug("%s", event)
        if self._listener is None:
            return
        try:
            self._listener(event)
        except Exception:
            logger.exception("on_event failed on %s", event)


def _is_async(handler: Handler) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004


async def _call(handler: Handler, delivery: Delivery) -> None:
    result = handler(delivery)
    if inspect.isawaitable(result):
        await result


async def _call_in_thread(threads: ThreadPoolExecutor, handler: Handler, delivery: Delivery) -> None:
    call = functools.partial(contextvars.copy_context().run, handler, delivery)
    result = await asyncio.get_running_loop().run_in_executor(threads, call)
    if inspect.isawaitable(result):  # for example a lambda around an `async def` function
        await result
