"""How the library keeps what it holds: extensions, in virtual time."""

import asyncio

import pytest

import ackstream
from tests.fake_server import ACK_DEADLINE, FakeServer, FakeStream
from tests.virtual_time import VirtualTimeLoop, everything_that_needs_no_time


async def consuming(
    server: FakeServer, client: ackstream.Client, max_extension: float = 600
) -> tuple[ackstream.Consumer, FakeStream]:
    consumer = client.consume("demo", "demo", max_extension=max_extension)
    aiter(consumer)
    stream = await server.next_stream()
    stream.accept()
    await everything_that_needs_no_time()
    return consumer, stream


async def test_what_is_queued_and_what_is_handed_out_is_extended_at_a_third_of_its_deadline_in_one_frame(
    server: FakeServer,
) -> None:
    async with server.client() as client:
        consumer, stream = await consuming(server, client)
        began = asyncio.get_running_loop().time()
        stream.deliver(1, 2, 3)
        delivery = await anext(consumer)
        await asyncio.sleep(ACK_DEADLINE * 0.5)
    del delivery
    [(at, ids)] = stream.extensions
    assert ids == [1, 2, 3]
    assert at - began == pytest.approx(ACK_DEADLINE / 3, rel=0.01)
    [frame] = [frame.extend_batch for _, frame in stream.sent if frame.HasField("extend_batch")]
    assert frame.ack_deadline.ToSeconds() == ACK_DEADLINE


async def test_no_delivery_is_ever_past_its_deadline_however_they_arrive(server: FakeServer) -> None:
    deadlines: dict[int, float] = {}
    loop = asyncio.get_running_loop()
    async with server.client() as client:
        _, stream = await consuming(server, client)
        for message_id in range(1, 101):
            stream.deliver(message_id)
            deadlines[message_id] = loop.time() + ACK_DEADLINE
            await asyncio.sleep(0.037)
        await asyncio.sleep(10)
    for at, ids in stream.extensions:
        for message_id in ids:
            assert at < deadlines[message_id]
            deadlines[message_id] = at + ACK_DEADLINE
    assert all(deadline > loop.time() - 0.1 for deadline in deadlines.values())
    # 100 deliveries over 13.7 s, each extended about once a second: far fewer frames than extensions.
    assert len(stream.extensions) < 80


async def test_what_is_answered_is_not_extended(server: FakeServer) -> None:
    async with server.client() as client:
        consumer, stream = await consuming(server, client)
        stream.deliver(1, 2, 3, 4)
        (await anext(consumer)).ack()
        (await anext(consumer)).nack()
        (await anext(consumer)).leave()
        await asyncio.sleep(ACK_DEADLINE * 0.5)
    assert [ids for _, ids in stream.extensions] == [[4]]


async def test_a_delivery_is_extended_for_max_extension_from_when_the_application_got_it(server: FakeServer) -> None:
    loop = asyncio.get_running_loop()
    async with server.client() as client:
        consumer, stream = await consuming(server, client, max_extension=600)
        stream.deliver(1)
        await asyncio.sleep(20)
        delivery = await anext(consumer)
        began = loop.time()
        await asyncio.sleep(700)
    del delivery
    last, _ = stream.extensions[-1]
    assert 598 <= last - began < 600


async def test_max_extension_0_turns_extensions_off(server: FakeServer) -> None:
    async with server.client() as client:
        consumer, stream = await consuming(server, client, max_extension=0)
        stream.deliver(1)
        delivery = await anext(consumer)
        await asyncio.sleep(10)
        delivery.ack()
        await everything_that_needs_no_time()
    assert stream.extensions == []
    assert stream.acked == [1], "a late ack still counts"


async def test_an_extension_by_hand_is_never_shortened_by_the_library(server: FakeServer) -> None:
    loop = asyncio.get_running_loop()
    async with server.client() as client:
        consumer, stream = await consuming(server, client)
        stream.deliver(1)
        delivery = await anext(consumer)
        began = loop.time()
        delivery.extend(30)
        await asyncio.sleep(60)
    [asked] = [frame.extend for _, frame in stream.sent if frame.HasField("extend")]
    assert (asked.ack_id, asked.delivery_attempt, asked.ack_deadline.ToSeconds()) == (1, 1, 30)
    first, _ = stream.extensions[0]
    assert 30 - ACK_DEADLINE <= first - began < 30


