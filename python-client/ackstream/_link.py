"""Keeps one stream open: opens it, reads and writes, and opens the next one when it breaks.

What is said on the stream is the business of a `Side`, which does no I/O: the consumer's (`_holdings`) or the
publisher's (`_publications`).

    open ──> open frame sent ──> opened ──> frames both ways ──> OK: `run` returns
     ^                                          │
     └── backoff with full jitter <── broken ───┴── an error of the client: `run` raises StreamRefused
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol

import grpc

from ackstream._backoff import LAST_CAP, Backoff
from ackstream._errors import ServerUnreachable, StreamRefused
from ackstream._proto import ackstream_pb2 as pb
from ackstream._transport import Stream, StreamBroken, Transport

OPEN_TIMEOUT = 10.0
"""Seconds that one attempt may take, from the first packet to `opened`. The server itself waits 5 s for `open`."""

LEAVE_TIMEOUT = 5.0
"""Seconds that the server has, after a half-close, to end the stream. It needs one round trip."""

CLIENT_ERRORS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
"""Statuses after which a retry does not help (the wire contract lists them). After every other one but OK the link
reconnects."""


class Side(Protocol):
    """One end of a conversation, without I/O. `now` is the event loop's time in seconds."""

    def open_frame(self) -> pb.StreamMessage:
        """Returns the first frame of a stream."""

    def opened(self, opened: pb.Opened) -> None:
        """Takes the server's answer: a stream is open."""

    def received(self, frame: pb.StreamMessage, now: float) -> None:
        """Takes one frame of the open stream."""

    def frames(self, now: float) -> list[pb.StreamMessage]:
        """Returns what to write. Called again only when everything that it returned before has been written."""

    def written(self, now: float) -> None:
        """Learns that everything that `frames` returned has been written."""

    def needs_another_stream(self) -> bool:
        """Whether the stream that has just opened should be left for one that asks for more."""

    def due(self) -> float | None:
        """Returns when `frames` must be called without being woken."""

    def lost(self) -> None:
        """Learns that the open stream broke. What was returned by the last `frames` may not have been written."""


