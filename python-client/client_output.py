"""What client.py prints: lines for people, in colour on a terminal, or JSON; not too many about single messages."""

import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

PREFIX = "[PYTHON CLIENT]"

MAX_SHOWN = 200
"""Characters of a payload that are printed."""

GREEN, RED, YELLOW, PLAIN = "\033[32m", "\033[31m", "\033[33m", ""

LEVELS = {GREEN: "INFO", RED: "WARN", YELLOW: "WARN", PLAIN: "INFO"}
"""What a colour says in JSON, where the server's lines have a level, too."""


class Output:
    """Lines on stdout; none when nobody reads them any more or there is no room for them.

    Attributes:
        is_closed: Whether that has happened. A process without a stdout prints nothing and goes on.
    """

    def __init__(self, lines_per_second: int = 1_000, summary_interval: float = 1.0, *, as_json: bool = False) -> None:
        """Makes an output.

        Args:
            as_json: Each line is an object, with the keys of the server's lines.
            lines_per_second: Lines about single messages, at most; 0 = none.
            summary_interval: Seconds after which it says how many of those were left out.
        """
        self._on_closed: Callable[[], object] = lambda: None
        self.is_closed = False
        if sys.stdout is None:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - as long as the process
        self._colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._as_json = as_json
        self._lines_per_second = lines_per_second
        self._summary_interval = summary_interval
        self._second = 0
        self._written = 0
        self._left_out = 0
        self._summary: asyncio.TimerHandle | None = None

    def when_closed(self, call: Callable[[], object]) -> None:
        """Has this called once nobody reads the lines any more, or at once where that has happened."""
        self._on_closed = call
        if self.is_closed:
            call()

    def say_of_message(self, line: str, colour: str = PLAIN, **fields: str | int) -> None:
        """Prints one line about a single message, unless there were too many. Called where an event loop runs.

        `fields` say in JSON which message it is.
        """
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._written = second, 0
        if self._written < self._lines_per_second:
            self._written += 1
            self.say(line, colour, **fields)
            return
        self._left_out += 1
        if self._summary is None and self._lines_per_second:
            loop = asyncio.get_running_loop()
            self._summary = loop.call_later(self._summary_interval, self.say_what_was_left_out)

    def say_what_was_left_out(self) -> None:
        """Says how many lines were left out since it was said the last time."""
        if self._summary is not None:
            self._summary.cancel()
            left_out, self._summary, self._left_out = self._left_out, None, 0
            self.say(f"... and {left_out} more lines about messages (--log-lines-per-second {self._lines_per_second})")

    def say(self, line: str, colour: str = PLAIN, **fields: str | int) -> None:
        """Prints one line, at once."""
        if self._as_json:
            line = as_json(LEVELS[colour], line, **fields)
        elif self._colour and colour:
            line = f"{PREFIX} {colour}{line}\033[0m"
        else:
            line = f"{PREFIX} {line}"
        try:
            # ASCII where the terminal knows no more; a failing print would fail the message.
            encoding = sys.stdout.encoding or "ascii"
            line = line.encode(encoding, "backslashreplace").decode(encoding)
            # One write a line, also where stdout is not buffered: another process may write to the same terminal.
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        except OSError as error:
            # The interpreter flushes stdout when it ends: let it be into nothing.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if not isinstance(error, BrokenPipeError):
                with contextlib.suppress(OSError, AttributeError):  # stderr may be gone, too
                    sys.stderr.write(f"client.py: cannot print: {error.strerror}; leaving\n")
            self.is_closed = True
            self._on_closed()


def as_json(level: str, line: str, **fields: str | int) -> str:
    """Returns a line as the server's JSON has it."""
    timestamp = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return json.dumps({"timestamp": timestamp, "level": level, "message": line, **fields})


class JsonFormatter(logging.Formatter):
    """What libraries log, in the same form."""

    def format(self, record: logging.LogRecord) -> str:
        text = logging.Formatter("%(message)s").format(record)
        return as_json("WARN" if record.levelno <= logging.WARNING else "ERROR", text)


def shown(payload: bytes) -> str:
    """Returns a payload as one line of text: cut, and without anything that a terminal would act on."""
    # A character of UTF-8 has at most 4 bytes.
    text = payload[: MAX_SHOWN * 4].decode("utf-8", "backslashreplace")
    return printable(text[:MAX_SHOWN]) + (f"... ({len(payload):,} bytes)" if len(text) > MAX_SHOWN else "")


def printable(text: str) -> str:
    """Returns the text with control characters, line ends and the like written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
