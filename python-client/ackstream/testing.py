"""A real server for test suites: started on a free port, with the topics that the test wants, and gone at its end.

    import ackstream.testing

    def test_orders() -> None:
        with ackstream.testing.server({"orders": {"billing": {"max_retries": 1}}}) as server:
            ...  # ackstream.connect(server.target)

The binary is the one that ACKSTREAM_BIN names, else `ackstream` on the PATH. The server knows nothing of the machine's
`ackstream.toml`, `ACKSTREAM_*` and `OTEL_*`.
"""

import json
import os
import re
import shutil
import subprocess
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from tempfile import TemporaryDirectory

from ackstream._errors import AckstreamError

__all__ = ["Server", "ServerFailed", "Topics", "server"]

Topics = Mapping[str, Mapping[str, Mapping[str, str | int]]]
"""Topics by name, each with its subscriptions by name, each with the keys of its policy as `ackstream.toml` has them.

A subscription that does not say what becomes of what it gives up (`dead_letter_topic`) discards it.
"""

STARTS_WITHIN = 30.0
"""Seconds: far beyond what a start takes, so that it only ends what hangs."""

KEPT_LINES = 1_000
"""Of what a server says the last so many lines are kept."""


class ServerFailed(AckstreamError):
    """There is no binary, or it did not start; the message has what it said."""


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        target: Where it serves, as `ackstream.connect` takes it.
        metrics_url: Where it shows its metrics.
        lines: What it has said, the last 1,000 lines, oldest first.
    """

    target: str
    metrics_url: str
    lines: deque[str]


@contextmanager
def server(topics: Topics | None = None, *, binary: str | None = None, **settings: str | int) -> Iterator[Server]:
    """Starts a server and kills it at the end: what it holds is gone with it.

    Args:
        topics: Its topics; `None` = `demo` with its subscription `demo`.
        binary: The program, instead of ACKSTREAM_BIN and the PATH.
        settings: Keys of the top level of `ackstream.toml`, such as `ack_deadline="200ms"`.

    Raises:
        ServerFailed: There is no binary, or it refuses the topics or the settings.
    """
    program = binary or os.environ.get("ACKSTREAM_BIN") or shutil.which("ackstream")
    if not program:
        raise ServerFailed("there is no ackstream: set ACKSTREAM_BIN to the binary, or put it on the PATH")
    foreign = ("ACKSTREAM_", "OTEL_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    with TemporaryDirectory(prefix="ackstream-") as folder:
        configuration = Path(folder, "ackstream.toml")
        configuration.write_text(_toml(topics or {}, settings), encoding="utf-8")
        addresses = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
        try:
            process = subprocess.Popen(  # noqa: S603 - the program that the caller names
                [Path(program).resolve(), "serve", "--config", configuration, *addresses],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
            )
        except OSError as error:
            raise ServerFailed(f"{program} cannot be run: {error}") from error
        with process:
            output = _Output(process)
            try:
                yield Server(
                    target=output.find(r"Starting gRPC server on (\S+)$"),
                    metrics_url=output.find(r"Serving metrics on (\S+)$"),
                    lines=output.lines,
                )
            finally:
                process.kill()
                output.reader.join()


class _Output:
    """Reads what a server says, so that it never waits for a reader."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._first_lines: Queue[str | None] = Queue()
        self.reader = threading.Thread(target=self._read, args=(process,), daemon=True, name="ackstream server")
        self.reader.start()

    def find(self, pattern: str) -> str:
        """Returns what the first group of `pattern` finds in the next line that it matches."""
        try:
            while (line := self._first_lines.get(timeout=STARTS_WITHIN)) is not None:
                if found := re.search(pattern, line):
                    return found[1]
        except Empty:
            reason = f"the server says nothing within {STARTS_WITHIN:.0f} s"
        else:
            reason = "the server does not start"
        raise ServerFailed("\n".join([reason, *self.lines]))

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        first = True
        for line in process.stdout:
            self.lines.append(line.rstrip("\n"))
            if first:
                self._first_lines.put(self.lines[-1])
                first = "Serving metrics" not in line
        self._first_lines.put(None)


def _toml(topics: Topics, settings: Mapping[str, str | int]) -> str:
    lines = [_pair(key, value) for key, value in settings.items()]
    for topic, subscriptions in topics.items():
        lines.append(f"[topics.{_text(topic)}.subscriptions]")  # one without any is the server's to refuse
        for subscription, policy in subscriptions.items():
            lines.append(f"[topics.{_text(topic)}.subscriptions.{_text(subscription)}]")
            lines += [_pair(key, value) for key, value in ({"dead_letter_topic": "discard"} | dict(policy)).items()]
    return "\n".join(lines)


def _pair(key: str, value: str | int) -> str:
    return f"{_text(key)} = {_text(value) if isinstance(value, str) else json.dumps(value)}"


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # a string of JSON is one of TOML
