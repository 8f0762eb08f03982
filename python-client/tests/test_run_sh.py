"""./run.sh in a terminal of its own, as a person sees it."""

import asyncio
import os
import pty
import shutil
import socket
from pathlib import Path

import pytest

from tests.processes import BINARY, TIMEOUT

RUN = Path(__file__).resolve().parents[2] / "run.sh"

pytestmark = [
    pytest.mark.real_time,
    pytest.mark.skipif(not (BINARY and RUN.exists() and shutil.which("cargo")), reason="needs the whole checkout"),
]

CTRL_C = b"\x03"


async def run_in_terminal(
    *arguments: str, press_ctrl_c_at: bytes | None = None, environment: dict[str, str] | None = None
) -> tuple[int, str]:
    """Runs ./run.sh in a new terminal; returns its exit code and all that the terminal showed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    defaults = {"ACKSTREAM_CLIENT_TARGET": address, "ACKSTREAM_CLIENT_DROP_RATE": "0", "TERM": "xterm", "NO_COLOR": ""}
    whole = os.environ | defaults | (environment or {})
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(RUN, [str(RUN), *arguments, "--listen", address, "--metrics-listen", "off"], whole)  # noqa: S606 - a terminal of its own
    shown = b""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(TIMEOUT * 4):  # it may have to build first
        while True:
            try:
                more = await loop.run_in_executor(None, os.read, terminal, 1 << 16)
            except OSError:
                break  # nobody holds the other end any more
            if not more:
                break
            shown += more
            if press_ctrl_c_at is not None and press_ctrl_c_at in shown:
                press_ctrl_c_at = None
                os.write(terminal, CTRL_C)
        _, status = await loop.run_in_executor(None, os.waitpid, pid, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown.decode()


async def test_one_ctrl_c_ends_both_sides_and_both_say_what_became_of_all() -> None:
    code, shown = await run_in_terminal("1000", "--interval", "50ms", press_ctrl_c_at=b"Received message 5")
    assert code == 0
    assert "Stopping: waiting up to" in shown
    assert "Stopping at once" not in shown, "each side is asked once"
    assert " published = " in shown
    assert " deliveries of " in shown


@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
async def test_both_sides_use_colour_on_a_terminal_that_has_any(environment: dict[str, str], *, coloured: bool) -> None:
    code, shown = await run_in_terminal("1", "--interval", "1ms", environment=environment)
    assert code == 0
    [server] = [line for line in shown.splitlines() if "Sent message 1/1" in line]
    [client] = [line for line in shown.splitlines() if "Sent ACK for message 1" in line]
    assert ["\x1b[" in line for line in (server, client)] == [coloured, coloured]


async def test_a_reader_that_leaves_ends_both_sides() -> None:
    command = f"{RUN} 1000 --interval 10ms --listen 127.0.0.1:0 --metrics-listen off 2>/dev/null | head -3"
    environment = os.environ | {"ACKSTREAM_CLIENT_CONNECT_TIMEOUT": "1s", "ACKSTREAM_CLIENT_TARGET": "127.0.0.1:1"}
    process = await asyncio.create_subprocess_shell(command, env=environment, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(TIMEOUT * 4):
        shown, _ = await process.communicate()
    assert len(shown.splitlines()) == 3
