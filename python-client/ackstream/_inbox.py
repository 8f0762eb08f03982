"""Deliveries on their way from the stream to whoever handles them."""

import asyncio
from collections import deque
from collections.abc import Iterable

from ackstream._delivery import Delivery


class Inbox:
    """A queue with any number of takers, that can be closed. The subscription's flow control bounds it.

    `asyncio.Queue` cannot be closed before Python 3.13, and wakes takers one call at a time.
    """

    def __init__(self) -> None:
        self._queue: deque[Delivery] = deque()
        self._takers: deque[asyncio.Future[None]] = deque()
        self._closed = False

    def put(self, deliveries: Iterable[Delivery]) -> None:
        """Adds deliveries, in their order."""
        self._queue.extend(deliveries)
        self._wake(len(self._queue))

    def clear(self) -> None:
        """Forgets what nobody has taken."""
        self._queue.clear()

    def close(self) -> None:
        """Gives out nothing from now on; every taker gets None."""
        self._closed = True
        self._queue.clear()
        self._wake(len(self._takers))

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be taken."""
        return not self._queue

    async def take(self) -> Delivery | None:
        """Returns the next delivery that is still to be handled, or None once the inbox is closed."""
        while not self._closed:
            while self._queue:
                delivery = self._queue.popleft()
                if not (delivery._answered or delivery._lapsed):
                    return delivery
            taker = asyncio.get_running_loop().create_future()
            self._takers.append(taker)
            try:
                await taker
            except asyncio.CancelledError:
                if taker.cancelled():
                    self._takers.remove(taker)
                else:
                    self._wake(1)  # it was woken and goes away: the next one takes its turn
                raise
        return None

    def _wake(self, count: int) -> None:
        for _ in range(min(count, len(self._takers))):
            self._takers.popleft().set_result(None)
