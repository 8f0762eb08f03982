"""The library and the demo client against the server's binary, whose path is in ACKSTREAM_BIN."""

import asyncio
import itertools
import re
import time
from contextlib import AsyncExitStack

import grpc
import pytest

import ackstream
from ackstream._proto import ackstream_pb2 as pb
from ackstream._transport import METHOD
from tests.processes import BINARY, TIMEOUT, Process, demo_client, server, until

pytestmark = [
    pytest.mark.real_time,
    pytest.mark.skipif(not BINARY, reason="ACKSTREAM_BIN names no server binary"),
]


def received(process: Process) -> list[int]:
    """The ids of the deliveries that a demo client printed."""
    return [
        int(match[1]) for line in process.lines if (match := re.search(r"Received message (\d+)(?: again|:)", line))
    ]


def summary(process: Process) -> str:
    return next(line for line in process.lines if " deliveries of " in line)


def laws(process: Process) -> list[list[int]]:
    """The numbers of both laws, as the server's summary has them: the first is the sum of the others."""
    lines = [line for line in process.lines if " published = " in line or " sent = " in line]
    numbers = [[int(number) for number in re.findall(r"\d+", line)] for line in lines]
    assert len(numbers) == 2
    assert all(total == sum(parts) for total, *parts in numbers)
    return numbers


# The demo: server, generator and client.py


async def test_five_messages_are_delivered_acked_and_both_sides_end_with_0() -> None:
    async with server("demo", "5", "--interval", "10ms") as (binary, target):
        async with demo_client(target, "--drop-rate", "0") as client:
            assert await client.exit_code() == 0
        assert await binary.exit_code() == 0
    for number in range(1, 6):
        assert f"[RUST SERVER] Sent message {number}/5" in binary.lines
        assert f"[PYTHON CLIENT] Received message {number}: Message {number}" in client.lines
        assert f"[PYTHON CLIENT] Sent ACK for message {number}" in client.lines
        assert f"[RUST SERVER] Received ACK for message {number}" in binary.lines
    assert "[RUST SERVER] All messages completed, stopping retry handler" in binary.lines


async def test_what_is_never_answered_is_sent_four_times_an_ack_deadline_apart_and_dropped() -> None:
    times: dict[int, list[float]] = {}
    async with server("serve", "--ack-deadline", "500ms", "--max-retries", "3") as (_, target):
        async with ackstream.connect(target) as client:
            await client.publish_many("demo", [b"a", b"b", b"c"])
            consumer = client.consume("demo", "demo", max_extension=0, concurrency=3)
            try:
                async with asyncio.timeout(3):
                    async for delivery in consumer:
                        times.setdefault(delivery.id, []).append(time.monotonic())
                        assert delivery.attempt == len(times[delivery.id])
                        delivery.leave()
            except TimeoutError:
                pass
    assert [len(each) for each in times.values()] == [4, 4, 4]
    gaps = [later - earlier for each in times.values() for earlier, later in itertools.pairwise(each)]
    # Exact in the server's own tests in virtual time; here this process and its machine have a say.
    assert gaps == pytest.approx([0.5] * 9, abs=0.25)


async def test_the_same_seed_tells_the_same_story() -> None:
    summaries = []
    for _ in range(2):
        async with server("demo", "200", "--interval", "5ms", "--ack-deadline", "500ms") as (binary, target):
            async with demo_client(target, "--drop-rate", "0.3", "--seed", "7") as client:
                assert await client.exit_code() == 0
            assert await binary.exit_code() == 0
        summaries.append((summary(client), laws(binary)))
    assert summaries[0] == summaries[1]
    assert " of 200 messages: " in summaries[0][0]


# Several consumers


async def test_consumers_of_a_subscription_have_disjoint_shares() -> None:
    async with AsyncExitStack() as stack:
        _, target = await stack.enter_async_context(server("serve"))
        clients = [await stack.enter_async_context(demo_client(target, "--drop-rate", "0")) for _ in range(3)]
        for client in clients:
            await client.line("Connected to")
        async with ackstream.connect(target) as publisher:
            for number in range(1, 31):  # one after the other: of many at once, whoever asks first takes all
                await publisher.publish("demo", b"x")
                await until(lambda: sum(len(received(client)) for client in clients) == number)  # noqa: B023 - called here
        shares = [received(client) for client in clients]
    assert sorted(itertools.chain(*shares)) == list(range(1, 31))
    assert all(shares), "consumers take turns"


