"""How a stream ends decides what the client does; and what an epoch that is over means. In virtual time."""

import asyncio
import itertools
import random

import grpc
import pytest

import ackstream
from ackstream._backoff import Backoff
from tests.fake_server import FakeServer, FakeStream
from tests.virtual_time import everything_that_needs_no_time

FINAL = ["INVALID_ARGUMENT", "NOT_FOUND", "UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED"]
PASSING = [code.name for code in grpc.StatusCode if code.name not in [*FINAL, "OK"]]


async def consuming(
    server: FakeServer, client: ackstream.Client, events: list[ackstream.StreamEvent] | None = None
) -> tuple[ackstream.Consumer, FakeStream]:
    on_event = events.append if events is not None else None
    consumer = client.consume("demo", "demo", max_outstanding_messages=2, on_event=on_event)  # it has no room to grow
    aiter(consumer)
    stream = await server.next_stream()
    stream.accept()
    await everything_that_needs_no_time()
    return consumer, stream


@pytest.mark.parametrize("code", FINAL)
async def test_an_error_of_the_client_is_raised_at_once_and_never_retried(server: FakeServer, code: str) -> None:
    async with server.client() as client:
        consumer, stream = await consuming(server, client)
        stream.break_off(grpc.StatusCode[code], "no topic 'demo'; there are: news")
        with pytest.raises(ackstream.StreamRefused, match=f"{code}: no topic 'demo'; there are: news") as raised:
            await anext(consumer)
    assert raised.value.code is grpc.StatusCode[code]
    assert not raised.value.retryable
    assert len(server.streams) == 1


@pytest.mark.parametrize("code", PASSING)
async def test_after_any_other_status_the_client_opens_a_new_stream(server: FakeServer, code: str) -> None:
    async with server.client() as client:
        consumer, stream = await consuming(server, client)
        stream.break_off(grpc.StatusCode[code])
        second = await server.next_stream()
        second.accept()
        second.deliver(1)
        assert (await anext(consumer)).id == 1
    assert stream.closed


async def test_ok_ends_the_consumer_and_nothing_is_opened_again(server: FakeServer) -> None:
    async with server.client() as client:
        consumer, stream = await consuming(server, client)
        stream.end()
        with pytest.raises(StopAsyncIteration):
            await anext(consumer)
        await asyncio.sleep(60)
    assert len(server.streams) == 1


async def test_a_server_that_is_something_else_is_an_error_at_once(server: FakeServer) -> None:
    async with server.client() as client:
        consumer = client.consume("demo", "demo")
        aiter(consumer)
        stream = await server.next_stream()
        stream.deliver(1)
        with pytest.raises(ackstream.StreamRefused, match="no ackstream server"):
            await anext(consumer)


async def test_a_server_that_never_answers_open_is_tried_again(server: FakeServer) -> None:
    loop = asyncio.get_running_loop()
    async with server.client() as client:
        _kept = aiter(client.consume("demo", "demo"))
        await server.next_stream()
        began = loop.time()
        await server.next_stream()
        took = round(loop.time() - began, 6)  # a loop runs its timers early by up to its clock's resolution
        assert 10 <= took <= 10.2


async def test_without_a_server_the_client_gives_up_after_connect_timeout(server: FakeServer) -> None:
    server.down = grpc.StatusCode.UNAVAILABLE
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with server.client(connect_timeout=30) as client:
        consumer = client.consume("demo", "demo")
        aiter(consumer)
        with pytest.raises(ackstream.ServerUnreachable, match=r"fake:50051 after 30 s.*nobody listens") as raised:
            await anext(consumer)
    assert raised.value.retryable
    assert loop.time() - began == pytest.approx(30)


async def test_connect_timeout_starts_when_the_server_is_lost(server: FakeServer) -> None:
    loop = asyncio.get_running_loop()
    async with server.client(connect_timeout=30) as client:
        consumer, stream = await consuming(server, client)
        await asyncio.sleep(100)
        server.down = grpc.StatusCode.UNAVAILABLE
        began = loop.time()
        stream.break_off()
        with pytest.raises(ackstream.ServerUnreachable):
            await anext(consumer)
    assert loop.time() - began == pytest.approx(30)


