"""Publishing, in virtual time and without a server."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

import ackstream
from ackstream._proto import ackstream_pb2 as pb
from tests.fake_server import FakeServer, FakeStream
from tests.virtual_time import everything_that_needs_no_time

FULL = grpc.StatusCode.RESOURCE_EXHAUSTED


async def accepted(server: FakeServer, max_message_bytes: int = 1 << 20) -> FakeStream:
    stream = await server.next_stream()
    stream.accept(max_message_bytes=max_message_bytes)
    await everything_that_needs_no_time()
    return stream


async def test_publish_returns_the_id_once_the_server_has_accepted(server: FakeServer) -> None:
    async with server.client() as client:
        publish = asyncio.create_task(client.publish("demo", b"hello", attributes={"kind": "new"}))
        stream = await accepted(server)
        [message] = stream.published
        assert not publish.done()
        stream.answer([message], first_id=41)
        assert await publish == 41
    asked = stream.sent[0][1].open
    assert (asked.topic, asked.publish_only, asked.subscription) == ("demo", True, "")
    assert (message.payload, dict(message.attributes)) == (b"hello", {"kind": "new"})
    assert stream.half_closed


async def test_an_answer_that_comes_alone_counts_as_well(server: FakeServer) -> None:
    async with server.client() as client:
        publish = asyncio.create_task(client.publish("demo", b"hello"))
        stream = await accepted(server)
        stream.send(pb.StreamMessage(ack=pb.AckMessage(ack_id=stream.published[0].id, message_id=9)))
        assert await publish == 9


async def test_publishes_at_the_same_time_share_a_frame_and_a_stream(server: FakeServer) -> None:
    async with server.client() as client:
        publishes = [asyncio.create_task(client.publish("demo", bytes([n]))) for n in range(50)]
        stream = await accepted(server)
        stream.answer(stream.published)
        assert await asyncio.gather(*publishes) == list(range(1, 51))
    assert len(server.streams) == 1
    assert len(stream.sent) == 2


async def test_a_frame_of_publishes_stops_at_1_mib(server: FakeServer) -> None:
    async with server.client() as client:
        publishes = asyncio.create_task(client.publish_many("demo", [bytes(400_000)] * 5))
        stream = await accepted(server)
        stream.answer(stream.published)
        await publishes
    sizes = [len(frame.data_batch.messages) for _, frame in stream.sent if frame.HasField("data_batch")]
    assert sizes == [2, 2, 1]


async def test_a_message_that_is_too_large_is_refused_by_name_and_the_stream_goes_on(server: FakeServer) -> None:
    async with server.client() as client:
        large = asyncio.create_task(client.publish("demo", b"x" * 95, attributes={"kind": "é"}))
        small = asyncio.create_task(client.publish("demo", b"x"))
        stream = await accepted(server, max_message_bytes=100)
        with pytest.raises(ackstream.PublishRefused, match=r"101 bytes.*'demo'.*at most 100") as raised:
            await large
        stream.answer(stream.published)
        assert await small == 1
    assert raised.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert not raised.value.retryable


async def test_what_the_server_has_added_to_a_dead_letter_counts_against_no_bound(server: FakeServer) -> None:
    async with server.client() as client:
        letter = {"ackstream.origin.topic": "x" * 100, "kind": "new"}
        publish = asyncio.create_task(client.publish("demo", b"x" * 93, attributes=letter))
        stream = await accepted(server, max_message_bytes=100)
        stream.answer(stream.published)
        assert await publish == 1


@pytest.mark.parametrize(
    ("code", "retryable"), [("RESOURCE_EXHAUSTED", True), ("UNAVAILABLE", True), ("INVALID_ARGUMENT", False)]
)
async def test_a_refusal_says_why_and_whether_a_retry_helps(
    server: FakeServer,
    code: str,
    retryable: bool,  # noqa: FBT001
) -> None:
    async with server.client() as client:
        publish = asyncio.create_task(client.publish("demo", b"hello"))
        stream = await accepted(server)
        stream.refuse(stream.published[0], grpc.StatusCode[code], "subscription 'demo' is full")
        with pytest.raises(ackstream.PublishRefused, match="subscription 'demo' is full") as raised:
            await publish
    assert raised.value.retryable is retryable


async def test_retry_for_tries_a_full_backlog_again(server: FakeServer) -> None:
    async with server.client() as client:
        publish = asyncio.create_task(client.publish("demo", b"hello", retry_for=60))
        stream = await accepted(server)
        for tries in range(1, 6):
            while len(stream.published) < tries:
                await asyncio.sleep(0.01)
            stream.refuse(stream.published[-1], FULL, "full")
        while len(stream.published) < 6:
            await asyncio.sleep(0.01)
        stream.answer(stream.published[-1:], first_id=3)
        assert await publish == 3


async def test_retry_for_ends(server: FakeServer) -> None:
    loop = asyncio.get_running_loop()
    async with server.client() as client:
        began = loop.time()
        publish = asyncio.create_task(client.publish("demo", b"hello", retry_for=2))
        stream = await accepted(server)
        tries = 0
        while not publish.done():
            if len(stream.published) > tries:
                tries += 1
                stream.refuse(stream.published[-1], FULL, "full")
            await asyncio.sleep(0.01)
        with pytest.raises(ackstream.PublishRefused):
            await publish
    assert loop.time() - began == pytest.approx(2, abs=0.1)


async def test_a_publish_without_an_answer_is_sent_again_over_the_next_stream_in_its_order(server: FakeServer) -> None:
    async with server.client() as client:
        publishes = asyncio.create_task(client.publish_many("demo", [b"a", b"b", b"c"]))
        first = await accepted(server)
        first.answer(first.published[:1], first_id=1)
        await everything_that_needs_no_time()
        first.break_off()
        second = await accepted(server)
        second.answer(second.published, first_id=7)
        assert await publishes == [1, 7, 8]
    assert [message.payload for message in second.published] == [b"b", b"c"]


async def test_a_publish_without_an_answer_fails_when_the_server_cannot_be_had(server: FakeServer) -> None:
    async with server.client(connect_timeout=5) as client:
        publish = asyncio.create_task(client.publish("demo", b"hello"))
        first = await accepted(server)
        server.down = grpc.StatusCode.UNAVAILABLE
        first.break_off()
        with pytest.raises(ackstream.ServerUnreachable):
            await publish


async def test_a_publish_without_an_answer_fails_when_the_stream_ends_with_ok(server: FakeServer) -> None:
    async with server.client() as client:
        publish = asyncio.create_task(client.publish("demo", b"hello"))
        stream = await accepted(server)
        stream.end()
        with pytest.raises(ackstream.StreamEnded) as raised:
            await publish
        assert raised.value.retryable
        again = asyncio.create_task(client.publish("demo", b"hello"))
        second = await accepted(server)
        second.answer(second.published)
        assert await again == 1


async def test_an_unknown_topic_fails_the_publish_with_the_servers_sentence(server: FakeServer) -> None:
    async with server.client() as client:
        publish = asyncio.create_task(client.publish("nope", b"hello"))
        stream = await server.next_stream()
        stream.break_off(grpc.StatusCode.NOT_FOUND, "no topic 'nope'; there are: demo")
        with pytest.raises(ackstream.StreamRefused, match="there are: demo"):
            await publish


async def test_a_cancelled_publish_that_was_not_sent_is_never_sent(server: FakeServer) -> None:
    async with server.client() as client:
        publish = asyncio.create_task(client.publish("demo", b"first"))
        await server.next_stream()
        publish.cancel()
        other = asyncio.create_task(client.publish("demo", b"second"))
        await everything_that_needs_no_time()
        stream = server.streams[0]
        stream.accept()
        await everything_that_needs_no_time()
        stream.answer(stream.published)
        await other
    assert [message.payload for message in stream.published] == [b"second"]


async def test_publish_many_keeps_a_window_of_publishes_without_an_answer(server: FakeServer) -> None:
    taken = 0

    async def messages() -> AsyncIterator[ackstream.Message]:
        nonlocal taken
        for n in range(25):
            taken += 1
            yield ackstream.Message(b"%d" % n, {"n": str(n)})

    async with server.client() as client:
        publishes = asyncio.create_task(client.publish_many("demo", messages(), window=10))
        stream = await accepted(server)
        assert len(stream.published) == 10
        assert taken == 11, "the eleventh waits for room"
        answered = 0
        while not publishes.done():
            fresh = stream.published[answered:]
            stream.answer(fresh, first_id=answered + 1)
            answered += len(fresh)
            await everything_that_needs_no_time()
        assert await publishes == list(range(1, 26))
    assert [dict(message.attributes)["n"] for message in stream.published] == [str(n) for n in range(25)]


async def test_publish_many_says_which_message_was_refused_and_what_is_stored(server: FakeServer) -> None:
    async with server.client() as client:
        publishes = asyncio.create_task(client.publish_many("demo", [b"a", b"b", b"c", b"d"], retry_for=0))
        stream = await accepted(server)
        a, b, c, d = stream.published
        stream.answer([a, c], first_id=1)
        stream.refuse(b, grpc.StatusCode.INVALID_ARGUMENT, "attribute name is empty")
        stream.answer([d], first_id=3)
        with pytest.raises(ackstream.PublishRefused) as raised:
            await publishes
    assert raised.value.position == 1
    assert raised.value.accepted == {0: 1, 2: 2, 3: 3}


@pytest.mark.parametrize("window", [0, 5_001])
async def test_the_window_of_publish_many_has_bounds(server: FakeServer, window: int) -> None:
    async with server.client() as client:
        with pytest.raises(ValueError, match="window"):
            await client.publish_many("demo", [], window=window)


async def test_a_closed_client_publishes_and_consumes_nothing(server: FakeServer) -> None:
    client = server.client()
    async with client:
        pass
    with pytest.raises(ackstream.StreamEnded, match="closed"):
        await client.publish("demo", b"hello")
    with pytest.raises(ackstream.StreamEnded, match="closed"):
        client.consume("demo", "demo")


async def test_a_publish_that_waits_for_room_when_the_client_closes_is_not_sent(server: FakeServer) -> None:
    async with server.client() as client:
        publishes = [asyncio.create_task(client.publish("demo", b"x")) for _ in range(5_001)]
        stream = await accepted(server)
        sent = len(stream.published)
    results = await asyncio.gather(*publishes, return_exceptions=True)
    assert sent == 5_000
    assert len(server.streams) == 1
    assert all(isinstance(result, ackstream.StreamEnded) for result in results)