async def test_what_a_killed_consumer_holds_goes_to_the_others_at_once_as_a_further_attempt() -> None:
    async with AsyncExitStack() as stack:
        _, target = await stack.enter_async_context(server("serve", "--ack-deadline", "60s"))
        holder = await stack.enter_async_context(demo_client(target, "--drop-rate", "0", "--delay", "1h"))
        await holder.line("Connected to")
        publisher = await stack.enter_async_context(ackstream.connect(target))
        await publisher.publish_many("demo", [b"x"] * 50)
        await holder.line("Received message", count=50)
        others = [await stack.enter_async_context(demo_client(target, "--drop-rate", "0")) for _ in range(2)]
        for other in others:
            await other.line("Connected to")
        began = time.monotonic()
        await holder.kill()
        await until(lambda: sum(len(received(other)) for other in others) == 50)
        took = time.monotonic() - began
        lines = [line for other in others for line in other.lines if "Received message" in line]
    assert took < 5, "long before the ack deadline of 60 s"
    assert len(lines) == 50
    assert all("again (attempt 2)" in line for line in lines)


async def test_a_consumer_that_leaves_cleanly_costs_no_retry() -> None:
    async with AsyncExitStack() as stack:
        _, target = await stack.enter_async_context(server("serve", "--ack-deadline", "60s", "--max-retries", "0"))
        holder = await stack.enter_async_context(demo_client(target, "--drop-rate", "0", "--delay", "1h"))
        await holder.line("Connected to")
        publisher = await stack.enter_async_context(ackstream.connect(target))
        await publisher.publish_many("demo", [b"x"] * 50)
        await holder.line("Received message", count=50)
        holder.terminate()
        assert await holder.exit_code() == 0
        other = await stack.enter_async_context(demo_client(target, "--drop-rate", "0"))
        await other.line("Sent ACK", count=50)
    assert all("again (attempt 2)" in line for line in other.lines if "Received message" in line)


# The library


async def test_a_slow_handler_behind_a_full_window_handles_each_message_once() -> None:
    handled: list[tuple[int, int]] = []

    async def handle(delivery: ackstream.Delivery) -> None:
        await asyncio.sleep(0.1)
        handled.append((delivery.id, delivery.failures))
        if len(handled) == 200:
            consumer.stop()

    async with server("serve", "--ack-deadline", "2s") as (_, target):
        async with asyncio.timeout(TIMEOUT), ackstream.connect(target) as client:
            await client.publish_many("demo", [b"x"] * 200)
            consumer = client.consume("demo", "demo")
            await consumer.run(handle)
    assert sorted(handled) == [(message_id, 0) for message_id in range(1, 201)]


async def test_what_is_published_comes_back_as_it_was() -> None:
    async with server("serve") as (_, target), asyncio.timeout(TIMEOUT), ackstream.connect(target) as client:
        message_id = await client.publish("demo", b"\x00hello\xff", attributes={"kind": "é"})
        consumer = client.consume("demo", "demo")
        async for delivery in consumer:
            delivery.ack()
            consumer.stop()
    assert (delivery.id, delivery.attempt, delivery.payload) == (message_id, 1, b"\x00hello\xff")
    assert delivery.attributes == {"kind": "é"}
    assert abs(delivery.published_at.timestamp() - time.time()) < 60


async def test_a_publish_that_is_too_large_is_refused_by_name_and_the_next_is_accepted() -> None:
    async with server("serve") as (_, target), asyncio.timeout(TIMEOUT), ackstream.connect(target) as client:
        with pytest.raises(ackstream.PublishRefused, match=r"1,048,577 bytes.*at most 1,048,576") as refused:
            await client.publish("demo", bytes(1_048_577))
        assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
        assert await client.publish("demo", bytes(1_048_576)) == 1


async def test_an_unknown_topic_or_subscription_is_named_with_those_that_exist() -> None:
    async with server("serve") as (_, target), asyncio.timeout(TIMEOUT), ackstream.connect(target) as client:
        with pytest.raises(ackstream.StreamRefused, match=r"(?s)NOT_FOUND.*nope.*demo"):
            await client.publish("nope", b"hello")
        with pytest.raises(ackstream.StreamRefused, match=r"(?s)NOT_FOUND.*nope.*demo"):
            await client.consume("demo", "nope").run(lambda _: None)


async def test_a_held_message_survives_a_restart_of_the_server_without_settling_a_stranger() -> None:
    events: list[ackstream.StreamEvent] = []
    async with AsyncExitStack() as stack:
        first, target = await stack.enter_async_context(server("serve", "--ack-deadline", "2s"))
        client = await stack.enter_async_context(ackstream.connect(target))
        await stack.enter_async_context(asyncio.timeout(TIMEOUT))
        await client.publish_many("demo", [b"old"] * 1000)
        consumer = client.consume("demo", "demo", on_event=events.append)
        aiter(consumer)
        held = [await anext(consumer) for _ in range(1000)]

        await first.kill()
        await stack.enter_async_context(server("serve", "--ack-deadline", "2s", listen=target))
        async with ackstream.connect(target) as publisher:
            new_ids = await publisher.publish_many("demo", [b"new"] * 1000)
        strangers = [await anext(consumer) for _ in range(1000)]
        for delivery in held:
            delivery.ack()
        # What an old ack had settled would not come again.
        for delivery in strangers:
            delivery.nack(delay=0)
        again = [await anext(consumer) for _ in range(1000)]
        for delivery in again:
            delivery.ack()
        await consumer.stop()
    assert sorted(delivery.id for delivery in held) == sorted(new_ids), "the ids are the same, the messages are not"
    assert {delivery.payload for delivery in strangers} == {b"new"}
    assert {delivery.attempt for delivery in strangers} == {1}
    assert sorted(delivery.id for delivery in again) == sorted(new_ids)
    assert {delivery.attempt for delivery in again} == {2}
    assert sum(event.count for event in events if isinstance(event, ackstream.AnswersDiscarded)) == 1000


