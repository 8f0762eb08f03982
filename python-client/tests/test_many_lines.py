"""Many lines through `ackstream publish`, consumed by client.py: none is missing, also where streams break."""

import asyncio
import os
import re
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from subprocess import PIPE, Popen, run

import pytest

from ackstream.testing import Server, server

from .processes import BINARY, CLIENT
from .proxy import Proxy, proxied

pytestmark = [pytest.mark.real_time, pytest.mark.skipif(not BINARY, reason="ACKSTREAM_BIN names no binary")]

LINES = int(os.environ.get("ACKSTREAM_TEST_LINES", "0"))
"""How many lines, instead of a million and, where streams break, a tenth of that: those take some minutes."""

PATIENCE = 600.0
"""Seconds for all lines: far beyond what they take, so that it only ends what hangs."""


@contextmanager
def consuming(target: str, said: Path) -> Iterator[Popen[bytes]]:
    """client.py with a nack rate of 1 %, as long as the block runs; what it says goes into a file."""
    options = ["--drop-rate", "0", "--nack-rate", "0.01", "--seed", "7", "--log-lines-per-second", "100000000"]
    with said.open("w") as file:
        process = Popen([sys.executable, CLIENT, "--target", target, *options], stdout=file, stderr=file)
        try:
            yield process
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()


@asynccontextmanager
async def broken_every_second(target: str) -> AsyncIterator[tuple[str, list[int]]]:
    """A proxy that resets all connections every second; with its address, and how many connections each reset met."""
    resets: list[int] = []

    async def break_off(proxy: Proxy) -> None:
        while True:
            await asyncio.sleep(1)
            resets.append(proxy.reset())

    async with proxied(target) as proxy:
        breaker = asyncio.create_task(break_off(proxy))
        yield proxy.target, resets
        breaker.cancel()


def publish(target: str, lines: Path) -> str:
    """Publishes the file; the summary."""
    assert BINARY
    done = run([BINARY, "publish", lines, "--target", target], stderr=PIPE, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()[-1]


def sums(running: Server) -> dict[str, int]:
    """The counts of the server's one subscription, summed up by name."""
    with urllib.request.urlopen(running.metrics_url) as page:  # noqa: S310 - loopback
        text = page.read().decode()
    found: dict[str, int] = {}
    for name, labels, value in re.findall(r"^ackstream_(\w+)\{(.*)\} (\d+)$", text, re.MULTILINE):
        found[name] = found.get(name, 0) + int(value)
        if 'state="outstanding"' in labels:
            found["outstanding"] = int(value)
    return found


async def all_settled(running: Server, client: Popen[bytes]) -> dict[str, int]:
    """Waits until nothing is in the backlog; both laws hold all the way."""
    async with asyncio.timeout(PATIENCE):
        while True:
            assert client.poll() is None, "the client has ended"
            counts = await asyncio.to_thread(sums, running)
            settled = counts["messages_acked_total"] + counts["messages_dropped_total"]
            assert counts["messages_published_total"] == settled + counts["messages"]
            assert counts["messages_sent_total"] == counts["deliveries_ended_total"] + counts["outstanding"]
            if counts["messages"] == 0:
                return counts
            await asyncio.sleep(0.2)


def missing(lines: Path, said: Path) -> set[str]:
    """Which lines the client never received."""
    left = set(lines.read_text().splitlines())
    received = re.compile(r"^\[PYTHON CLIENT\] Received message \d+(?: again \(attempt \d+\))?: (.*)$")
    with said.open() as text:
        for line in text:
            if found := received.match(line):
                left.discard(found[1])
    return left


def numbered(count: int, folder: Path) -> Path:
    """A file of lines that differ."""
    file = folder / "lines"
    file.write_text("".join(f"line {number}\n" for number in range(count)))
    return file


async def test_no_line_is_missing(tmp_path: Path) -> None:
    count = LINES or 1_000_000
    lines, said = numbered(count, tmp_path), tmp_path / "said"
    with server(log_lines_per_second=0) as running, consuming(running.target, said) as client:
        summary = await asyncio.to_thread(publish, running.target, lines)
        counts = await all_settled(running, client)
    assert summary == f"ackstream: {count:,} published to topic demo"
    assert (counts["messages_acked_total"], counts["messages_dropped_total"]) == (count, 0)
    assert counts["messages_retried_total"] >= count // 200
    assert not missing(lines, said)


async def test_no_line_is_missing_where_every_stream_is_reset_every_second(tmp_path: Path) -> None:
    count = LINES or 100_000
    lines, said = numbered(count, tmp_path), tmp_path / "said"
    # Whatever a broken stream costs in retries, no message is dropped for it here.
    with server(log_lines_per_second=0, max_retries="unlimited") as running:
        async with broken_every_second(running.target) as (target, resets):
            with consuming(target, said) as client:
                summary = await asyncio.to_thread(publish, target, lines)
                counts = await all_settled(running, client)
    assert sum(resets) > 0
    assert counts["messages_acked_total"] == counts["messages_published_total"] >= count
    assert summary.startswith(f"ackstream: {count:,} published to topic demo")
    assert not missing(lines, said)
