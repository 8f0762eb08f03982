"""A TCP proxy in front of a server, which breaks connections when it is told to."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: a close is a reset, and what is under way is lost."""


class Proxy:
    """A running proxy.

    Attributes:
        target: Its address, as a client's target.
    """

    def __init__(self, server: str) -> None:
        self.target = ""
        self._host, self._port = server.rsplit(":", 1)
        self._writers: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[None]] = set()

    def reset(self) -> int:
        """Resets all connections; returns how many there were."""
        for writer in self._writers:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()
        return len(self._writers) // 2

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection to its end."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        writers = {writer}
        try:
            with contextlib.suppress(OSError):
                upstream_reader, upstream_writer = await asyncio.open_connection(self._host, self._port)
                writers.add(upstream_writer)
                self._writers |= writers
                await asyncio.gather(pump(reader, upstream_writer), pump(upstream_reader, writer))
        finally:
            self._writers -= writers
            for each in writers:
                each.transport.abort()
            await asyncio.gather(*(each.wait_closed() for each in writers), return_exceptions=True)
            self._connections.discard(task)

    async def end(self) -> None:
        """Ends all connections."""
        self.reset()
        if self._connections:
            await asyncio.wait(self._connections)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Passes on what is read until its end."""
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


@asynccontextmanager
async def proxied(server: str) -> AsyncIterator[Proxy]:
    """Runs a proxy in front of this server."""
    proxy = Proxy(server)
    listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.target = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        listener.close()
        await proxy.end()
