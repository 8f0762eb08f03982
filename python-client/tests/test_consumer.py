"""What becomes of a delivery: `run`, `async for`, and `stop`, in virtual time and without a server."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

import ackstream
from ackstream._inbox import Inbox
from tests.fake_server import ACCEPTED_AT, FakeServer, FakeStream
from tests.virtual_time import everything_that_needs_no_time


class Running:
    """A consumer in `run`, and its stream."""

    def __init__(self, consumer: ackstream.Consumer, task: asyncio.Task[None], stream: FakeStream) -> None:
        self.consumer = consumer
        self.task = task
        self.stream = stream


@asynccontextmanager
async def running(server: FakeServer, handler: ackstream.Handler, concurrency: int = 1) -> AsyncIterator[Running]:
    async with server.client() as client:
        consumer = client.consume("demo", "demo", max_outstanding_messages=2 * concurrency)  # it has no room to grow
        task = asyncio.create_task(consumer.run(handler, concurrency=concurrency))
        stream = await server.next_stream()
        stream.accept()
        yield Running(consumer, task, stream)
        task.cancel()
        await asyncio.wait([task])


async def test_the_next_delivery_can_be_asked_for_at_once(server: FakeServer) -> None:
    async with server.client() as client:
        consumer = client.consume("demo", "demo")
        first = asyncio.create_task(anext(consumer))
        stream = await server.next_stream()
        stream.accept()
        stream.deliver(1)
        assert (await first).id == 1
        stream.end()


async def test_the_first_frame_asks_for_the_subscription_a_window_and_batches(server: FakeServer) -> None:
    async with server.client() as client:
        _kept = aiter(
            client.consume(
                "news",
                "readers",
                concurrency=4,
                max_outstanding_messages=7,
                max_outstanding_bytes=8,
                max_batch_messages=9,
            )
        )
        stream = await server.next_stream()
    asked = stream.sent[0][1].open
    assert (asked.topic, asked.subscription, asked.client_id) == ("news", "readers", "test")
    assert (asked.max_outstanding_messages, asked.max_outstanding_bytes, asked.max_batch_messages) == (7, 8, 9)
    assert (asked.max_concurrent_handlers, asked.HasField("resume"), asked.resume.session) == (4, True, b"")


async def test_a_delivery_carries_what_was_published(server: FakeServer) -> None:
    received: list[ackstream.Delivery] = []

    async def handle(delivery: ackstream.Delivery) -> None:
        received.append(delivery)

    async with running(server, handle) as it:
        it.stream.deliver(7, attempt=2)
        await everything_that_needs_no_time()
    [delivery] = received
    assert (delivery.id, delivery.attempt, delivery.payload) == (7, 2, b"Message 7")
    assert (delivery.topic, delivery.subscription, delivery.epoch) == ("demo", "demo", 1)
    assert delivery.attributes == {"kind": "test"}
    assert delivery.published_at == ACCEPTED_AT


async def test_a_handler_that_returns_acks_in_one_frame_for_the_whole_batch(server: FakeServer) -> None:
    async def handle(_: ackstream.Delivery) -> None:
        pass

    async with running(server, handle, concurrency=3) as it:
        it.stream.deliver(1, 2, 3)
        await everything_that_needs_no_time()
        acks = [frame.ack_batch for _, frame in it.stream.sent if frame.HasField("ack_batch")]
    assert [list(batch.ack_ids) for batch in acks] == [[1, 2, 3]]


async def test_a_handler_that_raises_nacks_and_logs_its_traceback(
    server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def handle(_: ackstream.Delivery) -> None:
        raise RuntimeError("no ink left")

    async with running(server, handle) as it:
        it.stream.deliver(4, attempt=2)
        await everything_that_needs_no_time()
    [nack] = it.stream.nacks
    assert (nack.ack_id, nack.delivery_attempt, nack.drop) == (4, 2, False)
    assert not nack.HasField("delay")
    assert it.stream.acked == []
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info
    assert "no ink left" in caplog.text


async def test_a_handler_that_raises_reject_drops_the_message(server: FakeServer) -> None:
    async def handle(_: ackstream.Delivery) -> None:
        raise ackstream.Reject

    async with running(server, handle) as it:
        it.stream.deliver(4)
        await everything_that_needs_no_time()
    assert [(nack.ack_id, nack.drop) for nack in it.stream.nacks] == [(4, True)]


async def test_an_answer_of_the_handler_itself_comes_first(server: FakeServer) -> None:
    async def handle(delivery: ackstream.Delivery) -> None:
        delivery.nack(delay=0)

    async with running(server, handle) as it:
        it.stream.deliver(4)
        await everything_that_needs_no_time()
    assert it.stream.acked == []
    [nack] = it.stream.nacks
    assert nack.HasField("delay")
    assert nack.delay.ToSeconds() == 0


async def test_a_nack_delay_is_cut_at_24_hours_and_never_negative(server: FakeServer) -> None:
    async def handle(delivery: ackstream.Delivery) -> None:
        with pytest.raises(ValueError, match="delay"):
            delivery.nack(delay=-1)
        delivery.nack(delay=100 * 3600)

    async with running(server, handle) as it:
        it.stream.deliver(4)
        await everything_that_needs_no_time()
    assert [nack.delay.ToSeconds() for nack in it.stream.nacks] == [24 * 3600]


async def test_concurrency_bounds_how_many_are_handled_at_the_same_time(server: FakeServer) -> None:
    at_once: list[int] = []
    now = 0

    async def handle(_: ackstream.Delivery) -> None:
        nonlocal now
        now += 1
        at_once.append(now)
        await asyncio.sleep(0.1)
        now -= 1

    async with running(server, handle, concurrency=3) as it:
        it.stream.deliver(*range(1, 11))
        await asyncio.sleep(0.5)
    assert max(at_once) == 3
    assert sorted(it.stream.acked) == list(range(1, 11))


async def test_a_cancelled_handlers_delivery_is_left_to_its_deadline(server: FakeServer) -> None:
    async def handle(delivery: ackstream.Delivery) -> None:
        if delivery.id == 1:
            raise asyncio.CancelledError

    async with running(server, handle) as it:
        it.stream.deliver(1, 2)
        await asyncio.sleep(3)
    assert it.stream.acked == [2]
    assert it.stream.nacks == []
    assert it.stream.extensions == []


@pytest.mark.real_time
async def test_a_plain_function_runs_in_a_thread_and_may_answer_there(server: FakeServer) -> None:
    names: list[str] = []

    def handle(delivery: ackstream.Delivery) -> None:
        names.append(threading.current_thread().name)
        if delivery.id == 1:
            delivery.ack()
        if delivery.id == 2:
            delivery.nack(drop=True)
        if delivery.id == 3:
            raise ackstream.Reject

    asyncio.get_running_loop().set_debug(True)  # it raises where a thread calls what only the loop's own may
    async with running(server, handle, concurrency=2) as it:
        it.stream.deliver(1, 2, 3)
        async with asyncio.timeout(5):
            while len(it.stream.acked) + len(it.stream.nacks) < 3:
                await asyncio.sleep(0.001)
    assert it.stream.acked == [1]
    assert sorted(nack.ack_id for nack in it.stream.nacks) == [2, 3]
    assert all(name.startswith("ackstream-handler") for name in names)


async def test_run_returns_when_the_server_ends_the_stream_with_ok(server: FakeServer) -> None:
    async def handle(_: ackstream.Delivery) -> None:
        pass

    async with running(server, handle) as it:
        it.stream.end()
        await it.task
        assert it.consumer.ended


async def test_a_consumer_is_used_once(server: FakeServer) -> None:
    async def handle(_: ackstream.Delivery) -> None:
        pass

    async with running(server, handle) as it:
        with pytest.raises(RuntimeError, match="used once"):
            await it.consumer.run(handle)
        with pytest.raises(RuntimeError, match="used once"):
            aiter(it.consumer)


async def test_stop_takes_nothing_new_finishes_settles_and_leaves_cleanly(server: FakeServer) -> None:
    started: list[int] = []

    async def handle(delivery: ackstream.Delivery) -> None:
        started.append(delivery.id)
        await asyncio.sleep(1)

    async with running(server, handle) as it:
        it.stream.deliver(1, 2, 3)
        await everything_that_needs_no_time()
        left = it.consumer.stop(grace=5)
        it.stream.deliver(4, 5)
        await left
        await it.task
    assert started == [1]
    assert it.stream.acked == [1]
    assert it.stream.half_closed
    assert it.stream.nacks == []


async def test_stop_cancels_handlers_when_the_grace_is_over(server: FakeServer) -> None:
    async def handle(_: ackstream.Delivery) -> None:
        await asyncio.sleep(60)

    loop = asyncio.get_running_loop()
    async with running(server, handle) as it:
        it.stream.deliver(1)
        await everything_that_needs_no_time()
        began = loop.time()
        await it.consumer.stop(grace=5)
        assert loop.time() - began == pytest.approx(5)
        await it.task
    assert it.stream.acked == []
    assert it.stream.half_closed


async def test_stop_may_be_called_from_the_handler(server: FakeServer) -> None:
    async def handle(_: ackstream.Delivery) -> None:
        it.consumer.stop()

    async with running(server, handle) as it:
        it.stream.deliver(1)
        await it.task
    assert it.stream.acked == [1]
    assert it.stream.half_closed


async def test_stop_without_a_server_returns_at_once(server: FakeServer) -> None:
    async with server.client() as client:
        consumer = client.consume("demo", "demo")
        aiter(consumer)
        await server.next_stream()
        began = asyncio.get_running_loop().time()
        await consumer.stop()
        assert asyncio.get_running_loop().time() - began < 0.1
        with pytest.raises(StopAsyncIteration):
            await anext(consumer)


async def test_a_consumer_that_is_stopped_before_its_first_use_connects_to_nothing(server: FakeServer) -> None:
    async with server.client() as client:
        running_never, iterated_never = client.consume("demo", "demo"), client.consume("demo", "demo")
        await running_never.stop()
        await iterated_never.stop()
        await running_never.run(lambda _: None)
        assert [delivery async for delivery in iterated_never] == []
        assert running_never.ended
    assert server.streams == []


async def test_a_server_that_does_not_end_the_stream_holds_nobody_up(server: FakeServer) -> None:
    async def handle(_: ackstream.Delivery) -> None:
        pass

    loop = asyncio.get_running_loop()
    async with running(server, handle) as it:
        await everything_that_needs_no_time()
        it.stream.ends_on_half_close = False
        began = loop.time()
        await it.consumer.stop()
        assert loop.time() - began == pytest.approx(5, abs=0.1)


async def test_cancelling_run_cancels_its_handlers_and_still_leaves_cleanly(server: FakeServer) -> None:
    cancelled: list[int] = []

    async def handle(delivery: ackstream.Delivery) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(delivery.id)
            raise

    async with running(server, handle, concurrency=2) as it:
        it.stream.deliver(1, 2)
        await everything_that_needs_no_time()
        it.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await it.task
        assert sorted(cancelled) == [1, 2]
        assert it.stream.half_closed


async def test_async_for_gives_one_at_a_time_and_async_with_answers_it(server: FakeServer) -> None:
    seen: list[int] = []
    async with server.client() as client:
        consumer = client.consume("demo", "demo", max_outstanding_messages=2)
        aiter(consumer)
        stream = await server.next_stream()
        stream.accept()
        stream.deliver(1, 2, 3)
        async with await anext(consumer) as delivery:
            seen.append(delivery.id)
        with pytest.raises(KeyError):
            async with await anext(consumer):
                raise KeyError
        async with await anext(consumer):
            raise ackstream.Reject
        await everything_that_needs_no_time()
        stream.end()
        with pytest.raises(StopAsyncIteration):
            await anext(consumer)
    assert seen == [1]
    assert stream.acked == [1]
    assert [(nack.ack_id, nack.drop) for nack in stream.nacks] == [(2, False), (3, True)]


async def test_stop_waits_for_what_async_for_handed_out(server: FakeServer) -> None:
    async with server.client() as client:
        consumer = client.consume("demo", "demo")
        aiter(consumer)
        stream = await server.next_stream()
        stream.accept()
        stream.deliver(1, 2)
        delivery = await anext(consumer)
        left = consumer.stop(grace=5)
        await asyncio.sleep(2)
        left_early = stream.half_closed
        delivery.ack()
        await left
    assert not left_early
    assert stream.half_closed
    assert stream.acked == [1]


async def test_leaving_the_client_lets_go_of_what_is_held(server: FakeServer) -> None:
    began = asyncio.get_running_loop().time()
    async with server.client() as client:
        consumer = client.consume("demo", "demo")
        aiter(consumer)
        stream = await server.next_stream()
        stream.accept()
        stream.deliver(1, 2)
        await anext(consumer)
    assert stream.half_closed
    assert stream.closed
    assert consumer.ended
    assert asyncio.get_running_loop().time() - began < 0.1


async def test_a_server_that_names_no_ack_deadline_does_not_stall_the_client(server: FakeServer) -> None:
    async with server.client() as client:
        consumer = client.consume("demo", "demo")
        aiter(consumer)
        stream = await server.next_stream()
        stream.accept(ack_deadline=0)
        stream.deliver(1)
        assert (await anext(consumer)).id == 1
        await asyncio.sleep(0.1)


async def test_stop_waits_for_no_delivery_whose_deadline_has_passed(server: FakeServer) -> None:
    loop = asyncio.get_running_loop()
    async with server.client() as client:
        consumer = client.consume("demo", "demo", max_extension=0)
        aiter(consumer)
        stream = await server.next_stream()
        stream.accept()
        stream.deliver(1)
        await anext(consumer)
        await asyncio.sleep(5)
        began = loop.time()
        await consumer.stop(grace=5)
        assert loop.time() - began < 0.1


async def test_what_is_answered_while_the_last_frames_are_written_leaves_too(server: FakeServer) -> None:
    async with server.client() as client:
        consumer = client.consume("demo", "demo")
        aiter(consumer)
        stream = await server.next_stream()
        stream.accept()
        stream.deliver(1, 2)
        first, second = [await anext(consumer) for _ in range(2)]
        stream.reads = False
        first.ack()
        await everything_that_needs_no_time()
        second.ack()
        left = consumer.stop()
        await everything_that_needs_no_time()
        stream.reads = True
        await left
    assert stream.acked == [1, 2]


async def test_a_loop_without_a_single_await_still_lets_its_answers_leave(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ackstream._consumer.MAX_TURN", -1)  # every turn is too long
    async with server.client() as client:
        consumer = client.consume("demo", "demo", max_outstanding_messages=2)
        aiter(consumer)
        stream = await server.next_stream()
        stream.accept()
        stream.deliver(*range(1, 11))
        async for delivery in consumer:
            delivery.ack()
            if delivery.id == 10:
                break
        assert len(stream.acked) >= 8


async def test_a_taker_that_is_cancelled_passes_its_turn_on() -> None:
    inbox = Inbox()
    first, second = asyncio.create_task(inbox.take()), asyncio.create_task(inbox.take())
    await everything_that_needs_no_time()
    delivery = object.__new__(ackstream.Delivery)
    delivery._answered = False
    delivery._lapsed = False
    inbox.put([delivery])
    first.cancel()
    assert await second is delivery
    assert first.cancelled()


async def test_only_the_first_answer_counts(server: FakeServer) -> None:
    async with server.client() as client:
        consumer = client.consume("demo", "demo")
        aiter(consumer)
        stream = await server.next_stream()
        stream.accept()
        stream.deliver(1)
        delivery = await anext(consumer)
        delivery.ack()
        delivery.ack()
        delivery.nack()
        delivery.extend()
        delivery.leave()
        await everything_that_needs_no_time()
    assert len(stream.sent) == 2
    assert stream.acked == [1]


async def test_a_redelivery_of_an_attempt_that_nobody_has_seen_goes_to_the_end(server: FakeServer) -> None:
    async with server.client() as client:
        consumer = client.consume("demo", "demo", max_extension=0)
        aiter(consumer)
        stream = await server.next_stream()
        stream.accept()
        stream.deliver(1, 2)
        stream.deliver(1, attempt=2)
        await everything_that_needs_no_time()
        order = [(await anext(consumer)) for _ in range(2)]
    assert [(delivery.id, delivery.attempt) for delivery in order] == [(2, 1), (1, 2)]


async def test_an_ack_of_an_earlier_attempt_settles_the_later_one_in_the_queue(server: FakeServer) -> None:
    async with server.client() as client:
        consumer = client.consume("demo", "demo", max_extension=0)
        aiter(consumer)
        stream = await server.next_stream()
        stream.accept()
        stream.deliver(1)
        first = await anext(consumer)
        stream.deliver(1, attempt=2)
        stream.deliver(2)
        await everything_that_needs_no_time()
        first.ack()
        following = await anext(consumer)
        await everything_that_needs_no_time()
    assert following.id == 2
    assert stream.acked == [1]


async def test_a_redelivery_of_what_the_application_has_is_adopted(server: FakeServer) -> None:
    handled: list[tuple[int, int]] = []

    async def handle(delivery: ackstream.Delivery) -> None:
        handled.append((delivery.id, delivery.attempt))
        await asyncio.sleep(1)
        delivery.nack()

    async with running(server, handle) as it:
        it.stream.deliver(1)
        await everything_that_needs_no_time()
        it.stream.deliver(1, attempt=2, failures=1)
        await asyncio.sleep(5)

    assert handled == [(1, 1)], "it is not handled twice"
    assert [nack.delivery_attempt for nack in it.stream.nacks] == [2], "its answer is that of the new attempt"


async def test_what_was_left_on_purpose_is_not_adopted(server: FakeServer) -> None:
    async with server.client() as client:
        consumer = client.consume("demo", "demo")
        aiter(consumer)
        stream = await server.next_stream()
        stream.accept()
        stream.deliver(1)
        first = await anext(consumer)
        first.leave()
        stream.deliver(1, attempt=2, failures=1)

        again = await anext(consumer)

    assert (again.attempt, again.failures, again.retries_left) == (2, 1, 2)


async def test_what_the_application_forgot_without_an_answer_comes_again(server: FakeServer) -> None:
    async with server.client() as client:
        consumer = client.consume("demo", "demo", max_extension=0)
        aiter(consumer)
        stream = await server.next_stream()
        stream.accept()
        stream.deliver(1)
        await anext(consumer)
        await asyncio.sleep(3)
        stream.deliver(1, attempt=2, failures=1)

        assert (await anext(consumer)).attempt == 2


async def test_an_expired_delivery_is_forgotten_and_the_server_gets_a_sign_of_life(server: FakeServer) -> None:
    async with server.client() as client:
        consumer = client.consume("demo", "demo", max_extension=0)
        aiter(consumer)
        stream = await server.next_stream()
        stream.accept()
        stream.deliver(1)
        delivery = await anext(consumer)
        await asyncio.sleep(3)

        assert consumer.outstanding == 0
    assert [frame for _, frame in stream.sent if frame.WhichOneof("kind") is None] != []
    del delivery


async def test_no_handler_begins_while_more_answers_than_the_concurrency_are_unwritten(server: FakeServer) -> None:
    handled: list[int] = []

    async def handle(delivery: ackstream.Delivery) -> None:
        handled.append(delivery.id)

    async with running(server, handle) as it:
        await everything_that_needs_no_time()
        it.stream.reads = False
        it.stream.deliver(*range(1, 11))
        await asyncio.sleep(1)
        before = list(handled)
        it.stream.reads = True
        await asyncio.sleep(1)

    assert before == [1, 2], "one being written, and one that waits for it"
    assert handled == list(range(1, 11))


async def test_a_release_costs_nothing_and_needs_a_server_that_takes_it(server: FakeServer) -> None:
    async with server.client() as client:
        consumer = client.consume("demo", "demo", max_outstanding_messages=2)
        aiter(consumer)
        stream = await server.next_stream()
        stream.accept()
        stream.deliver(1)
        (await anext(consumer)).release()
        await everything_that_needs_no_time()
        old = client.consume("demo", "demo", max_outstanding_messages=2)
        aiter(old)
        older = await server.next_stream()
        older.accept(features=())
        older.deliver(1)
        delivery = await anext(old)
        with pytest.raises(ackstream.UnsupportedByServer, match="cannot release"):
            delivery.release()

    assert stream.released == [1]


async def test_the_window_follows_the_pace_of_the_handlers(server: FakeServer) -> None:
    async def handle(_: ackstream.Delivery) -> None:
        await asyncio.sleep(0.1)

    async with server.client() as client:
        task = asyncio.create_task(client.consume("demo", "demo").run(handle))
        first = await server.next_stream()
        first.accept()
        first.deliver(1, 2)
        await asyncio.sleep(0.25)
        first.deliver(3, 4)
        second = await server.next_stream()
        second.accept()
        await everything_that_needs_no_time()
        task.cancel()

    windows = [stream.sent[0][1].open.max_outstanding_messages for stream in (first, second)]
    assert windows == [2, 100], "what is begun within 10 s"
    assert list(second.resumed.held)[:1] == [4], "what it holds stays held"


async def test_an_application_that_takes_all_before_it_answers_gets_more(server: FakeServer) -> None:
    async with server.client() as client:
        consumer = client.consume("demo", "demo")
        aiter(consumer)
        first = await server.next_stream()
        first.accept()
        first.deliver(1, 2)
        held = [await anext(consumer), await anext(consumer)]
        more = asyncio.create_task(anext(consumer))
        second = await server.next_stream()
        second.accept()
        second.deliver(3)
        held.append(await more)

    asked = second.sent[0][1].open
    assert (asked.max_outstanding_messages, asked.max_concurrent_handlers) == (8, 2)
    assert [delivery.id for delivery in held] == [1, 2, 3]


async def test_a_server_without_sessions_is_asked_for_the_whole_window_at_once(server: FakeServer) -> None:
    async with server.client() as client:
        consumer = client.consume("demo", "demo")
        aiter(consumer)
        first = await server.next_stream()
        first.accept(features=())
        second = await server.next_stream()

    assert first.half_closed
    assert second.sent[0][1].open.max_outstanding_messages == 1_000
