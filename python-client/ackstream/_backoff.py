"""How long to wait before the next attempt."""

import random

FIRST_CAP = 0.1
"""Seconds: the upper bound of the first wait. It doubles with each attempt."""

LAST_CAP = 5.0
"""Seconds: the upper bound of every wait. A restarted server is found within that time."""


class Backoff:
    """Exponential backoff with full jitter: each wait is drawn evenly from 0 to a bound that doubles.

    Full jitter spreads the clients of a restarted server best ("Exponential Backoff And Jitter", AWS Architecture Blog,
    2015).
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
        self._cap = FIRST_CAP

    def next(self) -> float:
        """Returns the seconds to wait before the next attempt."""
        wait = self._rng.uniform(0.0, self._cap)
        self._cap = min(self._cap * 2, LAST_CAP)
        return wait

    def reset(self) -> None:
        """Starts over: the attempt succeeded."""
        self._cap = FIRST_CAP
