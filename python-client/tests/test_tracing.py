"""The library's spans, in virtual time and without a server. Span times are the real clock's."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import pytest
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace import SpanKind, StatusCode, TraceFlags, get_current_span

import ackstream
from ackstream import _tracing
from ackstream._proto import ackstream_pb2 as pb
from tests.fake_server import FakeServer, FakeStream, delivery
from tests.spans import PUSH, SAMPLED, TRACE, UNSAMPLED, Recorder, context_of, error_of, parent_of
from tests.virtual_time import everything_that_needs_no_time

Answer = Callable[[ackstream.Delivery], object]

COMMON = {
    "messaging.system": "ackstream",
    "messaging.destination.name": "demo",
    "messaging.destination.subscription.name": "demo",
    "messaging.client.id": "test",
    "messaging.message.id": "7",
    "messaging.ackstream.delivery_attempt": 2,
}


def fail(_: ackstream.Delivery) -> None:
    raise RuntimeError("no ink left")


def reject(_: ackstream.Delivery) -> None:
    raise ackstream.Reject


def cancel(_: ackstream.Delivery) -> None:
    raise asyncio.CancelledError


FAILURES: list[tuple[Answer, str, list[str]]] = [
    (ackstream.Delivery.nack, "nacked", ["nack"]),
    (lambda delivery: delivery.nack(drop=True), "rejected", ["nack"]),
    (reject, "rejected", ["nack"]),
    (fail, "RuntimeError", ["nack"]),
    (ackstream.Delivery.leave, "left", []),
    (cancel, "asyncio.exceptions.CancelledError", []),
]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@asynccontextmanager
async def running(server: FakeServer, recorder: Recorder, answer: Answer) -> AsyncIterator[FakeStream]:
    async def handle(delivery: ackstream.Delivery) -> None:
        await asyncio.sleep(0)
        answer(delivery)

    async with server.client(tracer_provider=recorder.provider) as client:
        consumer = client.consume("demo", "demo", max_outstanding_messages=2)
        task = asyncio.create_task(consumer.run(handle, concurrency=2))
        stream = await server.next_stream()
        stream.accept()
        yield stream
        await everything_that_needs_no_time()
        task.cancel()
        await asyncio.wait([task])


@asynccontextmanager
async def iterating(
    server: FakeServer, recorder: Recorder, max_extension: float = 600
) -> AsyncIterator[tuple[ackstream.Consumer, FakeStream]]:
    async with server.client(tracer_provider=recorder.provider) as client:
        consumer = client.consume("demo", "demo", max_extension=max_extension)
        aiter(consumer)
        stream = await server.next_stream()
        stream.accept()
        yield consumer, stream


def acks(_: ackstream.Delivery) -> None:
    pass


# A consumer's spans


async def test_process_is_a_child_of_the_attempt_and_ack_a_child_of_process(
    server: FakeServer, recorder: Recorder
) -> None:
    async with running(server, recorder, acks) as stream:
        stream.deliver(7, attempt=2, trace_context=SAMPLED)
    process, ack = recorder.only("process demo"), recorder.only("ack")
    assert parent_of(process) == (TRACE, PUSH)
    assert parent_of(ack) == (TRACE, context_of(process).span_id)
    assert (process.kind, ack.kind) == (SpanKind.CONSUMER, SpanKind.CLIENT)
    assert process.attributes == COMMON | {
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
    }
    assert ack.attributes == COMMON | {"messaging.operation.name": "ack", "messaging.operation.type": "settle"}
    assert (process.status.status_code, ack.status.status_code) == (StatusCode.UNSET, StatusCode.UNSET)
    assert not process.events
    assert not ack.events
    assert process.start_time is not None
    assert ack.start_time is not None
    assert ack.end_time is not None
    assert process.start_time <= ack.start_time <= ack.end_time


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("context", [SAMPLED, UNSAMPLED])
async def test_an_attempt_that_is_not_acked_is_an_error_and_recorded_whatever_the_sampling(
    server: FakeServer, recorder: Recorder, context: str, failure: tuple[Answer, str, list[str]]
) -> None:
    answer, error, children = failure
    before = time.time_ns()
    async with running(server, recorder, answer) as stream:
        stream.deliver(7, trace_context=context)
    process = recorder.only("process demo")
    assert error_of(process) == error
    assert parent_of(process) == (TRACE, PUSH)
    assert [span.name for span in recorder.spans if span is not process] == children
    assert [parent_of(span) for span in recorder.spans if span is not process] == [
        (TRACE, context_of(process).span_id) for _ in children
    ]
    assert process.start_time is not None
    assert process.end_time is not None
    assert before <= process.start_time <= process.end_time <= time.time_ns()


async def test_an_unsampled_attempt_that_failed_has_the_time_at_which_it_was_handed_over(
    server: FakeServer, recorder: Recorder
) -> None:
    async with iterating(server, recorder) as (consumer, stream):
        stream.deliver(7, trace_context=UNSAMPLED)
        delivery = await anext(consumer)
        handed_over_by = time.time_ns()
        delivery.nack()
    process = recorder.only("process demo")
    assert process.start_time is not None
    assert process.start_time <= handed_over_by


async def test_an_exceptions_text_is_the_status_cut_to_a_bound(server: FakeServer, recorder: Recorder) -> None:
    def handle(_: ackstream.Delivery) -> None:
        raise RuntimeError("x" * 10_000)

    async with running(server, recorder, handle) as stream:
        stream.deliver(7, trace_context=SAMPLED)
    assert recorder.only("process demo").status.description == "x" * 256
    assert not recorder.only("process demo").events


async def test_an_unsampled_attempt_that_is_acked_in_time_records_nothing(
    server: FakeServer, recorder: Recorder
) -> None:
    async with running(server, recorder, acks) as stream:
        stream.deliver(*range(1, 101), trace_context=UNSAMPLED)
    assert len(stream.acked) == 100
    assert recorder.started == 0


async def test_what_the_server_did_not_sample_no_sampler_is_asked_about(server: FakeServer) -> None:
    recorder = Recorder(ALWAYS_ON)
    async with running(server, recorder, acks) as stream:
        stream.deliver(7, trace_context=UNSAMPLED)
    assert recorder.started == 0


@pytest.mark.parametrize("context", [SAMPLED, UNSAMPLED])
async def test_an_ack_after_the_deadline_is_an_error_and_recorded(
    server: FakeServer, recorder: Recorder, context: str
) -> None:
    async with iterating(server, recorder, max_extension=0) as (consumer, stream):
        stream.deliver(7, trace_context=context)
        async with await anext(consumer):
            await asyncio.sleep(2.1)
        await everything_that_needs_no_time()
    assert stream.acked == [7]
    assert error_of(recorder.only("process demo")) == "expired"
    assert parent_of(recorder.only("ack")) == (TRACE, context_of(recorder.only("process demo")).span_id)
    assert error_of(recorder.only("ack")) is None


async def test_an_ack_is_late_also_before_a_review_has_found_the_deadline_passed(
    server: FakeServer, recorder: Recorder
) -> None:
    async with iterating(server, recorder, max_extension=0) as (consumer, stream):
        stream.deliver(7, trace_context=UNSAMPLED)
        delivery = await anext(consumer)
        await asyncio.sleep(0.9)
        stream.deliver(8, trace_context=UNSAMPLED)  # whose review at 1.9 s puts the next one off to 2.1 s
        await asyncio.sleep(1.15)
        assert consumer.outstanding == 2
        delivery.ack()
        assert error_of(recorder.only("process demo")) == "expired"


async def test_without_any_context_process_is_a_root_whatever_the_application_has_around_it(
    server: FakeServer, recorder: Recorder
) -> None:
    async with iterating(server, recorder) as (consumer, stream):
        stream.deliver(7)
        with recorder.current("application"):
            (await anext(consumer)).ack()
    assert parent_of(recorder.only("process demo")) is None


async def test_an_ack_just_before_the_deadline_is_no_error(server: FakeServer, recorder: Recorder) -> None:
    async with iterating(server, recorder, max_extension=0) as (consumer, stream):
        stream.deliver(7, trace_context=UNSAMPLED)
        async with await anext(consumer):
            await asyncio.sleep(1.9)
    assert recorder.spans == []


async def test_an_attempt_whose_stream_breaks_is_released_and_its_ack_still_goes_out(
    server: FakeServer, recorder: Recorder
) -> None:
    async with iterating(server, recorder) as (consumer, first):
        first.deliver(7, trace_context=UNSAMPLED)
        async with await anext(consumer):
            first.break_off()
            second = await server.next_stream()
            second.accept(resumes=False)
            await everything_that_needs_no_time()
        await everything_that_needs_no_time()
    assert second.acked == [7]
    assert error_of(recorder.only("process demo")) == "released"
    assert error_of(recorder.only("ack")) is None


async def test_a_delivery_without_an_answer_ends_with_its_deadline(server: FakeServer, recorder: Recorder) -> None:
    async with iterating(server, recorder, max_extension=0) as (consumer, stream):
        stream.deliver(7, trace_context=UNSAMPLED)
        await anext(consumer)
        await asyncio.sleep(3)
        assert error_of(recorder.only("process demo")) == "expired"


async def test_an_adopted_redelivery_goes_on_in_the_span_of_the_attempt_that_is_handled(
    server: FakeServer, recorder: Recorder
) -> None:
    async with iterating(server, recorder) as (consumer, stream):
        stream.deliver(7, trace_context=SAMPLED)
        async with await anext(consumer):
            stream.deliver(7, attempt=2, trace_context=SAMPLED)
            await everything_that_needs_no_time()
    assert error_of(recorder.only("process demo")) is None
    assert recorder.started == len(recorder.spans), "every span has ended"


@pytest.mark.parametrize("how", ["break", "leave", "end"])
async def test_a_delivery_without_an_answer_ends_with_its_stream(
    server: FakeServer, recorder: Recorder, how: str
) -> None:
    async with iterating(server, recorder) as (consumer, stream):
        stream.deliver(7, trace_context=UNSAMPLED)
        await anext(consumer)
        if how == "break":
            stream.break_off()
        if how == "end":
            stream.end()
        await everything_that_needs_no_time()
    assert error_of(recorder.only("process demo")) == "released"


async def test_an_answer_to_another_epoch_is_discarded_and_says_so(server: FakeServer, recorder: Recorder) -> None:
    async with iterating(server, recorder) as (consumer, first):
        first.deliver(7, 8, trace_context=SAMPLED)
        async with await anext(consumer):
            waiting = await anext(consumer)
            first.break_off()
            await everything_that_needs_no_time()
            waiting.ack()  # while no stream is open: nobody knows yet
            second = await server.next_stream()
            second.accept(epoch=2)
            await everything_that_needs_no_time()
    assert second.acked == []
    assert [error_of(span) for span in recorder.named("process demo")] == [None, "released"]
    assert [error_of(span) for span in recorder.named("ack")] == ["discarded"]


async def test_an_acks_span_lasts_until_a_stream_takes_it(server: FakeServer, recorder: Recorder) -> None:
    async with iterating(server, recorder) as (consumer, first):
        first.deliver(7, trace_context=SAMPLED)
        delivery = await anext(consumer)
        first.break_off()
        await everything_that_needs_no_time()
        delivery.ack()
        assert recorder.named("ack") == []
        second = await server.next_stream()
        second.accept()
        await everything_that_needs_no_time()
        assert error_of(recorder.only("ack")) is None


async def test_a_nack_whose_stream_breaks_before_it_leaves_is_released(server: FakeServer, recorder: Recorder) -> None:
    async with iterating(server, recorder) as (consumer, first):
        first.deliver(7, 8, trace_context=SAMPLED)
        one, two = [await anext(consumer) for _ in range(2)]
        first.reads = False
        one.ack()
        await everything_that_needs_no_time()
        two.nack()
        first.break_off()
        (await server.next_stream()).accept(resumes=False)
        await everything_that_needs_no_time()
    assert error_of(recorder.only("nack")) == "released"


async def test_a_handler_that_answers_and_goes_on_is_one_span_to_its_end(
    server: FakeServer, recorder: Recorder
) -> None:
    still_open: list[int] = []

    async def handle(delivery: ackstream.Delivery) -> None:
        delivery.ack()
        await asyncio.sleep(1)
        still_open.append(len(recorder.named("process demo")))
        with recorder.current("afterwards"):
            pass

    async with server.client(tracer_provider=recorder.provider) as client:
        task = asyncio.create_task(client.consume("demo", "demo").run(handle))
        stream = await server.next_stream()
        stream.accept()
        stream.deliver(7, trace_context=SAMPLED)
        await asyncio.sleep(2)
        stream.end()
        await task
    assert still_open == [0]
    assert parent_of(recorder.only("afterwards")) == (TRACE, context_of(recorder.only("process demo")).span_id)


# The current span


async def test_in_a_handler_the_process_span_is_the_current_one(server: FakeServer, recorder: Recorder) -> None:
    def handle(_: ackstream.Delivery) -> None:
        with recorder.current("work"):
            pass

    async with running(server, recorder, handle) as stream:
        stream.deliver(1, 2, trace_context=SAMPLED)
    processes = {context_of(span).span_id for span in recorder.named("process demo")}
    assert {span.parent.span_id for span in recorder.named("work") if span.parent} == processes
    assert not get_current_span().get_span_context().is_valid


@pytest.mark.real_time
async def test_in_a_thread_the_process_span_is_the_current_one(server: FakeServer, recorder: Recorder) -> None:
    def handle(_: ackstream.Delivery) -> None:
        with recorder.current("work"):
            pass

    async with server.client(tracer_provider=recorder.provider) as client:
        task = asyncio.create_task(client.consume("demo", "demo").run(handle))
        stream = await server.next_stream()
        stream.accept()
        stream.deliver(7, trace_context=SAMPLED)
        async with asyncio.timeout(5):
            while not stream.acked:
                await asyncio.sleep(0.001)
        stream.end()
        await task
    assert parent_of(recorder.only("work")) == (TRACE, context_of(recorder.only("process demo")).span_id)


async def test_in_async_with_the_process_span_is_the_current_one_and_after_it_no_more(
    server: FakeServer, recorder: Recorder
) -> None:
    async with iterating(server, recorder) as (consumer, stream):
        stream.deliver(7, trace_context=SAMPLED)
        with recorder.current("application") as outer:
            async with await anext(consumer):
                inner = get_current_span().get_span_context()
            assert get_current_span().get_span_context() == outer
    assert inner == context_of(recorder.only("process demo"))
    assert parent_of(recorder.only("process demo")) == (TRACE, PUSH), "the application's span is not its parent"


async def test_an_unsampled_attempt_makes_the_handlers_spans_unsampled_members_of_its_trace(
    server: FakeServer, recorder: Recorder
) -> None:
    async with iterating(server, recorder) as (consumer, stream):
        stream.deliver(7, trace_context=UNSAMPLED)
        async with await anext(consumer):
            with recorder.current("work") as work:
                pass
    assert work.trace_id == TRACE
    assert not work.trace_flags.sampled
    assert recorder.spans == []


# Contexts


@pytest.mark.parametrize(
    "hostile",
    [
        "",
        "nonsense",
        "0" * 55,
        SAMPLED + "-more",
        SAMPLED.upper(),
        SAMPLED + "\n",
        f"00-{0:032x}-{PUSH:016x}-01",
        f"00-{TRACE:032x}-{0:016x}-01",
        "00-" + "é" * 52,
        "0" * 65_536,
    ],
)
async def test_a_malformed_context_is_ignored_and_the_publishers_takes_its_place(
    server: FakeServer, recorder: Recorder, caplog: pytest.LogCaptureFixture, hostile: str
) -> None:
    message = delivery(7, trace_context=hostile)
    published = delivery(8, trace_context=hostile)
    published.attributes["traceparent"] = SAMPLED
    also_hostile = delivery(9, trace_context=hostile)
    also_hostile.attributes["traceparent"] = hostile
    async with running(server, recorder, acks) as stream:
        for each in (message, published, also_hostile):
            stream.send(pb.StreamMessage(data=each))
    assert sorted(stream.acked) == [7, 8, 9]
    parents = {(span.attributes or {})["messaging.message.id"]: span.parent for span in recorder.named("process demo")}
    assert parents["7"] is None
    assert parents["8"] is not None
    assert parents["8"].span_id == PUSH
    assert parents["9"] is None
    assert caplog.records == []


async def test_without_an_sdk_no_span_is_made(server: FakeServer) -> None:
    async with server.client() as client:
        consumer = client.consume("demo", "demo")
        aiter(consumer)
        stream = await server.next_stream()
        stream.accept()
        stream.deliver(7, trace_context=SAMPLED)
        delivery = await anext(consumer)
        delivery.ack()
        publish = asyncio.create_task(client.publish("demo", b"hello"))
        publishing = await server.next_stream()
        publishing.accept()
        await everything_that_needs_no_time()
        publishing.answer(publishing.published)
        await publish
    assert delivery._processing is None
    assert dict(publishing.published[0].attributes) == {}


async def test_the_process_has_a_provider_that_is_looked_up_when_a_stream_opens(
    server: FakeServer, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with server.client() as client:
        consumer = client.consume("demo", "demo")
        monkeypatch.setattr(_tracing, "get_tracer_provider", lambda: recorder.provider)
        aiter(consumer)
        stream = await server.next_stream()
        stream.accept()
        stream.deliver(7, trace_context=SAMPLED)
        (await anext(consumer)).ack()
    assert recorder.named("process demo")


# A publisher's spans


@asynccontextmanager
async def publishing(
    server: FakeServer, recorder: Recorder, *messages: ackstream.Message, max_message_bytes: int = 1 << 20
) -> AsyncIterator[tuple[FakeStream, asyncio.Task[list[int]]]]:
    async with server.client(tracer_provider=recorder.provider) as client:
        task = asyncio.create_task(client.publish_many("demo", messages, retry_for=0))
        stream = await server.next_stream()
        stream.accept(max_message_bytes=max_message_bytes)
        await everything_that_needs_no_time()
        yield stream, task
        await asyncio.wait([task])


async def test_send_is_a_child_of_the_current_span_and_its_context_travels_in_the_attributes(
    server: FakeServer, recorder: Recorder
) -> None:
    with recorder.current("application") as application:
        async with publishing(server, recorder, ackstream.Message(b"x", {"kind": "new"})) as (stream, _):
            [message] = stream.published
            assert recorder.named("send demo") == [], "it lasts until the answer"
            stream.answer([message], first_id=41)
    send = recorder.only("send demo")
    assert parent_of(send) == (application.trace_id, application.span_id)
    context = context_of(send)
    assert dict(message.attributes) == {
        "kind": "new",
        "traceparent": f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}",
    }
    assert send.kind is SpanKind.PRODUCER
    assert send.attributes == {
        "messaging.system": "ackstream",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "demo",
        "messaging.client.id": "test",
        "messaging.message.id": "41",
    }


async def test_an_unsampled_send_travels_too_and_records_nothing(server: FakeServer) -> None:
    recorder = Recorder(ALWAYS_OFF)
    async with publishing(server, recorder, ackstream.Message(b"x")) as (stream, _):
        stream.answer(stream.published)
    flags = int(stream.published[0].attributes["traceparent"][-2:], 16)
    assert not flags & TraceFlags.SAMPLED
    assert recorder.spans == []


async def test_a_traceparent_of_the_application_is_never_changed(server: FakeServer, recorder: Recorder) -> None:
    theirs = {"traceparent": "whatever they like", "tracestate": "a=b"}
    async with publishing(server, recorder, ackstream.Message(b"x", theirs)) as (stream, _):
        stream.answer(stream.published)
    assert dict(stream.published[0].attributes) == theirs
    assert recorder.started == 0


@pytest.mark.parametrize(("given", "travels"), [(63, True), (64, False)])
async def test_a_message_with_as_many_attributes_as_it_may_have_gets_no_other(
    server: FakeServer,
    recorder: Recorder,
    given: int,
    travels: bool,  # noqa: FBT001
) -> None:
    attributes = {str(n): "x" for n in range(given)}
    async with publishing(server, recorder, ackstream.Message(b"x", attributes)) as (stream, _):
        stream.answer(stream.published)
    assert ("traceparent" in stream.published[0].attributes) is travels
    assert recorder.named("send demo")


@pytest.mark.parametrize(("size", "travels"), [(934, True), (935, False), (1000, False)])
async def test_a_message_as_large_as_it_may_be_is_not_made_too_large(
    server: FakeServer,
    recorder: Recorder,
    size: int,
    travels: bool,  # noqa: FBT001
) -> None:
    async with publishing(server, recorder, ackstream.Message(bytes(size)), max_message_bytes=1000) as (stream, _):
        stream.answer(stream.published)
    assert ("traceparent" in stream.published[0].attributes) is travels


async def test_a_refused_publish_is_an_error_with_the_code(server: FakeServer, recorder: Recorder) -> None:
    async with publishing(server, recorder, ackstream.Message(b"x")) as (stream, task):
        stream.refuse(stream.published[0], grpc.StatusCode.RESOURCE_EXHAUSTED, "subscription 'demo' is full")
    assert isinstance(task.exception(), ackstream.PublishRefused)
    assert error_of(recorder.only("send demo")) == "RESOURCE_EXHAUSTED"
    assert "is full" in (recorder.only("send demo").status.description or "")


async def test_a_publish_without_an_answer_is_an_error(server: FakeServer, recorder: Recorder) -> None:
    async with publishing(server, recorder, ackstream.Message(b"x")) as (stream, task):
        stream.end()
    assert isinstance(task.exception(), ackstream.StreamEnded)
    assert error_of(recorder.only("send demo")) == "ackstream._errors.StreamEnded"