async def test_an_extension_by_hand_shorter_than_the_ack_deadline_is_one_ack_deadline(server: FakeServer) -> None:
    async with server.client() as client:
        consumer, stream = await consuming(server, client)
        stream.deliver(1)
        (await anext(consumer)).extend(0.1)
        await everything_that_needs_no_time()
    [asked] = [frame.extend for _, frame in stream.sent if frame.HasField("extend")]
    assert asked.ack_deadline.ToSeconds() == ACK_DEADLINE, "the library's next extension would come too late"


@pytest.mark.parametrize("seconds", [0, -1, 3601, float("nan")])
async def test_an_extension_by_hand_has_bounds(server: FakeServer, seconds: float) -> None:
    async with server.client() as client:
        consumer, stream = await consuming(server, client)
        stream.deliver(1)
        delivery = await anext(consumer)
        with pytest.raises(ValueError, match="seconds"):
            delivery.extend(seconds)


async def test_extensions_do_not_wait_for_an_application_that_takes_nothing(server: FakeServer) -> None:
    async with server.client() as client:
        _, stream = await consuming(server, client)
        stream.deliver(*range(1, 1001))
        await asyncio.sleep(5)
    assert len(stream.extensions) >= 4
    assert all(len(ids) == 1000 for _, ids in stream.extensions)


async def test_what_is_queued_is_extended_while_a_stop_waits_for_handlers(server: FakeServer) -> None:
    async with server.client() as client:
        consumer, stream = await consuming(server, client)
        stream.deliver(1, 2)
        delivery = await anext(consumer)
        left = consumer.stop(grace=10)
        await asyncio.sleep(ACK_DEADLINE * 0.5)
        delivery.ack()
        await left
    assert [ids for _, ids in stream.extensions] == [[1, 2]], "an expiry would cost message 2 a retry"


async def test_more_ids_than_a_frame_holds_become_several_frames(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ackstream._holdings.MAX_IDS_PER_FRAME", 400)
    async with server.client() as client:
        _, stream = await consuming(server, client)
        stream.deliver(*range(1, 1001))
        await asyncio.sleep(ACK_DEADLINE * 0.5)
    assert [len(ids) for _, ids in stream.extensions] == [400, 400, 200]


async def test_what_waits_in_the_queue_for_30_s_goes_back_at_no_cost(server: FakeServer) -> None:
    handled: list[int] = []

    async def handle(delivery: ackstream.Delivery) -> None:
        handled.append(delivery.id)
        await asyncio.sleep(10)

    async with server.client() as client:
        task = asyncio.create_task(client.consume("demo", "demo").run(handle))
        stream = await server.next_stream()
        stream.accept()
        stream.deliver(*range(1, 11))
        await asyncio.sleep(45)
        task.cancel()

    assert handled == [1, 2, 3, 4]
    assert stream.released == [5, 6, 7, 8, 9, 10], "others may have the time"
    assert 4 not in stream.released


async def test_an_event_loop_that_is_blocked_for_half_the_ack_deadline_is_in_time(
    server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with server.client() as client:
        _, stream = await consuming(server, client)
        began = asyncio.get_running_loop().time()
        stream.deliver(1)
        await asyncio.sleep(ACK_DEADLINE / 3 - 0.01)
        block(ACK_DEADLINE / 2)
        await everything_that_needs_no_time()

    [(at, _)] = stream.extensions
    assert at - began < ACK_DEADLINE
    assert "blocked" not in caplog.text


async def test_an_event_loop_that_is_blocked_for_longer_is_told_once(
    server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with server.client() as client:
        _, stream = await consuming(server, client)
        stream.deliver(1)
        for _time in range(3):
            await asyncio.sleep(ACK_DEADLINE / 3 - 0.01)
            block(ACK_DEADLINE * 0.6)
            await everything_that_needs_no_time()

    [record] = [record for record in caplog.records if "blocked" in record.message]
    assert "blocked for about 1.2 s, with an ack deadline of 2 s" in record.message


def block(seconds: float) -> None:
    """What a handler without an `await` does to an event loop in virtual time."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop.block(seconds)