class Link:
    """A stream that is opened again when it breaks, until the server ends it with OK, refuses it, or cannot be had."""

    def __init__(
        self,
        transport: Transport,
        side: Side,
        *,
        connect_timeout: float | None,
        on_lost: Callable[[StreamBroken, float], None],
        backoff: Backoff | None = None,
    ) -> None:
        self._transport = transport
        self._side = side
        self._connect_timeout = connect_timeout
        self._on_lost = on_lost
        self._backoff = backoff or Backoff()
        self._loop = asyncio.get_running_loop()
        self._work = asyncio.Event()
        self._open = False
        self._finishing = False
        self._reopening = False
        self._left_for_another = False
        # Set while the writer has nothing to do.
        self._idle = asyncio.Event()
        self.task = self._loop.create_task(self._run())

    def wake(self) -> None:
        """Says that the side has frames to write."""
        self._idle.clear()
        self._work.set()

    def reopen(self) -> None:
        """Leaves the stream for another one with another first frame. What is to be written goes first."""
        self._reopening = True
        self.wake()

    async def catch_up(self, timeout: float) -> None:  # noqa: ASYNC109 - a bound for the server
        """Lets all that is due be written, where the event loop had no turn for a while."""
        if not self._open:
            await asyncio.sleep(0)
            return
        self.wake()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._idle.wait()

    async def leave(self, timeout: float = LEAVE_TIMEOUT) -> None:  # noqa: ASYNC109 - a bound for the server
        """Writes what is left, half-closes, and waits at most `timeout` seconds for the server to end the stream."""
        self._finishing = True
        self.wake()
        if self._open:
            await asyncio.wait([self.task], timeout=timeout)
        if not self.task.done():
            self.task.cancel()
            await asyncio.wait([self.task])

    async def _run(self) -> None:
        had_server_at = self._loop.time()
        while True:
            opened_at, broken = await self._live_through_a_stream()
            if broken is None and self._left_for_another:
                self._left_for_another = False
                continue
            if broken is None:
                return
            if broken.code in CLIENT_ERRORS:
                raise StreamRefused(broken.code, broken.sentence)
            now = self._loop.time()
            if opened_at is not None:
                self._side.lost()
                had_server_at = now
                if self._reopening and not self._finishing:
                    self._reopening = False
                    continue
                # A server that accepts streams and breaks them at once is not hammered.
                if now - opened_at >= LAST_CAP:
                    self._backoff.reset()
            if self._finishing:
                return
            await self._wait_for_a_server(broken, had_server_at, now)

    async def _live_through_a_stream(self) -> tuple[float | None, StreamBroken | None]:
        """Returns when the stream has opened, if it has, and what broke it; None where the server ended it with OK."""
        opened_at: float | None = None
        try:
            stream = await self._transport.open()
            try:
                await self._shake_hands(stream)
                opened_at = self._loop.time()
                self._left_for_another = self._side.needs_another_stream()
                if self._left_for_another:
                    await self._leave_at_once(stream)
                else:
                    await self._converse(stream)
            finally:
                await stream.close()
        except StreamBroken as error:
            self._left_for_another = False
            return opened_at, error
        return opened_at, None

    async def _wait_for_a_server(self, broken: StreamBroken, had_server_at: float, now: float) -> None:
        wait = self._backoff.next()
        if self._connect_timeout is not None:
            left = had_server_at + self._connect_timeout - now
            if left <= 0:
                raise ServerUnreachable(
                    f"gave up on {self._transport.target} after {self._connect_timeout:g} s; "
                    f"the last attempt ended with {broken}"
                )
            wait = min(wait, left)
        self._on_lost(broken, wait)
        await asyncio.sleep(wait)

    async def _leave_at_once(self, stream: Stream) -> None:
        """Leaves a stream on which nothing was said."""
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                await stream.half_close()
                while await stream.read() is not None:
                    pass  # a delivery that crosses the half-close is released
        except TimeoutError:
            raise StreamBroken(grpc.StatusCode.UNAVAILABLE, f"no end within {OPEN_TIMEOUT:g} s") from None

    async def _shake_hands(self, stream: Stream) -> None:
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                await stream.write(self._side.open_frame())
                frame = await stream.read()
        except TimeoutError:
            raise StreamBroken(grpc.StatusCode.UNAVAILABLE, f"no answer within {OPEN_TIMEOUT:g} s") from None
        if frame is None:
            raise StreamBroken(grpc.StatusCode.UNAVAILABLE, "the server ended the stream before it answered")
        if not frame.HasField("opened"):
            raise StreamRefused(
                grpc.StatusCode.UNKNOWN, "the first frame of the server was not `opened`: it is no ackstream server"
            )
        self._side.opened(frame.opened)

    async def _converse(self, stream: Stream) -> None:
        """Returns when the server has ended the stream with OK."""
        self._open = True
        writer = self._loop.create_task(self._write(stream))
        try:
            while (frame := await stream.read()) is not None:
                self._side.received(frame, self._loop.time())
        finally:
            self._open = False
            writer.cancel()
            [failure] = await asyncio.gather(writer, return_exceptions=True)
            if isinstance(failure, Exception):
                raise failure

    async def _write(self, stream: Stream) -> None:
        try:
            while True:
                self._work.clear()
                for frame in self._side.frames(self._loop.time()):
                    await stream.write(frame)
                self._side.written(self._loop.time())
                if self._work.is_set():
                    continue
                if self._reopening and not self._finishing:
                    await stream.close()
                    return
                if self._finishing:
                    await stream.half_close()
                    return
                due = self._side.due()
                timer = self._loop.call_at(due, self._work.set) if due is not None else None
                self._idle.set()
                try:
                    await self._work.wait()
                finally:
                    if timer is not None:
                        timer.cancel()
        except StreamBroken:
            return  # the reader learns of it too, with the status
        except Exception:
            await stream.close()  # ends the reader; the failure is raised where the reader ends
            raise