async def test_64_messages_of_1_mib_reach_a_client_with_grpcs_default_limits() -> None:
    async with server("serve") as (_, target), asyncio.timeout(TIMEOUT):
        async with ackstream.connect(target) as client:
            await client.publish_many("demo", [bytes(1 << 20)] * 64, window=8)
        async with grpc.aio.insecure_channel(target) as channel:
            exchange: grpc.aio.StreamStreamMultiCallable[pb.StreamMessage, pb.StreamMessage] = channel.stream_stream(
                METHOD,
                request_serializer=pb.StreamMessage.SerializeToString,
                response_deserializer=pb.StreamMessage.FromString,
            )
            call = exchange()
            await call.write(pb.StreamMessage(open=pb.Open(max_batch_messages=64)))
            sizes: list[int] = []
            async for frame in call:
                messages = frame.data_batch.messages if frame.HasField("data_batch") else []
                sizes += [len(message.payload) for message in messages]
                sizes += [len(frame.data.payload)] if frame.HasField("data") else []
                if len(sizes) == 64:
                    break
            call.cancel()
    assert sizes == [1 << 20] * 64


async def test_the_demo_client_goes_on_with_a_restarted_server() -> None:
    async with AsyncExitStack() as stack:
        first, target = await stack.enter_async_context(server("serve"))
        client = await stack.enter_async_context(demo_client(target, "--drop-rate", "0"))
        await client.line("Connected to")
        await first.kill()
        await client.line("No stream to")
        await stack.enter_async_context(server("demo", "3", "--interval", "10ms", listen=target))
        assert await client.exit_code() == 0
    assert any("Reconnected to" in line for line in client.lines)
    assert received(client) == [1, 2, 3]


async def test_the_demo_client_and_a_publisher_go_on_after_a_server_that_was_asked_to_stop() -> None:
    async with AsyncExitStack() as stack:
        first, target = await stack.enter_async_context(server("serve"))
        client = await stack.enter_async_context(demo_client(target, "--drop-rate", "0"))
        publisher = await stack.enter_async_context(ackstream.connect(target))
        await client.line("Connected to")
        await publisher.publish_many("demo", [b"before"] * 3)
        await client.line("Sent ACK", count=3)
        first.terminate()
        assert await first.exit_code() == 0
        await client.line("No stream to")
        await stack.enter_async_context(server("serve", listen=target))
        await publisher.publish_many("demo", [b"after"] * 3)
        await client.line("Sent ACK", count=6)
        client.terminate()
        assert await client.exit_code() == 0
    assert received(client) == [1, 2, 3, 1, 2, 3]


async def test_the_demo_client_goes_on_with_fifty_servers_one_after_the_other_each_stopped_under_load() -> None:
    async with AsyncExitStack() as stack:
        load = ("demo", "0", "--interval", "1ms", "--log-lines-per-second", "0")
        current, target = await stack.enter_async_context(server(*load))
        options = ("--drop-rate", "0", "--nack-rate", "0.1", "--seed", "7", "--delay", "5ms")
        client = await stack.enter_async_context(demo_client(target, *options, "--log-lines-per-second", "100"))
        for life in range(1, 51):
            await client.line("onnected to", count=life)
            # Its load: the generator began with the client, and this life has had an ack.
            said = len(client.lines)
            await until(lambda said=said: any("Sent ACK" in line for line in client.lines[said:]))  # type: ignore[misc]
            current.terminate()
            assert await current.exit_code() == 0
            law = next(line for line in current.lines if " published = " in line)
            published, *parts = (int(number) for number in re.findall(r"\d+", law))
            assert published == sum(parts) > 0, law
            if life < 50:
                current, _ = await stack.enter_async_context(server(*load, listen=target))
        client.terminate()
        assert await client.exit_code() == 0
    assert sum("Reconnected to" in line for line in client.lines) == 49


async def test_the_demo_client_names_a_wrong_subscription_and_ends_with_64() -> None:
    async with server("serve") as (_, target), demo_client(target, "--subscription", "nope") as client:
        assert await client.exit_code() == 64
    assert any("nope" in line and "NOT_FOUND" in line for line in client.lines)
