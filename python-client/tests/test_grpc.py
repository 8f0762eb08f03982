"""The library over gRPC: a real server of grpcio on a free port of this machine."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

import ackstream
from ackstream._proto import ackstream_pb2 as pb
from ackstream._transport import METHOD, GrpcTransport, StreamBroken
from tests.fake_server import delivery

pytestmark = pytest.mark.real_time

Context = grpc.aio.ServicerContext[pb.StreamMessage, pb.StreamMessage]
Exchange = Callable[[AsyncIterator[pb.StreamMessage], Context], Awaitable[None]]

CLIENT = Path(__file__).resolve().parent.parent / "client.py"

OPENED = pb.StreamMessage(
    opened=pb.Opened(
        epoch=1,
        topic="demo",
        subscription="demo",
        ack_deadline=Duration(seconds=2),
        max_retries=3,
        max_message_bytes=1 << 20,
    )
)


@asynccontextmanager
async def serving(exchange: Exchange, port: int = 0) -> AsyncIterator[str]:
    """A server whose `Exchange` is `exchange`; gives its address."""
    _, service, method = METHOD.split("/")
    handler = grpc.stream_stream_rpc_method_handler(
        exchange,
        request_deserializer=pb.StreamMessage.FromString,
        response_serializer=pb.StreamMessage.SerializeToString,
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def batch(count: int) -> pb.StreamMessage:
    return pb.StreamMessage(data_batch=pb.DataBatch(messages=[delivery(n) for n in range(1, count + 1)]))


async def test_what_is_delivered_is_handled_and_acked() -> None:
    acked: list[int] = []

    async def exchange(frames: AsyncIterator[pb.StreamMessage], context: Context) -> None:
        assert (await anext(frames)).open.subscription == "demo"
        await context.write(OPENED)
        await context.write(batch(100))
        async for frame in frames:
            acked.extend(frame.ack_batch.ack_ids)
            if len(acked) == 100:
                return

    async def handle(_: ackstream.Delivery) -> None:
        pass

    async with serving(exchange) as target, asyncio.timeout(10), ackstream.connect(target) as client:
        await client.consume("demo", "demo").run(handle, concurrency=16)
    assert sorted(acked) == list(range(1, 101))


async def test_stop_half_closes_and_reads_to_the_end() -> None:
    half_closed = asyncio.Event()

    async def exchange(frames: AsyncIterator[pb.StreamMessage], context: Context) -> None:
        await anext(frames)
        await context.write(OPENED)
        await context.write(batch(1))
        async for _ in frames:
            pass
        half_closed.set()

    async with serving(exchange) as target, asyncio.timeout(10), ackstream.connect(target) as client:
        consumer = client.consume("demo", "demo")
        async for each in consumer:
            each.ack()
            consumer.stop()
    assert half_closed.is_set()
    assert consumer.ended


async def test_the_status_and_its_sentence_reach_the_caller() -> None:
    async def exchange(frames: AsyncIterator[pb.StreamMessage], context: Context) -> None:
        await anext(frames)
        await context.abort(grpc.StatusCode.NOT_FOUND, "no topic 'nope'; there are: demo")

    async with serving(exchange) as target, asyncio.timeout(10), ackstream.connect(target) as client:
        with pytest.raises(ackstream.StreamRefused, match="NOT_FOUND: no topic 'nope'; there are: demo"):
            await client.publish("nope", b"hello")


async def test_another_grpc_server_is_refused_at_once() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with asyncio.timeout(10), ackstream.connect(f"127.0.0.1:{port}") as client:
        with pytest.raises(ackstream.StreamRefused, match="UNIMPLEMENTED"):
            await client.publish("demo", b"hello")
    await server.stop(None)


async def test_a_server_that_comes_back_is_found() -> None:
    lost = asyncio.Event()
    events: list[ackstream.StreamEvent] = []

    def listen(event: ackstream.StreamEvent) -> None:
        events.append(event)
        if isinstance(event, ackstream.StreamLost):
            lost.set()

    async def break_off(frames: AsyncIterator[pb.StreamMessage], context: Context) -> None:
        await anext(frames)
        await context.write(OPENED)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "draining")

    async def finish(frames: AsyncIterator[pb.StreamMessage], context: Context) -> None:
        await anext(frames)
        await context.write(OPENED)

    async with asyncio.timeout(20), AsyncExitStack() as stack:
        async with serving(break_off) as target:
            client = await stack.enter_async_context(ackstream.connect(target))
            run = asyncio.create_task(client.consume("demo", "demo", on_event=listen).run(lambda _: None))
            await lost.wait()
        async with serving(finish, int(target.rpartition(":")[2])):
            await run
    reconnected = [event.reconnected for event in events if isinstance(event, ackstream.StreamOpened)]
    assert not reconnected[0]
    assert reconnected[-1]


async def test_a_stream_that_is_closed_while_it_is_read_says_so() -> None:
    async def exchange(frames: AsyncIterator[pb.StreamMessage], _: Context) -> None:
        async for _frame in frames:
            pass

    async with serving(exchange) as target, asyncio.timeout(10):
        stream = await GrpcTransport(target).open()
        await stream.write(pb.StreamMessage(open=pb.Open()))
        reading = asyncio.create_task(stream.read())
        await asyncio.wait([reading], timeout=0)
        await stream.close()
        with pytest.raises(StreamBroken, match="closed by this client"):
            await reading


async def test_no_http_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async def exchange(frames: AsyncIterator[pb.StreamMessage], context: Context) -> None:
        await anext(frames)
        await context.write(OPENED)

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    async with serving(exchange) as target, asyncio.timeout(10), ackstream.connect(target) as client:
        await client.consume("demo", "demo").run(lambda _: None)


async def run_client(*arguments: str, **environment: str) -> tuple[int, str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ACKSTREAM_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(CLIENT),
        *arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=kept | environment,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_the_demo_client_gives_up_with_69_on_a_port_where_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{taken.getsockname()[1]}"
        code, out, err = await run_client("--target", target, "--connect-timeout", "300ms")
    assert code == 69
    assert f"[PYTHON CLIENT] No stream to {target} (UNAVAILABLE" in out
    assert f"[PYTHON CLIENT] No server: gave up on {target} after 0.3 s" in out
    assert err == ""


async def test_the_demo_client_opens_nothing_when_an_option_is_wrong() -> None:
    code, out, err = await run_client("--delay", "2", ACKSTREAM_CLIENT_SEED="x")
    assert code == 64
    assert out == ""
    assert [line.partition(":")[0] for line in err.splitlines()] == [
        "[PYTHON CLIENT] --delay (command line)",
        "[PYTHON CLIENT] ACKSTREAM_CLIENT_SEED (environment)",
    ]


async def test_the_demo_client_ends_quietly_when_nobody_reads_its_output() -> None:
    async def exchange(frames: AsyncIterator[pb.StreamMessage], context: Context) -> None:
        await anext(frames)
        await context.write(OPENED)
        await context.write(batch(1000))
        async for _ in frames:
            pass

    async with serving(exchange) as target, asyncio.timeout(20):
        command = f'"{sys.executable}" "{CLIENT}" --target {target} | head -n 3; exit ${{PIPESTATUS[0]}}'
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        out, err = await process.communicate()
    assert len(out.splitlines()) == 3
    assert err == b""
    assert process.returncode == 0


async def test_the_demo_client_colours_nothing_into_a_pipe() -> None:
    async def exchange(frames: AsyncIterator[pb.StreamMessage], context: Context) -> None:
        await anext(frames)
        await context.write(OPENED)
        await context.write(batch(2))
        async for _ in frames:
            return

    async with serving(exchange) as target, asyncio.timeout(20):
        code, out, _ = await run_client("--target", target, "--drop-rate", "0")
    assert code == 0
    assert "[PYTHON CLIENT] Sent ACK for message 1" in out.splitlines()
    assert "\x1b" not in out


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
async def test_the_demo_client_colours_a_terminal_and_never_with_no_color(no_color: str, *, coloured: bool) -> None:
    async def exchange(frames: AsyncIterator[pb.StreamMessage], context: Context) -> None:
        await anext(frames)
        await context.write(OPENED)
        await context.write(batch(2))
        await anext(frames)

    ours, theirs = os.openpty()
    async with serving(exchange) as target, asyncio.timeout(20):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(CLIENT),
            "--target",
            target,
            "--drop-rate=0",
            stdout=theirs,
            env=os.environ | {"NO_COLOR": no_color, "TERM": "xterm"},
        )
        os.close(theirs)
        assert await process.wait() == 0
    output = os.read(ours, 1 << 16)
    os.close(ours)
    assert b"Received message 1: Message 1" in output
    assert (b"\x1b[32m" in output) is coloured