async def test_without_a_connect_timeout_the_client_never_gives_up(server: FakeServer) -> None:
    server.down = grpc.StatusCode.UNAVAILABLE
    async with server.client(connect_timeout=None) as client:
        consumer = client.consume("demo", "demo")
        aiter(consumer)
        await asyncio.sleep(24 * 3600)
        assert not consumer.ended


def test_backoff_is_drawn_from_the_whole_range_below_a_bound_that_doubles() -> None:
    class AlwaysMost(random.Random):
        def random(self) -> float:
            return 1.0

    backoff = Backoff(AlwaysMost())
    assert [round(backoff.next(), 6) for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    backoff.reset()
    assert backoff.next() == pytest.approx(0.1)
    jittered = [Backoff(random.Random(seed)).next() for seed in range(200)]
    assert min(jittered) < 0.01
    assert max(jittered) > 0.09


async def test_a_server_that_breaks_every_stream_at_once_is_not_hammered(server: FakeServer) -> None:
    async with server.client() as client:
        _kept = aiter(client.consume("demo", "demo"))
        for _ in range(20):
            stream = await server.next_stream()
            stream.accept()
            await everything_that_needs_no_time()
            stream.break_off()
    waits = [later - earlier for earlier, later in itertools.pairwise(server.opened_at)]
    assert max(waits) > 1


async def test_acks_that_wait_while_the_stream_is_gone_go_over_the_next_one_of_the_same_epoch(
    server: FakeServer,
) -> None:
    async with server.client() as client:
        consumer, first = await consuming(server, client)
        first.deliver(1, 2, 3)
        deliveries = [await anext(consumer) for _ in range(3)]
        first.reads = False
        deliveries[0].ack()  # is being written when the stream breaks
        await everything_that_needs_no_time()
        deliveries[1].ack()  # waits behind it
        first.break_off()
        await everything_that_needs_no_time()
        deliveries[2].ack()  # comes when there is no stream
        second = await server.next_stream()
        second.accept(epoch=1)
        await everything_that_needs_no_time()
    assert first.acked == []
    assert second.acked == [1, 2, 3]


async def test_what_is_held_stays_held_over_a_broken_stream(server: FakeServer) -> None:
    async with server.client() as client:
        consumer, first = await consuming(server, client)
        first.deliver(1, 2, 3)
        one, two = [await anext(consumer) for _ in range(2)]
        first.break_off()
        one.ack()
        second = await server.next_stream()
        second.accept()
        await everything_that_needs_no_time()
        two.nack()
        three = await anext(consumer)
        three.ack()
        await everything_that_needs_no_time()

    assert second.resumed.session
    assert sorted(second.resumed.held) == [1, 2, 3]
    assert (second.acked, [nack.ack_id for nack in second.nacks]) == ([1, 3], [2])


async def test_answers_of_the_last_seconds_are_repeated_where_the_session_goes_on(server: FakeServer) -> None:
    async with server.client() as client:
        consumer, first = await consuming(server, client)
        first.deliver(1, 2)
        (await anext(consumer)).ack()
        (await anext(consumer)).nack(drop=True)
        await everything_that_needs_no_time()
        assert (first.acked, len(first.nacks)) == ([1], 1)
        first.break_off()
        second = await server.next_stream()
        second.accept()
        await everything_that_needs_no_time()

    assert sorted(second.resumed.held) == [1, 2], "the server may not have read them"
    assert (second.acked, [nack.ack_id for nack in second.nacks]) == ([1], [2])


async def test_answers_older_than_30_s_are_not_repeated(server: FakeServer) -> None:
    async with server.client() as client:
        consumer, first = await consuming(server, client)
        first.deliver(1)
        (await anext(consumer)).ack()
        await asyncio.sleep(31)
        first.break_off()
        second = await server.next_stream()
        second.accept()
        await everything_that_needs_no_time()

    assert (list(second.resumed.held), second.acked) == ([], [])


async def test_thirty_breaks_under_one_handler_are_one_call_and_one_ack(server: FakeServer) -> None:
    handled: list[int] = []

    async def handle(delivery: ackstream.Delivery) -> None:
        handled.append(delivery.attempt)
        await asyncio.sleep(60)

    async with server.client() as client:
        task = asyncio.create_task(client.consume("demo", "demo").run(handle))
        stream = await server.next_stream()
        stream.accept()
        stream.deliver(1)
        for _ in range(30):
            await asyncio.sleep(1)
            stream.break_off()
            stream = await server.next_stream()
            assert list(stream.resumed.held) == [1]
            stream.accept()
        await asyncio.sleep(60)
        acked = stream.acked
        task.cancel()

    assert (handled, acked) == ([1], [1])


async def test_where_the_session_is_over_nacks_and_extends_are_not_sent_and_acks_are(server: FakeServer) -> None:
    events: list[ackstream.StreamEvent] = []
    async with server.client() as client:
        consumer, first = await consuming(server, client, events)
        first.deliver(1, 2, 3)
        one, two, three = [await anext(consumer) for _ in range(3)]
        first.reads = False
        one.ack()
        await everything_that_needs_no_time()
        two.nack()
        first.break_off()
        second = await server.next_stream()
        second.accept(resumes=False)
        await everything_that_needs_no_time()
        three.extend(30)
        await asyncio.sleep(5)

    assert [frame.WhichOneof("kind") for _, frame in second.sent] == ["open", "ack_batch"]
    assert not any(isinstance(event, ackstream.AnswersDiscarded) for event in events)


async def test_where_the_session_is_over_a_redelivery_of_what_is_handled_is_adopted(server: FakeServer) -> None:
    handled: list[int] = []

    async def handle(delivery: ackstream.Delivery) -> None:
        handled.append(delivery.attempt)
        await asyncio.sleep(10)

    async with server.client() as client:
        task = asyncio.create_task(client.consume("demo", "demo").run(handle))
        first = await server.next_stream()
        first.accept()
        first.deliver(1)
        await asyncio.sleep(5)
        first.break_off()
        second = await server.next_stream()
        second.accept(resumes=False)
        second.deliver(1, attempt=2)
        await asyncio.sleep(10)
        acked = second.acked
        task.cancel()

    assert (handled, acked) == ([1], [1]), "no second call, and one answer"


async def test_stop_waits_for_no_delivery_of_a_session_that_is_over(server: FakeServer) -> None:
    loop = asyncio.get_running_loop()
    async with server.client() as client:
        consumer, first = await consuming(server, client)
        first.deliver(1)
        await anext(consumer)
        first.break_off()
        second = await server.next_stream()
        second.accept(resumes=False)
        await everything_that_needs_no_time()
        began = loop.time()
        await consumer.stop(grace=5)
        assert loop.time() - began < 0.1


async def test_a_stream_that_breaks_while_the_client_leaves_is_not_opened_again(server: FakeServer) -> None:
    async with server.client() as client:
        consumer, stream = await consuming(server, client)
        stream.ends_on_half_close = False
        left = consumer.stop()
        await everything_that_needs_no_time()
        stream.break_off()
        await left
        await asyncio.sleep(60)
    assert len(server.streams) == 1


async def test_ok_is_the_end_also_when_an_answer_could_not_be_written(server: FakeServer) -> None:
    async with server.client() as client:
        consumer, stream = await consuming(server, client)
        stream.deliver(1)
        delivery = await anext(consumer)
        stream.writable = False
        delivery.ack()
        await everything_that_needs_no_time()
        stream.end()
        with pytest.raises(StopAsyncIteration):
            await anext(consumer)
        await asyncio.sleep(60)
    assert len(server.streams) == 1


async def test_a_stream_that_lasted_starts_the_backoff_over(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random.Random, "uniform", lambda _, low, high: max(low, high))
    async with server.client() as client:
        _kept = aiter(client.consume("demo", "demo"))
        for lasts in (0, 0, 0, 10, 0):
            stream = await server.next_stream()
            stream.accept()
            await asyncio.sleep(lasts + 0.001)
            stream.break_off()
        await server.next_stream()
    waits = [later - earlier for earlier, later in itertools.pairwise(server.opened_at)]
    assert waits == pytest.approx([0.1, 0.2, 0.4, 10.1, 0.2], abs=0.02)


async def test_what_nobody_has_taken_is_forgotten_when_the_session_is_over(server: FakeServer) -> None:
    async with server.client() as client:
        consumer, first = await consuming(server, client)
        first.deliver(1, 2, 3)
        await everything_that_needs_no_time()
        first.break_off()
        second = await server.next_stream()
        second.accept(resumes=False)
        second.deliver(2, attempt=2)
        delivery = await anext(consumer)
    assert (delivery.id, delivery.attempt) == (2, 2)


async def test_answers_to_an_epoch_that_is_over_are_discarded_and_counted(server: FakeServer) -> None:
    events: list[ackstream.StreamEvent] = []
    async with server.client() as client:
        consumer, first = await consuming(server, client, events)
        first.deliver(*range(1, 7))
        held = [await anext(consumer) for _ in range(6)]
        first.break_off()
        await everything_that_needs_no_time()
        held[0].ack()
        held[1].ack()
        second = await server.next_stream()
        second.accept(epoch=2)
        second.deliver(*range(1, 7))
        strangers = [await anext(consumer) for _ in range(6)]
        held[2].ack()
        held[3].nack()
        held[4].extend()
        held[5].leave()
        await everything_that_needs_no_time()
        assert len(second.sent) == 1, "the ids are those of other messages"
        strangers[0].ack()
        await everything_that_needs_no_time()
    assert second.acked == [1]
    assert sum(event.count for event in events if isinstance(event, ackstream.AnswersDiscarded)) == 5
    assert [delivery.epoch for delivery in (held[0], strangers[0])] == [1, 2]


async def test_a_handler_that_outlives_its_stream_still_acks(server: FakeServer) -> None:
    async def handle(_: ackstream.Delivery) -> None:
        await asyncio.sleep(10)

    async with server.client() as client:
        task = asyncio.create_task(client.consume("demo", "demo").run(handle))
        first = await server.next_stream()
        first.accept()
        first.deliver(1)
        await asyncio.sleep(5)
        first.break_off()
        second = await server.next_stream()
        second.accept()
        await asyncio.sleep(10)
        second.end()
        await task
    assert second.acked == [1]


async def test_events_say_what_happens_to_the_stream(server: FakeServer) -> None:
    events: list[ackstream.StreamEvent] = []
    async with server.client() as client:
        _, first = await consuming(server, client, events)
        first.break_off()
        second = await server.next_stream()
        second.accept(epoch=2)
        await everything_that_needs_no_time()
    opened, lost, reopened = events
    assert opened == ackstream.StreamOpened("fake:50051", 1, "demo", "demo", 2.0, 3, "0.1.0", reconnected=False)
    assert isinstance(lost, ackstream.StreamLost)
    assert lost.reason == "UNAVAILABLE: gone"
    assert 0 <= lost.retry_in <= 0.1
    assert isinstance(reopened, ackstream.StreamOpened)
    assert reopened.reconnected
    assert reopened.epoch == 2


async def test_a_listener_that_raises_changes_nothing(server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    def listen(_: ackstream.StreamEvent) -> None:
        raise RuntimeError("deaf")

    async with server.client() as client:
        consumer = client.consume("demo", "demo", on_event=listen)
        aiter(consumer)
        stream = await server.next_stream()
        stream.accept()
        stream.deliver(1)
        assert (await anext(consumer)).id == 1
    assert "deaf" in caplog.text
