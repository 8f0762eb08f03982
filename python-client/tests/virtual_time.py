"""An event loop whose clock jumps to the next timer when there is nothing else to do."""

import asyncio
import selectors


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Runs timers in their order without waiting. A test that waits for what can never happen fails at once."""

    def __init__(self) -> None:
        self._selector_with_clock = _JumpingSelector()
        super().__init__(self._selector_with_clock)

    def time(self) -> float:
        return self._selector_with_clock.now

    def block(self, seconds: float) -> None:
        """Time passes, and nobody gets a turn meanwhile."""
        self._selector_with_clock.now += seconds


class _JumpingSelector(selectors.SelectSelector):
    now = 1_000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise AssertionError("everything waits and no timer is left: nothing will ever happen")
        self.now += timeout
        return []


async def everything_that_needs_no_time() -> None:
    """Returns when all tasks wait for a timer or for the test."""
    await asyncio.sleep(1e-6)
