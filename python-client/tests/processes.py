"""The server's binary and the demo client as child processes whose output is read line by line."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

BINARY = os.environ.get("ACKSTREAM_BIN", "")
CLIENT = Path(__file__).resolve().parent.parent / "client.py"

TIMEOUT = 60.0
"""Seconds for anything that a test waits for: far beyond what it takes, so that it only ends what hangs."""


class Process:
    """A running program."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.lines: list[str] = []
        self._process = process
        self._changed = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    async def line(self, pattern: str, count: int = 1) -> re.Match[str]:
        """Waits for the `count`-th line in which `pattern` is found."""
        async with asyncio.timeout(TIMEOUT), self._changed:
            while True:
                found = [match for line in self.lines if (match := re.search(pattern, line))]
                if len(found) >= count:
                    return found[count - 1]
                assert not self._reader.done(), f"ended before it said {pattern!r}:\n" + "\n".join(self.lines)
                await self._changed.wait()

    async def exit_code(self) -> int:
        async with asyncio.timeout(TIMEOUT):
            await self._reader
            return await self._process.wait()

    async def kill(self) -> None:
        """As `kill -9` does."""
        if self._process.returncode is None:
            self._process.kill()
        await self.exit_code()

    def terminate(self) -> None:
        self._process.terminate()

    async def _read(self) -> None:
        assert self._process.stdout
        async for line in self._process.stdout:
            async with self._changed:
                self.lines.append(line.decode().rstrip("\n"))
                self._changed.notify_all()
        async with self._changed:
            self._changed.notify_all()


async def until(condition: Callable[[], bool]) -> None:
    """Polls for what is spread over several processes."""
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(*command: str, **environment: str) -> AsyncIterator[Process]:
    """Starts a program with nothing of ours in its environment, and kills it at the end."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ACKSTREAM_", "OTEL_"))}
    process = Process(
        await asyncio.create_subprocess_exec(
            *command,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=kept | environment,
            limit=1 << 24,
        )
    )
    try:
        yield process
    finally:
        await process.kill()


SHORT = {
    "ACKSTREAM_ACK_DEADLINE": "2s",
    "ACKSTREAM_MAX_RETRIES": "3",
    "ACKSTREAM_MIN_BACKOFF": "0s",
    "ACKSTREAM_MAX_BACKOFF": "0s",
}
"""What most tests are about: a short story. Flags go before it."""


@asynccontextmanager
async def server(*arguments: str, listen: str = "127.0.0.1:0") -> AsyncIterator[tuple[Process, str]]:
    """Starts the binary; gives it with its address."""
    addresses = ("--listen", listen, "--metrics-listen", "127.0.0.1:0")
    policy = {} if "--config" in arguments else SHORT
    async with running(BINARY, *arguments, *addresses, **policy) as process:
        address = await process.line(r"^\[RUST SERVER\] Starting gRPC server on (\S+)$")
        yield process, address[1]


@asynccontextmanager
async def demo_client(target: str, *arguments: str) -> AsyncIterator[Process]:
    """Starts client.py."""
    async with running(sys.executable, str(CLIENT), "--target", target, *arguments) as process:
        yield process
