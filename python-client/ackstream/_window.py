"""How many deliveries a consumer asks for: as many as it can begin soon, and no more."""

FILLED_FOR = 10.0
"""Seconds: what waits in the queue is begun within this time, as far as the handlers' pace tells."""

WEIGHT = 0.2
"""Of the latest handling among all before it."""

MIN_SAMPLES = 3
"""Handlings before their pace is believed."""

GROWTH = 4
"""By how much the window grows where the application holds all of it."""


class Window:
    """How many deliveries may be outstanding: at first twice as many as are handled at the same time."""

    def __init__(self, concurrency: int, most: int) -> None:
        self.concurrency = concurrency
        self._most = most
        self.size = min(2 * concurrency, most)
        self._pace = 0.0
        self._samples = 0
        self._was_full = False

    def holds(self, count: int) -> None:
        """So many deliveries are held."""
        self._was_full = self._was_full or count >= self.size

    def handled(self, seconds: float) -> None:
        """A delivery was answered so long after the application got it."""
        self._samples += 1
        self._pace = seconds if self._samples == 1 else self._pace + WEIGHT * (seconds - self._pace)

    def grow(self) -> bool:
        """Whether the window has grown: it was full, and twice as many would be begun in time."""
        if not self._was_full or self._samples < MIN_SAMPLES or self.size >= self._most:
            return False
        soon = self.concurrency * FILLED_FOR / max(self._pace, 1e-6)
        if soon < 2 * self.size:
            return False
        self._set(min(int(min(soon, self._most)), self._most))
        return True

    def grow_as_all_is_begun(self, handed: int) -> bool:
        """Whether the window has grown: the application has begun all of it and asks for more."""
        self.concurrency = max(self.concurrency, handed)
        if handed < self.size or self.size >= self._most:
            return False
        self._set(min(self.size * GROWTH, self._most))
        return True

    def grow_to_the_most(self) -> bool:
        """Whether the window has grown to its bound."""
        grown = self.size < self._most
        self._set(self._most)
        return grown

    def _set(self, size: int) -> None:
        self.size = size
        self._was_full = False
